//! Parameters where kernels can reach them: in f32 as they are, and in bf16 for products.
//!
//! In: dfdx tensors. Out: addresses. Never: the parameter's value itself; that stays a tensor of dfdx's, and a mirror follows it.
//!
//! A tensor's storage is not public. Its address in a table of gradients is: `Gradients` finds a vector by a tensor's id. The vectors
//! of one such table are the mirrors in f32; dfdx's SGD fills them: with a rate of 0, a momentum of 0 and an L2 decay of 1 the
//! velocity becomes the parameter, and the parameter stays.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use dfdx::prelude::{Cuda, CudaError, Gradients, HasShape, Shape, Storage, Tensor};
use dfdx::tensor_ops::{Momentum, SgdConfig, WeightDecay};

use super::buffer::Buf;
use super::context::{Context, Values, address, args};
use crate::ops::Flat;

/// See the file's head.
const READ: SgdConfig =
    SgdConfig { lr: 0.0, momentum: Some(Momentum::Classic(0.0)), weight_decay: Some(WeightDecay::L2(1.0)) };

/// Where a parameter's bf16 values are.
#[derive(Debug, Clone)]
struct Half {
    to: Arc<Buf>,
    /// First column, columns, and columns of a row of `to`.
    columns: (usize, usize, usize),
}

/// The mirrors of a device.
pub(super) struct Mirrors {
    /// By parameter.
    whole: Gradients<f32, Cuda>,
    /// By the address of the f32 mirror; `None` where only that is wanted.
    known: HashMap<u64, Option<Half>>,
}

impl Default for Mirrors {
    fn default() -> Self {
        Self { whole: Gradients::leaky(), known: HashMap::new() }
    }
}

/// A tensor's values where kernels can reach them. Costs nothing to speak of if nobody else holds the tensor's storage, and a copy
/// if somebody does.
pub(super) fn values_of<S: Shape>(context: &Context, mut x: Tensor<S, f32, Cuda>) -> Result<Values, CudaError> {
    let dev = x.device().clone();
    let n = x.shape().num_elements();
    let mut to: Values = dev.try_alloc_len(n)?;
    READ.try_update(&mut x, &mut to, &*context.zeros(&dev, n)?)?;
    Ok(to)
}

impl Mirrors {
    /// Address of a parameter's f32 mirror.
    pub fn f32(&mut self, context: &Context, p: &Flat<Cuda>) -> Result<u64, CudaError> {
        let to = self.whole.get_or_alloc_mut(p)?;
        let at = address(to);
        if let Entry::Vacant(unknown) = self.known.entry(at) {
            read_into(context, &mut p.clone(), to)?;
            unknown.insert(None);
        }
        Ok(at)
    }

    /// A parameter in bf16, row-major and flat.
    pub fn bf16(&mut self, context: &Context, p: &Flat<Cuda>) -> Result<Arc<Buf>, CudaError> {
        let n = p.shape().0;
        self.joined(context, &[p], 1, n)
    }

    /// Parameters of `rows` by `width` side by side in bf16: `[rows, parameters, width]`.
    pub fn joined(
        &mut self,
        context: &Context,
        parameters: &[&Flat<Cuda>],
        rows: usize,
        width: usize,
    ) -> Result<Arc<Buf>, CudaError> {
        let first = self.f32(context, parameters[0])?;
        if let Some(Some(half)) = self.known.get(&first) {
            return Ok(half.to.clone());
        }
        let row = width * parameters.len();
        let to = Arc::new(context.alloc(rows * row, 2)?);
        for (i, p) in parameters.iter().enumerate() {
            let at = self.f32(context, p)?;
            let half = Half { to: to.clone(), columns: (i * width, width, row) };
            cast(context, at, p.shape().0, &half)?;
            self.known.insert(at, Some(half));
        }
        Ok(to)
    }

    /// A parameter was changed by the optimizer.
    pub fn refresh(&mut self, context: &Context, p: &mut Flat<Cuda>) -> Result<(), CudaError> {
        let n = p.shape().0;
        let to = self.whole.get_or_alloc_mut(&*p)?;
        let at = address(to);
        let Some(half) = self.known.get(&at) else { return Ok(()) };
        read_into(context, p, to)?;
        match half {
            Some(half) => cast(context, at, n, half),
            None => Ok(()),
        }
    }

    /// A parameter was set: whoever wants its mirror next has it read again.
    pub fn forget(&mut self, p: &Flat<Cuda>) -> Result<(), CudaError> {
        let at = address(self.whole.get_or_alloc_mut(p)?);
        // Joined ones share a buffer, which is found by the first: all go.
        if let Some(Some(half)) = self.known.remove(&at) {
            self.known.retain(|_, other| other.as_ref().is_none_or(|o| !Arc::ptr_eq(&o.to, &half.to)));
        }
        Ok(())
    }
}

fn read_into(context: &Context, p: &mut Flat<Cuda>, to: &mut Values) -> Result<(), CudaError> {
    let dev = p.device().clone();
    READ.try_update(p, to, &*context.zeros(&dev, p.shape().0)?)
}

fn cast(context: &Context, from: u64, n: usize, half: &Half) -> Result<(), CudaError> {
    let (first, width, row) = half.columns;
    let to = half.to.at(first * 2);
    // SAFETY: `from` holds `n` values, `to` as many in rows of `row`.
    unsafe {
        if width == row {
            context.launch_over("to_bf16", n.div_ceil(4), args![from, to, n as u64])
        } else {
            context.launch_over("to_bf16_strided", n.div_ceil(4), args![from, to, n / width, width, row])
        }
    }
}
