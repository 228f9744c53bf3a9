//! A folder of media: `.txt` and `.json` of the same stem beside them, or one folder per class.
//!
//! In: a folder. Out: samples by stem; without any sidecar the folder of a medium is its label.
//! Never: follows a link out of the folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imp_schemas::reject::RejectReason;

use super::samples::Samples;
use super::{Found, Locator, MAX_SIDECAR_BYTES, Sidecar, is_litter, is_medium, is_tar, list_folder};
use crate::config::{CorpusConfig, IngestConfig};
use crate::error::IngestError;
use crate::text::Refusal;

pub(super) fn read(config: &IngestConfig, corpus: &CorpusConfig, root: &Path) -> Result<Found, IngestError> {
    let unreadable = |source| IngestError::Read { path: root.to_owned(), source };
    let real_root = std::fs::canonicalize(root).map_err(unreadable)?;
    let class_names = corpus.class_names.as_ref().map(|path| config.resolve(path));
    let mut samples = Samples::default();
    let mut n_tars = 0;
    for (row, relative) in walk(root)?.into_iter().enumerate() {
        let (row, path) = (row as u64, root.join(&relative));
        let name = relative.rsplit('/').next().unwrap_or(&relative);
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        let extension = extension.to_ascii_lowercase();
        let key = format!("{}{stem}", &relative[..relative.len() - name.len()]);
        let sidecar = Sidecar::of(&extension).filter(|_| !is_note(stem) && class_names.as_ref() != Some(&path));
        if !is_medium(corpus.kind, &extension) && sidecar.is_none() {
            n_tars += u64::from(is_tar(name));
            samples.n_ignored += 1;
            continue;
        }
        let len = match inside(&path, &real_root) {
            Ok(len) => len,
            Err(refusal) => {
                samples.refuse(&key, &relative, row, refusal);
                continue;
            }
        };
        match sidecar {
            None => {
                let file = Arc::from(path);
                samples.medium(&key, relative, row, Locator { file, offset: 0, len });
            }
            Some(kind) => {
                let read = read_small(&path, len).and_then(|bytes| kind.read(&bytes, &relative));
                samples.text(&key, &relative, row, kind, read);
            }
        }
    }
    let class_folders = corpus.class_folders.unwrap_or(!samples.has_sidecars());
    let found = if class_folders { drop_lone_texts(samples) } else { samples.finish(false) };
    if found.candidates.is_empty() && n_tars > 0 {
        let detail = format!(
            "`{}` holds {n_tars} tars and no loose media; give `path = \"{}/*.tar\"`",
            corpus.path, corpus.path
        );
        return Err(IngestError::NoRecords { corpus: corpus.name.clone(), detail });
    }
    Ok(found)
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

/// Relative paths of all files, sorted folder by folder; litter is left out.
fn walk(root: &Path) -> Result<Vec<String>, IngestError> {
    let mut files = Vec::new();
    let mut folders: Vec<(String, PathBuf)> = vec![(String::new(), root.to_owned())];
    while let Some((prefix, folder)) = folders.pop() {
        for name in list_folder(&folder)?.into_iter().filter(|name| !is_litter(name)) {
            let path = folder.join(&name);
            // A link to a folder is not descended into: it may lead out, or round in a circle.
            if path.is_dir() && !path.is_symlink() {
                folders.push((format!("{prefix}{name}/"), path));
            } else {
                files.push(format!("{prefix}{name}"));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Length of the file at `path` if it is one and lies within `real_root`.
pub(super) fn inside(path: &Path, real_root: &Path) -> Result<u64, Refusal> {
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
    Ok(meta.len())
}

fn read_small(path: &Path, len: u64) -> Result<Vec<u8>, Refusal> {
    if len > MAX_SIDECAR_BYTES {
        let detail = format!("its caption file has {len} bytes, the limit is {MAX_SIDECAR_BYTES}");
        return Err((RejectReason::TooLarge, detail));
    }
    std::fs::read(path).map_err(|e| (RejectReason::Unreadable, format!("its caption file: {e}")))
}
