//! The fused form for the CPU: one crossing for LayerNorm, router, experts and residual.
//!
//! In: tokens, parameters. Out: tokens; then gradients. Never: two threads that add to one number: an expert is one thread's from
//! start to end, and so is a token where the experts' results meet.

use std::sync::Arc;

use dfdx::prelude::*;

use super::choose::{Assignment, assign, first_choices};
use super::{Experts, Routed, Routing};
use crate::ops::product::{Dst, KernelGrad, Mat, MatMut, Packed, Way, add_kernel_grads, packed_product, product};
use crate::ops::{Tokens, host, simd};

/// Rows that an expert takes through its two products at a time: what it makes on the way stays in the cache.
const CHUNK_ROWS: usize = 256;

/// The layer's parameters and sizes.
struct Weights {
    /// Empty for the layer alone.
    scale: Vec<f32>,
    router: Vec<f32>,
    /// See [`packed`]; transposed on the way back.
    kernels: Arc<Vec<Packed>>,
    width: usize,
    n_hidden: usize,
    n_experts: usize,
}

impl Weights {
    fn new(layer: &Experts<Cpu>, width: usize, n_experts: usize, way: Way) -> Self {
        Self {
            scale: layer.norm.as_ref().map(host::values).unwrap_or_default(),
            router: host::values(&layer.router),
            kernels: layer.packs.get(way, || packed(layer, width, n_experts, way)),
            width,
            n_hidden: n_hidden(layer, width, n_experts),
            n_experts,
        }
    }

    fn of_expert(&self, expert: usize) -> (&Packed, &Packed) {
        (&self.kernels[expert], &self.kernels[self.n_experts + expert])
    }
}

fn n_hidden(layer: &Experts<Cpu>, width: usize, n_experts: usize) -> usize {
    layer.wi.shape().0 / (n_experts * width)
}

/// Packs the experts' kernels, (in, out): first those of all experts into the hidden layer, then those out of it.
fn packed(layer: &Experts<Cpu>, width: usize, n_experts: usize, way: Way) -> Vec<Packed> {
    let f = n_hidden(layer, width, n_experts);
    let each =
        |kernels, n_in, n_out| host::view(kernels).chunks_exact(n_in * n_out).map(move |kernel| (kernel, n_in, n_out));
    let all = each(&layer.wi, width, f).chain(each(&layer.wo, f, width));
    host::run(all.collect(), |(kernel, n_in, n_out)| Packed::new(way.turn(Mat::new(kernel, n_in, n_out))))
}

/// The router's view of some rows.
struct Scores {
    /// What router and experts read; empty where it is the input itself.
    h: Vec<f32>,
    /// Mean and 1 / deviation of each row.
    stats: Vec<[f32; 2]>,
    /// `[rows, experts]`
    probs: Vec<f32>,
    /// `logsumexp(logits)` of each row.
    lse: Vec<f32>,
}

fn normalised(x: &[f32], w: &Weights) -> (Vec<f32>, Vec<[f32; 2]>) {
    if w.scale.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let (mut h, mut stats) = (vec![0.0; x.len()], vec![[0.0; 2]; x.len() / w.width]);
    simd::layer_norm(x, &w.scale, &[], &mut h, &mut stats);
    (h, stats)
}

fn score(x: &[f32], w: &Weights) -> Scores {
    let (h, stats) = normalised(x, w);
    let (rows, e) = (x.len() / w.width, w.n_experts);
    let mut probs = vec![0.0; rows * e];
    let seen = Mat::new(if h.is_empty() { x } else { &h }, rows, w.width);
    product(MatMut::new(&mut probs, rows, e), Dst::Overwrite, 1.0, seen, Mat::new(&w.router, w.width, e));
    let mut logits = vec![0.0; e];
    let lse = probs
        .chunks_exact_mut(e)
        .map(|row| {
            logits.copy_from_slice(row);
            let most = simd::max(&logits);
            let sum = simd::exp_minus(&logits, most, row);
            simd::scale(row, 1.0 / sum);
            most + sum.ln()
        })
        .collect();
    Scores { h, stats, probs, lse }
}

