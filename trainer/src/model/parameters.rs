//! Which parameters a model has, and their first values.
//!
//! In: a checked config. Out: names, shapes, values drawn at the address of the name. Never: the order of declaration in a
//! value.
//! Source: the authors' release (initialisers), restated in IMP.md section 3.

use imp_schemas::rng::{Role, rng_for};

use super::{ModelConfig, ModelError, QkvInit, Stream};
use crate::ops::{Backend, Flat};

/// One parameter.
#[derive(Debug)]
pub struct Parameter<D: Backend> {
    pub name: String,
    pub shape: Vec<usize>,
    pub(crate) tensor: Flat<D>,
}

/// One parameter that a model has.
pub(super) struct ParameterSpec {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    init: Init,
}

/// Where first values come from.
#[derive(Debug, Clone, Copy)]
enum Init {
    Constant(f64),
    /// Normal with that standard deviation.
    Normal(f64),
    /// LeCun's: normal, cut at two standard deviations, widened so that its deviation is `1 / sqrt(fan_in)`.
    Lecun,
}

/// Standard deviation of a standard normal cut at ±2; LeCun's initialiser divides by it.
const CUT_NORMAL_STD: f64 = 0.879_625_661_034_239_8;
/// The release's.
const ROUTER_STD: f64 = 0.02;

impl ModelConfig {
    /// Everything that the model has, in the order of declaration.
    pub(super) fn parameters(&self) -> Vec<ParameterSpec> {
        let mut list = List(Vec::new());
        for stream in self.streams() {
            self.stream_parameters(stream, &mut list);
        }
        self.encoder_parameters(&mut list);
        for &(a, b) in &self.pairs {
            for (source, target) in [(a, b), (b, a)] {
                let head = head_name(source, target);
                list.dense(&format!("{head}/wi"), self.width, self.common_width);
                list.dense(&format!("{head}/wo"), self.common_width, self.common_width);
                list.norm(&format!("{head}/norm"), self.common_width, true);
            }
            let p = self.temperature_form.parameter(self.temperature);
            list.push(temperature_name(a, b), &[1], Init::Constant(p));
        }
        for c in &self.classifiers {
            list.dense(&classifier_name(&c.corpus), self.width, c.n_classes);
        }
        list.0
    }

    fn stream_parameters(&self, stream: Stream, list: &mut List) {
        let d = self.width;
        let table = Init::Normal(1.0 / (d as f64).sqrt());
        match stream {
            Stream::Vision => list.dense("vision/embed", self.patching.n_tube_values(), d),
            Stream::Spectrogram => list.dense("spectrogram/embed", self.patching.n_spectrogram_values(), d),
            Stream::Waveform => list.dense("waveform/embed", self.patching.waveform, d),
            Stream::Text => {
                let words = Init::Normal(self.text_embedding_std);
                list.push("text/embed/embedding".to_owned(), &[self.vocab_size, d], words);
            }
        }
        for (axis, len) in self.tables(stream) {
            list.push(format!("{stream}/pos_{axis}/embedding"), &[len, d], table);
        }
        list.norm(&format!("{stream}/pos_norm"), d, true);
        list.dense(&format!("{stream}/pre"), d, d);
        list.dense(&format!("{stream}/post"), d, d);
    }

    /// The position tables of a stream: axis and length.
    pub(super) fn tables(&self, stream: Stream) -> Vec<(&'static str, usize)> {
        match stream {
            Stream::Vision => ["t", "h", "w"].into_iter().zip(self.vision_table).collect(),
            Stream::Spectrogram => ["t", "f"].into_iter().zip(self.spectrogram_table).collect(),
            Stream::Waveform => vec![("t", self.waveform_table)],
            Stream::Text => vec![("t", self.text_table)],
        }
    }

