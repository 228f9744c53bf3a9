//! Everything that stops a run of ingest. A bad record is no error: it is a reject, counted and listed.

use std::path::PathBuf;

use imp_schemas::manifest::ManifestError;
use imp_schemas::reject::RejectReason;
use imp_schemas::run_file::RunFileError;
use imp_schemas::shard_reader::ShardReadError;
use imp_schemas::store::StoreError;

/// Why a run stopped without publishing a manifest.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error(transparent)]
    RunFile(#[from] RunFileError),
    #[error("`{key}` is {found}, {rule}")]
    Config { key: String, found: String, rule: String },
    #[error("corpus `{corpus}`: no such corpus path `{path}` (root `{root}`); correct `path` or give --root")]
    NoSuchPath { corpus: String, path: String, root: String },
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "table `{table}` has no column {wanted}; its columns are {found}{hint}; name the right one in `columns` of the corpus"
    )]
    MissingColumn { table: String, wanted: String, found: String, hint: String },
    #[error("table `{table}` cannot be read: {detail}")]
    Table { table: String, detail: String },
    #[error("corpus `{corpus}`: nothing to publish, {detail}")]
    NoRecords { corpus: String, detail: String },
    #[error("corpus `{corpus}`: the split of `{source_name}` is not clear: {detail}")]
    Split { corpus: String, source_name: String, detail: String },
    #[error(
        "corpus `{corpus}` is over its budget of rejects: {n_rejected} of {n_inputs} inputs rejected ({:.2} %), `max_reject_share` allows {:.2} %; most are `{top}` ({n_top})\n{first}{rest}\nall of them: `{listed_in}`; correct the corpus or raise `max_reject_share` of this corpus",
        *n_rejected as f64 * 100.0 / (*n_inputs).max(1) as f64, limit * 100.0
    )]
    OverBudget {
        corpus: String,
        n_rejected: u64,
        n_inputs: u64,
        limit: f64,
        top: RejectReason,
        n_top: u64,
        /// The first three rejects, a line each.
        first: String,
        /// Says that the run did not look at every input, if so.
        rest: String,
        /// Where the table of rejects lies.
        listed_in: String,
    },
    #[error("the record of a finished unit, `{key}`, is not one of this build; remove it to have the unit done again")]
    Commit { key: String, source: serde_json::Error },
    #[error("cannot read a shard of corpus `{corpus}` that is published already")]
    ReadShard { corpus: String, source: ShardReadError },
    #[error("corpus `{corpus}`: nothing to add to, {detail}")]
    NothingToAddTo { corpus: String, detail: String },
    #[error("tokenizer `{name}`: {detail}")]
    Tokenizer { name: String, detail: String },
    #[error("cannot write a shard of corpus `{corpus}`")]
    Shard { corpus: String, source: parquet::errors::ParquetError },
    #[error("cannot lay out the columns of corpus `{corpus}`")]
    Columns { corpus: String, source: arrow::error::ArrowError },
    #[error(
        "corpus `{corpus}`: {n_tries} times in a row another run published a manifest first; run again when it is done"
    )]
    LostRace { corpus: String, n_tries: u32 },
    #[error("cannot make the client of http(s); see `proxy` in `ingest.fetch`, and the certificates of this system")]
    HttpClient { source: reqwest::Error },
    #[error("cannot start a thread")]
    Thread { source: std::io::Error },
    #[error("thread `{name}` stopped before its work was done")]
    ThreadDied { name: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}
