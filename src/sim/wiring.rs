//! How processes find each other: dialling, the handshake with its gate, routes, and packets on their way.
//!
//! The rules are those of `transport`: a connection is one ordered stream; a node sends on the connection that it
//! dialled, else on the newest one that its peer dialled; a peer that has started again loses its old connections.

use std::rc::Rc;

use super::clock::{Time, MS, SECOND};
use super::machine::Process;
use super::network::{ConnectionId, MachineId, Occurred, Packet, Place, ACCEPTOR, DIALLER};
use super::round::fingerprint;
use super::world::{Happening, World};
use crate::engine::NodeId;
use crate::transport::handshake::check_ends;
use crate::transport::{Gate as _, Hello, Refusal, RefusalCode};

const REDIAL_MIN: Time = 50 * MS;
const REDIAL_MAX: Time = 2 * SECOND;
/// Connections of one peer that dialled.
const INBOUND_MAX: usize = 4;

/// What a process makes of another one's hello.
enum Judged {
    /// A connection.
    In(ConnectionId),
    /// Its start has yet to be written down.
    NotYet,
    /// No.
    Refused(RefusalCode),
    /// It came too late.
    Late,
}

impl World {
    /// A packet's way takes so long.
    pub(super) fn way(&mut self, from: MachineId, to: MachineId) -> Time {
        let (least, most) = self.plan.latency;
        let delay = self.wires.delay(from, to);
        self.rng.u64(least..=most) + if delay > 0 { self.rng.u64(0..delay) } else { 0 }
    }

    fn process(&mut self, place: Place) -> Option<&mut Process> {
        self.machines[place.machine].process.as_mut().filter(|process| process.place == place)
    }

    /// Runs something with a process, which is away from its machine meanwhile.
    pub(super) fn with<T>(&mut self, place: Place, run: impl FnOnce(&mut Self, &mut Process) -> T) -> Option<T> {
        let process = self.machines[place.machine].process.take_if(|process| process.place == place);
        let mut process = process?;
        let result = run(self, &mut process);
        self.machines[place.machine].process = Some(process);
        Some(result)
    }

    pub(super) fn dial(&mut self, place: Place, peer: NodeId) {
        let paused_until = self.machines[place.machine].paused_until;
        if paused_until > self.now {
            return self.happens(paused_until, Happening::Dial(place, peer));
        }
        let Some(process) = self.process(place) else { return };
        let entry = process.peers.entry(peer).or_default();
        if entry.dialled.is_some() {
            entry.dialling = false;
            return;
        }
        entry.dialling = true;
        let hello = Rc::new(process.gate.hello(peer));
        let Some(address) = process.addresses.get(&peer).cloned() else {
            // Nobody dials it any more.
            process.peers.entry(peer).or_default().dialling = false;
            return;
        };
        let target = (0..self.plan.machines()).find(|machine| address == self.address(*machine));
        let there = target.filter(|target| !self.wires.is_blocked(place.machine, *target));
        match there {
            Some(target) if !self.wires.is_blocked(target, place.machine) => {
                let at = self.now + self.way(place.machine, target);
                self.happens(at, Happening::Greet(place, target, hello));
            }
            _ => self.redial(place, peer, SECOND),
        }
    }

    /// An attempt has failed, or a connection has ended: the next one comes after a pause.
    fn redial(&mut self, place: Place, peer: NodeId, took: Time) {
        let chance = self.rng.f64() / 2.0 + 0.5;
        let Some(process) = self.process(place) else { return };
        let entry = process.peers.entry(peer).or_default();
        entry.dialling = true;
        entry.pause = (2 * entry.pause).clamp(REDIAL_MIN, REDIAL_MAX);
        let pause = entry.pause as f64 * chance;
        let at = self.now + took + pause as Time;
        self.happens(at, Happening::Dial(place, peer));
    }

