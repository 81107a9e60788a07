//! Rules S1-S4, through failovers.

use super::*;

#[test]
fn a_proposal_on_any_node_is_applied_once_everywhere_and_resolved_where_it_was_made() {
    let mut world = World::led_by(1, 3);
    for id in 1..=3 {
        world.propose(id, 10 + id, format!("from {id}").as_bytes());
    }
    world.settle();
    world.tick(4);
    assert_eq!(world.agreed().len(), 3);
    for id in 1..=3 {
        assert_eq!(world.machine(id).resolved.keys().collect::<Vec<_>>(), [&(10 + id)]);
        assert!(!world.machine(id).engine.has_pending_calls());
    }
}

#[test]
fn s1_a_second_copy_in_the_log_is_skipped_everywhere() {
    let mut world = World::led_by(1, 3);
    world.propose(2, 1, b"x");
    world.poll(2);
    // The first attempt arrives, but the origin's connection breaks before it learns so: it sends again.
    let (_, _, packet) = world.network.pop_front().unwrap();
    world.deliver(2, 1, packet);
    world.machine(2).engine.handle_route(1);
    world.settle();
    world.tick(4);
    assert_eq!(world.agreed(), [b"x"]);
    for id in 1..=3 {
        assert_eq!(world.machine(id).engine.status().duplicates_skipped, 1, "node {id}");
    }
    assert_eq!(world.machine(2).engine.status().reproposals, 1);
}

#[test]
fn what_is_lost_with_the_leader_is_proposed_again_to_the_next() {
    let mut world = World::led_by(1, 3);
    // The leader appends it and dies before anybody else has it.
    world.isolate(1);
    world.propose(1, 7, b"on the old leader");
    world.settle();
    world.propose(2, 8, b"forwarded into the void");
    world.settle();
    world.machine(2).engine.handle_route_lost(1);
    world.machine(3).engine.handle_route_lost(1);
    world.elect(2);
    world.settle();
    assert_eq!(world.machine(2).resolved.len(), 1);
    assert!(world.machine(1).resolved.is_empty());
    world.heal();
    world.tick(4 * ELECTION_TICKS);
    assert_eq!(world.agreed(), [b"forwarded into the void".to_vec(), b"on the old leader".to_vec()]);
    assert_eq!(world.machine(1).resolved.len(), 1);
}

#[test]
fn what_the_old_leader_had_replicated_is_not_proposed_again() {
    let mut world = World::led_by(1, 3);
    world.propose(2, 7, b"x");
    world.poll(2);
    let (_, _, packet) = world.network.pop_front().unwrap();
    world.deliver(2, 1, packet);
    world.poll(1);
    // Node 2 gets the append, and the leader is gone before it hears the acknowledgement.
    while let Some((from, to, packet)) = world.network.pop_front() {
        world.deliver(from, to, packet);
    }
    world.isolate(1);
    world.settle();
    world.elect(2);
    world.settle();
    let status = world.machine(2).engine.status();
    assert_eq!(world.machine(2).resolved.len(), 1);
    assert_eq!((status.reproposals, status.duplicates_skipped), (0, 0));
}

#[test]
fn s2_what_an_earlier_boot_left_on_the_way_is_skipped() {
    let mut world = World::led_by(1, 3);
    world.propose(2, 1, b"of the first boot");
    world.poll(2);
    let (_, _, late) = world.network.pop_front().unwrap();
    world.restart(2);
    world.tick(4);
    world.propose(2, 1, b"of the second boot");
    world.settle();
    world.deliver(2, 1, late);
    world.settle();
    world.tick(4);
    assert_eq!(world.agreed(), [b"of the second boot"]);
}

#[test]
fn s2_a_copys_command_of_the_same_number_resolves_nothing_here() {
    let mut world = World::led_by(1, 1);
    let mut copied = Command::new(b"of the copy");
    copied.set_origin(1, 1, 1);
    copied.set_nonce(9);
    assert!(world.machine(1).engine.handle_forwarded(1, copied));
    world.propose(1, 7, b"of this node");
    world.poll(1);
    let now = world.now;
    let machine = world.machine(1);
    let written = machine.unsynced.back().unwrap().number;
    machine.engine.handle_persisted(written);
    assert!(matches!(machine.engine.poll(now), Err(Fault::Copied { .. })));
    let handed = machine.engine.hand_out(1 << 16).unwrap();
    assert!(handed.is_none_or(|handed| matches!(handed, HandOut::Apply(batch) if batch.entries.is_empty())));
    assert!(machine.resolved.is_empty());
}

