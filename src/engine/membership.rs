//! Who belongs to the cluster: part of the replicated state, changed by entries of the log (design decision 9).
//!
//! raft-rs knows who votes and who learns; what else there is to a member stands here: the identity of its data directory,
//! its address and some metadata. A change is a command like any other, so it takes effect once however often it is sent
//! (rules S1, S3). What it comes to is decided here, from the replicated state alone, so on every replica alike: the leader
//! asks before it appends ([`Membership::plan`]), and everybody asks again where the entry stands.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

use super::formation::{Identities, Identity};
use super::{NodeId, BOOTSTRAP};
use crate::mutants::{self, Mutant};

/// Bytes of a member's address, at most.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// So many ids are passed over after a recovery: they may have been given, in entries that are lost, to nodes that run.
pub const LOST_IDS: u64 = 64;

/// Bytes of a member's metadata, keys and values together, at most.
pub const METADATA_BYTES_MAX: usize = 4096;
/// Members at most: more would only cost, since every voter is asked for every entry.
pub const MEMBERS_MAX: usize = 64;
/// Changes in one call, at most.
pub const CHANGES_MAX: usize = 32;

/// The recoveries of a cluster count in the upper half of its incarnation, the removals in the lower (rule M3).
const RECOVERY_SHIFT: u32 = 32;

/// A small set of names and values that travels with a member.
pub type Metadata = BTreeMap<String, String>;

/// What there is to a member beside its vote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Of its data directory; 0 while it has not been met (rule M1).
    pub identity: Identity,
    /// Where it is dialled; empty while the log does not say.
    pub address: String,
    /// Whatever its application says.
    pub metadata: Metadata,
    /// It has joined by itself, and asks for a vote until it gets one, or is told to do without.
    pub seeks_vote: bool,
}

/// One change of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new member, without a vote.
    AddLearner {
        /// Its id; 0 lets the cluster choose one.
        id: NodeId,
        /// What is known of it.
        member: Member,
    },
    /// A learner gets a vote.
    Promote(NodeId),
    /// A voter becomes a learner.
    Demote(NodeId),
    /// A member leaves for good; its id is never used again.
    Remove(NodeId),
    /// Something about a member: whatever is not given stays as it is.
    Update {
        /// Whose.
        id: NodeId,
        /// Its data directory, if that was not known.
        identity: Identity,
        /// Where it is dialled now.
        address: String,
        /// In the place of what was there.
        metadata: Option<Metadata>,
    },
    /// A quorum is lost for good: this member goes on alone (rule M3). Only `aioraft recover` writes it.
    Recover(NodeId),
}

#[derive(Clone, PartialEq, Message)]
struct WireChange {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(message, optional, tag = "3")]
    member: Option<WireMember>,
    #[prost(bool, tag = "4")]
    has_metadata: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WireChanges {
    #[prost(message, repeated, tag = "1")]
    changes: Vec<WireChange>,
}

/// A member as it stands in a snapshot and in commands.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WireMember {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(bytes = "vec", tag = "2")]
    identity: Vec<u8>,
    #[prost(string, tag = "3")]
    address: String,
    #[prost(btree_map = "string, string", tag = "4")]
    metadata: Metadata,
    #[prost(bool, tag = "5")]
    seeks_vote: bool,
}

impl WireMember {
    fn new(id: NodeId, member: &Member) -> Self {
        let Member { identity, address, metadata, seeks_vote } = member.clone();
        Self { id, identity: identity.to_le_bytes().to_vec(), address, metadata, seeks_vote }
    }

    fn read(self) -> Option<(NodeId, Member)> {
        let identity = Identity::from_le_bytes(self.identity.try_into().ok()?);
        let Self { id, address, metadata, seeks_vote, .. } = self;
        Some((id, Member { identity, address, metadata, seeks_vote }))
    }
}

