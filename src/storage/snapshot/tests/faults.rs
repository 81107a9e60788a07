//! A crash or a failure at each step of writing, receiving and removing.

use std::io::ErrorKind;

use fastrand::Rng;

use super::rough_folder::{RoughFolder, Trouble};
use super::*;
use crate::storage::snapshot::file_name::FileName;

/// Long enough for several writes to the system.
const LENGTHS: [usize; 4] = [257 << 10, 0, 256 << 10, 10];

/// A folder with an older snapshot in it, which a record names, and that snapshot.
fn folder() -> (RoughFolder, SnapshotName) {
    let folder = RoughFolder::default();
    let name = *write(&Store::new(folder.clone()), &head(3, Form::Chunks), &chunks(&[50])).name();
    (folder, name)
}

fn try_write(store: &dyn SnapshotStore, head: &Head) -> Result<SnapshotName, StorageError> {
    let mut writer = store.create(head)?;
    chunks(&LENGTHS).iter().try_for_each(|chunk| writer.write_chunk(chunk))?;
    Ok(*writer.finish()?.name())
}

fn try_receive(store: &dyn SnapshotStore, name: &SnapshotName, bytes: &[u8]) -> Result<(), StorageError> {
    let mut receiver = store.receive(name)?;
    bytes[receiver.offset() as usize..].chunks(100_000).try_for_each(|slice| receiver.write(slice))?;
    receiver.finish().map(drop)
}

/// Every file that bears a whole one's name is whole, and the older snapshot is one of them.
fn all_are_whole(folder: &RoughFolder, older: &SnapshotName) -> usize {
    let store = Store::new(folder.clone());
    assert_eq!(read(&store.open(older).unwrap()), chunks(&[50]));
    let names = folder.names().into_iter().filter_map(|text| match FileName::parse(&text) {
        Some(FileName::Whole(name)) => Some(name),
        _ => None,
    });
    names.map(|name| read(&store.open(&name).unwrap()).len()).filter(|chunks| *chunks == LENGTHS.len()).count()
}

/// Runs `f` with a crash at each of its steps, and looks at what a kill and losses of power leave.
fn crash_everywhere(
    f: impl Fn(&Store) -> Result<(), StorageError>,
    check: impl Fn(&RoughFolder, &SnapshotName, bool, &str),
) -> u64 {
    for step in 0.. {
        let (folder, older) = folder();
        folder.plan(step, Trouble::Crash);
        let result = f(&Store::new(folder.clone()));
        assert_eq!(result.is_err(), folder.is_hit(), "step {step}: {result:?}");
        for seed in 0..12 {
            let left = folder.after(seed > 0, &mut Rng::with_seed(seed));
            check(&left, &older, result.is_ok(), &format!("step {step}, seed {seed}"));
        }
        if result.is_ok() {
            return step;
        }
    }
    unreachable!()
}

#[test]
fn d1_a_crash_at_any_step_of_taking_leaves_nothing_that_counts_or_the_whole() {
    let taken = head(4, Form::Chunks);
    let steps = crash_everywhere(
        |store| try_write(store, &taken).map(drop),
        |left, older, is_finished, place| {
            let whole = all_are_whole(left, older);
            assert!(whole == 1 || !is_finished, "{place}: it was durable, and is gone");
            let store = Store::new(left.clone());
            store.retain(&[*older]).unwrap();
            assert_eq!(left.names().len(), 1, "{place}: a leftover stayed");
            let again = try_write(&store, &taken).unwrap();
            assert!(read(&store.open(&again).unwrap()) == chunks(&LENGTHS), "{place}");
        },
    );
    // Create, some writes, sync, rename, sync.
    assert!(steps >= 7, "{steps} steps");
}

#[test]
fn d1_a_crash_at_any_step_of_receiving_leaves_what_can_be_gone_on_with() {
    let sent = write(&in_memory(), &head(4, Form::Chunks), &chunks(&LENGTHS));
    let (name, bytes) = (*sent.name(), bytes_of(&sent));
    let went_on = std::cell::Cell::new(0);
    let steps = crash_everywhere(
        |store| try_receive(store, &name, &bytes),
        |left, older, is_finished, place| {
            let whole = all_are_whole(left, older);
            assert!(whole == 1 || !is_finished, "{place}: it was durable, and is gone");
            let store = Store::new(left.clone());
            // What has come is worth keeping as long as it is ahead.
            store.retain(&[*older]).unwrap();
            went_on.set(went_on.get() + u64::from(store.receive(&name).unwrap().offset() > 0));
            try_receive(&store, &name, &bytes).unwrap();
            // It is durable again by then.
            let left = left.after(true, &mut Rng::with_seed(1));
            assert!(bytes_of(&Store::new(left).open(&name).unwrap()) == bytes, "{place}");
        },
    );
    assert!(steps >= 6 && went_on.get() > 15, "{steps} steps, {} times something was left", went_on.get());
}

/// Runs `f` with a failure at each of its steps.
fn fail_everywhere(f: impl Fn(&Store) -> Result<(), StorageError>, check: impl Fn(&RoughFolder, &SnapshotName, u64)) {
    for step in 0.. {
        let (folder, older) = folder();
        for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
            folder.plan(step, Trouble::Error(kind));
            match f(&Store::new(folder.clone())) {
                Ok(()) if !folder.is_hit() => return assert!(step > 5),
                Ok(()) => panic!("step {step}: a failure was passed over"),
                Err(StorageError::SnapshotDiskFull { path, .. }) if kind == ErrorKind::StorageFull => {
                    assert!(path.to_string_lossy().contains("rough/0000"), "{}", path.display());
                }
                Err(StorageError::SnapshotFailed { path, .. }) if kind == ErrorKind::Other => {
                    assert!(path.to_string_lossy().contains("rough/0000"), "{}", path.display());
                }
                Err(error) => panic!("step {step}: {error}"),
            }
            all_are_whole(&folder, &older);
            check(&folder, &older, step);
        }
    }
}

