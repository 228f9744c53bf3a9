//! What people have → candidates: records with their words, and the place of their medium, which is not read yet.
//!
//! In: a folder, WebDataset tars, tables of text or Parquet, Parquet files with media; here or in object storage.
//! Out: a [`Listing`], cut into units of work that depend on the corpus alone; of a unit, [`Found`]: every input is a
//! candidate or a reject, none is lost. Never: decodes a medium, holds one in memory, holds more than one unit, follows
//! a path out of its corpus.
//!
//! ```text
//! origin ─► folder, table_listing ─► spool ─► unit: samples, groups ─► Found
//!        └► containers (tars, parquet_media) ──► unit: some files ───► Found
//! ```

mod columns;
mod containers;
mod folder;
mod groups;
mod lines;
mod media_root;
mod origin;
mod parquet_file;
mod parquet_media;
mod parquet_table;
mod samples;
mod spool;
mod table;
mod table_listing;
mod tar_file;
mod tars;

use std::path::Path;
use std::sync::Arc;

use imp_schemas::modality::RecordKind;
use imp_schemas::reject::Reject;
use imp_schemas::shard::Digest;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::config::{CorpusConfig, IngestConfig};
use crate::error::IngestError;
use crate::text::{Refusal, Wording};
use containers::{Containers, Kind};
use folder::FolderListing;
use origin::{Input, Origin};
use parquet_file::ParquetFile;
use table_listing::{TableListing, is_table};

/// Bytes of a caption or label file; a larger one is refused.
const MAX_SIDECAR_BYTES: u64 = 4 << 20;

/// Where a medium's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file of this machine, or a range of one: a member of a tar, a row of a spool.
    File { file: Arc<Path>, offset: u64, len: u64 },
    /// A whole object: `http://`, `https://` or `s3://`.
    Url { url: Arc<str> },
}

impl Place {
    /// Bytes of the medium, if they are known before it is read.
    pub(crate) fn len(&self) -> Option<u64> {
        match self {
            Self::File { len, .. } => Some(*len),
            Self::Url { .. } => None,
        }
    }

    /// For words that are read without their media.
    fn nowhere() -> Self {
        Self::File { file: Arc::from(Path::new("")), offset: 0, len: 0 }
    }
}

/// A record that may enter a shard if its medium decodes.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) key: String,
    /// File, URL, or member of a container, relative to the corpus.
    pub(crate) source: String,
    /// 1-based line of a text table, 0-based row of a Parquet file or member of a tar, 0 for a file of a folder.
    pub(crate) row: u64,
    /// The table that names it, if one does.
    pub(crate) listed_in: Option<Arc<str>>,
    pub(crate) wording: Wording,
    /// From the split column.
    pub(crate) split: Option<String>,
    pub(crate) medium: Place,
}

/// All that one unit of a corpus offers. `candidates.len() + rejects.len()` is the number of its inputs.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) rejects: Vec<Reject>,
    /// Files that are neither medium nor caption, such as a README; those of a folder are counted in unit 0.
    pub(crate) n_ignored: u64,
    /// Copies that places of candidates are ranges of; deleted when dropped.
    pub(crate) spools: Vec<NamedTempFile>,
}

impl Found {
    pub(crate) fn append(&mut self, other: Self) {
        self.candidates.extend(other.candidates);
        self.rejects.extend(other.rejects);
        self.n_ignored += other.n_ignored;
        self.spools.extend(other.spools);
    }
}

/// How much of a unit is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Words alone: places of media are not looked for, nothing is unpacked.
    Words,
    Media,
}

/// A corpus, listed and cut into units; the listing is on disk. Some places of its candidates are files that live as long
/// as it does.
#[derive(Debug)]
pub(crate) struct Listing {
    corpus: CorpusConfig,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Folder(FolderListing),
    Table(TableListing),
    Containers(Containers),
}

