//! A door for fuzzing: every reader of what stands on the disk, over any bytes.

use std::io::Cursor;
use std::path::Path;

use protobuf::Message;

use super::stored::{AnyBytes, StoredEntry};
use super::{batches, guard, records};

/// Reads bytes as everything that may stand on the disk.
pub fn read_anything(bytes: &[u8]) {
    let place = Path::new("log");
    let _ = guard::read_slot(bytes);
    let _ = StoredEntry::parse_from_bytes(bytes);
    let _ = AnyBytes::parse_from_bytes(bytes);
    let _ = batches::first_torn_of(Cursor::new(bytes), bytes.len() as u64, 0);
    let _ = records::unseal(place, 1, bytes);
    let _ = records::read_number(place, 1, bytes);
    // Keys and values, each with a length of one byte in front.
    let (mut rest, mut found) = (bytes, Vec::new());
    while let Some((key, behind)) = part(rest) {
        let Some((value, behind)) = part(behind) else { break };
        found.push((key.to_vec(), records::seal(1, value)));
        rest = behind;
    }
    let _ = records::read_group(place, 1, &found);
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}
