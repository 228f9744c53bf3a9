//! `imp-ingest`: turns the corpora of a run file into shards.
//!
//! Exit status: 0 when every corpus is published or unchanged, 1 when the run stopped, 2 for a wrong command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use imp_ingest::{IngestConfig, IngestError, Progress, ProgressMode, Report};
use imp_schemas::run_file::RunFile;
use imp_schemas::store::Store;

/// Turns image-text, video-text and audio-text corpora into Parquet shards in a store.
#[derive(Debug, Parser)]
#[command(name = "imp-ingest", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ingests the corpora of a run file's `[ingest]` table.
    Run(RunArgs),
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The run file (TOML).
    #[arg(long)]
    config: PathBuf,
    /// Where shards go: a folder or s3://bucket/prefix; overrides `store`.
    #[arg(long)]
    store: Option<String>,
    /// The folder that corpus paths are relative to; overrides `ingest.root`.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Only these corpora; the tokenizer is made from all of them either way.
    #[arg(long, num_args = 1.., value_name = "NAME")]
    corpus: Vec<String>,
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    progress: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A bar in a terminal, else plain lines.
    Auto,
    Plain,
    /// A JSON object a line on stdout, the report last.
    Json,
}

fn main() -> ExitCode {
    let Command::Run(args) = Args::parse().command;
    match ingest(&args) {
        Ok(report) if args.progress == Mode::Json => {
            println!("{}", serde_json::json!({ "event": "report", "report": report }));
            ExitCode::SUCCESS
        }
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_chain(&error);
            ExitCode::FAILURE
        }
    }
}

fn ingest(args: &RunArgs) -> Result<Report, IngestError> {
    let file = RunFile::read(&args.config)?;
    let mut config = IngestConfig::of(&file, &args.config)?.only(&args.corpus)?;
    if let Some(root) = &args.root {
        config = config.with_root(root);
    }
    let store = Store::open(args.store.as_deref().unwrap_or(&file.store))?;
    let mode = match args.progress {
        Mode::Auto => ProgressMode::Auto,
        Mode::Plain => ProgressMode::Plain,
        Mode::Json => ProgressMode::Json,
    };
    imp_ingest::run(&config, &store, &mut Progress::new(mode))
}

fn print_chain(error: &IngestError) {
    eprintln!("error: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        eprintln!("  caused by: {error}");
        cause = error.source();
    }
}
