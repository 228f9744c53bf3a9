//! What a run will read, before it reads anything: requests, bytes, cache hits, time, shapes, and how well it is shuffled.
//!
//! In: a store, a mixture, a window of steps, a cluster. Out: a [`Simulated`]. The plan is walked as a run walks it, and requests
//! are counted by the functions that make them, from the footers of the shards that the steps touch. What a cache on disk spares is
//! an estimate by rows: the cache keeps blocks and what lies between two of them, so it is full sooner, by much if records are small.
//! Never: a medium read, a decode, a rate that is not an argument.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use imp_schemas::batch::ExampleId;
use imp_schemas::resolution::Resolution;
use imp_schemas::store::Store;
use imp_schemas::task::Mixture;
use serde::Serialize;

use crate::config::{LoaderSettings, Rank};
use crate::error::LoaderError;
use crate::open::{self, Opened};
use crate::record::wanted_columns;
use crate::shuffle::{ShuffleQuality, quality};

/// The run to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimulateOptions {
    pub from_step: u64,
    pub n_steps: u64,
    pub ranks: usize,
    /// Bytes of each rank's cache on disk; 0 is none.
    pub cache_bytes: u64,
    /// Until the first byte of an answer.
    pub latency_seconds: f64,
    /// Of one rank.
    pub bytes_per_second: f64,
    /// Requests that one rank has under way.
    pub in_flight: usize,
}

/// What one task's steps read.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct SimulatedTask {
    pub n_steps: u64,
    pub n_examples: u64,
    pub n_requests: u64,
    pub n_bytes: u64,
    /// Examples found in the cache.
    pub n_cached: u64,
}

/// A shape that batches of the run may have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shape {
    pub task: String,
    /// Index among the task's views.
    pub view: usize,
    pub sizes: BTreeMap<&'static str, String>,
    /// Examples of a batch, all ranks together.
    pub n: usize,
    /// Of one example, all modalities, after DropToken.
    pub tokens: usize,
    /// Of a batch's arrays, all ranks together.
    pub n_bytes: usize,
}

/// What the window of steps will read, all ranks together unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulated {
    pub from_step: u64,
    pub n_steps: u64,
    pub ranks: usize,
    /// Footers: one request for each shard that a rank touches.
    pub n_opening_requests: u64,
    pub n_opening_bytes: u64,
    /// By task name.
    pub tasks: BTreeMap<String, SimulatedTask>,
    pub n_requests: u64,
    pub n_bytes: u64,
    pub requests_per_1000_examples: f64,
    /// Of one rank, mean over its steps.
    pub bytes_per_step: f64,
    /// Share of examples found in the cache.
    pub cache_hits: f64,
    /// Of one rank, mean: what reading takes if nothing else holds it up.
    pub read_seconds_per_step: f64,
    /// Whether latency or bandwidth takes it.
    pub bound_by: &'static str,
    /// Every shape that a batch of the run may have, from the first step to the last.
    pub shapes: Vec<Shape>,
    /// By task name, of the whole run.
    pub shuffle: BTreeMap<String, ShuffleQuality>,
}

