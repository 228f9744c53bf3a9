//! One lane's examples through all blocks, and back.
//!
//! In: a lane's tokens, weights on the host. Out: tokens; then gradients of tokens and weights. Never: another thread, the
//! tape.
//!
//! A lane works on chunks of about [`CHUNK_ROWS`] tokens, so that what one block touches stays in the processor's cache.

use dfdx::prelude::{Cpu, CpuError, Gradients};

use super::{Block, attend};
use crate::ops::host::{self, Dst, Mat, MatMut, product};
use crate::ops::simd;

/// Tokens of a chunk, if an example has no more.
const CHUNK_ROWS: usize = 256;

/// Sizes that all blocks of a crossing share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(super) n_tokens: usize,
    pub(super) width: usize,
    pub(super) n_heads: usize,
}

/// One block's parameters on the host. The kernels of q, k and v stand side by side: `[width, 3 * width]`.
pub(crate) struct Weights {
    norm_sa: Vec<f32>,
    qkv: Vec<f32>,
    o: Vec<f32>,
    qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    /// Of the feed-forward, empty where the block has none.
    norm_ffn: Vec<f32>,
    wi: Vec<f32>,
    wo: Vec<f32>,
    n_hidden: usize,
    /// Empty where no gradient is wanted.
    backward: Transposed,
}

/// The kernels transposed: products with a transposed matrix cost a quarter more, every time.
#[derive(Default)]
struct Transposed {
    qkv: Vec<f32>,
    o: Vec<f32>,
    wi: Vec<f32>,
    wo: Vec<f32>,
}

impl Weights {
    pub(super) fn new(block: &Block<Cpu>, width: usize, for_backward: bool) -> Self {
        let mut qkv = vec![0.0; 3 * width * width];
        for (part, kernel) in [&block.q, &block.k, &block.v].into_iter().enumerate() {
            for (row, from) in qkv.chunks_exact_mut(3 * width).zip(host::values(kernel).chunks_exact(width)) {
                row[part * width..(part + 1) * width].copy_from_slice(from);
            }
        }
        let o = host::values(&block.o);
        let ffn = block.ffn.as_ref().map(|ffn| [&ffn.norm, &ffn.wi, &ffn.wo].map(host::values));
        let [norm_ffn, wi, wo] = ffn.unwrap_or_default();
        let n_hidden = wi.len() / width;
        let backward = if for_backward {
            Transposed {
                qkv: simd::transposed(&qkv, width, 3 * width),
                o: simd::transposed(&o, o.len() / width, width),
                wi: simd::transposed(&wi, width, n_hidden),
                wo: simd::transposed(&wo, n_hidden, width),
            }
        } else {
            Transposed::default()
        };
        Self {
            norm_sa: host::values(&block.norm_sa),
            qkv,
            o,
            qk_norm: block.qk_norm.as_ref().map(|(q, k)| (host::values(q), host::values(k))),
            norm_ffn,
            wi,
            wo,
            n_hidden,
            backward,
        }
    }
}

/// Gradients of one block's parameters, laid out as [`Weights`].
pub(crate) struct Grads {
    norm_sa: Vec<f32>,
    qkv: Vec<f32>,
    o: Vec<f32>,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    norm_ffn: Vec<f32>,
    wi: Vec<f32>,
    wo: Vec<f32>,
}

impl Grads {
    fn zeros(w: &Weights, sizes: &Sizes) -> Self {
        let zeros = |like: &[f32]| vec![0.0; like.len()];
        let per_head = if w.qk_norm.is_some() { sizes.width / sizes.n_heads } else { 0 };
        Self {
            norm_sa: zeros(&w.norm_sa),
            qkv: zeros(&w.qkv),
            o: zeros(&w.o),
            q_norm: vec![0.0; per_head],
            k_norm: vec![0.0; per_head],
            norm_ffn: zeros(&w.norm_ffn),
            wi: zeros(&w.wi),
            wo: zeros(&w.wo),
        }
    }

