//! Records → a sealed shard.
//!
//! In: verified records in row order. Out: a Parquet file of `schemas::shard_writer`'s layout, its digest and its manifest
//! entry. Memory holds a row group, the file grows on disk.
//! Never: a timestamp, a machine's name, an unsealed shard's entry.

mod columns;

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use imp_schemas::histogram::Histogram;
use imp_schemas::manifest::ShardEntry;
use imp_schemas::media_index::MediaPlace;
use imp_schemas::record::{column, record_schema};
use imp_schemas::reject::Reject;
use imp_schemas::shard::shard_key;
pub(crate) use imp_schemas::shard_writer::ShardHead;
use imp_schemas::shard_writer::{ROW_GROUP_BYTES, ROW_GROUP_ROWS, ShardWriter, media_places, table_bytes};
use imp_schemas::store::{Store, StoreError};
use imp_schemas::tombstone::{Tombstone, tombstone_batch};
use tempfile::NamedTempFile;

use crate::error::IngestError;
use crate::plan::Planned;
use crate::verify::{Facts, Record};

/// Who wrote it, as shards and tables say.
pub(crate) const PROGRAM: &str = concat!("imp-ingest ", env!("CARGO_PKG_VERSION"));
/// Rows are laid out as columns in batches of about this size.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_ROWS: usize = 1024;

/// A shard that still takes records; it has no digest yet.
pub(crate) struct OpenShard {
    head: ShardHead,
    schema: SchemaRef,
    /// Made with the first rows: how its pages are cut depends on what they weigh.
    writer: Option<ShardWriter>,
    /// Rows that are not yet in the writer, and the bytes of their media.
    rows: Vec<Row>,
    rows_bytes: u64,
    /// Of the row group under way, rows of the writer included.
    group_rows: usize,
    group_bytes: u64,
    n_rows: u64,
    media_bytes: u64,
    media_digest: blake3::Hasher,
    /// Bytes of each row's medium.
    media_lens: Vec<u64>,
    ranges: BTreeMap<String, [f64; 2]>,
    histograms: BTreeMap<String, Histogram>,
}

/// One record as it stands in the columns.
pub(crate) struct Row {
    key: String,
    source: String,
    captions: Vec<String>,
    /// Ids and names, the first label first.
    labels: Vec<(i32, String)>,
    record: Record,
}

impl Row {
    pub(crate) fn new(planned: &Planned, classes: &[String], record: Record) -> Self {
        let label = |&id: &usize| Some((i32::try_from(id).ok()?, classes.get(id)?.clone()));
        let labels = planned.label_ids.iter().filter_map(label).collect();
        let key = format!("{}{}", planned.key, record.key_suffix);
        Self { key, source: planned.source.clone(), captions: record.captions.clone(), labels, record }
    }
}

/// A shard whose bytes are final.
#[derive(Debug)]
pub(crate) struct SealedShard {
    corpus: String,
    entry: ShardEntry,
    file: NamedTempFile,
    histograms: BTreeMap<String, Histogram>,
    places: Vec<MediaPlace>,
}

/// A shard that is in the store; nothing else makes one.
#[derive(Debug)]
pub(crate) struct StoredShard {
    pub(crate) entry: ShardEntry,
    /// Of its planning columns.
    pub(crate) histograms: BTreeMap<String, Histogram>,
    /// Of its media, row by row.
    pub(crate) places: Vec<MediaPlace>,
}

impl OpenShard {
    pub(crate) fn new(head: ShardHead) -> Self {
        let schema = record_schema(head.kind);
        Self {
            head,
            schema,
            writer: None,
            rows: Vec::new(),
            rows_bytes: 0,
            group_rows: 0,
            group_bytes: 0,
            n_rows: 0,
            media_bytes: 0,
            media_digest: blake3::Hasher::new(),
            media_lens: Vec::new(),
            ranges: BTreeMap::new(),
            histograms: BTreeMap::new(),
        }
    }

    pub(crate) fn push(&mut self, row: Row) -> Result<(), IngestError> {
        let n_bytes = row.record.media.len() as u64;
        if self.group_rows == ROW_GROUP_ROWS || self.group_bytes + n_bytes > ROW_GROUP_BYTES {
            self.close_row_group()?;
        }
        self.media_digest.update(row.record.digest.0.as_bytes());
        for (name, value) in planning_values(&row.record) {
            let range = self.ranges.entry(name.to_owned()).or_insert([value, value]);
            *range = [range[0].min(value), range[1].max(value)];
            self.histograms.entry(name.to_owned()).or_default().push(value);
        }
        self.n_rows += 1;
        self.media_lens.push(n_bytes);
        self.media_bytes += n_bytes;
        self.rows_bytes += n_bytes;
        self.group_rows += 1;
        self.group_bytes += n_bytes;
        self.rows.push(row);
        if self.rows.len() >= BATCH_ROWS || self.rows_bytes >= BATCH_BYTES {
            self.write_rows()?;
        }
        Ok(())
    }

