//! Names and footers of shards: where things lie in a store, and what a shard says about itself.
//!
//! ```text
//! <store>/tokenizers/<digest>.json
//! <store>/<corpus>/shards/<digest>.parquet       media and captions
//! <store>/<corpus>/rejects/<digest>.parquet      every record that did not make it, with its reason
//! <store>/<corpus>/tombstones/<digest>.parquet   rows of shards that a snapshot hides, with the reason
//! <store>/<corpus>/indexes/<digest>.parquet      where the medium of every row of a snapshot lies, to the byte
//! <store>/<corpus>/columns/<digest>.parquet      columns that were added to rows of shards, joined by shard and row
//! <store>/<corpus>/commits/<digest>.json         what one unit of work became; ingest's journal, no snapshot names it
//! <store>/<corpus>/manifests/00000001.json       the corpus, as of that snapshot; written last, never changed
//! ```

use serde::{Deserialize, Serialize};

/// Digest of a file's bytes, BLAKE3, 64 hex digits. A shard's name is its digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }

    /// The first 12 hex digits, for messages.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a shard lies, relative to the store's root.
pub fn shard_key(corpus: &str, digest: &Digest) -> String {
    format!("{corpus}/shards/{digest}.parquet")
}

/// Where a rejects table lies, relative to the store's root.
pub fn rejects_key(corpus: &str, digest: &Digest) -> String {
    format!("{corpus}/rejects/{digest}.parquet")
}

/// Where a table of tombstones lies, relative to the store's root.
pub fn tombstones_key(corpus: &str, digest: &Digest) -> String {
    format!("{corpus}/tombstones/{digest}.parquet")
}

/// Where the index of a snapshot's media lies, relative to the store's root.
pub fn media_index_key(corpus: &str, digest: &Digest) -> String {
    format!("{corpus}/indexes/{digest}.parquet")
}

/// Where a side table lies, relative to the store's root.
pub fn side_table_key(corpus: &str, digest: &Digest) -> String {
    format!("{corpus}/columns/{digest}.parquet")
}

/// Where the outcome of a unit of work lies, relative to the store's root; `work` is over what goes into the unit.
pub fn commit_key(corpus: &str, work: &Digest) -> String {
    format!("{corpus}/commits/{work}.json")
}

/// Where the tokenizer of a corpus lies, relative to the store's root.
pub fn tokenizer_key(digest: &Digest) -> String {
    format!("tokenizers/{digest}.json")
}

/// Where snapshot `version` (from 1) of a corpus's manifest lies, relative to the store's root.
pub fn manifest_key(corpus: &str, version: u64) -> String {
    format!("{corpus}/manifests/{version:08}.json")
}

/// Key-value entries of a shard's Parquet footer that are ours.
pub mod footer {
    /// Schema name: [`crate::modality::RecordKind::name`].
    pub const SCHEMA: &str = "imp.schema";
    /// [`crate::version::Format::Shard`], `major.minor`.
    pub const SCHEMA_VERSION: &str = "imp.schema_version";
    pub const CORPUS: &str = "imp.corpus";
    pub const SPLIT: &str = "imp.split";
    /// Program and version that wrote the shard.
    pub const WRITER: &str = "imp.writer";
    pub const N_ROWS: &str = "imp.n_rows";
    /// BLAKE3 over the digests of the media, in row order.
    pub const MEDIA_DIGEST: &str = "imp.media_digest";
    /// Digest of the tokenizer that made the `tokens` column.
    pub const TOKENIZER: &str = "imp.tokenizer";
    /// Features for Hugging Face `datasets`, so that pictures and sounds are shown as such.
    pub const HUGGINGFACE: &str = "huggingface";
}
