use super::*;

fn conf(voters: &[NodeId], learners: &[NodeId]) -> ConfState {
    ConfState { voters: voters.to_vec(), learners: learners.to_vec(), ..Default::default() }
}

fn member(identity: Identity) -> Member {
    Member { identity, address: format!("host:{identity}"), ..Default::default() }
}

fn add(id: NodeId, identity: Identity) -> Change {
    Change::AddLearner { id, member: member(identity) }
}

/// Three voters whose identities are ten times their ids.
fn three() -> Membership {
    Membership::founded(&[1, 2, 3], &(1..=3).map(|id| (id, u128::from(id) * 10)).collect())
}

/// Node 3 was removed by the entry at 9.
fn two_left() -> Membership {
    let mut two = three();
    assert_eq!(two.settle(&conf(&[1, 2], &[]), 9), [3]);
    two
}

fn refused(membership: &Membership, conf: &ConfState, changes: &[Change]) -> String {
    match membership.plan(conf, changes) {
        Err(Unfit::Never(reason)) => reason,
        other => panic!("{changes:?}: {other:?}"),
    }
}

#[test]
fn changes_survive_the_round_trip_and_garbage_is_refused() {
    let metadata: Metadata = [("zone".to_owned(), "b".to_owned())].into();
    let all = [
        add(0, 40),
        Change::AddLearner { id: 9, member: Member { metadata: metadata.clone(), ..member(0) } },
        Change::Promote(4),
        Change::Demote(1),
        Change::Remove(2),
        Change::Update { id: 2, identity: 7, address: String::new(), metadata: None },
        Change::Update { id: 2, identity: 0, address: "x:1".into(), metadata: Some(Metadata::new()) },
        Change::Recover(3),
    ];
    assert_eq!(decode_changes(&encode_changes(&all)).as_deref(), Some(&all[..]));
    assert_eq!(decode_changes(b""), None, "no changes are no change");
    assert_eq!(decode_changes(b"\xff"), None);
    let many = vec![Change::Promote(1); CHANGES_MAX + 1];
    assert_eq!(decode_changes(&encode_changes(&many)), None);
    let without = WireChanges { changes: vec![WireChange { kind: 1, ..Default::default() }] };
    assert_eq!(decode_changes(&without.encode_to_vec()), None, "a new member without a member");
    let newer = WireChanges { changes: vec![WireChange { kind: 77, ..Default::default() }] };
    assert_eq!(decode_changes(&newer.encode_to_vec()), None);
}

#[test]
fn a_membership_survives_the_round_trip_and_damage_is_refused() {
    let mut membership = two_left();
    let metadata = [("a".into(), "b".into())].into();
    membership.members.insert(7, Member { metadata, seeks_vote: true, ..member(70) });
    assert_eq!(Membership::from_stored(membership.stored()).as_ref(), Some(&membership));
    for retired in [vec![3], vec![5, 3], vec![3, 6, 5, 9], vec![3, 3, 3, 3]] {
        let damaged = StoredMembership { retired, ..membership.stored() };
        assert_eq!(Membership::from_stored(damaged.clone()), None, "{damaged:?}");
    }
}

#[test]
fn retired_ids_are_intervals_whatever_order_they_come_in() {
    let mut retired = Retired::default();
    for id in [5, 3, 9, 4, 4, 10, 1] {
        retired.insert(id);
    }
    assert_eq!(retired.intervals(), [(1, 1), (3, 5), (9, 10)]);
    let contained = (0..12).filter(|id| retired.contains(*id)).collect::<Vec<_>>();
    assert_eq!(contained, [1, 3, 4, 5, 9, 10]);
}

#[test]
fn a_new_member_gets_the_next_id_that_nobody_has_ever_had() {
    let plan = three().plan(&conf(&[1, 2, 3], &[]), &[add(0, 40), add(0, 50)]).unwrap();
    assert_eq!(plan.ids, [4, 5]);
    let plan = two_left().plan(&conf(&[1, 2], &[]), &[add(0, 40)]).unwrap();
    assert_eq!(plan.ids, [4], "3 was removed");
    let reason = refused(&two_left(), &conf(&[1, 2], &[]), &[add(3, 40)]);
    assert!(reason.contains("never used again"), "{reason}");
}

