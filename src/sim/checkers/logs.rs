//! Every machine's log, as far as it can be told from what its engine appended and what its starts found.

use std::collections::BTreeMap;

use raft::eraftpb::Entry;

use crate::engine::BOOTSTRAP;
use crate::sim::event::Event;
use crate::sim::network::MachineId;
use crate::sim::trace::{hash_of, mixed};

/// One entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The entry's term.
    pub term: u64,
    /// Depends on this entry and on all before it.
    pub chain: u64,
}

/// All logs; index `BOOTSTRAP.0 + 1` is the first of each.
#[derive(Debug, Default)]
pub struct Logs(BTreeMap<MachineId, Vec<Link>>);

impl Logs {
    /// Takes in what an event says of a log.
    pub fn see(&mut self, machine: MachineId, event: &Event) {
        match event {
            Event::Started { log } => {
                self.0.insert(machine, Vec::new());
                self.append(machine, log);
            }
            Event::Appended { entries, .. } => self.append(machine, entries),
            _ => {}
        }
    }

    fn append(&mut self, machine: MachineId, entries: &[Entry]) {
        let log = self.0.entry(machine).or_default();
        for entry in entries {
            let at = entry.index.saturating_sub(BOOTSTRAP.0 + 1) as usize;
            log.truncate(at);
            let before = log.last().map_or(0, |link| link.chain);
            let content = mixed(hash_of(&entry.data), mixed(entry.entry_type as u64, mixed(entry.term, entry.index)));
            log.push(Link { term: entry.term, chain: mixed(before, content) });
        }
    }

    /// What stands at this index.
    pub fn at(&self, machine: MachineId, index: u64) -> Option<Link> {
        let at = index.checked_sub(BOOTSTRAP.0 + 1)?;
        self.0.get(&machine)?.get(at as usize).copied()
    }

    /// The last index.
    pub fn last(&self, machine: MachineId) -> u64 {
        BOOTSTRAP.0 + self.0.get(&machine).map_or(0, |log| log.len() as u64)
    }
}
