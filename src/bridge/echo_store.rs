//! The snapshot files of an echo: the newest one only, found again in its directory, or in no directory at all.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crate::storage::snapshot::{
    Form, Head, SnapshotFile, SnapshotName, SnapshotReceiver, SnapshotStore, SnapshotWriter,
};
use crate::storage::StorageError;

/// Group, index, term and form.
const HEAD_BYTES: usize = 25;
/// Length and checksum in front of each chunk.
const CHUNK_HEAD_BYTES: usize = 8;

/// Where an echo keeps its snapshot.
pub struct EchoStore {
    data_dir: Option<PathBuf>,
}

impl EchoStore {
    /// In this directory; without one, the file has no name and ends with its last reader.
    pub fn new(data_dir: Option<PathBuf>) -> Self {
        Self { data_dir }
    }

    /// The snapshot of an earlier echo.
    pub fn newest(&self) -> Option<Arc<dyn SnapshotFile>> {
        let path = self.data_dir.as_ref()?.join("echo.snapshot");
        let file = File::open(&path).ok()?;
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, 0).ok()?;
        let number = |at: usize| head[at..at + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let form = if head[24] == Form::Bytes as u8 { Form::Bytes } else { Form::Chunks };
        let head = Head { group: number(0), index: number(8), term: number(16), form, meta: Vec::new() };
        Some(Arc::new(EchoFile::new(path, file, head).ok()?))
    }

    fn path(&self) -> PathBuf {
        static MADE: AtomicU64 = AtomicU64::new(0);
        match &self.data_dir {
            Some(data_dir) => data_dir.join("echo.snapshot.new"),
            None => {
                let number = MADE.fetch_add(1, Ordering::Relaxed);
                std::env::temp_dir().join(format!("aioraft-echo-{}-{number}", std::process::id()))
            }
        }
    }
}

impl SnapshotStore for EchoStore {
    fn create(&self, head: &Head) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let path = self.path();
        let made = (|| {
            if let Some(data_dir) = &self.data_dir {
                fs::create_dir_all(data_dir)?;
            }
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
            if self.data_dir.is_none() {
                fs::remove_file(&path)?;
            }
            let mut file = BufWriter::new(file);
            for number in [head.group, head.index, head.term] {
                file.write_all(&number.to_le_bytes())?;
            }
            file.write_all(&[head.form as u8])?;
            Ok(file)
        })();
        let file = made.map_err(|source| StorageError::io(&path, "create", source))?;
        let finally = self.data_dir.as_ref().map(|data_dir| data_dir.join("echo.snapshot"));
        Ok(Box::new(EchoWriter { path, finally, file, head: head.clone() }))
    }

    fn receive(&self, _: &SnapshotName) -> Result<Box<dyn SnapshotReceiver>, StorageError> {
        Err(StorageError::Poisoned { reason: "an echo has no peers".into() })
    }

    fn open(&self, _: &SnapshotName) -> Result<Arc<dyn SnapshotFile>, StorageError> {
        self.newest().ok_or_else(|| StorageError::Poisoned { reason: "an echo keeps its newest snapshot only".into() })
    }

    fn retain(&self, _: &[SnapshotName]) -> Result<(), StorageError> {
        Ok(())
    }
}

struct EchoWriter {
    path: PathBuf,
    finally: Option<PathBuf>,
    file: BufWriter<File>,
    head: Head,
}

impl SnapshotWriter for EchoWriter {
    fn write_chunk(&mut self, chunk: &[u8]) -> Result<(), StorageError> {
        let written = (|| {
            self.file.write_all(&(chunk.len() as u32).to_le_bytes())?;
            self.file.write_all(&crc32fast::hash(chunk).to_le_bytes())?;
            self.file.write_all(chunk)
        })();
        written.map_err(|source| StorageError::io(&self.path, "write", source))
    }

    fn finish(self: Box<Self>) -> Result<Arc<dyn SnapshotFile>, StorageError> {
        let Self { path, finally, file, head } = *self;
        let finished = (|| {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            if let Some(finally) = &finally {
                fs::rename(&path, finally)?;
            }
            EchoFile::new(finally.unwrap_or_else(|| path.clone()), file, head)
        })();
        Ok(Arc::new(finished.map_err(|source| StorageError::io(&path, "write", source))?))
    }
}

#[derive(Debug)]
struct EchoFile {
    path: PathBuf,
    file: File,
    name: SnapshotName,
    head: Head,
}

impl EchoFile {
    fn new(path: PathBuf, file: File, head: Head) -> io::Result<Self> {
        let (group, index, term) = (head.group, head.index, head.term);
        let name = SnapshotName { group, index, term, bytes: file.metadata()?.len(), checksum: 0 };
        Ok(Self { path, file, name, head })
    }
}

impl SnapshotFile for EchoFile {
    fn name(&self) -> &SnapshotName {
        &self.name
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn read_at(&self, offset: u64, bytes_max: usize) -> Result<Vec<u8>, StorageError> {
        let mut bytes = vec![0; bytes_max];
        let read = self.file.read_at(&mut bytes, offset);
        bytes.truncate(read.map_err(|source| StorageError::io(&self.path, "read", source))?);
        Ok(bytes)
    }

    fn chunks(self: Arc<Self>) -> Box<dyn Iterator<Item = Result<Vec<u8>, StorageError>> + Send> {
        let begun = self.file.try_clone().and_then(|mut file| {
            file.seek(SeekFrom::Start(HEAD_BYTES as u64))?;
            Ok(BufReader::new(file))
        });
        match begun {
            Ok(file) => Box::new(Chunks { left: self.name.bytes.saturating_sub(HEAD_BYTES as u64), file, of: self }),
            Err(source) => Box::new(std::iter::once(Err(StorageError::io(&self.path, "read", source)))),
        }
    }
}

struct Chunks {
    of: Arc<EchoFile>,
    file: BufReader<File>,
    left: u64,
}

impl Iterator for Chunks {
    type Item = Result<Vec<u8>, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let read = (|| {
            let mut head = [[0; 4]; CHUNK_HEAD_BYTES / 4];
            head.iter_mut().try_for_each(|number| self.file.read_exact(number))?;
            let [length, checksum] = head.map(u32::from_le_bytes);
            let mut chunk = Vec::new();
            self.file.by_ref().take(u64::from(length)).read_to_end(&mut chunk)?;
            Ok((length, checksum, chunk))
        })();
        let item = match read {
            Ok((length, checksum, chunk)) if crc32fast::hash(&chunk) == checksum && chunk.len() == length as usize => {
                self.left = self.left.saturating_sub((CHUNK_HEAD_BYTES + chunk.len()) as u64);
                return Some(Ok(chunk));
            }
            Ok(_) => StorageError::damaged(&self.of.path, "a chunk has another checksum than was written"),
            Err(source) => StorageError::io(&self.of.path, "read", source),
        };
        self.left = 0;
        Some(Err(item))
    }
}
