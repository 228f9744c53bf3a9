//! The shared encoder, and what stands right behind it.
//!
//! In: tokens of one stream. Out: one feature vector per example. Never: another stream's tokens in the same call.

use std::cell::OnceCell;
use std::rc::Rc;

use dfdx::prelude::Tape;
use imp_schemas::batch::{AudioBatch, TextBatch, VisionBatch};

use super::experts::Purpose;
use super::parameters::layer_name;
use super::{Imp, ModelConfig, ModelError, Stream, device};
use crate::ops::{
    Backend, Block, Encoder, Experts, FeedForward, Flat, InputGrad, Layer, Linear, Mask, Norm, Packs, Routing,
    RoutingStats, Rows, Scalar, Tokens,
};

/// What the encoder is called for, and what its routers say besides.
pub(super) struct Call<D: Backend> {
    /// How tokens find experts; `None` for a dense model.
    pub routing: Option<Routing>,
    /// Weighted, to be added to the objective; their tapes are those of the tokens.
    pub router_losses: Vec<Scalar<D>>,
    pub stats: Vec<RoutingStats>,
    /// Of the encoder, once for all streams and parts of a step.
    layers: Rc<OnceCell<Vec<Layer<D>>>>,
}

impl<D: Backend> Call<D> {
    pub fn new(config: &ModelConfig, purpose: Purpose) -> Self {
        let routing = config.experts.as_ref().map(|experts| experts.routing(purpose));
        Self { routing, router_losses: Vec::new(), stats: Vec::new(), layers: Rc::default() }
    }

    /// The same for other examples of the step: the parameters have to be the same.
    pub fn again(&self) -> Self {
        Self { routing: self.routing, router_losses: Vec::new(), stats: Vec::new(), layers: self.layers.clone() }
    }
}

impl<D: Backend> Imp<D> {
    pub(super) fn pooled_vision<T: Tape<f32, D>>(
        &self,
        batch: &VisionBatch,
        call: &mut Call<D>,
    ) -> Result<Rows<D, T>, ModelError> {
        self.pooled(Stream::Vision, self.embed_tubes(batch)?, None, call)
    }

    pub(super) fn pooled_audio<T: Tape<f32, D>>(
        &self,
        batch: &AudioBatch,
        call: &mut Call<D>,
    ) -> Result<Rows<D, T>, ModelError> {
        self.pooled(Stream::of(batch.resolution), self.embed_sounds(batch)?, None, call)
    }

    pub(super) fn pooled_text<T: Tape<f32, D>>(
        &self,
        batch: &TextBatch,
        call: &mut Call<D>,
    ) -> Result<Rows<D, T>, ModelError> {
        let (tokens, mask) = self.embed_sentences(batch)?;
        self.pooled(Stream::Text, tokens, Some(&mask), call)
    }

    fn pooled<T: Tape<f32, D>>(
        &self,
        stream: Stream,
        tokens: Tokens<D, T>,
        mask: Option<&Mask>,
        call: &mut Call<D>,
    ) -> Result<Rows<D, T>, ModelError> {
        let encoded = self.encode(tokens, mask, call)?;
        self.pool(stream, encoded, mask)
    }

    /// Blocks and final LayerNorm.
    pub(super) fn encode<T: Tape<f32, D>>(
        &self,
        tokens: Tokens<D, T>,
        mask: Option<&Mask>,
        call: &mut Call<D>,
    ) -> Result<Tokens<D, T>, ModelError> {
        let of_step = call.layers.clone();
        let layers = match of_step.get() {
            Some(layers) => layers,
            None => {
                let layer = |i| {
                    let sparse = call.routing.is_some() && self.config.is_sparse(i);
                    let experts = if sparse { Some(self.experts(i)?) } else { None };
                    Ok(Layer { block: self.block(i, !sparse)?, experts })
                };
                let layers = (0..self.config.depth).map(layer).collect::<Result<Vec<_>, ModelError>>()?;
                of_step.get_or_init(|| layers)
            }
        };
        let final_norm = self.norm("encoder/final_norm", true)?;
        let (n_heads, routing) = (self.config.heads, call.routing.as_ref());
        let encoder = Encoder { layers, final_norm: &final_norm, n_heads, mask, keep: self.keep, routing };
        let encoded = D::encode(tokens, &encoder).map_err(device)?;
        call.router_losses.extend(encoded.router_losses);
        call.stats.extend(encoded.stats);
        Ok(encoded.tokens)
    }

