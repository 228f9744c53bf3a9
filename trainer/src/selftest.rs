//! Whether a device computes what the CPU computes: whole models of odd sizes, loss, gradients, embeddings, updates.
//!
//! In: a device. Out: a line for each comparison, with its error and the limit. Never: files, or a tolerance that grows with the error:
//! the CPU's forms are held to the reference vectors and to slopes in f64 by the tests, and a device is held to the CPU here.

use dfdx::prelude::{Backward, Cpu, SumTo, Trace, TryMul};
use imp_schemas::batch::{AudioBatch, Batch, ExampleId, TextBatch, VisionBatch};
use imp_schemas::resolution::{Patching, Resolution};
use serde::Serialize;
use serde_json::json;

use crate::model::{Classifier, Grads, Imp, ModelConfig, ModelError, RawModel, Stream};
use crate::objective::Goal;
use crate::ops::{Backend, Mask, Precision};
use crate::optim::{AdamW, AdamWSettings};

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub case: String,
    pub what: String,
    /// Length of the difference by the length of what the CPU has.
    pub error: f64,
    pub limit: f64,
}

impl Check {
    pub fn holds(&self) -> bool {
        self.error <= self.limit
    }
}

/// A model and a batch for it.
struct Case {
    name: &'static str,
    model: serde_json::Value,
    goal: Goal,
    streams: &'static [Stream],
    /// Examples, rows and columns of the picture's grid, tokens of a sentence.
    sizes: [usize; 4],
    /// Tokens of a picture that are left.
    kept: Option<usize>,
}

const PAIR: &[Stream] = &[Stream::Vision, Stream::Text];
const CORPUS: &str = "made-up";
const N_CLASSES: usize = 10;
const VOCABULARY: usize = 509;
const PATCHING: Patching = Patching { tube: [4, 8, 8], spectrogram: [8, 8], waveform: 40 };

fn cases() -> Vec<Case> {
    let nce = |name, model, sizes, kept| Case { name, model, goal: Goal::nce(), streams: PAIR, sizes, kept };
    let experts = |n: usize, more: serde_json::Value| {
        let mut table = json!({ "n": n, "blocks": 2 });
        if let (Some(table), Some(more)) = (table.as_object_mut(), more.as_object()) {
            table.extend(more.clone());
        }
        table
    };
    vec![
        nce("heads of 32", json!({"width": 96, "depth": 2, "heads": 3}), [5, 13, 11, 9], None),
        nce(
            "heads of 64, q and k normed",
            json!({"width": 128, "depth": 2, "heads": 2, "qk_norm": true, "common_width": 72}),
            [4, 8, 8, 17],
            None,
        ),
        nce("heads of 128, tokens dropped", json!({"width": 256, "depth": 2, "heads": 2}), [3, 10, 9, 70], Some(67)),
        nce("one token", json!({"width": 64, "depth": 1, "heads": 1}), [7, 1, 1, 1], None),
        nce(
            "experts",
            json!({"width": 128, "depth": 3, "heads": 2, "experts": experts(4, json!({"group_tokens": 100}))}),
            [6, 8, 8, 12],
            None,
        ),
        nce(
            "five experts with room, balance and z-losses",
            json!({"width": 64, "depth": 2, "heads": 2, "experts": experts(5, json!({
                "capacity_factor": 1.6, "z_weight": 0.1, "balance_weight": 0.2, "placement": "first"}))}),
            [4, 7, 9, 11],
            None,
        ),
        nce(
            "tokens that choose experts",
            json!({"width": 64, "depth": 2, "heads": 2, "experts": experts(3, json!({"router": "token_choice", "top_k": 2}))}),
            [4, 5, 5, 8],
            None,
        ),
        nce(
            "soft experts",
            json!({"width": 64, "depth": 2, "heads": 2, "experts": experts(3, json!({"router": "soft", "slots": 2}))}),
            [4, 5, 5, 8],
            None,
        ),
        Case {
            name: "sounds",
            model: json!({"width": 128, "depth": 2, "heads": 4}),
            goal: Goal::nce(),
            streams: &[Stream::Spectrogram, Stream::Text],
            sizes: [5, 12, 4, 10],
            kept: None,
        },
        Case {
            name: "waveforms",
            model: json!({"width": 64, "depth": 2, "heads": 2}),
            goal: Goal::nce(),
            streams: &[Stream::Waveform, Stream::Text],
            sizes: [4, 9, 5, 7],
            kept: None,
        },
        Case {
            name: "classes",
            model: json!({"width": 64, "depth": 2, "heads": 2}),
            goal: Goal::softmax(CORPUS),
            streams: &[Stream::Vision],
            sizes: [9, 6, 6, 0],
            kept: Some(20),
        },
    ]
}

