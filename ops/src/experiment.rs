//! `cargo ops experiment`: one hypothesis, several arms, several seeds, equal compute; a table and a plot beside its file.
//!
//! In: an experiment's file over a run file, shards that stand. Out: `NAME.md`, `NAME.svg`, `NAME.json`. Never: a number that a run did
//! not give; a run is done once, and one that has its scores is not done again.
//!
//! Compute is equal by construction: the first arm has the file's `steps`; another gets as many as cost the same FLOPs by
//! `imp-train plan`. An arm that trains some of the tasks alone gets the steps that they have in the first arm, so that each task sees as
//! many batches as there, unless it says `equal = "flops"`.

mod arms;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::OpsError;
use crate::place;
use arms::{Arm, Experiment};

/// What the command line asks for.
#[derive(Debug, clap::Args)]
pub struct ExperimentArgs {
    /// The experiment's file (TOML); ops/experiments has them.
    file: PathBuf,
    /// Where the shards are, instead of the run file's `store`.
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Where runs go; those that are whole are not done again.
    #[arg(long, value_name = "DIR", default_value = "runs/experiments")]
    out: PathBuf,
    /// Where table, plot and numbers go; absent: beside the file.
    #[arg(long, value_name = "DIR")]
    tables: Option<PathBuf>,
    /// Steps of the first arm, instead of the file's.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    #[arg(long, value_name = "SEED", value_delimiter = ',', default_values_t = [1, 2, 3])]
    seeds: Vec<u64>,
    /// Settings of every arm, as `train.device='"cuda:0"'`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Score on the CPU, in f32, whatever device trains.
    #[arg(long)]
    score_on_cpu: bool,
    /// Runs at a time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// An imp-train that stands, instead of one that is built first.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// One arm under one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Outcome {
    arm: String,
    seed: u64,
    steps: u64,
    /// Of the whole run, by the plan.
    flops: f64,
    parameters: usize,
    seconds: f64,
    /// Top-1 or R@10 by evaluation, in [0, 1].
    scores: BTreeMap<String, f64>,
    /// Means over the last tenth of the steps; absent without experts.
    unrouted: Option<f64>,
    usage_entropy: Option<f64>,
}

/// Runs what is missing, then writes table and plot.
///
/// # Errors
/// The file cannot be, a run failed, or something cannot be written.
pub fn run(args: &ExperimentArgs) -> Result<(), OpsError> {
    let experiment = Experiment::read(&args.file, &args.sets)?;
    let program = match &args.program {
        Some(program) => program.clone(),
        None => place::build()?.train,
    };
    let name = args.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let out = std::path::absolute(args.out.join(&name)).unwrap_or_else(|_| args.out.join(&name));
    make(&out)?;
    let steps = args.steps.unwrap_or(experiment.steps);
    let runner = Runner { program, store: args.store.clone(), out, score_on_cpu: args.score_on_cpu };
    let seeds: std::collections::BTreeSet<u64> = args.seeds.iter().copied().collect();
    let Some(&any_seed) = seeds.first() else { return Ok(()) };
    let mut plans: Vec<Plan> = Vec::new();
    let mut jobs = Vec::new();
    for arm in &experiment.arms {
        // Before an arm's steps are known any whole number of its groups does.
        let probe = experiment.config(arm, experiment.group(arm), any_seed)?;
        plans.push(runner.plan(&probe, "plan")?);
        let (first, own) = (&plans[0], &plans[plans.len() - 1]);
        let steps = experiment.steps_of(arm, steps, first, own)?;
        for &seed in &seeds {
            jobs.push((arm, steps, seed, own.flops_per_step * steps as f64, own.n_parameters));
        }
    }
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || -> Result<(), OpsError> {
        while let Some(&(arm, n, seed, flops, parameters)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let config = experiment.config(arm, n, seed)?;
            let outcome = runner.fit(arm, &config, Outcome::new(arm, seed, n, flops, parameters));
            // One that failed stops the others at their next.
            let outcome = outcome.inspect_err(|_| next.store(jobs.len(), Ordering::Relaxed))?;
            let scores: Vec<String> = outcome.scores.iter().map(|(k, v)| format!("{k} {:.1} %", 100.0 * v)).collect();
            println!(
                "{}, seed {seed}: {} steps in {:.0} s: {}",
                arm.name,
                outcome.steps,
                outcome.seconds,
                scores.join(", ")
            );
            outcomes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(outcome);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let failed = |source| OpsError::Start { command: "a thread".to_owned(), source };
        let start = |i| std::thread::Builder::new().name(format!("experiment-{i}")).spawn_scoped(scope, worker);
        let threads = (0..args.jobs.max(1)).map(start).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let gone = || OpsError::Lost("a thread of the experiment ended without a result".to_owned());
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| gone())?)
    })?;
    let mut outcomes = outcomes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = |o: &Outcome| experiment.arms.iter().position(|arm| arm.name == o.arm);
    outcomes.sort_by_key(|o| (place(o), o.seed));
    let folder = args.tables.clone().unwrap_or_else(|| args.file.parent().unwrap_or(Path::new("")).to_owned());
    make(&folder)?;
    table::write(&folder.join(name), &experiment, &outcomes)
}

