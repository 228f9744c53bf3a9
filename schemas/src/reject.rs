//! Why a record did not enter a shard: a closed list, and the table that holds every case.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

/// Why a record was dropped. Ingest counts by it, `imp-ingest` budgets by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// The table or tar names a file that is not there.
    MissingFile,
    /// The store or disk refused the read.
    Unreadable,
    /// Zero bytes.
    EmptyFile,
    /// A tar member or path that leaves its corpus (`../`, absolute, a link).
    UnsafePath,
    /// The bytes are no medium that this build knows (an HTML page saved as .jpg).
    UnknownFormat,
    /// A known container with a codec that this build does not decode.
    UnsupportedCodec,
    /// The bytes end before the medium does.
    Truncated,
    /// The bytes do not decode.
    Corrupt,
    /// Larger than the config's limits (pixels, frames, samples, bytes).
    TooLarge,
    /// Smaller than the config's limits.
    TooSmall,
    /// A medium without any caption or label, or with a blank one.
    EmptyCaption,
    /// A caption file without its medium.
    MissingMedium,
    /// A table row that does not parse: wrong number of fields, broken JSON, open quote.
    MalformedRow,
    /// Text that is not UTF-8.
    InvalidText,
    /// The key stood in this corpus before.
    DuplicateKey,
    /// A class index or name outside the corpus's class list.
    UnknownClass,
    /// The host's name does not resolve.
    Dns,
    /// The host refuses the connection, or its certificate is not valid.
    Connect,
    /// The host did not answer, or not to the end, in the time allowed.
    Timeout,
    /// The host answered with a status that is no success: 404, 410, 403, 500, …
    HttpStatus,
    /// The host says that this medium is not for training, or not for robots.
    Disallowed,
    /// The bytes of an earlier record of the corpus.
    DuplicateMedia,
    /// A picture or caption that is nearly one of the corpus, of an earlier run, or of an evaluation set.
    NearDuplicate,
    /// Wider or taller than the rule of the corpus allows.
    AspectRatio,
    /// No caption of the record passes the rules of the corpus.
    CaptionRule,
    /// Taken out of a published corpus by its owner, by key.
    Withdrawn,
}

impl RejectReason {
    /// Every reason, in the order reports list them.
    pub const ALL: [Self; 26] = [
        Self::MissingFile,
        Self::Unreadable,
        Self::EmptyFile,
        Self::UnsafePath,
        Self::UnknownFormat,
        Self::UnsupportedCodec,
        Self::Truncated,
        Self::Corrupt,
        Self::TooLarge,
        Self::TooSmall,
        Self::EmptyCaption,
        Self::MissingMedium,
        Self::MalformedRow,
        Self::InvalidText,
        Self::DuplicateKey,
        Self::UnknownClass,
        Self::Dns,
        Self::Connect,
        Self::Timeout,
        Self::HttpStatus,
        Self::Disallowed,
        Self::DuplicateMedia,
        Self::NearDuplicate,
        Self::AspectRatio,
        Self::CaptionRule,
        Self::Withdrawn,
    ];

    /// The reason of this [`RejectReason::name`].
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// The name in manifests, rejects tables and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::MissingFile => "missing_file",
            Self::Unreadable => "unreadable",
            Self::EmptyFile => "empty_file",
            Self::UnsafePath => "unsafe_path",
            Self::UnknownFormat => "unknown_format",
            Self::UnsupportedCodec => "unsupported_codec",
            Self::Truncated => "truncated",
            Self::Corrupt => "corrupt",
            Self::TooLarge => "too_large",
            Self::TooSmall => "too_small",
            Self::EmptyCaption => "empty_caption",
            Self::MissingMedium => "missing_medium",
            Self::MalformedRow => "malformed_row",
            Self::InvalidText => "invalid_text",
            Self::DuplicateKey => "duplicate_key",
            Self::UnknownClass => "unknown_class",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::HttpStatus => "http_status",
            Self::Disallowed => "disallowed",
            Self::DuplicateMedia => "duplicate_media",
            Self::NearDuplicate => "near_duplicate",
            Self::AspectRatio => "aspect_ratio",
            Self::CaptionRule => "caption_rule",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl std::fmt::Display for RejectReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One dropped record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// The file that the record stood in or was named by: a table, a tar, a medium.
    pub source: String,
    /// 1-based line of a table, or 0-based member of a tar or folder.
    pub row: u64,
    /// The record's key, as far as it was known.
    pub key: String,
    pub reason: RejectReason,
    /// What was found and what was wanted.
    pub detail: String,
    /// At most 32 first bytes of the medium.
    pub first_bytes: Vec<u8>,
}

/// The rows of a batch of [`reject_schema`]; `None` if it is none, or names a reason that this build does not know.
pub fn rejects_of(batch: &RecordBatch) -> Option<Vec<Reject>> {
    let text = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>().filter(|c| c.null_count() == 0);
    let (sources, keys, reasons, details) = (text("source")?, text("key")?, text("reason")?, text("detail")?);
    let rows = batch.column_by_name("row")?.as_primitive_opt::<Int64Type>().filter(|c| c.null_count() == 0)?;
    let first_bytes = batch.column_by_name("first_bytes")?.as_binary_opt::<i32>()?;
    (0..batch.num_rows())
        .map(|i| {
            Some(Reject {
                source: sources.value(i).to_owned(),
                row: u64::try_from(rows.value(i)).ok()?,
                key: keys.value(i).to_owned(),
                reason: RejectReason::of_name(reasons.value(i))?,
                detail: details.value(i).to_owned(),
                first_bytes: first_bytes.value(i).to_owned(),
            })
        })
        .collect()
}

/// Columns of the rejects table that lies beside the shards.
pub fn reject_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("source", DataType::Utf8, false),
        Field::new("row", DataType::Int64, false),
        Field::new("key", DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("detail", DataType::Utf8, false),
        Field::new("first_bytes", DataType::Binary, false),
    ]))
}
