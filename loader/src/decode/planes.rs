//! Planes of a JPEG or a frame → pixels of a batch: brightness and colours are cropped and resized each at its own resolution, and only the
//! pixels that are left become RGB.
//!
//! In: planes, whole or at a half, a quarter or an eighth. Out: u8 sRGB of the size that was asked for. Never: a resize without
//! antialiasing, a plane that is copied, memory in proportion to the picture. The exact way, [`super::image`], turns every pixel of the source
//! into RGB first; how far the two are apart is said in `ops/benches/README.md` and held by a test.
//!
//! Sixteen rows of the output at a time: each plane down, turned on its side, and down again, which is across; colours; turned back. All of it stays in a
//! core's nearest cache, and every loop goes over values that follow each other.

mod lanes;
mod taps;

use imp_schemas::media::{Matrix, PlaneView, PlanesView};

use crate::augment::CropBox;
use crate::error::ContentFault;
use lanes::{Colours, ROWS};
use taps::{Span, Taps};

/// Crops and resizes planes on one thread; keeps its buffers, and the weights of the last shape: frames of a clip share them.
#[derive(Debug, Default)]
pub struct PlaneResizer {
    luma: Sides,
    chroma: Sides,
    strip: Strip,
}

/// The part of a plane that is under a crop, and how it becomes the output.
#[derive(Debug, Default)]
struct Sides {
    across: Taps,
    down: Taps,
}

/// [`ROWS`] rows of the output on their way.
#[derive(Debug, Default)]
struct Strip {
    /// Of one plane, resized down: `[ROWS, columns]`.
    rows: Vec<u16>,
    /// The same as `[columns, ROWS]`.
    columns: Vec<[u16; ROWS]>,
    /// Of each plane, resized across: `[width, ROWS]`.
    across: [Vec<[u16; ROWS]>; 3],
    /// Red, green, blue: `[width, ROWS]`.
    rgb: [Vec<[u8; ROWS]>; 3],
}

impl PlaneResizer {
    /// Writes the part `crop` (pixels of the picture) at `width` × `height` to `out`, `[height, width, 3]`.
    ///
    /// # Errors
    /// A size that cannot be resized, planes without all of the crop.
    pub fn crop_resize(
        &mut self,
        planes: &PlanesView<'_>,
        crop: CropBox,
        width: usize,
        height: usize,
        out: &mut [u8],
    ) -> Result<(), ContentFault> {
        let Self { luma, chroma, strip } = self;
        let [y, cb, cr] = &planes.planes;
        if (cb.width, cb.height, cb.step) != (cr.width, cr.height, cr.step) {
            return Err(impossible(format!(
                "colours of {} x {} and {} x {} values",
                cb.width, cb.height, cr.width, cr.height
            )));
        }
        let (luma, chroma) = (luma.fit(y, crop, width, height), chroma.fit(cb, crop, width, height));
        let (Some(luma), Some(chroma)) = (luma, chroma) else {
            let CropBox { width: w, height: h, .. } = crop;
            return Err(impossible(format!(
                "{w} x {h} of {} x {} pixels to {width} x {height}",
                planes.width, planes.height
            )));
        };
        let parts = [(y, luma), (cb, chroma), (cr, chroma)].map(|(plane, of)| Part::of(plane, of));
        let [Some(y), Some(cb), Some(cr)] = parts else {
            return Err(impossible(format!("{} x {} pixels whose planes end early", planes.width, planes.height)));
        };
        if out.len() != height * width * 3 {
            return Err(impossible(format!("{width} x {height} pixels in {} bytes", out.len())));
        }
        strip.resize(&[y, cb, cr], &Colours::of(Matrix::of(planes.full_range)), width, out);
        Ok(())
    }
}

impl Sides {
    /// Weights for the part of `plane` under `crop`, if there are any, and where it lies.
    fn fit(&mut self, plane: &PlaneView<'_>, crop: CropBox, width: usize, height: usize) -> Option<(&Self, [Span; 2])> {
        let across = Span::of(crop.left, crop.width, plane.step.0, plane.width);
        let down = Span::of(crop.top, crop.height, plane.step.1, plane.height);
        (self.across.fit(across, width) && self.down.fit(down, height)).then_some((self, [across, down]))
    }
}

/// A part of a plane, and how it is resized.
struct Part<'a> {
    /// From its first value.
    values: &'a [u8],
    stride: usize,
    n_columns: usize,
    sides: &'a Sides,
}

impl<'a> Part<'a> {
    /// `None` if the plane does not have all of it.
    fn of(plane: &PlaneView<'a>, (sides, [across, down]): (&'a Sides, [Span; 2])) -> Option<Self> {
        let values = plane.values.get(down.first * plane.stride + across.first..)?;
        let is_there = values.len() >= (down.n - 1) * plane.stride + across.n;
        is_there.then_some(Self { values, stride: plane.stride, n_columns: across.n, sides })
    }
}

