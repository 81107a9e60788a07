//! Frames that are made one at a time, and bodies with a checksum in front.

use super::wire::{begin, end, Fields, Kind, WireError, PROTOCOL_VERSION};
use crate::engine::GroupId;

/// A whole frame, whose body `put` appends.
pub(super) fn frame(
    kind: Kind,
    group: GroupId,
    bytes_max: usize,
    put: impl FnOnce(&mut Vec<u8>),
) -> Result<Vec<u8>, WireError> {
    let mut buffer = Vec::new();
    let start = begin(&mut buffer, PROTOCOL_VERSION, kind, group);
    put(&mut buffer);
    end(&mut buffer, start, bytes_max)?;
    Ok(buffer)
}

/// Leaves room for the checksum of what follows.
pub(super) fn checksum_ahead(buffer: &mut Vec<u8>) -> usize {
    buffer.extend_from_slice(&[0; 4]);
    buffer.len()
}

/// Fills it in.
pub(super) fn put_checksum(buffer: &mut [u8], checked: usize) {
    let (front, rest) = buffer.split_at_mut(checked);
    if let Some(place) = front.last_chunk_mut() {
        *place = crc32fast::hash(rest).to_le_bytes();
    }
}

/// What follows the checksum, if it fits.
pub(super) fn checked(body: &[u8]) -> Option<&[u8]> {
    let mut fields = Fields { rest: body };
    (fields.u32()? == crc32fast::hash(fields.rest)).then_some(fields.rest)
}
