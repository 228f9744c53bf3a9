//! The manifest: which shards are a corpus. Written last, so that a reader never sees half of one.
//!
//! Each version is a file of its own, created if absent and never changed: a snapshot. The newest is the one with the
//! highest number. Nothing in it depends on when or where ingest ran, so the same corpus and config give the same bytes.
//! Rows are never taken out of a shard: a tombstone hides one from this snapshot on, and older snapshots still show it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::histogram::Histogram;
use crate::modality::RecordKind;
use crate::reject::RejectReason;
use crate::shard::Digest;
use crate::side_table::AddedType;
use crate::version::{Format, Version, VersionError};

/// One sealed, uploaded shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardEntry {
    pub digest: Digest,
    pub split: String,
    /// Rows in the file, hidden ones included.
    pub n_rows: u64,
    /// Rows that the snapshot's tombstones hide.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub n_deleted: u64,
    /// Size of the file; with `footer_len` it makes opening a shard one exact range.
    pub n_bytes: u64,
    /// Bytes of Parquet metadata at the end, without the 8 bytes of length and magic.
    pub footer_len: u64,
    /// Offset of the first byte of the page indexes; from here to the end is all that planning reads.
    pub index_offset: u64,
    pub n_row_groups: u64,
    /// Sum of the media's sizes.
    pub media_bytes: u64,
    /// Least and greatest value of the planning columns (`width`, `height`, `num_frames`, `duration`, …).
    pub ranges: BTreeMap<String, [f64; 2]>,
}

impl ShardEntry {
    /// Rows that a reader of the snapshot sees.
    pub fn n_live(&self) -> u64 {
        self.n_rows.saturating_sub(self.n_deleted)
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The tokenizer that made the `tokens` columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerEntry {
    pub digest: Digest,
    /// Number of ids; every id is below it. Id 0 is padding.
    pub vocab_size: usize,
}

/// One table of rejects of this snapshot; together they list every input that is not a record, but the hidden ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectsEntry {
    pub digest: Digest,
    pub n_rows: u64,
}

/// The table of hidden rows of this snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TombstonesEntry {
    pub digest: Digest,
    pub n_rows: u64,
}

/// The table of the places of a snapshot's media, see [`crate::media_index`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaIndexEntry {
    pub digest: Digest,
    /// Rows of all shards.
    pub n_rows: u64,
}

/// A table of columns that were added to rows of written shards, see [`crate::side_table`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideTableEntry {
    pub digest: Digest,
    /// As in [`ShardEntry`], the three.
    pub n_bytes: u64,
    pub footer_len: u64,
    pub index_offset: u64,
    pub n_rows: u64,
    /// Those that the snapshot shows; the table may have more, which were dropped or superseded.
    pub columns: Vec<AddedColumn>,
    /// In the order of the table's rows, which are all rows of each; not all need be shards of the snapshot.
    pub shards: Vec<CoveredShard>,
}

/// A column of a side table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AddedColumn {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: AddedType,
}

/// A shard whose rows a side table has, hidden ones included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoveredShard {
    pub digest: Digest,
    pub n_rows: u64,
}

/// One run of ingest that a snapshot stands on: the first wrote the corpus, later ones added to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEntry {
    /// Over what the run's units of work became; a run that is repeated is recognised by it.
    pub digest: Digest,
    pub n_inputs: u64,
    pub n_shards: u64,
}

/// A corpus, as of one snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: Version,
    pub corpus: String,
    pub kind: RecordKind,
    /// Version of the shards' schema.
    pub schema_version: Version,
    pub tokenizer: TokenizerEntry,
    /// Class names; `label_id` and `label_ids` are indices into them. Empty without labels.
    pub classes: Vec<String>,
    /// In row order: a row of a split is counted over its shards as they stand here.
    pub shards: Vec<ShardEntry>,
    #[serde(default, deserialize_with = "one_or_many")]
    pub rejects: Vec<RejectsEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstones: Option<TombstonesEntry>,
    /// Absent if a shard of the snapshot was written before there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_index: Option<MediaIndexEntry>,
    /// Of one column and one shard, one table at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub side_tables: Vec<SideTableEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<RunEntry>,
    /// Records that the corpus offered: `n_records + n_rejected` to the last one.
    pub n_inputs: u64,
    /// Rows of the shards that are not hidden.
    pub n_records: u64,
    /// By reason, hidden rows included; reasons that did not occur are absent.
    pub n_rejected: BTreeMap<RejectReason, u64>,
    /// By rule of cleaning: captions that were taken from records, and records that a dry run would have dropped.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub broken_rules: BTreeMap<String, u64>,
    /// How the values of each planning column are spread, over all rows of the shards.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub histograms: BTreeMap<String, Histogram>,
    /// The part of the ingest config that shaped these bytes.
    pub config: serde_json::Value,
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest `{key}` is not valid JSON of a manifest")]
    Malformed { key: String, source: serde_json::Error },
    #[error("manifest `{key}` cannot be read by this build")]
    Version { key: String, source: VersionError },
    #[error(
        "manifest `{key}`: {n_inputs} inputs, but {n_records} records and {n_rejected} rejects; the ingest that wrote it lost records"
    )]
    CountsDoNotAddUp { key: String, n_inputs: u64, n_records: u64, n_rejected: u64 },
    #[error("manifest `{key}`: its shards hide {in_shards} rows, its table of tombstones has {in_table}")]
    TombstonesDoNotAddUp { key: String, in_shards: u64, in_table: u64 },
    #[error("corpus `{corpus}` has no split `{split}`; it has {have}")]
    NoSuchSplit { corpus: String, split: String, have: String },
}