/// Logits and probabilities `[rows, experts]`, and the rows that each expert takes.
#[cfg(test)]
pub(crate) fn route(x: &Tokens<Cpu>, layer: &Experts<Cpu>, routing: &Routing) -> (Vec<f32>, Vec<f32>, Vec<Vec<u32>>) {
    let (n, t, d) = *x.shape();
    let w = Weights::new(layer, d, routing.n_experts, Way::Forward);
    let scores = score(&host::values(x), &w);
    let of_row = scores.probs.chunks_exact(routing.n_experts).zip(&scores.lse);
    let logits = of_row.flat_map(|(p, lse)| p.iter().map(move |p| p.ln() + lse)).collect();
    let assignment = assign(&scores.probs, routing, (n, t));
    (logits, scores.probs, assignment.tokens)
}

/// What the backward pass reads.
struct Kept {
    x: Vec<f32>,
    probs: Vec<f32>,
    lse: Vec<f32>,
    stats: Vec<[f32; 2]>,
    assignment: Assignment,
    first: Vec<f32>,
    /// What GELU was applied to, by expert: `[its rows, hidden]`.
    hidden: Vec<Vec<f32>>,
}

/// The fused form.
pub(in crate::ops) fn fused<T: Tape<f32, Cpu>>(
    x: Tokens<Cpu, T>,
    layer: &Experts<Cpu>,
    routing: &Routing,
) -> Result<Routed<Cpu, T>, CpuError> {
    let shape @ (n, t, d) = *x.shape();
    let (rows, e) = (n * t, routing.n_experts);
    let (x, mut tape) = x.split_tape();
    let dev = x.device().clone();
    let values = host::values(&x);
    let w = Weights::new(layer, d, e, Way::Forward);
    let chunks = host::chunk_sizes(rows, 1);
    let scored = host::run(host::split(&values, &chunks, d), |x: &[f32]| score(x, &w));
    let (mut h, mut probs, mut lse, mut stats) = (Vec::new(), Vec::with_capacity(rows * e), Vec::new(), Vec::new());
    for part in scored {
        h.extend(part.h);
        probs.extend(part.probs);
        lse.extend(part.lse);
        stats.extend(part.stats);
    }
    let assignment = assign(&probs, routing, (n, t));
    let seen = if h.is_empty() { &values } else { &h };
    let jobs = assignment.tokens.iter().enumerate().collect();
    let computed = host::run(jobs, |(expert, tokens): (usize, &Vec<u32>)| forward(seen, tokens, expert, &w));
    let (hidden, out): (Vec<_>, Vec<_>) = computed.into_iter().unzip();
    let mut y = if w.scale.is_empty() { vec![0.0; rows * d] } else { values.clone() };
    scatter(&mut y, &assignment, &out, d, |token, expert, _| probs[token * e + expert]);

    let first = first_choices(&probs, e);
    let z_loss = (lse.iter().map(|&l| f64::from(l).powi(2)).sum::<f64>() / rows as f64) as f32;
    let mut mean = vec![0.0; e];
    simd::add_rows_into(&mut mean, &probs);
    let balance = simd::dot(&mean, &first) * e as f32 / rows as f32;
    let router_loss =
        dev.try_tensor_from_vec(vec![routing.z_weight * z_loss + routing.balance_weight * balance], ())?;
    let stats_of_call = super::stats(&assignment, &probs, z_loss, balance, routing);
    let y = dev.try_tensor_from_vec(y, shape)?;
    if !T::OWNS_TAPE {
        return Ok(Routed { tokens: y.put_tape(tape), router_loss, stats: stats_of_call });
    }
    let kept = Kept { x: values, probs, lse, stats, assignment, first, hidden };
    let (x_ghost, y_ghost, loss_ghost) = (x.ghost(), y.ghost(), router_loss.ghost());
    let (layer, routing) = (layer.clone(), *routing);
    tape.add_backward_op(move |grads| {
        let empty = || dev.try_alloc_len(0);
        let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, empty()?);
        let by = grads.get_or_alloc_mut(&loss_ghost)?[0];
        // Taken out, so that each expert adds to its own part at the same time as the others; and beside the packing, because the first to ask
        // for a gradient has it filled with zeroes.
        let mut take = |kernels| Ok::<_, CpuError>(std::mem::replace(grads.get_or_alloc_mut(kernels)?, empty()?));
        let (taken, w) = host::both(
            || Ok::<_, CpuError>((take(&layer.wi)?, take(&layer.wo)?)),
            || Weights::new(&layer, d, e, Way::Back),
        );
        let (mut dwi, mut dwo) = taken?;
        let (dx, drouter, dscale) = backward(&dy, by, kept, &w, &routing, &mut dwi, &mut dwo);
        *grads.get_or_alloc_mut(&layer.wi)? = dwi;
        *grads.get_or_alloc_mut(&layer.wo)? = dwo;
        simd::add(grads.get_or_alloc_mut(&x_ghost)?, &dx);
        simd::add(grads.get_or_alloc_mut(&layer.router)?, &drouter);
        if let Some(scale) = &layer.norm {
            simd::add(grads.get_or_alloc_mut(scale)?, &dscale);
        }
        Ok(())
    });
    Ok(Routed { tokens: y.put_tape(tape), router_loss, stats: stats_of_call })
}