#[test]
fn m1_a_known_directory_is_the_member_that_it_is_and_no_other() {
    let (three, conf) = (three(), conf(&[1, 2, 3], &[]));
    let plan =
        three.plan(&conf, &[Change::AddLearner { id: 0, member: Member { identity: 20, ..Default::default() } }]);
    let plan = plan.unwrap();
    assert_eq!((plan.ids.as_slice(), plan.is_noop), (&[2][..], true), "it asks again");
    let reason = refused(&three, &conf, &[add(4, 20)]);
    assert!(reason.contains("node 2's"), "{reason}");
    let reason = refused(&three, &conf, &[add(2, 21)]);
    assert!(reason.contains("wiped or replaced"), "{reason}");
}

#[test]
fn who_joined_by_itself_seeks_a_vote_until_it_gets_one_or_is_told_to_do_without() {
    let joined = Change::AddLearner { id: 0, member: Member { seeks_vote: true, ..member(40) } };
    let (three, founders) = (three(), conf(&[1, 2, 3], &[]));
    let after = |mut from: Membership, before: &ConfState, change: &Change, after: &ConfState| {
        let plan = from.plan(before, std::slice::from_ref(change)).unwrap();
        from.take(plan, after, 5);
        from
    };
    let learns = conf(&[1, 2, 3], &[4]);
    let four = after(three, &founders, &joined, &learns);
    assert!(four.members[&4].seeks_vote);
    let metadata = Some(Metadata::new());
    let renamed = Change::Update { id: 4, identity: 0, address: String::new(), metadata };
    assert!(after(four.clone(), &learns, &renamed, &learns).members[&4].seeks_vote);
    let voter = after(four.clone(), &learns, &Change::Promote(4), &conf(&[1, 2, 3, 4], &[]));
    assert!(!voter.members[&4].seeks_vote, "a vote that it loses later is not asked for again");
    let stays = after(four, &learns, &Change::Demote(4), &learns);
    assert!(!stays.members[&4].seeks_vote);
}

#[test]
fn an_identity_is_bound_once() {
    let mut four = three();
    let plan = four.plan(&conf(&[1, 2, 3], &[]), &[add(4, 0)]).unwrap();
    assert!(four.take(plan, &conf(&[1, 2, 3], &[4]), 5).is_empty());
    let with_learner = conf(&[1, 2, 3], &[4]);
    let bind = |identity| Change::Update { id: 4, identity, address: String::new(), metadata: None };
    let unmet = four.plan(&with_learner, &[Change::Promote(4)]);
    assert!(matches!(unmet, Err(Unfit::NotYet(reason)) if reason.contains("has not connected")));
    let plan = four.plan(&with_learner, &[bind(44)]).unwrap();
    assert!(plan.singles.is_empty() && !plan.is_noop);
    four.take(plan, &with_learner, 6);
    assert_eq!(four.members[&4].identity, 44);
    assert!(four.plan(&with_learner, &[bind(44)]).unwrap().is_noop);
    assert!(refused(&four, &with_learner, &[bind(45)]).contains("another data directory"));
    assert_eq!(four.plan(&with_learner, &[Change::Promote(4)]).unwrap().promoted, [4]);
}

