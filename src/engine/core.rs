//! The engine itself: raft-rs, and everything round it that must be right. Snapshots are in `core/installs.rs`, figures in
//! `core/status.rs`, changes of the members in `core/members.rs`.

mod installs;
mod members;
mod replicated;
mod status;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType};
use raft::{RawNode, StateRole};

use super::admission::{self, Refused};
use super::applier::{Applier, HandOut, Origin};
use super::changes::Changes;
use super::command::{self, Command};
use super::formation::Identities;
use super::log_view::LogView;
use super::membership::Membership;
use super::patience::{self, Patience};
use super::persist::{Persist, PersistQueue};
use super::proposals::Proposals;
use super::reads::{Reader, Reads};
use super::snapshot::Meta;
use super::snapshots::{SnapshotPolicy, Snapshots};
use super::stragglers::Stragglers;
use super::telling::Telling;
use super::time::{Now, Stamper};
use super::transfer::Transfers;
use super::{Applied, Effect, Failure, Fault, Leadership, NodeId, Rejection, Token, APPLICATION_GROUP, BOOTSTRAP};
use crate::mutants::{self, Mutant};
use crate::storage::snapshot::SnapshotName;
use crate::storage::{GroupState, LogReader};

pub use self::replicated::Replicated;
pub use self::status::{EngineStatus, PeerProgress};

/// What raft-rs hands out at once for application.
const COMMITTED_BYTES_MAX: u64 = 8 << 20;

/// Readies taken in one poll; the rest waits until the world outside has looked round.
const READIES_PER_POLL: usize = 64;
/// Ticks after which a first election that got no answer is tried again.
const URGE_TICKS: usize = 8;

/// What the engine is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub id: NodeId,
    /// This start's boot number (rule S2).
    pub boot: u64,
    /// Drawn at this start (rule S2).
    pub nonce: u64,
    /// The voters at the bootstrap.
    pub voters: Vec<NodeId>,
    /// Their identities, where the cluster is formed.
    pub identities: Identities,
    /// Ticks without a leader before an election; drawn between this and twice this.
    pub election_ticks: usize,
    /// Random at every start, so that two nodes do not campaign in step again and again: election timeouts are drawn
    /// from it.
    pub seed: u64,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Largest payload of a command.
    pub max_entry_bytes: u64,
    /// Bytes of entries in one message to a peer.
    pub max_message_bytes: u64,
    /// Messages on their way to a peer before it has acknowledged any.
    pub max_inflight_messages: usize,
    /// Bytes of uncommitted entries in a leader's log.
    pub max_uncommitted_bytes: u64,
    /// Bytes of applied commands kept for the application before they are read from the log again.
    pub max_fresh_bytes: usize,
    /// Bytes of entries kept in memory for peers and readers.
    pub entry_cache_bytes: usize,
    /// When snapshots are taken.
    pub snapshots: SnapshotPolicy,
}

/// What an engine goes on from.
pub struct Opening {
    /// What the log held.
    pub state: GroupState,
    /// The snapshot that the log names.
    pub snapshot: Option<(SnapshotName, Meta)>,
    /// (index, term) of the last entry that the application's state machine holds durably by itself (rule D2).
    pub durable: Option<(u64, u64)>,
    /// The cluster has just been formed, so that it elects a leader at once.
    pub is_fresh: bool,
}

/// A forwarded command at the leader.
struct Forwarded {
    from: NodeId,
    command: Command,
}

/// One node's part in one Raft group.
///
/// Its methods are of three kinds. `handle_*` take in what happened in the world outside, and calls of the
/// application; they are cheap and change nothing outside. [`Engine::poll`] does the work, and must follow them before the
/// world outside waits again; its effects are to be run in order. The rest are questions.
pub struct Engine {
    id: NodeId,
    pub(super) raw: RawNode<LogView>,
    patience: Patience,
    persist: PersistQueue,
    /// The Ready with the newest term or vote, until it is durable.
    term_unsaved: Option<u64>,
    /// The commit index moved in memory only: raft-rs does not need it on disk, a restart is quicker with it.
    commit_unsaved: bool,
    applier: Applier,
    proposals: Proposals,
    forwarded: Vec<Forwarded>,
    /// A proposal was refused: the next attempts wait for a tick, so that two nodes do not play ping-pong.
    hold_proposals: bool,
    reads: Reads,
    snapshots: Snapshots,
    stragglers: Stragglers,
    transfers: Transfers,
    changes: Changes,
    telling: Telling,
    /// The Ready in which the members changed last, until it is durable.
    members_unsaved: Option<u64>,
    /// A snapshot is being installed by this Ready; raft-rs may not hear that it is applied before it is durable.
    installing: Option<u64>,
    /// Calls whose entry or barrier stands, waiting for the application's cursor: (index, reader).
    awaiting_application: VecDeque<(u64, Reader)>,
    /// No deadline among them is earlier.
    awaiting_deadline_ns: u64,
    application_applied: u64,
    stamper: Stamper,
    leadership: Leadership,
    routes: BTreeSet<NodeId>,
    max_entry_bytes: u64,
    max_message_bytes: u64,
    /// The last poll left something to do.
    has_more: bool,
    /// Ticks for which a newly formed cluster is urged to elect its first leader.
    urge_ticks: usize,
    /// Why there is no leader, as the world outside knows it.
    obstacle: Option<String>,
    effects: Vec<Effect>,
}

