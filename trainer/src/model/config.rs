//! The size of a model: `[train.model]` as the file spells it, and as the code gets it.
//!
//! In: a raw table, the vocabulary, the patching, the pairs and classifiers that the tasks need. Out: [`ModelConfig`], which
//! holds that heads divide the width and that every size is at least 1. Never: tensors.
//! Source: Akbari et al. 2023, arXiv:2305.06324, and the authors' release (sizes, tables, initial values).

use imp_schemas::resolution::{Patching, Resolution};
use serde::{Deserialize, Serialize};

use crate::model::{ExpertsConfig, ModelError, RawExperts};
use crate::ops::TemperatureForm;
use crate::ops::nce::{GREATEST_TEMPERATURE, LEAST_TEMPERATURE};

/// A kind of token sequence. Image and video share one: an image is a clip of equal frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Vision,
    Spectrogram,
    Waveform,
    Text,
}

impl Stream {
    /// The name in parameter names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Spectrogram => "spectrogram",
            Self::Waveform => "waveform",
            Self::Text => "text",
        }
    }

    /// The stream of examples of that size.
    pub fn of(resolution: Resolution) -> Self {
        match resolution {
            Resolution::Image { .. } | Resolution::Video { .. } => Self::Vision,
            Resolution::Audio { .. } => Self::Spectrogram,
            Resolution::Waveform { .. } => Self::Waveform,
            Resolution::Text { .. } => Self::Text,
        }
    }
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One labelled corpus: its classifier is `classifier/<corpus>/{kernel,bias}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classifier {
    pub corpus: String,
    pub stream: Stream,
    pub n_classes: usize,
}

/// The published encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preset {
    S,
    B,
    M,
    L,
}

/// Standard deviation of the first q, k and v kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkvInit {
    /// `1 / sqrt(width * heads)`, what the release's initialiser makes of its kernel shape.
    Release,
    /// `1 / sqrt(width)`, LeCun's.
    #[default]
    FanIn,
}

/// `[train.model]`: a preset, or a size of one's own; a key beside a preset overrides it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawModel {
    pub preset: Option<Preset>,
    /// Blocks.
    pub depth: Option<usize>,
    pub width: Option<usize>,
    /// Hidden width of the feed-forward; absent without a preset: 4 × width.
    pub ffn_width: Option<usize>,
    pub heads: Option<usize>,
    /// Width of the common spaces; absent: the release's 1024 beside a preset, else the width.
    pub common_width: Option<usize>,
    /// LayerNorm of queries and keys per head; absent: in models with experts only, as in the release.
    pub qk_norm: Option<bool>,
    #[serde(default)]
    pub qkv_init: QkvInit,
    /// Lengths of the position tables for time, row, column.
    #[serde(default = "RawModel::release_vision_table")]
    pub vision_table: [usize; 3],
    /// Lengths of the position tables for time, frequency.
    #[serde(default = "RawModel::release_spectrogram_table")]
    pub spectrogram_table: [usize; 2],
    /// Length of the position table of waveforms.
    // Absent where it is the release's: what names a model by its table goes on.
    #[serde(default = "RawModel::release_waveform_table", skip_serializing_if = "RawModel::is_release_waveform_table")]
    pub waveform_table: usize,
    /// Longest sentence, tokens.
    #[serde(default = "RawModel::release_text_table")]
    pub text_table: usize,
    /// First temperature of every pair; absent: the release's 0.2, or 1 in a model with experts.
    pub temperature: Option<f64>,
    /// How a pair's parameter becomes its temperature.
    #[serde(default)]
    pub temperature_form: TemperatureForm,
    /// Standard deviation of the first text embeddings; absent: the release's `1 / sqrt(width)`. Positions are normalised to
    /// 1 before they are added, so that small runs, which never get far from their first weights, read words sooner at 1.
    pub text_embedding_std: Option<f64>,
    /// Mean and standard deviation that log-mels are brought to 0 and 1 from; the release takes them as they are (`[0, 1]`),
    /// with a mean near -6 that every token then has to itself.
    #[serde(default = "RawModel::release_log_mel")]
    pub log_mel_mean_std: [f32; 2],
    /// Experts in place of some blocks' feed-forwards; absent: a dense model.
    pub experts: Option<RawExperts>,
}

impl RawModel {
    fn release_vision_table() -> [usize; 3] {
        [16, 32, 32]
    }

    fn release_spectrogram_table() -> [usize; 2] {
        [64, 8]
    }

    fn release_waveform_table() -> usize {
        512
    }

    fn is_release_waveform_table(len: &usize) -> bool {
        *len == Self::release_waveform_table()
    }

    fn release_text_table() -> usize {
        4096
    }

    fn release_log_mel() -> [f32; 2] {
        [0.0, 1.0]
    }

    /// The published encoder of that size, everything else as released.
    pub fn preset(preset: Preset) -> Self {
        Self {
            preset: Some(preset),
            depth: None,
            width: None,
            ffn_width: None,
            heads: None,
            common_width: None,
            qk_norm: None,
            qkv_init: QkvInit::Release,
            vision_table: Self::release_vision_table(),
            spectrogram_table: Self::release_spectrogram_table(),
            waveform_table: Self::release_waveform_table(),
            text_table: Self::release_text_table(),
            temperature: None,
            temperature_form: TemperatureForm::default(),
            text_embedding_std: None,
            log_mel_mean_std: Self::release_log_mel(),
            experts: None,
        }
    }
}

/// A model's size. Holds: every size is at least 1, `heads` divides `width`, pairs and classifiers are distinct.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig {
    pub(super) depth: usize,
    pub(super) width: usize,
    pub(super) ffn_width: usize,
    pub(super) heads: usize,
    pub(super) common_width: usize,
    pub(super) qk_norm: bool,
    pub(super) qkv_init: QkvInit,
    pub(super) vision_table: [usize; 3],
    pub(super) spectrogram_table: [usize; 2],
    pub(super) waveform_table: usize,
    pub(super) text_table: usize,
    pub(super) temperature: f64,
    pub(super) temperature_form: TemperatureForm,
    pub(super) text_embedding_std: f64,
    pub(super) log_mel_mean_std: [f32; 2],
    pub(super) experts: Option<ExpertsConfig>,
    pub(super) vocab_size: usize,
    pub(super) patching: Patching,
    pub(super) pairs: Vec<(Stream, Stream)>,
    pub(super) classifiers: Vec<Classifier>,
}

impl ModelConfig {
    /// Checks `raw` and joins it with what the data decides. `pairs` are unordered; either order and repetitions are one.
    ///
    /// # Errors
    /// [`ModelError::Config`] with key, value and rule.
    pub fn check(
        raw: RawModel,
        vocab_size: usize,
        patching: Patching,
        pairs: Vec<(Stream, Stream)>,
        classifiers: Vec<Classifier>,
    ) -> Result<Self, ModelError> {
        let preset = raw.preset.map(preset_sizes);
        let depth = size("depth", raw.depth, preset.map(|p| p.0))?;
        let width = size("width", raw.width, preset.map(|p| p.1))?;
        let ffn_width = size("ffn_width", raw.ffn_width, Some(preset.map_or(4 * width, |p| p.2)))?;
        let heads = size("heads", raw.heads, preset.map(|p| p.3))?;
        let common = if preset.is_some() { RELEASE_COMMON_WIDTH } else { width };
        let common_width = size("common_width", raw.common_width, Some(common))?;
        hold(width.is_multiple_of(heads), "heads", heads, || format!("a divisor of `train.model.width` ({width})"))?;
        for (key, lens) in [("vision_table", &raw.vision_table[..]), ("spectrogram_table", &raw.spectrogram_table[..])]
        {
            hold(!lens.contains(&0), key, format!("{lens:?}"), || "lengths of at least 1".to_owned())?;
        }
        for (key, len) in [("waveform_table", raw.waveform_table), ("text_table", raw.text_table)] {
            hold(len > 0, key, len, || "at least 1".to_owned())?;
        }
        let experts = raw.experts.as_ref().map(|raw| ExpertsConfig::check(raw, depth)).transpose()?;
        let usual = if experts.is_some() { RELEASE_SPARSE_TEMPERATURE } else { RELEASE_TEMPERATURE };
        let temperature = raw.temperature.unwrap_or(usual);
        let warm = temperature.is_finite() && temperature > 0.0;
        hold(warm, "temperature", temperature, || "above 0".to_owned())?;
        if raw.temperature_form == TemperatureForm::Log {
            let bounds = f64::from(LEAST_TEMPERATURE)..=f64::from(GREATEST_TEMPERATURE);
            hold(bounds.contains(&temperature), "temperature", temperature, || {
                format!("between {LEAST_TEMPERATURE} and {GREATEST_TEMPERATURE} with `temperature_form = \"log\"`")
            })?;
        }
        let text_embedding_std = raw.text_embedding_std.unwrap_or(1.0 / (width as f64).sqrt());
        let spread = text_embedding_std.is_finite() && text_embedding_std > 0.0;
        hold(spread, "text_embedding_std", text_embedding_std, || "above 0".to_owned())?;
        let [mean, std] = raw.log_mel_mean_std;
        hold(mean.is_finite() && std.is_finite() && std > 0.0, "log_mel_mean_std", format!("[{mean}, {std}]"), || {
            "a mean and a standard deviation above 0".to_owned()
        })?;
        hold(vocab_size > 0, "vocab_size", vocab_size, || "at least 1".to_owned())?;
        let mut unordered: Vec<(Stream, Stream)> = Vec::new();
        for (a, b) in pairs {
            hold(a != b, "pairs", format!("{a} with {a}"), || "two different streams".to_owned())?;
            let pair = (a.min(b), a.max(b));
            if !unordered.contains(&pair) {
                unordered.push(pair);
            }
        }
        unordered.sort();
        for (i, c) in classifiers.iter().enumerate() {
            let distinct = classifiers[..i].iter().all(|before| before.corpus != c.corpus);
            hold(distinct, "classifiers", &c.corpus, || "named once".to_owned())?;
            hold(c.n_classes > 0, "classifiers", format!("{} with 0 classes", c.corpus), || {
                "of 1 class or more".into()
            })?;
        }
        Ok(Self {
            depth,
            width,
            ffn_width,
            heads,
            common_width,
            qk_norm: raw.qk_norm.unwrap_or(experts.is_some()),
            qkv_init: raw.qkv_init,
            vision_table: raw.vision_table,
            spectrogram_table: raw.spectrogram_table,
            waveform_table: raw.waveform_table,
            text_table: raw.text_table,
            temperature,
            temperature_form: raw.temperature_form,
            text_embedding_std,
            log_mel_mean_std: raw.log_mel_mean_std,
            experts,
            vocab_size,
            patching,
            pairs: unordered,
            classifiers,
        })
    }

    /// Every parameter of the model, heads and tables included.
    pub fn n_parameters(&self) -> usize {
        self.parameters().iter().map(|p| p.shape.iter().product::<usize>()).sum()
    }

    /// The blocks and the final LayerNorm alone.
    pub fn n_encoder_parameters(&self) -> usize {
        let of_encoder = self.parameters().into_iter().filter(|p| p.name.starts_with("encoder/"));
        of_encoder.map(|p| p.shape.iter().product::<usize>()).sum()
    }

    pub fn depth(&self) -> usize {
        self.depth
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// `None` for a dense model.
    pub fn experts(&self) -> Option<&ExpertsConfig> {
        self.experts.as_ref()
    }

    /// LayerNorm of queries and keys.
    pub fn qk_norm(&self) -> bool {
        self.qk_norm
    }

    pub fn ffn_width(&self) -> usize {
        self.ffn_width
    }

    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Length of an embedding.
    pub fn common_width(&self) -> usize {
        self.common_width
    }

    /// Longest sentence, tokens.
    pub fn text_table(&self) -> usize {
        self.text_table
    }

    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub fn patching(&self) -> &Patching {
        &self.patching
    }

    /// Sorted, each pair once, the lesser stream first.
    pub fn pairs(&self) -> &[(Stream, Stream)] {
        &self.pairs
    }

    pub fn classifiers(&self) -> &[Classifier] {
        &self.classifiers
    }

    /// Streams that some pair or classifier uses, sorted; the others have no parameters.
    pub fn streams(&self) -> Vec<Stream> {
        let of_pairs = self.pairs.iter().flat_map(|&(a, b)| [a, b]);
        let mut streams: Vec<Stream> = of_pairs.chain(self.classifiers.iter().map(|c| c.stream)).collect();
        streams.sort();
        streams.dedup();
        streams
    }

    /// Multiply-adds times two of one example's forward pass through the encoder, `n_tokens` long; training costs three. Of experts
    /// it counts those that a token meets on average.
    pub fn encoder_flops(&self, n_tokens: usize) -> f64 {
        let (d, f, n) = (self.width as f64, self.ffn_width as f64, n_tokens as f64);
        let attention = self.depth as f64 * n * (8.0 * d * d + 4.0 * n * d);
        let n_sparse = self.experts.as_ref().map_or(0, ExpertsConfig::n_blocks);
        let dense = (self.depth - n_sparse) as f64 * n * 4.0 * d * f;
        attention + dense + self.experts.as_ref().map_or(0.0, |e| n_sparse as f64 * e.flops(n, d, f))
    }
}

