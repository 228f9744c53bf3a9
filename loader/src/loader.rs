//! The loader of a run: opened once, asked for the next batch, asked what was consumed.
//!
//! In: a store, a mixture, a cursor. Out: batches in order of steps, from any step on. Never: a batch twice, a batch left
//! out, a cursor of what was only prefetched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use imp_schemas::batch::Batch;
use imp_schemas::cursor::Cursor;
use imp_schemas::store::{Snapshot, Store};
use imp_schemas::task::Mixture;

use crate::cache::Cache;
use crate::config::LoaderSettings;
use crate::decode::log_mel::MelTables;
use crate::error::LoaderError;
use crate::fetch::{self, Fetcher};
use crate::open;
use crate::pipeline::{N_FETCH_THREADS, Pipeline, Planner, Shared};
use crate::plan::{Plan, PlanState};
use crate::stats::{Clock, Counters, LoaderStats, Stage, Stages};

/// Gives the batches of a run in order of steps.
pub struct Loader {
    pipeline: Pipeline,
    shared: Arc<Shared>,
    mixture: Mixture,
    manifests: BTreeMap<String, Snapshot>,
    plan: Plan,
    /// What [`Loader::next`] has handed out.
    consumed: PlanState,
    n_decode_threads: usize,
    trainer: Stage,
    /// When the trainer last got a batch.
    handed_at: Option<Instant>,
}

impl Loader {
    /// Opens the newest snapshot of every corpus and starts at `start`; `None` is step 0.
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
        settings.check()?;
        let opened = open::open(store, &mixture)?;
        let consumed = match start {
            Some(cursor) => open::resume(&opened.plan, &mixture, &opened.manifests, cursor)?,
            None => opened.plan.start(),
        };
        let spectrogram = mixture.spectrogram();
        let shared = Arc::new(Shared {
            fetcher: Fetcher {
                store: fetch::reading(store, settings, opened.manifests.values()),
                splits: opened.splits,
                cache: Arc::new(Cache::new(settings.decoded_cache_mib << 20)),
                media_bytes: AtomicU64::new(0),
            },
            recipes: opened.recipes,
            tables: Arc::new(MelTables::new(spectrogram, f64::from(spectrogram.sample_rate))),
            counters: Counters::default(),
            max_substituted: settings.max_substituted,
            plan: Some(opened.plan.clone()),
        });
        let (plan, mut state) = (opened.plan.clone(), consumed.clone());
        let planner: Planner = Box::new(move || Some(plan.advance(&mut state)));
        let pipeline = Pipeline::start(&shared, planner, settings)?;
        let (manifests, plan) = (opened.manifests, opened.plan);
        let (n_decode_threads, trainer) = (settings.decode_threads, Stage::default());
        Ok(Self { pipeline, shared, mixture, manifests, plan, consumed, n_decode_threads, trainer, handed_at: None })
    }

    /// The next step's batch.
    ///
    /// # Errors
    /// The store failed for good, or more records do not decode than `max_substituted` allows. After an error there are no
    /// more batches.
    #[expect(clippy::should_implement_trait, reason = "a run has as many batches as are asked for: it is no iterator")]
    pub fn next(&mut self) -> Result<Batch, LoaderError> {
        let mut clock = Clock::since(&self.trainer, self.handed_at);
        clock.worked();
        let ready = self.pipeline.next();
        self.handed_at = Some(clock.waited_for_input());
        let batch = ready.unwrap_or(Err(LoaderError::Stopped))?.batch;
        self.plan.skip(&mut self.consumed);
        Ok(batch)
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
        let counters = &self.shared.counters;
        let (cache_bytes, n_cache_hits) = self.shared.fetcher.cache.usage();
        LoaderStats {
            media_bytes: self.shared.fetcher.media_bytes.load(Ordering::Relaxed),
            cache_bytes,
            n_cache_hits,
            stages: Stages {
                fetch: counters.fetch.seconds(N_FETCH_THREADS),
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
