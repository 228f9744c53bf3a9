//! Ranges of objects that never change: shards and side tables, which a manifest lists by the digest of their bytes.
//!
//! In: an object as it is listed, ranges. Out: their bytes. From a remote store: neighbours together, long requests in parts
//! side by side, a request that falls silent asked a second time, what lies in the [`DiskCache`] not asked for at all.
//! Never: bytes of an object that has another length than the listed one, or that changed since it was first read; a copy beyond
//! the one that leaves the connection. object_store tries again what is refused, and goes on with a body that breaks off.

use std::cell::Cell;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::{Either, select};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{GetOptions, ObjectMeta, ObjectStoreExt};
use tokio::time::Instant;

use super::disk_cache::{DiskCache, DiskCacheStats};
use super::ranges::{blocks, coalesced, split};
use super::{Store, StoreError};
use crate::shard::Digest;

/// Requests of one read that are under way at once.
const N_AT_ONCE: usize = 8;
/// One second try is allowed for so many requests, and a few to start with: a store that is slow as a whole is not asked twice
/// for everything.
const REQUESTS_PER_HEDGE: u64 = 16;
const FIRST_HEDGES: u64 = 4;
/// How long the length of an object that could not be read may take, which is only asked for to say what is wrong.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// An object that a manifest lists. Keep it as long as the object is read: it remembers which one was met first.
#[derive(Debug)]
pub struct Sealed {
    pub key: String,
    pub digest: Digest,
    pub n_bytes: u64,
    /// Of the first answer; stores without ETags leave it empty.
    e_tag: OnceLock<String>,
}

impl Sealed {
    pub fn new(key: String, digest: Digest, n_bytes: u64) -> Self {
        Self { key, digest, n_bytes, e_tag: OnceLock::new() }
    }
}

/// How [`Store::get_sealed`] reads from a store that is not a local folder; a local one is read as it is.
#[derive(Debug, Default)]
pub struct Reading {
    /// Silence of a request after which it is made a second time; `None` never does.
    pub hedge_after: Option<Duration>,
    pub disk: Option<DiskCache>,
    n_requests: AtomicU64,
    n_hedges: AtomicU64,
    n_hedges_won: AtomicU64,
}

/// What reading sealed objects has cost since [`Store::reading`].
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
pub struct ReadingStats {
    /// Requests made for ranges, second tries among them.
    pub n_requests: u64,
    /// Second tries.
    pub n_hedges: u64,
    /// Second tries that were answered first.
    pub n_hedges_won: u64,
    pub disk: Option<DiskCacheStats>,
}

impl Reading {
    /// `hedge_after` of zero never asks twice.
    pub fn new(hedge_after: Duration, disk: Option<DiskCache>) -> Self {
        Self { hedge_after: Some(hedge_after).filter(|after| !after.is_zero()), disk, ..Self::default() }
    }

