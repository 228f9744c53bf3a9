//! Parquet files that hold the media themselves: Hugging Face's struct of `bytes` and `path`, or a plain binary column.
//!
//! In: files and the names of their columns. Out: a candidate per row; the media are copied to a spool file, so that each
//! is a range of some file. A record's key is its `key`, else `<file>/<row>`. Never: unpacks without limit.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use imp_schemas::reject::RejectReason;
use tempfile::NamedTempFile;

use super::columns::{Leads, Used, stem};
use super::origin::Input;
use super::parquet_file::{ParquetFile, bytes_at, text_at, text_of, wording_at};
use super::tar_file::max_unpacked;
use super::{Candidate, Depth, Found, Place, reject};
use crate::config::CorpusConfig;
use crate::error::IngestError;
use crate::text::{Refusal, Wording, safe_path};

/// Whether the files of `schema` hold the media: their media column is bytes, and no column elsewhere is asked for.
pub(super) fn holds_media(schema: &Schema, corpus: &CorpusConfig) -> bool {
    let columns = &corpus.columns;
    let asks_away = (columns.path.named || columns.url.named) && !columns.media.named;
    let is_bytes = |data_type: &DataType| matches!(data_type, DataType::BinaryView | DataType::FixedSizeBinary(_));
    let found = schema.field_with_name(&columns.media.name).is_ok_and(|field| match field.data_type() {
        DataType::Struct(fields) => fields.find("bytes").is_some_and(|(_, bytes)| is_bytes(bytes.data_type())),
        other => is_bytes(other),
    });
    columns.media.named || found && !asks_away
}

/// Reads one file. One that is damaged is a reject, with what could be read before and after.
///
/// # Errors
/// The file lacks a column, or the spool cannot be written.
pub(super) fn read(input: &Input, corpus: &CorpusConfig, depth: Depth) -> Result<Found, IngestError> {
    let mut found = Found::default();
    let local = input.fetch()?;
    let file = match ParquetFile::open(&local.path) {
        Ok(file) => file,
        Err(detail) => {
            found.rejects.push(reject(&input.name, 0, String::new(), (RejectReason::Corrupt, detail)));
            return Ok(found);
        }
    };
    let columns = &corpus.columns;
    let names = file.names();
    let used = Used::check(&input.name, columns, Leads::Within, corpus.split.is_none(), &names)?;
    if !holds_media(file.schema(), corpus) || !names.contains(&columns.media.name.as_str()) {
        let detail = format!("its column `{}` holds no bytes, those of other files do", columns.media.name);
        return Err(IngestError::Table { table: input.name.clone(), detail });
    }
    let class_labels = file.class_labels();
    let media = columns.media.name.as_str();
    let mut wanted: Vec<&str> = [used.key, used.caption, used.label, used.split].into_iter().flatten().collect();
    let mut spool = Spool::new(max_unpacked(input.n_bytes), corpus.limits.max_media_bytes());
    if depth == Depth::Media {
        wanted.push(media);
    }
    let broken = file.read(&wanted, &mut |first, batch| {
        for at in 0..batch.num_rows() {
            let row = first + at as u64;
            let (bytes, path) = medium_at(batch, media, at);
            let name = path.map_or_else(|| row.to_string(), |path| format!("{row}/{path}"));
            let source = format!("{}/{name}", input.name);
            let key = text_of(batch, used.key, at);
            let words = wording_at(batch, at, &used, &class_labels);
            let split = text_of(batch, used.split, at);
            let own_key = format!("{}/{row}", stem(&input.name));
            let known_key = key.clone().ok().flatten().unwrap_or_else(|| own_key.clone());
            let settled = (|| -> Result<(String, Wording, Option<String>), Refusal> {
                let (key, words, split) = (key?, words?, split?);
                if used.split.is_some() && split.is_none() {
                    return Err((RejectReason::MalformedRow, "the split is blank".to_owned()));
                }
                if words == Wording::default() {
                    return Err((RejectReason::EmptyCaption, "neither a caption nor a label".to_owned()));
                }
                match (used.key, key) {
                    (Some(_), None) => Err((RejectReason::MalformedRow, "the key is blank".to_owned())),
                    (_, key) => Ok((key.unwrap_or(own_key), words, split)),
                }
            })();
            let placed = settled.and_then(|settled| match depth {
                Depth::Words => Ok((settled, Ok(Place::nowhere()))),
                Depth::Media => Ok((settled, spool.put(bytes)?)),
            });
            match placed {
                Ok(((key, wording, split), medium)) => {
                    let medium = medium.map_err(spool_failed)?;
                    let listed_in = None;
                    found.candidates.push(Candidate { key, source, row, listed_in, wording, split, medium });
                }
                Err(refusal) => found.rejects.push(reject(&source, row, known_key, refusal)),
            }
        }
        Ok(())
    })?;
    for broken in broken {
        let refusal = (RejectReason::Corrupt, format!("cannot be read from this row on: {}", broken.detail));
        found.rejects.push(reject(&input.name, broken.row, String::new(), refusal));
    }
    found.spools.extend(spool.file.map(|(file, _)| file));
    Ok(found)
}

