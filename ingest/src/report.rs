//! What a run did: for people as text, for programs as JSON.

use std::collections::BTreeMap;

use imp_schemas::manifest::{Manifest, RejectsEntry};
use imp_schemas::reject::RejectReason;
use imp_schemas::shard::{Digest, rejects_key};
use imp_schemas::store::Store;
use serde::Serialize;

/// The snapshot that a run left as a corpus's newest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    pub version: u64,
    pub digest: Digest,
    /// False if the newest snapshot said the same already: nothing was written.
    pub is_new: bool,
}

/// One corpus of a run. `n_inputs = n_records + sum(n_rejected)`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CorpusReport {
    pub corpus: String,
    pub n_inputs: u64,
    pub n_records: u64,
    /// In the order of the manifest's splits.
    pub splits: Vec<(String, u64)>,
    pub n_rejected: BTreeMap<RejectReason, u64>,
    /// By rule of cleaning: captions that were taken from records, and records that a dry run would have dropped.
    pub broken_rules: BTreeMap<String, u64>,
    /// Files that are neither medium nor caption.
    pub n_ignored: u64,
    pub n_classes: usize,
    pub n_shards: usize,
    pub shard_bytes: u64,
    pub media_bytes: u64,
    pub seconds: f64,
    pub published: Published,
    /// Where the tables of rejects lie.
    pub rejects: Vec<String>,
}

impl CorpusReport {
    pub(crate) fn of(store: &Store, manifest: Manifest, n_ignored: u64, seconds: f64, published: Published) -> Self {
        let splits = manifest.splits().into_iter().map(|name| (name.to_owned(), manifest.n_rows(name))).collect();
        let place = |r: &RejectsEntry| format!("{}/{}", store.url(), rejects_key(&manifest.corpus, &r.digest));
        let rejects = manifest.rejects.iter().map(place).collect();
        Self {
            splits,
            n_inputs: manifest.n_inputs,
            n_records: manifest.n_records,
            broken_rules: manifest.broken_rules,
            n_ignored,
            n_classes: manifest.classes.len(),
            n_shards: manifest.shards.len(),
            shard_bytes: manifest.shards.iter().map(|shard| shard.n_bytes).sum(),
            media_bytes: manifest.shards.iter().map(|shard| shard.media_bytes).sum(),
            seconds,
            published,
            rejects,
            corpus: manifest.corpus,
            n_rejected: manifest.n_rejected,
        }
    }
}

/// A corpus that has units which other workers have not finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    pub corpus: String,
    pub n_done: usize,
    pub n_units: usize,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub store: String,
    pub tokenizer: Digest,
    pub vocab_size: usize,
    /// Published corpora; empty while units of any corpus are missing.
    pub corpora: Vec<CorpusReport>,
    pub waiting: Vec<Waiting>,
    pub seconds: f64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for corpus in &self.corpora {
            writeln!(f, "{corpus}")?;
        }
        writeln!(f, "tokenizer {}: {} ids", self.tokenizer.short(), self.vocab_size)?;
        writeln!(f, "{:.1} s in all", self.seconds)?;
        if !self.waiting.is_empty() {
            for Waiting { corpus, n_done, n_units } in &self.waiting {
                writeln!(f, "{corpus}: {n_done} of {n_units} units are done, the others are other workers'")?;
            }
            return write!(f, "nothing is published yet: the worker that does the last unit publishes");
        }
        let names: Vec<&str> = self.corpora.iter().map(|c| c.corpus.as_str()).collect();
        write!(f, "check the shards: imp-shards check --store {} {}", self.store, names.join(" "))
    }
}

impl std::fmt::Display for CorpusReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Published { version, is_new, .. } = &self.published;
        let news = if *is_new { "published" } else { "unchanged, nothing new written" };
        writeln!(f, "{}: snapshot {version} {news}", self.corpus)?;
        let splits: Vec<String> = self.splits.iter().map(|(name, n)| format!("{name} {n}")).collect();
        writeln!(f, "  inputs    {}", self.n_inputs)?;
        writeln!(f, "  records   {} ({})", self.n_records, splits.join(", "))?;
        let n_rejected: u64 = self.n_rejected.values().sum();
        let reasons: Vec<String> = self.n_rejected.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        match &self.rejects[..] {
            [] if n_rejected == 0 => writeln!(f, "  rejected  0")?,
            [] => writeln!(f, "  rejected  {n_rejected} ({}), hidden by tombstones", reasons.join(", "))?,
            [table] => writeln!(f, "  rejected  {n_rejected} ({}), listed in {table}", reasons.join(", "))?,
            [first, rest @ ..] => {
                let more = rest.len();
                writeln!(f, "  rejected  {n_rejected} ({}), listed in {first} and {more} more", reasons.join(", "))?;
            }
        }
        if !self.broken_rules.is_empty() {
            let rules: Vec<String> = self.broken_rules.iter().map(|(rule, n)| format!("{rule} {n}")).collect();
            writeln!(f, "  cleaning  {} (captions taken, or records that a dry run kept)", rules.join(", "))?;
        }
        if self.n_ignored > 0 {
            writeln!(f, "  ignored   {} files that are neither medium nor caption", self.n_ignored)?;
        }
        if self.n_classes > 0 {
            writeln!(f, "  classes   {}", self.n_classes)?;
        }
        let mib = self.shard_bytes as f64 / f64::from(1 << 20);
        writeln!(f, "  shards    {} ({mib:.1} MiB)", self.n_shards)?;
        let rate = self.n_inputs as f64 / self.seconds.max(1e-9);
        write!(f, "  took      {:.1} s ({rate:.0} inputs/s)", self.seconds)
    }
}
