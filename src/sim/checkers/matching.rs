//! Log matching (5.3): if two logs hold an entry with the same index and term, they are the same up to there.
//!
//! A sole voter leads, and appends, in the same step in which it votes for itself. If it loses power before any of that is
//! durable it leads the same term again, with other entries. Nobody has heard of the first: what only one machine ever had
//! and does not find on its disk is in no log any more.

use std::collections::BTreeMap;

use raft::eraftpb::Entry;

use super::{Checker, Kept, Scene, Verdict};
use crate::sim::event::Event;
use crate::sim::network::MachineId;

/// An entry that stands, or stood, in a log.
struct Seen {
    chain: u64,
    /// Who had it first.
    by: MachineId,
    /// Somebody else had it as well.
    is_shared: bool,
}

/// By index and term.
#[derive(Default)]
pub struct Matching(BTreeMap<(u64, u64), Seen>);

impl Matching {
    fn compare(&mut self, scene: &Scene, entries: &[Entry]) -> Verdict {
        for entry in entries {
            let Some(link) = scene.logs.at(scene.machine, entry.index) else { continue };
            let by = scene.machine;
            let new = Seen { chain: link.chain, by, is_shared: false };
            let seen = self.0.entry((entry.index, entry.term)).or_insert(new);
            seen.is_shared |= seen.by != by;
            if seen.chain != link.chain {
                return Err(format!(
                    "entry {} of term {} is in two logs, and the logs differ there or before",
                    entry.index, entry.term
                ));
            }
        }
        Ok(())
    }
}

impl Checker for Matching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn recovered(&mut self, kept: &Kept) -> Verdict {
        self.0.retain(|(index, _), _| *index <= kept.through);
        Ok(())
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Started { log, .. } => {
                // What is on a disk begins where logs begin, and has no gaps.
                let gap = log.windows(2).find(|pair| pair[1].index != pair[0].index + 1);
                if let Some(pair) = gap {
                    return Err(format!("entry {} follows entry {} on the disk", pair[1].index, pair[0].index));
                }
                let machine = scene.machine;
                self.0.retain(|(index, term), seen| {
                    let is_lost = || scene.logs.at(machine, *index).is_none_or(|link| link.term != *term);
                    seen.by != machine || seen.is_shared || !is_lost()
                });
                self.compare(scene, log)
            }
            Event::Appended { entries, .. } => {
                let first = entries.first().map_or(0, |entry| entry.index);
                let expected = scene.logs.last(scene.machine);
                let last = entries.last().map_or(0, |entry| entry.index);
                if last != expected {
                    return Err(format!("entries {first} to {last} do not follow its log"));
                }
                self.compare(scene, entries)
            }
            _ => Ok(()),
        }
    }
}
