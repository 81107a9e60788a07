//! Two entries that empty raft-engine's block cache.
//!
//! raft-engine 0.4.2 keeps the last block it read in a thread-local, under (queue, file, offset, length), without the
//! engine it came from. A thread that reads from two logs, or from one that was closed and opened again behind a cut
//! tail, gets bytes of the wrong one. So each log holds two marks, in groups of their own and always in different
//! blocks. Reading both leaves the second in the cache, whatever was there before: at least one of the two is not under
//! the key of what was cached, and after the first one the second is certainly not.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use raft_engine::{Engine, LogBatch};

use super::files::LogFiles;
use super::stored::{AnyBytes, Marks};
use crate::engine::GroupId;

/// The groups of the two marks.
pub(super) const GROUPS: [GroupId; 2] = [GroupId::MAX - 1, GroupId::MAX - 2];

/// The index of every mark.
pub(super) const INDEX: u64 = 1;

thread_local! {
    /// The log that this thread read from last.
    static LAST: Cell<u64> = const { Cell::new(0) };
}

/// A number for a log that no other one in this process has.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Adds a mark to a batch. The two go into batches of their own: marks in one batch would share a block.
pub(super) fn add(batch: &mut LogBatch, group: GroupId) -> Result<(), raft_engine::Error> {
    batch.add_entries::<Marks>(group, &[AnyBytes::default()])
}

/// Makes sure that the cached block of this thread is of this log.
pub(super) fn claim_cache(engine: &Engine<LogFiles>, id: u64) -> Result<(), raft_engine::Error> {
    if LAST.get() == id {
        return Ok(());
    }
    LAST.set(0);
    for group in GROUPS {
        if engine.get_entry::<Marks>(group, INDEX)?.is_none() {
            return Err(raft_engine::Error::Corruption("a mark is missing from the log".to_owned()));
        }
    }
    LAST.set(id);
    Ok(())
}
