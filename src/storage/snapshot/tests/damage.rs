//! Whatever the bytes are, what is read is what was written, or an error.

use proptest::prelude::*;

use super::*;
use crate::storage::snapshot::file_name::FileName;
use crate::storage::snapshot::folder::Folder;
use crate::storage::snapshot::format::{Damage, Parser};

/// A small file of every kind of piece.
fn sample() -> (SnapshotName, Vec<u8>, Vec<Vec<u8>>) {
    let written = chunks(&[5, 0, 40]);
    let file = write(&in_memory(), &head(7, Form::Chunks), &written);
    (*file.name(), bytes_of(&file), written)
}

/// A store in which these bytes stand under that name.
fn store_of(name: &SnapshotName, bytes: &[u8]) -> Store {
    let folder = MemoryFolder::default();
    folder.create(&FileName::Whole(*name).to_string()).unwrap().write_at(bytes, 0).unwrap();
    Store::new(folder)
}

/// Opens and reads a damaged file: nothing but what was written comes out of it, and its damage is noticed.
fn is_noticed(name: &SnapshotName, bytes: &[u8], written: &[Vec<u8>]) {
    let notice = |error: StorageError| {
        assert!(matches!(error, StorageError::Damaged { .. } | StorageError::NewerFormat { .. }), "{error}");
    };
    match store_of(name, bytes).open(name) {
        Err(error) => notice(error),
        Ok(file) => {
            let mut all = file.chunks();
            for right in written.iter().map(Ok).chain(std::iter::repeat(Err(()))) {
                match (all.next(), right) {
                    (Some(Ok(chunk)), Ok(right)) => assert_eq!(&chunk, right),
                    (Some(Err(error)), _) => {
                        notice(error);
                        break;
                    }
                    (got, right) => panic!("{got:?} was read, not {right:?}"),
                }
            }
            assert!(all.next().is_none(), "it goes on behind the damage");
        }
    }
}

/// Sends damaged bytes: they are refused, and do not keep the right ones from being received later.
fn is_refused(name: &SnapshotName, bytes: &[u8], right: &[u8]) {
    let store = in_memory();
    let mut receiver = store.receive(name).unwrap();
    let result = send(receiver.as_mut(), bytes).and_then(|()| receiver.finish().map(drop));
    let error = result.unwrap_err();
    assert!(matches!(error, StorageError::SnapshotRefused { .. }), "{error}");
    let mut receiver = store.receive(name).unwrap();
    send(receiver.as_mut(), right).unwrap();
    assert_eq!(bytes_of(&receiver.finish().unwrap()), right);
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let (name, bytes, written) = sample();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            is_noticed(&name, &flipped, &written);
            is_refused(&name, &flipped, &bytes);
        }
        let mut other = bytes.clone();
        other[at] = !other[at];
        is_noticed(&name, &other, &written);
    }
}

#[test]
fn a_file_cut_or_extended_anywhere_is_noticed() {
    let (name, bytes, written) = sample();
    for length in 0..bytes.len() {
        is_noticed(&name, &bytes[..length], &written);
        is_refused(&name, &bytes[..length], &bytes);
        // As power loss leaves it: the length is there, the bytes are not.
        let mut zeros = bytes[..length].to_vec();
        zeros.resize(bytes.len(), 0);
        if zeros != bytes {
            is_noticed(&name, &zeros, &written);
        }
    }
    let longer = [bytes.as_slice(), b"x"].concat();
    is_noticed(&name, &longer, &written);
    is_refused(&name, &longer, &bytes);
}

#[test]
fn a_part_file_damaged_anywhere_is_gone_on_with() {
    let (name, bytes, _) = sample();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let folder = MemoryFolder::default();
        folder.create(&FileName::Received(name).to_string()).unwrap().write_at(&damaged, 0).unwrap();
        let store = Store::new(folder);
        let mut receiver = store.receive(&name).unwrap();
        assert!(receiver.offset() as usize <= at);
        send(receiver.as_mut(), &bytes).unwrap();
        assert_eq!(bytes_of(&receiver.finish().unwrap()), bytes);
    }
}

#[test]
fn a_damaged_file_is_replaced_when_it_is_received_again() {
    let (name, mut bytes, written) = sample();
    let right = bytes.clone();
    bytes[100] ^= 1;
    let store = store_of(&name, &bytes);
    let mut receiver = store.receive(&name).unwrap();
    assert_eq!(receiver.offset(), 0);
    send(receiver.as_mut(), &right).unwrap();
    receiver.finish().unwrap();
    assert_eq!(read(&store.open(&name).unwrap()), written);
}

#[test]
fn pieces_that_change_places_are_noticed() {
    let written = chunks(&[20, 20, 20]);
    let file = write(&in_memory(), &head(7, Form::Chunks), &written);
    let (name, bytes) = (*file.name(), bytes_of(&file));
    let first = bytes.windows(20).position(|window| window == written[0]).unwrap() - 10;
    for (one, other) in [(0, 1), (1, 2), (0, 2)] {
        let mut mixed = bytes.clone();
        let (one, other) = (first + one * 30, first + other * 30);
        mixed[one..one + 30].copy_from_slice(&bytes[other..other + 30]);
        mixed[other..other + 30].copy_from_slice(&bytes[one..one + 30]);
        is_noticed(&name, &mixed, &written);
        is_refused(&name, &mixed, &bytes);
    }
}

