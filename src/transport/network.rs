//! The driver's handle on the network.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use raft::eraftpb::Message;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use super::admin_messages::Response;
use super::events::Events;
use super::handshake::Gate;
use super::options::Options;
use super::peers::Peers;
use super::wire::Rejected;
use super::{dialer, listener};
use crate::engine::command::Command;
use crate::engine::{GroupId, NodeId};
use crate::storage::snapshot::{SnapshotFile, SnapshotStore};

/// One node's network.
///
/// Every node dials every peer and sends on the connection that it dialled; while it has none, on the newest that the
/// peer has dialled (the only way to a peer behind NAT). Two connections per pair are normal.
/// Snapshots travel on connections of their own, which are never routes.
///
/// Methods are of three kinds. **Membership**: [`set_peer`](Self::set_peer), [`remove_peer`](Self::remove_peer).
/// **Sending**, in the driver's turn: the `send_` methods encode into a buffer per peer, then one
/// [`flush`](Self::flush) writes them. **The end**: [`part`](Self::part) where it is a good one, [`shutdown`](Self::shutdown), then
/// [`join`](Self::join).
/// What comes in is taken from the [`Events`].
pub struct Network {
    peers: Rc<Peers>,
    address: SocketAddr,
    listener: Option<AbortHandle>,
    /// Peers with something in their batch.
    touched: Vec<NodeId>,
}

impl Network {
    /// Starts to listen; snapshots that come are kept in `snapshots`. Has to be called, and the network used, within a [`tokio::task::LocalSet`]: all tasks are
    /// local.
    ///
    /// # Errors
    /// The listener cannot be handed to tokio.
    pub fn start(
        listener: std::net::TcpListener,
        me: NodeId,
        gate: Rc<dyn Gate>,
        options: Options,
        events: Events,
        snapshots: Arc<dyn SnapshotStore>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let peers = Rc::new(Peers::new(me, gate, options, events, snapshots));
        let listener = peers.spawn(listener::run(Rc::clone(&peers), listener));
        Ok(Self { peers, address, listener, touched: Vec::new() })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Dials `peer` at `address` (`host:port`, looked up at each attempt) from now on. A connection that is up stays,
    /// whatever its address was. Does nothing for this node itself.
    pub fn set_peer(&mut self, peer: NodeId, address: &str) {
        if let Some(dial_now) = self.peers.set_address(peer, address) {
            let task = dialer::run(Rc::clone(&self.peers), peer, address.to_owned(), dial_now);
            self.peers.set_dialer(peer, self.peers.spawn(task));
        }
    }

    /// Stops dialling `peer`; a connection that is up stays.
    pub fn stop_dialling(&mut self, peer: NodeId) {
        self.peers.stop_dialling(peer);
    }

    /// Stops dialling `peer` and closes its connections. Whether it may come back is up to the gate.
    pub fn remove_peer(&mut self, peer: NodeId) {
        self.peers.remove(peer);
    }

    /// Where `peer` is dialled.
    pub fn address_of(&self, peer: NodeId) -> Option<String> {
        self.peers.address(peer)
    }

    /// There is a way to `peer`.
    pub fn connected(&self, peer: NodeId) -> bool {
        self.peers.connected(peer)
    }

    /// All to whom there is a way.
    pub fn all_connected(&self) -> Vec<NodeId> {
        self.peers.all_connected()
    }

    /// Why this node has no connection of its own dialling to `peer`: one sentence for people.
    pub fn trouble(&self, peer: NodeId) -> Option<String> {
        self.peers.trouble(peer)
    }

    /// Puts a Raft message into this round's batch for `to`. `false` if there is no way to `to`, or the message is
    /// larger than a frame: report it as unreachable.
    pub fn send_raft(&mut self, to: NodeId, group: GroupId, message: &Message) -> bool {
        let put = self.peers.put(to, |batch| batch.raft(group, message));
        self.touch(to, put)
    }

    /// Puts a command into this round's batch for `to`, the leader. `false` if there is no way to `to`, or the command
    /// is larger than a frame.
    pub fn send_propose(&mut self, to: NodeId, group: GroupId, command: &Command) -> bool {
        let put = self.peers.put(to, |batch| batch.propose(group, command));
        self.touch(to, put)
    }

    /// Puts a refusal of forwarded commands into this round's batch for `to`. `false` if there is no way to `to`, or
    /// it is larger than a frame.
    pub fn send_rejected(&mut self, to: NodeId, group: GroupId, rejected: &Rejected) -> bool {
        let put = self.peers.put(to, |batch| batch.rejected(group, rejected));
        self.touch(to, put)
    }

    /// Puts the engine's bytes about forming the cluster into this round's batch for `to`. `false` if there is no way
    /// to `to`, or they are larger than a frame.
    pub fn send_formation(&mut self, to: NodeId, body: &[u8]) -> bool {
        let put = self.peers.put(to, |batch| batch.formation(body));
        self.touch(to, put)
    }

    /// Tells `to` why its messages are dropped. `false` if there is no way to `to`.
    pub fn send_dropped(&mut self, to: NodeId, group: GroupId, reason: &str) -> bool {
        let put = self.peers.put(to, |batch| batch.dropped(group, reason));
        self.touch(to, put)
    }

    /// Tells `to` what this node's disk holds of what is committed. `false` if there is no way to `to`.
    pub fn send_durable(&mut self, to: NodeId, group: GroupId, index: u64) -> bool {
        let put = self.peers.put(to, |batch| batch.durable(group, index));
        self.touch(to, put)
    }

    /// Begins to send a snapshot to `to`, on a connection of its own: `message` is the MsgSnapshot for it, whose data is
    /// the name of `file`. [`Event::SnapshotSent`](super::Event::SnapshotSent) tells, once, what became of it.
    ///
    /// If that file is already under way to `to`, it stays what was begun before, with the new message.
    /// Another one of the same group is cancelled.
    pub fn send_snapshot(&mut self, to: NodeId, group: GroupId, message: &Message, file: Arc<dyn SnapshotFile>) {
        self.peers.snapshots.send(&self.peers, to, group, message, file);
    }

    /// Answers a request of an operator's tool ([`Event::Asked`](super::Event::Asked)); does nothing if that is gone.
    pub fn answer(&self, connection: u64, response: &Response) {
        self.peers.tools.answer(connection, response);
    }

    /// Writes this round's batches, without waiting: what a socket does not take, its connection's task writes later.
    pub fn flush(&mut self) {
        for peer in self.touched.drain(..) {
            self.peers.flush(peer);
        }
    }

    /// Stops listening and dialling, says goodbye, and waits until the peers have hung up, so that they know of a good
    /// end. Nothing that comes in is taken any more; [`shutdown`](Self::shutdown) is to follow, also if this is
    /// cancelled.
    pub async fn part(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
        self.peers.part().await;
    }

    /// Writes what the sockets take, closes all connections and ends all tasks. No event follows.
    pub fn shutdown(&mut self) {
        self.peers.stop();
    }

    /// Waits until all tasks are gone, and with them all sockets; the address can then be bound again.
    /// To be called after [`shutdown`](Self::shutdown).
    pub async fn join(&mut self) {
        self.peers.stop();
        let mut tasks = self.peers.take_tasks();
        while tasks.join_next().await.is_some() {}
    }

    fn touch(&mut self, peer: NodeId, put: bool) -> bool {
        if put && !self.touched.contains(&peer) {
            self.touched.push(peer);
        }
        put
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.peers.stop();
    }
}
