//! Leadership on its way to another node (Raft thesis 3.10): calls for it, and the hand-over of a leader that leaves.
//!
//! raft-rs takes no proposals while it hands over, for up to an election timeout; it ignores a target that it does not
//! like, and says nothing of the end. So it is told only when the target is ready: reachable, heard of lately, with
//! everything that was committed a moment ago, and no membership change under way. From then on it is watched, and every
//! call ends: in another leader, or in the reason why there is none, by its deadline at the latest.

use std::collections::BTreeSet;

use raft::{ProgressState, RawNode, StateRole};

use super::log_view::LogView;
use super::{Effect, Failure, NodeId, Token};
use crate::mutants::{self, Mutant};

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nobody hands over.
    Idle,
    /// This node, leader in `term`, waits until a target is ready.
    Waiting { term: u64 },
    /// raft-rs hands over to `to`.
    Started { term: u64, to: NodeId },
}

/// Calls of the application for another leader, and this node's own wish to leave.
#[derive(Debug)]
pub struct Transfers {
    id: NodeId,
    stage: Stage,
    /// Who waits, and until when.
    calls: Vec<(Token, u64)>,
    /// Whom they name; otherwise whoever is furthest.
    wanted: Option<NodeId>,
    /// What was committed at the last tick.
    committed: u64,
    /// This node closes, and tries to hand over until then.
    leaves_until: Option<u64>,
    /// This node is to lose its vote, and hands over to one of these before that.
    aside: BTreeSet<NodeId>,
    election_ticks: usize,
    /// Ticks for which it does not step aside again. Another one that closes, or steps aside as well, may have given
    /// leadership back at once: the two would do nothing else.
    aside_rest_ticks: usize,
}

impl Transfers {
    /// None under way.
    pub fn new(id: NodeId, election_ticks: usize) -> Self {
        Self {
            id,
            stage: Stage::Idle,
            calls: Vec::new(),
            wanted: None,
            committed: 0,
            leaves_until: None,
            aside: BTreeSet::new(),
            election_ticks,
            aside_rest_ticks: 0,
        }
    }

    /// A tick has passed.
    pub fn tick(&mut self, committed: u64) {
        self.committed = committed;
        self.aside_rest_ticks = self.aside_rest_ticks.saturating_sub(1);
    }

    /// A call for `to` as leader, or for anybody else than this node. Returns what is known at once.
    pub fn ask(
        &mut self,
        raw: &RawNode<LogView>,
        routes: &BTreeSet<NodeId>,
        call: (Token, u64),
        to: Option<NodeId>,
    ) -> Option<Effect> {
        let token = call.0;
        if let Err(reason) = self.check(raw, routes, to) {
            return Some(Effect::Failed { token, failure: Failure::Transfer { reason } });
        }
        if to == Some(self.id) {
            return Some(Effect::Transferred { token, leader: self.id });
        }
        self.calls.push(call);
        self.wanted = self.wanted.or(to);
        if self.stage == Stage::Idle {
            self.stage = Stage::Waiting { term: raw.raft.term };
        }
        None
    }

    fn check(&self, raw: &RawNode<LogView>, routes: &BTreeSet<NodeId>, to: Option<NodeId>) -> Result<(), String> {
        let raft = &raw.raft;
        if raft.state != StateRole::Leader {
            return Err(match raft.leader_id {
                raft::INVALID_ID => "this node does not lead, and knows of no leader: wait for one, and ask it".into(),
                leader => format!("this node does not lead: ask node {leader}, which does"),
            });
        }
        match to {
            None => self.somebody(raw, routes),
            Some(to) => {
                has_vote(raw, to)?;
                if to == self.id {
                    return Ok(());
                }
                let under_way = match self.stage {
                    Stage::Started { to, .. } => Some(to),
                    Stage::Idle | Stage::Waiting { .. } => self.wanted,
                };
                match under_way.filter(|other| *other != to) {
                    Some(other) => Err(format!("leadership is on its way to node {other}: wait for the end of that")),
                    None => reachable(routes, to),
                }
            }
        }
    }

    /// Whether there is anybody to hand over to.
    fn somebody(&self, raw: &RawNode<LogView>, routes: &BTreeSet<NodeId>) -> Result<(), String> {
        let voters = raw.raft.prs().conf().voters();
        if voters.ids().iter().all(|voter| voter == self.id) {
            return Err("this node is the only voting member, so there is nobody else to lead".into());
        }
        match voters.ids().iter().any(|voter| voter != self.id && routes.contains(&voter)) {
            true => Ok(()),
            false => Err("no other voting member is connected: try again once one is".into()),
        }
    }

