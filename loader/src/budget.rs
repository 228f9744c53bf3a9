//! A limit on bytes under way: reserve before the fetch, release after the hand-over.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Shared by whoever reserves and whoever holds a permit.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug)]
struct State {
    used: usize,
    closed: bool,
}

/// Bytes held; dropping it gives them back.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    n_bytes: usize,
}

impl Budget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::new(State { used: 0, closed: false }), released: Condvar::new() })
    }

    /// Waits until `n_bytes` fit, or nothing else is held: one batch is always let through. `None` once closed.
    pub fn reserve(self: &Arc<Self>, n_bytes: usize) -> Option<Permit> {
        let mut state = self.lock();
        while !state.closed && state.used > 0 && state.used.saturating_add(n_bytes) > self.limit {
            state = self.released.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return None;
        }
        state.used += n_bytes;
        Some(Permit { budget: Arc::clone(self), n_bytes })
    }

    /// Wakes whoever waits; nothing is reserved any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.released.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.lock().used -= self.n_bytes;
        self.budget.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_batch_is_always_let_through_and_closing_wakes_the_waiting() {
        let budget = Budget::new(10);
        let large = budget.reserve(100).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.reserve(1).is_none());
            std::thread::sleep(std::time::Duration::from_millis(20));
            budget.close();
            assert!(waiting.join().unwrap());
        });
        drop(large);
        assert!(budget.reserve(1).is_none());
    }
}
