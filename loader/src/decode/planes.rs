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
/// Brightness of pictures that are resized together: what a core's cache holds.
const STACKED_BYTES: usize = 2 << 20;

/// Crops and resizes planes on one thread; keeps its buffers. Pictures of one shape, the frames of a clip, may be put one after the
/// other and taken together: what the resizer works out for a shape it works out once.
#[derive(Debug, Default)]
pub struct PlaneResizer {
    resizer: Resizer,
    shape: Option<Shape>,
    /// Pictures that were put.
    n: usize,
    luma: Stack,
    /// Of each picture, both differences of colour.
    chroma: Stack,
    /// `[width, 4]`, RGB in the lower bytes.
    packed: Vec<u32>,
}

/// What pictures that are taken together have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shape {
    luma: Part,
    chroma: Part,
    full_range: bool,
    /// Pictures that there is room for.
    room: usize,
}

/// The part of a plane that is under a crop.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Part {
    across: Span,
    down: Span,
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
        self.clear();
        self.put(planes, crop, 1);
        self.take(width, height, out)
    }

    /// Forgets what was put.
    pub fn clear(&mut self) {
        self.shape = None;
        self.n = 0;
    }

    /// Pictures that were put and not taken.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Copies the part `crop` of a picture, one of `n_all` that may follow each other; `false` if those that were put must be taken
    /// first, because they have another shape or are enough.
    pub fn put(&mut self, planes: &PlanesView<'_>, crop: CropBox, n_all: usize) -> bool {
        let [y, cb, cr] = &planes.planes;
        let room = (STACKED_BYTES / (crop.width * crop.height).max(1)).clamp(1, n_all.max(1));
        let (luma, chroma) = (Part::of(y, crop), Part::of(cb, crop));
        let shape = Shape { luma, chroma, full_range: planes.full_range, room };
        if self.shape.is_some_and(|of_others| of_others != shape) || self.n >= room {
            return false;
        }
        self.luma.put(y, luma, self.n, room);
        self.chroma.put(cb, chroma, 2 * self.n, 2 * room);
        self.chroma.put(cr, chroma, 2 * self.n + 1, 2 * room);
        self.shape = Some(shape);
        self.n += 1;
        true
    }

    /// Writes what was put, in that order, at `width` × `height` to `out`, `[n, height, width, 3]`.
    ///
    /// # Errors
    /// A size that cannot be resized.
    pub fn take(&mut self, width: usize, height: usize, out: &mut [u8]) -> Result<(), ContentFault> {
        let (Some(Shape { luma, chroma, full_range, room }), n) = (self.shape, self.n) else { return Ok(()) };
        self.clear();
        self.luma.resize(&mut self.resizer, luma, [n, room], [width, height])?;
        self.chroma.resize(&mut self.resizer, chroma, [2 * n, 2 * room], [width, height])?;
        let Self { luma, chroma, packed, .. } = self;
        packed.resize(width * ROWS, 0);
        // Of each picture, brightness and both colours, four rows at a time.
        let (row_len, plane_len) = (width * ROWS, width * ROWS * height.div_ceil(ROWS));
        let pictures = luma.across.chunks_exact(plane_len).zip(chroma.across.chunks_exact(2 * plane_len));
        for ((y, colours), out) in pictures.zip(out.chunks_exact_mut(height * width * 3)) {
            let (cb, cr) = colours.split_at(plane_len);
            let fours = y.chunks_exact(row_len).zip(cb.chunks_exact(row_len)).zip(cr.chunks_exact(row_len));
            for (((y, cb), cr), rows) in fours.zip(out.chunks_mut(width * 3 * ROWS)) {
                packed_rgb(full_range, y, cb, cr, packed);
                for (i, row) in rows.chunks_exact_mut(width * 3).enumerate() {
                    for (pixel, four) in row.as_chunks_mut::<3>().0.iter_mut().zip(packed.as_chunks::<ROWS>().0) {
                        let [r, g, b, _] = four[i].to_le_bytes();
                        *pixel = [r, g, b];
                    }
                }
            }
        }
        Ok(())
    }
}

/// Planes of one shape.
#[derive(Debug, Default)]
struct Stack {
    /// Side by side: `[rows, room, columns]`.
    side_by_side: Vec<u8>,
    /// Resized down: `[height, n, columns]`; then one below the other, four rows of each together: `[n, height / 4, columns, 4]`.
    down: Vec<u8>,
    fours: Vec<u8>,
    /// Resized across: `[n, height / 4, width, 4]`.
    across: Vec<u8>,
}

