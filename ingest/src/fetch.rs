//! Media from `http(s)://` and `s3://`: many under way at once, taken in the order in which they were asked for.
//!
//! In: addresses, a bound of bytes. Out: [`Pending`], and from it the whole medium or why there is none. Blocking outside;
//! inside, a few threads of a runtime that ends with the last clone. Never: an answer to a HEAD, a body that is not whole, a
//! medium of a host that opts out, more bytes than were allowed, a request to a file or to another kind of address.
//!
//! ```text
//! fetch(url) ─► Seat (place in the order) ─► slot of all and of the host ─► tries: redirects, body, rest of a broken body
//!                                             bytes held ≤ bound ◄── Pending::wait takes them
//! ```

mod answer;
mod bucket;
mod gate;
mod http;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imp_schemas::reject::RejectReason;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::config::FetchConfig;
use crate::error::IngestError;
use crate::text::Refusal;
use gate::{Gate, GateLimits, Seat};

/// Threads that move bytes; waiting costs none.
const N_THREADS: usize = 2;

/// Gets media. Cheap to clone; clones share slots, connections and the bound of bytes.
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    shared: Arc<Shared>,
    threads: Arc<Threads>,
}

/// A medium that is on its way. Dropped, it is given up.
#[derive(Debug)]
pub(crate) struct Pending {
    seat: Seat,
    done: oneshot::Receiver<Result<Vec<u8>, Refusal>>,
    /// None if the fetcher was stopped before.
    task: Option<AbortHandle>,
}

/// What every task needs; it holds no thread, so that a task's end never stops the runtime from within.
#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    http: http::Http,
    buckets: bucket::Buckets,
}

/// The runtime, until it is stopped.
#[derive(Debug)]
struct Threads(Mutex<Option<Runtime>>);

impl Threads {
    fn lock(&self) -> MutexGuard<'_, Option<Runtime>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A look-up of a name cannot be called off, and nobody wants to wait for one at the end.
    fn stop(&self) {
        if let Some(runtime) = self.lock().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Fetcher {
    /// Makes the threads and the client; worth it only where a corpus names addresses. At most `max_held_bytes` are held of
    /// media that were got ahead of the one that is waited for. `store_options` are those of `Store::open_with`.
    ///
    /// # Errors
    /// Threads cannot be started, the system has no certificates, or the proxy is no URL.
    pub(crate) fn new(
        config: &FetchConfig,
        max_held_bytes: u64,
        store_options: &[(String, String)],
    ) -> Result<Self, IngestError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(N_THREADS)
            .max_blocking_threads(config.n_in_flight)
            .thread_name("ingest-fetch")
            .enable_all()
            .build()
            .map_err(|source| IngestError::Thread { source })?;
        let limits =
            GateLimits { n_in_flight: config.n_in_flight, n_per_host: config.n_per_host, n_bytes: max_held_bytes };
        let shared = Shared {
            gate: Arc::new(Gate::new(limits)),
            http: http::Http::new(config)?,
            buckets: bucket::Buckets::new(config, store_options),
        };
        Ok(Self { shared: Arc::new(shared), threads: Arc::new(Threads(Mutex::new(Some(runtime)))) })
    }

    /// Starts getting `url`, of which at most `max_bytes` are wanted; returns at once. Those asked for earlier go first.
    pub(crate) fn fetch(&self, url: &Arc<str>, max_bytes: u64) -> Pending {
        let seat = self.shared.gate.seat();
        let (give, done) = oneshot::channel();
        let (shared, url, id) = (Arc::clone(&self.shared), Arc::clone(url), seat.id);
        let task = async move {
            let got = if url.starts_with("s3://") {
                shared.buckets.get(&shared.gate, id, &url, max_bytes).await
            } else {
                shared.http.get(&shared.gate, id, &url, max_bytes).await
            };
            shared.gate.leave(id);
            shared.gate.keep(id, got.as_ref().map_or(0, |bytes| bytes.len() as u64));
            // Nobody may want it any more: then its seat is gone, and what it held is free.
            let _ = give.send(got);
        };
        let task = self.threads.lock().as_ref().map(|runtime| runtime.spawn(task).abort_handle());
        Pending { seat, done, task }
    }

    /// Gets `urls`, up to `n_ahead` before they are asked for; yields what became of them in their order.
    pub(crate) fn fetch_all<'a>(
        &'a self,
        urls: impl Iterator<Item = Arc<str>> + 'a,
        n_ahead: usize,
        max_bytes: u64,
    ) -> impl Iterator<Item = Result<Vec<u8>, Refusal>> + 'a {
        let mut urls = urls.fuse();
        let mut under_way = std::collections::VecDeque::new();
        std::iter::from_fn(move || {
            while under_way.len() <= n_ahead
                && let Some(url) = urls.next()
            {
                under_way.push_back(self.fetch(&url, max_bytes));
            }
            under_way.pop_front().map(Pending::wait)
        })
    }

    /// Requests so far: tries, redirects, the rest of broken bodies.
    pub(crate) fn n_requests(&self) -> u64 {
        self.shared.http.n_requests() + self.shared.buckets.n_requests()
    }

    /// Gives up all that is under way: whoever waits is told at once, and so is whoever asks later.
    pub(crate) fn stop(&self) {
        self.threads.stop();
    }
}

impl Pending {
    /// Blocks until the medium is there, or it is clear that it will not come. Not to be called on a thread of a runtime.
    pub(crate) fn wait(mut self) -> Result<Vec<u8>, Refusal> {
        self.seat.urge();
        let (_, closed) = oneshot::channel();
        let done = std::mem::replace(&mut self.done, closed);
        let stopped = || (RejectReason::Unreadable, "its download stopped before it was done".to_owned());
        done.blocking_recv().unwrap_or_else(|_| Err(stopped()))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests;
