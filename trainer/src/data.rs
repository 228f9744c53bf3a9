//! The loader against a trainer that takes no time, or as much as it is told to: how fast batches come, and what holds them up.
//!
//! In: a config and its shards. Out: a [`DataReport`]. Never: a model, a checkpoint; the batches are those that `fit` would get.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use imp_loader::{Bound, Loader, LoaderError, LoaderStats, Rank, Stages, Watch};
use imp_schemas::batch::Batch;
use imp_schemas::store::Store;
use serde::Serialize;

use crate::config::TrainConfig;

/// What was asked for of one task.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TaskBatches {
    pub n_steps: u64,
    pub n_examples: u64,
    /// Bytes of the batches' arrays.
    pub n_bytes: u64,
}

/// What a run of the loader alone showed. Times are of the steps after the first, which also opens shards.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataReport {
    pub n_steps: u64,
    pub n_examples: u64,
    pub seconds: f64,
    pub first_batch_seconds: f64,
    pub examples_per_second: f64,
    /// By task name.
    pub tasks: BTreeMap<String, TaskBatches>,
    pub stages: Stages,
    pub bound: Bound,
    /// What to change, a sentence each.
    pub advice: Vec<String>,
    pub stats: LoaderStats,
}

/// What [`measure`] does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DataOptions {
    pub from_step: u64,
    /// Batches to take after the first.
    pub n_steps: u64,
    /// What the trainer takes for a step.
    pub step: Duration,
    pub rank: Rank,
}

/// Looks on while batches are taken.
pub trait Observer {
    /// The loader is open.
    fn opened(&mut self, _watch: &Watch) {}
    /// A batch was handed out.
    fn took(&mut self, _batch: &Batch) {}
}

/// Takes batches as `options` says.
///
/// # Errors
/// The loader cannot be opened, or failed.
pub fn measure(
    config: &TrainConfig,
    store: &Store,
    options: &DataOptions,
    observer: &mut dyn Observer,
) -> Result<DataReport, LoaderError> {
    let &DataOptions { from_step, n_steps, step, rank } = options;
    let opened = Instant::now();
    let mut loader = Loader::open_at_step(store, config.mixture.clone(), &config.loader, from_step, rank)?;
    observer.opened(&loader.watch());
    let first = loader.next()?;
    observer.took(&first);
    loader.recycle(first);
    let first_batch_seconds = opened.elapsed().as_secs_f64();
    let before = loader.stats().stages;
    let started = Instant::now();
    let mut tasks: BTreeMap<String, TaskBatches> = BTreeMap::new();
    for _ in 0..n_steps {
        if !step.is_zero() {
            std::thread::sleep(step);
        }
        let batch = loader.next()?;
        let task = tasks.entry(config.mixture.tasks()[batch.task_idx].name().to_owned()).or_default();
        task.n_steps += 1;
        task.n_examples += batch.n() as u64;
        task.n_bytes += batch.n_bytes() as u64;
        observer.took(&batch);
        loader.recycle(batch);
    }
    let seconds = started.elapsed().as_secs_f64();
    let stats = loader.stats();
    let stages = stats.stages.since(&before);
    let n_examples = tasks.values().map(|task| task.n_examples).sum();
    let examples_per_second = n_examples as f64 / seconds.max(f64::MIN_POSITIVE);
    let bound = stages.bound();
    let advice = advice(bound, &stages, config);
    Ok(DataReport {
        n_steps,
        n_examples,
        seconds,
        first_batch_seconds,
        examples_per_second,
        tasks,
        stages,
        bound,
        advice,
        stats,
    })
}

/// A stage that works less of its time than this is held up by something else.
const LEAST_BUSY: f64 = 0.7;

fn advice(bound: Bound, stages: &Stages, config: &TrainConfig) -> Vec<String> {
    let loader = &config.loader;
    let mut advice = Vec::new();
    match bound {
        Bound::Trainer => advice.push(format!(
            "the trainer hardly waits, and the loader could be {:.1} times as fast: leave it as it is",
            stages.headroom()
        )),
        Bound::Decode | Bound::Storage if stages.headroom() > 1.0 / LEAST_BUSY => advice.push(format!(
            "no stage is busy: too little is under way at a time; raise `train.loader.max_buffered_mib` ({}) or \
             `train.loader.prefetch_batches` ({})",
            loader.max_buffered_mib, loader.prefetch_batches
        )),
        Bound::Decode => {
            let n_cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            if loader.decode_threads < n_cores {
                advice.push(format!(
                    "`train.loader.decode_threads` is {} and this machine has {n_cores} cores: raise it",
                    loader.decode_threads
                ));
            } else {
                advice.push(
                    "every core decodes: set a task's `decode = \"scaled\"`, ingest with a smaller `reencode` side, or \
                     set a task's `working_side` and let \
                     `train.loader.decoded_cache_mib` hold the working copies, or use more machines"
                        .to_owned(),
                );
            }
        }
        Bound::Storage => advice.push(format!(
            "reading holds batches up: raise `train.loader.fetch_threads` ({}) and `train.loader.max_buffered_mib` ({}) so \
             that more is under way, set `train.mixture.shuffle_radius` so that reads lie side by side, or bring the store \
             nearer",
            stages.fetch.n_threads, loader.max_buffered_mib
        )),
        Bound::Assembly => {
            advice.push(
                "one thread puts batches together and finds stand-ins for records that make no example, and is busy all the \
                 time: look at `substituted` and `n_without_sound` of `--json`"
                    .to_owned(),
            );
        }
    }
    advice
}
