//! What operators' tools and nodes say to each other, and the two frames that carry it.
//!
//! A tool dials with [`Role::Admin`](super::Role::Admin) in its Hello. It is no node: it says from whom and to whom with
//! 0, and has no identity and no boot. Behind the handshake it sends AdminRequest frames, as many at once as it likes (the
//! node reads so many only), and each is answered by one AdminResponse that gives its number back, in any order. Both
//! bodies are the CRC-32 of what follows, and a message in Protobuf.

use std::collections::BTreeMap;

use prost::Message;

use super::checked::{checked, checksum_ahead, frame, put_checksum};
use super::wire::{Kind, WireError};
use crate::engine::NodeId;

/// The largest body of an AdminRequest frame, unless a node says less ([`super::Options`]).
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// The largest body of an AdminResponse frame.
pub const RESPONSE_BYTES_MAX: usize = 256 << 10;

/// One request of a tool.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Chosen by the tool, and given back in the answer.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Milliseconds until the tool gives up.
    #[prost(uint64, tag = "2")]
    pub timeout_ms: u64,
    /// What is asked; `None` is what only a newer build knows.
    #[prost(oneof = "Ask", tags = "3, 4, 5, 6, 7, 8")]
    pub ask: Option<Ask>,
}

/// What can be asked.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Ask {
    /// How the node is.
    #[prost(message, tag = "3")]
    Status(()),
    /// Who the members are.
    #[prost(message, tag = "4")]
    Members(()),
    /// Take a snapshot, or wait for the one that is being taken.
    #[prost(message, tag = "5")]
    Snapshot(()),
    /// Have this node lead, or, if it is 0, whoever is furthest. Only the leader can hand over.
    #[prost(uint64, tag = "6")]
    TransferLeader(NodeId),
    /// Change the membership.
    #[prost(message, tag = "7")]
    Change(Change),
    /// Let a new node join.
    #[prost(message, tag = "8")]
    Join(Join),
}

/// Membership changes, to be made together.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    /// The engine's own bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub encoded: Vec<u8>,
}

/// A new node that wants to join under a name.
#[derive(Clone, PartialEq, Message)]
pub struct Join {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The random number of its data directory, 16 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub identity: Vec<u8>,
    /// Where it can be dialled.
    #[prost(string, tag = "3")]
    pub address: String,
    /// What it says of itself.
    #[prost(btree_map = "string, string", tag = "4")]
    pub metadata: BTreeMap<String, String>,
}

/// The answer to one request.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// The request's.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// What is answered; `None` is what only a newer build knows.
    #[prost(oneof = "Answer", tags = "2, 3, 4, 5, 6, 7, 8")]
    pub answer: Option<Answer>,
}

/// What can be answered.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answer {
    /// It was not done; or whether it was is not known.
    #[prost(message, tag = "2")]
    Problem(Problem),
    /// To [`Ask::Status`].
    #[prost(message, boxed, tag = "3")]
    Status(Box<Status>),
    /// To [`Ask::Members`].
    #[prost(message, tag = "4")]
    Members(Members),
    /// To [`Ask::Snapshot`]: the snapshot of this index is durable.
    #[prost(uint64, tag = "5")]
    Snapshot(u64),
    /// To [`Ask::TransferLeader`]: this node leads.
    #[prost(uint64, tag = "6")]
    Leads(NodeId),
    /// To [`Ask::Change`]: the entry of this index changed the membership.
    #[prost(message, tag = "7")]
    Changed(Changed),
    /// To [`Ask::Join`]: who the new node is, and where the others are.
    #[prost(message, tag = "8")]
    Joined(Joined),
}

/// A change of the membership that has taken effect, or was so before.
#[derive(Clone, PartialEq, Message)]
pub struct Changed {
    /// Where it stands in the log.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// The ids concerned, in the order of the changes.
    #[prost(uint64, repeated, tag = "2")]
    pub ids: Vec<NodeId>,
}

/// A place in a cluster.
#[derive(Clone, PartialEq, Message)]
pub struct Joined {
    /// The id of the new node.
    #[prost(uint64, tag = "1")]
    pub id: NodeId,
    /// Where the members are dialled, by their ids.
    #[prost(btree_map = "uint64, string", tag = "2")]
    pub members: BTreeMap<NodeId, String>,
}

