//! One unit of work → shards, rejects, a commit.
//!
//! In: what a unit offers. Out: its commit, after everything that the commit names is in the store.
//! Never: more than one unit in memory, a record lost without a row in the unit's rejects.

use std::collections::BTreeMap;

use imp_schemas::histogram::Histogram;
use imp_schemas::reject::{Reject, RejectReason};
use imp_schemas::shard::{Digest, rejects_key};
use imp_schemas::store::Store;

use crate::commit::UnitCommit;
use crate::config::{CorpusConfig, IngestConfig};
use crate::corpus::Found;
use crate::error::IngestError;
use crate::filter::Tally;
use crate::pack::{OpenShard, PROGRAM, Row, ShardHead, StoredShard};
use crate::pipeline::Sources;
use crate::plan::{Classes, Plan, plan};
use crate::progress::Progress;
use crate::tokenizer::CaptionTokenizer;
use crate::{pipeline, publish};

/// A corpus that is over its budget is read to its end, so that the message has the whole count, unless so many of its
/// records are rejected that more of them would tell nothing new.
const ENOUGH_REJECTS: u64 = 1000;

/// All that the units of one corpus have in common.
pub(crate) struct UnitWork<'a> {
    pub(crate) config: &'a IngestConfig,
    pub(crate) corpus: &'a CorpusConfig,
    pub(crate) classes: &'a Classes,
    pub(crate) tokenizer: &'a CaptionTokenizer,
    pub(crate) store: &'a Store,
    pub(crate) sources: &'a Sources<'a>,
}

/// What a run has seen of a corpus so far, for its budget of rejects.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) n_inputs: u64,
    pub(crate) n_rejected: u64,
    /// Inputs that the corpus is known to have; 0 if that is not known.
    pub(crate) n_expected: u64,
}

impl UnitWork<'_> {
    /// Digest of everything that decides what a unit becomes.
    pub(crate) fn digest(&self, identity: &Digest, retried: Option<&Digest>) -> Result<Digest, IngestError> {
        let all = serde_json::json!({
            "schema": imp_schemas::version::Format::Shard.current(),
            "writer": env!("CARGO_PKG_VERSION"),
            "corpus": self.corpus.name,
            "kind": self.corpus.kind.name(),
            "config": self.config.recorded(self.corpus),
            "tokenizer": self.tokenizer.entry.digest,
            "classes": self.classes.names(),
            "unit": identity,
            "retried": retried,
        });
        Ok(Digest::of(all.to_string().as_bytes()))
    }

    /// Verifies and packs `found`; the commit is not stored yet.
    ///
    /// # Errors
    /// The store or a thread failed, or the corpus is over its budget of rejects.
    pub(crate) fn pack(
        &self,
        found: Found,
        seen: &mut Seen,
        progress: &mut Progress,
    ) -> Result<UnitCommit, IngestError> {
        let Self { config, corpus, classes, tokenizer, store, sources } = *self;
        let Plan { splits, mut rejects, mut n_inputs, n_ignored, spools } = plan(corpus, found, classes)?;
        let mut broken_rules = Tally::default();
        seen.n_inputs += n_inputs;
        seen.n_rejected += rejects.len() as u64;
        rejects.iter().for_each(|reject| progress.rejected(reject.reason));
        let mut shards: Vec<StoredShard> = Vec::new();
        for (split, records) in &splits {
            let head = ShardHead {
                corpus: corpus.name.clone(),
                kind: corpus.kind,
                split: split.clone(),
                tokenizer: tokenizer.entry.digest.clone(),
                mean_media_bytes: 0,
                program: PROGRAM,
            };
            let mut open: Option<OpenShard> = None;
            pipeline::verify_all(corpus, tokenizer, sources, records, &mut |planned, verified| {
                let records = match verified {
                    Ok(records) => records,
                    Err(reject) => {
                        progress.rejected(reject.reason);
                        rejects.push(reject);
                        seen.n_rejected += 1;
                        return self.stop_early(&mut rejects, *seen);
                    }
                };
                // A film that is cut is as many inputs as clips, so that inputs stay records and rejects.
                n_inputs += (records.len() as u64).saturating_sub(1);
                for record in records {
                    record.findings.iter().for_each(|finding| broken_rules.add(finding));
                    let n_bytes = record.media.len() as u64;
                    progress.kept(n_bytes);
                    if open.as_ref().is_some_and(|shard| shard.media_bytes() + n_bytes > config.shard_bytes)
                        && let Some(full) = open.take()
                    {
                        shards.push(full.seal()?.store(store)?);
                    }
                    if open.is_none() {
                        open = Some(OpenShard::new(head.clone()));
                    }
                    if let Some(shard) = &mut open {
                        shard.push(Row::new(planned, classes.names(), record))?;
                    }
                }
                Ok(())
            })?;
            if let Some(last) = open {
                shards.push(last.seal()?.store(store)?);
            }
        }
        drop(spools);
        sort(&mut rejects);
        let mut histograms: BTreeMap<String, Histogram> = BTreeMap::new();
        for (name, histogram) in shards.iter().flat_map(|shard| &shard.histograms) {
            histograms.entry(name.clone()).or_default().merge(histogram);
        }
        Ok(UnitCommit {
            n_inputs,
            n_ignored,
            n_rejected: count(&rejects),
            broken_rules: broken_rules.iter().map(|(rule, n)| (rule.to_owned(), n)).collect(),
            rejects: publish::store_rejects(store, &corpus.name, &rejects)?,
            places: shards.iter_mut().map(|shard| std::mem::take(&mut shard.places)).collect(),
            shards: shards.into_iter().map(|shard| shard.entry).collect(),
            histograms,
        })
    }

    /// Stops a run that is over its budget whatever the rest of the corpus brings.
    fn stop_early(&self, rejects: &mut [Reject], seen: Seen) -> Result<(), IngestError> {
        let n_inputs = seen.n_expected.max(seen.n_inputs);
        let allowed = self.corpus.max_reject_share * n_inputs as f64;
        if seen.n_rejected < ENOUGH_REJECTS || seen.n_rejected as f64 <= allowed {
            return Ok(());
        }
        sort(rejects);
        let listed = publish::store_rejects(self.store, &self.corpus.name, rejects)?;
        let listed_in = listed.map_or(String::new(), |l| rejects_key(&self.corpus.name, &l.digest));
        let counts = count(rejects);
        Err(over_budget(self.corpus, &counts, seen.n_rejected, n_inputs, rejects, false, &[listed_in], self.store))
    }
}

