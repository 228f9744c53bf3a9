//! Every thread and every channel of ingest, but those that `fetch` waits on hosts with. Media stream through in row order;
//! what is in flight, and what decoding holds, is bounded in bytes.
//!
//! ```text
//! plan ─► read (1 thread) ──2──► verify (n threads, record i to thread i mod n) ──2──► take (the caller), in order
//!            ▲  ▲                                                                        │
//!        fetch  └──────────── bytes in flight ≤ a quarter of `memory_mib` ◄──────────────┘
//! ```
//!
//! Decoding holds another quarter at most, what hosts sent ahead an eighth; the rest is for the writer.
//!
//! In: planned records. Out: each one verified or refused, in the plan's order whatever the number of threads.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::Builder;

use crossbeam::channel::{Receiver, Sender, bounded};
use imp_schemas::reject::{Reject, RejectReason};

use crate::config::{CorpusConfig, IngestConfig};
use crate::corpus::Place;
use crate::decoding::bytes_to_decode;
use crate::error::IngestError;
use crate::fetch::Fetcher;
use crate::plan::Planned;
use crate::text::Refusal;
use crate::tokenizer::CaptionTokenizer;
use crate::verify::{Record, verify};

/// Of the memory that a worker may hold, what media have that were read and not yet taken; one larger medium may pass alone.
const SHARE_IN_FLIGHT: u64 = 4;
/// Of the same, what decoding holds on all threads together; one larger picture or sound may be decoded alone.
const SHARE_DECODING: u64 = 4;
/// Of the same, what media have that came from hosts before their turn.
const SHARE_FETCHED: u64 = 8;
/// Between two stages, per verifying thread.
const QUEUE: usize = 2;
/// Open tars; a corpus of more reopens them.
const MAX_OPEN_FILES: usize = 128;

/// Where media come from: this machine's files, and hosts once one is named.
pub(crate) struct Sources<'a> {
    config: &'a IngestConfig,
    fetcher: OnceLock<Fetcher>,
}

impl<'a> Sources<'a> {
    pub(crate) fn new(config: &'a IngestConfig) -> Self {
        Self { config, fetcher: OnceLock::new() }
    }

    /// The fetcher that `records` need, `None` if all their media are files.
    fn fetcher_for(&self, records: &[Planned]) -> Result<Option<&Fetcher>, IngestError> {
        if self.fetcher.get().is_none() && records.iter().any(|record| matches!(record.medium, Place::Url { .. })) {
            let max_held = self.config.memory_bytes / SHARE_FETCHED;
            let made = Fetcher::new(&self.config.fetch, max_held, &self.config.store_options())?;
            // Only one thread asks, so none has made another in the meantime.
            let _ = self.fetcher.set(made);
        }
        Ok(self.fetcher.get())
    }

    /// Requests to hosts of media so far.
    pub(crate) fn n_requests(&self) -> u64 {
        self.fetcher.get().map_or(0, Fetcher::n_requests)
    }
}

/// Takes what became of one input: a record, one for each clip of a film that is cut, or why it is not kept.
pub(crate) type Take<'a> = dyn FnMut(&Planned, Result<Vec<Record>, Reject>) -> Result<(), IngestError> + 'a;

/// Verifies `records` on the threads that the config allows and hands them to `take` in order.
///
/// # Errors
/// What `take` returns, and threads that cannot be started.
pub(crate) fn verify_all(
    corpus: &CorpusConfig,
    tokenizer: &CaptionTokenizer,
    sources: &Sources<'_>,
    records: &[Planned],
    take: &mut Take<'_>,
) -> Result<(), IngestError> {
    let config = sources.config;
    let fetcher = sources.fetcher_for(records)?;
    let in_flight = InFlight { limit: config.memory_bytes / SHARE_IN_FLIGHT, ..InFlight::default() };
    let decoding = InFlight { limit: config.memory_bytes / SHARE_DECODING, ..InFlight::default() };
    let n_workers = config.workers.min(records.len()).max(1);
    let (read_txs, read_rxs): (Vec<_>, Vec<_>) = (0..n_workers).map(|_| bounded(QUEUE)).unzip();
    let (done_txs, done_rxs): (Vec<_>, Vec<_>) = (0..n_workers).map(|_| bounded(QUEUE)).unzip();
    std::thread::scope(|scope| {
        // Dropped when this closure returns, for whatever cause: closed channels are the order to stop.
        let done_rxs: Vec<Receiver<Done>> = done_rxs;
        let _closing = (CloseOnDrop(&in_flight), CloseOnDrop(&decoding));
        let (in_flight, decoding) = (&in_flight, &decoding);
        let start = |name: String| Builder::new().name(name);
        let failed = |source| IngestError::Thread { source };
        start("ingest-read".to_owned())
            .spawn_scoped(scope, move || {
                read_all(corpus, fetcher, config.fetch.n_in_flight, records, in_flight, &read_txs);
            })
            .map_err(failed)?;
        for (worker, (read_rx, done_tx)) in read_rxs.into_iter().zip(done_txs).enumerate() {
            start(format!("ingest-verify-{worker}"))
                .spawn_scoped(scope, move || {
                    let mine = records.iter().skip(worker).step_by(n_workers);
                    verify_some(corpus, tokenizer, mine, decoding, &read_rx, &done_tx);
                })
                .map_err(failed)?;
        }
        for (planned, done_rx) in records.iter().zip(done_rxs.iter().cycle()) {
            let Done { n_held, verified } =
                done_rx.recv().map_err(|_| IngestError::ThreadDied { name: "ingest-verify" })?;
            let taken = take(planned, verified);
            in_flight.release(n_held);
            if let (Err(_), Some(fetcher)) = (&taken, fetcher) {
                fetcher.stop(); // The run is over: its reader waits for no host.
            }
            taken?;
        }
        Ok(())
    })
}

