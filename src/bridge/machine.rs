//! Calls the user's state machine.

use std::sync::Arc;

use pyo3::exceptions::{PyBaseExceptionGroup, PyException, PyMemoryError, PyOSError, PyRecursionError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;
use pyo3::PyTraverseError;

use super::capture::Capture;
use super::chunks::Chunks;
use super::core::Core;
use super::entry::Entry;
use super::errors::ApplyError;
use crate::driver::capture;
use crate::driver::port::Applied;
use crate::storage::snapshot::{Form, SnapshotFile};

/// Entries given to `apply_batch` at once, at most: enough to spread a transaction's cost, few enough to come back.
pub const BATCH: usize = 256;

/// The user's state machine.
pub struct Machine {
    object: Py<PyAny>,
    // `apply` or `apply_batch`.
    call: Py<PyAny>,
    is_batch: bool,
    // `aioraft._snapshots`
    snapshots: Py<PyModule>,
    // `collections.abc.Coroutine`
    coroutine: Py<PyAny>,
}

/// What `apply` made of one entry: its return value, or the exception that is its result.
pub type Outcome<'py> = Result<Bound<'py, PyAny>, PyErr>;

/// The entry is not applied, and this node must not go on.
pub struct Poisoned {
    /// The sentence for `FatalError`.
    pub message: String,
    /// What was raised.
    pub cause: Option<PyErr>,
}

impl Machine {
    /// Calls `object.apply`, or `object.apply_batch` if `is_batch`.
    pub fn new(object: &Bound<'_, PyAny>, is_batch: bool) -> PyResult<Self> {
        let call = object.getattr(if is_batch { "apply_batch" } else { "apply" })?.unbind();
        let coroutine = object.py().import("collections.abc")?.getattr("Coroutine")?.unbind();
        let snapshots = object.py().import("aioraft._snapshots")?.unbind();
        Ok(Self { object: object.clone().unbind(), call, is_batch, snapshots, coroutine })
    }

    /// Whether it takes several entries a call.
    pub fn is_batch(&self) -> bool {
        self.is_batch
    }

    /// Applies one entry.
    ///
    /// An `Exception` is a result, the same on every replica. What depends on the replica (no memory, no stack, a
    /// failing system call, or a group with one of these) and what is not meant for `apply` (KeyboardInterrupt) is not:
    /// the entry stays unapplied. An awaitable is no result, since nobody would await it on the other replicas.
    pub fn apply<'py>(&self, py: Python<'py>, applied: &Applied) -> Result<Outcome<'py>, Poisoned> {
        let entry = Bound::new(py, Entry::from_applied(py, applied)).map_err(|error| no_entry(applied.index, error))?;
        match self.call.bind(py).call1((entry,)) {
            Ok(value) if is_awaitable(&value) => Ok(Err(self.refuse_awaitable("apply", &value))),
            Ok(value) => Ok(Ok(value)),
            Err(error) if is_result(py, &error) => Ok(Err(error)),
            Err(error) => Err(poisoned(py, "apply", applied.index, error)),
        }
    }

    /// Applies several entries; one outcome for each.
    pub fn apply_batch<'py>(&self, py: Python<'py>, batch: &[Applied]) -> Result<Vec<Outcome<'py>>, Poisoned> {
        let first = batch.first().map_or(0, |applied| applied.index);
        let entries = batch.iter().map(|applied| Entry::from_applied(py, applied));
        let entries = PyList::new(py, entries.collect::<Vec<_>>()).map_err(|error| no_entry(first, error))?;
        let returned =
            self.call.bind(py).call1((entries,)).map_err(|error| poisoned(py, "apply_batch", first, error))?;
        if is_awaitable(&returned) {
            let error = self.refuse_awaitable("apply_batch", &returned);
            return Err(poisoned(py, "apply_batch", first, error));
        }
        let outcomes = returned.try_iter().and_then(Iterator::collect::<PyResult<Vec<_>>>);
        let outcomes = outcomes.map_err(|error| poisoned(py, "apply_batch", first, error))?;
        if outcomes.len() != batch.len() {
            let (found, wanted) = (outcomes.len(), batch.len());
            let message = format!(
                "apply_batch returned {found} results for {wanted} entries from index {first}, so it is unknown which \
                 of them count; this node has stopped: make it return one result or exception for each entry"
            );
            return Err(Poisoned { message, cause: None });
        }
        let mut sorted = Vec::with_capacity(outcomes.len());
        for (outcome, applied) in outcomes.into_iter().zip(batch) {
            if !outcome.is_instance_of::<pyo3::exceptions::PyBaseException>() {
                let is_awaitable = is_awaitable(&outcome);
                sorted.push(if is_awaitable {
                    Err(self.refuse_awaitable("apply_batch", &outcome))
                } else {
                    Ok(outcome)
                });
                continue;
            }
            let error = PyErr::from_value(outcome);
            if !is_result(py, &error) {
                return Err(poisoned(py, "apply_batch", applied.index, error));
            }
            sorted.push(Err(error));
        }
        Ok(sorted)
    }

    /// Asks for a snapshot of what is applied by now. Whatever becomes of it becomes of `capture`; an error is not meant
    /// for it (KeyboardInterrupt).
    pub fn capture(&self, core: &Bound<'_, Core>, capture: Arc<capture::Capture>) -> PyResult<()> {
        let py = core.py();
        let capture = Bound::new(py, Capture::new(capture))?;
        self.snapshots.bind(py).call_method1("take", (core, &self.object, capture)).map(drop)
    }

    /// Replaces the state by that in `file`. There is no going on without it.
    pub fn restore(&self, py: Python<'_>, file: Arc<dyn SnapshotFile>) -> Result<(), Poisoned> {
        let (index, is_chunked) = (file.head().index, file.head().form == Form::Chunks);
        let restored = Bound::new(py, Chunks::new(file.chunks())).map(|chunks| {
            let restored = self.snapshots.bind(py).call_method1("restore", (&self.object, &chunks, is_chunked));
            (restored.err(), chunks.get().close())
        });
        let (message, cause) = match restored {
            Ok((None, None)) => return Ok(()),
            Ok((cause, Some(damage))) => {
                (format!("the snapshot of index {index} cannot be restored, so this node has stopped: {damage}"), cause)
            }
            Ok((Some(error), None)) | Err(error) => {
                let message = format!(
                    "restore raised {} for the snapshot of index {index}, and without that state this node has stopped: \
                     remove the cause and start it again",
                    brief(py, &error)
                );
                (message, Some(error))
            }
        };
        Err(Poisoned { message, cause })
    }

    /// What takes the place of an awaitable that `method` returned. A coroutine is closed: nobody will await it.
    fn refuse_awaitable(&self, method: &str, value: &Bound<'_, PyAny>) -> PyErr {
        let is_coroutine = value.is_instance(self.coroutine.bind(value.py())).unwrap_or(false);
        if let (true, Err(error)) = (is_coroutine, value.call_method0("close")) {
            error.write_unraisable(value.py(), Some(value));
        }
        let kind = value.get_type().name().map_or_else(|_| "an awaitable".to_owned(), |name| name.to_string());
        PyTypeError::new_err(format!(
            "{method} returned an awaitable ({kind}), which no replica awaits: make it plain, return the result itself, \
             and await what it decided after `propose`"
        ))
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: pyo3::PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.object)?;
        visit.call(&self.call)
    }
}

