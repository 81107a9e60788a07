//! What a connection that comes or goes means to calls and to replication (rule C6).

use super::*;

fn peer_state(world: &mut World, id: NodeId, peer: NodeId) -> &'static str {
    let status = world.machine(id).engine.status();
    let progress = status.peers.iter().find(|(id, _)| *id == peer).and_then(|(_, progress)| *progress);
    progress.unwrap().state
}

/// One trip of everything that is on its way.
fn trip(world: &mut World) {
    for id in world.members.clone() {
        world.poll(id);
        world.sync(id);
        world.poll(id);
    }
    for (from, to, packet) in std::mem::take(&mut world.network) {
        world.deliver(from, to, packet);
    }
}

#[test]
fn c6_a_barrier_lost_with_its_connection_is_asked_for_on_the_next_at_once() {
    let mut world = World::led_by(1, 3);
    world.read(2, 50);
    world.poll(2);
    assert!(!world.network.is_empty());
    world.network.clear();
    world.machine(2).engine.handle_route(1);
    world.settle();
    assert_eq!(world.machine(2).barriers.len(), 1, "no tick has passed");
}

#[test]
fn c6_a_barrier_lost_with_its_leader_is_asked_of_the_next_at_once() {
    let mut world = World::led_by(1, 3);
    world.read(2, 50);
    world.poll(2);
    assert!(!world.network.is_empty());
    world.network.clear();
    world.machine(1).engine.raw.transfer_leader(3);
    world.settle();
    assert_eq!(world.machine(2).leadership.leader, Some(3));
    assert_eq!(world.machine(2).barriers.len(), 1, "no tick has passed");
}

#[test]
fn c6_a_barrier_on_a_leader_that_has_committed_nothing_yet_stands_as_soon_as_it_has() {
    let mut world = World::led_by(3, 3);
    world.machine(3).engine.raw.transfer_leader(1);
    while world.machine(1).engine.status().role != "leader" {
        trip(&mut world);
    }
    assert!(world.machine(1).leadership.leading_from.is_none());
    world.read(1, 50);
    world.poll(1);
    world.settle();
    let leading_from = world.machine(1).leadership.leading_from.unwrap();
    let [(50, at)] = world.machine(1).barriers.as_slice() else { panic!("no barrier, and no tick has passed") };
    assert!(*at >= leading_from);
}

#[test]
fn c6_without_a_route_to_the_leader_nothing_is_sent_to_it() {
    let mut world = World::led_by(1, 3);
    world.machine(2).engine.handle_route_lost(1);
    let deadline_ns = world.now.boottime_ns + 10;
    world.propose(2, 1, b"x");
    world.machine(2).engine.handle_proposal(2, Command::new(b"given up"), deadline_ns);
    world.read(2, 50);
    world.settle();
    assert_eq!(world.machine(2).engine.status().pending_proposals, 2);
    assert!(world.machine(2).barriers.is_empty());
    world.now.boottime_ns = deadline_ns;
    world.poll(2);
    let failed = std::mem::take(&mut world.machine(2).failed);
    assert!(matches!(failed[..], [(2, Failure::TimedOutUnsent { .. })]), "it never left: {failed:?}");
    world.machine(2).engine.handle_route(1);
    world.settle();
    assert_eq!(world.machine(2).resolved.len(), 1);
    assert_eq!(world.machine(2).barriers.len(), 1);
}

#[test]
fn a_peer_whose_connection_is_lost_is_probed_before_it_is_sent_more() {
    let mut world = World::led_by(1, 3);
    world.propose(1, 1, b"x");
    world.settle();
    assert_eq!(peer_state(&mut world, 1, 2), "replicate");
    // What was on its way is lost without a word.
    world.propose(1, 2, b"y");
    world.poll(1);
    world.network.retain(|(_, to, _)| *to != 2);
    world.machine(1).engine.handle_route_lost(2);
    assert_eq!(peer_state(&mut world, 1, 2), "probe");
    assert_eq!(peer_state(&mut world, 1, 3), "replicate");
    world.machine(1).engine.handle_route(2);
    world.tick(4);
    assert_eq!(peer_state(&mut world, 1, 2), "replicate");
    assert_eq!(world.agreed().len(), 2);
}
