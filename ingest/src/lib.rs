//! Corpora → Parquet shards in a store.
//!
//! In: an `[ingest]` config and a store. Out: per corpus a new snapshot: digest-named shards, a table of rejects, a tokenizer
//! that all corpora of the run share, a manifest. Every record was decoded in full before it was kept; every record that was
//! not kept is counted and listed. The same corpora and config give the same bytes, whatever the machine.
//! Never here: network other than the store's, tensors, batches, anything of the loader.

mod config;
mod corpus;
mod error;
mod pack;
mod pipeline;
mod plan;
mod progress;
mod publish;
mod report;
mod text;
mod tokenizer;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use imp_schemas::manifest::{Manifest, RejectsEntry, ShardEntry};
use imp_schemas::reject::{Reject, RejectReason};
use imp_schemas::shard::rejects_key;
use imp_schemas::store::Store;
use imp_schemas::version::Format;

pub use config::IngestConfig;
pub use error::IngestError;
pub use progress::{Progress, ProgressMode};
pub use report::{CorpusReport, Published, Report};

use config::CorpusConfig;
use corpus::{Found, Listing};
use pack::{OpenShard, Row, ShardHead, StoredShard};
use plan::{Classes, Plan, Planned};
use tokenizer::CaptionTokenizer;

/// A corpus that is over its budget is read to its end, so that the message has the whole count, unless so many of its
/// records are rejected that more of them would tell nothing new.
const ENOUGH_REJECTS: u64 = 1000;

/// Ingests the corpora of `config` into `store`. No manifest is published before every corpus of the run is packed.
///
/// # Errors
/// See [`IngestError`]; nothing but orphaned shards, and the rejects of the corpus that stopped the run, is left behind.
pub fn run(config: &IngestConfig, store: &Store, progress: &mut Progress) -> Result<Report, IngestError> {
    let started = Instant::now();
    let mut plans: Vec<(&CorpusConfig, Whole)> = Vec::new();
    for corpus in &config.corpora {
        progress.note(&format!("{}: reading captions and labels of `{}`", corpus.name, corpus.path));
        plans.push((corpus, plan_all(config, corpus)?));
    }
    let tokenizer = {
        let mut captions = plans.iter().flat_map(|(_, whole)| {
            let records = whole.plan.splits.iter().flat_map(|(_, records)| records);
            records.flat_map(|record| &record.captions).map(String::as_str)
        });
        CaptionTokenizer::make(&config.tokenizer, &config.root, &mut captions)?
    };
    publish::store_tokenizer(store, &tokenizer)?;
    let mut packed = Vec::new();
    for (corpus, whole) in plans {
        if config.corpus_names().contains(&corpus.name.as_str()) {
            packed.push(pack_corpus(config, corpus, whole, &tokenizer, store, progress)?);
        }
    }
    let mut corpora = Vec::new();
    for Packed { manifest, n_ignored, seconds } in packed {
        let published = publish::publish(store, &manifest)?;
        corpora.push(report_of(store, manifest, n_ignored, seconds, published));
    }
    let imp_schemas::manifest::TokenizerEntry { digest, vocab_size } = tokenizer.entry;
    let store = store.url().to_owned();
    Ok(Report { store, tokenizer: digest, vocab_size, corpora, seconds: started.elapsed().as_secs_f64() })
}

/// A corpus and what every record of it is.
struct Whole {
    /// Keeps the places of media alive.
    listing: Listing,
    plan: Plan,
    classes: Vec<String>,
}

/// Plans all units of `corpus` as one.
fn plan_all(config: &IngestConfig, corpus: &CorpusConfig) -> Result<Whole, IngestError> {
    let listing = Listing::open(config, corpus)?;
    let classes = match Classes::given(config, corpus)? {
        Some(classes) => classes,
        None => {
            let mut labels = BTreeSet::new();
            listing.survey(&mut |wording| labels.extend(wording.label.clone()))?;
            Classes::found(labels)
        }
    };
    let mut found = Found::default();
    for unit in 0..listing.n_units() {
        found.append(listing.read(unit)?);
    }
    let plan = plan::plan(corpus, found, &classes)?;
    Ok(Whole { listing, plan, classes: classes.names().to_vec() })
}

