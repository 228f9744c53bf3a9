//! What the loader has done so far, and where its time went.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A record whose content could not make an example, and for which the next one of the permutation stood in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Substituted {
    pub corpus: String,
    pub shard: String,
    /// Within the shard.
    pub row: u64,
    pub reason: String,
}

/// Totals since the loader was opened.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoaderStats {
    /// Encoded media read from the store.
    pub media_bytes: u64,
    pub cache_bytes: usize,
    pub n_cache_hits: u64,
    /// Time of all threads of a stage, without waiting.
    pub fetch_seconds: f64,
    pub decode_seconds: f64,
    pub assemble_seconds: f64,
    /// Time that the trainer waited.
    pub wait_seconds: f64,
    /// Distinct records.
    pub substituted: Vec<Substituted>,
    /// Examples passed over because their video has no sound track, counted each time.
    pub n_without_sound: u64,
}

/// Counters that threads add to.
#[derive(Debug, Default)]
pub struct Counters {
    pub fetch: AtomicU64,
    pub decode: AtomicU64,
    pub assemble: AtomicU64,
    pub n_without_sound: AtomicU64,
    substituted: Mutex<BTreeSet<Substituted>>,
}

impl Counters {
    /// Runs `work` and charges its time to `counter`.
    pub fn charge<T>(counter: &AtomicU64, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        counter.fetch_add(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        done
    }

    /// Remembers a record; returns how many distinct ones there are.
    pub fn substitute(&self, record: Substituted) -> u64 {
        let mut all = self.substituted.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(record);
        all.len() as u64
    }

    pub fn substituted(&self) -> Vec<Substituted> {
        self.substituted.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Seconds of a counter of nanoseconds.
pub fn seconds(counter: &AtomicU64) -> f64 {
    Duration::from_nanos(counter.load(Ordering::Relaxed)).as_secs_f64()
}
