//! What a node keeps in memory is bounded: sessions, proposals, what waits for the application, cached entries.

use std::collections::BTreeMap;

use super::{Checker, Scene, Verdict};
use crate::driver::Tuning;
use crate::sim::clock::{Time, SECOND};
use crate::sim::event::Event;
use crate::sim::network::MachineId;

/// Words of a session beyond those that its origin's numbers in flight take: the figures come once in a while only.
const WORDS_SPARE: usize = 5;

/// The shortest command that a client proposes, with its header.
const COMMAND_BYTES_MIN: u64 = 104;

/// Entries beyond what the snapshots' rhythm explains: one that is under way, one that failed.
const ENTRIES_SPARE: u64 = 100;

/// A log that has grown longer than that shrinks again within this time, also while a follower is waited for.
const COMPACTED_WITHIN: Time = 20 * SECOND;

pub struct Bounds {
    fresh_bytes: usize,
    cached_bytes: usize,
    /// Entries that a log may hold once its application has applied them, for a while at least.
    kept_entries: u64,
    /// Since when each machine's log has held more.
    long_since: BTreeMap<MachineId, Time>,
    /// What it held when it was looked at last: one that stands still has no reason to shrink.
    kept: BTreeMap<MachineId, u64>,
    /// The most numbers that a node had in flight; what it has of them when it starts again is its last start's session.
    spans: BTreeMap<MachineId, usize>,
}

impl Bounds {
    pub fn new(tuning: &Tuning, takes_snapshots: bool) -> Self {
        let entries =
            tuning.snapshot_entries.min(tuning.snapshot_bytes.saturating_add(COMMAND_BYTES_MIN) / COMMAND_BYTES_MIN);
        let kept_entries = match takes_snapshots {
            true => tuning.snapshot_trail.saturating_add(entries.saturating_mul(2)).saturating_add(ENTRIES_SPARE),
            false => u64::MAX,
        };
        Self {
            fresh_bytes: tuning.max_unapplied_bytes,
            cached_bytes: tuning.entry_cache_bytes,
            kept_entries,
            long_since: BTreeMap::new(),
            kept: BTreeMap::new(),
            spans: BTreeMap::new(),
        }
    }
}

impl Checker for Bounds {
    fn name(&self) -> &'static str {
        "bounded memory"
    }

    fn looks_at_outsiders(&self) -> bool {
        true
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        let span = self.spans.entry(scene.machine).or_default();
        if matches!(event, Event::Started { .. } | Event::WasHeldUp) {
            self.long_since.remove(&scene.machine);
        }
        let Event::Held { sizes, open_calls } = event else { return Ok(()) };
        *span = sizes.span.max(*span);
        if sizes.session_words > *span / 64 + WORDS_SPARE {
            return Err(format!("its session takes {} words for {span} numbers in flight", sizes.session_words));
        }
        if sizes.proposals > *open_calls {
            return Err(format!("it holds {} proposals, and {open_calls} calls are open", sizes.proposals));
        }
        let grows = self.kept.insert(scene.machine, sizes.kept_entries).is_some_and(|kept| kept < sizes.kept_entries);
        if sizes.kept_entries <= self.kept_entries {
            self.long_since.remove(&scene.machine);
        } else if grows && scene.now - *self.long_since.entry(scene.machine).or_insert(scene.now) > COMPACTED_WITHIN {
            let (kept, allowed) = (sizes.kept_entries, self.kept_entries);
            return Err(format!("its log holds {kept} entries that are applied, and {allowed} would do"));
        }
        let fresh = sizes.fresh_bytes.saturating_sub(sizes.largest_fresh);
        if fresh > self.fresh_bytes || sizes.cached_bytes > self.cached_bytes {
            return Err(format!("it keeps {fresh} bytes for the application and {} in its cache", sizes.cached_bytes));
        }
        Ok(())
    }
}
