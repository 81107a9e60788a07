//! Snapshots between networks on loopback, and what may happen to them on the way. Time passes only where patience is
//! what a test is about.

use prost::Message as _;
use raft::eraftpb::{MessageType, Snapshot, SnapshotMetadata};

use super::proxy::{self, Mishap, Mishaps};
use super::test_store::TestFile;
use super::*;
use crate::engine::GroupId;
use crate::storage;
use crate::storage::snapshot::{Form, Head, SnapshotFile, SnapshotName};
use crate::transport::snapshot_frames::{
    decode_begin, decode_offset, encode_begin, encode_data, encode_done, encode_offset, BEGIN_BYTES_MAX,
    PIECE_BYTES_MAX, PIECE_FRONT_LEN,
};

const PIECE: usize = 50;
const PIECE_FRAME: usize = HEADER_LEN + PIECE_FRONT_LEN + PIECE;
const OFFSET_FRAME: usize = HEADER_LEN + 8;

fn message_of(from: NodeId, to: NodeId, term: u64, name: &SnapshotName) -> Message {
    let metadata = SnapshotMetadata { index: name.index, term: name.term, ..SnapshotMetadata::default() };
    let snapshot = Snapshot { data: name.encode_to_vec(), metadata: Some(metadata) };
    Message {
        msg_type: MessageType::MsgSnapshot as i32,
        from,
        to,
        term,
        snapshot: Some(snapshot),
        ..Message::default()
    }
}

/// Small pieces, and no rate that anybody notices.
fn quick(id: NodeId) -> Start {
    let mut start = Start::new(id);
    start.options.snapshot_bytes_per_s = 1 << 40;
    start.options.snapshot_piece_bytes = PIECE;
    start
}

impl Node {
    fn send_file(&mut self, to: NodeId, file: &Arc<TestFile>) {
        self.send_file_in(to, 5, file);
    }

    /// Sends it as the leader of that term.
    fn send_file_in(&mut self, to: NodeId, term: u64, file: &Arc<TestFile>) {
        let message = message_of(self.id, to, term, file.name());
        self.network.send_snapshot(to, 1, &message, Arc::clone(file) as Arc<dyn SnapshotFile>);
    }

    async fn sent(&mut self) -> (NodeId, u64, Result<(), String>) {
        self.until("SnapshotSent", |event| match event {
            Event::SnapshotSent { to, group: 1, index, outcome } => Some((to, index, outcome)),
            _ => None,
        })
        .await
    }

    async fn received(&mut self) -> (NodeId, GroupId, Message, Arc<dyn SnapshotFile>) {
        self.until("SnapshotReceived", |event| match event {
            Event::SnapshotReceived { from, group, message, file } => Some((from, group, *message, file)),
            _ => None,
        })
        .await
    }

    /// What came is that file, in one event.
    async fn receives(&mut self, from: NodeId, file: &TestFile) {
        let (sender, group, message, received) = self.received().await;
        assert_eq!((sender, group, &message), (from, 1, &message_of(from, self.id, 5, file.name())));
        let bytes = received.read_at(0, usize::MAX).unwrap();
        assert!(received.name() == file.name() && bytes == file.bytes, "another file came");
    }

    /// Events about snapshots that nobody has taken.
    fn more_about_snapshots(&mut self) -> Vec<Event> {
        self.events.take(&mut self.batch);
        self.seen.extend(self.batch.drain(..));
        let is_about = |event: &Event| matches!(event, Event::SnapshotSent { .. } | Event::SnapshotReceived { .. });
        self.seen.drain(..).filter(is_about).collect()
    }
}

/// Node 1 reaches node 2 through a proxy.
async fn through_proxy(one: Start, two: Start) -> (Node, Node, Mishaps) {
    let (mut one, two) = (one.node(), two.node());
    let mishaps = Mishaps::default();
    let at = proxy::before(two.network.local_address(), mishaps.clone()).await;
    one.network.set_peer(2, &at.to_string());
    one.up(2).await;
    (one, two, mishaps)
}

impl ByHand {
    /// Dials for a snapshot.
    async fn for_snapshot(to: &Node, from: NodeId) -> Self {
        let (this, kind, body) = Self::greet_with(to, Hello { role: Role::Snapshot, ..hello(from, to.id, 1) }).await;
        assert_eq!(kind, Kind::Welcome, "{:?}", decode_refusal(&body));
        this
    }

    /// Begins to send that file as the leader of term 5.
    async fn begin(to: &Node, from: NodeId, name: &SnapshotName) -> Self {
        let mut this = Self::for_snapshot(to, from).await;
        this.say(&encode_begin(1, &message_of(from, to.id, 5, name)).unwrap()).await;
        this
    }

