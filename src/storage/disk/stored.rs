//! Entries as raft-engine wants to see them: protobuf messages that carry their index.
//!
//! raft-rs' entries are prost messages here, and raft-engine speaks protobuf 2; [`StoredEntry`] stands between. Its
//! bytes are a format version and the entry as prost encodes it. Nothing is parsed by protobuf 2 itself.

use std::io::{self, BufRead};

use prost::Message as _;
use protobuf::reflect::MessageDescriptor;
use protobuf::{Clear, CodedInputStream, CodedOutputStream, Message, ProtobufResult, UnknownFields};
use raft::eraftpb::Entry;
use raft_engine::MessageExt;

use super::records::VERSION;

/// An entry on its way to or from the disk.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct StoredEntry {
    pub entry: Entry,
    unknown: UnknownFields,
}

impl StoredEntry {
    pub fn new(entry: Entry) -> Self {
        Self { entry, unknown: UnknownFields::default() }
    }
}

/// What a mark is read as: any bytes at all (see the `marks` module).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct AnyBytes {
    unknown: UnknownFields,
}

/// Names the types to raft-engine.
pub(super) struct Entries;
/// Names the types to raft-engine.
pub(super) struct Marks;

impl MessageExt for Entries {
    type Entry = StoredEntry;

    fn index(stored: &StoredEntry) -> u64 {
        stored.entry.index
    }
}

impl MessageExt for Marks {
    type Entry = AnyBytes;

    fn index(_: &AnyBytes) -> u64 {
        super::marks::INDEX
    }
}

fn read_all<T>(is: &mut CodedInputStream<'_>, read: impl FnOnce(&[u8]) -> io::Result<T>) -> ProtobufResult<T> {
    // A stream over a slice gives all of it at once.
    let bytes = is.fill_buf()?;
    let len = bytes.len();
    let value = read(bytes)?;
    is.consume(len);
    Ok(value)
}

fn invalid(what: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

impl Clear for StoredEntry {
    fn clear(&mut self) {
        self.entry = Entry::default();
    }
}

impl Message for StoredEntry {
    fn merge_from(&mut self, is: &mut CodedInputStream<'_>) -> ProtobufResult<()> {
        self.entry = read_all(is, |bytes| match bytes.split_first() {
            Some((&VERSION, entry)) => Entry::decode(entry).map_err(invalid),
            Some((found, _)) => Err(invalid(format!("an entry of format {found}; this aioraft reads {VERSION}"))),
            None => Err(invalid("an entry without bytes")),
        })?;
        Ok(())
    }

    fn write_to_with_cached_sizes(&self, os: &mut CodedOutputStream<'_>) -> ProtobufResult<()> {
        os.write_raw_byte(VERSION)?;
        os.write_raw_bytes(&self.entry.encode_to_vec())
    }

    fn compute_size(&self) -> u32 {
        u32::try_from(self.entry.encoded_len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    fn get_cached_size(&self) -> u32 {
        self.compute_size()
    }

    fn is_initialized(&self) -> bool {
        true
    }

    fn get_unknown_fields(&self) -> &UnknownFields {
        &self.unknown
    }

    fn mut_unknown_fields(&mut self) -> &mut UnknownFields {
        &mut self.unknown
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn descriptor(&self) -> &'static MessageDescriptor {
        Self::descriptor_static()
    }

    fn new() -> Self {
        Self::default()
    }

    fn default_instance() -> &'static Self {
        static DEFAULT: std::sync::OnceLock<StoredEntry> = std::sync::OnceLock::new();
        DEFAULT.get_or_init(Self::default)
    }
}

impl Clear for AnyBytes {
    fn clear(&mut self) {}
}

impl Message for AnyBytes {
    fn merge_from(&mut self, is: &mut CodedInputStream<'_>) -> ProtobufResult<()> {
        read_all(is, |_| Ok(()))
    }

    fn write_to_with_cached_sizes(&self, os: &mut CodedOutputStream<'_>) -> ProtobufResult<()> {
        os.write_raw_byte(VERSION)
    }

    fn compute_size(&self) -> u32 {
        1
    }

    fn get_cached_size(&self) -> u32 {
        1
    }

    fn is_initialized(&self) -> bool {
        true
    }

    fn get_unknown_fields(&self) -> &UnknownFields {
        &self.unknown
    }

    fn mut_unknown_fields(&mut self) -> &mut UnknownFields {
        &mut self.unknown
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn descriptor(&self) -> &'static MessageDescriptor {
        Self::descriptor_static()
    }

    fn new() -> Self {
        Self::default()
    }

    fn default_instance() -> &'static Self {
        static DEFAULT: std::sync::OnceLock<AnyBytes> = std::sync::OnceLock::new();
        DEFAULT.get_or_init(Self::default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_the_round_trip_and_damage_is_an_error() {
        let entry = Entry { index: 300, term: 7, data: vec![1; 50], context: vec![2; 5], ..Default::default() };
        let bytes = StoredEntry::new(entry.clone()).write_to_bytes().unwrap();
        assert_eq!(bytes.len() as u32, StoredEntry::new(entry.clone()).compute_size());
        assert_eq!(StoredEntry::parse_from_bytes(&bytes).unwrap().entry, entry);
        for cut in 0..bytes.len() {
            // Some prefixes are entries without data; none may panic.
            let _ = StoredEntry::parse_from_bytes(&bytes[..cut]);
        }
        assert!(StoredEntry::parse_from_bytes(&[]).is_err());
        assert!(StoredEntry::parse_from_bytes(&[2, 0]).is_err());
    }
}
