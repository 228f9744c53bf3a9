//! Encoded media → pixels and samples, one file per modality. What ingest verifies is what the loader decodes.
//!
//! In: the bytes of one record. Out: u8 sRGB pixels, f32 samples, and what the planning columns say. Never: I/O, resizing,
//! memory in proportion to what a header merely claims, a panic on data.

mod au;
pub mod audio;
#[cfg(feature = "ffmpeg")]
mod ffmpeg;
mod flac;
mod h264;
mod huffman;
pub mod image;
mod jpeg;
pub mod libjpeg;
mod matroska;
pub mod mp4;
mod opus;
pub mod planes;
mod rgb;
pub mod video;
mod wav;

use crate::reject::RejectReason;

pub use audio::{AudioMeta, Waveform, check_audio, read_audio, read_audio_part};
pub use image::{ImageMeta, read_image};
pub use planes::{Needed, Plane, PlaneView, Planes, PlanesView, read_planes};
pub use rgb::Matrix;
pub use video::{Frame, Keyframe, VideoMeta, read_frames, read_raw_frames, read_video};

/// One decoded picture or frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    /// `[height, width, 3]`, u8, sRGB.
    pub rgb: Vec<u8>,
}

/// What one record may cost to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MediaLimits {
    /// Pixels of a picture or of one frame.
    pub max_pixels: u64,
    pub max_frames: u64,
    /// Samples of a sound, all channels together.
    pub max_samples: u64,
}

impl Default for MediaLimits {
    /// 100 megapixels; an hour at 30 frames a second; two hours of stereo at 48 kHz.
    fn default() -> Self {
        Self { max_pixels: 100_000_000, max_frames: 108_000, max_samples: 700_000_000 }
    }
}

/// Why bytes did not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    #[error("the file is empty")]
    Empty,
    #[error("not a {wanted} this build knows; it starts with {found}")]
    UnknownFormat { wanted: &'static str, found: String },
    #[error("codec {codec} is not decoded by this build; {remedy}")]
    UnsupportedCodec { codec: String, remedy: &'static str },
    #[error("the bytes end too early: {detail}")]
    Truncated { detail: String },
    #[error("the bytes do not decode: {detail}")]
    Corrupt { detail: String },
    #[error("{what} is {found}, the limit is {limit}")]
    TooLarge { what: &'static str, found: u64, limit: u64 },
}

impl MediaError {
    /// The reason under which ingest counts it.
    pub fn reason(&self) -> RejectReason {
        match self {
            Self::Empty => RejectReason::EmptyFile,
            Self::UnknownFormat { .. } => RejectReason::UnknownFormat,
            Self::UnsupportedCodec { .. } => RejectReason::UnsupportedCodec,
            Self::Truncated { .. } => RejectReason::Truncated,
            Self::Corrupt { .. } => RejectReason::Corrupt,
            Self::TooLarge { .. } => RejectReason::TooLarge,
        }
    }
}

/// Calls a decoder. Those of libraries may panic on bytes that nobody foresaw; that costs the record, not the run.
fn caught<T>(decode: impl FnOnce() -> Result<T, MediaError>) -> Result<T, MediaError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode)).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(MediaError::Corrupt { detail: format!("the decoder panicked: {}", why.unwrap_or("it did not say why")) })
    })
}

/// What the decoders in Rust made of a file or, where they do not know its kind, what the system's libav makes of it.
#[cfg(feature = "ffmpeg")]
fn or_system<T>(here: Result<T, MediaError>, there: impl FnOnce() -> Result<T, MediaError>) -> Result<T, MediaError> {
    let Err(MediaError::UnknownFormat { .. } | MediaError::UnsupportedCodec { .. }) = &here else { return here };
    match there() {
        // The first decoder's message says more: what the file begins with, or which codec it found.
        Err(MediaError::UnknownFormat { .. } | MediaError::UnsupportedCodec { .. }) => here,
        there => there,
    }
}

/// The first bytes of a file that is none of ours, for messages: text as text, the rest as hex.
fn first_bytes(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(12)];
    if head.iter().all(|b| b.is_ascii_graphic() || *b == b' ' || *b == b'\n') {
        return format!("{:?}", String::from_utf8_lossy(head));
    }
    head.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}
