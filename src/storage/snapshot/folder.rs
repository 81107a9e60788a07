//! What the snapshot files need of a directory, so that all else is the same on disk, in memory and on simulated disks.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A directory of files.
pub(crate) trait Folder: Send + Sync {
    /// Where a file is, for people.
    fn path(&self, name: &str) -> PathBuf;

    /// The names of all that is there, and whether each is a file.
    fn list(&self) -> io::Result<Vec<(OsString, bool)>>;

    /// An empty file, in the place of one that is there.
    fn create(&self, name: &str) -> io::Result<Arc<dyn Blob>>;

    /// A file that is there, for reading.
    fn open(&self, name: &str) -> io::Result<Arc<dyn Blob>>;

    /// A file that is there, for reading and writing.
    fn reopen(&self, name: &str) -> io::Result<Arc<dyn Blob>>;

    /// Gives a file another name, in one step. A file that had it is gone then, but for those who have it open.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Those who have it open still have it.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable: those that were created, renamed and removed before.
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
pub(crate) trait Blob: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Reads some bytes at `offset`, at least one unless the file ends there.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all bytes at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts it off.
    fn truncate(&self, bytes: u64) -> io::Result<()>;

    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
}
