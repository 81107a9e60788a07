//! A whole cluster in one thread: engines, a disk that is fsynced when a test says so, a network of queues.
//!
//! Each guard of the rules and each trap of raft-rs has a test in a file named after it.

mod admission;
mod delivery;
mod elections;
mod exactly_once;
mod hostile;
mod leadership;
mod outcomes;
mod pipeline;
mod reading;
mod routes;
mod starting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::eraftpb::Message;

use super::command::Command;
use super::*;
use crate::storage::{self, Batch, GroupState, GroupWrite, Opened};

pub(super) const ELECTION_TICKS: usize = 10;

/// One machine: an engine, its disk, and what its application has seen.
pub(super) struct Machine {
    pub engine: Engine,
    pub disk: Opened,
    /// What a restart will find.
    pub state: GroupState,
    /// Written by the engine, not yet fsynced.
    pub unsynced: VecDeque<Persist>,
    /// While set, nothing reaches the disk.
    pub disk_stalled: bool,
    /// While set, the application takes nothing and applies nothing.
    pub application_stalled: bool,
    pub applied: Vec<(u64, Vec<u8>, u64)>,
    pub resolved: BTreeMap<Token, u64>,
    pub failed: Vec<(Token, Failure)>,
    pub barriers: Vec<(Token, u64)>,
    pub leadership: Leadership,
    pub refused: Vec<Refused>,
}

/// What travels.
#[derive(Debug)]
pub(super) enum Packet {
    Raft(Box<Message>),
    Forward(Command),
    Reject(Rejection),
}

/// The cluster.
pub(super) struct World {
    pub machines: BTreeMap<NodeId, Machine>,
    pub network: VecDeque<(NodeId, NodeId, Packet)>,
    pub cut: BTreeSet<(NodeId, NodeId)>,
    pub now: Now,
    boots: BTreeMap<NodeId, u64>,
    members: Vec<NodeId>,
}

pub(super) fn settings(id: NodeId, boot: u64, voters: &[NodeId]) -> Settings {
    Settings {
        id,
        boot,
        nonce: 100 * id + boot,
        voters: voters.to_vec(),
        election_ticks: ELECTION_TICKS,
        heartbeat_ticks: 2,
        seed: id,
        max_entry_bytes: 1 << 20,
        max_message_bytes: 1 << 20,
        max_inflight_messages: 256,
        max_uncommitted_bytes: 1 << 26,
        max_fresh_bytes: 1 << 20,
        entry_cache_bytes: 1 << 20,
    }
}

fn bootstrap() -> GroupState {
    let mut state = GroupState { truncated: BOOTSTRAP, last_index: BOOTSTRAP.0, ..Default::default() };
    state.hard_state.term = BOOTSTRAP.1;
    state.hard_state.commit = BOOTSTRAP.0;
    state
}

fn machine(settings: &Settings, state: GroupState, mut disk: Opened, fresh: bool) -> Machine {
    if fresh {
        let group = APPLICATION_GROUP;
        let write = GroupWrite {
            group,
            truncated: Some(state.truncated),
            hard_state: Some(state.hard_state.clone()),
            ..Default::default()
        };
        disk.writer.write(Batch { groups: vec![write], node_records: vec![], sync: true }).unwrap();
    }
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    Machine {
        engine: Engine::new(settings, state.clone(), disk.reader.clone(), &logger, fresh).unwrap(),
        disk,
        state,
        unsynced: VecDeque::new(),
        disk_stalled: false,
        application_stalled: false,
        applied: Vec::new(),
        resolved: BTreeMap::new(),
        failed: Vec::new(),
        barriers: Vec::new(),
        leadership: Leadership::default(),
        refused: Vec::new(),
    }
}

impl World {
    pub fn new(nodes: u64) -> Self {
        let members = (1..=nodes).collect::<Vec<_>>();
        let mut world = Self {
            machines: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            now: Now { boottime_ns: 1_000_000_000, wall_ns: 7 },
            boots: members.iter().map(|id| (*id, 1)).collect(),
            members: members.clone(),
        };
        for id in &members {
            let mut machine = machine(&settings(*id, 1, &members), bootstrap(), storage::memory::open(), true);
            for peer in members.iter().filter(|peer| *peer != id) {
                machine.engine.handle_route(*peer);
            }
            world.machines.insert(*id, machine);
        }
        world
    }

    /// A world that has elected `leader`.
    pub fn led_by(leader: NodeId, nodes: u64) -> Self {
        let mut world = Self::new(nodes);
        world.elect(leader);
        world
    }

    /// Ticks `id` alone until it leads.
    pub fn elect(&mut self, id: NodeId) {
        for round in 0..20 * ELECTION_TICKS {
            // The others' leases must run out before they vote, but their patience lasts longer.
            for (other, machine) in &mut self.machines {
                let timeout = if *other == id { ELECTION_TICKS } else { 2 * ELECTION_TICKS - 1 };
                machine.engine.raw.raft.set_randomized_election_timeout(timeout);
                if *other == id || (round <= ELECTION_TICKS && machine.leadership.leader != Some(*other)) {
                    machine.engine.handle_tick();
                }
            }
            self.settle();
            if self.machine(id).leadership.leading_from.is_some() {
                return;
            }
        }
        panic!("node {id} was not elected: {:?}", self.machine(id).engine.status());
    }

