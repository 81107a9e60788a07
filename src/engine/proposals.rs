//! The origin's side of exactly once: what this node proposed and has not seen applied (design decision 1, rules S1, S4).
//!
//! A proposal keeps its number through every attempt, so a second copy in the log does no harm; what matters here is
//! when another attempt is due, and what may be claimed of a proposal that is given up.

use std::collections::VecDeque;

use super::applier::Origin;
use super::command::{Command, Header};
use super::session::{Sessions, WINDOW};
use super::{Failure, NodeId, Token};
use crate::mutants::{self, Mutant};

/// Bytes on their way to another node at once; what is beyond waits for answers, not in a connection's backlog.
pub const FORWARDED_BYTES_MAX: usize = 16 << 20;

/// Where a proposal's last attempt went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    /// Nothing is under way: the next attempt is due as soon as there is a leader.
    Due,
    /// In this node's own log, appended as the leader of `term`.
    Appended { term: u64 },
    /// On its way to a leader, sent when this node was in `term`.
    /// It is tried again at tick `retry`, whatever became of it.
    Forwarded { to: NodeId, term: u64, retry: u64 },
}

#[derive(Debug)]
struct Pending {
    token: Token,
    command: Command,
    deadline_ns: u64,
    attempt: Attempt,
    /// Attempts made, and how many of them the leader refused before it appended anything.
    attempts: u32,
    refused: u32,
    /// Attempts in a row that were only given up because time had passed: each waits twice as long as the one before.
    late: u32,
}

impl Pending {
    fn may_be_in_a_log(&self) -> bool {
        self.attempts > self.refused && !mutants::on(Mutant::TimedOutMeansNotCommitted)
    }
}

/// A proposal that has no number yet, because the window is full.
#[derive(Debug)]
struct Waiting {
    token: Token,
    command: Command,
    deadline_ns: u64,
}

/// All proposals of this node, by number.
#[derive(Debug)]
pub struct Proposals {
    own: Origin,
    /// The number of `window[0]`; everything below is resolved.
    floor: u64,
    window: VecDeque<Option<Pending>>,
    waiting: VecDeque<Waiting>,
    pending: usize,
    due: usize,
    /// No due attempt has a lower number.
    first_due: u64,
    /// Bytes forwarded and not known to have arrived.
    forwarded_bytes: usize,
    /// No pending deadline is earlier.
    next_deadline_ns: u64,
    reproposals: u64,
    ticks: u64,
    election_ticks: u64,
    /// No forwarded attempt is to be tried again earlier.
    next_retry: u64,
}

impl Proposals {
    /// None yet in this start, `own`.
    pub fn new(own: Origin, election_ticks: usize) -> Self {
        Self {
            own,
            floor: 1,
            window: VecDeque::new(),
            waiting: VecDeque::new(),
            pending: 0,
            due: 0,
            first_due: u64::MAX,
            forwarded_bytes: 0,
            next_deadline_ns: u64::MAX,
            reproposals: 0,
            ticks: 0,
            election_ticks: election_ticks as u64,
            next_retry: u64::MAX,
        }
    }

    /// Takes a proposal in.
    pub fn add(&mut self, token: Token, command: Command, deadline_ns: u64) {
        self.next_deadline_ns = self.next_deadline_ns.min(deadline_ns);
        self.waiting.push_back(Waiting { token, command, deadline_ns });
        self.admit_waiting();
    }

    fn admit_waiting(&mut self) {
        while (self.window.len() as u64) < WINDOW {
            let Some(Waiting { token, mut command, deadline_ns }) = self.waiting.pop_front() else { return };
            let number = self.floor + self.window.len() as u64;
            command.set_origin(self.own.id, self.own.boot, number);
            command.set_nonce(self.own.nonce);
            self.first_due = self.first_due.min(number);
            let attempt = Attempt::Due;
            self.window.push_back(Some(Pending {
                token,
                command,
                deadline_ns,
                attempt,
                attempts: 0,
                refused: 0,
                late: 0,
            }));
            self.pending += 1;
            self.due += 1;
        }
    }

    /// Proposals that wait for an attempt.
    pub fn due(&self) -> usize {
        self.due
    }

    /// Proposals not yet applied here.
    pub fn len(&self) -> usize {
        self.pending + self.waiting.len()
    }

    /// Attempts made while an earlier one might still succeed.
    pub fn reproposals(&self) -> u64 {
        self.reproposals
    }

