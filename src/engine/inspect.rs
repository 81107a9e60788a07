//! What the checkers of the simulated world may look at.

use raft::StateRole;

use super::core::Engine;
use super::NodeId;

/// How much an engine holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Words of the bitmap of this node's own session.
    pub session_words: usize,
    /// Numbers of this node from the lowest that is not resolved through the highest.
    pub span: usize,
    /// Proposals that are not applied yet.
    pub proposals: usize,
    /// Bytes of applied commands that the application has yet to be handed.
    pub fresh_bytes: usize,
    /// The largest command among them.
    pub largest_fresh: usize,
    /// Bytes of durable entries in the cache.
    pub cached_bytes: usize,
    /// Entries in the log that the application has applied.
    pub kept_entries: u64,
}

/// How far an engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursors {
    /// Its own cursor.
    pub applied: u64,
    /// What it knows to be committed.
    pub commit: u64,
    /// Its term.
    pub term: u64,
    /// It leads.
    pub leads: bool,
}

/// What a leader believes of another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// Who.
    pub id: NodeId,
    /// Highest index known to be on its disk.
    pub matched: u64,
    /// The next entry to send to it.
    pub next: u64,
}

/// A number that depends on every part of a state, and is the same in every run.
pub(super) fn fold(digest: u64, word: u64) -> u64 {
    let mixed = (digest.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

impl Engine {
    /// The engine's cursor, and a digest of the replicated state there: sessions, time, members.
    pub fn digest(&self) -> (u64, u64) {
        let (applied, digest) = self.observed().1.digest();
        let mut conf = self.conf_state();
        let parts = [&mut conf.voters, &mut conf.learners, &mut conf.voters_outgoing, &mut conf.learners_next];
        let digest = parts.into_iter().fold(digest, |digest, ids| {
            ids.sort_unstable();
            ids.iter().fold(fold(digest, ids.len() as u64), |digest, id| fold(digest, *id))
        });
        (applied, digest)
    }

    /// If it leads: the term, the end of its log, and what it believes of the others.
    pub fn followers(&self) -> Option<(u64, u64, Vec<Follower>)> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return None;
        }
        let others = raft.prs().iter().filter(|(id, _)| **id != raft.id);
        let followers =
            others.map(|(id, progress)| Follower { id: *id, matched: progress.matched, next: progress.next_idx });
        Some((raft.term, raft.raft_log.last_index(), followers.collect()))
    }

    /// How far it is.
    pub fn cursors(&self) -> Cursors {
        let raft = &self.raw.raft;
        let (applied, leads) = (self.observed().1.applied(), raft.state == StateRole::Leader);
        Cursors { applied, commit: raft.raft_log.committed, term: raft.term, leads }
    }

    /// How much it holds.
    pub fn sizes(&self) -> Sizes {
        let (id, applier, proposals) = self.observed();
        let (session_words, fresh_bytes, largest_fresh) = applier.sizes(id);
        Sizes {
            session_words,
            span: proposals.span(),
            fresh_bytes,
            largest_fresh,
            proposals: proposals.len(),
            cached_bytes: self.raw.store().durable_cached_bytes(),
            kept_entries: self.kept_entries(),
        }
    }
}
