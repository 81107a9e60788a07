//! The snapshot files in a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::claim::Claim;
use super::file_name::FileName;
use super::folder::Folder;
use super::receiver::Receiver;
use super::whole::WholeFile;
use super::writer::Writer;
use super::{Head, SnapshotFile, SnapshotName, SnapshotReceiver, SnapshotStore, SnapshotWriter};
use crate::engine::GroupId;
use crate::storage::StorageError;

/// The store; what it has opened may outlive it.
pub(crate) struct Store(Arc<Shared>);

/// What store and writers share.
pub(super) struct Shared {
    pub folder: Box<dyn Folder>,
    pub held: Mutex<Held>,
}

/// Files that nobody may remove, whatever is to be retained.
#[derive(Default)]
pub(super) struct Held {
    /// Those that are being written.
    pub writing: BTreeSet<String>,
    /// Those that were finished since the start and not yet named by [`SnapshotStore::retain`].
    pub finished: BTreeSet<SnapshotName>,
    /// Files of others, each of which is mentioned once.
    strangers: BTreeSet<OsString>,
}

impl Store {
    /// The files in this directory.
    pub fn new(folder: impl Folder + 'static) -> Self {
        Self(Arc::new(Shared { folder: Box::new(folder), held: Mutex::default() }))
    }
}

impl SnapshotStore for Store {
    fn create(&self, head: &Head) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let claim = Claim::new(&self.0, &FileName::taken(head))?;
        Ok(Box::new(Writer::begin(claim, head)?))
    }

    fn receive(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotReceiver>, StorageError> {
        let claim = Claim::new(&self.0, &FileName::Received(*name))?;
        Ok(Box::new(Receiver::begin(claim, name)?))
    }

    fn open(&self, name: &SnapshotName) -> Result<Arc<dyn SnapshotFile>, StorageError> {
        let file = FileName::Whole(*name).to_string();
        let path = self.0.folder.path(&file);
        let blob = self.0.folder.open(&file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StorageError::damaged(&path, "the log names it, and it is missing"),
            _ => StorageError::io(&path, "open", error),
        })?;
        Ok(Arc::new(WholeFile::open(blob, path, *name)?))
    }

    fn retain(&self, names: &[SnapshotName]) -> Result<(), StorageError> {
        // Nobody begins or ends a file meanwhile.
        let mut held = self.0.held.lock();
        let reached = |group: GroupId| names.iter().filter(|name| name.group == group).map(|name| name.index).max();
        let is_ahead = |name: &SnapshotName| Some(name.index) > reached(name.group);
        held.finished.retain(|name| is_ahead(name) && !names.contains(name));
        let files = self.files(&mut held)?;
        let mut furthest = BTreeMap::new();
        for (file, _) in &files {
            if let FileName::Received(name) = file {
                let known = furthest.entry(name.group).or_insert(*name);
                *known = (*known).max(*name);
            }
        }
        let stays = |file: &FileName, text: &String| match file {
            FileName::Whole(name) => names.contains(name) || held.finished.contains(name),
            FileName::Received(name) => {
                let is_furthest = furthest.get(&name.group) == Some(name) && is_ahead(name);
                held.writing.contains(text) || is_furthest
            }
            FileName::Taken { .. } => held.writing.contains(text),
        };
        let mut first_failure = Ok(());
        for (_, text) in files.iter().filter(|(file, text)| !stays(file, text)) {
            match self.0.folder.remove(text) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let failure = StorageError::snapshot(self.0.folder.path(text), "remove", error);
                    first_failure = first_failure.and(Err(failure));
                }
                _ => tracing::debug!(file = text, "removed a snapshot's file that is not needed"),
            }
        }
        first_failure
    }
}

impl Store {
    /// All files of ours.
    fn files(&self, held: &mut Held) -> Result<Vec<(FileName, String)>, StorageError> {
        let folder = &self.0.folder;
        let listed = folder.list().map_err(|error| StorageError::snapshot(folder.path(""), "list", error))?;
        let mut files = Vec::new();
        for (name, is_file) in listed {
            match name.to_str().and_then(|text| Some((FileName::parse(text)?, text.to_owned()))) {
                Some(file) if is_file => files.push(file),
                _ => {
                    if held.strangers.insert(name.clone()) {
                        let file = folder.path(&name.to_string_lossy());
                        tracing::warn!(file = %file.display(), "this is no snapshot's file, and is left alone");
                    }
                }
            }
        }
        Ok(files)
    }
}
