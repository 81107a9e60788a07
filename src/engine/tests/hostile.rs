//! Messages that a broken, wiped or hostile peer can send (shared traps of raft-rs 0.7). For each: raft-rs panics on it,
//! and the guard refuses it.

use std::panic::{catch_unwind, AssertUnwindSafe};

use proptest::prelude::*;
use raft::eraftpb::{Entry, MessageType};

use super::*;

fn message(kind: MessageType, term: u64) -> Message {
    let mut message = Message { from: 2, to: 1, term, ..Default::default() };
    message.set_msg_type(kind);
    message
}

/// Hands `message` to node 1 past the guard and tells whether raft-rs panicked.
fn panics_unguarded(mut world: World, message: &Message) -> bool {
    let engine = &mut world.machine(1).engine;
    let now = Now::default();
    catch_unwind(AssertUnwindSafe(|| {
        let _ = engine.raw.step(message.clone());
        let _ = engine.poll(now);
    }))
    .is_err()
}

fn refusal(mut world: World, message: &Message) -> Option<Refused> {
    world.machine(1).engine.handle_message(2, message.clone()).err()
}

#[test]
fn every_message_known_to_panic_raft_rs_is_refused() {
    let term = World::led_by(1, 3).machine(1).engine.status().term;
    let followed = World::led_by(2, 3).machine(1).engine.status().term;
    let unknown = Message { msg_type: 99, ..message(MessageType::MsgAppend, term) };
    let far = |kind, term| {
        let mut message = message(kind, term);
        message.commit = 1_000;
        message.index = 1_000;
        message
    };
    type Case = (&'static str, fn() -> World, Message, Refused);
    let beyond = far(MessageType::MsgAppend, followed);
    let hint =
        Message { index: 2, reject: true, reject_hint: u64::MAX, ..message(MessageType::MsgAppendResponse, term) };
    let cases: [Case; 7] = [
        ("a type that does not exist", || World::led_by(2, 3), unknown, Refused::Type),
        ("an empty proposal", || World::led_by(1, 3), message(MessageType::MsgPropose, term), Refused::Type),
        ("an empty read request", || World::led_by(1, 3), message(MessageType::MsgReadIndex, 0), Refused::Field),
        (
            "a heartbeat beyond the end of the log",
            || World::led_by(2, 3),
            far(MessageType::MsgHeartbeat, followed + 9),
            Refused::LostLog,
        ),
        (
            "a transfer asked of a follower",
            || World::led_by(2, 3),
            message(MessageType::MsgTransferLeader, followed),
            Refused::Type,
        ),
        ("an append of term zero beyond the log", || World::led_by(2, 3), beyond, Refused::Field),
        // Only where additions are checked, as in tests.
        ("a hint at the end of all numbers", just_elected, hint, Refused::Field),
    ];
    for (what, world, message, expected) in cases {
        assert!(panics_unguarded(world(), &message), "raft-rs no longer panics on {what}: is the guard still needed?");
        assert_eq!(refusal(world(), &message), Some(expected), "{what}");
    }
}

/// Node 1 leads and has heard nothing of the others since.
fn just_elected() -> World {
    let mut world = World::led_by(1, 3);
    let progress = world.machine(1).engine.raw.raft.mut_prs().get_mut(2).unwrap();
    progress.become_probe();
    progress.next_idx = 3;
    progress.matched = 1;
    world
}

/// The leader appends, hands leadership over and grants its vote, all before node 1 has fsynced what was appended.
#[test]
fn a_vote_before_the_log_is_durable_is_refused() {
    let hostile = |guarded: bool| {
        let mut world = World::led_by(2, 3);
        let status = world.machine(1).engine.status();
        let entry = Entry { index: status.last_index + 1, term: status.term, ..Default::default() };
        let mut append = message(MessageType::MsgAppend, status.term);
        (append.index, append.log_term, append.entries) = (status.last_index, status.term, vec![entry]);
        let timeout = message(MessageType::MsgTimeoutNow, status.term);
        let vote = message(MessageType::MsgRequestVoteResponse, status.term + 1);
        let engine = &mut world.machine(1).engine;
        engine.handle_message(2, append).unwrap();
        engine.handle_message(2, timeout).unwrap();
        if guarded {
            assert_eq!(engine.handle_message(2, vote).err(), Some(Refused::UnaskedVote));
        } else {
            let _ = engine.raw.step(vote);
        }
    };
    assert!(catch_unwind(|| hostile(false)).is_err(), "raft-rs no longer panics: is the guard still needed?");
    hostile(true);
}

#[test]
fn a_read_that_crosses_the_end_of_a_leadership_is_dropped_and_a_flood_of_them_is_bounded() {
    let read = |sequence| {
        let mut read = message(MessageType::MsgReadIndex, 0);
        read.entries = vec![Entry { data: crate::engine::reads::context(2, 1, sequence), ..Default::default() }];
        read
    };
    assert_eq!(refusal(World::led_by(2, 3), &read(1)), Some(Refused::NotLeader));
    let mut world = World::led_by(1, 3);
    let engine = &mut world.machine(1).engine;
    let refused = (0..1_000_000).find_map(|sequence| engine.handle_message(2, read(sequence)).err());
    assert_eq!(refused, Some(Refused::ReadFlood));
    world.settle();
    assert_eq!(world.machine(1).engine.handle_message(2, read(0)), Ok(()), "answered reads make room");
}

#[test]
fn proposals_and_local_messages_never_come_from_the_network() {
    let term = World::led_by(1, 3).machine(1).engine.status().term;
    for kind in [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
        MessageType::MsgSnapshot,
        MessageType::MsgPropose,
        MessageType::MsgTransferLeader,
    ] {
        assert_eq!(refusal(World::led_by(1, 3), &message(kind, term)), Some(Refused::Type), "{kind:?}");
    }
}

#[test]
fn a_message_must_be_of_the_peer_that_sent_it() {
    let term = World::led_by(1, 3).machine(1).engine.status().term;
    let good = message(MessageType::MsgHeartbeatResponse, term);
    assert_eq!(refusal(World::led_by(1, 3), &good), None);
    assert_eq!(refusal(World::led_by(1, 3), &Message { from: 3, ..good.clone() }), Some(Refused::Address));
    assert_eq!(refusal(World::led_by(1, 3), &Message { to: 2, ..good.clone() }), Some(Refused::Address));
    let mut world = World::led_by(1, 3);
    let stranger = Message { from: 9, ..good };
    assert_eq!(world.machine(1).engine.handle_message(9, stranger).err(), Some(Refused::Stranger));
    let mut command = Command::new(b"");
    command.set_origin(3, 1, 1);
    assert!(!world.machine(1).engine.handle_forwarded(2, command), "a command under somebody else's name");
}

#[test]
fn damaged_fields_are_refused() {
    let term = World::led_by(2, 3).machine(1).engine.status().term;
    let entry = |index, term| Entry { index, term, ..Default::default() };
    let append = |index, log_term, entries: &[Entry]| {
        let mut message = message(MessageType::MsgAppend, term);
        message.index = index;
        message.log_term = log_term;
        message.entries = entries.to_vec();
        message
    };
    for (what, message) in [
        ("an entry of no known type", append(2, term, &[Entry { entry_type: 9, ..entry(3, term) }])),
        ("a gap", append(2, term, &[entry(3, term), entry(5, term)])),
        ("not behind the previous index", append(2, term, &[entry(4, term)])),
        ("terms that fall", append(2, term, &[entry(3, term), entry(4, term - 1)])),
        ("a term beyond the message's", append(2, term, &[entry(3, term + 1)])),
        ("an entry older than the one before it", append(2, term, &[entry(3, term - 1)])),
        ("term zero", append(2, 0, &[entry(3, 0)])),
        ("a handover by somebody who does not lead", Message { from: 3, ..message(MessageType::MsgTimeoutNow, term) }),
        ("the last index there is", append(u64::MAX, term, &[])),
        ("no previous term", append(2, 0, &[])),
        ("an index out of reach", append(u64::MAX - 1, term, &[])),
        ("no term", Message { term: 0, ..append(2, term, &[]) }),
        ("a term out of reach", Message { term: u64::MAX, ..append(2, term, &[]) }),
        ("a read request with a term", message(MessageType::MsgReadIndex, term)),
        ("a read answer without a context", message(MessageType::MsgReadIndexResp, term)),
    ] {
        let refused = World::led_by(2, 3).machine(1).engine.handle_message(message.from, message);
        assert_eq!(refused, Err(Refused::Field), "{what}");
    }
}

/// raft-rs believes it while it probes, as it does behind a new connection, and would send again what is there (#555).
#[test]
fn a_reject_that_an_acknowledgement_overtook_does_not_move_the_peer_back() {
    let mut world = World::led_by(1, 3);
    world.propose(1, 1, b"x");
    world.settle();
    world.machine(1).engine.handle_route(2);
    let status = world.machine(1).engine.status();
    let mut late = message(MessageType::MsgAppendResponse, status.term);
    late.index = status.last_index;
    late.reject = true;
    assert_eq!(world.machine(1).engine.handle_message(2, late.clone()).err(), Some(Refused::Stale));
    let follower = |world: &mut World| {
        let progress = world.machine(1).engine.raw.raft.prs().get(2).unwrap();
        (progress.matched, progress.next_idx)
    };
    assert_eq!(follower(&mut world), (status.last_index, status.last_index + 1));
    world.machine(1).engine.step_unguarded(late);
    let (matched, next) = follower(&mut world);
    assert!(next <= matched, "raft-rs no longer falls back: is the guard still needed?");
}

#[test]
fn a_read_under_another_nodes_context_is_refused() {
    let mut world = World::led_by(1, 3);
    let mut read = message(MessageType::MsgReadIndex, 0);
    read.entries = vec![Entry { data: vec![0; 24], ..Default::default() }];
    assert_eq!(world.machine(1).engine.handle_message(2, read).err(), Some(Refused::Field));
}

#[test]
fn an_acknowledgement_of_entries_that_do_not_exist_is_refused() {
    let mut world = World::led_by(1, 3);
    let status = world.machine(1).engine.status();
    let mut lie = message(MessageType::MsgAppendResponse, status.term);
    lie.index = status.last_index + 1;
    assert_eq!(world.machine(1).engine.handle_message(2, lie).err(), Some(Refused::UnknownEntries));
    world.propose(1, 1, b"x");
    world.settle();
    world.tick(4);
    assert_eq!(world.agreed(), [b"x"], "node 2 is still sent what it has not");
}

/// What a hostile member says: any type, with the numbers that matter around here.
fn lie() -> impl Strategy<Value = Message> {
    let number = || prop_oneof![8 => 0..9u64, 1 => Just(1_000u64), 1 => Just(u64::MAX), 1 => Just(u64::MAX >> 8)];
    let entry = (number(), number(), 0..4i32, any::<bool>()).prop_map(|(index, term, entry_type, command)| {
        let data = if command { Command::new(b"lie").into_bytes() } else { Vec::new() };
        Entry { index, term, entry_type, data, ..Default::default() }
    });
    let numbers = [number(), number(), number(), number(), number(), number(), number()];
    (0..21i32, numbers, any::<bool>(), prop::collection::vec(entry, 0..3), any::<bool>()).prop_map(
        |(msg_type, numbers, reject, mut entries, tidy)| {
            let [term, log_term, index, commit, commit_term, reject_hint, request_snapshot] = numbers;
            if tidy {
                // A lie that looks right.
                for (at, entry) in entries.iter_mut().enumerate() {
                    (entry.index, entry.entry_type) = (index.saturating_add(1 + at as u64), 0);
                    entry.term = term;
                }
            }
            Message {
                msg_type,
                to: 1,
                from: 2,
                term,
                log_term,
                index,
                commit,
                commit_term,
                entries,
                reject,
                reject_hint,
                request_snapshot: if tidy { 0 } else { request_snapshot },
                ..Default::default()
            }
        },
    )
}

proptest! {
    /// One member lies as it likes, to a leader, a follower or a candidate, with the disk ahead or behind. Whatever it says
    /// may stop the node (a log that no honest leader writes), but never makes it panic.
    #[test]
    fn no_lie_of_a_member_makes_raft_rs_panic(
        leader in 1..4u64,
        candidate in any::<bool>(),
        lies in prop::collection::vec((lie(), 0..8u8), 1..40),
    ) {
        let mut world = World::led_by(leader, 3);
        let machine = world.machine(1);
        if candidate {
            let _ = machine.engine.raw.campaign();
        }
        let mut numbers = Vec::new();
        for (mut lie, then) in lies {
            if then & 1 == 1 && lie.msg_type != MessageType::MsgReadIndex as i32 {
                lie.term = machine.engine.status().term + u64::from(then >> 2);
            }
            let _ = machine.engine.handle_message(2, lie);
            if then & 2 == 2 {
                machine.engine.handle_tick();
            }
            if then & 4 == 4 {
                let Ok(effects) = machine.engine.poll(Now::default()) else { return Ok(()) };
                numbers.extend(effects.iter().filter_map(|effect| match effect {
                    Effect::Persist(persist) => Some(persist.number),
                    _ => None,
                }));
                if then & 1 == 1 {
                    numbers.drain(..).for_each(|number| machine.engine.handle_persisted(number));
                }
            }
        }
    }
}

/// Found by the fuzz target `peers`: the log's writer refused it, and the node stopped.
#[test]
fn a_snapshot_that_contradicts_what_is_committed_is_refused() {
    let mut world = World::led_by(2, 3);
    let term = world.machine(1).engine.status().term;
    let (index, of_term) = (BOOTSTRAP.0, BOOTSTRAP.1 + 1);
    let conf_state = raft::eraftpb::ConfState { voters: vec![1, 2, 3], ..Default::default() };
    let name = SnapshotName { group: APPLICATION_GROUP, index, term: of_term, bytes: 1, checksum: 1 };
    let mut message = Message { from: 2, to: 1, term, ..Default::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (index, of_term);
    metadata.set_conf_state(conf_state.clone());
    let meta = snapshot::Meta { conf_state, ..Default::default() };
    let refused = world.machine(1).engine.handle_snapshot(2, message, name, meta);
    assert_eq!(refused, Err(Refused::Field));
}
