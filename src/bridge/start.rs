//! The one place where the driver is started.

use crate::driver::port::Wake;

use super::echo;

pub use crate::driver::options::Joins;
pub use crate::driver::{AdminFrom, Listen, Options, SpawnError, Spawned, Tuning};

/// Starts the driver's thread; `is_echo` starts one without Raft.
pub fn start_driver(options: Options, application: Box<dyn Wake>, is_echo: bool) -> Result<Spawned, SpawnError> {
    if is_echo {
        return echo::spawn(options, application);
    }
    crate::driver::spawn(options, application)
}
