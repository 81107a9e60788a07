//! Power loss, for the simulated world: which bytes were written and never synced, and a copy of the directory in which
//! some of them are gone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

/// What a disk writes as a whole.
const SECTOR: u64 = 512;

/// What stands between the files of a log and the platter. Cloning gives another handle to it.
#[derive(Clone, Default)]
pub struct Power(Arc<State>);

#[derive(Default)]
struct State {
    unsynced: Mutex<Vec<Write>>,
    /// The power fails behind so many more syncs.
    syncs_left: Mutex<Option<usize>>,
}

struct Write {
    path: PathBuf,
    at: u64,
    before: Vec<u8>,
}

impl Power {
    /// `bytes` are about to be written.
    pub(super) fn note(&self, path: &Path, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut before = vec![0; bytes.len()];
        let mut read = 0;
        while read < before.len() {
            match file.read_at(&mut before[read..], at + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        self.0.unsynced.lock().push(Write { path: path.to_path_buf(), at, before });
        Ok(())
    }

    /// A file is about to be synced. Where the power has failed the sync never returns: whatever was to come after it,
    /// such as the log's next file, is not there.
    pub(super) fn lasts(&self) -> io::Result<()> {
        match self.0.syncs_left.lock().as_mut() {
            Some(0) => Err(io::Error::other("the power has failed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A file was synced.
    pub(super) fn synced(&self, path: &Path) {
        self.0.unsynced.lock().retain(|write| write.path != path);
    }

    /// Behind `syncs` more syncs nothing reaches the platter for certain.
    pub fn fail(&self, syncs: usize) {
        *self.0.syncs_left.lock() = Some(syncs);
    }

    /// [`Self::fail`] was called.
    pub(super) fn has_failed(&self) -> bool {
        self.0.syncs_left.lock().is_some()
    }

    /// Copies a directory as it is found after the power came back. Of each write that was not synced, the first `kept` of
    /// so many bytes are there, up to the sector in which they end: a disk writes a sector, or does not.
    pub fn copy(&self, from: &Path, to: &Path, mut kept: impl FnMut(usize) -> usize) -> io::Result<()> {
        copy_all(from, to)?;
        for write in self.0.unsynced.lock().iter().rev() {
            let (begin, bytes) = (write.at, write.before.len());
            let mut kept = kept(bytes).min(bytes);
            if kept < bytes {
                let end = (begin + kept as u64) / SECTOR * SECTOR;
                kept = end.saturating_sub(begin) as usize;
            }
            let Ok(path) = write.path.strip_prefix(from) else { continue };
            let file = OpenOptions::new().write(true).open(to.join(path))?;
            file.write_all_at(&write.before[kept..], write.at + kept as u64)?;
        }
        Ok(())
    }
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
