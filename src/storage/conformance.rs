//! What every log must do, run against the disk and against its memory twin.

use raft::eraftpb::{Entry, HardState};

use super::{Batch, GroupState, GroupWrite, Opened, StorageError, TermRun, MAX_GROUP};
use crate::engine::GroupId;

pub(super) fn entries(group: GroupId, indexes: std::ops::Range<u64>, term: u64, bytes: usize) -> GroupWrite {
    let entry = |index| Entry { index, term, data: vec![index as u8; bytes], ..Default::default() };
    GroupWrite { group, entries: indexes.map(entry).collect(), ..Default::default() }
}

pub(super) fn truncated(group: GroupId, index: u64, term: u64) -> GroupWrite {
    GroupWrite { group, truncated: Some((index, term)), ..Default::default() }
}

pub(super) fn batch(groups: impl IntoIterator<Item = GroupWrite>) -> Batch {
    Batch { groups: groups.into_iter().collect(), sync: true, ..Default::default() }
}

fn read(log: &Opened, group: GroupId, low: u64, high: u64, max_bytes: u64) -> Vec<(u64, u64)> {
    let entries = log.reader.entries(group, low, high, max_bytes).unwrap();
    entries.iter().map(|entry| (entry.index, entry.term)).collect()
}

/// One name per property, so that a failure says which of the two logs lacks which.
pub(super) fn conformance(open: impl Fn() -> Opened) {
    an_empty_log_holds_nothing(open());
    entries_are_read_by_range(open());
    entries_are_read_by_bytes(open());
    an_overlap_replaces_the_suffix(open());
    a_truncation_moves_the_beginning(open());
    a_foreign_snapshot_replaces_the_log(open());
    one_batch_holds_several_writes_of_a_group(open());
    a_large_range_is_read_whole(open());
    what_is_refused_writes_nothing_and_stops_the_log(&open);
    figures_count(open());
}

fn an_empty_log_holds_nothing(log: Opened) {
    assert!(log.groups.is_empty() && log.node_records.is_empty());
    assert!(matches!(log.reader.entries(1, 1, 2, 100), Err(StorageError::Unavailable { last: 0, .. })));
    assert_eq!(log.reader.entries(1, 5, 5, 100).unwrap(), []);
}

fn entries_are_read_by_range(mut log: Opened) {
    log.writer.write(batch([truncated(1, 1, 1), entries(1, 2..6, 1, 10), entries(2, 1..4, 7, 10)])).unwrap();
    log.writer.write(batch([entries(1, 6..9, 2, 10)])).unwrap();
    assert_eq!(read(&log, 1, 4, 8, u64::MAX), [(4, 1), (5, 1), (6, 2), (7, 2)]);
    assert_eq!(read(&log, 2, 1, 4, u64::MAX), [(1, 7), (2, 7), (3, 7)]);
    let whole = log.reader.entries(1, 2, 9, u64::MAX).unwrap();
    assert!(whole.iter().all(|entry| entry.data == vec![entry.index as u8; 10]));
    for (low, high) in [(0, 2), (1, 2), (1, 9)] {
        let error = log.reader.entries(1, low, high, 100).unwrap_err();
        assert!(matches!(error, StorageError::Compacted { first: 2, .. }), "{low}..{high}: {error}");
    }
    for (low, high) in [(2, 10), (9, 10), (20, 21)] {
        let error = log.reader.entries(1, low, high, 100).unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { last: 8, .. }), "{low}..{high}: {error}");
    }
}

fn entries_are_read_by_bytes(mut log: Opened) {
    let write = entries(1, 1..101, 1, 100);
    let sizes: Vec<u64> = write.entries.iter().map(|entry| prost::Message::encoded_len(entry) as u64).collect();
    log.writer.write(batch([write])).unwrap();
    for count in [1, 2, 50, 99, 100] {
        let bytes: u64 = sizes[..count].iter().sum();
        assert_eq!(read(&log, 1, 1, 101, bytes).len(), count);
        assert_eq!(read(&log, 1, 1, 101, bytes - 1).len(), (count - 1).max(1));
    }
    assert_eq!(read(&log, 1, 1, 101, 0).len(), 1);
    assert_eq!(read(&log, 1, 1, 101, u64::MAX).len(), 100);
}

fn an_overlap_replaces_the_suffix(mut log: Opened) {
    log.writer.write(batch([entries(1, 1..10, 1, 10)])).unwrap();
    log.writer.write(batch([entries(1, 5..7, 3, 20)])).unwrap();
    assert_eq!(read(&log, 1, 3, 7, u64::MAX), [(3, 1), (4, 1), (5, 3), (6, 3)]);
    assert!(matches!(log.reader.entries(1, 7, 8, 100), Err(StorageError::Unavailable { last: 6, .. })));
    log.writer.write(batch([entries(1, 1..2, 4, 10)])).unwrap();
    assert_eq!(read(&log, 1, 1, 2, u64::MAX), [(1, 4)]);
    log.writer.write(batch([entries(1, 2..4, 4, 10)])).unwrap();
    assert_eq!(read(&log, 1, 1, 4, u64::MAX), [(1, 4), (2, 4), (3, 4)]);
}

