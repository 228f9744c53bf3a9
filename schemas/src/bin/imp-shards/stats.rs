//! Counts of a store, for people or as JSON.
//!
//! In: manifests, and the captions, tokens and labels of the shards. Out: one report per corpus; of two also their difference.
//! Never: media bytes, a hidden row.

use std::collections::BTreeMap;
use std::io::Write;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use comfy_table::{Table, presets};
use imp_schemas::manifest::{AddedColumn, Manifest};
use imp_schemas::record::column;
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::side_table::{AddedColumns, AddedType, ScalarType};
use imp_schemas::store::{Snapshot, Store};
use imp_schemas::tombstone::Hidden;
use serde::Serialize;

use crate::ShardsError;
use crate::rows::{for_live, label_columns};

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

/// An added column over the records.
#[derive(Debug, Serialize)]
struct AddedStats {
    #[serde(rename = "type")]
    kind: AddedType,
    n_null: u64,
    n_nan: u64,
    /// Of numbers that are none of the two, and of bools as 0 and 1.
    n_numbers: u64,
    least: Option<f64>,
    mean: Option<f64>,
    greatest: Option<f64>,
}

impl AddedStats {
    fn add(&mut self, column: &ArrayRef) {
        self.n_null += column.null_count() as u64;
        if self.kind.is_list || self.kind.scalar == ScalarType::Utf8 {
            return;
        }
        let Ok(values) = cast(column, &DataType::Float64) else { return };
        let Some(values) = values.as_primitive_opt::<Float64Type>() else { return };
        for value in values.iter().flatten() {
            if value.is_nan() {
                self.n_nan += 1;
                continue;
            }
            self.n_numbers += 1;
            self.least = Some(self.least.map_or(value, |least| least.min(value)));
            self.greatest = Some(self.greatest.map_or(value, |greatest| greatest.max(value)));
            let mean = self.mean.unwrap_or(0.0);
            self.mean = Some(mean + (value - mean) / self.n_numbers as f64);
        }
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
    added_columns: BTreeMap<String, AddedStats>,
}

/// Counts and prints.
pub(crate) fn run(url: &str, named: &[String], json: bool) -> Result<(), ShardsError> {
    let store = Store::open(url)?;
    let mut all = Vec::new();
    let plain: Vec<String> = named.iter().map(|name| split_name(name).0.to_owned()).collect();
    let have = crate::select(&store, &plain)?;
    let named = if named.is_empty() { &have } else { named };
    for name in named {
        let (corpus, version) = split_name(name);
        let Snapshot { version, manifest, .. } = match version {
            Some(version) => store.snapshot(corpus, version)?,
            None => store.manifest(corpus)?,
        };
        all.push(count(&store, corpus, version, &manifest)?);
    }
    // A store of two corpora is not asked for their difference; two that are named are.
    let pair = (plain.len() == 2).then(|| side_by_side(&all[0], &all[1]));
    let text = if json {
        let mut report = serde_json::json!({ "corpora": serde_json::to_value(&all)? });
        if let Some(lines) = &pair {
            report["difference"] = lines.iter().map(|l| (l.0.clone(), serde_json::json!([l.1, l.2]))).collect();
        }
        format!("{report:#}")
    } else {
        let mut texts: Vec<String> = all.iter().map(to_text).collect();
        texts.extend(pair.map(|lines| compared(&all[0], &all[1], &lines)));
        texts.join("\n")
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
        added_columns: BTreeMap::new(),
    };
    for AddedColumn { name, kind } in manifest.added_columns() {
        let empty = AddedStats { kind, n_null: 0, n_nan: 0, n_numbers: 0, least: None, mean: None, greatest: None };
        stats.added_columns.insert(name, empty);
    }
    let mut added = AddedColumns::of(store, manifest);
    let names = added.names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let hidden = Hidden::of(&store.tombstones(manifest)?);
    for entry in &manifest.shards {
        let empty = SplitStats { n_shards: 0, n_records: 0, media_bytes: 0, store_bytes: 0 };
        let split = stats.splits.entry(entry.split.clone()).or_insert(empty);
        split.n_shards += 1;
        split.n_records += entry.n_live();
        split.media_bytes += entry.media_bytes;
        split.store_bytes += entry.n_bytes;
        for (name, &[least, greatest]) in &entry.ranges {
            let range = stats.ranges.entry(name.clone()).or_insert([least, greatest]);
            *range = [range[0].min(least), range[1].max(greatest)];
        }
        let reader = ShardReader::open(store, corpus, entry)?;
        let columns = [&[column::CAPTIONS, column::TOKENS][..], label_columns(&reader)].concat();
        for_live(&reader, corpus, &hidden.rows(&entry.digest), &columns, |places, rows| {
            let values = added.read(&entry.digest, places, &names)?;
            for (field, column) in values.schema_ref().fields().iter().zip(values.columns()) {
                if let Some(stats) = stats.added_columns.get_mut(field.name()) {
                    stats.add(column);
                }
            }
            rows.captions()?.iter().for_each(|c| stats.captions_per_record.add(c.len() as u64));
            rows.tokens()?.iter().flatten().for_each(|t| stats.tokens_per_caption.add(t.len() as u64));
            for label in rows.labels()?.into_iter().flatten() {
                *stats.n_by_class.entry(label.to_owned()).or_insert(0) += 1;
            }
            Ok(())
        })?;
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
    for (name, column) in &stats.added_columns {
        let AddedStats { kind, n_null, n_nan, least, mean, greatest, .. } = column;
        let mut line = format!("  added {name} ({kind}): {n_null} null");
        if *n_nan > 0 {
            line += &format!(", {n_nan} NaN");
        }
        if let (Some(least), Some(mean), Some(greatest)) = (least, mean, greatest) {
            line += &format!(", {least} to {greatest}, mean {mean:.4}");
        }
        lines.push(line);
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

/// `CORPUS@SNAPSHOT`; a name without a number is the newest.
fn split_name(name: &str) -> (&str, Option<u64>) {
    match name.rsplit_once('@').map(|(corpus, version)| (corpus, version.parse())) {
        Some((corpus, Ok(version))) => (corpus, Some(version)),
        _ => (name, None),
    }
}

/// What differs, by name: the number of each.
fn side_by_side(a: &CorpusStats, b: &CorpusStats) -> Vec<(String, f64, f64)> {
    let flat = |s: &CorpusStats| {
        let mut numbers = BTreeMap::from([
            ("inputs".to_owned(), s.n_inputs as f64),
            ("records".to_owned(), s.n_records as f64),
            ("classes".to_owned(), s.n_classes as f64),
            ("vocabulary".to_owned(), s.vocab_size as f64),
            ("mean captions a record".to_owned(), s.captions_per_record.mean),
            ("mean tokens a caption".to_owned(), s.tokens_per_caption.mean),
        ]);
        for (name, split) in &s.splits {
            numbers.insert(format!("split {name}: records"), split.n_records as f64);
            numbers.insert(format!("split {name}: media bytes"), split.media_bytes as f64);
        }
        for (name, [least, greatest]) in &s.ranges {
            numbers.insert(format!("least {name}"), *least);
            numbers.insert(format!("greatest {name}"), *greatest);
        }
        for (name, column) in &s.added_columns {
            numbers.insert(format!("added {name}: null"), column.n_null as f64);
            let mean = column.mean.map(|mean| (format!("added {name}: mean"), mean));
            numbers.extend(mean);
        }
        numbers.extend(s.n_by_class.iter().map(|(class, n)| (format!("class {class}"), *n as f64)));
        numbers.extend(s.n_rejected.iter().map(|(reason, n)| (format!("rejected {reason}"), *n as f64)));
        numbers
    };
    let (a, b) = (flat(a), flat(b));
    let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let of = |side: &BTreeMap<String, f64>, name: &String| side.get(name).copied().unwrap_or(0.0);
    let lines = names.into_iter().map(|name| (name.clone(), of(&a, name), of(&b, name)));
    lines.filter(|(_, a, b)| a != b).collect()
}

fn compared(a: &CorpusStats, b: &CorpusStats, lines: &[(String, f64, f64)]) -> String {
    let number = |n: f64| if n.fract() == 0.0 { format!("{n:.0}") } else { format!("{n:.2}") };
    let name = |s: &CorpusStats| format!("{}@{}", s.corpus, s.snapshot);
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([String::new(), name(a), name(b), "difference".to_owned()]);
    for (what, a, b) in lines {
        let sign = if b > a { "+" } else { "" };
        table.add_row([what.clone(), number(*a), number(*b), format!("{sign}{}", number(b - a))]);
    }
    if lines.is_empty() {
        return format!("{} and {} count the same", name(a), name(b));
    }
    table.to_string()
}
