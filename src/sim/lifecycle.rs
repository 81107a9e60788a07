//! How processes begin and end.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::clock::{Time, MS, SECOND};
use super::event::{Event, Stopped};
use super::machine::{Application, Kept, Persister, Process};
use super::members::OWN;
use super::network::{MachineId, Peer, Place};
use super::plan::{Crash, HEALED};
use super::round::{note_acknowledged, record_if, store_stage, tell_durable};
use super::world::{Happening, World};
use crate::driver::gate::{Ended, Gate, Members};
use crate::driver::identity::{self, Drawn};
use crate::driver::options::Joins;
use crate::driver::persister::{gather, Answer};
use crate::driver::start::{resume, Resumed};
use crate::driver::{AdminFrom, Listen, Options};
use crate::engine::{APPLICATION_GROUP, BOOTSTRAP};
use crate::storage::StorageError;

impl World {
    /// A process begins, unless it runs already or its time has been put off.
    pub(super) fn start(&mut self, machine: MachineId) {
        let at = &mut self.machines[machine];
        if at.process.is_some() || !at.runs || at.starts_at.is_none_or(|time| time > self.now) {
            return;
        }
        at.starts_at = None;
        at.incarnation += 1;
        self.figures.starts += 1;
        let place = Place { machine, incarnation: at.incarnation };
        // Once the cluster is formed, the log says who they are, and the list does not matter.
        let wrong = at.members.take();
        let is_wrong = wrong.is_some();
        match self.resume(place, wrong) {
            Ok(mut process) => {
                let next = process.members.borrow().formation.next_stage();
                store_stage(&mut process, next);
                for peer in process.addresses.keys().copied().collect::<Vec<_>>() {
                    process.peers.entry(peer).or_default().dialling = true;
                    let at = self.now + self.rng.u64(0..10 * MS);
                    self.happens(at, Happening::Dial(place, peer));
                }
                let at = self.now + self.rng.u64(0..SECOND);
                self.happens(at, Happening::Read(place));
                self.machines[machine].process = Some(process);
                if let Some(guest) = &mut self.guest {
                    guest.start(self.now, machine);
                }
                self.wake(machine, self.now);
            }
            Err(_) if is_wrong => {
                self.ended(machine, &Stopped::WrongMembers);
                self.start_again(machine, SECOND);
            }
            Err(reason) => self.ended(machine, &Stopped::ByItself(reason)),
        }
    }

    fn resume(&mut self, place: Place, wrong: Option<BTreeMap<u64, String>>) -> Result<Process, String> {
        let (machine, id) = (place.machine, self.machines[place.machine].node);
        let kept = self.machines[machine].kept.clone();
        let listed = wrong.unwrap_or_else(|| self.machines[machine].listed.clone());
        let mut opened = self.machines[machine].disk.open().map_err(|error| error.to_string())?;
        opened.snapshots = self.machines[machine].snapshots.clone();
        let mut drawn = Drawn { identity: self.rng.u128(..), nonce: self.rng.u64(..), seed: self.rng.u64(..) };
        // A directory that was made before keeps its identity.
        let is_new = !opened.node_records.contains_key(identity::KEY);
        let joins = self.machines[machine].joins.clone();
        let joins = joins.map(|Joins { name, identity }| Joins { name, identity: identity.filter(|_| is_new) });
        drawn.identity = joins.as_ref().and_then(|joins| joins.identity).unwrap_or(drawn.identity);
        let name = joins.as_ref().map(|joins| joins.name.clone());
        let options = Options {
            id,
            members: listed.clone(),
            cluster: "simulated".into(),
            data_dir: None,
            listen: Listen::Address(String::new()),
            advertise: None,
            tuning: self.plan.tuning.clone(),
            takes_snapshots: self.plan.takes_snapshots && self.guest.is_none(),
            durable_applied: kept.as_ref().map(|kept| kept.through),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            dispatch: tracing::Dispatch::none(),
            joins,
            faults: None,
        };
        let group = opened.groups.get(&APPLICATION_GROUP);
        let (begin, end) = group.map_or((BOOTSTRAP, 0), |state| (state.truncated, state.last_index));
        let log = opened.reader.entries(APPLICATION_GROUP, begin.0 + 1, end + 1, u64::MAX);
        let log = log.map_err(|error| error.to_string())?;
        let Resumed { engine, writer, members, .. } =
            resume(&options, opened, &drawn).map_err(|error| error.to_string())?;
        let mut application = Application::default();
        if let Some(Kept { state, through: (index, _) }) = kept {
            (application.state, application.applied) = (state, index);
        }
        let boot = members.borrow().record.boot;
        self.trace.note(self.now, &[9, machine as u64, boot, end], || {
            format!("node {id} starts on machine {machine}: boot {boot}, log through {end}")
        });
        self.tell(machine, &Event::Started { begin, log: &log, application: application.applied });
        let addresses = members.borrow().dialled(&listed);
        Ok(Process {
            place,
            id,
            name,
            engine,
            gate: Gate::new(members.clone(), Arc::default(), AdminFrom::Localhost),
            members,
            persister: Persister { writer, queue: Vec::new(), writing: None, answer: Answer::default() },
            peers: BTreeMap::new(),
            listed,
            addresses,
            occurred: Vec::new(),
            inbox: Default::default(),
            outbox: Vec::new(),
            tasks: Vec::new(),
            completions: Vec::new(),
            stages: BTreeMap::new(),
            recorded: self.now,
            reported: self.now,
            told_durable: 0,
            own_changes: 0,
            leaving: BTreeMap::new(),
            told: None,
            ticks: 0,
            next_tick: self.now + self.plan.tuning.tick().as_nanos() as Time,
            closing: None,
            crash: None,
            down: SECOND,
            captured: Vec::new(),
            application,
            rounds: 0,
        })
    }

