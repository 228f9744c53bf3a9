//! One chunk of examples through one block, and back.
//!
//! In: a chunk's tokens, weights on the host. Out: tokens; then the gradient of tokens, and both sides of the products that the kernels'
//! gradients are. Never: another thread, the tape, a kernel's gradient: those are sums over all chunks.

use std::sync::Arc;

use dfdx::prelude::{Cpu, HasShape};

use super::{Block, attend};
use crate::ops::product::{Dst, Mat, MatMut, Packed, Way, packed_product, packed_product_of};
use crate::ops::{host, simd};

/// Sizes that all blocks of a crossing share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) n_tokens: usize,
    pub(super) width: usize,
    pub(super) n_heads: usize,
}

/// One block's parameters on the host.
pub(super) struct Weights {
    norm_sa: Vec<f32>,
    qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// Of the feed-forward, empty where the block has none.
    norm_ffn: Vec<f32>,
    /// Queries, keys, values, output, and both of the feed-forward; transposed on the way back.
    kernels: Arc<Vec<Packed>>,
    n_hidden: usize,
}

impl Weights {
    pub(super) fn new(block: &Block<Cpu>, width: usize, way: Way) -> Self {
        Self {
            norm_sa: host::values(&block.norm_sa),
            qk_norm: block.qk_norm.as_ref().map(|(q, k)| (host::values(q), host::values(k))),
            norm_ffn: block.ffn.as_ref().map(|ffn| host::values(&ffn.norm)).unwrap_or_default(),
            kernels: block.packs.get(way, || packed(block, width, way)),
            n_hidden: block.ffn.as_ref().map_or(0, |ffn| ffn.wi.shape().0 / width),
        }
    }

    fn qkv(&self) -> &[Packed] {
        &self.kernels[..3]
    }

    fn o(&self) -> &Packed {
        &self.kernels[3]
    }

    fn wi(&self) -> &Packed {
        &self.kernels[4]
    }

    fn wo(&self) -> &Packed {
        &self.kernels[5]
    }
}

/// Packs the block's kernels, (in, out).
fn packed(block: &Block<Cpu>, width: usize, way: Way) -> Vec<Packed> {
    let mut kernels = vec![(&block.q, width), (&block.k, width), (&block.v, width), (&block.o, width)];
    if let Some(ffn) = &block.ffn {
        kernels.extend([(&ffn.wi, width), (&ffn.wo, ffn.wo.shape().0 / width)]);
    }
    host::run(kernels, |(kernel, n_in)| {
        let values = host::view(kernel);
        Packed::new(way.turn(Mat::new(values, n_in, values.len() / n_in)))
    })
}

/// What the backward pass of one block and chunk reads.
#[derive(Default)]
pub(super) struct Kept {
    /// Input of the block.
    x: Vec<f32>,
    stats_sa: Vec<[f32; 2]>,
    attention: KeptAttention,
    /// Between attention and feed-forward.
    middle: Vec<f32>,
    stats_ffn: Vec<[f32; 2]>,
    /// What GELU was applied to.
    hidden: Vec<f32>,
}

impl Kept {
    /// The input alone, and what is padding in it.
    pub(super) fn input(self) -> Self {
        let attention = KeptAttention { valid: self.attention.valid, ..KeptAttention::default() };
        Self { x: self.x, attention, ..Self::default() }
    }

    /// What [`forward`] was called with.
    pub(super) fn into_input(self) -> (Vec<f32>, Vec<bool>) {
        (self.x, self.attention.valid)
    }
}

#[derive(Default)]
struct KeptAttention {
    /// As they enter the scores, `[rows, 3 * width]`.
    qkv: Vec<f32>,
    /// Queries, keys and values before LayerNorm of queries and keys, where there is one, and its statistics.
    before_norm: Vec<f32>,
    stats_qk: Vec<[f32; 2]>,
    /// Of the softmax, `[examples, heads, tokens]`.
    stats: Vec<[f32; 2]>,
    joined: Vec<f32>,
    /// Empty if nothing is padding.
    valid: Vec<bool>,
}

/// What the gradients of a block's parameters are made of, for one chunk. A kernel's gradient is `left^T right`; what is there is named
/// after the side that it is.
#[derive(Default)]
pub(super) struct Through {
    /// `[rows, width]`, LayerNorm's output before attention.
    pub(super) h_sa: Vec<f32>,
    /// `[rows, 3 * width]`
    pub(super) d_qkv: Vec<f32>,
    /// `[rows, width]`
    pub(super) joined: Vec<f32>,
    /// `[rows, width]`, gradient behind `o`.
    pub(super) dy_sa: Vec<f32>,
    /// `[rows, width]`, LayerNorm's output before the feed-forward.
    pub(super) h_ffn: Vec<f32>,
    /// `[rows, hidden]`
    pub(super) d_hidden: Vec<f32>,
    /// `[rows, hidden]`, GELU's output.
    pub(super) activated: Vec<f32>,
    /// `[rows, width]`, gradient behind `wo`.
    pub(super) dy_ffn: Vec<f32>,
    /// Gradients of the LayerNorms' scales.
    pub(super) norm_sa: Vec<f32>,
    pub(super) q_norm: Vec<f32>,
    pub(super) k_norm: Vec<f32>,
    pub(super) norm_ffn: Vec<f32>,
}

