//! The receiver's end of a snapshot: nothing of it counts before all of it is on the disk.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use raft::eraftpb::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use super::connection::configure;
use super::events::Event;
use super::frames::{read_frame, FrameError};
use super::greet::{say_no, Greeted};
use super::handshake::{Refusal, RefusalCode};
use super::peers::Peers;
use super::snapshot_frames::{
    decode_begin, decode_data, encode_done, encode_offset, encode_wait, Announced, BEGIN_BYTES_MAX, PIECE_BYTES_MAX,
    PIECE_FRONT_LEN,
};
use super::wire::{size_of_message, Kind, WireError};
use crate::engine::{GroupId, NodeId};
use crate::storage::snapshot::{SnapshotFile, SnapshotName, SnapshotReceiver, SnapshotStore};
use crate::storage::StorageError;

/// Goes on with a connection whose handshake says that it is for a snapshot.
pub(super) fn admit(peers: &Rc<Peers>, greeted: Greeted, stream: TcpStream) {
    if peers.is_parting() || configure(&stream, peers.options.silence_timeout).is_err() {
        return;
    }
    let (number, from) = (peers.snapshots.next_number(), greeted.hello.from);
    let receiver =
        Receiver { peers: Rc::clone(peers), number, from, version: greeted.version, stream, body: Vec::new() };
    // A task does not run before this one rests, so it cannot end before it is remembered.
    if let Some(task) = peers.spawn(receiver.run()) {
        peers.snapshots.admit(from, number, task, peers.options.inbound_per_peer_max);
    }
}

/// Why nothing more is received on a connection.
enum End {
    /// The sender is gone, or as good as gone.
    Broken(String),
    /// It is told why.
    Refused(Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        Refusal::new(RefusalCode::Malformed, error.to_string()).into()
    }
}

impl From<StorageError> for End {
    fn from(error: StorageError) -> Self {
        Refusal::new(RefusalCode::Snapshot, error.to_string()).into()
    }
}

/// A file that is being received, and the right to touch it. Whoever is ended while a piece is being written gives both
/// back when it is.
struct Open {
    receiver: Box<dyn SnapshotReceiver>,
    _turn: OwnedMutexGuard<()>,
}

/// What there is of a file when its sender comes.
enum Begun {
    Whole(Arc<dyn SnapshotFile>),
    Part(Open),
}

struct Receiver {
    peers: Rc<Peers>,
    number: u64,
    from: NodeId,
    version: u8,
    stream: TcpStream,
    /// Of the last frame.
    body: Vec<u8>,
}

impl Receiver {
    async fn run(mut self) {
        let ended = self.receive().await;
        self.peers.snapshots.step_back(self.number);
        let (node, peer) = (self.peers.me, self.from);
        match ended {
            Ok(()) => {}
            Err(End::Broken(reason)) => {
                if self.peers.may_say((peer, "snapshot broke", &reason)) {
                    tracing::info!(node, peer, "a snapshot that node {peer} sends broke off: {reason}");
                }
            }
            Err(End::Refused(refusal)) => {
                if self.peers.may_say((peer, "snapshot refused", &refusal.reason)) {
                    tracing::warn!(node, peer, "refused a snapshot that node {peer} sends: {refusal}");
                }
                say_no(&mut self.stream, &refusal).await;
            }
        }
        self.peers.snapshots.left(self.number);
    }

    async fn receive(&mut self) -> Result<(), End> {
        let group = self.read(Kind::SnapshotBegin, None, BEGIN_BYTES_MAX).await?;
        let Announced { message, name } = decode_begin(group, &self.body)?;
        self.check(&message, &name)?;
        let turn = self.peers.snapshots.begin(self.number, self.from, group, message.term)?;
        let turn = self.at_work(group, turn.lock_owned()).await?;
        let store = Arc::clone(&self.peers.snapshots.store);
        let file = match self.on_disk(group, move || begin(&*store, &name, turn)).await?? {
            Begun::Whole(file) => {
                self.write(&encode_offset(group, name.bytes)).await?;
                file
            }
            Begun::Part(open) => self.receive_file(&name, open).await?,
        };
        let weight = size_of_message(&message).weight;
        let room = Rc::clone(&self.peers);
        self.at_work(group, room.events.room(room.options.unread_bytes_max)).await?;
        let (node, peer, index, bytes) = (self.peers.me, self.from, name.index, name.bytes);
        tracing::info!(node, peer, group, index, bytes, "received the snapshot of index {index} from node {peer}");
        self.peers
            .events
            .push(Event::SnapshotReceived { from: self.from, group, message: Box::new(message), file }, weight);
        self.write(&encode_done(group)).await
    }

