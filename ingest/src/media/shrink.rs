//! Pictures made smaller and coded anew: the only thing done to a medium that loses something.
//!
//! In: decoded pixels or planes and the corpus's rule. Out: the bytes of a JPEG or PNG. Never: a picture that the rule leaves
//! alone coded anew.

use imp_schemas::media::libjpeg::{self, Refused};
use imp_schemas::media::{ImageMeta, MediaError, Picture, Planes};
use mozjpeg::{ColorSpace, Compress};

use super::config::{PictureFormat, Reencode, Side};
use super::pixels::{Pixels, REPEATED, extended};

/// Width and height that a picture of `width` × `height` shall have; `None` if the rule leaves it alone.
pub(super) fn target(width: usize, height: usize, rule: &Reencode) -> Option<(usize, usize)> {
    let (shorter, longest) = (width.min(height), width.max(height));
    let (from, to) = match rule.side {
        Side::Shorter(to) => (shorter, to),
        Side::Longest(to) => (longest, to),
    };
    let scaled = |length: usize| ((length * to + from / 2) / from).max(1);
    let leaves = from == to || (from < to && rule.only_if_larger);
    (!leaves).then(|| (scaled(width), scaled(height)))
}

/// `pixels` as the rule wants them: their bytes, what the planning columns say of them, and the pixels that were coded; `None`
/// if the rule leaves them alone.
///
/// # Errors
/// A side that the format cannot have.
pub(super) fn shrink(pixels: &Pixels, rule: &Reencode) -> Result<Option<(Vec<u8>, ImageMeta, Pixels)>, MediaError> {
    let (width, height) = pixels.size();
    let Some((width, height)) = target(width, height, rule) else { return Ok(None) };
    let smaller = pixels.resized(width, height)?;
    let (bytes, format) = match (rule.format, &smaller) {
        (PictureFormat::Png, Pixels::Rgb(picture)) => (to_png(picture)?, "png"),
        (PictureFormat::Jpeg, Pixels::Rgb(picture)) => (coded(|| to_jpeg(picture, rule.quality))?, "jpeg"),
        (_, Pixels::Planes(planes)) => (coded(|| planes_to_jpeg(planes, rule.quality))?, "jpeg"),
    };
    Ok(Some((bytes, ImageMeta { width, height, format, progressive: false, orientation: 1 }, smaller)))
}

fn failed(detail: String) -> MediaError {
    MediaError::Corrupt { detail: format!("the picture cannot be coded: {detail}") }
}

fn coded(code: impl FnOnce() -> std::io::Result<Vec<u8>>) -> Result<Vec<u8>, MediaError> {
    libjpeg::guarded(code).map_err(|Refused { message, .. }| failed(message))?.map_err(|e| failed(e.to_string()))
}

fn to_png(picture: &Picture) -> Result<Vec<u8>, MediaError> {
    let mut out = Vec::new();
    let side = |n: usize| u32::try_from(n).map_err(|e| failed(e.to_string()));
    let (width, height) = (side(picture.width)?, side(picture.height)?);
    let encoder = image::codecs::png::PngEncoder::new(&mut out);
    image::ImageEncoder::write_image(encoder, &picture.rgb, width, height, image::ExtendedColorType::Rgb8)
        .map_err(|e| failed(e.to_string()))?;
    Ok(out)
}

/// As libjpeg-turbo codes by itself, which is what Pillow and OpenCV write. Unwinds as [`libjpeg`] does.
fn to_jpeg(picture: &Picture, quality: u8) -> std::io::Result<Vec<u8>> {
    let encoder = compressor(ColorSpace::JCS_RGB, picture.width, picture.height, quality);
    let mut encoder = encoder.start_compress(Vec::new())?;
    encoder.write_scanlines(&picture.rgb)?;
    encoder.finish()
}

/// The same, of planes whose colours have half of the resolution. Unwinds as [`libjpeg`] does.
fn planes_to_jpeg(planes: &Planes, quality: u8) -> std::io::Result<Vec<u8>> {
    let mut encoder = compressor(ColorSpace::JCS_YCbCr, planes.width, planes.height, quality);
    encoder.set_raw_data_in(true);
    let mut encoder = encoder.start_compress(Vec::new())?;
    let whole_blocks = |length: usize| length.next_multiple_of(8);
    let [y, cb, cr] =
        planes.planes.each_ref().map(|p| extended(p, (whole_blocks(p.width), whole_blocks(p.height)), REPEATED));
    if !encoder.write_raw_data(&[&y, &cb, &cr]) {
        return Err(std::io::Error::other("the coder took no rows"));
    }
    encoder.finish()
}

fn compressor(from: ColorSpace, width: usize, height: usize, quality: u8) -> Compress {
    let mut encoder = Compress::new_err(Box::new(libjpeg::errors()), from);
    encoder.set_fastest_defaults();
    encoder.set_size(width, height);
    encoder.set_quality(f32::from(quality));
    // Colour at half resolution, as cameras and the other tools of this trade write it.
    encoder.set_chroma_sampling_pixel_sizes((2, 2), (2, 2));
    encoder
}
