//! Changes to a published corpus that need no media: taking records out by key, going back to an earlier snapshot.
//!
//! In: a store and a corpus. Out: its next snapshot. Never: a shard rewritten, a snapshot changed or removed.

use std::collections::HashSet;

use arrow::array::{Array, AsArray};
use imp_schemas::manifest::ShardEntry;
use imp_schemas::record::column;
use imp_schemas::reject::RejectReason;
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::Store;
use imp_schemas::tombstone::Tombstone;

use crate::error::IngestError;
use crate::report::Published;
use crate::{finish, publish};

/// What an edit did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Edited {
    pub corpus: String,
    pub published: Published,
    /// Records of the new snapshot.
    pub n_records: u64,
    /// Records that the edit hid.
    pub n_hidden: u64,
    /// Keys that no record of the corpus has.
    pub not_found: Vec<String>,
}

/// Hides the records with these keys in the next snapshot of `corpus`; earlier snapshots still have them, until
/// [`crate::collect_garbage`] may remove those.
///
/// # Errors
/// The corpus was never ingested, or the store failed.
pub fn withdraw(store: &Store, corpus: &str, keys: &[String], why: &str) -> Result<Edited, IngestError> {
    let snapshot = store.manifest(corpus)?;
    let mut manifest = snapshot.manifest;
    let mut wanted: HashSet<&str> = keys.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    for entry in &manifest.shards {
        let hidden = snapshot.hidden.rows(&entry.digest);
        let failed = |source| IngestError::ReadShard { corpus: corpus.to_owned(), source };
        let reader = ShardReader::open(store, corpus, entry).map_err(failed)?;
        let mut row = 0;
        for batch in reader.read_all(&[column::KEY]).map_err(failed)? {
            let keys = batch.column_by_name(column::KEY).and_then(|c| c.as_string_opt::<i32>());
            for i in 0..keys.map_or(0, Array::len) {
                let key = keys.map_or("", |keys| keys.value(i));
                if hidden.binary_search(&row).is_err() && wanted.remove(key) {
                    let (shard, key, detail) = (entry.digest.clone(), key.to_owned(), why.to_owned());
                    found.push(Tombstone { shard, row, key, reason: RejectReason::Withdrawn, detail });
                }
                row += 1;
            }
        }
    }
    let n_hidden = found.len() as u64;
    let mut tombstones = store.tombstones(&manifest)?;
    tombstones.extend(found);
    manifest.tombstones = finish::hide(store, corpus, &mut manifest.shards, tombstones)?;
    if n_hidden > 0 {
        *manifest.n_rejected.entry(RejectReason::Withdrawn).or_insert(0) += n_hidden;
    }
    manifest.n_records = manifest.shards.iter().map(ShardEntry::n_live).sum();
    let published = publish::publish(store, &manifest)?;
    let mut not_found: Vec<String> = wanted.into_iter().map(str::to_owned).collect();
    not_found.sort();
    Ok(Edited { corpus: corpus.to_owned(), published, n_records: manifest.n_records, n_hidden, not_found })
}

/// Publishes what snapshot `version` of `corpus` was as its next snapshot.
///
/// # Errors
/// There is no such snapshot, or the store failed.
pub fn roll_back(store: &Store, corpus: &str, version: u64) -> Result<Edited, IngestError> {
    let versions = store.snapshot_versions(corpus)?;
    if !versions.contains(&version) {
        let have: Vec<String> = versions.iter().map(u64::to_string).collect();
        let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
        let rule = format!("must be a snapshot of `{corpus}`; it has {have}");
        return Err(IngestError::Config { key: "--to".to_owned(), found: version.to_string(), rule });
    }
    let manifest = store.snapshot(corpus, version)?.manifest;
    let published = publish::publish(store, &manifest)?;
    let n_records = manifest.n_records;
    Ok(Edited { corpus: corpus.to_owned(), published, n_records, n_hidden: 0, not_found: Vec::new() })
}

impl std::fmt::Display for Edited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Published { version, is_new, .. } = self.published;
        let news = if is_new { "published" } else { "unchanged, nothing new written" };
        write!(f, "{}: snapshot {version} {news}, {} records", self.corpus, self.n_records)?;
        if self.n_hidden > 0 {
            write!(f, ", {} hidden", self.n_hidden)?;
        }
        for key in &self.not_found {
            write!(f, "\n  no record has the key `{key}`")?;
        }
        Ok(())
    }
}