const RELEASE_TEMPERATURE: f64 = 0.2;
/// A softer start, to survive the warm-up.
const RELEASE_SPARSE_TEMPERATURE: f64 = 1.0;
/// Width of the release's common spaces.
const RELEASE_COMMON_WIDTH: usize = 1024;

/// Depth, width, feed-forward width, heads.
fn preset_sizes(preset: Preset) -> (usize, usize, usize, usize) {
    match preset {
        Preset::S => (12, 384, 1536, 6),
        Preset::B => (12, 768, 3072, 12),
        Preset::M => (12, 1024, 4096, 16),
        Preset::L => (24, 1024, 4096, 16),
    }
}

fn size(key: &'static str, found: Option<usize>, default: Option<usize>) -> Result<usize, ModelError> {
    match found.or(default) {
        Some(n) if n > 0 => Ok(n),
        Some(n) => Err(ModelError::Config { key, found: n.to_string(), rule: "at least 1".to_owned() }),
        None => Err(ModelError::Config { key, found: "absent".to_owned(), rule: "set, or `preset` given".to_owned() }),
    }
}

pub(super) fn hold(
    holds: bool,
    key: &'static str,
    found: impl std::fmt::Display,
    rule: impl FnOnce() -> String,
) -> Result<(), ModelError> {
    if holds { Ok(()) } else { Err(ModelError::Config { key, found: found.to_string(), rule: rule() }) }
}
