//! Batches → checkpoints → scores: one encoder for every modality, trained by alternating gradient descent on dfdx.
//!
//! In: host batches of `imp_schemas::batch`. Out: losses, updated parameters, embeddings. Never here: reading shards,
//! decoding media, drawing anything but the first weights.
//!
//! Only `ops` and `model` are generic over the device; what lies above them names one.

pub mod model;
pub mod objective;
pub mod ops;
pub mod optim;
pub mod schedule;

pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod device;
pub mod eval;
pub mod huge_pages;
pub mod ledger;
pub mod metrics;
pub mod plan;
pub mod search;
pub mod selftest;
pub mod shares;
pub mod steps;
pub mod train;
