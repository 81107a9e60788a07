//! The driver's part in changes of the members, as `driver::node::membership` has it: who is dialled, who is told, and what a
//! node changes by itself.

use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType};

use super::clock::{Time, MS, SECOND};
use super::event::{Event, Standpoint};
use super::machine::{address, Process};
use super::network::{MachineId, Packet};
use super::plan::{Crash, HEALED};
use super::round::{put, store_stage};
use super::world::{Happening, World};
use crate::driver::initiative::Initiative;
use crate::engine::formation::Report;
use crate::engine::membership::{Change, Membership};
use crate::engine::{NodeId, Token, BOOTSTRAP};

/// Whoever waits for a change that the node makes by itself (`driver::node::membership`).
pub(super) const OWN: Token = Token::MAX;
/// How long such a change is tried for at once.
const OWN_CHANGE: Time = 5 * SECOND;
/// How long a removed member gets to hang up.
const FAREWELL: Time = 2 * SECOND;

/// The ids of all others.
pub(super) fn others(process: &Process) -> Vec<NodeId> {
    process.members.borrow().formation.others()
}

/// Says to everybody how far this node is, and who it takes for the members.
pub(super) fn tell_all(process: &mut Process) {
    let report = process.members.borrow().formation.report().encode();
    for peer in others(process) {
        put(process, peer, Packet::Formation(report.clone()));
    }
}

fn advertised(process: &Process) -> String {
    process.members.borrow().advertise.clone()
}

pub(super) fn is_connected(process: &Process, peer: NodeId) -> bool {
    process.peers.get(&peer).is_some_and(|peer| peer.route().is_some())
}

impl World {
    /// Where a machine is reached now.
    pub(super) fn address(&self, machine: MachineId) -> String {
        address(machine, self.machines[machine].port)
    }

    /// `peer` is dialled there from now on (`transport::Network::set_peer`).
    fn set_peer(&mut self, process: &mut Process, peer: NodeId, address: &str) {
        if process.addresses.get(&peer).is_some_and(|known| known == address) {
            return;
        }
        process.addresses.insert(peer, address.to_owned());
        let entry = process.peers.entry(peer).or_default();
        if entry.dialled.is_none() && !std::mem::replace(&mut entry.dialling, true) {
            self.happens(self.now, Happening::Dial(process.place, peer));
        }
    }

    /// A peer says where it is reached.
    pub(super) fn follow_address(&mut self, process: &mut Process, peer: NodeId, advertised: &str) {
        if !advertised.is_empty() {
            self.set_peer(process, peer, advertised);
        }
    }

    /// A peer says who belongs to the cluster.
    pub(super) fn meet(&mut self, process: &mut Process, peer: NodeId, report: &[u8]) {
        let Some(report) = Report::decode(report) else { return };
        let met = process.members.borrow_mut().formation.meet(peer, report.clone());
        match met {
            Ok(next) => {
                store_stage(process, next);
                let dialled = |member| process.addresses.get(&member).cloned();
                let news = process.members.borrow_mut().hear_of(&report, dialled);
                for (member, address) in news {
                    self.set_peer(process, member, &address);
                }
            }
            // It is logged in the real world.
            Err(mismatch) => process.members.borrow_mut().note(&mismatch),
        }
    }

    /// The members have changed.
    pub(super) fn follow_members(&mut self, machine: MachineId, process: &mut Process) {
        let (me, after) = (process.id, process.engine.membership().clone());
        let before = {
            let formation = &mut process.members.borrow_mut().formation;
            let before = formation.membership().clone();
            formation.set_membership(after.clone(), process.engine.votes());
            before
        };
        self.trace.note(self.now, &[21, machine as u64, after.version], || {
            format!("node {}: members {:?}, {:?}", process.id, after, process.engine.conf_state())
        });
        let address = |membership: &Membership, id| membership.members.get(id).map(|member| member.address.clone());
        for (id, member) in after.members.iter().filter(|(id, _)| **id != me) {
            let is_news = address(&before, id).as_ref() != Some(&member.address);
            let is_here = member.address == advertised(process);
            if is_news && !is_here && !member.address.is_empty() {
                self.set_peer(process, *id, &member.address);
            }
        }
        tell_all(process);
        let report = process.members.borrow().formation.report().encode();
        let connected = process.peers.keys().copied().filter(|peer| is_connected(process, *peer)).collect::<Vec<_>>();
        let gone = process.members.borrow_mut().gone(&before, &process.listed, &connected);
        for gone in gone {
            put(process, gone, Packet::Formation(report.clone()));
            process.addresses.remove(&gone);
            process.leaving.entry(gone).or_insert(self.now + FAREWELL);
        }
        self.crash_in_change(process);
    }