impl Listing {
    /// Lists `corpus`: reads the words of folders and tables, the names of tars and Parquet files with media.
    ///
    /// # Errors
    /// The corpus is not there, cannot be listed, or its table lacks a column.
    pub(crate) fn open(config: &IngestConfig, corpus: &CorpusConfig) -> Result<Self, IngestError> {
        let is_file = |path: &str| is_tar(path) || is_table(path);
        let body = match Origin::of(config, corpus, &corpus.path, is_file)? {
            Origin::Folder(root) => Body::Folder(FolderListing::local(config, corpus, &root)?),
            Origin::Bucket(bucket) => {
                let mut is_there = false;
                bucket.store.visit("", &mut |_, _| {
                    is_there = true;
                    false
                })?;
                if !is_there {
                    return Err(no_such_path(config, corpus, &corpus.path));
                }
                Body::Folder(FolderListing::bucket(config, corpus, &bucket)?)
            }
            Origin::Files(inputs) => match family(corpus, &inputs)? {
                Family::Table => Body::Table(TableListing::open(config, corpus, &inputs)?),
                Family::Media(kind) => Body::Containers(Containers::new(kind, inputs, config.shard_bytes)),
            },
        };
        Ok(Self { corpus: corpus.clone(), body })
    }

    /// At least one.
    pub(crate) fn n_units(&self) -> usize {
        match &self.body {
            Body::Folder(listing) => listing.spool.n_units(),
            Body::Table(listing) => listing.spool.n_units(),
            Body::Containers(containers) => containers.n_units(),
        }
    }

    /// How much of the corpus `unit` is, to compare with other units: bytes of its files, or of what the listing says of it.
    pub(crate) fn weight(&self, unit: usize) -> u64 {
        match &self.body {
            Body::Folder(listing) => listing.spool.weight(unit),
            Body::Table(listing) => listing.spool.weight(unit),
            Body::Containers(containers) => containers.weight(unit),
        }
    }

    /// Changes when an input of `unit` does: its names, sizes, words, and times of change or ETags. Says nothing of media
    /// behind URLs.
    pub(crate) fn identity(&self, unit: usize) -> Result<Digest, IngestError> {
        let mut hasher = blake3::Hasher::new_derive_key("imp-ingest 2026 unit identity");
        match &self.body {
            Body::Folder(listing) => listing.digest(unit, &mut hasher)?,
            Body::Table(listing) => listing.digest(unit, &mut hasher)?,
            Body::Containers(containers) => containers.digest(unit, &mut hasher),
        }
        Ok(Digest(hasher.finalize().to_hex().to_string()))
    }

    /// Everything that `unit` offers; the same unit gives the same, in the same order.
    pub(crate) fn read(&self, unit: usize) -> Result<Found, IngestError> {
        self.unit(unit, Depth::Media)
    }

    /// Hands the words of every candidate to `take`, unit by unit, without looking at media: also of those whose medium
    /// will turn out to be missing.
    pub(crate) fn survey(&self, take: &mut dyn FnMut(&Wording)) -> Result<(), IngestError> {
        for unit in 0..self.n_units() {
            self.unit(unit, Depth::Words)?.candidates.iter().for_each(|candidate| take(&candidate.wording));
        }
        Ok(())
    }

    fn unit(&self, unit: usize, depth: Depth) -> Result<Found, IngestError> {
        let mut found = match &self.body {
            Body::Folder(listing) => listing.read(unit),
            Body::Table(listing) => listing.read(unit, depth),
            Body::Containers(containers) => containers.read(unit, &self.corpus, depth),
        }?;
        if let Some(separator) = &self.corpus.label_separator {
            found.candidates.iter_mut().for_each(|candidate| candidate.wording.split_labels(separator));
        }
        Ok(found)
    }
}

/// What the files of a corpus are, all of them.
enum Family {
    Table,
    Media(Kind),
}

fn family(corpus: &CorpusConfig, inputs: &[Input]) -> Result<Family, IngestError> {
    let all = |is: fn(&str) -> bool| inputs.iter().all(|input| is(&input.name));
    if all(is_tar) {
        return Ok(Family::Media(Kind::Tars));
    }
    if all(|name| table::Dialect::of(name).is_some()) {
        return Ok(Family::Table);
    }
    if !all(is_parquet) {
        let odd = inputs.iter().find(|input| !is_tar(&input.name) && !is_table(&input.name));
        let named = odd.or(inputs.last()).map_or(String::new(), |input| format!(", which matches `{}`", input.name));
        return Err(IngestError::Config {
            key: format!("ingest.corpus.{}.path", corpus.name),
            found: format!("`{}`{}", corpus.path, if inputs.len() > 1 { named } else { String::new() }),
            rule:
                "must be a folder, tables (.csv .tsv .jsonl .parquet), or tars (.tar .tar.gz .tar.zst), and of one kind"
                    .to_owned(),
        });
    }
    // The first that can be opened shows whether the media lie within.
    let mut first_fault = None;
    for input in inputs {
        match ParquetFile::schema_of(input)? {
            Ok(schema) if parquet_media::holds_media(&schema, corpus) => return Ok(Family::Media(Kind::Parquet)),
            Ok(_) => return Ok(Family::Table),
            Err(detail) => first_fault = first_fault.or(Some((input, detail))),
        }
    }
    let (table, detail) = first_fault.map_or_else(Default::default, |(input, detail)| (input.name.clone(), detail));
    Err(IngestError::Table { table, detail })
}