    /// Adds everything to the gradients of `block`.
    pub(super) fn add_to(
        &self,
        block: &Block<Cpu>,
        grads: &mut Gradients<f32, Cpu>,
        sizes: &Sizes,
    ) -> Result<(), CpuError> {
        let d = sizes.width;
        for (part, kernel) in [&block.q, &block.k, &block.v].into_iter().enumerate() {
            let into = grads.get_or_alloc_mut(kernel)?;
            for (into, from) in into.chunks_exact_mut(d).zip(self.qkv.chunks_exact(3 * d)) {
                simd::add(into, &from[part * d..(part + 1) * d]);
            }
        }
        simd::add(grads.get_or_alloc_mut(&block.norm_sa)?, &self.norm_sa);
        simd::add(grads.get_or_alloc_mut(&block.o)?, &self.o);
        if let Some((q, k)) = &block.qk_norm {
            simd::add(grads.get_or_alloc_mut(q)?, &self.q_norm);
            simd::add(grads.get_or_alloc_mut(k)?, &self.k_norm);
        }
        if let Some(ffn) = &block.ffn {
            simd::add(grads.get_or_alloc_mut(&ffn.norm)?, &self.norm_ffn);
            simd::add(grads.get_or_alloc_mut(&ffn.wi)?, &self.wi);
            simd::add(grads.get_or_alloc_mut(&ffn.wo)?, &self.wo);
        }
        Ok(())
    }
}

/// What the backward pass of one block and chunk reads.
#[derive(Default)]
pub(crate) struct Kept {
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

#[derive(Default)]
struct KeptAttention {
    /// As they enter the scores.
    qkv: Vec<f32>,
    /// Queries and keys before their LayerNorm, where there is one, and its statistics.
    before_norm: Vec<f32>,
    stats_qk: Vec<[f32; 2]>,
    probs: Vec<f32>,
    joined: Vec<f32>,
}

/// Values of a chunk of a lane: whole examples.
fn chunk_values(sizes: &Sizes) -> usize {
    (CHUNK_ROWS / sizes.n_tokens).max(1) * sizes.n_tokens * sizes.width
}

fn chunk_valid<'a>(valid: &'a [bool], chunk: usize, sizes: &Sizes) -> &'a [bool] {
    let n = chunk_values(sizes) / sizes.width;
    let end = ((chunk + 1) * n).min(valid.len());
    &valid[(chunk * n).min(end)..end]
}

/// Blocks forward. The order of what is kept: chunk by chunk, in each block by block.
pub(super) fn forward(
    mut x: Vec<f32>,
    valid: &[bool],
    weights: &[Weights],
    sizes: &Sizes,
    keep: bool,
) -> (Vec<f32>, Vec<Kept>) {
    let mut all = Vec::new();
    for (c, x) in x.chunks_mut(chunk_values(sizes)).enumerate() {
        let valid = chunk_valid(valid, c, sizes);
        for w in weights {
            let kept = block_forward(x, valid, w, sizes, keep);
            if keep {
                all.push(kept);
            }
        }
    }
    (x, all)
}

/// Blocks backward; `dy` becomes the gradient of the input.
pub(super) fn backward(
    mut dy: Vec<f32>,
    kept: Vec<Kept>,
    weights: &[Weights],
    sizes: &Sizes,
) -> (Vec<f32>, Vec<Grads>) {
    let mut grads: Vec<Grads> = weights.iter().map(|w| Grads::zeros(w, sizes)).collect();
    let mut kept = kept.into_iter();
    for dy in dy.chunks_mut(chunk_values(sizes)) {
        let of_chunk: Vec<Kept> = kept.by_ref().take(weights.len()).collect();
        for ((kept, w), g) in of_chunk.into_iter().zip(weights).zip(&mut grads).rev() {
            block_backward(dy, kept, w, g, sizes);
        }
    }
    (dy, grads)
}

fn block_forward(x: &mut [f32], valid: &[bool], w: &Weights, sizes: &Sizes, keep: bool) -> Kept {
    let d = sizes.width;
    let rows = x.len() / d;
    let mut kept = Kept { x: if keep { x.to_vec() } else { Vec::new() }, ..Kept::default() };
    let mut h = vec![0.0; x.len()];
    kept.stats_sa = vec![[0.0; 2]; rows];
    simd::layer_norm(x, &w.norm_sa, &[], &mut h, &mut kept.stats_sa);
    kept.attention = attention_core(&h, valid, w, sizes);
    let joined = Mat::new(&kept.attention.joined, rows, d);
    product(MatMut::new(x, rows, d), Dst::Accumulate, 1.0, joined, Mat::new(&w.o, d, d));
    if w.n_hidden == 0 {
        return kept;
    }
    if keep {
        kept.middle = x.to_vec();
    }
    kept.stats_ffn = vec![[0.0; 2]; rows];
    simd::layer_norm(x, &w.norm_ffn, &[], &mut h, &mut kept.stats_ffn);
    let f = w.n_hidden;
    kept.hidden = vec![0.0; rows * f];
    product(MatMut::new(&mut kept.hidden, rows, f), Dst::Overwrite, 1.0, Mat::new(&h, rows, d), Mat::new(&w.wi, d, f));
    let mut activated = vec![0.0; rows * f];
    simd::gelu(&kept.hidden, &mut activated);
    let activated = Mat::new(&activated, rows, f);
    product(MatMut::new(x, rows, d), Dst::Accumulate, 1.0, activated, Mat::new(&w.wo, f, d));
    kept
}

