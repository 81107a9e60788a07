//! Which commands were applied before: one session per origin, part of the replicated state (rules S1 and S2).
//!
//! The idea is the client session of the Raft thesis, section 6.3, with two differences: a session is opened by its first
//! command, and the origin itself says up to where answers may be forgotten (its *floor*), so a session is a bitmap
//! of the numbers in flight instead of a table of responses.

use std::collections::{BTreeMap, VecDeque};

use super::command::Header;
use super::NodeId;
use crate::mutants::{self, Mutant};

/// The widest span between an origin's floor and its highest number. Every replica must agree on it: it is part of the
/// format, not of the configuration.
pub const WINDOW: u64 = 1 << 20;

/// A session as it stands in a snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StoredSession {
    #[prost(fixed64, tag = "1")]
    origin: NodeId,
    #[prost(fixed64, tag = "2")]
    boot: u64,
    #[prost(fixed64, tag = "3")]
    nonce: u64,
    #[prost(fixed64, tag = "4")]
    floor: u64,
    #[prost(fixed64, repeated, tag = "5")]
    applied: Vec<u64>,
}

/// What a replica does with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The first copy: apply it.
    Fresh,
    /// Applied before, or given up by its origin, or outside of the window: skip it.
    Skip,
}

/// What there is to say of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionFigures {
    /// Whose.
    pub origin: NodeId,
    /// The start of that node whose commands count.
    pub boot: u64,
    /// Its lowest number that it may send again.
    pub floor: u64,
    /// Commands applied from the floor on.
    pub applied_ahead: u64,
}

/// All origins' sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    origins: BTreeMap<NodeId, Session>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    boot: u64,
    /// Of the start whose command came first in the log: a copy of the directory, started as well, is not it.
    nonce: u64,
    floor: u64,
    /// Bit `i` of the whole says that number `floor_word * 64 + i` was applied.
    applied: VecDeque<u64>,
}

impl Sessions {
    /// Decides about a command at its place in the log and remembers the decision.
    /// Same log, same verdicts, on every replica.
    pub fn admit(&mut self, header: &Header) -> Verdict {
        let session = self.origins.entry(header.origin).or_insert_with(|| Session::new(header));
        if header.boot < session.boot || (header.boot == session.boot && header.nonce != session.nonce) {
            if mutants::on(Mutant::IgnoreBoot) {
                return Verdict::Fresh;
            }
            return Verdict::Skip;
        }
        if header.boot > session.boot {
            *session = Session::new(header);
        }
        session.raise_floor(header.floor);
        session.mark(header.number)
    }

    /// A member has left for good: whatever else it proposed is skipped as a stranger's (rule S3).
    pub fn remove(&mut self, origin: NodeId) {
        self.origins.remove(&origin);
    }

    /// All of it, for a snapshot.
    pub fn stored(&self) -> Vec<StoredSession> {
        let stored = self.origins.iter().map(|(origin, session)| {
            let Session { boot, nonce, floor, .. } = *session;
            StoredSession { origin: *origin, boot, nonce, floor, applied: session.applied.iter().copied().collect() }
        });
        stored.collect()
    }

    /// What [`Self::stored`] gave; `None` if it cannot have.
    pub fn from_stored(stored: Vec<StoredSession>) -> Option<Self> {
        let mut origins = BTreeMap::new();
        for StoredSession { origin, boot, nonce, floor, applied } in stored {
            let fits = applied.len() as u64 <= WINDOW / 64 + 1;
            let session = Session { boot, nonce, floor, applied: applied.into() };
            if !fits || origins.insert(origin, session).is_some() {
                return None;
            }
        }
        Some(Self { origins })
    }

    /// A line for each.
    pub fn figures(&self) -> Vec<SessionFigures> {
        let figures = self.origins.iter().map(|(origin, session)| {
            let Session { boot, floor, .. } = *session;
            SessionFigures { origin: *origin, boot, floor, applied_ahead: session.applied_ahead() }
        });
        figures.collect()
    }

    /// Boot and nonce of the start of `origin` whose commands count.
    pub fn start_of(&self, origin: NodeId) -> Option<(u64, u64)> {
        self.origins.get(&origin).map(|session| (session.boot, session.nonce))
    }

    /// Whether the command of this number, which `origin` has not given up, was applied.
    pub fn has_applied(&self, origin: NodeId, number: u64) -> bool {
        self.origins.get(&origin).is_some_and(|session| session.has(number))
    }

    /// A digest of all sessions.
    #[cfg(feature = "sim")]
    pub fn digest(&self) -> u64 {
        use super::inspect::fold;
        self.origins.iter().fold(0, |digest, (origin, session)| {
            let numbers = [*origin, session.boot, session.floor];
            numbers.iter().chain(&session.applied).fold(digest, |digest, word| fold(digest, *word))
        })
    }

    /// Words of the bitmap of an origin.
    #[cfg(feature = "sim")]
    pub fn words(&self, origin: NodeId) -> usize {
        self.origins.get(&origin).map_or(0, |session| session.applied.len())
    }

    /// The highest boot and floor seen of an origin.
    #[cfg(test)]
    pub fn of(&self, origin: NodeId) -> Option<(u64, u64)> {
        self.origins.get(&origin).map(|session| (session.boot, session.floor))
    }
}

impl Session {
    fn new(header: &Header) -> Self {
        Self { boot: header.boot, nonce: header.nonce, floor: 0, applied: VecDeque::new() }
    }

