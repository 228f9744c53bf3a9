//! The one door to shards, manifests and checkpoints: local folders and `s3://` through `object_store`, blocking.
//!
//! In: keys relative to the root, `a/b.parquet`. Out: bytes. Never: a half-written object (local files are renamed into
//! place, S3 puts are atomic), an overwrite of something else's object, async code at the caller.
//! Credentials, endpoint and region of S3 come from the usual `AWS_*` variables, which object_store reads.

pub mod disk_cache;
pub mod ranges;
pub mod sealed;

use std::future::Future;
use std::io::{Read, Seek, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path as StorePath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart};
use url::Url;

use crate::manifest::{Manifest, ManifestError, RejectsEntry};
use crate::media_index::{MediaPlace, media_places_of};
use crate::parquet_claims::{batches, guarded, open_rows};
use crate::reject::{Reject, rejects_of};
use crate::shard::{Digest, manifest_key, media_index_key, rejects_key, tombstones_key};
use crate::tombstone::{Hidden, Tombstone, tombstones_of};
use sealed::Reading;

/// A root under which a run's objects lie. Cheap to clone; one small pool of I/O threads serves all clones.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    root: StorePath,
    url: String,
    runtime: Arc<tokio::runtime::Runtime>,
    is_remote: bool,
    reading: Arc<Reading>,
}

/// A read or write that failed after object_store's own retries.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("`{url}` is no store; give a folder or s3://bucket/prefix")]
    BadUrl { url: String, detail: String },
    #[error("cannot create folder `{path}`")]
    CreateFolder { path: String, source: std::io::Error },
    #[error("cannot start the store's I/O threads")]
    Runtime { source: std::io::Error },
    #[error("`{url}/{key}` does not exist")]
    NotFound { url: String, key: String },
    #[error("cannot read `{url}/{key}`{}", range.as_ref().map_or(String::new(), |r| format!(", bytes {}..{}", r.start, r.end)))]
    Read { url: String, key: String, range: Option<Range<u64>>, source: object_store::Error },
    #[error(
        "`{url}/{key}` is not the object that the manifest lists: its {what} is {found}, wanted {wanted}; \
         objects are never written over with others, check the store with imp-shards"
    )]
    OtherObject { url: String, key: String, what: &'static str, found: String, wanted: String },
    #[error("cannot write `{url}/{key}`")]
    Write { url: String, key: String, source: object_store::Error },
    #[error("cannot list `{url}/{prefix}`")]
    List { url: String, prefix: String, source: object_store::Error },
    #[error("corpus `{corpus}` has no manifest in `{url}`; run imp-ingest first")]
    NoManifest { url: String, corpus: String },
    #[error("table `{url}/{key}` is not one of this build: {detail}; check the store with imp-shards")]
    Table { url: String, key: String, detail: String },
    #[error("cannot read `{path}` to write it to the store")]
    ReadFile { path: String, source: std::io::Error },
    #[error("cannot keep `{url}/{key}` in a temporary file")]
    TemporaryFile { url: String, key: String, source: std::io::Error },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Bytes of a part of a large object, which [`Store::put_file`] sends in parts; S3 wants at least 5 MiB.
pub const PART_BYTES: usize = 8 << 20;
/// Parts that are sent at once.
const PARTS_UNDER_WAY: usize = 2;

/// Answers to one creation that may be lost before it is an error.
const MAX_LOST: u32 = 5;

/// Whether the request may have been done although its answer never came.
fn is_lost(error: &object_store::Error) -> bool {
    use object_store::client::{HttpError, HttpErrorKind};
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return matches!(error.kind(), HttpErrorKind::Interrupted | HttpErrorKind::Timeout);
        }
        cause = error.source();
    }
    false
}

/// An object's ETag, or else its time of change.
fn stamp_of(meta: &ObjectMeta) -> String {
    meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_rfc3339())
}

/// Reads until `buffer` is full or the file ends; gives the number of bytes.
fn read_full(file: &mut std::fs::File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match file.read(&mut buffer[n..]) {
            Ok(0) => break,
            Ok(read) => n += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the root.
    pub key: String,
    pub n_bytes: u64,
}

/// A snapshot of a corpus, and which one it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// From 1.
    pub version: u64,
    pub digest: Digest,
    pub manifest: Manifest,
    /// Rows of its shards that it hides.
    pub hidden: Hidden,
}

