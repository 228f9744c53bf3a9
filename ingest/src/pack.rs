//! Records → a sealed shard.
//!
//! In: verified records in row order. Out: the bytes of a Parquet file, its digest and its manifest entry. The layout is that
//! of a store of media: one row per page for large blobs, so that a random row is one small read; words and numbers
//! compressed; planning columns before the medium. Memory holds a row group, the file grows on disk.
//! Never: a timestamp, a machine's name, an unsealed shard's entry.

mod columns;
mod file;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use imp_schemas::histogram::Histogram;
use imp_schemas::manifest::ShardEntry;
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{column, huggingface_features, media_column, record_schema};
use imp_schemas::reject::Reject;
use imp_schemas::shard::{Digest, footer, shard_key};
use imp_schemas::store::{Store, StoreError};
use imp_schemas::tombstone::{Tombstone, tombstone_batch};
use imp_schemas::version::Format;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use tempfile::NamedTempFile;

use self::file::ShardFile;

use crate::error::IngestError;
use crate::plan::Planned;
use crate::verify::{Facts, Record};

/// A row group is closed before its media exceed this.
const ROW_GROUP_BYTES: u64 = 64 << 20;
const ROW_GROUP_ROWS: usize = 10_000;
/// What writing a shard costs beside verifying its records, measured on photographs; for plans only.
pub(crate) const SHARE_OF_VERIFYING: f64 = 0.05;
/// Rows are laid out as columns in batches of about this size.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_ROWS: usize = 1024;
/// Blobs of at least this mean size get a page each; smaller ones share pages of [`SMALL_BLOB_PAGE`]. DATA-PLANE.md 8.3.
const LARGE_BLOB: u64 = 16 << 10;
const SMALL_BLOB_PAGE: usize = 64 << 10;
/// Rows per page of captions and tokens: a page is decompressed whole for one of its rows.
const WORD_PAGE_ROWS: usize = 128;

/// What a shard says about itself.
#[derive(Debug, Clone)]
pub(crate) struct ShardHead {
    pub(crate) corpus: String,
    pub(crate) kind: RecordKind,
    pub(crate) split: String,
    pub(crate) tokenizer: Digest,
    /// Mean size of the split's media: decides how their pages are cut.
    pub(crate) mean_media_bytes: u64,
}

/// A shard that still takes records; it has no digest yet.
pub(crate) struct OpenShard {
    head: ShardHead,
    schema: SchemaRef,
    writer: ArrowWriter<ShardFile>,
    /// Rows that are not yet in the writer, and the bytes of their media.
    rows: Vec<Row>,
    rows_bytes: u64,
    /// Of the row group under way, rows of the writer included.
    group_rows: usize,
    group_bytes: u64,
    n_rows: u64,
    media_bytes: u64,
    media_digest: blake3::Hasher,
    ranges: BTreeMap<String, [f64; 2]>,
    histograms: BTreeMap<String, Histogram>,
}

/// One record as it stands in the columns.
pub(crate) struct Row {
    key: String,
    source: String,
    captions: Vec<String>,
    label: Option<(i32, String)>,
    record: Record,
}

impl Row {
    pub(crate) fn new(planned: &Planned, classes: &[String], record: Record) -> Self {
        let label = planned.label_id.and_then(|id| Some((i32::try_from(id).ok()?, classes.get(id)?.clone())));
        let key = format!("{}{}", planned.key, record.key_suffix);
        Self { key, source: planned.source.clone(), captions: record.captions.clone(), label, record }
    }
}

/// A shard whose bytes are final.
#[derive(Debug)]
pub(crate) struct SealedShard {
    corpus: String,
    entry: ShardEntry,
    file: NamedTempFile,
    histograms: BTreeMap<String, Histogram>,
}

/// A shard that is in the store; nothing else makes one.
#[derive(Debug)]
pub(crate) struct StoredShard {
    pub(crate) entry: ShardEntry,
    /// Of its planning columns.
    pub(crate) histograms: BTreeMap<String, Histogram>,
}

