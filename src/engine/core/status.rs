//! An engine's figures.

use raft::{ProgressState, StateRole};

use super::Engine;
use crate::engine::NodeId;

/// Figures of one group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStatus {
    /// `"leader"`, `"follower"`, `"candidate"` or `"pre-candidate"`.
    pub role: &'static str,
    /// Current term.
    pub term: u64,
    /// Known leader.
    pub leader: Option<NodeId>,
    /// Commit index known here.
    pub commit: u64,
    /// The engine's cursor.
    pub applied: u64,
    /// Index of the newest snapshot that the log names durably; 0 if there is none.
    pub snapshot_index: u64,
    /// Bytes of its file.
    pub snapshot_bytes: u64,
    /// First index in the log.
    pub first_index: u64,
    /// Last index in the log.
    pub last_index: u64,
    /// Replicated time at the engine's cursor, nanoseconds.
    pub timestamp_ns: u64,
    /// Proposals of this node not yet applied here.
    pub pending_proposals: u64,
    /// Attempts made while an earlier one might still succeed.
    pub reproposals: u64,
    /// Log entries skipped because their command was applied before.
    pub duplicates_skipped: u64,
    /// The other members; progress is known to the leader only.
    pub peers: Vec<(NodeId, Option<PeerProgress>)>,
}

/// What the leader knows of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// Highest index known to be on its disk.
    pub matched: u64,
    /// `"probe"`, `"replicate"` or `"snapshot"`.
    pub state: &'static str,
}

impl Engine {
    /// Figures as of now.
    pub fn status(&self) -> EngineStatus {
        let raft = &self.raw.raft;
        let leads = raft.state == StateRole::Leader;
        let peers = raft.prs().iter().filter(|(id, _)| **id != self.id).map(|(id, progress)| {
            let state = match progress.state {
                ProgressState::Probe => "probe",
                ProgressState::Replicate => "replicate",
                ProgressState::Snapshot => "snapshot",
            };
            (*id, leads.then_some(PeerProgress { matched: progress.matched, state }))
        });
        let mut peers = peers.collect::<Vec<_>>();
        peers.sort_unstable_by_key(|(id, _)| *id);
        EngineStatus {
            role: match raft.state {
                StateRole::Leader => "leader",
                StateRole::Follower => "follower",
                StateRole::Candidate => "candidate",
                StateRole::PreCandidate => "pre-candidate",
            },
            term: raft.term,
            leader: self.leadership.leader,
            commit: raft.raft_log.committed,
            applied: self.applier.applied(),
            snapshot_index: self.snapshots.durable().map_or(0, |name| name.index),
            snapshot_bytes: self.snapshots.durable().map_or(0, |name| name.bytes),
            first_index: self.raw.store().truncated_index() + 1,
            last_index: raft.raft_log.last_index(),
            timestamp_ns: self.applier.timestamp_ns(),
            pending_proposals: self.proposals.len() as u64,
            reproposals: self.proposals.reproposals(),
            duplicates_skipped: self.applier.skipped(),
            peers,
        }
    }
}
