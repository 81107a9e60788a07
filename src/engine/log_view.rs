//! raft-rs' view of the log: everything it may ask for, without waiting for a disk where that can be avoided.
//!
//! Entries are readable here from the moment their Ready is taken, before they are durable (async ready, Raft thesis
//! 10.2.1). Terms, hard state and conf state are answered from memory; entries from a bounded cache, else from the log.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

use prost::Message;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::GroupId;
use crate::mutants::{self, Mutant};
use crate::storage::snapshot::SnapshotName;
use crate::storage::{GroupState, LogReader, TermRun};

/// What an entry occupies beyond its payload, roughly.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// raft-rs' storage.
pub struct LogView {
    group: GroupId,
    reader: Arc<dyn LogReader>,
    hard_state: HardState,
    conf_state: ConfState,
    /// The log begins behind this (index, term).
    truncated: (u64, u64),
    last_index: u64,
    terms: VecDeque<TermRun>,
    cache: VecDeque<Cached>,
    cache_bytes: usize,
    cache_bytes_max: usize,
    /// The highest Ready known to be durable.
    durable: u64,
    /// What followers are sent that need more than the log holds, and who votes and learns there.
    snapshot: Option<(SnapshotName, ConfState)>,
    /// raft-rs asked for a snapshot and there was none that would do.
    snapshot_wanted: Cell<bool>,
    /// Why the log could not be read; raft-rs panics on such an error, and this says why.
    failure: parking_lot::Mutex<Option<String>>,
}

struct Cached {
    entry: Entry,
    /// The Ready that wrote it.
    ready: u64,
}

fn weight(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + ENTRY_OVERHEAD_BYTES
}

impl LogView {
    /// What was in the log when it was opened, with the members as of its beginning (rule C4).
    pub fn new(
        group: GroupId,
        state: GroupState,
        conf_state: ConfState,
        reader: Arc<dyn LogReader>,
        cache_bytes_max: usize,
    ) -> Self {
        Self {
            group,
            reader,
            hard_state: state.hard_state,
            conf_state,
            truncated: state.truncated,
            last_index: state.last_index,
            terms: state.terms.into(),
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max,
            durable: 0,
            snapshot: None,
            snapshot_wanted: Cell::new(false),
            failure: parking_lot::Mutex::default(),
        }
    }

    /// Takes in what a Ready writes, before it is durable.
    pub fn append(&mut self, ready: u64, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.cache.back().is_some_and(|cached| cached.entry.index >= first.index) {
            self.cache.pop_back().inspect(|cached| self.cache_bytes -= weight(&cached.entry));
        }
        while self.terms.back().is_some_and(|run| run.first_index >= first.index) {
            self.terms.pop_back();
        }
        for entry in entries {
            if self.terms.back().is_none_or(|run| run.term != entry.term) {
                self.terms.push_back(TermRun { first_index: entry.index, term: entry.term });
            }
            self.cache_bytes += weight(entry);
            self.cache.push_back(Cached { entry: entry.clone(), ready });
            self.last_index = entry.index;
        }
    }

    /// Everything up to this Ready is durable. Drops cached entries over the limit, by the Ready that wrote them and
    /// never by index alone: a truncation of the same index may still be on its way to the disk (rule P3).
    pub fn mark_durable(&mut self, ready: u64) {
        self.durable = ready;
        let ready = if mutants::on(Mutant::CutCacheByIndex) { u64::MAX } else { ready };
        while self.cache_bytes > self.cache_bytes_max && self.cache.front().is_some_and(|front| front.ready <= ready) {
            self.cache.pop_front().inspect(|cached| self.cache_bytes -= weight(&cached.entry));
        }
    }

    /// Followers are sent this snapshot from now on.
    pub fn set_snapshot(&mut self, name: SnapshotName, conf_state: ConfState) {
        self.snapshot = Some((name, conf_state));
    }