/// Repeatable numbers in [0, 1).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() * n as f64) as usize
    }
}

impl Case {
    fn config(&self) -> Result<ModelConfig, ModelError> {
        let mut table = self.model.clone();
        if let Some(table) = table.as_object_mut() {
            table.insert("vision_table".to_owned(), json!([2, 9, 16]));
            table.insert("spectrogram_table".to_owned(), json!([11, 5]));
            table.insert("waveform_table".to_owned(), json!(17));
            table.insert("text_table".to_owned(), json!(128));
        }
        let raw: RawModel = serde_json::from_value(table).map_err(|e| ModelError::Device(e.to_string()))?;
        let (mut pairs, mut classifiers) = (Vec::new(), Vec::new());
        if self.goal.nce {
            pairs.push((self.streams[0].min(self.streams[1]), self.streams[0].max(self.streams[1])));
        }
        if self.goal.classes.is_some() {
            let corpus = CORPUS.to_owned();
            classifiers.push(Classifier { corpus, stream: self.streams[0], n_classes: N_CLASSES });
        }
        ModelConfig::check(raw, VOCABULARY, PATCHING, pairs, classifiers)
    }

    fn batch(&self) -> Batch {
        let [n, rows, columns, n_text] = self.sizes;
        let mut draw = Draw(n as u64 * 1000 + rows as u64);
        let has = |stream| self.streams.contains(&stream);
        let [_, dh, dw] = PATCHING.tube;
        let (height, width) = (rows * dh, columns * dw);
        let kept = self.kept.map(|kept| {
            let places = |_| {
                let mut all: Vec<u32> = (0..(rows * columns) as u32).collect();
                for i in 0..kept {
                    let other = i + draw.below(all.len() - i);
                    all.swap(i, other);
                }
                all.truncate(kept);
                all.sort_unstable();
                all
            };
            (0..n).flat_map(places).collect()
        });
        let vision = has(Stream::Vision).then(|| VisionBatch {
            resolution: Resolution::Image { height, width },
            pixels: (0..n * height * width * 3).map(|_| draw.below(256) as u8).collect(),
            kept,
        });
        let [frames, mels] = [rows * PATCHING.spectrogram[0], columns * PATCHING.spectrogram[1]];
        let spectrogram = (Stream::Spectrogram, Resolution::Audio { frames, mels }, frames * mels);
        let samples = rows * columns * PATCHING.waveform;
        let waveform = (Stream::Waveform, Resolution::Waveform { samples }, samples);
        let sound = [spectrogram, waveform].into_iter().find(|&(stream, ..)| has(stream));
        let audio = sound.map(|(_, resolution, n_values)| AudioBatch {
            resolution,
            values: (0..n * n_values).map(|_| draw.next() as f32 * 4.0 - 2.0).collect(),
            kept: None,
        });
        let text = has(Stream::Text).then(|| {
            let mut ids = Vec::with_capacity(n * n_text);
            for _ in 0..n {
                let length = 1 + draw.below(n_text);
                ids.extend((0..n_text).map(|i| if i < length { 1 + draw.below(VOCABULARY - 1) as i32 } else { 0 }));
            }
            TextBatch { n_tokens: n_text, ids }
        });
        let labels = self.goal.classes.is_some().then(|| (0..n).map(|_| vec![draw.below(N_CLASSES) as u32]).collect());
        let examples = (0..n as u64).map(|row| ExampleId { corpus_idx: 0, row, epoch: 0 }).collect();
        Batch { step: 0, task_idx: 0, view_idx: 0, examples, vision, audio, text, labels }
    }
}

