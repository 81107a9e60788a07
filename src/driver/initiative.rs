//! What a node changes of the members by itself, one thing at a time: the leader binds the data directory of a newcomer to
//! its id (rule M1), one that joined by its name asks for its vote, and every node says where it is reached now (design
//! decision 11).

use super::gate::Members;
use crate::engine::formation::Identity;
use crate::engine::membership::{Change, Member, Membership};
use crate::engine::{Engine, NodeId};
use crate::mutants::{self, Mutant};

/// Under this key stands a member's name in its metadata.
pub const NAME: &str = "name";

/// What a node goes by.
pub struct Initiative<'a> {
    /// What it has made of the log.
    pub engine: &'a Engine,
    /// Who it is, and whom it has met.
    pub members: &'a Members,
    /// What it is called, if it joins by its name.
    pub name: Option<&'a String>,
    /// Whether there is a connection to this node.
    pub is_connected: &'a dyn Fn(NodeId) -> bool,
}

impl Initiative<'_> {
    /// What is to be changed first; nothing while nobody leads.
    pub fn next(&self) -> Option<Vec<Change>> {
        self.engine.leader().0?;
        self.newcomer().or_else(|| self.moved()).map(|change| vec![change]).or_else(|| self.grown_up())
    }

    fn id(&self) -> NodeId {
        self.members.record.id
    }

    fn newcomer(&self) -> Option<Change> {
        if self.engine.leader().0 != Some(self.id()) {
            return None;
        }
        let Members { formation, record, .. } = self.members;
        let unbound = formation.others().into_iter().filter(|id| formation.unbound(*id));
        let mut met = unbound.filter(|id| (self.is_connected)(*id)).filter_map(|id| {
            let identity = record.peers.get(&id)?.identity;
            Some(Change::Update { id, identity, address: String::new(), metadata: None })
        });
        met.next()
    }

    /// A node that joins by itself asks for its vote, which the leader gives it when it has caught up. Whoever had its name
    /// before is gone: its data directory is lost, or it could not have come as a new member. One that has no name yet, as a
    /// founder that was lost at once, is known by its address.
    fn grown_up(&self) -> Option<Vec<Change>> {
        let (me, name, advertised) = (self.id(), self.name?, &self.members.advertise);
        let membership = self.engine.membership();
        if !membership.members.get(&me)?.seeks_vote {
            return None;
        }
        let namesakes = membership.members.iter().filter(|(id, member)| {
            let is_gone = **id != me && !(self.is_connected)(**id);
            let is_here = !member.address.is_empty() && member.address == *advertised;
            let is_same = member.metadata.get(NAME).map_or(is_here, |known| known == name);
            is_gone && (is_same || mutants::on(Mutant::DisplaceAnybody))
        });
        let gone = namesakes.map(|(id, _)| Change::Remove(*id));
        Some(std::iter::once(Change::Promote(me)).chain(gone).collect())
    }

    /// Where this node is reached, and what it is called, if the log says something else.
    fn moved(&self) -> Option<Change> {
        let known = self.engine.membership().members.get(&self.id())?;
        let address = self.members.advertise.clone();
        let is_elsewhere = !known.address.is_empty() && !address.is_empty() && known.address != address;
        // A founder's name is nowhere yet.
        let is_nameless = self.name.is_some() && known.metadata.get(NAME) != self.name;
        let metadata = self.name.filter(|_| is_nameless).map(|name| {
            let mut metadata = known.metadata.clone();
            metadata.insert(NAME.into(), name.clone());
            metadata
        });
        (is_elsewhere || is_nameless).then_some(Change::Update { id: self.id(), identity: 0, address, metadata })
    }
}

/// The member that runs under this name, if it is not the one with that data directory: nobody else gets its name.
pub fn runs_under(
    name: &str,
    identity: Identity,
    membership: &Membership,
    runs: impl Fn(NodeId) -> bool,
) -> Option<NodeId> {
    let is_namesake = |member: &Member| member.metadata.get(NAME).is_some_and(|known| known == name);
    let others = membership.members.iter().filter(|(_, member)| member.identity != identity && is_namesake(member));
    others.map(|(id, _)| *id).find(|id| runs(*id))
}
