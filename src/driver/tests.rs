//! Whole nodes on loopback: threads, sockets, files.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, Instant};

use raft::eraftpb::{Message, MessageType};

use super::gate::Ended;
use super::options::Joins;
use super::port::{now_ns, Failure, Request, Token};
use super::*;
use crate::engine::command::Command;
use crate::engine::membership::{Change, Member};
use crate::test_log::TestLog;
use crate::transport::admin_client::Call;
use crate::transport::admin_messages::{Answer, Ask, Join, Joined};

mod admin;

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(30);

struct WakeTest(Sender<()>);

impl Wake for WakeTest {
    fn wake(&self) {
        // The test may be over.
        let _ = self.0.send(());
    }
}

/// A node and what it has told so far.
struct Host {
    spawned: Spawned,
    woken: Receiver<()>,
    queue: VecDeque<Completion>,
    applied: Vec<(u64, Vec<u8>)>,
    resolved: BTreeMap<Token, u64>,
    failed: BTreeMap<Token, Failure>,
    barriers: BTreeMap<Token, u64>,
    ranges: BTreeMap<Token, usize>,
    changed: BTreeMap<Token, Vec<u64>>,
    leadership: port::Leadership,
    listening: bool,
    /// Snapshots that it is asked for, and never takes.
    captures: Vec<Arc<capture::Capture>>,
    stopped: Option<Option<Fatal>>,
}

impl Host {
    fn start(options: Options) -> Self {
        let (sender, woken) = channel();
        Self {
            spawned: spawn(options, Box::new(WakeTest(sender))).unwrap(),
            woken,
            queue: VecDeque::new(),
            applied: Vec::new(),
            resolved: BTreeMap::new(),
            failed: BTreeMap::new(),
            barriers: BTreeMap::new(),
            ranges: BTreeMap::new(),
            changed: BTreeMap::new(),
            leadership: port::Leadership::default(),
            listening: false,
            captures: Vec::new(),
            stopped: None,
        }
    }

    /// Takes in what the node says until `done`.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.drain();
            if done(self) {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Figures change without a word.
            let _ = self.woken.recv_timeout(left.min(Duration::from_millis(20)));
            if left.is_zero() && !done(self) {
                panic!("never: {what}; stopped: {:?}, status: {:?}", self.stopped, self.spawned.port.status.lock());
            }
        }
    }

    fn drain(&mut self) {
        let port = self.spawned.port.clone();
        port.completions.acknowledge_wake();
        port.completions.take(&mut self.queue);
        while let Some(completion) = self.queue.pop_front() {
            match completion {
                Completion::Apply { entries, through, bytes } => {
                    for entry in entries {
                        self.applied.push((entry.index, entry.command.payload().to_vec()));
                        if let Some(token) = entry.token {
                            assert_eq!(self.resolved.insert(token, entry.index), None);
                        }
                    }
                    port.cursor.set_applied(through);
                    port.completions.consumed(bytes);
                    port.inbox.nudge();
                }
                Completion::Failed { token, failure } => {
                    self.failed.insert(token, failure);
                }
                Completion::Barrier { token, index } => {
                    self.barriers.insert(token, index);
                }
                Completion::Range { token, result } => {
                    self.ranges.insert(token, result.unwrap().0.len());
                }
                Completion::Leadership(leadership) => self.leadership = leadership,
                Completion::Changed { token, ids, .. } => {
                    self.changed.insert(token, ids);
                }
                Completion::Stopped { fatal } => self.stopped = Some(fatal),
                Completion::Capture(capture) => self.captures.push(capture),
                Completion::Restore { .. } | Completion::Snapshot { .. } | Completion::Transferred { .. } => {}
                Completion::Listening { .. } => self.listening = true,
            }
        }
    }

    fn propose(&self, token: Token, payload: &[u8]) {
        let command = Command::new(payload);
        self.spawned.port.inbox.propose(port::Proposal { token, command, deadline_ns: None });
    }

    /// Asks for changes of the members, and waits for their end.
    fn change(&mut self, token: Token, changes: Vec<Change>) -> Vec<u64> {
        self.spawned.port.inbox.request(Request::Change { token, changes, deadline_ns: None });
        self.until("changed", |host| host.changed.contains_key(&token) || host.failed.contains_key(&token));
        assert_eq!(self.failed.get(&token), None);
        self.changed[&token].clone()
    }

    fn close(mut self) -> Option<Fatal> {
        self.spawned.port.inbox.request(Request::Close { drain: Duration::ZERO });
        self.until("stopped", |host| host.stopped.is_some());
        self.spawned.thread.join().unwrap();
        self.stopped.unwrap()
    }
}

