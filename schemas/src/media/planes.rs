//! JPEG → its planes of brightness and colour as they are coded, whole or at a half, a quarter or an eighth of their size: for
//! whoever makes a picture smaller, half of the values, no conversion, and no pixel that is thrown away again.
//!
//! In: the bytes of a JPEG. Out: planes, if the picture has them: upright YCbCr, its colours at full or half resolution.
//! Never: a picture that [`super::read_image`] would refuse, read here as a whole: a smaller scale decodes fewer pixels, not bits.

use std::ops::Range;
use std::{iter, ptr};

use image::metadata::Orientation;
use mozjpeg_sys::{
    J_COLOR_SPACE, JSAMPARRAY_MUT, JSAMPROW_MUT, jpeg_component_info, jpeg_decompress_struct, jpeg_read_raw_data,
    jpeg_start_decompress,
};

use super::huffman::{Kept, ReadBy, with_either};
use super::image::{ImageMeta, check_size, orientation_of};
use super::jpeg::Header;
use super::libjpeg::Decompressor;
use super::{MediaError, MediaLimits, caught};

/// Values of a side of a block.
const BLOCK: usize = 8;
/// Blocks that a plane may have beside one of another.
const MAX_SAMPLING: usize = 2;

/// Brightness, or one of the two differences of colour, of a whole picture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plane {
    /// Values across and down, of the rows that were needed. The last of each may lie half outside of the picture.
    pub width: usize,
    pub height: usize,
    /// At least `[height, stride]`, u8; any values where nothing was [`Needed`].
    pub values: Vec<u8>,
    /// Values from one row's start to the next: whole blocks.
    pub stride: usize,
    /// Pixels of the picture that a value stands for, across and down.
    pub step: (usize, usize),
}

impl Plane {
    pub fn row(&self, y: usize) -> &[u8] {
        &self.values[y * self.stride..][..self.width]
    }
}

/// A picture as JPEG codes it: Y, Cb and Cr of ITU-R BT.601, full range.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Planes {
    /// Pixels.
    pub width: usize,
    pub height: usize,
    pub planes: [Plane; 3],
}

/// [`Plane`], wherever it lies.
#[derive(Debug, Clone, Copy)]
pub struct PlaneView<'a> {
    pub width: usize,
    pub height: usize,
    /// `[height, stride]`, u8.
    pub values: &'a [u8],
    /// Values from one row's start to the next, at least `width`.
    pub stride: usize,
    pub step: (usize, usize),
}

/// [`Planes`], wherever they lie.
#[derive(Debug, Clone, Copy)]
pub struct PlanesView<'a> {
    /// Pixels.
    pub width: usize,
    pub height: usize,
    pub planes: [PlaneView<'a>; 3],
    /// Luma 0 to 255, as in JPEG, instead of 16 to 235.
    pub full_range: bool,
}

impl Planes {
    pub fn view(&self) -> PlanesView<'_> {
        let view = |i: usize| {
            let Plane { width, height, ref values, stride, step } = self.planes[i];
            PlaneView { width, height, values, stride, step }
        };
        PlanesView { width: self.width, height: self.height, planes: [view(0), view(1), view(2)], full_range: true }
    }
}

/// What is needed of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// How small it may come, pixels across and down: it comes at 1, 1/2, 1/4 or 1/8 of its size.
    pub at_least: (usize, usize),
    /// Columns and rows of the picture. What lies above and beside them may be any values. What lies below is not decoded, unless the
    /// picture has several scans, and damage there is no error.
    pub columns: Range<usize>,
    pub rows: Range<usize>,
}

