//! The writing side: the only caller of the engine's write and purge.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use raft_engine::{Command, LogBatch};

use super::directory::Queue;
use super::purge::PurgePlan;
use super::store::Store;
use super::stored::{Entries, StoredEntry};
use super::{marks, records, Options, NODE_GROUP, SEQUENCE_GROUP};
use crate::engine::GroupId;
use crate::storage::{check_group, Batch, Figures, GroupState, GroupWrite, LogWriter, StorageError};

/// The node's part of the log: its groups as they are after the last write.
pub(super) struct DiskWriter {
    pub store: Arc<Store>,
    groups: BTreeMap<GroupId, GroupState>,
    node_records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Sequence of the last batch.
    sequence: u64,
    /// Sequence of the last batch that was synced.
    synced: u64,
    options: Options,
    purge: PurgePlan,
    guard_written: Instant,
    guard_cost: Duration,
    figures: Figures,
    /// The first error: what it left behind is unknown, so nothing is written after it.
    stopped: Option<String>,
    abandoned: bool,
}

impl DiskWriter {
    /// A writer behind what was recovered.
    pub fn new(
        store: Arc<Store>,
        groups: BTreeMap<GroupId, GroupState>,
        node_records: BTreeMap<Vec<u8>, Vec<u8>>,
        sequence: u64,
        options: Options,
        purge: PurgePlan,
    ) -> Self {
        Self {
            store,
            groups,
            node_records,
            sequence,
            synced: 0,
            options,
            purge,
            guard_written: Instant::now(),
            guard_cost: Duration::ZERO,
            figures: Figures::default(),
            stopped: None,
            abandoned: false,
        }
    }

    /// Makes what was recovered durable, and leaves a log that can be written to.
    ///
    /// After a kill the tail may stand in the page cache only; it must not be reported to Raft as durable before this.
    pub fn start(&mut self) -> Result<(), StorageError> {
        let mut batch = LogBatch::default();
        for (group, state) in &self.groups {
            // A purge can drop the command that compacted; its entries come back when the log is opened.
            batch.add_command(*group, Command::Compact { index: state.truncated.0.saturating_add(1) });
        }
        self.add_marks(batch)?;
        self.publish_bounds(self.groups.keys().copied());
        self.store.files.update_guard()
    }

    fn write_batch(&mut self, batch: Batch) -> Result<(), StorageError> {
        for write in &batch.groups {
            check_group(write.group)?;
        }
        let mut log = LogBatch::default();
        let touched: Vec<GroupId> = batch.groups.iter().map(|write| write.group).collect();
        for write in batch.groups {
            self.add_group(&mut log, write)?;
        }
        for (key, value) in batch.node_records {
            put(&mut log, NODE_GROUP, records::record_key(&key), records::seal(NODE_GROUP, &value))?;
            self.node_records.insert(key, value);
        }
        if log.is_empty() && !batch.sync {
            return Ok(());
        }
        self.commit(log, batch.sync)?;
        self.publish_bounds(touched);
        Ok(())
    }

    fn add_group(&mut self, log: &mut LogBatch, write: GroupWrite) -> Result<(), StorageError> {
        let group = write.group;
        let is_new = !self.groups.contains_key(&group);
        let state = self.groups.entry(group).or_default();
        let change = state.apply(&write)?;
        if change.reset {
            // `Compact` would leave entries of an old term behind the snapshot, and `Clean` alone erase the vote.
            log.add_command(group, Command::Clean);
        }
        if change.reset || is_new {
            for (key, value) in records::write_group(group, state) {
                put(log, group, key, value)?;
            }
        } else {
            if let Some(index) = change.compact_below {
                log.add_command(group, Command::Compact { index });
            }
            if change.bounds {
                put(log, group, records::BOUNDS.to_vec(), records::bounds(group, state))?;
            }
            if change.terms {
                put(log, group, records::TERMS.to_vec(), records::terms(group, state))?;
            }
            if write.hard_state.is_some() {
                put(log, group, records::HARD_STATE.to_vec(), records::hard_state(group, state))?;
            }
            for (key, value) in &write.records {
                put(log, group, records::record_key(key), records::seal(group, value))?;
            }
        }
        let entries: Vec<_> = write.entries.into_iter().map(StoredEntry::new).collect();
        log.add_entries::<Entries>(group, &entries).map_err(|error| refused(&error))
    }