/// A checksum behind what it covers would make this so for no file.
#[test]
fn the_checksum_of_the_file_depends_on_all_of_it() {
    let store = in_memory();
    let mut seen = std::collections::BTreeSet::new();
    let mut see = |head: &Head, chunks: &[Vec<u8>]| {
        assert!(seen.insert(write(&store, head, chunks).name().checksum), "{head:?} {chunks:?}");
    };
    let base = head(7, Form::Chunks);
    for byte in 0..50 {
        see(&base, &[vec![byte; 10]]);
    }
    for index in 8..50 {
        see(&head(index, Form::Chunks), &[vec![0; 10]]);
        see(&Head { meta: vec![index as u8], ..base.clone() }, &[vec![0; 10]]);
    }
    see(&head(7, Form::Bytes), &[vec![0; 10]]);
}

#[test]
fn a_newer_format_is_named() {
    let (name, mut bytes, _) = sample();
    bytes[8] = 2;
    let checksum = crc32fast::hash(&[&bytes[..12], &bytes[16..41]].concat());
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    let error = store_of(&name, &bytes).open(&name).unwrap_err();
    assert!(matches!(error, StorageError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
}

#[test]
fn memory_follows_what_came_and_not_what_is_announced() {
    let (_, bytes, _) = sample();
    for length in [1 << 20, (1 << 20) + 1, u32::MAX] {
        let mut parser = Parser::default();
        let mut front = &bytes[..41];
        parser.feed(&mut front).unwrap();
        let announced = [&[1, 0][..], &length.to_le_bytes(), &[0; 30]].concat();
        let result = parser.feed(&mut announced.as_slice());
        assert_eq!(result.is_err(), length > 1 << 20);
        assert!(parser.raw().len() < 100 && parser.capacity() < 4096);
    }
}

#[test]
fn forms_that_are_never_written_are_refused() {
    // A well-formed file of one value whose piece goes on, or is empty: the checksums are right.
    for (goes_on, length) in [(1, 1 << 20), (0, 0), (1, 5), (2, 5)] {
        let (form_head, mut parser) = (head(7, Form::Bytes), Parser::default());
        let file = write(&in_memory(), &Head { meta: vec![], ..form_head }, &[]);
        let front = bytes_of(&file)[..51].to_vec();
        let mut rest = front.as_slice();
        while parser.feed(&mut rest).unwrap().is_some() {}
        let payload = vec![1; length];
        let mut piece = [&[2, goes_on][..], &(length as u32).to_le_bytes()].concat();
        let checksum = crc32fast::hash(&[&51u64.to_le_bytes(), piece.as_slice(), &payload].concat());
        piece.extend(checksum.to_le_bytes());
        piece.extend(payload);
        assert!(matches!(parser.feed(&mut piece.as_slice()), Err(Damage::At(51, _))), "{goes_on} {length}");
    }
}

fn any_chunks() -> impl Strategy<Value = Vec<usize>> {
    let length = prop_oneof![6 => 0..2_000usize, 1 => Just(0), 1 => (1usize << 20) - 1..(1 << 20) + 3];
    proptest::collection::vec(length, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..Default::default() })]

    #[test]
    fn any_slices_and_any_breaks_give_the_same_file(
        lengths in any_chunks(),
        meta in 0..3_000usize,
        is_one_value in any::<bool>(),
        slices in proptest::collection::vec((1..400_000usize, 0..8u8), 1..40),
    ) {
        let form = if is_one_value { Form::Bytes } else { Form::Chunks };
        let written = chunks(&lengths);
        let sent = write(&in_memory(), &Head { meta: vec![3; meta], ..head(7, form) }, &written);
        let (name, bytes) = (*sent.name(), bytes_of(&sent));
        let store = in_memory();
        let mut receiver = store.receive(&name).unwrap();
        for (length, fate) in slices.iter().cycle().take(60) {
            let from = receiver.offset() as usize;
            receiver.write(&bytes[from..bytes.len().min(from + length)]).unwrap();
            if *fate == 0 {
                drop(receiver);
                receiver = store.receive(&name).unwrap();
                prop_assert!(receiver.offset() as usize <= bytes.len().min(from + length));
            }
        }
        send(receiver.as_mut(), &bytes).unwrap();
        let received = receiver.finish().unwrap();
        prop_assert!(bytes_of(&received) == bytes);
        let all = read(&received);
        let is_same = if is_one_value { all.concat() == written.concat() } else { all == written };
        prop_assert!(is_same);
    }

    #[test]
    fn anything_at_all_is_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0..200usize) {
        let (name, mut mixed, written) = sample();
        let at = at.min(mixed.len());
        let end = mixed.len().min(at + bytes.len());
        mixed[at..end].copy_from_slice(&bytes[..end - at]);
        prop_assume!(mixed != bytes_of(&write(&in_memory(), &head(7, Form::Chunks), &written)));
        is_noticed(&name, &mixed, &written);
    }
}
