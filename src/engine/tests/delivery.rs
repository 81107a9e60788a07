//! Rules C1 and C5: what the application is shown, and when its calls end.

use super::*;

fn range(world: &mut World, id: NodeId, after: u64) -> (Vec<u64>, u64) {
    let (entries, through) = world.machine(id).engine.read_applied(after, u64::MAX).unwrap().unwrap();
    (entries.iter().map(|applied| applied.index).collect(), through)
}

#[test]
fn c5_a_range_never_shows_what_the_application_has_not_applied() {
    let mut world = World::led_by(1, 3);
    world.propose(1, 1, b"seen");
    world.settle();
    let seen = world.machine(1).resolved[&1];
    world.machine(1).application_stalled = true;
    world.propose(1, 2, b"committed, and on its way");
    world.settle();
    assert!(world.machine(1).engine.status().applied > seen);
    assert_eq!(range(&mut world, 1, 0), (vec![seen], seen));
    assert_eq!(range(&mut world, 1, seen), (vec![], seen));
    world.machine(1).application_stalled = false;
    world.settle();
    assert_eq!(range(&mut world, 1, 0), (vec![seen, seen + 1], seen + 1));
}

#[test]
fn c1_a_call_whose_index_the_application_has_reached_does_not_time_out() {
    let mut world = World::led_by(1, 3);
    world.machine(1).application_stalled = true;
    let deadline_ns = world.now.boottime_ns + 10;
    world.propose(1, 1, b"before the barrier");
    world.settle();
    let at = world.machine(1).engine.status().commit;
    // The barrier is answered only when a later entry is applied already: it waits behind that one.
    world.machine(1).engine.handle_read(Reader { token: 50, deadline_ns });
    world.poll(1);
    let round = std::mem::take(&mut world.network);
    world.propose(1, 2, b"behind the barrier");
    world.machine(1).engine.handle_proposal(3, Command::new(b"late"), deadline_ns);
    world.settle();
    world.network = round;
    world.settle();
    assert_eq!(world.machine(1).barriers, [(50, at)]);
    world.machine(1).engine.handle_application_applied(at);
    world.now.boottime_ns = deadline_ns;
    world.poll(1);
    assert_eq!(world.machine(1).failed, [(3, Failure::TimedOut)], "the barrier stands, what lies behind it is late");
}

#[test]
fn c5_a_range_behind_the_applications_cursor_is_empty_though_the_log_goes_on() {
    let mut world = World::led_by(1, 3);
    for token in 0..10 {
        world.propose(1, token, b"x");
    }
    world.settle();
    world.restart(1);
    // The application begins anew, too.
    world.machine(1).engine.handle_application_applied(BOOTSTRAP.0);
    assert_eq!(range(&mut world, 1, 5), (vec![], 5));
}
