//! What a Parquet file claims, checked before the library believes it: it recurses, allocates and counts by what the schema, the
//! page indexes and the headers of pages say. A full stack and a refused allocation cannot be caught, and two billion elements
//! of no bytes take as long as two billion.
//!
//! In: bytes of a footer, an offset index, pages. Out: whether they may be read. Never: a judgement on anything else; where the
//! bytes end or are no Thrift, the library says so itself.
//! Source: Thrift's compact protocol, <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>, and
//! <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>.

mod thrift;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::RecordBatch;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;

use self::thrift::{FILE, Fault, OFFSET_INDEX, PAGE, Part, START, Thrift};

/// Groups within groups of a schema, and structs within structs of anything; Hugging Face's deepest schemas have five.
const MAX_DEPTH: usize = 64;
/// Bytes of a page's header that are looked at first, and at most: statistics may hold a text of any length.
const HEADER_BYTES: u64 = 4 << 10;
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// The footer of a file that ends with `bytes`, without the length and magic behind it; `None` if it begins before them.
pub fn footer_at_end(bytes: &[u8]) -> Option<&[u8]> {
    let (rest, tail) = bytes.split_last_chunk::<8>()?;
    let len = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    rest.get(rest.len().checked_sub(len as usize)?..)
}

/// Checks `footer`, without the length and magic behind it.
///
/// # Errors
/// What it claims, and what there is.
pub fn check_footer(footer: &[u8]) -> Result<(), String> {
    // Children of every element, for each schema: a second one is read as the first.
    let mut schemas: Vec<(i64, Vec<i64>)> = Vec::new();
    let mut thrift = Thrift { bytes: footer };
    let walked = thrift.fields(FILE, MAX_DEPTH, &mut |of, id, value| {
        if (of, id) == (Part::File, 2) {
            schemas.push((value, Vec::new()));
        }
        let Some((_, children)) = schemas.last_mut().filter(|_| of == Part::Element) else { return };
        match (id, children.last_mut()) {
            (START, _) => children.push(0),
            (5, Some(last)) => *last = i64::from(value as i32),
            _ => {}
        }
    });
    if let Err(Fault::Claim(claim)) = walked {
        return Err(claim);
    }
    let mut whole = schemas.iter().filter(|(n_elements, children)| *n_elements == children.len() as i64);
    whole.try_for_each(|(_, children)| check_tree(children))
}

/// Checks `index`, the bytes of an offset index.
///
/// # Errors
/// What it claims, and what there is.
pub fn check_offset_index(index: &[u8]) -> Result<(), String> {
    match (Thrift { bytes: index }).fields(OFFSET_INDEX, MAX_DEPTH, &mut |_, _, _| {}) {
        Err(Fault::Claim(claim)) => Err(claim),
        Ok(()) | Err(Fault::End) => Ok(()),
    }
}

/// What the header of a page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageHead {
    /// Bytes of the header and of the page behind it.
    n_bytes: u64,
    /// Values and nulls; 0 for a dictionary.
    n_values: u64,
}

/// What some bytes begin with.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    Whole(PageHead),
    /// The bytes end before the header does.
    Cut,
    /// A header without what every one has: the library stops there as well, and says so.
    None,
}

fn page_head(bytes: &[u8]) -> Result<Head, String> {
    let mut thrift = Thrift { bytes };
    let (mut kind, mut n_whole, mut n_body, mut n_values) = (None, None, None, 0);
    let walked = thrift.fields(PAGE, MAX_DEPTH, &mut |of, id, value| {
        let value = i64::from(value as i32);
        match (of, id) {
            (Part::Page, 1) => kind = Some(value),
            (Part::Page, 2) => n_whole = Some(value),
            (Part::Page, 3) => n_body = Some(value),
            (Part::DataPage, 1) => n_values = value,
            _ => {}
        }
    });
    match walked {
        Err(Fault::Claim(claim)) => Err(claim),
        Err(Fault::End) => Ok(Head::Cut),
        Ok(()) => {
            let (Some(_), Some(_), Some(n_body)) = (kind, n_whole, n_body) else { return Ok(Head::None) };
            let (Ok(n_body), Ok(n_values)) = (u64::try_from(n_body), u64::try_from(n_values)) else {
                return Err(format!("a page claims {n_body} bytes and {n_values} values"));
            };
            let n_header = (bytes.len() - thrift.bytes.len()) as u64;
            Ok(Head::Whole(PageHead { n_bytes: n_header + n_body, n_values }))
        }
    }
}