/// The block; `x` becomes its output. `valid` is empty if nothing is padding.
pub(super) fn forward(x: &mut [f32], valid: &[bool], w: &Weights, sizes: &Sizes) -> Kept {
    let d = sizes.width;
    let rows = x.len() / d;
    let mut kept = Kept { x: x.to_vec(), stats_sa: vec![[0.0; 2]; rows], ..Kept::default() };
    let mut h = vec![0.0; x.len()];
    simd::layer_norm(x, &w.norm_sa, &[], &mut h, &mut kept.stats_sa);
    kept.attention = attention_core(&h, valid, w, sizes);
    let joined = Mat::new(&kept.attention.joined, rows, d);
    packed_product(MatMut::new(x, rows, d), Dst::Accumulate, joined, w.o());
    if w.n_hidden == 0 {
        return kept;
    }
    kept.middle = x.to_vec();
    kept.stats_ffn = vec![[0.0; 2]; rows];
    simd::layer_norm(x, &w.norm_ffn, &[], &mut h, &mut kept.stats_ffn);
    let f = w.n_hidden;
    kept.hidden = packed_product_of(Mat::new(&h, rows, d), w.wi());
    let mut activated = vec![0.0; rows * f];
    simd::gelu(&kept.hidden, &mut activated);
    let activated = Mat::new(&activated, rows, f);
    packed_product(MatMut::new(x, rows, d), Dst::Accumulate, activated, w.wo());
    kept
}

/// Backward of [`forward`], with weights for the way back: `dy` becomes the gradient of the input. Each half adds to it what flows back through it; what goes around is
/// there already.
pub(super) fn backward(dy: &mut [f32], mut kept: Kept, w: &Weights, sizes: &Sizes) -> Through {
    let mut through = Through::default();
    if w.n_hidden > 0 {
        ffn_backward(dy, &mut kept, w, &mut through, sizes);
    }
    let mut h = vec![0.0; dy.len()];
    simd::layer_norm_again(&kept.x, &w.norm_sa, &mut h, &kept.stats_sa);
    let dh = attention_core_backward(dy, kept.attention, w, &mut through, sizes);
    through.norm_sa = vec![0.0; sizes.width];
    simd::layer_norm_backward(&kept.x, &w.norm_sa, &kept.stats_sa, &dh, dy, &mut through.norm_sa, &mut []);
    through.h_sa = h;
    through
}

fn ffn_backward(dy: &mut [f32], kept: &mut Kept, w: &Weights, through: &mut Through, sizes: &Sizes) {
    let (d, f) = (sizes.width, w.n_hidden);
    let rows = dy.len() / d;
    through.activated = vec![0.0; rows * f];
    simd::gelu_with_slope(&mut kept.hidden, &mut through.activated);
    through.d_hidden = packed_product_of(Mat::new(dy, rows, d), w.wo());
    simd::multiply(&mut through.d_hidden, &kept.hidden);
    through.h_ffn = vec![0.0; dy.len()];
    simd::layer_norm_again(&kept.middle, &w.norm_ffn, &mut through.h_ffn, &kept.stats_ffn);
    let dh = packed_product_of(Mat::new(&through.d_hidden, rows, f), w.wi());
    through.dy_ffn = dy.to_vec();
    through.norm_ffn = vec![0.0; d];
    simd::layer_norm_backward(&kept.middle, &w.norm_ffn, &kept.stats_ffn, &dh, dy, &mut through.norm_ffn, &mut []);
}

/// Everything of attention before the product with `o`.
fn attention_core(h: &[f32], valid: &[bool], w: &Weights, sizes: &Sizes) -> KeptAttention {
    let Sizes { n_tokens: n, width: d, n_heads } = *sizes;
    let rows = h.len() / d;
    let mut kept = KeptAttention { qkv: vec![0.0; rows * 3 * d], valid: valid.to_vec(), ..KeptAttention::default() };
    for (part, kernel) in w.qkv().iter().enumerate() {
        let to = MatMut::strided(&mut kept.qkv[part * d..], rows, d, 3 * d);
        packed_product(to, Dst::Overwrite, Mat::new(h, rows, d), kernel);
    }
    if let Some((q_scale, k_scale)) = &w.qk_norm {
        kept.before_norm = kept.qkv.clone();
        kept.stats_qk = vec![[0.0; 2]; rows * 2 * n_heads];
        let raw = kept.before_norm.chunks_exact(3 * d).zip(kept.stats_qk.chunks_exact_mut(2 * n_heads));
        for (to, (from, stats)) in kept.qkv.chunks_exact_mut(3 * d).zip(raw) {
            let (q_stats, k_stats) = stats.split_at_mut(n_heads);
            simd::layer_norm(&from[..d], q_scale, &[], &mut to[..d], q_stats);
            simd::layer_norm(&from[d..2 * d], k_scale, &[], &mut to[d..2 * d], k_stats);
        }
    }
    kept.stats = vec![[0.0; 2]; rows * n_heads];
    kept.joined = vec![0.0; rows * d];
    let mut room = vec![0.0; attend::room(sizes)];
    let examples = kept.qkv.chunks_exact(n * 3 * d).zip(kept.joined.chunks_exact_mut(n * d));
    for (e, ((qkv, joined), stats)) in examples.zip(kept.stats.chunks_exact_mut(n * n_heads)).enumerate() {
        attend::forward(qkv, of_example(valid, e, n), stats, joined, &mut room, sizes);
    }
    kept
}

