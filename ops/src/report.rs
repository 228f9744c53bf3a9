//! One self-contained HTML page about a run: scores, curves, what was retrieved, what each task cost.
//!
//! In: the run's metrics and scores, the shards that the examples lie in. Out: one file without links to others. Never:
//! trains or scores anything, fetches from the network, a number that is not in the run.

mod charts;
mod machine;
mod media;
pub mod metrics;
pub mod scores;

use std::path::Path;

use imp_schemas::store::Store;
use minijinja::Environment;
use minijinja::value::Serde;
use serde_json::{Value, json};

use crate::error::OpsError;
use crate::place::Place;
use crate::run::Step;
use metrics::StepMetrics;
use scores::Scores;

const PAGE: &str = include_str!("report/page.html");
/// Queries shown of each evaluation.
const QUERIES_PER_EVALUATION: usize = 6;

/// Writes the report of the run that `place` points to; `steps` are the commands that made it.
///
/// # Errors
/// The run has no scores yet, a store failed, or the file cannot be written.
pub fn write(place: &Place, steps: &[Step], path: &Path) -> Result<(), OpsError> {
    let file = place.read()?;
    let (store, run) = (Store::open(&file.store)?, Store::open(&file.run)?);
    let scores = Scores::read(&run)?;
    let metrics = metrics::read(&run)?;
    let html = render(place, steps, &store, &scores, &metrics)?;
    let failed = |source| OpsError::File { what: "write", path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, html).map_err(failed)
}

fn render(
    place: &Place,
    steps: &[Step],
    store: &Store,
    scores: &Scores,
    metrics: &[StepMetrics],
) -> Result<String, OpsError> {
    let classified: Vec<_> = scores.scores.iter().filter_map(|s| s.classified_row()).collect();
    let retrieval: Vec<_> = scores.scores.iter().filter_map(|s| s.retrieval_row()).collect();
    let steps: Vec<Value> =
        steps.iter().map(|s| json!({ "command": s.command, "seconds": round1(s.seconds) })).collect();
    let content = json!({
        "title": place.config.file_stem().map(|stem| stem.to_string_lossy().into_owned()),
        "config": place.config.to_string_lossy(),
        "config_text": std::fs::read_to_string(&place.config).unwrap_or_default(),
        "n_steps": scores.step,
        "classified": classified,
        "retrieval": retrieval,
        "loss_chart": charts::loss(metrics)?,
        "lr_chart": charts::learning_rate(metrics)?,
        "speed_chart": charts::speed(metrics)?,
        "total": metrics::total(metrics),
        "costs": metrics::costs(metrics),
        "evaluations": evaluations(store, scores)?,
        "steps": steps,
        "machine": machine::facts(),
        "versions": machine::versions(),
    });
    let mut environment = Environment::new();
    environment.add_template("page.html", PAGE)?;
    let page = environment.get_template("page.html")?.render(Serde(content))?;
    Ok(page)
}

/// The examples of each evaluation, with their media.
fn evaluations(store: &Store, scores: &Scores) -> Result<Vec<Value>, OpsError> {
    let mut evaluations = Vec::new();
    for score in &scores.scores {
        let examples: Vec<_> =
            scores.examples.iter().filter(|e| e.name == score.name).take(QUERIES_PER_EVALUATION).collect();
        if examples.is_empty() {
            continue;
        }
        let mut shelf = media::Shelf::open(store, &score.corpus, &score.split)?;
        let mut queries = Vec::new();
        for example in examples {
            let mut cards = Vec::new();
            for found in &example.retrieved {
                cards.push(shelf.card(found)?);
            }
            queries.push(json!({ "query": example.query, "cards": cards }));
        }
        evaluations
            .push(json!({ "name": score.name, "corpus": score.corpus, "split": score.split, "queries": queries }));
    }
    Ok(evaluations)
}

fn round1(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests;
