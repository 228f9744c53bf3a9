//! One corpus: its manifest, tokenizer, rejects, and each of its shards.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use arrow::array::AsArray;
use bytes::Bytes;
use imp_schemas::histogram::Histogram;
use imp_schemas::manifest::Manifest;
use imp_schemas::media_index::MediaPlace;
use imp_schemas::parquet_claims::{batches, guarded, open_rows};
use imp_schemas::shard::{Digest, rejects_key, tokenizer_key, tombstones_key};
use imp_schemas::store::{Snapshot, Store, StoreError};
use imp_schemas::tombstone::Hidden;

use super::{Checked, Probe, media_index, numbers, objects, shard, side_tables};
use crate::ShardsError;
use crate::finding::Findings;

/// What is known of a corpus while its shards are read.
pub(crate) struct Corpus<'a> {
    pub store: &'a Store,
    pub name: &'a str,
    pub manifest: &'a Manifest,
    /// First 16 bytes of the BLAKE3 of every key so far: a billion keys in 16 GB, two alike by chance in 10^20.
    pub keys: HashSet<[u8; 16]>,
    /// Rows of the corpus whose media are decoded: each `probe_every`th, none if 0.
    pub probe_every: u64,
    pub n_decoded: u64,
    pub hidden: Hidden,
    /// Of every row of the shards, in their order; `None` if the snapshot has no index of its media.
    pub places: Option<Vec<MediaPlace>>,
    /// Of every row, hidden ones included, as the manifest counts them.
    pub histograms: BTreeMap<String, Histogram>,
}

