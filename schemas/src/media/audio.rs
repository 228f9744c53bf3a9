//! WAV, FLAC, MP3, Ogg Vorbis, AAC; and the sound track of an MP4 → samples.

use super::{MediaError, MediaLimits};

/// What the planning columns say about a sound.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioMeta {
    /// Hz.
    pub sampling_rate: u32,
    pub channels: usize,
    /// Per channel, as decoded.
    pub num_samples: u64,
    /// Seconds.
    pub duration: f64,
    /// `pcm_s16le`, `flac`, `mp3`, `vorbis`, `aac`, …
    pub codec: String,
}

/// A decoded sound, mixed down.
#[derive(Debug, Clone, PartialEq)]
pub struct Waveform {
    /// Hz.
    pub sampling_rate: u32,
    /// Mean over the channels, full scale ±1.
    pub samples: Vec<f32>,
}

/// Decodes a sound, or the sound track of a video, whole.
///
/// # Errors
/// See [`MediaError`]; a video without a sound track is [`MediaError::UnsupportedCodec`].
pub fn read_audio(bytes: &[u8], limits: &MediaLimits) -> Result<(AudioMeta, Waveform), MediaError> {
    let _ = (bytes, limits);
    Err(MediaError::Empty)
}
