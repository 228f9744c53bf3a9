//! Shards → batches, by a plan without state.
//!
//! The batch of a step is a pure function of (manifests, mixture, seed, step): `sampler` says which task a step trains,
//! `plan` which examples, `augment` what is drawn for each; `fetch`, `decode` and `assemble` only carry it out, on the
//! threads of `pipeline`. Threads, queues and caches never change a byte of a batch.
//!
//! Never here: a tensor, ingest, a random number without an address, a batch that is short or padded, state that a resumed
//! run would have to replay.

mod assemble;
mod augment;
#[cfg(feature = "benching")]
pub mod benching;
mod buckets;
mod budget;
mod cache;
mod config;
mod corpora;
mod decode;
mod error;
mod eval;
mod explain;
mod fetch;
mod loader;
mod one;
mod open;
mod permute;
mod pipeline;
mod plan;
mod pool;
mod recipe;
mod record;
mod sampler;
mod shuffle;
mod simulate;
mod stats;

pub use config::{LoaderSettings, Rank};
pub use error::{ContentFault, LoaderError};
pub use eval::{EvalBatch, EvalLoader, EvalSpec};
pub use explain::{ExplainedCrop, ExplainedExample, ExplainedStep, explain};
pub use loader::{Loader, Watch};
pub use one::batches_of_file;
pub use open::snapshots;
pub use shuffle::ShuffleQuality;
pub use simulate::{Shape, SimulateOptions, Simulated, SimulatedTask, simulate};
pub use stats::{Bound, LoaderStats, StageSeconds, Stages, Substituted};