/// Values and nulls of the pages that lie one behind the other in `range` of `file`, whose headers are checked for it.
///
/// # Errors
/// What a header claims, and what there is; `file` cannot be read.
pub fn count_values<R: ChunkReader>(file: &R, mut range: Range<u64>) -> Result<u64, ParquetError> {
    let mut n_values = 0u64;
    while let Some(head) = page_at(file, &range)? {
        n_values = n_values.saturating_add(head.n_values);
        range.start = range.start.saturating_add(head.n_bytes).min(range.end);
    }
    Ok(n_values)
}

/// The page at the start of `range`; `None` at its end.
fn page_at<R: ChunkReader>(file: &R, range: &Range<u64>) -> Result<Option<PageHead>, ParquetError> {
    let most = range.end.saturating_sub(range.start).min(MAX_HEADER_BYTES);
    let mut n_read = HEADER_BYTES.min(most);
    while n_read > 0 {
        match page_head(&file.get_bytes(range.start, n_read as usize)?) {
            Ok(Head::Whole(head)) => return Ok(Some(head)),
            Ok(Head::None) => break,
            // Statistics of long texts are in the header.
            Ok(Head::Cut) | Err(_) if n_read < most => n_read = (n_read * 16).min(most),
            // The library reads on behind the end of the chunk before it looks where that is.
            Ok(Head::Cut) => {
                let detail = format!("the header of the page at byte {} has more than {most} bytes", range.start);
                return Err(ParquetError::General(detail));
            }
            Err(claim) => return Err(ParquetError::General(claim)),
        }
    }
    Ok(None)
}

/// The rows of a whole file, or of its bytes, once everything that it claims is checked.
///
/// # Errors
/// What it claims, and what there is; it is no Parquet, or cannot be read.
pub fn open_rows<R: ChunkReader + 'static>(file: R) -> Result<ParquetRecordBatchReaderBuilder<R>, ParquetError> {
    let n_bytes = file.len();
    // What has no footer, or ends within it, is named by the library.
    if let Some(start) = n_bytes.checked_sub(8) {
        let tail = file.get_bytes(start, 8)?;
        let n_footer = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
        if let Some(start) = start.checked_sub(n_footer).filter(|_| tail.ends_with(b"PAR1")) {
            check_footer(&file.get_bytes(start, n_footer as usize)?).map_err(ParquetError::General)?;
        }
    }
    let metadata = guarded(|| ArrowReaderMetadata::load(&file, ArrowReaderOptions::default()))?;
    for chunk in metadata.metadata().row_groups().iter().flat_map(|group| group.columns()) {
        let range = chunk_range(chunk, n_bytes).map_err(ParquetError::General)?;
        count_values(&file, range)?;
    }
    Ok(ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata))
}

/// Runs the library, which may panic on bytes that nobody foresaw: that costs the file, not the process.
///
/// # Errors
/// Those of `read`, and its panic.
pub fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(ParquetError::General("the Parquet reader panicked on these bytes".to_owned())))
}

/// What `reader` gives, up to its first error or panic.
pub fn batches(reader: ParquetRecordBatchReader) -> impl Iterator<Item = Result<RecordBatch, ParquetError>> {
    let mut reading = Some(reader);
    std::iter::from_fn(move || {
        let reader = reading.as_mut()?;
        let next = guarded(|| reader.next().transpose().map_err(ParquetError::from)).transpose();
        reading = reading.take().filter(|_| matches!(next, Some(Ok(_))));
        next
    })
}

/// Where the pages of `chunk` lie in a file of `n_bytes`.
///
/// # Errors
/// It claims bytes that the file does not have.
pub fn chunk_range(chunk: &ColumnChunkMetaData, n_bytes: u64) -> Result<Range<u64>, String> {
    // As the library has it, which panics where one is negative.
    let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
    let end = start.checked_add(chunk.compressed_size());
    match (u64::try_from(start), end.and_then(|end| u64::try_from(end).ok())) {
        (Ok(start), Some(end)) if start <= end && end <= n_bytes => Ok(start..end),
        _ => {
            let (column, n) = (chunk.column_path(), chunk.compressed_size());
            Err(format!("column `{column}` claims {n} bytes from byte {start} on, the file has {n_bytes}"))
        }
    }
}

