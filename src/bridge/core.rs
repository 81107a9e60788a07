//! `Core`: one node, as its event loop sees it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use pyo3::exceptions::{PyBaseException, PyValueError};
use pyo3::prelude::*;
use pyo3::PyTraverseError;

use super::bell::{Bell, Rope};
use super::capture::Capture;
use super::changes::{self, ChangeOf};
use super::entry::Entry;
use super::errors::{self, NodeClosedError, RaftError, ReentrantCallError, SnapshotError, WrongLoopError};
use super::faults::Faults;
use super::futures::Futures;
use super::hints::{Data, EventLoop, Figures, FutureOf, Items, Nothing};
use super::latch::View;
use super::listen_at::ListenAt;
use super::logging::{LogQueue, Loggers, RaftDrain, Subscriber};
use super::machine::Machine;
use super::outbox::Next;
use super::owner::{Owner, Stranger};
use super::settings::{duration, Settings};
use super::start::{start_driver, Joins, Options};
use super::state::{AtCursor, Group, Phase, Refusal, State, Waiter};
use super::{drain, payload, status};
use crate::driver::port::{now_ns, Fatal, Port, Proposal, Request, Wake};

/// A node, on the side of its event loop. Private: use `aioraft.Node`.
///
/// It belongs to the loop, thread and process in which it was made; anywhere else every method raises
/// `WrongLoopError`. Methods that return a future raise at once what can be known at once; a future that is cancelled
/// stops the waiting, not the work. A node that has stopped by itself raises `FatalError`, one that is closed (or not
/// started) `NodeClosedError`.
///
/// `apply` runs on the loop's thread, in a copy of the context (`contextvars`) in which `start` was called: always the
/// same copy, so that what one `apply` sets there the next one finds, and nobody else.
///
/// `listen` is "host:port", or the file descriptor of a bound TCP socket, which is duplicated. `config` has the
/// attributes of `aioraft.Config`. With `batch` the entries go to `state_machine.apply_batch`, 256 at most in a call.
/// With `snapshots` the state machine is asked for them; `durable_applied` is what it says by its method of that name.
/// With `echo` there is no Raft and no cluster: what is proposed to a single member is applied at once, and several
/// members never have a majority; it is there to measure and to test the way between asyncio and the driver.
#[pyclass(frozen, weakref, module = "aioraft._core")]
pub struct Core {
    pub(super) owner: Owner,
    pub(super) node_id: u64,
    is_echo: bool,
    takes_snapshots: bool,
    running_loop: Py<PyAny>,
    pub(super) settings: Settings,
    pub(super) futures: Futures,
    pub(super) machine: Machine,
    pub(super) bell: Arc<Bell>,
    pub(super) logs: Arc<LogQueue>,
    pub(super) loggers: Loggers,
    pub(super) port: OnceLock<Port>,
    /// A copy of the context in which it was started; `apply` runs in it.
    pub(super) context: OnceLock<Py<PyAny>>,
    pub(super) is_draining: AtomicBool,
    is_applying: AtomicBool,
    pub(super) state: Mutex<State>,
}

/// Inside `apply`, until it is dropped.
pub(super) struct InsideApply<'a>(&'a AtomicBool);

