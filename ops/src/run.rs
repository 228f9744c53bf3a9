//! Runs what a run file describes, a program a step: ingest, check, train, evaluate, report.
//!
//! In: a run file. Out: shards, checkpoints, scores, a report; every command printed as it can be repeated. Never: does
//! the work of a step itself, goes on after a step failed.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use imp_schemas::store::Store;

use crate::error::OpsError;
use crate::place::{self, Place};
use crate::report::{self, scores::Scores};

/// One command that was run.
#[derive(Debug, Clone)]
pub struct Step {
    /// What a person types to repeat it.
    pub command: String,
    pub seconds: f64,
}

/// What the command line adds to the run file.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub threads: Option<usize>,
    pub steps: Option<u64>,
    pub report: Option<PathBuf>,
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Wall time without the build.
    pub seconds: f64,
    pub scores: Option<Scores>,
    pub report: Option<PathBuf>,
}

/// Runs every step that the run file has a table for.
///
/// # Errors
/// The build or a step failed; the command is named.
pub fn run(place: &Place, options: &Options) -> Result<Outcome, OpsError> {
    let file = place.read()?;
    if file.ingest.is_none() && file.train.is_none() {
        return Err(OpsError::NothingToRun(place.config.clone()));
    }
    let programs = place::build()?;
    let started = Instant::now();
    let config = place.config.to_string_lossy().into_owned();
    let mut steps = Vec::new();
    if let Some(ingest) = &file.ingest {
        let mut args = vec!["run".to_owned(), "--config".to_owned(), config.clone()];
        add(&mut args, "--store", place.store.as_deref());
        add(&mut args, "--root", place.root.as_ref().map(|root| root.to_string_lossy()).as_deref());
        // A log of this run is read by people; without a terminal the program would write for programs.
        if !std::io::stderr().is_terminal() {
            args.extend(["--progress".to_owned(), "plain".to_owned()]);
        }
        steps.push(step(&programs.ingest, &args)?);
        let mut args = vec!["check".to_owned(), "--store".to_owned(), file.store.clone()];
        args.extend(corpus_names(ingest));
        steps.push(step(&programs.shards, &args)?);
    }
    let mut outcome = Outcome { seconds: 0.0, scores: None, report: None };
    if file.train.is_some() {
        let mut args = vec!["--config".to_owned(), config];
        add(&mut args, "--store", place.store.as_deref());
        add(&mut args, "--run", place.run.as_deref());
        add(&mut args, "--threads", options.threads.map(|n| n.to_string()).as_deref());
        let mut fit = [vec!["fit".to_owned()], args.clone()].concat();
        add(&mut fit, "--steps", options.steps.map(|n| n.to_string()).as_deref());
        steps.push(step(&programs.train, &fit)?);
        steps.push(step(&programs.train, &[vec!["eval".to_owned()], args].concat())?);
        let path = options.report.clone().unwrap_or_else(|| report_path(&file.run));
        report::write(place, &steps, &path)?;
        outcome.report = Some(path);
        outcome.scores = Some(Scores::read(&Store::open(&file.run)?)?);
    }
    outcome.seconds = started.elapsed().as_secs_f64();
    Ok(outcome)
}

/// Beside a local run's other files; for a run in a bucket, in the working directory.
fn report_path(run: &str) -> PathBuf {
    if run.contains("://") { PathBuf::from("report.html") } else { Path::new(run).join("report.html") }
}

fn corpus_names(ingest: &toml::Table) -> Vec<String> {
    let corpora = ingest.get("corpus").and_then(toml::Value::as_array);
    let name = |corpus: &toml::Value| corpus.get("name")?.as_str().map(str::to_owned);
    corpora.map(|corpora| corpora.iter().filter_map(name).collect()).unwrap_or_default()
}

fn add(args: &mut Vec<String>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        args.extend([name.to_owned(), value.to_owned()]);
    }
}

/// Runs one program, its output going where ours goes.
fn step(program: &Path, args: &[String]) -> Result<Step, OpsError> {
    let words = std::iter::once(program.to_string_lossy().into_owned()).chain(args.iter().cloned());
    let command = words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ");
    println!("\n$ {command}");
    let started = Instant::now();
    let status = Command::new(program)
        .args(args)
        .status()
        .map_err(|source| OpsError::Start { command: command.clone(), source })?;
    let seconds = started.elapsed().as_secs_f64();
    if !status.success() {
        return Err(OpsError::Failed { command, status });
    }
    println!("  ({seconds:.1} s)");
    Ok(Step { command, seconds })
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Prints the scores, in words.
pub fn summarise(outcome: &Outcome) {
    println!();
    for score in outcome.scores.iter().flat_map(|scores| &scores.scores) {
        println!("{}", score.in_words());
    }
    match &outcome.report {
        Some(path) => println!("\n{:.0} s; report: {}", outcome.seconds, path.display()),
        None => println!("\n{:.0} s", outcome.seconds),
    }
}

/// Writes `{"seconds": …, "zero_shot": […], "linear_probe": […], "retrieval": […]}`.
///
/// # Errors
/// The file cannot be written.
pub fn write_json(outcome: &Outcome, path: &Path) -> Result<(), OpsError> {
    let scores = outcome.scores.as_ref();
    let all = || scores.iter().flat_map(|scores| &scores.scores);
    let json = serde_json::json!({
        "seconds": (outcome.seconds * 10.0).round() / 10.0,
        "zero_shot": all().filter_map(|score| score.zero_shot_json()).collect::<Vec<_>>(),
        "linear_probe": all().filter_map(|score| score.linear_probe_json()).collect::<Vec<_>>(),
        "retrieval": all().filter_map(|score| score.retrieval_json()).collect::<Vec<_>>(),
    });
    let failed = |source| OpsError::File { what: "write", path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, format!("{json:#}\n")).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_survives_a_shell() {
        for (word, want) in [("a/b.toml", "a/b.toml"), ("s3://b/p", "s3://b/p"), ("my dir", "'my dir'"), ("", "''")] {
            assert_eq!(quoted(word), want);
        }
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