fn make(folder: &Path) -> Result<(), OpsError> {
    std::fs::create_dir_all(folder).map_err(|source| OpsError::File { what: "make", path: folder.to_owned(), source })
}

/// What `imp-train plan` says that matters here.
#[derive(Debug, Clone, Deserialize)]
struct Plan {
    n_parameters: usize,
    flops_per_step: f64,
    tasks: Vec<TaskShare>,
}

#[derive(Debug, Clone, Deserialize)]
struct TaskShare {
    name: String,
    share: f64,
}

impl Outcome {
    fn new(arm: &Arm, seed: u64, steps: u64, flops: f64, parameters: usize) -> Self {
        let (scores, seconds) = (BTreeMap::new(), 0.0);
        let arm = arm.name.clone();
        Self { arm, seed, steps, flops, parameters, seconds, scores, unrouted: None, usage_entropy: None }
    }
}

/// Starts imp-train.
struct Runner {
    program: PathBuf,
    store: Option<String>,
    out: PathBuf,
    score_on_cpu: bool,
}

impl Runner {
    fn write(&self, name: &str, text: &str) -> Result<PathBuf, OpsError> {
        let path = self.out.join(name);
        let failed = |source| OpsError::File { what: "write", path: path.clone(), source };
        std::fs::write(&path, text).map_err(failed)?;
        Ok(path)
    }

    fn train(&self, command: &str, config: &Path, more: &[&str]) -> Result<String, OpsError> {
        let mut args = vec![command.to_owned(), "--config".to_owned(), config.to_string_lossy().into_owned()];
        args.extend(self.store.iter().flat_map(|store| ["--store".to_owned(), store.clone()]));
        args.extend(more.iter().map(|&word| word.to_owned()));
        let shown = format!("{} {}", self.program.display(), args.join(" "));
        let started = Command::new(&self.program).args(&args).stderr(Stdio::inherit()).output();
        let output = started.map_err(|source| OpsError::Start { command: shown.clone(), source })?;
        if !output.status.success() {
            return Err(OpsError::Failed { command: shown, status: output.status });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn plan(&self, config: &toml::Table, name: &str) -> Result<Plan, OpsError> {
        let path = self.write(&format!("{name}.toml"), &config.to_string())?;
        let json = self.train("plan", &path, &["--json"])?;
        let malformed =
            |source| OpsError::Malformed { run: path.display().to_string(), key: "plan".into(), line: 1, source };
        serde_json::from_str(&json).map_err(malformed)
    }

    /// Trains and scores an arm, unless it has its scores.
    fn fit(&self, arm: &Arm, config: &toml::Table, mut outcome: Outcome) -> Result<Outcome, OpsError> {
        let name = format!("{}-{}-{}", arm.slug(), outcome.seed, outcome.steps);
        let whole = self.out.join(format!("{name}.json"));
        let place = self.out.join(format!("{name}.toml"));
        // What was done under other settings is done again.
        let (store, scored) = (self.store.as_deref().unwrap_or("the run file's"), self.score_on_cpu);
        let text = format!("# store: {store}; scored on the CPU: {scored}\n{config}");
        if std::fs::read_to_string(&place).is_ok_and(|before| before == text)
            && let Some(before) = std::fs::read(&whole).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
        {
            return Ok(before);
        }
        let run = self.out.join(&name);
        for left in [&whole, &run] {
            let removed = if left.is_dir() { std::fs::remove_dir_all(left) } else { std::fs::remove_file(left) };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(OpsError::File { what: "remove", path: left.clone(), source: e });
                }
                Ok(()) | Err(_) => {}
            }
        }
        let path = self.write(&format!("{name}.toml"), &text)?;
        let place = run.to_string_lossy().into_owned();
        let begin = Instant::now();
        self.train("fit", &path, &["--run", &place])?;
        outcome.seconds = begin.elapsed().as_secs_f64();
        let scores = self.out.join(format!("{name}.scores"));
        let path = match self.score_on_cpu {
            true => self.write(&format!("{name}-scored.toml"), &arms::on_cpu(config).to_string())?,
            false => path,
        };
        self.train("eval", &path, &["--run", &place, "--json", &scores.to_string_lossy()])?;
        outcome.scores = table::scores(&scores)?;
        (outcome.unrouted, outcome.usage_entropy) = table::routing(&run)?;
        let json = serde_json::to_string(&outcome).map_err(|e| OpsError::Lost(e.to_string()))?;
        self.write(&format!("{name}.json"), &json)?;
        Ok(outcome)
    }
}
