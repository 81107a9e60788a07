//! Networks on loopback, several in one runtime. No test sleeps: each waits for an event, with a deadline.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::{Entry, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{timeout, Instant};

use super::handshake::{decode_greeting, decode_refusal, encode_confirm, encode_greeting, Greeting};
use super::resolve::Lookup;
use super::wire::{begin, end, Header, Kind, HANDSHAKE_FORMAT, HEADER_LEN, PROTOCOL_VERSION};
use super::*;
use crate::engine::command::Command;
use crate::engine::NodeId;
use crate::storage::snapshot::{SnapshotName, SnapshotStore};
use crate::test_log::TestLog;

mod admin;
mod proxy;
mod snapshots;
mod test_store;

use test_store::TestStore;

const DEADLINE: Duration = Duration::from_secs(20);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| local.block_on(&runtime, test)));
    // A test that has failed may have left a disk that hangs.
    drop(local);
    runtime.shutdown_background();
    outcome.unwrap_or_else(|panic| resume_unwind(panic));
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

fn hello(from: NodeId, to: NodeId, boot: u64) -> Hello {
    Hello {
        cluster: "test".into(),
        lineage: 7,
        incarnation: 1,
        from,
        to,
        identity: u128::from(from) + 1000,
        boot,
        nonce: from * 100 + boot,
        earlier: vec![8, 9],
        role: Role::Peer,
        advertise: format!("node-{from}:1"),
        formation: vec![1, 2, 3],
        held: Held { term: 4, vote: 5, last_index: 6 },
    }
}

struct TestGate {
    me: NodeId,
    boot: u64,
    cluster: String,
    /// Ids that are not let in.
    refused: RefCell<Vec<NodeId>>,
    /// Why no snapshot is taken.
    unwanted: RefCell<Option<Refusal>>,
    asked: Cell<u32>,
}

impl Gate for TestGate {
    fn hello(&self, to: NodeId) -> Hello {
        Hello { cluster: self.cluster.clone(), ..hello(self.me, to, self.boot) }
    }

    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        self.asked.set(self.asked.get() + 1);
        if hello.cluster != self.cluster {
            let reason = format!("node {} belongs to cluster {:?}, not {:?}", hello.from, hello.cluster, self.cluster);
            return Err(Refusal::new(RefusalCode::Cluster, reason));
        }
        if self.refused.borrow().contains(&hello.from) {
            return Err(Refusal::new(RefusalCode::NotAMember, format!("node {} is not a member", hello.from)));
        }
        Ok(())
    }

    fn admit_admin(&self, hello: &Hello, _is_local: bool) -> Result<(), Refusal> {
        self.admit(hello)
    }

    fn admit_snapshot(&self, _from: NodeId, _name: &SnapshotName) -> Result<(), Refusal> {
        self.unwanted.borrow().clone().map_or(Ok(()), Err)
    }
}

struct Node {
    id: NodeId,
    network: Network,
    gate: Rc<TestGate>,
    store: TestStore,
    events: Events,
    notify: Arc<Notify>,
    batch: Vec<Event>,
    seen: VecDeque<Event>,
}

#[derive(Clone)]
struct Start {
    id: NodeId,
    boot: u64,
    at: SocketAddr,
    cluster: &'static str,
    options: Options,
}

impl Start {
    fn new(id: NodeId) -> Self {
        let options = Options {
            redial_min: Duration::from_millis(5),
            redial_max: Duration::from_millis(50),
            ..Options::default()
        };
        Self { id, boot: 1, at: ([127, 0, 0, 1], 0).into(), cluster: "test", options }
    }

    fn node(self) -> Node {
        let store = TestStore::default();
        Node { store: store.clone(), ..self.node_with(Arc::new(store)) }
    }

    fn node_with(self, snapshots: Arc<dyn SnapshotStore>) -> Node {
        let listener = TcpListener::bind(self.at).unwrap();
        let gate = Rc::new(TestGate {
            me: self.id,
            boot: self.boot,
            cluster: self.cluster.to_owned(),
            refused: RefCell::default(),
            unwanted: RefCell::default(),
            asked: Cell::new(0),
        });
        let notify = Arc::new(Notify::new());
        let events = Events::new(Arc::clone(&notify));
        let doorkeeper = Rc::clone(&gate) as Rc<dyn Gate>;
        let network = Network::start(listener, self.id, doorkeeper, self.options, events.clone(), snapshots).unwrap();
        let store = TestStore::default();
        Node { id: self.id, network, gate, store, events, notify, batch: Vec::new(), seen: VecDeque::new() }
    }
}

impl Node {
    fn address(&self) -> String {
        self.network.local_address().to_string()
    }