    /// A batch is on the disk, or could not be written.
    pub(super) fn written(&mut self, place: Place) {
        let paused_until = self.machines[place.machine].paused_until;
        if paused_until > self.now {
            return self.happens(paused_until, Happening::Written(place));
        }
        self.with(place, |world, process| {
            world.finish_write(place.machine, process);
            world.begin_write(place.machine, process);
        });
        self.wake_soon(place.machine);
    }

    fn finish_write(&mut self, machine: MachineId, process: &mut Process) {
        let Some(gathered) = process.persister.writing.take() else { return };
        let persister = &mut process.persister;
        if persister.answer.failure.is_some() {
            return;
        }
        let written = match self.machines[machine].disk_fails {
            true => Err(StorageError::Poisoned { reason: "the schedule says so".into() }),
            false => persister.writer.write(gathered.batch),
        };
        let maintains = self.rng.u32(0..4) == 0;
        let written = written.and_then(|()| if maintains { persister.writer.maintain().map(drop) } else { Ok(()) });
        let answer = &mut persister.answer;
        match written {
            Ok(()) => {
                answer.ready = answer.ready.max(gathered.ready);
                answer.node_record = answer.node_record.max(gathered.node_record);
                answer.snapshot = gathered.snapshot.or(answer.snapshot);
            }
            Err(error) => answer.failure = Some(error),
        }
    }

    /// The process is gone, between two steps.
    pub(super) fn crash(&mut self, machine: MachineId, mut process: Process, kind: Crash) {
        // What a round sends is written at its end, or earlier if it is much.
        if self.rng.bool() {
            self.flush(&mut process);
        }
        self.crash_disk(machine, &mut process, kind == Crash::PowerLoss);
        if kind == Crash::PowerLoss {
            self.machines[machine].clock.reboot(&mut self.rng);
        }
        let down = process.down;
        self.drop_connections(&process, kind == Crash::PowerLoss);
        drop(process);
        self.ended(machine, &Stopped::Crashed);
        self.start_again(machine, down);
    }

    fn crash_disk(&mut self, machine: MachineId, process: &mut Process, power_fails: bool) {
        let persister = &mut process.persister;
        let writing = persister.writing.take().map(|gathered| gathered.batch);
        self.machines[machine].disk.crash(persister.writer.as_mut(), writing, power_fails, &mut self.rng);
    }

