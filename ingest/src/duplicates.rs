//! Records of different units, of earlier runs, or of other corpora, that are the same → tombstones for the later ones.
//!
//! In: shards in the order of a snapshot. Out: which of their rows are hidden, and why. Only the small columns that the rules
//! need are read: the key always, and digest, perceptual hash and captions as the corpus's `clean` table asks.
//! Memory: the rows that repeat another, a row group's small columns, what [`repeats`] states; for `near` rules what
//! [`crate::filter`] does.
//! Never: a row of an earlier snapshot hidden for the sake of a new one, a shard rewritten.
//!
//! ```text
//! keys, digests ─► pairs on disk ─► repeats ─► rows that repeat one, once more with their keys ─► tombstones
//!                                              all rows, if `near` asks, with their sketches  ──┘
//! ```

mod repeats;

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use imp_schemas::manifest::ShardEntry;
use imp_schemas::modality::RecordKind;
use imp_schemas::record::column;
use imp_schemas::reject::RejectReason;
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::Store;
use imp_schemas::tombstone::{Hidden, Tombstone};

use self::repeats::{Pairs, Repeat, Short, repeated_by};
use crate::config::CorpusConfig;
use crate::error::IngestError;
use crate::filter::config::{CleanRules, Duplicates};
use crate::filter::{Near, NearIndex, Sketches, caption_sketch};

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Duplicated {
    pub(crate) tombstones: Vec<Tombstone>,
    /// By rule, what a dry run would have hidden.
    pub(crate) broken_rules: BTreeMap<String, u64>,
}

/// Rows that repeat an earlier one by key, or by a rule of the corpus. The first `n_old` shards are of an earlier snapshot:
/// their rows count as earlier ones and are never hidden. A row that repeats one is itself not compared with.
///
/// # Errors
/// A shard, or a corpus that the rules compare with, cannot be read, or the disk for temporary files is full.
pub(crate) fn find(
    corpus: &CorpusConfig,
    store: &Store,
    shards: &[ShardEntry],
    n_old: usize,
    hidden: &Hidden,
) -> Result<Duplicated, IngestError> {
    let rules = &corpus.clean;
    if !is_needed(rules, shards.len()) {
        return Ok(Duplicated::default());
    }
    let rows = Rows { corpus: &corpus.name, store, shards, hidden, starts: starts_of(shards) };
    let exact = Exact::find(rules, &rows)?;
    let near = NearSearch::new(corpus, store)?;
    let mut search = Search { kind: corpus.kind, rules, rows: &rows, n_old, exact, near };
    search.run()
}

/// Whether rows of `n_shards` shards can repeat each other: within a shard, keys are distinct.
pub(crate) fn is_needed(rules: &CleanRules, n_shards: usize) -> bool {
    n_shards >= 2 || rules.duplicates == Duplicates::Drop || rules.near.is_some()
}

/// The rows of a snapshot that are not hidden. A row's id counts over all shards, hidden rows included.
struct Rows<'a> {
    corpus: &'a str,
    store: &'a Store,
    shards: &'a [ShardEntry],
    hidden: &'a Hidden,
    /// The first id of each shard, and one past the last.
    starts: Vec<u64>,
}

fn starts_of(shards: &[ShardEntry]) -> Vec<u64> {
    let mut starts = vec![0];
    starts.extend(shards.iter().scan(0, |end, shard| {
        *end += shard.n_rows;
        Some(*end)
    }));
    starts
}

/// Takes row `i` of a batch, which has this id.
type TakeRow<'a> = dyn FnMut(u64, &RecordBatch, usize) -> Result<(), IngestError> + 'a;

impl Rows<'_> {
    fn n_rows(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Hands the rows of shard `shard_idx` to `take`, by rising id.
    fn visit(&self, shard_idx: usize, columns: &[&str], take: &mut TakeRow<'_>) -> Result<(), IngestError> {
        let entry = &self.shards[shard_idx];
        let hidden = self.hidden.rows(&entry.digest);
        let mut row = 0;
        visit_batches(self.store, self.corpus, entry, columns, &mut |batch| {
            for i in 0..batch.num_rows() {
                if hidden.binary_search(&row).is_err() {
                    take(self.starts[shard_idx] + row, batch, i)?;
                }
                row += 1;
            }
            Ok(())
        })
    }

    /// Shard and row of `id`; `None` for a row of another corpus.
    fn place(&self, id: u64) -> Option<(&ShardEntry, u64)> {
        let shard_idx = self.starts.partition_point(|&start| start <= id).checked_sub(1)?;
        Some((self.shards.get(shard_idx)?, id - self.starts[shard_idx]))
    }

    fn name(&self, id: u64) -> Option<String> {
        self.place(id).map(|(shard, row)| format!("row {row} of shard {}", shard.digest.short()))
    }
}

