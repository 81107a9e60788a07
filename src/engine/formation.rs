//! How a cluster comes to be, once (rule M1).
//!
//! A data directory draws a random identity when it is created. Which identities make up the cluster is agreed in two
//! steps, so that a directory that is wiped half-way cannot become part of two clusters of the same members:
//!
//! 1. *Prepared*: this node has met all members, all with the same list of members, and has stored everybody's identity.
//!    It will never accept another set.
//! 2. *Formed*: this node knows that every member has stored that same set. Only now does it vote, acknowledge or campaign.
//!
//! Later members come through the log ([`super::membership`]): a formed peer that knows a node's identity as a member's
//! makes it formed as well. From then on the membership says who may connect; the set that founded the cluster stays what
//! it is told apart by.
//!
//! A node that acts has thus heard from all members that they stored its identity; a quorum of a second set would need
//! one of them to have stored two. One step would not do: with A, B and C, A and B could form and commit, B be
//! wiped, and C, which had met A before, form with the new B and outvote A.

use std::collections::BTreeMap;

use super::membership::{Membership, StoredMembership};
use super::NodeId;
use crate::mutants::{self, Mutant};

/// The random identity of a data directory.
pub type Identity = u128;

/// Everybody's identity.
pub type Identities = BTreeMap<NodeId, Identity>;

/// How far the formation of the cluster is, for one node; durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Not all members have been met.
    #[default]
    Unformed,
    /// All members have been met; this set is stored and final.
    Prepared(Identities),
    /// All members have stored this set.
    Formed(Identities),
}

impl Stage {
    /// The stored set.
    pub fn identities(&self) -> Option<&Identities> {
        match self {
            Stage::Unformed => None,
            Stage::Prepared(identities) | Stage::Formed(identities) => Some(identities),
        }
    }
}

/// What a node tells its peers in the handshake and whenever its stage changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The sender's identity.
    pub identity: Identity,
    /// The members, as configured: see [`Formation::members_text`].
    pub members: String,
    /// How far the sender is.
    pub stage: Stage,
    /// Who belongs to the cluster, as far as a formed sender knows.
    pub membership: Option<Membership>,
    /// The sender is one of those who vote: see [`Formation::check`].
    pub votes: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireReport {
    #[prost(bytes = "vec", tag = "1")]
    identity: Vec<u8>,
    #[prost(string, tag = "2")]
    members: String,
    #[prost(uint32, tag = "3")]
    stage: u32,
    #[prost(btree_map = "uint64, bytes", tag = "4")]
    identities: BTreeMap<u64, Vec<u8>>,
    #[prost(message, optional, tag = "5")]
    membership: Option<StoredMembership>,
    #[prost(bool, tag = "6")]
    votes: bool,
}

impl Report {
    /// Of a node that knows of no change of the members.
    pub fn new(identity: Identity, members: String, stage: Stage) -> Self {
        let membership = matches!(stage, Stage::Formed(_)).then(|| founded(&stage));
        Self { identity, members, stage, membership, votes: true }
    }

    /// The bytes that travel.
    pub fn encode(&self) -> Vec<u8> {
        let (stage, identities) = match &self.stage {
            Stage::Unformed => (0, None),
            Stage::Prepared(identities) => (1, Some(identities)),
            Stage::Formed(identities) => (2, Some(identities)),
        };
        let identities = identities.into_iter().flatten().map(|(id, identity)| (*id, identity.to_le_bytes().to_vec()));
        let report = WireReport {
            identity: self.identity.to_le_bytes().to_vec(),
            members: self.members.clone(),
            stage,
            identities: identities.collect(),
            membership: self.membership.as_ref().map(Membership::stored),
            votes: self.votes,
        };
        prost::Message::encode_to_vec(&report)
    }

    /// Reads what [`Self::encode`] wrote; `None` if it is damaged or of a later format.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let report: WireReport = prost::Message::decode(bytes).ok()?;
        let identity = |bytes: Vec<u8>| Some(Identity::from_le_bytes(bytes.try_into().ok()?));
        let identities = report.identities.into_iter().map(|(id, bytes)| Some((id, identity(bytes)?)));
        let identities = identities.collect::<Option<Identities>>()?;
        let stage = match report.stage {
            0 => Stage::Unformed,
            1 => Stage::Prepared(identities),
            2 => Stage::Formed(identities),
            _ => return None,
        };
        let membership = match report.membership {
            None => None,
            Some(membership) => Some(Membership::from_stored(membership)?),
        };
        // Whoever is formed says who the members are, and nobody else can.
        if membership.is_some() != matches!(stage, Stage::Formed(_)) {
            return None;
        }
        let (identity, votes) = (identity(report.identity)?, report.votes);
        Some(Self { identity, members: report.members, stage, membership, votes })
    }
}

