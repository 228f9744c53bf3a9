//! Buffers of pixels, used again and again: fresh ones are pages that the kernel clears before they are written.
//!
//! In: buffers that nobody reads any more. Out: one of the length asked for. Never: more bytes kept than the limit, a small
//! thing in a large buffer, a promise about what a buffer holds: whoever takes one overwrites all of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;

/// Buffers lie by size: those of a class are at most twice as long as each other.
const N_CLASSES: u32 = usize::BITS + 1;

/// Shared by all threads.
pub struct Pool {
    /// By the power of two that holds the capacity.
    classes: Vec<ArrayQueue<Vec<u8>>>,
    max_bytes: usize,
    /// Of the buffers that are kept.
    n_bytes: AtomicUsize,
}

impl Pool {
    /// Keeps `n` buffers of a size at most, and `max_bytes` of all together.
    pub fn new(n: usize, max_bytes: usize) -> Self {
        let classes = (0..N_CLASSES).map(|_| ArrayQueue::new(n.max(1))).collect();
        Self { classes, max_bytes, n_bytes: AtomicUsize::new(0) }
    }

    /// `len` bytes that hold anything.
    pub fn take(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.kept(len);
        buffer.resize(len, 0);
        buffer
    }

    /// No bytes, with room for `len`.
    pub fn take_empty(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.kept(len);
        buffer.clear();
        buffer.reserve_exact(len);
        buffer
    }

    /// Keeps `buffer`, if there is room.
    pub fn give(&self, buffer: Vec<u8>) {
        let n_bytes = buffer.capacity();
        // Counted first, so that threads together never keep too much; what finds no room is freed.
        let before = self.n_bytes.fetch_add(n_bytes, Ordering::Relaxed);
        if n_bytes == 0 || before + n_bytes > self.max_bytes || self.class(n_bytes).push(buffer).is_err() {
            self.n_bytes.fetch_sub(n_bytes, Ordering::Relaxed);
        }
    }

    /// A kept buffer of about `len` bytes, or a new one without any.
    fn kept(&self, len: usize) -> Vec<u8> {
        let buffer = self.class(len).pop().unwrap_or_default();
        self.n_bytes.fetch_sub(buffer.capacity(), Ordering::Relaxed);
        buffer
    }

    fn class(&self, n_bytes: usize) -> &ArrayQueue<Vec<u8>> {
        &self.classes[(usize::BITS - n_bytes.saturating_sub(1).leading_zeros()) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_serves_its_size_again_and_no_more_than_the_limit_is_kept() {
        let pool = Pool::new(2, 1500);
        let first = pool.take(1000);
        let at = first.as_ptr();
        pool.give(first);
        pool.give(vec![7; 600]);
        let kept = || pool.n_bytes.load(Ordering::Relaxed);
        assert_eq!(kept(), 1000, "1,600 bytes are more than the limit");
        assert!(pool.take(5) == [0; 5], "a small thing does not take a large buffer");
        let again = pool.take(900);
        assert_eq!((again.as_ptr(), again.len(), kept()), (at, 900, 0));
        pool.give(again);
        let empty = pool.take_empty(700);
        assert_eq!((empty.as_ptr(), empty.len()), (at, 0));
        for _ in 0..3 {
            pool.give(vec![7; 100]);
        }
        assert_eq!(kept(), 200, "two of a size");
    }
}
