//! The core of attention for one example: scores, softmax, weighted sum, head by head.
//!
//! In: one example's queries, keys and values `[tokens, 3 * width]`. Out: joined heads `[tokens, width]`, the weights. Never:
//! a parameter.

use super::lane::Sizes;
use crate::ops::host::{Dst, Mat, MatMut, product};
use crate::ops::simd;

/// `probs` gets `[heads, tokens, tokens]`, `joined` `[tokens, width]`.
pub(super) fn forward(qkv: &[f32], valid: &[bool], probs: &mut [f32], joined: &mut [f32], sizes: &Sizes) {
    let Sizes { n_tokens: n, width: d, n_heads } = *sizes;
    let per_head = d / n_heads;
    let scale = 1.0 / (per_head as f32).sqrt();
    for (head, p) in probs.chunks_exact_mut(n * n).enumerate() {
        let [q, k, v] = [0, 1, 2].map(|part| Mat::strided(&qkv[part * d + head * per_head..], n, per_head, 3 * d));
        product(MatMut::new(p, n, n), Dst::Overwrite, scale, q, k.t());
        simd::softmax_rows(p, n, valid);
        let to = MatMut::strided(&mut joined[head * per_head..], n, per_head, d);
        product(to, Dst::Overwrite, 1.0, Mat::new(p, n, n), v);
    }
}

/// `d_qkv` gets `[tokens, 3 * width]`; `scratch` holds `[tokens, tokens]`.
pub(super) fn backward(
    qkv: &[f32],
    probs: &[f32],
    d_joined: &[f32],
    d_qkv: &mut [f32],
    scratch: &mut [f32],
    sizes: &Sizes,
) {
    let Sizes { n_tokens: n, width: d, n_heads } = *sizes;
    let per_head = d / n_heads;
    let scale = 1.0 / (per_head as f32).sqrt();
    for (head, p) in probs.chunks_exact(n * n).enumerate() {
        let [q, k, v] = [0, 1, 2].map(|part| Mat::strided(&qkv[part * d + head * per_head..], n, per_head, 3 * d));
        let dy = Mat::strided(&d_joined[head * per_head..], n, per_head, d);
        let at = |part: usize| part * d + head * per_head;
        let p_mat = Mat::new(p, n, n);
        product(MatMut::strided(&mut d_qkv[at(2)..], n, per_head, 3 * d), Dst::Overwrite, 1.0, p_mat.t(), dy);
        product(MatMut::new(scratch, n, n), Dst::Overwrite, 1.0, dy, v.t());
        simd::softmax_rows_backward(p, scratch, n);
        let ds = Mat::new(scratch, n, n);
        product(MatMut::strided(&mut d_qkv[at(0)..], n, per_head, 3 * d), Dst::Overwrite, scale, ds, k);
        product(MatMut::strided(&mut d_qkv[at(1)..], n, per_head, 3 * d), Dst::Overwrite, scale, ds.t(), q);
    }
}