    /// Numbers from the lowest that is not resolved through the highest.
    #[cfg(feature = "sim")]
    pub fn span(&self) -> usize {
        self.window.len()
    }

    /// The lowest number not yet resolved.
    #[cfg(test)]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// A tick has passed. An attempt can be lost without a trace (on a connection that another one had replaced, say),
    /// so one without an end is tried again after two election timeouts, then after four, and so on. One that ended
    /// otherwise says nothing of a leader that is slow: the next begins with two again.
    pub fn tick(&mut self) {
        self.ticks += 1;
        if self.ticks >= self.next_retry {
            let now = self.ticks;
            let is_late = |attempt| matches!(attempt, Attempt::Forwarded { retry, .. } if retry <= now);
            self.make_due(is_late, |late| late + 1);
            let retries = self.window.iter().flatten().filter_map(|pending| match pending.attempt {
                Attempt::Forwarded { retry, .. } => Some(retry),
                Attempt::Due | Attempt::Appended { .. } => None,
            });
            self.next_retry = retries.min().unwrap_or(u64::MAX);
        }
    }

    /// Calls `send` with (a copy of) every command whose attempt is due, until it declines one.
    /// `to` is the leader, or `None` if that is this node. To another node, no more than [`FORWARDED_BYTES_MAX`] are on
    /// their way at once.
    pub fn send_due(&mut self, to: Option<NodeId>, term: u64, mut send: impl FnMut(Command) -> bool) {
        if self.due == 0 {
            return;
        }
        let begin = self.first_due.saturating_sub(self.floor) as usize;
        for at in begin..self.window.len() {
            let Some(pending) = self.window[at].as_mut().filter(|pending| pending.attempt == Attempt::Due) else {
                continue;
            };
            self.first_due = self.floor + at as u64;
            if to.is_some() && self.forwarded_bytes > FORWARDED_BYTES_MAX {
                return;
            }
            let mut command = pending.command.clone();
            command.set_floor(self.floor);
            if mutants::on(Mutant::NewNumberForEachAttempt) && pending.attempts > 0 {
                let number = self.floor + at as u64 + (u64::from(pending.attempts) << 12);
                command.set_origin(self.own.id, self.own.boot, number);
            }
            if !send(command) {
                return;
            }
            pending.attempt = match to {
                None => Attempt::Appended { term },
                Some(to) => {
                    let patience = (2 * self.election_ticks) << pending.late.min(8);
                    let retry = self.ticks + patience;
                    self.next_retry = self.next_retry.min(retry);
                    self.forwarded_bytes += pending.command.as_bytes().len();
                    Attempt::Forwarded { to, term, retry }
                }
            };
            self.reproposals += u64::from(pending.may_be_in_a_log());
            pending.attempts = pending.attempts.saturating_add(1);
            self.due -= 1;
            if self.due == 0 {
                self.first_due = u64::MAX;
                return;
            }
        }
    }

    /// The first entry of `term` is applied here. What an earlier leader appended is in the log before that entry, or in
    /// no log that can still win (leader completeness, Raft paper 5.4): whatever is still pending needs another attempt.
    pub fn term_began(&mut self, term: u64) {
        let is_lost = |attempt| match attempt {
            Attempt::Appended { term: sent } | Attempt::Forwarded { term: sent, .. } => sent < term,
            Attempt::Due => false,
        };
        self.make_due(is_lost, |_| 0);
    }

    /// What was on its way to `peer` may not have arrived.
    pub fn route_lost(&mut self, peer: NodeId) {
        if mutants::on(Mutant::LostMeansRefused) {
            for number in self.floor..self.floor + self.window.len() as u64 {
                self.refused(self.own.boot, number, peer);
            }
        }
        self.make_due(|attempt| matches!(attempt, Attempt::Forwarded { to, .. } if to == peer), |_| 0);
    }

    fn make_due(&mut self, lost: impl Fn(Attempt) -> bool, late: impl Fn(u32) -> u32) {
        if mutants::on(Mutant::NeverTryAgain) {
            return;
        }
        for at in 0..self.window.len() {
            if let Some(pending) = self.window[at].as_ref().filter(|pending| lost(pending.attempt)) {
                let late = late(pending.late);
                self.set_due(self.floor + at as u64, 0, late);
            }
        }
    }

