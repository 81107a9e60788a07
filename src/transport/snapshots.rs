//! Snapshots on connections of their own: which are under way, and how they go.
//!
//! The sender dials as for any other connection, with [`Role::Snapshot`](super::Role::Snapshot) in its Hello: the same
//! gate, but never a route. Then, in the frames of [`super::snapshot_frames`]:
//!
//! | from | frame | what it says |
//! |---|---|---|
//! | sender | SnapshotBegin | the Raft message that brings the snapshot; its data is the file's name |
//! | receiver | SnapshotOffset | what it has of that file: all of it, or what an earlier connection brought, or nothing |
//! | sender | SnapshotData | a piece of the file, the first one at that offset, then one behind the other |
//! | receiver | SnapshotOffset | after each piece: what it has now |
//! | receiver | SnapshotWait | whenever its disk, or its turn, takes a while: it is still there |
//! | receiver | SnapshotDone | the file is whole, checked and durable, and handed to its driver |
//! | receiver | Refuse | instead of any of these: why it takes no more of it |
//!
//! The length of the file, in its name, is its end. Whatever breaks off is gone on with on the next connection, from the
//! offset that the receiver says. A refusal is the end, unless it complains of damage ([`RefusalCode::Malformed`]).
//!
//! Files are read and written on tokio's blocking threads, never on the driver's. Each side holds one piece of a file at a
//! time: the socket is the backpressure, and the sender's [`Rate`], shared by all that it sends, the limit.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use raft::eraftpb::Message;
use tokio::sync::{watch, Mutex};
use tokio::task::AbortHandle;
use tokio::time::{sleep_until, Instant};

use super::events::Event;
use super::handshake::{Refusal, RefusalCode};
use super::options::Options;
use super::peers::Peers;
use super::rate::Rate;
use super::snapshot_frames::{Announced, PIECE_BYTES_MAX};
use super::snapshot_sender;
use crate::engine::{GroupId, NodeId};
use crate::storage::snapshot::{SnapshotFile, SnapshotName, SnapshotStore};

/// Pieces in a second, at least: a slow sender sends small ones, so that it is not taken for a silent one.
const PIECES_PER_S_MIN: u64 = 16;

/// What is under way.
pub(super) struct Snapshots {
    pub store: Arc<dyn SnapshotStore>,
    /// The most bytes of a file that are sent in one frame.
    pub piece_bytes: usize,
    rate: RefCell<Rate>,
    /// Connections and transfers, counted up in this process.
    numbers: Cell<u64>,
    outgoing: RefCell<BTreeMap<(NodeId, GroupId), Outgoing>>,
    /// Oldest first.
    incoming: RefCell<Vec<Incoming>>,
    /// Held by whoever receives a snapshot of the group, for as long as it has a file open.
    turns: RefCell<BTreeMap<GroupId, Arc<Mutex<()>>>>,
}

struct Outgoing {
    number: u64,
    name: SnapshotName,
    message: watch::Sender<Message>,
    task: Option<AbortHandle>,
}

struct Incoming {
    number: u64,
    from: NodeId,
    /// Once it has said so: the group, and the term in which its sender leads.
    begun: Option<(GroupId, u64)>,
    task: AbortHandle,
}

impl Snapshots {
    pub fn new(store: Arc<dyn SnapshotStore>, options: &Options) -> Self {
        let paced = usize::try_from(options.snapshot_bytes_per_s / PIECES_PER_S_MIN).unwrap_or(usize::MAX);
        Self {
            store,
            piece_bytes: options.snapshot_piece_bytes.min(paced).clamp(1, PIECE_BYTES_MAX),
            rate: RefCell::new(Rate::new(options.snapshot_bytes_per_s)),
            numbers: Cell::new(0),
            outgoing: RefCell::default(),
            incoming: RefCell::default(),
            turns: RefCell::default(),
        }
    }

    /// Waits until so much more may be sent.
    pub async fn may_send(&self, bytes: usize) {
        let now = Instant::now();
        let turn = self.rate.borrow_mut().take(bytes, now);
        if turn > now {
            sleep_until(turn).await;
        }
    }

    /// Begins to send. What is under way to the same peer and group goes on if it is the same file, with the new message;
    /// else it is cancelled.
    pub fn send(&self, peers: &Rc<Peers>, to: NodeId, group: GroupId, message: &Message, file: Arc<dyn SnapshotFile>) {
        if peers.is_stopped() {
            return;
        }
        let name = *file.name();
        if let Some(under_way) = self.outgoing.borrow().get(&(to, group)).filter(|under_way| under_way.name == name) {
            under_way.message.send_if_modified(|current| {
                let is_other = *current != *message;
                current.clone_from(message);
                is_other
            });
            return;
        }
        self.cancel(peers, to, group, &format!("the snapshot of index {} takes its place", name.index));
        let number = self.next_number();
        let (sender, messages) = watch::channel(message.clone());
        self.outgoing.borrow_mut().insert((to, group), Outgoing { number, name, message: sender, task: None });
        match Announced::new(group, message.clone()) {
            _ if peers.is_parting() => self.sent(peers, to, group, number, Err("this node closes".into())),
            Ok(announced) if announced.name == name => {
                let task = snapshot_sender::run(Rc::clone(peers), number, to, group, messages, file);
                if let Some(outgoing) = self.outgoing.borrow_mut().get_mut(&(to, group)) {
                    outgoing.task = peers.spawn(task);
                }
            }
            Ok(_) => self.sent(peers, to, group, number, Err("its message names another file".into())),
            Err(problem) => self.sent(peers, to, group, number, Err(problem)),
        }
    }