/// Why a peer is not one of us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Not one of the members.
    #[error(
        "node {0} is not a member of this cluster: if it is to be one, add it first (`add_learner`, or `aioraft add`)"
    )]
    Stranger(NodeId),
    /// Was one, and is one no longer.
    #[error("node {0} was removed from this cluster: ids are never used again, start it as a new member")]
    Removed(NodeId),
    /// Belongs to what the cluster was before it was recovered.
    #[error(
        "node {0} belongs to what this cluster was before its quorum was lost and it was recovered: remove its data \
         directory and start it as a new member"
    )]
    Superseded(NodeId),
    /// The two were started with different members.
    #[error(
        "the nodes were started with different members: here [{here}], there [{there}]; start all with the same list"
    )]
    Members {
        /// This node's list.
        here: String,
        /// The peer's list.
        there: String,
    },
    /// A known id with another identity: a wiped or cloned data directory.
    #[error(
        "node {0} has another data directory than the one this cluster was formed with: a wiped or replaced disk, or a \
         node in memory (data_dir=None), cannot come back under its old id"
    )]
    Identity(NodeId),
    /// The two have stored different sets of identities.
    #[error("the two nodes belong to clusters that were formed apart: one of the data directories is from elsewhere")]
    Apart,
}

impl Mismatch {
    /// The same out of the mouth of a node that votes, or does not.
    fn of(self, votes: bool) -> Self {
        match self {
            Self::Removed(id) if !votes => Self::Stranger(id),
            other => other,
        }
    }
}

/// This node's part in forming the cluster.
#[derive(Debug)]
pub struct Formation {
    id: NodeId,
    identity: Identity,
    members: BTreeMap<NodeId, String>,
    stage: Stage,
    /// Of a formed cluster.
    membership: Membership,
    /// This node has a vote in it.
    votes: bool,
    met: BTreeMap<NodeId, Report>,
}

impl Formation {
    /// Goes on from a stored stage.
    pub fn new(id: NodeId, identity: Identity, members: BTreeMap<NodeId, String>, stage: Stage) -> Self {
        let (membership, met) = (founded(&stage), BTreeMap::new());
        let votes = membership.members.contains_key(&id);
        let mut formation = Self { id, identity, members, stage, membership, votes, met };
        formation.met.insert(id, formation.report());
        formation
    }

    /// The members as text, equal on two nodes if and only if they were started with the same list.
    pub fn members_text(members: &BTreeMap<NodeId, String>) -> String {
        members.iter().map(|(id, address)| format!("{id}={address}")).collect::<Vec<_>>().join(", ")
    }

    /// What to tell peers.
    pub fn report(&self) -> Report {
        let is_formed = matches!(self.stage, Stage::Formed(_));
        Report {
            identity: self.identity,
            members: Self::members_text(&self.members),
            stage: self.stage.clone(),
            membership: is_formed.then(|| self.membership.clone()),
            votes: self.votes,
        }
    }

    /// The members have changed, durably; this node `votes` among them or not.
    pub fn set_membership(&mut self, membership: Membership, votes: bool) {
        (self.membership, self.votes) = (membership, votes);
    }

    /// Who belongs to the cluster, as far as this node has applied.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The ids of all others that this node has to do with.
    pub fn others(&self) -> Vec<NodeId> {
        let is_formed = matches!(self.stage, Stage::Formed(_));
        let members = self.membership.members.keys().filter(|_| is_formed);
        let listed = self.members.keys().filter(|_| !is_formed);
        members.chain(listed).copied().filter(|id| *id != self.id).collect()
    }

    /// A member whose data directory is not known yet, and that has connected as this one.
    pub fn unbound(&self, peer: NodeId) -> bool {
        self.membership.members.get(&peer).is_some_and(|member| member.identity == 0)
    }

    /// How far this node is.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// All members have stored the same identities: this node may act.
    pub fn is_formed(&self) -> bool {
        matches!(self.stage, Stage::Formed(_)) || mutants::on(Mutant::UnformedTakesPart)
    }

