//! Whoever changes the members: machines join with empty disks, get votes, lose them and leave, one by one and several at once,
//! through any node. What is asked for is chosen from what the asked node knows, so that it may be out of date.

use std::collections::{BTreeMap, BTreeSet};

use super::clock::{Time, MS, SECOND};
use super::event::{ChangeEnded, Event};
use super::machine::{name, Image, Process};
use super::members::is_connected;
use super::network::MachineId;
use super::plan::{Ask, JoinId, Target, HEALED};
use super::world::{Happening, World};
use crate::driver::initiative::{runs_under, NAME};
use crate::driver::options::Joins;
use crate::driver::port::Request;
use crate::engine::formation::Identity;
use crate::engine::membership::{Change, Member, Membership, Metadata};
use crate::engine::{NodeId, Token, BOOTSTRAP};

/// Clients' calls, and those for another leader, have lower numbers.
pub const FIRST: Token = 1 << 49;

/// The ids that an operator chooses are so far apart that those which the cluster chooses lie between.
const ID_STEP: NodeId = 1000;

/// What was asked for, to be asked for once more.
#[derive(Clone, Debug)]
pub(super) struct Again {
    /// Where.
    at: MachineId,
    wish: Wish,
    patience: Option<Time>,
}

/// What an operator wants.
#[derive(Clone, Debug)]
struct Wish {
    changes: Vec<Change>,
    /// The machine that is started when the cluster has chosen an id for it.
    joins: Option<Newcomer>,
    /// It cannot be.
    is_vain: bool,
}

/// A machine that joins.
#[derive(Clone, Debug)]
struct Newcomer {
    machine: MachineId,
    /// By its name, if it does so by itself.
    by: Option<Joins>,
}

struct Call {
    machine: MachineId,
    again: Option<Again>,
    joins: Option<Newcomer>,
}

/// The operator's calls.
#[derive(Default)]
pub(super) struct Operator {
    open: BTreeMap<Token, Call>,
    calls: Token,
    ids: NodeId,
    has_moved: bool,
    /// Data directories of those who join by their names.
    made: BTreeSet<Identity>,
}

impl Operator {
    /// Calls on this machine that have not ended.
    pub fn open_calls(&self, machine: MachineId) -> usize {
        self.open.values().filter(|call| call.machine == machine).count()
    }

    fn new_id(&mut self) -> NodeId {
        self.ids += 1;
        self.ids * ID_STEP
    }
}

/// Who is there, as the asked node knows.
struct View {
    membership: Membership,
    voters: Vec<NodeId>,
    learners: Vec<NodeId>,
}

impl World {
    /// The application on a machine, if it can call for a change: it runs, and its node is part of the cluster.
    fn caller(&self, machine: MachineId) -> Option<&Process> {
        let at = &self.machines[machine];
        let runs = at.paused_until.max(at.blocked_until) <= self.now && !at.out;
        let process = at.process.as_ref().filter(|process| runs && process.closing.is_none())?;
        process.members.borrow().formation.is_formed().then_some(process)
    }

    /// The operator asks for something.
    pub(super) fn ask_for_change(&mut self, at: Target, ask: Ask, patience: Option<Time>, twice: bool) {
        let machine = self.resolve(at);
        let Some(process) = self.caller(machine) else { return };
        let conf = process.engine.conf_state();
        let membership = process.engine.membership().clone();
        let learners = membership.members.keys().copied().filter(|id| !conf.voters.contains(id)).collect();
        let view = View { membership, voters: conf.voters, learners };
        let Some(wish) = self.choose(&view, ask) else { return };
        if !wish.is_vain && !self.survives(&wish.changes) {
            return;
        }
        // A learner that never catches up would be waited for without an end.
        let promotes = wish.changes.iter().any(|change| matches!(change, Change::Promote(_)));
        let patience = if promotes || wish.is_vain { patience.or(Some(3 * SECOND)) } else { patience };
        if twice {
            // Its answer was lost, or it was slow to come: the same is asked for elsewhere, or here.
            let again = Again { at: self.rng.usize(0..self.plan.machines()), wish: wish.clone(), patience };
            let later = self.now + self.rng.u64(1..3000) * MS;
            self.happens(later, Happening::AskAgain(Box::new(again)));
        }
        // Whoever joins by itself asks until it has its place.
        let is_by_name = wish.joins.as_ref().is_some_and(|joins| joins.by.is_some());
        let again = (is_by_name || !wish.is_vain && self.rng.bool()).then(|| Again {
            at: self.rng.usize(0..self.plan.machines()),
            wish: wish.clone(),
            patience,
        });
        self.call_for_change(machine, wish, patience, again);
    }

