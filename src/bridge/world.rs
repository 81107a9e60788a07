//! `World`: a simulated cluster whose state machines are Python's.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use parking_lot::Mutex;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::errors::RaftError;
use super::hints::Figures;
use super::machine::{Machine, Poisoned, BATCH};
use crate::driver::port::Applied;
use crate::sim::guest::{visit, Guest, GUEST_BYTES_MAX};

/// Signals are looked at once for so many things that happen: some milliseconds.
const HAPPENINGS_PER_LOOK: u32 = 512;

/// Nodes that a world can have.
const NODES: std::ops::RangeInclusive<usize> = 2..=9;

/// A simulated minute of a cluster's life. Private: use `aioraft.testing.Simulation`.
///
/// Raises ValueError if there are not 2 to 9 nodes.
#[pyclass(frozen, module = "aioraft._core")]
pub struct World {
    /// What decides everything in it.
    #[pyo3(get)]
    seed: u64,
    nodes: usize,
    transcript: Mutex<Vec<String>>,
}

#[pymethods]
impl World {
    #[new]
    #[pyo3(signature = (seed: "int", nodes: "int"))]
    fn new(seed: u64, nodes: usize) -> PyResult<Self> {
        if !NODES.contains(&nodes) {
            return Err(PyValueError::new_err(format!(
                "a simulated cluster of {nodes} nodes: it can have {} to {}",
                NODES.start(),
                NODES.end()
            )));
        }
        Ok(Self { seed, nodes, transcript: Mutex::default() })
    }

    /// Let it happen, from the birth of the cluster to its end, and return figures about it.
    ///
    /// `guest.command(now)` returns the next command, bytes; `now` is virtual time in nanoseconds.
    /// `guest.start(now, node)` is called when a node starts and returns its replica. Once `replica.now` is set,
    /// `replica.apply(entry)`, or `replica.apply_batch(entries)` if `replica.is_batch`, is treated as a node treats a state
    /// machine. `replica.settle(value, error)` is told what each entry came to, in order, and
    /// `replica.refuse(message, error)` that the node stops with the next one unapplied.
    ///
    /// What `guest` and `replica` raise themselves ends the world and is raised here; so are signals' exceptions, within
    /// a moment, and what `apply` raises that is no Exception. Raises RaftError for a fault of aioraft itself.
    #[pyo3(signature = (guest, record: "bool" = false))]
    fn run<'py>(&self, guest: &Bound<'py, PyAny>, record: bool) -> PyResult<Figures<'py>> {
        let py = guest.py();
        let ending = Rc::new(Cell::new(None));
        let visitor = Visitor {
            guest: guest.clone().unbind(),
            replicas: BTreeMap::new(),
            ending: Rc::clone(&ending),
            happenings: 0,
            is_over: false,
        };
        let seen = visit(self.seed, self.nodes, Box::new(visitor), record);
        *self.transcript.lock() = seen.transcript;
        if let Some(error) = ending.take() {
            return Err(error);
        }
        if let Some(violation) = seen.violation {
            return Err(RaftError::new_err(format!(
                "the simulated world of seed {} with {} nodes found a fault that is aioraft's own, not the state \
                 machine's: please report it with this text ({violation})",
                self.seed, self.nodes
            )));
        }
        let figures = PyDict::new(py);
        figures.set_item("seconds", seen.seconds)?;
        figures.set_item("applied", seen.figures.applied)?;
        figures.set_item("leaders", seen.figures.leaders)?;
        figures.set_item("starts", seen.figures.starts)?;
        figures.set_item("faults", seen.faults.into_iter().collect::<BTreeMap<_, _>>())?;
        Ok(Figures(figures))
    }

    /// What happened in the last `run` that recorded it, a line each.
    #[getter]
    fn transcript(&self) -> Vec<String> {
        self.transcript.lock().clone()
    }
}

/// Stands in the world for what Python gave.
struct Visitor {
    guest: Py<PyAny>,
    replicas: BTreeMap<usize, Replica>,
    /// What ends the world.
    ending: Rc<Cell<Option<PyErr>>>,
    is_over: bool,
    happenings: u32,
}

