//! Pre-LN transformer blocks, several in one crossing.
//!
//! In: tokens, a padding mask, the parameters of the blocks. Out: tokens. Never: a sum that one thread starts and another
//! ends: a lane takes its examples through all blocks and back.
//!
//! Block: `x += attention(LN(x)); x += gelu(LN(x) Wi) Wo`, the second half absent where experts take its place; LayerNorms have a scale only, products no bias. Attention is
//! `softmax(q k^T / sqrt(head width) + mask) v`, joined heads times `Wo`.
//! Source: Akbari et al. 2023, arXiv:2305.06324, and the authors' release.

mod attend;
mod lane;

use dfdx::prelude::*;

use super::{Flat, Tokens, host, simd};
pub(super) use lane::{Grads, Weights};
use lane::{Kept, Sizes};

/// Added to the score of a pair of which one token is padding. It swallows the score in f32, so that a padded query weighs
/// all keys alike; the release's value.
pub const MASKED: f32 = -1e10;

/// Which tokens are not padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// `[batch, tokens]`
    pub valid: Vec<bool>,
    /// Tokens of an example.
    pub n_tokens: usize,
}

/// Parameters of one block; kernels are (in, out).
#[derive(Debug, Clone)]
pub struct Block<D: Storage<f32>> {
    pub norm_sa: Flat<D>,
    pub q: Flat<D>,
    pub k: Flat<D>,
    pub v: Flat<D>,
    pub o: Flat<D>,
    /// LayerNorm of queries and of keys over a head's width, one scale for all heads.
    pub qk_norm: Option<(Flat<D>, Flat<D>)>,
    /// `None` where experts follow, in an op of their own: they see tokens of the whole call.
    pub ffn: Option<FeedForward<D>>,
}

/// The second half of a block; kernels are (in, out).
#[derive(Debug, Clone)]
pub struct FeedForward<D: Storage<f32>> {
    pub norm: Flat<D>,
    pub wi: Flat<D>,
    pub wo: Flat<D>,
}

/// The stock composition.
pub fn stock<D: Device<f32>, T: Tape<f32, D>>(
    mut x: Tokens<D, T>,
    mask: Option<&Mask>,
    layers: &[Block<D>],
    n_heads: usize,
) -> Result<Tokens<D, T>, D::Err> {
    let shape @ (n, t, d) = *x.shape();
    let norm = |x: Tokens<D, T>, scale: &Flat<D>| {
        let norm = super::Norm { scale: scale.clone(), bias: None };
        super::layer_norm::stock(x.try_reshape_like(&(n * t, d))?, &norm)
    };
    for layer in layers {
        let h = norm(x.with_empty_tape(), &layer.norm_sa)?.try_reshape_like(&shape)?;
        x = x.try_add(stock_attention(h, mask, layer, n_heads)?)?;
        let Some(ffn) = &layer.ffn else { continue };
        let h = norm(x.with_empty_tape(), &ffn.norm)?;
        let n_hidden = ffn.wi.shape().0 / d;
        let g = h.try_matmul(ffn.wi.retaped::<T>().try_reshape_like(&(d, n_hidden))?)?.try_fast_gelu()?;
        let y = g.try_matmul(ffn.wo.retaped::<T>().try_reshape_like(&(n_hidden, d))?)?;
        x = x.try_add(y.try_reshape_like(&shape)?)?;
    }
    Ok(x)
}

/// The stock composition of one block's attention, without LayerNorm and residual.
pub fn stock_attention<D: Device<f32>, T: Tape<f32, D>>(
    x: Tokens<D, T>,
    mask: Option<&Mask>,
    layer: &Block<D>,
    n_heads: usize,
) -> Result<Tokens<D, T>, D::Err> {
    let (n, t, d) = *x.shape();
    let width = d / n_heads;
    let rows = x.try_reshape_like(&(n * t, d))?;
    let heads = |kernel: &Flat<D>, scale: Option<&Flat<D>>| {
        let kernel = kernel.retaped::<T>().try_reshape_like(&(d, d))?;
        let mut y = rows.with_empty_tape().try_matmul(kernel)?;
        if let Some(scale) = scale {
            let norm = super::Norm { scale: scale.clone(), bias: None };
            y = super::layer_norm::stock(y.try_reshape_like(&(n * t * n_heads, width))?, &norm)?
                .try_reshape_like(&(n * t, d))?;
        }
        y.try_reshape_like(&(n, t, n_heads, width))?.try_permute::<_, Axes4<0, 2, 1, 3>>()
    };
    let q = heads(&layer.q, layer.qk_norm.as_ref().map(|s| &s.0))?;
    let k = heads(&layer.k, layer.qk_norm.as_ref().map(|s| &s.1))?.try_permute::<_, Axes4<0, 1, 3, 2>>()?;
    let v = heads(&layer.v, None)?;
    let mut scores = q.try_matmul(k)?.try_mul(1.0 / (width as f32).sqrt())?;
    if let Some(mask) = mask {
        let pairs = scores.device().try_tensor_from_vec(added(mask), (n, t, t))?;
        scores = scores.try_add(pairs.retaped::<T>().try_broadcast_like::<_, Axis<1>>(&(n, n_heads, t, t))?)?;
    }
    let y = scores.try_softmax::<Axis<3>>()?.try_matmul(v)?;
    let y = y.try_permute::<_, Axes4<0, 2, 1, 3>>()?.try_reshape_like(&(n * t, d))?;
    let (x, y_tape) = y.split_tape();
    let (_, x_tape) = rows.split_tape();
    let y = x.put_tape(x_tape.merge(y_tape));
    y.try_matmul(layer.o.retaped::<T>().try_reshape_like(&(d, d))?)?.try_reshape_like(&(n, t, d))
}

