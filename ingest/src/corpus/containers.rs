//! Files that hold the media themselves, WebDataset tars or Parquet: some of them are a unit.
//!
//! In: files by rising name. Out: units of consecutive files of about a shard's size; a unit reads only its own.

use std::ops::Range;

use super::origin::Input;
use super::{Depth, Found, parquet_media, tars};
use crate::config::CorpusConfig;
use crate::error::IngestError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tars,
    Parquet,
}

#[derive(Debug)]
pub(super) struct Containers {
    kind: Kind,
    inputs: Vec<Input>,
    units: Vec<Range<usize>>,
}

impl Containers {
    /// Groups `inputs` until their sizes sum to `unit_bytes`.
    pub(super) fn new(kind: Kind, inputs: Vec<Input>, unit_bytes: u64) -> Self {
        let mut units = Vec::new();
        let (mut start, mut n_bytes) = (0, 0);
        for (at, input) in inputs.iter().enumerate() {
            n_bytes += input.n_bytes;
            if n_bytes >= unit_bytes || at + 1 == inputs.len() {
                units.push(start..at + 1);
                (start, n_bytes) = (at + 1, 0);
            }
        }
        Self { kind, inputs, units }
    }

    pub(super) fn n_units(&self) -> usize {
        self.units.len()
    }

    /// Bytes of its files.
    pub(super) fn weight(&self, unit: usize) -> u64 {
        self.inputs[self.units[unit].clone()].iter().map(|input| input.n_bytes).sum()
    }

    /// Changes when a file of the unit does.
    pub(super) fn digest(&self, unit: usize, into: &mut blake3::Hasher) {
        for Input { name, n_bytes, stamp, .. } in &self.inputs[self.units[unit].clone()] {
            into.update(format!("{}:{name} {n_bytes} {stamp}\n", name.len()).as_bytes());
        }
    }

    pub(super) fn read(&self, unit: usize, corpus: &CorpusConfig, depth: Depth) -> Result<Found, IngestError> {
        let mut found = Found::default();
        for input in &self.inputs[self.units[unit].clone()] {
            found.append(match self.kind {
                Kind::Tars => tars::read(input, corpus, depth)?,
                Kind::Parquet => parquet_media::read(input, corpus, depth)?,
            });
        }
        Ok(found)
    }
}
