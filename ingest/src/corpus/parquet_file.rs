//! One Parquet file of somebody else, read in small batches without trust in its footer.
//!
//! In: a file. Out: its columns' names, batches of some of them, and the row groups that are broken. Never: a panic, a
//! column that was not asked for, a row group in memory: text and media are views of decompressed pages, so a page that
//! a million rows share is held once.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::util::display::array_value_to_string;
use imp_schemas::parquet_claims::{batches, check_footer, chunk_range, count_values, guarded};
use imp_schemas::reject::RejectReason;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};

use super::columns::Used;
use super::origin::{Input, local_range};
use crate::error::IngestError;
use crate::text::{Refusal, Wording, utf8};

const MAGIC: &[u8] = b"PAR1";
/// Magic, length of the footer, magic: no smaller file is one.
const MIN_BYTES: u64 = 12;
/// Bytes that a batch may take by what the footer says about its rows, and rows that it may have.
const BATCH_BYTES: u64 = 32 << 20;
const BATCH_ROWS: u64 = 1024;
/// Bytes of a value of a fixed length: a raw picture of 4096 × 4096 pixels.
const MAX_FIXED_BYTES: u64 = 48 << 20;
/// Levels of the lists of a row group, a value or a null each: a run of a billion takes a few bytes of a file.
const MAX_LEVELS: u64 = 1 << 26;
/// Bytes of a footer; those of the largest known corpora have some 10 MiB.
const MAX_FOOTER_BYTES: u64 = 256 << 20;

/// A row group that cannot be read from this row of the file on.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) row: u64,
    pub(super) detail: String,
}

/// Takes the number of a batch's first row in the file, and the batch.
pub(super) type TakeBatch<'a> = dyn FnMut(u64, &RecordBatch) -> Result<(), IngestError> + 'a;

#[derive(Debug)]
pub(super) struct ParquetFile {
    file: File,
    meta: ArrowReaderMetadata,
}

impl ParquetFile {
    /// Opens the file at `path`, or says what is wrong with it.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let failed = |e: std::io::Error| e.to_string();
        let file = File::open(path).map_err(failed)?;
        let n_bytes = file.metadata().map_err(failed)?.len();
        let ends = |n| Ok((local_range(path, 0..n)?, local_range(path, n_bytes - n..n_bytes)?));
        let meta = footer_of(n_bytes, ends).map_err(failed)??;
        Ok(Self { file, meta })
    }

    /// Columns of `input`, which may lie in object storage: only its ends are read.
    pub(super) fn schema_of(input: &Input) -> Result<Result<Arc<Schema>, String>, IngestError> {
        let meta = footer_of(input.n_bytes, |n| input.ends(n))?;
        Ok(meta.map(|meta| meta.schema().clone()))
    }

    pub(super) fn schema(&self) -> &Schema {
        self.meta.schema()
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.schema().fields().iter().map(|field| field.name().as_str()).collect()
    }

    /// Names of the classes of each `ClassLabel` column, as Hugging Face `datasets` writes them into the footer.
    pub(super) fn class_labels(&self) -> HashMap<String, Vec<String>> {
        let pairs = self.meta.metadata().file_metadata().key_value_metadata();
        let text =
            pairs.into_iter().flatten().find(|pair| pair.key == "huggingface").and_then(|pair| pair.value.as_ref());
        let value: serde_json::Value = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let features = value["info"]["features"].as_object().into_iter().flatten();
        let names_of = |(column, feature): (&String, &serde_json::Value)| {
            // Those of a list of labels are one level further down.
            let names = feature["names"].as_array().or(feature["feature"]["names"].as_array())?;
            let names: Option<Vec<String>> = names.iter().map(|name| name.as_str().map(str::to_owned)).collect();
            Some((column.clone(), names?))
        };
        features.filter_map(names_of).collect()
    }

    /// Hands batches of `columns` to `take`, row group by row group; a broken one ends, the next one is tried.
    ///
    /// # Errors
    /// What `take` returns.
    pub(super) fn read(&self, columns: &[&str], take: &mut TakeBatch<'_>) -> Result<Vec<Broken>, IngestError> {
        let roots: Vec<usize> = columns.iter().filter_map(|name| self.schema().index_of(name).ok()).collect();
        let mask = ProjectionMask::roots(self.meta.parquet_schema(), roots);
        let mut broken = Vec::new();
        let mut first = 0;
        for (index, group) in self.meta.metadata().row_groups().iter().enumerate() {
            let n_rows = u64::try_from(group.num_rows()).unwrap_or(0);
            let mut n_read = 0;
            let open = || {
                check_pages(&self.file, group, &mask, MAX_LEVELS)?;
                let file = self.file.try_clone()?;
                ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.meta.clone())
                    .with_row_groups(vec![index])
                    .with_projection(mask.clone())
                    .with_batch_size(batch_rows(group, &mask)? as usize)
                    .build()
            };
            let mut fault = None;
            match guarded(open) {
                Err(error) => fault = Some(error.to_string()),
                Ok(reader) => {
                    for batch in batches(reader) {
                        match batch {
                            Ok(batch) => {
                                take(first + n_read, &batch)?;
                                n_read += batch.num_rows() as u64;
                            }
                            Err(error) => fault = Some(error.to_string()),
                        }
                    }
                    if fault.is_none() && n_read != n_rows {
                        fault = Some(format!("it has {n_read} rows, its footer says {n_rows}"));
                    }
                }
            }
            if let Some(detail) = fault {
                broken.push(Broken { row: first + n_read, detail: format!("row group {index}: {detail}") });
            }
            first += n_rows;
        }
        Ok(broken)
    }
}

