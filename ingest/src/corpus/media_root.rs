//! Where a table's paths lead: a folder, a URL, or the members of a tar.
//!
//! In: paths of rows, relative. Out: the place of each medium, or why it cannot be had. The members of a tar are an index in
//! memory: the one thing of ingest that grows with a corpus (some 200 bytes a member).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use imp_schemas::reject::RejectReason;
use tempfile::NamedTempFile;

use super::origin::{Folder, LocalFile, stamp_of};
use super::tar_file::{Content, Want, read_tar};
use super::{Depth, Place, folder, is_litter};
use crate::error::IngestError;
use crate::text::Refusal;

#[derive(Debug)]
pub(super) enum MediaRoot {
    Folder {
        root: PathBuf,
        real_root: PathBuf,
    },
    /// `s3://…` or `https://…`, without a slash at its end.
    Url(String),
    Tar {
        name: String,
        stamp: String,
        members: Members,
        broken: Option<String>,
        _alive: Vec<NamedTempFile>,
    },
}

/// Members by path, and by file name for rows whose paths lack the tar's first folders.
#[derive(Debug, Default)]
pub(super) struct Members {
    by_path: HashMap<String, Result<Place, Refusal>>,
    by_name: HashMap<String, Vec<String>>,
}

impl MediaRoot {
    /// All that lies in a folder.
    pub(super) fn folder(folder: Folder) -> Result<Self, IngestError> {
        match folder {
            Folder::Url(url) => Ok(Self::Url(url)),
            Folder::Local(root) => {
                let unreadable = |source| IngestError::Read { path: root.clone(), source };
                let real_root = std::fs::canonicalize(&root).map_err(unreadable)?;
                Ok(Self::Folder { root, real_root })
            }
        }
    }

    /// The members of the tar `name`; its media keep their places as long as this lives.
    pub(super) fn tar(name: String, stamp: String, tar: LocalFile, max_media_bytes: u64) -> Result<Self, IngestError> {
        let path = tar.path.as_path();
        let mut members = Members::default();
        let wants = |member: &str| if is_litter(member) { Want::Nothing } else { Want::Medium };
        let end = read_tar(path, max_media_bytes, Depth::Media, &wants, &mut |member| {
            let content = member.content.map(|content| match content {
                Content::Medium(locator) => locator,
                Content::Text(_) => Place::nowhere(),
            });
            let name = member.path.rsplit('/').next().unwrap_or(&member.path).to_owned();
            // Of two members of one path the first stands, as in the WebDataset reader.
            members.by_path.entry(member.path.clone()).or_insert_with(|| {
                members.by_name.entry(name).or_default().push(member.path);
                content
            });
        })?;
        let broken = end.broken.map(|(row, (_, detail))| format!("; the tar is damaged at member {row}: {detail}"));
        let alive = end.spool.into_iter().chain(tar.fetched).collect();
        Ok(Self::Tar { name, stamp, members, broken, _alive: alive })
    }

    /// The medium at `path`, which is safe and relative.
    pub(super) fn locate(&self, path: &str) -> Result<Place, Refusal> {
        match self {
            Self::Folder { root, real_root } => {
                let full = root.join(path);
                let (len, _) =
                    folder::inside(&full, real_root).map_err(|(reason, why)| (reason, format!("`{path}`: {why}")))?;
                Ok(Place::File { file: Arc::from(full), offset: 0, len })
            }
            Self::Url(url) => Ok(Place::Url { url: Arc::from(format!("{url}/{}", url_path(path)?)) }),
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

    /// Changes when the medium at `path` does, as far as that can be seen without reading it.
    pub(super) fn stamp(&self, path: &str) -> String {
        match self {
            Self::Folder { root, .. } => match std::fs::metadata(root.join(path)) {
                Ok(meta) => format!("{} {}", meta.len(), stamp_of(&meta)),
                Err(_) => "missing".to_owned(),
            },
            Self::Url(url) => url.clone(),
            Self::Tar { name, stamp, .. } => format!("{name} {stamp}"),
        }
    }
}

/// `path`, which is safe as the path of a file, if it is so in a URL too: there `%2e` is a dot, and a tab nothing at all.
fn url_path(path: &str) -> Result<&str, Refusal> {
    if path.contains(char::is_control) {
        return Err((RejectReason::MalformedRow, format!("`{}` holds a control character", path.escape_debug())));
    }
    let is_up = |part: &str| part.len() <= 6 && part.to_ascii_lowercase().replace("%2e", ".") == "..";
    if path.split('/').any(is_up) {
        return Err((RejectReason::UnsafePath, format!("`{path}` leads out of the corpus")));
    }
    Ok(path)
}
