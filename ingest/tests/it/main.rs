//! Ingest under test: what people have goes in, what a store holds is looked at.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod cleaning;
mod common;
mod failures;

mod forms;
mod hosts;
mod plans;
#[cfg(real_data)]
mod real_data;
mod rejects;
mod shards;
mod snapshots;
