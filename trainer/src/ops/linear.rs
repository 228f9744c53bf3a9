//! A dense layer, with tanh-GELU on its output or without.
//!
//! In: rows, kernel (in, out), bias. Out: rows. Never: a gradient for inputs that nobody can change.

use dfdx::prelude::*;

use super::host::{self, Dst, KernelGrad, Mat, MatMut, product};
use super::{Flat, Rows, simd};

/// Whether anything upstream wants the gradient of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputGrad {
    Wanted,
    /// The input is data: its gradient is not computed.
    Unwanted,
}

/// `x W + b`, then GELU if `gelu`.
#[derive(Debug, Clone)]
pub struct Linear<D: Storage<f32>> {
    /// (in, out)
    pub kernel: Flat<D>,
    /// (out)
    pub bias: Option<Flat<D>>,
    /// Width of the output.
    pub n_out: usize,
    pub gelu: bool,
    pub input_grad: InputGrad,
}

/// The stock composition.
pub fn stock<D: Device<f32>, T: Tape<f32, D>>(x: Rows<D, T>, layer: &Linear<D>) -> Result<Rows<D, T>, D::Err> {
    let (n, n_in) = *x.shape();
    let kernel = layer.kernel.retaped::<T>().try_reshape_like(&(n_in, layer.n_out))?;
    let mut y = x.try_matmul(kernel)?;
    if let Some(bias) = &layer.bias {
        y = y.try_add(bias.retaped::<T>().try_broadcast_like::<_, Axis<0>>(&(n, layer.n_out))?)?;
    }
    if layer.gelu { y.try_fast_gelu() } else { Ok(y) }
}

/// The fused form: one crossing, rows in chunks.
pub(super) fn fused<T: Tape<f32, Cpu>>(x: Rows<Cpu, T>, layer: &Linear<Cpu>) -> Result<Rows<Cpu, T>, CpuError> {
    let (n, n_in) = *x.shape();
    let (n_out, gelu) = (layer.n_out, layer.gelu);
    let (x, mut tape) = x.split_tape();
    let dev = x.device().clone();
    let x_values = host::values(&x);
    let kernel = host::values(&layer.kernel);
    let bias = layer.bias.as_ref().map(host::values).unwrap_or_default();
    let chunks = host::chunk_sizes(n, 1);
    let mut y = vec![0.0; n * n_out];
    // What GELU was applied to; only the backward pass reads it.
    let mut before = if gelu { vec![0.0; n * n_out] } else { Vec::new() };
    let before_chunks =
        if gelu { host::split_mut(&mut before, &chunks, n_out) } else { chunks.iter().map(|_| &mut [][..]).collect() };
    let jobs = chunks
        .iter()
        .zip(host::split(&x_values, &chunks, n_in))
        .zip(host::split_mut(&mut y, &chunks, n_out))
        .zip(before_chunks)
        .map(|(((&rows, x), y), before)| (rows, x, y, before))
        .collect();
    host::run(jobs, |(rows, x, y, before): (usize, &[f32], &mut [f32], &mut [f32])| {
        let (x, w) = (Mat::new(x, rows, n_in), Mat::new(&kernel, n_in, n_out));
        let to: &mut [f32] = if gelu { before } else { y };
        product(MatMut::new(to, rows, n_out), Dst::Overwrite, 1.0, x, w);
        if !bias.is_empty() {
            simd::add_to_rows(to, &bias);
        }
        if gelu {
            simd::gelu(before, y);
        }
    });
    let y = dev.try_tensor_from_vec(y, (n, n_out))?;
    if !T::OWNS_TAPE {
        return Ok(y.put_tape(tape));
    }
    let (x_ghost, y_ghost, layer) = (x.ghost(), y.ghost(), layer.clone());
    tape.add_backward_op(move |grads| {
        let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        let want_dx = layer.input_grad == InputGrad::Wanted;
        let mut dx = if want_dx { vec![0.0; n * n_in] } else { Vec::new() };
        let dx_chunks = if want_dx {
            host::split_mut(&mut dx, &chunks, n_in)
        } else {
            chunks.iter().map(|_| &mut [][..]).collect()
        };
        let before_chunks =
            if gelu { host::split(&before, &chunks, n_out) } else { chunks.iter().map(|_| &[][..]).collect() };
        let jobs: Vec<_> = chunks
            .iter()
            .zip(host::split(&dy, &chunks, n_out))
            .zip(dx_chunks)
            .zip(before_chunks)
            .map(|(((&rows, dy), dx), before)| (rows, dy, dx, before))
            .collect();
        // What `W` gave, and the bias's gradient, by chunk.
        let through = host::run(jobs, |(rows, dy, dx, before): (usize, &[f32], &mut [f32], &[f32])| {
            let mut slope = Vec::new();
            if gelu {
                let mut unused = vec![0.0; before.len()];
                slope = before.to_vec();
                simd::gelu_with_slope(&mut slope, &mut unused);
                simd::multiply(&mut slope, dy);
            }
            let dy = if gelu { &slope } else { dy };
            if want_dx {
                let (dy, w) = (Mat::new(dy, rows, n_out), Mat::new(&kernel, n_in, n_out));
                product(MatMut::new(dx, rows, n_in), Dst::Overwrite, 1.0, dy, w.t());
            }
            let mut db = vec![0.0; if layer.bias.is_some() { n_out } else { 0 }];
            if !db.is_empty() {
                simd::add_rows_into(&mut db, dy);
            }
            (slope, db)
        });
        if want_dx {
            simd::add(grads.get_or_alloc_mut(&x_ghost)?, &dx);
        }
        let sides = host::split(&x_values, &chunks, n_in).into_iter().zip(host::split(&dy, &chunks, n_out));
        let parts = sides.zip(&through).map(|((x, dy), (slope, _))| {
            let (rows, dy) = (x.len() / n_in, if gelu { slope } else { dy });
            (Mat::new(x, rows, n_in), Mat::new(dy, rows, n_out))
        });
        let into = grads.get_or_alloc_mut(&layer.kernel)?;
        host::add_kernel_grads(vec![KernelGrad { into, n_out, parts: parts.collect() }]);
        if let Some(bias) = &layer.bias {
            let into = grads.get_or_alloc_mut(bias)?;
            through.iter().for_each(|(_, db)| simd::add(into, db));
        }
        Ok(())
    });
    Ok(y.put_tape(tape))
}