pub(crate) fn check(
    store: &Store,
    name: &str,
    probe: Probe,
    orphan_age: Duration,
    findings: &mut Findings,
) -> Result<Checked, ShardsError> {
    let snapshot = match store.manifest(name) {
        Ok(snapshot) => snapshot,
        Err(StoreError::Manifest(error)) => {
            findings.push("manifest", format!("{name}/manifests"), chain(&error), "ingest the corpus again");
            return Ok(Checked { corpus: name.to_owned(), ..Checked::default() });
        }
        Err(error) => return Err(error.into()),
    };
    let Snapshot { version, manifest, .. } = &snapshot;
    if manifest.corpus != name {
        let found = format!("the manifest names corpus `{}`", manifest.corpus);
        findings.push("manifest", format!("{name}/manifests"), found, "keep each corpus under its own name");
    }
    check_tokenizer(store, manifest, findings)?;
    check_rejects(store, name, manifest, findings)?;
    let hidden = check_tombstones(store, manifest, findings)?;
    let n_bytes = manifest.shards.iter().map(|s| s.n_bytes).sum();
    let probe_every = match probe {
        Probe::All => 1,
        Probe::Sample(0) => 0,
        Probe::Sample(n) => manifest.n_records.div_ceil(n).max(1),
    };
    let (keys, histograms) = (HashSet::new(), BTreeMap::new());
    let places = check_media_index(store, manifest, findings)?;
    let mut corpus = Corpus { store, name, manifest, keys, probe_every, n_decoded: 0, hidden, places, histograms };
    let bar = super::bar(name, n_bytes);
    let mut first_row = 0;
    for entry in &manifest.shards {
        shard::check(&mut corpus, entry, first_row, &bar, findings)?;
        first_row += entry.n_rows;
    }
    bar.finish_and_clear();
    // What could not be read is found already; half the rows would give half the counts.
    if findings.n() == 0 {
        numbers::check_histograms(name, manifest, &corpus.histograms, findings);
    }
    media_index::check(store, name, &snapshot, findings)?;
    side_tables::check(store, manifest, findings)?;
    objects::check(store, name, *version, orphan_age, findings)?;
    Ok(Checked {
        corpus: name.to_owned(),
        snapshot: *version,
        n_shards: manifest.shards.len(),
        n_records: manifest.n_records,
        n_bytes,
        n_decoded: corpus.n_decoded,
        n_findings: 0,
    })
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// An object whose name is its digest; `None` with a finding if it is missing or another.
fn digested(
    store: &Store,
    key: &str,
    digest: &Digest,
    remedy: &'static str,
    findings: &mut Findings,
) -> Result<Option<Bytes>, ShardsError> {
    let bytes = match store.get(key) {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => {
            findings.push("missing_object", key, "the manifest lists it, the store does not have it", remedy);
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let found = Digest::of(&bytes);
    if found != *digest {
        findings.push("digest", key, format!("its bytes have digest {}…", found.short()), remedy);
        return Ok(None);
    }
    Ok(Some(bytes))
}

fn check_tokenizer(store: &Store, manifest: &Manifest, findings: &mut Findings) -> Result<(), ShardsError> {
    let digest = &manifest.tokenizer.digest;
    let remedy = "copy the tokenizer from where the corpus was ingested, or ingest again";
    digested(store, &tokenizer_key(digest), digest, remedy, findings)?;
    Ok(())
}

/// The tables of rejects and tombstones have a row for every record that is not there, and their reasons add up to the
/// manifest's.
fn check_rejects(store: &Store, name: &str, manifest: &Manifest, findings: &mut Findings) -> Result<(), ShardsError> {
    let remedy = "ingest the corpus again; the shards are not affected";
    let rejects = manifest.rejects.iter().map(|e| (rejects_key(name, &e.digest), &e.digest, e.n_rows));
    let hidden = manifest.tombstones.iter().map(|e| (tombstones_key(name, &e.digest), &e.digest, e.n_rows));
    let mut by_reason: BTreeMap<String, u64> = BTreeMap::new();
    for (key, digest, n_rows) in rejects.chain(hidden) {
        let Some(bytes) = digested(store, &key, digest, remedy, findings)? else { return Ok(()) };
        let counted = match count_reasons(bytes) {
            Ok(counted) => counted,
            Err(error) => {
                findings.push("rejects", key, chain(&error), remedy);
                return Ok(());
            }
        };
        let found: u64 = counted.values().sum();
        if found != n_rows {
            findings.push("rejects", key, format!("it has {found} rows, the manifest says {n_rows}"), remedy);
        }
        for (reason, n) in counted {
            *by_reason.entry(reason).or_insert(0) += n;
        }
    }
    let wanted: BTreeMap<String, u64> =
        manifest.n_rejected.iter().map(|(reason, n)| (reason.name().to_owned(), *n)).collect();
    if by_reason != wanted {
        let found = format!(
            "the reasons in the tables of rejects and tombstones are {by_reason:?}, the manifest says {wanted:?}"
        );
        findings.push("rejects", format!("{name}/manifests"), found, remedy);
    }
    Ok(())
}

/// Every tombstone names a row of a shard of the manifest, once, and each shard has as many as its entry says.
fn check_tombstones(store: &Store, manifest: &Manifest, findings: &mut Findings) -> Result<Hidden, ShardsError> {
    let remedy = "roll back to the snapshot before, and hide the rows again";
    let place = format!("{}/tombstones", manifest.corpus);
    let tombstones = match store.tombstones(manifest) {
        Ok(tombstones) => tombstones,
        Err(StoreError::NotFound { .. }) => return Ok(Hidden::default()),
        Err(error @ StoreError::Table { .. }) => {
            findings.push("tombstones", place, chain(&error), remedy);
            return Ok(Hidden::default());
        }
        Err(error) => return Err(error.into()),
    };
    let n_rows: BTreeMap<&Digest, u64> = manifest.shards.iter().map(|s| (&s.digest, s.n_rows)).collect();
    for tombstone in &tombstones {
        if n_rows.get(&tombstone.shard).is_none_or(|n| tombstone.row >= *n) {
            let found =
                format!("it hides row {} of shard {}…, which is not there", tombstone.row, tombstone.shard.short());
            findings.push("tombstones", place.as_str(), found, remedy);
        }
    }
    let hidden = Hidden::of(&tombstones);
    for shard in &manifest.shards {
        let found = hidden.rows(&shard.digest).len() as u64;
        if found != shard.n_deleted {
            let what = format!(
                "it hides {found} rows of shard {}…, the manifest says {}",
                shard.digest.short(),
                shard.n_deleted
            );
            findings.push("tombstones", place.as_str(), what, remedy);
        }
    }
    Ok(hidden)
}

/// The index of media, if it is as long as the shards have rows; its places are held to the rows one by one.
fn check_media_index(
    store: &Store,
    manifest: &Manifest,
    findings: &mut Findings,
) -> Result<Option<Vec<MediaPlace>>, ShardsError> {
    match store.media_places(manifest) {
        Ok(places) => Ok(places),
        Err(error @ (StoreError::NotFound { .. } | StoreError::Table { .. })) => {
            let remedy = "ingest the corpus again; the shards are not affected";
            findings.push("media_index", format!("{}/indexes", manifest.corpus), chain(&error), remedy);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn count_reasons(bytes: Bytes) -> Result<BTreeMap<String, u64>, parquet::errors::ParquetError> {
    let mut by_reason = BTreeMap::new();
    for batch in batches(guarded(|| open_rows(bytes)?.build())?) {
        let batch = batch?;
        let reasons = batch.column_by_name("reason").and_then(|c| c.as_string_opt::<i32>());
        for reason in reasons.into_iter().flatten() {
            *by_reason.entry(reason.unwrap_or("null").to_owned()).or_insert(0) += 1;
        }
    }
    Ok(by_reason)
}