    /// Takes one second try off the allowance, if there is one.
    fn may_hedge(&self) -> bool {
        let allowed = FIRST_HEDGES + self.n_requests.load(Ordering::Relaxed) / REQUESTS_PER_HEDGE;
        let take = |n: u64| (n < allowed).then_some(n + 1);
        self.n_hedges.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

impl Store {
    /// The same store, whose sealed objects are read as `reading` says. It counts for itself.
    #[must_use]
    pub fn reading(&self, reading: Reading) -> Self {
        Self { reading: Arc::new(reading), ..self.clone() }
    }

    /// Whether it is anything else than a folder of this machine.
    pub fn is_remote(&self) -> bool {
        self.is_remote
    }

    /// Counts of this store and its clones.
    pub fn reading_stats(&self) -> ReadingStats {
        let reading = &self.reading;
        ReadingStats {
            n_requests: reading.n_requests.load(Ordering::Relaxed),
            n_hedges: reading.n_hedges.load(Ordering::Relaxed),
            n_hedges_won: reading.n_hedges_won.load(Ordering::Relaxed),
            disk: reading.disk.as_ref().map(DiskCache::stats),
        }
    }

    /// Bytes `ranges` of a sealed object, in that order. The requests are those of [`super::ranges::requests`]; with a disk
    /// cache, those of the missing ones among its blocks ([`super::ranges::blocks`]).
    ///
    /// # Errors
    /// [`StoreError::OtherObject`] if it is not what is listed; else as [`Store::get_range`].
    pub fn get_sealed(&self, sealed: &Sealed, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        // A damaged footer may claim anything, and what is claimed is allocated.
        if let Some(range) = ranges.iter().find(|range| range.start > range.end || range.end > sealed.n_bytes) {
            let detail = format!("bytes {} to {} of an object of {}", range.start, range.end, sealed.n_bytes);
            let source = object_store::Error::Generic { store: "imp", source: detail.into() };
            return Err(self.read_error(&sealed.key, Some(range.clone()), source));
        }
        if !self.is_remote {
            return self.get_ranges(&sealed.key, ranges);
        }
        let held = match &self.reading.disk {
            Some(disk) => self.through(disk, sealed, ranges)?,
            None => self.fetch(sealed, ranges)?,
        };
        let slice = |wanted: &Range<u64>| {
            if wanted.is_empty() {
                return Ok(Bytes::new());
            }
            // What was fetched may span what was held, so that runs lie within others.
            let covering = held.iter().find(|(run, _)| run.start <= wanted.start && wanted.end <= run.end);
            let (run, bytes) = covering.ok_or_else(|| self.wrong_length(&sealed.key, wanted.clone(), 0))?;
            Ok(bytes.slice((wanted.start - run.start) as usize..(wanted.end - run.start) as usize))
        };
        ranges.iter().map(slice).collect()
    }

    /// For whoever finds that the bytes of a sealed object make no sense: what a disk cache holds of it is fetched anew next time.
    pub fn forget_sealed(&self, sealed: &Sealed) {
        if let Some(disk) = &self.reading.disk {
            disk.forget(sealed);
        }
    }

    /// What is held of `ranges`, and what is not, fetched: runs of bytes that cover them.
    fn through(
        &self,
        disk: &DiskCache,
        sealed: &Sealed,
        ranges: &[Range<u64>],
    ) -> Result<Vec<(Range<u64>, Bytes)>, StoreError> {
        let runs = blocks(ranges, sealed.n_bytes);
        let mut held = Vec::new();
        let mut missing = Vec::new();
        for (run, found) in runs.iter().zip(disk.get(sealed, &runs)) {
            match found {
                Some(bytes) => held.push((run.clone(), bytes)),
                None => missing.push(run.clone()),
            }
        }
        if missing.is_empty() {
            return Ok(held);
        }
        let n_bytes = coalesced(&missing).iter().map(|run| run.end - run.start).sum();
        if let Some(room) = disk.room(n_bytes) {
            for (run, bytes) in self.fetch(sealed, &missing)? {
                disk.put(&room, sealed, run.start, &bytes);
                held.push((run, bytes));
            }
            return Ok(held);
        }
        // Nothing is kept, so nothing is read that is not wanted.
        let is_missing =
            |range: &&Range<u64>| missing.iter().any(|run| run.start <= range.start && range.end <= run.end);
        let wanted: Vec<Range<u64>> = ranges.iter().filter(is_missing).cloned().collect();
        held.extend(self.fetch(sealed, &wanted)?);
        Ok(held)
    }

    /// Runs of bytes that cover `ranges`, rising.
    fn fetch(&self, sealed: &Sealed, ranges: &[Range<u64>]) -> Result<Vec<(Range<u64>, Bytes)>, StoreError> {
        let runs = coalesced(ranges);
        let parts: Vec<Vec<Range<u64>>> = runs.iter().map(|run| split(run).collect()).collect();
        let mut asked = Vec::new();
        for (run, parts) in runs.iter().zip(&parts) {
            // Each part is written where it belongs, so that they are one without a copy.
            let mut buffer = BytesMut::with_capacity((run.end - run.start) as usize);
            for part in parts {
                let rest = buffer.split_off((part.end - part.start) as usize);
                asked.push((part.clone(), std::mem::replace(&mut buffer, rest)));
            }
        }
        let came: Vec<BytesMut> = self.wait(
            stream::iter(asked)
                .map(|(range, buffer)| self.part(sealed, range, buffer))
                .buffered(N_AT_ONCE)
                .try_collect(),
        )?;
        let mut came = came.into_iter();
        let joined = runs.into_iter().zip(parts).map(|(run, parts)| {
            let mut whole = came.next().unwrap_or_default();
            came.by_ref().take(parts.len() - 1).for_each(|part| whole.unsplit(part));
            (run, whole.freeze())
        });
        Ok(joined.collect())
    }

    /// One request, and a second one if the first falls silent; the first whole answer counts, the other is dropped.
    async fn part(&self, sealed: &Sealed, range: Range<u64>, mut buffer: BytesMut) -> Result<BytesMut, StoreError> {
        let heard = Cell::new(Instant::now());
        let Some(after) = self.reading.hedge_after else {
            self.body(sealed, &range, &mut buffer, &heard).await?;
            return Ok(buffer);
        };
        let mut second = BytesMut::new();
        let second_won = {
            let mut first = pin!(self.body(sealed, &range, &mut buffer, &heard));
            loop {
                let patience = pin!(tokio::time::sleep_until(heard.get() + after));
                if let Either::Left((answer, _)) = select(first.as_mut(), patience).await {
                    break answer.map(|()| false);
                }
                if heard.get() + after > Instant::now() {
                    continue;
                }
                if !self.reading.may_hedge() {
                    heard.set(Instant::now());
                    continue;
                }
                second.reserve((range.end - range.start) as usize);
                let heard = Cell::new(Instant::now());
                let again = pin!(self.body(sealed, &range, &mut second, &heard));
                break match select(first, again).await {
                    Either::Left((Ok(()), _)) => Ok(false),
                    Either::Right((Ok(()), _)) => Ok(true),
                    Either::Left((Err(_), again)) => again.await.map(|()| true),
                    Either::Right((Err(_), first)) => first.await.map(|()| false),
                };
            }
        }?;
        if second_won {
            self.reading.n_hedges_won.fetch_add(1, Ordering::Relaxed);
        }
        Ok(if second_won { second } else { buffer })
    }

    /// Fills `buffer` with bytes `range`; `heard` is when the store last gave a sign of life.
    async fn body(
        &self,
        sealed: &Sealed,
        range: &Range<u64>,
        buffer: &mut BytesMut,
        heard: &Cell<Instant>,
    ) -> Result<(), StoreError> {
        let key = &sealed.key;
        let broken = |source| self.read_error(key, Some(range.clone()), source);
        self.reading.n_requests.fetch_add(1, Ordering::Relaxed);
        let options = GetOptions { range: Some(range.clone().into()), ..GetOptions::default() };
        let answer = match self.inner.get_opts(&self.path(key), options).await {
            Ok(answer) => answer,
            Err(source) => return Err(self.other_length(sealed).await.unwrap_or_else(|| broken(source))),
        };
        heard.set(Instant::now());
        self.check_listed(sealed, &answer.meta)?;
        let n_bytes = (range.end - range.start) as usize;
        let mut chunks = answer.into_stream();
        while let Some(chunk) = chunks.try_next().await.map_err(broken)? {
            heard.set(Instant::now());
            if buffer.len() + chunk.len() > n_bytes {
                return Err(self.wrong_length(key, range.clone(), buffer.len() + chunk.len()));
            }
            buffer.extend_from_slice(&chunk);
        }
        if buffer.len() == n_bytes { Ok(()) } else { Err(self.wrong_length(key, range.clone(), buffer.len())) }
    }

    /// Every answer says the length and the ETag of the whole object, so that looking costs no request.
    fn check_listed(&self, sealed: &Sealed, meta: &ObjectMeta) -> Result<(), StoreError> {
        let other = |what, found: String, wanted: String| StoreError::OtherObject {
            url: self.url.clone(),
            key: sealed.key.clone(),
            what,
            found,
            wanted,
        };
        if meta.size != sealed.n_bytes {
            return Err(other("length", meta.size.to_string(), sealed.n_bytes.to_string()));
        }
        let Some(found) = &meta.e_tag else { return Ok(()) };
        let wanted = sealed.e_tag.get_or_init(|| found.clone());
        if found == wanted { Ok(()) } else { Err(other("ETag", found.clone(), wanted.clone())) }
    }

    /// Whether a range cannot be read because the object is shorter than listed.
    async fn other_length(&self, sealed: &Sealed) -> Option<StoreError> {
        let path = self.path(&sealed.key);
        let meta = tokio::time::timeout(LOOK_LIMIT, self.inner.head(&path)).await.ok()?.ok()?;
        self.check_listed(sealed, &meta).err()
    }
}
