//! What a leader believes of the others only grows while it leads, and what it sends next lies behind that (5.3).

use std::collections::BTreeMap;

use super::{Checker, Scene, Verdict};
use crate::engine::NodeId;
use crate::sim::event::Event;
use crate::sim::network::MachineId;

#[derive(Default)]
pub struct Followers {
    /// By leader and follower: the term, and the index through which they match.
    matched: BTreeMap<(MachineId, NodeId), (u64, u64)>,
}

impl Checker for Followers {
    fn name(&self) -> &'static str {
        "a leader knows its followers"
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        if matches!(event, Event::Started { .. }) {
            self.matched.retain(|(machine, _), _| *machine != scene.machine);
        }
        let Event::Follow { term, last, peers } = event else { return Ok(()) };
        for peer in *peers {
            let before = self.matched.insert((scene.machine, peer.id), (*term, peer.matched));
            let before = before.filter(|(in_term, _)| in_term == term).map_or(0, |(_, matched)| matched);
            if peer.matched < before || peer.matched > *last {
                return Err(format!(
                    "leader in term {term}, it believes that node {} matches through {}, after {before}; its own log ends at {last}",
                    peer.id, peer.matched
                ));
            }
            if peer.next <= peer.matched {
                return Err(format!(
                    "leader in term {term}, it would send entry {} to node {}, which matches through {}",
                    peer.next, peer.id, peer.matched
                ));
            }
        }
        Ok(())
    }
}