/// Hands `columns` of a shard to `take`, a row group after another.
fn visit_batches(
    store: &Store,
    corpus: &str,
    entry: &ShardEntry,
    columns: &[&str],
    take: &mut dyn FnMut(&RecordBatch) -> Result<(), IngestError>,
) -> Result<(), IngestError> {
    let failed = |source| IngestError::ReadShard { corpus: corpus.to_owned(), source };
    let reader = ShardReader::open(store, corpus, entry).map_err(failed)?;
    // A shard of schema 1.0 has no perceptual hashes: its pictures are then compared with nothing.
    let has = |name: &&str| reader.metadata().file_metadata().schema().get_fields().iter().any(|f| f.name() == *name);
    let columns: Vec<&str> = columns.iter().copied().filter(has).collect();
    for row_group in 0..reader.metadata().num_row_groups() {
        reader.read_row_group(row_group, &columns).map_err(failed)?.iter().try_for_each(&mut *take)?;
    }
    Ok(())
}

/// Rows that have what an earlier one has, by rising id; no row is in both lists.
struct Exact {
    by_key: Vec<Repeat>,
    /// By the digest of their media; empty unless the rules ask.
    by_media: Vec<Repeat>,
}

impl Exact {
    fn find(rules: &CleanRules, rows: &Rows<'_>) -> Result<Self, IngestError> {
        let mut columns = vec![column::KEY];
        let mut keys = Pairs::for_about(rows.n_rows()).map_err(spool_error)?;
        let mut media = None;
        if rules.duplicates == Duplicates::Drop {
            columns.push(column::DIGEST);
            media = Some(Pairs::for_about(rows.n_rows()).map_err(spool_error)?);
        }
        for shard_idx in 0..rows.shards.len() {
            rows.visit(shard_idx, &columns, &mut |id, batch, i| {
                keys.push(short(text(batch, column::KEY, i).unwrap_or_default()), id).map_err(spool_error)?;
                if let (Some(media), Some(digest)) = (&mut media, text(batch, column::DIGEST, i)) {
                    media.push(short(digest), id).map_err(spool_error)?;
                }
                Ok(())
            })?;
        }
        let by_key = keys.repeats(&|_| false).map_err(spool_error)?;
        let by_media = match media {
            Some(media) => media.repeats(&|id| repeated_by(&by_key, id).is_some()).map_err(spool_error)?,
            None => Vec::new(),
        };
        Ok(Self { by_key, by_media })
    }

    /// Whether a row with an id in `ids` repeats another.
    fn any_in(&self, ids: std::ops::Range<u64>) -> bool {
        [&self.by_key, &self.by_media].iter().any(|repeats| {
            let first = repeats.partition_point(|repeat| repeat.id < ids.start);
            repeats.get(first).is_some_and(|repeat| repeat.id < ids.end)
        })
    }
}

/// What makes a row a repeated one.
struct Repeated {
    reason: RejectReason,
    /// The rule's key in the config; `key` for the one that always holds.
    rule: &'static str,
    detail: String,
}

struct Search<'a> {
    kind: RecordKind,
    rules: &'a CleanRules,
    rows: &'a Rows<'a>,
    n_old: usize,
    exact: Exact,
    near: Option<NearSearch>,
}

