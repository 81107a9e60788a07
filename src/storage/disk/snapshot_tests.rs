//! The log and its snapshots: compaction and installation on the real disk (rule D1), with a crash between any two steps.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use prost::Message;
use raft::eraftpb::HardState;

use super::tests::{contents, crashed, newest, opened, write_small, SMALL};
use super::*;
use crate::storage::conformance::{batch, entries, truncated};
use crate::storage::snapshot::{snapshot_name, Form, Head, SnapshotFile, SnapshotName, RECORD};
use crate::storage::{Batch, GroupWrite, LogReader, LogWriter};

/// What an installation, or a compaction behind a snapshot taken here, writes.
fn named(name: &SnapshotName, begins_behind: (u64, u64), hard_state: Option<HardState>) -> Batch {
    let (index, term) = begins_behind;
    let records = vec![(RECORD.to_vec(), name.encode_to_vec())];
    batch([GroupWrite { hard_state, records, ..truncated(name.group, index, term) }])
}

fn some_name(index: u64, term: u64) -> SnapshotName {
    SnapshotName { group: 1, index, term, bytes: 1_000, checksum: 7 }
}

/// Entries and terms of group 1.
fn read_all(reader: &DiskReader, state: &GroupState) -> Vec<(u64, u64)> {
    let range = (state.truncated.0 + 1, state.last_index + 1);
    let entries = reader.entries(1, range.0, range.1, u64::MAX).unwrap();
    entries.iter().map(|entry| (entry.index, entry.term)).collect()
}

/// Writes `last` behind a log of twenty entries and tears that write: the log is as before it or as after it.
fn is_atomic(last: &Batch) -> [GroupState; 2] {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _reader, _) = opened(dir.path());
    let hard_state = Some(HardState { term: 4, vote: 2, commit: 10 });
    writer.write(batch([GroupWrite { hard_state, ..entries(1, 1..21, 1, 40) }])).unwrap();
    writer.maintain().unwrap();
    let path = newest(dir.path());
    let (copy, before) = (crashed(dir.path()), fs::read(&path).unwrap());
    writer.write(last.clone()).unwrap();
    let after = fs::read(&path).unwrap();
    let state_of = |dir: &Path| {
        let (_writer, reader, found) = opened(dir);
        let state = found.groups[&1].clone();
        let all: Vec<u64> = read_all(&reader, &state).iter().map(|(index, _)| *index).collect();
        assert!(all.iter().copied().eq(state.truncated.0 + 1..state.last_index + 1), "{all:?}");
        state
    };
    let states = [&copy, &crashed(dir.path())].map(|dir| state_of(dir.path()));
    assert_ne!(states[0], states[1]);
    let differs = |at: &usize| before.get(*at) != after.get(*at);
    let first = (0..after.len()).find(differs).unwrap();
    let end = (0..after.len()).rfind(differs).unwrap() + 1;
    let mut seen = [0; 2];
    for cut in (first..end).step_by(3).chain([end - 1, end]) {
        let copy = crashed(dir.path());
        fs::write(newest(copy.path()), [&after[..cut], before.get(cut..).unwrap_or_default()].concat()).unwrap();
        fs::copy(dir.path().join("guard"), copy.path().join("guard")).unwrap();
        let state = state_of(copy.path());
        let which = states.iter().position(|known| *known == state);
        seen[which.unwrap_or_else(|| panic!("cut at {cut} of {first}..{end}: {state:?}"))] += 1;
        if cut % 5 == 0 {
            assert_eq!(state_of(copy.path()), state, "it does not stay so");
        }
    }
    assert!(seen[0] > 20 && seen[1] > 0, "{seen:?}");
    states
}

#[test]
fn d1_an_installation_is_there_as_a_whole_or_not_at_all() {
    let name = some_name(30, 3);
    let hard_state = Some(HardState { term: 4, vote: 2, commit: 30 });
    let [before, after] = is_atomic(&named(&name, (30, 3), hard_state));
    assert_eq!((snapshot_name(&before).unwrap(), before.hard_state.vote), (None, 2));
    assert_eq!((snapshot_name(&after).unwrap(), after.hard_state.vote), (Some(name), 2));
    assert_eq!((after.truncated, after.last_index, after.hard_state.commit), ((30, 3), 30, 30));
}

