//! A dense layer in bf16, on rows or on pictures that are still bytes.

use dfdx::prelude::*;

use super::buffer::Buf;
use super::context::{Context, address, args, gradient};
use super::gemm::{Operand, Product};
use super::mirror::values_of;
use crate::ops::{InputGrad, Linear, Rows, Tubes};

/// Whether tensor cores can have it: rows of 16 bytes.
pub(super) fn fits(n_in: usize, n_out: usize) -> bool {
    n_in.is_multiple_of(8) && n_out.is_multiple_of(8)
}

/// [`crate::ops::linear::stock`], in bf16 with sums in f32.
pub(super) fn fused<T: Tape<f32, Cuda>>(
    context: &Context,
    x: Rows<Cuda, T>,
    layer: &Linear<Cuda>,
) -> Result<Rows<Cuda, T>, CudaError> {
    let (n, n_in) = *x.shape();
    let (x, tape) = x.split_tape();
    let dev = x.device().clone();
    let x_ghost = (layer.input_grad == InputGrad::Wanted).then(|| x.ghost());
    let values = values_of(context, x.try_contiguous()?)?;
    let half = context.alloc(n * n_in, 2)?;
    // SAFETY: both hold `n * n_in` values.
    unsafe {
        context.launch_over("to_bf16", (n * n_in).div_ceil(4), args![address(&values), &half, (n * n_in) as u64])
    }?;
    drop(values);
    apply(context, &dev, half, (n, n_in), layer, tape, move |grads| match &x_ghost {
        Some(ghost) => Ok(Some(gradient!(grads, ghost))),
        None => Ok(None),
    })
}

/// [`fused`] on the tubes of clips; their gradient is nobody's.
pub(super) fn of_tubes<T: Tape<f32, Cuda>>(
    context: &Context,
    dev: &Cuda,
    tubes: &Tubes<'_>,
    layer: &Linear<Cuda>,
) -> Result<Rows<Cuda, T>, CudaError> {
    let [dt, dh, dw] = tubes.tube;
    let [frames, height, width] = tubes.clip;
    let (rows, n_values) = (tubes.n * tubes.n_tokens, dt * dh * dw * 3);
    let pixels = context.upload(tubes.pixels)?;
    let kept = tubes.kept.map(|kept| context.upload(kept)).transpose()?;
    let half = context.alloc(rows * n_values, 2)?;
    // SAFETY: the caller has checked that clips, grid and kept places agree; see `Tubes`.
    unsafe {
        let sizes = args![&pixels, kept.as_ref(), &half, rows, tubes.n_tokens, frames, height, width, dt, dh, dw];
        context.launch("tubes", [rows, 1, 1], 256, 0, sizes)
    }?;
    apply(context, dev, half, (rows, n_values), layer, T::default(), |_| Ok(None))
}

/// The product and its way back; `slope_of_x` gives the address that the input's gradient is added to.
fn apply<T: Tape<f32, Cuda>>(
    context: &Context,
    dev: &Cuda,
    x: Buf,
    (n, n_in): (usize, usize),
    layer: &Linear<Cuda>,
    mut tape: T,
    slope_of_x: impl FnOnce(&mut Gradients<f32, Cuda>) -> Result<Option<u64>, CudaError> + 'static,
) -> Result<Rows<Cuda, T>, CudaError> {
    let (n_out, gelu) = (layer.n_out, layer.gelu);
    let kernel = context.mirrors().bf16(context, &layer.kernel)?;
    let bias = layer.bias.as_ref().map(|bias| context.mirrors().f32(context, bias)).transpose()?;
    let before = if gelu { Some(context.alloc(n * n_out, 4)?) } else { None };
    let shaped = dev.try_zeros_like(&(n, n_out))?;
    let mut out = Gradients::leaky();
    let y = address(out.get_or_alloc_mut(&shaped)?);
    // SAFETY: sizes are those of the shapes.
    unsafe {
        let product = Product::new([n, n_in, n_out], Operand::new(x.ptr(), n_in), Operand::new(kernel.ptr(), n_out), y);
        context.product(&product.wide())?;
        if bias.is_some() || gelu {
            let all = n * n_out;
            context.launch_over("add_bias", all, args![y, bias.unwrap_or(0), before.as_ref(), all as u64, n_out])?;
        }
    }
    context.room(n * n_out)?;
    let y = out.get(&shaped);
    drop(out);
    if !T::OWNS_TAPE {
        return Ok(y.put_tape(tape));
    }
    let (y_ghost, layer, dev) = (y.ghost(), layer.clone(), dev.clone());
    tape.add_backward_op(move |grads| {
        let context = Context::of(&dev)?;
        let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        let d16 = context.alloc(n * n_out, 2)?;
        let d_kernel = gradient!(grads, &layer.kernel);
        // SAFETY: as above.
        unsafe {
            let all = n * n_out;
            context.launch_over("through_gelu", all, args![address(&dy), before.as_ref(), &d16, all as u64])?;
            let dy = Operand::new(d16.ptr(), n_out);
            let x = Operand::new(x.ptr(), n_in).t();
            context.product(&Product::new([n_in, n, n_out], x, dy, d_kernel).added())?;
            if let Some(bias) = &layer.bias {
                let d_bias = gradient!(grads, bias);
                add_columns(&context, d16.ptr(), d_bias, n, n_out)?;
            }
            if let Some(dx) = slope_of_x(grads)? {
                let kernel = Operand::new(kernel.ptr(), n_out).t();
                context.product(&Product::new([n, n_out, n_in], dy, kernel, dx).added())?;
            }
        }
        Ok(())
    });
    Ok(y.put_tape(tape))
}

/// Sums of the columns of bf16 rows, added to what is at `to`.
///
/// # Safety
/// The addresses hold `rows * width` and `width` values.
unsafe fn add_columns(context: &Context, from: u64, to: u64, rows: usize, width: usize) -> Result<(), CudaError> {
    let blocks = rows.clamp(1, 264);
    let partial = context.alloc(blocks * width, 4)?;
    // SAFETY: the caller's promise.
    unsafe {
        context.launch("column_sums", [blocks, 1, 1], 256, 0, args![from, &partial, rows, width])?;
        add_partials(context, &partial, to, blocks, width, (0, width))
    }
}

/// Adds the blocks' partial sums of `width` columns, of which `columns` (first, number) are wanted.
///
/// # Safety
/// `to` holds as many values as columns are wanted.
pub(super) unsafe fn add_partials(
    context: &Context,
    partial: &Buf,
    to: u64,
    blocks: usize,
    stride: usize,
    (first, width): (usize, usize),
) -> Result<(), CudaError> {
    let grid = [width.div_ceil(32), 1, 1];
    // SAFETY: the caller's promise.
    unsafe { context.launch("add_partials", grid, 256, 0, args![partial.at(first * 4), to, blocks, stride, width]) }
}
