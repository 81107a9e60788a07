//! A snapshot file, byte by byte: what writes it, and the parser that trusts nothing it is given.
//!
//! A head; then pieces: the engine's part of the state, the application's chunks, and an end that counts them, so that no
//! file that was cut short is taken for a whole one. Integers are little-endian.
//!
//! | offset in the head | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | format version |
//! | 12 | 4 | CRC-32 of the head's other bytes |
//! | 16 | 8 | group |
//! | 24 | 8 | index |
//! | 32 | 8 | term |
//! | 40 | 1 | form: 1 bytes, 2 chunks |
//!
//! | offset in a piece | bytes | field |
//! |---|---|---|
//! | 0 | 1 | kind: 1 the engine's part, 2 a chunk, 3 the end |
//! | 1 | 1 | 1 if the next piece goes on with the same part or chunk, else 0 |
//! | 2 | 4 | length of the payload, at most 1 MiB; exactly that if the next piece goes on |
//! | 6 | 4 | CRC-32 of where the piece begins in the file (8 bytes), its first six bytes, and the payload |
//! | 10 | .. | payload; of the end: the number of pieces before it, of chunks, and of the chunks' bytes (8 bytes each) |
//!
//! Each checksum stands in front of what it covers. Behind it, it would bring the checksum of the whole file to the same
//! value at the end of every piece, whatever the piece holds.

use std::borrow::Cow;
use std::path::Path;

use crc32fast::Hasher;

use super::{Form, Head, SnapshotName};
use crate::storage::StorageError;

/// The longest payload of a piece.
pub(super) const PIECE_BYTES_MAX: usize = 1 << 20;
/// The longest engine's part: nobody makes a reader keep more than this in memory.
pub(super) const META_BYTES_MAX: usize = 256 << 20;
/// Length of the last piece.
pub(super) const END_LEN: usize = PIECE_HEAD_LEN + 24;

/// Length of the shortest file: a head, an empty part of the engine's, and an end.
pub(super) const FILE_BYTES_MIN: u64 = (HEAD_LEN + PIECE_HEAD_LEN + END_LEN) as u64;

const HEAD_LEN: usize = 41;
const PIECE_HEAD_LEN: usize = 10;
const MAGIC: &[u8; 8] = b"aiosnaps";
const VERSION: u32 = 1;

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The head, which is no piece, but is parsed like one.
    Head,
    /// Of the engine's part.
    Meta,
    /// Of a chunk.
    Chunk,
    /// The end.
    End,
}

impl Kind {
    const fn byte(self) -> u8 {
        match self {
            Self::Head => 0,
            Self::Meta => 1,
            Self::Chunk => 2,
            Self::End => 3,
        }
    }
}

/// Why bytes are no snapshot file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// Written by a newer build.
    Newer(u32),
    /// Something is wrong with what begins at this byte.
    At(u64, Cow<'static, str>),
}

impl Damage {
    fn at(offset: u64, what: impl Into<Cow<'static, str>>) -> Self {
        Self::At(offset, what.into())
    }

    /// The detail for a sentence.
    pub fn detail(&self) -> String {
        match self {
            Self::Newer(found) => format!("it has format {found}, and this aioraft reads formats up to {VERSION}"),
            Self::At(offset, what) => format!("{what} (byte {offset})"),
        }
    }

    /// What is said of a file of this node's own.
    pub fn of_file(&self, path: &Path) -> StorageError {
        match self {
            Self::Newer(found) => StorageError::NewerFormat {
                path: path.to_path_buf(),
                found: u64::from(*found),
                supported: u64::from(VERSION),
            },
            Self::At(..) => StorageError::damaged(path, self.detail()),
        }
    }
}

/// What has been counted, as the end of a file says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    pieces: u64,
    chunks: u64,
    bytes: u64,
}

impl Counts {
    fn add(&mut self, kind: Kind, goes_on: bool, bytes: usize) {
        self.pieces = self.pieces.saturating_add(1);
        if kind == Kind::Chunk {
            self.chunks = self.chunks.saturating_add(u64::from(!goes_on));
            self.bytes = self.bytes.saturating_add(bytes as u64);
        }
    }