    /// This node closes: if it leads, somebody else should. Given up at `deadline_ns`.
    pub fn leave(&mut self, deadline_ns: u64) {
        self.leaves_until = Some(self.leaves_until.map_or(deadline_ns, |earlier| earlier.min(deadline_ns)));
    }

    /// This node, if it leads, is to hand over to one of `voters`; to nobody any more if there are none.
    pub fn step_aside(&mut self, voters: BTreeSet<NodeId>) {
        let is_off = voters.is_empty() && !self.aside.is_empty();
        self.aside = voters;
        if is_off && self.calls.is_empty() && self.leaves_until.is_none() {
            if let Stage::Waiting { .. } = self.stage {
                self.stage = Stage::Idle;
            }
        }
    }

    /// Whom the next leader is to be, if it may not be anybody. A node that leaves takes whoever is there.
    fn named(&self) -> Option<NodeId> {
        self.wanted.filter(|_| self.leaves_until.is_none())
    }

    /// The way to `peer` is not what it was: what raft-rs sent it may be lost.
    pub fn route_lost(&mut self, raw: &mut RawNode<LogView>, peer: NodeId) {
        if let Stage::Started { term, to } = self.stage {
            if to == peer && leads(raw, term) {
                raw.raft.abort_leader_transfer();
                self.stage = Stage::Waiting { term };
            }
        }
    }

    /// Goes on as far as possible. To be called whenever something has happened.
    pub fn work(&mut self, raw: &mut RawNode<LogView>, routes: &BTreeSet<NodeId>, effects: &mut Vec<Effect>) {
        if let Some(over) = self.over(raw, routes) {
            self.stage = Stage::Idle;
            self.wanted = None;
            effects.extend(self.calls.drain(..).map(|(token, _)| match &over {
                Ok(leader) => Effect::Transferred { token, leader: *leader },
                Err(reason) => Effect::Failed { token, failure: Failure::Transfer { reason: reason.clone() } },
            }));
        }
        let raft = &raw.raft;
        let is_leader = raft.state == StateRole::Leader;
        let leaves = self.leaves_until.is_some() || (!self.aside.is_empty() && self.aside_rest_ticks == 0);
        let leaves = leaves && is_leader && self.stage == Stage::Idle;
        if leaves && self.somebody(raw, routes).is_ok() {
            self.stage = Stage::Waiting { term: raw.raft.term };
        }
        if let Stage::Waiting { term } = self.stage {
            if let Some(to) = self.target(raw, routes).filter(|_| leads(raw, term)) {
                raw.transfer_leader(to);
                if !self.aside.is_empty() {
                    self.aside_rest_ticks = self.election_ticks;
                }
                self.stage = Stage::Started { term, to };
            }
        }
    }

    /// How it ended, if it did.
    fn over(&self, raw: &RawNode<LogView>, routes: &BTreeSet<NodeId>) -> Option<Result<NodeId, String>> {
        let (term, to) = match self.stage {
            Stage::Idle => return None,
            Stage::Waiting { term } => (term, None),
            Stage::Started { term, to } => (term, Some(to)),
        };
        let raft = &raw.raft;
        if !leads(raw, term) {
            return match raft.leader_id {
                // Everybody else is leaving, too: whoever only wants to leave is not held up by that.
                raft::INVALID_ID if self.calls.is_empty() => self.somebody(raw, routes).err().map(Err),
                // The election is under way.
                raft::INVALID_ID => None,
                leader if leader == self.id => Some(Err("this node was elected again: try again".into())),
                leader => Some(Ok(leader)),
            };
        }
        match (to, self.named()) {
            (Some(to), _) if raft.lead_transferee != Some(to) && !mutants::on(Mutant::IgnoreAbortedTransfer) => {
                let reason = "did not take over within an election timeout, so this node leads on: look into its log";
                Some(Err(format!("node {to} {reason}")))
            }
            (Some(_), _) => None,
            // It may have lost its vote since it was named.
            (None, Some(wanted)) => has_vote(raw, wanted).and_then(|()| reachable(routes, wanted)).err().map(Err),
            (None, None) => self.somebody(raw, routes).err().map(Err),
        }
    }