    async fn say(&mut self, frame: &[u8]) {
        self.0.write_all(frame).await.unwrap();
    }

    async fn offset(&mut self) -> u64 {
        let (kind, body) = self.read_frame(PROTOCOL_VERSION).await;
        assert_eq!(kind, Kind::SnapshotOffset, "{:?}", decode_refusal(&body));
        decode_offset(&body).unwrap()
    }

    /// Waits for the last word.
    async fn refused(&mut self) -> Refusal {
        loop {
            match self.read_frame(PROTOCOL_VERSION).await {
                (Kind::Refuse, body) => return decode_refusal(&body).unwrap(),
                (Kind::SnapshotOffset | Kind::SnapshotWait, _) => {}
                (other, _) => panic!("{other:?} instead of a refusal"),
            }
        }
    }

    /// Answers a dialer as node 2, in this role.
    async fn answer(listener: &tokio::net::TcpListener, wanted: Role, role: Role) -> Self {
        loop {
            let (stream, _) = soon("a dialer", listener.accept()).await.unwrap();
            let mut this = Self(stream);
            let (kind, body) = this.read_frame(HANDSHAKE_FORMAT).await;
            let theirs = decode_greeting(kind, &body).unwrap().hello;
            // The others are dropped.
            if theirs.role == wanted {
                let greeting = Greeting::new(Hello { role, ..hello(2, theirs.from, 1) });
                this.say(&encode_greeting(Kind::Welcome, &greeting).unwrap()).await;
                return this;
            }
        }
    }
}

#[test]
fn a_snapshot_arrives_whole_and_disturbs_no_route() {
    run(async {
        let mut two = quick(2);
        two.options.inbound_per_peer_max = 1;
        let (mut one, mut two) = pair(quick(1), two).await;
        let file = TestFile::of(70, 1234);
        one.send_file(2, &file);
        two.receives(1, &file).await;
        assert_eq!(one.sent().await, (2, 70, Ok(())));
        assert_eq!(two.store.written(), 1234);
        two.say(1, 1);
        one.say(2, 2);
        one.raft(2, 1).await;
        two.raft(1, 1).await;
        for node in [&mut one, &mut two] {
            node.events.take(&mut node.batch);
            let others: Vec<_> = node.seen.drain(..).chain(node.batch.drain(..)).collect();
            assert!(
                !others.iter().any(|event| matches!(event, Event::Down { .. } | Event::SnapshotSent { .. })),
                "{others:?}"
            );
        }
    });
}

#[test]
fn a_snapshot_crosses_from_one_directory_to_another() {
    run(async {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) = (storage::disk::open(from.path()).unwrap(), storage::disk::open(to.path()).unwrap());
        let head = Head { group: 1, index: 70, term: 3, form: Form::Chunks, meta: b"meta".to_vec() };
        let mut writer = from.snapshots.create(&head).unwrap();
        let chunks: Vec<_> = (0..9).map(|n| vec![n; 700]).collect();
        chunks.iter().for_each(|chunk| writer.write_chunk(chunk).unwrap());
        let file = writer.finish().unwrap();
        let mut one = quick(1).node();
        let mut two = quick(2).node_with(Arc::clone(&to.snapshots));
        let mishaps = Mishaps::default();
        let at = proxy::before(two.network.local_address(), mishaps.clone()).await;
        one.network.set_peer(2, &at.to_string());
        for cut in [100, 1000, 3000] {
            mishaps.add(Mishap::Cut(cut));
        }
        one.network.send_snapshot(2, 1, &message_of(1, 2, 5, file.name()), Arc::clone(&file));
        let (_, _, _, received) = two.received().await;
        assert_eq!(one.sent().await, (2, 70, Ok(())));
        assert_eq!(mishaps.connections(), 4);
        assert_eq!((received.name(), received.head()), (file.name(), &head));
        let read: Result<Vec<_>, _> = Arc::clone(&received).chunks().collect();
        assert_eq!(read.unwrap(), chunks);
        assert_eq!(to.snapshots.open(file.name()).unwrap().head(), &head);
    });
}

#[test]
fn a_file_that_is_there_already_is_not_sent_again() {
    run(async {
        let (mut one, mut two) = pair(quick(1), quick(2)).await;
        let file = TestFile::of(70, 1234);
        for _ in 0..2 {
            one.send_file(2, &file);
            two.receives(1, &file).await;
            assert_eq!(one.sent().await, (2, 70, Ok(())));
        }
        assert_eq!(two.store.written(), 1234);
    });
}