/// The footer of a file of `n_bytes`, of which `ends` gives the first and last; or what is wrong with it.
fn footer_of<E>(
    n_bytes: u64,
    ends: impl Fn(u64) -> Result<(Vec<u8>, Vec<u8>), E>,
) -> Result<Result<ArrowReaderMetadata, String>, E> {
    if n_bytes < MIN_BYTES {
        return Ok(Err(format!("it has {n_bytes} bytes, too few for a Parquet file")));
    }
    let (first, last) = ends(8)?;
    if !first.starts_with(MAGIC) || !last.ends_with(MAGIC) {
        return Ok(Err("it does not begin and end with `PAR1`, as a Parquet file does".to_owned()));
    }
    let n_footer = u64::from(u32::from_le_bytes([last[0], last[1], last[2], last[3]]));
    if n_footer + MIN_BYTES > n_bytes || n_footer > MAX_FOOTER_BYTES {
        return Ok(Err(format!("its footer claims {n_footer} bytes, the file has {n_bytes}")));
    }
    let (_, last) = ends(n_footer + 8)?;
    let footer = &last[..n_footer as usize];
    if let Err(detail) = check_footer(footer) {
        return Ok(Err(detail));
    }
    let meta = guarded(|| viewed(Arc::new(ParquetMetaDataReader::decode_metadata(footer)?)));
    Ok(meta.map_err(|error| error.to_string()).and_then(|meta| {
        // Rows are numbers of 63 bits wherever they are written.
        let n_rows = |group: &RowGroupMetaData| u64::try_from(group.num_rows()).ok();
        let total = meta.metadata().row_groups().iter().try_fold(0u64, |sum, group| sum.checked_add(n_rows(group)?));
        match total.and_then(|total| i64::try_from(total).ok()) {
            Some(_) => Ok(meta),
            None => Err("its row groups claim more rows than there are numbers".to_owned()),
        }
    }))
}

/// Without the Arrow schema that the writer may have left: the types are those of Parquet, few and known.
fn options() -> ArrowReaderOptions {
    ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_page_index_policy(PageIndexPolicy::Skip)
}

