//! A snapshot that comes from another node, on its way into a file.

use std::sync::Arc;

use super::claim::Claim;
use super::file_name::FileName;
use super::folder::Blob;
use super::format::{Damage, Kind, Parser};
use super::output::Output;
use super::reading::{Reading, Stop};
use super::whole::{is_head_of, WholeFile};
use super::{SnapshotFile, SnapshotName, SnapshotReceiver};
use crate::storage::StorageError;

/// The unfinished file. Only checked pieces are written to it; dropped, it stays for the next attempt at the same name, which
/// checks them again.
pub(super) struct Receiver {
    claim: Claim,
    name: SnapshotName,
    parser: Parser,
    /// `None` if the whole file has been there already.
    output: Option<Output>,
    blob: Arc<dyn Blob>,
    is_refused: bool,
}

impl Receiver {
    /// Reads what is there of the file, and goes on behind it.
    pub fn begin(claim: Claim, name: &SnapshotName) -> Result<Self, StorageError> {
        let receiver =
            |claim, parser, output, blob| Self { claim, name: *name, parser, output, blob, is_refused: false };
        // A crash, or a failure, between the file's end and its record leaves it whole.
        if let Ok(blob) = claim.folder().open(&FileName::Whole(*name).to_string()) {
            if let Ok(parser) = read_checked(blob.as_ref()) {
                if parser.name() == Some(*name) {
                    return Ok(receiver(claim, parser, None, blob));
                }
            }
        }
        let path = claim.path();
        if let Some(blob) = claim.reopen().map_err(|error| StorageError::snapshot(&path, "open", error))? {
            // What cannot be read is received again.
            let parser = read_checked(blob.as_ref()).unwrap_or_default();
            if check_name(&parser, name).is_ok() && parser.head().is_some() {
                let at = parser.checked();
                blob.truncate(at).map_err(|error| StorageError::snapshot(&path, "shorten", error))?;
                let output = Output::new(blob.clone(), &path, at);
                return Ok(receiver(claim, parser, Some(output), blob));
            }
        }
        let blob = claim.create().map_err(|error| StorageError::snapshot(&path, "create", error))?;
        let output = Output::new(blob.clone(), &path, 0);
        Ok(receiver(claim, Parser::default(), Some(output), blob))
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        if self.parser.taken().saturating_add(bytes.len() as u64) > self.name.bytes {
            return Err(self.mismatch(&format!("more than its {} bytes came", self.name.bytes)));
        }
        loop {
            match self.parser.feed(&mut bytes) {
                Ok(None) => return Ok(()),
                Ok(Some(piece)) => {
                    if matches!(piece.kind, Kind::Head | Kind::End) {
                        check_name(&self.parser, &self.name).map_err(|what| self.mismatch(what))?;
                    }
                    if let Some(output) = &mut self.output {
                        output.write(self.parser.raw())?;
                    }
                }
                Err(damage) => return Err(self.refusal(&damage.detail())),
            }
        }
    }

    /// What has come is not the file of that name: none of it is kept.
    fn mismatch(&mut self, what: &str) -> StorageError {
        self.claim.discard_when_dropped();
        self.refusal(what)
    }

    fn refusal(&mut self, what: &str) -> StorageError {
        self.is_refused = true;
        StorageError::SnapshotRefused { path: self.claim.path(), detail: what.to_owned() }
    }
}

impl SnapshotReceiver for Receiver {
    fn offset(&self) -> u64 {
        self.parser.taken()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        if self.is_refused {
            return Err(self.refusal("what came before was refused"));
        }
        self.take(bytes)
    }

    fn finish(mut self: Box<Self>) -> Result<Arc<dyn SnapshotFile>, StorageError> {
        if self.is_refused {
            return Err(self.refusal("what came before was refused"));
        }
        let (taken, bytes) = (self.parser.taken(), self.name.bytes);
        if self.parser.name() != Some(self.name) {
            let detail = format!("it ended after {taken} of {bytes} bytes");
            return Err(if taken < bytes { self.refusal(&detail) } else { self.mismatch("it has no end") });
        }
        match &mut self.output {
            Some(output) => {
                output.finish()?;
                self.claim.publish(&self.name)?;
            }
            // Whether it was durable before is not known.
            None => self.claim.confirm(self.blob.as_ref(), &self.name)?,
        }
        let path = self.claim.path_of(&FileName::Whole(self.name));
        let head = self.parser.head().cloned();
        let head = head.ok_or_else(|| self.mismatch("it has no head"))?;
        Ok(Arc::new(WholeFile::new(self.blob.clone(), path, self.name, head)))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let Some(output) = &mut self.output else { return };
        // After a failed write or sync nobody knows which of the bytes that can be read here are on the disk.
        if output.has_failed() || output.settle().is_err() {
            self.claim.discard_when_dropped();
        }
    }
}

/// Parses a file as far as it is in order.
fn read_checked(blob: &dyn Blob) -> std::io::Result<Parser> {
    let mut reading = Reading::default();
    loop {
        match reading.next(blob) {
            Ok(Some(_)) => {}
            Ok(None) | Err(Stop::Damage(Damage::At(..) | Damage::Newer(_))) => break,
            Err(Stop::Error(error)) => return Err(error),
        }
    }
    reading.parser.rewind();
    Ok(reading.parser)
}

/// What has been read so far can be of the file of this name.
fn check_name(parser: &Parser, name: &SnapshotName) -> Result<(), &'static str> {
    match (parser.head(), parser.name()) {
        (Some(head), _) if !is_head_of(head, name) => Err("it is a snapshot of something else"),
        (_, Some(found)) if found != *name => Err("its length or its checksum is not what was announced"),
        _ if parser.checked() > name.bytes => Err("it is longer than was announced"),
        _ => Ok(()),
    }
}
