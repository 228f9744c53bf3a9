//! A decoded picture, in whichever of two forms it came: RGB, or the planes of a JPEG that is going to be one again.
//!
//! In: what `imp_schemas::media` decoded. Out: the same at another size. Never: a resize without antialiasing, a plane that is
//! moved against another by the odd pixel at an edge.

use std::cell::RefCell;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use imp_schemas::media::{MediaError, Picture, Plane, Planes};

thread_local! {
    /// It keeps the rows between its two passes: made anew for each picture, their pages are cleared each time.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

/// Values of brightness for each of colour in the planes that are made here, across and down: as cameras and the other tools of
/// this trade write it.
const COLOUR_STEP: usize = 2;
/// Rows that are resized together.
const ROWS: usize = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pixels {
    Rgb(Picture),
    Planes(Planes),
}

impl Pixels {
    /// Width and height in pixels.
    pub(crate) fn size(&self) -> (usize, usize) {
        match self {
            Self::Rgb(picture) => (picture.width, picture.height),
            Self::Planes(planes) => (planes.width, planes.height),
        }
    }

    /// At `width` × `height` by a triangle as wide as the reduction, which is Pillow's and torchvision's bilinear. Planes of
    /// colour come at half of the resolution.
    ///
    /// # Errors
    /// A side that is none.
    pub(crate) fn resized(&self, width: usize, height: usize) -> Result<Self, MediaError> {
        match self {
            Self::Rgb(Picture { width: w, height: h, rgb }) => {
                let whole = (*w as f64, *h as f64);
                let rgb = resample(rgb, (*w, *h), PixelType::U8x3, whole, (width, height))?;
                Ok(Self::Rgb(Picture { width, height, rgb }))
            }
            Self::Planes(planes) => {
                let to = (width, height);
                let [y, cb, cr] = &planes.planes;
                let planes = [
                    resized_plane(y, (planes.width, planes.height), to, 1)?,
                    resized_plane(cb, (planes.width, planes.height), to, COLOUR_STEP)?,
                    resized_plane(cr, (planes.width, planes.height), to, COLOUR_STEP)?,
                ];
                Ok(Self::Planes(Planes { width, height, planes }))
            }
        }
    }

    /// Brightness of BT.601, as JPEG has it, of `side` × `side` pixels, whatever the shape of the picture.
    ///
    /// # Errors
    /// As [`Self::resized`].
    pub(crate) fn brightness(&self, side: usize) -> Result<Vec<f32>, MediaError> {
        match self {
            Self::Rgb(Picture { width, height, rgb }) => {
                let whole = (*width as f64, *height as f64);
                let rgb = resample(rgb, (*width, *height), PixelType::U8x3, whole, (side, side))?;
                let luma = |&[r, g, b]: &[u8; 3]| 0.299 * f32::from(r) + 0.587 * f32::from(g) + 0.114 * f32::from(b);
                Ok(rgb.as_chunks().0.iter().map(luma).collect())
            }
            Self::Planes(planes) => {
                let plane = resized_plane(&planes.planes[0], (planes.width, planes.height), (side, side), 1)?;
                Ok(plane.values.into_iter().map(f32::from).collect())
            }
        }
    }
}

/// `plane` of a picture of `from` pixels as that of one of `to` pixels, with a value for `step` × `step` of them.
fn resized_plane(plane: &Plane, from: (usize, usize), to: (usize, usize), step: usize) -> Result<Plane, MediaError> {
    let (width, height) = (to.0.div_ceil(step), to.1.div_ceil(step));
    // What the new values cover together, in old ones: the last of either may lie half outside of the picture.
    let covered = |n: usize, from: usize, to: usize, old_step: usize| (n * step * from) as f64 / (to * old_step) as f64;
    let area = (covered(width, from.0, to.0, plane.step.0), covered(height, from.1, to.1, plane.step.1));
    let size = (plane.width.max(area.0.ceil() as usize), plane.height.max(area.1.ceil() as usize));
    // The library takes pixels of four values many times faster than single ones: across, four rows are one of those.
    let (values, n_fours) = (quartets(&extended(plane, size, MIRRORED), size.0), size.1.div_ceil(ROWS));
    let across = resample(&values, (size.0, n_fours), PixelType::U8x4, (area.0, n_fours as f64), (width, n_fours))?;
    let rows = apart(&across, width);
    let values =
        resample(&rows[..width * size.1], (width, size.1), PixelType::U8, (width as f64, area.1), (width, height))?;
    Ok(Plane { width, height, values, stride: width, step: (step, step) })
}

/// Rows of `width` values, four at a time side by side; the last row is repeated until there are four.
fn quartets(values: &[u8], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len().next_multiple_of(ROWS * width));
    for rows in values.chunks(ROWS * width) {
        let last = rows.len() / width - 1;
        let row = |i: usize| &rows[i.min(last) * width..][..width];
        let rows = row(0).iter().zip(row(1)).zip(row(2)).zip(row(3));
        out.extend(rows.flat_map(|(((a, b), c), d)| [*a, *b, *c, *d]));
    }
    out
}

/// [`quartets`] undone.
fn apart(values: &[u8], width: usize) -> Vec<u8> {
    let mut out = vec![0; values.len()];
    for (from, to) in values.chunks_exact(ROWS * width).zip(out.chunks_exact_mut(ROWS * width)) {
        for (i, row) in to.chunks_exact_mut(width).enumerate() {
            row.iter_mut().zip(from.as_chunks::<ROWS>().0).for_each(|(value, four)| *value = four[i]);
        }
    }
    out
}

/// Which of `n` places stands for place `at` behind them.
type Edge = fn(at: usize, n: usize) -> usize;
/// For means over an edge: what lies behind it is as what lies before it.
const MIRRORED: Edge = |at, n| (2 * n).saturating_sub(at + 1);
/// For whole blocks of a JPEG.
pub(super) const REPEATED: Edge = |_, n| n - 1;

/// The values of `plane`, with more behind its edges until it has the size.
pub(super) fn extended(plane: &Plane, (width, height): (usize, usize), edge: Edge) -> Vec<u8> {
    let mut values = Vec::with_capacity(width * height);
    for y in 0..height {
        let y = if y < plane.height { y } else { edge(y, plane.height) };
        let row = plane.row(y);
        values.extend_from_slice(row);
        values.extend((plane.width..width).map(|x| row[edge(x, plane.width)]));
    }
    values
}

/// The part of `values` from the corner to `area`, at another size.
fn resample(
    values: &[u8],
    from: (usize, usize),
    pixel: PixelType,
    area: (f64, f64),
    to: (usize, usize),
) -> Result<Vec<u8>, MediaError> {
    let failed = |detail: &dyn std::fmt::Display| MediaError::Corrupt {
        detail: format!("{} x {} pixels do not become {} x {}: {detail}", from.0, from.1, to.0, to.1),
    };
    let side = |n: usize| u32::try_from(n).map_err(|e| failed(&e));
    let source = ImageRef::new(side(from.0)?, side(from.1)?, values, pixel).map_err(|e| failed(&e))?;
    let mut resized = vec![0; to.0 * to.1 * pixel.size()];
    let mut target = Image::from_slice_u8(side(to.0)?, side(to.1)?, &mut resized, pixel).map_err(|e| failed(&e))?;
    let triangle = ResizeAlg::Convolution(FilterType::Bilinear);
    let options = ResizeOptions::new().resize_alg(triangle).use_alpha(false).crop(0.0, 0.0, area.0, area.1);
    RESIZER.with_borrow_mut(|resizer| resizer.resize(&source, &mut target, &options)).map_err(|e| failed(&e))?;
    Ok(resized)
}
