//! The log on disk: raft-engine 0.4.2, and what it needs round it.
//!
//! # The directory
//!
//! | file | what it is |
//! |---|---|
//! | `LOCK` | locked (flock) as long as a node has the directory open |
//! | `FORMAT` | `aioraft data directory, format 1`: the format of everything here |
//! | `guard` | the tail guard: what must be found when the log is opened; layout in `disk/guard.rs` |
//! | `log/*.raftlog` | raft-engine's append queue, 64 MiB a file |
//! | `log/*.rewrite` | raft-engine's rewrite queue: what is still needed of append files that were purged |
//! | `log/LOCK` | raft-engine's own lock |
//! | `snapshots/*.snapshot` | whole snapshots; those count that a record in the log names (rule D1) |
//! | `snapshots/*.part` | what has been written of snapshots that are not whole; names in `../snapshot/file_name.rs` |
//!
//! [`open`] is for the node that the directory is for; [`view`] looks at it and changes nothing.
//!
//! # What stands in the log
//!
//! A batch of ours is one batch of raft-engine's. Entries stand under their group, as a version byte and the entry that
//! prost encodes; records carry a version and the group again (`disk/records.rs`). Each group has three records besides
//! those of the caller: its bounds, its term runs and its hard state, so that opening reads no entry. Five groups at the
//! end of the id space belong to the log itself: the batch's sequence number, the node's records, and two marks.
//!
//! # What raft-engine does wrong, and where that is dealt with
//!
//! 1. It acknowledges after a failed fsync, or panics: it is told of none. One thread writes, and the first failure
//!    freezes the files and stops the writer for good; the engine is then forgotten, never dropped (`disk/store.rs`).
//! 2. After a full disk and further writes its directory never opens again: frozen files take no further writes
//!    (`disk/files.rs`).
//! 3. It cuts the tail at damage without a word: the guard and the sequence number refuse that (`disk/guard.rs`). What
//!    remains: damage of what was synced after the guard was last written (100 ms, or ten times what writing the guard
//!    takes, if that is longer) is taken for the torn end of the log. A kill loses nothing; power loss loses nothing that a disk which obeys fsync was given.
//! 4. A missing file in the middle drops everything before it: files are counted before the engine sees them, and each
//!    group's bounds are compared with what it recovered.
//! 5. A gap is accepted, and then no reopening succeeds: `GroupState::apply` refuses it before the write.
//! 6. Directory entries are not synced: `open` does it.
//! 7. It keeps 10 GB before it purges: `Options::default` says 256 MiB, and `disk/purge.rs` when.
//! 8. Its block cache mixes up logs that one thread reads: `disk/marks.rs`.
//! 9. `Engine::sync` does nothing (it writes an empty batch, which returns early): we never call it; a batch of ours is
//!    never empty, for it carries its sequence number.
//! 10. A flipped bit in a file's header makes it allocate until the process aborts: headers are compared before the
//!     engine sees the files (`disk/directory.rs`).
//!     That of a newest file that a crash left without one is written anew in the older of two formats: both count.
//! 11. When it opens a log it checks the end of each batch, but not the entries before it: a batch that power loss has
//!     torn in its middle is found later, when it is read. It is looked for in the newest file (`disk/batches.rs`).

mod batches;
mod directory;
mod files;
mod guard;
mod marks;
#[cfg(feature = "mutants")]
pub(crate) mod power;
mod purge;
mod reader;
mod records;
mod scratch;
mod store;
mod stored;
mod view;
mod writer;

#[cfg(fuzzing)]
mod anything;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod view_tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use raft_engine::{Config, Engine, ReadableSize, RecoveryMode};

#[cfg(fuzzing)]
pub use self::anything::read_anything;
use self::directory::{Listing, Queue};
use self::files::LogFiles;
use self::guard::{Guard, GuardFile};
use self::purge::PurgePlan;
use self::reader::DiskReader;
use self::records::Record;
use self::store::Store;
pub use self::view::{view, GuardView, LogContents, View};
use self::writer::DiskWriter;
use super::snapshot::{self, DiskFolder};
use super::{GroupState, Opened, StorageError, MAX_GROUP};
use crate::engine::GroupId;