#[test]
fn a_failure_at_any_step_of_taking_harms_nothing_and_is_got_over() {
    let taken = head(4, Form::Chunks);
    fail_everywhere(
        |store| try_write(store, &taken).map(drop),
        |folder, older, step| {
            let parts = folder.names().iter().filter(|name| name.ends_with(".part")).count();
            assert_eq!(parts, 0, "step {step}: the room is not given back");
            let store = Store::new(folder.clone());
            let name = try_write(&store, &taken).unwrap();
            // What was acknowledged is durable, whatever failed before.
            let left = folder.after(true, &mut Rng::with_seed(step));
            assert!(read(&Store::new(left).open(&name).unwrap()) == chunks(&LENGTHS), "step {step}");
            store.retain(&[*older]).unwrap();
            Store::new(folder.clone()).retain(&[*older]).unwrap();
            assert_eq!(folder.names().len(), 1);
        },
    );
}

#[test]
fn a_failure_at_any_step_of_receiving_harms_nothing_and_is_got_over() {
    let sent = write(&in_memory(), &head(4, Form::Chunks), &chunks(&LENGTHS));
    let (name, bytes) = (*sent.name(), bytes_of(&sent));
    fail_everywhere(
        |store| try_receive(store, &name, &bytes),
        |folder, older, step| {
            let store = Store::new(folder.clone());
            try_receive(&store, &name, &bytes).unwrap();
            let left = folder.after(true, &mut Rng::with_seed(step));
            assert!(bytes_of(&Store::new(left).open(&name).unwrap()) == bytes, "step {step}");
            Store::new(folder.clone()).retain(&[*older]).unwrap();
            assert_eq!(folder.names().len(), 1);
        },
    );
}

/// The kernel forgets what it failed to write: a second sync that succeeds says nothing.
#[test]
fn after_a_failed_step_a_file_is_never_finished() {
    let bytes = bytes_of(&write(&in_memory(), &head(4, Form::Chunks), &chunks(&LENGTHS)));
    for step in 1..4 {
        let (folder, _) = folder();
        let store = Store::new(folder.clone());
        let mut writer = store.create(&head(4, Form::Chunks)).unwrap();
        folder.plan(step - 1, Trouble::Error(ErrorKind::Other));
        // Errors on the way are passed over by a careless caller.
        chunks(&LENGTHS).iter().for_each(|chunk| drop(writer.write_chunk(chunk)));
        assert!(writer.finish().is_err(), "step {step}");
        assert_eq!(folder.names().len(), 1, "step {step}");

        let name = *write(&in_memory(), &head(4, Form::Chunks), &chunks(&LENGTHS)).name();
        let mut receiver = store.receive(&name).unwrap();
        folder.plan(step - 1, Trouble::Error(ErrorKind::Other));
        bytes.chunks(50_000).for_each(|slice| drop(receiver.write(slice)));
        assert!(receiver.finish().is_err(), "step {step}");
        assert_eq!(folder.names().len(), 1, "step {step}: what may not be on the disk was kept");
    }
}

/// It may be the file that the log names.
#[test]
fn a_failure_behind_the_rename_leaves_the_file() {
    let (folder, older) = folder();
    let store = Store::new(folder.clone());
    let mut writer = store.create(&head(3, Form::Chunks)).unwrap();
    writer.write_chunk(&chunks(&[50])[0]).unwrap();
    // Write, sync, rename, then this one.
    folder.plan(3, Trouble::Error(ErrorKind::Other));
    let error = writer.finish().unwrap_err();
    assert!(error.to_string().contains("cannot sync the directory of rough/0000"), "{error}");
    assert_eq!(read(&store.open(&older).unwrap()), chunks(&[50]));
}

#[test]
fn a_file_that_cannot_be_removed_does_not_keep_the_others() {
    let (folder, older) = folder();
    let store = Store::new(folder.clone());
    for index in 4..7 {
        write(&store, &head(index, Form::Chunks), &[]);
    }
    let store = Store::new(folder.clone());
    folder.plan(1, Trouble::Error(ErrorKind::PermissionDenied));
    let error = store.retain(&[older]).unwrap_err();
    assert!(matches!(&error, StorageError::SnapshotFailed { operation: "remove", .. }), "{error}");
    assert_eq!(folder.names().len(), 2);
    store.retain(&[older]).unwrap();
    assert_eq!(folder.names().len(), 1);
}

#[test]
fn a_large_file_is_synced_slice_by_slice() {
    let folder = RoughFolder::default();
    let store = Store::new(folder.clone());
    let mut writer = store.create(&head(1, Form::Chunks)).unwrap();
    let mut largest = 0;
    for _ in 0..40 {
        writer.write_chunk(&vec![1; 1 << 20]).unwrap();
        largest = largest.max(folder.unsynced_bytes());
    }
    let left = folder.unsynced_bytes();
    let slice = crate::storage::snapshot::output::SYNC_BYTES as usize;
    assert!(largest <= slice && left < slice, "{largest} bytes were unsynced at most, {left} in the end");
    writer.finish().unwrap();
    assert_eq!(folder.unsynced_bytes(), 0);
}