    /// Whether what is announced comes from its sender, to this node, and is wanted.
    fn check(&self, message: &Message, name: &SnapshotName) -> Result<(), Refusal> {
        let (from, me) = (self.from, self.peers.me);
        if (message.from, message.to) != (from, me) {
            let reason = format!(
                "its message is from node {} to node {}, its connection from node {from} to node {me}",
                message.from, message.to
            );
            return Err(Refusal::new(RefusalCode::WrongNode, reason));
        }
        self.peers.gate.admit_snapshot(from, name)
    }

    async fn receive_file(&mut self, name: &SnapshotName, mut open: Open) -> Result<Arc<dyn SnapshotFile>, End> {
        let (group, bytes) = (name.group, name.bytes);
        loop {
            let offset = open.receiver.offset();
            self.write(&encode_offset(group, offset)).await?;
            if offset >= bytes {
                break;
            }
            self.read(Kind::SnapshotData, Some(group), PIECE_FRONT_LEN + PIECE_BYTES_MAX).await?;
            let body = std::mem::take(&mut self.body);
            let taken = self.on_disk(group, move || {
                let taken = take_piece(&mut *open.receiver, bytes, &body);
                (open, body, taken)
            });
            let taken = taken.await?;
            (open, self.body) = (taken.0, taken.1);
            taken.2?;
        }
        let finished = self.on_disk(group, move || {
            let Open { receiver, _turn } = open;
            receiver.finish()
        });
        Ok(finished.await??)
    }

    /// Reads a frame of this kind, and group. It must be whole before the sender counts as silent.
    async fn read(&mut self, kind: Kind, group: Option<GroupId>, body_bytes_max: usize) -> Result<GroupId, End> {
        let silence = self.peers.options.silence_timeout;
        let header = timeout(silence, read_frame(&mut self.stream, self.version, body_bytes_max, &mut self.body)).await;
        let header = match header {
            Ok(Ok(header)) => header,
            Ok(Err(FrameError::Wire(error))) => return Err(error.into()),
            Ok(Err(error)) => return Err(End::Broken(error.to_string())),
            Err(_) => return Err(End::Broken(format!("no whole frame came for {silence:?}"))),
        };
        if header.kind != kind || group.is_some_and(|group| group != header.group) {
            return Err(WireError::Unexpected(header.kind).into());
        }
        Ok(header.group)
    }

    async fn write(&mut self, frame: &[u8]) -> Result<(), End> {
        let silence = self.peers.options.silence_timeout;
        let written = timeout(silence, self.stream.write_all(frame)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(End::Broken(format!("writing to it failed: {error}"))),
            Err(_) => Err(End::Broken(format!("it took no answer for {silence:?}"))),
        }
    }

    /// Runs `work` where it may block.
    async fn on_disk<T: Send + 'static>(
        &mut self,
        group: GroupId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, End> {
        let peers = Rc::clone(&self.peers);
        let done = self.at_work(group, peers.blocking(work)).await?;
        done.ok_or_else(|| Refusal::new(RefusalCode::Snapshot, "keeping it failed in an unknown way").into())
    }

    /// Waits for `work`; the sender hears now and then that it goes on.
    async fn at_work<T>(&mut self, group: GroupId, work: impl Future<Output = T>) -> Result<T, End> {
        let mut work = pin!(work);
        loop {
            match timeout(self.peers.options.silence_timeout / 4, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) => self.write(&encode_wait(group)).await?,
            }
        }
    }
}

/// What is there whole, though its sender has not heard so, does not come twice.
fn begin(store: &dyn SnapshotStore, name: &SnapshotName, turn: OwnedMutexGuard<()>) -> Result<Begun, StorageError> {
    if let Ok(file) = store.open(name) {
        return Ok(Begun::Whole(file));
    }
    Ok(Begun::Part(Open { receiver: store.receive(name)?, _turn: turn }))
}

fn take_piece(receiver: &mut dyn SnapshotReceiver, file_bytes: u64, body: &[u8]) -> Result<(), End> {
    let damaged = |problem: String| WireError::Body { kind: Kind::SnapshotData, problem };
    let (offset, piece) = decode_data(body)?;
    let expected = receiver.offset();
    if offset != expected {
        return Err(damaged(format!("it is for offset {offset} where {expected} follows")).into());
    }
    if piece.len() as u64 > file_bytes.saturating_sub(offset) {
        return Err(damaged(format!("it goes beyond the {file_bytes} bytes of the file")).into());
    }
    Ok(receiver.write(piece)?)
}
