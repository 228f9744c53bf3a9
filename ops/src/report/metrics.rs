//! `metrics/*.jsonl` of a run: a line a step; and what each task cost.
//!
//! In: a run's store. Out: steps in order, sums by task.

use imp_schemas::store::Store;
use serde::{Deserialize, Serialize};

use crate::error::OpsError;

/// One step, as `imp-train fit` writes it.
#[derive(Debug, Clone, Deserialize)]
pub struct StepMetrics {
    pub step: u64,
    pub task: String,
    pub n: u64,
    pub tokens: u64,
    pub loss: f64,
    pub lr: f64,
    pub seconds: f64,
    #[serde(default)]
    pub wait_seconds: f64,
    /// Of a model with experts.
    #[serde(default)]
    pub routing: Option<Routing>,
}

/// What the routers did in a step.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Routing {
    pub unrouted: f64,
    pub usage_entropy: f64,
}

/// What one task cost, or all together.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    task: String,
    n_steps: usize,
    n_examples: u64,
    /// Millions.
    tokens: String,
    seconds: String,
    /// Percent of the run's time.
    share: String,
    /// Thousands a second.
    rate: String,
    /// Percent of the time spent waiting for the loader.
    wait: String,
    /// Mean over the first and the last tenth of the task's steps.
    first_loss: String,
    last_loss: String,
}

/// Every step of the run, by rising step.
///
/// # Errors
/// The store failed, or a line is not what this build reads.
pub fn read(run: &Store) -> Result<Vec<StepMetrics>, OpsError> {
    let mut steps: Vec<StepMetrics> = Vec::new();
    for listed in run.list("metrics")? {
        let bytes = run.get(&listed.key)?;
        for (at, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let step = serde_json::from_slice(line).map_err(|source| OpsError::Malformed {
                run: run.url().to_owned(),
                key: listed.key.clone(),
                line: at + 1,
                source,
            })?;
            steps.push(step);
        }
    }
    steps.sort_by_key(|step| step.step);
    Ok(steps)
}

/// Names of the tasks, in order of first appearance.
pub fn tasks(steps: &[StepMetrics]) -> Vec<&str> {
    let mut tasks: Vec<&str> = Vec::new();
    for step in steps {
        if !tasks.contains(&step.task.as_str()) {
            tasks.push(&step.task);
        }
    }
    tasks.sort_unstable();
    tasks
}

/// A row for each task.
pub fn costs(steps: &[StepMetrics]) -> Vec<Cost> {
    let all: f64 = steps.iter().map(|s| s.seconds).sum();
    let of = |task: &str| steps.iter().filter(|s| s.task == task).collect::<Vec<_>>();
    tasks(steps).into_iter().map(|task| cost(task, &of(task), all)).collect()
}

/// All tasks together; `None` without a step.
pub fn total(steps: &[StepMetrics]) -> Option<Cost> {
    let all: f64 = steps.iter().map(|s| s.seconds).sum();
    (!steps.is_empty()).then(|| cost("all", &steps.iter().collect::<Vec<_>>(), all))
}

fn cost(task: &str, steps: &[&StepMetrics], all_seconds: f64) -> Cost {
    let seconds: f64 = steps.iter().map(|s| s.seconds).sum();
    let wait: f64 = steps.iter().map(|s| s.wait_seconds).sum();
    let tokens: u64 = steps.iter().map(|s| s.tokens).sum();
    let tenth = (steps.len() / 10).max(1);
    let mean = |steps: &[&StepMetrics]| steps.iter().map(|s| s.loss).sum::<f64>() / steps.len().max(1) as f64;
    Cost {
        task: task.to_owned(),
        n_steps: steps.len(),
        n_examples: steps.iter().map(|s| s.n).sum(),
        tokens: format!("{:.2}", tokens as f64 / 1e6),
        seconds: format!("{seconds:.1}"),
        share: format!("{:.0}", 100.0 * seconds / all_seconds.max(1e-12)),
        rate: format!("{:.1}", tokens as f64 / 1e3 / seconds.max(1e-12)),
        wait: format!("{:.1}", 100.0 * wait / seconds.max(1e-12)),
        first_loss: format!("{:.2}", mean(&steps[..tenth.min(steps.len())])),
        last_loss: format!("{:.2}", mean(&steps[steps.len().saturating_sub(tenth)..])),
    }
}
