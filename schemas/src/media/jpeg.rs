//! JPEG → pixels, by libjpeg-turbo's decoder as mozjpeg carries it: the one that Pillow, OpenCV and torchvision have, so that
//! a picture is the same here as there, to the bit.
//!
//! In: the bytes of a JPEG: baseline or progressive, Huffman or arithmetic; grey, YCbCr, RGB, CMYK, YCCK; upright or turned.
//! Out: upright RGB. Never: half a picture, a damaged one passed off as whole, memory before the header was held to the limits.
//!
//! With `nasm` on the machine that builds, the decoder has its SIMD paths; without it the same pixels take about twice as long.

use std::ptr;

use image::RgbImage;
use mozjpeg_sys::{
    J_COLOR_SPACE, JERR_BAD_PRECISION, JERR_CONVERSION_NOTIMPL, JERR_INPUT_EOF, JERR_NOT_COMPILED,
    JERR_SOF_UNSUPPORTED, JWRN_JPEG_EOF, jpeg_read_scanlines, jpeg_start_decompress,
};

use super::huffman::{ReadBy, with_either};
use super::image::{ImageMeta, check_size, orientation_of, upright};
use super::libjpeg::{Decompressor, Refused};
use super::{MediaError, MediaLimits, Picture};

/// Rows that are asked for together: as many as a unit of coding has at most.
const ROWS_AT_ONCE: usize = 16;
/// Scans of a progressive picture: encoders make about ten, and each costs a pass over the whole picture.
const MAX_SCANS: usize = 500;

/// As [`super::read_image`], of bytes that begin as a JPEG does.
pub(super) fn read_jpeg(bytes: &[u8], limits: &MediaLimits) -> Result<(ImageMeta, Picture), MediaError> {
    let header = Header::read(bytes, limits)?;
    let bytes = header.tidied.as_deref().unwrap_or(bytes);
    let rgb = with_either(|by| decode(bytes, limits, by))?;
    Ok(upright(rgb, "jpeg", header.progressive, orientation_of(header.exif.as_deref())))
}

/// `None` if only libjpeg's own reader can say what the bytes hold. Unwinds with [`Refused`] at the first thing that libjpeg does not like.
pub(super) fn decode(bytes: &[u8], limits: &MediaLimits, by: ReadBy) -> Result<Option<RgbImage>, MediaError> {
    let mut decompressor = Decompressor::open(bytes);
    // SAFETY: set is which colours it gives.
    let info = unsafe { decompressor.info() };
    let (width, height) = (info.image_width as usize, info.image_height as usize);
    check_size(width as u64, height as u64, limits)?;
    let is_cmyk = matches!(info.jpeg_color_space, J_COLOR_SPACE::JCS_CMYK | J_COLOR_SPACE::JCS_YCCK);
    info.out_color_space = if is_cmyk { J_COLOR_SPACE::JCS_CMYK } else { J_COLOR_SPACE::JCS_RGB };
    // SAFETY: `info` has read a header, and its source outlives it. Every row is as long as libjpeg says, and there are as many as it says.
    let values = unsafe {
        jpeg_start_decompress(info);
        let reader = by.attach(info, bytes, None);
        let row_len = info.output_width as usize * info.output_components as usize;
        let mut values = vec![0; row_len * info.output_height as usize];
        // With the last row every scan has been decoded in full; what stands behind it is nobody's.
        while info.output_scanline < info.output_height {
            let left = &mut values[info.output_scanline as usize * row_len..];
            let mut rows: [*mut u8; ROWS_AT_ONCE] = [ptr::null_mut(); ROWS_AT_ONCE];
            let n_rows = left.chunks_exact_mut(row_len).zip(&mut rows).map(|(row, to)| *to = row.as_mut_ptr()).count();
            if jpeg_read_scanlines(info, rows.as_mut_ptr(), n_rows as u32) == 0 || !reader.is_clean() {
                break;
            }
        }
        if !reader.is_clean() {
            return Ok(None);
        }
        values.truncate(row_len * info.output_scanline as usize);
        values
    };
    let rgb =
        if is_cmyk { values.as_chunks::<4>().0.iter().flat_map(|&ink| rgb_of_cmyk(ink)).collect() } else { values };
    let n_values = rgb.len();
    let picture = RgbImage::from_raw(width as u32, height as u32, rgb).ok_or_else(|| MediaError::Corrupt {
        detail: format!("{n_values} values decoded, {width} x {height} x 3 wanted"),
    })?;
    Ok(Some(picture))
}