/// The changes of one call as they stand in a command.
pub fn encode_changes(changes: &[Change]) -> Vec<u8> {
    let changes = changes.iter().map(|change| {
        let (kind, id, member, metadata) = match change {
            Change::AddLearner { id, member } => (1, id, Some(member.clone()), true),
            Change::Promote(id) => (2, id, None, false),
            Change::Demote(id) => (3, id, None, false),
            Change::Remove(id) => (4, id, None, false),
            Change::Update { id, identity, address, metadata } => {
                let (address, given) = (address.clone(), metadata.is_some());
                let metadata = metadata.clone().unwrap_or_default();
                (5, id, Some(Member { identity: *identity, address, metadata, seeks_vote: false }), given)
            }
            Change::Recover(id) => (6, id, None, false),
        };
        let member = member.map(|member| WireMember::new(*id, &member));
        WireChange { kind, id: *id, member, has_metadata: metadata }
    });
    WireChanges { changes: changes.collect() }.encode_to_vec()
}

/// Reads what [`encode_changes`] wrote; `None` if it cannot have.
pub fn decode_changes(bytes: &[u8]) -> Option<Vec<Change>> {
    let wire = WireChanges::decode(bytes).ok()?;
    if wire.changes.is_empty() || wire.changes.len() > CHANGES_MAX {
        return None;
    }
    let changes = wire.changes.into_iter().map(|change| {
        let WireChange { kind, id, member, has_metadata } = change;
        let member = member.map(WireMember::read);
        Some(match (kind, member) {
            (1, Some(member)) => Change::AddLearner { id, member: member?.1 },
            (2, None) => Change::Promote(id),
            (3, None) => Change::Demote(id),
            (4, None) => Change::Remove(id),
            (5, Some(member)) => {
                let Member { identity, address, metadata, .. } = member?.1;
                Change::Update { id, identity, address, metadata: has_metadata.then_some(metadata) }
            }
            (6, None) => Change::Recover(id),
            _ => return None,
        })
    });
    changes.collect()
}

/// Ids that were removed, and may never come back: few intervals, however many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// First and last of each, ascending, never adjacent.
    intervals: Vec<(NodeId, NodeId)>,
}

impl Retired {
    /// Whether `id` was removed.
    pub fn contains(&self, id: NodeId) -> bool {
        self.intervals.iter().any(|(first, last)| (*first..=*last).contains(&id))
    }

    /// The highest one.
    pub fn highest(&self) -> Option<NodeId> {
        self.intervals.last().map(|(_, last)| *last)
    }

    /// First and last of each interval.
    pub fn intervals(&self) -> &[(NodeId, NodeId)] {
        &self.intervals
    }

    fn insert(&mut self, id: NodeId) {
        if self.contains(id) {
            return;
        }
        self.intervals.push((id, id));
        self.intervals.sort_unstable();
        let mut merged: Vec<(NodeId, NodeId)> = Vec::new();
        for (first, last) in self.intervals.drain(..) {
            match merged.last_mut().filter(|(_, end)| end.saturating_add(1) == first) {
                Some((_, end)) => *end = last,
                None => merged.push((first, last)),
            }
        }
        self.intervals = merged;
    }
}

/// All members, and who was one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Exactly those who vote or learn, also in the outgoing half of a joint configuration.
    pub members: BTreeMap<NodeId, Member>,
    /// Removed ids.
    pub retired: Retired,
    /// Counts recoveries and removals (rule M3).
    pub incarnation: u64,
    /// Index of the entry that changed it last.
    pub version: u64,
}

/// [`Membership`] as it stands in a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct StoredMembership {
    #[prost(message, repeated, tag = "1")]
    members: Vec<WireMember>,
    #[prost(fixed64, repeated, tag = "2")]
    retired: Vec<u64>,
    #[prost(fixed64, tag = "3")]
    incarnation: u64,
    #[prost(fixed64, tag = "4")]
    version: u64,
}

/// Why a change cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Not with these members.
    #[error("{0}")]
    Never(String),
    /// Not before something else has happened.
    #[error("{0}")]
    NotYet(String),
}

fn never<T>(reason: impl Into<String>) -> Result<T, Unfit> {
    Err(Unfit::Never(reason.into()))
}

/// What changes come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// For raft-rs; none if nobody's vote is concerned.
    pub singles: Vec<ConfChangeSingle>,
    /// The ids concerned, in the order of the changes.
    pub ids: Vec<NodeId>,
    /// Learners that get a vote.
    pub promoted: Vec<NodeId>,
    /// All members afterwards, those that leave included.
    members: BTreeMap<NodeId, Member>,
    /// Who votes afterwards.
    pub voters: BTreeSet<NodeId>,
    /// A recovery of the cluster.
    is_recovery: bool,
    /// It was so before.
    pub is_noop: bool,
}