impl Strip {
    fn resize(&mut self, parts: &[Part<'_>; 3], colours: &Colours, width: usize, out: &mut [u8]) {
        for (strip_idx, out) in out.chunks_mut(ROWS * width * 3).enumerate() {
            for (part, across) in parts.iter().zip(&mut self.across) {
                let &Part { values, stride, n_columns, sides: Sides { across: to_width, down } } = part;
                // What lies beside the part is summed with it, where it is there, and counts for nothing.
                let row_len = n_columns.next_multiple_of(lanes::WHOLE);
                self.rows.resize(ROWS * row_len, 0);
                let rows = self.rows.chunks_exact_mut(row_len).take(out.len() / (width * 3));
                for (row, i) in rows.zip(strip_idx * ROWS..) {
                    let (values, weights) = (&values[down.firsts()[i] * stride..], down.weights_of(i));
                    let n = row_len.min(values.len() - (weights.len() - 1) * stride);
                    lanes::sum_rows(values, stride, weights, &mut row[..n]);
                }
                self.columns.resize(row_len, [0; ROWS]);
                lanes::rows_to_columns(&self.rows, row_len, &mut self.columns);
                across.resize(width, [0; ROWS]);
                lanes::sum_columns(&self.columns, to_width.firsts(), to_width.weights(), across);
            }
            let [y, cb, cr] = self.across.each_ref().map(|values| values.as_flattened());
            let [red, green, blue] = &mut self.rgb;
            for values in [&mut *red, green, blue] {
                values.resize(width, [0; ROWS]);
            }
            let [r, g, b] = [&mut *red, green, blue].map(|values| values.as_flattened_mut());
            lanes::rgb(colours, y, cb, cr, r, g, b);
            lanes::write_rows(red, green, blue, out);
        }
    }
}

fn impossible(found: String) -> ContentFault {
    ContentFault::Impossible { what: "a picture that cannot be resized:", found }
}

#[cfg(test)]
mod tests {
    use ::image::{Rgb, RgbImage};
    use imp_schemas::media::{MediaLimits, Needed, Planes, read_image, read_planes, read_raw_frames};
    use imp_schemas::rng::{Role, rng_for};
    use proptest::prelude::*;
    use testkit::media::jpeg_bytes;

    use super::*;
    use crate::decode::image::Pixels;