fn a_truncation_moves_the_beginning(mut log: Opened) {
    log.writer.write(batch([entries(1, 1..10, 1, 10)])).unwrap();
    log.writer.write(batch([truncated(1, 6, 1)])).unwrap();
    assert_eq!(read(&log, 1, 7, 10, u64::MAX), [(7, 1), (8, 1), (9, 1)]);
    assert!(matches!(log.reader.entries(1, 6, 10, 100), Err(StorageError::Compacted { first: 7, .. })));
    log.writer.write(batch([truncated(1, 6, 1), truncated(1, 9, 1)])).unwrap();
    assert!(matches!(log.reader.entries(1, 9, 10, 100), Err(StorageError::Compacted { first: 10, .. })));
    assert!(matches!(log.reader.entries(1, 10, 11, 100), Err(StorageError::Unavailable { last: 9, .. })));
    log.writer.write(batch([entries(1, 10..12, 2, 10)])).unwrap();
    assert_eq!(read(&log, 1, 10, 12, u64::MAX), [(10, 2), (11, 2)]);
}

fn a_foreign_snapshot_replaces_the_log(mut log: Opened) {
    log.writer.write(batch([entries(1, 1..10, 1, 10)])).unwrap();
    // The entry at 5 was overruled: those behind it may not stay.
    log.writer.write(batch([truncated(1, 5, 2)])).unwrap();
    assert!(matches!(log.reader.entries(1, 6, 7, 100), Err(StorageError::Unavailable { last: 5, .. })));
    let mut write = entries(1, 21..23, 3, 10);
    write.truncated = Some((20, 3));
    log.writer.write(batch([write])).unwrap();
    assert_eq!(read(&log, 1, 21, 23, u64::MAX), [(21, 3), (22, 3)]);
    assert!(matches!(log.reader.entries(1, 20, 21, 100), Err(StorageError::Compacted { first: 21, .. })));
}

fn one_batch_holds_several_writes_of_a_group(mut log: Opened) {
    let mut last = entries(1, 12..14, 4, 10);
    last.truncated = Some((11, 4));
    let groups = [entries(1, 1..8, 1, 10), entries(2, 1..3, 1, 10), entries(1, 4..6, 2, 10), truncated(1, 3, 1)];
    log.writer.write(batch(groups)).unwrap();
    assert_eq!(read(&log, 1, 4, 6, u64::MAX), [(4, 2), (5, 2)]);
    log.writer.write(batch([entries(1, 6..9, 2, 10), last, entries(1, 13..16, 5, 10)])).unwrap();
    assert_eq!(read(&log, 1, 12, 16, u64::MAX), [(12, 4), (13, 5), (14, 5), (15, 5)]);
    assert_eq!(read(&log, 2, 1, 3, u64::MAX).len(), 2);
}

fn a_large_range_is_read_whole(mut log: Opened) {
    for first in (1..5_001).step_by(100) {
        log.writer.write(Batch { sync: false, ..batch([entries(1, first..first + 100, 1, 8)]) }).unwrap();
    }
    let all = read(&log, 1, 1, 5_001, u64::MAX);
    assert!(all.iter().map(|(index, _)| *index).eq(1..5_001));
    let some = read(&log, 1, 10, 5_001, 20_000).len();
    assert!((1_000..2_000).contains(&some), "{some}");
}

fn what_is_refused_writes_nothing_and_stops_the_log(open: &impl Fn() -> Opened) {
    type Test = fn(&StorageError) -> bool;
    let gap: Test = |error| matches!(error, StorageError::Gap { .. });
    let back: Test = |error| matches!(error, StorageError::Truncation { .. });
    let reserved: Test = |error| matches!(error, StorageError::ReservedGroup { .. });
    let refused: [(GroupWrite, Test); 5] = [
        (entries(1, 7..8, 1, 10), gap),
        (entries(1, 3..8, 1, 10), gap),
        (truncated(1, 2, 1), back),
        (truncated(1, 3, 2), back),
        (entries(MAX_GROUP + 1, 1..2, 1, 10), reserved),
    ];
    for (write, is_right) in refused {
        let mut log = open();
        log.writer.write(batch([truncated(1, 3, 1), entries(1, 4..6, 1, 10)])).unwrap();
        let error = log.writer.write(batch([entries(2, 1..5, 1, 10), write])).unwrap_err();
        assert!(is_right(&error), "{error}");
        assert!(log.reader.entries(2, 1, 2, 100).is_err(), "part of a refused batch can be read");
        let again = log.writer.write(batch([entries(1, 6..7, 1, 10)])).unwrap_err();
        assert!(matches!(&again, StorageError::Poisoned { reason } if *reason == error.to_string()), "{again}");
        assert!(matches!(log.writer.maintain(), Err(StorageError::Poisoned { .. })));
        assert_eq!(read(&log, 1, 4, 6, u64::MAX).len(), 2);
    }
}

