//! What people have → candidates: records with their words, and the place of their medium, which is not read yet.
//!
//! In: a folder, WebDataset tars, or a table. Out: [`Found`]: every input is a candidate or a reject, none is lost.
//! Never: decodes a medium, holds one in memory, follows a path out of its corpus.

mod folder;
mod lines;
mod media_root;
mod samples;
mod table;
mod tar_file;
mod tars;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imp_schemas::modality::RecordKind;
use imp_schemas::reject::Reject;
use tempfile::NamedTempFile;

use crate::config::{CorpusConfig, IngestConfig};
use crate::error::IngestError;
use crate::text::{Wording, matches_glob};

/// Bytes of a caption or label file; a larger one is refused.
const MAX_SIDECAR_BYTES: u64 = 4 << 20;

/// Where a medium's bytes are.
#[derive(Debug, Clone)]
pub(crate) struct Locator {
    pub(crate) file: Arc<Path>,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

pub(crate) type Place = Locator;

impl Locator {
    pub(crate) fn len(&self) -> Option<u64> {
        Some(self.len)
    }
}

pub(crate) struct Listing {
    config: IngestConfig,
    corpus: CorpusConfig,
}

impl Listing {
    pub(crate) fn open(config: &IngestConfig, corpus: &CorpusConfig) -> Result<Self, IngestError> {
        Ok(Self { config: config.clone(), corpus: corpus.clone() })
    }
    pub(crate) fn n_units(&self) -> usize {
        1
    }
    pub(crate) fn identity(&self, _unit: usize) -> Result<imp_schemas::shard::Digest, IngestError> {
        let found = self.read(0)?;
        let text: String = found.candidates.iter().map(|c| format!("{c:?}")).collect();
        Ok(imp_schemas::shard::Digest::of(text.as_bytes()))
    }
    pub(crate) fn read(&self, _unit: usize) -> Result<Found, IngestError> {
        read(&self.config, &self.corpus)
    }
    pub(crate) fn survey(&self, take: &mut dyn FnMut(&Wording)) -> Result<(), IngestError> {
        self.read(0)?.candidates.iter().for_each(|c| take(&c.wording));
        Ok(())
    }
}

/// A record that may enter a shard if its medium decodes.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) key: String,
    /// File or tar member, relative to the corpus.
    pub(crate) source: String,
    /// 1-based line of a table, 0-based member of a tar or folder.
    pub(crate) row: u64,
    /// The table that names it, if one does.
    pub(crate) listed_in: Option<Arc<str>>,
    pub(crate) wording: Wording,
    /// From the split column.
    pub(crate) split: Option<String>,
    pub(crate) medium: Locator,
}

/// All that a corpus offers. `candidates.len() + rejects.len()` is the number of its inputs.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) rejects: Vec<Reject>,
    /// Files that are neither medium nor caption, such as a README.
    pub(crate) n_ignored: u64,
    /// Unpacked members of compressed tars; deleted when dropped.
    pub(crate) spools: Vec<NamedTempFile>,
}

impl Found {
    fn append(&mut self, other: Self) {
        self.candidates.extend(other.candidates);
        self.rejects.extend(other.rejects);
        self.n_ignored += other.n_ignored;
        self.spools.extend(other.spools);
    }
}

/// Reads the words of `corpus` and finds its media.
///
/// # Errors
/// The corpus is not there, cannot be listed, or its table lacks a column.
pub(crate) fn read(config: &IngestConfig, corpus: &CorpusConfig) -> Result<Found, IngestError> {
    let path = config.resolve(&corpus.path);
    if corpus.path.contains(['*', '?']) {
        return tars::read(corpus, &expand(config, corpus)?);
    }
    if !path.exists() {
        return Err(no_such_path(config, corpus, &corpus.path));
    }
    if path.is_dir() {
        return folder::read(config, corpus, &path);
    }
    let name = corpus.path.rsplit('/').next().unwrap_or(&corpus.path).to_owned();
    if is_tar(&name) {
        return tars::read(corpus, &[(name, path)]);
    }
    match table::Dialect::of(&name) {
        Some(dialect) => table::read(config, corpus, &path, &name, dialect),
        None => Err(IngestError::Config {
            key: format!("ingest.corpus.{}.path", corpus.name),
            found: format!("`{}`", corpus.path),
            rule: "must be a folder, a table (.csv .tsv .jsonl), or tars (.tar .tar.gz .tar.zst)".to_owned(),
        }),
    }
}

fn no_such_path(config: &IngestConfig, corpus: &CorpusConfig, path: &str) -> IngestError {
    IngestError::NoSuchPath {
        corpus: corpus.name.clone(),
        path: path.to_owned(),
        root: config.root.display().to_string(),
    }
}

/// Tars that the corpus's glob matches, by rising name, with their names relative to the glob's folder.
fn expand(config: &IngestConfig, corpus: &CorpusConfig) -> Result<Vec<(String, PathBuf)>, IngestError> {
    let parts: Vec<&str> = corpus.path.split('/').collect();
    let n_fixed = parts.iter().take_while(|part| !part.contains(['*', '?'])).count();
    let base = config.resolve(&parts[..n_fixed].join("/"));
    let mut found = vec![(String::new(), base)];
    for part in &parts[n_fixed..] {
        let mut next = Vec::new();
        for (name, folder) in found.iter().filter(|(_, path)| path.is_dir()) {
            for child in list_folder(folder)? {
                if matches_glob(part, &child) {
                    let child_name = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
                    next.push((child_name, folder.join(&child)));
                }
            }
        }
        found = next;
    }
    if let Some((name, _)) = found.iter().find(|(name, _)| !is_tar(name)) {
        return Err(IngestError::Config {
            key: format!("ingest.corpus.{}.path", corpus.name),
            found: format!("`{}`, which matches `{name}`", corpus.path),
            rule: "must match tars only (.tar .tar.gz .tar.zst)".to_owned(),
        });
    }
    if found.is_empty() {
        return Err(no_such_path(config, corpus, &corpus.path));
    }
    Ok(found)
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

/// Whether a file of this extension (lower case) can be the medium of a record; its bytes decide later.
fn is_medium(kind: RecordKind, extension: &str) -> bool {
    match kind {
        RecordKind::ImageText => matches!(
            extension,
            "jpg" | "jpeg" | "jpe" | "jfif" | "png" | "webp" | "gif" | "bmp" | "tif" | "tiff" | "avif" | "heic"
        ),
        RecordKind::VideoText => {
            matches!(extension, "mp4" | "m4v" | "mov" | "mkv" | "webm" | "avi" | "mpg" | "mpeg" | "ts" | "flv" | "wmv")
        }
        RecordKind::AudioText => {
            matches!(
                extension,
                "wav" | "wave" | "flac" | "mp3" | "ogg" | "oga" | "opus" | "m4a" | "aac" | "aiff" | "wma"
            )
        }
    }
}

/// Kinds of text file that lie beside a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    fn read(self, bytes: &[u8], what: &str) -> Result<Wording, crate::text::Refusal> {
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
