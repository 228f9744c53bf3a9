//! What any step trains on, past or future, without a batch being made.
//!
//! In: a store, a mixture, a step. Out: the step's examples by name: corpus, shard, row, key, and the caption, crop, flip and
//! frames that are drawn for each; colours, gain, shift and dropped tokens are drawn too, and not said.
//! Never: a medium read, a step counted: it says what the plan says. A record that lacks a sound, label or
//! caption where the task wants one is marked; it, and one that turns out not to decode, is replaced when its batch is made.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int32Type;
use arrow::record_batch::RecordBatch;
use imp_schemas::batch::ExampleId;
use imp_schemas::cursor::Cursor;
use imp_schemas::modality::{Modality, RecordKind};
use imp_schemas::record::column;
use imp_schemas::resolution::Resolution;
use imp_schemas::store::Store;
use imp_schemas::task::Mixture;
use serde::Serialize;

use crate::augment::{CropBox, Draw, Draws, random_box};
use crate::config::LoaderSettings;
use crate::corpora::Split;
use crate::decode::image::reduced_size;
use crate::decode::video::clip_frames;
use crate::error::LoaderError;
use crate::fetch::ShardRows;
use crate::open;
use crate::recipe::Recipe;

/// The plan of one step, in words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedStep {
    pub step: u64,
    pub task: String,
    /// Index among the task's views, and the sizes that it has.
    pub view: usize,
    pub sizes: BTreeMap<&'static str, String>,
    /// Index of the first example among all that the task consumes, or its aspect bucket.
    pub first: u64,
    pub examples: Vec<ExplainedExample>,
}

/// One example of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedExample {
    pub corpus: String,
    pub split: String,
    /// Relative to the store's root.
    pub shard: String,
    /// Within the shard.
    pub row: u64,
    pub key: String,
    /// How often the task had gone through its rows before.
    pub epoch: u64,
    /// Index among the record's captions; where a view shows several, of the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption: Option<u64>,
    /// Of the picture, or of each frame, after it was reduced to the working side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<ExplainedCrop>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flipped: Option<bool>,
    /// Source frames.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<usize>,
    /// What the task wants and the record does not have, so that another one stands in for it: `label`, `sound` or `caption`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacks: Option<&'static str>,
}

/// A part of a picture, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExplainedCrop {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
    /// The whole.
    pub of: (usize, usize),
}

/// What `step` trains on, by the snapshots that `run` began with; `None`: by the newest ones.
///
/// # Errors
/// As [`crate::Loader::open`]; a shard cannot be read.
pub fn explain(
    store: &Store,
    mixture: &Mixture,
    run: Option<&Cursor>,
    step: u64,
) -> Result<ExplainedStep, LoaderError> {
    let opened = open::open(store, mixture, &LoaderSettings::default(), run)?;
    if let Some(cursor) = run {
        open::resume(&opened.plan, mixture, &opened.manifests, cursor)?;
    }
    let plan = opened.plan.batch_at(step);
    let recipe = &opened.recipes[plan.task_idx];
    let view = &recipe.views[plan.view_idx];
    let mut shards: BTreeMap<(usize, usize), ShardRows> = BTreeMap::new();
    for (i, example) in plan.examples.iter().enumerate() {
        let split_idx = recipe.splits[example.corpus_idx as usize];
        let (shard_idx, row) = opened.splits[split_idx].locate(example.row);
        shards.entry((split_idx, shard_idx)).or_default().entry(row).or_default().push(i);
    }
    let mut examples: Vec<Option<ExplainedExample>> = vec![None; plan.examples.len()];
    for ((split_idx, shard_idx), rows) in shards {
        let split = &opened.splits[split_idx];
        let numbers: Vec<u64> = rows.keys().copied().collect();
        let batch = split
            .reader(store, shard_idx)?
            .read(&numbers, columns(split.kind))
            .map_err(|source| LoaderError::Shard { corpus: split.corpus.clone(), source })?;
        for (nth, (row, wanted)) in rows.into_iter().enumerate() {
            for i in wanted {
                let mut example = drawn(recipe, view.stride(), recipe.vision(view), &plan.examples[i], &batch, nth);
                example.lacks = lacks(recipe, &batch, nth, example.caption);
                example.place(split, shard_idx, row);
                examples[i] = Some(example);
            }
        }
    }
    let sizes = [("vision", recipe.vision(view)), ("audio", recipe.audio(view)), ("text", recipe.text(view))];
    Ok(ExplainedStep {
        step,
        task: recipe.name.clone(),
        view: plan.view_idx,
        sizes: sizes.into_iter().filter_map(|(name, size)| Some((name, size?.to_string()))).collect(),
        first: plan.first,
        examples: examples.into_iter().flatten().collect(),
    })
}

