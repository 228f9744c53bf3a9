//! Which examples a step trains on: a pure function of (manifests, mixture, seed, step).
//!
//! In: the mixture and the number of rows of every corpus. Out: the task, view and examples of any step; the cursor of any
//! step. Never: I/O, a buffer, a short batch: an epoch's end runs on into the next epoch inside a batch.
//!
//! A task's rows are its corpora's, one after the other, or those of each aspect bucket by itself. An epoch goes through them in
//! the order of a cipher permutation keyed by (seed, task, bucket, epoch). With a shuffle radius R, windows of R / 16 rows are
//! permuted first, and then the rows inside each pool of R: reads stay local and there is still no state (DATA-PLANE.md 7).

use std::collections::BTreeMap;

use imp_schemas::batch::ExampleId;
use imp_schemas::cursor::{Cursor, TaskCursor};
use imp_schemas::rng::{Role, rng_for};
use imp_schemas::task::Mixture;

use crate::buckets::{Bucket, TaskRows};
use crate::config::Rank;
use crate::permute::Permutation;
use crate::sampler::{Turns, view_of};

/// Windows of a pool.
pub const N_WINDOWS: u64 = 16;

/// What one step trains on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepPlan {
    pub step: u64,
    pub task_idx: usize,
    pub view_idx: usize,
    pub bucket_idx: usize,
    /// Index of the batch's first example among all that come from the bucket, from 0.
    pub first: u64,
    /// Examples of the batch on all ranks.
    pub n_global: u64,
    /// Where in the batch `examples` begin.
    pub offset: u64,
    pub examples: Vec<ExampleId>,
}

impl StepPlan {
    /// The part of the batch that `rank` makes: parts differ by one example at most, and together they are the batch.
    #[must_use]
    pub fn slice(mut self, rank: Rank) -> Self {
        let at = |i: usize| self.examples.len() * i / rank.of;
        let part = at(rank.rank)..at(rank.rank + 1);
        self.offset += part.start as u64;
        self.examples = self.examples[part].to_vec();
        self
    }
}

/// The order of everything. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Plan {
    mixture: Mixture,
    tasks: Vec<TaskRows>,
}

/// A place in the plan: what comes next, and what came before.
#[derive(Debug, Clone)]
pub struct PlanState {
    turns: Turns,
    /// Examples so far of each bucket of each task.
    n_examples: Vec<Vec<u64>>,
    /// The order last used by each bucket, so that a batch does not set up its cipher again.
    orders: Vec<Vec<Option<Order>>>,
}

/// A turn of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub task_idx: usize,
    pub view_idx: usize,
    bucket_idx: usize,
    first: u64,
}

impl Plan {
    /// `tasks`: the rows of each task, none of them 0 in sum.
    pub fn new(mixture: Mixture, tasks: Vec<TaskRows>) -> Self {
        Self { mixture, tasks }
    }

    /// Before step 0.
    pub fn start(&self) -> PlanState {
        let buckets = || self.tasks.iter().map(|task| task.buckets.len());
        PlanState {
            turns: Turns::new(&self.mixture),
            n_examples: buckets().map(|n| vec![0; n]).collect(),
            orders: buckets().map(|n| vec![None; n]).collect(),
        }
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
        let Turn { task_idx, view_idx, bucket_idx, first } = self.skip(state);
        let n_global = self.mixture.tasks()[task_idx].views()[view_idx].n() as u64;
        let order = &mut state.orders[task_idx][bucket_idx];
        let examples = (first..first + n_global).map(|k| self.example(order, task_idx, bucket_idx, k)).collect();
        StepPlan { step, task_idx, view_idx, bucket_idx, first, n_global, offset: 0, examples }
    }

    /// The plan of any step.
    pub fn batch_at(&self, step: u64) -> StepPlan {
        self.advance(&mut self.seek(step))
    }

    /// The `k`-th example that comes from a bucket of a task.
    pub fn example_at(&self, task_idx: usize, bucket_idx: usize, k: u64) -> ExampleId {
        self.example(&mut None, task_idx, bucket_idx, k)
    }

    /// Rows of a bucket, counted within it, in the order of its first epoch: the first `n` of them.
    pub fn first_rows(&self, task_idx: usize, bucket_idx: usize, n: u64) -> Vec<u64> {
        let mut order = self.order(task_idx, bucket_idx, 0);
        (0..n).map(|i| order.row_at(i)).collect()
    }