impl Engine {
    /// Goes on where the log ends.
    pub fn new(
        settings: &Settings,
        opening: Opening,
        reader: Arc<dyn LogReader>,
        logger: &slog::Logger,
    ) -> Result<Self, Fault> {
        let Opening { mut state, snapshot, durable, is_fresh } = opening;
        let begin = state.truncated.0;
        if begin > BOOTSTRAP.0 && snapshot.as_ref().is_none_or(|(name, _)| name.index < begin) {
            return Err(Fault::NoSnapshot { begin });
        }
        // What is in a snapshot, or in a durable state machine, was committed, whatever the log knows of it (rule D2).
        let known = snapshot.as_ref().map_or(0, |(name, _)| name.index);
        state.hard_state.commit = state.hard_state.commit.max(known).max(durable.map_or(0, |(index, _)| index));
        let (commit, last) = (state.hard_state.commit, state.last_index);
        check_durable(&state, durable)?;
        if commit < begin || commit > last {
            return Err(Fault::Commit { commit, begin, last });
        }
        let bootstrap = || ConfState { voters: settings.voters.clone(), ..Default::default() };
        let conf_state = snapshot.as_ref().map_or_else(bootstrap, |(_, meta)| meta.conf_state.clone());
        let newest = snapshot.as_ref().map(|(name, meta)| (*name, meta.conf_state.clone()));
        let timestamp_ns = snapshot.as_ref().map_or(0, |(_, meta)| meta.timestamp_ns);
        let applied = newest.as_ref().map_or(begin, |(name, _)| name.index);
        let mut log = LogView::new(APPLICATION_GROUP, state, conf_state, reader, settings.entry_cache_bytes);
        if let Some((name, conf_state)) = &newest {
            log.set_snapshot(*name, conf_state.clone());
        }
        let stamper = Stamper::new(last_stamp(&log)?.max(timestamp_ns));
        let config = raft::Config {
            id: settings.id,
            election_tick: settings.election_ticks,
            min_election_tick: settings.election_ticks,
            max_election_tick: patience::RAFT_DRAWS_BELOW,
            heartbeat_tick: settings.heartbeat_ticks,
            // Everything behind the snapshot is replayed, with its members to begin with (rule C4). It is never beyond the
            // commit index, on which raft-rs panics.
            applied,
            max_size_per_msg: settings.max_message_bytes,
            max_inflight_msgs: settings.max_inflight_messages,
            check_quorum: true,
            pre_vote: true,
            read_only_option: raft::ReadOnlyOption::Safe,
            max_uncommitted_size: settings.max_uncommitted_bytes,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            skip_bcast_commit: true, // `telling`
            ..Default::default()
        };
        let first_voter = settings.voters.iter().min() == Some(&settings.id);
        let alone = settings.voters == [settings.id];
        let own = Origin { id: settings.id, boot: settings.boot, nonce: settings.nonce };
        let founded = Membership::founded(&settings.voters, &settings.identities);
        let mut applier = Applier::new(own, begin, settings.max_fresh_bytes, founded);
        applier.resume(snapshot, durable.map(|(index, _)| index))?;
        Ok(Self {
            id: settings.id,
            raw: RawNode::new(&config, log, logger)?,
            patience: Patience::new(settings.seed, settings.election_ticks),
            persist: PersistQueue::default(),
            term_unsaved: None,
            commit_unsaved: false,
            applier,
            proposals: Proposals::new(own, settings.election_ticks),
            forwarded: Vec::new(),
            hold_proposals: false,
            reads: Reads::new(settings.id, settings.boot, settings.election_ticks),
            snapshots: Snapshots::new(settings.snapshots, begin, newest),
            stragglers: Stragglers::new(settings.election_ticks),
            transfers: Transfers::new(settings.id, settings.election_ticks),
            changes: Changes::new(settings.election_ticks),
            telling: Telling::new(settings.id),
            members_unsaved: None,
            installing: None,
            awaiting_application: VecDeque::new(),
            awaiting_deadline_ns: u64::MAX,
            application_applied: begin,
            stamper,
            leadership: Leadership::default(),
            routes: BTreeSet::new(),
            max_entry_bytes: settings.max_entry_bytes,
            max_message_bytes: settings.max_message_bytes,
            has_more: false,
            urge_ticks: if alone || (is_fresh && first_voter) { 2 * settings.election_ticks } else { 0 },
            obstacle: None,
            effects: Vec::new(),
        })
    }

