//! What a step trains on: tasks, their views, and the mixture that alternates between them.
//!
//! A task is (corpora, modalities, objective, resolution). Its views are the sizes at which its batches come; one batch has
//! one view. `RawMixture` mirrors the config; `Mixture` is what the rest of the code gets, checked.
//! Source: Akbari et al. 2023, arXiv:2305.06324 (alternating gradient descent).

use serde::{Deserialize, Serialize};

mod check;
mod objective;
mod phases;

use crate::modality::Modality;
use crate::resolution::{Patching, Resolution, n_kept};
use crate::spectrogram::SpectrogramSpec;

pub use check::TaskError;
pub use objective::{Objective, Objectives};
pub use phases::{Phase, RawChange, RawPhase, Shares, Skip};

/// How the task of a step is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Alternation {
    /// Shares of steps follow the tasks' weights exactly: the task furthest behind its share is next.
    #[default]
    Weights,
    /// Each step draws its task by weight, from the seed and the step alone.
    Random,
    /// The release's loop: pass after pass over the tasks in order, task k firing every `interval` passes. Counted per
    /// task, not per dataset name as the release does (IMP.md, trap T2).
    Intervals,
}

/// How much of a JPEG is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decode {
    /// Every pixel, to RGB, as Pillow, OpenCV and torchvision have it to the bit; then crop and resize.
    #[default]
    Full,
    /// No more than the view needs: planes of brightness and colour at 1, 1/2, 1/4 or 1/8 of the size, and no row below the crop,
    /// cropped and resized before they become RGB. With a working side, the whole of the picture at that side, which is then
    /// cropped; without one nothing is kept in the cache. Pixels differ from `full` by about a level on average at the whole size,
    /// two at a half; `ops/benches/README.md` says what is measured. Other codecs, and JPEGs that are turned or not YCbCr, are
    /// decoded in full. Damage below a crop goes unseen. Frames of clips are decoded whole, and their planes cropped and resized in
    /// the same way.
    Scaled,
}

impl Decode {
    fn is_full(&self) -> bool {
        *self == Self::Full
    }
}

/// Draws that change an example without changing what it shows. Training only.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Share of the picture's area that a crop keeps, least and greatest; `[1, 1]` with `crop_aspect = [1, 1]` is a centre crop.
    pub crop_area: [f64; 2],
    /// Width over height of the crop, as a multiple of the view's, least and greatest, log-uniform: 1 shows things in their
    /// shape.
    pub crop_aspect: [f64; 2],
    /// Mirror left and right with probability one half. Off by default: captions name directions.
    pub flip: bool,
    /// Probability of a change of brightness, contrast, saturation and hue. Off by default: captions name colours.
    pub jitter: f64,
    /// Greatest change of loudness, in decibels, either way.
    pub gain_db: f64,
    /// Sounds start at a random place: a short one anywhere in its frame, a long one cut anywhere.
    pub time_shift: bool,
}

impl Default for Augment {
    fn default() -> Self {
        Self {
            crop_area: [1.0, 1.0],
            crop_aspect: [1.0, 1.0],
            flip: false,
            jitter: 0.0,
            gain_db: 0.0,
            time_shift: true,
        }
    }
}

/// One way to see a task's examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawView {
    /// Share among the task's views.
    #[serde(default = "one")]
    pub weight: f64,
    /// Frames of a clip; absent for pictures.
    pub frames: Option<usize>,
    /// Source frames from one frame of the clip to the next.
    #[serde(default = "one_frame")]
    pub stride: usize,
    pub height: Option<usize>,
    pub width: Option<usize>,
    pub spectrogram_frames: Option<usize>,
    /// Samples at `spectrogram.sample_rate`, in place of a spectrogram of them. The same kind of sound at all views of a task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waveform_samples: Option<usize>,
    #[serde(default)]
    pub text_tokens: Option<usize>,
    /// Captions of each example in a batch, as instances of one bag (MIL-NCE): each may be what the medium shows. The one that is
    /// drawn and those after it in the record, from the start again where there are fewer.
    #[serde(default = "one_caption")]
    pub captions: usize,
    /// Share of visual and sound tokens that DropToken drops.
    #[serde(default)]
    pub drop_rate: f64,
}

fn one() -> f64 {
    1.0
}

fn one_caption() -> usize {
    1
}

fn one_frame() -> usize {
    1
}

