//! Columns that lie densely → rows of a panel.
//!
//! In: a right side whose columns are dense, as those of a transposed kernel. Out: the lines of its rows. Never: a number changed.

use super::Mat;
use super::tile::{LINES, Line};

/// Numbers of a line: columns that are turned together. So few are read along their length that the processor foresees them.
const COLUMNS: usize = 16;
/// Rows and columns of the square that is turned in registers.
const SIDE: usize = 8;

/// Writes the rows of `b` to `to`; what is missing of a line stays as it was.
///
/// # Panics
/// The columns are not dense, or the sizes disagree.
pub(super) fn columns(b: Mat<'_>, to: &mut [[Line; LINES]]) {
    assert!(b.row_stride == 1 && b.rows == to.len() && b.cols <= COLUMNS * LINES, "a panel and its columns disagree");
    for (line, start) in (0..b.cols).step_by(COLUMNS).enumerate() {
        let columns = b.columns(start..(start + COLUMNS).min(b.cols));
        let mut n_done = 0;
        #[cfg(target_arch = "x86_64")]
        if columns.cols == COLUMNS && b.rows >= SIDE && is_x86_feature_detected!("avx2") {
            n_done = b.rows / SIDE * SIDE;
            // Checked once for all: the last number of the last column.
            assert!((COLUMNS - 1) * columns.col_stride + n_done <= columns.data.len(), "columns of a matrix leave it");
            // SAFETY: the processor has AVX2; all rows of all columns are there, and as many lines.
            unsafe { by_squares(columns, &mut to[..n_done], line) };
        }
        for (row, to) in to.iter_mut().enumerate().skip(n_done) {
            for col in 0..columns.cols {
                to[line].0[col] = columns.data[col * columns.col_stride + row];
            }
        }
    }
}

/// # Safety
/// The processor has AVX2; `b` has [`COLUMNS`] dense columns, as long as `to`, whose length is a multiple of [`SIDE`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn by_squares(b: Mat<'_>, to: &mut [[Line; LINES]], line: usize) {
    for (i, rows) in to.chunks_exact_mut(SIDE).enumerate() {
        for half in 0..COLUMNS / SIDE {
            let from = b.data.as_ptr().wrapping_add(half * SIDE * b.col_stride + i * SIDE);
            let at = rows.as_mut_ptr().cast::<f32>().wrapping_add(line * COLUMNS + half * SIDE);
            // SAFETY: the caller's: eight columns of eight numbers each, and eight rows that have them.
            unsafe { square(from, b.col_stride, at, LINES * COLUMNS) };
        }
    }
}

/// Eight columns `from_stride` apart → eight rows `to_stride` apart.
///
/// # Safety
/// The processor has AVX2; eight numbers lie at each column, and may be written at each row.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn square(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::{_mm256_maskload_ps, _mm256_maskstore_ps, _mm256_set1_epi32};
    use std::arch::x86_64::{
        _mm256_permute2f128_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };
    const LOW: i32 = 0b01_00_01_00;
    const HIGH: i32 = 0b11_10_11_10;
    let all = _mm256_set1_epi32(-1);
    let mut columns = [_mm256_setzero_ps(); SIDE];
    for (i, column) in columns.iter_mut().enumerate() {
        // Masked with all lanes set, as in the loops of a product.
        // SAFETY: the caller's.
        *column = unsafe { _mm256_maskload_ps(from.wrapping_add(i.wrapping_mul(from_stride)), all) };
    }
    // Pairs, then fours, then eights: each register holds two rows of four, and in the end one of eight.
    let [a, b, c, d, e, f, g, h] = columns;
    let (ab, cd, ef, gh) =
        (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d), _mm256_unpacklo_ps(e, f), _mm256_unpacklo_ps(g, h));
    let (ab_, cd_, ef_, gh_) =
        (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d), _mm256_unpackhi_ps(e, f), _mm256_unpackhi_ps(g, h));
    let fours = [
        (_mm256_shuffle_ps::<LOW>(ab, cd), _mm256_shuffle_ps::<LOW>(ef, gh)),
        (_mm256_shuffle_ps::<HIGH>(ab, cd), _mm256_shuffle_ps::<HIGH>(ef, gh)),
        (_mm256_shuffle_ps::<LOW>(ab_, cd_), _mm256_shuffle_ps::<LOW>(ef_, gh_)),
        (_mm256_shuffle_ps::<HIGH>(ab_, cd_), _mm256_shuffle_ps::<HIGH>(ef_, gh_)),
    ];
    for (i, (left, right)) in fours.into_iter().enumerate() {
        let rows = [_mm256_permute2f128_ps::<0x20>(left, right), _mm256_permute2f128_ps::<0x31>(left, right)];
        for (row, i) in rows.into_iter().zip([i, i + 4]) {
            // SAFETY: the caller's.
            unsafe { _mm256_maskstore_ps(to.wrapping_add(i.wrapping_mul(to_stride)), all, row) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_those_of_the_columns_whatever_is_missing() {
        for (rows, cols, stride) in
            [(1, 1, 1), (8, 16, 8), (24, 64, 24), (37, 64, 40), (37, 48, 37), (9, 63, 9), (7, 33, 50)]
        {
            let data: Vec<f32> = (0..(cols - 1) * stride + rows).map(|i| i as f32).collect();
            let mut to = vec![[Line([-1.0; 16]); LINES]; rows];
            columns(Mat::strided(&data, cols, rows, stride).t(), &mut to);
            for (row, lines) in to.iter().enumerate() {
                for (col, &found) in lines.iter().flat_map(|line| &line.0).enumerate() {
                    let wanted = if col < cols { (col * stride + row) as f32 } else { -1.0 };
                    assert_eq!(found, wanted, "{rows} x {cols}, row {row}, column {col}");
                }
            }
        }
    }
}