    /// Bytes of media so far.
    pub(crate) fn media_bytes(&self) -> u64 {
        self.media_bytes
    }

    /// Writes the footer; the shard's name is the digest of its bytes.
    pub(crate) fn seal(mut self) -> Result<SealedShard, IngestError> {
        self.close_row_group()?;
        let corpus = self.head.corpus.clone();
        let failed = |source| IngestError::Shard { corpus: corpus.clone(), source };
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => ShardWriter::create(&self.head).map_err(failed)?,
        };
        let written = writer.seal(self.n_rows, &self.media_digest).map_err(failed)?;
        let places = media_places(self.head.kind, written.file.as_file(), &self.media_lens).map_err(failed)?;
        let entry = ShardEntry {
            digest: written.digest,
            split: self.head.split,
            n_rows: self.n_rows,
            n_deleted: 0,
            n_bytes: written.n_bytes,
            footer_len: written.footer_len,
            index_offset: written.index_offset,
            n_row_groups: written.n_row_groups,
            media_bytes: self.media_bytes,
            ranges: self.ranges,
        };
        Ok(SealedShard { corpus, entry, file: written.file, histograms: self.histograms, places })
    }

    fn close_row_group(&mut self) -> Result<(), IngestError> {
        self.write_rows()?;
        (self.group_rows, self.group_bytes) = (0, 0);
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.close_row_group().map_err(|source| IngestError::Shard { corpus: self.head.corpus.clone(), source })
    }

    /// Hands the rows to the writer, which holds them as pages until its row group is closed.
    fn write_rows(&mut self) -> Result<(), IngestError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let corpus = self.head.corpus.clone();
        let corpus = || corpus.clone();
        let rows = std::mem::take(&mut self.rows);
        if self.writer.is_none() {
            self.head.mean_media_bytes = self.rows_bytes / rows.len() as u64;
            let made = ShardWriter::create(&self.head);
            self.writer = Some(made.map_err(|source| IngestError::Shard { corpus: corpus(), source })?);
        }
        self.rows_bytes = 0;
        let batch = columns::batch(self.head.kind, &self.schema, &self.head.split, rows)
            .map_err(|source| IngestError::Columns { corpus: corpus(), source })?;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.write(&batch).map_err(|source| IngestError::Shard { corpus: corpus(), source })
    }
}

impl SealedShard {
    /// Words, numbers, indexes, footer.
    pub(crate) fn n_bytes_beside_media(&self) -> u64 {
        self.entry.n_bytes.saturating_sub(self.entry.media_bytes)
    }

    /// Puts the shard under its digest; one that is there already is left alone.
    pub(crate) fn store(self, store: &Store) -> Result<StoredShard, StoreError> {
        let key = shard_key(&self.corpus, &self.entry.digest);
        if store.size(&key)? != Some(self.entry.n_bytes) {
            store.put_file(&key, self.file.path())?;
        }
        Ok(StoredShard { entry: self.entry, histograms: self.histograms, places: self.places })
    }
}

/// The table of rejects: sorted by place, so that the same rejects give the same bytes.
pub(crate) fn pack_rejects(corpus: &str, rejects: &[Reject]) -> Result<Bytes, IngestError> {
    let failed = |source| IngestError::Shard { corpus: corpus.to_owned(), source };
    let batch =
        columns::rejects_batch(rejects).map_err(|source| IngestError::Columns { corpus: corpus.to_owned(), source })?;
    table_bytes(PROGRAM, &batch).map_err(failed)
}

/// The table of tombstones, in the order given.
pub(crate) fn pack_tombstones(corpus: &str, tombstones: &[Tombstone]) -> Result<Bytes, IngestError> {
    let batch =
        tombstone_batch(tombstones).map_err(|source| IngestError::Columns { corpus: corpus.to_owned(), source })?;
    table_bytes(PROGRAM, &batch).map_err(|source| IngestError::Shard { corpus: corpus.to_owned(), source })
}

/// Values of the columns that a plan can prune by.
fn planning_values(record: &Record) -> Vec<(&'static str, f64)> {
    let n_tokens = record.tokens.iter().map(Vec::len).max().unwrap_or(0);
    let mut values = vec![(column::BYTES_LEN, record.media.len() as f64), (column::NUM_TOKENS, n_tokens as f64)];
    match &record.facts {
        Facts::Image(image) => {
            values.extend([(column::WIDTH, image.width as f64), (column::HEIGHT, image.height as f64)]);
        }
        Facts::Video(video) => values.extend([
            (column::WIDTH, video.width as f64),
            (column::HEIGHT, video.height as f64),
            (column::FPS, f64::from(video.fps)),
            (column::NUM_FRAMES, video.num_frames as f64),
            (column::DURATION, video.duration),
        ]),
        Facts::Audio(audio) => values.extend([
            (column::SAMPLING_RATE, f64::from(audio.sampling_rate)),
            (column::CHANNELS, audio.channels as f64),
            (column::NUM_SAMPLES, audio.num_samples as f64),
            (column::DURATION, audio.duration),
        ]),
    }
    values
}
