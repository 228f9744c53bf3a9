//! The command line of `imp-train`: what can be asked, and with which defaults.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use imp_trainer::bench::BenchOptions;
use imp_trainer::ops::Precision;

/// Trains one IMP encoder by alternating gradient descent, and evaluates it.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Train until the config's last step; resumes by itself from the newest checkpoint of the run.
    Fit {
        #[command(flatten)]
        place: Place,
        /// Stop after this many updates instead of `train.steps`; the learning-rate schedule stays the config's.
        #[arg(long)]
        steps: Option<u64>,
        /// Serve the loader's totals for Prometheus at this address, under /metrics.
        #[arg(long, value_name = "ADDR:PORT")]
        serve_metrics: Option<SocketAddr>,
    },
    /// Score the newest checkpoint on the config's evaluations; writes `scores.json` into the run.
    Eval {
        #[command(flatten)]
        place: Place,
        /// Also write the scores to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Embed the media and captions of an evaluation's split with the newest checkpoint, into a Parquet file.
    Embed {
        #[command(flatten)]
        place: Place,
        /// Name of the `[[train.eval]]` that says which corpus, split and size.
        #[arg(long, value_name = "NAME")]
        eval: String,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Find the media and the captions that are nearest to a text or a file, among those of `imp-train embed`.
    Search {
        #[command(flatten)]
        place: Place,
        /// What `imp-train embed` wrote.
        #[arg(long, value_name = "FILE")]
        among: PathBuf,
        /// How many of each.
        #[arg(short, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        n: u32,
        /// One JSON object instead of tables.
        #[arg(long)]
        json: bool,
        /// A picture, a clip or a sound to start from.
        #[arg(long, value_name = "FILE", conflicts_with = "text", required_unless_present = "text")]
        file: Option<PathBuf>,
        /// The text to start from.
        text: Option<String>,
    },
    /// Say what a run will ask of its device: parameters, FLOPs, tokens and memory by task and view. Reads manifests and the footers of
    /// shards.
    Plan {
        #[command(flatten)]
        place: Place,
        /// One JSON object instead of tables.
        #[arg(long)]
        json: bool,
    },
    /// Compare a device with the CPU: losses, gradients, embeddings and updates of small models of odd sizes. Needs no files.
    Selftest {
        /// `cpu` or `cuda:N`.
        #[arg(long, default_value = "cpu")]
        device: String,
        /// `f32` or `bf16`; absent: all that the device has.
        #[arg(long, value_parser = precision)]
        precision: Option<Precision>,
        /// Threads on the CPU.
        #[arg(long, value_name = "N", default_value_t = 2)]
        threads: usize,
    },
    /// Time training steps of a chosen size on made-up pictures and sentences.
    Bench {
        /// `cpu` or `cuda:N`.
        #[arg(long, default_value = "cpu")]
        device: String,
        /// `f32` or `bf16`.
        #[arg(long, value_parser = precision, default_value = "f32")]
        precision: Precision,
        #[command(flatten)]
        size: Size,
        /// Time each kernel of one more step; on CUDA only.
        #[arg(long)]
        profile: bool,
        /// JSON lines instead of a sentence.
        #[arg(long)]
        json: bool,
    },
    /// Time the steps of a run's mixture on this device: every task and view, the same shape again and again, and another one at every
    /// step. Trains a model that is thrown away.
    Steps {
        #[command(flatten)]
        place: Place,
        /// How often both orders are run, in turn.
        #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Steps of each task and view in a round of either order.
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..))]
        each: u32,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Run the loader against a trainer that takes no time: how fast batches come, what holds them up, what to change.
    Data {
        #[command(flatten)]
        place: Place,
        /// Batches to take after the first.
        #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
        steps: u64,
        /// Milliseconds that the trainer takes for a step.
        #[arg(long, value_name = "MS", default_value_t = 0)]
        step_ms: u64,
        /// Decoding threads, instead of `train.loader.decode_threads`.
        #[arg(long, value_name = "N")]
        decode_threads: Option<usize>,
        /// The first step, counted from 0.
        #[arg(long, value_name = "N", default_value_t = 0)]
        from_step: u64,
        /// This rank's part of every batch, counted from 0.
        #[arg(long, value_name = "R", default_value_t = 0)]
        rank: usize,
        /// Number of ranks.
        #[arg(long, value_name = "N", default_value_t = 1)]
        ranks: usize,
        /// Write a line of JSON for each batch: step, task, view, and of each example corpus, row, epoch and the BLAKE3 of what it
        /// holds. Costs time.
        #[arg(long, value_name = "FILE")]
        digests: Option<PathBuf>,
        /// Serve the loader's totals for Prometheus at this address, under /metrics.
        #[arg(long, value_name = "ADDR:PORT")]
        serve_metrics: Option<SocketAddr>,
        /// One JSON object instead of tables.
        #[arg(long)]
        json: bool,
    },
    /// Say what steps will read without reading it: requests, bytes, cache hits and time on a cluster, every shape that a batch may
    /// have, and how well the order is shuffled. Reads manifests and the footers of shards.
    Simulate {
        #[command(flatten)]
        place: Place,
        /// Steps to walk.
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
        steps: u64,
        /// The first step, counted from 0.
        #[arg(long, value_name = "N", default_value_t = 0)]
        from_step: u64,
        /// Number of ranks, each on a machine of its own.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
        ranks: u16,
        /// Disk cache of each rank, GiB, instead of the config's.
        #[arg(long, value_name = "GIB")]
        cache_gib: Option<f64>,
        /// Milliseconds until the first byte of an answer.
        #[arg(long, value_name = "MS", default_value_t = 30.0)]
        latency_ms: f64,
        /// What one rank reads in a second, MiB.
        #[arg(long, value_name = "MIB", default_value_t = 200.0)]
        mib_per_second: f64,
        /// One JSON object instead of tables.
        #[arg(long)]
        json: bool,
    },
    /// Say which records a step trains on, past or future, and their captions, crops, flips and frames: by the snapshots that the run's
    /// newest checkpoint holds, or by the newest ones if there is no run yet.
    Explain {
        #[command(flatten)]
        place: Place,
        /// Counted from 0.
        #[arg(long, value_name = "N")]
        step: u64,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
}