impl Manifest {
    /// The bytes that are stored. The same manifest always gives the same bytes.
    ///
    /// # Errors
    /// [`ManifestError::Malformed`] if the config value cannot be written as JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        let malformed = |source| ManifestError::Malformed { key: self.corpus.clone(), source };
        let mut bytes = serde_json::to_vec_pretty(self).map_err(malformed)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads and checks what [`Manifest::to_bytes`] wrote; `key` is for messages.
    ///
    /// # Errors
    /// Not JSON, another major version, or counts that do not add up.
    pub fn from_bytes(key: &str, bytes: &[u8]) -> Result<Self, ManifestError> {
        let malformed = |source| ManifestError::Malformed { key: key.to_owned(), source };
        let unreadable = |source| ManifestError::Version { key: key.to_owned(), source };
        // The version is looked at first, so that a future format is named as such and not as a missing field.
        #[derive(Deserialize)]
        struct Head {
            format: Version,
            schema_version: Version,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
        Format::Manifest.check(head.format).map_err(unreadable)?;
        Format::Shard.check(head.schema_version).map_err(unreadable)?;
        let manifest: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        // In numbers that no sum of these overflows: one that wraps might add up.
        let sum_of = |count: fn(&ShardEntry) -> u64| manifest.shards.iter().map(|s| u128::from(count(s))).sum::<u128>();
        let shown = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        let n_rejected: u128 = manifest.n_rejected.values().map(|&n| u128::from(n)).sum();
        let (in_shards, n_records) = (sum_of(ShardEntry::n_live), u128::from(manifest.n_records));
        // Rows are counted over all shards, hidden ones included.
        let is_countable = u64::try_from(sum_of(|shard| shard.n_rows)).is_ok();
        if u128::from(manifest.n_inputs) != n_records + n_rejected || in_shards != n_records || !is_countable {
            return Err(ManifestError::CountsDoNotAddUp {
                key: key.to_owned(),
                n_inputs: manifest.n_inputs,
                n_records: shown(in_shards),
                n_rejected: shown(n_rejected),
            });
        }
        let hidden = sum_of(|shard| shard.n_deleted);
        let in_table = manifest.tombstones.as_ref().map_or(0, |t| t.n_rows);
        if hidden != u128::from(in_table) {
            let in_shards = shown(hidden);
            return Err(ManifestError::TombstonesDoNotAddUp { key: key.to_owned(), in_shards, in_table });
        }
        Ok(manifest)
    }

    /// Names of the splits, in order of first appearance.
    pub fn splits(&self) -> Vec<&str> {
        let mut splits: Vec<&str> = Vec::new();
        for shard in &self.shards {
            if !splits.contains(&shard.split.as_str()) {
                splits.push(&shard.split);
            }
        }
        splits
    }

    /// The shards of a split, in row order.
    ///
    /// # Errors
    /// [`ManifestError::NoSuchSplit`] with the splits that are there.
    pub fn split(&self, split: &str) -> Result<Vec<&ShardEntry>, ManifestError> {
        let shards: Vec<&ShardEntry> = self.shards.iter().filter(|s| s.split == split).collect();
        if shards.is_empty() {
            let have = self.splits().iter().map(|s| format!("`{s}`")).collect::<Vec<_>>().join(", ");
            return Err(ManifestError::NoSuchSplit { corpus: self.corpus.clone(), split: split.to_owned(), have });
        }
        Ok(shards)
    }

    /// Rows of a split that are not hidden; 0 if it has none.
    pub fn n_rows(&self, split: &str) -> u64 {
        self.shards.iter().filter(|s| s.split == split).map(ShardEntry::n_live).sum()
    }
}

/// Version 1.0 had one table of rejects or none, 1.1 has a list.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RejectsEntry>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        Many(Vec<RejectsEntry>),
        One(Option<RejectsEntry>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::Many(many) => many,
        OneOrMany::One(one) => one.into_iter().collect(),
    })
}
