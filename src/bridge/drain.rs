//! The way back from the driver: completions become applied entries and resolved futures, on the loop's thread.
//!
//! One call of [`run`] is a slice: it ends after about [`SLICE`] even if there is more to do, so that the loop's other
//! tasks run in between, and leaves the bell ringing so that the loop calls it again.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::core::Core;
use super::entry::Entry;
use super::errors::{self, Compacted};
use super::machine::{self, Outcome, Poisoned, BATCH};
use super::state::{AtCursor, Backlog, Batch, Phase, Waiter};
use crate::driver::capture::Capture;
use crate::driver::port::{now_ns, Applied, Completion, Failure, Port, Token};
use crate::storage::snapshot::SnapshotFile;

/// How long a slice may hold the loop, unless a single call of `apply` takes longer.
const SLICE: Duration = Duration::from_micros(500);

/// The clock is looked at once for so many steps.
const STEPS_PER_LOOK: u32 = 4;

/// Waiters for room that one slice lets go.
const ROOM_PER_SLICE: usize = 256;

/// Log records that one slice hands over.
const RECORDS_PER_SLICE: usize = 64;

struct Slice {
    started: Instant,
    steps: u32,
    is_over: bool,
}

impl Slice {
    fn new() -> Self {
        Self { started: Instant::now(), steps: 0, is_over: false }
    }

    fn step(&mut self) {
        self.steps += 1;
        if self.steps % STEPS_PER_LOOK == 0 {
            self.look();
        }
    }

    fn look(&mut self) {
        self.is_over |= self.started.elapsed() >= SLICE;
    }
}

/// Works through a slice of what the driver has said. An error is the application's (KeyboardInterrupt and the like),
/// to be passed on to the loop.
pub fn run(this: &Bound<'_, Core>) -> PyResult<()> {
    let core = this.get();
    let Some(port) = core.port.get() else { return Ok(()) };
    // Nested in a call of `apply` that runs an event loop of its own: the outer drain goes on behind it.
    if core.is_draining.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let done = Drain { core, port, slice: Slice::new(), released: 0, passed_on: None }.run(this);
    core.is_draining.store(false, Ordering::Relaxed);
    done
}

struct Drain<'a> {
    core: &'a Core,
    port: &'a Port,
    slice: Slice,
    /// Futures resolved whose tasks may well propose again.
    released: usize,
    /// What `snapshot` raised that is the loop's to handle.
    passed_on: Option<PyErr>,
}

