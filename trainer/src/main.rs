//! `imp-train`: trains one encoder from shards, and scores its checkpoints.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};
use imp_schemas::run_file::RunFile;
use imp_schemas::store::Store;
use imp_trainer::config::{RawTrain, TrainConfig};
use imp_trainer::device;
use imp_trainer::eval::{self, Measure, Score};
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
            let scores =
                device::eval(&config, &store, &run, &mut |score| println!("{}", one_line(score))).into_diagnostic()?;
            println!("{}", table(&scores.scores));
            println!("scores of the checkpoint after {} steps: `{}/{}`", scores.step, run.url(), eval::SCORES_KEY);
            if let Some(path) = json {
                let bytes = serde_json::to_vec_pretty(&scores).into_diagnostic()?;
                std::fs::write(&path, bytes)
                    .into_diagnostic()
                    .wrap_err_with(|| format!("cannot write `{}`", path.display()))?;
            }
            Ok(())
        }
    }
}

fn open(place: &Place) -> Result<(TrainConfig, Store, Store)> {
    let path: &Path = &place.config;
    let file = RunFile::read(path).into_diagnostic()?;
    let mut raw: RawTrain = file.table(path, "train").into_diagnostic()?;
    raw.threads = place.threads.unwrap_or(raw.threads);
    let config = TrainConfig::try_from(raw).map_err(|e| miette!("config `{}`: {e}", path.display()))?;
    let store = Store::open(place.store.as_deref().unwrap_or(&file.store)).into_diagnostic()?;
    let run = Store::open(place.run.as_deref().unwrap_or(&file.run)).into_diagnostic()?;
    Ok((config, store, run))
}

fn one_line(score: &Score) -> String {
    let what = match &score.measure {
        Measure::ZeroShot { top1, chance, n_classes, .. } => {
            format!("zero-shot top-1 {:.1} % of {n_classes} classes (chance {:.1} %)", 100.0 * top1, 100.0 * chance)
        }
        Measure::Retrieval { r_at_10, chance_r_at_10, n_texts, .. } => {
            format!("R@10 {:.1} % of {n_texts} sentences (chance {:.1} %)", 100.0 * r_at_10, 100.0 * chance_r_at_10)
        }
    };
    format!("{}: {what}, {} examples", score.name, score.n)
}

fn table(scores: &[Score]) -> Table {
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["evaluation", "modality", "corpus", "n", "measure", "%", "chance %", "× chance", "more"]);
    for score in scores {
        let (measure, value, chance, more) = match &score.measure {
            Measure::ZeroShot { top1, top5, chance, n_classes } => {
                (format!("top-1 of {n_classes}"), *top1, *chance, format!("top-5 {}", percent(*top5)))
            }
            Measure::Retrieval {
                r_at_1, r_at_5, r_at_10, median_rank, chance_r_at_10, n_texts, text_r_at_10, ..
            } => {
                let more = format!(
                    "R@1 {}, R@5 {}, median rank {median_rank}, text→media R@10 {}",
                    percent(*r_at_1),
                    percent(*r_at_5),
                    percent(*text_r_at_10)
                );
                (format!("R@10 of {n_texts}"), *r_at_10, *chance_r_at_10, more)
            }
        };
        table.add_row([
            score.name.clone(),
            score.modality.clone(),
            format!("{}/{}", score.corpus, score.split),
            score.n.to_string(),
            measure,
            percent(value),
            percent(chance),
            format!("{:.1}", value / chance.max(1e-12)),
            more,
        ]);
    }
    table
}
