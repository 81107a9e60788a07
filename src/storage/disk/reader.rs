//! The reading side.

use std::ops::Range;
use std::sync::Arc;

use raft::eraftpb::Entry;
use raft_engine::Error;

use super::files;
use super::store::Store;
use super::stored::{Entries, StoredEntry};
use crate::engine::GroupId;
use crate::storage::{ByteLimit, LogReader, StorageError};

/// Entries looked up at once: raft-engine reserves 72 bytes for each one asked for, whether or not it fits the limit.
const CHUNK: u64 = 1024;

/// raft-engine adds lengths up in 32 bits.
const MAX_CHUNK_BYTES: u64 = 1 << 30;

/// How often a read is tried that a purge pulled the file away from.
const ATTEMPTS: u32 = 8;

/// Reads entries; shared between threads.
pub(super) struct DiskReader(pub Arc<Store>);

impl LogReader for DiskReader {
    fn entries(&self, group: GroupId, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let mut entries = Vec::new();
        let mut limit = ByteLimit::new(max_bytes);
        let mut next = low;
        while next < high {
            let end = high.min(next.saturating_add(CHUNK));
            // A stored entry is one byte longer than the entry.
            let bytes = limit.left.saturating_add(CHUNK).min(MAX_CHUNK_BYTES);
            let chunk = self.chunk(group, next, end, bytes)?;
            let cut_by_limit = (chunk.len() as u64) < end - next && bytes < MAX_CHUNK_BYTES;
            next += chunk.len() as u64;
            for stored in chunk {
                if !limit.admits(&stored.entry) {
                    return Ok(entries);
                }
                entries.push(stored.entry);
            }
            if cut_by_limit {
                break;
            }
        }
        Ok(entries)
    }
}

impl DiskReader {
    fn chunk(&self, group: GroupId, low: u64, high: u64, max_bytes: u64) -> Result<Vec<StoredEntry>, StorageError> {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let mut attempt = 1;
        loop {
            let (truncated, last) = self.0.bounds.read().get(&group).copied().unwrap_or_default();
            if low <= truncated {
                return Err(StorageError::Compacted { group, low, first: truncated.saturating_add(1) });
            }
            if high > last.saturating_add(1) {
                return Err(StorageError::Unavailable { group, index: high - 1, last });
            }
            let mut chunk = Vec::new();
            let read = self.0.read(|engine| {
                engine.fetch_entries_to::<Entries>(group, low, high, Some(max_bytes), &mut chunk).map(drop)
            });
            match read {
                Ok(()) if !chunk.is_empty() => return Ok(chunk),
                // Between looking a place up and reading it, the writer may have purged or replaced it: look again.
                _ if attempt < ATTEMPTS => {
                    attempt += 1;
                    std::thread::yield_now();
                }
                Err(Error::EntryCompacted) => {
                    let first = self.0.peek(|engine| engine.first_index(group).unwrap_or(0));
                    return Err(StorageError::Compacted { group, low, first });
                }
                Ok(()) | Err(Error::EntryNotFound) => {
                    let last = self.0.peek(|engine| engine.last_index(group).unwrap_or(0));
                    return Err(StorageError::Unavailable { group, index: high - 1, last });
                }
                Err(Error::Io(error)) => return Err(StorageError::io(&self.0.log, "read", error)),
                Err(error) => return Err(self.unreadable(group, low..high, &error)),
            }
        }
    }

    /// Names the first entry that cannot be read, and the file that holds it.
    fn unreadable(&self, group: GroupId, range: Range<u64>, error: &Error) -> StorageError {
        let Range { start, end } = range;
        for index in start..end {
            if let Err(error) = self.0.read(|engine| engine.get_entry::<Entries>(group, index)) {
                let file = files::last_read().map_or_else(|| self.0.log.clone(), |name| self.0.log.join(name));
                return StorageError::damaged(file, format!("entry {index} of group {group} cannot be read ({error})"));
            }
        }
        let detail = format!("entries {start} to {} of group {group} cannot be read ({error})", end - 1);
        StorageError::damaged(&self.0.log, detail)
    }
}