/// Holds the sequence number of the batch.
const SEQUENCE_GROUP: GroupId = GroupId::MAX - 3;
/// Holds the node's records.
const NODE_GROUP: GroupId = GroupId::MAX - 4;

/// The directory of the snapshots' files, in the data directory.
pub(crate) const SNAPSHOTS: &str = "snapshots";

/// A rewrite queue with no more than this holds nothing but headers.
const EMPTY_REWRITE_BYTES: u64 = 128;

/// Sizes and times; the tests have smaller ones.
#[derive(Clone, Copy, Debug)]
struct Options {
    file_bytes: u64,
    purge_threshold_bytes: u64,
    guard_period: Duration,
    /// A guard that takes long to write is written less often: it may cost one part in so many of the time.
    guard_cost_max: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            file_bytes: 64 << 20,
            purge_threshold_bytes: 256 << 20,
            guard_period: Duration::from_millis(100),
            guard_cost_max: 10,
        }
    }
}

/// Opens the log in a data directory, and creates both if there is nothing yet.
///
/// What it gives back is durable. The directory stays locked until writer, reader and snapshots are all dropped; after a
/// failure of the log's disk, until the process ends.
///
/// # Errors
///
/// [`StorageError::Locked`] when another node uses the directory; [`StorageError::NewerFormat`];
/// [`StorageError::MissingGuard`], [`StorageError::LostTail`] and [`StorageError::Damaged`] when it is not all there:
/// nothing in the log's files was changed then.
pub fn open(dir: &Path) -> Result<Opened, StorageError> {
    opened(dir, open_with(dir, Options::default())?)
}

/// Opens a log of which the simulated world decides what a loss of power leaves: the guard is written whenever
/// [`LogWriter::maintain`](super::LogWriter::maintain) is called, so that nothing depends on the real world's clock.
#[cfg(feature = "mutants")]
pub(crate) fn open_simulated(dir: &Path, file_bytes: u64) -> Result<(Opened, power::Power), StorageError> {
    let options = Options { file_bytes, guard_period: Duration::ZERO, guard_cost_max: 0, ..Options::default() };
    let parts = open_with(dir, options)?;
    let power = parts.0.store.files.power();
    Ok((opened(dir, parts)?, power))
}

fn opened(dir: &Path, (writer, reader, found): (DiskWriter, DiskReader, Found)) -> Result<Opened, StorageError> {
    let lock = writer.store.share_lock().map_err(|error| StorageError::io(dir.join("LOCK"), "share", error))?;
    Ok(Opened {
        writer: Box::new(writer),
        reader: Arc::new(reader),
        groups: found.groups,
        node_records: found.node_records,
        snapshots: Arc::new(snapshot::Store::new(DiskFolder::new(&dir.join(SNAPSHOTS), lock))),
    })
}

fn open_with(dir: &Path, options: Options) -> Result<(DiskWriter, DiskReader, Found), StorageError> {
    let log = dir.join("log");
    directory::create(dir)?;
    let lock = directory::lock(dir)?;
    let has_format = directory::has_format(&dir.join("FORMAT"))?;
    let listing = Listing::read(&log)?;
    let guard = open_guard(&dir.join("guard"), has_format, &listing)?;
    if !has_format {
        if !listing.is_empty() {
            return Err(StorageError::damaged(dir.join("FORMAT"), "it is missing beside a log"));
        }
        directory::write_format(&dir.join("FORMAT"))?;
    }
    let known = guard.get();
    check_files(&log, &listing, known)?;
    // A directory of before there were snapshots has none.
    directory::create(&dir.join(SNAPSHOTS))?;
    directory::create(&log)?;

    let files = LogFiles::new(Arc::new(Mutex::new(guard)));
    cut_torn_batches(&log, &listing, &files)?;
    let engine = open_engine(&log, &log, &files, options)?;
    let store = Store::new(engine, Some(lock), files, &log);
    let sequence = check_tail(&store, &listing, known)?;
    for cut in store.files.cuts() {
        tracing::info!(file = %cut.path.display(), bytes = cut.bytes, "cut the unfinished end of the log");
    }
    let found = read_records(&store, sequence)?;

    // It is all there: now, and not before, the files may be touched.
    store.files.settle()?;
    directory::sync(&log)?;
    let rewritten = known.rewrite_bytes > EMPTY_REWRITE_BYTES;
    let span = store.files.span(Queue::Append);
    let plan = PurgePlan::new(options.purge_threshold_bytes, options.file_bytes, span, rewritten, &found.groups);
    let store = Arc::new(store);
    let mut writer =
        DiskWriter::new(store.clone(), found.groups.clone(), found.node_records.clone(), found.sequence, options, plan);
    writer.start()?;
    Ok((writer, DiskReader(store), found))
}

