//! Looks into the newest file of a queue for a batch that was torn in its middle.
//!
//! raft-engine checks the end of each batch when it opens a log, and the entries before it only when they are read. Power
//! loss may leave the one without the other, for pages reach the disk in any order before an fsync has returned: a batch
//! that nobody was told of would then refuse its node for good. What is found here is cut off before raft-engine sees the
//! file, and the tail guard decides, as with every cut, whether anything durable was in it (rule D3).
//!
//! A batch, behind the file's header: length and compression (7 + 1 bytes), offset of its items (8 bytes), both big-endian;
//! the entries and their CRC-32, or nothing; the items and theirs.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

const HEADER_LEN: u64 = 16;
const CHECKSUM_LEN: u64 = 4;

/// Where the first batch begins whose entries are not what was written; `first` is where the first batch of all begins.
pub(super) fn first_torn(path: &Path, first: u64) -> io::Result<Option<u64>> {
    let file = File::open(path)?;
    let file_len = file.metadata()?.len();
    first_torn_of(file, file_len, first)
}

/// The same of anything that can be read.
pub(super) fn first_torn_of(file: impl Read + Seek, file_len: u64, first: u64) -> io::Result<Option<u64>> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut at = first;
    reader.seek(SeekFrom::Start(at))?;
    while at.saturating_add(HEADER_LEN) <= file_len {
        let (mut length, mut items) = ([0; 8], [0; 8]);
        reader.read_exact(&mut length)?;
        reader.read_exact(&mut items)?;
        let (length, items) = (u64::from_be_bytes(length) >> 8, u64::from_be_bytes(items));
        // Zeros, or a header that is torn itself: raft-engine ends the log here.
        if items < HEADER_LEN || items > length || length > file_len - at {
            break;
        }
        let entries = items - HEADER_LEN;
        if entries > 0 && !is_whole(&mut reader, entries)? {
            return Ok(Some(at));
        }
        at += length;
        reader.seek_relative(i64::try_from(length - items).map_err(io::Error::other)?)?;
    }
    Ok(None)
}

/// Reads a block that ends in its checksum.
fn is_whole(reader: &mut impl Read, bytes: u64) -> io::Result<bool> {
    let Some(mut left) = bytes.checked_sub(CHECKSUM_LEN) else { return Ok(false) };
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = [0; 1 << 13];
    while left > 0 {
        let part = left.min(buffer.len() as u64) as usize;
        reader.read_exact(&mut buffer[..part])?;
        hasher.update(&buffer[..part]);
        left -= part as u64;
    }
    let mut checksum = [0; CHECKSUM_LEN as usize];
    reader.read_exact(&mut checksum)?;
    Ok(hasher.finalize() == u32::from_le_bytes(checksum))
}
