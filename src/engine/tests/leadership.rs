//! Elections as the application sees them, and replicated time (design decision 8).

use super::*;

#[test]
fn a_new_cluster_elects_its_first_leader_within_an_election_timeout() {
    let mut world = World::new(3);
    world.tick(ELECTION_TICKS);
    assert_eq!(world.machine(1).leadership.leader, Some(1));
    let mut alone = World::new(1);
    alone.tick(2);
    assert!(alone.machine(1).leadership.leading_from.is_some());
}

#[test]
fn leading_begins_behind_the_first_entry_of_the_term() {
    let mut world = World::led_by(1, 3);
    let leadership = world.machine(1).leadership;
    assert_eq!(leadership.leading_from, Some(world.machine(1).engine.status().last_index));
    assert_eq!(world.machine(2).leadership, Leadership { leading_from: None, ..leadership });
}

#[test]
fn a_leader_without_a_quorum_steps_down() {
    let mut world = World::led_by(1, 3);
    world.isolate(1);
    world.tick(2 * ELECTION_TICKS);
    assert_eq!(world.machine(1).leadership.leader, None);
}

#[test]
fn replicated_time_goes_on_from_the_last_entry_in_the_new_leaders_log() {
    let mut world = World::led_by(1, 3);
    world.propose(1, 1, b"a");
    world.settle();
    world.now.boottime_ns += 5_000_000_000;
    world.propose(1, 2, b"b");
    world.settle();
    world.isolate(1);
    // The next leader's machine has just been started.
    world.now.boottime_ns = 1_000;
    world.elect(2);
    world.propose(2, 3, b"c");
    world.settle();
    world.now.boottime_ns += 2_000_000_000;
    world.propose(2, 4, b"d");
    world.settle();
    let stamps = world.machine(2).applied.iter().map(|(_, _, stamp)| *stamp).collect::<Vec<_>>();
    assert_eq!(stamps, [0, 5_000_000_000, 5_000_000_000, 7_000_000_000]);
}

#[test]
fn replicated_time_survives_a_restart_of_everybody() {
    let mut world = World::led_by(1, 3);
    world.propose(1, 1, b"a");
    world.settle();
    world.now.boottime_ns += 5_000_000_000;
    world.propose(1, 2, b"b");
    world.settle();
    for id in 1..=3 {
        world.restart(id);
    }
    world.elect(3);
    world.elect(2);
    world.propose(2, 1, b"c");
    world.settle();
    world.tick(4);
    world.agreed();
    assert_eq!(world.machine(2).applied.last().map(|(_, _, stamp)| *stamp), Some(5_000_000_000));
}

#[test]
fn replicated_time_passes_while_a_leader_has_nothing_to_append() {
    let mut world = World::led_by(1, 3);
    world.tick(1);
    world.now.boottime_ns += 3_600_000_000_000;
    world.propose(1, 1, b"after an hour");
    world.settle();
    assert!(world.machine(1).applied[0].2 >= 3_600_000_000_000);
}
