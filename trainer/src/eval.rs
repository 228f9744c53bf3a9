//! Scores of a checkpoint on held-out splits: embeds every example once, then measures.
//!
//! In: a checkpoint and the config's evaluations. Out: `scores.json` in the run. Never: trains, drops tokens, augments.
//! Source: the authors' release, as IMP.md section 10 puts it.

mod classified;
mod embed;
mod probe;
mod prompts;
mod retrieval;
mod zero_shot;

use bytes::Bytes;
use imp_schemas::checkpoint::CheckpointMeta;
use imp_schemas::store::{Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, CheckpointError};
use crate::config::{Eval, EvalKind, TrainConfig};
use crate::model::{Imp, ModelConfig, ModelError, Stream};
use crate::ops::Backend;
use crate::train::{self, TrainError};
use imp_loader::LoaderError;

pub use classified::{Classified, Confusion};
pub(crate) use embed::mean_of_windows;
pub use embed::{Embedder, Features, Items, distinct, spec_of};
pub use prompts::PromptSet;

/// Where the scores of a run lie.
pub const SCORES_KEY: &str = "scores.json";

/// All scores of one checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Updates that the checkpoint had seen.
    pub step: u64,
    pub scores: Vec<Score>,
    /// A few queries of each evaluation with what they retrieved, for people to look at.
    pub examples: Vec<Example>,
}

/// One evaluation's result. Shares are in [0, 1].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub name: String,
    pub corpus: String,
    pub split: String,
    /// `image`, or `video+audio` if scores of two media were added.
    pub modality: String,
    /// Examples.
    pub n: usize,
    #[serde(flatten)]
    pub measure: Measure,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Measure {
    ZeroShot(Classified),
    LinearProbe {
        /// Examples that the classifier was trained on.
        n_train: usize,
        #[serde(flatten)]
        classified: Classified,
    },
    /// Medium → text, then text → medium. `chance_r_at_10` is that of a random order of the sentences.
    Retrieval {
        r_at_1: f64,
        r_at_5: f64,
        r_at_10: f64,
        median_rank: f64,
        chance_r_at_10: f64,
        n_texts: usize,
        text_r_at_1: f64,
        text_r_at_5: f64,
        text_r_at_10: f64,
        text_median_rank: f64,
    },
}

/// One text query and the media nearest to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    pub name: String,
    pub corpus: String,
    pub split: String,
    pub query: String,
    /// Best first.
    pub retrieved: Vec<Retrieved>,
}

/// One medium that a query retrieved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retrieved {
    /// Row of the split.
    pub row: u64,
    pub key: String,
    pub score: f32,
    pub correct: bool,
}

/// Why an evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Loader(#[from] LoaderError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error("run `{0}` has no checkpoint; run `imp-train fit` first")]
    NoCheckpoint(String),
    #[error("the config has no `[[train.eval]]`; add one to say what to measure")]
    NoEvals,
    #[error("tokenizer `{key}` cannot be used: {detail}")]
    Tokenizer { key: String, detail: String },
    #[error(
        "corpus `{corpus}` was ingested with tokenizer {found}, the checkpoint was trained with {wanted}; ingest it together with the training corpora"
    )]
    OtherTokenizer { corpus: String, found: String, wanted: String },
    #[error("evaluation `{name}`: {found}, wanted {wanted}")]
    Corpus { name: String, found: String, wanted: &'static str },
    #[error(transparent)]
    Untrained(#[from] Untrained),
    #[error(
        "evaluation `{name}`: the model's vectors are not finite: its last updates were too large; remove the checkpoint and go on from the one before"
    )]
    NotFinite { name: String },
    #[error("cannot write scores")]
    Json(#[from] serde_json::Error),
}

