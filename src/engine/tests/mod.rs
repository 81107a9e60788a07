//! A whole cluster in one thread: engines, a disk that is fsynced when a test says so, a network of queues.
//!
//! Each guard of the rules and each trap of raft-rs has a test in a file named after it.

mod admission;
mod delivery;
mod elections;
mod exactly_once;
mod hostile;
mod leadership;
mod members;
mod outcomes;
mod pipeline;
mod reading;
mod routes;
mod snapshots;
mod starting;
mod telling;
mod transfer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use prost::Message as _;
use raft::eraftpb::Message;

use super::command::Command;
use super::*;
use crate::storage::snapshot::{self as files, SnapshotName};
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
    pub applied: Vec<Done>,
    pub resolved: BTreeMap<Token, u64>,
    pub failed: Vec<(Token, Failure)>,
    pub barriers: Vec<(Token, u64)>,
    pub leadership: Leadership,
    pub refused: Vec<Refused>,
    /// Snapshots on its disk: the engine's part, and what the application had applied.
    pub files: Files,
    /// While set, the application takes no snapshots; they come to their end when it is cleared.
    pub captures_stalled: bool,
    pub captured: Vec<SnapshotName>,
    pub restored: Vec<u64>,
    pub snapshots: Vec<(Token, u64)>,
    pub transferred: Vec<(Token, NodeId)>,
    pub changed: Vec<(Token, Vec<NodeId>)>,
    /// Versions of the members that others may hear of.
    pub published: Vec<u64>,
}

/// What travels.
#[derive(Debug)]
pub(super) enum Packet {
    Raft(Box<Message>),
    Forward(Command),
    Reject(Rejection),
    Snapshot(SnapshotName, Box<Message>),
}

/// The cluster.
pub(super) struct World {
    pub machines: BTreeMap<NodeId, Machine>,
    pub network: VecDeque<(NodeId, NodeId, Packet)>,
    pub cut: BTreeSet<(NodeId, NodeId)>,
    pub now: Now,
    boots: BTreeMap<NodeId, u64>,
    /// Who founded it.
    members: Vec<NodeId>,
    /// What all nodes are started with.
    pub policy: SnapshotPolicy,
}

/// Only when somebody asks.
pub(super) const ON_DEMAND: SnapshotPolicy =
    SnapshotPolicy { possible: true, entries: u64::MAX, bytes: u64::MAX, trail: 0 };

pub(super) fn settings(id: NodeId, boot: u64, voters: &[NodeId]) -> Settings {
    Settings {
        id,
        boot,
        nonce: 100 * id + boot,
        voters: voters.to_vec(),
        identities: voters.iter().map(|id| (*id, u128::from(*id))).collect(),
        election_ticks: ELECTION_TICKS,
        heartbeat_ticks: 2,
        seed: id,
        max_entry_bytes: 1 << 20,
        max_message_bytes: 1 << 20,
        max_inflight_messages: 256,
        max_uncommitted_bytes: 1 << 26,
        max_fresh_bytes: 1 << 20,
        entry_cache_bytes: 1 << 20,
        snapshots: ON_DEMAND,
    }
}

fn bootstrap() -> GroupState {
    let mut state = GroupState { truncated: BOOTSTRAP, last_index: BOOTSTRAP.0, ..Default::default() };
    state.hard_state.term = BOOTSTRAP.1;
    state.hard_state.commit = BOOTSTRAP.0;
    state
}

/// An entry that the application has applied: index, payload, replicated time.
type Done = (u64, Vec<u8>, u64);
type Files = BTreeMap<SnapshotName, (Vec<u8>, Vec<Done>)>;

pub(super) fn named_snapshot(state: &GroupState) -> Option<SnapshotName> {
    state.records.get(files::RECORD).map(|bytes| SnapshotName::decode(bytes.as_slice()).unwrap())
}

fn machine(settings: &Settings, state: GroupState, disk: Opened, files: Files, fresh: bool) -> Machine {
    machine_with(settings, state, disk, files, fresh, None)
}

/// With an application that holds `durable` by itself.
fn machine_with(
    settings: &Settings,
    state: GroupState,
    mut disk: Opened,
    files: Files,
    fresh: bool,
    durable: Option<(u64, u64)>,
) -> Machine {
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
    let snapshot = named_snapshot(&state).map(|name| (name, snapshot::Meta::decode(&files[&name].0).unwrap()));
    let opening = Opening { state: state.clone(), snapshot, durable, is_fresh: fresh };
    Machine {
        engine: Engine::new(settings, opening, disk.reader.clone(), &logger).unwrap(),
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
        files,
        captures_stalled: false,
        captured: Vec::new(),
        restored: Vec::new(),
        snapshots: Vec::new(),
        transferred: Vec::new(),
        changed: Vec::new(),
        published: Vec::new(),
    }
}

impl World {
    pub fn new(nodes: u64) -> Self {
        Self::with(nodes, ON_DEMAND)
    }

    /// A world whose nodes take snapshots like this.
    pub fn with(nodes: u64, policy: SnapshotPolicy) -> Self {
        let members = (1..=nodes).collect::<Vec<_>>();
        let mut world = Self {
            machines: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            now: Now { boottime_ns: 1_000_000_000, wall_ns: 7 },
            boots: members.iter().map(|id| (*id, 1)).collect(),
            members: members.clone(),
            policy,
        };
        for id in &members {
            let settings = Settings { snapshots: policy, ..settings(*id, 1, &members) };
            let mut machine = machine(&settings, bootstrap(), storage::memory::open(), Files::new(), true);
            for peer in members.iter().filter(|peer| *peer != id) {
                machine.engine.handle_route(*peer);
            }
            world.machines.insert(*id, machine);
        }
        world
    }

