//! Changes of the members (rules M2, M3, S3, and the traps of raft-rs in them).

use raft::eraftpb::{ConfState, MessageType};
use raft::StateRole;

use super::membership::{Change, Member, LOST_IDS};
use super::*;

fn add(id: NodeId) -> Change {
    Change::AddLearner { id, member: Member { identity: u128::from(id), address: "x:1".into(), ..Default::default() } }
}

impl World {
    fn change(&mut self, at: NodeId, token: Token, changes: &[Change]) {
        self.machine(at).engine.handle_change(token, changes, u64::MAX);
    }

    /// Asks `at`, and lets time pass until it is answered.
    fn changed(&mut self, at: NodeId, token: Token, changes: &[Change]) -> Vec<NodeId> {
        self.change(at, token, changes);
        for _ in 0..20 * ELECTION_TICKS {
            self.tick(1);
            let machine = self.machine(at);
            if let Some((_, ids)) = machine.changed.iter().find(|(of, _)| *of == token) {
                return ids.clone();
            }
            assert!(machine.failed.iter().all(|(of, _)| *of != token), "{:?}", machine.failed);
        }
        panic!("never answered: {:?}", self.machine(at).engine.status());
    }

    fn refused(&mut self, at: NodeId, token: Token, changes: &[Change]) -> String {
        self.change(at, token, changes);
        for _ in 0..20 * ELECTION_TICKS {
            self.tick(1);
            let failed = self.machine(at).failed.iter().find(|(of, _)| *of == token);
            if let Some((_, Failure::Refused { reason })) = failed {
                return reason.clone();
            }
        }
        let Machine { failed, changed, .. } = self.machine(at);
        panic!("not refused: {failed:?} {changed:?}");
    }

    fn conf(&mut self, id: NodeId) -> ConfState {
        let mut conf = self.machine(id).engine.conf_state();
        for ids in [&mut conf.voters, &mut conf.learners, &mut conf.voters_outgoing, &mut conf.learners_next] {
            ids.sort_unstable();
        }
        conf
    }

    fn voters(&mut self, id: NodeId) -> (Vec<NodeId>, Vec<NodeId>) {
        let conf = self.conf(id);
        assert!(conf.voters_outgoing.is_empty(), "still joint: {conf:?}");
        (conf.voters, conf.learners)
    }

    fn leader(&mut self) -> NodeId {
        for _ in 0..20 * ELECTION_TICKS {
            let leads = |machine: &Machine| machine.engine.raw.raft.state == StateRole::Leader;
            let leaders = self.machines.iter().filter(|(_, machine)| leads(machine));
            if let Some((id, _)) = leaders.max_by_key(|(_, machine)| machine.engine.raw.raft.term) {
                return *id;
            }
            self.tick(1);
        }
        panic!("nobody leads");
    }
}

#[test]
fn a_learner_is_added_catches_up_and_is_promoted_whichever_node_is_asked() {
    for at in [1, 2] {
        let mut world = World::led_by(1, 3);
        world.propose(1, 1, b"before");
        world.settle();
        world.join(4);
        assert_eq!(world.changed(at, 10, &[add(4)]), [4]);
        assert_eq!(world.voters(4), (vec![1, 2, 3], vec![4]));
        assert_eq!(world.changed(at, 11, &[Change::Promote(4)]), [4]);
        world.propose(4, 12, b"after");
        world.settle();
        for id in 1..=4 {
            assert_eq!(world.voters(id), (vec![1, 2, 3, 4], vec![]));
        }
        assert_eq!(world.agreed(), [b"before".to_vec(), b"after".to_vec()]);
        let membership = world.machine(4).engine.membership().clone();
        assert_eq!(&membership, world.machine(1).engine.membership());
    }
}

