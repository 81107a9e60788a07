//! A file that somebody writes, and nobody else meanwhile.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file_name::FileName;
use super::folder::{Blob, Folder};
use super::store::Shared;
use super::SnapshotName;
use crate::storage::StorageError;

/// Held by the one who writes the file; until it is dropped nobody else writes or removes it.
pub(super) struct Claim {
    shared: Arc<Shared>,
    part: String,
    is_discarded: bool,
}

impl Claim {
    /// Claims a file, or says that somebody has it.
    pub fn new(shared: &Arc<Shared>, part: &FileName) -> Result<Self, StorageError> {
        let part = part.to_string();
        if !shared.held.lock().writing.insert(part.clone()) {
            return Err(StorageError::SnapshotBusy { path: shared.folder.path(&part) });
        }
        Ok(Self { shared: shared.clone(), part, is_discarded: false })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.shared.folder.path(&self.part)
    }

    /// Where another file is.
    pub fn path_of(&self, name: &FileName) -> PathBuf {
        self.shared.folder.path(&name.to_string())
    }

    /// The directory.
    pub fn folder(&self) -> &dyn Folder {
        self.shared.folder.as_ref()
    }

    /// The file, empty.
    pub fn create(&self) -> io::Result<Arc<dyn Blob>> {
        self.shared.folder.create(&self.part)
    }

    /// The file as it was left; `None` if there is none.
    pub fn reopen(&self) -> io::Result<Option<Arc<dyn Blob>>> {
        match self.shared.folder.reopen(&self.part) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        }
    }

    /// From now on, dropping the claim removes the file.
    pub fn discard_when_dropped(&mut self) {
        self.is_discarded = true;
    }

    /// Gives the file, which is whole and durable, its name: that is durable, too, when this returns.
    pub fn publish(&mut self, name: &SnapshotName) -> Result<(), StorageError> {
        let whole = FileName::Whole(*name);
        let path = self.path_of(&whole);
        self.shared.held.lock().finished.insert(*name);
        self.shared
            .folder
            .rename(&self.part, &whole.to_string())
            .map_err(|error| StorageError::snapshot(&path, "rename a file to", error))?;
        // It bears a name now that the log may know, from an earlier file with the same content: whatever fails from here
        // on, it stays.
        self.is_discarded = false;
        self.sync_folder(&path)
    }

    /// A whole file that was found under its name: makes it durable, as nobody knows whether it was.
    pub fn confirm(&self, blob: &dyn Blob, name: &SnapshotName) -> Result<(), StorageError> {
        let path = self.path_of(&FileName::Whole(*name));
        self.shared.held.lock().finished.insert(*name);
        blob.sync().map_err(|error| StorageError::snapshot(&path, "sync", error))?;
        self.sync_folder(&path)
    }

    fn sync_folder(&self, path: &Path) -> Result<(), StorageError> {
        self.shared.folder.sync().map_err(|error| StorageError::snapshot(path, "sync the directory of", error))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.is_discarded {
            // What cannot be removed now is a leftover for `retain`.
            let _ = self.shared.folder.remove(&self.part);
        }
        self.shared.held.lock().writing.remove(&self.part);
    }
}
