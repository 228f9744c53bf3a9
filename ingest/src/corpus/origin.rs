//! Where a corpus's own files lie: in a folder of this machine, or in object storage.
//!
//! In: paths of the config, with `*` and `?`. Out: [`Input`]s by rising name, and each as a file of this machine, fetched
//! to a temporary one if it must be. Never: media (see `fetch`), `http://` tables or tars: a list on the web has no
//! length that can be trusted and no ranges.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use imp_schemas::store::{Store, StoreError};
use tempfile::NamedTempFile;

use super::{list_folder, no_such_path};
use crate::config::{CorpusConfig, IngestConfig};
use crate::error::IngestError;
use crate::text::matches_glob;

/// Bytes of one read from object storage.
const RANGE_BYTES: u64 = 32 << 20;

/// What a path of the config leads to.
pub(super) enum Origin {
    Folder(PathBuf),
    /// Files that a glob matches, or the one that is named.
    Files(Vec<Input>),
    /// Objects below a prefix.
    Bucket(Bucket),
}

/// A prefix of object storage.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    pub(super) store: Store,
    /// `s3://bucket/prefix`, without a slash at its end.
    pub(super) url: String,
}

/// A table or tar.
#[derive(Debug, Clone)]
pub(super) struct Input {
    /// Relative to the folder that no wildcard stands in.
    pub(super) name: String,
    pub(super) n_bytes: u64,
    /// Changes when the file does: its time of change, or its ETag.
    pub(super) stamp: String,
    at: At,
}

#[derive(Debug, Clone)]
enum At {
    File(PathBuf),
    Object { bucket: Bucket, key: String },
}

/// An [`Input`] as a file of this machine, for as long as this lives.
#[derive(Debug)]
pub(super) struct LocalFile {
    pub(super) path: PathBuf,
    pub(super) fetched: Option<NamedTempFile>,
}

impl Origin {
    /// Looks at `path`, a path of `corpus`.
    pub(super) fn of(
        config: &IngestConfig,
        corpus: &CorpusConfig,
        path: &str,
        is_file: fn(&str) -> bool,
    ) -> Result<Self, IngestError> {
        let missing = || no_such_path(config, corpus, path);
        let is_glob = path.contains(['*', '?']) && !path.starts_with("http");
        let Some(url) = config.resolve_url(path) else {
            if is_glob {
                return Ok(Self::Files(expand(&config.resolve(""), path)?)).and_then(|o| o.not_empty(missing));
            }
            let full = config.resolve(path);
            if full.is_dir() {
                return Ok(Self::Folder(full));
            }
            if !full.exists() {
                return Err(missing());
            }
            return Ok(Self::Files(vec![Input::local(name_of(path).to_owned(), full)?]));
        };
        if !url.starts_with("s3://") {
            return Err(IngestError::Config {
                key: format!("ingest.corpus.{}.path", corpus.name),
                found: format!("`{url}`"),
                rule: "must lie on this machine or in `s3://`; download the list first: its media may be on the web"
                    .to_owned(),
            });
        }
        if is_glob {
            let n_fixed = url.split('/').take_while(|part| !part.contains(['*', '?'])).count();
            let parts: Vec<&str> = url.split('/').collect();
            let bucket = Bucket::open(config, &parts[..n_fixed].join("/"))?;
            return Ok(Self::Files(bucket.matching(&parts[n_fixed..])?)).and_then(|o| o.not_empty(missing));
        }
        if !is_file(&url) {
            return Ok(Self::Bucket(Bucket::open(config, &url)?));
        }
        let (folder, name) = url.rsplit_once('/').unwrap_or(("", &url));
        let found = Bucket::open(config, folder)?.matching(&[name])?;
        Ok(Self::Files(found)).and_then(|o| o.not_empty(missing))
    }

    fn not_empty(self, missing: impl Fn() -> IngestError) -> Result<Self, IngestError> {
        match self {
            Self::Files(files) if files.is_empty() => Err(missing()),
            other => Ok(other),
        }
    }
}

