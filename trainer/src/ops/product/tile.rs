//! The innermost loops of a product: a tile of the destination stays in registers while the whole depth goes by.
//!
//! In: left sides of any strides, right sides whose rows are dense. Out: columns of a matrix. Never: a thread; an order of summation that depends on the processor:
//! each number is summed along the depth in its order, by fused multiply-adds, so that wide and narrow vectors give the same bits.

use super::{Dst, Mat, MatMut};

/// Columns of a panel.
pub(super) const PANEL: usize = 64;
/// Rows of a tile. With a panel's 64 columns they are 24 registers of AVX-512, which leaves four for the panel's row and one for a
/// number of the left side: enough sums under way to hide the latency of a multiply-add.
const ROWS: usize = 6;

/// A cache line of a panel; a vector that crosses two would take twice as long to load.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [f32; 16]);

/// Lines of a panel's row.
pub(super) const LINES: usize = PANEL / 16;

/// A left side, `[rows, depth]`, and the columns that it meets, `[depth, cols]`.
pub(super) type Stretch<'a> = (Mat<'a>, Mat<'a>);

/// The panel that lies in `lines`, with all its columns.
pub(super) fn panel(lines: &[Line]) -> Mat<'_> {
    // SAFETY: lines are numbers and nothing between them.
    let values = unsafe { std::slice::from_raw_parts(lines.as_ptr().cast::<f32>(), lines.len() * 16) };
    Mat::new(values, lines.len() / LINES, PANEL)
}

/// Instructions that the loops are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the processor is: by `gemm`.
    Any,
}

impl Isa {
    /// The widest that this processor has.
    pub fn widest() -> Self {
        Self::all().next().unwrap_or(Self::Any)
    }

    /// All that this processor has, the widest first.
    pub fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let found = [
            is_x86_feature_detected!("avx512f").then_some(Self::Avx512),
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self::Avx2),
            Some(Self::Any),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let found = [Some(Self::Any)];
        found.into_iter().flatten()
    }
}

/// Columns of a right side that are read at a time, at most: it has to have a multiple of as many, or be a [`panel`].
pub(super) const STEP: usize = 16;

/// `scale` times the sum over `stretches` of their products, to `to`. Columns that a right side has beyond those of `to` are read and count for nothing.
///
/// # Panics
/// The sizes disagree.
pub(super) fn multiply(isa: Isa, mut to: MatMut<'_>, dst: Dst, scale: f32, stretches: &[Stretch<'_>]) {
    for (a, b) in stretches {
        let whole = b.cols >= to.cols.next_multiple_of(STEP) && b.col_stride == 1;
        assert!(a.rows == to.rows && a.cols == b.rows && whole, "the sizes of a product disagree");
    }
    match isa {
        // SAFETY: `Isa::all` gives what the processor has, and nothing else makes one; sizes were checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512(&mut to, dst, scale, stretches) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(&mut to, dst, scale, stretches) },
        Isa::Any => {
            for (i, (a, b)) in stretches.iter().enumerate() {
                let dst = if i == 0 { dst } else { Dst::Accumulate };
                let b = b.columns(0..to.cols);
                super::by_gemm(to.reborrow(), dst, scale, *a, b);
            }
        }
    }
}

/// A vector register.
#[cfg(target_arch = "x86_64")]
trait Lanes: Copy {
    const N: usize;
    /// # Safety
    /// The processor has the register; so with all below.
    unsafe fn zero() -> Self;
    /// # Safety
    /// `N` numbers lie at `from`.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `N` numbers may be written at `to`.
    unsafe fn store(self, to: *mut f32);
    /// # Safety
    /// A number lies at `from`.
    unsafe fn broadcast(from: *const f32) -> Self;
    /// `self * by + to`, rounded once.
    ///
    /// # Safety
    /// The processor has the register.
    unsafe fn multiply_add(self, by: Self, to: Self) -> Self;
}