/// What a mask adds to the scores, `[batch, queries, keys]`.
fn added(mask: &Mask) -> Vec<f32> {
    let examples = mask.valid.chunks_exact(mask.n_tokens);
    examples
        .flat_map(|valid| {
            valid.iter().flat_map(move |&q| valid.iter().map(move |&k| if q && k { 0.0 } else { MASKED }))
        })
        .collect()
}

/// The fused form: one crossing for all blocks, examples in lanes.
pub(super) fn fused<T: Tape<f32, Cpu>>(
    x: Tokens<Cpu, T>,
    mask: Option<&Mask>,
    layers: &[Block<Cpu>],
    n_heads: usize,
) -> Result<Tokens<Cpu, T>, CpuError> {
    cross(x, mask, layers, n_heads, lane::forward, lane::backward)
}

/// The fused form of one block's attention, without LayerNorm and residual.
pub(super) fn fused_attention<T: Tape<f32, Cpu>>(
    x: Tokens<Cpu, T>,
    mask: Option<&Mask>,
    layer: &Block<Cpu>,
    n_heads: usize,
) -> Result<Tokens<Cpu, T>, CpuError> {
    cross(x, mask, std::slice::from_ref(layer), n_heads, lane::attention_forward, lane::attention_backward)
}

type Forward = fn(Vec<f32>, &[bool], &[Weights], &Sizes, bool) -> (Vec<f32>, Vec<Kept>);
type Backward = fn(Vec<f32>, Vec<Kept>, &[Weights], &Sizes) -> (Vec<f32>, Vec<Grads>);

/// Takes tokens to the host, through `forward` in lanes, and back onto the tape.
fn cross<T: Tape<f32, Cpu>>(
    x: Tokens<Cpu, T>,
    mask: Option<&Mask>,
    layers: &[Block<Cpu>],
    n_heads: usize,
    forward: Forward,
    backward: Backward,
) -> Result<Tokens<Cpu, T>, CpuError> {
    let shape @ (n, n_tokens, width) = *x.shape();
    let per_example = n_tokens * width;
    let (x, mut tape) = x.split_tape();
    let dev = x.device().clone();
    let lanes = host::lane_sizes(n);
    let sizes = Sizes { n_tokens, width, n_heads };
    let weights: Vec<Weights> = layers.iter().map(|l| Weights::new(l, width, T::OWNS_TAPE)).collect();
    // A mask without padding costs nothing.
    let valid = mask.filter(|m| m.valid.contains(&false)).map(|m| m.valid.clone()).unwrap_or_default();
    let valid_lanes = split_valid(&valid, &lanes, n_tokens);
    let values = host::values(&x);
    let jobs = host::split(&values, &lanes, per_example).into_iter().zip(valid_lanes).collect();
    let done = host::run_lanes(jobs, |(x, valid): (&[f32], &[bool])| {
        forward(x.to_vec(), valid, &weights, &sizes, T::OWNS_TAPE)
    });
    drop(values);
    let mut y = Vec::with_capacity(n * per_example);
    let mut kept = Vec::with_capacity(lanes.len());
    for (part, of_lane) in done {
        y.extend_from_slice(&part);
        kept.push(of_lane);
    }
    let y = dev.try_tensor_from_vec(y, shape)?;
    if !T::OWNS_TAPE {
        return Ok(y.put_tape(tape));
    }
    let (x_ghost, y_ghost, layers) = (x.ghost(), y.ghost(), layers.to_vec());
    tape.add_backward_op(move |grads| {
        let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        let jobs = host::split(&dy, &lanes, per_example).into_iter().zip(kept).collect();
        let done =
            host::run_lanes(jobs, |(dy, kept): (&[f32], Vec<Kept>)| backward(dy.to_vec(), kept, &weights, &sizes));
        let dx = grads.get_or_alloc_mut(&x_ghost)?;
        let parts = host::split_mut(dx, &lanes, per_example);
        for (dx, (part, _)) in parts.into_iter().zip(&done) {
            simd::add(dx, part);
        }
        for (i, layer) in layers.iter().enumerate() {
            for (_, of_lane) in &done {
                of_lane[i].add_to(layer, grads, &sizes)?;
            }
        }
        Ok(())
    });
    Ok(y.put_tape(tape))
}

/// Attention weights of one block, `[batch, heads, tokens, tokens]`, as the fused form has them.
#[cfg(test)]
pub(crate) fn attention_weights(x: &Tokens<Cpu>, mask: Option<&Mask>, layer: &Block<Cpu>, n_heads: usize) -> Vec<f32> {
    let (_, n_tokens, width) = *x.shape();
    let sizes = Sizes { n_tokens, width, n_heads };
    let valid = mask.map(|m| m.valid.clone()).unwrap_or_default();
    lane::attention_weights(&host::values(x), &valid, &Weights::new(layer, width, false), &sizes)
}

fn split_valid<'a>(valid: &'a [bool], lanes: &[usize], n_tokens: usize) -> Vec<&'a [bool]> {
    let mut rest = valid;
    let take = |n: &usize| {
        let (part, after) = rest.split_at((n * n_tokens).min(rest.len()));
        rest = after;
        part
    };
    lanes.iter().map(take).collect()
}
