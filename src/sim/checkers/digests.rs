//! Replicas agree: at the same index, on sessions, time and members, and on the application's state.

use std::collections::BTreeMap;

use super::{Checker, Kept, Scene, Verdict};
use crate::engine::BOOTSTRAP;
use crate::sim::event::Event;

#[derive(Default)]
pub struct Digests {
    engine: BTreeMap<u64, u64>,
    application: BTreeMap<u64, u64>,
}

impl Checker for Digests {
    fn name(&self) -> &'static str {
        "replicas agree"
    }

    fn recovered(&mut self, kept: &Kept) -> Verdict {
        self.engine.split_off(&(kept.through + 1));
        self.application.split_off(&(kept.through + 1));
        Ok(())
    }

    fn see(&mut self, _: &Scene, event: &Event) -> Verdict {
        let (digests, applied, digest, of) = match event {
            // Before anything is applied, a node that is not formed has the members that it was started with.
            Event::Digest { applied, .. } if *applied <= BOOTSTRAP.0 => return Ok(()),
            Event::Digest { applied, digest } => (&mut self.engine, applied, digest, "engine"),
            Event::ApplicationDigest { applied, digest } => (&mut self.application, applied, digest, "application"),
            _ => return Ok(()),
        };
        if digests.entry(*applied).or_insert(*digest) != digest {
            return Err(format!("through entry {applied}, its {of} has another state than others"));
        }
        Ok(())
    }
}