fn figures_count(mut log: Opened) {
    let before = log.writer.figures();
    log.writer.write(batch([entries(1, 1..5, 1, 1000)])).unwrap();
    log.writer.write(Batch { sync: false, ..batch([entries(1, 5..9, 1, 1000)]) }).unwrap();
    let after = log.writer.figures();
    assert_eq!(after.fsyncs - before.fsyncs, 1);
    assert!(after.bytes - before.bytes >= 8_000, "{after:?}");
}

/// What a log that was opened again must say: everything, in the shape the engine starts from.
pub(super) fn reopening(open: impl Fn() -> Opened) {
    let mut log = open();
    let mut first = entries(1, 2..6, 1, 10);
    first.truncated = Some((1, 1));
    first.hard_state = Some(HardState { term: 1, vote: 3, commit: 1 });
    first.records = vec![(b"conf".to_vec(), b"one".to_vec()), (b"empty".to_vec(), vec![])];
    let node_records = vec![(b"identity".to_vec(), b"abc".to_vec()), (b"boot".to_vec(), b"1".to_vec())];
    log.writer.write(Batch { node_records, ..batch([first, entries(9, 1..3, 4, 10)]) }).unwrap();
    log.writer.write(batch([entries(1, 6..9, 2, 10)])).unwrap();
    log.writer.write(batch([entries(1, 8..12, 5, 10)])).unwrap();
    let hard_state = Some(HardState { term: 5, vote: 2, commit: 9 });
    let records = vec![(b"conf".to_vec(), b"two".to_vec())];
    log.writer.write(batch([GroupWrite { group: 1, hard_state, records, ..truncated(1, 4, 1) }])).unwrap();
    // A foreign snapshot keeps the hard state and the records of its group.
    log.writer.write(batch([entries(9, 1..3, 4, 10), truncated(9, 30, 6)])).unwrap();
    // Rule D1: all that an installation changes stands in one batch, which removes everything else but the other records.
    let voted = Some(HardState { term: 7, vote: 3, commit: 2 });
    let records = vec![(b"conf".to_vec(), b"one".to_vec()), (b"snapshot".to_vec(), b"first".to_vec())];
    log.writer.write(batch([GroupWrite { hard_state: voted, records, ..entries(8, 1..20, 7, 10) }])).unwrap();
    let hard_state = Some(HardState { term: 7, vote: 3, commit: 12 });
    let records = vec![(b"snapshot".to_vec(), b"second".to_vec())];
    log.writer.write(batch([GroupWrite { hard_state, records, ..truncated(8, 12, 8) }])).unwrap();
    let node_records = vec![(b"boot".to_vec(), b"2".to_vec())];
    log.writer.write(Batch { node_records, ..batch([]) }).unwrap();
    drop(log);

    let one = GroupState {
        hard_state: HardState { term: 5, vote: 2, commit: 9 },
        truncated: (4, 1),
        last_index: 11,
        terms: [(5, 1), (6, 2), (8, 5)].map(|(first_index, term)| TermRun { first_index, term }).to_vec(),
        records: [(b"conf".to_vec(), b"two".to_vec()), (b"empty".to_vec(), vec![])].into(),
    };
    let eight = GroupState {
        hard_state: HardState { term: 7, vote: 3, commit: 12 },
        truncated: (12, 8),
        last_index: 12,
        terms: vec![],
        records: [(b"conf".to_vec(), b"one".to_vec()), (b"snapshot".to_vec(), b"second".to_vec())].into(),
    };
    let nine = GroupState { truncated: (30, 6), last_index: 30, ..Default::default() };
    for _ in 0..3 {
        let log = open();
        assert_eq!(log.groups, [(1, one.clone()), (8, eight.clone()), (9, nine.clone())].into());
        assert_eq!(
            log.node_records,
            [(b"boot".to_vec(), b"2".to_vec()), (b"identity".to_vec(), b"abc".to_vec())].into()
        );
        assert_eq!(read(&log, 1, 5, 12, u64::MAX), [5, 6, 7, 8, 9, 10, 11].map(|i| (i, one.term(i).unwrap())));
        assert!(matches!(log.reader.entries(9, 30, 31, 100), Err(StorageError::Compacted { first: 31, .. })));
    }
}

#[test]
fn the_memory_twin_conforms() {
    conformance(super::memory::open);
}
