//! `imp-shards`: looks into the shards of a store.
//!
//! In: a store and the names of corpora in it. Out: findings, rows, counts, a page, for people or as JSON. Never: a write to
//! the store, but for `upgrade`, `add-columns` and `drop-columns`, which add a snapshot.
//! Exit status of `check`: 0 nothing found, 1 findings, 2 the check could not run; of the rest 0 or 2.

mod check;
mod columns;
mod diff;
mod finding;
mod page;
mod rows;
mod show;
mod snapshots;
mod stats;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use imp_schemas::manifest::ManifestError;
use imp_schemas::shard_reader::ShardReadError;
use imp_schemas::store::{Store, StoreError};

/// What is written says who wrote it; never a time.
const PROGRAM: &str = concat!("imp-shards ", env!("CARGO_PKG_VERSION"));

#[derive(Parser)]
#[command(name = "imp-shards", version, about = "Checks, shows and counts the shards of a store")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

/// The kinds are what `--json` gives as `kind`; scripts may rely on them and on the exit status.
const CHECK_HELP: &str = "\
Exit status:
  0  nothing found
  1  findings; each is one line: kind, place, what was found, what to do
  2  the check could not run: no such store or corpus, or the store does not answer

Kinds of findings:
  manifest missing_object missing_shard size digest unreadable        objects that are not what their names say
  version footer schema types null                                    what a reader relies on
  row_group pages encoding bloom                                      what a random read costs
  count statistics tombstones rejects media_index                     the manifest against the rows
  side_table                                                          columns that were added later
  key duplicate_key split media media_digest caption tokens label     rows
  decode planning                                                     media that were decoded (--decode)
  old_snapshot orphan                                                 beside the newest snapshot";

