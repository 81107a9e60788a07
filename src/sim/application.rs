//! The application beside a node: what Python does in the real world. It applies in order, moves its cursor, and
//! resolves its calls; its loop may lag behind, or be blocked.

use super::clock::MS;
use super::event::{Ended, Event};
use super::machine::Process;
use super::network::{MachineId, Place};
use super::objects::{decode, Action, Operation};
use super::trace::{hash_of, mixed};
use super::world::{Happening, World};
use crate::driver::port::{Completion, Request};
use crate::engine::{Applied, Failure, Token};

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
                let Some(completion) = process.application.completions.pop_front() else { break };
                world.take_completion(place.machine, process, completion);
            }
            process.application.is_due = !process.application.completions.is_empty();
            if process.application.is_due {
                let at = world.now + world.rng.u64(MS / 100..MS / 5);
                world.happens(at, Happening::Turn(place));
            }
        });
        self.wake_soon(place.machine);
    }

    /// The application takes everything that its node has told it, at the node's end.
    pub(super) fn drain(&mut self, machine: MachineId, process: &mut Process) {
        while let Some(completion) = process.application.completions.pop_front() {
            self.take_completion(machine, process, completion);
        }
    }

    fn take_completion(&mut self, machine: MachineId, process: &mut Process, completion: Completion) {
        match completion {
            Completion::Apply { entries, through, bytes } => {
                for applied in &entries {
                    self.apply(machine, process, applied);
                }
                process.application.unapplied_bytes -= bytes;
                process.application.applied = through;
                self.tell(machine, &Event::Reached { through });
                let digest = process.application.digest;
                self.tell(machine, &Event::ApplicationDigest { applied: through, digest });
                self.resolve_barriers(process);
            }
            Completion::Barrier { token, index } => {
                process.application.barriers.push((index, token));
                self.resolve_barriers(process);
            }
            Completion::Failed { token, failure } => self.end_call(token, ended(&failure)),
            Completion::Range { token: READER, result: Ok((entries, through)) } => {
                let after = process.application.read_through;
                self.tell(machine, &Event::Commits { after, through, entries: &entries });
                process.application.read_through = through;
                process.application.reads = false;
            }
            Completion::Range { .. }
            | Completion::Listening { .. }
            | Completion::Capture(_)
            | Completion::Restore { .. }
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
        let answer = decoded.and_then(|(_, operation)| application.objects.act(operation));
        let outcome = mixed(hash_of(payload), answer.map_or(0, |answer| answer + 1));
        application.digest = mixed(application.digest, mixed(outcome, applied.index));
        application.digest = mixed(application.digest, applied.command.header().timestamp_ns);
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

    fn resolve_barriers(&mut self, process: &mut Process) {
        let application = &mut process.application;
        let waiting = std::mem::take(&mut application.barriers);
        for (index, token) in waiting {
            if index > application.applied {
                application.barriers.push((index, token));
            } else if let Some(key) = self.workload.key_of(token) {
                let answer = application.objects.act(Operation { key, action: Action::Read });
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

fn ended(failure: &Failure) -> Ended {
    match failure {
        Failure::TimedOutUnsent { .. }
        | Failure::Refused { .. }
        | Failure::ClosedUnsent
        | Failure::Snapshot { .. } => Ended::NotCommitted,
        Failure::TimedOut | Failure::Closed => Ended::Unknown,
        Failure::AppliedWithoutResult { index } => Ended::AppliedWithoutResult { index: *index },
    }
}
