//! Buffers of pixels, used again and again: fresh ones are pages that the kernel clears before they are written.
//!
//! In: buffers that nobody reads any more. Out: one of the length asked for. Never: more kept than a fixed number; a promise about
//! what a buffer holds: whoever takes one overwrites all of it.

use crossbeam::queue::ArrayQueue;

/// Shared by all threads.
pub struct Pool(ArrayQueue<Vec<u8>>);

impl Pool {
    /// Keeps `n` buffers at most.
    pub fn new(n: usize) -> Self {
        Self(ArrayQueue::new(n.max(1)))
    }

    /// `len` bytes that hold anything.
    pub fn take(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.0.pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    /// No bytes, with room for `len`.
    pub fn take_empty(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.0.pop().unwrap_or_default();
        buffer.clear();
        buffer.reserve_exact(len);
        buffer
    }

    /// Keeps `buffer`, if there is room.
    pub fn give(&self, buffer: Vec<u8>) {
        if buffer.capacity() > 0 {
            // Without room it is freed.
            let _ = self.0.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_no_more_than_a_fixed_number_is_kept() {
        let pool = Pool::new(1);
        let first = pool.take(1000);
        let at = first.as_ptr();
        pool.give(first);
        pool.give(vec![7; 10]);
        let again = pool.take(500);
        assert_eq!((again.as_ptr(), again.len()), (at, 500));
        assert_eq!(pool.take(5), [0; 5]);
        pool.give(again);
        let empty = pool.take_empty(700);
        assert_eq!((empty.as_ptr(), empty.len()), (at, 0));
    }
}
