//! Which examples a step trains on: a pure function of (manifests, mixture, seed, step).
//!
//! In: the mixture and the number of rows of every corpus. Out: the task, view and examples of any step; the cursor of any
//! step. Never: I/O, a buffer, a short batch: an epoch's end runs on into the next epoch inside a batch.
//!
//! A task's rows are its corpora's, one after the other. An epoch goes through them in the order of a cipher permutation
//! keyed by (seed, task, epoch). With a shuffle radius R, windows of R / 16 rows are permuted first, and then the rows inside
//! each pool of R: reads stay local and there is still no state (DATA-PLANE.md 7).

use std::collections::BTreeMap;

use imp_schemas::batch::ExampleId;
use imp_schemas::cursor::{Cursor, TaskCursor};
use imp_schemas::rng::{Role, rng_for};
use imp_schemas::task::Mixture;

use crate::permute::Permutation;
use crate::sampler::{Turns, view_of};

/// Windows of a pool.
const N_WINDOWS: u64 = 16;

/// What one step trains on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepPlan {
    pub step: u64,
    pub task_idx: usize,
    pub view_idx: usize,
    /// Index of the batch's first example among all that the task consumes, from 0.
    pub first: u64,
    pub examples: Vec<ExampleId>,
}

/// The order of everything. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Plan {
    mixture: Mixture,
    /// Rows of each corpus of each task.
    n_rows: Vec<Vec<u64>>,
}

/// A place in the plan: what comes next, and what came before.
#[derive(Debug, Clone)]
pub struct PlanState {
    turns: Turns,
    n_examples: Vec<u64>,
    /// The order last used by each task, so that a batch does not set up its cipher again.
    orders: Vec<Option<Order>>,
}

impl Plan {
    /// `n_rows[task][corpus]`: rows of the split of each corpus of each task, none of them 0 in sum.
    pub fn new(mixture: Mixture, n_rows: Vec<Vec<u64>>) -> Self {
        Self { mixture, n_rows }
    }

    /// Before step 0.
    pub fn start(&self) -> PlanState {
        let n_tasks = self.mixture.tasks().len();
        PlanState { turns: Turns::new(&self.mixture), n_examples: vec![0; n_tasks], orders: vec![None; n_tasks] }
    }

    /// Before `step`. Counts turns and nothing else, about 10 million steps a second.
    pub fn seek(&self, step: u64) -> PlanState {
        let mut state = self.start();
        while state.turns.step() < step {
            self.skip(&mut state);
        }
        state
    }

    /// The plan of the state's step; the state goes on to the next.
    pub fn advance(&self, state: &mut PlanState) -> StepPlan {
        let step = state.turns.step();
        let (task_idx, view_idx, first) = self.skip(state);
        let n = self.mixture.tasks()[task_idx].views()[view_idx].n() as u64;
        let examples = (first..first + n).map(|k| self.example(&mut state.orders[task_idx], task_idx, k)).collect();
        StepPlan { step, task_idx, view_idx, first, examples }
    }

    /// The plan of any step.
    pub fn batch_at(&self, step: u64) -> StepPlan {
        self.advance(&mut self.seek(step))
    }

    /// The `k`-th example that task `task_idx` consumes.
    pub fn example_at(&self, task_idx: usize, k: u64) -> ExampleId {
        self.example(&mut None, task_idx, k)
    }

    /// What was consumed before the state's step.
    pub fn cursor_of(&self, state: &PlanState, manifest_digests: &BTreeMap<String, String>) -> Cursor {
        let tasks = self.mixture.tasks().iter().enumerate().map(|(i, task)| TaskCursor {
            name: task.name().to_owned(),
            n_steps: state.turns.n_steps()[i],
            n_examples: state.n_examples[i],
        });
        Cursor {
            step: state.turns.step(),
            seed: self.mixture.seed(),
            mixture_digest: self.mixture.digest(),
            manifest_digests: manifest_digests.clone(),
            tasks: tasks.collect(),
        }
    }