/// Walks the steps of `options`.
///
/// # Errors
/// As [`crate::Loader::open_rank`]; the footer of a shard cannot be read.
pub fn simulate(store: &Store, mixture: &Mixture, options: &SimulateOptions) -> Result<Simulated, LoaderError> {
    for rank in 0..options.ranks.max(1) {
        open::check_rank(mixture, Rank { rank, of: options.ranks })?;
    }
    let opened = open::open(store, mixture, &LoaderSettings::default(), None)?;
    let mut ranks: Vec<RankReads> = (0..options.ranks).map(|_| RankReads::new(options.cache_bytes)).collect();
    let mut tasks: BTreeMap<String, SimulatedTask> = BTreeMap::new();
    let mut state = opened.plan.seek(options.from_step);
    for _ in 0..options.n_steps {
        let plan = opened.plan.advance(&mut state);
        let task = tasks.entry(mixture.tasks()[plan.task_idx].name().to_owned()).or_default();
        task.n_steps += 1;
        for (rank, reads) in ranks.iter_mut().enumerate() {
            let slice = plan.clone().slice(Rank { rank, of: options.ranks });
            reads.step(store, &opened, plan.task_idx, &slice.examples, task)?;
        }
    }
    let total = |of: fn(&SimulatedTask) -> u64| tasks.values().map(of).sum::<u64>();
    let (n_requests, n_bytes) = (total(|t| t.n_requests), total(|t| t.n_bytes));
    let (n_examples, n_cached) = (total(|t| t.n_examples), total(|t| t.n_cached));
    let steps_of_ranks = (options.n_steps.max(1) * options.ranks as u64) as f64;
    let waiting = n_requests as f64 / steps_of_ranks * options.latency_seconds / options.in_flight.max(1) as f64;
    let moving = n_bytes as f64 / steps_of_ranks / options.bytes_per_second.max(1.0);
    Ok(Simulated {
        from_step: options.from_step,
        n_steps: options.n_steps,
        ranks: options.ranks,
        n_opening_requests: ranks.iter().map(|rank| rank.opened.len() as u64).sum(),
        n_opening_bytes: ranks.iter().map(|rank| rank.opening_bytes).sum(),
        n_requests,
        n_bytes,
        requests_per_1000_examples: 1000.0 * n_requests as f64 / n_examples.max(1) as f64,
        bytes_per_step: n_bytes as f64 / steps_of_ranks,
        cache_hits: n_cached as f64 / n_examples.max(1) as f64,
        read_seconds_per_step: waiting.max(moving),
        bound_by: if waiting > moving { "latency" } else { "bandwidth" },
        tasks,
        shapes: shapes(mixture, &opened),
        shuffle: mixture
            .tasks()
            .iter()
            .enumerate()
            .map(|(i, task)| (task.name().to_owned(), quality(&opened.plan, task, i, mixture.shuffle_radius())))
            .collect(),
    })
}

/// What one rank has read so far.
struct RankReads {
    opened: BTreeSet<(usize, usize)>,
    opening_bytes: u64,
    /// Rows (of splits) in the cache. What came first stays: see `disk_cache`.
    cached: HashSet<(usize, u64)>,
    cache_left: u64,
}

impl RankReads {
    fn new(cache_bytes: u64) -> Self {
        Self { opened: BTreeSet::new(), opening_bytes: 0, cached: HashSet::new(), cache_left: cache_bytes }
    }

    fn step(
        &mut self,
        store: &Store,
        opened: &Opened,
        task_idx: usize,
        examples: &[ExampleId],
        task: &mut SimulatedTask,
    ) -> Result<(), LoaderError> {
        let recipe = &opened.recipes[task_idx];
        let mut shards: BTreeMap<(usize, usize), BTreeSet<u64>> = BTreeMap::new();
        task.n_examples += examples.len() as u64;
        for example in examples {
            let split_idx = recipe.splits[example.corpus_idx as usize];
            let split = &opened.splits[split_idx];
            if self.cached.contains(&(split_idx, example.row)) {
                task.n_cached += 1;
                continue;
            }
            let (shard_idx, row) = split.locate(example.row);
            shards.entry((split_idx, shard_idx)).or_default().insert(row);
            if self.cache_left >= split.mean_bytes && self.cached.insert((split_idx, example.row)) {
                self.cache_left -= split.mean_bytes;
            }
        }
        for ((split_idx, shard_idx), rows) in shards {
            let split = &opened.splits[split_idx];
            let reader = split.reader(store, shard_idx)?;
            if self.opened.insert((split_idx, shard_idx)) {
                self.opening_bytes += split.footer_bytes(shard_idx);
            }
            let wanted = wanted_columns(&reader, split.kind, false);
            let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
            let rows: Vec<u64> = rows.into_iter().collect();
            let requests = reader
                .requests(&rows, &names)
                .map_err(|source| LoaderError::Shard { corpus: split.corpus.clone(), source })?;
            task.n_requests += requests.len() as u64;
            task.n_bytes += requests.iter().map(|range| range.end - range.start).sum::<u64>();
        }
        Ok(())
    }
}

fn shapes(mixture: &Mixture, opened: &Opened) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (task, recipe) in mixture.tasks().iter().zip(&opened.recipes) {
        for (view_idx, view) in task.views().iter().enumerate() {
            let sizes = [("vision", recipe.vision(view)), ("audio", recipe.audio(view)), ("text", recipe.text(view))];
            let named = |(name, size): (&'static str, Option<Resolution>)| Some((name, size?.to_string()));
            shapes.push(Shape {
                task: task.name().to_owned(),
                view: view_idx,
                sizes: sizes.into_iter().filter_map(named).collect(),
                n: view.n(),
                tokens: task.n_tokens_per_example(view, mixture.patching()),
                n_bytes: recipe.output_bytes(view, view.n()),
            });
        }
    }
    shapes
}
