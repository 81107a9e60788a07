//! Snapshots: where they are taken, what they carry, and what is left of a log (rules C1 to C5, D1, D2, S5).

use raft::eraftpb::ConfState;
use raft::Storage;

use super::*;

fn payload(number: u64) -> Vec<u8> {
    format!("command {number}").into_bytes()
}

fn propose(world: &mut World, id: NodeId, numbers: std::ops::Range<u64>) {
    for number in numbers {
        world.propose(id, number, &payload(number));
        world.settle();
    }
}

/// A cluster led by node 1, whose node 3 has missed what a snapshot now stands for.
fn behind(trail: u64) -> World {
    let mut world = World::with(3, SnapshotPolicy { trail, ..ON_DEMAND });
    world.elect(1);
    world.isolate(3);
    propose(&mut world, 1, 1..6);
    world.machine(1).engine.handle_snapshot_call(100, u64::MAX);
    world.tick(3);
    world
}

fn catch_up(world: &mut World) {
    world.heal();
    world.tick(2 * ELECTION_TICKS);
}

#[test]
fn c1_the_log_is_compacted_behind_a_snapshot_and_keeps_its_trail() {
    for trail in [0, 2, 1000] {
        let mut world = behind(trail);
        let machine = world.machine(1);
        let status = machine.engine.status();
        assert_eq!(machine.snapshots, [(100, status.applied)]);
        assert_eq!(status.snapshot_index, status.applied);
        let begin = status.applied.saturating_sub(trail).max(BOOTSTRAP.0);
        assert_eq!(status.first_index, begin + 1, "trail {trail}");
        assert_eq!(machine.state.truncated.0, begin, "and so on the disk");
        assert_eq!(named_snapshot(&machine.state).map(|name| name.index), Some(status.applied));
    }
}

#[test]
fn a_follower_that_needs_more_than_the_log_holds_gets_the_snapshot_and_what_follows() {
    for (trail, restored) in [(0, true), (1000, false)] {
        let mut world = behind(trail);
        propose(&mut world, 1, 6..9);
        catch_up(&mut world);
        assert_eq!(world.agreed().len(), 8, "trail {trail}");
        assert_eq!(!world.machine(3).restored.is_empty(), restored, "trail {trail}");
        propose(&mut world, 3, 9..10);
        assert_eq!(world.agreed().len(), 9);
        assert_eq!(world.machine(1).engine.status().peers.len(), 2);
    }
}

#[test]
fn a_follower_makes_its_leader_take_a_snapshot_if_none_would_help() {
    // The leader's log begins where node 3 cannot follow, as after a restart without its file of a snapshot for it.
    let mut world = behind(0);
    let index = world.machine(1).engine.status().snapshot_index;
    let members = ConfState { voters: vec![1, 2], ..Default::default() };
    let name = *world.machine(1).files.keys().next_back().unwrap();
    world.machine(1).engine.raw.mut_store().set_snapshot(name, members);
    propose(&mut world, 1, 6..8);
    catch_up(&mut world);
    assert!(world.machine(3).restored.iter().all(|restored| *restored > index), "{:?}", world.machine(3).restored);
    assert_eq!(world.agreed().len(), 7);
}

#[test]
fn the_log_is_kept_from_a_snapshot_that_is_under_way_on() {
    let mut world = behind(0);
    world.heal();
    // The snapshot leaves, and is slow.
    let mut under_way = Vec::new();
    for _ in 0..2 * ELECTION_TICKS {
        world.tick_without(3, &mut under_way);
    }
    let index = world.machine(1).engine.status().snapshot_index;
    assert!(under_way.iter().any(|(_, _, packet)| matches!(packet, Packet::Snapshot(name, _) if name.index == index)));
    for number in 10..20 {
        propose(&mut world, 1, number..number + 1);
        world.machine(1).engine.handle_snapshot_call(100 + number, u64::MAX);
        world.tick_without(3, &mut under_way);
        world.tick_without(3, &mut under_way);
        world.tick_without(3, &mut under_way);
    }
    let status = world.machine(1).engine.status();
    assert!(status.snapshot_index > index + 5);
    assert_eq!(status.first_index, index + 1, "what follows the snapshot is still there");
    for (from, to, packet) in under_way {
        world.deliver(from, to, packet);
    }
    world.tick(2 * ELECTION_TICKS);
    assert_eq!(world.machine(3).restored, [index], "one was enough");
    assert_eq!(world.agreed().len(), 15);
    propose(&mut world, 1, 20..21);
    world.machine(1).engine.handle_snapshot_call(200, u64::MAX);
    world.tick(3);
    let status = world.machine(1).engine.status();
    assert_eq!(status.first_index, status.snapshot_index + 1, "and is compacted when it is back");
}