    /// The operator asks once more.
    pub(super) fn ask_again(&mut self, again: Again) {
        let Again { at, wish, patience } = again;
        if self.now < HEALED && self.caller(at).is_some() && (wish.is_vain || self.survives(&wish.changes)) {
            let is_by_name = wish.joins.as_ref().is_some_and(|joins| joins.by.is_some());
            let again =
                is_by_name.then(|| Again { at: self.rng.usize(0..self.plan.machines()), wish: wish.clone(), patience });
            self.call_for_change(at, wish, patience, again);
        }
    }

    fn call_for_change(&mut self, machine: MachineId, wish: Wish, patience: Option<Time>, again: Option<Again>) {
        let Some(process) = self.caller(machine) else { return };
        let place = process.place;
        // As `driver::node::admin` has it.
        if let Some(Joins { name, identity: Some(identity) }) = wish.joins.as_ref().and_then(|joins| joins.by.as_ref())
        {
            let runs = |id| id == process.id || is_connected(process, id);
            if runs_under(name, *identity, process.engine.membership(), runs).is_some() {
                return self.ask_later(again);
            }
        }
        let members = process.engine.membership().members.keys().copied().collect::<Vec<_>>();
        let token = FIRST + self.operator.calls;
        self.operator.calls += 1;
        let at = &self.machines[machine];
        let deadline_ns = patience.map(|patience| at.clock.now(self.now).boottime_ns + patience);
        let deadline = deadline_ns.map(|deadline_ns| at.clock.time_of(deadline_ns));
        let Wish { mut changes, joins, .. } = wish;
        // Most calls leave a mark by which they are told apart in the log.
        if self.rng.u32(0..4) > 0 {
            self.mark(&mut changes, &members, token);
        }
        self.trace.note(self.now, &[23, token, machine as u64], || {
            format!("the operator on machine {machine}: call {token}, {changes:?}, until {deadline:?}")
        });
        self.operator.open.insert(token, Call { machine, again, joins });
        self.tell(machine, &Event::CalledForChange { call: token, deadline, changes: &changes });
        self.with(place, |_, process| {
            process.inbox.requests.push(Request::Change { token, changes, deadline_ns });
        });
        self.wake_soon(machine);
    }

    fn mark(&mut self, changes: &mut Vec<Change>, members: &[NodeId], token: Token) {
        let note = Metadata::from([("call".to_owned(), token.to_string())]);
        if let [Change::AddLearner { member, .. }] = changes.as_mut_slice() {
            member.metadata.extend(note);
            return;
        }
        let is_touched = |id: &NodeId| changes.iter().any(|change| concerns(change) == *id);
        let others = members.iter().copied().filter(|id| !is_touched(id)).collect::<Vec<_>>();
        if let Some(id) = self.one_of(&others) {
            changes.push(Change::Update { id, identity: 0, address: String::new(), metadata: Some(note) });
        }
    }

    /// A call for a change ends.
    pub(super) fn end_change(&mut self, token: Token, how: &ChangeEnded) {
        let Some(Call { machine: asked, again, joins }) = self.operator.open.remove(&token) else { return };
        self.trace.note(self.now, &[24, token], || format!("call {token} ends: {how:?}"));
        self.figures.changes += u64::from(matches!(how, ChangeEnded::Done { .. }));
        self.tell(asked, &Event::ChangeCallEnded { call: token, how });
        if let ChangeEnded::Done { ids, .. } = how {
            self.let_in_who_knows_nothing(ids);
        }
        match (how, joins) {
            (ChangeEnded::Done { ids, .. }, Some(Newcomer { machine, by })) => {
                // A data directory is made once: one that is lost does not come back with the second answer.
                let identity = by.as_ref().and_then(|by| by.identity);
                let is_made = identity.is_some_and(|identity| self.operator.made.contains(&identity));
                if self.is_free(machine) && !is_made && self.now < HEALED {
                    self.operator.made.extend(identity);
                    self.begin_newcomer(machine, ids[0], by, Some(asked));
                }
            }
            (ChangeEnded::Done { .. }, None) => {}
            _ => self.ask_later(again),
        }
    }

    /// Nodes that the cluster was recovered without, that have had no part in it before, and that it takes in now.
    fn let_in_who_knows_nothing(&mut self, ids: &[NodeId]) {
        for machine in 0..self.machines.len() {
            let at = &self.machines[machine];
            let process = at.process.as_ref().filter(|process| ids.contains(&process.id));
            let knows_nothing = process.is_some_and(|process| process.engine.status().last_index == BOOTSTRAP.0);
            if at.old && at.out && knows_nothing && self.checkers.joins(machine) {
                let at = &mut self.machines[machine];
                (at.old, at.out) = (false, false);
            }
        }
    }

