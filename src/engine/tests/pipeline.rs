//! Rules P1-P3: what may leave a node before which fsync.

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, Message, MessageType};

use super::*;

fn sent(world: &World, from: NodeId, kind: MessageType) -> Vec<&Message> {
    let messages = world.network.iter().filter_map(|(sender, _, packet)| match packet {
        Packet::Raft(message) if *sender == from && message.get_msg_type() == kind => Some(message.as_ref()),
        _ => None,
    });
    messages.collect()
}

/// Delivers everything that is on its way to `to`, polling it after each packet.
fn deliver_to(world: &mut World, to: NodeId) {
    let (mine, others) = std::mem::take(&mut world.network).into_iter().partition(|(_, receiver, _)| *receiver == to);
    world.network = others;
    let mine: VecDeque<_> = mine;
    for (from, to, packet) in mine {
        world.deliver(from, to, packet);
        world.poll(to);
    }
}

#[test]
fn p1_a_follower_acknowledges_nothing_before_its_fsync_however_many_readies_follow() {
    let mut world = World::led_by(1, 3);
    let before = world.machine(2).engine.status().last_index;
    world.machine(2).disk_stalled = true;
    world.propose(1, 1, b"x");
    world.poll(1);
    deliver_to(&mut world, 2);
    assert_eq!(world.machine(2).engine.status().last_index, before + 1);
    // Heartbeats make Readies that write nothing.
    for _ in 0..4 {
        world.machine(1).engine.handle_tick();
        world.poll(1);
        deliver_to(&mut world, 2);
        let acknowledged = sent(&world, 2, MessageType::MsgAppendResponse);
        assert!(acknowledged.iter().all(|message| message.index <= before), "{acknowledged:?}");
    }
    world.sync(2);
    world.poll(2);
    let acknowledged = sent(&world, 2, MessageType::MsgAppendResponse);
    assert_eq!(acknowledged.last().map(|message| message.index), Some(before + 1));
}

#[test]
fn p1_a_vote_leaves_only_when_it_is_durable() {
    let mut world = World::new(3);
    world.machine(2).disk_stalled = true;
    for _ in 0..3 * ELECTION_TICKS {
        world.machine(1).engine.handle_tick();
        world.poll(1);
        world.sync(1);
        world.poll(1);
        deliver_to(&mut world, 2);
        deliver_to(&mut world, 1);
        assert_eq!(sent(&world, 2, MessageType::MsgRequestVoteResponse).len(), 0);
        if world.machine(2).unsynced.iter().any(|persist| persist.sync) {
            break;
        }
    }
    let vote = world.machine(2).unsynced.back().cloned().unwrap();
    assert_eq!(vote.hard_state.map(|state| state.vote), Some(1));
    world.sync(2);
    world.poll(2);
    assert_eq!(sent(&world, 2, MessageType::MsgRequestVoteResponse).len(), 1);
}

#[test]
fn the_leader_replicates_before_its_own_fsync_and_counts_itself_after_it() {
    let mut world = World::led_by(1, 3);
    world.machine(1).disk_stalled = true;
    world.isolate(3);
    world.propose(1, 1, b"x");
    world.settle();
    let status = world.machine(1).engine.status();
    assert_eq!(status.peers[0].1.map(|progress| progress.matched), Some(status.last_index), "sent at once");
    assert_eq!(status.commit, status.last_index - 1, "one durable copy of three is no majority");
    world.sync(1);
    world.settle();
    assert_eq!(world.machine(1).resolved.len(), 1);
}

/// By default raft-rs sends one entry a message.
#[test]
fn entries_travel_together_up_to_a_messages_size() {
    let mut world = World::led_by(1, 3);
    for token in 0..100 {
        world.propose(1, token, &[0; 20_000]);
    }
    world.poll(1);
    let to_one = sent(&world, 1, MessageType::MsgAppend).into_iter().filter(|message| message.to == 2);
    let sizes = to_one.map(|message| message.entries.len()).collect::<Vec<_>>();
    assert!(sizes.iter().sum::<usize>() > 50 && sizes.iter().all(|entries| *entries < 60), "{sizes:?}");
    assert!(sizes.len() < 10, "{sizes:?}");
}

#[test]
fn p2_the_hard_state_stands_in_the_batch_of_its_entries() {
    let mut world = World::led_by(1, 3);
    for id in 1..=3 {
        world.machine(id).disk_stalled = true;
    }
    let term = world.machine(1).engine.status().term;
    world.propose(1, 1, b"x");
    world.settle();
    for id in 1..=3 {
        let written = world.machine(id).unsynced.iter().filter(|persist| !persist.entries.is_empty());
        let terms = written.map(|persist| persist.hard_state.as_ref().map(|state| state.term)).collect::<Vec<_>>();
        assert_eq!(terms, [Some(term)], "node {id}");
    }
}

