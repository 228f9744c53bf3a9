//! A dense layer, with tanh-GELU on its output or without.
//!
//! In: rows, kernel (in, out), bias. Out: rows. Never: a gradient for inputs that nobody can change.

use dfdx::prelude::*;

use super::host::{self, Dst, Mat, MatMut, product};
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

/// The fused form: one crossing, rows in lanes.
pub(super) fn fused<T: Tape<f32, Cpu>>(x: Rows<Cpu, T>, layer: &Linear<Cpu>) -> Result<Rows<Cpu, T>, CpuError> {
    let (n, n_in) = *x.shape();
    let (n_out, gelu) = (layer.n_out, layer.gelu);
    let (x, mut tape) = x.split_tape();
    let dev = x.device().clone();
    let x_values = host::values(&x);
    let kernel = host::values(&layer.kernel);
    let bias = layer.bias.as_ref().map(host::values).unwrap_or_default();
    let lanes = host::lane_sizes(n);
    let mut y = vec![0.0; n * n_out];
    // What GELU was applied to; only the backward pass reads it.
    let mut before = if gelu { vec![0.0; n * n_out] } else { Vec::new() };
    let before_lanes =
        if gelu { host::split_mut(&mut before, &lanes, n_out) } else { lanes.iter().map(|_| &mut [][..]).collect() };
    let jobs = lanes
        .iter()
        .zip(host::split(&x_values, &lanes, n_in))
        .zip(host::split_mut(&mut y, &lanes, n_out))
        .zip(before_lanes)
        .map(|(((&rows, x), y), before)| (rows, x, y, before))
        .collect();
    host::run_lanes(jobs, |(rows, x, y, before): (usize, &[f32], &mut [f32], &mut [f32])| {
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
        let dx_lanes =
            if want_dx { host::split_mut(&mut dx, &lanes, n_in) } else { lanes.iter().map(|_| &mut [][..]).collect() };
        let before_lanes =
            if gelu { host::split(&before, &lanes, n_out) } else { lanes.iter().map(|_| &[][..]).collect() };
        let jobs: Vec<_> = lanes
            .iter()
            .zip(host::split(&x_values, &lanes, n_in))
            .zip(host::split(&dy, &lanes, n_out))
            .zip(dx_lanes)
            .zip(before_lanes)
            .map(|((((&rows, x), dy), dx), before)| (rows, x, dy, dx, before))
            .collect();
        let partial =
            host::run_lanes(jobs, |(rows, x, dy, dx, before): (usize, &[f32], &[f32], &mut [f32], &[f32])| {
                let mut through = Vec::new();
                if gelu {
                    let mut unused = vec![0.0; before.len()];
                    through = before.to_vec();
                    simd::gelu_with_slope(&mut through, &mut unused);
                    simd::multiply(&mut through, dy);
                }
                let dy = if gelu { &through } else { dy };
                let mut dw = vec![0.0; n_in * n_out];
                let dy_rows = Mat::new(dy, rows, n_out);
                product(MatMut::new(&mut dw, n_in, n_out), Dst::Overwrite, 1.0, Mat::new(x, rows, n_in).t(), dy_rows);
                let mut db = vec![0.0; n_out];
                simd::add_rows_into(&mut db, dy);
                if want_dx {
                    product(
                        MatMut::new(dx, rows, n_in),
                        Dst::Overwrite,
                        1.0,
                        dy_rows,
                        Mat::new(&kernel, n_in, n_out).t(),
                    );
                }
                (dw, db)
            });
        if want_dx {
            simd::add(grads.get_or_alloc_mut(&x_ghost)?, &dx);
        }
        for (dw, db) in &partial {
            simd::add(grads.get_or_alloc_mut(&layer.kernel)?, dw);
            if let Some(bias) = &layer.bias {
                simd::add(grads.get_or_alloc_mut(bias)?, db);
            }
        }
        Ok(())
    });
    Ok(y.put_tape(tape))
}
