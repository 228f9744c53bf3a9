//! `scores.json` of a run, as `imp-train eval` writes it.
//!
//! In: a run's store. Out: scores and examples; a line of words, a line of JSON, a row of a table for each. Never: a score
//! of its own making.

use imp_schemas::store::Store;
use serde::{Deserialize, Serialize};

use crate::error::OpsError;

const KEY: &str = "scores.json";

/// All scores of one checkpoint.
#[derive(Debug, Clone, Deserialize)]
pub struct Scores {
    pub step: u64,
    pub scores: Vec<Score>,
    #[serde(default)]
    pub examples: Vec<Example>,
}

/// One evaluation's result; shares are in [0, 1].
#[derive(Debug, Clone, Deserialize)]
pub struct Score {
    pub name: String,
    pub corpus: String,
    pub split: String,
    pub modality: String,
    pub n: usize,
    #[serde(flatten)]
    pub measure: Measure,
}

/// What was measured.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Measure {
    ZeroShot(Classified),
    LinearProbe(Classified),
    Retrieval { r_at_1: f64, r_at_5: f64, r_at_10: f64, median_rank: f64, chance_r_at_10: f64 },
}

/// How well classes were told.
#[derive(Debug, Clone, Deserialize)]
pub struct Classified {
    pub top1: f64,
    pub top5: f64,
    pub chance: f64,
    pub n_classes: usize,
    #[serde(default)]
    pub confusions: Vec<Confusion>,
}

/// Examples of one class that were taken for another, most frequent first.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Confusion {
    pub class: String,
    pub taken_for: String,
    pub n: usize,
    /// Examples of the class.
    pub of: usize,
}

/// One text query and the media nearest to it, best first.
#[derive(Debug, Clone, Deserialize)]
pub struct Example {
    pub name: String,
    pub query: String,
    pub retrieved: Vec<Retrieved>,
}

/// One medium that a query retrieved.
#[derive(Debug, Clone, Deserialize)]
pub struct Retrieved {
    /// Row of the split.
    pub row: u64,
    pub score: f64,
    pub correct: bool,
}

/// A row of the classification table, in percent.
#[derive(Debug, Clone, Serialize)]
pub struct ClassifiedRow {
    name: String,
    /// `zero-shot` or `linear probe`.
    how: &'static str,
    modality: String,
    corpus: String,
    n: usize,
    n_classes: usize,
    top1: String,
    top5: String,
    chance: String,
    times_chance: String,
    /// Widths of the bars, percent of the page.
    bar: f64,
    chance_bar: f64,
    confusions: Vec<Confusion>,
}

/// Confusions shown of each evaluation.
const N_CONFUSIONS: usize = 8;

/// A row of the retrieval table, in percent.
#[derive(Debug, Clone, Serialize)]
pub struct RetrievalRow {
    name: String,
    modality: String,
    corpus: String,
    n: usize,
    r_at_1: String,
    r_at_5: String,
    r_at_10: String,
    chance: String,
    times_chance: String,
    median_rank: f64,
}

impl Scores {
    /// # Errors
    /// The run has no scores yet, or they are not what this build reads.
    pub fn read(run: &Store) -> Result<Self, OpsError> {
        let bytes = run.get(KEY)?;
        serde_json::from_slice(&bytes).map_err(|source| OpsError::Malformed {
            run: run.url().to_owned(),
            key: KEY.to_owned(),
            line: source.line(),
            source,
        })
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

fn times(value: f64, chance: f64) -> String {
    format!("{:.1}", value / chance.max(1e-12))
}

impl Score {
    /// A sentence for the terminal.
    pub fn in_words(&self) -> String {
        let (what, value, chance) = match &self.measure {
            Measure::ZeroShot(c) => (format!("top-1 of {} classes", c.n_classes), c.top1, c.chance),
            Measure::LinearProbe(c) => (format!("linear top-1 of {} classes", c.n_classes), c.top1, c.chance),
            Measure::Retrieval { r_at_10, chance_r_at_10, .. } => ("R@10".to_owned(), *r_at_10, *chance_r_at_10),
        };
        format!(
            "{:<14} {:<12} {what}: {:>5} %, chance {} %, {} × chance, {} examples",
            self.name,
            self.modality,
            percent(value),
            percent(chance),
            times(value, chance),
            self.n
        )
    }

    /// An entry of `zero_shot` in the summary's JSON.
    pub fn zero_shot_json(&self) -> Option<serde_json::Value> {
        let Measure::ZeroShot(classified) = &self.measure else { return None };
        Some(self.classified_json(classified))
    }

    /// An entry of `linear_probe` in the summary's JSON.
    pub fn linear_probe_json(&self) -> Option<serde_json::Value> {
        let Measure::LinearProbe(classified) = &self.measure else { return None };
        Some(self.classified_json(classified))
    }

    fn classified_json(&self, Classified { top1, top5, chance, n_classes, .. }: &Classified) -> serde_json::Value {
        serde_json::json!({
            "modality": self.modality, "top1": top1, "chance": chance, "n": self.n,
            "name": self.name, "corpus": self.corpus, "split": self.split, "top5": top5, "n_classes": n_classes,
        })
    }

    /// An entry of `retrieval` in the summary's JSON.
    pub fn retrieval_json(&self) -> Option<serde_json::Value> {
        let Measure::Retrieval { r_at_1, r_at_5, r_at_10, median_rank, chance_r_at_10 } = self.measure else {
            return None;
        };
        Some(serde_json::json!({
            "modality": self.modality, "r_at_1": r_at_1, "r_at_5": r_at_5, "r_at_10": r_at_10,
            "chance_r_at_10": chance_r_at_10, "median_rank": median_rank, "n": self.n,
            "name": self.name, "corpus": self.corpus, "split": self.split,
        }))
    }

    /// A row of the page's classification table.
    pub fn classified_row(&self) -> Option<ClassifiedRow> {
        let (how, classified) = match &self.measure {
            Measure::ZeroShot(classified) => ("zero-shot", classified),
            Measure::LinearProbe(classified) => ("linear probe", classified),
            Measure::Retrieval { .. } => return None,
        };
        let &Classified { top1, top5, chance, n_classes, ref confusions } = classified;
        Some(ClassifiedRow {
            how,
            confusions: confusions.iter().take(N_CONFUSIONS).cloned().collect(),
            name: self.name.clone(),
            modality: self.modality.clone(),
            corpus: format!("{}/{}", self.corpus, self.split),
            n: self.n,
            n_classes,
            top1: percent(top1),
            top5: percent(top5),
            chance: percent(chance),
            times_chance: times(top1, chance),
            bar: 100.0 * top1,
            chance_bar: 100.0 * chance,
        })
    }

    /// A row of the page's retrieval table.
    pub fn retrieval_row(&self) -> Option<RetrievalRow> {
        let Measure::Retrieval { r_at_1, r_at_5, r_at_10, median_rank, chance_r_at_10 } = self.measure else {
            return None;
        };
        Some(RetrievalRow {
            name: self.name.clone(),
            modality: self.modality.clone(),
            corpus: format!("{}/{}", self.corpus, self.split),
            n: self.n,
            r_at_1: percent(r_at_1),
            r_at_5: percent(r_at_5),
            r_at_10: percent(r_at_10),
            chance: percent(chance_r_at_10),
            times_chance: times(r_at_10, chance_r_at_10),
            median_rank,
        })
    }
}
