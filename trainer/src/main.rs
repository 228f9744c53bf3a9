//! `imp-train`: trains one encoder from shards, and scores its checkpoints.

mod tables;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use imp_schemas::run_file::RunFile;
use imp_schemas::store::Store;
use imp_trainer::config::{RawTrain, TrainConfig};
use imp_trainer::{data, device, eval};
use miette::{IntoDiagnostic, Result, WrapErr, miette};

/// Trains one IMP encoder by alternating gradient descent, and evaluates it.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train until the config's last step; resumes by itself from the newest checkpoint of the run.
    Fit {
        #[command(flatten)]
        place: Place,
        /// Stop after this many updates instead of `train.steps`; the learning-rate schedule stays the config's.
        #[arg(long)]
        steps: Option<u64>,
    },
    /// Score the newest checkpoint on the config's evaluations; writes `scores.json` into the run.
    Eval {
        #[command(flatten)]
        place: Place,
        /// Also write the scores to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Run the loader against a trainer that takes no time: how fast batches come, what holds them up, what to change.
    Data {
        #[command(flatten)]
        place: Place,
        /// Batches to take after the first.
        #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
        steps: u64,
        /// Milliseconds that the trainer takes for a step.
        #[arg(long, value_name = "MS", default_value_t = 0)]
        step_ms: u64,
        /// Decoding threads, instead of `train.loader.decode_threads`.
        #[arg(long, value_name = "N")]
        decode_threads: Option<usize>,
        /// One JSON object instead of tables.
        #[arg(long)]
        json: bool,
    },
    /// Say which records a step trains on, past or future, and their captions, crops, flips and frames, by the newest snapshots.
    Explain {
        #[command(flatten)]
        place: Place,
        /// Counted from 0.
        #[arg(long, value_name = "N")]
        step: u64,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct Place {
    /// The run file; `imp-train` reads its `[train]` table.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where the shards are, instead of the config's `store`: a folder or s3://bucket/prefix.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Where checkpoints, metrics and scores go, instead of the config's `run`.
    #[arg(long, value_name = "URL")]
    run: Option<String>,
    /// Threads of the matrix products, instead of `train.threads`.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    match command(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            eprintln!("error: {report}");
            for cause in report.chain().skip(1) {
                eprintln!("  caused by: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn command(command: Command) -> Result<()> {
    match command {
        Command::Fit { place, steps } => {
            let (mut config, store, run) = open(&place)?;
            config.steps = steps.unwrap_or(config.steps);
            let fitted = device::fit(&config, &store, &run).into_diagnostic()?;
            if fitted.first_step >= fitted.steps {
                println!("nothing to do: `{}` already has a checkpoint after {} steps", run.url(), fitted.first_step);
                return Ok(());
            }
            if fitted.first_step > 0 {
                println!("resumed after {} steps", fitted.first_step);
            }
            println!(
                "trained {} parameters for {} steps in {:.1} s, {:.1} % of it waiting for data; checkpoints in `{}`",
                fitted.n_parameters,
                fitted.steps - fitted.first_step,
                fitted.seconds,
                100.0 * fitted.wait_seconds / fitted.seconds.max(1e-9),
                run.url(),
            );
            Ok(())
        }
        Command::Eval { place, json } => {
            let (config, store, run) = open(&place)?;
            let scores = device::eval(&config, &store, &run, &mut |score| println!("{}", tables::one_line(score)))
                .into_diagnostic()?;
            println!("{}", tables::of_scores(&scores.scores));
            println!("scores of the checkpoint after {} steps: `{}/{}`", scores.step, run.url(), eval::SCORES_KEY);
            if let Some(path) = json {
                let bytes = serde_json::to_vec_pretty(&scores).into_diagnostic()?;
                std::fs::write(&path, bytes)
                    .into_diagnostic()
                    .wrap_err_with(|| format!("cannot write `{}`", path.display()))?;
            }
            Ok(())
        }
        Command::Data { place, steps, step_ms, decode_threads, json } => {
            let (mut config, store) = open_data(&place)?;
            config.loader.decode_threads = decode_threads.unwrap_or(config.loader.decode_threads);
            let report = data::measure(&config, &store, steps, Duration::from_millis(step_ms)).into_diagnostic()?;
            if json {
                println!("{}", serde_json::to_string(&report).into_diagnostic()?);
            } else {
                print!("{}", tables::of_data(&report));
            }
            Ok(())
        }
        Command::Explain { place, step, json } => {
            let (config, store) = open_data(&place)?;
            let explained = imp_loader::explain(&store, &config.mixture, step).into_diagnostic()?;
            if json {
                println!("{}", serde_json::to_string(&explained).into_diagnostic()?);
            } else {
                print!("{}", tables::of_step(&explained));
            }
            Ok(())
        }
    }
}

fn open(place: &Place) -> Result<(TrainConfig, Store, Store)> {
    let (config, store) = open_data(place)?;
    let file = RunFile::read(&place.config).into_diagnostic()?;
    let run = Store::open(place.run.as_deref().unwrap_or(&file.run)).into_diagnostic()?;
    Ok((config, store, run))
}

/// Without the run's folder, which is made when it is opened.
fn open_data(place: &Place) -> Result<(TrainConfig, Store)> {
    let path: &Path = &place.config;
    let file = RunFile::read(path).into_diagnostic()?;
    let mut raw: RawTrain = file.table(path, "train").into_diagnostic()?;
    raw.threads = place.threads.unwrap_or(raw.threads);
    let config = TrainConfig::try_from(raw).map_err(|e| miette!("config `{}`: {e}", path.display()))?;
    let store = Store::open(place.store.as_deref().unwrap_or(&file.store)).into_diagnostic()?;
    Ok((config, store))
}
