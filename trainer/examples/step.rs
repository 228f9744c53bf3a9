//! How fast one contrastive step is, and where its time goes.
//!
//! In: nothing, or `WIDTH DEPTH BATCH IMAGE_SIDE`. Out: tokens/s and GFLOP/s of useful work. Never: data; pictures and
//! sentences are made up, and the loss is of no interest.
//!
//! `cargo run --release -p imp-trainer --example step`

use std::time::Instant;

use dfdx::prelude::Cpu;
use imp_schemas::batch::{Batch, ExampleId, TextBatch, VisionBatch};
use imp_schemas::resolution::{Patching, Resolution};
use imp_schemas::task::Objective;
use imp_trainer::model::{Imp, ModelConfig, RawModel, Stream};
use imp_trainer::ops;
use imp_trainer::optim::{AdamW, AdamWSettings};

/// Tokens of a sentence.
const N_TEXT: usize = 16;
/// Updates before the clock starts, and while it runs.
const N_STEPS: (usize, usize) = (3, 10);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let size = |i: usize, default: usize| sizes.get(i).copied().unwrap_or(default);
    let (width, depth, n, side) = (size(0, 192), size(1, 6), size(2, 64), size(3, 64));
    ops::set_threads(2)?;
    let raw: RawModel = serde_json::from_value(serde_json::json!({
        "width": width, "depth": depth, "heads": width / 32, "text_table": 64,
        "vision_table": [4, 16, 16], "spectrogram_table": [16, 8],
    }))?;
    let patching = Patching { tube: [4, 8, 8], spectrogram: [16, 16] };
    let pairs = vec![(Stream::Vision, Stream::Text)];
    let config = ModelConfig::check(raw, 1024, patching, pairs, Vec::new())?;
    let mut model = Imp::new(&config, 7, &Cpu::default())?;
    let mut optimizer = AdamW::new(&model, AdamWSettings::default())?;
    let resolution = Resolution::Image { height: side, width: side };
    let n_visual = resolution.n_tokens(&patching)?;
    let batch = Batch {
        step: 0,
        task_idx: 0,
        view_idx: 0,
        examples: (0..n as u64).map(|row| ExampleId { corpus_idx: 0, row, epoch: 0 }).collect(),
        vision: Some(VisionBatch {
            resolution,
            pixels: (0..n * side * side * 3).map(|i| (i * 7919 % 251) as u8).collect(),
            kept: None,
        }),
        audio: None,
        text: Some(TextBatch { n_tokens: N_TEXT, ids: (0..n * N_TEXT).map(|i| (i * 31 % 1000) as i32 + 1).collect() }),
        labels: None,
    };
    let (mut forward_backward, mut update) = (0.0, 0.0);
    for step in 0..N_STEPS.0 + N_STEPS.1 {
        let start = Instant::now();
        let loss = model.loss(Objective::Nce, "", &batch)?;
        let middle = Instant::now();
        let done = optimizer.step(&mut model, loss.grads, 1e-4)?;
        if step >= N_STEPS.0 {
            forward_backward += (middle - start).as_secs_f64();
            update += middle.elapsed().as_secs_f64();
        }
        if step + 1 == N_STEPS.0 + N_STEPS.1 {
            println!("loss {:.4}, gradient norm {:.4}", loss.value, done.grad_norm);
        }
    }
    let n_steps = N_STEPS.1 as f64;
    let seconds = (forward_backward + update) / n_steps;
    let n_tokens = n * (n_visual + N_TEXT);
    let embed = 2.0 * (n_visual * patching.n_tube_values() * width) as f64;
    // Training costs three forward passes; the embedding of data needs no gradient of its input, so two.
    let flops = n as f64 * (3.0 * (config.encoder_flops(n_visual) + config.encoder_flops(N_TEXT)) + 2.0 * embed);
    println!(
        "width {width}, depth {depth}, {n} examples of {n_visual} + {N_TEXT} tokens, {} parameters",
        config.n_parameters()
    );
    println!(
        "{:.1} ms a step ({:.1} forward and backward, {:.1} update), {:.0} tokens/s, {:.1} GFLOP/s",
        seconds * 1e3,
        forward_backward / n_steps * 1e3,
        update / n_steps * 1e3,
        n_tokens as f64 / seconds,
        flops / seconds / 1e9
    );
    Ok(())
}
