//! Table look-ups: token embeddings, and learned positions that are added to tokens.
//!
//! In: tables, which rows. Out: rows. Never: a coordinate in floating point; rows are whole numbers from the start. Gradients
//! are scattered back in the order of the tokens, so they repeat to the last bit.

use dfdx::prelude::*;

use super::host::{self, values};
use super::layer_norm::{self, Norm};
use super::{Flat, Rows, Tokens, simd};

/// Which rows of the position tables a batch's tokens read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// `[places, tables]`: rows that each place of the grid reads.
    pub rows: Vec<u32>,
    /// `[batch, tokens]`: the place of each token; `None` if every example has all places in order.
    pub kept: Option<Vec<u32>>,
}

impl Positions {
    /// Row of table `axis` that each place reads.
    fn of_table(&self, axis: usize, n_tables: usize) -> Vec<u32> {
        self.rows.iter().skip(axis).step_by(n_tables).copied().collect()
    }

    /// Place of each token of the batch.
    fn places(&self, n_examples: usize, n_tables: usize) -> Vec<u32> {
        let all = || 0..(self.rows.len() / n_tables) as u32;
        self.kept.clone().unwrap_or_else(|| (0..n_examples).flat_map(|_| all()).collect())
    }
}

/// The stock composition of `x + LayerNorm(sum of the looked-up rows)`; tables are `[length, width]`.
pub fn stock<D: Device<f32>, T: Tape<f32, D>>(
    x: Tokens<D, T>,
    positions: &Positions,
    tables: &[Flat<D>],
    norm: &Norm<D>,
) -> Result<Tokens<D, T>, D::Err> {
    let shape @ (n, _, d) = *x.shape();
    let of_places = stock_places::<D, T>(x.device(), positions, tables, norm, d)?;
    let of_tokens = gather(of_places, &positions.places(n, tables.len()))?;
    x.try_add(of_tokens.try_reshape_like(&shape)?)
}

/// The stock composition of what is added at each place of the grid, `[places, width]`.
pub(super) fn stock_places<D: Device<f32>, T: Tape<f32, D>>(
    dev: &D,
    positions: &Positions,
    tables: &[Flat<D>],
    norm: &Norm<D>,
    width: usize,
) -> Result<Rows<D, T>, D::Err> {
    let n_places = positions.rows.len() / tables.len();
    let mut sum = dev.try_zeros_like(&(n_places, width))?.retaped::<T>();
    for (axis, table) in tables.iter().enumerate() {
        sum = sum.try_add(stock_lookup::<D, T>(table, width, &positions.of_table(axis, tables.len()))?)?;
    }
    layer_norm::stock(sum, norm)
}

/// The stock composition of a look-up in a table of `width` columns.
pub fn stock_lookup<D: Device<f32>, T: Tape<f32, D>>(
    table: &Flat<D>,
    width: usize,
    ids: &[u32],
) -> Result<Rows<D, T>, D::Err> {
    let n_rows = table.shape().0 / width;
    gather(table.retaped::<T>().try_reshape_like(&(n_rows, width))?, ids)
}

fn gather<D: Device<f32>, T: Tape<f32, D>>(from: Rows<D, T>, ids: &[u32]) -> Result<Rows<D, T>, D::Err> {
    let idx: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    let n = idx.len();
    let idx = from.device().try_tensor_from_vec(idx, (n,))?;
    from.try_gather(idx)
}

