//! asyncio futures of one event loop.

use pyo3::exceptions::asyncio::InvalidStateError;
use pyo3::prelude::*;
use pyo3::IntoPyObjectExt as _;
use pyo3::PyTraverseError;

/// Makes, resolves and fails the futures of one event loop; on its thread only.
pub struct Futures {
    event_loop: Py<PyAny>,
    is_running: Py<PyAny>,
    create: Py<PyAny>,
    // Plain functions of the future's class: calling them makes no bound method for every future.
    set_result: Py<PyAny>,
    set_exception: Py<PyAny>,
}

impl Futures {
    /// For the futures that `event_loop.create_future()` makes.
    pub fn new(event_loop: &Bound<'_, PyAny>) -> PyResult<Self> {
        let create = event_loop.getattr("create_future")?;
        let class = create.call0()?.get_type();
        Ok(Self {
            event_loop: event_loop.clone().unbind(),
            is_running: event_loop.getattr("is_running")?.unbind(),
            create: create.unbind(),
            set_result: class.getattr("set_result")?.unbind(),
            set_exception: class.getattr("set_exception")?.unbind(),
        })
    }

    /// The loop.
    pub fn event_loop<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.event_loop.bind(py)
    }

    /// Whether the loop runs, which on its thread means: whether it is the one that runs.
    pub fn is_loop_running(&self, py: Python<'_>) -> PyResult<bool> {
        self.is_running.bind(py).call0()?.is_truthy()
    }

    /// A pending future.
    pub fn create<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.create.bind(py).call0()
    }

    /// A future that is resolved already.
    pub fn resolved<'py>(&self, py: Python<'py>, value: impl IntoPyObject<'py>) -> PyResult<Bound<'py, PyAny>> {
        let future = self.create(py)?;
        self.resolve(py, &future, value);
        Ok(future)
    }

    /// Resolves `future`, unless its waiter has cancelled it.
    pub fn resolve<'py>(&self, py: Python<'py>, future: &Bound<'py, PyAny>, value: impl IntoPyObject<'py>) {
        let value = value.into_bound_py_any(py);
        let set = value.and_then(|value| self.set_result.bind(py).call1((future, value)));
        report(py, future, set);
    }

    /// Fails `future`, unless its waiter has cancelled it.
    pub fn fail<'py>(&self, py: Python<'py>, future: &Bound<'py, PyAny>, error: PyErr) {
        let set = self.set_exception.bind(py).call1((future, error.into_value(py)));
        report(py, future, set);
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: pyo3::PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.is_running)?;
        visit.call(&self.create)
    }
}

/// A future that is done already was cancelled: asking first would cost a call for each of the others.
fn report(py: Python<'_>, future: &Bound<'_, PyAny>, set: PyResult<Bound<'_, PyAny>>) {
    if let Err(error) = set {
        if !error.is_instance_of::<InvalidStateError>(py) {
            error.write_unraisable(py, Some(future));
        }
    }
}
