//! The wire format: pure functions over byte slices.
//!
//! A connection is a sequence of frames. All integers are little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | length of the body |
//! | 4 | 1 | protocol version: [`HANDSHAKE_FORMAT`] in a handshake, then the version agreed on |
//! | 5 | 1 | kind, [`Kind`] |
//! | 6 | 8 | group, 0 where a frame belongs to no group |
//! | 14 | length | body |
//!
//! Nothing here trusts its input: a decoder answers any bytes with a value or a [`WireError`], and what it allocates is
//! bounded by the frame's *weight*, the memory that its content takes once decoded, which is held to the same limit as
//! the frame itself (a Protobuf entry of two bytes becomes a structure of eighty).

use std::mem::size_of;

use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use crate::engine::command::{self, Command, CommandError};
use crate::engine::{GroupId, NodeId};

/// Bytes in front of every body.
pub const HEADER_LEN: usize = 14;

/// The newest protocol version that this build speaks.
pub const PROTOCOL_VERSION: u8 = 1;

/// The oldest protocol version that this build speaks.
pub const PROTOCOL_VERSION_MIN: u8 = 1;

/// The version byte of Hello, Welcome and Refuse. Their bodies only ever grow at the end, so that builds which agree
/// on no protocol version can still tell each other so.
pub const HANDSHAKE_FORMAT: u8 = 1;

/// The largest body before a handshake is done.
pub const HANDSHAKE_BYTES_MAX: usize = 64 << 10;

/// A number of a conf state takes one byte on the wire and up to this many in memory, a growing vector included.
const CONF_STATE_FACTOR: usize = 16;

/// What a frame's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The dialer's opening, [`super::handshake`].
    Hello = 1,
    /// The acceptor's answer to a Hello it admits.
    Welcome = 2,
    /// Why the sender closes the connection.
    Refuse = 3,
    /// Raft messages, each with its length in front.
    Raft = 4,
    /// Commands forwarded to the leader, each with its length in front.
    Propose = 5,
    /// Forwarded commands that were refused before they entered the log, [`Rejected`].
    Rejected = 6,
    /// The engine's own bytes about forming a cluster.
    Formation = 7,
    /// The sender closes in good order; its body is empty.
    Goodbye = 8,
    /// Why the sender drops messages of the receiver: one sentence.
    Dropped = 9,
    /// An index: everything committed up to it is on the sender's disk.
    Durable = 10,
    /// The dialer's answer to a Welcome it likes; its body is empty. The connection begins behind it.
    Confirm = 11,
    /// Which snapshot follows, [`super::snapshots`]; this and the next four on a connection for a snapshot alone.
    SnapshotBegin = 12,
    /// Bytes of the snapshot's file that the receiver has.
    SnapshotOffset = 13,
    /// A piece of the snapshot's file.
    SnapshotData = 14,
    /// The receiver's disk is still at work; its body is empty.
    SnapshotWait = 15,
    /// The receiver has the whole file, durably; its body is empty.
    SnapshotDone = 16,
    /// What an operator's tool asks, [`super::admin_messages`]; this and the next on a connection of such a tool alone.
    AdminRequest = 17,
    /// What the node answers.
    AdminResponse = 18,
}

impl Kind {
    fn from_byte(byte: u8) -> Result<Self, WireError> {
        Ok(match byte {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refuse,
            4 => Self::Raft,
            5 => Self::Propose,
            6 => Self::Rejected,
            7 => Self::Formation,
            8 => Self::Goodbye,
            9 => Self::Dropped,
            10 => Self::Durable,
            11 => Self::Confirm,
            12 => Self::SnapshotBegin,
            13 => Self::SnapshotOffset,
            14 => Self::SnapshotData,
            15 => Self::SnapshotWait,
            16 => Self::SnapshotDone,
            17 => Self::AdminRequest,
            18 => Self::AdminResponse,
            other => return Err(WireError::Kind(other)),
        })
    }
}