/// The guard stands before the first file of the log is created, so a log without one has lost it.
fn open_guard(path: &Path, has_format: bool, listing: &Listing) -> Result<GuardFile, StorageError> {
    match GuardFile::open(path)? {
        Some(guard) => Ok(guard),
        None if has_format || !listing.is_empty() => Err(StorageError::MissingGuard { path: path.to_path_buf() }),
        None => GuardFile::create(path),
    }
}

/// What can be said of the files before raft-engine sees them.
fn check_files(log: &Path, listing: &Listing, known: Guard) -> Result<(), StorageError> {
    for (queue, first) in [(Queue::Append, known.append_first), (Queue::Rewrite, known.rewrite_first)] {
        listing.check_whole(log, queue, first)?;
        listing.check_headers(log, queue)?;
    }
    if listing.append.is_empty() && known.sequence > 0 {
        return Err(StorageError::LostTail { file: log.to_path_buf(), expected: known.sequence, found: 0 });
    }
    Ok(())
}

/// Only the newest file of a queue can hold what no fsync has covered.
fn cut_torn_batches(log: &Path, listing: &Listing, files: &LogFiles) -> Result<(), StorageError> {
    for queue in [Queue::Append, Queue::Rewrite] {
        let Some(&number) = listing.of(queue).last() else { continue };
        let path = log.join(directory::file_name(queue, number));
        let Some(header) = directory::header_len(&directory::read_header(&path)?) else { continue };
        let torn = batches::first_torn(&path, header as u64);
        if let Some(bytes) = torn.map_err(|error| StorageError::io(&path, "read", error))? {
            files.cut_before_opening(queue, number, bytes);
        }
    }
    Ok(())
}

/// Opens the engine in `dir`: where the log is, unless it is only looked at.
fn open_engine(dir: &Path, log: &Path, files: &LogFiles, options: Options) -> Result<Engine<LogFiles>, StorageError> {
    let dir = dir.to_str().ok_or_else(|| {
        StorageError::io(log, "use", std::io::Error::new(std::io::ErrorKind::InvalidInput, "its name is not UTF-8"))
    })?;
    let config = Config {
        dir: dir.to_owned(),
        // The strict mode refuses every log after a kill: files are allocated ahead.
        recovery_mode: RecoveryMode::TolerateTailCorruption,
        recovery_threads: 1,
        recovery_read_block_size: ReadableSize::kb(64),
        // Raft's batches are small, and what is large is often compressed already.
        batch_compression_threshold: ReadableSize(0),
        target_file_size: ReadableSize(options.file_bytes),
        purge_threshold: ReadableSize(options.purge_threshold_bytes),
        // A purged file's space is given back rather than kept under another name.
        enable_log_recycle: false,
        ..Config::default()
    };
    store::caught(|| Engine::open_with_file_system(config, Arc::new(files.clone()))).map_err(|error| {
        files.take_failure().unwrap_or_else(|| match error {
            raft_engine::Error::Io(error) => StorageError::io(log, "open", error),
            error => StorageError::damaged(log, error.to_string()),
        })
    })
}

