//! The files under raft-engine: what it may do to them, and when.
//!
//! raft-engine reaches its files through this [`FileSystem`]. It adds four things.
//!
//! - **Nothing is touched before the log was found whole.** While opening, truncations and writes are only noted
//!   ([`Phase::Opening`]); [`LogFiles::settle`] carries them out once the tail guard agrees. A refused log stays as it
//!   was, byte for byte, for those who want to rescue it.
//! - **The first failure freezes everything.** raft-engine answers a full disk by starting another file, which leaves a
//!   directory that never opens again if the process dies then. Here, every change after the first failed one fails as
//!   well, so the directory stays what a kill at that moment would have left.
//! - **A log that is only looked at is opened for reading.** The phase stays [`Phase::Opening`]; raft-engine works in a
//!   scratch directory with files of the same names, and finds behind them the log's own ([`LogFiles::viewing`]).
//! - **The guard knows first.** Before a file is deleted, the tail guard says durably that it may be missing, and how
//!   much of the rewrite queue holds what the deleted file held.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;
use raft_engine::env::{FileSystem, Handle, Permission, WriteExt};

use super::directory::{file_name, parse_name, Queue};
use super::guard::{Guard, GuardFile};
use crate::storage::StorageError;

thread_local! {
    /// The file that this thread read from last.
    static LAST_READ: Cell<Option<(Queue, u64)>> = const { Cell::new(None) };
}

/// The name of the file that this thread read from last: raft-engine's errors do not say which one is damaged.
pub(super) fn last_read() -> Option<String> {
    LAST_READ.get().map(|(queue, number)| file_name(queue, number))
}

/// What may be done to the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Changes are noted, not made.
    Opening,
    /// Changes are made.
    Live,
    /// Changes fail.
    Frozen,
}

/// The files of one log.
#[derive(Clone)]
pub(super) struct LogFiles(Arc<Shared>);

struct Shared {
    phase: AtomicU8,
    failure: Mutex<Option<StorageError>>,
    keeps: Keeps,
    /// Sequence of the last batch that was synced; goes into the guard with every update.
    synced: AtomicU64,
    /// Bytes per file that raft-engine has written, without what it allocated ahead.
    written: Mutex<BTreeMap<(Queue, u64), u64>>,
    /// Handles with noted changes.
    noted: Mutex<Vec<Arc<Inner>>>,
    /// The file of the rewrite queue that was synced last, and how much of it.
    rewrite_synced: Mutex<(u64, u64)>,
    /// Files with a torn batch: where it begins, and whether the cut was noted.
    torn: Mutex<BTreeMap<(Queue, u64), (u64, bool)>>,
    #[cfg(test)]
    faults: Mutex<Faults>,
    #[cfg(feature = "mutants")]
    power: super::power::Power,
}

/// What is kept up to date beside the files.
enum Keeps {
    /// The guard of a log that is written.
    Guard(Arc<Mutex<GuardFile>>),
    /// Nothing: the files in this directory are only read.
    Nothing(PathBuf),
}

/// What goes wrong in a test.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Faults {
    /// Bytes until the disk is full.
    pub bytes_left: Option<u64>,
    /// Syncs until one fails.
    pub syncs_left: Option<u64>,
}

/// A file that recovery wants to be shorter than it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub path: PathBuf,
    pub queue: Queue,
    pub number: u64,
    pub bytes: u64,
}

/// An open file.
pub(super) struct LogFile(Arc<Inner>);

struct Inner {
    file: File,
    path: PathBuf,
    name: Option<(Queue, u64)>,
    shared: Arc<Shared>,
    /// What raft-engine believes the size to be.
    size: AtomicU64,
    noted: Mutex<Vec<Noted>>,
}

enum Noted {
    Truncate(u64),
    Write(u64, Vec<u8>),
}

/// A position in an open file.
pub(super) struct Cursor {
    file: Arc<Inner>,
    at: u64,
}

impl LogFiles {
    /// Files that are about to be opened.
    pub fn new(guard: Arc<Mutex<GuardFile>>) -> Self {
        let known = guard.lock().get();
        Self::with(Keeps::Guard(guard), known)
    }

    /// The files of the log in `log`, for reading only: raft-engine asks for them under the same names in another
    /// directory, where it may do what it likes.
    pub fn viewing(log: &Path, known: Guard) -> Self {
        Self::with(Keeps::Nothing(log.to_path_buf()), known)
    }

