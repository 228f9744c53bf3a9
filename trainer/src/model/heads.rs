//! Common spaces and classifiers.
//!
//! In: feature vectors of a stream. Out: vectors of a common space, logits of one corpus. Never: a head that the step does not
//! need: only the pairs of the batch's streams and the classifier of its corpus are computed.

use dfdx::prelude::{NoneTape, PutTape, SplitTape, Tape, TryAdd};
use imp_schemas::batch::Batch;

use super::encoder::Call;
use super::parameters::{classifier_name, head_name, temperature_name};
use super::{Imp, ModelError, Stream, device};
use crate::objective::{self, Classes, Form, Goal};
use crate::ops::{Backend, InputGrad, Rows, Scalar};

impl<D: Backend> Imp<D> {
    /// The loss of a batch, on a tape of the caller's choice: the objectives, and what the routers add to them.
    pub(super) fn objective<T: Tape<f32, D>>(
        &self,
        goal: &Goal,
        batch: &Batch,
        call: &mut Call<D>,
    ) -> Result<Scalar<D, T>, ModelError> {
        let (pooled, mut tape) = self.pooled_streams::<T>(batch, call)?;
        let mut losses = Vec::new();
        if goal.nce {
            let pairs = self.pairs_of(&pooled, &mut tape)?;
            losses.push(self.nce_of(pairs, batch.n(), T::default())?);
        }
        if let Some(classes) = &goal.classes {
            losses.push(self.loss_of_classes(classes, &pooled, batch.labels.as_deref())?);
        }
        let mut loss = self.dev.try_zeros().map_err(device)?.put_tape(tape);
        for of_objective in losses {
            loss = loss.try_add(of_objective).map_err(device)?;
        }
        for router_loss in call.router_losses.drain(..) {
            loss = loss.try_add(router_loss).map_err(device)?;
        }
        Ok(loss)
    }

    /// The mean of the pairs' losses over `n` examples; `tape` is what led to their vectors.
    pub(super) fn nce_of<T: Tape<f32, D>>(
        &self,
        pairs: Vec<PairVectors<Rows<D>>>,
        n: usize,
        tape: T,
    ) -> Result<Scalar<D, T>, ModelError> {
        let taped = |PairVectors { streams: [a, b], vectors: [u, v] }: PairVectors<Rows<D>>| {
            let temperature = self.flat(&temperature_name(a, b))?.clone();
            let [u, v] = [u, v].map(|rows| rows.put_tape(T::default()));
            Ok(objective::nce::Pair { u, v, temperature, form: self.config.temperature_form })
        };
        objective::nce::mean_over_pairs(pairs.into_iter().map(taped).collect::<Result<_, ModelError>>()?, n, tape)
    }

    /// What the encoder makes of every stream of the batch, and the tape that led to all of it.
    pub(super) fn pooled_streams<T: Tape<f32, D>>(
        &self,
        batch: &Batch,
        call: &mut Call<D>,
    ) -> Result<StreamsOnTape<D, T>, ModelError> {
        let mut tape = T::default();
        // Sentences first: their many small ops are then the last on the way back, where a device has enough to do besides.
        let text = batch.text.as_ref().map(|text| self.pooled_text(text, call).map(|rows| split(rows, &mut tape)));
        let text = text.transpose()?;
        let mut streams = Vec::new();
        if let Some(vision) = &batch.vision {
            streams.push((Stream::Vision, split(self.pooled_vision(vision, call)?, &mut tape)));
        }
        if let Some(audio) = &batch.audio {
            streams.push((Stream::of(audio.resolution), split(self.pooled_audio(audio, call)?, &mut tape)));
        }
        streams.extend(text.map(|text| (Stream::Text, text)));
        Ok((streams, tape))
    }

    /// Common-space vectors of every pair of streams; what led to them joins `tape`.
    pub(super) fn pairs_of<T: Tape<f32, D>>(
        &self,
        streams: &[(Stream, Rows<D>)],
        tape: &mut T,
    ) -> Result<Vec<PairVectors<Rows<D>>>, ModelError> {
        let mut pairs = Vec::new();
        for (i, (a, of_a)) in streams.iter().enumerate() {
            for (b, of_b) in &streams[i + 1..] {
                let u = split(self.common(of_a.retaped::<T>(), *a, *b)?, tape);
                let v = split(self.common(of_b.retaped::<T>(), *b, *a)?, tape);
                pairs.push(PairVectors { streams: [*a, *b], vectors: [u, v] });
            }
        }
        if pairs.is_empty() {
            let stream = streams.first().map_or("any", |(stream, _)| stream.name());
            return Err(ModelError::MissingStream { stream: other_than(stream), objective: "nce", wanted: "two" });
        }
        Ok(pairs)
    }

