//! The size of one example of a modality, and the tokens it makes.
//!
//! Source: Akbari et al. 2023, arXiv:2305.06324, and the authors' release: 4 × 16 × 16 tubes, 16 × 16 spectrogram patches.

use serde::{Deserialize, Serialize};

use crate::modality::Modality;

/// How raw blocks are cut into tokens. The same for every task of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patching {
    /// Frames, rows and columns of a tube; the release has `[4, 16, 16]`.
    #[serde(default = "Patching::release_tube")]
    pub tube: [usize; 3],
    /// Frames and mel bands of a spectrogram patch; the release has `[16, 16]`.
    #[serde(default = "Patching::release_spectrogram")]
    pub spectrogram: [usize; 2],
    /// Samples of a waveform patch; the release has 256.
    // Absent from the digest of mixtures that do without: checkpoints of before go on.
    #[serde(default = "Patching::release_waveform", skip_serializing_if = "Patching::is_release_waveform")]
    pub waveform: usize,
}

impl Patching {
    fn release_tube() -> [usize; 3] {
        [4, 16, 16]
    }

    fn release_spectrogram() -> [usize; 2] {
        [16, 16]
    }

    fn release_waveform() -> usize {
        256
    }

    fn is_release_waveform(waveform: &usize) -> bool {
        *waveform == Self::release_waveform()
    }

    /// Values of one visual token, `frames * rows * columns * 3`.
    pub fn n_tube_values(&self) -> usize {
        self.tube.iter().product::<usize>() * 3
    }

    /// Values of one spectrogram token, `frames * mels`.
    pub fn n_spectrogram_values(&self) -> usize {
        self.spectrogram.iter().product()
    }
}

impl Default for Patching {
    fn default() -> Self {
        Self {
            tube: Self::release_tube(),
            spectrogram: Self::release_spectrogram(),
            waveform: Self::release_waveform(),
        }
    }
}

/// The size of one example before it is cut into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolution {
    /// One picture; it is repeated along time to fill a tube.
    Image {
        height: usize,
        width: usize,
    },
    Video {
        frames: usize,
        height: usize,
        width: usize,
    },
    /// Spectrogram frames by mel bands.
    Audio {
        frames: usize,
        mels: usize,
    },
    /// Samples of a sound that stays one.
    Waveform {
        samples: usize,
    },
    Text {
        tokens: usize,
    },
}

/// A resolution that its patching cannot cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error("{axis} is {found}, must be a positive multiple of {patch} (the patching's {axis})")]
    NotDivisible { axis: &'static str, found: usize, patch: usize },
}

impl Resolution {
    /// The modality this is a size of.
    pub fn modality(&self) -> Modality {
        match self {
            Self::Image { .. } => Modality::Image,
            Self::Video { .. } => Modality::Video,
            Self::Audio { .. } | Self::Waveform { .. } => Modality::Audio,
            Self::Text { .. } => Modality::Text,
        }
    }

    /// Tokens per axis: (time, row, column) for vision, (time, frequency, 1) for spectrograms, (place, 1, 1) for waveforms
    /// and text.
    ///
    /// # Errors
    /// [`ShapeError::NotDivisible`] if a patch does not divide its axis.
    pub fn grid(&self, patching: &Patching) -> Result<[usize; 3], ShapeError> {
        let [t, h, w] = patching.tube;
        let [f, m] = patching.spectrogram;
        Ok(match *self {
            Self::Image { height, width } => [1, cut("height", height, h)?, cut("width", width, w)?],
            Self::Video { frames, height, width } => {
                [cut("frames", frames, t)?, cut("height", height, h)?, cut("width", width, w)?]
            }
            Self::Audio { frames, mels } => [cut("spectrogram_frames", frames, f)?, cut("n_mels", mels, m)?, 1],
            Self::Waveform { samples } => [cut("waveform_samples", samples, patching.waveform)?, 1, 1],
            Self::Text { tokens } => [cut("text_tokens", tokens, 1)?, 1, 1],
        })
    }

    /// Tokens of one example, before DropToken.
    ///
    /// # Errors
    /// As [`Resolution::grid`].
    pub fn n_tokens(&self, patching: &Patching) -> Result<usize, ShapeError> {
        Ok(self.grid(patching)?.iter().product())
    }
}

impl std::fmt::Display for Resolution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image { height, width } => write!(f, "{height}x{width}"),
            Self::Video { frames, height, width } => write!(f, "{frames}x{height}x{width}"),
            Self::Audio { frames, mels } => write!(f, "{frames}x{mels}"),
            Self::Waveform { samples } => write!(f, "{samples}"),
            Self::Text { tokens } => write!(f, "{tokens}"),
        }
    }
}

/// Tokens that DropToken keeps of `n_tokens`: `int((1 - rate) * n)` in f64, as the authors' release computes it, so that
/// 10 tokens at rate 0.8 keep 1. At least one token is kept.
pub fn n_kept(n_tokens: usize, drop_rate: f64) -> usize {
    (((1.0 - drop_rate) * n_tokens as f64) as usize).max(1)
}

/// Row of a position table of `table_len` entries that position `i` of `grid_len` reads: `floor(i * table / grid)` in whole
/// numbers, so that no rounding of a coordinate moves it.
pub fn table_row(i: usize, grid_len: usize, table_len: usize) -> usize {
    i * table_len / grid_len
}

fn cut(axis: &'static str, found: usize, patch: usize) -> Result<usize, ShapeError> {
    if found == 0 || patch == 0 || !found.is_multiple_of(patch) {
        return Err(ShapeError::NotDivisible { axis, found, patch });
    }
    Ok(found / patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_releases_settings_make_its_token_counts() {
        let cases = [
            (Resolution::Image { height: 256, width: 256 }, 256),
            (Resolution::Video { frames: 16, height: 256, width: 256 }, 1024),
            (Resolution::Video { frames: 16, height: 128, width: 128 }, 256),
            (Resolution::Audio { frames: 128, mels: 128 }, 64),
            (Resolution::Waveform { samples: 131_072 }, 512),
            (Resolution::Text { tokens: 16 }, 16),
        ];
        for (resolution, want) in cases {
            assert_eq!(resolution.n_tokens(&Patching::default()), Ok(want), "{resolution}");
        }
        assert_eq!(n_kept(1024, 0.75), 256);
        assert_eq!(n_kept(10, 0.8), 1);
    }

    #[test]
    fn a_side_that_the_patch_does_not_divide_is_named() {
        let got = Resolution::Image { height: 250, width: 256 }.grid(&Patching::default());
        assert_eq!(got, Err(ShapeError::NotDivisible { axis: "height", found: 250, patch: 16 }));
        let got = Resolution::Waveform { samples: 1000 }.grid(&Patching::default());
        assert_eq!(got, Err(ShapeError::NotDivisible { axis: "waveform_samples", found: 1000, patch: 256 }));
    }
}
