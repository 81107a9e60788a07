//! The log's memory twin: the same answers, and nothing survives.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use prost::Message;
use raft::eraftpb::Entry;

use super::{snapshot, Batch, Figures, GroupState, LogReader, LogWriter, Opened, StorageError};
use crate::engine::GroupId;

/// Opens an empty log in memory.
pub fn open() -> Opened {
    let groups = Arc::new(RwLock::new(BTreeMap::new()));
    Opened {
        writer: Box::new(MemoryWriter { groups: groups.clone(), stopped: None, figures: Figures::default() }),
        reader: Arc::new(MemoryReader { groups }),
        groups: BTreeMap::new(),
        node_records: BTreeMap::new(),
        snapshots: Arc::new(snapshot::Store::new(snapshot::MemoryFolder::default())),
    }
}

#[derive(Clone, Default)]
struct Group {
    state: GroupState,
    entries: VecDeque<Entry>,
    bytes: u64,
}

type Groups = Arc<RwLock<BTreeMap<GroupId, Group>>>;

struct MemoryWriter {
    groups: Groups,
    stopped: Option<String>,
    figures: Figures,
}

struct MemoryReader {
    groups: Groups,
}

impl LogWriter for MemoryWriter {
    fn write(&mut self, batch: Batch) -> Result<(), StorageError> {
        if let Some(reason) = &self.stopped {
            return Err(StorageError::Poisoned { reason: reason.clone() });
        }
        let sync = batch.sync;
        if let Err(error) = self.apply(batch) {
            self.stopped = Some(error.to_string());
            return Err(error);
        }
        if sync {
            self.figures.fsyncs += 1;
        }
        Ok(())
    }

    fn maintain(&mut self) -> Result<Option<Duration>, StorageError> {
        match &self.stopped {
            Some(reason) => Err(StorageError::Poisoned { reason: reason.clone() }),
            None => Ok(None),
        }
    }

    fn abandon(self: Box<Self>) {}

    fn figures(&self) -> Figures {
        Figures { bytes: self.groups.read().values().map(|group| group.bytes).sum(), ..self.figures }
    }
}

impl MemoryWriter {
    fn apply(&mut self, batch: Batch) -> Result<(), StorageError> {
        // Refuse the whole batch before any of it can be read.
        let mut changes = Vec::with_capacity(batch.groups.len());
        let mut states: BTreeMap<GroupId, GroupState> = BTreeMap::new();
        {
            let groups = self.groups.read();
            for write in &batch.groups {
                super::check_group(write.group)?;
                let state = states
                    .entry(write.group)
                    .or_insert_with(|| groups.get(&write.group).map(|group| group.state.clone()).unwrap_or_default());
                changes.push(state.apply(write)?);
            }
        }
        let mut groups = self.groups.write();
        for (write, change) in batch.groups.into_iter().zip(changes) {
            let group = groups.entry(write.group).or_default();
            if change.reset {
                group.entries.clear();
                group.bytes = 0;
            }
            if let Some(below) = change.compact_below {
                while group.entries.front().is_some_and(|entry| entry.index < below) {
                    group.bytes -= group.entries.pop_front().map_or(0, |entry| entry.encoded_len() as u64);
                }
            }
            if let Some(first) = write.entries.first().map(|entry| entry.index) {
                while group.entries.back().is_some_and(|entry| entry.index >= first) {
                    group.bytes -= group.entries.pop_back().map_or(0, |entry| entry.encoded_len() as u64);
                }
            }
            group.bytes += write.entries.iter().map(|entry| entry.encoded_len() as u64).sum::<u64>();
            group.entries.extend(write.entries);
        }
        for (id, state) in states {
            groups.entry(id).or_default().state = state;
        }
        Ok(())
    }
}

impl LogReader for MemoryReader {
    fn entries(&self, group: GroupId, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        if low >= high {
            return Ok(Vec::new());
        }
        let groups = self.groups.read();
        let empty = Group::default();
        let log = groups.get(&group).unwrap_or(&empty);
        let first = log.state.truncated.0.saturating_add(1);
        let last = log.state.last_index;
        if low < first {
            return Err(StorageError::Compacted { group, low, first });
        }
        if high > last.saturating_add(1) {
            return Err(StorageError::Unavailable { group, index: high - 1, last });
        }
        let mut limit = super::ByteLimit::new(max_bytes);
        let (from, to) = ((low - first) as usize, (high - first) as usize);
        Ok(log.entries.range(from..to).take_while(|entry| limit.admits(entry)).cloned().collect())
    }
}
