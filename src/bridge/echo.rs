//! A driver without Raft: it "commits" at once what it is given.
//!
//! It shares every line of the bridge with the real one, so that benchmarks can tell what the crossing between asyncio
//! and a thread costs by itself, and tests can drive the bridge alone. A single member leads from the start. With more
//! members there is never a majority: calls wait for their deadlines.
//!
//! Its snapshot lies in its `data_dir`, and the next echo that is started there begins with it.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::Mutex;

use super::echo_store::EchoStore;
use crate::driver::capture::Captures;
use crate::driver::clock;
use crate::driver::port::{
    now_ns, Applied, Completion, Completions, Cursor, Failure, Fatal, Inbox, InboxBatch, Leadership, Port, Proposal,
    Request, Status, Token, Wake,
};
use crate::driver::{Listen, Options, SpawnError, Spawned};
use crate::engine::APPLICATION_GROUP;
use crate::storage::snapshot::SnapshotFile;

const TERM: u64 = 1;
const NO_MAJORITY: &str = "an echo with several members has no leader";

/// Starts the echo's thread.
pub fn spawn(options: Options, application: Box<dyn Wake>) -> Result<Spawned, SpawnError> {
    let sleeper = Arc::new(Sleeper::default());
    let held = options.durable_applied.map_or(0, |(index, _)| index);
    let store = Arc::new(EchoStore::new(options.data_dir.clone()));
    let newest = store.newest().filter(|file| file.head().index > held);
    let rouse = Box::new(Rouse(Arc::clone(&sleeper)));
    let port = Port {
        inbox: Arc::new(Inbox::new(Box::new(Rouse(Arc::clone(&sleeper))))),
        completions: Arc::new(Completions::new(application)),
        cursor: Arc::new(Cursor::at(held)),
        status: Arc::new(Mutex::new(Status { id: options.id, role: "follower", boot: 1, ..Status::default() })),
    };
    let echo = Echo {
        port: port.clone(),
        is_alone: options.members.len() <= 1,
        id: options.id,
        waiting: VecDeque::new(),
        undecided: Vec::new(),
        history: VecDeque::new(),
        history_bytes: 0,
        max_history_bytes: options.tuning.entry_cache_bytes,
        max_unapplied_bytes: options.tuning.max_unapplied_bytes,
        index: newest.as_ref().map_or(held, |file| file.head().index),
        newest,
        trail: options.tuning.snapshot_trail,
        captures: Captures::new(options.id, store, rouse, options.dispatch.clone()),
        is_capturing: false,
        snapshotting: Vec::new(),
        close_at_ns: None,
        out: Vec::new(),
    };
    let listen = options.listen;
    let dispatch = options.dispatch;
    let thread = thread::Builder::new()
        .name("aioraft-echo".to_owned())
        .spawn(move || tracing::dispatcher::with_default(&dispatch, || echo.run(listen, &sleeper)))?;
    Ok(Spawned { port, thread })
}

#[derive(Default)]
struct Sleeper {
    thread: OnceLock<Thread>,
}

struct Rouse(Arc<Sleeper>);

impl Wake for Rouse {
    fn wake(&self) {
        // Before the thread has said who it is, it has not looked at its inbox either.
        if let Some(thread) = self.0.thread.get() {
            thread.unpark();
        }
    }
}

impl Sleeper {
    fn sleep_until(wake_at_ns: Option<u64>) {
        match wake_at_ns {
            None => thread::park(),
            Some(at) => thread::park_timeout(Duration::from_nanos(at.saturating_sub(now_ns()))),
        }
    }
}

/// A call that waits for something that may not come, such as a majority.
struct Undecided {
    token: Token,
    deadline_ns: Option<u64>,
}

struct Echo {
    port: Port,
    is_alone: bool,
    id: u64,
    /// Not committed yet, because the application has too much to apply.
    waiting: VecDeque<Proposal>,
    undecided: Vec<Undecided>,
    /// The newest entries, for `ReadApplied`.
    history: VecDeque<Applied>,
    history_bytes: usize,
    max_history_bytes: usize,
    max_unapplied_bytes: usize,
    index: u64,
    /// What it begins with.
    newest: Option<Arc<dyn SnapshotFile>>,
    /// Entries kept behind a snapshot.
    trail: u64,
    captures: Captures,
    is_capturing: bool,
    /// Wait for the snapshot that is being taken.
    snapshotting: Vec<Undecided>,
    close_at_ns: Option<u64>,
    out: Vec<Completion>,
}

