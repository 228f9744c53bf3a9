//! A folder of media, here or in object storage: `.txt` and `.json` of the same stem beside them, or one folder per class.
//!
//! In: a folder. Out: samples by stem; without any sidecar the folder of a medium is its label. The listing goes to a
//! spool: in memory are the names of one folder of this machine, or of one page of a store's listing.
//! Never: follows a link out of the folder.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imp_schemas::reject::RejectReason;

use super::origin::{Bucket, stamp_of};
use super::samples::Samples;
use super::spool::{OpenSpool, Piece, Spool};
use super::{Found, MAX_SIDECAR_BYTES, Place, Sidecar, is_litter, is_medium, is_parquet, is_tar, list_folder};
use crate::config::{CorpusConfig, IngestConfig};
use crate::error::IngestError;
use crate::text::Refusal;

/// All files of a folder, in units.
#[derive(Debug)]
pub(super) struct FolderListing {
    root: Root,
    pub(super) spool: Spool,
    /// The folder of a medium is its label.
    class_folders: bool,
    n_ignored: u64,
}

#[derive(Debug)]
enum Root {
    Local(PathBuf),
    Url(String),
}

impl FolderListing {
    /// Lists the folder at `root` and reads its sidecars.
    pub(super) fn local(config: &IngestConfig, corpus: &CorpusConfig, root: &Path) -> Result<Self, IngestError> {
        let unreadable = |source| IngestError::Read { path: root.to_owned(), source };
        let real_root = std::fs::canonicalize(root).map_err(unreadable)?;
        let class_names = corpus.class_names.as_ref().map(|path| config.resolve(path));
        let mut lister = Lister::new(corpus)?;
        walk(root, &mut |relative| {
            let path = root.join(&relative);
            let is_class_names = class_names.as_ref() == Some(&path);
            let find = || inside(&path, &real_root);
            lister.file(&relative, is_class_names, find, |len| read_small(&path, len))
        })?;
        lister.close(config, Root::Local(root.to_owned()))
    }

    /// Lists the objects below a prefix and reads its sidecars.
    pub(super) fn bucket(config: &IngestConfig, corpus: &CorpusConfig, bucket: &Bucket) -> Result<Self, IngestError> {
        let class_names = corpus.class_names.as_ref().and_then(|path| config.resolve_url(path));
        let mut lister = Lister::new(corpus)?;
        let mut result = Ok(());
        bucket.store.visit("", &mut |listed, stamp| {
            let key = listed.key;
            // A key that ends with a slash stands for a folder in consoles; it is no file.
            if is_litter(&key) || key.is_empty() || key.ends_with('/') {
                return true;
            }
            let is_class_names = class_names.as_deref() == Some(&format!("{}/{key}", bucket.url));
            let read = |len| {
                small(len)?;
                let unreadable = |e| (RejectReason::Unreadable, format!("its caption file: {e}"));
                bucket.store.get(&key).map(Vec::from).map_err(unreadable)
            };
            result = lister.file(&key, is_class_names, || Ok((listed.n_bytes, stamp)), read);
            result.is_ok()
        })?;
        result?;
        lister.close(config, Root::Url(bucket.url.clone()))
    }

    /// Changes when a file of the unit does.
    pub(super) fn digest(&self, unit: usize, into: &mut blake3::Hasher) -> Result<(), IngestError> {
        into.update(&[u8::from(self.class_folders)]);
        self.spool.read(unit, &mut |_, bytes| {
            into.update(bytes);
        })
    }

