//! Inputs that were rejected for reasons that pass: a host that was down, a file that was not there yet.
//!
//! In: the newest snapshot's rejects and the reasons to take up again. Out: which inputs those are, and, once they were tried,
//! the tables of rejects without the rows that are superseded. Never: an input tried that was not rejected for one of them.

use std::collections::{BTreeMap, HashSet};

use imp_schemas::manifest::{RejectsEntry, ShardEntry};
use imp_schemas::record::column;
use imp_schemas::reject::{Reject, RejectReason};
use imp_schemas::shard::Digest;
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::{Snapshot, Store};

use arrow::array::{Array, AsArray};

use crate::commit::UnitCommit;
use crate::corpus::{Candidate, Found};
use crate::error::IngestError;
use crate::publish;

/// Inputs to take up again, by where they stood and their key.
#[derive(Debug)]
pub(crate) struct Retried {
    classes: Vec<RejectReason>,
    inputs: HashSet<(String, u64, String)>,
    pub(crate) digest: Digest,
}

impl Retried {
    /// The rejects of `snapshot` with one of the reasons `classes`.
    ///
    /// # Errors
    /// A table of rejects cannot be read, or there is nothing to retry.
    pub(crate) fn of(store: &Store, snapshot: &Snapshot, classes: &[RejectReason]) -> Result<Self, IngestError> {
        let manifest = &snapshot.manifest;
        let mut inputs = HashSet::new();
        for entry in &manifest.rejects {
            let rejects = store.rejects(&manifest.corpus, entry)?.into_iter();
            inputs.extend(rejects.filter(|r| classes.contains(&r.reason)).map(|r| (r.source, r.row, r.key)));
        }
        let mut sorted: Vec<_> = inputs.iter().collect();
        sorted.sort();
        let mut hasher = blake3::Hasher::new_derive_key("imp-ingest 2026 retried inputs");
        for (source, row, key) in sorted {
            hasher
                .update(source.as_bytes())
                .update(&[0])
                .update(&row.to_le_bytes())
                .update(key.as_bytes())
                .update(&[0]);
        }
        let digest = Digest(hasher.finalize().to_hex().to_string());
        Ok(Self { classes: classes.to_vec(), inputs, digest })
    }

    pub(crate) fn n_inputs(&self) -> u64 {
        self.inputs.len() as u64
    }

    /// What of a unit is to be tried again.
    pub(crate) fn keep(&self, found: Found) -> Found {
        let candidates = found.candidates.into_iter().filter(|candidate| self.has(candidate)).collect();
        Found { candidates, rejects: Vec::new(), n_ignored: 0, ..found }
    }

    fn has(&self, candidate: &Candidate) -> bool {
        let Candidate { key, source, row, listed_in, .. } = candidate;
        let source = listed_in.as_deref().map_or_else(|| source.clone(), str::to_owned);
        self.inputs.contains(&(source, *row, key.clone()))
    }

    /// The tables `old` without the rows of inputs that were tried, and how many rows of each reason went.
    ///
    /// # Errors
    /// A table or shard cannot be read, or the store failed.
    pub(crate) fn supersede(
        &self,
        store: &Store,
        corpus: &str,
        old: &[RejectsEntry],
        new_shards: &[ShardEntry],
        commits: &[UnitCommit],
    ) -> Result<(Vec<RejectsEntry>, BTreeMap<RejectReason, u64>), IngestError> {
        let mut tried: HashSet<String> = HashSet::new();
        for entry in new_shards {
            let failed = |source| IngestError::ReadShard { corpus: corpus.to_owned(), source };
            for batch in
                ShardReader::open(store, corpus, entry).map_err(failed)?.read_all(&[column::KEY]).map_err(failed)?
            {
                let keys = batch.column_by_name(column::KEY).and_then(|c| c.as_string_opt::<i32>());
                tried.extend(keys.into_iter().flat_map(|c| (0..c.len()).map(|row| c.value(row).to_owned())));
            }
        }
        for entry in commits.iter().filter_map(|commit| commit.rejects.as_ref()) {
            tried.extend(store.rejects(corpus, entry)?.into_iter().map(|reject| reject.key));
        }
        let is_superseded = |r: &Reject| {
            self.classes.contains(&r.reason)
                && tried.contains(&r.key)
                && self.inputs.contains(&(r.source.clone(), r.row, r.key.clone()))
        };
        let (mut kept, mut removed) = (Vec::new(), BTreeMap::new());
        for entry in old {
            let rejects = store.rejects(corpus, entry)?;
            let (gone, left): (Vec<Reject>, Vec<Reject>) = rejects.into_iter().partition(is_superseded);
            for reject in &gone {
                *removed.entry(reject.reason).or_insert(0) += 1;
            }
            kept.extend(if gone.is_empty() {
                Some(entry.clone())
            } else {
                publish::store_rejects(store, corpus, &left)?
            });
        }
        Ok((kept, removed))
    }
}