fn tuning() -> Tuning {
    Tuning {
        election_timeout: Duration::from_millis(300),
        heartbeat_interval: Duration::from_millis(40),
        max_entry_bytes: 1 << 20,
        max_message_bytes: 1 << 20,
        max_inflight_messages: 64,
        max_uncommitted_bytes: 1 << 26,
        max_unapplied_bytes: 1 << 22,
        entry_cache_bytes: 1 << 22,
        snapshot_entries: u64::MAX,
        snapshot_bytes: u64::MAX,
        snapshot_trail: 0,
        snapshot_rate: 1 << 26,
        insecure: false,
        admin_from: AdminFrom::Localhost,
    }
}

/// `nodes` bound sockets and the members they make.
fn sockets(nodes: u64) -> (Vec<TcpListener>, BTreeMap<u64, String>) {
    let sockets = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect::<Vec<_>>();
    let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap().to_string());
    let members = (1..=nodes).zip(addresses).collect();
    (sockets, members)
}

pub(super) fn options(id: u64, members: &BTreeMap<u64, String>, listen: Listen, data_dir: Option<&Path>) -> Options {
    Options {
        id,
        members: members.clone(),
        cluster: "test".into(),
        data_dir: data_dir.map(|dir| dir.join(id.to_string())),
        listen,
        advertise: None,
        tuning: tuning(),
        takes_snapshots: false,
        durable_applied: None,
        logger: slog::Logger::root(slog::Discard, slog::o!()),
        dispatch: tracing::Dispatch::none(),
        joins: None,
        faults: None,
    }
}

fn cluster(nodes: u64, data_dir: Option<&Path>) -> (BTreeMap<u64, Host>, BTreeMap<u64, String>) {
    let (sockets, members) = sockets(nodes);
    let hosts = sockets
        .into_iter()
        .zip(1..)
        .map(|(socket, id)| (id, Host::start(options(id, &members, Listen::Socket(socket), data_dir))));
    (hosts.collect(), members)
}

fn everybody_applies(hosts: &mut BTreeMap<u64, Host>, count: usize) {
    for host in hosts.values_mut() {
        host.until("applied", |host| host.applied.len() >= count);
        assert_eq!(host.applied.len(), count);
    }
    let first = hosts[&1].applied.clone();
    assert!(hosts.values().all(|host| host.applied == first));
}

#[test]
fn three_nodes_form_a_cluster_and_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (mut hosts, members) = cluster(3, Some(dir.path()));
    for (id, host) in &hosts {
        for n in 0..100 {
            host.propose(n, format!("{id}:{n}").as_bytes());
        }
    }
    everybody_applies(&mut hosts, 300);
    for host in hosts.values_mut() {
        host.until("resolved", |host| host.resolved.len() == 100);
        let deadline_ns = Some(now_ns() + 10_000_000_000);
        host.spawned.port.inbox.request(Request::ReadBarrier { token: 1_000, deadline_ns });
        host.spawned.port.inbox.request(Request::ReadApplied { token: 1_001, after: 0, max_bytes: 1 << 20 });
        host.until("barrier and range", |host| host.barriers.len() == 1 && host.ranges.len() == 1);
        assert_eq!(host.ranges[&1_001], 100 * 3);
    }
    // One goes, the others go on; it comes back and catches up.
    assert_eq!(hosts.remove(&2).unwrap().close(), None);
    hosts[&1].propose(2_000, b"without node 2");
    for id in [1, 3] {
        hosts.get_mut(&id).unwrap().until("applied", |host| host.applied.len() == 301);
    }
    let listen = Listen::Address(members[&2].clone());
    hosts.insert(2, Host::start(options(2, &members, listen, Some(dir.path()))));
    everybody_applies(&mut hosts, 301);
    let boot = hosts[&2].spawned.port.status.lock().boot;
    assert_eq!(boot, 2);
    for (_, host) in hosts {
        assert_eq!(host.close(), None);
    }
}

#[test]
fn all_stopped_at_once_come_back_with_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (mut hosts, members) = cluster(3, Some(dir.path()));
    for n in 0..50 {
        hosts[&1].propose(n, &n.to_le_bytes());
    }
    everybody_applies(&mut hosts, 50);
    for (_, host) in hosts {
        host.close();
    }
    let mut hosts = (1..=3)
        .map(|id| (id, Host::start(options(id, &members, Listen::Address(members[&id].clone()), Some(dir.path())))))
        .collect();
    everybody_applies(&mut hosts, 50);
}

