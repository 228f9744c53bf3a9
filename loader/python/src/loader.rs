//! The loader as Python holds it: one open loader behind a lock, which nobody holds while they wait for the interpreter.
//!
//! In: what `config` read. Out: batches, states, statistics. Never: a wait that holds the interpreter; one that Ctrl-C does not
//! end within [`SLICE`]; a loader that is used, or joined, by a process that does not have its threads.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use imp_loader::{Loader, LoaderSettings, Rank};
use imp_schemas::cursor::Cursor;
use imp_schemas::modality::Modality;
use imp_schemas::resolution::n_kept;
use imp_schemas::store::Store;
use imp_schemas::task::{Mixture, Task, View};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Map, Value, json};

use crate::batch::{PyBatch, name_of, shape_of};
use crate::config;
use crate::error::WheelError;

/// How long a wait goes on before signals are looked at.
const SLICE: Duration = Duration::from_millis(50);

/// Gives the batches of a run in order of steps, forever, from any step on: iterate over it, and stop when the run ends.
///
/// The batch of a step is a pure function of the corpora's manifests, the mixture, its seed and the step: neither threads nor
/// caches change a byte of it. All work is done by threads in Rust; waiting for a batch lets other Python threads run, and Ctrl-C
/// ends it without losing one.
///
/// Args:
///     store: a folder or `s3://bucket/prefix` with the shards that imp-ingest wrote.
///     mixture: the table `[train.mixture]` of a run file as TOML text, or as a dictionary of the same keys.
///     state: where to start, as `state_dict` gave it; None is step 0.
///     options: for `s3://`, object_store's options (`aws_endpoint`, `aws_access_key_id`, ...) in place of the variables `AWS_*`.
///     rank, ranks: which part of every batch is wanted: ranks cut the global batch, so that what a step trains on does not depend on
///         their number, and a state of one of them resumes any number.
///     settings: `decode_threads`, `fetch_threads`, `prefetch_batches`, `max_buffered_mib`, `decoded_cache_mib`, `disk_cache`,
///         `disk_cache_gib`, `hedge_after_ms`, `max_substituted`, as in
///         `[train.loader]`; they change how fast batches come, never what is in them.
///
/// Raises:
///     LoaderError: what the mixture asks for is not in the store, a setting is out of range, or `state` is of another run; and
///         while iterating, the store failed for good, or more records do not decode than `max_substituted` allows. The message
///         says which, with every cause.
#[pyclass(name = "Loader", module = "imp_loader", frozen)]
pub struct PyLoader {
    opened: Arc<Opened>,
}

struct Opened {
    store: Store,
    mixture: Mixture,
    settings: LoaderSettings,
    rank: Rank,
    process: u32,
    state: Mutex<State>,
}

enum State {
    Open(Box<Loader>),
    Closed(Cursor),
}

impl PyLoader {
    fn open(
        py: Python<'_>,
        store: Store,
        mixture: Mixture,
        settings: LoaderSettings,
        rank: Rank,
        start: Option<&Cursor>,
    ) -> Result<Self, WheelError> {
        let loader = py.detach(|| Loader::open_rank(&store, mixture.clone(), &settings, start, rank))?;
        let state = Mutex::new(State::Open(Box::new(loader)));
        Ok(Self { opened: Arc::new(Opened { store, mixture, settings, rank, process: std::process::id(), state }) })
    }

    /// Does `with` without the interpreter, which others need while this waits for the lock.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        with: impl FnOnce(&mut State) -> Result<T, WheelError> + Send,
    ) -> Result<T, WheelError> {
        let opened = &self.opened;
        let here = std::process::id();
        if opened.process != here {
            return Err(WheelError::Forked { opened: opened.process, here });
        }
        py.detach(|| with(&mut opened.lock()))
    }

    /// The threads end, and `cursor` stays.
    fn replace(&self, py: Python<'_>, next: impl FnOnce(&State) -> State + Send) -> Result<(), WheelError> {
        let before = self.with(py, |state| {
            let next = next(state);
            Ok(std::mem::replace(state, next))
        })?;
        // Joins the threads: not under the lock, and not with the interpreter.
        py.detach(|| drop(before));
        Ok(())
    }
}

impl Opened {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn loader(&mut self) -> Result<&mut Loader, WheelError> {
        match self {
            Self::Open(loader) => Ok(loader),
            Self::Closed(_) => Err(WheelError::Closed),
        }
    }

