//! Who may use the network and how many bytes may be held: slots and bytes, the earliest request first.
//!
//! In: tickets, one a medium, in the order in which the media were asked for. Out: leave to send a request (a slot of the
//! whole and one of its host), leave to hold more bytes. Never: I/O, a clock, a ticket that waits for one that waits for it.
//!
//! A slot is held only while bytes flow: a ticket that has to wait for memory, or to pause before its next try, gives its
//! slot back. The medium that somebody waits for is given bytes beyond the bound, so that the bound stops read-ahead and
//! nothing else; what is held is at most the bound and one medium for each who waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Bounds of what is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct GateLimits {
    pub(super) n_in_flight: usize,
    pub(super) n_per_host: usize,
    /// Bytes got and not yet taken.
    pub(super) n_bytes: u64,
}

/// The ticket is gone: nobody waits for the medium any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

/// Bytes that are asked for at once while a body of known size comes in, and while one of unknown size does.
const STEP: u64 = 1 << 20;
const BLIND_STEP: u64 = 64 << 10;

/// A body as it comes in: every byte of it is one that the gate allowed, and what its header claims allocates at most [`STEP`].
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    n_allowed: u64,
}

#[derive(Debug)]
pub(super) struct Gate {
    limits: GateLimits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next ticket.
    next: u64,
    tickets: BTreeMap<u64, Ticket>,
    /// Tickets that want something, the earliest first.
    waiting: BTreeSet<u64>,
    n_active: usize,
    /// Slots that are taken; a host without any is not in it.
    per_host: HashMap<Arc<str>, usize>,
    n_bytes: u64,
    /// The most bytes that were held at once.
    peak_bytes: u64,
}

#[derive(Debug, Default)]
struct Ticket {
    /// The slot it holds.
    slot: Option<Slot>,
    n_bytes: u64,
    /// Somebody waits for its medium.
    is_urgent: bool,
    wants: Option<Want>,
}

/// A host's name, or none where the number of requests to the host is not bounded.
type Slot = Option<Arc<str>>;

#[derive(Debug)]
struct Want {
    slot: Slot,
    n_bytes: u64,
    granted: oneshot::Sender<()>,
}

/// One medium's place in the order; what it holds is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    gate: Arc<Gate>,
    pub(super) id: u64,
}

impl Gate {
    pub(super) fn new(limits: GateLimits) -> Self {
        Self { limits, state: Mutex::default() }
    }

    /// The next place in the order.
    pub(super) fn seat(self: &Arc<Self>) -> Seat {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.tickets.insert(id, Ticket::default());
        Seat { gate: Arc::clone(self), id }
    }

    /// Waits for a slot at `host`; one that is held already stays where it is the same host's.
    pub(super) async fn enter(&self, id: u64, host: &Slot) -> Result<(), Gone> {
        if self.lock().tickets.get(&id).is_some_and(|ticket| ticket.slot.as_ref() == Some(host)) {
            return Ok(());
        }
        self.wait_for(id, host.clone(), 0).await
    }

    /// Waits until `n_bytes` more may be held; meanwhile the slot is free for others.
    pub(super) async fn grow(&self, id: u64, n_bytes: u64) -> Result<(), Gone> {
        let slot = {
            let mut state = self.lock();
            let fits = state.n_bytes + n_bytes <= self.limits.n_bytes;
            let ticket = state.tickets.get_mut(&id).ok_or(Gone)?;
            if fits || ticket.is_urgent {
                ticket.n_bytes += n_bytes;
                state.hold(n_bytes);
                return Ok(());
            }
            ticket.slot.clone().flatten()
        };
        self.wait_for(id, slot, n_bytes).await
    }

    /// Gives the slot back; the bytes stay.
    pub(super) fn leave(&self, id: u64) {
        let mut state = self.lock();
        state.free_slot(id);
        state.grant(&self.limits);
    }

    /// Gives bytes back down to `n_bytes`.
    pub(super) fn keep(&self, id: u64, n_bytes: u64) {
        let mut state = self.lock();
        let Some(ticket) = state.tickets.get_mut(&id) else { return };
        let freed = ticket.n_bytes.saturating_sub(n_bytes);
        ticket.n_bytes -= freed;
        state.n_bytes -= freed;
        state.grant(&self.limits);
    }

