//! A corpus as one HTML page: what its media look and sound like, how its numbers are spread, what was rejected and why.
//!
//! In: one snapshot of a corpus. Out: a file that a browser opens without a network. Never: a request to anywhere, a text of the
//! corpus that is not escaped, more than one shard's few rows in memory; the same snapshot gives the same page.

mod cards;
mod histogram;
mod pictures;
mod rejects;
mod sound;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use imp_schemas::manifest::{Manifest, ShardEntry};
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{column, record_schema};
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::{Snapshot, Store};
use imp_schemas::tombstone::{Hidden, row_of_live};
use minijinja::Environment;
use minijinja::value::Serde;
use serde::Serialize;

use crate::ShardsError;
use crate::rows::{Rows, for_live, label_columns, present};

/// Rows whose numbers are read for the charts: enough for their shape, little against a corpus.
const MAX_SCANNED: u64 = 200_000;
/// Bars of classes.
const MAX_CLASSES: usize = 24;

/// What the page is made from, beside the store.
#[derive(Debug)]
pub(crate) struct PageArgs<'a> {
    pub corpus: &'a str,
    /// The newest without one.
    pub snapshot: Option<u64>,
    pub split: Option<&'a str>,
    pub n: u64,
    pub out: &'a Path,
}

#[derive(Debug, Serialize)]
struct SplitLine {
    name: String,
    n_records: u64,
    n_shards: u64,
    bytes: String,
}

#[derive(Debug, Serialize)]
struct ClassBar {
    name: String,
    n: u64,
    /// Percent of the largest.
    share: f64,
}

/// Charts, and counts of the classes, over the rows that were scanned.
#[derive(Debug, Default)]
struct Scan {
    n_rows: u64,
    columns: BTreeMap<&'static str, Vec<f64>>,
    caption_chars: Vec<f64>,
    n_by_class: BTreeMap<String, u64>,
}

/// Writes the page.
///
/// # Errors
/// The corpus, snapshot or split is not there, a shard cannot be read, or the file cannot be written. A medium that does not
/// decode is no error: its card says so.
pub(crate) fn run(url: &str, args: &PageArgs<'_>) -> Result<(), ShardsError> {
    let store = Store::open(url)?;
    crate::select(&store, &[args.corpus.to_owned()])?;
    let snapshot = match args.snapshot {
        Some(version) => store.snapshot(args.corpus, version)?,
        None => store.manifest(args.corpus)?,
    };
    let html = render(&store, &snapshot, args)?;
    let failed = |source| ShardsError::Write { path: args.out.to_owned(), source };
    if args.out == Path::new("-") {
        // A closed pipe is no error.
        let _ = std::io::stdout().write_all(html.as_bytes());
        return Ok(());
    }
    std::fs::write(args.out, &html).map_err(failed)?;
    println!("{} ({})", args.out.display(), human_bytes(html.len() as u64));
    Ok(())
}

fn render(store: &Store, snapshot: &Snapshot, args: &PageArgs<'_>) -> Result<String, ShardsError> {
    let manifest = &snapshot.manifest;
    let hidden = Hidden::of(&store.tombstones(manifest)?);
    let cards = sample(store, manifest, &hidden, args)?;
    let scan = scan(store, manifest, &hidden)?;
    let n_rejected: u64 = manifest.n_rejected.values().sum();
    let config = serde_json::to_string_pretty(&manifest.config)?;
    let context = serde_json::json!({
        "corpus": args.corpus,
        "kind": manifest.kind.name(),
        "store": store.url(),
        "snapshot": snapshot.version,
        "digest": snapshot.digest.short(),
        "schema_version": manifest.schema_version.to_string(),
        "tokenizer": manifest.tokenizer.digest.short(),
        "vocab_size": manifest.tokenizer.vocab_size,
        "n_inputs": grouped(manifest.n_inputs),
        "n_records": grouped(manifest.n_records),
        "n_rejected": grouped(n_rejected),
        "reject_percent": format!("{:.2}", 100.0 * n_rejected as f64 / manifest.n_inputs.max(1) as f64),
        "n_shards": grouped(manifest.shards.len() as u64),
        "n_hidden": hidden.n_rows(),
        "media": human_bytes(manifest.shards.iter().map(|s| s.media_bytes).sum()),
        "bytes": human_bytes(manifest.shards.iter().map(|s| s.n_bytes).sum()),
        "n_classes": manifest.classes.len(),
        "splits": splits(manifest),
        "classes": classes(&scan),
        "n_scanned": grouped(scan.n_rows),
        "scanned_all": scan.n_rows >= manifest.n_records,
        "charts": charts(manifest.kind, scan),
        "cards": cards,
        "rejects": rejects::groups(store, manifest)?,
        "config": config,
    });
    let mut environment = Environment::new();
    // The name's ending turns escaping on.
    environment.add_template("page.html", include_str!("page/page.html")).map_err(ShardsError::Page)?;
    let template = environment.get_template("page.html").map_err(ShardsError::Page)?;
    template.render(Serde(context)).map_err(ShardsError::Page)
}

