//! Pre-LN transformer blocks, several in one crossing.
//!
//! In: tokens, a padding mask, the parameters of the blocks. Out: tokens. Never: a sum that one thread starts and another
//! ends: forward, a thread takes a chunk of examples through all blocks; backward, chunk by chunk through one block, then the gradients of its kernels, a
//! tile of a kernel a thread's.
//!
//! Block: `x += attention(LN(x)); x += gelu(LN(x) Wi) Wo`, the second half absent where experts take its place; LayerNorms have a scale only, products no bias. Attention is
//! `softmax(q k^T / sqrt(head width) + mask) v`, joined heads times `Wo`.
//! Source: Akbari et al. 2023, arXiv:2305.06324, and the authors' release.

mod attend;
mod chunk;

use dfdx::prelude::*;

use super::product::{self, KernelGrad, Mat, Packs, Way};
use super::{Flat, Tokens, host, simd};
use chunk::{Kept, Sizes, Through, Weights};

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
    pub packs: Packs,
}

/// The second half of a block; kernels are (in, out).
#[derive(Debug, Clone)]
pub struct FeedForward<D: Storage<f32>> {
    pub norm: Flat<D>,
    pub wi: Flat<D>,
    pub wo: Flat<D>,
}

/// What a crossing keeps for the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    #[default]
    Everything,
    /// The input of each block: the rest is made again, at the price of one more way forward (Chen et al. 2016, arXiv:1604.06174).
    Inputs,
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

/// The fused form: one crossing for all blocks.
pub(super) fn fused<T: Tape<f32, Cpu>>(
    x: Tokens<Cpu, T>,
    mask: Option<&Mask>,
    layers: &[Block<Cpu>],
    n_heads: usize,
    keep: Keep,
) -> Result<Tokens<Cpu, T>, CpuError> {
    cross(x, mask, layers, n_heads, keep, (chunk::forward, chunk::backward))
}

/// The fused form of one block's attention, without LayerNorm and residual.
pub(super) fn fused_attention<T: Tape<f32, Cpu>>(
    x: Tokens<Cpu, T>,
    mask: Option<&Mask>,
    layer: &Block<Cpu>,
    n_heads: usize,
) -> Result<Tokens<Cpu, T>, CpuError> {
    let passes: Passes = (chunk::attention_forward, chunk::attention_backward);
    cross(x, mask, std::slice::from_ref(layer), n_heads, Keep::Everything, passes)
}

/// Forward and backward of one block and chunk.
type Passes = (fn(&mut [f32], &[bool], &Weights, &Sizes) -> Kept, fn(&mut [f32], Kept, &Weights, &Sizes) -> Through);

/// Takes tokens to the host, through the first of `passes` in chunks, and back onto the tape.
fn cross<T: Tape<f32, Cpu>>(
    x: Tokens<Cpu, T>,
    mask: Option<&Mask>,
    layers: &[Block<Cpu>],
    n_heads: usize,
    keep: Keep,
    (forward, backward): Passes,
) -> Result<Tokens<Cpu, T>, CpuError> {
    let shape @ (n, n_tokens, width) = *x.shape();
    if n == 0 {
        return Ok(x);
    }
    let per_example = n_tokens * width;
    let (x, mut tape) = x.split_tape();
    let dev = x.device().clone();
    let chunks = host::chunk_sizes(n, n_tokens);
    let sizes = Sizes { n_tokens, width, n_heads };
    let weights: Vec<_> = layers.iter().map(|layer| Weights::new(layer, width, Way::Forward)).collect();
    // A mask without padding costs nothing.
    let valid = mask.filter(|m| m.valid.contains(&false)).map(|m| m.valid.clone()).unwrap_or_default();
    let mut y = host::values(&x);
    let jobs = host::split_mut(&mut y, &chunks, per_example).into_iter().zip(split_valid(&valid, &chunks, n_tokens));
    // By chunk, then by block.
    let mut kept = host::run(jobs.collect(), |(x, valid): (&mut [f32], &[bool])| {
        let mut of_chunk = Vec::new();
        for w in &weights {
            let kept = forward(x, valid, w, &sizes);
            match keep {
                _ if !T::OWNS_TAPE => {}
                Keep::Everything => of_chunk.push(kept),
                Keep::Inputs => of_chunk.push(kept.input()),
            }
        }
        of_chunk
    });
    let y = dev.try_tensor_from_vec(y, shape)?;
    if !T::OWNS_TAPE {
        return Ok(y.put_tape(tape));
    }
    let (x_ghost, y_ghost, layers) = (x.ghost(), y.ghost(), layers.to_vec());
    tape.add_backward_op(move |grads| {
        let mut dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        for layer in layers.iter().rev() {
            let mut of_block: Vec<Kept> = kept.iter_mut().map(|of_chunk| of_chunk.pop().unwrap_or_default()).collect();
            if keep == Keep::Inputs {
                let again = of_block.into_iter().map(Kept::into_input).collect();
                let w = Weights::new(layer, width, Way::Forward);
                of_block = host::run(again, |(mut x, valid)| forward(&mut x, &valid, &w, &sizes));
            }
            // The first to ask for a gradient has it filled with zeroes: beside the packing.
            let kernels = kernels_of(layer, width);
            let (sums, w) = host::both(|| take_grads(&kernels, grads), || Weights::new(layer, width, Way::Back));
            let jobs = host::split_mut(&mut dy, &chunks, per_example).into_iter().zip(of_block).collect();
            let through = host::run(jobs, |(dy, kept): (&mut [f32], Kept)| backward(dy, kept, &w, &sizes));
            add_kernel_grads(&kernels, sums?, &through, grads)?;
            add_norm_grads(layer, &through, grads)?;
        }
        simd::add(grads.get_or_alloc_mut(&x_ghost)?, &dy);
        Ok(())
    });
    Ok(y.put_tape(tape))
}

