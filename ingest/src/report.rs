//! What a run did: for people as text, for programs as JSON.

use std::collections::BTreeMap;

use imp_schemas::reject::RejectReason;
use imp_schemas::shard::Digest;
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
    /// Files that are neither medium nor caption.
    pub n_ignored: u64,
    pub n_classes: usize,
    pub n_shards: usize,
    pub shard_bytes: u64,
    pub media_bytes: u64,
    pub seconds: f64,
    pub published: Published,
    /// Where the table of rejects lies, if there is one.
    pub rejects: Option<String>,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub store: String,
    pub tokenizer: Digest,
    pub vocab_size: usize,
    pub corpora: Vec<CorpusReport>,
    pub seconds: f64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for corpus in &self.corpora {
            writeln!(f, "{corpus}")?;
        }
        writeln!(f, "tokenizer {}: {} ids", self.tokenizer.short(), self.vocab_size)?;
        writeln!(f, "{:.1} s in all", self.seconds)?;
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
        match &self.rejects {
            Some(table) => writeln!(f, "  rejected  {n_rejected} ({}), listed in {table}", reasons.join(", "))?,
            None => writeln!(f, "  rejected  0")?,
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
