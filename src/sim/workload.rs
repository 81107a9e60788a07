//! The clients: each calls its node, waits for the outcome, and does what a careful user would: tries again what was
//! certainly not committed, and goes on otherwise.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::clock::{Time, MS, SECOND};
use super::event::{Ended, Event};
use super::network::MachineId;
use super::objects::{encode, kind, Action, Key, Kind, Operation};
use super::plan::{Plan, Target, QUIET};
use super::world::{Happening, World};
use crate::driver::port::{Proposal, Request};
use crate::engine::command::Command;
use crate::engine::Token;

/// The objects change so often: histories stay short enough to be judged.
const GENERATION: Time = 3 * SECOND;

/// Objects that are in use at the same time.
const OBJECTS: u64 = 6;

/// A register that nobody else uses: those of bursts follow.
const APART: Key = 3 << 32;

struct Client {
    machine: MachineId,
    waits: bool,
    again: Option<Operation>,
}

struct Call {
    /// Nobody's, if it belongs to a burst.
    client: Option<usize>,
    machine: MachineId,
    operation: Operation,
}

/// The lowest key that nobody uses before the next change of objects.
pub(super) fn fresh_keys(now: Time) -> Key {
    (now / GENERATION + 1) * OBJECTS
}

/// All clients and their calls.
pub(super) struct Workload {
    rng: Rng,
    clients: Vec<Client>,
    open: BTreeMap<Token, Call>,
    last: Token,
}

impl Workload {
    pub fn new(plan: &Plan, rng: &mut Rng) -> Self {
        let clients = (0..plan.machines() * plan.clients).map(|client| Client {
            machine: client % plan.machines(),
            waits: false,
            again: None,
        });
        Self { rng: rng.fork(), clients: clients.collect(), open: BTreeMap::new(), last: 0 }
    }

    /// What a barrier's caller wants to read.
    pub fn key_of(&self, call: Token) -> Option<Key> {
        self.open.get(&call).map(|call| call.operation.key)
    }

    /// Calls on this machine that have not ended.
    pub fn open_calls(&self, machine: MachineId) -> usize {
        self.open.values().filter(|call| call.machine == machine).count()
    }

    fn operation(&mut self, now: Time) -> Operation {
        let key = now / GENERATION * OBJECTS + self.rng.u64(0..OBJECTS);
        // Values are told apart by the call that wrote them.
        let value = self.last + 1;
        let guess = self.rng.u64(value.saturating_sub(10)..=value);
        let reads = self.rng.u32(0..3) == 0;
        let action = match (kind(key), self.rng.u32(0..3)) {
            _ if reads => Action::Read,
            (Kind::Register, 0) => Action::CompareAndSet(Some(guess), value),
            (Kind::Register, _) => Action::Write(value),
            (Kind::Counter, _) => Action::Add(value % 7 + 1),
            (Kind::Queue, 0) => Action::Pop,
            (Kind::Queue, _) => Action::Push(value),
        };
        Operation { key, action }
    }
}

impl World {
    pub(super) fn begin_workload(&mut self) {
        for client in 0..self.workload.clients.len() {
            let at = self.rng.u64(0..2 * SECOND);
            self.happens(at, Happening::Client(client));
        }
    }

    /// A client calls, if its node is there and its application runs.
    pub(super) fn client(&mut self, client: usize) {
        let machine = self.workload.clients[client].machine;
        if self.now > QUIET || self.workload.clients[client].waits {
            return;
        }
        if !self.may_call(machine) {
            return self.happens(self.now + 100 * MS, Happening::Client(client));
        }
        let operation = self.workload.clients[client].again.take();
        let operation = operation.unwrap_or_else(|| self.workload.operation(self.now));
        let patience = match self.workload.rng.u32(0..10) {
            0 => None,
            1..=5 if self.plan.troubled_installs => None,
            1..=5 if self.plan.hasty_reads && operation.action == Action::Read => {
                Some(self.workload.rng.u64(1..200) * MS)
            }
            1 => Some(self.workload.rng.u64(1..100) * MS),
            _ => Some(self.workload.rng.u64(200..8000) * MS),
        };
        self.workload.clients[client].waits = true;
        self.call(Some(client), machine, operation, patience);
        self.wake_soon(machine);
    }

