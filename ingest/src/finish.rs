//! All units of a corpus are done → its next snapshot.
//!
//! In: the units' commits in the order of the units, and the snapshot that the run adds to, if it adds. Out: a manifest.
//! Whichever worker comes last does it; two that both do it come to the same bytes.
//! Never: a manifest of half the units, an input that is in no count.

use std::collections::{BTreeMap, BTreeSet};

use imp_schemas::manifest::{
    Manifest, MediaIndexEntry, RejectsEntry, RunEntry, ShardEntry, TokenizerEntry, TombstonesEntry,
};
use imp_schemas::media_index::media_place_batches;
use imp_schemas::reject::RejectReason;
use imp_schemas::shard::{Digest, rejects_key};
use imp_schemas::side_table::that_cover;
use imp_schemas::store::{Snapshot, Store};
use imp_schemas::tombstone::{Hidden, Tombstone};
use imp_schemas::version::Format;

use crate::commit::UnitCommit;
use crate::config::{CorpusConfig, IngestConfig};
use crate::error::IngestError;
use crate::journal::Journal;
use crate::places::PlaceSpool;
use crate::retry::Retried;
use crate::unit::{first_of, over_budget};
use crate::{duplicates, publish};

/// A corpus whose units are all done.
pub(crate) struct Done<'a> {
    pub(crate) config: &'a IngestConfig,
    pub(crate) corpus: &'a CorpusConfig,
    pub(crate) classes: Vec<String>,
    pub(crate) tokenizer: TokenizerEntry,
    pub(crate) journal: Journal,
    /// The snapshot that is added to; `None` if the run says anew what the corpus is.
    pub(crate) base: Option<Snapshot>,
    pub(crate) retried: Option<Retried>,
}

impl Done<'_> {
    fn commits(&self) -> impl Iterator<Item = &UnitCommit> {
        self.journal.commits.iter().flatten()
    }

    /// Files that are neither medium nor caption.
    pub(crate) fn n_ignored(&self) -> u64 {
        self.commits().map(|commit| commit.n_ignored).sum()
    }

    /// The next manifest; what it names is in the store when this returns.
    ///
    /// # Errors
    /// The corpus has no record, is over its budget of rejects, or the store failed.
    pub(crate) fn manifest(self, store: &Store) -> Result<Manifest, IngestError> {
        let run = self.run_entry();
        // A worker that comes late finds its own run in the snapshot that it would add to.
        if let Some(base) = self.base.as_ref().filter(|base| base.manifest.runs.contains(&run)) {
            return Ok(base.manifest.clone());
        }
        let Self { config, corpus, classes, tokenizer, journal, base, retried } = self;
        let Journal { commits, places, mut histograms } = journal;
        let mut commits: Vec<UnitCommit> = commits.into_iter().flatten().collect();
        let base_manifest = base.as_ref().map(|base| &base.manifest);
        let n_new: u64 = commits.iter().map(|commit| commit.n_inputs).sum();
        if n_new == 0 && base.is_none() {
            return Err(no_input(corpus, &commits));
        }
        let mut shards: Vec<ShardEntry> = base_manifest.map_or_else(Vec::new, |m| m.shards.clone());
        let n_old_shards = shards.len();
        shards.extend(commits.iter_mut().flat_map(|commit| std::mem::take(&mut commit.shards)));
        if shards.is_empty() {
            return Err(all_rejected(corpus, store, &commits, n_new)?);
        }
        // The sort is stable: within a split, units stand in their order, and new shards behind old ones.
        let mut rejects: Vec<RejectsEntry> = base_manifest.map_or_else(Vec::new, |m| m.rejects.clone());
        let new_rejects = commits.iter().filter_map(|commit| commit.rejects.clone());
        let mut n_rejected = base_manifest.map_or_else(BTreeMap::new, |m| m.n_rejected.clone());
        let mut n_inputs = base_manifest.map_or(0, |m| m.n_inputs);
        match retried {
            None => {
                n_inputs += n_new;
                rejects.extend(new_rejects);
            }
            Some(retried) => {
                // A retried input was counted before: its old row goes, a record or a new row comes in its place.
                let (kept, removed) =
                    retried.supersede(store, &corpus.name, &rejects, &shards[n_old_shards..], &commits)?;
                for (reason, n) in removed {
                    subtract(&mut n_rejected, reason, n);
                }
                rejects = kept;
                rejects.extend(new_rejects);
            }
        }
        for (&reason, &n) in commits.iter().flat_map(|commit| &commit.n_rejected) {
            *n_rejected.entry(reason).or_insert(0) += n;
        }
        let mut tombstones = match base_manifest {
            Some(manifest) => store.tombstones(manifest)?,
            None => Vec::new(),
        };
        let hidden = Hidden::of(&tombstones);
        let found = duplicates::find(corpus, store, &shards, n_old_shards, &hidden)?;
        for tombstone in &found.tombstones {
            *n_rejected.entry(tombstone.reason).or_insert(0) += 1;
        }
        tombstones.extend(found.tombstones);
        let mut broken_rules = base_manifest.map_or_else(BTreeMap::new, |m| m.broken_rules.clone());
        let of_units = commits.iter().flat_map(|commit| &commit.broken_rules);
        for (rule, n) in of_units.chain(&found.broken_rules) {
            *broken_rules.entry(rule.clone()).or_insert(0) += n;
        }
        let tombstones = hide(store, &corpus.name, &mut shards, tombstones)?;
        let all_rejected: u64 = n_rejected.values().sum();
        if all_rejected as f64 > corpus.max_reject_share * n_inputs as f64 {
            let first =
                rejects.first().map(|entry| store.rejects(&corpus.name, entry)).transpose()?.unwrap_or_default();
            let listed: Vec<String> = rejects.iter().map(|entry| rejects_key(&corpus.name, &entry.digest)).collect();
            return Err(over_budget(corpus, &n_rejected, all_rejected, n_inputs, &first, true, &listed, store));
        }
        for (name, histogram) in base_manifest.iter().flat_map(|manifest| &manifest.histograms) {
            histograms.entry(name.clone()).or_default().merge(histogram);
        }
        let mut runs = base_manifest.map_or_else(Vec::new, |m| m.runs.clone());
        runs.push(run);
        let media_index = index_media(store, corpus, base_manifest, &mut shards, places)?;
        // Of the newest snapshot, whatever the run adds to: columns that were added meanwhile stay.
        let newest = store.newest_snapshot(&corpus.name)?;
        let side_tables = newest.map_or_else(Vec::new, |newest| that_cover(&newest.manifest.side_tables, &shards));
        Ok(Manifest {
            format: Format::Manifest.current(),
            corpus: corpus.name.clone(),
            kind: corpus.kind,
            schema_version: base_manifest
                .map_or(Format::Shard.current(), |m| m.schema_version.min(Format::Shard.current())),
            tokenizer,
            classes,
            n_records: shards.iter().map(ShardEntry::n_live).sum(),
            shards,
            rejects,
            tombstones,
            media_index,
            side_tables,
            runs,
            n_inputs,
            n_rejected,
            broken_rules,
            histograms,
            config: config.recorded(corpus),
        })
    }

    fn run_entry(&self) -> RunEntry {
        let mut hasher = blake3::Hasher::new_derive_key("imp-ingest 2026 run");
        for commit in self.commits() {
            hasher.update(commit.outcome().0.as_bytes());
        }
        RunEntry {
            digest: Digest(hasher.finalize().to_hex().to_string()),
            n_inputs: self.commits().map(|commit| commit.n_inputs).sum(),
            n_shards: self.commits().map(|commit| commit.shards.len() as u64).sum(),
        }
    }
}

