//! The encoder in bf16: products on tensor cores, the residual stream and all sums in f32, one crossing for all layers.
//!
//! In: tokens, the parameters of all layers. Out: tokens, the routers' losses. Never: a matrix of tokens by tokens; an atomic sum.
//!
//! A layer is two halves, attention and what stands behind it. A half begins with a LayerNorm, which first adds what the half before it
//! has to add: `x += y; h = LN(x)` is one pass over the row.

use std::sync::Arc;

use dfdx::prelude::*;

use super::buffer::Buf;
use super::context::{Context, Grads, address, args, gradient};
use super::experts::{self, KeptExperts, Plan};
use super::gemm::{Epilogue, Operand, Product};
use super::linear::add_partials;
use super::mirror::values_of;
use crate::ops::encoder::{Encoded, Encoder, Layer};
use crate::ops::{Flat, NORM_EPS, Norm, Tokens};

/// Sizes of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Examples.
    pub n: usize,
    pub n_tokens: usize,
    pub width: usize,
    pub n_heads: usize,
}

impl Sizes {
    pub fn rows(&self) -> usize {
        self.n * self.n_tokens
    }

    fn head(&self) -> usize {
        self.width / self.n_heads
    }
}

/// Whether these kernels can have the encoder; where not, it is composed of stock ops.
pub(super) fn fits(shape: (usize, usize, usize), encoder: &Encoder<'_, Cuda>) -> bool {
    let (n, n_tokens, width) = shape;
    let hidden = |kernel: &Flat<Cuda>, n: usize| kernel.shape().0 / (width * n);
    let all = |layer: &Layer<Cuda>| {
        layer.block.ffn.as_ref().is_none_or(|ffn| hidden(&ffn.wi, 1).is_multiple_of(8))
            && layer.experts.as_ref().is_none_or(|experts| {
                encoder.routing.is_some_and(|routing| {
                    hidden(&experts.wi, routing.n_experts).is_multiple_of(8)
                        && experts.norm.is_some()
                        && experts::fits(routing, n, n_tokens)
                })
            })
    };
    // Examples are the third of a grid's sides.
    n <= 65_535
        && width.is_multiple_of(8)
        && width <= 2048
        && matches!(width / encoder.n_heads, 32 | 64 | 128)
        && encoder.layers.iter().all(all)
}

/// A row's LayerNorm, and what it needs to go back.
pub(super) struct KeptNorm {
    /// What was normalised, f32 `[rows, width]`.
    pub x: Arc<Buf>,
    pub stats: Buf,
}

struct KeptAttention {
    norm: KeptNorm,
    h: Buf,
    qkv: Buf,
    /// Queries and keys behind their LayerNorm, and its numbers.
    normed: Option<(Buf, Buf)>,
    joined: Buf,
    lse: Buf,
}

struct KeptFeedForward {
    norm: KeptNorm,
    h: Buf,
    u: Buf,
    g: Buf,
}

enum KeptSecond {
    Dense(Box<KeptFeedForward>),
    Sparse(Box<KeptExperts>),
}

/// Where the residual stream is: its values, and what the last half has to add to it.
struct Stream {
    x: Arc<Buf>,
    y: Option<Buf>,
}

impl Stream {
    /// Adds what is to be added and normalises; `h` is the result in bf16, or in f32 at the address.
    fn norm(
        &mut self,
        context: &Context,
        sizes: &Sizes,
        scale: u64,
        (bias, wide): (u64, u64),
        h: Option<&Buf>,
    ) -> Result<KeptNorm, CudaError> {
        let (rows, width) = (sizes.rows(), sizes.width);
        let stats = context.alloc(rows, 8)?;
        let y = self.y.take();
        let to = if y.is_some() { Arc::new(context.alloc(rows * width, 4)?) } else { self.x.clone() };
        let written = if y.is_some() { to.ptr() } else { 0 };
        // SAFETY: sizes are those of the buffers.
        unsafe {
            context.launch(
                norm_of(width).0,
                [rows.div_ceil(4), 1, 1],
                128,
                0,
                args![&*self.x, y.as_ref(), written, h, wide, &stats, scale, bias, rows, width, NORM_EPS],
            )
        }?;
        self.x = to.clone();
        Ok(KeptNorm { x: to, stats })
    }
}

