//! The peers and the routes to them: the state that the network's handle and its tasks share.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::hash::Hash;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::{oneshot, Notify};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::admin_service::Tools;
use super::batch::Batch;
use super::connection::{configure, Connection, End};
use super::events::{Event, Events};
use super::greet::Greeted;
use super::handshake::{Gate, Refusal, RefusalCode};
use super::options::Options;
use super::quiet::{Quiet, Turn};
use super::snapshots::Snapshots;
use super::wire::WireError;
use crate::engine::{GroupId, NodeId};
use crate::storage::snapshot::SnapshotStore;

/// A batch that has grown to this is sent before the driver's round ends.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Different things said of strangers in a while.
const SAID_OF_STRANGERS_MAX: usize = 64;

/// Whether a refusal belongs to what happens while members change: one side hears of it before the other. It is a warning
/// when it has not passed.
fn may_pass(code: RefusalCode, turn: Turn) -> bool {
    matches!(code, RefusalCode::NotAMember | RefusalCode::WrongNode) && turn == Turn::First
}

/// The state of one node's network. No borrow of a cell is held across an await, or while the gate is asked.
pub(super) struct Peers {
    pub me: NodeId,
    pub gate: Rc<dyn Gate>,
    pub options: Options,
    pub events: Events,
    pub snapshots: Snapshots,
    pub tools: Tools,
    peers: RefCell<BTreeMap<NodeId, Peer>>,
    epoch: Cell<u64>,
    quiet: RefCell<Quiet>,
    /// Apart, because strangers choose what there is to say: they must not silence what is said of peers.
    quiet_of_strangers: RefCell<Quiet>,
    tasks: RefCell<JoinSet<()>>,
    parting: Cell<bool>,
    stopped: Cell<bool>,
}

struct Peer {
    address: Option<String>,
    dialer: Option<AbortHandle>,
    /// Makes the dialer try at once.
    dial_now: Rc<Notify>,
    /// Why there is no dialled connection.
    trouble: Option<String>,
    dialled: Option<Rc<Connection>>,
    /// Oldest first.
    inbound: Vec<Rc<Connection>>,
    /// The epoch of the route that the driver knows of.
    told: Option<u64>,
    batch: Batch,
}

impl Peer {
    fn new(frame_bytes_max: usize) -> Self {
        Self {
            address: None,
            dialer: None,
            dial_now: Rc::default(),
            trouble: None,
            dialled: None,
            inbound: Vec::new(),
            told: None,
            batch: Batch::new(frame_bytes_max),
        }
    }

    fn route(&self) -> Option<&Rc<Connection>> {
        self.dialled.as_ref().or(self.inbound.last())
    }

    fn connections(&self) -> impl Iterator<Item = &Rc<Connection>> {
        self.dialled.iter().chain(&self.inbound)
    }
}

impl Peers {
    pub fn new(
        me: NodeId,
        gate: Rc<dyn Gate>,
        options: Options,
        events: Events,
        store: Arc<dyn SnapshotStore>,
    ) -> Self {
        Self {
            me,
            gate,
            snapshots: Snapshots::new(store, &options),
            tools: Tools::default(),
            options,
            events,
            peers: RefCell::default(),
            epoch: Cell::new(0),
            quiet: RefCell::default(),
            quiet_of_strangers: RefCell::new(Quiet::new(SAID_OF_STRANGERS_MAX)),
            tasks: RefCell::default(),
            parting: Cell::new(false),
            stopped: Cell::new(false),
        }
    }

