//! L2 normalisation of rows.
//!
//! In: rows. Out: rows of length one, or shorter where the row is about as short as epsilon. Never: a division by zero.

use dfdx::prelude::*;

use super::{Rows, SMALL, host, simd};

/// The stock composition: `x / (|x| + 1e-6)`. Its gradient of an all-zero row is not a number; the fused form's is finite.
pub fn stock<D: Device<f32>, T: Tape<f32, D>>(x: Rows<D, T>) -> Result<Rows<D, T>, D::Err> {
    let shape = *x.shape();
    let squares = x.with_empty_tape().try_square()?.try_sum::<(usize,), Axis<1>>()?;
    let lengths = squares.try_sqrt()?.try_add(SMALL)?;
    x.try_div(lengths.try_broadcast_like::<_, Axis<1>>(&shape)?)
}

/// Normalised rows `width` wide, and the norm of each before.
pub(super) fn forward(x: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let norms: Vec<f32> = x.chunks_exact(width).map(|row| simd::sum_of_squares(row).sqrt() as f32).collect();
    let mut y = x.to_vec();
    for (row, norm) in y.chunks_exact_mut(width).zip(&norms) {
        simd::scale(row, 1.0 / (norm + SMALL));
    }
    (y, norms)
}

/// `dx +=` the gradient of the input, from the input, its norms and the gradient of the output.
pub(super) fn backward(x: &[f32], norms: &[f32], dy: &[f32], dx: &mut [f32], width: usize) {
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)).zip(norms);
    for (((x, dy), dx), &norm) in rows {
        let per = 1.0 / (norm + SMALL);
        simd::add_scaled(dx, dy, per);
        if norm > 0.0 {
            let along = simd::dot(x, dy) / norm;
            simd::add_scaled(dx, x, -along * per * per);
        }
    }
}

/// The fused form: one crossing.
pub(super) fn fused<T: Tape<f32, Cpu>>(x: Rows<Cpu, T>) -> Result<Rows<Cpu, T>, CpuError> {
    let (n, width) = *x.shape();
    let (x, mut tape) = x.split_tape();
    let dev = x.device().clone();
    let values = host::values(&x);
    let (y, norms) = forward(&values, width);
    let y = dev.try_tensor_from_vec(y, (n, width))?;
    let (x_ghost, y_ghost) = (x.ghost(), y.ghost());
    tape.add_backward_op(move |grads| {
        let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        backward(&values, &norms, &dy, grads.get_or_alloc_mut(&x_ghost)?, width);
        Ok(())
    });
    Ok(y.put_tape(tape))
}
