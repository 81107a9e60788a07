//! One node, driven round by round: what happens to it is written by the test, and time passes in ticks.

use std::collections::VecDeque;
use std::future::Future;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType};

use super::*;
use crate::driver::identity::{Drawn, NodeRecord};
use crate::driver::options::{AdminFrom, Listen, Tuning};
use crate::driver::port::{Completions, Cursor, Inbox, Wake};
use crate::driver::{tests as driver_tests, WakeDriver};
use crate::engine::command::Command;
use crate::engine::formation::Formation;
use crate::engine::membership::{encode_changes, Change, Membership};
use crate::engine::snapshot::Meta;
use crate::engine::Failure;
use crate::storage::snapshot::{self, Form, Head};
use crate::storage::{Batch, GroupState, LogWriter, Opened};
use crate::test_log::TestLog;
use crate::transport::{Held, Hello, Role};

const CLUSTER: &str = "test";

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("waited too long") };
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn tuning() -> Tuning {
    Tuning {
        election_timeout: Duration::from_millis(300),
        heartbeat_interval: Duration::from_millis(40),
        max_entry_bytes: 1 << 20,
        max_message_bytes: 1 << 20,
        max_inflight_messages: 64,
        max_uncommitted_bytes: 1 << 26,
        max_unapplied_bytes: 64 << 10,
        entry_cache_bytes: 1 << 22,
        snapshot_entries: u64::MAX,
        snapshot_bytes: u64::MAX,
        snapshot_trail: 0,
        snapshot_rate: 1 << 26,
        insecure: false,
        admin_from: AdminFrom::Localhost,
    }
}

/// Of node 1 of so many, whose peers do not exist.
fn options(nodes: u64) -> Options {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut members = BTreeMap::from([(1, listener.local_addr().unwrap().to_string())]);
    // Nobody listens at port 1.
    members.extend((2..=nodes).map(|id| (id, format!("127.0.0.{id}:1"))));
    Options { tuning: tuning(), ..driver_tests::options(1, &members, Listen::Socket(listener), None) }
}

/// A log that fails, or waits, as soon as the test says so.
struct Failing {
    writer: Box<dyn LogWriter>,
    fails: Arc<AtomicBool>,
    waits: Arc<Mutex<()>>,
}

impl LogWriter for Failing {
    fn write(&mut self, batch: Batch) -> Result<(), StorageError> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(StorageError::Poisoned { reason: "the disk is gone".into() });
        }
        let _goes_on = self.waits.lock();
        self.writer.write(batch)
    }

    fn maintain(&mut self) -> Result<Option<Duration>, StorageError> {
        self.writer.maintain()
    }

    fn abandon(self: Box<Self>) {
        self.writer.abandon();
    }

    fn figures(&self) -> Figures {
        self.writer.figures()
    }
}

/// Node 1 of `nodes`, whose peers do not exist, with an application that does nothing by itself.
struct Rig {
    node: Node,
    port: Port,
    log_fails: Arc<AtomicBool>,
    log_waits: Arc<Mutex<()>>,
}

