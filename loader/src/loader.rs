//! The loader of a run: opened once, asked for the next batch, asked what was consumed.
//!
//! In: a store, a mixture, a cursor. Out: batches in order of steps, from any step on. Never: a batch twice, a batch left
//! out, a cursor of what was only prefetched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imp_schemas::batch::Batch;
use imp_schemas::cursor::Cursor;
use imp_schemas::store::{Snapshot, Store};
use imp_schemas::task::Mixture;

use crate::cache::Cache;
use crate::config::{LoaderSettings, Rank};
use crate::decode::log_mel::MelTables;
use crate::error::LoaderError;
use crate::fetch::Fetcher;
use crate::open::{self, Opened};
use crate::pipeline::{Pipeline, Planner, Pools, Shared};
use crate::plan::{Plan, PlanState};
use crate::stats::{Clock, Counters, LoaderStats, Stage, Stages, Substituted};

/// Gives the batches of a run in order of steps.
pub struct Loader {
    pipeline: Pipeline,
    mixture: Mixture,
    manifests: BTreeMap<String, Snapshot>,
    plan: Plan,
    /// What [`Loader::next`] has handed out.
    consumed: PlanState,
    watch: Watch,
    /// When the trainer last got a batch.
    handed_at: Option<Instant>,
}

impl Loader {
    /// Opens every corpus and starts at `start`, with the snapshots that it began with; `None` is step 0 of the newest ones.
    ///
    /// # Errors
    /// What the mixture asks for is not there; a setting is out of range; `start` is of another mixture, manifest or seed,
    /// and the message says which differs.
    pub fn open(
        store: &Store,
        mixture: Mixture,
        settings: &LoaderSettings,
        start: Option<&Cursor>,
    ) -> Result<Self, LoaderError> {
        Self::open_rank(store, mixture, settings, start, Rank::ALONE)
    }

    /// As [`Loader::open`], for one of several ranks: each batch is that rank's part of the step's global batch. Ranks do not talk to
    /// each other, their cursors are equal after equal steps, and a run may be resumed with another number of them.
    ///
    /// # Errors
    /// As [`Loader::open`]; [`LoaderError::Rank`]; a view whose batch is smaller than the number of ranks.
    pub fn open_rank(
        store: &Store,
        mixture: Mixture,
        settings: &LoaderSettings,
        start: Option<&Cursor>,
        rank: Rank,
    ) -> Result<Self, LoaderError> {
        Self::start(store, mixture, settings, rank, start, |opened, mixture| match start {
            Some(cursor) => open::resume(&opened.plan, mixture, &opened.manifests, cursor),
            None => Ok(opened.plan.start()),
        })
    }

    /// As [`Loader::open_rank`], from any step on: the batches are those that a run from step 0 on would have got.
    ///
    /// # Errors
    /// As [`Loader::open_rank`].
    pub fn open_at_step(
        store: &Store,
        mixture: Mixture,
        settings: &LoaderSettings,
        step: u64,
        rank: Rank,
    ) -> Result<Self, LoaderError> {
        Self::start(store, mixture, settings, rank, None, |opened, _| Ok(opened.plan.seek(step)))
    }

    fn start(
        store: &Store,
        mixture: Mixture,
        settings: &LoaderSettings,
        rank: Rank,
        begun: Option<&Cursor>,
        seek: impl FnOnce(&Opened, &Mixture) -> Result<PlanState, LoaderError>,
    ) -> Result<Self, LoaderError> {
        settings.check()?;
        open::check_rank(&mixture, rank)?;
        let opened = open::open(store, &mixture, settings, begun)?;
        let consumed = seek(&opened, &mixture)?;
        let spectrogram = mixture.spectrogram();
        let shared = Arc::new(Shared {
            fetcher: Fetcher {
                store: opened.store,
                splits: opened.splits,
                cache: Arc::new(Cache::new(settings.decoded_cache_mib << 20)),
                media_bytes: AtomicU64::new(0),
            },
            recipes: opened.recipes,
            tables: Arc::new(MelTables::new(spectrogram, f64::from(spectrogram.sample_rate))),
            counters: Counters::default(),
            max_substituted: settings.max_substituted,
            plan: Some(opened.plan.clone()),
            pools: Pools::new(settings),
        });
        let (plan, mut state) = (opened.plan.clone(), consumed.clone());
        let planner: Planner = Box::new(move || Some(plan.advance(&mut state).slice(rank)));
        let pipeline = Pipeline::start(&shared, planner, settings)?;
        let (manifests, plan) = (opened.manifests, opened.plan);
        let watch = Watch {
            shared,
            n_fetch_threads: settings.n_fetch_threads(store),
            n_decode_threads: settings.decode_threads,
            trainer: Arc::new(Stage::default()),
        };
        Ok(Self { pipeline, mixture, manifests, plan, consumed, watch, handed_at: None })
    }

