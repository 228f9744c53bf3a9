//! The journal of a run: what each unit of work became. A unit that has a commit is done, whoever did it.
//!
//! In: the outcome of a unit, after its shards and rejects are in the store. Out: a record created if absent, under the digest
//! of everything that went into the unit, so that any number of workers and restarts do it once.
//! Never: a commit before what it names, a commit changed.

use std::collections::BTreeMap;

use bytes::Bytes;
use imp_schemas::histogram::Histogram;
use imp_schemas::manifest::{RejectsEntry, ShardEntry};
use imp_schemas::media_index::MediaPlace;
use imp_schemas::reject::RejectReason;
use imp_schemas::shard::{Digest, commit_key};
use imp_schemas::store::{Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::error::IngestError;

/// What a unit became. `n_inputs` is the sum of the shards' rows and the rejects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UnitCommit {
    pub(crate) n_inputs: u64,
    /// Files that are neither medium nor caption.
    pub(crate) n_ignored: u64,
    pub(crate) shards: Vec<ShardEntry>,
    /// Of the media of each shard, row by row.
    pub(crate) places: Vec<Vec<MediaPlace>>,
    pub(crate) rejects: Option<RejectsEntry>,
    pub(crate) n_rejected: BTreeMap<RejectReason, u64>,
    /// By rule of cleaning: captions that were taken from kept records, and records that a dry run would have dropped.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) broken_rules: BTreeMap<String, u64>,
    pub(crate) histograms: BTreeMap<String, Histogram>,
}

impl UnitCommit {
    /// The commit of the unit with this work, `None` while it is not done.
    ///
    /// # Errors
    /// The store failed, or the record is not one of this build.
    pub(crate) fn load(store: &Store, corpus: &str, work: &Digest) -> Result<Option<Self>, IngestError> {
        let key = commit_key(corpus, work);
        match store.get(&key) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| IngestError::Commit { key: format!("{}/{key}", store.url()), source }),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the commit unless another worker has; gives the one that stands.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn store(self, store: &Store, corpus: &str, work: &Digest) -> Result<Self, IngestError> {
        let key = commit_key(corpus, work);
        let malformed = |source| IngestError::Commit { key: key.clone(), source };
        let bytes = Bytes::from(serde_json::to_vec(&self).map_err(malformed)?);
        if store.put_if_absent(&key, bytes)? {
            return Ok(self);
        }
        // Of two workers on one unit the first stands: media from a network may have come out differently.
        Ok(Self::load(store, corpus, work)?.unwrap_or(self))
    }

    /// Digest of what the unit became; the same shards and rejects give the same.
    pub(crate) fn outcome(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("imp-ingest 2026 outcome of a unit");
        hasher.update(&self.n_inputs.to_le_bytes());
        for digest in self.shards.iter().map(|s| &s.digest).chain(self.rejects.iter().map(|r| &r.digest)) {
            hasher.update(digest.0.as_bytes());
        }
        Digest(hasher.finalize().to_hex().to_string())
    }
}
