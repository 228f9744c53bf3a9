//! Rows of a shard, by exact ranges: the one way in which anything reads a shard back.
//!
//! In: a shard's entry in the manifest, rows, columns. Out: record batches. Opening is one range (footer and page index);
//! reading touches only the pages that hold the rows, all ranges of a call fetched together. Never: a scan for a row, a
//! second look at the file's size, a row dropped in silence.
//! Source: one-row pages and the offset index, DATA-PLANE.md 8.3.

use std::ops::Range;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::DecodeResult;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, RowSelection, RowSelectionPolicy, RowSelector,
};
use parquet::arrow::push_decoder::{ParquetPushDecoder, ParquetPushDecoderBuilder, RowGroupSelection};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataPushDecoder, ParquetMetaDataReader};

use crate::manifest::{ShardEntry, SideTableEntry};
use crate::parquet_claims::{check_footer, check_offset_index, chunk_range, count_values, footer_at_end, guarded};
use crate::shard::{Digest, shard_key, side_table_key};
use crate::store::ranges::{merged, requests};
use crate::store::sealed::Sealed;
use crate::store::{Store, StoreError};

/// Bytes of length and magic at the end of every Parquet file.
const TAIL_LEN: u64 = 8;
/// A batch of `read_all` stays below this many bytes on average, so that i32 offsets never overflow.
const BATCH_BYTES: u64 = 64 << 20;
const MAX_BATCH_ROWS: u64 = 1024;

/// An open shard. Cheap to keep: the footer and the offset index, about 33 bytes a page.
#[derive(Debug, Clone)]
pub struct ShardReader {
    store: Store,
    sealed: Arc<Sealed>,
    metadata: ArrowReaderMetadata,
    /// First row of each row group, and one past the last row.
    starts: Vec<u64>,
}

/// A shard that could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum ShardReadError {
    #[error("cannot read the footer of shard `{shard}`, bytes {}..{}", range.start, range.end)]
    FetchFooter { shard: String, range: Range<u64>, source: StoreError },
    #[error("the footer of shard `{shard}`, bytes {}..{}, does not parse; check the store with imp-shards", range.start, range.end)]
    Footer { shard: String, range: Range<u64>, source: ParquetError },
    #[error("shard `{shard}`: {what} is {found}, the manifest says {wanted}; check the store with imp-shards")]
    NotAsListed { shard: String, what: &'static str, found: u64, wanted: u64 },
    #[error("shard `{shard}` has no column `{column}`; it has {have}")]
    NoSuchColumn { shard: String, column: String, have: String },
    #[error("shard `{shard}`: row {row} was asked for, rows must rise and lie below {n_rows}")]
    Rows { shard: String, row: u64, n_rows: u64 },
    #[error("cannot read rows of shard `{shard}`, row group {row_group}, bytes {}..{}", range.start, range.end)]
    Fetch { shard: String, row_group: usize, range: Range<u64>, source: StoreError },
    #[error("shard `{shard}`, row group {row_group}, bytes {}..{}: the pages do not decode", range.start, range.end)]
    Decode { shard: String, row_group: usize, range: Range<u64>, source: ParquetError },
    #[error("shard `{shard}`, row group {row_group}: got {found} rows, wanted {wanted}")]
    LostRows { shard: String, row_group: usize, found: usize, wanted: usize },
    #[error(
        "side table `{table}`: column `{column}` is {found}, the manifest says {wanted}; check the store with imp-shards"
    )]
    OtherType { table: String, column: String, found: String, wanted: String },
    #[error("the snapshot has no added column `{column}`; it has {have}")]
    NotAdded { column: String, have: String },
}

/// What a manifest says of a Parquet file of the store.
struct Listed<'a> {
    key: String,
    digest: &'a Digest,
    n_rows: u64,
    n_bytes: u64,
    footer_len: u64,
    index_offset: u64,
}

impl ShardReader {
    /// Reads footer and page index of the shard that `entry` lists, in one range.
    ///
    /// # Errors
    /// The store failed, the footer does not parse or has no offset index, or it is not the shard that the manifest lists.
    pub fn open(store: &Store, corpus: &str, entry: &ShardEntry) -> Result<Self, ShardReadError> {
        let &ShardEntry { ref digest, n_rows, n_bytes, footer_len, index_offset, .. } = entry;
        let key = shard_key(corpus, digest);
        Self::open_listed(store, &Listed { key, digest, n_rows, n_bytes, footer_len, index_offset })
    }

