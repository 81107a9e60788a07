//! How a `Core` is connected to its loop, and how it ends.

use std::time::{Duration, Instant};

use pyo3::exceptions::PyException;
use pyo3::exceptions::PyNotImplementedError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::core::Core;
use super::errors;
use super::owner::Stranger;
use super::state::Why;
use super::state::{Phase, Stake};
use crate::driver::port::{Fatal, Request};

/// How long the end of the driver's thread is waited for once it has said its last word.
const REAP: Duration = Duration::from_secs(5);

/// How long between two looks whether the driver's thread has ended.
const REAP_INTERVAL_S: f64 = 0.001;

impl Core {
    /// The loop calls `_drain` while the bell rings.
    pub(super) fn watch(&self, this: &Bound<'_, Self>) -> PyResult<()> {
        let py = this.py();
        let event_loop = self.futures.event_loop(py);
        // A reader runs in a copy of the context in which it is added; for what stands in for one, here is the same.
        let context = py.import("contextvars")?.call_method0("copy_context")?;
        self.context.get_or_init(|| context.unbind());
        let added = event_loop.call_method1("add_reader", (self.bell.fd(), this.getattr("_drain")?));
        match added {
            Ok(_) => Ok(()),
            Err(error) if error.is_instance_of::<PyNotImplementedError>(py) => {
                let target = py.import("weakref")?.call_method1("ref", (this,))?;
                Ok(self.bell.use_caller(event_loop.clone().unbind(), target.unbind())?)
            }
            Err(error) => Err(error),
        }
    }

    /// Has `event_loop` call `_drain`, by its method `how`, where it is no reader of it.
    pub(super) fn call_drain(&self, this: &Bound<'_, Self>, event_loop: &Bound<'_, PyAny>, how: &str) -> PyResult<()> {
        let keywords = PyDict::new(this.py());
        keywords.set_item("context", self.context.get())?;
        event_loop.call_method(how, (this.getattr("_drain")?,), Some(&keywords))?;
        Ok(())
    }

    /// The loop calls it no more.
    pub(super) fn unwatch(&self, py: Python<'_>) {
        if self.bell.is_level_triggered() {
            let removed = self.futures.event_loop(py).call_method1("remove_reader", (self.bell.fd(),));
            if let Err(error) = removed {
                error.write_unraisable(py, None);
            }
        }
        self.bell.close();
    }

    /// Asks the driver to end, behind everything that was proposed.
    pub(super) fn ask_to_close(&self, drain: Duration) {
        self.flush();
        if let Some(port) = self.port.get() {
            port.inbox.request(Request::Close { drain });
        }
    }

    /// This node stops by itself: every call fails now, and the driver is told to end.
    pub(super) fn give_up(&self, py: Python<'_>, message: String, cause: Option<PyErr>) {
        self.say(py, &message, cause.as_ref());
        self.fail_all(py, Some((Why { message, ended: None }, cause)));
        self.ask_to_close(Duration::ZERO);
        let mut state = self.state.lock();
        if state.phase == Phase::Running {
            state.phase = Phase::Closing;
        }
    }

    /// A node that stops by itself says so, whether or not somebody waits for it.
    fn say(&self, py: Python<'_>, message: &str, cause: Option<&PyErr>) {
        // Ctrl-C and exits are the application's own, and pass on to its loop.
        if cause.is_some_and(|cause| !cause.is_instance_of::<PyException>(py)) {
            return;
        }
        let said = py.import("logging").and_then(|logging| {
            let keywords = PyDict::new(py);
            keywords.set_item("exc_info", cause.map(|cause| cause.value(py)))?;
            let fields = PyDict::new(py);
            fields.set_item("node", self.node_id)?;
            let extra = PyDict::new(py);
            extra.set_item("aioraft", fields)?;
            keywords.set_item("extra", extra)?;
            let logger = logging.call_method1("getLogger", ("aioraft.node",))?;
            logger.call_method("error", ("node %d has stopped: %s", self.node_id, message), Some(&keywords))
        });
        if let Err(error) = said {
            error.write_unraisable(py, None);
        }
    }

