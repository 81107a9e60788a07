//! `commits()` yields what was applied, in order, on every node and from every index on (rule C5).

use std::collections::BTreeMap;

use super::{Checker, Kept, Scene, Verdict};
use crate::sim::event::Event;
use crate::sim::trace::hash_of;

#[derive(Default)]
pub struct Commits {
    applied: BTreeMap<u64, u64>,
    through: BTreeMap<usize, u64>,
}

impl Checker for Commits {
    fn name(&self) -> &'static str {
        "commits() is what was applied"
    }

    fn recovered(&mut self, kept: &Kept) -> Verdict {
        self.applied.split_off(&(kept.through + 1));
        Ok(())
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Started { application: index, .. } | Event::Restored { index } => {
                self.through.insert(scene.machine, *index);
            }
            Event::Applied { applied } => {
                self.applied.insert(applied.index, hash_of(applied.command.as_bytes()));
            }
            Event::Reached { through } => {
                self.through.insert(scene.machine, *through);
            }
            Event::Commits { after, through, entries } => {
                let reached = self.through.get(&scene.machine).copied().unwrap_or(0);
                if through > after && *through > reached {
                    return Err(format!("it read through {through}, and has applied through {reached}"));
                }
                let read = entries.iter().map(|entry| (entry.index, hash_of(entry.command.as_bytes())));
                let range = after + 1..(*through).max(*after) + 1;
                let expected = self.applied.range(range).map(|(index, hash)| (*index, *hash));
                if !read.eq(expected) {
                    return Err(format!("from {after} through {through} it read other commands than were applied"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