    /// The loss of a corpus's classifier; its tape begins at the streams.
    pub(super) fn loss_of_classes<T: Tape<f32, D>>(
        &self,
        classes: &Classes,
        streams: &[(Stream, Rows<D>)],
        labels: Option<&[Vec<u32>]>,
    ) -> Result<Scalar<D, T>, ModelError> {
        let corpus = &classes.corpus;
        let Some(classifier) = self.config.classifiers.iter().find(|c| c.corpus == *corpus) else {
            let known: Vec<&str> = self.config.classifiers.iter().map(|c| c.corpus.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(ModelError::UnknownClassifier { corpus: corpus.clone(), known });
        };
        let missing = || ModelError::MissingStream {
            stream: classifier.stream.name(),
            objective: match classes.form {
                Form::Softmax => "softmax",
                Form::Sigmoid => "sigmoid",
            },
            wanted: "the stream of the corpus's classifier",
        };
        let (_, features) = streams.iter().find(|(stream, _)| *stream == classifier.stream).ok_or_else(missing)?;
        let layer = self.linear(&classifier_name(corpus), classifier.n_classes, false, InputGrad::Wanted)?;
        let logits = D::linear(features.retaped::<T>(), &layer).map_err(device)?;
        classes.loss(logits, labels.unwrap_or_default())
    }

    /// Common-space vectors of `source` for the space shared with `target`, not normalised.
    pub(super) fn common<T: Tape<f32, D>>(
        &self,
        pooled: Rows<D, T>,
        source: Stream,
        target: Stream,
    ) -> Result<Rows<D, T>, ModelError> {
        if !self.config.pairs.contains(&(source.min(target), source.max(target))) {
            let pairs: Vec<String> = self.config.pairs.iter().map(|(a, b)| format!("{a}-{b}")).collect();
            return Err(ModelError::UnknownPair {
                source_stream: source.name(),
                target: target.name(),
                pairs: pairs.join(", "),
            });
        }
        let head = head_name(source, target);
        let width = self.config.common_width;
        let x =
            D::linear(pooled, &self.linear(&format!("{head}/wi"), width, true, InputGrad::Wanted)?).map_err(device)?;
        let x = D::linear(x, &self.linear(&format!("{head}/wo"), width, false, InputGrad::Wanted)?).map_err(device)?;
        D::layer_norm(x, &self.norm(&format!("{head}/norm"), true)?).map_err(device)
    }

    /// Host copy of the common-space vectors as they are, for means that are taken before normalising.
    pub(super) fn common_values(
        &self,
        pooled: Rows<D, NoneTape>,
        source: Stream,
        target: Stream,
    ) -> Result<Vec<f32>, ModelError> {
        Ok(self.common(pooled, source, target)?.as_vec())
    }

    /// Host copy of the L2-normalised common-space vectors.
    pub(super) fn embedding(
        &self,
        pooled: Rows<D, NoneTape>,
        source: Stream,
        target: Stream,
    ) -> Result<Vec<f32>, ModelError> {
        Ok(D::l2_normalise(self.common(pooled, source, target)?).map_err(device)?.as_vec())
    }
}

/// Feature vectors of each stream, and the tape that led to them.
type StreamsOnTape<D, T> = (Vec<(Stream, Rows<D>)>, T);

/// Takes what led to `rows` onto `tape`.
fn split<D: Backend, T: Tape<f32, D>>(rows: Rows<D, T>, tape: &mut T) -> Rows<D> {
    let (rows, of_rows) = rows.split_tape();
    *tape = std::mem::take(tape).merge(of_rows);
    rows
}

/// Two streams of a batch, and of each the vectors in the space that it shares with the other, not normalised.
pub(super) struct PairVectors<V> {
    pub streams: [Stream; 2],
    pub vectors: [V; 2],
}

fn other_than(stream: &'static str) -> &'static str {
    if stream == "any" { "vision, spectrogram, waveform or text" } else { "second" }
}