    /// Mean and greatest difference, levels, of the quick way from the exact one.
    fn difference(bytes: &[u8], crop: CropBox, side: usize, divisor: usize) -> (f64, u8) {
        let limits = MediaLimits::default();
        let (_, picture) = read_image(bytes, &limits).unwrap();
        let mut planes = Planes::default();
        let (columns, rows) = (crop.left..crop.left + crop.width, crop.top..crop.top + crop.height);
        let needed = |w, h| Some(Needed { at_least: (w / divisor, h / divisor), columns, rows });
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
    #[cfg(real_data)]
    #[test]
    fn photographs_by_planes_are_near_those_by_rgb() {
        let shared = std::env::var_os("IMP_SHARED").expect("IMP_SHARED names the folder with data/ and golden/");
        let folder = std::path::Path::new(&shared).join("data/image/coco-mini/00000");
        let mut photos: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        photos.retain(|path| path.extension().is_some_and(|ending| ending == "jpg"));
        assert!(photos.len() > 40, "{} photographs", photos.len());
        for (side, divisor, allowed) in [(224, 1, 1.0), (224, 2, 2.0), (112, 4, 2.0), (56, 8, 2.5)] {
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

    /// What a pixel at (`x`, `y`) must be, in floating point, after Pillow's triangle.
    fn exact(view: &PlanesView<'_>, crop: CropBox, [width, height]: [usize; 2], x: usize, y: usize) -> [f64; 3] {
        let weights = |start: usize, len: usize, step: usize, n_values: usize, n_out: usize, at: usize| {
            let (start, end) = (start as f64 / step as f64, ((start + len) as f64 / step as f64).min(n_values as f64));
            let (first, last) = (start.floor(), end.ceil().min(n_values as f64));
            let scale = (end - start) / n_out as f64;
            let (centre, reach) = (start + (at as f64 + 0.5) * scale, scale.max(1.0));
            let weight = |i: usize| {
                let inside = (first..last).contains(&(i as f64));
                if inside { (1.0 - ((i as f64 + 0.5 - centre) / reach).abs()).max(0.0) } else { 0.0 }
            };
            let all: f64 = (0..n_values).map(weight).sum();
            (0..n_values).map(|i| weight(i) / all).collect::<Vec<_>>()
        };
        let [luma, u, v] = [0, 1, 2].map(|i| {
            let plane = &view.planes[i];
            let across = weights(crop.left, crop.width, plane.step.0, plane.width, width, x);
            let down = weights(crop.top, crop.height, plane.step.1, plane.height, height, y);
            let value = |r: usize, c: usize| f64::from(plane.values[r * plane.stride + c]);
            let row = |r: usize| across.iter().enumerate().map(|(c, w)| w * value(r, c)).sum::<f64>();
            down.iter().enumerate().map(|(r, w)| w * row(r)).sum::<f64>()
        });
        let (luma, chroma) = if view.full_range { (luma, 1.0) } else { ((luma - 16.0) * 255.0 / 219.0, 255.0 / 224.0) };
        let (u, v) = ((u - 128.0) * chroma, (v - 128.0) * chroma);
        let rgb = [luma + 1.402 * v, luma - 0.344_136 * u - 0.714_136 * v, luma + 1.772 * u];
        rgb.map(|level| level.clamp(0.0, 255.0))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_pixel_is_that_of_the_formula_at_every_size_crop_and_sampling(
            (size, target, halves) in ([1..90_usize, 1..90_usize], [1..70_usize, 1..70_usize], [1..=2_usize, 1..=2_usize]),
            place in [0.0..1.0_f64, 0.0..1.0, 0.0..1.0, 0.0..1.0],
            (full_range, padding, seed) in (any::<bool>(), 0..5_usize, any::<u64>()),
        ) {
            let [width, height] = size;
            let part = |start: f64, len: f64, of: usize| {
                let len = ((len * of as f64) as usize).clamp(1, of);
                ((start * (of - len + 1) as f64) as usize, len)
            };
            let ((left, w), (top, h)) = (part(place[0], place[1], width), part(place[2], place[3], height));
            let crop = CropBox { left, top, width: w, height: h };
            let mut rng = rng_for(seed, Role::Augment, &[]);
            let mut plane = |step: [usize; 2]| {
                let [columns, rows] = [width.div_ceil(step[0]), height.div_ceil(step[1])];
                // Blocks of one level and noise: edges, flats and extremes.
                let levels: Vec<u64> = (0..9).map(|_| rng.below(3) * 127 + rng.below(2)).collect();
                let value = |i: usize| (levels[i / 13 % 9] + rng.below(2) * rng.below(3)).min(255) as u8;
                (0..(columns + padding) * rows).map(value).collect::<Vec<u8>>()
            };
            let values = [plane([1, 1]), plane(halves), plane(halves)];
            let of = |i: usize, step: [usize; 2]| PlaneView {
                width: width.div_ceil(step[0]),
                height: height.div_ceil(step[1]),
                values: &values[i],
                stride: width.div_ceil(step[0]) + padding,
                step: (step[0], step[1]),
            };
            let planes = [of(0, [1, 1]), of(1, halves), of(2, halves)];
            let view = PlanesView { width, height, planes, full_range };
            let mut out = vec![0; target[0] * target[1] * 3];
            let mut resizer = PlaneResizer::default();
            // Buffers of another shape before.
            resizer.crop_resize(&view, CropBox { left: 0, top: 0, width, height }, 17, 18, &mut vec![0; 17 * 18 * 3]).unwrap();
            resizer.crop_resize(&view, crop, target[0], target[1], &mut out).unwrap();
            for (i, got) in out.as_chunks::<3>().0.iter().enumerate() {
                let wanted = exact(&view, crop, target, i % target[0], i / target[0]);
                for (got, wanted) in got.iter().zip(wanted) {
                    prop_assert!((f64::from(*got) - wanted).abs() <= 0.9, "pixel {i}: {got}, {wanted}");
                }
            }
        }
    }

    #[test]
    fn planes_that_end_early_and_sizes_of_nothing_are_refused() {
        let values = [9; 8 * 6];
        let of = |n: usize| PlaneView { width: 8, height: 6, values: &values[..n], stride: 8, step: (1, 1) };
        let view = |n: usize| PlanesView { width: 8, height: 6, planes: [of(48), of(48), of(n)], full_range: true };
        let whole = CropBox { left: 0, top: 0, width: 8, height: 6 };
        let resize = |n: usize, crop: CropBox, side: usize| {
            PlaneResizer::default().crop_resize(&view(n), crop, side, side, &mut vec![0; side * side * 3])
        };
        assert!(resize(48, whole, 4).is_ok());
        for (n, crop, side) in [(47, whole, 4), (48, CropBox { width: 0, ..whole }, 4), (48, whole, 0)] {
            assert!(resize(n, crop, side).is_err(), "{n} {crop:?} {side}");
        }
        assert!(resize(40, CropBox { height: 5, ..whole }, 4).is_ok(), "what lies below the crop need not be there");
    }
}