/// What the proposer gets for an exception in `apply`.
pub fn apply_error(py: Python<'_>, index: u64, cause: PyErr) -> PyErr {
    let message =
        format!("apply raised {} for the entry at index {index}; the entry counts as applied", brief(py, &cause));
    let error = ApplyError::new_err((message, index));
    error.set_cause(py, Some(cause));
    error
}

/// "ValueError('no such sku')", and never an error itself.
fn brief(py: Python<'_>, error: &PyErr) -> String {
    match error.value(py).repr() {
        Ok(text) => text.to_string(),
        Err(_) => error.get_type(py).name().map_or_else(|_| "an exception".to_owned(), |name| name.to_string()),
    }
}

/// Whether `error`, and if it is a group all that it holds at any depth, is the same on every replica.
fn is_result(py: Python<'_>, error: &PyErr) -> bool {
    let mut to_check = vec![error.value(py).clone().into_any()];
    while let Some(error) = to_check.pop() {
        if !error.is_instance_of::<PyException>()
            || error.is_instance_of::<PyOSError>()
            || error.is_instance_of::<PyMemoryError>()
            || error.is_instance_of::<PyRecursionError>()
        {
            return false;
        }
        if error.is_instance_of::<PyBaseExceptionGroup>() {
            let held = error.getattr("exceptions").and_then(|held| held.try_iter()?.collect::<PyResult<Vec<_>>>());
            let Ok(held) = held else { return false };
            to_check.extend(held);
        }
    }
    true
}

/// Whether `await` would take `value`.
fn is_awaitable(value: &Bound<'_, PyAny>) -> bool {
    let kind = value.get_type();
    // SAFETY: `kind` is a type and lives until the end of this function; the slot is only compared.
    let slot = unsafe { ffi::PyType_GetSlot(kind.as_type_ptr(), ffi::Py_am_await) };
    !slot.is_null()
}

fn poisoned(py: Python<'_>, method: &str, index: u64, error: PyErr) -> Poisoned {
    let message = format!(
        "{method} raised {} for index {index}, which other replicas may not; the entry is not applied here and this \
         node has stopped: remove the cause and start it again",
        brief(py, &error)
    );
    Poisoned { message, cause: Some(error) }
}

fn no_entry(index: u64, error: PyErr) -> Poisoned {
    let message = format!("the entry at index {index} could not be made for apply; this node has stopped");
    Poisoned { message, cause: Some(error) }
}