impl Rig {
    fn new(nodes: u64) -> Self {
        let mut options = options(nodes);
        let wake = Arc::new(Notify::new());
        let port = Port {
            inbox: Arc::new(Inbox::new(Box::new(WakeDriver(wake.clone())))),
            completions: Arc::new(Completions::new(Box::new(NoWake))),
            cursor: Arc::new(Cursor::default()),
            status: Arc::new(Mutex::new(port::Status::default())),
        };
        let mut started = start::start(&mut options).unwrap();
        let (log_fails, log_waits) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(())));
        let resumed = &mut started.resumed;
        let writer = std::mem::replace(&mut resumed.writer, crate::storage::memory::open().writer);
        resumed.writer = Box::new(Failing { writer, fails: log_fails.clone(), waits: log_waits.clone() });
        let node = Node::new(options, started, port.clone(), wake).unwrap();
        Self { node, port, log_fails, log_waits }
    }

    /// What peer `id` says when it connects.
    fn hello(&self, id: NodeId, identity: u128, stage: Stage) -> Rc<Hello> {
        let members = Formation::members_text(&self.node.options.members);
        Rc::new(Hello {
            cluster: CLUSTER.into(),
            lineage: 0,
            incarnation: 1,
            from: id,
            to: 1,
            identity,
            boot: 1,
            nonce: identity as u64,
            earlier: Vec::new(),
            role: Role::Peer,
            advertise: String::new(),
            formation: Report::new(identity, members, stage).encode(),
            held: Held::default(),
        })
    }

    /// One round in which the call of `token` is past its deadline; returns how it failed.
    async fn expired(&mut self, token: u64) -> Failure {
        self.until("expired", |rig| rig.node.engine.next_deadline_ns() == u64::MAX).await;
        let mut failures = self.completions().into_iter().filter_map(|done| match done {
            Completion::Failed { token: of, failure } if of == token => Some(failure),
            _ => None,
        });
        failures.next().expect("it is over")
    }

    fn up(&mut self, peer: NodeId, identity: u128) {
        let hello = self.hello(peer, identity, Stage::Unformed);
        self.node.take_event(Event::Up { peer, hello, epoch: 1 });
    }

    /// Node 2, which is connected, says that the cluster is formed.
    async fn formed_of_three() -> Self {
        let mut rig = Self::new(3);
        rig.up(2, 20);
        let identity = rig.node.members.borrow().record.identity;
        let formed = rig.hello(2, 20, Stage::Formed([(1, identity), (2, 20), (3, 30)].into()));
        rig.node.take_event(Event::Formation { from: 2, body: formed.formation.clone() });
        rig.until("formed", |rig| rig.node.members.borrow().formation.is_formed()).await;
        rig
    }

    fn raft(&mut self, from: NodeId, messages: Vec<Message>) {
        self.node.take_event(Event::Raft { from, group: APPLICATION_GROUP, messages });
    }

    /// A round in which the clock ticks.
    async fn tick(&mut self) -> Result<(), Stop> {
        self.node.next_tick = Instant::now();
        let _ = self.node.round()?;
        self.node.wait().await;
        Ok(())
    }

    async fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.tick().await.unwrap();
        }
    }

    async fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        while !done(self) {
            assert!(self.tick().await.is_ok(), "stopped before: {what}");
        }
    }

    fn propose(&self, token: u64, payload: &[u8]) {
        self.port.inbox.propose(Proposal { token, command: Command::new(payload), deadline_ns: None });
    }

    fn completions(&self) -> VecDeque<Completion> {
        let mut taken = VecDeque::new();
        self.port.completions.take(&mut taken);
        taken
    }
}

fn message(kind: MessageType, term: u64) -> Message {
    let mut message = Message { from: 2, to: 1, term, index: 1, log_term: 1, ..Default::default() };
    message.set_msg_type(kind);
    message
}

#[test]
fn m1_an_unformed_node_answers_no_raft_message() {
    run(async {
        let mut rig = Rig::new(3);
        rig.up(2, 20);
        let election_ticks = tuning().election_ticks();
        let append = Message {
            entries: vec![Entry { index: 2, term: 5, ..Default::default() }],
            ..message(MessageType::MsgAppend, 5)
        };
        let vote = message(MessageType::MsgRequestVote, 6);
        for message in [message(MessageType::MsgHeartbeat, 4), append, vote] {
            rig.raft(2, vec![message]);
            rig.ticks(2 * election_ticks).await;
            let status = rig.node.engine.status();
            assert_eq!((status.term, status.last_index, status.leader), (1, 1, None));
        }
        assert_eq!(rig.port.status.lock().role, "forming");
        // Once it is formed, it does.
        let identity = rig.node.members.borrow().record.identity;
        let all = [(1, identity), (2, 20), (3, 30)].into();
        let formed = rig.hello(2, 20, Stage::Formed(all));
        rig.node.take_event(Event::Formation { from: 2, body: formed.formation.clone() });
        rig.until("formed", |rig| rig.node.members.borrow().formation.is_formed()).await;
        rig.raft(2, vec![message(MessageType::MsgRequestVote, 6)]);
        rig.ticks(1).await;
        assert_eq!(rig.node.engine.status().term, 6);
    });
}