impl OpenShard {
    pub(crate) fn new(head: ShardHead) -> Result<Self, IngestError> {
        let schema = record_schema(head.kind);
        let properties = properties(&head);
        let file = ShardFile::create().map_err(|source| IngestError::Read { path: std::env::temp_dir(), source })?;
        // Readers that find an Arrow schema in the footer take its metadata and no other pair: pyarrow does, so Hugging Face
        // `datasets` shows a picture as one only by what stands here.
        let features = HashMap::from([(footer::HUGGINGFACE.to_owned(), huggingface_features(head.kind))]);
        let described = Arc::new(schema.as_ref().clone().with_metadata(features));
        let writer = ArrowWriter::try_new(file, described, Some(properties))
            .map_err(|source| IngestError::Shard { corpus: head.corpus.clone(), source })?;
        Ok(Self {
            head,
            schema,
            writer,
            rows: Vec::new(),
            rows_bytes: 0,
            group_rows: 0,
            group_bytes: 0,
            n_rows: 0,
            media_bytes: 0,
            media_digest: blake3::Hasher::new(),
            ranges: BTreeMap::new(),
            histograms: BTreeMap::new(),
        })
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
        self.writer.append_key_value_metadata(KeyValue::new(footer::N_ROWS.to_owned(), self.n_rows.to_string()));
        let media_digest = self.media_digest.finalize().to_hex().to_string();
        self.writer.append_key_value_metadata(KeyValue::new(footer::MEDIA_DIGEST.to_owned(), media_digest));
        let metadata = self.writer.finish().map_err(failed)?;
        // `finish` has flushed all there is; `into_inner` would refuse a finished writer.
        let written = self
            .writer
            .inner_mut()
            .finish()
            .map_err(|source| IngestError::Read { path: std::env::temp_dir(), source })?;
        let entry = ShardEntry {
            digest: written.digest,
            split: self.head.split,
            n_rows: self.n_rows,
            n_deleted: 0,
            n_bytes: written.n_bytes,
            footer_len: footer_len(&written.tail).map_err(failed)?,
            index_offset: index_offset(&metadata).map_err(failed)?,
            n_row_groups: metadata.num_row_groups() as u64,
            media_bytes: self.media_bytes,
            ranges: self.ranges,
        };
        Ok(SealedShard { corpus, entry, file: written.file, histograms: self.histograms })
    }

    fn close_row_group(&mut self) -> Result<(), IngestError> {
        self.write_rows()?;
        (self.group_rows, self.group_bytes) = (0, 0);
        self.writer.flush().map_err(|source| IngestError::Shard { corpus: self.head.corpus.clone(), source })
    }

    /// Hands the rows to the writer, which holds them as pages until its row group is closed.
    fn write_rows(&mut self) -> Result<(), IngestError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let corpus = || self.head.corpus.clone();
        let rows = std::mem::take(&mut self.rows);
        self.rows_bytes = 0;
        let batch = columns::batch(self.head.kind, &self.schema, &self.head.split, rows)
            .map_err(|source| IngestError::Columns { corpus: corpus(), source })?;
        self.writer.write(&batch).map_err(|source| IngestError::Shard { corpus: corpus(), source })
    }
}

impl SealedShard {
    /// Puts the shard under its digest; one that is there already is left alone.
    pub(crate) fn store(self, store: &Store) -> Result<StoredShard, StoreError> {
        let key = shard_key(&self.corpus, &self.entry.digest);
        if store.size(&key)? != Some(self.entry.n_bytes) {
            store.put_file(&key, self.file.path())?;
        }
        Ok(StoredShard { entry: self.entry, histograms: self.histograms })
    }
}

/// The table of rejects: sorted by place, so that the same rejects give the same bytes.
pub(crate) fn pack_rejects(corpus: &str, rejects: &[Reject]) -> Result<Bytes, IngestError> {
    let failed = |source| IngestError::Shard { corpus: corpus.to_owned(), source };
    let batch =
        columns::rejects_batch(rejects).map_err(|source| IngestError::Columns { corpus: corpus.to_owned(), source })?;
    table_bytes(&batch).map_err(failed)
}

