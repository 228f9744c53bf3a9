//! The arithmetic of one AdamW update, on either device.
//!
//! In: parameters, gradients, moments, the numbers of the update. Out: all of them moved. Never: a rate or a schedule.

use dfdx::prelude::*;

use super::{Flat, host, simd};
use crate::optim::AdamWStep;

/// One parameter's update from stock ops; moments are tensors.
#[cfg(test)]
pub(super) fn stock<D: Device<f32>>(
    p: &mut Flat<D>,
    grads: &mut Gradients<f32, D>,
    mu: &mut Flat<D>,
    nu: &mut Flat<D>,
    step: &AdamWStep,
) -> Result<(), D::Err> {
    grads.try_alloc_for(p)?;
    let g = grads.get(p).try_mul(step.grad_scale)?;
    *mu = mu.clone().try_mul(step.b1)?.try_add(g.clone().try_mul(step.rest.0)?)?;
    *nu = nu.clone().try_mul(step.b2)?.try_add(g.try_square()?.try_mul(step.rest.1)?)?;
    let m = mu.clone().try_div(step.correction.0)?;
    let v = nu.clone().try_div(step.correction.1)?;
    let move_by = m.try_div(v.try_sqrt()?.try_add(step.eps)?)?.try_add(p.clone().try_mul(step.weight_decay)?)?;
    // `axpy` writes in place: the tensor keeps the id that its gradients are found by.
    p.try_axpy(1.0, &move_by, -step.lr)
}

/// All parameters in one pass over host slices, parameters in parallel.
pub(super) fn fused(
    parameters: Vec<&mut Flat<Cpu>>,
    grads: &mut Gradients<f32, Cpu>,
    mu: &mut [Vec<f32>],
    nu: &mut [Vec<f32>],
    decays: &[bool],
    step: &AdamWStep,
) -> Result<(), CpuError> {
    let mut jobs = Vec::with_capacity(parameters.len());
    for ((p, (mu, nu)), &decays) in parameters.into_iter().zip(mu.iter_mut().zip(nu)).zip(decays) {
        let empty = p.device().try_alloc_len(0)?;
        let g = std::mem::replace(grads.get_or_alloc_mut(p)?, empty);
        let weight_decay = if decays { step.weight_decay } else { 0.0 };
        jobs.push((p, g, mu, nu, AdamWStep { weight_decay, ..*step }));
    }
    host::run_lanes(jobs, |(p, g, mu, nu, step)| {
        let mut values = host::values(p);
        simd::adamw(&mut values, &g, mu, nu, &step);
        p.copy_from(&values);
    });
    Ok(())
}

/// Sums of squares of the gradients, f64, parameters in parallel.
pub(super) fn squares(parameters: &[&mut Flat<Cpu>], grads: &mut Gradients<f32, Cpu>) -> Result<Vec<f64>, CpuError> {
    let mut sums = Vec::with_capacity(parameters.len());
    for p in parameters {
        let g: &[f32] = grads.get_or_alloc_mut(&**p)?;
        sums.push(simd::sum_of_squares(g));
    }
    Ok(sums)
}
