//! The checkers: each looks for one thing that must never happen, and knows nothing of the simulator.
//!
//! Sections are those of the Raft paper (Ongaro, Ousterhout: In Search of an Understandable Consensus Algorithm, figure 3).

mod acknowledged;
mod append_only;
mod awaits;
mod bounds;
mod commits;
mod completeness;
mod digests;
mod election;
mod exactly_once;
mod followers;
mod incarnations;
mod linearizability;
pub mod linearizable;
mod logs;
mod matching;
mod members;
mod outcomes;
mod recovery;
mod safety;
mod stops;
mod time;
mod voters;

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::{ConfState, Entry};

use self::logs::Logs;
use super::clock::{Time, SECOND};
use super::event::{Ending, Event};
use super::network::MachineId;
use super::objects::{decode, Key};
use super::plan::Plan;
use crate::engine::command::Command;
use crate::engine::membership::Membership;
use crate::engine::NodeId;

/// What a checker objected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The checker's name.
    pub checker: &'static str,
    /// When.
    pub at: Time,
    /// What happened.
    pub reason: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:.3} s: {}", self.checker, self.at as f64 / SECOND as f64, self.reason)
    }
}

/// Where and when an event happened, and every machine's log as of then.
struct Scene<'a> {
    now: Time,
    machine: MachineId,
    logs: &'a Logs,
    /// The cluster was recovered without it.
    is_outside: bool,
}

/// A cluster that lost its quorum for good goes on from one machine.
pub struct Recovered<'a> {
    /// Which.
    pub machine: MachineId,
    /// Its node.
    pub id: NodeId,
    /// What its log held: it began behind this (index, term).
    pub begin: (u64, u64),
    /// And went on with these.
    pub log: &'a [Entry],
    /// Who votes and learns from then on.
    pub conf: &'a ConfState,
    /// All else about the members.
    pub membership: &'a Membership,
    /// Who had been removed before: first and last of each interval.
    pub removed: Vec<(NodeId, NodeId)>,
    /// Everybody else.
    pub outsiders: BTreeSet<MachineId>,
    /// Objects that nobody has used yet have this key or a higher one.
    pub fresh_keys: Key,
}

/// What is kept of what was before.
struct Kept<'a> {
    recovered: &'a Recovered<'a>,
    /// Through here, what was committed.
    through: u64,
    /// The last entry that is kept, and the log through there: behind `through`, what only this machine need have had.
    last: (u64, u64),
}

impl Kept<'_> {
    /// The calls behind `through`.
    fn beyond(&self) -> impl Iterator<Item = u64> + '_ {
        let beyond = self.recovered.log.iter().filter(|entry| entry.index > self.through);
        let commands = beyond.filter_map(|entry| Command::from_bytes(entry.data.clone()).ok());
        commands.filter_map(|command| decode(command.payload()).map(|(call, _)| call))
    }
}

/// Objects with a reason.
type Verdict = Result<(), String>;

/// Histories that were judged at the end, and how many of them took too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    pub histories: u64,
    pub undecided: u64,
}

trait Checker {
    /// For people.
    fn name(&self) -> &'static str;

    /// Something happened.
    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict;

    /// The cluster was recovered: what was not kept need not have been, and is never heard of again.
    fn recovered(&mut self, _kept: &Kept) -> Verdict {
        Ok(())
    }

    /// Whether it looks at nodes as well that the cluster was recovered without.
    fn looks_at_outsiders(&self) -> bool {
        false
    }

    /// Nothing more will happen.
    fn end(&mut self, _ending: &Ending) -> Verdict {
        Ok(())
    }

    /// What it could not decide must not pass silently.
    fn judged(&self) -> Judged {
        Judged::default()
    }
}

/// All of them.
pub struct Checkers {
    logs: Logs,
    checkers: Vec<Box<dyn Checker>>,
    /// By index of what somebody has applied: the log through there. Whoever has it may have compacted that part since.
    applied: BTreeMap<u64, u64>,
    /// Machines that the cluster was recovered without.
    outsiders: BTreeSet<MachineId>,
    violation: Option<Violation>,
}

