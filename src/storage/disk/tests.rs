//! The disk's side of the bargain: each defect of raft-engine 0.4.2 has a test that fails without its guard.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use raft::eraftpb::{Entry, HardState};

use super::directory::file_name;
use super::files::Faults;
use super::*;
use crate::storage::conformance::{self, batch, entries, truncated};
use crate::storage::{memory, Batch, GroupWrite, LogReader, LogWriter};
use raft_engine::LogBatch;

pub(super) const SMALL: Options = Options {
    file_bytes: 64 << 10,
    purge_threshold_bytes: 256 << 10,
    guard_period: Duration::ZERO,
    guard_cost_max: 10,
};

pub(super) fn opened(dir: &Path) -> (DiskWriter, DiskReader, Found) {
    open_with(dir, SMALL).unwrap()
}

fn error_of(dir: &Path) -> StorageError {
    match open_with(dir, SMALL) {
        Ok(_) => panic!("{} was opened", dir.display()),
        Err(error) => error,
    }
}

/// What a crash of the process at this moment leaves: the page cache, and no destructor.
pub(super) fn crashed(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
    copy
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

pub(super) fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let log = fs::read_dir(dir.join("log")).unwrap();
    log.map(|entry| entry.unwrap().path()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

pub(super) fn newest(dir: &Path) -> PathBuf {
    let listing = Listing::read(&dir.join("log")).unwrap();
    dir.join("log").join(file_name(Queue::Append, *listing.append.last().unwrap()))
}

fn last_of(found: &Found, group: GroupId) -> u64 {
    found.groups.get(&group).map_or(0, |state| state.last_index)
}

pub(super) fn write_small(writer: &mut DiskWriter, indexes: std::ops::Range<u64>) {
    for index in indexes {
        writer.write(batch([entries(1, index..index + 1, 1, 40)])).unwrap();
    }
}

#[test]
fn the_disk_conforms() {
    let home = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    conformance::conformance(|| {
        next.set(next.get() + 1);
        open(&home.path().join(next.get().to_string())).unwrap()
    });
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    conformance::reopening(|| open(dir.path()).unwrap());
}

#[test]
fn the_directory_is_taken_by_one_node_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader, _) = opened(dir.path());
    let error = error_of(dir.path());
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("another node"), "{error}");
    drop(writer);
    assert!(matches!(error_of(dir.path()), StorageError::Locked { .. }));
    drop(reader);
    opened(dir.path());
}

#[test]
fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(opened(dir.path()));
    fs::write(dir.path().join("FORMAT"), "aioraft data directory, format 2\n").unwrap();
    let error = error_of(dir.path());
    assert!(matches!(error, StorageError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
    for other in [&b"something else"[..], b"aioraft\xa0data directory, format 1", b""] {
        fs::write(dir.path().join("FORMAT"), other).unwrap();
        let error = error_of(dir.path());
        assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("should say 'aioraft data directory, format 1', and says \""), "{error}");
    }
    fs::remove_file(dir.path().join("FORMAT")).unwrap();
    assert!(matches!(error_of(dir.path()), StorageError::Damaged { .. }));
}

#[test]
fn a_file_in_the_place_of_the_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data");
    fs::write(&file, "").unwrap();
    for data_dir in [file.clone(), file.join("deeper/still")] {
        match error_of(&data_dir) {
            StorageError::NotADirectory { path } => assert_eq!(path, file),
            error => panic!("{error}"),
        }
    }
}

#[test]
fn a_creation_that_was_interrupted_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    drop(opened(dir.path()));
    // The order of creation is lock, guard, format, snapshots, log.
    for left in [vec![], vec!["LOCK"], vec!["LOCK", "guard"], vec!["LOCK", "guard", "FORMAT"]] {
        let copy = tempfile::tempdir().unwrap();
        drop(GuardFile::create(&copy.path().join("guard")).unwrap());
        for name in ["LOCK", "guard", "FORMAT"] {
            if !left.contains(&name) {
                let _ = fs::remove_file(copy.path().join(name));
            } else if name != "guard" {
                fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
            }
        }
        opened(copy.path());
    }
}

