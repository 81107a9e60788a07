//! What is said of a data directory.

use std::path::PathBuf;

use raft::eraftpb::{ConfState, HardState};

use crate::driver::identity::NodeRecord;
use crate::engine::Replicated;
use crate::storage::disk::GuardView;
use crate::storage::snapshot::FileView;

/// All of it.
pub struct Report {
    /// The directory.
    pub data_dir: PathBuf,
    /// A node has it open.
    pub is_locked: bool,
    /// Its format; `None` if there is none yet, or it cannot be read.
    pub format: Option<u64>,
    /// Whose it is; `None` if no node has been started there yet, or it cannot be read.
    pub node: Option<NodeRecord>,
    /// Term, vote and commit index that were durable.
    pub hard_state: Option<HardState>,
    /// The log.
    pub log: Option<LogReport>,
    /// Who votes and learns, as of the snapshot that the log names.
    pub snapshot_members: Option<(u64, ConfState)>,
    /// The replicated state as of the last entry that is known here to be committed; `None` before the cluster is formed,
    /// and where a node could not go on from the log.
    pub replicated: Option<Replicated>,
    /// The snapshots' files.
    pub snapshots: Vec<FileView>,
    /// The tail guard.
    pub guard: Option<GuardReport>,
    /// Why a node would not go on from it, in its words; empty if it would.
    pub damage: Vec<String>,
}

/// The log of the application's group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogReport {
    /// Index of the first entry, or of the next one if there is none.
    pub first_index: u64,
    /// Index of the last entry; the one before `first_index` if there is none.
    pub last_index: u64,
    /// Term of the entry before the first.
    pub truncated_term: u64,
    /// Term of the last entry.
    pub last_term: u64,
    /// Files of the log, other groups' entries among them.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// What its entries are.
    pub entries: EntryCounts,
}

/// How many entries of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryCounts {
    /// For the application's state machine.
    pub application: u64,
    /// A new leader's first, without content.
    pub no_op: u64,
    /// Changes of the members.
    pub membership: u64,
    /// Of a kind that this build does not know.
    pub unknown: u64,
}

/// The tail guard, and what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardReport {
    /// What it says.
    pub guard: GuardView,
    /// The last batch that could be read from the log; `None` if none could.
    pub found: Option<u64>,
}
