//! A corpus of an older schema version, written anew in the current one.
//!
//! In: the newest snapshot of a corpus. Out: a snapshot more, whose shards are all of the current version; rows keep their order
//! and their row groups, media their bytes. Never: an object changed or removed, more than a row group in memory.
//! What an older shard does not hold and its rows do not tell (a picture's hash) is null, which every reader takes.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, RecordBatch, new_null_array};
use arrow::datatypes::Schema;
use bytes::Bytes;
use imp_schemas::histogram::Histogram;
use imp_schemas::manifest::{Manifest, ShardEntry, TombstonesEntry};
use imp_schemas::record::{column, record_schema};
use imp_schemas::shard::{Digest, footer, manifest_key, shard_key, tombstones_key};
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::shard_writer::{ShardHead, ShardWriter, table_bytes};
use imp_schemas::store::Store;
use imp_schemas::tombstone::tombstone_batch;
use imp_schemas::version::{Format, Version};

use crate::check::Numbers;
use crate::columns;
use crate::rows::{Rows, present};
use crate::{PROGRAM, ShardsError};

/// Media that are held together.
const WINDOW_BYTES: i64 = 16 << 20;
const WINDOW_ROWS: usize = 512;

/// Upgrades and says what it wrote.
///
/// # Errors
/// A shard cannot be read or written, or another program published at the same time; the store then has shards that no
/// snapshot names, and nothing else.
pub(crate) fn run(url: &str, corpus: &str, dry_run: bool) -> Result<(), ShardsError> {
    let store = Store::open(url)?;
    crate::select(&store, &[corpus.to_owned()])?;
    let snapshot = store.manifest(corpus)?;
    let mut manifest = snapshot.manifest;
    let current = Format::Shard.current();
    let versions: Vec<Version> =
        manifest.shards.iter().map(|s| version_of(&store, corpus, s)).collect::<Result<_, _>>()?;
    let n_old = versions.iter().filter(|v| **v < current).count();
    if n_old == 0 && manifest.format >= Format::Manifest.current() {
        println!("{corpus}: snapshot {} is of version {current}, nothing to do", snapshot.version);
        return Ok(());
    }
    if dry_run {
        println!("{corpus}: {n_old} of {} shards would be written anew as {current}", manifest.shards.len());
        return Ok(());
    }
    let mut histograms = BTreeMap::new();
    let mut renamed = BTreeMap::new();
    for (i, version) in versions.iter().enumerate() {
        let entry = if *version < current {
            rewrite(&store, &manifest, i, &mut histograms)?
        } else {
            count(&store, &manifest, i, &mut histograms)?;
            manifest.shards[i].clone()
        };
        renamed.insert(std::mem::replace(&mut manifest.shards[i], entry.clone()).digest, entry.digest);
    }
    manifest.tombstones = rename_tombstones(&store, &manifest, &renamed)?;
    manifest.side_tables = columns::renamed(&store, &manifest, &renamed)?;
    // It names shards as they were; a snapshot of shards from before there was one has none.
    manifest.media_index = None;
    manifest.histograms = histograms;
    // It leads into shards that are no longer the snapshot's.
    manifest.media_index = manifest.media_index.filter(|_| n_old == 0);
    manifest.format = Format::Manifest.current();
    manifest.schema_version = current;
    let version = snapshot.version + 1;
    if !store.put_if_absent(&manifest_key(corpus, version), Bytes::from(manifest.to_bytes()?))? {
        return Err(ShardsError::Overtaken { corpus: corpus.to_owned(), snapshot: version });
    }
    println!("{corpus}: snapshot {version} published, {n_old} of {} shards written anew as {current}", renamed.len());
    Ok(())
}

fn version_of(store: &Store, corpus: &str, entry: &ShardEntry) -> Result<Version, ShardsError> {
    let reader = ShardReader::open(store, corpus, entry)?;
    let pairs = reader.metadata().file_metadata().key_value_metadata();
    let version =
        pairs.into_iter().flatten().find(|kv| kv.key == footer::SCHEMA_VERSION).and_then(|kv| kv.value.as_ref());
    let none = || ShardsError::NoVersion { shard: reader.key().to_owned() };
    version.and_then(|text| text.parse().ok()).ok_or_else(none)
}

/// Counts the numbers of a shard that stays as it is.
fn count(
    store: &Store,
    manifest: &Manifest,
    shard: usize,
    histograms: &mut BTreeMap<String, Histogram>,
) -> Result<(), ShardsError> {
    let reader = ShardReader::open(store, &manifest.corpus, &manifest.shards[shard])?;
    let schema = record_schema(manifest.kind);
    let mut columns = present(&reader, &schema);
    columns.retain(|name| *name != imp_schemas::record::media_column(manifest.kind));
    let mut numbers = Numbers::default();
    crate::rows::for_live(&reader, &manifest.corpus, &[], &columns, |_, rows| numbers.add(rows, histograms))
}

