//! A machine, the process that runs on it, and the application in that process.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::clock::{Clock, Time};
use super::disk::{Copy, Disk};
use super::network::{MachineId, Occurred, Packet, Peer, Place};
use super::objects::Objects;
use super::plan::Crash;
use crate::driver::gate::{Gate, Members};
use crate::driver::persister::{Answer, Gathered, Task};
use crate::driver::port::{Completion, InboxBatch};
use crate::engine::formation::Stage;
use crate::engine::{Engine, NodeId, BOOTSTRAP};
use crate::storage::LogWriter;

/// A machine: what outlives its processes.
pub struct Machine {
    /// The node that runs here. A machine with a cloned disk runs the node of another one.
    pub node: NodeId,
    /// Its clocks.
    pub clock: Clock,
    /// Its disk.
    pub disk: Disk,
    /// Earlier contents of the disk and the boot that they are of, by when they were copied.
    pub copies: BTreeMap<Time, (Copy, u64)>,
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
    /// The list of members of the next start only.
    pub members: Option<BTreeMap<NodeId, String>>,
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
            copies: BTreeMap::new(),
            process: None,
            incarnation: 0,
            starts_at: None,
            paused_until: 0,
            blocked_until: 0,
            slow_disk: None,
            disk_fails: false,
            members: None,
            out: false,
            old: false,
            round_at: Time::MAX,
        }
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
    pub completions: VecDeque<Completion>,
    /// Its next turn is due.
    pub is_due: bool,
    /// The state machine.
    pub objects: Objects,
    /// Mixed from everything applied.
    pub digest: u64,
    /// The cursor.
    pub applied: u64,
    /// Bytes of completions not yet applied.
    pub unapplied_bytes: usize,
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
            objects: Objects::default(),
            digest: 0,
            applied: BOOTSTRAP.0,
            unapplied_bytes: 0,
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
    /// Under test.
    pub engine: Engine,
    /// Under test.
    pub members: Rc<RefCell<Members>>,
    /// Under test.
    pub gate: Gate,
    /// The thread beside it.
    pub persister: Persister,
    /// Its list of members.
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
    pub completions: Vec<Completion>,
    /// Stages of the formation on their way to the disk, by number.
    pub stages: BTreeMap<u64, Stage>,
    /// When the node record was written last.
    pub recorded: Time,
    /// When it last told the others that it is not formed.
    pub reported: Time,
    /// What the others were told of this node's disk.
    pub told_durable: u64,
    /// When it ticks next.
    pub next_tick: Time,
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

/// Where machine `id` is reached.
pub fn address(id: MachineId) -> String {
    format!("machine-{id}:7400")
}
