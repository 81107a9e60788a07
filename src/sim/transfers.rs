//! Calls of applications for another leader.

use super::clock::Time;
use super::event::Event;
use super::network::MachineId;
use super::operator::FIRST as CHANGES;
use super::plan::Target;
use super::world::World;
use crate::driver::port::Request;
use crate::engine::Token;

/// Clients' calls have lower numbers.
const FIRST: Token = 1 << 48;

impl World {
    /// An application calls, if it runs and its node is there.
    pub(super) fn call_for_leader(&mut self, target: Target, to: Option<MachineId>, patience: Option<Time>) {
        let machine = self.resolve(target);
        let at = &self.machines[machine];
        let runs = at.paused_until.max(at.blocked_until) <= self.now;
        let Some(process) = at.process.as_ref().filter(|process| runs && process.closing.is_none()) else { return };
        let place = process.place;
        let deadline_ns = patience.map(|patience| at.clock.now(self.now).boottime_ns + patience);
        let deadline = deadline_ns.map(|deadline_ns| at.clock.time_of(deadline_ns));
        let token = FIRST + self.transfers.1;
        self.transfers.1 += 1;
        self.transfers.0.insert(token, machine);
        self.tell(machine, &Event::CalledForLeader { call: token, deadline });
        let to = to.map(|to| self.machines[to].node);
        self.with(place, |_, process| {
            process.inbox.requests.push(Request::TransferLeader { token, to, deadline_ns });
        });
        self.wake_soon(machine);
    }

    /// Such a call ends; false if `token` is none of them.
    pub(super) fn end_transfer(&mut self, token: Token, is_lost: bool) -> bool {
        let Some(machine) = self.transfers.0.remove(&token) else { return (FIRST..CHANGES).contains(&token) };
        self.trace.note(self.now, &[20, token], || format!("the call for another leader on machine {machine} ends"));
        self.tell(machine, &Event::LeaderCallEnded { call: token, is_lost });
        true
    }

    /// A process is gone, and with it whoever waited in it.
    pub(super) fn lose_transfers(&mut self, machine: MachineId) {
        let lost = self.transfers.0.iter().filter(|(_, at)| **at == machine).map(|(token, _)| *token);
        for token in lost.collect::<Vec<_>>() {
            self.end_transfer(token, true);
        }
    }
}