    /// Members whose next word is still missing: none of them has been heard of, or it has not stored the identities.
    pub fn missing(&self) -> Vec<NodeId> {
        let is_missing = |id: &NodeId| match (&self.stage, self.met.get(id)) {
            (Stage::Formed(_), _) => false,
            (_, None) => true,
            (Stage::Unformed, Some(_)) => false,
            (Stage::Prepared(_), Some(report)) => report.stage == Stage::Unformed,
        };
        self.members.keys().copied().filter(is_missing).collect()
    }

    /// Checks what a peer says about itself.
    ///
    /// Whoever was removed stops when it hears so, and hears so from those only who vote: the others may have forgotten in
    /// a loss of power that the removal was committed, and then they need its vote, or somebody's who can lead them.
    pub fn check(&self, peer: NodeId, report: &Report) -> Result<(), Mismatch> {
        if let Some(theirs) = &report.membership {
            self.check_own(peer, theirs).map_err(|mismatch| mismatch.of(report.votes || !self.is_formed()))?;
        }
        match (&self.stage, &report.stage) {
            (Stage::Formed(_), _) => {
                self.check_peer(peer, report).map_err(|mismatch| mismatch.of(self.votes || !is_formed(report)))
            }
            // A member that came later: it knows this node, so it belongs to the same cluster.
            (Stage::Prepared(stored), Stage::Formed(_)) if !stored.contains_key(&peer) => Ok(()),
            (Stage::Prepared(stored), _) => Self::check_identity(stored, peer, report.identity),
            (Stage::Unformed, Stage::Formed(_)) => Ok(()),
            (Stage::Unformed, _) if !self.members.contains_key(&peer) => Err(Mismatch::Stranger(peer)),
            (Stage::Unformed, _) => Ok(()),
        }?;
        if let Stage::Prepared(theirs) = &report.stage {
            // One that is formed, and not yet stored there, is confirmed by whoever is formed.
            if !matches!(self.stage, Stage::Formed(_)) {
                Self::check_identity(theirs, self.id, self.identity)?;
            }
        }
        if let (Some(ours), Some(theirs)) = (self.stage.identities(), report.stage.identities()) {
            if ours != theirs {
                return Err(Mismatch::Apart);
            }
        }
        let formed_here_or_there = self.is_formed() || matches!(report.stage, Stage::Formed(_));
        let here = Self::members_text(&self.members);
        if !formed_here_or_there && here != report.members {
            return Err(Mismatch::Members { here, there: report.members.clone() });
        }
        Ok(())
    }

    fn check_identity(stored: &Identities, node: NodeId, identity: Identity) -> Result<(), Mismatch> {
        match stored.get(&node) {
            None => Err(Mismatch::Stranger(node)),
            Some(known) if *known != identity && !mutants::on(Mutant::AdmitWipedDisk) => Err(Mismatch::Identity(node)),
            Some(_) => Ok(()),
        }
    }

    /// What a formed peer knows of this node.
    fn check_own(&self, peer: NodeId, theirs: &Membership) -> Result<(), Mismatch> {
        let me = self.id;
        let known = theirs.members.get(&me).map(|member| member.identity);
        match known {
            Some(identity) if identity == self.identity || identity == 0 => return Ok(()),
            Some(_) if mutants::on(Mutant::AdmitWipedDisk) => return Ok(()),
            Some(_) => return Err(Mismatch::Identity(me)),
            None => {}
        }
        if !matches!(self.stage, Stage::Formed(_)) {
            return Err(if theirs.retired.contains(me) { Mismatch::Removed(me) } else { Mismatch::Stranger(me) });
        }
        let ours = &self.membership;
        // A new member that has not caught up knows of no recovery before it, nor of itself: nobody went on without it.
        let had_a_part = ours.members.contains_key(&me) || theirs.retired.contains(me);
        if theirs.recoveries() > ours.recoveries() && had_a_part {
            return Err(Mismatch::Superseded(me));
        }
        if theirs.recoveries() == ours.recoveries() && theirs.retired.contains(me) {
            return Err(Mismatch::Removed(me));
        }
        // It may lag behind, and not know of this node yet; one that is out by now has to hear so all the same.
        let lags = theirs.version < ours.version || theirs.recoveries() < ours.recoveries();
        match lags && (ours.members.contains_key(&peer) || ours.retired.contains(peer)) {
            true => Ok(()),
            false => Err(Mismatch::Stranger(me)),
        }
    }

