//! What every store of snapshots must do, run against the disk and against its memory twin.

use std::sync::Arc;

use super::format::PIECE_BYTES_MAX;
use super::{Form, Head, SnapshotFile, SnapshotName, SnapshotReceiver, SnapshotStore};
use crate::storage::StorageError;

pub(super) fn head(index: u64, form: Form) -> Head {
    Head { group: 1, index, term: 3, form, meta: b"sessions".to_vec() }
}

/// Chunks that are easily told apart.
pub(super) fn chunks(lengths: &[usize]) -> Vec<Vec<u8>> {
    let byte = |chunk: usize, at: usize| (chunk * 31 + at + at / 251) as u8;
    lengths.iter().enumerate().map(|(chunk, length)| (0..*length).map(|at| byte(chunk, at)).collect()).collect()
}

pub(super) fn write(store: &dyn SnapshotStore, head: &Head, chunks: &[Vec<u8>]) -> Arc<dyn SnapshotFile> {
    let mut writer = store.create(head).unwrap();
    for chunk in chunks {
        writer.write_chunk(chunk).unwrap();
    }
    writer.finish().unwrap()
}

pub(super) fn read(file: &Arc<dyn SnapshotFile>) -> Vec<Vec<u8>> {
    file.clone().chunks().collect::<Result<_, _>>().unwrap()
}

pub(super) fn bytes_of(file: &Arc<dyn SnapshotFile>) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let more = file.read_at(bytes.len() as u64, 70_000).unwrap();
        if more.is_empty() {
            return bytes;
        }
        bytes.extend(more);
    }
}

/// Sends what the receiver does not have yet.
pub(super) fn send(receiver: &mut dyn SnapshotReceiver, bytes: &[u8]) -> Result<(), StorageError> {
    bytes[receiver.offset() as usize..].chunks(999).try_for_each(|slice| receiver.write(slice))
}

/// One name per property, so that a failure says which store lacks which.
pub(super) fn conformance<S: SnapshotStore>(open: impl Fn() -> S) {
    a_snapshot_comes_back_as_it_was(&open());
    one_value_comes_back_however_it_was_cut(&open());
    bytes_are_read_by_range(&open());
    an_unfinished_one_leaves_nothing(&open());
    one_that_is_missing_is_named(&open());
    a_file_goes_from_store_to_store_byte_by_byte(&open(), &open());
    a_broken_connection_is_gone_on_with_anywhere(&open(), &open());
    what_is_not_what_was_announced_is_refused(&open(), &open());
    two_names_of_one_index_do_not_meet(&open(), &open());
    one_file_has_one_writer(&open());
    all_but_the_retained_go(&open(), &open());
    what_is_on_its_way_is_not_removed(&open(), &open());
    an_open_file_stays_readable(&open());
}

fn a_snapshot_comes_back_as_it_was(store: &dyn SnapshotStore) {
    let piece = PIECE_BYTES_MAX;
    let cases: [&[usize]; 8] =
        [&[], &[0], &[0, 0, 5, 0], &[piece - 1, 1], &[piece], &[piece + 1], &[3 * piece, 0, 7], &[2 * piece - 1]];
    for (at, lengths) in cases.into_iter().enumerate() {
        for meta in [0, 9, piece, 2 * piece + 1] {
            let head = Head { meta: vec![7; meta], ..head(at as u64 + 1, Form::Chunks) };
            let written = chunks(lengths);
            let file = write(store, &head, &written);
            let name = *file.name();
            assert_eq!((name.group, name.index, name.term), (head.group, head.index, head.term));
            for file in [file, store.open(&name).unwrap()] {
                assert_eq!((file.name(), file.head()), (&name, &head));
                assert!(read(&file) == written, "{lengths:?}");
                assert!(read(&file) == written, "{lengths:?}, a second time");
            }
        }
    }
}

fn one_value_comes_back_however_it_was_cut(store: &dyn SnapshotStore) {
    let value = chunks(&[2 * PIECE_BYTES_MAX + 10]).remove(0);
    for (index, cut) in [1 << 30, PIECE_BYTES_MAX, 700_001].into_iter().enumerate() {
        let mut writer = store.create(&head(index as u64 + 1, Form::Bytes)).unwrap();
        writer.write_chunk(b"").unwrap();
        value.chunks(cut).for_each(|part| writer.write_chunk(part).unwrap());
        let file = store.open(writer.finish().unwrap().name()).unwrap();
        assert_eq!(file.head().form, Form::Bytes);
        let parts = read(&file);
        assert!(parts.iter().all(|part| (1..=PIECE_BYTES_MAX).contains(&part.len())));
        assert!(parts.concat() == value);
    }
    let empty = write(store, &head(9, Form::Bytes), &[]);
    assert_eq!(read(&empty), [[0; 0]; 0]);
}

