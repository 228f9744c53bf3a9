//! Where a table's paths lead: a folder, or the members of a tar.
//!
//! In: paths of rows, relative. Out: the place of each medium, or why it cannot be had.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imp_schemas::reject::RejectReason;
use tempfile::NamedTempFile;

use super::tar_file::{Content, Want, read_tar};
use super::{Locator, folder, is_litter};
use crate::error::IngestError;
use crate::text::Refusal;

#[derive(Debug)]
pub(super) enum MediaRoot {
    Folder { root: PathBuf, real_root: PathBuf },
    Tar { name: String, members: Members, spool: Option<NamedTempFile>, broken: Option<String> },
}

/// Members by path, and by file name for rows whose paths lack the tar's first folders.
#[derive(Debug, Default)]
pub(super) struct Members {
    by_path: HashMap<String, Result<Locator, Refusal>>,
    by_name: HashMap<String, Vec<String>>,
}

impl MediaRoot {
    pub(super) fn open(path: &Path, max_media_bytes: u64) -> Result<Self, IngestError> {
        if path.is_dir() {
            let unreadable = |source| IngestError::Read { path: path.to_owned(), source };
            let real_root = std::fs::canonicalize(path).map_err(unreadable)?;
            return Ok(Self::Folder { root: path.to_owned(), real_root });
        }
        let mut members = Members::default();
        let wants = |member: &str| if is_litter(member) { Want::Nothing } else { Want::Medium };
        let end = read_tar(path, max_media_bytes, &wants, &mut |member| {
            let content = member.content.map(|content| match content {
                Content::Medium(locator) => locator,
                Content::Text(_) => Locator { file: Arc::from(path), offset: 0, len: 0 },
            });
            let name = member.path.rsplit('/').next().unwrap_or(&member.path).to_owned();
            // Of two members of one path the first stands, as in the WebDataset reader.
            members.by_path.entry(member.path.clone()).or_insert_with(|| {
                members.by_name.entry(name).or_default().push(member.path);
                content
            });
        })?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let broken = end.broken.map(|(row, (_, detail))| format!("; the tar is damaged at member {row}: {detail}"));
        Ok(Self::Tar { name, members, spool: end.spool, broken })
    }

    /// The medium at `path`, which is safe and relative.
    pub(super) fn locate(&self, path: &str) -> Result<Locator, Refusal> {
        match self {
            Self::Folder { root, real_root } => {
                let full = root.join(path);
                let len =
                    folder::inside(&full, real_root).map_err(|(reason, why)| (reason, format!("`{path}`: {why}")))?;
                Ok(Locator { file: Arc::from(full), offset: 0, len })
            }
            Self::Tar { name, members, broken, .. } => {
                let missing = |why: String| (RejectReason::MissingFile, why);
                let member = match members.by_path.get(path) {
                    Some(member) => member,
                    None => {
                        let file_name = path.rsplit('/').next().unwrap_or(path);
                        let ending = format!("/{path}");
                        let all = members.by_name.get(file_name).map_or(&[][..], Vec::as_slice);
                        let near: Vec<&String> = all.iter().filter(|member| member.ends_with(&ending)).collect();
                        match near[..] {
                            [one] => &members.by_path[one],
                            [] => {
                                let damage = broken.as_deref().unwrap_or_default();
                                return Err(missing(format!("`{name}` has no member `{path}`{damage}")));
                            }
                            [one, two, ..] => {
                                return Err(missing(format!("`{path}` may be `{one}` or `{two}` of `{name}`")));
                            }
                        }
                    }
                };
                member.clone()
            }
        }
    }

    pub(super) fn into_spool(self) -> Option<NamedTempFile> {
        match self {
            Self::Folder { .. } => None,
            Self::Tar { spool, .. } => spool,
        }
    }
}
