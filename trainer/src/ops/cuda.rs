//! CUDA as a [`Backend`]: fused forms in bf16, stock compositions in f32 and where a size does not suit the kernels.

mod buffer;
mod context;
mod encoder;
mod experts;
mod gemm;
mod linear;
mod mirror;
mod optimizer;
mod profile;
mod staging;
mod tokens;

use dfdx::prelude::{Cuda, CudaError, Gradients, HasShape, Tape};

use super::*;
use context::{Context, Values};
pub use context::{open, peak_mib};
pub use gemm::ceiling;
pub use profile::{begin_profile, end_profile};

/// The context of a tensor's device, if it computes in bf16.
fn in_bf16(dev: &Cuda) -> Result<Option<std::sync::Arc<Context>>, CudaError> {
    Ok(Some(Context::of(dev)?).filter(|context| context.precision == Precision::Bf16))
}

impl Backend for Cuda {
    type Moment = Values;

    fn moment(dev: &Self, values: Vec<f32>) -> Result<Values, CudaError> {
        let mut moment: Values = dfdx::prelude::Storage::<f32>::try_alloc_len(dev, values.len())?;
        if !values.is_empty() {
            Context::of(dev)?.device.htod_sync_copy_into(&values, &mut *moment)?;
        }
        Ok(moment)
    }

    fn moment_values(moment: &Values) -> Vec<f32> {
        moment.device().dtoh_sync_copy(&**moment).unwrap_or_default()
    }

    fn assign(parameter: &mut Flat<Self>, values: &[f32]) -> Result<(), CudaError> {
        parameter.copy_from(values);
        Context::of(parameter.device())?.mirrors().forget(parameter)
    }

    fn squares(parameters: &[&mut Flat<Self>], grads: &mut Gradients<f32, Self>) -> Result<Vec<f64>, CudaError> {
        let Some(first) = parameters.first() else { return Ok(Vec::new()) };
        optimizer::squares(&*Context::of(first.device())?, parameters, grads)
    }

    fn adamw(
        parameters: Vec<&mut Flat<Self>>,
        grads: &mut Gradients<f32, Self>,
        mu: &mut [Values],
        nu: &mut [Values],
        decays: &[bool],
        step: &AdamWStep,
    ) -> Result<(), CudaError> {
        let Some(first) = parameters.first() else { return Ok(()) };
        let context = Context::of(first.device())?;
        optimizer::adamw(&context, parameters, grads, (mu, nu), decays, step)
    }

    fn average(parameters: &[&Flat<Self>], ema: &mut [Values], decay: f32) -> Result<(), CudaError> {
        for (p, ema) in parameters.iter().zip(ema) {
            optimizer::average(&*Context::of(p.device())?, p, ema, decay)?;
        }
        Ok(())
    }

    fn linear_of_tubes<T: Tape<f32, Self>>(
        dev: &Self,
        tubes: &Tubes<'_>,
        layer: &Linear<Self>,
    ) -> Result<Option<Rows<Self, T>>, CudaError> {
        let n_in = tubes.tube.iter().product::<usize>() * 3;
        match in_bf16(dev)? {
            Some(context) if linear::fits(n_in, layer.n_out) => linear::of_tubes(&context, dev, tubes, layer).map(Some),
            Some(_) | None => Ok(None),
        }
    }

    fn encode<T: Tape<f32, Self>>(
        tokens: Tokens<Self, T>,
        encoder: &Encoder<'_, Self>,
    ) -> Result<Encoded<Self, T>, CudaError> {
        match in_bf16(tokens.device())? {
            Some(context) if encoder::fits(*tokens.shape(), encoder) => encoder::fused(&context, tokens, encoder),
            Some(_) | None => super::encoder::composed(tokens, encoder),
        }
    }

    fn linear<T: Tape<f32, Self>>(x: Rows<Self, T>, layer: &Linear<Self>) -> Result<Rows<Self, T>, CudaError> {
        match in_bf16(x.device())? {
            Some(context) if linear::fits(x.shape().1, layer.n_out) => linear::fused(&context, x, layer),
            Some(_) | None => super::linear::stock(x, layer),
        }
    }

    fn layer_norm<T: Tape<f32, Self>>(x: Rows<Self, T>, norm: &Norm<Self>) -> Result<Rows<Self, T>, CudaError> {
        layer_norm::stock(x, norm)
    }

    fn blocks<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        mask: Option<&Mask>,
        layers: &[Block<Self>],
        n_heads: usize,
        _keep: Keep,
    ) -> Result<Tokens<Self, T>, CudaError> {
        blocks::stock(x, mask, layers, n_heads)
    }

    fn experts<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        layer: &Experts<Self>,
        routing: &Routing,
    ) -> Result<Routed<Self, T>, CudaError> {
        super::experts::stock(x, layer, routing)
    }

    fn attention<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        mask: Option<&Mask>,
        layer: &Block<Self>,
        n_heads: usize,
    ) -> Result<Tokens<Self, T>, CudaError> {
        blocks::stock_attention(x, mask, layer, n_heads)
    }

    fn add_positions<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        positions: &Positions,
        tables: &[Flat<Self>],
        norm: &Norm<Self>,
    ) -> Result<Tokens<Self, T>, CudaError> {
        match in_bf16(x.device())? {
            Some(context) => tokens::add_positions(&context, x, positions, tables, norm),
            None => super::positions::stock(x, positions, tables, norm),
        }
    }

    fn lookup<T: Tape<f32, Self>>(table: &Flat<Self>, width: usize, ids: &[u32]) -> Result<Rows<Self, T>, CudaError> {
        super::positions::stock_lookup(table, width, ids)
    }

    fn mean_pool<T: Tape<f32, Self>>(x: Tokens<Self, T>, mask: Option<&Mask>) -> Result<Rows<Self, T>, CudaError> {
        match in_bf16(x.device())? {
            Some(context) => tokens::mean_pool(&context, x, mask),
            None => pool::stock(x, mask),
        }
    }

    fn l2_normalise<T: Tape<f32, Self>>(x: Rows<Self, T>) -> Result<Rows<Self, T>, CudaError> {
        l2_norm::stock(x)
    }

    fn nce<T: Tape<f32, Self>>(
        u: Tokens<Self, T>,
        v: Tokens<Self, T>,
        temperature: &Flat<Self>,
        form: TemperatureForm,
    ) -> Result<Scalar<Self, T>, CudaError> {
        nce::stock(u, v, temperature, form)
    }

    fn softmax_cross_entropy<T: Tape<f32, Self>>(
        logits: Rows<Self, T>,
        targets: &[f32],
    ) -> Result<Scalar<Self, T>, CudaError> {
        cross_entropy::stock_softmax(logits, targets)
    }

    fn sigmoid_cross_entropy<T: Tape<f32, Self>>(
        logits: Rows<Self, T>,
        targets: &[f32],
    ) -> Result<Scalar<Self, T>, CudaError> {
        cross_entropy::stock_sigmoid(logits, targets)
    }
}
