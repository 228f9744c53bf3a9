//! Sixteen rows of an output side by side: the loops of the resizer, over bytes and 16-bit numbers that follow each other.
//!
//! In: values of a plane, weights. Out: values times 256, then bytes. Never: a result that depends on the processor: every sum is one of
//! whole numbers. Functions are compiled for the vectors that a processor has.

use imp_schemas::media::Matrix;

/// Rows that go together.
pub const ROWS: usize = 16;
/// Rows are whole multiples of so many values while they are summed and turned: a rest is done one by one.
pub const WHOLE: usize = 32;

/// Defines a function that is compiled for AVX2 too, and chosen by processor at run time.
macro_rules! vectorised {
    ($($(#[$meta:meta])* pub fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        pub fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn body($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $ty),*) { body($($arg),*) }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has what the function is compiled for.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}

/// Times a weight of 16 bits, in the scale of `value`.
#[inline(always)]
fn share(value: u16, weight: u16) -> u16 {
    ((u32::from(value) * u32::from(weight)) >> 16) as u16
}

/// What a sum of `n` shares begins with: half of what cutting them off takes away.
#[inline(always)]
fn begin(n: usize) -> u16 {
    (n / 2).min(200) as u16
}

vectorised! {
    /// Red, green and blue of values that stand for the same places; of each, as many bytes.
    pub fn rgb(colours: &Colours, y: &[u16], cb: &[u16], cr: &[u16], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
        let part = |value: i16, factor: i16| ((i32::from(value) * i32::from(factor)) >> 16) as i16;
        let level = |value: i16| (value.saturating_add(32) >> 6).clamp(0, 255) as u8;
        let Colours { black, luma: slope, red: of_red, green: of_green, blue: of_blue } = *colours;
        let n = y.len();
        let (cb, cr) = (&cb[..n], &cr[..n]);
        let (red, green, blue) = (&mut red[..n], &mut green[..n], &mut blue[..n]);
        for i in 0..n {
            let luma = ((y[i] >> 2) as i16).wrapping_sub(black);
            let luma = luma.wrapping_add(part(luma, slope));
            let (u, v) = ((cb[i] ^ 0x8000) as i16, (cr[i] ^ 0x8000) as i16);
            red[i] = level(luma.saturating_add((v >> 2).wrapping_add(part(v, of_red))));
            green[i] = level(luma.saturating_add(part(u, of_green[0]).wrapping_add(part(v, of_green[1]))));
            blue[i] = level(luma.saturating_add((u >> 2).wrapping_add(part(u, of_blue))));
        }
    }

    /// [`ROWS`] rows of `rows`, each `stride` long, to columns, as many as whole eights of them are asked for.
    pub fn rows_to_columns(rows: &[u16], stride: usize, columns: &mut [[u16; ROWS]]) {
        const SIDE: usize = 8;
        let blocks = columns.as_chunks_mut::<SIDE>().0;
        for half in [0, SIDE] {
            let mut parts = [&[][..]; SIDE];
            for (r, part) in parts.iter_mut().enumerate() {
                *part = &rows[(half + r) * stride..].as_chunks::<SIDE>().0[..blocks.len()];
            }
            for (i, block) in blocks.iter_mut().enumerate() {
                let mut values = [[0; SIDE]; SIDE];
                for r in 0..SIDE {
                    values[r] = parts[r][i];
                }
                let turned = turn_8(values);
                for c in 0..SIDE {
                    block[c][half..half + SIDE].copy_from_slice(&turned[c]);
                }
            }
        }
    }

    /// Rows of pixels, three bytes each and as many as `out` has, of the columns of each colour.
    pub fn write_rows(red: &[[u8; ROWS]], green: &[[u8; ROWS]], blue: &[[u8; ROWS]], out: &mut [u8]) {
        let row_len = red.len() * 3;
        let mut columns = [[0; ROWS]; 3 * ROWS];
        for (at, pixels) in red.chunks(ROWS).zip(green.chunks(ROWS)).zip(blue.chunks(ROWS)).enumerate() {
            let ((red, green), blue) = pixels;
            let n = red.len();
            for ((column, (red, green)), blue) in columns.as_chunks_mut::<3>().0.iter_mut().zip(red.iter().zip(green)).zip(blue) {
                *column = [*red, *green, *blue];
            }
            for (third, columns) in columns.as_chunks::<ROWS>().0.iter().enumerate() {
                let first = third * ROWS;
                let n_bytes = (3 * n).saturating_sub(first).min(ROWS);
                if n_bytes == 0 {
                    break;
                }
                let begin = at * 3 * ROWS + first;
                for (row, values) in out.chunks_exact_mut(row_len).zip(turn_16(*columns)) {
                    match row[begin..].first_chunk_mut::<ROWS>() {
                        Some(to) if n_bytes == ROWS => *to = values,
                        _ => row[begin..begin + n_bytes].copy_from_slice(&values[..n_bytes]),
                    }
                }
            }
        }
    }
}

/// Rows of `values`, `stride` apart, summed by `weights` into `out`, times 256.
pub fn sum_rows(values: &[u8], stride: usize, weights: &[u16], out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        let n_done = unsafe { sum_rows_avx2(values, stride, weights, out) };
        return sum_rows_any(values, stride, weights, out, n_done);
    }
    sum_rows_any(values, stride, weights, out, 0);
}

/// The same from value `first` on.
fn sum_rows_any(values: &[u8], stride: usize, weights: &[u16], out: &mut [u16], first: usize) {
    let out = &mut out[first..];
    out.fill(begin(weights.len()));
    for (k, &weight) in weights.iter().enumerate() {
        for (sum, &value) in out.iter_mut().zip(&values[k * stride + first..]) {
            *sum = sum.wrapping_add(share(u16::from(value) << 8, weight));
        }
    }
}

/// The same of as many whole [`WHOLE`]s as `out` has; says how many values these are. Written out, as [`sum_columns_avx2`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_rows_avx2(values: &[u8], stride: usize, weights: &[u16], out: &mut [u16]) -> usize {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm256_add_epi16, _mm256_cvtepu8_epi16, _mm256_mulhi_epu16, _mm256_set1_epi16,
        _mm256_slli_epi16,
    };
    let first = _mm256_set1_epi16(begin(weights.len()) as i16);
    let out = out.as_chunks_mut::<WHOLE>().0;
    for (at, out) in out.iter_mut().enumerate() {
        let mut sums = [first; 2];
        for (k, &weight) in weights.iter().enumerate() {
            let weight = _mm256_set1_epi16(weight as i16);
            let Some(values) = values[k * stride + at * WHOLE..].first_chunk::<WHOLE>() else { return at * WHOLE };
            // SAFETY: both are 32 bytes.
            let values: [__m128i; 2] = unsafe { std::mem::transmute(*values) };
            for half in 0..2 {
                let wide = _mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(values[half]));
                sums[half] = _mm256_add_epi16(sums[half], _mm256_mulhi_epu16(wide, weight));
            }
        }
        // SAFETY: both are 32 numbers of 16 bits.
        *out = unsafe { std::mem::transmute::<[__m256i; 2], [u16; WHOLE]>(sums) };
    }
    out.len() * WHOLE
}

