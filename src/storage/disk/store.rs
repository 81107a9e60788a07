//! The engine with everything that must live and end with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use raft_engine::{Engine, LogBatch};

use super::files::LogFiles;
use super::marks;
use crate::engine::GroupId;
use crate::storage::StorageError;

/// Shared by writer and reader; closed when both are gone.
pub(super) struct Store {
    /// `None` only while it is dropped.
    engine: Option<Engine<LogFiles>>,
    /// `None` in a log that is only looked at, too.
    lock: Option<File>,
    id: u64,
    pub files: LogFiles,
    /// The directory of the log files.
    pub log: PathBuf,
    /// Per group: truncated index, last index.
    pub bounds: RwLock<BTreeMap<GroupId, (u64, u64)>>,
}

impl Store {
    pub fn new(engine: Engine<LogFiles>, lock: Option<File>, files: LogFiles, log: &Path) -> Self {
        Self {
            engine: Some(engine),
            lock,
            id: marks::next_id(),
            files,
            log: log.to_path_buf(),
            bounds: RwLock::default(),
        }
    }

    /// The lock of the data directory, for one who writes beside the log: it is held until both have let go of it.
    pub fn share_lock(&self) -> std::io::Result<File> {
        match &self.lock {
            Some(lock) => lock.try_clone(),
            None => Err(std::io::Error::other("the log is closed")),
        }
    }

    /// Writes a batch. After an error the files are frozen, and the engine is never dropped.
    pub fn write(&self, batch: &mut LogBatch, sync: bool) -> Result<(), StorageError> {
        self.change(|engine| engine.write(batch, sync).map(drop))
    }

    /// Deletes what nothing refers to any more.
    pub fn purge(&self) -> Result<(), StorageError> {
        self.change(|engine| {
            // It reads entries through the same cache as everybody.
            marks::claim_cache(engine, self.id)?;
            engine.purge_expired_files().map(drop)
        })
    }

    /// Reads from the engine; what its checks throw comes back as an error.
    pub fn read<T>(
        &self,
        f: impl FnOnce(&Engine<LogFiles>) -> Result<T, raft_engine::Error>,
    ) -> Result<T, raft_engine::Error> {
        let engine = self.engine()?;
        caught(|| {
            marks::claim_cache(engine, self.id)?;
            f(engine)
        })
    }

    /// Looks something up that needs no file.
    pub fn peek<T: Default>(&self, f: impl FnOnce(&Engine<LogFiles>) -> T) -> T {
        self.engine.as_ref().map(f).unwrap_or_default()
    }

    /// Nobody opens the files of a simulated disk whose power has failed again, but copies of them, and a sync that comes too
    /// late does nothing there: the engine can go, and its files and thread with it. A long run would have too many of them.
    #[cfg(feature = "mutants")]
    fn is_simulated(&self) -> bool {
        self.files.power().has_failed()
    }

    #[cfg(not(feature = "mutants"))]
    fn is_simulated(&self) -> bool {
        false
    }

    fn engine(&self) -> Result<&Engine<LogFiles>, raft_engine::Error> {
        self.engine.as_ref().ok_or_else(|| raft_engine::Error::Corruption("the log is closed".to_owned()))
    }

    fn change(&self, f: impl FnOnce(&Engine<LogFiles>) -> Result<(), raft_engine::Error>) -> Result<(), StorageError> {
        let result = self.engine().and_then(|engine| caught(|| f(engine)));
        match result {
            // A file operation may have failed without the engine minding.
            Ok(()) if !self.files.is_frozen() => Ok(()),
            result => {
                self.files.freeze();
                let detail = result.err().map_or_else(|| "a file operation failed".to_owned(), |e| e.to_string());
                Err(self.files.take_failure().unwrap_or_else(|| StorageError::damaged(&self.log, detail)))
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.files.is_frozen() && !self.is_simulated() {
            // Dropping the engine would sync, and panic again when that fails. Its lock stays with it: opening the
            // same files in this process would read pages that the kernel may already have given up on writing.
            std::mem::forget(self.engine.take());
            std::mem::forget(self.lock.take());
            return;
        }
        let engine = self.engine.take();
        let _ = caught(|| {
            drop(engine);
            Ok(())
        });
    }
}

/// Runs something of raft-engine's and turns a panic into an error.
pub(super) fn caught<T>(f: impl FnOnce() -> Result<T, raft_engine::Error>) -> Result<T, raft_engine::Error> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let detail = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "for no stated reason".to_owned());
        Err(raft_engine::Error::Corruption(format!("raft-engine panicked: {detail}")))
    })
}
