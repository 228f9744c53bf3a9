//! Shards written by hand, without ingest: the loader is judged by the contract alone.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside of `#[test]` functions; a failed one is a failed test"
)]

mod batches;
mod decoded;
mod explained;
mod faults;
mod ranks;
mod remote;
mod shards;
mod stores;