    pub(super) fn greet(&mut self, from: Place, to: MachineId, hello: &Rc<Hello>) {
        let paused_until = self.machines[to].paused_until;
        if paused_until > self.now {
            return self.happens(paused_until, Happening::Greet(from, to, Rc::clone(hello)));
        }
        let peer = hello.to;
        let Some(place) = self.machines[to].process.as_ref().map(|process| process.place) else {
            return self.redial(from, peer, MS);
        };
        let connected = self.with(place, |world, process| {
            let ours = Rc::new(process.gate.hello(hello.from));
            if let Err(refusal) = check_ends(&ours, hello).and_then(|()| process.gate.admit(hello)) {
                world.refused(process.id, hello.from, &refusal.reason);
                return Judged::Refused(refusal.code);
            }
            // The record that names this start has to be durable before it is answered.
            if !process.members.borrow().remembers(hello.from) {
                return Judged::NotYet;
            }
            Judged::In(world.wires.connect([from, place], [Rc::clone(hello), ours]))
        });
        let way = self.way(to, from.machine);
        match connected {
            Some(Judged::NotYet) => {
                self.wake_soon(to);
                self.happens(self.now + MS, Happening::Greet(from, to, Rc::clone(hello)));
            }
            Some(Judged::In(connection)) => {
                if let Some(connection) = self.wires.connections.get_mut(&connection) {
                    connection.streams[ACCEPTOR].last_arrival = self.now + way;
                }
                self.happens(self.now + way, Happening::Welcome(connection));
            }
            Some(Judged::Refused(code)) => {
                // This node may have heard of its own end.
                self.wake_soon(to);
                self.happens(self.now + way, Happening::Refused(from, code));
                self.redial(from, peer, way);
            }
            Some(Judged::Late) | None => self.redial(from, peer, way),
        }
    }

    fn refused(&mut self, by: NodeId, whom: NodeId, reason: &str) {
        self.figures.refused += 1;
        self.trace.note(self.now, &[5, by, whom], || format!("node {by} refuses node {whom}: {reason}"));
    }

    pub(super) fn welcome(&mut self, id: ConnectionId) {
        // Broken before it was whole: it is dialled again.
        let Some(connection) = self.wires.connections.get(&id).filter(|it| it.open[DIALLER]) else { return };
        let (ends, hellos) = (connection.ends, connection.hellos.clone());
        let (dialler, peer) = (ends[DIALLER], hellos[DIALLER].to);
        let paused_until = self.machines[dialler.machine].paused_until;
        if paused_until > self.now {
            return self.happens(paused_until, Happening::Welcome(id));
        }
        if self.wires.is_blocked(ends[ACCEPTOR].machine, dialler.machine) || !connection.open[ACCEPTOR] {
            self.hang_up(id, DIALLER);
            return self.redial(dialler, peer, SECOND);
        }
        let admitted = self.with(dialler, |world, process| {
            let (ours, theirs) = (&hellos[DIALLER], &hellos[ACCEPTOR]);
            let judged = if theirs.from == peer {
                check_ends(ours, theirs)
            } else {
                Err(Refusal::new(RefusalCode::WrongNode, "another node"))
            };
            let judged = judged.and_then(|()| process.gate.admit(theirs));
            match judged {
                Ok(()) if !process.members.borrow().remembers(peer) => Judged::NotYet,
                Ok(()) if world.admit(process, id, DIALLER) => Judged::In(id),
                Ok(()) => Judged::Late,
                Err(refusal) => {
                    world.refused(process.id, peer, &refusal.reason);
                    Judged::Refused(refusal.code)
                }
            }
        });
        match admitted {
            Some(Judged::In(_)) => {
                let at = self.now + self.way(dialler.machine, ends[ACCEPTOR].machine);
                if let Some(connection) = self.wires.connections.get_mut(&id) {
                    connection.streams[DIALLER].last_arrival = at;
                }
                self.happens(at, Happening::Confirm(id));
                self.wake_soon(dialler.machine);
            }
            Some(Judged::NotYet) => {
                self.happens(self.now + MS, Happening::Welcome(id));
                self.wake_soon(dialler.machine);
            }
            Some(Judged::Refused(_) | Judged::Late) => {
                self.wake_soon(dialler.machine);
                self.hang_up(id, DIALLER);
                self.redial(dialler, peer, MS);
            }
            None => self.hang_up(id, DIALLER),
        }
    }

