//! What the loader has done so far, and where the time of its threads went: every stage waits for input, works, or waits for
//! output, and each of its threads charges all of its time to one of the three.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use imp_schemas::store::sealed::ReadingStats;
use serde::{Deserialize, Serialize};

/// A record whose content could not make an example, and for which the next one of the permutation stood in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Substituted {
    pub corpus: String,
    pub shard: String,
    /// Within the shard.
    pub row: u64,
    pub reason: String,
}

/// Seconds of all threads of a stage together.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct StageSeconds {
    pub n_threads: usize,
    pub waits_for_input: f64,
    pub works: f64,
    pub waits_for_output: f64,
}

impl StageSeconds {
    /// Share of its threads' time that it worked, 0 to 1.
    pub fn busy(&self) -> f64 {
        self.works / (self.waits_for_input + self.works + self.waits_for_output).max(f64::MIN_POSITIVE)
    }

    /// What happened after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            n_threads: self.n_threads,
            waits_for_input: self.waits_for_input - earlier.waits_for_input,
            works: self.works - earlier.works,
            waits_for_output: self.waits_for_output - earlier.waits_for_output,
        }
    }
}

/// Which stage the batches wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// The trainer hardly waits: a faster loader would change nothing.
    Trainer,
    /// Reading from the store.
    Storage,
    /// Decoding, cropping, resizing, spectrograms.
    Decode,
    /// The one thread that puts batches together.
    Assembly,
}

/// Share of its time that a trainer may wait and still be what everything else waits for.
const TRAINER_WAITS: f64 = 0.02;

/// The time of every stage.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Stages {
    pub fetch: StageSeconds,
    pub decode: StageSeconds,
    pub assemble: StageSeconds,
    /// Works between two calls of [`crate::Loader::next`], waits in them.
    pub trainer: StageSeconds,
}

impl Stages {
    /// What happened after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            fetch: self.fetch.since(&earlier.fetch),
            decode: self.decode.since(&earlier.decode),
            assemble: self.assemble.since(&earlier.assemble),
            trainer: self.trainer.since(&earlier.trainer),
        }
    }

    /// The trainer if it hardly waits, else the busiest stage before it.
    pub fn bound(&self) -> Bound {
        if self.trainer.waits_for_input <= TRAINER_WAITS * (self.trainer.waits_for_input + self.trainer.works) {
            return Bound::Trainer;
        }
        let stages = [(self.decode, Bound::Decode), (self.fetch, Bound::Storage), (self.assemble, Bound::Assembly)];
        let busiest = stages.into_iter().max_by(|a, b| a.0.busy().total_cmp(&b.0.busy()));
        busiest.map_or(Bound::Decode, |(_, bound)| bound)
    }

    /// How many times as fast the loader would be with a trainer that takes no time, if nothing but the busiest stage held it up:
    /// at least 1.
    pub fn headroom(&self) -> f64 {
        let busiest = [self.fetch, self.decode, self.assemble].iter().map(StageSeconds::busy).fold(0.0, f64::max);
        1.0 / busiest.clamp(f64::MIN_POSITIVE, 1.0)
    }
}

/// Totals since the loader was opened.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct LoaderStats {
    /// Encoded media read from the store.
    pub media_bytes: u64,
    pub cache_bytes: usize,
    pub n_cache_hits: u64,
    pub stages: Stages,
    /// Distinct records.
    pub substituted: Vec<Substituted>,
    /// Examples passed over because their video has no sound track, counted each time.
    pub n_without_sound: u64,
    /// Requests to a remote store, and its disk cache.
    pub reading: ReadingStats,
}

/// Nanoseconds of a stage, added to by its threads.
#[derive(Debug, Default)]
pub struct Stage {
    waits_for_input: AtomicU64,
    works: AtomicU64,
    waits_for_output: AtomicU64,
}