#[test]
fn a_transfer_goes_on_where_its_connection_broke_at_any_frame_and_within() {
    run(async {
        let (mut one, mut two, mishaps) = through_proxy(quick(1), quick(2)).await;
        let begin = encode_begin(1, &message_of(1, 2, 5, TestFile::of(1, 230).name())).unwrap().len();
        let mut cuts = vec![Mishap::Cut(1), Mishap::Cut(begin / 2)];
        // Four whole pieces, and one of 30 bytes.
        for piece in 0..5 {
            let boundary = begin + piece * PIECE_FRAME;
            let length = if piece == 4 { PIECE_FRAME - 20 } else { PIECE_FRAME };
            cuts.extend([0, 1, HEADER_LEN, HEADER_LEN + 3, length - 1].map(|within| Mishap::Cut(boundary + within)));
        }
        let all_passed = Mishap::Cut(begin + 5 * PIECE_FRAME - 20);
        cuts.push(all_passed);
        for answer in 0..6 {
            cuts.extend([1, HEADER_LEN, OFFSET_FRAME].map(|within| Mishap::CutAnswers(answer * OFFSET_FRAME + within)));
        }
        cuts.push(Mishap::CutAnswers(6 * OFFSET_FRAME + 1));
        for (index, cut) in cuts.iter().enumerate() {
            let file = TestFile::of(index as u64 + 1, 230);
            mishaps.add(*cut);
            one.send_file(2, &file);
            assert_eq!(one.sent().await, (2, index as u64 + 1, Ok(())), "{cut:?}");
            two.receives(1, &file).await;
            // If the last word was lost, it is said again.
            for event in two.more_about_snapshots() {
                assert!(matches!(event, Event::SnapshotReceived { file: again, .. } if again.name() == file.name()));
                assert!(matches!(cut, Mishap::CutAnswers(_)) || *cut == all_passed, "{cut:?}");
            }
            assert_eq!(mishaps.connections(), 2, "{cut:?}");
        }
        // Not one byte was written twice.
        assert_eq!(two.store.written(), 230 * cuts.len() as u64);
        assert_eq!(two.store.most_open(), 1);
    });
}

#[test]
fn many_breaks_in_a_row_cost_only_what_was_under_way() {
    run(async {
        let (mut one, mut two, mishaps) = through_proxy(quick(1), quick(2)).await;
        let file = TestFile::of(7, 2000);
        let begin = encode_begin(1, &message_of(1, 2, 5, file.name())).unwrap().len();
        for cut in 0..30 {
            mishaps.add(Mishap::Cut(begin + PIECE_FRAME + cut));
        }
        one.send_file(2, &file);
        two.receives(1, &file).await;
        assert_eq!(one.sent().await, (2, 7, Ok(())));
        assert_eq!((two.store.written(), mishaps.connections()), (2000, 31));
        assert!(one.more_about_snapshots().is_empty() && two.more_about_snapshots().is_empty());
    });
}

#[test]
fn damage_on_the_way_is_noticed_wherever_it_is_and_never_delivered() {
    run(async {
        let mut patient = quick(2);
        // A damaged length makes it wait for what does not come.
        patient.options.silence_timeout = Duration::from_millis(150);
        let (mut one, mut two, mishaps) = through_proxy(quick(1), patient).await;
        let begin = encode_begin(1, &message_of(1, 2, 5, TestFile::of(1, 120).name())).unwrap().len();
        let all = begin + 2 * PIECE_FRAME + HEADER_LEN + PIECE_FRONT_LEN + 20;
        for at in 0..all {
            let file = TestFile::of(at as u64 + 1, 120);
            mishaps.add(Mishap::Flip(at, at as u32 % 8));
            one.send_file(2, &file);
            assert_eq!(one.sent().await, (2, at as u64 + 1, Ok(())), "byte {at}");
            two.receives(1, &file).await;
            assert!(mishaps.connections() >= 2, "damage at byte {at} went unnoticed");
        }
        assert!(two.more_about_snapshots().is_empty());
    });
}

#[test]
fn a_file_that_is_not_what_its_name_says_is_refused_with_the_reason() {
    run(async {
        let (mut one, mut two) = pair(quick(1), quick(2)).await;
        let right = TestFile::of(70, 500);
        let wrong = Arc::new(TestFile::new(*right.name(), TestFile::of(71, 500).bytes.clone()));
        one.send_file(2, &wrong);
        let (_, _, outcome) = one.sent().await;
        assert!(outcome
            .as_ref()
            .is_err_and(|reason| reason.contains("node 2 refused it") && reason.contains("it is damaged")));
        let short = Arc::new(TestFile::new(*right.name(), right.bytes[..400].to_vec()));
        one.send_file(2, &short);
        let (_, _, outcome) = one.sent().await;
        assert!(outcome.as_ref().is_err_and(|reason| reason.contains("ends at 400")), "{outcome:?}");
        assert!(two.more_about_snapshots().is_empty());
    });
}

