//! The faults of a plan begin and end.

use std::collections::BTreeSet;
use std::time::Duration;

use raft::eraftpb::{Entry, Message, MessageType};

use super::clock::{Clock, MS, SECOND};
use super::disk::Disk;
use super::event::Event;
use super::machine::{Image, Machine};
use super::network::{MachineId, Occurred, Packet, ACCEPTOR, DIALLER};
use super::plan::{Crash, Fault, Lie, Target, HEALED};
use super::world::{Happening, World};
use crate::driver::port::Request;
use crate::engine::{NodeId, BOOTSTRAP};

/// So far beyond a log that nothing which arrives meanwhile gets there.
const FAR: u64 = 1_000_000;

impl World {
    pub(super) fn begin_fault(&mut self, number: usize) {
        let fault = self.plan.faults[number].fault;
        self.trace.note(self.now, &[12, number as u64], || format!("FAULT {fault:?}"));
        match fault {
            Fault::Crash { target, kind, after, down } => {
                self.with_process(target, |process| (process.crash, process.down) = (Some((after, kind)), down));
            }
            Fault::Burst { target, calls } => self.burst(target, calls),
            Fault::Transfer { target, to, patience } => self.call_for_leader(target, to, patience),
            Fault::Close { target, drain, down } => {
                let machine = self.with_process(target, |process| {
                    process.inbox.requests.push(Request::Close { drain: Duration::from_nanos(drain) });
                    process.down = down;
                });
                self.wake_soon(machine);
            }
            Fault::Pause { target, lasts } => {
                let machine = self.resolve(target);
                let until = self.machines[machine].paused_until.max(self.now + lasts);
                self.machines[machine].paused_until = until;
                self.happens(self.now + lasts, Happening::FaultEnds(number));
            }
            Fault::BlockApplication { target, lasts } => {
                let machine = self.resolve(target);
                let until = self.machines[machine].blocked_until.max(self.now + lasts);
                self.machines[machine].blocked_until = until;
                self.happens(self.now + lasts, Happening::FaultEnds(number));
            }
            Fault::Isolate { target, lasts } => {
                let inside = self.resolve(target);
                let mask = 1 << inside;
                // Whoever leads by then is another: the end has to find the same machine.
                self.plan.faults[number].fault = Fault::Partition { mask, one_way: false, lasts };
                self.begin_fault(number);
            }
            Fault::Partition { lasts, .. } | Fault::Cut { lasts, .. } => {
                for (from, to) in self.blocked_by(fault) {
                    self.wires.link(from, to).blocked += 1;
                }
                let ids = self.wires.connections.keys().copied().collect::<Vec<_>>();
                for id in ids {
                    for end in [DIALLER, ACCEPTOR] {
                        let at = self.now + self.rng.u64(SECOND..5 * SECOND);
                        self.happens(at, Happening::Silent(id, end));
                    }
                }
                self.happens(self.now + lasts, Happening::FaultEnds(number));
            }
            Fault::SlowLink { one, other, delay, lasts } => {
                self.wires.link(one, other).delay = delay;
                self.wires.link(other, one).delay = delay;
                self.happens(self.now + lasts, Happening::FaultEnds(number));
            }
            Fault::Loss { per_mille, lasts } => {
                self.wires.loss_per_mille = per_mille;
                self.happens(self.now + lasts, Happening::FaultEnds(number));
            }
            Fault::Break { one, other } => self.break_connections(one, other),
            Fault::SlowDisk { target, fsync, lasts } => {
                let machine = self.resolve(target);
                self.machines[machine].slow_disk = Some((fsync, self.now + lasts));
            }
            Fault::FailDisk { target, down } => {
                let machine = self.with_process(target, |process| process.down = down);
                self.machines[machine].disk_fails = self.machines[machine].process.is_some();
            }
            Fault::Sleep { target, by } => {
                let machine = self.resolve(target);
                self.machines[machine].clock.jump(by);
                self.wake_soon(machine);
            }
            Fault::SetWallClock { target, by } => {
                let machine = self.resolve(target);
                self.machines[machine].clock.set_wall(by);
            }
            Fault::Wipe { target, down } => self.replace_disk(target, Image::default(), down),
            Fault::RollBack { target, copied, down } => self.roll_back(number, target, copied, down),
            Fault::Clone { target, copied, lasts } => self.run_clone(number, target, copied, lasts),
            Fault::Forge { from, to, lie } => self.forge(from, to, lie),
            Fault::WrongMembers { target, fewer, down } => self.start_with_wrong_members(number, target, fewer, down),
            Fault::Change { at, ask, patience, twice } => self.ask_for_change(at, ask, patience, twice),
            Fault::LoseQuorum { survivor } => self.lose_quorum(survivor),
            Fault::Move { machine, down } => self.move_node(machine, down),
        }
    }