    pub(super) fn read(&self, unit: usize) -> Result<Found, IngestError> {
        let mut samples = Samples::default();
        if unit == 0 {
            samples.n_ignored = self.n_ignored;
        }
        // Without sidecars nothing says that two files of one stem are one record: the second goes by its whole name.
        let mut stems = HashSet::new();
        self.spool.read(unit, &mut |piece, _| match piece {
            Piece::Medium { key, source, row, len, .. } => {
                let is_other = self.class_folders && !stems.insert(key.clone());
                let key = if is_other { source.clone() } else { key };
                let place = match &self.root {
                    Root::Local(root) => Place::File { file: Arc::from(root.join(&source)), offset: 0, len },
                    Root::Url(url) => Place::Url { url: Arc::from(format!("{url}/{source}")) },
                };
                samples.medium(&key, source, row, place);
            }
            Piece::Words { key, source, row, kind, read } => samples.text(&key, &source, row, kind, read),
            Piece::Refused { key, source, row, refusal } => samples.refuse(&key, &source, row, refusal),
            Piece::Row { .. } | Piece::Lost { .. } => {}
        })?;
        Ok(if self.class_folders { drop_lone_texts(samples) } else { samples.finish(false) })
    }
}

/// Turns files, as they come, into pieces.
struct Lister<'a> {
    corpus: &'a CorpusConfig,
    spool: OpenSpool,
    n_media: u64,
    n_words: u64,
    n_tars: u64,
    n_parquet: u64,
    n_ignored: u64,
    /// Stems that the files to come may still belong to: files come by rising name, so those of one stem are near.
    stems: Vec<Stem>,
    /// A medium has words beside it.
    any_sidecars: bool,
}

struct Stem {
    key: String,
    has_medium: bool,
    has_words: bool,
}

impl<'a> Lister<'a> {
    fn new(corpus: &'a CorpusConfig) -> Result<Self, IngestError> {
        let spool = OpenSpool::new()?;
        let (n_media, n_words, n_tars, n_parquet, n_ignored) = (0, 0, 0, 0, 0);
        let (stems, any_sidecars) = (Vec::new(), false);
        Ok(Self { corpus, spool, n_media, n_words, n_tars, n_parquet, n_ignored, stems, any_sidecars })
    }

    fn file(
        &mut self,
        relative: &str,
        is_class_names: bool,
        find: impl FnOnce() -> Result<(u64, String), Refusal>,
        read: impl FnOnce(u64) -> Result<Vec<u8>, Refusal>,
    ) -> Result<(), IngestError> {
        let name = relative.rsplit('/').next().unwrap_or(relative);
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        let extension = extension.to_ascii_lowercase();
        let key = format!("{}{stem}", &relative[..relative.len() - name.len()]);
        let sidecar = Sidecar::of(&extension).filter(|_| !is_note(stem) && !is_class_names);
        if !is_medium(self.corpus.kind, &extension) && sidecar.is_none() {
            self.n_tars += u64::from(is_tar(name));
            self.n_parquet += u64::from(is_parquet(name));
            self.n_ignored += 1;
            return Ok(());
        }
        // A file of a folder has no number that another file would not change.
        let (source, row) = (relative.to_owned(), 0);
        let found = find();
        self.note(&key, sidecar.is_none() && found.is_ok());
        let piece = match (found, sidecar) {
            (Err(refusal), _) => Piece::Refused { key: key.clone(), source, row, refusal },
            (Ok((len, stamp)), None) => {
                self.n_media += 1;
                Piece::Medium { key: key.clone(), source, row, len, stamp }
            }
            (Ok((len, _)), Some(kind)) => {
                self.n_words += 1;
                let read = read(len).and_then(|bytes| kind.read(&bytes, relative));
                Piece::Words { key: key.clone(), source, row, kind, read }
            }
        };
        self.spool.push(&key, &piece)
    }

