//! Whatever peers that passed the handshake may send, in any order, to a node that also does its own work.
//!
//! They may lie about everything: what is looked for is a panic of the engine, and a leader or a commit index that a
//! majority of liars did not have to be believed in is not.

#![no_main]

use aioraft::engine::command::Command;
use aioraft::engine::membership::{encode_changes, Change, Member};
use aioraft::engine::snapshot::Meta;
use aioraft::engine::{
    Effect, Engine, HandOut, Now, Opening, Reader, Rejection, Settings, SnapshotPolicy, APPLICATION_GROUP, BOOTSTRAP,
};
use aioraft::storage::snapshot::SnapshotName;
use aioraft::storage::{memory, Batch, GroupState, GroupWrite};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeV2, ConfState, Entry, Message, Snapshot};

#[derive(Arbitrary, Debug)]
struct Told {
    kind: u8,
    from: u8,
    term: u8,
    log_term: u8,
    index: u8,
    commit: u8,
    commit_term: u8,
    reject: bool,
    reject_hint: u8,
    context: Vec<u8>,
    entries: Vec<(u8, u8, Vec<u8>)>,
    /// What the entries are, and what those that change the members ask for.
    entry_type: u8,
    changes: Vec<(u8, u8)>,
    is_explicit: bool,
    /// Entries stand where and in the term in which an honest leader would have put them.
    is_consistent: bool,
    priority: i8,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Tick,
    Tell(Told),
    Propose(u8),
    Forward { from: u8, number: u8, floor: u8, payload: u8 },
    Reject { from: u8, numbers: Vec<u8> },
    Read,
    Persisted,
    Apply,
    Route(u8),
    Lost(u8),
    Change(Vec<(u8, u8)>),
    Transfer(u8),
    TakeSnapshot,
    Captured(bool),
    SnapshotOf { from: u8, term: u8, index: u8, of_term: u8, voters: u8, learners: u8, outgoing: u8 },
    SnapshotSent { to: u8, is_there: bool },
}

fn changes(told: &[(u8, u8)]) -> Vec<Change> {
    let change = |(kind, id): &(u8, u8)| {
        let id = u64::from(id % 8);
        match kind % 6 {
            0 => Change::AddLearner { id, member: Member { identity: u128::from(*kind), ..Member::default() } },
            1 => Change::Promote(id),
            2 => Change::Demote(id),
            3 => Change::Remove(id),
            4 => Change::Update { id, identity: u128::from(*kind), address: "x:1".into(), metadata: None },
            _ => Change::Recover(id),
        }
    };
    told.iter().map(change).collect()
}

/// An entry that changes the members, as raft-rs counts votes by it: what it says there and what it asks for may differ.
fn conf_change(told: &[(u8, u8)], term: u64, is_explicit: bool) -> Vec<u8> {
    if told.is_empty() {
        return Vec::new();
    }
    let mut command = Command::membership(&encode_changes(&changes(told)));
    command.set_origin(2, 1, term);
    command.set_floor(1);
    let singles = told.iter().map(|(kind, id)| {
        let change_type = match kind % 6 {
            0 | 2 => 2,
            1 => 0,
            3 => 1,
            _ => i32::from(*kind),
        };
        ConfChangeSingle { change_type, node_id: u64::from(id % 8), ..Default::default() }
    });
    let transition = if is_explicit || told.len() > 1 { 2 } else { 0 };
    let change =
        ConfChangeV2 { transition, changes: singles.collect(), context: command.into_bytes(), ..Default::default() };
    change.encode_to_vec()
}

fn ids(bits: u8) -> Vec<u64> {
    (1..=8).filter(|id| bits & (1 << (id - 1)) != 0).collect()
}

fn message(told: Told) -> (u64, Message) {
    let from = u64::from(told.from % 4);
    let (mut index, term) = (u64::from(told.index), u64::from(told.term));
    let entries = told.entries.into_iter().map(|(at, of, data)| {
        index += 1;
        let (index, term) = if told.is_consistent { (index, term) } else { (u64::from(at), u64::from(of)) };
        let entry_type = i32::from(told.entry_type % 4);
        let data = match (told.is_consistent, entry_type) {
            (true, 0) => Command::new(&data).into_bytes(),
            (true, 2) => conf_change(&told.changes, term, told.is_explicit),
            _ => data,
        };
        Entry { index, term, data, entry_type, ..Default::default() }
    });
    let entries = entries.collect();
    let message = Message {
        msg_type: i32::from(told.kind % 22),
        from,
        to: 1,
        term,
        log_term: u64::from(told.log_term),
        index: u64::from(told.index),
        entries,
        commit: u64::from(told.commit),
        commit_term: u64::from(told.commit_term),
        reject: told.reject,
        reject_hint: u64::from(told.reject_hint),
        context: told.context,
        priority: i64::from(told.priority),
        ..Default::default()
    };
    (from, message)
}