#[test]
fn d1_an_installation_that_overrules_the_log_leaves_none_of_it() {
    // Entry 9 has another term here: those behind it were never committed.
    let name = some_name(9, 3);
    let hard_state = Some(HardState { term: 4, vote: 2, commit: 10 });
    let [_, after] = is_atomic(&named(&name, (9, 3), hard_state));
    assert_eq!((after.truncated, after.last_index, after.terms.len()), ((9, 3), 9, 0));
    assert_eq!((snapshot_name(&after).unwrap(), after.hard_state.vote), (Some(name), 2));
}

#[test]
fn d1_a_compaction_keeps_what_follows_and_names_its_snapshot_at_once() {
    let name = some_name(15, 1);
    // Five entries before the snapshot stay, for followers that are a little behind.
    let [before, after] = is_atomic(&named(&name, (10, 1), None));
    assert_eq!(snapshot_name(&before).unwrap(), None);
    assert_eq!((after.truncated, after.last_index, after.hard_state.clone()), ((10, 1), 20, before.hard_state));
    assert_eq!(snapshot_name(&after).unwrap(), Some(name));
}

/// Old entries stand in files that a purge writes anew, or are all that such a file holds: they must not come back when the
/// command that removed them is purged itself.
#[test]
fn d1_what_an_installation_removed_never_comes_back() {
    let hard_state = |commit| Some(HardState { term: 9, vote: 2, commit });
    for appends_behind in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, mut reader, _) = opened(dir.path());
        let mut next = 1;
        let mut churn = |writer: &mut DiskWriter, rounds: u64| {
            for _ in 0..rounds {
                let groups = [entries(2, next..next + 10, 1, 4_000), truncated(2, next, 1)];
                writer.write(Batch { sync: false, ..batch(groups) }).unwrap();
                writer.maintain().unwrap();
                next += 10;
            }
        };
        let mut begin = 1;
        for install in 1..4 {
            // Few entries: those a purge writes anew.
            let write = GroupWrite { hard_state: hard_state(begin), ..entries(1, begin..begin + 25, install, 40) };
            writer.write(batch([write])).unwrap();
            let first = writer.store.files.span(Queue::Append).unwrap().0;
            churn(&mut writer, 20);
            assert!(writer.store.files.span(Queue::Append).unwrap().0 > first, "nothing was purged");
            let rewritten = writer.store.files.span(Queue::Rewrite).map(|(_, last)| last);
            assert!(writer.store.files.written(Queue::Rewrite, rewritten.unwrap()) > 1_000, "nothing was written anew");

            // Half-way into what is there, where an entry of another term stood.
            let at = (begin + 12, install + 1);
            let name = some_name(at.0, at.1);
            writer.write(named(&name, at, hard_state(at.0))).unwrap();
            let mut expected = GroupState {
                hard_state: HardState { term: 9, vote: 2, commit: at.0 },
                truncated: at,
                last_index: at.0,
                records: [(RECORD.to_vec(), name.encode_to_vec())].into(),
                ..Default::default()
            };
            if appends_behind {
                writer.write(batch([entries(1, at.0 + 1..at.0 + 4, at.1, 40)])).unwrap();
                expected.last_index += 3;
                expected.terms.push(crate::storage::TermRun { first_index: at.0 + 1, term: at.1 });
            }
            for round in 0..6 {
                let copy = crashed(dir.path());
                for _ in 0..2 {
                    let (mut writer, reader, found) = opened(copy.path());
                    assert_eq!(found.groups[&1], expected, "install {install}, round {round}");
                    let all = read_all(&reader, &expected);
                    assert!(all.into_iter().eq((at.0 + 1..=expected.last_index).map(|index| (index, at.1))));
                    // The purge of the one that was started again has its turn, too.
                    let last = found.groups[&2].last_index + 1;
                    for first in (last..last + 60).step_by(10) {
                        let compacted = truncated(2, first, 1);
                        let write =
                            Batch { sync: false, ..batch([entries(2, first..first + 10, 1, 4_000), compacted]) };
                        writer.write(write).unwrap();
                        writer.maintain().unwrap();
                    }
                }
                churn(&mut writer, 4);
            }
            drop((writer, reader));
            let (again, also, found) = opened(dir.path());
            assert_eq!(found.groups[&1], expected);
            (writer, reader) = (again, also);
            begin = expected.last_index + 1;
        }
    }
}