/// The bytes of a small file of the config, such as a list of classes, here or in object storage.
pub(crate) fn read_small(config: &IngestConfig, path: &str) -> Result<Vec<u8>, IngestError> {
    match config.resolve_url(path).as_deref().and_then(|url| url.rsplit_once('/')) {
        Some((folder, name)) => Ok(config.open_store(folder)?.get(name)?.to_vec()),
        None => {
            let path = config.resolve(path);
            std::fs::read(&path).map_err(|source| IngestError::Read { path, source })
        }
    }
}

fn reject(source: &str, row: u64, key: String, (reason, detail): Refusal) -> Reject {
    Reject { source: source.to_owned(), row, key, reason, detail, first_bytes: Vec::new() }
}

fn no_such_path(config: &IngestConfig, corpus: &CorpusConfig, path: &str) -> IngestError {
    IngestError::NoSuchPath {
        corpus: corpus.name.clone(),
        path: path.to_owned(),
        root: config.root.display().to_string(),
    }
}

/// Names in a folder, sorted; one that is no UTF-8 keeps a replacement character and will not be found again.
fn list_folder(folder: &Path) -> Result<Vec<String>, IngestError> {
    let unreadable = |source| IngestError::Read { path: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        names.push(entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn is_tar(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"].iter().any(|ending| name.ends_with(ending))
}

fn is_parquet(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(".parquet") || name.ends_with(".pq")
}

/// Whether a file of this extension (lower case) can be the medium of a record; its bytes decide later.
fn is_medium(kind: RecordKind, extension: &str) -> bool {
    match kind {
        RecordKind::ImageText => matches!(
            extension,
            "jpg" | "jpeg" | "jpe" | "jfif" | "png" | "webp" | "gif" | "bmp" | "tif" | "tiff" | "avif" | "heic"
        ),
        RecordKind::VideoText => {
            matches!(
                extension,
                "mp4" | "m4v" | "mov" | "mkv" | "webm" | "avi" | "mpg" | "mpeg" | "ts" | "flv" | "wmv" | "gif"
            )
        }
        RecordKind::AudioText => {
            matches!(
                extension,
                "wav"
                    | "wave"
                    | "flac"
                    | "mp3"
                    | "mp2"
                    | "ogg"
                    | "oga"
                    | "opus"
                    | "m4a"
                    | "aac"
                    | "aiff"
                    | "aif"
                    | "au"
                    | "caf"
                    | "ac3"
                    | "mka"
                    | "webm"
                    | "wma"
            )
        }
    }
}

/// Kinds of text file that lie beside a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Sidecar {
    Txt,
    Json,
    Cls,
}

impl Sidecar {
    fn of(extension: &str) -> Option<Self> {
        match extension {
            "txt" | "text" | "caption" => Some(Self::Txt),
            "json" => Some(Self::Json),
            "cls" => Some(Self::Cls),
            _ => None,
        }
    }

    fn read(self, bytes: &[u8], what: &str) -> Result<Wording, Refusal> {
        match self {
            Self::Txt => crate::text::read_txt(bytes, what),
            Self::Json => crate::text::read_json(bytes, what),
            Self::Cls => crate::text::read_cls(bytes, what),
        }
    }
}

/// Files that operating systems and archivers leave behind.
fn is_litter(path: &str) -> bool {
    let is_hidden = |part: &str| part.starts_with('.') && part != "." && part != "..";
    path.split('/').any(|part| is_hidden(part) || ["__MACOSX", "Thumbs.db", "desktop.ini"].contains(&part))
}

#[cfg(test)]
mod tests;
