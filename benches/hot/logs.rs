//! Appends that are durable: through the log, and without anything round them.
//!
//! Both lie under `target/`, on the disk that this is built on, not in a directory that may be memory.

use std::fs::File;
use std::io::Write;

use aioraft::engine::command::Command;
use aioraft::engine::{APPLICATION_GROUP, BOOTSTRAP};
use aioraft::storage::{disk, Batch, GroupWrite, Opened};
use raft::eraftpb::Entry;
use tempfile::TempDir;

use super::VALUE;

/// The log is cut behind so many appends, so that it does not fill the disk.
const APPENDS_KEPT: u64 = 4096;

/// The log of a node.
pub struct Log {
    opened: Opened,
    last: u64,
    appends: u64,
    _folder: TempDir,
}

impl Log {
    /// A new one.
    pub fn new() -> Self {
        let folder = folder();
        let mut opened = disk::open(folder.path()).expect("the log can be made");
        let write = GroupWrite { group: APPLICATION_GROUP, truncated: Some(BOOTSTRAP), ..Default::default() };
        opened.writer.write(Batch { groups: vec![write], sync: true, ..Default::default() }).expect("the disk writes");
        Self { opened, last: BOOTSTRAP.0, appends: 0, _folder: folder }
    }

    /// So many entries of one batch, durable when this returns.
    pub fn append(&mut self, entries: u64) {
        let first = self.last + 1;
        self.last += entries;
        self.appends += 1;
        let data = Command::new(&VALUE).into_bytes();
        let entry = |index| Entry { index, term: BOOTSTRAP.1, data: data.clone(), ..Default::default() };
        let truncated = (self.appends % APPENDS_KEPT == 0).then_some((first - 1, BOOTSTRAP.1));
        let entries = (first..=self.last).map(entry).collect();
        let write = GroupWrite { group: APPLICATION_GROUP, truncated, entries, ..Default::default() };
        let batch = Batch { groups: vec![write], sync: true, ..Default::default() };
        self.opened.writer.write(batch).expect("the disk writes");
        self.opened.writer.maintain().expect("the disk writes");
    }
}

/// A file.
pub struct Bare {
    file: File,
    _folder: TempDir,
}

impl Bare {
    /// A new one.
    pub fn new() -> Self {
        let folder = folder();
        let file = File::create(folder.path().join("bare")).expect("a file can be made");
        Self { file, _folder: folder }
    }

    /// As many bytes as these entries have, durable when this returns.
    pub fn append(&mut self, entries: u64) {
        let data = Command::new(&VALUE).into_bytes().repeat(entries as usize);
        self.file.write_all(&data).expect("the disk writes");
        self.file.sync_data().expect("the disk syncs");
    }
}

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder can be made under target")
}