/// The steps of an installation, a crash behind each: what the log names is there, whole; what it does not name is removed.
#[test]
fn d1_a_crash_between_any_two_steps_of_an_installation_leaves_the_old_or_the_new() {
    let source = crate::storage::memory::open().snapshots;
    let send = |index: u64| {
        let head = Head { group: 1, index, term: 1, form: Form::Chunks, meta: b"sessions".to_vec() };
        let mut writer = source.create(&head).unwrap();
        writer.write_chunk(&vec![index as u8; 5_000]).unwrap();
        let file = writer.finish().unwrap();
        (*file.name(), file.read_at(0, usize::MAX).unwrap())
    };
    let dir = tempfile::tempdir().unwrap();
    let mut copies = Vec::new();
    let mut log = open(dir.path()).unwrap();
    let mut installed: Option<(SnapshotName, Arc<dyn SnapshotFile>)> = None;
    for index in [10, 20] {
        let (name, bytes) = send(index);
        let old = installed.as_ref().map(|(name, _)| *name);
        let mut step = |expected: Option<SnapshotName>| copies.push((crashed(dir.path()), expected));
        let mut receiver = log.snapshots.receive(&name).unwrap();
        receiver.write(&bytes[..500]).unwrap();
        step(old);
        receiver.write(&bytes[500..]).unwrap();
        step(old);
        let file = receiver.finish().unwrap();
        step(old);
        let hard_state = Some(HardState { term: 3, vote: 2, commit: index });
        log.writer.write(named(&name, (index, 1), hard_state)).unwrap();
        step(Some(name));
        log.snapshots.retain(&[name]).unwrap();
        step(Some(name));
        installed = Some((name, file));
    }
    for (copy, expected) in copies {
        let log = open(copy.path()).unwrap();
        let name = log.groups.get(&1).and_then(|state| snapshot_name(state).unwrap());
        assert_eq!(name, expected);
        log.snapshots.retain(name.as_slice()).unwrap();
        let left = fs::read_dir(copy.path().join("snapshots")).unwrap().map(|entry| entry.unwrap().file_name());
        let left = left.filter(|name| name.to_string_lossy().ends_with(".snapshot")).count();
        assert_eq!(left, usize::from(name.is_some()));
        if let Some(name) = name {
            let chunks: Result<Vec<_>, _> = log.snapshots.open(&name).unwrap().chunks().collect();
            assert_eq!(chunks.unwrap(), [vec![name.index as u8; 5_000]]);
            assert_eq!((log.groups[&1].hard_state.vote, log.groups[&1].hard_state.commit), (2, name.index));
        }
    }
}

#[test]
fn a_directory_from_before_there_were_snapshots_opens() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, reader, _) = opened(dir.path());
    write_small(&mut writer, 1..5);
    drop((writer, reader));
    fs::remove_dir(dir.path().join("snapshots")).unwrap();
    let log = open(dir.path()).unwrap();
    assert_eq!(log.groups[&1].last_index, 4);
    assert!(dir.path().join("snapshots").is_dir());
}

#[test]
fn whoever_writes_snapshots_keeps_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let head = Head { group: 1, index: 1, term: 1, form: Form::Bytes, meta: vec![] };
    let Opened { writer, reader, snapshots, .. } = open(dir.path()).unwrap();
    let taken = snapshots.create(&head).unwrap();
    drop((writer, reader, snapshots));
    assert!(matches!(open_with(dir.path(), SMALL), Err(StorageError::Locked { .. })));
    let file = taken.finish().unwrap();
    // Whoever reads one does not.
    opened(dir.path());
    assert_eq!(file.chunks().count(), 0);
}

/// A snapshot that fails is no failure of the log.
#[test]
fn a_snapshot_that_cannot_be_written_leaves_the_log_going() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    fs::remove_dir(dir.path().join("snapshots")).unwrap();
    fs::write(dir.path().join("snapshots"), "in the way").unwrap();
    let head = Head { group: 1, index: 1, term: 1, form: Form::Bytes, meta: vec![] };
    let error = log.snapshots.create(&head).map(drop).unwrap_err();
    assert!(matches!(error, StorageError::SnapshotFailed { .. }), "{error}");
    assert!(error.to_string().contains("the log and earlier snapshots are as before"), "{error}");
    let before: BTreeMap<_, _> = contents(dir.path());
    log.writer.write(batch([entries(1, 1..4, 1, 40)])).unwrap();
    assert!(before != contents(dir.path()));
}
