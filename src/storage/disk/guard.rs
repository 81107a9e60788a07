//! The tail guard (rule D3): how much of the log was durable.
//!
//! raft-engine cuts its last file at the first damage it meets, acknowledged or not, and drops files that it misses
//! in silence. This small file says what must be there. Two slots are written in turn, each with a checksum and a
//! generation, a page apart, so that a torn write leaves the other one.
//!
//! | offset in a slot | bytes | field (integers little-endian) |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | format version |
//! | 12 | 8 | generation: the valid slot with the higher one counts |
//! | 20 | 8 | sequence of the last batch known to be durable |
//! | 28 | 8 | the append queue may begin at this file, not later |
//! | 36 | 8 | the rewrite queue may begin at this file, not later |
//! | 44 | 8 | file of the rewrite queue that was synced last |
//! | 52 | 8 | bytes of it that were durable |
//! | 60 | 4 | CRC-32 of bytes 0 to 59 |

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::directory;
use crate::storage::StorageError;

const MAGIC: &[u8; 8] = b"aioguard";
const VERSION: u32 = 1;
const SLOT_LEN: usize = 64;
const SLOT_DISTANCE: u64 = 4096;

/// What must be found when the log is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guard {
    /// The last batch known to be durable.
    pub sequence: u64,
    /// Files of the append queue below this one may be gone.
    pub append_first: u64,
    /// Files of the rewrite queue below this one may be gone.
    pub rewrite_first: u64,
    /// The file of the rewrite queue that was synced last; 0 if none was.
    pub rewrite_last: u64,
    /// How much of it was durable.
    pub rewrite_bytes: u64,
}

impl Default for Guard {
    fn default() -> Self {
        Self { sequence: 0, append_first: 1, rewrite_first: 1, rewrite_last: 0, rewrite_bytes: 0 }
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct GuardFile {
    file: File,
    path: PathBuf,
    generation: u64,
    guard: Guard,
}

impl GuardFile {
    /// Opens the file, `None` if there is none.
    pub fn open(path: &Path) -> Result<Option<Self>, StorageError> {
        Self::open_as(path, true)
    }

    /// What the file says, `None` if there is none. It is opened for reading only.
    pub fn read(path: &Path) -> Result<Option<Guard>, StorageError> {
        Ok(Self::open_as(path, false)?.map(|file| file.guard))
    }

    fn open_as(path: &Path, for_writing: bool) -> Result<Option<Self>, StorageError> {
        let file = match OpenOptions::new().read(true).write(for_writing).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::io(path, "open", error)),
        };
        let mut best: Option<(u64, Guard)> = None;
        for slot in 0..2 {
            let mut bytes = [0; SLOT_LEN];
            match file.read_exact_at(&mut bytes, slot * SLOT_DISTANCE) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => continue,
                Err(error) => return Err(StorageError::io(path, "read", error)),
            }
            match decode(&bytes) {
                Slot::Valid(generation, guard) if best.is_none_or(|(newest, _)| newest < generation) => {
                    best = Some((generation, guard));
                }
                Slot::Valid(..) | Slot::Torn => {}
                Slot::Newer(found) => {
                    return Err(StorageError::NewerFormat {
                        path: path.to_path_buf(),
                        found: u64::from(found),
                        supported: u64::from(VERSION),
                    })
                }
            }
        }
        let (generation, guard) = best.ok_or_else(|| {
            StorageError::damaged(
                path,
                "neither of its two slots can be read, so nobody can tell whether the log is whole",
            )
        })?;
        Ok(Some(Self { file, path: path.to_path_buf(), generation, guard }))
    }

    /// Creates the file with the guard of an empty log; it appears under its name complete, or not at all.
    pub fn create(path: &Path) -> Result<Self, StorageError> {
        let guard = Guard::default();
        let mut bytes = vec![0; SLOT_DISTANCE as usize + SLOT_LEN];
        bytes[..SLOT_LEN].copy_from_slice(&encode(0, &guard));
        bytes[SLOT_DISTANCE as usize..].copy_from_slice(&encode(1, &guard));
        let file = directory::write_new(path, &bytes)?;
        Ok(Self { file, path: path.to_path_buf(), generation: 1, guard })
    }

    /// What the file says.
    pub fn get(&self) -> Guard {
        self.guard
    }

    /// Changes what the file says; durable when this returns.
    pub fn update(&mut self, change: impl FnOnce(&mut Guard)) -> Result<(), StorageError> {
        let mut guard = self.guard;
        change(&mut guard);
        if guard == self.guard {
            return Ok(());
        }
        let generation = self.generation.saturating_add(1);
        self.file
            .write_all_at(&encode(generation, &guard), generation % 2 * SLOT_DISTANCE)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| StorageError::io(&self.path, "write", error))?;
        self.generation = generation;
        self.guard = guard;
        Ok(())
    }
}

enum Slot {
    Valid(u64, Guard),
    Torn,
    Newer(u32),
}

fn encode(generation: u64, guard: &Guard) -> [u8; SLOT_LEN] {
    let mut bytes = [0; SLOT_LEN];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let words =
        [generation, guard.sequence, guard.append_first, guard.rewrite_first, guard.rewrite_last, guard.rewrite_bytes];
    for (at, word) in words.into_iter().enumerate() {
        bytes[12 + at * 8..20 + at * 8].copy_from_slice(&word.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8; SLOT_LEN]) -> Slot {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let number = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    if &bytes[..8] != MAGIC || word(60) != crc32fast::hash(&bytes[..60]) {
        return Slot::Torn;
    }
    if word(8) != VERSION {
        return Slot::Newer(word(8));
    }
    Slot::Valid(
        number(12),
        Guard {
            sequence: number(20),
            append_first: number(28),
            rewrite_first: number(36),
            rewrite_last: number(44),
            rewrite_bytes: number(52),
        },
    )
}

/// Reads a slot, for fuzzing.
#[cfg(fuzzing)]
pub(super) fn read_slot(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|slot| matches!(decode(slot), Slot::Valid(..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reopened(path: &Path) -> Guard {
        GuardFile::open(path).unwrap().unwrap().get()
    }

    #[test]
    fn the_newest_slot_counts_and_a_torn_one_leaves_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guard");
        assert!(GuardFile::open(&path).unwrap().is_none());
        let mut file = GuardFile::create(&path).unwrap();
        assert_eq!(reopened(&path), Guard::default());
        for sequence in 1..6 {
            file.update(|guard| guard.sequence = sequence).unwrap();
            assert_eq!(reopened(&path).sequence, sequence);
            let whole = std::fs::read(&path).unwrap();
            for slot in 0..2 {
                for at in 0..SLOT_LEN {
                    let mut torn = whole.clone();
                    torn[slot * SLOT_DISTANCE as usize + at] ^= 0x10;
                    std::fs::write(&path, torn).unwrap();
                    assert!(reopened(&path).sequence + 1 >= sequence);
                }
            }
            std::fs::write(&path, whole).unwrap();
        }
    }

    #[test]
    fn without_a_readable_slot_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guard");
        drop(GuardFile::create(&path).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        bytes[SLOT_DISTANCE as usize + 20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(GuardFile::open(&path), Err(StorageError::Damaged { .. })));
        std::fs::write(&path, []).unwrap();
        assert!(matches!(GuardFile::open(&path), Err(StorageError::Damaged { .. })));
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guard");
        drop(GuardFile::create(&path).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8] = 9;
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(GuardFile::open(&path), Err(StorageError::NewerFormat { found: 9, .. })));
    }
}