    /// Remembers whether a stem has both a medium and words.
    fn note(&mut self, key: &str, is_medium: bool) {
        let belongs =
            |stem: &Stem| key.strip_prefix(&stem.key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.stems.retain(belongs);
        let at = match self.stems.iter().position(|stem| stem.key == key) {
            Some(at) => at,
            None => {
                self.stems.push(Stem { key: key.to_owned(), has_medium: false, has_words: false });
                self.stems.len() - 1
            }
        };
        let stem = &mut self.stems[at];
        stem.has_medium |= is_medium;
        stem.has_words |= !is_medium;
        self.any_sidecars |= stem.has_medium && stem.has_words;
    }

    fn close(self, config: &IngestConfig, root: Root) -> Result<FolderListing, IngestError> {
        let Self { corpus, spool, n_media, n_words, n_tars, n_parquet, n_ignored, any_sidecars, .. } = self;
        for (n_files, what, glob) in [(n_tars, "tars", "*.tar"), (n_parquet, "Parquet files", "*.parquet")] {
            if n_media == 0 && n_files > 0 {
                let path = corpus.path.trim_end_matches('/');
                let detail =
                    format!("`{path}` holds {n_files} {what} and no loose media; give `path = \"{path}/{glob}\"`");
                return Err(IngestError::NoRecords { corpus: corpus.name.clone(), detail });
            }
        }
        let spool = spool.close(n_media.max(n_words), config.unit_records)?;
        let class_folders = corpus.class_folders.unwrap_or(!any_sidecars);
        Ok(FolderListing { root, spool, class_folders, n_ignored })
    }
}

/// In class folders a text without a medium is a note about the corpus, not a caption that lost its medium.
fn drop_lone_texts(samples: Samples) -> Found {
    let mut found = samples.finish(true);
    let n_before = found.rejects.len();
    found.rejects.retain(|r| r.reason != RejectReason::MissingMedium);
    found.n_ignored += (n_before - found.rejects.len()) as u64;
    found
}

/// Files that describe a corpus rather than a record.
fn is_note(stem: &str) -> bool {
    ["readme", "license", "licence", "copying", "citation", "notice"].iter().any(|note| stem.eq_ignore_ascii_case(note))
}

/// Hands the relative paths of all files to `take`, folder by folder, each by rising name; litter is left out.
fn walk(root: &Path, take: &mut dyn FnMut(String) -> Result<(), IngestError>) -> Result<(), IngestError> {
    let mut folders: Vec<(String, PathBuf)> = vec![(String::new(), root.to_owned())];
    while let Some((prefix, folder)) = folders.pop() {
        let n_before = folders.len();
        for name in list_folder(&folder)?.into_iter().filter(|name| !is_litter(name)) {
            let path = folder.join(&name);
            // A link to a folder is not descended into: it may lead out, or round in a circle.
            if path.is_dir() && !path.is_symlink() {
                folders.push((format!("{prefix}{name}/"), path));
            } else {
                take(format!("{prefix}{name}"))?;
            }
        }
        folders[n_before..].reverse();
    }
    Ok(())
}

/// Length and stamp of the file at `path` if it is one and lies within `real_root`.
pub(super) fn inside(path: &Path, real_root: &Path) -> Result<(u64, String), Refusal> {
    let unreadable = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => (RejectReason::MissingFile, "there is no such file".to_owned()),
        _ => (RejectReason::Unreadable, e.to_string()),
    };
    let real = std::fs::canonicalize(path).map_err(unreadable)?;
    if !real.starts_with(real_root) {
        return Err((RejectReason::UnsafePath, "a link that leads out of the corpus".to_owned()));
    }
    let meta = std::fs::metadata(&real).map_err(unreadable)?;
    if !meta.is_file() {
        return Err((RejectReason::Unreadable, "no regular file".to_owned()));
    }
    Ok((meta.len(), stamp_of(&meta)))
}

fn read_small(path: &Path, len: u64) -> Result<Vec<u8>, Refusal> {
    small(len)?;
    std::fs::read(path).map_err(|e| (RejectReason::Unreadable, format!("its caption file: {e}")))
}

fn small(len: u64) -> Result<(), Refusal> {
    if len > MAX_SIDECAR_BYTES {
        let detail = format!("its caption file has {len} bytes, the limit is {MAX_SIDECAR_BYTES}");
        return Err((RejectReason::TooLarge, detail));
    }
    Ok(())
}
