//! Tables of path and caption or label: CSV, TSV, JSONL.
//!
//! In: a table and the names of its columns. Out: a candidate per path (several rows of one path are one record with several
//! captions), a reject per row that says nothing usable. Never: a table given up for one broken row.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use imp_schemas::reject::{Reject, RejectReason};
use serde_json::Value;

use super::lines::Lines;
use super::media_root::MediaRoot;
use super::{Candidate, Found, no_such_path};
use crate::config::{Column, Columns, CorpusConfig, IngestConfig};
use crate::error::IngestError;
use crate::text::{Refusal, Wording, captions_of, did_you_mean, label_of, safe_path, utf8};

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

/// What one row says.
#[derive(Debug, Default)]
struct Row {
    path: String,
    wording: Wording,
    split: Option<String>,
}

/// The rows of one path.
#[derive(Debug)]
struct Group {
    path: String,
    line: u64,
    wording: Wording,
    split: Option<String>,
}

#[derive(Debug)]
struct Groups {
    table: String,
    in_order: Vec<Group>,
    by_path: HashMap<String, usize>,
    rejects: Vec<Reject>,
}

pub(super) fn read(
    config: &IngestConfig,
    corpus: &CorpusConfig,
    path: &Path,
    name: &str,
    dialect: Dialect,
) -> Result<Found, IngestError> {
    let media_root = match &corpus.media_root {
        Some(root) => config.resolve(root),
        None => path.parent().unwrap_or(Path::new(".")).to_owned(),
    };
    if !media_root.exists() {
        return Err(no_such_path(config, corpus, corpus.media_root.as_deref().unwrap_or(".")));
    }
    let unreadable = |source| IngestError::Read { path: path.to_owned(), source };
    let mut lines = Lines::new(BufReader::new(open_text(path, name)?));
    let mut groups =
        Groups { table: name.to_owned(), in_order: Vec::new(), by_path: HashMap::new(), rejects: Vec::new() };
    let needs_split = corpus.split.is_none();
    match dialect {
        Dialect::Separated(separator) => {
            let table = Separated::open(&mut lines, separator, name, &corpus.columns, needs_split)?;
            while let Some((line, bytes)) = lines.next_quoted(separator).map_err(unreadable)? {
                groups.take(line, bytes.and_then(|bytes| table.row(&bytes)));
            }
        }
        Dialect::Jsonl => {
            let mut table = Jsonl { columns: &corpus.columns, n_objects: 0, seen: BTreeSet::new() };
            while let Some((line, bytes)) = lines.next_line().map_err(unreadable)? {
                groups.take(line, bytes.and_then(|bytes| table.row(&bytes)));
            }
            table.check(name, needs_split)?;
        }
    }
    let media = MediaRoot::open(&media_root, corpus.limits.max_media_bytes())?;
    Ok(groups.finish(media, needs_split))
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

/// A CSV or TSV table: places of the columns.
struct Separated {
    separator: u8,
    n_columns: usize,
    path: usize,
    caption: Option<usize>,
    label: Option<usize>,
    split: Option<usize>,
}

impl Separated {
    fn open(
        lines: &mut Lines<BufReader<File>>,
        separator: u8,
        table: &str,
        columns: &Columns,
        needs_split: bool,
    ) -> Result<Self, IngestError> {
        let broken = |detail: String| IngestError::Table { table: table.to_owned(), detail };
        let header = match lines.next_quoted(separator) {
            Ok(Some((_, Ok(header)))) => header,
            Ok(Some((line, Err((_, detail))))) => return Err(broken(format!("line {line}, its header: {detail}"))),
            Ok(None) => return Err(broken("it has no header".to_owned())),
            Err(error) => return Err(broken(error.to_string())),
        };
        let names = fields(&header, separator).map_err(|(_, detail)| broken(format!("its header: {detail}")))?;
        let names: Vec<&str> = names.iter().map(|name| name.trim()).collect();
        let place = |column: &Column| names.iter().position(|name| *name == column.name);
        check_columns(table, columns, needs_split, &names)?;
        let missing = || missing(table, &[&columns.path], &names);
        Ok(Self {
            separator,
            n_columns: names.len(),
            path: place(&columns.path).ok_or_else(missing)?,
            caption: place(&columns.caption),
            label: place(&columns.label),
            split: place(&columns.split).filter(|_| needs_split),
        })
    }

    fn row(&self, bytes: &[u8]) -> Result<Row, Refusal> {
        let fields = fields(bytes, self.separator)?;
        if fields.len() != self.n_columns {
            let detail = format!("{} fields, wanted {}", fields.len(), self.n_columns);
            return Err((RejectReason::MalformedRow, detail));
        }
        let cell = |at: Option<usize>| {
            let text = at.and_then(|at| fields.get(at)).map(|text| text.trim().to_owned());
            text.filter(|text| !text.is_empty())
        };
        let split = match (self.split, cell(self.split)) {
            (Some(_), None) => return Err((RejectReason::MalformedRow, "the split is blank".to_owned())),
            (_, split) => split,
        };
        let wording = Wording { captions: cell(self.caption).into_iter().collect(), label: cell(self.label) };
        Ok(Row { path: cell(Some(self.path)).unwrap_or_default(), wording, split })
    }
}

/// The fields of one row that is known to have no open quote.
fn fields(bytes: &[u8], separator: u8) -> Result<Vec<String>, Refusal> {
    let text = utf8(bytes, "the row")?;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .delimiter(separator)
        .buffer_capacity(bytes.len().clamp(64, 1 << 16))
        .from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    let malformed = |detail: String| (RejectReason::MalformedRow, detail);
    match reader.read_record(&mut record) {
        Ok(true) => Ok(record.iter().map(str::to_owned).collect()),
        Ok(false) => Err(malformed("the row is blank".to_owned())),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// A JSONL table: its columns are the keys that its rows have.
struct Jsonl<'a> {
    columns: &'a Columns,
    n_objects: u64,
    seen: BTreeSet<String>,
}

/// Names of columns that are kept for the message about one that is missing.
const MAX_SEEN: usize = 256;

impl Jsonl<'_> {
    fn row(&mut self, bytes: &[u8]) -> Result<Row, Refusal> {
        let malformed = |detail: String| (RejectReason::MalformedRow, detail);
        let value: Value = serde_json::from_str(utf8(bytes, "the row")?).map_err(|e| malformed(e.to_string()))?;
        let Value::Object(object) = value else {
            return Err(malformed("no JSON object".to_owned()));
        };
        self.n_objects += 1;
        for key in object.keys() {
            if self.seen.len() < MAX_SEEN && !self.seen.contains(key) {
                self.seen.insert(key.clone());
            }
        }
        let columns = self.columns;
        let cell = |column: &Column| object.get(&column.name).unwrap_or(&Value::Null);
        let named = |column: &Column, detail: String| malformed(format!("`{}` {detail}", column.name));
        let path = label_of(cell(&columns.path)).map_err(|d| named(&columns.path, d))?.unwrap_or_default();
        let captions = captions_of(cell(&columns.caption)).map_err(|d| named(&columns.caption, d))?;
        let label = label_of(cell(&columns.label)).map_err(|d| named(&columns.label, d))?;
        let split = label_of(cell(&columns.split)).map_err(|d| named(&columns.split, d))?;
        Ok(Row { path, wording: Wording { captions, label }, split })
    }

    fn check(&self, table: &str, needs_split: bool) -> Result<(), IngestError> {
        if self.n_objects == 0 {
            return Ok(());
        }
        let names: Vec<&str> = self.seen.iter().map(String::as_str).collect();
        check_columns(table, self.columns, needs_split, &names)
    }
}

/// The path must be there, one of caption and label, and every column that the config names.
fn check_columns(table: &str, columns: &Columns, needs_split: bool, names: &[&str]) -> Result<(), IngestError> {
    let Columns { path, caption, label, split } = columns;
    let has = |column: &Column| names.contains(&column.name.as_str());
    if !has(path) {
        return Err(missing(table, &[path], names));
    }
    let asked = [Some(caption), Some(label), Some(split).filter(|_| needs_split)];
    if let Some(column) = asked.into_iter().flatten().find(|c| c.named && !has(c)) {
        return Err(missing(table, &[column], names));
    }
    if !has(caption) && !has(label) {
        return Err(missing(table, &[caption, label], names));
    }
    Ok(())
}

fn missing(table: &str, wanted: &[&Column], names: &[&str]) -> IngestError {
    let quoted = |names: &mut dyn Iterator<Item = &str>| names.map(|n| format!("`{n}`")).collect::<Vec<_>>();
    let hint = wanted.iter().map(|w| did_you_mean(&w.name, names)).find(|hint| !hint.is_empty());
    IngestError::MissingColumn {
        table: table.to_owned(),
        wanted: quoted(&mut wanted.iter().map(|w| w.name.as_str())).join(" or "),
        found: quoted(&mut names.iter().copied()).join(", "),
        hint: hint.unwrap_or_default(),
    }
}

impl Groups {
    /// Adds a row to its path's group, or rejects it.
    fn take(&mut self, line: u64, row: Result<Row, Refusal>) {
        let row = match row {
            Ok(row) => row,
            Err(refusal) => return self.reject(line, "", refusal),
        };
        if row.path.is_empty() {
            return self.reject(line, "", (RejectReason::MalformedRow, "the path is blank".to_owned()));
        }
        let path = match safe_path(&row.path) {
            Ok(path) => path,
            Err(refusal) => return self.reject(line, &row.path, refusal),
        };
        if row.wording == Wording::default() {
            let detail = format!("`{path}` has neither a caption nor a label here");
            return self.reject(line, &path, (RejectReason::EmptyCaption, detail));
        }
        let Some(&at) = self.by_path.get(&path) else {
            self.by_path.insert(path.clone(), self.in_order.len());
            self.in_order.push(Group { path, line, wording: row.wording, split: row.split });
            return;
        };
        let group = &mut self.in_order[at];
        let differs = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
        let is_new = row.wording.captions.iter().any(|caption| !group.wording.captions.contains(caption));
        let conflict = if differs(&group.wording.label, &row.wording.label) {
            "another label"
        } else if differs(&group.split, &row.split) {
            "another split"
        } else if !is_new {
            "the same words"
        } else {
            group.wording.merge(row.wording);
            return;
        };
        let detail = format!("`{path}` stood in line {} with {conflict}", group.line);
        self.reject(line, &path, (RejectReason::DuplicateKey, detail));
    }

    fn reject(&mut self, row: u64, path: &str, (reason, detail): Refusal) {
        let (source, key) = (self.table.clone(), stem(path).to_owned());
        self.rejects.push(Reject { source, row, key, reason, detail, first_bytes: Vec::new() });
    }

    fn finish(mut self, media: MediaRoot, needs_split: bool) -> Found {
        let mut candidates = Vec::new();
        let any_split = needs_split && self.in_order.iter().any(|group| group.split.is_some());
        let table: Arc<str> = Arc::from(self.table.as_str());
        for group in std::mem::take(&mut self.in_order) {
            let Group { path, line, wording, split } = group;
            if any_split && split.is_none() {
                self.reject(line, &path, (RejectReason::MalformedRow, "it has no split, other rows have".to_owned()));
                continue;
            }
            match media.locate(&path) {
                Ok(medium) => {
                    let key = stem(&path).to_owned();
                    let listed_in = Some(Arc::clone(&table));
                    candidates.push(Candidate { key, source: path, row: line, listed_in, wording, split, medium });
                }
                Err(refusal) => self.reject(line, &path, refusal),
            }
        }
        Found { candidates, rejects: self.rejects, n_ignored: 0, spools: media.into_spool().into_iter().collect() }
    }
}

/// `path` without the extension of its name.
fn stem(path: &str) -> &str {
    let name_at = path.rfind('/').map_or(0, |at| at + 1);
    path[name_at..].rfind('.').filter(|&dot| dot > 0).map_or(path, |dot| &path[..name_at + dot])
}