/// What a device has to say of a case.
struct Said {
    loss: f64,
    /// By parameter.
    gradients: Vec<(String, Vec<f32>)>,
    /// Of the first stream, where there is a pair.
    embedding: Vec<f32>,
    /// By parameter, after some updates.
    updated: Vec<(String, Vec<f32>)>,
}

/// Updates after which parameters are compared.
const N_UPDATES: usize = 3;

fn ask<D: Backend>(dev: &D, case: &Case) -> Result<Said, ModelError> {
    let batch = case.batch();
    let mut model = Imp::new(&case.config()?, 17, dev)?;
    let mut loss = model.loss(&case.goal, &batch)?;
    let gradients = model.gradients(&mut loss.grads)?;
    let embedding = match (&batch.vision, &batch.audio, case.goal.nce) {
        (Some(vision), _, true) => model.embed_vision(vision, Stream::Text)?,
        (_, Some(audio), true) => model.embed_audio(audio, Stream::Text)?,
        _ => Vec::new(),
    };
    // Updates that are clipped, decay and keep a mean: all that the optimizer does.
    let settings = AdamWSettings { clip_norm: 0.5, weight_decay: 0.1, eps: 1e-3, ema: 0.9, ..AdamWSettings::default() };
    let mut optimizer = AdamW::new(&model, settings)?;
    for _ in 0..N_UPDATES {
        let loss = model.loss(&case.goal, &batch)?;
        optimizer.step(&mut model, loss.grads, 1e-2)?;
    }
    let of_model = |name: String| model.tensor(&name).map(|(_, values)| (name, values));
    let of_mean = |name: String| optimizer.tensor(&name).map(|(_, values)| (name, values));
    let means = optimizer.names().into_iter().filter(|name| name.starts_with("ema/"));
    let updated = model.names().into_iter().filter_map(of_model).chain(means.filter_map(of_mean)).collect();
    Ok(Said { loss: f64::from(loss.value), gradients, embedding, updated })
}

/// Length of the difference by the length of what is right.
fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    if found.len() != wanted.len() {
        return f64::INFINITY;
    }
    let square = |v: f64| v * v;
    let difference: f64 = found.iter().zip(wanted).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let length: f64 = wanted.iter().map(|&v| square(f64::from(v))).sum();
    let found = if length > 0.0 { (difference / length).sqrt() } else { difference.sqrt() };
    if found.is_nan() { f64::INFINITY } else { found }
}

/// All of a model's values in one line, so that what is near zero is weighed by the whole.
fn joined(of: &[(String, Vec<f32>)]) -> Vec<f32> {
    of.iter().flat_map(|(_, values)| values.iter().copied()).collect()
}

/// What the encoder alone makes of tokens drawn from a normal distribution, and its slopes under a random direction: tokens behind it,
/// gradients at the tokens before it, gradients of its parameters.
fn ask_encoder<D: Backend>(dev: &D, case: &Case) -> Result<[Vec<f32>; 3], ModelError> {
    let failed = |e: D::Err| ModelError::Device(e.to_string());
    let model = Imp::new(&case.config()?, 17, dev)?;
    let [n, rows, columns, _] = case.sizes;
    let shape = (n, rows * columns, model.config().width());
    let mut draw = Draw(n as u64);
    let mut normal = || {
        let sum: f64 = (0..12).map(|_| draw.next()).sum();
        (sum - 6.0) as f32
    };
    let n_values = shape.0 * shape.1 * shape.2;
    let [tokens, direction] = [0, 1].map(|_| (0..n_values).map(|_| normal()).collect::<Vec<f32>>());
    let tokens = dev.try_tensor_from_vec(tokens, shape).map_err(failed)?;
    let direction = dev.try_tensor_from_vec(direction, shape).map_err(failed)?;
    // A third of the tokens of every second example is padding.
    let is_valid = |i: usize| (i / shape.1).is_multiple_of(2) || i % shape.1 < shape.1 - shape.1 / 3;
    let mask = Mask { valid: (0..shape.0 * shape.1).map(is_valid).collect(), n_tokens: shape.1 };
    let encoded = model.encoder_alone(tokens.leaky_trace(), &mask)?;
    let values = encoded.as_vec();
    let loss = encoded.try_mul(direction).and_then(|product| product.try_sum::<(), _>()).map_err(failed)?;
    let mut grads = Grads(loss.try_backward().map_err(failed)?);
    let at_tokens = grads.0.get(&tokens).as_vec();
    let of_parameters = joined(&model.gradients(&mut grads)?);
    Ok([values, at_tokens, of_parameters])
}

