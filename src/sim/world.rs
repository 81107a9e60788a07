//! The world: virtual time, and whatever happens in it, one thing after the other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use fastrand::Rng;
use raft::eraftpb::Message;

use super::checkers::{Checkers, Violation};
use super::clock::{Clock, Time, MS, SECOND};
use super::disk::Disk;
use super::event::{Ending, Event, Standing, Stopped};
use super::guest::Guest;
use super::machine::{address, name, Machine, PORT};
use super::network::{ConnectionId, MachineId, Occurred, Place, Wires};
use super::operator::{Again, Operator};
use super::plan::{Fault, Plan, Since, Target, END, HEALED};
use super::trace::Trace;
use super::workload::Workload;
use crate::driver::options::Joins;
use crate::engine::command::Command;
use crate::engine::{NodeId, Token};
use crate::storage::snapshot::{Head, SnapshotFile};
use crate::transport::{Hello, RefusalCode};

/// Something that happens at its time.
#[derive(Debug)]
pub(super) enum Happening {
    /// A process takes a round.
    Round(MachineId),
    /// A process begins.
    Start(MachineId),
    /// A batch is on the disk.
    Written(Place),
    /// An application takes a turn.
    Turn(Place),
    /// A client may call.
    Client(usize),
    /// An application reads `commits()`.
    Read(Place),
    /// A process dials a peer.
    Dial(Place, NodeId),
    /// The dialler's hello arrives at the machine that it dialled.
    Greet(Place, MachineId, Rc<Hello>),
    /// The acceptor's answer arrives at the dialler.
    Welcome(ConnectionId),
    /// The dialler's answer to that arrives.
    Confirm(ConnectionId),
    /// A packet arrives: connection, and the end that sent it.
    Deliver(ConnectionId, usize),
    /// This end hears that the other one has closed.
    Closed(ConnectionId, usize),
    /// Nothing has been heard at this end of a connection for too long.
    Silent(ConnectionId, usize),
    /// A fault of the plan begins.
    Fault(usize),
    /// It ends.
    FaultEnds(usize),
    /// The file of a snapshot is written: head, and the application's state.
    Captured(Place, Box<(Head, Vec<u8>)>),
    /// A snapshot arrives at a machine: who sent it, and the message that goes with it.
    Snapshot(Place, MachineId, Box<Message>, Arc<dyn SnapshotFile>),
    /// Its sender hears how that ended: at which node, and well or not.
    SnapshotSent(Place, NodeId, bool),
    /// A node that was dialled has refused, for this reason.
    Refused(Place, RefusalCode),
    /// The operator asks again.
    AskAgain(Box<Again>),
    /// The operator lets the cluster go on from this machine.
    Recover(MachineId),
    /// A disk is copied for a later fault.
    Copy(usize),
    /// Everything that can run runs from now on.
    Heal,
}

struct Due {
    at: Time,
    order: u64,
    what: Happening,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Figures about a run, to see that the world is not an idle one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Happenings.
    pub happenings: u64,
    /// Calls that clients made.
    pub calls: u64,
    /// Of which were answered.
    pub answered: u64,
    /// Entries applied, over all machines.
    pub applied: u64,
    /// Starts of a process.
    pub starts: u64,
    /// Leaders that were elected.
    pub leaders: u64,
    /// Calls for another leader that were answered with one.
    pub transferred: u64,
    /// Calls for a change of the members that were answered with one.
    pub changes: u64,
    /// Nodes that were started with an empty disk, to join.
    pub joined: u64,
    /// Of which joined by their names.
    pub named: u64,
    /// Clusters that went on from one machine, having lost their quorum.
    pub recovered: u64,
    /// Entries that somebody had applied, and that such a machine did not have.
    pub forgotten: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Snapshots that were taken.
    pub snapshots: u64,
    /// Snapshots that took the place of a log.
    pub installed: u64,
    /// Snapshots that applications went on from.
    pub restored: u64,
    /// Readers of `commits()` that the log's beginning had overtaken.
    pub compacted: u64,
    /// Packets that were lost on a connection that went on.
    pub lost: u64,
    /// Packets that arrived behind one of the same sender that had left later, on a newer connection.
    pub late: u64,
    /// Packets that were sent once more on the next connection.
    pub repeated: u64,
    /// Histories of objects that were judged.
    pub histories: u64,
    /// Of which took too long to judge.
    pub undecided: u64,
    /// Worlds that these figures are of, once they are added up.
    pub worlds: u64,
}