    /// The dialler has said yes as well: only now does the acceptor speak, and listen.
    pub(super) fn confirm(&mut self, id: ConnectionId) {
        let Some(connection) = self.wires.connections.get(&id).filter(|it| it.open[ACCEPTOR]) else { return };
        let (ends, hello) = (connection.ends, Rc::clone(&connection.hellos[DIALLER]));
        let acceptor = ends[ACCEPTOR];
        let paused_until = self.machines[acceptor.machine].paused_until;
        if paused_until > self.now {
            return self.happens(paused_until, Happening::Confirm(id));
        }
        let is_lost = self.wires.is_blocked(ends[DIALLER].machine, acceptor.machine) || !connection.open[DIALLER];
        let admitted = self.with(acceptor, |world, process| {
            !is_lost && process.gate.admit(&hello).is_ok() && world.admit(process, id, ACCEPTOR)
        });
        match admitted {
            Some(true) => self.wake_soon(acceptor.machine),
            Some(false) | None => self.hang_up(id, ACCEPTOR),
        }
    }

    /// Makes a connection part of a process; `false` if it came too late (`transport::Peers::admit`).
    fn admit(&mut self, process: &mut Process, id: ConnectionId, end: usize) -> bool {
        let Some(connection) = self.wires.connections.get(&id) else { return false };
        let hello = Rc::clone(&connection.hellos[1 - end]);
        let (peer, boot) = (hello.from, hello.boot);
        let boot_of = |world: &Self, process: &Process, other: ConnectionId| {
            let connection = world.wires.connections.get(&other)?;
            Some(connection.hellos[1 - connection.end_of(process.place)].boot)
        };
        let entry = process.peers.entry(peer).or_default();
        let mut outdated = Vec::new();
        let others = entry.connections().collect::<Vec<_>>();
        if end == ACCEPTOR && entry.inbound.len() >= INBOUND_MAX {
            outdated.extend(entry.inbound.first().copied());
        }
        if end == DIALLER {
            outdated.extend(entry.dialled);
        }
        for other in others {
            match boot_of(self, process, other) {
                Some(theirs) if theirs > boot => {
                    self.wires.connections.remove(&id);
                    return false;
                }
                Some(theirs) if theirs < boot => {
                    outdated.retain(|outdated| *outdated != other);
                    self.close_local(process, other);
                }
                _ => {}
            }
        }
        let entry = process.peers.entry(peer).or_default();
        if end == DIALLER {
            entry.dialled = Some(id);
            entry.dialling = false;
            entry.pause = 0;
        } else {
            entry.inbound.push(id);
        }
        self.trace.note(self.now, &[6, id, end as u64], || {
            format!("node {}: connection {id} to node {peer} (boot {boot})", process.id)
        });
        reroute(process, peer, Some(hello), true);
        for other in outdated {
            self.close_local(process, other);
        }
        self.replay(process, peer, id, end);
        true
    }

    /// A process closes its end of a connection.
    pub(super) fn close_local(&mut self, process: &mut Process, id: ConnectionId) {
        let Some(connection) = self.wires.connections.get(&id) else { return };
        let end = connection.end_of(process.place);
        let peer = connection.hellos[1 - end].from;
        let Some(entry) = process.peers.get_mut(&peer) else { return };
        // Perhaps it was in the middle of its handshake.
        let was_dialled = end == DIALLER;
        entry.forget(id);
        self.trace.note(self.now, &[7, id], || format!("node {}: connection {id} to node {peer} ends", process.id));
        reroute(process, peer, None, false);
        self.hang_up(id, end);
        if was_dialled {
            let (place, pause) = (process.place, self.rng.u64(REDIAL_MIN / 2..REDIAL_MIN));
            self.happens(self.now + pause, Happening::Dial(place, peer));
        }
    }

