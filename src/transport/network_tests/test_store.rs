//! Snapshot files in memory, which fail and wait when a test wants it.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::storage::snapshot::{
    Form, Head, SnapshotFile, SnapshotName, SnapshotReceiver, SnapshotStore, SnapshotWriter,
};
use crate::storage::StorageError;

#[derive(Clone, Default)]
pub struct TestStore(Arc<Shared>);

#[derive(Default)]
struct Shared {
    kept: Mutex<Kept>,
    freed: Condvar,
}

#[derive(Default)]
struct Kept {
    parts: BTreeMap<SnapshotName, Vec<u8>>,
    whole: BTreeMap<SnapshotName, Arc<TestFile>>,
    /// Why nothing is kept.
    failure: Option<String>,
    /// The disk hangs.
    hangs: bool,
    /// Who hangs on it.
    hanging: usize,
    /// Files being received now, and the most of them there ever were.
    open: usize,
    most_open: usize,
    /// Bytes written in all.
    written: u64,
}

impl TestStore {
    pub fn fail(&self, reason: &str) {
        self.0.kept.lock().failure = Some(reason.into());
    }

    /// Whatever is written from now on waits until this is taken back.
    pub fn hang(&self, hangs: bool) {
        self.0.kept.lock().hangs = hangs;
        self.0.freed.notify_all();
    }

    pub fn hanging(&self) -> usize {
        self.0.kept.lock().hanging
    }

    pub fn most_open(&self) -> usize {
        self.0.kept.lock().most_open
    }

    pub fn written(&self) -> u64 {
        self.0.kept.lock().written
    }

    /// Has nothing, not even a part.
    pub fn is_empty(&self) -> bool {
        let kept = self.0.kept.lock();
        kept.whole.is_empty() && kept.parts.values().all(Vec::is_empty)
    }
}

fn failed(reason: impl Into<String>) -> StorageError {
    StorageError::Poisoned { reason: reason.into() }
}

impl SnapshotStore for TestStore {
    fn create(&self, _: &Head) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        Err(failed("no test takes a snapshot"))
    }

    fn receive(&self, name: &SnapshotName) -> Result<Box<dyn SnapshotReceiver>, StorageError> {
        let mut kept = self.0.kept.lock();
        if let Some(reason) = &kept.failure {
            return Err(failed(reason.clone()));
        }
        kept.open += 1;
        kept.most_open = kept.most_open.max(kept.open);
        let bytes = kept.parts.remove(name).unwrap_or_default();
        Ok(Box::new(Receiver { store: self.clone(), name: *name, bytes, is_whole: false }))
    }

    fn open(&self, name: &SnapshotName) -> Result<Arc<dyn SnapshotFile>, StorageError> {
        let file = self.0.kept.lock().whole.get(name).cloned();
        file.map(|file| file as Arc<dyn SnapshotFile>).ok_or_else(|| failed("it is not there"))
    }

    fn retain(&self, _: &[SnapshotName]) -> Result<(), StorageError> {
        Ok(())
    }
}

struct Receiver {
    store: TestStore,
    name: SnapshotName,
    bytes: Vec<u8>,
    is_whole: bool,
}

impl SnapshotReceiver for Receiver {
    fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let mut kept = self.store.0.kept.lock();
        kept.hanging += 1;
        while kept.hangs {
            self.store.0.freed.wait(&mut kept);
        }
        kept.hanging -= 1;
        if let Some(reason) = &kept.failure {
            return Err(failed(reason.clone()));
        }
        kept.written += bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Arc<dyn SnapshotFile>, StorageError> {
        self.is_whole = true;
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.len() as u64 != self.name.bytes || crc32fast::hash(&bytes) != self.name.checksum {
            return Err(failed("it is damaged"));
        }
        let file = Arc::new(TestFile::new(self.name, bytes));
        self.store.0.kept.lock().whole.insert(self.name, Arc::clone(&file));
        Ok(file)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut kept = self.store.0.kept.lock();
        kept.open -= 1;
        if !self.is_whole {
            kept.parts.insert(self.name, std::mem::take(&mut self.bytes));
        }
    }
}

pub struct TestFile {
    name: SnapshotName,
    head: Head,
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for TestFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.name.fmt(f)
    }
}

impl TestFile {
    pub fn new(name: SnapshotName, bytes: Vec<u8>) -> Self {
        let SnapshotName { group, index, term, .. } = name;
        Self { name, head: Head { group, index, term, form: Form::Bytes, meta: Vec::new() }, bytes }
    }

    /// A file with its right name, of this index in term 3 of group 1.
    pub fn of(index: u64, bytes: usize) -> Arc<Self> {
        let mut next = index as u32;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (next >> 24) as u8
        })
        .take(bytes)
        .collect();
        let checksum = crc32fast::hash(&bytes);
        Arc::new(Self::new(SnapshotName { group: 1, index, term: 3, bytes: bytes.len() as u64, checksum }, bytes))
    }
}

impl SnapshotFile for TestFile {
    fn name(&self) -> &SnapshotName {
        &self.name
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn read_at(&self, offset: u64, bytes_max: usize) -> Result<Vec<u8>, StorageError> {
        let rest = self.bytes.get(offset as usize..).unwrap_or(&[]);
        Ok(rest.get(..bytes_max).unwrap_or(rest).to_vec())
    }

    fn chunks(self: Arc<Self>) -> Box<dyn Iterator<Item = Result<Vec<u8>, StorageError>> + Send> {
        Box::new(std::iter::once(Ok(self.bytes.clone())))
    }
}
