//! Damage, crashes and failing disks: nothing wrong is ever taken for a snapshot, and nothing that was durable is lost.

mod damage;
mod faults;
mod figures;
mod rough_folder;

use std::path::Path;

use super::conformance::{bytes_of, chunks, conformance, head, read, send, write};
use super::*;

fn on_disk(dir: &Path) -> Store {
    let lock = std::fs::File::create(dir.join("LOCK")).unwrap();
    let dir = dir.join("snapshots");
    std::fs::create_dir_all(&dir).unwrap();
    Store::new(DiskFolder::new(&dir, lock))
}

fn in_memory() -> Store {
    Store::new(MemoryFolder::default())
}

#[test]
fn the_disk_conforms() {
    let home = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    conformance(|| {
        next.set(next.get() + 1);
        let dir = home.path().join(next.get().to_string());
        std::fs::create_dir(&dir).unwrap();
        on_disk(&dir)
    });
}

#[test]
fn the_memory_twin_conforms() {
    conformance(in_memory);
}

#[test]
fn files_go_between_disk_and_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, memory) = (on_disk(dir.path()), in_memory());
    let stores: [&dyn SnapshotStore; 2] = [&disk, &memory];
    for (index, [from, to]) in [stores, [stores[1], stores[0]]].into_iter().enumerate() {
        let sent = write(from, &head(index as u64 + 1, Form::Chunks), &chunks(&[3, 5_000]));
        let mut receiver = to.receive(sent.name()).unwrap();
        send(receiver.as_mut(), &bytes_of(&sent)).unwrap();
        let received = receiver.finish().unwrap();
        assert_eq!((bytes_of(&received), read(&received)), (bytes_of(&sent), chunks(&[3, 5_000])));
    }
}

#[test]
fn a_restarted_process_goes_on_with_what_has_come() {
    let dir = tempfile::tempdir().unwrap();
    let sent = write(&in_memory(), &head(1, Form::Chunks), &chunks(&[3, 5_000, 7]));
    let bytes = bytes_of(&sent);
    on_disk(dir.path()).receive(sent.name()).unwrap().write(&bytes[..bytes.len() - 50]).unwrap();
    let store = on_disk(dir.path());
    store.retain(&[]).unwrap();
    let mut receiver = store.receive(sent.name()).unwrap();
    assert!(receiver.offset() > 5_000);
    send(receiver.as_mut(), &bytes).unwrap();
    assert_eq!(read(&receiver.finish().unwrap()), read(&sent));
}

#[test]
fn files_of_others_are_left_alone_and_leftovers_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = on_disk(dir.path());
    let kept = write(&store, &head(1, Form::Chunks), &[]);
    let place = dir.path().join("snapshots");
    let whole = std::fs::read_dir(&place).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    // A process that was killed while it took one.
    let left = format!("{}.part", &whole[..50]);
    std::fs::write(place.join(&left), "begun").unwrap();
    std::fs::write(place.join("notes.txt"), "mine").unwrap();
    std::fs::create_dir(place.join(format!("f{}", &whole[1..]))).unwrap();
    store.retain(&[*kept.name()]).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [whole.as_str(), &format!("f{}", &whole[1..]), "notes.txt"].map(std::ffi::OsString::from));
}

#[test]
fn a_record_names_its_snapshot_or_is_refused() {
    let name = SnapshotName { group: 1, index: 9, term: 2, bytes: 100, checksum: 5 };
    let terms = [(6, 1), (8, 2)].map(|(first_index, term)| crate::storage::TermRun { first_index, term });
    let state = |record: Option<Vec<u8>>| GroupState {
        truncated: (5, 1),
        last_index: 12,
        terms: terms.to_vec(),
        records: record.map(|record| (RECORD.to_vec(), record)).into_iter().collect(),
        ..Default::default()
    };
    assert_eq!(snapshot_name(&state(None)).unwrap(), None);
    for name in [name, SnapshotName { index: 5, term: 1, ..name }, SnapshotName { index: 12, ..name }] {
        assert_eq!(snapshot_name(&state(Some(name.encode_to_vec()))).unwrap(), Some(name));
    }
    for misfit in [
        SnapshotName { index: 4, term: 1, ..name },
        SnapshotName { index: 13, ..name },
        SnapshotName { term: 1, ..name },
        SnapshotName { index: 5, ..name },
    ] {
        let error = snapshot_name(&state(Some(misfit.encode_to_vec()))).unwrap_err();
        assert!(matches!(error, StorageError::SnapshotRecord { .. }), "{misfit:?}");
    }
    let record = name.encode_to_vec();
    let mut others = vec![[record.as_slice(), b"x"].concat(), [record.as_slice(), &[0x30, 1]].concat(), b"?".to_vec()];
    // The checksum alone may be missing: it may be zero.
    others.extend((1..record.len() - 5).map(|length| record[..length].to_vec()));
    others.extend((record.len() - 4..record.len()).map(|length| record[..length].to_vec()));
    // Parts in another order say the same, and were not written by us.
    others.push([&record[9..], &record[..9]].concat());
    for other in others {
        let found = snapshot_name(&state(Some(other.clone())));
        assert!(matches!(found, Err(StorageError::SnapshotRecord { .. })), "{other:?}: {found:?}");
    }
}
