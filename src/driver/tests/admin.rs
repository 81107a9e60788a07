//! Operators' tools and whole nodes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::*;
use crate::engine::membership::{self, encode_changes};
use crate::transport::admin_client::{Call, CallError};
use crate::transport::admin_messages::{Answer, Ask, Change, Join, Members, Problem, ProblemKind, Status};

type Outcome = Result<Answer, CallError>;

fn begin(address: &str, ask: Ask, timeout: Duration) -> JoinHandle<Outcome> {
    let call = Call { address: address.to_owned(), cluster: "test".into(), ask, timeout };
    thread::spawn(move || call.run(&AtomicBool::new(false)))
}

fn ask(address: &str, what: Ask) -> Outcome {
    begin(address, what, DEADLINE).join().unwrap()
}

fn problem(outcome: Outcome) -> (ProblemKind, Problem) {
    match outcome {
        Err(CallError::Problem(problem)) => (problem.kind(), problem),
        other => panic!("no problem: {other:?}"),
    }
}

/// The leader, and the others.
fn led(hosts: &mut BTreeMap<u64, Host>) -> (u64, Vec<u64>) {
    for host in hosts.values_mut() {
        host.until("a leader", |host| host.leadership.leader.is_some());
    }
    let leader = hosts[&1].leadership.leader.unwrap();
    hosts.get_mut(&leader).unwrap().until("leads", |host| host.leadership.leading_from.is_some());
    (leader, hosts.keys().copied().filter(|id| *id != leader).collect())
}

#[test]
fn any_node_says_how_it_is_and_who_the_members_are() {
    let (mut hosts, addresses) = cluster(3, None);
    let (leader, _) = led(&mut hosts);
    for (id, address) in &addresses {
        let Ok(Answer::Status(status)) = ask(address, Ask::Status(())) else { panic!("no status") };
        let Status { cluster, role, leader: named, peers, .. } = &*status;
        assert_eq!((status.id, cluster.as_str(), *named, &status.address), (*id, "test", leader, address));
        assert_eq!(role == "leader", *id == leader, "{role}");
        assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
        assert_eq!(peers.len(), 2);
        assert!(peers.iter().all(|peer| peer.matched.is_some() == (*id == leader)), "{peers:?}");
        let Ok(Answer::Members(Members { leader: named, members, .. })) = ask(address, Ask::Members(())) else {
            panic!("no members")
        };
        assert_eq!(named, leader);
        let listed: Vec<_> = members.iter().map(|member| (member.id, &member.address)).collect();
        assert_eq!(listed, addresses.iter().map(|(id, address)| (*id, address)).collect::<Vec<_>>());
        assert!(members.iter().all(|member| member.votes && member.identity.len() == 16));
    }
}

#[test]
fn a_node_that_is_not_formed_says_who_is_missing() {
    let (mut sockets, members) = sockets(3);
    let mut host = Host::start(options(1, &members, Listen::Socket(sockets.remove(0)), None));
    host.until("listens", |host| host.listening);
    let Ok(Answer::Status(status)) = ask(&members[&1], Ask::Status(())) else { panic!("no status") };
    assert_eq!((status.role.as_str(), status.leader), ("forming", 0));
    assert!(status.trouble.is_some_and(|trouble| trouble.contains("node 2") && trouble.contains("node 3")));
    let (kind, problem) = problem(ask(&members[&1], Ask::TransferLeader(0)));
    assert_eq!((kind, problem.leader), (ProblemKind::NotLeader, 0));
    assert!(problem.reason.contains("node 2"), "{}", problem.reason);
    host.close();
}

#[test]
fn the_leader_hands_over_and_the_others_say_whom_to_ask() {
    let (mut hosts, addresses) = cluster(3, None);
    let (leader, others) = led(&mut hosts);
    let to = others[1];
    let (kind, problem) = problem(ask(&addresses[&others[0]], Ask::TransferLeader(to)));
    assert_eq!((kind, problem.leader, &problem.leader_address), (ProblemKind::NotLeader, leader, &addresses[&leader]));
    assert!(problem.reason.contains(&format!("ask node {leader}")), "{}", problem.reason);
    assert_eq!(ask(&problem.leader_address, Ask::TransferLeader(to)), Ok(Answer::Leads(to)));
    hosts.get_mut(&to).unwrap().until("leads", |host| host.leadership.leading_from.is_some());
    let (kind, problem) = self::problem(ask(&addresses[&to], Ask::TransferLeader(9)));
    assert_eq!(kind, ProblemKind::Refused);
    assert!(problem.reason.contains("node 9 is no voting member"), "{}", problem.reason);
}

