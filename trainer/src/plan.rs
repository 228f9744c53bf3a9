//! What a run will ask of its device, before the first batch: parameters, FLOPs and memory by task and view.
//!
//! In: a checked config, the corpora's manifests. Out: numbers. Never: a step; what is measured comes from `imp-train bench`.
//!
//! Memory is that of experts with a capacity factor of 1. FLOPs do not count that a contrastive batch in parts is embedded twice.
//! A multiply-add is two FLOPs, a backward pass twice the forward, and the embedding of data has no gradient of its input. Norms,
//! softmax, routing and the optimizer count nothing.

use imp_schemas::store::Store;
use imp_schemas::task::{Alternation, Task, View};
use serde::Serialize;

use crate::config::TrainConfig;
use crate::model::{ExpertsConfig, ModelConfig, Stream};
use crate::ops::Precision;
use crate::optim::Moments;
use crate::train::{self, TrainError, sequences_by_stream};

/// A run, before it runs. Shares of tasks and views are those of its first step: phases may change them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub n_parameters: usize,
    pub n_encoder_parameters: usize,
    /// Mean over the tasks' shares.
    pub flops_per_step: f64,
    pub tokens_per_step: f64,
    /// Of the whole run.
    pub flops: f64,
    /// Parameters, gradients, moments, the mean if there is one, and on CUDA the mirrors.
    pub state_mib: f64,
    /// What a step's share of an update reads and writes.
    pub update_bytes: f64,
    pub tasks: Vec<TaskPlan>,
}

/// What a device does at most, measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ceiling {
    /// Of large products, in the precision that they are fastest in.
    pub gflops: f64,
    /// To and from memory; `None` on CUDA, where it is not measured.
    pub gb_per_s: Option<f64>,
}

