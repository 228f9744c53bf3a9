//! What a check found: place, fact, remedy.

use std::collections::BTreeMap;

use serde::Serialize;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// A short name by which findings are grouped: `digest`, `missing_shard`, ….
    pub kind: &'static str,
    pub corpus: String,
    /// The object, and the row if it is about one.
    pub place: String,
    pub found: String,
    pub remedy: &'static str,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, corpus, place, found, remedy } = self;
        write!(f, "finding [{kind}] corpus `{corpus}`, {place}: {found}; {remedy}")
    }
}

/// Findings of one corpus. A shard of a million broken rows gives a few lines and a count.
#[derive(Debug)]
pub(crate) struct Findings {
    corpus: String,
    listed: Vec<Finding>,
    n_by_kind: BTreeMap<&'static str, u64>,
}

/// Lines of one kind before only counting goes on.
const MAX_LISTED: u64 = 10;

impl Findings {
    pub(crate) fn of(corpus: &str) -> Self {
        Self { corpus: corpus.to_owned(), listed: Vec::new(), n_by_kind: BTreeMap::new() }
    }

    pub(crate) fn push(
        &mut self,
        kind: &'static str,
        place: impl Into<String>,
        found: impl Into<String>,
        remedy: &'static str,
    ) {
        let n = self.n_by_kind.entry(kind).or_insert(0);
        *n += 1;
        if *n <= MAX_LISTED {
            let (corpus, place, found) = (self.corpus.clone(), place.into(), found.into());
            self.listed.push(Finding { kind, corpus, place, found, remedy });
        }
    }

    pub(crate) fn listed(&self) -> &[Finding] {
        &self.listed
    }

    pub(crate) fn n(&self) -> u64 {
        self.n_by_kind.values().sum()
    }

    /// Kinds with more findings than are listed, and how many more.
    pub(crate) fn unlisted(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.n_by_kind.iter().filter(|(_, n)| **n > MAX_LISTED).map(|(kind, n)| (*kind, n - MAX_LISTED))
    }
}
