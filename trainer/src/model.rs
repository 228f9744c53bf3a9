//! One encoder for every stream, with the thin parts that know what a stream is.
//!
//! In: host batches. Out: losses with gradients, embeddings, parameters by name. Never: reading, drawing (but the first
//! weights), updating.
//!
//! Names are those of the reference vectors: `vision/embed/kernel`, `encoder/layer_0/attn/q/kernel`,
//! `vision/to_text/wi/kernel`, `temperature/text_vision`, `classifier/<corpus>/kernel`; kernels are (in, out).
//! Source: Akbari et al. 2023, arXiv:2305.06324, and the authors' release.

mod config;
mod embed;
mod encoder;
mod error;
mod experts;
#[cfg(test)]
mod golden;
mod heads;
mod parameters;
mod parts;
mod patches;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use dfdx::prelude::{Gradients, NoneTape, OwnedTape};
use imp_schemas::batch::{AudioBatch, Batch, TextBatch, VisionBatch};

use crate::objective::Goal;
use crate::ops::{Backend, Keep};
use encoder::Call;
pub(crate) use experts::Purpose;

pub use config::{Classifier, ModelConfig, Preset, QkvInit, RawModel, Stream};
pub use error::ModelError;
pub use experts::{EvalGroups, ExpertsConfig, Placement, RawExperts, Router, RoutingSummary};
pub use parameters::Parameter;
pub use patches::{HostTokens, sound_patches, tube_patches};

/// Gradients of one batch, by parameter.
pub struct Grads<D: Backend>(pub(crate) Gradients<f32, D>);

/// What one batch says.
pub struct Loss<D: Backend> {
    /// The objective, and the weighted losses of the routers.
    pub value: f32,
    pub grads: Grads<D>,
    /// `None` for a dense model.
    pub routing: Option<RoutingSummary>,
}

/// The model.
pub struct Imp<D: Backend> {
    config: ModelConfig,
    dev: D,
    parameters: Vec<Parameter<D>>,
    index: BTreeMap<String, usize>,
    keep: Keep,
}

impl<D: Backend> Imp<D> {
    /// First weights, each drawn at the address of its name, so that no parameter depends on another's presence.
    ///
    /// # Errors
    /// [`ModelError::Device`] if the device has no room.
    pub fn new(config: &ModelConfig, seed: u64, dev: &D) -> Result<Self, ModelError> {
        let parameters = parameters::draw(config, seed, dev)?;
        let index = parameters.iter().enumerate().map(|(i, p)| (p.name.clone(), i)).collect();
        Ok(Self { config: config.clone(), dev: dev.clone(), parameters, index, keep: Keep::Everything })
    }