impl Stack {
    /// Copies `part` of a plane, the `i`-th of `room`.
    fn put(&mut self, plane: &PlaneView<'_>, part: Part, i: usize, room: usize) {
        let Part { across, down } = part;
        self.side_by_side.resize(down.n * room * across.n, 0);
        let rows = plane.values.chunks(plane.stride).skip(down.first).take(down.n);
        for (to, row) in self.side_by_side.chunks_exact_mut(room * across.n).zip(rows) {
            to[i * across.n..][..across.n].copy_from_slice(&row[across.first..][..across.n]);
        }
    }

    /// The first `n` planes of `room` to `width` × `height`: down first, which leaves fewer rows to go across.
    fn resize(
        &mut self,
        resizer: &mut Resizer,
        part: Part,
        [n, room]: [usize; 2],
        [width, height]: [usize; 2],
    ) -> Result<(), ContentFault> {
        let Part { across, down } = part;
        let (row_len, n_fours) = (n * across.n, height.div_ceil(ROWS));
        let source = image(room * across.n, down.n, &self.side_by_side, PixelType::U8)?;
        let source = CroppedImage::new(&source, 0, 0, size(row_len)?, size(down.n)?).map_err(|e| impossible(&e))?;
        self.down.resize(row_len * height, 0);
        let mut target = Image::from_slice_u8(size(row_len)?, size(height)?, &mut self.down, PixelType::U8)
            .map_err(|e| impossible(&e))?;
        let whole = triangle().crop(0.0, down.offset, row_len as f64, down.len);
        resizer.resize(&source, &mut target, &whole).map_err(|e| impossible(&e))?;

        self.fours.clear();
        for i in 0..n {
            for rows in self.down.chunks(ROWS * row_len) {
                let last = rows.len() / row_len - 1;
                let row = |nth: usize| &rows[nth.min(last) * row_len + i * across.n..][..across.n];
                let rows = row(0).iter().zip(row(1)).zip(row(2)).zip(row(3));
                self.fours.extend(rows.flat_map(|(((a, b), c), d)| [*a, *b, *c, *d]));
            }
        }
        let source = image(across.n, n * n_fours, &self.fours, PixelType::U8x4)?;
        self.across.resize(width * n * n_fours * ROWS, 0);
        let mut target = Image::from_slice_u8(size(width)?, size(n * n_fours)?, &mut self.across, PixelType::U8x4)
            .map_err(|e| impossible(&e))?;
        let part = triangle().crop(across.offset, 0.0, across.len, (n * n_fours) as f64);
        resizer.resize(&source, &mut target, &part).map_err(|e| impossible(&e))
    }
}

impl Part {
    fn of(plane: &PlaneView<'_>, crop: CropBox) -> Self {
        Self {
            across: Span::of(crop.left, crop.width, plane.step.0, plane.width),
            down: Span::of(crop.top, crop.height, plane.step.1, plane.height),
        }
    }
}

/// What pixels of one side are in values of a plane: whole values that hold them, and where in those they begin and end.
#[derive(Debug, Clone, Copy, PartialEq)]
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

fn image(width: usize, height: usize, values: &[u8], kind: PixelType) -> Result<ImageRef<'_>, ContentFault> {
    ImageRef::new(size(width)?, size(height)?, values, kind).map_err(|e| impossible(&e))
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
        let (mut stack, mut one_by_one) = (PlaneResizer::default(), Vec::new());
        read_raw_frames(&clip, &[0, 1, 2], &MediaLimits::default(), &mut |_, frame| {
            let planes = frame.planes()?.unwrap();
            assert_eq!((planes.width, planes.height), (160, 120));
            PlaneResizer::default().crop_resize(&planes, crop, side, side, &mut quick).unwrap();
            Pixels::default().crop_resize(&frame.picture()?, crop, side, side, &mut exact).unwrap();
            let off =
                exact.iter().zip(&quick).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / exact.len() as f64;
            assert!(off <= 1.0, "{off} levels on average");
            n_frames += 1;
            one_by_one.extend_from_slice(&quick);
            assert!(stack.put(&planes, crop, 3));
            let other = CropBox { left: 12, ..crop };
            assert!(!stack.put(&planes, other, 3), "of another shape, or one too many");
            Ok(())
        })
        .unwrap();
        assert_eq!((n_frames, stack.n()), (3, 3));
        let mut together = vec![0; 3 * side * side * 3];
        stack.take(side, side, &mut together).unwrap();
        assert!(together == one_by_one && stack.n() == 0);
    }
}