#[test]
fn c1_the_trail_is_bounded_in_bytes_too() {
    let one = command::HEADER_LEN as u64 + payload(1).len() as u64;
    let mut world = World::with(1, SnapshotPolicy { bytes: 4 * one, trail: 1000, ..ON_DEMAND });
    world.elect(1);
    propose(&mut world, 1, 1..60);
    world.tick(6);
    let status = world.machine(1).engine.status();
    let kept = status.last_index + 1 - status.first_index;
    assert!((4..=12).contains(&kept), "{kept} entries are kept, and 4 make a snapshot due");
    assert!(status.snapshot_index >= status.first_index + 3, "the trail of the newest snapshot");
}

#[test]
fn by_entries_and_by_bytes() {
    let policies = [
        SnapshotPolicy { entries: 4, ..ON_DEMAND },
        SnapshotPolicy { bytes: 4 * (command::HEADER_LEN as u64 + payload(1).len() as u64), ..ON_DEMAND },
    ];
    for policy in policies {
        let mut world = World::with(1, policy);
        world.elect(1);
        propose(&mut world, 1, 1..14);
        let machine = world.machine(1);
        let indexes = machine.files.keys().map(|name| name.index).collect::<Vec<_>>();
        assert!(indexes.len() >= 3, "{indexes:?}");
        assert!(indexes.windows(2).all(|pair| pair[1] - pair[0] == 4), "{indexes:?}");
        assert!(machine.engine.status().last_index - machine.engine.status().first_index <= 4);
    }
    let mut world = World::with(1, SnapshotPolicy { possible: false, entries: 4, ..ON_DEMAND });
    world.elect(1);
    propose(&mut world, 1, 1..14);
    assert!(world.machine(1).files.is_empty(), "an application without snapshot() keeps its whole log");
    world.machine(1).engine.handle_snapshot_call(100, u64::MAX);
    world.tick(3);
    assert!(matches!(world.machine(1).failed.as_slice(), [(100, Failure::Snapshot { .. })]));
}

#[test]
fn c2_a_capture_carries_the_sessions_as_of_its_index_though_the_application_lags() {
    let mut world = World::led_by(1, 3);
    world.isolate(3);
    propose(&mut world, 1, 1..4);
    world.machine(1).application_stalled = true;
    world.machine(1).engine.handle_snapshot_call(100, u64::MAX);
    world.poll(1);
    let marked = world.machine(1).engine.status().applied;
    propose(&mut world, 2, 4..8);
    world.machine(1).application_stalled = false;
    world.tick(1);
    let (name, (meta, applied)) = world.machine(1).files.last_key_value().map(|(n, f)| (*n, f.clone())).unwrap();
    assert_eq!(name.index, marked);
    assert!(applied.iter().all(|(index, ..)| *index <= marked), "the application was asked right there");
    let meta = snapshot::Meta::decode(&meta).unwrap();
    assert!(!meta.sessions.has_applied(2, 1), "what came later is not in it");
    assert!(meta.sessions.has_applied(1, 3));
    // Whoever goes on from it applies what came later, once.
    catch_up(&mut world);
    assert_eq!(world.agreed().len(), 7);
}

