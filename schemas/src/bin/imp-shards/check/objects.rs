//! What lies in the store beside the newest snapshot: older snapshots, and objects that none names.
//!
//! In: one listing and every manifest. Out: findings. Never: the bytes of a shard.

use std::collections::BTreeMap;
use std::time::Duration;

use imp_schemas::manifest::Manifest;
use imp_schemas::shard::{media_index_key, rejects_key, shard_key, side_table_key, tombstones_key};
use imp_schemas::store::{Store, StoreError};

use super::corpus::chain;
use crate::ShardsError;
use crate::finding::Findings;

/// Folders whose objects only a manifest makes part of a corpus.
const NAMED: [&str; 5] = ["shards", "rejects", "tombstones", "indexes", "columns"];

pub(super) fn check(
    store: &Store,
    corpus: &str,
    newest: u64,
    orphan_age: Duration,
    findings: &mut Findings,
) -> Result<(), ShardsError> {
    let sizes: BTreeMap<String, u64> = store.list(corpus)?.into_iter().map(|l| (l.key, l.n_bytes)).collect();
    let mut named: BTreeMap<String, Option<u64>> = BTreeMap::new();
    let mut all_read = true;
    for version in store.snapshot_versions(corpus)? {
        let manifest = match store.snapshot(corpus, version) {
            Ok(snapshot) => snapshot.manifest,
            Err(StoreError::Manifest(error)) => {
                all_read = false;
                let remedy = "roll back to a snapshot that reads, or remove this one with imp-ingest gc";
                findings.push("manifest", format!("{corpus}/manifests, snapshot {version}"), chain(&error), remedy);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let objects = objects(corpus, &manifest);
        // What the newest names is looked at byte by byte elsewhere.
        for (key, wanted) in objects.iter().filter(|_| version != newest) {
            let found = match (sizes.get(key), wanted) {
                (None, _) => format!("snapshot {version} names it, the store does not have it"),
                (Some(size), Some(wanted)) if size != wanted => {
                    format!("it has {size} bytes, snapshot {version} says {wanted}")
                }
                (Some(_), _) => continue,
            };
            let remedy = "copy it from where the corpus was ingested, or let the snapshot go with imp-ingest gc";
            findings.push("old_snapshot", key.as_str(), found, remedy);
        }
        named.extend(objects);
    }
    // Without every manifest nothing can be called an orphan.
    if all_read {
        orphans(store, corpus, &named, orphan_age, findings)?;
    }
    Ok(())
}

/// Every object that the manifest names, with its size where the manifest knows it.
fn objects(corpus: &str, manifest: &Manifest) -> BTreeMap<String, Option<u64>> {
    let shards = manifest.shards.iter().map(|s| (shard_key(corpus, &s.digest), Some(s.n_bytes)));
    let rejects = manifest.rejects.iter().map(|t| (rejects_key(corpus, &t.digest), None));
    let tombstones = manifest.tombstones.iter().map(|t| (tombstones_key(corpus, &t.digest), None));
    let index = manifest.media_index.iter().map(|t| (media_index_key(corpus, &t.digest), None));
    let added = manifest.side_tables.iter().map(|t| (side_table_key(corpus, &t.digest), Some(t.n_bytes)));
    shards.chain(rejects).chain(tombstones).chain(index).chain(added).collect()
}

fn orphans(
    store: &Store,
    corpus: &str,
    named: &BTreeMap<String, Option<u64>>,
    age: Duration,
    findings: &mut Findings,
) -> Result<(), ShardsError> {
    for listed in store.list_older_than(corpus, age)? {
        let folder = listed.key.split('/').nth(1).unwrap_or_default();
        if NAMED.contains(&folder) && !named.contains_key(&listed.key) {
            let found = format!("no snapshot names it, {} bytes", listed.n_bytes);
            let remedy = "a run that died left it, or an append that is still under way; imp-ingest gc removes it";
            findings.push("orphan", listed.key, found, remedy);
        }
    }
    Ok(())
}