#[test]
fn a_learner_that_has_not_caught_up_gets_no_vote_and_the_caller_hears_why() {
    let mut world = World::led_by(1, 3);
    world.join(4);
    world.changed(1, 10, &[add(4)]);
    world.machine(4).disk_stalled = true;
    for number in 0..50 {
        world.propose(1, 100 + number, b"x");
    }
    world.settle();
    let deadline_ns = world.now.boottime_ns + 1_000_000_000;
    world.machine(1).engine.handle_change(11, &[Change::Promote(4)], deadline_ns);
    // Others are not held up by it.
    assert_eq!(
        world.changed(2, 12, &[Change::Update { id: 4, identity: 0, address: "y:2".into(), metadata: None }]),
        [4]
    );
    world.tick(60);
    let failed = world.machine(1).failed.clone();
    let [(11, Failure::TimedOutUnsent { reason })] = failed.as_slice() else { panic!("{failed:?}") };
    assert!(reason.contains("node 4 does not answer"), "its disk does not: {reason}");
    assert_eq!(world.voters(1), (vec![1, 2, 3], vec![4]));
    world.machine(4).disk_stalled = false;
    assert_eq!(world.changed(1, 13, &[Change::Promote(4)]), [4]);
}

#[test]
fn a_learners_acknowledgement_commits_nothing_and_it_never_campaigns() {
    let mut world = World::led_by(1, 3);
    world.join(4);
    world.changed(1, 10, &[add(4)]);
    for id in [2, 3] {
        world.machine(id).disk_stalled = true;
    }
    world.propose(1, 11, b"alone");
    world.settle();
    assert!(!world.machine(1).resolved.contains_key(&11), "committed by one voter and a learner");
    let term = world.machine(4).engine.raw.raft.term;
    world.isolate(1);
    let mut now = raft::eraftpb::Message { from: 1, to: 4, term, ..Default::default() };
    now.set_msg_type(MessageType::MsgTimeoutNow);
    let _ = world.machine(4).engine.handle_message(1, now);
    world.tick(5 * ELECTION_TICKS);
    assert_eq!(world.machine(4).engine.raw.raft.state, StateRole::Follower);
    assert_eq!(world.machine(4).engine.raw.raft.term, term);
}

#[test]
fn s3_what_a_removed_member_proposed_is_skipped_and_its_session_is_gone() {
    let mut world = World::led_by(1, 3);
    world.propose(3, 30, b"as a member");
    world.settle();
    // On its way when the member is removed.
    world.propose(3, 31, b"as a stranger");
    world.poll(3);
    let at = world.network.iter().position(|(.., packet)| matches!(packet, Packet::Forward(_))).unwrap();
    let (_, _, Packet::Forward(command)) = world.network.remove(at).unwrap() else { unreachable!() };
    assert_eq!(world.changed(1, 10, &[Change::Remove(3)]), [3]);
    assert!(!world.machine(1).engine.handle_forwarded(3, command.clone()), "not even taken");
    let mut entry = raft::eraftpb::Entry { data: command.into_bytes(), ..Default::default() };
    entry.set_entry_type(raft::eraftpb::EntryType::EntryNormal);
    assert!(world.machine(1).engine.append_for_test(entry));
    world.propose(1, 11, b"later");
    world.settle();
    world.machines.remove(&3);
    assert_eq!(world.agreed(), [b"as a member".to_vec(), b"later".to_vec()]);
    for id in [1, 2] {
        assert_eq!(world.voters(id), (vec![1, 2], vec![]));
        assert!(world.machine(id).engine.membership().retired.contains(3));
    }
    let reason = world.refused(2, 20, &[add(3)]);
    assert!(reason.contains("never used again"), "{reason}");
    assert_eq!(world.changed(2, 21, &[Change::Remove(3)]), [3], "whoever asks again gets the answer");
}

