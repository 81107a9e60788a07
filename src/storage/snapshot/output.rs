//! The writing end of a file: buffered, and made durable slice by slice.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder::Blob;
use crate::storage::StorageError;

/// What is written to the system at once.
const BUFFER_BYTES: usize = 256 << 10;
/// The file is synced whenever so much was written: nothing large is left for the last sync, and the log's own syncs, which
/// the system may serve only together with this file's, wait for little.
pub(super) const SYNC_BYTES: u64 = 16 << 20;

/// A file that grows. After the first failure nothing more is written: what that left behind is unknown.
pub(super) struct Output {
    blob: Arc<dyn Blob>,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Where the buffer belongs in the file.
    at: u64,
    unsynced: u64,
    failure: Option<String>,
}

impl Output {
    /// Goes on at byte `at` of a file.
    pub fn new(blob: Arc<dyn Blob>, path: &Path, at: u64) -> Self {
        // How much of what is there was synced is not known: its turn comes with the first slice.
        let buffer = Vec::with_capacity(BUFFER_BYTES);
        Self { blob, path: path.to_path_buf(), buffer, at, unsynced: at, failure: None }
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.attempt(|output| {
            if output.buffer.len() + bytes.len() > BUFFER_BYTES {
                output.flush()?;
            }
            if bytes.len() < BUFFER_BYTES {
                output.buffer.extend_from_slice(bytes);
                return Ok(());
            }
            write_at(output.blob.as_ref(), &output.path, &mut output.at, bytes)?;
            output.unsynced = output.unsynced.saturating_add(bytes.len() as u64);
            output.sync_if_due()
        })
    }

    /// Hands everything to the system; it survives the end of the process.
    pub fn settle(&mut self) -> Result<(), StorageError> {
        self.attempt(Self::flush)
    }

    /// Everything is durable when this returns.
    pub fn finish(&mut self) -> Result<(), StorageError> {
        self.attempt(|output| {
            output.flush()?;
            output.sync()
        })
    }

    /// Something failed.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// The file, for reading.
    pub fn blob(&self) -> Arc<dyn Blob> {
        self.blob.clone()
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        write_at(self.blob.as_ref(), &self.path, &mut self.at, &self.buffer)?;
        self.unsynced = self.unsynced.saturating_add(self.buffer.len() as u64);
        self.buffer.clear();
        self.sync_if_due()
    }

    fn sync_if_due(&mut self) -> Result<(), StorageError> {
        if self.unsynced < SYNC_BYTES {
            return Ok(());
        }
        self.sync()
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.blob.sync().map_err(|error| StorageError::snapshot(&self.path, "sync", error))?;
        self.unsynced = 0;
        Ok(())
    }

    fn attempt(&mut self, f: impl FnOnce(&mut Self) -> Result<(), StorageError>) -> Result<(), StorageError> {
        if let Some(reason) = &self.failure {
            return Err(StorageError::snapshot(&self.path, "go on with", io::Error::other(reason.clone())));
        }
        f(self).inspect_err(|error| self.failure = Some(error.to_string()))
    }
}

fn write_at(blob: &dyn Blob, path: &Path, at: &mut u64, bytes: &[u8]) -> Result<(), StorageError> {
    if !bytes.is_empty() {
        blob.write_at(bytes, *at).map_err(|error| StorageError::snapshot(path, "write", error))?;
        *at = at.saturating_add(bytes.len() as u64);
    }
    Ok(())
}
