//! Snapshot files, beside the log: the contract that the files on disk, their memory twin and the simulated disks keep.
//!
//! A file holds a [`Head`] and the application's chunks. It counts only once a record of its group in the log names it
//! ([`RECORD`]): until that record is durable, and after another one is, it is a leftover that [`SnapshotStore::retain`]
//! removes (rule D1). Whatever moves a snapshot between nodes copies the file's bytes as they are.

mod claim;
mod disk;
mod file_name;
mod folder;
mod format;
mod memory;
mod output;
mod reading;
mod receiver;
mod store;
mod view;
mod whole;
mod writer;

#[cfg(fuzzing)]
mod anything;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use prost::Message;

#[cfg(fuzzing)]
pub use self::anything::parse_anything;
pub(crate) use self::disk::DiskFolder;
pub(crate) use self::memory::MemoryFolder;
pub(crate) use self::store::Store;
pub use self::view::{view, FileState, FileView, Viewed};
use super::{GroupState, StorageError};
use crate::engine::GroupId;

/// The key of the record, among a group's records in the log, that names its snapshot.
pub const RECORD: &[u8] = b"snapshot";

/// Names one snapshot file, by its content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Message)]
pub struct SnapshotName {
    /// The group whose state it holds.
    #[prost(fixed64, tag = "1")]
    pub group: GroupId,
    /// The state is the one as of this index.
    #[prost(fixed64, tag = "2")]
    pub index: u64,
    /// The term of the entry there.
    #[prost(fixed64, tag = "3")]
    pub term: u64,
    /// Bytes of the whole file.
    #[prost(fixed64, tag = "4")]
    pub bytes: u64,
    /// CRC-32 of the whole file.
    #[prost(fixed32, tag = "5")]
    pub checksum: u32,
}

/// The snapshot that a group's record names, if there is one.
///
/// # Errors
///
/// [`StorageError::SnapshotRecord`] when the record is not one of ours, or names a snapshot that does not fit the log.
pub fn snapshot_name(state: &GroupState) -> Result<Option<SnapshotName>, StorageError> {
    let Some(record) = state.records.get(RECORD) else { return Ok(None) };
    let wrong = |detail: String| Err(StorageError::SnapshotRecord { detail });
    let name = match SnapshotName::decode(record.as_slice()) {
        Ok(name) if name.encode_to_vec() == *record && name.bytes >= format::FILE_BYTES_MIN => name,
        _ => return wrong("its bytes are not those of a name".to_owned()),
    };
    // It stands in one batch with what makes the log begin at or before it (rule D1).
    match state.term(name.index) {
        Some(term) if term == name.term => Ok(Some(name)),
        Some(term) => {
            wrong(format!("entry {} has term {term} in the log, and {} in the snapshot", name.index, name.term))
        }
        None => wrong(format!(
            "the snapshot is of index {}, and the log begins behind {} and ends at {}",
            name.index, state.truncated.0, state.last_index
        )),
    }
}

/// What the application's `snapshot()` returned, and `restore()` gets again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Form {
    /// One value, however it is cut into chunks here.
    Bytes = 1,
    /// Chunks, whose boundaries are the application's.
    Chunks = 2,
}

/// What stands in front of the chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The group whose state it holds.
    pub group: GroupId,
    /// The state is the one as of this index.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
    /// What the application returned.
    pub form: Form,
    /// The engine's part of the state, exactly as of `index` (rule C2).
    pub meta: Vec<u8>,
}

/// The snapshot files of a node. Its methods, and those of what it opens, wait for the disk.
///
/// A failed [`create`](Self::create) or [`receive`](Self::receive), and what they return, harm neither the log nor other
/// snapshots; after a failure the file is begun anew.
pub trait SnapshotStore: Send + Sync {
    /// Begins the file of a snapshot that is taken here. Dropped unfinished, it leaves nothing behind.
    fn create(&self, head: &Head) -> Result<Box<dyn SnapshotWriter>, StorageError>;

    /// Begins to receive a file of this name, or goes on where an earlier attempt at the same name ended.
    /// Dropped unfinished, what has come is kept for the next attempt, which reads it again and checks it.
    fn receive(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotReceiver>, StorageError>;

    /// Opens a file that is there and whole.
    fn open(&self, name: &SnapshotName) -> Result<Arc<dyn SnapshotFile>, StorageError>;

    /// Removes all files but these, finished or not. Those that are open stay readable until they are dropped.
    ///
    /// What is on its way to be named stays, too, as long as it is ahead of these: what was finished since the start, for its
    /// record may be under way, and of what has come from other nodes in part, what is furthest ahead of its group. So does
    /// what is being written. Files that are not the store's are left alone.
    fn retain(&self, names: &[SnapshotName]) -> Result<(), StorageError>;
}

/// A file that is being written.
pub trait SnapshotWriter: Send {
    /// Adds a chunk.
    fn write_chunk(&mut self, chunk: &[u8]) -> Result<(), StorageError>;

    /// The file is whole: it is durable under its name when this returns (fsync, rename, fsync of the directory).
    fn finish(self: Box<Self>) -> Result<Arc<dyn SnapshotFile>, StorageError>;
}

/// A file that is being received.
pub trait SnapshotReceiver: Send {
    /// Bytes of the file that are here: the next ones are to follow.
    fn offset(&self) -> u64;

    /// Adds bytes of the file; damage is found here or in [`Self::finish`].
    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError>;

    /// All bytes are here: checks them against the name. The file is durable when this returns.
    fn finish(self: Box<Self>) -> Result<Arc<dyn SnapshotFile>, StorageError>;
}

/// A whole file, open for reading.
pub trait SnapshotFile: std::fmt::Debug + Send + Sync {
    /// Its name.
    fn name(&self) -> &SnapshotName;

    /// What stands in front of the chunks.
    fn head(&self) -> &Head;

    /// At most `bytes_max` bytes of the file at `offset`, as they are; empty at its end.
    fn read_at(&self, offset: u64, bytes_max: usize) -> Result<Vec<u8>, StorageError>;

    /// The chunks, in order, each checked as it is read.
    fn chunks(self: Arc<Self>) -> Box<dyn Iterator<Item = Result<Vec<u8>, StorageError>> + Send>;
}
