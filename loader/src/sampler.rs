//! Chooses what each step trains on.
//!
//! In: task weights or intervals, their phases, and a seed. Out: the task of every step, and the view of a task's n-th turn. Never: reads
//! data, looks at a loss, draws from a running state: `Turns` only counts what the rule has already decided.
//! Source: Akbari et al. 2023, arXiv:2305.06324 (alternating gradient descent); the release's loop for `intervals`.

use imp_schemas::rng::{Role, rng_for};
use imp_schemas::task::{Alternation, Mixture, Shares};

/// The turns of all steps before `step`, and whose turn is next.
#[derive(Debug, Clone, PartialEq)]
pub struct Turns {
    seed: u64,
    rule: Rule,
    step: u64,
    /// Turns so far: steps, and those that were left out.
    n_turns: u64,
    /// Of each task, of all turns.
    n_of_task: Vec<u64>,
    phase: PhaseTurns,
}

/// The phase that the next step is in.
#[derive(Debug, Clone, PartialEq)]
struct PhaseTurns {
    /// Phases that have begun.
    n_begun: usize,
    /// [`Turns::n_of_task`] when it began: shares are those of a phase, not of the run.
    n_of_task: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Weights {
        shares: Vec<f64>,
    },
    Random {
        shares: Vec<f64>,
    },
    /// The loop stands before task `task_idx` of pass `pass` (from 1).
    Intervals {
        intervals: Vec<u64>,
        pass: u64,
        task_idx: usize,
    },
}

impl Rule {
    fn new(alternation: Alternation, tasks: &[Shares]) -> Self {
        let total: f64 = tasks.iter().map(|t| t.weight).sum();
        let shares = || tasks.iter().map(|t| t.weight / total).collect();
        match alternation {
            Alternation::Weights => Self::Weights { shares: shares() },
            Alternation::Random => Self::Random { shares: shares() },
            Alternation::Intervals => {
                Self::Intervals { intervals: tasks.iter().map(|t| t.interval).collect(), pass: 1, task_idx: 0 }
            }
        }
    }
}

impl Turns {
    /// Before step 0.
    pub fn new(mixture: &Mixture) -> Self {
        let shares: Vec<Shares> = mixture.tasks().iter().map(Shares::of).collect();
        let n_of_task = vec![0; shares.len()];
        Self {
            seed: mixture.seed(),
            rule: Rule::new(mixture.alternation(), &shares),
            step: 0,
            n_turns: 0,
            phase: PhaseTurns { n_begun: 0, n_of_task: n_of_task.clone() },
            n_of_task,
        }
    }

    /// The step whose turn is next.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Turns of each task before [`Turns::step`], those that were left out included.
    pub fn n_of_task(&self) -> &[u64] {
        &self.n_of_task
    }

    /// The task of step [`Turns::step`]; goes on to the next step.
    pub fn take(&mut self, mixture: &Mixture) -> usize {
        let task_idx = self.leave_out(mixture);
        self.step += 1;
        task_idx
    }

    /// The task whose turn it would be. It is over then, and the step takes the next one.
    pub fn leave_out(&mut self, mixture: &Mixture) -> usize {
        if let Some(phase) = mixture.phases().get(self.phase.n_begun)
            && phase.from_step == self.step
        {
            self.rule = Rule::new(mixture.alternation(), &phase.shares);
            self.phase = PhaseTurns { n_begun: self.phase.n_begun + 1, n_of_task: self.n_of_task.clone() };
        }
        let task_idx = match &mut self.rule {
            Rule::Weights { shares } => furthest_behind(shares, &self.n_of_task, &self.phase.n_of_task),
            Rule::Random { shares } => pick(shares, rng_for(self.seed, Role::Task, &[self.n_turns]).unit()),
            Rule::Intervals { intervals, pass, task_idx } => {
                let (at_pass, at_task) = next_firing(intervals, *pass, *task_idx);
                (*pass, *task_idx) = (at_pass, at_task + 1);
                at_task
            }
        };
        self.n_turns += 1;
        self.n_of_task[task_idx] += 1;
        task_idx
    }

