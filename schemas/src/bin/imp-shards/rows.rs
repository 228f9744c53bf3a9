//! Columns of a record batch → plain values.
//!
//! In: a batch of a shard. Out: one value per row. Never: a panic on a column of another type; that is an error.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{column, media_column};

use crate::ShardsError;

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

    /// Captions of each row; null is none.
    pub(crate) fn captions(&self) -> Result<Vec<Vec<Option<&'a str>>>, ShardsError> {
        let wrong = || self.wrong(column::CAPTIONS);
        let list = self.array(column::CAPTIONS)?.as_list_opt::<i32>().ok_or_else(wrong)?;
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