    fn with(keeps: Keeps, known: Guard) -> Self {
        Self(Arc::new(Shared {
            phase: AtomicU8::new(Phase::Opening as u8),
            failure: Mutex::new(None),
            synced: AtomicU64::new(known.sequence),
            rewrite_synced: Mutex::new((known.rewrite_last, known.rewrite_bytes)),
            keeps,
            written: Mutex::new(BTreeMap::new()),
            noted: Mutex::new(Vec::new()),
            torn: Mutex::new(BTreeMap::new()),
            #[cfg(test)]
            faults: Mutex::default(),
            #[cfg(feature = "mutants")]
            power: super::power::Power::default(),
        }))
    }

    /// A file is opened as if it ended here.
    pub fn cut_before_opening(&self, queue: Queue, number: u64, bytes: u64) {
        self.0.torn.lock().insert((queue, number), (bytes, false));
    }

    /// Where recovery wants to cut.
    pub fn cuts(&self) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for file in self.0.noted.lock().iter() {
            let bytes = file.noted.lock().iter().find_map(|change| match change {
                Noted::Truncate(bytes) => Some(*bytes),
                Noted::Write(..) => None,
            });
            if let (Some(bytes), Some((queue, number))) = (bytes, file.name) {
                cuts.push(Cut { path: file.path.clone(), queue, number, bytes });
            }
        }
        cuts
    }

    /// How much of a file raft-engine has read or written.
    pub fn written(&self, queue: Queue, number: u64) -> u64 {
        self.0.written.lock().get(&(queue, number)).copied().unwrap_or(0)
    }

    /// Bytes in all files.
    pub fn bytes(&self) -> u64 {
        self.0.written.lock().values().sum()
    }

    /// First and last file of a queue.
    pub fn span(&self, queue: Queue) -> Option<(u64, u64)> {
        let written = self.0.written.lock();
        let mut files = written.range((queue, 0)..=(queue, u64::MAX)).map(|((_, number), _)| *number);
        let first = files.next()?;
        Some((first, files.next_back().unwrap_or(first)))
    }

    /// Makes the changes that opening noted, and all later ones at once.
    pub fn settle(&self) -> Result<(), StorageError> {
        self.set(Phase::Live);
        for file in self.0.noted.lock().drain(..) {
            let changes = std::mem::take(&mut *file.noted.lock());
            for change in changes {
                file.make("repair", |inner| match &change {
                    Noted::Truncate(bytes) => inner.file.set_len(*bytes),
                    Noted::Write(at, bytes) => inner.file.write_all_at(bytes, *at),
                })
                .map_err(|error| StorageError::io(&file.path, "repair", error))?;
            }
            file.make("sync", |inner| inner.file.sync_all())
                .map_err(|error| StorageError::io(&file.path, "sync", error))?;
        }
        Ok(())
    }

    /// Notes which batch is durable.
    pub fn set_synced(&self, sequence: u64) {
        self.0.synced.store(sequence, Ordering::Release);
    }

    /// Brings the guard up to what is durable.
    pub fn update_guard(&self) -> Result<(), StorageError> {
        self.0.update_guard(|_| {})
    }

    /// The guard is behind what is durable.
    pub fn guard_is_behind(&self) -> bool {
        match &self.0.keeps {
            Keeps::Guard(guard) => guard.lock().get().sequence < self.0.synced.load(Ordering::Acquire),
            Keeps::Nothing(_) => false,
        }
    }

    /// No more changes.
    pub fn freeze(&self) {
        self.set(Phase::Frozen);
    }

    /// Something failed: nothing may be written any more, not even by a destructor.
    pub fn is_frozen(&self) -> bool {
        self.0.phase() == Phase::Frozen
    }

    /// The first failure, once.
    pub fn take_failure(&self) -> Option<StorageError> {
        self.0.failure.lock().take()
    }

    /// What was not synced.
    #[cfg(feature = "mutants")]
    pub fn power(&self) -> super::power::Power {
        self.0.power.clone()
    }

    /// Lets things go wrong.
    #[cfg(test)]
    pub fn set_faults(&self, faults: Faults) {
        *self.0.faults.lock() = faults;
    }

    fn set(&self, phase: Phase) {
        self.0.phase.store(phase as u8, Ordering::Release);
    }

    fn handle(&self, file: File, path: &Path) -> io::Result<LogFile> {
        let size = file.metadata()?.len();
        let inner = Inner {
            file,
            path: path.to_path_buf(),
            name: parse_name(path),
            shared: self.0.clone(),
            size: AtomicU64::new(size),
            noted: Mutex::new(Vec::new()),
        };
        inner.set_written(size);
        let inner = Arc::new(inner);
        if let Some((bytes, noted)) = inner.name.and_then(|name| self.0.torn.lock().get(&name).copied()) {
            inner.open_cut(bytes, noted);
        }
        Ok(LogFile(inner))
    }
}

