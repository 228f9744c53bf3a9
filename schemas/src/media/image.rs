//! JPEG, PNG, WebP, BMP and the first frame of a GIF → pixels.
//!
//! In: the bytes of a picture. Out: upright sRGB pixels. Never: half a picture, a size taken from a file's name, memory for
//! pixels before the header was held to the limits.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, Limits, RgbImage};

use super::jpeg::read_jpeg;
use super::{MediaError, MediaLimits, Picture, caught, first_bytes};

/// What the planning columns say about a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMeta {
    /// Pixels, after EXIF orientation.
    pub width: usize,
    pub height: usize,
    /// `jpeg`, `png`, `webp`, `gif` or `bmp`.
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
    if bytes.is_empty() {
        return Err(MediaError::Empty);
    }
    caught(|| decode(bytes, limits))
}

fn decode(bytes: &[u8], limits: &MediaLimits) -> Result<(ImageMeta, Picture), MediaError> {
    match format_of(bytes)? {
        Format::Jpeg => read_jpeg(bytes, limits),
        Format::Png => {
            // The codec keeps text chunks; the allowance is what they and one row may take, not the pixels.
            let allowed = Limits::default().max_alloc.unwrap_or(u64::MAX).min(64 << 20);
            let (width, height) = png_size(bytes)?;
            check_size(width, height, limits)?;
            let mut alloc = Limits::no_limits();
            alloc.max_alloc = Some(allowed);
            let decoder = image::codecs::png::PngDecoder::with_limits(Cursor::new(bytes), alloc).map_err(broken)?;
            finish(decoder, "png", limits)
        }
        Format::WebP => {
            finish(image::codecs::webp::WebPDecoder::new(Cursor::new(bytes)).map_err(broken)?, "webp", limits)
        }
        Format::Gif => {
            let mut decoder = image::codecs::gif::GifDecoder::new(Cursor::new(bytes)).map_err(broken)?;
            let (width, height) = decoder.dimensions();
            // A frame has a size of its own, which may be any beside the screen's.
            let mut alloc = Limits::no_limits();
            alloc.max_alloc = Some(4 * u64::from(width) * u64::from(height) + (1 << 20));
            decoder.set_limits(alloc).map_err(broken)?;
            finish(decoder, "gif", limits)
        }
        Format::Bmp => finish(image::codecs::bmp::BmpDecoder::new(Cursor::new(bytes)).map_err(broken)?, "bmp", limits),
    }
}

enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
}

/// By the first bytes: a `.png` that is a JPEG is a JPEG.
fn format_of(bytes: &[u8]) -> Result<Format, MediaError> {
    let known_but = |codec: &str| {
        let remedy = "convert it to JPEG, PNG or WebP before ingest";
        Err(MediaError::UnsupportedCodec { codec: codec.to_owned(), remedy })
    };
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => Ok(Format::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Ok(Format::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
        [b'B', b'M', _, _, _, _, _, _, _, _, ..] => Ok(Format::Bmp),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => known_but("tiff"),
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] if brand.starts_with(b"avi") => known_but("avif"),
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] if brand.starts_with(b"hei") => known_but("heic"),
        [0xFF, 0x0A, ..] | [0, 0, 0, 0x0C, b'J', b'X', b'L', b' ', ..] => known_but("jpeg-xl"),
        [0, 0, 0, 0x0C, b'j', b'P', b' ', b' ', ..] => known_but("jpeg-2000"),
        _ => {
            Err(MediaError::UnknownFormat { wanted: "picture (JPEG, PNG, WebP, GIF, BMP)", found: first_bytes(bytes) })
        }
    }
}

pub(super) fn check_size(width: u64, height: u64, limits: &MediaLimits) -> Result<(), MediaError> {
    if width == 0 || height == 0 {
        return Err(MediaError::Corrupt { detail: format!("the header says {width} x {height} pixels") });
    }
    let n_pixels = width.saturating_mul(height);
    if n_pixels > limits.max_pixels {
        return Err(MediaError::TooLarge { what: "pixels of the picture", found: n_pixels, limit: limits.max_pixels });
    }
    Ok(())
}

/// Width and height of a PNG's header, before the codec sees it.
fn png_size(bytes: &[u8]) -> Result<(u64, u64), MediaError> {
    let number = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    match (number(16), number(20)) {
        (Some(width), Some(height)) => Ok((u64::from(width), u64::from(height))),
        _ => Err(MediaError::Truncated { detail: "a PNG that ends inside its header".to_owned() }),
    }
}

/// The first picture of a decoder, upright.
fn finish(
    mut decoder: impl ImageDecoder,
    format: &'static str,
    limits: &MediaLimits,
) -> Result<(ImageMeta, Picture), MediaError> {
    let (width, height) = decoder.dimensions();
    check_size(u64::from(width), u64::from(height), limits)?;
    // A broken EXIF block does not make the picture unreadable.
    let exif = decoder.exif_metadata().unwrap_or_default();
    let orientation = orientation_of(exif.as_deref());
    let image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    Ok(upright(over_white(image), format, false, orientation))
}

pub(super) fn orientation_of(exif: Option<&[u8]>) -> Orientation {
    exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
}

pub(super) fn upright(
    rgb: RgbImage,
    format: &'static str,
    progressive: bool,
    orientation: Orientation,
) -> (ImageMeta, Picture) {
    let exif_number = orientation.to_exif();
    let rgb = if orientation == Orientation::NoTransforms {
        rgb
    } else {
        let mut image = DynamicImage::ImageRgb8(rgb);
        image.apply_orientation(orientation);
        image.into_rgb8()
    };
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    let meta = ImageMeta { width, height, format, progressive, orientation: exif_number };
    (meta, Picture { width, height, rgb: rgb.into_raw() })
}

/// 8-bit RGB; what is transparent becomes white.
fn over_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let (width, height) = rgba.dimensions();
    let mut rgb = Vec::with_capacity(width as usize * height as usize * 3);
    for pixel in rgba.pixels() {
        let [r, g, b, a] = pixel.0.map(u32::from);
        rgb.extend([r, g, b].map(|c| ((c * a + 255 * (255 - a) + 127) / 255) as u8));
    }
    // The buffer has exactly the picture's size, so this cannot fail.
    RgbImage::from_raw(width, height, rgb).unwrap_or_default()
}

fn broken(error: ImageError) -> MediaError {
    match &error {
        ImageError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            MediaError::Truncated { detail: "the picture ends before its last row".to_owned() }
        }
        ImageError::Unsupported(_) => MediaError::UnsupportedCodec {
            codec: error.to_string(),
            remedy: "convert it to JPEG or 8-bit PNG before ingest",
        },
        _ => {
            let detail = error.to_string();
            let cut = ["unexpected end of file", "UnexpectedEof", "failed to fill whole buffer", "unexpected EOF"];
            if cut.iter().any(|c| detail.contains(c)) {
                MediaError::Truncated { detail }
            } else {
                MediaError::Corrupt { detail }
            }
        }
    }
}