/// Decodes the planes of a JPEG into `planes`, whose memory is used again: what it held is gone. `needed` hears the picture's width
/// and height and says what is needed of it, if its planes are wanted at all.
///
/// `None` if they are not wanted, or there are none: no JPEG, not upright, not YCbCr, or colours at a quarter of the resolution.
///
/// # Errors
/// As [`super::read_image`], of the rows that are needed.
pub fn read_planes(
    bytes: &[u8],
    limits: &MediaLimits,
    planes: &mut Planes,
    needed: impl FnOnce(usize, usize) -> Option<Needed>,
) -> Result<Option<ImageMeta>, MediaError> {
    if !bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
        return Ok(None);
    }
    caught(|| {
        let header = Header::read(bytes, limits)?;
        let (width, height) = (header.width as usize, header.height as usize);
        if orientation_of(header.exif.as_deref()) != Orientation::NoTransforms {
            return Ok(None);
        }
        let Some(needed) = needed(width, height) else { return Ok(None) };
        let bytes = header.tidied.as_deref().unwrap_or(bytes);
        let is_there = with_either(|by| decode(bytes, limits, &needed, by, planes))?;
        if is_there && (planes.width, planes.height) != (width, height) {
            let detail = format!("frames of {width} x {height} and {} x {} pixels", planes.width, planes.height);
            return Err(MediaError::Corrupt { detail });
        }
        let meta = ImageMeta { width, height, format: "jpeg", progressive: header.progressive, orientation: 1 };
        Ok(is_there.then_some(meta))
    })
}

/// Whether there are planes; `None` if only libjpeg's own reader can say so. Unwinds with
/// [`super::libjpeg::Refused`] at the first thing that libjpeg does not like.
fn decode(
    bytes: &[u8],
    limits: &MediaLimits,
    needed: &Needed,
    by: ReadBy,
    out: &mut Planes,
) -> Result<Option<bool>, MediaError> {
    let mut decompressor = Decompressor::open(bytes);
    // SAFETY: set are how it decodes and at which scale.
    let info = unsafe { decompressor.info() };
    let (width, height) = (info.image_width as usize, info.image_height as usize);
    check_size(width as u64, height as u64, limits)?;
    let Some(layout) = Layout::of(info) else { return Ok(Some(false)) };
    let Needed { at_least, columns, rows } = needed;
    let fits = |divisor: &usize| width / divisor >= at_least.0 && height / divisor >= at_least.1;
    let divisor = [8, 4, 2].into_iter().find(fits).unwrap_or(1);
    info.raw_data_out = 1;
    (info.scale_num, info.scale_denom) = (1, divisor as u32);
    (out.width, out.height) = (width, height);
    for (component, plane) in layout.components.iter().zip(&mut out.planes) {
        component.make_room((width, height), rows.end, divisor, layout.sampling, plane);
    }
    let is_clean = layout.read(info, bytes, divisor, by, (columns, rows), &mut out.planes)?;
    Ok(is_clean.then_some(true))
}

/// How many blocks of each component make up one unit of coding.
struct Layout {
    components: [Component; 3],
    /// The most of any component, across and down.
    sampling: (usize, usize),
}

#[derive(Clone, Copy)]
struct Component {
    sampling: (usize, usize),
    width_in_blocks: usize,
}

impl Layout {
    fn of(info: &jpeg_decompress_struct) -> Option<Self> {
        if info.jpeg_color_space != J_COLOR_SPACE::JCS_YCbCr || info.num_components != 3 || info.comp_info.is_null() {
            return None;
        }
        // SAFETY: after the header is read libjpeg holds as many descriptions as it says there are components.
        let described = unsafe { std::slice::from_raw_parts(info.comp_info, 3) };
        let component = |of: &jpeg_component_info| Component {
            sampling: (of.h_samp_factor as usize, of.v_samp_factor as usize),
            width_in_blocks: of.width_in_blocks as usize,
        };
        let components = [component(&described[0]), component(&described[1]), component(&described[2])];
        let sampling = components[0].sampling;
        let is_usual = (1..=MAX_SAMPLING).contains(&sampling.0)
            && (1..=MAX_SAMPLING).contains(&sampling.1)
            && components[1..].iter().all(|component| component.sampling == (1, 1));
        is_usual.then_some(Self { components, sampling })
    }

