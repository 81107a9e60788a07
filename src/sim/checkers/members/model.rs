//! What the members of a cluster must be, from the committed log alone. It is written apart from the engine's own reading of
//! the log, and shares nothing with it but the encoding of a call's changes.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use raft::eraftpb::{ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType};

use crate::engine::command::{decode, Command, Header, Kind};
use crate::engine::membership::{decode_changes, Change, Member, Membership, Metadata, MEMBERS_MAX};
use crate::engine::{NodeId, WINDOW};

/// What an entry says, as far as members and sessions are concerned.
#[derive(Clone, Debug)]
pub enum Said {
    /// Neither.
    Nothing,
    /// A command of an application.
    Command(Header),
    /// Changes of the members, and what raft-rs is told with them.
    Changes(Header, Option<Vec<Change>>, Vec<(NodeId, ConfChangeType)>),
    /// The end of a joint configuration.
    Leave,
}

impl Said {
    pub fn of(entry: &Entry) -> Self {
        if entry.entry_type != EntryType::EntryConfChangeV2 as i32 {
            return Self::of_command(&entry.data, Vec::new());
        }
        let Ok(change) = ConfChangeV2::decode(entry.data.as_slice()) else { return Self::Nothing };
        if change.leave_joint() {
            return Self::Leave;
        }
        let singles = change.changes.iter().map(|single| (single.node_id, single.get_change_type()));
        Self::of_command(&change.context, singles.collect())
    }

    fn of_command(bytes: &[u8], singles: Vec<(NodeId, ConfChangeType)>) -> Self {
        match decode(bytes) {
            Err(_) => Self::Nothing,
            Ok(header) if header.kind == Kind::Application => Self::Command(header),
            Ok(header) => {
                let command = Command::from_bytes(bytes.to_vec()).ok();
                let changes = command.and_then(|command| decode_changes(command.payload()));
                Self::Changes(header, changes, singles)
            }
        }
    }
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// Nothing: it is no command, or a second copy, or a stranger's.
    Nothing,
    /// It took effect.
    Took,
    /// It was so before.
    Same,
    /// It cannot be.
    Refused,
}

/// The members after some entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub voters: BTreeSet<NodeId>,
    pub outgoing: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    pub next: BTreeSet<NodeId>,
    pub members: BTreeMap<NodeId, Member>,
    pub retired: BTreeSet<NodeId>,
    pub incarnation: u64,
    pub version: u64,
}

impl State {
    pub fn founded(membership: &Membership) -> Self {
        let Membership { members, incarnation, version, .. } = membership.clone();
        Self { voters: members.keys().copied().collect(), members, incarnation, version, ..Default::default() }
    }

    /// As a recovery leaves it.
    pub fn recovered(membership: &Membership) -> Self {
        let retired = membership.retired.intervals().iter().flat_map(|(first, last)| *first..=*last).collect();
        Self { retired, ..Self::founded(membership) }
    }

    /// Objects to a node that has it otherwise.
    pub fn compare(&self, conf: &ConfState, membership: &Membership) -> Result<(), String> {
        let parts = [
            ("voters", &self.voters, &conf.voters),
            ("outgoing voters", &self.outgoing, &conf.voters_outgoing),
            ("learners", &self.learners, &conf.learners),
            ("next learners", &self.next, &conf.learners_next),
        ];
        for (what, ought, is) in parts {
            if !(ought.len() == is.len() && is.iter().all(|id| ought.contains(id))) {
                return Err(format!("its {what} are {is:?}, and the log says {ought:?}"));
            }
        }
        if self.members != membership.members {
            return Err(format!("its members are {:?}, and the log says {:?}", membership.members, self.members));
        }
        let intervals = membership.retired.intervals().iter();
        let retired = intervals.flat_map(|(first, last)| *first..=*last).collect::<BTreeSet<_>>();
        if self.retired != retired {
            return Err(format!("removed are {retired:?} as it knows, and the log says {:?}", self.retired));
        }
        let (ought, is) = ((self.incarnation, self.version), (membership.incarnation, membership.version));
        if ought != is {
            return Err(format!("its incarnation and version are {is:?}, and the log says {ought:?}"));
        }
        Ok(())
    }