/// Rows `tokens` of `from`, one after the other.
fn gather(from: &[f32], tokens: &[u32], width: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(tokens.len() * width);
    tokens.iter().for_each(|&token| rows.extend_from_slice(&from[token as usize * width..][..width]));
    rows
}

/// Adds row `i` of `parts[expert]` to row `assignment.tokens[expert][i]` of `to`, times `by(row, expert, i)`. A row is one thread's.
fn scatter(
    to: &mut [f32],
    assignment: &Assignment,
    parts: &[Vec<f32>],
    width: usize,
    by: impl Fn(usize, usize, usize) -> f32 + Sync,
) {
    let chunks = host::chunk_sizes(to.len() / width, 1);
    let mut start = 0;
    let jobs = host::split_mut(to, &chunks, width).into_iter().map(|part| {
        let at = start;
        start += part.len() / width;
        (at, part)
    });
    host::run(jobs.collect(), |(start, to): (usize, &mut [f32])| {
        for (expert, (tokens, part)) in assignment.tokens.iter().zip(parts).enumerate() {
            for (i, (&token, from)) in tokens.iter().zip(part.chunks_exact(width)).enumerate() {
                let token = token as usize;
                if let Some(row) = token.checked_sub(start).filter(|row| row * width < to.len()) {
                    simd::add_scaled(&mut to[row * width..(row + 1) * width], from, by(token, expert, i));
                }
            }
        }
    });
}

/// One expert over its tokens: what GELU was applied to, and what came out.
fn forward(h: &[f32], tokens: &[u32], expert: usize, w: &Weights) -> (Vec<f32>, Vec<f32>) {
    let (d, f) = (w.width, w.n_hidden);
    let (wi, wo) = w.of_expert(expert);
    let (mut hidden, mut out) = (vec![0.0; tokens.len() * f], vec![0.0; tokens.len() * d]);
    let mut activated = vec![0.0; tokens.len().min(CHUNK_ROWS) * f];
    let chunks = hidden.chunks_mut(CHUNK_ROWS * f).zip(out.chunks_mut(CHUNK_ROWS * d));
    for (tokens, (hidden, out)) in tokens.chunks(CHUNK_ROWS).zip(chunks) {
        let rows = tokens.len();
        let h = gather(h, tokens, d);
        packed_product(MatMut::new(hidden, rows, f), Dst::Overwrite, Mat::new(&h, rows, d), wi);
        let activated = &mut activated[..rows * f];
        simd::gelu(hidden, activated);
        packed_product(MatMut::new(out, rows, d), Dst::Overwrite, Mat::new(activated, rows, f), wo);
    }
    (hidden, out)
}

