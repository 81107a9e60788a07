//! The Python classes, and the crossing between an asyncio event loop and the driver's thread.
//!
//! | module | what it is |
//! |---|---|
//! | [`core`] | `Core`, the class behind `aioraft.Node`: checks a call, makes its future, hands it to the driver |
//! | `lifecycle` | how a `Core` is connected to its loop, and how it ends |
//! | [`drain`] | the way back: works through the driver's completions on the loop's thread, in bounded slices |
//! | [`machine`] | calls the user's state machine and sorts what it returns and raises |
//! | [`state`], [`slab`], [`cursor_waiters`], [`latch`] | who waits for what |
//! | [`futures`] | asyncio futures: made, resolved, failed |
//! | [`outbox`] | gathers proposals that are made together into one batch |
//! | [`bell`] | wakes the loop: an eventfd that it watches, or a thread that calls `call_soon_threadsafe` |
//! | [`owner`] | tells whether a call comes from the thread and process that a node belongs to |
//! | [`entry`] | `Entry` |
//! | [`settings`], [`listen_at`], [`payload`], [`status`], [`errors`] | conversions |
//! | [`hints`] | what the type stubs say |
//! | [`logging`] | tracing and slog events on their way to Python's `logging` |
//! | [`start`] | the one place where the driver is started |
//! | [`echo`] | a driver without Raft, to measure the crossing by itself |
//!
//! Two rules hold everywhere here. The driver's threads never take the GIL: nothing that they hold owns a Python
//! object. And no Python code runs, not even a deallocation, while [`state`] is locked, because any Python code may
//! call back into `Core`.

pub mod bell;
pub mod core;
pub mod cursor_waiters;
pub mod drain;
pub mod echo;
pub mod entry;
pub mod errors;
pub mod futures;
pub mod hints;
pub mod latch;
mod lifecycle;
pub mod listen_at;
pub mod logging;
pub mod machine;
pub mod outbox;
pub mod owner;
pub mod payload;
pub mod settings;
pub mod slab;
pub mod start;
pub mod state;
pub mod status;

/// The extension module behind the `aioraft` package. Private: use `aioraft` instead.
#[pyo3::pymodule]
pub mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::core::Core;
    #[pymodule_export]
    use super::entry::Entry;

    #[pymodule_init]
    fn init(py: Python<'_>) -> PyResult<()> {
        super::owner::watch_forks(py)
    }
}
