//! Election safety (5.2): at most one leader is elected in a term.

use std::collections::BTreeMap;

use super::{Checker, Kept, Scene, Verdict};
use crate::sim::event::Event;
use crate::sim::network::MachineId;

#[derive(Default)]
pub struct Election(BTreeMap<u64, MachineId>);

impl Checker for Election {
    fn name(&self) -> &'static str {
        "election safety"
    }

    fn recovered(&mut self, _: &Kept) -> Verdict {
        // Others may have led in later terms than this machine ever heard of.
        self.0.clear();
        Ok(())
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        let Event::Leads { term } = event else { return Ok(()) };
        let leader = *self.0.entry(*term).or_insert(scene.machine);
        if leader != scene.machine {
            return Err(format!("it leads in term {term}, and so did machine {leader}"));
        }
        Ok(())
    }
}