    fn encode(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        for (at, number) in [self.pieces, self.chunks, self.bytes].into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

/// Turns a snapshot into the bytes of its file; `put` takes them in order.
pub(super) struct Encoder {
    head: Head,
    offset: u64,
    whole: Hasher,
    counts: Counts,
}

impl Encoder {
    /// A file of this head. [`Self::begin`] comes first.
    pub fn new(head: &Head) -> Self {
        Self { head: head.clone(), offset: 0, whole: Hasher::new(), counts: Counts::default() }
    }

    /// The head and the engine's part.
    pub fn begin<E>(&mut self, put: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let head = encode_head(&self.head);
        self.put(&head, put)?;
        let meta = std::mem::take(&mut self.head.meta);
        self.pieces(Kind::Meta, &meta, true, put)
    }

    /// A chunk.
    pub fn chunk<E>(&mut self, chunk: &[u8], put: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match self.head.form {
            // Where one value is cut means nothing: it has no empty pieces, and none that go on.
            Form::Bytes => {
                chunk.chunks(PIECE_BYTES_MAX).try_for_each(|part| self.pieces(Kind::Chunk, part, false, put))
            }
            Form::Chunks => self.pieces(Kind::Chunk, chunk, true, put),
        }
    }

    /// The end; nothing follows.
    pub fn end<E>(mut self, put: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<SnapshotName, E> {
        let counts = self.counts.encode();
        self.pieces(Kind::End, &counts, false, put)?;
        let Head { group, index, term, .. } = self.head;
        Ok(SnapshotName { group, index, term, bytes: self.offset, checksum: self.whole.finalize() })
    }

    fn pieces<E>(
        &mut self,
        kind: Kind,
        bytes: &[u8],
        goes_on: bool,
        put: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = bytes;
        loop {
            let (payload, behind) = rest.split_at(rest.len().min(PIECE_BYTES_MAX));
            let goes_on = goes_on && !behind.is_empty();
            let head = encode_piece_head(self.offset, kind, goes_on, payload);
            self.put(&head, put)?;
            self.put(payload, put)?;
            self.counts.add(kind, goes_on, payload.len());
            rest = behind;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    fn put<E>(&mut self, bytes: &[u8], put: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.whole.update(bytes);
        self.offset = self.offset.saturating_add(bytes.len() as u64);
        put(bytes)
    }
}

fn encode_head(head: &Head) -> [u8; HEAD_LEN] {
    let mut bytes = [0; HEAD_LEN];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&head.group.to_le_bytes());
    bytes[24..32].copy_from_slice(&head.index.to_le_bytes());
    bytes[32..40].copy_from_slice(&head.term.to_le_bytes());
    bytes[40] = head.form as u8;
    let checksum = checksum([&bytes[..12], &bytes[16..]]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn encode_piece_head(offset: u64, kind: Kind, goes_on: bool, payload: &[u8]) -> [u8; PIECE_HEAD_LEN] {
    let mut bytes = [0; PIECE_HEAD_LEN];
    bytes[0] = kind.byte();
    bytes[1] = u8::from(goes_on);
    bytes[2..6].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let checksum = checksum([&offset.to_le_bytes(), &bytes[..6], payload]);
    bytes[6..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn checksum<const N: usize>(parts: [&[u8]; N]) -> u32 {
    let mut hasher = Hasher::new();
    parts.into_iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |number| u64::from_le_bytes(*number))
}

/// A piece that was checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub kind: Kind,
    /// The next piece belongs to the same chunk.
    pub goes_on: bool,
}

/// Reads a file from its beginning, in slices of any length. It keeps one piece in memory, and the engine's part.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The piece that begins at `offset`, as far as it has come; a whole one that was given out, if `is_given`.
    pending: Vec<u8>,
    is_given: bool,
    /// Up to here everything is checked.
    offset: u64,
    /// The checksum of all that is checked.
    whole: Hasher,
    counts: Counts,
    head: Option<Head>,
    expected: Expected,
}

/// What may come next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expected {
    #[default]
    Head,
    Meta,
    /// A new chunk, or the end.
    Chunk,
    /// More of the same chunk.
    RestOfChunk,
    /// Nothing.
    Nothing,
}

impl Parser {
    /// Takes bytes until a piece is whole: [`Self::raw`] and [`Self::payload`] are that piece's until the next call. `None`
    /// when the bytes are used up. After damage, nothing of the piece counts.
    pub fn feed(&mut self, bytes: &mut &[u8]) -> Result<Option<Piece>, Damage> {
        if self.is_given {
            self.rewind();
        }
        loop {
            let missing = self.wanted()?.saturating_sub(self.pending.len());
            if missing == 0 {
                break;
            }
            if bytes.is_empty() {
                return Ok(None);
            }
            if self.expected == Expected::Nothing {
                return Err(Damage::at(self.offset, "it goes on behind its end"));
            }
            let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
            self.pending.extend_from_slice(taken);
            *bytes = rest;
        }
        let (kind, goes_on) = match self.expected {
            Expected::Head => {
                self.head = Some(self.check_head()?);
                self.expected = Expected::Meta;
                (Kind::Head, false)
            }
            _ => self.check_piece()?,
        };
        self.whole.update(&self.pending);
        self.offset = self.offset.saturating_add(self.pending.len() as u64);
        self.is_given = true;
        Ok(Some(Piece { kind, goes_on }))
    }

    /// The piece as it stands in the file.
    pub fn raw(&self) -> &[u8] {
        &self.pending
    }

    /// What the piece carries.
    pub fn payload(&self) -> &[u8] {
        self.pending.get(PIECE_HEAD_LEN..).unwrap_or_default()
    }

    /// Forgets the beginning of a piece that has not come whole.
    pub fn rewind(&mut self) {
        self.pending.clear();
        self.is_given = false;
    }

    /// Up to here everything is checked, and a piece begins.
    pub fn checked(&self) -> u64 {
        self.offset
    }

    /// All bytes that were taken.
    pub fn taken(&self) -> u64 {
        let begun = if self.is_given { 0 } else { self.pending.len() as u64 };
        self.offset.saturating_add(begun)
    }

    /// The head; the engine's part is whole once [`Self::has_meta`].
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// The engine's part is whole.
    pub fn has_meta(&self) -> bool {
        !matches!(self.expected, Expected::Head | Expected::Meta)
    }

    /// The name of the file, once its end was read.
    pub fn name(&self) -> Option<SnapshotName> {
        let Head { group, index, term, .. } = *self.head.as_ref()?;
        let checksum = self.whole.clone().finalize();
        let name = SnapshotName { group, index, term, bytes: self.offset, checksum };
        (self.expected == Expected::Nothing).then_some(name)
    }

    /// What is held of the piece under way.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.pending.capacity()
    }

    /// How long the piece is of which `pending` is the beginning, as far as that can be told.
    fn wanted(&self) -> Result<usize, Damage> {
        if self.expected == Expected::Head {
            return Ok(HEAD_LEN);
        }
        if self.pending.len() < PIECE_HEAD_LEN {
            return Ok(PIECE_HEAD_LEN);
        }
        match word(&self.pending, 2) as usize {
            length if length <= PIECE_BYTES_MAX => Ok(PIECE_HEAD_LEN + length),
            length => Err(Damage::at(self.offset, format!("a piece of {length} bytes is longer than any may be"))),
        }
    }

    fn check_head(&self) -> Result<Head, Damage> {
        let bytes = &self.pending;
        if !bytes.starts_with(MAGIC) {
            return Err(Damage::at(0, "it is no snapshot file"));
        }
        let (before, behind) = (bytes.get(..12).unwrap_or_default(), bytes.get(16..).unwrap_or_default());
        if word(bytes, 12) != checksum([before, behind]) {
            return Err(Damage::at(0, "the checksum of its head is wrong"));
        }
        if word(bytes, 8) != VERSION {
            return Err(Damage::Newer(word(bytes, 8)));
        }
        let form = match bytes.get(40) {
            Some(1) => Form::Bytes,
            Some(2) => Form::Chunks,
            _ => return Err(Damage::at(40, "its form is neither bytes nor chunks")),
        };
        let (group, index, term) = (number(bytes, 16), number(bytes, 24), number(bytes, 32));
        Ok(Head { group, index, term, form, meta: Vec::new() })
    }

    fn check_piece(&mut self) -> Result<(Kind, bool), Damage> {
        let wrong = |what: &'static str| Err(Damage::at(self.offset, what));
        let Some((front, payload)) = self.pending.split_at_checked(PIECE_HEAD_LEN) else {
            return wrong("a piece is short");
        };
        if word(front, 6) != checksum([&self.offset.to_le_bytes(), front.get(..6).unwrap_or_default(), payload]) {
            return wrong("the checksum of a piece is wrong");
        }
        let Some(head) = &mut self.head else { return wrong("a piece stands before the head") };
        let goes_on = match front[1] {
            0 => false,
            1 if payload.len() == PIECE_BYTES_MAX => true,
            _ => return wrong("a piece does not say rightly whether it goes on"),
        };
        let (kind, next) = match (self.expected, front[0]) {
            (Expected::Meta, 1) if head.meta.len() + payload.len() <= META_BYTES_MAX => {
                // What goes on has more to come.
                if payload.is_empty() && !head.meta.is_empty() {
                    return wrong("a piece that others lead up to is empty");
                }
                head.meta.extend_from_slice(payload);
                (Kind::Meta, if goes_on { Expected::Meta } else { Expected::Chunk })
            }
            (Expected::Meta, 1) => return wrong("the engine's part is longer than any may be"),
            (Expected::Chunk | Expected::RestOfChunk, 2) => {
                let is_empty_rest = payload.is_empty() && self.expected == Expected::RestOfChunk;
                let is_no_cut = head.form == Form::Bytes && (goes_on || payload.is_empty());
                if is_empty_rest || is_no_cut {
                    return wrong("a piece is one that is never written");
                }
                (Kind::Chunk, if goes_on { Expected::RestOfChunk } else { Expected::Chunk })
            }
            (Expected::Chunk, 3) if !goes_on && payload == self.counts.encode() => (Kind::End, Expected::Nothing),
            (Expected::Chunk, 3) => return wrong("its end counts other pieces than there are"),
            _ => return wrong("a piece of another kind should stand here"),
        };
        self.counts.add(kind, goes_on, payload.len());
        self.expected = next;
        Ok((kind, goes_on))
    }
}

/// Whether these bytes, at this offset, are the last piece of a file: a quick look before the whole file is read.
pub(super) fn is_end(offset: u64, bytes: &[u8]) -> bool {
    let Some((front, payload)) = bytes.split_at_checked(PIECE_HEAD_LEN) else { return false };
    bytes.len() == END_LEN && front == encode_piece_head(offset, Kind::End, false, payload)
}

/// Sets magic and checksums right, and the counts of the end if there is one, so that fuzzing gets behind them.
#[cfg(fuzzing)]
pub(super) fn mend(bytes: &mut [u8]) {
    let Some((head, mut rest)) = bytes.split_at_mut_checked(HEAD_LEN) else { return };
    head[..8].copy_from_slice(MAGIC);
    let right = checksum([&head[..12], &head[16..]]);
    head[12..16].copy_from_slice(&right.to_le_bytes());
    let (mut offset, mut counts) = (HEAD_LEN as u64, Counts::default());
    while let Some((front, behind)) = rest.split_at_mut_checked(PIECE_HEAD_LEN) {
        // Short pieces, so that there are some.
        front[4..6].fill(0);
        let length = (word(front, 2) as usize).min(behind.len());
        front[2..6].copy_from_slice(&(length as u32).to_le_bytes());
        let (payload, behind) = behind.split_at_mut(length);
        match front[0] {
            2 => counts.add(Kind::Chunk, front[1] == 1, length),
            3 if length == 24 => payload.copy_from_slice(&counts.encode()),
            _ => counts.add(Kind::Meta, front[1] == 1, length),
        }
        let right = checksum([&offset.to_le_bytes(), &front[..6], payload]);
        front[6..].copy_from_slice(&right.to_le_bytes());
        offset += (PIECE_HEAD_LEN + length) as u64;
        rest = behind;
    }
}
