//! Every await ends (design decision 2): by its deadline, or when its node does; without a deadline, once the cluster has
//! recovered.

use std::collections::BTreeMap;

use super::{Checker, Scene, Verdict};
use crate::sim::clock::{Time, SECOND};
use crate::sim::event::{ChangeEnded, Ended, Ending, Event, Stopped};
use crate::sim::network::MachineId;

/// How late a deadline may be noticed by an application that runs.
const GRACE: Time = SECOND;

#[derive(Default)]
pub struct Awaits {
    open: BTreeMap<u64, (MachineId, Option<Time>)>,
    /// When a process or its application last began to run again.
    ran_again: BTreeMap<MachineId, Time>,
    closed: BTreeMap<MachineId, bool>,
}

impl Awaits {
    fn ended(&mut self, scene: &Scene, call: u64, is_lost: bool) -> Verdict {
        let Some((machine, deadline)) = self.open.remove(&call) else {
            return Err(format!("call {call} ended twice"));
        };
        if is_lost && self.closed.get(&machine) == Some(&true) {
            return Err(format!("its node closed, and call {call} did not end"));
        }
        let ran_again = self.ran_again.get(&machine).copied().unwrap_or(0);
        let due = deadline.unwrap_or(Time::MAX).max(ran_again).saturating_add(GRACE);
        if !is_lost && due < scene.now {
            return Err(format!("call {call} ended {} s after its deadline", (scene.now - due) / SECOND));
        }
        Ok(())
    }
}

impl Checker for Awaits {
    fn name(&self) -> &'static str {
        "every await ends"
    }

    fn looks_at_outsiders(&self) -> bool {
        true
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Started { .. } => {
                self.closed.insert(scene.machine, false);
            }
            Event::Stopped { why } => {
                self.closed.insert(scene.machine, **why == Stopped::Closed);
            }
            Event::WasHeldUp => {
                self.ran_again.insert(scene.machine, scene.now);
            }
            Event::Called { call, deadline, .. } => {
                self.open.insert(*call, (scene.machine, *deadline));
            }
            Event::CalledForLeader { call, deadline } => {
                self.open.insert(*call, (scene.machine, *deadline));
            }
            Event::CalledForChange { call, deadline, .. } => {
                self.open.insert(*call, (scene.machine, *deadline));
            }
            Event::ChangeCallEnded { call, how } => return self.ended(scene, *call, **how == ChangeEnded::Lost),
            Event::CallEnded { call, how } => return self.ended(scene, *call, *how == Ended::Lost),
            Event::LeaderCallEnded { call, is_lost } => return self.ended(scene, *call, *is_lost),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, ending: &Ending) -> Verdict {
        let is_healthy = |machine| ending.healthy.iter().any(|(healthy, _)| healthy == machine);
        for (call, (machine, deadline)) in &self.open {
            if deadline.is_some_and(|deadline| deadline < 58 * SECOND) || (ending.recovers && is_healthy(machine)) {
                return Err(format!("call {call} on machine {machine} never ended; its deadline was {deadline:?}"));
            }
        }
        Ok(())
    }
}