    /// What this formed node knows of a peer.
    fn check_peer(&self, peer: NodeId, report: &Report) -> Result<(), Mismatch> {
        let ours = &self.membership;
        // One that has had no part here and does not know of itself has not caught up, and may be a new member.
        let superseded = report.membership.as_ref().is_some_and(|theirs| {
            let had_a_part = theirs.members.contains_key(&peer) || ours.retired.contains(peer);
            theirs.recoveries() < ours.recoveries() && had_a_part
        });
        match ours.members.get(&peer) {
            Some(member) if member.identity == report.identity || member.identity == 0 => return Ok(()),
            Some(_) if mutants::on(Mutant::AdmitWipedDisk) => return Ok(()),
            Some(_) => return Err(Mismatch::Identity(peer)),
            None if superseded => return Err(Mismatch::Superseded(peer)),
            None if ours.retired.contains(peer) => return Err(Mismatch::Removed(peer)),
            None => {}
        }
        // A member that this node has not heard of yet: whoever knows it as one knows more than this node.
        let knows_more = report.membership.as_ref().is_some_and(|theirs| {
            // One that was added for whatever data directory comes may not have bound its own yet.
            let known = theirs.members.get(&peer).map(|member| member.identity);
            theirs.version > ours.version && known.is_some_and(|known| known == report.identity || known == 0)
        });
        match knows_more {
            true => Ok(()),
            false => Err(Mismatch::Stranger(peer)),
        }
    }

    /// Takes a peer's report in. Returns the next stage, if there is one: it must be durable before
    /// [`Self::stored`] makes it this node's stage, and only then may peers hear of it.
    pub fn meet(&mut self, peer: NodeId, report: Report) -> Result<Option<Stage>, Mismatch> {
        self.check(peer, &report)?;
        self.met.insert(peer, report);
        Ok(self.next_stage())
    }

    /// The connection to a peer that has stored nothing is gone: it may come back with another directory.
    pub fn forget(&mut self, peer: NodeId) {
        if self.met.get(&peer).is_some_and(|report| report.stage == Stage::Unformed) {
            self.met.remove(&peer);
        }
    }

    /// The stage that what is known allows, if it is another one.
    pub fn next_stage(&self) -> Option<Stage> {
        let reports = || self.members.keys().filter_map(|id| self.met.get(id));
        // A cluster that is formed counts this node, and this very directory, among its members.
        let confirmed = self.met.values().find_map(|report| {
            let own = report.membership.as_ref()?.members.get(&self.id)?;
            (own.identity == self.identity).then(|| report.stage.identities().cloned()).flatten()
        });
        match &self.stage {
            Stage::Formed(_) => None,
            _ if confirmed.is_some() => confirmed.map(Stage::Formed),
            Stage::Prepared(stored) => {
                let all_stored = reports().filter(|report| report.stage.identities() == Some(stored)).count();
                let somebody_formed = reports().any(|report| report.stage == Stage::Formed(stored.clone()));
                (all_stored == self.members.len() || somebody_formed).then(|| Stage::Formed(stored.clone()))
            }
            // There is a cluster, and this node is to become a member of it: it founds no other.
            Stage::Unformed if self.met.values().any(|report| report.membership.is_some()) => None,
            Stage::Unformed => {
                // A peer that has stored a set has met everybody; `check` made sure that this node is in it.
                if let Some(stored) = reports().find_map(|report| report.stage.identities()) {
                    return Some(Stage::Prepared(stored.clone()));
                }
                let met: Identities = self
                    .members
                    .keys()
                    .filter_map(|id| self.met.get(id).map(|report| (*id, report.identity)))
                    .collect();
                let all = met.len() == self.members.len();
                if all && mutants::on(Mutant::FormInOneStep) {
                    return Some(Stage::Formed(met));
                }
                all.then_some(Stage::Prepared(met))
            }
        }
    }

    /// `stage` is durable. Returns the stage after it, if that is possible at once.
    pub fn stored(&mut self, stage: Stage) -> Option<Stage> {
        self.membership = founded(&stage);
        self.votes = self.membership.members.contains_key(&self.id);
        self.stage = stage;
        self.met.insert(self.id, self.report());
        self.next_stage()
    }
}

fn is_formed(report: &Report) -> bool {
    matches!(report.stage, Stage::Formed(_))
}

