//! Checkpoints: tensors first, the meta file last, so that a checkpoint either exists whole or not at all.
//!
//! In: model, optimizer, cursor. Out: safetensors and JSON through the run's store, and back. Never: a partial checkpoint
//! taken for a whole one; a tensor whose file does not have the digest that the meta file promises.

use std::collections::BTreeMap;

use bytes::Bytes;
use imp_schemas::checkpoint::{CheckpointMeta, checkpoint_keys, step_of_meta_key};
use imp_schemas::cursor::Cursor;
use imp_schemas::shard::Digest;
use imp_schemas::store::{Store, StoreError};
use imp_schemas::version::{Format, Version, VersionError};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::model::{Imp, ModelError};
use crate::ops::Backend;
use crate::optim::AdamW;

/// What is saved beside the tensors.
pub struct Saved<'a> {
    /// Updates done.
    pub step: u64,
    pub cursor: Cursor,
    pub tokenizer_digest: &'a Digest,
    pub config: &'a serde_json::Value,
}

/// A checkpoint that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("checkpoint `{key}` is not valid")]
    Malformed { key: String, source: serde_json::Error },
    #[error("checkpoint `{key}` cannot be read by this build")]
    Version { key: String, source: VersionError },
    #[error(
        "checkpoint file `{key}` has digest {found}, its meta file says {wanted}; remove the checkpoint to resume from an earlier one"
    )]
    Digest { key: String, found: String, wanted: String },
    #[error("checkpoint file `{key}` is not readable as safetensors")]
    Tensors { key: String, source: safetensors::SafeTensorError },
    #[error("tensor `{name}` of `{key}` is {found:?}, wanted F32")]
    Dtype { key: String, name: String, found: Dtype },
    #[error("checkpoint file `{key}` lacks the tensor `{name}` that this config's model has")]
    Missing { key: String, name: String },
    #[error("checkpoint file `{key}` does not fit this config's model")]
    Model { key: String, source: ModelError },
}