/// Whether elements with so many children each, depth first, are a tree.
fn check_tree(children: &[i64]) -> Result<(), String> {
    // Children that are still to come, by group.
    let mut open: Vec<u64> = Vec::new();
    for (at, &n_children) in children.iter().enumerate() {
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        let left = (children.len() - at - 1) as u64;
        match u64::try_from(n_children) {
            Ok(0) => {}
            Ok(n) if n <= left => open.push(n),
            _ => return Err(format!("a group of its schema claims {n_children} children, {left} elements follow")),
        }
        if open.len() > MAX_DEPTH {
            return Err(format!("its schema has more than {MAX_DEPTH} groups within each other"));
        }
        while open.last() == Some(&0) {
            open.pop();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn varint(mut n: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while n > 0x7f {
            bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    }

    /// A footer whose schema's elements have so many children.
    fn footer(children: &[i32]) -> Vec<u8> {
        // Version 1; the list of the schema.
        let mut footer = vec![0x15, 2, 0x19, 0xfc];
        footer.extend(varint(children.len() as u64));
        for &n in children {
            // Required, named `a`; then the number of children.
            footer.extend([0x35, 0, 0x18, 1, b'a', 0x15]);
            footer.extend(varint(u64::from(((n << 1) ^ (n >> 31)) as u32)));
            footer.push(0);
        }
        footer.push(0);
        footer
    }

    #[test]
    fn a_schema_that_claims_more_than_it_has_or_nests_too_deep_is_not_read() {
        let deep = |n: usize| -> Vec<i32> { (0..n).map(|at| i32::from(at + 1 < n)).collect() };
        let cases: [(&[i32], &str); 7] = [
            (&[2, 0, 0], ""),
            (&[2, 2, 0, 0, 1, 0], ""),
            (&deep(60), ""),
            (&[1 << 30, 0], "claims 1073741824 children, 1 elements follow"),
            (&[2, 0, 5, 0], "claims 5 children, 1 elements follow"),
            (&[-1, 0], "claims -1 children"),
            (&deep(100_000), "more than 64 groups"),
        ];
        for (children, wanted) in cases {
            let found = check_footer(&footer(children)).err().unwrap_or_default();
            assert!(found.contains(wanted) && found.is_empty() == wanted.is_empty(), "{found}, wanted {wanted}");
            // What stands before the end of the bytes is checked too.
            let cut = footer(children);
            assert_eq!(check_footer(&cut[..cut.len() - 1]).is_err(), !wanted.is_empty());
        }
    }

    #[test]
    fn a_panic_of_the_library_is_an_error() {
        let read = || -> Result<u8, ParquetError> { panic!("attempt to subtract with overflow") };
        assert!(guarded(read).unwrap_err().to_string().contains("panicked on these bytes"));
        assert_eq!(guarded(|| Ok(7)).unwrap(), 7);
    }

    #[test]
    fn lists_of_more_elements_than_bytes_and_fields_of_another_type_are_not_read() {
        let two_billion = [0xff, 0xff, 0xff, 0xff, 7];
        let with = |head: &[u8], list: u8| [head, &[list], &two_billion, &[0]].concat();
        // An unknown field of a footer; one whose booleans the library counts to without a byte; a list where a number should be.
        assert!(check_footer(&with(&[0x15, 2, 0xf9], 0xf8)).is_err());
        assert!(check_footer(&[0x15, 2, 0xf9, 0x11, 1, 0]).is_err());
        assert!(check_footer(&[0x19, 0x15, 2, 0]).is_err());
        assert!(check_footer(&[0x15, 2, 0xf9, 0x15, 2, 0]).is_ok());
        assert!(check_offset_index(&[0x19, 0x1c, 0x16, 8, 0x15, 8, 0x16, 0, 0, 0]).is_ok());
        assert!(check_offset_index(&with(&[0x19], 0xfc)).is_err());
        // A page of 3 bytes and 2 values, and one behind it with a list of two billion doubles.
        let page = [0x15, 0, 0x15, 6, 0x15, 6, 0x2c, 0x15, 4, 0x15, 0, 0x15, 0, 0x15, 0, 0, 0, 1, 2, 3];
        assert_eq!(page_head(&page).unwrap(), Head::Whole(PageHead { n_bytes: 20, n_values: 2 }));
        assert_eq!(page_head(&page[..10]).unwrap(), Head::Cut);
        assert_eq!(page_head(&[0; 30]).unwrap(), Head::None);
        let count = |pages: Vec<u8>| count_values(&Bytes::from(pages.clone()), 0..pages.len() as u64);
        assert_eq!(count(page.repeat(3)).unwrap(), 6);
        // A page that is cut is the library's to name, a header that is cut is not: it would read on.
        assert_eq!(count(page[..19].to_vec()).unwrap(), 2);
        assert!(count(page[..10].to_vec()).unwrap_err().to_string().contains("more than 10 bytes"));
        assert_eq!(count([&page[..], &[0; 1 << 20]].concat()).unwrap(), 2);
        assert!(count([&page[..], &with(&[0xf9], 0xf7)].concat()).is_err());
        // A text of 17 MiB before the end of a header.
        let long = [&[0xf8, 0x80, 0x80, 0xc0, 8][..], &vec![0; 18 << 20]].concat();
        assert!(count(long).unwrap_err().to_string().contains("more than 16777216 bytes"));
    }
}