#[test]
fn a_single_node_in_memory_leads_at_once() {
    let (mut hosts, _) = cluster(1, None);
    let host = hosts.get_mut(&1).unwrap();
    host.until("leads", |host| host.leadership.leading_from.is_some());
    host.propose(1, b"x");
    host.until("resolved", |host| host.resolved.len() == 1);
}

#[test]
fn m1_a_wiped_directory_does_not_come_back_under_its_old_id() {
    let dir = tempfile::tempdir().unwrap();
    let (mut hosts, members) = cluster(3, Some(dir.path()));
    hosts[&1].propose(1, b"x");
    everybody_applies(&mut hosts, 1);
    hosts.remove(&3).unwrap().close();
    std::fs::remove_dir_all(dir.path().join("3")).unwrap();
    let mut wiped = Host::start(options(3, &members, Listen::Address(members[&3].clone()), Some(dir.path())));
    wiped.until("listens", |host| host.listening);
    // The others go on without it, and it hears nothing from them.
    for n in 1..=50 {
        hosts[&1].propose(n + 1, b"y");
        hosts.get_mut(&1).unwrap().until("goes on", |host| host.applied.len() as u64 == n + 1);
    }
    wiped.drain();
    let status = wiped.spawned.port.status.lock().clone();
    assert_eq!((status.role, status.commit), ("forming", 1));
    assert!(wiped.applied.is_empty());
}

#[test]
fn a_call_ends_at_its_deadline_and_at_close() {
    let (_sockets, members) = sockets(3);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut host = Host::start(options(1, &members, Listen::Socket(socket), None));
    let inbox = host.spawned.port.inbox.clone();
    let deadline_ns = Some(now_ns() + 1_000_000);
    inbox.propose(port::Proposal { token: 1, command: Command::new(b""), deadline_ns });
    inbox.request(Request::ReadBarrier { token: 2, deadline_ns });
    host.until("timed out", |host| host.failed.len() == 2);
    assert!(matches!(host.failed[&1], Failure::TimedOutUnsent { .. }));
    assert!(matches!(host.failed[&2], Failure::TimedOutUnsent { .. }));
    host.propose(3, b"");
    inbox.request(Request::Close { drain: Duration::ZERO });
    host.until("stopped", |host| host.stopped.is_some());
    assert_eq!(host.failed[&3], Failure::ClosedUnsent);
}

#[test]
fn what_prevents_a_start_is_said_in_a_sentence() {
    let (sockets, members) = sockets(1);
    let refused = |options: Options| {
        let mut host = Host::start(options);
        host.until("stopped", |host| host.stopped.is_some());
        host.stopped.unwrap().unwrap().message
    };
    let taken = sockets[0].local_addr().unwrap().to_string();
    let message = refused(options(1, &members, Listen::Address(taken.clone()), None));
    assert!(message.contains(&taken) && message.contains("another process"), "{message}");
    let message = refused(options(1, &members, Listen::Address("0.0.0.0:0".into()), None));
    assert!(message.contains("insecure=True"), "{message}");
    let dir = tempfile::tempdir().unwrap();
    let listen = || Listen::Address("127.0.0.1:0".into());
    let mut first = Host::start(options(1, &members, listen(), Some(dir.path())));
    first.until("leads", |host| host.leadership.leading_from.is_some());
    let message = refused(options(1, &members, listen(), Some(dir.path())));
    assert!(message.contains(&dir.path().join("1").display().to_string()), "{message}");
    first.close();
    let foreign = Options { cluster: "other".into(), ..options(1, &members, listen(), Some(dir.path())) };
    let message = refused(foreign);
    assert!(message.contains("cluster \"test\""), "{message}");
}

#[test]
fn members_only_bootstrap_a_node_started_with_fewer_does_not_lead_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut hosts, members) = cluster(3, Some(dir.path()));
    hosts[&1].propose(1, b"x");
    everybody_applies(&mut hosts, 1);
    hosts.remove(&3).unwrap().close();
    let alone = BTreeMap::from([(3, members[&3].clone())]);
    let mut split = Host::start(options(3, &alone, Listen::Address(members[&3].clone()), Some(dir.path())));
    split.propose(5, b"y");
    split.until("taken by the others", |host| host.resolved.contains_key(&5));
    let peers = split.spawned.port.status.lock().peers.iter().map(|peer| peer.id).collect::<Vec<_>>();
    assert_eq!(peers, [1, 2], "the log knows better");
    split.close();
    // Addresses may change.
    let mut moved = members.clone();
    moved.insert(1, "localhost:1".into());
    let mut back = Host::start(options(3, &moved, Listen::Address(members[&3].clone()), Some(dir.path())));
    back.until("caught up", |host| host.applied.len() == 2);
}