/// Puts `shards` into the order of the manifest (`train` first, then the other splits by name; within a split as they stand)
/// and indexes their media in that order. No index if the snapshot that is added to has none.
fn index_media(
    store: &Store,
    corpus: &CorpusConfig,
    base: Option<&Manifest>,
    shards: &mut [ShardEntry],
    mut places: PlaceSpool,
) -> Result<Option<MediaIndexEntry>, IngestError> {
    let rank = |split: &str| (split != crate::plan::DEFAULT_SPLIT, split.to_owned());
    shards.sort_by_cached_key(|entry| rank(&entry.split));
    if let Some(manifest) = base {
        let Some(old) = media_place_batches(store, manifest)? else { return Ok(None) };
        places.begin(&manifest.shards);
        for batch in old {
            places.push(&batch?)?;
        }
    }
    publish::store_media_index(store, &corpus.name, places.index(&corpus.name, shards)?).map(Some)
}

/// Puts the table of tombstones into the store and their numbers into the shards' entries.
pub(crate) fn hide(
    store: &Store,
    corpus: &str,
    shards: &mut [ShardEntry],
    mut tombstones: Vec<Tombstone>,
) -> Result<Option<TombstonesEntry>, IngestError> {
    tombstones.sort();
    tombstones.dedup_by(|a, b| (&a.shard, a.row) == (&b.shard, b.row));
    let hidden = Hidden::of(&tombstones);
    for shard in shards.iter_mut() {
        shard.n_deleted = hidden.rows(&shard.digest).len() as u64;
    }
    publish::store_tombstones(store, corpus, &tombstones)
}

fn subtract(counts: &mut BTreeMap<RejectReason, u64>, reason: RejectReason, n: u64) {
    if let Some(count) = counts.get_mut(&reason) {
        *count = count.saturating_sub(n);
        if *count == 0 {
            counts.remove(&reason);
        }
    }
}

fn no_input(corpus: &CorpusConfig, commits: &[UnitCommit]) -> IngestError {
    let n_ignored: u64 = commits.iter().map(|commit| commit.n_ignored).sum();
    let detail = format!(
        "`{}` is empty: it can be read and holds no record; {n_ignored} of its files are neither medium nor caption",
        corpus.path
    );
    IngestError::NoRecords { corpus: corpus.name.clone(), detail }
}

fn all_rejected(
    corpus: &CorpusConfig,
    store: &Store,
    commits: &[UnitCommit],
    n_inputs: u64,
) -> Result<IngestError, IngestError> {
    let tables: Vec<&RejectsEntry> = commits.iter().filter_map(|commit| commit.rejects.as_ref()).collect();
    let first = tables.first().map(|entry| store.rejects(&corpus.name, entry)).transpose()?.unwrap_or_default();
    let keys: BTreeSet<String> =
        tables.iter().map(|t| format!("`{}/{}`", store.url(), rejects_key(&corpus.name, &t.digest))).collect();
    let keys: Vec<String> = keys.into_iter().collect();
    let n_rejected: u64 = commits.iter().flat_map(|c| c.n_rejected.values()).sum();
    let counts = commits.iter().flat_map(|c| &c.n_rejected).fold(BTreeMap::new(), |mut counts, (&reason, &n)| {
        *counts.entry(reason).or_insert(0) += n;
        counts
    });
    if n_rejected as f64 > corpus.max_reject_share * n_inputs as f64 {
        let keys: Vec<String> = tables.iter().map(|t| rejects_key(&corpus.name, &t.digest)).collect();
        return Ok(over_budget(corpus, &counts, n_rejected, n_inputs, &first, true, &keys, store));
    }
    let detail =
        format!("all of its {n_inputs} inputs are rejected, {}\nall of them: {}", first_of(&first), keys.join(", "));
    Ok(IngestError::NoRecords { corpus: corpus.name.clone(), detail })
}