    /// What blocks keep for the way back, from the next loss on. Losses and gradients are the same to the last bit.
    pub fn keep(&mut self, keep: Keep) {
        self.keep = keep;
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every parameter's name, in the order of declaration.
    pub fn names(&self) -> Vec<String> {
        self.parameters.iter().map(|p| p.name.clone()).collect()
    }

    /// Shape and values of a parameter; `None` for an unknown name.
    pub fn tensor(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let p = &self.parameters[*self.index.get(name)?];
        Some((p.shape.clone(), p.tensor.as_vec()))
    }

    /// Sets a parameter.
    ///
    /// # Errors
    /// [`ModelError::UnknownParameter`], or [`ModelError::ParameterShape`] with both shapes.
    pub fn load(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<(), ModelError> {
        let Some(&i) = self.index.get(name) else {
            return Err(ModelError::unknown(name, &self.names()));
        };
        let p = &mut self.parameters[i];
        ModelError::check_shape(name, shape, values.len(), &p.shape)?;
        D::assign(&mut p.tensor, values).map_err(device)
    }

    /// Loss of a batch and its gradients.
    ///
    /// # Errors
    /// A stream that the goal needs is absent, the model lacks the head, an array has the wrong length, or the loss
    /// is not finite.
    pub fn loss(&self, goal: &Goal, batch: &Batch) -> Result<Loss<D>, ModelError> {
        let mut call = Call::new(&self.config, Purpose::Train);
        let loss = self.objective::<OwnedTape<f32, D>>(goal, batch, &mut call)?;
        let value = crate::ops::scalar_value(&loss);
        if !value.is_finite() {
            return Err(ModelError::LossNotFinite(value));
        }
        let grads = Grads(dfdx::prelude::Backward::try_backward(loss).map_err(device)?);
        Ok(Loss { value, grads, routing: RoutingSummary::of(&call.stats) })
    }

    /// Host copies of the gradients of all parameters, by name; zeros where the loss does not depend on one.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub fn gradients(&self, grads: &mut Grads<D>) -> Result<Vec<(String, Vec<f32>)>, ModelError> {
        let of_parameter = |p: &Parameter<D>| {
            grads.0.try_alloc_for(&p.tensor).map_err(device)?;
            Ok((p.name.clone(), grads.0.get(&p.tensor).as_vec()))
        };
        self.parameters.iter().map(of_parameter).collect()
    }

    /// Loss of a batch, without gradients.
    ///
    /// # Errors
    /// As [`Imp::loss`].
    pub fn loss_value(&self, goal: &Goal, batch: &Batch) -> Result<f32, ModelError> {
        let mut call = Call::new(&self.config, Purpose::Train);
        let value = crate::ops::scalar_value(&self.objective::<NoneTape>(goal, batch, &mut call)?);
        if value.is_finite() { Ok(value) } else { Err(ModelError::LossNotFinite(value)) }
    }

    /// What the encoder makes of a batch of one stream, before any head: `[n, width]`.
    ///
    /// # Errors
    /// An array has the wrong length.
    pub fn features(&self, batch: &Batch) -> Result<Vec<f32>, ModelError> {
        let (streams, NoneTape) =
            self.pooled_streams::<NoneTape>(batch, &mut Call::new(&self.config, Purpose::Embed))?;
        Ok(streams.first().map(|(_, rows)| rows.as_vec()).unwrap_or_default())
    }

    /// Embeddings of pictures or clips in the space shared with `target`: `[n, common_width]`, L2-normalised.
    ///
    /// # Errors
    /// The model lacks the head, or an array has the wrong length.
    pub fn embed_vision(&self, batch: &VisionBatch, target: Stream) -> Result<Vec<f32>, ModelError> {
        let pooled = self.pooled_vision::<NoneTape>(batch, &mut Call::new(&self.config, Purpose::Embed))?;
        self.embedding(pooled, Stream::Vision, target)
    }

    /// As [`Imp::embed_vision`], of spectrograms or waveforms.
    ///
    /// # Errors
    /// As [`Imp::embed_vision`].
    pub fn embed_audio(&self, batch: &AudioBatch, target: Stream) -> Result<Vec<f32>, ModelError> {
        let pooled = self.pooled_audio::<NoneTape>(batch, &mut Call::new(&self.config, Purpose::Embed))?;
        self.embedding(pooled, Stream::of(batch.resolution), target)
    }

    /// As [`Imp::embed_vision`], of sentences.
    ///
    /// # Errors
    /// As [`Imp::embed_vision`].
    pub fn embed_text(&self, batch: &TextBatch, target: Stream) -> Result<Vec<f32>, ModelError> {
        let pooled = self.pooled_text::<NoneTape>(batch, &mut Call::new(&self.config, Purpose::Embed))?;
        self.embedding(pooled, Stream::Text, target)
    }

    /// As [`Imp::embed_text`], but not normalised: several sentences of one class are averaged first.
    ///
    /// # Errors
    /// As [`Imp::embed_vision`].
    pub fn common_text(&self, batch: &TextBatch, target: Stream) -> Result<Vec<f32>, ModelError> {
        let pooled = self.pooled_text::<NoneTape>(batch, &mut Call::new(&self.config, Purpose::Embed))?;
        self.common_values(pooled, Stream::Text, target)
    }

    pub(crate) fn device(&self) -> &D {
        &self.dev
    }

    pub(crate) fn parameters(&self) -> &[Parameter<D>] {
        &self.parameters
    }

    pub(crate) fn parameters_mut(&mut self) -> &mut [Parameter<D>] {
        &mut self.parameters
    }
}

/// A device's error, as the model's.
fn device(error: impl std::fmt::Display) -> ModelError {
    ModelError::Device(error.to_string())
}
