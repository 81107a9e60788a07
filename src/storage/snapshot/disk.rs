//! Snapshot files in a directory of the disk.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder::{Blob, Folder};

/// The directory. The data directory that it is in stays locked as long as anybody may write here.
pub(crate) struct DiskFolder {
    dir: PathBuf,
    _lock: File,
}

impl DiskFolder {
    /// A directory that is there, in a data directory that `lock` keeps.
    pub fn new(dir: &Path, lock: File) -> Self {
        Self { dir: dir.to_path_buf(), _lock: lock }
    }
}

impl Folder for DiskFolder {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn list(&self) -> io::Result<Vec<(OsString, bool)>> {
        fs::read_dir(&self.dir)?
            .map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?.is_file()))))
            .collect()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(self.path(name))?;
        Ok(Arc::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        Ok(Arc::new(File::open(self.path(name))?))
    }

    fn reopen(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(self.path(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

impl Blob for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match FileExt::read_at(self, bytes, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