    /// Who can take over at once: of those that hold what was committed at the last tick, whoever holds most. As long as
    /// it takes them to catch up with the rest, raft-rs takes no proposals.
    fn target(&self, raw: &RawNode<LogView>, routes: &BTreeSet<NodeId>) -> Option<NodeId> {
        let raft = &raw.raft;
        // The target would refuse, without a word, while a membership change is not applied.
        if raft.has_pending_conf() {
            return None;
        }
        let prs = raft.prs();
        let voters = prs.conf().voters().ids();
        let others = voters.iter().filter(|voter| *voter != self.id);
        let others = others.filter(|voter| self.aside.is_empty() || self.aside.contains(voter));
        let ready = others.filter(|voter| self.named().is_none_or(|named| named == *voter)).filter_map(|voter| {
            let progress = prs.get(voter).filter(|_| routes.contains(&voter))?;
            let is_near = match progress.state {
                ProgressState::Replicate => progress.matched >= self.committed,
                // raft-rs probes a new connection until there is something to send.
                ProgressState::Probe => progress.matched == raft.raft_log.last_index(),
                ProgressState::Snapshot => false,
            };
            (is_near && progress.recent_active).then_some((progress.matched, voter))
        });
        ready.max().map(|(_, voter)| voter)
    }

    /// Nobody waits, and this node is not handing over before it leaves.
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// The earliest moment at which [`Self::expire`] has something to do, or `u64::MAX`.
    pub fn next_deadline_ns(&self) -> u64 {
        let calls = self.calls.iter().map(|(_, deadline_ns)| *deadline_ns);
        calls.chain(self.leaves_until).min().unwrap_or(u64::MAX)
    }

    /// Gives up what is past its deadline. When nobody waits any more, this node leads on, if it still does; a target that
    /// has begun to take over may win all the same.
    pub fn expire(&mut self, raw: &mut RawNode<LogView>, now_ns: u64, failed: &mut impl FnMut(Token, Failure)) {
        if now_ns < self.next_deadline_ns() {
            return;
        }
        self.leaves_until.take_if(|deadline_ns| *deadline_ns <= now_ns);
        let reason = self.what_is_missing(raw);
        self.calls.retain(|(token, deadline_ns)| {
            let late = *deadline_ns <= now_ns;
            if late {
                failed(*token, Failure::TimedOutUnsent { reason: reason.clone() });
            }
            !late
        });
        if self.calls.is_empty() && self.leaves_until.is_none() && self.aside.is_empty() {
            self.give_up(raw);
        }
    }

    fn what_is_missing(&self, raw: &RawNode<LogView>) -> String {
        let last = raw.raft.raft_log.last_index();
        let matched = |to| raw.raft.prs().get(to).map_or(0, |progress| progress.matched);
        match (self.stage, self.named()) {
            (Stage::Started { to, .. }, _) => format!("node {to} has not taken over yet"),
            (_, Some(to)) => format!("node {to} has entries through {} of {last} only", matched(to)),
            (_, None) => "no other voting member has caught up".into(),
        }
    }

    fn give_up(&mut self, raw: &mut RawNode<LogView>) {
        if let Stage::Started { term, .. } = self.stage {
            if leads(raw, term) {
                raw.raft.abort_leader_transfer();
            }
        }
        self.stage = Stage::Idle;
        self.wanted = None;
    }

    /// The node closes, and nobody hands over any more.
    pub fn close(&mut self, failed: &mut impl FnMut(Token, Failure)) {
        self.stage = Stage::Idle;
        for (token, _) in self.calls.drain(..) {
            failed(token, Failure::Closed);
        }
    }
}

/// Whether this node still leads in `term`.
fn leads(raw: &RawNode<LogView>, term: u64) -> bool {
    raw.raft.state == StateRole::Leader && raw.raft.term == term
}

fn has_vote(raw: &RawNode<LogView>, to: NodeId) -> Result<(), String> {
    let voters = raw.raft.prs().conf().voters();
    if voters.contains(to) {
        return Ok(());
    }
    let mut names = voters.ids().iter().collect::<Vec<_>>();
    names.sort_unstable();
    Err(format!("node {to} is no voting member: name one of {names:?}, or nobody"))
}

fn reachable(routes: &BTreeSet<NodeId>, to: NodeId) -> Result<(), String> {
    match routes.contains(&to) {
        true => Ok(()),
        false => Err(format!("node {to} is not connected to this node: name another one, or try again once it is")),
    }
}
