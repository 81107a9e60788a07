//! When a leader tells the others how far everything is committed.
//!
//! raft-rs would do so at once, in a message of its own to each peer. But the next entries say it as well, and under load
//! they follow within a moment; without that message a proposal that is alone takes a fifth less. So a leader waits for
//! them a little, unless another node waits for its own command, whose call ends when it is applied there. Whoever reads
//! learns it with the answer. What a follower is told late it applies late; nothing else rests on when.

use std::ops::RangeInclusive;

use raft::{RawNode, StateRole, INVALID_INDEX};

use super::log_view::LogView;
use super::time::Now;
use super::NodeId;

/// Nanoseconds that the others may be left without it: a fraction of what anybody notices.
const PATIENCE_NS: u64 = 1_000_000;

/// What the others were told.
#[derive(Debug)]
pub struct Telling {
    id: NodeId,
    /// The commit index that went out with the last entries.
    told: u64,
    /// Entries behind it among which are commands of other nodes.
    forwarded: Option<RangeInclusive<u64>>,
    due_ns: u64,
}

impl Telling {
    /// Nobody was told anything by `id`.
    pub fn new(id: NodeId) -> Self {
        Self { id, told: INVALID_INDEX, forwarded: None, due_ns: u64::MAX }
    }

    /// Entries went to everybody, and with them the commit index.
    pub fn appended(&mut self, raw: &RawNode<LogView>) {
        let log = &raw.raft.raft_log;
        self.told = log.committed;
        self.due_ns = u64::MAX;
        if let Some(forwarded) = self.forwarded.take().filter(|forwarded| *forwarded.end() > self.told) {
            self.forwarded = Some((*forwarded.start()).max(self.told + 1)..=*forwarded.end());
        }
    }

    /// These entries are commands of other nodes.
    pub fn appended_for_others(&mut self, entries: RangeInclusive<u64>) {
        let first = self.forwarded.as_ref().map_or(*entries.start(), |before| *before.start());
        self.forwarded = Some(first..=*entries.end());
    }

    /// Everybody waits for what is committed.
    pub fn hurry(&mut self) {
        self.due_ns = 0;
    }

    /// Tells everybody, if it is time.
    pub fn work(&mut self, raw: &mut RawNode<LogView>, now: Now) {
        let (raft, log) = (&raw.raft, &raw.raft.raft_log);
        let is_alone = raft.prs().iter().all(|(id, _)| *id == self.id);
        if raft.state != StateRole::Leader || log.committed <= self.told || is_alone {
            self.due_ns = u64::MAX;
            return;
        }
        self.due_ns = self.due_ns.min(now.boottime_ns.saturating_add(PATIENCE_NS));
        let somebody_waits = self.forwarded.as_ref().is_some_and(|forwarded| *forwarded.start() <= log.committed);
        if somebody_waits || now.boottime_ns >= self.due_ns {
            raw.raft.bcast_append();
            self.appended(raw);
        }
    }

    /// The moment at which [`Self::work`] has something to do, or `u64::MAX`.
    pub fn due_ns(&self) -> u64 {
        self.due_ns
    }
}