/// A new member of that address, of which nothing else is known yet.
fn learner(id: u64, address: &str) -> Change {
    Change::AddLearner { id, member: Member { address: address.into(), ..Member::default() } }
}

#[test]
fn a_new_node_waits_to_be_added_is_promoted_and_takes_the_place_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let (mut hosts, members) = cluster(3, Some(dir.path()));
    hosts[&1].propose(1, b"x");
    everybody_applies(&mut hosts, 1);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let mut listed = members.clone();
    listed.insert(4, address.clone());
    hosts.insert(4, Host::start(options(4, &listed, Listen::Socket(socket), Some(dir.path()))));
    let one = hosts.get_mut(&1).unwrap();
    assert_eq!(one.change(2, vec![learner(4, &address)]), [4]);
    everybody_applies(&mut hosts, 1);
    // Of whichever node it is asked.
    hosts.get_mut(&2).unwrap().change(3, vec![Change::Promote(4), Change::Remove(1)]);
    hosts.get_mut(&1).unwrap().until("removed", |host| host.stopped.is_some());
    let fatal = hosts.remove(&1).unwrap().stopped.unwrap().unwrap();
    assert_eq!(fatal.ended, Some(Ended::Removed));
    hosts[&4].propose(4, b"y");
    for id in [2, 3, 4] {
        let host = hosts.get_mut(&id).unwrap();
        host.until("applied", |host| host.applied.len() == 2);
        host.until("voters", |host| {
            let status = host.spawned.port.status.lock();
            status.votes && status.peers.len() == 2 && status.peers.iter().all(|peer| peer.votes && peer.id != 1)
        });
    }
    // The newcomer knows its cluster when it is started again, whatever it is told of the members.
    hosts.remove(&4).unwrap().close();
    let alone = BTreeMap::from([(4, address.clone())]);
    let mut back = Host::start(options(4, &alone, Listen::Address(address), Some(dir.path())));
    back.propose(5, b"z");
    back.until("resolved", |host| host.resolved.contains_key(&5));
    // The removed one is told again if it did not listen.
    let mut gone = Host::start(options(1, &members, Listen::Address(members[&1].clone()), Some(dir.path())));
    gone.until("removed", |host| host.stopped.is_some());
    assert_eq!(gone.stopped.clone().flatten().unwrap().ended, Some(Ended::Removed));
}

/// Asks every node of `members` for a place until one gives it.
fn join(members: &BTreeMap<u64, String>, name: &str, identity: u128, address: &str) -> Joined {
    let ask = Ask::Join(Join {
        name: name.into(),
        identity: identity.to_be_bytes().to_vec(),
        address: address.into(),
        metadata: BTreeMap::new(),
    });
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        for address in members.values() {
            let (address, cluster, ask) = (address.clone(), "test".to_owned(), ask.clone());
            let call = Call { address, cluster, ask, timeout: Duration::from_secs(5) };
            if let Ok(Answer::Joined(joined)) = call.run(&AtomicBool::new(false)) {
                return joined;
            }
        }
    }
    panic!("nobody gave {name} a place");
}

fn named(id: u64, name: &str, identity: Option<u128>, options: Options) -> Options {
    Options { id, joins: Some(Joins { name: name.into(), identity }), ..options }
}

