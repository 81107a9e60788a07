//! When the others hear how far everything is committed.

use super::*;
use crate::engine::membership::Change;

fn commits(world: &mut World) -> Vec<u64> {
    let members = world.members.clone();
    members.into_iter().map(|id| world.machine(id).engine.status().commit).collect()
}

#[test]
fn the_next_entries_tell_the_others_what_is_committed() {
    let mut world = World::led_by(1, 3);
    let begin = commits(&mut world)[0];
    for token in 1..=3 {
        world.propose(1, token, b"one after the other");
        world.quieten();
        assert!(world.machine(1).resolved.contains_key(&token), "it waits for nobody to be told");
        assert_eq!(commits(&mut world), [begin + token, begin + token - 1, begin + token - 1]);
    }
}

#[test]
fn where_no_entries_follow_they_are_told_a_little_later() {
    let mut world = World::led_by(1, 3);
    let begin = commits(&mut world)[0];
    let earlier = world.now;
    world.propose(1, 1, b"alone");
    world.quieten();
    let wakes_at_ns = world.machine(1).engine.wakes_at_ns();
    assert!((earlier.boottime_ns + 1..earlier.boottime_ns + 5_000_000).contains(&wakes_at_ns), "{wakes_at_ns}");
    world.now.boottime_ns = wakes_at_ns - 1;
    world.quieten();
    assert_eq!(commits(&mut world), [begin + 1, begin, begin]);
    world.now.boottime_ns = wakes_at_ns;
    world.quieten();
    assert_eq!(commits(&mut world), [begin + 1; 3]);
    assert_eq!(world.machine(1).engine.wakes_at_ns(), u64::MAX, "once");
}

#[test]
fn a_node_whose_command_is_committed_hears_so_at_once() {
    let mut world = World::led_by(1, 3);
    world.propose(2, 20, b"forwarded");
    world.propose(1, 10, b"the leader's");
    world.quieten();
    assert!(world.machine(2).resolved.contains_key(&20));
    // And its own are waited for no less when it has had others'.
    world.propose(1, 11, b"the leader's");
    world.quieten();
    let [leader, follower, _] = commits(&mut world)[..] else { panic!("three nodes") };
    assert_eq!(follower, leader - 1);
}

#[test]
fn nobody_is_told_by_a_node_that_leads_no_more_or_that_is_alone() {
    let mut world = World::led_by(1, 3);
    world.propose(1, 1, b"committed and not told");
    world.quieten();
    assert!(world.machine(1).engine.wakes_at_ns() < u64::MAX);
    world.isolate(1);
    world.elect(2);
    world.tick(4 * ELECTION_TICKS);
    assert_eq!(world.machine(1).engine.wakes_at_ns(), u64::MAX);
    let mut world = World::led_by(1, 1);
    world.propose(1, 1, b"nobody else is there");
    world.quieten();
    assert!(world.machine(1).resolved.contains_key(&1));
    assert_eq!(world.machine(1).engine.wakes_at_ns(), u64::MAX);
}

#[test]
fn whoever_reads_elsewhere_hears_at_once_what_it_is_to_apply_first() {
    let mut world = World::led_by(1, 3);
    world.propose(1, 1, b"written");
    // The leader hears only behind its heartbeats that the one who is to read has the entry, so they do not tell it.
    world.poll(1);
    world.sync(1);
    for (from, to, packet) in std::mem::take(&mut world.network) {
        world.deliver(from, to, packet);
    }
    for id in [2, 3] {
        world.poll(id);
        world.sync(id);
        world.poll(id);
    }
    let (late, others) = std::mem::take(&mut world.network).into_iter().partition(|(from, ..)| *from == 2);
    world.network = others;
    world.quieten();
    let written = world.machine(1).resolved[&1];
    assert!(world.machine(2).engine.status().commit < written);
    world.read(2, 50);
    world.poll(2);
    for packets in [std::mem::take(&mut world.network), late] {
        for (from, to, packet) in packets {
            world.deliver(from, to, packet);
        }
        world.poll(1);
    }
    world.quieten();
    assert_eq!(world.machine(2).barriers, [(50, written)]);
    assert_eq!(world.machine(2).engine.status().commit, written, "and no time has passed");
}

#[test]
fn whoever_changes_members_elsewhere_hears_at_once_that_it_did() {
    let mut world = World::led_by(1, 3);
    let change = Change::Update { id: 2, identity: 0, address: "there:2".into(), metadata: None };
    world.machine(2).engine.handle_change(20, &[change], u64::MAX);
    world.quieten();
    assert_eq!(world.machine(2).changed, [(20, vec![2])], "and no time has passed");
}

#[test]
fn everybody_hears_at_once_that_a_new_leader_has_begun() {
    let mut world = World::led_by(3, 3);
    world.machine(3).engine.raw.transfer_leader(1);
    world.quieten();
    let begins = world.machine(1).leadership.leading_from.unwrap();
    assert_eq!(commits(&mut world), [begins; 3], "and no time has passed");
}
