//! Differentiable ops on dfdx's tape: fused for the CPU; for CUDA fused in bf16, and composed of stock ops in f32.
//!
//! In and out: dfdx tensors; parameters are flat tensors whose axes the op knows from its other arguments. Never: names of
//! parameters, anything about modalities.
//!
//! Stock dfdx leaves most of a CPU idle between its matrix products. Each file here has the fused form beside the stock
//! composition that it is tested against; [`Backend`] chooses by device. On the CPU how the work is
//! cut depends on its sizes alone, whatever the number of threads, so that losses repeat to the last bit.

mod adamw;
pub mod blocks;
pub mod ceiling;
mod cpu;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod curves;
pub mod encoder;
pub mod experts;
pub mod host;
pub mod l2_norm;
pub mod layer_norm;
pub mod linear;
pub mod nce;
pub mod pool;
pub mod positions;
pub mod product;
pub mod simd;
#[cfg(test)]
mod slopes;
#[cfg(test)]
mod tests;

use dfdx::prelude::{Device, Gradients, NoneTape, Synchronize, Tape, Tensor};
use serde::{Deserialize, Serialize};

pub use blocks::{Block, FeedForward, Keep, Mask};
pub use encoder::{Encoded, Encoder, Layer};
pub use experts::{Experts, Routed, Routing, RoutingStats};
pub use host::{ThreadsError, set_threads};
pub use layer_norm::Norm;
pub use linear::{InputGrad, Linear};
pub use nce::TemperatureForm;
pub use positions::Positions;
pub use product::Packs;

use crate::optim::AdamWStep;

/// Vectors of any origin, `[rows, width]`.
pub type Rows<D, T = NoneTape> = Tensor<(usize, usize), f32, D, T>;
/// Tokens entering or leaving the encoder: `[batch, tokens, width]`.
pub type Tokens<D, T = NoneTape> = Tensor<(usize, usize, usize), f32, D, T>;
/// A parameter, row-major and flat: `[values]`.
pub type Flat<D> = Tensor<(usize,), f32, D>;
/// A loss.
pub type Scalar<D, T = NoneTape> = Tensor<(), f32, D, T>;

/// LayerNorm's epsilon, added to the population variance. The release's value.
pub const NORM_EPS: f32 = 1e-6;
/// Added to the norm that L2 normalisation divides by, to the temperature and to the mask's sum. The release's value.
pub const SMALL: f32 = 1e-6;

/// What products and what they read are kept in; parameters, moments, sums and the residual stream are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    /// On CUDA only.
    Bf16,
}

/// Clips as bytes, and the tubes that tokens are made of. Holds: a tube divides a clip's sides, kept places are within its grid.
#[derive(Debug, Clone, Copy)]
pub struct Tubes<'a> {
    /// `[n, frames, height, width, 3]`
    pub pixels: &'a [u8],
    pub n: usize,
    /// Tokens of an example.
    pub n_tokens: usize,
    /// Frames, height and width of a clip; a picture has one frame, which fills a tube's by repetition.
    pub clip: [usize; 3],
    /// Frames, height and width of a tube.
    pub tube: [usize; 3],
    /// `[n, tokens]`, places in raster order; `None` if all are there.
    pub kept: Option<&'a [u32]>,
}

/// The ops that a device brings. What a caller must hold: sizes agree, as documented at the stock form of each op.
pub trait Backend: Device<f32> + Synchronize {
    /// A moment of one parameter, where the update can reach it at no cost.
    type Moment;

    /// Puts a moment on the device.
    fn moment(dev: &Self, values: Vec<f32>) -> Result<Self::Moment, Self::Err>;

    /// Host copy of a moment.
    fn moment_values(moment: &Self::Moment) -> Vec<f32>;

    /// Sets a parameter.
    fn assign(parameter: &mut Flat<Self>, values: &[f32]) -> Result<(), Self::Err>;

    /// Sum of squares of every parameter's gradient, f64, in the order of `parameters`; absent gradients are zero.
    fn squares(parameters: &[&mut Flat<Self>], grads: &mut Gradients<f32, Self>) -> Result<Vec<f64>, Self::Err>;

    /// One AdamW update of all parameters; a parameter whose `decays` is false does not decay.
    fn adamw(
        parameters: Vec<&mut Flat<Self>>,
        grads: &mut Gradients<f32, Self>,
        mu: &mut [Self::Moment],
        nu: &mut [Self::Moment],
        decays: &[bool],
        step: &AdamWStep,
    ) -> Result<(), Self::Err>;

