//! When to purge (rule P4): only when it costs next to nothing.
//!
//! raft-engine's purge deletes append files that nothing refers to. When a group still has entries in old files it
//! first asks for compaction, and at the tenth call rewrites all of them, 70 % of the log, in one go on the calling
//! thread. [`PurgePlan`] keeps count of which file holds what, and calls it only when no group would be asked: then a
//! purge deletes files, and rewrites at most [`FEW_ENTRIES`] entries of groups that are nearly idle.

use std::collections::{BTreeMap, VecDeque};

use crate::engine::GroupId;
use crate::storage::GroupState;

/// Groups with fewer entries in old files are rewritten by raft-engine rather than asked (its constant, 0.4.2).
const FEW_ENTRIES: u64 = 32;

/// A file that no entry is appended to any more.
struct Closed {
    number: u64,
    /// The last index of each group when it was closed: its entries in this and older files are at or below it.
    last: BTreeMap<GroupId, u64>,
}

/// Which append files could go.
pub(super) struct PurgePlan {
    closed: VecDeque<Closed>,
    threshold_bytes: u64,
    file_bytes: u64,
    /// First and last file at the last purge: another one would do the same.
    tried: Option<(u64, u64)>,
}

impl PurgePlan {
    /// What was found when the log was opened. Where its entries are is not known: they count as being in every file,
    /// and in file 0 for those in the rewrite queue.
    pub fn new(
        threshold_bytes: u64,
        file_bytes: u64,
        span: Option<(u64, u64)>,
        rewritten: bool,
        groups: &BTreeMap<GroupId, GroupState>,
    ) -> Self {
        let mut plan = Self { closed: VecDeque::new(), threshold_bytes, file_bytes, tried: None };
        if rewritten {
            plan.close(0..1, groups);
        }
        if let Some((first, last)) = span {
            plan.close(first..last, groups);
        }
        plan
    }

    /// These files were closed.
    pub fn close(&mut self, numbers: std::ops::Range<u64>, groups: &BTreeMap<GroupId, GroupState>) {
        for number in numbers {
            let last = groups.iter().map(|(group, state)| (*group, state.last_index)).collect();
            self.closed.push_back(Closed { number, last });
        }
    }

    /// A purge is worth its while now.
    pub fn is_due(&mut self, first: u64, last: u64, groups: &BTreeMap<GroupId, GroupState>) -> bool {
        let files = last.saturating_sub(first).saturating_add(1);
        if first >= last
            || files.saturating_mul(self.file_bytes) <= self.threshold_bytes
            || self.tried == Some((first, last))
        {
            return false;
        }
        while self.closed.front().is_some_and(|file| !groups.iter().any(|(group, state)| file.holds(*group, state) > 0))
        {
            self.closed.pop_front();
        }
        // raft-engine's watermarks: it compacts the oldest 20 % and rewrites in the oldest 70 %.
        let compact_below = (first + files / 5).min(last - 1);
        let rewrite_to = (first + files * 7 / 10).min(last - 1);
        groups.iter().all(|(group, state)| {
            let oldest = self.closed.iter().find(|file| file.holds(*group, state) > 0).map_or(last, |file| file.number);
            let old_entries = self
                .closed
                .iter()
                .rev()
                .find(|file| file.number <= rewrite_to)
                .map_or(0, |file| file.holds(*group, state));
            old_entries < FEW_ENTRIES || (oldest >= compact_below && oldest > first)
        })
    }

    /// A purge was done.
    pub fn done(&mut self, first: u64, last: u64) {
        self.tried = Some((first, last));
    }
}

impl Closed {
    /// At most so many live entries of the group are in this and older files.
    fn holds(&self, group: GroupId, state: &GroupState) -> u64 {
        self.last.get(&group).copied().unwrap_or(0).min(state.last_index).saturating_sub(state.truncated.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(bounds: &[(u64, u64)]) -> BTreeMap<GroupId, GroupState> {
        (1..)
            .zip(bounds)
            .map(|(group, (truncated, last_index))| {
                (group, GroupState { truncated: (*truncated, 1), last_index: *last_index, ..Default::default() })
            })
            .collect()
    }

    /// Ten files with a hundred entries of one group in each, and a few of another in the first.
    fn plan() -> PurgePlan {
        let mut plan = PurgePlan::new(400, 100, None, false, &BTreeMap::new());
        for file in 1..10 {
            plan.close(file..file + 1, &groups(&[(0, file * 100), (0, 5)]));
        }
        plan
    }

    #[test]
    fn nothing_is_purged_while_a_group_would_be_asked_to_compact() {
        for (truncated, due) in [(0, false), (99, false), (150, false), (199, false), (200, true), (950, true)] {
            assert_eq!(plan().is_due(1, 10, &groups(&[(truncated, 1000), (0, 5)])), due, "{truncated}");
        }
    }

    #[test]
    fn a_short_log_is_left_alone_and_a_purge_is_not_repeated() {
        let all = groups(&[(1000, 1000), (5, 5)]);
        assert!(!plan().is_due(7, 10, &all));
        let mut plan = plan();
        assert!(plan.is_due(1, 10, &all));
        plan.done(1, 10);
        assert!(!plan.is_due(1, 10, &all));
        assert!(plan.is_due(1, 11, &all));
    }

    #[test]
    fn after_opening_everything_counts_as_old() {
        let mut plan = PurgePlan::new(400, 100, Some((1, 10)), true, &groups(&[(0, 1000)]));
        assert!(!plan.is_due(1, 11, &groups(&[(960, 1500)])));
        assert!(plan.is_due(1, 11, &groups(&[(970, 1500)])));
    }
}