#[test]
fn defect_1_a_failed_fsync_stops_the_log_for_good() {
    for good in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader, _) = opened(dir.path());
        write_small(&mut writer, 1..5);
        writer.store.files.set_faults(Faults { syncs_left: Some(good), ..Default::default() });
        write_small(&mut writer, 5..5 + good);
        let error = writer.write(batch([entries(1, 5 + good..6 + good, 1, 40)])).unwrap_err();
        assert!(matches!(&error, StorageError::Io { operation: "sync", .. }), "{error}");
        // The disk says that it is well again: too late.
        writer.store.files.set_faults(Faults::default());
        let before = contents(dir.path());
        for _ in 0..3 {
            let error = writer.write(batch([entries(1, 5 + good..6 + good, 1, 40)])).unwrap_err();
            assert!(matches!(error, StorageError::Poisoned { .. }), "{error}");
            assert!(matches!(writer.maintain(), Err(StorageError::Poisoned { .. })));
        }
        assert_eq!(reader.entries(1, 1, 5 + good, u64::MAX).unwrap().len() as u64, 4 + good);
        let copy = crashed(dir.path());
        drop(writer);
        drop(reader);
        assert!(before == contents(dir.path()), "the log was written to after its failure");
        assert!(matches!(error_of(dir.path()), StorageError::Locked { .. }));
        assert!(last_of(&opened(copy.path()).2, 1) >= 4 + good);
    }
}

/// It would write a stack trace to standard error, as if aioraft had a bug.
#[test]
fn defect_1_a_failed_disk_makes_nothing_panic() {
    thread_local!(static PANICS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.set(PANICS.get() + 1);
        others(info);
    }));
    for faults in [
        Faults { syncs_left: Some(0), ..Default::default() },
        Faults { bytes_left: Some(0), ..Default::default() },
        Faults { bytes_left: Some(64 << 10), ..Default::default() },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader, _) = opened(dir.path());
        writer.store.files.set_faults(faults);
        let failed = (1..).step_by(3).find(|next| writer.write(batch([entries(1, *next..next + 3, 1, 700)])).is_err());
        assert!(failed.is_some());
        drop((writer, reader));
    }
    assert_eq!(PANICS.get(), 0);
}

#[test]
fn a_sync_that_fails_while_closing_does_not_abort() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    write_small(&mut writer, 1..5);
    writer.store.files.set_faults(Faults { syncs_left: Some(0), ..Default::default() });
    drop((writer, reader));
}

#[test]
fn defect_2_a_full_disk_at_any_fill_level_leaves_a_log_that_opens() {
    // Among these levels are ones where the file is about to be changed.
    for level in (0..140_000).step_by(4_999) {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader, _) = opened(dir.path());
        writer.store.files.set_faults(Faults { bytes_left: Some(level), ..Default::default() });
        let mut next = 1;
        let (error, files) = loop {
            let files = Listing::read(&dir.path().join("log")).unwrap().append.len();
            match writer.write(batch([entries(1, next..next + 3, 1, 700)])) {
                Ok(()) => next += 3,
                Err(error) => break (error, files),
            }
        };
        assert!(matches!(error, StorageError::DiskFull { .. }), "{level}: {error}");
        writer.store.files.set_faults(Faults::default());
        for _ in 0..40 {
            assert!(writer.write(batch([entries(1, next..next + 3, 1, 700)])).is_err());
        }
        // At most the one that was due: raft-engine answers a full disk by starting another, and yet another.
        let after = Listing::read(&dir.path().join("log")).unwrap().append.len();
        assert!(after == files || (after == files + 1 && level / (64 << 10) >= files as u64), "{files}, then {after}");
        let copy = crashed(dir.path());
        drop((writer, reader));
        let (_, reader, found) = opened(copy.path());
        assert!(last_of(&found, 1) + 1 >= next, "{level}");
        assert_eq!(reader.entries(1, 1, next, u64::MAX).unwrap_or_default().len() as u64, next - 1);
    }
}

/// A log of which the first batches are guarded and the last ones are not, as a crash leaves it.
fn guarded(guarded: u64, unguarded: u64) -> (tempfile::TempDir, u64) {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _reader, _) = opened(dir.path());
    write_small(&mut writer, 1..guarded + 1);
    assert_eq!(writer.maintain().unwrap(), None);
    let end = fs::metadata(newest(dir.path())).unwrap().len().min(writer.store.files.bytes());
    write_small(&mut writer, guarded + 1..guarded + unguarded + 1);
    (crashed(dir.path()), end)
}

/// Opens a damaged copy; it holds what the guard demands, or it is refused and left as it was.
fn opens_whole_or_not_at_all(dir: &Path, guarded: u64) -> bool {
    let before = contents(dir);
    match open_with(dir, SMALL) {
        Ok((_writer, reader, found)) => {
            let last = last_of(&found, 1);
            assert!(last >= guarded, "lost {last}..{guarded} in silence");
            let all = reader.entries(1, 1, last + 1, u64::MAX).unwrap();
            assert!(all.iter().all(|entry| entry.data == vec![entry.index as u8; 40]));
            true
        }
        Err(error) => {
            assert!(matches!(error, StorageError::LostTail { .. } | StorageError::Damaged { .. }), "{error}");
            // raft-engine's lock and a second file for its other queue may be there now; nothing is missing or changed.
            let after = contents(dir);
            assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)), "a refused log was changed");
            false
        }
    }
}

