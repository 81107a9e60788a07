//! A node's round: the same steps in the same order as the driver's (`driver::node`), with a crash possible after each.

use std::time::Duration;

use super::clock::{Time, MS, SECOND};
use super::event::{Event, Stopped};
use super::machine::{Process, Told};
use super::members::{others, tell_all, OWN};
use super::network::{MachineId, Occurred, Packet};
use super::plan::{Crash, HEALED};
use super::trace::hash_of;
use super::world::{Happening, World};
use crate::driver::gate::{Ended, Members};
use crate::driver::persister::{gather, Task};
use crate::driver::port::{hand_over_ns, Completion, Proposal, Request};
use crate::driver::witness::Spoken;
use crate::engine::formation::{Report, Stage};
use crate::engine::snapshot::Meta;
use crate::engine::{Effect, Fault, HandOut, NodeId, Reader, Rejection};
use crate::transport::RefusalCode;

/// The node record is written so often if it has changed (`driver::node`).
const RECORD_EVERY: Time = 10 * SECOND;

/// A node that is not formed tells the others so often how far it is (`driver::node`).
const REPORT_EVERY: Time = SECOND;

/// A digest is taken in every so many rounds.
const ROUNDS_PER_DIGEST: u64 = 16;

/// Why a process does not go on.
pub(super) enum Halt {
    /// The schedule says so.
    Crash(Crash),
    /// It was asked to close, and nothing waits any more.
    Closed,
    /// The disk failed.
    Disk,
    /// The engine cannot go on.
    Fault(Fault),
    /// The node has no part in its cluster any more.
    Ended(Ended),
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Process {
    /// One step further; the crash that the schedule asks for comes between two steps.
    fn step(&mut self) -> Result<(), Halt> {
        match &mut self.crash {
            Some((0, kind)) => Err(Halt::Crash(*kind)),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl World {
    pub(super) fn round(&mut self, machine: MachineId) {
        if self.machines[machine].round_at != self.now {
            return;
        }
        self.machines[machine].round_at = Time::MAX;
        let paused_until = self.machines[machine].paused_until;
        if paused_until > self.now {
            return self.wake(machine, paused_until);
        }
        let Some(mut process) = self.machines[machine].process.take() else { return };
        match self.take_round(machine, &mut process) {
            Ok(()) => {
                let at = self.next_round(machine, &process);
                self.machines[machine].process = Some(process);
                self.wake(machine, at);
            }
            Err(Halt::Crash(kind)) => self.crash(machine, process, kind),
            Err(Halt::Closed) => self.close_in_order(machine, process),
            Err(Halt::Disk) => self.stop_by_disk(machine, process),
            Err(Halt::Ended(ended)) => self.end_for_good(machine, process, ended),
            Err(Halt::Fault(fault)) => self.stop(machine, process, &Stopped::ByItself(fault.to_string())),
        }
    }

    fn next_round(&mut self, machine: MachineId, process: &Process) -> Time {
        if process.engine.has_more() {
            return self.now + MS / 100;
        }
        let deadline = process.engine.wakes_at_ns();
        let deadline = if deadline == u64::MAX { Time::MAX } else { self.machines[machine].clock.time_of(deadline) };
        process.next_tick.min(deadline).min(process.closing.unwrap_or(Time::MAX)).max(self.now + MS / 100)
    }

    fn take_round(&mut self, machine: MachineId, process: &mut Process) -> Result<(), Halt> {
        process.rounds += 1;
        self.take_answers(machine, process)?;
        process.step()?;
        self.take_occurred(process);
        process.step()?;
        let boottime_ns = self.machines[machine].clock.now(self.now).boottime_ns;
        self.take_inbox(machine, process, boottime_ns)?;
        let ticked = self.tick(machine, process);
        self.record_when_due(process, ticked);
        process.step()?;
        let now = self.machines[machine].clock.now(self.now);
        for effect in process.engine.poll(now)? {
            process.step()?;
            self.run_effect(machine, process, effect);
        }
        process.step()?;
        process.persister.queue.append(&mut process.tasks);
        self.begin_write(machine, process);
        process.step()?;
        self.flush(process);
        process.step()?;
        self.hand_out(machine, process)?;
        self.complete(process);
        self.observe(machine, process);
        if let Some(ended) = process.members.borrow().ended() {
            return Err(Halt::Ended(ended));
        }
        let drained = !process.engine.has_pending_calls();
        match process.closing {
            Some(until) if drained || until <= self.now => Err(Halt::Closed),
            _ => Ok(()),
        }
    }

    fn take_answers(&mut self, machine: MachineId, process: &mut Process) -> Result<(), Halt> {
        let answer = std::mem::take(&mut process.persister.answer);
        if answer.failure.is_some() {
            return Err(Halt::Disk);
        }
        if let Some(number) = answer.ready {
            self.trace.note(self.now, &[2, machine as u64, number], || {
                format!("node {}: durable through Ready {number}", process.id)
            });
            process.engine.handle_persisted(number);
        }
        if let Some(name) = answer.snapshot {
            process.engine.handle_recorded(name);
            let in_use = process.engine.snapshots_in_use();
            self.machines[machine].snapshots.retain(&in_use).expect("a simulated disk lets go of files");
        }
        for (index, outcome) in std::mem::take(&mut process.captured) {
            process.engine.handle_captured(index, outcome);
        }
        if let Some(number) = answer.node_record {
            process.members.borrow_mut().stored(number);
            let later = process.stages.split_off(&(number + 1));
            for (_, stage) in std::mem::replace(&mut process.stages, later) {
                self.stage_was_stored();
                stage_stored(process, stage);
            }
        }
        Ok(())
    }

    fn take_occurred(&mut self, process: &mut Process) {
        for occurred in std::mem::take(&mut process.occurred) {
            let formed = process.members.borrow().formation.is_formed();
            match occurred {
                Occurred::Up(peer, hello) => {
                    process.engine.handle_route(peer);
                    self.follow_address(process, peer, &hello.advertise);
                    self.meet(process, peer, &hello.formation);
                    // The handshake may have told of an earlier stage.
                    tell_who_i_am(process, peer);
                }
                Occurred::Rerouted(peer) => {
                    process.engine.handle_route(peer);
                    tell_who_i_am(process, peer);
                }
                Occurred::Down(peer) => {
                    process.engine.handle_route_lost(peer);
                    process.members.borrow_mut().formation.forget(peer);
                }
                Occurred::Arrived(from, Packet::Formation(report)) => {
                    self.meet(process, from, &report);
                    // It asks, as long as it is not formed itself.
                    let is_formed = Report::decode(&report).is_some_and(|it| matches!(it.stage, Stage::Formed(_)));
                    if formed && !is_formed {
                        tell_who_i_am(process, from);
                    }
                }
                // An unformed node neither votes nor acknowledges (rule M1).
                Occurred::Arrived(from, Packet::Raft(message)) if formed => {
                    let spoken = Spoken::of(&message);
                    // A refusal is the guard at work.
                    if process.engine.handle_message(from, *message).is_ok() {
                        process.members.borrow_mut().heard(from, spoken);
                    }
                }
                Occurred::Arrived(_, Packet::Raft(_)) => {}
                Occurred::Snapshot(from, message, file) if formed => {
                    let spoken = Spoken::of(&message);
                    let meta = Meta::decode(&file.head().meta).expect("an engine wrote it");
                    if process.engine.handle_snapshot(from, *message, *file.name(), meta).is_ok() {
                        process.members.borrow_mut().heard(from, spoken);
                    }
                }
                Occurred::Snapshot(..) => {}
                // Somebody whom this node sought out says that it is out.
                Occurred::Refused(RefusalCode::Removed) => process.members.borrow_mut().end(Ended::Removed),
                Occurred::Refused(RefusalCode::Incarnation) => process.members.borrow_mut().end(Ended::Superseded),
                Occurred::Refused(_) => {}
                Occurred::SnapshotSent(peer, is_there) => process.engine.handle_snapshot_sent(peer, is_there),
                Occurred::Arrived(from, Packet::Durable(index)) => {
                    process.members.borrow_mut().acknowledged(from, index);
                }
                Occurred::Arrived(from, Packet::Forward(command)) => {
                    process.engine.handle_forwarded(from, command);
                }
                Occurred::Arrived(from, Packet::Reject(rejection)) => process.engine.handle_rejection(from, &rejection),
            }
        }
    }

    fn take_inbox(&mut self, machine: MachineId, process: &mut Process, boottime_ns: u64) -> Result<(), Halt> {
        let inbox = std::mem::take(&mut process.inbox);
        process.engine.handle_application_applied(process.application.applied);
        for Proposal { token, command, deadline_ns } in inbox.proposals {
            process.engine.handle_proposal(token, command, deadline_ns.unwrap_or(u64::MAX));
        }
        for request in inbox.requests {
            match request {
                Request::ReadBarrier { token, deadline_ns } => {
                    process.engine.handle_read(Reader { token, deadline_ns: deadline_ns.unwrap_or(u64::MAX) });
                }
                Request::ReadApplied { token, after, max_bytes } => {
                    let result = process.engine.read_applied(after, max_bytes)?;
                    process.completions.push(Completion::Range { token, result }.into());
                }
                Request::Snapshot { token, deadline_ns } => {
                    process.engine.handle_snapshot_call(token, deadline_ns.unwrap_or(u64::MAX));
                }
                Request::TransferLeader { token, to, deadline_ns } => {
                    process.engine.handle_transfer(token, to, deadline_ns.unwrap_or(u64::MAX));
                }
                Request::Change { token, changes, deadline_ns } => {
                    self.change_members(machine, process, token, &changes, deadline_ns.unwrap_or(u64::MAX));
                }
                Request::Close { drain } => {
                    if let Some(share_ns) = hand_over_ns(drain) {
                        process.engine.handle_leaving(boottime_ns.saturating_add(share_ns));
                    }
                    let until = self.now + drain.min(Duration::from_secs(100)).as_nanos() as Time;
                    process.closing = Some(process.closing.map_or(until, |earlier| earlier.min(until)));
                }
                // No application asks for it.
                #[cfg(test)]
                Request::Unguarded(_) => {}
            }
        }
        Ok(())
    }

    fn tick(&mut self, machine: MachineId, process: &mut Process) -> bool {
        if self.now < process.next_tick {
            return false;
        }
        let tick = self.plan.tuning.tick().as_nanos() as Time;
        process.next_tick = (process.next_tick + tick).max(self.now);
        if process.members.borrow().formation.is_formed() {
            process.ticks += 1;
            process.engine.handle_tick();
            self.look_after_members(machine, process);
            self.count_in(machine, process);
        } else if self.now > process.reported + REPORT_EVERY {
            process.reported = self.now;
            for peer in others(process) {
                tell_who_i_am(process, peer);
            }
        }
        true
    }

    /// Writes the node record: at once if a peer waits to be let in, else once in a while.
    fn record_when_due(&mut self, process: &mut Process, ticked: bool) {
        if ticked {
            note_acknowledged(process);
            tell_durable(process);
        }
        let is_late = self.now > process.recorded + RECORD_EVERY;
        record_if(process, self.now, if is_late { Members::is_changed } else { Members::is_due });
    }

    fn run_effect(&mut self, machine: MachineId, process: &mut Process, effect: Effect) {
        match effect {
            Effect::Send(message) => {
                let to = message.to;
                self.tell_checkers(machine, &message);
                if !put(process, to, Packet::Raft(message)) {
                    process.engine.handle_unreachable(to);
                }
            }
            Effect::Persist(persist) => {
                let term = persist.hard_state.as_ref().map(|hard_state| hard_state.term);
                // Its own snapshots belong to no Ready.
                if let Some((index, term)) = persist.truncated.filter(|_| persist.number > 0) {
                    self.figures.installed += 1;
                    self.trace.note(self.now, &[19, machine as u64, index, term], || {
                        format!("node {}: installs a snapshot at {index}", process.id)
                    });
                    self.tell(machine, &Event::Installed { begin: (index, term) });
                    self.trouble_install(machine, process);
                }
                if !persist.entries.is_empty() {
                    self.trouble_change(process, &persist.entries);
                    self.tell(machine, &Event::Appended { term, entries: &persist.entries });
                }
                process.tasks.push(Task::Ready(persist));
            }
            Effect::Forward { to, command } => {
                let header = command.header();
                if !put(process, to, Packet::Forward(command)) {
                    let rejection =
                        Rejection { boot: header.boot, numbers: vec![header.number], reason: String::new() };
                    process.engine.handle_rejection(to, &rejection);
                }
            }
            Effect::Reject { to, rejection } => {
                put(process, to, Packet::Reject(rejection));
            }
            Effect::SendSnapshot { name, message } => self.send_snapshot(process, &name, message),
            Effect::Snapshot { token, index } => {
                process.completions.push(Completion::Snapshot { token, index }.into());
            }
            Effect::Changed { token: OWN, .. } | Effect::Failed { token: OWN, .. } => {
                process.own_changes -= 1;
            }
            Effect::Failed { token, failure } => process.completions.push(Completion::Failed { token, failure }.into()),
            Effect::Barrier { token, index } => process.completions.push(Completion::Barrier { token, index }.into()),
            Effect::Transferred { token, leader } => {
                process.completions.push(Completion::Transferred { token, leader }.into());
            }
            Effect::Changed { token, index, ids } => {
                process.completions.push(Completion::Changed { token, index, ids }.into());
            }
            Effect::Membership => self.follow_members(machine, process),
            Effect::Leadership(leadership) => {
                let (term, leader) = (leadership.term, leadership.leader);
                let numbers = [3, machine as u64, term, leader.unwrap_or(0)];
                self.trace.note(self.now, &numbers, || format!("node {}: term {term}, leader {leader:?}", process.id));
                if leader == Some(process.id) {
                    self.figures.leaders += u64::from(leadership.leading_from.is_none());
                    self.tell(machine, &Event::Leads { term });
                }
                process.completions.push(Completion::Leadership(leadership).into());
            }
        }
    }

    /// The persist thread takes all that waits as one batch, if it is idle.
    pub(super) fn begin_write(&mut self, machine: MachineId, process: &mut Process) {
        let persister = &process.persister;
        // The real thread ends at its first failure: nothing is written behind it.
        if persister.writing.is_some() || persister.queue.is_empty() || persister.answer.failure.is_some() {
            return;
        }
        let gathered = gather(std::mem::take(&mut process.persister.queue));
        let disk = &self.machines[machine];
        disk.disk.begin(&gathered.batch);
        let slow = disk.slow_disk.filter(|(_, until)| *until > self.now).map(|(fsync, _)| fsync);
        let (least, most) = self.plan.fsync;
        let takes = match (gathered.batch.sync, slow) {
            (false, _) => MS / 50,
            (true, Some(fsync)) => fsync,
            (true, None) => self.rng.u64(least..=most),
        };
        process.persister.writing = Some(gathered);
        self.happens(self.now + takes, Happening::Written(process.place));
    }

    /// In some worlds an install is the moment at which things go wrong.
    fn trouble_install(&mut self, machine: MachineId, process: &mut Process) {
        if !self.plan.troubled_installs || self.now >= HEALED {
            return;
        }
        match self.rng.u32(0..4) {
            0 | 1 => {
                let kind = if self.rng.bool() { Crash::PowerLoss } else { Crash::Kill };
                process.crash = Some((self.rng.u32(0..80), kind));
                process.down = self.rng.u64(50..800) * MS;
            }
            2 => {
                let fsync = self.rng.u64(300..3000) * MS;
                self.machines[machine].slow_disk = Some((fsync, self.now + fsync));
            }
            _ => {}
        }
    }

    fn hand_out(&mut self, machine: MachineId, process: &mut Process) -> Result<(), Halt> {
        let mut unapplied = process.application.unapplied_bytes;
        while unapplied < self.plan.tuning.max_unapplied_bytes {
            match process.engine.hand_out(self.plan.batch_bytes)? {
                None => break,
                Some(HandOut::Apply(batch)) => {
                    unapplied += batch.bytes;
                    let (entries, through, bytes) = (batch.entries, batch.through, batch.bytes);
                    process.completions.push(Completion::Apply { entries, through, bytes }.into());
                }
                Some(HandOut::Capture(marker)) => process.completions.push(Told::Capture(marker)),
                Some(HandOut::Restore(name)) => {
                    let file = self.machines[machine].snapshots.open(&name).expect("the log names it");
                    process.completions.push(Completion::Restore { file }.into());
                }
            }
        }
        process.application.unapplied_bytes = unapplied;
        Ok(())
    }

    /// The application is told, and takes its turn soon.
    pub(super) fn complete(&mut self, process: &mut Process) {
        if process.completions.is_empty() {
            return;
        }
        process.application.completions.extend(process.completions.drain(..));
        if !std::mem::replace(&mut process.application.is_due, true) {
            let at = self.now + self.rng.u64(MS / 100..MS / 2);
            self.happens(at, Happening::Turn(process.place));
        }
    }

    fn observe(&mut self, machine: MachineId, process: &mut Process) {
        if let Some((term, last, peers)) = process.engine.followers() {
            self.tell(machine, &Event::Follow { term, last, peers: &peers });
        }
        self.tell_members(machine, process);
        if process.rounds % ROUNDS_PER_DIGEST != 0 {
            return;
        }
        let (applied, digest) = process.engine.digest();
        self.tell(machine, &Event::Digest { applied, digest });
        let open_calls = self.workload.open_calls(machine) + self.operator.open_calls(machine) + process.own_changes;
        let sizes = process.engine.sizes();
        self.tell(machine, &Event::Held { sizes: &sizes, open_calls });
        self.trace.note(self.now, &[4, machine as u64, applied, digest], || {
            format!("node {}: applied through {applied}", process.id)
        });
    }
}

/// What the others hold of what is committed, as far as this node knows, which leads.
pub(super) fn note_acknowledged(process: &mut Process) {
    let status = process.engine.status();
    let mut members = process.members.borrow_mut();
    for (peer, progress) in status.peers {
        if let Some(progress) = progress {
            members.acknowledged(peer, progress.matched.min(status.commit));
        }
    }
}

/// The others remember what this node's disk holds.
pub(super) fn tell_durable(process: &mut Process) {
    let index = process.engine.durable_index();
    if index > std::mem::replace(&mut process.told_durable, index) {
        for peer in others(process) {
            put(process, peer, Packet::Durable(index));
        }
    }
}

pub(super) fn record_if(process: &mut Process, now: Time, is_needed: impl FnOnce(&Members) -> bool) {
    let mut members = process.members.borrow_mut();
    if is_needed(&members) {
        process.recorded = now;
        let (number, record) = members.next_record();
        process.tasks.push(Task::NodeRecord { number, record });
    }
}

pub(super) fn put(process: &mut Process, to: NodeId, packet: Packet) -> bool {
    let routed = process.peers.get(&to).is_some_and(|peer| peer.route().is_some());
    if routed {
        process.outbox.push((to, packet));
    }
    routed
}

/// Says what a peer may have missed: how far this node is, and what its disk holds.
fn tell_who_i_am(process: &mut Process, peer: NodeId) {
    let report = process.members.borrow().formation.report().encode();
    put(process, peer, Packet::Formation(report));
    put(process, peer, Packet::Durable(process.told_durable));
}

/// Makes a stage durable, one at a time.
pub(super) fn store_stage(process: &mut Process, stage: Option<Stage>) {
    let Some(stage) = stage.filter(|_| process.stages.is_empty()) else { return };
    let mut members = process.members.borrow_mut();
    members.record.stage = stage.clone();
    let (number, record) = members.next_record();
    process.tasks.push(Task::NodeRecord { number, record });
    process.stages.insert(number, stage);
}

fn stage_stored(process: &mut Process, stage: Stage) {
    let founders = match &stage {
        Stage::Formed(founders) => Some(founders.clone()),
        Stage::Unformed | Stage::Prepared(_) => None,
    };
    let next = process.members.borrow_mut().formation.stored(stage);
    tell_all(process);
    if let Some(founders) = founders {
        process.engine.handle_formed(&founders);
    }
    store_stage(process, next);
}

/// A number for a packet, for the trace.
pub(super) fn fingerprint(packet: &Packet) -> u64 {
    match packet {
        Packet::Raft(message) => {
            let word = message.msg_type as u64 ^ message.term << 8 ^ message.index << 24 ^ message.commit << 40;
            word ^ (message.entries.len() as u64) << 56
        }
        Packet::Forward(command) => command.header().number ^ command.header().origin << 32,
        Packet::Reject(rejection) => rejection.numbers.iter().fold(rejection.boot, |sum, number| sum * 31 + number),
        Packet::Formation(report) => hash_of(report),
        Packet::Durable(index) => *index,
    }
}
