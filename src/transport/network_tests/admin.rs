//! Operators' tools: made by hand, and the client of this build.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::admin_client::{Call, CallError};
use super::admin_messages::{
    decode_response, encode_request, Answer, Ask, Change, Problem, ProblemKind, Request, Response, Status,
    REQUEST_BYTES_MAX,
};
use super::*;

/// What a tool says first.
fn tool() -> Hello {
    let nobody = hello(0, 0, 0);
    Hello { identity: 0, nonce: 0, role: Role::Admin, advertise: String::new(), formation: Vec::new(), ..nobody }
}

fn request(number: u64) -> Vec<u8> {
    encode_request(&Request { number, timeout_ms: 5000, ask: Some(Ask::Snapshot(())) }).unwrap()
}

fn answer(number: u64) -> Response {
    Response { number, answer: Some(Answer::Snapshot(number * 100)) }
}

/// A frame of that kind and body.
fn frame(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let begun = begin(&mut bytes, PROTOCOL_VERSION, kind, 0);
    bytes.extend_from_slice(body);
    end(&mut bytes, begun, usize::MAX).unwrap();
    bytes
}

impl ByHand {
    /// A tool that is let in.
    async fn tool(to: &Node) -> Self {
        let (this, kind, _) = Self::greet_with(to, tool()).await;
        assert_eq!(kind, Kind::Welcome);
        this
    }

    async fn write(&mut self, bytes: &[u8]) {
        soon("writing", self.0.write_all(bytes)).await.unwrap();
    }

    async fn response(&mut self) -> Response {
        let (kind, body) = self.read_frame(PROTOCOL_VERSION).await;
        assert_eq!(kind, Kind::AdminResponse);
        decode_response(&body).unwrap()
    }

    /// Why it is turned away; nothing else comes before that.
    async fn refusal(&mut self) -> Refusal {
        let last_words = self.ended().await;
        assert_eq!(last_words[5], Kind::Refuse as u8);
        decode_refusal(&last_words[HEADER_LEN..]).unwrap()
    }
}

impl Node {
    async fn asked(&mut self) -> (u64, Request) {
        self.until("a request", |event| match event {
            Event::Asked { connection, request } => Some((connection, request)),
            _ => None,
        })
        .await
    }

    async fn left(&mut self) -> u64 {
        self.until("a tool that left", |event| match event {
            Event::ToolLeft { connection } => Some(connection),
            _ => None,
        })
        .await
    }
}

#[test]
fn requests_in_flight_are_answered_in_any_order() {
    run(async {
        let mut node = Start::new(1).node();
        let mut tool = ByHand::tool(&node).await;
        let both = [request(7), request(8)].concat();
        tool.write(&both).await;
        let (connection, first) = node.asked().await;
        let (same, second) = node.asked().await;
        assert_eq!((connection, first.number, second.number, first.timeout_ms), (same, 7, 8, 5000));
        node.network.answer(connection, &answer(8));
        assert_eq!(tool.response().await, answer(8));
        node.network.answer(connection, &answer(7));
        assert_eq!(tool.response().await, answer(7));
        tool.write(&request(9)).await;
        assert_eq!(node.asked().await.1.number, 9);
    });
}

#[test]
fn a_tool_is_neither_a_peer_nor_a_route() {
    run(async {
        let (mut one, mut two) = pair(Start::new(1), Start::new(2)).await;
        let mut tool = ByHand::tool(&one).await;
        tool.write(&request(1)).await;
        let (connection, _) = one.asked().await;
        assert!(!one.network.connected(0));
        assert!(!one.network.send_formation(0, b"form"));
        one.network.answer(connection, &answer(1));
        tool.response().await;
        drop(tool);
        one.left().await;
        two.say(1, 5);
        // No Up, Down or Refused of node 0 came before.
        let events = soon("a message", async {
            let mut events = Vec::new();
            loop {
                match one.next().await {
                    Event::Raft { .. } => return events,
                    other => events.push(other),
                }
            }
        });
        let events = events.await;
        let of_nobody = |event: &Event| {
            matches!(event, Event::Up { peer: 0, .. } | Event::Down { peer: 0, .. } | Event::Refused { peer: 0, .. })
        };
        assert!(!events.iter().any(of_nobody), "{events:?}");
    });
}

