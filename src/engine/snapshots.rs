//! When a snapshot is taken, which one counts, and who waits for it.
//!
//! One is taken at a time. Its place is a marker in the apply queue ([`super::applier::Marker`]); the world outside
//! writes the file, and what it says of the end comes back through [`super::Engine::handle_captured`]. The log is
//! compacted behind a snapshot that is on the disk, except for a trail for followers that are a little behind.

use std::collections::VecDeque;

use raft::eraftpb::ConfState;

use super::snapshot::Meta;
use super::{Failure, Token};
use crate::storage::snapshot::SnapshotName;

/// When snapshots are taken, and what stays of the log.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotPolicy {
    /// The application can show its state.
    pub possible: bool,
    /// Taken when so many entries were applied since the last.
    pub entries: u64,
    /// Or so many bytes of commands.
    pub bytes: u64,
    /// Entries that stay in the log behind it.
    pub trail: u64,
}

/// A call that waits for a snapshot.
#[derive(Clone, Copy, Debug)]
struct Waiter {
    token: Token,
    /// Of the state here, or later.
    index: u64,
    deadline_ns: u64,
}

/// Ticks after a failed snapshot until the next one is tried that nobody asks for; twice as many after each further
/// failure, up to 16 times.
const REST_TICKS: u64 = 40;

/// Snapshots of one group.
pub struct Snapshots {
    policy: SnapshotPolicy,
    /// The newest whole one on this node's disk, and who votes and learns there.
    newest: Option<(SnapshotName, ConfState)>,
    /// The newest that the log names durably.
    recorded: Option<SnapshotName>,
    /// The place of the one that is being taken, and who votes and learns there.
    under_way: Option<(u64, ConfState)>,
    /// Index, and bytes applied, when the last one was asked for.
    since: (u64, u64),
    /// The same of earlier ones, oldest first: how far the trail may reach back.
    earlier: VecDeque<(u64, u64)>,
    waiters: Vec<Waiter>,
    next_deadline_ns: u64,
    /// A follower needs one, and there is none that would help it.
    pub is_wanted: bool,
    ticks: u64,
    rests_until: u64,
    /// Since the last one that was taken.
    failures: u32,
    /// Received whole, and on its way through raft-rs.
    pub arrived: Option<(SnapshotName, Meta)>,
}

impl Snapshots {
    /// Goes on from what the log names, or from where it begins.
    pub fn new(policy: SnapshotPolicy, begin: u64, newest: Option<(SnapshotName, ConfState)>) -> Self {
        let since = newest.as_ref().map_or(begin, |(name, _)| name.index);
        Self {
            policy,
            recorded: newest.as_ref().map(|(name, _)| *name),
            newest,
            under_way: None,
            since: (since, 0),
            earlier: VecDeque::new(),
            waiters: Vec::new(),
            next_deadline_ns: u64::MAX,
            is_wanted: false,
            ticks: 0,
            rests_until: 0,
            failures: 0,
            arrived: None,
        }
    }

    /// The newest whole one, and its members.
    pub fn newest(&self) -> Option<&(SnapshotName, ConfState)> {
        self.newest.as_ref()
    }

    /// The newest that the log names durably: a restart goes on from it.
    pub fn durable(&self) -> Option<&SnapshotName> {
        self.recorded.as_ref()
    }

    /// Files that must not be removed.
    pub fn in_use(&self) -> Vec<SnapshotName> {
        let newest = self.newest.as_ref().map(|(name, _)| *name);
        let arrived = self.arrived.as_ref().map(|(name, _)| *name);
        newest.into_iter().chain(self.recorded).chain(arrived).collect()
    }

    /// Where the log may begin behind the snapshot of `index`: a trail of entries before it, but of no more bytes than make
    /// a snapshot due, as far as earlier snapshots tell.
    pub fn begin_of_trail(&mut self, index: u64) -> u64 {
        let by_entries = index.saturating_sub(self.policy.trail);
        while self.earlier.front().is_some_and(|point| point.0 <= by_entries) {
            self.earlier.pop_front();
        }
        let (_, bytes) = self.since;
        let is_far = |point: &(u64, u64)| bytes.saturating_sub(point.1) >= self.policy.bytes;
        while self.earlier.get(1).is_some_and(is_far) {
            self.earlier.pop_front();
        }
        let by_bytes = self.earlier.front().filter(|point| is_far(point)).map_or(0, |point| point.0);
        by_entries.max(by_bytes.min(index))
    }

    /// A tick has passed.
    pub fn tick(&mut self) {
        self.ticks += 1;
    }

    /// A call of the application for a snapshot of its state at `index`, or later.
    /// `Err` answers it at once.
    pub fn ask(&mut self, token: Token, index: u64, deadline_ns: u64) -> Result<(), Result<u64, Failure>> {
        if !self.policy.possible {
            let reason = "the state machine has no snapshot(): define it together with restore()".into();
            return Err(Err(Failure::Snapshot { reason }));
        }
        if let Some(recorded) = self.recorded.filter(|recorded| recorded.index >= index) {
            return Err(Ok(recorded.index));
        }
        self.waiters.push(Waiter { token, index, deadline_ns });
        self.next_deadline_ns = self.next_deadline_ns.min(deadline_ns);
        Ok(())
    }

