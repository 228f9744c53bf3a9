//! The contract: what two crates, or two runs a month apart, must agree on.
//!
//! `ingest` and `loader` never see each other; they share bytes, and this crate says what the bytes mean: the columns of a
//! record, the names and footers of shards, the manifest that makes shards a corpus, the task that a step trains on, the
//! batch it gets, and the cursor that remembers what was consumed.
//!
//! Never here: tensors, threads, randomness that is not addressed. Two features hold what must not be written twice because
//! both sides of the contract need the same answer: `store` (every read and write of a shard, manifest or checkpoint) and
//! `media` (encoded bytes → pixels and samples, so that what ingest verified is what the loader decodes).

pub mod batch;
pub mod checkpoint;
pub mod cursor;
pub mod heap;
pub mod histogram;
pub mod manifest;
pub mod media_index;
pub mod modality;
pub mod parquet_claims;
pub mod record;
pub mod reject;
pub mod resolution;
pub mod rng;
pub mod run_file;
pub mod shard;
pub mod side_table;
pub mod spectrogram;
pub mod task;
pub mod tombstone;
pub mod version;

#[cfg(feature = "media")]
pub mod media;
#[cfg(feature = "store")]
pub mod shard_reader;
#[cfg(feature = "store")]
pub mod shard_writer;
#[cfg(feature = "store")]
pub mod store;