/// Adobe stores ink the other way round: 255 is none. Everybody reads all CMYK pictures so; the products are Pillow's.
fn rgb_of_cmyk([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let light = u32::from(k);
    [c, m, y].map(|ink| {
        let covered = u32::from(255 - ink) * light + 128;
        (light - ((covered + (covered >> 8)) >> 8)) as u8
    })
}

/// What is known of a JPEG before a pixel is decoded.
pub(super) struct Header {
    pub(super) width: u64,
    pub(super) height: u64,
    pub(super) progressive: bool,
    /// The EXIF block, as TIFF.
    pub(super) exif: Option<Vec<u8>>,
    /// The file without the bytes that stood between its segments.
    pub(super) tidied: Option<Vec<u8>>,
}

impl Header {
    /// The header of a whole file, within the limits.
    pub(super) fn read(bytes: &[u8], limits: &MediaLimits) -> Result<Self, MediaError> {
        let header = Self::walk(bytes)?;
        check_size(header.width, header.height, limits)?;
        // Every 8 × 8 block of brightness takes at least one bit, so a header that promises more than 512 pixels a byte lies.
        if header.width * header.height / 512 > bytes.len() as u64 {
            let detail = format!("{} x {} pixels cannot be in {} bytes", header.width, header.height, bytes.len());
            return Err(MediaError::Truncated { detail });
        }
        Ok(header)
    }

    /// Walks the markers from SOI to EOI: gives the frame header, and knows whether the file was cut.
    fn walk(bytes: &[u8]) -> Result<Self, MediaError> {
        let cut = |what: &str| MediaError::Truncated { detail: format!("a JPEG that ends {what}") };
        let mut header: Option<Self> = None;
        let mut exif = None;
        let mut n_scans = 0;
        let mut segments: Vec<std::ops::Range<usize>> = Vec::new();
        let mut at = 2;
        loop {
            // In a scan, and between segments of untidy files, everything up to the next marker is passed over.
            let step = bytes.get(at..).and_then(|rest| memchr::memchr(0xFF, rest));
            let place = if n_scans > 0 { "inside its scan, without an end marker" } else { "before its first scan" };
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
                    match marker {
                        // SOF0 to SOF15 without DHT, JPG and DAC, which share the range.
                        0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) && header.is_none() => {
                            header = Some(Self::of_frame(marker, segment)?);
                        }
                        0xE1 if exif.is_none() => exif = segment.strip_prefix(b"Exif\0\0").map(<[u8]>::to_vec),
                        _ => {}
                    }
                    if n_scans == 0 {
                        segments.push(at - 1..at + 1 + length.max(2));
                    }
                    n_scans += usize::from(marker == 0xDA);
                    at += 1 + length.max(2);
                }
            }
        }
        if n_scans > MAX_SCANS {
            let (found, limit) = (n_scans as u64, MAX_SCANS as u64);
            return Err(MediaError::TooLarge { what: "number of scans", found, limit });
        }
        let Some(mut header) = header.filter(|_| n_scans > 0) else {
            return Err(MediaError::Corrupt { detail: "a JPEG without a frame and a scan".to_owned() });
        };
        header.exif = exif;
        let end_of_headers = segments.last().map_or(2, |s| s.end);
        if segments.iter().map(ExactSizeIterator::len).sum::<usize>() + 2 != end_of_headers {
            let mut tidied = vec![0xFF, 0xD8];
            tidied.extend(segments.iter().flat_map(|s| &bytes[s.clone()]));
            tidied.extend(&bytes[end_of_headers..]);
            header.tidied = Some(tidied);
        }
        Ok(header)
    }

    fn of_frame(marker: u8, segment: &[u8]) -> Result<Self, MediaError> {
        let &[precision, h1, h0, w1, w0, ..] = segment else {
            return Err(MediaError::Corrupt { detail: "a JPEG frame header of less than 5 bytes".to_owned() });
        };
        match marker {
            0xC0..=0xC2 | 0xC9 | 0xCA if precision == 8 => {}
            0xC0..=0xC2 | 0xC9 | 0xCA => return Err(unsupported("jpeg with 12-bit samples".to_owned())),
            _ => return Err(unsupported("lossless or hierarchical jpeg".to_owned())),
        }
        let (width, height) = (u64::from(u16::from_be_bytes([w1, w0])), u64::from(u16::from_be_bytes([h1, h0])));
        Ok(Self { width, height, progressive: matches!(marker, 0xC2 | 0xCA), exif: None, tidied: None })
    }
}

fn unsupported(codec: String) -> MediaError {
    MediaError::UnsupportedCodec { codec, remedy: "convert it to baseline or progressive JPEG before ingest" }
}

pub(super) fn broken(Refused { code, message }: Refused) -> MediaError {
    match code {
        JWRN_JPEG_EOF | JERR_INPUT_EOF => MediaError::Truncated { detail: message },
        JERR_SOF_UNSUPPORTED | JERR_BAD_PRECISION | JERR_CONVERSION_NOTIMPL | JERR_NOT_COMPILED => {
            unsupported(format!("jpeg ({message})"))
        }
        _ => MediaError::Corrupt { detail: message },
    }
}
