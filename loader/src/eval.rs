//! Every example of a split once, in row order, as it is: no draw decides anything.
//!
//! In: a corpus, a split, a view. Out: batches in row order, the last one short. Never: a record left out, except that a
//! video without sound is no example of sound, and is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use imp_schemas::batch::{Batch, ExampleId};
use imp_schemas::modality::Modality;
use imp_schemas::resolution::Patching;
use imp_schemas::spectrogram::SpectrogramSpec;
use imp_schemas::store::{Snapshot, Store};
use imp_schemas::task::{Decode, Mixture, View};

use crate::cache::Cache;
use crate::config::LoaderSettings;
use crate::corpora::Split;
use crate::decode::log_mel::MelTables;
use crate::error::LoaderError;
use crate::fetch::{self, Fetcher};
use crate::open::{check_modalities, snapshot};
use crate::pipeline::{Pipeline, Planner, Pools, Ready, Shared};
use crate::plan::StepPlan;
use crate::recipe::{Recipe, Window};
use crate::stats::Counters;

/// What an evaluation reads, besides the store.
#[derive(Debug, Clone)]
pub struct EvalSpec<'a> {
    pub corpus: &'a str,
    pub split: &'a str,
    pub modalities: &'a [Modality],
    /// Pictures and frames are the largest centred part of the view's shape. Its drop rate and batch size are not used.
    pub view: &'a View,
    pub patching: &'a Patching,
    pub spectrogram: &'a SpectrogramSpec,
    /// As [`imp_schemas::task::RawTask::working_side`].
    pub working_side: Option<usize>,
    /// Examples of a batch; the last one may be shorter.
    pub n: usize,
    /// Windows of each clip or sound, evenly spaced over it; one stands in the middle. Each has batches of its own.
    pub n_windows: usize,
}

impl<'a> EvalSpec<'a> {
    /// A split of a corpus as `mixture` cuts it into tokens, a view's batch at a time: one window of each example, in full size.
    pub fn new(
        corpus: &'a str,
        split: &'a str,
        modalities: &'a [Modality],
        view: &'a View,
        mixture: &'a Mixture,
    ) -> Self {
        let (patching, spectrogram) = (mixture.patching(), mixture.spectrogram());
        Self { corpus, split, modalities, view, patching, spectrogram, working_side: None, n: view.n(), n_windows: 1 }
    }
}

impl EvalSpec<'_> {
    pub(crate) fn recipe(&self, name: String, modalities: Vec<Modality>, window: Window) -> Recipe {
        Recipe {
            name,
            seed: 0,
            task_idx: 0,
            splits: vec![0],
            modalities,
            views: vec![self.view.clone()],
            patching: *self.patching,
            augment: None,
            working_side: self.working_side,
            decode: Decode::Full,
            window,
            needs_label: false,
        }
    }
}

/// A batch, and what scoring it needs.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalBatch {
    /// `text` holds the first caption of each record, if text was asked for.
    pub batch: Batch,
    /// All labels of each record, classes of the manifest; none for a record without.
    pub labels: Vec<Vec<u32>>,
    /// All captions of each record.
    pub captions: Vec<Vec<String>>,
    pub keys: Vec<String>,
    /// Rows of the split, as in [`Batch::examples`].
    pub rows: Vec<u64>,
    /// Which of the windows of its examples it shows, from 0; the batches of all windows of some rows follow each other.
    pub window_idx: usize,
    /// Ids of all captions of each record, not cropped, not padded.
    pub tokens: Vec<Vec<Vec<i32>>>,
}

/// Gives the batches of one split, once.
pub struct EvalLoader {
    pipeline: Pipeline,
    shared: Arc<Shared>,
    snapshot: Snapshot,
    n_rows: u64,
}

