//! Pictures and frames, small enough for a page.
//!
//! In: decoded pixels. Out: JPEG bytes. Never: a larger picture than the side given.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{replace, thumbnail};
use image::{Rgb, RgbImage};
use imp_schemas::media::Picture;

/// Longer side of a picture on the page: sharp on a phone's screen, about 15 kB.
const THUMB_SIDE: u32 = 360;
const FRAME_SIDE: u32 = 150;
/// Between frames.
const GAP: u32 = 3;
const QUALITY: u8 = 80;

pub(super) fn thumb(picture: Picture) -> Option<Vec<u8>> {
    jpeg(&shrunk(picture, THUMB_SIDE)?)
}

/// A frame as it is kept until the sheet is laid out.
pub(super) fn frame(picture: Picture) -> Option<RgbImage> {
    shrunk(picture, FRAME_SIDE)
}

/// Six frames in reading order: three beside each other, or all six where they are higher than wide.
pub(super) fn sheet(frames: &[RgbImage]) -> Option<Vec<u8>> {
    let first = frames.first()?;
    let (width, height) = first.dimensions();
    let per_row = if height > width { frames.len() } else { frames.len().min(3) } as u32;
    let n_rows = (frames.len() as u32).div_ceil(per_row);
    let mut sheet =
        RgbImage::from_pixel(per_row * (width + GAP) - GAP, n_rows * (height + GAP) - GAP, Rgb([18, 18, 20]));
    for (i, frame) in frames.iter().enumerate() {
        let (x, y) = (i as u32 % per_row, i as u32 / per_row);
        replace(&mut sheet, frame, i64::from(x * (width + GAP)), i64::from(y * (height + GAP)));
    }
    jpeg(&sheet)
}

fn shrunk(picture: Picture, side: u32) -> Option<RgbImage> {
    let (width, height) = (u32::try_from(picture.width).ok()?, u32::try_from(picture.height).ok()?);
    let picture = RgbImage::from_raw(width, height, picture.rgb)?;
    let scale = f64::from(side) / f64::from(width.max(height).max(1));
    if scale >= 1.0 {
        return Some(picture);
    }
    let size = |n: u32| ((f64::from(n) * scale).round() as u32).max(1);
    Some(thumbnail(&picture, size(width), size(height)))
}

fn jpeg(picture: &RgbImage) -> Option<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, QUALITY)).ok()?;
    Some(bytes.into_inner())
}
