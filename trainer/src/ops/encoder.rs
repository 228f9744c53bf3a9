//! The whole encoder as one op: blocks, experts where they are, the final LayerNorm.
//!
//! In: tokens, the parameters of all layers. Out: tokens, the routers' losses. Never: a stream's name.

use dfdx::prelude::*;

use super::experts::{Choice, soft};
use super::{Backend, Block, Experts, Keep, Mask, Norm, Routed, Routing, RoutingStats, Scalar, Tokens};

/// One layer: a block, and experts in place of its feed-forward if it has none.
#[derive(Debug, Clone)]
pub struct Layer<D: Storage<f32>> {
    pub block: Block<D>,
    pub experts: Option<Experts<D>>,
}

/// What is the same for all examples of a call.
#[derive(Debug)]
pub struct Encoder<'a, D: Storage<f32>> {
    pub layers: &'a [Layer<D>],
    pub final_norm: &'a Norm<D>,
    pub n_heads: usize,
    pub mask: Option<&'a Mask>,
    /// What blocks keep for the way back; on CUDA always everything.
    pub keep: Keep,
    /// How tokens find experts; where no layer has them it is not read.
    pub routing: Option<&'a Routing>,
}

/// Tokens behind the encoder, and what is to be added to the objective.
pub struct Encoded<D: Storage<f32>, T> {
    pub tokens: Tokens<D, T>,
    /// The weighted losses of the routers; their tape is that of `tokens`.
    pub router_losses: Vec<Scalar<D>>,
    /// By layer with experts.
    pub stats: Vec<RoutingStats>,
}

/// The encoder from the device's ops for blocks, experts and LayerNorm.
pub(super) fn composed<D: Backend, T: Tape<f32, D>>(
    tokens: Tokens<D, T>,
    encoder: &Encoder<'_, D>,
) -> Result<Encoded<D, T>, D::Err> {
    let (mut x, mut run) = (tokens, Vec::new());
    let (mut router_losses, mut stats) = (Vec::new(), Vec::new());
    for (i, layer) in encoder.layers.iter().enumerate() {
        let sparse = layer.experts.as_ref().zip(encoder.routing);
        run.push(layer.block.clone());
        // Blocks up to the next experts are one crossing, and so is what is behind the last.
        if sparse.is_some() || i + 1 == encoder.layers.len() {
            x = D::blocks(x, encoder.mask, &run, encoder.n_heads, encoder.keep)?;
            run.clear();
        }
        if let Some((experts, routing)) = sparse {
            let routed = match routing.choice {
                Choice::Nobody { n_slots } => soft::layer(x, encoder.mask, experts, routing, n_slots),
                Choice::Experts | Choice::Tokens { .. } => D::experts(x, experts, routing),
            };
            let Routed { tokens, router_loss, stats: of_layer } = routed?;
            x = tokens;
            router_losses.push(router_loss);
            stats.push(of_layer);
        }
    }
    let shape @ (n, n_tokens, width) = *x.shape();
    let rows = D::layer_norm(x.try_reshape_like(&(n * n_tokens, width))?, encoder.final_norm)?;
    Ok(Encoded { tokens: rows.try_reshape_like(&shape)?, router_losses, stats })
}