impl EvalLoader {
    /// # Errors
    /// The corpus, split or modality is not there, or a setting is out of range.
    pub fn open(store: &Store, spec: &EvalSpec<'_>, settings: &LoaderSettings) -> Result<Self, LoaderError> {
        settings.check()?;
        let place = format!("evaluation of `{}`", spec.corpus);
        let snapshot = snapshot(store, &place, spec.corpus)?;
        check_modalities(&place, spec.corpus, snapshot.manifest.kind, spec.modalities)?;
        check_view(&place, spec)?;
        let n = spec.n.max(1) as u64;
        let split = Split::new(&snapshot, spec.split)?;
        let n_rows = split.n_rows();
        let of = spec.n_windows.max(1);
        let recipe = |nth| spec.recipe(place.clone(), spec.modalities.to_vec(), Window { nth, of });
        let recipes = (0..of).map(recipe).collect();
        let filter_rate = f64::from(spec.spectrogram.sample_rate);
        let shared = Arc::new(Shared {
            fetcher: Fetcher {
                store: fetch::reading(store, settings, [&snapshot]),
                splits: vec![split],
                // Each row is read once; or once for each window, and what was decoded for the first is then there for the others.
                cache: Arc::new(Cache::new(if of > 1 { settings.decoded_cache_mib << 20 } else { 0 })),
                media_bytes: AtomicU64::new(0),
            },
            recipes,
            tables: Arc::new(MelTables::new(spec.spectrogram, filter_rate)),
            counters: Counters::default(),
            max_substituted: 0,
            plan: None,
            pools: Pools::new(settings),
        });
        let mut step = 0;
        let planner: Planner = Box::new(move || {
            let (group, window) = (step / of as u64, step as usize % of);
            let rows = group * n..((group + 1) * n).min(n_rows);
            let examples: Vec<ExampleId> = rows.map(|row| ExampleId { corpus_idx: 0, row, epoch: 0 }).collect();
            let plan = StepPlan {
                step,
                // A window is a recipe.
                task_idx: window,
                view_idx: 0,
                bucket_idx: 0,
                first: group * n,
                n_global: n,
                offset: 0,
                examples,
            };
            step += 1;
            (!plan.examples.is_empty()).then_some(plan)
        });
        let pipeline = Pipeline::start(&shared, planner, settings)?;
        Ok(Self { pipeline, shared, snapshot, n_rows })
    }

    /// The corpus as it is read.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Rows of the split.
    pub fn n_rows(&self) -> u64 {
        self.n_rows
    }

    /// Records so far that have no sound track, where sound was asked for.
    pub fn n_without_sound(&self) -> u64 {
        self.shared.counters.n_without_sound.load(Ordering::Relaxed) / self.shared.recipes.len().max(1) as u64
    }
}

impl Iterator for EvalLoader {
    type Item = Result<EvalBatch, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let ready = match self.pipeline.next()? {
                Ok(ready) => ready,
                Err(error) => return Some(Err(error)),
            };
            // A batch of nothing but videos without sound is no batch.
            if ready.batch.n() > 0 {
                return Some(Ok(scored(ready)));
            }
        }
    }
}

/// The view may give more than is asked for, never less.
fn check_view(place: &str, spec: &EvalSpec<'_>) -> Result<(), LoaderError> {
    let view = spec.view;
    let gives: Vec<Modality> =
        [view.vision(), view.audio(), view.text()].into_iter().flatten().map(|r| r.modality()).collect();
    let Some(missing) = spec.modalities.iter().find(|m| !gives.contains(m)) else { return Ok(()) };
    let (place, found) = (place.to_owned(), missing.name().to_owned());
    let wanted = gives.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ");
    Err(LoaderError::Config {
        place,
        key: "modalities",
        found,
        wanted: format!("among what its view has sizes for: {wanted}"),
    })
}

fn scored(ready: Ready) -> EvalBatch {
    EvalBatch {
        labels: ready.metas.iter().map(|m| m.labels.clone()).collect(),
        captions: ready.metas.iter().map(|m| m.captions.clone()).collect(),
        keys: ready.metas.iter().map(|m| m.key.clone()).collect(),
        rows: ready.batch.examples.iter().map(|e| e.row).collect(),
        tokens: ready.metas.iter().map(|m| m.tokens.clone()).collect(),
        window_idx: ready.batch.task_idx,
        batch: ready.batch,
    }
}
