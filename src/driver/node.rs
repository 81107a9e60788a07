//! The driver: one thread that turns what happens into the engine's inputs and runs its effects.

mod admin;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::ops::ControlFlow;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::Message;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::admin::AdminCalls;
use super::capture::{Captures, Outcome};
use super::clock;
use super::faults::Arrivals;
use super::gate::{Ended, Gate, Members};
use super::identity::NodeRecord;
use super::options::{Options, Tuning};
use super::persister::{End, Persister, Task};
use super::port::{self, Completion, Fatal, InboxBatch, Port, Proposal, Request};
use super::start::{self, Resumed, StartError, Started};
use super::witness::Spoken;
use super::WakeDriver;
use crate::engine::formation::{Mismatch, Report, Stage};
use crate::engine::membership::Change;
use crate::engine::snapshot::Meta;
use crate::engine::{
    Effect, Engine, Fault, HandOut, Marker, NodeId, Now, Reader, Refused, Rejection, Token, APPLICATION_GROUP,
};
use crate::storage::snapshot::{SnapshotFile, SnapshotName, SnapshotStore};
use crate::storage::{Figures, StorageError};
use crate::transport::{self, Event, Events, Network, Quiet, RefusalCode};

/// What the application is handed at once.
const APPLY_BYTES: usize = 256 << 10;
/// What the application is handed in one round of the driver.
const APPLY_BYTES_PER_ROUND: usize = 1 << 20;
/// How long the network gets to write its last words.
const NETWORK_STOP: Duration = Duration::from_millis(500);
/// How long peers get to hang up, so that they know this node's end for a good one.
const GOODBYE: Duration = Duration::from_millis(200);
/// How often a node that is not formed tells the others how far it is: what it said can be lost with a connection.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How often a warning of the same kind is logged.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// How often what peers have said and acknowledged is written down; their starts are at once.
const RECORD_EVERY: Duration = Duration::from_secs(10);