    fn cursor(&self) -> Cursor {
        match self {
            Self::Open(loader) => loader.cursor(),
            Self::Closed(cursor) => cursor.clone(),
        }
    }
}

impl Drop for PyLoader {
    fn drop(&mut self) {
        if self.opened.process != std::process::id() {
            // A fork has the loader's memory and not its threads: nobody would answer.
            std::mem::forget(Arc::clone(&self.opened));
            return;
        }
        let close = || {
            let mut state = self.opened.lock();
            let closed = State::Closed(state.cursor());
            drop(std::mem::replace(&mut *state, closed));
        };
        // Without the interpreter if it is still there to be given back.
        if Python::try_attach(|py| py.detach(close)).is_none() {
            close();
        }
    }
}

#[pymethods]
impl PyLoader {
    #[new]
    #[pyo3(signature = (store, mixture, *, state = None, options = None, rank = 0, ranks = 1, **settings))]
    #[expect(clippy::too_many_arguments, reason = "each is an argument of the Python class by name")]
    fn new(
        py: Python<'_>,
        store: &Bound<'_, PyAny>,
        mixture: &Bound<'_, PyAny>,
        state: Option<&Bound<'_, PyAny>>,
        options: Option<BTreeMap<String, String>>,
        rank: usize,
        ranks: usize,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mixture = config::mixture(mixture)?;
        let settings = config::settings(LoaderSettings::default(), settings)?;
        let start = state.map(config::cursor).transpose()?;
        let url = config::url(store)?;
        let store = py.detach(|| config::store(&url, options))?;
        Ok(Self::open(py, store, mixture, settings, Rank { rank, of: ranks }, start.as_ref())?)
    }