fn block_backward(dy: &mut [f32], mut kept: Kept, w: &Weights, g: &mut Grads, sizes: &Sizes) {
    // Each half adds to `dy` what flows back through it; what goes around it is there already.
    let mut dh = if w.n_hidden > 0 { ffn_backward(dy, &mut kept, w, g, sizes) } else { vec![0.0; dy.len()] };
    // Room that the feed-forward may have left.
    let mut h = kept.middle;
    h.resize(dy.len(), 0.0);
    simd::layer_norm_again(&kept.x, &w.norm_sa, &mut h, &kept.stats_sa);
    attention_core_backward(&h, dy, &kept.attention, &mut dh, w, g, sizes);
    simd::layer_norm_backward(&kept.x, &w.norm_sa, &kept.stats_sa, &dh, dy, &mut g.norm_sa, &mut []);
}

/// Gives back room of the tokens' size.
fn ffn_backward(dy: &mut [f32], kept: &mut Kept, w: &Weights, g: &mut Grads, sizes: &Sizes) -> Vec<f32> {
    let (d, f) = (sizes.width, w.n_hidden);
    let rows = dy.len() / d;
    let mut activated = vec![0.0; rows * f];
    simd::gelu_with_slope(&mut kept.hidden, &mut activated);
    let slope = std::mem::take(&mut kept.hidden);
    let dy_rows = Mat::new(dy, rows, d);
    product(MatMut::new(&mut g.wo, f, d), Dst::Accumulate, 1.0, Mat::new(&activated, rows, f).t(), dy_rows);
    let mut d_hidden = activated;
    product(MatMut::new(&mut d_hidden, rows, f), Dst::Overwrite, 1.0, dy_rows, Mat::new(&w.backward.wo, d, f));
    simd::multiply(&mut d_hidden, &slope);
    let mut h = vec![0.0; dy.len()];
    simd::layer_norm_again(&kept.middle, &w.norm_ffn, &mut h, &kept.stats_ffn);
    let d_hidden = Mat::new(&d_hidden, rows, f);
    product(MatMut::new(&mut g.wi, d, f), Dst::Accumulate, 1.0, Mat::new(&h, rows, d).t(), d_hidden);
    let mut dh = h;
    product(MatMut::new(&mut dh, rows, d), Dst::Overwrite, 1.0, d_hidden, Mat::new(&w.backward.wi, f, d));
    simd::layer_norm_backward(&kept.middle, &w.norm_ffn, &kept.stats_ffn, &dh, dy, &mut g.norm_ffn, &mut []);
    dh
}

/// Everything of attention before the product with `o`.
fn attention_core(h: &[f32], valid: &[bool], w: &Weights, sizes: &Sizes) -> KeptAttention {
    let Sizes { n_tokens: n, width: d, n_heads } = *sizes;
    let rows = h.len() / d;
    let n_examples = rows / n;
    let mut kept = KeptAttention { qkv: vec![0.0; rows * 3 * d], ..KeptAttention::default() };
    let kernel = Mat::new(&w.qkv, d, 3 * d);
    product(MatMut::new(&mut kept.qkv, rows, 3 * d), Dst::Overwrite, 1.0, Mat::new(h, rows, d), kernel);
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
    kept.probs = vec![0.0; n_examples * n_heads * n * n];
    kept.joined = vec![0.0; rows * d];
    for e in 0..n_examples {
        attend::forward(
            &kept.qkv[e * n * 3 * d..(e + 1) * n * 3 * d],
            if valid.is_empty() { &[] } else { &valid[e * n..(e + 1) * n] },
            &mut kept.probs[e * n_heads * n * n..(e + 1) * n_heads * n * n],
            &mut kept.joined[e * n * d..(e + 1) * n * d],
            sizes,
        );
    }
    kept
}