    /// The attempt under way is over; `refused` of its kind ended before anything was appended.
    fn set_due(&mut self, number: u64, refused: u32, late: u32) {
        let Some(pending) = self.slot(number).and_then(Option::as_mut) else { return };
        pending.late = late;
        pending.refused = (pending.refused + refused).min(pending.attempts);
        let ended = std::mem::replace(&mut pending.attempt, Attempt::Due);
        let bytes = pending.command.as_bytes().len();
        if matches!(ended, Attempt::Forwarded { .. }) {
            self.forwarded_bytes -= bytes;
        }
        self.due += usize::from(ended != Attempt::Due);
        self.first_due = self.first_due.min(number);
    }

    /// The leader refused this attempt before it appended anything. An answer to an earlier attempt of the same number
    /// counts as well: each attempt is answered at most once.
    pub fn refused(&mut self, boot: u64, number: u64, by: NodeId) {
        if boot != self.own.boot {
            return;
        }
        let Some(pending) = self.slot(number).and_then(Option::as_mut) else { return };
        if matches!(pending.attempt, Attempt::Forwarded { to, .. } if to == by) {
            self.set_due(number, 1, 0);
        } else {
            pending.refused = (pending.refused + 1).min(pending.attempts);
        }
    }

    /// The engine itself dropped the attempts it had just made as leader: nothing was appended.
    pub fn not_appended(&mut self, numbers: &[u64]) {
        for &number in numbers {
            self.set_due(number, 1, 0);
        }
    }

    fn slot(&mut self, number: u64) -> Option<&mut Option<Pending>> {
        let at = number.checked_sub(self.floor)?;
        self.window.get_mut(usize::try_from(at).ok()?)
    }

    /// A command is applied here. If this start proposed it, it is resolved: returns who waits for it, and until when.
    pub fn applied(&mut self, header: &Header) -> Option<(Token, u64)> {
        let origin = Origin { id: header.origin, boot: header.boot, nonce: header.nonce };
        if origin != self.own {
            return None;
        }
        let pending = self.take(header.number)?;
        self.raise_floor();
        Some((pending.token, pending.deadline_ns))
    }

    /// A snapshot was installed: what it contains is applied, and has no result here (rule S5).
    pub fn installed(&mut self, sessions: &Sessions, index: u64, failed: &mut impl FnMut(Token, Failure)) {
        if sessions.start_of(self.own.id) != Some((self.own.boot, self.own.nonce)) {
            return;
        }
        for number in self.floor..self.floor + self.window.len() as u64 {
            if sessions.has_applied(self.own.id, number) {
                if let Some(pending) = self.take(number) {
                    failed(pending.token, Failure::AppliedWithoutResult { index });
                }
            }
        }
        self.raise_floor();
    }

    fn take(&mut self, number: u64) -> Option<Pending> {
        let pending = self.slot(number)?.take()?;
        self.pending -= 1;
        match pending.attempt {
            Attempt::Due => self.due -= 1,
            Attempt::Forwarded { .. } => self.forwarded_bytes -= pending.command.as_bytes().len(),
            Attempt::Appended { .. } => {}
        }
        Some(pending)
    }

    fn raise_floor(&mut self) {
        while matches!(self.window.front(), Some(None)) {
            self.window.pop_front();
            self.floor += 1;
        }
        self.admit_waiting();
    }

    /// The earliest moment at which [`Self::expire`] has something to do, or `u64::MAX`.
    pub fn next_deadline_ns(&self) -> u64 {
        self.next_deadline_ns
    }

    /// Gives up what is past its deadline. The number is resolved for its origin, so the floor may pass it, and a copy
    /// that reaches the log behind such a floor is skipped everywhere.
    pub fn expire(
        &mut self,
        now_ns: u64,
        unsent_reason: impl Fn(&Command) -> String,
        late: impl Fn(&Command) -> Failure,
        failed: &mut impl FnMut(Token, Failure),
    ) {
        if now_ns < self.next_deadline_ns || mutants::on(Mutant::IgnoreDeadlines) {
            return;
        }
        self.fail(
            |deadline_ns| deadline_ns <= now_ns,
            failed,
            |in_a_log, command| match in_a_log {
                true => late(command),
                false => Failure::TimedOutUnsent { reason: unsent_reason(command) },
            },
        );
        let window = self.window.iter().flatten().map(|pending| pending.deadline_ns);
        let waiting = self.waiting.iter().map(|waiting| waiting.deadline_ns);
        self.next_deadline_ns = window.chain(waiting).min().unwrap_or(u64::MAX);
    }

