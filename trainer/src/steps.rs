//! What the steps of a run's mixture take on this device, and what it costs that every step has another shape than the one before.
//!
//! In: a config and its shards. Out: a [`StepsReport`]. Never: a checkpoint; the loader, once there is a batch of every shape: its threads
//! would be timed with the steps.

use std::collections::BTreeMap;
use std::time::Instant;

use imp_loader::Loader;
use imp_schemas::batch::Batch;
use imp_schemas::store::Store;
use serde::Serialize;

use crate::config::TrainConfig;
use crate::model::{Imp, ModelError};
use crate::objective::Goal;
use crate::ops::{Backend, Keep};
use crate::optim::AdamW;
use crate::train::{self, TrainError};

/// Batches that are drawn at most until every view has one; a view that is rarer is left out, and the report names it.
const MOST_DRAWN: usize = 1000;

/// How much is timed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepsOptions {
    /// How often both orders are run, one after the other; which comes first changes.
    pub n_rounds: usize,
    /// Steps of each task and view in a round of either order.
    pub n_each: usize,
}

/// Steps of one view of one task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ViewSteps {
    pub task: String,
    pub view: usize,
    pub n: usize,
    /// Median seconds of a step after one of the same view.
    pub grouped_seconds: f64,
    /// Median seconds of a step after one of another view.
    pub in_turn_seconds: f64,
}

/// What [`measure`] found. Steps are an update each, without their wait for a batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepsReport {
    pub views: Vec<ViewSteps>,
    /// Task and view of what no batch was found for.
    pub left_out: Vec<(String, usize)>,
    /// Time in turn by time grouped, the median of the rounds: 1 if alternation costs nothing.
    pub alternation: f64,
    /// The same of each round.
    pub rounds: Vec<f64>,
}

/// Times the steps of every task and view, grouped and in turn, on one model that learns meanwhile.
///
/// # Errors
/// As [`train::fit`].
pub fn measure<D: Backend>(
    config: &TrainConfig,
    store: &Store,
    dev: &D,
    options: StepsOptions,
) -> Result<StepsReport, TrainError> {
    let tasks = config.mixture.tasks();
    let mut loader = Loader::open(store, config.mixture.clone(), &config.loader, None)?;
    let mut model = Imp::new(&train::model_config(config, loader.manifests())?, config.mixture.seed(), dev)?;
    model.keep(if config.recompute { Keep::Inputs } else { Keep::Everything });
    let mut optimizer = AdamW::for_tasks(&model, config.optimizer, tasks.len())?;
    let n_views: usize = tasks.iter().map(|task| task.views().len()).sum();
    let batches = one_of_each(&mut loader, n_views)?;
    drop(loader);

    let mut step = |batch: &Batch| -> Result<f64, TrainError> {
        let begin = Instant::now();
        let goal = Goal::of(&tasks[batch.task_idx]);
        let loss = model.loss_in_parts(&goal, batch, config.micro_batch.unwrap_or(batch.n()))?;
        optimizer.step_of(batch.task_idx, &mut model, loss.grads, config.schedule.lr_at(batch.step))?;
        dev.try_synchronize().map_err(|e| ModelError::Device(e.to_string()))?;
        let seconds = begin.elapsed().as_secs_f64();
        crate::huge_pages::follow();
        Ok(seconds)
    };
    // Memory is new, and the processor finds its clock.
    for batch in batches.iter().cycle().take(3 * batches.len()) {
        step(batch)?;
    }
    // By order, then by view.
    let mut seconds = [vec![Vec::new(); batches.len()], vec![Vec::new(); batches.len()]];
    let mut rounds = Vec::with_capacity(options.n_rounds);
    for round in 0..options.n_rounds {
        let mut of_round = [0.0; 2];
        for order in if round % 2 == 0 { [GROUPED, IN_TURN] } else { [IN_TURN, GROUPED] } {
            let mut here = vec![Vec::with_capacity(options.n_each); batches.len()];
            for view in views_in(order, batches.len(), options.n_each) {
                here[view].push(step(&batches[view])?);
            }
            // The first of a group comes after another view: it is not what a group is.
            let skipped = usize::from(order == GROUPED);
            for (all, here) in seconds[order].iter_mut().zip(&here) {
                of_round[order] += median(&here[skipped..]);
                all.extend_from_slice(&here[skipped..]);
            }
        }
        rounds.push(of_round[IN_TURN] / of_round[GROUPED]);
    }
    let view_of = |batch: &Batch| (tasks[batch.task_idx].name().to_owned(), batch.view_idx);
    let views = batches.iter().enumerate().map(|(i, batch)| {
        let (task, view) = view_of(batch);
        let [grouped_seconds, in_turn_seconds] = [GROUPED, IN_TURN].map(|order| median(&seconds[order][i]));
        ViewSteps { task, view, n: batch.n(), grouped_seconds, in_turn_seconds }
    });
    let has_batch = |task: usize, view: usize| batches.iter().any(|b| (b.task_idx, b.view_idx) == (task, view));
    let all = tasks.iter().enumerate().flat_map(|(t, task)| (0..task.views().len()).map(move |v| (t, task, v)));
    let left_out = all.filter(|&(t, _, v)| !has_batch(t, v)).map(|(_, task, v)| (task.name().to_owned(), v));
    let (views, left_out) = (views.collect(), left_out.collect());
    Ok(StepsReport { views, left_out, alternation: median(&rounds), rounds })
}

const GROUPED: usize = 0;
const IN_TURN: usize = 1;

/// The views of a round's steps.
fn views_in(order: usize, n_views: usize, n_each: usize) -> impl Iterator<Item = usize> {
    (0..n_views * n_each).map(move |i| if order == GROUPED { i / n_each } else { i % n_views })
}

/// The first batch of each view, by task and view.
fn one_of_each(loader: &mut Loader, n_views: usize) -> Result<Vec<Batch>, TrainError> {
    let mut found = BTreeMap::new();
    for _ in 0..MOST_DRAWN {
        let batch = loader.next()?;
        match found.entry((batch.task_idx, batch.view_idx)) {
            std::collections::btree_map::Entry::Vacant(place) => _ = place.insert(batch),
            std::collections::btree_map::Entry::Occupied(_) => loader.recycle(batch),
        }
        if found.len() == n_views {
            break;
        }
    }
    Ok(found.into_values().collect())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_have_every_view_as_often_and_one_of_them_never_twice_in_a_row() {
        let [grouped, in_turn] = [GROUPED, IN_TURN].map(|order| views_in(order, 3, 4).collect::<Vec<_>>());
        assert_eq!(grouped, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]);
        assert_eq!(in_turn, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
    }
}