/// [`composed`](crate::ops::encoder::composed), in bf16.
pub(super) fn fused<T: Tape<f32, Cuda>>(
    context: &Context,
    tokens: Tokens<Cuda, T>,
    encoder: &Encoder<'_, Cuda>,
) -> Result<Encoded<Cuda, T>, CudaError> {
    let (n, n_tokens, width) = *tokens.shape();
    let sizes = Sizes { n, n_tokens, width, n_heads: encoder.n_heads };
    let (x, mut tape) = tokens.split_tape();
    let (dev, x_ghost) = (x.device().clone(), x.ghost());
    // A mask without padding costs nothing.
    let valid = match encoder.mask.filter(|m| m.valid.contains(&false)) {
        Some(mask) => {
            let bytes: Vec<u8> = mask.valid.iter().map(|&v| u8::from(v)).collect();
            Some(context.upload(&bytes)?)
        }
        None => None,
    };
    let plan = match encoder.routing {
        Some(routing) if encoder.layers.iter().any(|l| l.experts.is_some()) => {
            Some(Plan::new(context, routing, n, n_tokens)?)
        }
        Some(_) | None => None,
    };
    let values = values_of(context, x.try_contiguous()?)?;
    let mut stream = Stream { x: Arc::new(Buf::owning(values)), y: None };
    let mut kept = Vec::new();
    let mut stats = Vec::new();
    for layer in encoder.layers {
        let first = attend(context, &mut stream, layer, &sizes, valid.as_ref(), T::OWNS_TAPE)?;
        let second = match (&layer.block.ffn, &layer.experts, &plan) {
            (Some(ffn), _, _) => Some(KeptSecond::Dense(Box::new(feed_forward(context, &mut stream, ffn, &sizes)?))),
            (None, Some(layer), Some(plan)) => {
                let (kept, of_layer) = experts::forward(context, &mut stream_parts(&mut stream), layer, &sizes, plan)?;
                stats.push(of_layer);
                Some(KeptSecond::Sparse(Box::new(kept)))
            }
            (None, _, _) => None,
        };
        if T::OWNS_TAPE {
            kept.push((first, second));
        }
    }
    let (scale, bias) = {
        let mut mirrors = context.mirrors();
        let bias = encoder.final_norm.bias.as_ref().map(|bias| mirrors.f32(context, bias)).transpose()?;
        (mirrors.f32(context, &encoder.final_norm.scale)?, bias.unwrap_or(0))
    };
    let mut out = Gradients::leaky();
    let y = address(out.get_or_alloc_mut(&x_ghost)?);
    let last = stream.norm(context, &sizes, scale, (bias, y), None)?;
    context.room(sizes.rows() * width)?;
    let y: Tokens<Cuda> = out.get(&x_ghost);
    drop(out);
    let stats: Vec<_> = stats.into_iter().map(|s| s.read()).collect::<Result<_, CudaError>>()?;
    let router_losses = match &plan {
        Some(plan) => vec![dev.try_tensor_from_vec(vec![plan.loss(&stats)], ())?],
        None => Vec::new(),
    };
    let stats_out: Vec<_> = stats.iter().map(|s| s.stats.clone()).collect();
    if !T::OWNS_TAPE {
        return Ok(Encoded { tokens: y.put_tape(tape), router_losses, stats: stats_out });
    }
    let y_ghost = y.ghost();
    let loss_ghost = router_losses.first().map(|loss| loss.ghost());
    let (layers, final_norm) = (encoder.layers.to_vec(), encoder.final_norm.clone());
    tape.add_backward_op(move |grads| {
        let context = &*Context::of(&dev)?;
        let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        let back = Back { context, sizes, valid: valid.as_ref() };
        let d_loss = loss_ghost.as_ref().map(|ghost| Ok::<_, CudaError>(gradient!(grads, ghost))).transpose()?;
        let rows = sizes.rows();
        let mut d = Slopes { dx: context.alloc(rows * width, 4)?, dx16: context.alloc(rows * width, 2)? };
        back.norm(grads, &mut d, (0, address(&dy)), &last, &final_norm, false)?;
        drop(dy);
        let mut of_stats = stats.iter().rev();
        for (layer, (first, second)) in layers.iter().zip(kept).rev() {
            match (second, &layer.block.ffn, &layer.experts) {
                (Some(KeptSecond::Dense(kept)), Some(ffn), _) => back.feed_forward(grads, &mut d, *kept, ffn)?,
                (Some(KeptSecond::Sparse(kept)), _, Some(experts)) => {
                    if let (Some(plan), Some(stats)) = (&plan, of_stats.next()) {
                        experts::backward(&back, grads, &mut d, *kept, experts, plan, stats, d_loss.unwrap_or(0))?;
                    }
                }
                _ => {}
            }
            back.attend(grads, &mut d, first, layer)?;
        }
        let dx = gradient!(grads, &x_ghost);
        // SAFETY: both hold the call's tokens.
        unsafe { context.launch_over("add_into", rows * width, args![&d.dx, dx, (rows * width) as u64]) }
    });
    Ok(Encoded { tokens: y.put_tape(tape), router_losses, stats: stats_out })
}