impl Drop for InsideApply<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[pymethods]
impl Core {
    #[new]
    #[pyo3(signature = (
        *, r#loop, node_id: "int", members: "dict[int, str]", cluster: "str",
        data_dir: "str | None", listen: "str | int", advertise: "str | None", config,
        state_machine, batch: "bool" = false, snapshots: "bool" = false,
        durable_applied: "tuple[int, int] | None" = None, echo: "bool" = false, faults: "Faults | None" = None,
        joins: "tuple[str, int | None] | None" = None
    ))]
    #[allow(clippy::too_many_arguments)] // all of them by name
    fn new(
        r#loop: EventLoop<'_, '_>,
        node_id: u64,
        members: BTreeMap<u64, String>,
        cluster: String,
        data_dir: Option<String>,
        listen: ListenAt,
        advertise: Option<String>,
        config: &Bound<'_, PyAny>,
        state_machine: &Bound<'_, PyAny>,
        batch: bool,
        snapshots: bool,
        durable_applied: Option<(u64, u64)>,
        echo: bool,
        faults: Option<PyRef<'_, Faults>>,
        joins: Option<(String, Option<u128>)>,
    ) -> PyResult<Self> {
        let event_loop = r#loop.0;
        let py = event_loop.py();
        let settings = Settings::read(config)?;
        let bell = Arc::new(Bell::new()?);
        let logs = Arc::new(LogQueue::new(Arc::clone(&bell), node_id));
        let options = Options {
            id: node_id,
            members,
            cluster,
            data_dir: data_dir.map(Into::into),
            listen: listen.resolve()?,
            advertise,
            tuning: settings.tuning.clone(),
            takes_snapshots: snapshots,
            durable_applied,
            logger: slog::Logger::root(RaftDrain(Arc::clone(&logs)), slog::o!()),
            dispatch: tracing::Dispatch::new(Subscriber(Arc::clone(&logs))),
            joins: joins.map(|(name, identity)| Joins { name, identity }),
            faults: faults.map(|faults| faults.0.clone()),
        };
        Ok(Self {
            owner: Owner::current(),
            node_id,
            is_echo: echo,
            takes_snapshots: snapshots,
            running_loop: py.import("asyncio")?.getattr("_get_running_loop")?.unbind(),
            settings,
            futures: Futures::new(&event_loop)?,
            machine: Machine::new(state_machine, batch)?,
            bell,
            logs,
            loggers: Loggers::new(py)?,
            port: OnceLock::new(),
            context: OnceLock::new(),
            is_draining: AtomicBool::new(false),
            is_applying: AtomicBool::new(false),
            state: Mutex::new(State::new(options)),
        })
    }

    /// Start the driver. The future resolves with the bound "host:port" once the node listens, or fails with
    /// `FatalError` (the log cannot be opened, say) or `ConfigError` (the directory is another node's, say). Raises
    /// RaftError if it was started before.
    /// Cancelling does not stop the start: `close` does.
    fn start<'py>(slf: &Bound<'py, Self>) -> PyResult<FutureOf<'py, String>> {
        let (py, this) = (slf.py(), slf.get());
        this.check_loop(py)?;
        let future = this.futures.create(py)?;
        let options = {
            let mut state = this.state.lock();
            if state.phase == Phase::New {
                state.options.take()
            } else {
                None
            }
        };
        let Some(options) = options else {
            this.admit(py)?;
            return Err(RaftError::new_err("the node has been started already: start it once"));
        };
        this.loggers.refresh(py, &this.logs);
        this.watch(slf)?;
        let spawned = match start_driver(options, Box::new(Rope(Arc::clone(&this.bell))), this.is_echo) {
            Ok(spawned) => spawned,
            Err(error) => {
                this.unwatch(py);
                this.state.lock().phase = Phase::Stopped;
                return Err(errors::of_start(py, &Fatal::here(error.to_string())));
            }
        };
        // `options` are taken once, so nothing was set before.
        let _ = this.port.set(spawned.port);
        let mut state = this.state.lock();
        state.thread = Some(spawned.thread);
        state.phase = Phase::Running;
        state.starting = Some(future.clone().unbind());
        drop(state);
        Ok(future.into())
    }

    /// Propose `data`, which is copied; the future resolves with what `apply` returned here, on this node.
    ///
    /// `timeout` is in seconds; None waits for ever. Raises TypeError (not bytes), `ProposalTooLargeError`,
    /// `ReentrantCallError` (inside `apply`). The future fails with `ProposalTimeoutError` or `NotCommittedError` (not
    /// committed), `OutcomeUnknownError` (it may be applied), `ApplyError` or `AppliedWithoutResultError` (it is
    /// applied). Cancelling stops the waiting, not the proposal.
    #[pyo3(signature = (data, timeout: "float | None"))]
    fn propose<'py>(
        slf: &Bound<'py, Self>,
        data: Data<'_, 'py>,
        timeout: Option<f64>,
    ) -> PyResult<FutureOf<'py, Py<PyAny>>> {
        let (py, this) = (slf.py(), slf.get());
        this.check_call(py)?;
        let command = payload::copy(&data.0, this.settings.tuning.max_entry_bytes)?;
        let deadline_ns = deadline(timeout)?;
        let port = this.running(py)?;
        if is_no_time(timeout) {
            return Err(errors::no_time_to_propose());
        }
        let future = this.futures.create(py)?;
        let bytes = command.payload().len();
        let waiter = Waiter::Proposal(future.clone().unbind(), bytes);
        let next = {
            let mut state = this.state.lock();
            let token = state.add_proposal(waiter, bytes);
            state.outbox.put(Proposal { token, command, deadline_ns })
        };
        match next {
            Next::Wait => (),
            Next::Schedule => this.schedule_flush(slf),
            Next::Send(proposal) => port.inbox.propose(proposal),
            Next::SendAll(proposals) => port.inbox.propose_many(proposals),
        }
        Ok(future.into())
    }

    /// Propose each of `items`, without order or atomicity among them. The future resolves with a list that holds, for
    /// each item in order, its result or its exception. All else as with `propose`; what is raised at once concerns
    /// the whole list, of which nothing is proposed then.
    #[pyo3(signature = (
        items, timeout: "float | None"
    ))]
    fn propose_many<'py>(
        &self,
        py: Python<'py>,
        items: Items<'_, 'py>,
        timeout: Option<f64>,
    ) -> PyResult<FutureOf<'py, Vec<Py<PyAny>>>> {
        self.check_call(py)?;
        let max_entry_bytes = self.settings.tuning.max_entry_bytes;
        let copies = items.0.try_iter()?.map(|item| payload::copy(&item?, max_entry_bytes));
        let commands = copies.collect::<PyResult<Vec<_>>>()?;
        let deadline_ns = deadline(timeout)?;
        let port = self.running(py)?;
        if commands.is_empty() {
            return Ok(self.futures.resolved(py, Vec::<Py<PyAny>>::new())?.into());
        }
        if is_no_time(timeout) {
            return Err(errors::no_time_to_propose());
        }
        let future = self.futures.create(py)?;
        let mut state = self.state.lock();
        let results = std::iter::repeat_with(|| None).take(commands.len()).collect();
        let group = state.groups.insert(Group { future: future.clone().unbind(), results, left: commands.len() });
        let waits = commands.into_iter().enumerate().map(|(position, command)| {
            let bytes = command.payload().len();
            let token = state.add_proposal(Waiter::Item { group, position, bytes }, bytes);
            Proposal { token, command, deadline_ns }
        });
        let proposals: Vec<_> = waits.collect();
        drop(state);
        port.inbox.propose_many(proposals);
        Ok(future.into())
    }

    /// Whether as much is pending as `Config.max_pending_proposals` or `max_pending_bytes` allow. `propose` does not
    /// look at it.
    #[getter]
    fn full(&self) -> PyResult<bool> {
        self.check_owner()?;
        Ok(self.room_left(&self.state.lock()) == 0)
    }

    /// Wait until it is no longer `full`: a future, resolved in the order of the calls, a bounded number at a time.
    /// Look at `full` again afterwards.
    fn wait_room<'py>(&self, py: Python<'py>) -> PyResult<FutureOf<'py, Nothing>> {
        self.check_call(py)?;
        self.running(py)?;
        let future = self.futures.create(py)?;
        let mut state = self.state.lock();
        if state.room.is_empty() && self.room_left(&state) > 0 {
            drop(state);
            self.futures.resolve(py, &future, py.None());
        } else {
            state.room.push_back(future.clone().unbind());
        }
        Ok(future.into())
    }

    /// Wait until the state machine here holds everything that was committed before this call. The future resolves
    /// with the index read at, or fails with `ReadTimeoutError`. `timeout` is in seconds; None waits for ever. Raises
    /// `ReentrantCallError` inside `apply`.
    #[pyo3(signature = (timeout: "float | None"))]
    fn read_barrier<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<FutureOf<'py, u64>> {
        self.check_call(py)?;
        let deadline_ns = deadline(timeout)?;
        let port = self.running(py)?;
        if is_no_time(timeout) {
            return Err(errors::no_time_to_read());
        }
        let future = self.futures.create(py)?;
        let token = self.state.lock().waiters.insert(Waiter::Barrier(future.clone().unbind(), deadline_ns));
        port.inbox.request(Request::ReadBarrier { token, deadline_ns });
        Ok(future.into())
    }

    /// Take a snapshot, or wait for the one that is being taken. The future resolves with its index once it is durable,
    /// or fails with `SnapshotError` or `SnapshotTimeoutError`. `timeout` is in seconds; None waits for ever. Raises
    /// `SnapshotError` if the state machine has none, `ReentrantCallError` inside `apply`. Cancelling stops the waiting,
    /// not the snapshot.
    #[pyo3(signature = (timeout: "float | None"))]
    fn snapshot<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<FutureOf<'py, u64>> {
        self.check_call(py)?;
        let deadline_ns = deadline(timeout)?;
        let port = self.running(py)?;
        if !self.takes_snapshots {
            return Err(SnapshotError::new_err(
                "the state machine has no snapshot(), so the log is kept whole: override snapshot() and restore()",
            ));
        }
        if is_no_time(timeout) {
            return Err(errors::no_time_for_snapshot());
        }
        let future = self.futures.create(py)?;
        let token = self.state.lock().waiters.insert(Waiter::Snapshot(future.clone().unbind()));
        port.inbox.request(Request::Snapshot { token, deadline_ns });
        Ok(future.into())
    }

    /// Have `to` lead in the place of this node, or whoever is furthest. The future resolves with the id of the new
    /// leader, or fails with `TransferError` or `TransferTimeoutError`. `timeout` is in seconds; None waits for ever.
    /// Raises `ReentrantCallError` inside `apply`. Cancelling stops the waiting, not the transfer.
    #[pyo3(signature = (to: "int | None", timeout: "float | None"))]
    fn transfer_leader<'py>(
        &self,
        py: Python<'py>,
        to: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<FutureOf<'py, u64>> {
        self.check_call(py)?;
        let deadline_ns = deadline(timeout)?;
        let port = self.running(py)?;
        if is_no_time(timeout) {
            return Err(errors::no_time_to_transfer());
        }
        let future = self.futures.create(py)?;
        let token = self.state.lock().waiters.insert(Waiter::Transfer(future.clone().unbind()));
        port.inbox.request(Request::TransferLeader { token, to, deadline_ns });
        Ok(future.into())
    }

    /// Change the members, all of `changes` at once: each is ("add", "promote", "demote", "remove" or "update", id, address,
    /// metadata); "add" and "update" take the last two, and "add" an id of 0 for one of the cluster's choice. The future
    /// resolves with the index of the change and the ids concerned, or fails with `MembershipError` or
    /// `MembershipTimeoutError`. `timeout` is in seconds; None waits for ever.
    /// Raises `ReentrantCallError` inside `apply`. Cancelling stops the waiting, not the change.
    #[pyo3(signature = (changes: "list[tuple[str, int, str, dict[str, str] | None]]", timeout: "float | None"))]
    fn change_members<'py>(
        &self,
        py: Python<'py>,
        changes: Vec<ChangeOf>,
        timeout: Option<f64>,
    ) -> PyResult<FutureOf<'py, (u64, Vec<u64>)>> {
        self.check_call(py)?;
        let changes = changes::read(changes)?;
        let deadline_ns = deadline(timeout)?;
        let port = self.running(py)?;
        if is_no_time(timeout) {
            return Err(errors::no_time_to_change());
        }
        let future = self.futures.create(py)?;
        let token = self.state.lock().waiters.insert(Waiter::Change(future.clone().unbind()));
        port.inbox.request(Request::Change { token, changes, deadline_ns });
        Ok(future.into())
    }

    /// Wait until `capture` has room for a chunk, or is over: a future, which never fails.
    fn wait_capture_room<'py>(&self, py: Python<'py>, capture: Py<Capture>) -> PyResult<FutureOf<'py, Nothing>> {
        self.check_owner()?;
        let future = self.futures.create(py)?;
        let rope: Arc<dyn Wake> = Arc::new(Rope(Arc::clone(&self.bell)));
        let is_running = matches!(self.state.lock().phase, Phase::Running | Phase::Closing);
        if !is_running {
            capture.get().abandon();
        }
        // Noted first: the bell may ring at once.
        self.state.lock().capture_room.push((capture.clone_ref(py), future.clone().unbind()));
        if !capture.get().wake_at_room(rope) {
            self.make_capture_room(py);
        }
        Ok(future.into())
    }

    /// Read applied entries behind index `after` again, up to about `max_bytes` of them. The future resolves with
    /// (entries, the index through which they are complete), or fails with `Compacted`.
    #[pyo3(signature = (after: "int", max_bytes: "int"))]
    fn read_applied<'py>(
        &self,
        py: Python<'py>,
        after: u64,
        max_bytes: u64,
    ) -> PyResult<FutureOf<'py, (Vec<Entry>, u64)>> {
        self.check_call(py)?;
        let port = self.running(py)?;
        let future = self.futures.create(py)?;
        let token = self.state.lock().waiters.insert(Waiter::Range(future.clone().unbind()));
        port.inbox.request(Request::ReadApplied { token, after, max_bytes });
        Ok(future.into())
    }

    /// The index through which the state machine here has applied.
    #[getter]
    fn applied(&self) -> PyResult<u64> {
        self.check_owner()?;
        Ok(self.port.get().map_or(0, |port| port.cursor.applied()))
    }

    /// Wait until `applied` is greater than `beyond`: a future.
    #[pyo3(signature = (beyond: "int"))]
    fn wait_applied<'py>(&self, py: Python<'py>, beyond: u64) -> PyResult<FutureOf<'py, Nothing>> {
        self.check_call(py)?;
        let port = self.running(py)?;
        if port.cursor.applied() > beyond {
            return Ok(self.futures.resolved(py, py.None())?.into());
        }
        let future = self.futures.create(py)?;
        let waiter = AtCursor::Applied(future.clone().unbind());
        self.state.lock().at_cursor.insert(beyond.saturating_add(1), None, waiter);
        Ok(future.into())
    }

    /// The newest known leadership: (version, term, leader, leading term). The version counts the changes. The leading
    /// term is set while this node leads and its state machine has applied what was committed before that term.
    #[getter]
    fn leadership(&self, py: Python<'_>) -> PyResult<View> {
        self.check_loop(py)?;
        Ok(self.state.lock().latch.view())
    }

    /// Wait until the version of `leadership` differs from `version`: a future.
    #[pyo3(signature = (version: "int"))]
    fn wait_leadership<'py>(&self, py: Python<'py>, version: u64) -> PyResult<FutureOf<'py, Nothing>> {
        self.check_call(py)?;
        self.running(py)?;
        let future = self.futures.create(py)?;
        let mut state = self.state.lock();
        if state.latch.version() != version {
            drop(state);
            self.futures.resolve(py, &future, py.None());
        } else {
            state.leadership.push(future.clone().unbind());
        }
        Ok(future.into())
    }

    /// Figures under the names of `aioraft.Status`' fields, as of the driver's last round. Never waits. The role is
    /// "stopped" once the node has stopped by itself and "closed" once it is closed, and its peers and their leader are
    /// no longer known then.
    fn status<'py>(&self, py: Python<'py>) -> PyResult<Figures<'py>> {
        self.check_owner()?;
        self.loggers.refresh(py, &self.logs);
        let mut figures = match self.port.get() {
            Some(port) => port.status.lock().clone(),
            None => crate::driver::port::Status { id: self.node_id, role: "forming", ..Default::default() },
        };
        let own = {
            let state = self.state.lock();
            if let Some(role) = state.last_role() {
                status::forget_others(&mut figures, role);
            }
            status::Own {
                python_applied: self.port.get().map_or(0, |port| port.cursor.applied()),
                pending_proposals: state.pending,
                longest_drain_ns: state.longest_drain_ns,
            }
        };
        status::to_dict(py, &figures, &own).map(Figures)
    }

    /// Stop: a leader hands over, for which it takes half of `drain` at most; calls in flight get `drain` seconds to end,
    /// then fail with `NodeClosedError`. The future resolves when
    /// the driver's thread has ended, and never fails. May be called again; a shorter `drain` takes over. Cancelling
    /// stops the waiting, not the closing. Never blocks. Once `drain` is over nothing is applied any more, not even the
    /// next entry when it was `apply` that called with 0.
    #[pyo3(signature = (drain: "float"))]
    fn close<'py>(slf: &Bound<'py, Self>, drain: f64) -> PyResult<FutureOf<'py, Nothing>> {
        let (py, this) = (slf.py(), slf.get());
        this.check_loop(py)?;
        let drain = duration(drain).ok_or_else(|| {
            PyValueError::new_err(format!("drain = {drain}: it must be a number of seconds, not negative"))
        })?;
        let future = this.futures.create(py)?;
        let until = Instant::now().checked_add(drain);
        let mut state = this.state.lock();
        if state.phase == Phase::New || (state.phase == Phase::Stopped && state.thread.is_none()) {
            state.phase = Phase::Stopped;
            let unused = state.options.take();
            drop(state);
            drop(unused);
            this.futures.resolve(py, &future, py.None());
            return Ok(future.into());
        }
        state.closers.push(future.clone().unbind());
        let is_sooner = match (state.drain_until, until) {
            (Some(set), Some(until)) => until < set,
            (None, _) => true,
            (Some(_), None) => false,
        };
        let is_asked = state.phase == Phase::Running || (state.phase == Phase::Closing && is_sooner);
        if is_asked {
            state.phase = Phase::Closing;
            state.drain_until = until;
        }
        let is_new = state.latch.resign(this.port.get().map_or(0, |port| port.cursor.applied()));
        let watchers = if is_new { std::mem::take(&mut state.leadership) } else { Vec::new() };
        drop(state);
        for watcher in watchers {
            this.futures.resolve(py, watcher.bind(py), py.None());
        }
        if is_asked {
            this.ask_to_close(drain);
        }
        Ok(future.into())
    }

    /// Why the node answers no more: a `FatalError` if it stopped by itself, a `NodeClosedError` once it is closed,
    /// None before.
    #[getter]
    fn stopped(&self, py: Python<'_>) -> PyResult<Option<Py<PyBaseException>>> {
        self.check_owner()?;
        let state = self.state.lock();
        if let Some((_, error)) = &state.failure {
            return Ok(Some(error.clone_ref(py)));
        }
        let is_closed = state.phase == Phase::Stopped;
        drop(state);
        Ok(is_closed.then(|| refused(Refusal::Closed).into_value(py)))
    }

    /// Called by the loop when the driver has something to say.
    fn _drain(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().check_owner()?;
        drain::run(slf)?;
        Self::reap_if_stopped(slf)
    }

    /// Called by the loop when the tasks that may propose together have run.
    fn _flush(&self) -> PyResult<()> {
        self.check_owner()?;
        self.flush();
        Ok(())
    }

    /// Called by the loop until the driver's thread has ended.
    fn _reap(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().check_owner()?;
        Self::reap(slf)
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.running_loop)?;
        self.context.get().map_or(Ok(()), |context| visit.call(context))?;
        self.futures.traverse(visit)?;
        self.machine.traverse(visit)?;
        // A collector that runs while the state is locked sees too little, and so collects too little.
        self.state.try_lock().map_or(Ok(()), |state| state.traverse(visit))
    }
}

