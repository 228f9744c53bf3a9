//! Parquet tables with a medium's path or URL a row, as LAION and img2dataset have them.
//!
//! In: a table and the names of its columns. Out: its rows by their 0-based number, and the row groups that are broken.

use std::path::Path;

use super::columns::{Cells, Leads, Row, Used};
use super::parquet_file::{Broken, ParquetFile, text_of, wording_at};
use super::table::{RowResult, TakeRow};
use crate::config::Columns;
use crate::error::IngestError;

/// Hands the rows of the table at `path` to `take`.
///
/// # Errors
/// The table cannot be opened or lacks a column; what `take` returns.
pub(super) fn read(
    path: &Path,
    name: &str,
    columns: &Columns,
    needs_split: bool,
    take: &mut TakeRow<'_>,
) -> Result<Vec<Broken>, IngestError> {
    let broken = |detail| IngestError::Table { table: name.to_owned(), detail };
    let file = ParquetFile::open(path).map_err(broken)?;
    let used = Used::check(name, columns, Leads::Away, needs_split, &file.names())?;
    let class_labels = file.class_labels();
    let wanted = [used.target, used.key, used.caption, used.label, used.split];
    let wanted: Vec<&str> = wanted.into_iter().flatten().collect();
    file.read(&wanted, &mut |first, batch| {
        let keyless = |refusal| (String::new(), refusal);
        let row_of = |row: usize| -> RowResult {
            let text = |column| text_of(batch, column, row).map_err(keyless);
            let wording = wording_at(batch, row, &used, &class_labels).map_err(keyless)?;
            let cells = Cells { target: text(used.target)?, key: text(used.key)?, wording, split: text(used.split)? };
            Row::of(&used, cells)
        };
        (0..batch.num_rows()).try_for_each(|row| take(first + row as u64, row_of(row)))
    })
}
