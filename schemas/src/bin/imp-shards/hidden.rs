//! Rows that a snapshot's tombstones hide.
//!
//! In: a manifest. Out: which rows of which shard are no records. Never: a row of another snapshot.

use std::collections::{HashMap, HashSet};

use imp_schemas::manifest::Manifest;
use imp_schemas::shard::Digest;
use imp_schemas::store::Store;

use crate::ShardsError;

/// By shard; shards without a hidden row are absent.
#[derive(Debug, Default)]
pub(crate) struct Hidden(HashMap<Digest, HashSet<u64>>);

impl Hidden {
    /// # Errors
    /// The table of tombstones cannot be read.
    pub(crate) fn of(store: &Store, manifest: &Manifest) -> Result<Self, ShardsError> {
        let mut hidden = Self::default();
        for tombstone in store.tombstones(manifest)? {
            hidden.0.entry(tombstone.shard).or_default().insert(tombstone.row);
        }
        Ok(hidden)
    }

    /// `row` is counted within the shard.
    pub(crate) fn has(&self, shard: &Digest, row: u64) -> bool {
        self.0.get(shard).is_some_and(|rows| rows.contains(&row))
    }

    /// Rows of the shard that are hidden.
    pub(crate) fn n_of(&self, shard: &Digest) -> u64 {
        self.0.get(shard).map_or(0, |rows| rows.len() as u64)
    }

    pub(crate) fn n(&self) -> u64 {
        self.0.values().map(|rows| rows.len() as u64).sum()
    }
}