fn columns(kind: RecordKind) -> &'static [&'static str] {
    match kind {
        RecordKind::ImageText => &[column::KEY, column::LABEL_ID, column::TOKENS, column::WIDTH, column::HEIGHT],
        RecordKind::VideoText => &[
            column::KEY,
            column::LABEL_ID,
            column::TOKENS,
            column::WIDTH,
            column::HEIGHT,
            column::NUM_FRAMES,
            column::HAS_AUDIO,
        ],
        RecordKind::AudioText => &[column::KEY, column::LABEL_ID, column::TOKENS],
    }
}

/// What decoding would not find in the record in row `i` of `batch`, of which `caption` was drawn.
fn lacks(recipe: &Recipe, batch: &RecordBatch, i: usize, caption: Option<u64>) -> Option<&'static str> {
    let column = |name: &str| batch.column_by_name(name);
    if recipe.needs_label && column(column::LABEL_ID).is_none_or(|labels| labels.is_null(i)) {
        return Some("label");
    }
    let has_audio = column(column::HAS_AUDIO).and_then(|column| column.as_boolean_opt());
    if recipe.has(Modality::Audio) && has_audio.is_some_and(|has| has.is_valid(i) && !has.value(i)) {
        return Some("sound");
    }
    let n_ids = || {
        let captions = column(column::TOKENS)?.as_list_opt::<i32>()?.value(i);
        let ids = captions.as_list_opt::<i32>()?;
        usize::try_from(caption?).ok().filter(|&nth| nth < ids.len()).map(|nth| ids.value_length(nth))
    };
    (recipe.has(Modality::Text) && n_ids().is_none_or(|n| n == 0)).then_some("caption")
}

/// What is drawn for the record in row `i` of `batch`, by the draws that decoding makes.
fn drawn(
    recipe: &Recipe,
    stride: usize,
    vision: Option<Resolution>,
    id: &ExampleId,
    batch: &RecordBatch,
    i: usize,
) -> ExplainedExample {
    let number = |name: &str| {
        let column = batch.column_by_name(name)?.as_primitive_opt::<Int32Type>()?.clone();
        let value = if column.is_valid(i) { usize::try_from(column.value(i)).ok() } else { None };
        value.filter(|&value| value > 0)
    };
    let draws = Draws::new(recipe.seed, recipe.task_idx, id);
    let mut example = ExplainedExample {
        corpus: String::new(),
        split: String::new(),
        shard: String::new(),
        row: 0,
        key: batch
            .column_by_name(column::KEY)
            .and_then(|keys| keys.as_string_opt::<i32>())
            .map_or_else(String::new, |keys| keys.value(i).to_owned()),
        epoch: id.epoch,
        caption: None,
        crop: None,
        flipped: None,
        frames: Vec::new(),
        lacks: None,
    };
    if recipe.has(Modality::Text) {
        let captions = batch.column_by_name(column::TOKENS).and_then(|tokens| tokens.as_list_opt::<i32>());
        let n = captions.filter(|lists| lists.is_valid(i)).map_or(0, |lists| lists.value_length(i));
        let n = u64::try_from(n).unwrap_or(0);
        example.caption = (n > 0).then(|| draws.rng(Draw::Caption).below(n));
    }
    let (Some(vision), Some(augment)) = (vision, &recipe.augment) else { return example };
    let shape = match vision {
        Resolution::Image { height, width } | Resolution::Video { height, width, .. } => (width, height),
        Resolution::Audio { .. } | Resolution::Waveform { .. } | Resolution::Text { .. } => return example,
    };
    if let (Some(width), Some(height)) = (number(column::WIDTH), number(column::HEIGHT)) {
        let (width, height) = reduced_size(width, height, recipe.working_side);
        let CropBox { left, top, width: across, height: down } =
            random_box(&mut draws.rng(Draw::Crop), width, height, shape, augment);
        example.crop = Some(ExplainedCrop { left, top, width: across, height: down, of: (width, height) });
        example.flipped = augment.flip.then(|| draws.rng(Draw::Flip).chance(0.5));
    }
    if let (Resolution::Video { frames, .. }, Some(n)) = (vision, number(column::NUM_FRAMES)) {
        example.frames = clip_frames(n, frames, stride, |room| draws.rng(Draw::Start).below(room as u64 + 1) as usize);
    }
    example
}

impl ExplainedExample {
    fn place(&mut self, split: &Split, shard_idx: usize, row: u64) {
        self.corpus.clone_from(&split.corpus);
        self.split.clone_from(&split.split);
        self.shard = split.shard_key(shard_idx).to_string();
        self.row = row;
    }
}
