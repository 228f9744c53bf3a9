//! A layer of experts in bf16: routed and chosen in f32 on the device, all experts in one batched product.
//!
//! In: the residual stream, the experts' parameters. Out: what they add to it. Never: a wait for the host between routing and experts.

use dfdx::prelude::*;

use super::buffer::Buf;
use super::context::{Context, Grads, args, gradient};
use super::encoder::{Back, KeptNorm, Sizes, Slopes, StreamParts};
use super::gemm::{Epilogue, Operand, Product};
use crate::ops::experts::choose::capacity;
use crate::ops::experts::{Choice, Experts, Routing, RoutingStats};

/// Largest group that one block sorts.
const MOST_IN_GROUP: usize = 8192;
/// Blocks and threads of the pass that counts.
const STATS: (usize, u32) = (128, 64);

/// Whether the kernels can route so.
pub(super) fn fits(routing: &Routing, n: usize, n_tokens: usize) -> bool {
    let most = routing.groups.ranges(n, n_tokens).into_iter().map(|g| g.len()).max().unwrap_or(0);
    routing.choice == Choice::Experts && most <= MOST_IN_GROUP && routing.n_experts <= 128
}

/// What a call's size says about its routing; the same for all layers.
pub(super) struct Plan {
    routing: Routing,
    /// `[groups, 4]`: first row, rows, capacity, first slot.
    groups: Buf,
    n_groups: usize,
    /// Tokens that an expert takes of all groups.
    slots: usize,
    /// Power of two that holds the largest group.
    size: usize,
    rows: usize,
}

impl Plan {
    pub fn new(context: &Context, routing: &Routing, n: usize, n_tokens: usize) -> Result<Self, CudaError> {
        let ranges = routing.groups.ranges(n, n_tokens);
        let (mut slots, mut most) = (0, 0);
        let mut groups = Vec::with_capacity(ranges.len() * 4);
        for range in &ranges {
            let taken = capacity(routing.capacity_factor, range.len(), routing.n_experts);
            groups.extend([range.start, range.len(), taken, slots].map(|v| v as i32));
            slots += taken;
            most = most.max(range.len());
        }
        let size = most.next_power_of_two().max(2);
        let (n_groups, rows) = (ranges.len(), n * n_tokens);
        Ok(Self { routing: *routing, groups: context.upload(&groups)?, n_groups, slots, size, rows })
    }

    /// What the routers add to the objective, weighted.
    pub fn loss(&self, layers: &[Counted]) -> f32 {
        let of = |s: &Counted| self.routing.z_weight * s.stats.z_loss + self.routing.balance_weight * s.stats.balance;
        layers.iter().map(of).sum()
    }
}

pub(super) struct KeptExperts {
    norm: KeptNorm,
    h: Buf,
    /// The router's kernel, `[experts, width]`.
    by_expert: Buf,
    probs: Buf,
    lse: Buf,
    row_of: Buf,
    slot_of: Buf,
    taken: Buf,
    u: Buf,
    g: Buf,
    out: Buf,
}

/// Counts of a layer, still on the device.
pub(super) struct Counting {
    partial: Buf,
    rows: usize,
    slots: usize,
    experts: usize,
}

/// Counts of a layer, on the host.
pub(super) struct Counted {
    pub stats: RoutingStats,
    /// Share of tokens by their first choice.
    first_share: Vec<f32>,
}

