//! Batches of each stream → tokens with positions, ready for the encoder.
//!
//! In: a batch of one stream. Out: tokens `[n, tokens, width]` after the stream's projection, and its padding mask. Never: a
//! token that DropToken dropped, a position computed in floating point.

use dfdx::prelude::{HasShape, ReshapeTo, Tape};
use imp_schemas::batch::{AudioBatch, TextBatch, VisionBatch};
use imp_schemas::resolution::table_row;

use super::{HostTokens, Imp, ModelError, Stream, device, patches};
use crate::ops::{Backend, InputGrad, Mask, Positions, Rows, Tokens};

impl<D: Backend> Imp<D> {
    /// Tokens of pictures or clips.
    pub(super) fn embed_tubes<T: Tape<f32, D>>(&self, batch: &VisionBatch) -> Result<Tokens<D, T>, ModelError> {
        let kept = batch.kept.as_deref();
        let (tubes, grid) = patches::tubes(batch.resolution, &batch.pixels, kept, &self.config.patching)?;
        let embed = self.linear("vision/embed", self.config.width, false, InputGrad::Unwanted)?;
        if let Some(rows) = D::linear_of_tubes::<T>(&self.dev, &tubes, &embed).map_err(device)? {
            return self.place(Stream::Vision, rows, tubes.n, grid, batch.kept.clone());
        }
        let tokens = patches::tube_patches(batch.resolution, &batch.pixels, kept, &self.config.patching)?;
        self.embed_patches(Stream::Vision, tokens, batch.kept.clone())
    }

    /// Tokens of spectrograms or waveforms.
    pub(super) fn embed_sounds<T: Tape<f32, D>>(&self, batch: &AudioBatch) -> Result<Tokens<D, T>, ModelError> {
        let kept = batch.kept.as_deref();
        let stream = Stream::of(batch.resolution);
        let mut tokens = patches::sound_patches(batch.resolution, &batch.values, kept, &self.config.patching)?;
        let [mean, std] = self.config.log_mel_mean_std;
        if stream == Stream::Spectrogram && [mean, std] != [0.0, 1.0] {
            tokens.values.iter_mut().for_each(|v| *v = (*v - mean) / std);
        }
        self.embed_patches(stream, tokens, batch.kept.clone())
    }

    /// Tokens of sentences, and which of them are not padding.
    pub(super) fn embed_sentences<T: Tape<f32, D>>(
        &self,
        batch: &TextBatch,
    ) -> Result<(Tokens<D, T>, Mask), ModelError> {
        let n_tokens = batch.n_tokens;
        let (n, rest) = (batch.ids.len() / n_tokens.max(1), batch.ids.len() % n_tokens.max(1));
        if n == 0 || rest != 0 {
            let wanted = n_tokens * n.max(1);
            return Err(ModelError::Values { what: "ids", found: batch.ids.len(), wanted });
        }
        let limit = self.config.text_table;
        if n_tokens > limit {
            return Err(ModelError::Range { what: "length of a sentence", found: n_tokens as i64 - 1, limit });
        }
        let limit = self.config.vocab_size;
        let id = |&id: &i32| match u32::try_from(id) {
            Ok(row) if (row as usize) < limit => Ok(row),
            Ok(_) | Err(_) => Err(ModelError::Range { what: "token id", found: i64::from(id), limit }),
        };
        let ids = batch.ids.iter().map(id).collect::<Result<Vec<u32>, _>>()?;
        let mask = Mask { valid: ids.iter().map(|&id| id != 0).collect(), n_tokens };
        let rows = D::lookup::<T>(self.flat("text/embed/embedding")?, self.config.width, &ids).map_err(device)?;
        let tokens = rows.try_reshape_like(&(n, n_tokens, self.config.width)).map_err(device)?;
        // A sentence's coordinates are scaled by its length: place i reads row i.
        let positions = Positions { rows: (0..n_tokens as u32).collect(), kept: None };
        Ok((self.finish(Stream::Text, tokens, &positions)?, mask))
    }

    pub(super) fn embed_patches<T: Tape<f32, D>>(
        &self,
        stream: Stream,
        tokens: HostTokens,
        kept: Option<Vec<u32>>,
    ) -> Result<Tokens<D, T>, ModelError> {
        let HostTokens { n, grid, n_tokens, values } = tokens;
        let n_values = values.len() / (n * n_tokens);
        let x = self.dev.try_tensor_from_vec(values, (n * n_tokens, n_values)).map_err(device)?.retaped::<T>();
        let embed = self.linear(&format!("{stream}/embed"), self.config.width, false, InputGrad::Unwanted)?;
        self.place(stream, D::linear(x, &embed).map_err(device)?, n, grid, kept)
    }

    /// Embedded patches, `[n * tokens, width]`, at their places of the grid.
    fn place<T: Tape<f32, D>>(
        &self,
        stream: Stream,
        rows: Rows<D, T>,
        n: usize,
        grid: [usize; 3],
        kept: Option<Vec<u32>>,
    ) -> Result<Tokens<D, T>, ModelError> {
        let (n_rows, width) = *rows.shape();
        let lens: Vec<usize> = self.config.tables(stream).into_iter().map(|(_, len)| len).collect();
        let positions = Positions { rows: grid_rows(grid, &lens), kept };
        let tokens = rows.try_reshape_like(&(n, n_rows / n, width)).map_err(device)?;
        self.finish(stream, tokens, &positions)
    }

    /// Adds positions and projects.
    fn finish<T: Tape<f32, D>>(
        &self,
        stream: Stream,
        tokens: Tokens<D, T>,
        positions: &Positions,
    ) -> Result<Tokens<D, T>, ModelError> {
        let embedded = self.add_positions(stream, tokens, positions)?;
        let shape @ (n, n_tokens, width) = *embedded.shape();
        let pre = self.linear(&format!("{stream}/pre"), width, false, InputGrad::Wanted)?;
        let rows = embedded.try_reshape_like(&(n * n_tokens, width)).map_err(device)?;
        D::linear(rows, &pre).and_then(|x| x.try_reshape_like(&shape)).map_err(device)
    }

    /// Adds the stream's LayerNormed positions.
    pub(super) fn add_positions<T: Tape<f32, D>>(
        &self,
        stream: Stream,
        tokens: Tokens<D, T>,
        positions: &Positions,
    ) -> Result<Tokens<D, T>, ModelError> {
        let tables = self.config.tables(stream).into_iter();
        let tables = tables
            .map(|(axis, _)| self.flat(&format!("{stream}/pos_{axis}/embedding")).cloned())
            .collect::<Result<Vec<_>, _>>()?;
        let norm = self.norm(&format!("{stream}/pos_norm"), true)?;
        D::add_positions(tokens, positions, &tables, &norm).map_err(device)
    }
}

/// Rows that each place of a grid reads in tables of those lengths, `[places, tables]`, raster order.
pub(super) fn grid_rows(grid: [usize; 3], lens: &[usize]) -> Vec<u32> {
    let n_places = grid.iter().product();
    let place = |i: usize| [i / (grid[1] * grid[2]), i / grid[2] % grid[1], i % grid[2]];
    let rows = (0..n_places)
        .flat_map(|i| place(i).into_iter().zip(grid).zip(lens).map(|((at, of), &len)| table_row(at, of, len) as u32));
    rows.collect()
}
