//! Replicated time never runs back along the log (design decision 8).

use std::collections::BTreeMap;

use super::{Checker, Scene, Verdict};
use crate::sim::event::Event;
use crate::sim::network::MachineId;

#[derive(Default)]
pub struct Time(BTreeMap<MachineId, u64>);

impl Checker for Time {
    fn name(&self) -> &'static str {
        "time never runs back"
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Started { .. } | Event::Restored { .. } => {
                self.0.insert(scene.machine, 0);
            }
            Event::Applied { applied } => {
                let stamp = applied.command.header().timestamp_ns;
                let before = self.0.insert(scene.machine, stamp).unwrap_or(0);
                if stamp < before {
                    return Err(format!("entry {} is stamped {stamp}, and one before it {before}", applied.index));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
