//! Tables of any length, in units: rows of one record lie in one unit.
//!
//! In: tables in text or Parquet, here or in object storage. Out: the candidates of a unit, and a reject for every row that
//! is none. The rows go to a spool, so that none is in memory but those of the unit that is read.

use std::sync::Arc;

use imp_schemas::reject::RejectReason;

use super::columns::{Row, key_of};
use super::groups::Groups;
use super::media_root::MediaRoot;
use super::origin::{Input, Origin};
use super::spool::{OpenSpool, Piece, Spool, Target};
use super::table::{self, Dialect, RowResult};
use super::{Depth, Found, is_parquet, is_tar, no_such_path, parquet_table};
use crate::config::{CorpusConfig, IngestConfig};
use crate::error::IngestError;

#[derive(Debug)]
pub(super) struct TableListing {
    /// Names, and how their rows are called.
    tables: Vec<(Arc<str>, &'static str)>,
    pub(super) spool: Spool,
    media: MediaRoot,
    /// Some row says its split, so all must.
    any_split: bool,
    label_separator: Option<String>,
}

impl TableListing {
    /// Reads every row of `inputs` into units.
    pub(super) fn open(config: &IngestConfig, corpus: &CorpusConfig, inputs: &[Input]) -> Result<Self, IngestError> {
        let media = media_root(config, corpus, inputs)?;
        let mut rows = Rows { spool: OpenSpool::new()?, n_rows: 0, any_split: false };
        let (columns, needs_split) = (&corpus.columns, corpus.split.is_none());
        let mut tables: Vec<(Arc<str>, &'static str)> = Vec::new();
        for (table, input) in inputs.iter().enumerate() {
            let name = input.name.as_str();
            let local = input.fetch()?;
            let mut take = |row, result| rows.take(table, row, result);
            if let Some(dialect) = Dialect::of(name) {
                tables.push((Arc::from(name), "line"));
                table::read(&local.path, name, dialect, columns, needs_split, &mut take)?;
                continue;
            }
            tables.push((Arc::from(name), "row"));
            match parquet_table::read(&local.path, name, columns, needs_split, &mut take) {
                Ok(broken) => {
                    for broken in broken {
                        let detail = format!("cannot be read from this row on: {}", broken.detail);
                        rows.take(table, broken.row, Err((String::new(), (RejectReason::Corrupt, detail))))?;
                    }
                }
                // One of many that is damaged as a whole costs what it held; the only one is the corpus.
                Err(IngestError::Table { detail, .. }) if inputs.len() > 1 => {
                    rows.take(table, 0, Err((String::new(), (RejectReason::Corrupt, detail))))?;
                }
                Err(error) => return Err(error),
            }
        }
        let spool = rows.spool.close(rows.n_rows, config.unit_records)?;
        let (any_split, label_separator) = (needs_split && rows.any_split, corpus.label_separator.clone());
        Ok(Self { tables, spool, media, any_split, label_separator })
    }

    /// Changes when a row of the unit does, or a file of this machine that it names.
    pub(super) fn digest(&self, unit: usize, into: &mut blake3::Hasher) -> Result<(), IngestError> {
        into.update(&[u8::from(self.any_split)]);
        for (name, _) in &self.tables {
            into.update(name.as_bytes()).update(b"\n");
        }
        self.spool.read(unit, &mut |piece, bytes| {
            into.update(bytes);
            if let Piece::Row { target: Target::Path(path), .. } = piece {
                into.update(self.media.stamp(&path).as_bytes());
            }
        })
    }

    pub(super) fn read(&self, unit: usize, depth: Depth) -> Result<Found, IngestError> {
        let mut groups = Groups::new(&self.tables);
        self.spool.read(unit, &mut |piece, _| match piece {
            Piece::Row { table, row, key, target, mut wording, split } => {
                // Before rows of one record are compared.
                self.label_separator.iter().for_each(|separator| wording.split_labels(separator));
                groups.take((table, row), Row { target, key, wording, split });
            }
            Piece::Lost { table, row, key, reason, detail } => groups.reject((table, row), key, (reason, detail)),
            Piece::Medium { .. } | Piece::Words { .. } | Piece::Refused { .. } => {}
        })?;
        Ok(groups.finish(&self.media, self.any_split, depth))
    }
}

/// Rows on their way to the spool.
struct Rows {
    spool: OpenSpool,
    n_rows: u64,
    any_split: bool,
}

impl Rows {
    fn take(&mut self, table: usize, row: u64, result: RowResult) -> Result<(), IngestError> {
        self.n_rows += 1;
        match result {
            Ok(Row { target, key, wording, split }) => {
                self.any_split |= split.is_some();
                let record = key.clone().unwrap_or_else(|| key_of(&target));
                self.spool.push(&record, &Piece::Row { table, row, key, target, wording, split })
            }
            Err((key, (reason, detail))) => {
                // Rows without a key would all meet in one unit; their number spreads them.
                let record = if key.is_empty() { format!("{table}:{row}") } else { key.clone() };
                self.spool.push(&record, &Piece::Lost { table, row, key, reason, detail })
            }
        }
    }
}

/// Where the tables' paths lead: `media_root`, else the folder of the (first) table.
fn media_root(config: &IngestConfig, corpus: &CorpusConfig, inputs: &[Input]) -> Result<MediaRoot, IngestError> {
    let Some(root) = &corpus.media_root else {
        let folder = inputs.first().map(Input::folder);
        return folder.map_or_else(|| Err(no_such_path(config, corpus, &corpus.path)), MediaRoot::folder);
    };
    if let Some(url) = config.resolve_url(root)
        && !(is_tar(&url) && url.starts_with("s3://"))
    {
        return Ok(MediaRoot::Url(url.trim_end_matches('/').to_owned()));
    }
    match Origin::of(config, corpus, root, is_tar)? {
        Origin::Folder(folder) => MediaRoot::folder(super::origin::Folder::Local(folder)),
        Origin::Bucket(bucket) => Ok(MediaRoot::Url(bucket.url)),
        Origin::Files(files) => match &files[..] {
            [tar] if is_tar(&tar.name) => {
                MediaRoot::tar(tar.name.clone(), tar.stamp.clone(), tar.fetch()?, corpus.limits.max_media_bytes())
            }
            _ => Err(IngestError::Config {
                key: format!("ingest.corpus.{}.media_root", corpus.name),
                found: format!("`{root}`"),
                rule: "must be a folder, one tar, or a URL that paths are appended to".to_owned(),
            }),
        },
    }
}

/// Whether a file of this name is a table of some sort.
pub(super) fn is_table(name: &str) -> bool {
    Dialect::of(name).is_some() || is_parquet(name)
}
