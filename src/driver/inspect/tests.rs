//! What is said of a directory is what a node that starts there finds, or says.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState};

use super::*;
use crate::driver::identity::Drawn;
use crate::driver::start::resume;
use crate::driver::tests::options;
use crate::driver::Listen;
use crate::engine::command::Command;
use crate::engine::{SessionFigures, BOOTSTRAP};
use crate::storage::snapshot::{FileState, Form, Head};
use crate::storage::{Batch, GroupWrite, Opened};

const ID: u64 = 3;
const IDENTITY: u128 = 0xabc;

fn record(stage: Stage) -> NodeRecord {
    let (cluster, peers) = ("test".to_owned(), BTreeMap::new());
    NodeRecord { id: ID, cluster, identity: IDENTITY, boot: 4, nonce: 9, earlier: Vec::new(), stage, peers }
}

fn formed() -> NodeRecord {
    record(Stage::Formed([(1, 7), (2, 8), (ID, IDENTITY)].into()))
}

fn command(index: u64, boot: u64, number: u64) -> Entry {
    let mut command = Command::new(b"payload");
    command.set_origin(ID, boot, number);
    command.set_floor(1);
    command.set_nonce(9);
    command.set_time(index * 1000, 0);
    Entry { index, term: 2, data: command.into_bytes(), ..Default::default() }
}

fn no_op(index: u64) -> Entry {
    Entry { index, term: 2, ..Default::default() }
}

/// A group that has committed all but its last entry.
fn group() -> GroupWrite {
    let entries = vec![no_op(2), command(3, 4, 1), command(4, 4, 2), command(5, 4, 2), no_op(6)];
    let hard_state = Some(HardState { term: 3, vote: 2, commit: 5 });
    GroupWrite { group: APPLICATION_GROUP, truncated: Some(BOOTSTRAP), entries, hard_state, ..Default::default() }
}

fn batch(record: &NodeRecord, groups: Vec<GroupWrite>) -> Batch {
    Batch { groups, node_records: vec![record.as_stored()], sync: true }
}

/// Takes a snapshot at entry 4, and gives the record that names it.
fn snapshot(opened: &Opened) -> (Vec<u8>, Vec<u8>) {
    let conf_state = ConfState { voters: vec![1, 2, ID], learners: vec![9], ..Default::default() };
    let meta = Meta { conf_state, timestamp_ns: 4000, ..Default::default() }.encode();
    let head = Head { group: APPLICATION_GROUP, index: 4, term: 2, form: Form::Bytes, meta };
    let mut writer = opened.snapshots.create(&head).unwrap();
    writer.write_chunk(b"state").unwrap();
    (snapshot::RECORD.to_vec(), writer.finish().unwrap().name().encode_to_vec())
}

/// A data directory that is written by `write`.
fn directory(write: impl FnOnce(&mut Opened)) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let mut opened = disk::open(&home.path().join(ID.to_string())).unwrap();
    write(&mut opened);
    home
}

fn seen(home: &tempfile::TempDir) -> Report {
    inspect(&home.path().join(ID.to_string())).unwrap()
}

/// What a node says that is started there; `None` if it goes on.
fn refused(home: &tempfile::TempDir) -> Option<String> {
    let members = [1, 2, ID].map(|id| (id, format!("127.0.0.1:{id}"))).into();
    let options = options(ID, &members, Listen::Address(String::new()), Some(home.path()));
    let opened = disk::open(options.data_dir.as_ref().unwrap()).unwrap();
    let drawn = Drawn { identity: 0, nonce: 0, seed: 0 };
    let mut engine = match resume(&options, opened, &drawn) {
        Ok(resumed) => resumed.engine,
        Err(error) => return Some(error.to_string()),
    };
    loop {
        match engine.poll(Now::default()) {
            Ok(_) if engine.has_more() => {}
            Ok(_) => return None,
            Err(fault) => return Some(fault.to_string()),
        }
    }
}

#[test]
fn a_directory_is_told_as_far_as_it_is_committed() {
    let home = directory(|opened| opened.writer.write(batch(&formed(), vec![group()])).unwrap());
    let report = seen(&home);
    assert_eq!(report.damage, Vec::<String>::new());
    assert_eq!((report.node, report.format, report.is_locked), (Some(formed()), Some(1), false));
    assert_eq!(report.hard_state, group().hard_state);
    let log = report.log.unwrap();
    assert_eq!((log.first_index, log.last_index, log.truncated_term, log.last_term), (2, 6, 1, 2));
    assert_eq!(log.entries, EntryCounts { application: 3, no_op: 2, ..Default::default() });
    let replicated = report.replicated.unwrap();
    assert_eq!((replicated.index, replicated.timestamp_ns), (5, 5000));
    assert_eq!(replicated.conf_state.voters, [1, 2, ID]);
    assert_eq!(replicated.sessions, [SessionFigures { origin: ID, boot: 4, floor: 1, applied_ahead: 2 }]);
    let guard = report.guard.unwrap();
    assert_eq!(Some(guard.guard.sequence), guard.found);
    assert_eq!(refused(&home), None);
}

