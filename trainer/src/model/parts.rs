//! The loss of a batch with only some of its examples in the encoder at a time.
//!
//! In: a batch, the most examples of a part. Out: as [`Imp::loss`]. Never: fewer negatives: a contrastive loss sees the vectors of the
//! whole batch, which are embedded first without a tape, and then once more, part by part, to take the gradients back.
//!
//! Equal to the loss of the whole batch in a dense model. Experts choose among the tokens of a part.
//! Source: Gao et al. 2021, arXiv:2101.06983 (gradient caching); IMP.md, trap T9.

use std::ops::Range;

use dfdx::prelude::{
    Backward, Gradients, HasShape, Merge, NoneTape, OwnedTape, PutTape, SplitTape, SumTo, Trace, TryAdd, TryMul,
};
use imp_schemas::batch::{AudioBatch, Batch, TextBatch, VisionBatch};

use super::encoder::Call;
use super::experts::Purpose;
use super::heads::PairVectors;
use super::{Grads, Imp, Loss, ModelError, RoutingSummary, device};
use crate::objective::Goal;
use crate::ops::{Backend, Scalar, scalar_value};

impl<D: Backend> Imp<D> {
    /// As [`Imp::loss`], with at most `most` examples in the encoder at a time.
    ///
    /// # Errors
    /// As [`Imp::loss`].
    pub fn loss_in_parts(&self, goal: &Goal, batch: &Batch, most: usize) -> Result<Loss<D>, ModelError> {
        let n = batch.n();
        let n_parts = n.div_ceil(most.max(1));
        if n_parts <= 1 {
            return self.loss(goal, batch);
        }
        let parts: Vec<Range<usize>> = (0..n_parts).map(|i| i * n / n_parts..(i + 1) * n / n_parts).collect();
        let mut sum = Sum { value: 0.0, grads: None, stats: Vec::new() };
        if goal.nce {
            self.nce_in_parts(goal, batch, &parts, &mut sum)?;
        } else {
            let step = Call::new(&self.config, Purpose::Train);
            for range in &parts {
                let share = range.len() as f32 / n as f32;
                let mut call = step.again();
                let loss = self.objective::<OwnedTape<f32, D>>(goal, &part(batch, range), &mut call)?;
                sum.value += share * scalar_value(&loss);
                self.add(loss.try_mul(share).map_err(device)?, &mut sum)?;
                sum.note(call, share);
            }
        }
        if !sum.value.is_finite() {
            return Err(ModelError::LossNotFinite(sum.value));
        }
        let grads = Grads(sum.grads.unwrap_or_else(Gradients::leaky));
        Ok(Loss { value: sum.value, grads, routing: RoutingSummary::of(&sum.stats) })
    }

    /// As [`Imp::loss`], with `share` of its gradients added to `before`.
    ///
    /// # Errors
    /// As [`Imp::loss`].
    pub fn loss_onto(
        &self,
        goal: &Goal,
        batch: &Batch,
        share: f32,
        before: Option<Grads<D>>,
    ) -> Result<Loss<D>, ModelError> {
        let mut sum = Sum { value: 0.0, grads: before.map(|grads| grads.0), stats: Vec::new() };
        let mut call = Call::new(&self.config, Purpose::Train);
        let loss = self.objective::<OwnedTape<f32, D>>(goal, batch, &mut call)?;
        let value = scalar_value(&loss);
        if !value.is_finite() {
            return Err(ModelError::LossNotFinite(value));
        }
        self.add(loss.try_mul(share).map_err(device)?, &mut sum)?;
        let grads = Grads(sum.grads.unwrap_or_else(Gradients::leaky));
        Ok(Loss { value, grads, routing: RoutingSummary::of(&call.stats) })
    }

