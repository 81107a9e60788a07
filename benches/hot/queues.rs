//! The two queues of the bridge, without Python and without a thread to wake: proposals in, applied entries out.
//!
//! What CPython adds to it is measured by `bare_bridge.py`.

use std::collections::VecDeque;

use aioraft::driver::port::{Applied, Completion, Completions, Inbox, InboxBatch, Proposal, Wake};
use aioraft::engine::command::Command;

use super::VALUE;

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

/// Both of them, with the buffers that either side uses again and again.
pub struct Queues {
    inbox: Inbox,
    completions: Completions,
    taken: InboxBatch,
    out: Vec<Completion>,
    drained: VecDeque<Completion>,
    index: u64,
}

impl Queues {
    /// Empty ones.
    pub fn new() -> Self {
        Self {
            inbox: Inbox::new(Box::new(Nobody)),
            completions: Completions::new(Box::new(Nobody)),
            taken: InboxBatch::default(),
            out: Vec::new(),
            drained: VecDeque::new(),
            index: 0,
        }
    }

    /// So many proposals go in one by one, and come out as one batch of applied entries, which is drained.
    pub fn cross(&mut self, count: u64) -> u64 {
        for token in 0..count {
            self.inbox.propose(Proposal { token, command: Command::new(&VALUE), deadline_ns: None });
        }
        self.inbox.take(&mut self.taken);
        let index = &mut self.index;
        let entries = self.taken.proposals.drain(..).map(|proposal| {
            *index += 1;
            Applied { index: *index, term: 1, command: proposal.command, token: Some(proposal.token) }
        });
        let entries = entries.collect::<Vec<_>>();
        let bytes = entries.iter().map(|entry| entry.command.as_bytes().len()).sum();
        self.out.push(Completion::Apply { entries, through: self.index, bytes });
        self.completions.push(&mut self.out);
        self.drain()
    }

    fn drain(&mut self) -> u64 {
        let mut payload_bytes = 0;
        self.completions.acknowledge_wake();
        self.completions.take(&mut self.drained);
        for completion in self.drained.drain(..) {
            let Completion::Apply { entries, bytes, .. } = completion else { continue };
            payload_bytes += entries.iter().map(|entry| entry.command.payload().len() as u64).sum::<u64>();
            self.completions.consumed(bytes);
        }
        payload_bytes
    }
}