    fn encoder_parameters(&self, list: &mut List) {
        let (d, f) = (self.width, self.ffn_width);
        let qkv = match self.qkv_init {
            QkvInit::Release => Init::Normal(1.0 / ((d * self.heads) as f64).sqrt()),
            QkvInit::FanIn => Init::Lecun,
        };
        for i in 0..self.depth {
            let layer = layer_name(i);
            list.norm(&format!("{layer}/norm_sa"), d, false);
            for name in ["q", "k", "v"] {
                list.push(format!("{layer}/attn/{name}/kernel"), &[d, d], qkv);
            }
            list.push(format!("{layer}/attn/o/kernel"), &[d, d], Init::Lecun);
            if self.qk_norm {
                list.norm(&format!("{layer}/attn/q_norm"), d / self.heads, false);
                list.norm(&format!("{layer}/attn/k_norm"), d / self.heads, false);
            }
            list.norm(&format!("{layer}/norm_ffn"), d, false);
            match self.experts.as_ref().filter(|_| self.is_sparse(i)) {
                Some(experts) => {
                    let (n, slots) = (experts.n(), experts.slots());
                    // A soft router's columns are brought to unit length: what counts is where they point.
                    let std = if slots.is_some() { 1.0 / (d as f64).sqrt() } else { ROUTER_STD };
                    let columns = slots.unwrap_or(n);
                    list.push(format!("{layer}/moe/router/kernel"), &[d, columns], Init::Normal(std));
                    if slots.is_some() {
                        list.push(format!("{layer}/moe/router/scale"), &[1], Init::Constant(1.0));
                    }
                    list.push(format!("{layer}/moe/experts/wi/kernel"), &[n, d, f], Init::Lecun);
                    list.push(format!("{layer}/moe/experts/wo/kernel"), &[n, f, d], Init::Lecun);
                }
                None => {
                    list.push(format!("{layer}/ffn/wi/kernel"), &[d, f], Init::Lecun);
                    list.push(format!("{layer}/ffn/wo/kernel"), &[f, d], Init::Lecun);
                }
            }
        }
        list.norm("encoder/final_norm", d, true);
    }
}

pub(super) fn layer_name(i: usize) -> String {
    format!("encoder/layer_{i}")
}

/// The head of one direction.
pub(super) fn head_name(source: Stream, target: Stream) -> String {
    format!("{source}/to_{target}")
}

/// One temperature for both directions: the two names in alphabetical order.
pub(super) fn temperature_name(a: Stream, b: Stream) -> String {
    let (a, b) = (a.name().min(b.name()), a.name().max(b.name()));
    format!("temperature/{a}_{b}")
}

pub(super) fn classifier_name(corpus: &str) -> String {
    format!("classifier/{corpus}")
}

struct List(Vec<ParameterSpec>);

impl List {
    fn push(&mut self, name: String, shape: &[usize], init: Init) {
        self.0.push(ParameterSpec { name, shape: shape.to_vec(), init });
    }

    fn dense(&mut self, name: &str, n_in: usize, n_out: usize) {
        self.push(format!("{name}/kernel"), &[n_in, n_out], Init::Lecun);
        self.push(format!("{name}/bias"), &[n_out], Init::Constant(0.0));
    }

    fn norm(&mut self, name: &str, width: usize, bias: bool) {
        self.push(format!("{name}/scale"), &[width], Init::Constant(1.0));
        if bias {
            self.push(format!("{name}/bias"), &[width], Init::Constant(0.0));
        }
    }
}

/// Draws every parameter of `config`.
pub(super) fn draw<D: Backend>(config: &ModelConfig, seed: u64, dev: &D) -> Result<Vec<Parameter<D>>, ModelError> {
    let draw_one = |spec: ParameterSpec| {
        let values = spec.values(seed);
        let tensor = dev.try_tensor_from_vec(values.clone(), (values.len(),)).map_err(super::device)?;
        Ok(Parameter { name: spec.name, shape: spec.shape, tensor })
    };
    config.parameters().into_iter().map(draw_one).collect()
}

impl ParameterSpec {
    /// Row-major first values.
    fn values(&self, seed: u64) -> Vec<f32> {
        let digest = address(&self.name);
        let mut rng = rng_for(seed, Role::Init, &[digest]);
        let n = self.shape.iter().product();
        let mut draw = || match self.init {
            Init::Constant(value) => value as f32,
            Init::Normal(std) => (std * rng.normal()) as f32,
            Init::Lecun => {
                // Kernels are (in, out); those of experts stand one after the other.
                let fan_in = self.shape[self.shape.len().saturating_sub(2)];
                let std = 1.0 / (fan_in as f64).sqrt() / CUT_NORMAL_STD;
                let mut z = rng.normal();
                while z.abs() > 2.0 {
                    z = rng.normal();
                }
                (std * z) as f32
            }
        };
        (0..n).map(|_| draw()).collect()
    }
}