const ADD_HELP: &str = "\
A column that was added before is replaced; with --update only where FILE names the record. Types: bool, int32, int64,
float32, float64, utf8, and lists of these; other numbers become the next wider one, in CSV and JSON the type is the one that
fits all rows. The values are side tables, CORPUS/columns/*.parquet: join them with the shards by file name and row number.
Temporary files take about twice the size of FILE, uncompressed.";

#[derive(Subcommand)]
enum Command {
    /// Holds every shard to its manifest: digests, footers, schema, layout, counts, keys, tokens, media
    #[command(after_help = CHECK_HELP)]
    Check {
        /// Folder or s3://bucket/prefix
        #[arg(long)]
        store: String,
        /// Corpora; all of the store without any
        corpora: Vec<String>,
        /// Media to decode per corpus, spread evenly over its rows, or `all`
        #[arg(long, default_value = "16")]
        decode: check::Probe,
        /// Objects that no snapshot names are findings once they are this old; a run under way leaves younger ones
        #[arg(long, default_value_t = 24, value_name = "HOURS")]
        orphan_hours: u64,
        /// One JSON object instead of lines and a table
        #[arg(long)]
        json: bool,
    },
    /// Prints rows of a corpus
    Show {
        #[arg(long)]
        store: String,
        corpus: String,
        /// Only this split
        #[arg(long)]
        split: Option<String>,
        /// Rows to print
        #[arg(long, default_value_t = 10)]
        rows: u64,
    },
    /// Lists the snapshots of a corpus: what each holds, and what it shares with the one before
    Snapshots {
        #[arg(long)]
        store: String,
        corpus: String,
        #[arg(long)]
        json: bool,
    },
    /// What changed between two snapshots: records by key, splits, classes, rejects, shards, config
    Diff {
        /// Where `--from` lies
        #[arg(long)]
        store: String,
        corpus: String,
        /// The snapshot before `--to` without it; with `--other-store`, the newest
        #[arg(long)]
        from: Option<u64>,
        /// The newest without it
        #[arg(long)]
        to: Option<u64>,
        /// Where `--to` lies, if elsewhere
        #[arg(long)]
        other_store: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Writes a corpus of an older schema version anew in the current one, as a new snapshot; older snapshots stay readable
    Upgrade {
        #[arg(long)]
        store: String,
        corpus: String,
        /// Say what would be written, write nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Adds columns to a published corpus from a table of values by record key, as a new snapshot; no shard is written anew
    #[command(after_help = ADD_HELP)]
    AddColumns {
        #[arg(long)]
        store: String,
        corpus: String,
        /// A table of values by record key: .parquet, .csv, .tsv or .jsonl
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// The column of FILE with the records' keys
        #[arg(long, default_value = "key")]
        key: String,
        /// Columns of FILE to add; all but the key without it
        #[arg(long, value_delimiter = ',')]
        columns: Vec<String>,
        /// Records that FILE does not name keep the values they have; null without it
        #[arg(long)]
        update: bool,
    },
    /// Publishes a snapshot without some of the columns that were added
    DropColumns {
        #[arg(long)]
        store: String,
        corpus: String,
        /// Such as a,b
        #[arg(required = true, value_delimiter = ',')]
        columns: Vec<String>,
    },
    /// Writes one HTML page that opens without a network: media, captions, charts, rejects
    Page {
        #[arg(long)]
        store: String,
        corpus: String,
        /// The file to write, `-` for standard output; CORPUS.html without it
        #[arg(long)]
        out: Option<PathBuf>,
        /// Records to show, spread evenly over each split
        #[arg(long, default_value_t = 48)]
        n: u64,
        /// Only this split
        #[arg(long)]
        split: Option<String>,
        /// The newest without it
        #[arg(long)]
        snapshot: Option<u64>,
    },
    /// Counts: records, bytes, splits, classes, ranges, captions, tokens, rejects; of two corpora also side by side
    Stats {
        #[arg(long)]
        store: String,
        /// Corpora, or CORPUS@SNAPSHOT; all of the store without any
        corpora: Vec<String>,
        #[arg(long)]
        json: bool,
    },
}

/// Why the program could not do its work; what is wrong with shards is a finding instead.
#[derive(Debug, thiserror::Error)]
enum ShardsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Read(#[from] ShardReadError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("store `{url}` holds no corpus; give the folder that imp-ingest wrote to")]
    NoCorpora { url: String },
    #[error("corpus `{corpus}` is not in store `{url}`; it has {have}")]
    NoSuchCorpus { corpus: String, url: String, have: String },
    #[error("rows of corpus `{corpus}`: column `{column}` has another type than its schema says; run imp-shards check")]
    Column { corpus: String, column: &'static str },
    #[error(
        "corpus `{corpus}` has no snapshot before {snapshot}; give --from, or --other-store to compare with another"
    )]
    NothingBefore { corpus: String, snapshot: u64 },
    #[error("shard `{shard}` cannot be written anew")]
    Rewrite { shard: String, source: parquet::errors::ParquetError },
    #[error("columns of shard `{shard}` cannot be laid out in the current schema")]
    Columns { shard: String, source: arrow::error::ArrowError },
    #[error("shard `{shard}` has no version of its schema in its footer; run imp-shards check")]
    NoVersion { shard: String },
    #[error(
        "snapshot {snapshot} of corpus `{corpus}` was published by another program just now; run the command again"
    )]
    Overtaken { corpus: String, snapshot: u64 },
    #[error(transparent)]
    AddedColumns(#[from] columns::ColumnsError),
    #[error("an added column cannot be shown as text")]
    Format(#[source] arrow::error::ArrowError),
    #[error("cannot write the report as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the page's template fails")]
    Page(#[source] minijinja::Error),
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Check { store, corpora, decode, orphan_hours, json } => {
            let age = Duration::from_secs(orphan_hours.saturating_mul(3600));
            check::run(&store, &corpora, decode, age, json)
        }
        Command::Show { store, corpus, split, rows } => {
            show::run(&store, &corpus, split.as_deref(), rows).map(|()| true)
        }
        Command::Snapshots { store, corpus, json } => snapshots::run(&store, &corpus, json).map(|()| true),
        Command::Diff { store, corpus, from, to, other_store, json } => {
            let args = diff::DiffArgs { corpus: &corpus, from, to, other_store: other_store.as_deref(), json };
            diff::run(&store, &args).map(|()| true)
        }
        Command::Upgrade { store, corpus, dry_run } => upgrade::run(&store, &corpus, dry_run).map(|()| true),
        Command::AddColumns { store, corpus, from, key, columns, update } => {
            let args = columns::AddArgs { corpus: &corpus, from: &from, key: &key, columns: &columns, update };
            columns::add(&store, &args).map(|()| true)
        }
        Command::DropColumns { store, corpus, columns } => columns::drop(&store, &corpus, &columns).map(|()| true),
        Command::Page { store, corpus, out, n, split, snapshot } => {
            let out = out.unwrap_or_else(|| PathBuf::from(format!("{corpus}.html")));
            let args = page::PageArgs { corpus: &corpus, snapshot, split: split.as_deref(), n, out: &out };
            page::run(&store, &args).map(|()| true)
        }
        Command::Stats { store, corpora, json } => stats::run(&store, &corpora, json).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                eprintln!("  caused by: {inner}");
                cause = inner.source();
            }
            ExitCode::from(2)
        }
    }
}

/// The named corpora, or all; a name that is not there stops the program before it reads a shard.
fn select(store: &Store, named: &[String]) -> Result<Vec<String>, ShardsError> {
    let have = store.corpora()?;
    if have.is_empty() {
        return Err(ShardsError::NoCorpora { url: store.url().to_owned() });
    }
    for corpus in named {
        if !have.contains(corpus) {
            let have = have.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ");
            return Err(ShardsError::NoSuchCorpus { corpus: corpus.clone(), url: store.url().to_owned(), have });
        }
    }
    Ok(if named.is_empty() { have } else { named.to_vec() })
}