    /// A tick of the clock that elections and heartbeats are counted in.
    pub fn handle_tick(&mut self) {
        self.hold_proposals = false;
        self.proposals.tick();
        self.reads.tick();
        self.snapshots.tick();
        self.stragglers.tick(self.raw.raft.prs());
        self.transfers.tick(self.raw.raft.raft_log.committed);
        self.tick_members();
        if self.commit_unsaved {
            self.commit_unsaved = false;
            let hard_state = Some(self.raw.store().hard_state().clone());
            self.effects.push(Effect::Persist(Persist { hard_state, ..Default::default() }));
        }
        let raft = &self.raw.raft;
        if self.cannot_campaign() {
            return;
        }
        // raft-rs campaigns on learners, too.
        if self.urge_ticks > 0 && raft.leader_id == raft::INVALID_ID && raft.promotable() {
            self.urge_ticks -= 1;
            // A peer that was not formed yet did not hear the last attempt; one that is under way is left alone.
            let again = raft.state == StateRole::PreCandidate && self.urge_ticks % URGE_TICKS == 0;
            if raft.state == StateRole::Follower || again {
                // Refused only where an unapplied membership change is in the log; the ordinary timeout goes on then.
                let _ = self.raw.campaign();
            }
        }
        self.patience.renew(&mut self.raw.raft);
        self.raw.tick();
    }

    /// A message of the authenticated peer `from`.
    pub fn handle_message(&mut self, from: NodeId, message: Message) -> Result<(), Refused> {
        if self.applier.membership().retired.contains(from) {
            return Err(Refused::Stranger);
        }
        admission::admit(&self.raw, from, &message)?;
        if message.msg_type == MessageType::MsgTimeoutNow as i32 && self.cannot_campaign() {
            return Err(Refused::Installing);
        }
        // Errors of `step` say that a message came too late to matter.
        let _ = self.raw.step(message);
        Ok(())
    }

    /// A message past the guard.
    #[cfg(test)]
    pub fn step_unguarded(&mut self, message: Message) {
        let _ = self.raw.step(message);
    }

    /// Appends as the leader, past the guards.
    #[cfg(test)]
    pub fn append_for_test(&mut self, entry: Entry) -> bool {
        self.append_entries(vec![entry])
    }

    /// As if the others had been left long enough without the commit index; whether they had been.
    #[cfg(test)]
    pub fn hurry(&mut self) -> bool {
        let waits = self.telling.due_ns() < u64::MAX;
        if waits {
            self.telling.hurry();
        }
        waits
    }

    /// The persist thread has written everything up to this Ready.
    pub fn handle_persisted(&mut self, number: u64) {
        self.persist.written(number);
    }

    /// A command of this node's application.
    pub fn handle_proposal(&mut self, token: Token, command: Command, deadline_ns: u64) {
        self.proposals.add(token, command, deadline_ns);
    }

    /// A command that `from` forwarded to this node as the leader. Returns whether it is really of that origin.
    pub fn handle_forwarded(&mut self, from: NodeId, command: Command) -> bool {
        let genuine = command.header().origin == from && self.raw.raft.prs().get(from).is_some();
        if genuine && command.payload().len() as u64 > self.max_entry_bytes {
            let reason = "the leader's Config.max_entry_bytes is smaller: set it to the same value on all nodes";
            self.reject(vec![Forwarded { from, command }], reason);
        } else if genuine {
            self.forwarded.push(Forwarded { from, command });
        }
        genuine
    }

    /// `from` did not append commands that this node forwarded to it.
    pub fn handle_rejection(&mut self, from: NodeId, rejection: &Rejection) {
        for number in &rejection.numbers {
            self.proposals.refused(rejection.boot, *number, from);
        }
        if !rejection.reason.is_empty() {
            self.changes.set_obstacle(Some(rejection.reason.clone()));
        }
        // A former leader's refusal says nothing of the one that leads now.
        self.hold_proposals |= self.raw.raft.leader_id == from;
    }

    /// A call of the application for `to` as leader in the place of this node, or for whoever is furthest.
    pub fn handle_transfer(&mut self, token: Token, to: Option<NodeId>, deadline_ns: u64) {
        let known = self.transfers.ask(&self.raw, &self.routes, (token, deadline_ns), to);
        self.effects.extend(known);
    }

