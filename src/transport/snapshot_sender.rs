//! The sender's end of a snapshot: dials, goes on where the receiver is, and tries again until there is no progress.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use raft::eraftpb::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout, Instant};

use super::connection::configure;
use super::dialer::{self, DialError, Pause};
use super::frames::read_frame;
use super::greet::GreetError;
use super::handshake::{decode_refusal, RefusalCode, Role};
use super::peers::Peers;
use super::snapshot_frames::{decode_offset, encode_begin, encode_data, PIECE_FRONT_LEN};
use super::wire::{Kind, WireError, HANDSHAKE_BYTES_MAX, HEADER_LEN};
use crate::engine::{GroupId, NodeId};
use crate::storage::snapshot::SnapshotFile;

/// Sends one snapshot, and tells how that ended.
pub(super) async fn run(
    peers: Rc<Peers>,
    number: u64,
    to: NodeId,
    group: GroupId,
    messages: watch::Receiver<Message>,
    file: Arc<dyn SnapshotFile>,
) {
    let sender = Sender {
        to,
        group,
        messages,
        file,
        acknowledged: Cell::new(0),
        progressed: Cell::new(Instant::now()),
        trouble: RefCell::new("nothing was answered".into()),
        peers,
    };
    let outcome = tokio::select! {
        biased;
        outcome = sender.keep_trying() => outcome,
        reason = sender.out_of_patience() => Err(reason),
    };
    sender.peers.snapshots.sent(&sender.peers, to, group, number, outcome);
}

/// Why one connection did not bring the snapshot to its end.
enum Failure {
    /// The next one goes on.
    Broken(String),
    /// There is another message to begin with.
    Renewed,
    /// No other one would.
    Final(String),
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// What the receiver says.
enum Answer {
    Offset(u64),
    Wait,
    Done,
}

struct Sender {
    peers: Rc<Peers>,
    to: NodeId,
    group: GroupId,
    messages: watch::Receiver<Message>,
    file: Arc<dyn SnapshotFile>,
    /// The most that the receiver ever had.
    acknowledged: Cell<u64>,
    /// When that was more than before, or the receiver last said that it is at work.
    progressed: Cell<Instant>,
    /// Why the last connection broke.
    trouble: RefCell<String>,
}

impl Sender {
    async fn keep_trying(&self) -> Result<(), String> {
        let mut pause = Pause::new(self.peers.options.redial_min, self.peers.options.redial_max);
        loop {
            let before = self.progressed.get();
            match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(Failure::Final(reason)) => return Err(reason),
                Err(Failure::Renewed) => {}
                Err(Failure::Broken(reason)) => {
                    let (node, peer, group) = (self.peers.me, self.to, self.group);
                    if self.peers.may_say((peer, group, "snapshot broke", &reason)) {
                        tracing::info!(
                            node,
                            peer,
                            group,
                            "sending a snapshot to node {peer} broke off, still trying: {reason}"
                        );
                    }
                    self.trouble.replace(reason);
                    if self.progressed.get() > before {
                        pause.reset();
                    }
                    sleep(pause.next()).await;
                }
            }
        }
    }

    async fn out_of_patience(&self) -> String {
        let patience = self.peers.options.snapshot_patience;
        // What lies beyond all time is never waited for.
        while let Some(end) = self.progressed.get().checked_add(patience) {
            if Instant::now() >= end {
                return format!("it did not get on for {patience:?}: {}", self.trouble.borrow());
            }
            sleep_until(end).await;
        }
        std::future::pending().await
    }

    /// One connection.
    async fn attempt(&self) -> Result<(), Failure> {
        let (peers, to) = (&self.peers, self.to);
        let address = peers.address(to).ok_or_else(|| Failure::Final(format!("no address of node {to} is known")))?;
        let reached = dialer::reach(peers, to, Role::Snapshot, &address).await;
        let (greeted, mut stream) = reached.map_err(|error| match error {
            DialError::Greet(GreetError::ByUs { .. } | GreetError::ByThem { .. }) => Failure::Final(error.to_string()),
            _ => Failure::Broken(error.to_string()),
        })?;
        configure(&stream, peers.options.silence_timeout).map_err(|error| Failure::Broken(error.to_string()))?;
        let mut messages = self.messages.clone();
        let begin = encode_begin(self.group, &messages.borrow_and_update());
        let begin = begin.map_err(|error| Failure::Final(error.to_string()))?;
        let (read, mut write) = stream.split();
        let mut answers = Answers { sender: self, read, version: greeted.version, body: Vec::new() };
        let converse = async {
            self.write(&mut write, &begin).await?;
            let offset = answers.first().await?;
            tokio::select! {
                biased;
                ended = answers.until_done(offset) => ended,
                failure = self.pump(&mut write, offset) => Err(failure),
            }
        };
        tokio::select! {
            biased;
            Ok(()) = messages.changed() => Err(Failure::Renewed),
            ended = converse => ended,
        }
    }

