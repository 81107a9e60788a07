//! A look at a data directory that changes nothing: not a byte, not a time of a file, and no lock that anybody meets.
//!
//! All checks are those of [`open`](super::open), in its order, and say what it would say. Where one of them would refuse
//! the directory, the view notes that as damage and goes on as far as anything can be read.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::directory::{self, Listing, Queue, FORMAT};
use super::files::LogFiles;
use super::guard::{Guard, GuardFile};
use super::reader::DiskReader;
use super::scratch::Scratch;
use super::store::Store;
use super::{check_files, check_tail, cut_torn_batches, open_engine, read_records, read_sequence, Options};
use crate::engine::GroupId;
use crate::storage::{GroupState, LogReader, StorageError};

/// What a data directory held at one moment.
pub struct View {
    /// A node has it open.
    pub is_locked: bool,
    /// Its format; `None` if there is none yet, or it cannot be read.
    pub format: Option<u64>,
    /// The tail guard, if there is one that can be read.
    pub guard: Option<GuardView>,
    /// The log, if it can be read.
    pub log: Option<LogContents>,
    /// Why a node would not open it, in its words; what it would say comes first.
    pub damage: Vec<StorageError>,
    seen: Seen,
}

/// What the tail guard says (rule D3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardView {
    /// The last batch known to be durable: what was synced later is not covered.
    pub sequence: u64,
    /// How often it is written while the log is written to, if its disk is quick.
    pub period: Duration,
}

/// What stands in the log.
pub struct LogContents {
    /// Files of both queues.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// The last batch that could be read.
    pub sequence: u64,
    /// The groups.
    pub groups: BTreeMap<GroupId, GroupState>,
    /// The node's own records.
    pub node_records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Reads entries.
    pub reader: Arc<dyn LogReader>,
}

/// What tells whether a directory has changed while it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    is_locked: bool,
    listing: Listing,
    /// Of a directory in use only the files that may be gone count: its log grows all the time, and is read up to where
    /// it ended.
    guard: Option<Guard>,
}

impl Seen {
    fn read(dir: &Path) -> Result<Self, StorageError> {
        let is_locked = directory::is_locked(dir)?;
        // A guard that is damaged is so before and after.
        let guard = GuardFile::read(&dir.join("guard")).ok().flatten();
        // Before the files: what it demands is in them then.
        let guard = guard.map(|guard| match is_locked {
            true => Guard { append_first: guard.append_first, rewrite_first: guard.rewrite_first, ..Guard::default() },
            false => guard,
        });
        Ok(Self { is_locked, listing: Listing::read(&dir.join("log"))?, guard })
    }
}

/// Looks at a data directory, also at one that a running node has open. Of the latter it shows some moment of the recent
/// past, if [`View::still_holds`] afterwards: otherwise files came or went meanwhile, and nothing that it says counts.
///
/// # Errors
///
/// [`StorageError::NotADataDirectory`]; [`StorageError::NewerFormat`]; [`StorageError::Io`] if something cannot be read.
pub fn view(dir: &Path) -> Result<View, StorageError> {
    check_is_data_directory(dir)?;
    let seen = Seen::read(dir)?;
    let mut view = View { is_locked: seen.is_locked, format: None, guard: None, log: None, damage: Vec::new(), seen };
    view.look(dir)?;
    Ok(view)
}

fn check_is_data_directory(dir: &Path) -> Result<(), StorageError> {
    let not_one = || StorageError::NotADataDirectory { path: dir.to_path_buf() };
    let entries = fs::read_dir(dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => not_one(),
        _ => StorageError::io(dir, "list", error),
    })?;
    for entry in entries {
        let name = entry.map_err(|error| StorageError::io(dir, "list", error))?.file_name();
        if ["LOCK", "FORMAT", "guard"].into_iter().any(|ours| name == ours) {
            return Ok(());
        }
    }
    Err(not_one())
}

impl View {
    /// Nothing has changed that would make the view one of two moments.
    ///
    /// # Errors
    ///
    /// As [`view`].
    pub fn still_holds(&self, dir: &Path) -> Result<bool, StorageError> {
        Ok(Seen::read(dir)? == self.seen)
    }

    fn look(&mut self, dir: &Path) -> Result<(), StorageError> {
        let (log, listing) = (dir.join("log"), self.seen.listing.clone());
        let format = directory::has_format(&dir.join("FORMAT"));
        let has_format = self.note(format)?.unwrap_or(true);
        let is_known = has_format && self.damage.is_empty();
        self.format = is_known.then_some(FORMAT);
        let guard = GuardFile::read(&dir.join("guard"));
        let guard = self.note(guard)?;
        if guard == Some(None) && (has_format || !listing.is_empty()) {
            self.damage.push(StorageError::MissingGuard { path: dir.join("guard") });
        }
        let guard = guard.flatten();
        let period = Options::default().guard_period;
        self.guard = guard.map(|Guard { sequence, .. }| GuardView { sequence, period });
        if !has_format && !listing.is_empty() {
            self.damage.push(StorageError::damaged(dir.join("FORMAT"), "it is missing beside a log"));
        }
        let known = guard.unwrap_or_else(|| demands_nothing_of(&listing));
        // Behind a hole, or a header that is not one, raft-engine must not be let at the files.
        if self.note(check_files(&log, &listing, known))?.is_none() || listing.append.is_empty() {
            return Ok(());
        }
        let store = read_store(&log, &listing, known);
        let Some(store) = self.note(store)? else { return Ok(()) };
        let tail = check_tail(&store, &listing, known);
        let sequence = match self.note(tail)? {
            Some(sequence) => Some(sequence),
            // Less is there than should be: that is shown.
            None => self.note(read_sequence(&store))?,
        };
        let found = read_records(&store, sequence.unwrap_or(0));
        let Some(found) = self.note(found)? else { return Ok(()) };
        let bounds = found.groups.iter().map(|(group, state)| (*group, (state.truncated.0, state.last_index)));
        *store.bounds.write() = bounds.collect();
        let bytes = store.files.bytes();
        self.log = Some(LogContents {
            files: (listing.append.len() + listing.rewrite.len()) as u64,
            bytes,
            sequence: found.sequence,
            groups: found.groups,
            node_records: found.node_records,
            reader: Arc::new(DiskReader(Arc::new(store))),
        });
        Ok(())
    }

    /// What is wrong with the directory is noted; what is wrong with looking at it ends the view.
    fn note<T>(&mut self, result: Result<T, StorageError>) -> Result<Option<T>, StorageError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_damage() => {
                self.damage.push(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// In the place of a guard that cannot be read.
fn demands_nothing_of(listing: &Listing) -> Guard {
    let first = |queue| listing.of(queue).first().copied().unwrap_or(1);
    Guard { append_first: first(Queue::Append), rewrite_first: first(Queue::Rewrite), ..Guard::default() }
}

/// What [`open_with`](super::open_with) has when it knows that the log is whole; nothing that was noted is ever carried out.
fn read_store(log: &Path, listing: &Listing, known: Guard) -> Result<Store, StorageError> {
    let files = LogFiles::viewing(log, known);
    cut_torn_batches(log, listing, &files)?;
    // Needed until the engine has opened the files.
    let scratch = Scratch::new(listing)?;
    let engine = open_engine(scratch.path(), log, &files, Options::default())?;
    Ok(Store::new(engine, None, files, log))
}