/// Why bytes are not a frame that this build understands, or a value does not fit into one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The announced length is over the limit; nothing was allocated.
    #[error("a frame of {announced} bytes was announced where at most {limit} are allowed: this is no aioraft peer, or its frame limit is larger than ours")]
    TooLong {
        /// The announced length of the body.
        announced: usize,
        /// The largest allowed.
        limit: usize,
    },
    /// Decoded, the frame would take more memory than a frame may.
    #[error("a frame takes more than the {limit} bytes of memory that a frame may take: raise the frame limit on every node")]
    TooHeavy {
        /// The most that is allowed.
        limit: usize,
    },
    /// Another protocol version than the one agreed on.
    #[error("a frame of protocol version {found} came where version {expected} was agreed on: this is no aioraft peer, or the stream is damaged")]
    Version {
        /// The version byte found.
        found: u8,
        /// The version byte expected.
        expected: u8,
    },
    /// A kind that no version up to ours has.
    #[error("a frame of unknown kind {0} came: this is no aioraft peer, or the stream is damaged")]
    Kind(u8),
    /// A kind that does not belong here.
    #[error("a {0:?} frame came where none may come: the peer does not follow the protocol")]
    Unexpected(Kind),
    /// The body is not what its kind says.
    #[error("the body of a {kind:?} frame is damaged: {problem}")]
    Body {
        /// The frame's kind.
        kind: Kind,
        /// What is wrong with it.
        problem: String,
    },
}

/// The decoded front of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of body behind the header.
    pub body_len: usize,
    /// What they are.
    pub kind: Kind,
    /// The group they belong to.
    pub group: GroupId,
}

impl Header {
    /// Reads the header at the start of `bytes`; `None` if it is not complete yet.
    ///
    /// # Errors
    /// A length above `body_bytes_max`, another version than `version`, an unknown kind.
    pub fn decode(bytes: &[u8], version: u8, body_bytes_max: usize) -> Result<Option<Self>, WireError> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let [l0, l1, l2, l3, found, kind, group @ ..] = *header;
        let announced = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if announced > body_bytes_max {
            return Err(WireError::TooLong { announced, limit: body_bytes_max });
        }
        if found != version {
            return Err(WireError::Version { found, expected: version });
        }
        Ok(Some(Self { body_len: announced, kind: Kind::from_byte(kind)?, group: u64::from_le_bytes(group) }))
    }

    /// Like [`Header::decode`], on a connection whose handshake is done: a peer that breaks off says why with a Refuse,
    /// whose version byte is the handshake's.
    ///
    /// # Errors
    /// Those of [`Header::decode`].
    pub fn decode_open(bytes: &[u8], version: u8, body_bytes_max: usize) -> Result<Option<Self>, WireError> {
        Self::decode(bytes, version, body_bytes_max).or_else(|error| {
            match Self::decode(bytes, HANDSHAKE_FORMAT, HANDSHAKE_BYTES_MAX) {
                Ok(Some(header)) if header.kind == Kind::Refuse => Ok(Some(header)),
                _ => Err(error),
            }
        })
    }
}

/// Starts a frame at the end of `buffer`; the returned position goes to [`end`] once the body is written.
pub fn begin(buffer: &mut Vec<u8>, version: u8, kind: Kind, group: GroupId) -> usize {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    buffer.push(version);
    buffer.push(kind as u8);
    buffer.extend_from_slice(&group.to_le_bytes());
    start
}

/// Writes the length of the frame that [`begin`] started at `start`.
///
/// # Errors
/// The body is longer than `body_bytes_max`; the frame is taken back out of `buffer`.
pub fn end(buffer: &mut Vec<u8>, start: usize, body_bytes_max: usize) -> Result<(), WireError> {
    let body_len = buffer.len().saturating_sub(start + HEADER_LEN);
    match u32::try_from(body_len) {
        Ok(length) if body_len <= body_bytes_max => {
            if let Some(place) = buffer.get_mut(start..start + 4) {
                place.copy_from_slice(&length.to_le_bytes());
            }
            Ok(())
        }
        _ => {
            buffer.truncate(start);
            Err(WireError::TooLong { announced: body_len, limit: body_bytes_max })
        }
    }
}

/// What an encoded item takes: on the wire, and in memory once it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes of the item itself on the wire, without its length in front.
    pub bytes: usize,
    /// Bytes of memory.
    pub weight: usize,
}

/// What `message` takes.
pub fn size_of_message(message: &Message) -> Size {
    let bytes = message.encoded_len();
    let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
    let weight = size_of::<Message>()
        + bytes
        + message.entries.len() * size_of::<Entry>()
        + metadata.map_or(0, |metadata| metadata.encoded_len() * CONF_STATE_FACTOR);
    Size { bytes, weight }
}

