//! Examples → batches, in order of steps.
//!
//! In: decoded examples as they come. Out: batches in order. Never: padding between examples, a short batch in training, a
//! record left out in silence: for content that cannot make an example, the next index of the same permutation stands in,
//! the same one on every machine and with every number of threads, and the record is remembered.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use crossbeam::channel::{Receiver, Sender};
use imp_schemas::batch::{AudioBatch, Batch, ExampleId, TextBatch, VisionBatch};
use imp_schemas::resolution::Resolution;

use crate::decode::{Example, Workbench};
use crate::error::{ContentFault, LoaderError};
use crate::pipeline::{Decoded, Fault, Ready, Shared, Work};
use crate::plan::{Plan, StepPlan};
use crate::pool::Pool;
use crate::recipe::Recipe;
use crate::record::Record;
use crate::stats::{Clock, Substituted};

/// Puts examples back in order, finds substitutes, makes batches.
pub struct Assembler<'a> {
    shared: &'a Shared,
    bench: Workbench,
    pending: BTreeMap<u64, Pending>,
    next_seq: u64,
}

enum Pending {
    Partly { work: Arc<Work>, results: Vec<Option<Result<Example, (Record, Fault)>>> },
    Failed(LoaderError),
}

impl<'a> Assembler<'a> {
    pub fn new(shared: &'a Shared) -> Self {
        Self { shared, bench: shared.workbench(), pending: BTreeMap::new(), next_seq: 0 }
    }

    /// Until there are no more examples, nobody wants batches, or a batch cannot be made.
    pub fn run(mut self, decoded: &Receiver<Decoded>, ready: &Sender<Result<Ready, LoaderError>>) {
        let shared = self.shared;
        let mut clock = Clock::new(&shared.counters.assemble);
        for message in decoded {
            clock.waited_for_input();
            self.take(message);
            while let Some(pending) = self.next_complete() {
                let batch = self.finish(pending);
                clock.worked();
                self.next_seq += 1;
                let failed = batch.is_err();
                if ready.send(batch).is_err() || failed {
                    return; // The trainer is gone, or has been told why there is no next batch.
                }
                clock.waited_for_output();
            }
            clock.worked();
        }
    }

    fn take(&mut self, message: Decoded) {
        match message {
            Decoded::Failed { seq, error } => {
                self.pending.insert(seq, Pending::Failed(error));
            }
            Decoded::One { work, i, result } => {
                let n = work.plan.examples.len();
                let fresh = || Pending::Partly { work: Arc::clone(&work), results: (0..n).map(|_| None).collect() };
                if let Pending::Partly { results, .. } = self.pending.entry(work.seq).or_insert_with(fresh) {
                    results[i] = Some(result);
                }
            }
        }
    }

    /// The next step's examples, once all of them are there.
    fn next_complete(&mut self) -> Option<Pending> {
        let complete = match self.pending.get(&self.next_seq)? {
            Pending::Failed(_) => true,
            Pending::Partly { results, .. } => results.iter().all(Option::is_some),
        };
        if complete { self.pending.remove(&self.next_seq) } else { None }
    }

