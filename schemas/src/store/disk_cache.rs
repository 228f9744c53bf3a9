//! Blocks of a remote store's sealed objects, kept on a disk of this machine.
//!
//! In: blocks that were fetched. Out: the same, in this run or a later one. Two files per object, named by its digest: `.data`, sparse,
//! has every block where it lies in the object; `.sums` has 8 bytes for each block: its checksum, 0 where there is none.
//! A checksum is written after its block and covers the object's name and the block's place, so a file that was torn, damaged, cut or
//! swapped holds blocks that are missing, never wrong ones, and nothing has to be synced or repaired. As a block's bytes never
//! change, any number of processes may share the folder without a lock: who writes the same block writes the same bytes.
//! Never: an error (what cannot be read is missing; what cannot be written is said once), more bytes than the limit, an eviction of
//! what a run that is under way may want: an epoch visits every row once, so what came first is worth as much as what came last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::ranges::BLOCK;
use super::sealed::Sealed;
use crate::shard::Digest;

/// Bytes of a checksum.
const SUM: u64 = 8;
/// How often the objects of a run that is under way are marked as used, and how long a mark counts.
const MARK_EVERY: Duration = Duration::from_secs(15 * 60);
const MARK_COUNTS: Duration = Duration::from_secs(60 * 60);
/// How long a full folder is taken for full before it is looked at again.
const FULL_FOR: Duration = Duration::from_secs(60);
/// The folder is measured whenever a process has written this share of the limit itself, and a process stops this far below the limit,
/// so that up to sixteen processes, which do not know of each other, stay below it together.
const MEASURED_SHARE: u64 = 256;
const SPARED_SHARE: u64 = 16;

/// A folder of blocks. One for a run; several may have the same folder.
#[derive(Debug)]
pub struct DiskCache {
    folder: PathBuf,
    max_bytes: u64,
    /// Names of the objects that the run may read.
    kept: BTreeSet<String>,
    mark_counts: Duration,
    used: Mutex<Used>,
    /// Why nothing is written any more.
    fault: OnceLock<String>,
    n_hits: AtomicU64,
    n_misses: AtomicU64,
    hit_bytes: AtomicU64,
    stored_bytes: AtomicU64,
}

/// Totals since it was opened.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
pub struct DiskCacheStats {
    /// Runs of blocks that were wanted and found.
    pub n_hits: u64,
    /// Runs of blocks that were wanted and not found.
    pub n_misses: u64,
    /// Bytes of what was found.
    pub hit_bytes: u64,
    /// Bytes that this process added.
    pub stored_bytes: u64,
    /// Bytes that the folder takes on the disk.
    pub used_bytes: u64,
    /// Why nothing more is written, if it cannot be.
    pub fault: Option<String>,
}

/// Leave to add some bytes; dropping it gives up what was not added.
#[derive(Debug)]
pub struct Room<'a> {
    cache: &'a DiskCache,
    n_bytes: u64,
}

#[derive(Debug)]
struct Used {
    /// By the last measurement.
    measured: u64,
    /// Added by this process since.
    added: u64,
    /// Bytes of [`Room`]s.
    promised: u64,
    marked_at: Instant,
    full_since: Option<Instant>,
}

/// The files of one object.
struct Held {
    n_bytes: u64,
    used_at: SystemTime,
}

