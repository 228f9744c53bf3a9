//! How a shard is written: one layout, whoever writes it.
//!
//! In: record batches of the contract's schema, in row order. Out: the bytes of a Parquet file on disk, its digest, and where
//! its footer lies. The layout is that of a store of media: one row per page for large blobs, so that a random row is one small
//! read; words and numbers compressed; planning columns before the medium. Memory holds a few rows, all else is on disk.
//! Never: a timestamp, a machine's name, the file read again.
//! Source: DATA-PLANE.md 8.3 and 8.8.

mod places;
mod side_table;
mod spill;

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use tempfile::NamedTempFile;

pub use self::places::media_places;
pub use self::side_table::{SHARDS_PER_TABLE, SideTableWriter};
use crate::media_index::{MediaPlace, media_index_batch, media_index_schema};
use crate::modality::RecordKind;
use crate::record::{column, huggingface_features, media_column, record_schema};
use crate::shard::{Digest, footer};
use crate::version::Format;

/// Rows of a row group, at most.
pub const ROW_GROUP_ROWS: usize = 10_000;
/// A row group is closed before its media exceed this.
pub const ROW_GROUP_BYTES: u64 = 64 << 20;
/// Blobs of at least this mean size get a page each; smaller ones share pages of [`SMALL_BLOB_PAGE`]. DATA-PLANE.md 8.3.
const LARGE_BLOB: u64 = 16 << 10;
const SMALL_BLOB_PAGE: usize = 64 << 10;
/// Rows per page of captions and tokens: a page is decompressed whole for one of its rows.
const WORD_PAGE_ROWS: usize = 128;
const BUFFER_BYTES: usize = 256 << 10;

/// What a shard says about itself.
#[derive(Debug, Clone)]
pub struct ShardHead {
    pub corpus: String,
    pub kind: RecordKind,
    pub split: String,
    pub tokenizer: Digest,
    /// Mean size of the media: decides how their pages are cut.
    pub mean_media_bytes: u64,
    /// Program and version that writes: part of what made the bytes.
    pub program: &'static str,
}

/// A shard that still takes rows; it has no digest yet.
pub struct ShardWriter {
    inner: ArrowWriter<ShardFile>,
}

/// A shard whose bytes are final.
#[derive(Debug)]
pub struct WrittenShard {
    pub file: NamedTempFile,
    pub digest: Digest,
    pub n_bytes: u64,
    /// As in [`crate::manifest::ShardEntry`].
    pub footer_len: u64,
    pub index_offset: u64,
    pub n_row_groups: u64,
}

impl ShardWriter {
    /// Opens a shard of the current schema in a temporary file.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(head: &ShardHead) -> Result<Self, ParquetError> {
        // Readers that find an Arrow schema in the footer take its metadata and no other pair: pyarrow does, so Hugging Face
        // `datasets` shows a picture as one only by what stands here.
        let features = HashMap::from([(footer::HUGGINGFACE.to_owned(), huggingface_features(head.kind))]);
        let schema = Arc::new(record_schema(head.kind).as_ref().clone().with_metadata(features));
        let spill = spill::SpillMedia { path: [media_column(head.kind), column::MEDIA_BYTES] };
        let options =
            ArrowWriterOptions::new().with_properties(properties(head)).with_page_store_factory(Arc::new(spill));
        let inner = ArrowWriter::try_new_with_options(ShardFile::create()?, schema, options)?;
        Ok(Self { inner })
    }

    /// Takes rows into the row group under way.
    ///
    /// # Errors
    /// The columns are not the schema's, or the disk is full.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
        self.inner.write(batch)
    }

    /// The next row starts a row group.
    ///
    /// # Errors
    /// The disk is full.
    pub fn close_row_group(&mut self) -> Result<(), ParquetError> {
        self.inner.flush()
    }

    /// Writes the footer. `media_digest` is over the digests of the media, in row order.
    ///
    /// # Errors
    /// The disk is full.
    pub fn seal(mut self, n_rows: u64, media_digest: &blake3::Hasher) -> Result<WrittenShard, ParquetError> {
        let pair = |key: &str, value: String| KeyValue::new(key.to_owned(), value);
        self.inner.append_key_value_metadata(pair(footer::N_ROWS, n_rows.to_string()));
        self.inner.append_key_value_metadata(pair(footer::MEDIA_DIGEST, media_digest.finalize().to_hex().to_string()));
        let metadata = self.inner.finish()?;
        // `finish` has flushed all there is; `into_inner` would refuse a finished writer.
        let (file, digest, n_bytes, tail) = self.inner.inner_mut().finish()?;
        Ok(WrittenShard {
            file,
            digest,
            n_bytes,
            footer_len: footer_len(&tail)?,
            index_offset: index_offset(&metadata)?,
            n_row_groups: metadata.num_row_groups() as u64,
        })
    }
}

/// A table of rejects or tombstones as the bytes of a Parquet file; the same rows give the same bytes.
///
/// # Errors
/// The batch cannot be written as Parquet.
pub fn table_bytes(program: &str, batch: &RecordBatch) -> Result<Bytes, ParquetError> {
    let properties = common(program).set_dictionary_enabled(true).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(batch)?;
    Ok(Bytes::from(writer.into_inner()?))
}

