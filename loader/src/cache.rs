//! Working copies of decoded media, kept from epoch to epoch.
//!
//! In: what decoding made. Out: the same, next time. Never: more than its budget, a byte of a batch changed, an eviction:
//! an epoch visits every row once, so what came first is worth as much as what came last, and a cache that drops the oldest
//! of a corpus larger than itself would never hit.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imp_schemas::media::Picture;
use imp_schemas::task::Decode;

use crate::record::Meta;

/// Which decoded form of which row: corpus (index among those opened), row of the split, form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey {
    pub corpus: usize,
    pub row: u64,
    pub form: Form,
}

/// A form of a record that decoding makes before anything is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// The small columns.
    Meta,
    /// The picture at the working side.
    Picture { side: Option<usize>, decode: Decode },
    /// Every frame at the working side.
    Frames { side: Option<usize>, decode: Decode },
    /// Samples at the spectrogram's rate.
    Sound,
}

/// A decoded form.
#[derive(Debug, Clone)]
pub enum Held {
    Meta(Arc<Meta>),
    /// One picture, or every frame of a clip.
    Pictures(Arc<Vec<Picture>>),
    Sound(Arc<Vec<f32>>),
}

impl Held {
    fn n_bytes(&self) -> usize {
        match self {
            Self::Meta(meta) => meta.n_bytes(),
            Self::Pictures(pictures) => pictures.iter().map(|p| p.rgb.len() + size_of::<Picture>()).sum(),
            Self::Sound(samples) => samples.len() * size_of::<f32>(),
        }
    }
}

/// Bytes that one map entry costs besides what it holds.
const ENTRY_BYTES: usize = 128;
/// One clip may take this share of the budget: a film must not push out a corpus.
const MAX_SHARE: usize = 16;

/// Byte-bounded, shared by all threads.
pub struct Cache {
    max_bytes: usize,
    held: Mutex<(HashMap<CacheKey, Held>, usize)>,
    n_hits: AtomicU64,
}

impl Cache {
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, held: Mutex::new((HashMap::new(), 0)), n_hits: AtomicU64::new(0) }
    }

    pub fn get(&self, key: CacheKey) -> Option<Held> {
        let held = self.lock().0.get(&key).cloned();
        if held.is_some() {
            self.n_hits.fetch_add(1, Ordering::Relaxed);
        }
        held
    }

    /// Whether `n_bytes` more would be kept.
    pub fn has_room(&self, n_bytes: usize) -> bool {
        let n_bytes = n_bytes + ENTRY_BYTES;
        n_bytes <= self.max_bytes / MAX_SHARE && self.lock().1 + n_bytes <= self.max_bytes
    }

    /// Keeps `held` if there is room.
    pub fn put(&self, key: CacheKey, held: Held) {
        let n_bytes = held.n_bytes() + ENTRY_BYTES;
        let mut guard = self.lock();
        let (map, used) = &mut *guard;
        if n_bytes <= self.max_bytes / MAX_SHARE && *used + n_bytes <= self.max_bytes && !map.contains_key(&key) {
            *used += n_bytes;
            map.insert(key, held);
        }
    }

    /// Bytes held, and how often something was found.
    pub fn usage(&self) -> (usize, u64) {
        (self.lock().1, self.n_hits.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, (HashMap<CacheKey, Held>, usize)> {
        // A thread that panicked between insert and count leaves at most one entry uncounted.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_keeps_what_fits_and_no_more() {
        let cache = Cache::new(10_000);
        let sound = |n: usize| Held::Sound(Arc::new(vec![0.0; n]));
        let key = |row| CacheKey { corpus: 0, row, form: Form::Sound };
        for row in 0..100 {
            cache.put(key(row), sound(50));
        }
        let n_held = (0..100).filter(|&row| cache.get(key(row)).is_some()).count();
        // Each takes 200 bytes and 128 for its entry.
        assert_eq!(n_held, 10_000 / 328);
        assert!(cache.usage().0 <= 10_000);
        cache.put(key(200), sound(1000));
        assert!(cache.get(key(200)).is_none(), "one entry above a sixteenth of the budget");
    }
}