    /// A call for a change. New members are told where the founders are dialled: the log need not say so before.
    pub(super) fn change_members(
        &mut self,
        machine: MachineId,
        process: &mut Process,
        token: Token,
        changes: &[Change],
        deadline_ns: u64,
    ) {
        if changes.iter().any(|change| matches!(change, Change::AddLearner { .. })) {
            let unknown = process.engine.membership().members.iter().filter(|(_, member)| member.address.is_empty());
            let updates = unknown.filter_map(|(id, _)| {
                let known = process.addresses.get(id).cloned();
                let address = if *id == process.id { advertised(process) } else { known? };
                (!address.is_empty()).then_some(Change::Update { id: *id, identity: 0, address, metadata: None })
            });
            let updates = updates.collect::<Vec<_>>();
            if !updates.is_empty() {
                self.change_by_itself(machine, process, &updates, deadline_ns);
            }
        }
        process.engine.handle_change(token, changes, deadline_ns);
    }

    fn change_by_itself(&mut self, machine: MachineId, process: &mut Process, changes: &[Change], deadline_ns: u64) {
        self.trace.note(self.now, &[22, machine as u64], || format!("node {}: by itself {changes:?}", process.id));
        process.own_changes += 1;
        process.engine.handle_change(OWN, changes, deadline_ns);
    }

    /// What a node changes by itself, one thing at a time.
    pub(super) fn look_after_members(&mut self, machine: MachineId, process: &mut Process) {
        let over = process.leaving.iter().filter(|(_, until)| **until <= self.now).map(|(id, _)| *id);
        for gone in over.collect::<Vec<_>>() {
            process.leaving.remove(&gone);
            let connections = process.peers.get(&gone).map(|peer| peer.connections().collect::<Vec<_>>());
            connections.into_iter().flatten().for_each(|connection| self.close_local(process, connection));
        }
        if process.own_changes > 0 || process.closing.is_some() {
            return;
        }
        let changes = {
            let (members, name) = (process.members.borrow(), process.name.as_ref());
            let is_connected = |id| is_connected(process, id);
            Initiative { engine: &process.engine, members: &members, name, is_connected: &is_connected }.next()
        };
        let Some(changes) = changes else { return };
        for change in &changes {
            if let Change::Remove(id) = change {
                self.tell(machine, &Event::Displaces { id: *id, is_healthy: self.is_healthy(*id) });
            }
        }
        let deadline_ns = self.machines[machine].clock.now(self.now).boottime_ns + OWN_CHANGE;
        self.change_by_itself(machine, process, &changes, deadline_ns);
    }

    /// In some worlds a change that is appended, or that takes effect, is the moment at which things go wrong.
    pub(super) fn trouble_change(&mut self, process: &mut Process, entries: &[Entry]) {
        if entries.iter().any(|entry| entry.entry_type == EntryType::EntryConfChangeV2 as i32) {
            self.crash_in_change(process);
        }
    }

    fn crash_in_change(&mut self, process: &mut Process) {
        if self.plan.troubled_changes && self.now < HEALED && process.crash.is_none() && self.rng.u32(0..12) == 0 {
            let kind = if self.rng.bool() { Crash::PowerLoss } else { Crash::Kill };
            process.crash = Some((self.rng.u32(0..60), kind));
            process.down = self.rng.u64(50..3000) * MS;
        }
    }

    /// What a message says of its sender's vote and disk.
    pub(super) fn tell_checkers(&mut self, machine: MachineId, message: &Message) {
        let Message { term, from, to, index, .. } = *message;
        match message.get_msg_type() {
            MessageType::MsgRequestVoteResponse if !message.reject => {
                self.tell(machine, &Event::Voted { term, from, to });
            }
            MessageType::MsgAppendResponse if !message.reject => {
                self.tell(machine, &Event::Acknowledged { term, from, to, index });
            }
            _ => {}
        }
    }

    /// Tells who the members are, whenever the engine has applied something.
    pub(super) fn tell_members(&mut self, machine: MachineId, process: &mut Process) {
        let cursors = process.engine.cursors();
        if process.told == Some(cursors) || !process.members.borrow().formation.is_formed() {
            return;
        }
        process.told = Some(cursors);
        let (id, ticks, conf) = (process.id, process.ticks, process.engine.conf_state());
        let standpoint = Standpoint { id, ticks, cursors, conf: &conf, membership: process.engine.membership() };
        self.tell(machine, &Event::Members(standpoint));
    }

    /// The members as whoever has applied most knows them; the founders, as long as nobody is formed.
    pub(super) fn newest_members(&self) -> Newest {
        let processes = self.machines.iter().filter(|machine| !machine.old).filter_map(|it| it.process.as_ref());
        let formed = processes.filter(|process| process.members.borrow().formation.is_formed());
        let newest = formed.max_by_key(|process| process.engine.membership().version);
        let founders = || (0..self.plan.nodes).map(|machine| machine as NodeId + 1);
        newest.map_or_else(
            || Newest {
                conf: ConfState { voters: founders().collect(), ..Default::default() },
                members: founders().collect(),
                retired: Vec::new(),
                version: BOOTSTRAP.0,
            },
            |process| {
                let membership = process.engine.membership();
                Newest {
                    conf: process.engine.conf_state(),
                    members: membership.members.keys().copied().collect(),
                    retired: membership.retired.intervals().to_vec(),
                    version: membership.version,
                }
            },
        )
    }

