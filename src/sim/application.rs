//! The application beside a node: what Python does in the real world. It applies in order, moves its cursor, and
//! resolves its calls; its loop may lag behind, or be blocked.

use std::sync::Arc;

use super::clock::MS;
use super::event::{ChangeEnded, Ended, Event};
use super::machine::{Kept, Process, Told};
use super::network::{MachineId, Place};
use super::objects::{decode, Action, Operation};
use super::operator::FIRST as CHANGES;
use super::state::State;
use super::trace::{hash_of, mixed};
use super::world::{Happening, World};
use crate::driver::port::{Completion, Request};
use crate::engine::{Applied, Failure, Marker, Token, APPLICATION_GROUP};
use crate::storage::snapshot::{Form, Head, SnapshotFile, SnapshotName, SnapshotStore};
use crate::storage::StorageError;

/// Completions taken in one turn.
const TURN: usize = 64;

/// One of so many applied commands may come once more, of the newest so many.
const REMEMBERED_EVERY: u64 = 8;
const REMEMBERED_MAX: usize = 500;

/// The call of a reader of `commits()`; clients' calls have other numbers.
const READER: Token = 0;

impl World {
    pub(super) fn take_turn(&mut self, place: Place) {
        let machine = &self.machines[place.machine];
        let held_until = machine.paused_until.max(machine.blocked_until);
        if held_until > self.now {
            return self.happens(held_until, Happening::Turn(place));
        }
        self.with(place, |world, process| {
            if !process.application.is_due {
                return;
            }
            for _ in 0..TURN {
                if process.application.is_poisoned {
                    break;
                }
                let Some(told) = process.application.completions.pop_front() else { break };
                world.take_told(place.machine, process, told);
            }
            process.application.is_due = !process.application.completions.is_empty();
            if process.application.is_due {
                let at = world.now + world.rng.u64(MS / 100..MS / 5);
                world.happens(at, Happening::Turn(place));
            }
        });
        self.stop_poisoned(place.machine);
        self.wake_soon(place.machine);
    }

    /// The application takes everything that its node has told it, at the node's end.
    pub(super) fn drain(&mut self, machine: MachineId, process: &mut Process) {
        while let Some(told) = process.application.completions.pop_front() {
            if process.application.is_poisoned {
                break;
            }
            self.take_told(machine, process, told);
        }
    }

    fn take_told(&mut self, machine: MachineId, process: &mut Process, told: Told) {
        match told {
            Told::Completion(completion) => self.take_completion(machine, process, completion),
            Told::Capture(marker) => self.capture(machine, process, marker),
        }
    }

    fn take_completion(&mut self, machine: MachineId, process: &mut Process, completion: Completion) {
        match completion {
            Completion::Apply { entries, through, bytes } => {
                let taken = self.apply_to_guest(machine, &entries);
                for applied in &entries[..taken] {
                    self.apply(machine, process, applied);
                }
                if taken < entries.len() {
                    process.application.is_poisoned = true;
                    return;
                }
                process.application.unapplied_bytes -= bytes;
                process.application.applied = through;
                self.tell(machine, &Event::Reached { through });
                let digest = process.application.state.digest;
                self.tell(machine, &Event::ApplicationDigest { applied: through, digest });
                if let Some(last) = entries.last() {
                    self.keep(machine, process, (last.index, last.term));
                }
                self.resolve_barriers(process);
            }
            Completion::Restore { file } => self.restore(machine, process, file),
            Completion::Barrier { token, index } => {
                process.application.barriers.push((index, token));
                self.resolve_barriers(process);
            }
            Completion::Failed { token, ref failure } if token >= CHANGES => {
                self.end_change(token, &change_ended(failure));
            }
            Completion::Changed { token, index, ids } => self.end_change(token, &ChangeEnded::Done { index, ids }),
            Completion::Failed { token, .. } if self.end_transfer(token, false) => {}
            Completion::Transferred { token, .. } => {
                self.figures.transferred += 1;
                self.end_transfer(token, false);
            }
            Completion::Failed { token, failure } => self.end_call(token, ended(&failure)),
            Completion::Range { token: READER, result: Ok((entries, through)) } => {
                let after = process.application.read_through;
                self.tell(machine, &Event::Commits { after, through, entries: &entries });
                process.application.read_through = through;
                process.application.reads = false;
            }
            Completion::Range { token: READER, result: Err(begin) } => {
                // Compacted: it goes on where the log begins.
                self.figures.compacted += 1;
                process.application.read_through = begin;
                process.application.reads = false;
            }
            Completion::Range { .. }
            | Completion::Listening { .. }
            | Completion::Capture(_)
            | Completion::Snapshot { .. }
            | Completion::Leadership(_)
            | Completion::Stopped { .. } => {}
        }
    }

    fn apply(&mut self, machine: MachineId, process: &mut Process, applied: &Applied) {
        self.figures.applied += 1;
        let application = &mut process.application;
        let payload = applied.command.payload();
        let decoded = decode(payload);
        let state = &mut application.state;
        let answer = decoded.and_then(|(_, operation)| state.objects.act(operation));
        let outcome = mixed(hash_of(payload), answer.map_or(0, |answer| answer + 1));
        state.digest = mixed(state.digest, mixed(outcome, applied.index));
        state.digest = mixed(state.digest, applied.command.header().timestamp_ns);
        self.tell(machine, &Event::Applied { applied });
        if applied.index % REMEMBERED_EVERY == 0 {
            self.applied.push_back((applied.command.header().origin, applied.index, applied.command.clone()));
            if self.applied.len() > REMEMBERED_MAX {
                self.applied.pop_front();
            }
        }
        if let Some(token) = applied.token {
            self.end_call(token, Ended::Answered { index: Some(applied.index), answer });
        }
    }

