//! A directory on a disk that fails, or loses its power, at a chosen step.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use fastrand::Rng;
use parking_lot::Mutex;

use crate::storage::snapshot::folder::{Blob, Folder};

/// The directory; clones are the same one.
#[derive(Clone, Default)]
pub(super) struct RoughFolder(Arc<Mutex<State>>);

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    /// The process ends at this step, which is done in part, or not at all.
    Crash,
    /// This step fails; all is well after it.
    Error(io::ErrorKind),
}

#[derive(Default)]
struct State {
    files: Vec<Contents>,
    /// As the directory is.
    names: BTreeMap<String, usize>,
    /// As it was when it was last synced.
    durable_names: BTreeMap<String, usize>,
    /// What has happened to it since.
    unsynced: Vec<Change>,
    steps: u64,
    trouble: Option<(u64, Trouble)>,
    has_crashed: bool,
    is_hit: bool,
}

#[derive(Clone, Default)]
struct Contents {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// A sync has failed: what was to be written then is in the cache, and will never be on the disk.
    is_given_up: bool,
}

#[derive(Clone)]
enum Change {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

impl Change {
    fn make(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Create(name, file) => {
                names.insert(name.clone(), *file);
            }
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl RoughFolder {
    /// Something goes wrong at the step with this number, counted from now.
    pub fn plan(&self, step: u64, trouble: Trouble) {
        let mut state = self.0.lock();
        state.trouble = Some((state.steps + step, trouble));
        state.is_hit = false;
    }

    /// What was planned has happened.
    pub fn is_hit(&self) -> bool {
        self.0.lock().is_hit
    }

    /// What was written and not synced.
    pub fn unsynced_bytes(&self) -> usize {
        let unsynced = |file: &Contents| file.bytes.len() - file.durable.len();
        self.0.lock().files.iter().map(unsynced).sum()
    }

    /// The files that are there.
    pub fn names(&self) -> Vec<String> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// What the next start finds: after a kill all of it, after power loss what was synced, and of the rest something.
    pub fn after(&self, power_fails: bool, rng: &mut Rng) -> Self {
        let state = self.0.lock();
        let mut names = state.names.clone();
        let mut files = state.files.clone();
        if power_fails {
            // The directory's changes are there in their order, up to some point.
            names.clone_from(&state.durable_names);
            state.unsynced[..rng.usize(..=state.unsynced.len())].iter().for_each(|change| change.make(&mut names));
            files.iter_mut().for_each(|file| file.bytes = torn(file, rng));
        }
        for file in &mut files {
            file.durable.clone_from(&file.bytes);
            file.is_given_up = false;
        }
        Self(Arc::new(Mutex::new(State { files, durable_names: names.clone(), names, ..Default::default() })))
    }
}

/// Each sector is as it was synced, or as it was written; the length, too.
fn torn(file: &Contents, rng: &mut Rng) -> Vec<u8> {
    if file.is_given_up || file.bytes == file.durable {
        return file.durable.clone();
    }
    let length = if rng.bool() { file.bytes.len() } else { file.durable.len() };
    let mut bytes = vec![0; length];
    for (at, sector) in bytes.chunks_mut(512).enumerate() {
        let source = if rng.bool() { &file.bytes } else { &file.durable };
        let source = source.get(at * 512..).unwrap_or_default();
        let count = source.len().min(sector.len());
        sector[..count].copy_from_slice(&source[..count]);
    }
    bytes
}

impl State {
    /// Counts a step; whether it is to be made, or only begun.
    fn step(&mut self) -> io::Result<bool> {
        if self.has_crashed {
            return Err(io::Error::other("crashed"));
        }
        self.steps += 1;
        match self.trouble {
            Some((step, trouble)) if step + 1 == self.steps => {
                self.is_hit = true;
                match trouble {
                    Trouble::Crash => {
                        self.has_crashed = true;
                        Ok(false)
                    }
                    Trouble::Error(kind) => Err(kind.into()),
                }
            }
            _ => Ok(true),
        }
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        if !self.step()? {
            // It may be the last that happens.
            if self.steps % 2 == 0 {
                change.make(&mut self.names);
                self.unsynced.push(change);
            }
            return Err(io::Error::other("crashed"));
        }
        change.make(&mut self.names);
        self.unsynced.push(change);
        Ok(())
    }
}

struct Open(RoughFolder, usize);

impl RoughFolder {
    fn get(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        match self.0.lock().names.get(name) {
            Some(file) => Ok(Arc::new(Open(self.clone(), *file))),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Folder for RoughFolder {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("rough").join(name)
    }

    fn list(&self) -> io::Result<Vec<(OsString, bool)>> {
        Ok(self.0.lock().names.keys().map(|name| (name.into(), true)).collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        let mut state = self.0.lock();
        state.files.push(Contents::default());
        let file = state.files.len() - 1;
        state.change(Change::Create(name.to_owned(), file))?;
        Ok(Arc::new(Open(self.clone(), file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        self.get(name)
    }

    fn reopen(&self, name: &str) -> io::Result<Arc<dyn Blob>> {
        self.get(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change(Change::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        state.change(Change::Remove(name.to_owned()))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.step()? {
            return Err(io::Error::other("crashed"));
        }
        state.durable_names = state.names.clone();
        state.unsynced.clear();
        Ok(())
    }
}

impl Blob for Open {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0 .0.lock().files[self.1].bytes.len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.0 .0.lock();
        let rest = state.files[self.1].bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0 .0.lock();
        let result = state.step();
        // A write that fails, or is cut short, has written something.
        let count = if matches!(result, Ok(true)) { bytes.len() } else { bytes.len() / 2 };
        if !state.has_crashed || result.is_ok() {
            let (offset, file) = (offset as usize, &mut state.files[self.1].bytes);
            file.resize(file.len().max(offset + count), 0);
            file[offset..offset + count].copy_from_slice(&bytes[..count]);
        }
        match result {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::Error::other("crashed")),
            Err(error) => Err(error),
        }
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.0 .0.lock();
        if !state.step()? {
            return Err(io::Error::other("crashed"));
        }
        state.files[self.1].bytes.truncate(bytes as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0 .0.lock();
        let result = state.step();
        let has_crashed = state.has_crashed;
        let file = &mut state.files[self.1];
        match result {
            Ok(true) => {
                if !file.is_given_up {
                    file.durable.clone_from(&file.bytes);
                }
                Ok(())
            }
            Ok(false) => Err(io::Error::other("crashed")),
            Err(error) => {
                file.is_given_up |= !has_crashed;
                Err(error)
            }
        }
    }
}