/// A name as a number: the first eight bytes of its BLAKE3 digest.
fn address(name: &str) -> u64 {
    let digest = blake3::hash(name.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use imp_schemas::resolution::Patching;

    use super::*;
    use crate::model::{Classifier, Preset, RawExperts, RawModel};

    fn config(raw: RawModel) -> ModelConfig {
        let pairs = vec![(Stream::Vision, Stream::Text), (Stream::Text, Stream::Vision)];
        let classifiers = vec![Classifier { corpus: "digits".into(), stream: Stream::Vision, n_classes: 10 }];
        ModelConfig::check(raw, 100, Patching::default(), pairs, classifiers).unwrap()
    }

    #[test]
    fn the_published_encoders_have_the_published_sizes() {
        for (preset, want) in [(Preset::S, 21_243_648), (Preset::B, 84_954_624), (Preset::L, 302_041_088)] {
            assert_eq!(config(RawModel::preset(preset)).n_encoder_parameters(), want, "{preset:?}");
        }
    }

    /// IMP.md section 4: totals of 509.7 M and 1 057 M.
    #[test]
    fn the_sparse_encoders_have_the_sizes_that_follow_from_the_published_ones() {
        for (preset, dense, in_millions, (d, f, heads, depth)) in [
            (Preset::B, 84_954_624, 509.7, (768, 3072, 12, 12)),
            (Preset::L, 302_041_088, 1057.0, (1024, 4096, 16, 24)),
        ] {
            let got = config(RawModel { experts: Some(RawExperts::of(16)), ..RawModel::preset(preset) });
            let more = 6 * (15 * 2 * d * f + 16 * d) + depth * 2 * (d / heads);
            assert_eq!(got.n_encoder_parameters(), dense + more, "{preset:?}");
            let millions = got.n_encoder_parameters() as f64 / 1e6;
            assert!((millions - in_millions).abs() < 0.5, "{preset:?}: {millions}");
            let of_dense = config(RawModel::preset(preset)).encoder_flops(256);
            // At a capacity factor of 1 a token costs what it costs the dense encoder, and the router.
            assert!((got.encoder_flops(256) / of_dense - 1.0) < 0.002);
        }
    }

    #[test]
    fn first_values_have_the_spread_that_their_rule_says() {
        let raw = RawModel { depth: Some(1), vision_table: [2, 2, 2], ..RawModel::preset(Preset::S) };
        let specs = config(raw).parameters();
        let d = 384f64;
        let cases = [
            ("encoder/layer_0/attn/q/kernel", 1.0 / (d * 6.0).sqrt()),
            ("encoder/layer_0/attn/o/kernel", 1.0 / d.sqrt()),
            ("encoder/layer_0/ffn/wo/kernel", 1.0 / (4.0 * d).sqrt()),
            ("text/embed/embedding", 1.0 / d.sqrt()),
            ("vision/embed/bias", 0.0),
        ];
        for (name, want) in cases {
            let values = specs.iter().find(|s| s.name == name).unwrap().values(3);
            let std = (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
            // At least 38,400 draws: the deviation of a deviation is below 0.4 %.
            assert!((std - want).abs() <= 0.02 * want, "{name}: {std}, want {want}");
        }
    }

    #[test]
    fn a_weight_does_not_depend_on_what_else_the_model_has() {
        let small = RawModel { depth: Some(1), width: Some(32), heads: Some(4), ..RawModel::preset(Preset::S) };
        let deep = RawModel { depth: Some(2), ..small.clone() };
        let values = |raw: &RawModel, name: &str| {
            config(raw.clone()).parameters().into_iter().find(|s| s.name == name).unwrap().values(5)
        };
        for name in ["encoder/layer_0/attn/q/kernel", "text/to_vision/wo/kernel"] {
            assert_eq!(values(&small, name), values(&deep, name));
        }
        assert_ne!(values(&deep, "encoder/layer_0/attn/q/kernel"), values(&deep, "encoder/layer_1/attn/q/kernel"));
    }
}
