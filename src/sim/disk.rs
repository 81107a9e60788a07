//! Disks that keep what they were told to sync, and lose or keep the rest as they like.
//!
//! In most worlds a disk holds batches: each is there or not, and none without those before it. What a log is after a
//! batch is decided by the same code as on a real disk (`GroupState::apply`). In the others (feature `mutants`) it is a
//! directory of files, kept by the real log, and a loss of power tears every write that was not synced
//! (`storage::disk::power`).

use std::collections::BTreeMap;
#[cfg(feature = "mutants")]
use std::path::PathBuf;
#[cfg(feature = "mutants")]
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;

use crate::engine::GroupId;
#[cfg(feature = "mutants")]
use crate::storage::disk::open_simulated;
#[cfg(feature = "mutants")]
use crate::storage::disk::power::Power;
use crate::storage::{memory, Batch, Figures, GroupState, LogWriter, Opened, StorageError};

/// What stands on the disk.
#[derive(Clone, Debug, Default)]
pub struct Platter {
    batches: Vec<Batch>,
    /// So many of them survive whatever happens.
    synced: usize,
}

/// A disk of batches.
#[derive(Clone, Default)]
pub struct BatchDisk(Arc<Mutex<Platter>>);

impl BatchDisk {
    /// Opens the log; what was recovered is durable at the first synced write.
    pub fn open(&self) -> Result<Opened, StorageError> {
        let Opened { mut writer, reader, snapshots, .. } = memory::open();
        let mut groups = BTreeMap::<GroupId, GroupState>::new();
        let mut node_records = BTreeMap::new();
        for batch in &self.0.lock().batches {
            for write in &batch.groups {
                groups.entry(write.group).or_default().apply(write)?;
            }
            node_records.extend(batch.node_records.iter().cloned());
            writer.write(batch.clone())?;
        }
        let writer = Box::new(Writer { disk: self.clone(), memory: writer, begun: false });
        Ok(Opened { writer, reader, groups, node_records, snapshots })
    }

    /// A batch is on its way to the platter: from now on a loss of power may leave it there, or not.
    pub fn begin(&self, batch: &Batch) {
        self.0.lock().batches.push(batch.clone());
    }

    /// The power failed: of what was not synced, only the beginning is there.
    pub fn lose_power(&self, rng: &mut Rng) {
        let mut platter = self.0.lock();
        let kept = rng.usize(platter.synced..=platter.batches.len());
        platter.batches.truncate(kept);
    }

    /// The process was killed: only a batch that was being written can be torn, and a torn one is cut off.
    pub fn kill(&self, writing: bool, rng: &mut Rng) {
        let mut platter = self.0.lock();
        if writing && platter.batches.len() > platter.synced && rng.bool() {
            platter.batches.pop();
        }
    }

    /// A copy of what is durable.
    pub fn copy(&self) -> Platter {
        let platter = self.0.lock();
        Platter { batches: platter.batches[..platter.synced].to_vec(), synced: platter.synced }
    }
}

/// The writing side. [`BatchDisk::begin`] has put each batch on its way before it is written here; only a node's start
/// writes without that.
struct Writer {
    disk: BatchDisk,
    memory: Box<dyn LogWriter>,
    begun: bool,
}

impl LogWriter for Writer {
    fn write(&mut self, batch: Batch) -> Result<(), StorageError> {
        if !std::mem::replace(&mut self.begun, true) {
            self.disk.begin(&batch);
        }
        if batch.sync {
            let mut platter = self.disk.0.lock();
            platter.synced = platter.batches.len();
        }
        self.memory.write(batch)
    }

    fn maintain(&mut self) -> Result<Option<Duration>, StorageError> {
        Ok(None)
    }

    fn abandon(self: Box<Self>) {}

    fn figures(&self) -> Figures {
        Figures::default()
    }
}

/// One machine's disk.
pub enum Disk {
    /// Of batches.
    Batches(BatchDisk),
    /// Of files.
    #[cfg(feature = "mutants")]
    Files(FileDisk),
}

/// What was on a disk once.
#[derive(Default)]
pub enum Copy {
    /// Of a disk of batches.
    Batches(Platter),
    /// Of a disk of files.
    #[cfg(feature = "mutants")]
    Files(Directory),
    /// Nothing.
    #[default]
    Empty,
}

impl Disk {
    /// An empty disk.
    pub fn new(of_files: bool) -> Self {
        match of_files {
            #[cfg(feature = "mutants")]
            true => Self::Files(FileDisk::default()),
            _ => Self::Batches(BatchDisk::default()),
        }
    }

    /// Opens the log; what was recovered is durable at the first synced write.
    pub fn open(&mut self) -> Result<Opened, StorageError> {
        match self {
            Self::Batches(disk) => disk.open(),
            #[cfg(feature = "mutants")]
            Self::Files(disk) => disk.open(),
        }
    }

    /// A batch is on its way to the platter.
    pub fn begin(&self, batch: &Batch) {
        match self {
            Self::Batches(disk) => disk.begin(batch),
            #[cfg(feature = "mutants")]
            Self::Files(_) => {}
        }
    }