impl Echo {
    fn run(mut self, listen: Listen, sleeper: &Sleeper) {
        let _ = sleeper.thread.set(thread::current());
        match bind(listen) {
            // The listener only keeps the address: nobody is accepted.
            Ok((_listener, address)) => {
                tracing::info!(%address, members = if self.is_alone { 1 } else { 2 }, "the echo has started");
                self.out.push(Completion::Listening { address });
                self.out.extend(self.newest.take().map(|file| Completion::Restore { file }));
                self.lead();
                self.serve();
            }
            Err(error) => {
                let message = format!("the address cannot be bound ({error}): name a free one of this machine");
                self.stop(Some(Fatal::here(message)));
            }
        }
    }

    fn serve(&mut self) {
        let mut batch = InboxBatch::default();
        loop {
            self.port.inbox.take(&mut batch);
            let is_idle = batch.proposals.is_empty() && batch.requests.is_empty();
            self.take(&mut batch);
            self.commit();
            self.take_outcomes();
            self.expire();
            if self.close_at_ns.is_some_and(|at| self.is_drained() || at <= now_ns()) {
                self.end();
                return;
            }
            self.port.completions.push(&mut self.out);
            if is_idle {
                Sleeper::sleep_until(self.next_deadline_ns());
            }
        }
    }

    fn lead(&mut self) {
        let mut status = self.port.status.lock();
        status.term = TERM;
        if self.is_alone {
            status.role = "leader";
            status.leader = Some(self.id);
            let leadership = Leadership { term: TERM, leader: Some(self.id), leading_from: Some(0) };
            self.out.push(Completion::Leadership(leadership));
        }
    }

    fn take(&mut self, batch: &mut InboxBatch) {
        for proposal in batch.proposals.drain(..) {
            if self.is_alone {
                self.waiting.push_back(proposal);
            } else {
                self.undecided.push(Undecided { token: proposal.token, deadline_ns: proposal.deadline_ns });
            }
        }
        for request in batch.requests.drain(..) {
            match request {
                Request::ReadBarrier { token, .. } if self.is_alone => {
                    self.commit();
                    self.out.push(Completion::Barrier { token, index: self.index });
                }
                Request::ReadBarrier { token, deadline_ns } => self.undecided.push(Undecided { token, deadline_ns }),
                Request::ReadApplied { token, after, max_bytes } => {
                    let result = self.range(after, max_bytes);
                    self.out.push(Completion::Range { token, result });
                }
                Request::Snapshot { token, deadline_ns } => {
                    self.commit();
                    self.snapshotting.push(Undecided { token, deadline_ns });
                    if !std::mem::replace(&mut self.is_capturing, true) {
                        let capture = self.captures.begin(APPLICATION_GROUP, self.index, TERM, Vec::new());
                        self.out.push(Completion::Capture(capture));
                    }
                }
                Request::TransferLeader { token, .. } if self.is_alone => {
                    let reason = "the echo has no other node that could lead".into();
                    self.out.push(Completion::Failed { token, failure: Failure::Transfer { reason } });
                }
                Request::Change { token, .. } if self.is_alone => {
                    let reason = "the echo has no members that could change".into();
                    self.out.push(Completion::Failed { token, failure: Failure::Refused { reason } });
                }
                Request::TransferLeader { token, deadline_ns, .. } | Request::Change { token, deadline_ns, .. } => {
                    self.undecided.push(Undecided { token, deadline_ns });
                }
                #[cfg(test)]
                Request::Unguarded(_) => {}
                Request::Close { drain } => {
                    let at = now_ns().saturating_add(u64::try_from(drain.as_nanos()).unwrap_or(u64::MAX));
                    self.close_at_ns = Some(self.close_at_ns.map_or(at, |earlier| earlier.min(at)));
                }
            }
        }
    }

