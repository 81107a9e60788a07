//! The engine's part in changes of the members (rules M2, M3, S3).

use std::collections::BTreeSet;

use prost::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message,
    MessageType,
};
use raft::StateRole;

use super::Engine;
use crate::engine::changes::Waiter;
use crate::engine::command::{self, Command};
use crate::engine::formation::Identities;
use crate::engine::membership::{check_changes, decode_changes, encode_changes, Change, Membership, Plan, Unfit};
use crate::engine::session::Verdict;
use crate::engine::time::Now;
use crate::engine::{Effect, Failure, Fault, NodeId, Token};
use crate::mutants::{self, Mutant};

/// Whether an entry may change the members.
pub(super) fn is_change(entry: &Entry) -> bool {
    entry.entry_type != EntryType::EntryNormal as i32 || command::is_membership(&entry.data)
}

/// What raft-rs carries along with a change of the voters and learners: the command that asks for it.
pub(super) fn context(entry: &Entry) -> Option<Vec<u8>> {
    let is_change = entry.entry_type == EntryType::EntryConfChangeV2 as i32;
    is_change.then(|| ConfChangeV2::decode(entry.data.as_slice()).unwrap_or_default().context)
}

impl Engine {
    /// A call of the application for these changes of the members, all at once.
    pub fn handle_change(&mut self, token: Token, changes: &[Change], deadline_ns: u64) {
        match check_changes(changes) {
            Ok(()) => {
                self.proposals.add(token, Command::membership(&encode_changes(changes)), deadline_ns);
            }
            Err(reason) => self.effects.push(Effect::Failed { token, failure: Failure::Refused { reason } }),
        }
    }

    /// The cluster is formed, by these (rule M1). To be called before the first tick of a node that was started without
    /// knowing that, and perhaps with another list: one that joins was not among the founders.
    pub fn handle_formed(&mut self, founders: &Identities) {
        let voters = self.conf_state().voters;
        let kind = |id, kind| {
            let mut single = ConfChangeSingle { node_id: id, ..Default::default() };
            single.set_change_type(kind);
            single
        };
        let added = founders.keys().filter(|id| !voters.contains(id)).map(|id| kind(*id, ConfChangeType::AddNode));
        let removed = voters.iter().filter(|id| !founders.contains_key(id));
        let changes = added.chain(removed.map(|id| kind(*id, ConfChangeType::RemoveNode))).collect::<Vec<_>>();
        if !changes.is_empty() {
            let mut change = ConfChangeV2 { changes, ..Default::default() };
            change.set_transition(ConfChangeTransition::Explicit);
            // Nothing is in the log yet, and raft-rs has not begun: it starts with what every log begins with.
            let entered = self.raw.apply_conf_change(&change);
            let left = entered.and_then(|_| self.raw.apply_conf_change(&ConfChangeV2::default()));
            debug_assert!(left.is_ok(), "{left:?}");
        }
        *self.applier.membership_mut() = Membership::founded(&founders.keys().copied().collect::<Vec<_>>(), founders);
        self.effects.push(Effect::Membership);
    }

    /// Who belongs to the cluster, as of the engine's cursor.
    pub fn membership(&self) -> &Membership {
        self.applier.membership()
    }

    /// Whether this node votes, as of the engine's cursor.
    pub fn votes(&self) -> bool {
        self.raw.raft.prs().conf().voters().contains(self.id)
    }

