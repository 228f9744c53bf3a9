//! The loop: alternating gradient descent over the mixture's tasks, one task a step.
//!
//! In: a checked config, a store with corpora, a run. Out: checkpoints, metrics and a ledger of replaced records in the run. Never: state outside the
//! checkpoint; a run that is killed at any step and started again does the same steps on the same bytes.
//! Source: Akbari et al. 2023, arXiv:2305.06324.

use std::collections::BTreeMap;
use std::time::Instant;

use imp_loader::{Loader, LoaderError, Watch};
use imp_schemas::batch::Batch;
use imp_schemas::checkpoint::CheckpointMeta;
use imp_schemas::resolution::{Patching, Resolution, n_kept};
use imp_schemas::shard::Digest;
use imp_schemas::store::{Snapshot, Store, StoreError};
use imp_schemas::task::{Mixture, Task, View};

use crate::checkpoint::{self, CheckpointError, Failure, Saved};
use crate::config::TrainConfig;
use crate::eval::{self, Untrained};
use crate::ledger::{Ledger, LedgerError};
use crate::metrics::{Metrics, StepMetrics};
use crate::model::{Classifier, Imp, Loss, ModelConfig, ModelError, Purpose, RawModel, Stream};
use crate::objective::Goal;
use crate::ops::{Backend, Keep};
use crate::optim::{AdamW, Moments};