#[test]
fn s5_what_an_installed_snapshot_contains_ends_as_applied_without_result() {
    let mut world = World::led_by(1, 3);
    propose(&mut world, 3, 1..2);
    // One that the leader appends, and whose origin hears nothing any more.
    world.propose(3, 2, &payload(2));
    world.poll(3);
    let (_, _, forwarded) = world.network.pop_front().unwrap();
    world.isolate(3);
    world.deliver_anyway(3, 1, forwarded);
    world.settle();
    // And one that never left.
    world.propose(3, 3, &payload(3));
    propose(&mut world, 1, 4..6);
    world.machine(1).engine.handle_snapshot_call(100, u64::MAX);
    world.tick(3);
    let index = world.machine(1).engine.status().snapshot_index;
    catch_up(&mut world);
    assert_eq!(world.machine(3).failed, [(2, Failure::AppliedWithoutResult { index })]);
    assert_eq!(world.machine(3).restored, [index]);
    assert!(world.machine(3).resolved.contains_key(&3), "it was sent again, and has its result");
    assert_eq!(world.agreed().len(), 5);
}

#[test]
fn s5_what_waits_for_a_lagging_application_is_applied_without_result_when_a_snapshot_overtakes_it() {
    let mut world = World::led_by(1, 3);
    world.machine(3).application_stalled = true;
    propose(&mut world, 3, 1..3);
    assert!(world.machine(3).resolved.is_empty());
    world.isolate(3);
    propose(&mut world, 1, 3..6);
    world.machine(1).engine.handle_snapshot_call(100, u64::MAX);
    world.tick(3);
    let index = world.machine(1).engine.status().snapshot_index;
    catch_up(&mut world);
    let failed = [1, 2].map(|token| (token, Failure::AppliedWithoutResult { index }));
    assert_eq!(world.machine(3).failed, failed);
    world.machine(3).application_stalled = false;
    world.tick(1);
    assert_eq!(world.machine(3).restored, [index]);
    assert_eq!(world.agreed().len(), 5);
    assert!(!world.machine(3).engine.has_pending_calls());
}

#[test]
fn what_a_deposed_leader_appended_in_vain_is_sent_again_when_a_snapshot_stands_for_the_next_terms_beginning() {
    let mut world = World::led_by(3, 3);
    propose(&mut world, 3, 1..3);
    world.isolate(3);
    propose(&mut world, 3, 3..4);
    world.elect(1);
    propose(&mut world, 1, 4..6);
    world.machine(1).engine.handle_snapshot_call(100, u64::MAX);
    world.tick(3);
    assert!(world.machine(3).resolved.len() == 2 && world.machine(3).failed.is_empty());
    catch_up(&mut world);
    assert!(!world.machine(3).restored.is_empty());
    assert!(world.machine(3).resolved.contains_key(&3), "{:?}", world.machine(3).failed);
    assert_eq!(world.agreed().len(), 5);
}

#[test]
fn d1_the_application_is_not_given_a_snapshot_before_its_node_has_installed_it_durably() {
    let mut world = behind(0);
    world.machine(3).disk_stalled = true;
    catch_up(&mut world);
    assert!(world.machine(3).restored.is_empty(), "a state machine that is durable itself would be ahead of its log");
    let batch = world.machine(3).unsynced.iter().find(|persist| persist.snapshot.is_some()).cloned().unwrap();
    let name = batch.snapshot.unwrap();
    let hard_state = batch.hard_state.clone().unwrap();
    assert_eq!(batch.truncated, Some((name.index, name.term)), "in one batch: where the log begins, ...");
    assert!(batch.sync && hard_state.term > 1 && hard_state.commit >= name.index, "... and the hard state in full");
    // A crash now goes on from what was there before.
    world.restart(3);
    world.tick(2 * ELECTION_TICKS);
    assert_eq!(world.machine(3).restored, [name.index]);
    assert_eq!(world.agreed().len(), 5);
}