#[test]
fn a_commit_index_alone_is_not_fsynced() {
    let mut world = World::led_by(1, 3);
    world.propose(1, 1, b"x");
    world.settle();
    for id in 1..=3 {
        world.machine(id).disk_stalled = true;
    }
    world.tick(6);
    for id in 1..=3 {
        assert!(world.machine(id).unsynced.iter().all(|persist| !persist.sync), "node {id}");
        let commit = world.machine(id).engine.status().commit;
        let saved = world.machine(id).unsynced.back().and_then(|persist| persist.hard_state.as_ref());
        assert_eq!(saved.map(|state| state.commit), Some(commit), "written all the same, for the next start");
    }
}

#[test]
fn a_sole_voter_does_not_campaign_while_its_entries_are_on_their_way_to_the_disk() {
    let mut world = World::led_by(1, 1);
    let machine = world.machine(1);
    machine.disk_stalled = true;
    world.propose(1, 1, b"x");
    world.poll(1);
    let engine = &mut world.machine(1).engine;
    let term = engine.raw.raft.term;
    engine.raw.raft.become_follower(term + 1, raft::INVALID_ID);
    world.tick(5 * ELECTION_TICKS);
    assert_eq!(world.machine(1).engine.status().role, "follower");
    world.machine(1).disk_stalled = false;
    world.tick(5 * ELECTION_TICKS);
    assert_eq!(world.machine(1).resolved.len(), 1);
}

#[test]
fn a_sole_voter_does_not_campaign_while_entries_wait_for_their_ready() {
    let mut world = World::led_by(1, 1);
    let engine = &mut world.machine(1).engine;
    // Nobody but itself votes in either half of a joint configuration.
    let learner = |node_id| ConfChangeSingle { node_id, change_type: ConfChangeType::AddLearnerNode as i32 };
    let joint = ConfChangeV2 { changes: vec![learner(2), learner(3)], ..Default::default() };
    engine.raw.apply_conf_change(&joint).unwrap();
    let (term, last) = (engine.raw.raft.term, engine.raw.raft.raft_log.last_index());
    let entries = vec![Entry { index: last + 1, term: term + 1, ..Default::default() }];
    let mut append =
        Message { from: 2, to: 1, term: term + 1, index: last, log_term: term, entries, ..Default::default() };
    append.set_msg_type(MessageType::MsgAppend);
    engine.step_unguarded(append);
    for _ in 0..5 * ELECTION_TICKS {
        engine.handle_tick();
    }
    let mut now = Message { from: 2, to: 1, term: term + 1, ..Default::default() };
    now.set_msg_type(MessageType::MsgTimeoutNow);
    assert!(engine.handle_message(2, now).is_err());
    assert_eq!(engine.status().role, "follower");
    world.tick(5 * ELECTION_TICKS);
    assert_eq!(world.machine(1).engine.status().role, "leader");
}

#[test]
fn nothing_of_a_new_term_leaves_a_sole_voter_before_the_term_is_durable() {
    let mut world = World::new(1);
    world.machine(1).disk_stalled = true;
    // A learner makes the first Ready of the leader carry an append beside the new term and vote.
    let engine = &mut world.machine(1).engine;
    let change = raft::eraftpb::ConfChange {
        change_type: raft::eraftpb::ConfChangeType::AddLearnerNode as i32,
        node_id: 2,
        ..Default::default()
    };
    engine.raw.apply_conf_change(&change).unwrap();
    // Later Readies carry heartbeats, and new entries: after a loss of power it would lead the same term again.
    for token in 0..2 * ELECTION_TICKS as u64 {
        world.machine(1).engine.handle_tick();
        world.propose(1, token, b"x");
        world.poll(1);
    }
    assert_eq!(world.machine(1).engine.status().role, "leader");
    assert!(world.network.is_empty(), "{:?}", world.network);
    world.sync(1);
    world.poll(1);
    assert!(!sent(&world, 1, MessageType::MsgAppend).is_empty());
    assert!(!sent(&world, 1, MessageType::MsgHeartbeat).is_empty());
}

#[test]
fn what_was_not_fsynced_is_lost_by_a_crash_and_nothing_acknowledged_is() {
    let mut world = World::led_by(1, 3);
    world.propose(1, 1, b"durable on a majority");
    world.settle();
    world.machine(2).disk_stalled = true;
    world.propose(1, 2, b"too");
    world.settle();
    assert_eq!(world.machine(1).resolved.len(), 2);
    world.machine(2).unsynced.clear();
    world.restart(2);
    world.restart(1);
    world.elect(3);
    world.tick(4);
    assert_eq!(world.agreed().len(), 2);
}
