//! JPEG, PNG, WebP, BMP and the first frame of a GIF → pixels.
//!
//! In: the bytes of a picture. Out: upright sRGB pixels. Never: half a picture, a size taken from a file's name, memory for
//! pixels before the header was held to the limits.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, Limits, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

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

fn check_size(width: u64, height: u64, limits: &MediaLimits) -> Result<(), MediaError> {
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

fn orientation_of(exif: Option<&[u8]>) -> Orientation {
    exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
}

fn upright(rgb: RgbImage, format: &'static str, progressive: bool, orientation: Orientation) -> (ImageMeta, Picture) {
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

fn read_jpeg(bytes: &[u8], limits: &MediaLimits) -> Result<(ImageMeta, Picture), MediaError> {
    let frame = walk_jpeg(bytes)?;
    check_size(frame.width, frame.height, limits)?;
    // Every 8 × 8 block of brightness takes at least one bit, so a header that promises more than 512 pixels a byte lies.
    if frame.width * frame.height / 512 > bytes.len() as u64 {
        let detail = format!("{} x {} pixels cannot be in {} bytes", frame.width, frame.height, bytes.len());
        return Err(MediaError::Truncated { detail });
    }
    // Strict, because the lenient mode fills what is missing with grey and says nothing.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(u16::MAX as usize)
        .set_max_height(u16::MAX as usize)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(frame.tidied.as_deref().unwrap_or(bytes)), options);
    decoder.decode_headers().map_err(broken_jpeg)?;
    let orientation = orientation_of(decoder.exif().map(Vec::as_slice));
    let (width, height) = (frame.width as usize, frame.height as usize);
    let mut rgb = decoder.decode().map_err(broken_jpeg)?;
    if decoder.output_colorspace() == Some(ColorSpace::Luma) {
        rgb = rgb.iter().flat_map(|&y| [y, y, y]).collect();
    }
    let n_values = rgb.len();
    let rgb = RgbImage::from_raw(width as u32, height as u32, rgb).ok_or_else(|| MediaError::Corrupt {
        detail: format!("{n_values} values decoded, {width} x {height} x 3 wanted"),
    })?;
    Ok(upright(rgb, "jpeg", frame.progressive, orientation))
}

struct JpegFrame {
    width: u64,
    height: u64,
    progressive: bool,
    /// The file without the bytes that stood between its segments, which the strict decoder refuses.
    tidied: Option<Vec<u8>>,
}

/// Walks the markers from SOI to EOI: gives the frame header, and knows whether the file was cut.
fn walk_jpeg(bytes: &[u8]) -> Result<JpegFrame, MediaError> {
    let cut = |what: &str| MediaError::Truncated { detail: format!("a JPEG that ends {what}") };
    let mut frame: Option<JpegFrame> = None;
    let mut in_scan = false;
    let mut segments: Vec<std::ops::Range<usize>> = Vec::new();
    let mut at = 2;
    loop {
        // In a scan, and between segments of untidy files, everything up to the next marker is passed over.
        let step = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xFF));
        let place = if in_scan { "inside its scan, without an end marker" } else { "before its first scan" };
        at += step.ok_or_else(|| cut(place))? + 1;
        let marker = *bytes.get(at).ok_or_else(|| cut(place))?;
        match marker {
            // A stuffed zero, a restart marker, a lone SOI or TEM carry no length; a fill byte starts over.
            0x00 | 0x01 | 0xD0..=0xD8 => at += 1,
            0xFF => {}
            0xD9 => break,
            _ => {
                let length = bytes.get(at + 1..at + 3).ok_or_else(|| cut("inside a segment"))?;
                let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                let segment = bytes.get(at + 3..at + 1 + length.max(2)).ok_or_else(|| cut("inside a segment"))?;
                // SOF0 to SOF15 without DHT, JPG and DAC, which share the range.
                if matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC) && frame.is_none() {
                    frame = Some(frame_header(marker, segment)?);
                }
                if !in_scan {
                    segments.push(at - 1..at + 1 + length.max(2));
                }
                in_scan |= marker == 0xDA;
                at += 1 + length.max(2);
            }
        }
    }
    let Some(mut frame) = frame.filter(|_| in_scan) else {
        return Err(MediaError::Corrupt { detail: "a JPEG without a frame and a scan".to_owned() });
    };
    let end_of_headers = segments.last().map_or(2, |s| s.end);
    if segments.iter().map(ExactSizeIterator::len).sum::<usize>() + 2 != end_of_headers {
        let mut tidied = vec![0xFF, 0xD8];
        tidied.extend(segments.iter().flat_map(|s| &bytes[s.clone()]));
        tidied.extend(&bytes[end_of_headers..]);
        frame.tidied = Some(tidied);
    }
    Ok(frame)
}

fn frame_header(marker: u8, segment: &[u8]) -> Result<JpegFrame, MediaError> {
    let &[precision, h1, h0, w1, w0, ..] = segment else {
        return Err(MediaError::Corrupt { detail: "a JPEG frame header of less than 5 bytes".to_owned() });
    };
    let unsupported = |codec: &str| MediaError::UnsupportedCodec {
        codec: codec.to_owned(),
        remedy: "convert it to baseline or progressive JPEG before ingest",
    };
    match marker {
        0xC0..=0xC2 if precision == 8 => {}
        0xC0..=0xC2 => return Err(unsupported("jpeg with 12-bit samples")),
        0xC9 | 0xCA => return Err(unsupported("jpeg with arithmetic coding")),
        _ => return Err(unsupported("lossless or hierarchical jpeg")),
    }
    let (width, height) = (u64::from(u16::from_be_bytes([w1, w0])), u64::from(u16::from_be_bytes([h1, h0])));
    Ok(JpegFrame { width, height, progressive: marker == 0xC2, tidied: None })
}

fn broken_jpeg(error: DecodeErrors) -> MediaError {
    match error {
        DecodeErrors::ExhaustedData => {
            MediaError::Truncated { detail: "a JPEG that ends before its last row".to_owned() }
        }
        DecodeErrors::Unsupported(what) => MediaError::UnsupportedCodec {
            codec: format!("jpeg ({what:?})"),
            remedy: "convert it to baseline or progressive JPEG before ingest",
        },
        other => {
            let detail = format!("{other:?}");
            if detail.contains("Premature") || detail.contains("IoErrors") {
                MediaError::Truncated { detail }
            } else {
                MediaError::Corrupt { detail }
            }
        }
    }
}