    /// As [`ShardReader::open`], a side table, which is read as a shard is. [`crate::side_table::AddedColumns`] knows which rows are
    /// whose.
    ///
    /// # Errors
    /// As [`ShardReader::open`].
    pub fn open_side_table(store: &Store, corpus: &str, entry: &SideTableEntry) -> Result<Self, ShardReadError> {
        let &SideTableEntry { ref digest, n_rows, n_bytes, footer_len, index_offset, .. } = entry;
        let key = side_table_key(corpus, digest);
        Self::open_listed(store, &Listed { key, digest, n_rows, n_bytes, footer_len, index_offset })
    }

    fn open_listed(store: &Store, entry: &Listed<'_>) -> Result<Self, ShardReadError> {
        let key = &entry.key;
        let shard = || key.clone();
        // The footer alone is read if the entry's offset makes no sense; the decoder then says what is wrong.
        let footer_start = entry.n_bytes.saturating_sub(entry.footer_len.saturating_add(TAIL_LEN));
        let range = entry.index_offset.min(footer_start)..entry.n_bytes;
        let fetch_failed = |source| ShardReadError::FetchFooter { shard: shard(), range: range.clone(), source };
        let sealed = Arc::new(Sealed::new(key.clone(), entry.digest.clone(), entry.n_bytes));
        let footer = store.get_sealed(&sealed, std::slice::from_ref(&range)).map_err(fetch_failed)?;
        let bytes = footer.into_iter().next().unwrap_or_default();
        let malformed = |source| {
            store.forget_sealed(&sealed);
            ShardReadError::Footer { shard: shard(), range: range.clone(), source }
        };
        let metadata = guarded(|| parse_footer(entry.n_bytes, range.clone(), bytes)).map_err(malformed)?;
        let (mut starts, mut n_rows) = (vec![0], 0u64);
        for group in metadata.row_groups() {
            n_rows = n_rows.saturating_add(u64::try_from(group.num_rows()).unwrap_or(0));
            starts.push(n_rows);
        }
        if n_rows != entry.n_rows {
            let (found, wanted) = (n_rows, entry.n_rows);
            return Err(ShardReadError::NotAsListed { shard: shard(), what: "number of rows", found, wanted });
        }
        let options = ArrowReaderOptions::new();
        let metadata = guarded(|| ArrowReaderMetadata::try_new(Arc::new(metadata), options)).map_err(malformed)?;
        Ok(Self { store: store.clone(), sealed, metadata, starts })
    }