impl Search<'_> {
    /// Goes once more over the shards that have a row to hide, and over all of them if sketches are compared.
    fn run(&mut self) -> Result<Duplicated, IngestError> {
        let mut found = Duplicated::default();
        let rows = self.rows;
        let columns = columns(self.rules, self.kind);
        for shard_idx in 0..rows.shards.len() {
            let is_old = shard_idx < self.n_old;
            let has_repeats = || self.exact.any_in(rows.starts[shard_idx]..rows.starts[shard_idx + 1]);
            if self.near.is_none() && (is_old || !has_repeats()) {
                continue;
            }
            rows.visit(shard_idx, &columns, &mut |id, batch, i| {
                let Some(repeated) = self.judge(id, is_old, batch, i).filter(|_| !is_old) else { return Ok(()) };
                let Repeated { reason, rule, detail } = repeated;
                if self.rules.dry && rule != "key" {
                    *found.broken_rules.entry(rule.to_owned()).or_insert(0) += 1;
                } else if let Some((shard, row)) = rows.place(id) {
                    let key = text(batch, column::KEY, i).unwrap_or_default().to_owned();
                    found.tombstones.push(Tombstone { shard: shard.digest.clone(), row, key, reason, detail });
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    fn judge(&mut self, id: u64, is_old: bool, batch: &RecordBatch, i: usize) -> Option<Repeated> {
        let name = |of: u64| self.rows.name(of).unwrap_or_default();
        if let Some(of) = repeated_by(&self.exact.by_key, id) {
            let detail = format!("{} has this key already", name(of));
            return Some(Repeated { reason: RejectReason::DuplicateKey, rule: "key", detail });
        }
        if let Some(of) = repeated_by(&self.exact.by_media, id) {
            let detail = format!("{} has the same bytes", name(of));
            return Some(Repeated { reason: RejectReason::DuplicateMedia, rule: "duplicates", detail });
        }
        let near = self.near.as_mut()?;
        let sketches = sketches_of(batch, i, self.kind, self.rules);
        if is_old {
            near.index.refer(id, &sketches);
            return None;
        }
        let found = near.index.judge(id, &sketches)?;
        let (Near::Picture { of, .. } | Near::Captions { of, .. }) = found;
        let name = self.rows.name(of).unwrap_or_else(|| near.name(of));
        let (rule, detail) = match found {
            Near::Picture { bits, .. } => {
                ("near.picture_bits", format!("its picture differs in {bits} bits of 64 from that of {name}"))
            }
            Near::Captions { n_equal, .. } => {
                ("near.caption_jaccard", format!("its captions agree in {n_equal} of 64 places with those of {name}"))
            }
        };
        Some(Repeated { reason: RejectReason::NearDuplicate, rule, detail })
    }
}

/// Sketches seen so far, of this corpus and of those that it is compared with.
struct NearSearch {
    index: NearIndex,
    /// Other corpora and the ids that they begin with.
    others: Vec<(u64, String)>,
}

/// Ids of rows of other corpora begin here.
const OTHERS: u64 = 1 << 62;

impl NearSearch {
    /// Remembers the records of the corpora to compare with, such as a set that a model is evaluated on.
    fn new(corpus: &CorpusConfig, store: &Store) -> Result<Option<Self>, IngestError> {
        let Some(rule) = &corpus.clean.near else { return Ok(None) };
        let mut near = Self { index: NearIndex::new(rule), others: Vec::new() };
        let mut id = OTHERS;
        for other in rule.against.iter().filter(|other| **other != corpus.name) {
            let manifest = store.manifest(other)?.manifest;
            near.others.push((id, other.clone()));
            let columns = columns(&corpus.clean, manifest.kind);
            for entry in &manifest.shards {
                visit_batches(store, other, entry, &columns, &mut |batch| {
                    for i in 0..batch.num_rows() {
                        near.index.refer(id, &sketches_of(batch, i, manifest.kind, &corpus.clean));
                        id += 1;
                    }
                    Ok(())
                })?;
            }
        }
        Ok(Some(near))
    }

    fn name(&self, id: u64) -> String {
        let other = self.others.iter().rev().find(|(first, _)| *first <= id);
        other.map_or_else(String::new, |(_, name)| format!("a record of corpus `{name}`"))
    }
}

/// The key, and what records are compared by.
fn columns(rules: &CleanRules, kind: RecordKind) -> Vec<&'static str> {
    let mut columns = vec![column::KEY];
    if rules.wants_picture_hash() && kind == RecordKind::ImageText {
        columns.push(column::PHASH);
    }
    if rules.wants_caption_sketch() {
        columns.push(column::CAPTIONS);
    }
    columns
}

fn sketches_of(batch: &RecordBatch, i: usize, kind: RecordKind, rules: &CleanRules) -> Sketches {
    let hash = || {
        let column = batch.column_by_name(column::PHASH)?.as_primitive_opt::<Int64Type>()?;
        column.is_valid(i).then(|| column.value(i).cast_unsigned())
    };
    let captions = || {
        let list = batch.column_by_name(column::CAPTIONS)?.as_list_opt::<i32>()?.value(i);
        let texts: Vec<String> = list.as_string_opt::<i32>()?.iter().flatten().map(str::to_owned).collect();
        caption_sketch(&texts)
    };
    let picture = if kind == RecordKind::ImageText && rules.wants_picture_hash() { hash() } else { None };
    let captions = if rules.wants_caption_sketch() { captions() } else { None };
    Sketches { picture, captions }
}

fn text<'a>(batch: &'a RecordBatch, name: &str, i: usize) -> Option<&'a str> {
    let column = batch.column_by_name(name)?.as_string_opt::<i32>()?;
    column.is_valid(i).then(|| column.value(i))
}

fn short(text: &str) -> Short {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    short
}

fn spool_error(source: std::io::Error) -> IngestError {
    IngestError::Read { path: std::env::temp_dir(), source }
}