/// What was recovered.
struct Found {
    groups: BTreeMap<GroupId, GroupState>,
    node_records: BTreeMap<Vec<u8>, Vec<u8>>,
    sequence: u64,
}

/// Compares what was recovered with what must be there (rule D3); gives the sequence of the last batch.
fn check_tail(store: &Store, listing: &Listing, known: Guard) -> Result<u64, StorageError> {
    let cuts = store.files.cuts();
    for cut in &cuts {
        // Only the newest file can have a torn end: the others were synced when they were closed.
        if listing.of(cut.queue).last() != Some(&cut.number) {
            let detail = format!("it was closed in good order, and can be read only up to byte {}", cut.bytes);
            return Err(StorageError::damaged(&cut.path, detail));
        }
    }
    let place = &store.log;
    let sequence = read_sequence(store)?;
    if sequence < known.sequence {
        let newest = listing.append.last().map(|number| place.join(directory::file_name(Queue::Append, *number)));
        let file = cuts.iter().find(|cut| cut.queue == Queue::Append).map(|cut| cut.path.clone());
        let file = file.or(newest).unwrap_or_else(|| place.clone());
        return Err(StorageError::LostTail { file, expected: known.sequence, found: sequence });
    }
    let rewritten = store.files.written(Queue::Rewrite, known.rewrite_last);
    if known.rewrite_last >= known.rewrite_first && rewritten < known.rewrite_bytes {
        let detail = format!("{} bytes of it were durable, and only {rewritten} can be read", known.rewrite_bytes);
        return Err(StorageError::damaged(
            place.join(directory::file_name(Queue::Rewrite, known.rewrite_last)),
            detail,
        ));
    }
    Ok(sequence)
}

fn read_sequence(store: &Store) -> Result<u64, StorageError> {
    match store.peek(|engine| engine.get(SEQUENCE_GROUP, records::SEQUENCE)) {
        Some(record) => records::read_number(&store.log, SEQUENCE_GROUP, &record),
        None => Ok(0),
    }
}

/// All records: those of the groups, each compared with its entries, and the node's own.
fn read_records(store: &Store, sequence: u64) -> Result<Found, StorageError> {
    let mut groups = BTreeMap::new();
    for group in store.peek(Engine::raft_groups) {
        if group <= MAX_GROUP {
            groups.insert(group, read_group(store, group)?);
        }
    }
    let mut node_records = BTreeMap::new();
    for (key, record) in scan(store, NODE_GROUP)? {
        let value = records::unseal(&store.log, NODE_GROUP, &record)?;
        node_records.insert(key.get(1..).unwrap_or_default().to_vec(), value.to_vec());
    }
    Ok(Found { groups, node_records, sequence })
}

fn read_group(store: &Store, group: GroupId) -> Result<GroupState, StorageError> {
    let state = records::read_group(&store.log, group, &scan(store, group)?)?;
    let (truncated, last) = (state.truncated.0, state.last_index);
    let span = store.peek(|engine| engine.first_index(group).zip(engine.last_index(group)));
    // Entries up to the truncation may come back when a purge dropped the command that removed them.
    let whole = match span.filter(|(_, found)| *found > truncated) {
        Some((first, found)) => first <= truncated.saturating_add(1) && found == last,
        None => last == truncated,
    };
    if !whole {
        let found = span.map_or("none".to_owned(), |(first, last)| format!("{first} to {last}"));
        let detail = format!("group {group} has entries {} to {last}, and found were {found}", truncated + 1);
        return Err(StorageError::damaged(&store.log, detail));
    }
    Ok(state)
}

fn scan(store: &Store, group: GroupId) -> Result<Vec<Record>, StorageError> {
    let mut found = Vec::new();
    store
        .peek(|engine| {
            engine
                .scan_raw_messages(group, None, None, false, |key, value| {
                    found.push((key.to_vec(), value.to_vec()));
                    true
                })
                .map_err(|error| error.to_string())
                .err()
        })
        .map_or(Ok(found), |error| Err(StorageError::damaged(&store.log, error)))
}
