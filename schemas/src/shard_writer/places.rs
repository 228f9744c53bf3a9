//! Where the media of a finished shard lie, to the byte.
//!
//! In: the file, and the size of each row's medium. Out: offsets and lengths, row by row. Media are uncompressed, in plain
//! encoding, none of them null: a page ends with its values, each after four bytes of length.
//! Never: a medium read.

use std::fs::File;

use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};

use crate::media_index::MediaPlace;
use crate::modality::RecordKind;
use crate::record::{column, media_column};

/// Bytes of length before each value of a page.
const LENGTH: u64 = 4;

/// Places of the media of `file`, whose rows have media of `lens` bytes, in row order.
///
/// # Errors
/// The file is not a shard of [`super::ShardWriter`], or has other rows.
pub fn media_places(kind: RecordKind, file: &File, lens: &[u64]) -> Result<Vec<MediaPlace>, ParquetError> {
    let odd = |what: &str| ParquetError::General(format!("the finished shard {what}"));
    let metadata =
        ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required).parse_and_finish(file)?;
    let path = [media_column(kind), column::MEDIA_BYTES];
    let columns = metadata.file_metadata().schema_descr().columns();
    let leaf = columns.iter().position(|c| c.path().parts() == path).ok_or_else(|| odd("has no column of media"))?;
    let index = metadata.page_index().ok_or_else(|| odd("has no page index"))?;
    let mut places = Vec::with_capacity(lens.len());
    let mut rest = lens;
    for (group, row_group) in metadata.row_groups().iter().enumerate() {
        let pages = index.offset_index(group, leaf).ok_or_else(|| odd("has no offset index"))?.page_locations();
        let n_rows = row_group.num_rows();
        let ends = pages.iter().skip(1).map(|page| page.first_row_index).chain([n_rows]);
        for (page, end_row) in pages.iter().zip(ends) {
            let n = usize::try_from(end_row - page.first_row_index).unwrap_or(0);
            let (of_page, after) = rest.split_at_checked(n).ok_or_else(|| odd("has more rows than it was given"))?;
            rest = after;
            let end = u64::try_from(page.offset + i64::from(page.compressed_page_size)).unwrap_or(0);
            let mut offset = end
                .checked_sub(of_page.iter().map(|len| len + LENGTH).sum())
                .ok_or_else(|| odd("has a page that is shorter than its media"))?;
            for &len in of_page {
                places.push(MediaPlace { offset: offset + LENGTH, len });
                offset += LENGTH + len;
            }
        }
    }
    if rest.is_empty() { Ok(places) } else { Err(odd("has fewer rows than it was given")) }
}
