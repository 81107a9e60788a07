//! The durable log behind a small trait, the snapshots' files beside it, and the memory twins of both.
//!
//! One thread, the persist thread, writes; any thread reads. A batch is atomic: after a crash all of it is there, or
//! none of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::{Entry, HardState};

use crate::engine::GroupId;

pub mod disk;
pub mod memory;
pub mod snapshot;

mod error;
mod state;

#[cfg(test)]
mod conformance;

pub use error::StorageError;
use snapshot::SnapshotStore;

/// What one group adds to a batch.
#[derive(Clone, Debug, Default)]
pub struct GroupWrite {
    /// Which group.
    pub group: GroupId,
    /// The log begins behind this (index, term); set once at bootstrap, later by compaction and snapshots.
    pub truncated: Option<(u64, u64)>,
    /// Contiguous entries. They replace everything at and after the first one's index.
    pub entries: Vec<Entry>,
    /// The new hard state; stands in the same atomic batch as the entries (rule P2).
    pub hard_state: Option<HardState>,
    /// Further records of the group.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

/// One atomic write.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The groups' parts.
    pub groups: Vec<GroupWrite>,
    /// Records of the node itself (identity, boot, formation), not of any group.
    pub node_records: Vec<(Vec<u8>, Vec<u8>)>,
    /// Must be durable before [`LogWriter::write`] returns. Without it the batch may be lost by a crash, alone or with
    /// later ones, but never reordered with them.
    pub sync: bool,
}

/// A run of entries of one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRun {
    /// Index of the first entry.
    pub first_index: u64,
    /// Their term.
    pub term: u64,
}

/// What a log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupState {
    /// The last durable hard state.
    pub hard_state: HardState,
    /// The log begins behind this (index, term).
    pub truncated: (u64, u64),
    /// Index of the last entry; equal to `truncated.0` when there is none.
    pub last_index: u64,
    /// The terms of all entries in the log, ascending.
    pub terms: Vec<TermRun>,
    /// Further records of the group.
    pub records: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The writing side; used by the persist thread alone.
pub trait LogWriter: Send {
    /// Writes the whole batch atomically. After the first error every further call fails: what a failed fsync left
    /// behind is unknown, so the node must stop.
    fn write(&mut self, batch: Batch) -> Result<(), StorageError>;

    /// Housekeeping in bounded slices (tail guard, purging), called between writes.
    /// Returns after how long it wants to be called again, `None` if only after the next write.
    fn maintain(&mut self) -> Result<Option<Duration>, StorageError>;

    /// The node ends because of a fault, which may lie in what it has written: the files stay as they are, as after a
    /// kill. Nothing follows.
    fn abandon(self: Box<Self>);

    /// Figures for the status.
    fn figures(&self) -> Figures;
}

/// The reading side, shared between threads.
pub trait LogReader: Send + Sync {
    /// Entries `low..high` of a group, at least one, stopping before the one that would exceed `max_bytes`.
    fn entries(&self, group: GroupId, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, StorageError>;
}

/// Figures about the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Synced writes since the start.
    pub fsyncs: u64,
    /// Duration of the last synced write.
    pub last_fsync: Duration,
    /// Longest synced write since the start.
    pub max_fsync: Duration,
    /// Bytes on disk.
    pub bytes: u64,
}

/// An open log.
pub struct Opened {
    /// For the persist thread.
    pub writer: Box<dyn LogWriter>,
    /// For the engine.
    pub reader: Arc<dyn LogReader>,
    /// What was there.
    pub groups: BTreeMap<GroupId, GroupState>,
    /// The node's own records.
    pub node_records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The snapshots' files.
    pub snapshots: Arc<dyn SnapshotStore>,
}

/// The highest id a group can have: the log keeps those above for itself.
pub const MAX_GROUP: GroupId = GroupId::MAX - 16;

fn check_group(group: GroupId) -> Result<(), StorageError> {
    if group > MAX_GROUP {
        return Err(StorageError::ReservedGroup { group, highest: MAX_GROUP });
    }
    Ok(())
}

/// Admits entries until their encoded size exceeds a limit; the first one always.
struct ByteLimit {
    left: u64,
    any: bool,
}

impl ByteLimit {
    fn new(max_bytes: u64) -> Self {
        Self { left: max_bytes, any: false }
    }

    fn admits(&mut self, entry: &Entry) -> bool {
        let bytes = prost::Message::encoded_len(entry) as u64;
        let fits = bytes <= self.left || !self.any;
        self.any = true;
        self.left = self.left.saturating_sub(bytes);
        fits
    }
}
