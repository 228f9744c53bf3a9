//! The contrastive objective over all pairs of a batch's streams.
//!
//! In: common-space vectors per direction, temperatures. Out: the mean pair loss. Never: an unequal weight of pairs: the
//! release's are all one.

use dfdx::prelude::{HasShape, PutTape, ReshapeTo, SplitTape, Tape, TryAdd, TryMul};

use crate::model::ModelError;
use crate::ops::{Backend, Flat, Rows, Scalar, TemperatureForm};

/// One pair of streams; each example has as many instances as any other of its stream (Miech et al. 2020, arXiv:1912.06430).
pub struct Pair<D: Backend, T: Tape<f32, D>> {
    /// The first stream's vectors for the second, not normalised: `[n * instances, width]`.
    pub u: Rows<D, T>,
    pub v: Rows<D, T>,
    /// The pair's raw temperature.
    pub temperature: Flat<D>,
    pub form: TemperatureForm,
}

/// `sum of the pair losses / number of pairs`, of `n` examples; `tape` is what led to the vectors' common past.
///
/// # Errors
/// [`ModelError::Device`].
pub fn mean_over_pairs<D: Backend, T: Tape<f32, D>>(
    pairs: Vec<Pair<D, T>>,
    n: usize,
    mut tape: T,
) -> Result<Scalar<D, T>, ModelError> {
    let device = |e: D::Err| ModelError::Device(e.to_string());
    let n_pairs = pairs.len();
    let mut total: Option<Scalar<D>> = None;
    for Pair { u, v, temperature, form } in pairs {
        let bags = |rows: Rows<D, T>| {
            let (n_rows, width) = *rows.shape();
            if n_rows == 0 || n_rows % n.max(1) != 0 {
                return Err(ModelError::Values { what: "vectors of a stream", found: n_rows, wanted: n });
            }
            rows.try_reshape_like(&(n, n_rows / n, width)).map_err(device)
        };
        let (u, v) = (bags(u)?, bags(v)?);
        let (loss, of_pair) = D::nce(u, v, &temperature, form).map_err(device)?.split_tape();
        tape = tape.merge(of_pair);
        let (sum, of_sum) = match total {
            Some(total) => loss.put_tape(T::default()).try_add(total).map_err(device)?.split_tape(),
            None => (loss, T::default()),
        };
        tape = tape.merge(of_sum);
        total = Some(sum);
    }
    let total = total.ok_or(ModelError::Values { what: "the list of pairs", found: 0, wanted: 1 })?;
    total.put_tape(tape).try_mul(1.0 / n_pairs as f32).map_err(device)
}