impl Plan {
    /// What raft-rs is to be told. Several changes at once go through a joint configuration, which whoever leads then leaves
    /// explicitly: what raft-rs appends by itself is not sent, and not at all if the leader changes meanwhile.
    pub fn conf_change(&self, context: Vec<u8>) -> ConfChangeV2 {
        let mut change = ConfChangeV2 { changes: self.singles.clone(), context, ..Default::default() };
        if self.singles.len() > 1 || self.is_recovery {
            change.set_transition(ConfChangeTransition::Explicit);
        }
        change
    }
}

impl Membership {
    /// The founders of a cluster.
    pub fn founded(voters: &[NodeId], identities: &Identities) -> Self {
        let member = |id: &NodeId| Member { identity: identities.get(id).copied().unwrap_or(0), ..Default::default() };
        let members = voters.iter().map(|id| (*id, member(id))).collect();
        Self { members, version: BOOTSTRAP.0, ..Default::default() }
    }

    /// The member with this data directory.
    pub fn of_identity(&self, identity: Identity) -> Option<NodeId> {
        let mut members = self.members.iter();
        members.find(|(_, member)| identity != 0 && member.identity == identity).map(|(id, _)| *id)
    }

    /// How often a quorum was lost and the cluster recovered by hand.
    pub fn recoveries(&self) -> u64 {
        self.incarnation >> RECOVERY_SHIFT
    }

    /// The id for the next new member.
    fn next_id(&self) -> NodeId {
        let retired = self.retired.highest().filter(|_| !mutants::on(Mutant::ReuseId));
        self.members.keys().next_back().copied().max(retired).unwrap_or(0) + 1
    }

    /// What `changes` come to where these vote and learn.
    ///
    /// # Errors
    /// Why they cannot be, one sentence.
    pub fn plan(&self, conf: &ConfState, changes: &[Change]) -> Result<Plan, Unfit> {
        let mut plan = Plan { members: self.members.clone(), is_noop: true, ..Default::default() };
        plan.voters = conf.voters.iter().copied().collect();
        for change in changes {
            let id = self.plan_one(&mut plan, change)?;
            plan.ids.push(id);
        }
        if !plan.singles.is_empty() && !conf.voters_outgoing.is_empty() {
            return Err(Unfit::NotYet("another change of the members has not come to its end".into()));
        }
        if plan.voters.is_empty() {
            return never("nobody would be left to vote: promote another member first");
        }
        if plan.members.len() > MEMBERS_MAX {
            return never(format!("a cluster has {MEMBERS_MAX} members at most: remove one first"));
        }
        Ok(plan)
    }