    async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.seen.pop_front() {
                return event;
            }
            self.events.take(&mut self.batch);
            self.seen.extend(self.batch.drain(..));
            if self.seen.is_empty() {
                self.notify.notified().await;
            }
        }
    }

    /// Waits for an event that `pick` picks; others are skipped.
    async fn until<T>(&mut self, what: &str, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        soon(what, async {
            loop {
                if let Some(picked) = pick(self.next().await) {
                    return picked;
                }
            }
        })
        .await
    }

    async fn up(&mut self, id: NodeId) -> (Rc<Hello>, u64) {
        self.until("Up", |event| match event {
            Event::Up { peer, hello, epoch } if peer == id => Some((hello, epoch)),
            _ => None,
        })
        .await
    }

    async fn down(&mut self, id: NodeId) -> String {
        self.until("Down", |event| match event {
            Event::Down { peer, reason, .. } if peer == id => Some(reason),
            _ => None,
        })
        .await
    }

    /// Waits until a peer has refused this node.
    async fn refused_by_them(&mut self) -> String {
        self.until("Refused by a peer", |event| match event {
            Event::Refused { by_us: false, reason, .. } => Some(reason),
            _ => None,
        })
        .await
    }

    async fn refused(&mut self) -> (NodeId, bool, RefusalCode, String) {
        self.until("Refused", |event| match event {
            Event::Refused { peer, by_us, code, reason, .. } => Some((peer, by_us, code, reason)),
            _ => None,
        })
        .await
    }

    /// Waits for `count` Raft messages from `id`.
    async fn raft(&mut self, id: NodeId, count: usize) -> Vec<Message> {
        let mut all = Vec::new();
        self.until("Raft messages", |event| {
            if let Event::Raft { from, messages, .. } = event {
                if from == id {
                    all.extend(messages);
                }
            }
            (all.len() >= count).then_some(())
        })
        .await;
        assert_eq!(all.len(), count);
        all
    }

    fn send(&mut self, to: NodeId, index: u64, bytes: usize) -> bool {
        let message = message(self.id, to, index, bytes);
        self.network.send_raft(to, 1, &message)
    }

    /// Sends one message with that index, now.
    fn say(&mut self, to: NodeId, index: u64) {
        assert!(self.send(to, index, 10));
        self.network.flush();
    }

    async fn stop(mut self) {
        self.network.shutdown();
        soon("the tasks' end", self.network.join()).await;
    }
}

fn message(from: NodeId, to: NodeId, index: u64, bytes: usize) -> Message {
    let entries = vec![Entry { index, data: vec![index as u8; bytes], ..Entry::default() }];
    Message { msg_type: 3, from, to, index, entries, ..Message::default() }
}

async fn pair(one: Start, two: Start) -> (Node, Node) {
    let (mut one, mut two) = (one.node(), two.node());
    one.network.set_peer(two.id, &two.address());
    two.network.set_peer(one.id, &one.address());
    one.up(two.id).await;
    two.up(one.id).await;
    (one, two)
}

/// A peer made by hand: it follows the protocol as far as the test wants.
struct ByHand(TcpStream);

impl ByHand {
    async fn connect(to: &Node) -> Self {
        Self(TcpStream::connect(to.network.local_address()).await.unwrap())
    }

    /// Dials and shakes hands as `from`.
    async fn greet(to: &Node, from: NodeId, boot: u64) -> (Self, Kind, Vec<u8>) {
        Self::greet_with(to, hello(from, to.id, boot)).await
    }

    /// Dials and says that.
    async fn greet_with(to: &Node, hello: Hello) -> (Self, Kind, Vec<u8>) {
        let mut this = Self::connect(to).await;
        let greeting = Greeting::new(hello);
        this.0.write_all(&encode_greeting(Kind::Hello, &greeting).unwrap()).await.unwrap();
        let (kind, body) = this.read_frame(HANDSHAKE_FORMAT).await;
        if kind == Kind::Welcome {
            this.0.write_all(&encode_confirm().unwrap()).await.unwrap();
        }
        (this, kind, body)
    }

    async fn read_frame(&mut self, version: u8) -> (Kind, Vec<u8>) {
        soon("a frame", async {
            let mut front = [0; HEADER_LEN];
            self.0.read_exact(&mut front).await.unwrap();
            let header = Header::decode(&front, version, 1 << 20).unwrap().unwrap();
            let mut body = vec![0; header.body_len];
            self.0.read_exact(&mut body).await.unwrap();
            (header.kind, body)
        })
        .await
    }

    /// Waits until the other side has closed.
    async fn ended(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // Closed or reset, both are an end.
        let _ = soon("the connection's end", self.0.read_to_end(&mut rest)).await;
        rest
    }
}