/// One task, as the config spells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTask {
    pub name: String,
    pub corpora: Vec<String>,
    #[serde(default = "train_split")]
    pub split: String,
    pub modalities: Vec<Modality>,
    /// One, or several whose sum each step minimises: `"nce"`, `["nce", "softmax"]`.
    pub objective: Objectives,
    /// Share of a label's weight that goes to all classes alike, under `softmax` and `sigmoid`.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Share of steps, for `weights` and `random`.
    pub weight: Option<f64>,
    /// Passes between two steps of this task, for `intervals`.
    pub interval: Option<u64>,
    /// Examples of a batch.
    pub batch: Option<usize>,
    /// Tokens of a batch, all modalities together, after DropToken; the batch size follows from the view.
    pub token_budget: Option<usize>,
    pub views: Vec<RawView>,
    #[serde(default)]
    pub augment: Augment,
    /// Shorter side to which pictures and frames are reduced before they are cropped, pixels. Small working copies are
    /// what the loader's cache of decoded media holds. Absent: full size.
    pub working_side: Option<usize>,
    #[serde(default)]
    pub decode: Decode,
    /// Each record comes at the views whose width over height is nearest to its own, and a batch holds records of one shape. Shapes
    /// are read from the width and height columns when the corpora are opened, 4 bytes a row. A shape with fewer records than a batch
    /// lends them to its neighbour.
    #[serde(default)]
    pub aspect_buckets: bool,
}

fn train_split() -> String {
    "train".to_owned()
}

/// The mixture, as the config spells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMixture {
    pub seed: u64,
    #[serde(default)]
    pub alternation: Alternation,
    /// Rows that are shuffled together; absent: the whole split. Smaller keeps reads of remote shards local.
    pub shuffle_radius: Option<u64>,
    #[serde(default)]
    pub patching: Patching,
    #[serde(default)]
    pub spectrogram: SpectrogramSpec,
    pub tasks: Vec<RawTask>,
    /// Changes of shares at given steps, in order. Those ahead of a checkpoint may be added or changed when it is resumed.
    #[serde(default)]
    pub phases: Vec<RawPhase>,
    /// Windows of steps to leave out, in order: see [`Skip`]. Those ahead of a checkpoint, or at its step, may be added.
    #[serde(default)]
    pub skip: Vec<Skip>,
}

/// One way to see a task's examples. Holds: every size is cut by the patching; `n` is at least 1 (2 under NCE).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct View {
    weight: f64,
    vision: Option<Resolution>,
    stride: usize,
    audio: Option<Resolution>,
    text: Option<Resolution>,
    // Absent from the digest of mixtures that do without: checkpoints of before go on.
    #[serde(skip_serializing_if = "is_one")]
    captions: usize,
    drop_rate: f64,
    n: usize,
}

impl View {
    /// Share among the task's views, not normalised.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// [`Resolution::Image`] or [`Resolution::Video`] if the task has a visual modality.
    pub fn vision(&self) -> Option<Resolution> {
        self.vision
    }

    /// Width and height in pixels, if there is a picture or a clip.
    pub fn size(&self) -> Option<(usize, usize)> {
        match self.vision? {
            Resolution::Image { height, width } | Resolution::Video { height, width, .. } => Some((width, height)),
            Resolution::Audio { .. } | Resolution::Waveform { .. } | Resolution::Text { .. } => None,
        }
    }

    /// Source frames from one frame of a clip to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// [`Resolution::Audio`] or [`Resolution::Waveform`] if the task has sound.
    pub fn audio(&self) -> Option<Resolution> {
        self.audio
    }

    /// [`Resolution::Text`] if the task has text.
    pub fn text(&self) -> Option<Resolution> {
        self.text
    }

    /// The size of what the task has of `modality`.
    pub fn resolution(&self, modality: Modality) -> Option<Resolution> {
        [self.vision, self.audio, self.text].into_iter().flatten().find(|r| r.modality() == modality)
    }

    /// Captions of each example; see [`RawView::captions`].
    pub fn n_captions(&self) -> usize {
        self.captions
    }

    /// Share of visual and sound tokens that DropToken drops.
    pub fn drop_rate(&self) -> f64 {
        self.drop_rate
    }

    /// Examples of a batch at this view.
    pub fn n(&self) -> usize {
        self.n
    }
}