    /// Whether a change of the voters has begun and not ended.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    fn leave(&mut self, index: u64) -> Vec<NodeId> {
        if !self.is_joint() {
            return Vec::new();
        }
        self.outgoing.clear();
        self.learners.append(&mut self.next);
        self.settle(index)
    }

    /// Whoever is in no part any more has left for good.
    fn settle(&mut self, index: u64) -> Vec<NodeId> {
        self.version = index;
        let parts = [&self.voters, &self.outgoing, &self.learners, &self.next];
        let gone = self.members.keys().copied().filter(|id| !parts.iter().any(|part| part.contains(id)));
        let gone = gone.collect::<Vec<_>>();
        self.members.retain(|id, _| !gone.contains(id));
        self.retired.extend(&gone);
        self.incarnation += u64::from(!gone.is_empty());
        gone
    }

    fn change(&mut self, index: u64, changes: &[Change], told: &[(NodeId, ConfChangeType)]) -> (Became, Vec<NodeId>) {
        let Some(draft) = Draft::of(self, changes) else { return (Became::Refused, Vec::new()) };
        if draft.is_same {
            return (Became::Same, Vec::new());
        }
        if draft.singles != told {
            return (Became::Refused, Vec::new());
        }
        if told.len() > 1 {
            self.outgoing.clone_from(&self.voters);
        }
        for (id, kind) in told {
            let had_a_vote = self.voters.remove(id);
            self.learners.remove(id);
            self.next.remove(id);
            match kind {
                ConfChangeType::AddNode => drop(self.voters.insert(*id)),
                // One that votes in the half that goes learns when that is gone.
                ConfChangeType::AddLearnerNode if had_a_vote && self.is_joint() => drop(self.next.insert(*id)),
                ConfChangeType::AddLearnerNode => drop(self.learners.insert(*id)),
                ConfChangeType::RemoveNode => {}
            }
        }
        self.members = draft.members;
        (Became::Took, self.settle(index))
    }
}

/// The members as a call wants them.
struct Draft {
    members: BTreeMap<NodeId, Member>,
    voters: BTreeSet<NodeId>,
    singles: Vec<(NodeId, ConfChangeType)>,
    is_same: bool,
}

impl Draft {
    fn of(state: &State, changes: &[Change]) -> Option<Self> {
        let (members, voters) = (state.members.clone(), state.voters.clone());
        let mut draft = Self { members, voters, singles: Vec::new(), is_same: true };
        for change in changes {
            draft.take(state, change)?;
        }
        let fits = !draft.voters.is_empty() && draft.members.len() <= MEMBERS_MAX;
        let waits = !draft.singles.is_empty() && state.is_joint();
        draft.is_same &= draft.singles.is_empty();
        (fits && !waits).then_some(draft)
    }