fn bytes_are_read_by_range(store: &dyn SnapshotStore) {
    let file = write(store, &head(1, Form::Chunks), &chunks(&[100, 200]));
    let (all, length) = (bytes_of(&file), file.name().bytes);
    assert_eq!((all.len() as u64, crc32fast::hash(&all)), (length, file.name().checksum));
    assert_eq!(file.read_at(5, 11).unwrap(), all[5..16]);
    assert_eq!(file.read_at(length - 3, usize::MAX).unwrap(), all[all.len() - 3..]);
    assert_eq!(file.read_at(3, 0).unwrap(), []);
    for behind in [length, length + 1, u64::MAX] {
        assert_eq!(file.read_at(behind, usize::MAX).unwrap(), []);
    }
}

fn an_unfinished_one_leaves_nothing(store: &dyn SnapshotStore) {
    let mut writer = store.create(&head(1, Form::Chunks)).unwrap();
    writer.write_chunk(&[1; 2 << 20]).unwrap();
    drop(writer);
    let again = write(store, &head(1, Form::Chunks), &chunks(&[5]));
    assert_eq!(read(&again), chunks(&[5]));
}

fn one_that_is_missing_is_named(store: &dyn SnapshotStore) {
    let name = SnapshotName { group: 1, index: 0xabc, term: 2, bytes: 100, checksum: 5 };
    let error = store.open(&name).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("0000000000000abc") && error.to_string().contains("missing"), "{error}");
}

fn a_file_goes_from_store_to_store_byte_by_byte(from: &dyn SnapshotStore, to: &dyn SnapshotStore) {
    let sent = write(from, &head(7, Form::Chunks), &chunks(&[10, 0, PIECE_BYTES_MAX + 5]));
    let (name, bytes) = (*sent.name(), bytes_of(&sent));
    let mut receiver = to.receive(&name).unwrap();
    assert_eq!(receiver.offset(), 0);
    send(receiver.as_mut(), &bytes).unwrap();
    assert_eq!(receiver.offset(), name.bytes);
    let file = receiver.finish().unwrap();
    for file in [file, to.open(&name).unwrap()] {
        assert_eq!((file.name(), file.head()), (&name, sent.head()));
        assert!(read(&file) == read(&sent) && bytes_of(&file) == bytes);
    }
    // A crash between the file's end and its record: all of it is there.
    let receiver = to.receive(&name).unwrap();
    assert_eq!(receiver.offset(), name.bytes);
    assert_eq!(receiver.finish().unwrap().name(), &name);
}

fn a_broken_connection_is_gone_on_with_anywhere(from: &dyn SnapshotStore, to: &dyn SnapshotStore) {
    let sent = write(from, &head(7, Form::Chunks), &chunks(&[10, 0, 33]));
    let (name, bytes) = (*sent.name(), bytes_of(&sent));
    let mut before = 0;
    for length in 0..=bytes.len() {
        let mut receiver = to.receive(&name).unwrap();
        let kept = receiver.offset() as usize;
        assert!((before..=length).contains(&kept), "{kept} bytes were kept, after {before}");
        before = kept;
        receiver.write(&bytes[kept..length]).unwrap();
    }
    let receiver = to.receive(&name).unwrap();
    assert_eq!(receiver.offset(), name.bytes);
    assert_eq!(read(&receiver.finish().unwrap()), read(&sent));
}

fn what_is_not_what_was_announced_is_refused(from: &dyn SnapshotStore, to: &dyn SnapshotStore) {
    let sent = write(from, &head(7, Form::Chunks), &chunks(&[10, 33]));
    let (right, bytes) = (*sent.name(), bytes_of(&sent));
    let names = [
        SnapshotName { group: 2, ..right },
        SnapshotName { index: 8, ..right },
        SnapshotName { term: 4, ..right },
        SnapshotName { bytes: right.bytes - 1, ..right },
        SnapshotName { bytes: right.bytes + 1, ..right },
        SnapshotName { bytes: 0, ..right },
        SnapshotName { checksum: right.checksum ^ 1, ..right },
    ];
    for name in names {
        let mut receiver = to.receive(&name).unwrap();
        let error = send(receiver.as_mut(), &bytes).unwrap_err();
        assert!(matches!(error, StorageError::SnapshotRefused { .. }), "{name:?}: {error}");
        assert!(receiver.write(&[]).is_err() && receiver.finish().is_err());
        assert_eq!(to.receive(&name).unwrap().offset(), 0, "{name:?}");
        assert!(to.open(&name).is_err());
    }
    // What is missing at the end may yet come.
    let mut receiver = to.receive(&right).unwrap();
    receiver.write(&bytes[..bytes.len() - 1]).unwrap();
    let error = receiver.finish().unwrap_err();
    assert!(matches!(error, StorageError::SnapshotRefused { .. }), "{error}");
    let mut receiver = to.receive(&right).unwrap();
    assert!(receiver.offset() > 0);
    send(receiver.as_mut(), &bytes).unwrap();
    assert!(receiver.write(b"more").is_err());
    assert!(receiver.finish().is_err());
    // A piece that was damaged on its way: those before it need not come again.
    let mut damaged = bytes.clone();
    damaged[bytes.len() - 1] ^= 1;
    let mut receiver = to.receive(&right).unwrap();
    assert!(send(receiver.as_mut(), &damaged).is_err());
    assert!(receiver.write(&[]).is_err() && receiver.finish().is_err());
    let mut receiver = to.receive(&right).unwrap();
    assert!(receiver.offset() > 0);
    send(receiver.as_mut(), &bytes).unwrap();
    receiver.finish().unwrap();
}

