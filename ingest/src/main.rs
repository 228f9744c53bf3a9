//! `imp-ingest`: turns the corpora of a run file into shards.
//!
//! Exit status: 0 when what was asked for is done (for one of many workers: its units), 1 when the run stopped, 2 for a wrong
//! command line.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use imp_ingest::{
    IngestConfig, IngestError, Mode, Progress, ProgressMode, Rank, RunOptions, collect_garbage, estimate, roll_back,
    run_as, withdraw,
};
use imp_schemas::reject::RejectReason;
use imp_schemas::run_file::RunFile;
use imp_schemas::store::Store;

/// Turns image-text, video-text and audio-text corpora into Parquet shards in a store.
#[derive(Debug, Parser)]
#[command(name = "imp-ingest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says what a run would read, write, need and take, without writing anything.
    Plan(Source),
    /// Ingests the corpora of a run file's `[ingest]` table; goes on where a run of the same was killed.
    Run(RunArgs),
    /// Takes up again the inputs that the newest snapshot rejected for the reasons given, and supersedes their rejects.
    Retry(RetryArgs),
    /// Hides records by key in the next snapshot.
    Withdraw(WithdrawArgs),
    /// Publishes an earlier snapshot again as the next one.
    Rollback(RollbackArgs),
    /// Lists, then with --remove removes, what no snapshot names.
    Gc(GcArgs),
}

#[derive(Debug, Args)]
struct Source {
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
    #[arg(long, value_enum, default_value_t = Show::Auto)]
    progress: Show,
}

#[derive(Debug, Args)]
struct Workers {
    /// Which worker this is, from 0; also from JOB_COMPLETION_INDEX, SLURM_ARRAY_TASK_ID, SLURM_PROCID, OMPI_COMM_WORLD_RANK, PMI_RANK.
    #[arg(long)]
    rank: Option<usize>,
    /// How many workers there are; also from JOB_COMPLETIONS, SLURM_ARRAY_TASK_COUNT, SLURM_NTASKS, OMPI_COMM_WORLD_SIZE, PMI_SIZE.
    #[arg(long)]
    of: Option<usize>,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    workers: Workers,
    /// Adds to the newest snapshot instead of replacing it; a key that is there already is a duplicate.
    #[arg(long)]
    append: bool,
}

#[derive(Debug, Args)]
struct RetryArgs {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    workers: Workers,
    /// Reasons of the ledger, such as dns,timeout.
    #[arg(long, required = true, value_delimiter = ',', value_parser = reason)]
    class: Vec<RejectReason>,
}

#[derive(Debug, Args)]
struct WithdrawArgs {
    #[arg(long)]
    store: String,
    #[arg(long)]
    corpus: String,
    /// Keys of the records.
    #[arg(long, num_args = 1.., required_unless_present = "keys_file")]
    key: Vec<String>,
    /// A file of keys, one a line.
    #[arg(long)]
    keys_file: Option<PathBuf>,
    /// Why, for the table of tombstones.
    #[arg(long)]
    why: String,
}

#[derive(Debug, Args)]
struct RollbackArgs {
    #[arg(long)]
    store: String,
    #[arg(long)]
    corpus: String,
    /// The snapshot to go back to.
    #[arg(long)]
    to: u64,
}

