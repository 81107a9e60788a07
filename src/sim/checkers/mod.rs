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

use self::logs::Logs;
use super::clock::{Time, SECOND};
use super::event::{Ending, Event};
use super::network::MachineId;
use super::plan::Plan;

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
            Box::new(voters::Voters::new(&plan.tuning)),
            Box::<digests::Digests>::default(),
            Box::<commits::Commits>::default(),
            Box::new(bounds::Bounds::new(&plan.tuning, plan.takes_snapshots)),
            Box::<awaits::Awaits>::default(),
            Box::new(recovery::Recovery::new(plan.nodes)),
            Box::<linearizability::Linearizability>::default(),
        ];
        Self { logs: Logs::default(), checkers, violation: None }
    }

    /// Something happened.
    pub fn see(&mut self, now: Time, machine: MachineId, event: &Event) {
        if self.violation.is_some() {
            return;
        }
        self.logs.see(machine, event);
        let scene = Scene { now, machine, logs: &self.logs };
        for checker in &mut self.checkers {
            if let Err(reason) = checker.see(&scene, event) {
                let reason = format!("machine {machine}: {reason}");
                self.violation = Some(Violation { checker: checker.name(), at: now, reason });
                return;
            }
        }
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
