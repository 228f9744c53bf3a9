//! `imp-shards`: looks into the shards of a store.
//!
//! In: a store and the names of corpora in it. Out: findings, rows, or counts, for people or as JSON. Never: a write.
//! Exit status of `check`: 0 nothing found, 1 findings, 2 the check could not run.

mod check;
mod finding;
mod page;
mod rows;
mod show;
mod stats;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use imp_schemas::manifest::ManifestError;
use imp_schemas::shard_reader::ShardReadError;
use imp_schemas::store::{Store, StoreError};

#[derive(Parser)]
#[command(name = "imp-shards", version, about = "Checks, shows and counts the shards of a store")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Holds every shard to its manifest: digests, footers, schema, keys, tokens, media; exits 1 on findings
    Check {
        /// Folder or s3://bucket/prefix
        #[arg(long)]
        store: String,
        /// Corpora; all of the store without any
        corpora: Vec<String>,
        /// Media to decode per corpus, spread evenly over its rows, or `all`
        #[arg(long, default_value = "16")]
        decode: check::Probe,
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
    /// Counts: records, bytes, splits, classes, ranges, captions, tokens, rejects
    Stats {
        #[arg(long)]
        store: String,
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
    #[error("cannot write the report as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the page's template fails")]
    Page(#[source] minijinja::Error),
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Check { store, corpora, decode, json } => check::run(&store, &corpora, decode, json),
        Command::Show { store, corpus, split, rows } => {
            show::run(&store, &corpus, split.as_deref(), rows).map(|()| true)
        }
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