    /// Whether those of whom `is_there` holds can decide, whoever's members count.
    ///
    /// A removed node stops when it hears so from one of the others. If that one is lost for good before the rest hears of the
    /// removal, the rest needs the votes of those who are gone. So a quorum of what every running node takes for the members
    /// is kept.
    pub(super) fn goes_on(&self, is_there: impl Fn(NodeId) -> bool) -> bool {
        let newest = self.newest_members();
        let is_removed = |id: NodeId| newest.retired.iter().any(|(first, last)| (*first..=*last).contains(&id));
        let is_there = |id| is_there(id) && !is_removed(id);
        let processes = self.machines.iter().filter(|machine| !machine.old && !is_removed(machine.node));
        let processes = processes.filter_map(|machine| machine.process.as_ref());
        let mut formed = processes.filter(|process| process.members.borrow().formation.is_formed());
        newest.has_quorum(is_there) && formed.all(|process| has_quorum(&process.engine.conf_state(), is_there))
    }

    /// A disk that was lost before the cluster was formed is a founder's like any other once it is.
    pub(super) fn count_in(&mut self, machine: MachineId, process: &Process) {
        let at = &mut self.machines[machine];
        if at.out && !at.old {
            let known = process.engine.membership().members.get(&process.id);
            at.out = known.is_none_or(|member| member.identity != process.members.borrow().record.identity);
        }
    }

    /// Whether a machine runs this node that has lost nothing.
    pub(super) fn is_healthy(&self, id: NodeId) -> bool {
        let machines = self.machines[..self.plan.machines()].iter();
        machines.filter(|machine| machine.runs && !machine.out).any(|machine| machine.node == id)
    }

    /// Nodes that joined by their names, have had the time to get a vote, and have none.
    pub(super) fn wait_for_votes(&self, newest: &Newest) -> Vec<NodeId> {
        let machines = self.machines[..self.plan.machines()].iter().filter(|machine| !machine.out);
        let named = machines.filter_map(|machine| machine.process.as_ref()).filter(|process| process.name.is_some());
        let seek = named.filter(|process| {
            let member = process.engine.membership().members.get(&process.id);
            newest.members.contains(&process.id) && member.is_some_and(|member| member.seeks_vote)
        });
        seek.map(|process| process.id).collect()
    }

    /// Nodes that run on though they were removed. One that knows of no voter any more cannot hear so.
    pub(super) fn removed_and_runs(&self, newest: &Newest) -> Vec<NodeId> {
        let is_removed = |id: NodeId| newest.retired.iter().any(|(first, last)| (*first..=*last).contains(&id));
        let knows_one = |process: &Process| {
            let mut dialled = process.addresses.iter();
            dialled.any(|(id, address)| {
                let machines = (0..self.plan.machines()).filter(|machine| self.machines[*machine].node == *id);
                newest.members.contains(id)
                    && machines.filter(|machine| !self.machines[*machine].out).any(|machine| {
                        let runs = self.machines[machine].process.as_ref();
                        *address == self.address(machine)
                            && runs
                                .is_some_and(|it| it.engine.membership().version == newest.version && it.engine.votes())
                    })
            })
        };
        let processes = self.machines[..self.plan.machines()].iter().filter_map(|machine| machine.process.as_ref());
        let left = processes.filter(|process| is_removed(process.id) && knows_one(process));
        left.filter(|process| process.ticks * self.plan.tuning.tick().as_nanos() as u64 > 5 * SECOND)
            .map(|process| process.id)
            .collect()
    }
}

/// The members at some moment.
#[derive(Debug)]
pub(super) struct Newest {
    /// Who votes and learns.
    pub conf: ConfState,
    /// All of them.
    pub members: Vec<NodeId>,
    /// Who was one: first and last of each interval.
    pub retired: Vec<(NodeId, NodeId)>,
    /// Index of the last change.
    pub version: u64,
}

impl Newest {
    /// Whether those of whom `is_there` holds can decide, in both halves.
    pub fn has_quorum(&self, is_there: impl Fn(NodeId) -> bool) -> bool {
        has_quorum(&self.conf, is_there)
    }
}

/// Whether those of whom `is_there` holds are a majority of both halves.
pub(super) fn has_quorum(conf: &ConfState, is_there: impl Fn(NodeId) -> bool) -> bool {
    let decides =
        |half: &[NodeId]| half.is_empty() || 2 * half.iter().filter(|voter| is_there(**voter)).count() > half.len();
    decides(&conf.voters) && decides(&conf.voters_outgoing)
}