/// What a process leaves when it is killed is read at the next start, and still lost if the power fails before it is fsynced:
/// then the log names an earlier snapshot again.
#[test]
fn d1_a_start_removes_no_snapshot_before_the_log_that_does_not_name_it_is_durable() {
    let mut opened = crate::storage::memory::open();
    let meta = Meta {
        conf_state: ConfState { voters: vec![1], ..Default::default() },
        membership: Some(Membership::founded(&[1], &[(1, 10)].into())),
        ..Default::default()
    };
    let names = [7, 8].map(|index| {
        let head = Head { group: APPLICATION_GROUP, index, term: 1, form: Form::Bytes, meta: meta.encode() };
        *opened.snapshots.create(&head).unwrap().finish().unwrap().name()
    });
    let drawn = |nonce| Drawn { identity: 10, nonce, seed: 0 };
    let mut record = NodeRecord::boot(None, 1, CLUSTER, &drawn(1)).unwrap();
    record.stage = Stage::Formed([(1, 10)].into());
    opened.node_records.extend([record.as_stored()]);
    let mut state = GroupState { truncated: (8, 1), last_index: 8, ..Default::default() };
    (state.hard_state.term, state.hard_state.commit) = (1, 8);
    state.records.insert(snapshot::RECORD.to_vec(), names[1].encode_to_vec());
    opened.groups.insert(APPLICATION_GROUP, state);
    let snapshots = opened.snapshots.clone();
    let start = |fails, groups, node_records| {
        let Opened { writer, reader, .. } = crate::storage::memory::open();
        let writer = Box::new(Failing { writer, fails: Arc::new(AtomicBool::new(fails)), waits: Arc::default() });
        let opened = Opened { writer, reader, groups, node_records, snapshots: snapshots.clone() };
        start::resume(&options(1), opened, &drawn(2)).is_ok()
    };
    assert!(!start(true, opened.groups.clone(), opened.node_records.clone()));
    assert!(names.iter().all(|name| snapshots.open(name).is_ok()));
    assert!(start(false, opened.groups, opened.node_records));
    assert!(snapshots.open(&names[0]).is_err(), "a leftover");
    assert!(snapshots.open(&names[1]).is_ok());
}