    /// Another node, with an empty log; it is a member when the others say so.
    pub fn join(&mut self, id: NodeId) {
        let settings = Settings { snapshots: self.policy, ..settings(id, 1, &self.members) };
        let mut machine = machine(&settings, bootstrap(), storage::memory::open(), Files::new(), true);
        for (peer, other) in &mut self.machines {
            machine.engine.handle_route(*peer);
            other.engine.handle_route(id);
        }
        self.boots.insert(id, 1);
        self.machines.insert(id, machine);
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
                Effect::SendSnapshot { name, message } => {
                    self.network.push_back((id, message.to, Packet::Snapshot(name, message)));
                }
                Effect::Snapshot { token, index } => machine.snapshots.push((token, index)),
                Effect::Transferred { token, leader } => machine.transferred.push((token, leader)),
                Effect::Changed { token, ids, .. } => machine.changed.push((token, ids)),
                Effect::Membership => machine.published.push(machine.engine.membership().version),
            }
        }
        if !machine.captures_stalled {
            for name in std::mem::take(&mut machine.captured) {
                machine.engine.handle_captured(name.index, Ok(name));
            }
        }
        while !machine.application_stalled {
            let batch = match machine.engine.hand_out(1 << 16).unwrap() {
                None => break,
                Some(HandOut::Apply(batch)) => batch,
                Some(HandOut::Capture(Marker { index, term, meta })) => {
                    let name = SnapshotName { group: APPLICATION_GROUP, index, term, bytes: 0, checksum: 0 };
                    machine.files.insert(name, (meta.encode(), machine.applied.clone()));
                    machine.captured.push(name);
                    continue;
                }
                Some(HandOut::Restore(name)) => {
                    machine.applied = machine.files[&name].1.clone();
                    machine.restored.push(name.index);
                    machine.engine.handle_application_applied(name.index);
                    continue;
                }
            };
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
            let (number, sync, name) = (persist.number, persist.sync, persist.snapshot);
            let write = persist.into_write();
            machine.state.apply(&write).unwrap();
            machine.disk.writer.write(Batch { groups: vec![write], node_records: vec![], sync }).unwrap();
            machine.engine.handle_persisted(number);
            if let Some(name) = name {
                machine.engine.handle_recorded(name);
            }
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        if !self.cut.contains(&(from, to)) {
            self.deliver_anyway(from, to, packet);
        }
    }

    /// It was on its way before the cut.
    fn deliver_anyway(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        if let Packet::Snapshot(name, message) = packet {
            let file = self.machines[&from].files[&name].clone();
            let machine = self.machine(to);
            let meta = snapshot::Meta::decode(&file.0).unwrap();
            machine.files.insert(name, file);
            if let Err(refused) = machine.engine.handle_snapshot(from, *message, name, meta) {
                machine.refused.push(refused);
            }
            return self.machine(from).engine.handle_snapshot_sent(to, true);
        }
        let Some(machine) = self.machines.get_mut(&to) else { return };
        match packet {
            Packet::Snapshot(..) => {}
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
        self.quieten();
        // Together, what they had to tell one another included.
        while self.machines.values_mut().map(|machine| machine.engine.hurry()).fold(false, |any, it| any | it) {
            self.quieten();
        }
    }

    /// Runs until nothing moves at this moment.
    pub fn quieten(&mut self) {
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

    /// Everybody ticks once, and snapshots for `id` are held back in `held`.
    pub fn tick_without(&mut self, id: NodeId, held: &mut Vec<(NodeId, NodeId, Packet)>) {
        self.now.boottime_ns += 25_000_000;
        for machine in self.machines.values_mut() {
            machine.engine.handle_tick();
        }
        for _ in 0..20 {
            for machine in self.machines.keys().copied().collect::<Vec<_>>() {
                self.poll(machine);
                self.sync(machine);
                self.poll(machine);
            }
            for (from, to, packet) in std::mem::take(&mut self.network) {
                match packet {
                    Packet::Snapshot(..) if to == id => held.push((from, to, packet)),
                    packet => self.deliver(from, to, packet),
                }
            }
        }
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
        for other in self.machines.keys().copied().collect::<Vec<_>>() {
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
        self.restart_with(id, None);
    }

    /// The same, with an application that holds its state durably through `durable`.
    pub fn restart_with(&mut self, id: NodeId, durable: Option<(u64, u64)>) {
        let old = self.machines.remove(&id).unwrap();
        let boot = self.boots.entry(id).and_modify(|boot| *boot += 1).or_default();
        let settings = Settings { snapshots: self.policy, ..settings(id, *boot, &self.members) };
        let mut machine = machine_with(&settings, old.state, old.disk, old.files, false, durable);
        if durable.is_some() {
            machine.applied = old.applied;
        }
        for peer in self.machines.keys() {
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

/// A log, and nothing beside it.
pub(super) fn opening(state: GroupState) -> Opening {
    Opening { state, snapshot: None, durable: None, is_fresh: false }
}