impl Checkers {
    /// Checkers of the cluster of this plan.
    pub fn new(plan: &Plan) -> Self {
        let checkers: Vec<Box<dyn Checker>> = vec![
            Box::new(stops::Stops),
            Box::<election::Election>::default(),
            Box::<append_only::AppendOnly>::default(),
            Box::<followers::Followers>::default(),
            Box::<matching::Matching>::default(),
            Box::<safety::Safety>::default(),
            Box::<completeness::Completeness>::default(),
            Box::<exactly_once::ExactlyOnce>::default(),
            Box::<outcomes::Outcomes>::default(),
            Box::<acknowledged::Acknowledged>::default(),
            Box::<time::Time>::default(),
            Box::<members::Members>::default(),
            Box::<incarnations::Incarnations>::default(),
            Box::new(voters::Voters::new(&plan.tuning)),
            Box::<digests::Digests>::default(),
            Box::<commits::Commits>::default(),
            Box::new(bounds::Bounds::new(&plan.tuning, plan.takes_snapshots)),
            Box::<awaits::Awaits>::default(),
            Box::new(recovery::Recovery::new(plan.nodes)),
            Box::<linearizability::Linearizability>::default(),
        ];
        let (logs, applied, outsiders) = (Logs::default(), BTreeMap::new(), BTreeSet::new());
        Self { logs, checkers, applied, outsiders, violation: None }
    }

    /// Something happened.
    pub fn see(&mut self, now: Time, machine: MachineId, event: &Event) {
        if self.violation.is_some() {
            return;
        }
        let is_outside = self.outsiders.contains(&machine);
        if !is_outside {
            self.logs.see(machine, event);
        }
        if let Event::Reached { through } = event {
            let new = (self.reached() + 1..=*through).filter(|_| !is_outside);
            let new = new.filter_map(|index| Some((index, self.logs.at(machine, index)?.chain)));
            self.applied.extend(new.collect::<Vec<_>>());
        }
        let scene = Scene { now, machine, logs: &self.logs, is_outside };
        for checker in &mut self.checkers {
            if is_outside && !checker.looks_at_outsiders() {
                continue;
            }
            if let Err(reason) = checker.see(&scene, event) {
                let reason = format!("machine {machine}: {reason}");
                self.violation = Some(Violation { checker: checker.name(), at: now, reason });
                return;
            }
        }
    }

    /// The cluster was recovered from this machine, whose log began behind `begin` and held `log`. Returns through which index
    /// it held what was committed, and how many entries behind that somebody had applied.
    pub fn recover(&mut self, now: Time, recovered: &Recovered) -> (u64, u64) {
        let Recovered { machine, begin, log, .. } = *recovered;
        self.logs.see(machine, &Event::Started { begin, log, application: 0 });
        let is_there =
            |(index, chain): &(&u64, &u64)| self.logs.at(machine, **index).is_some_and(|at| at.chain == **chain);
        let shared = self.applied.iter().rev().find(is_there);
        let through = shared.map_or(self.logs.first(machine), |(index, _)| *index);
        let chain = |index| self.logs.at(machine, index).map_or(0, |link| link.chain);
        let last = self.logs.last(machine);
        let kept = Kept { recovered, through, last: (last, chain(last)) };
        let lost = self.reached().saturating_sub(through);
        self.applied.split_off(&(through + 1));
        for checker in &mut self.checkers {
            let objection = checker.recovered(&kept).err();
            let violation = objection.map(|reason| Violation { checker: checker.name(), at: now, reason });
            self.violation = self.violation.take().or(violation);
        }
        self.outsiders = recovered.outsiders.clone();
        (through, lost)
    }

    /// The last entry that somebody has applied.
    fn reached(&self) -> u64 {
        self.applied.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// A machine joins the cluster with an empty disk. Returns whether it was an outsider.
    pub fn joins(&mut self, machine: MachineId) -> bool {
        self.outsiders.remove(&machine)
    }

    /// Nothing more will happen.
    pub fn end(&mut self, now: Time, ending: &Ending) {
        for checker in &mut self.checkers {
            if self.violation.is_none() {
                let objection = checker.end(ending).err();
                self.violation = objection.map(|reason| Violation { checker: checker.name(), at: now, reason });
            }
        }
    }

    /// What was judged at the end.
    pub fn judged(&self) -> Judged {
        self.checkers.iter().map(|checker| checker.judged()).fold(Judged::default(), |sum, one| Judged {
            histories: sum.histories + one.histories,
            undecided: sum.undecided + one.undecided,
        })
    }

    /// The first objection.
    pub fn violation(&self) -> Option<Violation> {
        self.violation.clone()
    }
}