#[test]
fn who_may_not_command_is_told_why() {
    run(async {
        let mut node = Start::new(1).node();
        let cases = [
            (Hello { cluster: "other".into(), ..tool() }, RefusalCode::Cluster, "\"other\""),
            (Hello { to: 2, ..tool() }, RefusalCode::WrongNode, "node 2"),
            (Hello { from: 3, ..tool() }, RefusalCode::Malformed, "no node"),
            (Hello { role: Role::Client, ..tool() }, RefusalCode::WrongNode, "node 0"),
            (Hello { role: Role::Client, to: 1, ..tool() }, RefusalCode::Role, "Client"),
        ];
        for (hello, code, expected) in cases {
            let (_, kind, body) = ByHand::greet_with(&node, hello).await;
            let refusal = decode_refusal(&body).unwrap();
            assert_eq!((kind, refusal.code), (Kind::Refuse, code));
            assert!(refusal.reason.contains(expected), "{refusal}");
        }
        let mut welcome = ByHand::tool(&node).await;
        welcome.write(&request(1)).await;
        node.asked().await;
    });
}

#[test]
fn what_is_no_request_ends_the_connection_with_a_reason_while_others_go_on() {
    run(async {
        let mut node = Start::new(1).node();
        let mut other = ByHand::tool(&node).await;
        let mut huge = request(1);
        huge[..4].copy_from_slice(&(REQUEST_BYTES_MAX as u32 + 1).to_le_bytes());
        let mut flipped = request(1);
        *flipped.last_mut().unwrap() ^= 1;
        let mut unknown = request(1);
        unknown[5] = 99;
        let mut version = request(1);
        version[4] = 9;
        let garbage = [0xff; 20];
        let mut checked = crc32fast::hash(&garbage).to_le_bytes().to_vec();
        checked.extend(garbage);
        let cases = [
            (huge, "65537"),
            (flipped, "checksum"),
            (unknown, "unknown kind 99"),
            (version, "version 9"),
            (frame(Kind::AdminRequest, b""), "checksum"),
            (frame(Kind::AdminRequest, &checked), "damaged"),
            (frame(Kind::AdminResponse, &checked), "AdminResponse"),
            (frame(Kind::Raft, b""), "Raft"),
            (frame(Kind::Propose, b""), "Propose"),
            (frame(Kind::Formation, b"form"), "Formation"),
            (frame(Kind::SnapshotBegin, b""), "SnapshotBegin"),
            (frame(Kind::Hello, b""), "Hello"),
        ];
        for (bytes, expected) in cases {
            let mut stranger = ByHand::tool(&node).await;
            stranger.write(&bytes).await;
            let refusal = stranger.refusal().await;
            assert_eq!(refusal.code, RefusalCode::Malformed);
            assert!(refusal.reason.contains(expected), "{refusal} instead of {expected}");
            other.write(&request(3)).await;
            let (connection, _) = node.asked().await;
            node.network.answer(connection, &answer(3));
            assert_eq!(other.response().await, answer(3));
        }
    });
}

#[test]
fn no_more_requests_are_read_than_may_be_in_flight() {
    run(async {
        let mut start = Start::new(1);
        start.options.admin_in_flight_max = 2;
        let mut node = start.node();
        let mut tool = ByHand::tool(&node).await;
        let mut other = ByHand::tool(&node).await;
        for number in 1..=4 {
            tool.write(&request(number)).await;
        }
        let (connection, _) = node.asked().await;
        assert_eq!(node.asked().await.1.number, 2);
        // Whatever the first tool still had to say would have come before the end of a second tool's exchange.
        for number in 5..8 {
            other.write(&request(number)).await;
            let (connection, request) = node.asked().await;
            assert_eq!(request.number, number);
            node.network.answer(connection, &answer(number));
            other.response().await;
        }
        node.network.answer(connection, &answer(2));
        assert_eq!(tool.response().await, answer(2));
        assert_eq!(node.asked().await.1.number, 3);
    });
}

