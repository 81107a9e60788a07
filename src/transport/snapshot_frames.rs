//! The frames on a connection that is for one snapshot; the order in which they come is told in [`super::snapshots`].
//!
//! | frame | body |
//! |---|---|
//! | SnapshotBegin | CRC-32 of what follows; the Raft message, with its length in front |
//! | SnapshotOffset | an offset |
//! | SnapshotData | CRC-32 of what follows; an offset; bytes of the file |
//! | SnapshotWait, SnapshotDone | empty |
//!
//! The checksums find damage on the way early, where the connection can be made anew; the whole file's, in its name, has
//! the last word.

use prost::Message as _;
use raft::eraftpb::{Message, MessageType, SnapshotMetadata};

use super::checked::{checked, checksum_ahead, frame, put_checksum};
use super::wire::{self, decode_message, put_string, Fields, Kind, WireError};
use crate::engine::GroupId;
use crate::storage::snapshot::SnapshotName;

/// The largest body of a SnapshotBegin frame.
pub const BEGIN_BYTES_MAX: usize = 64 << 10;

/// What its message may take in memory.
const BEGIN_WEIGHT_MAX: usize = 2 << 20;

/// The most bytes of a file in one frame: on a link that carries this much within [`super::Options::silence_timeout`], a
/// snapshot gets on.
pub const PIECE_BYTES_MAX: usize = 128 << 10;

/// What stands in front of the bytes of a piece.
pub const PIECE_FRONT_LEN: usize = 12;

/// What a snapshot's connection is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Announced {
    /// The message that brings the snapshot; its data is the name.
    pub message: Message,
    /// The file.
    pub name: SnapshotName,
}

impl Announced {
    /// Looks into a message that is to bring a snapshot of `group`.
    ///
    /// # Errors
    /// What is wrong with it: it brings none, or its parts contradict each other.
    pub fn new(group: GroupId, message: Message) -> Result<Self, String> {
        if message.msg_type != MessageType::MsgSnapshot as i32 || !message.entries.is_empty() {
            return Err("its message is none for a snapshot".into());
        }
        let snapshot = message.snapshot.as_ref().ok_or("its message has no snapshot")?;
        let name =
            SnapshotName::decode(snapshot.data.as_slice()).map_err(|error| format!("its name is none: {error}"))?;
        let SnapshotMetadata { index, term, .. } = snapshot.metadata.clone().unwrap_or_default();
        if (name.index, name.term) != (index, term) || index == 0 {
            return Err(format!(
                "its message is about index {index} of term {term}, its name about index {} of term {}",
                name.index, name.term
            ));
        }
        if name.group != group {
            return Err(format!("it is for group {group}, and its name for group {}", name.group));
        }
        if name.bytes == 0 || i64::try_from(name.bytes).is_err() {
            return Err(format!("no snapshot's file has {} bytes", name.bytes));
        }
        Ok(Self { message, name })
    }
}

/// A whole SnapshotBegin frame.
///
/// # Errors
/// The message is too large for it.
pub fn encode_begin(group: GroupId, message: &Message) -> Result<Vec<u8>, WireError> {
    frame(Kind::SnapshotBegin, group, BEGIN_BYTES_MAX, |buffer| {
        let checked = checksum_ahead(buffer);
        put_string(buffer, &message.encode_to_vec());
        put_checksum(buffer, checked);
    })
}

/// Reads the body of a SnapshotBegin frame.
///
/// # Errors
/// It is damaged, or contradicts itself.
pub fn decode_begin(group: GroupId, body: &[u8]) -> Result<Announced, WireError> {
    let kind = Kind::SnapshotBegin;
    let damaged = |problem: String| WireError::Body { kind, problem };
    let mut fields = Fields { rest: checked(body).ok_or_else(|| damaged("its checksum does not fit".into()))? };
    let bytes = fields.string().ok_or_else(|| damaged("its fields do not fit its length".into()))?;
    let weight = wire::weigh_message(bytes).ok_or_else(|| damaged("its message is not Protobuf".into()))?;
    if weight > BEGIN_WEIGHT_MAX {
        return Err(WireError::TooHeavy { limit: BEGIN_WEIGHT_MAX });
    }
    Announced::new(group, decode_message(kind, bytes)?).map_err(damaged)
}