/// Which tokens of example `e` are not padding; empty if all.
fn of_example(valid: &[bool], e: usize, n_tokens: usize) -> &[bool] {
    if valid.is_empty() { &[] } else { &valid[e * n_tokens..(e + 1) * n_tokens] }
}

/// From `dy`, the gradient behind `o`, to that of LayerNorm's output.
fn attention_core_backward(
    dy: &[f32],
    kept: KeptAttention,
    w: &Weights,
    through: &mut Through,
    sizes: &Sizes,
) -> Vec<f32> {
    let Sizes { n_tokens: n, width: d, n_heads } = *sizes;
    let rows = dy.len() / d;
    through.dy_sa = dy.to_vec();
    let d_joined = packed_product_of(Mat::new(dy, rows, d), w.o());
    let mut d_qkv = vec![0.0; rows * 3 * d];
    let mut room = vec![0.0; attend::room(sizes)];
    let examples = kept.qkv.chunks_exact(n * 3 * d).zip(d_qkv.chunks_exact_mut(n * 3 * d));
    let examples = examples.zip(kept.stats.chunks_exact(n * n_heads)).zip(d_joined.chunks_exact(n * d));
    for (e, (((qkv, d_qkv), stats), d_joined)) in examples.enumerate() {
        attend::backward(qkv, of_example(&kept.valid, e, n), stats, d_joined, d_qkv, &mut room, sizes);
    }
    through.joined = kept.joined;
    if let Some((q_scale, k_scale)) = &w.qk_norm {
        (through.q_norm, through.k_norm) = (vec![0.0; d / n_heads], vec![0.0; d / n_heads]);
        let raw = kept.before_norm.chunks_exact(3 * d).zip(kept.stats_qk.chunks_exact(2 * n_heads));
        let mut before = vec![0.0; 2 * d];
        for (d_row, (from, stats)) in d_qkv.chunks_exact_mut(3 * d).zip(raw) {
            let (q_stats, k_stats) = stats.split_at(n_heads);
            before.fill(0.0);
            let (dq, dk) = before.split_at_mut(d);
            simd::layer_norm_backward(&from[..d], q_scale, q_stats, &d_row[..d], dq, &mut through.q_norm, &mut []);
            let (from, d_k) = (&from[d..2 * d], &d_row[d..2 * d]);
            simd::layer_norm_backward(from, k_scale, k_stats, d_k, dk, &mut through.k_norm, &mut []);
            d_row[..2 * d].copy_from_slice(&before);
        }
    }
    let mut dh = vec![0.0; rows * d];
    for (part, kernel) in w.qkv().iter().enumerate() {
        let dst = if part == 0 { Dst::Overwrite } else { Dst::Accumulate };
        let d_part = Mat::strided(&d_qkv[part * d..], rows, d, 3 * d);
        packed_product(MatMut::new(&mut dh, rows, d), dst, d_part, kernel);
    }
    through.d_qkv = d_qkv;
    dh
}

/// Attention alone, without LayerNorm and residual; `x` becomes its output.
pub(super) fn attention_forward(x: &mut [f32], valid: &[bool], w: &Weights, sizes: &Sizes) -> Kept {
    let d = sizes.width;
    let rows = x.len() / d;
    let kept = Kept { x: x.to_vec(), attention: attention_core(x, valid, w, sizes), ..Kept::default() };
    let joined = Mat::new(&kept.attention.joined, rows, d);
    packed_product(MatMut::new(x, rows, d), Dst::Overwrite, joined, w.o());
    kept
}

/// Backward of [`attention_forward`], with weights for the way back.
pub(super) fn attention_backward(dy: &mut [f32], kept: Kept, w: &Weights, sizes: &Sizes) -> Through {
    let mut through = Through::default();
    let dx = attention_core_backward(dy, kept.attention, w, &mut through, sizes);
    dy.copy_from_slice(&dx);
    through.h_sa = kept.x;
    through
}

#[cfg(test)]
pub(super) fn attention_weights(x: &[f32], valid: &[bool], w: &Weights, sizes: &Sizes) -> Vec<f32> {
    let Sizes { n_tokens: n, width: d, .. } = *sizes;
    let kept = attention_core(x, valid, w, sizes);
    let examples = kept.qkv.chunks_exact(n * 3 * d).enumerate();
    examples.flat_map(|(e, qkv)| attend::weights(qkv, of_example(valid, e, n), sizes)).collect()
}
