//! Embeds the media of a split, and sentences, in the common spaces of their pairs.

use std::collections::BTreeMap;

use imp_loader::{EvalLoader, EvalSpec, LoaderSettings};
use imp_schemas::batch::TextBatch;
use imp_schemas::manifest::Manifest;
use imp_schemas::resolution::Resolution;
use imp_schemas::shard::{Digest, tokenizer_key};
use imp_schemas::store::Store;
use tokenizers::Tokenizer;

use super::EvalError;
use super::zero_shot::check_labels;
use crate::config::Eval;
use crate::model::{Imp, Stream};
use crate::ops::Backend;
use crate::train::media_streams;

/// Sentences that go through the encoder together.
const TEXT_BATCH: usize = 128;

/// A model with the tokenizer it was trained with.
pub struct Embedder<'a, D: Backend> {
    store: &'a Store,
    model: &'a Imp<D>,
    tokenizer: Tokenizer,
    tokenizer_digest: Digest,
}

/// The embedded examples of a split, in row order.
pub struct Items {
    pub manifest: Manifest,
    /// For each medium of the evaluation, `[n, common]`, unit length; of several windows the mean of their unit vectors, at unit length.
    pub media: Vec<(Stream, Vec<f32>)>,
    /// Indices into the manifest's classes, of each example; the first label first, none where the record has none.
    pub labels: Vec<Vec<u32>>,
    pub captions: Vec<Vec<String>>,
    pub keys: Vec<String>,
    pub rows: Vec<u64>,
}

/// What a linear probe sees of a split.
pub struct Features {
    pub width: usize,
    /// `[n, width]`
    pub values: Vec<f32>,
    /// Indices into `classes` for each example: at least one, the first label first.
    pub labels: Vec<Vec<u32>>,
    pub classes: Vec<String>,
}

/// Examples that a linear probe's classifier is trained on at most.
pub const MOST_FEATURES: u64 = 50_000;

impl Items {
    /// Examples.
    pub fn n(&self) -> usize {
        self.rows.len()
    }

    /// Scores of all texts against all examples, summed over the media: `[n, n_texts]`. `texts` holds for each medium, in
    /// the same order, `[n_texts, common]`.
    pub fn scores(&self, texts: &[Vec<f32>], n_texts: usize) -> Vec<f32> {
        let mut scores = vec![0.0; self.n() * n_texts];
        for ((_, media), texts) in self.media.iter().zip(texts) {
            let width = texts.len() / n_texts.max(1);
            for (row, medium) in scores.chunks_mut(n_texts).zip(media.chunks(width)) {
                for (score, text) in row.iter_mut().zip(texts.chunks(width)) {
                    *score += medium.iter().zip(text).map(|(a, b)| a * b).sum::<f32>();
                }
            }
        }
        scores
    }
}

