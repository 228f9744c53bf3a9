//! Common spaces and classifiers.
//!
//! In: feature vectors of a stream. Out: vectors of a common space, logits of one corpus. Never: a head that the step does not
//! need: only the pairs of the batch's streams and the classifier of its corpus are computed.

use dfdx::prelude::{NoneTape, PutTape, SplitTape, Tape, TryAdd};
use imp_schemas::batch::Batch;
use imp_schemas::task::Objective;

use super::encoder::Call;
use super::parameters::{classifier_name, head_name, temperature_name};
use super::{Imp, ModelError, Stream, device};
use crate::objective;
use crate::ops::{Backend, InputGrad, Rows, Scalar};

impl<D: Backend> Imp<D> {
    /// The loss of a batch, on a tape of the caller's choice: the objective, and what the routers add to it.
    pub(super) fn objective<T: Tape<f32, D>>(
        &self,
        objective: Objective,
        corpus: &str,
        batch: &Batch,
        call: &mut Call<D>,
    ) -> Result<Scalar<D, T>, ModelError> {
        let mut loss = match objective {
            Objective::Nce => self.nce(batch, call),
            Objective::Softmax => self.softmax(corpus, batch, call),
        }?;
        for router_loss in call.router_losses.drain(..) {
            loss = loss.try_add(router_loss).map_err(device)?;
        }
        Ok(loss)
    }

    /// Mean of the pair losses over every pair of the batch's streams that the model has.
    fn nce<T: Tape<f32, D>>(&self, batch: &Batch, call: &mut Call<D>) -> Result<Scalar<D, T>, ModelError> {
        let (pairs, tape) = self.pair_vectors::<T>(batch, call)?;
        self.nce_of(pairs, tape)
    }

    /// The mean of the pairs' losses; `tape` is what led to their vectors.
    pub(super) fn nce_of<T: Tape<f32, D>>(
        &self,
        pairs: Vec<PairVectors<Rows<D>>>,
        tape: T,
    ) -> Result<Scalar<D, T>, ModelError> {
        let taped = |PairVectors { streams: [a, b], vectors: [u, v] }: PairVectors<Rows<D>>| {
            let temperature = self.flat(&temperature_name(a, b))?.clone();
            let [u, v] = [u, v].map(|rows| rows.put_tape(T::default()));
            Ok(objective::nce::Pair { u, v, temperature, form: self.config.temperature_form })
        };
        objective::nce::mean_over_pairs(pairs.into_iter().map(taped).collect::<Result<_, ModelError>>()?, tape)
    }

    /// Common-space vectors of every pair of the batch's streams, and the tape that led to all of them.
    pub(super) fn pair_vectors<T: Tape<f32, D>>(
        &self,
        batch: &Batch,
        call: &mut Call<D>,
    ) -> Result<PairsOnTape<D, T>, ModelError> {
        let mut tape = T::default();
        let mut split = |rows: Rows<D, T>| {
            let (rows, of_rows) = rows.split_tape();
            tape = std::mem::take(&mut tape).merge(of_rows);
            rows
        };
        // Sentences first: their many small ops are then the last on the way back, where a device has enough to do besides.
        let text = batch.text.as_ref().map(|text| self.pooled_text(text, call).map(&mut split)).transpose()?;
        let mut streams = Vec::new();
        if let Some(vision) = &batch.vision {
            streams.push((Stream::Vision, split(self.pooled_vision(vision, call)?)));
        }
        if let Some(audio) = &batch.audio {
            streams.push((Stream::Spectrogram, split(self.pooled_audio(audio, call)?)));
        }
        streams.extend(text.map(|text| (Stream::Text, text)));
        let mut pairs = Vec::new();
        for (i, (a, of_a)) in streams.iter().enumerate() {
            for (b, of_b) in &streams[i + 1..] {
                let u = split(self.common(of_a.retaped::<T>(), *a, *b)?);
                let v = split(self.common(of_b.retaped::<T>(), *b, *a)?);
                pairs.push(PairVectors { streams: [*a, *b], vectors: [u, v] });
            }
        }
        if pairs.is_empty() {
            let stream = streams.first().map_or("any", |(stream, _)| stream.name());
            return Err(ModelError::MissingStream { stream: other_than(stream), objective: "nce", wanted: "two" });
        }
        Ok((pairs, tape))
    }

    fn softmax<T: Tape<f32, D>>(
        &self,
        corpus: &str,
        batch: &Batch,
        call: &mut Call<D>,
    ) -> Result<Scalar<D, T>, ModelError> {
        let Some(classifier) = self.config.classifiers.iter().find(|c| c.corpus == corpus) else {
            let known: Vec<&str> = self.config.classifiers.iter().map(|c| c.corpus.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(ModelError::UnknownClassifier { corpus: corpus.to_owned(), known });
        };
        let missing = |stream: Stream| ModelError::MissingStream {
            stream: stream.name(),
            objective: "softmax",
            wanted: "the stream of the corpus's classifier",
        };
        let features = match (classifier.stream, &batch.vision, &batch.audio, &batch.text) {
            (Stream::Vision, Some(vision), _, _) => self.pooled_vision(vision, call)?,
            (Stream::Spectrogram, _, Some(audio), _) => self.pooled_audio(audio, call)?,
            (Stream::Text, _, _, Some(text)) => self.pooled_text(text, call)?,
            (stream, _, _, _) => return Err(missing(stream)),
        };
        let n_classes = classifier.n_classes;
        let layer = self.linear(&classifier_name(corpus), n_classes, false, InputGrad::Wanted)?;
        let logits = D::linear(features, &layer).map_err(device)?;
        let n = dfdx::prelude::HasShape::shape(&logits).0;
        let labels = batch.labels.as_deref().unwrap_or_default();
        if labels.len() != n {
            return Err(ModelError::Values { what: "labels", found: labels.len(), wanted: n });
        }
        let targets = objective::softmax::one_hot(labels, n_classes)?;
        D::softmax_cross_entropy(logits, &targets).map_err(device)
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

/// Vectors of all pairs, and the tape that led to them.
type PairsOnTape<D, T> = (Vec<PairVectors<Rows<D>>>, T);

/// Two streams of a batch, and of each the vectors in the space that it shares with the other, not normalised.
pub(super) struct PairVectors<V> {
    pub streams: [Stream; 2],
    pub vectors: [V; 2],
}

fn other_than(stream: &'static str) -> &'static str {
    if stream == "any" { "vision, spectrogram or text" } else { "second" }
}
