//! Planes of a JPEG or a frame → pixels of a batch: brightness and colours are cropped and resized each at its own resolution, and only the
//! pixels that are left become RGB.
//!
//! In: planes, whole or at a half, a quarter or an eighth. Out: u8 sRGB of the size that was asked for. Never: a resize without
//! antialiasing. The exact way, [`super::image`], turns every pixel of the source into RGB first; how far the two are apart is
//! said in `ops/benches/README.md` and held by a test.

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use imp_schemas::media::{PlaneView, PlanesView, packed_rgb};

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
        planes: &PlanesView<'_>,
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
            packed_rgb(planes.full_range, y, cb, cr, packed);
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
        plane: &PlaneView<'_>,
        crop: CropBox,
        width: usize,
        height: usize,
        i: usize,
    ) -> Result<(), ContentFault> {
        let (across, down) = (
            Span::of(crop.left, crop.width, plane.step.0, plane.width),
            Span::of(crop.top, crop.height, plane.step.1, plane.height),
        );
        let source = ImageRef::new(size(plane.stride)?, size(plane.height)?, plane.values, PixelType::U8)
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

#[cfg(test)]
mod tests {
    use ::image::{Rgb, RgbImage};
    use imp_schemas::media::{MediaLimits, Needed, Planes, read_image, read_planes, read_raw_frames};
    use testkit::media::jpeg_bytes;

    use super::*;
    use crate::decode::image::Pixels;

    /// Mean and greatest difference, levels, of the quick way from the exact one.
    fn difference(bytes: &[u8], crop: CropBox, side: usize, divisor: usize) -> (f64, u8) {
        let limits = MediaLimits::default();
        let (_, picture) = read_image(bytes, &limits).unwrap();
        let mut planes = Planes::default();
        let needed = |w, h| Some(Needed { at_least: (w / divisor, h / divisor), n_rows: crop.top + crop.height });
        read_planes(bytes, &limits, &mut planes, needed).unwrap().unwrap();
        let mut exact = vec![0; side * side * 3];
        Pixels::default().crop_resize(&picture, crop, side, side, &mut exact).unwrap();
        let mut quick = vec![0; side * side * 3];
        PlaneResizer::default().crop_resize(&planes.view(), crop, side, side, &mut quick).unwrap();
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
        let whole = CropBox { left: 0, top: 0, width: 500, height: 375 };
        for (side, divisor, allowed) in [(128, 2, 2.0), (64, 4, 2.0), (32, 8, 2.5)] {
            let (mean, _) = difference(&jpeg, whole, side, divisor);
            assert!(mean <= allowed, "at 1/{divisor}: mean {mean:.2}");
        }
    }

    /// The figures of `ops/benches/README.md`.
    #[cfg(feature = "real-data")]
    #[test]
    fn photographs_by_planes_are_near_those_by_rgb() {
        let shared = std::env::var_os("IMP_SHARED").expect("feature real-data needs IMP_SHARED, the folder with data/");
        let folder = std::path::Path::new(&shared).join("data/image/coco-mini/00000");
        let mut photos: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        photos.retain(|path| path.extension().is_some_and(|ending| ending == "jpg"));
        assert!(photos.len() > 40, "{} photographs", photos.len());
        for (side, divisor, allowed) in [(224, 1, 1.0), (224, 2, 2.0), (112, 4, 2.0), (56, 8, 2.0)] {
            let mut means: Vec<f64> = Vec::new();
            for path in &photos {
                let jpeg = std::fs::read(path).unwrap();
                let (_, picture) = read_image(&jpeg, &MediaLimits::default()).unwrap();
                let (width, height) = (picture.width, picture.height);
                if width.min(height) / divisor < side {
                    continue;
                }
                let crop = crate::augment::centre_box(width, height, side, side);
                means.push(difference(&jpeg, crop, side, divisor).0);
            }
            means.sort_by(f64::total_cmp);
            let (median, worst) = (means[means.len() / 2], means[means.len() - 1]);
            println!(
                "1/{divisor} to {side}: mean difference {median:.2} (median of {}), {worst:.2} at most",
                means.len()
            );
            assert!(median <= allowed, "1/{divisor} to {side}: {median:.2} levels");
        }
    }

    #[test]
    fn planes_of_a_frame_make_the_pixels_that_its_rgb_makes() {
        let wave = |x: u32, y: u32, u: f32, v: f32| (128.0 + 90.0 * (x as f32 * u + y as f32 * v).sin()) as u8;
        let frame = |i: u32| {
            RgbImage::from_fn(160, 120, |x, y| {
                Rgb([wave(x + i, y, 0.02, 0.05), wave(x, y, 0.11, 0.03), wave(x, y + i, 0.03, 0.19)])
            })
        };
        let clip = testkit::media::mp4_bytes(&[frame(0), frame(9), frame(20)], 8.0).unwrap();
        let (crop, side) = (CropBox { left: 11, top: 7, width: 121, height: 100 }, 64);
        let (mut n_frames, mut exact, mut quick) = (0, vec![0; side * side * 3], vec![0; side * side * 3]);
        read_raw_frames(&clip, &[0, 1, 2], &MediaLimits::default(), &mut |_, frame| {
            let planes = frame.planes()?.unwrap();
            assert_eq!((planes.width, planes.height), (160, 120));
            PlaneResizer::default().crop_resize(&planes, crop, side, side, &mut quick).unwrap();
            Pixels::default().crop_resize(&frame.picture()?, crop, side, side, &mut exact).unwrap();
            let off =
                exact.iter().zip(&quick).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / exact.len() as f64;
            assert!(off <= 1.0, "{off} levels on average");
            n_frames += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(n_frames, 3);
    }
}
