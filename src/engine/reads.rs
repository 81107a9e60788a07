//! Linearizable reads: many barriers share one ReadIndex round (Raft thesis 6.4, rule C6).

use std::collections::VecDeque;

use super::{Failure, NodeId, Token};
use crate::mutants::{self, Mutant};

/// Rounds under way at once; further barriers wait for one of them and share the next.
const ROUNDS_MAX: usize = 4;

/// Somebody who waits for a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    /// Who.
    pub token: Token,
    /// Until when, nanoseconds of boottime.
    pub deadline_ns: u64,
}

#[derive(Debug)]
struct Round {
    sequence: u64,
    readers: Vec<Reader>,
    ticks: usize,
}

/// The barriers of this node.
#[derive(Debug)]
pub struct Reads {
    node: NodeId,
    boot: u64,
    sequence: u64,
    waiting: Vec<Reader>,
    rounds: VecDeque<Round>,
    retry_ticks: usize,
    next_deadline_ns: u64,
}

impl Reads {
    /// A round without an answer for `retry_ticks` ticks is tried again.
    pub fn new(node: NodeId, boot: u64, retry_ticks: usize) -> Self {
        Self {
            node,
            boot,
            sequence: 0,
            waiting: Vec::new(),
            rounds: VecDeque::new(),
            retry_ticks,
            next_deadline_ns: u64::MAX,
        }
    }

    /// Takes a barrier in; it joins the next round, never one that is under way.
    pub fn add(&mut self, reader: Reader) {
        self.next_deadline_ns = self.next_deadline_ns.min(reader.deadline_ns);
        if let Some(round) = self.rounds.back_mut().filter(|_| mutants::on(Mutant::JoinRoundUnderWay)) {
            round.readers.push(reader);
            return;
        }
        self.waiting.push(reader);
    }

    /// Starts a round for everyone who waits. Returns its context, unique per node, boot and round: raft-rs merges reads
    /// of equal context.
    pub fn start_round(&mut self) -> Option<Vec<u8>> {
        if self.waiting.is_empty() || self.rounds.len() >= ROUNDS_MAX {
            return None;
        }
        self.sequence += u64::from(!mutants::on(Mutant::RepeatContext));
        let readers = std::mem::take(&mut self.waiting);
        self.rounds.push_back(Round { sequence: self.sequence, readers, ticks: 0 });
        Some(context(self.node, self.boot, self.sequence))
    }

    /// A round was answered; returns its readers. Answers to given-up rounds are ignored.
    pub fn answered(&mut self, answer: &[u8]) -> Vec<Reader> {
        let at = self.rounds.iter().position(|round| context(self.node, self.boot, round.sequence) == answer);
        at.and_then(|at| self.rounds.remove(at)).map_or_else(Vec::new, |round| round.readers)
    }

    /// The rounds under way will not be answered (no leader, another leader, another route): all wait for a new one.
    pub fn restart_rounds(&mut self) {
        for round in self.rounds.drain(..) {
            self.waiting.extend(round.readers);
        }
    }

    /// A tick has passed. An answer can be lost without a trace, so a round that is old enough is tried again.
    pub fn tick(&mut self) {
        for round in &mut self.rounds {
            round.ticks += 1;
        }
        while self.rounds.front().is_some_and(|round| round.ticks >= self.retry_ticks) {
            if let Some(round) = self.rounds.pop_front() {
                self.waiting.extend(round.readers);
            }
        }
    }

