//! Shards written by hand, without ingest: the loader is judged by the contract alone.

mod batches;
mod decoded;
mod faults;
mod shards;
mod stores;