    /// An application that is durable itself keeps what it has applied, with the last entry's place, at once (rule D2).
    fn keep(&mut self, machine: MachineId, process: &Process, through: (u64, u64)) {
        if self.plan.keeps_state {
            self.machines[machine].kept = Some(Kept { state: process.application.state.clone(), through });
        }
    }

    /// The application shows its state; its file is written while it goes on.
    fn capture(&mut self, machine: MachineId, process: &mut Process, marker: Marker) {
        let Marker { index, term, meta } = marker;
        assert_eq!(process.application.applied, index, "a snapshot was asked for elsewhere than where it belongs");
        let head = Head { group: APPLICATION_GROUP, index, term, form: Form::Bytes, meta: meta.encode() };
        let state = process.application.state.to_bytes();
        let takes = [MS, 20 * MS, 2000 * MS][self.rng.usize(0..3)];
        let at = self.now + self.rng.u64(0..takes);
        self.trace.note(self.now, &[17, machine as u64, index], || {
            format!("node {}: takes a snapshot at {index}", process.id)
        });
        self.happens(at, Happening::Captured(process.place, Box::new((head, state))));
    }

    /// The file of a snapshot is whole, or there was no room for it.
    pub(super) fn captured(&mut self, place: Place, captured: &(Head, Vec<u8>)) {
        let (head, state) = captured;
        let fails = self.rng.u32(0..20) == 0;
        let written = self.with(place, |world, process| {
            let outcome = match fails {
                true => Err("there was no room for it".into()),
                false => write_snapshot(world.machines[place.machine].snapshots.as_ref(), head, state),
            };
            world.figures.snapshots += u64::from(outcome.is_ok());
            process.captured.push((head.index, outcome));
        });
        if written.is_some() {
            self.wake_soon(place.machine);
        }
    }

    /// A snapshot takes the place of the application's state.
    fn restore(&mut self, machine: MachineId, process: &mut Process, file: Arc<dyn SnapshotFile>) {
        let SnapshotName { index, term, .. } = *file.name();
        let bytes = file.chunks().collect::<Result<Vec<_>, _>>().expect("the file is whole").concat();
        process.application.state = State::from_bytes(&bytes).expect("an application wrote it");
        process.application.applied = index;
        self.figures.restored += 1;
        let digest = process.application.state.digest;
        self.trace.note(self.now, &[18, machine as u64, index, digest], || {
            format!("node {}: its application goes on from the snapshot at {index}", process.id)
        });
        self.tell(machine, &Event::Restored { index });
        self.tell(machine, &Event::ApplicationDigest { applied: index, digest });
        self.keep(machine, process, (index, term));
        self.resolve_barriers(process);
    }

    fn resolve_barriers(&mut self, process: &mut Process) {
        let application = &mut process.application;
        let waiting = std::mem::take(&mut application.barriers);
        for (index, token) in waiting {
            if index > application.applied {
                application.barriers.push((index, token));
            } else if let Some(key) = self.workload.key_of(token) {
                let answer = application.state.objects.act(Operation { key, action: Action::Read });
                self.end_call(token, Ended::Answered { index: None, answer });
            }
        }
    }

    /// The application reads on in `commits()`, or again from somewhere.
    pub(super) fn read_commits(&mut self, place: Place) {
        let pause = self.rng.u64(100 * MS..1000 * MS);
        let max_bytes = [1, 300, 1 << 20][self.rng.usize(0..3)];
        let again = self.rng.u32(0..8) == 0;
        let begin = if again { self.rng.f64() } else { 1.0 };
        let asked = self.with(place, |_, process| {
            let application = &mut process.application;
            if !std::mem::replace(&mut application.reads, true) {
                application.read_through = (application.read_through as f64 * begin) as u64;
                let after = application.read_through.max(crate::engine::BOOTSTRAP.0);
                application.read_through = after;
                process.inbox.requests.push(Request::ReadApplied { token: READER, after, max_bytes });
            }
        });
        if asked.is_some() {
            self.wake_soon(place.machine);
            self.happens(self.now + pause, Happening::Read(place));
        }
    }
}

fn write_snapshot(store: &dyn SnapshotStore, head: &Head, state: &[u8]) -> Result<SnapshotName, String> {
    let written = || {
        let mut writer = store.create(head)?;
        writer.write_chunk(state)?;
        writer.finish()
    };
    written().map(|file| *file.name()).map_err(|error: StorageError| error.to_string())
}

fn change_ended(failure: &Failure) -> ChangeEnded {
    match ended(failure) {
        Ended::NotCommitted => ChangeEnded::Refused,
        Ended::AppliedWithoutResult { index } => ChangeEnded::WithoutResult { index },
        Ended::Answered { .. } | Ended::Unknown | Ended::Lost => ChangeEnded::Unknown,
    }
}

fn ended(failure: &Failure) -> Ended {
    match failure {
        Failure::TimedOutUnsent { .. } | Failure::Refused { .. } | Failure::ClosedUnsent => Ended::NotCommitted,
        Failure::Snapshot { .. } | Failure::Transfer { .. } => Ended::NotCommitted,
        Failure::TimedOut | Failure::ChangeTimedOut { .. } | Failure::Closed => Ended::Unknown,
        Failure::AppliedWithoutResult { index } => Ended::AppliedWithoutResult { index: *index },
    }
}
