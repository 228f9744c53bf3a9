//! What a trained model is tried with first: a corpus's embeddings, and what is nearest to a text or a file among them.
//!
//! In: the newest checkpoint of a run, an evaluation that says which split is embedded and at which size, a query. Out: embeddings; the
//! nearest media and captions. Never: vectors of two checkpoints compared, an index that is not exact.

mod table;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use imp_loader::{ContentFault, batches_of_file};
use imp_schemas::store::Store;
use serde::Serialize;

use crate::config::{Eval, TrainConfig};
use crate::eval::{self, Embedder, EvalError, distinct, mean_of_windows, spec_of, top_k};
use crate::model::{ExpertsConfig, Stream};
use crate::ops::Backend;
use crate::train::media_streams;

pub use table::{TableError, read, write};

/// Unit vectors of a split, and where they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Updates that the checkpoint had seen.
    pub step: u64,
    /// Of the checkpoint's file of parameters.
    pub model_digest: String,
    /// Of what besides the checkpoint decides a vector.
    pub made_by: String,
    /// Name of the evaluation.
    pub eval: String,
    pub corpus: String,
    pub split: String,
    /// Length of a vector.
    pub width: usize,
    pub rows: Vec<EmbeddedRow>,
}

/// A medium, or a caption.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddedRow {
    /// What was embedded.
    pub stream: Stream,
    /// The stream that its space is shared with: a medium's is text, a caption's is the medium.
    pub space: Stream,
    /// Row of the split; of a caption that several records have, of the first.
    pub row: u64,
    pub key: String,
    /// The caption; of a medium its first one, or nothing.
    pub text: String,
    pub vector: Vec<f32>,
}

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    Text(String),
    /// A picture, a clip or a sound: the first of the evaluation's media that it is.
    File(PathBuf),
}

/// The nearest of each kind, best first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    pub media: Vec<Hit>,
    pub captions: Vec<Hit>,
}

/// One row that is near.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hit {
    /// Cosine; of an evaluation with two media, and a text, the sum over both.
    pub score: f32,
    pub row: u64,
    pub key: String,
    pub text: String,
}