/// Why a request was not done.
#[derive(Clone, PartialEq, Message)]
pub struct Problem {
    /// For programs.
    #[prost(enumeration = "ProblemKind", tag = "1")]
    pub kind: i32,
    /// One sentence for people, with what to do.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// Whom to ask instead, 0 if nobody is known ([`ProblemKind::NotLeader`]).
    #[prost(uint64, tag = "3")]
    pub leader: NodeId,
    /// Where this node reaches it.
    #[prost(string, tag = "4")]
    pub leader_address: String,
}

impl Problem {
    /// Without a leader to ask.
    pub fn new(kind: ProblemKind, reason: impl Into<String>) -> Self {
        Self { kind: kind as i32, reason: reason.into(), ..Self::default() }
    }
}

/// What became of a request that has no other answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum ProblemKind {
    /// It may be done, now or later. What only a newer build knows counts as this.
    Unknown = 0,
    /// It was not done, and will not be.
    Refused = 1,
    /// It was not done: only the leader can.
    NotLeader = 2,
    /// Its time passed before it was done.
    TimedOut = 3,
    /// The node closed before it was done.
    Closed = 4,
    /// The node's build does not know how.
    Unsupported = 5,
    /// It was not done: the cluster is not formed yet.
    Forming = 6,
}

/// How a node is. Times are in nanoseconds; counters begin at the node's start.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// The cluster's name.
    #[prost(string, tag = "1")]
    pub cluster: String,
    /// This node.
    #[prost(uint64, tag = "2")]
    pub id: NodeId,
    /// Where its peers are told to reach it.
    #[prost(string, tag = "3")]
    pub address: String,
    /// The version of aioraft that it runs.
    #[prost(string, tag = "4")]
    pub version: String,
    /// `"leader"`, `"follower"`, `"candidate"`, `"pre-candidate"`, `"learner"` or `"forming"`.
    #[prost(string, tag = "5")]
    pub role: String,
    /// Current term.
    #[prost(uint64, tag = "6")]
    pub term: u64,
    /// Known leader, 0 for none.
    #[prost(uint64, tag = "7")]
    pub leader: NodeId,
    /// Why there is no leader, or no way to another node, as far as this node knows: one sentence.
    #[prost(string, optional, tag = "8")]
    pub trouble: Option<String>,
    /// Commit index known here.
    #[prost(uint64, tag = "9")]
    pub commit: u64,
    /// The index through which the engine has applied.
    #[prost(uint64, tag = "10")]
    pub applied: u64,
    /// The index through which the application's state machine has applied.
    #[prost(uint64, tag = "11")]
    pub application_applied: u64,
    /// First index in the log.
    #[prost(uint64, tag = "12")]
    pub first_index: u64,
    /// Last index in the log.
    #[prost(uint64, tag = "13")]
    pub last_index: u64,
    /// Index of the newest durable snapshot, 0 without one.
    #[prost(uint64, tag = "14")]
    pub snapshot_index: u64,
    /// Bytes of its file.
    #[prost(uint64, tag = "15")]
    pub snapshot_bytes: u64,
    /// Replicated time of the last applied entry.
    #[prost(uint64, tag = "16")]
    pub timestamp_ns: u64,
    /// This start's boot number.
    #[prost(uint64, tag = "17")]
    pub boot: u64,
    /// Proposals of this node not yet applied here.
    #[prost(uint64, tag = "18")]
    pub pending_proposals: u64,
    /// Attempts beyond the first, sent by this node.
    #[prost(uint64, tag = "19")]
    pub reproposals: u64,
    /// Entries skipped here because their command was applied before.
    #[prost(uint64, tag = "20")]
    pub duplicates_skipped: u64,
    /// Fsyncs of the log.
    #[prost(uint64, tag = "21")]
    pub fsyncs: u64,
    /// How long the last one took.
    #[prost(uint64, tag = "22")]
    pub fsync_last_ns: u64,
    /// How long the longest one took.
    #[prost(uint64, tag = "23")]
    pub fsync_max_ns: u64,
    /// Bytes of the log's files on disk.
    #[prost(uint64, tag = "24")]
    pub log_bytes: u64,
    /// The others.
    #[prost(message, repeated, tag = "25")]
    pub peers: Vec<Peer>,
}