    fn commit(&mut self) {
        if self.waiting.is_empty() || self.port.completions.unapplied_bytes() > self.max_unapplied_bytes {
            return;
        }
        let (time_ns, wall_ns) = (now_ns(), clock::wall_ns());
        let mut entries = Vec::with_capacity(self.waiting.len());
        let mut bytes = 0;
        for mut proposal in self.waiting.drain(..) {
            self.index += 1;
            proposal.command.set_time(time_ns, wall_ns);
            bytes += proposal.command.as_bytes().len();
            let token = Some(proposal.token);
            entries.push(Applied { index: self.index, term: TERM, command: proposal.command, token });
        }
        for entry in entries.iter().filter(|_| self.max_history_bytes > 0) {
            self.history_bytes += entry.command.as_bytes().len();
            self.history.push_back(entry.clone());
        }
        while self.history_bytes > self.max_history_bytes {
            let Some(oldest) = self.history.pop_front() else { break };
            self.history_bytes -= oldest.command.as_bytes().len();
        }
        self.out.push(Completion::Apply { entries, through: self.index, bytes });
        let mut status = self.port.status.lock();
        (status.commit, status.applied, status.last_index) = (self.index, self.index, self.index);
        status.first_index = self.index + 1 - self.history.len() as u64;
        status.timestamp_ns = time_ns;
    }

    fn take_outcomes(&mut self) {
        for outcome in self.captures.take_outcomes() {
            self.is_capturing = false;
            let index = outcome.index;
            if outcome.result.is_ok() {
                while self.history.front().is_some_and(|oldest| oldest.index + self.trail <= index) {
                    let oldest = self.history.pop_front();
                    self.history_bytes -= oldest.map_or(0, |oldest| oldest.command.as_bytes().len());
                }
            }
            let failure = outcome.result.err().map(|reason| Failure::Snapshot { reason });
            self.out.extend(self.snapshotting.drain(..).map(|Undecided { token, .. }| match failure.clone() {
                None => Completion::Snapshot { token, index },
                Some(failure) => Completion::Failed { token, failure },
            }));
        }
    }

    fn range(&self, after: u64, max_bytes: u64) -> Result<(Vec<Applied>, u64), u64> {
        let first = self.index + 1 - self.history.len() as u64;
        if after + 1 < first {
            return Err(first - 1);
        }
        let applied = self.port.cursor.applied();
        let (mut entries, mut through, mut bytes) = (Vec::new(), after, 0);
        let from = (after + 1 - first) as usize;
        for entry in self.history.iter().skip(from).take_while(|entry| entry.index <= applied) {
            through = entry.index;
            bytes += entry.command.as_bytes().len() as u64;
            entries.push(Applied { token: None, ..entry.clone() });
            if bytes >= max_bytes {
                break;
            }
        }
        Ok((entries, through))
    }

    fn expire(&mut self) {
        let calls = self.undecided.iter().chain(&self.snapshotting);
        if calls.filter_map(|call| call.deadline_ns).next().is_none() {
            return;
        }
        let now_ns = now_ns();
        for token in take_late(&mut self.undecided, now_ns) {
            let failure = Failure::TimedOutUnsent { reason: NO_MAJORITY.into() };
            self.out.push(Completion::Failed { token, failure });
        }
        for token in take_late(&mut self.snapshotting, now_ns) {
            self.out.push(Completion::Failed { token, failure: Failure::TimedOut });
        }
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        let calls = self.undecided.iter().chain(&self.snapshotting);
        calls.filter_map(|call| call.deadline_ns).chain(self.close_at_ns).min()
    }

    fn is_drained(&self) -> bool {
        self.waiting.is_empty() && self.undecided.is_empty() && self.snapshotting.is_empty()
    }

    fn end(&mut self) {
        let waiting = self.waiting.drain(..).map(|proposal| proposal.token);
        let undecided = self.undecided.drain(..).chain(self.snapshotting.drain(..));
        let tokens = waiting.chain(undecided.map(|call| call.token));
        self.out.extend(tokens.map(|token| Completion::Failed { token, failure: Failure::ClosedUnsent }));
        self.stop(None);
    }

    fn stop(&mut self, fatal: Option<Fatal>) {
        self.out.push(Completion::Stopped { fatal });
        self.port.completions.push(&mut self.out);
    }
}

fn take_late(calls: &mut Vec<Undecided>, now_ns: u64) -> impl Iterator<Item = Token> {
    let is_late = |call: &Undecided| call.deadline_ns.is_some_and(|deadline| deadline <= now_ns);
    let (late, rest): (Vec<_>, Vec<_>) = std::mem::take(calls).into_iter().partition(is_late);
    *calls = rest;
    late.into_iter().map(|call| call.token)
}

fn bind(listen: Listen) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = match listen {
        Listen::Address(address) => TcpListener::bind(address)?,
        Listen::Socket(listener) => listener,
    };
    let address = listener.local_addr()?;
    Ok((listener, address))
}