    /// This end lets go; the other one hears of it, if anything passes.
    pub(super) fn hang_up(&mut self, id: ConnectionId, end: usize) {
        let Some(connection) = self.wires.connections.get_mut(&id) else { return };
        connection.open[end] = false;
        let (from, to) = (connection.ends[end].machine, connection.ends[1 - end].machine);
        if !connection.open[1 - end] {
            self.wires.connections.remove(&id);
            return;
        }
        // What was sent before arrives before.
        let sent = connection.streams[end].last_arrival;
        let takes = if self.wires.is_blocked(from, to) { self.rng.u64(SECOND..5 * SECOND) } else { self.way(from, to) };
        self.happens(sent.max(self.now + takes), Happening::Closed(id, 1 - end));
    }

    /// This end hears that the connection is over.
    pub(super) fn close_end(&mut self, id: ConnectionId, end: usize) {
        let Some(connection) = self.wires.connections.get(&id).filter(|connection| connection.open[end]) else {
            return;
        };
        let place = connection.ends[end];
        if self.with(place, |world, process| world.close_local(process, id)).is_some() {
            self.wake_soon(place.machine);
        } else {
            self.hang_up(id, end);
        }
    }

    /// Nothing was heard for too long, if that is still so.
    pub(super) fn silent(&mut self, id: ConnectionId, end: usize) {
        let Some(connection) = self.wires.connections.get(&id) else { return };
        let [one, other] = connection.ends.map(|place| place.machine);
        if self.wires.is_blocked(one, other) || self.wires.is_blocked(other, one) {
            self.close_end(id, end);
        }
    }

    /// Writes what a round has to send, each packet on the route of that moment.
    pub(super) fn flush(&mut self, process: &mut Process) {
        for (peer, packet) in std::mem::take(&mut process.outbox) {
            let Some(id) = process.peers.get(&peer).and_then(super::network::Peer::route) else { continue };
            self.send(process.place, id, packet);
        }
    }

    fn send(&mut self, place: Place, id: ConnectionId, packet: Packet) {
        let Some(connection) = self.wires.connections.get(&id) else { return };
        let end = connection.end_of(place);
        let way = self.way(place.machine, connection.ends[1 - end].machine);
        let Some(connection) = self.wires.connections.get_mut(&id) else { return };
        let stream = &mut connection.streams[end];
        stream.last_arrival = stream.last_arrival.max(self.now + way);
        stream.queue.push_back(packet);
        let at = stream.last_arrival;
        self.happens(at, Happening::Deliver(id, end));
    }

    pub(super) fn deliver(&mut self, id: ConnectionId, sender: usize) {
        let Some(connection) = self.wires.connections.get(&id) else { return };
        let (from, to) = (connection.ends[sender].machine, connection.ends[1 - sender]);
        let blocked = self.wires.is_blocked(from, to.machine);
        let Some(connection) = self.wires.connections.get_mut(&id) else { return };
        if blocked {
            connection.streams[sender].stalled += 1;
            return;
        }
        let Some(packet) = connection.streams[sender].queue.pop_front() else { return };
        if !connection.open[1 - sender] {
            return;
        }
        let (peer, recipient) = (connection.hellos[sender].from, connection.hellos[sender].to);
        if self.wires.loss_per_mille > 0 && self.rng.u32(0..1000) < self.wires.loss_per_mille {
            self.figures.lost += 1;
            return;
        }
        let newest = self.wires.newest.entry((from, to.machine)).or_default();
        self.figures.late += u64::from(*newest > id);
        *newest = id.max(*newest);
        self.trace.note(self.now, &[8, id, fingerprint(&packet)], || {
            format!("node {peer} -> node {recipient}: {}", describe(&packet))
        });
        let Some(process) = self.process(to) else { return };
        process.occurred.push(Occurred::Arrived(peer, packet));
        self.wake_soon(to.machine);
    }

    /// What stalled on the way from one machine to another is delivered.
    pub(super) fn unstall(&mut self) {
        let mut arrivals = Vec::new();
        let Self { wires, .. } = self;
        let ids = wires.connections.keys().copied().collect::<Vec<_>>();
        for id in ids {
            for sender in [DIALLER, ACCEPTOR] {
                let Some(connection) = wires.connections.get(&id) else { continue };
                let (from, to) = (connection.ends[sender].machine, connection.ends[1 - sender].machine);
                if wires.is_blocked(from, to) {
                    continue;
                }
                let Some(connection) = wires.connections.get_mut(&id) else { continue };
                let stalled = std::mem::take(&mut connection.streams[sender].stalled);
                arrivals.extend(std::iter::repeat_n((id, sender), stalled));
            }
        }
        for (id, sender) in arrivals {
            self.happens(self.now + MS, Happening::Deliver(id, sender));
        }
    }

