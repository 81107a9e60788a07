//! Rule S4: what may be claimed of a proposal that is given up.

use super::*;

fn refusal_of(boot: u64, number: u64) -> Rejection {
    Rejection { boot, numbers: vec![number], reason: "not the leader".into() }
}

#[test]
fn s4_a_refusal_of_an_earlier_boots_proposal_says_nothing_of_this_boots() {
    let mut world = World::led_by(1, 3);
    world.restart(2);
    world.tick(4);
    world.isolate(3);
    let deadline_ns = world.now.boottime_ns + 10;
    world.machine(2).engine.handle_proposal(7, Command::new(b"x"), deadline_ns);
    world.poll(2);
    let (_, _, forwarded) = world.network.pop_front().unwrap();
    assert!(matches!(&forwarded, Packet::Forward(command) if command.header().boot == 2));
    // The number is the same in both boots.
    world.machine(2).engine.handle_rejection(1, &refusal_of(1, 1));
    world.now.boottime_ns = deadline_ns;
    world.poll(2);
    assert_eq!(world.machine(2).failed, [(7, Failure::TimedOut)]);
    world.deliver(2, 1, forwarded);
    world.settle();
    world.tick(2);
    assert_eq!(world.machine(1).applied.len(), 1, "it was committed after all");
}

#[test]
fn s4_a_late_refusal_of_another_node_leaves_the_attempt_under_way_alone() {
    let mut world = World::led_by(1, 3);
    world.propose(3, 7, b"x");
    world.poll(3);
    world.network.clear();
    world.machine(1).engine.raw.transfer_leader(2);
    world.settle();
    assert_eq!(world.machine(3).leadership.leader, Some(2));
    // The new term made another attempt due, and it is applied; the next one's answer is still to come.
    assert_eq!(world.machine(3).resolved.len(), 1);
    world.propose(3, 8, b"y");
    world.poll(3);
    let under_way = world.network.len();
    let before = world.machine(3).engine.status().reproposals;
    world.machine(3).engine.handle_rejection(1, &refusal_of(1, 2));
    world.machine(3).engine.handle_tick();
    world.poll(3);
    assert_eq!(world.network.len(), under_way, "sent once, and not refused by the node that it was sent to");
    assert_eq!(world.machine(3).engine.status().reproposals, before);
    world.settle();
    world.tick(4);
    assert_eq!(world.agreed().len(), 2);
    assert_eq!(world.machine(1).engine.status().duplicates_skipped, 0);
}

#[test]
fn s4_what_the_leader_itself_could_not_append_was_not_committed() {
    let mut world = World::led_by(1, 3);
    // While leadership is on its way to a node that cannot be reached, the leader takes no proposals.
    world.cut.extend([(1, 3), (3, 1)]);
    world.machine(1).engine.raw.transfer_leader(3);
    let deadline_ns = world.now.boottime_ns + 10;
    world.machine(1).engine.handle_proposal(7, Command::new(b"x"), deadline_ns);
    world.settle();
    assert_eq!(world.machine(1).engine.status().pending_proposals, 1);
    world.now.boottime_ns = deadline_ns;
    world.poll(1);
    let failed = &world.machine(1).failed;
    assert!(matches!(failed[..], [(7, Failure::TimedOutUnsent { .. })]), "{failed:?}");
    world.heal();
    world.tick(4 * ELECTION_TICKS);
    assert!(world.agreed().is_empty());
}

#[test]
fn a_refused_proposal_waits_for_a_tick_or_for_the_next_leader() {
    let mut world = World::led_by(1, 3);
    let refused = |world: &mut World, number| {
        world.propose(3, number, b"x");
        world.poll(3);
        assert!(world.network.pop_back().is_some());
        world.machine(3).engine.handle_rejection(1, &refusal_of(1, number));
        world.settle();
        assert_eq!(world.machine(3).engine.status().pending_proposals, 1, "no ping-pong");
    };
    refused(&mut world, 1);
    world.machine(3).engine.handle_tick();
    world.settle();
    assert_eq!(world.machine(3).resolved.len(), 1);
    refused(&mut world, 2);
    world.machine(1).engine.raw.transfer_leader(2);
    world.settle();
    assert_eq!(world.machine(3).resolved.len(), 2, "no tick has passed");
}