#[test]
fn every_kind_of_frame_arrives_with_its_authenticated_sender() {
    run(async {
        let (mut one, mut two) = pair(Start::new(1), Start::new(2)).await;
        assert!(one.network.connected(2) && two.network.connected(1));
        assert_eq!(one.network.address_of(2), Some(two.address()));
        assert!(one.send(2, 5, 100));
        let mut command = Command::new(b"payload");
        command.set_origin(1, 1, 9);
        assert!(one.network.send_propose(2, 4, &command));
        let refusal = Rejected { boot: 1, numbers: vec![3, 4], leader: 2, term: 6, reason: "no leader".into() };
        assert!(one.network.send_rejected(2, 4, &refusal));
        assert!(one.network.send_formation(2, b"form"));
        assert!(one.network.send_dropped(2, 4, "it is\nodd"));
        assert!(one.network.send_durable(2, 4, 77));
        assert!(!one.network.send_formation(3, b"form"), "there is no way to node 3");
        one.network.flush();
        assert_eq!(two.raft(1, 1).await, [message(1, 2, 5, 100)]);
        let got = two
            .until("Propose", |event| match event {
                Event::Propose { from: 1, group: 4, commands } => Some(commands),
                _ => None,
            })
            .await;
        assert_eq!(got, [command]);
        let got = two
            .until("Rejected", |event| match event {
                Event::Rejected { from: 1, group: 4, rejected } => Some(rejected),
                _ => None,
            })
            .await;
        assert_eq!(got, refusal);
        let got = two
            .until("Formation", |event| match event {
                Event::Formation { from: 1, body } => Some(body),
                _ => None,
            })
            .await;
        assert_eq!(got, b"form");
        let got = two
            .until("Dropped", |event| match event {
                Event::Dropped { from: 1, group: 4, reason } => Some(reason),
                _ => None,
            })
            .await;
        assert_eq!(got, "it is odd");
        let got = two
            .until("Durable", |event| match event {
                Event::Durable { from: 1, group: 4, index } => Some(index),
                _ => None,
            })
            .await;
        assert_eq!(got, 77);
        two.say(1, 1);
        one.raft(2, 1).await;
    });
}

#[test]
fn up_tells_what_the_peer_says_about_itself() {
    run(async {
        let (mut one, mut two) = (Start::new(1).node(), Start { boot: 5, ..Start::new(2) }.node());
        one.network.set_peer(2, &two.address());
        let (dialled, _) = one.up(2).await;
        let (answered, _) = two.up(1).await;
        assert_eq!(*dialled, hello(2, 1, 5));
        assert_eq!(*answered, hello(1, 2, 1));
    });
}

#[test]
fn ten_thousand_messages_of_mixed_size_keep_their_order() {
    run(async {
        let (mut one, mut two) = pair(Start::new(1), Start::new(2)).await;
        let sizes = |index: u64| match index % 1000 {
            999 => 700_000,
            n => (n * n % 3001) as usize,
        };
        for index in 0..10_000 {
            assert!(one.send(2, index, sizes(index)));
            if index % 37 == 0 {
                one.network.flush();
            }
        }
        one.network.flush();
        for (index, message) in two.raft(1, 10_000).await.into_iter().enumerate() {
            assert_eq!(message.index, index as u64);
            assert_eq!(message.entries[0].data.len(), sizes(index as u64));
        }
    });
}

#[test]
fn three_nodes_all_reach_each_other() {
    run(async {
        let mut nodes: Vec<_> = (1..=3).map(|id| Start::new(id).node()).collect();
        let addresses: Vec<_> = nodes.iter().map(|node| (node.id, node.address())).collect();
        for node in &mut nodes {
            for (id, address) in &addresses {
                // Its own address is in everyone's list of members.
                node.network.set_peer(*id, address);
            }
        }
        for node in &mut nodes {
            let mut missing: Vec<_> = (1..=3).filter(|id| *id != node.id).collect();
            node.until("two peers", |event| {
                if let Event::Up { peer, .. } = event {
                    missing.retain(|id| *id != peer);
                }
                missing.is_empty().then_some(())
            })
            .await;
        }
        for at in 0..3 {
            let from = nodes[at].id;
            for to in (1..=3).filter(|to| *to != from) {
                nodes[at].say(to, from * 10 + to);
                let got = nodes[to as usize - 1].raft(from, 1).await;
                assert_eq!(got[0].index, from * 10 + to);
            }
        }
    });
}

#[test]
fn a_peer_that_is_started_again_is_found_again() {
    run(async {
        let (mut one, two) = pair(Start::new(1), Start::new(2)).await;
        let at = two.network.local_address();
        two.stop().await;
        one.down(2).await;
        assert!(!one.network.connected(2));
        assert!(!one.send(2, 1, 1));
        let mut two = Start { boot: 2, at, ..Start::new(2) }.node();
        let (hello, _) = one.up(2).await;
        assert_eq!(hello.boot, 2);
        two.network.set_peer(1, &one.address());
        two.up(1).await;
        one.say(2, 77);
        assert_eq!(two.raft(1, 1).await[0].index, 77);
    });
}

