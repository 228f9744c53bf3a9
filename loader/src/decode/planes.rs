//! Planes of a JPEG → pixels of a batch: brightness and colours are cropped and resized each at its own resolution, and only the
//! pixels that are left become RGB.
//!
//! In: planes, whole or at a half, a quarter or an eighth. Out: u8 sRGB of the size that was asked for. Never: a resize without
//! antialiasing. The exact way, [`super::image`], turns every pixel of the source into RGB first; how far the two are apart is
//! said in `ops/benches/README.md` and held by a test.

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use imp_schemas::media::{Plane, Planes};

use crate::augment::CropBox;
use crate::error::ContentFault;

/// Rows that are resized across together: the library takes pixels of four values many times faster than single ones.
const ROWS: usize = 4;

/// Crops and resizes planes on one thread; keeps its buffers.
#[derive(Debug, Default)]
pub struct PlaneResizer {
    resizer: Resizer,
    /// Of one plane: resized down, and then four rows side by side.
    down: Vec<u8>,
    fours: Vec<u8>,
    /// Of each plane: `[height / 4, width, 4]`.
    across: [Vec<u8>; 3],
    /// `[width, 4]`, RGB in the lower bytes.
    packed: Vec<u32>,
}

impl PlaneResizer {
    /// Writes the part `crop` (pixels of the picture) at `width` × `height` to `out`, `[height, width, 3]`.
    ///
    /// # Errors
    /// A size that cannot be resized.
    pub fn crop_resize(
        &mut self,
        planes: &Planes,
        crop: CropBox,
        width: usize,
        height: usize,
        out: &mut [u8],
    ) -> Result<(), ContentFault> {
        for (i, plane) in planes.planes.iter().enumerate() {
            self.resize(plane, crop, width, height, i)?;
        }
        let Self { across: [y, cb, cr], packed, .. } = self;
        packed.resize(width * ROWS, 0);
        let fours = y.chunks_exact(width * ROWS).zip(cb.chunks_exact(width * ROWS)).zip(cr.chunks_exact(width * ROWS));
        for (((y, cb), cr), rows) in fours.zip(out.chunks_mut(width * 3 * ROWS)) {
            to_rgb(y, cb, cr, packed);
            for (i, row) in rows.chunks_exact_mut(width * 3).enumerate() {
                for (pixel, four) in row.as_chunks_mut::<3>().0.iter_mut().zip(packed.as_chunks::<ROWS>().0) {
                    let [r, g, b, _] = four[i].to_le_bytes();
                    *pixel = [r, g, b];
                }
            }
        }
        Ok(())
    }

    /// The part of `plane` that lies under `crop`, to `across[i]`: down first, which leaves fewer rows to go across.
    fn resize(
        &mut self,
        plane: &Plane,
        crop: CropBox,
        width: usize,
        height: usize,
        i: usize,
    ) -> Result<(), ContentFault> {
        let (across, down) = (
            Span::of(crop.left, crop.width, plane.step.0, plane.width),
            Span::of(crop.top, crop.height, plane.step.1, plane.height),
        );
        let source = ImageRef::new(size(plane.width)?, size(plane.height)?, &plane.values, PixelType::U8)
            .map_err(|e| impossible(&e))?;
        let part = CroppedImage::new(&source, size(across.first)?, size(down.first)?, size(across.n)?, size(down.n)?)
            .map_err(|e| impossible(&e))?;
        self.down.resize(across.n * height, 0);
        let mut target = Image::from_slice_u8(size(across.n)?, size(height)?, &mut self.down, PixelType::U8)
            .map_err(|e| impossible(&e))?;
        let whole = triangle().crop(0.0, down.offset, across.n as f64, down.len);
        self.resizer.resize(&part, &mut target, &whole).map_err(|e| impossible(&e))?;

        let n_fours = height.div_ceil(ROWS);
        self.fours.clear();
        for rows in self.down.chunks(ROWS * across.n) {
            let last = rows.len() / across.n - 1;
            let row = |i: usize| &rows[i.min(last) * across.n..][..across.n];
            let rows = row(0).iter().zip(row(1)).zip(row(2)).zip(row(3));
            self.fours.extend(rows.flat_map(|(((a, b), c), d)| [*a, *b, *c, *d]));
        }
        let source =
            ImageRef::new(size(across.n)?, size(n_fours)?, &self.fours, PixelType::U8x4).map_err(|e| impossible(&e))?;
        self.across[i].resize(width * n_fours * ROWS, 0);
        let mut target = Image::from_slice_u8(size(width)?, size(n_fours)?, &mut self.across[i], PixelType::U8x4)
            .map_err(|e| impossible(&e))?;
        let part = triangle().crop(across.offset, 0.0, across.len, n_fours as f64);
        self.resizer.resize(&source, &mut target, &part).map_err(|e| impossible(&e))
    }
}