/// Of each column of `out` the sum of as many of `columns` as there are weights for it, from the one that `firsts` says.
pub fn sum_columns(columns: &[[u16; ROWS]], firsts: &[usize], weights: &[u16], out: &mut [[u16; ROWS]]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { sum_columns_avx2(columns, firsts, weights, out) };
    }
    sum_columns_any(columns, firsts, weights, out);
}

fn sum_columns_any(columns: &[[u16; ROWS]], firsts: &[usize], weights: &[u16], out: &mut [[u16; ROWS]]) {
    let n = weights.len() / firsts.len();
    for ((out, &first), weights) in out.iter_mut().zip(firsts).zip(weights.chunks_exact(n)) {
        *out = [begin(n); ROWS];
        for (column, &weight) in columns[first..][..n].iter().zip(weights) {
            for (sum, &value) in out.iter_mut().zip(column) {
                *sum = sum.wrapping_add(share(value, weight));
            }
        }
    }
}

/// The same, written out: of its own accord the compiler does not keep a sum of sixteen in one register.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_columns_avx2(columns: &[[u16; ROWS]], firsts: &[usize], weights: &[u16], out: &mut [[u16; ROWS]]) {
    use std::arch::x86_64::{__m256i, _mm256_add_epi16, _mm256_mulhi_epu16, _mm256_set1_epi16};
    let n = weights.len() / firsts.len();
    for ((out, &first), weights) in out.iter_mut().zip(firsts).zip(weights.chunks_exact(n)) {
        let mut sum = _mm256_set1_epi16(begin(n) as i16);
        for (column, &weight) in columns[first..][..n].iter().zip(weights) {
            // SAFETY: both are sixteen numbers of 16 bits.
            let column: __m256i = unsafe { std::mem::transmute(*column) };
            sum = _mm256_add_epi16(sum, _mm256_mulhi_epu16(column, _mm256_set1_epi16(weight as i16)));
        }
        // SAFETY: as above.
        *out = unsafe { std::mem::transmute::<__m256i, [u16; ROWS]>(sum) };
    }
}

