//! Snapshots on their way, each on a connection of its own: it arrives whole, or not at all.

use std::sync::Arc;

use raft::eraftpb::Message;

use super::clock::{MS, SECOND};
use super::machine::Process;
use super::network::{MachineId, Occurred, Place};
use super::world::{Happening, World};
use crate::storage::snapshot::{SnapshotFile, SnapshotName, SnapshotStore};

impl World {
    /// Sends a snapshot to `message.to`.
    pub(super) fn send_snapshot(&mut self, process: &Process, name: &SnapshotName, message: Box<Message>) {
        let (place, peer) = (process.place, message.to);
        let file = self.machines[place.machine].snapshots.open(name);
        let there = self.receiver(process, peer);
        let takes = [20 * MS, 300 * MS, 3000 * MS][self.rng.usize(0..3)];
        let at = self.now + self.rng.u64(MS..takes);
        match (file, there) {
            (Ok(file), Some(there)) => self.happens(at, Happening::Snapshot(place, there.machine, message, file)),
            // The file has given way to a newer one, or there is nobody.
            _ => self.happens(at, Happening::SnapshotSent(place, peer, false)),
        }
    }

    /// Whoever is at the other end of a connection to `peer`.
    fn receiver(&self, process: &Process, peer: u64) -> Option<Place> {
        let connection = self.wires.connections.get(&process.peers.get(&peer)?.route()?)?;
        Some(connection.ends[1 - connection.end_of(process.place)])
    }

    /// It arrives where its sender has been admitted, if anything passes; its sender is told, unless nothing does any more.
    pub(super) fn snapshot_arrives(
        &mut self,
        from: Place,
        to: MachineId,
        message: Box<Message>,
        file: &Arc<dyn SnapshotFile>,
    ) {
        let peer = message.to;
        let sender = self.machines[from.machine].process.as_ref().filter(|process| process.place == from);
        let place = sender.and_then(|process| self.receiver(process, peer)).filter(|place| place.machine == to);
        let passes = !self.wires.is_blocked(from.machine, to) && !self.wires.is_blocked(to, from.machine);
        let lost = self.rng.u32(0..10) == 0;
        let place = place.filter(|_| passes && !lost && self.machines[to].paused_until <= self.now);
        let arrived = place.is_some_and(|place| {
            let copy = copy(file.as_ref(), self.machines[to].snapshots.as_ref());
            let id = message.from;
            self.occurs(place, Occurred::Snapshot(id, message, copy));
            true
        });
        // The word of it may be lost on its way back: its sender gives up after a while.
        let unheard = self.rng.u32(0..8) == 0;
        let at = self.now + if arrived && !unheard { self.way(to, from.machine) } else { self.rng.u64(0..SECOND) };
        self.happens(at, Happening::SnapshotSent(from, peer, arrived && !unheard));
    }

    /// A process hears of something, if it still runs.
    pub(super) fn occurs(&mut self, place: Place, occurred: Occurred) {
        if self.with(place, |_, process| process.occurred.push(occurred)).is_some() {
            self.wake_soon(place.machine);
        }
    }
}

/// Copies a file as it is to another disk.
pub(super) fn copy(file: &dyn SnapshotFile, to: &dyn SnapshotStore) -> Arc<dyn SnapshotFile> {
    let mut receiver = to.receive(file.name()).expect("simulated disks have room for snapshots");
    loop {
        let bytes = file.read_at(receiver.offset(), 1 << 16).expect("the file is whole");
        if bytes.is_empty() {
            return receiver.finish().expect("all of it is there");
        }
        receiver.write(&bytes).expect("the file is what it was");
    }
}
