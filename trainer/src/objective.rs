//! Losses, one file each.
//!
//! In: vectors or logits of a batch. Out: a loss on the tape. Never: a parameter but the temperature.

pub mod nce;
pub mod softmax;
