//! A snapshot that is taken here, on its way into a file.

use std::io;
use std::sync::Arc;

use super::claim::Claim;
use super::file_name::FileName;
use super::format::{Encoder, META_BYTES_MAX};
use super::output::Output;
use super::whole::WholeFile;
use super::{Head, SnapshotFile, SnapshotWriter};
use crate::storage::StorageError;

/// The unfinished file.
pub(super) struct Writer {
    claim: Claim,
    head: Head,
    encoder: Encoder,
    output: Output,
}

impl Writer {
    /// Begins a file.
    pub fn begin(mut claim: Claim, head: &Head) -> Result<Self, StorageError> {
        claim.discard_when_dropped();
        let path = claim.path();
        if head.meta.len() > META_BYTES_MAX {
            let detail = format!("the engine's part has {} bytes, and at most {META_BYTES_MAX} fit", head.meta.len());
            return Err(StorageError::snapshot(&path, "write", io::Error::new(io::ErrorKind::InvalidInput, detail)));
        }
        let blob = claim.create().map_err(|error| StorageError::snapshot(&path, "create", error))?;
        let (mut encoder, mut output) = (Encoder::new(head), Output::new(blob, &path, 0));
        encoder.begin(&mut |bytes| output.write(bytes))?;
        Ok(Self { claim, head: head.clone(), encoder, output })
    }
}

impl SnapshotWriter for Writer {
    fn write_chunk(&mut self, chunk: &[u8]) -> Result<(), StorageError> {
        self.encoder.chunk(chunk, &mut |bytes| self.output.write(bytes))
    }

    fn finish(self: Box<Self>) -> Result<Arc<dyn SnapshotFile>, StorageError> {
        let Self { mut claim, head, encoder, mut output } = *self;
        let name = encoder.end(&mut |bytes| output.write(bytes))?;
        output.finish()?;
        claim.publish(&name)?;
        let path = claim.path_of(&FileName::Whole(name));
        Ok(Arc::new(WholeFile::new(output.blob(), path, name, head)))
    }
}
