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
    // Large ones first, so that none is left to one thread at the end.
    jobs.sort_by_key(|(_, g, ..)| std::cmp::Reverse(g.len()));
    host::run(jobs, |(p, g, mu, nu, step)| simd::adamw(host::view_mut(p), &g, mu, nu, &step));
    Ok(())
}

/// Sums of squares of the gradients, f64, parameters in parallel.
pub(super) fn squares(parameters: &[&mut Flat<Cpu>], grads: &mut Gradients<f32, Cpu>) -> Result<Vec<f64>, CpuError> {
    let mut taken = Vec::with_capacity(parameters.len());
    for p in parameters {
        let empty = p.device().try_alloc_len(0)?;
        taken.push(std::mem::replace(grads.get_or_alloc_mut(&**p)?, empty));
    }
    let sums = host::run(taken.iter().collect(), |g| simd::sum_of_squares(g));
    for (p, g) in parameters.iter().zip(taken) {
        *grads.get_or_alloc_mut(&**p)? = g;
    }
    Ok(sums)
}
