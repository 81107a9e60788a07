//! Somebody else's state machine in the world: it rides on the simulated application, and its commands on the application's.
//!
//! A command in the log is one of the world's own (`objects`) with the guest's bytes behind it. So the same checkers are
//! at work with a guest as without, and a world without one is what it would be if there were no guests.

use super::clock::{Time, SECOND};
use super::network::MachineId;
use super::objects::LEN;
use super::plan::{Fault, Plan, END};
use super::world::{Figures, World};
use super::{run_with, Run};
use crate::engine::command::Command;
use crate::engine::Applied;

pub use super::plan::GUEST_BYTES_MAX;

/// A state machine with a replica on every machine, and the commands for it.
pub trait Guest {
    /// The bytes of the next command, [`GUEST_BYTES_MAX`] of them at most.
    fn command(&mut self, now: Time) -> Vec<u8>;

    /// A process begins on this machine, with a fresh replica.
    fn start(&mut self, now: Time, machine: MachineId);

    /// The replica on this machine applies these, in order. Returns how many it applied: if not all, the next one stays
    /// unapplied and the node stops, to be started again after a while.
    fn apply(&mut self, now: Time, machine: MachineId, entries: &[Applied]) -> usize;

    /// Asked after each thing that happens: false ends the world where it is.
    fn goes_on(&mut self) -> bool;
}

/// What became of a guest's world.
pub struct Visit {
    /// What a checker objected to: a fault of aioraft, or of this world, and not of the guest.
    pub violation: Option<String>,
    /// How much happened.
    pub figures: Figures,
    /// How often each kind of fault began.
    pub faults: Vec<(&'static str, u64)>,
    /// What happened, if it was to be recorded.
    pub transcript: Vec<String>,
    /// How long the world lasted, in virtual seconds.
    pub seconds: u64,
}

/// Lets a guest live through the world of `seed`, on `nodes` machines: two at least.
pub fn visit(seed: u64, nodes: usize, guest: Box<dyn Guest>, record: bool) -> Visit {
    let plan = Plan::for_guest(seed, nodes);
    let Run { violation, figures, transcript, .. } = run_with(&plan, record, Some(guest));
    let violation = violation.map(|violation| violation.to_string());
    Visit { violation, figures, faults: count(&plan), transcript, seconds: END / SECOND }
}

fn count(plan: &Plan) -> Vec<(&'static str, u64)> {
    let mut counted = std::collections::BTreeMap::new();
    for scheduled in &plan.faults {
        *counted.entry(kind(scheduled.fault)).or_default() += 1;
    }
    counted.into_iter().collect()
}

fn kind(fault: Fault) -> &'static str {
    match fault {
        Fault::Crash { .. } => "crash",
        Fault::Transfer { .. } => "leader transfer",
        Fault::Burst { .. } => "burst",
        Fault::Close { .. } => "close",
        Fault::Pause { .. } => "pause",
        Fault::BlockApplication { .. } => "blocked loop",
        Fault::Isolate { .. } | Fault::Partition { .. } => "partition",
        Fault::Cut { .. } => "cut link",
        Fault::SlowLink { .. } => "slow link",
        Fault::Loss { .. } => "lost messages",
        Fault::Break { .. } => "broken connection",
        Fault::SlowDisk { .. } => "slow disk",
        Fault::FailDisk { .. } => "failed disk",
        Fault::Sleep { .. } | Fault::SetWallClock { .. } => "clock",
        Fault::Wipe { .. } | Fault::RollBack { .. } | Fault::Clone { .. } => "lost disk",
        Fault::Forge { .. } | Fault::WrongMembers { .. } => "wrong peer",
        Fault::Change { .. } | Fault::Move { .. } | Fault::LoseQuorum { .. } => "changed members",
    }
}

impl World {
    /// The guest applies what the application applies. Returns how many of the entries: all, unless its node must stop.
    pub(super) fn apply_to_guest(&mut self, machine: MachineId, entries: &[Applied]) -> usize {
        let Some(guest) = &mut self.guest else { return entries.len() };
        let its_part = |applied: &Applied| {
            let mut command = Command::new(&applied.command.payload()[LEN..]);
            let header = applied.command.header();
            command.set_time(header.timestamp_ns, header.wall_ns);
            Applied { index: applied.index, term: applied.term, command, token: None }
        };
        guest.apply(self.now, machine, &entries.iter().map(its_part).collect::<Vec<_>>())
    }

    /// The node stops whose guest has refused an entry; it begins again, from its log, with a fresh replica.
    pub(super) fn stop_poisoned(&mut self, machine: MachineId) {
        let process = self.machines[machine].process.as_ref();
        let poisoned = process.filter(|process| process.application.is_poisoned);
        if let Some(down) = poisoned.map(|process| process.down) {
            self.kill(machine, down);
        }
    }
}
