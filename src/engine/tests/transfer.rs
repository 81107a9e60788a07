//! Leadership goes where it is asked for, or the caller hears why not (Raft thesis 3.10). raft-rs' traps: it takes no
//! proposals meanwhile, ignores what it does not like, says nothing of the end, and panics on a follower that is asked.

use raft::eraftpb::MessageType;

use super::membership::Change;
use super::*;

fn transfer(world: &mut World, id: NodeId, token: Token, to: Option<NodeId>) {
    world.machine(id).engine.handle_transfer(token, to, u64::MAX);
}

fn reason_of(world: &mut World, id: NodeId, token: Token) -> String {
    let failed = world.machine(id).failed.iter().filter(|(failed, _)| *failed == token).collect::<Vec<_>>();
    match failed[..] {
        [(_, Failure::Transfer { reason } | Failure::TimedOutUnsent { reason })] => reason.clone(),
        _ => panic!("{failed:?}"),
    }
}

#[test]
fn leadership_goes_to_whom_the_call_names() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    let term = world.machine(1).leadership.term;
    transfer(&mut world, 1, 7, Some(3));
    world.settle();
    assert_eq!(world.machine(1).transferred, [(7, 3)]);
    assert_eq!(world.machine(1).leadership, Leadership { term: term + 1, leader: Some(3), leading_from: None });
    assert!(world.machine(3).leadership.leading_from.is_some());
    assert!(world.machine(1).failed.is_empty());
}

#[test]
fn without_a_name_whoever_is_furthest_and_can_be_reached_takes_over() {
    let mut world = World::led_by(1, 5);
    world.tick(2);
    // Node 5 is connected and hangs, node 4 is not connected, node 3 has a slow disk.
    world.isolate(5);
    world.isolate(4);
    world.machine(1).engine.handle_route_lost(4);
    world.machine(3).disk_stalled = true;
    world.tick(ELECTION_TICKS);
    for token in 1..=10 {
        world.propose(1, token, b"x");
        world.machine(3).disk_stalled = token > 5;
        world.settle();
    }
    transfer(&mut world, 1, 7, None);
    world.machine(3).disk_stalled = false;
    world.settle();
    assert_eq!(world.machine(1).transferred, [(7, 2)]);
}

#[test]
fn a_call_ends_when_whom_it_names_loses_its_vote_meanwhile() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    world.machine(3).disk_stalled = true;
    world.propose(1, 1, b"x");
    world.settle();
    transfer(&mut world, 1, 7, Some(3));
    world.machine(1).engine.handle_change(8, &[Change::Demote(3)], u64::MAX);
    world.tick(2);
    assert_eq!(world.machine(1).changed, [(8, vec![3])]);
    assert!(reason_of(&mut world, 1, 7).contains("node 3 is no voting member: name one of [1, 2]"));
}

#[test]
fn calls_that_cannot_succeed_end_at_once_with_what_to_do() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    transfer(&mut world, 2, 1, Some(3));
    transfer(&mut world, 1, 2, Some(9));
    transfer(&mut world, 1, 3, Some(1));
    world.machine(1).engine.handle_route_lost(2);
    transfer(&mut world, 1, 4, Some(2));
    world.machine(1).engine.handle_route_lost(3);
    transfer(&mut world, 1, 5, None);
    world.poll(1);
    world.poll(2);
    assert!(reason_of(&mut world, 2, 1).contains("ask node 1"));
    assert!(reason_of(&mut world, 1, 2).contains("name one of [1, 2, 3]"));
    assert_eq!(world.machine(1).transferred, [(3, 1)], "it leads already");
    assert!(reason_of(&mut world, 1, 4).contains("node 2 is not connected"));
    assert!(reason_of(&mut world, 1, 5).contains("no other voting member is connected"));
    assert!(!world.machine(1).engine.has_pending_calls());

    let mut alone = World::led_by(1, 1);
    transfer(&mut alone, 1, 1, None);
    alone.poll(1);
    assert!(reason_of(&mut alone, 1, 1).contains("the only voting member"));
    let mut leaderless = World::new(3);
    transfer(&mut leaderless, 1, 1, None);
    leaderless.poll(1);
    assert!(reason_of(&mut leaderless, 1, 1).contains("knows of no leader"));
}

#[test]
fn a_second_call_joins_the_first_unless_it_names_somebody_else() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    transfer(&mut world, 1, 1, None);
    transfer(&mut world, 1, 2, Some(3));
    transfer(&mut world, 1, 3, Some(2));
    transfer(&mut world, 1, 4, None);
    world.settle();
    assert_eq!(world.machine(1).transferred, [(1, 3), (2, 3), (4, 3)]);
    assert!(reason_of(&mut world, 1, 3).contains("on its way to node 3"));
}

