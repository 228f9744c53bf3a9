//! How a side table is written: a row group or more for each shard, so that who reads one shard's values reads only those.
//!
//! In: values of the rows of shards, in order. Out: a Parquet file on disk and its entry in the manifest; the same values give
//! the same bytes. Never: two shards in one row group, more than a row group in memory.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::Encoding;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::schema::types::ColumnPath;
use tempfile::NamedTempFile;

use super::{ShardFile, common, footer_len, index_offset};
use crate::manifest::{AddedColumn, CoveredShard, SideTableEntry};
use crate::shard::{Digest, footer};
use crate::side_table::{ROW, side_table_schema};

/// Shards that one table covers at most: its footer, which every reader of it reads, stays below some megabytes.
pub const SHARDS_PER_TABLE: usize = 1024;
const ROW_GROUP_ROWS: usize = 1 << 17;
/// A page is decompressed whole for one of its rows.
const PAGE_ROWS: usize = 4096;

/// A side table that still takes rows.
pub struct SideTableWriter {
    inner: ArrowWriter<ShardFile>,
    columns: Vec<AddedColumn>,
    shards: Vec<CoveredShard>,
}

impl SideTableWriter {
    /// Opens a table of `columns` in a temporary file. `program` is part of what makes the bytes.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(program: &str, corpus: &str, columns: &[AddedColumn]) -> Result<Self, ParquetError> {
        let pairs = [(footer::SCHEMA, "side-table"), (footer::CORPUS, corpus), (footer::WRITER, program)];
        let pairs = pairs.map(|(key, value)| KeyValue::new(key.to_owned(), value.to_owned())).to_vec();
        let row = ColumnPath::from(ROW);
        let properties = common(program)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_data_page_row_count_limit(PAGE_ROWS)
            .set_column_dictionary_enabled(row.clone(), false)
            .set_column_encoding(row, Encoding::DELTA_BINARY_PACKED)
            .set_key_value_metadata(Some(pairs))
            .build();
        let schema = side_table_schema(columns);
        let inner = ArrowWriter::try_new(ShardFile::create()?, schema, Some(properties))?;
        Ok(Self { inner, columns: columns.to_vec(), shards: Vec::new() })
    }

    /// Shards so far.
    pub fn n_shards(&self) -> usize {
        self.shards.len()
    }

    /// Takes the next rows of `shard`; another shard than before begins at its row 0, the one before is complete. `values` are the
    /// table's columns, in their order.
    ///
    /// # Errors
    /// The columns are not the table's, or the disk is full.
    pub fn write(&mut self, shard: &Digest, values: &[ArrayRef], n_rows: usize) -> Result<(), ParquetError> {
        if self.shards.last().is_none_or(|last| last.digest != *shard) {
            self.inner.flush()?;
            self.shards.push(CoveredShard { digest: shard.clone(), n_rows: 0 });
        }
        let Some(covered) = self.shards.last_mut() else { return Ok(()) };
        let rows = (covered.n_rows..).take(n_rows).map(|row| row as i64);
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&shard.0, n_rows))),
            Arc::new(Int64Array::from_iter_values(rows)),
        ];
        arrays.extend(values.iter().cloned());
        covered.n_rows += n_rows as u64;
        self.inner.write(&RecordBatch::try_new(side_table_schema(&self.columns), arrays)?)
    }

    /// Writes the footer; gives the file and what a manifest says of it.
    ///
    /// # Errors
    /// The table has no row, or the disk is full.
    pub fn seal(mut self) -> Result<(NamedTempFile, SideTableEntry), ParquetError> {
        let metadata = self.inner.finish()?;
        let (file, digest, n_bytes, tail) = self.inner.inner_mut().finish()?;
        let entry = SideTableEntry {
            digest,
            n_bytes,
            footer_len: footer_len(&tail)?,
            index_offset: index_offset(&metadata)?,
            n_rows: self.shards.iter().map(|shard| shard.n_rows).sum(),
            columns: self.columns,
            shards: self.shards,
        };
        Ok((file, entry))
    }
}