impl Drain<'_> {
    fn run(mut self, this: &Bound<'_, Core>) -> PyResult<()> {
        let py = this.py();
        let mut backlog = std::mem::take(&mut self.core.state.lock().backlog);
        if backlog.is_empty() {
            self.port.completions.take(&mut backlog.completions);
        }
        let worked = self.work(this, &mut backlog);
        let passed_on = match worked {
            Ok(()) => self.passed_on.take().map_or(Ok(()), Err),
            Err(poisoned) => self.core.stop(py, &mut backlog, poisoned),
        };
        let has_more_waiters = self.after(py);
        let is_to_flush = self.core.state.lock().outbox.drained(self.released > 1);
        if is_to_flush {
            self.core.schedule_flush(this);
        }
        self.listen_again(this, backlog, has_more_waiters)?;
        let elapsed_ns = u64::try_from(self.slice.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut state = self.core.state.lock();
        state.longest_drain_ns = state.longest_drain_ns.max(elapsed_ns);
        drop(state);
        passed_on
    }

    /// Leaves the bell ringing if there is more to do; if not, silences it and looks a last time.
    fn listen_again(&self, this: &Bound<'_, Core>, mut backlog: Backlog, has_more_waiters: bool) -> PyResult<()> {
        let bell = &self.core.bell;
        let mut has_more = has_more_waiters || !backlog.is_empty();
        if !has_more {
            self.port.completions.take(&mut backlog.completions);
            has_more = !backlog.is_empty();
        }
        if !has_more {
            // In this order nothing is missed: what comes after the acknowledgements rings again.
            bell.silence();
            self.port.completions.acknowledge_wake();
            self.core.logs.acknowledge();
            self.port.completions.take(&mut backlog.completions);
            let has_room = self.core.state.lock().capture_room.iter().any(|(capture, _)| capture.get().has_room());
            if !backlog.is_empty() || !self.core.logs.is_empty() || has_room {
                bell.ring();
            }
        } else if !bell.is_level_triggered() {
            self.core.call_drain(this, self.core.futures.event_loop(this.py()), "call_soon")?;
        }
        self.core.state.lock().backlog = backlog;
        Ok(())
    }

    fn work(&mut self, this: &Bound<'_, Core>, backlog: &mut Backlog) -> Result<(), Poisoned> {
        let py = this.py();
        while !self.slice.is_over {
            if let Some(batch) = &mut backlog.batch {
                self.apply(py, batch)?;
                if batch.entries.len() == 0 {
                    let (through, bytes) = (batch.through, batch.bytes);
                    backlog.batch = None;
                    self.port.cursor.set_applied(through);
                    self.give_back(bytes);
                }
                continue;
            }
            let Some(completion) = backlog.completions.pop_front() else { return Ok(()) };
            self.slice.step();
            match completion {
                Completion::Apply { entries, through, bytes } => {
                    if !self.core.is_past_draining() {
                        backlog.batch = Some(Batch { entries: entries.into_iter(), through, bytes });
                    }
                }
                Completion::Failed { token, failure } => self.fail(py, token, failure),
                Completion::Barrier { token, index } => self.barrier(py, token, index),
                Completion::Range { token, result } => self.range(py, token, result),
                Completion::Leadership(newest) => {
                    let applied = self.port.cursor.applied();
                    let is_new = self.core.state.lock().latch.set(newest, applied);
                    if is_new {
                        self.tell_leadership(py);
                    }
                }
                Completion::Listening { address } => {
                    let starting = self.core.state.lock().starting.take();
                    if let Some(future) = starting {
                        self.core.futures.resolve(py, future.bind(py), address.to_string());
                    }
                }
                Completion::Capture(capture) => self.capture(this, capture),
                Completion::Restore { file } => self.restore(py, file)?,
                Completion::Snapshot { token, index } => {
                    let waiter = self.core.state.lock().take_waiter(token);
                    if let Some(Waiter::Snapshot(future)) = waiter {
                        self.core.futures.resolve(py, future.bind(py), index);
                    }
                }
                Completion::Transferred { token, leader } => {
                    let waiter = self.core.state.lock().take_waiter(token);
                    if let Some(Waiter::Transfer(future)) = waiter {
                        self.core.futures.resolve(py, future.bind(py), leader);
                    }
                }
                Completion::Changed { token, index, ids } => {
                    let waiter = self.core.state.lock().take_waiter(token);
                    if let Some(Waiter::Change(future)) = waiter {
                        self.core.futures.resolve(py, future.bind(py), (index, ids));
                    }
                }
                Completion::Stopped { fatal } => self.core.stopped_by(py, fatal),
            }
        }
        Ok(())
    }

    fn apply(&mut self, py: Python<'_>, batch: &mut Batch) -> Result<(), Poisoned> {
        while !self.slice.is_over && batch.entries.len() > 0 {
            // Looked at for each entry, because `apply` itself may have closed the node.
            if self.core.is_past_draining() {
                batch.entries = Vec::new().into_iter();
                batch.through = self.port.cursor.applied();
            } else if self.core.machine.is_batch() {
                self.apply_some(py, batch)?;
            } else {
                self.apply_one(py, batch)?;
            }
            // The next one may take as long as an application can: no step is too short to look at the clock.
            self.slice.look();
        }
        Ok(())
    }

    fn apply_one(&mut self, py: Python<'_>, batch: &mut Batch) -> Result<(), Poisoned> {
        // The entry stays in the batch until it is applied: a poisoned one must not be taken for done.
        let Some(applied) = batch.entries.as_slice().first() else { return Ok(()) };
        let inside = self.core.enter_apply();
        let outcome = self.core.machine.apply(py, applied)?;
        drop(inside);
        let (index, token) = (applied.index, applied.token);
        batch.entries.next();
        self.port.cursor.set_applied(index);
        self.settle(py, index, token, outcome);
        Ok(())
    }

    fn apply_some(&mut self, py: Python<'_>, batch: &mut Batch) -> Result<(), Poisoned> {
        let rest = batch.entries.as_slice();
        let part = &rest[..rest.len().min(BATCH)];
        let inside = self.core.enter_apply();
        let outcomes = self.core.machine.apply_batch(py, part)?;
        drop(inside);
        for outcome in outcomes {
            let Some(applied) = batch.entries.next() else { break };
            self.port.cursor.set_applied(applied.index);
            self.settle(py, applied.index, applied.token, outcome);
        }
        Ok(())
    }

    /// Gives `outcome` to whoever proposed the entry here; an exception that nobody waits for is logged.
    fn settle(&mut self, py: Python<'_>, index: u64, token: Option<Token>, outcome: Outcome<'_>) {
        let waiter = token.and_then(|token| self.core.state.lock().take_waiter(token));
        if let Err(error) = &outcome {
            if waiter.as_ref().is_none_or(|waiter| self.core.has_left(py, waiter)) {
                self.core.loggers.apply_failed(py, index, error);
            }
        }
        if let Some(waiter) = waiter {
            self.released += 1;
            self.core.resolve(py, waiter, outcome.map_err(|error| machine::apply_error(py, index, error)));
        }
    }

    /// Asks for a snapshot, which is the state machine's answer before it sees anything further (rules C2, C3).
    fn capture(&mut self, this: &Bound<'_, Core>, capture: Arc<Capture>) {
        if self.core.is_past_draining() {
            return;
        }
        let inside = self.core.enter_apply();
        let taken = self.core.machine.capture(this, capture);
        drop(inside);
        if let Err(error) = taken {
            self.passed_on = Some(error);
            self.slice.is_over = true;
        }
        self.slice.look();
    }

    fn restore(&mut self, py: Python<'_>, file: Arc<dyn SnapshotFile>) -> Result<(), Poisoned> {
        if self.core.is_past_draining() {
            return Ok(());
        }
        let index = file.head().index;
        let inside = self.core.enter_apply();
        self.core.machine.restore(py, file)?;
        drop(inside);
        self.port.cursor.set_applied(index);
        self.slice.look();
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        let left = self.port.completions.consumed(bytes);
        let low_water = self.core.settings.tuning.max_unapplied_bytes / 2;
        if left <= low_water && left + bytes > low_water {
            self.port.inbox.nudge();
        }
    }

    fn fail(&self, py: Python<'_>, token: Token, failure: Failure) {
        let waiter = self.core.state.lock().take_waiter(token);
        let Some(waiter) = waiter else { return };
        let error = match &waiter {
            Waiter::Proposal(..) | Waiter::Item { .. } => errors::of_proposal(failure),
            Waiter::Barrier(..) | Waiter::Range(..) => errors::of_read(failure),
            Waiter::Snapshot(..) => errors::of_snapshot(failure),
            Waiter::Transfer(..) => errors::of_transfer(failure),
            Waiter::Change(..) => errors::of_change(failure),
        };
        self.core.resolve(py, waiter, Err(error));
    }

    fn barrier(&self, py: Python<'_>, token: Token, index: u64) {
        let is_reached = self.port.cursor.applied() >= index;
        let mut state = self.core.state.lock();
        let Some(waiter) = state.take_waiter(token) else { return };
        let Waiter::Barrier(future, deadline_ns) = waiter else {
            drop(state);
            drop(waiter);
            return;
        };
        if !is_reached {
            state.at_cursor.insert(index, deadline_ns, AtCursor::Barrier(future, index));
            return;
        }
        drop(state);
        self.core.futures.resolve(py, future.bind(py), index);
    }

    fn range(&self, py: Python<'_>, token: Token, result: Result<(Vec<Applied>, u64), u64>) {
        let waiter = self.core.state.lock().take_waiter(token);
        let Some(waiter) = waiter else { return };
        let answer = match result {
            Ok((entries, through)) => {
                let entries: Vec<_> = entries.iter().map(|applied| Entry::from_applied(py, applied)).collect();
                PyList::new(py, entries).and_then(|list| (list, through).into_pyobject(py)).map(Bound::into_any)
            }
            Err(begin) => Err(Compacted::new_err((
                format!(
                    "the log begins behind index {begin} by now: read the state machine, then go on after `restart`"
                ),
                begin,
            ))),
        };
        self.core.resolve(py, waiter, answer);
    }

    fn tell_leadership(&self, py: Python<'_>) {
        let waiters = std::mem::take(&mut self.core.state.lock().leadership);
        for future in waiters {
            self.core.futures.resolve(py, future.bind(py), py.None());
        }
    }

    /// What a slice's work has made possible; true if there is more of it than one slice should do.
    fn after(&mut self, py: Python<'_>) -> bool {
        let applied = self.port.cursor.applied();
        let is_new = self.core.state.lock().latch.refresh(applied);
        if is_new {
            self.tell_leadership(py);
        }
        self.tell_cursor(py, applied);
        self.core.make_capture_room(py);
        let has_more = self.let_in(py);
        self.core.loggers.refresh(py, &self.core.logs);
        self.core.loggers.emit(py, &self.core.logs, RECORDS_PER_SLICE);
        has_more || !self.core.logs.is_empty()
    }

    fn tell_cursor(&self, py: Python<'_>, applied: u64) {
        loop {
            let reached = self.core.state.lock().at_cursor.pop_reached(applied);
            let Some(waiter) = reached else { break };
            match waiter {
                AtCursor::Barrier(future, index) => self.core.futures.resolve(py, future.bind(py), index),
                AtCursor::Applied(future) => self.core.futures.resolve(py, future.bind(py), py.None()),
            }
        }
        let late = self.core.state.lock().at_cursor.take_expired(now_ns);
        for waiter in late {
            let reason = "this node has not applied everything up to the read index";
            let error = errors::of_read(Failure::TimedOutUnsent { reason: reason.into() });
            self.core.futures.fail(py, waiter.future().bind(py), error);
        }
    }

    /// Wakes those who wait for room, in order, as many as now fit.
    fn let_in(&mut self, py: Python<'_>) -> bool {
        let mut state = self.core.state.lock();
        if state.room.is_empty() {
            return false;
        }
        let settings = &self.core.settings;
        let fit = state.room_left(settings.max_pending_proposals, settings.max_pending_bytes);
        let let_in: Vec<_> = (0..fit.min(ROOM_PER_SLICE)).map_while(|_| state.room.pop_front()).collect();
        // Those let in may not use their room: the next slice, behind their tasks, offers it to the next in line.
        let has_more = !state.room.is_empty() && fit > 0;
        drop(state);
        self.released += let_in.len();
        for future in let_in {
            self.core.futures.resolve(py, future.bind(py), py.None());
        }
        has_more
    }
}

