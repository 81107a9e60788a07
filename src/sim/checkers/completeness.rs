//! Leader completeness (5.4): an entry that was committed is in the log of every later leader.

use std::collections::BTreeMap;

use super::{Checker, Kept, Scene, Verdict};
use crate::sim::event::Event;

#[derive(Default)]
pub struct Completeness {
    /// What somebody applied: index, and the log through there.
    committed: Option<(u64, u64, u64)>,
    /// Terms whose leader was looked at.
    leaders: BTreeMap<u64, usize>,
}

impl Checker for Completeness {
    fn name(&self) -> &'static str {
        "leader completeness"
    }

    fn recovered(&mut self, kept: &Kept) -> Verdict {
        self.committed = self.committed.filter(|(index, ..)| *index <= kept.through);
        self.leaders.clear();
        Ok(())
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Reached { through } => {
                let Some(link) = scene.logs.at(scene.machine, *through) else { return Ok(()) };
                if self.committed.is_none_or(|(index, ..)| index < *through) {
                    self.committed = Some((*through, link.term, link.chain));
                }
            }
            Event::Leads { term } if self.leaders.insert(*term, scene.machine).is_none() => {
                let Some((index, committed_term, chain)) = self.committed else { return Ok(()) };
                let has = scene.logs.at(scene.machine, index).map(|link| link.chain);
                // What a snapshot stands for is not in its log any more.
                let is_behind = index < scene.logs.first(scene.machine);
                if committed_term < *term && !is_behind && has != Some(chain) {
                    return Err(format!("leader in term {term}, it lacks what was committed through {index}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