    /// Reads as many rows of `bytes` as `planes` have room for; `false` if they cannot be read by `by`.
    fn read(
        &self,
        info: &mut jpeg_decompress_struct,
        bytes: &[u8],
        divisor: usize,
        by: ReadBy,
        (columns, lines): (&Range<usize>, &Range<usize>),
        planes: &mut [Plane; 3],
    ) -> Result<bool, MediaError> {
        let (across, down) = (self.sampling.0 * BLOCK, self.sampling.1 * BLOCK);
        let kept =
            Kept { columns: columns.start / across..columns.end.div_ceil(across), first_row: lines.start / down };
        // Of each component, rows of a unit of coding at this scale; libjpeg gets as many as it can want at any, and nobody looks at the others.
        let n_rows = self.components.each_ref().map(|of| of.sampling.1 * of.block_side(divisor, self.sampling));
        let n_units = planes.iter().zip(n_rows).map(|(plane, n)| plane.height.div_ceil(n)).max().unwrap_or(0);
        let mut others = vec![0_u8; planes.iter().map(|plane| plane.stride).max().unwrap_or(0)];
        let mut pointers = [[ptr::null_mut::<u8>(); MAX_SAMPLING * BLOCK]; 3];
        let max_lines = (self.sampling.1 * BLOCK) as u32;
        // SAFETY: `info` has read a header, and its source outlives it. Every pointer is a row of a plane, or of what nobody looks at, as long as all
        // blocks of its component at full size: libjpeg writes nowhere else. There are as many as a unit has rows at full size.
        unsafe {
            jpeg_start_decompress(info);
            let reader = by.attach(info, bytes, Some(kept));
            for unit in 0..n_units {
                for ((plane, pointers), n) in planes.iter_mut().zip(&mut pointers).zip(n_rows) {
                    let rows = plane.values.chunks_exact_mut(plane.stride).skip(unit * n).take(n);
                    let rows = rows.map(<[u8]>::as_mut_ptr).chain(iter::repeat(others.as_mut_ptr()));
                    pointers.iter_mut().zip(rows).for_each(|(pointer, row)| *pointer = row);
                }
                let mut by_plane: [JSAMPARRAY_MUT; 3] =
                    pointers.each_mut().map(|pointers| -> *mut JSAMPROW_MUT { pointers.as_mut_ptr() });
                let is_over = info.output_scanline >= info.output_height;
                if is_over || jpeg_read_raw_data(info, by_plane.as_mut_ptr(), max_lines) == 0 {
                    let detail = format!("{unit} rows of blocks decoded, {n_units} wanted");
                    return Err(MediaError::Corrupt { detail });
                }
                if !reader.is_clean() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

impl Component {
    /// Values of a side of one of its blocks at 1/`divisor`: libjpeg keeps more of colours, rather than to repeat them later.
    fn block_side(self, divisor: usize, most: (usize, usize)) -> usize {
        let smallest = BLOCK / divisor;
        let mut side = smallest;
        let divides = |most: usize, own: usize, side: usize| (most * smallest).is_multiple_of(own * side * 2);
        while side < BLOCK && divides(most.0, self.sampling.0, side) && divides(most.1, self.sampling.1, side) {
            side *= 2;
        }
        side
    }

    /// Makes of `plane` its own, of any values, of the first `n_rows` rows of a picture of this width and height.
    fn make_room(self, of: (usize, usize), n_rows: usize, divisor: usize, most: (usize, usize), plane: &mut Plane) {
        let side = self.block_side(divisor, most);
        let step = |most: usize, own: usize| most * BLOCK / (own * side);
        plane.step = (step(most.0, self.sampling.0), step(most.1, self.sampling.1));
        (plane.width, plane.height) = (of.0.div_ceil(plane.step.0), n_rows.min(of.1).div_ceil(plane.step.1));
        plane.stride = self.width_in_blocks.next_multiple_of(self.sampling.0) * BLOCK;
        let n = plane.stride * plane.height.next_multiple_of(self.sampling.1 * side);
        if plane.values.capacity() < n {
            // Fresh memory is zero before it is touched: what a header claims costs nothing until rows are there.
            plane.values = vec![0; n];
        } else {
            plane.values.resize(n, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use mozjpeg::{ColorSpace, Compress};

    use super::super::read_image;
    use super::{ImageMeta, MediaError, MediaLimits, Needed, Plane, Planes};

    /// Waves in all three colours, coded at quality 100 with brightness sampled `h` × `v` times as often as colour.
    fn coded(width: usize, height: usize, h: u8, v: u8) -> Vec<u8> {
        let wave = |x: usize, y: usize, u: f32, w: f32| (128.0 + 100.0 * (x as f32 * u + y as f32 * w).sin()) as u8;
        let pixel = |i: usize| {
            let (x, y) = (i % width, i / width);
            [wave(x, y, 0.02, 0.05), wave(x, y, 0.04, 0.01), wave(x, y, 0.03, 0.03)]
        };
        let rgb: Vec<u8> = (0..width * height).flat_map(pixel).collect();
        let mut encoder = Compress::new(ColorSpace::JCS_RGB);
        encoder.set_fastest_defaults();
        encoder.set_size(width, height);
        encoder.set_quality(100.0);
        encoder.set_chroma_sampling_pixel_sizes((h, v), (h, v));
        let mut encoder = encoder.start_compress(Vec::new()).unwrap();
        encoder.write_scanlines(&rgb).unwrap();
        encoder.finish().unwrap()
    }

    /// [`super::read_planes`] into planes that held another picture.
    fn read_planes(
        bytes: &[u8],
        limits: &MediaLimits,
        needed: impl FnOnce(usize, usize) -> Option<Needed>,
    ) -> Result<Option<(ImageMeta, Planes)>, MediaError> {
        let other = Plane { width: 3, height: 2, values: vec![99; 6], stride: 3, step: (1, 1) };
        let mut planes = Planes { width: 3, height: 2, planes: [other.clone(), other.clone(), other] };
        let meta = super::read_planes(bytes, limits, &mut planes, needed)?;
        Ok(meta.map(|meta| (meta, planes)))
    }

    fn all(at_least: (usize, usize), n_rows: usize) -> Option<Needed> {
        Some(Needed { at_least, columns: 0..usize::MAX / 2, rows: 0..n_rows })
    }

    /// The value of `plane` at the middle of a pixel of the picture.
    fn at(plane: &Plane, x: usize, y: usize) -> f32 {
        f32::from(plane.row(y / plane.step.1)[x / plane.step.0])
    }

    #[test]
    fn planes_hold_the_pixels_of_the_whole_picture_at_every_sampling_and_scale() {
        let limits = MediaLimits::default();
        for (h, v) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            for (width, height) in [(160, 96), (161, 97), (175, 111), (17, 9)] {
                let bytes = coded(width, height, h, v);
                let (meta, picture) = read_image(&bytes, &limits).unwrap();
                for divisor in [1, 2, 4, 8] {
                    let wanted = (width / divisor, height / divisor);
                    let (of_planes, planes) = read_planes(&bytes, &limits, |_, h| all(wanted, h)).unwrap().unwrap();
                    assert_eq!(of_planes, meta);
                    assert_eq!((planes.width, planes.height), (width, height));
                    assert_eq!(planes.planes[0].step, (divisor, divisor));
                    let mut off = 0.0;
                    for (i, &rgb) in picture.rgb.as_chunks::<3>().0.iter().enumerate() {
                        let [r, g, b] = rgb.map(f32::from);
                        let y = 0.299 * r + 0.587 * g + 0.114 * b;
                        let wanted = [y, 128.0 + 0.564 * (b - y), 128.0 + 0.713 * (r - y)];
                        for (plane, wanted) in planes.planes.iter().zip(wanted) {
                            off += (at(plane, i % width, i / width) - wanted).abs();
                        }
                    }
                    let off = off / picture.rgb.len() as f32;
                    // The waves change by up to 6 levels a pixel, so a value that stands for several is off within them.
                    let allowed = 1.0 + 1.2 * divisor as f32;
                    assert!(off < allowed, "{width} x {height}, {h} x {v}, 1/{divisor}: {off} levels");
                }
            }
        }
    }

    #[test]
    fn the_first_rows_are_those_of_the_whole_and_what_lies_below_is_not_decoded() {
        let limits = MediaLimits::default();
        for (h, v) in [(1, 1), (2, 2)] {
            let mut bytes = coded(160, 96, h, v);
            let read = |bytes: &[u8], n_rows: usize, divisor: usize| {
                let wanted = all((160 / divisor, 96 / divisor), n_rows);
                read_planes(bytes, &limits, |_, _| wanted).map(|read| read.unwrap().1)
            };
            for (n_rows, divisor) in [(1, 1), (33, 1), (95, 2), (200, 1)] {
                let (part, whole) = (read(&bytes, n_rows, divisor).unwrap(), read(&bytes, 96, divisor).unwrap());
                for (part, whole) in part.planes.iter().zip(&whole.planes) {
                    assert_eq!(part.height, n_rows.min(96).div_ceil(part.step.1));
                    assert!((0..part.height).all(|y| part.row(y) == whole.row(y)));
                }
            }
            // A marker that has no place there, in the last tenth of the scan.
            let at = bytes.len() - bytes.len() / 10;
            bytes[at..at + 2].copy_from_slice(&[0xFF, 0xD3]);
            assert!(read(&bytes, 96, 1).is_err() && read(&bytes, 16, 1).is_ok());
        }
    }

    #[test]
    fn a_part_is_that_of_the_whole_whatever_lies_around_it() {
        let limits = MediaLimits::default();
        for (h, v) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            let bytes = coded(161, 97, h, v);
            for divisor in [1, 2, 4, 8] {
                let at_least = (161 / divisor, 97 / divisor);
                let (_, whole) = read_planes(&bytes, &limits, |_, h| all(at_least, h)).unwrap().unwrap();
                for (columns, rows) in
                    [(0..161, 0..97), (40..41, 50..51), (17..143, 9..81), (100..161, 90..97), (0..16, 0..8)]
                {
                    let needed = Needed { at_least, columns: columns.clone(), rows: rows.clone() };
                    let (_, part) = read_planes(&bytes, &limits, |_, _| Some(needed)).unwrap().unwrap();
                    for (part, whole) in part.planes.iter().zip(&whole.planes) {
                        assert_eq!((part.width, part.step), (whole.width, whole.step));
                        let (across, down) = part.step;
                        for row in rows.start / down..rows.end.div_ceil(down) {
                            let values = columns.start / across..columns.end.div_ceil(across).min(part.width);
                            let (part, whole) = (&part.row(row)[values.clone()], &whole.row(row)[values]);
                            assert_eq!(part, whole, "{columns:?} {rows:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn pictures_without_planes_and_planes_that_nobody_wants_are_none() {
        let limits = MediaLimits::default();
        let bytes = coded(40, 30, 2, 2);
        assert_eq!(read_planes(&bytes, &limits, |_, _| None), Ok(None));
        assert_eq!(read_planes(b"GIF89a", &limits, |w, h| all((w, h), h)), Ok(None));
        let mut grey = Compress::new(ColorSpace::JCS_GRAYSCALE);
        grey.set_size(16, 16);
        let mut grey = grey.start_compress(Vec::new()).unwrap();
        grey.write_scanlines(&[9; 256]).unwrap();
        assert_eq!(read_planes(&grey.finish().unwrap(), &limits, |w, h| all((w, h), h)), Ok(None));
        // Colours at a quarter of the resolution.
        assert_eq!(read_planes(&coded(64, 32, 4, 1), &limits, |w, h| all((w, h), h)), Ok(None));
    }

    #[test]
    fn planes_of_damaged_bytes_are_refused_as_pixels_are() {
        let limits = MediaLimits::default();
        let bytes = coded(160, 96, 2, 2);
        let all = |w: usize, h: usize| all((w / 8, h / 8), h);
        for cut in (3..bytes.len()).step_by(7) {
            let (pixels, planes) = (read_image(&bytes[..cut], &limits), read_planes(&bytes[..cut], &limits, all));
            assert_eq!(pixels.unwrap_err().reason(), planes.unwrap_err().reason(), "{cut}");
        }
        let mut n_refused = 0;
        for at in (2..bytes.len()).step_by(3) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x55;
            let (pixels, planes) = (read_image(&bytes, &limits), read_planes(&bytes, &limits, all));
            n_refused += usize::from(pixels.is_err());
            match planes {
                // Other components, or not YCbCr any more.
                Ok(None) => {}
                planes => {
                    assert_eq!(pixels.map(|_| ()).err().map(|e| e.reason()), planes.err().map(|e| e.reason()), "{at}");
                }
            }
        }
        assert!(n_refused > 50, "{n_refused}");
        let few = MediaLimits { max_pixels: 100, ..limits };
        assert!(matches!(read_planes(&bytes, &few, all), Err(MediaError::TooLarge { .. })));
    }
}