/// What a node knows of another.
#[derive(Clone, PartialEq, Message)]
pub struct Peer {
    /// The other.
    #[prost(uint64, tag = "1")]
    pub id: NodeId,
    /// Where it is reached.
    #[prost(string, tag = "2")]
    pub address: String,
    /// A connection is up.
    #[prost(bool, tag = "3")]
    pub connected: bool,
    /// Why none is: one sentence.
    #[prost(string, optional, tag = "4")]
    pub trouble: Option<String>,
    /// Highest index known to be on its disk; only the leader knows.
    #[prost(uint64, optional, tag = "5")]
    pub matched: Option<u64>,
    /// `"probe"`, `"replicate"` or `"snapshot"`; only the leader knows.
    #[prost(string, optional, tag = "6")]
    pub state: Option<String>,
}

/// Who the members are, as far as the node that answers knows.
#[derive(Clone, PartialEq, Message)]
pub struct Members {
    /// Known leader, 0 for none.
    #[prost(uint64, tag = "1")]
    pub leader: NodeId,
    /// In the order of their ids, the node that answers among them.
    #[prost(message, repeated, tag = "2")]
    pub members: Vec<Member>,
    /// Counts removals and recoveries of the cluster.
    #[prost(uint64, tag = "3")]
    pub incarnation: u64,
}

/// A member of a cluster.
#[derive(Clone, PartialEq, Message)]
pub struct Member {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: NodeId,
    /// Where it is reached.
    #[prost(string, tag = "2")]
    pub address: String,
    /// It votes; otherwise it is a learner.
    #[prost(bool, tag = "3")]
    pub votes: bool,
    /// The random number of its data directory, 16 bytes; empty if it is not known.
    #[prost(bytes = "vec", tag = "4")]
    pub identity: Vec<u8>,
    /// What is said of it.
    #[prost(btree_map = "string, string", tag = "5")]
    pub metadata: BTreeMap<String, String>,
    /// A connection to it is up, or it is the node that answers.
    #[prost(bool, tag = "6")]
    pub connected: bool,
}

/// A whole AdminRequest frame.
///
/// # Errors
/// It is larger than any node takes.
pub fn encode_request(request: &Request) -> Result<Vec<u8>, WireError> {
    encode(Kind::AdminRequest, request, REQUEST_BYTES_MAX)
}

/// Reads the body of an AdminRequest frame.
///
/// # Errors
/// It is damaged.
pub fn decode_request(body: &[u8]) -> Result<Request, WireError> {
    decode(Kind::AdminRequest, body)
}

/// A whole AdminResponse frame.
///
/// # Errors
/// It is larger than any tool takes.
pub fn encode_response(response: &Response) -> Result<Vec<u8>, WireError> {
    encode(Kind::AdminResponse, response, RESPONSE_BYTES_MAX)
}

/// Reads the body of an AdminResponse frame.
///
/// # Errors
/// It is damaged.
pub fn decode_response(body: &[u8]) -> Result<Response, WireError> {
    decode(Kind::AdminResponse, body)
}

fn encode(kind: Kind, message: &impl Message, bytes_max: usize) -> Result<Vec<u8>, WireError> {
    frame(kind, 0, bytes_max, |buffer| {
        let checked = checksum_ahead(buffer);
        message.encode_raw(buffer);
        put_checksum(buffer, checked);
    })
}