    pub(super) fn end_fault(&mut self, number: usize) {
        let fault = self.plan.faults[number].fault;
        self.trace.note(self.now, &[13, number as u64], || format!("end of FAULT {fault:?}"));
        match fault {
            Fault::Pause { .. } | Fault::BlockApplication { .. } => {
                for machine in 0..self.machines.len() {
                    self.tell(machine, &Event::WasHeldUp);
                }
            }
            // The world is healed already.
            _ if self.now >= HEALED => {}
            Fault::Partition { .. } | Fault::Cut { .. } => {
                for (from, to) in self.blocked_by(fault) {
                    let link = self.wires.link(from, to);
                    link.blocked = link.blocked.saturating_sub(1);
                }
                self.unstall();
            }
            Fault::SlowLink { one, other, .. } => {
                self.wires.link(one, other).delay = 0;
                self.wires.link(other, one).delay = 0;
            }
            Fault::Loss { .. } => self.wires.loss_per_mille = 0,
            Fault::Clone { .. } => self.end_clones(),
            Fault::WrongMembers { target, .. } => {
                let machine = self.resolve_fixed(target);
                let at = &self.machines[machine];
                if at.process.as_ref().is_some_and(|process| process.listed != at.listed) {
                    self.kill(machine, 100 * MS);
                }
            }
            _ => {}
        }
    }

    /// The last fault is over: whatever can run runs, and everything passes.
    pub(super) fn heal(&mut self) {
        self.trace.note(self.now, &[14], || "everything is healed".into());
        self.wires.mend();
        self.unstall();
        self.end_clones();
        for machine in 0..self.plan.machines() {
            let at = &mut self.machines[machine];
            (at.paused_until, at.blocked_until, at.slow_disk, at.disk_fails) = (0, 0, None, false);
            at.members = None;
            at.round_at = u64::MAX;
            let place = at.process.as_mut().map(|process| {
                if process.closing.is_none() {
                    process.crash = None;
                }
                process.place
            });
            self.tell(machine, &Event::WasHeldUp);
            match place {
                Some(place) => {
                    self.happens(self.now, Happening::Turn(place));
                    self.happens(self.now, Happening::Written(place));
                    self.wake(machine, self.now);
                }
                None => self.start_again(machine, SECOND),
            }
        }
        for machine in 0..self.plan.machines() {
            let at = &self.machines[machine];
            if at.process.as_ref().is_some_and(|process| process.listed != at.listed) {
                self.kill(machine, 100 * MS);
            }
        }
    }

    fn with_process(&mut self, target: Target, change: impl FnOnce(&mut super::machine::Process)) -> MachineId {
        let machine = self.resolve(target);
        if let Some(process) = &mut self.machines[machine].process {
            change(process);
        }
        machine
    }

    fn blocked_by(&self, fault: Fault) -> Vec<(MachineId, MachineId)> {
        let all = 0..self.machines.len();
        match fault {
            Fault::Partition { mask, one_way, .. } => {
                let inside = |machine: MachineId| mask >> machine & 1 == 1;
                let pairs = all.clone().flat_map(|from| all.clone().map(move |to| (from, to)));
                pairs
                    .filter(|(from, to)| inside(*from) && !inside(*to) || !one_way && inside(*to) && !inside(*from))
                    .collect()
            }
            Fault::Cut { from, to, one_way: true, .. } => vec![(from, to)],
            Fault::Cut { from, to, .. } => vec![(from, to), (to, from)],
            _ => Vec::new(),
        }
    }

    pub(super) fn kill(&mut self, machine: MachineId, down: u64) {
        if let Some(mut process) = self.machines[machine].process.take() {
            process.down = down;
            self.crash(machine, process, Crash::Kill);
        }
    }

    /// Whether one more machine may be lost for good.
    fn may_lose(&self, machine: MachineId) -> bool {
        let lost = self.machines[machine].node;
        self.goes_on(|id| id != lost && self.is_healthy(id))
    }

