//! The CPU as a [`Backend`]: fused forms throughout.

use dfdx::prelude::{Cpu, CpuError, Gradients, Tape};

use super::*;

impl Backend for Cpu {
    type Moment = Vec<f32>;

    fn moment(_dev: &Self, values: Vec<f32>) -> Result<Vec<f32>, CpuError> {
        Ok(values)
    }

    fn moment_values(moment: &Vec<f32>) -> Vec<f32> {
        moment.clone()
    }

    fn assign(parameter: &mut Flat<Self>, values: &[f32]) -> Result<(), CpuError> {
        parameter.copy_from(values);
        Ok(())
    }

    fn squares(parameters: &[&mut Flat<Self>], grads: &mut Gradients<f32, Self>) -> Result<Vec<f64>, CpuError> {
        adamw::squares(parameters, grads)
    }

    fn adamw(
        parameters: Vec<&mut Flat<Self>>,
        grads: &mut Gradients<f32, Self>,
        mu: &mut [Vec<f32>],
        nu: &mut [Vec<f32>],
        decays: &[bool],
        step: &AdamWStep,
    ) -> Result<(), CpuError> {
        adamw::fused(parameters, grads, mu, nu, decays, step)
    }

    fn average(parameters: &[&Flat<Self>], ema: &mut [Vec<f32>], decay: f32) -> Result<(), CpuError> {
        let jobs = parameters.iter().zip(ema).collect();
        host::run(jobs, |(p, ema): (&&Flat<Self>, &mut Vec<f32>)| {
            simd::scale(ema, decay);
            simd::add_scaled(ema, host::view(*p), 1.0 - decay);
        });
        Ok(())
    }

    fn linear_of_tubes<T: Tape<f32, Self>>(
        _dev: &Self,
        _tubes: &Tubes<'_>,
        _layer: &Linear<Self>,
    ) -> Result<Option<Rows<Self, T>>, CpuError> {
        Ok(None)
    }

    fn encode<T: Tape<f32, Self>>(
        tokens: Tokens<Self, T>,
        encoder: &Encoder<'_, Self>,
    ) -> Result<Encoded<Self, T>, CpuError> {
        encoder::composed(tokens, encoder)
    }

    fn linear<T: Tape<f32, Self>>(x: Rows<Self, T>, layer: &Linear<Self>) -> Result<Rows<Self, T>, CpuError> {
        linear::fused(x, layer)
    }

    fn layer_norm<T: Tape<f32, Self>>(x: Rows<Self, T>, norm: &Norm<Self>) -> Result<Rows<Self, T>, CpuError> {
        layer_norm::fused(x, norm)
    }

    fn blocks<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        mask: Option<&Mask>,
        layers: &[Block<Self>],
        n_heads: usize,
        keep: Keep,
    ) -> Result<Tokens<Self, T>, CpuError> {
        blocks::fused(x, mask, layers, n_heads, keep)
    }

    fn experts<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        layer: &Experts<Self>,
        routing: &Routing,
    ) -> Result<Routed<Self, T>, CpuError> {
        experts::fused(x, layer, routing)
    }

    fn attention<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        mask: Option<&Mask>,
        layer: &Block<Self>,
        n_heads: usize,
    ) -> Result<Tokens<Self, T>, CpuError> {
        blocks::fused_attention(x, mask, layer, n_heads)
    }

    fn add_positions<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        positions: &Positions,
        tables: &[Flat<Self>],
        norm: &Norm<Self>,
    ) -> Result<Tokens<Self, T>, CpuError> {
        positions::fused(x, positions, tables, norm)
    }

    fn lookup<T: Tape<f32, Self>>(table: &Flat<Self>, width: usize, ids: &[u32]) -> Result<Rows<Self, T>, CpuError> {
        positions::fused_lookup(table, width, ids)
    }

    fn mean_pool<T: Tape<f32, Self>>(x: Tokens<Self, T>, mask: Option<&Mask>) -> Result<Rows<Self, T>, CpuError> {
        pool::fused(x, mask)
    }

    fn l2_normalise<T: Tape<f32, Self>>(x: Rows<Self, T>) -> Result<Rows<Self, T>, CpuError> {
        l2_norm::fused(x)
    }

    fn nce<T: Tape<f32, Self>>(
        u: Tokens<Self, T>,
        v: Tokens<Self, T>,
        temperature: &Flat<Self>,
        form: TemperatureForm,
    ) -> Result<Scalar<Self, T>, CpuError> {
        nce::fused(u, v, temperature, form)
    }

    fn softmax_cross_entropy<T: Tape<f32, Self>>(
        logits: Rows<Self, T>,
        targets: &[f32],
    ) -> Result<Scalar<Self, T>, CpuError> {
        cross_entropy::fused_softmax(logits, targets)
    }

    fn sigmoid_cross_entropy<T: Tape<f32, Self>>(
        logits: Rows<Self, T>,
        targets: &[f32],
    ) -> Result<Scalar<Self, T>, CpuError> {
        cross_entropy::fused_sigmoid(logits, targets)
    }
}