/// What holds values on the CPU.
type CpuVec = <Cpu as Storage<f32>>::Vec;

/// The two sides of a kernel's gradient in one chunk.
type Sides = fn(&Through) -> (&[f32], &[f32]);

/// A kernel, and what its gradient is the product of.
struct Kernel<'a> {
    kernel: &'a Flat<Cpu>,
    sides: Sides,
    n_out: usize,
    /// Where a row of the right side starts, and how far apart rows are.
    at: usize,
    stride: usize,
}

/// All kernels of `block`.
fn kernels_of(block: &Block<Cpu>, width: usize) -> Vec<Kernel<'_>> {
    let d = width;
    let of_qkv: Sides = |t| (&t.h_sa, &t.d_qkv);
    let qkv = [&block.q, &block.k, &block.v].into_iter().enumerate();
    let mut kernels: Vec<_> =
        qkv.map(|(i, kernel)| Kernel { kernel, sides: of_qkv, n_out: d, at: i * d, stride: 3 * d }).collect();
    let mut push = |kernel, n_out, sides: Sides| kernels.push(Kernel { kernel, sides, n_out, at: 0, stride: n_out });
    push(&block.o, d, |t| (&t.joined, &t.dy_sa));
    if let Some(ffn) = &block.ffn {
        push(&ffn.wi, ffn.wi.shape().0 / d, |t| (&t.h_ffn, &t.d_hidden));
        push(&ffn.wo, d, |t| (&t.activated, &t.dy_ffn));
    }
    kernels
}

/// The gradients of `kernels`, taken out, so that all can be written at the same time.
fn take_grads(kernels: &[Kernel<'_>], grads: &mut Gradients<f32, Cpu>) -> Result<Vec<CpuVec>, CpuError> {
    let take = |of: &Kernel<'_>| {
        let empty = of.kernel.device().try_alloc_len(0)?;
        Ok(std::mem::replace(grads.get_or_alloc_mut(of.kernel)?, empty))
    };
    kernels.iter().map(take).collect()
}

/// Adds the gradients of `kernels` to `sums`, and puts those back.
fn add_kernel_grads(
    kernels: &[Kernel<'_>],
    mut sums: Vec<CpuVec>,
    through: &[Through],
    grads: &mut Gradients<f32, Cpu>,
) -> Result<(), CpuError> {
    let jobs = kernels.iter().zip(&mut sums).map(|(&Kernel { sides, n_out, at, stride, .. }, into)| {
        let n_in = into.len() / n_out;
        let parts = through.iter().map(|t| {
            let (left, right) = sides(t);
            let rows = left.len() / n_in;
            (Mat::new(left, rows, n_in), Mat::strided(&right[at..], rows, n_out, stride))
        });
        KernelGrad { into, n_out, parts: parts.collect() }
    });
    product::add_kernel_grads(jobs.collect());
    for (of, sum) in kernels.iter().zip(sums) {
        *grads.get_or_alloc_mut(of.kernel)? = sum;
    }
    Ok(())
}

/// Adds the gradients of the LayerNorms' scales of `block`, chunk by chunk.
fn add_norm_grads(block: &Block<Cpu>, through: &[Through], grads: &mut Gradients<f32, Cpu>) -> Result<(), CpuError> {
    for t in through {
        simd::add(grads.get_or_alloc_mut(&block.norm_sa)?, &t.norm_sa);
        if let Some((q, k)) = &block.qk_norm {
            simd::add(grads.get_or_alloc_mut(q)?, &t.q_norm);
            simd::add(grads.get_or_alloc_mut(k)?, &t.k_norm);
        }
        if let Some(ffn) = &block.ffn {
            simd::add(grads.get_or_alloc_mut(&ffn.norm)?, &t.norm_ffn);
        }
    }
    Ok(())
}

/// Attention weights of one block, `[batch, heads, tokens, tokens]`, as the fused form has them.
#[cfg(test)]
pub(crate) fn attention_weights(x: &Tokens<Cpu>, mask: Option<&Mask>, layer: &Block<Cpu>, n_heads: usize) -> Vec<f32> {
    let (_, n_tokens, width) = *x.shape();
    let sizes = Sizes { n_tokens, width, n_heads };
    let valid = mask.map(|m| m.valid.clone()).unwrap_or_default();
    chunk::attention_weights(&host::values(x), &valid, &Weights::new(layer, width, Way::Forward), &sizes)
}

/// `valid` at the chunks' borders; empty slices if it is empty.
fn split_valid<'a>(valid: &'a [bool], chunks: &[usize], n_tokens: usize) -> Vec<&'a [bool]> {
    if valid.is_empty() { vec![valid; chunks.len()] } else { host::split(valid, chunks, n_tokens) }
}