/// What a call of [`fit`] did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fitted {
    /// The first step it did; above 0 if it resumed.
    pub first_step: u64,
    /// Updates of the run so far.
    pub steps: u64,
    pub seconds: f64,
    /// Of which spent waiting for the loader.
    pub wait_seconds: f64,
    pub n_parameters: usize,
}

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Loader(#[from] LoaderError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Untrained(#[from] Untrained),
    #[error("step {step}, task `{task}` failed; {state}")]
    Step { step: u64, task: String, state: String, source: ModelError },
    #[error(
        "`train.{key}` is {wanted}, but the run's checkpoint was trained with {found}; set it back, or begin another run"
    )]
    OtherModel { key: &'static str, found: String, wanted: String },
    #[error(
        "`train.accumulate` is {wanted}, but the run's checkpoint was trained with {found}, by which its updates are counted; set it back, or begin another run"
    )]
    OtherAccumulate { found: u64, wanted: u64 },
    #[error(
        "the run {what} at step {step}, must be a multiple of `train.accumulate` ({accumulate}): a checkpoint holds no gradients"
    )]
    HalfGroup { what: &'static str, step: u64, accumulate: u64 },
    #[error(
        "task `{task}` trains `{objective}` on corpus `{corpus}`, whose manifest lists no classes; ingest it with labels"
    )]
    NoClasses { task: String, objective: &'static str, corpus: String },
    #[error(
        "task `{task}` trains the classes of corpus `{corpus}` by its {}, another task by its {}; a corpus has one classifier: leave one of the two to `nce`, or ingest the corpus under a second name", streams[1], streams[0]
    )]
    TwoClassifiers { task: String, corpus: String, streams: [&'static str; 2] },
}

/// Trains until `config.steps`, from the newest checkpoint of `run` if there is one; `opened` gets the loader to look at.
///
/// # Errors
/// See [`TrainError`]; whatever stops a run leaves its checkpoints as they were.
pub fn fit<D: Backend>(
    config: &TrainConfig,
    store: &Store,
    run: &Store,
    dev: &D,
    opened: &mut dyn FnMut(&Watch),
) -> Result<Fitted, TrainError> {
    let start = newest_checkpoint(run)?;
    let cursor = start.as_ref().map(|meta| &meta.cursor);
    let mut loader = Loader::open(store, config.mixture.clone(), &config.loader, cursor)?;
    opened(&loader.watch());
    let model_config = model_config(config, loader.manifests())?;
    let tokenizer = tokenizer_digest(loader.manifests());
    let mut model = Imp::new(&model_config, config.mixture.seed(), dev)?;
    model.keep(if config.recompute { Keep::Inputs } else { Keep::Everything });
    if let Some(meta) = &start {
        check_same_model(meta, config)?;
        checkpoint::load_model(run, meta, &mut model)?;
    }
    // A mean that the run did not keep before begins with the parameters that it has now.
    let mut optimizer = AdamW::for_tasks(&model, config.optimizer, config.mixture.tasks().len())?;
    if let Some(meta) = &start {
        checkpoint::load_optimizer(run, meta, &mut optimizer)?;
    }
    let first_step = start.as_ref().map_or(0, |meta| meta.step);
    let before = start.as_ref().and_then(|meta| meta.config["accumulate"].as_u64()).unwrap_or(config.accumulate);
    if before != config.accumulate {
        return Err(TrainError::OtherAccumulate { found: before, wanted: config.accumulate });
    }
    for (what, step) in [("ends", config.steps), ("begins", first_step)] {
        if !step.is_multiple_of(config.accumulate) {
            return Err(TrainError::HalfGroup { what, step, accumulate: config.accumulate });
        }
    }
    let mut metrics = Metrics::start(run, first_step, config.steps)?;
    let mut ledger = Ledger::open(run)?;
    loader.remember(ledger.records().iter().cloned());
    let (begin, mut waited) = (Instant::now(), 0.0);
    // Gradients that wait for those of the next steps.
    let mut before = None;

    for step in first_step..config.steps {
        let step_begin = Instant::now();
        let batch = match loader.next() {
            Ok(batch) => batch,
            Err(error) => {
                // What stopped the run may be what the ledger is for.
                ledger.add(run, &loader.stats().substituted)?;
                return Err(error.into());
            }
        };
        let wait_seconds = step_begin.elapsed().as_secs_f64();
        let task = &config.mixture.tasks()[batch.task_idx];
        let lr = config.schedule.lr_at(step);
        // Neither a loss nor a gradient that is not finite moves a parameter: both are errors.
        let goal = Goal::of(task);
        let loss = match config.accumulate {
            1 => model.loss_in_parts(&goal, &batch, config.micro_batch.unwrap_or(batch.n())),
            n => model.loss_onto(&goal, &batch, 1.0 / n as f32, before.take()),
        };
        let updated = loss.and_then(|Loss { value, grads, routing }| {
            let grad_norm = match (step + 1).is_multiple_of(config.accumulate) {
                true => optimizer.step_of(batch.task_idx, &mut model, grads, lr)?.grad_norm,
                false => {
                    before = Some(grads);
                    0.0
                }
            };
            Ok((value, routing, grad_norm))
        });
        let (value, routing, grad_norm) = match updated {
            Ok(updated) => updated,
            Err(source) => {
                metrics.flush(step)?;
                return Err(failed(run, &model, &optimizer, task, lr, &batch, source));
            }
        };
        crate::huge_pages::follow();
        waited += wait_seconds;
        metrics.record(&StepMetrics {
            step,
            task: task.name().to_owned(),
            view: batch.view_idx,
            n: batch.n(),
            tokens: n_tokens(&config.mixture, task, batch.view_idx) * batch.n(),
            loss: value,
            routing,
            lr,
            grad_norm,
            seconds: step_begin.elapsed().as_secs_f64(),
            wait_seconds,
            batch_digest: batch.digest(),
        });
        loader.recycle(batch);
        let done = step + 1;
        if done.is_multiple_of(config.checkpoint_every) || done == config.steps {
            metrics.flush(done)?;
            ledger.add(run, &loader.stats().substituted)?;
            let saved =
                Saved { step: done, cursor: loader.cursor(), tokenizer_digest: &tokenizer, config: &config.raw };
            checkpoint::save(run, &model, &optimizer, &saved, config.keep_checkpoints)?;
        }
    }
    metrics.finish();
    let seconds = begin.elapsed().as_secs_f64();
    let steps = config.steps.max(first_step);
    Ok(Fitted { first_step, steps, seconds, wait_seconds: waited, n_parameters: model_config.n_parameters() })
}

/// Keeps what a step started from whose loss or gradient is not finite.
fn failed<D: Backend>(
    run: &Store,
    model: &Imp<D>,
    optimizer: &AdamW<D>,
    task: &Task,
    lr: f64,
    batch: &Batch,
    source: ModelError,
) -> TrainError {
    let (step, task) = (batch.step, task.name().to_owned());
    let mut state = match newest_checkpoint(run) {
        Ok(Some(meta)) => format!(
            "the run goes on from its checkpoint after {} steps; if it fails there again, remove that one",
            meta.step
        ),
        Ok(None) | Err(_) => "there is no checkpoint yet".to_owned(),
    };
    if matches!(source, ModelError::LossNotFinite(_) | ModelError::GradientNotFinite(_)) {
        let failure = Failure {
            step,
            task: &task,
            view: batch.view_idx,
            lr,
            error: source.to_string(),
            batch_digest: batch.digest(),
            examples: batch.examples.iter().map(|e| (e.corpus_idx, e.row, e.epoch)).collect(),
        };
        match checkpoint::save_failed(run, model, optimizer, &failure) {
            Ok(folder) => state += &format!("; what the step started from is in `{folder}` of the run"),
            Err(error) => state += &format!("; what the step started from could not be saved: {error}"),
        }
    }
    TrainError::Step { step, task, state, source }
}

/// The newest whole checkpoint of `run`.
///
/// # Errors
/// The run's store failed, or the checkpoint cannot be read by this build.
pub fn newest_checkpoint(run: &Store) -> Result<Option<CheckpointMeta>, CheckpointError> {
    checkpoint::steps(run)?.last().map(|&step| checkpoint::meta(run, step)).transpose()
}

/// Keys of `[train]` that say what parameters mean and do not show in their shapes.
const MEANINGS: [&str; 4] = ["model.heads", "model.temperature_form", "model.log_mel_mean_std", "model.experts.router"];

/// The parameters of a checkpoint mean what they meant.
///
/// # Errors
/// [`TrainError::OtherModel`] with the key that differs, and both values.
pub(crate) fn check_same_model(meta: &CheckpointMeta, config: &TrainConfig) -> Result<(), TrainError> {
    // Read as a model and written again: keys that are absent have their values.
    let spelled = |raw: &RawModel| serde_json::to_value(raw).unwrap_or_default();
    let Ok(before) = serde_json::from_value::<RawModel>(meta.config["model"].clone()) else { return Ok(()) };
    let (before, now) = (spelled(&before), spelled(&config.model));
    for key in MEANINGS {
        let at = format!("/{}", key.trim_start_matches("model.").replace('.', "/"));
        let Some((found, wanted)) = before.pointer(&at).zip(now.pointer(&at)) else { continue };
        // A preset's value stands for itself.
        if found != wanted && !found.is_null() && !wanted.is_null() {
            let (found, wanted) = (found.to_string(), wanted.to_string());
            return Err(TrainError::OtherModel { key, found, wanted });
        }
    }
    let moments = meta.config["optimizer"].get("moments").cloned();
    let before = moments.and_then(|moments| serde_json::from_value::<Moments>(moments).ok()).unwrap_or_default();
    if before != config.optimizer.moments {
        let [found, wanted] = [before, config.optimizer.moments].map(|m| serde_json::json!(m).to_string());
        return Err(TrainError::OtherModel { key: "optimizer.moments", found, wanted });
    }
    Ok(())
}

/// The model that the config's tasks need over these corpora: heads for every pair that a contrastive task trains, a
/// classifier for every labelled corpus that a task over classes trains.
///
/// # Errors
/// Sizes that cannot be, or a task over the classes of a corpus without any.
pub fn model_config(config: &TrainConfig, manifests: &BTreeMap<String, Snapshot>) -> Result<ModelConfig, TrainError> {
    let mut pairs: Vec<(Stream, Stream)> = Vec::new();
    let mut classifiers: Vec<Classifier> = Vec::new();
    for task in config.mixture.tasks() {
        let streams = streams(task);
        if task.objectives().has_nce() {
            for (i, &a) in streams.iter().enumerate() {
                for &b in &streams[i + 1..] {
                    let pair = (a.min(b), a.max(b));
                    if !pairs.contains(&pair) {
                        pairs.push(pair);
                    }
                }
            }
        }
        if let Some(objective) = task.objectives().over_classes() {
            let corpus = task.corpora()[0].clone();
            let n_classes = manifests.get(&corpus).map_or(0, |s| s.manifest.classes.len());
            let stream = media_streams(task).first().copied();
            let Some(stream) = stream.filter(|_| n_classes > 0) else {
                return Err(TrainError::NoClasses {
                    task: task.name().to_owned(),
                    objective: objective.name(),
                    corpus,
                });
            };
            match classifiers.iter().find(|c| c.corpus == corpus) {
                Some(before) if before.stream != stream => {
                    let (task, streams) = (task.name().to_owned(), [before.stream.name(), stream.name()]);
                    return Err(TrainError::TwoClassifiers { task, corpus, streams });
                }
                Some(_) => {}
                None => classifiers.push(Classifier { corpus, stream, n_classes }),
            }
        }
    }
    // Tasks may be listed in any order; the model's layout must not depend on it.
    pairs.sort_unstable();
    let vocab_size = manifests.values().map(|s| s.manifest.tokenizer.vocab_size).max().unwrap_or(1);
    let patching = *config.mixture.patching();
    let model = ModelConfig::check(config.model.clone(), vocab_size, patching, pairs, classifiers)?;
    for task in config.mixture.tasks() {
        for (view_idx, view) in task.views().iter().enumerate() {
            for (stream, n_sequences, n_tokens) in sequences_by_stream(view, &patching) {
                let call = format!("task `{}`, view {view_idx}, {stream}", task.name());
                // Parts of a batch differ by one example at most.
                let n_parts = view.n().div_ceil(config.micro_batch.unwrap_or(view.n()).max(1)).max(1);
                for n in [view.n() / n_parts, view.n().div_ceil(n_parts)] {
                    model.check_capacity(Purpose::Train, &call, n * n_sequences, n_tokens)?;
                }
            }
        }
    }
    for eval in &config.evals {
        eval::check_trained(&model, eval)?;
        for (stream, _, n_tokens) in sequences_by_stream(&eval.task().views()[0], &patching) {
            let call = format!("evaluation `{}`, {stream}", eval.name);
            model.check_capacity(Purpose::Embed, &call, 1, n_tokens)?;
        }
    }
    Ok(model)
}

/// Sequences of one example in each call of the encoder, and the tokens of each, after DropToken. A medium is one sequence.
pub(crate) fn sequences_by_stream(view: &View, patching: &Patching) -> Vec<(Stream, usize, usize)> {
    let count = |resolution: Resolution| resolution.n_tokens(patching).unwrap_or(0);
    let vision = view.vision().map(|r| (Stream::of(r), 1, n_kept(count(r), view.drop_rate())));
    let audio = view.audio().map(|r| (Stream::of(r), 1, n_kept(count(r), view.drop_rate())));
    let text = view.text().map(|r| (Stream::of(r), view.n_captions(), count(r)));
    [vision, audio, text].into_iter().flatten().collect()
}

/// The tokenizer that all corpora of a run share; the loader has refused a mixture where they differ.
fn tokenizer_digest(manifests: &BTreeMap<String, Snapshot>) -> Digest {
    manifests.values().next().map_or_else(|| Digest::of(b""), |s| s.manifest.tokenizer.digest.clone())
}

fn n_tokens(mixture: &Mixture, task: &Task, view_idx: usize) -> usize {
    task.n_tokens_per_example(&task.views()[view_idx], mixture.patching())
}

/// Streams of a task, in the order of its modalities. Every view has those of the first.
fn streams(task: &Task) -> Vec<Stream> {
    let view = &task.views()[0];
    task.modalities().iter().filter_map(|&modality| view.resolution(modality)).map(Stream::of).collect()
}

/// Streams of a task's media, without text.
pub fn media_streams(task: &Task) -> Vec<Stream> {
    streams(task).into_iter().filter(|&stream| stream != Stream::Text).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;
    use crate::config::RawTrain;

    #[test]
    fn the_views_of_a_task_say_which_stream_its_sounds_are() {
        let text = testkit::tiny::run_file(Path::new("corpora"), "store", "run", 60, 2);
        let text = text.replace("views = [{ spectrogram_frames = 32", "views = [{ waveform_samples = 8192");
        let file: toml::Table = toml::from_str(&text).unwrap();
        let config = TrainConfig::try_from(RawTrain::deserialize(file["train"].clone()).unwrap()).unwrap();
        let task = &config.mixture.tasks()[3];
        assert_eq!(streams(task), [Stream::Waveform, Stream::Text]);
        let calls = sequences_by_stream(&task.views()[0], config.mixture.patching());
        assert_eq!(calls, [(Stream::Waveform, 1, 8192 / 256), (Stream::Text, 1, 8)]);
        // The evaluation still looks at spectrograms, which this model has no stream for.
        assert_eq!(media_streams(config.evals[2].task()), [Stream::Spectrogram]);
    }
}
