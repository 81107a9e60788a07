//! Whose node it is: the thread and the process that made it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

/// Counts the forks that lead to this process, so that asking for its identity costs no system call.
static FORKS: AtomicU32 = AtomicU32::new(0);

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
