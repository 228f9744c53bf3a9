//! The whole path, in one test binary: real encoded files → shards → batches → steps → scores, on a folder and on a real
//! S3-protocol server over HTTP. What needs a process of its own to kill is in `trainer/tests/resume.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod batches_to_steps;
mod corpus_to_shards;
mod failures;
mod fixture;
mod shards_to_batches;
