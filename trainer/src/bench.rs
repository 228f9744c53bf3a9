//! How fast one training step is, in the sizes and the JSON lines of the peers' script.
//!
//! In: a device, a model's size. Out: seconds, tokens and FLOP/s of a contrastive step of pictures and sentences. Never: data; pictures
//! and ids are made up, and the loss is of no interest. Pictures come as bytes from the host, as they do from the loader.

use std::time::Instant;

use imp_schemas::batch::{Batch, ExampleId, TextBatch, VisionBatch};
use imp_schemas::resolution::{Patching, Resolution};
use serde::Serialize;

use crate::model::{Imp, ModelConfig, ModelError, RawExperts, RawModel, Stream};
use crate::objective::Goal;
use crate::ops::Backend;
use crate::optim::{AdamW, AdamWSettings};
use crate::plan::{self, Keeping};

/// Sides of a patch, and frames that a picture fills by repetition.
const TUBE: [usize; 3] = [4, 16, 16];
const VOCABULARY: usize = 32_100;
const COMMON_WIDTH: usize = 1024;

/// What is measured.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    pub depth: usize,
    pub width: usize,
    pub heads: usize,
    pub ffn_width: usize,
    /// The last ones have experts.
    pub sparse_blocks: usize,
    pub experts: usize,
    pub qk_norm: bool,
    /// A power of two.
    pub visual_tokens: usize,
    pub text_tokens: usize,
    pub batch: usize,
    pub steps: usize,
    pub warmup: usize,
    pub threads: usize,
    pub seed: u64,
    /// Time each kernel of one more step.
    pub profile: bool,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchLine {
    pub bench: &'static str,
    pub peer: String,
    pub version: &'static str,
    pub unit: &'static str,
    /// Median seconds of a step.
    pub value: f64,
    pub n: usize,
    pub threads: usize,
    pub shape: String,
    pub min: f64,
    pub max: f64,
    pub tokens_per_s: f64,
    pub examples_per_s: f64,
    pub gflop_per_step: f64,
    pub gflops: f64,
    pub parameters: usize,
    pub nce_first: f32,
    pub nce_last: f32,
    /// Greatest memory in use at once: the device's, or the process's.
    pub peak_mib: u64,
    /// What `imp-train plan` says of such a run.
    pub planned_mib: u64,
    /// Name, launches and seconds of each kernel of one more step, if that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<(String, usize, f64)>,
}

impl BenchOptions {
    fn model(&self) -> Result<ModelConfig, ModelError> {
        let mut raw = RawModel {
            depth: Some(self.depth),
            width: Some(self.width),
            heads: Some(self.heads),
            ffn_width: Some(self.ffn_width),
            common_width: Some(COMMON_WIDTH),
            qk_norm: Some(self.qk_norm),
            ..RawModel::preset(crate::model::Preset::S)
        };
        if self.sparse_blocks > 0 {
            // The weight that the peers' script gives the router's loss.
            raw.experts =
                Some(RawExperts { blocks: Some(self.sparse_blocks), z_weight: 1.0, ..RawExperts::of(self.experts) });
        }
        let patching = Patching { tube: TUBE, ..Patching::default() };
        ModelConfig::check(raw, VOCABULARY, patching, vec![(Stream::Vision, Stream::Text)], Vec::new())
    }

    /// Rows and columns of the grid, as the peers' script has them.
    fn grid(&self) -> [usize; 2] {
        let rows = 1 << (self.visual_tokens.max(1).ilog2() / 2);
        [rows, self.visual_tokens / rows]
    }

