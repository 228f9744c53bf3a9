//! Tables of text with a medium's path or URL a row: CSV, TSV, JSONL.
//!
//! In: a table and the names of its columns. Out: its rows, one by one, and why a row is none. Never: a table given up for
//! one broken row, more than one row in memory.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use imp_schemas::reject::RejectReason;
use serde_json::Value;

use super::columns::{Cells, Leads, Row, Used};
use super::lines::Lines;
use crate::config::Columns;
use crate::error::IngestError;
use crate::text::{Refusal, Wording, captions_of, label_of, labels_of, utf8};

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Separated(u8),
    Jsonl,
}

impl Dialect {
    pub(super) fn of(name: &str) -> Option<Self> {
        match name.rsplit('.').next()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Separated(b',')),
            "tsv" => Some(Self::Separated(b'\t')),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            _ => None,
        }
    }
}

/// A row, or as much of its key as is known and why it is none.
pub(super) type RowResult = Result<Row, (String, Refusal)>;

/// Takes a row and its number; an error ends the reading.
pub(super) type TakeRow<'a> = dyn FnMut(u64, RowResult) -> Result<(), IngestError> + 'a;

/// Hands the rows of the table at `path` to `take`, with their 1-based lines.
///
/// # Errors
/// The table cannot be read as a whole or lacks a column; what `take` returns.
pub(super) fn read(
    path: &Path,
    name: &str,
    dialect: Dialect,
    columns: &Columns,
    needs_split: bool,
    take: &mut TakeRow<'_>,
) -> Result<(), IngestError> {
    let unreadable = |source| IngestError::Read { path: path.to_owned(), source };
    let mut lines = Lines::new(BufReader::new(open_text(path, name)?));
    match dialect {
        Dialect::Separated(separator) => {
            let names = header(&mut lines, separator, name)?;
            let names: Vec<&str> = names.iter().map(|name| name.trim()).collect();
            let used = Used::check(name, columns, Leads::Away, needs_split, &names)?;
            let table = Separated::new(separator, &names, used);
            while let Some((line, bytes)) = lines.next_quoted(separator).map_err(unreadable)? {
                take(line, bytes.map_err(keyless).and_then(|bytes| table.row(&bytes)))?;
            }
        }
        Dialect::Jsonl => {
            let mut table = Jsonl { columns, needs_split, n_objects: 0, seen: BTreeSet::new() };
            while let Some((line, bytes)) = lines.next_line().map_err(unreadable)? {
                take(line, bytes.map_err(keyless).and_then(|bytes| table.row(&bytes)))?;
            }
            table.check(name)?;
        }
    }
    Ok(())
}

fn keyless(refusal: Refusal) -> (String, Refusal) {
    (String::new(), refusal)
}

/// The table without a byte order mark.
fn open_text(path: &Path, name: &str) -> Result<File, IngestError> {
    let unreadable = |source| IngestError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut start = Vec::new();
    (&mut file).take(3).read_to_end(&mut start).map_err(unreadable)?;
    if start.is_empty() {
        return Err(IngestError::Table {
            table: name.to_owned(),
            detail: "it is empty, wanted a row of columns' names".to_owned(),
        });
    }
    if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
        return Err(IngestError::Table { table: name.to_owned(), detail: "it is UTF-16; save it as UTF-8".to_owned() });
    }
    let skip = if start == [0xef, 0xbb, 0xbf] { 3 } else { 0 };
    file.seek(SeekFrom::Start(skip)).map_err(unreadable)?;
    Ok(file)
}

/// Names of the columns of a CSV or TSV table.
fn header(lines: &mut Lines<BufReader<File>>, separator: u8, table: &str) -> Result<Vec<String>, IngestError> {
    let broken = |detail: String| IngestError::Table { table: table.to_owned(), detail };
    let header = match lines.next_quoted(separator) {
        Ok(Some((_, Ok(header)))) => header,
        Ok(Some((line, Err((_, detail))))) => return Err(broken(format!("line {line}, its header: {detail}"))),
        Ok(None) => return Err(broken("it has no header".to_owned())),
        Err(error) => return Err(broken(error.to_string())),
    };
    fields(&header, separator).map_err(|(_, detail)| broken(format!("its header: {detail}")))
}

/// A CSV or TSV table: places of the columns.
struct Separated<'a> {
    separator: u8,
    n_columns: usize,
    used: Used<'a>,
    target: Option<usize>,
    key: Option<usize>,
    caption: Option<usize>,
    label: Option<usize>,
    split: Option<usize>,
}