/// [`Lanes`] by the processor's own operations. Loads and stores are the masked ones with all lanes set, which compile to plain ones: those of
/// the library look for null pointers where debug assertions are on, and the sums would leave their registers for it.
#[cfg(target_arch = "x86_64")]
macro_rules! lanes {
    ($register:ident, $n:literal, $zero:ident, $load:expr, $store:expr, $broadcast:ident, $multiply_add:ident) => {
        impl Lanes for $register {
            const N: usize = $n;
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the trait's contract.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: the trait's contract.
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: the trait's contract.
                unsafe { $store(to, self) }
            }
            #[inline(always)]
            unsafe fn broadcast(from: *const f32) -> Self {
                // SAFETY: the trait's contract.
                unsafe { $broadcast(_mm_load_ss(from)) }
            }
            #[inline(always)]
            unsafe fn multiply_add(self, by: Self, to: Self) -> Self {
                // SAFETY: the trait's contract.
                unsafe { $multiply_add(self, by, to) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _mm_load_ss, _mm256_broadcastss_ps, _mm256_fmadd_ps, _mm256_maskload_ps, _mm256_maskstore_ps,
    _mm256_set1_epi32, _mm256_setzero_ps, _mm512_broadcastss_ps, _mm512_fmadd_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_setzero_ps,
};
#[cfg(target_arch = "x86_64")]
lanes!(
    __m512,
    16,
    _mm512_setzero_ps,
    |from| _mm512_maskz_loadu_ps(!0, from),
    |to, register| _mm512_mask_storeu_ps(to, !0, register),
    _mm512_broadcastss_ps,
    _mm512_fmadd_ps
);
#[cfg(target_arch = "x86_64")]
lanes!(
    __m256,
    8,
    _mm256_setzero_ps,
    |from| _mm256_maskload_ps(from, _mm256_set1_epi32(-1)),
    |to, register| _mm256_maskstore_ps(to, _mm256_set1_epi32(-1), register),
    _mm256_broadcastss_ps,
    _mm256_fmadd_ps
);

/// # Safety
/// The processor has AVX-512F, and sizes are as [`multiply`] checks them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(to: &mut MatMut<'_>, dst: Dst, scale: f32, stretches: &[Stretch<'_>]) {
    let mut col = 0;
    while col < to.cols {
        // SAFETY: the caller's.
        col += unsafe {
            match to.cols - col {
                33.. => column_of_tiles::<__m512, 4>(to, col, dst, scale, stretches),
                17.. => column_of_tiles::<__m512, 2>(to, col, dst, scale, stretches),
                _ => column_of_tiles::<__m512, 1>(to, col, dst, scale, stretches),
            }
        };
    }
}

/// # Safety
/// The processor has AVX2 and FMA, and sizes are as [`multiply`] checks them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(to: &mut MatMut<'_>, dst: Dst, scale: f32, stretches: &[Stretch<'_>]) {
    let mut col = 0;
    while col < to.cols {
        // SAFETY: the caller's.
        col += unsafe { column_of_tiles::<__m256, 2>(to, col, dst, scale, stretches) };
    }
}

/// All rows of the columns of `V` registers from `col` on, in tiles of [`ROWS`] rows; how many columns that was.
///
/// # Safety
/// The processor has the registers, and sizes are as [`multiply`] checks them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn column_of_tiles<L: Lanes, const V: usize>(
    to: &mut MatMut<'_>,
    col: usize,
    dst: Dst,
    scale: f32,
    stretches: &[Stretch<'_>],
) -> usize {
    let width = V * L::N;
    let cols = width.min(to.cols - col);
    for row in (0..to.rows).step_by(ROWS) {
        let rows = ROWS.min(to.rows - row);
        let at = to.data.wrapping_add(row * to.row_stride + col);
        if cols == width {
            // SAFETY: the tile lies inside the destination, its rows and columns inside the stretches.
            unsafe { some_rows::<L, V>(rows, at, to.row_stride, dst, scale, (row, col), stretches) };
            continue;
        }
        // Past the last column lies what is not ours: the tile is made elsewhere.
        let mut room = [0.0f32; ROWS * 64];
        let each = || (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c)));
        if dst == Dst::Accumulate {
            // SAFETY: rows and columns of the destination.
            each().for_each(|(r, c)| room[r * width + c] = unsafe { *at.wrapping_add(r * to.row_stride + c) });
        }
        // SAFETY: there is room for a tile, and a right side has all its columns.
        unsafe { some_rows::<L, V>(rows, room.as_mut_ptr(), width, dst, scale, (row, col), stretches) };
        // SAFETY: rows and columns of the destination.
        each().for_each(|(r, c)| unsafe { *at.wrapping_add(r * to.row_stride + c) = room[r * width + c] });
    }
    cols
}

/// # Safety
/// As [`tile`], of `rows` rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn some_rows<L: Lanes, const V: usize>(
    rows: usize,
    to: *mut f32,
    stride: usize,
    dst: Dst,
    scale: f32,
    at: (usize, usize),
    stretches: &[Stretch<'_>],
) {
    // SAFETY: the caller's.
    unsafe {
        match rows {
            1 => tile::<L, V, 1>(to, stride, dst, scale, at, stretches),
            2 => tile::<L, V, 2>(to, stride, dst, scale, at, stretches),
            3 => tile::<L, V, 3>(to, stride, dst, scale, at, stretches),
            4 => tile::<L, V, 4>(to, stride, dst, scale, at, stretches),
            5 => tile::<L, V, 5>(to, stride, dst, scale, at, stretches),
            _ => tile::<L, V, ROWS>(to, stride, dst, scale, at, stretches),
        }
    }
}

/// `R` rows and `V` registers' columns, from `row` and `col` of the product.
///
/// # Safety
/// The processor has the registers; at `to` lie `R` rows `stride` apart; the stretches have the rows and the columns.
#[cfg(target_arch = "x86_64")]
#[expect(
    clippy::needless_range_loop,
    reason = "sums stay in registers only where the compiler unrolls every loop over them"
)]
#[inline(always)]
unsafe fn tile<L: Lanes, const V: usize, const R: usize>(
    to: *mut f32,
    stride: usize,
    dst: Dst,
    scale: f32,
    (row, col): (usize, usize),
    stretches: &[Stretch<'_>],
) {
    // SAFETY: of addresses the caller's; arithmetic wraps, so that a build with debug assertions does not check each of them.
    unsafe {
        let mut sums = [[L::zero(); V]; R];
        for (a, b) in stretches {
            let mut left = a.data.as_ptr().wrapping_add(row * a.row_stride);
            let mut right = b.data.as_ptr().wrapping_add(col);
            let (row_stride, left_stride, right_stride) = (a.row_stride, a.col_stride, b.row_stride);
            for _ in 0..a.cols {
                let mut columns = [L::zero(); V];
                for v in 0..V {
                    columns[v] = L::load(right.wrapping_add(v * L::N));
                }
                for r in 0..R {
                    let number = L::broadcast(left.wrapping_add(r.wrapping_mul(row_stride)));
                    for v in 0..V {
                        sums[r][v] = number.multiply_add(columns[v], sums[r][v]);
                    }
                }
                left = left.wrapping_add(left_stride);
                right = right.wrapping_add(right_stride);
            }
        }
        let scale = L::broadcast(&scale);
        for r in 0..R {
            for v in 0..V {
                let at = to.wrapping_add(r.wrapping_mul(stride).wrapping_add(v * L::N));
                let before = if dst == Dst::Accumulate { L::load(at) } else { L::zero() };
                scale.multiply_add(sums[r][v], before).store(at);
            }
        }
    }
}