impl Core {
    /// Whether the caller has cancelled.
    fn has_left(&self, py: Python<'_>, waiter: &Waiter) -> bool {
        let future = match waiter {
            Waiter::Proposal(future, _)
            | Waiter::Barrier(future, _)
            | Waiter::Range(future)
            | Waiter::Snapshot(future)
            | Waiter::Transfer(future)
            | Waiter::Change(future) => future.clone_ref(py),
            Waiter::Item { group, .. } => match self.state.lock().groups.get_mut(*group) {
                Some(group) => group.future.clone_ref(py),
                None => return true,
            },
        };
        future.call_method0(py, "done").and_then(|done| done.is_truthy(py)).unwrap_or(true)
    }

    /// Ends the call of `waiter`.
    pub(super) fn resolve(&self, py: Python<'_>, waiter: Waiter, outcome: PyResult<Bound<'_, PyAny>>) {
        match waiter {
            Waiter::Proposal(future, _)
            | Waiter::Barrier(future, _)
            | Waiter::Range(future)
            | Waiter::Snapshot(future)
            | Waiter::Transfer(future)
            | Waiter::Change(future) => match outcome {
                Ok(value) => self.futures.resolve(py, future.bind(py), value),
                Err(error) => self.futures.fail(py, future.bind(py), error),
            },
            Waiter::Item { group: token, position, .. } => {
                let result = outcome.map_or_else(|error| error.into_value(py).into_any(), Bound::unbind);
                let mut state = self.state.lock();
                let Some(group) = state.groups.get_mut(token) else {
                    drop(state);
                    return;
                };
                group.results[position] = Some(result);
                group.left -= 1;
                if group.left > 0 {
                    return;
                }
                let group = state.groups.remove(token);
                drop(state);
                if let Some(group) = group {
                    self.futures.resolve(py, group.future.bind(py), group.results);
                }
            }
        }
    }

