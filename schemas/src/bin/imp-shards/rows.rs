//! Columns of a record batch → plain values, and the walk over a shard's rows.
//!
//! In: a batch of a shard. Out: one value per row. Never: a panic on a column of another type; that is an error. A hidden row.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Float32Type, Float64Type, Int32Type, Int64Type, Schema};
use arrow::record_batch::RecordBatch;
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{column, media_column};
use imp_schemas::shard_reader::ShardReader;

use crate::ShardsError;

/// Rows without their media that are held together.
const WINDOW_ROWS: u64 = 2048;

/// The columns of `schema` that the shard has: one of an earlier version lacks some.
pub(crate) fn present<'s>(reader: &ShardReader, schema: &'s Schema) -> Vec<&'s str> {
    schema.fields().iter().map(|field| field.name().as_str()).filter(|name| reader.has(name)).collect()
}

/// What [`Rows::labels`] reads of the shard.
pub(crate) fn label_columns(reader: &ShardReader) -> &'static [&'static str] {
    if reader.has(column::LABELS) { &[column::LABEL, column::LABELS] } else { &[column::LABEL] }
}

/// Hands on the rows of a shard that are not in `hidden` (rising), some thousand at a time, with their places in the shard.
///
/// # Errors
/// The shard cannot be read, or `take` fails.
pub(crate) fn for_live(
    reader: &ShardReader,
    corpus: &str,
    hidden: &[u64],
    columns: &[&str],
    mut take: impl FnMut(&[u64], &Rows<'_>) -> Result<(), ShardsError>,
) -> Result<(), ShardsError> {
    let mut start = 0;
    while start < reader.n_rows() {
        let end = (start + WINDOW_ROWS).min(reader.n_rows());
        let rows: Vec<u64> = (start..end).filter(|row| hidden.binary_search(row).is_err()).collect();
        start = end;
        if !rows.is_empty() {
            let batch = reader.read(&rows, columns)?;
            take(&rows, &Rows { corpus, batch: &batch })?;
        }
    }
    Ok(())
}

/// A batch and where it came from.
pub(crate) struct Rows<'a> {
    pub corpus: &'a str,
    pub batch: &'a RecordBatch,
}

impl<'a> Rows<'a> {
    fn array(&self, name: &'static str) -> Result<&'a ArrayRef, ShardsError> {
        self.batch.column_by_name(name).ok_or_else(|| self.wrong(name))
    }

    fn wrong(&self, column: &'static str) -> ShardsError {
        ShardsError::Column { corpus: self.corpus.to_owned(), column }
    }

    /// A text column.
    pub(crate) fn texts(&self, name: &'static str) -> Result<Vec<Option<&'a str>>, ShardsError> {
        let array = self.array(name)?.as_string_opt::<i32>().ok_or_else(|| self.wrong(name))?;
        Ok(array.iter().collect())
    }

    /// A column of 32- or 64-bit whole numbers.
    pub(crate) fn numbers(&self, name: &'static str) -> Result<Vec<Option<i64>>, ShardsError> {
        let array = self.array(name)?;
        if let Some(array) = array.as_primitive_opt::<Int64Type>() {
            return Ok(array.iter().collect());
        }
        let array = array.as_primitive_opt::<Int32Type>().ok_or_else(|| self.wrong(name))?;
        Ok(array.iter().map(|n| n.map(i64::from)).collect())
    }

    /// A column of numbers of any kind.
    pub(crate) fn values(&self, name: &'static str) -> Result<Vec<Option<f64>>, ShardsError> {
        let array = self.array(name)?;
        if let Some(array) = array.as_primitive_opt::<Float64Type>() {
            return Ok(array.iter().collect());
        }
        if let Some(array) = array.as_primitive_opt::<Float32Type>() {
            return Ok(array.iter().map(|n| n.map(f64::from)).collect());
        }
        Ok(self.numbers(name)?.into_iter().map(|n| n.map(|n| n as f64)).collect())
    }

    /// Captions of each row; null is none.
    pub(crate) fn captions(&self) -> Result<Vec<Vec<Option<&'a str>>>, ShardsError> {
        self.text_lists(column::CAPTIONS)
    }

    /// Labels of each row, the first one first.
    pub(crate) fn labels(&self) -> Result<Vec<Vec<&'a str>>, ShardsError> {
        let mut labels: Vec<Vec<&str>> = self.texts(column::LABEL)?.into_iter().map(Vec::from_iter).collect();
        if self.batch.column_by_name(column::LABELS).is_some() {
            for (of_row, all) in labels.iter_mut().zip(self.text_lists(column::LABELS)?) {
                if !all.is_empty() {
                    *of_row = all.into_iter().flatten().collect();
                }
            }
        }
        Ok(labels)
    }

