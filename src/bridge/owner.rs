//! Whose node it is: the thread, the process and the interpreter that made it.

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

/// Counts the forks that lead to this process, so that asking for its identity costs no system call.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The interpreter that imported this module first, or [`NO_INTERPRETER`].
static INTERPRETER: AtomicI64 = AtomicI64::new(NO_INTERPRETER);

/// Stands for the identity of no interpreter; real ones are never negative.
const NO_INTERPRETER: i64 = -1;

thread_local! {
    // Only its address is used. A Cell, so that it is never merged with other constants.
    static THREAD: Cell<u8> = const { Cell::new(0) };
}

/// Makes every later fork that Python does visible to [`Owner::check`] in the child.
pub fn watch_forks(py: Python<'_>) -> PyResult<()> {
    let os = py.import("os")?;
    if !os.hasattr("register_at_fork")? {
        return Ok(());
    }
    let count = PyCFunction::new_closure(py, None, None, |_: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| {
        FORKS.fetch_add(1, Ordering::Relaxed);
    })?;
    let arguments = PyDict::new(py);
    arguments.set_item("after_in_child", count)?;
    os.call_method("register_at_fork", (), Some(&arguments))?;
    Ok(())
}

/// Takes this module for the interpreter that runs this; an ImportError if another one has it. Python itself refuses
/// from 3.12 on, and then only interpreters that have a GIL of their own.
///
/// The classes and the exceptions that they raise are the first interpreter's objects, and objects must not be shared.
pub fn claim_interpreter(py: Python<'_>) -> PyResult<()> {
    // SAFETY: the thread is attached to an interpreter, as `py` shows, so there is a current one.
    let here = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    if here < 0 {
        return Err(PyErr::fetch(py));
    }
    match INTERPRETER.compare_exchange(NO_INTERPRETER, here, Ordering::Relaxed, Ordering::Relaxed) {
        Err(first) if first != here => Err(PyImportError::new_err(format!(
            "aioraft serves one interpreter of a process, and interpreter {first} has imported it; this is interpreter \
             {here}: import it there only, or start a process of its own"
        ))),
        _ => Ok(()),
    }
}

/// A thread of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    thread: usize,
    forks: u32,
}

/// Who calls instead of the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// A child of the owner's process: the driver's thread does not exist there.
    Process,
    /// Another thread of the owner's process.
    Thread,
}

impl Owner {
    /// The thread that runs this.
    pub fn current() -> Self {
        Self { thread: THREAD.with(|here| std::ptr::from_ref(here) as usize), forks: FORKS.load(Ordering::Relaxed) }
    }

    /// Whether the thread that runs this is the owner.
    pub fn check(&self) -> Result<(), Stranger> {
        let here = Self::current();
        if here.forks != self.forks {
            Err(Stranger::Process)
        } else if here.thread != self.thread {
            Err(Stranger::Thread)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_thread_is_a_stranger() {
        let owner = Owner::current();
        assert_eq!(owner.check(), Ok(()));
        assert_eq!(std::thread::spawn(move || owner.check()).join().unwrap(), Err(Stranger::Thread));
    }

    #[test]
    fn a_forked_child_is_a_stranger() {
        let owner = Owner { forks: FORKS.load(Ordering::Relaxed).wrapping_add(1), ..Owner::current() };
        assert_eq!(owner.check(), Err(Stranger::Process));
    }
}