#[test]
fn another_snapshot_takes_the_place_of_the_one_under_way_and_the_same_one_does_not() {
    run(async {
        let (mut one, mut two) = pair(quick(1), quick(2)).await;
        let (first, second) = (TestFile::of(70, 500), TestFile::of(80, 500));
        two.store.hang(true);
        one.send_file(2, &first);
        hanging(&two, 1).await;
        // The same again is what is under way already.
        one.send_file(2, &first);
        one.send_file(2, &second);
        one.send_file(2, &second);
        let (to, index, outcome) = one.sent().await;
        assert_eq!((to, index), (2, 70));
        assert!(outcome.is_err_and(|reason| reason.contains("index 80 takes its place")));
        two.store.hang(false);
        // The first one may have been on its way already, as a whole.
        two.until("the second", |event| match event {
            Event::SnapshotReceived { file, .. } if file.name() == second.name() => Some(()),
            _ => None,
        })
        .await;
        assert_eq!(one.sent().await, (2, 80, Ok(())));
        assert!(one.more_about_snapshots().is_empty());
        assert_eq!(two.store.most_open(), 1);
    });
}

async fn hanging(node: &Node, count: usize) {
    soon("the disk's hanging", async {
        while node.store.hanging() != count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[test]
fn a_leader_of_a_new_term_goes_on_with_the_file_under_way() {
    run(async {
        let (mut one, mut two) = pair(quick(1), quick(2)).await;
        let file = TestFile::of(70, 500);
        two.store.hang(true);
        one.send_file_in(2, 5, &file);
        hanging(&two, 1).await;
        one.send_file_in(2, 6, &file);
        two.store.hang(false);
        // The former message may have been on its way already, with all of the file.
        let message = message_of(1, 2, 6, file.name());
        two.until("the new message", |event| match event {
            Event::SnapshotReceived { message: came, .. } => (*came == message).then_some(()),
            _ => None,
        })
        .await;
        assert_eq!(one.sent().await, (2, 70, Ok(())));
        assert!(one.more_about_snapshots().is_empty());
        assert_eq!(two.store.written(), 500);
        assert_eq!(two.store.most_open(), 1);
    });
}

#[test]
fn a_snapshot_that_is_not_wanted_is_refused_with_the_reason() {
    run(async {
        let (mut one, mut two) = pair(quick(1), quick(2)).await;
        let file = TestFile::of(70, 500);
        let unwanted = Refusal::new(RefusalCode::Formation, "node 2 is not formed");
        two.gate.unwanted.borrow_mut().replace(unwanted);
        one.send_file(2, &file);
        let (_, _, outcome) = one.sent().await;
        assert!(outcome.is_err_and(|reason| reason == "node 2 refused it: node 2 is not formed"));
        two.gate.unwanted.borrow_mut().take();
        two.store.fail("the disk is full");
        one.send_file(2, &file);
        let (_, _, outcome) = one.sent().await;
        assert!(outcome.is_err_and(|reason| reason.contains("the disk is full")));
        assert!(two.more_about_snapshots().is_empty() && two.store.is_empty());
        assert!(one.network.connected(2) && two.network.connected(1));
    });
}

#[test]
fn a_disk_that_fails_in_the_middle_ends_it_with_the_reason() {
    run(async {
        let (mut one, two) = pair(quick(1), quick(2)).await;
        two.store.hang(true);
        one.send_file(2, &TestFile::of(70, 500));
        hanging(&two, 1).await;
        two.store.fail("the disk is full");
        two.store.hang(false);
        let (_, _, outcome) = one.sent().await;
        assert!(outcome.is_err_and(|reason| reason.contains("the disk is full")));
    });
}

#[test]
fn whoever_may_not_connect_may_send_no_snapshot() {
    run(async {
        let one = quick(1).node();
        let snapshot = |hello| Hello { role: Role::Snapshot, ..hello };
        for (theirs, code) in [
            (snapshot(Hello { cluster: "other".into(), ..hello(2, 1, 1) }), RefusalCode::Cluster),
            (snapshot(hello(2, 3, 1)), RefusalCode::WrongNode),
            (snapshot(hello(1, 1, 1)), RefusalCode::SelfConnection),
            (Hello { role: Role::Client, ..hello(2, 1, 1) }, RefusalCode::Role),
        ] {
            let (_, kind, body) = ByHand::greet_with(&one, theirs).await;
            assert_eq!((kind, decode_refusal(&body).unwrap().code), (Kind::Refuse, code));
        }
        one.gate.refused.borrow_mut().push(2);
        let (_, kind, body) = ByHand::greet_with(&one, snapshot(hello(2, 1, 1))).await;
        assert_eq!((kind, decode_refusal(&body).unwrap().code), (Kind::Refuse, RefusalCode::NotAMember));
    });
}

#[test]
fn a_sender_that_is_refused_hears_why() {
    run(async {
        let (mut one, two) = (quick(1).node(), Start { cluster: "other", ..quick(2) }.node());
        one.network.set_peer(2, &two.address());
        one.send_file(2, &TestFile::of(70, 500));
        let (_, _, outcome) = one.sent().await;
        assert!(outcome.is_err_and(|reason| reason.contains("belongs to cluster \"test\", not \"other\"")));
    });
}

#[test]
fn an_acceptor_that_knows_no_snapshots_is_refused_by_the_sender() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut one = quick(1).node();
        one.network.set_peer(2, &listener.local_addr().unwrap().to_string());
        one.send_file(2, &TestFile::of(70, 500));
        let mut peer = ByHand::answer(&listener, Role::Snapshot, Role::Peer).await;
        let (kind, body) = peer.read_frame(HANDSHAKE_FORMAT).await;
        assert_eq!((kind, decode_refusal(&body).unwrap().code), (Kind::Refuse, RefusalCode::Role));
        let (_, _, outcome) = one.sent().await;
        assert!(outcome.is_err_and(|reason| reason.contains("for a Snapshot's, not a Peer's")));
    });
}