    /// The next step's batch.
    ///
    /// # Errors
    /// The store failed for good, or more records do not decode than `max_substituted` allows. After an error there are no
    /// more batches.
    #[expect(clippy::should_implement_trait, reason = "a run has as many batches as are asked for: it is no iterator")]
    pub fn next(&mut self) -> Result<Batch, LoaderError> {
        let mut clock = Clock::since(&self.watch.trainer, self.handed_at);
        clock.worked();
        let ready = self.pipeline.next();
        self.handed_at = Some(clock.waited_for_input());
        let batch = ready.unwrap_or(Err(LoaderError::Stopped))?.batch;
        self.plan.skip(&mut self.consumed);
        Ok(batch)
    }

    /// Takes back a batch that was used up: its pixels' memory serves a later one. Batches that are dropped elsewhere cost the kernel's
    /// clearing of fresh pages, and nothing else.
    pub fn recycle(&self, batch: Batch) {
        if let Some(vision) = batch.vision {
            self.watch.shared.pools.batches.give(vision.pixels);
        }
    }

    /// As [`Loader::next`], for a caller that must look up now and then; `None` if the batch is not there within `limit`. The
    /// next call waits on for the same batch.
    ///
    /// # Errors
    /// As [`Loader::next`].
    pub fn next_within(&mut self, limit: Duration) -> Result<Option<Batch>, LoaderError> {
        let mut clock = Clock::since(&self.watch.trainer, self.handed_at);
        clock.worked();
        let ready = self.pipeline.next_within(limit);
        self.handed_at = Some(clock.waited_for_input());
        let Some(ready) = ready? else { return Ok(None) };
        self.plan.skip(&mut self.consumed);
        Ok(Some(ready.batch))
    }

    /// Counts what earlier starts of the run found against `max_substituted` too.
    pub fn remember(&self, substituted: impl IntoIterator<Item = Substituted>) {
        let counters = &self.watch.shared.counters;
        substituted.into_iter().for_each(|record| _ = counters.substitute(record));
    }

    /// What [`Loader::next`] has handed out, not what was prefetched.
    pub fn cursor(&self) -> Cursor {
        self.plan.cursor_of(&self.consumed, &open::digests(&self.manifests))
    }

    pub fn mixture(&self) -> &Mixture {
        &self.mixture
    }

    /// By corpus name.
    pub fn manifests(&self) -> &BTreeMap<String, Snapshot> {
        &self.manifests
    }

    /// Totals since the loader was opened, of what was prefetched too.
    pub fn stats(&self) -> LoaderStats {
        self.watch.stats()
    }

    /// Looks at the loader from another thread.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }
}

/// A loader's totals, for threads that do not take batches. Cheap to clone; it may outlive the loader.
#[derive(Clone)]
pub struct Watch {
    shared: Arc<Shared>,
    n_fetch_threads: usize,
    n_decode_threads: usize,
    trainer: Arc<Stage>,
}

impl Watch {
    /// Totals since the loader was opened, of what was prefetched too.
    pub fn stats(&self) -> LoaderStats {
        let counters = &self.shared.counters;
        let (cache_bytes, n_cache_hits) = self.shared.fetcher.cache.usage();
        LoaderStats {
            media_bytes: self.shared.fetcher.media_bytes.load(Ordering::Relaxed),
            cache_bytes,
            n_cache_hits,
            stages: Stages {
                fetch: counters.fetch.seconds(self.n_fetch_threads),
                decode: counters.decode.seconds(self.n_decode_threads),
                assemble: counters.assemble.seconds(1),
                trainer: self.trainer.seconds(1),
            },
            substituted: counters.substituted(),
            n_without_sound: counters.n_without_sound.load(Ordering::Relaxed),
            reading: self.shared.fetcher.store.reading_stats(),
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("stats", &self.stats()).finish()
    }
}