    fn raise_floor(&mut self, floor: u64) {
        if floor <= self.floor || mutants::on(Mutant::UnboundedSessions) {
            return;
        }
        let passed_words = (floor / 64 - self.floor / 64).min(self.applied.len() as u64);
        self.applied.drain(..passed_words as usize);
        self.floor = floor;
    }

    /// The first word may still say something of numbers below the floor.
    fn applied_ahead(&self) -> u64 {
        let below = (1u64 << (self.floor % 64)) - 1;
        let first = self.applied.front().map_or(0, |word| word & below);
        let all: u64 = self.applied.iter().map(|word| u64::from(word.count_ones())).sum();
        all - u64::from(first.count_ones())
    }

    fn has(&self, number: u64) -> bool {
        let word = (number / 64).checked_sub(self.floor / 64).and_then(|word| self.applied.get(word as usize));
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    fn mark(&mut self, number: u64) -> Verdict {
        if mutants::on(Mutant::SkipSessionTable) || (number < self.floor && mutants::on(Mutant::IgnoreFloor)) {
            return Verdict::Fresh;
        }
        if number < self.floor || number - self.floor >= WINDOW {
            return Verdict::Skip;
        }
        let word = (number / 64 - self.floor / 64) as usize;
        let bit = 1u64 << (number % 64);
        if self.applied.len() <= word {
            self.applied.resize(word + 1, 0);
        }
        let seen = &mut self.applied[word];
        if *seen & bit != 0 {
            return Verdict::Skip;
        }
        *seen |= bit;
        Verdict::Fresh
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::command::Kind;

    fn header(boot: u64, number: u64, floor: u64) -> Header {
        Header { kind: Kind::Application, origin: 1, boot, number, floor, timestamp_ns: 0, wall_ns: 0, nonce: 0 }
    }

    #[test]
    fn s1_a_second_copy_is_skipped() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.admit(&header(1, 5, 5)), Verdict::Fresh);
        assert_eq!(sessions.admit(&header(1, 5, 5)), Verdict::Skip);
        assert_eq!(sessions.admit(&header(1, 4, 1)), Verdict::Skip, "an older floor does not lower the floor");
        assert_eq!(sessions.admit(&header(1, 6, 1)), Verdict::Fresh, "concurrent proposals have no order");
    }

    #[test]
    fn s1_a_number_below_the_floor_is_skipped_though_it_was_never_applied() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.admit(&header(1, 200, 150)), Verdict::Fresh);
        assert_eq!(sessions.admit(&header(1, 149, 1)), Verdict::Skip);
        assert_eq!(sessions.of(1), Some((1, 150)));
    }

    #[test]
    fn s1_a_number_beyond_the_window_is_skipped() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.admit(&header(1, WINDOW + 7, 7)), Verdict::Skip);
        assert_eq!(sessions.admit(&header(1, WINDOW + 6, 7)), Verdict::Fresh);
    }

    #[test]
    fn figures_count_what_was_applied_from_the_floor_on() {
        let mut sessions = Sessions::default();
        for number in [3, 5, 60, 70, 200] {
            sessions.admit(&header(1, number, 1));
        }
        sessions.admit(&header(1, 71, 60));
        let expected = SessionFigures { origin: 1, boot: 1, floor: 60, applied_ahead: 4 };
        assert_eq!(sessions.figures(), [expected]);
        assert_eq!(Sessions::default().figures(), []);
    }

    #[test]
    fn s2_an_older_boot_is_skipped_and_a_newer_one_starts_afresh() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.admit(&header(2, 9, 9)), Verdict::Fresh);
        assert_eq!(sessions.admit(&header(1, 10, 9)), Verdict::Skip);
        assert_eq!(sessions.admit(&header(3, 1, 1)), Verdict::Fresh);
        assert_eq!(sessions.admit(&header(2, 10, 9)), Verdict::Skip);
    }

    #[test]
    fn s2_of_two_starts_with_one_boot_the_first_in_the_log_counts() {
        let copy = |boot, number| Header { nonce: 9, ..header(boot, number, 1) };
        let mut sessions = Sessions::default();
        assert_eq!(sessions.admit(&header(2, 1, 1)), Verdict::Fresh);
        assert_eq!(sessions.admit(&copy(2, 2)), Verdict::Skip, "though its number is new");
        assert_eq!(sessions.admit(&Header { floor: 50, ..copy(2, 60) }), Verdict::Skip);
        assert_eq!(sessions.of(1), Some((2, 1)), "nor does it move the floor");
        assert_eq!(sessions.admit(&header(2, 2, 1)), Verdict::Fresh);
        assert_eq!(sessions.admit(&copy(3, 1)), Verdict::Fresh, "a later start is another matter");
        assert_eq!(sessions.admit(&header(3, 2, 1)), Verdict::Skip);
    }

    proptest! {
        /// The bitmap decides as a plain set of all numbers ever applied would.
        #[test]
        fn the_bitmap_equals_a_set(steps in prop::collection::vec((0u64..400, 0u64..300), 1..300)) {
            let mut sessions = Sessions::default();
            let (mut floor, mut applied) = (0, BTreeSet::new());
            for (number, new_floor) in steps {
                let verdict = sessions.admit(&header(1, number, new_floor));
                floor = floor.max(new_floor);
                let fresh = number >= floor && applied.insert(number);
                prop_assert_eq!(verdict == Verdict::Fresh, fresh, "number {} floor {}", number, floor);
            }
            let words = sessions.origins[&1].applied.len();
            prop_assert!(words <= 8, "{} words for a span below 400", words);
        }
    }
}
