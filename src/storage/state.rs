//! What a group's log is after a write: the same rules for the disk and for its memory twin.

use raft::eraftpb::Entry;

use crate::mutants::{self, Mutant};

use super::{GroupState, GroupWrite, StorageError, TermRun};

/// What a write does to the entries that were there before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// All entries go (the log was replaced by a snapshot that it does not contain).
    pub reset: bool,
    /// Entries below this index go.
    pub compact_below: Option<u64>,
    /// The term runs are no longer what they were.
    pub terms: bool,
    /// `truncated` or `last_index` are no longer what they were.
    pub bounds: bool,
}

impl GroupState {
    /// Takes a write in, or refuses it.
    ///
    /// After a refusal the state is half changed: the log has stopped by then, and nobody looks at it.
    pub(crate) fn apply(&mut self, write: &GroupWrite) -> Result<Change, StorageError> {
        let mut change = Change::default();
        if let Some(truncated) = write.truncated {
            self.truncate(write, truncated, &mut change)?;
        }
        if !write.entries.is_empty() {
            self.append(write, &mut change)?;
        }
        if let Some(hard_state) = &write.hard_state {
            self.hard_state.clone_from(hard_state);
        }
        for (key, value) in &write.records {
            self.records.insert(key.clone(), value.clone());
        }
        Ok(change)
    }

    /// The term of an entry in the log, or of the one it begins behind.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.truncated.0 {
            return Some(self.truncated.1);
        }
        if index < self.truncated.0 || index > self.last_index {
            return None;
        }
        let run = self.terms.partition_point(|run| run.first_index <= index);
        self.terms.get(run.checked_sub(1)?).map(|run| run.term)
    }

    /// Forgets the runs of entries up to `truncated`, as after reading an older record.
    pub(super) fn trim_terms(&mut self) {
        let first = self.truncated.0.saturating_add(1);
        if self.last_index < first {
            self.terms.clear();
            return;
        }
        let live = self.terms.partition_point(|run| run.first_index <= first);
        self.terms.drain(..live.saturating_sub(1));
        if let Some(run) = self.terms.first_mut() {
            run.first_index = run.first_index.max(first);
        }
    }

    fn truncate(&mut self, write: &GroupWrite, asked: (u64, u64), change: &mut Change) -> Result<(), StorageError> {
        let have = self.truncated;
        if asked.0 < have.0 || (asked.0 == have.0 && asked.1 != have.1) {
            return Err(StorageError::Truncation { group: write.group, asked, have });
        }
        if asked == have {
            return Ok(());
        }
        // Raft §7: the entries behind the snapshot are kept if the log holds its last entry. Otherwise none of them
        // may stay: those behind it could carry a term that was overruled.
        let is_stale = self.term(asked.0) != Some(asked.1);
        if !is_stale || (mutants::on(Mutant::KeepStaleSuffix) && asked.0 < self.last_index) {
            change.compact_below = Some(asked.0.saturating_add(1));
        } else {
            change.reset = true;
            self.last_index = asked.0;
        }
        self.truncated = asked;
        self.trim_terms();
        change.terms = true;
        change.bounds = true;
        Ok(())
    }

    fn append(&mut self, write: &GroupWrite, change: &mut Change) -> Result<(), StorageError> {
        let lowest = self.truncated.0.saturating_add(1);
        let highest = self.last_index.saturating_add(1);
        let mut next = None;
        for entry in &write.entries {
            let (low, high) = next.map_or((lowest, highest), |next| (next, next));
            if entry.index < low || entry.index > high {
                return Err(StorageError::Gap { group: write.group, found: entry.index, lowest: low, highest: high });
            }
            next = Some(entry.index.saturating_add(1));
        }
        if let (Some(first), Some(last)) = (write.entries.first(), write.entries.last()) {
            change.terms |= self.replace_terms(first.index, &write.entries);
            change.bounds = true;
            self.last_index = last.index;
        }
        Ok(())
    }

    fn replace_terms(&mut self, first_index: u64, entries: &[Entry]) -> bool {
        let kept = self.terms.partition_point(|run| run.first_index < first_index);
        let mut changed = kept != self.terms.len();
        self.terms.truncate(kept);
        for entry in entries {
            if self.terms.last().map(|run| run.term) != Some(entry.term) {
                self.terms.push(TermRun { first_index: entry.index, term: entry.term });
                changed = true;
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(range: std::ops::Range<u64>, term: u64) -> GroupWrite {
        let entries = range.map(|index| Entry { index, term, ..Default::default() }).collect();
        GroupWrite { group: 1, entries, ..Default::default() }
    }

    fn truncated(index: u64, term: u64) -> GroupWrite {
        GroupWrite { group: 1, truncated: Some((index, term)), ..Default::default() }
    }

    fn state(writes: &[GroupWrite]) -> GroupState {
        let mut state = GroupState::default();
        for write in writes {
            state.apply(write).unwrap();
        }
        state
    }

    fn runs(state: &GroupState) -> Vec<(u64, u64)> {
        state.terms.iter().map(|run| (run.first_index, run.term)).collect()
    }

    #[test]
    fn the_runs_follow_appends_overlaps_and_compaction() {
        let mut log = state(&[truncated(1, 1), entries(2..5, 1), entries(5..9, 2), entries(9..12, 4)]);
        assert_eq!(runs(&log), [(2, 1), (5, 2), (9, 4)]);
        assert_eq!([1, 2, 4, 5, 8, 9, 11].map(|i| log.term(i)), [1, 1, 1, 2, 2, 4, 4].map(Some));
        assert_eq!([0, 12].map(|i| log.term(i)), [None, None]);

        log.apply(&entries(7..8, 5)).unwrap();
        assert_eq!((runs(&log), log.last_index), (vec![(2, 1), (5, 2), (7, 5)], 7));

        let change = log.apply(&truncated(5, 2)).unwrap();
        assert_eq!((change.reset, change.compact_below), (false, Some(6)));
        assert_eq!((runs(&log), log.last_index), (vec![(6, 2), (7, 5)], 7));

        let change = log.apply(&truncated(7, 5)).unwrap();
        assert_eq!((change.reset, change.compact_below), (false, Some(8)));
        assert_eq!((runs(&log), log.last_index, log.term(7)), (vec![], 7, Some(5)));
    }

    #[test]
    fn a_snapshot_that_the_log_does_not_contain_replaces_it() {
        for asked in [(4, 3), (9, 1), (9, 3)] {
            let mut log = state(&[truncated(1, 1), entries(2..8, 1)]);
            let change = log.apply(&truncated(asked.0, asked.1)).unwrap();
            assert!(change.reset, "{asked:?}");
            assert_eq!((log.last_index, log.truncated, runs(&log)), (asked.0, asked, vec![]));
        }
    }

    #[test]
    fn what_does_not_follow_is_refused() {
        let log = state(&[truncated(3, 1), entries(4..8, 1)]);
        for bad in [entries(9..10, 1), entries(3..9, 1), entries(0..1, 1)] {
            assert!(matches!(log.clone().apply(&bad), Err(StorageError::Gap { .. })), "{bad:?}");
        }
        let mut hole = entries(8..9, 1);
        hole.entries.extend(entries(10..11, 1).entries);
        let error = log.clone().apply(&hole).unwrap_err();
        assert!(matches!(error, StorageError::Gap { found: 10, lowest: 9, highest: 9, .. }), "{error}");
        for bad in [(2, 1), (3, 2)] {
            let error = log.clone().apply(&truncated(bad.0, bad.1)).unwrap_err();
            assert!(matches!(error, StorageError::Truncation { .. }), "{error}");
        }
    }
}