impl Core {
    /// Whether this thread and process are the node's.
    fn check_owner(&self) -> PyResult<()> {
        self.owner.check().map_err(|stranger| {
            let id = self.node_id;
            WrongLoopError::new_err(match stranger {
                Stranger::Process => format!(
                    "node {id} was started before this process was forked and lives on in the parent only: start nodes \
                     after forking"
                ),
                Stranger::Thread => format!(
                    "node {id} was called from another thread than its event loop's: use \
                     asyncio.run_coroutine_threadsafe, or loop.call_soon_threadsafe"
                ),
            })
        })
    }

    /// Whether it is this node's loop that runs here.
    fn check_loop(&self, py: Python<'_>) -> PyResult<()> {
        self.check_owner()?;
        // Only one loop runs in a thread at a time.
        if self.futures.is_loop_running(py)? {
            return Ok(());
        }
        let running = self.running_loop.bind(py).call0()?;
        // No running loop: a callback of another kind, or code between two runs. Its futures are still this loop's.
        if running.is_none() || running.is(self.futures.event_loop(py)) {
            return Ok(());
        }
        Err(WrongLoopError::new_err(format!(
            "node {} belongs to another event loop than the one that runs here: use it in the loop in which it was \
             started",
            self.node_id
        )))
    }

    /// Whether this is a place from which calls that wait can be made.
    fn check_call(&self, py: Python<'_>) -> PyResult<()> {
        self.check_loop(py)?;
        if self.is_applying.load(Ordering::Relaxed) {
            return Err(ReentrantCallError::new_err(
                "called from inside apply, which it would have to wait for: return from apply first, and propose from \
                 a task",
            ));
        }
        Ok(())
    }