fn two_names_of_one_index_do_not_meet(from: &dyn SnapshotStore, to: &dyn SnapshotStore) {
    let (one, other) = (chunks(&[10]), chunks(&[11]));
    let sent = write(from, &head(7, Form::Chunks), &one);
    let own = write(to, &head(7, Form::Chunks), &other);
    let bytes = bytes_of(&sent);
    let mut first = to.receive(sent.name()).unwrap();
    let mut second = to.receive(&SnapshotName { checksum: 0, ..*sent.name() }).unwrap();
    first.write(&bytes[..60]).unwrap();
    second.write(&bytes[..50]).unwrap();
    send(first.as_mut(), &bytes).unwrap();
    let received = first.finish().unwrap();
    assert_eq!((read(&received), read(&to.open(own.name()).unwrap())), (one, other));
}

fn one_file_has_one_writer(store: &dyn SnapshotStore) {
    let name = SnapshotName { group: 1, index: 2, term: 3, bytes: 100, checksum: 5 };
    let held = (store.create(&head(1, Form::Bytes)).unwrap(), store.receive(&name).unwrap());
    assert!(matches!(store.create(&head(1, Form::Bytes)), Err(StorageError::SnapshotBusy { .. })));
    assert!(matches!(store.receive(&name), Err(StorageError::SnapshotBusy { .. })));
    drop(held);
    store.create(&head(1, Form::Bytes)).unwrap();
    store.receive(&name).unwrap();
}

fn all_but_the_retained_go(from: &dyn SnapshotStore, to: &dyn SnapshotStore) {
    let files: Vec<_> = (1..=4).map(|index| write(to, &head(index, Form::Chunks), &chunks(&[9]))).collect();
    let names: Vec<SnapshotName> = files.iter().map(|file| *file.name()).collect();
    let is_there = |name| to.open(name).is_ok();
    let sent = write(from, &head(2, Form::Chunks), &chunks(&[10]));
    let bytes = bytes_of(&sent);
    to.receive(sent.name()).unwrap().write(&bytes[..60]).unwrap();
    assert!(to.receive(sent.name()).unwrap().offset() > 0);
    to.retain(&[names[1], names[3]]).unwrap();
    assert_eq!(names.iter().map(is_there).collect::<Vec<_>>(), [false, true, false, true]);
    assert_eq!(to.receive(sent.name()).unwrap().offset(), 0, "its beginning was kept");
    // What was named once, and is not any more, goes, even if it is ahead.
    to.retain(&names[1..2]).unwrap();
    assert_eq!(names.iter().map(is_there).collect::<Vec<_>>(), [false, true, false, false]);
    to.retain(&[]).unwrap();
    assert!(!is_there(&names[1]));
}

fn what_is_on_its_way_is_not_removed(from: &dyn SnapshotStore, to: &dyn SnapshotStore) {
    let sent: Vec<_> = (5..=7).map(|index| write(from, &head(index, Form::Chunks), &chunks(&[10]))).collect();
    let recorded = write(to, &head(3, Form::Chunks), &chunks(&[1]));
    let finished = write(to, &head(4, Form::Chunks), &chunks(&[2]));
    let mut taken = to.create(&head(1, Form::Chunks)).unwrap();
    let mut received = to.receive(sent[0].name()).unwrap();
    for file in &sent[1..] {
        to.receive(file.name()).unwrap().write(&bytes_of(file)[..60]).unwrap();
    }
    to.retain(&[*recorded.name()]).unwrap();
    // The record of this one may be under way.
    to.open(finished.name()).unwrap();
    // These are being written.
    taken.write_chunk(b"more").unwrap();
    to.open(taken.finish().unwrap().name()).unwrap();
    send(received.as_mut(), &bytes_of(&sent[0])).unwrap();
    to.open(received.finish().unwrap().name()).unwrap();
    // Of what has come in part, the furthest is worth going on with.
    let kept = |file: &Arc<dyn SnapshotFile>| to.receive(file.name()).unwrap().offset() > 0;
    assert_eq!((kept(&sent[1]), kept(&sent[2])), (false, true));
    to.retain(&[*sent[0].name()]).unwrap();
    assert!(to.open(finished.name()).is_err());
}

fn an_open_file_stays_readable(store: &dyn SnapshotStore) {
    let written = chunks(&[10, PIECE_BYTES_MAX]);
    let first = write(store, &head(1, Form::Chunks), &written);
    let opened = store.open(first.name()).unwrap();
    let mut begun = opened.clone().chunks();
    assert_eq!(begun.next().unwrap().unwrap(), written[0]);
    let second = write(store, &head(2, Form::Chunks), &[]);
    store.retain(&[*second.name()]).unwrap();
    assert!(store.open(first.name()).is_err());
    assert!(read(&first) == written && read(&opened) == written);
    assert!(begun.next().unwrap().unwrap() == written[1]);
    assert_eq!(bytes_of(&opened).len() as u64, first.name().bytes);
}
