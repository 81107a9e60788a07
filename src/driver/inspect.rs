//! What a data directory holds, without a node: it is only read, and goes through the node's own checks.

mod report;
#[cfg(test)]
mod tests;

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::{Entry, EntryType};

pub use self::report::{EntryCounts, GuardReport, LogReport, Report};
use super::identity::{self, NodeRecord};
use super::start::StartError;
use crate::engine::command::{self, Kind};
use crate::engine::formation::Stage;
use crate::engine::snapshot::Meta;
use crate::engine::{Engine, Fault, Now, Opening, Replicated, Settings, SnapshotPolicy, APPLICATION_GROUP};
use crate::storage::disk::{self, LogContents};
use crate::storage::snapshot::{self, SnapshotName};
use crate::storage::{GroupState, LogReader, StorageError};

/// How often a directory in use is looked at, whose files come and go meanwhile.
const ATTEMPTS: u32 = 5;

/// Bytes of entries that are read at once.
const READ_BYTES: u64 = 4 << 20;

/// Why there is no report; one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It is not one, or of a newer format.
    #[error(transparent)]
    Storage(StorageError),
    /// The operating system does not let it be read.
    #[error("cannot {operation} {}: {source}; look at it as the user that runs the node, and check the disk", path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as a verb.
        operation: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A node is at work there.
    #[error(
        "the data directory {0} is used by a running node, and its files came and went {ATTEMPTS} times while they were \
         read: try again when the node has less to do, or stop it first"
    )]
    Busy(PathBuf),
}

impl From<StorageError> for InspectError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Io { path, operation, source } => Self::Unreadable { path, operation, source },
            error => Self::Storage(error),
        }
    }
}

