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

/// Node 1 of three, which nobody urges to campaign.
fn engine(seed: u64) -> Engine {
    let settings = Settings { seed, ..settings(1, 1, &[1, 2, 3]) };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    Engine::new(&settings, opening(bootstrap()), storage::memory::open().reader, &logger).unwrap()
}

/// The timeouts that a node draws while it calls election after election and nobody answers.
fn timeouts(seed: u64) -> Vec<usize> {
    let mut engine = engine(seed);
    let mut drawn = Vec::new();
    for term in 5..30 {
        // Somebody else's request for a vote makes raft-rs draw again.
        let mut message = Message { from: 2, to: 1, term, ..Default::default() };
        message.set_msg_type(raft::eraftpb::MessageType::MsgRequestVote);
        engine.handle_message(2, message).unwrap();
        engine.handle_tick();
        engine.poll(Now::default()).unwrap();
        drawn.push(engine.raw.raft.randomized_election_timeout());
    }
    drawn
}

#[test]
fn election_timeouts_are_drawn_from_the_seed_alone() {
    let drawn = timeouts(7);
    assert!(drawn.iter().all(|ticks| (ELECTION_TICKS..2 * ELECTION_TICKS).contains(ticks)), "{drawn:?}");
    assert!(drawn.iter().collect::<BTreeSet<_>>().len() > 4, "{drawn:?}");
    assert_eq!(drawn, timeouts(7));
    assert_ne!(drawn, timeouts(8));
}

#[test]
fn a_node_without_a_leader_campaigns_when_its_drawn_time_is_over() {
    for seed in 0..20 {
        let mut engine = engine(seed);
        let mut ticks = 0;
        while engine.status().role == "follower" {
            engine.handle_tick();
            ticks += 1;
            engine.poll(Now::default()).unwrap();
        }
        assert!((ELECTION_TICKS..2 * ELECTION_TICKS).contains(&ticks), "seed {seed}: {ticks}");
    }
}