    /// Task, view and first example of the state's step, without its examples.
    pub fn skip(&self, state: &mut PlanState) -> (usize, usize, u64) {
        let task_idx = state.turns.take();
        let nth = state.turns.n_steps()[task_idx] - 1;
        let task = &self.mixture.tasks()[task_idx];
        let view_idx = view_of(self.mixture.seed(), task_idx, task, nth);
        let first = state.n_examples[task_idx];
        state.n_examples[task_idx] += task.views()[view_idx].n() as u64;
        (task_idx, view_idx, first)
    }

    /// Rows of a task, all corpora together.
    pub fn n_rows(&self, task_idx: usize) -> u64 {
        self.n_rows[task_idx].iter().sum()
    }

    fn example(&self, order: &mut Option<Order>, task_idx: usize, k: u64) -> ExampleId {
        let n = self.n_rows(task_idx);
        let (epoch, i) = (k / n, k % n);
        if order.as_ref().is_none_or(|o| o.epoch != epoch) {
            let radius = self.mixture.shuffle_radius().unwrap_or(n);
            *order = Some(Order::new(self.mixture.seed(), task_idx, epoch, n, radius));
        }
        let mut row = order.as_mut().map_or(0, |o| o.row_at(i));
        let mut corpus_idx = 0;
        for &n_rows in &self.n_rows[task_idx] {
            if row < n_rows {
                break;
            }
            row -= n_rows;
            corpus_idx += 1;
        }
        ExampleId { corpus_idx, row, epoch }
    }
}

/// The order of one task's rows in one epoch.
#[derive(Debug, Clone)]
struct Order {
    seed: u64,
    task_idx: usize,
    epoch: u64,
    n: u64,
    /// Rows of a pool; `n` if everything is one pool.
    radius: u64,
    /// Rows of a window; the last window may be shorter.
    window: u64,
    windows: Option<Windows>,
    pool: Option<(u64, Permutation)>,
}

#[derive(Debug, Clone)]
struct Windows {
    order: Permutation,
    n: u64,
    /// Where the last, shorter window stands.
    short_at: u64,
    short_len: u64,
}

impl Order {
    fn new(seed: u64, task_idx: usize, epoch: u64, n: u64, radius: u64) -> Self {
        let mut order =
            Self { seed, task_idx, epoch, n, radius: radius.clamp(1, n), window: 1, windows: None, pool: None };
        if radius < n {
            order.window = (radius / N_WINDOWS).max(1);
            let n_windows = n.div_ceil(order.window);
            let permutation = Permutation::new(n_windows, &mut rng_for(seed, Role::Shuffle, &[task_idx as u64, epoch]));
            let short_at = permutation.position_of(n_windows - 1);
            let short_len = n - (n_windows - 1) * order.window;
            order.windows = Some(Windows { order: permutation, n: n_windows, short_at, short_len });
        }
        order
    }

    /// The row at position `i` of the epoch.
    fn row_at(&mut self, i: u64) -> u64 {
        let pool_idx = i / self.radius;
        let start = pool_idx * self.radius;
        let len = self.radius.min(self.n - start);
        if self.pool.as_ref().is_none_or(|(idx, _)| *idx != pool_idx) {
            let at = [self.task_idx as u64, self.epoch, pool_idx];
            // Without windows there is one pool, and the address is (task, epoch).
            let at = if self.windows.is_some() { &at[..] } else { &at[..2] };
            self.pool = Some((pool_idx, Permutation::new(len, &mut rng_for(self.seed, Role::Shuffle, at))));
        }
        let within = self.pool.as_ref().map_or(0, |(_, permutation)| permutation.at(i - start));
        self.in_windows(start + within)
    }