#[test]
fn whoever_leaves_in_the_middle_of_a_call_is_forgotten() {
    run(async {
        let mut node = Start::new(1).node();
        let mut tool = ByHand::tool(&node).await;
        tool.write(&request(1)).await;
        let (connection, _) = node.asked().await;
        drop(tool);
        assert_eq!(node.left().await, connection);
        node.network.answer(connection, &answer(1));
        let mut next = ByHand::tool(&node).await;
        next.write(&request(2)).await;
        let (other, _) = node.asked().await;
        assert_ne!(other, connection);
        node.network.answer(other, &answer(2));
        assert_eq!(next.response().await, answer(2));
    });
}

#[test]
fn of_many_tools_one_that_waits_for_nothing_makes_room_and_else_the_next_is_told() {
    run(async {
        let mut start = Start::new(1);
        start.options.admin_connections_max = 2;
        let mut node = start.node();
        let mut first = ByHand::tool(&node).await;
        let mut second = ByHand::tool(&node).await;
        second.write(&request(1)).await;
        let (of_second, _) = node.asked().await;
        // The first waits for nothing.
        let mut third = ByHand::tool(&node).await;
        third.write(&request(2)).await;
        let (of_third, _) = node.asked().await;
        assert_eq!(first.ended().await, b"");
        let mut fourth = ByHand::tool(&node).await;
        let refusal = fourth.refusal().await;
        assert_eq!(refusal.code, RefusalCode::Busy);
        assert!(refusal.reason.contains("2 operators' tools"), "{refusal}");
        node.network.answer(of_second, &answer(1));
        node.network.answer(of_third, &answer(2));
        assert_eq!((second.response().await, third.response().await), (answer(1), answer(2)));
        let mut fifth = ByHand::tool(&node).await;
        fifth.write(&request(3)).await;
        node.asked().await;
    });
}

#[test]
fn a_tool_that_asks_nothing_is_cut_off_and_one_that_waits_is_not() {
    run(async {
        let mut start = Start::new(1);
        start.options.admin_idle = Duration::from_millis(100);
        let mut node = start.node();
        let mut waiting = ByHand::tool(&node).await;
        waiting.write(&request(1)).await;
        let (connection, _) = node.asked().await;
        let mut silent = ByHand::tool(&node).await;
        let mut slow = ByHand::tool(&node).await;
        slow.write(&request(2)[..10]).await;
        assert_eq!(silent.ended().await, b"");
        assert_eq!(slow.ended().await, b"");
        // Both were cut off after the first one's time was up for the first time.
        node.network.answer(connection, &answer(1));
        assert_eq!(waiting.response().await, answer(1));
        assert_eq!(waiting.ended().await, b"");
    });
}

#[test]
fn a_node_that_parts_lets_its_tools_read_their_answers() {
    run(async {
        let mut node = Start::new(1).node();
        let mut tool = ByHand::tool(&node).await;
        let mut idle = ByHand::tool(&node).await;
        tool.write(&request(1)).await;
        let (connection, _) = node.asked().await;
        node.network.answer(connection, &answer(1));
        let reading = async {
            assert_eq!(tool.response().await, answer(1));
            assert_eq!(tool.ended().await, b"");
            assert_eq!(idle.ended().await, b"");
            drop((tool, idle));
        };
        soon("the parting", async { tokio::join!(node.network.part(), reading) }).await;
        node.stop().await;
    });
}

/// Asks on a thread of its own, as a program without a runtime does.
fn ask(address: String, ask: Ask, timeout: Duration) -> thread::JoinHandle<Result<Answer, CallError>> {
    let call = Call { address, cluster: "test".into(), ask, timeout };
    thread::spawn(move || call.run(&AtomicBool::new(false)))
}

async fn joined<T: Send + 'static>(thread: thread::JoinHandle<T>) -> T {
    soon("a thread", tokio::task::spawn_blocking(move || thread.join().unwrap())).await.unwrap()
}