/// raft-rs would begin at once, and take no proposals until the target has caught up.
#[test]
fn a_leader_takes_proposals_while_its_target_is_behind() {
    let mut world = World::led_by(1, 3);
    world.machine(3).disk_stalled = true;
    world.propose(1, 1, b"x");
    world.settle();
    world.tick(1);
    transfer(&mut world, 1, 7, Some(3));
    for token in 2..10 {
        world.propose(1, token, b"x");
        world.propose(2, token, b"y");
        world.tick(1);
    }
    assert_eq!(world.machine(1).resolved.len(), 9);
    assert_eq!(world.machine(2).resolved.len(), 8);
    assert!(world.machine(1).transferred.is_empty());
    world.machine(3).disk_stalled = false;
    world.tick(4);
    assert_eq!(world.machine(1).transferred, [(7, 3)]);
    assert_eq!(world.machine(3).leadership.leader, Some(3));
}

#[test]
fn proposals_that_are_dropped_meanwhile_are_made_again_and_none_fails() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    transfer(&mut world, 1, 7, Some(3));
    world.poll(1);
    for id in 1..=3 {
        world.propose(id, 10, b"x");
    }
    world.settle();
    world.tick(2);
    assert_eq!(world.machine(1).transferred, [(7, 3)]);
    for id in 1..=3 {
        assert_eq!(world.machine(id).resolved.len(), 1, "node {id}");
        assert!(world.machine(id).failed.is_empty());
    }
    assert_eq!(world.agreed().len(), 3);
}

/// raft-rs gives up after an election timeout, and tells nobody.
#[test]
fn a_target_that_does_not_take_over_is_given_up_and_the_caller_hears_of_it() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    world.cut.extend([(1, 3)]);
    transfer(&mut world, 1, 7, Some(3));
    world.tick(ELECTION_TICKS / 2);
    world.propose(1, 8, b"x");
    world.settle();
    assert!(world.machine(1).failed.is_empty() && world.machine(1).resolved.is_empty());
    world.tick(ELECTION_TICKS);
    assert!(reason_of(&mut world, 1, 7).contains("did not take over"));
    assert_eq!(world.machine(1).resolved.len(), 1, "it takes proposals again");
    assert!(world.machine(1).transferred.is_empty());
    assert!(!world.machine(1).engine.has_pending_calls());
}

#[test]
fn a_call_ends_at_its_deadline_and_the_leader_takes_proposals_again() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    world.cut.extend([(1, 3)]);
    let deadline_ns = world.now.boottime_ns + 10;
    world.machine(1).engine.handle_transfer(7, Some(3), deadline_ns);
    world.propose(1, 8, b"x");
    world.settle();
    assert_eq!(world.machine(1).engine.next_deadline_ns(), deadline_ns);
    world.now.boottime_ns = deadline_ns;
    world.settle();
    assert!(reason_of(&mut world, 1, 7).contains("has not taken over yet"));
    world.tick(1);
    assert_eq!(world.machine(1).resolved.len(), 1);

    // A target that is behind is not even asked.
    world.heal();
    world.machine(3).disk_stalled = true;
    world.propose(1, 9, b"x");
    world.settle();
    world.tick(1);
    let deadline_ns = world.now.boottime_ns + 10;
    world.machine(1).engine.handle_transfer(10, Some(3), deadline_ns);
    world.settle();
    world.now.boottime_ns = deadline_ns;
    world.settle();
    let reason = reason_of(&mut world, 1, 10);
    assert!(reason.contains("node 3 has entries through"), "{reason}");
}

#[test]
fn a_connection_that_is_replaced_meanwhile_costs_no_election_timeout() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    transfer(&mut world, 1, 7, Some(3));
    world.poll(1);
    assert!(world.network.iter().any(|(_, to, packet)| {
        *to == 3 && matches!(packet, Packet::Raft(message) if message.get_msg_type() == MessageType::MsgTimeoutNow)
    }));
    // What was on its way is lost.
    world.network.clear();
    world.machine(1).engine.handle_route(3);
    world.settle();
    world.tick(4);
    assert_eq!(world.machine(1).transferred, [(7, 3)]);

    transfer(&mut world, 3, 8, Some(2));
    world.poll(3);
    world.network.clear();
    world.machine(3).engine.handle_route_lost(2);
    world.settle();
    assert!(reason_of(&mut world, 3, 8).contains("node 2 is not connected"));
}

#[test]
fn whoever_wins_the_election_ends_the_call() {
    let mut world = World::led_by(1, 3);
    world.machine(3).disk_stalled = true;
    world.propose(1, 1, b"x");
    world.settle();
    world.tick(1);
    transfer(&mut world, 1, 7, Some(3));
    world.settle();
    world.isolate(1);
    world.machine(3).disk_stalled = false;
    world.settle();
    world.elect(2);
    world.heal();
    world.tick(4);
    assert_eq!(world.machine(1).transferred, [(7, 2)]);
}

/// The target refuses without a word while it has yet to apply a membership change.
#[test]
fn nothing_begins_while_a_membership_change_may_be_unapplied() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    let applied = world.machine(1).engine.raw.raft.raft_log.applied;
    world.machine(1).engine.raw.raft.pending_conf_index = applied + 1;
    transfer(&mut world, 1, 7, Some(3));
    world.settle();
    assert_eq!(world.machine(1).engine.raw.raft.lead_transferee, None);
    world.propose(1, 1, b"x");
    world.settle();
    world.settle();
    assert_eq!(world.machine(1).transferred, [(7, 3)]);
}