#[test]
fn a_node_does_not_campaign_before_what_it_installs_is_durable() {
    // raft-rs would look for the entries that the snapshot stands for, and panic.
    let mut world = behind(0);
    world.machine(3).disk_stalled = true;
    catch_up(&mut world);
    assert!(world.machine(3).unsynced.iter().any(|persist| persist.snapshot.is_some()));
    world.isolate(3);
    world.tick(3 * ELECTION_TICKS);
    let (leader, term) = world.machine(1).engine.leader();
    assert_eq!(leader, Some(1));
    let mut hand_over = Message { from: 1, to: 3, term, ..Default::default() };
    hand_over.set_msg_type(raft::eraftpb::MessageType::MsgTimeoutNow);
    assert_eq!(world.machine(3).engine.handle_message(1, hand_over), Err(Refused::Installing));
    world.machine(3).disk_stalled = false;
    catch_up(&mut world);
    assert_eq!(world.agreed().len(), 5);
}

#[test]
fn of_two_snapshots_that_arrive_together_the_later_one_is_installed_in_either_order() {
    for newest_first in [true, false] {
        let mut world = behind(0);
        propose(&mut world, 1, 6..9);
        world.machine(1).engine.handle_snapshot_call(101, u64::MAX);
        world.tick(3);
        let term = world.machine(1).engine.status().term;
        let mut files = world.machine(1).files.clone().into_iter().collect::<Vec<_>>();
        assert_eq!(files.len(), 2);
        let newest = files[1].0.index;
        if newest_first {
            files.reverse();
        }
        for (name, file) in files {
            let meta = snapshot::Meta::decode(&file.0).unwrap();
            let mut message = Message { from: 1, to: 3, term, ..Default::default() };
            message.set_msg_type(raft::eraftpb::MessageType::MsgSnapshot);
            let metadata = message.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (name.index, name.term);
            metadata.set_conf_state(meta.conf_state.clone());
            world.machine(3).files.insert(name, file);
            world.machine(3).engine.handle_snapshot(1, message, name, meta).unwrap();
        }
        world.settle();
        assert_eq!(world.machine(3).restored, [newest]);
        catch_up(&mut world);
        assert_eq!(world.agreed().len(), 8);
    }
}

#[test]
fn d1_a_vote_survives_an_install() {
    let mut world = behind(0);
    catch_up(&mut world);
    let voted = world.machine(3).engine.raw.store().hard_state().clone();
    assert_eq!(world.machine(3).state.hard_state, voted, "the disk holds what raft-rs believes");
    assert_ne!(voted.vote, 0);
}

#[test]
fn c4_a_restart_goes_on_from_the_snapshot_and_replays_what_follows() {
    let mut world = behind(0);
    propose(&mut world, 1, 6..9);
    for id in [1, 2] {
        world.restart(id);
    }
    catch_up(&mut world);
    assert_eq!(world.agreed().len(), 8);
    assert_eq!(world.machine(1).restored.len(), 1, "the application is given the snapshot first");
}

#[test]
fn a_second_copy_of_a_command_from_before_the_snapshot_is_skipped_behind_it() {
    let mut world = World::led_by(1, 3);
    world.propose(2, 1, &payload(1));
    world.poll(2);
    let (_, _, forwarded) = world.network.pop_front().unwrap();
    let Packet::Forward(command) = &forwarded else { panic!("{forwarded:?}") };
    let copy = command.clone();
    world.isolate(3);
    world.deliver_anyway(2, 1, forwarded);
    world.settle();
    world.machine(1).engine.handle_snapshot_call(100, u64::MAX);
    world.tick(3);
    assert!(world.machine(1).engine.handle_forwarded(2, copy));
    world.settle();
    catch_up(&mut world);
    assert_eq!(world.agreed(), [payload(1)]);
    assert!(!world.machine(3).restored.is_empty());
    assert_eq!(world.machine(3).engine.status().duplicates_skipped, 1);
}

#[test]
fn c5_a_reader_behind_the_log_is_told_where_it_begins() {
    let mut world = behind(1);
    let engine = &world.machine(1).engine;
    let begin = engine.status().first_index - 1;
    assert_eq!(engine.read_applied(begin - 1, 1 << 20).unwrap().unwrap_err(), begin);
    let (entries, through) = engine.read_applied(begin, 1 << 20).unwrap().unwrap();
    assert_eq!((entries.len(), through), (1, engine.status().applied));
}