    /// The driver has said its last word.
    pub(super) fn stopped_by(&self, py: Python<'_>, fatal: Option<Fatal>) {
        self.unwatch(py);
        let starting = self.state.lock().starting.take();
        if let (Some(future), Some(fatal)) = (starting, &fatal) {
            let error = errors::of_start(py, fatal);
            self.futures.fail(py, future.bind(py), error);
        }
        self.fail_all(py, fatal.map(|fatal| (Why::of(&fatal), None)));
        let mut state = self.state.lock();
        state.phase = Phase::Stopped;
        state.reap_until = Some(Instant::now() + REAP);
    }

    /// Fails whoever waits for anything but the end, and notes why.
    fn fail_all(&self, py: Python<'_>, failure: Option<(Why, Option<PyErr>)>) {
        let fatal = failure.map(|(why, cause)| {
            let error = errors::fatal(&why, None);
            error.set_cause(py, cause.as_ref().map(|cause| cause.clone_ref(py)));
            (why, cause, error.into_value(py))
        });
        let mut state = self.state.lock();
        // The first failure is the one that counts.
        let mut spare = None;
        let mut cause = None;
        if let Some((why, raised, error)) = fatal {
            cause = raised;
            if state.failure.is_none() {
                state.failure = Some((why, error));
            } else {
                spare = Some(error);
            }
        }
        let why = state.failure.as_ref().map(|(why, _)| why.clone());
        state.latch.clear();
        let groups = state.groups.take_all();
        let futures = state.take_futures();
        let captures = std::mem::take(&mut state.capture_room);
        drop(state);
        drop(spare);
        // Whoever writes a snapshot finds that it is over.
        for (capture, future) in captures {
            capture.get().abandon();
            self.futures.resolve(py, future.bind(py), py.None());
        }
        let error = |stake| match &why {
            Some(why) => {
                let error = errors::stopped(py, why, stake);
                error.set_cause(py, cause.as_ref().map(|cause| cause.clone_ref(py)));
                error
            }
            None => errors::closed((stake != Stake::UnderWay).then_some(false)),
        };
        for (future, stake) in futures {
            self.futures.fail(py, future.bind(py), error(stake));
        }
        for group in groups {
            let fill =
                |result: Option<Py<PyAny>>| result.unwrap_or_else(|| error(Stake::UnderWay).into_value(py).into_any());
            let results: Vec<_> = group.results.into_iter().map(fill).collect();
            self.futures.resolve(py, group.future.bind(py), results);
        }
    }

    /// Starts to wait for the end of the driver's thread, if the driver has said its last word.
    pub(super) fn reap_if_stopped(this: &Bound<'_, Self>) -> PyResult<()> {
        let state = this.get().state.lock();
        let is_due = state.phase == Phase::Stopped && state.thread.is_some();
        drop(state);
        if is_due {
            Self::reap(this)?;
        }
        Ok(())
    }

    /// Ends the closing once the driver's thread has ended; until then, looks again soon.
    pub(super) fn reap(this: &Bound<'_, Self>) -> PyResult<()> {
        let (py, core) = (this.py(), this.get());
        let mut state = core.state.lock();
        let has_ended = state.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished);
        let is_late = state.reap_until.is_some_and(|until| Instant::now() >= until);
        if !has_ended && !is_late {
            drop(state);
            return core.reap_later(this);
        }
        let thread = state.thread.take();
        let closers = std::mem::take(&mut state.closers);
        drop(state);
        if let (Some(thread), true) = (thread, has_ended) {
            // It has said its last word, so even a panic behind that changes nothing.
            let _ = thread.join();
        }
        core.loggers.emit(py, &core.logs, usize::MAX);
        for future in closers {
            core.futures.resolve(py, future.bind(py), py.None());
        }
        Ok(())
    }

    fn reap_later(&self, this: &Bound<'_, Self>) -> PyResult<()> {
        let event_loop = self.futures.event_loop(this.py());
        event_loop.call_method1("call_later", (REAP_INTERVAL_S, this.getattr("_reap")?))?;
        Ok(())
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let thread = state.thread.take();
        if self.owner.check() == Err(Stranger::Process) {
            // In a forked child the driver's thread does not exist, and its locks may be held for ever.
            std::mem::forget(thread);
            return;
        }
        self.bell.close();
        if let (Phase::Running | Phase::Closing, Some(port)) = (state.phase, self.port.get()) {
            port.inbox.request(Request::Close { drain: Duration::ZERO });
        }
        // The thread ends by itself; waiting for it could block the interpreter.
        drop(thread);
    }
}
