//! What a checkpoint holds, and where it lies.
//!
//! ```text
//! <run>/checkpoints/00000100/model.safetensors       parameters, f32, named as in ARCHITECTURE.md
//! <run>/checkpoints/00000100/optimizer.safetensors   `mu/<name>` and `nu/<name>`
//! <run>/checkpoints/00000100/checkpoint.json         this file's [`CheckpointMeta`]; written last: with it the checkpoint exists
//! ```

use serde::{Deserialize, Serialize};

use crate::cursor::Cursor;
use crate::shard::Digest;
use crate::version::Version;

/// Everything but the tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointMeta {
    pub format: Version,
    /// Updates done; also the number in the key.
    pub step: u64,
    pub cursor: Cursor,
    pub model_digest: Digest,
    pub optimizer_digest: Digest,
    /// The tokenizer that the text embedding belongs to.
    pub tokenizer_digest: Digest,
    /// The checked `[train]` table that the run was started with.
    pub config: serde_json::Value,
}

/// The files of the checkpoint after `step` updates, relative to the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointKeys {
    pub model: String,
    pub optimizer: String,
    pub meta: String,
}

/// Where the checkpoint after `step` updates lies, relative to the run.
pub fn checkpoint_keys(step: u64) -> CheckpointKeys {
    let dir = format!("checkpoints/{step:08}");
    CheckpointKeys {
        model: format!("{dir}/model.safetensors"),
        optimizer: format!("{dir}/optimizer.safetensors"),
        meta: format!("{dir}/checkpoint.json"),
    }
}

/// The step in the key of a checkpoint's meta file; `None` for any other key.
pub fn step_of_meta_key(key: &str) -> Option<u64> {
    let step = key.strip_suffix("/checkpoint.json")?.rsplit('/').next()?;
    step.parse().ok()
}