#[test]
fn defect_3_a_tail_that_was_cut_is_refused_if_the_guard_knows_it() {
    let (dir, _) = guarded(10, 5);
    let whole = fs::read(newest(dir.path())).unwrap();
    // Allocated ahead: zeros.
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let (mut refused, mut opened) = (0, 0);
    for length in (0..=end).rev().step_by(13) {
        let copy = crashed(dir.path());
        fs::write(newest(copy.path()), &whole[..length]).unwrap();
        match opens_whole_or_not_at_all(copy.path(), 10) {
            true => opened += 1,
            false => refused += 1,
        }
    }
    assert!(refused > 50 && opened > 20, "{refused} refused, {opened} opened");
}

#[test]
fn defect_3_the_refusal_names_the_file_and_what_is_missing() {
    let (dir, _) = guarded(10, 0);
    let path = newest(dir.path());
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..700]).unwrap();
    for _ in 0..2 {
        match error_of(dir.path()) {
            StorageError::LostTail { file, expected: 12, found } => {
                assert_eq!(file, path);
                assert!(found < 12, "{found}");
            }
            error => panic!("{error}"),
        }
    }
    // It was not touched: put back, it opens.
    fs::write(&path, whole).unwrap();
    assert_eq!(last_of(&opened(dir.path()).2, 1), 10);
}

#[test]
fn defect_3_a_flipped_bit_is_never_a_silent_loss() {
    let (dir, _) = guarded(10, 5);
    let whole = fs::read(newest(dir.path())).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for at in (0..end).step_by(7) {
        let copy = crashed(dir.path());
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(newest(copy.path()), flipped).unwrap();
        opens_whole_or_not_at_all(copy.path(), 10);
    }
}

/// Power loss while a batch is written: its end and its beginning reached the disk, a page between them did not.
#[test]
fn defect_11_a_batch_torn_in_its_middle_is_cut_off_if_nobody_was_told_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _reader, _) = opened(dir.path());
    write_small(&mut writer, 1..6);
    assert_eq!(writer.maintain().unwrap(), None);
    let begin = writer.store.files.bytes() as usize;
    writer.write(batch([entries(1, 6..9, 1, 4000)])).unwrap();
    let torn = |page: std::ops::Range<usize>, guarded: bool| {
        let copy = crashed(dir.path());
        if guarded {
            fs::copy(dir.path().join("guard"), copy.path().join("guard")).unwrap();
        }
        let path = newest(copy.path());
        let mut bytes = fs::read(&path).unwrap();
        bytes[page].fill(0);
        fs::write(&path, bytes).unwrap();
        copy
    };
    let page = begin + 3000..begin + 7000;
    for _ in 0..2 {
        let copy = torn(page.clone(), false);
        let (mut writer, reader, found) = opened(copy.path());
        assert_eq!(last_of(&found, 1), 5);
        assert_eq!(reader.entries(1, 1, 6, u64::MAX).unwrap().len(), 5);
        // It goes on where it was cut.
        writer.write(batch([entries(1, 6..8, 2, 40)])).unwrap();
        drop((writer, reader));
        let (_writer, reader, found) = opened(copy.path());
        assert_eq!(last_of(&found, 1), 7);
        assert_eq!(reader.entries(1, 1, 8, u64::MAX).unwrap()[6].term, 2);
    }
    // The same damage to what the guard vouches for is no torn end.
    assert_eq!(writer.maintain().unwrap(), None);
    let copy = torn(page, true);
    let before = contents(copy.path());
    match error_of(copy.path()) {
        StorageError::LostTail { file, .. } => assert_eq!(file, newest(copy.path())),
        error => panic!("{error}"),
    }
    let after = contents(copy.path());
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)), "a refused log was changed");
}

