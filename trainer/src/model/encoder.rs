//! The shared encoder, and what stands right behind it.
//!
//! In: tokens of one stream. Out: one feature vector per example. Never: another stream's tokens in the same call.

use dfdx::prelude::{HasShape, ReshapeTo, Tape};
use imp_schemas::batch::{AudioBatch, TextBatch, VisionBatch};

use super::parameters::layer_name;
use super::{Imp, ModelError, Stream, device};
use crate::ops::{Backend, Block, Flat, InputGrad, Linear, Mask, Norm, Rows, Tokens};

impl<D: Backend> Imp<D> {
    pub(super) fn pooled_vision<T: Tape<f32, D>>(&self, batch: &VisionBatch) -> Result<Rows<D, T>, ModelError> {
        self.pooled(Stream::Vision, self.embed_tubes(batch)?, None)
    }

    pub(super) fn pooled_audio<T: Tape<f32, D>>(&self, batch: &AudioBatch) -> Result<Rows<D, T>, ModelError> {
        self.pooled(Stream::Spectrogram, self.embed_spectrograms(batch)?, None)
    }

    pub(super) fn pooled_text<T: Tape<f32, D>>(&self, batch: &TextBatch) -> Result<Rows<D, T>, ModelError> {
        let (tokens, mask) = self.embed_sentences(batch)?;
        self.pooled(Stream::Text, tokens, Some(&mask))
    }

    fn pooled<T: Tape<f32, D>>(
        &self,
        stream: Stream,
        tokens: Tokens<D, T>,
        mask: Option<&Mask>,
    ) -> Result<Rows<D, T>, ModelError> {
        let encoded = self.encode(tokens, mask)?;
        self.pool(stream, encoded, mask)
    }

    /// Blocks and final LayerNorm.
    pub(super) fn encode<T: Tape<f32, D>>(
        &self,
        tokens: Tokens<D, T>,
        mask: Option<&Mask>,
    ) -> Result<Tokens<D, T>, ModelError> {
        let layers = (0..self.config.depth).map(|i| self.block(i)).collect::<Result<Vec<_>, _>>()?;
        let x = D::blocks(tokens, mask, &layers, self.config.heads).map_err(device)?;
        let shape @ (n, n_tokens, width) = *x.shape();
        let rows = x.try_reshape_like(&(n * n_tokens, width)).map_err(device)?;
        let norm = self.norm("encoder/final_norm", true)?;
        D::layer_norm(rows, &norm).and_then(|x| x.try_reshape_like(&shape)).map_err(device)
    }

    /// Mean over tokens, then the stream's projection. The release projects every token and then takes the mean; a mean and
    /// a linear layer change places freely, and one row per example costs less than all of them.
    pub(super) fn pool<T: Tape<f32, D>>(
        &self,
        stream: Stream,
        encoded: Tokens<D, T>,
        mask: Option<&Mask>,
    ) -> Result<Rows<D, T>, ModelError> {
        let pooled = D::mean_pool(encoded, mask).map_err(device)?;
        let post = self.linear(&format!("{stream}/post"), self.config.width, false, InputGrad::Wanted)?;
        D::linear(pooled, &post).map_err(device)
    }

    fn block(&self, i: usize) -> Result<Block<D>, ModelError> {
        let layer = layer_name(i);
        let flat = |name: &str| self.flat(&format!("{layer}/{name}")).cloned();
        let qk_norm = match self.config.qk_norm {
            true => Some((flat("attn/q_norm/scale")?, flat("attn/k_norm/scale")?)),
            false => None,
        };
        Ok(Block {
            norm_sa: flat("norm_sa/scale")?,
            q: flat("attn/q/kernel")?,
            k: flat("attn/k/kernel")?,
            v: flat("attn/v/kernel")?,
            o: flat("attn/o/kernel")?,
            qk_norm,
            norm_ffn: flat("norm_ffn/scale")?,
            wi: flat("ffn/wi/kernel")?,
            wo: flat("ffn/wo/kernel")?,
        })
    }

    /// A parameter's tensor.
    pub(super) fn flat(&self, name: &str) -> Result<&Flat<D>, ModelError> {
        match self.index.get(name) {
            Some(&i) => Ok(&self.parameters[i].tensor),
            None => Err(ModelError::unknown(name, &self.names())),
        }
    }

    pub(super) fn norm(&self, name: &str, bias: bool) -> Result<Norm<D>, ModelError> {
        let bias = if bias { Some(self.flat(&format!("{name}/bias"))?.clone()) } else { None };
        Ok(Norm { scale: self.flat(&format!("{name}/scale"))?.clone(), bias })
    }

    /// A dense layer with bias.
    pub(super) fn linear(
        &self,
        name: &str,
        n_out: usize,
        gelu: bool,
        input_grad: InputGrad,
    ) -> Result<Linear<D>, ModelError> {
        let kernel = self.flat(&format!("{name}/kernel"))?.clone();
        let bias = Some(self.flat(&format!("{name}/bias"))?.clone());
        Ok(Linear { kernel, bias, n_out, gelu, input_grad })
    }
}