    /// The node is to be closed: if it leads, it hands over first. [`Self::has_pending_calls`] until that is done, or given
    /// up at `deadline_ns`.
    pub fn handle_leaving(&mut self, deadline_ns: u64) {
        self.transfers.leave(deadline_ns);
    }

    /// A barrier of this node's application.
    pub fn handle_read(&mut self, reader: Reader) {
        self.reads.add(reader);
    }

    /// The application's state machine has applied through this index.
    pub fn handle_application_applied(&mut self, index: u64) {
        self.application_applied = index;
        while self.awaiting_application.front().is_some_and(|(at, _)| *at <= index) {
            self.awaiting_application.pop_front();
        }
    }

    /// There is a connection to this peer, perhaps another one than before.
    pub fn handle_route(&mut self, peer: NodeId) {
        self.handle_route_lost(peer);
        self.routes.insert(peer);
    }

    /// There is no connection to this peer any more; what was on its way may be lost.
    pub fn handle_route_lost(&mut self, peer: NodeId) {
        self.routes.remove(&peer);
        self.proposals.route_lost(peer);
        self.transfers.route_lost(&mut self.raw, peer);
        if self.raw.raft.leader_id == peer {
            self.reads.restart_rounds();
        }
        self.handle_unreachable(peer);
    }

    /// A message could not be sent: raft-rs probes before it sends more.
    pub fn handle_unreachable(&mut self, peer: NodeId) {
        self.raw.report_unreachable(peer);
    }

    /// Why this node has no leader, or no connection to it, as far as the world outside knows: one sentence, for the
    /// calls whose deadlines pass. Worth finding out only when [`Self::next_deadline_ns`] has come.
    pub fn handle_obstacle(&mut self, obstacle: Option<String>) {
        self.obstacle = obstacle;
    }

    /// Does the work. Returns what the world outside is to do, in order.
    pub fn poll(&mut self, now: Now) -> Result<Vec<Effect>, Fault> {
        self.expire(now);
        self.has_more = true;
        for _ in 0..READIES_PER_POLL {
            if let Some((number, messages)) = self.persist.pop_durable() {
                self.raw.on_persist_ready(number);
                self.raw.mut_store().mark_durable(number);
                self.effects.extend(messages.into_iter().map(send));
                self.term_unsaved.take_if(|ready| *ready <= number);
                self.finish_install(number);
                self.publish_members(number);
            }
            self.hand_over();
            self.send_proposals(now);
            self.append_changes(now);
            self.start_read_round();
            self.telling.work(&mut self.raw, now);
            if !self.raw.has_ready() {
                self.has_more = false;
                break;
            }
            self.take_ready()?;
        }
        self.mark_snapshot();
        self.publish_leadership();
        Ok(std::mem::take(&mut self.effects))
    }

    /// The known leader, and the term.
    pub fn leader(&self) -> (Option<NodeId>, u64) {
        (self.leadership.leader, self.leadership.term)
    }

    /// Everything committed up to this index is on this node's disk, and is never cut off again.
    pub fn durable_index(&self) -> u64 {
        let log = &self.raw.raft.raft_log;
        log.persisted.min(log.committed)
    }

    /// There was more to do than one poll should: poll again when what came in meanwhile has been looked at.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// What the application is to do next, about `max_bytes` of commands; `None` if it has been handed everything.
    pub fn hand_out(&mut self, max_bytes: usize) -> Result<Option<HandOut>, Fault> {
        self.applier.hand_out(self.raw.store(), max_bytes)
    }

    /// Applied commands after index `after`, up to the application's cursor: those, and the index through which they are
    /// complete. `Err` tells the first index after which can still be read.
    pub fn read_applied(&self, after: u64, max_bytes: u64) -> Result<Result<(Vec<Applied>, u64), u64>, Fault> {
        let begin = self.raw.store().truncated_index();
        if after < begin && begin > super::BOOTSTRAP.0 {
            return Ok(Err(begin));
        }
        let after = after.max(begin);
        // A state machine that is durable itself may be ahead of what this start has applied.
        let end = self.application_applied.min(self.applier.applied());
        if after >= end {
            return Ok(Ok((Vec::new(), after)));
        }
        self.applier.read_again(self.raw.store(), after, end, max_bytes).map(Ok)
    }

    /// The moment at which there is something to do even if nothing happens, in nanoseconds of boottime, or `u64::MAX`.
    pub fn wakes_at_ns(&self) -> u64 {
        self.next_deadline_ns().min(self.telling.due_ns())
    }