    /// Numbers a batch and writes it.
    fn commit(&mut self, mut log: LogBatch, sync: bool) -> Result<(), StorageError> {
        self.sequence = self.sequence.saturating_add(1);
        let sequence = records::number(SEQUENCE_GROUP, self.sequence);
        put(&mut log, SEQUENCE_GROUP, records::SEQUENCE.to_vec(), sequence)?;
        let files = &self.store.files;
        let before = files.span(Queue::Append).map_or(0, |(_, last)| last);
        let start = Instant::now();
        self.store.write(&mut log, sync)?;
        if sync {
            let took = start.elapsed();
            self.figures.fsyncs += 1;
            self.figures.last_fsync = took;
            self.figures.max_fsync = self.figures.max_fsync.max(took);
            // Only what was synced may be demanded later (rule D3).
            self.synced = self.sequence;
            files.set_synced(self.synced);
        }
        let after = files.span(Queue::Append).map_or(0, |(_, last)| last);
        self.purge.close(before..after, &self.groups);
        Ok(())
    }

    /// Writes the two marks anew, each in a batch of its own; the last one is synced, and with it all before.
    fn add_marks(&mut self, mut first: LogBatch) -> Result<(), StorageError> {
        let [one, other] = marks::GROUPS;
        marks::add(&mut first, one).map_err(|error| refused(&error))?;
        self.commit(first, false)?;
        let mut second = LogBatch::default();
        marks::add(&mut second, other).map_err(|error| refused(&error))?;
        self.commit(second, true)
    }

    /// Tells readers what there is.
    fn publish_bounds(&self, touched: impl IntoIterator<Item = GroupId>) {
        let mut bounds = self.store.bounds.write();
        for group in touched {
            if let Some(state) = self.groups.get(&group) {
                bounds.insert(group, (state.truncated.0, state.last_index));
            }
        }
    }

    fn purge_if_due(&mut self) -> Result<(), StorageError> {
        let Some((first, last)) = self.store.files.span(Queue::Append) else { return Ok(()) };
        if !self.purge.is_due(first, last, &self.groups) {
            return Ok(());
        }
        // Records written long ago would keep the oldest file: all of them go to the newest one first. So do the
        // marks: at most one of them is then in a file that the purge rewrites, and they never share a block.
        let mut batch = LogBatch::default();
        for (group, state) in &self.groups {
            for (key, value) in records::write_group(*group, state) {
                put(&mut batch, *group, key, value)?;
            }
        }
        for (key, value) in &self.node_records {
            put(&mut batch, NODE_GROUP, records::record_key(key), records::seal(NODE_GROUP, value))?;
        }
        self.add_marks(batch)?;
        self.store.purge()?;
        if let Some((first, last)) = self.store.files.span(Queue::Append) {
            self.purge.done(first, last);
        }
        Ok(())
    }

    /// Writes the guard if its time has come; says how long until then.
    fn guard_if_due(&mut self) -> Result<Option<Duration>, StorageError> {
        if !self.store.files.guard_is_behind() {
            return Ok(None);
        }
        let period = self.options.guard_period.max(self.guard_cost.saturating_mul(self.options.guard_cost_max));
        let start = Instant::now();
        let left = period.saturating_sub(start.duration_since(self.guard_written));
        if !left.is_zero() {
            return Ok(Some(left));
        }
        self.store.files.update_guard()?;
        self.guard_written = Instant::now();
        self.guard_cost = start.elapsed();
        Ok(None)
    }

    /// Runs something unless an earlier call failed, and remembers the first failure.
    fn attempt<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T, StorageError>) -> Result<T, StorageError> {
        if let Some(reason) = &self.stopped {
            return Err(StorageError::Poisoned { reason: reason.clone() });
        }
        f(self).inspect_err(|error| self.stopped = Some(error.to_string()))
    }
}

impl LogWriter for DiskWriter {
    fn write(&mut self, batch: Batch) -> Result<(), StorageError> {
        self.attempt(|writer| writer.write_batch(batch))
    }

    fn maintain(&mut self) -> Result<Option<Duration>, StorageError> {
        self.attempt(|writer| {
            writer.purge_if_due()?;
            writer.guard_if_due()
        })
    }

    fn abandon(mut self: Box<Self>) {
        self.abandoned = true;
    }

    fn figures(&self) -> Figures {
        Figures { bytes: self.store.files.bytes(), ..self.figures }
    }
}

impl Drop for DiskWriter {
    fn drop(&mut self) {
        if self.abandoned {
            return;
        }
        // A log that ends in good order leaves a guard without a gap. If that fails, it ends as after a kill.
        let _ = self.attempt(|writer| {
            if writer.synced < writer.sequence {
                writer.commit(LogBatch::default(), true)?;
            }
            writer.store.files.update_guard()
        });
    }
}

fn put(log: &mut LogBatch, group: GroupId, key: Vec<u8>, value: Vec<u8>) -> Result<(), StorageError> {
    log.put(group, key, value).map_err(|error| refused(&error))
}

fn refused(error: &raft_engine::Error) -> StorageError {
    StorageError::TooLarge { detail: error.to_string() }
}
