//! A door for fuzzing: the parser and the receiver, over any bytes in any slices.

use super::format::{self, Encoder, Kind, Parser};
use super::{MemoryFolder, SnapshotName, SnapshotStore, Store};

/// Parses bytes of which the first says how long the slices are, and the second whether checksums are set right.
pub fn parse_anything(bytes: &[u8]) {
    let [slice, mend, bytes @ ..] = bytes else { return };
    let slice = usize::from(*slice).max(1);
    let mut bytes = bytes.to_vec();
    if mend % 4 > 0 {
        format::mend(&mut bytes);
    }
    parse(&bytes, slice);
}

/// What is taken for a whole file is one that would be written.
fn parse(bytes: &[u8], slice: usize) {
    let mut parser = Parser::default();
    let (mut chunks, mut chunk, mut is_good) = (Vec::new(), Vec::new(), true);
    'all: for mut slice in bytes.chunks(slice) {
        loop {
            match parser.feed(&mut slice) {
                Ok(Some(piece)) if piece.kind == Kind::Chunk => {
                    chunk.extend_from_slice(parser.payload());
                    if !piece.goes_on {
                        chunks.push(std::mem::take(&mut chunk));
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    is_good = false;
                    break 'all;
                }
            }
        }
    }
    assert!(parser.checked() <= parser.taken() && parser.taken() <= bytes.len() as u64);
    let name = parser.name();
    if let (Some(name), Some(head), true) = (name, parser.head(), is_good) {
        let mut again = Vec::new();
        let mut put = |part: &[u8]| -> Result<(), ()> {
            again.extend_from_slice(part);
            Ok(())
        };
        let mut encoder = Encoder::new(head);
        let written = encoder
            .begin(&mut put)
            .and_then(|()| chunks.iter().try_for_each(|chunk| encoder.chunk(chunk, &mut put)))
            .and_then(|()| encoder.end(&mut put));
        assert_eq!((written, again.as_slice()), (Ok(name), bytes));
    }
    receive_anything(name.filter(|_| is_good), bytes, slice);
}

/// The same bytes as what another node sends, with breaks.
fn receive_anything(whole: Option<SnapshotName>, bytes: &[u8], slice: usize) {
    let store = Store::new(MemoryFolder::default());
    let name = whole.unwrap_or(SnapshotName { bytes: bytes.len() as u64, ..Default::default() });
    for end in [bytes.len() / 2, bytes.len()] {
        let Ok(mut receiver) = store.receive(&name) else { return };
        let from = usize::try_from(receiver.offset()).unwrap_or(0);
        let sent = bytes.get(from..end).unwrap_or_default();
        let result = sent.chunks(slice).try_for_each(|slice| receiver.write(slice));
        if end == bytes.len() {
            assert_eq!(result.is_ok() && receiver.finish().is_ok(), whole.is_some());
        }
    }
}