/// From `dy`, the gradient after `o`, to `dh`, which is overwritten; the kernels' gradients are added to `g`.
fn attention_core_backward(
    h: &[f32],
    dy: &[f32],
    kept: &KeptAttention,
    dh: &mut [f32],
    w: &Weights,
    g: &mut Grads,
    sizes: &Sizes,
) {
    let Sizes { n_tokens: n, width: d, n_heads } = *sizes;
    let rows = h.len() / d;
    let dy = Mat::new(dy, rows, d);
    product(MatMut::new(&mut g.o, d, d), Dst::Accumulate, 1.0, Mat::new(&kept.joined, rows, d).t(), dy);
    let mut d_joined = vec![0.0; rows * d];
    product(MatMut::new(&mut d_joined, rows, d), Dst::Overwrite, 1.0, dy, Mat::new(&w.backward.o, d, d));
    let mut d_qkv = vec![0.0; rows * 3 * d];
    let mut scratch = vec![0.0; n * n];
    for e in 0..rows / n {
        attend::backward(
            &kept.qkv[e * n * 3 * d..(e + 1) * n * 3 * d],
            &kept.probs[e * n_heads * n * n..(e + 1) * n_heads * n * n],
            &d_joined[e * n * d..(e + 1) * n * d],
            &mut d_qkv[e * n * 3 * d..(e + 1) * n * 3 * d],
            &mut scratch,
            sizes,
        );
    }
    if let Some((q_scale, k_scale)) = &w.qk_norm {
        let raw = kept.before_norm.chunks_exact(3 * d).zip(kept.stats_qk.chunks_exact(2 * n_heads));
        let mut through = vec![0.0; 2 * d];
        for (d_row, (from, stats)) in d_qkv.chunks_exact_mut(3 * d).zip(raw) {
            let (q_stats, k_stats) = stats.split_at(n_heads);
            through.fill(0.0);
            let (dq, dk) = through.split_at_mut(d);
            simd::layer_norm_backward(&from[..d], q_scale, q_stats, &d_row[..d], dq, &mut g.q_norm, &mut []);
            simd::layer_norm_backward(&from[d..2 * d], k_scale, k_stats, &d_row[d..2 * d], dk, &mut g.k_norm, &mut []);
            d_row[..2 * d].copy_from_slice(&through);
        }
    }
    let d_qkv = Mat::new(&d_qkv, rows, 3 * d);
    product(MatMut::new(&mut g.qkv, d, 3 * d), Dst::Accumulate, 1.0, Mat::new(h, rows, d).t(), d_qkv);
    product(MatMut::new(dh, rows, d), Dst::Overwrite, 1.0, d_qkv, Mat::new(&w.backward.qkv, 3 * d, d));
}

/// Attention of the first block alone, without LayerNorm and residual.
pub(super) fn attention_forward(
    x: Vec<f32>,
    valid: &[bool],
    weights: &[Weights],
    sizes: &Sizes,
    _keep: bool,
) -> (Vec<f32>, Vec<Kept>) {
    let (w, d) = (&weights[0], sizes.width);
    let rows = x.len() / d;
    let attention = attention_core(&x, valid, w, sizes);
    let mut y = vec![0.0; x.len()];
    let joined = Mat::new(&attention.joined, rows, d);
    product(MatMut::new(&mut y, rows, d), Dst::Overwrite, 1.0, joined, Mat::new(&w.o, d, d));
    (y, vec![Kept { x, attention, ..Kept::default() }])
}

/// Backward of [`attention_forward`].
pub(super) fn attention_backward(
    dy: Vec<f32>,
    kept: Vec<Kept>,
    weights: &[Weights],
    sizes: &Sizes,
) -> (Vec<f32>, Vec<Grads>) {
    let mut grads = vec![Grads::zeros(&weights[0], sizes)];
    let mut dx = vec![0.0; dy.len()];
    for kept in &kept {
        attention_core_backward(&kept.x, &dy, &kept.attention, &mut dx, &weights[0], &mut grads[0], sizes);
    }
    (dx, grads)
}

#[cfg(test)]
pub(super) fn attention_weights(x: &[f32], valid: &[bool], w: &Weights, sizes: &Sizes) -> Vec<f32> {
    attention_core(x, valid, w, sizes).probs
}
