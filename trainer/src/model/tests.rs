//! Promises of a whole model, on a tiny one and made-up batches.

use dfdx::prelude::Cpu;
use imp_schemas::resolution::{Patching, Resolution};
use imp_schemas::rng::{Role, rng_for};

use super::*;
use crate::ops;
use crate::optim::{AdamW, AdamWSettings};

pub(super) fn tiny() -> ModelConfig {
    let raw = RawModel {
        depth: Some(2),
        width: Some(32),
        heads: Some(4),
        ffn_width: Some(48),
        common_width: Some(24),
        vision_table: [2, 4, 4],
        spectrogram_table: [4, 4],
        text_table: 8,
        ..RawModel::preset(Preset::S)
    };
    let patching = Patching { tube: [2, 8, 8], spectrogram: [16, 16] };
    let classifiers = vec![Classifier { corpus: "digits".into(), stream: Stream::Vision, n_classes: 5 }];
    ModelConfig::check(raw, 50, patching, vec![(Stream::Text, Stream::Vision)], classifiers).unwrap()
}

/// A made-up batch that `tiny()` takes, with drop and padding.
fn batch(seed: u64, n: usize) -> Batch {
    let mut rng = rng_for(seed, Role::Synth, &[9]);
    let mut below = |n: u64| rng.below(n);
    let resolution = Resolution::Video { frames: 4, height: 32, width: 32 };
    let vision = VisionBatch {
        resolution,
        pixels: (0..n * 4 * 32 * 32 * 3).map(|_| below(256) as u8).collect(),
        kept: Some((0..n).flat_map(|_| (0..32u32).filter(|k| k % 2 == 0)).collect()),
    };
    let ids = (0..n * 8).map(|i| if i % 8 > 4 { 0 } else { below(49) as i32 + 1 }).collect();
    let labels = (0..n).map(|_| below(5) as u32).collect();
    let examples = (0..n as u64).map(|row| imp_schemas::batch::ExampleId { corpus_idx: 0, row, epoch: 0 }).collect();
    let text = TextBatch { n_tokens: 8, ids };
    Batch {
        step: 0,
        task_idx: 0,
        view_idx: 0,
        examples,
        vision: Some(vision),
        audio: None,
        text: Some(text),
        labels: Some(labels),
    }
}

#[test]
fn two_runs_of_one_seed_have_equal_losses_to_the_last_bit() {
    let run = || {
        let mut model = Imp::new(&tiny(), 3, &Cpu::default()).unwrap();
        let mut optimizer = AdamW::new(&model, AdamWSettings::default()).unwrap();
        let mut losses = Vec::new();
        for step in 0..6 {
            let objective = if step % 2 == 0 { Objective::Nce } else { Objective::Softmax };
            let Loss { value: loss, grads, .. } = model.loss(objective, "digits", &batch(step, 10)).unwrap();
            assert!((loss - model.loss_value(objective, "digits", &batch(step, 10)).unwrap()).abs() < 1e-6);
            optimizer.step(&mut model, grads, 1e-2).unwrap();
            losses.push(loss.to_bits());
        }
        let last = model.tensor("encoder/layer_1/ffn/wo/kernel").unwrap().1;
        (losses, last.iter().map(|v| v.to_bits()).collect::<Vec<u32>>())
    };
    assert_eq!(run(), run());
}

#[test]
fn the_whole_models_gradient_is_the_slope_of_its_loss() {
    let mut model = Imp::new(&tiny(), 11, &Cpu::default()).unwrap();
    for objective in [Objective::Nce, Objective::Softmax] {
        let batch = batch(5, 6);
        let grads = model.loss(objective, "digits", &batch).unwrap().grads;
        let mut rng = rng_for(1, Role::Synth, &[]);
        for name in model.names() {
            let i = model.index[&name];
            let (shape, values) = model.tensor(&name).unwrap();
            let mut taken = grads.0.clone();
            let gradient = taken.get_or_alloc_mut(&model.parameters[i].tensor).unwrap().to_vec();
            // Along a random direction, scaled so that the loss changes by far more than f32 rounds.
            let direction: Vec<f32> = values.iter().map(|_| rng.normal() as f32).collect();
            let length = direction.iter().map(|d| d * d).sum::<f32>().sqrt();
            let step = 1e-2 / length;
            let mut at = |by: f32| {
                let moved: Vec<f32> = values.iter().zip(&direction).map(|(v, d)| v + by * d).collect();
                model.load(&name, &shape, &moved).unwrap();
                f64::from(model.loss_value(objective, "digits", &batch).unwrap())
            };
            let slope = (at(step) - at(-step)) / f64::from(2.0 * step);
            at(0.0);
            let want: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
            // Central differences err by the square of the step; 3 % of the gradient's length covers it on these sizes.
            let size = f64::from(gradient.iter().map(|g| g * g).sum::<f32>().sqrt());
            assert!((slope - want).abs() <= 0.03 * size + 2e-4 * f64::from(length), "{name}: {slope} {want} {size}");
        }
    }
}

#[test]
fn a_parameter_of_the_wrong_name_or_shape_is_refused_by_name() {
    let mut model = Imp::new(&tiny(), 1, &Cpu::default()).unwrap();
    let message = model.load("vision/pre/kernal", &[1], &[0.0]).unwrap_err().to_string();
    assert!(
        message.contains("no parameter `vision/pre/kernal`") && message.contains("`vision/pre/kernel`"),
        "{message}"
    );
    let message = model.load("vision/pre/bias", &[31], &[0.0; 31]).unwrap_err().to_string();
    assert!(message.contains("shape [31], the model wants [32]"), "{message}");
    let text = TextBatch { n_tokens: 2, ids: vec![1, 50] };
    let message = model.embed_text(&text, Stream::Vision).unwrap_err().to_string();
    assert!(message.contains("token id 50 is out of range, must be below 50"), "{message}");
    let message =
        model.embed_text(&TextBatch { n_tokens: 1, ids: vec![1] }, Stream::Spectrogram).unwrap_err().to_string();
    assert!(message.contains("no head from text to spectrogram"), "{message}");
}

#[test]
fn embeddings_have_length_one_and_do_not_depend_on_their_neighbours() {
    let model = Imp::new(&tiny(), 1, &Cpu::default()).unwrap();
    let all = batch(2, 7);
    let vision = all.vision.unwrap();
    let together = model.embed_vision(&vision, Stream::Text).unwrap();
    let width = model.config().common_width();
    for row in together.chunks_exact(width) {
        assert!((ops::simd::sum_of_squares(row) - 1.0).abs() < 1e-4);
    }
    let per = vision.pixels.len() / 7;
    let kept = vision.kept.as_ref().map(|k| k[..k.len() / 7].to_vec());
    let alone = VisionBatch { pixels: vision.pixels[..per].to_vec(), kept, ..vision.clone() };
    let alone = model.embed_vision(&alone, Stream::Text).unwrap();
    assert!(alone.iter().zip(&together).all(|(a, b)| (a - b).abs() < 1e-5));
}
