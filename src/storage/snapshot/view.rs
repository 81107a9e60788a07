//! A look at the snapshots' files that changes nothing.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file_name::FileName;
use super::folder::{Blob, Folder};
use super::store::Store;
use super::{Head, SnapshotName, SnapshotStore};
use crate::storage::StorageError;

/// How far a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Whole.
    Whole,
    /// It was coming from another node.
    Receiving,
    /// It was being written by this one.
    Writing,
}

/// A file, of which every byte was read and checked if it should be whole.
#[derive(Debug)]
pub struct FileView {
    /// Its name in the directory.
    pub file: String,
    /// How far it is.
    pub state: FileState,
    /// The state is the one as of this index.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
    /// Bytes that are there.
    pub bytes: u64,
    /// The log names it: it counts (rule D1).
    pub is_named: bool,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Viewed {
    /// The files, by their names.
    pub files: Vec<FileView>,
    /// What stands in front of the chunks of the one that the log names, if it can be read.
    pub named: Option<Head>,
    /// Why a node would not go on from the one that the log names.
    pub damage: Option<StorageError>,
}

/// Looks at the files in a directory, which need not be there; `named` is what the log names.
///
/// # Errors
///
/// Something cannot be read.
pub fn view(dir: &Path, named: Option<&SnapshotName>) -> Result<Viewed, StorageError> {
    let folder = ReadOnly(dir.to_path_buf());
    let listed = folder.list().map_err(|error| StorageError::io(dir, "list", error))?;
    let store = Store::new(folder);
    let mut viewed = Viewed::default();
    if let Some(name) = named {
        match check(&store, name)? {
            Ok(head) => viewed.named = Some(head),
            Err(damage) => viewed.damage = Some(damage),
        }
    }
    for (file, _) in listed.into_iter().filter(|(_, is_file)| *is_file) {
        let Some((file, name)) = file.to_str().and_then(|text| Some((text.to_owned(), FileName::parse(text)?))) else {
            continue;
        };
        let path = dir.join(&file);
        let bytes = fs::metadata(&path).map_err(|error| StorageError::io(&path, "read", error))?.len();
        let (state, index, term) = match name {
            FileName::Whole(name) => (FileState::Whole, name.index, name.term),
            FileName::Received(name) => (FileState::Receiving, name.index, name.term),
            FileName::Taken { index, term, .. } => (FileState::Writing, index, term),
        };
        let (is_named, problem) = match name {
            FileName::Whole(name) if named == Some(&name) => (true, viewed.damage.as_ref().map(ToString::to_string)),
            FileName::Whole(name) => match check(&store, &name)? {
                // A running node has removed it meanwhile.
                Err(_) if !path.exists() => continue,
                checked => (false, checked.err().map(|damage| damage.to_string())),
            },
            FileName::Received(_) | FileName::Taken { .. } => (false, None),
        };
        viewed.files.push(FileView { file, state, index, term, bytes, is_named, problem });
    }
    viewed.files.sort_unstable_by(|one, other| one.file.cmp(&other.file));
    Ok(viewed)
}

/// Reads a file to its end, which is more than a start does: the chunks are read when the application needs them. What is
/// wrong with the file is the inner result, and what is wrong with looking at it the outer one.
fn check(store: &Store, name: &SnapshotName) -> Result<Result<Head, StorageError>, StorageError> {
    let read = || -> Result<Head, StorageError> {
        let file = store.open(name)?;
        let head = file.head().clone();
        file.chunks().try_for_each(|chunk| chunk.map(drop))?;
        Ok(head)
    };
    match read() {
        Err(error) if !error.is_damage() => Err(error),
        result => Ok(result),
    }
}

/// The directory, for reading only.
struct ReadOnly(PathBuf);

fn only_read<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the snapshots are only looked at"))
}

impl Folder for ReadOnly {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn list(&self) -> io::Result<Vec<(OsString, bool)>> {
        let entries = match fs::read_dir(&self.0) {
            // A directory of before there were snapshots has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries.map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?.is_file())))).collect()
    }

    fn create(&self, _: &str) -> io::Result<Arc<dyn Blob>> {
        only_read()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        Ok(Arc::new(File::open(self.path(name))?))
    }

    fn reopen(&self, _: &str) -> io::Result<Arc<dyn Blob>> {
        only_read()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        only_read()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        only_read()
    }

    fn sync(&self) -> io::Result<()> {
        only_read()
    }
}