/// Sizes as in the peers' script.
#[derive(clap::Args)]
pub struct Size {
    #[arg(long, default_value_t = 12)]
    pub layers: usize,
    #[arg(long, default_value_t = 384)]
    pub dim: usize,
    #[arg(long, default_value_t = 6)]
    pub heads: usize,
    #[arg(long, default_value_t = 1536)]
    pub ffn: usize,
    /// Last blocks that have experts.
    #[arg(long, default_value_t = 0)]
    pub moe_layers: usize,
    #[arg(long, default_value_t = 16)]
    pub experts: usize,
    /// LayerNorm of queries and keys.
    #[arg(long)]
    pub qk_norm: bool,
    /// A power of two.
    #[arg(long, default_value_t = 256)]
    pub visual_tokens: usize,
    #[arg(long, default_value_t = 16)]
    pub text_tokens: usize,
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

fn precision(name: &str) -> std::result::Result<Precision, String> {
    match name {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        other => Err(format!("`{other}` is neither `f32` nor `bf16`")),
    }
}

#[derive(clap::Args)]
pub struct Place {
    /// The run file; `imp-train` reads its `[train]` table.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Where the shards are, instead of the config's `store`: a folder or s3://bucket/prefix.
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// Where checkpoints, metrics and scores go, instead of the config's `run`.
    #[arg(long, value_name = "URL")]
    pub run: Option<String>,
    /// Threads of the matrix products, instead of `train.threads`.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

impl Size {
    pub fn options(self, profile: bool) -> BenchOptions {
        BenchOptions {
            depth: self.layers,
            width: self.dim,
            heads: self.heads,
            ffn_width: self.ffn,
            sparse_blocks: self.moe_layers,
            experts: self.experts,
            qk_norm: self.qk_norm,
            visual_tokens: self.visual_tokens,
            text_tokens: self.text_tokens,
            batch: self.batch,
            steps: self.steps.max(1),
            warmup: self.warmup,
            threads: self.threads,
            seed: self.seed,
            profile,
        }
    }
}