/// A corpus whose shards and rejects are in the store.
struct Packed {
    manifest: Manifest,
    n_ignored: u64,
    seconds: f64,
}

fn pack_corpus(
    config: &IngestConfig,
    corpus: &CorpusConfig,
    whole: Whole,
    tokenizer: &CaptionTokenizer,
    store: &Store,
    progress: &mut Progress,
) -> Result<Packed, IngestError> {
    let started = Instant::now();
    let Whole { listing, plan, classes } = whole;
    let Plan { splits, mut rejects, n_inputs, n_ignored, spools } = plan;
    if n_inputs == 0 {
        let detail = format!(
            "`{}` is empty: it can be read and holds no record; {n_ignored} of its files are neither medium nor caption",
            corpus.path
        );
        return Err(IngestError::NoRecords { corpus: corpus.name.clone(), detail });
    }
    progress.begin(&corpus.name, n_inputs, rejects.len() as u64);
    let mut shards: Vec<StoredShard> = Vec::new();
    for (split, records) in &splits {
        let head = ShardHead {
            corpus: corpus.name.clone(),
            kind: corpus.kind,
            split: split.clone(),
            tokenizer: tokenizer.entry.digest.clone(),
            mean_media_bytes: mean_media_bytes(records),
        };
        let mut open: Option<OpenShard> = None;
        pipeline::verify_all(corpus, tokenizer, config.workers, records, &mut |planned, verified| {
            progress.step(planned.medium.len().unwrap_or(0), verified.is_err());
            let record = match verified {
                Ok(record) => record,
                Err(reject) => {
                    rejects.push(reject);
                    let is_enough = rejects.len() as u64 >= ENOUGH_REJECTS;
                    return if is_enough { check_budget(corpus, &mut rejects, n_inputs, false, store) } else { Ok(()) };
                }
            };
            let n_bytes = record.media.len() as u64;
            if open.as_ref().is_some_and(|shard| shard.media_bytes() + n_bytes > config.shard_bytes)
                && let Some(full) = open.take()
            {
                shards.push(full.seal()?.store(store)?);
            }
            if open.is_none() {
                open = Some(OpenShard::new(head.clone())?);
            }
            match &mut open {
                Some(shard) => shard.push(Row::new(planned, &classes, record)),
                None => Ok(()),
            }
        })?;
        if let Some(last) = open {
            shards.push(last.seal()?.store(store)?);
        }
    }
    progress.end();
    drop((listing, spools));
    check_budget(corpus, &mut rejects, n_inputs, true, store)?;
    let listed = publish::store_rejects(store, &corpus.name, &rejects)?;
    if shards.is_empty() {
        let key = listed.map_or(String::new(), |listed| rejects_key(&corpus.name, &listed.digest));
        let listed_in = format!("{}/{key}", store.url());
        let first = first_of(&rejects);
        let detail = format!("all of its {n_inputs} inputs are rejected, {first}\nall of them: `{listed_in}`");
        return Err(IngestError::NoRecords { corpus: corpus.name.clone(), detail });
    }
    let manifest = manifest_of(config, corpus, tokenizer, classes, &shards, &rejects, listed, n_inputs);
    Ok(Packed { manifest, n_ignored, seconds: started.elapsed().as_secs_f64() })
}

fn mean_media_bytes(records: &[Planned]) -> u64 {
    let sum: u64 = records.iter().filter_map(|record| record.medium.len()).sum();
    sum / (records.len() as u64).max(1)
}

