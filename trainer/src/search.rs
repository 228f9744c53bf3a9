//! What a trained model is tried with first: a corpus's embeddings, and what is nearest to a text or a file among them.
//!
//! In: the newest checkpoint of a run, an evaluation that says which split is embedded and at which size, a query. Out: embeddings; the
//! nearest media and captions. Never: vectors of two checkpoints compared, an index that is not exact.

mod table;

use std::path::PathBuf;

use imp_loader::{ContentFault, batch_of_file};
use imp_schemas::store::Store;
use serde::Serialize;

use crate::config::{Eval, TrainConfig};
use crate::eval::{self, Embedder, EvalError, distinct, spec_of, top_k};
use crate::model::Stream;
use crate::ops::Backend;
use crate::train::media_streams;

pub use table::{TableError, read, write};

/// Unit vectors of a split, and where they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Updates that the checkpoint had seen.
    pub step: u64,
    /// Of the checkpoint's parameters.
    pub model_digest: String,
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
    /// A picture, a clip or a sound, as the evaluation has them.
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
    /// Cosine.
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
        "the embeddings are of the checkpoint after {found} steps, the run's newest is after {newest}; run `imp-train embed` again"
    )]
    OtherCheckpoint { found: u64, newest: u64 },
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
    eval::check_trained(&model, eval)?;
    let embedder = Embedder::new(store, &model, &meta.tokenizer_digest)?;
    let items = embedder.items(eval, &config.loader)?;
    let width = model.config().common_width();
    let (texts, own) = distinct(&items.captions);
    let groups: Vec<Vec<String>> = texts.iter().map(|text| vec![text.clone()]).collect();
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
            let first = own.iter().position(|own| own.contains(&idx)).unwrap_or(0);
            rows.push(EmbeddedRow {
                stream: Stream::Text,
                space: *stream,
                row: items.rows[first],
                key: items.keys[first].clone(),
                text: texts[idx].clone(),
                vector: vector.to_vec(),
            });
        }
    }
    Ok(Embeddings {
        step: meta.step,
        model_digest: meta.model_digest.to_string(),
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
    if (meta.step, meta.model_digest.to_string()) != (among.step, among.model_digest.clone()) {
        return Err(SearchError::OtherCheckpoint { found: among.step, newest: meta.step });
    }
    eval::check_trained(&model, eval)?;
    let embedder = Embedder::new(store, &model, &meta.tokenizer_digest)?;
    // A text is in the space of each medium; a file in that of its own.
    let queries: Vec<(Stream, Vec<f32>)> = match query {
        Query::Text(text) => media_streams(&eval.media)
            .into_iter()
            .map(|stream| Ok((stream, embedder.texts(&[vec![text.clone()]], stream, eval)?)))
            .collect::<Result<_, EvalError>>()?,
        Query::File(path) => vec![of_file(&embedder, eval, path)?],
    };
    let hits = |wanted: &dyn Fn(&EmbeddedRow, Stream) -> bool| {
        let scored: Vec<Hit> = queries
            .iter()
            .flat_map(|(stream, vector)| {
                let near = among.rows.iter().filter(|row| wanted(row, *stream));
                near.map(move |row| Hit {
                    score: row.vector.iter().zip(vector).map(|(a, b)| a * b).sum(),
                    row: row.row,
                    key: row.key.clone(),
                    text: row.text.clone(),
                })
            })
            .collect();
        let scores: Vec<f32> = scored.iter().map(|hit| hit.score).collect();
        top_k(&scores, n).into_iter().map(|i| scored[i].clone()).collect()
    };
    Ok(Found {
        media: hits(&|row, stream| row.stream == stream),
        captions: hits(&|row, stream| row.stream == Stream::Text && row.space == stream),
    })
}

/// The first of the evaluation's media that the file is.
fn of_file<D: Backend>(
    embedder: &Embedder<'_, D>,
    eval: &Eval,
    path: &PathBuf,
) -> Result<(Stream, Vec<f32>), SearchError> {
    let bytes = std::fs::read(path).map_err(|source| SearchError::Read { path: path.clone(), source })?;
    let mut failed = None;
    for &medium in &eval.media {
        let batch = match batch_of_file(&bytes, medium, &spec_of(eval)) {
            Ok(batch) => batch,
            Err(fault) => {
                failed.get_or_insert(fault);
                continue;
            }
        };
        let embedded = match (&batch.vision, &batch.audio) {
            (Some(vision), _) => embedder.model().embed_vision(vision, Stream::Text),
            (None, Some(audio)) => embedder.model().embed_audio(audio, Stream::Text),
            (None, None) => continue,
        };
        return Ok((Stream::from(medium), embedded.map_err(EvalError::from)?));
    }
    let wanted = eval.media.iter().map(|m| m.name()).collect::<Vec<_>>().join(" or ");
    let source = failed.unwrap_or(ContentFault::NoMedium);
    Err(SearchError::File { path: path.clone(), eval: eval.name.clone(), wanted, source })
}