impl DiskCache {
    /// Opens or makes `folder`, which takes no more than `max_bytes`. `kept` are the objects that the run may read: they are not
    /// removed when room is needed. A folder that cannot be made or written is said on stderr, and holds nothing.
    pub fn open<'a>(folder: &Path, max_bytes: u64, kept: impl IntoIterator<Item = &'a Digest>) -> Self {
        Self::with_marks(folder, max_bytes, kept, MARK_COUNTS)
    }

    fn with_marks<'a>(
        folder: &Path,
        max_bytes: u64,
        kept: impl IntoIterator<Item = &'a Digest>,
        mark_counts: Duration,
    ) -> Self {
        let used = Used { measured: 0, added: 0, promised: 0, marked_at: Instant::now(), full_since: None };
        let cache = Self {
            folder: folder.to_owned(),
            max_bytes,
            kept: kept.into_iter().map(|digest| digest.0.clone()).collect(),
            mark_counts,
            used: Mutex::new(used),
            fault: OnceLock::new(),
            n_hits: AtomicU64::new(0),
            n_misses: AtomicU64::new(0),
            hit_bytes: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
        };
        if let Err(error) = std::fs::create_dir_all(folder) {
            cache.give_up(&error);
        }
        cache.mark();
        cache.lock().measured = cache.measure();
        cache
    }

    pub fn stats(&self) -> DiskCacheStats {
        let used = self.lock();
        DiskCacheStats {
            n_hits: self.n_hits.load(Ordering::Relaxed),
            n_misses: self.n_misses.load(Ordering::Relaxed),
            hit_bytes: self.hit_bytes.load(Ordering::Relaxed),
            stored_bytes: self.stored_bytes.load(Ordering::Relaxed),
            used_bytes: used.measured + used.added,
            fault: self.fault.get().cloned(),
        }
    }

    /// The bytes of each of `runs`, which begin and end where blocks do, if all of its blocks are there and whole.
    pub fn get(&self, sealed: &Sealed, runs: &[Range<u64>]) -> Vec<Option<Bytes>> {
        self.mark_if_due();
        let files = self.files(sealed, false).ok();
        let found = runs.iter().map(|run| {
            let bytes = files.as_ref().and_then(|(data, sums)| self.read(sealed, data, sums, run).ok().flatten());
            let n_bytes = bytes.as_ref().map_or(0, Bytes::len) as u64;
            let counter = if bytes.is_some() { &self.n_hits } else { &self.n_misses };
            counter.fetch_add(1, Ordering::Relaxed);
            self.hit_bytes.fetch_add(n_bytes, Ordering::Relaxed);
            bytes
        });
        found.collect()
    }

    /// Leave to add `n_bytes`; `None` if they do not fit, and then nothing should be fetched for the cache's sake.
    pub fn room(&self, n_bytes: u64) -> Option<Room<'_>> {
        let most = self.max_bytes - self.max_bytes / SPARED_SHARE;
        let mut used = self.lock();
        if self.fault.get().is_some() || used.full_since.is_some_and(|at| at.elapsed() < FULL_FOR) {
            return None;
        }
        let after = |used: &Used| used.measured + used.added + used.promised + n_bytes;
        if used.added >= self.max_bytes / MEASURED_SHARE || after(&used) > most {
            (used.measured, used.added) = (self.measure(), 0);
        }
        if after(&used) > most {
            let too_many = after(&used) - most;
            self.evict(too_many.max(self.max_bytes / SPARED_SHARE));
            used.measured = self.measure();
        }
        used.full_since = (after(&used) > most).then(Instant::now);
        if used.full_since.is_some() {
            return None;
        }
        used.promised += n_bytes;
        Some(Room { cache: self, n_bytes })
    }

    /// Keeps the blocks of `bytes`, which lie at `start` of the object and begin and end where blocks do.
    pub fn put(&self, _room: &Room<'_>, sealed: &Sealed, start: u64, bytes: &Bytes) {
        match self.write(sealed, start, bytes) {
            Ok(n_bytes) => {
                self.lock().added += n_bytes;
                self.stored_bytes.fetch_add(n_bytes, Ordering::Relaxed);
            }
            Err(error) => self.give_up(&error),
        }
    }

    /// Forgets an object: its bytes turned out not to be what they should be.
    pub fn forget(&self, sealed: &Sealed) {
        self.remove(&sealed.digest.0);
    }

    fn read(&self, sealed: &Sealed, data: &File, sums: &File, run: &Range<u64>) -> io::Result<Option<Bytes>> {
        let first = run.start / BLOCK;
        let mut listed = vec![0; (run.end.div_ceil(BLOCK) - first) as usize * SUM as usize];
        sums.read_exact_at(&mut listed, first * SUM)?;
        let (listed, _) = listed.as_chunks::<{ SUM as usize }>();
        if listed.contains(&[0; SUM as usize]) {
            return Ok(None);
        }
        let mut bytes = vec![0; (run.end - run.start) as usize];
        // Where the file ends early zeros stand, and the checksum is wrong.
        read_at_most(data, &mut bytes, run.start)?;
        let blocks = bytes.chunks(BLOCK as usize).zip(first..);
        let damaged: Vec<u64> = blocks
            .zip(listed)
            .filter(|((block, idx), listed)| checksum(sealed, *idx, block) != **listed)
            .map(|((_, idx), _)| idx)
            .collect();
        if damaged.is_empty() {
            return Ok(Some(bytes.into()));
        }
        // Else they would be taken for held when they come again.
        let (_, sums) = self.files(sealed, true)?;
        for idx in damaged {
            sums.write_all_at(&[0; SUM as usize], idx * SUM)?;
        }
        Ok(None)
    }

    /// Writes the blocks that are not there; gives their bytes.
    fn write(&self, sealed: &Sealed, start: u64, bytes: &Bytes) -> io::Result<u64> {
        let (data, sums) = self.files(sealed, true)?;
        let first = start / BLOCK;
        let blocks: Vec<&[u8]> = bytes.chunks(BLOCK as usize).collect();
        let wanted: Vec<[u8; SUM as usize]> =
            blocks.iter().zip(first..).map(|(block, idx)| checksum(sealed, idx, block)).collect();
        let mut listed = vec![0; blocks.len() * SUM as usize];
        let n_listed = read_at_most(&sums, &mut listed, first * SUM)?;
        listed[n_listed..].fill(0);
        let (listed, _) = listed.as_chunks::<{ SUM as usize }>();
        let is_new: Vec<bool> = listed.iter().zip(&wanted).map(|(listed, wanted)| listed != wanted).collect();
        let mut n_bytes = 0;
        let mut at = 0;
        for same in is_new.chunk_by(|a, b| a == b) {
            let (from, to) = (at * BLOCK as usize, ((at + same.len()) * BLOCK as usize).min(bytes.len()));
            if same[0] {
                data.write_all_at(&bytes[from..to], start + from as u64)?;
                sums.write_all_at(&wanted[at..at + same.len()].concat(), (first + at as u64) * SUM)?;
                n_bytes += (to - from) as u64;
            }
            at += same.len();
        }
        Ok(n_bytes)
    }

    fn files(&self, sealed: &Sealed, write: bool) -> io::Result<(File, File)> {
        let name = &sealed.digest.0;
        if !is_name(name) {
            return Err(io::Error::from(io::ErrorKind::InvalidFilename));
        }
        let open = |path| File::options().read(true).write(write).create(write).truncate(false).open(path);
        Ok((open(self.path(name, "data"))?, open(self.path(name, "sums"))?))
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{name}.{extension}"))
    }

    /// Bytes on the disk, of holes none.
    fn measure(&self) -> u64 {
        self.held().values().map(|held| held.n_bytes).sum()
    }

    /// Every object of the folder, by name.
    fn held(&self) -> BTreeMap<String, Held> {
        let mut all: BTreeMap<String, Held> = BTreeMap::new();
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let (Some(name), Some(extension)) = (path.file_stem(), path.extension()) else { continue };
            let (Some(name), Ok(file)) = (name.to_str(), entry.metadata()) else { continue };
            if !is_name(name) || (extension != "data" && extension != "sums") {
                continue;
            }
            let held = all.entry(name.to_owned()).or_insert(Held { n_bytes: 0, used_at: SystemTime::UNIX_EPOCH });
            held.n_bytes += file.blocks() * 512;
            held.used_at = held.used_at.max(file.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        }
        all
    }

    /// Removes at least `n_bytes`, oldest first, of objects that no run under way may read; fewer if there are no more.
    fn evict(&self, n_bytes: u64) {
        let now = SystemTime::now();
        let mut old: Vec<(String, Held)> = self.held().into_iter().collect();
        let is_unused = |held: &Held| now.duration_since(held.used_at).is_ok_and(|age| age >= self.mark_counts);
        old.retain(|(name, held)| !self.kept.contains(name) && is_unused(held));
        old.sort_by_key(|(_, held)| held.used_at);
        let mut removed = 0;
        for (name, held) in old {
            if removed >= n_bytes {
                return;
            }
            self.remove(&name);
            removed += held.n_bytes;
        }
    }

    fn remove(&self, name: &str) {
        // Another process may have been faster. A block without its checksum is missing, and so is one without its bytes.
        let _ = std::fs::remove_file(self.path(name, "sums"));
        let _ = std::fs::remove_file(self.path(name, "data"));
    }

    /// Marks what the run may read, for other runs that need room.
    fn mark(&self) {
        let now = SystemTime::now();
        for name in self.kept.iter().filter(|name| is_name(name)) {
            // Most are not there; who may not mark a file may not remove it either.
            let _ = File::open(self.path(name, "sums")).and_then(|file| file.set_modified(now));
        }
    }

    fn mark_if_due(&self) {
        let mut used = self.lock();
        if used.marked_at.elapsed() >= MARK_EVERY {
            used.marked_at = Instant::now();
            drop(used);
            self.mark();
        }
    }

    fn give_up(&self, error: &io::Error) {
        let fault = format!("cannot write the disk cache in `{}`: {error}", self.folder.display());
        if self.fault.set(fault.clone()).is_ok() {
            eprintln!("warning: {fault}; what it holds is read, the rest comes from the store");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        // Counts are changed in one go.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.cache.lock().promised -= self.n_bytes;
    }
}

/// Whether a digest can be a file's name: the manifest that it comes from is not ours to trust.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Never 0.
fn checksum(sealed: &Sealed, idx: u64, block: &[u8]) -> [u8; SUM as usize] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(block).update(sealed.digest.0.as_bytes()).update(&idx.to_le_bytes());
    let sum = hasher.finalize().as_bytes().first_chunk().copied().unwrap_or([1; SUM as usize]);
    if sum == [0; SUM as usize] { [1; SUM as usize] } else { sum }
}

/// Reads until `buffer` is full or the file ends; gives the number of bytes.
fn read_at_most(file: &File, buffer: &mut [u8], start: u64) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match file.read_at(&mut buffer[n..], start + n as u64) {
            Ok(0) => break,
            Ok(read) => n += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

#[cfg(test)]
mod tests;