#[test]
fn a_follower_that_is_no_leader_refuses_and_the_origin_finds_the_leader() {
    let mut world = World::led_by(1, 3);
    world.isolate(1);
    world.elect(2);
    // Node 1 still believes in itself; 3 forwards to 2, which has just stepped down in favour of nobody.
    world.propose(3, 5, b"x");
    world.poll(3);
    let (_, to, packet) = world.network.pop_front().unwrap();
    assert_eq!(to, 2);
    let term = world.machine(2).engine.status().term;
    world.machine(2).engine.raw.raft.become_follower(term + 1, raft::INVALID_ID);
    world.deliver(3, 2, packet);
    world.poll(2);
    assert!(world.network.iter().any(|(_, to, packet)| *to == 3 && matches!(packet, Packet::Reject(_))));
    world.heal();
    world.settle();
    world.tick(6 * ELECTION_TICKS);
    assert_eq!(world.agreed(), [b"x"]);
}

#[test]
fn s4_without_a_leader_a_deadline_says_not_committed() {
    let mut world = World::new(3);
    world.isolate(1);
    let deadline_ns = world.now.boottime_ns + 10;
    let engine = &mut world.machine(1).engine;
    engine.handle_proposal(3, Command::new(b""), deadline_ns);
    assert_eq!(engine.next_deadline_ns(), deadline_ns);
    world.now.boottime_ns = deadline_ns;
    world.poll(1);
    let [(3, Failure::TimedOutUnsent { reason })] = world.machine(1).failed.as_slice() else { panic!() };
    assert!(reason.contains("no leader"));
}

#[test]
fn a_deadline_on_the_isolated_leader_says_unknown_and_what_follows_is_skipped() {
    let mut world = World::led_by(1, 3);
    world.isolate(1);
    let deadline_ns = world.now.boottime_ns + 10;
    world.machine(1).engine.handle_proposal(3, Command::new(b"given up"), deadline_ns);
    world.settle();
    world.now.boottime_ns = deadline_ns;
    world.poll(1);
    assert_eq!(world.machine(1).failed, [(3, Failure::TimedOut)]);
    world.heal();
    world.tick(4);
    assert_eq!(world.agreed(), [b"given up"], "unknown may mean applied; nobody else took over");
    assert!(world.machine(1).resolved.is_empty());
}

#[test]
fn every_node_killed_at_once_comes_back_with_everything_acknowledged() {
    let mut world = World::led_by(1, 3);
    for token in 0..100 {
        world.propose(1 + token % 3, token, &token.to_le_bytes());
    }
    world.settle();
    let acknowledged = world.machines.values().map(|machine| machine.resolved.len()).sum::<usize>();
    assert_eq!(acknowledged, 100);
    for id in 1..=3 {
        world.restart(id);
    }
    world.elect(2);
    world.tick(4);
    assert_eq!(world.agreed().len(), 100);
}

#[test]
fn a_node_that_was_down_catches_up() {
    let mut world = World::led_by(1, 3);
    world.isolate(3);
    for token in 0..500 {
        world.propose(1, token, &[7; 100]);
    }
    world.settle();
    world.heal();
    world.tick(4);
    assert_eq!(world.agreed().len(), 500);
}

#[test]
fn too_much_uncommitted_is_refused_and_proposed_again_later() {
    let mut world = World::led_by(1, 3);
    world.isolate(1);
    for token in 0..80 {
        world.propose(1, token, &vec![1; 1 << 20]);
    }
    world.settle();
    let status = world.machine(1).engine.status();
    assert!(status.last_index < 80, "the leader's log stays bounded: {}", status.last_index);
    world.heal();
    world.tick(2 * ELECTION_TICKS);
    world.tick(2 * ELECTION_TICKS);
    world.elect(1);
    world.tick(100);
    assert_eq!(world.agreed().len(), 80);
    assert_eq!(world.machine(1).resolved.len(), 80);
}