    /// The engine, or the disk without being asked to, gave up.
    pub(super) fn stop(&mut self, machine: MachineId, mut process: Process, why: &Stopped) {
        self.complete(&mut process);
        if self.machines[machine].blocked_until > self.now {
            self.tell(machine, &Event::WasHeldUp);
        }
        self.drain(machine, &mut process);
        self.drop_connections(&process, false);
        let down = process.down;
        drop(process);
        // A node that finds out that its own disk went back in time does right to stop.
        let is_found_out = self.machines[machine].out && matches!(why, Stopped::ByItself(_));
        self.ended(machine, if is_found_out { &Stopped::FoundOut } else { why });
        self.start_again(machine, down);
    }

    /// The disk failed: the node answers no one any more, and leaves its files as they are.
    pub(super) fn stop_by_disk(&mut self, machine: MachineId, mut process: Process) {
        let asked_for = std::mem::take(&mut self.machines[machine].disk_fails);
        self.crash_disk(machine, &mut process, true);
        let why = if asked_for { Stopped::DiskFailed } else { Stopped::ByItself("its log failed".into()) };
        self.stop(machine, process, &why);
    }

    /// The end that the application asked for.
    pub(super) fn close_in_order(&mut self, machine: MachineId, mut process: Process) {
        for effect in process.engine.close() {
            if let crate::engine::Effect::Failed { token, failure } = effect {
                // Nobody waits for what it changes by itself.
                if token != OWN {
                    process.completions.push(crate::driver::port::Completion::Failed { token, failure }.into());
                }
            }
        }
        let is_poisoned = process.application.is_poisoned;
        self.end_in_order(machine, process, if is_poisoned { &Stopped::Crashed } else { &Stopped::Closed });
    }

    /// The node has no part in its cluster any more. Some are started again all the same.
    pub(super) fn end_for_good(&mut self, machine: MachineId, process: Process, ended: Ended) {
        let why = match ended {
            Ended::Removed => Stopped::Removed(process.id),
            Ended::Superseded => Stopped::Superseded(process.id),
        };
        self.machines[machine].runs = self.rng.bool();
        self.end_in_order(machine, process, &why);
    }

    fn end_in_order(&mut self, machine: MachineId, mut process: Process, why: &Stopped) {
        tell_durable(&mut process);
        note_acknowledged(&mut process);
        record_if(&mut process, self.now, Members::is_changed);
        self.complete(&mut process);
        if self.machines[machine].blocked_until > self.now {
            // A loop that is blocked takes in late what its node told it in time.
            self.tell(machine, &Event::WasHeldUp);
        }
        self.drain(machine, &mut process);
        self.flush(&mut process);
        // The persist thread ends with what it was handed.
        self.finish_write(machine, &mut process);
        process.persister.queue.append(&mut process.tasks);
        let rest = gather(std::mem::take(&mut process.persister.queue));
        let disk = &self.machines[machine].disk;
        disk.begin(&rest.batch);
        if process.persister.answer.failure.is_none() && !self.machines[machine].disk_fails {
            // A log that cannot be written at the very end is found out at the next start.
            let _ = process.persister.writer.write(rest.batch);
        }
        let down = process.down;
        self.drop_connections(&process, false);
        drop(process);
        self.ended(machine, why);
        self.start_again(machine, down);
    }

    pub(super) fn start_again(&mut self, machine: MachineId, down: Time) {
        let healed = HEALED + self.rng.u64(0..SECOND);
        let at = if self.now >= HEALED { self.now + down.min(SECOND) } else { (self.now + down).min(healed) };
        self.start_at(machine, at);
    }

    /// The system closes what a process leaves behind; a machine without power says nothing.
    fn drop_connections(&mut self, process: &Process, silently: bool) {
        let ids = process.peers.values().flat_map(Peer::connections).collect::<Vec<_>>();
        for id in ids {
            let Some(connection) = self.wires.connections.get_mut(&id) else { continue };
            let end = connection.end_of(process.place);
            if !silently {
                self.hang_up(id, end);
                continue;
            }
            connection.open[end] = false;
            if connection.open[1 - end] {
                let at = self.now + self.rng.u64(SECOND..5 * SECOND);
                self.happens(at, Happening::Closed(id, 1 - end));
            } else {
                self.wires.connections.remove(&id);
            }
        }
    }
}