/// The error of a corpus with too large a share of rejects.
#[expect(clippy::too_many_arguments, reason = "the message has that many parts, and each comes from elsewhere")]
pub(crate) fn over_budget(
    corpus: &CorpusConfig,
    counts: &BTreeMap<RejectReason, u64>,
    n_rejected: u64,
    n_inputs: u64,
    first: &[Reject],
    is_all: bool,
    listed_in: &[String],
    store: &Store,
) -> IngestError {
    let top = counts.iter().max_by_key(|&(reason, n)| (n, std::cmp::Reverse(reason)));
    let (top, n_top) = top.map_or((RejectReason::Unreadable, 0), |(&reason, &n)| (reason, n));
    let listed: Vec<String> = listed_in.iter().map(|key| format!("{}/{key}", store.url())).collect();
    let rest = if is_all { String::new() } else { "\nthe run stopped before it had read every input".to_owned() };
    IngestError::OverBudget {
        corpus: corpus.name.clone(),
        n_rejected,
        n_inputs,
        limit: corpus.max_reject_share,
        top,
        n_top,
        first: first_of(first),
        rest,
        listed_in: listed.join("`, `"),
    }
}

/// The first three rejects, a line each.
pub(crate) fn first_of(rejects: &[Reject]) -> String {
    let line = |r: &Reject| format!("  {} row {}: {}: {}", r.source, r.row, r.reason, r.detail);
    let lines: Vec<String> = rejects.iter().take(3).map(line).collect();
    format!("the first of them:\n{}", lines.join("\n"))
}

pub(crate) fn count(rejects: &[Reject]) -> BTreeMap<RejectReason, u64> {
    let mut counts = BTreeMap::new();
    for reject in rejects {
        *counts.entry(reject.reason).or_insert(0) += 1;
    }
    counts
}

/// By place, so that the same rejects give the same table.
fn sort(rejects: &mut [Reject]) {
    rejects.sort_by(|a, b| (&a.source, a.row, &a.key, a.reason).cmp(&(&b.source, b.row, &b.key, b.reason)));
}
