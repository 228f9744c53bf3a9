//! What each step did: a line of JSON per step, kept with the run, and a live view in the terminal.
//!
//! Lines are written at checkpoints, as one part per interval named by its first step, so that a run that is killed and
//! resumed leaves each step exactly once. Never: decides anything about training, except that it is asked for nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use imp_schemas::store::{Store, StoreError};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::model::RoutingSummary;

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    pub step: u64,
    pub task: String,
    /// Index into the task's views.
    pub view: usize,
    /// Examples.
    pub n: usize,
    /// Tokens through the encoder, all modalities, after DropToken.
    pub tokens: usize,
    /// The objective, and the weighted losses of the routers.
    pub loss: f32,
    /// What the routers did; absent for a dense model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<RoutingSummary>,
    pub lr: f64,
    /// Global norm before clipping; 0 where gradients only accumulate.
    pub grad_norm: f64,
    /// Wall time of the step, the wait for its batch included.
    pub seconds: f64,
    /// Of which spent waiting for the loader.
    pub wait_seconds: f64,
    /// [`imp_schemas::batch::Batch::digest`].
    pub batch_digest: String,
}

/// Collects the steps of a run.
pub struct Metrics {
    run: Store,
    first_step: u64,
    lines: Vec<u8>,
    bar: ProgressBar,
    /// Smoothed loss by task, for the eye only.
    losses: BTreeMap<String, f32>,
    tokens_per_second: f64,
    plain: bool,
    every: u64,
}

impl Metrics {
    /// Starts at `first_step`; parts that a killed run left beyond it are removed, their steps will come again.
    ///
    /// # Errors
    /// The run's store failed.
    pub fn start(run: &Store, first_step: u64, steps: u64) -> Result<Self, StoreError> {
        for listed in run.list("metrics")? {
            let part = listed.key.rsplit('/').next().and_then(|name| name.strip_suffix(".jsonl"));
            if part.and_then(|p| p.parse::<u64>().ok()).is_some_and(|first| first >= first_step) {
                run.delete(&listed.key)?;
            }
        }
        let target = ProgressDrawTarget::stderr();
        let plain = target.is_hidden();
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        let style = ProgressStyle::with_template("{bar:28.cyan/dim} {pos}/{len} steps, {eta} left  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(first_step);
        bar.reset_eta();
        let every = (steps / 20).max(1);
        Ok(Self {
            run: run.clone(),
            first_step,
            lines: Vec::new(),
            bar,
            losses: BTreeMap::new(),
            tokens_per_second: 0.0,
            plain,
            every,
        })
    }

    /// Takes one step's numbers.
    pub fn record(&mut self, metrics: &StepMetrics) {
        if let Ok(line) = serde_json::to_vec(metrics) {
            self.lines.extend_from_slice(&line);
            self.lines.push(b'\n');
        }
        let smoothed = self.losses.entry(metrics.task.clone()).or_insert(metrics.loss);
        *smoothed += 0.1 * (metrics.loss - *smoothed);
        let rate = metrics.tokens as f64 / metrics.seconds.max(1e-9);
        let weight = if self.tokens_per_second == 0.0 { 1.0 } else { 0.1 };
        self.tokens_per_second += weight * (rate - self.tokens_per_second);
        let losses: Vec<String> = self.losses.iter().map(|(task, loss)| format!("{task} {loss:.3}")).collect();
        let message = format!("{:.0} tokens/s  loss: {}", self.tokens_per_second, losses.join(", "));
        let done = metrics.step + 1;
        if self.plain && (done.is_multiple_of(self.every) || Some(done) == self.bar.length()) {
            let total = self.bar.length().unwrap_or(done);
            let left = Duration::from_secs_f64(self.bar.eta().as_secs_f64().round());
            println!("step {done}/{total}, {left:?} left  {message}");
        }
        self.bar.set_message(message);
        self.bar.set_position(done);
    }

    /// Writes the steps since the last call; `next_step` is the first of the next part.
    ///
    /// # Errors
    /// The run's store failed.
    pub fn flush(&mut self, next_step: u64) -> Result<(), StoreError> {
        if !self.lines.is_empty() {
            let key = format!("metrics/{:08}.jsonl", self.first_step);
            self.run.put(&key, Bytes::from(std::mem::take(&mut self.lines)))?;
        }
        self.first_step = next_step;
        Ok(())
    }

    /// Ends the live view.
    pub fn finish(&self) {
        self.bar.finish();
    }
}

/// All steps that a run has written, in order.
///
/// # Errors
/// The run's store failed, or a part is not lines of [`StepMetrics`].
pub fn read(run: &Store) -> Result<Vec<StepMetrics>, MetricsError> {
    let mut steps = Vec::new();
    for listed in run.list("metrics")? {
        let bytes = run.get(&listed.key)?;
        for (line_idx, line) in bytes.split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let malformed = |source| MetricsError::Malformed { key: listed.key.clone(), line: line_idx + 1, source };
            steps.push(serde_json::from_slice(line).map_err(malformed)?);
        }
    }
    Ok(steps)
}

/// Metrics that cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("`{key}`, line {line}: not the metrics of a step")]
    Malformed { key: String, line: usize, source: serde_json::Error },
}