#[expect(clippy::too_many_arguments, reason = "a manifest has that many parts, and each comes from elsewhere")]
fn manifest_of(
    config: &IngestConfig,
    corpus: &CorpusConfig,
    tokenizer: &CaptionTokenizer,
    classes: Vec<String>,
    shards: &[StoredShard],
    rejects: &[Reject],
    listed: Option<RejectsEntry>,
    n_inputs: u64,
) -> Manifest {
    let shards: Vec<ShardEntry> = shards.iter().map(|shard| shard.entry().clone()).collect();
    Manifest {
        format: Format::Manifest.current(),
        corpus: corpus.name.clone(),
        kind: corpus.kind,
        schema_version: Format::Shard.current(),
        tokenizer: tokenizer.entry.clone(),
        classes,
        n_records: shards.iter().map(|shard| shard.n_rows).sum(),
        shards,
        rejects: listed,
        n_inputs,
        n_rejected: count(rejects),
        config: config.recorded(corpus),
    }
}

fn count(rejects: &[Reject]) -> BTreeMap<RejectReason, u64> {
    let mut counts = BTreeMap::new();
    for reject in rejects {
        *counts.entry(reject.reason).or_insert(0) += 1;
    }
    counts
}

/// Stops a corpus with too large a share of rejects; its rejects are put beside its shards first.
fn check_budget(
    corpus: &CorpusConfig,
    rejects: &mut [Reject],
    n_inputs: u64,
    is_all: bool,
    store: &Store,
) -> Result<(), IngestError> {
    let n_rejected = rejects.len() as u64;
    if is_all {
        rejects.sort_by(|a, b| (&a.source, a.row, &a.key, a.reason).cmp(&(&b.source, b.row, &b.key, b.reason)));
    }
    if n_rejected as f64 <= corpus.max_reject_share * n_inputs as f64 {
        return Ok(());
    }
    let counts = count(rejects);
    let Some((&top, &n_top)) = counts.iter().max_by_key(|&(reason, n)| (n, std::cmp::Reverse(reason))) else {
        return Ok(());
    };
    let listed = publish::store_rejects(store, &corpus.name, rejects)?;
    let key = listed.map_or(String::new(), |listed| rejects_key(&corpus.name, &listed.digest));
    let rest = if is_all { String::new() } else { "\nthe run stopped before it had read every input".to_owned() };
    Err(IngestError::OverBudget {
        corpus: corpus.name.clone(),
        n_rejected,
        n_inputs,
        limit: corpus.max_reject_share,
        top,
        n_top,
        first: first_of(rejects),
        rest,
        listed_in: format!("{}/{key}", store.url()),
    })
}

/// The first three rejects, a line each.
fn first_of(rejects: &[Reject]) -> String {
    let line = |r: &Reject| format!("  {} row {}: {}: {}", r.source, r.row, r.reason, r.detail);
    let lines: Vec<String> = rejects.iter().take(3).map(line).collect();
    format!("the first of them:\n{}", lines.join("\n"))
}

fn report_of(store: &Store, manifest: Manifest, n_ignored: u64, seconds: f64, published: Published) -> CorpusReport {
    let splits = manifest.splits().into_iter().map(|name| (name.to_owned(), manifest.n_rows(name))).collect();
    let rejects = manifest.rejects.as_ref();
    CorpusReport {
        splits,
        n_inputs: manifest.n_inputs,
        n_records: manifest.n_records,
        n_ignored,
        n_classes: manifest.classes.len(),
        n_shards: manifest.shards.len(),
        shard_bytes: manifest.shards.iter().map(|shard| shard.n_bytes).sum(),
        media_bytes: manifest.shards.iter().map(|shard| shard.media_bytes).sum(),
        seconds,
        published,
        rejects: rejects.map(|r| format!("{}/{}", store.url(), rejects_key(&manifest.corpus, &r.digest))),
        corpus: manifest.corpus,
        n_rejected: manifest.n_rejected,
    }
}
