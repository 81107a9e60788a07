//! A look at a log changes nothing, and says what opening it would say.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::directory::file_name;
use super::tests::{crashed, newest, opened, write_small, SMALL};
use super::*;
use crate::storage::conformance::{batch, entries, truncated};
use crate::storage::{Batch, LogReader, LogWriter};

/// Every file and directory, its time of change and its bytes.
fn all(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let modified = path.metadata().unwrap().modified().unwrap();
        if path.is_dir() {
            found.extend(all(&path));
            found.insert(path, (modified, Vec::new()));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, (modified, bytes));
        }
    }
    found
}

/// A look that must not leave a trace.
fn seen(dir: &Path) -> Result<View, StorageError> {
    let before = all(dir);
    let view = view(dir);
    assert!(before == all(dir), "{} was changed by looking at it", dir.display());
    view
}

/// The view of an undamaged log, which shows what opening it finds.
fn seen_as_opened(dir: &Path) -> View {
    let seen = seen(dir).unwrap();
    assert!(seen.damage.is_empty(), "{:?}", seen.damage);
    let copy = crashed(dir);
    let (_, reader, found) = open_with(copy.path(), SMALL).unwrap();
    let log = seen.log.as_ref().unwrap();
    assert_eq!((&log.groups, &log.node_records, log.sequence), (&found.groups, &found.node_records, found.sequence));
    for (group, state) in &found.groups {
        let (low, high) = (state.truncated.0 + 1, state.last_index + 1);
        let read = |reader: &dyn LogReader| reader.entries(*group, low, high, u64::MAX).unwrap();
        assert_eq!(read(log.reader.as_ref()), read(&reader));
    }
    seen
}

/// Compacted and purged, so that both queues hold something.
fn purged(dir: &Path) -> (DiskWriter, DiskReader) {
    let (mut writer, reader, _) = opened(dir);
    let record = vec![(b"node".to_vec(), b"its record".to_vec())];
    writer.write(Batch { node_records: record, sync: true, ..Default::default() }).unwrap();
    writer.write(batch([truncated(2, 1, 1), entries(2, 2..9, 1, 40)])).unwrap();
    for next in (1..2000).step_by(5) {
        let mut group = entries(1, next..next + 5, next / 100, 400);
        group.truncated = (next > 500 && next % 100 == 1).then(|| (next - 300, (next - 301) / 100));
        writer.write(batch([group])).unwrap();
        while writer.maintain().unwrap().is_some_and(|pause| pause.is_zero()) {}
    }
    assert!(writer.store.files.span(Queue::Append).unwrap().0 > 1, "nothing was purged");
    (writer, reader)
}

#[test]
fn it_shows_what_a_node_would_find_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, reader) = purged(dir.path());
    // As a kill leaves it: files allocated ahead, an end that recovery wants to cut.
    let killed = crashed(dir.path());
    let view = seen_as_opened(killed.path());
    assert!(!view.is_locked && view.still_holds(killed.path()).unwrap());
    assert_eq!(view.format, Some(1));
    let (guarded, found) = (view.guard.unwrap().sequence, view.log.unwrap().sequence);
    assert!(0 < guarded && guarded <= found, "{guarded} of {found}");
    drop((writer, reader));
    seen_as_opened(dir.path());
}

#[test]
fn a_torn_end_that_nobody_was_told_of_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    write_small(&mut writer, 1..5);
    let guard = fs::read(dir.path().join("guard")).unwrap();
    write_small(&mut writer, 5..9);
    let copy = crashed(dir.path());
    drop((writer, reader));
    fs::write(copy.path().join("guard"), guard).unwrap();
    let path = newest(copy.path());
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end - 20] ^= 1;
    fs::write(&path, bytes).unwrap();
    let log = seen_as_opened(copy.path()).log.unwrap();
    assert_eq!(log.groups[&1].last_index, 7);
}

#[test]
fn a_log_in_use_is_shown_up_to_its_last_write() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    write_small(&mut writer, 1..50);
    let view = seen(dir.path()).unwrap();
    assert!(view.is_locked && view.damage.is_empty(), "{:?}", view.damage);
    let log = view.log.as_ref().unwrap();
    assert_eq!(log.groups[&1].last_index, 49);
    write_small(&mut writer, 50..60);
    assert!(view.still_holds(dir.path()).unwrap(), "a log that grew");
    assert_eq!(log.reader.entries(1, 1, 50, u64::MAX).unwrap().len(), 49);
    drop((writer, reader));
    assert!(!view.still_holds(dir.path()).unwrap(), "a node that has ended");
}

#[test]
fn a_log_whose_files_go_while_it_is_looked_at_is_no_view() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader) = purged(dir.path());
    let view = seen(dir.path()).unwrap();
    let last = view.log.as_ref().unwrap().groups[&1].last_index;
    for next in last + 1..last + 200 {
        writer.write(batch([entries(1, next..next + 1, 900, 400)])).unwrap();
    }
    assert!(!view.still_holds(dir.path()).unwrap());
    drop((writer, reader));
}