impl<'a> Separated<'a> {
    fn new(separator: u8, names: &[&'a str], used: Used<'a>) -> Self {
        let place = |column: Option<&str>| column.and_then(|column| names.iter().position(|name| *name == column));
        Self {
            separator,
            n_columns: names.len(),
            used,
            target: place(used.target),
            key: place(used.key),
            caption: place(used.caption),
            label: place(used.label),
            split: place(used.split),
        }
    }

    fn row(&self, bytes: &[u8]) -> RowResult {
        let fields = fields(bytes, self.separator).map_err(keyless)?;
        if fields.len() != self.n_columns {
            let detail = format!("{} fields, wanted {}", fields.len(), self.n_columns);
            return Err(keyless((RejectReason::MalformedRow, detail)));
        }
        let cell = |at: Option<usize>| {
            let text = at.and_then(|at| fields.get(at)).map(|text| text.trim().to_owned());
            text.filter(|text| !text.is_empty())
        };
        let split = cell(self.split);
        if self.split.is_some() && split.is_none() {
            return Err(keyless((RejectReason::MalformedRow, "the split is blank".to_owned())));
        }
        let wording = Wording {
            captions: cell(self.caption).into_iter().collect(),
            labels: cell(self.label).into_iter().collect(),
        };
        Row::of(&self.used, Cells { target: cell(self.target), key: cell(self.key), wording, split })
    }
}

/// The fields of one row that is known to have no open quote, by RFC 4180; text behind a closing quote is kept.
fn fields(bytes: &[u8], separator: u8) -> Result<Vec<String>, Refusal> {
    let mut rest = utf8(bytes, "the row")?;
    let mut fields = Vec::new();
    loop {
        let mut field = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted;
            while let Some((text, behind)) = rest.split_once('"') {
                field.push_str(text);
                rest = behind;
                let Some(behind) = rest.strip_prefix('"') else { break };
                field.push('"');
                rest = behind;
            }
        }
        let (text, behind) = match rest.split_once(char::from(separator)) {
            Some((text, behind)) => (text, Some(behind)),
            None => (rest, None),
        };
        field.push_str(text);
        fields.push(field);
        match behind {
            Some(behind) => rest = behind,
            None => return Ok(fields),
        }
    }
}

/// A JSONL table: its columns are the keys that its rows have.
struct Jsonl<'a> {
    columns: &'a Columns,
    needs_split: bool,
    n_objects: u64,
    seen: BTreeSet<String>,
}

/// Names of columns that are kept for the message about one that is missing.
const MAX_SEEN: usize = 256;

impl Jsonl<'_> {
    fn row(&mut self, bytes: &[u8]) -> RowResult {
        let malformed = |detail: String| keyless((RejectReason::MalformedRow, detail));
        let value: Value = serde_json::from_str(utf8(bytes, "the row").map_err(keyless)?)
            .map_err(|error| malformed(error.to_string()))?;
        let Value::Object(object) = value else {
            return Err(malformed("no JSON object".to_owned()));
        };
        self.n_objects += 1;
        for key in object.keys() {
            if self.seen.len() < MAX_SEEN && !self.seen.contains(key) {
                self.seen.insert(key.clone());
            }
        }
        let names: Vec<&str> = object.keys().map(String::as_str).collect();
        let used = Used::of(self.columns, Leads::Away, self.needs_split, &names);
        let cell = |column: Option<&str>| column.and_then(|column| object.get(column)).unwrap_or(&Value::Null);
        let named = |column: Option<&str>, detail: String| malformed(format!("`{}` {detail}", column.unwrap_or("")));
        let text = |column: Option<&str>| label_of(cell(column)).map_err(|detail| named(column, detail));
        let captions = captions_of(cell(used.caption)).map_err(|detail| named(used.caption, detail))?;
        let labels = labels_of(cell(used.label)).map_err(|detail| named(used.label, detail))?;
        let wording = Wording { captions, labels };
        Row::of(&used, Cells { target: text(used.target)?, key: text(used.key)?, wording, split: text(used.split)? })
    }

    fn check(&self, table: &str) -> Result<(), IngestError> {
        if self.n_objects == 0 {
            return Ok(());
        }
        let names: Vec<&str> = self.seen.iter().map(String::as_str).collect();
        Used::check(table, self.columns, Leads::Away, self.needs_split, &names).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_that_the_csv_crate_reads() {
        let rows = [
            "a,b",
            ",",
            "a,,",
            "\"a,b\",c",
            "\"a \"\"b\"\"\",\"\"",
            "\"a\"x,b\"c\"",
            " \"a\",é",
            "\"a\nb\",c",
            "x",
            "\"\"",
        ];
        for row in rows {
            let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(row.as_bytes());
            let want: Vec<String> = reader.records().next().unwrap().unwrap().iter().map(str::to_owned).collect();
            assert_eq!(fields(row.as_bytes(), b',').unwrap(), want, "{row}");
        }
    }
}
