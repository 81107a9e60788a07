//! The wires between the machines: connections that keep their order, until they break.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use raft::eraftpb::Message;

use super::clock::Time;
use crate::engine::command::Command;
use crate::engine::{NodeId, Rejection};
use crate::storage::snapshot::SnapshotFile;
use crate::transport::{Hello, RefusalCode};

/// A machine's number; the node that runs there has an id of its own.
pub type MachineId = usize;

/// Counted up over all connections of the world.
pub type ConnectionId = u64;

/// What travels.
#[derive(Clone, Debug)]
pub enum Packet {
    /// A message of raft-rs.
    Raft(Box<Message>),
    /// A forwarded command.
    Forward(Command),
    /// Its refusal.
    Reject(Rejection),
    /// A report on forming the cluster.
    Formation(Vec<u8>),
    /// The sender's disk holds everything committed up to this index.
    Durable(u64),
}

/// Which end of a connection: the one that dialled, or the one that answered.
pub const DIALLER: usize = 0;
/// See [`DIALLER`].
pub const ACCEPTOR: usize = 1;

/// A process: the machine it runs on, and which start of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where.
    pub machine: MachineId,
    /// Counted up at every start on that machine.
    pub incarnation: u64,
}

/// What one end of a connection sends.
#[derive(Debug, Default)]
pub struct Stream {
    /// On their way, oldest first.
    pub queue: VecDeque<Packet>,
    /// When the last of them arrives.
    pub last_arrival: Time,
    /// Packets that arrived where nothing passes: they are delivered when it does again.
    pub stalled: usize,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// Who dialled, who answered.
    pub ends: [Place; 2],
    /// What they said about themselves.
    pub hellos: [Rc<Hello>; 2],
    /// Who still holds it.
    pub open: [bool; 2],
    /// By the sending end.
    pub streams: [Stream; 2],
}

impl Connection {
    /// The end that this process has.
    pub fn end_of(&self, place: Place) -> usize {
        if self.ends[DIALLER] == place {
            DIALLER
        } else {
            ACCEPTOR
        }
    }
}

/// The way from one machine to another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// So many faults let nothing pass.
    pub blocked: u32,
    /// Every packet takes longer by up to this.
    pub delay: Time,
}

/// All wires.
#[derive(Debug, Default)]
pub struct Wires {
    /// All connections that somebody holds.
    pub connections: BTreeMap<ConnectionId, Connection>,
    links: BTreeMap<(MachineId, MachineId), Link>,
    /// So many of a thousand packets are lost.
    pub loss_per_mille: u32,
    /// What comes once more on the next connection: from, to, packets.
    pub replays: Vec<(Place, Place, Vec<Packet>)>,
    /// The newest connection on which something has arrived, by sender and receiver.
    pub newest: BTreeMap<(MachineId, MachineId), ConnectionId>,
    next: ConnectionId,
}

impl Wires {
    /// The way from one machine to another.
    pub fn link(&mut self, from: MachineId, to: MachineId) -> &mut Link {
        self.links.entry((from, to)).or_default()
    }

    /// Nothing passes.
    pub fn is_blocked(&self, from: MachineId, to: MachineId) -> bool {
        self.links.get(&(from, to)).is_some_and(|link| link.blocked > 0)
    }

    /// How much longer it takes at most.
    pub fn delay(&self, from: MachineId, to: MachineId) -> Time {
        self.links.get(&(from, to)).map_or(0, |link| link.delay)
    }

    /// Every link is as it was at first.
    pub fn mend(&mut self) {
        self.links.clear();
        self.loss_per_mille = 0;
    }

    /// A connection whose acceptor has admitted the dialler.
    pub fn connect(&mut self, ends: [Place; 2], hellos: [Rc<Hello>; 2]) -> ConnectionId {
        self.next += 1;
        let streams = [Stream::default(), Stream::default()];
        self.connections.insert(self.next, Connection { ends, hellos, open: [true, true], streams });
        self.next
    }
}

/// What a process holds of the connections to one peer.
#[derive(Debug, Default)]
pub struct Peer {
    /// The connection that this process dialled.
    pub dialled: Option<ConnectionId>,
    /// Those that the peer dialled, oldest first.
    pub inbound: Vec<ConnectionId>,
    /// The route that the driver knows of.
    pub told: Option<ConnectionId>,
    /// The pause before the next attempt to dial.
    pub pause: Time,
    /// An attempt is under way or has its time.
    pub dialling: bool,
}

impl Peer {
    /// Where packets to the peer go.
    pub fn route(&self) -> Option<ConnectionId> {
        self.dialled.or(self.inbound.last().copied())
    }

    /// All of them.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.dialled.iter().chain(&self.inbound).copied()
    }

    /// One of them is gone.
    pub fn forget(&mut self, id: ConnectionId) {
        self.dialled = self.dialled.filter(|dialled| *dialled != id);
        self.inbound.retain(|inbound| *inbound != id);
    }
}

/// What the network tells a node, as [`crate::transport::Event`] does in the real world.
#[derive(Debug)]
pub enum Occurred {
    /// There was no way to `peer`, now there is.
    Up(NodeId, Rc<Hello>),
    /// Another connection than before; the old one is gone.
    Rerouted(NodeId),
    /// There is no way to `peer` any more.
    Down(NodeId),
    /// Something arrived.
    Arrived(NodeId, Packet),
    /// A snapshot arrived, on a connection of its own: its file is whole and durable.
    Snapshot(NodeId, Box<Message>, Arc<dyn SnapshotFile>),
    /// One for this peer did, or was given up.
    SnapshotSent(NodeId, bool),
    /// A node that was dialled has refused, for this reason.
    Refused(RefusalCode),
}