/// Cards of rows that lie evenly in each split; every split that is asked for has at least one.
fn sample(
    store: &Store,
    manifest: &Manifest,
    hidden: &Hidden,
    args: &PageArgs<'_>,
) -> Result<Vec<cards::Card>, ShardsError> {
    let splits = match args.split {
        Some(split) => vec![split],
        None => manifest.splits(),
    };
    let n_all: u64 = splits.iter().map(|s| manifest.n_rows(s)).sum();
    let mut cards = Vec::new();
    for split in splits {
        let shards = manifest.split(split)?;
        let n_rows = manifest.n_rows(split);
        let n_wanted = (args.n * n_rows).div_ceil(n_all.max(1)).min(n_rows);
        let wanted: Vec<u64> = (0..n_wanted).map(|i| (2 * i + 1) * n_rows / (2 * n_wanted)).collect();
        let mut first_row = 0;
        for entry in shards {
            let here = wanted.iter().filter(|w| (first_row..first_row + entry.n_live()).contains(*w));
            let hidden = hidden.rows(&entry.digest);
            let rows: Vec<u64> = here.map(|w| row_of_live(&hidden, w - first_row)).collect();
            first_row += entry.n_live();
            cards.extend(cards_of(store, manifest, entry, &rows)?);
        }
    }
    Ok(cards)
}

fn cards_of(
    store: &Store,
    manifest: &Manifest,
    entry: &ShardEntry,
    rows: &[u64],
) -> Result<Vec<cards::Card>, ShardsError> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let reader = ShardReader::open(store, &manifest.corpus, entry)?;
    let schema = record_schema(manifest.kind);
    let columns = present(&reader, &schema);
    let mut cards = Vec::new();
    // One at a time: a medium may weigh what a shard weighs.
    for &row in rows {
        let batch = reader.read(&[row], &columns)?;
        cards.push(cards::card(&Rows { corpus: &manifest.corpus, batch: &batch }, 0, manifest.kind)?);
    }
    Ok(cards)
}

/// Reads the numbers of up to [`MAX_SCANNED`] rows, from shards spread evenly over the corpus.
fn scan(store: &Store, manifest: &Manifest, hidden: &Hidden) -> Result<Scan, ShardsError> {
    let numeric = planning(manifest.kind);
    let mut columns: Vec<&str> = numeric.iter().map(|(name, _, _)| *name).collect();
    columns.push(column::CAPTIONS);
    let n_rows: u64 = manifest.shards.iter().map(|s| s.n_rows).sum();
    let step = n_rows.div_ceil(MAX_SCANNED).max(1) as usize;
    let mut scan = Scan::default();
    for entry in manifest.shards.iter().step_by(step) {
        if scan.n_rows >= MAX_SCANNED {
            break;
        }
        let reader = ShardReader::open(store, &manifest.corpus, entry)?;
        let columns = [&columns[..], label_columns(&reader)].concat();
        for_live(&reader, &manifest.corpus, &hidden.rows(&entry.digest), &columns, |_, rows| scan.add(rows, numeric))?;
    }
    Ok(scan)
}

impl Scan {
    fn add(&mut self, rows: &Rows<'_>, numeric: &[(&'static str, &str, &str)]) -> Result<(), ShardsError> {
        for (name, _, _) in numeric {
            self.columns.entry(name).or_default().extend(rows.values(name)?.into_iter().flatten());
        }
        let lengths = rows.captions()?.into_iter().flatten().flatten().map(|c| c.chars().count() as f64);
        self.caption_chars.extend(lengths.collect::<Vec<_>>());
        for label in rows.labels()?.into_iter().flatten() {
            *self.n_by_class.entry(label.to_owned()).or_insert(0) += 1;
        }
        self.n_rows += rows.batch.num_rows() as u64;
        Ok(())
    }
}

/// Column, name and unit of what is drawn.
fn planning(kind: RecordKind) -> &'static [(&'static str, &'static str, &'static str)] {
    match kind {
        RecordKind::ImageText => {
            &[(column::WIDTH, "width", "px"), (column::HEIGHT, "height", "px"), (column::BYTES_LEN, "size", "bytes")]
        }
        RecordKind::VideoText => &[
            (column::WIDTH, "width", "px"),
            (column::HEIGHT, "height", "px"),
            (column::DURATION, "duration", "s"),
            (column::NUM_FRAMES, "frames", ""),
            (column::BYTES_LEN, "size", "bytes"),
        ],
        RecordKind::AudioText => &[
            (column::DURATION, "duration", "s"),
            (column::SAMPLING_RATE, "sampling rate", "Hz"),
            (column::BYTES_LEN, "size", "bytes"),
        ],
    }
}

fn charts(kind: RecordKind, mut scan: Scan) -> Vec<histogram::Chart> {
    let mut charts = Vec::new();
    for (column, name, unit) in planning(kind) {
        charts.extend(histogram::chart(name, unit, scan.columns.remove(column).unwrap_or_default()));
    }
    charts.extend(histogram::chart("caption length", "characters", scan.caption_chars));
    charts
}

fn splits(manifest: &Manifest) -> Vec<SplitLine> {
    let line = |name: &str| {
        let shards = || manifest.shards.iter().filter(|s| s.split == name);
        SplitLine {
            name: name.to_owned(),
            n_records: manifest.n_rows(name),
            n_shards: shards().count() as u64,
            bytes: human_bytes(shards().map(|s| s.media_bytes).sum()),
        }
    };
    manifest.splits().into_iter().map(line).collect()
}

/// The largest classes first.
fn classes(scan: &Scan) -> Vec<ClassBar> {
    let mut classes: Vec<(&String, u64)> = scan.n_by_class.iter().map(|(name, n)| (name, *n)).collect();
    classes.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let most = classes.first().map_or(1, |(_, n)| *n).max(1);
    let bar = |(name, n): (&String, u64)| ClassBar { name: name.clone(), n, share: 100.0 * n as f64 / most as f64 };
    classes.into_iter().take(MAX_CLASSES).map(bar).collect()
}

/// Bytes in the unit that leaves one to three digits before the point.
pub(crate) fn human_bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 {
            return if unit == "B" || value >= 100.0 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A count with thin spaces between its thousands.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(c);
    }
    text
}
