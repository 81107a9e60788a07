//! The Python classes, and the crossing between an asyncio event loop and the driver's thread.
//!
//! | module | what it is |
//! |---|---|
//! | [`core`] | `Core`, the class behind `aioraft.Node`: checks a call, makes its future, hands it to the driver |
//! | `lifecycle` | how a `Core` is connected to its loop, and how it ends |
//! | [`drain`] | the way back: works through the driver's completions on the loop's thread, in bounded slices |
//! | [`machine`] | calls the user's state machine and sorts what it returns and raises |
//! | [`capture`], [`chunks`] | `Capture` and `Chunks`: a snapshot on its way out of Python, and back in |
//! | [`state`], [`slab`], [`cursor_waiters`], [`latch`] | who waits for what |
//! | [`futures`] | asyncio futures: made, resolved, failed |
//! | [`outbox`] | gathers proposals that are made together into one batch |
//! | [`bell`] | wakes the loop: an eventfd that it watches, or a thread that calls `call_soon_threadsafe` |
//! | [`owner`] | tells whether a call comes from the thread, process and interpreter that a node belongs to |
//! | [`entry`] | `Entry` |
//! | [`faults`] | faults put in on purpose, for tests |
//! | [`settings`], [`listen_at`], [`payload`], [`status`], [`errors`], [`changes`] | conversions |
//! | [`hints`] | what the type stubs say |
//! | [`admin`] | `AdminClient`: asks a node what operators ask |
//! | [`inspect`], [`recover`] | what a data directory holds, without a node; and a cluster that goes on from one |
//! | [`logging`] | tracing and slog events on their way to Python's `logging` |
//! | [`start`] | the one place where the driver is started |
//! | [`world`] | a simulated cluster whose state machines are Python's |
//! | [`echo`], [`echo_store`] | a driver without Raft, to measure the crossing by itself, and where its snapshots lie |
//!
//! Two rules hold everywhere here. The driver's threads never take the GIL: nothing that they hold owns a Python
//! object, except for large `bytes` of a snapshot, which they only read, and whose release runs no Python code and
//! is left to whoever next holds the GIL. And no Python code runs, not even a deallocation, while [`state`] is locked, because any Python code may
//! call back into `Core`.

#[cfg(feature = "python")]
pub mod admin;
#[cfg(feature = "python")]
pub mod bell;
#[cfg(feature = "python")]
pub mod capture;
#[cfg(feature = "python")]
pub mod changes;
#[cfg(feature = "python")]
pub mod chunks;
#[cfg(feature = "python")]
pub mod core;
pub mod cursor_waiters;
#[cfg(feature = "python")]
pub mod drain;
#[cfg(feature = "python")]
pub mod echo;
#[cfg(feature = "python")]
pub mod echo_store;
#[cfg(feature = "python")]
pub mod entry;
#[cfg(feature = "python")]
pub mod errors;
#[cfg(feature = "python")]
pub mod faults;
#[cfg(feature = "python")]
pub mod futures;
#[cfg(feature = "python")]
pub mod hints;
#[cfg(feature = "python")]
pub mod inspect;
pub mod latch;
#[cfg(feature = "python")]
mod lifecycle;
#[cfg(feature = "python")]
pub mod listen_at;
#[cfg(feature = "python")]
pub mod logging;
#[cfg(feature = "python")]
pub mod machine;
pub mod outbox;
#[cfg(feature = "python")]
pub mod owner;
#[cfg(feature = "python")]
pub mod payload;
#[cfg(feature = "python")]
pub mod recover;
#[cfg(feature = "python")]
pub mod settings;
pub mod slab;
#[cfg(feature = "python")]
pub mod start;
#[cfg(feature = "python")]
pub mod state;
#[cfg(feature = "python")]
pub mod status;
#[cfg(feature = "python")]
pub mod world;

/// The extension module behind the `aioraft` package. Private: use `aioraft` instead.
#[cfg(feature = "python")]
// Nobody has checked it without a GIL, so a free-threaded interpreter turns its own on (docs/performance.md).
#[pyo3::pymodule(gil_used = true)]
pub mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::admin::AdminClient;
    #[pymodule_export]
    use super::capture::Capture;
    #[pymodule_export]
    use super::chunks::Chunks;
    #[pymodule_export]
    use super::core::Core;
    #[pymodule_export]
    use super::entry::Entry;
    #[pymodule_export]
    use super::faults::Faults;
    #[pymodule_export]
    use super::inspect::inspect;
    #[pymodule_export]
    use super::inspect::recorded;
    #[pymodule_export]
    use super::recover::recover;
    #[pymodule_export]
    use super::world::World;

    #[pymodule_init]
    fn init(py: Python<'_>) -> PyResult<()> {
        super::owner::claim_interpreter(py)?;
        let end_visits = pyo3::wrap_pyfunction!(super::bell::end_visits, py)?;
        py.import("atexit")?.call_method1("register", (end_visits,))?;
        super::owner::watch_forks(py)
    }
}
