//! The order in which Readies become durable (rule P1).
//!
//! Every Ready takes its number through this queue, also one that writes nothing: `on_persist_ready(n)` tells raft-rs
//! that *every* Ready up to `n` is durable, so answering an empty one at once would acknowledge an entry whose fsync
//! is still under way. Messages that speak for what is durable leave only from here.

use std::collections::VecDeque;

use prost::Message as _;
use raft::eraftpb::{Entry, HardState, Message};

use super::APPLICATION_GROUP;
use crate::mutants::{self, Mutant};
use crate::storage::snapshot::{self, SnapshotName};
use crate::storage::GroupWrite;

/// What the persist thread is asked to write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Persist {
    /// The Ready's number, given back with [`PersistQueue::written`].
    pub number: u64,
    /// Entries to append.
    pub entries: Vec<Entry>,
    /// The hard state, in the same atomic batch (rule P2).
    pub hard_state: Option<HardState>,
    /// The log begins behind this (index, term) from now on, in the same batch.
    pub truncated: Option<(u64, u64)>,
    /// The log names this snapshot from now on, in the same batch (rule D1).
    pub snapshot: Option<SnapshotName>,
    /// Must be durable before it is answered.
    pub sync: bool,
}

impl Persist {
    /// What it adds to a batch.
    pub fn into_write(self) -> GroupWrite {
        let name = self.snapshot.map(|name| (snapshot::RECORD.to_vec(), name.encode_to_vec()));
        GroupWrite {
            group: APPLICATION_GROUP,
            truncated: self.truncated,
            entries: self.entries,
            hard_state: self.hard_state,
            records: name.into_iter().collect(),
        }
    }
}

#[derive(Debug)]
struct Slot {
    number: u64,
    written: bool,
    messages: Vec<Message>,
}

/// Readies on their way to the disk, oldest first.
#[derive(Debug, Default)]
pub struct PersistQueue {
    slots: VecDeque<Slot>,
}

impl PersistQueue {
    /// A Ready was taken; `messages` may leave only when it, and all before it, are durable.
    pub fn push(&mut self, number: u64, writes: bool, messages: Vec<Message>) {
        let written = !writes || mutants::on(Mutant::AcknowledgeBeforeFsync);
        self.slots.push_back(Slot { number, written, messages });
    }

    /// The persist thread has written this Ready. It answers in order, and may answer only the last of a batch.
    pub fn written(&mut self, number: u64) {
        let through = if mutants::on(Mutant::ConfirmOneTooMany) { number + 1 } else { number };
        for slot in self.slots.iter_mut().take_while(|slot| slot.number <= through) {
            slot.written = true;
        }
    }

    /// Takes what is durable in order: the highest number for `on_persist_ready`, and the messages it sets free.
    pub fn pop_durable(&mut self) -> Option<(u64, Vec<Message>)> {
        if mutants::on(Mutant::AnswerEmptyReadyAtOnce) {
            let at = self.slots.iter().position(|slot| slot.written)?;
            return self.slots.remove(at).map(|slot| (slot.number, slot.messages));
        }
        let mut durable: Option<(u64, Vec<Message>)> = None;
        while self.slots.front().is_some_and(|slot| slot.written) {
            let Some(slot) = self.slots.pop_front() else { break };
            let (number, messages) = durable.get_or_insert_with(Default::default);
            *number = slot.number;
            messages.extend(slot.messages);
        }
        durable
    }

    /// Nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(index: u64) -> Vec<Message> {
        vec![Message { index, ..Default::default() }]
    }

    #[test]
    fn p1_an_empty_ready_waits_for_the_fsync_before_it() {
        let mut queue = PersistQueue::default();
        queue.push(1, true, message(1));
        queue.push(2, false, message(2));
        assert_eq!(queue.pop_durable(), None);
        queue.written(1);
        let (number, messages) = queue.pop_durable().unwrap();
        assert_eq!((number, messages.len()), (2, 2));
        queue.push(3, false, message(3));
        assert_eq!(queue.pop_durable().unwrap().0, 3, "with nothing before it, at once");
    }

    #[test]
    fn p1_strictly_in_order() {
        let mut queue = PersistQueue::default();
        for number in 1..=4 {
            queue.push(number, number != 2, message(number));
        }
        queue.written(3);
        let (number, messages) = queue.pop_durable().unwrap();
        assert_eq!(number, 3);
        assert_eq!(messages.iter().map(|m| m.index).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(!queue.is_empty());
    }
}