/// What flows back from one expert, by its rows, and both sides of its kernels' gradients.
struct FromExpert {
    /// `[rows, width]`
    dh: Vec<f32>,
    /// Gradient of the probability of each of its rows.
    d_gate: Vec<f32>,
    /// `[rows, width]`
    h: Vec<f32>,
    /// `[rows, hidden]`
    d_hidden: Vec<f32>,
    /// `[rows, hidden]`, GELU's output times the probability.
    activated: Vec<f32>,
    /// `[rows, width]`
    dy: Vec<f32>,
}

/// Gradients of the input, the router and LayerNorm's scale; the experts' are added to `dwi` and `dwo`.
fn backward(
    dy: &[f32],
    by: f32,
    kept: Kept,
    w: &Weights,
    routing: &Routing,
    dwi: &mut [f32],
    dwo: &mut [f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (d, f, e) = (w.width, w.n_hidden, w.n_experts);
    let rows = dy.len() / d;
    let chunks = host::chunk_sizes(rows, 1);
    let h = host::run(host::split(&kept.x, &chunks, d), |x: &[f32]| normalised(x, w).0).concat();
    let seen = if h.is_empty() { &kept.x } else { &h };
    let jobs: Vec<_> = kept.assignment.tokens.iter().zip(kept.hidden).enumerate().collect();
    let probs = &kept.probs;
    let from_experts = host::run(jobs, |(expert, (tokens, hidden))| {
        let gate: Vec<f32> = tokens.iter().map(|&token| probs[token as usize * e + expert]).collect();
        expert_backward(gather(seen, tokens, d), gather(dy, tokens, d), hidden, &gate, w.of_expert(expert), (d, f))
    });
    let into = dwi.chunks_exact_mut(d * f).zip(dwo.chunks_exact_mut(d * f));
    let kernels = from_experts.iter().zip(into).flat_map(|(from, (dwi, dwo))| {
        let rows = from.d_gate.len();
        let sides = |left, n_in, right, n_out| vec![(Mat::new(left, rows, n_in), Mat::new(right, rows, n_out))];
        let wi = KernelGrad { into: dwi, n_out: f, parts: sides(&from.h, d, &from.d_hidden, f) };
        [wi, KernelGrad { into: dwo, n_out: d, parts: sides(&from.activated, f, &from.dy, d) }]
    });
    add_kernel_grads(kernels.collect());

    let mut d_probs = vec![0.0; rows * e];
    if routing.balance_weight != 0.0 {
        let per = by * routing.balance_weight * e as f32 / rows as f32;
        for row in d_probs.chunks_exact_mut(e) {
            simd::add_scaled(row, &kept.first, per);
        }
    }
    for (expert, (tokens, from)) in kept.assignment.tokens.iter().zip(&from_experts).enumerate() {
        for (&token, d_gate) in tokens.iter().zip(&from.d_gate) {
            d_probs[token as usize * e + expert] += d_gate;
        }
    }
    let dh_parts: Vec<Vec<f32>> = from_experts.into_iter().map(|from| from.dh).collect();
    let mut dh = vec![0.0; rows * d];
    scatter(&mut dh, &kept.assignment, &dh_parts, d, |_, _, _| 1.0);

    let z_per = by * routing.z_weight * 2.0 / rows as f32;
    let mut dx = if w.scale.is_empty() { Vec::new() } else { dy.to_vec() };
    let dx_chunks =
        if dx.is_empty() { chunks.iter().map(|_| &mut [][..]).collect() } else { host::split_mut(&mut dx, &chunks, d) };
    let mut start = 0;
    let jobs: Vec<_> = chunks
        .iter()
        .zip(host::split_mut(&mut dh, &chunks, d))
        .zip(host::split_mut(&mut d_probs, &chunks, e))
        .zip(dx_chunks)
        .map(|(((&n, dh), d_probs), dx)| {
            let at = start;
            start += n;
            (at..at + n, dh, d_probs, dx)
        })
        .collect();
    let partial = host::run(jobs, |(rows, dh, d_logits, dx)| {
        let n = rows.len();
        let probs = &kept.probs[rows.start * e..rows.end * e];
        simd::softmax_rows_backward(probs, d_logits, e);
        let each = d_logits.chunks_exact_mut(e).zip(probs.chunks_exact(e)).zip(&kept.lse[rows.clone()]);
        for ((d_logits, p), lse) in each {
            simd::add_scaled(d_logits, p, z_per * lse);
        }
        let d_logits = Mat::new(d_logits, n, e);
        let mut drouter = vec![0.0; d * e];
        let h = Mat::new(&seen[rows.start * d..rows.end * d], n, d);
        product(MatMut::new(&mut drouter, d, e), Dst::Overwrite, 1.0, h.t(), d_logits);
        product(MatMut::new(dh, n, d), Dst::Accumulate, 1.0, d_logits, Mat::new(&w.router, d, e).t());
        let mut dscale = vec![0.0; w.scale.len()];
        if !w.scale.is_empty() {
            let (x, stats) = (&kept.x[rows.start * d..rows.end * d], &kept.stats[rows]);
            simd::layer_norm_backward(x, &w.scale, stats, dh, dx, &mut dscale, &mut []);
        }
        (drouter, dscale)
    });
    let (mut drouter, mut dscale) = (vec![0.0; d * e], vec![0.0; w.scale.len()]);
    for (of_router, of_scale) in &partial {
        simd::add(&mut drouter, of_router);
        simd::add(&mut dscale, of_scale);
    }
    (if w.scale.is_empty() { dh } else { dx }, drouter, dscale)
}

/// One expert over the rows that it took, `h`, with what flows back to them, `dy`; `hidden` is what GELU was applied to.
fn expert_backward(
    h: Vec<f32>,
    dy: Vec<f32>,
    hidden: Vec<f32>,
    gate: &[f32],
    (wi, wo): (&Packed, &Packed),
    (d, f): (usize, usize),
) -> FromExpert {
    let n = gate.len();
    let mut slope = hidden;
    let (mut dh, mut d_gate) = (vec![0.0; n * d], vec![0.0; n]);
    let (mut activated, mut d_hidden) = (vec![0.0; n * f], vec![0.0; n * f]);
    let each = slope.chunks_mut(CHUNK_ROWS * f).zip(dy.chunks(CHUNK_ROWS * d)).zip(dh.chunks_mut(CHUNK_ROWS * d));
    let each = each.zip(activated.chunks_mut(CHUNK_ROWS * f)).zip(d_hidden.chunks_mut(CHUNK_ROWS * f));
    let gates = gate.chunks(CHUNK_ROWS).zip(d_gate.chunks_mut(CHUNK_ROWS));
    for (((((slope, dy), dh), activated), d_hidden), (gate, d_gate)) in each.zip(gates) {
        let rows = gate.len();
        simd::gelu_with_slope(slope, activated);
        packed_product(MatMut::new(d_hidden, rows, f), Dst::Overwrite, Mat::new(dy, rows, d), wo);
        let each = activated.chunks_exact_mut(f).zip(d_hidden.chunks_exact_mut(f)).zip(gate.iter().zip(d_gate));
        for ((activated, d_hidden), (&gate, d_gate)) in each {
            *d_gate = simd::dot(activated, d_hidden);
            simd::scale(activated, gate);
            simd::scale(d_hidden, gate);
        }
        simd::multiply(d_hidden, slope);
        packed_product(MatMut::new(dh, rows, d), Dst::Overwrite, Mat::new(d_hidden, rows, f), wi);
    }
    FromExpert { dh, d_gate, h, d_hidden, activated, dy }
}
