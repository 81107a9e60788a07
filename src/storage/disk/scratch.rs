//! A directory of our own, for raft-engine to open a log in that is only looked at.
//!
//! raft-engine lists and locks the directory that it is given, and creates files there. It is given this one, with an
//! empty file in the place of each of the log's; [`LogFiles`](super::files::LogFiles) has it read the log's own.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::directory::{file_name, Listing, Queue};
use crate::storage::StorageError;

/// Removed when it is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// A directory in the system's place for temporary files, with names as in `listing`.
    pub fn new(listing: &Listing) -> Result<Self, StorageError> {
        let parent = std::env::temp_dir();
        let random = getrandom::u64().map_err(|error| failed(&parent)(io::Error::other(error.to_string())))?;
        let path = parent.join(format!("aioraft-{random:016x}"));
        DirBuilder::new().mode(0o700).create(&path).map_err(failed(&path))?;
        let scratch = Self(path);
        scratch.fill(listing).map_err(failed(&scratch.0))?;
        Ok(scratch)
    }

    fn fill(&self, listing: &Listing) -> io::Result<()> {
        let append = listing.append.iter().map(|number| file_name(Queue::Append, *number));
        let rewrite = listing.rewrite.iter().map(|number| file_name(Queue::Rewrite, *number));
        append.chain(rewrite).try_for_each(|name| File::create(self.0.join(name)).map(drop))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StorageError + '_ {
    move |source| StorageError::Scratch { path: path.to_path_buf(), source }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Empty files are all that could stay behind.
        let _ = fs::remove_dir_all(&self.0);
    }
}