    /// The process ends while `writing` is under way; of what was not synced, something is lost if the power fails.
    #[cfg_attr(not(feature = "mutants"), expect(unused_variables, reason = "only a log on files has more to write"))]
    pub fn crash(&mut self, writer: &mut dyn LogWriter, writing: Option<Batch>, power_fails: bool, rng: &mut Rng) {
        match (self, power_fails) {
            (Self::Batches(disk), true) => disk.lose_power(rng),
            (Self::Batches(disk), false) => disk.kill(writing.is_some(), rng),
            #[cfg(feature = "mutants")]
            (Self::Files(disk), _) => disk.crash(writer, writing, power_fails, rng),
        }
    }

    /// A copy of what is durable.
    pub fn copy(&self) -> Copy {
        match self {
            Self::Batches(disk) => Copy::Batches(disk.copy()),
            #[cfg(feature = "mutants")]
            Self::Files(disk) => Copy::Files(disk.copy(|_| 0)),
        }
    }

    /// Puts other contents in the place of what is there.
    pub fn replace(&mut self, copy: Copy) {
        *self = match (&*self, copy) {
            (_, Copy::Batches(platter)) => Self::Batches(BatchDisk(Arc::new(Mutex::new(platter)))),
            #[cfg(feature = "mutants")]
            (_, Copy::Files(directory)) => Self::Files(FileDisk { directory, power: Power::default() }),
            (Self::Batches(_), Copy::Empty) => Self::new(false),
            #[cfg(feature = "mutants")]
            (Self::Files(_), Copy::Empty) => Self::new(true),
        };
    }
}

/// A disk of files, with the real log on it.
#[cfg(feature = "mutants")]
#[derive(Default)]
pub struct FileDisk {
    directory: Directory,
    power: Power,
}

/// Files of the log, small, so that a log goes on to its next one often.
#[cfg(feature = "mutants")]
const FILE_BYTES: u64 = 128 << 10;

#[cfg(feature = "mutants")]
impl FileDisk {
    fn open(&mut self) -> Result<Opened, StorageError> {
        let (opened, power) = open_simulated(&self.directory.0, FILE_BYTES)?;
        self.power = power;
        Ok(opened)
    }

    /// The log's own end would bring it in order, so the next start finds a copy of how things stood at the crash.
    fn crash(&mut self, writer: &mut dyn LogWriter, writing: Option<Batch>, power_fails: bool, rng: &mut Rng) {
        // A batch takes one sync, and two more where the log goes on to its next file.
        self.power.fail(if writing.is_some() { rng.usize(0..3) } else { 0 });
        let tears = power_fails || writing.is_some();
        if let Some(batch) = writing {
            // Nobody hears how it ended.
            let _ = writer.write(batch);
        }
        let kept = |bytes| match rng.u32(0..3) {
            0 if tears => 0,
            1 if tears => rng.usize(0..=bytes),
            _ => bytes,
        };
        self.directory = self.copy(kept);
    }

    fn copy(&self, kept: impl FnMut(usize) -> usize) -> Directory {
        let copy = Directory::default();
        if self.directory.0.exists() {
            self.power.copy(&self.directory.0, &copy.0, kept).expect("the simulated disks need room for their files");
        }
        copy
    }
}

/// A directory that goes when nobody needs it any more.
#[cfg(feature = "mutants")]
pub struct Directory(PathBuf);

#[cfg(feature = "mutants")]
impl Default for Directory {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let memory = PathBuf::from("/dev/shm");
        let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(place.join(format!("aioraft-sim-{}-{number}", std::process::id())))
    }
}

