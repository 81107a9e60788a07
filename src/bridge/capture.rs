//! `Capture`: a snapshot on its way into its file, as Python has it.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use super::hints::Chunk;
use super::owner::{Owner, Stranger};
use crate::driver::capture;
use crate::driver::port::Wake;
use crate::storage::snapshot::Form;

/// Chunks up to this are copied. A thread that lets go of Python's objects without the GIL holds a lock of PyO3's for a
/// moment; with many small ones it would hold it often, and a fork just then would leave it held in the child for ever.
const COPIED_BYTES_MAX: usize = 1 << 20;

/// A snapshot that the application is asked for. Private: see `aioraft._snapshots`.
///
/// May be used from any thread of its process. What is written after the snapshot has failed, or its node has ended,
/// goes nowhere. Dropped unfinished, it fails.
#[pyclass(frozen, module = "aioraft._core")]
pub struct Capture {
    /// Left as it is in a forked child, where its locks may be held for ever.
    inner: ManuallyDrop<Arc<capture::Capture>>,
    owner: Owner,
}

impl Capture {
    /// For Python.
    pub fn new(inner: Arc<capture::Capture>) -> Self {
        Self { inner: ManuallyDrop::new(inner), owner: Owner::current() }
    }

    /// Whether there is room for a chunk, or no need for any.
    pub fn has_room(&self) -> bool {
        self.inner.has_room()
    }

    /// Has `application` woken at [`Self::has_room`]; false if it holds already.
    pub fn wake_at_room(&self, application: Arc<dyn Wake>) -> bool {
        self.inner.wake_at_room(application)
    }

    /// Its node has ended.
    pub fn abandon(&self) {
        self.inner.fail("the node ended first");
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.owner.check() != Err(Stranger::Process) {
            // SAFETY: nothing uses it behind this.
            unsafe { ManuallyDrop::drop(&mut self.inner) }
        }
    }
}

#[pymethods]
impl Capture {
    /// The snapshot is to be of the state as of this index.
    #[getter]
    fn index(&self) -> u64 {
        self.inner.index()
    }

    /// Whether nothing is wanted any more: it was finished, it has failed, or its node has ended.
    #[getter]
    fn is_over(&self) -> bool {
        self.inner.is_over()
    }

    /// Say what comes: chunks whose boundaries count, or a single value, in however many parts. Once, before the first.
    #[pyo3(signature = (*, chunked: "bool"))]
    fn open(&self, chunked: bool) {
        self.inner.open(if chunked { Form::Chunks } else { Form::Bytes });
    }

    /// Hand over a chunk; a large one is kept alive and not copied. Never blocks; False if there is no room for more, so that
    /// `Core.wait_capture_room` or `wait_room` should come first.
    fn write(&self, chunk: Chunk<'_, '_>) -> PyResult<bool> {
        let bytes = chunk.0.cast_exact::<PyBytes>()?;
        if bytes.as_bytes().len() <= COPIED_BYTES_MAX {
            return Ok(self.inner.write(Box::new(bytes.as_bytes().to_vec())));
        }
        // Released by whoever next holds the GIL, which for exact bytes runs no Python code.
        Ok(self.inner.write(Box::new(PyBackedBytes::from(bytes.to_owned()))))
    }

    /// Block until there is room, without the GIL. For other threads than the event loop's.
    fn wait_room(&self, py: Python<'_>) {
        py.detach(|| self.inner.wait_room());
    }

    /// That was the last chunk.
    fn finish(&self) {
        self.inner.finish();
    }

    /// There is no snapshot, or no more of it: `reason` is a clause for `SnapshotError`.
    #[pyo3(signature = (reason: "str"))]
    fn fail(&self, reason: &str) {
        self.inner.fail(reason);
    }
}
