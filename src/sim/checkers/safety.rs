//! State machine safety (5.4.3): no two nodes apply different entries at the same index.

use std::collections::BTreeMap;

use super::{Checker, Kept, Scene, Verdict};
use crate::engine::BOOTSTRAP;
use crate::sim::event::Event;
use crate::sim::network::MachineId;
use crate::sim::trace::{hash_of, mixed};

#[derive(Default)]
pub struct Safety {
    /// By index: what was applied there.
    applied: BTreeMap<u64, u64>,
    /// By index: the log through there, of whoever got there first.
    reached: BTreeMap<u64, u64>,
    /// Each application's cursor, and the last index that it has applied.
    cursors: BTreeMap<MachineId, (u64, u64)>,
}

impl Checker for Safety {
    fn name(&self) -> &'static str {
        "state machine safety"
    }

    fn recovered(&mut self, kept: &Kept) -> Verdict {
        self.applied.split_off(&(kept.through + 1));
        self.reached.split_off(&(kept.through + 1));
        Ok(())
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        let (cursor, last) = self.cursors.get(&scene.machine).copied().unwrap_or((BOOTSTRAP.0, 0));
        match event {
            Event::Started { application, .. } => {
                self.cursors.insert(scene.machine, (*application, 0));
            }
            Event::Restored { index } => {
                if *index < cursor {
                    return Err(format!("its application went back from {cursor} to the snapshot at {index}"));
                }
                self.cursors.insert(scene.machine, (*index, 0));
            }
            Event::Applied { applied } => {
                if applied.index <= last || applied.index <= cursor {
                    return Err(format!("it applied entry {} after entry {last}, from {cursor} on", applied.index));
                }
                self.cursors.insert(scene.machine, (cursor, applied.index));
                let content = mixed(hash_of(applied.command.as_bytes()), applied.term);
                let first = *self.applied.entry(applied.index).or_insert(content);
                if first != content {
                    return Err(format!("it applied another entry {} than others", applied.index));
                }
            }
            Event::Reached { through } => {
                if *through < cursor || *through < last {
                    return Err(format!("its cursor went from {cursor} to {through}, and it had applied {last}"));
                }
                let missing = self.applied.range(cursor + 1..=*through).next_back();
                if missing.is_some_and(|(index, _)| *index > last) {
                    return Err(format!("others applied entry {:?}, and it went on to {through} without", missing));
                }
                self.cursors.insert(scene.machine, (*through, last));
                let Some(link) = scene.logs.at(scene.machine, *through) else {
                    return if *through < scene.logs.first(scene.machine).max(BOOTSTRAP.0 + 1) {
                        Ok(())
                    } else {
                        Err(format!("it applied beyond its log: {through}"))
                    };
                };
                let first = *self.reached.entry(*through).or_insert(link.chain);
                if first != link.chain {
                    return Err(format!("it applied through {through}, on another log than others"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
