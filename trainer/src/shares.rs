//! What each task got of a run: steps, examples, tokens, beside what the plan gave it.
//!
//! In: a run's metrics and its newest checkpoint. Out: a row per task. Never: a number that was not counted step by step.

use std::collections::BTreeMap;

use imp_schemas::store::Store;

use crate::checkpoint::CheckpointError;
use crate::metrics::{self, MetricsError};
use crate::train::newest_checkpoint;

/// One task's part of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskShare {
    pub name: String,
    pub n_steps: u64,
    pub n_examples: u64,
    /// Through the encoder, all modalities, after DropToken.
    pub n_tokens: u64,
    /// Steps and examples by the cursor of the checkpoint, which the plan counts.
    pub planned: (u64, u64),
    /// Wall time of its steps, the wait for their batches included.
    pub seconds: f64,
    /// Mean over the last tenth of its steps.
    pub loss: f64,
}

/// Why a run's shares cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum SharesError {
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// The tasks of a run, in the mixture's order; empty without a checkpoint.
///
/// # Errors
/// The run's store failed, or what lies there cannot be read.
pub fn of(run: &Store) -> Result<Vec<TaskShare>, SharesError> {
    let Some(meta) = newest_checkpoint(run)? else { return Ok(Vec::new()) };
    let mut steps: BTreeMap<String, Vec<metrics::StepMetrics>> = BTreeMap::new();
    for step in metrics::read(run)?.into_iter().filter(|step| step.step < meta.step) {
        steps.entry(step.task.clone()).or_default().push(step);
    }
    let share = |task: imp_schemas::cursor::TaskCursor| {
        let steps = steps.remove(&task.name).unwrap_or_default();
        let last = &steps[steps.len() - steps.len().div_ceil(10)..];
        TaskShare {
            n_steps: steps.len() as u64,
            n_examples: steps.iter().map(|s| s.n as u64).sum(),
            n_tokens: steps.iter().map(|s| s.tokens as u64).sum(),
            planned: (task.n_steps, task.n_examples),
            seconds: steps.iter().map(|s| s.seconds).sum(),
            loss: last.iter().map(|s| f64::from(s.loss)).sum::<f64>() / last.len().max(1) as f64,
            name: task.name,
        }
    };
    Ok(meta.cursor.tasks.into_iter().map(share).collect())
}
