//! A mixture of experts in place of a block's feed-forward: route, compute what was chosen, combine.
//!
//! In: the tokens of one call of the encoder, the experts' parameters. Out: tokens, the router's own losses, what it did. Never: a
//! gradient through the choice itself; an order of summation that depends on the number of threads.
//!
//! `p = softmax(h Wr)` over the experts, in f32; each expert computes the tokens that [`choose`] gives it, and
//! `y[t] = sum of p[t, e] gelu(h[t] Wi[e]) Wo[e]` over the experts that took `t`: not renormalised, and a token that nobody took gets
//! nothing. With a LayerNorm the layer is `x + y`, `h = LN(x)`, so that such a token passes by the residual.
//! Source: Zhou et al. 2022, arXiv:2202.09368 (expert choice); Fedus et al. 2021, arXiv:2101.03961 (token choice, balance loss);
//! Zoph et al. 2022, arXiv:2202.08906 (router z-loss); group sizes and rounding as in the authors' release. Soft experts, where nothing is
//! chosen, are in [`soft`].

pub mod choose;
mod host;
pub mod soft;

use dfdx::prelude::*;

use super::{Flat, Norm, Packs, Scalar, Tokens, layer_norm};
use choose::{Assignment, assign};
pub use choose::{Choice, Groups};
pub(super) use host::fused;
#[cfg(test)]
pub(crate) use host::route;

/// Parameters of a block's experts; kernels are (in, out).
#[derive(Debug, Clone)]
pub struct Experts<D: Storage<f32>> {
    /// LayerNorm before the layer, with the residual around it; `None` for the layer alone.
    pub norm: Option<Flat<D>>,
    /// `[width, experts]`; of soft experts `[width, experts * slots]`
    pub router: Flat<D>,
    /// `[1]`, of soft experts: the greatest logit there can be.
    pub router_scale: Option<Flat<D>>,
    /// `[experts, width, hidden]`
    pub wi: Flat<D>,
    /// `[experts, hidden, width]`
    pub wo: Flat<D>,
    pub packs: Packs,
}

/// How tokens find experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    pub n_experts: usize,
    pub choice: Choice,
    /// Experts that a token meets on average; when tokens choose, the room that experts have for each of a token's choices.
    pub capacity_factor: f64,
    pub groups: Groups,
    /// Weight of the mean over tokens of `logsumexp(logits)^2`.
    pub z_weight: f32,
    /// Weight of `E * sum of f[e] P[e]`: the share of tokens whose first choice is `e`, times its mean probability.
    pub balance_weight: f32,
}

/// What a layer did with a call's tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingStats {
    /// Mean of `logsumexp(logits)^2`, not weighted.
    pub z_loss: f32,
    /// `E * sum of f[e] P[e]`, not weighted: 1 when balanced, E when one expert has everything.
    pub balance: f32,
    /// Share of tokens that no expert took.
    pub unrouted: f32,
    /// Mean probability of the pairs that were chosen.
    pub confidence: f32,
    /// Share of the chosen pairs by expert.
    pub usage: Vec<f32>,
}

/// Tokens behind the experts, and what is to be added to the objective.
pub struct Routed<D: Storage<f32>, T> {
    pub tokens: Tokens<D, T>,
    /// The weighted losses of the router. The tape is that of `tokens`.
    pub router_loss: Scalar<D>,
    pub stats: RoutingStats,
}