/// Appends one message to the body of a Raft frame.
pub fn put_message(buffer: &mut Vec<u8>, message: &Message, size: Size) {
    prost::encoding::encode_varint(size.bytes as u64, buffer);
    message.encode_raw(buffer);
}

/// Reads the body of a Raft frame: the messages, and their weight.
///
/// Message and entry types are checked here, since raft-rs' getters panic on a type that they do not know.
///
/// # Errors
/// Anything that is not a sequence of messages, or weighs more than `weight_max`.
pub fn decode_raft(mut body: &[u8], weight_max: usize) -> Result<(Vec<Message>, usize), WireError> {
    let damaged = |problem: &str| WireError::Body { kind: Kind::Raft, problem: problem.to_owned() };
    let mut messages = Vec::new();
    let mut weight = 0_usize;
    while !body.is_empty() {
        let bytes = delimited(&mut body).ok_or_else(|| damaged("a message is longer than the frame"))?;
        weight = weight.saturating_add(weigh_message(bytes).ok_or_else(|| damaged("a message is not Protobuf"))?);
        if weight > weight_max {
            return Err(WireError::TooHeavy { limit: weight_max });
        }
        messages.push(decode_message(Kind::Raft, bytes)?);
    }
    Ok((messages, weight))
}

/// Reads one message, which was weighed, out of a frame of this kind.
pub(super) fn decode_message(kind: Kind, bytes: &[u8]) -> Result<Message, WireError> {
    let damaged = |problem: &str| WireError::Body { kind, problem: problem.to_owned() };
    let message = Message::decode(bytes).map_err(|error| damaged(&error.to_string()))?;
    if MessageType::from_i32(message.msg_type).is_none() {
        return Err(damaged("a message has an unknown type"));
    }
    if message.entries.iter().any(|entry| EntryType::from_i32(entry.entry_type).is_none()) {
        return Err(damaged("an entry has an unknown type"));
    }
    Ok(message)
}

/// What an encoded message takes in memory, found without decoding it.
pub(super) fn weigh_message(mut bytes: &[u8]) -> Option<usize> {
    // Field numbers of eraftpb.Message and eraftpb.Snapshot.
    const ENTRIES: u64 = 7;
    const SNAPSHOT: u64 = 9;
    const METADATA: u64 = 2;
    let mut weight = size_of::<Message>() + bytes.len();
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (ENTRIES, _) => weight += size_of::<Entry>(),
            (SNAPSHOT, mut snapshot) => {
                while !snapshot.is_empty() {
                    if let (METADATA, metadata) = field(&mut snapshot)? {
                        weight += metadata.len() * CONF_STATE_FACTOR;
                    }
                }
            }
            _ => {}
        }
    }
    Some(weight)
}

/// Takes one Protobuf field: its number, and its bytes if it has a length.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => {
            varint(bytes)?;
            &[][..]
        }
        1 => take(bytes, 8).map(|_| &[][..])?,
        2 => delimited(bytes)?,
        5 => take(bytes, 4).map(|_| &[][..])?,
        // Groups: eraftpb has none.
        _ => return None,
    };
    Some((key >> 3, value))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(bytes).ok()
}

fn delimited<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = varint(bytes)?;
    take(bytes, usize::try_from(length).ok()?)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

/// What `command` takes.
pub fn size_of_command(command: &Command) -> Size {
    let bytes = command.as_bytes().len();
    Size { bytes, weight: size_of::<Command>() + 4 + bytes }
}

/// Appends one command to the body of a Propose frame. Its length must fit into 32 bits, which a frame limit ensures.
pub fn put_command(buffer: &mut Vec<u8>, command: &Command) {
    let bytes = command.as_bytes();
    buffer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    buffer.extend_from_slice(bytes);
}

/// The content of a Propose frame.
#[derive(Debug, Default)]
pub struct Proposed {
    /// The commands, in the order they were sent.
    pub commands: Vec<Command>,
    /// Why some of the frame's commands are missing: the last one's reason.
    pub unreadable: Option<CommandError>,
    /// Bytes of memory that they take.
    pub weight: usize,
}

