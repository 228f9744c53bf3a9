//! Objects that no snapshot names: shards of runs that died, journals of runs that are done, snapshots beyond those to keep.
//!
//! In: a store and a corpus. Out: what is garbage, removed only when asked. Never: an object younger than the age given: a run
//! that is under way has put it there and will name it.

use std::collections::BTreeSet;
use std::time::Duration;

use imp_schemas::shard::{manifest_key, media_index_key, rejects_key, shard_key, side_table_key, tombstones_key};
use imp_schemas::store::{Listed, Store};

use crate::error::IngestError;

/// What can go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Garbage {
    pub objects: Vec<Listed>,
    pub n_bytes: u64,
    /// Snapshots among them.
    pub n_snapshots: usize,
    pub removed: bool,
}

/// Lists, and with `remove` removes, what no kept snapshot of `corpus` names and is older than `age`. The newest
/// `keep_snapshots` snapshots (all, if `None`) are kept, at least one.
///
/// # Errors
/// The corpus was never ingested, a kept snapshot cannot be read, or the store failed.
pub fn collect_garbage(
    store: &Store,
    corpus: &str,
    keep_snapshots: Option<usize>,
    age: Duration,
    remove: bool,
) -> Result<Garbage, IngestError> {
    store.manifest(corpus)?;
    let versions = store.snapshot_versions(corpus)?;
    let n_keep = keep_snapshots.unwrap_or(versions.len()).max(1);
    let mut named: BTreeSet<String> = BTreeSet::new();
    for &version in versions.iter().rev().take(n_keep) {
        let manifest = store.snapshot(corpus, version)?.manifest;
        named.insert(manifest_key(corpus, version));
        named.extend(manifest.shards.iter().map(|shard| shard_key(corpus, &shard.digest)));
        named.extend(manifest.rejects.iter().map(|table| rejects_key(corpus, &table.digest)));
        named.extend(manifest.media_index.iter().map(|table| media_index_key(corpus, &table.digest)));
        named.extend(manifest.side_tables.iter().map(|table| side_table_key(corpus, &table.digest)));
        named.extend(manifest.tombstones.iter().map(|table| tombstones_key(corpus, &table.digest)));
    }
    let old = store.list_older_than(corpus, age)?;
    let mut objects: Vec<Listed> = old.into_iter().filter(|listed| !named.contains(&listed.key)).collect();
    let manifests = format!("{corpus}/manifests/");
    // Snapshots go first: a reader must never find one whose shards are gone. Journals go before the shards they name.
    let commits = format!("{corpus}/commits/");
    objects.sort_by_key(|o| (!o.key.starts_with(&manifests), !o.key.starts_with(&commits), o.key.clone()));
    if remove {
        for object in &objects {
            store.delete(&object.key)?;
        }
    }
    let n_bytes = objects.iter().map(|object| object.n_bytes).sum();
    let n_snapshots = objects.iter().filter(|object| object.key.starts_with(&manifests)).count();
    Ok(Garbage { objects, n_bytes, n_snapshots, removed: remove })
}

impl std::fmt::Display for Garbage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for object in &self.objects {
            writeln!(f, "{:>14} {}", object.n_bytes, object.key)?;
        }
        let done = if self.removed { "removed" } else { "to remove (nothing is removed without --remove)" };
        let mib = self.n_bytes as f64 / f64::from(1 << 20);
        write!(f, "{} objects, {mib:.1} MiB, {} of them snapshots: {done}", self.objects.len(), self.n_snapshots)
    }
}