/// Why nothing can be embedded or found.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error("the config has no `[[train.eval]]` named `{name}`; it has {known}")]
    UnknownEval { name: String, known: String },
    #[error(
        "the embeddings were made by another checkpoint or another config (after {found} steps, the run's newest is after {newest}); run `imp-train embed` again"
    )]
    Other { found: u64, newest: u64 },
    #[error(
        "`train.model.experts.eval_groups` is `batch`: what a query becomes depends on its company, and it has none; set it to `example` and run `imp-train embed` again"
    )]
    InCompany,
    #[error("the text to search for is empty")]
    Empty,
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{}` is not what evaluation `{eval}` embeds ({wanted})", path.display())]
    File { path: PathBuf, eval: String, wanted: String, source: ContentFault },
}

fn named<'c>(config: &'c TrainConfig, name: &str) -> Result<&'c Eval, SearchError> {
    config.evals.iter().find(|eval| eval.name == name).ok_or_else(|| {
        let known: Vec<&str> = config.evals.iter().map(|eval| eval.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        SearchError::UnknownEval { name: name.to_owned(), known }
    })
}

/// Embeds the media and the distinct captions of an evaluation's split with the newest checkpoint of `run`.
///
/// # Errors
/// See [`SearchError`].
pub fn embed<D: Backend>(
    config: &TrainConfig,
    store: &Store,
    run: &Store,
    dev: &D,
    name: &str,
) -> Result<Embeddings, SearchError> {
    let eval = named(config, name)?;
    let (model, meta) = eval::newest(config, store, run, dev)?;
    eval::check_has_text(eval)?;
    let embedder = Embedder::new(store, &model, &meta.tokenizer_digest)?;
    let items = embedder.items(eval, &config.loader)?;
    let width = model.config().common_width();
    let (texts, own) = distinct(&items.captions);
    let groups: Vec<Vec<String>> = texts.iter().map(|text| vec![text.clone()]).collect();
    // The first record that has each caption.
    let mut first = vec![0; texts.len()];
    for (record, own) in own.iter().enumerate().rev() {
        own.iter().for_each(|&text| first[text] = record);
    }
    let mut rows = Vec::new();
    for (stream, vectors) in &items.media {
        rows.extend(vectors.chunks_exact(width).enumerate().map(|(i, vector)| EmbeddedRow {
            stream: *stream,
            space: Stream::Text,
            row: items.rows[i],
            key: items.keys[i].clone(),
            text: items.captions[i].first().cloned().unwrap_or_default(),
            vector: vector.to_vec(),
        }));
        let vectors = embedder.texts(&groups, *stream, eval)?;
        for (idx, vector) in vectors.chunks_exact(width).enumerate() {
            rows.push(EmbeddedRow {
                stream: Stream::Text,
                space: *stream,
                row: items.rows[first[idx]],
                key: items.keys[first[idx]].clone(),
                text: texts[idx].clone(),
                vector: vector.to_vec(),
            });
        }
    }
    Ok(Embeddings {
        step: meta.step,
        model_digest: meta.model_digest.to_string(),
        made_by: made_by(config, eval),
        eval: eval.name.clone(),
        corpus: eval.task().corpora()[0].clone(),
        split: eval.task().split().to_owned(),
        width,
        rows,
    })
}

/// The `n` media and the `n` captions nearest to `query`.
///
/// # Errors
/// See [`SearchError`].
pub fn search<D: Backend>(
    config: &TrainConfig,
    store: &Store,
    run: &Store,
    dev: &D,
    among: &Embeddings,
    query: &Query,
    n: usize,
) -> Result<Found, SearchError> {
    let eval = named(config, &among.eval)?;
    let (model, meta) = eval::newest(config, store, run, dev)?;
    if (meta.model_digest.to_string(), made_by(config, eval)) != (among.model_digest.clone(), among.made_by.clone()) {
        return Err(SearchError::Other { found: among.step, newest: meta.step });
    }
    if model.config().experts().is_some_and(ExpertsConfig::depends_on_batch) {
        return Err(SearchError::InCompany);
    }
    if matches!(query, Query::Text(text) if text.trim().is_empty()) {
        return Err(SearchError::Empty);
    }
    eval::check_has_text(eval)?;
    let embedder = Embedder::new(store, &model, &meta.tokenizer_digest)?;
    // A text is in the space of each medium; a file in that of its own.
    let queries: Vec<(Stream, Vec<f32>)> = match query {
        Query::Text(text) => media_streams(eval.task())
            .into_iter()
            .map(|stream| Ok((stream, embedder.texts(&[vec![text.clone()]], stream, eval)?)))
            .collect::<Result<_, EvalError>>()?,
        Query::File(path) => vec![of_file(&embedder, eval, path)?],
    };
    let media = |row: &EmbeddedRow, stream| row.stream == stream;
    let captions = |row: &EmbeddedRow, stream| row.stream == Stream::Text && row.space == stream;
    Ok(Found {
        media: nearest(among, &queries, &media, &|row| (row.row, ""), n),
        captions: nearest(among, &queries, &captions, &|row| (0, &row.text), n),
    })
}

/// The `n` rows nearest to `queries`, best first. What `same` says of two rows alike is one hit, whose scores in the spaces of the queries
/// are added, as evaluations add them.
fn nearest(
    among: &Embeddings,
    queries: &[(Stream, Vec<f32>)],
    wanted: &dyn Fn(&EmbeddedRow, Stream) -> bool,
    same: &dyn for<'r> Fn(&'r EmbeddedRow) -> (u64, &'r str),
    n: usize,
) -> Vec<Hit> {
    let mut place: HashMap<(u64, &str), usize> = HashMap::new();
    let (mut scores, mut rows) = (Vec::new(), Vec::new());
    for (stream, vector) in queries {
        for row in among.rows.iter().filter(|row| wanted(row, *stream)) {
            let score: f32 = row.vector.iter().zip(vector).map(|(a, b)| a * b).sum();
            match place.entry(same(row)) {
                Entry::Occupied(at) => scores[*at.get()] += score,
                Entry::Vacant(at) => {
                    at.insert(rows.len());
                    scores.push(score);
                    rows.push(row);
                }
            }
        }
    }
    let hit =
        |i: usize| Hit { score: scores[i], row: rows[i].row, key: rows[i].key.clone(), text: rows[i].text.clone() };
    top_k(&scores, n).into_iter().map(hit).collect()
}

/// What besides the checkpoint decides a vector: two runs of a program that agree in it make the same ones.
fn made_by(config: &TrainConfig, eval: &Eval) -> String {
    let spelled = serde_json::to_vec(&(&config.model, config.optimizer.ema > 0.0, eval.mixture()));
    let mut hasher = blake3::Hasher::new();
    hasher.update(&spelled.unwrap_or_default());
    // Vectors of one window were made before there could be several.
    if eval.n_windows > 1 {
        hasher.update(format!("windows {}", eval.n_windows).as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The first of the evaluation's media that the file is.
fn of_file<D: Backend>(
    embedder: &Embedder<'_, D>,
    eval: &Eval,
    path: &Path,
) -> Result<(Stream, Vec<f32>), SearchError> {
    let bytes = std::fs::read(path).map_err(|source| SearchError::Read { path: path.to_owned(), source })?;
    let mut failed = None;
    for &medium in &eval.media {
        let windows = match batches_of_file(&bytes, medium, &spec_of(eval)) {
            Ok(windows) => windows,
            Err(fault) => {
                failed.get_or_insert(fault);
                continue;
            }
        };
        let (mut stream, mut vectors) = (None, Vec::new());
        for window in &windows {
            let (resolution, embedded) = match (&window.vision, &window.audio) {
                (Some(vision), _) => (vision.resolution, embedder.model().embed_vision(vision, Stream::Text)),
                (None, Some(audio)) => (audio.resolution, embedder.model().embed_audio(audio, Stream::Text)),
                (None, None) => continue,
            };
            stream = Some(Stream::of(resolution));
            vectors.push(embedded.map_err(EvalError::from)?);
        }
        if let Some(stream) = stream {
            return Ok((stream, mean_of_windows(vectors)));
        }
    }
    let wanted = eval.media.iter().map(|m| m.name()).collect::<Vec<_>>().join(" or ");
    let source = failed.unwrap_or(ContentFault::NoMedium);
    Err(SearchError::File { path: path.to_owned(), eval: eval.name.clone(), wanted, source })
}
