//! `imp-ops`: everything around the code, from the demo to the checks of the tree.
//!
//! Every subcommand that runs another program prints its command first, exactly, so that a person can repeat it.

mod check;
mod demo;
mod error;
mod experiment;
mod place;
mod report;
mod run;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use testkit::world::{self, Scale};

use crate::error::OpsError;
use crate::place::Place;

/// The demo, runs from a config, and checks of this repository.
#[derive(Debug, Parser)]
#[command(name = "imp-ops", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make up three small corpora, then everything that `run` does, on them. At most six minutes on two cores.
    Demo(DemoArgs),
    /// Ingest, check the shards, train, evaluate, report: all that a run file describes.
    Run(RunArgs),
    /// Run the arms of a hypothesis at equal compute over several seeds; a table and a plot beside its file.
    Experiment(experiment::ExperimentArgs),
    /// Write the HTML report of a run that stands.
    Report(ReportArgs),
    /// Write the made-up corpora to a folder.
    Synth {
        /// The folder; made if absent.
        dir: PathBuf,
        #[arg(long, value_enum, default_value_t = Size::Demo)]
        scale: Size,
        #[arg(long, default_value_t = demo::SEED)]
        seed: u64,
    },
    /// Check the tree: headers, dependency arrows, lengths, leftovers.
    Tidy,
    /// Formatting, lints, documentation, the CUDA type-check, and `tidy`.
    Check,
}

#[derive(Debug, clap::Args)]
struct DemoArgs {
    /// Where the shards go: a folder or s3://bucket/prefix.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Also write the scores to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where corpora, shards, checkpoints and the report go.
    #[arg(long, value_name = "DIR", default_value = demo::DEFAULT_OUT)]
    out: PathBuf,
    /// How much of the world is made.
    #[arg(long, value_enum, default_value_t = Size::Demo)]
    scale: Size,
    /// Stop training after this many updates.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Go on from the newest checkpoint instead of starting afresh.
    #[arg(long)]
    resume: bool,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The run file (TOML); ops/configs has examples.
    config: PathBuf,
    /// Where the shards go, instead of the config's `store`.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Where checkpoints, metrics and scores go, instead of the config's `run`.
    #[arg(long, value_name = "URL")]
    run: Option<String>,
    /// The folder that corpus paths are relative to, instead of the config's `ingest.root`.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Threads of the matrix products, instead of `train.threads`.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Stop training after this many updates.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Also write the scores to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the report goes; absent: beside a local run, else `report.html`.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct ReportArgs {
    /// The run file (TOML).
    config: PathBuf,
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    #[arg(long, value_name = "URL")]
    run: Option<String>,
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    report: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Size {
    /// For a look at the files: written in a second, too little to learn from.
    Tiny,
    /// What the demo trains on.
    Demo,
}

impl Size {
    fn scale(self) -> Scale {
        match self {
            Self::Tiny => Scale::tiny(),
            Self::Demo => Scale::demo(),
        }
    }
}

fn main() -> ExitCode {
    match command(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(source) = cause {
                eprintln!("  caused by: {source}");
                cause = source.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn command(command: Command) -> Result<(), OpsError> {
    match command {
        Command::Demo(args) => demo::demo(&args),
        Command::Run(args) => {
            let place = Place { config: args.config, store: args.store, run: args.run, root: args.root };
            let options = run::Options { threads: args.threads, steps: args.steps, report: args.report };
            let outcome = run::run(&place, &options)?;
            run::summarise(&outcome);
            args.json.map_or(Ok(()), |path| run::write_json(&outcome, &path))
        }
        Command::Experiment(args) => experiment::run(&args),
        Command::Report(args) => {
            let place = Place { config: args.config, store: args.store, run: args.run, root: None };
            report::write(&place, &[], &args.report)?;
            println!("report: {}", args.report.display());
            Ok(())
        }
        Command::Synth { dir, scale, seed } => {
            let report = world::write(&dir, &scale.scale(), seed).map_err(|source| OpsError::World { source })?;
            demo::describe(&report, &dir);
            Ok(())
        }
        Command::Tidy => tidy::tidy(),
        Command::Check => check::check(),
    }
}