    /// Share of view `view_idx` of a task, in the phase of the last turn.
    pub fn view_weight(&self, mixture: &Mixture, task_idx: usize, view_idx: usize) -> f64 {
        match self.phase.n_begun.checked_sub(1).and_then(|i| mixture.phases().get(i)) {
            Some(phase) => phase.shares[task_idx].views[view_idx],
            None => mixture.tasks()[task_idx].views()[view_idx].weight(),
        }
    }
}

/// One of `views`, drawn by `weights` for the `nth` turn (from 0) of task `task_idx`.
pub fn view_of(seed: u64, task_idx: usize, views: &[usize], weights: impl Fn(usize) -> f64, nth: u64) -> usize {
    if let [only] = views {
        return *only;
    }
    let total: f64 = views.iter().map(|&i| weights(i)).sum();
    let shares: Vec<f64> = views.iter().map(|&i| weights(i) / total).collect();
    views[pick(&shares, rng_for(seed, Role::View, &[task_idx as u64, nth]).unit())]
}

/// Share of all turns with the next one, minus turns taken, greatest; the first of equals. Turns are counted from `since` on.
fn furthest_behind(shares: &[f64], n_of_task: &[u64], since: &[u64]) -> usize {
    let taken = |task_idx: usize| n_of_task[task_idx] - since[task_idx];
    let n_turns: u64 = (0..shares.len()).map(taken).sum();
    let mut best = (0, f64::NEG_INFINITY);
    for (task_idx, share) in shares.iter().enumerate() {
        let behind = share * (n_turns + 1) as f64 - taken(task_idx) as f64;
        if behind > best.1 {
            best = (task_idx, behind);
        }
    }
    best.0
}

/// Where `unit` (in [0, 1)) falls among shares that sum to 1; rounding of the sum goes to the last.
fn pick(shares: &[f64], unit: f64) -> usize {
    let mut below = 0.0;
    for (i, share) in shares.iter().enumerate() {
        below += share;
        if unit < below {
            return i;
        }
    }
    // Never one without a share.
    shares.iter().rposition(|&share| share > 0.0).unwrap_or(0)
}

/// The next pass, from (`pass`, `task_idx`) on, at which a task's interval divides the pass number. Counted by task, not by
/// name of a corpus: in the release two loaders of one corpus share a counter, and one of them never fires (IMP.md, T2).
fn next_firing(intervals: &[u64], pass: u64, task_idx: usize) -> (u64, usize) {
    let fires = intervals.iter().enumerate().filter(|(_, interval)| **interval > 0).map(|(k, &interval)| {
        let from = if k < task_idx { pass + 1 } else { pass };
        (from.div_ceil(interval) * interval, k)
    });
    fires.min().unwrap_or((pass, 0))
}

#[cfg(test)]
mod tests {
    use imp_schemas::task::RawMixture;
    use proptest::prelude::*;

    use super::*;

    fn mixture(alternation: &str, keys: &[String]) -> Mixture {
        with_changes(alternation, keys, serde_json::json!({}))
    }

    fn with_changes(alternation: &str, keys: &[String], changes: serde_json::Value) -> Mixture {
        let tasks: Vec<serde_json::Value> = keys
            .iter()
            .enumerate()
            .map(|(i, key)| {
                let mut task = serde_json::json!({ "name": format!("t{i}"), "corpora": ["c"], "modalities": ["image", "text"],
                    "objective": "nce", "batch": 2, "views": [{ "height": 16, "width": 16, "text_tokens": 4 }] });
                let (name, value) = key.split_once('=').unwrap();
                task[name] = value.parse::<f64>().map_or(serde_json::Value::Null, |v| {
                    if name == "interval" { serde_json::json!(v as u64) } else { serde_json::json!(v) }
                });
                task
            })
            .collect();
        let mut raw = serde_json::json!({ "seed": 5, "alternation": alternation, "tasks": tasks });
        raw.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        serde_json::from_value::<RawMixture>(raw).unwrap().try_into().unwrap()
    }

    fn turns(mixture: &Mixture, n: usize) -> Vec<usize> {
        let mut turns = Turns::new(mixture);
        (0..n).map(|_| turns.take(mixture)).collect()
    }

