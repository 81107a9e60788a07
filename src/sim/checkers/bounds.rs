//! What a node keeps in memory is bounded: sessions, proposals, what waits for the application, cached entries.

use std::collections::BTreeMap;

use super::{Checker, Scene, Verdict};
use crate::driver::Tuning;
use crate::sim::event::Event;
use crate::sim::network::MachineId;

/// Words of a session beyond those that its origin's numbers in flight take: the figures come once in a while only.
const WORDS_SPARE: usize = 5;

pub struct Bounds {
    fresh_bytes: usize,
    cached_bytes: usize,
    /// The most numbers that a node had in flight since it started.
    spans: BTreeMap<MachineId, usize>,
}

impl Bounds {
    pub fn new(tuning: &Tuning) -> Self {
        Self { fresh_bytes: tuning.max_unapplied_bytes, cached_bytes: tuning.entry_cache_bytes, spans: BTreeMap::new() }
    }
}

impl Checker for Bounds {
    fn name(&self) -> &'static str {
        "bounded memory"
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        let span = self.spans.entry(scene.machine).or_default();
        if matches!(event, Event::Started { .. }) {
            *span = 0;
        }
        let Event::Held { sizes, open_calls } = event else { return Ok(()) };
        *span = sizes.span.max(*span);
        if sizes.session_words > *span / 64 + WORDS_SPARE {
            return Err(format!("its session takes {} words for {span} numbers in flight", sizes.session_words));
        }
        if sizes.proposals > *open_calls {
            return Err(format!("it holds {} proposals, and {open_calls} calls are open", sizes.proposals));
        }
        let fresh = sizes.fresh_bytes.saturating_sub(sizes.largest_fresh);
        if fresh > self.fresh_bytes || sizes.cached_bytes > self.cached_bytes {
            return Err(format!("it keeps {fresh} bytes for the application and {} in its cache", sizes.cached_bytes));
        }
        Ok(())
    }
}
