//! Messages that a broken, wiped or hostile peer can send (shared traps of raft-rs 0.7). For each: raft-rs panics on it,
//! and the guard refuses it.

use std::panic::{catch_unwind, AssertUnwindSafe};

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
    let follower_term = World::led_by(2, 3).machine(1).engine.status().term;
    let unknown = Message { msg_type: 99, ..message(MessageType::MsgAppend, term) };
    let far = |kind| {
        let mut message = message(kind, term);
        message.commit = 1_000;
        message.index = 1_000;
        message
    };
    type Case = (&'static str, fn() -> World, Message, Refused);
    let cases: [Case; 5] = [
        ("a type that does not exist", || World::led_by(2, 3), unknown, Refused::Type),
        (
            "a request to hand over, to a follower",
            || World::led_by(2, 3),
            message(MessageType::MsgTransferLeader, follower_term),
            Refused::Type,
        ),
        ("an empty proposal", || World::led_by(1, 3), message(MessageType::MsgPropose, term), Refused::Type),
        ("an empty read request", || World::led_by(1, 3), message(MessageType::MsgReadIndex, 0), Refused::Field),
        (
            "a heartbeat beyond the end of the log",
            || World::led_by(2, 3),
            Message { term: term + 9, ..far(MessageType::MsgHeartbeat) },
            Refused::LostLog,
        ),
    ];
    for (what, world, message, expected) in cases {
        assert!(panics_unguarded(world(), &message), "raft-rs no longer panics on {what}: is the guard still needed?");
        assert_eq!(refusal(world(), &message), Some(expected), "{what}");
    }
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
        MessageType::MsgTimeoutNow,
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
        ("the last index there is", append(u64::MAX, term, &[])),
        ("no term", Message { term: 0, ..append(2, term, &[]) }),
        ("a term out of reach", Message { term: u64::MAX, ..append(2, term, &[]) }),
        ("a read request with a term", message(MessageType::MsgReadIndex, term)),
        ("a read answer without a context", message(MessageType::MsgReadIndexResp, term)),
    ] {
        assert_eq!(refusal(World::led_by(2, 3), &message), Some(Refused::Field), "{what}");
    }
}

#[test]
fn a_reject_that_an_acknowledgement_overtook_does_not_move_the_peer_back() {
    let mut world = World::led_by(1, 3);
    world.propose(1, 1, b"x");
    world.settle();
    let status = world.machine(1).engine.status();
    let mut late = message(MessageType::MsgAppendResponse, status.term);
    late.index = status.last_index;
    late.reject = true;
    assert_eq!(world.machine(1).engine.handle_message(2, late).err(), Some(Refused::Stale));
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
