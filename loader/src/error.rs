//! Everything that can stop the loader: the place, what was found, what was wanted.

use imp_schemas::manifest::ManifestError;
use imp_schemas::media::MediaError;
use imp_schemas::shard_reader::ShardReadError;
use imp_schemas::store::StoreError;

/// Why there is no next batch.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("`train.loader.{key}` is {found}, must be {rule}")]
    Setting { key: &'static str, found: String, rule: &'static str },
    #[error("{place}: `{key}` is {found}, must be {wanted}")]
    Config { place: String, key: &'static str, found: String, wanted: String },
    #[error(
        "corpora `{first}` and `{second}` were ingested with different tokenizers ({first_digest} and {second_digest}); ingest them in one run"
    )]
    Tokenizers { first: String, second: String, first_digest: String, second_digest: String },
    #[error("the checkpoint's {what} is {found}, this run has {wanted}; {remedy}")]
    OtherRun { what: String, found: String, wanted: String, remedy: &'static str },
    #[error("rank {rank} of {of}: ranks count from 0, must be below their number")]
    Rank { rank: usize, of: usize },
    #[error("cannot read examples of corpus `{corpus}`")]
    Shard { corpus: String, source: ShardReadError },
    #[error("shard `{shard}`, row group {row_group}: column `{column}` is not what a shard of this version holds")]
    Column { shard: String, row_group: usize, column: &'static str },
    #[error(
        "corpus `{corpus}`, shard `{shard}`, row {row}: {reason}; {n_substituted} records of the corpus did not decode, `train.loader.max_substituted` allows {limit}"
    )]
    TooManySubstituted { corpus: String, shard: String, row: u64, reason: ContentFault, n_substituted: u64, limit: u64 },
    #[error("corpus `{corpus}`, shard `{shard}`, row {row}: {reason}; evaluation leaves no record out")]
    Undecodable { corpus: String, shard: String, row: u64, reason: ContentFault },
    #[error("task `{task}`: none of its {n_rows} records can be used; the last one: {reason}")]
    NothingDecodes { task: String, n_rows: u64, reason: ContentFault },
    #[error("corpus `{corpus}`, shard `{shard}`, row {row}: the decoder panicked: {detail}")]
    Panicked { corpus: String, shard: String, row: u64, detail: String },
    #[error("cannot start thread `{name}`")]
    Thread { name: String, source: std::io::Error },
    #[error("the loader stopped after an earlier error")]
    Stopped,
}

/// Why a record's content cannot become an example. A fault of the store is never one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ContentFault {
    #[error(transparent)]
    Media(#[from] MediaError),
    #[error("the record has no media bytes")]
    NoMedium,
    #[error("the record has no caption")]
    NoCaption,
    #[error("the record has no sound track")]
    NoSound,
    #[error("the record has no label")]
    NoLabel,
    #[error("the record has {what} {found}")]
    Impossible { what: &'static str, found: String },
}
