//! Whatever peers that passed the handshake may send, in any order, to a node that also does its own work.
//!
//! They may lie about everything: what is looked for is a panic of the engine, and a leader or a commit index that a
//! majority of liars did not have to be believed in is not.

#![no_main]

use aioraft::engine::command::Command;
use aioraft::engine::{Effect, Engine, Now, Reader, Rejection, Settings, APPLICATION_GROUP, BOOTSTRAP};
use aioraft::storage::{memory, Batch, GroupState, GroupWrite};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use raft::eraftpb::{Entry, Message};

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
}

fn message(told: Told) -> (u64, Message) {
    let from = u64::from(told.from % 4);
    let (mut index, term) = (u64::from(told.index), u64::from(told.term));
    let entries = told.entries.into_iter().map(|(at, of, data)| {
        index += 1;
        let (index, term) = if told.is_consistent { (index, term) } else { (u64::from(at), u64::from(of)) };
        let data = if told.is_consistent { Command::new(&data).into_bytes() } else { data };
        Entry { index, term, data, ..Default::default() }
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
        election_ticks: 5,
        heartbeat_ticks: 1,
        max_entry_bytes: 1 << 10,
        max_message_bytes: 1 << 12,
        max_inflight_messages: 4,
        max_uncommitted_bytes: 1 << 16,
        max_fresh_bytes: 1 << 10,
        entry_cache_bytes: 1 << 10,
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
    let mut engine = Engine::new(&settings(), state, disk.reader.clone(), &logger, false).unwrap();
    let mut now = Now { boottime_ns: 1, wall_ns: 1 };
    let mut unsynced = std::collections::VecDeque::new();
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
                    let aioraft::engine::Persist { number, entries, hard_state, sync } = persist;
                    let write = GroupWrite { group, entries, hard_state, ..Default::default() };
                    disk.writer.write(Batch { groups: vec![write], node_records: vec![], sync }).unwrap();
                    engine.handle_persisted(number);
                }
            }
            Step::Apply => match engine.hand_out(1 << 10) {
                Ok(Some(batch)) => engine.handle_application_applied(batch.through),
                Ok(None) => {}
                Err(_) => return, // it stops and says why
            },
            Step::Route(peer) => engine.handle_route(u64::from(peer % 4)),
            Step::Lost(peer) => engine.handle_route_lost(u64::from(peer % 4)),
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