impl Bucket {
    pub(super) fn open(config: &IngestConfig, url: &str) -> Result<Self, StoreError> {
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { store: config.open_store(&url)?, url })
    }

    /// Objects whose keys match `glob` part by part, by rising name.
    fn matching(&self, glob: &[&str]) -> Result<Vec<Input>, IngestError> {
        // A name without a wildcard is looked for where it would stand, not in all that lies beside it.
        if let [name] = glob
            && !name.contains(['*', '?'])
        {
            let one = self.store.look(name)?;
            return Ok(one.into_iter().map(|(listed, stamp)| self.input(listed.key, listed.n_bytes, stamp)).collect());
        }
        let mut found = Vec::new();
        self.store.visit("", &mut |listed, stamp| {
            let parts: Vec<&str> = listed.key.split('/').collect();
            if parts.len() == glob.len() && parts.iter().zip(glob).all(|(part, glob)| matches_glob(glob, part)) {
                found.push(self.input(listed.key, listed.n_bytes, stamp));
            }
            true
        })?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn input(&self, key: String, n_bytes: u64, stamp: String) -> Input {
        Input { name: key.clone(), n_bytes, stamp, at: At::Object { bucket: self.clone(), key } }
    }
}

impl Input {
    fn local(name: String, path: PathBuf) -> Result<Self, IngestError> {
        let meta = std::fs::metadata(&path).map_err(|source| IngestError::Read { path: path.clone(), source })?;
        Ok(Self { name, n_bytes: meta.len(), stamp: stamp_of(&meta), at: At::File(path) })
    }

    /// The file itself, or its copy.
    pub(super) fn fetch(&self) -> Result<LocalFile, IngestError> {
        let (bucket, key) = match &self.at {
            At::File(path) => return Ok(LocalFile { path: path.clone(), fetched: None }),
            At::Object { bucket, key } => (bucket, key),
        };
        let failed = |source| IngestError::Read { path: std::env::temp_dir(), source };
        let mut file = NamedTempFile::new().map_err(failed)?;
        let mut at = 0;
        while at < self.n_bytes {
            let end = self.n_bytes.min(at + RANGE_BYTES);
            file.write_all(&bucket.store.get_range(key, at..end)?).map_err(failed)?;
            at = end;
        }
        file.flush().map_err(failed)?;
        Ok(LocalFile { path: file.path().to_owned(), fetched: Some(file) })
    }

    /// The folder it lies in: what its relative paths are relative to.
    pub(super) fn folder(&self) -> Folder {
        match &self.at {
            At::File(path) => Folder::Local(path.parent().unwrap_or(Path::new(".")).to_owned()),
            At::Object { bucket, key } => match key.rsplit_once('/') {
                Some((folder, _)) => Folder::Url(format!("{}/{folder}", bucket.url)),
                None => Folder::Url(bucket.url.clone()),
            },
        }
    }

    /// The first or last bytes, at most `n` of them.
    pub(super) fn ends(&self, n: u64) -> Result<(Vec<u8>, Vec<u8>), IngestError> {
        let n = n.min(self.n_bytes);
        let last = self.n_bytes - n..self.n_bytes;
        match &self.at {
            At::File(path) => {
                let failed = |source| IngestError::Read { path: path.clone(), source };
                Ok((local_range(path, 0..n).map_err(failed)?, local_range(path, last).map_err(failed)?))
            }
            At::Object { .. } if n == 0 => Ok((Vec::new(), Vec::new())),
            At::Object { bucket, key } => {
                let both = bucket.store.get_ranges(key, &[0..n, last])?;
                Ok((both[0].to_vec(), both[1].to_vec()))
            }
        }
    }
}

/// A folder of this machine, or of object storage or the web.
#[derive(Debug, Clone)]
pub(super) enum Folder {
    Local(PathBuf),
    Url(String),
}

/// Changes when a file of this machine does.
pub(super) fn stamp_of(meta: &std::fs::Metadata) -> String {
    let changed = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    changed.map_or_else(String::new, |since| format!("{}.{:09}", since.as_secs(), since.subsec_nanos()))
}

/// The name of `path` in its folder.
pub(super) fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Bytes of a file of this machine.
pub(super) fn local_range(path: &Path, range: std::ops::Range<u64>) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(range.start))?;
    let mut bytes = Vec::new();
    file.take(range.end - range.start).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Files below `root` that `glob` matches, by rising name.
fn expand(root: &Path, glob: &str) -> Result<Vec<Input>, IngestError> {
    let parts: Vec<&str> = glob.split('/').collect();
    let n_fixed = parts.iter().take_while(|part| !part.contains(['*', '?'])).count();
    // An absolute glob begins with an empty part.
    let base = if n_fixed > 0 && parts[0].is_empty() {
        PathBuf::from(format!("{}/", parts[..n_fixed].join("/")))
    } else {
        root.join(parts[..n_fixed].join("/"))
    };
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
    found.into_iter().map(|(name, path)| Input::local(name, path)).collect()
}
