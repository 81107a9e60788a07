//! The way through a file from its beginning, piece by piece.

use std::path::Path;

use super::folder::Blob;
use super::format::{Damage, Parser, Piece};
use crate::storage::StorageError;

/// What is read from the system at once.
const READ_BYTES: usize = 256 << 10;

/// Why a file cannot be read on.
pub(super) enum Stop {
    Damage(Damage),
    Error(std::io::Error),
}

impl Stop {
    /// What is said of a file of this node's own.
    pub fn of_file(self, path: &Path) -> StorageError {
        match self {
            Self::Damage(damage) => damage.of_file(path),
            Self::Error(error) => StorageError::io(path, "read", error),
        }
    }
}

/// A parser, and what was read for it.
#[derive(Default)]
pub(super) struct Reading {
    pub parser: Parser,
    buffer: Vec<u8>,
    /// What was read and not parsed.
    rest: std::ops::Range<usize>,
    /// Where to read on.
    at: u64,
}

impl Reading {
    /// The next piece; `None` when there are no more bytes, be the file whole or not.
    pub fn next(&mut self, blob: &dyn Blob) -> Result<Option<Piece>, Stop> {
        self.buffer.resize(READ_BYTES, 0);
        loop {
            let mut bytes = self.buffer.get(self.rest.clone()).unwrap_or_default();
            let piece = self.parser.feed(&mut bytes).map_err(Stop::Damage)?;
            self.rest.start = self.rest.end - bytes.len();
            if piece.is_some() {
                return Ok(piece);
            }
            self.rest = 0..blob.read_at(&mut self.buffer, self.at).map_err(Stop::Error)?;
            self.at = self.at.saturating_add(self.rest.end as u64);
            if self.rest.is_empty() {
                return Ok(None);
            }
        }
    }
}
