//! What goes wrong with a message that does not make raft-rs panic, and with one that is refused for nothing.

use raft::eraftpb::{Entry, MessageType};

use super::*;

fn message(kind: MessageType, term: u64) -> Message {
    let mut message = Message { from: 2, to: 1, term, ..Default::default() };
    message.set_msg_type(kind);
    message
}

#[test]
fn a_peer_that_asks_for_a_snapshot_goes_on_being_sent_entries() {
    let mut world = World::led_by(1, 3);
    let status = world.machine(1).engine.status();
    let mut request = message(MessageType::MsgAppendResponse, status.term);
    request.reject = true;
    request.index = status.last_index + 1;
    request.request_snapshot = status.last_index;
    assert_eq!(world.machine(1).engine.handle_message(2, request).err(), Some(Refused::Field));
    world.propose(1, 1, b"x");
    world.settle();
    world.tick(4 * ELECTION_TICKS);
    assert_eq!(world.agreed(), [b"x"]);
}

#[test]
fn an_answer_to_somebody_elses_read_is_refused() {
    let mut world = World::led_by(2, 3);
    let status = world.machine(1).engine.status();
    let context = |node: u64| [node, 1, 1].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let answer = |node| Message {
        index: status.commit,
        entries: vec![Entry { data: context(node), ..Default::default() }],
        ..message(MessageType::MsgReadIndexResp, status.term)
    };
    let engine = &mut world.machine(1).engine;
    assert_eq!(engine.handle_message(2, answer(3)).err(), Some(Refused::Field));
    assert_eq!(engine.handle_message(2, answer(1)).err(), None);
    world.settle();
    assert!(world.machine(1).barriers.is_empty(), "nobody asked");
}

#[test]
fn an_old_leader_hears_of_the_newer_term_whatever_it_believes_of_this_log() {
    let mut world = World::led_by(2, 3);
    let status = world.machine(1).engine.status();
    let mut old = message(MessageType::MsgHeartbeat, status.term - 1);
    old.commit = status.last_index + 1_000;
    assert_eq!(world.machine(1).engine.handle_message(2, old).err(), None);
    world.poll(1);
    let answers = world.network.iter().filter_map(|(_, to, packet)| match packet {
        Packet::Raft(message) => Some((*to, message.get_msg_type(), message.term)),
        _ => None,
    });
    assert_eq!(answers.collect::<Vec<_>>(), [(2, MessageType::MsgAppendResponse, status.term)]);
}

#[test]
fn a_late_acknowledgement_of_entries_that_were_overwritten_accuses_nobody() {
    let mut world = World::led_by(1, 3);
    let term = world.machine(1).engine.status().term;
    // Only the old leader has them, and it loses them to the next.
    world.isolate(1);
    for token in 0..10 {
        world.propose(1, token, b"overwritten");
    }
    world.settle();
    let late = world.machine(1).engine.status().last_index;
    for id in 2..=3 {
        world.machine(id).engine.handle_route_lost(1);
    }
    world.elect(2);
    // Its proposals are made once more behind the next leader's entries: this test looks at it before.
    let engine = &mut world.machine(1).engine;
    engine.close();
    world.heal();
    world.tick(4 * ELECTION_TICKS);
    let status = world.machine(1).engine.status();
    assert!(status.last_index < late && status.role == "follower", "{status:?}");
    let mut acknowledgement = message(MessageType::MsgAppendResponse, term);
    acknowledgement.index = late;
    assert_eq!(world.machine(1).engine.handle_message(2, acknowledgement).err(), None);
}
