//! A Raft cluster that a Python asyncio application can be.
//!
//! | module | what it is |
//! |---|---|
//! | [`engine`] | the consensus core: sans-I/O, the same in the real and in any simulated world |
//! | [`storage`] | the fsynced log, the snapshots' files, and the memory twins of both |
//! | [`transport`] | wire format, TCP |
//! | [`driver`] | a tokio thread that runs the engine's effects, and the thread that keeps its log |
//! | `sim` | a simulated world round the same engine, and its checkers (feature `sim`; `mutants` proves them) |
//! | [`bridge`] | the Python classes |

pub mod engine;
pub mod storage;

pub(crate) mod mutants;

#[cfg(feature = "driver")]
pub mod driver;
#[cfg(feature = "driver")]
pub mod transport;

#[cfg(feature = "sim")]
pub mod sim;
#[cfg(all(test, feature = "driver"))]
mod test_log;

// Its parts that know no Python are tested without one.
#[cfg(any(feature = "python", all(test, feature = "driver")))]
pub mod bridge;