#[test]
fn a_snapshot_that_does_not_get_on_is_given_up_with_what_was_in_its_way() {
    run(async {
        let mut start = quick(1);
        start.options.snapshot_patience = Duration::from_millis(500);
        let mut one = start.node();
        let file = TestFile::of(70, 500);
        // Nobody listens there.
        let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        one.network.set_peer(2, &nowhere.to_string());
        one.send_file(2, &file);
        let (_, _, outcome) = one.sent().await;
        let reason = outcome.err().unwrap();
        assert!(reason.contains("500ms") && reason.contains(&nowhere.to_string()), "{reason}");
        // Somebody listens, takes what comes, and says nothing.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        one.network.set_peer(2, &listener.local_addr().unwrap().to_string());
        one.send_file(2, &file);
        let _silent = ByHand::answer(&listener, Role::Snapshot, Role::Snapshot).await;
        assert!(one.sent().await.2.is_err_and(|reason| reason.contains("500ms")));
        // Nothing is known of it.
        one.send_file(9, &file);
        assert!(one.sent().await.2.is_err_and(|reason| reason.contains("no address of node 9")));
        assert!(one.more_about_snapshots().is_empty());
    });
}

#[test]
fn a_connection_that_hangs_is_replaced_by_another_one() {
    run(async {
        let (mut start, mut other) = (quick(1), quick(2));
        start.options.silence_timeout = Duration::from_millis(200);
        // The receiver notices nothing.
        other.options.silence_timeout = DEADLINE * 3;
        let (mut one, mut two, mishaps) = through_proxy(start, other).await;
        let file = TestFile::of(70, 500);
        mishaps.add(Mishap::Stall(250));
        one.send_file(2, &file);
        two.receives(1, &file).await;
        assert_eq!(one.sent().await, (2, 70, Ok(())));
        assert!(mishaps.connections() >= 2);
        assert_eq!(two.store.written(), 500);
    });
}

#[test]
fn a_receiver_that_takes_its_time_is_waited_for() {
    run(async {
        let (mut start, mut other) = (quick(1), quick(2));
        for options in [&mut start.options, &mut other.options] {
            options.silence_timeout = Duration::from_millis(600);
            options.snapshot_patience = Duration::from_secs(1);
        }
        let (mut one, mut two) = pair(start, other).await;
        let file = TestFile::of(70, 500);
        two.store.hang(true);
        one.send_file(2, &file);
        hanging(&two, 1).await;
        // More than anybody's patience.
        tokio::time::sleep(Duration::from_secs(2)).await;
        two.store.hang(false);
        two.receives(1, &file).await;
        assert_eq!(one.sent().await, (2, 70, Ok(())));
    });
}

#[test]
fn each_snapshot_ends_once_however_it_ends() {
    run(async {
        let (mut one, two) = pair(quick(1), quick(2)).await;
        let file = TestFile::of(70, 500);
        two.store.hang(true);
        one.send_file(2, &file);
        hanging(&two, 1).await;
        one.network.remove_peer(2);
        assert!(one.sent().await.2.is_err_and(|reason| reason.contains("removed")));
        one.network.set_peer(2, &two.address());
        one.send_file(2, &file);
        soon("the peers' hanging up", one.network.part()).await;
        assert!(one.sent().await.2.is_err_and(|reason| reason.contains("closes")));
        one.send_file(2, &file);
        assert!(one.sent().await.2.is_err_and(|reason| reason.contains("closes")));
        one.network.shutdown();
        one.send_file(2, &file);
        two.store.hang(false);
        assert!(one.more_about_snapshots().is_empty());
        one.stop().await;
        two.stop().await;
    });
}