/// The fused form: LayerNorm once per place of the grid, one crossing.
pub(super) fn fused<T: Tape<f32, Cpu>>(
    x: Tokens<Cpu, T>,
    positions: &Positions,
    tables: &[Flat<Cpu>],
    norm: &Norm<Cpu>,
) -> Result<Tokens<Cpu, T>, CpuError> {
    let shape @ (n, _, d) = *x.shape();
    let (x, mut tape) = x.split_tape();
    let dev = x.device().clone();
    let n_places = positions.rows.len() / tables.len();
    let mut sum = vec![0.0; n_places * d];
    for (axis, table) in tables.iter().enumerate() {
        let table = values(table);
        for (to, row) in sum.chunks_exact_mut(d).zip(positions.of_table(axis, tables.len())) {
            simd::add(to, &table[row as usize * d..][..d]);
        }
    }
    let scale = values(&norm.scale);
    let bias = norm.bias.as_ref().map(values).unwrap_or_default();
    let mut of_places = vec![0.0; n_places * d];
    let mut stats = vec![[0.0; 2]; n_places];
    simd::layer_norm(&sum, &scale, &bias, &mut of_places, &mut stats);
    let places = positions.places(n, tables.len());
    let mut y = values(&x);
    for (y, &place) in y.chunks_exact_mut(d).zip(&places) {
        simd::add(y, &of_places[place as usize * d..][..d]);
    }
    let y = dev.try_tensor_from_vec(y, shape)?;
    if !T::OWNS_TAPE {
        return Ok(y.put_tape(tape));
    }
    let (x_ghost, y_ghost) = (x.ghost(), y.ghost());
    let (positions, tables, norm) = (positions.clone(), tables.to_vec(), norm.clone());
    tape.add_backward_op(move |grads| {
        let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
        let mut d_places = vec![0.0; n_places * d];
        for (dy, &place) in dy.chunks_exact(d).zip(&places) {
            simd::add(&mut d_places[place as usize * d..][..d], dy);
        }
        let mut d_sum = vec![0.0; n_places * d];
        let mut d_scale = vec![0.0; d];
        let mut d_bias = vec![0.0; bias.len()];
        simd::layer_norm_backward(&sum, &scale, &stats, &d_places, &mut d_sum, &mut d_scale, &mut d_bias);
        simd::add(grads.get_or_alloc_mut(&norm.scale)?, &d_scale);
        if let Some(bias) = &norm.bias {
            simd::add(grads.get_or_alloc_mut(bias)?, &d_bias);
        }
        for (axis, table) in tables.iter().enumerate() {
            scatter_add(grads.get_or_alloc_mut(table)?, &positions.of_table(axis, tables.len()), &d_sum, d);
        }
        pass_on(grads.get_or_alloc_mut(&x_ghost)?, &dy, d);
        Ok(())
    });
    Ok(y.put_tape(tape))
}

/// The fused form of [`stock_lookup`].
pub(super) fn fused_lookup<T: Tape<f32, Cpu>>(
    table: &Flat<Cpu>,
    width: usize,
    ids: &[u32],
) -> Result<Rows<Cpu, T>, CpuError> {
    let mut tape = T::default();
    let dev = table.device().clone();
    // The stock gather copies the rows that are looked up; taking the table to the host copies all.
    let y = stock_lookup::<_, NoneTape>(table, width, ids)?;
    if T::OWNS_TAPE {
        let (y_ghost, table, ids) = (y.ghost(), table.clone(), ids.to_vec());
        tape.add_backward_op(move |grads| {
            let dy = std::mem::replace(grads.get_or_alloc_mut(&y_ghost)?, dev.try_alloc_len(0)?);
            scatter_add(grads.get_or_alloc_mut(&table)?, &ids, &dy, width);
            Ok(())
        });
    }
    Ok(y.put_tape(tape))
}

/// `into[ids[i]] += from[i]`, in order.
fn scatter_add(into: &mut [f32], ids: &[u32], from: &[f32], width: usize) {
    for (from, &id) in from.chunks_exact(width).zip(ids) {
        simd::add(&mut into[id as usize * width..][..width], from);
    }
}

/// `into += from` on rows of `width`, in chunks.
fn pass_on(into: &mut [f32], from: &[f32], width: usize) {
    let chunks = host::chunk_sizes(into.len() / width, 1);
    let jobs = host::split_mut(into, &chunks, width).into_iter().zip(host::split(from, &chunks, width)).collect();
    host::run(jobs, |(into, from): (&mut [f32], &[f32])| simd::add(into, from));
}
