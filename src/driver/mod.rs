//! The real world round the engine: a tokio thread that runs its effects, and a thread that keeps its log.
//!
//! | file | what it is |
//! |---|---|
//! | [`faults`] | faults put in on purpose, for tests |
//! | [`port`] | the two queues between the driver and the application beside it |
//! | [`options`] | what a node is started with |
//! | [`capture`] | a snapshot on its way from the application into its file |
//! | `start` | from options to a node that listens |
//! | `node` | the driver's loop: one round is one batch |
//! | `persister` | the thread that keeps the log |
//! | `gate` | who may connect |
//! | `identity` | the node's own record |
//! | `initiative` | what a node changes of the members by itself |
//! | `witness` | what is remembered of a peer, so that a rolled-back one is known |
//! | [`inspect`] | what a data directory holds, without a node |
//! | [`recover`] | a cluster that has lost its quorum for good goes on from one directory |
//! | [`clock`] | the only place where clocks are read |

pub mod capture;
pub mod clock;
pub mod faults;
pub(crate) mod gate;
pub(crate) mod identity;
pub(crate) mod initiative;
pub mod inspect;
mod node;
pub mod options;
pub(crate) mod persister;
pub mod port;
pub mod recover;
pub(crate) mod start;
#[cfg(test)]
mod tests;
pub(crate) mod witness;

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Reads a node's record, for fuzzing.
#[cfg(fuzzing)]
pub fn read_node_record(bytes: &[u8]) {
    let _ = identity::NodeRecord::boot(Some(bytes), 1, "cluster", &identity::Drawn { identity: 0, nonce: 0, seed: 0 });
}

pub use options::{AdminFrom, Listen, Options, SpawnError, Spawned, Tuning};
use port::{Completion, Completions, Cursor, Fatal, Inbox, Port, Status, Wake};

/// Wakes the driver's loop.
struct WakeDriver(Arc<Notify>);

impl Wake for WakeDriver {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// Starts a node on a thread of its own. What becomes of the start is told as a completion:
/// [`Completion::Listening`], or [`Completion::Stopped`].
///
/// # Errors
/// The system gives no thread.
pub fn spawn(options: Options, application: Box<dyn Wake>) -> Result<Spawned, SpawnError> {
    let wake = Arc::new(Notify::new());
    let port = Port {
        inbox: Arc::new(Inbox::new(Box::new(WakeDriver(wake.clone())))),
        completions: Arc::new(Completions::new(application)),
        cursor: Arc::new(Cursor::at(options.durable_applied.map_or(0, |(index, _)| index))),
        status: Arc::new(Mutex::new(Status { id: options.id, role: "forming", ..Default::default() })),
    };
    let theirs = port.clone();
    let thread = std::thread::Builder::new().name(format!("aioraft-{}", options.id)).spawn(move || {
        let _logging = tracing::dispatcher::set_default(&options.dispatch.clone());
        let completions = theirs.completions.clone();
        // Whatever happens in here, the application hears of the end.
        let fatal = match catch_unwind(AssertUnwindSafe(|| run(options, theirs, wake))) {
            Ok(fatal) => fatal,
            Err(_) => {
                Some(Fatal::here("the node's thread panicked, so this node stops; please report this".to_string()))
            }
        };
        completions.push(&mut vec![Completion::Stopped { fatal }]);
    })?;
    Ok(Spawned { port, thread })
}

/// Returns why the node stopped, if it was not asked to.
fn run(options: Options, port: Port, wake: Arc<Notify>) -> Option<Fatal> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Some(Fatal::here(format!("the node's runtime cannot be started: {error}"))),
    };
    let fatal = tokio::task::LocalSet::new().block_on(&runtime, node::run(options, port, wake));
    // A name lookup may hang on the blocking pool; it is not waited for.
    runtime.shutdown_background();
    fatal
}