/// A colour matrix in the scale of the sums.
#[derive(Debug, Clone, Copy)]
pub struct Colours {
    black: i16,
    luma: i16,
    red: i16,
    green: [i16; 2],
    blue: i16,
}

impl Colours {
    pub fn of(matrix: &Matrix) -> Self {
        // A quarter of 2^16 is what chroma, 8 bits below the point, becomes in luma's 6; what is above one comes on top of it.
        let quarter = |factor: i32| (factor / 4) as i16;
        Self {
            black: (matrix.black << 6) as i16,
            luma: (matrix.luma - (1 << 16)) as i16,
            red: quarter(matrix.red_v - (1 << 16)),
            green: [quarter(matrix.green_u), quarter(matrix.green_v)],
            blue: quarter(matrix.blue_u - (1 << 16)),
        }
    }
}

/// Columns of 16 bytes to rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn turn_16(columns: [[u8; ROWS]; ROWS]) -> [[u8; ROWS]; ROWS] {
    use std::arch::x86_64::{__m128i, _mm_unpackhi_epi8, _mm_unpacklo_epi8};
    // SAFETY: both are sixteen times sixteen bytes, and SSE2 belongs to the architecture.
    unsafe {
        let mut rows: [__m128i; ROWS] = std::mem::transmute(columns);
        // Each time the first half and the second are shuffled like cards: four times, and places are exchanged.
        for _ in 0..4 {
            let before = rows;
            for i in 0..ROWS / 2 {
                rows[2 * i] = _mm_unpacklo_epi8(before[i], before[i + ROWS / 2]);
                rows[2 * i + 1] = _mm_unpackhi_epi8(before[i], before[i + ROWS / 2]);
            }
        }
        std::mem::transmute(rows)
    }
}

