//! A machine, the process that runs on it, and the application in that process.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::clock::{Clock, Time};
use super::disk::{Copy, Disk};
use super::network::{MachineId, Occurred, Packet, Peer, Place};
use super::plan::Crash;
use super::snapshots::copy;
use super::state::State;
use crate::driver::gate::{Gate, Members};
use crate::driver::options::Joins;
use crate::driver::persister::{Answer, Gathered, Task};
use crate::driver::port::{Completion, InboxBatch};
use crate::engine::formation::Stage;
use crate::engine::{Cursors, Engine, Marker, NodeId, BOOTSTRAP};
use crate::storage::snapshot::{SnapshotFile, SnapshotName, SnapshotStore};
use crate::storage::{memory, LogWriter};

/// A machine: what outlives its processes.
pub struct Machine {
    /// The node that runs here. A machine with a cloned disk runs the node of another one.
    pub node: NodeId,
    /// Its clocks.
    pub clock: Clock,
    /// Its disk.
    pub disk: Disk,
    /// Snapshot files, beside the log.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// What an application that is durable itself has kept (rule D2).
    pub kept: Option<Kept>,
    /// Earlier contents of the disk, by when they were copied.
    pub copies: BTreeMap<Time, Image>,
    /// What runs here now.
    pub process: Option<Process>,
    /// Starts on this machine so far.
    pub incarnation: u64,
    /// When the process is started next.
    pub starts_at: Option<Time>,
    /// Nothing runs here before this.
    pub paused_until: Time,
    /// The application does not run before this.
    pub blocked_until: Time,
    /// Fsyncs take so long until then.
    pub slow_disk: Option<(Time, Time)>,
    /// The next write fails.
    pub disk_fails: bool,
    /// The list of members that the node here is started with.
    pub listed: BTreeMap<NodeId, String>,
    /// Another one, for the next start only.
    pub members: Option<BTreeMap<NodeId, String>>,
    /// How the node here joins, if it does so by its name: as whom, and with which new data directory.
    pub joins: Option<Joins>,
    /// Where it is reached: that changes when the node moves.
    pub port: u16,
    /// A node is meant to run here.
    pub runs: bool,
    /// It will not take part again: its disk was wiped, or rolled back, or is a copy.
    pub out: bool,
    /// Its disk is an earlier copy, of this machine's or another's.
    pub old: bool,
    /// When the next round of its process is due.
    pub round_at: Time,
}

impl Machine {
    /// A machine with an empty disk.
    pub fn new(node: NodeId, clock: Clock, disk: Disk) -> Self {
        Self {
            node,
            clock,
            disk,
            snapshots: memory::open().snapshots,
            kept: None,
            copies: BTreeMap::new(),
            process: None,
            incarnation: 0,
            starts_at: None,
            paused_until: 0,
            blocked_until: 0,
            slow_disk: None,
            disk_fails: false,
            listed: BTreeMap::new(),
            members: None,
            joins: None,
            port: PORT,
            runs: true,
            out: false,
            old: false,
            round_at: Time::MAX,
        }
    }
}

impl Machine {
    /// Something else takes the place of all that is kept here.
    pub fn put_back(&mut self, image: Image) {
        self.disk.replace(image.disk);
        self.snapshots = memory::open().snapshots;
        for file in image.snapshots {
            copy(file.as_ref(), self.snapshots.as_ref());
        }
        self.kept = image.kept;
    }
}

/// A state that an application keeps by itself.
#[derive(Clone)]
pub struct Kept {
    /// The state machine.
    pub state: State,
    /// The last entry in it: index and term.
    pub through: (u64, u64),
}

/// What a machine keeps, as it was at some time.
#[derive(Default)]
pub struct Image {
    /// The log; nothing if it was never copied.
    pub disk: Copy,
    /// Of which start.
    pub boot: u64,
    /// Files that the log may name.
    pub snapshots: Vec<Arc<dyn SnapshotFile>>,
    /// The application's own.
    pub kept: Option<Kept>,
}

/// What a node tells its application.
#[derive(Debug)]
pub enum Told {
    /// As in the real world.
    Completion(Completion),
    /// To take a snapshot, here.
    Capture(Marker),
}