    /// The node closes: everything ends.
    pub fn close(&mut self, failed: &mut impl FnMut(Token, Failure)) {
        self.fail(
            |_| true,
            failed,
            |in_a_log, _| match in_a_log {
                true => Failure::Closed,
                false => Failure::ClosedUnsent,
            },
        );
    }

    fn fail(
        &mut self,
        which: impl Fn(u64) -> bool,
        failed: &mut impl FnMut(Token, Failure),
        failure: impl Fn(bool, &Command) -> Failure,
    ) {
        for at in 0..self.window.len() {
            if self.window[at].as_ref().is_some_and(|pending| which(pending.deadline_ns)) {
                if let Some(pending) = self.take(self.floor + at as u64) {
                    failed(pending.token, failure(pending.may_be_in_a_log(), &pending.command));
                }
            }
        }
        self.waiting.retain(|waiting| {
            let keep = !which(waiting.deadline_ns);
            if !keep {
                failed(waiting.token, failure(false, &waiting.command));
            }
            keep
        });
        self.raise_floor();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Origin = Origin { id: 1, boot: 1, nonce: 7 };

    fn header_of(origin: Origin, number: u64) -> Header {
        let mut command = Command::new(b"");
        command.set_origin(origin.id, origin.boot, number);
        command.set_nonce(origin.nonce);
        command.header()
    }

    fn header(number: u64) -> Header {
        header_of(OWN, number)
    }

    fn proposals(count: u64) -> Proposals {
        let mut proposals = Proposals::new(OWN, 10);
        for token in 1..=count {
            proposals.add(token, Command::new(b"x"), 100 * token);
        }
        proposals
    }

    fn send(proposals: &mut Proposals, to: Option<NodeId>, term: u64) -> Vec<(u64, u64)> {
        let mut sent = Vec::new();
        proposals.send_due(to, term, |command| {
            sent.push((command.header().number, command.header().floor));
            true
        });
        sent
    }

    fn expire(proposals: &mut Proposals, now_ns: u64) -> Vec<(Token, Failure)> {
        let mut failed = Vec::new();
        let mut fail = |token, failure| failed.push((token, failure));
        proposals.expire(now_ns, |_| "no leader".into(), |_| Failure::TimedOut, &mut fail);
        failed
    }

    #[test]
    fn s1_numbers_are_kept_through_every_attempt_and_the_floor_follows_what_is_resolved() {
        let mut proposals = proposals(3);
        assert_eq!(send(&mut proposals, None, 2), [(1, 1), (2, 1), (3, 1)]);
        assert_eq!(proposals.applied(&header(2)), Some((2, 200)));
        assert_eq!(proposals.floor(), 1);
        assert_eq!(proposals.applied(&header(1)), Some((1, 100)));
        assert_eq!(proposals.floor(), 3);
        assert_eq!(proposals.applied(&header(1)), None, "resolved once");
        let of = |id, boot, nonce| header_of(Origin { id, boot, nonce }, 3);
        for other in [of(9, 1, 7), of(1, 9, 7), of(1, 1, 9)] {
            assert_eq!(proposals.applied(&other), None, "another node's, another boot's, a copy's number");
        }
        proposals.term_began(3);
        assert_eq!(send(&mut proposals, Some(2), 3), [(3, 3)]);
        assert_eq!(proposals.reproposals(), 1);
    }

    #[test]
    fn another_attempt_is_due_when_the_last_can_no_longer_succeed() {
        let mut proposals = proposals(1);
        send(&mut proposals, Some(2), 5);
        proposals.term_began(5);
        proposals.route_lost(3);
        assert_eq!(proposals.due(), 0);
        proposals.route_lost(2);
        assert_eq!(send(&mut proposals, Some(2), 5).len(), 1);
        proposals.refused(1, 1, 2);
        assert_eq!(send(&mut proposals, None, 6).len(), 1);
        proposals.refused(1, 1, 2);
        assert_eq!(proposals.due(), 0, "a late refusal by an old leader does not touch the newer attempt");
        proposals.term_began(7);
        assert_eq!(send(&mut proposals, None, 7).len(), 1);
    }

    #[test]
    fn an_attempt_without_an_end_is_made_again_and_less_and_less_often() {
        let mut proposals = proposals(1);
        let mut made_at = Vec::new();
        for tick in 0..200 {
            if !send(&mut proposals, Some(2), 2).is_empty() {
                made_at.push(tick);
            }
            proposals.tick();
        }
        assert_eq!(made_at, [0, 20, 60, 140]);
        assert_eq!(expire(&mut proposals, 100), [(1, Failure::TimedOut)]);
        assert_eq!(proposals.forwarded_bytes, 0);
    }

    /// Found by the simulated world: refused often enough by a node that was thought to lead, a proposal was tried again
    /// only minutes after the leader's connection had swallowed it.
    #[test]
    fn refusals_and_lost_connections_do_not_make_the_next_attempt_wait_longer() {
        let mut proposals = proposals(1);
        for _ in 0..9 {
            send(&mut proposals, Some(2), 2);
            proposals.refused(1, 1, 2);
            send(&mut proposals, Some(2), 2);
            proposals.route_lost(2);
        }
        send(&mut proposals, Some(2), 2);
        let waited = (1..).find(|_| {
            proposals.tick();
            proposals.due() > 0
        });
        assert_eq!(waited, Some(20));
    }

    #[test]
    fn what_is_on_its_way_to_the_leader_is_bounded() {
        let mut proposals = Proposals::new(OWN, 10);
        for token in 0..40 {
            proposals.add(token, Command::new(&[0; 1 << 20]), u64::MAX);
        }
        let first = send(&mut proposals, Some(2), 2).len();
        assert_eq!(first, 16);
        assert_eq!(send(&mut proposals, Some(2), 2).len(), 0);
        assert!(proposals.applied(&header(1)).is_some());
        assert_eq!(send(&mut proposals, Some(2), 2), [(17, 2)]);
        proposals.route_lost(2);
        assert_eq!(send(&mut proposals, None, 3).len(), 39, "into this node's own log there is no such bound");
    }

    #[test]
    fn s4_not_committed_is_claimed_only_if_every_attempt_was_refused_or_none_was_made() {
        let mut proposals = proposals(3);
        proposals.send_due(Some(2), 2, |command| command.header().number < 3);
        proposals.refused(1, 1, 2);
        let failed = expire(&mut proposals, 300);
        let unsent = Failure::TimedOutUnsent { reason: "no leader".into() };
        assert_eq!(failed, [(1, unsent.clone()), (2, Failure::TimedOut), (3, unsent)]);
        assert_eq!((proposals.floor(), proposals.len(), proposals.due()), (4, 0, 0));
    }

    #[test]
    fn s4_a_refusal_after_an_attempt_of_unknown_end_claims_nothing() {
        let mut proposals = proposals(1);
        send(&mut proposals, Some(2), 2);
        proposals.route_lost(2);
        send(&mut proposals, Some(2), 2);
        proposals.refused(1, 1, 2);
        assert_eq!(expire(&mut proposals, 100), [(1, Failure::TimedOut)]);
    }

    #[test]
    fn deadlines_pass_in_their_own_order() {
        let mut proposals = Proposals::new(OWN, 10);
        for (token, deadline) in [(1, u64::MAX), (2, 50), (3, 10)] {
            proposals.add(token, Command::new(b""), deadline);
        }
        assert_eq!(proposals.next_deadline_ns(), 10);
        assert_eq!(expire(&mut proposals, 10).len(), 1);
        assert_eq!(proposals.next_deadline_ns(), 50);
        assert_eq!(expire(&mut proposals, 60).len(), 1);
        assert_eq!(proposals.next_deadline_ns(), u64::MAX);
        assert_eq!(proposals.floor(), 1, "the one that waits for ever holds the floor");
    }

    #[test]
    fn s1_beyond_the_window_a_proposal_waits_for_a_number() {
        let mut proposals = proposals(WINDOW + 1);
        assert_eq!(send(&mut proposals, None, 2).len() as u64, WINDOW);
        proposals.applied(&header(2));
        assert_eq!(proposals.due(), 0, "the floor did not move");
        proposals.applied(&header(1));
        assert_eq!(send(&mut proposals, None, 2), [(WINDOW + 1, 3)]);
    }

    #[test]
    fn closing_ends_everything_with_what_is_known() {
        let mut proposals = proposals(2);
        proposals.send_due(None, 2, |command| command.header().number == 1);
        let mut failed = Vec::new();
        proposals.close(&mut |token, failure| failed.push((token, failure)));
        assert_eq!(failed, [(1, Failure::Closed), (2, Failure::ClosedUnsent)]);
    }
}
