//! The shared encoder, and what stands right behind it.
//!
//! In: tokens of one stream. Out: one feature vector per example. Never: another stream's tokens in the same call.

use dfdx::prelude::{HasShape, ReshapeTo, Tape};
use imp_schemas::batch::{AudioBatch, TextBatch, VisionBatch};

use super::experts::Purpose;
use super::parameters::layer_name;
use super::{Imp, ModelConfig, ModelError, Stream, device};
use crate::ops::{
    Backend, Block, Experts, FeedForward, Flat, InputGrad, Linear, Mask, Norm, Routing, RoutingStats, Rows, Scalar,
    Tokens,
};

/// What the encoder is called for, and what its routers say besides.
pub(super) struct Call<D: Backend> {
    /// How tokens find experts; `None` for a dense model.
    pub routing: Option<Routing>,
    /// Weighted, to be added to the objective; their tapes are those of the tokens.
    pub router_losses: Vec<Scalar<D>>,
    pub stats: Vec<RoutingStats>,
}

impl<D: Backend> Call<D> {
    pub fn new(config: &ModelConfig, purpose: Purpose) -> Self {
        let routing = config.experts.as_ref().map(|experts| experts.routing(purpose));
        Self { routing, router_losses: Vec::new(), stats: Vec::new() }
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
        self.pooled(Stream::Spectrogram, self.embed_spectrograms(batch)?, None, call)
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
        let (mut x, mut run) = (tokens, Vec::new());
        for i in 0..self.config.depth {
            let routing = call.routing.filter(|_| self.config.is_sparse(i));
            run.push(self.block(i, routing.is_none())?);
            // Blocks up to the next experts are one crossing, and so is what is behind the last.
            if routing.is_some() || i + 1 == self.config.depth {
                x = D::blocks(x, mask, &run, self.config.heads).map_err(device)?;
                run.clear();
            }
            if let Some(routing) = routing {
                let routed = D::experts(x, &self.experts(i)?, &routing).map_err(device)?;
                x = routed.tokens;
                call.router_losses.push(routed.router_loss);
                call.stats.push(routed.stats);
            }
        }
        let shape @ (n, n_tokens, width) = *x.shape();
        let rows = x.try_reshape_like(&(n * n_tokens, width)).map_err(device)?;
        let norm = self.norm("encoder/final_norm", true)?;
        D::layer_norm(rows, &norm).and_then(|x| x.try_reshape_like(&shape)).map_err(device)
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
            wi: flat("moe/experts/wi/kernel")?,
            wo: flat("moe/experts/wo/kernel")?,
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