    /// The port of a node that answers calls.
    fn running(&self, py: Python<'_>) -> PyResult<&Port> {
        self.admit(py)?;
        self.port.get().ok_or_else(|| refused(Refusal::New))
    }

    fn admit(&self, py: Python<'_>) -> PyResult<()> {
        let admitted = self.state.lock().admit();
        admitted.map_err(|refusal| {
            let error = refused(refusal);
            error.set_cause(py, self.cause(py));
            error
        })
    }

    /// What `apply` raised, if that is why the node has stopped.
    fn cause(&self, py: Python<'_>) -> Option<PyErr> {
        let failure = self.state.lock().failure.as_ref().map(|(_, error)| error.clone_ref(py));
        PyErr::from_value(failure?.into_bound(py).into_any()).cause(py)
    }

    fn room_left(&self, state: &State) -> usize {
        state.room_left(self.settings.max_pending_proposals, self.settings.max_pending_bytes)
    }

    /// Has the loop call `_flush` behind what is ready to run.
    pub(super) fn schedule_flush(&self, this: &Bound<'_, Self>) {
        let event_loop = self.futures.event_loop(this.py());
        let scheduled = this.getattr("_flush").and_then(|flush| event_loop.call_method1("call_soon", (flush,)));
        if scheduled.is_err() {
            self.flush();
        }
    }