    /// What was consumed before the state's step.
    pub fn cursor_of(&self, state: &PlanState, manifest_digests: &BTreeMap<String, String>) -> Cursor {
        let tasks = self.mixture.tasks().iter().enumerate().map(|(i, task)| TaskCursor {
            name: task.name().to_owned(),
            n_steps: state.turns.n_of_task()[i],
            n_examples: state.n_examples[i].iter().sum(),
        });
        let step = state.turns.step();
        Cursor {
            step,
            seed: self.mixture.seed(),
            mixture_digest: self.mixture.digest_before(step),
            manifest_digests: manifest_digests.clone(),
            tasks: tasks.collect(),
        }
    }

    /// The turn of the state's step, without its examples; the state goes on to the next.
    pub fn skip(&self, state: &mut PlanState) -> Turn {
        for _ in 0..self.mixture.n_left_out_at(state.turns.step()) {
            let task_idx = state.turns.leave_out(&self.mixture);
            self.turn(state, task_idx);
        }
        let task_idx = state.turns.take(&self.mixture);
        self.turn(state, task_idx)
    }

    /// The turn that `task_idx` has just been given.
    fn turn(&self, state: &mut PlanState, task_idx: usize) -> Turn {
        let (task, rows) = (&self.mixture.tasks()[task_idx], &self.tasks[task_idx]);
        let n_examples = &mut state.n_examples[task_idx];
        // The bucket that is least far through its epochs: all of them end theirs within a batch of each other.
        let progress = |i: usize, of: usize| u128::from(n_examples[i]) * u128::from(rows.buckets[of].n_rows);
        let least = (0..rows.buckets.len()).reduce(|a, b| if progress(b, a) < progress(a, b) { b } else { a });
        let bucket_idx = least.unwrap_or(0);
        let nth = state.turns.n_of_task()[task_idx] - 1;
        let weight = |view_idx| state.turns.view_weight(&self.mixture, task_idx, view_idx);
        let view_idx = view_of(self.mixture.seed(), task_idx, &rows.buckets[bucket_idx].views, weight, nth);
        let first = n_examples[bucket_idx];
        n_examples[bucket_idx] += task.views()[view_idx].n() as u64;
        Turn { task_idx, view_idx, bucket_idx, first }
    }

    /// Rows of a bucket of a task, all corpora together.
    pub fn n_rows(&self, task_idx: usize, bucket_idx: usize) -> u64 {
        self.tasks[task_idx].buckets[bucket_idx].n_rows
    }

    /// Rows of each bucket of a task.
    pub fn buckets(&self, task_idx: usize) -> &[Bucket] {
        &self.tasks[task_idx].buckets
    }

    fn order(&self, task_idx: usize, bucket_idx: usize, epoch: u64) -> Order {
        let n = self.n_rows(task_idx, bucket_idx);
        let radius = self.mixture.shuffle_radius().unwrap_or(n);
        // The one bucket of a task without aspect buckets is the task: its address is that of before there were any.
        let address = task_idx as u64 | (bucket_idx as u64) << 32;
        Order::new(self.mixture.seed(), address, epoch, n, radius)
    }

    fn example(&self, order: &mut Option<Order>, task_idx: usize, bucket_idx: usize, k: u64) -> ExampleId {
        let rows = &self.tasks[task_idx];
        let bucket = &rows.buckets[bucket_idx];
        let n = bucket.n_rows;
        let (epoch, i) = (k / n, k % n);
        if order.as_ref().is_none_or(|o| o.epoch != epoch) {
            *order = Some(self.order(task_idx, bucket_idx, epoch));
        }
        let mut row = bucket.row(order.as_mut().map_or(0, |o| o.row_at(i)));
        let mut corpus_idx = 0;
        for &n_rows in &rows.n_rows {
            if row < n_rows {
                break;
            }
            row -= n_rows;
            corpus_idx += 1;
        }
        ExampleId { corpus_idx, row, epoch }
    }
}

