//! When a node campaigns, and when it leaves the others in peace.

use raft::eraftpb::{ConfChange, ConfChangeType};

use super::*;

#[test]
fn a_node_that_comes_back_from_a_partition_does_not_raise_the_term() {
    let mut world = World::led_by(1, 3);
    let term = world.machine(1).engine.status().term;
    world.isolate(3);
    world.tick(10 * ELECTION_TICKS);
    assert_eq!(world.machine(3).engine.status().role, "pre-candidate");
    world.heal();
    world.tick(4 * ELECTION_TICKS);
    for id in 1..=3 {
        assert_eq!(world.machine(id).leadership.leader, Some(1), "node {id}");
        assert_eq!(world.machine(id).engine.status().term, term, "node {id}");
    }
}

#[test]
fn only_the_first_leader_is_elected_in_a_hurry() {
    let mut world = World::new(3);
    world.tick(2);
    assert_eq!(world.machine(1).leadership.leader, Some(1));
    world.isolate(1);
    while world.machine(1).leadership.leader.is_some() {
        world.tick(1);
    }
    for _ in 1..ELECTION_TICKS - 1 {
        world.machine(1).engine.handle_tick();
        world.poll(1);
        assert_eq!(world.machine(1).engine.status().role, "follower", "it waits for an election timeout as all do");
    }
}

#[test]
fn a_node_that_may_not_vote_does_not_campaign() {
    let mut world = World::new(3);
    let demotion = ConfChange { change_type: ConfChangeType::AddLearnerNode as i32, node_id: 1, ..Default::default() };
    let engine = &mut world.machine(1).engine;
    engine.raw.apply_conf_change(&demotion).unwrap();
    for _ in 0..4 * ELECTION_TICKS {
        world.machine(1).engine.handle_tick();
        world.poll(1);
    }
    assert_eq!(world.machine(1).engine.status().role, "follower");
    assert!(world.network.is_empty(), "{:?}", world.network);
}