impl Shared {
    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Opening,
            1 => Phase::Live,
            _ => Phase::Frozen,
        }
    }

    fn freeze(&self, error: StorageError) {
        self.phase.store(Phase::Frozen as u8, Ordering::Release);
        self.failure.lock().get_or_insert(error);
    }

    fn update_guard(&self, change: impl FnOnce(&mut Guard)) -> Result<(), StorageError> {
        let guard = match &self.keeps {
            Keeps::Guard(guard) => guard,
            Keeps::Nothing(log) => return Err(StorageError::io(log, "change", only_read())),
        };
        let sequence = self.synced.load(Ordering::Acquire);
        let (rewrite_last, rewrite_bytes) = *self.rewrite_synced.lock();
        let updated = guard.lock().update(|guard| {
            guard.sequence = guard.sequence.max(sequence);
            guard.rewrite_last = rewrite_last;
            guard.rewrite_bytes = rewrite_bytes;
            change(guard);
        });
        // The disk that failed is the log's.
        updated.inspect_err(|_| self.phase.store(Phase::Frozen as u8, Ordering::Release))
    }

    /// A file that is there. One that is only looked at cannot be written through what this returns.
    fn open(&self, path: &Path, permission: Permission) -> io::Result<(File, PathBuf)> {
        let (path, for_writing) = match (&self.keeps, path.file_name()) {
            (Keeps::Nothing(log), Some(name)) => (log.join(name), false),
            _ => (path.to_path_buf(), permission == Permission::ReadWrite),
        };
        let file = self.make(&path, "open", || OpenOptions::new().read(true).write(for_writing).open(&path))?;
        Ok((file, path))
    }

    /// Makes a change to a path, unless an earlier one failed.
    fn make<T>(&self, path: &Path, operation: &'static str, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.phase() == Phase::Frozen {
            return Err(io::Error::other("the log has stopped at an earlier error"));
        }
        f().inspect_err(|error| {
            // An io::Error cannot be cloned; the number of the operating system's error can.
            let copy = error
                .raw_os_error()
                .map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error);
            self.freeze(StorageError::io(path, operation, copy));
        })
    }
}

impl Inner {
    fn make<T>(&self, operation: &'static str, f: impl FnOnce(&Self) -> io::Result<T>) -> io::Result<T> {
        self.shared.make(&self.path, operation, || f(self))
    }

    /// Notes a change while opening; says whether it did.
    fn note(self: &Arc<Self>, change: impl FnOnce() -> Noted) -> bool {
        if self.shared.phase() != Phase::Opening {
            return false;
        }
        let mut changes = self.noted.lock();
        if changes.is_empty() {
            self.shared.noted.lock().push(self.clone());
        }
        changes.push(change());
        true
    }

    fn set_written(&self, bytes: u64) {
        if let Some(name) = self.name {
            self.shared.written.lock().insert(name, bytes);
        }
    }

    /// Shows raft-engine a torn file as if it ended at `bytes`; the cut is made once.
    fn open_cut(self: &Arc<Self>, bytes: u64, noted: bool) {
        if self.shared.phase() != Phase::Opening {
            return;
        }
        self.size.store(bytes, Ordering::Release);
        self.set_written(bytes);
        if !noted {
            self.note(|| Noted::Truncate(bytes));
            let mut torn = self.shared.torn.lock();
            if let Some((_, noted)) = self.name.and_then(|name| torn.get_mut(&name)) {
                *noted = true;
            }
        }
    }

    fn truncate(self: &Arc<Self>, bytes: u64) -> io::Result<()> {
        if !self.note(|| Noted::Truncate(bytes)) {
            self.make("truncate", |inner| inner.file.set_len(bytes))?;
        }
        self.size.store(bytes, Ordering::Release);
        self.set_written(bytes);
        Ok(())
    }

    fn write(self: &Arc<Self>, at: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.note(|| Noted::Write(at, bytes.to_vec())) {
            self.make("write", |inner| {
                #[cfg(test)]
                inner.shared.fail_write(&inner.file, at, bytes)?;
                #[cfg(feature = "mutants")]
                inner.shared.power.note(&inner.path, &inner.file, at, bytes)?;
                inner.file.write_all_at(bytes, at)
            })?;
        }
        let end = at.saturating_add(bytes.len() as u64);
        self.size.fetch_max(end, Ordering::AcqRel);
        self.set_written(end);
        Ok(())
    }