/// Reads the body of a Propose frame.
///
/// A command in a format that this build does not know is left out and reported; the others count.
///
/// # Errors
/// Anything that is not a sequence of byte strings, or weighs more than `weight_max`.
pub fn decode_propose(mut body: &[u8], weight_max: usize) -> Result<Proposed, WireError> {
    let damaged = || WireError::Body { kind: Kind::Propose, problem: "a command is longer than the frame".to_owned() };
    let mut proposed = Proposed::default();
    while !body.is_empty() {
        let mut fields = Fields { rest: body };
        let bytes = fields.string().ok_or_else(damaged)?;
        body = fields.rest;
        proposed.weight = proposed.weight.saturating_add(size_of::<Command>() + 4 + bytes.len());
        if proposed.weight > weight_max {
            return Err(WireError::TooHeavy { limit: weight_max });
        }
        // Looked at first: what is no command is not worth a copy.
        match command::decode(bytes).and_then(|_| Command::from_bytes(bytes.to_vec())) {
            Ok(command) => proposed.commands.push(command),
            Err(error) => proposed.unreadable = Some(error),
        }
    }
    Ok(proposed)
}

/// Forwarded commands that were refused before they entered the log: not committed, and never will be by that attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejected {
    /// The boot of the origin in which they were proposed.
    pub boot: u64,
    /// Their numbers.
    pub numbers: Vec<u64>,
    /// The leader known to who refuses, 0 if none.
    pub leader: NodeId,
    /// The term of who refuses.
    pub term: u64,
    /// Why, with what to do.
    pub reason: String,
}

/// A reason longer than this is cut: it is for people.
pub const REASON_BYTES_MAX: usize = 1024;

/// Appends the body of a Rejected frame.
pub fn put_rejected(buffer: &mut Vec<u8>, rejected: &Rejected) {
    for word in [rejected.boot, rejected.leader, rejected.term] {
        buffer.extend_from_slice(&word.to_le_bytes());
    }
    put_string(buffer, cut(&rejected.reason).as_bytes());
    for number in &rejected.numbers {
        buffer.extend_from_slice(&number.to_le_bytes());
    }
}

/// Reads the body of a Rejected frame.
///
/// # Errors
/// Anything else.
pub fn decode_rejected(body: &[u8]) -> Result<Rejected, WireError> {
    let read = || {
        let mut fields = Fields { rest: body };
        let (boot, leader, term) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let reason = fields.text()?;
        let words = fields.rest.chunks_exact(8);
        if !words.remainder().is_empty() {
            return None;
        }
        let numbers = words.filter_map(|word| Some(u64::from_le_bytes(*word.first_chunk()?))).collect();
        Some(Rejected { boot, numbers, leader, term, reason })
    };
    read().ok_or_else(|| WireError::Body { kind: Kind::Rejected, problem: "its fields do not fit its length".into() })
}

/// Appends the body of a Dropped frame.
pub fn put_dropped(buffer: &mut Vec<u8>, reason: &str) {
    put_string(buffer, cut(reason).as_bytes());
}

/// Reads the body of a Dropped frame. The reason comes from outside: control characters are taken out of it.
///
/// # Errors
/// Anything else.
pub fn decode_dropped(body: &[u8]) -> Result<String, WireError> {
    let reason = Fields { rest: body }.text().map(|reason| printable(&reason));
    reason.ok_or_else(|| WireError::Body { kind: Kind::Dropped, problem: "its text does not fit its length".into() })
}

/// Reads the body of a Durable frame.
///
/// # Errors
/// Anything else.
pub fn decode_durable(body: &[u8]) -> Result<u64, WireError> {
    let index = Fields { rest: body }.u64();
    index.ok_or_else(|| WireError::Body { kind: Kind::Durable, problem: "it is shorter than an index".into() })
}

