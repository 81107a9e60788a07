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

/// The chain of the bootstrap.
const NOTHING: u64 = 0;

/// One machine's log.
#[derive(Debug)]
struct Log {
    /// The last entry that is not in it any more: its index, and what stood there.
    begin: (u64, Link),
    links: Vec<Link>,
}

/// All logs.
#[derive(Debug, Default)]
pub struct Logs {
    machines: BTreeMap<MachineId, Log>,
    /// By (index, term): what was last seen there. A log that begins later begins behind something that others had.
    seen: BTreeMap<(u64, u64), u64>,
}

impl Logs {
    /// Takes in what an event says of a log.
    pub fn see(&mut self, machine: MachineId, event: &Event) {
        match event {
            Event::Started { begin, log, .. } => {
                self.begin(machine, *begin);
                self.append(machine, log);
            }
            Event::Installed { begin } => self.begin(machine, *begin),
            Event::Appended { entries, .. } => self.append(machine, entries),
            _ => {}
        }
    }

    fn begin(&mut self, machine: MachineId, begin: (u64, u64)) {
        let (index, term) = begin;
        let known = if begin == BOOTSTRAP { Some(NOTHING) } else { self.seen.get(&begin).copied() };
        // Nobody had that: whatever follows will not match.
        let chain = known.unwrap_or_else(|| mixed(index, mixed(term, machine as u64)));
        self.machines.insert(machine, Log { begin: (index, Link { term, chain }), links: Vec::new() });
    }

    fn append(&mut self, machine: MachineId, entries: &[Entry]) {
        let Some(log) = self.machines.get_mut(&machine) else { return };
        for entry in entries {
            let at = entry.index.saturating_sub(log.begin.0 + 1) as usize;
            log.links.truncate(at);
            let before = log.links.last().map_or(log.begin.1.chain, |link| link.chain);
            let content = mixed(hash_of(&entry.data), mixed(entry.entry_type as u64, mixed(entry.term, entry.index)));
            let link = Link { term: entry.term, chain: mixed(before, content) };
            self.seen.insert((entry.index, entry.term), link.chain);
            log.links.push(link);
        }
    }

    /// What stands at this index.
    pub fn at(&self, machine: MachineId, index: u64) -> Option<Link> {
        let log = self.machines.get(&machine)?;
        match index.checked_sub(log.begin.0 + 1) {
            Some(at) => log.links.get(at as usize).copied(),
            None => (index == log.begin.0).then_some(log.begin.1),
        }
    }

    /// The index behind which the log begins.
    pub fn first(&self, machine: MachineId) -> u64 {
        self.machines.get(&machine).map_or(BOOTSTRAP.0, |log| log.begin.0)
    }

    /// The last index.
    pub fn last(&self, machine: MachineId) -> u64 {
        self.machines.get(&machine).map_or(BOOTSTRAP.0, |log| log.begin.0 + log.links.len() as u64)
    }
}
