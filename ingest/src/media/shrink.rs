//! Pictures made smaller and coded anew: the only thing done to a medium that loses something.
//!
//! In: decoded pixels and the corpus's rule. Out: the bytes of a JPEG or PNG. Never: a resize without antialiasing, a
//! picture that the rule leaves alone coded anew.

use std::cell::RefCell;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use imp_schemas::media::libjpeg::{self, Refused};
use imp_schemas::media::{ImageMeta, MediaError, Picture};
use mozjpeg::{ColorSpace, Compress};

use super::config::{PictureFormat, Reencode, Side};

thread_local! {
    /// It keeps the rows between its two passes: made anew for each picture, their pages are cleared each time.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

/// `picture` as the rule wants it: its bytes, what the planning columns say of them, and the pixels that were coded; `None` if
/// the rule leaves it alone.
///
/// # Errors
/// A side that the format cannot have.
pub(super) fn shrink(picture: &Picture, rule: &Reencode) -> Result<Option<(Vec<u8>, ImageMeta, Picture)>, MediaError> {
    let (shorter, longest) = (picture.width.min(picture.height), picture.width.max(picture.height));
    let (from, to) = match rule.side {
        Side::Shorter(to) => (shorter, to),
        Side::Longest(to) => (longest, to),
    };
    if from == to || (from < to && rule.only_if_larger) {
        return Ok(None);
    }
    let scaled = |length: usize| ((length * to + from / 2) / from).max(1);
    let smaller = resized(picture, scaled(picture.width), scaled(picture.height))?;
    let bytes = encode(&smaller, rule)?;
    let format = match rule.format {
        PictureFormat::Jpeg => "jpeg",
        PictureFormat::Png => "png",
    };
    let (width, height) = (smaller.width, smaller.height);
    Ok(Some((bytes, ImageMeta { width, height, format, progressive: false, orientation: 1 }, smaller)))
}

/// `picture` at `width` × `height` by a triangle as wide as the reduction, which is Pillow's and torchvision's bilinear.
pub(crate) fn resized(picture: &Picture, width: usize, height: usize) -> Result<Picture, MediaError> {
    let failed = |detail: &dyn std::fmt::Display| MediaError::Corrupt {
        detail: format!("{} x {} pixels do not become {width} x {height}: {detail}", picture.width, picture.height),
    };
    let side = |n: usize| u32::try_from(n).map_err(|e| failed(&e));
    let source = ImageRef::new(side(picture.width)?, side(picture.height)?, &picture.rgb, PixelType::U8x3)
        .map_err(|e| failed(&e))?;
    let mut rgb = vec![0; width * height * 3];
    let mut target =
        Image::from_slice_u8(side(width)?, side(height)?, &mut rgb, PixelType::U8x3).map_err(|e| failed(&e))?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
    RESIZER.with_borrow_mut(|resizer| resizer.resize(&source, &mut target, &options)).map_err(|e| failed(&e))?;
    Ok(Picture { width, height, rgb })
}

fn encode(picture: &Picture, rule: &Reencode) -> Result<Vec<u8>, MediaError> {
    let failed = |detail: String| MediaError::Corrupt { detail: format!("the picture cannot be coded: {detail}") };
    match rule.format {
        PictureFormat::Jpeg => {
            let coded = libjpeg::guarded(|| to_jpeg(picture, rule.quality));
            coded.map_err(|Refused { message, .. }| failed(message))?.map_err(|e| failed(e.to_string()))
        }
        PictureFormat::Png => {
            let mut out = Vec::new();
            let side = |n: usize| u32::try_from(n).map_err(|e| failed(e.to_string()));
            let (width, height) = (side(picture.width)?, side(picture.height)?);
            let encoder = image::codecs::png::PngEncoder::new(&mut out);
            image::ImageEncoder::write_image(encoder, &picture.rgb, width, height, image::ExtendedColorType::Rgb8)
                .map_err(|e| failed(e.to_string()))?;
            Ok(out)
        }
    }
}

/// As libjpeg-turbo codes by itself, which is what Pillow and OpenCV write. Unwinds as [`libjpeg`] does.
fn to_jpeg(picture: &Picture, quality: u8) -> std::io::Result<Vec<u8>> {
    let mut encoder = Compress::new_err(Box::new(libjpeg::errors()), ColorSpace::JCS_RGB);
    encoder.set_fastest_defaults();
    encoder.set_size(picture.width, picture.height);
    encoder.set_quality(f32::from(quality));
    // Colour at half resolution, as cameras and the other tools of this trade write it.
    encoder.set_chroma_sampling_pixel_sizes((2, 2), (2, 2));
    let mut encoder = encoder.start_compress(Vec::new())?;
    encoder.write_scanlines(&picture.rgb)?;
    encoder.finish()
}