    /// The moment at which a deadline passes, in nanoseconds of boottime, or `u64::MAX`.
    pub fn next_deadline_ns(&self) -> u64 {
        let calls = self.proposals.next_deadline_ns().min(self.reads.next_deadline_ns());
        let others = self.snapshots.next_deadline_ns().min(self.transfers.next_deadline_ns());
        let others = others.min(self.changes.next_deadline_ns());
        calls.min(self.awaiting_deadline_ns).min(others)
    }

    /// Calls of the application that wait for something, or a hand-over of a leader that leaves.
    pub fn has_pending_calls(&self) -> bool {
        self.has_pending_calls_beside(0)
    }

    /// The same beside so many changes of the members that nobody waits for.
    pub fn has_pending_calls_beside(&self, own: usize) -> bool {
        let waits = !self.awaiting_application.is_empty() || !self.snapshots.is_idle() || !self.transfers.is_idle();
        let waits = waits || !self.changes.joint.is_empty();
        self.proposals.len() > own || !self.reads.is_empty() || waits
    }

    /// Ends every call of the application; the node closes.
    pub fn close(&mut self) -> Vec<Effect> {
        let effects = &mut self.effects;
        let mut failed = |token, failure| effects.push(Effect::Failed { token, failure });
        self.proposals.close(&mut failed);
        self.reads.close(&mut failed);
        self.snapshots.close(&mut failed);
        self.transfers.close(&mut failed);
        for waiter in self.changes.joint.drain(..) {
            failed(waiter.token, Failure::Closed);
        }
        for (_, reader) in self.awaiting_application.drain(..) {
            failed(reader.token, Failure::Closed);
        }
        std::mem::take(&mut self.effects)
    }

    #[cfg(feature = "sim")]
    pub(super) fn kept_entries(&self) -> u64 {
        self.application_applied.saturating_sub(self.raw.store().truncated_index())
    }

    #[cfg(feature = "sim")]
    pub(super) fn observed(&self) -> (NodeId, &Applier, &Proposals) {
        (self.id, &self.applier, &self.proposals)
    }

    /// Why the log could not be read, if that is what made raft-rs panic.
    pub fn take_read_failure(&self) -> Option<String> {
        self.raw.store().take_failure()
    }

    /// What calls were waiting for: for the proposals that were not sent, and for the reads.
    fn obstacle(&self) -> [Cow<'static, str>; 2] {
        let known = self.obstacle.clone().map(Cow::Owned);
        match self.raw.raft.leader_id {
            raft::INVALID_ID => {
                let asks = "there was no leader: is a majority of the members running, and can they reach each other?";
                let reason = known.unwrap_or(Cow::Borrowed(asks));
                [reason.clone(), reason]
            }
            leader if leader != self.id && !self.routes.contains(&leader) => {
                let reason = known.unwrap_or(Cow::Borrowed("there is no connection to the leader"));
                [reason.clone(), reason]
            }
            _ => ["the leader took no proposals".into(), "a majority did not answer in time".into()],
        }
    }

    fn expire(&mut self, now: Now) {
        if now.boottime_ns < self.next_deadline_ns() {
            return;
        }
        let [unsent, unread] = self.obstacle();
        self.let_go_of_changes();
        let unfit = self.changes.obstacle().map(str::to_owned);
        let effects = &mut self.effects;
        let mut failed = |token, failure| effects.push(Effect::Failed { token, failure });
        let reason = |command: &Command| match &unfit {
            Some(unfit) if command.is_membership() => unfit.clone(),
            _ => unsent.to_string(),
        };
        let late = |command: &Command| match &unfit {
            Some(unfit) if command.is_membership() => Failure::ChangeTimedOut { reason: unfit.clone() },
            _ => Failure::TimedOut,
        };
        self.proposals.expire(now.boottime_ns, reason, late, &mut failed);
        self.reads.expire(now.boottime_ns, &unread, &mut failed);
        self.snapshots.expire(now.boottime_ns, &mut failed);
        self.transfers.expire(&mut self.raw, now.boottime_ns, &mut failed);
        self.changes.joint.retain(|waiter| {
            let late = waiter.deadline_ns <= now.boottime_ns;
            if late {
                failed(waiter.token, Failure::TimedOut);
            }
            !late
        });
        if now.boottime_ns < self.awaiting_deadline_ns {
            return;
        }
        let cursor = self.application_applied;
        self.awaiting_application.retain(|(index, reader)| {
            let late = reader.deadline_ns <= now.boottime_ns;
            if late && *index > cursor {
                failed(reader.token, Failure::TimedOut);
            }
            !late
        });
        let deadlines = self.awaiting_application.iter().map(|(_, reader)| reader.deadline_ns);
        self.awaiting_deadline_ns = deadlines.min().unwrap_or(u64::MAX);
    }

