//! Snapshot files in memory, for nodes that keep nothing on disk, and for tests.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::folder::{Blob, Folder};

/// Files under their names; they go with it.
#[derive(Default)]
pub(crate) struct MemoryFolder(Mutex<BTreeMap<String, Contents>>);

/// A file's bytes, shared by those who have it open.
#[derive(Clone, Default)]
struct Contents(Arc<RwLock<Vec<u8>>>);

impl MemoryFolder {
    fn get(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        match self.0.lock().get(name) {
            Some(contents) => Ok(Arc::new(contents.clone())),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Folder for MemoryFolder {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("memory").join(name)
    }

    fn list(&self) -> io::Result<Vec<(OsString, bool)>> {
        Ok(self.0.lock().keys().map(|name| (name.into(), true)).collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        let contents = Contents::default();
        self.0.lock().insert(name.to_owned(), contents.clone());
        Ok(Arc::new(contents))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        self.get(name)
    }

    fn reopen(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        self.get(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.lock();
        let contents = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), contents);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Blob for Contents {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.read().len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let contents = self.0.read();
        let rest = usize::try_from(offset).ok().and_then(|offset| contents.get(offset..)).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut contents = self.0.write();
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let end = offset.checked_add(bytes.len()).ok_or(io::ErrorKind::OutOfMemory)?;
        if contents.len() < end {
            let more = end - contents.len();
            contents.try_reserve(more).map_err(|_| io::ErrorKind::OutOfMemory)?;
            contents.resize(end, 0);
        }
        contents[offset..end].copy_from_slice(bytes);
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.0.write().truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