impl From<Completion> for Told {
    fn from(completion: Completion) -> Self {
        Self::Completion(completion)
    }
}

/// The persist thread.
pub struct Persister {
    /// The log.
    pub writer: Box<dyn LogWriter>,
    /// What waits.
    pub queue: Vec<Task>,
    /// What is being written.
    pub writing: Option<Gathered>,
    /// What the driver has yet to hear.
    pub answer: Answer,
}

/// The application beside the node: it applies, and resolves its calls.
pub struct Application {
    /// From the node.
    pub completions: VecDeque<Told>,
    /// Its next turn is due.
    pub is_due: bool,
    /// The state machine.
    pub state: State,
    /// The cursor.
    pub applied: u64,
    /// Bytes of completions not yet applied.
    pub unapplied_bytes: usize,
    /// A guest's state machine refused an entry: the node stops, and nothing more is applied.
    pub is_poisoned: bool,
    /// Barriers that wait for the cursor.
    pub barriers: Vec<(u64, u64)>,
    /// `commits()` is being read.
    pub reads: bool,
    /// It was read through this.
    pub read_through: u64,
}

impl Default for Application {
    fn default() -> Self {
        Self {
            completions: VecDeque::new(),
            is_due: false,
            state: State::default(),
            applied: BOOTSTRAP.0,
            unapplied_bytes: 0,
            is_poisoned: false,
            barriers: Vec::new(),
            reads: false,
            read_through: BOOTSTRAP.0,
        }
    }
}

/// A node and its application, from a start to an end.
pub struct Process {
    /// Where and which.
    pub place: Place,
    /// The node.
    pub id: NodeId,
    /// What it is called, if it joins by its name.
    pub name: Option<String>,
    /// Under test.
    pub engine: Engine,
    /// Under test.
    pub members: Rc<RefCell<Members>>,
    /// Under test.
    pub gate: Gate,
    /// The thread beside it.
    pub persister: Persister,
    /// The list of members that it was started with.
    pub listed: BTreeMap<NodeId, String>,
    /// Whom it dials, and where.
    pub addresses: BTreeMap<NodeId, String>,
    /// Connections, by peer.
    pub peers: BTreeMap<NodeId, Peer>,
    /// What the network has to tell.
    pub occurred: Vec<Occurred>,
    /// What the application asks for.
    pub inbox: InboxBatch,
    /// What leaves at the end of the round.
    pub outbox: Vec<(NodeId, Packet)>,
    /// For the persist thread, handed over in the round.
    pub tasks: Vec<Task>,
    /// For the application, handed over at the end of the round.
    pub completions: Vec<Told>,
    /// Snapshots of its own that have come to their end.
    pub captured: Vec<(u64, Result<SnapshotName, String>)>,
    /// Stages of the formation on their way to the disk, by number.
    pub stages: BTreeMap<u64, Stage>,
    /// When the node record was written last.
    pub recorded: Time,
    /// When it last told the others that it is not formed.
    pub reported: Time,
    /// What the others were told of this node's disk.
    pub told_durable: u64,
    /// Changes of the members that it makes by itself and that have not ended; one more is not begun before.
    pub own_changes: usize,
    /// Removed members that are still connected, and until when.
    pub leaving: BTreeMap<NodeId, Time>,
    /// What the checkers were told last of the engine.
    pub told: Option<Cursors>,
    /// When it ticks next.
    pub next_tick: Time,
    /// Ticks so far.
    pub ticks: u64,
    /// It was asked to close, and waits until then for calls in flight.
    pub closing: Option<Time>,
    /// It crashes at the end of so many more steps.
    pub crash: Option<(u32, Crash)>,
    /// When it is started again after that.
    pub down: Time,
    /// Beside the node.
    pub application: Application,
    /// Rounds so far.
    pub rounds: u64,
}

/// Where nodes are reached that have never moved.
pub const PORT: u16 = 7400;

/// What the node on machine `id` is called, where it joins by its name.
pub fn name(id: MachineId) -> String {
    format!("node-{id}")
}

/// Where machine `id` is reached.
pub fn address(id: MachineId, port: u16) -> String {
    format!("machine-{id}:{port}")
}