#[test]
fn what_this_build_cannot_do_is_said() {
    let (mut hosts, addresses) = cluster(1, None);
    led(&mut hosts);
    let (kind, problem) = self::problem(ask(&addresses[&1], Ask::Change(Change::default())));
    assert_eq!(kind, ProblemKind::Unsupported);
    assert!(problem.reason.contains("upgrade"), "{}", problem.reason);
    let (kind, problem) = self::problem(ask(&addresses[&1], Ask::Join(Join::default())));
    assert_eq!(kind, ProblemKind::Refused);
    assert!(problem.reason.contains("its name"), "{}", problem.reason);
    let recover = encode_changes(&[membership::Change::Recover(1)]);
    let (kind, problem) = self::problem(ask(&addresses[&1], Ask::Change(Change { encoded: recover })));
    assert_eq!(kind, ProblemKind::Refused);
    assert!(problem.reason.contains("aioraft recover"), "{}", problem.reason);
    let (kind, problem) = self::problem(ask(&addresses[&1], Ask::Snapshot(())));
    assert_eq!(kind, ProblemKind::Refused);
    assert!(problem.reason.contains("no snapshot()"), "{}", problem.reason);
}

/// A node whose application never gives the snapshot that it is asked for.
fn slow_snapshots() -> (Host, String) {
    let (mut sockets, members) = sockets(1);
    let options = Options { takes_snapshots: true, ..options(1, &members, Listen::Socket(sockets.remove(0)), None) };
    let mut host = Host::start(options);
    host.until("leads", |host| host.leadership.leading_from.is_some());
    (host, members[&1].clone())
}

#[test]
fn a_call_ends_at_its_deadline_and_holds_up_no_other() {
    let (mut host, address) = slow_snapshots();
    let long = begin(&address, Ask::Snapshot(()), DEADLINE);
    let (kind, problem) = problem(begin(&address, Ask::Snapshot(()), Duration::from_millis(200)).join().unwrap());
    assert_eq!(kind, ProblemKind::TimedOut);
    assert!(problem.reason.contains("still being taken"), "{}", problem.reason);
    assert!(matches!(ask(&address, Ask::Status(())), Ok(Answer::Status(_))));
    host.propose(1, b"x");
    host.until("resolved", |host| host.resolved.contains_key(&1));
    assert!(host.failed.is_empty(), "an operator's call is none of the application's: {:?}", host.failed);
    // The node closes while the first one is under way.
    host.close();
    let (kind, problem) = self::problem(long.join().unwrap());
    assert_eq!(kind, ProblemKind::Unknown);
    assert!(problem.reason.contains("closed"), "{}", problem.reason);
}

#[test]
fn a_call_whose_tool_has_gone_harms_nobody() {
    let (mut host, address) = slow_snapshots();
    let is_given_up = Arc::new(AtomicBool::new(false));
    let call = Call { address: address.clone(), cluster: "test".into(), ask: Ask::Snapshot(()), timeout: DEADLINE };
    let given_up = is_given_up.clone();
    let calling = thread::spawn(move || call.run(&given_up));
    host.until("is asked for a snapshot", |host| !host.captures.is_empty());
    is_given_up.store(true, Ordering::Relaxed);
    assert!(matches!(calling.join().unwrap(), Err(CallError::Lost(_))));
    assert!(matches!(ask(&address, Ask::Status(())), Ok(Answer::Status(_))));
    host.propose(1, b"x");
    host.until("resolved", |host| host.resolved.contains_key(&1));
    assert!(host.failed.is_empty(), "{:?}", host.failed);
    assert_eq!(host.close(), None);
}

#[test]
fn a_node_that_is_asked_to_remove_itself_says_so_though_it_may_hear_of_it_first_from_the_others() {
    for removed in ["leader", "follower"] {
        let (mut hosts, addresses) = cluster(3, None);
        let (leader, others) = led(&mut hosts);
        let id = if removed == "leader" { leader } else { others[0] };
        let encoded = encode_changes(&[membership::Change::Remove(id)]);
        let answer = ask(&addresses[&id], Ask::Change(Change { encoded }));
        assert!(matches!(&answer, Ok(Answer::Changed(changed)) if changed.ids == [id]), "{answer:?}");
        let host = hosts.get_mut(&id).unwrap();
        host.until("stopped", |host| host.stopped.is_some());
        assert_eq!(host.stopped.clone().flatten().unwrap().ended, Some(gate::Ended::Removed));
    }
}