    #[test]
    fn intervals_follow_the_releases_loop_counted_by_task() {
        let keys = ["interval=1", "interval=1", "interval=12", "interval=5", "interval=12", "interval=8"];
        let mixture = mixture("intervals", &keys.map(str::to_owned));
        let mut want = Vec::new();
        for pass in 1..=120 {
            let intervals = [1, 1, 12, 5, 12, 8];
            want.extend((0..6).filter(|&k| pass % intervals[k] == 0));
        }
        assert_eq!(turns(&mixture, want.len()), want);
        // IMP.md, section 6: 40.1, 40.1, 3.3, 8.0, 3.3, 5.0 % of steps.
        let n = |k: usize| want.iter().filter(|&&t| t == k).count();
        assert_eq!([n(0), n(1), n(2), n(3), n(4), n(5)], [120, 120, 10, 24, 10, 15]);
    }

    #[test]
    fn a_far_interval_is_reached_without_walking_the_passes() {
        let mixture = mixture("intervals", &["interval=1000000007".to_owned(), "interval=2000000014".to_owned()]);
        assert_eq!(turns(&mixture, 6), [0, 0, 1, 0, 0, 1]);
    }

    #[test]
    fn random_turns_come_in_proportion_and_depend_on_the_step_alone() {
        let mixture = mixture("random", &["weight=3".to_owned(), "weight=1".to_owned()]);
        let all = turns(&mixture, 4000);
        let n = all.iter().filter(|&&t| t == 0).count();
        // Five standard deviations of a binomial with n = 4,000, p = 3/4 are 137.
        assert!(n.abs_diff(3000) < 137, "{n}");
        assert_eq!(all, turns(&mixture, 4000));
    }

    #[test]
    fn a_phase_has_shares_of_its_own_from_its_first_step() {
        let keys = ["weight=1", "weight=1", "weight=2"].map(str::to_owned);
        let change = |t0: f64, t2: f64| serde_json::json!({ "t0": { "weight": t0 }, "t2": { "weight": t2 } });
        let phases = serde_json::json!({ "phases": [{ "from_step": 100, "tasks": change(3.0, 0.0) },
            { "from_step": 200, "tasks": { "t1": { "weight": 0.0 } } }] });
        let all = turns(&with_changes("weights", &keys, phases), 300);
        assert_eq!(all[..100], turns(&mixture("weights", &keys), 100));
        let n = |steps: std::ops::Range<usize>, task: usize| all[steps].iter().filter(|&&t| t == task).count();
        assert_eq!([n(100..200, 0), n(100..200, 1), n(100..200, 2)], [75, 25, 0]);
        assert_eq!(n(200..300, 0), 100);
    }

    #[test]
    fn an_interval_of_0_pauses_a_task() {
        let keys = ["interval=1", "interval=2"].map(str::to_owned);
        let phases = serde_json::json!({ "phases": [{ "from_step": 3, "tasks": { "t1": { "interval": 0 } } },
            { "from_step": 6, "tasks": { "t1": { "interval": 1 }, "t0": { "interval": 3 } } }] });
        assert_eq!(turns(&with_changes("intervals", &keys, phases), 10), [0, 0, 1, 0, 0, 0, 1, 1, 0, 1]);
    }

    proptest! {
        #[test]
        fn weighted_shares_are_exact(weights in prop::collection::vec(1u32..100, 1..6)) {
            let keys: Vec<String> = weights.iter().map(|w| format!("weight={w}")).collect();
            let mixture = mixture("weights", &keys);
            let total: u32 = weights.iter().sum();
            let mut turns = Turns::new(&mixture);
            for step in 1..=u64::from(2 * total) {
                turns.take(&mixture);
                for (&n, &w) in turns.n_of_task().iter().zip(&weights) {
                    let share = f64::from(w) / f64::from(total) * step as f64;
                    // Never a whole step ahead of its share, and never so far behind that a period would not make it up.
                    prop_assert!((n as f64) < share + 1.0 && (n as f64) > share - weights.len() as f64);
                }
            }
            let want: Vec<u64> = weights.iter().map(|&w| u64::from(2 * w)).collect();
            prop_assert_eq!(turns.n_of_task(), &want[..]);
        }
    }
}
