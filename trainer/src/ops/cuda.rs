//! CUDA as a [`Backend`]: stock compositions throughout.

use dfdx::prelude::{Cuda, CudaError, Gradients, Tape, TensorFromVec, TryAdd, TryMul};

use super::*;

impl Backend for Cuda {
    type Moment = Flat<Cuda>;

    fn moment(dev: &Self, values: Vec<f32>) -> Result<Flat<Cuda>, CudaError> {
        let n = values.len();
        dev.try_tensor_from_vec(values, (n,))
    }

    fn moment_values(moment: &Flat<Cuda>) -> Vec<f32> {
        moment.as_vec()
    }

    fn squares(parameters: &[&mut Flat<Self>], grads: &mut Gradients<f32, Self>) -> Result<Vec<f64>, CudaError> {
        // The sum is taken on the host in f64 and in order; only the gradients' norm needs it.
        let mut sums = Vec::with_capacity(parameters.len());
        for p in parameters {
            grads.try_alloc_for(&**p)?;
            sums.push(simd::sum_of_squares(&grads.get(&**p).as_vec()));
        }
        Ok(sums)
    }

    fn adamw(
        parameters: Vec<&mut Flat<Self>>,
        grads: &mut Gradients<f32, Self>,
        mu: &mut [Flat<Cuda>],
        nu: &mut [Flat<Cuda>],
        decays: &[bool],
        step: &AdamWStep,
    ) -> Result<(), CudaError> {
        for ((p, (mu, nu)), &decays) in parameters.into_iter().zip(mu.iter_mut().zip(nu)).zip(decays) {
            let weight_decay = if decays { step.weight_decay } else { 0.0 };
            adamw::stock(p, grads, mu, nu, &AdamWStep { weight_decay, ..*step })?;
        }
        Ok(())
    }

    fn average(parameters: &[&Flat<Self>], ema: &mut [Flat<Cuda>], decay: f32) -> Result<(), CudaError> {
        for (p, ema) in parameters.iter().zip(ema) {
            *ema = ema.clone().try_mul(decay)?.try_add((*p).clone().try_mul(1.0 - decay)?)?;
        }
        Ok(())
    }

    fn linear<T: Tape<f32, Self>>(x: Rows<Self, T>, layer: &Linear<Self>) -> Result<Rows<Self, T>, CudaError> {
        linear::stock(x, layer)
    }

    fn layer_norm<T: Tape<f32, Self>>(x: Rows<Self, T>, norm: &Norm<Self>) -> Result<Rows<Self, T>, CudaError> {
        layer_norm::stock(x, norm)
    }

    fn blocks<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        mask: Option<&Mask>,
        layers: &[Block<Self>],
        n_heads: usize,
    ) -> Result<Tokens<Self, T>, CudaError> {
        blocks::stock(x, mask, layers, n_heads)
    }

    fn experts<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        layer: &Experts<Self>,
        routing: &Routing,
    ) -> Result<Routed<Self, T>, CudaError> {
        experts::stock(x, layer, routing)
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
        positions::stock(x, positions, tables, norm)
    }

    fn lookup<T: Tape<f32, Self>>(table: &Flat<Self>, width: usize, ids: &[u32]) -> Result<Rows<Self, T>, CudaError> {
        positions::stock_lookup(table, width, ids)
    }

    fn mean_pool<T: Tape<f32, Self>>(x: Tokens<Self, T>, mask: Option<&Mask>) -> Result<Rows<Self, T>, CudaError> {
        pool::stock(x, mask)
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