/// The medium of a row, and the name that Hugging Face keeps for it.
fn medium_at<'a>(batch: &'a RecordBatch, media: &str, row: usize) -> (Result<&'a [u8], Refusal>, Option<String>) {
    let null = |why: &str| Err((RejectReason::EmptyFile, why.to_owned()));
    let Some(column) = batch.column_by_name(media) else { return (null("there is no medium"), None) };
    let Some(pair) = column.as_struct_opt() else {
        return (bytes_at(column, row).map_or_else(|| null("the medium is null"), Ok), None);
    };
    let path = pair.column_by_name("path").and_then(|path| text_at(path, row).ok().flatten());
    let path = path.and_then(|path| safe_path(&path).ok());
    let bytes = pair.column_by_name("bytes").filter(|_| pair.is_valid(row)).and_then(|bytes| bytes_at(bytes, row));
    match (bytes, &path) {
        (Some(bytes), _) => (Ok(bytes), path),
        (None, Some(name)) => {
            let detail =
                format!("its bytes are null, it only names `{name}`; embed the media, or list them in a table");
            (Err((RejectReason::MissingFile, detail)), path)
        }
        (None, None) => (null("the medium is null"), None),
    }
}

/// The media of one file, one after the other.
struct Spool {
    file: Option<(NamedTempFile, Arc<std::path::Path>)>,
    n_bytes: u64,
    max_bytes: u64,
    max_medium: u64,
}

impl Spool {
    fn new(max_bytes: u64, max_medium: u64) -> Self {
        Self { file: None, n_bytes: 0, max_bytes, max_medium }
    }

    /// Where the medium now lies; or why it does not, and whether that is the disk's fault.
    fn put(&mut self, bytes: Result<&[u8], Refusal>) -> Result<std::io::Result<Place>, Refusal> {
        let bytes = bytes?;
        let len = bytes.len() as u64;
        if len == 0 {
            return Err((RejectReason::EmptyFile, "the medium has 0 bytes".to_owned()));
        }
        if len > self.max_medium {
            return Err((
                RejectReason::TooLarge,
                format!("the medium has {len} bytes, the limit is {}", self.max_medium),
            ));
        }
        if self.n_bytes + len > self.max_bytes {
            return Err((RejectReason::TooLarge, format!("the file unpacks to more than {} bytes", self.max_bytes)));
        }
        Ok(self.write(bytes))
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<Place> {
        let (spool, file) = match &mut self.file {
            Some(open) => open,
            None => {
                let spool = NamedTempFile::new()?;
                let file = Arc::from(spool.path());
                self.file.insert((spool, file))
            }
        };
        spool.write_all(bytes)?;
        let (offset, len) = (self.n_bytes, bytes.len() as u64);
        self.n_bytes += len;
        Ok(Place::File { file: Arc::clone(file), offset, len })
    }
}

fn spool_failed(source: std::io::Error) -> IngestError {
    IngestError::Read { path: std::env::temp_dir(), source }
}