/// Compares `dev` with the CPU, case by case; `say` hears of each comparison.
///
/// # Errors
/// The device failed at a case.
pub fn run<D: Backend>(dev: &D, precision: Precision, say: &mut dyn FnMut(&Check)) -> Result<Vec<Check>, ModelError> {
    let cpu = Cpu::default();
    let (of_op, of_value, of_slope) = match precision {
        Precision::F32 => (1e-5, 1e-5, 1e-4),
        // A batch of a few, under a temperature of 0.2, takes differences of embeddings that are near each other: what bf16 rounds away
        // of them weighs several times as much in the gradients.
        Precision::Bf16 => (1e-2, 1e-2, 6e-2),
    };
    let mut checks = Vec::new();
    for case in cases() {
        let wanted = ask(&cpu, &case)?;
        let found = ask(dev, &case)?;
        let mut check = |what: &str, error: f64, limit: f64| {
            let check = Check { case: case.name.to_owned(), what: what.to_owned(), error, limit };
            say(&check);
            checks.push(check);
        };
        if case.goal.nce {
            let (wanted, found) = (ask_encoder(&cpu, &case)?, ask_encoder(dev, &case)?);
            let what = ["encoder: tokens", "encoder: gradients at tokens", "encoder: gradients of parameters"];
            for ((what, found), wanted) in what.into_iter().zip(&found).zip(&wanted) {
                // What bf16 rounds of a stream before a router moves choices near the border to other tokens.
                let moved = precision == Precision::Bf16 && case.model.get("experts").is_some();
                check(what, distance(found, wanted), if moved { 5.0 * of_op } else { of_op });
            }
        }
        check("loss", (found.loss - wanted.loss).abs() / wanted.loss.abs(), of_value);
        if !wanted.embedding.is_empty() {
            check("embeddings", distance(&found.embedding, &wanted.embedding), of_value);
        }
        check("gradients", distance(&joined(&found.gradients), &joined(&wanted.gradients)), of_slope);
        // The one that is furthest off, among those that matter.
        let whole = joined(&wanted.gradients).iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
        let worst = found.gradients.iter().zip(&wanted.gradients).filter_map(|((name, found), (_, wanted))| {
            let length = wanted.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
            // A temperature is one number, the rest of a sum of many that nearly cancel.
            (wanted.len() > 1 && length > 1e-3 * whole).then(|| (distance(found, wanted), name))
        });
        if let Some((error, name)) = worst.max_by(|a, b| a.0.total_cmp(&b.0)) {
            check(&format!("gradient of {name}"), error, 3.0 * of_slope);
        }
        check(
            "parameters and means after updates",
            distance(&joined(&found.updated), &joined(&wanted.updated)),
            of_value,
        );
    }
    Ok(checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_a_model_that_can_be_and_the_cpu_says_the_same_twice() {
        let mut n_said = 0;
        let checks = run(&Cpu::default(), Precision::F32, &mut |_| n_said += 1).unwrap();
        assert_eq!(n_said, checks.len());
        assert!(checks.len() > 5 * cases().len());
        for check in checks {
            assert_eq!(check.error, 0.0, "{check:?}");
        }
    }

    #[test]
    fn a_wrong_number_is_found_out() {
        let right = [1.0, -2.0, 3.0];
        assert_eq!(distance(&right, &right), 0.0);
        assert!((distance(&[1.0, -2.0, 3.3], &right) - 0.3 / 14.0_f64.sqrt()).abs() < 1e-6);
        assert_eq!(distance(&[1.0, f32::NAN, 3.0], &right), f64::INFINITY);
        assert_eq!(distance(&right[..2], &right), f64::INFINITY);
    }
}