#[test]
fn a_peer_that_is_removed_is_listened_to_no_more() {
    run(async {
        let (mut one, mut two) = pair(quick(1), quick(2)).await;
        two.store.hang(true);
        one.send_file(2, &TestFile::of(70, 500));
        hanging(&two, 1).await;
        two.gate.refused.borrow_mut().push(1);
        two.network.remove_peer(1);
        two.store.hang(false);
        assert!(one.sent().await.2.is_err_and(|reason| reason.contains("not a member")));
        assert!(two.more_about_snapshots().is_empty());
    });
}

#[test]
fn nothing_is_sent_faster_than_the_rate() {
    run(async {
        let rate = 400_000;
        let start = |id| {
            let mut start = Start::new(id);
            start.options.snapshot_bytes_per_s = rate;
            start
        };
        let (mut one, mut two, mut three) = (start(1).node(), start(2).node(), start(3).node());
        one.network.set_peer(2, &two.address());
        one.network.set_peer(3, &three.address());
        let (file, begun) = (TestFile::of(70, 100_000), Instant::now());
        // Both share one rate.
        one.send_file(2, &file);
        one.send_file(3, &file);
        two.receives(1, &file).await;
        three.receives(1, &file).await;
        // 50 ms in advance, and the last pieces go out at the beginning of their time.
        let least = (200_000.0 - 2.0 * rate as f64 / 16.0) / rate as f64 - 0.05;
        assert!(begun.elapsed().as_secs_f64() >= least, "{:?} is less than {least} s", begun.elapsed());
    });
}

#[test]
fn ordinary_messages_go_on_while_a_large_file_is_sent() {
    run(async {
        let mut start = quick(1);
        start.options.snapshot_piece_bytes = PIECE_BYTES_MAX;
        let (mut one, mut two) = pair(start, quick(2)).await;
        let file = TestFile::of(70, 24 << 20);
        one.send_file(2, &file);
        let mut took = Vec::new();
        let mut is_sent = false;
        while !is_sent {
            let begun = Instant::now();
            one.say(2, took.len() as u64);
            two.raft(1, 1).await;
            two.say(1, took.len() as u64);
            one.until("the answer", |event| match event {
                Event::Raft { .. } => Some(()),
                Event::SnapshotSent { outcome, .. } => {
                    assert_eq!(outcome, Ok(()));
                    is_sent = true;
                    None
                }
                _ => None,
            })
            .await;
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
        println!("{} round trips meanwhile: median {median:?}, longest {longest:?}", took.len());
        assert!(took.len() >= 20, "only {} round trips", took.len());
        assert!(median < Duration::from_millis(50) && longest < Duration::from_secs(2), "{median:?}, {longest:?}");
    });
}

#[test]
fn a_sender_that_breaks_the_protocol_is_told_so_and_costs_little() {
    run(async {
        let (mut one, mut two) = pair(quick(1), quick(2)).await;
        let name = *TestFile::of(70, 500).name();
        let begin = |message: &Message| encode_begin(1, message).unwrap();
        let good = message_of(3, 1, 5, &name);
        let renamed = |name: SnapshotName| message_of(3, 1, 5, &name);
        let mut contradictory = good.clone();
        contradictory.snapshot.get_or_insert_default().metadata.get_or_insert_default().index = 71;
        let mut huge = begin(&good);
        huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut damaged = begin(&good);
        damaged[40] ^= 1;
        let mut other_group = begin(&good);
        other_group[6] = 2;
        let beginnings = [
            (huge, RefusalCode::Malformed, "4294967295"),
            (damaged, RefusalCode::Malformed, "checksum"),
            (other_group, RefusalCode::Malformed, "group 2"),
            (begin(&contradictory), RefusalCode::Malformed, "index 71"),
            (begin(&Message { from: 2, ..good.clone() }), RefusalCode::WrongNode, "from node 2"),
            (begin(&Message { to: 2, ..good.clone() }), RefusalCode::WrongNode, "to node 2"),
            (begin(&Message { msg_type: 3, ..good.clone() }), RefusalCode::Malformed, "none for a snapshot"),
            (begin(&Message { snapshot: None, ..good.clone() }), RefusalCode::Malformed, "no snapshot"),
            (
                begin(&renamed(SnapshotName { bytes: u64::MAX, ..name })),
                RefusalCode::Malformed,
                "18446744073709551615 bytes",
            ),
            (begin(&renamed(SnapshotName { bytes: 0, ..name })), RefusalCode::Malformed, "0 bytes"),
            (encode_data(1, 0, b"some").unwrap(), RefusalCode::Malformed, "SnapshotData"),
            (encode_done(1), RefusalCode::Malformed, "SnapshotDone"),
            (vec![0xff; 200], RefusalCode::Malformed, "announced"),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), RefusalCode::Malformed, "announced"),
        ];
        for (bytes, code, expected) in beginnings {
            let mut stranger = ByHand::for_snapshot(&one, 3).await;
            stranger.say(&bytes).await;
            let refusal = stranger.refused().await;
            assert!(refusal.code == code && refusal.reason.contains(expected), "{refusal:?} instead of {expected}");
        }
        let data = |offset, bytes: &[u8]| encode_data(1, offset, bytes).unwrap();
        let mut huge = data(0, b"some");
        huge[..4].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        let mut other_group = data(0, b"some");
        other_group[6] = 2;
        let mut damaged = data(0, b"some");
        damaged[HEADER_LEN + PIECE_FRONT_LEN] ^= 1;
        let mut empty = data(0, b"");
        empty.truncate(HEADER_LEN + PIECE_FRONT_LEN);
        let pieces = [
            (huge, "1048576"),
            (other_group, "SnapshotData"),
            (damaged, "checksum"),
            (empty, "brings nothing"),
            (data(1, b"some"), "offset 1 where 0"),
            (data(u64::MAX, b"some"), "where 0"),
            (data(0, &[0; 501]), "beyond the 500 bytes"),
            (begin(&good), "SnapshotBegin"),
            (encode_offset(1, 5), "SnapshotOffset"),
            (vec![0; 200], "version 0"),
        ];
        for (bytes, expected) in pieces {
            let mut stranger = ByHand::begin(&one, 3, &name).await;
            assert_eq!(stranger.offset().await, 0);
            stranger.say(&bytes).await;
            let refusal = stranger.refused().await;
            assert_eq!(refusal.code, RefusalCode::Malformed);
            assert!(refusal.reason.contains(expected), "{refusal:?} instead of {expected}");
        }
        assert!(one.store.is_empty() && one.store.written() == 0);
        // A whole file of garbage ends with the checksum.
        let mut stranger = ByHand::begin(&one, 3, &name).await;
        assert_eq!(stranger.offset().await, 0);
        stranger.say(&data(0, &[7; 500])).await;
        assert!(stranger.refused().await.reason.contains("it is damaged"));
        assert!(one.more_about_snapshots().is_empty());
        two.say(1, 1);
        assert_eq!(one.raft(2, 1).await[0].index, 1);
    });
}