    /// `ema = decay * ema + (1 - decay) * parameter` for all parameters.
    fn average(parameters: &[&Flat<Self>], ema: &mut [Self::Moment], decay: f32) -> Result<(), Self::Err>;

    /// `W` of the tubes' values in [-1, 1] plus `b`, `[n * tokens, out]`; `None` where the host has to make rows of them first.
    fn linear_of_tubes<T: Tape<f32, Self>>(
        dev: &Self,
        tubes: &Tubes<'_>,
        layer: &Linear<Self>,
    ) -> Result<Option<Rows<Self, T>>, Self::Err>;

    /// The encoder; see [`encoder`].
    fn encode<T: Tape<f32, Self>>(
        tokens: Tokens<Self, T>,
        encoder: &Encoder<'_, Self>,
    ) -> Result<Encoded<Self, T>, Self::Err>;

    /// `act(x W + b)`; see [`linear::stock`].
    fn linear<T: Tape<f32, Self>>(x: Rows<Self, T>, layer: &Linear<Self>) -> Result<Rows<Self, T>, Self::Err>;

    /// See [`layer_norm::stock`].
    fn layer_norm<T: Tape<f32, Self>>(x: Rows<Self, T>, norm: &Norm<Self>) -> Result<Rows<Self, T>, Self::Err>;

    /// Pre-LN blocks one after the other; see [`blocks::stock`]. What is kept for the way back changes no bit.
    fn blocks<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        mask: Option<&Mask>,
        layers: &[Block<Self>],
        n_heads: usize,
        keep: Keep,
    ) -> Result<Tokens<Self, T>, Self::Err>;

    /// A block's mixture of experts that choose or are chosen; see [`experts::stock`]. Soft ones are composed of other ops.
    fn experts<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        layer: &Experts<Self>,
        routing: &Routing,
    ) -> Result<Routed<Self, T>, Self::Err>;

    /// Multi-head attention of one block alone, without LayerNorm and residual; see [`blocks::stock_attention`].
    fn attention<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        mask: Option<&Mask>,
        layer: &Block<Self>,
        n_heads: usize,
    ) -> Result<Tokens<Self, T>, Self::Err>;

    /// `x + LayerNorm(sum of the looked-up rows)`; see [`positions::stock`].
    fn add_positions<T: Tape<f32, Self>>(
        x: Tokens<Self, T>,
        positions: &Positions,
        tables: &[Flat<Self>],
        norm: &Norm<Self>,
    ) -> Result<Tokens<Self, T>, Self::Err>;

    /// Rows `ids` of a table of `width` columns; see [`positions::stock_lookup`].
    fn lookup<T: Tape<f32, Self>>(table: &Flat<Self>, width: usize, ids: &[u32]) -> Result<Rows<Self, T>, Self::Err>;

    /// Mean over an example's (unmasked) tokens; see [`pool::stock`].
    fn mean_pool<T: Tape<f32, Self>>(x: Tokens<Self, T>, mask: Option<&Mask>) -> Result<Rows<Self, T>, Self::Err>;

    /// `x / (|x| + 1e-6)` row by row; see [`l2_norm::stock`].
    fn l2_normalise<T: Tape<f32, Self>>(x: Rows<Self, T>) -> Result<Rows<Self, T>, Self::Err>;

    /// Symmetric contrastive loss; `u` is `[batch, instances, width]`, so is `v`; see [`nce::stock`].
    fn nce<T: Tape<f32, Self>>(
        u: Tokens<Self, T>,
        v: Tokens<Self, T>,
        temperature: &Flat<Self>,
        form: TemperatureForm,
    ) -> Result<Scalar<Self, T>, Self::Err>;

    /// Mean softmax cross-entropy with `targets` `[batch, classes]`; see [`cross_entropy::stock_softmax`].
    fn softmax_cross_entropy<T: Tape<f32, Self>>(
        logits: Rows<Self, T>,
        targets: &[f32],
    ) -> Result<Scalar<Self, T>, Self::Err>;

    /// Mean sigmoid cross-entropy with `targets` `[batch, classes]`; see [`cross_entropy::stock_sigmoid`].
    fn sigmoid_cross_entropy<T: Tape<f32, Self>>(
        logits: Rows<Self, T>,
        targets: &[f32],
    ) -> Result<Scalar<Self, T>, Self::Err>;
}

/// The number on the host.
pub fn scalar_value<D: Backend, T>(loss: &Scalar<D, T>) -> f32 {
    let mut value = [0.0];
    D::copy_into(loss, &mut value);
    value[0]
}
