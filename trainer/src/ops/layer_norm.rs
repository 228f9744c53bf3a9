//! LayerNorm over the last axis, two passes for the variance.
//!
//! In: rows, scale, bias or none. Out: rows. Never: a variance from a difference of squares.

use dfdx::prelude::*;

use super::{Flat, NORM_EPS, Rows, host, simd};

/// `(x - mean) / sqrt(var + 1e-6) * scale + bias`, population variance.
#[derive(Debug, Clone)]
pub struct Norm<D: Storage<f32>> {
    pub scale: Flat<D>,
    pub bias: Option<Flat<D>>,
}

/// The stock composition.
pub fn stock<D: Device<f32>, T: Tape<f32, D>>(x: Rows<D, T>, norm: &Norm<D>) -> Result<Rows<D, T>, D::Err> {
    let shape = *x.shape();
    let y = x.try_normalize::<Axis<1>>(f64::from(NORM_EPS))?;
    let y = y.try_mul(norm.scale.retaped::<T>().try_broadcast_like::<_, Axis<0>>(&shape)?)?;
    match &norm.bias {
        Some(bias) => y.try_add(bias.retaped::<T>().try_broadcast_like::<_, Axis<0>>(&shape)?),
        None => Ok(y),
    }
}

/// The fused form: one crossing, rows in chunks.
pub(super) fn fused<T: Tape<f32, Cpu>>(x: Rows<Cpu, T>, norm: &Norm<Cpu>) -> Result<Rows<Cpu, T>, CpuError> {
    let (n, d) = *x.shape();
    let (x, mut tape) = x.split_tape();
    let dev = x.device().clone();
    let values = host::values(&x);
    let scale = host::values(&norm.scale);
    let bias = norm.bias.as_ref().map(host::values).unwrap_or_default();
    let chunks = host::chunk_sizes(n, 1);
    let mut y = vec![0.0; n * d];
    let jobs = host::split(&values, &chunks, d).into_iter().zip(host::split_mut(&mut y, &chunks, d)).collect();
    let stats = host::run(jobs, |(x, y): (&[f32], &mut [f32])| {
        let mut stats = vec![[0.0; 2]; x.len() / d];
        simd::layer_norm(x, &scale, &bias, y, &mut stats);
        stats
    });
    let y = dev.try_tensor_from_vec(y, (n, d))?;
    if !T::OWNS_TAPE {
        return Ok(y.put_tape(tape));
    }
    let (x_ghost, y_ghost, norm) = (x.ghost(), y.ghost(), norm.clone());
    tape.add_backward_op(move |grads| {
        let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        let dx = grads.get_or_alloc_mut(&x_ghost)?;
        let jobs = host::split(&values, &chunks, d)
            .into_iter()
            .zip(host::split(&dy, &chunks, d))
            .zip(host::split_mut(dx, &chunks, d))
            .zip(&stats)
            .map(|(((x, dy), dx), stats)| (x, dy, dx, stats))
            .collect::<Vec<_>>();
        let partial = host::run(jobs, |(x, dy, dx, stats)| {
            let mut dscale = vec![0.0; d];
            let mut dbias = vec![0.0; if bias.is_empty() { 0 } else { d }];
            simd::layer_norm_backward(x, &scale, stats, dy, dx, &mut dscale, &mut dbias);
            (dscale, dbias)
        });
        for (dscale, dbias) in &partial {
            simd::add(grads.get_or_alloc_mut(&norm.scale)?, dscale);
            if let Some(bias) = &norm.bias {
                simd::add(grads.get_or_alloc_mut(bias)?, dbias);
            }
        }
        Ok(())
    });
    Ok(y.put_tape(tape))
}
