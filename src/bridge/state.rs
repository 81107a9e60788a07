//! Everything of a `Core` that changes, behind one lock that only the loop's thread takes.

use std::collections::VecDeque;
use std::thread::JoinHandle;
use std::time::Instant;

use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::PyTraverseError;

use super::capture::Capture;
use super::cursor_waiters::CursorWaiters;
use super::latch::Latch;
use super::outbox::Outbox;
use super::slab::Slab;
use super::start::Options;
use crate::driver::gate::Ended;
use crate::driver::port::{Applied, Completion, Fatal, Token};

/// An asyncio future.
pub type Future = Py<PyAny>;

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not started.
    New,
    /// Its driver runs.
    Running,
    /// Its driver is about to end, because it was closed or because the state machine stopped it.
    Closing,
    /// Its driver has said its last word.
    Stopped,
}

/// Who waits for a completion.
pub enum Waiter {
    /// One proposal of this many bytes.
    Proposal(Future, usize),
    /// One of several proposals that share a future.
    Item {
        /// Whose.
        group: Token,
        /// Its place in the list.
        position: usize,
        /// Its size.
        bytes: usize,
    },
    /// A read barrier, which may have to wait for the application's cursor as well.
    Barrier(Future, Option<u64>),
    /// A reader of applied entries.
    Range(Future),
    /// Somebody who wants a snapshot.
    Snapshot(Future),
    /// Somebody who wants another node to lead.
    Transfer(Future),
    /// Somebody who changes the members.
    Change(Future),
}

/// The proposals of one `propose_many`.
pub struct Group {
    /// Resolved when none is left.
    pub future: Future,
    /// A result or an exception for each.
    pub results: Vec<Option<Py<PyAny>>>,
    /// How many are not resolved.
    pub left: usize,
}

/// What is lost when a call ends with its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stake {
    /// A proposal that may be applied.
    UnderWay,
    /// A proposal that waited for room, and is not committed.
    Unsent,
    /// The call proposed nothing.
    Nothing,
}

/// Who waits for the application's cursor.
pub enum AtCursor {
    /// A barrier; it is told the index.
    Barrier(Future, u64),
    /// A reader; it is told nothing.
    Applied(Future),
}

impl AtCursor {
    /// Its future.
    pub fn future(&self) -> &Future {
        match self {
            Self::Barrier(future, _) | Self::Applied(future) => future,
        }
    }
}

/// Completions taken from the driver and not yet worked through.
#[derive(Default)]
pub struct Backlog {
    /// In order.
    pub completions: VecDeque<Completion>,
    /// The rest of a `Completion::Apply` that a slice ended in.
    pub batch: Option<Batch>,
}

/// The rest of a `Completion::Apply`.
pub struct Batch {
    /// Not applied yet.
    pub entries: std::vec::IntoIter<Applied>,
    /// The cursor behind them.
    pub through: u64,
    /// To be given back.
    pub bytes: usize,
}

impl Backlog {
    /// Whether all is done.
    pub fn is_empty(&self) -> bool {
        self.batch.is_none() && self.completions.is_empty()
    }
}

/// See the module.
pub struct State {
    /// Where the node is in its life.
    pub phase: Phase,
    /// For the driver, until it is started.
    pub options: Option<Options>,
    /// The driver's thread, until it is joined.
    pub thread: Option<JoinHandle<()>>,
    /// Waits for the driver to listen.
    pub starting: Option<Future>,
    /// Wait for the end of the driver's thread.
    pub closers: Vec<Future>,
    /// From here on committed entries are left unapplied: the time to drain is over.
    pub drain_until: Option<Instant>,
    /// Until then the end of the driver's thread is waited for.
    pub reap_until: Option<Instant>,
    /// Why the node stopped by itself, and the exception.
    pub failure: Option<(Why, Py<PyBaseException>)>,
    /// By token.
    pub waiters: Slab<Waiter>,
    /// By group.
    pub groups: Slab<Group>,
    /// Proposals not resolved.
    pub pending: usize,
    /// Their bytes.
    pub pending_bytes: usize,
    /// Proposals on their way to the driver.
    pub outbox: Outbox,
    /// Wait for room for a proposal, in order.
    pub room: VecDeque<Future>,
    /// Wait for the application's cursor.
    pub at_cursor: CursorWaiters<AtCursor>,
    /// The newest leadership.
    pub latch: Latch,
    /// Wait for its next version.
    pub leadership: Vec<Future>,
    /// Wait for room in a capture.
    pub capture_room: Vec<(Py<Capture>, Future)>,
    /// Between two slices.
    pub backlog: Backlog,
    /// The longest slice so far, nanoseconds.
    pub longest_drain_ns: u64,
}

/// Why a call is refused at once.
pub enum Refusal {
    /// `start()` was not called.
    New,
    /// Closed, or closing.
    Closed,
    /// It stopped by itself.
    Failed(Why),
}

/// Why a node stopped by itself.
#[derive(Clone, Debug)]
pub struct Why {
    /// One sentence.
    pub message: String,
    /// It has no part in its cluster any more.
    pub ended: Option<Ended>,
}