    fn batch(&self) -> Batch {
        let [rows, columns] = self.grid();
        let [_, dh, dw] = TUBE;
        let (height, width) = (rows * dh, columns * dw);
        let n = self.batch;
        let at = |i: usize| (i as u64 ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Batch {
            step: 0,
            task_idx: 0,
            view_idx: 0,
            examples: (0..n as u64).map(|row| ExampleId { corpus_idx: 0, row, epoch: 0 }).collect(),
            vision: Some(VisionBatch {
                resolution: Resolution::Image { height, width },
                pixels: (0..n * height * width * 3).map(|i| (at(i) >> 56) as u8).collect(),
                kept: None,
            }),
            audio: None,
            text: Some(TextBatch {
                n_tokens: self.text_tokens,
                ids: (0..n * self.text_tokens).map(|i| (at(i) >> 33) as i32 % (VOCABULARY as i32 - 1) + 1).collect(),
            }),
            labels: None,
        }
    }

    /// FLOPs of a step, counted as the peers' script does: a multiply-add is two, a backward pass twice the forward; norms, softmax,
    /// routing and the optimizer are nothing.
    pub fn flops(&self) -> f64 {
        let [d, f, c, b] = [self.width, self.ffn_width, COMMON_WIDTH, self.batch].map(|v| v as f64);
        let (blocks, sparse, experts) = (self.depth as f64, self.sparse_blocks as f64, self.experts as f64);
        let values = (TUBE.iter().product::<usize>() * 3) as f64;
        let of_stream = |n: f64, p: f64| {
            let embed = b * n * 2.0 * d * p;
            // With a capacity factor of 1 a token meets one expert.
            let layers = blocks * (8.0 * d * d + 4.0 * n * d) + blocks * 4.0 * d * f + sparse * 2.0 * d * experts;
            let forward = embed + b * n * (4.0 * d * d + layers) + b * (2.0 * d * c + 2.0 * c * c) + b * b * c;
            3.0 * forward - embed
        };
        of_stream(self.visual_tokens as f64, values) + of_stream(self.text_tokens as f64, 0.0)
    }
}

/// What a device tells besides.
pub trait Probe {
    /// Greatest memory in use at once, MiB.
    fn peak_mib(&self) -> u64;

    /// Begins to time kernels.
    fn begin(&self) {}

    /// Name, launches and seconds of each kernel since.
    fn end(&self) -> Vec<(String, usize, f64)> {
        Vec::new()
    }
}

/// Trains for some steps and says how long they took. `peer` names the device and precision, `keeping` says what the device keeps.
///
/// # Errors
/// Sizes that cannot be, or the device failed.
pub fn run<D: Backend>(
    dev: &D,
    options: &BenchOptions,
    peer: String,
    keeping: Keeping,
    probe: &impl Probe,
) -> Result<BenchLine, ModelError> {
    let [rows, columns] = options.grid();
    if rows * columns != options.visual_tokens || options.visual_tokens == 0 {
        let wanted = rows * columns;
        return Err(ModelError::Values {
            what: "a power of two of visual tokens",
            found: options.visual_tokens,
            wanted,
        });
    }
    let config = options.model()?;
    let mut model = Imp::new(&config, options.seed, dev)?;
    // Without a clip, as the peers have none.
    let settings = AdamWSettings { weight_decay: 0.01, clip_norm: f64::MAX, eps: 1e-8, ..AdamWSettings::default() };
    let mut optimizer = AdamW::new(&model, settings)?;
    let batch = options.batch();
    let wait = || dev.try_synchronize().map_err(|e| ModelError::Device(e.to_string()));
    let (mut seconds, mut losses) = (Vec::with_capacity(options.steps), Vec::new());
    for step in 0..options.warmup + options.steps {
        let begin = Instant::now();
        let loss = model.loss(&Goal::nce(), &batch)?;
        optimizer.step(&mut model, loss.grads, 1e-4)?;
        wait()?;
        if step >= options.warmup {
            seconds.push(begin.elapsed().as_secs_f64());
        }
        crate::huge_pages::follow();
        let z = loss.routing.map_or(0.0, |r| r.z_loss);
        losses.push(loss.value - z);
    }
    let peak_mib = probe.peak_mib();
    let mut kernels = Vec::new();
    if options.profile {
        probe.begin();
        let begin = Instant::now();
        let loss = model.loss(&Goal::nce(), &batch)?;
        optimizer.step(&mut model, loss.grads, 1e-4)?;
        wait()?;
        let all = begin.elapsed().as_secs_f64();
        kernels = probe.end();
        let ours: f64 = kernels.iter().map(|(_, _, seconds)| seconds).sum();
        kernels.push(("elsewhere".to_owned(), 1, all - ours));
        // And once more by halves, without timing kernels.
        let begin = Instant::now();
        let loss = model.loss(&Goal::nce(), &batch)?;
        wait()?;
        kernels.push(("loss and gradients".to_owned(), 1, begin.elapsed().as_secs_f64()));
        let begin = Instant::now();
        optimizer.step(&mut model, loss.grads, 1e-4)?;
        wait()?;
        kernels.push(("update".to_owned(), 1, begin.elapsed().as_secs_f64()));
        let begin = Instant::now();
        model.loss_value(&Goal::nce(), &batch)?;
        wait()?;
        kernels.push(("loss alone".to_owned(), 1, begin.elapsed().as_secs_f64()));
    }
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    let tokens = options.batch * (options.visual_tokens + options.text_tokens);
    let flops = options.flops();
    let BenchOptions { depth, width, heads, ffn_width, sparse_blocks, batch: n, visual_tokens, text_tokens, .. } =
        options;
    let experts = if *sparse_blocks > 0 { options.experts } else { 0 };
    Ok(BenchLine {
        bench: "train_step",
        peer,
        version: env!("CARGO_PKG_VERSION"),
        unit: "s/step",
        value: median,
        n: seconds.len(),
        threads: options.threads,
        shape: format!(
            "L{depth} d{width} h{heads} f{ffn_width} moe{sparse_blocks}x{experts} b{n} v{visual_tokens} t{text_tokens}"
        ),
        min: sorted.first().copied().unwrap_or(f64::NAN),
        max: sorted.last().copied().unwrap_or(f64::NAN),
        tokens_per_s: tokens as f64 / median,
        examples_per_s: *n as f64 / median,
        gflop_per_step: flops / 1e9,
        gflops: flops / median / 1e9,
        parameters: config.n_parameters(),
        nce_first: losses.first().copied().unwrap_or(f32::NAN),
        nce_last: losses.last().copied().unwrap_or(f32::NAN),
        peak_mib,
        planned_mib: (plan::state_mib(config.n_parameters(), 1, false, keeping.precision)
            + keeping.mib(&config, &[(Stream::Vision, *n, *visual_tokens), (Stream::Text, *n, *text_tokens)]))
            as u64,
        kernels,
    })
}

#[cfg(test)]
mod tests {
    use dfdx::prelude::Cpu;