    fn replace_disk(&mut self, target: Target, image: Image, down: u64) {
        let machine = self.resolve(target);
        if !self.may_lose(machine) {
            return;
        }
        let formed = |machine: &Machine| {
            machine.process.as_ref().is_some_and(|process| process.members.borrow().formation.is_formed())
        };
        // Members that have changed are those of a formed cluster.
        let has_changed = self.newest_members().version > BOOTSTRAP.0;
        self.may_never_form |= !has_changed && !self.machines[..self.plan.nodes].iter().all(formed);
        self.kill(machine, down);
        self.machines[machine].old = image.boot > 0;
        self.machines[machine].put_back(image);
        self.machines[machine].out = true;
        // The next directory is another one.
        if let Some(joins) = &mut self.machines[machine].joins {
            joins.identity = None;
        }
    }

    /// The disk as it was at `copied`, for the fault that puts it to use.
    pub(super) fn copy_disk(&mut self, number: usize) {
        let (Fault::RollBack { target, copied, .. } | Fault::Clone { target, copied, .. }) =
            self.plan.faults[number].fault
        else {
            return;
        };
        let machine = self.resolve_fixed(target);
        let Some(process) = &self.machines[machine].process else { return };
        let at = &self.machines[machine];
        let snapshots = process.engine.snapshots_in_use();
        let image = Image {
            disk: at.disk.copy(),
            boot: process.members.borrow().record.boot,
            snapshots: snapshots.iter().filter_map(|name| at.snapshots.open(name).ok()).collect(),
            kept: at.kept.clone(),
        };
        self.machines[machine].copies.insert(copied, image);
    }

    /// A fault that takes two steps hits the same machine in both.
    fn resolve_fixed(&self, target: Target) -> MachineId {
        match target {
            Target::Machine(machine) | Target::LeaderOr(machine) => machine,
        }
    }

    /// Whether every other node remembers a later start than the next one from this copy will be. What remains otherwise
    /// is in docs/reliability.md.
    fn is_known_to_be_old(&self, machine: MachineId, boot: u64) -> bool {
        let id = self.machines[machine].node;
        (0..self.plan.nodes).filter(|other| *other != machine && !self.machines[*other].out).all(|other| {
            let process = self.machines[other].process.as_ref();
            process.is_some_and(|process| {
                let members = process.members.borrow();
                members.remembers(id) && members.boot_seen(id).is_some_and(|seen| seen > boot + 1)
            })
        })
    }

    /// Whether the nodes that run from earlier copies stay a minority: they have forgotten each other's later starts, and a
    /// majority of them would be a cluster as it was then.
    fn may_run_copy(&self, machine: MachineId) -> bool {
        let runs = |machine: &&Machine| machine.old && (machine.process.is_some() || machine.starts_at.is_some());
        let mut nodes = self.machines.iter().filter(runs).map(|machine| machine.node).collect::<BTreeSet<_>>();
        nodes.insert(self.machines[machine].node);
        2 * nodes.len() < self.plan.nodes
    }

    fn roll_back(&mut self, number: usize, target: Target, copied: u64, down: u64) {
        let machine = self.resolve_fixed(target);
        let Some(image) = self.machines[machine].copies.remove(&copied) else { return };
        if self.is_known_to_be_old(machine, image.boot) && self.may_run_copy(machine) {
            self.trace.note(self.now, &[15, number as u64], || format!("machine {machine} is rolled back"));
            self.replace_disk(Target::Machine(machine), image, down);
        }
    }

    fn run_clone(&mut self, number: usize, target: Target, copied: u64, lasts: u64) {
        let machine = self.resolve_fixed(target);
        let Some(image) = self.machines[machine].copies.remove(&copied) else { return };
        if !(self.is_known_to_be_old(machine, image.boot) && self.may_run_copy(machine)) {
            return;
        }
        let clock = Clock::new(&mut self.rng);
        let mut clone = Machine::new(self.machines[machine].node as NodeId, clock, Disk::new(false));
        clone.put_back(image);
        clone.listed.clone_from(&self.machines[machine].listed);
        (clone.out, clone.old) = (true, true);
        self.machines.push(clone);
        let clone = self.machines.len() - 1;
        self.trace
            .note(self.now, &[16, number as u64], || format!("machine {clone} runs a clone of machine {machine}"));
        self.start_at(clone, self.now);
        self.happens(self.now + lasts, Happening::FaultEnds(number));
    }