/// The members of a cluster in which nothing has changed since it was formed.
fn founded(stage: &Stage) -> Membership {
    let identities = stage.identities().cloned().unwrap_or_default();
    Membership::founded(&identities.keys().copied().collect::<Vec<_>>(), &identities)
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::ConfState;

    use super::*;
    use crate::engine::membership::Member;

    fn members() -> BTreeMap<NodeId, String> {
        (1..=3).map(|id| (id, format!("host:{id}"))).collect()
    }

    fn fresh(id: NodeId, identity: Identity) -> Formation {
        Formation::new(id, identity, members(), Stage::Unformed)
    }

    /// `to` hears `from`'s report and stores what follows.
    fn tell(from: &Formation, to: &mut Formation) -> Result<(), Mismatch> {
        let mut next = to.meet(from.id, from.report())?;
        while let Some(stage) = next {
            next = to.stored(stage);
        }
        Ok(())
    }

    #[test]
    fn m1_a_node_is_formed_only_when_every_member_has_stored_the_same_identities() {
        let (mut a, mut b, mut c) = (fresh(1, 0xa), fresh(2, 0xb), fresh(3, 0xc));
        tell(&b, &mut a).unwrap();
        assert_eq!(a.stage(), &Stage::Unformed);
        assert_eq!(a.missing(), [3]);
        tell(&c, &mut a).unwrap();
        assert!(matches!(a.stage(), Stage::Prepared(_)));
        assert_eq!(a.missing(), [2, 3], "neither has stored it");
        tell(&a, &mut b).unwrap();
        assert!(matches!(b.stage(), Stage::Prepared(_)), "a stored set that contains this node is enough to store it");
        tell(&b, &mut a).unwrap();
        assert!(!a.is_formed(), "the third has not stored it yet");
        tell(&a, &mut c).unwrap();
        tell(&c, &mut a).unwrap();
        assert!(a.is_formed());
        assert!(a.missing().is_empty());
        tell(&a, &mut b).unwrap();
        assert!(b.is_formed(), "a formed peer is enough");
    }

    #[test]
    fn m1_a_directory_wiped_half_way_forms_no_second_cluster() {
        let (mut a, mut b, mut c) = (fresh(1, 0xa), fresh(2, 0xb), fresh(3, 0xc));
        for peer in [&b, &c] {
            tell(peer, &mut a).unwrap();
        }
        let a_unformed = fresh(1, 0xa);
        tell(&a, &mut b).unwrap();
        tell(&b, &mut a).unwrap();
        assert!(!a.is_formed() && !b.is_formed(), "with C's word missing, A and B must not act");
        // B loses its disk. C, which has met A before A stored anything, now meets the new B.
        let mut new_b = fresh(2, 0xbb);
        tell(&a_unformed, &mut c).unwrap();
        tell(&new_b, &mut c).unwrap();
        tell(&c, &mut new_b).unwrap();
        assert!(!c.is_formed() && !new_b.is_formed());
        assert_eq!(tell(&c, &mut a), Err(Mismatch::Apart));
        assert_eq!(tell(&new_b, &mut a), Err(Mismatch::Identity(2)));
    }

    #[test]
    fn m1_a_wiped_disk_is_refused_on_both_sides() {
        let all: Identities = [(1, 0xa), (2, 0xb), (3, 0xc)].into();
        let a = Formation::new(1, 0xa, members(), Stage::Formed(all));
        let wiped = fresh(2, 0xbb);
        assert_eq!(a.check(2, &wiped.report()), Err(Mismatch::Identity(2)));
        assert_eq!(wiped.check(1, &a.report()), Err(Mismatch::Identity(2)));
    }

    #[test]
    fn m1_different_members_are_refused_with_both_lists() {
        let mut other = members();
        other.insert(3, "elsewhere:3".into());
        let b = Formation::new(2, 0xb, other, Stage::Unformed);
        let error = fresh(1, 0xa).check(2, &b.report()).unwrap_err().to_string();
        assert!(error.contains("3=host:3") && error.contains("3=elsewhere:3"), "{error}");
        assert_eq!(fresh(1, 0xa).check(9, &b.report()), Err(Mismatch::Stranger(9)));
    }

    #[test]
    fn m3_whoever_is_out_hears_so_also_from_a_node_that_it_does_not_know() {
        let founders = Identities::from([(1, 10), (2, 20), (3, 30)]);
        let formed = |id, membership| {
            let identity = Identity::from(id) * 10;
            let mut formation = Formation::new(id, identity, members(), Stage::Formed(founders.clone()));
            formation.set_membership(membership, true);
            formation
        };
        let before = founded(&Stage::Formed(founders.clone()));
        for (incarnation, out) in [(1, Mismatch::Removed(3)), (1 << 32, Mismatch::Superseded(3))] {
            let mut after = before.clone();
            after.members.insert(4, Member { identity: 40, ..Default::default() });
            after.settle(&ConfState { voters: vec![1, 4], ..Default::default() }, 9);
            after.incarnation = incarnation;
            let (behind, newcomer) = (formed(3, before.clone()), formed(4, after));
            assert_eq!(newcomer.check(3, &behind.report()), Err(out.clone()), "it knows the founders only");
            assert_eq!(behind.check(4, &newcomer.report()), Err(out));
            // A newcomer that has yet to catch up, and a member that has yet to hear of it.
            let early = formed(5, before.clone());
            assert_eq!(newcomer.check(5, &early.report()), Err(Mismatch::Stranger(4)));
            assert_eq!(early.check(4, &newcomer.report()), Err(Mismatch::Stranger(5)));
        }
    }

    #[test]
    fn m3_a_learner_tells_nobody_that_it_was_removed() {
        let founders = Identities::from([(1, 10), (2, 20), (3, 30)]);
        let formed = |id, membership, votes| {
            let mut formation = Formation::new(id, Identity::from(id) * 10, members(), Stage::Formed(founders.clone()));
            formation.set_membership(membership, votes);
            formation
        };
        let before = founded(&Stage::Formed(founders.clone()));
        let mut after = before.clone();
        after.settle(&ConfState { voters: vec![1], learners: vec![2], ..Default::default() }, 9);
        let removed = formed(3, before, true);
        for (teller, votes, expected) in [(1, true, Mismatch::Removed(3)), (2, false, Mismatch::Stranger(3))] {
            let teller = formed(teller, after.clone(), votes);
            assert_eq!(teller.check(3, &removed.report()), Err(expected.clone()), "it comes");
            let report = Report::decode(&teller.report().encode()).unwrap();
            assert_eq!(removed.check(teller.id, &report), Err(expected), "it is told");
            let wiped = Formation::new(3, 31, members(), Stage::Unformed);
            assert_eq!(teller.check(3, &wiped.report()), Err(Mismatch::Removed(3)), "it has no vote to give");
            assert_eq!(wiped.check(teller.id, &report), Err(Mismatch::Removed(3)));
        }
    }

    #[test]
    fn a_newcomer_lets_in_a_member_that_it_has_not_heard_of() {
        let founders = Identities::from([(1, 10), (2, 20), (3, 30)]);
        let formed = |id, identity, membership| {
            let mut formation = Formation::new(id, identity, members(), Stage::Formed(founders.clone()));
            formation.set_membership(membership, true);
            formation
        };
        let before = founded(&Stage::Formed(founders.clone()));
        let newcomer = formed(5, 50, before.clone());
        for (bound, version, expected) in [
            (40, 9, Ok(())),
            (0, 9, Ok(())),
            (41, 9, Err(Mismatch::Stranger(4))),
            (40, before.version, Err(Mismatch::Stranger(4))),
        ] {
            let mut after = before.clone();
            after.members.insert(4, Member { identity: bound, ..Default::default() });
            after.members.insert(5, Member { identity: 50, ..Default::default() });
            after.settle(&ConfState { voters: vec![4], learners: vec![5], ..Default::default() }, version);
            let member = formed(4, 40, after);
            assert_eq!(newcomer.check(4, &member.report()), expected, "{bound} in version {version}");
        }
    }

    #[test]
    fn a_peer_that_left_before_it_stored_anything_is_forgotten() {
        let mut a = fresh(1, 0xa);
        tell(&fresh(2, 0xb), &mut a).unwrap();
        a.forget(2);
        tell(&fresh(3, 0xc), &mut a).unwrap();
        assert_eq!(a.stage(), &Stage::Unformed);
        tell(&fresh(2, 0xbb), &mut a).unwrap();
        assert_eq!(a.stage().identities().unwrap()[&2], 0xbb);
    }

    #[test]
    fn a_single_node_forms_alone() {
        let mut alone = Formation::new(7, 0xf, [(7, "host:7".to_string())].into(), Stage::Unformed);
        let prepared = alone.next_stage().unwrap();
        let formed = alone.stored(prepared).unwrap();
        assert_eq!(alone.stored(formed), None);
        assert!(alone.is_formed());
    }

    #[test]
    fn a_report_survives_the_wire_and_garbage_is_refused() {
        let stages = [Stage::Unformed, Stage::Prepared([(1, 5)].into()), Stage::Formed([(2, u128::MAX)].into())];
        for stage in stages {
            let report = Report::new(77, "1=x".into(), stage);
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        assert_eq!(Report::decode(b"\xff\xff\xff"), None);
        assert_eq!(Report::decode(b""), None);
    }
}