/// One task, checked. Holds: at least one corpus and one view; NCE has at least two modalities, an objective over classes one medium
/// and one corpus; weight and interval are positive; sounds are spectrograms at all views, or waveforms at all.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Task {
    name: String,
    corpora: Vec<String>,
    split: String,
    modalities: Vec<Modality>,
    objective: Objectives,
    // Absent from the digest of mixtures that do without: checkpoints of before go on.
    #[serde(skip_serializing_if = "is_zero")]
    label_smoothing: f64,
    weight: f64,
    interval: u64,
    views: Vec<View>,
    augment: Augment,
    working_side: Option<usize>,
    // Absent from the digest of mixtures that do without: checkpoints of before go on.
    #[serde(skip_serializing_if = "Decode::is_full")]
    decode: Decode,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    aspect_buckets: bool,
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Task {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn corpora(&self) -> &[String] {
        &self.corpora
    }

    pub fn split(&self) -> &str {
        &self.split
    }

    /// In the config's order, without repetition.
    pub fn modalities(&self) -> &[Modality] {
        &self.modalities
    }

    pub fn has(&self, modality: Modality) -> bool {
        self.modalities.contains(&modality)
    }

    pub fn objectives(&self) -> &Objectives {
        &self.objective
    }

    /// At least 0 and below 1; see [`RawTask::label_smoothing`].
    pub fn label_smoothing(&self) -> f64 {
        self.label_smoothing
    }

    /// Share of steps, not normalised.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    pub fn interval(&self) -> u64 {
        self.interval
    }

    pub fn views(&self) -> &[View] {
        &self.views
    }

    pub fn augment(&self) -> &Augment {
        &self.augment
    }

    /// Pixels; see [`RawTask::working_side`].
    pub fn working_side(&self) -> Option<usize> {
        self.working_side
    }

    /// How much of a JPEG is decoded.
    pub fn decode(&self) -> Decode {
        self.decode
    }

    /// Whether records are put together by shape; see [`RawTask::aspect_buckets`].
    pub fn aspect_buckets(&self) -> bool {
        self.aspect_buckets
    }

    /// Views (indices) that a record may come at, for each shape that a batch may have: all of them together, or by width over
    /// height if the task has aspect buckets.
    pub fn view_buckets(&self) -> Vec<Vec<usize>> {
        if !self.aspect_buckets {
            return vec![(0..self.views.len()).collect()];
        }
        let mut buckets: Vec<Vec<usize>> = Vec::new();
        for (i, view) in self.views.iter().enumerate() {
            let same = |bucket: &&mut Vec<usize>| {
                bucket.first().is_some_and(|&first| {
                    matches!((self.views[first].size(), view.size()), (Some((w, h)), Some((v, g))) if w * g == v * h)
                })
            };
            match buckets.iter_mut().find(same) {
                Some(bucket) => bucket.push(i),
                None => buckets.push(vec![i]),
            }
        }
        buckets
    }

    /// Tokens of one example at `view`, all modalities together, after DropToken.
    pub fn n_tokens_per_example(&self, view: &View, patching: &Patching) -> usize {
        let count = |resolution: Option<Resolution>| resolution.map_or(0, |r| r.n_tokens(patching).unwrap_or(0));
        let media = [view.vision, view.audio].map(|r| r.map_or(0, |_| n_kept(count(r), view.drop_rate)));
        media.iter().sum::<usize>() + view.captions * count(view.text)
    }
}

/// All tasks of a run, checked; fixes the order of batches together with the manifests.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mixture {
    seed: u64,
    alternation: Alternation,
    shuffle_radius: Option<u64>,
    patching: Patching,
    spectrogram: SpectrogramSpec,
    tasks: Vec<Task>,
    // Absent from the digest of mixtures that do without: checkpoints of before go on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    phases: Vec<Phase>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skip: Vec<Skip>,
}

impl Mixture {
    /// Seed of every draw of the run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub fn alternation(&self) -> Alternation {
        self.alternation
    }

    /// Rows that are shuffled together; `None` for the whole split.
    pub fn shuffle_radius(&self) -> Option<u64> {
        self.shuffle_radius
    }

    pub fn patching(&self) -> &Patching {
        &self.patching
    }

    pub fn spectrogram(&self) -> &SpectrogramSpec {
        &self.spectrogram
    }

    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// Changes of shares, in order of steps.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// Batches that are left out before step `step`, on top of those left out before an earlier one.
    pub fn n_left_out_at(&self, step: u64) -> u64 {
        self.skip.binary_search_by_key(&step, |&[from, _]| from).map_or(0, |i| self.skip[i][1] - self.skip[i][0])
    }

    /// BLAKE3 of everything that decided which batches came before `step`: changes from `step` on do not count, so a run may go on
    /// with others.
    pub fn digest_before(&self, step: u64) -> String {
        let mut past = self.clone();
        past.phases.retain(|phase| phase.from_step < step);
        past.skip.retain(|&[from, _]| from < step);
        // Field order is declaration order and floats print shortest round-trip, so equal mixtures give equal bytes.
        let json = serde_json::to_vec(&past).unwrap_or_default();
        blake3::hash(&json).to_hex().to_string()
    }
}