/// The metadata with views in place of owned text and bytes.
fn viewed(metadata: Arc<ParquetMetaData>) -> Result<ArrowReaderMetadata, ParquetError> {
    let plain = ArrowReaderMetadata::try_new(metadata.clone(), options())?;
    let fields: Vec<FieldRef> = plain.schema().fields().iter().map(as_view).collect();
    ArrowReaderMetadata::try_new(metadata, options().with_schema(Arc::new(Schema::new(fields))))
}

fn as_view(field: &FieldRef) -> FieldRef {
    let of = |data_type| Arc::new(Field::clone(field).with_data_type(data_type));
    match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => of(DataType::Utf8View),
        DataType::Binary | DataType::LargeBinary => of(DataType::BinaryView),
        DataType::List(element) => of(DataType::List(as_view(element))),
        DataType::Struct(fields) => of(DataType::Struct(fields.iter().map(as_view).collect())),
        _ => field.clone(),
    }
}

/// Refuses a row group of which a page of `mask` claims what it cannot have, or the pages of a list hold more levels than
/// `limit`: a row is read as a whole, however many.
fn check_pages(file: &File, group: &RowGroupMetaData, mask: &ProjectionMask, limit: u64) -> Result<(), ParquetError> {
    let n_bytes = file.metadata()?.len();
    for leaf in (0..group.num_columns()).filter(|&leaf| mask.leaf_included(leaf)) {
        let chunk = group.column(leaf);
        let n_levels = count_values(file, chunk_range(chunk, n_bytes).map_err(ParquetError::General)?)?;
        if n_levels > limit && chunk.column_descr().max_rep_level() > 0 {
            let detail = format!("the lists of `{}` have {n_levels} values, the limit is {limit}", chunk.column_path());
            return Err(ParquetError::General(detail));
        }
    }
    Ok(())
}

/// Rows of a batch, so that it stays within its bytes if the footer tells the truth.
fn batch_rows(group: &RowGroupMetaData, mask: &ProjectionMask) -> Result<u64, ParquetError> {
    let chunks = group.columns().iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf));
    let n_rows = u64::try_from(group.num_rows()).unwrap_or(0).max(1);
    // A null of a fixed length takes as much as a value, in memory, and nothing in the file.
    let mut row_bytes = 0u64;
    for (_, chunk) in chunks {
        let fixed = u64::try_from(chunk.column_descr().type_length()).unwrap_or(0);
        if fixed > MAX_FIXED_BYTES {
            let (column, limit) = (chunk.column_path(), MAX_FIXED_BYTES);
            let detail = format!("every value of `{column}` has {fixed} bytes by the schema, the limit is {limit}");
            return Err(ParquetError::General(detail));
        }
        let mean = u64::try_from(chunk.uncompressed_size()).unwrap_or(0) / n_rows;
        row_bytes = row_bytes.saturating_add(mean.max(fixed));
    }
    Ok((BATCH_BYTES / row_bytes.max(1)).clamp(1, BATCH_ROWS))
}

/// The words of row `row` of `batch`.
pub(super) fn wording_at(
    batch: &RecordBatch,
    row: usize,
    used: &Used<'_>,
    class_labels: &HashMap<String, Vec<String>>,
) -> Result<Wording, Refusal> {
    let captions = texts_of(batch, used.caption, row)?;
    let mut labels = texts_of(batch, used.label, row)?;
    if let Some(classes) = used.label.and_then(|name| class_labels.get(name)) {
        // -1 is how Hugging Face says that there is no label.
        labels.retain(|label| label != "-1");
        for label in &mut labels {
            match label.parse::<usize>().ok().and_then(|id| classes.get(id)) {
                Some(name) => label.clone_from(name),
                None if classes.contains(label) => {}
                None => {
                    let detail =
                        format!("class {label}, its table's list has 0 to {}", classes.len().saturating_sub(1));
                    return Err((RejectReason::UnknownClass, detail));
                }
            }
        }
    }
    Ok(Wording { captions, labels })
}