    fn finish(&mut self, pending: Pending) -> Result<Ready, LoaderError> {
        let (work, results) = match pending {
            Pending::Partly { work, results } => (work, results),
            Pending::Failed(error) => return Err(error),
        };
        let plan = &work.plan;
        let mut made = Vec::with_capacity(results.len());
        let places = plan.offset..;
        for ((id, result), at) in plan.examples.iter().zip(results.into_iter().flatten()).zip(places) {
            match (result, &self.shared.plan) {
                (Ok(example), _) => made.push((*id, example)),
                (Err((record, fault)), Some(order)) => made.push(self.substitute(order, plan, &record, fault, at)?),
                (Err((record, fault)), None) => self.leave_out(&record, fault)?,
            }
        }
        let recipe = &self.shared.recipes[plan.task_idx];
        let batch = assemble(plan, recipe, &made, &self.shared.pools.batches);
        let mut metas = Vec::with_capacity(made.len());
        for (_, example) in made {
            metas.push(example.meta);
            example.pixels.into_iter().for_each(|pixels| self.shared.pools.examples.give(pixels));
        }
        let permit = work.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Ready { batch, metas, permit })
    }

    /// The example at place `at` of the bucket's next batch, or of the one after it, whose content can make one. Each place has
    /// stand-ins of its own, beyond the batch: no rank needs to know what another one left out, and none stands in twice.
    fn substitute(
        &mut self,
        order: &Plan,
        plan: &StepPlan,
        record: &Record,
        fault: Fault,
        at: u64,
    ) -> Result<(ExampleId, Example), LoaderError> {
        let mut reason = self.count(record, fault)?;
        let n_rows = order.n_rows(plan.task_idx, plan.bucket_idx);
        for nth in 1..=n_rows {
            let k = plan.first + nth * plan.n_global + at;
            let id = order.example_at(plan.task_idx, plan.bucket_idx, k);
            let recipe = &self.shared.recipes[plan.task_idx];
            for record in self.shared.fetcher.fetch(recipe, &[id])? {
                match self.shared.decode(&mut self.bench, plan, &id, &record) {
                    Ok(example) => return Ok((id, example)),
                    Err(fault) => reason = self.count(&record, fault)?,
                }
            }
        }
        let task = self.shared.recipes[plan.task_idx].name.clone();
        Err(LoaderError::NothingDecodes { task, n_rows, reason })
    }

    /// Remembers a record that cannot make an example; an error if there are too many, or if a decoder panicked.
    fn count(&self, record: &Record, fault: Fault) -> Result<ContentFault, LoaderError> {
        let (corpus, shard, row) = self.place_of(record);
        let reason = match fault {
            Fault::Content(reason) => reason,
            Fault::Panic(detail) => return Err(LoaderError::Panicked { corpus, shard, row, detail }),
        };
        if reason == ContentFault::NoSound {
            self.shared.counters.n_without_sound.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return Ok(reason);
        }
        let entry = Substituted { corpus: corpus.clone(), shard: shard.clone(), row, reason: reason.to_string() };
        let n_substituted = self.shared.counters.substitute(entry);
        let limit = self.shared.max_substituted;
        if n_substituted > limit {
            return Err(LoaderError::TooManySubstituted { corpus, shard, row, reason, n_substituted, limit });
        }
        Ok(reason)
    }

    /// Evaluation: only a record that does not have what is evaluated may be missing.
    fn leave_out(&self, record: &Record, fault: Fault) -> Result<(), LoaderError> {
        let (corpus, shard, row) = self.place_of(record);
        match fault {
            Fault::Content(ContentFault::NoSound) => {
                self.shared.counters.n_without_sound.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(())
            }
            Fault::Content(reason) => Err(LoaderError::Undecodable { corpus, shard, row, reason }),
            Fault::Panic(detail) => Err(LoaderError::Panicked { corpus, shard, row, detail }),
        }
    }

    fn place_of(&self, record: &Record) -> (String, String, u64) {
        let split = &self.shared.fetcher.splits[record.place.corpus];
        (split.corpus.clone(), record.place.shard.to_string(), record.place.row_in_shard)
    }
}

/// The batch of `plan`; `made` stands in the order of examples and each says which record it was made from.
fn assemble(plan: &StepPlan, recipe: &Recipe, made: &[(ExampleId, Example)], pool: &Pool) -> Batch {
    let view = &recipe.views[plan.view_idx];
    let vision = recipe.vision(view).map(|resolution| VisionBatch {
        resolution,
        pixels: {
            let parts = || made.iter().filter_map(|(_, example)| example.pixels.as_deref());
            let mut pixels = pool.take_empty(parts().map(<[u8]>::len).sum());
            parts().for_each(|part| pixels.extend_from_slice(part));
            pixels
        },
        kept: kept(made, |e| e.kept_vision.as_deref()),
    });
    let audio = recipe.audio(view).map(|resolution| AudioBatch {
        resolution,
        values: joined(made, |e| e.sound.as_deref()),
        kept: kept(made, |e| e.kept_audio.as_deref()),
    });
    let text = recipe.text(view).and_then(|resolution| match resolution {
        Resolution::Text { tokens } => Some(TextBatch { n_tokens: tokens, ids: joined(made, |e| e.ids.as_deref()) }),
        Resolution::Image { .. }
        | Resolution::Video { .. }
        | Resolution::Audio { .. }
        | Resolution::Waveform { .. } => None,
    });
    Batch {
        step: plan.step,
        task_idx: plan.task_idx,
        view_idx: plan.view_idx,
        examples: made.iter().map(|(id, _)| *id).collect(),
        vision,
        audio,
        text,
        labels: made.iter().map(|(_, e)| Some(e.meta.labels.clone()).filter(|labels| !labels.is_empty())).collect(),
    }
}

fn joined<'a, T: Copy + 'a>(made: &'a [(ExampleId, Example)], of: impl Fn(&'a Example) -> Option<&'a [T]>) -> Vec<T> {
    let parts: Vec<&[T]> = made.iter().filter_map(|(_, example)| of(example)).collect();
    parts.concat()
}

fn kept<'a>(made: &'a [(ExampleId, Example)], of: impl Fn(&'a Example) -> Option<&'a [u32]>) -> Option<Vec<u32>> {
    made.first().and_then(|(_, example)| of(example))?;
    Some(joined(made, of))
}