impl Plan {
    /// Seconds below which no mean step can be: its products, and the update's way through memory.
    pub fn floor_seconds(&self, ceiling: &Ceiling) -> f64 {
        let update = ceiling.gb_per_s.map_or(0.0, |rate| self.update_bytes / rate / 1e9);
        self.flops_per_step / ceiling.gflops / 1e9 + update
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskPlan {
    pub name: String,
    /// Of the steps.
    pub share: f64,
    pub views: Vec<ViewPlan>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ViewPlan {
    /// Of the task's steps.
    pub share: f64,
    /// Examples of a batch.
    pub n: usize,
    /// Of one example, by stream, after DropToken.
    pub tokens: Vec<(Stream, usize)>,
    /// Of a step.
    pub flops: f64,
    /// What the encoder keeps of a step for the way back.
    pub kept_mib: f64,
}

const MIB: f64 = (1 << 20) as f64;

/// Reads manifests, and the footers of shards.
///
/// # Errors
/// The store failed, or the model cannot be.
pub fn of(config: &TrainConfig, store: &Store) -> Result<Plan, TrainError> {
    let manifests = imp_loader::snapshots(store, &config.mixture)?;
    let model = train::model_config(config, &manifests)?;
    let tasks = config.mixture.tasks();
    let weights: Vec<f64> = match config.mixture.alternation() {
        Alternation::Intervals => tasks.iter().map(|task| 1.0 / task.interval() as f64).collect(),
        Alternation::Weights | Alternation::Random => tasks.iter().map(Task::weight).collect(),
    };
    let all: f64 = weights.iter().sum();
    let tasks: Vec<TaskPlan> =
        tasks.iter().zip(&weights).map(|(task, w)| of_task(config, &model, task, w / all)).collect();
    let mean = |of: fn(&ViewPlan) -> f64| -> f64 {
        tasks.iter().map(|t| t.share * t.views.iter().map(|v| v.share * of(v)).sum::<f64>()).sum()
    };
    let flops_per_step = mean(|view| view.flops);
    let tokens_per_step = mean(|view| (view.n * view.tokens.iter().map(|(_, n)| n).sum::<usize>()) as f64);
    let n = model.n_parameters();
    let pairs = if config.optimizer.moments == Moments::PerTask { tasks.len() } else { 1 };
    let averages = config.optimizer.ema > 0.0;
    let copies = 4.0 + f64::from(u8::from(averages));
    Ok(Plan {
        n_parameters: n,
        n_encoder_parameters: model.n_encoder_parameters(),
        flops_per_step,
        tokens_per_step,
        flops: flops_per_step * config.steps as f64,
        state_mib: state_mib(n, pairs, averages, config.precision),
        // The gradient is read; the parameter, its moments, and the mean if there is one, are read and written.
        update_bytes: n as f64 * 4.0 * (2.0 * copies - 1.0) / config.accumulate as f64,
        tasks,
    })
}

/// MiB of so many parameters, their gradients, `pairs` of moments, the mean if there is one, and on CUDA the mirrors.
pub(crate) fn state_mib(n_parameters: usize, pairs: usize, averages: bool, precision: Precision) -> f64 {
    let mirrors = if precision == Precision::Bf16 { 1.5 } else { 0.0 };
    let copies = 2.0 + 2.0 * pairs as f64 + f64::from(u8::from(averages)) + mirrors;
    n_parameters as f64 * 4.0 * copies / MIB
}

/// The program itself with its threads, as measured on Linux.
const PROCESS_MIB: f64 = 35.0;

/// Values of one token before it is embedded.
fn n_values(model: &ModelConfig, stream: Stream) -> usize {
    match stream {
        Stream::Vision => model.patching().n_tube_values(),
        Stream::Spectrogram => model.patching().n_spectrogram_values(),
        Stream::Waveform => model.patching().waveform,
        Stream::Text => 0,
    }
}

/// What decides how much a step keeps until its way back.
#[derive(Debug, Clone, Copy)]
pub struct Keeping {
    pub precision: Precision,
    pub recompute: bool,
    pub on_cpu: bool,
}

impl Keeping {
    /// MiB that a step keeps of its calls of the encoder, each of so many sequences of so many tokens.
    pub(crate) fn mib(self, model: &ModelConfig, calls: &[(Stream, usize, usize)]) -> f64 {
        let bytes = |n_tokens: usize| match self.recompute {
            true => model.kept_inputs_bytes(n_tokens),
            false => model.kept_bytes(n_tokens, self.precision),
        };
        // On the CPU each call has its values as f32 beside it, with what is around the encoder. What stock ops keep on CUDA in f32 is not
        // told.
        let beside = |stream, n_tokens: usize| {
            4.0 * n_tokens as f64
                * (n_values(model, stream) + 4 * model.width()) as f64
                * f64::from(u8::from(self.on_cpu))
        };
        let call = |&(stream, n, n_tokens): &(_, usize, usize)| n as f64 * (bytes(n_tokens) + beside(stream, n_tokens));
        let kept = calls.iter().map(call).sum::<f64>() / MIB;
        if !self.on_cpu {
            return kept;
        }
        // On the way back through the last block of the largest call: both sides of its kernels' gradients, in place of what it kept.
        let (d, f) = (model.width() as f64, model.ffn_width() as f64);
        let through = |&(_, n, n_tokens): &(_, usize, usize)| 4.0 * (n * n_tokens) as f64 * (3.0 * d + f) / MIB;
        kept + calls.iter().map(through).fold(0.0, f64::max) + model.packed_bytes() / MIB + PROCESS_MIB
    }
}

fn of_task(config: &TrainConfig, model: &ModelConfig, task: &Task, share: f64) -> TaskPlan {
    let all: f64 = task.views().iter().map(View::weight).sum();
    let views = task.views().iter().map(|view| {
        let sequences = sequences_by_stream(view, config.mixture.patching());
        // A part of the batch is in the encoder at a time.
        let at_once = config.micro_batch.map_or(view.n(), |most| most.min(view.n()));
        let calls: Vec<_> = sequences.iter().map(|&(stream, n, n_tokens)| (stream, at_once * n, n_tokens)).collect();
        let keeping =
            Keeping { precision: config.precision, recompute: config.recompute, on_cpu: config.device == "cpu" };
        let kept_mib = keeping.mib(model, &calls);
        let flops = step_flops(model, task.objectives().has_nce(), view.n(), &sequences);
        let tokens = sequences.into_iter().map(|(stream, n, n_tokens)| (stream, n * n_tokens)).collect();
        ViewPlan { share: view.weight() / all, n: view.n(), tokens, flops, kept_mib }
    });
    TaskPlan { name: task.name().to_owned(), share, views: views.collect() }
}

/// FLOPs of one step on a batch of `n` examples.
fn step_flops(model: &ModelConfig, nce: bool, n: usize, sequences: &[(Stream, usize, usize)]) -> f64 {
    let (d, c, n) = (model.width() as f64, model.common_width() as f64, n as f64);
    let mut flops = 0.0;
    for &(stream, n_sequences, n_tokens) in sequences {
        let embed = 2.0 * n_tokens as f64 * n_values(model, stream) as f64 * d;
        let projections = 2.0 * d * d * (n_tokens as f64 + 1.0);
        flops += n * n_sequences as f64 * (2.0 * embed + 3.0 * (model.encoder_flops(n_tokens) + projections));
    }
    // Each stream meets each other one. What a classifier takes is nothing beside the rest.
    let mut heads = 0.0;
    for (i, &(_, a, _)) in sequences.iter().enumerate().filter(|_| nce) {
        for &(_, b, _) in &sequences[i + 1..] {
            let (a, b) = (n * a as f64, n * b as f64);
            heads += (a + b) * (2.0 * d * c + 2.0 * c * c) + 2.0 * a * b * c;
        }
    }
    flops + 3.0 * heads
}

impl ModelConfig {
    /// Bytes of the blocks' kernels, which the CPU packs once a step for all calls; those of soft experts, whose ops are stock, are not.
    fn packed_bytes(&self) -> f64 {
        let (d, f, depth) = (self.width() as f64, self.ffn_width() as f64, self.depth() as f64);
        let sparse = self.experts().map_or(0.0, |e| e.n_blocks() as f64);
        let experts = self.experts().filter(|e| e.slots().is_none()).map_or(0.0, |e| e.n() as f64);
        4.0 * (depth * 4.0 * d * d + (depth - sparse + sparse * experts) * 2.0 * d * f)
    }

    /// As [`Self::kept_bytes`], where only inputs are kept: those of all blocks, all of one block, made again, what its kernels' gradients
    /// are made of, and what experts keep.
    fn kept_inputs_bytes(&self, n_tokens: usize) -> f64 {
        let (d, f, n, depth) = (self.width() as f64, self.ffn_width() as f64, n_tokens as f64, self.depth() as f64);
        let sparse = self.experts().map_or(0.0, |e| e.n_blocks() as f64);
        let one = self.kept_bytes(n_tokens, Precision::F32) / depth;
        4.0 * n * d * depth + one + 4.0 * n * (7.0 * d + 2.0 * f) + sparse * 4.0 * n * (d + f)
    }

    /// Bytes that the encoder keeps of one example of `n_tokens` until its way back.
    fn kept_bytes(&self, n_tokens: usize, precision: Precision) -> f64 {
        let (d, f, n, h) = (self.width() as f64, self.ffn_width() as f64, n_tokens as f64, self.heads() as f64);
        let (depth, sparse) = (self.depth() as f64, self.experts().map_or(0.0, |e| e.n_blocks() as f64));
        let experts = self.experts().map_or(0.0, |e| e.n() as f64);
        if let Some(slots) = self.experts().and_then(ExpertsConfig::slots) {
            // Of stock ops, in f32 on any device: normed tokens, logits three times; slots before and behind their expert, and inside.
            let (normed, s) = (if self.qk_norm() { 3.0 * d + 4.0 * h } else { 0.0 }, slots as f64);
            let block = 4.0 * n * (6.0 * d + f + 2.0 * h + 4.0 + normed);
            return depth * block + sparse * 4.0 * (n * (5.0 * d + 6.0 * s) + s * (6.0 * d + 3.0 * f) - n * f);
        }
        match precision {
            // Input, middle, q, k and v, the joined heads, before GELU; two numbers of each softmax and LayerNorm.
            Precision::F32 => {
                let normed = if self.qk_norm() { 3.0 * d + 4.0 * h } else { 0.0 };
                let dense = 4.0 * n * (6.0 * d + f + 2.0 * h + 4.0 + normed);
                depth * dense + sparse * 4.0 * n * (d + experts)
            }
            // The stream twice in f32; normed twice, q, k, v, the joined heads, before and after GELU in bf16; logarithms of sums.
            Precision::Bf16 => {
                let normed = if self.qk_norm() { 4.0 * d + 16.0 * h } else { 0.0 };
                let dense = n * (8.0 * d + 2.0 * (2.0 * d + 3.0 * d + d + 2.0 * f) + 4.0 * h + 16.0 + normed);
                depth * dense + sparse * n * (4.0 * d + 8.0 * experts)
            }
        }
    }
}