fn decode<M: Message + Default>(kind: Kind, body: &[u8]) -> Result<M, WireError> {
    let damaged = |problem: String| WireError::Body { kind, problem };
    let bytes = checked(body).ok_or_else(|| damaged("its checksum does not fit".into()))?;
    M::decode(bytes).map_err(|error| damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::HEADER_LEN;
    use super::*;

    fn behind_a_checksum(bytes: &[u8]) -> Vec<u8> {
        let mut body = crc32fast::hash(bytes).to_le_bytes().to_vec();
        body.extend_from_slice(bytes);
        body
    }

    fn texts() -> impl Strategy<Value = BTreeMap<String, String>> {
        proptest::collection::btree_map(".{0,10}", ".{0,10}", 0..4)
    }

    fn ask() -> impl Strategy<Value = Option<Ask>> {
        prop_oneof![
            Just(None),
            Just(Some(Ask::Status(()))),
            Just(Some(Ask::Members(()))),
            Just(Some(Ask::Snapshot(()))),
            any::<u64>().prop_map(|to| Some(Ask::TransferLeader(to))),
            any::<Vec<u8>>().prop_map(|encoded| Some(Ask::Change(Change { encoded }))),
            (".{0,20}", any::<[u8; 16]>(), ".{0,20}", texts()).prop_map(|(name, identity, address, metadata)| {
                Some(Ask::Join(Join { name, identity: identity.to_vec(), address, metadata }))
            }),
        ]
    }

    fn answer() -> impl Strategy<Value = Option<Answer>> {
        let peer = (any::<[u64; 2]>(), ".{0,20}", any::<bool>(), proptest::option::of(".{0,20}"));
        let peers = proptest::collection::vec(peer, 0..4).prop_map(|peers| {
            let peer = |([id, matched], address, connected, trouble): ([u64; 2], _, bool, Option<String>)| Peer {
                id,
                address,
                connected,
                state: trouble.clone(),
                trouble,
                matched: connected.then_some(matched),
            };
            peers.into_iter().map(peer).collect::<Vec<_>>()
        });
        let member = (any::<u64>(), ".{0,20}", any::<bool>(), any::<[u8; 16]>(), texts());
        let members = proptest::collection::vec(member, 0..4).prop_map(|members| {
            let member = |(id, address, votes, identity, metadata): (u64, _, bool, [u8; 16], _)| Member {
                id,
                address,
                votes,
                identity: identity.to_vec(),
                metadata,
                connected: !votes,
            };
            members.into_iter().map(member).collect::<Vec<_>>()
        });
        prop_oneof![
            Just(None),
            (any::<i32>(), ".{0,20}", any::<u64>(), ".{0,20}").prop_map(|(kind, reason, leader, leader_address)| {
                Some(Answer::Problem(Problem { kind, reason, leader, leader_address }))
            }),
            (any::<[u64; 4]>(), ".{0,20}", peers).prop_map(|([id, term, leader, commit], cluster, peers)| {
                let status = Status { id, term, leader, commit, cluster, peers, ..Status::default() };
                Some(Answer::Status(Box::new(status)))
            }),
            (any::<[u64; 2]>(), members).prop_map(|([leader, incarnation], members)| {
                Some(Answer::Members(Members { leader, members, incarnation }))
            }),
            any::<u64>().prop_map(|index| Some(Answer::Snapshot(index))),
            any::<u64>().prop_map(|leader| Some(Answer::Leads(leader))),
            (any::<u64>(), any::<Vec<u64>>()).prop_map(|(index, ids)| Some(Answer::Changed(Changed { index, ids }))),
            (any::<u64>(), proptest::collection::btree_map(any::<u64>(), ".{0,20}", 0..4))
                .prop_map(|(id, members)| Some(Answer::Joined(Joined { id, members }))),
        ]
    }

    proptest! {
        #[test]
        fn requests_survive_the_round_trip(number in any::<u64>(), timeout_ms in any::<u64>(), ask in ask()) {
            let request = Request { number, timeout_ms, ask };
            let frame = encode_request(&request).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(decode_request(&frame[HEADER_LEN..]), Ok(request));
        }

        #[test]
        fn responses_survive_the_round_trip(number in any::<u64>(), answer in answer()) {
            let response = Response { number, answer };
            let frame = encode_response(&response).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(decode_response(&frame[HEADER_LEN..]), Ok(response));
        }

        #[test]
        fn garbage_is_answered_with_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for body in [bytes.clone(), behind_a_checksum(&bytes)] {
                let _ = decode_request(&body);
                let _ = decode_response(&body);
            }
        }

        #[test]
        fn a_flipped_bit_is_noticed(answer in answer(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let frame = encode_response(&Response { number: 7, answer }).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let mut body = frame[HEADER_LEN..].to_vec();
            let at = at.index(body.len());
            body[at] ^= 1 << bit;
            prop_assert!(decode_response(&body).is_err());
        }
    }

    #[test]
    fn what_a_newer_build_asks_has_a_number_to_answer_to() {
        #[derive(Clone, PartialEq, Message)]
        struct Newer {
            #[prost(uint64, tag = "1")]
            number: u64,
            #[prost(string, tag = "99")]
            ask: String,
        }
        let newer = Newer { number: 8, ask: "something else".into() }.encode_to_vec();
        assert_eq!(decode_request(&behind_a_checksum(&newer)), Ok(Request { number: 8, ..Request::default() }));
    }

    #[test]
    fn what_nobody_would_take_is_not_sent() {
        let ask = Some(Ask::Change(Change { encoded: vec![0; REQUEST_BYTES_MAX] }));
        assert!(matches!(encode_request(&Request { number: 1, timeout_ms: 1, ask }), Err(WireError::TooLong { .. })));
    }
}