    /// Leadership goes on its way, or has come to where it goes.
    fn hand_over(&mut self) {
        // Whoever hears of the end finds the new leader known.
        self.publish_leadership();
        self.transfers.work(&mut self.raw, &self.routes, &mut self.effects);
    }

    fn send_proposals(&mut self, now: Now) {
        let (role, term, leader) = (self.raw.raft.state, self.raw.raft.term, self.raw.raft.leader_id);
        if role == StateRole::Leader {
            self.stamper.lead(term, now);
            self.append_forwarded(now);
            self.append_own(now);
            return;
        }
        let refused = std::mem::take(&mut self.forwarded);
        self.reject(refused, "this node is not the leader");
        if !self.hold_proposals && leader != raft::INVALID_ID && self.routes.contains(&leader) {
            let effects = &mut self.effects;
            self.proposals.send_due(Some(leader), term, |command| {
                effects.push(Effect::Forward { to: leader, command });
                true
            });
        }
    }

    fn append_own(&mut self, now: Now) {
        while self.proposals.due() > 0 && !self.hold_proposals {
            let (mut commands, mut bytes, limit) = (Vec::new(), 0, self.max_message_bytes);
            let (changes, id) = (&mut self.changes, self.id);
            self.proposals.send_due(None, self.raw.raft.term, |command| {
                if command.is_membership() {
                    return changes.hold(id, command);
                }
                let room = bytes < limit;
                if room {
                    bytes += command.as_bytes().len() as u64;
                    commands.push(command);
                }
                room
            });
            if commands.is_empty() {
                // Changes of the members, which are held; or more of them than can be.
                return;
            }
            let numbers = commands.iter().map(|command| command.header().number).collect::<Vec<_>>();
            if !self.append(commands, now) {
                self.proposals.not_appended(&numbers);
                self.hold_proposals = true;
            }
        }
    }

    fn append_forwarded(&mut self, now: Now) {
        let forwarded = std::mem::take(&mut self.forwarded);
        let (changes, forwarded) =
            forwarded.into_iter().partition::<Vec<_>, _>(|forwarded| forwarded.command.is_membership());
        let (_, too_many) = changes
            .into_iter()
            .map(|Forwarded { from, command }| (self.changes.hold(from, command.clone()), Forwarded { from, command }))
            .partition::<Vec<_>, _>(|(is_held, _)| *is_held);
        self.reject(
            too_many.into_iter().map(|(_, forwarded)| forwarded).collect(),
            "too many changes of the members wait",
        );
        if forwarded.is_empty() {
            return;
        }
        let origins = forwarded.iter().map(|it| (it.from, it.command.header())).collect::<Vec<_>>();
        let first = self.raw.raft.raft_log.last_index() + 1;
        if self.append(forwarded.into_iter().map(|it| it.command).collect(), now) {
            self.telling.appended_for_others(first..=self.raw.raft.raft_log.last_index());
        } else {
            let dropped = origins.into_iter().map(|(from, header)| (from, header.boot, header.number));
            self.reject_numbers(dropped, "the leader takes no proposals at the moment");
        }
    }

    /// Appends commands as the leader, all in one message: one append, one message a peer.
    fn append(&mut self, commands: Vec<Command>, now: Now) -> bool {
        let stamp_ns = self.stamper.stamp(self.raw.raft.term, now);
        let entries = commands.into_iter().map(|mut command| {
            command.set_time(stamp_ns, now.wall_ns);
            Entry { data: command.into_bytes(), ..Default::default() }
        });
        self.append_entries(entries.collect())
    }