#[test]
fn a_node_that_joins_by_its_name_gets_an_id_and_a_vote_and_takes_the_place_of_its_lost_self() {
    let dir = tempfile::tempdir().unwrap();
    let (mut hosts, mut members) = cluster(3, Some(dir.path()));
    hosts[&1].propose(1, b"x");
    everybody_applies(&mut hosts, 1);
    for (id, identity) in [(4, 0xd), (5, 0xe)] {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let place = join(&members, "app-3", identity, &address);
        assert_eq!(place.id, id);
        assert_eq!(join(&members, "app-3", identity, &address).id, id, "asked again");
        let mut listed = place.members.clone();
        listed.insert(id, address.clone());
        let start = options(id, &listed, Listen::Socket(socket), Some(dir.path()));
        hosts.insert(id, Host::start(named(id, "app-3", Some(identity), start)));
        members.insert(id, address.clone());
        let voters = |host: &Host| {
            let status = host.spawned.port.status.lock();
            let peers = status.peers.iter().filter(|peer| peer.votes).map(|peer| peer.id);
            peers.chain(status.votes.then_some(status.id)).collect::<std::collections::BTreeSet<_>>()
        };
        hosts.get_mut(&id).unwrap().until("has its vote", |host| voters(host) == [1, 2, 3, id].into());
        let refused = Ask::Join(Join {
            name: "app-3".into(),
            identity: vec![7; 16],
            address: "elsewhere:1".into(),
            metadata: BTreeMap::new(),
        });
        if id == 4 {
            // Started again, it knows who it is; and nobody else has its name while it runs.
            hosts.remove(&4).unwrap().close();
            let record = inspect::recorded(&dir.path().join("4")).unwrap().unwrap();
            assert_eq!((record.id, record.identity), (4, identity));
            let again = options(4, &listed, Listen::Address(address.clone()), Some(dir.path()));
            let mut back = Host::start(named(4, "app-3", None, again));
            back.propose(10, b"y");
            back.until("resolved", |host| host.resolved.contains_key(&10));
            let call = Call { address: members[&1].clone(), cluster: "test".into(), ask: refused, timeout: DEADLINE };
            hosts.get_mut(&1).unwrap().until("connected", |host| {
                host.spawned.port.status.lock().peers.iter().any(|peer| peer.id == 4 && peer.connected)
            });
            let problem = call.run(&AtomicBool::new(false)).unwrap_err().to_string();
            assert!(problem.contains("app-3") && problem.contains("stop it first"), "{problem}");
            back.close();
            members.remove(&4);
            hosts.get_mut(&1).unwrap().until("gone", |host| {
                host.spawned.port.status.lock().peers.iter().any(|peer| peer.id == 4 && !peer.connected)
            });
        }
    }
    hosts[&5].propose(11, b"z");
    hosts.get_mut(&5).unwrap().until("resolved", |host| host.resolved.contains_key(&11));
}

#[test]
fn s2_a_directory_that_takes_another_id_before_it_belongs_to_a_cluster_goes_on_counting_its_starts() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = (1..=3).map(|id| (id, format!("127.0.0.1:{id}"))).collect::<BTreeMap<_, _>>();
    for (boot, id) in [(1, 1), (2, 1), (3, 2), (4, 1)] {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let start = Options {
            data_dir: Some(dir.path().join("node")),
            ..named(id, "app-0", Some(0xa), options(id, &nobody, Listen::Socket(socket), Some(dir.path())))
        };
        Host::start(start).close();
        let record = inspect::recorded(&dir.path().join("node")).unwrap().unwrap();
        assert_eq!((record.id, record.boot, record.identity), (id, boot, 0xa));
    }
}

#[test]
fn m3_a_cluster_that_lost_its_quorum_goes_on_from_one_directory_and_the_others_are_out() {
    let dir = tempfile::tempdir().unwrap();
    let (mut hosts, members) = cluster(3, Some(dir.path()));
    for n in 0..50 {
        hosts[&1].propose(n, &[n as u8; 100]);
    }
    everybody_applies(&mut hosts, 50);
    let path = dir.path().join("1");
    let locked = recover::foresee(&path).unwrap_err().to_string();
    assert!(locked.contains("is used by another node"), "{locked}");
    let ids = hosts.keys().copied().collect::<Vec<_>>();
    ids.into_iter().for_each(|id| drop(hosts.remove(&id).unwrap().close()));
    let foreseen = recover::foresee(&path).unwrap();
    assert_eq!((foreseen.id, foreseen.lost.as_slice(), foreseen.copy.as_ref()), (1, &[2, 3][..], None));
    let done = recover::recover(&path).unwrap();
    assert_eq!((done.lost.as_slice(), done.last_index), (&[2, 3][..], foreseen.last_index));
    assert!(done.last_wall_ns > 0);
    let copy = done.copy.unwrap();
    assert_eq!(inspect::inspect(&copy).unwrap().replicated.unwrap().conf_state.voters, [1, 2, 3], "as it was");
    let report = inspect::inspect(&path).unwrap();
    assert_eq!(report.damage, Vec::<String>::new());
    assert_eq!(report.replicated.unwrap().conf_state.voters, [1]);
    assert!(matches!(recover::foresee(&path), Err(recover::RecoverError::Alone(1))));

    let mut one = Host::start(options(1, &members, Listen::Address(members[&1].clone()), Some(dir.path())));
    one.propose(100, b"alone");
    one.until("resolved", |host| host.resolved.contains_key(&100));
    assert_eq!(one.applied.len(), 51, "nothing that its log held is gone");
    // The others meet it, though they are a majority of what was.
    let mut old =
        [2, 3].map(|id| Host::start(options(id, &members, Listen::Address(members[&id].clone()), Some(dir.path()))));
    for host in &mut old {
        host.until("superseded", |host| host.stopped.is_some());
        assert_eq!(host.stopped.clone().flatten().unwrap().ended, Some(Ended::Superseded));
    }
    // New members take their places.
    for id in [4, 5] {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let listed = BTreeMap::from([(1, members[&1].clone()), (id, address.clone())]);
        let mut host = Host::start(options(id, &listed, Listen::Socket(socket), Some(dir.path())));
        one.change(200 + id, vec![learner(id, &address)]);
        one.change(300 + id, vec![Change::Promote(id)]);
        host.until("applied", |host| host.applied.len() == 51);
        hosts.insert(id, host);
    }
    one.close();
    hosts[&4].propose(400, b"without the first");
    hosts.get_mut(&4).unwrap().until("resolved", |host| host.resolved.contains_key(&400));
}