    /// Ids of several labels of each row; null is none.
    pub(crate) fn label_ids(&self) -> Result<Vec<Vec<i32>>, ShardsError> {
        let Some(lists) = self.batch.column_by_name(column::LABEL_IDS) else {
            return Ok(vec![Vec::new(); self.batch.num_rows()]);
        };
        let wrong = || self.wrong(column::LABEL_IDS);
        let lists = lists.as_list_opt::<i32>().ok_or_else(wrong)?;
        let of_row = |ids: Option<ArrayRef>| -> Result<Vec<i32>, ShardsError> {
            let Some(ids) = ids else { return Ok(Vec::new()) };
            let ids = ids.as_primitive_opt::<Int32Type>().ok_or_else(wrong)?;
            // A null id is that of no class, which the check finds.
            Ok(ids.iter().map(|id| id.unwrap_or(-1)).collect())
        };
        lists.iter().map(of_row).collect()
    }

    /// A column of lists of texts; null is none.
    fn text_lists(&self, name: &'static str) -> Result<Vec<Vec<Option<&'a str>>>, ShardsError> {
        let wrong = || self.wrong(name);
        let list = self.array(name)?.as_list_opt::<i32>().ok_or_else(wrong)?;
        let texts = list.values().as_string_opt::<i32>().ok_or_else(wrong)?;
        let offsets = list.value_offsets();
        let of_row = |row: usize| {
            let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
            if list.is_null(row) {
                return Vec::new();
            }
            (start..end).map(|i| texts.is_valid(i).then(|| texts.value(i))).collect()
        };
        Ok((0..list.len()).map(of_row).collect())
    }

    /// Token ids of each caption of each row.
    pub(crate) fn tokens(&self) -> Result<Vec<Vec<Vec<i32>>>, ShardsError> {
        let wrong = || self.wrong(column::TOKENS);
        let rows = self.array(column::TOKENS)?.as_list_opt::<i32>().ok_or_else(wrong)?;
        let captions = rows.values().as_list_opt::<i32>().ok_or_else(wrong)?;
        let ids = captions.values().as_primitive_opt::<Int32Type>().ok_or_else(wrong)?;
        let (row_ends, caption_ends) = (rows.value_offsets(), captions.value_offsets());
        let of_caption = |i: usize| {
            // A null id cannot be trained on; it counts as padding, which the check finds.
            let places = caption_ends[i] as usize..caption_ends[i + 1] as usize;
            places.map(|at| if ids.is_valid(at) { ids.value(at) } else { 0 }).collect()
        };
        let of_row = |row: usize| (row_ends[row] as usize..row_ends[row + 1] as usize).map(of_caption).collect();
        Ok((0..rows.len()).map(of_row).collect())
    }

    /// Encoded media.
    pub(crate) fn media(&self, kind: RecordKind) -> Result<Vec<Option<&'a [u8]>>, ShardsError> {
        let wrong = || self.wrong(media_column(kind));
        let media = self.array(media_column(kind))?.as_struct_opt().ok_or_else(wrong)?;
        let bytes = media.column_by_name(column::MEDIA_BYTES).ok_or_else(wrong)?;
        if let Some(bytes) = bytes.as_binary_opt::<i32>() {
            return Ok(bytes.iter().collect());
        }
        Ok(bytes.as_binary_view_opt().ok_or_else(wrong)?.iter().collect())
    }
}
