//! A node stops, or refuses to start, only where something is really wrong.

use super::{Checker, Scene, Verdict};
use crate::sim::event::{Event, Stopped};

pub struct Stops;

impl Checker for Stops {
    fn name(&self) -> &'static str {
        "no node stops by itself"
    }

    fn looks_at_outsiders(&self) -> bool {
        true
    }

    fn see(&mut self, _: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Stopped { why: Stopped::ByItself(reason) } => Err(reason.clone()),
            _ => Ok(()),
        }
    }
}