    /// Rows of the shard.
    pub fn n_rows(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The shard's name.
    pub fn digest(&self) -> &Digest {
        &self.sealed.digest
    }

    /// Where the shard lies, relative to the store's root.
    pub fn key(&self) -> &str {
        &self.sealed.key
    }

    /// Footer and offset index; the column index is not kept.
    pub fn metadata(&self) -> &ParquetMetaData {
        self.metadata.metadata()
    }

    /// The row group that holds `row`.
    pub fn row_group_of(&self, row: u64) -> usize {
        self.starts.partition_point(|&start| start <= row).saturating_sub(1)
    }

    /// Whether the shard has column `name`: one of an earlier version lacks some.
    pub fn has(&self, name: &str) -> bool {
        self.metadata.schema().field_with_name(name).is_ok()
    }

    /// Rows `rows` (rising, counted within the shard) of `columns`, in that order of rows and the schema's order of
    /// columns. A column may be a path such as `image.bytes`. Only the pages that hold the rows are read.
    ///
    /// # Errors
    /// A row or column that is not there, a fault of the store, or pages that do not decode; each names its place.
    pub fn read(&self, rows: &[u64], columns: &[&str]) -> Result<RecordBatch, ShardReadError> {
        self.check_rows(rows)?;
        let batches = self.read_selected(&self.select(rows), columns, rows.len().max(1))?;
        let Some(first) = batches.first().filter(|_| !rows.is_empty()) else {
            let Some(&row) = rows.first() else { return Ok(RecordBatch::new_empty(self.projected(columns)?)) };
            let (row_group, found, wanted) = (self.row_group_of(row), 0, rows.len());
            return Err(ShardReadError::LostRows { shard: self.sealed.key.clone(), row_group, found, wanted });
        };
        let row_group = rows.first().map_or(0, |&row| self.row_group_of(row));
        let together = arrow::compute::concat_batches(&first.schema(), &batches)
            .map_err(|e| self.decode_error(row_group, 0..self.sealed.n_bytes, e.into()))?;
        if together.num_rows() != rows.len() {
            let (found, wanted) = (together.num_rows(), rows.len());
            return Err(ShardReadError::LostRows { shard: self.sealed.key.clone(), row_group, found, wanted });
        }
        Ok(together)
    }

    /// The requests with which [`ShardReader::read`] gets the same rows and columns from a remote store, as byte ranges of the
    /// shard; nothing is read.
    ///
    /// # Errors
    /// As [`ShardReader::read`], but for what only reading shows.
    pub fn requests(&self, rows: &[u64], columns: &[&str]) -> Result<Vec<Range<u64>>, ShardReadError> {
        self.check_rows(rows)?;
        let Some(&first) = rows.first() else { return Ok(Vec::new()) };
        let row_group = self.row_group_of(first);
        let planned = || self.planned(&self.select(rows), row_group, columns, rows.len());
        let (_, planned) = guarded(|| Ok(planned()))
            .unwrap_or_else(|panic| Err(self.decode_error(row_group, self.row_group_range(row_group), panic)))?;
        Ok(requests(&planned))
    }

    /// Every row of `columns`, row group after row group, in batches of about 64 MiB at most.
    ///
    /// # Errors
    /// As [`ShardReader::read`].
    pub fn read_all(&self, columns: &[&str]) -> Result<Vec<RecordBatch>, ShardReadError> {
        let mut all = Vec::new();
        for row_group in 0..self.metadata().num_row_groups() {
            all.extend(self.read_row_group(row_group, columns)?);
        }
        Ok(all)
    }

    /// Every row of `columns` of one row group, in batches of about 64 MiB at most.
    ///
    /// # Errors
    /// As [`ShardReader::read`].
    pub fn read_row_group(&self, row_group: usize, columns: &[&str]) -> Result<Vec<RecordBatch>, ShardReadError> {
        let Some(group) = self.metadata().row_groups().get(row_group) else { return Ok(Vec::new()) };
        let n_rows = u64::try_from(group.num_rows()).unwrap_or(0);
        let n_bytes = u64::try_from(group.total_byte_size()).unwrap_or(0);
        let rows_per_batch = BATCH_BYTES.saturating_mul(n_rows.max(1)) / n_bytes.max(1);
        let batch_size = rows_per_batch.clamp(1, MAX_BATCH_ROWS) as usize;
        let batches = self.read_selected(&[RowGroupSelection::new(row_group, None)], columns, batch_size)?;
        let found: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let wanted = n_rows as usize;
        if found != wanted {
            return Err(ShardReadError::LostRows { shard: self.sealed.key.clone(), row_group, found, wanted });
        }
        Ok(batches)
    }

    fn read_selected(
        &self,
        selected: &[RowGroupSelection],
        columns: &[&str],
        batch_size: usize,
    ) -> Result<Vec<RecordBatch>, ShardReadError> {
        let Some(first_group) = selected.first().map(RowGroupSelection::row_group_index) else {
            self.projection(columns)?;
            return Ok(Vec::new());
        };
        guarded(|| Ok(self.decode_selected(selected, first_group, columns, batch_size)))
            .unwrap_or_else(|panic| Err(self.decode_error(first_group, self.row_group_range(first_group), panic)))
    }

    fn decode_selected(
        &self,
        selected: &[RowGroupSelection],
        first_group: usize,
        columns: &[&str],
        batch_size: usize,
    ) -> Result<Vec<RecordBatch>, ShardReadError> {
        let (mut decoder, planned) = self.planned(selected, first_group, columns, batch_size)?;
        self.fetch_into(&mut decoder, first_group, &planned)?;
        let mut batches = Vec::new();
        loop {
            let at = decoder.peek_next_row_group().ok().flatten().unwrap_or(first_group);
            match decoder.try_decode() {
                Ok(DecodeResult::Data(batch)) => batches.push(batch),
                Ok(DecodeResult::Finished) => return Ok(batches),
                // The plan covers what is read, so this is rare: a request that spans two planned ranges with a gap.
                Ok(DecodeResult::NeedsData(ranges)) => self.fetch_into(&mut decoder, at, &ranges)?,
                Err(source) => return Err(self.decode_error(at, self.row_group_range(at), source)),
            }
        }
    }

    /// A decoder of the selected rows, and the ranges that it will ask for.
    fn planned(
        &self,
        selected: &[RowGroupSelection],
        first_group: usize,
        columns: &[&str],
        batch_size: usize,
    ) -> Result<(ParquetPushDecoder, Vec<Range<u64>>), ShardReadError> {
        let decoder = ParquetPushDecoderBuilder::new_with_metadata(self.metadata.clone())
            .with_projection(self.projection(columns)?)
            .with_batch_size(batch_size)
            .with_row_selection_policy(RowSelectionPolicy::Selectors)
            .with_row_group_selections(selected.to_vec())
            .build()
            .map_err(|source| self.decode_error(first_group, 0..self.sealed.n_bytes, source))?;
        let planned = decoder.scan_plan().map(|planned| planned.range).collect();
        Ok((decoder, planned))
    }

    fn fetch_into(
        &self,
        decoder: &mut ParquetPushDecoder,
        row_group: usize,
        ranges: &[Range<u64>],
    ) -> Result<(), ShardReadError> {
        if ranges.is_empty() {
            return Ok(());
        }
        // Touching ranges are one: a request of the decoder for a whole column chunk then lies in one buffer.
        let together = merged(ranges);
        let whole = together[0].start..together[together.len() - 1].end;
        let bytes = self.store.get_sealed(&self.sealed, &together).map_err(|source| {
            let range = whole.clone();
            ShardReadError::Fetch { shard: self.sealed.key.clone(), row_group, range, source }
        })?;
        // Pages are read where the index says that they are, which need not be where the one before ends.
        for range in ranges {
            let held = together.iter().zip(&bytes).find(|(held, _)| held.start <= range.start && range.end <= held.end);
            if let Some((held, bytes)) = held {
                count_values(bytes, range.start - held.start..range.end - held.start)
                    .map_err(|claim| self.decode_error(row_group, whole.clone(), claim))?;
            }
        }
        decoder.push_ranges(together, bytes).map_err(|source| self.decode_error(row_group, whole, source))
    }

    fn check_rows(&self, rows: &[u64]) -> Result<(), ShardReadError> {
        let n_rows = self.n_rows();
        let not_rising = rows.windows(2).find(|pair| pair[0] >= pair[1]).map(|pair| pair[1]);
        match rows.last().copied().filter(|&row| row >= n_rows).or(not_rising) {
            Some(row) => Err(ShardReadError::Rows { shard: self.sealed.key.clone(), row, n_rows }),
            None => Ok(()),
        }
    }

    /// Rows as runs of each row group.
    fn select(&self, rows: &[u64]) -> Vec<RowGroupSelection> {
        let mut selected = Vec::new();
        let mut rest = rows;
        while let Some(&row) = rest.first() {
            let row_group = self.row_group_of(row);
            let (start, end) = (self.starts[row_group], self.starts[row_group + 1]);
            let n = rest.partition_point(|&r| r < end);
            let runs = rest[..n].chunk_by(|a, b| a + 1 == *b);
            let mut selectors = Vec::new();
            let mut at = start;
            for run in runs {
                if run[0] > at {
                    selectors.push(RowSelector::skip((run[0] - at) as usize));
                }
                selectors.push(RowSelector::select(run.len()));
                at = run[run.len() - 1] + 1;
            }
            selected.push(RowGroupSelection::new(row_group, Some(RowSelection::from(selectors))));
            rest = &rest[n..];
        }
        selected
    }

    fn projection(&self, columns: &[&str]) -> Result<ProjectionMask, ShardReadError> {
        let schema = self.metadata.parquet_schema();
        for column in columns {
            let path: Vec<&str> = column.split('.').collect();
            let holds = |parts: &[String]| parts.len() >= path.len() && path.iter().zip(parts).all(|(a, b)| a == b);
            if !schema.columns().iter().any(|c| holds(c.path().parts())) {
                let have = self.metadata.schema().fields().iter().map(|f| format!("`{}`", f.name()));
                let have = have.collect::<Vec<_>>().join(", ");
                let (shard, column) = (self.sealed.key.clone(), (*column).to_owned());
                return Err(ShardReadError::NoSuchColumn { shard, column, have });
            }
        }
        Ok(ProjectionMask::columns(schema, columns.iter().copied()))
    }

    /// Schema of a batch without rows: whole columns, in the schema's order.
    fn projected(&self, columns: &[&str]) -> Result<arrow::datatypes::SchemaRef, ShardReadError> {
        let schema = self.metadata.schema();
        let wanted = |name: &str| columns.iter().any(|c| c.split('.').next() == Some(name));
        let kept: Vec<usize> = (0..schema.fields().len()).filter(|&i| wanted(schema.field(i).name())).collect();
        let projected = schema.project(&kept).map_err(|e| self.decode_error(0, 0..self.sealed.n_bytes, e.into()))?;
        Ok(Arc::new(projected))
    }

    fn row_group_range(&self, row_group: usize) -> Range<u64> {
        let Some(group) = self.metadata().row_groups().get(row_group) else { return 0..self.sealed.n_bytes };
        let ranges = || group.columns().iter().filter_map(|chunk| chunk_range(chunk, self.sealed.n_bytes).ok());
        let start = ranges().map(|range| range.start).min().unwrap_or(0);
        start..ranges().map(|range| range.end).max().unwrap_or(self.sealed.n_bytes)
    }

    fn decode_error(&self, row_group: usize, range: Range<u64>, source: ParquetError) -> ShardReadError {
        self.store.forget_sealed(&self.sealed);
        ShardReadError::Decode { shard: self.sealed.key.clone(), row_group, range, source }
    }
}

fn parse_footer(n_bytes: u64, range: Range<u64>, bytes: Bytes) -> Result<ParquetMetaData, ParquetError> {
    check_claims(n_bytes, &range, &bytes)?;
    let mut decoder = ParquetMetaDataPushDecoder::try_new(n_bytes)?
        .with_column_index_policy(PageIndexPolicy::Skip)
        .with_offset_index_policy(PageIndexPolicy::Required);
    decoder.push_range(range.clone(), bytes)?;
    match decoder.try_decode()? {
        DecodeResult::Data(metadata) => Ok(metadata),
        DecodeResult::NeedsData(wanted) => {
            let wanted = wanted.first().cloned().unwrap_or_default();
            Err(ParquetError::General(format!(
                "footer or page index wants bytes {}..{}, but the manifest says that all of it lies in {}..{}",
                wanted.start, wanted.end, range.start, range.end
            )))
        }
        DecodeResult::Finished => Err(ParquetError::General("no metadata".to_owned())),
    }
}

/// What the library would believe: the schema, the ranges of column chunks, and the number of their pages. `bytes` are those of
/// `range` of the shard.
fn check_claims(n_bytes: u64, range: &Range<u64>, bytes: &Bytes) -> Result<(), ParquetError> {
    // What is no footer is named by the library.
    let Some(footer) = footer_at_end(bytes) else { return Ok(()) };
    check_footer(footer).map_err(ParquetError::General)?;
    let metadata = ParquetMetaDataReader::decode_metadata(footer)?;
    for chunk in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        chunk_range(chunk, n_bytes).map_err(ParquetError::General)?;
        let index = chunk.offset_index_offset().and_then(|at| u64::try_from(at).ok()?.checked_sub(range.start));
        let index = index.and_then(|at| bytes.get(usize::try_from(at).ok()?..));
        let len = chunk.offset_index_length().and_then(|len| usize::try_from(len).ok());
        if let (Some(index), Some(len)) = (index, len) {
            check_offset_index(&index[..len.min(index.len())]).map_err(ParquetError::General)?;
        }
    }
    Ok(())
}
