//! What a node is started with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use super::faults::Faults;
use super::port::Port;
use crate::engine::formation::Identity;
use crate::engine::{NodeId, FORWARDED_BYTES_MAX};
use crate::transport;

/// Everything about one node.
pub struct Options {
    /// This node's id.
    pub id: NodeId,
    /// All members at the bootstrap: ids and `host:port`.
    pub members: BTreeMap<NodeId, String>,
    /// Nodes of another cluster are refused.
    pub cluster: String,
    /// Where log and identity live; `None` is memory, which nothing survives.
    pub data_dir: Option<PathBuf>,
    /// Where to listen.
    pub listen: Listen,
    /// Where peers are told to reach this node; default: its address in `members`.
    pub advertise: Option<String>,
    /// Times and limits.
    pub tuning: Tuning,
    /// The state machine has snapshots; the log of one that has none is kept whole.
    pub takes_snapshots: bool,
    /// The (index, term) of the last entry that a state machine holds which is durable itself (rule D2).
    pub durable_applied: Option<(u64, u64)>,
    /// Where raft-rs logs to.
    pub logger: slog::Logger,
    /// Where everything else logs to, on the node's own threads.
    pub dispatch: tracing::Dispatch,
    /// A node that joins by its name; `None` for one whose operator adds and promotes it.
    pub joins: Option<Joins>,
    /// Faults put in on purpose, by tests.
    pub faults: Option<Faults>,
}

/// How a node joins by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joins {
    /// Its name: a member that had it before and is gone leaves when this node gets its vote.
    pub name: String,
    /// The identity of its data directory, if that is new: the cluster knows it already.
    pub identity: Option<Identity>,
}

/// Where to listen.
pub enum Listen {
    /// `host:port`, bound by the node.
    Address(String),
    /// A bound socket.
    Socket(std::net::TcpListener),
}

/// Times and limits. The Python `Config` documents each and holds the defaults.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Without word of a leader for this long, up to twice this long, a node calls an election.
    pub election_timeout: Duration,
    /// Time between a leader's heartbeats.
    pub heartbeat_interval: Duration,
    /// Largest payload of a command.
    pub max_entry_bytes: u64,
    /// Bytes of entries in one message to a peer.
    pub max_message_bytes: u64,
    /// Messages on their way to a peer before it has acknowledged any.
    pub max_inflight_messages: usize,
    /// Bytes of uncommitted entries in a leader's log.
    pub max_uncommitted_bytes: u64,
    /// Bytes of commands handed to the application and not yet applied by it.
    pub max_unapplied_bytes: usize,
    /// Bytes of entries kept in memory for peers and readers.
    pub entry_cache_bytes: usize,
    /// A snapshot is taken when so many entries were applied since the last; `u64::MAX` for never.
    pub snapshot_entries: u64,
    /// A snapshot is taken when the entries applied since the last have so many bytes; `u64::MAX` for never.
    pub snapshot_bytes: u64,
    /// Entries that stay in the log behind a snapshot, for followers that are a little behind.
    pub snapshot_trail: u64,
    /// Bytes of a snapshot that one peer is sent in a second.
    pub snapshot_rate: u64,
    /// Listen beyond loopback though nothing is encrypted.
    pub insecure: bool,
    /// Where operators' tools may come from.
    pub admin_from: AdminFrom,
}

/// Where operators' tools may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminFrom {
    /// The node's own machine.
    Localhost,
    /// Wherever its port is reached from.
    Anywhere,
}

impl Tuning {
    /// Ticks between heartbeats: elections are timed with this resolution.
    pub const HEARTBEAT_TICKS: u32 = 4;

    /// The network's limits that follow from these: the largest command and the largest message fit a frame with room
    /// to spare, and all that may be on its way to a peer fits a connection's backlog.
    pub fn network(&self) -> transport::Options {
        let largest = self.max_entry_bytes.max(self.max_message_bytes) as usize;
        let frame_bytes_max = (4 * largest).saturating_add(16 << 20);
        let window = (self.max_message_bytes as usize).saturating_mul(self.max_inflight_messages);
        let backlog_bytes_max = (2 * window).saturating_add(FORWARDED_BYTES_MAX).saturating_add(frame_bytes_max);
        let snapshot_bytes_per_s = self.snapshot_rate;
        transport::Options { frame_bytes_max, backlog_bytes_max, snapshot_bytes_per_s, ..Default::default() }
    }

    /// The time between two ticks.
    pub fn tick(&self) -> Duration {
        (self.heartbeat_interval / Self::HEARTBEAT_TICKS).max(Duration::from_millis(1))
    }

    /// Ticks in an election timeout.
    pub fn election_ticks(&self) -> usize {
        let ticks = self.election_timeout.as_nanos() / self.tick().as_nanos().max(1);
        usize::try_from(ticks).unwrap_or(usize::MAX / 4).max(Self::HEARTBEAT_TICKS as usize + 1)
    }
}

/// A node that is starting.
pub struct Spawned {
    /// Its queues.
    pub port: Port,
    /// Its thread; ends after [`super::port::Completion::Stopped`].
    pub thread: JoinHandle<()>,
}

/// Why not even a thread could be started.
#[derive(Debug, thiserror::Error)]
#[error("the node's thread cannot be started: {0}")]
pub struct SpawnError(#[from] pub std::io::Error);