    /// Barriers that wait for a round or an answer.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rounds.is_empty()
    }

    /// The earliest moment at which [`Self::expire`] has something to do, or `u64::MAX`.
    pub fn next_deadline_ns(&self) -> u64 {
        self.next_deadline_ns
    }

    /// Gives up what is past its deadline. `reason` says what it was waiting for.
    pub fn expire(&mut self, now_ns: u64, reason: &str, failed: &mut impl FnMut(Token, Failure)) {
        if now_ns < self.next_deadline_ns {
            return;
        }
        let failure = Failure::TimedOutUnsent { reason: reason.to_string() };
        self.fail(|reader| reader.deadline_ns <= now_ns, failure, failed);
        let readers = self.waiting.iter().chain(self.rounds.iter().flat_map(|round| &round.readers));
        self.next_deadline_ns = readers.map(|reader| reader.deadline_ns).min().unwrap_or(u64::MAX);
    }

    /// The node closes: everything ends.
    pub fn close(&mut self, failed: &mut impl FnMut(Token, Failure)) {
        self.fail(|_| true, Failure::Closed, failed);
    }

    fn fail(&mut self, which: impl Fn(&Reader) -> bool, failure: Failure, failed: &mut impl FnMut(Token, Failure)) {
        let rounds = self.rounds.iter_mut().map(|round| &mut round.readers);
        for readers in rounds.chain(std::iter::once(&mut self.waiting)) {
            readers.retain(|reader| {
                let given_up = which(reader);
                if given_up {
                    failed(reader.token, failure.clone());
                }
                !given_up
            });
        }
        self.rounds.retain(|round| !round.readers.is_empty());
    }
}

/// Length of a round's context.
pub const CONTEXT_LEN: usize = 24;

pub(super) fn context(node: NodeId, boot: u64, sequence: u64) -> Vec<u8> {
    [node, boot, sequence].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The node that started the round of a context.
pub fn context_origin(context: &[u8]) -> Option<NodeId> {
    if context.len() != CONTEXT_LEN {
        return None;
    }
    context.first_chunk::<8>().map(|word| NodeId::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(token: Token) -> Reader {
        Reader { token, deadline_ns: 100 * token }
    }

    #[test]
    fn c6_a_barrier_never_joins_a_round_under_way_and_a_retry_has_a_new_context() {
        let mut reads = Reads::new(1, 7, 3);
        reads.add(reader(1));
        let first = reads.start_round().unwrap();
        reads.add(reader(2));
        let second = reads.start_round().unwrap();
        assert_ne!(first, second);
        assert_eq!(reads.answered(&first), [reader(1)]);
        reads.restart_rounds();
        let third = reads.start_round().unwrap();
        assert_ne!(second, third);
        assert_eq!(reads.answered(&second), [], "an answer to a round that was given up");
        assert_eq!(reads.answered(&third), [reader(2)]);
        assert!(reads.is_empty());
        assert_eq!(context_origin(&third), Some(1));
        assert_eq!(context_origin(&third[1..]), None);
    }

    #[test]
    fn many_barriers_share_a_round_and_rounds_are_bounded() {
        let mut reads = Reads::new(1, 1, 3);
        for token in 1..=10 {
            reads.add(reader(token));
        }
        let context = reads.start_round().unwrap();
        assert_eq!(reads.start_round(), None);
        assert_eq!(reads.answered(&context).len(), 10);
        let contexts = (0..ROUNDS_MAX as u64).map(|token| {
            reads.add(reader(token));
            reads.start_round().unwrap()
        });
        let contexts = contexts.collect::<Vec<_>>();
        reads.add(reader(99));
        assert_eq!(reads.start_round(), None);
        reads.answered(&contexts[1]);
        assert!(reads.start_round().is_some());
    }

    #[test]
    fn a_lost_answer_is_asked_for_again() {
        let mut reads = Reads::new(1, 1, 2);
        reads.add(reader(1));
        reads.start_round().unwrap();
        reads.tick();
        assert_eq!(reads.start_round(), None);
        reads.tick();
        assert!(reads.start_round().is_some());
    }

    #[test]
    fn deadlines_reach_readers_in_every_state() {
        let mut reads = Reads::new(1, 1, 2);
        reads.add(reader(1));
        reads.start_round();
        reads.add(reader(2));
        let mut failed = Vec::new();
        reads.expire(99, "", &mut |token, _| failed.push(token));
        assert!(failed.is_empty());
        reads.expire(200, "", &mut |token, _| failed.push(token));
        assert_eq!(failed, [1, 2]);
        assert_eq!(reads.next_deadline_ns(), u64::MAX);
    }
}