struct Replica {
    object: Py<PyAny>,
    machine: Machine,
    settle: Py<PyAny>,
    refuse: Py<PyAny>,
}

impl Visitor {
    /// The first error is the one that counts.
    fn end(&mut self, error: PyErr) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.ending.set(Some(error));
        }
    }

    fn next_command(&self, py: Python<'_>, now: u64) -> PyResult<Vec<u8>> {
        let command = self.guest.bind(py).call_method1("command", (now,))?;
        let command = command.cast_into::<PyBytes>()?;
        let bytes = command.as_bytes();
        if bytes.len() > GUEST_BYTES_MAX {
            return Err(PyValueError::new_err(format!(
                "a command of {} bytes: the largest that a simulation takes has {GUEST_BYTES_MAX}",
                bytes.len()
            )));
        }
        Ok(bytes.to_vec())
    }

    fn replica(&self, py: Python<'_>, now: u64, machine: usize) -> PyResult<Replica> {
        let replica = self.guest.bind(py).call_method1("start", (now, machine + 1))?;
        let is_batch = replica.getattr("is_batch")?.is_truthy()?;
        Ok(Replica {
            machine: Machine::new(&replica, is_batch)?,
            settle: replica.getattr("settle")?.unbind(),
            refuse: replica.getattr("refuse")?.unbind(),
            object: replica.unbind(),
        })
    }
}

impl Replica {
    /// How many of the entries it applied.
    fn apply(&self, py: Python<'_>, now: u64, entries: &[Applied]) -> PyResult<usize> {
        self.object.bind(py).setattr(intern!(py, "now"), now)?;
        let mut applied = 0;
        let size = if self.machine.is_batch() { BATCH } else { 1 };
        for part in entries.chunks(size) {
            let outcomes = match part {
                [one] if !self.machine.is_batch() => self.machine.apply(py, one).map(|outcome| vec![outcome]),
                many => self.machine.apply_batch(py, many),
            };
            match outcomes {
                Ok(outcomes) => {
                    for outcome in outcomes {
                        let (value, error) = match outcome {
                            Ok(value) => (Some(value), None),
                            Err(error) => (None, Some(error.into_value(py))),
                        };
                        self.settle.bind(py).call1((value, error))?;
                        applied += 1;
                    }
                }
                // What is not meant for `apply`, Ctrl-C first of all, is the caller's.
                Err(Poisoned { cause: Some(cause), .. }) if !cause.is_instance_of::<PyException>(py) => {
                    return Err(cause);
                }
                Err(Poisoned { message, cause }) => {
                    self.refuse.bind(py).call1((message, cause.map(|cause| cause.into_value(py))))?;
                    return Ok(applied);
                }
            }
        }
        Ok(applied)
    }
}

impl Guest for Visitor {
    fn command(&mut self, now: u64) -> Vec<u8> {
        if self.is_over {
            return Vec::new();
        }
        Python::attach(|py| self.next_command(py, now)).unwrap_or_else(|error| {
            self.end(error);
            Vec::new()
        })
    }

    fn start(&mut self, now: u64, machine: usize) {
        if self.is_over {
            return;
        }
        match Python::attach(|py| self.replica(py, now, machine)) {
            Ok(replica) => drop(self.replicas.insert(machine, replica)),
            Err(error) => self.end(error),
        }
    }

    fn apply(&mut self, now: u64, machine: usize, entries: &[Applied]) -> usize {
        let replica = self.replicas.get(&machine).filter(|_| !self.is_over);
        let Some(replica) = replica else { return 0 };
        Python::attach(|py| replica.apply(py, now, entries)).unwrap_or_else(|error| {
            self.end(error);
            0
        })
    }

    fn goes_on(&mut self) -> bool {
        self.happenings += 1;
        if self.happenings % HAPPENINGS_PER_LOOK == 0 {
            if let Err(error) = Python::attach(|py| py.check_signals()) {
                self.end(error);
            }
        }
        !self.is_over
    }
}
