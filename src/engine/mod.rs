//! The consensus core: sans-I/O, without tokio, pyo3, clocks, files or randomness of its own.
//!
//! [`Engine`] wraps raft-rs' `RawNode`. The world outside calls its `handle_*` methods with what happened, then
//! [`Engine::poll`], and runs the [`Effect`]s that come out, in order. Two worlds do so: the driver's (tokio, files,
//! TCP) and the tests', where a whole cluster fits in one thread.

mod admission;
mod applier;
mod changes;
pub mod command;
mod core;
pub mod formation;
#[cfg(feature = "sim")]
mod inspect;
mod log_view;
pub mod membership;
mod patience;
mod persist;
mod proposals;
mod reads;
mod session;
pub mod snapshot;
mod snapshots;
mod stragglers;
mod telling;
#[cfg(test)]
mod tests;
mod time;
mod transfer;

use raft::eraftpb::Message;

pub use self::admission::Refused;
pub use self::applier::{Batch as AppliedBatch, HandOut, Marker};
pub use self::core::{Engine, EngineStatus, Opening, PeerProgress, Replicated, Settings};
#[cfg(feature = "sim")]
pub use self::inspect::{Cursors, Follower, Sizes};
pub use self::persist::Persist;
pub use self::proposals::FORWARDED_BYTES_MAX;
pub use self::reads::Reader;
pub use self::session::{SessionFigures, WINDOW};
pub use self::snapshots::SnapshotPolicy;
pub use self::time::Now;
use crate::storage::snapshot::SnapshotName;
use crate::storage::StorageError;
use command::{Command, CommandError};

/// Identifies a node for the whole life of its cluster; never reused.
pub type NodeId = u64;

/// Identifies one Raft group; several may share a listener and a log.
pub type GroupId = u64;

/// The group that carries the application's commands.
pub const APPLICATION_GROUP: GroupId = 1;

/// Where every log begins: the bootstrap is one fixed snapshot at this (index, term) (rule M1).
pub const BOOTSTRAP: (u64, u64) = (1, 1);

/// Names one waiter of the application. Chosen by the application, never reused while it is pending.
pub type Token = u64;

/// What the world outside is to do, in order.
#[derive(Debug)]
pub enum Effect {
    /// Send to `message.to`; messages to one peer keep their order. Tell [`Engine::handle_unreachable`] if that fails.
    Send(Box<Message>),
    /// Send this snapshot to `message.to`, and the message with it: the peer steps it once the file is whole and durable
    /// there ([`Engine::handle_snapshot`]). Tell [`Engine::handle_snapshot_sent`] how it ended.
    SendSnapshot {
        /// Which.
        name: SnapshotName,
        /// Goes with it.
        message: Box<Message>,
    },
    /// A call for a snapshot is answered: the log names one of this index durably.
    Snapshot {
        /// Whose.
        token: Token,
        /// The index.
        index: u64,
    },
    /// Hand to the persist thread, which works in order and tells [`Engine::handle_persisted`].
    Persist(Persist),
    /// Send this command to the leader.
    Forward {
        /// The leader.
        to: NodeId,
        /// The command, with origin and floor.
        command: Command,
    },
    /// Tell the origin that its forwarded commands were not appended.
    Reject {
        /// The origin.
        to: NodeId,
        /// Which, and why.
        rejection: Rejection,
    },
    /// A call of the application failed.
    Failed {
        /// Whose.
        token: Token,
        /// How.
        failure: Failure,
    },
    /// A barrier stands: resolve it once the application's cursor is at `index`.
    Barrier {
        /// Whose.
        token: Token,
        /// The read index.
        index: u64,
    },
    /// A call for another leader is answered: this one leads.
    Transferred {
        /// Whose.
        token: Token,
        /// Who leads.
        leader: NodeId,
    },
    /// A call for a change of the members is answered: it has taken effect, or was so before.
    Changed {
        /// Whose.
        token: Token,
        /// Where the change stands in the log.
        index: u64,
        /// The ids concerned, in the order of the changes.
        ids: Vec<NodeId>,
    },
    /// Who belongs to the cluster has changed: [`Engine::membership`].
    Membership,
    /// The leader, the term, or this node's part in it changed.
    Leadership(Leadership),
}

/// Forwarded commands that a node did not append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejection {
    /// The origin's boot.
    pub boot: u64,
    /// Their numbers.
    pub numbers: Vec<u64>,
    /// Why.
    pub reason: String,
}