impl Counting {
    /// Waits for the device.
    pub fn read(self) -> Result<Counted, CudaError> {
        let e = self.experts;
        let width = 3 + 2 * e;
        let mut sums = vec![0.0_f64; width];
        for block in self.partial.read::<f32>(STATS.0 * width)?.chunks_exact(width) {
            sums.iter_mut().zip(block).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        let rows = self.rows as f64;
        let pairs = (self.slots * e).max(1) as f64;
        let first_share: Vec<f32> = sums[3..3 + e].iter().map(|f| (f / rows) as f32).collect();
        let balance: f64 = (0..e).map(|i| sums[3 + i] / rows * sums[3 + e + i] / rows).sum::<f64>() * e as f64;
        let stats = RoutingStats {
            z_loss: (sums[0] / rows) as f32,
            balance: balance as f32,
            unrouted: (sums[1] / rows) as f32,
            confidence: (sums[2] / pairs) as f32,
            usage: vec![1.0 / e as f32; e],
        };
        Ok(Counted { stats, first_share })
    }
}

pub(super) fn forward(
    context: &Context,
    stream: &mut StreamParts<'_>,
    layer: &Experts<Cuda>,
    sizes: &Sizes,
    plan: &Plan,
) -> Result<(KeptExperts, Counting), CudaError> {
    let (rows, d, e) = (sizes.rows(), sizes.width, plan.routing.n_experts);
    let f = layer.wi.shape().0 / (d * e);
    let (slots, all) = (plan.slots, plan.slots * e);
    let (scale, router, wi, wo) = {
        let mut mirrors = context.mirrors();
        let scale = match &layer.norm {
            Some(scale) => mirrors.f32(context, scale)?,
            None => 0,
        };
        let router = mirrors.f32(context, &layer.router)?;
        (scale, router, mirrors.bf16(context, &layer.wi)?, mirrors.bf16(context, &layer.wo)?)
    };
    let h = context.alloc(rows * d, 2)?;
    let norm = stream.norm(context, sizes, scale, &h)?;
    let (probs, lse) = (context.alloc(rows * e, 4)?, context.alloc(rows, 4)?);
    let (row_of, slot_of) = (context.alloc(all, 4)?, context.alloc(rows * e, 4)?);
    let (taken, out) = (context.alloc(all * d, 2)?, context.alloc(all * d, 2)?);
    let (u, g) = (context.alloc(all * f, 2)?, context.alloc(all * f, 2)?);
    let y = context.alloc(rows * d, 2)?;
    let partial = context.alloc(STATS.0 * (3 + 2 * e), 4)?;
    let by_expert = context.alloc(d * e, 4)?;
    slot_of.fill(0xff)?;
    // SAFETY: sizes are those of the buffers.
    unsafe {
        context.launch("transpose", [(d * e).div_ceil(256), 1, 1], 256, 0, args![router, &by_expert, d, e])?;
        let list = args![&*norm.x, &norm.stats, scale, &by_expert, &probs, &lse, rows, d, e];
        context.launch("route", [rows.div_ceil(4), 1, 1], 128, 4 * e * 4, list)?;
        let list = args![&probs, &plan.groups, &row_of, &slot_of, e, slots, plan.size];
        let threads = (plan.size / 2).clamp(32, 512) as u32;
        context.launch("choose", [plan.n_groups, e, 1], threads, plan.size * 8, list)?;
        let list = args![&probs, &lse, &slot_of, &partial, rows, e];
        context.launch("routing_stats", [STATS.0, 1, 1], STATS.1, STATS.1 as usize * (3 + 2 * e) * 4, list)?;
        context.launch("gather_rows", [all.div_ceil(4), 1, 1], 128, 0, args![&h, &row_of, &taken, all, d])?;
        let kernels = |at: &Buf, ld: usize| Operand::new(at.ptr(), ld).stride(d * f);
        let of = |at: &Buf, width: usize| Operand::new(at.ptr(), width).stride(slots * width);
        let up = Product::new([slots, d, f], of(&taken, d), kernels(&wi, f), g.ptr()).batch(e);
        context.product(&up.epilogue(Epilogue::Gelu, u.ptr()))?;
        let down = Product::new([slots, f, d], of(&g, f), kernels(&wo, d), out.ptr()).batch(e);
        context.product(&down)?;
        context.launch("combine", [rows.div_ceil(4), 1, 1], 128, 0, args![&out, &slot_of, &probs, &y, rows, d, e])?;
    }
    stream.add(y);
    let counting = Counting { partial, rows, slots, experts: e };
    Ok((KeptExperts { norm, h, by_expert, probs, lse, row_of, slot_of, taken, u, g, out }, counting))
}

#[expect(clippy::too_many_arguments, reason = "what a layer keeps, is, and was told")]
pub(super) fn backward(
    back: &Back<'_>,
    grads: &mut Grads,
    d: &mut Slopes,
    kept: KeptExperts,
    layer: &Experts<Cuda>,
    plan: &Plan,
    counted: &Counted,
    d_loss: u64,
) -> Result<(), CudaError> {
    let Back { context, sizes, .. } = back;
    let (width, e) = (sizes.width, plan.routing.n_experts);
    let rows = plan.rows;
    let f = layer.wi.shape().0 / (width * e);
    let (slots, all) = (plan.slots, plan.slots * e);
    let ld = e.next_multiple_of(8);
    let (wi, wo) = {
        let mut mirrors = context.mirrors();
        (mirrors.bf16(context, &layer.wi)?, mirrors.bf16(context, &layer.wo)?)
    };
    let (d_wi, d_wo) = (gradient!(grads, &layer.wi), gradient!(grads, &layer.wo));
    let d_router = gradient!(grads, &layer.router);
    let KeptExperts { norm, h, by_expert, probs, lse, row_of, slot_of, taken, u, g, out } = kept;
    let (d_out, d_gate) = (context.alloc(all * width, 2)?, context.alloc(all, 4)?);
    let (dh, d_logits) = (context.alloc(rows * width, 2)?, context.alloc(rows * ld, 2)?);
    let d_router_padded = context.alloc(width * ld, 4)?;
    let first_share = match plan.routing.balance_weight > 0.0 {
        true => Some(context.upload(&counted.first_share)?),
        false => None,
    };
    // SAFETY: sizes are those of the buffers.
    unsafe {
        let list = args![&d.dx16, &out, &row_of, &probs, &d_out, &d_gate, all, slots, width, e];
        context.launch("combine_backward", [all.div_ceil(4), 1, 1], 128, 0, list)?;
        let kernels = |at: &Buf, ld: usize| Operand::new(at.ptr(), ld).stride(width * f).t();
        let of = |at: &Buf, width: usize| Operand::new(at.ptr(), width).stride(slots * width);
        let slope = of(&d_out, width);
        context.product(&Product::new([f, slots, width], of(&g, f).t(), slope, d_wo).batch(e).added())?;
        // Places of what was read for the last time.
        let du = g;
        let through = Product::new([slots, width, f], slope, kernels(&wo, width), du.ptr()).batch(e);
        context.product(&through.epilogue(Epilogue::GeluSlope, u.ptr()))?;
        let slope = of(&du, f);
        context.product(&Product::new([width, slots, f], of(&taken, width).t(), slope, d_wi).batch(e).added())?;
        let d_taken = taken;
        context.product(&Product::new([slots, f, width], slope, kernels(&wi, f), d_taken.ptr()).batch(e))?;
        let list = args![
            &d_taken,
            &slot_of,
            &d_gate,
            &probs,
            &lse,
            &by_expert,
            d_loss,
            first_share.as_ref(),
            &dh,
            &d_logits,
            rows,
            width,
            e,
            ld,
            plan.routing.z_weight,
            plan.routing.balance_weight
        ];
        context.launch("dispatch_backward", [rows.div_ceil(4), 1, 1], 128, 4 * e * 4, list)?;
        let h = Operand::new(h.ptr(), width).t();
        let logits = Operand::new(d_logits.ptr(), ld);
        context.product(&Product::new([width, rows, ld], h, logits, d_router_padded.ptr()).wide())?;
        context.launch_over("add_columns", width * e, args![&d_router_padded, d_router, width, e, ld])?;
    }
    match &layer.norm {
        Some(scale) => back.scale_norm(grads, d, &dh, &norm, scale),
        None => Ok(()),
    }
}