/// What pixels of one side are in values of a plane: whole values that hold them, and where in those they begin and end.
struct Span {
    first: usize,
    n: usize,
    offset: f64,
    len: f64,
}

impl Span {
    fn of(start: usize, len: usize, step: usize, n_values: usize) -> Self {
        let first = start / step;
        let n = (start + len).div_ceil(step).min(n_values) - first;
        let (offset, len) = ((start - first * step) as f64 / step as f64, len as f64 / step as f64);
        Self { first, n, offset, len: len.min(n as f64 - offset) }
    }
}

fn triangle() -> ResizeOptions {
    ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false)
}

fn size(n: usize) -> Result<u32, ContentFault> {
    u32::try_from(n).map_err(|_| impossible(&format_args!("{n} values on a side")))
}

fn impossible(found: &dyn std::fmt::Display) -> ContentFault {
    ContentFault::Impossible { what: "a picture that cannot be resized:", found: found.to_string() }
}

/// RGB of ITU-R BT.601, full range, a pixel in the lower three bytes of each number.
fn to_rgb(y: &[u8], cb: &[u8], cr: &[u8], packed: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { to_rgb_avx2(y, cb, cr, packed) };
    }
    convert(y, cb, cr, packed);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn to_rgb_avx2(y: &[u8], cb: &[u8], cr: &[u8], packed: &mut [u32]) {
    convert(y, cb, cr, packed);
}

/// As libjpeg rounds it.
#[inline(always)]
fn convert(y: &[u8], cb: &[u8], cr: &[u8], packed: &mut [u32]) {
    const HALF: i32 = 1 << 15;
    for (((&y, &cb), &cr), packed) in y.iter().zip(cb).zip(cr).zip(packed) {
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        let r = y + ((91_881 * cr + HALF) >> 16);
        let g = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
        let b = y + ((116_130 * cb + HALF) >> 16);
        let [r, g, b] = [r, g, b].map(|v| v.clamp(0, 255) as u32);
        *packed = r | g << 8 | b << 16;
    }
}

#[cfg(test)]
mod tests {
    use ::image::{Rgb, RgbImage};
    use imp_schemas::media::{MediaLimits, Needed, read_image, read_planes};
    use testkit::media::jpeg_bytes;

    use super::*;
    use crate::decode::image::Pixels;

    /// Mean and greatest difference, levels, of the quick way from the exact one.
    fn difference(bytes: &[u8], crop: CropBox, side: usize, divisor: usize) -> (f64, u8) {
        let limits = MediaLimits::default();
        let (_, picture) = read_image(bytes, &limits).unwrap();
        let (_, planes) = read_planes(bytes, &limits, |w, h| {
            Some(Needed { at_least: (w / divisor, h / divisor), n_rows: crop.top + crop.height })
        })
        .unwrap()
        .unwrap();
        let mut exact = vec![0; side * side * 3];
        Pixels::default().crop_resize(&picture, crop, side, side, &mut exact).unwrap();
        let mut quick = vec![0; side * side * 3];
        PlaneResizer::default().crop_resize(&planes, crop, side, side, &mut quick).unwrap();
        let all = exact.iter().zip(&quick).map(|(a, b)| a.abs_diff(*b));
        (all.clone().map(f64::from).sum::<f64>() / exact.len() as f64, all.max().unwrap_or(0))
    }

    #[test]
    fn planes_make_the_pixels_that_rgb_makes() {
        let wave = |x: u32, y: u32, u: f32, v: f32| (128.0 + 90.0 * (x as f32 * u + y as f32 * v).sin()) as u8;
        let photo = RgbImage::from_fn(500, 375, |x, y| {
            Rgb([wave(x, y, 0.02, 0.05), wave(x, y, 0.11, 0.03), wave(x, y, 0.03, 0.19)])
        });
        let jpeg = jpeg_bytes(&photo, 87).unwrap();
        for (left, top, width, height) in [(0, 0, 500, 375), (83, 0, 333, 333), (7, 5, 401, 301), (211, 99, 225, 270)] {
            for side in [128, 222, 224] {
                let (mean, most) = difference(&jpeg, CropBox { left, top, width, height }, side, 1);
                assert!(
                    mean <= 1.0 && most <= 16,
                    "{width}x{height}+{left}+{top} at {side}: mean {mean:.2}, most {most}"
                );
            }
        }
        let (mean, _) = difference(&jpeg, CropBox { left: 0, top: 0, width: 500, height: 375 }, 128, 2);
        assert!(mean <= 2.0, "at a half: mean {mean:.2}");
    }

    #[test]
    fn colours_are_those_of_bt_601() {
        let mut packed = [0; 4];
        to_rgb(&[0, 255, 76, 128], &[128, 128, 85, 128], &[128, 128, 255, 128], &mut packed);
        assert_eq!(packed, [0, 0x00ff_ffff, 0x0000_00fe, 0x0080_8080]);
    }
}