#[test]
fn m3_what_cannot_be_recovered_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = recover::recover(dir.path()).unwrap_err().to_string();
    assert!(nothing.contains("no node's data directory"), "{nothing}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "none was made");
    let (mut hosts, _) = cluster(1, Some(dir.path()));
    hosts.get_mut(&1).unwrap().until("leads", |host| host.leadership.leading_from.is_some());
    hosts.remove(&1).unwrap().close();
    let alone = recover::recover(&dir.path().join("1")).unwrap_err().to_string();
    assert!(alone.contains("only member"), "{alone}");
    let (mut sockets, members) = sockets(2);
    let socket = Listen::Socket(sockets.remove(0));
    let unformed = Options { data_dir: Some(dir.path().join("u")), ..options(1, &members, socket, None) };
    let mut host = Host::start(unformed);
    host.until("listens", |host| host.listening);
    host.close();
    let unformed = recover::recover(&dir.path().join("u")).unwrap_err().to_string();
    assert!(unformed.contains("belongs to no cluster yet"), "{unformed}");
}

#[test]
fn m1_a_wiped_disk_comes_back_under_a_new_id_only() {
    let dir = tempfile::tempdir().unwrap();
    let (mut hosts, members) = cluster(3, Some(dir.path()));
    hosts[&1].propose(1, b"x");
    everybody_applies(&mut hosts, 1);
    hosts.remove(&3).unwrap().close();
    std::fs::remove_dir_all(dir.path().join("3")).unwrap();
    let mut listed = members.clone();
    let address = listed.remove(&3).unwrap();
    listed.insert(4, address.clone());
    let new = Host::start(options(4, &listed, Listen::Address(address.clone()), Some(dir.path())));
    hosts.insert(4, new);
    let one = hosts.get_mut(&1).unwrap();
    one.change(2, vec![learner(4, &address), Change::Remove(3)]);
    one.change(3, vec![Change::Promote(4)]);
    everybody_applies(&mut hosts, 1);
    // Two of the three are enough again, the new one among them.
    hosts.remove(&2).unwrap().close();
    hosts[&4].propose(4, b"y");
    hosts.get_mut(&4).unwrap().until("resolved", |host| host.resolved.contains_key(&4));
}

#[test]
fn a_node_far_behind_catches_up_without_losing_its_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (mut hosts, members) = cluster(3, Some(dir.path()));
    hosts[&1].propose(0, b"x");
    everybody_applies(&mut hosts, 1);
    hosts.remove(&3).unwrap().close();
    let count = 600;
    for n in 1..=count {
        hosts[&1].propose(n, &[n as u8; 64 << 10]);
    }
    hosts.get_mut(&1).unwrap().until("committed", |host| host.resolved.len() as u64 == count + 1);
    let mut back = Host::start(options(3, &members, Listen::Address(members[&3].clone()), Some(dir.path())));
    back.until("caught up", |host| host.applied.len() as u64 == count + 1);
}