/// An entry that the engine has applied and the application's state machine is to see.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Its index in the log.
    pub index: u64,
    /// The term in which it was appended.
    pub term: u64,
    /// Header (timestamps among it) and payload.
    pub command: Command,
    /// Set on the node, and in the boot, that proposed it while its waiter is pending.
    pub token: Option<Token>,
}

/// Why a call ended without a result, and what that means for its proposal (design decision 2, rules S4 and S5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The deadline passed and nothing had left this process: not committed, and never will be. Or it was a read's.
    TimedOutUnsent {
        /// What it was waiting for.
        reason: String,
    },
    /// The deadline passed while the proposal was under way: it may or may not be applied.
    TimedOut,
    /// The deadline passed while a change of the members was under way, which may or may not take effect; when the leader
    /// was last heard of, it had to wait.
    ChangeTimedOut {
        /// For what.
        reason: String,
    },
    /// Refused before it entered the log: not committed, and never will be.
    Refused {
        /// Why, with what to do.
        reason: String,
    },
    /// An installed snapshot contains it: applied exactly once, its result is gone.
    AppliedWithoutResult {
        /// It was applied at or before this index.
        index: u64,
    },
    /// A snapshot could not be taken.
    Snapshot {
        /// Why, with what to do.
        reason: String,
    },
    /// Leadership was not handed over.
    Transfer {
        /// Why, with what to do.
        reason: String,
    },
    /// The node closed before the call left this process: not committed, and never will be.
    ClosedUnsent,
    /// The node closed while the call was under way: it may or may not be applied.
    Closed,
}

/// Who leads, as far as this node knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// This node's current term.
    pub term: u64,
    /// The leader of that term, if known.
    pub leader: Option<NodeId>,
    /// This node leads in `term`, and this index must be applied by the application before it acts as leader.
    pub leading_from: Option<u64>,
}

/// Why the engine cannot go on; the node stops as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The log cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// raft-rs refuses to start.
    #[error("raft-rs refused to go on: {0}")]
    Raft(#[from] raft::Error),
    /// What was committed is not in the log.
    #[error(
        "the log holds the entries behind {begin} up to {last}, but {commit} was committed: the data directory is \
         damaged; remove it and start this node as a new member"
    )]
    Commit {
        /// The commit index.
        commit: u64,
        /// Where the log begins.
        begin: u64,
        /// Where it ends.
        last: u64,
    },
    /// An entry of a format that this build does not know.
    #[error("entry {index} of the log cannot be applied: {source}")]
    Entry {
        /// Where it stands.
        index: u64,
        /// What is wrong with it.
        source: CommandError,
    },
    /// The log holds what a later start of this node proposed.
    #[error(
        "entry {index} of the log was proposed by start {found} of this node, and this is start {boot}: its data \
         directory was rolled back or copied; remove it and start this node as a new member"
    )]
    RolledBack {
        /// Where it stands.
        index: u64,
        /// Which start proposed it.
        found: u64,
        /// This start.
        boot: u64,
    },
    /// The log holds what another process proposed in this node's name.
    #[error(
        "entry {index} of the log was proposed by another process that runs as this node, from a copy of its data \
         directory: stop both, and let a new member take their place"
    )]
    Copied {
        /// Where it stands.
        index: u64,
    },
    /// raft-rs installs a snapshot that did not come through [`Engine::handle_snapshot`].
    #[error("raft-rs installs a snapshot of index {index} that this node has not received: please report this")]
    StraySnapshot {
        /// Its index.
        index: u64,
    },
    /// What the state machine says that it holds durably is not in the log (rule D2).
    #[error(
        "the state machine says that it holds everything up to entry {index} of term {term}, and the log {found}: state \
         machine and data directory do not belong together, or one of them was rolled back; put both back as they were \
         together, or start this node as a new member"
    )]
    Durable {
        /// What it says.
        index: u64,
        /// What it says.
        term: u64,
        /// What the log has there.
        found: String,
    },
    /// The log begins behind where it should: no snapshot covers what was compacted.
    #[error(
        "the log begins behind entry {begin}, and no snapshot holds what was before: the data directory is damaged;          remove it and start this node as a new member"
    )]
    NoSnapshot {
        /// Where the log begins.
        begin: u64,
    },
    /// A membership change: written by a newer build.
    #[error("the log holds {what} at index {index}, which this version of aioraft does not know: upgrade this node")]
    Unknown {
        /// What it is.
        what: &'static str,
        /// Where it stands.
        index: u64,
    },
}
