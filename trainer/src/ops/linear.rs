//! A dense layer, with tanh-GELU on its output or without.
//!
//! In: rows, kernel (in, out), bias. Out: rows. Never: a gradient for inputs that nobody can change.

use dfdx::prelude::*;

use super::product::{
    Dst, KernelGrad, Mat, MatMut, Packed, Way, add_kernel_grads, packed_product, product_of_few_rows,
};
use super::{Flat, Rows, host, simd};

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

/// Rows below which a kernel is not packed, and threads share its columns instead of the rows: what takes the time then is to read it.
const FEW_ROWS: usize = 64;

/// `x W`, or `x W^T`.
fn times(x: &[f32], layer: &Linear<Cpu>, way: Way) -> Vec<f32> {
    let n_in = layer.kernel.shape().0 / layer.n_out;
    let (from, to) = if way == Way::Forward { (n_in, layer.n_out) } else { (layer.n_out, n_in) };
    let n = x.len() / from;
    let mut y = vec![0.0; n * to];
    let kernel = way.turn(Mat::new(host::view(&layer.kernel), n_in, layer.n_out));
    if n < FEW_ROWS {
        product_of_few_rows(MatMut::new(&mut y, n, to), Mat::new(x, n, from), kernel);
        return y;
    }
    let kernel = Packed::new(kernel);
    let chunks = host::chunk_sizes(n, 1);
    let jobs = host::split(x, &chunks, from).into_iter().zip(host::split_mut(&mut y, &chunks, to)).collect();
    host::run(jobs, |(x, y): (&[f32], &mut [f32])| {
        let rows = x.len() / from;
        packed_product(MatMut::new(y, rows, to), Dst::Overwrite, Mat::new(x, rows, from), &kernel);
    });
    y
}

/// The fused form: one crossing.
pub(super) fn fused<T: Tape<f32, Cpu>>(x: Rows<Cpu, T>, layer: &Linear<Cpu>) -> Result<Rows<Cpu, T>, CpuError> {
    let (n, n_in) = *x.shape();
    let (n_out, gelu) = (layer.n_out, layer.gelu);
    let (x, mut tape) = x.split_tape();
    let dev = x.device().clone();
    let x_values = host::values(&x);
    let bias = layer.bias.as_ref().map(host::values).unwrap_or_default();
    let chunks = host::chunk_sizes(n, 1);
    let mut y = times(&x_values, layer, Way::Forward);
    // What GELU was applied to; only the backward pass reads it.
    let mut before = vec![0.0; if gelu { n * n_out } else { 0 }];
    let before_chunks = host::split_mut(&mut before, &chunks, if gelu { n_out } else { 0 });
    let jobs = host::split_mut(&mut y, &chunks, n_out).into_iter().zip(before_chunks).collect();
    host::run(jobs, |(y, before): (&mut [f32], &mut [f32])| {
        if !bias.is_empty() {
            simd::add_to_rows(y, &bias);
        }
        if gelu {
            before.copy_from_slice(y);
            simd::gelu(before, y);
        }
    });
    let y = dev.try_tensor_from_vec(y, (n, n_out))?;
    if !T::OWNS_TAPE {
        return Ok(y.put_tape(tape));
    }
    let (x_ghost, y_ghost, layer) = (x.ghost(), y.ghost(), layer.clone());
    tape.add_backward_op(move |grads| {
        let mut dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        let before_chunks = host::split_mut(&mut before, &chunks, if gelu { n_out } else { 0 });
        let jobs = host::split_mut(&mut dy, &chunks, n_out).into_iter().zip(before_chunks).collect();
        // `dy` becomes the gradient of what the product gave. The bias's gradient, by chunk.
        let of_bias = host::run(jobs, |(dy, before): (&mut [f32], &mut [f32])| {
            if gelu {
                let mut unused = vec![0.0; before.len()];
                simd::gelu_with_slope(before, &mut unused);
                simd::multiply(dy, before);
            }
            let mut db = vec![0.0; if layer.bias.is_some() { n_out } else { 0 }];
            if !db.is_empty() {
                simd::add_rows_into(&mut db, dy);
            }
            db
        });
        if layer.input_grad == InputGrad::Wanted {
            simd::add(grads.get_or_alloc_mut(&x_ghost)?, &times(&dy, &layer, Way::Back));
        }
        let sides = host::split(&x_values, &chunks, n_in).into_iter().zip(host::split(&dy, &chunks, n_out));
        let parts = sides.map(|(x, dy)| {
            let rows = x.len() / n_in;
            (Mat::new(x, rows, n_in), Mat::new(dy, rows, n_out))
        });
        let into = grads.get_or_alloc_mut(&layer.kernel)?;
        add_kernel_grads(vec![KernelGrad { into, n_out, parts: parts.collect() }]);
        if let Some(bias) = &layer.bias {
            let into = grads.get_or_alloc_mut(bias)?;
            of_bias.iter().for_each(|db| simd::add(into, db));
        }
        Ok(())
    });
    Ok(y.put_tape(tape))
}
