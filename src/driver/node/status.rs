//! A node's figures.

use super::Node;
use crate::driver::port::{PeerStatus, Status};
use crate::engine::NodeId;

impl Node {
    pub(super) fn publish_status(&mut self) {
        let engine = self.engine.status();
        let members = self.members.borrow();
        let membership = self.engine.membership();
        let conf = self.engine.conf_state();
        let votes = |id: &NodeId| conf.voters.contains(id) || conf.voters_outgoing.contains(id);
        let metadata =
            |id: &NodeId| membership.members.get(id).map(|member| member.metadata.clone()).unwrap_or_default();
        let peers = engine.peers.into_iter().map(|(id, progress)| PeerStatus {
            id,
            address: self.address_of(id),
            votes: votes(&id),
            metadata: metadata(&id),
            connected: self.network.connected(id),
            trouble: self.trouble(id),
            matched: progress.map(|progress| progress.matched),
            state: progress.map(|progress| progress.state),
        });
        let status = Status {
            id: self.id,
            role: match engine.role {
                _ if !members.formation.is_formed() => "forming",
                "follower" if !votes(&self.id) => "learner",
                role => role,
            },
            term: engine.term,
            leader: engine.leader,
            commit: engine.commit,
            applied: engine.applied,
            first_index: engine.first_index,
            last_index: engine.last_index,
            snapshot_index: engine.snapshot_index,
            snapshot_bytes: engine.snapshot_bytes,
            timestamp_ns: engine.timestamp_ns,
            identity: members.record.identity,
            boot: members.record.boot,
            pending_proposals: engine.pending_proposals,
            reproposals: engine.reproposals,
            duplicates_skipped: engine.duplicates_skipped,
            fsyncs: self.figures.fsyncs,
            fsync_last_ns: self.figures.last_fsync.as_nanos() as u64,
            fsync_max_ns: self.figures.max_fsync.as_nanos() as u64,
            log_bytes: self.figures.bytes,
            incarnation: membership.incarnation,
            votes: votes(&self.id),
            address: members.advertise.clone(),
            metadata: metadata(&self.id),
            peers: peers.collect(),
        };
        *self.port.status.lock() = status;
    }

    /// Where another node is reached; empty if nobody knows.
    pub(super) fn address_of(&self, id: NodeId) -> String {
        let (dialled, membership) = (self.network.address_of(id), self.engine.membership());
        let logged = membership.members.get(&id).map(|member| member.address.clone()).filter(|it| !it.is_empty());
        // It is dialled as soon as the log is durable that far.
        let is_news = membership.version != self.members.borrow().formation.membership().version;
        let known = if is_news { logged.or(dialled) } else { dialled.or(logged) };
        known.unwrap_or_default()
    }
}