    /// Starts a task that ends with the network at the latest; `None` once that has ended.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) -> Option<AbortHandle> {
        if self.stopped.get() {
            return None;
        }
        let mut tasks = self.tasks.borrow_mut();
        while tasks.try_join_next().is_some() {}
        Some(tasks.spawn_local(task))
    }

    /// Runs work that blocks on a thread of tokio's, and waits for it; the network's end waits for it as well. `None` if
    /// it panicked, or the network has ended.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        if self.stopped.get() {
            return None;
        }
        let (done, result) = oneshot::channel();
        {
            let mut tasks = self.tasks.borrow_mut();
            while tasks.try_join_next().is_some() {}
            tasks.spawn_blocking(move || {
                // Nobody waits any more: whoever did has ended.
                let _ = done.send(work());
            });
        }
        result.await.ok()
    }

    /// Whether something about a peer may be logged again.
    pub fn may_say(&self, what: impl Hash) -> bool {
        self.quiet.borrow_mut().may_say(what, Instant::now())
    }

    /// Whether something about whoever dials this node may be logged again.
    pub fn may_say_of_strangers(&self, what: impl Hash) -> bool {
        self.quiet_of_strangers.borrow_mut().may_say(what, Instant::now())
    }

    /// Logs and tells that this node and whoever dialled it from `from`, and says that it is `peer`, do not fit.
    pub fn refused_inbound(&self, peer: NodeId, by_us: bool, from: SocketAddr, refusal: &Refusal) {
        let Refusal { code, reason } = refusal.clone();
        let turn = self.quiet_of_strangers.borrow_mut().turn((peer, by_us, code, &reason), Instant::now());
        let Some(turn) = turn else { return };
        let said = match by_us {
            true => format!("refused a connection of node {peer}: {reason}"),
            false => format!("node {peer} dialled, and refused this node: {reason}"),
        };
        // Whoever dials the wrong one has something to put right, and warns of it.
        match may_pass(code, turn) || by_us && code == RefusalCode::WrongNode {
            true => tracing::info!(node = self.me, peer, %from, ?code, "{said}"),
            false => tracing::warn!(node = self.me, peer, %from, ?code, "{said}"),
        }
        self.events.push(Event::Refused { peer, by_us, dialled: false, code, reason }, 0);
    }

    /// Logs that an operator's tool and this node do not fit.
    pub fn refused_tool(&self, from: SocketAddr, refusal: &Refusal) {
        let Refusal { code, reason } = refusal;
        if self.may_say_of_strangers((code, reason)) {
            tracing::warn!(node = self.me, %from, ?code, "turned away an operator's tool: {reason}");
        }
    }

    /// Logs and tells that a peer and this node, which dialled it, do not fit.
    pub fn refused(&self, peer: NodeId, by_us: bool, refusal: &Refusal) {
        let (code, reason) = (refusal.code, refusal.reason.clone());
        let turn = self.quiet.borrow_mut().turn((peer, by_us, code, &reason), Instant::now());
        let Some(turn) = turn else { return };
        let said = match by_us {
            true => format!("refused to connect to node {peer}: {reason}"),
            false => format!("node {peer} refused this node: {reason}"),
        };
        let is_replaced = code == RefusalCode::WrongNode && self.gate.is_replaced(peer);
        match may_pass(code, turn) || is_replaced {
            true => tracing::info!(node = self.me, peer, ?code, "{said}"),
            false => tracing::warn!(node = self.me, peer, ?code, "{said}"),
        }
        self.events.push(Event::Refused { peer, by_us, dialled: true, code, reason }, 0);
    }

    /// Logs that something a peer sent is dropped, and tells the peer.
    pub fn dropped(&self, peer: NodeId, group: GroupId, reason: &str) {
        if !self.may_say((peer, "dropped", group, reason)) {
            return;
        }
        tracing::warn!(node = self.me, peer, group, "dropped what node {peer} sent: {reason}");
        if self.put(peer, |batch| batch.dropped(group, reason)) {
            self.flush(peer);
        }
    }

    /// Makes a connection out of a stream whose handshake is done; `false` if it came too late to be one.
    pub fn admit(self: &Rc<Self>, greeted: Greeted, stream: TcpStream, dialled: bool) -> bool {
        let Greeted { hello, version } = greeted;
        let (id, boot) = (hello.from, hello.boot);
        if self.stopped.get() || configure(&stream, self.options.silence_timeout).is_err() {
            // A socket that cannot be configured is gone already.
            return false;
        }
        let mut outdated = Vec::new();
        if let Some(peer) = self.peers.borrow().get(&id) {
            if peer.connections().any(|other| other.hello.boot > boot) {
                // An earlier start of the peer that the gate still let in: it lost the race.
                return false;
            }
            // A process that has been started again cannot be at the other end of these.
            outdated.extend(peer.connections().filter(|other| other.hello.boot < boot).cloned());
            let kept = self.options.inbound_per_peer_max.max(1) - 1;
            if !dialled && peer.inbound.len() > kept {
                outdated.extend(peer.inbound.iter().take(peer.inbound.len() - kept).cloned());
            }
            if dialled {
                outdated.extend(peer.dialled.iter().cloned());
            }
        }
        let (read, write) = stream.into_split();
        let epoch = self.epoch.get() + 1;
        self.epoch.set(epoch);
        let connection = Rc::new(Connection::new(epoch, id, hello, dialled, write));
        // The driver hears of another boot as Down and Up; a further connection to the same boot keeps the route up.
        let (same_boot, other_boot): (Vec<_>, Vec<_>) =
            outdated.into_iter().partition(|other| other.hello.boot == boot);
        for other in other_boot {
            self.close(&other, "the peer was started again".into());
        }
        let tasks = [
            self.spawn(Rc::clone(&connection).run_reader(version, read, Rc::clone(self))),
            self.spawn(Rc::clone(&connection).run_writer(Rc::clone(self))),
        ];
        tasks.into_iter().flatten().for_each(|task| connection.owns(task));
        let dial_now = {
            let mut peers = self.peers.borrow_mut();
            let peer = peers.entry(id).or_insert_with(|| Peer::new(self.options.frame_bytes_max));
            if dialled {
                peer.dialled = Some(connection);
                peer.trouble = None;
            } else {
                peer.inbound.push(connection);
            }
            Rc::clone(&peer.dial_now)
        };
        self.reroute(id, &"".into());
        for other in same_boot {
            self.close(&other, "a newer connection of the peer took its place".into());
        }
        if !dialled {
            dial_now.notify_one();
        }
        true
    }

    /// Closes a connection, once.
    pub fn close(&self, connection: &Rc<Connection>, end: End) {
        if !connection.close() {
            return;
        }
        let (id, reason) = (connection.peer, &end.reason);
        tracing::debug!(node = self.me, peer = id, dialled = connection.dialled, %reason, "a connection ended");
        if let Some(peer) = self.peers.borrow_mut().get_mut(&id) {
            peer.inbound.retain(|other| other.epoch != connection.epoch);
            if peer.dialled.as_ref().is_some_and(|other| other.epoch == connection.epoch) {
                peer.dialled = None;
                peer.trouble = Some(reason.clone());
            }
        }
        self.reroute(id, &end);
    }

    /// Tells the driver if what is sent to `id` takes another way than it knows of.
    fn reroute(&self, id: NodeId, end: &End) {
        let mut peers = self.peers.borrow_mut();
        let Some(peer) = peers.get_mut(&id) else { return };
        let route = peer.route().map(|route| (route.epoch, Rc::clone(&route.hello)));
        let event = match (peer.told, route) {
            (told, Some((epoch, _))) if told == Some(epoch) => return,
            (None, None) => None,
            (None, Some((epoch, hello))) => {
                peer.told = Some(epoch);
                Some(Event::Up { peer: id, hello, epoch })
            }
            (Some(told), Some((epoch, _))) => {
                peer.told = Some(epoch);
                let lost = !peer.connections().any(|connection| connection.epoch == told);
                Some(Event::Routed { peer: id, epoch, lost })
            }
            (Some(_), None) => {
                peer.told = None;
                peer.batch.clear();
                let End { reason, in_order } = end.clone();
                Some(Event::Down { peer: id, reason, in_order })
            }
        };
        if peer.address.is_none() && peer.route().is_none() {
            // Nobody dials it, and it is gone.
            peers.remove(&id);
        }
        drop(peers);
        if let Some(event) = event {
            self.events.push(event, 0);
        }
    }

    /// Puts something into the batch for `id`; `false` if there is no way to it, or no frame can hold it.
    pub fn put(&self, id: NodeId, put: impl FnOnce(&mut Batch) -> Result<(), WireError>) -> bool {
        let full = {
            let mut peers = self.peers.borrow_mut();
            let Some(peer) = peers.get_mut(&id).filter(|peer| peer.route().is_some()) else { return false };
            if let Err(error) = put(&mut peer.batch) {
                if self.may_say((id, "put", error.to_string())) {
                    tracing::error!(node = self.me, peer = id, "could not send to node {id}: {error}");
                }
                return false;
            }
            peer.batch.len() > BATCH_BYTES_MAX
        };
        if full {
            self.flush(id);
        }
        true
    }

    /// Writes the batch for `id`.
    pub fn flush(&self, id: NodeId) {
        let broken = {
            let mut peers = self.peers.borrow_mut();
            let Some(peer) = peers.get_mut(&id) else { return };
            if peer.batch.is_empty() {
                return;
            }
            let Some(route) = peer.route().cloned() else { return peer.batch.clear() };
            let result = route.send(peer.batch.close(), self.options.backlog_bytes_max);
            match result {
                Ok(()) => {
                    peer.batch.shrink();
                    None
                }
                Err(reason) => {
                    peer.batch.clear();
                    Some((route, reason))
                }
            }
        };
        if let Some((route, reason)) = broken {
            self.close(&route, reason.into());
        }
    }

    /// Sets where `id` is dialled. `None` if it is dialled there already, or never will be.
    pub fn set_address(&self, id: NodeId, address: &str) -> Option<Rc<Notify>> {
        if id == self.me || self.stopped.get() {
            return None;
        }
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry(id).or_insert_with(|| Peer::new(self.options.frame_bytes_max));
        if peer.address.as_deref() == Some(address) {
            return None;
        }
        peer.address = Some(address.to_owned());
        if let Some(dialer) = peer.dialer.take() {
            dialer.abort();
        }
        Some(Rc::clone(&peer.dial_now))
    }

    /// Remembers the task that dials `id`.
    pub fn set_dialer(&self, id: NodeId, dialer: Option<AbortHandle>) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(&id) {
            peer.dialer = dialer;
        }
    }

    /// Dials `id` no more; what is connected stays so.
    pub fn stop_dialling(&self, id: NodeId) {
        let mut peers = self.peers.borrow_mut();
        let Some(peer) = peers.get_mut(&id) else { return };
        if let Some(dialer) = peer.dialer.take() {
            dialer.abort();
        }
        peer.address = None;
        if peer.route().is_none() {
            peers.remove(&id);
        }
    }

    /// Forgets `id` and closes its connections.
    pub fn remove(&self, id: NodeId) {
        self.snapshots.forget(self, id, "the peer was removed");
        let connections: Vec<_> = {
            let mut peers = self.peers.borrow_mut();
            let Some(peer) = peers.get_mut(&id) else { return };
            if let Some(dialer) = peer.dialer.take() {
                dialer.abort();
            }
            peer.address = None;
            peer.connections().cloned().collect()
        };
        for connection in connections {
            self.close(&connection, "the peer was removed".into());
        }
        self.peers.borrow_mut().remove(&id);
    }

    /// The connection that this node dialled.
    pub fn dialled(&self, id: NodeId) -> Option<Rc<Connection>> {
        self.peers.borrow().get(&id)?.dialled.clone()
    }

    pub fn set_trouble(&self, id: NodeId, trouble: String) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(&id) {
            peer.trouble = Some(trouble);
        }
    }

    pub fn trouble(&self, id: NodeId) -> Option<String> {
        self.peers.borrow().get(&id)?.trouble.clone()
    }

    pub fn address(&self, id: NodeId) -> Option<String> {
        self.peers.borrow().get(&id)?.address.clone()
    }

    pub fn connected(&self, id: NodeId) -> bool {
        self.peers.borrow().get(&id).is_some_and(|peer| peer.route().is_some_and(|route| route.is_open()))
    }

    pub fn all_connected(&self) -> Vec<NodeId> {
        let peers = self.peers.borrow();
        let open = peers.iter().filter(|(_, peer)| peer.route().is_some_and(|route| route.is_open()));
        open.map(|(id, _)| *id).collect()
    }

    /// This node is about to close in good order.
    pub fn is_parting(&self) -> bool {
        self.parting.get()
    }

    /// All has ended.
    pub fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Ends dialling, says goodbye on every connection and waits until the peers have hung up.
    pub async fn part(&self) {
        self.parting.set(true);
        self.snapshots.part(self);
        let ids: Vec<_> = self.peers.borrow().keys().copied().collect();
        for id in ids {
            self.flush(id);
            if let Some(dialer) = self.peers.borrow_mut().get_mut(&id).and_then(|peer| peer.dialer.take()) {
                dialer.abort();
            }
        }
        // A handshake that was under way may add one more.
        while let Some(connection) = self.say_goodbye() {
            connection.closed().await;
        }
        self.tools.part().await;
    }

    /// Returns one of the connections that are still open.
    fn say_goodbye(&self) -> Option<Rc<Connection>> {
        let peers = self.peers.borrow();
        let open = peers.values().flat_map(Peer::connections).filter(|connection| connection.is_open());
        open.inspect(|connection| connection.say_goodbye()).last().cloned()
    }

    /// Flushes what the sockets take and ends every task; no event follows.
    pub fn stop(&self) {
        if self.stopped.get() {
            return;
        }
        let ids: Vec<_> = self.peers.borrow().keys().copied().collect();
        for id in ids {
            self.flush(id);
        }
        self.stopped.set(true);
        for peer in std::mem::take(&mut *self.peers.borrow_mut()).values() {
            peer.connections().for_each(|connection| {
                connection.close();
            });
        }
        self.tasks.borrow_mut().abort_all();
    }

    /// The tasks, to be waited for after [`Peers::stop`].
    pub fn take_tasks(&self) -> JoinSet<()> {
        self.tasks.take()
    }
}