    /// All connections between two machines break: of what is on its way some arrives, some is lost, and some comes
    /// once more on the next connection.
    pub(super) fn break_connections(&mut self, one: MachineId, other: MachineId) {
        let between = |ends: [Place; 2]| {
            let [dialler, acceptor] = ends.map(|place| place.machine);
            (dialler, acceptor) == (one, other) || (dialler, acceptor) == (other, one)
        };
        let ids = self.wires.connections.iter().filter(|(_, connection)| between(connection.ends));
        for id in ids.map(|(id, _)| *id).collect::<Vec<_>>() {
            for sender in [DIALLER, ACCEPTOR] {
                let Some(connection) = self.wires.connections.get_mut(&id) else { continue };
                let (from, to) = (connection.ends[sender], connection.ends[1 - sender]);
                let raft = |packet: &&Packet| matches!(packet, Packet::Raft(_));
                let again = connection.streams[sender].queue.iter().filter(raft).take(4).cloned().collect::<Vec<_>>();
                let arrive = if again.is_empty() { 0 } else { self.rng.usize(0..=again.len()) };
                self.wires.replays.push((from, to, again));
                for _ in 0..arrive {
                    self.deliver(id, sender);
                }
            }
            for end in [DIALLER, ACCEPTOR] {
                // One end may hear of it long before the other.
                let most = if self.rng.bool() { 50 * MS } else { 2 * SECOND };
                let at = self.now + self.rng.u64(0..most);
                self.happens(at, Happening::Closed(id, end));
            }
        }
    }

    fn replay(&mut self, process: &mut Process, peer: NodeId, id: ConnectionId, end: usize) {
        let Some(connection) = self.wires.connections.get(&id) else { return };
        let (from, to) = (connection.ends[end], connection.ends[1 - end]);
        let route = process.peers.get(&peer).and_then(super::network::Peer::route);
        let replays = std::mem::take(&mut self.wires.replays);
        for (sender, receiver, packets) in replays {
            if (sender, receiver) != (from, to) {
                self.wires.replays.push((sender, receiver, packets));
            } else if route == Some(id) {
                self.figures.repeated += packets.len() as u64;
                packets.into_iter().for_each(|packet| self.send(from, id, packet));
            }
        }
    }
}

/// Tells the driver if what is sent to `peer` takes another way than it knows of (`transport::Peers::reroute`).
fn reroute(process: &mut Process, peer: NodeId, hello: Option<Rc<Hello>>, is_new: bool) {
    let Some(entry) = process.peers.get_mut(&peer) else { return };
    let lost = entry.told.is_some_and(|told| !entry.connections().any(|connection| connection == told));
    let occurred = match (entry.told, entry.route()) {
        (told, route) if told == route => return,
        (None, Some(_)) => hello.filter(|_| is_new).map(|hello| Occurred::Up(peer, hello)),
        (Some(_), Some(_)) => lost.then_some(Occurred::Rerouted(peer)),
        (Some(_), None) => {
            process.outbox.retain(|(to, _)| *to != peer);
            Some(Occurred::Down(peer))
        }
        (None, None) => None,
    };
    entry.told = entry.route();
    process.occurred.extend(occurred);
}

fn describe(packet: &Packet) -> String {
    match packet {
        Packet::Raft(message) => format!(
            "{:?} term {} log_term {} index {} commit {} entries {} reject {}",
            message.get_msg_type(),
            message.term,
            message.log_term,
            message.index,
            message.commit,
            message.entries.len(),
            message.reject
        ),
        Packet::Forward(command) => format!("forwarded {:?}", command.header()),
        Packet::Reject(rejection) => format!("{rejection:?}"),
        Packet::Formation(_) => "formation report".into(),
        Packet::Durable(index) => format!("durable through {index}"),
    }
}