    pub fn machine(&mut self, id: NodeId) -> &mut Machine {
        self.machines.get_mut(&id).unwrap()
    }

    pub fn propose(&mut self, id: NodeId, token: Token, payload: &[u8]) {
        self.machine(id).engine.handle_proposal(token, Command::new(payload), u64::MAX);
    }

    pub fn read(&mut self, id: NodeId, token: Token) {
        self.machine(id).engine.handle_read(Reader { token, deadline_ns: u64::MAX });
    }

    /// Polls one machine and runs its effects; its disk keeps them to itself while it is stalled.
    pub fn poll(&mut self, id: NodeId) {
        let now = self.now;
        let machine = self.machines.get_mut(&id).unwrap();
        for effect in machine.engine.poll(now).unwrap() {
            match effect {
                Effect::Send(message) => self.network.push_back((id, message.to, Packet::Raft(message))),
                Effect::Forward { to, command } => self.network.push_back((id, to, Packet::Forward(command))),
                Effect::Reject { to, rejection } => self.network.push_back((id, to, Packet::Reject(rejection))),
                Effect::Persist(persist) => machine.unsynced.push_back(persist),
                Effect::Failed { token, failure } => machine.failed.push((token, failure)),
                Effect::Barrier { token, index } => machine.barriers.push((token, index)),
                Effect::Leadership(leadership) => machine.leadership = leadership,
            }
        }
        while !machine.application_stalled {
            let Some(batch) = machine.engine.hand_out(1 << 16).unwrap() else { break };
            for applied in batch.entries {
                if let Some(token) = applied.token {
                    assert_eq!(machine.resolved.insert(token, applied.index), None, "resolved twice");
                }
                let stamp = applied.command.header().timestamp_ns;
                machine.applied.push((applied.index, applied.command.payload().to_vec(), stamp));
            }
            machine.engine.handle_application_applied(batch.through);
        }
    }

    /// The disk of `id` writes and answers everything it was handed.
    pub fn sync(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).unwrap();
        while let Some(persist) = machine.unsynced.pop_front() {
            let Persist { number, entries, hard_state, sync } = persist;
            let group = APPLICATION_GROUP;
            let write = GroupWrite { group, entries, hard_state, ..Default::default() };
            machine.state.apply(&write).unwrap();
            machine.disk.writer.write(Batch { groups: vec![write], node_records: vec![], sync }).unwrap();
            machine.engine.handle_persisted(number);
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        if self.cut.contains(&(from, to)) {
            return;
        }
        let Some(machine) = self.machines.get_mut(&to) else { return };
        match packet {
            Packet::Raft(message) => {
                if let Err(refused) = machine.engine.handle_message(from, *message) {
                    machine.refused.push(refused);
                }
            }
            Packet::Forward(command) => assert!(machine.engine.handle_forwarded(from, command)),
            Packet::Reject(rejection) => machine.engine.handle_rejection(from, &rejection),
        }
    }

    /// Runs until nothing moves.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            let ids = self.machines.keys().copied().collect::<Vec<_>>();
            for id in &ids {
                self.poll(*id);
                if !self.machine(*id).disk_stalled {
                    self.sync(*id);
                    self.poll(*id);
                }
            }
            if self.network.is_empty() {
                return;
            }
            while let Some((from, to, packet)) = self.network.pop_front() {
                self.deliver(from, to, packet);
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// Everybody ticks `count` times.
    pub fn tick(&mut self, count: usize) {
        for _ in 0..count {
            self.now.boottime_ns += 25_000_000;
            for machine in self.machines.values_mut() {
                machine.engine.handle_tick();
            }
            self.settle();
        }
    }

    pub fn isolate(&mut self, id: NodeId) {
        for other in self.members.clone() {
            self.cut.extend([(id, other), (other, id)]);
        }
    }

    /// Ends every cut; connections come up anew.
    pub fn heal(&mut self) {
        for (from, to) in std::mem::take(&mut self.cut) {
            if from != to {
                if let Some(machine) = self.machines.get_mut(&from) {
                    machine.engine.handle_route(to);
                }
            }
        }
    }

    /// kill -9 and a new start: what was not written is gone, the log is not.
    pub fn restart(&mut self, id: NodeId) {
        let old = self.machines.remove(&id).unwrap();
        let boot = self.boots.entry(id).and_modify(|boot| *boot += 1).or_default();
        let mut machine = machine(&settings(id, *boot, &self.members), old.state, old.disk, false);
        for peer in self.members.iter().filter(|peer| **peer != id) {
            machine.engine.handle_route(*peer);
        }
        self.network.retain(|(from, to, _)| *from != id && *to != id);
        self.machines.insert(id, machine);
        for (other, machine) in &mut self.machines {
            if *other != id {
                machine.engine.handle_route(id);
            }
        }
        self.settle();
    }

    /// Every application saw the same commands; returns their payloads.
    pub fn agreed(&self) -> Vec<Vec<u8>> {
        let mut machines = self.machines.values();
        let first = &machines.next().unwrap().applied;
        for machine in machines {
            assert_eq!(&machine.applied, first);
        }
        assert!(first.is_sorted_by_key(|(index, _, _)| *index));
        assert!(first.is_sorted_by_key(|(_, _, stamp)| *stamp), "replicated time ran back");
        first.iter().map(|(_, payload, _)| payload.clone()).collect()
    }
}