fn settings() -> Settings {
    Settings {
        id: 1,
        boot: 1,
        nonce: 1,
        seed: 1,
        voters: vec![1, 2, 3],
        identities: [(1, 1), (2, 2), (3, 3)].into(),
        election_ticks: 5,
        heartbeat_ticks: 1,
        max_entry_bytes: 1 << 10,
        max_message_bytes: 1 << 12,
        max_inflight_messages: 4,
        max_uncommitted_bytes: 1 << 16,
        max_fresh_bytes: 1 << 10,
        entry_cache_bytes: 1 << 10,
        snapshots: SnapshotPolicy { possible: true, entries: 8, bytes: 1 << 12, trail: 2 },
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut state = GroupState { truncated: BOOTSTRAP, last_index: BOOTSTRAP.0, ..Default::default() };
    state.hard_state.term = BOOTSTRAP.1;
    state.hard_state.commit = BOOTSTRAP.0;
    let mut disk = memory::open();
    let group = APPLICATION_GROUP;
    let first = GroupWrite {
        group,
        truncated: Some(BOOTSTRAP),
        hard_state: Some(state.hard_state.clone()),
        ..Default::default()
    };
    disk.writer.write(Batch { groups: vec![first], node_records: vec![], sync: true }).unwrap();
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let opening = Opening { state, snapshot: None, durable: None, is_fresh: false };
    let mut engine = Engine::new(&settings(), opening, disk.reader.clone(), &logger).unwrap();
    let mut capture = None;
    let mut now = Now { boottime_ns: 1, wall_ns: 1 };
    let mut unsynced = std::collections::VecDeque::<aioraft::engine::Persist>::new();
    let mut token = 0;
    for step in steps {
        token += 1;
        now.boottime_ns += 1_000_000;
        match step {
            Step::Tick => engine.handle_tick(),
            Step::Tell(told) => {
                let (from, message) = message(told);
                let _ = engine.handle_message(from, message);
            }
            Step::Propose(byte) => engine.handle_proposal(token, Command::new(&[byte]), u64::MAX),
            Step::Forward { from, number, floor, payload } => {
                let mut command = Command::new(&[payload]);
                command.set_origin(u64::from(from % 4), 1, u64::from(number));
                command.set_floor(u64::from(floor));
                command.set_nonce(1);
                engine.handle_forwarded(u64::from(from % 4), command);
            }
            Step::Reject { from, numbers } => {
                let numbers = numbers.into_iter().map(u64::from).collect();
                let rejection = Rejection { boot: 1, numbers, reason: String::new() };
                engine.handle_rejection(u64::from(from % 4), &rejection);
            }
            Step::Read => engine.handle_read(Reader { token, deadline_ns: u64::MAX }),
            Step::Persisted => {
                if let Some(persist) = unsynced.pop_front() {
                    let (number, sync, name) = (persist.number, persist.sync, persist.snapshot);
                    let write = persist.into_write();
                    disk.writer.write(Batch { groups: vec![write], node_records: vec![], sync }).unwrap();
                    engine.handle_persisted(number);
                    if let Some(name) = name {
                        engine.handle_recorded(name);
                    }
                }
            }
            Step::Apply => match engine.hand_out(1 << 10) {
                Ok(Some(HandOut::Apply(batch))) => engine.handle_application_applied(batch.through),
                Ok(Some(HandOut::Capture(marker))) => capture = Some(marker),
                Ok(Some(HandOut::Restore(name))) => engine.handle_application_applied(name.index),
                Ok(None) => {}
                Err(_) => return, // it stops and says why
            },
            Step::Route(peer) => engine.handle_route(u64::from(peer % 4)),
            Step::Lost(peer) => engine.handle_route_lost(u64::from(peer % 4)),
            Step::Change(told) => engine.handle_change(token, &changes(&told), u64::MAX),
            Step::Transfer(to) => engine.handle_transfer(token, Some(u64::from(to % 4)).filter(|to| *to > 0), u64::MAX),
            Step::TakeSnapshot => engine.handle_snapshot_call(token, u64::MAX),
            Step::Captured(is_whole) => {
                if let Some(marker) = capture.take() {
                    let aioraft::engine::Marker { index, term, .. } = marker;
                    let name = SnapshotName { group, index, term, bytes: 1, checksum: 1 };
                    let outcome = if is_whole { Ok(name) } else { Err("the disk is full".to_owned()) };
                    engine.handle_captured(index, outcome);
                }
            }
            Step::SnapshotOf { from, term, index, of_term, voters, learners, outgoing } => {
                let (from, term, index, of_term) =
                    (u64::from(from % 4), u64::from(term), u64::from(index), u64::from(of_term));
                let auto_leave = false;
                let (voters, learners, voters_outgoing) = (ids(voters), ids(learners), ids(outgoing));
                let conf_state = ConfState { voters, learners, voters_outgoing, auto_leave, ..Default::default() };
                let name = SnapshotName { group, index, term: of_term, bytes: 1, checksum: 1 };
                let mut snapshot = Snapshot { data: name.encode_to_vec(), ..Default::default() };
                let metadata = snapshot.mut_metadata();
                (metadata.index, metadata.term) = (index, of_term);
                metadata.set_conf_state(conf_state.clone());
                let message =
                    Message { msg_type: 7, from, to: 1, term, snapshot: Some(snapshot), ..Default::default() };
                let meta = Meta { conf_state, ..Meta::default() };
                let _ = engine.handle_snapshot(from, message, name, meta);
            }
            Step::SnapshotSent { to, is_there } => engine.handle_snapshot_sent(u64::from(to % 4), is_there),
        }
        match engine.poll(now) {
            Ok(effects) => unsynced.extend(effects.into_iter().filter_map(|effect| match effect {
                Effect::Persist(persist) => Some(persist),
                _ => None,
            })),
            Err(_) => return, // it stops and says why
        }
    }
});
