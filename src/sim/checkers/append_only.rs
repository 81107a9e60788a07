//! Leader append-only (5.3): a leader never overwrites or deletes entries of its log.

use std::collections::BTreeMap;

use super::{Checker, Scene, Verdict};
use crate::sim::event::Event;
use crate::sim::network::MachineId;

#[derive(Default)]
pub struct AppendOnly {
    /// Who leads, and in which term.
    leads: BTreeMap<MachineId, u64>,
    last: BTreeMap<MachineId, u64>,
}

impl Checker for AppendOnly {
    fn name(&self) -> &'static str {
        "leader append-only"
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Leads { term } => {
                self.leads.insert(scene.machine, *term);
            }
            Event::Started { .. } | Event::Stopped { .. } => {
                self.leads.remove(&scene.machine);
            }
            Event::Appended { term: Some(term), entries } => {
                let before = self.last.get(&scene.machine).copied().unwrap_or(0);
                if self.leads.get(&scene.machine) == Some(term) {
                    let first = entries.first().map_or(0, |entry| entry.index);
                    if first <= before {
                        return Err(format!(
                            "leader in term {term}, it wrote entry {first} again: its log ended at {before}"
                        ));
                    }
                }
            }
            _ => {}
        }
        self.last.insert(scene.machine, scene.logs.last(scene.machine));
        Ok(())
    }
}