/// A cluster in its world.
pub struct World {
    pub(super) plan: Plan,
    pub(super) now: Time,
    /// What the world itself draws from.
    pub(super) rng: Rng,
    due: BinaryHeap<Reverse<Due>>,
    order: u64,
    pub(super) machines: Vec<Machine>,
    pub(super) wires: Wires,
    pub(super) workload: Workload,
    /// Whoever else applies what the applications apply.
    pub(super) guest: Option<Box<dyn Guest>>,
    pub(super) checkers: Checkers,
    pub(super) trace: Trace,
    pub(super) figures: Figures,
    /// Some of the commands that were applied: origin, index, command.
    pub(super) applied: VecDeque<(NodeId, u64, Command)>,
    /// Calls for another leader that have not ended, and how many there were.
    pub(super) transfers: (BTreeMap<Token, MachineId>, Token),
    /// Whoever changes the members.
    pub(super) operator: Operator,
    /// A node whose members were wiped before all had formed may wait for ever.
    pub(super) may_never_form: bool,
    /// Stages of the formation that have become durable, over all nodes.
    stages: u32,
}

impl World {
    /// A world at its beginning.
    pub fn new(plan: &Plan, record: bool) -> Self {
        let mut rng = Rng::with_seed(plan.seed ^ 0x5eed_0000_0000_0001);
        let mut world = Self {
            plan: plan.clone(),
            now: 0,
            due: BinaryHeap::new(),
            order: 0,
            machines: Vec::new(),
            wires: Wires::default(),
            workload: Workload::new(plan, &mut rng),
            guest: None,
            checkers: Checkers::new(plan),
            trace: Trace::new(record),
            figures: Figures::default(),
            applied: VecDeque::new(),
            transfers: Default::default(),
            operator: Operator::default(),
            may_never_form: false,
            stages: 0,
            rng,
        };
        let founders = world.founders();
        for id in 0..plan.nodes {
            let clock = Clock::new(&mut world.rng);
            let machine = Machine::new(id as NodeId + 1, clock, Disk::new(plan.files));
            let joins = plan.names.then(|| Joins { name: name(id), identity: None });
            world.machines.push(Machine { listed: founders.clone(), joins, ..machine });
            let at = world.rng.u64(0..SECOND);
            world.start_at(id, at);
        }
        for _ in 0..plan.spares {
            let clock = Clock::new(&mut world.rng);
            world.machines.push(Machine { runs: false, ..Machine::new(0, clock, Disk::new(plan.files)) });
        }
        world.begin_workload();
        for (number, scheduled) in world.plan.faults.clone().into_iter().enumerate() {
            if scheduled.since != Since::Beginning {
                continue;
            }
            world.happens(scheduled.at, Happening::Fault(number));
            if let Fault::RollBack { copied, .. } | Fault::Clone { copied, .. } = scheduled.fault {
                world.happens(copied, Happening::Copy(number));
            }
        }
        world.happens(HEALED, Happening::Heal);
        world
    }