/// The power failed between the creation of a file and its header.
#[test]
fn a_newest_file_without_its_header_is_used_and_found_again() {
    for left in [&[][..], &[0; 200], b"RAFT-LOG"] {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader, _) = opened(dir.path());
        write_small(&mut writer, 1..6);
        drop((writer, reader));
        fs::write(dir.path().join("log").join(file_name(Queue::Append, 2)), left).unwrap();
        for last in 6..10 {
            let (mut writer, reader, found) = opened(dir.path());
            assert_eq!(last_of(&found, 1), last - 1);
            assert_eq!(reader.entries(1, 1, last, u64::MAX).unwrap().len() as u64, last - 1);
            write_small(&mut writer, last..last + 1);
            assert_eq!(newest(dir.path()), dir.path().join("log").join(file_name(Queue::Append, 2)));
        }
        // Its end is looked through as that of any other.
        let (mut writer, _reader, _) = opened(dir.path());
        assert_eq!(writer.maintain().unwrap(), None);
        let begin = writer.store.files.written(Queue::Append, 2) as usize;
        writer.write(batch([entries(1, 10..13, 1, 4000)])).unwrap();
        let copy = crashed(dir.path());
        let mut bytes = fs::read(newest(copy.path())).unwrap();
        bytes[begin + 3000..begin + 7000].fill(0);
        fs::write(newest(copy.path()), bytes).unwrap();
        assert_eq!(last_of(&opened(copy.path()).2, 1), 9);
    }
}

#[test]
fn an_entry_that_cannot_be_read_is_named_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    for index in 1..200 {
        writer.write(Batch { sync: false, ..batch([entries(1, index..index + 1, 1, 1000)]) }).unwrap();
    }
    drop((writer, reader));
    let path = dir.path().join("log").join(file_name(Queue::Append, 2));
    let mut bytes = fs::read(&path).unwrap();
    // In the middle of what the first batch of this file holds.
    bytes[500] ^= 1;
    let first = u64::from(bytes[600]);
    fs::write(&path, bytes).unwrap();
    let (_writer, reader, _) = opened(dir.path());
    match reader.entries(1, 1, 200, u64::MAX) {
        Err(StorageError::Damaged { path: named, detail }) => {
            assert_eq!(named, path);
            assert!(detail.starts_with(&format!("entry {first} of group 1 cannot be read (")), "{detail}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_log_without_its_guard_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    write_small(&mut writer, 1..5);
    drop((writer, reader));
    fs::remove_file(dir.path().join("guard")).unwrap();
    for _ in 0..2 {
        assert!(matches!(error_of(dir.path()), StorageError::MissingGuard { .. }));
    }
}

#[test]
fn a_guard_without_its_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    write_small(&mut writer, 1..5);
    drop((writer, reader));
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    for _ in 0..2 {
        assert!(matches!(error_of(dir.path()), StorageError::LostTail { expected: 6, found: 0, .. }));
    }
}

#[test]
fn the_guard_demands_only_what_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _reader, _) = opened(dir.path());
    write_small(&mut writer, 1..5);
    let synced = writer.store.files.bytes();
    writer.write(Batch { sync: false, ..batch([entries(1, 5..6, 1, 40)]) }).unwrap();
    writer.maintain().unwrap();
    let copy = crashed(dir.path());
    let guard = GuardFile::open(&copy.path().join("guard")).unwrap().unwrap().get();
    assert_eq!(guard.sequence, 6);
    // Power loss takes the batch that was not synced.
    let path = newest(copy.path());
    let rewrite = fs::metadata(copy.path().join("log").join(file_name(Queue::Rewrite, 1))).unwrap().len();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..(synced - rewrite) as usize]).unwrap();
    assert_eq!(last_of(&opened(copy.path()).2, 1), 4);
}

#[test]
fn the_guard_is_written_once_a_period() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { guard_period: Duration::from_secs(3600), ..SMALL };
    let (mut writer, _reader, _) = open_with(dir.path(), options).unwrap();
    assert_eq!(writer.maintain().unwrap(), None);
    write_small(&mut writer, 1..3);
    let wait = writer.maintain().unwrap().unwrap();
    assert!(wait > Duration::from_secs(3000) && wait <= Duration::from_secs(3600), "{wait:?}");
    let on_disk = || GuardFile::open(&dir.path().join("guard")).unwrap().unwrap().get().sequence;
    assert_eq!(on_disk(), 2);
    drop(writer);
    assert_eq!(on_disk(), 4, "a log that ends in good order leaves a guard without a gap");
}

#[test]
fn defect_4_a_file_missing_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    for index in 1..400 {
        writer.write(Batch { sync: false, ..batch([entries(1, index..index + 1, 1, 1000)]) }).unwrap();
    }
    drop((writer, reader));
    let files = Listing::read(&dir.path().join("log")).unwrap().append;
    assert!(files.len() >= 5, "{files:?}");
    for number in files {
        let copy = crashed(dir.path());
        fs::remove_file(copy.path().join("log").join(file_name(Queue::Append, number))).unwrap();
        for _ in 0..2 {
            let error = error_of(copy.path());
            assert!(matches!(error, StorageError::Damaged { .. } | StorageError::LostTail { .. }), "{number}: {error}");
        }
    }
}

