//! Nothing acknowledged is lost: whoever gets past the entry of an answered call has applied it.

use std::collections::BTreeMap;

use super::{Checker, Kept, Scene, Verdict};
use crate::sim::event::{Ended, Ending, Event};
use crate::sim::network::MachineId;
use crate::sim::objects::decode;

#[derive(Default)]
pub struct Acknowledged {
    /// By index: the call that was answered there.
    answered: BTreeMap<u64, u64>,
    /// What each machine has applied since its cursor moved.
    fresh: BTreeMap<MachineId, BTreeMap<u64, u64>>,
    cursors: BTreeMap<MachineId, u64>,
}

impl Checker for Acknowledged {
    fn name(&self) -> &'static str {
        "nothing acknowledged is lost"
    }

    fn recovered(&mut self, kept: &Kept) -> Verdict {
        self.answered.split_off(&(kept.through + 1));
        Ok(())
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        let machine = scene.machine;
        match event {
            // What an application holds, from before or out of a snapshot, is compared with the others' (replicas agree).
            Event::Started { application: index, .. } | Event::Restored { index } => {
                self.fresh.remove(&machine);
                self.cursors.insert(machine, *index);
            }
            Event::Applied { applied } => {
                if let Some((call, _)) = decode(applied.command.payload()) {
                    self.fresh.entry(machine).or_default().insert(applied.index, call);
                }
            }
            Event::Reached { through } => {
                let fresh = self.fresh.remove(&machine).unwrap_or_default();
                let cursor = self.cursors.insert(machine, *through).unwrap_or(0);
                if cursor >= *through {
                    return Ok(());
                }
                for (index, call) in self.answered.range(cursor + 1..=*through) {
                    if fresh.get(index) != Some(call) {
                        return Err(format!("call {call} was answered at {index}, and it went on without it"));
                    }
                }
            }
            Event::CallEnded { call, how: Ended::Answered { index: Some(index), .. } } => {
                self.answered.insert(*index, *call);
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, ending: &Ending) -> Verdict {
        let Some((index, call)) = self.answered.last_key_value().filter(|_| ending.recovers) else { return Ok(()) };
        for (machine, state) in &ending.healthy {
            if state.is_some_and(|standing| standing.application < *index) {
                return Err(format!("call {call} was answered at {index}; machine {machine} never gets there"));
            }
        }
        Ok(())
    }
}
