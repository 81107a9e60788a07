//! Followers that were sent a snapshot and are not back among the others yet.
//!
//! By the time a large snapshot has arrived, much more has been written than the trail holds. If the leader compacted its
//! log meanwhile, the follower would need the next snapshot, and so on without end. So the log is kept from a snapshot that
//! is under way on, as long as its receiver answers and gets further.

use std::collections::BTreeMap;

use raft::ProgressTracker;

use super::NodeId;

/// Election timeouts after which the log is no longer kept for a follower that gets no further.
const PATIENCE: u64 = 60;

/// Where a follower goes on.
#[derive(Clone, Copy, Debug)]
struct Straggler {
    /// Behind this index.
    index: u64,
    /// Ticks since it got there.
    stands_for: u64,
    /// Ticks since raft-rs last knew it for active.
    silent_for: u64,
}

/// All of them, as the leader knows.
#[derive(Debug)]
pub struct Stragglers {
    peers: BTreeMap<NodeId, Straggler>,
    election_ticks: u64,
}

impl Stragglers {
    /// None yet.
    pub fn new(election_ticks: usize) -> Self {
        Self { peers: BTreeMap::new(), election_ticks: election_ticks as u64 }
    }

    /// A snapshot of `index` is on its way to `peer`.
    pub fn sent(&mut self, peer: NodeId, index: u64) {
        self.peers.insert(peer, Straggler { index, stands_for: 0, silent_for: 0 });
    }

    /// A tick has passed. Who is silent for long, or gets no further, is not waited for.
    pub fn tick(&mut self, progress: &ProgressTracker) {
        let election_ticks = self.election_ticks;
        self.peers.retain(|peer, straggler| {
            let Some(progress) = progress.get(*peer) else { return false };
            straggler.stands_for += 1;
            straggler.silent_for += 1;
            if progress.matched > straggler.index {
                (straggler.index, straggler.stands_for) = (progress.matched, 0);
            }
            // raft-rs forgets it in every election timeout.
            if progress.recent_active {
                straggler.silent_for = 0;
            }
            straggler.silent_for < 2 * election_ticks && straggler.stands_for < PATIENCE * election_ticks
        });
    }

    /// This node does not lead any more.
    pub fn clear(&mut self) {
        self.peers.clear();
    }

    /// How far the log may be compacted, if it is to be compacted through `index`.
    pub fn allow(&mut self, index: u64) -> u64 {
        // Those that have got there are back among the others.
        self.peers.retain(|_, straggler| straggler.index < index);
        self.peers.values().map(|straggler| straggler.index).fold(index, u64::min)
    }
}
