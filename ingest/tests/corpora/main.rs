//! Corpora in Parquet and in object storage, and files that are wrong in known ways, through the whole of ingest.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

#[expect(dead_code, reason = "this target uses a part of the helpers that `it` has")]
#[path = "../it/common.rs"]
mod common;
mod object_storage;
mod parquet;
#[cfg(real_data)]
mod real_data;
mod tables;
