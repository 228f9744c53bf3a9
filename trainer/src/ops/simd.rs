//! Elementwise and row-wise arithmetic of the fused ops, one pass each.
//!
//! In: host slices, rows of one width. Out: host slices. Never: threads, allocation, an order of summation that depends on
//! the machine: loops are written in 16 columns and compiled for the widest vectors that the processor has, without fused
//! multiply-adds, so that wide and narrow vectors give the same bits.

use super::NORM_EPS;

/// Defines a function whose body is compiled three times and chosen by processor at run time.
macro_rules! vectorised {
    ($($(#[$meta:meta])* pub fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$meta])*
        pub fn $name($($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
                fn widest($($arg: $ty),*) $(-> $out)? { body($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $ty),*) $(-> $out)? { body($($arg),*) }
                if has_widest() {
                    // SAFETY: the processor has the features that the function is compiled for.
                    return unsafe { widest($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has the features that the function is compiled for.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
fn has_widest() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

/// Columns of the sums; part of what a sum means to the last bit.
const COLUMNS: usize = 16;

/// `sum of term(i)` for `i` in `0..n`, in [`COLUMNS`] columns.
#[inline(always)]
fn sum(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut columns = [0.0f32; COLUMNS];
    let whole = n / COLUMNS * COLUMNS;
    let mut at = 0;
    while at < whole {
        for (c, column) in columns.iter_mut().enumerate() {
            *column += term(at + c);
        }
        at += COLUMNS;
    }
    for i in whole..n {
        columns[i - whole] += term(i);
    }
    let mut half = COLUMNS / 2;
    while half > 0 {
        for c in 0..half {
            columns[c] += columns[c + half];
        }
        half /= 2;
    }
    columns[0]
}

/// Greatest of the values; negative infinity of none.
#[inline(always)]
fn greatest(values: &[f32]) -> f32 {
    let mut columns = [f32::NEG_INFINITY; COLUMNS];
    let (whole, rest) = values.as_chunks::<COLUMNS>();
    for chunk in whole {
        for (column, &v) in columns.iter_mut().zip(chunk) {
            *column = if v > *column { v } else { *column };
        }
    }
    let most = |most: f32, &v: &f32| if v > most { v } else { most };
    rest.iter().fold(columns.iter().fold(f32::NEG_INFINITY, most), most)
}

/// `e^x` to about two units in the last place; exactly 0 below -87, at most `e^88`, NaN stays NaN. Without branches, so that
/// it vectorises (Cody and Waite's reduction, the polynomial of Cephes' `expf`).
#[inline(always)]
fn exp(x: f32) -> f32 {
    let c = if x < -87.0 { -87.0 } else { x };
    let c = if c > 88.0 { 88.0 } else { c };
    // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
    let shifted = c * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = c - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let e = p * (r * r) + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits().wrapping_sub(0x4b40_0000).wrapping_add(127)) << 23);
    if x < -87.0 { 0.0 } else { e * scale }
}

/// Which queries and keys of a stretch of scores are no padding; both empty if all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Padding<'a> {
    pub queries: &'a [bool],
    pub keys: &'a [bool],
}

/// Adds -1e10 to the scores of keys that are padding, and to all of a query that is.
#[inline(always)]
fn mask(row: &mut [f32], padding: Padding<'_>, query: usize) {
    let Some(&query_counts) = padding.queries.get(query) else { return };
    for (s, &key_counts) in row.iter_mut().zip(padding.keys) {
        *s += if query_counts && key_counts { 0.0 } else { super::blocks::MASKED };
    }
}

/// `sqrt(2 / pi)` of the tanh form of GELU.
const GELU_SLOPE: f32 = 0.797_884_6;
/// The cubic's coefficient, Hendrycks and Gimpel 2016, arXiv:1606.08415.
const GELU_CUBIC: f32 = 0.044_715;

/// The logistic of `2 u`, where `u` is the argument of GELU's tanh: `(1 + tanh u) / 2` without cancellation.
#[inline(always)]
fn gelu_gate(x: f32) -> f32 {
    let u = GELU_SLOPE * (x + GELU_CUBIC * (x * x * x));
    1.0 / (1.0 + exp(-2.0 * u))
}

vectorised! {
    /// `to[i] = gelu(x[i])`, tanh form.
    pub fn gelu(x: &[f32], to: &mut [f32]) {
        for (t, &x) in to.iter_mut().zip(x) {
            *t = x * gelu_gate(x);
        }
    }

    /// `to[i] = gelu(x[i])`, and `x[i]` becomes `gelu'(x[i])`.
    pub fn gelu_with_slope(x: &mut [f32], to: &mut [f32]) {
        for (t, x) in to.iter_mut().zip(x) {
            let at = *x;
            let gate = gelu_gate(at);
            *t = at * gate;
            let du = GELU_SLOPE * (1.0 + 3.0 * GELU_CUBIC * (at * at));
            *x = gate + at * gate * (1.0 - gate) * 2.0 * du;
        }
    }

    /// `a[i] *= b[i]`.
    pub fn multiply(a: &mut [f32], b: &[f32]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a *= b;
        }
    }

    /// `a[i] += b[i]`.
    pub fn add(a: &mut [f32], b: &[f32]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }

    /// `a[i] += by * b[i]`.
    pub fn add_scaled(a: &mut [f32], b: &[f32], by: f32) {
        for (a, b) in a.iter_mut().zip(b) {
            *a += by * b;
        }
    }

    /// `x[i] *= by`.
    pub fn scale(x: &mut [f32], by: f32) {
        for x in x {
            *x *= by;
        }
    }

    /// Greatest of the values.
    pub fn max(x: &[f32]) -> f32 {
        greatest(x)
    }

    /// `to[i] = exp(x[i] - most)`; returns their sum.
    pub fn exp_minus(x: &[f32], most: f32, to: &mut [f32]) -> f32 {
        for (t, &x) in to.iter_mut().zip(x) {
            *t = exp(x - most);
        }
        sum(to.len(), |i| to[i])
    }

    /// Sum of products.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        let n = a.len().min(b.len());
        let (a, b) = (&a[..n], &b[..n]);
        sum(n, |i| a[i] * b[i])
    }

    /// Adds `bias` to every row of `x`.
    pub fn add_to_rows(x: &mut [f32], bias: &[f32]) {
        for row in x.chunks_exact_mut(bias.len()) {
            for (x, b) in row.iter_mut().zip(bias) {
                *x += b;
            }
        }
    }

    /// Adds every row of `x` to `into`.
    pub fn add_rows_into(into: &mut [f32], x: &[f32]) {
        for row in x.chunks_exact(into.len()) {
            for (a, x) in into.iter_mut().zip(row) {
                *a += x;
            }
        }
    }

    /// LayerNorm of rows as wide as `scale`; `bias` is empty or as wide. `stats` gets mean and 1 / deviation of each row.
    pub fn layer_norm(x: &[f32], scale: &[f32], bias: &[f32], to: &mut [f32], stats: &mut [[f32; 2]]) {
        let d = scale.len();
        let per = 1.0 / d as f32;
        for ((x, to), stat) in x.chunks_exact(d).zip(to.chunks_exact_mut(d)).zip(stats) {
            let mean = sum(d, |i| x[i]) * per;
            let var = sum(d, |i| (x[i] - mean) * (x[i] - mean)) * per;
            let rstd = 1.0 / (var + NORM_EPS).sqrt();
            *stat = [mean, rstd];
            if bias.is_empty() {
                for ((t, &x), &s) in to.iter_mut().zip(x).zip(scale) {
                    *t = (x - mean) * rstd * s;
                }
            } else {
                for (((t, &x), &s), &b) in to.iter_mut().zip(x).zip(scale).zip(bias) {
                    *t = (x - mean) * rstd * s + b;
                }
            }
        }
    }

    /// LayerNorm again, from the statistics of the first time, without bias.
    pub fn layer_norm_again(x: &[f32], scale: &[f32], to: &mut [f32], stats: &[[f32; 2]]) {
        let d = scale.len();
        for ((x, to), &[mean, rstd]) in x.chunks_exact(d).zip(to.chunks_exact_mut(d)).zip(stats) {
            for ((t, &x), &s) in to.iter_mut().zip(x).zip(scale) {
                *t = (x - mean) * rstd * s;
            }
        }
    }

    /// Backward of [`layer_norm`]: `dx +=`, `dscale +=`, and `dbias +=` unless it is empty.
    pub fn layer_norm_backward(
        x: &[f32],
        scale: &[f32],
        stats: &[[f32; 2]],
        dy: &[f32],
        dx: &mut [f32],
        dscale: &mut [f32],
        dbias: &mut [f32],
    ) {
        let d = scale.len();
        let per = 1.0 / d as f32;
        let rows = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(stats);
        for (((x, dy), dx), &[mean, rstd]) in rows {
            let (x, dy, dx, scale) = (&x[..d], &dy[..d], &mut dx[..d], &scale[..d]);
            let mean_g = sum(d, |i| dy[i] * scale[i]) * per;
            let mean_gx = sum(d, |i| dy[i] * scale[i] * ((x[i] - mean) * rstd)) * per;
            for i in 0..d {
                let hat = (x[i] - mean) * rstd;
                dx[i] += rstd * (dy[i] * scale[i] - mean_g - hat * mean_gx);
                dscale[i] += dy[i] * hat;
            }
            for (b, dy) in dbias.iter_mut().zip(dy) {
                *b += dy;
            }
        }
    }

    /// Softmax of each row of scores, in place, a row as long as there are keys. `stats` gets the greatest score and 1 / sum of each row, for [`softmax_rows_again`].
    pub fn softmax_rows(scores: &mut [f32], width: usize, padding: Padding<'_>, stats: &mut [[f32; 2]]) {
        for (query, (row, stat)) in scores.chunks_exact_mut(width).zip(stats).enumerate() {
            mask(row, padding, query);
            let most = greatest(row);
            for s in row.iter_mut() {
                *s = exp(*s - most);
            }
            let per = 1.0 / sum(width, |i| row[i]);
            for s in row.iter_mut() {
                *s *= per;
            }
            *stat = [most, per];
        }
    }

    /// [`softmax_rows`] once more, to the same bits.
    pub fn softmax_rows_again(scores: &mut [f32], width: usize, padding: Padding<'_>, stats: &[[f32; 2]]) {
        for (query, (row, &[most, per])) in scores.chunks_exact_mut(width).zip(stats).enumerate() {
            mask(row, padding, query);
            for s in row.iter_mut() {
                *s = exp(*s - most) * per;
            }
        }
    }

    /// Backward of [`softmax_rows`]: `dp` becomes the gradient of the scores, `p (dp - sum p dp)`.
    pub fn softmax_rows_backward(p: &[f32], dp: &mut [f32], width: usize) {
        for (p, dp) in p.chunks_exact(width).zip(dp.chunks_exact_mut(width)) {
            let inner = sum(width, |i| p[i] * dp[i]);
            for (dp, &p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - inner);
            }
        }
    }

    /// u8 levels to [-1, 1].
    pub fn pixels(levels: &[u8], to: &mut [f32]) {
        for (t, &level) in to.iter_mut().zip(levels) {
            *t = f32::from(level) * (2.0 / 255.0) - 1.0;
        }
    }

    /// One AdamW update of one parameter; see [`crate::optim`].
    pub fn adamw(p: &mut [f32], g: &[f32], mu: &mut [f32], nu: &mut [f32], step: &crate::optim::AdamWStep) {
        let (c1, c2) = step.correction;
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(mu).zip(nu) {
            let g = g * step.grad_scale;
            *m = step.b1 * *m + step.rest.0 * g;
            *v = step.b2 * *v + step.rest.1 * (g * g);
            let move_by = (*m / c1) / ((*v / c2).sqrt() + step.eps) + step.weight_decay * *p;
            *p -= step.lr * move_by;
        }
    }

    /// Sum of squares in f64.
    pub fn sum_of_squares(x: &[f32]) -> f64 {
        let mut columns = [0.0f64; 8];
        let (whole, rest) = x.as_chunks::<8>();
        for chunk in whole {
            for (c, &x) in columns.iter_mut().zip(chunk) {
                *c += f64::from(x) * f64::from(x);
            }
        }
        for (c, &x) in columns.iter_mut().zip(rest) {
            *c += f64::from(x) * f64::from(x);
        }
        columns.iter().sum()
    }
}

/// `[rows, cols]` → `[cols, rows]`, in tiles of as many rows as a cache has ways: rows of a power of two lie in one set of it.
pub fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    const ROWS: usize = 8;
    const COLS: usize = 16;
    let mut to = vec![0.0; x.len()];
    for row in (0..rows).step_by(ROWS) {
        for col in (0..cols).step_by(COLS) {
            for c in col..(col + COLS).min(cols) {
                for r in row..(row + ROWS).min(rows) {
                    to[c * rows + r] = x[r * cols + c];
                }
            }
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_three_units_in_the_last_place_and_keeps_the_ends() {
        let mut worst = 0.0f64;
        for i in -86_000..88_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - want) / want).abs());
        }
        // f32's unit in the last place is at most 1.2e-7 of the value.
        assert!(worst < 3.6e-7, "{worst}");
        assert_eq!(exp(-1e10), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1e4).is_finite());
    }

    #[test]
    fn a_query_that_does_not_count_weighs_all_keys_alike() {
        let mut scores = vec![3.0, -200.0, 7.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0];
        let valid = [false, true, true];
        let (padding, mut stats) = (Padding { queries: &valid, keys: &valid }, [[0.0; 2]; 3]);
        let mut again = scores.clone();
        softmax_rows(&mut scores, 3, padding, &mut stats);
        softmax_rows_again(&mut again, 3, padding, &stats);
        assert_eq!(scores, again);
        assert_eq!(scores[..3], [1.0 / 3.0; 3]);
        assert_eq!(scores[3], 0.0);
    }
}