/// The order of one bucket's rows in one epoch.
#[derive(Debug, Clone)]
struct Order {
    seed: u64,
    /// Of task and bucket.
    address: u64,
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
    fn new(seed: u64, address: u64, epoch: u64, n: u64, radius: u64) -> Self {
        let mut order =
            Self { seed, address, epoch, n, radius: radius.clamp(1, n), window: 1, windows: None, pool: None };
        if radius < n {
            order.window = (radius / N_WINDOWS).max(1);
            let n_windows = n.div_ceil(order.window);
            let permutation = Permutation::new(n_windows, &mut rng_for(seed, Role::Shuffle, &[address, epoch]));
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
            let at = [self.address, self.epoch, pool_idx];
            // Without windows there is one pool, and the address is (task and bucket, epoch).
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
        plan_with(n_rows, batch, radius, serde_json::json!([]))
    }

    fn plan_with(n_rows: &[u64], batch: u64, radius: Option<u64>, skip: serde_json::Value) -> Plan {
        let view = serde_json::json!({ "height": 16, "width": 16, "text_tokens": 4 });
        let task = |name: &str, weight: f64, batch: u64| {
            serde_json::json!({ "name": name, "corpora": (0..n_rows.len()).map(|i| format!("c{i}")).collect::<Vec<_>>(),
                "modalities": ["image", "text"], "objective": "nce", "batch": batch, "weight": weight, "views": [view, view] })
        };
        let raw = serde_json::json!({ "seed": 11, "shuffle_radius": radius, "skip": skip,
            "tasks": [task("a", 2.0, batch), task("b", 1.0, batch + 1)] });
        let mixture: Mixture = serde_json::from_value::<RawMixture>(raw).unwrap().try_into().unwrap();
        let rows = TaskRows::whole(n_rows.to_vec(), 2);
        Plan::new(mixture, vec![rows.clone(), rows])
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
                let rows: BTreeSet<_> = (epoch * n..(epoch + 1) * n).map(|k| plan.example_at(0, 0, k)).collect();
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
                    prop_assert_eq!(*example, plan.example_at(planned.task_idx, 0, k));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn ranks_make_one_batch_and_left_out_steps_are_those_of_the_plan(
            size in 40u64..300, batch in 2u64..37, ranks in 1usize..9, from in 0u64..20, n_left_out in 1u64..9,
        ) {
            let whole = plan(&[size, 3], batch, None);
            for step in 0..12 {
                let planned = whole.batch_at(step);
                let slices: Vec<StepPlan> =
                    (0..ranks).map(|rank| planned.clone().slice(Rank { rank, of: ranks })).collect();
                let together: Vec<ExampleId> = slices.iter().flat_map(|slice| slice.examples.clone()).collect();
                prop_assert_eq!(&together, &planned.examples);
                let mut offset = 0;
                for slice in slices {
                    prop_assert_eq!(slice.offset, offset);
                    offset += slice.examples.len() as u64;
                }
            }
            let skipping = plan_with(&[size, 3], batch, None, serde_json::json!([[from, from + n_left_out]]));
            for step in 0..30 {
                let same_as = if step < from { step } else { step + n_left_out };
                let (got, want) = (skipping.batch_at(step), whole.batch_at(same_as));
                prop_assert_eq!(got, StepPlan { step, ..want });
            }
        }
    }

    #[test]
    fn buckets_go_through_their_epochs_together() {
        let view = |width: usize| serde_json::json!({ "height": 16, "width": width, "text_tokens": 4 });
        let raw = serde_json::json!({ "seed": 3, "tasks": [{ "name": "a", "corpora": ["c"], "modalities": ["image", "text"],
            "objective": "nce", "batch": 8, "aspect_buckets": true, "views": [view(16), view(32)] }] });
        let mixture: Mixture = serde_json::from_value::<RawMixture>(raw).unwrap().try_into().unwrap();
        let sizes = (0..1000u32).map(|row| if row % 4 == 0 { (200, 100) } else { (100, 100) });
        let buckets = crate::buckets::by_aspect(&mixture.tasks()[0], sizes);
        let plan = Plan::new(mixture, vec![TaskRows { n_rows: vec![1000], buckets }]);
        let mut state = plan.start();
        let mut seen = BTreeSet::new();
        for step in 0..250 {
            let planned = plan.advance(&mut state);
            assert_eq!(planned, plan.batch_at(step));
            for example in &planned.examples {
                assert_eq!(example.row.is_multiple_of(4), planned.view_idx == 1);
                assert!(seen.insert((example.epoch, example.row)), "{example:?} came twice");
                // 125 steps are an epoch; the buckets of 750 and 250 rows end theirs within a batch of each other.
                assert!(example.epoch.abs_diff(step / 125) <= 1);
            }
        }
        assert!(seen.range(..(1, 0)).count() == 1000);
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
        let rows: Vec<u64> = (0..8).map(|k| plan(&[1000], 8, None).example_at(0, 0, k).row).collect();
        let local: Vec<u64> = (0..8).map(|k| plan(&[1000], 8, Some(64)).example_at(1, 0, k).row).collect();
        assert_eq!(rows, [47, 293, 604, 796, 398, 137, 729, 527], "mark BATCH ORDER in the changelog");
        assert_eq!(local, [337, 115, 196, 804, 107, 716, 805, 774], "mark BATCH ORDER in the changelog");
    }
}