    fn ask_later(&mut self, again: Option<Again>) {
        if let Some(again) = again {
            let later = self.now + self.rng.u64(1..2000) * MS;
            self.happens(later, Happening::AskAgain(Box::new(again)));
        }
    }

    /// A process is gone, and with it whoever waited in it.
    pub(super) fn lose_changes(&mut self, machine: MachineId) {
        let lost = self.operator.open.iter().filter(|(_, call)| call.machine == machine).map(|(token, _)| *token);
        for token in lost.collect::<Vec<_>>() {
            self.end_change(token, &ChangeEnded::Lost);
        }
    }

    fn one_of<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.rng.usize(0..from.len())])
    }

    fn choose(&mut self, view: &View, ask: Ask) -> Option<Wish> {
        let wish = |changes| Some(Wish { changes, joins: None, is_vain: false });
        match ask {
            Ask::Join { machine, id } => self.choose_newcomer(view, machine, id),
            Ask::JoinByName { machine } => self.choose_namesake(machine),
            Ask::Promote => match self.one_of(&view.learners) {
                Some(learner) => wish(vec![Change::Promote(learner)]),
                None => self.choose_newcomer(view, 0, JoinId::New),
            },
            Ask::Demote => wish(vec![Change::Demote(self.one_of(&view.voters)?)]),
            Ask::Remove => wish(vec![Change::Remove(self.whoever_leaves(view)?)]),
            Ask::Replace => {
                let Some(learner) = self.one_of(&view.learners) else {
                    return self.choose_newcomer(view, 0, JoinId::New);
                };
                let leaves = self.whoever_leaves(view).filter(|id| *id != learner)?;
                let leaves = if self.rng.bool() { Change::Remove(leaves) } else { Change::Demote(leaves) };
                let mut changes = vec![Change::Promote(learner), leaves];
                self.rng.shuffle(&mut changes);
                wish(changes)
            }
            Ask::Several => {
                let mut ids = view.membership.members.keys().copied().collect::<Vec<_>>();
                self.rng.shuffle(&mut ids);
                ids.truncate(self.rng.usize(2..=4));
                let changes = ids.into_iter().map(|id| match (view.learners.contains(&id), self.rng.u32(0..4)) {
                    (_, 0) => Change::Remove(id),
                    (true, _) => Change::Promote(id),
                    (false, _) => Change::Demote(id),
                });
                wish(changes.collect())
            }
            Ask::Note => self.choose_note(view),
        }
    }

    /// Somebody who has lost their disk, or anybody.
    fn whoever_leaves(&mut self, view: &View) -> Option<NodeId> {
        let members = view.membership.members.keys().copied().collect::<Vec<_>>();
        let lost = members.iter().copied().filter(|id| !self.is_healthy(*id)).collect::<Vec<_>>();
        if !lost.is_empty() && self.rng.u32(0..4) > 0 {
            return self.one_of(&lost);
        }
        self.one_of(&members)
    }

    /// Something that concerns nobody's vote, or that cannot be.
    fn choose_note(&mut self, view: &View) -> Option<Wish> {
        let bound = view.membership.members.iter().filter(|(_, member)| member.identity != 0);
        let bound = bound.map(|(id, member)| (*id, member.identity)).collect::<Vec<_>>();
        let (id, identity) = self.one_of(&bound)?;
        let (change, is_vain) = match self.rng.u32(0..3) {
            0 => {
                let metadata = Some(Metadata::from([("zone".to_owned(), self.rng.u32(0..3).to_string())]));
                (Change::Update { id, identity: 0, address: String::new(), metadata }, false)
            }
            1 => (Change::Update { id, identity: self.rng.u128(1..), address: String::new(), metadata: None }, true),
            _ => {
                let id = self.operator.new_id();
                (Change::AddLearner { id, member: Member { identity, ..Default::default() } }, true)
            }
        };
        Some(Wish { changes: vec![change], joins: None, is_vain })
    }

    /// A machine that runs no member: it has never run one, or that one was removed, or its disk is lost.
    fn is_free(&self, machine: MachineId) -> bool {
        let at = &self.machines[machine];
        let is_stranger = !self.newest_members().members.contains(&at.node)
            && at.process.as_ref().is_none_or(|process| !process.members.borrow().formation.is_formed());
        !at.runs || at.out || is_stranger && machine >= self.plan.nodes
    }

    fn choose_newcomer(&mut self, view: &View, machine: MachineId, id: JoinId) -> Option<Wish> {
        let machine = self.free_machine(machine)?;
        let used = view.membership.retired.intervals().iter().map(|(first, _)| *first).collect::<Vec<_>>();
        let used = self.one_of(&used).filter(|_| id == JoinId::Used);
        let address = self.address(machine);
        let member = Member { address, ..Default::default() };
        if id == JoinId::Open {
            let changes = vec![Change::AddLearner { id: 0, member }];
            return Some(Wish { changes, joins: Some(Newcomer { machine, by: None }), is_vain: false });
        }
        let id = used.unwrap_or_else(|| self.operator.new_id());
        self.begin_newcomer(machine, id, None, None);
        // Nobody lets it in.
        self.machines[machine].out = used.is_some();
        Some(Wish { changes: vec![Change::AddLearner { id, member }], joins: None, is_vain: used.is_some() })
    }

    /// A machine asks for a place under its name, for the data directory that it is about to make.
    fn choose_namesake(&mut self, machine: MachineId) -> Option<Wish> {
        let machine = self.free_machine(machine)?;
        let (name, identity) = (name(machine), self.rng.u128(1..));
        let metadata = Metadata::from([(NAME.to_owned(), name.clone())]);
        let member = Member { identity, address: self.address(machine), metadata, seeks_vote: true };
        let by = Some(Joins { name, identity: Some(identity) });
        let changes = vec![Change::AddLearner { id: 0, member }];
        Some(Wish { changes, joins: Some(Newcomer { machine, by }), is_vain: false })
    }

    fn free_machine(&self, first: MachineId) -> Option<MachineId> {
        let machines = self.plan.machines();
        (0..machines).map(|step| (first + step) % machines).find(|machine| self.is_free(*machine))
    }

    /// A node starts on a machine with an empty disk, with the members that there are, whoever answered, and itself on its
    /// list.
    fn begin_newcomer(&mut self, machine: MachineId, id: NodeId, by: Option<Joins>, answered: Option<MachineId>) {
        self.kill(machine, SECOND);
        let members = self.newest_members().members;
        let reached = |id: NodeId| {
            let machines = 0..self.plan.machines();
            let host = machines.filter(|host| *host != machine).find(|host| self.machines[*host].node == id)?;
            Some((id, self.address(host)))
        };
        let mut listed = members.into_iter().filter_map(reached).collect::<BTreeMap<_, _>>();
        if let Some(answered) = answered.filter(|answered| *answered != machine) {
            listed.insert(self.machines[answered].node, self.address(answered));
        }
        if listed.is_empty() {
            // Nobody runs whom it could join; alone on its list, it would found a cluster of its own.
            return;
        }
        listed.insert(id, self.address(machine));
        let at = &mut self.machines[machine];
        at.put_back(Image::default());
        at.copies.clear();
        (at.node, at.listed, at.members) = (id, listed, None);
        (at.runs, at.out, at.old, at.disk_fails) = (true, false, false, false);
        self.checkers.joins(machine);
        self.figures.joined += 1;
        self.figures.named += u64::from(by.is_some());
        self.machines[machine].joins = by;
        let begins = self.now + self.rng.u64(0..2000) * MS;
        self.start_at(machine, begins);
    }

    /// Whether a quorum of those who vote then is there, as far as the newest members are concerned.
    fn survives(&self, changes: &[Change]) -> bool {
        let mut newest = self.newest_members();
        for change in changes {
            let id = concerns(change);
            match change {
                Change::Promote(_) if !newest.conf.voters.contains(&id) => newest.conf.voters.push(id),
                Change::Demote(_) | Change::Remove(_) => newest.conf.voters.retain(|voter| *voter != id),
                _ => {}
            }
        }
        !newest.conf.voters.is_empty() && newest.has_quorum(|id| self.is_healthy(id))
    }

    /// A node is started again, and reached elsewhere. Only one in a world: two that moved at once would not find each other
    /// again before one of them is started with another list.
    pub(super) fn move_node(&mut self, machine: MachineId, down: Time) {
        if self.operator.has_moved || self.caller(machine).is_none() {
            return;
        }
        self.operator.has_moved = true;
        self.machines[machine].port += 1;
        let (node, address) = (self.machines[machine].node, self.address(machine));
        self.machines[machine].listed.insert(node, address);
        self.kill(machine, down);
    }
}

/// Whom a change concerns; 0 if that is open.
fn concerns(change: &Change) -> NodeId {
    match change {
        Change::AddLearner { id, .. } | Change::Update { id, .. } => *id,
        Change::Promote(id) | Change::Demote(id) | Change::Remove(id) | Change::Recover(id) => *id,
    }
}