#[test]
fn all_that_may_be_on_its_way_to_a_peer_fits_a_connection() {
    for (entry, message, inflight) in [(8 << 20, 1 << 20, 32), (64 << 20, 1 << 10, 256), (1 << 10, 64 << 20, 1_000)] {
        let tuning =
            Tuning { max_entry_bytes: entry, max_message_bytes: message, max_inflight_messages: inflight, ..tuning() };
        let network = tuning.network();
        assert!(network.backlog_bytes_max > message as usize * inflight + crate::engine::FORWARDED_BYTES_MAX);
        assert!(network.frame_bytes_max > 3 * entry.max(message) as usize);
    }
}

#[test]
fn a_node_is_dialled_where_it_advertises_itself() {
    let (sockets, mut members) = sockets(2);
    let actual = members[&2].clone();
    // Nobody listens where node 1 is told to find node 2, which dials node 1 and says where it really is.
    members.insert(2, TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string());
    let mut sockets = sockets.into_iter().map(Listen::Socket);
    let mut one = Host::start(options(1, &members, sockets.next().unwrap(), None));
    let advertise = Some(actual.clone());
    let two = Options { advertise, ..options(2, &members, sockets.next().unwrap(), None) };
    let mut two = Host::start(two);
    one.until("leads", |host| host.leadership.leading_from.is_some());
    let shown = |host: &Host| host.spawned.port.status.lock().peers[0].address.clone();
    one.propose(1, b"x");
    one.until("resolved", |host| host.resolved.len() == 1);
    assert_eq!(shown(&one), actual);
    two.until("applied", |host| host.applied.len() == 1);
    assert_eq!(shown(&two), members[&1]);
}

/// Every file below `dir`, by name, without the room that was allocated ahead, which an end gives back.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            found.insert(path, bytes);
        }
    }
    found
}

/// Waits until nothing is written there any more.
fn settled(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let deadline = Instant::now() + DEADLINE;
    let mut found = files(dir);
    loop {
        // Housekeeping has a period, so that nothing changes is seen only over time.
        std::thread::sleep(Duration::from_millis(300));
        let again = files(dir);
        if again == found {
            return found;
        }
        assert!(Instant::now() < deadline, "something is written all the time");
        found = again;
    }
}

#[test]
fn a_panic_of_the_engine_stops_the_node_as_a_whole_and_leaves_its_files_as_they_were() {
    for victim in ["leader", "follower"] {
        let dir = tempfile::tempdir().unwrap();
        let (mut hosts, members) = cluster(3, Some(dir.path()));
        for n in 0..20 {
            hosts[&1].propose(n, &n.to_le_bytes());
        }
        everybody_applies(&mut hosts, 20);
        let role = |host: &Host| host.spawned.port.status.lock().role;
        let id = *hosts.iter().find(|(_, host)| role(host) == victim).expect(victim).0;
        let (mut one, peer) = (hosts.remove(&id).unwrap(), 1 + id % 3);
        let before = settled(&dir.path().join(id.to_string()));
        // raft-rs 0.7 panics on it: tikv#994.
        let term = one.spawned.port.status.lock().term + 1;
        let mut beyond = Message { from: peer, to: id, term, commit: 1_000, ..Default::default() };
        beyond.set_msg_type(MessageType::MsgHeartbeat);
        let inbox = one.spawned.port.inbox.clone();
        inbox.request(Request::Unguarded(Box::new(beyond)));
        one.propose(100, b"behind it");
        inbox.request(Request::ReadBarrier { token: 101, deadline_ns: None });
        one.until("stopped", |host| host.stopped.is_some());
        let fatal = one.stopped.clone().flatten().expect("it stopped by itself").message;
        assert!(fatal.contains("engine panicked") && fatal.contains("report"), "{fatal}");
        // Both calls are still pending; the application ends them with that reason.
        assert!(!one.resolved.contains_key(&100) && one.failed.is_empty() && one.barriers.is_empty());
        one.spawned.thread.join().unwrap();
        let after = files(&dir.path().join(id.to_string()));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (path, bytes) in &before {
            assert!(after[path] == *bytes, "{} was changed", path.display());
        }
        // The others go on, and it comes back from its files.
        hosts[&peer].propose(30, b"without it");
        hosts.get_mut(&peer).unwrap().until("applied", |host| host.applied.len() == 21);
        let listen = Listen::Address(members[&id].clone());
        hosts.insert(id, Host::start(options(id, &members, listen, Some(dir.path()))));
        everybody_applies(&mut hosts, 21);
    }
}