/// The steps of the run's whole checkpoints, rising.
///
/// # Errors
/// The run's store failed.
pub fn steps(run: &Store) -> Result<Vec<u64>, StoreError> {
    let mut steps: Vec<u64> = run.list("checkpoints")?.iter().filter_map(|l| step_of_meta_key(&l.key)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Saves a checkpoint, then removes all but the newest `keep`.
///
/// # Errors
/// The run's store failed.
pub fn save<D: Backend>(
    run: &Store,
    model: &Imp<D>,
    optimizer: &AdamW<D>,
    saved: &Saved<'_>,
    keep: usize,
) -> Result<(), CheckpointError> {
    let keys = checkpoint_keys(saved.step);
    let model_bytes = serialize(&keys.model, model_tensors(model))?;
    let optimizer_bytes = serialize(&keys.optimizer, optimizer_tensors(optimizer))?;
    let meta = CheckpointMeta {
        format: Format::Checkpoint.current(),
        step: saved.step,
        cursor: saved.cursor.clone(),
        model_digest: Digest::of(&model_bytes),
        optimizer_digest: Digest::of(&optimizer_bytes),
        tokenizer_digest: saved.tokenizer_digest.clone(),
        config: saved.config.clone(),
    };
    let malformed = |source| CheckpointError::Malformed { key: keys.meta.clone(), source };
    let meta_bytes = serde_json::to_vec_pretty(&meta).map_err(malformed)?;
    run.put(&keys.model, model_bytes.into())?;
    run.put(&keys.optimizer, optimizer_bytes.into())?;
    run.put(&keys.meta, meta_bytes.into())?;
    let all = steps(run)?;
    for &old in &all[..all.len().saturating_sub(keep)] {
        let keys = checkpoint_keys(old);
        // The meta file goes first: what is left of a killed removal is no checkpoint.
        for key in [keys.meta, keys.optimizer, keys.model] {
            run.delete(&key)?;
        }
    }
    Ok(())
}

/// A step whose loss or gradient is not finite: what a person needs to look into it.
#[derive(Debug, Serialize)]
pub struct Failure<'a> {
    pub step: u64,
    pub task: &'a str,
    /// Index into the task's views.
    pub view: usize,
    pub lr: f64,
    pub error: String,
    pub batch_digest: String,
    /// Index into the task's corpora, row of the split, epoch.
    pub examples: Vec<(u32, u64, u64)>,
}

/// Saves what a failed step started from, in the files of a checkpoint, and `why.json` beside them. No run goes on from there, and what the step
/// left when it failed before stays. Returns the folder.
///
/// # Errors
/// The run's store failed.
pub fn save_failed<D: Backend>(
    run: &Store,
    model: &Imp<D>,
    optimizer: &AdamW<D>,
    failure: &Failure<'_>,
) -> Result<String, CheckpointError> {
    let folder = format!("failed/{:08}", failure.step);
    let key = |name: &str| format!("{folder}/{name}");
    match run.get(&key("why.json")) {
        Ok(_) => return Ok(folder),
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    run.put(&key("model.safetensors"), serialize(&folder, model_tensors(model))?.into())?;
    run.put(&key("optimizer.safetensors"), serialize(&folder, optimizer_tensors(optimizer))?.into())?;
    let malformed = |source| CheckpointError::Malformed { key: key("why.json"), source };
    run.put(&key("why.json"), serde_json::to_vec_pretty(failure).map_err(malformed)?.into())?;
    Ok(folder)
}

/// The meta file of the checkpoint after `step` updates.
///
/// # Errors
/// It does not exist, or this build cannot read it.
pub fn meta(run: &Store, step: u64) -> Result<CheckpointMeta, CheckpointError> {
    #[derive(Deserialize)]
    struct Head {
        format: Version,
    }
    let key = checkpoint_keys(step).meta;
    let bytes = run.get(&key)?;
    let malformed = |source| CheckpointError::Malformed { key: key.clone(), source };
    let head: Head = serde_json::from_slice(&bytes).map_err(malformed)?;
    Format::Checkpoint.check(head.format).map_err(|source| CheckpointError::Version { key: key.clone(), source })?;
    serde_json::from_slice(&bytes).map_err(malformed)
}

/// Reads the parameters of a checkpoint into `model`.
///
/// # Errors
/// A file is missing, damaged, or belongs to a model of another shape.
pub fn load_model<D: Backend>(run: &Store, meta: &CheckpointMeta, model: &mut Imp<D>) -> Result<(), CheckpointError> {
    let key = checkpoint_keys(meta.step).model;
    let mut tensors = read(run, &key, &meta.model_digest)?;
    for name in model.names() {
        let missing = || CheckpointError::Missing { key: key.clone(), name: name.clone() };
        let (shape, values) = tensors.remove(&name).ok_or_else(missing)?;
        let unfit = |source| CheckpointError::Model { key: key.clone(), source };
        model.load(&name, &shape, &values).map_err(unfit)?;
    }
    Ok(())
}

/// Reads the running mean of the parameters into `model`.
///
/// # Errors
/// As [`load_model`]; a checkpoint without a mean.
pub fn load_averaged<D: Backend>(
    run: &Store,
    meta: &CheckpointMeta,
    model: &mut Imp<D>,
) -> Result<(), CheckpointError> {
    let key = checkpoint_keys(meta.step).optimizer;
    let mut tensors = read(run, &key, &meta.optimizer_digest)?;
    for name in model.names() {
        let missing = || CheckpointError::Missing { key: key.clone(), name: format!("ema/{name}") };
        let (shape, values) = tensors.remove(&format!("ema/{name}")).ok_or_else(missing)?;
        let unfit = |source| CheckpointError::Model { key: key.clone(), source };
        model.load(&name, &shape, &values).map_err(unfit)?;
    }
    Ok(())
}

/// Reads the moments and the step counter of a checkpoint into `optimizer`.
///
/// # Errors
/// As [`load_model`].
pub fn load_optimizer<D: Backend>(
    run: &Store,
    meta: &CheckpointMeta,
    optimizer: &mut AdamW<D>,
) -> Result<(), CheckpointError> {
    let key = checkpoint_keys(meta.step).optimizer;
    let mut tensors = read(run, &key, &meta.optimizer_digest)?;
    for name in optimizer.names() {
        let missing = || CheckpointError::Missing { key: key.clone(), name: name.clone() };
        let Some((shape, values)) = tensors.remove(&name) else {
            // The run has begun to keep a mean: it goes on from the parameters.
            if name.starts_with("ema/") {
                continue;
            }
            return Err(missing());
        };
        let unfit = |source| CheckpointError::Model { key: key.clone(), source };
        optimizer.load(&name, &shape, &values).map_err(unfit)?;
    }
    // Steps of an update, of the run that wrote it.
    let accumulate = meta.config.get("accumulate").and_then(serde_json::Value::as_u64).unwrap_or(1).max(1);
    optimizer.set_updates(meta.step / accumulate);
    Ok(())
}

type HostTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn model_tensors<D: Backend>(model: &Imp<D>) -> HostTensors {
    model.names().into_iter().filter_map(|name| model.tensor(&name).map(|tensor| (name, tensor))).collect()
}

fn optimizer_tensors<D: Backend>(optimizer: &AdamW<D>) -> HostTensors {
    optimizer.names().into_iter().filter_map(|name| optimizer.tensor(&name).map(|tensor| (name, tensor))).collect()
}

fn serialize(key: &str, tensors: HostTensors) -> Result<Vec<u8>, CheckpointError> {
    let broken = |source| CheckpointError::Tensors { key: key.to_owned(), source };
    let raw: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views: Vec<(&str, TensorView<'_>)> = raw
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()
        .map_err(broken)?;
    safetensors::serialize(views, None).map_err(broken)
}

fn read(run: &Store, key: &str, wanted: &Digest) -> Result<HostTensors, CheckpointError> {
    let bytes: Bytes = run.get(key)?;
    let found = Digest::of(&bytes);
    if found != *wanted {
        let (found, wanted) = (found.to_string(), wanted.to_string());
        return Err(CheckpointError::Digest { key: key.to_owned(), found, wanted });
    }
    let tensors =
        SafeTensors::deserialize(&bytes).map_err(|source| CheckpointError::Tensors { key: key.to_owned(), source })?;
    let mut all = HostTensors::new();
    for (name, view) in tensors.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(CheckpointError::Dtype { key: key.to_owned(), name, found: view.dtype() });
        }
        let (words, _) = view.data().as_chunks::<4>();
        all.insert(name, (view.shape().to_vec(), words.iter().map(|w| f32::from_le_bytes(*w)).collect()));
    }
    Ok(all)
}
