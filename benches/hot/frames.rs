//! Frames between nodes: a leader's message with so many entries, encoded and decoded.

use aioraft::engine::command::Command;
use aioraft::engine::APPLICATION_GROUP;
use aioraft::transport::batch::Batch;
use aioraft::transport::wire::{decode_raft, Header, HEADER_LEN, PROTOCOL_VERSION};
use raft::eraftpb::{Entry, Message, MessageType};

use super::VALUE;

const FRAME_BYTES_MAX: usize = 48 << 20;

/// What a leader sends.
pub struct Frames {
    message: Message,
    batch: Batch,
    encoded: Vec<u8>,
}

impl Frames {
    /// With so many entries.
    pub fn new(entries: u64) -> Self {
        let data = Command::new(&VALUE).into_bytes();
        let entry = |index| Entry { index, term: 7, data: data.clone(), ..Default::default() };
        let mut message =
            Message { from: 1, to: 2, term: 7, entries: (1..=entries).map(entry).collect(), ..Default::default() };
        message.set_msg_type(MessageType::MsgAppend);
        let mut this = Self { message, batch: Batch::new(FRAME_BYTES_MAX), encoded: Vec::new() };
        this.encode();
        this.encoded = this.batch.close().clone();
        this
    }

    /// Into a buffer that is used again and again, as a connection's is.
    pub fn encode(&mut self) -> usize {
        self.batch.clear();
        self.batch.raft(APPLICATION_GROUP, &self.message).expect("it fits a frame");
        self.batch.close().len()
    }

    /// As a receiver does.
    pub fn decode(&self) -> Vec<Message> {
        let header = Header::decode_open(&self.encoded, PROTOCOL_VERSION, FRAME_BYTES_MAX).expect("a frame of ours");
        let end = HEADER_LEN + header.expect("a whole header").body_len;
        decode_raft(&self.encoded[HEADER_LEN..end], FRAME_BYTES_MAX).expect("a body of ours").0
    }
}
