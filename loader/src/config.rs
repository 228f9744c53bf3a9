//! Settings of the machinery: threads, queues, bytes. None of them changes a byte of a batch.

use std::path::PathBuf;

use imp_schemas::store::Store;
use serde::{Deserialize, Serialize};

use crate::error::LoaderError;

/// `[train.loader]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderSettings {
    /// Reads of shards that wait for the store side by side: more hide a longer latency, and each holds what it reads. 0 is 2 for
    /// a folder, where more only get in each other's way, and 16 for a remote store.
    pub fetch_threads: usize,
    /// Threads that decode, crop and resize.
    pub decode_threads: usize,
    /// Finished batches that wait for the trainer.
    pub prefetch_batches: usize,
    /// What the loader may hold, MiB: encoded media and arrays of all batches under way, what is being decoded, buffers. One batch is
    /// always let through, and batches always have a quarter of it.
    pub max_buffered_mib: usize,
    /// Decoded working copies kept from epoch to epoch, MiB; 0 keeps none.
    pub decoded_cache_mib: usize,
    /// Folder that keeps what was read of shards in a remote store, for later epochs and runs; absent, none does. Relative to where
    /// the program is started; any number of processes of a machine may share it. Not used where `store` is a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_cache: Option<PathBuf>,
    /// Most that `disk_cache` may take, GiB; leave room on the disk for whatever else is written there.
    pub disk_cache_gib: usize,
    /// Silence of a request to a remote store after which it is made a second time, milliseconds; 0 never does. At most one
    /// request in sixteen is. S3 says that a first byte takes 100 to 200 ms, so the default is only met by the few that hang.
    pub hedge_after_ms: u64,
    /// Records of one corpus that may turn out not to decode before the run stops: those of its earlier starts count, if it was told
    /// of them ([`crate::Loader::remember`]), those of other ranks do not.
    pub max_substituted: u64,
}

/// Which part of every batch is wanted: ranks cut the global batch, so what a step trains on does not depend on their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    /// From 0.
    pub rank: usize,
    /// Number of ranks.
    pub of: usize,
}

impl Rank {
    /// The one rank of a run without others.
    pub const ALONE: Self = Self { rank: 0, of: 1 };
}

impl Default for LoaderSettings {
    fn default() -> Self {
        Self {
            fetch_threads: 0,
            decode_threads: 2,
            prefetch_batches: 4,
            max_buffered_mib: 512,
            decoded_cache_mib: 512,
            disk_cache: None,
            disk_cache_gib: 64,
            hedge_after_ms: 500,
            max_substituted: 32,
        }
    }
}

impl LoaderSettings {
    /// Threads that read from `store`.
    pub fn n_fetch_threads(&self, store: &Store) -> usize {
        match self.fetch_threads {
            0 if store.is_remote() => 16,
            0 => 2,
            n => n,
        }
    }

    /// # Errors
    /// [`LoaderError::Setting`] with the key, its value and the rule.
    pub fn check(&self) -> Result<(), LoaderError> {
        let within = |key, found: usize, low: usize, high: usize, rule| {
            let error = || LoaderError::Setting { key, found: found.to_string(), rule };
            if (low..=high).contains(&found) { Ok(()) } else { Err(error()) }
        };
        within("fetch_threads", self.fetch_threads, 0, 1024, "at most 1024")?;
        within("decode_threads", self.decode_threads, 1, 1024, "between 1 and 1024")?;
        within("prefetch_batches", self.prefetch_batches, 1, 4096, "between 1 and 4096")?;
        within("max_buffered_mib", self.max_buffered_mib, 1, 1 << 24, "between 1 and 16777216")?;
        within("decoded_cache_mib", self.decoded_cache_mib, 0, 1 << 24, "at most 16777216")?;
        within("disk_cache_gib", self.disk_cache_gib, 1, 1 << 20, "between 1 and 1048576")?;
        let hedge_after_ms = usize::try_from(self.hedge_after_ms).unwrap_or(usize::MAX);
        within("hedge_after_ms", hedge_after_ms, 0, 600_000, "at most 600000")
    }
}