/// LayerNorm's kernels for rows of a width: forward, backward, backward with a bias.
fn norm_of(width: usize) -> (&'static str, &'static str, &'static str) {
    match width {
        0..=256 => ("norm_forward_256", "norm_backward_256", "norm_backward_bias_256"),
        257..=512 => ("norm_forward_512", "norm_backward_512", "norm_backward_bias_512"),
        513..=768 => ("norm_forward_768", "norm_backward_768", "norm_backward_bias_768"),
        769..=1024 => ("norm_forward_1024", "norm_backward_1024", "norm_backward_bias_1024"),
        _ => ("norm_forward_2048", "norm_backward_2048", "norm_backward_bias_2048"),
    }
}

/// What the experts need of the stream.
pub(super) struct StreamParts<'a>(&'a mut Stream);

fn stream_parts(stream: &mut Stream) -> StreamParts<'_> {
    StreamParts(stream)
}

impl StreamParts<'_> {
    pub fn norm(&mut self, context: &Context, sizes: &Sizes, scale: u64, h: &Buf) -> Result<KeptNorm, CudaError> {
        self.0.norm(context, sizes, scale, (0, 0), Some(h))
    }

    pub fn add(&mut self, y: Buf) {
        self.0.y = Some(y);
    }
}

/// Where queries and keys are read: behind their LayerNorm if they have one.
fn queries_and_keys(kept: &KeptAttention, d: usize) -> ([u64; 2], usize) {
    match &kept.normed {
        Some((normed, _)) => ([normed.ptr(), normed.at(d * 2)], 2 * d),
        None => ([kept.qkv.ptr(), kept.qkv.at(d * 2)], 3 * d),
    }
}