    fn append_entries(&mut self, entries: Vec<Entry>) -> bool {
        let mut message = Message { from: self.id, entries, ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        // Dropped: a leader transfer is under way, this node was removed, or too much is uncommitted.
        let is_appended = self.raw.raft.step(message).is_ok();
        if is_appended {
            self.telling.appended(&self.raw);
        }
        is_appended
    }

    fn reject(&mut self, refused: Vec<Forwarded>, reason: &str) {
        let numbers = refused.iter().map(|it| (it.from, it.command.header().boot, it.command.header().number));
        self.reject_numbers(numbers, reason);
    }

    fn reject_numbers(&mut self, refused: impl IntoIterator<Item = (NodeId, u64, u64)>, reason: &str) {
        let mut rejections = BTreeMap::<(NodeId, u64), Vec<u64>>::new();
        for (from, boot, number) in refused {
            rejections.entry((from, boot)).or_default().push(number);
        }
        self.effects.extend(rejections.into_iter().map(|((to, boot), numbers)| Effect::Reject {
            to,
            rejection: Rejection { boot, numbers, reason: reason.to_string() },
        }));
    }

    /// A read request to a leader that has committed nothing in its term vanishes in raft-rs, and so does one without
    /// a leader: it is made only where it will be answered, unless messages are lost.
    fn start_read_round(&mut self) {
        let raft = &self.raw.raft;
        let reachable = raft.state == StateRole::Leader || self.routes.contains(&raft.leader_id);
        if mutants::on(Mutant::BarrierWithoutReadIndex) {
            let index = raft.raft_log.committed;
            let context = self.reads.start_round();
            let readers = context.map_or_else(Vec::new, |context| self.reads.answered(&context));
            self.stand(readers, index);
            return;
        }
        // A leader without a vote may have been replaced without a word to it (rule M2).
        let has_vote = raft.state != StateRole::Leader || raft.prs().conf().voters().contains(self.id);
        if reachable && has_vote && raft.commit_to_current_term() {
            if let Some(context) = self.reads.start_round() {
                self.raw.read_index(context);
            }
        }
    }

    fn take_ready(&mut self) -> Result<(), Fault> {
        let version = self.membership().version;
        let mut ready = self.raw.ready();
        let number = ready.number();
        let entries = ready.take_entries();
        let committed = ready.take_committed_entries();
        let mut messages = ready.take_messages();
        let mut persisted_messages = ready.take_persisted_messages();
        let read_states = ready.take_read_states();
        // That a change of the members is committed is fsynced, before anybody hears of it: whoever forgot it would count
        // the votes of those who are gone for good, and may be the only one left.
        let must_sync = ready.must_sync() || committed.iter().any(members::is_change);
        let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().get_metadata());
        let installed = snapshot.map(|metadata| (metadata.index, metadata.term));
        let name = installed.map(|place| self.install(number, place)).transpose()?;
        let log = self.raw.mut_store();
        if let Some(hard_state) = ready.hs() {
            let before = log.hard_state();
            if hard_state.term != before.term || hard_state.vote != before.vote {
                self.term_unsaved = Some(number);
            }
            log.set_hard_state(hard_state.clone());
            self.commit_unsaved = true;
        }
        // A leader may send before its own entries are durable (Raft thesis 10.2.1), but nothing before its term and vote
        // are: a sole voter becomes leader in the very Ready that carries them, and has learners to tell. If it lost power
        // then, it would lead the same term again.
        if self.term_unsaved.is_some() && !mutants::on(Mutant::SpeakBeforeTermIsDurable) {
            messages.append(&mut persisted_messages);
            std::mem::swap(&mut messages, &mut persisted_messages);
        }
        for entry in &entries {
            if let Some(stamp_ns) = stamp_of(entry).filter(|_| !mutants::on(Mutant::StampFromApplied)) {
                self.stamper.observe(stamp_ns);
            }
        }
        // Readable before it is durable: raft-rs asks for it from now on.
        log.append(number, &entries);
        // In full, also where nothing of it changed: what clears the log for a snapshot clears the vote as well (rule D1).
        let hard_state = must_sync.then(|| log.hard_state().clone()).filter(|_| !mutants::on(Mutant::ForgetHardState));
        self.raw.advance_append_async(ready);

        let committed = match mutants::on(Mutant::ApplyBeforeCommit) {
            true => entries.iter().filter(|entry| entry.index > self.applier.applied()).cloned().collect(),
            false => committed,
        };
        for message in &messages {
            if let Some(metadata) = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref()) {
                self.stragglers.sent(message.to, metadata.index);
            }
        }
        self.effects.extend(messages.into_iter().map(send));
        self.persist.push(number, must_sync, persisted_messages);
        if must_sync {
            self.commit_unsaved = false;
            let mut hard_state = hard_state;
            if let Some(hard_state) =
                hard_state.as_mut().filter(|_| installed.is_some() && mutants::on(Mutant::LoseVoteAtInstall))
            {
                hard_state.vote = 0;
            }
            let (truncated, snapshot) = (installed, name);
            let persist = Persist { number, entries, hard_state, truncated, snapshot, sync: true };
            self.effects.push(Effect::Persist(persist));
        }
        for state in read_states {
            let readers = self.reads.answered(&state.request_ctx);
            self.stand(readers, state.index);
        }
        self.publish_leadership();
        self.apply(committed)?;
        if self.membership().version != version {
            self.members_unsaved = Some(number);
        }
        Ok(())
    }

    /// Barriers stand at `index`; the application's cursor has to get there.
    fn stand(&mut self, readers: Vec<Reader>, index: u64) {
        let index = if mutants::on(Mutant::BarrierIgnoresCursor) { 0 } else { index };
        for reader in readers {
            self.effects.push(Effect::Barrier { token: reader.token, index });
            self.awaiting_deadline_ns = self.awaiting_deadline_ns.min(reader.deadline_ns);
            self.awaiting_application.push_back((index, reader));
        }
    }

    /// Applies in log order, always (rule C1).
    fn apply(&mut self, committed: Vec<Entry>) -> Result<(), Fault> {
        for entry in committed {
            let index = entry.index;
            match EntryType::from_i32(entry.entry_type) {
                Some(EntryType::EntryNormal) if entry.data.is_empty() => {
                    if self.raw.raft.state == StateRole::Leader && entry.term == self.raw.raft.term {
                        self.leadership.leading_from.get_or_insert(index);
                        self.effects.push(Effect::Leadership(self.leadership));
                        // The others' barriers wait for a leader that has committed something.
                        self.telling.hurry();
                    }
                    self.applier.pass(index);
                    self.proposals.term_began(entry.term);
                }
                Some(EntryType::EntryNormal) if command::is_membership(&entry.data) => {
                    self.apply_change(index, entry.data, None)?;
                }
                Some(EntryType::EntryNormal) => {
                    let (proposals, awaiting) = (&mut self.proposals, &mut self.awaiting_application);
                    let earliest_ns = &mut self.awaiting_deadline_ns;
                    self.applier.apply(entry, |header| {
                        let (token, deadline_ns) = proposals.applied(header)?;
                        *earliest_ns = deadline_ns.min(*earliest_ns);
                        awaiting.push_back((index, Reader { token, deadline_ns }));
                        Some(token)
                    })?;
                }
                // An empty one leaves a joint configuration: it is no entry to be passed over.
                Some(EntryType::EntryConfChangeV2) => self.apply_conf_change(&entry)?,
                Some(EntryType::EntryConfChange) => {
                    return Err(Fault::Unknown { what: "a membership change of the first kind", index });
                }
                None => return Err(Fault::Unknown { what: "an entry of an unknown type", index }),
            }
        }
        if mutants::on(Mutant::StampFromApplied) {
            self.stamper.observe(self.applier.timestamp_ns());
        }
        self.advance_applied();
        Ok(())
    }

    /// raft-rs panics if what is applied is not committed, or not durable here, as a snapshot is not for a while.
    fn advance_applied(&mut self) {
        let log = &self.raw.raft.raft_log;
        let applied = self.applier.applied().min(log.committed).min(log.persisted);
        if applied > log.applied {
            self.raw.advance_apply_to(applied);
        }
    }

    fn publish_leadership(&mut self) {
        let raft = &self.raw.raft;
        let leader = (raft.leader_id != raft::INVALID_ID).then_some(raft.leader_id);
        if (raft.term, leader) == (self.leadership.term, self.leadership.leader) {
            return;
        }
        self.leadership = Leadership { term: raft.term, leader, leading_from: None };
        self.effects.push(Effect::Leadership(self.leadership));
        self.reads.restart_rounds();
        self.hold_proposals = false;
        if leader.is_some() {
            self.urge_ticks = 0;
        }
    }
}

