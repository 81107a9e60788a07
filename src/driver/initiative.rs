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

    fn moved(&self) -> Option<Change> {
        let known = self.engine.membership().members.get(&self.id())?;
        let Members { record, advertise, .. } = self.members;
        correction(record.id, record.identity, advertise, self.name, known)
    }
}

/// Where a node is reached, what it is called, and which data directory it has, if the log says something else. It binds
/// that by itself only where no leader has: it was added for any, and the cluster was recovered from it before that.
fn correction(
    id: NodeId,
    identity: Identity,
    advertise: &String,
    name: Option<&String>,
    known: &Member,
) -> Option<Change> {
    let is_elsewhere = !known.address.is_empty() && !advertise.is_empty() && known.address != *advertise;
    // A founder's name is nowhere yet.
    let is_nameless = name.is_some() && known.metadata.get(NAME) != name;
    let is_unbound = known.identity == 0;
    let metadata = name.filter(|_| is_nameless).map(|name| {
        let mut metadata = known.metadata.clone();
        metadata.insert(NAME.into(), name.clone());
        metadata
    });
    let identity = if is_unbound { identity } else { 0 };
    let differs = is_elsewhere || is_nameless || is_unbound;
    differs.then(|| Change::Update { id, identity, address: advertise.clone(), metadata })
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_node_corrects_what_the_log_says_of_it() {
        let named = |name: &str| BTreeMap::from([(NAME.to_string(), name.to_string())]);
        let known = Member { identity: 7, address: "here:1".into(), metadata: named("a"), seeks_vote: false };
        let found = |advertise: &str, name: &str, known: &Member| {
            correction(3, 7, &advertise.to_string(), Some(&name.to_string()), known)
        };
        let update = |identity, address: &str, metadata| {
            Some(Change::Update { id: 3, identity, address: address.into(), metadata })
        };
        assert_eq!(found("here:1", "a", &known), None);
        assert_eq!(found("there:1", "a", &known), update(0, "there:1", None));
        assert_eq!(found("here:1", "b", &known), update(0, "here:1", Some(named("b"))));
        let unbound = Member { identity: 0, ..known };
        assert_eq!(found("here:1", "a", &unbound), update(7, "here:1", None), "no leader has bound it");
    }
}
