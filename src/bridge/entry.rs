//! `Entry`: what a state machine applies.

use std::hash::{DefaultHasher, Hash, Hasher};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::driver::port::Applied;

const NANOSECONDS: f64 = 1e9;

/// A committed command, as every node's state machine sees it. Immutable, comparable, hashable, can be pickled.
///
/// Construct one to test a state machine without a cluster: `Entry(1, 1, b"...")`. Raises ValueError if `timestamp`
/// is negative or not finite. `timestamp_ns`, if given, takes the place of `timestamp`, exact to the nanosecond.
#[pyclass(frozen, module = "aioraft")]
pub struct Entry {
    /// Its place in the log. Indexes grow; they are not contiguous, since the cluster's own entries lie between.
    #[pyo3(get)]
    index: u64,
    /// The term of the leader that appended it.
    #[pyo3(get)]
    term: u64,
    /// What was proposed.
    #[pyo3(get)]
    data: Py<PyBytes>,
    /// Replicated time in nanoseconds; see `timestamp`.
    #[pyo3(get)]
    timestamp_ns: u64,
    /// The leader's wall clock, seconds since the Unix epoch, or None; for people: it may jump. Use `timestamp` to
    /// decide anything.
    #[pyo3(get)]
    wall_time: Option<f64>,
}

impl Entry {
    /// What Python sees of `applied`.
    pub fn from_applied(py: Python<'_>, applied: &Applied) -> Self {
        let header = applied.command.header();
        Self {
            index: applied.index,
            term: applied.term,
            data: PyBytes::new(py, applied.command.payload()).unbind(),
            timestamp_ns: header.timestamp_ns,
            wall_time: (header.wall_ns != 0).then(|| header.wall_ns as f64 / NANOSECONDS),
        }
    }

    fn key<'a>(&'a self, py: Python<'a>) -> (u64, u64, u64, Option<u64>, &'a [u8]) {
        (self.index, self.term, self.timestamp_ns, self.wall_time.map(f64::to_bits), self.data.as_bytes(py))
    }
}

#[pymethods]
impl Entry {
    /// The positional arguments of a `case Entry(...)` pattern.
    #[classattr]
    fn __match_args__() -> (&'static str, &'static str, &'static str, &'static str) {
        ("index", "term", "data", "timestamp")
    }

    #[new]
    #[pyo3(signature = (
        index: "int", term: "int", data: "bytes", timestamp: "float" = 0.0,
        *, wall_time: "float | None" = None, timestamp_ns: "int | None" = None
    ))]
    fn new(
        index: u64,
        term: u64,
        data: Py<PyBytes>,
        timestamp: f64,
        wall_time: Option<f64>,
        timestamp_ns: Option<u64>,
    ) -> PyResult<Self> {
        let timestamp_ns = match timestamp_ns {
            Some(exact) => exact,
            None if timestamp.is_finite() && timestamp >= 0.0 => (timestamp * NANOSECONDS).round() as u64,
            None => {
                return Err(PyValueError::new_err(format!(
                    "timestamp = {timestamp}: it must be a number of seconds, not negative"
                )))
            }
        };
        if wall_time.is_some_and(|seconds| !seconds.is_finite()) {
            return Err(PyValueError::new_err("wall_time must be seconds since the Unix epoch, or None"));
        }
        Ok(Self { index, term, data, timestamp_ns, wall_time })
    }

    /// Replicated time in seconds: the same on every node, and never less than that of an earlier entry. Only
    /// differences mean anything.
    #[getter]
    fn timestamp(&self) -> f64 {
        self.timestamp_ns as f64 / NANOSECONDS
    }

    /// Whether the other entry is the same in every field.
    fn __eq__(&self, py: Python<'_>, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| self.key(py) == other.get().key(py))
    }

    /// Agrees with equality.
    fn __hash__(&self, py: Python<'_>) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.key(py).hash(&mut hasher);
        hasher.finish()
    }

    /// The entry; data beyond 64 bytes is left out.
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        const SHOWN: usize = 64;
        let bytes = self.data.as_bytes(py);
        let mut data = PyBytes::new(py, &bytes[..bytes.len().min(SHOWN)]).repr()?.to_string();
        if bytes.len() > SHOWN {
            data = format!("<{} bytes: {data}...>", bytes.len());
        }
        let (index, term, timestamp) = (self.index, self.term, self.timestamp());
        Ok(format!("Entry(index={index}, term={term}, data={data}, timestamp={timestamp:?})"))
    }

    /// The arguments that make an equal entry, for pickle and copy.
    #[pyo3(signature = () -> "tuple[tuple[int, int, bytes], dict[str, int | float | None]]")]
    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        let named = PyDict::new(py);
        named.set_item("timestamp_ns", self.timestamp_ns)?;
        named.set_item("wall_time", self.wall_time)?;
        Ok(((self.index, self.term, &self.data).into_pyobject(py)?, named))
    }
}