#[test]
fn a_silent_or_slow_sender_is_dropped() {
    run(async {
        let mut start = quick(1);
        start.options.silence_timeout = Duration::from_millis(300);
        let one = start.node();
        let name = *TestFile::of(70, 500).name();
        let begin = encode_begin(1, &message_of(2, 1, 5, &name)).unwrap();
        let mut silent = ByHand::for_snapshot(&one, 2).await;
        assert!(silent.ended().await.is_empty());
        let mut half = ByHand::for_snapshot(&one, 2).await;
        half.say(&begin[..begin.len() - 1]).await;
        assert!(half.ended().await.is_empty());
        let mut idle = ByHand::begin(&one, 2, &name).await;
        assert_eq!(idle.offset().await, 0);
        assert!(idle.ended().await.is_empty());
        // A byte now and then is no frame.
        let mut slow = ByHand::begin(&one, 2, &name).await;
        assert_eq!(slow.offset().await, 0);
        let frame = encode_data(1, 0, &[1; 100]).unwrap();
        let mut taken = 0;
        while taken < frame.len() && slow.0.write_all(&frame[taken..=taken]).await.is_ok() {
            taken += 1;
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        assert!(taken < frame.len(), "all of it was waited for");
        assert!(one.store.is_empty());
    });
}

#[test]
fn a_newer_connection_of_the_same_peer_replaces_a_half_dead_one() {
    run(async {
        let mut one = quick(1).node();
        let file = TestFile::of(70, 500);
        let mut first = ByHand::begin(&one, 2, file.name()).await;
        assert_eq!(first.offset().await, 0);
        first.say(&encode_data(1, 0, &file.bytes[..200]).unwrap()).await;
        assert_eq!(first.offset().await, 200);
        one.store.hang(true);
        first.say(&encode_data(1, 200, &file.bytes[200..300]).unwrap()).await;
        hanging(&one, 1).await;
        // What is being written is waited for, then it goes on behind it.
        let mut second = ByHand::begin(&one, 2, file.name()).await;
        first.ended().await;
        one.store.hang(false);
        assert_eq!(second.offset().await, 300);
        second.say(&encode_data(1, 300, &file.bytes[300..]).unwrap()).await;
        assert_eq!(second.offset().await, 500);
        assert_eq!(second.read_frame(PROTOCOL_VERSION).await, (Kind::SnapshotDone, vec![]));
        one.receives(2, &file).await;
        assert_eq!((one.store.most_open(), one.store.written()), (1, 500));
    });
}

#[test]
fn the_leader_of_the_later_term_sends_its_snapshot() {
    run(async {
        let one = quick(1).node();
        let file = TestFile::of(70, 500);
        let mut leader = ByHand::for_snapshot(&one, 2).await;
        leader.say(&encode_begin(1, &message_of(2, 1, 8, file.name())).unwrap()).await;
        assert_eq!(leader.offset().await, 0);
        let mut former = ByHand::for_snapshot(&one, 3).await;
        former.say(&encode_begin(1, &message_of(3, 1, 7, file.name())).unwrap()).await;
        let refusal = former.refused().await;
        assert!(refusal.code == RefusalCode::Snapshot && refusal.reason.contains("node 2"), "{refusal:?}");
        let mut next = ByHand::for_snapshot(&one, 3).await;
        next.say(&encode_begin(1, &message_of(3, 1, 9, file.name())).unwrap()).await;
        assert_eq!(next.offset().await, 0);
        leader.ended().await;
        assert_eq!(one.store.most_open(), 1);
    });
}

#[test]
fn connections_for_snapshots_are_bounded_for_each_peer() {
    run(async {
        let mut start = quick(1);
        start.options.inbound_per_peer_max = 2;
        let one = start.node();
        let mut connections = Vec::new();
        for _ in 0..10 {
            connections.push(ByHand::for_snapshot(&one, 2).await);
        }
        for connection in &mut connections[..8] {
            connection.ended().await;
        }
        let mut last = connections.pop().unwrap();
        last.say(&encode_begin(1, &message_of(2, 1, 5, TestFile::of(70, 500).name())).unwrap()).await;
        assert_eq!(last.offset().await, 0);
    });
}

#[test]
fn a_receiver_that_breaks_the_protocol_harms_nobody() {
    run(async {
        let mut start = quick(1);
        start.options.snapshot_patience = Duration::from_millis(500);
        let mut one = start.node();
        let file = TestFile::of(70, 500);
        let mut huge = encode_done(1);
        huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut back = encode_offset(1, 100);
        back.extend(encode_offset(1, 50));
        let cases = [
            (huge, "4294967295"),
            (encode_offset(1, 501), "501 bytes of 500"),
            (encode_offset(2, 0), "group 2"),
            (back, "had 100 bytes"),
            (encode_done(1), "SnapshotDone"),
            (encode_data(1, 0, b"some").unwrap(), "SnapshotData"),
            (vec![0xff; 30], "announced"),
        ];
        for (bytes, expected) in cases {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            one.network.set_peer(2, &listener.local_addr().unwrap().to_string());
            one.send_file(2, &file);
            let mut answered = ByHand::answer(&listener, Role::Snapshot, Role::Snapshot).await;
            answered.read_frame(HANDSHAKE_FORMAT).await;
            let (kind, body) = answered.read_frame(PROTOCOL_VERSION).await;
            assert_eq!(kind, Kind::SnapshotBegin);
            assert_eq!(decode_begin(1, &body).unwrap().name, *file.name());
            answered.say(&bytes).await;
            answered.ended().await;
            // The next one is not answered.
            let (_, _, outcome) = one.sent().await;
            let reason = outcome.err().unwrap();
            assert!(reason.contains("500ms") && reason.contains(expected), "{reason} instead of {expected}");
        }
    });
}

#[test]
fn a_message_that_names_another_file_is_not_sent() {
    run(async {
        let mut one = quick(1).node();
        let (file, other) = (TestFile::of(70, 500), TestFile::of(71, 500));
        let message = message_of(1, 2, 5, other.name());
        one.network.send_snapshot(2, 1, &message, Arc::clone(&file) as Arc<dyn SnapshotFile>);
        assert!(one.sent().await.2.is_err_and(|reason| reason.contains("another file")));
        one.network.send_snapshot(2, 1, &Message::default(), Arc::clone(&file) as Arc<dyn SnapshotFile>);
        assert!(one.sent().await.2.is_err_and(|reason| reason.contains("none for a snapshot")));
        let long = Message { context: vec![0; BEGIN_BYTES_MAX], ..message_of(1, 2, 5, file.name()) };
        let two = quick(2).node();
        one.network.set_peer(2, &two.address());
        one.network.send_snapshot(2, 1, &long, file as Arc<dyn SnapshotFile>);
        assert!(one.sent().await.2.is_err_and(|reason| reason.contains("65536")));
    });
}