/// The table of tombstones, in the order given.
pub(crate) fn pack_tombstones(corpus: &str, tombstones: &[Tombstone]) -> Result<Bytes, IngestError> {
    let batch =
        tombstone_batch(tombstones).map_err(|source| IngestError::Columns { corpus: corpus.to_owned(), source })?;
    table_bytes(&batch).map_err(|source| IngestError::Shard { corpus: corpus.to_owned(), source })
}

fn table_bytes(batch: &RecordBatch) -> Result<Bytes, ParquetError> {
    let properties = common().set_dictionary_enabled(true).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(batch)?;
    Ok(Bytes::from(writer.into_inner()?))
}

/// What the writer's name says is its version, which is part of what made the bytes; never a time.
fn common() -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_created_by(concat!("imp-ingest ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap_or_default()))
}

fn properties(head: &ShardHead) -> WriterProperties {
    let path = |parts: &[&str]| ColumnPath::new(parts.iter().map(|part| (*part).to_owned()).collect());
    let media = media_column(head.kind);
    let (bytes, file_name) = (path(&[media, column::MEDIA_BYTES]), path(&[media, column::MEDIA_PATH]));
    let captions = path(&[column::CAPTIONS, "list", "item"]);
    let tokens = path(&[column::TOKENS, "list", "item", "list", "item"]);
    let blob_page = if head.mean_media_bytes >= LARGE_BLOB { 1 } else { SMALL_BLOB_PAGE };
    let mut properties = common()
        .set_dictionary_enabled(false)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_write_batch_size(WORD_PAGE_ROWS)
        .set_column_encoding(bytes.clone(), Encoding::PLAIN)
        .set_column_compression(bytes.clone(), Compression::UNCOMPRESSED)
        .set_column_data_page_size_limit(bytes.clone(), blob_page);
    for blob in [bytes, file_name] {
        properties = properties.set_column_statistics_enabled(blob, EnabledStatistics::None);
    }
    for words in [captions, tokens] {
        properties = properties
            .set_column_statistics_enabled(words.clone(), EnabledStatistics::None)
            .set_column_data_page_row_count_limit(words, WORD_PAGE_ROWS);
    }
    for id in [column::KEY, column::DIGEST] {
        // Without a limit of its own a filter is sized for a million keys.
        let id = path(&[id]);
        properties = properties
            .set_column_bloom_filter_enabled(id.clone(), true)
            .set_column_bloom_filter_fpp(id.clone(), 0.01)
            .set_column_bloom_filter_max_ndv(id, ROW_GROUP_ROWS as u64);
    }
    for few in [column::SPLIT, column::LABEL, column::FORMAT, column::CODEC, column::NORMALISED] {
        properties = properties.set_column_dictionary_enabled(path(&[few]), true);
    }
    let pairs = [
        (footer::SCHEMA, head.kind.name().to_owned()),
        (footer::SCHEMA_VERSION, Format::Shard.current().to_string()),
        (footer::CORPUS, head.corpus.clone()),
        (footer::SPLIT, head.split.clone()),
        (footer::WRITER, concat!("imp-ingest ", env!("CARGO_PKG_VERSION")).to_owned()),
        (footer::TOKENIZER, head.tokenizer.0.clone()),
        (footer::HUGGINGFACE, huggingface_features(head.kind)),
    ];
    let pairs = pairs.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect();
    properties.set_key_value_metadata(Some(pairs)).build()
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

/// Bytes of Parquet metadata before the length and the magic that end the file.
fn footer_len(tail: &[u8; 8]) -> Result<u64, ParquetError> {
    match tail {
        [a, b, c, d, b'P', b'A', b'R', b'1'] => Ok(u64::from(u32::from_le_bytes([*a, *b, *c, *d]))),
        _ => Err(ParquetError::General("the writer left no footer".to_owned())),
    }
}

/// Where the page indexes begin; they run up to the footer.
fn index_offset(metadata: &ParquetMetaData) -> Result<u64, ParquetError> {
    let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
    let offsets = columns.flat_map(|c| [c.column_index_offset(), c.offset_index_offset()]).flatten();
    let first = offsets.min().and_then(|offset| u64::try_from(offset).ok());
    first.ok_or_else(|| ParquetError::General("the writer left no page index".to_owned()))
}