    /// Whether the application runs, and has a node that does not close.
    fn may_call(&self, machine: MachineId) -> bool {
        let at = &self.machines[machine];
        let runs = at.paused_until.max(at.blocked_until) <= self.now;
        at.process.as_ref().is_some_and(|process| runs && process.closing.is_none())
    }

    /// An application calls many times at once: a leader that is cut off has a long log that nobody shares then. Each
    /// call has an object of its own, so that it costs the judge nothing.
    pub(super) fn burst(&mut self, target: Target, calls: u32) {
        let machine = self.resolve(target);
        if !self.may_call(machine) {
            return;
        }
        for _ in 0..calls {
            let value = self.workload.last + 1;
            let operation = Operation { key: APART + 3 * value, action: Action::Write(value) };
            let patience = self.workload.rng.u64(200..8000) * MS;
            self.call(None, machine, operation, Some(patience));
        }
        self.wake_soon(machine);
    }

    fn call(&mut self, client: Option<usize>, machine: MachineId, operation: Operation, patience: Option<Time>) {
        let Some(place) = self.machines[machine].process.as_ref().map(|process| process.place) else { return };
        self.workload.last += 1;
        let token = self.workload.last;
        let padding = self.workload.rng.usize(0..=self.plan.padding);
        let deadline_ns = patience.map(|patience| self.machines[machine].clock.now(self.now).boottime_ns + patience);
        let deadline = deadline_ns.map(|deadline_ns| self.machines[machine].clock.time_of(deadline_ns));
        self.figures.calls += 1;
        self.trace.note(self.now, &[10, token, operation.key], || {
            let who = client.map_or("a burst".into(), |client| format!("client {client}"));
            format!("{who} on machine {machine}: call {token}, {operation:?}, until {deadline:?}")
        });
        self.workload.open.insert(token, Call { client, machine, operation });
        self.tell(machine, &Event::Called { call: token, operation, deadline });
        self.with(place, |world, process| match operation.action {
            Action::Read => process.inbox.requests.push(Request::ReadBarrier { token, deadline_ns }),
            _ => {
                let mut payload = encode(token, operation, padding);
                if let Some(guest) = &mut world.guest {
                    payload.extend(guest.command(world.now));
                }
                let command = Command::new(&payload);
                process.inbox.proposals.push(Proposal { token, command, deadline_ns });
            }
        });
    }

    /// A call ends; its client goes on after a while.
    pub(super) fn end_call(&mut self, token: Token, how: Ended) {
        let Some(Call { client, machine, operation }) = self.workload.open.remove(&token) else { return };
        self.trace.note(self.now, &[11, token], || format!("call {token} ends: {how:?}"));
        self.figures.answered += u64::from(matches!(how, Ended::Answered { .. }));
        self.tell(machine, &Event::CallEnded { call: token, how });
        let Some(client) = client else { return };
        let again = how == Ended::NotCommitted && self.workload.rng.bool();
        let waiting = &mut self.workload.clients[client];
        waiting.waits = false;
        waiting.again = again.then_some(operation);
        let pause = self.workload.rng.u64(0..=2 * self.plan.think);
        self.happens(self.now + pause, Happening::Client(client));
    }

    /// A process is gone, and with it whoever waited in it.
    pub(super) fn lose_calls(&mut self, machine: MachineId) {
        let of_machine = self.workload.open.iter().filter(|(_, call)| call.machine == machine);
        for token in of_machine.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.end_call(token, Ended::Lost);
        }
    }
}
