//! The driver's part in changes of the members: who is dialled, who is told, and what a node changes by itself.

use std::time::Duration;

use tokio::time::Instant;

use super::Node;
use crate::driver::gate::Ended;
use crate::driver::initiative::Initiative;
use crate::driver::port::Completion;
use crate::engine::membership::{Change, Membership};
use crate::engine::{NodeId, Token};

/// Whoever waits for a change that the node makes by itself: nobody. Applications count their tokens up from one.
pub(super) const OWN: Token = Token::MAX;
/// How long a change that the node makes by itself is tried for at once.
const OWN_CHANGE: Duration = Duration::from_secs(5);
/// How long a removed member gets to hang up, once it was told.
const FAREWELL: Duration = Duration::from_secs(2);

impl Node {
    /// The ids of all others.
    pub(super) fn others(&self) -> Vec<NodeId> {
        self.members.borrow().formation.others()
    }

    /// Says to everybody how far this node is, and who it takes for the members.
    pub(super) fn tell_all(&mut self) {
        self.tell(self.others());
    }

    fn tell(&mut self, peers: impl IntoIterator<Item = NodeId>) {
        let report = self.members.borrow().formation.report().encode();
        for peer in peers {
            self.network.send_formation(peer, &report);
        }
    }

    /// The members have changed.
    pub(super) fn follow_members(&mut self) {
        self.status_is_due = true;
        let after = self.engine.membership().clone();
        let before = {
            let formation = &mut self.members.borrow_mut().formation;
            let before = formation.membership().clone();
            formation.set_membership(after.clone(), self.engine.votes());
            before
        };
        let address = |membership: &Membership, id| membership.members.get(id).map(|member| member.address.clone());
        for (id, member) in after.members.iter().filter(|(id, _)| **id != self.id) {
            let is_news = address(&before, id).as_ref() != Some(&member.address);
            let is_here = member.address == self.advertised();
            if is_news && !is_here && !member.address.is_empty() {
                self.network.set_peer(*id, &member.address);
            }
        }
        // A newcomer hears that it belongs to the cluster, and one that was removed that it does not: it may never learn
        // of the entry that says so (etcd #796).
        let gone = self.members.borrow_mut().gone(&before, &self.options.members, &self.network.all_connected());
        self.tell(self.others().into_iter().chain(gone.iter().copied()));
        for gone in gone {
            tracing::info!(node = self.id, peer = gone, "node {gone} is no member of the cluster any more");
            self.network.stop_dialling(gone);
            self.leaving.entry(gone).or_insert_with(|| Instant::now() + FAREWELL);
        }
    }

    /// A call for a change. New members are told where the founders are dialled: the log need not say so before.
    pub(super) fn change_members(&mut self, token: Token, changes: &[Change], deadline_ns: u64) {
        if changes.iter().any(|change| matches!(change, Change::AddLearner { .. })) {
            let unknown = self.engine.membership().members.iter().filter(|(_, member)| member.address.is_empty());
            let updates = unknown.filter_map(|(id, _)| {
                let address = if *id == self.id { self.advertised() } else { self.network.address_of(*id)? };
                let change = Change::Update { id: *id, identity: 0, address: address.clone(), metadata: None };
                (!address.is_empty()).then_some(change)
            });
            let updates = updates.collect::<Vec<_>>();
            if !updates.is_empty() {
                self.change_own(&updates, deadline_ns);
            }
        }
        self.engine.handle_change(token, changes, deadline_ns);
    }

    /// This node was removed, and others may have said so before it has applied that: calls that brought it about are done.
    pub(super) fn answer_removed(&mut self, ended: Ended) {
        if ended != Ended::Removed {
            return;
        }
        let (index, ids) = (self.engine.membership().version, vec![self.id]);
        for token in std::mem::take(&mut self.removing) {
            self.completions.push(Completion::Changed { token, index, ids: ids.clone() });
        }
        for effect in self.engine.finish_joint() {
            self.run_effect(effect);
        }
    }

    fn advertised(&self) -> String {
        self.members.borrow().advertise.clone()
    }

    /// What a node changes by itself (`driver::initiative`), and whom it hangs up on.
    pub(super) fn look_after_members(&mut self) {
        let now = Instant::now();
        let over = self.leaving.iter().filter(|(_, until)| **until <= now).map(|(id, _)| *id).collect::<Vec<_>>();
        for gone in over {
            self.leaving.remove(&gone);
            self.network.remove_peer(gone);
        }
        if self.own_changes > 0 || self.closing.is_some() {
            return;
        }
        let changes = {
            let members = self.members.borrow();
            let name = self.options.joins.as_ref().map(|joins| &joins.name);
            let is_connected = |id| self.network.connected(id);
            Initiative { engine: &self.engine, members: &members, name, is_connected: &is_connected }.next()
        };
        let Some(changes) = changes else { return };
        let deadline_ns = super::clock::boottime_ns().saturating_add(OWN_CHANGE.as_nanos() as u64);
        self.change_own(&changes, deadline_ns);
    }

    fn change_own(&mut self, changes: &[Change], deadline_ns: u64) {
        self.own_changes += 1;
        self.engine.handle_change(OWN, changes, deadline_ns);
    }
}