    /// Lets everything happen until the end, or until a checker objects, or the guest wants no more.
    pub fn run(&mut self) -> Result<(), Violation> {
        while let Some(Reverse(due)) = self.due.pop() {
            if due.at > END {
                break;
            }
            self.now = due.at;
            self.figures.happenings += 1;
            self.happen(due.what);
            if let Some(violation) = self.checkers.violation() {
                return Err(violation);
            }
            if self.guest.as_mut().is_some_and(|guest| !guest.goes_on()) {
                return Ok(());
            }
        }
        self.now = END;
        let ending = self.ending();
        self.checkers.end(END, &ending);
        let judged = self.checkers.judged();
        (self.figures.histories, self.figures.undecided) = (judged.histories, judged.undecided);
        self.checkers.violation().map_or(Ok(()), Err)
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Round(machine) => self.round(machine),
            Happening::Start(machine) => self.start(machine),
            Happening::Written(place) => self.written(place),
            Happening::Turn(place) => self.take_turn(place),
            Happening::Client(client) => self.client(client),
            Happening::Read(place) => self.read_commits(place),
            Happening::Dial(place, peer) => self.dial(place, peer),
            Happening::Greet(from, to, hello) => self.greet(from, to, &hello),
            Happening::Welcome(connection) => self.welcome(connection),
            Happening::Confirm(connection) => self.confirm(connection),
            Happening::Deliver(connection, sender) => self.deliver(connection, sender),
            Happening::Closed(connection, end) => self.close_end(connection, end),
            Happening::Silent(connection, end) => self.silent(connection, end),
            Happening::Fault(number) => self.begin_fault(number),
            Happening::FaultEnds(number) => self.end_fault(number),
            Happening::Captured(place, captured) => self.captured(place, &captured),
            Happening::Snapshot(from, to, message, file) => self.snapshot_arrives(from, to, message, &file),
            Happening::SnapshotSent(place, peer, is_there) => {
                self.occurs(place, Occurred::SnapshotSent(peer, is_there))
            }
            Happening::Refused(place, code) => self.occurs(place, Occurred::Refused(code)),
            Happening::AskAgain(again) => self.ask_again(*again),
            Happening::Recover(machine) => self.recover(machine),
            Happening::Copy(number) => self.copy_disk(number),
            Happening::Heal => self.heal(),
        }
    }

    /// Lets something happen at its time.
    pub(super) fn happens(&mut self, at: Time, what: Happening) {
        self.order += 1;
        self.due.push(Reverse(Due { at: at.max(self.now), order: self.order, what }));
    }

    /// A node has stored a stage of the formation: faults may wait for that.
    pub(super) fn stage_was_stored(&mut self) {
        self.stages += 1;
        for (number, scheduled) in self.plan.faults.clone().into_iter().enumerate() {
            let at = self.now + scheduled.at;
            if scheduled.since == Since::Stage(self.stages) && at < HEALED {
                self.happens(at, Happening::Fault(number));
            }
        }
    }

    /// A process looks round at `at`, or earlier.
    pub(super) fn wake(&mut self, machine: MachineId, at: Time) {
        let at = at.max(self.machines[machine].paused_until).max(self.now);
        if at < self.machines[machine].round_at {
            self.machines[machine].round_at = at;
            self.happens(at, Happening::Round(machine));
        }
    }

    /// Something came in: a process looks round soon.
    pub(super) fn wake_soon(&mut self, machine: MachineId) {
        let soon = self.now + self.rng.u64(0..MS / 5);
        self.wake(machine, soon);
    }

    /// A process begins at `at`.
    pub(super) fn start_at(&mut self, machine: MachineId, at: Time) {
        self.machines[machine].starts_at = Some(at);
        self.happens(at, Happening::Start(machine));
    }

    /// Tells the checkers.
    pub(super) fn tell(&mut self, machine: MachineId, event: &Event) {
        self.checkers.see(self.now, machine, event);
    }

    /// The machine that a fault hits now.
    pub(super) fn resolve(&self, target: Target) -> MachineId {
        match target {
            Target::Machine(machine) => machine,
            Target::LeaderOr(machine) => {
                let leads = |candidate: &MachineId| {
                    let process = self.machines[*candidate].process.as_ref();
                    process.is_some_and(|process| process.engine.leader().0 == Some(process.id))
                };
                (0..self.plan.machines())
                    .filter(leads)
                    .max_by_key(|leader| {
                        self.machines[*leader].process.as_ref().map_or(0, |process| process.engine.leader().1)
                    })
                    .unwrap_or(machine)
            }
        }
    }

    /// The list of members that those who found the cluster are started with.
    pub(super) fn founders(&self) -> BTreeMap<NodeId, String> {
        (0..self.plan.nodes).map(|machine| (machine as NodeId + 1, address(machine, PORT))).collect()
    }

    /// A process has ended: its calls are lost, its connections close.
    pub(super) fn ended(&mut self, machine: MachineId, why: &Stopped) {
        let node = self.machines[machine].node;
        self.trace.note(self.now, &[1, machine as u64], || format!("node {node} on machine {machine} ended: {why:?}"));
        self.tell(machine, &Event::Stopped { why });
        self.lose_calls(machine);
        self.lose_transfers(machine);
        self.lose_changes(machine);
    }

    fn ending(&self) -> Ending {
        let newest = self.newest_members();
        let healthy = (0..self.plan.machines()).filter(|machine| {
            let at = &self.machines[*machine];
            at.runs && !at.out && newest.members.contains(&at.node)
        });
        let healthy = healthy.map(|machine| {
            let process = self.machines[machine].process.as_ref();
            let state = process.map(|process| {
                let status = process.engine.status();
                Standing { leader: status.leader, engine: status.applied, application: process.application.applied }
            });
            (machine, state)
        });
        let healthy = healthy.collect::<Vec<_>>();
        let recovers = newest.has_quorum(|id| self.is_healthy(id)) && !self.may_never_form;
        let (removed_and_runs, without_a_vote) = (self.removed_and_runs(&newest), self.wait_for_votes(&newest));
        Ending { healthy, recovers, removed_and_runs, without_a_vote }
    }
}