    /// Lets those go on who wait for room in a capture that has some.
    pub(super) fn make_capture_room(&self, py: Python<'_>) {
        let mut state = self.state.lock();
        if state.capture_room.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut state.capture_room);
        let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(capture, _)| capture.get().has_room());
        state.capture_room = rest;
        drop(state);
        for (_capture, future) in ready {
            self.futures.resolve(py, future.bind(py), py.None());
        }
    }

    /// The state machine cannot go on: every call fails, and the driver is told to end.
    fn stop(&self, py: Python<'_>, backlog: &mut Backlog, poisoned: Poisoned) -> PyResult<()> {
        let cause = poisoned.cause;
        // The loop passes these on to whoever runs it, as from any other callback.
        let is_passed_on =
            |error: &PyErr| error.is_instance_of::<PyKeyboardInterrupt>(py) || error.is_instance_of::<PySystemExit>(py);
        let passed_on = cause.as_ref().filter(|error| is_passed_on(error)).map(|error| error.clone_ref(py));
        backlog.batch = None;
        self.give_up(py, poisoned.message, cause);
        passed_on.map_or(Ok(()), Err)
    }

    /// Committed entries are no longer applied, because the node has failed or its time to drain is over.
    fn is_past_draining(&self) -> bool {
        let state = self.state.lock();
        match state.phase {
            Phase::New | Phase::Running => false,
            Phase::Closing | Phase::Stopped => {
                state.failure.is_some() || state.drain_until.is_some_and(|until| Instant::now() >= until)
            }
        }
    }
}