#[cfg(feature = "mutants")]
impl Drop for Directory {
    fn drop(&mut self) {
        // It may never have been written to.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(all(test, feature = "mutants"))]
mod tests {
    use std::path::Path;

    use raft::eraftpb::Entry;

    use super::*;
    use crate::engine::APPLICATION_GROUP;
    use crate::storage::GroupWrite;

    fn batch(index: u64, sync: bool) -> Batch {
        let entries = vec![Entry { index, term: 1, ..Default::default() }];
        let write = GroupWrite { group: APPLICATION_GROUP, entries, ..Default::default() };
        Batch { groups: vec![write], node_records: vec![], sync }
    }

    fn last_index(disk: &BatchDisk) -> u64 {
        disk.open().unwrap().groups.get(&APPLICATION_GROUP).map_or(0, |state| state.last_index)
    }

    #[test]
    fn power_loss_takes_a_tail_of_what_was_not_synced_and_nothing_else() {
        let mut left = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let disk = BatchDisk::default();
            let mut writer = disk.open().unwrap().writer;
            writer.write(batch(1, false)).unwrap();
            for (index, sync) in [(2, true), (3, false), (4, false)] {
                disk.begin(&batch(index, sync));
                writer.write(batch(index, sync)).unwrap();
            }
            disk.lose_power(&mut Rng::with_seed(seed));
            left.insert(last_index(&disk));
        }
        assert_eq!(left.into_iter().collect::<Vec<_>>(), [2, 3, 4]);
    }

    #[test]
    fn a_kill_takes_at_most_the_batch_that_was_being_written() {
        let disk = BatchDisk::default();
        let mut writer = disk.open().unwrap().writer;
        writer.write(batch(1, true)).unwrap();
        disk.begin(&batch(2, true));
        disk.kill(false, &mut Rng::with_seed(1));
        assert_eq!(last_index(&disk), 2);
        let mut left = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let disk = BatchDisk(Arc::new(Mutex::new(disk.0.lock().clone())));
            disk.kill(true, &mut Rng::with_seed(seed));
            left.insert(last_index(&disk));
        }
        assert_eq!(left.into_iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_real_log_keeps_what_was_synced_and_its_torn_end_is_cut_off() {
        let mut left = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let mut disk = Disk::new(true);
            let mut writer = disk.open().unwrap().writer;
            for index in 1..=5 {
                writer.write(batch(index, index == 3)).unwrap();
            }
            disk.crash(writer.as_mut(), Some(batch(6, true)), true, &mut Rng::with_seed(seed));
            drop(writer);
            let opened = disk.open().unwrap();
            let last = opened.groups[&APPLICATION_GROUP].last_index;
            let read = opened.reader.entries(APPLICATION_GROUP, 1, last + 1, u64::MAX).unwrap();
            assert_eq!(read.len() as u64, last, "seed {seed}");
            left.insert(last);
        }
        assert!(left.first() == Some(&3) && left.len() > 1, "{left:?}");
    }

    /// Entries of a sixth of a file: the batch that is torn is the last of its file, or the first of the next one.
    #[test]
    fn a_real_log_is_torn_while_it_goes_on_to_its_next_file() {
        let large = |index| {
            let mut batch = batch(index, true);
            batch.groups[0].entries[0].data = vec![7; FILE_BYTES as usize / 6];
            batch
        };
        let mut files = std::collections::BTreeSet::new();
        for seed in 0..60 {
            let mut disk = Disk::new(true);
            let mut writer = disk.open().unwrap().writer;
            let synced = 4 + seed % 6;
            (1..=synced).for_each(|index| writer.write(large(index)).unwrap());
            disk.crash(writer.as_mut(), Some(large(synced + 1)), true, &mut Rng::with_seed(seed));
            drop(writer);
            // The next start mends what it finds, and the one after that finds it mended.
            for _ in 0..2 {
                let mut opened = disk.open().unwrap();
                let last = opened.groups[&APPLICATION_GROUP].last_index;
                assert!((synced..=synced + 3).contains(&last), "seed {seed}: {last} after {synced}");
                let read = opened.reader.entries(APPLICATION_GROUP, 1, last + 1, u64::MAX).unwrap();
                assert_eq!(read.len() as u64, last, "seed {seed}");
                opened.writer.write(large(last + 1)).unwrap();
                let Disk::Files(on_files) = &disk else { unreachable!() };
                files.insert((synced, std::fs::read_dir(on_files.directory.0.join("log")).unwrap().count()));
            }
        }
        let counts = files.iter().map(|(_, count)| count).collect::<std::collections::BTreeSet<_>>();
        assert!(counts.len() > 1, "no log went on to another file: {files:?}");
    }

    /// A long run has many thousands of them.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_log_that_lost_its_power_leaves_no_open_file_behind() {
        let of_simulated = |entry: std::io::Result<std::fs::DirEntry>, directory: &Path| {
            let target = entry.ok().and_then(|entry| std::fs::read_link(entry.path()).ok());
            target.is_some_and(|target| target.starts_with(directory))
        };
        for seed in 0..20 {
            let mut disk = Disk::new(true);
            let mut writer = disk.open().unwrap().writer;
            writer.write(batch(1, true)).unwrap();
            let Disk::Files(on_files) = &disk else { unreachable!() };
            let directory = on_files.directory.0.clone();
            let open = || std::fs::read_dir("/proc/self/fd").unwrap();
            assert!(open().any(|entry| of_simulated(entry, &directory)), "else this test shows nothing");
            disk.crash(writer.as_mut(), Some(batch(2, true)), true, &mut Rng::with_seed(seed));
            drop(writer);
            assert!(!open().any(|entry| of_simulated(entry, &directory)), "seed {seed}");
        }
    }

    #[test]
    fn a_copy_of_a_real_log_holds_what_was_synced() {
        let mut disk = Disk::new(true);
        let mut writer = disk.open().unwrap().writer;
        for index in 1..=4 {
            writer.write(batch(index, index == 2)).unwrap();
        }
        let copy = disk.copy();
        drop(writer);
        disk.replace(copy);
        assert_eq!(disk.open().unwrap().groups[&APPLICATION_GROUP].last_index, 2);
        disk.replace(Copy::Empty);
        assert!(disk.open().unwrap().groups.is_empty());
    }
}