#[test]
fn whoever_asks_again_because_the_answer_was_lost_gets_it() {
    let two = two_left();
    let members = conf(&[1, 2], &[]);
    let known = Change::AddLearner { id: 1, member: Member::default() };
    for change in [Change::Remove(3), Change::Promote(2), known] {
        let plan = two.plan(&members, std::slice::from_ref(&change)).unwrap();
        assert!(plan.is_noop && plan.singles.is_empty(), "{change:?}");
    }
    let learner = two.plan(&conf(&[1], &[2]), &[Change::Demote(2)]).unwrap();
    assert!(learner.is_noop);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let (three, all) = (three(), conf(&[1, 2, 3], &[]));
    for (changes, expected) in [
        (vec![Change::Promote(9)], "not a member"),
        (vec![Change::Demote(9)], "not a member"),
        (vec![Change::Remove(9)], "not a member"),
        (vec![Change::Remove(1), Change::Remove(2), Change::Remove(3)], "nobody would be left"),
        (vec![Change::Demote(1), Change::Demote(2), Change::Demote(3)], "nobody would be left"),
        (vec![add(4, 40), Change::Promote(4)], "promote it when"),
        (vec![add(4, 40), Change::Remove(4)], "cannot be added and removed"),
    ] {
        let reason = refused(&three, &all, &changes);
        assert!(reason.contains(expected), "{changes:?}: {reason}");
    }
    let reason = refused(&two_left(), &conf(&[1, 2], &[]), &[Change::Promote(3)]);
    assert!(reason.contains("was removed"), "{reason}");
    let many = (0..CHANGES_MAX as u128).map(|identity| add(0, 100 + identity)).collect::<Vec<_>>();
    let mut crowded = three.clone();
    for id in 4..=(MEMBERS_MAX as u64 - 1) {
        crowded.members.insert(id, member(u128::from(id) * 1000));
    }
    assert!(refused(&crowded, &all, &many).contains("members at most"));
    let joint = ConfState { voters_outgoing: vec![1, 2], ..all };
    assert!(matches!(three.plan(&joint, &[Change::Remove(3)]), Err(Unfit::NotYet(_))));
}

#[test]
fn who_leaves_in_a_joint_configuration_stays_a_member_until_it_is_left() {
    let mut members = three();
    members.members.insert(4, member(40));
    let plan = members.plan(&conf(&[1, 2, 3], &[4]), &[Change::Promote(4), Change::Remove(3)]).unwrap();
    let joint = plan.conf_change(Vec::new());
    assert_eq!(joint.enter_joint(), Some(false), "left explicitly");
    let entered = ConfState { voters: vec![1, 2, 4], voters_outgoing: vec![1, 2, 3], ..Default::default() };
    assert!(members.take(plan, &entered, 7).is_empty());
    assert!(members.members.contains_key(&3));
    assert_eq!(members.settle(&conf(&[1, 2, 4], &[]), 8), [3]);
    assert!(members.retired.contains(3));
    assert_eq!((members.incarnation, members.version), (1, 8));
}

#[test]
fn m3_a_recovery_counts_more_than_any_number_of_removals() {
    let mut removed = three();
    removed.settle(&conf(&[2, 3], &[]), 5);
    removed.settle(&conf(&[3], &[]), 6);
    let mut recovered = three();
    let plan = recovered.plan(&conf(&[1, 2, 3], &[]), &[Change::Recover(1)]).unwrap();
    let entered = ConfState { voters: vec![1], voters_outgoing: vec![1, 2, 3], ..Default::default() };
    assert_eq!(plan.conf_change(Vec::new()).enter_joint(), Some(false));
    recovered.take(plan, &entered, 5);
    assert_eq!(recovered.settle(&conf(&[1], &[]), 6), [2, 3]);
    assert!(recovered.incarnation > removed.incarnation);
    assert_eq!((recovered.recoveries(), removed.recoveries()), (1, 0));
    // 4 may have been given to somebody in what is lost.
    assert_eq!(recovered.retired.intervals(), [(2, 3), (3 + LOST_IDS, 3 + LOST_IDS)]);
    let plan = recovered.plan(&conf(&[1], &[]), &[add(0, 9)]).unwrap();
    assert_eq!(plan.ids, [4 + LOST_IDS]);
}

#[test]
fn a_call_with_nonsense_in_it_is_refused_before_it_becomes_a_command() {
    let long = Member { address: "x".repeat(ADDRESS_BYTES_MAX + 1), ..Default::default() };
    let much = Member { metadata: [("k".into(), "v".repeat(METADATA_BYTES_MAX))].into(), ..Default::default() };
    for (changes, expected) in [
        (vec![], "1 to 32"),
        (vec![Change::Promote(1); 33], "1 to 32"),
        (vec![Change::Promote(0)], "at least 1"),
        (vec![Change::Remove(1 << 60)], "less than 2**56"),
        (vec![Change::AddLearner { id: 4, member: long }], "255 bytes"),
        (vec![Change::AddLearner { id: 4, member: much }], "4096 bytes"),
    ] {
        let reason = check_changes(&changes).unwrap_err();
        assert!(reason.contains(expected), "{reason}");
    }
    assert_eq!(check_changes(&[add(0, 1)]), Ok(()));
}
