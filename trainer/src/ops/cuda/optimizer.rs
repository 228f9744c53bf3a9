//! The update on the device: dfdx's Adam over gradients and moments that never leave it.

use dfdx::prelude::*;
use dfdx::tensor_ops::{AdamConfig, WeightDecay};

use super::context::{Context, Values, address, args, gradient};
use super::mirror::values_of;
use crate::ops::Flat;
use crate::optim::AdamWStep;

/// Blocks of a parameter's sum of squares.
const BLOCKS: usize = 528;

/// Sums of squares by parameter; one wait for all of them.
pub(super) fn squares(
    context: &Context,
    parameters: &[&mut Flat<Cuda>],
    grads: &mut Gradients<f32, Cuda>,
) -> Result<Vec<f64>, CudaError> {
    let partial = context.alloc(parameters.len() * BLOCKS, 8)?;
    for (i, p) in parameters.iter().enumerate() {
        let (n, g) = (p.shape().0, gradient!(grads, &**p));
        // SAFETY: each parameter has its part of `partial`.
        unsafe { context.launch("squares", [BLOCKS, 1, 1], 256, 0, args![g, partial.at(i * BLOCKS * 8), n as u64]) }?;
    }
    let partial: Vec<f64> = partial.read(parameters.len() * BLOCKS)?;
    Ok(partial.chunks_exact(BLOCKS).map(|of_parameter| of_parameter.iter().sum()).collect())
}

/// One AdamW update of all parameters, and of their mirrors.
pub(super) fn adamw(
    context: &Context,
    parameters: Vec<&mut Flat<Cuda>>,
    grads: &mut Gradients<f32, Cuda>,
    (mu, nu): (&mut [Values], &mut [Values]),
    decays: &[bool],
    step: &AdamWStep,
) -> Result<(), CudaError> {
    let mut mirrors = context.mirrors();
    for ((p, (mu, nu)), &decays) in parameters.into_iter().zip(mu.iter_mut().zip(nu)).zip(decays) {
        let n = p.shape().0;
        if step.grad_scale < 1.0 {
            let g = gradient!(grads, &*p);
            // SAFETY: a gradient has its parameter's length.
            unsafe { context.launch_over("scale", n, args![g, step.grad_scale, n as u64]) }?;
        }
        let config = AdamConfig {
            lr: f64::from(step.lr),
            betas: [f64::from(step.b1), f64::from(step.b2)],
            eps: f64::from(step.eps),
            weight_decay: decays.then(|| WeightDecay::Decoupled(f64::from(step.weight_decay))),
        };
        config.try_update(step.t, p, mu, nu, grads.get_or_alloc_mut(&*p)?)?;
        mirrors.refresh(context, p)?;
    }
    Ok(())
}

/// `ema = decay * ema + (1 - decay) * parameter`.
pub(super) fn average(context: &Context, p: &Flat<Cuda>, ema: &mut Values, decay: f32) -> Result<(), CudaError> {
    let n = p.shape().0;
    let values = values_of(context, p.clone())?;
    // SAFETY: both hold the parameter's values.
    unsafe { context.launch_over("average", n, args![address(&values), address(ema), decay, n as u64]) }
}