    /// Fails never: raft-engine panics at a failed sync, with a stack trace on standard error, and when it closes a
    /// second panic would abort the process. The failure freezes the files, and `Store::change` reports it.
    fn sync(&self) {
        if self.shared.phase() == Phase::Opening {
            return;
        }
        // What a file held before the sync is durable after it.
        let written = self.name.map(|name| (name, self.shared.written.lock().get(&name).copied().unwrap_or(0)));
        let synced = self.make("sync", |inner| {
            #[cfg(test)]
            inner.shared.fail_sync()?;
            #[cfg(feature = "mutants")]
            inner.shared.power.lasts()?;
            inner.file.sync_data()
        });
        #[cfg(feature = "mutants")]
        if synced.is_ok() {
            self.shared.power.synced(&self.path);
        }
        if synced.is_ok() {
            if let Some(((Queue::Rewrite, number), bytes)) = written {
                *self.shared.rewrite_synced.lock() = (number, bytes);
            }
        }
    }

    /// Allocates ahead: the size of the file then changes with every few MiB only, which makes fdatasync a third faster
    /// (measured on ext4).
    fn allocate(&self, at: u64, bytes: u64) -> io::Result<()> {
        let end = at.saturating_add(bytes);
        if self.shared.phase() != Phase::Opening {
            fs2::FileExt::allocate(&self.file, end)?;
        }
        self.size.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }
}

#[cfg(test)]
impl Shared {
    fn fail_write(&self, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(left) = &mut self.faults.lock().bytes_left {
            if (bytes.len() as u64) > *left {
                file.write_all_at(&bytes[..*left as usize], at)?;
                // Something else gave a little room back: raft-engine could start another file.
                *left = 200;
                // In the words by which raft-engine knows that it should start another file.
                return Err(io::Error::new(io::ErrorKind::StorageFull, "nospace"));
            }
            *left -= bytes.len() as u64;
        }
        Ok(())
    }

    fn fail_sync(&self) -> io::Result<()> {
        if let Some(left) = &mut self.faults.lock().syncs_left {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return Err(io::Error::from_raw_os_error(5)), // EIO
            }
        }
        Ok(())
    }
}

fn only_read() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the log is only looked at")
}

impl FileSystem for LogFiles {
    type Handle = LogFile;
    type Reader = Cursor;
    type Writer = Cursor;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<LogFile> {
        let path = path.as_ref();
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        self.handle(self.0.make(path, "create", open)?, path)
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> io::Result<LogFile> {
        let (file, path) = self.0.open(path.as_ref(), permission)?;
        self.handle(file, &path)
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        let path = path.as_ref();
        if let Some((queue, number)) = parse_name(path) {
            if self.0.phase() == Phase::Frozen {
                return Err(io::Error::other("the log has stopped at an earlier error"));
            }
            let next = number.saturating_add(1);
            let updated = self.0.update_guard(|guard| match queue {
                Queue::Append => guard.append_first = guard.append_first.max(next),
                Queue::Rewrite => guard.rewrite_first = guard.rewrite_first.max(next),
            });
            if let Err(error) = updated {
                let message = error.to_string();
                self.0.freeze(error);
                return Err(io::Error::other(message));
            }
            self.0.make(path, "delete", || fs::remove_file(path))?;
            self.0.written.lock().remove(&(queue, number));
            return Ok(());
        }
        self.0.make(path, "delete", || fs::remove_file(path))
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        self.0.make(from.as_ref(), "rename", || fs::rename(from.as_ref(), to.as_ref()))
    }

    fn new_reader(&self, handle: Arc<LogFile>) -> io::Result<Cursor> {
        Ok(Cursor { file: handle.0.clone(), at: 0 })
    }

    fn new_writer(&self, handle: Arc<LogFile>) -> io::Result<Cursor> {
        Ok(Cursor { file: handle.0.clone(), at: 0 })
    }
}

impl Handle for LogFile {
    fn truncate(&self, bytes: usize) -> io::Result<()> {
        self.0.truncate(bytes as u64)
    }

    fn file_size(&self) -> io::Result<usize> {
        usize::try_from(self.0.size.load(Ordering::Acquire)).map_err(io::Error::other)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync();
        Ok(())
    }
}

impl Read for Cursor {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        LAST_READ.set(self.file.name);
        let read = self.file.file.read_at(bytes, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Write for Cursor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let out_of_range = || io::Error::from(io::ErrorKind::InvalidInput);
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.at.checked_add_signed(by).ok_or_else(out_of_range)?,
            SeekFrom::End(by) => {
                self.file.size.load(Ordering::Acquire).checked_add_signed(by).ok_or_else(out_of_range)?
            }
        };
        Ok(self.at)
    }
}

impl WriteExt for Cursor {
    fn truncate(&mut self, bytes: usize) -> io::Result<()> {
        self.file.truncate(bytes as u64)?;
        self.at = bytes as u64;
        Ok(())
    }

    fn allocate(&mut self, at: usize, bytes: usize) -> io::Result<()> {
        self.file.allocate(at as u64, bytes as u64)
    }
}