/// A whole SnapshotData frame.
///
/// # Errors
/// There are more than [`PIECE_BYTES_MAX`] bytes.
pub fn encode_data(group: GroupId, offset: u64, bytes: &[u8]) -> Result<Vec<u8>, WireError> {
    frame(Kind::SnapshotData, group, PIECE_FRONT_LEN + PIECE_BYTES_MAX, |buffer| {
        buffer.reserve_exact(PIECE_FRONT_LEN + bytes.len());
        let checked = checksum_ahead(buffer);
        buffer.extend_from_slice(&offset.to_le_bytes());
        buffer.extend_from_slice(bytes);
        put_checksum(buffer, checked);
    })
}

/// Reads the body of a SnapshotData frame: the offset, and the bytes that belong there.
///
/// # Errors
/// It is damaged, or brings nothing.
pub fn decode_data(body: &[u8]) -> Result<(u64, &[u8]), WireError> {
    let damaged = |problem: &str| WireError::Body { kind: Kind::SnapshotData, problem: problem.into() };
    let mut fields = Fields { rest: checked(body).ok_or_else(|| damaged("its checksum does not fit"))? };
    let offset = fields.u64().ok_or_else(|| damaged("it is shorter than an offset"))?;
    if fields.rest.is_empty() {
        return Err(damaged("it brings nothing"));
    }
    Ok((offset, fields.rest))
}

/// A whole SnapshotOffset frame.
pub fn encode_offset(group: GroupId, offset: u64) -> Vec<u8> {
    short(Kind::SnapshotOffset, group, &offset.to_le_bytes())
}

/// Reads the body of a SnapshotOffset frame.
///
/// # Errors
/// Anything else.
pub fn decode_offset(body: &[u8]) -> Result<u64, WireError> {
    let offset = Fields { rest: body }.u64();
    offset.ok_or_else(|| WireError::Body {
        kind: Kind::SnapshotOffset,
        problem: "it is shorter than an offset".to_owned(),
    })
}

/// A whole SnapshotWait frame.
pub fn encode_wait(group: GroupId) -> Vec<u8> {
    short(Kind::SnapshotWait, group, &[])
}

/// A whole SnapshotDone frame.
pub fn encode_done(group: GroupId) -> Vec<u8> {
    short(Kind::SnapshotDone, group, &[])
}

