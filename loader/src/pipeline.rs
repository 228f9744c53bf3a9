//! Every thread and every channel of a loader that is under way; opening one has threads of its own, in [`crate::corpora`].
//!
//! ```text
//! planner ──reads──► imp-fetch-0..m ──records──► imp-decode-0..n ──examples──► imp-assemble ──prefetch_batches──► next()
//! (a lock, bytes reserved in order)        2 n                        64                  (order restored)
//! ```
//!
//! A batch is as many reads as it touches shards; they wait for the store side by side, and what one of them brings is decoded
//! while the others still wait.
//!
//! In: step plans in order. Out: their batches, in that order. Never: an unbounded queue, more than `max_buffered_mib` under
//! way, a thread that outlives the loader by more than a read in progress. A closed channel is the order to stop.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use imp_schemas::batch::{Batch, ExampleId};

use crate::assemble::Assembler;
use crate::budget::{Budget, Permit};
use crate::config::LoaderSettings;
use crate::decode::log_mel::MelTables;
use crate::decode::{Example, Workbench};
use crate::error::{ContentFault, LoaderError};
use crate::fetch::{Fetcher, Placed, ShardRead};
use crate::plan::{Plan, StepPlan};
use crate::pool::Pool;
use crate::recipe::Recipe;
use crate::record::{Meta, Record};
use crate::stats::{Clock, Counters};

/// Examples that wait for the assembler.
const N_DECODED: usize = 64;
/// Buffers of examples that are kept for others.
const N_POOLED: usize = 128;
/// Share of the byte budget that buffers of examples may take while they wait to be used again; those of batches as much.
const POOLED_SHARE: usize = 16;
/// What a process takes before its first batch.
const IDLE_BYTES: usize = 32 << 20;
/// Share of the byte budget that an allocator may hold of what was freed, between blocks that are in use.
const HELD_SHARE: usize = 8;
/// Share of the byte budget that batches may have in any case.
const LEAST_SHARE: usize = 4;
/// How long a drop waits for a read that the store is still retrying.
const JOIN_LIMIT: Duration = Duration::from_secs(10);

/// What all threads share.
pub struct Shared {
    pub fetcher: Fetcher,
    pub recipes: Vec<Recipe>,
    pub tables: Arc<MelTables>,
    pub counters: Counters,
    pub max_substituted: u64,
    /// Where substitutes come from; `None` in evaluation.
    pub plan: Option<Plan>,
    pub pools: Pools,
}

/// Buffers of pixels: of single examples, and of batches.
pub struct Pools {
    pub examples: Arc<Pool>,
    pub batches: Pool,
}

impl Pools {
    pub fn new(settings: &LoaderSettings) -> Self {
        let max_bytes = (settings.max_buffered_mib << 20) / POOLED_SHARE;
        let batches = Pool::new(settings.prefetch_batches, max_bytes);
        Self { examples: Arc::new(Pool::new(N_POOLED, max_bytes)), batches }
    }
}

/// Gives the plans of steps in order, until there are no more.
pub type Planner = Box<dyn FnMut() -> Option<StepPlan> + Send>;

/// A batch, and the small columns of its examples.
pub struct Ready {
    pub batch: Batch,
    pub metas: Vec<Arc<Meta>>,
    #[expect(dead_code, reason = "given back when the batch has been handed over, by being dropped")]
    pub permit: Option<Permit>,
}

/// Threads under way.
pub struct Pipeline {
    ready: Option<Receiver<Result<Ready, LoaderError>>>,
    budget: Arc<Budget>,
    threads: Vec<JoinHandle<()>>,
    /// Disconnected when the last thread has ended.
    alive: Receiver<()>,
}

/// One step on its way.
pub struct Work {
    /// Counted from the first step of this pipeline.
    pub seq: u64,
    pub plan: StepPlan,
    pub permit: Mutex<Option<Permit>>,
}

/// A record to be decoded.
struct Job {
    work: Arc<Work>,
    i: usize,
    record: Record,
}

/// What is to be fetched next.
struct Feed {
    planner: Planner,
    next_seq: u64,
    /// Of the newest step.
    reads: VecDeque<(Arc<Work>, ShardRead)>,
}

/// What a fetching thread does next.
enum Next {
    /// Records of a new step that were found decoded.
    Found(Arc<Work>, Vec<Placed>),
    Read(Arc<Work>, ShardRead),
}