/// `text` from outside, cut, and without the characters that could write log lines of their own.
pub(super) fn printable(text: &str) -> String {
    cut(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `reason`, cut to [`REASON_BYTES_MAX`] at a character's start.
pub(super) fn cut(reason: &str) -> &str {
    let mut length = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(length) {
        length -= 1;
    }
    &reason[..length]
}

/// Appends `bytes` with their length in front.
pub(super) fn put_string(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    buffer.extend_from_slice(bytes);
}

/// Words with their number in front.
pub(super) fn put_words(buffer: &mut Vec<u8>, words: &[u64]) {
    buffer.extend_from_slice(&(words.len() as u32).to_le_bytes());
    for word in words {
        buffer.extend_from_slice(&word.to_le_bytes());
    }
}

/// Takes fixed-width fields off the front of a body; `None` when they run out.
pub(super) struct Fields<'a> {
    /// What has not been taken yet.
    pub rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    /// Bytes with their length in front.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        take(&mut self.rest, usize::try_from(length).ok()?)
    }

    /// Words with their number in front.
    pub fn words(&mut self) -> Option<Vec<u64>> {
        let length = usize::try_from(self.u32()?).ok()?.checked_mul(8)?;
        let mut words = Fields { rest: take(&mut self.rest, length)? };
        Some(std::iter::from_fn(|| words.u64()).collect())
    }

    /// UTF-8 with its length in front.
    pub fn text(&mut self) -> Option<String> {
        std::str::from_utf8(self.string()?).ok().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raft::eraftpb::{ConfState, Snapshot, SnapshotMetadata};

    use super::*;

    const LIMIT: usize = 1 << 20;

    fn raft_body(messages: &[Message]) -> (Vec<u8>, usize) {
        let mut body = Vec::new();
        let mut weight = 0;
        for message in messages {
            let size = size_of_message(message);
            put_message(&mut body, message, size);
            weight += size.weight;
        }
        (body, weight)
    }

    fn entry() -> impl Strategy<Value = Entry> {
        (0..3_i32, any::<u64>(), any::<u64>(), any::<Vec<u8>>(), any::<Vec<u8>>()).prop_map(
            |(entry_type, term, index, data, context)| Entry {
                entry_type,
                term,
                index,
                data,
                context,
                ..Entry::default()
            },
        )
    }

    fn message() -> impl Strategy<Value = Message> {
        let snapshot = (any::<Vec<u8>>(), any::<Vec<u64>>(), any::<u64>());
        (
            (0..19_i32, any::<[u64; 6]>(), any::<bool>(), any::<i64>(), any::<Vec<u8>>()),
            proptest::collection::vec(entry(), 0..5),
            proptest::option::of(snapshot),
        )
            .prop_map(|((msg_type, words, reject, priority, context), entries, snapshot)| {
                let [to, from, term, log_term, index, commit] = words;
                let snapshot = snapshot.map(|(data, voters, index)| Snapshot {
                    data,
                    metadata: Some(SnapshotMetadata {
                        conf_state: Some(ConfState { voters, auto_leave: true, ..ConfState::default() }),
                        index,
                        term,
                    }),
                });
                Message {
                    msg_type,
                    to,
                    from,
                    term,
                    log_term,
                    index,
                    entries,
                    commit,
                    snapshot,
                    reject,
                    context,
                    priority,
                    ..Message::default()
                }
            })
    }

    proptest! {
        #[test]
        fn raft_frames_survive_the_round_trip(messages in proptest::collection::vec(message(), 0..5)) {
            let (body, weight) = raft_body(&messages);
            // The sender's reckoning must not be below the receiver's, or its largest frames would be refused.
            let (read, weighed) = decode_raft(&body, LIMIT).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert!(weighed <= weight);
            prop_assert_eq!(read, messages);
        }

        #[test]
        fn propose_frames_survive_the_round_trip(payloads in any::<Vec<Vec<u8>>>()) {
            let mut body = Vec::new();
            let mut weight = 0;
            for payload in &payloads {
                let command = Command::new(payload);
                weight += size_of_command(&command).weight;
                put_command(&mut body, &command);
            }
            let read = decode_propose(&body, LIMIT).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(read.weight, weight);
            prop_assert_eq!(read.unreadable, None);
            let read: Vec<_> = read.commands.iter().map(|command| command.payload().to_vec()).collect();
            prop_assert_eq!(read, payloads);
        }

        #[test]
        fn rejected_frames_survive_the_round_trip(words in any::<[u64; 3]>(), numbers in any::<Vec<u64>>(), reason in ".{0,300}") {
            let [boot, leader, term] = words;
            let rejected = Rejected { boot, numbers, leader, term, reason };
            let mut body = Vec::new();
            put_rejected(&mut body, &rejected);
            prop_assert_eq!(decode_rejected(&body), Ok(rejected));
        }

        #[test]
        fn headers_survive_the_round_trip(kind in 1..19_u8, group in any::<u64>(), body in any::<Vec<u8>>()) {
            let kind = Kind::from_byte(kind).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let mut buffer = vec![7; 3];
            let start = begin(&mut buffer, 1, kind, group);
            buffer.extend_from_slice(&body);
            prop_assert_eq!(end(&mut buffer, start, LIMIT), Ok(()));
            prop_assert_eq!(Header::decode(&buffer[3..], 1, LIMIT), Ok(Some(Header { body_len: body.len(), kind, group })));
            prop_assert_eq!(Header::decode(&buffer[3..3 + HEADER_LEN - 1], 1, LIMIT), Ok(None));
        }

        #[test]
        fn garbage_is_answered_with_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Header::decode(&bytes, PROTOCOL_VERSION, LIMIT);
            let _ = decode_raft(&bytes, LIMIT);
            let _ = decode_propose(&bytes, LIMIT);
            let _ = decode_rejected(&bytes);
        }

        #[test]
        fn a_damaged_frame_never_weighs_more_than_allowed(
            messages in proptest::collection::vec(message(), 1..4),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let (mut body, _) = raft_body(&messages);
            for (at, byte) in damage {
                let at = at.index(body.len());
                body[at] = byte;
            }
            if let Ok((read, weighed)) = decode_raft(&body, LIMIT) {
                let entries: usize = read.iter().map(|message| message.entries.len()).sum();
                prop_assert!(read.len() * size_of::<Message>() + entries * size_of::<Entry>() <= weighed);
            }
        }
    }

    #[test]
    fn an_announced_length_above_the_limit_is_refused_by_the_length_alone() {
        let mut bytes = vec![0xff; HEADER_LEN];
        bytes[4] = PROTOCOL_VERSION;
        let error = Header::decode(&bytes, PROTOCOL_VERSION, LIMIT).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("4294967295") && error.contains("1048576"), "{error}");
    }

    #[test]
    fn small_items_that_grow_in_memory_are_refused_before_they_are_decoded() {
        // 100,000 empty entries: 200 kB on the wire, 8 MB decoded.
        let message = Message { entries: vec![Entry::default(); 100_000], ..Message::default() };
        let (body, _) = raft_body(&[message]);
        assert!(body.len() < LIMIT);
        assert_eq!(decode_raft(&body, LIMIT), Err(WireError::TooHeavy { limit: LIMIT }));
        // 100,000 empty messages: one byte each.
        assert_eq!(decode_raft(&vec![0; 100_000], LIMIT), Err(WireError::TooHeavy { limit: LIMIT }));
        // 100,000 empty commands.
        let body = vec![0; 400_000];
        assert!(matches!(decode_propose(&body, LIMIT), Err(WireError::TooHeavy { .. })));
    }

    #[test]
    fn types_that_would_panic_in_raft_are_refused() {
        for (msg_type, entry_type) in [(19, 0), (-1, 0), (3, 3), (3, i32::MIN)] {
            let entries = vec![Entry { entry_type, ..Entry::default() }];
            let (body, _) = raft_body(&[Message { msg_type, entries, ..Message::default() }]);
            assert!(matches!(decode_raft(&body, LIMIT), Err(WireError::Body { .. })), "{msg_type} {entry_type}");
        }
    }

    #[test]
    fn a_command_of_a_newer_format_does_not_take_the_others_with_it() {
        let mut newer = Command::new(b"newer").into_bytes();
        newer[0] = 9;
        let mut body = Vec::new();
        put_command(&mut body, &Command::new(b"one"));
        put_string(&mut body, &newer);
        put_command(&mut body, &Command::new(b"two"));
        let read = decode_propose(&body, LIMIT).unwrap();
        assert_eq!(read.commands.iter().map(Command::payload).collect::<Vec<_>>(), [b"one", b"two"]);
        assert_eq!(read.unreadable, Some(CommandError::Version { found: 9 }));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "ä".repeat(REASON_BYTES_MAX);
        assert_eq!(cut(&reason).len(), REASON_BYTES_MAX);
        assert_eq!(cut(&format!("x{reason}")).len(), REASON_BYTES_MAX - 1);
    }
}