    pub(super) fn flush(&self) {
        let proposals = self.state.lock().outbox.flush();
        if let (false, Some(port)) = (proposals.is_empty(), self.port.get()) {
            port.inbox.propose_many(proposals);
        }
    }

    /// Until the guard is dropped, calls that wait are refused.
    pub(super) fn enter_apply(&self) -> InsideApply<'_> {
        self.is_applying.store(true, Ordering::Relaxed);
        InsideApply(&self.is_applying)
    }
}

/// `timeout` from now on, on the driver's clock.
fn deadline(timeout: Option<f64>) -> PyResult<Option<u64>> {
    let Some(seconds) = timeout else { return Ok(None) };
    if seconds.is_nan() {
        return Err(PyValueError::new_err("timeout is not a number: give seconds, or None to wait for ever"));
    }
    // Saturates at both ends: a negative timeout has passed, an infinite one never does.
    Ok(Some(now_ns().saturating_add((seconds * 1e9) as u64)))
}

/// Whether a deadline has passed before the call begins; the driver could only guess at the reason.
fn is_no_time(timeout: Option<f64>) -> bool {
    timeout.is_some_and(|seconds| seconds <= 0.0)
}

fn refused(refusal: Refusal) -> PyErr {
    match refusal {
        Refusal::New => NodeClosedError::new_err(("the node has not been started: await start() first", false)),
        Refusal::Closed => NodeClosedError::new_err(("the node is closed: make a new one", false)),
        Refusal::Failed(why) => errors::fatal(&why, Some(false)),
    }
}