#[test]
fn defect_4_the_bounds_notice_missing_entries_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    for index in 1..400 {
        writer.write(Batch { sync: false, ..batch([entries(1, index..index + 1, 1, 1000)]) }).unwrap();
    }
    // The records stand in the newest file as well, as they do before a purge.
    let mut all = LogBatch::default();
    for (key, value) in
        records::write_group(1, &GroupState { last_index: 399, terms: vec![run()], ..Default::default() })
    {
        all.put(1, key, value).unwrap();
    }
    writer.store.write(&mut all, true).unwrap();
    drop((writer, reader));
    // The guard believes that the first file was purged.
    let mut guard = GuardFile::open(&dir.path().join("guard")).unwrap().unwrap();
    guard.update(|guard| guard.append_first = 2).unwrap();
    opened(dir.path());
    fs::remove_file(dir.path().join("log").join(file_name(Queue::Append, 1))).unwrap();
    let error = error_of(dir.path());
    assert!(error.to_string().contains("group 1 has entries 1 to 399"), "{error}");
}

fn run() -> crate::storage::TermRun {
    crate::storage::TermRun { first_index: 1, term: 1 }
}

#[test]
fn defect_4_a_vote_in_a_file_before_the_missing_one_is_not_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    let hard_state = Some(HardState { term: 1, vote: 3, commit: 0 });
    writer.write(batch([GroupWrite { group: 1, hard_state, ..Default::default() }])).unwrap();
    for index in 1..200 {
        writer.write(Batch { sync: false, ..batch([entries(1, index..index + 1, 1, 1000)]) }).unwrap();
    }
    // All that the newest file lacks is the hard state.
    writer.write(batch([truncated(1, 199, 1)])).unwrap();
    drop((writer, reader));
    assert_eq!(opened(dir.path()).2.groups[&1].hard_state.vote, 3);
    fs::remove_file(dir.path().join("log").join(file_name(Queue::Append, 2))).unwrap();
    assert!(matches!(error_of(dir.path()), StorageError::Damaged { .. }));
}

#[test]
fn defect_4_a_closed_file_that_lost_its_last_batch_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    // Each group has one batch only: nothing that follows shows that it is missing.
    for group in 1..200 {
        writer.write(Batch { sync: false, ..batch([entries(group, 1..2, 1, 1000)]) }).unwrap();
    }
    drop((writer, reader));
    let path = dir.path().join("log").join(file_name(Queue::Append, 1));
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 600;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    match error_of(dir.path()) {
        StorageError::Damaged { path: named, .. } => assert_eq!(named, path),
        error => panic!("{error}"),
    }
}

#[test]
fn defect_5_a_gap_is_refused_before_the_write_and_the_log_opens() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    write_small(&mut writer, 1..5);
    let before = contents(dir.path());
    assert!(matches!(writer.write(batch([entries(1, 6..7, 1, 40)])), Err(StorageError::Gap { .. })));
    assert!(before == contents(dir.path()));
    drop((writer, reader));
    assert_eq!(last_of(&opened(dir.path()).2, 1), 4);
}

#[test]
fn defect_6_new_directory_entries_are_made_durable() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("a").join("b");
    directory::SYNCED.take();
    opened(&dir);
    let synced = directory::SYNCED.take();
    for path in [home.path(), &home.path().join("a"), &dir] {
        assert!(synced.iter().any(|synced| synced == path), "{} was not synced: {synced:?}", path.display());
    }
    // The first files of the log are created late, by raft-engine: their directory comes last.
    assert_eq!(synced.last(), Some(&dir.join("log")));
}

