//! YCbCr planes → RGB, and quarter turns.
//!
//! In: the planes of a decoded frame. Out: an upright picture. Never: another result for another decoder's planes: what
//! ingest saw, the loader sees.

use super::{MediaError, Picture};

/// Three planes, each with the bytes from one row's start to the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planes<'a> {
    pub y: &'a [u8],
    pub u: &'a [u8],
    pub v: &'a [u8],
    pub strides: [usize; 3],
}

impl Planes<'_> {
    /// # Errors
    /// [`MediaError::Corrupt`] if they are shorter than a 4:2:0 frame of this size.
    pub(super) fn check(&self, width: usize, height: usize) -> Result<(), MediaError> {
        let (half_width, half_height) = (width.div_ceil(2), height.div_ceil(2));
        let [y_stride, u_stride, v_stride] = self.strides;
        let fits = |plane: &[u8], stride: usize, width: usize, height: usize| {
            stride >= width && height > 0 && plane.len() >= stride * (height - 1) + width
        };
        if width == 0
            || !fits(self.y, y_stride, width, height)
            || !fits(self.u, u_stride, half_width, half_height)
            || !fits(self.v, v_stride, half_width, half_height)
        {
            return Err(MediaError::Corrupt { detail: format!("a frame of {width} x {height} is not 4:2:0") });
        }
        Ok(())
    }
}

/// RGB of an 8-bit 4:2:0 frame. The matrix is BT.601's, as for most small clips; the range is the stream's.
///
/// # Errors
/// [`MediaError::Corrupt`] if the planes are shorter than the size says.
pub(super) fn of_420(
    width: usize,
    height: usize,
    planes: &Planes<'_>,
    full_range: bool,
) -> Result<Picture, MediaError> {
    planes.check(width, height)?;
    let half_width = width.div_ceil(2);
    let [y_stride, u_stride, v_stride] = planes.strides;
    let matrix = Matrix::of(full_range);
    let mut rgb = vec![0; width * height * 3];
    let mut shifts = [vec![0_i32; width], vec![0; width], vec![0; width]];
    let mut packed = vec![0_u32; width];
    let halves = planes.u.chunks(u_stride).zip(planes.v.chunks(v_stride));
    // Two rows share their chroma; the last of an odd height has its own.
    for ((out, y), (u, v)) in rgb.chunks_mut(width * 6).zip(planes.y.chunks(y_stride * 2)).zip(halves) {
        shifts_of_row(matrix, &u[..half_width], &v[..half_width], &mut shifts);
        for (out, y) in out.chunks_exact_mut(width * 3).zip(y.chunks(y_stride)) {
            row_to_rgb(matrix.luma, &y[..width], &shifts, &mut packed);
            for (pixel, packed) in out.as_chunks_mut::<3>().0.iter_mut().zip(&packed) {
                let [r, g, b, _] = packed.to_le_bytes();
                *pixel = [r, g, b];
            }
        }
    }
    Ok(Picture { width, height, rgb })
}

/// What the chroma of a row adds to each of its pixels: red, green, blue.
fn shifts_of_row(matrix: &Matrix, u: &[u8], v: &[u8], [red, green, blue]: &mut [Vec<i32>; 3]) {
    let pixels = red.chunks_mut(2).zip(green.chunks_mut(2)).zip(blue.chunks_mut(2));
    for (((red, green), blue), (&u, &v)) in pixels.zip(u.iter().zip(v)) {
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        red.fill(matrix.red_v * v + matrix.offset());
        green.fill(matrix.green_u * u + matrix.green_v * v + matrix.offset());
        blue.fill(matrix.blue_u * u + matrix.offset());
    }
}