impl<'a, D: Backend> Embedder<'a, D> {
    /// # Errors
    /// The tokenizer is missing, damaged, or not readable.
    pub fn new(store: &'a Store, model: &'a Imp<D>, tokenizer_digest: &Digest) -> Result<Self, EvalError> {
        let key = tokenizer_key(tokenizer_digest);
        let broken = |detail: String| EvalError::Tokenizer { key: key.clone(), detail };
        let bytes = store.get(&key)?;
        if Digest::of(&bytes) != *tokenizer_digest {
            return Err(broken("its bytes do not have the digest in its name".to_owned()));
        }
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| broken(e.to_string()))?;
        // As at ingest: a caption that spells `<pad>` is text.
        tokenizer.set_encode_special_tokens(true);
        Ok(Self { store, model, tokenizer, tokenizer_digest: tokenizer_digest.clone() })
    }

    pub fn device(&self) -> &D {
        self.model.device()
    }

    /// The encoder's features of a split: of every example, or, where it has more than `most`, of every n-th batch, from all over it.
    ///
    /// # Errors
    /// The split cannot be read or gives nothing, or a record has no label.
    pub fn features(
        &self,
        eval: &Eval,
        split: &str,
        most: u64,
        settings: &LoaderSettings,
    ) -> Result<Features, EvalError> {
        let loader = EvalLoader::open(self.store, &EvalSpec { split, ..spec_of(eval) }, settings)?;
        let every = loader.n_rows().div_ceil(most.max(1)).max(1) as usize;
        let classes = loader.snapshot().manifest.classes.clone();
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        for (i, batch) in loader.enumerate() {
            let batch = batch?;
            if !(i / eval.n_windows).is_multiple_of(every) {
                continue;
            }
            // The logits of a linear classifier, averaged over windows, are those of the windows' mean.
            add_window(&mut values, self.model.features(&batch.batch)?, batch.window_idx, eval.n_windows);
            if batch.window_idx > 0 {
                continue;
            }
            check_labels(eval, &batch.labels, &batch.keys)?;
            labels.extend(batch.labels);
        }
        if labels.is_empty() {
            let found = format!("split `{split}` of corpus `{}` gives no example", eval.task().corpora()[0]);
            let wanted = "at least one record with what it embeds";
            return Err(EvalError::Corpus { name: eval.name.clone(), found, wanted });
        }
        check_finite(eval, &values)?;
        Ok(Features { width: values.len() / labels.len(), values, labels, classes })
    }

    /// Embeds every example of the evaluation's split.
    ///
    /// # Errors
    /// The split cannot be read, or was tokenised by another tokenizer.
    pub fn items(&self, eval: &Eval, settings: &LoaderSettings) -> Result<Items, EvalError> {
        let corpus = &eval.task().corpora()[0];
        let manifest = self.store.manifest(corpus)?.manifest;
        if manifest.tokenizer.digest != self.tokenizer_digest {
            return Err(EvalError::OtherTokenizer {
                corpus: corpus.clone(),
                found: manifest.tokenizer.digest.short().to_owned(),
                wanted: self.tokenizer_digest.short().to_owned(),
            });
        }
        let mut items = Items {
            manifest,
            media: media_streams(eval.task()).into_iter().map(|stream| (stream, Vec::new())).collect(),
            labels: Vec::new(),
            captions: Vec::new(),
            keys: Vec::new(),
            rows: Vec::new(),
        };
        for batch in EvalLoader::open(self.store, &spec_of(eval), settings)? {
            let batch = batch?;
            for (stream, embedded) in &mut items.media {
                let more = match stream {
                    Stream::Vision => batch.batch.vision.as_ref().map(|v| self.model.embed_vision(v, Stream::Text)),
                    Stream::Spectrogram | Stream::Waveform => {
                        batch.batch.audio.as_ref().map(|a| self.model.embed_audio(a, Stream::Text))
                    }
                    Stream::Text => None,
                };
                add_window(embedded, more.transpose()?.unwrap_or_default(), batch.window_idx, eval.n_windows);
            }
            if batch.window_idx > 0 {
                continue;
            }
            items.labels.extend(batch.labels);
            items.captions.extend(batch.captions);
            items.keys.extend(batch.keys);
            items.rows.extend(batch.rows);
        }
        if items.n() == 0 {
            let found = format!("split `{}` of corpus `{corpus}` gives no example", eval.task().split());
            let wanted = "at least one record with what it embeds";
            return Err(EvalError::Corpus { name: eval.name.clone(), found, wanted });
        }
        let n = items.n();
        for (_, vectors) in &mut items.media {
            check_finite(eval, vectors)?;
            if eval.n_windows > 1 {
                normalise(vectors, n);
            }
        }
        Ok(items)
    }

    /// Embeds groups of sentences for a pair with `target`; sentences of a group are averaged before they are brought to
    /// unit length. Returns `[n_groups, common]`.
    ///
    /// # Errors
    /// A sentence cannot be tokenised.
    pub fn texts(&self, groups: &[Vec<String>], target: Stream, eval: &Eval) -> Result<Vec<f32>, EvalError> {
        let n_tokens = match eval.task().views()[0].text() {
            Some(Resolution::Text { tokens }) => tokens,
            _ => 0,
        };
        let sentences: Vec<&String> = groups.iter().flatten().collect();
        let mut common: Vec<Vec<f32>> = Vec::with_capacity(sentences.len());
        for chunk in sentences.chunks(TEXT_BATCH) {
            let mut ids = Vec::with_capacity(chunk.len() * n_tokens);
            for sentence in chunk {
                ids.extend(self.tokenise(sentence, n_tokens)?);
            }
            let embedded = self.model.common_text(&TextBatch { n_tokens, ids }, target)?;
            let width = embedded.len() / chunk.len();
            common.extend(embedded.chunks(width).map(<[f32]>::to_vec));
        }
        let mut means = Vec::new();
        let mut rest = common.into_iter();
        for group in groups {
            let members: Vec<Vec<f32>> = rest.by_ref().take(group.len()).collect();
            let width = members.first().map_or(0, Vec::len);
            means.extend((0..width).map(|i| members.iter().map(|m| m[i]).sum::<f32>() / members.len() as f32));
        }
        normalise(&mut means, groups.len());
        Ok(means)
    }

    /// The model that embeds.
    pub fn model(&self) -> &Imp<D> {
        self.model
    }

    fn tokenise(&self, sentence: &str, n_tokens: usize) -> Result<Vec<i32>, EvalError> {
        let key = tokenizer_key(&self.tokenizer_digest);
        let encoded = self
            .tokenizer
            .encode(sentence, true)
            .map_err(|e| EvalError::Tokenizer { key, detail: format!("`{sentence}`: {e}") })?;
        let mut ids: Vec<i32> = encoded.get_ids().iter().map(|&id| id as i32).collect();
        ids.resize(n_tokens, 0);
        Ok(ids)
    }
}