    /// Blocks and final LayerNorm on tokens of no stream, as in training.
    pub(crate) fn encoder_alone<T: Tape<f32, D>>(
        &self,
        tokens: Tokens<D, T>,
        mask: &Mask,
    ) -> Result<Tokens<D, T>, ModelError> {
        self.encode(tokens, Some(mask), &mut Call::new(&self.config, Purpose::Train))
    }

    /// Mean over tokens, then the stream's projection. The release projects every token and then takes the mean; a mean and
    /// a linear layer change places freely, and one row per example costs less than all of them.
    pub(super) fn pool<T: Tape<f32, D>>(
        &self,
        stream: Stream,
        encoded: Tokens<D, T>,
        mask: Option<&Mask>,
    ) -> Result<Rows<D, T>, ModelError> {
        let pooled = D::mean_pool(encoded, mask).map_err(device)?;
        let post = self.linear(&format!("{stream}/post"), self.config.width, false, InputGrad::Wanted)?;
        D::linear(pooled, &post).map_err(device)
    }

    fn experts(&self, i: usize) -> Result<Experts<D>, ModelError> {
        let flat = |name: &str| self.flat(&format!("{}/{name}", layer_name(i))).cloned();
        Ok(Experts {
            norm: Some(flat("norm_ffn/scale")?),
            router: flat("moe/router/kernel")?,
            router_scale: self
                .index
                .contains_key(&format!("{}/moe/router/scale", layer_name(i)))
                .then(|| flat("moe/router/scale"))
                .transpose()?,
            wi: flat("moe/experts/wi/kernel")?,
            wo: flat("moe/experts/wo/kernel")?,
            packs: Packs::default(),
        })
    }

    fn block(&self, i: usize, dense: bool) -> Result<Block<D>, ModelError> {
        let layer = layer_name(i);
        let flat = |name: &str| self.flat(&format!("{layer}/{name}")).cloned();
        let qk_norm = match self.config.qk_norm {
            true => Some((flat("attn/q_norm/scale")?, flat("attn/k_norm/scale")?)),
            false => None,
        };
        let ffn = match dense {
            true => Some(FeedForward {
                norm: flat("norm_ffn/scale")?,
                wi: flat("ffn/wi/kernel")?,
                wo: flat("ffn/wo/kernel")?,
            }),
            false => None,
        };
        Ok(Block {
            norm_sa: flat("norm_sa/scale")?,
            q: flat("attn/q/kernel")?,
            k: flat("attn/k/kernel")?,
            v: flat("attn/v/kernel")?,
            o: flat("attn/o/kernel")?,
            qk_norm,
            ffn,
            packs: Packs::default(),
        })
    }

    /// A parameter's tensor.
    pub(super) fn flat(&self, name: &str) -> Result<&Flat<D>, ModelError> {
        match self.index.get(name) {
            Some(&i) => Ok(&self.parameters[i].tensor),
            None => Err(ModelError::unknown(name, &self.names())),
        }
    }

    pub(super) fn norm(&self, name: &str, bias: bool) -> Result<Norm<D>, ModelError> {
        let bias = if bias { Some(self.flat(&format!("{name}/bias"))?.clone()) } else { None };
        Ok(Norm { scale: self.flat(&format!("{name}/scale"))?.clone(), bias })
    }

    /// A dense layer with bias.
    pub(super) fn linear(
        &self,
        name: &str,
        n_out: usize,
        gelu: bool,
        input_grad: InputGrad,
    ) -> Result<Linear<D>, ModelError> {
        let kernel = self.flat(&format!("{name}/kernel"))?.clone();
        let bias = Some(self.flat(&format!("{name}/bias"))?.clone());
        Ok(Linear { kernel, bias, n_out, gelu, input_grad })
    }
}