    /// The row at position `j` of the windows in their permuted order.
    fn in_windows(&self, j: u64) -> u64 {
        let Some(windows) = &self.windows else { return j };
        let short_start = windows.short_at * self.window;
        let (place, offset) = if j < short_start {
            (j / self.window, j % self.window)
        } else if j < short_start + windows.short_len {
            (windows.short_at, j - short_start)
        } else {
            let after = j - short_start - windows.short_len;
            (windows.short_at + 1 + after / self.window, after % self.window)
        };
        debug_assert!(place < windows.n);
        windows.order.at(place) * self.window + offset
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use imp_schemas::task::RawMixture;
    use proptest::prelude::*;

    use super::*;

    fn plan(n_rows: &[u64], batch: u64, radius: Option<u64>) -> Plan {
        let view = serde_json::json!({ "height": 16, "width": 16, "text_tokens": 4 });
        let task = |name: &str, weight: f64, batch: u64| {
            serde_json::json!({ "name": name, "corpora": (0..n_rows.len()).map(|i| format!("c{i}")).collect::<Vec<_>>(),
                "modalities": ["image", "text"], "objective": "nce", "batch": batch, "weight": weight, "views": [view, view] })
        };
        let raw = serde_json::json!({ "seed": 11, "shuffle_radius": radius,
            "tasks": [task("a", 2.0, batch), task("b", 1.0, batch + 1)] });
        let mixture: Mixture = serde_json::from_value::<RawMixture>(raw).unwrap().try_into().unwrap();
        Plan::new(mixture, vec![n_rows.to_vec(), n_rows.to_vec()])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_epoch_holds_every_row_once(
            sizes in prop::collection::vec(1u64..200, 1..4),
            batch in 2u64..37,
            radius in prop::option::of(1u64..300),
        ) {
            let plan = plan(&sizes, batch, radius);
            let n: u64 = sizes.iter().sum();
            for epoch in 0..3 {
                let rows: BTreeSet<_> = (epoch * n..(epoch + 1) * n).map(|k| plan.example_at(0, k)).collect();
                prop_assert_eq!(rows.len() as u64, n);
                for example in rows {
                    prop_assert!(example.epoch == epoch && example.row < sizes[example.corpus_idx as usize]);
                }
            }
        }

        #[test]
        fn any_step_alone_is_that_step_in_order(
            size in 1u64..300, batch in 2u64..37, radius in prop::option::of(1u64..300), n_steps in 1u64..40,
        ) {
            let plan = plan(&[size, 3], batch, radius);
            let mut state = plan.start();
            let mut consumed = [0, 0];
            for step in 0..n_steps {
                let digests = BTreeMap::new();
                prop_assert_eq!(plan.cursor_of(&state, &digests), plan.cursor_of(&plan.seek(step), &digests));
                let planned = plan.advance(&mut state);
                prop_assert_eq!(&planned, &plan.batch_at(step));
                prop_assert_eq!(planned.first, consumed[planned.task_idx]);
                consumed[planned.task_idx] += planned.examples.len() as u64;
                for (k, example) in (planned.first..).zip(&planned.examples) {
                    prop_assert_eq!(*example, plan.example_at(planned.task_idx, k));
                }
            }
        }
    }

    #[test]
    fn a_radius_keeps_a_batch_in_few_windows_and_none_spreads_it() {
        let spread = |radius| {
            let plan = plan(&[100_000], 64, radius);
            let windows: BTreeSet<u64> = plan.batch_at(10).examples.iter().map(|e| e.row / 100).collect();
            windows.len()
        };
        // A radius of 1,600 rows is 16 windows of 100 rows, and a batch may touch two pools.
        assert!(spread(Some(1600)) <= 32);
        assert!(spread(None) > 50);
    }

    #[test]
    fn the_order_of_rows_never_changes() {
        let rows: Vec<u64> = (0..8).map(|k| plan(&[1000], 8, None).example_at(0, k).row).collect();
        let local: Vec<u64> = (0..8).map(|k| plan(&[1000], 8, Some(64)).example_at(1, k).row).collect();
        assert_eq!(rows, [47, 293, 604, 796, 398, 137, 729, 527], "mark BATCH ORDER in the changelog");
        assert_eq!(local, [337, 115, 196, 804, 107, 716, 805, 774], "mark BATCH ORDER in the changelog");
    }
}