/// An evaluation of what no task trains.
#[derive(Debug, thiserror::Error)]
pub enum Untrained {
    #[error(
        "evaluation `{name}` needs heads between {medium} and text, but no task with `nce` among its objectives trains that pair"
    )]
    Pair { name: String, medium: &'static str },
    #[error("evaluation `{name}` reads the features of {stream}, must be of a medium of one of the tasks")]
    Stream { name: String, stream: &'static str },
}

/// Measures the newest checkpoint of `run` and writes `scores.json` beside it.
///
/// # Errors
/// See [`EvalError`].
pub fn run<D: Backend>(
    config: &TrainConfig,
    store: &Store,
    run: &Store,
    dev: &D,
    say: &mut dyn FnMut(&Score),
) -> Result<Scores, EvalError> {
    if config.evals.is_empty() {
        return Err(EvalError::NoEvals);
    }
    let (model, meta) = newest(config, store, run, dev)?;
    let embedder = Embedder::new(store, &model, &meta.tokenizer_digest)?;
    let mut scores = Scores { step: meta.step, scores: Vec::new(), examples: Vec::new() };
    for eval in &config.evals {
        match measure(&embedder, eval, config) {
            Ok((score, examples)) => {
                say(&score);
                scores.scores.push(score);
                scores.examples.extend(examples);
            }
            Err(error) => {
                // What was measured before it is not lost.
                put(run, &scores)?;
                return Err(error);
            }
        }
    }
    put(run, &scores)?;
    Ok(scores)
}

fn put(run: &Store, scores: &Scores) -> Result<(), EvalError> {
    Ok(run.put(SCORES_KEY, Bytes::from(serde_json::to_vec_pretty(scores)?))?)
}

/// The model of the run's newest checkpoint: the mean of its parameters where the config has the run keep one.
pub(crate) fn newest<D: Backend>(
    config: &TrainConfig,
    store: &Store,
    run: &Store,
    dev: &D,
) -> Result<(Imp<D>, CheckpointMeta), EvalError> {
    let no_checkpoint = || EvalError::NoCheckpoint(run.url().to_owned());
    let meta = train::newest_checkpoint(run)?.ok_or_else(no_checkpoint)?;
    let mut manifests = std::collections::BTreeMap::new();
    for corpus in config.mixture.tasks().iter().flat_map(|task| task.corpora()) {
        manifests.insert(corpus.clone(), store.manifest(corpus)?);
    }
    let model_config = train::model_config(config, &manifests)?;
    let mut model = Imp::new(&model_config, config.mixture.seed(), dev)?;
    train::check_same_model(&meta, config)?;
    match config.optimizer.ema > 0.0 {
        true => checkpoint::load_averaged(run, &meta, &mut model)?,
        false => checkpoint::load_model(run, &meta, &mut model)?,
    }
    Ok((model, meta))
}

/// What an evaluation reads must be trained: the heads between its media and text, or, of a linear probe, its medium.
///
/// # Errors
/// See [`Untrained`].
pub(crate) fn check_trained(model: &ModelConfig, eval: &Eval) -> Result<(), Untrained> {
    let name = || eval.name.clone();
    for stream in train::media_streams(eval.task()) {
        let medium = stream.name();
        match eval.kind {
            EvalKind::LinearProbe if !model.streams().contains(&stream) => {
                return Err(Untrained::Stream { name: name(), stream: medium });
            }
            EvalKind::ZeroShot | EvalKind::Retrieval
                if !model.pairs().contains(&(stream.min(Stream::Text), stream.max(Stream::Text))) =>
            {
                return Err(Untrained::Pair { name: name(), medium });
            }
            EvalKind::LinearProbe | EvalKind::ZeroShot | EvalKind::Retrieval => {}
        }
    }
    Ok(())
}

/// Sentences are embedded for an evaluation that has some.
pub(crate) fn check_has_text(eval: &Eval) -> Result<(), EvalError> {
    match eval.kind {
        EvalKind::ZeroShot | EvalKind::Retrieval => Ok(()),
        EvalKind::LinearProbe => {
            let (name, found) = (eval.name.clone(), "a linear probe, which has no sentences".to_owned());
            Err(EvalError::Corpus { name, found, wanted: "an evaluation with `kind` zero-shot or retrieval" })
        }
    }
}

fn measure<D: Backend>(
    embedder: &Embedder<'_, D>,
    eval: &Eval,
    config: &TrainConfig,
) -> Result<(Score, Vec<Example>), EvalError> {
    let (corpus, split) = (eval.task().corpora()[0].clone(), eval.task().split().to_owned());
    let modality = eval.media.iter().map(|m| m.name()).collect::<Vec<_>>().join("+");
    let items = || embedder.items(eval, &config.loader);
    let (n, measure, mut examples) = match eval.kind {
        EvalKind::LinearProbe => {
            let (measure, n) = probe::measure(embedder, eval, &config.loader)?;
            (n, measure, Vec::new())
        }
        EvalKind::Retrieval => {
            let items = items()?;
            let (measure, examples) = retrieval::measure(embedder, eval, &items)?;
            (items.n(), measure, examples)
        }
        EvalKind::ZeroShot => {
            let items = items()?;
            let (measure, examples) = zero_shot::measure(embedder, eval, &items)?;
            (items.n(), measure, examples)
        }
    };
    for example in &mut examples {
        (example.corpus, example.split) = (corpus.clone(), split.clone());
    }
    Ok((Score { name: eval.name.clone(), corpus, split, modality, n, measure }, examples))
}

/// The indices of the `k` greatest values, greatest first; equal values in index order.
pub(crate) fn top_k(values: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order.truncate(k);
    order
}

/// How many values stand before the best of `wanted`, if ties are broken against it: 0 is a hit at 1. Breaking ties in
/// its favour would let a model that says the same to everything score full marks.
fn rank(values: &[f32], wanted: &dyn Fn(usize) -> bool) -> usize {
    let best = (0..values.len()).filter(|&i| wanted(i)).map(|i| values[i]).fold(f32::NEG_INFINITY, f32::max);
    (0..values.len()).filter(|&i| !wanted(i) && (values[i] >= best || values[i].is_nan())).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_says_the_same_to_everything_scores_nothing() {
        assert_eq!(rank(&[0.5; 4], &|i| i == 0), 3);
        assert_eq!(rank(&[0.1, 0.9, 0.5], &|i| i == 2), 1);
        // Of several that are right the best counts, and none of them stands before it.
        assert_eq!(rank(&[0.1, 0.9, 0.5], &|i| i != 0), 0);
        assert_eq!(rank(&[0.1, 0.9, 0.5], &|i| i != 1), 1);
        assert_eq!(top_k(&[0.1, 0.9, 0.5, 0.9], 3), [1, 3, 2]);
    }
}
