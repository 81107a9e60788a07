//! Starts the driver.

use crate::driver::port::Wake;

use super::echo;

pub use contract::{Listen, Options, SpawnError, Spawned, Tuning};

/// Starts the driver's thread; `is_echo` starts one without Raft.
pub fn start_driver(options: Options, application: Box<dyn Wake>, is_echo: bool) -> Result<Spawned, SpawnError> {
    if is_echo {
        return echo::spawn(options, application);
    }
    contract::spawn(options, application)
}

/// Stands for `crate::driver::{spawn, Options, Listen, Tuning, Spawned, SpawnError}` until they are there.
mod contract {
    #![allow(missing_docs)]
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::time::Duration;

    use crate::driver::port::{Port, Wake};

    pub struct Options {
        pub id: u64,
        pub members: BTreeMap<u64, String>,
        pub cluster: String,
        pub data_dir: Option<PathBuf>,
        pub listen: Listen,
        pub advertise: Option<String>,
        pub tuning: Tuning,
        pub logger: slog::Logger,
        pub dispatch: tracing::Dispatch,
    }

    pub enum Listen {
        Address(String),
        Socket(std::net::TcpListener),
    }

    #[derive(Clone, Debug)]
    pub struct Tuning {
        pub election_timeout: Duration,
        pub heartbeat_interval: Duration,
        pub max_entry_bytes: u64,
        pub max_message_bytes: u64,
        pub max_inflight_messages: usize,
        pub max_uncommitted_bytes: u64,
        pub max_unapplied_bytes: usize,
        pub entry_cache_bytes: usize,
        pub log_segment_bytes: u64,
        pub insecure: bool,
    }

    pub struct Spawned {
        pub port: Port,
        pub thread: std::thread::JoinHandle<()>,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    pub struct SpawnError(pub String);

    pub fn spawn(_: Options, _: Box<dyn Wake>) -> Result<Spawned, SpawnError> {
        Err(SpawnError("this build has no driver yet: pass echo=True".to_owned()))
    }
}
