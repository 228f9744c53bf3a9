//! Soft experts: every slot of an expert is a mean of all tokens of an example, every token a mean of all slots.
//!
//! In: tokens, the experts' parameters. Out: tokens. Never: a token of another example, a token left out but padding, a choice without a gradient; a loss of
//! the router's own: here is nothing to keep even.
//!
//! Of an example's tokens `h = LN(x)` and the router's columns, one for each slot, both at unit length: `l = scale * (h / |h|) (Wr / |Wr|)`.
//! Slot `s` reads `sum over t of softmax_t(l)[t, s] h[t]`, its expert computes, and the layer is
//! `x[t] + sum over s of softmax_s(l)[t, s] gelu(slot[s] Wi) Wo`.
//! Source: Puigcerver et al. 2023, arXiv:2308.00951 (soft mixtures, section 2.3 for the lengths).

use dfdx::prelude::*;

use super::{Experts, Routed, Routing, RoutingStats};
use crate::ops::blocks::MASKED;
use crate::ops::{Backend, Mask, Norm, SMALL, Tokens};

/// The layer, from the device's ops; `n_slots` of each expert. What is padding enters no slot.
pub(in crate::ops) fn layer<D: Backend, T: Tape<f32, D>>(
    x: Tokens<D, T>,
    mask: Option<&Mask>,
    layer: &Experts<D>,
    routing: &Routing,
    n_slots: usize,
) -> Result<Routed<D, T>, D::Err> {
    let shape @ (n, t, d) = *x.shape();
    let (e, rows) = (routing.n_experts, n * t);
    let slots = e * n_slots;
    let n_hidden = layer.wi.shape().0 / (e * d);
    let (x, mut tape) = x.try_reshape_like(&(rows, d))?.split_tape();
    let dev = x.device().clone();
    let h = match &layer.norm {
        Some(scale) => D::layer_norm(x.retaped::<T>(), &Norm { scale: scale.clone(), bias: None })?,
        None => x.retaped::<T>(),
    };
    let (h, of_h) = h.split_tape();
    let columns = || layer.router.retaped::<T>().try_reshape_like(&(d, slots));
    let lengths = columns()?.try_square()?.try_sum::<(usize,), Axis<0>>()?.try_sqrt()?.try_add(SMALL)?;
    let mut columns = columns()?.try_div(lengths.try_broadcast_like::<_, Axis<0>>(&(d, slots))?)?;
    if let Some(scale) = &layer.router_scale {
        let scale = scale.retaped::<T>().try_reshape_like(&())?;
        columns = columns.try_mul(scale.try_broadcast_like::<_, Axes2<0, 1>>(&(d, slots))?)?;
    }
    let logits = D::l2_normalise(h.retaped::<T>())?.try_matmul(columns)?;
    let (logits, of_logits) = logits.try_reshape_like(&(n, t, slots))?.split_tape();
    tape = tape.merge(of_h).merge(of_logits);

    // Tokens into slots. A slot that no token may enter, of an example that is all padding, weighs all of them alike.
    let may = match mask.filter(|mask| mask.valid.contains(&false)) {
        Some(mask) => {
            let of_token = |&valid: &bool| std::iter::repeat_n(if valid { 0.0 } else { MASKED }, slots);
            let added = mask.valid.iter().flat_map(of_token);
            let added = dev.try_tensor_from_vec(added.collect(), (n, t, slots))?;
            logits.retaped::<T>().try_add(added)?
        }
        None => logits.retaped::<T>(),
    };
    let into = may.try_softmax::<Axis<1>>()?.try_permute::<_, Axes3<0, 2, 1>>()?;
    let mixed = into.try_matmul(h.retaped::<T>().try_reshape_like(&(n, t, d))?)?;
    let by_expert = mixed.try_reshape_like(&(n, e, n_slots * d))?.try_permute::<_, Axes3<1, 0, 2>>()?;
    let by_expert = by_expert.try_reshape_like(&(e, n * n_slots, d))?;
    let hidden = by_expert.try_matmul(layer.wi.retaped::<T>().try_reshape_like(&(e, d, n_hidden))?)?.try_fast_gelu()?;
    let out = hidden.try_matmul(layer.wo.retaped::<T>().try_reshape_like(&(e, n_hidden, d))?)?;
    let out = out.try_reshape_like(&(e, n, n_slots * d))?.try_permute::<_, Axes3<1, 0, 2>>()?;
    let (out, of_out) = out.try_reshape_like(&(n, slots, d))?.split_tape();
    tape = tape.merge(of_out);

    // Slots back into tokens.
    let (back, of_back) = logits.retaped::<T>().try_softmax::<Axis<2>>()?.split_tape();
    tape = tape.merge(of_back);
    let stats = stats(&back.as_vec(), e, n_slots);
    let y = back.retaped::<T>().try_matmul(out.retaped::<T>())?;
    let y = match layer.norm {
        Some(_) => y.try_add(x.retaped::<T>().try_reshape_like(&shape)?)?,
        None => y,
    };
    let (y, of_y) = y.split_tape();
    Ok(Routed { tokens: y.put_tape(tape.merge(of_y)), router_loss: dev.try_zeros()?, stats })
}

/// What can be said of a soft layer in the terms of a hard one: the weight that each expert's slots have in the tokens, and how much of a token
/// its greatest slot is. `back` is `[tokens, slots]`.
fn stats(back: &[f32], n_experts: usize, n_slots: usize) -> RoutingStats {
    let slots = n_experts * n_slots;
    let n = (back.len() / slots).max(1) as f32;
    let mut usage = vec![0.0; n_experts];
    let mut confidence = 0.0;
    for row in back.chunks_exact(slots) {
        for (usage, of_expert) in usage.iter_mut().zip(row.chunks_exact(n_slots)) {
            *usage += of_expert.iter().sum::<f32>() / n;
        }
        confidence += row.iter().fold(0.0, |most: f32, &p| most.max(p)) / n;
    }
    let greatest = usage.iter().fold(0.0, |most: f32, &share| most.max(share));
    RoutingStats { z_loss: 0.0, balance: n_experts as f32 * greatest, unrouted: 0.0, confidence, usage }
}
