//! The data directory: its lock, its format and its list of log files.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs2::FileExt;

use crate::storage::StorageError;

/// The format written by this build.
pub(super) const FORMAT: u64 = 1;
const FORMAT_WORDS: &str = "aioraft data directory, format ";

/// The two queues of files that raft-engine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Queue {
    /// Everything is written here first.
    Append,
    /// What is still needed of old append files is written here again.
    Rewrite,
}

/// Reads the name of a file of raft-engine's.
pub(super) fn parse_name(path: &Path) -> Option<(Queue, u64)> {
    let name = path.file_name()?.to_str()?;
    let (number, suffix) = name.split_at_checked(16)?;
    let queue = match suffix {
        ".raftlog" => Queue::Append,
        ".rewrite" => Queue::Rewrite,
        _ => return None,
    };
    Some((queue, number.parse().ok()?))
}

/// The name of a file of raft-engine's.
pub(super) fn file_name(queue: Queue, number: u64) -> String {
    match queue {
        Queue::Append => format!("{number:016}.raftlog"),
        Queue::Rewrite => format!("{number:016}.rewrite"),
    }
}

/// The files found in the log's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub append: BTreeSet<u64>,
    pub rewrite: BTreeSet<u64>,
}

impl Listing {
    /// Lists a directory; one that is not there has no files.
    pub fn read(log: &Path) -> Result<Self, StorageError> {
        let mut listing = Self::default();
        let entries = match fs::read_dir(log) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listing),
            Err(error) => return Err(StorageError::io(log, "list", error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| StorageError::io(log, "list", error))?;
            match parse_name(&entry.path()) {
                Some((Queue::Append, number)) => listing.append.insert(number),
                Some((Queue::Rewrite, number)) => listing.rewrite.insert(number),
                None => false,
            };
        }
        Ok(listing)
    }

    /// The files of one queue.
    pub fn of(&self, queue: Queue) -> &BTreeSet<u64> {
        match queue {
            Queue::Append => &self.append,
            Queue::Rewrite => &self.rewrite,
        }
    }

    /// No log was ever here.
    pub fn is_empty(&self) -> bool {
        self.append.is_empty() && self.rewrite.is_empty()
    }

    /// Every file from `first` to the newest is there. raft-engine itself drops everything before a hole in silence.
    pub fn check_whole(&self, log: &Path, queue: Queue, first: u64) -> Result<(), StorageError> {
        let files = self.of(queue);
        let Some(&last) = files.last() else { return Ok(()) };
        match (first..=last).find(|number| !files.contains(number)) {
            None => Ok(()),
            Some(number) => {
                Err(StorageError::damaged(log.join(file_name(queue, number)), "the file is missing from the log"))
            }
        }
    }

    /// Every file begins as it should. raft-engine's header has no checksum: a flipped bit in its alignment makes it
    /// allocate until the process aborts.
    pub fn check_headers(&self, log: &Path, queue: Queue) -> Result<(), StorageError> {
        let files = self.of(queue);
        for number in files {
            let path = log.join(file_name(queue, *number));
            let header = read_header(&path)?;
            // A crash can leave a newest file that nothing was written to.
            let unused =
                Some(number) == files.last() && (header.len() < HEADER.len() || header.iter().all(|byte| *byte == 0));
            if header_len(&header).is_none() && !unused {
                return Err(StorageError::damaged(path, "its header is not what this log writes"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
thread_local! {
    /// The directories that this thread has synced.
    pub(super) static SYNCED: std::cell::RefCell<Vec<PathBuf>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// What each file of raft-engine's begins with: its magic, its version (2) and its alignment (0), both big-endian.
const HEADER: &[u8; 69] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5\
    \0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0";
/// The same of version 1, which has no alignment. raft-engine writes it when it is opened on a newest file that a crash
/// left without a header.
const OLD_HEADER: &[u8; 61] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5\0\0\0\0\0\0\0\x01";

/// What a file begins with, as far as it goes.
pub(super) fn read_header(path: &Path) -> Result<Vec<u8>, StorageError> {
    let mut header = Vec::with_capacity(HEADER.len());
    File::open(path)
        .and_then(|file| file.take(HEADER.len() as u64).read_to_end(&mut header))
        .map_err(|error| StorageError::io(path, "read", error))?;
    Ok(header)
}

/// The length of a file's header, `None` if it is none that raft-engine writes.
pub(super) fn header_len(begin: &[u8]) -> Option<usize> {
    [&HEADER[..], &OLD_HEADER[..]].into_iter().find(|header| begin.starts_with(header)).map(<[u8]>::len)
}

/// Makes entries of a directory durable.
pub(super) fn sync(dir: &Path) -> Result<(), StorageError> {
    #[cfg(test)]
    SYNCED.with_borrow_mut(|synced| synced.push(dir.to_path_buf()));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| StorageError::io(dir, "sync", error))
}

/// Creates a directory, with those above it, and makes their entries durable.
pub(super) fn create(dir: &Path) -> Result<(), StorageError> {
    // Of a path below a file, the system says only that it is not there.
    if let Some(file) = dir.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir()) {
        return Err(StorageError::NotADirectory { path: file.to_path_buf() });
    }
    let missing: Vec<&Path> = dir.ancestors().take_while(|path| *path == dir || !path.exists()).collect();
    fs::create_dir_all(dir).map_err(|error| StorageError::io(dir, "create", error))?;
    for path in missing {
        match path.parent() {
            // The parent of a relative path of one part is the empty path.
            Some(parent) if parent == Path::new("") => sync(Path::new("."))?,
            Some(parent) => sync(parent)?,
            None => {}
        }
    }
    Ok(())
}

/// Writes a file that appears under its name complete, or not at all.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<File, StorageError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&unfinished)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()).map(|()| file))
        .map_err(|error| StorageError::io(&unfinished, "write", error))?;
    fs::rename(&unfinished, path).map_err(|error| StorageError::io(path, "rename a file to", error))?;
    if let Some(dir) = path.parent() {
        sync(dir)?;
    }
    Ok(file)
}

/// How often, and after what pause, the lock is tried again: who looks at a directory holds it for some microseconds
/// ([`is_locked`]), and must not keep a node from starting.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Takes the directory for this process, for as long as the file stays open.
pub(super) fn lock(dir: &Path) -> Result<File, StorageError> {
    let path = dir.join("LOCK");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| StorageError::io(&path, "open", error))?;
    let mut attempt = 1;
    loop {
        match FileExt::try_lock_exclusive(&file) {
            Ok(()) => return Ok(file),
            Err(error) if is_contention(&error) && attempt < LOCK_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(error) if is_contention(&error) => return Err(StorageError::Locked { path: dir.to_path_buf() }),
            Err(error) => return Err(StorageError::io(&path, "lock", error)),
        }
    }
}

/// Whether a node has the directory open. There is no other way to know than to take the lock, so it is taken as one of
/// many, and given back at once.
pub(super) fn is_locked(dir: &Path) -> Result<bool, StorageError> {
    let path = dir.join("LOCK");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(StorageError::io(&path, "open", error)),
    };
    match FileExt::try_lock_shared(&file) {
        Ok(()) => Ok(false),
        Err(error) if is_contention(&error) => Ok(true),
        Err(error) => Err(StorageError::io(&path, "lock", error)),
    }
}

fn is_contention(error: &io::Error) -> bool {
    error.raw_os_error() == fs2::lock_contended_error().raw_os_error()
}

/// Whether the directory has a format yet; one that this build does not read is an error.
pub(super) fn has_format(path: &Path) -> Result<bool, StorageError> {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(StorageError::io(path, "read", error)),
    };
    match text.trim_end().strip_prefix(FORMAT_WORDS).and_then(|number| number.parse().ok()) {
        Some(FORMAT) => Ok(true),
        Some(found) if found > FORMAT => {
            Err(StorageError::NewerFormat { path: path.to_path_buf(), found, supported: FORMAT })
        }
        _ => {
            let found: String = text.chars().take(2 * FORMAT_WORDS.len()).collect();
            Err(StorageError::damaged(path, format!("it should say '{FORMAT_WORDS}{FORMAT}', and says {found:?}")))
        }
    }
}

/// Gives the directory its format.
pub(super) fn write_format(path: &Path) -> Result<(), StorageError> {
    write_new(path, format!("{FORMAT_WORDS}{FORMAT}\n").as_bytes()).map(drop)
}
