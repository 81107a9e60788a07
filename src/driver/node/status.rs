//! A node's figures.

use super::Node;
use crate::driver::port::{PeerStatus, Status};
use crate::engine::{EngineStatus, NodeId};

impl Node {
    /// Tells whoever reads the status everything anew.
    pub(super) fn publish_status(&mut self) {
        self.status_is_due = false;
        let engine = self.engine.status();
        let members = self.members.borrow();
        let membership = self.engine.membership();
        self.members_shown = membership.version;
        let conf = self.engine.conf_state();
        let votes = |id: &NodeId| conf.voters.contains(id) || conf.voters_outgoing.contains(id);
        let metadata =
            |id: &NodeId| membership.members.get(id).map(|member| member.metadata.clone()).unwrap_or_default();
        let peers = engine.peers.iter().map(|(id, _)| PeerStatus {
            id: *id,
            address: self.address_of(*id),
            votes: votes(id),
            metadata: metadata(id),
            connected: self.network.connected(*id),
            trouble: self.trouble(*id),
            matched: None,
            state: None,
        });
        let mut status = Status {
            id: self.id,
            identity: members.record.identity,
            boot: members.record.boot,
            incarnation: membership.incarnation,
            votes: votes(&self.id),
            address: members.advertise.clone(),
            metadata: metadata(&self.id),
            peers: peers.collect(),
            ..Status::default()
        };
        self.put_figures(&mut status, &engine);
        *self.port.status.lock() = status;
    }

    /// The same where nothing but figures can have changed: many times a second, and without a copy of who is who.
    pub(super) fn refresh_status(&mut self) {
        let engine = self.engine.status();
        self.put_figures(&mut self.port.status.lock(), &engine);
    }

    fn put_figures(&self, status: &mut Status, engine: &EngineStatus) {
        status.role = match engine.role {
            _ if !self.members.borrow().formation.is_formed() => "forming",
            "follower" if !status.votes => "learner",
            role => role,
        };
        status.term = engine.term;
        status.leader = engine.leader;
        status.commit = engine.commit;
        status.applied = engine.applied;
        status.first_index = engine.first_index;
        status.last_index = engine.last_index;
        status.snapshot_index = engine.snapshot_index;
        status.snapshot_bytes = engine.snapshot_bytes;
        status.timestamp_ns = engine.timestamp_ns;
        status.pending_proposals = engine.pending_proposals;
        status.reproposals = engine.reproposals;
        status.duplicates_skipped = engine.duplicates_skipped;
        status.fsyncs = self.figures.fsyncs;
        status.fsync_last_ns = self.figures.last_fsync.as_nanos() as u64;
        status.fsync_max_ns = self.figures.max_fsync.as_nanos() as u64;
        status.log_bytes = self.figures.bytes;
        for peer in &mut status.peers {
            let progress = engine.peers.iter().find(|(id, _)| *id == peer.id).and_then(|(_, progress)| *progress);
            peer.matched = progress.map(|progress| progress.matched);
            peer.state = progress.map(|progress| progress.state);
        }
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