#[test]
fn a_snapshot_that_fails_is_told_and_another_one_is_taken_later() {
    let mut world = World::led_by(1, 1);
    propose(&mut world, 1, 1..3);
    world.machine(1).captures_stalled = true;
    world.machine(1).engine.handle_snapshot_call(100, u64::MAX);
    world.poll(1);
    let name = world.machine(1).captured.pop().unwrap();
    world.machine(1).engine.handle_captured(name.index, Err("no space".into()));
    world.poll(1);
    assert_eq!(world.machine(1).failed, [(100, Failure::Snapshot { reason: "no space".into() })]);
    world.machine(1).captures_stalled = false;
    world.machine(1).engine.handle_snapshot_call(101, u64::MAX);
    world.tick(50);
    assert_eq!(world.machine(1).snapshots, [(101, name.index)]);
}

#[test]
fn a_call_gets_a_snapshot_of_what_it_had_seen_or_later() {
    let mut world = World::led_by(1, 1);
    propose(&mut world, 1, 1..3);
    world.machine(1).captures_stalled = true;
    world.machine(1).engine.handle_snapshot_call(100, u64::MAX);
    world.poll(1);
    let first = world.machine(1).engine.status().applied;
    propose(&mut world, 1, 3..5);
    world.machine(1).engine.handle_snapshot_call(101, u64::MAX);
    world.machine(1).captures_stalled = false;
    world.tick(6);
    let second = world.machine(1).engine.status().applied;
    assert_eq!(world.machine(1).snapshots, [(100, first), (101, second)], "one under way is too early for it");
    world.machine(1).engine.handle_snapshot_call(102, u64::MAX);
    world.tick(3);
    assert_eq!(world.machine(1).snapshots.last(), Some(&(102, second)), "the newest will do");
    let deadline_ns = world.now.boottime_ns + 1;
    propose(&mut world, 1, 5..6);
    world.machine(1).captures_stalled = true;
    world.machine(1).engine.handle_snapshot_call(103, deadline_ns);
    world.poll(1);
    world.tick(1);
    assert!(matches!(world.machine(1).failed.as_slice(), [(103, Failure::TimedOutUnsent { .. })]));
}

#[test]
fn an_older_capture_that_ends_behind_an_install_changes_nothing() {
    let mut world = World::led_by(1, 3);
    propose(&mut world, 1, 1..3);
    world.machine(3).captures_stalled = true;
    world.machine(3).engine.handle_snapshot_call(100, u64::MAX);
    world.settle();
    assert_eq!(world.machine(3).captured.len(), 1);
    world.isolate(3);
    propose(&mut world, 1, 3..6);
    world.machine(1).engine.handle_snapshot_call(101, u64::MAX);
    world.tick(3);
    catch_up(&mut world);
    let installed = world.machine(3).engine.status().snapshot_index;
    world.machine(3).captures_stalled = false;
    world.tick(1);
    assert_eq!(world.machine(3).engine.status().snapshot_index, installed);
    assert_eq!(named_snapshot(&world.machine(3).state).map(|name| name.index), Some(installed));
    assert_eq!(world.agreed().len(), 5);
}

#[test]
fn d2_a_durable_state_machine_is_handed_only_what_it_has_not() {
    let mut world = World::led_by(1, 3);
    propose(&mut world, 1, 1..5);
    let (index, ..) = *world.machine(2).applied.last().unwrap();
    let term = world.machine(2).engine.raw.store().term(index).unwrap();
    world.isolate(2);
    propose(&mut world, 1, 5..7);
    // The log knows of no commit that far: it does from the state machine.
    world.machine(2).state.hard_state.commit = 2;
    world.restart_with(2, Some((index, term)));
    assert_eq!(world.machine(2).engine.status().commit, index);
    catch_up(&mut world);
    assert_eq!(world.agreed().len(), 6, "nothing is applied again, nothing is missing");
    // Sessions were rebuilt meanwhile.
    let digests = [1, 2, 3].map(|id| world.machine(id).engine.leader());
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));
    propose(&mut world, 2, 7..8);
    assert_eq!(world.agreed().len(), 7);
}