/// A follower passes such a message on to the leader, in a name that is not its own; without a leader it panics.
#[test]
fn a_transfer_is_never_asked_for_from_the_network() {
    let mut world = World::led_by(1, 3);
    let term = world.machine(1).leadership.term;
    for to in 1..=3 {
        let from = to % 3 + 1;
        let mut message = Message { from, to, term, ..Default::default() };
        message.set_msg_type(MessageType::MsgTransferLeader);
        assert_eq!(world.machine(to).engine.handle_message(from, message), Err(Refused::Type));
    }
}

#[test]
fn only_the_leader_says_that_it_is_time() {
    let mut world = World::led_by(1, 3);
    let term = world.machine(1).leadership.term;
    let mut message = Message { from: 2, to: 3, term, ..Default::default() };
    message.set_msg_type(MessageType::MsgTimeoutNow);
    assert_eq!(world.machine(3).engine.handle_message(2, message), Err(Refused::Field));
}

#[test]
fn a_leader_that_leaves_hands_over_first() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    let deadline_ns = world.now.boottime_ns + 1_000_000_000;
    world.machine(1).engine.handle_leaving(deadline_ns);
    world.propose(1, 1, b"x");
    world.poll(1);
    assert!(world.machine(1).engine.has_pending_calls());
    world.settle();
    assert!(matches!(world.machine(1).leadership.leader, Some(2 | 3)));
    world.tick(1);
    assert_eq!(world.machine(1).resolved.len(), 1);
    assert!(!world.machine(1).engine.has_pending_calls());
    // Elected once more, it hands over once more.
    let Leadership { term, leader, .. } = world.machine(1).leadership;
    transfer(&mut world, leader.unwrap(), 8, Some(1));
    world.tick(2);
    assert!(world.machine(1).leadership.term >= term + 2);
    assert!(matches!(world.machine(1).leadership.leader, Some(2 | 3)));
}

#[test]
fn a_node_that_cannot_hand_over_leaves_all_the_same() {
    let mut alone = World::led_by(1, 1);
    alone.machine(1).engine.handle_leaving(u64::MAX);
    alone.settle();
    assert!(!alone.machine(1).engine.has_pending_calls());

    let mut follower = World::led_by(1, 3);
    follower.machine(2).engine.handle_leaving(u64::MAX);
    follower.settle();
    assert!(!follower.machine(2).engine.has_pending_calls());

    let mut cut_off = World::led_by(1, 3);
    for peer in [2, 3] {
        cut_off.machine(1).engine.handle_route_lost(peer);
    }
    cut_off.machine(1).engine.handle_leaving(u64::MAX);
    cut_off.settle();
    assert!(!cut_off.machine(1).engine.has_pending_calls());

    // Connected to others that hang: only for so long.
    let mut held_up = World::led_by(1, 3);
    held_up.tick(2);
    held_up.isolate(1);
    let deadline_ns = held_up.now.boottime_ns + 10;
    held_up.machine(1).engine.handle_leaving(deadline_ns);
    held_up.settle();
    assert!(held_up.machine(1).engine.has_pending_calls());
    held_up.now.boottime_ns = deadline_ns;
    held_up.settle();
    assert!(!held_up.machine(1).engine.has_pending_calls());
}

#[test]
fn a_node_that_closes_ends_its_calls() {
    let mut world = World::led_by(1, 3);
    world.machine(3).disk_stalled = true;
    world.propose(1, 1, b"x");
    world.settle();
    world.tick(1);
    transfer(&mut world, 1, 7, Some(3));
    world.settle();
    let effects = world.machine(1).engine.close();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Failed { token: 7, failure: Failure::Closed })));
}

/// raft-rs never confirms a read that was under way when leadership went elsewhere.
#[test]
fn reads_go_on_under_the_next_leader() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    transfer(&mut world, 1, 7, Some(3));
    for id in 1..=3 {
        world.read(id, 20);
    }
    world.settle();
    for id in 1..=3 {
        assert_eq!(world.machine(id).barriers.len(), 1, "node {id}");
    }
}

#[test]
fn a_former_leaders_refusal_does_not_hold_up_what_the_next_one_takes() {
    let mut world = World::led_by(1, 3);
    world.tick(2);
    world.propose(2, 8, b"x");
    world.poll(2);
    let position = world.network.iter().position(|(_, _, packet)| matches!(packet, Packet::Forward(_))).unwrap();
    let (from, to, forwarded) = world.network.remove(position).unwrap();
    transfer(&mut world, 1, 7, Some(3));
    world.settle();
    // It comes to the leader when that leads no more, and goes back.
    world.deliver(from, to, forwarded);
    world.poll(1);
    world.propose(2, 9, b"y");
    while let Some((from, to, packet)) = world.network.pop_front() {
        world.deliver(from, to, packet);
    }
    world.settle();
    assert_eq!(world.machine(2).resolved.len(), 2, "no tick has passed");
}