fn short(kind: Kind, group: GroupId, body: &[u8]) -> Vec<u8> {
    // What is this short fits.
    frame(kind, group, body.len(), |buffer| buffer.extend_from_slice(body)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raft::eraftpb::Snapshot;

    use super::super::wire::{Header, HEADER_LEN, PROTOCOL_VERSION};
    use super::*;

    fn announced(name: SnapshotName) -> Message {
        let metadata = SnapshotMetadata { index: name.index, term: name.term, ..SnapshotMetadata::default() };
        let snapshot = Snapshot { data: name.encode_to_vec(), metadata: Some(metadata) };
        let msg_type = MessageType::MsgSnapshot as i32;
        Message { msg_type, from: 1, to: 2, term: 9, snapshot: Some(snapshot), ..Message::default() }
    }

    const NAME: SnapshotName = SnapshotName { group: 1, index: 70, term: 3, bytes: 1000, checksum: 5 };

    fn body(frame: &[u8], kind: Kind, group: GroupId) -> &[u8] {
        let header = Header::decode(frame, PROTOCOL_VERSION, usize::MAX).unwrap().unwrap();
        assert_eq!(header, Header { body_len: frame.len() - HEADER_LEN, kind, group });
        &frame[HEADER_LEN..]
    }

    proptest! {
        #[test]
        fn frames_survive_the_round_trip(
            [group, index, term, offset] in any::<[u64; 4]>(), size in 1..i64::MAX as u64, checksum in any::<u32>(),
            bytes in proptest::collection::vec(any::<u8>(), 1..300),
        ) {
            let name = SnapshotName { group, index: index.max(1), term, bytes: size, checksum };
            let frame = encode_begin(group, &announced(name)).unwrap();
            let read = decode_begin(group, body(&frame, Kind::SnapshotBegin, group)).unwrap();
            prop_assert_eq!(read, Announced { message: announced(name), name });
            let frame = encode_data(group, offset, &bytes).unwrap();
            prop_assert_eq!(decode_data(body(&frame, Kind::SnapshotData, group)), Ok((offset, bytes.as_slice())));
            prop_assert_eq!(decode_offset(body(&encode_offset(group, offset), Kind::SnapshotOffset, group)), Ok(offset));
            prop_assert!(body(&encode_wait(group), Kind::SnapshotWait, group).is_empty());
            prop_assert!(body(&encode_done(group), Kind::SnapshotDone, group).is_empty());
        }

        #[test]
        fn garbage_is_answered_with_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_begin(1, &bytes);
            let _ = decode_data(&bytes);
            let _ = decode_offset(&bytes);
            // Behind a checksum that fits as well.
            let mut checked = crc32fast::hash(&bytes).to_le_bytes().to_vec();
            checked.extend(&bytes);
            let _ = decode_begin(1, &checked);
            let _ = decode_data(&checked);
        }

        #[test]
        fn a_flipped_bit_is_found(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let mut begin = encode_begin(1, &announced(NAME)).unwrap()[HEADER_LEN..].to_vec();
            *at.get_mut(&mut begin) ^= 1 << bit;
            prop_assert!(decode_begin(1, &begin).is_err());
            let mut data = encode_data(1, 7, b"some bytes of the file").unwrap()[HEADER_LEN..].to_vec();
            *at.get_mut(&mut data) ^= 1 << bit;
            prop_assert!(decode_data(&data).is_err());
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let problem = |group, message| Announced::new(group, message).err().unwrap_or_default();
        assert_eq!(problem(1, announced(NAME)), "");
        assert!(problem(2, announced(NAME)).contains("group 2"));
        for name in [SnapshotName { bytes: 0, ..NAME }, SnapshotName { bytes: u64::MAX, ..NAME }] {
            assert!(problem(1, announced(name)).contains("bytes"));
        }
        let renamed = |name: SnapshotName| {
            let mut message = announced(NAME);
            message.snapshot.get_or_insert_default().data = name.encode_to_vec();
            message
        };
        assert!(problem(1, renamed(SnapshotName { index: 71, ..NAME })).contains("index 71"));
        assert!(problem(1, renamed(SnapshotName { term: 4, ..NAME })).contains("term 4"));
        assert!(problem(1, announced(SnapshotName { index: 0, ..NAME })).contains("index 0"));
        assert!(problem(1, Message { snapshot: None, ..announced(NAME) }).contains("no snapshot"));
        assert!(problem(1, Message { msg_type: 3, ..announced(NAME) }).contains("none for a snapshot"));
        let entries = vec![raft::eraftpb::Entry::default()];
        assert!(problem(1, Message { entries, ..announced(NAME) }).contains("none for a snapshot"));
    }

    #[test]
    fn what_no_frame_can_hold_is_not_sent() {
        let message = Message { context: vec![0; BEGIN_BYTES_MAX], ..announced(NAME) };
        assert!(encode_begin(1, &message).is_err());
        assert!(encode_data(1, 0, &vec![0; PIECE_BYTES_MAX]).is_ok());
        assert!(encode_data(1, 0, &vec![0; PIECE_BYTES_MAX + 1]).is_err());
    }
}
