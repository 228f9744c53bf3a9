//! Counts of a store, for people or as JSON.
//!
//! In: manifests, and the captions, tokens and labels of the shards. Out: one report per corpus. Never: media bytes.

use std::collections::BTreeMap;
use std::io::Write;

use imp_schemas::manifest::Manifest;
use imp_schemas::record::column;
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::{Snapshot, Store};
use serde::Serialize;

use crate::ShardsError;
use crate::rows::Rows;

/// Least, mean and greatest of a count.
#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Spread {
    n: u64,
    least: u64,
    mean: f64,
    greatest: u64,
}

impl Spread {
    fn add(&mut self, value: u64) {
        self.least = if self.n == 0 { value } else { self.least.min(value) };
        self.greatest = self.greatest.max(value);
        self.mean = (self.mean * self.n as f64 + value as f64) / (self.n + 1) as f64;
        self.n += 1;
    }
}

#[derive(Debug, Serialize)]
struct SplitStats {
    n_shards: u64,
    n_records: u64,
    media_bytes: u64,
    store_bytes: u64,
}

#[derive(Debug, Serialize)]
struct CorpusStats {
    corpus: String,
    kind: &'static str,
    snapshot: u64,
    n_inputs: u64,
    n_records: u64,
    splits: BTreeMap<String, SplitStats>,
    n_classes: usize,
    n_by_class: BTreeMap<String, u64>,
    ranges: BTreeMap<String, [f64; 2]>,
    captions_per_record: Spread,
    tokens_per_caption: Spread,
    vocab_size: usize,
    n_rejected: BTreeMap<&'static str, u64>,
}

/// Counts and prints.
pub(crate) fn run(url: &str, named: &[String], json: bool) -> Result<(), ShardsError> {
    let store = Store::open(url)?;
    let mut all = Vec::new();
    for corpus in crate::select(&store, named)? {
        let Snapshot { version, manifest, .. } = store.manifest(&corpus)?;
        all.push(count(&store, &corpus, version, &manifest)?);
    }
    let text = if json {
        format!("{:#}", serde_json::json!({ "corpora": serde_json::to_value(&all)? }))
    } else {
        all.iter().map(to_text).collect::<Vec<_>>().join("\n")
    };
    // A closed pipe is no error.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

fn count(store: &Store, corpus: &str, snapshot: u64, manifest: &Manifest) -> Result<CorpusStats, ShardsError> {
    let mut stats = CorpusStats {
        corpus: corpus.to_owned(),
        kind: manifest.kind.name(),
        snapshot,
        n_inputs: manifest.n_inputs,
        n_records: manifest.n_records,
        splits: BTreeMap::new(),
        n_classes: manifest.classes.len(),
        n_by_class: BTreeMap::new(),
        ranges: BTreeMap::new(),
        captions_per_record: Spread::default(),
        tokens_per_caption: Spread::default(),
        vocab_size: manifest.tokenizer.vocab_size,
        n_rejected: manifest.n_rejected.iter().map(|(reason, n)| (reason.name(), *n)).collect(),
    };
    for entry in &manifest.shards {
        let empty = SplitStats { n_shards: 0, n_records: 0, media_bytes: 0, store_bytes: 0 };
        let split = stats.splits.entry(entry.split.clone()).or_insert(empty);
        split.n_shards += 1;
        split.n_records += entry.n_rows;
        split.media_bytes += entry.media_bytes;
        split.store_bytes += entry.n_bytes;
        for (name, &[least, greatest]) in &entry.ranges {
            let range = stats.ranges.entry(name.clone()).or_insert([least, greatest]);
            *range = [range[0].min(least), range[1].max(greatest)];
        }
        let reader = ShardReader::open(store, corpus, entry)?;
        for batch in reader.read_all(&[column::CAPTIONS, column::TOKENS, column::LABEL])? {
            let rows = Rows { corpus, batch: &batch };
            rows.captions()?.iter().for_each(|c| stats.captions_per_record.add(c.len() as u64));
            rows.tokens()?.iter().flatten().for_each(|t| stats.tokens_per_caption.add(t.len() as u64));
            for label in rows.texts(column::LABEL)?.into_iter().flatten() {
                *stats.n_by_class.entry(label.to_owned()).or_insert(0) += 1;
            }
        }
    }
    Ok(stats)
}

fn to_text(stats: &CorpusStats) -> String {
    let mib = |n: u64| format!("{:.1} MiB", n as f64 / f64::from(1 << 20));
    let mut lines = vec![format!(
        "{} ({}, snapshot {}): {} records of {} inputs",
        stats.corpus, stats.kind, stats.snapshot, stats.n_records, stats.n_inputs
    )];
    for (name, split) in &stats.splits {
        let (media, all) = (mib(split.media_bytes), mib(split.store_bytes));
        lines.push(format!(
            "  split {name}: {} records, {} shards, {media} of media, {all} in all",
            split.n_records, split.n_shards
        ));
    }
    for (name, [least, greatest]) in &stats.ranges {
        lines.push(format!("  {name}: {least} to {greatest}"));
    }
    for (what, spread) in
        [("captions a record", &stats.captions_per_record), ("tokens a caption", &stats.tokens_per_caption)]
    {
        lines.push(format!("  {what}: {} to {}, mean {:.2}", spread.least, spread.greatest, spread.mean));
    }
    lines.push(format!("  vocabulary: {} ids", stats.vocab_size));
    if stats.n_classes > 0 {
        let (least, greatest) = (stats.n_by_class.values().min(), stats.n_by_class.values().max());
        let (least, greatest) = (least.unwrap_or(&0), greatest.unwrap_or(&0));
        lines.push(format!(
            "  classes: {}, {} seen, {least} to {greatest} records each",
            stats.n_classes,
            stats.n_by_class.len()
        ));
    }
    let rejects: Vec<String> = stats.n_rejected.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
    lines.push(format!("  rejects: {}", if rejects.is_empty() { "none".to_owned() } else { rejects.join(", ") }));
    lines.join("\n")
}