    use super::*;
    use crate::ops::Precision;

    fn options() -> BenchOptions {
        BenchOptions {
            depth: 12,
            width: 768,
            heads: 12,
            ffn_width: 3072,
            sparse_blocks: 6,
            experts: 16,
            qk_norm: false,
            visual_tokens: 256,
            text_tokens: 16,
            batch: 256,
            steps: 1,
            warmup: 0,
            threads: 2,
            seed: 1,
            profile: false,
        }
    }

    /// As `shared/bench/torch_step.py` printed for these sizes.
    #[test]
    fn flops_and_parameters_are_those_that_the_peers_script_counts() {
        let dense = BenchOptions { sparse_blocks: 0, ..options() };
        assert!((dense.flops() / 1e9 - 38_465.06).abs() < 0.01);
        assert!((options().flops() / 1e9 - 38_495.86).abs() < 0.01);
        assert_eq!(dense.model().unwrap().n_parameters(), 121_218_305);
        assert_eq!(options().model().unwrap().n_parameters(), 545_965_313);
    }

    const KEEPING: Keeping = Keeping { precision: Precision::F32, recompute: false, on_cpu: true };

    struct Nothing;

    impl Probe for Nothing {
        fn peak_mib(&self) -> u64 {
            0
        }
    }

    #[test]
    fn a_step_is_timed_and_sizes_that_fill_no_grid_are_refused() {
        let small =
            BenchOptions { depth: 1, width: 32, heads: 1, ffn_width: 64, visual_tokens: 4, batch: 2, ..options() };
        let small = BenchOptions { sparse_blocks: 0, steps: 3, ..small };
        let line = run(&Cpu::default(), &small, "imp".to_owned(), KEEPING, &Nothing).unwrap();
        assert_eq!(line.n, 3);
        assert!(line.min <= line.value && line.value <= line.max && line.nce_first.is_finite());
        let odd = BenchOptions { visual_tokens: 6, ..small.clone() };
        assert!(run(&Cpu::default(), &odd, "imp".to_owned(), KEEPING, &Nothing).is_ok());
        let none = BenchOptions { visual_tokens: 7, ..small };
        assert!(matches!(
            run(&Cpu::default(), &none, "imp".to_owned(), KEEPING, &Nothing),
            Err(ModelError::Values { found: 7, .. })
        ));
    }
}
