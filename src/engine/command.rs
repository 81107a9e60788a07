//! The header in front of every command in the log.
//!
//! The layout is fixed-width so that the leader can stamp an entry in place, at the moment it is
//! appended, without another copy of its payload. All integers are little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | format version, [`VERSION`] |
//! | 1 | 1 | kind, [`Kind`] |
//! | 2 | 2 | flags, zero in version 1 |
//! | 4 | 4 | length of the extension block between header and payload (0 in version 1) |
//! | 8 | 8 | origin: the node that proposed it |
//! | 16 | 8 | boot of the origin |
//! | 24 | 8 | number: unique per (origin, boot) |
//! | 32 | 8 | floor: the origin's lowest number not yet resolved |
//! | 40 | 8 | timestamp: replicated time in nanoseconds (design decision 8) |
//! | 48 | 8 | wall clock of the leader in nanoseconds since the Unix epoch, for people |
//! | 56 | 8 | nonce of the origin's start: two copies of one directory differ in it (rule S2) |

use super::NodeId;

/// Bytes in front of the payload of every command.
pub const HEADER_LEN: usize = 64;

/// The format written by this build.
pub const VERSION: u8 = 1;

/// What an entry's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes for the application's state machine.
    Application = 1,
    /// Changes of the members ([`super::membership`]).
    Membership = 2,
}

/// The decoded header of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// The node that proposed the command.
    pub origin: NodeId,
    /// The boot of the origin in which it was proposed.
    pub boot: u64,
    /// Unique per (origin, boot), counted up from one.
    pub number: u64,
    /// The origin's lowest number not yet resolved when it last sent this command.
    pub floor: u64,
    /// Replicated time in nanoseconds.
    pub timestamp_ns: u64,
    /// The leader's wall clock, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
    /// The nonce of the origin's start.
    pub nonce: u64,
}

/// An encoded command: [`HEADER_LEN`] bytes of header, then the payload.
///
/// Created with a blank header where the payload enters the process, so that the payload is copied once.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(Vec<u8>);

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Command({} bytes)", self.payload().len())
    }
}

/// Why bytes from the log or the network are not a command this build understands.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandError {
    /// Fewer bytes than a header has.
    #[error("a command of {0} bytes is shorter than its header of {HEADER_LEN} bytes")]
    Short(usize),
    /// Written by a newer build.
    #[error("a command of format {found} was written by a newer aioraft (this one reads format {VERSION}): upgrade this node")]
    Version {
        /// The version byte found.
        found: u8,
    },
    /// A field that version 1 does not allow.
    #[error("a command with {field} = {found} was written by a newer aioraft or is damaged: upgrade this node")]
    Field {
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u64,
    },
}

impl Command {
    /// Copies `payload` behind a blank header.
    pub fn new(payload: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        bytes.resize(HEADER_LEN, 0);
        bytes[0] = VERSION;
        bytes[1] = Kind::Application as u8;
        bytes.extend_from_slice(payload);
        Self(bytes)
    }

    /// Changes of the members, encoded, behind a blank header.
    pub fn membership(changes: &[u8]) -> Self {
        let mut command = Self::new(changes);
        command.0[1] = Kind::Membership as u8;
        command
    }

    /// Whether it changes the members, and is none of the application's.
    pub fn is_membership(&self) -> bool {
        is_membership(&self.0)
    }

    /// Checks that `bytes` hold a command of a known format.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, CommandError> {
        decode(&bytes)?;
        Ok(Self(bytes))
    }

    /// The payload without the header.
    pub fn payload(&self) -> &[u8] {
        &self.0[HEADER_LEN..]
    }

    /// The decoded header.
    pub fn header(&self) -> Header {
        // The constructors admit nothing that does not decode.
        decode(&self.0).unwrap_or(BLANK)
    }

    /// Header and payload as they stand in the log.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Header and payload as they stand in the log.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Writes who proposed it (rule S1).
    pub fn set_origin(&mut self, origin: NodeId, boot: u64, number: u64) {
        self.put(8, origin);
        self.put(16, boot);
        self.put(24, number);
    }

    /// Writes which start of the origin proposed it (rule S2).
    pub fn set_nonce(&mut self, nonce: u64) {
        self.put(56, nonce);
    }

    /// Writes the origin's lowest unresolved number (rule S1).
    pub fn set_floor(&mut self, floor: u64) {
        self.put(32, floor);
    }

    /// Writes the leader's stamps (design decision 8).
    pub fn set_time(&mut self, timestamp_ns: u64, wall_ns: u64) {
        self.put(40, timestamp_ns);
        self.put(48, wall_ns);
    }

    fn put(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

const BLANK: Header =
    Header { kind: Kind::Application, origin: 0, boot: 0, number: 0, floor: 0, timestamp_ns: 0, wall_ns: 0, nonce: 0 };

/// Whether an encoded command changes the members.
pub fn is_membership(bytes: &[u8]) -> bool {
    bytes.get(1) == Some(&(Kind::Membership as u8))
}

/// Reads the header of an encoded command.
pub fn decode(bytes: &[u8]) -> Result<Header, CommandError> {
    if bytes.len() < HEADER_LEN {
        return Err(CommandError::Short(bytes.len()));
    }
    if bytes[0] != VERSION {
        return Err(CommandError::Version { found: bytes[0] });
    }
    let kind = match bytes[1] {
        1 => Kind::Application,
        2 => Kind::Membership,
        other => return Err(CommandError::Field { field: "kind", found: u64::from(other) }),
    };
    let extra = u64::from(u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]));
    if bytes[2] != 0 || bytes[3] != 0 {
        let found = u64::from(u16::from_le_bytes([bytes[2], bytes[3]]));
        return Err(CommandError::Field { field: "flags", found });
    }
    if extra != 0 {
        return Err(CommandError::Field { field: "extension length", found: extra });
    }
    let get = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    Ok(Header {
        kind,
        origin: get(8),
        boot: get(16),
        number: get(24),
        floor: get(32),
        timestamp_ns: get(40),
        wall_ns: get(48),
        nonce: get(56),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_survives_the_round_trip() {
        let mut command = Command::new(b"payload");
        command.set_origin(3, 7, 11);
        command.set_floor(9);
        command.set_time(1_000, 2_000);
        command.set_nonce(13);
        let read = Command::from_bytes(command.clone().into_bytes());
        assert_eq!(read, Ok(command.clone()));
        assert_eq!(
            command.header(),
            Header {
                kind: Kind::Application,
                origin: 3,
                boot: 7,
                number: 11,
                floor: 9,
                timestamp_ns: 1_000,
                wall_ns: 2_000,
                nonce: 13
            }
        );
        assert_eq!(command.payload(), b"payload");
    }

    #[test]
    fn what_a_newer_build_wrote_is_refused_with_the_reason() {
        let good = Command::new(b"x").into_bytes();
        for (at, field) in [(1, "kind"), (2, "flags"), (3, "flags"), (4, "extension length"), (7, "extension length")] {
            let mut bytes = good.clone();
            bytes[at] = 0x55;
            let error = Command::from_bytes(bytes).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(field), "{at}: {error}");
        }
        let mut bytes = good.clone();
        bytes[0] = 2;
        assert_eq!(Command::from_bytes(bytes), Err(CommandError::Version { found: 2 }));
        assert_eq!(Command::from_bytes(good[..HEADER_LEN - 1].to_vec()), Err(CommandError::Short(HEADER_LEN - 1)));
    }
}
