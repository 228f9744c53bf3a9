//! `imp-train`: trains one encoder from shards, and scores its checkpoints.

mod cli;
mod live;
mod prometheus;
mod tables;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use imp_loader::{Rank, SimulateOptions, Watch};
use imp_schemas::batch::{Batch, ExampleId};
use imp_schemas::checkpoint::CheckpointMeta;
use imp_schemas::run_file::RunFile;
use imp_schemas::store::Store;
use imp_trainer::config::{RawTrain, TrainConfig};
use imp_trainer::data::{self, DataOptions, Observer};
use imp_trainer::ops::Precision;
use imp_trainer::search::{self, Query};
use imp_trainer::steps::StepsOptions;
use imp_trainer::train::newest_checkpoint;
use imp_trainer::{device, eval, plan, shares};
use miette::{IntoDiagnostic, Result, WrapErr, miette};
use serde_json::json;

use crate::cli::{Cli, Command, Place};
use crate::live::Live;
use crate::prometheus::Endpoint;

fn main() -> ExitCode {
    imp_schemas::heap::settle();
    let wanted = Cli::parse().command;
    if matches!(
        wanted,
        Command::Fit { .. }
            | Command::Eval { .. }
            | Command::Embed { .. }
            | Command::Bench { .. }
            | Command::Steps { .. }
    ) {
        imp_schemas::heap::keep();
        imp_trainer::huge_pages::begin();
    }
    match command(wanted) {
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
        Command::Fit { place, steps, serve_metrics } => {
            let (mut config, store, run) = open(&place)?;
            config.steps = steps.unwrap_or(config.steps);
            let mut endpoint = bind(serve_metrics)?;
            let mut opened =
                |watch: &Watch| endpoint.take().into_iter().for_each(|endpoint| endpoint.serve(watch.clone()));
            let fitted = device::fit(&config, &store, &run, &mut opened).into_diagnostic()?;
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
            // Not on CUDA: other programs may be waiting for the device.
            if config.device == "cpu"
                && let (Ok(plan), Ok(ceiling)) = (plan::of(&config, &store), device::ceiling("cpu", config.threads))
            {
                let seconds = (fitted.seconds - fitted.wait_seconds) / (fitted.steps - fitted.first_step).max(1) as f64;
                println!("a step took {:.1} ms; {}", 1e3 * seconds, tables::of_floor(&plan, &ceiling));
            }
            // The run is whole, whatever can be told of it.
            match shares::of(&run) {
                Ok(shares) => println!("{}", tables::of_shares(&shares)),
                Err(error) => eprintln!("warning: what each task got cannot be told: {error}"),
            }
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
        Command::Embed { place, eval, out } => {
            let (config, store, run) = open(&place)?;
            let embeddings = device::embed(&config, &store, &run, &eval).into_diagnostic()?;
            search::write(&out, &embeddings).into_diagnostic()?;
            println!(
                "{} vectors of {} numbers, of `{}/{}` by the checkpoint after {} steps: `{}`",
                embeddings.rows.len(),
                embeddings.width,
                embeddings.corpus,
                embeddings.split,
                embeddings.step,
                out.display(),
            );
            Ok(())
        }
        Command::Search { place, among, n, json, file, text } => {
            let (config, store, run) = open(&place)?;
            let among = search::read(&among).into_diagnostic()?;
            let query = match file {
                Some(file) => Query::File(file),
                None => Query::Text(text.unwrap_or_default()),
            };
            let found = device::search(&config, &store, &run, &among, &query, n as usize).into_diagnostic()?;
            if json {
                println!("{}", serde_json::to_string(&found).into_diagnostic()?);
            } else {
                print!("{}", tables::of_found(&found));
            }
            Ok(())
        }
        Command::Plan { place, json } => {
            let (config, store) = open_data(&place)?;
            let plan = plan::of(&config, &store).into_diagnostic()?;
            // A run may be planned on a machine without its device.
            let ceiling = device::ceiling(&config.device, config.threads);
            if json {
                let ceiling = ceiling.ok();
                let mut all = json!(plan);
                all["floor_seconds"] = json!(ceiling.map(|ceiling| plan.floor_seconds(&ceiling)));
                all["ceiling"] = json!(ceiling);
                println!("{all}");
                return Ok(());
            }
            print!("{}", tables::of_plan(&plan));
            match ceiling {
                Ok(ceiling) => println!("{}", tables::of_floor(&plan, &ceiling)),
                Err(error) => println!("how long a step takes at least is not known: {error}"),
            }
            Ok(())
        }
        Command::Selftest { device, precision, threads } => {
            let all: &[Precision] =
                if device == "cpu" { &[Precision::F32] } else { &[Precision::F32, Precision::Bf16] };
            let chosen = precision.map_or_else(|| all.to_vec(), |one| vec![one]);
            let (mut n, mut failed) = (0, 0);
            for precision in chosen {
                println!("{device}, {precision:?}");
                let checks = device::selftest(&device, precision, threads, &mut |check| {
                    println!("{}", tables::of_check(check));
                });
                let checks = checks.into_diagnostic()?;
                n += checks.len();
                failed += checks.iter().filter(|check| !check.holds()).count();
            }
            match failed {
                0 => println!("{n} comparisons hold"),
                _ => return Err(miette!("{failed} of {n} comparisons do not hold")),
            }
            Ok(())
        }
        Command::Bench { device, precision, size, profile, json } => {
            let options = size.options(profile);
            let line = device::bench(&device, precision, &options).into_diagnostic()?;
            let ceiling = device::ceiling(&device, options.threads).into_diagnostic()?;
            if json {
                println!("{}", serde_json::to_string(&line).into_diagnostic()?);
                let value = ceiling.gflops;
                println!("{}", json!({ "bench": "gemm", "peer": line.peer, "unit": "GFLOP/s", "value": value }));
            } else {
                print!("{}", tables::of_bench(&line, ceiling.gflops));
            }
            Ok(())
        }
        Command::Steps { place, rounds, each, json } => {
            let (config, store) = open_data(&place)?;
            let options = StepsOptions { n_rounds: rounds as usize, n_each: each as usize };
            let report = device::steps(&config, &store, options).into_diagnostic()?;
            if json {
                println!("{}", serde_json::to_string(&report).into_diagnostic()?);
            } else {
                print!("{}", tables::of_steps(&report));
            }
            Ok(())
        }
        Command::Data {
            place,
            steps,
            step_ms,
            decode_threads,
            from_step,
            rank,
            ranks,
            digests,
            serve_metrics,
            json,
        } => {
            let (mut config, store) = open_data(&place)?;
            config.loader.decode_threads = decode_threads.unwrap_or(config.loader.decode_threads);
            let step = Duration::from_millis(step_ms);
            let options = DataOptions { from_step, n_steps: steps, step, rank: Rank { rank, of: ranks } };
            let mut onlooker = Onlooker {
                lines: digests.as_deref().map(DigestLines::create).transpose()?,
                endpoint: bind(serve_metrics)?,
                live: Live::new(steps + 1),
            };
            let report = data::measure(&config, &store, &options, &mut onlooker).into_diagnostic()?;
            onlooker.finish()?;
            if json {
                println!("{}", serde_json::to_string(&report).into_diagnostic()?);
            } else {
                print!("{}", tables::of_data(&report));
            }
            Ok(())
        }
        Command::Simulate { place, steps, from_step, ranks, cache_gib, latency_ms, mib_per_second, json } => {
            let (config, store) = open_data(&place)?;
            let of_config = config.loader.disk_cache.as_ref().map_or(0.0, |_| config.loader.disk_cache_gib as f64);
            let gib = cache_gib.unwrap_or(of_config);
            let options = SimulateOptions {
                from_step,
                n_steps: steps,
                ranks: usize::from(ranks),
                cache_bytes: (gib.max(0.0) * f64::from(1 << 30)) as u64,
                latency_seconds: latency_ms / 1000.0,
                bytes_per_second: mib_per_second * f64::from(1 << 20),
                in_flight: config.loader.n_fetch_threads(&store),
            };
            let simulated = imp_loader::simulate(&store, &config.mixture, &options).into_diagnostic()?;
            if json {
                println!("{}", serde_json::to_string(&simulated).into_diagnostic()?);
            } else {
                print!("{}", tables::of_simulated(&simulated));
            }
            Ok(())
        }
        Command::Explain { place, step, json } => {
            let (config, store) = open_data(&place)?;
            let cursor = checkpoint_of(&place)?.map(|meta| meta.cursor);
            let explained = imp_loader::explain(&store, &config.mixture, cursor.as_ref(), step).into_diagnostic()?;
            if json {
                println!("{}", serde_json::to_string(&explained).into_diagnostic()?);
            } else {
                print!("{}", tables::of_step(&explained));
            }
            Ok(())
        }
    }
}

fn bind(address: Option<SocketAddr>) -> Result<Option<Endpoint>> {
    address.map(Endpoint::bind).transpose().into_diagnostic()
}

/// Whoever looks on while `data` takes batches.
struct Onlooker {
    lines: Option<DigestLines>,
    endpoint: Option<Endpoint>,
    live: Live,
}

impl Observer for Onlooker {
    fn opened(&mut self, watch: &Watch) {
        self.live.opened(watch);
        self.endpoint.take().into_iter().for_each(|endpoint| endpoint.serve(watch.clone()));
    }

    fn took(&mut self, batch: &Batch) {
        self.live.took(batch);
        self.lines.iter_mut().for_each(|lines| lines.write(batch));
    }
}

impl Onlooker {
    fn finish(self) -> Result<()> {
        self.lines.map_or(Ok(()), DigestLines::finish)
    }
}

/// The file of `--digests`: a line is whole as soon as its batch was handed out.
struct DigestLines {
    path: PathBuf,
    file: std::fs::File,
    failed: Option<std::io::Error>,
}

impl DigestLines {
    fn create(path: &Path) -> Result<Self> {
        let file = std::fs::File::create(path)
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot write `{}`", path.display()))?;
        Ok(Self { path: path.to_owned(), file, failed: None })
    }

    fn write(&mut self, batch: &Batch) {
        let examples: Vec<_> = (0..batch.n())
            .map(|i| {
                let ExampleId { corpus_idx, row, epoch } = batch.examples[i];
                serde_json::json!([corpus_idx, row, epoch, batch.example_digest(i)])
            })
            .collect();
        let line = serde_json::json!({
            "step": batch.step, "task": batch.task_idx, "view": batch.view_idx, "examples": examples,
        });
        if let Err(error) = self.file.write_all(format!("{line}\n").as_bytes()) {
            self.failed.get_or_insert(error);
        }
    }

    fn finish(self) -> Result<()> {
        let Some(error) = self.failed else { return Ok(()) };
        Err(error).into_diagnostic().wrap_err_with(|| format!("cannot write `{}`", self.path.display()))
    }
}

fn open(place: &Place) -> Result<(TrainConfig, Store, Store)> {
    let (config, store) = open_data(place)?;
    let file = RunFile::read(&place.config).into_diagnostic()?;
    let run = Store::open(place.run.as_deref().unwrap_or(&file.run)).into_diagnostic()?;
    Ok((config, store, run))
}

/// The newest checkpoint of the run, if there is a run: looking for it makes no folder.
fn checkpoint_of(place: &Place) -> Result<Option<CheckpointMeta>> {
    let file = RunFile::read(&place.config).into_diagnostic()?;
    let run = place.run.as_deref().unwrap_or(&file.run);
    if !run.contains("://") && !Path::new(run).is_dir() {
        return Ok(None);
    }
    newest_checkpoint(&Store::open(run).into_diagnostic()?).into_diagnostic()
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
