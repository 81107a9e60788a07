//! What the network tells the driver.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use raft::eraftpb::Message;
use tokio::sync::Notify;

use super::admin_messages::Request;
use super::handshake::{Hello, RefusalCode};
use super::wire::Rejected;
use crate::engine::command::Command;
use crate::engine::{GroupId, NodeId};
use crate::storage::snapshot::SnapshotFile;

/// Something happened. Whatever names a peer as its sender comes from a connection that the gate has admitted as that
/// peer.
#[derive(Debug)]
pub enum Event {
    /// There was no way to `peer`, now there is.
    Up {
        /// Who.
        peer: NodeId,
        /// What it said about itself.
        hello: Rc<Hello>,
        /// The connection's number, counted up in this process.
        epoch: u64,
    },
    /// What is sent to `peer` takes another connection from now on, to the same boot of the peer. What took the old
    /// one may arrive later than what takes the new one.
    Routed {
        /// Who.
        peer: NodeId,
        /// The new connection's number.
        epoch: u64,
        /// The old connection is gone, and what was under way on it may be lost.
        lost: bool,
    },
    /// There is no way to `peer` any more. What was under way may be lost.
    Down {
        /// Who.
        peer: NodeId,
        /// One sentence.
        reason: String,
        /// It said goodbye.
        in_order: bool,
    },
    /// Raft messages, each `from` its sender; `to` is not checked.
    Raft {
        /// Who sent them.
        from: NodeId,
        /// The group they belong to.
        group: GroupId,
        /// The messages, in the order they were sent.
        messages: Vec<Message>,
    },
    /// Commands forwarded to this node.
    Propose {
        /// Who sent them.
        from: NodeId,
        /// The group they are for.
        group: GroupId,
        /// The commands, in the order they were sent.
        commands: Vec<Command>,
    },
    /// Commands that this node forwarded were refused.
    Rejected {
        /// Who refused them.
        from: NodeId,
        /// The group they were for.
        group: GroupId,
        /// Which, and why.
        rejected: Rejected,
    },
    /// The peer drops messages of this node.
    Dropped {
        /// Who drops them.
        from: NodeId,
        /// The group they were for.
        group: GroupId,
        /// One sentence.
        reason: String,
    },
    /// Everything committed up to this index is on the peer's disk.
    Durable {
        /// Whose disk.
        from: NodeId,
        /// The group that the index is of.
        group: GroupId,
        /// The index.
        index: u64,
    },
    /// The engine's own bytes about forming the cluster.
    Formation {
        /// Who sent them.
        from: NodeId,
        /// The bytes.
        body: Vec<u8>,
    },
    /// A snapshot has come: its file is whole, checked and durable. It is told once more if the connection broke before
    /// its sender heard so.
    SnapshotReceived {
        /// Who sent it; the message is `from` it, `to` this node.
        from: NodeId,
        /// The group whose state it holds.
        group: GroupId,
        /// The message that brings it: index and term are those of the file, and its data is the file's name.
        message: Box<Message>,
        /// The file.
        file: Arc<dyn SnapshotFile>,
    },
    /// What became of a snapshot that was to be sent; told once for each.
    SnapshotSent {
        /// To whom.
        to: NodeId,
        /// The group whose state it holds.
        group: GroupId,
        /// The index that it is as of.
        index: u64,
        /// It is durable there; or why this node has given it up, for people.
        outcome: Result<(), String>,
    },
    /// An operator's tool asks something; [`Network::answer`](super::Network::answer) answers it, once.
    Asked {
        /// The connection's number.
        connection: u64,
        /// What it asks, and for how long at most.
        request: Request,
    },
    /// A tool that has asked something is gone: nobody waits for the answers any more.
    ToolLeft {
        /// The connection's number.
        connection: u64,
    },
    /// A connection was refused. Told, as it is logged, at most once in ten seconds for the same reason.
    Refused {
        /// The other side; if it dialled, who it claims to be.
        peer: NodeId,
        /// We refused it; otherwise it refused us.
        by_us: bool,
        /// We dialled it, at an address where we expected it.
        dialled: bool,
        /// For programs.
        code: RefusalCode,
        /// For people.
        reason: String,
    },
}

impl Event {
    /// Peers talk about what is in the log, and nobody comes or goes.
    pub fn is_routine(&self) -> bool {
        matches!(self, Self::Raft { .. } | Self::Propose { .. } | Self::Rejected { .. } | Self::Durable { .. })
    }
}

/// The queue between the network's tasks and the driver, on one thread. Cloning gives another handle to it.
#[derive(Clone)]
pub struct Events(Rc<Queue>);

struct Queue {
    events: RefCell<Vec<Event>>,
    /// Memory that the queued frames take.
    bytes: Cell<usize>,
    driver: Arc<Notify>,
    room: Notify,
}

impl Events {
    /// An empty queue; `driver` is notified of every event.
    pub fn new(driver: Arc<Notify>) -> Self {
        Self(Rc::new(Queue { events: RefCell::default(), bytes: Cell::new(0), driver, room: Notify::new() }))
    }

    /// Takes everything as one batch, in order, reusing `into`'s buffer, and lets waiting readers go on.
    pub fn take(&self, into: &mut Vec<Event>) {
        into.clear();
        std::mem::swap(&mut *self.0.events.borrow_mut(), into);
        if self.0.bytes.replace(0) > 0 {
            self.0.room.notify_waiters();
        }
    }

    /// Nothing is waiting to be taken.
    pub fn is_empty(&self) -> bool {
        self.0.events.borrow().is_empty()
    }

    /// Memory that the waiting frames take.
    pub fn unread_bytes(&self) -> usize {
        self.0.bytes.get()
    }

    pub(super) fn push(&self, event: Event, bytes: usize) {
        self.0.events.borrow_mut().push(event);
        self.pushed(bytes);
    }

    /// Messages right behind others of the same peer and group join them: one event, one batch for the driver.
    pub(super) fn push_raft(&self, peer: NodeId, in_group: GroupId, mut more: Vec<Message>, bytes: usize) {
        match self.0.events.borrow_mut().last_mut() {
            Some(Event::Raft { from, group, messages }) if *from == peer && *group == in_group => {
                messages.append(&mut more);
            }
            _ => {}
        }
        if more.is_empty() {
            self.pushed(bytes);
        } else {
            self.push(Event::Raft { from: peer, group: in_group, messages: more }, bytes);
        }
    }

    /// Waits until at most `bytes_max` are waiting to be taken.
    pub(super) async fn room(&self, bytes_max: usize) {
        while self.0.bytes.get() > bytes_max {
            // Nothing runs between the check and the wait: this thread is the only one.
            self.0.room.notified().await;
        }
    }

    fn pushed(&self, bytes: usize) {
        self.0.bytes.set(self.0.bytes.get().saturating_add(bytes));
        self.0.driver.notify_one();
    }
}
