//! One peer's frames of one round, encoded into one buffer.

use raft::eraftpb::Message;

use super::wire::{self, Kind, Rejected, Size, WireError, HEADER_LEN, PROTOCOL_VERSION};
use crate::engine::command::Command;
use crate::engine::GroupId;

/// A frame that has grown to this weight is closed and another one begun, so that the receiver can start on it.
const FRAME_WEIGHT_SOFT_MAX: usize = 1 << 20;

/// A buffer that has grown beyond this is given back once it is written.
const KEPT_CAPACITY_MAX: usize = 4 << 20;

/// Frames in the order they were put. An item joins the last frame if it is of the same kind and group.
///
/// Each message is encoded where it is put: the buffer is the only copy between the engine and the kernel.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    open: Option<Open>,
    frame_bytes_max: usize,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    start: usize,
    kind: Kind,
    group: GroupId,
    weight: usize,
}

impl Batch {
    /// An empty batch; no frame's body is longer, or weighs more, than `frame_bytes_max`.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { bytes: Vec::new(), open: None, frame_bytes_max }
    }

    /// Appends a Raft message.
    ///
    /// # Errors
    /// It is too large for a frame; the batch is as it was.
    pub fn raft(&mut self, group: GroupId, message: &Message) -> Result<(), WireError> {
        let size = wire::size_of_message(message);
        self.room(Kind::Raft, group, size)?;
        wire::put_message(&mut self.bytes, message, size);
        Ok(())
    }

    /// Appends a forwarded command.
    ///
    /// # Errors
    /// It is too large for a frame; the batch is as it was.
    pub fn propose(&mut self, group: GroupId, command: &Command) -> Result<(), WireError> {
        self.room(Kind::Propose, group, wire::size_of_command(command))?;
        wire::put_command(&mut self.bytes, command);
        Ok(())
    }

    /// Appends a Rejected frame.
    ///
    /// # Errors
    /// It is too large for a frame; the batch is as it was.
    pub fn rejected(&mut self, group: GroupId, rejected: &Rejected) -> Result<(), WireError> {
        self.whole(Kind::Rejected, group, |bytes| wire::put_rejected(bytes, rejected))
    }

    /// Appends a Formation frame.
    ///
    /// # Errors
    /// It is too large for a frame; the batch is as it was.
    pub fn formation(&mut self, body: &[u8]) -> Result<(), WireError> {
        self.whole(Kind::Formation, 0, |bytes| bytes.extend_from_slice(body))
    }

    /// Appends a Dropped frame.
    ///
    /// # Errors
    /// It is too large for a frame; the batch is as it was.
    pub fn dropped(&mut self, group: GroupId, reason: &str) -> Result<(), WireError> {
        self.whole(Kind::Dropped, group, |bytes| wire::put_dropped(bytes, reason))
    }

    /// Appends a Durable frame.
    ///
    /// # Errors
    /// It is too large for a frame; the batch is as it was.
    pub fn durable(&mut self, group: GroupId, index: u64) -> Result<(), WireError> {
        self.whole(Kind::Durable, group, |bytes| bytes.extend_from_slice(&index.to_le_bytes()))
    }

    /// Bytes put since the buffer was last taken or cleared.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing was put since the buffer was last taken or cleared.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Completes the last frame and lends the buffer to be written; it must come back empty.
    pub fn close(&mut self) -> &mut Vec<u8> {
        if let Some(open) = self.open.take() {
            // `room` held every open frame to the limit.
            let _ = wire::end(&mut self.bytes, open.start, self.frame_bytes_max);
        }
        &mut self.bytes
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.open = None;
        self.bytes.clear();
        self.shrink();
    }

    /// Gives back the memory of an unusually large round.
    pub fn shrink(&mut self) {
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT_CAPACITY_MAX {
            self.bytes = Vec::new();
        }
    }

    fn room(&mut self, kind: Kind, group: GroupId, size: Size) -> Result<(), WireError> {
        if size.weight > self.frame_bytes_max {
            return Err(WireError::TooHeavy { limit: self.frame_bytes_max });
        }
        let soft_max = FRAME_WEIGHT_SOFT_MAX.min(self.frame_bytes_max);
        match &mut self.open {
            Some(open) if open.kind == kind && open.group == group && open.weight + size.weight <= soft_max => {
                open.weight += size.weight;
            }
            _ => {
                let start = wire::begin(self.close(), PROTOCOL_VERSION, kind, group);
                self.open = Some(Open { start, kind, group, weight: size.weight });
            }
        }
        Ok(())
    }

    fn whole(&mut self, kind: Kind, group: GroupId, put: impl FnOnce(&mut Vec<u8>)) -> Result<(), WireError> {
        let limit = self.frame_bytes_max;
        let bytes = self.close();
        let start = wire::begin(bytes, PROTOCOL_VERSION, kind, group);
        debug_assert_eq!(bytes.len(), start + HEADER_LEN);
        put(bytes);
        wire::end(bytes, start, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::Header;
    use super::*;

    fn frames(batch: &mut Batch) -> Vec<(Kind, GroupId, usize)> {
        let mut rest = &batch.close()[..];
        let mut frames = Vec::new();
        while let Some(header) = Header::decode(rest, PROTOCOL_VERSION, usize::MAX).unwrap() {
            frames.push((header.kind, header.group, header.body_len));
            rest = &rest[HEADER_LEN + header.body_len..];
        }
        assert!(rest.is_empty());
        frames
    }

    #[test]
    fn items_of_one_kind_and_group_share_a_frame_and_keep_their_order() {
        let mut batch = Batch::new(1 << 20);
        let message = Message { to: 2, from: 1, ..Message::default() };
        batch.raft(1, &message).unwrap();
        batch.raft(1, &message).unwrap();
        batch.raft(2, &message).unwrap();
        batch.propose(2, &Command::new(b"x")).unwrap();
        batch.propose(2, &Command::new(b"y")).unwrap();
        batch.rejected(2, &Rejected::default()).unwrap();
        batch.formation(b"abc").unwrap();
        batch.raft(1, &message).unwrap();
        let kinds: Vec<_> = frames(&mut batch).into_iter().map(|(kind, group, _)| (kind, group)).collect();
        use Kind::{Formation, Propose, Raft, Rejected as Reject};
        assert_eq!(kinds, [(Raft, 1), (Raft, 2), (Propose, 2), (Reject, 2), (Formation, 0), (Raft, 1)]);
    }

    #[test]
    fn a_frame_is_cut_when_it_has_grown() {
        let mut batch = Batch::new(64 << 20);
        for _ in 0..5 {
            batch.propose(1, &Command::new(&vec![7; 400 << 10])).unwrap();
        }
        let sizes: Vec<_> = frames(&mut batch).into_iter().map(|(_, _, bytes)| bytes >> 10).collect();
        assert_eq!(sizes, [800, 800, 400]);
    }

    #[test]
    fn what_no_frame_can_hold_is_refused_and_leaves_the_batch_as_it_was() {
        let mut batch = Batch::new(1000);
        batch.propose(1, &Command::new(b"before")).unwrap();
        assert!(batch.propose(1, &Command::new(&[0; 1000])).is_err());
        assert!(batch.raft(1, &Message { context: vec![0; 1000], ..Message::default() }).is_err());
        assert!(batch.rejected(1, &Rejected { numbers: vec![0; 200], ..Rejected::default() }).is_err());
        assert!(batch.formation(&[0; 1001]).is_err());
        batch.propose(1, &Command::new(b"after")).unwrap();
        let frames = frames(&mut batch);
        assert!(frames.iter().all(|(kind, ..)| *kind == Kind::Propose), "{frames:?}");
    }
}