#[test]
fn m2_a_leader_hands_over_before_it_is_removed_and_the_caller_is_answered() {
    for at in [1, 2] {
        let mut world = World::led_by(1, 3);
        world.propose(1, 1, b"x");
        world.settle();
        world.change(at, 10, &[Change::Remove(1)]);
        world.tick(6);
        let leader = world.leader();
        assert_ne!(leader, 1);
        assert_eq!(world.voters(leader), (vec![2, 3], vec![]), "without waiting for an election timeout");
        if at == 1 {
            // It may have been cut off from what it asked for; then it is told by the others' handshakes.
            let heard = world.machine(1).engine.membership().retired.contains(1);
            assert_eq!(world.machine(1).changed.is_empty(), !heard);
        } else {
            assert_eq!(world.machine(2).changed, [(10, vec![1])]);
        }
        world.propose(2, 11, b"y");
        world.tick(2);
        assert!(world.machine(2).resolved.contains_key(&11));
    }
}

#[test]
fn m2_a_leader_that_commits_its_own_removal_stops_leading_and_does_not_panic() {
    let mut world = World::led_by(1, 3);
    // Node 2 appends the removal of node 1 as leader; node 1 is elected before it is committed.
    world.elect(2);
    world.change(2, 10, &[Change::Remove(1)]);
    world.poll(2);
    world.sync(2);
    world.poll(2);
    let message =
        world.network.iter().position(|(_, to, packet)| *to == 1 && matches!(packet, Packet::Raft(_))).unwrap();
    let (from, to, packet) = world.network.remove(message).unwrap();
    world.network.clear();
    world.deliver(from, to, packet);
    world.poll(1);
    world.sync(1);
    world.poll(1);
    world.network.clear();
    world.isolate(2);
    for _ in 0..20 * ELECTION_TICKS {
        if world.machine(1).engine.membership().retired.contains(1) {
            break;
        }
        world.machine(3).engine.raw.raft.set_randomized_election_timeout(2 * ELECTION_TICKS - 1);
        world.machine(1).engine.raw.raft.set_randomized_election_timeout(ELECTION_TICKS);
        world.tick(1);
    }
    assert!(world.machine(1).engine.membership().retired.contains(1));
    assert_ne!(world.machine(1).engine.raw.raft.state, StateRole::Leader);
    world.heal();
    world.tick(4 * ELECTION_TICKS);
    assert_ne!(world.leader(), 1);
    assert_eq!(world.voters(2), (vec![2, 3], vec![]));
    assert_eq!(world.machine(2).changed, [(10, vec![1])]);
}

#[test]
fn m2_a_cluster_of_two_survives_the_removal_of_either() {
    for (leader, gone) in [(1, 1), (1, 2)] {
        let mut world = World::led_by(leader, 2);
        let at = 3 - gone;
        assert_eq!(world.changed(at, 10, &[Change::Remove(gone)]), [gone]);
        world.machines.remove(&gone);
        world.propose(at, 11, b"alone");
        world.tick(2 * ELECTION_TICKS);
        assert!(world.machine(at).resolved.contains_key(&11));
        assert_eq!(world.voters(at), (vec![at], vec![]));
        let reason = world.refused(at, 12, &[Change::Remove(at)]);
        assert!(reason.contains("nobody would be left"), "{reason}");
    }
}

#[test]
fn several_changes_at_once_go_through_a_joint_configuration_that_is_left_whoever_leads() {
    for crash in [false, true] {
        let mut world = World::led_by(1, 3);
        world.join(4);
        world.changed(1, 10, &[add(4)]);
        world.change(2, 11, &[Change::Promote(4), Change::Remove(3)]);
        if crash {
            // The leader stops as soon as anybody is in the joint configuration.
            for _ in 0..100 {
                let joint = |world: &mut World| (1..=4).any(|id| !world.conf(id).voters_outgoing.is_empty());
                if joint(&mut world) {
                    break;
                }
                for id in 1..=4 {
                    world.poll(id);
                    world.sync(id);
                    if joint(&mut world) {
                        break;
                    }
                }
                if !joint(&mut world) {
                    let packets = std::mem::take(&mut world.network);
                    packets.into_iter().for_each(|(from, to, packet)| world.deliver(from, to, packet));
                }
            }
            world.isolate(1);
        }
        world.tick(8 * ELECTION_TICKS);
        assert_eq!(world.machine(2).changed, [(11, vec![4, 3])], "answered when it is left");
        assert_eq!(world.voters(2), (vec![1, 2, 4], vec![]));
        world.heal();
        world.tick(4 * ELECTION_TICKS);
        for id in [1, 4] {
            assert_eq!(world.voters(id), (vec![1, 2, 4], vec![]));
        }
    }
}