    #[cfg(test)]
    pub(super) fn peak_bytes(&self) -> u64 {
        self.lock().peak_bytes
    }

    async fn wait_for(&self, id: u64, slot: Slot, n_bytes: u64) -> Result<(), Gone> {
        let (granted, waits) = oneshot::channel();
        {
            let mut state = self.lock();
            state.free_slot(id);
            state.tickets.get_mut(&id).ok_or(Gone)?.wants = Some(Want { slot, n_bytes, granted });
            state.waiting.insert(id);
            state.grant(&self.limits);
        }
        waits.await.map_err(|_| Gone)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Appends `chunk`, when its bytes may be held; `total` is the size that the whole is said to have.
    pub(super) async fn append(&mut self, gate: &Gate, id: u64, chunk: &[u8], total: Option<u64>) -> Result<(), Gone> {
        let n_bytes = self.len() + chunk.len() as u64;
        if n_bytes > self.n_allowed {
            let ahead = total.map_or(BLIND_STEP, |total| STEP.min(total.saturating_sub(self.n_allowed)));
            let step = (n_bytes - self.n_allowed).max(ahead);
            gate.grow(id, step).await?;
            self.n_allowed += step;
            self.bytes.reserve_exact(usize::try_from(self.n_allowed - self.len()).unwrap_or(0));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// Gives all of it up.
    pub(super) fn clear(&mut self, gate: &Gate, id: u64) {
        *self = Self::default();
        gate.keep(id, 0);
    }
}

impl Seat {
    /// Says that somebody waits for this medium now.
    pub(super) fn urge(&self) {
        let mut state = self.gate.lock();
        if let Some(ticket) = state.tickets.get_mut(&self.id) {
            ticket.is_urgent = true;
        }
        state.grant(&self.gate.limits);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.free_slot(self.id);
        state.waiting.remove(&self.id);
        if let Some(ticket) = state.tickets.remove(&self.id) {
            state.n_bytes -= ticket.n_bytes;
        }
        state.grant(&self.gate.limits);
    }
}

impl State {
    fn hold(&mut self, n_bytes: u64) {
        self.n_bytes += n_bytes;
        self.peak_bytes = self.peak_bytes.max(self.n_bytes);
    }

    fn free_slot(&mut self, id: u64) {
        let Some(slot) = self.tickets.get_mut(&id).and_then(|ticket| ticket.slot.take()) else { return };
        self.n_active -= 1;
        if let Some(host) = slot
            && let Some(n) = self.per_host.get_mut(&host)
        {
            *n -= 1;
            if *n == 0 {
                self.per_host.remove(&host);
            }
        }
    }

    /// Gives what there is to those who wait, the earliest first; one that does not fit lets later ones pass.
    fn grant(&mut self, limits: &GateLimits) {
        let mut from = 0;
        while self.n_active < limits.n_in_flight
            && let Some(&id) = self.waiting.range(from..).next()
        {
            from = id + 1;
            let Some(ticket) = self.tickets.get_mut(&id) else { continue };
            let Some(want) = &ticket.wants else { continue };
            let n_of_host = want.slot.as_ref().and_then(|host| self.per_host.get(host)).copied().unwrap_or(0);
            let fits = ticket.is_urgent || want.n_bytes == 0 || self.n_bytes + want.n_bytes <= limits.n_bytes;
            if n_of_host >= limits.n_per_host || !fits {
                continue;
            }
            let Some(want) = ticket.wants.take() else { continue };
            ticket.slot = Some(want.slot.clone());
            ticket.n_bytes += want.n_bytes;
            self.waiting.remove(&id);
            self.n_active += 1;
            if let Some(host) = want.slot {
                *self.per_host.entry(host).or_insert(0) += 1;
            }
            self.hold(want.n_bytes);
            // Where nobody listens any more, the seat is about to be dropped, which frees all of it.
            let _ = want.granted.send(());
        }
    }
}