    fn plan_one(&self, plan: &mut Plan, change: &Change) -> Result<NodeId, Unfit> {
        let unknown = |id: &NodeId| match self.retired.contains(*id) {
            true => never(format!("node {id} was removed from this cluster")),
            false => never(format!("node {id} is not a member of this cluster")),
        };
        let single = |plan: &mut Plan, id: NodeId, kind: ConfChangeType| {
            let mut single = ConfChangeSingle { node_id: id, ..Default::default() };
            single.set_change_type(kind);
            plan.singles.push(single);
            plan.is_noop = false;
        };
        match change {
            Change::AddLearner { id, member } => self.plan_learner(plan, *id, member, single),
            Change::Update { id, identity, address, metadata } => {
                if !plan.members.contains_key(id) {
                    return unknown(id);
                }
                let given = Member { identity: *identity, address: address.clone(), ..Default::default() };
                update(plan, *id, &given, metadata.as_ref())?;
                Ok(*id)
            }
            Change::Promote(id) => {
                let Some(member) = plan.members.get_mut(id) else { return unknown(id) };
                if plan.voters.contains(id) {
                    plan.is_noop &= !std::mem::take(&mut member.seeks_vote);
                    return Ok(*id);
                }
                if !self.members.contains_key(id) {
                    return never(format!("node {id} is not a member yet: promote it when it has caught up"));
                }
                if member.identity == 0 {
                    return Err(Unfit::NotYet(format!("node {id} has not connected yet: is it running?")));
                }
                member.seeks_vote = false;
                plan.voters.insert(*id);
                plan.promoted.push(*id);
                single(plan, *id, ConfChangeType::AddNode);
                Ok(*id)
            }
            Change::Demote(id) => {
                let Some(member) = plan.members.get_mut(id) else { return unknown(id) };
                plan.is_noop &= !std::mem::take(&mut member.seeks_vote);
                if plan.voters.remove(id) {
                    single(plan, *id, ConfChangeType::AddLearnerNode);
                }
                Ok(*id)
            }
            Change::Remove(id) => {
                // Whoever asks again because the answer was lost gets it.
                if self.retired.contains(*id) {
                    return Ok(*id);
                }
                if !plan.members.contains_key(id) {
                    return unknown(id);
                }
                if !self.members.contains_key(id) {
                    return never(format!("node {id} cannot be added and removed in one change"));
                }
                plan.voters.remove(id);
                single(plan, *id, ConfChangeType::RemoveNode);
                Ok(*id)
            }
            Change::Recover(id) => {
                if !plan.members.contains_key(id) {
                    return unknown(id);
                }
                if plan.voters.insert(*id) {
                    single(plan, *id, ConfChangeType::AddNode);
                }
                for other in self.members.keys().filter(|other| *other != id) {
                    plan.voters.remove(other);
                    single(plan, *other, ConfChangeType::RemoveNode);
                }
                (plan.is_recovery, plan.is_noop) = (true, false);
                Ok(*id)
            }
        }
    }

    fn plan_learner(
        &self,
        plan: &mut Plan,
        id: NodeId,
        member: &Member,
        single: impl Fn(&mut Plan, NodeId, ConfChangeType),
    ) -> Result<NodeId, Unfit> {
        if let Some(known) = self.of_identity(member.identity) {
            if id != 0 && id != known {
                return never(format!("this data directory is node {known}'s: it cannot be node {id} as well"));
            }
            update(plan, known, member, Some(&member.metadata))?;
            return Ok(known);
        }
        let id = if id == 0 { self.next_id().max(plan.members.keys().next_back().map_or(0, |id| id + 1)) } else { id };
        if self.retired.contains(id) && !mutants::on(Mutant::ReuseId) {
            return never(format!(
                "node {id} was removed from this cluster, and an id is never used again: choose another one"
            ));
        }
        if plan.members.contains_key(&id) {
            // Whoever asks again because the answer was lost gets it.
            update(plan, id, member, Some(&member.metadata))?;
            return Ok(id);
        }
        plan.members.insert(id, member.clone());
        single(plan, id, ConfChangeType::AddLearnerNode);
        Ok(id)
    }

    /// `plan` has taken effect with the entry at `index`; `conf` is who votes and learns now. Returns who has left.
    pub fn take(&mut self, plan: Plan, conf: &ConfState, index: u64) -> Vec<NodeId> {
        if plan.is_noop {
            return Vec::new();
        }
        if plan.is_recovery {
            // The next one that is chosen lies behind it; whoever gives ids by hand knows what was given.
            self.retired.insert(self.next_id().saturating_add(LOST_IDS - 1));
        }
        self.members = plan.members;
        if plan.is_recovery && !mutants::on(Mutant::RecoverKeepsIncarnation) {
            self.incarnation = (self.recoveries() + 1) << RECOVERY_SHIFT;
        }
        self.settle(conf, index)
    }

    /// `conf` is who votes and learns from the entry at `index` on: whoever is in no part of it any more has left for good.
    pub fn settle(&mut self, conf: &ConfState, index: u64) -> Vec<NodeId> {
        self.version = index;
        let parts = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
        let stays = |id: &NodeId| parts.iter().any(|ids| ids.contains(id));
        let gone = self.members.keys().copied().filter(|id| !stays(id)).collect::<Vec<_>>();
        for id in &gone {
            self.members.remove(id);
            self.retired.insert(*id);
        }
        self.incarnation += u64::from(!gone.is_empty());
        gone
    }