/// Writes the shard in the current schema and puts it into the store; gives its new entry.
fn rewrite(
    store: &Store,
    manifest: &Manifest,
    shard: usize,
    histograms: &mut BTreeMap<String, Histogram>,
) -> Result<ShardEntry, ShardsError> {
    let entry = &manifest.shards[shard];
    let reader = ShardReader::open(store, &manifest.corpus, entry)?;
    let failed = |source| ShardsError::Rewrite { shard: reader.key().to_owned(), source };
    let schema = record_schema(manifest.kind);
    let columns = present(&reader, &schema);
    let head = ShardHead {
        corpus: manifest.corpus.clone(),
        kind: manifest.kind,
        split: entry.split.clone(),
        tokenizer: manifest.tokenizer.digest.clone(),
        mean_media_bytes: entry.media_bytes / entry.n_rows.max(1),
        program: PROGRAM,
    };
    let mut writer = ShardWriter::create(&head).map_err(failed)?;
    let mut media_digest = blake3::Hasher::new();
    let mut numbers = Numbers::default();
    let mut start = 0;
    for group in reader.metadata().row_groups() {
        let end = start + u64::try_from(group.num_rows()).unwrap_or(0);
        for rows in windows(&reader, manifest, start..end)? {
            let batch = current(&Rows { corpus: &manifest.corpus, batch: &reader.read(&rows, &columns)? }, &schema)
                .map_err(|e| e.of(&reader))?;
            let rows = Rows { corpus: &manifest.corpus, batch: &batch };
            rows.texts(column::DIGEST)?.into_iter().flatten().for_each(|d| _ = media_digest.update(d.as_bytes()));
            numbers.add(&rows, histograms)?;
            writer.write(&batch).map_err(failed)?;
        }
        writer.close_row_group().map_err(failed)?;
        start = end;
    }
    let written = writer.seal(entry.n_rows, &media_digest).map_err(failed)?;
    let key = shard_key(&manifest.corpus, &written.digest);
    if store.size(&key)? != Some(written.n_bytes) {
        store.put_file(&key, written.file.path())?;
    }
    Ok(ShardEntry {
        digest: written.digest,
        n_bytes: written.n_bytes,
        footer_len: written.footer_len,
        index_offset: written.index_offset,
        n_row_groups: written.n_row_groups,
        ranges: numbers.into_ranges(),
        ..entry.clone()
    })
}

/// Runs of rows whose media weigh little enough to be held together.
fn windows(
    reader: &ShardReader,
    manifest: &Manifest,
    rows: std::ops::Range<u64>,
) -> Result<Vec<Vec<u64>>, ShardsError> {
    let rows: Vec<u64> = rows.collect();
    let batch = reader.read(&rows, &[column::BYTES_LEN])?;
    let sizes = Rows { corpus: &manifest.corpus, batch: &batch }.numbers(column::BYTES_LEN)?;
    let mut windows: Vec<Vec<u64>> = Vec::new();
    let mut weight = 0;
    for (row, size) in rows.into_iter().zip(sizes) {
        let size = size.unwrap_or(0).max(0);
        weight += size;
        match windows.last_mut() {
            Some(window) if weight <= WINDOW_BYTES && window.len() < WINDOW_ROWS => window.push(row),
            _ => {
                weight = size;
                windows.push(vec![row]);
            }
        }
    }
    Ok(windows)
}

/// Why rows do not fit the current schema.
enum Unfit {
    Shards(ShardsError),
    Arrow(arrow::error::ArrowError),
}

impl Unfit {
    fn of(self, reader: &ShardReader) -> ShardsError {
        match self {
            Self::Shards(error) => error,
            Self::Arrow(source) => ShardsError::Columns { shard: reader.key().to_owned(), source },
        }
    }
}

/// The rows in the current schema: what is not there is computed, or null.
fn current(rows: &Rows<'_>, schema: &Arc<Schema>) -> Result<RecordBatch, Unfit> {
    let n = rows.batch.num_rows();
    let column = |field: &arrow::datatypes::FieldRef| -> Result<ArrayRef, Unfit> {
        if let Some(column) = rows.batch.column_by_name(field.name()) {
            return Ok(column.clone());
        }
        if field.name() == column::NUM_TOKENS {
            let tokens = rows.tokens().map_err(Unfit::Shards)?;
            let longest = tokens.iter().map(|row| row.iter().map(Vec::len).max().unwrap_or(0));
            return Ok(Arc::new(longest.map(|n| i32::try_from(n).ok()).collect::<Int32Array>()));
        }
        Ok(new_null_array(field.data_type(), n))
    };
    let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(schema.clone(), columns).map_err(Unfit::Arrow)
}

/// The tombstones under the new names of their shards.
fn rename_tombstones(
    store: &Store,
    manifest: &Manifest,
    renamed: &BTreeMap<Digest, Digest>,
) -> Result<Option<TombstonesEntry>, ShardsError> {
    let mut tombstones = store.tombstones(manifest)?;
    for tombstone in &mut tombstones {
        if let Some(name) = renamed.get(&tombstone.shard) {
            tombstone.shard = name.clone();
        }
    }
    if tombstones.is_empty() {
        return Ok(None);
    }
    tombstones.sort();
    let table = || format!("{}/tombstones", manifest.corpus);
    let batch = tombstone_batch(&tombstones).map_err(|source| ShardsError::Columns { shard: table(), source })?;
    let bytes = table_bytes(PROGRAM, &batch).map_err(|source| ShardsError::Rewrite { shard: table(), source })?;
    let entry = TombstonesEntry { digest: Digest::of(&bytes), n_rows: tombstones.len() as u64 };
    store.put_if_absent(&tombstones_key(&manifest.corpus, &entry.digest), bytes)?;
    Ok(Some(entry))
}