    /// Who votes and learns, as of the engine's cursor.
    pub fn conf_state(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    /// The leader's part: at most one change is on its way through the log.
    pub(super) fn append_changes(&mut self, now: Now) {
        if self.raw.raft.state != StateRole::Leader {
            self.changes.clear();
            return self.transfers.step_aside(BTreeSet::new());
        }
        let too_long = self.changes.take_long_held(self.id);
        if !too_long.is_empty() {
            let reason = self.changes.obstacle().unwrap_or("another change of the members is under way").to_owned();
            let numbers = too_long.into_iter().map(|held| {
                let header = held.command.header();
                (held.from, header.boot, header.number)
            });
            self.reject_numbers(numbers.collect::<Vec<_>>(), &reason);
        }
        let raft = &self.raw.raft;
        // Everything that could change the members is applied here then, so what is planned now holds where it is appended.
        let is_settled = !raft.has_pending_conf() && raft.commit_to_current_term();
        if !is_settled || self.installing.is_some() || raft.lead_transferee.is_some() {
            return;
        }
        let conf = self.conf_state();
        if !conf.voters_outgoing.is_empty() {
            return self.leave_joint(&conf);
        }
        // One that has no vote any more hands over, whatever else there is (rule M2).
        let has_vote = conf.voters.contains(&self.id);
        self.transfers.step_aside(if has_vote { BTreeSet::new() } else { conf.voters.iter().copied().collect() });
        for at in 0..self.changes.held().len() {
            let command = self.changes.held()[at].command.clone();
            let Some(changes) = decode_changes(command.payload()) else {
                // Said at its place in the log, to everybody alike.
                return self.append_change(at, command, &Plan::default(), now);
            };
            match self.readiness(&conf, &changes) {
                Ok(plan) => return self.append_change(at, command, &plan, now),
                Err(obstacle) => self.changes.set_obstacle(Some(obstacle)),
            }
        }
    }

    /// What `changes` come to, or why they have to wait.
    fn readiness(&mut self, conf: &ConfState, changes: &[Change]) -> Result<Plan, String> {
        let plan = match self.applier.membership().plan(conf, changes) {
            Ok(plan) => plan,
            // Said at its place in the log, to everybody alike.
            Err(Unfit::Never(_)) => return Ok(Plan::default()),
            Err(Unfit::NotYet(reason)) => return Err(reason),
        };
        let raft = &self.raw.raft;
        let last_index = raft.raft_log.last_index();
        for learner in &plan.promoted {
            if !mutants::on(Mutant::PromoteStaleLearner) {
                self.changes.has_caught_up(raft.prs(), *learner, last_index)?;
            }
        }
        if conf.voters.contains(&self.id) && !plan.voters.contains(&self.id) {
            // Its successor appends the change (rule M2).
            self.transfers.step_aside(plan.voters.clone());
            return Err("the leader hands over before it leaves".into());
        }
        Ok(plan)
    }

    fn append_change(&mut self, at: usize, mut command: Command, plan: &Plan, now: Now) {
        let stamp_ns = self.stamper.stamp(self.raw.raft.term, now);
        command.set_time(stamp_ns, now.wall_ns);
        let bytes = command.into_bytes();
        let mut entry = Entry::default();
        if plan.singles.is_empty() {
            entry.data = bytes;
        } else {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            entry.data = plan.conf_change(bytes).encode_to_vec();
        }
        if self.append_entries(vec![entry]) {
            let index = self.raw.raft.raft_log.last_index();
            self.telling.appended_for_others(index..=index);
            plan.promoted.iter().for_each(|learner| self.changes.forget_round(*learner));
            self.changes.appended(at);
            self.changes.set_obstacle(None);
        }
    }

    /// raft-rs leaves a joint configuration by itself only if its leader stays, and tells nobody: it is told to.
    fn leave_joint(&mut self, conf: &ConfState) {
        if mutants::on(Mutant::NeverLeaveJoint) {
            return;
        }
        if !conf.voters.contains(&self.id) && !self.changes.outgoes_in_vain() {
            // It would have no vote afterwards: one that has one takes over before (rule M2).
            self.transfers.step_aside(conf.voters.iter().copied().collect());
            return;
        }
        if self.is_anybody_unaware(conf) && !self.changes.is_joint_for_long() {
            return;
        }
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        // Refused for a moment at most: it is tried again in the next round.
        self.append_entries(vec![entry]);
    }

    /// Somebody who leaves for good does not know that the joint configuration is entered. Nobody sends it the log once that
    /// is left, and it would never learn what became of a change that it has asked for itself.
    fn is_anybody_unaware(&self, conf: &ConfState) -> bool {
        let stays =
            |id: &NodeId| [&conf.voters, &conf.learners, &conf.learners_next].iter().any(|ids| ids.contains(id));
        let gone = conf.voters_outgoing.iter().filter(|id| **id != self.id && !stays(id));
        let entered = self.membership().version;
        let mut progress = gone.filter_map(|id| self.raw.raft.prs().get(*id));
        progress.any(|progress| progress.recent_active && progress.committed_index < entered)
    }

    /// A tick has passed in which this node may lead a configuration that it has no vote in afterwards.
    pub(super) fn tick_members(&mut self) {
        self.changes.tick();
        if self.raw.raft.state != StateRole::Leader {
            self.changes.tick_joint(false);
            return self.changes.tick_outgoing(false);
        }
        let conf = self.conf_state();
        self.changes.tick_joint(!conf.voters_outgoing.is_empty());
        self.changes.tick_outgoing(!conf.voters.contains(&self.id));
        // Nobody took over: the others elect one of them (rule M2).
        if self.changes.outgoes_in_vain() && !conf.voters_outgoing.contains(&self.id) {
            self.step_down();
        }
    }

    /// Changes of this node that it holds as the leader go back to where the others are: they may be past their deadlines.
    pub(super) fn let_go_of_changes(&mut self) {
        let own = self.changes.take_of(self.id);
        let numbers = own.iter().map(|held| held.command.header().number).collect::<Vec<_>>();
        self.proposals.not_appended(&numbers);
    }

    /// A command of the members at its place in the log; `voters` is what raft-rs was told with it.
    pub(super) fn apply_change(
        &mut self,
        index: u64,
        bytes: Vec<u8>,
        voters: Option<&ConfChangeV2>,
    ) -> Result<(), Fault> {
        let command = Command::from_bytes(bytes).map_err(|source| Fault::Entry { index, source })?;
        let verdict = self.applier.admit(index, &command)?;
        self.applier.pass(index);
        if verdict == Verdict::Skip && !mutants::on(Mutant::RepeatChange) {
            return Ok(());
        }
        let outcome = self.change_members(index, &command, voters);
        let Some((token, deadline_ns)) = self.proposals.applied(&command.header()) else { return Ok(()) };
        self.changes.set_obstacle(None);
        match outcome {
            Err(reason) => self.effects.push(Effect::Failed { token, failure: Failure::Refused { reason } }),
            Ok(ids) if self.conf_state().voters_outgoing.is_empty() || voters.is_none() => {
                self.effects.push(Effect::Changed { token, index, ids });
            }
            Ok(ids) => self.changes.joint.push(Waiter { token, deadline_ns, index, ids }),
        }
        Ok(())
    }

    fn change_members(
        &mut self,
        index: u64,
        command: &Command,
        voters: Option<&ConfChangeV2>,
    ) -> Result<Vec<NodeId>, String> {
        let Some(changes) = decode_changes(command.payload()) else {
            return Err("a change of the members that this version of aioraft does not know".into());
        };
        let plan = self.membership().plan(&self.conf_state(), &changes).map_err(|unfit| unfit.to_string())?;
        let ids = plan.ids.clone();
        if plan.is_noop {
            return Ok(ids);
        }
        if plan.singles != voters.map_or(&[][..], |change| &change.changes) {
            return Err("the members have changed meanwhile: try again".into());
        }
        let mut conf = self.conf_state();
        if !plan.singles.is_empty() {
            let change = count_learners_votes(plan.conf_change(Vec::new()));
            // It went through the same checks when it was planned.
            conf = self.raw.apply_conf_change(&change).map_err(|error| error.to_string())?;
        }
        self.applier.settle_members(Some(plan), &conf, index);
        self.members_changed();
        Ok(ids)
    }

    /// An entry that raft-rs counts votes by.
    pub(super) fn apply_conf_change(&mut self, entry: &Entry) -> Result<(), Fault> {
        let index = entry.index;
        let change = ConfChangeV2::decode(entry.data.as_slice());
        let change = change.map_err(|_| Fault::Unknown { what: "a membership change", index })?;
        if !change.leave_joint() {
            return self.apply_change(index, change.context.clone(), Some(&change));
        }
        self.applier.pass(index);
        // Refused where the configuration is not joint (any more): a second leader left it as well.
        if let Ok(conf) = self.raw.apply_conf_change(&ConfChangeV2::default()) {
            self.applier.settle_members(None, &conf, index);
            self.members_changed();
            let answered = self.finish_joint();
            self.effects.extend(answered);
        }
        Ok(())
    }

    /// A snapshot brought other members, perhaps.
    pub(super) fn members_installed(&mut self) {
        // Both halves of what they wait for are in it, or somebody else finishes the second.
        let answered = self.finish_joint();
        self.effects.extend(answered);
    }

    /// Changes that go through a joint configuration, and of which this node has seen the first half only, are at their end:
    /// no other change comes before their second half. Returns what to tell their callers.
    pub fn finish_joint(&mut self) -> Vec<Effect> {
        let joint = std::mem::take(&mut self.changes.joint);
        let answered = joint.into_iter().map(|Waiter { token, index, ids, .. }| Effect::Changed { token, index, ids });
        answered.collect()
    }

    /// Everything through this Ready is durable: others may hear of the members that it brought.
    pub(super) fn publish_members(&mut self, number: u64) {
        if self.members_unsaved.take_if(|changed_in| *changed_in <= number).is_some() {
            self.effects.push(Effect::Membership);
        }
    }

    fn members_changed(&mut self) {
        let raft = &self.raw.raft;
        // raft-rs panics as soon as a leader that it does not know as a member writes.
        if raft.state == StateRole::Leader && raft.prs().get(self.id).is_none() {
            self.step_down();
        }
    }

    /// A leader without a vote stops leading, and asks who is furthest to take over at once (rule M2).
    fn step_down(&mut self) {
        let raft = &mut self.raw.raft;
        let term = raft.term;
        let voters = raft.prs().conf().voters().ids();
        let matched = |voter| raft.prs().get(voter).map(|progress| (progress.matched, voter));
        let furthest = voters.iter().filter(|voter| *voter != self.id).filter_map(matched).max();
        raft.become_follower(term, raft::INVALID_ID);
        if let Some((_, to)) = furthest {
            let mut message = Message { from: self.id, to, term, ..Default::default() };
            message.set_msg_type(MessageType::MsgTimeoutNow);
            self.effects.push(Effect::Send(Box::new(message)));
        }
    }
}

fn count_learners_votes(mut change: ConfChangeV2) -> ConfChangeV2 {
    if mutants::on(Mutant::CountLearnersVote) {
        use raft::eraftpb::ConfChangeType::{AddLearnerNode, AddNode};
        for single in change.changes.iter_mut().filter(|single| single.change_type == AddLearnerNode as i32) {
            single.set_change_type(AddNode);
        }
    }
    change
}