#[test]
fn d2_a_state_machine_of_another_log_is_refused() {
    let mut world = World::led_by(1, 1);
    propose(&mut world, 1, 1..5);
    let machine = world.machines.remove(&1).unwrap();
    let last = machine.state.last_index;
    let refused = |durable| {
        let opening = Opening { durable: Some(durable), ..opening(machine.state.clone()) };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        Engine::new(&settings(1, 2, &[1]), opening, machine.disk.reader.clone(), &logger).err().map(|e| e.to_string())
    };
    let term = machine.state.term(last).unwrap();
    assert_eq!(refused((last, term)), None);
    assert!(refused((last, term + 1)).unwrap().contains("an entry of term"));
    assert!(refused((last + 1, term)).unwrap().contains("ends at entry"));
}

#[test]
fn d2_a_state_machine_behind_the_snapshot_is_given_the_snapshot() {
    let mut world = World::led_by(1, 1);
    propose(&mut world, 1, 1..5);
    let (early, ..) = world.machine(1).applied[0];
    let term = world.machine(1).engine.raw.store().term(early).unwrap();
    world.machine(1).engine.handle_snapshot_call(100, u64::MAX);
    world.tick(3);
    let index = world.machine(1).engine.status().snapshot_index;
    world.machine(1).applied.truncate(1);
    world.restart_with(1, Some((early, term)));
    world.tick(2 * ELECTION_TICKS);
    assert_eq!(world.machine(1).restored, [index]);
    assert_eq!(world.agreed().len(), 4);
}

#[test]
fn a_log_that_begins_behind_its_snapshot_is_refused() {
    let mut state = bootstrap();
    (state.truncated, state.last_index, state.hard_state.commit) = ((9, 3), 9, 9);
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let engine = Engine::new(&settings(1, 2, &[1]), opening(state), storage::memory::open().reader, &logger);
    assert!(matches!(engine, Err(Fault::NoSnapshot { begin: 9 })));
}

#[test]
fn a_snapshot_that_is_not_what_its_message_says_is_refused() {
    let mut world = behind(0);
    let (name, file) = world.machine(1).files.last_key_value().map(|(name, file)| (*name, file.clone())).unwrap();
    let meta = snapshot::Meta::decode(&file.0).unwrap();
    let term = world.machine(1).engine.status().term;
    let good = || {
        let mut message = Message { from: 1, to: 3, term, ..Default::default() };
        message.set_msg_type(raft::eraftpb::MessageType::MsgSnapshot);
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (name.index, name.term);
        metadata.set_conf_state(meta.conf_state.clone());
        message
    };
    type Spoil = Box<dyn Fn(&mut Message, &mut snapshot::Meta)>;
    let bad: [(&str, Spoil); 8] = [
        ("another sender", Box::new(|message, _| message.from = 2)),
        ("another receiver", Box::new(|message, _| message.to = 2)),
        ("another type", Box::new(|message, _| message.set_msg_type(raft::eraftpb::MessageType::MsgHeartbeat))),
        ("no metadata", Box::new(|message, _| message.snapshot = None)),
        ("another index", Box::new(|message, _| message.mut_snapshot().mut_metadata().index += 1)),
        ("a term to come", Box::new(|message, _| message.term = 1)),
        ("other members", Box::new(|message, _| message.mut_snapshot().mut_metadata().mut_conf_state().voters.push(9))),
        (
            "no voters",
            Box::new(|message, meta| {
                message.mut_snapshot().mut_metadata().mut_conf_state().voters.clear();
                meta.conf_state.voters.clear();
            }),
        ),
    ];
    for (what, spoil) in bad {
        let (mut message, mut meta) = (good(), meta.clone());
        spoil(&mut message, &mut meta);
        let engine = &mut world.machine(3).engine;
        assert!(engine.handle_snapshot(1, message, name, meta).is_err(), "{what}");
    }
    let engine = &mut world.machine(3).engine;
    assert!(engine.handle_message(1, good()).is_err(), "nor does it come without its file");
    world.machine(3).files.insert(name, file);
    assert!(world.machine(3).engine.handle_snapshot(1, good(), name, meta).is_ok());
    world.settle();
    assert_eq!(world.machine(3).restored, [name.index]);
}