/// The stock composition: gathers, one expert after the other.
pub fn stock<D: Device<f32>, T: Tape<f32, D>>(
    x: Tokens<D, T>,
    layer: &Experts<D>,
    routing: &Routing,
) -> Result<Routed<D, T>, D::Err> {
    let shape @ (n, t, d) = *x.shape();
    let (rows, e) = (n * t, routing.n_experts);
    let n_hidden = layer.wi.shape().0 / (e * d);
    let (x, mut tape) = x.try_reshape_like(&(rows, d))?.split_tape();
    let dev = x.device().clone();
    let h = match &layer.norm {
        Some(scale) => layer_norm::stock(x.clone().put_tape(T::default()), &Norm { scale: scale.clone(), bias: None })?,
        None => x.clone().put_tape(T::default()),
    };
    let (h, of_h) = h.split_tape();
    let kernel = layer.router.retaped::<T>().try_reshape_like(&(d, e))?;
    let (logits, of_logits) = h.retaped::<T>().try_matmul(kernel)?.split_tape();
    let (p, of_p) = logits.retaped::<T>().try_softmax::<Axis<1>>()?.split_tape();
    for part in [of_h, of_logits, of_p] {
        tape = tape.merge(part);
    }
    let probs = p.as_vec();
    let assignment = assign(&probs, routing, (n, t));

    let z = logits.retaped::<T>().try_logsumexp::<(usize,), Axis<1>>()?.try_square()?.try_mean::<(), _>()?;
    let first = dev.try_tensor_from_vec(choose::first_choices(&probs, e), (e,))?;
    let mean = p.retaped::<T>().try_mean::<(usize,), Axis<0>>()?;
    let balance = mean.try_mul(first)?.try_sum::<(), _>()?.try_mul(e as f32)?;
    let (z, of_z) = z.split_tape();
    let (balance, of_balance) = balance.split_tape();
    let stats = stats(&assignment, &probs, z.as_vec()[0], balance.as_vec()[0], routing);
    let weighted_z = z.retaped::<T>().try_mul(routing.z_weight)?;
    let (router_loss, of_loss) =
        weighted_z.try_add(balance.retaped::<T>().try_mul(routing.balance_weight)?)?.split_tape();
    for part in [of_z, of_balance, of_loss] {
        tape = tape.merge(part);
    }

    let mut y = if layer.norm.is_some() { x } else { dev.try_zeros_like(&(rows, d))? };
    for (expert, tokens) in assignment.tokens.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
        let k = tokens.len();
        let of_expert = |kernels: &Flat<D>, n_in: usize, n_out: usize| {
            let kernels = kernels.retaped::<T>().try_reshape_like(&(e, n_in * n_out))?;
            kernels.try_select(dev.try_tensor_from_vec(vec![expert], ())?)?.try_reshape_like(&(n_in, n_out))
        };
        let idx = dev.try_tensor_from_vec(tokens.iter().map(|&token| token as usize).collect(), (k,))?;
        let hidden = h.retaped::<T>().try_gather(idx.clone())?.try_matmul(of_expert(&layer.wi, d, n_hidden)?)?;
        let out = hidden.try_fast_gelu()?.try_matmul(of_expert(&layer.wo, n_hidden, d)?)?;
        let gate =
            p.retaped::<T>().try_permute::<_, Axes2<1, 0>>()?.try_select(dev.try_tensor_from_vec(vec![expert], ())?)?;
        let gate = gate.try_gather(idx)?.try_broadcast_like::<_, Axis<1>>(&(k, d))?;
        // Back to the tokens' places; a token that was not taken reads the first row, times nothing.
        let (mut slots, mut taken) = (vec![0; rows], vec![0.0; rows]);
        for (slot, &token) in tokens.iter().enumerate() {
            (slots[token as usize], taken[token as usize]) = (slot, 1.0);
        }
        let slots = dev.try_tensor_from_vec(slots, (rows,))?;
        let taken = dev.try_tensor_from_vec(taken, (rows,))?.retaped::<T>();
        let placed = out.try_mul(gate)?.try_gather(slots)?;
        let placed = placed.try_mul(taken.try_broadcast_like::<_, Axis<1>>(&(rows, d))?)?;
        let (sum, of_sum) = placed.try_add(y)?.split_tape();
        (y, tape) = (sum, tape.merge(of_sum));
    }
    Ok(Routed { tokens: y.put_tape(tape).try_reshape_like(&shape)?, router_loss, stats })
}

fn stats(assignment: &Assignment, probs: &[f32], z_loss: f32, balance: f32, routing: &Routing) -> RoutingStats {
    let e = routing.n_experts;
    let n_pairs = assignment.tokens.iter().map(Vec::len).sum::<usize>().max(1) as f32;
    let mut taken = vec![false; probs.len() / e];
    let mut gates = 0.0f64;
    for (expert, tokens) in assignment.tokens.iter().enumerate() {
        for &token in tokens {
            taken[token as usize] = true;
            gates += f64::from(probs[token as usize * e + expert]);
        }
    }
    RoutingStats {
        z_loss,
        balance,
        unrouted: taken.iter().filter(|&&taken| !taken).count() as f32 / taken.len().max(1) as f32,
        confidence: gates as f32 / n_pairs,
        usage: assignment.tokens.iter().map(|tokens| tokens.len() as f32 / n_pairs).collect(),
    }
}
