//! H.264 in MP4 → frames.

use super::{MediaError, MediaLimits, Picture};

/// A frame that decodes without another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyframe {
    /// Microseconds from the start of presentation.
    pub pts_us: i64,
    /// Byte offset of the frame's sample in the file.
    pub offset: i64,
}

/// What the planning columns say about a clip.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoMeta {
    /// Pixels, upright.
    pub width: usize,
    pub height: usize,
    /// Mean frames per second.
    pub fps: f32,
    pub num_frames: usize,
    /// Seconds.
    pub duration: f64,
    /// `h264`.
    pub codec: String,
    pub keyframes: Vec<Keyframe>,
    pub has_audio: bool,
}

/// Decodes every frame, keeps none, and says what was there: the check that ingest makes.
///
/// # Errors
/// See [`MediaError`].
pub fn read_video(bytes: &[u8], limits: &MediaLimits) -> Result<VideoMeta, MediaError> {
    let _ = (bytes, limits);
    Err(MediaError::Empty)
}

/// Decodes the frames `wanted` (indices in presentation order, rising, repetition allowed) and hands each to `take`
/// as it comes, so that a caller that reduces frames never holds the full-size clip.
///
/// # Errors
/// See [`MediaError`]; an index past the last frame is [`MediaError::Truncated`].
pub fn read_frames(
    bytes: &[u8],
    wanted: &[usize],
    limits: &MediaLimits,
    take: &mut dyn FnMut(usize, Picture),
) -> Result<(), MediaError> {
    let _ = (bytes, wanted, limits, take);
    Err(MediaError::Empty)
}
