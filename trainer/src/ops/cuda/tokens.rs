//! What is done to all tokens outside the encoder: positions on the way in, the mean on the way out.

use dfdx::prelude::*;

use super::buffer::Buf;
use super::context::{Context, address, args, gradient};
use super::mirror::values_of;
use crate::ops::{Flat, Mask, Norm, Positions, Rows, Tokens, pool, positions};

/// [`positions::stock`]; LayerNorm once per place of the grid, by stock ops.
pub(super) fn add_positions<T: Tape<f32, Cuda>>(
    context: &Context,
    x: Tokens<Cuda, T>,
    at: &Positions,
    tables: &[Flat<Cuda>],
    norm: &Norm<Cuda>,
) -> Result<Tokens<Cuda, T>, CudaError> {
    let (n, n_tokens, d) = *x.shape();
    let n_places = at.rows.len() / tables.len();
    let (of_places, of_norm) = positions::stock_places::<Cuda, T>(x.device(), at, tables, norm, d)?.split_tape();
    let (x, tape) = x.split_tape();
    let mut tape = tape.merge(of_norm);
    let (dev, x_ghost) = (x.device().clone(), x.ghost());
    let kept = at.kept.as_ref().map(|kept| context.upload(kept)).transpose()?;
    let listed = match &at.kept {
        Some(kept) if T::OWNS_TAPE => Some(rows_of_places(context, kept, n_places)?),
        Some(_) | None => None,
    };
    let values = values_of(context, x.try_contiguous()?)?;
    let rows = values_of(context, of_places.clone())?;
    let all = n * n_tokens * d;
    let mut out = Gradients::leaky();
    let y = address(out.get_or_alloc_mut(&x_ghost)?);
    // SAFETY: sizes are those of the tensors; kept places are within the grid, which the loader holds.
    unsafe {
        context.launch_over("add_into", all, args![address(&values), y, all as u64])?;
        context.launch_over("add_places", all, args![y, address(&rows), kept.as_ref(), all as u64, n_places, d])?;
    }
    drop(values);
    context.room(all)?;
    let y: Tokens<Cuda> = out.get(&x_ghost);
    if !T::OWNS_TAPE {
        return Ok(y.put_tape(tape));
    }
    let (y_ghost, rows_ghost) = (y.ghost(), of_places.ghost());
    tape.add_backward_op(move |grads| {
        let context = &*Context::of(&dev)?;
        let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        let (dx, d_rows) = (gradient!(grads, &x_ghost), gradient!(grads, &rows_ghost));
        let dy = address(&dy);
        // SAFETY: as above.
        unsafe {
            context.launch_over("add_into", all, args![dy, dx, all as u64])?;
            let grid = [n_places, 1, 1];
            match &listed {
                None => context.launch("sum_places", grid, 256, 0, args![dy, d_rows, n, n_places, d]),
                Some([rows, starts]) => context.launch("sum_listed", grid, 256, 0, args![dy, d_rows, rows, starts, d]),
            }
        }
    });
    Ok(y.put_tape(tape))
}

/// Rows of the batch by the place that they read, in order, and where each place's begin.
fn rows_of_places(context: &Context, kept: &[u32], n_places: usize) -> Result<[Buf; 2], CudaError> {
    let mut starts = vec![0_u32; n_places + 1];
    for &place in kept {
        starts[place as usize + 1] += 1;
    }
    for i in 0..n_places {
        starts[i + 1] += starts[i];
    }
    let mut next = starts.clone();
    let mut rows = vec![0_u32; kept.len()];
    for (row, &place) in kept.iter().enumerate() {
        let at = &mut next[place as usize];
        rows[*at as usize] = row as u32;
        *at += 1;
    }
    Ok([context.upload(&rows)?, context.upload(&starts)?])
}

/// [`pool::stock`].
pub(super) fn mean_pool<T: Tape<f32, Cuda>>(
    context: &Context,
    x: Tokens<Cuda, T>,
    mask: Option<&Mask>,
) -> Result<Rows<Cuda, T>, CudaError> {
    let (n, n_tokens, d) = *x.shape();
    let (x, mut tape) = x.split_tape();
    let (dev, x_ghost) = (x.device().clone(), x.ghost());
    let weights = context.upload(&pool::weights(n, n_tokens, mask))?;
    let values = values_of(context, x.try_contiguous()?)?;
    let shaped = dev.try_zeros_like(&(n, d))?;
    let mut out = Gradients::leaky();
    let y = address(out.get_or_alloc_mut(&shaped)?);
    // SAFETY: sizes are those of the tensors.
    unsafe { context.launch("pool_forward", [n, 1, 1], 256, 0, args![address(&values), &weights, y, n_tokens, d]) }?;
    let y: Rows<Cuda> = out.get(&shaped);
    if !T::OWNS_TAPE {
        return Ok(y.put_tape(tape));
    }
    let y_ghost = y.ghost();
    tape.add_backward_op(move |grads| {
        let context = &*Context::of(&dev)?;
        let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        let dx = gradient!(grads, &x_ghost);
        let all = n * n_tokens * d;
        // SAFETY: as above.
        unsafe { context.launch_over("pool_backward", all, args![address(&dy), &weights, dx, all as u64, n_tokens, d]) }
    });
    Ok(y.put_tape(tape))
}