fn attend(
    context: &Context,
    stream: &mut Stream,
    layer: &Layer<Cuda>,
    sizes: &Sizes,
    valid: Option<&Buf>,
    wanted_back: bool,
) -> Result<Option<KeptAttention>, CudaError> {
    let (rows, d, head) = (sizes.rows(), sizes.width, sizes.head());
    let block = &layer.block;
    let (scale, w_qkv, w_o, head_scales) = {
        let mut mirrors = context.mirrors();
        let scales = match &block.qk_norm {
            Some((q, k)) => Some([mirrors.f32(context, q)?, mirrors.f32(context, k)?]),
            None => None,
        };
        let joined = mirrors.joined(context, &[&block.q, &block.k, &block.v], d, d)?;
        (mirrors.f32(context, &block.norm_sa)?, joined, mirrors.bf16(context, &block.o)?, scales)
    };
    let h = context.alloc(rows * d, 2)?;
    let norm = stream.norm(context, sizes, scale, (0, 0), Some(&h))?;
    let qkv = context.alloc(rows * 3 * d, 2)?;
    let joined = context.alloc(rows * d, 2)?;
    let lse = context.alloc(rows * sizes.n_heads, 4)?;
    let y = context.alloc(rows * d, 2)?;
    // SAFETY: sizes are those of the buffers.
    unsafe {
        let product =
            Product::new([rows, d, 3 * d], Operand::new(h.ptr(), d), Operand::new(w_qkv.ptr(), 3 * d), qkv.ptr());
        context.product(&product)?;
    }
    let normed = match head_scales {
        Some([q, k]) => {
            let normed = context.alloc(rows * 2 * d, 2)?;
            let stats = context.alloc(rows * 2 * sizes.n_heads, 8)?;
            let items = rows * 2 * sizes.n_heads;
            // SAFETY: as above.
            unsafe {
                let list = args![&qkv, &normed, &stats, q, k, rows, sizes.n_heads, head, NORM_EPS];
                context.launch("head_norm_forward", [items.div_ceil(4), 1, 1], 128, 0, list)
            }?;
            Some((normed, stats))
        }
        None => None,
    };
    let kept = KeptAttention { norm, h, qkv, normed, joined, lse };
    let ([q, k], ld) = queries_and_keys(&kept, d);
    let m = if head == 32 { 2 } else { 1 };
    let shared = (64 * m + 4 * 64) * head * 2;
    // SAFETY: as above.
    unsafe {
        context.launch(
            forward_of(head),
            [sizes.n_tokens.div_ceil(64 * m), sizes.n_heads, sizes.n],
            128,
            shared,
            args![
                q,
                k,
                kept.qkv.at(2 * d * 2),
                &kept.joined,
                &kept.lse,
                valid,
                sizes.n_tokens,
                sizes.n_heads,
                ld,
                ld,
                3 * d,
                d,
                1.0 / (head as f32).sqrt()
            ],
        )?;
        let product =
            Product::new([rows, d, d], Operand::new(kept.joined.ptr(), d), Operand::new(w_o.ptr(), d), y.ptr());
        context.product(&product)?;
    }
    stream.y = Some(y);
    Ok(wanted_back.then_some(kept))
}

fn forward_of(head: usize) -> &'static str {
    match head {
        32 => "attention_forward_32",
        64 => "attention_forward_64",
        _ => "attention_forward_128",
    }
}

fn backward_of(head: usize) -> [&'static str; 2] {
    match head {
        32 => ["attention_backward_keys_32", "attention_backward_queries_32"],
        64 => ["attention_backward_keys_64", "attention_backward_queries_64"],
        _ => ["attention_backward_keys_128", "attention_backward_queries_128"],
    }
}

fn feed_forward(
    context: &Context,
    stream: &mut Stream,
    ffn: &crate::ops::FeedForward<Cuda>,
    sizes: &Sizes,
) -> Result<KeptFeedForward, CudaError> {
    let (rows, d) = (sizes.rows(), sizes.width);
    let f = ffn.wi.shape().0 / d;
    let (scale, wi, wo) = {
        let mut mirrors = context.mirrors();
        (mirrors.f32(context, &ffn.norm)?, mirrors.bf16(context, &ffn.wi)?, mirrors.bf16(context, &ffn.wo)?)
    };
    let h = context.alloc(rows * d, 2)?;
    let norm = stream.norm(context, sizes, scale, (0, 0), Some(&h))?;
    let (u, g) = (context.alloc(rows * f, 2)?, context.alloc(rows * f, 2)?);
    let y = context.alloc(rows * d, 2)?;
    // SAFETY: sizes are those of the buffers.
    unsafe {
        let up = Product::new([rows, d, f], Operand::new(h.ptr(), d), Operand::new(wi.ptr(), f), g.ptr());
        context.product(&up.epilogue(Epilogue::Gelu, u.ptr()))?;
        let down = Product::new([rows, f, d], Operand::new(g.ptr(), f), Operand::new(wo.ptr(), d), y.ptr());
        context.product(&down)?;
    }
    stream.y = Some(y);
    Ok(KeptFeedForward { norm, h, u, g })
}

/// The gradient at the residual stream: f32, and a copy for products.
pub(super) struct Slopes {
    pub dx: Buf,
    pub dx16: Buf,
}

/// What the way back needs throughout.
pub(super) struct Back<'a> {
    pub context: &'a Context,
    pub sizes: Sizes,
    valid: Option<&'a Buf>,
}

