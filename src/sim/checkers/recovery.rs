//! After the last fault the cluster recovers: all agree on a leader, on the log, and every node answers its clients.

use std::collections::BTreeMap;

use super::{Checker, Scene, Verdict};
use crate::sim::clock::SECOND;
use crate::sim::event::{Ended, Ending, Event, Standing};
use crate::sim::network::MachineId;
use crate::sim::plan::HEALED;

pub struct Recovery {
    nodes: usize,
    /// Proposals and barriers of each machine that were answered after the cluster had time to recover. One that is far
    /// behind hears from a snapshot that what it proposed was applied.
    answered: BTreeMap<MachineId, u64>,
}

impl Recovery {
    pub fn new(nodes: usize) -> Self {
        Self { nodes, answered: BTreeMap::new() }
    }
}

impl Checker for Recovery {
    fn name(&self) -> &'static str {
        "the cluster recovers"
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        if let Event::CallEnded { how: Ended::Answered { .. } | Ended::AppliedWithoutResult { .. }, .. } = event {
            if scene.now > HEALED + 5 * SECOND {
                *self.answered.entry(scene.machine).or_default() += 1;
            }
        }
        Ok(())
    }

    fn end(&mut self, ending: &Ending) -> Verdict {
        if !ending.recovers {
            return Ok(());
        }
        let mut agreed = None;
        for (machine, standing) in &ending.healthy {
            let Some(Standing { leader, engine, application }) = standing else {
                return Err(format!("machine {machine} does not run"));
            };
            if leader.is_none() || engine != application {
                return Err(format!("machine {machine} ends with {standing:?}"));
            }
            if *agreed.get_or_insert((leader, engine)) != (leader, engine) {
                let nodes = self.nodes;
                return Err(format!("machine {machine} of {nodes} ends with {standing:?}, others with {agreed:?}"));
            }
            if !self.answered.contains_key(machine) {
                return Err(format!("no call on machine {machine} was answered any more"));
            }
        }
        Ok(())
    }
}