#[test]
fn a_busy_log_is_never_taken_for_a_damaged_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    let place = dir.path().to_path_buf();
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let over = is_over.clone();
    let looks = std::thread::spawn(move || {
        let (mut whole, mut highest) = (0, 0);
        while !over.load(std::sync::atomic::Ordering::Acquire) || whole == 0 {
            let view = match view(&place) {
                Ok(view) => view,
                // A file that was listed and then purged.
                Err(StorageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => panic!("{error}"),
            };
            if !view.still_holds(&place).unwrap() {
                continue;
            }
            assert!(view.damage.is_empty(), "{:?}", view.damage);
            let Some(log) = view.log else { continue };
            let last = log.groups.get(&1).map_or(0, |state| state.last_index);
            assert!(last >= highest, "{last} after {highest}");
            (whole, highest) = (whole + 1, last);
        }
        whole
    });
    for next in (1..6000).step_by(5) {
        let mut group = entries(1, next..next + 5, 1, 400);
        group.truncated = (next > 500 && next % 100 == 1).then(|| (next - 300, 1));
        writer.write(batch([group])).unwrap();
        while writer.maintain().unwrap().is_some_and(|pause| pause.is_zero()) {}
    }
    assert!(writer.store.files.span(Queue::Append).unwrap().0 > 1, "nothing was purged");
    is_over.store(true, std::sync::atomic::Ordering::Release);
    assert!(looks.join().unwrap() > 0);
    drop((writer, reader));
}

#[test]
fn it_does_not_keep_a_node_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    drop(opened(dir.path()));
    // Who looks holds the lock for a moment.
    let looking = fs::File::open(dir.path().join("LOCK")).unwrap();
    fs2::FileExt::lock_shared(&looking).unwrap();
    assert!(!directory::is_locked(dir.path()).unwrap(), "another who looks is no node");
    let place = dir.path().to_path_buf();
    let node = std::thread::spawn(move || drop(opened(&place)));
    drop(looking);
    node.join().unwrap();
}

/// Does something to a data directory.
type Harm = (&'static str, fn(&Path));

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_damaged_is_said_as_the_node_would_say_it() {
    let dir = tempfile::tempdir().unwrap();
    drop(purged(dir.path()));
    let first = |dir: &Path| {
        let listing = Listing::read(&dir.join("log")).unwrap();
        dir.join("log").join(file_name(Queue::Append, *listing.append.first().unwrap()))
    };
    assert_ne!(first(dir.path()), newest(dir.path()));
    let harms: [Harm; 10] = [
        ("no guard", |dir| fs::remove_file(dir.join("guard")).unwrap()),
        ("an unreadable guard", |dir| fs::write(dir.join("guard"), [0; 8192]).unwrap()),
        ("no format", |dir| fs::remove_file(dir.join("FORMAT")).unwrap()),
        ("another format", |dir| fs::write(dir.join("FORMAT"), "something").unwrap()),
        ("a newer format", |dir| fs::write(dir.join("FORMAT"), "aioraft data directory, format 2\n").unwrap()),
        ("a header", |dir| flip(&newest(dir), 60)),
        ("no newest file", |dir| fs::remove_file(newest(dir)).unwrap()),
        ("no log", |dir| fs::remove_dir_all(dir.join("log")).unwrap()),
        ("a short newest file", |dir| {
            let file = fs::File::options().write(true).open(newest(dir)).unwrap();
            file.set_len(100).unwrap();
        }),
        ("a file that was closed", |dir| {
            let listing = Listing::read(&dir.join("log")).unwrap();
            let path = dir.join("log").join(file_name(Queue::Append, *listing.append.first().unwrap()));
            fs::File::options().write(true).open(path).unwrap().set_len(20_000).unwrap();
        }),
    ];
    for (what, harm) in harms {
        let copy = crashed(dir.path());
        harm(copy.path());
        let said = match seen(copy.path()) {
            Ok(view) => view.damage.first().map(ToString::to_string),
            Err(error) => Some(error.to_string()),
        };
        let refused = open_with(copy.path(), SMALL).err().map(|error| error.to_string());
        assert!(refused.is_some(), "{what}");
        assert_eq!(said, refused, "{what}");
    }
}

#[test]
fn what_a_damaged_log_still_holds_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    write_small(&mut writer, 1..9);
    drop((writer, reader));
    let path = newest(dir.path());
    let bytes = fs::metadata(&path).unwrap().len();
    fs::File::options().write(true).open(&path).unwrap().set_len(bytes - 5).unwrap();
    let view = seen(dir.path()).unwrap();
    assert!(matches!(view.damage.as_slice(), [StorageError::LostTail { .. }]), "{:?}", view.damage);
    let log = view.log.unwrap();
    assert_eq!(log.groups[&1].last_index, 7);
    assert_eq!(log.reader.entries(1, 1, 8, u64::MAX).unwrap().len(), 7);
}

#[test]
fn a_directory_in_which_nothing_was_written_is_empty_and_others_are_none() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("data");
    fs::create_dir(&dir).unwrap();
    fs::write(home.path().join("file"), "").unwrap();
    for no_directory in [dir.clone(), home.path().join("missing"), home.path().join("file"), home.path().join("file/x")]
    {
        let error = seen_error(home.path(), &no_directory);
        assert!(matches!(error, StorageError::NotADataDirectory { .. }), "{error}");
    }
    // As far as a start comes that is killed after the first step.
    fs::write(dir.join("LOCK"), "").unwrap();
    let view = seen(&dir).unwrap();
    assert!(view.damage.is_empty() && view.log.is_none() && view.format.is_none() && view.guard.is_none());
}

fn seen_error(home: &Path, dir: &Path) -> StorageError {
    let before = all(home);
    let error = view(dir).err().unwrap();
    assert!(before == all(home));
    error
}