#[test]
fn who_leaves_with_a_joint_configuration_hears_of_it_before_unless_it_is_away() {
    for comes_back in [true, false] {
        let mut world = World::led_by(1, 3);
        world.join(4);
        world.changed(1, 10, &[add(4)]);
        world.change(3, 11, &[Change::Promote(4), Change::Remove(3)]);
        world.poll(3);
        let packets = std::mem::take(&mut world.network);
        packets.into_iter().for_each(|(from, to, packet)| world.deliver(from, to, packet));
        world.isolate(3);
        world.tick(2);
        assert!(!world.conf(1).voters_outgoing.is_empty(), "it is waited for");
        if comes_back {
            world.heal();
            world.tick(2);
            let Machine { engine, changed, .. } = world.machine(3);
            let joint = engine.finish_joint();
            let is_known = joint.iter().any(|effect| matches!(effect, Effect::Changed { token: 11, .. }));
            assert!(*changed == [(11, vec![4, 3])] || is_known);
        }
        world.tick(2 * ELECTION_TICKS);
        assert_eq!(world.voters(1), (vec![1, 2, 4], vec![]));
    }
}

#[test]
fn a_joint_configuration_keeps_all_its_parts_through_a_snapshot_and_a_restart() {
    let mut world = World::led_by(1, 3);
    world.join(4);
    world.changed(1, 10, &[add(4)]);
    world.change(1, 11, &[Change::Promote(4), Change::Demote(3)]);
    // Nobody hears that it can be left.
    for _ in 0..100 {
        world.poll(1);
        world.sync(1);
        if !world.conf(1).voters_outgoing.is_empty() {
            break;
        }
        let packets = std::mem::take(&mut world.network);
        packets.into_iter().for_each(|(from, to, packet)| world.deliver(from, to, packet));
        for id in 2..=4 {
            world.poll(id);
            world.sync(id);
            world.poll(id);
        }
    }
    world.machine(1).engine.handle_snapshot_call(12, u64::MAX);
    for _ in 0..10 {
        world.poll(1);
        world.sync(1);
    }
    assert_eq!(world.machine(1).snapshots.len(), 1);
    let joint = world.conf(1);
    assert_eq!((joint.voters_outgoing.as_slice(), joint.learners_next.as_slice()), (&[1, 2, 3][..], &[3][..]));
    world.restart(1);
    world.tick(6 * ELECTION_TICKS);
    for id in 1..=4 {
        assert_eq!(world.voters(id), (vec![1, 2, 4], vec![3]));
    }
}

#[test]
fn a_node_behind_a_change_follows_a_leader_that_it_does_not_know() {
    let mut world = World::led_by(1, 3);
    world.isolate(3);
    world.join(4);
    world.changed(1, 10, &[add(4)]);
    world.changed(1, 11, &[Change::Promote(4)]);
    world.machines.remove(&1);
    world.heal();
    world.elect(4);
    world.tick(2 * ELECTION_TICKS);
    assert_eq!(world.voters(3), (vec![1, 2, 3, 4], vec![]));
    assert_eq!(world.machine(3).leadership.leader, Some(4));
}

#[test]
fn a_change_takes_effect_once_though_it_is_sent_again() {
    let mut world = World::led_by(1, 3);
    world.change(3, 10, &[Change::AddLearner { id: 0, member: Member::default() }]);
    world.poll(3);
    let at = world.network.iter().position(|(.., packet)| matches!(packet, Packet::Forward(_))).unwrap();
    let (_, _, Packet::Forward(command)) = world.network.remove(at).unwrap() else { unreachable!() };
    // Two leaders append a copy each.
    assert!(world.machine(1).engine.handle_forwarded(3, command.clone()));
    world.settle();
    assert!(world.machine(1).engine.handle_forwarded(3, command));
    world.settle();
    assert_eq!(world.machine(3).changed, [(10, vec![4])]);
    assert_eq!(world.voters(2), (vec![1, 2, 3], vec![4]), "and not 5 as well");
}