/// Looks at a data directory, also at one that a running node has open, of which it shows some moment of the recent past.
/// Nothing is written there, and no lock is held.
///
/// # Errors
///
/// It is not a data directory, or one that cannot be read. Damage is no error, but part of the report.
pub fn inspect(dir: &Path) -> Result<Report, InspectError> {
    for attempt in 1..=ATTEMPTS {
        match look(dir) {
            // What is missing in a directory in use may have been removed meanwhile: it is looked for again.
            Ok(Some(report)) if report.damage.is_empty() || !report.is_locked || attempt == ATTEMPTS => {
                return Ok(report);
            }
            Ok(_) => {}
            Err(StorageError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(InspectError::Busy(dir.to_path_buf()))
}

/// Whose directory it is; `None` if no node has been started there. Reads no snapshot, and none of the log's entries.
///
/// # Errors
/// It cannot be read.
pub fn recorded(dir: &Path) -> Result<Option<NodeRecord>, StartError> {
    let log = match disk::view(dir) {
        Err(StorageError::NotADataDirectory { .. }) => return Ok(None),
        view => view?.log,
    };
    let stored = log.and_then(|log| log.node_records.get(identity::KEY).cloned());
    let read = |source| StartError::Record { dir: dir.display().to_string(), source };
    stored.map(|stored| NodeRecord::read(&stored).map_err(read)).transpose()
}

/// `None` if the directory changed while it was looked at.
fn look(dir: &Path) -> Result<Option<Report>, StorageError> {
    let mut view = disk::view(dir)?;
    let mut report = Report {
        data_dir: dir.to_path_buf(),
        is_locked: view.is_locked,
        format: view.format,
        node: None,
        hard_state: None,
        log: None,
        snapshot_members: None,
        replicated: None,
        snapshots: Vec::new(),
        guard: view.guard.map(|guard| GuardReport { guard, found: view.log.as_ref().map(|log| log.sequence) }),
        damage: view.damage.iter().map(ToString::to_string).collect(),
    };
    let log = view.log.take();
    report.read_node(log.as_ref());
    report.read_group(log)?;
    Ok(view.still_holds(dir)?.then_some(report))
}

impl Report {
    fn read_node(&mut self, log: Option<&LogContents>) {
        let stored = log.and_then(|log| log.node_records.get(identity::KEY));
        let Some(stored) = stored else { return };
        match NodeRecord::read(stored) {
            Ok(record) => self.node = Some(record),
            Err(source) => {
                let dir = self.data_dir.display().to_string();
                self.damage.push(StartError::Record { dir, source }.to_string());
            }
        }
    }

    fn read_group(&mut self, log: Option<LogContents>) -> Result<(), StorageError> {
        let snapshots = self.data_dir.join(disk::SNAPSHOTS);
        let Some(mut log) = log else {
            self.snapshots = snapshot::view(&snapshots, None)?.files;
            return Ok(());
        };
        let Some(state) = log.groups.remove(&APPLICATION_GROUP) else {
            if self.node.is_some() {
                self.damage.push(StartError::NoLog(self.data_dir.display().to_string()).to_string());
            }
            self.snapshots = snapshot::view(&snapshots, None)?.files;
            return Ok(());
        };
        self.hard_state = Some(state.hard_state.clone());
        let entries = match count_entries(log.reader.as_ref(), &state) {
            Ok(entries) => entries,
            Err((entries, error)) => {
                self.damage.push(error.to_string());
                entries
            }
        };
        self.log = Some(LogReport {
            first_index: state.truncated.0.saturating_add(1),
            last_index: state.last_index,
            truncated_term: state.truncated.1,
            last_term: state.term(state.last_index).unwrap_or(0),
            files: log.files,
            bytes: log.bytes,
            entries,
        });
        let snapshot = self.read_snapshots(&snapshots, &state)?;
        // What is committed is gone through as a start does it; not by a log that cannot be read to its end.
        if self.damage.is_empty() {
            let applied = self.node.as_ref().map(|record| go_on(record, state, snapshot, log.reader));
            self.replicated = applied.unwrap_or(Ok(None)).unwrap_or_else(|error| {
                self.damage.push(error);
                None
            });
        }
        Ok(())
    }

    fn read_snapshots(&mut self, dir: &Path, state: &GroupState) -> Result<Option<(SnapshotName, Meta)>, StorageError> {
        let name = snapshot::snapshot_name(state).unwrap_or_else(|error| {
            self.damage.push(error.to_string());
            None
        });
        let viewed = snapshot::view(dir, name.as_ref())?;
        self.snapshots = viewed.files;
        self.damage.extend(viewed.damage.map(|error| error.to_string()));
        let meta = viewed.named.map(|head| Meta::decode(&head.meta).map_err(StartError::Snapshot)).transpose();
        let meta = meta.unwrap_or_else(|error| {
            self.damage.push(error.to_string());
            None
        });
        let snapshot = name.zip(meta);
        self.snapshot_members = snapshot.as_ref().map(|(name, meta)| (name.index, meta.conf_state.clone()));
        Ok(snapshot)
    }
}

/// Lets an engine go on from the log up to what is known to be committed. It hears of no time that passes and of no other
/// node, and nobody runs its effects: it does nothing but apply. `None` before the cluster is formed.
pub(crate) fn go_on(
    record: &NodeRecord,
    state: GroupState,
    snapshot: Option<(SnapshotName, Meta)>,
    reader: Arc<dyn LogReader>,
) -> Result<Option<Replicated>, String> {
    let Stage::Formed(identities) = &record.stage else { return Ok(None) };
    let settings = Settings {
        id: record.id,
        // As the next start would: the log must hold nothing of that one yet.
        boot: record.boot.saturating_add(1),
        nonce: 0,
        voters: identities.keys().copied().collect(),
        identities: identities.clone(),
        election_ticks: 10,
        seed: 0,
        heartbeat_ticks: 1,
        max_entry_bytes: u64::MAX,
        max_message_bytes: READ_BYTES,
        max_inflight_messages: 1,
        max_uncommitted_bytes: READ_BYTES,
        max_fresh_bytes: 0,
        entry_cache_bytes: 0,
        snapshots: SnapshotPolicy { possible: false, entries: u64::MAX, bytes: u64::MAX, trail: 0 },
    };
    let opening = Opening { state, snapshot, durable: None, is_fresh: false };
    let applied = catch_unwind(AssertUnwindSafe(|| -> Result<Replicated, Fault> {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut engine = Engine::new(&settings, opening, reader, &logger)?;
        loop {
            engine.poll(Now::default())?;
            if !engine.has_more() {
                return Ok(engine.replicated());
            }
        }
    }));
    match applied {
        Ok(applied) => applied.map(Some).map_err(|fault| fault.to_string()),
        Err(_) => Err("the node would stop when it goes on from this log; please report this".to_owned()),
    }
}

/// Reads every entry; what was counted before one that cannot be read is given with the error.
fn count_entries(reader: &dyn LogReader, state: &GroupState) -> Result<EntryCounts, (EntryCounts, StorageError)> {
    let mut counts = EntryCounts::default();
    let (mut next, end) = (state.truncated.0.saturating_add(1), state.last_index.saturating_add(1));
    while next < end {
        let entries = reader.entries(APPLICATION_GROUP, next, end, READ_BYTES).map_err(|error| (counts, error))?;
        next = next.saturating_add(entries.len() as u64);
        entries.iter().for_each(|entry| counts.add(entry));
    }
    Ok(counts)
}

impl EntryCounts {
    fn add(&mut self, entry: &Entry) {
        let kind = match EntryType::from_i32(entry.entry_type) {
            Some(EntryType::EntryNormal) if entry.data.is_empty() => &mut self.no_op,
            Some(EntryType::EntryNormal) => match command::decode(&entry.data) {
                Ok(header) => match header.kind {
                    Kind::Application => &mut self.application,
                    Kind::Membership => &mut self.membership,
                },
                Err(_) => &mut self.unknown,
            },
            Some(EntryType::EntryConfChange | EntryType::EntryConfChangeV2) => &mut self.membership,
            None => &mut self.unknown,
        };
        *kind += 1;
    }
}