    fn nce_in_parts(
        &self,
        goal: &Goal,
        batch: &Batch,
        parts: &[Range<usize>],
        sum: &mut Sum<D>,
    ) -> Result<(), ModelError> {
        let mut whole: Vec<PairVectors<Vec<f32>>> = Vec::new();
        let step = Call::new(&self.config, Purpose::Train);
        for range in parts {
            let mut call = step.again();
            let (pooled, mut tape) = self.pooled_streams::<NoneTape>(&part(batch, range), &mut call)?;
            let pairs = self.pairs_of(&pooled, &mut tape)?;
            for (i, pair) in pairs.into_iter().enumerate() {
                let [u, v] = pair.vectors.map(|rows| rows.as_vec());
                match whole.get_mut(i) {
                    Some(pair) => {
                        pair.vectors[0].extend(u);
                        pair.vectors[1].extend(v);
                    }
                    None => whole.push(PairVectors { streams: pair.streams, vectors: [u, v] }),
                }
            }
        }
        // The loss of all vectors, and its gradients at them.
        let width = self.config.common_width;
        let mut leaves = Vec::with_capacity(whole.len());
        for PairVectors { streams, vectors } in whole {
            let [u, v] = vectors.map(|values| {
                let shape = (values.len() / width, width);
                self.dev.try_tensor_from_vec(values, shape).map_err(device)
            });
            leaves.push(PairVectors { streams, vectors: [u?, v?] });
        }
        let taped = leaves.iter().map(|pair| PairVectors {
            streams: pair.streams,
            vectors: [0, 1].map(|side: usize| pair.vectors[side].clone()),
        });
        let loss = self.nce_of::<OwnedTape<f32, D>>(taped.collect(), batch.n(), OwnedTape::default())?;
        sum.value += scalar_value(&loss);
        let grads = loss.try_backward().map_err(device)?;
        let at_vectors: Vec<[Vec<f32>; 2]> =
            leaves.iter().map(|pair| [0, 1].map(|side: usize| grads.get(&pair.vectors[side]).as_vec())).collect();
        sum.grads = Some(self.of_parameters(grads)?);
        // Once more, part by part: the product with those gradients has the gradients of the whole.
        for range in parts {
            let share = range.len() as f32 / batch.n() as f32;
            let mut call = step.again();
            let part = part(batch, range);
            let (pooled, mut tape) = self.pooled_streams::<OwnedTape<f32, D>>(&part, &mut call)?;
            let pairs = self.pairs_of(&pooled, &mut tape)?;
            let mut total: Scalar<D> = self.dev.try_zeros().map_err(device)?;
            for (pair, at) in pairs.into_iter().zip(&at_vectors) {
                for (rows, at) in pair.vectors.into_iter().zip(at) {
                    let shape = *rows.shape();
                    let per_example = at.len() / batch.n();
                    let slice = at[range.start * per_example..range.end * per_example].to_vec();
                    let slice = self.dev.try_tensor_from_vec(slice, shape).map_err(device)?;
                    let product = rows.put_tape(OwnedTape::default()).try_mul(slice).map_err(device)?;
                    let with = product.try_sum::<(), _>().and_then(|p| p.try_add(total)).map_err(device)?;
                    let (with, of_product) = with.split_tape();
                    (total, tape) = (with, tape.merge(of_product));
                }
            }
            let mut loss = total.put_tape(tape);
            // What needs no other example than its own is taken back on the same way.
            if let Some(classes) = &goal.classes {
                let of_classes = self.loss_of_classes::<OwnedTape<f32, D>>(classes, &pooled, part.labels.as_deref())?;
                sum.value += share * scalar_value(&of_classes);
                loss = loss.try_add(of_classes.try_mul(share).map_err(device)?).map_err(device)?;
            }
            for router_loss in call.router_losses.drain(..) {
                sum.value += share * scalar_value(&router_loss);
                let weighted = router_loss.put_tape(OwnedTape::default()).try_mul(share).map_err(device)?;
                loss = loss.try_add(weighted).map_err(device)?;
            }
            self.add(loss, sum)?;
            sum.note(call, share);
        }
        Ok(())
    }

    /// Takes `loss` back and adds its gradients to those that are there.
    fn add(&self, loss: Scalar<D, OwnedTape<f32, D>>, sum: &mut Sum<D>) -> Result<(), ModelError> {
        let loss = match sum.grads.take() {
            Some(before) => {
                let zero: Scalar<D> = self.dev.try_zeros().map_err(device)?;
                loss.try_add(zero.traced(before)).map_err(device)?
            }
            None => loss,
        };
        sum.grads = Some(self.of_parameters(loss.try_backward().map_err(device)?)?);
        Ok(())
    }

    /// The gradients of the parameters alone: a part's own tensors do not wait for the next part.
    fn of_parameters(&self, mut grads: Gradients<f32, D>) -> Result<Gradients<f32, D>, ModelError> {
        let mut kept = Gradients::leaky();
        for p in &self.parameters {
            let gradient = grads.get_or_alloc_mut(&p.tensor).map_err(device)?;
            std::mem::swap(kept.get_or_alloc_mut(&p.tensor).map_err(device)?, gradient);
        }
        Ok(kept)
    }
}

/// What the parts have said so far.
struct Sum<D: Backend> {
    value: f32,
    grads: Option<Gradients<f32, D>>,
    stats: Vec<crate::ops::RoutingStats>,
}

impl<D: Backend> Sum<D> {
    fn note(&mut self, call: Call<D>, share: f32) {
        // The summary adds z-losses up, over blocks and calls of the whole batch.
        self.stats.extend(call.stats.into_iter().map(|mut stats| {
            stats.z_loss *= share;
            stats
        }));
    }
}

/// Examples `range` of a batch.
fn part(batch: &Batch, range: &Range<usize>) -> Batch {
    let n = batch.n();
    fn rows<V: Clone>(all: &[V], n: usize, range: &Range<usize>) -> Vec<V> {
        let per = all.len() / n.max(1);
        all[range.start * per..range.end * per].to_vec()
    }
    let kept = |kept: &Option<Vec<u32>>| kept.as_ref().map(|kept| rows(kept, n, range));
    Batch {
        examples: rows(&batch.examples, n, range),
        vision: batch.vision.as_ref().map(|v| VisionBatch {
            resolution: v.resolution,
            pixels: rows(&v.pixels, n, range),
            kept: kept(&v.kept),
        }),
        audio: batch.audio.as_ref().map(|a| AudioBatch {
            resolution: a.resolution,
            values: rows(&a.values, n, range),
            kept: kept(&a.kept),
        }),
        text: batch.text.as_ref().map(|t| TextBatch { n_tokens: t.n_tokens, ids: rows(&t.ids, n, range) }),
        labels: batch.labels.as_ref().map(|labels| rows(labels, n, range)),
        ..*batch
    }
}