fn send(message: Message) -> Effect {
    let name = message.snapshot.as_ref().and_then(|snapshot| SnapshotName::decode(snapshot.data.as_slice()).ok());
    match name {
        Some(name) => Effect::SendSnapshot { name, message: Box::new(message) },
        None => Effect::Send(Box::new(message)),
    }
}

/// A state machine that is durable itself holds a prefix of this log, or has nothing to do with it (rule D2).
fn check_durable(state: &GroupState, durable: Option<(u64, u64)>) -> Result<(), Fault> {
    let Some((index, term)) = durable.filter(|(index, _)| *index >= state.truncated.0) else { return Ok(()) };
    let found = match state.term(index) {
        Some(found) if found == term => return Ok(()),
        Some(found) => format!("has an entry of term {found} there"),
        None => format!("ends at entry {}", state.last_index),
    };
    Err(Fault::Durable { index, term, found })
}

/// Its replicated time, if it has one.
fn stamp_of(entry: &Entry) -> Option<u64> {
    let context = members::context(entry);
    let bytes = context.as_deref().unwrap_or(&entry.data);
    command::decode(bytes).ok().map(|header| header.timestamp_ns)
}

/// The stamp of the last stamped entry in the log (design decision 8: entries without a stamp inherit).
fn last_stamp(log: &LogView) -> Result<u64, Fault> {
    let mut end = log.end() + 1;
    while end > log.truncated_index() + 1 {
        let begin = end.saturating_sub(64).max(log.truncated_index() + 1);
        let mut at = begin;
        let mut newest = None;
        while at < end {
            let entries = log.read(at, end, 1 << 20)?;
            at += entries.len().max(1) as u64;
            newest = entries.iter().filter_map(stamp_of).next_back().or(newest);
        }
        if let Some(newest) = newest {
            return Ok(newest);
        }
        end = begin;
    }
    Ok(0)
}