    fn take(&mut self, state: &State, change: &Change) -> Option<()> {
        match change {
            Change::AddLearner { id, member } => {
                let mut owners = state.members.iter().filter(|(_, it)| it.identity != 0);
                if let Some((owner, _)) = owners.find(|(_, it)| it.identity == member.identity) {
                    let fits = *id == 0 || id == owner;
                    return fits.then_some(()).and_then(|()| self.note(*owner, member, Some(&member.metadata)));
                }
                let highest = [self.members.keys().next_back(), state.retired.last()].into_iter().flatten().max();
                let id = if *id == 0 { highest.map_or(1, |highest| highest + 1) } else { *id };
                if state.retired.contains(&id) {
                    return None;
                }
                if self.members.contains_key(&id) {
                    return self.note(id, member, Some(&member.metadata));
                }
                self.members.insert(id, member.clone());
                self.singles.push((id, ConfChangeType::AddLearnerNode));
            }
            Change::Update { id, identity, address, metadata } => {
                let given = Member { identity: *identity, address: address.clone(), ..Default::default() };
                return self.note(*id, &given, metadata.as_ref());
            }
            Change::Promote(id) => {
                let identity = self.members.get(id)?.identity;
                if self.voters.contains(id) {
                    let member = self.members.get_mut(id)?;
                    self.is_same &= !member.seeks_vote;
                    member.seeks_vote = false;
                } else {
                    // One whose data directory nobody has met may be anybody.
                    if !state.members.contains_key(id) || identity == 0 {
                        return None;
                    }
                    self.voters.insert(*id);
                    self.members.get_mut(id)?.seeks_vote = false;
                    self.singles.push((*id, ConfChangeType::AddNode));
                }
            }
            Change::Demote(id) => {
                let member = self.members.get_mut(id)?;
                self.is_same &= !member.seeks_vote;
                member.seeks_vote = false;
                if self.voters.remove(id) {
                    self.singles.push((*id, ConfChangeType::AddLearnerNode));
                }
            }
            Change::Remove(id) if state.retired.contains(id) => {}
            Change::Remove(id) => {
                state.members.get(id)?;
                self.voters.remove(id);
                self.singles.push((*id, ConfChangeType::RemoveNode));
            }
            // Nobody writes it here.
            Change::Recover(_) => return None,
        }
        Some(())
    }

    fn note(&mut self, id: NodeId, given: &Member, metadata: Option<&Metadata>) -> Option<()> {
        let member = self.members.get_mut(&id)?;
        let before = member.clone();
        if given.identity != 0 {
            if member.identity != 0 && member.identity != given.identity {
                return None;
            }
            member.identity = given.identity;
        }
        if !given.address.is_empty() {
            member.address.clone_from(&given.address);
        }
        if let Some(metadata) = metadata {
            member.metadata.clone_from(metadata);
        }
        self.is_same &= before == *member;
        Some(())
    }
}

/// Which of a node's numbers were applied, and which it has given up.
#[derive(Debug)]
struct Session {
    start: (u64, u64),
    floor: u64,
    applied: BTreeSet<u64>,
}

/// The members and the sessions along the log.
#[derive(Debug, Default)]
pub struct Model {
    pub state: State,
    sessions: BTreeMap<NodeId, Session>,
}

impl Model {
    pub fn founded(membership: &Membership) -> Self {
        Self { state: State::founded(membership), sessions: BTreeMap::new() }
    }

    /// As a recovery leaves it: whoever else had a session is out, and the one that stays begins another.
    pub fn recovered(state: State) -> Self {
        Self { state, sessions: BTreeMap::new() }
    }

    /// The next committed entry.
    pub fn apply(&mut self, index: u64, said: &Said) -> Became {
        let (became, gone) = match said {
            Said::Nothing => return Became::Nothing,
            Said::Leave => (Became::Nothing, self.state.leave(index)),
            Said::Command(header) | Said::Changes(header, ..) if !self.is_fresh(header) => return Became::Nothing,
            Said::Command(_) => return Became::Took,
            Said::Changes(_, None, _) => return Became::Refused,
            Said::Changes(_, Some(changes), told) => self.state.change(index, changes, told),
        };
        for id in gone {
            self.sessions.remove(&id);
        }
        became
    }

    /// Whether a command is a member's, and the first copy of one that its origin has not given up (rules S1 to S3).
    fn is_fresh(&mut self, header: &Header) -> bool {
        if !self.state.members.contains_key(&header.origin) {
            return false;
        }
        let start = (header.boot, header.nonce);
        let new = || Session { start, floor: 0, applied: BTreeSet::new() };
        let session = self.sessions.entry(header.origin).or_insert_with(new);
        if header.boot > session.start.0 {
            *session = new();
        }
        if session.start != start {
            return false;
        }
        session.floor = session.floor.max(header.floor);
        session.applied = session.applied.split_off(&session.floor);
        let in_window = (session.floor..session.floor + WINDOW).contains(&header.number);
        in_window && session.applied.insert(header.number)
    }
}