#[test]
fn m2_a_removed_node_goes_on_until_somebody_who_stays_says_so() {
    run(async {
        let mut rig = Rig::formed_of_three().await;
        let plan = rig.node.engine.membership().plan(&rig.node.engine.conf_state(), &[Change::Remove(1)]).unwrap();
        let mut command = Command::membership(&encode_changes(&[Change::Remove(1)]));
        command.set_origin(2, 1, 1);
        let mut entry = Entry { index: 2, term: 5, ..Default::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.data = plan.conf_change(command.into_bytes()).encode_to_vec();
        let append = Message { entries: vec![entry], commit: 2, ..message(MessageType::MsgAppend, 5) };
        rig.raft(2, vec![append]);
        rig.until("it has applied that", |rig| rig.node.members.borrow().formation.membership().version == 2).await;
        // Those who have forgotten it in a loss of power count on its vote.
        rig.ticks(2 * tuning().election_ticks()).await;
        rig.raft(2, vec![Message { index: 2, log_term: 5, ..message(MessageType::MsgRequestVote, 6) }]);
        rig.ticks(1).await;
        assert_eq!(rig.node.engine.status().term, 6);

        let mut report = Report::decode(&rig.hello(2, 20, Stage::Unformed).formation).unwrap();
        report.stage = rig.node.members.borrow().record.stage.clone();
        report.membership = Some(rig.node.engine.membership().clone());
        rig.node.take_event(Event::Formation { from: 2, body: report.encode() });
        assert!(matches!(rig.tick().await, Err(Stop::Ended(Ended::Removed))));
    });
}

#[test]
fn the_status_shows_a_change_of_the_members_that_is_applied_and_not_durable_yet() {
    run(async {
        let mut rig = Rig::formed_of_three().await;
        let metadata = BTreeMap::from([("zone".to_string(), "b".to_string())]);
        let change = Change::Update { id: 3, identity: 0, address: String::new(), metadata: Some(metadata.clone()) };
        let mut command = Command::membership(&encode_changes(&[change]));
        command.set_origin(2, 1, 1);
        let entry = Entry { index: 2, term: 5, data: command.into_bytes(), ..Default::default() };
        rig.raft(2, vec![Message { entries: vec![entry], commit: 1, ..message(MessageType::MsgAppend, 5) }]);
        rig.ticks(5).await;
        let waits = rig.log_waits.clone();
        let _held = waits.lock();
        rig.raft(2, vec![Message { commit: 2, ..message(MessageType::MsgHeartbeat, 5) }]);
        // No tick, which may show everything anew.
        rig.node.next_tick = Instant::now() + Duration::from_secs(60);
        assert!(rig.node.round().unwrap().is_continue());
        assert_eq!(rig.node.engine.membership().version, 2);
        assert_eq!(rig.node.members.borrow().formation.membership().version, 1, "others do not hear of it yet");
        let third = rig.port.status.lock().peers.iter().find(|peer| peer.id == 3).cloned().unwrap();
        assert_eq!(third.metadata, metadata);
    });
}

#[test]
fn m1_an_unformed_node_never_campaigns() {
    run(async {
        let mut rig = Rig::new(3);
        rig.up(2, 20);
        for _ in 0..5 * tuning().election_ticks() {
            rig.ticks(1).await;
            let status = rig.node.engine.status();
            assert_eq!((status.term, status.role), (1, "follower"));
        }
        let status = rig.port.status.lock().clone();
        assert_eq!((status.term, status.role), (1, "forming"));
    });
}

#[test]
fn m1_a_peer_that_went_away_before_it_stored_anything_may_come_back_with_another_directory() {
    run(async {
        let mut rig = Rig::new(3);
        rig.up(2, 20);
        rig.node.take_event(Event::Down { peer: 2, reason: "it was wiped".into(), in_order: false });
        rig.up(3, 30);
        rig.ticks(5).await;
        assert_eq!(rig.node.members.borrow().formation.stage(), &Stage::Unformed, "node 2 is not there");
        assert_eq!(rig.node.members.borrow().formation.missing(), [2]);
        rig.up(2, 21);
        rig.until("prepared", |rig| rig.node.members.borrow().formation.stage() != &Stage::Unformed).await;
        let members = rig.node.members.borrow();
        assert_eq!(members.formation.stage().identities().unwrap()[&2], 21);
    });
}

#[test]
fn before_the_cluster_is_formed_errors_name_who_is_missing_and_why() {
    run(async {
        let mut rig = Rig::new(3);
        let refused = |rig: &Rig, peer| rig.node.network.trouble(peer).is_some();
        rig.until("both were dialled", |rig| refused(rig, 2) && refused(rig, 3)).await;
        let deadline_ns = Some(1);
        let command = Command::new(b"x");
        rig.port.inbox.propose(Proposal { token: 1, command, deadline_ns });
        let _ = rig.node.round().unwrap();
        let Failure::TimedOutUnsent { reason } = rig.expired(1).await else { panic!("it was never sent") };
        for part in ["not formed", "node 2: connecting to 127.0.0.2:1 failed", "node 3: connecting to 127.0.0.3:1"] {
            assert!(reason.contains(part), "{reason}");
        }
        rig.port.inbox.request(Request::ReadBarrier { token: 2, deadline_ns });
        let _ = rig.node.round().unwrap();
        assert_eq!(rig.expired(2).await, Failure::TimedOutUnsent { reason });
        rig.ticks(Tuning::HEARTBEAT_TICKS as usize).await;
        let status = rig.port.status.lock().clone();
        assert!(status.peers.iter().all(|peer| peer.trouble.as_ref().unwrap().contains(&peer.address)), "{status:?}");
    });
}

#[test]
fn without_a_leader_errors_name_who_cannot_be_reached_and_why() {
    run(async {
        let mut rig = Rig::formed_of_three().await;
        rig.until("both were dialled", |rig| (2..=3).all(|peer| rig.node.network.trouble(peer).is_some())).await;
        rig.port.inbox.request(Request::ReadBarrier { token: 2, deadline_ns: Some(1) });
        let _ = rig.node.round().unwrap();
        let Failure::TimedOutUnsent { reason } = rig.expired(2).await else { panic!("there is no leader") };
        for part in ["there was no leader", "node 2: connecting to 127.0.0.2:1", "node 3: connecting to 127.0.0.3:1"] {
            assert!(reason.contains(part), "{reason}");
        }
    });
}

#[test]
fn every_message_that_panics_raft_rs_is_dropped_and_both_sides_say_so() {
    let log = TestLog::default();
    let _guard = tracing::dispatcher::set_default(&log.dispatch());
    run(async {
        let mut rig = Rig::formed_of_three().await;
        let term = 1 + rig.node.engine.status().term;
        let hostile = [
            Message { msg_type: 99, ..message(MessageType::MsgAppend, term) },
            message(MessageType::MsgPropose, term),
            message(MessageType::MsgReadIndex, 0),
            Message { commit: 1_000, ..message(MessageType::MsgHeartbeat, term) },
            message(MessageType::MsgTransferLeader, term),
            Message { log_term: 0, index: 1_000, ..message(MessageType::MsgAppend, term) },
            Message { reject: true, reject_hint: u64::MAX, ..message(MessageType::MsgAppendResponse, term) },
        ];
        // Again and again: each reason is said once.
        for _ in 0..20 {
            rig.raft(2, hostile.to_vec());
            rig.ticks(1).await;
        }
        for _ in 0..20 {
            let reason = "a field has a value".to_owned();
            rig.node.take_event(Event::Dropped { from: 2, group: APPLICATION_GROUP, reason });
        }
    });
    let here = log.said("what node 2 sends is dropped: ");
    let mut reasons = here.iter().map(|line| line.message().split(": ").nth(1).unwrap()).collect::<Vec<_>>();
    reasons.sort_unstable();
    let expected = [
        "a field has a value that its type of message cannot have",
        "a message of this type never comes from the network",
        "it presumes entries that are not in this node's log",
    ];
    assert_eq!(reasons, expected);
    let there = log.said("node 2 drops what this node sends: a field has a value");
    assert_eq!(there.len(), 1);
    for line in here.iter().chain(&there) {
        assert_eq!(line.level, tracing::Level::WARN);
        assert_eq!(["node", "peer", "group"].map(|name| line.field(name).unwrap()), ["1", "2", "1"]);
    }
}

#[test]
fn decision_3_a_failed_log_stops_the_node_and_nobody_is_answered() {
    run(async {
        let mut rig = Rig::new(1);
        rig.until("leads", |rig| rig.node.engine.status().role == "leader").await;
        rig.until("has begun its term", |rig| rig.node.engine.status().applied == 2).await;
        rig.ticks(2).await;
        rig.completions();
        let applied = rig.node.engine.status().applied;
        rig.log_fails.store(true, Ordering::SeqCst);
        rig.propose(1, b"x");
        let mut stop = None;
        for _ in 0..1_000 {
            rig.propose(2, b"y");
            if let Err(reason) = rig.tick().await {
                stop = Some(reason.to_string());
                break;
            }
        }
        let stop = stop.expect("the node goes on without a log");
        assert!(stop.contains("the log failed") && stop.contains("the disk is gone"), "{stop}");
        assert_eq!(rig.node.engine.status().applied, applied);
        let answered = rig.completions().into_iter().filter(|done| !matches!(done, Completion::Leadership(_)));
        assert_eq!(answered.count(), 0);
    });
}

#[test]
fn decision_3_a_failed_log_is_named_as_the_reason_of_the_end() {
    run(async {
        let rig = Rig::new(1);
        rig.log_fails.store(true, Ordering::SeqCst);
        let reason = rig.node.run().await.unwrap().message;
        assert!(reason.contains("the log failed") && reason.contains("the disk is gone"), "{reason}");
    });
}

#[test]
fn c1_an_application_that_falls_behind_is_handed_no_more_until_it_catches_up() {
    const COUNT: usize = 400;
    const PAYLOAD: usize = 4 << 10;
    run(async {
        let mut rig = Rig::new(1);
        for token in 0..COUNT as u64 {
            rig.propose(token, &vec![token as u8; PAYLOAD]);
        }
        let last = 2 + COUNT as u64;
        rig.until("applied", |rig| rig.node.engine.status().applied == last).await;
        rig.ticks(10).await;
        let (mut seen, mut waiting, mut handed) = (Vec::new(), VecDeque::new(), 0);
        let limit = tuning().max_unapplied_bytes + APPLY_BYTES + 2 * PAYLOAD;
        loop {
            for done in rig.completions() {
                let Completion::Apply { entries, through, bytes } = done else { continue };
                handed += entries.iter().map(|entry| entry.command.payload().len()).sum::<usize>();
                seen.extend(entries.iter().map(|entry| (entry.index, entry.token)));
                waiting.push_back((through, bytes));
            }
            let outstanding = waiting.iter().map(|(_, bytes)| bytes).sum::<usize>();
            assert_eq!(rig.port.completions.unapplied_bytes(), outstanding);
            assert!(outstanding <= limit, "{outstanding} bytes are waiting for the application");
            let Some((through, bytes)) = waiting.pop_front() else { break };
            rig.port.cursor.set_applied(through);
            rig.port.completions.consumed(bytes);
            rig.port.inbox.nudge();
            let _ = rig.node.round().unwrap();
        }
        assert_eq!(handed, COUNT * PAYLOAD);
        let expected = (0..COUNT as u64).map(|token| (3 + token, Some(token)));
        assert_eq!(seen, expected.collect::<Vec<_>>(), "all of it, in order, once");
        assert_eq!(rig.port.cursor.applied(), last);
    });
}

#[test]
fn c5_a_reader_that_saw_the_cursor_move_is_answered_with_what_it_saw_applied() {
    run(async {
        let mut rig = Rig::new(1);
        rig.propose(1, b"x");
        rig.until("applied", |rig| rig.node.engine.status().applied == 3).await;
        rig.ticks(1).await;
        rig.completions();
        // Between two rounds the application applies it, sees that, and asks.
        rig.port.cursor.set_applied(3);
        rig.port.inbox.request(Request::ReadApplied { token: 2, after: 0, max_bytes: 1 << 20 });
        let _ = rig.node.round().unwrap();
        let ranges = rig.completions().into_iter().filter_map(|done| match done {
            Completion::Range { token: 2, result: Ok((entries, through)) } => Some((entries.len(), through)),
            _ => None,
        });
        assert_eq!(ranges.collect::<Vec<_>>(), [(1, 3)]);
    });
}