#[test]
fn the_client_asks_and_hears_answers_and_problems() {
    run(async {
        let mut node = Start::new(1).node();
        let asking = ask(node.address(), Ask::Status(()), DEADLINE);
        let (connection, Request { number, timeout_ms, ask: asked }) = node.asked().await;
        assert_eq!(asked, Some(Ask::Status(())));
        assert!(timeout_ms <= 20_000 && timeout_ms > 10_000, "{timeout_ms}");
        let status = Answer::Status(Box::new(Status { id: 1, cluster: "test".into(), ..Status::default() }));
        // An answer to somebody else's request is none.
        node.network.answer(connection, &answer(number + 1));
        node.network.answer(connection, &Response { number, answer: Some(status.clone()) });
        assert_eq!(joined(asking).await, Ok(status));

        let asking = ask(node.address(), Ask::TransferLeader(2), DEADLINE);
        let (connection, Request { number, .. }) = node.asked().await;
        let problem = Problem { leader: 3, ..Problem::new(ProblemKind::NotLeader, "ask node 3") };
        node.network.answer(connection, &Response { number, answer: Some(Answer::Problem(problem.clone())) });
        assert_eq!(joined(asking).await, Err(CallError::Problem(problem)));
    });
}

#[test]
fn the_client_tells_what_was_never_asked_from_what_may_be_done() {
    run(async {
        let mut node = Start::new(1).node();
        let wrong = Call { cluster: "other".into(), address: node.address(), ask: Ask::Status(()), timeout: DEADLINE };
        let refused = joined(thread::spawn(move || wrong.run(&AtomicBool::new(false)))).await;
        assert!(
            matches!(&refused, Err(CallError::TurnedAway(refusal)) if refusal.code == RefusalCode::Cluster),
            "{refused:?}"
        );

        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let refused = joined(ask(closed, Ask::Status(()), DEADLINE)).await;
        assert!(matches!(&refused, Err(CallError::Unreachable(text)) if text.contains("refused")), "{refused:?}");

        // The connection ends while the request is under way.
        let asking = ask(node.address(), Ask::Snapshot(()), DEADLINE);
        node.asked().await;
        node.stop().await;
        let lost = joined(asking).await;
        assert!(matches!(&lost, Err(CallError::Lost(text)) if text.contains("closed")), "{lost:?}");

        let large = Ask::Change(Change { encoded: vec![0; REQUEST_BYTES_MAX] });
        let node = Start::new(1).node();
        let refused = joined(ask(node.address(), large, DEADLINE)).await;
        assert!(matches!(&refused, Err(CallError::Unreachable(text)) if text.contains("65536")), "{refused:?}");
    });
}

#[test]
fn the_client_knows_what_is_no_node() {
    run(async {
        for answer in [b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(), b"", &[0; 64]] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let asking = ask(listener.local_addr().unwrap().to_string(), Ask::Status(()), DEADLINE);
            let (mut stream, _) = soon("a call", listener.accept()).await.unwrap();
            soon("writing", stream.write_all(answer)).await.unwrap();
            drop(stream);
            let refused = joined(asking).await;
            let expected = "is it the port of an aioraft node?";
            assert!(matches!(&refused, Err(CallError::Unreachable(text)) if text.contains(expected)), "{refused:?}");
        }
    });
}

#[test]
fn the_client_ends_in_time_and_when_it_is_given_up() {
    run(async {
        // It accepts, and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let refused = joined(ask(address.clone(), Ask::Status(()), Duration::from_millis(50))).await;
        assert!(matches!(&refused, Err(CallError::Unreachable(text)) if text.contains("in time")), "{refused:?}");

        let is_given_up = Arc::new(AtomicBool::new(false));
        let (given_up, call) = (
            Arc::clone(&is_given_up),
            Call { address, cluster: "test".into(), ask: Ask::Status(()), timeout: DEADLINE * 1000 },
        );
        let asking = thread::spawn(move || call.run(&given_up));
        is_given_up.store(true, Ordering::Relaxed);
        let given_up = joined(asking).await;
        assert!(matches!(&given_up, Err(CallError::Unreachable(text)) if text.contains("given up")), "{given_up:?}");
    });
}
