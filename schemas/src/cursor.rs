//! What was consumed: all the state that a resumed run needs to see the same batches.
//!
//! The batch at a step is a pure function of manifests, mixture, seed and step, so the counts below could be computed again
//! from `step`; they are kept because resuming checks them, and because a reader of a checkpoint wants to know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How far one task has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskCursor {
    pub name: String,
    /// Steps of this task, those that `skip` left out included.
    pub n_steps: u64,
    /// Examples that those steps consumed.
    pub n_examples: u64,
}

/// Saved with every checkpoint: what the trainer consumed, not what was prefetched. Below 4 KB for 20 tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The next step.
    pub step: u64,
    pub seed: u64,
    /// [`crate::task::Mixture::digest_before`] of `step`.
    pub mixture_digest: String,
    /// Digest of the manifest of every corpus, by corpus name.
    pub manifest_digests: BTreeMap<String, String>,
    /// In the mixture's order.
    pub tasks: Vec<TaskCursor>,
}
