//! What the log says when it cannot do what it was asked.

use std::io;
use std::path::{Path, PathBuf};

use crate::engine::GroupId;

/// Why the log cannot go on.
///
/// [`StorageError::Compacted`] and [`StorageError::Unavailable`] answer a read that asked for something the log does
/// not hold. [`SnapshotFailed`](StorageError::SnapshotFailed), [`SnapshotDiskFull`](StorageError::SnapshotDiskFull),
/// [`SnapshotRefused`](StorageError::SnapshotRefused) and [`SnapshotBusy`](StorageError::SnapshotBusy) end a snapshot's
/// file; the log goes on. Every other variant means that the node must stop.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// An operation of the operating system failed.
    #[error("cannot {operation} {}: {source}; check the disk and its permissions, then start the node again", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as a verb.
        operation: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no room left.
    #[error("cannot {operation} {}: the disk is full ({source}); free some space, then start the node again", path.display())]
    DiskFull {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as a verb.
        operation: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file stands where the data directory, or one above it, should be.
    #[error("{} is a file, and a data directory is wanted there: choose another data_dir, or move the file away", path.display())]
    NotADirectory {
        /// The file.
        path: PathBuf,
    },
    /// No node has ever been started there.
    #[error("{} is no node's data directory: give the path that a node was started with as data_dir", path.display())]
    NotADataDirectory {
        /// What was given.
        path: PathBuf,
    },
    /// There is no place for what looking at a log needs.
    #[error(
        "cannot create {}, which is needed for a moment to look at a log: {source}; set TMPDIR to a directory that can be \
         written to", path.display()
    )]
    Scratch {
        /// What was to be created.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Somebody else has the directory open.
    #[error(
        "the data directory {} is used by another node, or by one of this process that stopped at a disk error: give \
         each node a directory of its own, or end that process first", path.display()
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// Written by a newer build.
    #[error("{} has format {found}, and this aioraft reads formats up to {supported}: upgrade this node", path.display())]
    NewerFormat {
        /// The file, or the record's place.
        path: PathBuf,
        /// The version found.
        found: u64,
        /// The newest version that this build reads.
        supported: u64,
    },
    /// Less was recovered than was durable (rule D3).
    #[error(
        "{} has lost acknowledged writes: batch {expected} was durable, and only {found} can be read; restore the file, \
         or remove this node from the cluster and let a new one take its place", file.display()
    )]
    LostTail {
        /// The damaged file, or the directory when a whole file is missing.
        file: PathBuf,
        /// The last batch that was durable.
        expected: u64,
        /// The last batch that was recovered.
        found: u64,
    },
    /// What is on the disk cannot have been written by this log.
    #[error(
        "{} is damaged: {detail}; restore it, or remove this node from the cluster and let a new one take its place",
        path.display()
    )]
    Damaged {
        /// The damaged file or directory.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Nothing says how much of the log was durable (rule D3).
    #[error(
        "{} is missing although the node has run before, so nobody can tell whether the log is whole: restore it, or \
         remove this node from the cluster and let a new one take its place", path.display()
    )]
    MissingGuard {
        /// Where the file should be.
        path: PathBuf,
    },
    /// Entries that do not follow what is there; nothing was written.
    #[error(
        "entry {found} of group {group} does not follow the log, which takes {lowest} to {highest} next: this is an error \
         in aioraft, please report it"
    )]
    Gap {
        /// The group.
        group: GroupId,
        /// Index of the entry.
        found: u64,
        /// The lowest index that would have been right.
        lowest: u64,
        /// The highest index that would have been right.
        highest: u64,
    },
    /// A truncation that would move the beginning of the log back, or change its term; nothing was written.
    #[error(
        "the log of group {group} begins behind index {} of term {}, and cannot begin behind index {} of term {}: this is \
         an error in aioraft, please report it", have.0, have.1, asked.0, asked.1
    )]
    Truncation {
        /// The group.
        group: GroupId,
        /// The (index, term) that was asked for.
        asked: (u64, u64),
        /// The (index, term) that the log has.
        have: (u64, u64),
    },
    /// A group id that the log keeps for itself; nothing was written.
    #[error("group {group} is reserved for the log itself: choose an id of at most {highest}")]
    ReservedGroup {
        /// The group.
        group: GroupId,
        /// The highest id a group can have.
        highest: GroupId,
    },
    /// A batch that does not fit; nothing was written.
    #[error("the log cannot take a batch of this size ({detail}): propose less at once")]
    TooLarge {
        /// What raft-engine said.
        detail: String,
    },
    /// A read below the beginning of the log.
    #[error(
        "entry {low} of group {group} has been compacted away; the log begins at {first}: send a snapshot instead"
    )]
    Compacted {
        /// The group.
        group: GroupId,
        /// The index asked for.
        low: u64,
        /// The first index in the log.
        first: u64,
    },
    /// A read beyond the end of the log.
    #[error("entry {index} of group {group} is not in the log, which ends at {last}: ask for less")]
    Unavailable {
        /// The group.
        group: GroupId,
        /// The index asked for.
        index: u64,
        /// The last index in the log.
        last: u64,
    },
    /// A snapshot could not be written.
    #[error(
        "cannot {operation} {}: {source}; the log and earlier snapshots are as before: check the disk and its permissions, \
         and try again", path.display()
    )]
    SnapshotFailed {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb.
        operation: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no room for a snapshot.
    #[error(
        "cannot {operation} {}: the disk is full ({source}); the log and earlier snapshots are as before: free some space, \
         and try again", path.display()
    )]
    SnapshotDiskFull {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb.
        operation: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// What another node sends is not the snapshot that it announced.
    #[error("{} was not received: {detail}; ask for it again, or ask another node", path.display())]
    SnapshotRefused {
        /// The file it was to become.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Two want to write one file.
    #[error("{} is being written already: let that end first", path.display())]
    SnapshotBusy {
        /// The file.
        path: PathBuf,
    },
    /// The log does not say which snapshot it begins with.
    #[error(
        "the log's record of its snapshot cannot be used: {detail}; restore the data directory, or remove this node from \
         the cluster and let a new one take its place"
    )]
    SnapshotRecord {
        /// What is wrong.
        detail: String,
    },
    /// An earlier call failed; what that left behind is unknown.
    #[error("the log has stopped at an earlier error ({reason}): start the node again once that is solved")]
    Poisoned {
        /// The earlier error.
        reason: String,
    },
}

impl StorageError {
    /// Whether it says that what is on the disk is not all there, or not as it was written.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::LostTail { .. } | Self::Damaged { .. } | Self::MissingGuard { .. } | Self::SnapshotRecord { .. }
        )
    }

    /// Names the file and the operation of an error of the operating system.
    pub(crate) fn io(path: impl AsRef<Path>, operation: &'static str, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            Self::DiskFull { path, operation, source }
        } else {
            Self::Io { path, operation, source }
        }
    }

    /// Names the file and the operation of an error of the operating system that ends a snapshot, and nothing else.
    pub(super) fn snapshot(path: impl AsRef<Path>, operation: &'static str, source: io::Error) -> Self {
        match Self::io(path, operation, source) {
            Self::DiskFull { path, operation, source } => Self::SnapshotDiskFull { path, operation, source },
            Self::Io { path, operation, source } => Self::SnapshotFailed { path, operation, source },
            error => error,
        }
    }

    /// Names what is damaged.
    pub(crate) fn damaged(path: impl AsRef<Path>, detail: impl Into<String>) -> Self {
        Self::Damaged { path: path.as_ref().to_path_buf(), detail: detail.into() }
    }
}
