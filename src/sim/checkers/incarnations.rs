//! A cluster that lost its quorum for good goes on from one machine, with all that stood in its log; whoever it was recovered
//! without answers no later call, and ends as superseded (rule M3).

use std::collections::BTreeSet;

use super::{Checker, Kept, Scene, Verdict};
use crate::engine::{NodeId, BOOTSTRAP};
use crate::sim::event::{ChangeEnded, Ended, Event, Stopped};
use crate::sim::network::MachineId;

#[derive(Default)]
pub struct Incarnations {
    /// From which machine the cluster was recovered, and the last entry of its log as of then, with the log through there.
    from: Option<(MachineId, (u64, u64))>,
    /// First and last of each interval of ids that had been removed by then.
    removed: Vec<(NodeId, NodeId)>,
    /// Machines whose nodes know themselves as members.
    known: BTreeSet<MachineId>,
    /// Calls on nodes that the cluster was recovered without, since then.
    vain: BTreeSet<u64>,
}

impl Incarnations {
    fn stopped(&self, scene: &Scene, why: &Stopped) -> Verdict {
        match why {
            Stopped::Removed(id) if scene.is_outside && self.known.contains(&scene.machine) => {
                match self.removed.iter().any(|(first, last)| (*first..=*last).contains(id)) {
                    true => Ok(()),
                    false => Err(format!("node {id} stopped as removed: the cluster was recovered without it")),
                }
            }
            _ => Ok(()),
        }
    }
}

impl Checker for Incarnations {
    fn name(&self) -> &'static str {
        "one incarnation follows another"
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Started { begin, log, .. } => {
                self.known.remove(&scene.machine);
                // Another disk, after that node has left or lost its own.
                let is_new = *begin <= BOOTSTRAP && log.is_empty();
                self.from.take_if(|(machine, _)| is_new && *machine == scene.machine && !scene.is_outside);
                let recovered = self.from.filter(|(machine, _)| *machine == scene.machine && !scene.is_outside);
                let Some((_, (last, chain))) =
                    recovered.filter(|(_, (last, _))| *last >= scene.logs.first(scene.machine))
                else {
                    return Ok(());
                };
                if scene.logs.at(scene.machine, last).map(|link| link.chain) != Some(chain) {
                    return Err(format!("recovered, it does not hold what its log held through {last}"));
                }
            }
            Event::Members(standpoint) => {
                let knows_itself = standpoint.membership.members.contains_key(&standpoint.id);
                if knows_itself {
                    self.known.insert(scene.machine)
                } else {
                    self.known.remove(&scene.machine)
                };
            }
            // Whoever knows nothing of a cluster yet had no part in it, and may become a member now.
            Event::Called { call, .. } | Event::CalledForChange { call, .. }
                if scene.is_outside && self.known.contains(&scene.machine) =>
            {
                self.vain.insert(*call);
            }
            Event::CallEnded { call, how: Ended::Answered { .. } }
            | Event::ChangeCallEnded { call, how: ChangeEnded::Done { .. } }
                if self.vain.contains(call) =>
            {
                return Err(format!("call {call} is answered by a node that the cluster was recovered without"));
            }
            Event::Stopped { why } => return self.stopped(scene, why),
            _ => {}
        }
        Ok(())
    }

    fn recovered(&mut self, kept: &Kept) -> Verdict {
        self.from = Some((kept.recovered.machine, kept.last));
        self.removed.clone_from(&kept.recovered.removed);
        Ok(())
    }

    fn looks_at_outsiders(&self) -> bool {
        true
    }
}
