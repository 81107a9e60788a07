//! Exactly once (design decision 1): no call is applied twice, whatever was lost and tried again.

use std::collections::BTreeMap;

use super::{Checker, Kept, Scene, Verdict};
use crate::sim::event::{Ended, Event};
use crate::sim::objects::decode;

#[derive(Default)]
pub struct ExactlyOnce {
    /// By call: where it was applied.
    applied: BTreeMap<u64, u64>,
}

impl Checker for ExactlyOnce {
    fn name(&self) -> &'static str {
        "exactly once"
    }

    fn recovered(&mut self, kept: &Kept) -> Verdict {
        self.applied.retain(|_, index| *index <= kept.through);
        Ok(())
    }

    fn see(&mut self, _: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Applied { applied } => {
                let Some((call, _)) = decode(applied.command.payload()) else {
                    return Err(format!("entry {} is of no client", applied.index));
                };
                let first = *self.applied.entry(call).or_insert(applied.index);
                if first != applied.index {
                    return Err(format!("call {call} was applied at {first} and at {}", applied.index));
                }
            }
            Event::CallEnded { call, how: Ended::Answered { index: Some(index), .. } }
                if self.applied.get(call) != Some(index) =>
            {
                return Err(format!("call {call} was answered for entry {index}, which is not its own"));
            }
            _ => {}
        }
        Ok(())
    }
}