impl Why {
    /// As the driver says.
    pub fn of(fatal: &Fatal) -> Self {
        Self { message: fatal.message.clone(), ended: fatal.ended }
    }
}

impl State {
    /// Of a node that is not started.
    pub fn new(options: Options) -> Self {
        Self {
            phase: Phase::New,
            options: Some(options),
            thread: None,
            starting: None,
            closers: Vec::new(),
            drain_until: None,
            reap_until: None,
            failure: None,
            waiters: Slab::default(),
            groups: Slab::default(),
            pending: 0,
            pending_bytes: 0,
            outbox: Outbox::default(),
            room: VecDeque::new(),
            at_cursor: CursorWaiters::default(),
            latch: Latch::default(),
            leadership: Vec::new(),
            capture_room: Vec::new(),
            backlog: Backlog::default(),
            longest_drain_ns: 0,
        }
    }

    /// Whether calls are answered.
    pub fn admit(&self) -> Result<(), Refusal> {
        match (self.phase, &self.failure) {
            (Phase::Running, None) => Ok(()),
            (_, Some((why, _))) => Err(Refusal::Failed(why.clone())),
            (Phase::New, None) => Err(Refusal::New),
            (Phase::Closing | Phase::Stopped, None) => Err(Refusal::Closed),
        }
    }

    /// What the node is once it is no member of its cluster any more; `None` before.
    pub fn last_role(&self) -> Option<&'static str> {
        match (self.phase, &self.failure) {
            (_, Some(_)) => Some("stopped"),
            (Phase::Stopped, None) => Some("closed"),
            (Phase::New | Phase::Running | Phase::Closing, None) => None,
        }
    }

    /// A proposal of `bytes` is on its way.
    pub fn add_proposal(&mut self, waiter: Waiter, bytes: usize) -> Token {
        self.pending += 1;
        self.pending_bytes += bytes;
        self.waiters.insert(waiter)
    }

    /// The waiter of `token`, which waits no more.
    pub fn take_waiter(&mut self, token: Token) -> Option<Waiter> {
        let waiter = self.waiters.remove(token)?;
        if let Waiter::Proposal(_, bytes) | Waiter::Item { bytes, .. } = &waiter {
            self.pending -= 1;
            self.pending_bytes -= bytes;
        }
        Some(waiter)
    }

    /// How many more proposals of the usual size fit; 0 when full.
    pub fn room_left(&self, max_pending_proposals: usize, max_pending_bytes: usize) -> usize {
        if self.pending >= max_pending_proposals || self.pending_bytes >= max_pending_bytes {
            return 0;
        }
        let usual = self.pending_bytes.checked_div(self.pending).unwrap_or(0).max(1);
        let by_bytes = (max_pending_bytes - self.pending_bytes).div_ceil(usual);
        by_bytes.min(max_pending_proposals - self.pending)
    }

    /// Takes out every future that waits for anything but the end, and what is at stake in it.
    pub fn take_futures(&mut self) -> Vec<(Future, Stake)> {
        let mut futures: Vec<(Future, Stake)> = Vec::new();
        for waiter in self.waiters.take_all() {
            match waiter {
                Waiter::Proposal(future, _) | Waiter::Change(future) => futures.push((future, Stake::UnderWay)),
                Waiter::Barrier(future, _)
                | Waiter::Range(future)
                | Waiter::Snapshot(future)
                | Waiter::Transfer(future) => {
                    futures.push((future, Stake::Nothing));
                }
                Waiter::Item { .. } => (),
            }
        }
        self.pending = 0;
        self.pending_bytes = 0;
        futures.extend(self.room.drain(..).map(|future| (future, Stake::Unsent)));
        let at_cursor = self.at_cursor.take_all().into_iter().map(|waiter| match waiter {
            AtCursor::Barrier(future, _) | AtCursor::Applied(future) => future,
        });
        let others = at_cursor.chain(self.leadership.drain(..)).chain(self.starting.take());
        futures.extend(others.map(|future| (future, Stake::Nothing)));
        futures
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: pyo3::PyVisit<'_>) -> Result<(), PyTraverseError> {
        for waiter in self.waiters.iter() {
            match waiter {
                Waiter::Proposal(future, _)
                | Waiter::Barrier(future, _)
                | Waiter::Range(future)
                | Waiter::Snapshot(future)
                | Waiter::Transfer(future)
                | Waiter::Change(future) => visit.call(future)?,
                Waiter::Item { .. } => (),
            }
        }
        for group in self.groups.iter() {
            visit.call(&group.future)?;
            group.results.iter().flatten().try_for_each(|result| visit.call(result))?;
        }
        self.room.iter().try_for_each(|future| visit.call(future))?;
        self.at_cursor.iter().try_for_each(|waiter| visit.call(waiter.future()))?;
        self.leadership.iter().try_for_each(|future| visit.call(future))?;
        self.capture_room.iter().try_for_each(|(_, future)| visit.call(future))?;
        self.starting.iter().chain(&self.closers).try_for_each(|future| visit.call(future))?;
        self.failure.iter().try_for_each(|(_, error)| visit.call(error))
    }
}