#[test]
fn a_directory_with_a_snapshot_is_told_from_there() {
    let home = directory(|opened| {
        let record = snapshot(opened);
        opened.writer.write(batch(&formed(), vec![GroupWrite { records: vec![record], ..group() }])).unwrap();
        let truncated = GroupWrite { group: APPLICATION_GROUP, truncated: Some((4, 2)), ..Default::default() };
        opened.writer.write(batch(&formed(), vec![truncated])).unwrap();
        // Another node's, on its way.
        let name = SnapshotName { group: APPLICATION_GROUP, index: 9, term: 3, bytes: 200, checksum: 5 };
        opened.snapshots.receive(&name).unwrap().write(b"aiosnaps").unwrap();
    });
    let report = seen(&home);
    assert_eq!(report.damage, Vec::<String>::new());
    let (index, members) = report.snapshot_members.unwrap();
    assert_eq!((index, members.learners), (4, vec![9]));
    let replicated = report.replicated.unwrap();
    assert_eq!((replicated.index, replicated.timestamp_ns, replicated.conf_state.learners), (5, 5000, vec![9]));
    let files = report.snapshots.iter().map(|file| (file.state, file.index, file.is_named, file.problem.is_none()));
    assert_eq!(files.collect::<Vec<_>>(), [(FileState::Whole, 4, true, true), (FileState::Receiving, 9, false, true)]);
    assert_eq!(refused(&home), None);
}

#[test]
fn before_the_cluster_is_formed_nothing_is_replicated() {
    for stage in [Stage::Unformed, Stage::Prepared([(1, 7), (2, 8), (ID, IDENTITY)].into())] {
        let home = directory(|opened| {
            let entries = Vec::new();
            let hard_state = Some(HardState { term: 1, vote: 0, commit: 1 });
            let group = GroupWrite { entries, hard_state, ..group() };
            opened.writer.write(batch(&record(stage.clone()), vec![group])).unwrap();
        });
        let report = seen(&home);
        assert_eq!((report.damage.len(), report.replicated), (0, None));
        assert_eq!(report.node.map(|node| node.stage), Some(stage));
        assert_eq!(report.log.map(|log| (log.first_index, log.last_index)), Some((2, 1)));
        assert_eq!(refused(&home), None);
    }
}

/// Writes something that no node would.
type Damage = (&'static str, fn(&mut Opened));

#[test]
fn what_keeps_a_node_from_going_on_is_said_as_the_node_says_it() {
    let damages: [Damage; 9] = [
        ("its record", |opened| {
            let mut batch = batch(&formed(), vec![group()]);
            batch.node_records[0].1.push(7);
            opened.writer.write(batch).unwrap();
        }),
        ("its log", |opened| opened.writer.write(batch(&formed(), Vec::new())).unwrap()),
        ("committed entries", |opened| {
            let hard_state = Some(HardState { term: 3, vote: 2, commit: 50 });
            opened.writer.write(batch(&formed(), vec![GroupWrite { hard_state, ..group() }])).unwrap();
        }),
        ("the snapshot before the log", |opened| {
            let entries = vec![command(5, 4, 2)];
            opened
                .writer
                .write(batch(&formed(), vec![GroupWrite { truncated: Some((4, 2)), entries, ..group() }]))
                .unwrap();
        }),
        ("the snapshot's name", |opened| {
            let records = vec![(snapshot::RECORD.to_vec(), b"what".to_vec())];
            opened.writer.write(batch(&formed(), vec![GroupWrite { records, ..group() }])).unwrap();
        }),
        ("the snapshot's file", |opened| {
            let record = snapshot(opened);
            let name = SnapshotName::decode(record.1.as_slice()).unwrap();
            opened.writer.write(batch(&formed(), vec![GroupWrite { records: vec![record], ..group() }])).unwrap();
            // What was finished since the start stays until it is named.
            opened.snapshots.retain(&[name]).unwrap();
            opened.snapshots.retain(&[]).unwrap();
        }),
        ("the engine's part of the snapshot", |opened| {
            let head = Head { group: APPLICATION_GROUP, index: 4, term: 2, form: Form::Bytes, meta: vec![0xff] };
            let file = opened.snapshots.create(&head).unwrap().finish().unwrap();
            let records = vec![(snapshot::RECORD.to_vec(), file.name().encode_to_vec())];
            opened.writer.write(batch(&formed(), vec![GroupWrite { records, ..group() }])).unwrap();
        }),
        ("a command", |opened| {
            let mut group = group();
            group.entries[1].data[0] = 9;
            opened.writer.write(batch(&formed(), vec![group])).unwrap();
        }),
        ("its own past", |opened| {
            let mut group = group();
            group.entries[1] = command(3, 6, 1);
            opened.writer.write(batch(&formed(), vec![group])).unwrap();
        }),
    ];
    for (what, write) in damages {
        let home = directory(write);
        let report = seen(&home);
        let refused = refused(&home);
        assert!(refused.is_some(), "{what}");
        assert_eq!(report.damage.first(), refused.as_ref(), "{what}");
        assert_eq!(report.replicated, None, "{what}");
    }
}

#[test]
fn a_chunk_that_cannot_be_restored_is_damage() {
    let home = directory(|opened| {
        let record = snapshot(opened);
        opened.writer.write(batch(&formed(), vec![GroupWrite { records: vec![record], ..group() }])).unwrap();
    });
    let file = only_file(&home.path().join(ID.to_string()).join(disk::SNAPSHOTS));
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(5).position(|part| part == b"state").unwrap();
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let report = seen(&home);
    assert!(report.damage.len() == 1 && report.damage[0].contains("checksum"), "{:?}", report.damage);
    assert_eq!(report.snapshots[0].problem.as_ref(), report.damage.first());
}

fn only_file(dir: &Path) -> std::path::PathBuf {
    let mut files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let file = files.next().unwrap();
    assert_eq!(files.next(), None);
    file
}

#[test]
fn a_running_nodes_directory_is_told_as_of_a_moment() {
    let home = tempfile::tempdir().unwrap();
    let mut opened = disk::open(&home.path().join(ID.to_string())).unwrap();
    opened.writer.write(batch(&formed(), vec![group()])).unwrap();
    let report = seen(&home);
    assert!(report.is_locked && report.damage.is_empty(), "{:?}", report.damage);
    assert_eq!(report.replicated.map(|replicated| replicated.index), Some(5));
}
