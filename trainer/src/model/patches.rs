//! Raw blocks → token values, on the host.
//!
//! In: pixels, log-mels or samples, the patching, the kept positions. Out: values `[n, tokens, values]` of the kept tokens,
//! and where each one sits. Never: a value for a dropped token: DropToken gathers before anything is computed.
//! Source: the authors' release: tokens raster over (t, h, w), values (dt, dh, dw, c) with the channel fastest.

use imp_schemas::resolution::{Patching, Resolution};

use super::{ModelError, Stream};
use crate::ops::{Tubes, simd};

/// Token values of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTokens {
    /// Examples.
    pub n: usize,
    /// Tokens per axis before DropToken.
    pub grid: [usize; 3],
    /// Tokens per example after DropToken.
    pub n_tokens: usize,
    /// `[n, n_tokens, values]`.
    pub values: Vec<f32>,
}

/// Cuts clips into tubes.
///
/// `pixels` is `[n, frames, height, width, 3]`, u8; a picture has one frame, which fills a tube's frames by repetition.
/// Values are in [-1, 1]. `kept` is `[n, tokens]`, positions in raster order.
///
/// # Errors
/// A patch does not divide a side, the pixels are not whole examples, or a kept position is outside the grid.
pub fn tube_patches(
    resolution: Resolution,
    pixels: &[u8],
    kept: Option<&[u32]>,
    patching: &Patching,
) -> Result<HostTokens, ModelError> {
    cut_tubes(resolution, pixels, kept, patching, simd::pixels)
}

/// Clips as bytes with their sizes, checked, and the grid of their tokens: for a device that cuts tubes itself.
///
/// # Errors
/// As [`tube_patches`].
pub(super) fn tubes<'a>(
    resolution: Resolution,
    pixels: &'a [u8],
    kept: Option<&'a [u32]>,
    patching: &Patching,
) -> Result<(Tubes<'a>, [usize; 3]), ModelError> {
    let clip = clip_of(resolution)?;
    let grid = resolution.grid(patching).map_err(|source| ModelError::Resolution { stream: "vision", source })?;
    let (n, n_tokens) = counts("pixels", pixels.len(), clip.iter().product::<usize>() * 3, grid, kept)?;
    Ok((Tubes { pixels, n, n_tokens, clip, tube: patching.tube, kept }, grid))
}

/// Frames, height and width.
fn clip_of(resolution: Resolution) -> Result<[usize; 3], ModelError> {
    match resolution {
        Resolution::Image { height, width } => Ok([1, height, width]),
        Resolution::Video { frames, height, width } => Ok([frames, height, width]),
        Resolution::Audio { .. } | Resolution::Waveform { .. } | Resolution::Text { .. } => {
            Err(ModelError::MissingStream { stream: "vision", objective: "any", wanted: "image or video" })
        }
    }
}

/// As [`tube_patches`], of values of any type; `convert` takes a line of a patch.
pub(super) fn cut_tubes<V>(
    resolution: Resolution,
    pixels: &[V],
    kept: Option<&[u32]>,
    patching: &Patching,
    convert: fn(&[V], &mut [f32]),
) -> Result<HostTokens, ModelError> {
    let clip @ [frames, height, width] = clip_of(resolution)?;
    let [dt, dh, dw] = patching.tube;
    let grid = resolution.grid(patching).map_err(|source| ModelError::Resolution { stream: "vision", source })?;
    let per_example = clip.iter().product::<usize>() * 3;
    let (n, n_tokens) = counts("pixels", pixels.len(), per_example, grid, kept)?;
    let n_values = patching.n_tube_values();
    let mut values = vec![0.0; n * n_tokens * n_values];
    for (i, token) in values.chunks_exact_mut(n_values).enumerate() {
        let clip = &pixels[i / n_tokens * per_example..][..per_example];
        let [t, h, w] = place(i, n_tokens, grid, kept);
        for (f, frame) in token.chunks_exact_mut(dh * dw * 3).enumerate() {
            let at_frame = (t * dt + f).min(frames - 1);
            for (row, line) in frame.chunks_exact_mut(dw * 3).enumerate() {
                let from = ((at_frame * height + h * dh + row) * width + w * dw) * 3;
                convert(&clip[from..from + dw * 3], line);
            }
        }
    }
    Ok(HostTokens { n, grid, n_tokens, values })
}

/// Cuts spectrograms into patches, time the slower axis, or waveforms along time.
///
/// `sounds` is `[n, frames, mels]` or `[n, samples]`. `kept` as for [`tube_patches`].
///
/// # Errors
/// As [`tube_patches`].
pub fn sound_patches(
    resolution: Resolution,
    sounds: &[f32],
    kept: Option<&[u32]>,
    patching: &Patching,
) -> Result<HostTokens, ModelError> {
    let stream = Stream::of(resolution).name();
    let grid = resolution.grid(patching).map_err(|source| ModelError::Resolution { stream, source })?;
    let (what, [frames, mels], [df, dm]) = match resolution {
        Resolution::Audio { frames, mels } => ("log_mel", [frames, mels], patching.spectrogram),
        // Folded at its patches, a row of samples for each.
        Resolution::Waveform { .. } => ("samples", [grid[0], patching.waveform], [1, patching.waveform]),
        Resolution::Image { .. } | Resolution::Video { .. } | Resolution::Text { .. } => {
            return Err(ModelError::MissingStream { stream: "sound", objective: "any", wanted: "audio" });
        }
    };
    let (n, n_tokens) = counts(what, sounds.len(), frames * mels, grid, kept)?;
    let n_values = df * dm;
    let mut values = vec![0.0; n * n_tokens * n_values];
    for (i, token) in values.chunks_exact_mut(n_values).enumerate() {
        let sound = &sounds[i / n_tokens * frames * mels..][..frames * mels];
        let [t, m, _] = place(i, n_tokens, grid, kept);
        for (row, line) in token.chunks_exact_mut(dm).enumerate() {
            let from = (t * df + row) * mels + m * dm;
            line.copy_from_slice(&sound[from..from + dm]);
        }
    }
    Ok(HostTokens { n, grid, n_tokens, values })
}

/// Examples, and tokens of one after DropToken.
fn counts(
    what: &'static str,
    found: usize,
    per_example: usize,
    grid: [usize; 3],
    kept: Option<&[u32]>,
) -> Result<(usize, usize), ModelError> {
    let n = found / per_example;
    if n == 0 || !found.is_multiple_of(per_example) {
        return Err(ModelError::Values { what, found, wanted: per_example * n.max(1) });
    }
    let n_full = grid.iter().product::<usize>();
    let Some(kept) = kept else { return Ok((n, n_full)) };
    let n_tokens = kept.len() / n;
    if n_tokens == 0 || !kept.len().is_multiple_of(n) {
        return Err(ModelError::Values { what: "kept", found: kept.len(), wanted: n * n_tokens.max(1) });
    }
    match kept.iter().find(|&&k| k as usize >= n_full) {
        Some(&k) => Err(ModelError::Range { what: "kept position", found: i64::from(k), limit: n_full }),
        None => Ok((n, n_tokens)),
    }
}

/// Place in the grid of the batch's token `i`.
fn place(i: usize, n_tokens: usize, grid: [usize; 3], kept: Option<&[u32]>) -> [usize; 3] {
    let position = kept.map_or(i % n_tokens, |k| k[i] as usize);
    [position / (grid[1] * grid[2]), position / grid[2] % grid[1], position % grid[2]]
}
