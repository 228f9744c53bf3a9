//! What a run holds of its finished units: a few numbers a shard.
//!
//! In: commits, in whatever order units are done. Out: the commits without what they say of single rows, which goes to disk, and
//! without their histograms, which are added up. Never: anything in memory for a row.

use std::collections::BTreeMap;

use imp_schemas::histogram::Histogram;

use crate::commit::UnitCommit;
use crate::error::IngestError;
use crate::places::PlaceSpool;

/// The finished units of one corpus.
pub(crate) struct Journal {
    /// By unit; `None` while it is another worker's to do.
    pub(crate) commits: Vec<Option<UnitCommit>>,
    /// Of the shards of all commits.
    pub(crate) places: PlaceSpool,
    /// Of the rows of all commits.
    pub(crate) histograms: BTreeMap<String, Histogram>,
}

impl Journal {
    /// Of `n_units` units, none of them done.
    ///
    /// # Errors
    /// A temporary file cannot be made.
    pub(crate) fn new(n_units: usize) -> Result<Self, IngestError> {
        Ok(Self { commits: vec![None; n_units], places: PlaceSpool::new()?, histograms: BTreeMap::new() })
    }

    /// Notes that `unit` is done.
    ///
    /// # Errors
    /// The disk for temporary files is full.
    pub(crate) fn add(&mut self, unit: usize, mut commit: UnitCommit) -> Result<(), IngestError> {
        self.places.begin(&commit.shards);
        for places in std::mem::take(&mut commit.places) {
            self.places.push(&places)?;
        }
        for (name, histogram) in std::mem::take(&mut commit.histograms) {
            self.histograms.entry(name).or_default().merge(&histogram);
        }
        self.commits[unit] = Some(commit);
        Ok(())
    }

    pub(crate) fn n_units(&self) -> usize {
        self.commits.len()
    }

    pub(crate) fn n_done(&self) -> usize {
        self.commits.iter().flatten().count()
    }
}