    /// Sends the file from `offset` on; ends only if it cannot.
    async fn pump(&self, write: &mut WriteHalf<'_>, mut offset: u64) -> Failure {
        let (bytes, group) = (self.file.name().bytes, self.group);
        while offset < bytes {
            let length = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(self.peers.snapshots.piece_bytes);
            let file = Arc::clone(&self.file);
            let piece = self.peers.blocking(move || {
                let piece = file.read_at(offset, length).map_err(|error| error.to_string())?;
                if piece.is_empty() {
                    return Err(format!("the file ends at {offset} where its name says {bytes}"));
                }
                encode_data(group, offset, &piece).map_err(|error| error.to_string())
            });
            let frame = match piece.await {
                Some(Ok(frame)) => frame,
                Some(Err(reason)) => return Failure::Final(reason),
                None => return Failure::Final("reading its file failed in an unknown way".into()),
            };
            let length = frame.len().saturating_sub(HEADER_LEN + PIECE_FRONT_LEN);
            self.peers.snapshots.may_send(length).await;
            if let Err(failure) = self.write(write, &frame).await {
                return failure;
            }
            offset += length as u64;
        }
        std::future::pending().await
    }

    async fn write(&self, write: &mut WriteHalf<'_>, frame: &[u8]) -> Result<(), Failure> {
        write.write_all(frame).await.map_err(|error| Failure::Broken(format!("writing to it failed: {error}")))
    }

    /// The receiver has so much.
    fn acknowledge(&self, offset: u64) {
        if offset > self.acknowledged.get() {
            self.acknowledged.set(offset);
            self.progressed.set(Instant::now());
        }
    }
}

struct Answers<'a> {
    sender: &'a Sender,
    read: ReadHalf<'a>,
    version: u8,
    body: Vec<u8>,
}

impl Answers<'_> {
    /// Where to begin.
    async fn first(&mut self) -> Result<u64, Failure> {
        loop {
            match self.next().await? {
                Answer::Offset(offset) => return Ok(offset),
                Answer::Wait => {}
                Answer::Done => return Err(WireError::Unexpected(Kind::SnapshotDone).into()),
            }
        }
    }

    /// Listens until the receiver has all of it.
    async fn until_done(&mut self, mut last: u64) -> Result<(), Failure> {
        loop {
            match self.next().await? {
                Answer::Offset(offset) if offset >= last => last = offset,
                Answer::Offset(offset) => {
                    return Err(Failure::Broken(format!("the receiver had {last} bytes and has {offset} now")));
                }
                Answer::Wait => {}
                Answer::Done => return Ok(()),
            }
        }
    }

    async fn next(&mut self) -> Result<Answer, Failure> {
        let Sender { peers, to, group, file, .. } = self.sender;
        let silence = peers.options.silence_timeout;
        let header = timeout(silence, read_frame(&mut self.read, self.version, HANDSHAKE_BYTES_MAX, &mut self.body));
        let header = header.await.map_err(|_| Failure::Broken(format!("node {to} said nothing for {silence:?}")))?;
        let header = header.map_err(|error| Failure::Broken(error.to_string()))?;
        if header.kind == Kind::Refuse {
            let refusal = decode_refusal(&self.body)?;
            let reason = format!("node {to} refused it: {refusal}");
            // What was damaged on the way may come through the next time.
            let is_damage = refusal.code == RefusalCode::Malformed;
            return Err(if is_damage { Failure::Broken(reason) } else { Failure::Final(reason) });
        }
        if header.group != *group {
            return Err(Failure::Broken(format!("node {to} answered for group {}", header.group)));
        }
        match header.kind {
            Kind::SnapshotOffset => {
                let (offset, bytes) = (decode_offset(&self.body)?, file.name().bytes);
                if offset > bytes {
                    return Err(Failure::Broken(format!("node {to} has {offset} bytes of {bytes}")));
                }
                self.sender.acknowledge(offset);
                Ok(Answer::Offset(offset))
            }
            Kind::SnapshotWait => {
                self.sender.progressed.set(Instant::now());
                Ok(Answer::Wait)
            }
            Kind::SnapshotDone => Ok(Answer::Done),
            other => Err(WireError::Unexpected(other).into()),
        }
    }
}