#[test]
fn defect_7_a_log_that_is_compacted_stays_small() {
    assert!(Options::default().purge_threshold_bytes <= 256 << 20);
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    let node_records = vec![(b"identity".to_vec(), b"abc".to_vec())];
    let hard_state = Some(HardState { term: 1, vote: 1, commit: 0 });
    let first = GroupWrite { hard_state, ..entries(2, 1..4, 1, 40) };
    // Written once: these records must not keep the first file for ever.
    let records = GroupWrite { group: 1, records: vec![(b"conf".to_vec(), b"one".to_vec())], ..Default::default() };
    writer.write(Batch { node_records, ..batch([first, records]) }).unwrap();
    let mut largest = 0;
    for index in (1..6_000).step_by(10) {
        writer.write(Batch { sync: false, ..batch([entries(1, index..index + 10, 1, 400)]) }).unwrap();
        if index > 300 {
            writer.write(Batch { sync: false, ..batch([truncated(1, index - 300, 1)]) }).unwrap();
        }
        writer.maintain().unwrap();
        largest = largest.max(writer.figures().bytes);
    }
    assert!(largest < 640 << 10, "{largest} bytes");
    assert_eq!(reader.entries(1, 5_950, 6_001, u64::MAX).unwrap().len(), 51);
    assert_eq!(reader.entries(2, 1, 4, u64::MAX).unwrap().len(), 3);
    assert_eq!(reader.entries(2, 1, 4, u64::MAX).unwrap()[2].data, vec![3; 40]);
    let copy = crashed(dir.path());
    drop((writer, reader));
    for dir in [copy.path(), dir.path()] {
        for _ in 0..2 {
            let (_writer, reader, found) = opened(dir);
            assert_eq!((found.groups[&1].truncated, last_of(&found, 1)), ((5_691, 1), 6_000));
            assert_eq!(found.groups[&2].hard_state.vote, 1);
            assert_eq!(found.node_records[&b"identity".to_vec()], b"abc");
            let all = reader.entries(1, 5_692, 6_001, u64::MAX).unwrap();
            assert_eq!(found.groups[&1].records[&b"conf".to_vec()], b"one");
            assert!(all.iter().all(|entry| entry.data == vec![entry.index as u8; 400]));
            assert_eq!(reader.entries(2, 1, 4, u64::MAX).unwrap()[2].data, vec![3; 40]);
        }
    }
}

#[test]
fn entries_that_a_purge_brought_back_are_dropped_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    let mut next = 1;
    let mut churn = |writer: &mut DiskWriter| {
        for _ in 0..200 {
            writer.write(Batch { sync: false, ..batch([entries(1, next..next + 10, 1, 400)]) }).unwrap();
            writer.write(Batch { sync: false, ..batch([truncated(1, next, 1)]) }).unwrap();
            writer.maintain().unwrap();
            next += 10;
        }
    };
    writer.write(batch([entries(2, 1..20, 1, 40)])).unwrap();
    churn(&mut writer);
    writer.write(batch([truncated(2, 19, 1)])).unwrap();
    churn(&mut writer);
    drop((writer, reader));
    let (writer, _reader, found) = opened(dir.path());
    assert_eq!((found.groups[&2].truncated, last_of(&found, 2)), ((19, 1), 19));
    assert_eq!(writer.store.peek(|engine| engine.first_index(2)), None);
}

#[test]
fn a_log_that_is_not_compacted_is_never_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    for index in (1..3_000).step_by(10) {
        writer.write(Batch { sync: false, ..batch([entries(1, index..index + 10, 1, 400)]) }).unwrap();
        writer.maintain().unwrap();
    }
    let (_, last) = writer.store.files.span(Queue::Rewrite).unwrap();
    assert_eq!(last, 1);
    assert!(writer.store.files.written(Queue::Rewrite, 1) < EMPTY_REWRITE_BYTES);
    assert!(writer.figures().bytes > 1_200_000);
    assert_eq!(reader.entries(1, 1, 3_001, u64::MAX).unwrap().len(), 3_000);
}

#[test]
fn a_rewrite_queue_that_lost_its_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    writer.write(batch([entries(2, 1..20, 1, 40)])).unwrap();
    for index in (1..3_000).step_by(10) {
        writer.write(Batch { sync: false, ..batch([entries(1, index..index + 10, 1, 400)]) }).unwrap();
        writer.write(Batch { sync: false, ..batch([truncated(1, index, 1)]) }).unwrap();
        writer.maintain().unwrap();
    }
    drop((writer, reader));
    let path = dir.path().join("log").join(file_name(Queue::Rewrite, 1));
    let whole = fs::read(&path).unwrap();
    assert!(whole.len() > 800, "{} bytes", whole.len());
    for length in [0, 40, 100, whole.len() / 2, whole.len() - 1] {
        let copy = crashed(dir.path());
        let path = copy.path().join("log").join(file_name(Queue::Rewrite, 1));
        fs::write(path, &whole[..length]).unwrap();
        assert!(matches!(error_of(copy.path()), StorageError::Damaged { .. }), "{length}");
    }
}

#[test]
fn defect_8_one_thread_reads_two_logs_of_the_same_shape() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let logs = [0, 1].map(|term| {
        let (mut writer, reader, _) = opened(dirs[term as usize].path());
        for index in 1..10 {
            let entry = Entry { index, term: 1 + term, data: vec![term as u8; 20], ..Default::default() };
            let write = GroupWrite { group: 1, entries: vec![entry], ..Default::default() };
            writer.write(batch([write])).unwrap();
        }
        (writer, reader)
    });
    for index in [1, 5, 9, 5] {
        for (term, (_, reader)) in (1..).zip(&logs) {
            assert_eq!(reader.entries(1, index, index + 1, u64::MAX).unwrap()[0].term, term);
        }
    }
}

