//! Softmax and sigmoid cross-entropy.
//!
//! In: logits and targets, `[batch, classes]`. Out: the mean loss. Never: labels; what targets are made of is the
//! objective's affair.

use dfdx::prelude::*;

use super::{Rows, Scalar, host, simd};

/// The stock composition: mean over the batch of `-sum(target log softmax(logits))`.
pub fn stock_softmax<D: Device<f32>, T: Tape<f32, D>>(
    logits: Rows<D, T>,
    targets: &[f32],
) -> Result<Scalar<D, T>, D::Err> {
    let shape = *logits.shape();
    let targets = logits.device().try_tensor_from_vec(targets.to_vec(), shape)?;
    let weighted = logits.try_log_softmax::<Axis<1>>()?.try_mul(targets)?;
    weighted.try_sum::<(), _>()?.try_mul(-1.0 / shape.0 as f32)
}

/// The stock composition: mean over batch and classes of the binary cross-entropy.
pub fn stock_sigmoid<D: Device<f32>, T: Tape<f32, D>>(
    logits: Rows<D, T>,
    targets: &[f32],
) -> Result<Scalar<D, T>, D::Err> {
    let shape = *logits.shape();
    let targets = logits.device().try_tensor_from_vec(targets.to_vec(), shape)?;
    logits.try_bce_with_logits(targets)?.try_mean::<(), _>()
}

/// The fused form.
pub(super) fn fused_softmax<T: Tape<f32, Cpu>>(
    logits: Rows<Cpu, T>,
    targets: &[f32],
) -> Result<Scalar<Cpu, T>, CpuError> {
    cross(logits, targets, softmax_row)
}

/// The fused form.
pub(super) fn fused_sigmoid<T: Tape<f32, Cpu>>(
    logits: Rows<Cpu, T>,
    targets: &[f32],
) -> Result<Scalar<Cpu, T>, CpuError> {
    cross(logits, targets, sigmoid_row)
}

/// One example's softmax cross-entropy; `to` gets its gradient.
pub fn softmax_row(logits: &[f32], targets: &[f32], to: &mut [f32]) -> f64 {
    let most = simd::max(logits);
    let all = simd::exp_minus(logits, most, to);
    let mass: f64 = targets.iter().map(|&t| f64::from(t)).sum();
    simd::scale(to, mass as f32 / all);
    simd::add_scaled(to, targets, -1.0);
    let lse = f64::from(most) + f64::from(all).ln();
    logits.iter().zip(targets).map(|(&x, &t)| f64::from(t) * (lse - f64::from(x))).sum()
}

/// One example's sigmoid cross-entropy, mean over classes; `to` gets its gradient.
pub fn sigmoid_row(logits: &[f32], targets: &[f32], to: &mut [f32]) -> f64 {
    let per = 1.0 / logits.len() as f64;
    let mut total = 0.0;
    for ((&x, &t), to) in logits.iter().zip(targets).zip(to) {
        let (x, t) = (f64::from(x), f64::from(t));
        total += x.max(0.0) - x * t + (-x.abs()).exp().ln_1p();
        *to = ((1.0 / (1.0 + (-x).exp()) - t) * per) as f32;
    }
    total * per
}

type Row = fn(&[f32], &[f32], &mut [f32]) -> f64;

fn cross<T: Tape<f32, Cpu>>(logits: Rows<Cpu, T>, targets: &[f32], row: Row) -> Result<Scalar<Cpu, T>, CpuError> {
    let (n, n_classes) = *logits.shape();
    let (logits, mut tape) = logits.split_tape();
    let dev = logits.device().clone();
    let values = host::values(&logits);
    let mut d_logits = vec![0.0; values.len()];
    let rows =
        values.chunks_exact(n_classes).zip(targets.chunks_exact(n_classes)).zip(d_logits.chunks_exact_mut(n_classes));
    let total: f64 = rows.map(|((x, t), to)| row(x, t, to)).sum();
    let loss = dev.try_tensor_from_vec(vec![(total / n as f64) as f32], ())?;
    let (x_ghost, loss_ghost) = (logits.ghost(), loss.ghost());
    tape.add_backward_op(move |grads| {
        let by = grads.get_or_alloc_mut(&loss_ghost)?[0] / n as f32;
        simd::add_scaled(grads.get_or_alloc_mut(&x_ghost)?, &d_logits, by);
        Ok(())
    });
    Ok(loss.put_tape(tape))
}