/// Why there is no example.
pub enum Fault {
    Content(ContentFault),
    Panic(String),
}

/// What the assembler gets.
pub enum Decoded {
    One { work: Arc<Work>, i: usize, result: Result<Example, (Record, Fault)> },
    Failed { seq: u64, error: LoaderError },
}

impl Pipeline {
    /// Starts all threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(shared: &Arc<Shared>, planner: Planner, settings: &LoaderSettings) -> Result<Self, LoaderError> {
        let n_decode_threads = settings.decode_threads;
        let budget = Budget::new(shared.bytes_for_batches(settings));
        let feed = Arc::new(Mutex::new(Feed { planner, next_seq: 0, reads: VecDeque::new() }));
        let (jobs_tx, jobs_rx) = bounded::<Job>(2 * n_decode_threads);
        let (decoded_tx, decoded_rx) = bounded::<Decoded>(N_DECODED);
        let (ready_tx, ready_rx) = bounded(settings.prefetch_batches);
        let (alive_tx, alive) = bounded::<()>(1);
        let mut pipeline = Self { ready: Some(ready_rx), budget: Arc::clone(&budget), threads: Vec::new(), alive };
        for i in 0..settings.n_fetch_threads(&shared.fetcher.store) {
            let (shared, feed, budget) = (Arc::clone(shared), Arc::clone(&feed), Arc::clone(&budget));
            let (jobs, decoded, alive) = (jobs_tx.clone(), decoded_tx.clone(), alive_tx.clone());
            pipeline.spawn(format!("imp-fetch-{i}"), move || {
                fetch_all(&shared, &feed, &budget, &jobs, &decoded);
                drop(alive);
            })?;
        }
        for i in 0..n_decode_threads {
            let (shared, jobs, decoded, alive) =
                (Arc::clone(shared), jobs_rx.clone(), decoded_tx.clone(), alive_tx.clone());
            pipeline.spawn(format!("imp-decode-{i}"), move || {
                decode_all(&shared, &jobs, &decoded);
                drop(alive);
            })?;
        }
        let shared = Arc::clone(shared);
        pipeline.spawn("imp-assemble".to_owned(), move || {
            Assembler::new(&shared).run(&decoded_rx, &ready_tx);
            drop(alive_tx);
        })?;
        Ok(pipeline)
    }

    /// The next batch; `None` when there are no more, or after an error.
    pub fn next(&self) -> Option<Result<Ready, LoaderError>> {
        self.ready.as_ref()?.recv().ok()
    }

    /// As [`Pipeline::next`], but `None` if it is not there within `limit`.
    ///
    /// # Errors
    /// The batch's own; [`LoaderError::Stopped`] when there are no more.
    pub fn next_within(&self, limit: Duration) -> Result<Option<Ready>, LoaderError> {
        match self.ready.as_ref().ok_or(LoaderError::Stopped)?.recv_timeout(limit) {
            Ok(ready) => ready.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(LoaderError::Stopped),
        }
    }

    fn spawn(&mut self, name: String, body: impl FnOnce() + Send + 'static) -> Result<(), LoaderError> {
        let started = std::thread::Builder::new().name(name.clone()).spawn(body);
        self.threads.push(started.map_err(|source| LoaderError::Thread { name, source })?);
        Ok(())
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.ready = None;
        self.budget.close();
        // Nothing is ever sent: this waits for the last sender to go.
        let ended = self.alive.recv_timeout(JOIN_LIMIT);
        if ended.is_err_and(|e| e.is_disconnected()) {
            for thread in self.threads.drain(..) {
                // A panic has been reported on stderr by the thread itself.
                let _ = thread.join();
            }
        }
    }
}

fn fetch_all(shared: &Shared, feed: &Mutex<Feed>, budget: &Arc<Budget>, jobs: &Sender<Job>, decoded: &Sender<Decoded>) {
    let mut clock = Clock::new(&shared.counters.fetch);
    loop {
        let Some(next) = shared.next_to_fetch(feed, budget) else { return };
        // For the bytes of a batch that has not been handed over.
        clock.waited_for_output();
        let (work, records) = match next {
            Next::Found(work, records) => (work, Ok(records)),
            Next::Read(work, read) => {
                let recipe = &shared.recipes[work.plan.task_idx];
                let records = shared.fetcher.read(recipe, &work.plan.examples, read);
                (work, records)
            }
        };
        clock.worked();
        let records = match records {
            Ok(records) => records,
            Err(error) => {
                let _ = decoded.send(Decoded::Failed { seq: work.seq, error });
                return;
            }
        };
        for (i, record) in records {
            if jobs.send(Job { work: Arc::clone(&work), i, record }).is_err() {
                return; // The decoders are gone: the run is over.
            }
        }
        clock.waited_for_output();
    }
}

