//! What a mixture changes while a run goes on: shares of tasks and views from a step on, and windows of steps that are left out.
//!
//! In: the config's `phases` and `skip`. Out: checked, each phase with the shares of every task. Never: a change of what the
//! tasks are, so the set of shapes is the same from the first step to the last; a change that counts before its step, so a run
//! goes on with changes added ahead of its checkpoint.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::check::TaskError;
use super::{Alternation, Task};

/// `[[train.mixture.phases]]`: what changes at a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPhase {
    /// First step that has the change.
    pub from_step: u64,
    /// By task name. A task that is not named keeps what it had.
    pub tasks: BTreeMap<String, RawChange>,
}

/// What changes of one task; what is absent stays.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawChange {
    /// Share of steps, for `weights` and `random`; 0 pauses the task.
    pub weight: Option<f64>,
    /// Passes between two steps, for `intervals`; 0 pauses the task.
    pub interval: Option<u64>,
    /// Shares of the task's views, in their order; 0 leaves a view out.
    pub view_weights: Option<Vec<f64>>,
}

/// Shares of one task. Holds: finite, not negative; a view has one above 0.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shares {
    /// Of steps, not normalised; 0 while the task is paused.
    pub weight: f64,
    /// Passes between two steps; 0 while the task is paused.
    pub interval: u64,
    /// Of the task's views, not normalised.
    pub views: Vec<f64>,
}

impl Shares {
    /// Those that the task itself says.
    pub fn of(task: &Task) -> Self {
        Self { weight: task.weight, interval: task.interval, views: task.views.iter().map(|v| v.weight).collect() }
    }
}

/// The shares of all tasks from a step on. Holds: some task is not paused.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    pub from_step: u64,
    /// In the order of the tasks.
    pub shares: Vec<Shares>,
}

/// Steps `from..to` as a run numbered them whose next step is `from`: their batches are left out, and step `from` gets the batch
/// that step `to` would have had, if no phase begins in between: phases begin at the steps that they name, skips or not.
pub type Skip = [u64; 2];

fn broken(place: String, found: impl std::fmt::Display, rule: impl Into<String>) -> TaskError {
    TaskError::Change { place, found: found.to_string(), rule: rule.into() }
}

/// # Errors
/// A phase that does not come after the one before, names no task, or says what its task cannot have.
pub(super) fn check_phases(
    raw: &[RawPhase],
    tasks: &[Task],
    alternation: Alternation,
) -> Result<Vec<Phase>, TaskError> {
    let mut shares: Vec<Shares> = tasks.iter().map(Shares::of).collect();
    let mut phases: Vec<Phase> = Vec::new();
    for (i, phase) in raw.iter().enumerate() {
        let place = |key: &str| format!("phases[{i}].{key}");
        let after = phases.last().map_or(0, |before| before.from_step);
        if phase.from_step <= after {
            return Err(broken(place("from_step"), phase.from_step, format!("above {after}: phases stand in order")));
        }
        for (name, change) in &phase.tasks {
            let Some(task_idx) = tasks.iter().position(|task| task.name == *name) else {
                let have = tasks.iter().map(|task| format!("`{}`", task.name)).collect::<Vec<_>>().join(", ");
                return Err(broken(place("tasks"), format!("`{name}`"), format!("among the tasks: {have}")));
            };
            let place = |key: &str| place(&format!("tasks.{name}.{key}"));
            check_change(change, &tasks[task_idx], &mut shares[task_idx], alternation, place)?;
        }
        let counts = |s: &Shares| if alternation == Alternation::Intervals { s.interval > 0 } else { s.weight > 0.0 };
        if !shares.iter().any(counts) {
            return Err(broken(place("tasks"), "every task paused", "such that one goes on"));
        }
        phases.push(Phase { from_step: phase.from_step, shares: shares.clone() });
    }
    Ok(phases)
}

fn check_change(
    change: &RawChange,
    task: &Task,
    shares: &mut Shares,
    alternation: Alternation,
    place: impl Fn(&str) -> String,
) -> Result<(), TaskError> {
    let by_interval = alternation == Alternation::Intervals;
    let is_share = |weight: f64| weight.is_finite() && weight >= 0.0;
    if let Some(weight) = change.weight {
        if by_interval {
            return Err(broken(place("weight"), weight, "absent when `alternation = \"intervals\"`; use `interval`"));
        }
        if !is_share(weight) {
            return Err(broken(place("weight"), weight, "a number of at least 0"));
        }
        shares.weight = weight;
    }
    if let Some(interval) = change.interval {
        if !by_interval {
            return Err(broken(
                place("interval"),
                interval,
                "absent unless `alternation = \"intervals\"`; use `weight`",
            ));
        }
        shares.interval = interval;
    }
    if let Some(views) = &change.view_weights {
        let found = || format!("{views:?}");
        if views.len() != task.views.len() || !views.iter().all(|&weight| is_share(weight)) {
            let rule = format!("{} numbers of at least 0, one for each view", task.views.len());
            return Err(broken(place("view_weights"), found(), rule));
        }
        // The records of a bucket have no other views than its own.
        for bucket in task.view_buckets() {
            if !bucket.iter().any(|&view_idx| views[view_idx] > 0.0) {
                let rule = if task.aspect_buckets() {
                    "such that a view of every shape keeps a share"
                } else {
                    "such that a view keeps a share"
                };
                return Err(broken(place("view_weights"), found(), rule));
            }
        }
        shares.views.clone_from(views);
    }
    Ok(())
}

/// # Errors
/// A window that is empty, or does not come after the one before.
pub(super) fn check_skip(skip: &[Skip]) -> Result<(), TaskError> {
    for (i, &[from, to]) in skip.iter().enumerate() {
        let place = format!("skip[{i}]");
        if from >= to {
            return Err(broken(place, format!("[{from}, {to}]"), "[first step, one past the last step]"));
        }
        if i > 0 && from <= skip[i - 1][0] {
            return Err(broken(place, format!("[{from}, {to}]"), "in the order in which the run meets them"));
        }
    }
    Ok(())
}