    /// Whether one should be taken at `applied`, where `bytes` were applied in all.
    pub fn is_due(&self, applied: u64, bytes: u64) -> bool {
        if !self.policy.possible
            || self.under_way.is_some()
            || applied <= self.newest.as_ref().map_or(1, |(name, _)| name.index)
        {
            return false;
        }
        let (since, bytes_since) = self.since;
        let enough = applied.saturating_sub(since) >= self.policy.entries
            || bytes.saturating_sub(bytes_since) >= self.policy.bytes;
        let is_asked_for = self.waiters.iter().any(|waiter| waiter.index <= applied);
        enough || is_asked_for || (self.is_wanted && self.ticks >= self.rests_until)
    }

    /// One is to be taken at `applied`.
    pub fn begin(&mut self, applied: u64, bytes: u64, conf_state: ConfState) {
        self.earlier.push_back(std::mem::replace(&mut self.since, (applied, bytes)));
        self.is_wanted = false;
        self.under_way = Some((applied, conf_state));
    }

    /// It is whole. `false` if a newer one is there already.
    pub fn taken(&mut self, name: SnapshotName) -> bool {
        let Some((_, conf_state)) = self.under_way.take_if(|(index, _)| *index == name.index) else { return false };
        self.failures = 0;
        let is_newer = self.newest.as_ref().is_none_or(|(newest, _)| newest.index < name.index);
        if is_newer {
            self.newest = Some((name, conf_state));
        }
        is_newer
    }

    /// It could not be taken. Returns who waited for it.
    pub fn failed(&mut self, index: u64) -> Vec<Token> {
        if self.under_way.take_if(|(at, _)| *at == index).is_none() {
            return Vec::new();
        }
        self.rests_until = self.ticks + (REST_TICKS << self.failures.min(4));
        self.failures += 1;
        // The log has grown, and need not grow as much again before it is tried anew.
        self.is_wanted = true;
        self.answer(index)
    }

    /// One of another node takes the place of everything, that which is being taken included.
    pub fn installed(&mut self, name: SnapshotName, conf_state: ConfState, bytes: u64) {
        self.newest = Some((name, conf_state));
        self.under_way = None;
        self.since = (name.index, bytes);
        self.earlier.clear();
        (self.is_wanted, self.rests_until, self.failures) = (false, 0, 0);
    }

    /// The log names this one durably. Returns who waited for it.
    pub fn recorded(&mut self, name: SnapshotName) -> Vec<Token> {
        self.recorded = Some(name);
        self.answer(name.index)
    }

    fn answer(&mut self, index: u64) -> Vec<Token> {
        let answered = self.waiters.iter().filter(|waiter| waiter.index <= index).map(|waiter| waiter.token).collect();
        self.waiters.retain(|waiter| waiter.index > index);
        answered
    }

    /// The earliest moment at which [`Self::expire`] has something to do, or `u64::MAX`.
    pub fn next_deadline_ns(&self) -> u64 {
        self.next_deadline_ns
    }

    /// Gives up calls whose deadline has passed.
    pub fn expire(&mut self, now_ns: u64, failed: &mut impl FnMut(Token, Failure)) {
        if now_ns < self.next_deadline_ns {
            return;
        }
        let is_under_way = self.under_way.is_some();
        self.waiters.retain(|waiter| {
            let late = waiter.deadline_ns <= now_ns;
            if late {
                let reason = match is_under_way {
                    true => "the snapshot was not ready in time; it is still being taken",
                    false => "the state machine had not come to where the snapshot was to be taken",
                };
                failed(waiter.token, Failure::TimedOutUnsent { reason: reason.into() });
            }
            !late
        });
        self.next_deadline_ns = self.waiters.iter().map(|waiter| waiter.deadline_ns).min().unwrap_or(u64::MAX);
    }

    /// The node closes.
    pub fn close(&mut self, failed: &mut impl FnMut(Token, Failure)) {
        for waiter in self.waiters.drain(..) {
            failed(waiter.token, Failure::Closed);
        }
    }

    /// Nobody waits.
    pub fn is_idle(&self) -> bool {
        self.waiters.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_failed_is_tried_again_though_nothing_new_is_applied() {
        let policy = SnapshotPolicy { possible: true, entries: 5, bytes: u64::MAX, trail: 0 };
        let mut snapshots = Snapshots::new(policy, 1, None);
        assert!(snapshots.is_due(150, 1500));
        let mut rests = Vec::new();
        for _ in 0..9 {
            snapshots.begin(150, 1500, ConfState::default());
            assert!(snapshots.failed(150).is_empty());
            let before = snapshots.ticks;
            while !snapshots.is_due(150, 1500) {
                snapshots.tick();
            }
            rests.push((snapshots.ticks - before) / REST_TICKS);
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 16, 16, 16, 16]);
        snapshots.begin(150, 1500, ConfState::default());
        assert!(snapshots.taken(SnapshotName { group: 1, index: 150, term: 1, bytes: 0, checksum: 0 }));
        assert!(!snapshots.is_due(150, 1500));
        assert_eq!(snapshots.failures, 0);
    }

    #[test]
    fn what_is_remembered_of_earlier_snapshots_is_bounded_by_the_trail() {
        let policy = SnapshotPolicy { possible: true, entries: 5, bytes: u64::MAX, trail: 20 };
        let mut snapshots = Snapshots::new(policy, 1, None);
        for index in (6..5000).step_by(5) {
            snapshots.begin(index, 100 * index, ConfState::default());
            let name = SnapshotName { group: 1, index, term: 1, bytes: 0, checksum: 0 };
            assert!(snapshots.taken(name));
            assert_eq!(snapshots.begin_of_trail(index), index.saturating_sub(20));
            assert!(snapshots.earlier.len() <= 4, "{:?}", snapshots.earlier);
        }
    }
}