fn decode_all(shared: &Shared, jobs: &Receiver<Job>, decoded: &Sender<Decoded>) {
    let mut bench = shared.workbench();
    let mut clock = Clock::new(&shared.counters.decode);
    for Job { work, i, record } in jobs {
        clock.waited_for_input();
        let made = shared.decode(&mut bench, &work.plan, &work.plan.examples[i], &record);
        // The medium goes as soon as its example is there.
        let result = made.map_err(|fault| (record, fault));
        clock.worked();
        if decoded.send(Decoded::One { work, i, result }).is_err() {
            return; // The assembler is gone: the run is over.
        }
        clock.waited_for_output();
    }
}

impl Shared {
    /// Tools for one thread.
    pub fn workbench(&self) -> Workbench {
        Workbench::new(&self.tables, &self.fetcher.cache, &self.pools.examples)
    }

    /// The next read, of a new step if there is none left of the last one; `None` when there are no more.
    fn next_to_fetch(&self, feed: &Mutex<Feed>, budget: &Arc<Budget>) -> Option<Next> {
        // Plans and bytes are handed out together and in order, so the oldest batch under way always has its bytes.
        let mut feed = feed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((work, read)) = feed.reads.pop_front() {
            return Some(Next::Read(work, read));
        }
        let plan = (feed.planner)()?;
        let permit = budget.reserve(self.expected_bytes(&plan))?;
        let (found, reads) = self.fetcher.plan(&self.recipes[plan.task_idx], &plan.examples);
        let work = Arc::new(Work { seq: feed.next_seq, plan, permit: Mutex::new(Some(permit)) });
        feed.next_seq += 1;
        feed.reads.extend(reads.into_iter().map(|read| (Arc::clone(&work), read)));
        Some(Next::Found(work, found))
    }

    /// What the settings allow, less what is there besides batches: the process, the allocator's holes, buffers that are kept, and in every
    /// decoding thread a picture or frame of the largest size.
    fn bytes_for_batches(&self, settings: &LoaderSettings) -> usize {
        let max_bytes = settings.max_buffered_mib << 20;
        let decoded = self.fetcher.splits.iter().map(|split| split.decoded_bytes).max().unwrap_or(0);
        let kept = max_bytes / HELD_SHARE + 2 * (max_bytes / POOLED_SHARE);
        let besides = IDLE_BYTES + kept + settings.decode_threads.saturating_mul(decoded);
        max_bytes.saturating_sub(besides).max(max_bytes / LEAST_SHARE)
    }

    /// Encoded media by the manifests' averages, twice, because a read holds what came and what it becomes; and the batch's arrays,
    /// twice, because its examples are there until it is put together.
    fn expected_bytes(&self, plan: &StepPlan) -> usize {
        let recipe = &self.recipes[plan.task_idx];
        let encoded = |e: &ExampleId| self.fetcher.splits[recipe.splits[e.corpus_idx as usize]].mean_bytes as usize;
        let encoded: usize = plan.examples.iter().map(encoded).sum();
        2 * (encoded + recipe.output_bytes(&recipe.views[plan.view_idx], plan.examples.len()))
    }

    /// The example of one record; a panic of a decoder is caught and named.
    pub fn decode(
        &self,
        bench: &mut Workbench,
        plan: &StepPlan,
        id: &ExampleId,
        record: &Record,
    ) -> Result<Example, Fault> {
        let recipe = &self.recipes[plan.task_idx];
        let view = &recipe.views[plan.view_idx];
        let made = catch_unwind(AssertUnwindSafe(|| bench.example(recipe, view, id, record)));
        let panic = match made {
            Ok(made) => return made.map_err(Fault::Content),
            Err(panic) => panic,
        };
        // What a panic left half done must not be used again by the next example.
        *bench = self.workbench();
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(Fault::Panic(text.unwrap_or_else(|| "no message".to_owned())))
    }
}