#[test]
fn a_snapshot_brings_the_members_and_who_was_one() {
    let mut world = World::led_by(1, 3);
    world.changed(1, 10, &[Change::Remove(3)]);
    world.machines.remove(&3);
    world.machine(1).engine.handle_snapshot_call(11, u64::MAX);
    world.tick(2);
    assert_eq!(world.machine(1).snapshots.len(), 1);
    world.join(4);
    // The snapshot that there is does not know of node 4, which would refuse it (raft-rs #472).
    world.changed(1, 12, &[add(4)]);
    world.changed(1, 13, &[Change::Promote(4)]);
    assert_eq!(world.machine(4).restored.len(), 1);
    assert_eq!(world.voters(4), (vec![1, 2, 4], vec![]));
    assert!(world.machine(4).engine.membership().retired.contains(3));
    let membership = world.machine(4).engine.membership().clone();
    assert_eq!(&membership, world.machine(1).engine.membership());
}

#[test]
fn a_recovery_leaves_one_voter_and_retires_the_rest() {
    let mut world = World::led_by(1, 3);
    assert_eq!(world.changed(1, 10, &[Change::Recover(1)]), [1]);
    assert_eq!(world.voters(1), (vec![1], vec![]));
    assert_eq!(world.machine(1).engine.membership().recoveries(), 1);
    assert_eq!(world.machine(1).engine.membership().retired.intervals(), [(2, 3), (3 + LOST_IDS, 3 + LOST_IDS)]);
}

#[test]
fn m2_others_hear_of_a_removal_when_it_is_durable_since_nobody_may_be_left_to_say_so() {
    let mut world = World::led_by(1, 2);
    world.change(1, 10, &[Change::Remove(2)]);
    for _ in 0..10 {
        world.poll(1);
        let machine = world.machine(1);
        let version = machine.engine.membership().version;
        if machine.engine.conf_state().voters == [1] {
            let is_saved = |persist: &Persist| {
                persist.sync && persist.hard_state.as_ref().is_some_and(|hard_state| hard_state.commit >= version)
            };
            assert!(machine.unsynced.iter().any(is_saved), "{:?}", machine.unsynced);
            assert!(machine.published.is_empty(), "others hear of it before it is durable");
            world.sync(1);
            world.poll(1);
            assert_eq!(world.machine(1).published, [version]);
            return;
        }
        world.sync(1);
        let packets = std::mem::take(&mut world.network);
        packets.into_iter().for_each(|(from, to, packet)| world.deliver(from, to, packet));
        world.poll(2);
        world.sync(2);
        world.poll(2);
        let packets = std::mem::take(&mut world.network);
        packets.into_iter().for_each(|(from, to, packet)| world.deliver(from, to, packet));
    }
    panic!("node 2 was not removed: {:?}", world.machine(1).engine.status());
}

#[test]
fn a_leader_that_is_to_leave_and_one_that_closes_do_not_hand_over_to_each_other_for_ever() {
    let mut world = World::led_by(3, 3);
    world.join(4);
    world.changed(3, 10, &[add(4)]);
    world.tick(4);
    world.isolate(2);
    let term = |world: &mut World| world.machine(3).engine.raw.raft.term;
    let before = term(&mut world);
    // Neither has anybody else to hand over to.
    world.machine(1).engine.handle_leaving(u64::MAX);
    world.change(4, 11, &[Change::Remove(3)]);
    world.tick(4 * ELECTION_TICKS);
    let terms = term(&mut world) - before;
    assert!(terms <= 10, "{terms} terms in four election timeouts");
    world.heal();
    world.tick(8 * ELECTION_TICKS);
    assert_eq!(world.machine(4).changed, [(11, vec![3])]);
    assert_eq!(world.voters(2), (vec![1, 2], vec![4]));
}