impl Back<'_> {
    /// Through a LayerNorm: `dh` is (bf16, f32), one of them 0.
    pub fn norm(
        &self,
        grads: &mut Grads,
        d: &mut Slopes,
        (dh16, dh32): (u64, u64),
        kept: &KeptNorm,
        norm: &Norm<Cuda>,
        add: bool,
    ) -> Result<(), CudaError> {
        let Self { context, sizes, .. } = self;
        let (rows, width) = (sizes.rows(), sizes.width);
        let scale = context.mirrors().f32(context, &norm.scale)?;
        let blocks = rows.div_ceil(4).min(132 * 5);
        let partial = context.alloc(blocks * 2 * width, 4)?;
        let d_scale = gradient!(grads, &norm.scale);
        // SAFETY: sizes are those of the buffers.
        unsafe {
            let (_, plain, with_bias) = norm_of(width);
            let name = if norm.bias.is_some() { with_bias } else { plain };
            let (shared, add) = (2 * width * 4, usize::from(add));
            let list = args![dh16, dh32, &*kept.x, &kept.stats, scale, &d.dx, &d.dx16, &partial, rows, width, add];
            context.launch(name, [blocks, 1, 1], 128, shared, list)?;
            add_partials(context, &partial, d_scale, blocks, 2 * width, (0, width))?;
            if let Some(bias) = &norm.bias {
                let d_bias = gradient!(grads, bias);
                add_partials(context, &partial, d_bias, blocks, 2 * width, (width, width))?;
            }
        }
        Ok(())
    }

    /// The same, of a LayerNorm that has a scale only.
    pub fn scale_norm(
        &self,
        grads: &mut Grads,
        d: &mut Slopes,
        dh: &Buf,
        kept: &KeptNorm,
        scale: &Flat<Cuda>,
    ) -> Result<(), CudaError> {
        self.norm(grads, d, (dh.ptr(), 0), kept, &Norm { scale: scale.clone(), bias: None }, true)
    }

    fn feed_forward(
        &self,
        grads: &mut Grads,
        d: &mut Slopes,
        kept: KeptFeedForward,
        ffn: &crate::ops::FeedForward<Cuda>,
    ) -> Result<(), CudaError> {
        let Self { context, sizes, .. } = self;
        let (rows, width) = (sizes.rows(), sizes.width);
        let f = ffn.wi.shape().0 / width;
        let (wi, wo) = {
            let mut mirrors = context.mirrors();
            (mirrors.bf16(context, &ffn.wi)?, mirrors.bf16(context, &ffn.wo)?)
        };
        let (d_wi, d_wo) = (gradient!(grads, &ffn.wi), gradient!(grads, &ffn.wo));
        let KeptFeedForward { norm, h, u, g } = kept;
        let dy = Operand::new(d.dx16.ptr(), width);
        // SAFETY: sizes are those of the buffers.
        unsafe {
            context.product(&Product::new([f, rows, width], Operand::new(g.ptr(), f).t(), dy, d_wo).added())?;
            // What GELU gave has been read for the last time: its place takes the slope at what it was given.
            let du = g;
            let back = Product::new([rows, width, f], dy, Operand::new(wo.ptr(), width).t(), du.ptr());
            context.product(&back.epilogue(Epilogue::GeluSlope, u.ptr()))?;
            let slope = Operand::new(du.ptr(), f);
            context.product(&Product::new([width, rows, f], Operand::new(h.ptr(), width).t(), slope, d_wi).added())?;
            let dh = h;
            context.product(&Product::new([rows, f, width], slope, Operand::new(wi.ptr(), f).t(), dh.ptr()))?;
            self.scale_norm(grads, d, &dh, &norm, &ffn.norm)
        }
    }

    fn attend(
        &self,
        grads: &mut Grads,
        d: &mut Slopes,
        kept: Option<KeptAttention>,
        layer: &Layer<Cuda>,
    ) -> Result<(), CudaError> {
        let (Self { context, sizes, .. }, Some(kept)) = (self, kept) else { return Ok(()) };
        let (rows, width, head) = (sizes.rows(), sizes.width, sizes.head());
        let block = &layer.block;
        let (w_qkv, w_o) = {
            let mut mirrors = context.mirrors();
            let joined = mirrors.joined(context, &[&block.q, &block.k, &block.v], width, width)?;
            (joined, mirrors.bf16(context, &block.o)?)
        };
        let dy = Operand::new(d.dx16.ptr(), width);
        let d_o = gradient!(grads, &block.o);
        let d_joined = context.alloc(rows * width, 2)?;
        let dot = context.alloc(rows * sizes.n_heads, 4)?;
        let d_qkv = context.alloc(rows * 3 * width, 2)?;
        let ([q, k], ld) = queries_and_keys(&kept, width);
        let v = kept.qkv.at(2 * width * 2);
        let [by_keys, by_queries] = backward_of(head);
        let (n_tokens, n_heads) = (sizes.n_tokens, sizes.n_heads);
        let grid = [n_tokens.div_ceil(64), n_heads, sizes.n];
        let shared = 4 * 64 * head * 2;
        let score_scale = 1.0 / (head as f32).sqrt();
        // SAFETY: sizes are those of the buffers.
        unsafe {
            let joined = Operand::new(kept.joined.ptr(), width).t();
            context.product(&Product::new([width, rows, width], joined, dy, d_o).added())?;
            let w_o = Operand::new(w_o.ptr(), width).t();
            context.product(&Product::new([rows, width, width], dy, w_o, d_joined.ptr()))?;
            let items = rows * n_heads;
            let list = args![&kept.joined, &d_joined, &dot, n_tokens, n_heads, head, items as u64];
            context.launch("attention_dot", [items.div_ceil(16), 1, 1], 128, 0, list)?;
            let list = args![
                q,
                k,
                v,
                &d_joined,
                &kept.lse,
                &dot,
                d_qkv.at(width * 2),
                d_qkv.at(2 * width * 2),
                self.valid,
                n_tokens,
                n_heads,
                ld,
                ld,
                3 * width,
                width,
                3 * width,
                score_scale
            ];
            context.launch(by_keys, grid, 128, shared, list)?;
            let list = args![
                q,
                k,
                v,
                &d_joined,
                &kept.lse,
                &dot,
                &d_qkv,
                self.valid,
                n_tokens,
                n_heads,
                ld,
                ld,
                3 * width,
                width,
                3 * width,
                score_scale
            ];
            context.launch(by_queries, grid, 128, shared, list)?;
        }
        if let (Some((_, stats)), Some((scale_q, scale_k))) = (&kept.normed, &block.qk_norm) {
            let [q, k] = {
                let mut mirrors = context.mirrors();
                [mirrors.f32(context, scale_q)?, mirrors.f32(context, scale_k)?]
            };
            let (d_q, d_k) = (gradient!(grads, scale_q), gradient!(grads, scale_k));
            let blocks = (rows * 2 * n_heads).div_ceil(4).min(528);
            let partial = context.alloc(blocks * 2 * head, 4)?;
            // SAFETY: as above.
            unsafe {
                let list = args![&kept.qkv, &d_qkv, stats, q, k, &partial, rows, n_heads, head];
                context.launch("head_norm_backward", [blocks, 1, 1], 128, 0, list)?;
                add_partials(context, &partial, d_q, blocks, 2 * head, (0, head))?;
                add_partials(context, &partial, d_k, blocks, 2 * head, (head, head))?;
            }
        }
        // SAFETY: as above.
        unsafe {
            for (part, kernel) in [&block.q, &block.k, &block.v].into_iter().enumerate() {
                let to = gradient!(grads, kernel);
                let slope = Operand::new(d_qkv.at(part * width * 2), 3 * width);
                let h = Operand::new(kept.h.ptr(), width).t();
                context.product(&Product::new([width, rows, width], h, slope, to).added())?;
            }
            let dh = d_joined;
            let slope = Operand::new(d_qkv.ptr(), 3 * width);
            let w_qkv = Operand::new(w_qkv.ptr(), 3 * width).t();
            context.product(&Product::new([rows, 3 * width, width], slope, w_qkv, dh.ptr()))?;
            self.scale_norm(grads, d, &dh, &kept.norm, &block.norm_sa)
        }
    }
}