#[test]
fn an_inbound_connection_ends_the_dialers_pause() {
    run(async {
        // Without the inbound connection, the second attempt would come after the deadline.
        let mut slow = Start::new(1);
        slow.options.redial_min = DEADLINE * 3;
        slow.options.redial_max = DEADLINE * 3;
        let mut one = slow.node();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        one.network.set_peer(2, &at.to_string());
        soon("the first failure", async {
            while one.network.trouble(2).is_none() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(one.network.trouble(2).unwrap().contains(&at.to_string()));
        let mut two = Start { at, ..Start::new(2) }.node();
        two.network.set_peer(1, &one.address());
        let (_, epoch) = one.up(2).await;
        let routed = one
            .until("Routed", |event| match event {
                Event::Routed { peer: 2, epoch, lost } => Some((epoch, lost)),
                _ => None,
            })
            .await;
        assert_eq!(routed, (epoch + 1, false));
        assert_eq!(one.network.trouble(2), None);
    });
}

#[test]
fn a_refusal_reaches_both_sides_with_its_reason() {
    run(async {
        let (mut one, mut two) = (Start::new(1).node(), Start { cluster: "other", ..Start::new(2) }.node());
        one.network.set_peer(2, &two.address());
        let reason = "node 1 belongs to cluster \"test\", not \"other\"".to_owned();
        assert_eq!(two.refused().await, (1, true, RefusalCode::Cluster, reason.clone()));
        assert_eq!(one.refused().await, (2, false, RefusalCode::Cluster, reason.clone()));
        assert!(one.network.trouble(2).unwrap().contains(&reason));
        assert!(!one.network.connected(2) && !two.network.connected(1));
    });
}

#[test]
fn a_dialer_may_refuse_the_welcome_and_says_why() {
    run(async {
        let (mut one, mut two) = (Start::new(1).node(), Start::new(2).node());
        one.gate.refused.borrow_mut().push(2);
        one.network.set_peer(2, &two.address());
        let reason = "node 2 is not a member".to_owned();
        assert_eq!(one.refused().await, (2, true, RefusalCode::NotAMember, reason.clone()));
        assert_eq!(two.refused().await, (1, false, RefusalCode::NotAMember, reason.clone()));
        assert!(!two.seen.iter().any(|event| matches!(event, Event::Up { .. })), "it was never let in");
        // Let in later, it comes in without being asked again.
        one.gate.refused.borrow_mut().clear();
        one.up(2).await;
    });
}

#[test]
fn a_refusal_is_logged_once_in_a_while_on_both_sides_with_peer_and_reason() {
    let log = TestLog::default();
    let _guard = tracing::dispatcher::set_default(&log.dispatch());
    run(async {
        let (mut one, two) = (Start::new(1).node(), Start { cluster: "other", ..Start::new(2) }.node());
        one.network.set_peer(2, &two.address());
        one.refused().await;
        // It goes on dialling, and is refused again and again.
        soon("more refusals", async {
            while two.gate.asked.get() < 5 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    });
    let lines = log.said("node 1 belongs to cluster \"test\", not \"other\"");
    let seen = lines.iter().map(|line| (line.level, line.field("node").unwrap(), line.field("peer").unwrap()));
    let mut seen = seen.collect::<Vec<_>>();
    seen.sort();
    assert_eq!(seen, [(tracing::Level::WARN, "1", "2"), (tracing::Level::WARN, "2", "1")]);
}

#[test]
fn strangers_do_not_fill_the_log_nor_silence_what_is_said_of_peers() {
    let log = TestLog::default();
    let _guard = tracing::dispatcher::set_default(&log.dispatch());
    run(async {
        let mut one = Start::new(1).node();
        for number in 0..200 {
            // Each has something else to say.
            let mut stranger = ByHand::connect(&one).await;
            let foreign = Hello { cluster: format!("of {number}"), ..hello(2, 1, 1) };
            stranger.0.write_all(&encode_greeting(Kind::Hello, &Greeting::new(foreign)).unwrap()).await.unwrap();
            assert_eq!(stranger.read_frame(HANDSHAKE_FORMAT).await.0, Kind::Refuse);
        }
        let two = Start { cluster: "other", ..Start::new(2) }.node();
        one.network.set_peer(2, &two.address());
        assert!(!one.refused_by_them().await.is_empty());
    });
    let of_strangers = log.said("belongs to cluster \"of ");
    assert!((1..=64).contains(&of_strangers.len()), "{} lines", of_strangers.len());
    assert!(of_strangers.iter().all(|line| line.field("from").unwrap().starts_with("127.0.0.1:")));
    assert_eq!(log.said("node 2 refused this node").len(), 1);
}

#[test]
fn a_node_that_dials_itself_is_told_so() {
    run(async {
        let mut one = Start::new(1).node();
        let itself = one.address();
        one.network.set_peer(2, &itself);
        let mut told = Vec::new();
        for _ in 0..2 {
            let (peer, by_us, code, reason) = one.refused().await;
            assert_eq!(code, RefusalCode::SelfConnection);
            assert!(reason.contains("node 1 lists itself under another address"), "{reason}");
            told.push((peer, by_us));
        }
        told.sort_unstable();
        assert_eq!(told, [(1, true), (2, false)]);
    });
}

#[test]
fn an_address_that_belongs_to_another_node_is_told_so() {
    run(async {
        let (mut one, mut three) = (Start::new(1).node(), Start::new(3).node());
        one.network.set_peer(2, &three.address());
        let (_, _, code, reason) = one.refused().await;
        assert_eq!(code, RefusalCode::WrongNode);
        assert!(reason.contains("reached node 3"), "{reason}");
        assert!(three.refused().await.1);
        // Corrected, it connects.
        let two = Start::new(2).node();
        one.network.set_peer(2, &two.address());
        one.up(2).await;
    });
}

#[test]
fn strangers_are_dropped_while_others_go_on() {
    run(async {
        let mut start = Start::new(1);
        start.options.handshake_timeout = Duration::from_millis(400);
        let (mut one, mut two) = pair(start, Start::new(2)).await;
        let mut garbage = ByHand::connect(&one).await;
        garbage.0.write_all(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n").await.unwrap();
        let mut huge = ByHand::connect(&one).await;
        huge.0.write_all(&[0xff, 0xff, 0xff, 0xff, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let mut half = ByHand::connect(&one).await;
        half.0.write_all(&encode_greeting(Kind::Hello, &Greeting::new(hello(9, 1, 1))).unwrap()[..40]).await.unwrap();
        let mut silent = ByHand::connect(&one).await;
        let mut gone = ByHand::connect(&one).await;
        gone.0.shutdown().await.unwrap();
        for index in 0..100 {
            two.say(1, index);
            one.say(2, index);
            assert_eq!(one.raft(2, 1).await[0].index, index);
            assert_eq!(two.raft(1, 1).await[0].index, index);
        }
        let reason = |frame: Vec<u8>| decode_refusal(&frame[HEADER_LEN..]).unwrap().reason;
        assert!(reason(garbage.ended().await).contains("no aioraft peer"));
        let told = reason(huge.ended().await);
        assert!(told.contains("4294967295") && told.contains("65536"), "{told}");
        assert!(half.ended().await.is_empty());
        assert!(silent.ended().await.is_empty());
        assert!(gone.ended().await.is_empty());
        two.say(1, 1000);
        assert_eq!(one.raft(2, 1).await[0].index, 1000);
    });
}

#[test]
fn a_peer_that_breaks_the_protocol_is_dropped_while_others_go_on() {
    run(async {
        let mut start = Start::new(1);
        start.options.frame_bytes_max = 1 << 20;
        let (mut one, mut two) = pair(start, Start::new(2)).await;
        let frame = |version, kind, body: &[u8]| {
            let mut bytes = Vec::new();
            let begun = begin(&mut bytes, version, kind, 1);
            bytes.extend_from_slice(body);
            end(&mut bytes, begun, usize::MAX).unwrap();
            bytes
        };
        let mut huge = frame(PROTOCOL_VERSION, Kind::Raft, b"");
        huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut unknown = frame(PROTOCOL_VERSION, Kind::Raft, b"");
        unknown[5] = 99;
        let cases = [
            (huge, "1048576"),
            (unknown, "unknown kind 99"),
            (frame(7, Kind::Raft, b""), "version 7"),
            (frame(PROTOCOL_VERSION, Kind::Raft, &[0xff; 20]), "damaged"),
            (frame(PROTOCOL_VERSION, Kind::Raft, &[0; 10_000]), "memory"),
            (frame(PROTOCOL_VERSION, Kind::Propose, &[0xff; 20]), "damaged"),
            (frame(PROTOCOL_VERSION, Kind::Rejected, &[0xff; 20]), "damaged"),
            (frame(PROTOCOL_VERSION, Kind::Hello, b""), "Hello"),
            (frame(PROTOCOL_VERSION, Kind::SnapshotBegin, b""), "SnapshotBegin"),
            (frame(PROTOCOL_VERSION, Kind::SnapshotData, b""), "SnapshotData"),
            (frame(PROTOCOL_VERSION, Kind::SnapshotDone, b""), "SnapshotDone"),
            (frame(PROTOCOL_VERSION, Kind::Dropped, &[0xff; 20]), "damaged"),
            (frame(PROTOCOL_VERSION, Kind::Durable, &[1]), "shorter"),
        ];
        for (bytes, expected) in cases {
            let (mut stranger, kind, _) = ByHand::greet(&one, 3, 1).await;
            assert_eq!(kind, Kind::Welcome);
            one.up(3).await;
            stranger.0.write_all(&bytes).await.unwrap();
            let reason = one.down(3).await;
            assert!(reason.contains(expected), "{reason} instead of {expected}");
            let last_words = stranger.ended().await;
            assert_eq!(decode_refusal(&last_words[HEADER_LEN..]).unwrap().reason, reason, "it is told as well");
        }
        // Half a frame is no offence, only never an event.
        let (mut half, ..) = ByHand::greet(&one, 3, 1).await;
        one.up(3).await;
        let whole = {
            let mut batch = batch::Batch::new(1 << 20);
            batch.raft(1, &message(3, 1, 8, 500)).unwrap();
            batch.raft(1, &Message { from: 2, ..message(3, 1, 9, 5) }).unwrap();
            batch.raft(1, &message(3, 1, 10, 5)).unwrap();
            batch.close().clone()
        };
        half.0.write_all(&whole[..200]).await.unwrap();
        for index in 0..50 {
            two.say(1, index);
            assert_eq!(one.raft(2, 1).await[0].index, index);
        }
        half.0.write_all(&whole[200..]).await.unwrap();
        // What it said in node 2's name is left out.
        let indexes: Vec<_> = one.raft(3, 2).await.iter().map(|message| message.index).collect();
        assert_eq!(indexes, [8, 10]);
    });
}

#[test]
fn the_oldest_unfinished_handshake_makes_room_for_the_next() {
    run(async {
        let mut start = Start::new(1);
        start.options.handshakes_max = 3;
        start.options.handshake_timeout = DEADLINE * 3;
        let (mut one, mut two) = (start.node(), Start::new(2).node());
        let mut silent = Vec::new();
        for _ in 0..4 {
            silent.push(ByHand::connect(&one).await);
        }
        silent[0].ended().await;
        // Silence does not keep a peer out.
        two.network.set_peer(1, &one.address());
        two.up(1).await;
        one.up(2).await;
        silent[1].ended().await;
        let mut byte = [0];
        assert!(silent[3].0.try_read(&mut byte).is_err(), "the newest is still there");
    });
}

#[test]
fn strangers_at_one_address_do_not_crowd_out_those_at_another() {
    run(async {
        let mut start = Start::new(1);
        start.options.handshakes_max = 6;
        start.options.handshakes_per_address_max = 4;
        start.options.handshake_timeout = DEADLINE * 3;
        let one = start.node();
        let connect = |from: &'static str| {
            let at = one.network.local_address();
            async move {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
                ByHand(socket.connect(at).await.unwrap())
            }
        };
        let mut patient = connect("127.0.0.2").await;
        let mut crowd = Vec::new();
        for _ in 0..50 {
            crowd.push(connect("127.0.0.3").await);
        }
        for dropped in &mut crowd[..46] {
            dropped.ended().await;
        }
        // The bound on all is reached: the crowd pays for it.
        let mut others = [connect("127.0.0.4").await, connect("127.0.0.5").await];
        crowd[46].ended().await;
        let mut byte = [0];
        for open in others.iter_mut().chain(&mut crowd[47..]).chain([&mut patient]) {
            assert!(open.0.try_read(&mut byte).is_err());
        }
        let greeting = Greeting::new(hello(2, 1, 1));
        patient.0.write_all(&encode_greeting(Kind::Hello, &greeting).unwrap()).await.unwrap();
        assert_eq!(patient.read_frame(HANDSHAKE_FORMAT).await.0, Kind::Welcome);
    });
}

#[test]
fn a_peer_that_says_goodbye_is_known_to_have_ended_well() {
    run(async {
        for in_order in [true, false] {
            let (mut one, mut two) = (Start::new(1).node(), Start::new(2).node());
            one.network.set_peer(2, &two.address());
            one.up(2).await;
            two.up(1).await;
            assert!(one.send(2, 9, 100));
            if in_order {
                // The driver is behind, and what it has not read makes no difference.
                two.say(1, 5);
                soon("the peers' hanging up", one.network.part()).await;
                assert!(TcpListener::bind(one.network.local_address()).is_ok(), "nobody listens any more");
            }
            one.stop().await;
            assert_eq!(two.raft(1, 1).await[0].index, 9, "what was sent before arrives");
            let ended = two.until("Down", |event| match event {
                Event::Down { peer: 1, reason, in_order } => Some((reason, in_order)),
                _ => None,
            });
            let (reason, ended_in_order) = ended.await;
            assert_eq!(ended_in_order, in_order, "{reason}");
        }
    });
}

#[derive(Default)]
struct Names {
    known: RefCell<HashMap<String, SocketAddr>>,
    asked: Cell<u32>,
}

impl Resolve for Names {
    fn resolve<'a>(&'a self, address: &'a str) -> Lookup<'a> {
        self.asked.set(self.asked.get() + 1);
        let found = self.known.borrow().get(address).copied();
        let result = found.map(|found| vec![found]).ok_or_else(|| std::io::Error::other("no such name"));
        Box::pin(std::future::ready(result))
    }
}

#[test]
fn a_name_is_looked_up_again_at_each_attempt() {
    run(async {
        let names = Rc::new(Names::default());
        let mut start = Start::new(1);
        start.options.resolver = Rc::clone(&names) as Rc<dyn Resolve>;
        let mut one = start.node();
        one.network.set_peer(2, "two.example:7400");
        soon("three look-ups", async {
            while names.asked.get() < 3 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(one.network.trouble(2).unwrap().contains("two.example:7400 cannot be looked up: no such name"));
        let two = Start::new(2).node();
        names.known.borrow_mut().insert("two.example:7400".into(), two.network.local_address());
        one.up(2).await;
        // It moves.
        two.stop().await;
        one.down(2).await;
        let two = Start { boot: 2, ..Start::new(2) }.node();
        names.known.borrow_mut().insert("two.example:7400".into(), two.network.local_address());
        assert_eq!(one.up(2).await.0.boot, 2);
    });
}

#[test]
fn a_peer_that_does_not_read_is_dropped_instead_of_buffered_for_ever() {
    run(async {
        let mut start = Start::new(1);
        start.options.backlog_bytes_max = 2 << 20;
        let mut one = start.node();
        let (_never_read, ..) = ByHand::greet(&one, 2, 1).await;
        one.up(2).await;
        let mut sent = 0;
        while one.send(2, sent, 100_000) {
            one.network.flush();
            sent += 1;
            assert!(sent < 10_000, "a gigabyte found room somewhere");
            tokio::task::yield_now().await;
        }
        let reason = one.down(2).await;
        assert!(reason.contains("unsent") && reason.contains("2097152"), "{reason}");
        assert!(!one.network.connected(2));
    });
}

#[test]
fn a_round_that_never_flushes_does_not_grow_without_bound() {
    run(async {
        let mut start = Start::new(1);
        start.options.backlog_bytes_max = 2 << 20;
        let mut one = start.node();
        let (_never_read, ..) = ByHand::greet(&one, 2, 1).await;
        one.up(2).await;
        let mut sent = 0;
        while one.send(2, sent, 100_000) {
            sent += 1;
            assert!(sent < 10_000, "a gigabyte found room somewhere");
        }
        one.down(2).await;
    });
}

#[test]
fn a_driver_that_is_behind_makes_its_readers_wait() {
    run(async {
        let mut start = Start::new(2);
        start.options.unread_bytes_max = 1 << 20;
        let (mut one, mut two) = pair(Start::new(1), start).await;
        const COUNT: usize = 400;
        for index in 0..COUNT {
            assert!(one.send(2, index as u64, 100_000));
        }
        one.network.flush();
        soon("the reader's pause", async {
            while two.events.unread_bytes() <= 1 << 20 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let mut got = 0;
        soon("all messages", async {
            while got < COUNT {
                // One read more than the limit, which may complete one frame more.
                assert!(two.events.unread_bytes() < 5 << 20, "{}", two.events.unread_bytes());
                got += two.raft_now();
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(got, COUNT);
    });
}

impl Node {
    /// Raft messages in the next batch, which may be empty.
    fn raft_now(&mut self) -> usize {
        self.events.take(&mut self.batch);
        let count = |event: &Event| match event {
            Event::Raft { messages, .. } => messages.len(),
            _ => 0,
        };
        self.batch.iter().map(count).sum()
    }
}

#[test]
fn a_node_behind_nat_is_reached_over_the_connection_it_dialled() {
    run(async {
        let (mut one, mut hidden) = (Start::new(1).node(), Start::new(2).node());
        // Node 1 has an address for node 2 that leads nowhere.
        let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        one.network.set_peer(2, &nowhere.to_string());
        hidden.network.set_peer(1, &one.address());
        one.up(2).await;
        hidden.up(1).await;
        for index in 0..10 {
            one.say(2, index);
            assert_eq!(hidden.raft(1, 1).await[0].index, index);
            hidden.say(1, index);
            assert_eq!(one.raft(2, 1).await[0].index, index);
        }
        assert!(one.network.trouble(2).unwrap().contains(&nowhere.to_string()));
        hidden.stop().await;
        one.down(2).await;
    });
}

#[test]
fn connections_of_an_earlier_boot_are_closed() {
    run(async {
        let mut one = Start::new(1).node();
        let (mut first, ..) = ByHand::greet(&one, 2, 1).await;
        one.up(2).await;
        let (mut second, ..) = ByHand::greet(&one, 2, 2).await;
        assert!(one.down(2).await.contains("started again"));
        assert_eq!(one.up(2).await.0.boot, 2);
        first.ended().await;
        // A straggler of the first boot does not take the route back.
        let (mut straggler, ..) = ByHand::greet(&one, 2, 1).await;
        straggler.ended().await;
        one.say(2, 3);
        assert_eq!(second.read_frame(PROTOCOL_VERSION).await.0, Kind::Raft);
    });
}

#[test]
fn the_newest_inbound_connection_is_the_route_and_their_number_is_bounded() {
    run(async {
        let mut start = Start::new(1);
        start.options.inbound_per_peer_max = 2;
        let mut one = start.node();
        let mut connections = Vec::new();
        for _ in 0..3 {
            connections.push(ByHand::greet(&one, 2, 1).await.0);
        }
        one.up(2).await;
        for _ in 0..2 {
            one.until("Routed", |event| matches!(event, Event::Routed { peer: 2, .. }).then_some(())).await;
        }
        connections[0].ended().await;
        one.say(2, 1);
        assert_eq!(connections[2].read_frame(PROTOCOL_VERSION).await.0, Kind::Raft);
        // The route ends; the one before takes over.
        drop(connections.pop());
        let lost = one
            .until("Routed", |event| match event {
                Event::Routed { peer: 2, lost, .. } => Some(lost),
                _ => None,
            })
            .await;
        assert!(lost);
        one.say(2, 2);
        assert_eq!(connections[1].read_frame(PROTOCOL_VERSION).await.0, Kind::Raft);
    });
}

#[test]
fn a_removed_peer_is_down_and_not_dialled_again() {
    run(async {
        let (mut one, mut two) = pair(Start::new(1), Start::new(2)).await;
        two.gate.refused.borrow_mut().push(1);
        one.gate.refused.borrow_mut().push(2);
        one.network.remove_peer(2);
        assert!(one.down(2).await.contains("removed"));
        assert_eq!(one.network.address_of(2), None);
        two.down(1).await;
        let (peer, by_us, ..) = two.refused().await;
        assert_eq!((peer, by_us), (1, false), "node 1 refuses what node 2 still dials, and dials no more itself");
    });
}

#[test]
fn a_node_of_a_newer_protocol_is_told_the_versions() {
    run(async {
        let mut one = Start::new(1).node();
        let mut newer = ByHand::connect(&one).await;
        let greeting = Greeting { hello: hello(2, 1, 1), version_min: 8, version_max: 9 };
        newer.0.write_all(&encode_greeting(Kind::Hello, &greeting).unwrap()).await.unwrap();
        let (kind, body) = newer.read_frame(HANDSHAKE_FORMAT).await;
        assert_eq!(kind, Kind::Refuse);
        let refusal = decode_refusal(&body).unwrap();
        assert_eq!(refusal.code, RefusalCode::Version);
        assert!(refusal.reason.contains("8 to 9"), "{refusal}");
        assert_eq!(one.refused().await.2, RefusalCode::Version);
        // One that also speaks ours is welcome, and told who answers.
        let mut both = ByHand::connect(&one).await;
        let greeting = Greeting { version_min: 1, ..greeting };
        both.0.write_all(&encode_greeting(Kind::Hello, &greeting).unwrap()).await.unwrap();
        let (kind, body) = both.read_frame(HANDSHAKE_FORMAT).await;
        assert_eq!(kind, Kind::Welcome);
        assert_eq!(decode_greeting(kind, &body).unwrap().hello, hello(1, 2, 1));
    });
}

#[test]
fn what_no_frame_can_hold_is_not_sent_and_harms_nothing() {
    run(async {
        let mut start = Start::new(1);
        start.options.frame_bytes_max = 10_000;
        let (mut one, mut two) = pair(start, Start::new(2)).await;
        assert!(one.send(2, 1, 100));
        assert!(!one.send(2, 2, 20_000));
        assert!(one.send(2, 3, 100));
        one.network.flush();
        let indexes: Vec<_> = two.raft(1, 2).await.iter().map(|message| message.index).collect();
        assert_eq!(indexes, [1, 3]);
    });
}

#[test]
fn nothing_outlives_a_shutdown_and_what_was_sent_before_arrives() {
    run(async {
        let (mut one, mut two) = pair(Start::new(1), Start::new(2)).await;
        // Over a warm route the farewell takes the fast path.
        one.say(2, 1);
        two.raft(1, 1).await;
        assert!(one.send(2, 2, 100));
        let (at, events, gate) = (one.network.local_address(), one.events.clone(), Rc::downgrade(&one.gate));
        one.network.shutdown();
        events.take(&mut Vec::new());
        one.stop().await;
        assert_eq!(two.raft(1, 1).await[0].index, 2);
        two.down(1).await;
        // The last task is gone, and with it the gate that they all hold; the address is free.
        assert!(gate.upgrade().is_none());
        assert!(events.is_empty());
        TcpListener::bind(at).unwrap();
    });
}

#[test]
#[ignore = "prints figures; run with --release --ignored --nocapture"]
fn throughput_of_a_pair() {
    run(async {
        let (mut one, mut two) = pair(Start::new(1), Start::new(2)).await;
        for (round, bytes) in [(1, 64), (64, 64), (256, 64), (256, 1024), (16, 65_536)] {
            let prepared: Vec<_> = (0..round).map(|index| message(1, 2, index, bytes)).collect();
            let begun = Instant::now();
            let (mut rounds, mut echoed) = (0_u64, 0_u64);
            while begun.elapsed() < Duration::from_secs(1) {
                for message in &prepared {
                    assert!(one.network.send_raft(2, 1, message));
                }
                one.network.flush();
                two.raft(1, round as usize).await;
                two.say(1, 0);
                one.raft(2, 1).await;
                rounds += 1;
                echoed += round;
            }
            let took = begun.elapsed();
            println!(
                "rounds of {round} x {bytes} B and one answer: {:.1} us a round, {:.0} messages/s, {:.1} MB/s",
                took.as_secs_f64() * 1e6 / rounds as f64,
                echoed as f64 / took.as_secs_f64(),
                echoed as f64 * bytes as f64 / took.as_secs_f64() / 1e6
            );
        }
    });
}
