//! The kit that each crate's tests and the demo use: encoded media, made-up corpora, servers of HTTP and S3, golden numbers.
//!
//! In: a seed and sizes. Out: files as a user would have them, in real encodings. Never: the code under test; the kit
//! knows `schemas` and nothing else of this workspace, so what it writes is judged by others.

pub mod golden;
#[cfg(feature = "http-server")]
pub mod http;
pub mod media;
#[cfg(feature = "s3-server")]
pub mod s3;
pub mod tiny;
pub mod world;