/// The texts of column `name`, which may hold lists.
fn texts_of(batch: &RecordBatch, name: Option<&str>, row: usize) -> Result<Vec<String>, Refusal> {
    let Some(column) = name.and_then(|name| batch.column_by_name(name)) else { return Ok(Vec::new()) };
    texts_at(column, row).map_err(|refusal| named(name, refusal))
}

/// The text of column `name`, without blanks around it; blank and null are none.
pub(super) fn text_of(batch: &RecordBatch, name: Option<&str>, row: usize) -> Result<Option<String>, Refusal> {
    let Some(column) = name.and_then(|name| batch.column_by_name(name)) else { return Ok(None) };
    text_at(column, row).map_err(|refusal| named(name, refusal))
}

fn named(name: Option<&str>, (reason, detail): Refusal) -> Refusal {
    (reason, format!("`{}` {detail}", name.unwrap_or_default()))
}

/// Bytes of row `row`; `None` if they are null or no bytes.
pub(super) fn bytes_at(column: &dyn Array, row: usize) -> Option<&[u8]> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::BinaryView => Some(column.as_binary_view().value(row)),
        DataType::FixedSizeBinary(_) => Some(column.as_fixed_size_binary().value(row)),
        _ => None,
    }
}

pub(super) fn text_at(column: &dyn Array, row: usize) -> Result<Option<String>, Refusal> {
    if column.is_null(row) {
        return Ok(None);
    }
    let text = match column.data_type() {
        DataType::Null => return Ok(None),
        DataType::Utf8View => column.as_string_view().value(row).trim().to_owned(),
        DataType::BinaryView => utf8(column.as_binary_view().value(row), "as text")?.trim().to_owned(),
        number if number.is_numeric() => {
            array_value_to_string(column, row).map_err(|e| (RejectReason::MalformedRow, e.to_string()))?
        }
        other => return Err((RejectReason::MalformedRow, format!("is {other}, wanted text or a number"))),
    };
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn texts_at(column: &dyn Array, row: usize) -> Result<Vec<String>, Refusal> {
    if column.is_null(row) {
        return Ok(Vec::new());
    }
    let DataType::List(_) = column.data_type() else {
        return Ok(text_at(column, row)?.into_iter().collect());
    };
    let values = column.as_list::<i32>().value(row);
    (0..values.len()).filter_map(|at| text_at(&values, at).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, ListArray};
    use arrow::datatypes::Int32Type;
    use parquet::arrow::ArrowWriter;

    use super::*;

    /// A file of one row group of one column, `a`.
    fn file_of(column: ArrayRef) -> (tempfile::NamedTempFile, ParquetFile) {
        let batch = RecordBatch::try_from_iter([("a", column)]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = ArrowWriter::try_new(file.reopen().unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let open = ParquetFile::open(file.path()).unwrap();
        (file, open)
    }

    #[test]
    fn lists_of_more_values_than_memory_has_room_for_are_refused_before_they_are_read() {
        let rows = [Some(vec![None; 1000]), Some(vec![Some(1); 10]), None];
        let (_file, open) = file_of(Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(rows)));
        let group = open.meta.metadata().row_group(0);
        let check = |limit| check_pages(&open.file, group, &ProjectionMask::all(), limit).map_err(|e| e.to_string());
        check(1011).unwrap();
        let message = check(1010).unwrap_err();
        assert!(message.contains("have 1011 values, the limit is 1010"), "{message}");
    }

    #[test]
    fn nulls_of_a_fixed_length_count_as_what_they_take_in_memory() {
        let column = |len| -> ArrayRef { Arc::new(arrow::array::FixedSizeBinaryArray::new_null(len, 3)) };
        let rows = |len: i32| {
            let (_file, open) = file_of(column(len));
            batch_rows(open.meta.metadata().row_group(0), &ProjectionMask::all())
        };
        assert_eq!((rows(16).unwrap(), rows(1 << 20).unwrap()), (BATCH_ROWS, 32));
        assert!(rows(49 << 20).unwrap_err().to_string().contains("the limit is 50331648"));
    }
}