/// A row of pixels, each in the lower three bytes of a number.
fn row_to_rgb(luma: i32, y: &[u8], shifts: &[Vec<i32>; 3], packed: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { row_to_rgb_avx2(luma, y, shifts, packed) };
    }
    convert(luma, y, shifts, packed);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn row_to_rgb_avx2(luma: i32, y: &[u8], shifts: &[Vec<i32>; 3], packed: &mut [u32]) {
    convert(luma, y, shifts, packed);
}

/// Separate lists, and sums that are not checked, so that the compiler takes eight pixels at a time.
#[inline(always)]
fn convert(luma: i32, y: &[u8], [red, green, blue]: &[Vec<i32>; 3], packed: &mut [u32]) {
    for ((((packed, &y), &r), &g), &b) in packed.iter_mut().zip(y).zip(red).zip(green).zip(blue) {
        let luma = i32::from(y).wrapping_mul(luma);
        let [r, g, b] = [r, g, b].map(|shift| (luma.wrapping_add(shift) >> 16).clamp(0, 255) as u32);
        *packed = r | g << 8 | b << 16;
    }
}

/// YCbCr → RGB of ITU-R BT.601, factors times 2^16.
#[derive(Debug)]
pub struct Matrix {
    /// Level of luma that is black.
    pub black: i32,
    pub luma: i32,
    pub red_v: i32,
    pub green_u: i32,
    pub green_v: i32,
    pub blue_u: i32,
}

impl Matrix {
    /// Of luma from 0 to 255, as in JPEG, or from 16 to 235.
    pub fn of(full_range: bool) -> &'static Self {
        if full_range { &FULL_RANGE } else { &LIMITED_RANGE }
    }

    /// Rounding, and the luma of black.
    fn offset(&self) -> i32 {
        (1 << 15) - self.black * self.luma
    }
}

/// 255/219, and 255/224 times 1.402, -0.344136, -0.714136, 1.772.
const LIMITED_RANGE: Matrix =
    Matrix { black: 16, luma: 76_309, red_v: 104_597, green_u: -25_675, green_v: -53_279, blue_u: 132_201 };

const FULL_RANGE: Matrix =
    Matrix { black: 0, luma: 1 << 16, red_v: 91_881, green_u: -22_554, green_v: -46_802, blue_u: 116_130 };

/// Turns a picture clockwise.
pub(super) fn turned(picture: Picture, quarter_turns: u8) -> Picture {
    if quarter_turns == 0 {
        return picture;
    }
    let Picture { width, height, rgb } = picture;
    let (out_width, out_height) = if quarter_turns.is_multiple_of(2) { (width, height) } else { (height, width) };
    let mut out = Vec::with_capacity(rgb.len());
    for y in 0..out_height {
        for x in 0..out_width {
            let (from_x, from_y) = match quarter_turns {
                1 => (y, height - 1 - x),
                2 => (width - 1 - x, height - 1 - y),
                _ => (width - 1 - y, x),
            };
            let at = (from_y * width + from_x) * 3;
            out.extend_from_slice(&rgb[at..at + 3]);
        }
    }
    Picture { width: out_width, height: out_height, rgb: out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_those_of_bt_601_in_both_ranges() {
        let rgb = |full_range, y: [u8; 4], u: [u8; 2], v: [u8; 2]| {
            let planes = Planes { y: &y, u: &u, v: &v, strides: [4, 2, 2] };
            of_420(4, 1, &planes, full_range).unwrap().rgb
        };
        let grey = |levels: [u8; 4]| levels.map(|level| [level; 3]).concat();
        assert_eq!(rgb(true, [0, 255, 128, 7], [128; 2], [128; 2]), grey([0, 255, 128, 7]));
        assert_eq!(rgb(true, [76; 4], [85; 2], [255; 2]), [254, 0, 0].repeat(4));
        assert_eq!(rgb(false, [16, 235, 0, 255], [128; 2], [128; 2]), grey([0, 255, 0, 255]));
        assert_eq!(rgb(false, [81; 4], [90; 2], [240; 2]), [254, 0, 0].repeat(4));
    }
}