/// Copies a directory and what is below it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn connected(host: &Host, peer: u64) -> bool {
    let status = host.spawned.port.status.lock();
    status.peers.iter().any(|other| other.id == peer && other.connected)
}

/// A cluster whose node 3 is down, and was started from `older` again; the others were restarted meanwhile. Returns what
/// all of them said.
struct PutBack {
    hosts: BTreeMap<u64, Host>,
    logs: BTreeMap<u64, TestLog>,
}

fn put_back(mut hosts: BTreeMap<u64, Host>, members: &BTreeMap<u64, String>, dir: &Path, older: &Path) -> PutBack {
    // Its last word is heard before it is gone.
    hosts.remove(&3).unwrap().close();
    for (_, mut host) in hosts {
        host.until("node 3 is gone", |host| !connected(host, 3));
        host.close();
    }
    let data = dir.join("3");
    std::fs::remove_dir_all(&data).unwrap();
    copy(older, &data);
    let logs: BTreeMap<_, _> = (1..=3).map(|id| (id, TestLog::default())).collect();
    let hosts = (1..=3).map(|id| {
        let options = options(id, members, Listen::Address(members[&id].clone()), Some(dir));
        (id, Host::start(Options { dispatch: logs[&id].dispatch(), ..options }))
    });
    PutBack { hosts: hosts.collect(), logs }
}

impl PutBack {
    fn refused_on_both_sides(mut self, says: &str) {
        for peer in [1, 2] {
            let there = || self.logs[&peer].said(says);
            let here = || self.logs[&3].said(says);
            let deadline = Instant::now() + DEADLINE;
            let told = |line: &crate::test_log::Line, peer: &str| line.field("peer") == Some(peer);
            while !(there().iter().any(|line| told(line, "3"))
                && here().iter().any(|line| told(line, &peer.to_string())))
            {
                assert!(Instant::now() < deadline, "{peer}: {:?} {:?}", there(), here());
                std::thread::yield_now();
            }
        }
        // It takes no part.
        let known = self.hosts[&1].applied.len();
        self.hosts[&1].propose(900, b"without it");
        self.hosts.get_mut(&1).unwrap().until("applied", |host| host.resolved.contains_key(&900));
        let copied = self.hosts.get_mut(&3).unwrap();
        copied.drain();
        assert!(!copied.applied.iter().any(|(_, payload)| payload == b"without it"), "{known}");
        let status = copied.spawned.port.status.lock().clone();
        assert!(status.peers.iter().all(|peer| peer.trouble.as_ref().unwrap().contains(says)), "{status:?}");
    }
}

#[test]
fn s2_an_older_copy_is_refused_by_peers_that_were_restarted_since() {
    let dir = tempfile::tempdir().unwrap();
    let (mut hosts, members) = cluster(3, Some(dir.path()));
    hosts[&1].propose(1, b"x");
    everybody_applies(&mut hosts, 1);
    let (data, older) = (dir.path().join("3"), dir.path().join("older"));
    for start in 0..3 {
        hosts.remove(&3).unwrap().close();
        if start == 0 {
            copy(&data, &older);
        }
        let listen = Listen::Address(members[&3].clone());
        let mut back = Host::start(options(3, &members, listen, Some(dir.path())));
        back.until("caught up", |host| host.applied.len() == 1);
        hosts.insert(3, back);
        for peer in [1, 2] {
            hosts.get_mut(&peer).unwrap().until("met", |host| connected(host, 3));
        }
    }
    put_back(hosts, &members, dir.path(), &older).refused_on_both_sides("comes with boot 2, but boot 4 was seen");
}

#[test]
fn s2_a_copy_of_a_running_node_is_refused_by_peers_that_were_restarted_since() {
    let dir = tempfile::tempdir().unwrap();
    let (mut hosts, members) = cluster(3, Some(dir.path()));
    hosts[&1].propose(1, b"x");
    everybody_applies(&mut hosts, 1);
    let (data, older) = (dir.path().join("3"), dir.path().join("older"));
    settled(&data);
    copy(&data, &older);
    for n in 0..20 {
        hosts[&2].propose(n, b"acknowledged by it, and not in the copy");
    }
    everybody_applies(&mut hosts, 21);
    let last = hosts[&3].spawned.port.status.lock().last_index;
    let says = format!("acknowledged entry {last}, and its log ends at {}", last - 20);
    put_back(hosts, &members, dir.path(), &older).refused_on_both_sides(&says);
}