/// What an evaluation reads.
pub fn spec_of(eval: &Eval) -> EvalSpec<'_> {
    let task = eval.task();
    let view = &task.views()[0];
    EvalSpec {
        working_side: task.working_side(),
        n: eval.batch,
        n_windows: eval.n_windows,
        ..EvalSpec::new(&task.corpora()[0], task.split(), &eval.media, view, eval.mixture())
    }
}

/// A model that broke in training says so, instead of scores.
fn check_finite(eval: &Eval, values: &[f32]) -> Result<(), EvalError> {
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(()),
        false => Err(EvalError::NotFinite { name: eval.name.clone() }),
    }
}

/// The vector of one example from those of its windows, at unit length.
pub(crate) fn mean_of_windows(windows: Vec<Vec<f32>>) -> Vec<f32> {
    let (mut mean, of) = (Vec::new(), windows.len());
    for (window_idx, vector) in windows.into_iter().enumerate() {
        add_window(&mut mean, vector, window_idx, of);
    }
    if of > 1 {
        normalise(&mut mean, 1);
    }
    mean
}

/// Adds to `means` what the window with that index, of `of`, gives of the examples that are last in it; the first window puts them there.
fn add_window(means: &mut Vec<f32>, values: Vec<f32>, window_idx: usize, of: usize) {
    let share = 1.0 / of as f32;
    match window_idx {
        0 => means.extend(values.into_iter().map(|v| v * share)),
        _ => {
            let at = means.len().saturating_sub(values.len());
            means[at..].iter_mut().zip(values).for_each(|(mean, v)| *mean += v * share);
        }
    }
}

/// Brings each of `n` rows to unit length; 1e-6 is added to the length, as in the loss.
fn normalise(values: &mut [f32], n: usize) {
    let width = values.len() / n.max(1);
    for row in values.chunks_mut(width.max(1)) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt() + 1e-6;
        row.iter_mut().for_each(|v| *v /= norm);
    }
}

/// Texts without repetition, and for each example the indices of its own.
pub fn distinct(captions: &[Vec<String>]) -> (Vec<String>, Vec<Vec<usize>>) {
    let mut texts = Vec::new();
    let mut place: BTreeMap<String, usize> = BTreeMap::new();
    let mut own = Vec::with_capacity(captions.len());
    for group in captions {
        let mut indices = Vec::new();
        for caption in group {
            let next = texts.len();
            let idx = *place.entry(caption.clone()).or_insert(next);
            if idx == next {
                texts.push(caption.clone());
            }
            indices.push(idx);
        }
        own.push(indices);
    }
    (texts, own)
}
