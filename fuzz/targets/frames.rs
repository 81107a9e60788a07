//! Whatever comes behind the handshake: a frame's header and every kind of body.

#![no_main]

use aioraft::transport::admin_messages::{decode_request, decode_response, encode_request, encode_response};
use aioraft::transport::snapshot_frames::{
    decode_begin, decode_data, decode_offset, encode_begin, encode_data, encode_offset, BEGIN_BYTES_MAX,
    PIECE_BYTES_MAX,
};
use aioraft::transport::wire::{self, Header, Kind, HEADER_LEN, PROTOCOL_VERSION};
use libfuzzer_sys::fuzz_target;

const BODY_BYTES_MAX: usize = 1 << 20;

/// A body behind a checksum that fits, which chance does not find; it is tried as it came as well.
fn checksummed(body: &[u8]) -> Vec<u8> {
    let mut checked = crc32fast::hash(body).to_le_bytes().to_vec();
    checked.extend(body);
    checked
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(header)) = Header::decode(bytes, PROTOCOL_VERSION, BODY_BYTES_MAX) else { return };
    let body = &bytes[HEADER_LEN..];
    let body = &body[..header.body_len.min(body.len())];
    match header.kind {
        Kind::Raft => {
            let Ok((messages, weight)) = wire::decode_raft(body, BODY_BYTES_MAX) else { return };
            assert!(weight <= BODY_BYTES_MAX);
            // What was understood is understood again.
            let mut again = Vec::new();
            for message in &messages {
                wire::put_message(&mut again, message, wire::size_of_message(message));
            }
            assert_eq!(wire::decode_raft(&again, usize::MAX).unwrap().0, messages);
        }
        Kind::Propose => {
            let Ok(proposed) = wire::decode_propose(body, BODY_BYTES_MAX) else { return };
            assert!(proposed.weight <= BODY_BYTES_MAX);
            let mut again = Vec::new();
            for command in &proposed.commands {
                wire::put_command(&mut again, command);
            }
            let again = wire::decode_propose(&again, usize::MAX).unwrap().commands;
            assert!(again.iter().map(|c| c.as_bytes()).eq(proposed.commands.iter().map(|c| c.as_bytes())));
        }
        Kind::Rejected => {
            let Ok(rejected) = wire::decode_rejected(body) else { return };
            let mut again = Vec::new();
            wire::put_rejected(&mut again, &rejected);
            let again = wire::decode_rejected(&again).unwrap();
            assert_eq!((again.boot, again.numbers), (rejected.boot, rejected.numbers));
        }
        Kind::Dropped => {
            let Ok(reason) = wire::decode_dropped(body) else { return };
            assert!(!reason.chars().any(char::is_control));
        }
        Kind::Durable => {
            let _ = wire::decode_durable(body);
        }
        Kind::SnapshotBegin => {
            for body in [body, &checksummed(body)] {
                let Ok(announced) = decode_begin(header.group, body) else { continue };
                assert_eq!(announced.name.group, header.group);
                let frame = encode_begin(header.group, &announced.message);
                assert!(frame.is_ok() || body.len() > BEGIN_BYTES_MAX / 2);
                let Ok(frame) = frame else { continue };
                assert_eq!(decode_begin(header.group, &frame[HEADER_LEN..]).unwrap(), announced);
            }
        }
        Kind::SnapshotData => {
            for body in [body, &checksummed(body)] {
                let Ok((offset, bytes)) = decode_data(body) else { continue };
                assert!(!bytes.is_empty());
                let Ok(frame) = encode_data(header.group, offset, bytes) else {
                    assert!(bytes.len() > PIECE_BYTES_MAX);
                    continue;
                };
                assert_eq!(decode_data(&frame[HEADER_LEN..]).unwrap(), (offset, bytes));
            }
        }
        Kind::SnapshotOffset => {
            let Ok(offset) = decode_offset(body) else { return };
            assert_eq!(decode_offset(&encode_offset(header.group, offset)[HEADER_LEN..]).unwrap(), offset);
        }
        Kind::AdminRequest => {
            for body in [body, &checksummed(body)] {
                let Ok(request) = decode_request(body) else { continue };
                let Ok(frame) = encode_request(&request) else { continue };
                assert_eq!(decode_request(&frame[HEADER_LEN..]).unwrap(), request);
            }
        }
        Kind::AdminResponse => {
            for body in [body, &checksummed(body)] {
                let Ok(response) = decode_response(body) else { continue };
                let Ok(frame) = encode_response(&response) else { continue };
                assert_eq!(decode_response(&frame[HEADER_LEN..]).unwrap(), response);
            }
        }
        Kind::SnapshotWait | Kind::SnapshotDone => {}
        Kind::Hello | Kind::Welcome | Kind::Confirm | Kind::Refuse | Kind::Formation | Kind::Goodbye => {}
    }
});