/// Rows of a row group of the index of media; the writer holds one of them, about 5 bytes a row.
const INDEX_GROUP_ROWS: usize = 1 << 17;

/// The index of a snapshot's media, as it is written: on disk but for a row group.
pub struct MediaIndexWriter {
    inner: ArrowWriter<ShardFile>,
    n_rows: u64,
}

/// An index of media whose bytes are final.
#[derive(Debug)]
pub struct WrittenMediaIndex {
    pub file: NamedTempFile,
    pub digest: Digest,
    pub n_bytes: u64,
    pub n_rows: u64,
}

impl MediaIndexWriter {
    /// Opens an index in a temporary file.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(program: &str) -> Result<Self, ParquetError> {
        // Offsets rise: their differences are about as long as the media.
        let properties = common(program)
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::DELTA_BINARY_PACKED)
            .set_max_row_group_row_count(Some(INDEX_GROUP_ROWS))
            .build();
        let inner = ArrowWriter::try_new(ShardFile::create()?, media_index_schema(), Some(properties))?;
        Ok(Self { inner, n_rows: 0 })
    }

    /// The next rows. How they are cut into calls may show in the bytes: cut them the same whoever writes.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&mut self, places: &[MediaPlace]) -> Result<(), ParquetError> {
        self.n_rows += places.len() as u64;
        self.inner.write(&media_index_batch(places)?)
    }

    /// Writes the footer.
    ///
    /// # Errors
    /// The disk is full.
    pub fn seal(mut self) -> Result<WrittenMediaIndex, ParquetError> {
        self.inner.finish()?;
        // As for a shard: a finished writer does not give its file away.
        let (file, digest, n_bytes, _) = self.inner.inner_mut().finish()?;
        Ok(WrittenMediaIndex { file, digest, n_bytes, n_rows: self.n_rows })
    }
}

/// The writer's name says its version; never a time.
fn common(program: &str) -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_created_by(program.to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap_or_default()))
}

fn properties(head: &ShardHead) -> WriterProperties {
    let path = |parts: &[&str]| ColumnPath::new(parts.iter().map(|part| (*part).to_owned()).collect());
    let media = media_column(head.kind);
    let (bytes, file_name) = (path(&[media, column::MEDIA_BYTES]), path(&[media, column::MEDIA_PATH]));
    let captions = path(&[column::CAPTIONS, "list", "item"]);
    let tokens = path(&[column::TOKENS, "list", "item", "list", "item"]);
    let blob_page = if head.mean_media_bytes >= LARGE_BLOB { 1 } else { SMALL_BLOB_PAGE };
    let mut properties = common(head.program)
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
    let few = [column::SPLIT, column::LABEL, column::FORMAT, column::CODEC, column::NORMALISED];
    let few = few.into_iter().map(|name| path(&[name])).chain([path(&[column::LABELS, "list", "item"])]);
    for few in few {
        properties = properties.set_column_dictionary_enabled(few, true);
    }
    let pairs = [
        (footer::SCHEMA, head.kind.name().to_owned()),
        (footer::SCHEMA_VERSION, Format::Shard.current().to_string()),
        (footer::CORPUS, head.corpus.clone()),
        (footer::SPLIT, head.split.clone()),
        (footer::WRITER, head.program.to_owned()),
        (footer::TOKENIZER, head.tokenizer.0.clone()),
        (footer::HUGGINGFACE, huggingface_features(head.kind)),
    ];
    let pairs = pairs.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect();
    properties.set_key_value_metadata(Some(pairs)).build()
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

/// The file that a shard grows in: on disk, its digest taken on the way.
struct ShardFile {
    /// `None` once it is finished.
    writer: Option<BufWriter<NamedTempFile>>,
    hasher: blake3::Hasher,
    n_bytes: u64,
    tail: [u8; 8],
}

impl ShardFile {
    fn create() -> std::io::Result<Self> {
        let writer = Some(BufWriter::with_capacity(BUFFER_BYTES, NamedTempFile::new()?));
        Ok(Self { writer, hasher: blake3::Hasher::new(), n_bytes: 0, tail: [0; 8] })
    }

    /// File, digest, size and last bytes.
    fn finish(&mut self) -> std::io::Result<(NamedTempFile, Digest, u64, [u8; 8])> {
        let writer = self.writer.take().ok_or_else(closed)?;
        let file = writer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let digest = Digest(self.hasher.finalize().to_hex().to_string());
        Ok((file, digest, self.n_bytes, self.tail))
    }
}

impl Write for ShardFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer.as_mut().ok_or_else(closed)?.write_all(bytes)?;
        self.hasher.update(bytes);
        self.n_bytes += bytes.len() as u64;
        let n_new = bytes.len().min(self.tail.len());
        self.tail.rotate_left(n_new);
        let n_kept = self.tail.len() - n_new;
        self.tail[n_kept..].copy_from_slice(&bytes[bytes.len() - n_new..]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), Write::flush)
    }
}

fn closed() -> std::io::Error {
    std::io::Error::other("the shard is finished")
}