#[derive(Debug, Args)]
struct GcArgs {
    #[arg(long)]
    store: String,
    #[arg(long)]
    corpus: String,
    /// Snapshots to keep, counted from the newest; all of them if absent.
    #[arg(long)]
    keep: Option<usize>,
    /// Leaves alone what is younger: a run that is under way will still name it.
    #[arg(long, default_value_t = 24.0)]
    older_than_hours: f64,
    /// Removes what is listed.
    #[arg(long)]
    remove: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Show {
    /// A bar in a terminal, else JSON lines on stdout.
    Auto,
    /// Lines on stderr.
    Plain,
    /// A JSON object a line on stdout, the report last.
    Json,
}

fn main() -> ExitCode {
    imp_schemas::heap::settle();
    let done = match Cli::parse().command {
        Command::Plan(args) => plan(&args),
        Command::Run(args) => {
            let mode = if args.append { Mode::Append } else { Mode::Replace };
            ingest(&args.source, &args.workers, mode)
        }
        Command::Retry(args) => ingest(&args.source, &args.workers, Mode::Retry(args.class)),
        Command::Withdraw(args) => withdraw_keys(&args),
        Command::Rollback(args) => roll_back_to(&args),
        Command::Gc(args) => gc(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_chain(&error);
            ExitCode::FAILURE
        }
    }
}

/// The config, and the address of its store.
fn config_of(args: &Source) -> Result<(IngestConfig, String), IngestError> {
    let file = RunFile::read(&args.config)?;
    let mut config = IngestConfig::of(&file, &args.config)?.only(&args.corpus)?;
    if let Some(root) = &args.root {
        config = config.with_root(root);
    }
    let store = args.store.clone().unwrap_or(file.store);
    Ok((config, store))
}

fn progress(show: Show) -> Progress {
    Progress::new(match show {
        Show::Auto => ProgressMode::Auto,
        Show::Plain => ProgressMode::Plain,
        Show::Json => ProgressMode::Json,
    })
}

/// Whether programs read what is printed: asked for, or no terminal is there.
fn is_json(show: Show) -> bool {
    show == Show::Json || (show == Show::Auto && !std::io::stderr().is_terminal())
}

fn plan(args: &Source) -> Result<(), IngestError> {
    let (config, _) = config_of(args)?;
    let estimated = estimate(&config, &mut progress(args.progress))?;
    if is_json(args.progress) {
        println!("{}", serde_json::json!({ "event": "plan", "plan": estimated }));
    } else {
        println!("{estimated}");
    }
    Ok(())
}

fn ingest(args: &Source, workers: &Workers, mode: Mode) -> Result<(), IngestError> {
    let (config, store) = config_of(args)?;
    let store = Store::open(&store)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "clusters say by variables which worker this is; this is the one place that reads them"
    )]
    let variable = |name: &str| std::env::var(name).ok();
    let rank = Rank::detect(workers.rank, workers.of, &variable)?;
    let report = run_as(&config, &store, &RunOptions { mode, rank }, &mut progress(args.progress))?;
    if is_json(args.progress) {
        println!("{}", serde_json::json!({ "event": "report", "report": report }));
    } else {
        println!("{report}");
    }
    Ok(())
}

fn withdraw_keys(args: &WithdrawArgs) -> Result<(), IngestError> {
    let mut keys = args.key.clone();
    if let Some(path) = &args.keys_file {
        let unreadable = |source| IngestError::Read { path: path.clone(), source };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        keys.extend(text.lines().filter(|line| !line.is_empty()).map(str::to_owned));
    }
    let edited = withdraw(&Store::open(&args.store)?, &args.corpus, &keys, &args.why)?;
    println!("{edited}");
    Ok(())
}

fn roll_back_to(args: &RollbackArgs) -> Result<(), IngestError> {
    println!("{}", roll_back(&Store::open(&args.store)?, &args.corpus, args.to)?);
    Ok(())
}

fn gc(args: &GcArgs) -> Result<(), IngestError> {
    let age = Duration::try_from_secs_f64(args.older_than_hours * 3600.0).map_err(|_| IngestError::Config {
        key: "--older-than-hours".to_owned(),
        found: args.older_than_hours.to_string(),
        rule: "must be a number of hours, 0 or more".to_owned(),
    })?;
    let store = Store::open(&args.store)?;
    println!("{}", collect_garbage(&store, &args.corpus, args.keep, age, args.remove)?);
    Ok(())
}

fn reason(name: &str) -> Result<RejectReason, String> {
    RejectReason::of_name(name).ok_or_else(|| {
        let names: Vec<&str> = RejectReason::ALL.iter().map(|reason| reason.name()).collect();
        format!("no reason of the ledger; they are {}", names.join(", "))
    })
}

fn print_chain(error: &IngestError) {
    eprintln!("error: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        eprintln!("  caused by: {error}");
        cause = error.source();
    }
}
