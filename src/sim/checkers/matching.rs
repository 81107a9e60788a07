//! Log matching (5.3): if two logs hold an entry with the same index and term, they are the same up to there.

use std::collections::BTreeMap;

use raft::eraftpb::Entry;

use super::{Checker, Scene, Verdict};
use crate::sim::event::Event;

#[derive(Default)]
pub struct Matching(BTreeMap<(u64, u64), u64>);

impl Matching {
    fn compare(&mut self, scene: &Scene, entries: &[Entry]) -> Verdict {
        for entry in entries {
            let Some(link) = scene.logs.at(scene.machine, entry.index) else { continue };
            let chain = *self.0.entry((entry.index, entry.term)).or_insert(link.chain);
            if chain != link.chain {
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

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Started { log, .. } => {
                // What is on a disk begins where logs begin, and has no gaps.
                let gap = log.windows(2).find(|pair| pair[1].index != pair[0].index + 1);
                if let Some(pair) = gap {
                    return Err(format!("entry {} follows entry {} on the disk", pair[1].index, pair[0].index));
                }
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