    /// A loader by the run file of `imp-train`: its `store`, `[train.mixture]` and `[train.loader]`.
    ///
    /// Args:
    ///     path: the run file.
    ///     store: in place of the file's.
    ///     state, options, rank, ranks, settings: as for `Loader`; settings in place of the file's.
    #[staticmethod]
    #[pyo3(signature = (path, *, store = None, state = None, options = None, rank = 0, ranks = 1, **settings))]
    #[expect(clippy::too_many_arguments, reason = "each is an argument of the Python function by name")]
    fn from_run_file(
        py: Python<'_>,
        path: PathBuf,
        store: Option<&Bound<'_, PyAny>>,
        state: Option<&Bound<'_, PyAny>>,
        options: Option<BTreeMap<String, String>>,
        rank: usize,
        ranks: usize,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let (of_file, mixture, of_loader) = config::run_file(&path)?;
        let settings = config::settings(of_loader, settings)?;
        let start = state.map(config::cursor).transpose()?;
        let url = store.map(config::url).transpose()?.unwrap_or(of_file);
        let store = py.detach(|| config::store(&url, options))?;
        Ok(Self::open(py, store, mixture, settings, Rank { rank, of: ranks }, start.as_ref())?)
    }

    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<PyBatch> {
        loop {
            match self.with(py, |state| Ok(state.loader()?.next_within(SLICE)?))? {
                Some(batch) => {
                    let tasks = self.opened.mixture.tasks();
                    let task = tasks.get(batch.task_idx).map_or("", Task::name);
                    return Ok(PyBatch::new(py, batch, task)?);
                }
                None => py.check_signals()?,
            }
        }
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_causes))]
    fn __exit__(&self, py: Python<'_>, _causes: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }

    /// Ends the threads: within a read in progress, at most ten seconds. The state can still be asked for; twice is once.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.replace(py, |state| State::Closed(state.cursor()))?)
    }

    /// What was consumed, not what was prefetched: a dictionary that JSON can say, below 4 KB for 20 tasks. `step` is the next one.
    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let cursor = self.with(py, |state| Ok(state.cursor()))?;
        config::to_dict(py, "state", &cursor)
    }

    /// Goes on from `state`, with the newest snapshots, also if it was closed.
    ///
    /// Raises:
    ///     LoaderError: `state` is of another mixture, seed or manifest, and the message says which; this loader stays as it was.
    fn load_state_dict(&self, py: Python<'_>, state: &Bound<'_, PyAny>) -> PyResult<()> {
        let start = config::cursor(state)?;
        self.with(py, |_| Ok(()))?; // Not in a fork.
        let Opened { store, mixture, settings, rank, .. } = &*self.opened;
        let loader = py.detach(|| Loader::open_rank(store, mixture.clone(), settings, Some(&start), *rank));
        let loader = Box::new(loader.map_err(WheelError::from)?);
        Ok(self.replace(py, |_| State::Open(loader))?)
    }

    /// Totals since the loader was opened, of what was prefetched too.
    ///
    /// Returns:
    ///     A dictionary: `media_bytes`, `cache_bytes`, `n_cache_hits`, `n_without_sound`; `substituted`, the records that did not
    ///     decode (`corpus`, `shard`, `row`, `reason`); `stages`, seconds of the threads of `fetch`, `decode`, `assemble` and
    ///     `trainer` (`n_threads`, `waits_for_input`, `works`, `waits_for_output`); `bound`, the stage that batches wait for; and
    ///     `headroom`, how many times as fast batches could come if nobody took time over them.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let stats = self.with(py, |state| Ok(state.loader()?.stats()))?;
        let failed = |source| WheelError::Dict { name: "stats", source };
        let mut all = serde_json::to_value(&stats).map_err(failed)?;
        all["bound"] = serde_json::to_value(stats.stages.bound()).map_err(failed)?;
        all["headroom"] = json!(stats.stages.headroom());
        config::to_dict(py, "stats", &all)
    }

    /// The mixture's tasks, in its order, and every shape that a batch of theirs can have.
    ///
    /// Returns:
    ///     A list of dictionaries: `name`, `corpora`, `split`, `modalities`, `objective`, and `views`, a list of `n`, the number of
    ///     examples, and `shapes`, by the name of the array in a batch.
    fn tasks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let mixture = &self.opened.mixture;
        let tasks: Vec<Value> = mixture.tasks().iter().map(|task| describe(mixture, task)).collect();
        config::to_dict(py, "tasks", &tasks)
    }

    /// The snapshots that batches come from.
    ///
    /// Returns:
    ///     By corpus name: `version` and `digest` of the manifest, `kind`, `classes` (a label is an index into them),
    ///     `vocab_size` (every token id is below it) and `tokenizer`, its digest.
    fn corpora<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let corpora = self.with(py, |state| {
            let of_corpus = |(name, snapshot): (&String, &imp_schemas::store::Snapshot)| {
                let manifest = &snapshot.manifest;
                let of_corpus = json!({
                    "version": snapshot.version,
                    "digest": snapshot.digest,
                    "kind": manifest.kind,
                    "classes": manifest.classes,
                    "vocab_size": manifest.tokenizer.vocab_size,
                    "tokenizer": manifest.tokenizer.digest,
                });
                (name.clone(), of_corpus)
            };
            Ok(Value::Object(state.loader()?.manifests().iter().map(of_corpus).collect()))
        })?;
        config::to_dict(py, "corpora", &corpora)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let step = self.with(py, |state| Ok(state.cursor().step))?;
        Ok(format!("<Loader of `{}`, next step {step}>", self.opened.store.url()))
    }
}

/// A task as `Loader.tasks` shows it.
fn describe(mixture: &Mixture, task: &Task) -> Value {
    let views: Vec<Value> =
        task.views().iter().map(|view| json!({"n": view.n(), "shapes": shapes(mixture, view)})).collect();
    json!({
        "name": task.name(),
        "corpora": task.corpora(),
        "split": task.split(),
        "modalities": task.modalities(),
        "objective": task.objectives(),
        "views": views,
    })
}

/// Shape of every array of a batch at `view`, by name; `labels` and `examples` are there in any.
fn shapes(mixture: &Mixture, view: &View) -> Map<String, Value> {
    let n = view.n();
    let mut shapes = Map::new();
    for resolution in [view.vision(), view.audio(), view.text()].into_iter().flatten() {
        let name = name_of(resolution);
        let kept = match resolution.modality() {
            Modality::Image | Modality::Video => Some("vision_kept"),
            Modality::Audio => Some("audio_kept"),
            Modality::Text => None,
        };
        let mut shape = shape_of(n, resolution);
        if name == "text" && view.n_captions() > 1 {
            shape.insert(1, view.n_captions());
        }
        shapes.insert(name.to_owned(), json!(shape));
        if let (Some(kept), true, Ok(n_tokens)) =
            (kept, view.drop_rate() > 0.0, resolution.n_tokens(mixture.patching()))
        {
            shapes.insert(kept.to_owned(), json!([n, n_kept(n_tokens, view.drop_rate())]));
        }
    }
    shapes
}
