//! Barriers (rule C6).

use raft::eraftpb::MessageType;

use super::*;

#[test]
fn a_barrier_on_any_node_stands_behind_everything_acknowledged_before() {
    let mut world = World::led_by(1, 3);
    world.propose(1, 1, b"x");
    world.settle();
    let index = world.machine(1).resolved[&1];
    for id in 1..=3 {
        world.read(id, 50);
        world.settle();
        let [(50, at)] = world.machine(id).barriers.as_slice() else { panic!("node {id} has no barrier") };
        assert!(*at >= index);
    }
}

#[test]
fn barriers_that_are_awaited_together_share_one_round() {
    let mut world = World::led_by(1, 3);
    for round in 0..2 {
        for token in 0..100 {
            world.read(2, 100 * round + token);
        }
        world.poll(2);
        let kinds = world.network.iter().filter_map(|(_, _, packet)| match packet {
            Packet::Raft(message) => Some(message.msg_type()),
            Packet::Forward(_) | Packet::Reject(_) | Packet::Snapshot(..) => None,
        });
        let rounds = kinds.filter(|kind| *kind == MessageType::MsgReadIndex).count();
        assert_eq!(rounds, 1, "the leader is asked once for all of them");
        world.settle();
        assert_eq!(std::mem::take(&mut world.machine(2).barriers).len(), 100);
    }
}

#[test]
fn c6_a_barrier_without_a_leader_waits_for_one() {
    let mut world = World::new(3);
    world.read(2, 50);
    world.settle();
    assert!(world.machine(2).barriers.is_empty());
    world.elect(1);
    world.tick(4);
    assert_eq!(world.machine(2).barriers.len(), 1);
}

#[test]
fn an_isolated_leader_serves_no_reads() {
    let mut world = World::led_by(1, 3);
    world.isolate(1);
    world.read(1, 50);
    world.settle();
    assert!(world.machine(1).barriers.is_empty());
    world.machine(2).engine.handle_route_lost(1);
    world.elect(2);
    world.propose(2, 9, b"unseen by the old leader");
    world.settle();
    assert!(world.machine(1).barriers.is_empty());
    world.heal();
    world.tick(4 * ELECTION_TICKS);
    let [(50, at)] = world.machine(1).barriers.as_slice() else { panic!("no barrier") };
    assert!(*at >= world.machines[&2].resolved[&9]);
}

#[test]
fn c6_an_answer_that_is_lost_is_asked_for_again() {
    let mut world = World::led_by(1, 3);
    world.read(2, 50);
    world.poll(2);
    world.network.clear();
    world.tick(ELECTION_TICKS / 2);
    assert!(world.machine(2).barriers.is_empty());
    world.tick(ELECTION_TICKS);
    assert_eq!(world.machine(2).barriers.len(), 1);
}

#[test]
fn a_barrier_waits_no_longer_than_its_deadline_wherever_it_is() {
    let mut world = World::led_by(1, 3);
    let now_ns = world.now.boottime_ns;
    world.isolate(2);
    world.machine(2).engine.handle_read(Reader { token: 50, deadline_ns: now_ns + 5 });
    world.settle();
    assert_eq!(world.machine(2).engine.next_deadline_ns(), now_ns + 5);
    world.now.boottime_ns += 5;
    world.poll(2);
    assert_eq!(
        world.machine(2).failed,
        [(50, Failure::TimedOutUnsent { reason: "a majority did not answer in time".into() })]
    );
    assert!(!world.machine(2).engine.has_pending_calls());
}