#[test]
fn defect_8_a_thread_forgets_what_stood_behind_a_cut() {
    let (dir, _) = guarded(3, 1);
    let copy = crashed(dir.path());
    let path = newest(copy.path());
    let whole = fs::read(&path).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    {
        let (_writer, reader, _) = opened(dir.path());
        assert_eq!(reader.entries(1, 4, 5, u64::MAX).unwrap()[0].term, 1);
    }
    fs::write(&path, &whole[..end - 1]).unwrap();
    let (mut writer, reader, found) = opened(copy.path());
    assert_eq!(last_of(&found, 1), 3);
    writer.write(batch([entries(1, 4..5, 2, 40)])).unwrap();
    assert_eq!(reader.entries(1, 4, 5, u64::MAX).unwrap()[0].term, 2);
}

#[test]
fn a_crash_after_any_batch_leaves_that_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _reader, _) = opened(dir.path());
    let mut copies = Vec::new();
    for index in 1..30 {
        writer.write(batch([entries(1, index..index + 1, index / 5, 900)])).unwrap();
        if index % 7 == 0 {
            writer.maintain().unwrap();
        }
        copies.push((index, crashed(dir.path())));
    }
    for (index, copy) in copies {
        // Twice: what the first opening repaired, the second one finds in order.
        for _ in 0..2 {
            let (_writer, reader, found) = opened(copy.path());
            assert_eq!(last_of(&found, 1), index);
            assert_eq!(reader.entries(1, 1, index + 1, u64::MAX).unwrap().len() as u64, index);
        }
    }
}

#[test]
fn a_reader_in_another_thread_follows_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    let (send, receive) = std::sync::mpsc::channel::<u64>();
    let reads = std::thread::spawn(move || {
        let mut count = 0;
        for last in receive {
            let low = last.saturating_sub(80).max(1);
            match reader.entries(1, low, last + 1, u64::MAX) {
                Ok(all) => count += u64::from(all.iter().all(|e| e.data == vec![e.index as u8; 400])),
                // The writer may be past it.
                Err(error) => assert!(matches!(error, StorageError::Compacted { .. }), "{error}"),
            }
        }
        count
    });
    for index in (1..6_000).step_by(10) {
        writer.write(Batch { sync: false, ..batch([entries(1, index..index + 10, 1, 400)]) }).unwrap();
        if index > 300 {
            writer.write(Batch { sync: false, ..batch([truncated(1, index - 300, 1)]) }).unwrap();
        }
        writer.maintain().unwrap();
        send.send(index + 9).unwrap();
    }
    drop(send);
    assert!(reads.join().unwrap() > 0);
}

#[derive(Clone, Debug)]
enum Step {
    Append { group: u64, back: u64, count: u64, term: u64, bytes: usize, sync: bool },
    Compact { group: u64, keep: u64 },
    Snapshot { group: u64, ahead: u64 },
    HardState { group: u64, term: u64 },
    Maintain,
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..4u64, 0..4u64, 1..40u64, 0..2u64, prop_oneof![Just(20usize), Just(600)], any::<bool>())
            .prop_map(|(group, back, count, term, bytes, sync)| Step::Append { group, back, count, term, bytes, sync }),
        3 => (1..4u64, 0..50u64).prop_map(|(group, keep)| Step::Compact { group, keep }),
        1 => (1..4u64, 0..20u64).prop_map(|(group, ahead)| Step::Snapshot { group, ahead }),
        1 => (1..4u64, 0..9u64).prop_map(|(group, term)| Step::HardState { group, term }),
        3 => Just(Step::Maintain),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ]
}

/// With the record that a snapshot has (rule D1).
fn named(write: GroupWrite) -> GroupWrite {
    let record = format!("{:?}", write.truncated).into_bytes();
    GroupWrite { records: vec![(b"snapshot".to_vec(), record)], ..write }
}

