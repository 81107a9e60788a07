//! A whole file, open for reading.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::folder::Blob;
use super::format::{self, Kind, END_LEN};
use super::reading::Reading;
use super::{Head, SnapshotFile, SnapshotName};
use crate::storage::StorageError;

/// The open file.
pub(super) struct WholeFile {
    blob: Arc<dyn Blob>,
    path: PathBuf,
    name: SnapshotName,
    head: Head,
}

impl WholeFile {
    /// A file of which every byte was checked.
    pub fn new(blob: Arc<dyn Blob>, path: PathBuf, name: SnapshotName, head: Head) -> Self {
        Self { blob, path, name, head }
    }

    /// Looks at its length, its head and its end; the chunks are checked when they are read.
    pub fn open(blob: Arc<dyn Blob>, path: PathBuf, name: SnapshotName) -> Result<Self, StorageError> {
        let bytes = blob.len().map_err(|error| StorageError::io(&path, "read", error))?;
        if bytes != name.bytes {
            let detail = format!("it has {bytes} bytes, and should have {}", name.bytes);
            return Err(StorageError::damaged(&path, detail));
        }
        let mut reading = Reading::default();
        while !reading.parser.has_meta() {
            if reading.next(blob.as_ref()).map_err(|stop| stop.of_file(&path))?.is_none() {
                return Err(StorageError::damaged(&path, "it ends before the application's part"));
            }
        }
        let head = reading.parser.head().filter(|head| is_head_of(head, &name)).cloned();
        let head = head.ok_or_else(|| StorageError::damaged(&path, "it holds another snapshot than its name says"))?;
        let file = Self { blob, path, name, head };
        let end = name.bytes.saturating_sub(END_LEN as u64);
        if !format::is_end(end, &file.read_at(end, END_LEN)?) {
            return Err(StorageError::damaged(&file.path, "its end is not that of a whole file"));
        }
        Ok(file)
    }
}

/// Whether the head is that of the file of this name, as far as the name says it.
pub(super) fn is_head_of(head: &Head, name: &SnapshotName) -> bool {
    (head.group, head.index, head.term) == (name.group, name.index, name.term)
}

impl fmt::Debug for WholeFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WholeFile").field(&self.path).finish()
    }
}

impl SnapshotFile for WholeFile {
    fn name(&self) -> &SnapshotName {
        &self.name
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn read_at(&self, offset: u64, bytes_max: usize) -> Result<Vec<u8>, StorageError> {
        let left = self.name.bytes.saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(left).map_or(bytes_max, |left| left.min(bytes_max))];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let read = self.blob.read_at(rest, offset.saturating_add(filled as u64));
            match read.map_err(|error| StorageError::io(&self.path, "read", error))? {
                0 => return Err(StorageError::damaged(&self.path, "it became shorter while it was read")),
                more => filled += more,
            }
        }
        Ok(bytes)
    }

    fn chunks(self: Arc<Self>) -> Box<dyn Iterator<Item = Result<Vec<u8>, StorageError>> + Send> {
        Box::new(Chunks { file: self, reading: Reading::default(), is_done: false })
    }
}

/// The application's chunks on their way out.
struct Chunks {
    file: Arc<WholeFile>,
    reading: Reading,
    is_done: bool,
}

impl Chunks {
    fn read(&mut self) -> Result<Option<Vec<u8>>, StorageError> {
        let WholeFile { blob, path, name, .. } = self.file.as_ref();
        let mut chunk = Vec::new();
        while let Some(piece) = self.reading.next(blob.as_ref()).map_err(|stop| stop.of_file(path))? {
            if piece.kind == Kind::Chunk {
                chunk.extend_from_slice(self.reading.parser.payload());
                if !piece.goes_on {
                    return Ok(Some(chunk));
                }
            }
        }
        match self.reading.parser.name() {
            Some(found) if found == *name => Ok(None),
            Some(_) => Err(StorageError::damaged(path, "its checksum is not the one its name says")),
            None => Err(StorageError::damaged(path, "it ends before its end")),
        }
    }
}

impl Iterator for Chunks {
    type Item = Result<Vec<u8>, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let chunk = self.read().transpose();
        self.is_done = !matches!(chunk, Some(Ok(_)));
        chunk
    }
}