/// Why the node stops by itself.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("the log failed, so this node answers no one any more (what it acknowledged is safe): {0}")]
    Storage(#[from] StorageError),
    #[error("this node cannot go on: {0}")]
    Fault(#[from] Fault),
    #[error("the test that this node runs in has crashed it")]
    Crashed,
    #[error(transparent)]
    Ended(#[from] Ended),
    #[error("the consensus engine panicked, so this node stops and leaves its log as it is; please report this: {0}")]
    Panic(String),
}

/// Runs one node from its start to its end; the caller's thread is the driver's thread. Returns why it stopped, if it
/// was not asked to.
pub async fn run(mut options: Options, port: Port, wake: Arc<Notify>) -> Option<Fatal> {
    let started = start::start(&mut options);
    let id = options.id;
    let fatal = match started.and_then(|started| Node::new(options, started, port, wake)) {
        Ok(node) => node.run().await,
        Err(error) => {
            Some(Fatal { message: error.to_string(), is_misconfigured: error.is_misconfiguration(), ended: None })
        }
    };
    if let Some(Fatal { message, .. }) = &fatal {
        tracing::error!(node = id, "{message}");
    }
    fatal
}

mod membership;
mod status;

struct Node {
    id: NodeId,
    options: Options,
    engine: Engine,
    persister: Persister,
    /// Files beside the log.
    snapshots: Arc<dyn SnapshotStore>,
    /// Snapshots of the application on their way into files.
    captures: Captures,
    /// Files that are being removed.
    removals: JoinSet<()>,
    network: Network,
    events: Events,
    /// Faults put in on purpose, by tests.
    arrivals: Option<Arrivals>,
    members: Rc<RefCell<Members>>,
    gate: Rc<Gate>,
    port: Port,
    wake: Arc<Notify>,
    next_tick: Instant,
    /// Reused from round to round.
    inbox: InboxBatch,
    occurred: Vec<Event>,
    tasks: Vec<Task>,
    completions: Vec<Completion>,
    /// Stages of the formation on their way to the disk, by number.
    stages: BTreeMap<u64, Stage>,
    recorded: Instant,
    figures: Figures,
    /// More than figures of the status may have changed.
    status_is_due: bool,
    /// The version of the members in the status: a barrier may stand at a change that is not durable yet.
    members_shown: u64,
    /// Since the start.
    ticks: u32,
    /// There was more to do than one round should.
    more: bool,
    closing: Option<Instant>,
    /// What was logged a while ago is not logged again.
    quiet: Quiet,
    /// What the others were told of this node's disk.
    told_durable: u64,
    warned_unformed: Instant,
    reported: Instant,
    /// So many changes of the members that this node makes by itself are under way; closing does not wait for them.
    own_changes: usize,
    /// Removed members that are still connected, and until when.
    leaving: BTreeMap<NodeId, Instant>,
    /// Calls of the application that want this node itself removed, and nothing else.
    removing: BTreeSet<Token>,
    /// What operators' tools wait for.
    admin_calls: AdminCalls,
}

impl Node {
    fn new(options: Options, started: Started, port: Port, wake: Arc<Notify>) -> Result<Self, StartError> {
        let Started { resumed: Resumed { engine, writer, snapshots, members }, listener } = started;
        let name = format!("aioraft-log-{}", options.id);
        let cannot = |source| StartError::Listen { address: "the node's address".into(), source };
        let persister = Persister::start(writer, wake.clone(), name, options.dispatch.clone()).map_err(cannot)?;
        let events = Events::new(wake.clone());
        let gate = Rc::new(Gate::new(members.clone(), wake.clone(), options.tuning.admin_from));
        let network_options = options.tuning.network();
        let mut network =
            Network::start(listener, options.id, gate.clone(), network_options, events.clone(), snapshots.clone())
                .map_err(cannot)?;
        for (peer, address) in members.borrow().dialled(&options.members) {
            network.set_peer(peer, &address);
        }
        let now = Instant::now();
        let completions = vec![Completion::Listening { address: network.local_address() }];
        if let Some(faults) = &options.faults {
            // What was meant for a former start of this node is not for this one.
            faults.crashes(options.id);
        }
        let mut node = Self {
            id: options.id,
            engine,
            persister,
            removals: JoinSet::new(),
            captures: Captures::new(
                options.id,
                snapshots.clone(),
                Box::new(WakeDriver(wake.clone())),
                options.dispatch.clone(),
            ),
            snapshots,
            network,
            events,
            arrivals: options.faults.clone().map(|faults| Arrivals::new(faults, options.id)),
            members,
            gate,
            port,
            wake,
            next_tick: now + options.tuning.tick(),
            inbox: InboxBatch::default(),
            occurred: Vec::new(),
            tasks: Vec::new(),
            completions,
            stages: BTreeMap::new(),
            recorded: now,
            figures: Figures::default(),
            status_is_due: false,
            members_shown: 0,
            ticks: 0,
            more: false,
            closing: None,
            quiet: Quiet::default(),
            told_durable: 0,
            warned_unformed: now,
            reported: now,
            own_changes: 0,
            leaving: BTreeMap::new(),
            removing: BTreeSet::new(),
            admin_calls: AdminCalls::default(),
            options,
        };
        let next = node.members.borrow().formation.next_stage();
        node.store_stage(next);
        node.publish_status();
        let NodeRecord { boot, identity, .. } = node.members.borrow().record.clone();
        tracing::info!(node = node.id, boot, identity = %format!("{identity:032x}"), "node {} started", node.id);
        Ok(node)
    }

    /// Goes on until the node is closed (`None`) or must stop.
    async fn run(mut self) -> Option<Fatal> {
        let outcome = loop {
            match catch_unwind(AssertUnwindSafe(|| self.round())) {
                Ok(Ok(ControlFlow::Continue(()))) => self.wait().await,
                Ok(Ok(ControlFlow::Break(()))) => break None,
                Ok(Err(Stop::Ended(ended))) => {
                    self.dismiss_tools(ended);
                    self.answer_removed(ended);
                    break Some(Fatal { ended: Some(ended), ..Fatal::here(ended.to_string()) });
                }
                Ok(Err(stop)) => break Some(Fatal::here(stop.to_string())),
                Err(panic) => break Some(Fatal::here(Stop::Panic(self.panic_text(panic.as_ref())).to_string())),
            }
        };
        if outcome.is_none() {
            for effect in self.engine.close() {
                self.run_effect(effect);
            }
        }
        self.port.completions.push(&mut self.completions);
        let in_order = outcome.as_ref().is_none_or(|fatal| fatal.ended.is_some());
        self.shut_down(in_order).await;
        outcome
    }

    fn panic_text(&self, panic: &(dyn std::any::Any + Send)) -> String {
        if let Some(failure) = self.engine.take_read_failure() {
            return failure;
        }
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason given".into())
    }

    async fn wait(&mut self) {
        let now_ns = clock::boottime_ns();
        let deadline = Duration::from_nanos(self.engine.wakes_at_ns().saturating_sub(now_ns));
        let mut until = self.next_tick;
        if let Some(deadline) = Instant::now().checked_add(deadline) {
            until = until.min(deadline);
        }
        if let Some(late) = self.arrivals.as_ref().and_then(Arrivals::next) {
            until = until.min(late);
        }
        tokio::select! {
            biased;
            () = self.wake.notified() => {}
            // The network's tasks get their turn, then it goes on.
            () = tokio::task::yield_now(), if self.more => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }

    /// One turn: take in all that happened, let the engine work, run its effects, write once to everybody.
    fn round(&mut self) -> Result<ControlFlow<()>, Stop> {
        if self.options.faults.as_ref().is_some_and(|faults| faults.crashes(self.id)) {
            return Err(Stop::Crashed);
        }
        self.take_answers()?;
        self.take_captures();
        self.take_events();
        self.take_inbox()?;
        let ticked = self.tick();
        self.record_when_due(ticked);
        let now = Now { boottime_ns: clock::boottime_ns(), wall_ns: clock::wall_ns() };
        if now.boottime_ns >= self.engine.next_deadline_ns() {
            self.engine.handle_obstacle(self.obstacle());
        }
        for effect in self.engine.poll(now)? {
            self.run_effect(effect);
        }
        self.persister.write(&mut self.tasks);
        self.network.flush();
        if !self.application_hangs() {
            self.hand_out()?;
        }
        if self.status_is_due || self.members_shown != self.engine.membership().version {
            self.publish_status();
        } else if ticked || !self.completions.is_empty() {
            self.refresh_status();
        }
        if !self.application_hangs() {
            self.port.completions.push(&mut self.completions);
        }
        if let Some(ended) = self.members.borrow().ended() {
            return Err(ended.into());
        }
        let is_busy = self.engine.has_pending_calls_beside(self.own_changes);
        let drained = self.closing.is_some_and(|until| !is_busy || Instant::now() >= until);
        Ok(if drained { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn take_answers(&mut self) -> Result<(), Stop> {
        let answer = self.persister.take_answer();
        self.figures = answer.figures;
        if let Some(failure) = answer.failure {
            return Err(failure.into());
        }
        if let Some(name) = answer.snapshot {
            self.engine.handle_recorded(name);
            self.remove_snapshots();
        }
        if let Some(number) = answer.ready {
            self.engine.handle_persisted(number);
            self.watch_disk(self.figures.last_fsync, "took");
        }
        if let Some(number) = answer.node_record {
            self.members.borrow_mut().stored(number);
            self.gate.stored();
            let later = self.stages.split_off(&(number + 1));
            for (_, stage) in std::mem::replace(&mut self.stages, later) {
                self.stage_stored(stage);
            }
        }
        Ok(())
    }

    fn take_captures(&mut self) {
        for Outcome { index, result } in self.captures.take_outcomes() {
            // One that failed has said so.
            if let Ok(file) = &result {
                let (node, group, bytes) = (self.id, APPLICATION_GROUP, file.name().bytes);
                tracing::info!(node, group, index, bytes, "a snapshot of entry {index} is taken");
            }
            self.engine.handle_captured(index, result.map(|file| *file.name()));
        }
    }

    /// Files that nobody needs go. It is the disk's affair how long that takes, and no reason to wait or to stop.
    fn remove_snapshots(&mut self) {
        let (store, in_use, node) = (self.snapshots.clone(), self.engine.snapshots_in_use(), self.id);
        while self.removals.try_join_next().is_some() {}
        self.removals.spawn_blocking(move || {
            if let Err(error) = store.retain(&in_use) {
                tracing::warn!(node, "a snapshot that is not needed any more stays on the disk: {error}");
            }
        });
    }

    /// An fsync that takes a good part of an election timeout is how clusters lose their leader (rule P4). A disk that
    /// hangs is reported while it does.
    fn watch_disk(&mut self, took: Duration, verb: &str) {
        let slow = took > self.options.tuning.election_timeout / 2;
        if slow && self.may_say("slow disk") {
            let fsync_ms = took.as_millis() as u64;
            let election_timeout_ms = self.options.tuning.election_timeout.as_millis() as u64;
            tracing::warn!(
                node = self.id,
                fsync_ms,
                election_timeout_ms,
                "an fsync of the log {verb} {fsync_ms} ms, more than half of the election timeout: the disk is too slow or shared"
            );
        }
    }

    fn take_events(&mut self) {
        let mut occurred = std::mem::take(&mut self.occurred);
        self.events.take(&mut occurred);
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.pass(&mut occurred, Instant::now());
        }
        for event in occurred.drain(..) {
            self.status_is_due |= !event.is_routine();
            self.take_event(event);
        }
        self.occurred = occurred;
    }

    fn take_event(&mut self, event: Event) {
        let formed = self.members.borrow().formation.is_formed();
        match event {
            Event::Up { peer, hello, .. } => {
                tracing::info!(node = self.id, peer, "connected to node {peer}");
                self.engine.handle_route(peer);
                self.follow_address(peer, &hello.advertise);
                self.meet(peer, &hello.formation);
                // The handshake may have told of an earlier stage.
                self.tell_who_i_am(peer);
            }
            Event::Routed { peer, lost, .. } => {
                if lost {
                    self.engine.handle_route(peer);
                    self.tell_who_i_am(peer);
                }
            }
            Event::Down { peer, reason, in_order } => {
                if in_order {
                    tracing::info!(node = self.id, peer, "node {peer} left: {reason}");
                } else {
                    tracing::warn!(node = self.id, peer, "connection to node {peer} lost: {reason}");
                }
                self.engine.handle_route_lost(peer);
                self.members.borrow_mut().formation.forget(peer);
            }
            Event::Formation { from, body } => {
                self.meet(from, &body);
                // It asks, as long as it is not formed itself.
                let is_formed = Report::decode(&body).is_some_and(|report| matches!(report.stage, Stage::Formed(_)));
                if formed && !is_formed {
                    self.tell_who_i_am(from);
                }
            }
            // An unformed node neither votes nor acknowledges (rule M1).
            Event::Raft { from, group, .. }
            | Event::Propose { from, group, .. }
            | Event::Rejected { from, group, .. }
                if group != APPLICATION_GROUP =>
            {
                self.say_dropped(from, "it belongs to a group that this node does not have");
            }
            Event::Durable { group, .. } if group != APPLICATION_GROUP => {}
            Event::Raft { from, messages, .. } if formed => {
                for message in messages {
                    let (kind, spoken) = (message.msg_type, Spoken::of(&message));
                    match self.engine.handle_message(from, message) {
                        Ok(()) => self.members.borrow_mut().heard(from, spoken),
                        Err(refused) => self.say_refused(from, kind, refused),
                    }
                }
            }
            Event::Propose { from, commands, .. } => {
                for command in commands {
                    if !self.engine.handle_forwarded(from, command) {
                        self.say_dropped(from, "it forwarded a command that is not its own");
                    }
                }
            }
            Event::Rejected { from, rejected, .. } => {
                tracing::debug!(
                    node = self.id,
                    peer = from,
                    group = APPLICATION_GROUP,
                    "node {from} took no proposals: {}",
                    rejected.reason
                );
                let rejection = Rejection { boot: rejected.boot, numbers: rejected.numbers, reason: rejected.reason };
                self.engine.handle_rejection(from, &rejection);
            }
            Event::Dropped { from, group, reason } => {
                // Whoever drops is asked to say so once in a while; it need not comply.
                if self.may_say(("dropped there", from)) {
                    tracing::warn!(
                        node = self.id,
                        peer = from,
                        group,
                        "node {from} drops what this node sends: {reason}"
                    );
                }
            }
            Event::Durable { from, index, .. } => self.members.borrow_mut().acknowledged(from, index),
            Event::SnapshotReceived { from, group: APPLICATION_GROUP, message, file } if formed => {
                self.take_snapshot(from, *message, file.as_ref());
            }
            Event::SnapshotSent { to, group: APPLICATION_GROUP, index, outcome } => {
                match &outcome {
                    Ok(()) => {
                        tracing::info!(node = self.id, peer = to, index, "node {to} has the snapshot of entry {index}")
                    }
                    Err(reason) => {
                        if self.may_say(("snapshot", to, reason)) {
                            tracing::warn!(
                                node = self.id,
                                peer = to,
                                index,
                                "node {to} did not get the snapshot of entry {index}, which is tried again: {reason}"
                            );
                        }
                    }
                }
                self.engine.handle_snapshot_sent(to, outcome.is_ok());
            }
            Event::Asked { connection, request } => self.take_request(connection, request),
            Event::ToolLeft { connection } => self.admin_calls.forget(connection),
            // The gate admits none of another group, nor before the cluster is formed.
            Event::SnapshotReceived { .. } | Event::SnapshotSent { .. } => {}
            // The network has logged it; a message before the cluster is formed is early, not wrong.
            // Somebody whom this node sought out says that it is out; whoever dials can say anything.
            Event::Refused { by_us: false, dialled: true, code: RefusalCode::Removed, .. } => {
                self.members.borrow_mut().end(Ended::Removed);
            }
            Event::Refused { by_us: false, dialled: true, code: RefusalCode::Incarnation, .. } => {
                self.members.borrow_mut().end(Ended::Superseded);
            }
            Event::Refused { .. } | Event::Raft { .. } => {}
        }
    }

    /// A snapshot's file is here; raft-rs decides what becomes of it.
    fn take_snapshot(&mut self, from: NodeId, message: Message, file: &dyn SnapshotFile) {
        let (name, kind, spoken) = (*file.name(), message.msg_type, Spoken::of(&message));
        let meta = match Meta::decode(&file.head().meta) {
            Ok(meta) => meta,
            Err(error) => return self.say_dropped(from, &error.to_string()),
        };
        match self.engine.handle_snapshot(from, message, name, meta) {
            Ok(()) => {
                let SnapshotName { index, bytes, .. } = name;
                tracing::info!(
                    node = self.id,
                    peer = from,
                    index,
                    bytes,
                    "a snapshot of entry {index} came from node {from}"
                );
                self.members.borrow_mut().heard(from, spoken);
            }
            Err(refused) => self.say_refused(from, kind, refused),
        }
    }

    /// Says what a peer may have missed: how far this node is, and what its disk holds.
    fn tell_who_i_am(&mut self, peer: NodeId) {
        let report = self.members.borrow().formation.report().encode();
        self.network.send_formation(peer, &report);
        self.network.send_durable(peer, APPLICATION_GROUP, self.told_durable);
    }

    /// A message that the engine refuses: of an honest peer, it crossed another one.
    fn say_refused(&mut self, peer: NodeId, kind: i32, refused: Refused) {
        if refused.is_honest() {
            tracing::debug!(node = self.id, peer, group = APPLICATION_GROUP, kind, "a message came late: {refused}");
        } else {
            self.say_dropped(peer, &refused.to_string());
        }
    }

    /// Both sides log it, once in a while: the peer hears of it.
    fn say_dropped(&mut self, peer: NodeId, reason: &str) {
        if self.may_say(("dropped here", peer, reason)) {
            tracing::warn!(
                node = self.id,
                peer,
                group = APPLICATION_GROUP,
                "what node {peer} sends is dropped: {reason}"
            );
            self.network.send_dropped(peer, APPLICATION_GROUP, reason);
        }
    }

    fn may_say(&mut self, what: impl Hash) -> bool {
        self.quiet.may_say(what, Instant::now())
    }

    /// A peer knows best where it can be dialled; what `members` says is where to find it first (design decision 11).
    fn follow_address(&mut self, peer: NodeId, advertised: &str) {
        let known = self.network.address_of(peer);
        if !advertised.is_empty() && known.as_deref() != Some(advertised) {
            tracing::info!(node = self.id, peer, "node {peer} is reached at {advertised} from now on");
            self.network.set_peer(peer, advertised);
        }
    }

    fn meet(&mut self, peer: NodeId, report: &[u8]) {
        let Some(report) = Report::decode(report) else { return };
        let met = self.members.borrow_mut().formation.meet(peer, report.clone());
        match met {
            Ok(next) => {
                self.store_stage(next);
                let news = self.members.borrow_mut().hear_of(&report, |member| self.network.address_of(member));
                for (member, address) in news {
                    self.network.set_peer(member, &address);
                }
            }
            Err(mismatch) => {
                self.members.borrow_mut().note(&mismatch);
                match mismatch {
                    // It stops for that, and says so then.
                    Mismatch::Removed(id) | Mismatch::Superseded(id) if id == self.id => {}
                    // It hears so as well, and leaves.
                    Mismatch::Removed(id) if id == peer => tracing::debug!(node = self.id, peer, "{mismatch}"),
                    mismatch if self.may_say(("mismatch", peer, mismatch.to_string())) => {
                        tracing::error!(
                            node = self.id,
                            peer,
                            "node {peer} does not belong to this cluster: {mismatch}"
                        );
                    }
                    _ => {}
                }
            }
        }
    }

    /// Makes a stage durable.
    fn store_stage(&mut self, stage: Option<Stage>) {
        // One at a time: while a set is on its way to the disk, no other is even looked at (rule M1). What follows from
        // the peers' reports is asked for again when it is stored.
        let Some(stage) = stage.filter(|_| self.stages.is_empty()) else { return };
        let mut members = self.members.borrow_mut();
        members.record.stage = stage.clone();
        let (number, record) = members.next_record();
        self.tasks.push(Task::NodeRecord { number, record });
        self.stages.insert(number, stage);
    }

    /// Writes the node record: at once if a peer waits to be let in, else once in a while.
    fn record_when_due(&mut self, ticked: bool) {
        if ticked {
            self.note_acknowledged();
            self.tell_durable();
        }
        if self.recorded.elapsed() > RECORD_EVERY {
            self.record_if(Members::is_changed);
        } else {
            self.record_if(Members::is_due);
        }
    }

    /// What the others hold of what is committed, as far as this node knows, which leads.
    fn note_acknowledged(&mut self) {
        let status = self.engine.status();
        let mut members = self.members.borrow_mut();
        for (peer, progress) in status.peers {
            if let Some(progress) = progress {
                members.acknowledged(peer, progress.matched.min(status.commit));
            }
        }
    }

    /// The others remember what this node's disk holds, whoever leads: should it lose that, they know.
    fn tell_durable(&mut self) {
        let index = self.engine.durable_index();
        if index > std::mem::replace(&mut self.told_durable, index) {
            for peer in self.others() {
                self.network.send_durable(peer, APPLICATION_GROUP, index);
            }
        }
    }

    fn record_if(&mut self, is_needed: impl FnOnce(&Members) -> bool) {
        let mut members = self.members.borrow_mut();
        if is_needed(&members) {
            self.recorded = Instant::now();
            let (number, record) = members.next_record();
            self.tasks.push(Task::NodeRecord { number, record });
        }
    }

    fn stage_stored(&mut self, stage: Stage) {
        let founders = match &stage {
            Stage::Formed(founders) => Some(founders.clone()),
            Stage::Unformed | Stage::Prepared(_) => None,
        };
        let next = self.members.borrow_mut().formation.stored(stage);
        self.status_is_due = true;
        self.tell_all();
        if let Some(founders) = founders {
            self.engine.handle_formed(&founders);
            tracing::info!(node = self.id, "the cluster {:?} is formed", self.options.cluster);
        }
        self.store_stage(next);
    }

    fn take_inbox(&mut self) -> Result<(), Stop> {
        let mut inbox = std::mem::take(&mut self.inbox);
        self.port.inbox.take(&mut inbox);
        // A request may rest on the cursor as its sender saw it: what is read here is at least that.
        self.engine.handle_application_applied(self.port.cursor.applied());
        for Proposal { token, command, deadline_ns } in inbox.proposals.drain(..) {
            self.engine.handle_proposal(token, command, deadline_ns.unwrap_or(u64::MAX));
        }
        for request in inbox.requests.drain(..) {
            match request {
                Request::ReadBarrier { token, deadline_ns } => {
                    self.engine.handle_read(Reader { token, deadline_ns: deadline_ns.unwrap_or(u64::MAX) });
                }
                Request::ReadApplied { token, after, max_bytes } => {
                    let result = self.engine.read_applied(after, max_bytes)?;
                    self.completions.push(Completion::Range { token, result });
                }
                Request::Snapshot { token, deadline_ns } => {
                    self.engine.handle_snapshot_call(token, deadline_ns.unwrap_or(u64::MAX));
                }
                Request::TransferLeader { token, to, deadline_ns } => {
                    self.engine.handle_transfer(token, to, deadline_ns.unwrap_or(u64::MAX));
                }
                Request::Change { token, changes, deadline_ns } => {
                    if changes == [Change::Remove(self.id)] {
                        self.removing.insert(token);
                    }
                    self.change_members(token, &changes, deadline_ns.unwrap_or(u64::MAX));
                }
                Request::Close { drain } => {
                    // Whoever closes at once has no time to hand over.
                    if let Some(share_ns) = port::hand_over_ns(drain) {
                        self.engine.handle_leaving(clock::boottime_ns().saturating_add(share_ns));
                    }
                    let until = Instant::now() + drain;
                    self.closing = Some(self.closing.map_or(until, |earlier| earlier.min(until)));
                }
                #[cfg(test)]
                Request::Unguarded(message) => self.engine.step_unguarded(*message),
            }
        }
        self.inbox = inbox;
        Ok(())
    }

    fn application_hangs(&self) -> bool {
        self.options.faults.as_ref().is_some_and(|faults| faults.hangs(self.id))
    }

    fn tick(&mut self) -> bool {
        let now = Instant::now();
        if now < self.next_tick {
            return false;
        }
        // A thread that was stopped makes up for no ticks: what the others sent meanwhile is looked at first.
        self.next_tick = (self.next_tick + self.options.tuning.tick()).max(now);
        self.watch_disk(self.persister.busy_for(), "has been under way for");
        self.ticks += 1;
        // Why there is no connection to a peer changes without an event.
        self.status_is_due |= self.ticks % Tuning::HEARTBEAT_TICKS == 0;
        if self.members.borrow().formation.is_formed() {
            self.engine.handle_tick();
            self.look_after_members();
        } else {
            self.press_for_formation();
        }
        true
    }

    fn press_for_formation(&mut self) {
        if self.reported.elapsed() > REPORT_EVERY {
            self.reported = Instant::now();
            for peer in self.others() {
                self.tell_who_i_am(peer);
            }
        }
        if self.warned_unformed.elapsed() > WARN_EVERY {
            self.warned_unformed = Instant::now();
            tracing::warn!(node = self.id, "{}", self.who_is_missing());
        }
    }

    /// Why an unformed cluster is not formed yet.
    fn who_is_missing(&self) -> String {
        let missing = self.members.borrow().formation.missing();
        let missing = missing.into_iter().filter(|peer| *peer != self.id).map(|peer| {
            let trouble =
                self.trouble(peer).unwrap_or_else(|| "connected, and has not stored who the members are".into());
            format!("node {peer}: {trouble}")
        });
        let missing = missing.collect::<Vec<_>>().join("; ");
        if missing.is_empty() {
            return "the cluster is being formed".into();
        }
        format!("the cluster is not formed yet, which takes all its members once; still missing: {missing}")
    }

    /// Why there is no connection to `peer`; `None` if there is one.
    fn trouble(&self, peer: NodeId) -> Option<String> {
        if self.network.connected(peer) {
            return None;
        }
        Some(self.network.trouble(peer).unwrap_or_else(|| "no connection yet".into()))
    }

    /// Why there is no leader, or no connection to it.
    fn obstacle(&self) -> Option<String> {
        if !self.members.borrow().formation.is_formed() {
            return Some(self.who_is_missing());
        }
        let peers = self.others().into_iter();
        let trouble = peers.filter_map(|peer| Some(format!("node {peer}: {}", self.trouble(peer)?)));
        let trouble = trouble.collect::<Vec<_>>().join("; ");
        match (trouble.is_empty(), self.engine.leader().0) {
            (true, _) => None,
            (false, None) => Some(format!("there was no leader; not connected to {trouble}")),
            (false, Some(leader)) => Some(format!("node {leader} leads; not connected to {trouble}")),
        }
    }

    fn run_effect(&mut self, effect: Effect) {
        if let Effect::Changed { token: membership::OWN, .. } | Effect::Failed { token: membership::OWN, .. } = effect {
            self.own_changes = self.own_changes.saturating_sub(1);
            return;
        }
        let Some(effect) = self.answer_tool(effect) else { return };
        if let Effect::Changed { token, .. } | Effect::Failed { token, .. } = effect {
            self.removing.remove(&token);
        }
        match effect {
            Effect::Send(message) => {
                if !self.network.send_raft(message.to, APPLICATION_GROUP, &message) {
                    self.engine.handle_unreachable(message.to);
                }
            }
            Effect::Persist(persist) => self.tasks.push(Task::Ready(persist)),
            Effect::SendSnapshot { name, message } => self.send_snapshot(&name, &message),
            Effect::Snapshot { token, index } => self.completions.push(Completion::Snapshot { token, index }),
            Effect::Forward { to, command } => {
                if !self.network.send_propose(to, APPLICATION_GROUP, &command) {
                    let header = command.header();
                    let (boot, numbers) = (header.boot, vec![header.number]);
                    self.engine.handle_rejection(to, &Rejection { boot, numbers, reason: String::new() });
                }
            }
            Effect::Reject { to, rejection } => {
                let (leader, term) = self.engine.leader();
                let leader = leader.unwrap_or(0);
                let Rejection { boot, numbers, reason } = rejection;
                let rejected = transport::Rejected { boot, numbers, leader, term, reason };
                self.network.send_rejected(to, APPLICATION_GROUP, &rejected);
            }
            Effect::Failed { token, failure } => self.completions.push(Completion::Failed { token, failure }),
            Effect::Barrier { token, index } => self.completions.push(Completion::Barrier { token, index }),
            Effect::Transferred { token, leader } => self.completions.push(Completion::Transferred { token, leader }),
            Effect::Changed { token, index, ids } => {
                self.status_is_due = true;
                self.completions.push(Completion::Changed { token, index, ids });
            }
            Effect::Membership => self.follow_members(),
            Effect::Leadership(leadership) => {
                self.status_is_due = true;
                let (term, leader) = (leadership.term, leadership.leader);
                let (node, group) = (self.id, APPLICATION_GROUP);
                match leader {
                    Some(leader) => tracing::info!(node, group, term, leader, "node {leader} leads in term {term}"),
                    None => tracing::info!(node, group, term, "no leader in term {term}"),
                }
                self.completions.push(Completion::Leadership(leadership));
            }
        }
    }

    fn send_snapshot(&mut self, name: &SnapshotName, message: &Message) {
        let (peer, index) = (message.to, name.index);
        match self.snapshots.open(name) {
            Ok(file) => {
                tracing::info!(
                    node = self.id,
                    peer,
                    group = APPLICATION_GROUP,
                    index,
                    bytes = name.bytes,
                    "node {peer} needs more than the log holds: sending it the snapshot of entry {index}"
                );
                self.network.send_snapshot(peer, APPLICATION_GROUP, message, file);
            }
            Err(error) => {
                if self.may_say(("snapshot", error.to_string())) {
                    tracing::error!(
                        node = self.id,
                        peer,
                        "the snapshot that node {peer} needs cannot be read: {error}"
                    );
                }
                self.engine.handle_snapshot_sent(peer, false);
            }
        }
    }

    /// Hands out what is applied, as long as the application keeps up (rule C1).
    fn hand_out(&mut self) -> Result<(), Stop> {
        let before = self.port.completions.unapplied_bytes();
        let mut unapplied = before;
        self.more = self.engine.has_more();
        while unapplied < self.options.tuning.max_unapplied_bytes {
            // Reading back from the log takes time, and peers must not wait for it.
            if unapplied - before > APPLY_BYTES_PER_ROUND {
                self.more = true;
                break;
            }
            match self.engine.hand_out(APPLY_BYTES)? {
                None => break,
                Some(HandOut::Apply(batch)) => {
                    unapplied += batch.bytes;
                    let (entries, through, bytes) = (batch.entries, batch.through, batch.bytes);
                    self.completions.push(Completion::Apply { entries, through, bytes });
                }
                Some(HandOut::Capture(Marker { index, term, meta })) => {
                    let capture = self.captures.begin(APPLICATION_GROUP, index, term, meta.encode());
                    self.completions.push(Completion::Capture(capture));
                }
                Some(HandOut::Restore(name)) => {
                    let file = self.snapshots.open(&name)?;
                    self.completions.push(Completion::Restore { file });
                }
            }
        }
        Ok(())
    }

    /// Ends both threads' work in bounded time. After a failure it waits less, and writes nothing more.
    async fn shut_down(mut self, in_order: bool) {
        if in_order {
            self.tell_durable();
            let _ = tokio::time::timeout(GOODBYE, self.network.part()).await;
        }
        self.captures.abandon();
        self.network.shutdown();
        let _ = tokio::time::timeout(NETWORK_STOP, self.network.join()).await;
        if in_order {
            self.note_acknowledged();
            self.record_if(Members::is_changed);
            self.persister.write(&mut self.tasks);
        }
        self.persister.stop(if in_order { End::InOrder } else { End::Abandoned });
        // The directory is free again when the threads have ended. A disk that hangs is not waited for: the thread ends
        // with its fsync, and holds nothing that anybody waits for.
        let patience = Instant::now() + if in_order { Duration::from_secs(2) } else { NETWORK_STOP };
        while !(self.persister.is_stopped() && self.captures.is_idle()) && Instant::now() < patience {
            let _ = tokio::time::timeout(Duration::from_millis(5), self.wake.notified()).await;
        }
        let removed = async { while self.removals.join_next().await.is_some() {} };
        let _ = tokio::time::timeout_at(patience, removed).await;
    }
}

#[cfg(test)]
mod tests;