    /// A transfer has ended by itself; it is told if it is still the one that is under way.
    pub fn sent(&self, peers: &Peers, to: NodeId, group: GroupId, number: u64, outcome: Result<(), String>) {
        let mut outgoing = self.outgoing.borrow_mut();
        if outgoing.get(&(to, group)).is_none_or(|under_way| under_way.number != number) {
            return;
        }
        let Some(Outgoing { name: SnapshotName { index, bytes, .. }, .. }) = outgoing.remove(&(to, group)) else {
            return;
        };
        match &outcome {
            Ok(()) => {
                tracing::info!(
                    node = peers.me,
                    peer = to,
                    group,
                    index,
                    bytes,
                    "sent the snapshot of index {index} to node {to}"
                );
            }
            Err(reason) if peers.may_say((to, group, "snapshot", reason)) => {
                tracing::warn!(
                    node = peers.me,
                    peer = to,
                    group,
                    index,
                    "could not send the snapshot of index {index} to node {to}: {reason}"
                );
            }
            Err(_) => {}
        }
        peers.events.push(Event::SnapshotSent { to, group, index, outcome }, 0);
    }

    /// Ends a transfer to `to`, if there is one.
    fn cancel(&self, peers: &Peers, to: NodeId, group: GroupId, reason: &str) {
        let Some(outgoing) = self.outgoing.borrow_mut().remove(&(to, group)) else { return };
        if let Some(task) = outgoing.task {
            task.abort();
        }
        let index = outgoing.name.index;
        tracing::debug!(node = peers.me, peer = to, group, index, reason, "a snapshot is not sent any more");
        peers.events.push(Event::SnapshotSent { to, group, index, outcome: Err(reason.to_owned()) }, 0);
    }

    /// A connection over which `from` wants to send a snapshot; of too many, the oldest makes room.
    pub fn admit(&self, from: NodeId, number: u64, task: AbortHandle, per_peer_max: usize) {
        let mut incoming = self.incoming.borrow_mut();
        while incoming.iter().filter(|other| other.from == from).count() >= per_peer_max.max(1) {
            let Some(oldest) = incoming.iter().position(|other| other.from == from) else { break };
            incoming.remove(oldest).task.abort();
        }
        incoming.push(Incoming { number, from, begun: None, task });
    }

    /// The connection of this number begins to receive a snapshot of `group` from the leader of `term`. Whatever the same
    /// peer has sent of that group ends, since its connection may be half dead; so does what a leader of an earlier term
    /// sends. Returns what to hold before a file is touched: what was ended may have its last piece under way.
    pub fn begin(&self, number: u64, from: NodeId, group: GroupId, term: u64) -> Result<Arc<Mutex<()>>, Refusal> {
        let mut incoming = self.incoming.borrow_mut();
        let of_group = |other: &Incoming| other.begun.filter(|(of, _)| *of == group).map(|(_, term)| term);
        if let Some((other, other_term)) = incoming.iter().find_map(|other| Some((other, of_group(other)?))) {
            if other.from != from && other_term >= term {
                let reason = format!("node {}, which leads in term {other_term}, is sending one already", other.from);
                return Err(Refusal::new(RefusalCode::Snapshot, reason));
            }
        }
        incoming.retain(|other| {
            let is_over = of_group(other).is_some();
            if is_over {
                other.task.abort();
            }
            !is_over
        });
        if let Some(this) = incoming.iter_mut().find(|other| other.number == number) {
            this.begun = Some((group, term));
        }
        Ok(Arc::clone(self.turns.borrow_mut().entry(group).or_default()))
    }

    /// The connection of this number receives nothing any more; it may still be saying why.
    pub fn step_back(&self, number: u64) {
        if let Some(this) = self.incoming.borrow_mut().iter_mut().find(|other| other.number == number) {
            this.begun = None;
        }
    }

    /// The connection of this number has ended.
    pub fn left(&self, number: u64) {
        self.incoming.borrow_mut().retain(|other| other.number != number);
    }

    /// Ends all from and to `peer`.
    pub fn forget(&self, peers: &Peers, peer: NodeId, reason: &str) {
        self.end(peers, |other| other == peer, reason);
    }

    /// Ends all that is under way.
    pub fn part(&self, peers: &Peers) {
        self.end(peers, |_| true, "this node closes");
    }

    pub fn next_number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    fn end(&self, peers: &Peers, is_meant: impl Fn(NodeId) -> bool, reason: &str) {
        let outgoing: Vec<_> = self.outgoing.borrow().keys().copied().filter(|(to, _)| is_meant(*to)).collect();
        for (to, group) in outgoing {
            self.cancel(peers, to, group, reason);
        }
        self.incoming.borrow_mut().retain(|other| {
            let is_over = is_meant(other.from);
            if is_over {
                other.task.abort();
            }
            !is_over
        });
    }
}
