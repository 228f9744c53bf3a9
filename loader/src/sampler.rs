//! Chooses what each step trains on.
//!
//! In: task weights or intervals, and a seed. Out: the task of every step, and the view of a task's n-th step. Never: reads
//! data, looks at a loss, draws from a running state: `Turns` only counts what the rule has already decided.
//! Source: Akbari et al. 2023, arXiv:2305.06324 (alternating gradient descent); the release's loop for `intervals`.

use imp_schemas::rng::{Role, rng_for};
use imp_schemas::task::{Alternation, Mixture, Task};

/// The turns of all steps before `step`, and whose turn is next.
#[derive(Debug, Clone, PartialEq)]
pub struct Turns {
    seed: u64,
    rule: Rule,
    step: u64,
    n_steps: Vec<u64>,
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

impl Turns {
    /// Before step 0.
    pub fn new(mixture: &Mixture) -> Self {
        let tasks = mixture.tasks();
        let total: f64 = tasks.iter().map(Task::weight).sum();
        let shares = || tasks.iter().map(|t| t.weight() / total).collect();
        let rule = match mixture.alternation() {
            Alternation::Weights => Rule::Weights { shares: shares() },
            Alternation::Random => Rule::Random { shares: shares() },
            Alternation::Intervals => {
                Rule::Intervals { intervals: tasks.iter().map(Task::interval).collect(), pass: 1, task_idx: 0 }
            }
        };
        Self { seed: mixture.seed(), rule, step: 0, n_steps: vec![0; tasks.len()] }
    }

    /// The step whose turn is next.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Steps of each task before [`Turns::step`].
    pub fn n_steps(&self) -> &[u64] {
        &self.n_steps
    }

    /// The task of step [`Turns::step`]; goes on to the next step.
    pub fn take(&mut self) -> usize {
        let task_idx = match &mut self.rule {
            Rule::Weights { shares } => furthest_behind(shares, &self.n_steps, self.step),
            Rule::Random { shares } => pick(shares, rng_for(self.seed, Role::Task, &[self.step]).unit()),
            Rule::Intervals { intervals, pass, task_idx } => {
                let (at_pass, at_task) = next_firing(intervals, *pass, *task_idx);
                (*pass, *task_idx) = (at_pass, at_task + 1);
                at_task
            }
        };
        self.step += 1;
        self.n_steps[task_idx] += 1;
        task_idx
    }
}

/// The view of the `nth` step (from 0) of task `task_idx`, drawn by the views' weights.
pub fn view_of(seed: u64, task_idx: usize, task: &Task, nth: u64) -> usize {
    let views = task.views();
    if views.len() == 1 {
        return 0;
    }
    let total: f64 = views.iter().map(|v| v.weight()).sum();
    let shares: Vec<f64> = views.iter().map(|v| v.weight() / total).collect();
    pick(&shares, rng_for(seed, Role::View, &[task_idx as u64, nth]).unit())
}

/// Share of `step + 1` steps minus steps taken, greatest; the first of equals.
fn furthest_behind(shares: &[f64], n_steps: &[u64], step: u64) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (task_idx, (share, &n)) in shares.iter().zip(n_steps).enumerate() {
        let behind = share * (step + 1) as f64 - n as f64;
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
    shares.len().saturating_sub(1)
}

/// The next pass, from (`pass`, `task_idx`) on, at which a task's interval divides the pass number. Counted by task, not by
/// name of a corpus: in the release two loaders of one corpus share a counter, and one of them never fires (IMP.md, T2).
fn next_firing(intervals: &[u64], pass: u64, task_idx: usize) -> (u64, usize) {
    let fires = intervals.iter().enumerate().map(|(k, &interval)| {
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
        let raw = serde_json::json!({ "seed": 5, "alternation": alternation, "tasks": tasks });
        serde_json::from_value::<RawMixture>(raw).unwrap().try_into().unwrap()
    }

    fn turns(mixture: &Mixture, n: usize) -> Vec<usize> {
        let mut turns = Turns::new(mixture);
        (0..n).map(|_| turns.take()).collect()
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

    proptest! {
        #[test]
        fn weighted_shares_are_exact(weights in prop::collection::vec(1u32..100, 1..6)) {
            let keys: Vec<String> = weights.iter().map(|w| format!("weight={w}")).collect();
            let mixture = mixture("weights", &keys);
            let total: u32 = weights.iter().sum();
            let mut turns = Turns::new(&mixture);
            for step in 1..=u64::from(2 * total) {
                turns.take();
                for (&n, &w) in turns.n_steps().iter().zip(&weights) {
                    let share = f64::from(w) / f64::from(total) * step as f64;
                    // Never a whole step ahead of its share, and never so far behind that a period would not make it up.
                    prop_assert!((n as f64) < share + 1.0 && (n as f64) > share - weights.len() as f64);
                }
            }
            let want: Vec<u64> = weights.iter().map(|&w| u64::from(2 * w)).collect();
            prop_assert_eq!(turns.n_steps(), &want[..]);
        }
    }
}