/// What a step writes to a log in this state.
fn write_of(step: &Step, groups: &BTreeMap<GroupId, GroupState>) -> Option<Batch> {
    let state = |group: &u64| groups.get(group).cloned().unwrap_or_default();
    match step {
        Step::Append { group, back, count, term, bytes, sync } => {
            let state = state(group);
            let first = (state.last_index + 1).saturating_sub(*back).max(state.truncated.0 + 1);
            let term = state.term(first - 1).unwrap_or(1).max(state.truncated.1) + term;
            Some(Batch { sync: *sync, ..batch([entries(*group, first..first + count, term, *bytes)]) })
        }
        Step::Compact { group, keep } => {
            let state = state(group);
            let index = state.last_index.saturating_sub(*keep).max(state.truncated.0);
            Some(batch([named(truncated(*group, index, state.term(index)?))]))
        }
        Step::Snapshot { group, ahead } => {
            let state = state(group);
            let term = state.term(state.last_index)? + 1;
            // Behind the log's end, or in its middle, where an entry of another term stood.
            let index = (state.last_index + ahead + 1).saturating_sub(10).max(state.truncated.0 + 1);
            let hard_state = Some(HardState { term, vote: 2, commit: index });
            Some(batch([GroupWrite { hard_state, ..named(truncated(*group, index, term)) }]))
        }
        Step::HardState { group, term } => {
            let hard_state = Some(HardState { term: *term, vote: 1, commit: 0 });
            Some(batch([GroupWrite { group: *group, hard_state, ..Default::default() }]))
        }
        Step::Maintain | Step::Reopen | Step::Crash => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

    #[test]
    fn whatever_happens_the_disk_equals_its_memory_twin(steps in proptest::collection::vec(step(), 1..120)) {
        let options = Options { file_bytes: 8 << 10, purge_threshold_bytes: 32 << 10, ..SMALL };
        let mut dir = tempfile::tempdir().unwrap();
        let mut twin = memory::open();
        let mut model: BTreeMap<GroupId, GroupState> = BTreeMap::new();
        let (mut writer, mut reader, _) = open_with(dir.path(), options).unwrap();
        for step in &steps {
            if let Some(batch) = write_of(step, &model) {
                for write in &batch.groups {
                    model.entry(write.group).or_default().apply(write).unwrap();
                }
                twin.writer.write(batch.clone()).unwrap();
                writer.write(batch).unwrap();
            }
            match step {
                Step::Maintain => {
                    writer.maintain().unwrap();
                }
                Step::Reopen | Step::Crash => {
                    if matches!(step, Step::Crash) {
                        let copy = crashed(dir.path());
                        drop((writer, reader));
                        dir = copy;
                    } else {
                        drop((writer, reader));
                    }
                    let (again, also, found) = open_with(dir.path(), options).unwrap();
                    prop_assert_eq!(&found.groups, &model);
                    (writer, reader) = (again, also);
                }
                _ => {}
            }
        }
        for (group, state) in &model {
            let range = (state.truncated.0 + 1, state.last_index + 1);
            prop_assert_eq!(
                reader.entries(*group, range.0, range.1, u64::MAX).unwrap(),
                twin.reader.entries(*group, range.0, range.1, u64::MAX).unwrap()
            );
        }
    }
}

/// `cargo test --release --no-default-features storage -- --ignored --nocapture figures`
#[test]
#[ignore = "a measurement"]
fn figures_of_reading_writing_and_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = open_with(dir.path(), Options::default()).unwrap();
    let start = std::time::Instant::now();
    for first in (1..100_000).step_by(256) {
        writer.write(batch([entries(1, first..first + 256, 1, 64)])).unwrap();
    }
    println!("write in batches of 256, synced: {:?} an entry", start.elapsed() / 100_000);
    for max_bytes in [u64::MAX, 64 << 10, 0] {
        let start = std::time::Instant::now();
        let mut next = 1;
        while next < 100_001 {
            next += reader.entries(1, next, 100_001, max_bytes).unwrap().len() as u64;
        }
        println!("read 100k entries, {max_bytes} bytes at once: {:?} an entry", start.elapsed() / 100_000);
    }
    for index in 100_097..105_097 {
        writer.write(Batch { sync: false, ..batch([entries(1, index..index + 1, 1, 64)]) }).unwrap();
    }
    let start = std::time::Instant::now();
    reader.entries(1, 100_097, 105_097, u64::MAX).unwrap();
    println!("read 5k entries written one by one: {:?} an entry", start.elapsed() / 5_000);
    let start = std::time::Instant::now();
    for index in 105_097..107_097 {
        writer.write(batch([entries(1, index..index + 1, 1, 64)])).unwrap();
    }
    println!("write one by one, synced: {:?} an entry", start.elapsed() / 2_000);
    for first in (107_097..1_000_000).step_by(256) {
        writer.write(Batch { sync: false, ..batch([entries(1, first..first + 256, 1, 64)]) }).unwrap();
    }
    println!("{:?}", writer.figures());
    drop((writer, reader));
    let start = std::time::Instant::now();
    let (_writer, _reader, found) = open_with(dir.path(), Options::default()).unwrap();
    println!("open a log of {} entries: {:?}", last_of(&found, 1), start.elapsed());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmRSS")).unwrap());
}