impl Stage {
    pub fn seconds(&self, n_threads: usize) -> StageSeconds {
        let seconds = |counter: &AtomicU64| Duration::from_nanos(counter.load(Ordering::Relaxed)).as_secs_f64();
        StageSeconds {
            n_threads,
            waits_for_input: seconds(&self.waits_for_input),
            works: seconds(&self.works),
            waits_for_output: seconds(&self.waits_for_output),
        }
    }
}

/// The time of one thread of a stage: whatever passed since the last call goes to what the call names.
#[derive(Debug)]
pub struct Clock<'a> {
    stage: &'a Stage,
    last: Instant,
}

impl<'a> Clock<'a> {
    pub fn new(stage: &'a Stage) -> Self {
        Self::since(stage, None)
    }

    /// A clock that was last read at `last`; `None` for now.
    pub fn since(stage: &'a Stage, last: Option<Instant>) -> Self {
        Self { stage, last: last.unwrap_or_else(Instant::now) }
    }

    /// Gives the moment.
    pub fn waited_for_input(&mut self) -> Instant {
        self.charge(&self.stage.waits_for_input);
        self.last
    }

    pub fn worked(&mut self) {
        self.charge(&self.stage.works);
    }

    pub fn waited_for_output(&mut self) {
        self.charge(&self.stage.waits_for_output);
    }

    fn charge(&mut self, counter: &AtomicU64) {
        let now = Instant::now();
        let passed = u64::try_from((now - self.last).as_nanos()).unwrap_or(u64::MAX);
        counter.fetch_add(passed, Ordering::Relaxed);
        self.last = now;
    }
}

/// Counters that threads add to.
#[derive(Debug, Default)]
pub struct Counters {
    pub fetch: Stage,
    pub decode: Stage,
    pub assemble: Stage,
    pub n_without_sound: AtomicU64,
    substituted: Mutex<BTreeSet<Substituted>>,
}

impl Counters {
    /// Remembers a record; returns how many distinct ones of its corpus there are.
    pub fn substitute(&self, record: Substituted) -> u64 {
        let mut all = self.substituted.lock().unwrap_or_else(PoisonError::into_inner);
        let corpus = record.corpus.clone();
        all.insert(record);
        all.iter().filter(|record| record.corpus == corpus).count() as u64
    }

    pub fn substituted(&self) -> Vec<Substituted> {
        self.substituted.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(waits_for_input: f64, works: f64, waits_for_output: f64) -> StageSeconds {
        StageSeconds { n_threads: 1, waits_for_input, works, waits_for_output }
    }

    #[test]
    fn batches_wait_for_the_trainer_or_for_the_busiest_stage() {
        let mut stages = Stages {
            fetch: stage(0.0, 4.0, 6.0),
            decode: stage(1.0, 8.0, 1.0),
            assemble: stage(9.0, 1.0, 0.0),
            trainer: stage(5.0, 5.0, 0.0),
        };
        assert_eq!(stages.bound(), Bound::Decode);
        assert!((stages.headroom() - 1.25).abs() < 1e-9);
        stages.fetch = stage(0.0, 10.0, 0.0);
        assert_eq!(stages.bound(), Bound::Storage);
        stages.trainer = stage(0.1, 9.9, 0.0);
        assert_eq!(stages.bound(), Bound::Trainer);
        let since = stages.since(&stages);
        assert_eq!((since.fetch.works, since.fetch.n_threads), (0.0, 1));
    }

    #[test]
    fn a_clock_charges_every_moment_once() {
        let counted = Stage::default();
        let start = Instant::now();
        let mut clock = Clock::new(&counted);
        for _ in 0..3 {
            clock.waited_for_input();
            std::thread::sleep(Duration::from_millis(2));
            clock.worked();
            clock.waited_for_output();
        }
        let (all, passed) = (counted.seconds(1), start.elapsed().as_secs_f64());
        assert!(all.works >= 0.006 && all.waits_for_input + all.works + all.waits_for_output <= passed, "{all:?}");
    }
}