    /// A message in the name of `from`, as of the receiver's own term.
    fn forge(&mut self, from: MachineId, to: MachineId, lie: Lie) {
        // Half of the lies are meant for a leader.
        let to = match lie {
            Lie::UnknownEntries | Lie::StaleReject | Lie::OldCommand => self.resolve(Target::LeaderOr(to)),
            Lie::Gap | Lie::LostLog | Lie::Empty => to,
        };
        let from = if from == to { (from + 1) % self.plan.nodes } else { from };
        let sender = self.machines[from].node;
        if lie == Lie::OldCommand {
            return self.send_old_command(from, to);
        }
        let Some(process) = self.machines[to].process.as_mut() else { return };
        // Whoever has no route has not shaken hands.
        if process.peers.get(&sender).is_none_or(|peer| peer.route().is_none()) {
            return;
        }
        let status = process.engine.status();
        let (term, last) = (status.term, status.last_index);
        let mut message = Message { from: sender, to: process.id, term, ..Default::default() };
        let entry = |index| Entry { index, term, ..Default::default() };
        let kind = match lie {
            Lie::Gap => {
                (message.index, message.log_term, message.commit) = (last + FAR, 0, last + FAR + 1);
                message.entries = vec![entry(last + FAR + 1)];
                MessageType::MsgAppend
            }
            Lie::LostLog => {
                message.commit = last + FAR;
                MessageType::MsgHeartbeat
            }
            Lie::UnknownEntries => {
                message.index = last + FAR;
                MessageType::MsgAppendResponse
            }
            Lie::StaleReject => {
                let matched = status.peers.iter().find(|(id, _)| *id == sender).and_then(|(_, progress)| *progress);
                message.index = matched.map_or(0, |progress| progress.matched);
                message.reject_hint = self.rng.u64(0..=message.index);
                message.reject = true;
                // raft-rs probes on a new connection, and believes a reject only while it does.
                process.occurred.push(Occurred::Rerouted(sender));
                MessageType::MsgAppendResponse
            }
            Lie::Empty if self.rng.bool() => {
                message.term = 0;
                MessageType::MsgReadIndex
            }
            Lie::Empty | Lie::OldCommand => MessageType::MsgPropose,
        };
        message.set_msg_type(kind);
        // Nobody but the leader sends these, and raft-rs panics when two of them do.
        let leads = status.leader == Some(process.id);
        if leads == matches!(lie, Lie::UnknownEntries | Lie::StaleReject | Lie::Empty) {
            process.occurred.push(Occurred::Arrived(sender, Packet::Raft(Box::new(message))));
            self.wake_soon(to);
        }
    }

    /// A command of `from` that it has seen applied itself, as if it had been under way ever since.
    fn send_old_command(&mut self, from: MachineId, to: MachineId) {
        let sender = self.machines[from].node;
        let Some(reached) = self.machines[from].process.as_ref().map(|process| process.application.applied) else {
            return;
        };
        let old = self.applied.iter().filter(|(origin, index, _)| *origin == sender && *index <= reached);
        let old = old.map(|(_, _, command)| command.clone()).collect::<Vec<_>>();
        let Some(process) = self.machines[to].process.as_mut() else { return };
        if old.is_empty() || process.peers.get(&sender).is_none_or(|peer| peer.route().is_none()) {
            return;
        }
        let command = old[self.rng.usize(0..old.len())].clone();
        process.occurred.push(Occurred::Arrived(sender, Packet::Forward(command)));
        self.wake_soon(to);
    }

    fn end_clones(&mut self) {
        for machine in self.plan.machines()..self.machines.len() {
            self.kill(machine, 1000 * SECOND);
            self.machines[machine].starts_at = None;
        }
    }

    fn start_with_wrong_members(&mut self, number: usize, target: Target, fewer: bool, down: u64) {
        let machine = self.resolve_fixed(target);
        let me = self.machines[machine].node;
        if me != machine as NodeId + 1 {
            // It came later, with a list of its own.
            return;
        }
        let mut members = self.machines[machine].listed.clone();
        // Each node leaves out another one: two with the same wrong list would form a cluster of their own, and rightly.
        let other = me % self.plan.nodes as NodeId + 1;
        match fewer {
            true => drop(members.remove(&other)),
            false => drop(members.insert(other, "elsewhere:7400".into())),
        }
        self.kill(machine, MS);
        self.machines[machine].members = Some(members);
        self.start_at(machine, self.now + MS);
        self.happens(self.now + down + SECOND, Happening::FaultEnds(number));
    }
}