impl Store {
    /// Opens `url`: a path (created if absent) or `s3://bucket/prefix`. S3 is reached as the `AWS_*` variables say.
    ///
    /// # Errors
    /// The text is no store's address, or the folder cannot be made.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_with(url, &Self::options_of_environment())
    }

    /// The `AWS_*` variables as options of [`Store::open_with`].
    pub fn options_of_environment() -> Vec<(String, String)> {
        #[expect(
            clippy::disallowed_methods,
            reason = "credentials belong in no config file; this is the one place that reads them"
        )]
        let variables = std::env::vars();
        variables
            .filter(|(name, _)| name.starts_with("AWS_"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect()
    }

    /// As [`Store::open`], with object_store's own options (`aws_endpoint`, `aws_access_key_id`, …) in place of variables.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(url: &str, options: &[(String, String)]) -> Result<Self, StoreError> {
        let bad = |detail: String| StoreError::BadUrl { url: url.to_owned(), detail };
        let (parsed, options) = if url.contains("://") {
            (Url::parse(url).map_err(|e| bad(e.to_string()))?, options.to_vec())
        } else {
            let create = |source| StoreError::CreateFolder { path: url.to_owned(), source };
            std::fs::create_dir_all(url).map_err(create)?;
            let folder = std::fs::canonicalize(url).map_err(create)?;
            let parsed = Url::from_directory_path(folder).map_err(|()| bad("not an absolute path".to_owned()))?;
            (parsed, Vec::new())
        };
        let (inner, root) = object_store::parse_url_opts(&parsed, options).map_err(|e| bad(e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("imp-store")
            .enable_all()
            .build()
            .map_err(|source| StoreError::Runtime { source })?;
        let url = url.trim_end_matches('/').to_owned();
        let (inner, runtime) = (Arc::from(inner), Arc::new(runtime));
        let is_remote = parsed.scheme() != "file";
        Ok(Self { inner, root, url, runtime, is_remote, reading: Arc::default() })
    }

    /// The address it was opened with.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A whole object.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or the store failed.
    pub fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let path = self.path(key);
        let read = async { self.inner.get(&path).await?.bytes().await };
        self.wait(read).map_err(|source| self.read_error(key, None, source))
    }

    /// A whole object as a file of this machine without a name; memory does not grow with the object.
    ///
    /// # Errors
    /// As [`Store::get`], or the disk is full.
    pub fn get_file(&self, key: &str) -> Result<std::fs::File, StoreError> {
        let full = |source| StoreError::TemporaryFile { url: self.url.clone(), key: key.to_owned(), source };
        let broken = |source| self.read_error(key, None, source);
        let mut file = tempfile::tempfile().map_err(full)?;
        let mut chunks = self.wait(self.inner.get(&self.path(key))).map_err(broken)?.into_stream();
        while let Some(chunk) = self.wait(chunks.try_next()).map_err(broken)? {
            file.write_all(&chunk).map_err(full)?;
        }
        file.rewind().map_err(full)?;
        Ok(file)
    }

    /// Bytes `range` of an object.
    ///
    /// # Errors
    /// As [`Store::get`]; a range past the end is an error.
    pub fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = self.path(key);
        let got = self.wait(self.inner.get_range(&path, range.clone()));
        let bytes = got.map_err(|source| self.read_error(key, Some(range.clone()), source))?;
        self.whole(key, range, bytes)
    }

    /// Several ranges of an object; neighbours are read together.
    ///
    /// # Errors
    /// As [`Store::get_range`].
    pub fn get_ranges(&self, key: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        let path = self.path(key);
        let all = self.wait(self.inner.get_ranges(&path, ranges));
        let all = all.map_err(|source| self.read_error(key, ranges.first().cloned(), source))?;
        ranges.iter().zip(all).map(|(range, bytes)| self.whole(key, range.clone(), bytes)).collect()
    }

    /// Writes an object, replacing one of the same key.
    ///
    /// # Errors
    /// The store failed.
    pub fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.put_mode(key, bytes, PutMode::Overwrite).map(|_| ())
    }

    /// Writes an object unless its key is taken; says whether these bytes stand there now, by this call or by an earlier one.
    ///
    /// # Errors
    /// The store failed for another reason than the key being taken.
    pub fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<bool, StoreError> {
        self.put_mode(key, bytes, PutMode::Create)
    }

    /// Writes the file at `path` as an object, a part at a time: memory does not grow with the file. For objects that are named
    /// by their content; of two writers either's bytes are right.
    ///
    /// # Errors
    /// The file cannot be read, or the store failed; then nothing of the object is there.
    pub fn put_file(&self, key: &str, path: &Path) -> Result<(), StoreError> {
        let unreadable = |source| StoreError::ReadFile { path: path.display().to_string(), source };
        let mut file = std::fs::File::open(path).map_err(unreadable)?;
        let n_bytes = file.metadata().map_err(unreadable)?.len();
        if n_bytes <= PART_BYTES as u64 {
            return self.put(key, std::fs::read(path).map_err(unreadable)?.into());
        }
        // The end of an upload whose answer is lost cannot be repeated: the upload is gone, and the object may stand. One of
        // the right size is it, for it is named by its content; else all of it is sent again.
        let mut n_lost = 0;
        loop {
            match self.put_parts(key, path, &mut file) {
                Ok(()) => return Ok(()),
                Err(_) if self.size(key).ok().flatten() == Some(n_bytes) => return Ok(()),
                Err(StoreError::Write { .. }) if n_lost < MAX_LOST => {
                    n_lost += 1;
                    file.rewind().map_err(unreadable)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn put_parts(&self, key: &str, path: &Path, file: &mut std::fs::File) -> Result<(), StoreError> {
        let unreadable = |source| StoreError::ReadFile { path: path.display().to_string(), source };
        let failed = |source| StoreError::Write { url: self.url.clone(), key: key.to_owned(), source };
        let upload = self.wait(self.inner.put_multipart(&self.path(key))).map_err(failed)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let mut part = vec![0; PART_BYTES];
        loop {
            let n = match read_full(file, &mut part) {
                Ok(n) => n,
                Err(source) => {
                    // The parts that are there already are not an object; what could not be read is the error to tell.
                    let _ = self.wait(upload.abort());
                    return Err(unreadable(source));
                }
            };
            if n == 0 {
                break;
            }
            let sent = self.wait(async {
                upload.wait_for_capacity(PARTS_UNDER_WAY).await?;
                upload.write(&part[..n]);
                Ok(())
            });
            sent.map_err(failed)?;
        }
        self.wait(upload.finish()).map(|_| ()).map_err(failed)
    }

    /// Size of an object, `None` if it does not exist.
    ///
    /// # Errors
    /// The store failed.
    pub fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.look(key)?.map(|(listed, _)| listed.n_bytes))
    }

    /// An object as [`Store::visit`] shows it, `None` if it does not exist.
    ///
    /// # Errors
    /// The store failed.
    pub fn look(&self, key: &str) -> Result<Option<(Listed, String)>, StoreError> {
        match self.wait(self.inner.head(&self.path(key))) {
            Ok(meta) => {
                let stamp = stamp_of(&meta);
                Ok(Some((Listed { key: key.to_owned(), n_bytes: meta.size }, stamp)))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.read_error(key, None, source)),
        }
    }

    /// Objects below `prefix` (a folder), by rising key.
    ///
    /// # Errors
    /// The store failed.
    pub fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let mut all = Vec::new();
        self.visit(prefix, &mut |listed, _| {
            all.push(listed);
            true
        })?;
        all.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }

    /// As [`Store::list`], without objects that were written less than `age` ago: a run that is not done may still want them.
    ///
    /// # Errors
    /// The store failed.
    pub fn list_older_than(&self, prefix: &str, age: Duration) -> Result<Vec<Listed>, StoreError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let newest = now.saturating_sub(age).as_millis();
        let mut old = Vec::new();
        self.visit_metas(prefix, &mut |listed, meta| {
            if u128::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0) <= newest {
                old.push(listed);
            }
            true
        })?;
        old.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(old)
    }

    /// Hands every object below `prefix` (a folder) to `take`, with its ETag or else its time of change, as the listing
    /// comes; for prefixes of any size. S3 lists by rising key, a local folder in no order. Ends when `take` says false.
    ///
    /// # Errors
    /// The store failed.
    pub fn visit(&self, prefix: &str, take: &mut dyn FnMut(Listed, String) -> bool) -> Result<(), StoreError> {
        self.visit_metas(prefix, &mut |listed, meta| take(listed, stamp_of(meta)))
    }

    /// Removes an object; removing what is not there is no error.
    ///
    /// # Errors
    /// The store failed.
    pub fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self.wait(self.inner.delete(&self.path(key))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::Write { url: self.url.clone(), key: key.to_owned(), source }),
        }
    }

    /// The newest snapshot of `corpus`, `None` if it has none.
    ///
    /// # Errors
    /// The store failed, or the manifest cannot be read by this build.
    pub fn newest_snapshot(&self, corpus: &str) -> Result<Option<Snapshot>, StoreError> {
        let newest = self.snapshot_versions(corpus)?.last().copied();
        newest.map(|version| self.snapshot(corpus, version)).transpose()
    }

    /// The newest snapshot of `corpus`.
    ///
    /// # Errors
    /// [`StoreError::NoManifest`] if it was never ingested; else as [`Store::newest_snapshot`].
    pub fn manifest(&self, corpus: &str) -> Result<Snapshot, StoreError> {
        let none = || StoreError::NoManifest { url: self.url.clone(), corpus: corpus.to_owned() };
        self.newest_snapshot(corpus)?.ok_or_else(none)
    }

    /// Snapshot `version` of `corpus`.
    ///
    /// # Errors
    /// It does not exist, the store failed, or this build cannot read it.
    pub fn snapshot(&self, corpus: &str, version: u64) -> Result<Snapshot, StoreError> {
        let key = manifest_key(corpus, version);
        let bytes = self.get(&key)?;
        let manifest = Manifest::from_bytes(&key, &bytes)?;
        let hidden = Hidden::of(&self.tombstones(&manifest)?);
        Ok(Snapshot { version, digest: Digest::of(&bytes), manifest, hidden })
    }

    /// Numbers of the snapshots of `corpus`, rising.
    ///
    /// # Errors
    /// The store failed.
    pub fn snapshot_versions(&self, corpus: &str) -> Result<Vec<u64>, StoreError> {
        let listed = self.list(&format!("{corpus}/manifests"))?;
        let number = |l: &Listed| l.key.rsplit('/').next()?.strip_suffix(".json")?.parse().ok();
        let mut versions: Vec<u64> = listed.iter().filter_map(number).collect();
        versions.sort_unstable();
        Ok(versions)
    }

    /// The rows that `manifest` hides; none if it has no table of them.
    ///
    /// # Errors
    /// The store failed, or the table is not what the manifest says.
    pub fn tombstones(&self, manifest: &Manifest) -> Result<Vec<Tombstone>, StoreError> {
        let Some(entry) = &manifest.tombstones else { return Ok(Vec::new()) };
        let key = tombstones_key(&manifest.corpus, &entry.digest);
        let rows = self.table(&key, tombstones_of)?;
        self.check_rows(&key, rows.len() as u64, entry.n_rows)?;
        Ok(rows)
    }

    /// The rows of one table of rejects of `corpus`.
    ///
    /// # Errors
    /// The store failed, or the table is not what `entry` says.
    pub fn rejects(&self, corpus: &str, entry: &RejectsEntry) -> Result<Vec<Reject>, StoreError> {
        let key = rejects_key(corpus, &entry.digest);
        let rows = self.table(&key, rejects_of)?;
        self.check_rows(&key, rows.len() as u64, entry.n_rows)?;
        Ok(rows)
    }

    /// Where the media of `manifest` lie, in the order of its shards and rows; `None` if it has no index.
    ///
    /// # Errors
    /// The store failed, or the table is not what the manifest says.
    pub fn media_places(&self, manifest: &Manifest) -> Result<Option<Vec<MediaPlace>>, StoreError> {
        let Some(entry) = &manifest.media_index else { return Ok(None) };
        let key = media_index_key(&manifest.corpus, &entry.digest);
        let places = self.table(&key, media_places_of)?;
        let in_shards = manifest.shards.iter().map(|shard| shard.n_rows).sum();
        self.check_rows(&key, places.len() as u64, entry.n_rows)?;
        self.check_rows(&key, places.len() as u64, in_shards)?;
        Ok(Some(places))
    }

    fn table<T>(&self, key: &str, rows_of: impl Fn(&RecordBatch) -> Option<Vec<T>>) -> Result<Vec<T>, StoreError> {
        let broken = |detail: String| StoreError::Table { url: self.url.clone(), key: key.to_owned(), detail };
        let bytes = self.get(key)?;
        let reader = guarded(|| open_rows(bytes)?.build());
        let mut rows = Vec::new();
        for batch in batches(reader.map_err(|e| broken(e.to_string()))?) {
            let batch = batch.map_err(|e| broken(e.to_string()))?;
            let wrong = || broken("columns or reasons that this build does not know".to_owned());
            rows.extend(rows_of(&batch).ok_or_else(wrong)?);
        }
        Ok(rows)
    }

    fn check_rows(&self, key: &str, found: u64, wanted: u64) -> Result<(), StoreError> {
        let detail = format!("it has {found} rows, the manifest says {wanted}");
        let broken = StoreError::Table { url: self.url.clone(), key: key.to_owned(), detail };
        if found == wanted { Ok(()) } else { Err(broken) }
    }

    /// Names of the corpora that have a manifest.
    ///
    /// # Errors
    /// The store failed.
    pub fn corpora(&self) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> = Vec::new();
        for listed in self.list("")? {
            if let [corpus, "manifests", _] = listed.key.split('/').collect::<Vec<_>>()[..]
                && names.last().is_none_or(|last| last != corpus)
            {
                names.push(corpus.to_owned());
            }
        }
        Ok(names)
    }

    fn visit_metas(&self, prefix: &str, take: &mut dyn FnMut(Listed, &ObjectMeta) -> bool) -> Result<(), StoreError> {
        let path = self.path(prefix);
        let n_root = self.root.parts().count();
        let failed = |source| StoreError::List { url: self.url.clone(), prefix: prefix.to_owned(), source };
        let mut listed = self.inner.list(Some(&path));
        // The listing waits while `take` runs, so that it may use the store itself.
        while let Some(meta) = self.wait(listed.try_next()).map_err(failed)? {
            let key: Vec<String> = meta.location.parts().skip(n_root).map(|p| p.as_ref().to_owned()).collect();
            if !take(Listed { key: key.join("/"), n_bytes: meta.size }, &meta) {
                break;
            }
        }
        Ok(())
    }

    fn put_mode(&self, key: &str, bytes: Bytes, mode: PutMode) -> Result<bool, StoreError> {
        let path = self.path(key);
        for n_lost in 0.. {
            let payload = PutPayload::from_bytes(bytes.clone());
            match self.wait(self.inner.put_opts(&path, payload, PutOptions::from(mode.clone()))) {
                Ok(_) => return Ok(true),
                // An answer may be lost on its way and the request repeated, here or by object_store, which does not tell: what
                // stands there then was written by us, if it is what we write.
                Err(object_store::Error::AlreadyExists { .. }) => return Ok(self.get(key)? == bytes),
                Err(source) if is_lost(&source) && n_lost < MAX_LOST => {}
                Err(source) => return Err(StoreError::Write { url: self.url.clone(), key: key.to_owned(), source }),
            }
        }
        Ok(false)
    }

    /// A body shorter than its range is a fault of the store, never data.
    fn whole(&self, key: &str, range: Range<u64>, bytes: Bytes) -> Result<Bytes, StoreError> {
        if bytes.len() as u64 == range.end - range.start {
            Ok(bytes)
        } else {
            Err(self.wrong_length(key, range, bytes.len()))
        }
    }

    fn wrong_length(&self, key: &str, range: Range<u64>, found: usize) -> StoreError {
        let detail = format!("got {found} bytes, wanted {}", range.end - range.start);
        let source = object_store::Error::Generic { store: "imp", source: detail.into() };
        self.read_error(key, Some(range), source)
    }

    fn read_error(&self, key: &str, range: Option<Range<u64>>, source: object_store::Error) -> StoreError {
        let (url, key) = (self.url.clone(), key.to_owned());
        match source {
            object_store::Error::NotFound { .. } => StoreError::NotFound { url, key },
            source => StoreError::Read { url, key, range, source },
        }
    }

    fn path(&self, key: &str) -> StorePath {
        self.root.parts().chain(StorePath::from(key).parts()).collect()
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_key_is_never_overwritten_by_put_if_absent() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().to_str().unwrap()).unwrap();
        assert!(store.put_if_absent("a/b.json", Bytes::from_static(b"first")).unwrap());
        assert!(!store.put_if_absent("a/b.json", Bytes::from_static(b"second")).unwrap());
        assert_eq!(store.get("a/b.json").unwrap(), "first");
        assert_eq!(store.get_range("a/b.json", 1..3).unwrap(), "ir");
        assert_eq!(store.size("a/c.json").unwrap(), None);
        assert!(matches!(store.get("a/c.json"), Err(StoreError::NotFound { .. })));
        assert_eq!(store.list("").unwrap(), [Listed { key: "a/b.json".to_owned(), n_bytes: 5 }]);
    }
}