    /// Whether a snapshot was asked for in vain since the last call.
    pub fn take_snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.take()
    }

    /// The log begins behind `index`, which it holds.
    pub fn compact(&mut self, index: u64, term: u64) {
        while self.cache.front().is_some_and(|cached| cached.entry.index <= index) {
            self.cache.pop_front().inspect(|cached| self.cache_bytes -= weight(&cached.entry));
        }
        let live = self.terms.partition_point(|run| run.first_index <= index + 1);
        self.terms.drain(..live.saturating_sub(1));
        self.truncated = (index, term);
    }

    /// A snapshot takes the place of the whole log.
    pub fn install(&mut self, index: u64, term: u64) {
        self.cache.clear();
        self.cache_bytes = 0;
        self.terms.clear();
        (self.truncated, self.last_index) = ((index, term), index);
    }

    /// Remembers the hard state of a Ready.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// The newest hard state, durable or not.
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Bytes of cached entries that could be read from the log as well.
    #[cfg(feature = "sim")]
    pub fn durable_cached_bytes(&self) -> usize {
        let durable = self.cache.iter().take_while(|cached| cached.ready <= self.durable);
        durable.map(|cached| weight(&cached.entry)).sum()
    }

    /// Index of the entry before the first.
    pub fn truncated_index(&self) -> u64 {
        self.truncated.0
    }

    /// Index of the last entry.
    pub fn end(&self) -> u64 {
        self.last_index
    }

    /// Why the log could not be read, if it could not.
    pub fn take_failure(&self) -> Option<String> {
        self.failure.lock().take()
    }

    /// Entries `low..high`, at least one, up to about `max_bytes`.
    pub fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, crate::storage::StorageError> {
        let cached_from = self.cache.front().map_or(self.last_index + 1, |front| front.entry.index);
        let (mut entries, mut bytes) = (Vec::new(), 0u64);
        if low < cached_from {
            let end = high.min(cached_from);
            entries = self.reader.entries(self.group, low, end, max_bytes)?;
            if (entries.len() as u64) < end - low {
                return Ok(entries);
            }
            bytes = entries.iter().map(|entry| weight(entry) as u64).sum();
        }
        let from = low.max(cached_from);
        if from < high {
            let range = (from - cached_from) as usize..(high - cached_from) as usize;
            for cached in self.cache.range(range) {
                bytes += weight(&cached.entry) as u64;
                if bytes > max_bytes && !entries.is_empty() {
                    break;
                }
                entries.push(cached.entry.clone());
            }
        }
        Ok(entries)
    }
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last_index + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        self.read(low, high, max_size.into().unwrap_or(u64::MAX)).map_err(|error| {
            *self.failure.lock() = Some(error.to_string());
            raft::Error::Store(StorageError::Other(Box::new(error)))
        })
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.0 {
            return Ok(self.truncated.1);
        }
        if index < self.truncated.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if index > self.last_index {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let behind = self.terms.partition_point(|run| run.first_index <= index);
        match behind.checked_sub(1).and_then(|at| self.terms.get(at)) {
            Some(run) => Ok(run.term),
            None => Err(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last_index)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let is_member = |conf: &ConfState| {
            conf.voters.contains(&to) || conf.learners.contains(&to) || conf.voters_outgoing.contains(&to)
        };
        // A receiver refuses a snapshot in which it is no member (raft-rs #472).
        let fits = self.snapshot.as_ref().filter(|(name, conf)| name.index >= request_index && is_member(conf));
        let Some((name, conf_state)) = fits else {
            self.snapshot_wanted.set(true);
            // This error makes raft-rs ask again later.
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot { data: name.encode_to_vec(), ..Default::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (name.index, name.term);
        metadata.set_conf_state(conf_state.clone());
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A disk that holds what the test puts there.
    #[derive(Default)]
    struct Disk(parking_lot::Mutex<BTreeMap<u64, Entry>>);

    impl LogReader for Disk {
        fn entries(&self, _: GroupId, low: u64, high: u64, _: u64) -> Result<Vec<Entry>, crate::storage::StorageError> {
            Ok(self.0.lock().range(low..high).map(|(_, entry)| entry.clone()).collect())
        }
    }

    fn entry(index: u64, term: u64, byte: u8) -> Entry {
        Entry { index, term, data: vec![byte; 8], ..Default::default() }
    }

    fn view(disk: &Arc<Disk>, cache_bytes: usize) -> LogView {
        let state = GroupState { truncated: (1, 1), last_index: 1, ..Default::default() };
        LogView::new(1, state, ConfState::default(), disk.clone(), cache_bytes)
    }

    #[test]
    fn p3_an_overwritten_index_stays_cached_until_the_ready_that_overwrote_it_is_durable() {
        let disk = Arc::new(Disk::default());
        let mut view = view(&disk, 0);
        view.append(1, &[entry(2, 2, b'a'), entry(3, 2, b'a')]);
        view.append(2, &[entry(3, 3, b'b')]);
        // Ready 1 reaches the disk, Ready 2 does not yet: index 3 on disk is of the old term.
        disk.0.lock().extend([(2, entry(2, 2, b'a')), (3, entry(3, 2, b'a'))]);
        view.mark_durable(1);
        let read = view.read(2, 4, u64::MAX).unwrap();
        assert_eq!(read.iter().map(|e| e.term).collect::<Vec<_>>(), [2, 3]);
        disk.0.lock().insert(3, entry(3, 3, b'b'));
        view.mark_durable(2);
        assert_eq!(view.cache.len(), 0);
        assert_eq!(view.read(2, 4, u64::MAX).unwrap()[1].term, 3);
    }

    #[test]
    fn terms_are_answered_from_memory_across_an_overwrite() {
        let disk = Arc::new(Disk::default());
        let mut view = view(&disk, usize::MAX);
        view.append(1, &[entry(2, 2, 0), entry(3, 2, 0), entry(4, 3, 0)]);
        view.append(2, &[entry(3, 5, 0)]);
        assert_eq!((1..=3).map(|i| view.term(i).unwrap()).collect::<Vec<_>>(), [1, 2, 5]);
        assert!(matches!(view.term(4), Err(raft::Error::Store(StorageError::Unavailable))));
        assert!(matches!(view.term(0), Err(raft::Error::Store(StorageError::Compacted))));
    }

    #[test]
    fn a_read_spans_disk_and_cache_and_stops_at_its_limit() {
        let disk = Arc::new(Disk::default());
        disk.0.lock().extend((2..=5).map(|i| (i, entry(i, 2, 1))));
        let state = GroupState {
            truncated: (1, 1),
            last_index: 5,
            terms: vec![TermRun { first_index: 2, term: 2 }],
            ..Default::default()
        };
        let mut view = LogView::new(1, state, ConfState::default(), disk.clone(), usize::MAX);
        view.append(1, &[entry(6, 2, 2), entry(7, 2, 2)]);
        let indexes = |low, high, max| view.read(low, high, max).unwrap().iter().map(|e| e.index).collect::<Vec<_>>();
        assert_eq!(indexes(2, 8, u64::MAX), [2, 3, 4, 5, 6, 7]);
        assert_eq!(indexes(4, 7, u64::MAX), [4, 5, 6]);
        assert_eq!(indexes(6, 8, 1), [6], "at least one, whatever the limit");
        assert_eq!(indexes(4, 8, 3 * (8 + ENTRY_OVERHEAD_BYTES as u64)), [4, 5, 6]);
    }
}
