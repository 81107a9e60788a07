//! A driver without Raft: it "commits" at once what it is given.
//!
//! It shares every line of the bridge with the real one, so that benchmarks can tell what the crossing between asyncio
//! and a thread costs by itself, and tests can drive the bridge alone. A single member leads from the start. With more
//! members there is never a majority: calls wait for their deadlines.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::Mutex;

use crate::driver::clock;
use crate::driver::port::{
    now_ns, Applied, Completion, Completions, Cursor, Failure, Fatal, Inbox, InboxBatch, Leadership, Port, Proposal,
    Request, Status, Token, Wake,
};
use crate::driver::{Listen, Options, SpawnError, Spawned};

const TERM: u64 = 1;
const NO_MAJORITY: &str = "an echo with several members has no leader";

/// Starts the echo's thread.
pub fn spawn(options: Options, application: Box<dyn Wake>) -> Result<Spawned, SpawnError> {
    let sleeper = Arc::new(Sleeper::default());
    let port = Port {
        inbox: Arc::new(Inbox::new(Box::new(Rouse(Arc::clone(&sleeper))))),
        completions: Arc::new(Completions::new(application)),
        cursor: Arc::new(Cursor::default()),
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
        index: 0,
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

/// A call that waits for a majority that never comes.
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
                Request::Snapshot { .. } => {}
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

    fn range(&self, after: u64, max_bytes: u64) -> Result<(Vec<Applied>, u64), u64> {
        let first = self.index + 1 - self.history.len() as u64;
        if after + 1 < first {
            return Err(first);
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
        if self.undecided.iter().all(|call| call.deadline_ns.is_none()) {
            return;
        }
        let now_ns = now_ns();
        let out = &mut self.out;
        self.undecided.retain(|call| {
            let is_late = call.deadline_ns.is_some_and(|deadline| deadline <= now_ns);
            if is_late {
                let failure = Failure::TimedOutUnsent { reason: NO_MAJORITY.into() };
                out.push(Completion::Failed { token: call.token, failure });
            }
            !is_late
        });
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        self.undecided.iter().filter_map(|call| call.deadline_ns).chain(self.close_at_ns).min()
    }

    fn is_drained(&self) -> bool {
        self.waiting.is_empty() && self.undecided.is_empty()
    }

    fn end(&mut self) {
        let waiting = self.waiting.drain(..).map(|proposal| proposal.token);
        let tokens = waiting.chain(self.undecided.drain(..).map(|call| call.token));
        self.out.extend(tokens.map(|token| Completion::Failed { token, failure: Failure::ClosedUnsent }));
        self.stop(None);
    }

    fn stop(&mut self, fatal: Option<Fatal>) {
        self.out.push(Completion::Stopped { fatal });
        self.port.completions.push(&mut self.out);
    }
}

fn bind(listen: Listen) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = match listen {
        Listen::Address(address) => TcpListener::bind(address)?,
        Listen::Socket(listener) => listener,
    };
    let address = listener.local_addr()?;
    Ok((listener, address))
}