type ReadResult = Result<Vec<u8>, Refusal>;

/// A medium and what it holds of the bytes in flight.
struct ReadMedium {
    n_held: u64,
    bytes: ReadResult,
}

struct Done {
    n_held: u64,
    verified: Result<Vec<Record>, Reject>,
}

fn read_all(
    corpus: &CorpusConfig,
    fetcher: Option<&Fetcher>,
    n_ahead: usize,
    records: &[Planned],
    in_flight: &InFlight,
    read_txs: &[Sender<ReadMedium>],
) {
    let limit = corpus.limits.max_media_bytes();
    let mut files = HashMap::new();
    let urls = records.iter().filter_map(|record| match &record.medium {
        Place::Url { url } => Some(Arc::clone(url)),
        Place::File { .. } => None,
    });
    let mut fetched = fetcher.map(|fetcher| fetcher.fetch_all(urls, n_ahead, limit));
    for (planned, read_tx) in records.iter().zip(read_txs.iter().cycle()) {
        let (n_held, bytes) = match &planned.medium {
            Place::File { file, offset, len } => {
                if !in_flight.acquire(*len) {
                    return;
                }
                (*len, read_file(file, *offset, *len, limit, &mut files))
            }
            // Its size is known when it is there; until then the fetcher's own bound holds.
            Place::Url { url } => {
                let next = fetched.as_mut().and_then(Iterator::next);
                let lost = || Err((RejectReason::Unreadable, format!("`{url}` was not asked for")));
                let bytes = next.unwrap_or_else(lost);
                let n_held = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                if !in_flight.acquire(n_held) {
                    return;
                }
                (n_held, bytes)
            }
        };
        if read_tx.send(ReadMedium { n_held, bytes }).is_err() {
            return; // The verifier is gone: the run is over.
        }
    }
}

fn verify_some<'a>(
    corpus: &CorpusConfig,
    tokenizer: &CaptionTokenizer,
    mine: impl Iterator<Item = &'a Planned>,
    decoding: &InFlight,
    read_rx: &Receiver<ReadMedium>,
    done_tx: &Sender<Done>,
) {
    for (planned, ReadMedium { n_held, bytes }) in mine.zip(read_rx) {
        let verified = match bytes {
            Ok(media) => {
                let n_decoded = bytes_to_decode(corpus, &media);
                if !decoding.acquire(n_decoded) {
                    return;
                }
                let verified = verify(corpus, tokenizer, planned, media);
                decoding.release(n_decoded);
                verified.map_err(|(refusal, media)| planned.reject(refusal, &media))
            }
            Err(refusal) => Err(planned.reject(refusal, &[])),
        };
        if done_tx.send(Done { n_held, verified }).is_err() {
            return; // The packer is gone: the run is over.
        }
    }
}

fn read_file(file: &Arc<Path>, offset: u64, len: u64, limit: u64, files: &mut HashMap<Arc<Path>, File>) -> ReadResult {
    if len == 0 {
        return Err((RejectReason::EmptyFile, "the file has 0 bytes".to_owned()));
    }
    if len > limit {
        return Err((RejectReason::TooLarge, format!("the file has {len} bytes, the limit is {limit}")));
    }
    let unreadable = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => (RejectReason::MissingFile, "the file is gone".to_owned()),
        _ => (RejectReason::Unreadable, e.to_string()),
    };
    if files.len() >= MAX_OPEN_FILES {
        files.clear();
    }
    // A range that starts at 0 is mostly a file of its own, which is not read again.
    let mut own;
    let opened = if offset == 0 {
        own = File::open(file).map_err(unreadable)?;
        &mut own
    } else {
        match files.entry(Arc::clone(file)) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(File::open(file).map_err(unreadable)?),
        }
    };
    opened.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    opened.take(len).read_to_end(&mut bytes).map_err(unreadable)?;
    if (bytes.len() as u64) < len {
        return Err((RejectReason::Truncated, format!("{} bytes read, {len} were there before", bytes.len())));
    }
    Ok(bytes)
}

/// Bytes that are held by several threads: those between reader and taker, or those of decoding.
#[derive(Debug, Default)]
struct InFlight {
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    n_bytes: u64,
    is_closed: bool,
}

impl InFlight {
    /// Waits until `n` bytes may be held; false if nobody takes any more. Records are taken in the order they were read, so
    /// the oldest can always go on, and a medium above the limit passes when it is alone.
    fn acquire(&self, n: u64) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |state: &mut State| !state.is_closed && state.n_bytes > 0 && state.n_bytes + n > self.limit;
        let mut state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        state.n_bytes += n;
        !state.is_closed
    }

    fn release(&self, n: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).n_bytes -= n;
        // Of those that wait, one that wants less may go on where another cannot.
        self.changed.notify_all();
    }
}

struct CloseOnDrop<'a>(&'a InFlight);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.0.changed.notify_all();
    }
}
