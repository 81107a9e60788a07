//! A majority of the voters is lost for good, and the operator lets the cluster go on from one data directory, with the code
//! of `aioraft recover`; whatever that writes meets with crashes.

use std::collections::BTreeSet;
use std::path::Path;

use raft::eraftpb::Entry;

use super::checkers::Recovered;
use super::clock::{Time, MS, SECOND};
use super::machine::{Image, Machine, Process};
use super::members::has_quorum;
use super::network::MachineId;
use super::plan::{Crash, HEALED};
use super::workload::fresh_keys;
use super::world::{Happening, World};
use crate::driver::recover::{draft, go_through, RecoverError};
use crate::engine::APPLICATION_GROUP;
use crate::storage::Opened;

/// The operator waits so long for a leader.
const PATIENCE: u64 = 3 * SECOND;

/// Nobody looks any more whether the cluster has to be recovered.
const GIVEN_UP: Time = HEALED + 3 * SECOND;

/// The directory, for errors.
const DIR: &str = "simulated";

impl World {
    /// Machines are lost, until nobody can decide any more who takes part in anything.
    pub(super) fn lose_quorum(&mut self, first: MachineId) {
        let count = self.plan.machines();
        let mut members = (0..count).map(|step| (first + step) % count).filter(|machine| self.is_left(*machine));
        let Some(survivor) = members.next() else { return };
        let mut others = members.collect::<Vec<_>>();
        self.rng.shuffle(&mut others);
        while self.somebody_decides() {
            // One that votes alone cannot lose the others' votes.
            let Some(lost) = others.pop() else { return };
            self.trace.note(self.now, &[25, lost as u64], || format!("machine {lost} is lost for good"));
            self.kill(lost, SECOND);
            let at = &mut self.machines[lost];
            at.put_back(Image::default());
            (at.runs, at.out, at.starts_at) = (false, true, None);
        }
        self.happens(self.now + PATIENCE, Happening::Recover(survivor));
    }

    /// A member that has lost nothing.
    fn is_left(&self, machine: MachineId) -> bool {
        let at = &self.machines[machine];
        let process = at.process.as_ref().filter(|_| at.runs && !at.out);
        process.is_some_and(|process| {
            let is_formed = process.members.borrow().formation.is_formed();
            is_formed && self.newest_members().members.contains(&process.id)
        })
    }

    /// Whether those who are left are a quorum, as far as a voter among them knows: what a learner knows elects nobody.
    fn somebody_decides(&self) -> bool {
        let is_there = |id| self.is_healthy(id);
        let formed = |process: &&Process| process.members.borrow().formation.is_formed();
        let mut processes = self.machines.iter().filter_map(|machine| machine.process.as_ref()).filter(formed);
        processes.any(|process| {
            let conf = process.engine.conf_state();
            let votes = conf.voters.contains(&process.id) || conf.voters_outgoing.contains(&process.id);
            votes && has_quorum(&conf, is_there)
        })
    }

    /// The operator recovers the cluster from this machine.
    pub(super) fn recover(&mut self, machine: MachineId) {
        // What was under way has changed the members; or somebody who has just started, or will, knows others.
        let machines = self.machines[..self.plan.machines()].iter();
        let everybody_runs = machines.filter(|at| at.runs && !at.out).all(|at| at.process.is_some());
        if !everybody_runs || self.somebody_decides() || !self.is_left(machine) {
            if self.now < GIVEN_UP {
                self.happens(self.now + SECOND, Happening::Recover(machine));
            }
            return;
        }
        let removed = self.newest_members().retired;
        let kind = if self.rng.bool() { Crash::PowerLoss } else { Crash::Kill };
        if let Some(process) = self.machines[machine].process.take() {
            self.crash(machine, process, kind);
        }
        self.machines[machine].starts_at = None;
        let Some((begin, log)) = self.write_recovery(machine) else {
            return self.start_at(machine, self.now + SECOND);
        };
        let replicated = go_through(Path::new(DIR), &self.open_stopped(machine)).expect("it was recovered").replicated;
        let outsiders = (0..self.machines.len()).filter(|other| *other != machine).collect::<BTreeSet<_>>();
        for outsider in &outsiders {
            let at = &mut self.machines[*outsider];
            (at.old, at.out) = (true, true);
        }
        let recovered = Recovered {
            machine,
            id: self.machines[machine].node,
            begin,
            log: &log,
            conf: &replicated.conf_state,
            membership: &replicated.membership,
            removed,
            outsiders,
            fresh_keys: fresh_keys(self.now),
        };
        let (through, lost) = self.checkers.recover(self.now, &recovered);
        self.figures.recovered += 1;
        self.figures.forgotten += lost;
        self.trace.note(self.now, &[26, machine as u64, through, lost], || {
            let last = log.last().map_or(begin.0, |entry| entry.index);
            format!("the cluster goes on from machine {machine}: {through} of {last} entries were committed, {lost} are lost")
        });
        let begins = self.now + self.rng.u64(0..3000) * MS;
        self.start_at(machine, begins);
    }

    fn open_stopped(&mut self, machine: MachineId) -> Opened {
        let Machine { disk, snapshots, .. } = &mut self.machines[machine];
        let mut opened = disk.open().expect("no node has it open, and it was not damaged");
        opened.snapshots = snapshots.clone();
        opened
    }

    /// `aioraft recover`, again and again until its word is that there is nothing left to do. Returns what stood in the log
    /// before, and behind which (index, term); nothing if the cluster cannot go on from this node.
    fn write_recovery(&mut self, machine: MachineId) -> Option<((u64, u64), Vec<Entry>)> {
        let mut before = None;
        loop {
            let mut opened = self.open_stopped(machine);
            let wall_ns = self.machines[machine].clock.now(self.now).wall_ns;
            let batch = match draft(Path::new(DIR), &opened, wall_ns) {
                Ok((batch, _)) => batch,
                Err(RecoverError::Alone(_)) => return before,
                Err(RecoverError::Removed(_)) => return None,
                Err(error) => panic!("machine {machine} cannot be recovered: {error}"),
            };
            let group = &opened.groups[&APPLICATION_GROUP];
            let (begin, end) = (group.truncated, group.last_index + 1);
            let log = opened.reader.entries(APPLICATION_GROUP, begin.0 + 1, end, u64::MAX).expect("it was opened");
            before = Some((begin, log));
            match self.rng.u32(0..4) {
                // It is killed before it has written anything.
                0 => {}
                1 => {
                    let power_fails = self.rng.bool();
                    let disk = &mut self.machines[machine].disk;
                    disk.begin(&batch);
                    disk.crash(opened.writer.as_mut(), Some(batch), power_fails, &mut self.rng);
                }
                _ => opened.writer.write(batch).expect("its disk is in order"),
            }
        }
    }
}
