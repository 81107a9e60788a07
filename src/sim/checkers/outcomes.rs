//! Outcomes are true (rules S4, S5): what was called not committed is applied nowhere, now or later; what was called
//! applied without a result is applied once, at or before the index named.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checker, Kept, Scene, Verdict};
use crate::sim::event::{Ended, Ending, Event};
use crate::sim::objects::decode;

#[derive(Default)]
pub struct Outcomes {
    not_committed: BTreeSet<u64>,
    without_result: BTreeMap<u64, u64>,
    applied: BTreeMap<u64, u64>,
}

impl Checker for Outcomes {
    fn name(&self) -> &'static str {
        "outcome truth"
    }

    fn recovered(&mut self, kept: &Kept) -> Verdict {
        self.applied.retain(|_, index| *index <= kept.through);
        self.without_result.retain(|call, _| self.applied.contains_key(call));
        // What stood in the way of a commit, and was told so, counts all the same if it is kept.
        for call in kept.beyond() {
            self.not_committed.remove(&call);
        }
        Ok(())
    }

    fn see(&mut self, _: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Applied { applied } => {
                let Some((call, _)) = decode(applied.command.payload()) else { return Ok(()) };
                self.applied.entry(call).or_insert(applied.index);
                if self.not_committed.contains(&call) {
                    return Err(format!("call {call} ended as not committed, and is applied at {}", applied.index));
                }
            }
            Event::CallEnded { call, how: Ended::NotCommitted } => {
                self.not_committed.insert(*call);
                if let Some(index) = self.applied.get(call) {
                    return Err(format!("call {call} ends as not committed, and was applied at {index}"));
                }
            }
            Event::CallEnded { call, how: Ended::AppliedWithoutResult { index } } => {
                self.without_result.insert(*call, *index);
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, _: &Ending) -> Verdict {
        for (call, index) in &self.without_result {
            if self.applied.get(call).is_none_or(|applied| applied > index) {
                return Err(format!("call {call} ended as applied by {index}, and was not"));
            }
        }
        Ok(())
    }
}