/// Columns of 16 bytes to rows.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn turn_16(columns: [[u8; ROWS]; ROWS]) -> [[u8; ROWS]; ROWS] {
    std::array::from_fn(|r| std::array::from_fn(|c| columns[c][r]))
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn turn_8(rows: [[u16; 8]; 8]) -> [[u16; 8]; 8] {
    use std::arch::x86_64::{__m128i, _mm_unpackhi_epi16, _mm_unpacklo_epi16};
    // SAFETY: both are eight times eight numbers of 16 bits, and SSE2 belongs to the architecture.
    unsafe {
        let mut rows: [__m128i; 8] = std::mem::transmute(rows);
        for _ in 0..3 {
            let before = rows;
            for i in 0..4 {
                rows[2 * i] = _mm_unpacklo_epi16(before[i], before[i + 4]);
                rows[2 * i + 1] = _mm_unpackhi_epi16(before[i], before[i + 4]);
            }
        }
        std::mem::transmute(rows)
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn turn_8(rows: [[u16; 8]; 8]) -> [[u16; 8]; 8] {
    std::array::from_fn(|r| std::array::from_fn(|c| rows[c][r]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn turning_exchanges_rows_and_columns() {
        let columns: [[u8; ROWS]; ROWS] = std::array::from_fn(|c| std::array::from_fn(|r| (16 * c + r) as u8));
        let rows = turn_16(columns);
        assert!((0..ROWS).all(|r| (0..ROWS).all(|c| rows[r][c] == columns[c][r])));
        let (n, stride) = (24, 29);
        let rows: Vec<u16> = (0..ROWS * stride).map(|i| i as u16 * 7).collect();
        let mut columns = vec![[0; ROWS]; n];
        rows_to_columns(&rows, stride, &mut columns);
        assert!((0..n).all(|c| (0..ROWS).all(|r| columns[c][r] == rows[r * stride + c])));
    }

    #[test]
    fn sums_are_those_of_the_weights_to_a_fraction_of_a_level() {
        let weights = [9_000_u16, 20_000, 3_535, 17_000, 10_000, 6_000];
        let values: Vec<u8> = (0..6 * 37).map(|i| (i * 89 % 256) as u8).collect();
        let mut sums = vec![0; 33];
        sum_rows(&values, 37, &weights, &mut sums);
        for (x, &sum) in sums.iter().enumerate() {
            let exact: f64 =
                weights.iter().enumerate().map(|(k, &w)| f64::from(values[k * 37 + x]) * f64::from(w)).sum();
            assert!((f64::from(sum) / 256.0 - exact / 65_535.0).abs() < 0.02, "{x}");
        }
        let columns: Vec<[u16; ROWS]> =
            (0..6).map(|k| std::array::from_fn(|r| (k as u16 * 8_191 + r as u16 * 977) % 65_280)).collect();
        let mut sums = [[0; ROWS]];
        sum_columns(&columns, &[0], &weights, &mut sums);
        for (r, &sum) in sums[0].iter().enumerate() {
            let exact: f64 =
                weights.iter().zip(&columns).map(|(&w, c)| f64::from(w) * f64::from(c[r]) / 65_535.0).sum();
            assert!((f64::from(sum) - exact).abs() < 5.0, "{r}");
        }
    }

    proptest! {
        #[test]
        fn every_processor_comes_to_the_same_sums(
            weights in proptest::collection::vec(any::<u16>(), 1..40),
            (width, padding, seed) in (1..100_usize, 0..9_usize, any::<u64>()),
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as u16
            };
            let (n, stride) = (weights.len(), width + padding);
            let values: Vec<u8> = (0..n * stride).map(|_| next() as u8).collect();
            let (mut quick, mut plain) = (vec![1; width], vec![2; width]);
            sum_rows(&values, stride, &weights, &mut quick);
            sum_rows_any(&values, stride, &weights, &mut plain, 0);
            prop_assert_eq!(quick, plain);
            let columns: Vec<[u16; ROWS]> = (0..n + width).map(|_| std::array::from_fn(|_| next())).collect();
            let firsts: Vec<usize> = (0..width).collect();
            let (mut quick, mut plain) = (vec![[1; ROWS]; width], vec![[2; ROWS]; width]);
            let weights = weights.repeat(width);
            sum_columns(&columns, &firsts, &weights, &mut quick);
            sum_columns_any(&columns, &firsts, &weights, &mut plain);
            prop_assert_eq!(quick, plain);
        }
    }
}
