//! The consensus core: sans-I/O, without tokio, pyo3, clocks, files or randomness of its own.

/// Identifies a node for the whole life of its cluster; never reused.
pub type NodeId = u64;

/// Identifies one Raft group; several may share a listener and a log.
pub type GroupId = u64;

/// The group that carries the application's commands.
pub const APPLICATION_GROUP: GroupId = 1;

pub mod command;