    /// For a snapshot.
    pub fn stored(&self) -> StoredMembership {
        StoredMembership {
            members: self.members.iter().map(|(id, member)| WireMember::new(*id, member)).collect(),
            retired: self.retired.intervals.iter().flat_map(|(first, last)| [*first, *last]).collect(),
            incarnation: self.incarnation,
            version: self.version,
        }
    }

    /// What [`Self::stored`] gave; `None` if it cannot have.
    pub fn from_stored(stored: StoredMembership) -> Option<Self> {
        let pairs = stored.retired.chunks(2);
        let intervals = pairs.map(|pair| Some((*pair.first()?, *pair.get(1)?))).collect::<Option<Vec<_>>>()?;
        let sound = intervals.iter().all(|(first, last)| first <= last);
        if !sound || !intervals.windows(2).all(|pair| pair[0].1 < pair[1].0) {
            return None;
        }
        let members = stored.members.into_iter().map(WireMember::read).collect::<Option<BTreeMap<_, _>>>()?;
        let (incarnation, version) = (stored.incarnation, stored.version);
        Some(Self { members, retired: Retired { intervals }, incarnation, version })
    }

    /// A digest of all of it.
    #[cfg(feature = "sim")]
    pub fn digest(&self) -> u64 {
        use super::inspect::fold;
        let text = |digest, text: &str| text.bytes().fold(digest, |digest, byte| fold(digest, u64::from(byte)));
        let mut digest = fold(self.incarnation, self.version);
        // The founders' identities are not part of the log.
        for (id, member) in self.members.iter().filter(|_| self.version > BOOTSTRAP.0) {
            digest = fold(fold(fold(digest, *id), member.identity as u64), (member.identity >> 64) as u64);
            digest = text(digest, &member.address);
            digest = member.metadata.iter().fold(digest, |digest, (key, value)| text(text(digest, key), value));
        }
        self.retired.intervals.iter().fold(digest, |digest, (first, last)| fold(fold(digest, *first), *last))
    }
}

/// Takes what is given of `member` into what is known of it.
fn update(plan: &mut Plan, id: NodeId, given: &Member, metadata: Option<&Metadata>) -> Result<(), Unfit> {
    let Some(member) = plan.members.get_mut(&id) else { return Ok(()) };
    let mut after = member.clone();
    if given.identity != 0 {
        let is_another = member.identity != 0 && member.identity != given.identity;
        if is_another && !mutants::on(Mutant::BindAnyIdentity) {
            return never(format!(
                "node {id} is a member with another data directory: a wiped or replaced disk cannot come back under its old \
                 id; remove it, and add a new member"
            ));
        }
        after.identity = given.identity;
    }
    if !given.address.is_empty() {
        after.address.clone_from(&given.address);
    }
    if let Some(metadata) = metadata {
        after.metadata.clone_from(metadata);
    }
    plan.is_noop &= after == *member;
    *member = after;
    Ok(())
}

/// Whether a call's changes can stand in a command at all.
///
/// # Errors
/// What is wrong with them, one sentence.
pub fn check_changes(changes: &[Change]) -> Result<(), String> {
    if changes.is_empty() || changes.len() > CHANGES_MAX {
        return Err(format!("a call makes 1 to {CHANGES_MAX} changes, not {}", changes.len()));
    }
    for change in changes {
        let (id, address, metadata) = match change {
            Change::AddLearner { id, member } => (*id, member.address.as_str(), Some(&member.metadata)),
            Change::Update { id, address, metadata, .. } => (*id, address.as_str(), metadata.as_ref()),
            Change::Promote(id) | Change::Demote(id) | Change::Remove(id) | Change::Recover(id) => (*id, "", None),
        };
        if id == 0 && !matches!(change, Change::AddLearner { .. }) {
            return Err("a node's id is at least 1".into());
        }
        if id > NodeId::MAX >> 8 {
            return Err(format!("a node's id is less than 2**56, not {id}"));
        }
        if address.len() > ADDRESS_BYTES_MAX {
            return Err(format!("an address has at most {ADDRESS_BYTES_MAX} bytes, not {}", address.len()));
        }
        let bytes = metadata.into_iter().flatten().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        if bytes > METADATA_BYTES_MAX {
            return Err(format!("the metadata of a member has at most {METADATA_BYTES_MAX} bytes, not {bytes}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
