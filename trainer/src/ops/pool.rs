//! Mean over an example's tokens.
//!
//! In: tokens, a padding mask. Out: a row per example. Never: a padded token's value or gradient.

use dfdx::prelude::*;

use super::{Mask, Rows, SMALL, Tokens, host, simd};

/// The stock composition: the mean, or `sum(mask x) / (sum(mask) + 1e-6)`.
pub fn stock<D: Device<f32>, T: Tape<f32, D>>(x: Tokens<D, T>, mask: Option<&Mask>) -> Result<Rows<D, T>, D::Err> {
    let shape @ (n, t, d) = *x.shape();
    let weights = x.device().try_tensor_from_vec(weights(n, t, mask), (n, t))?;
    let weighted = x.try_mul(weights.retaped::<T>().try_broadcast_like::<_, Axis<2>>(&shape)?)?;
    weighted.try_sum::<(usize, usize), Axis<1>>().and_then(|y| y.try_reshape_like(&(n, d)))
}

/// What each token counts, `[batch, tokens]`.
pub(super) fn weights(n: usize, n_tokens: usize, mask: Option<&Mask>) -> Vec<f32> {
    let Some(mask) = mask else { return vec![1.0 / n_tokens as f32; n * n_tokens] };
    let mut weights = Vec::with_capacity(n * n_tokens);
    for valid in mask.valid.chunks_exact(n_tokens) {
        let per = 1.0 / (valid.iter().filter(|&&v| v).count() as f32 + SMALL);
        weights.extend(valid.iter().map(|&v| if v { per } else { 0.0 }));
    }
    weights
}

/// The fused form: one crossing.
pub(super) fn fused<T: Tape<f32, Cpu>>(x: Tokens<Cpu, T>, mask: Option<&Mask>) -> Result<Rows<Cpu, T>, CpuError> {
    let (n, n_tokens, d) = *x.shape();
    let (x, mut tape) = x.split_tape();
    let dev = x.device().clone();
    let weights = weights(n, n_tokens, mask);
    let values = host::values(&x);
    let mut y = vec![0.0; n * d];
    for ((y, x), weights) in y.chunks_exact_mut(d).zip(values.chunks_exact(n_tokens * d)).zip(weights.chunks(n_tokens))
    {
        for (x, &weight) in x.chunks_exact(d).zip(weights) {
            simd::add_scaled(y, x, weight);
        }
    }
    let y = dev.try_tensor_from_vec(y, (n, d))?;
    if !T::OWNS_TAPE {
        return Ok(y.put_tape(tape));
    }
    let (x_ghost, y_ghost) = (x.ghost(), y.ghost());
    tape.add_backward_op(move |grads| {
        let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        let dx = grads.get_or_alloc_mut(&x_ghost)?;
        for ((dy, dx), weights) in
            dy.chunks_exact(d).zip(dx.chunks_exact_mut(n_tokens * d)).zip(weights.chunks(n_tokens))
        {
            for (dx, &weight) in dx.chunks_exact_mut(d).zip(weights) {
                simd::add_scaled(dx, dy, weight);
            }
        }
        Ok(())
    });
    Ok(y.put_tape(tape))
}
