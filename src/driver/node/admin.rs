//! What operators' tools ask a node. They use the engine's calls as the application does, under tokens of their own.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use crate::driver::clock;
use crate::driver::gate::Ended;
use crate::driver::initiative::{runs_under, NAME};
use crate::driver::port::{PeerStatus, DRIVER_TOKEN};
use crate::engine::formation::Identity;
use crate::engine::membership::{decode_changes, Change, Metadata};
use crate::engine::{membership, Effect, Failure, NodeId, Token};
use crate::transport::admin_messages::{
    Answer, Ask, Changed, Join, Joined, Member, Members, Peer, Problem, ProblemKind, Request, Response, Status,
};

/// Whom to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Caller {
    connection: u64,
    /// The request's.
    number: u64,
}

/// Calls of tools that the engine works on.
#[derive(Debug, Default)]
pub(super) struct AdminCalls {
    begun: u64,
    callers: BTreeMap<Token, Caller>,
    /// Those among them who want to become nodes.
    joining: BTreeSet<Token>,
    /// Those that only want this node removed.
    removing: BTreeSet<Token>,
}

impl AdminCalls {
    fn begin(&mut self, caller: Caller) -> Token {
        self.begun += 1;
        let token = DRIVER_TOKEN | self.begun;
        self.callers.insert(token, caller);
        token
    }

    fn end(&mut self, token: Token) -> Option<Caller> {
        self.joining.remove(&token);
        self.removing.remove(&token);
        self.callers.remove(&token)
    }

    /// Nobody on this connection waits any more. What the engine has begun it goes on with.
    pub fn forget(&mut self, connection: u64) {
        self.callers.retain(|_, caller| caller.connection != connection);
        self.joining.retain(|token| self.callers.contains_key(token));
        self.removing.retain(|token| self.callers.contains_key(token));
    }
}

impl Node {
    /// A tool asks something.
    pub(super) fn take_request(&mut self, connection: u64, request: Request) {
        let Request { number, timeout_ms, ask } = request;
        let caller = Caller { connection, number };
        if self.closing.is_some() {
            return self.answer(caller, Err(Problem::new(ProblemKind::Closed, "this node closes: ask another one")));
        }
        let deadline_ns = clock::boottime_ns().saturating_add(timeout_ms.saturating_mul(1_000_000));
        match ask {
            Some(Ask::Status(())) => {
                let status = self.status_for_operators();
                self.answer(caller, Ok(Answer::Status(Box::new(status))));
            }
            Some(Ask::Members(())) => {
                let members = self.members_for_operators();
                self.answer(caller, Ok(Answer::Members(members)));
            }
            Some(Ask::Snapshot(())) => {
                tracing::info!(node = self.id, "an operator asks for a snapshot");
                let token = self.admin_calls.begin(caller);
                self.engine.handle_snapshot_call(token, deadline_ns);
            }
            Some(Ask::TransferLeader(to)) => match self.elsewhere() {
                Some(problem) => self.answer(caller, Err(problem)),
                None => {
                    tracing::info!(node = self.id, to, "an operator asks for another leader");
                    let token = self.admin_calls.begin(caller);
                    self.engine.handle_transfer(token, Some(to).filter(|to| *to != 0), deadline_ns);
                }
            },
            Some(Ask::Change(change)) => match decode_changes(&change.encoded) {
                // Only `aioraft recover` does that, to a directory that no node has open.
                Some(changes) if changes.iter().any(|change| matches!(change, Change::Recover(_))) => {
                    let reason = "a running cluster is not recovered: stop this node, and call `aioraft recover`";
                    self.answer(caller, Err(Problem::new(ProblemKind::Refused, reason)));
                }
                Some(changes) => {
                    tracing::info!(node = self.id, ?changes, "an operator changes the members");
                    let token = self.admin_calls.begin(caller);
                    if changes == [Change::Remove(self.id)] {
                        self.admin_calls.removing.insert(token);
                    }
                    self.change_members(token, &changes, deadline_ns);
                }
                None => self.answer(caller, Err(self.unknown_request())),
            },
            Some(Ask::Join(join)) => match self.check_join(&join) {
                Ok(change) => {
                    tracing::info!(node = self.id, "{:?} at {} asks to join the cluster", join.name, join.address);
                    let token = self.admin_calls.begin(caller);
                    self.admin_calls.joining.insert(token);
                    self.change_members(token, &[change], deadline_ns);
                }
                Err(problem) => self.answer(caller, Err(problem)),
            },
            None => self.answer(caller, Err(self.unknown_request())),
        }
    }

    fn unknown_request(&self) -> Problem {
        let (me, version) = (self.id, env!("CARGO_PKG_VERSION"));
        let reason = format!("node {me} runs aioraft {version}, which does not know this request: upgrade it");
        Problem::new(ProblemKind::Unsupported, reason)
    }

    /// What lets a new node join. Its name may be a former member's, whose place it takes when it votes, but not that of
    /// one that runs.
    fn check_join(&self, join: &Join) -> Result<Change, Problem> {
        let members = self.members.borrow();
        if !members.formation.is_formed() {
            return Err(Problem::new(ProblemKind::Forming, self.who_is_missing()));
        }
        let identity = <[u8; 16]>::try_from(join.identity.as_slice()).map_or(0, Identity::from_be_bytes);
        if identity == 0 || join.name.is_empty() || join.address.is_empty() {
            let reason = "whoever joins says its name, its address and the identity of its data directory";
            return Err(Problem::new(ProblemKind::Refused, reason));
        }
        let runs = |id| id == self.id || self.network.connected(id);
        if let Some(id) = runs_under(&join.name, identity, members.formation.membership(), runs) {
            let reason = format!(
                "node {id} runs under the name {:?}: stop it first, or give the new node another name",
                join.name
            );
            return Err(Problem::new(ProblemKind::Refused, reason));
        }
        let mut metadata: Metadata = join.metadata.clone();
        metadata.insert(NAME.into(), join.name.clone());
        let member = membership::Member { identity, address: join.address.clone(), metadata, seeks_vote: true };
        Ok(Change::AddLearner { id: 0, member })
    }

    fn joined(&self, id: NodeId) -> Joined {
        let address = |id: &NodeId| match *id == self.id {
            true => self.own_address(),
            false => self.address_of(*id),
        };
        let members = self.engine.membership().members.keys().filter(|member| **member != id);
        let reached = members.map(|id| (*id, address(id))).filter(|(_, address)| !address.is_empty());
        Joined { id, members: reached.collect() }
    }

    /// Whom to ask for what only the leader can do, if that is not this node.
    fn elsewhere(&self) -> Option<Problem> {
        let me = self.id;
        match self.engine.leader().0 {
            Some(leader) if leader == me => None,
            Some(leader) => {
                let address = self.network.address_of(leader).unwrap_or_default();
                let reason = format!("node {me} does not lead: ask node {leader} at {address}, which does");
                Some(Problem { leader, leader_address: address, ..Problem::new(ProblemKind::NotLeader, reason) })
            }
            None => {
                let trouble = self.obstacle().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
                let reason = format!("node {me} knows of no leader{trouble}: wait for one, and ask it");
                Some(Problem::new(ProblemKind::NotLeader, reason))
            }
        }
    }

    /// Takes out an effect that answers a tool.
    pub(super) fn answer_tool(&mut self, effect: Effect) -> Option<Effect> {
        let (token, answer) = match effect {
            Effect::Snapshot { token, index } if is_ours(token) => (token, Ok(Answer::Snapshot(index))),
            Effect::Transferred { token, leader } if is_ours(token) => (token, Ok(Answer::Leads(leader))),
            Effect::Changed { token, index, ids } if is_ours(token) => match ids.first() {
                Some(id) if self.admin_calls.joining.contains(&token) => (token, Ok(Answer::Joined(self.joined(*id)))),
                _ => (token, Ok(Answer::Changed(Changed { index, ids }))),
            },
            Effect::Failed { token, failure } if is_ours(token) => (token, Err(problem(failure))),
            other => return Some(other),
        };
        // Otherwise nobody waits for it any more.
        if let Some(caller) = self.admin_calls.end(token) {
            self.answer(caller, answer);
        }
        None
    }

    /// This node has no part in the cluster any more, and may never see what became of what tools wait for: others tell a
    /// node of its removal before it has applied that.
    pub(super) fn dismiss_tools(&mut self, ended: Ended) {
        for (token, caller) in std::mem::take(&mut self.admin_calls.callers) {
            let is_done = ended == Ended::Removed && self.admin_calls.removing.contains(&token);
            let answer = match is_done {
                true => Ok(Answer::Changed(Changed { index: self.engine.membership().version, ids: vec![self.id] })),
                false => Err(Problem::new(ProblemKind::Unknown, format!("{ended}; look at another node what it did"))),
            };
            self.answer(caller, answer);
        }
    }

    fn answer(&self, caller: Caller, answer: Result<Answer, Problem>) {
        let Caller { connection, number } = caller;
        let answer = Some(answer.unwrap_or_else(Answer::Problem));
        self.network.answer(connection, &Response { number, answer });
    }

    fn status_for_operators(&mut self) -> Status {
        self.publish_status();
        let status = self.port.status.lock().clone();
        Status {
            cluster: self.options.cluster.clone(),
            id: status.id,
            address: self.own_address(),
            version: env!("CARGO_PKG_VERSION").into(),
            role: status.role.into(),
            term: status.term,
            leader: status.leader.unwrap_or_default(),
            trouble: self.obstacle(),
            commit: status.commit,
            applied: status.applied,
            application_applied: self.port.cursor.applied(),
            first_index: status.first_index,
            last_index: status.last_index,
            snapshot_index: status.snapshot_index,
            snapshot_bytes: status.snapshot_bytes,
            timestamp_ns: status.timestamp_ns,
            boot: status.boot,
            pending_proposals: status.pending_proposals,
            reproposals: status.reproposals,
            duplicates_skipped: status.duplicates_skipped,
            fsyncs: status.fsyncs,
            fsync_last_ns: status.fsync_last_ns,
            fsync_max_ns: status.fsync_max_ns,
            log_bytes: status.log_bytes,
            peers: status.peers.into_iter().map(peer).collect(),
        }
    }

    fn members_for_operators(&self) -> Members {
        let conf = self.engine.conf_state();
        let member = |(id, member): (&NodeId, &membership::Member)| Member {
            id: *id,
            address: match *id == self.id {
                true => self.own_address(),
                false => self.address_of(*id),
            },
            votes: conf.voters.contains(id) || conf.voters_outgoing.contains(id),
            identity: if member.identity == 0 { Vec::new() } else { member.identity.to_be_bytes().to_vec() },
            metadata: member.metadata.clone(),
            connected: *id == self.id || self.network.connected(*id),
        };
        let membership = self.engine.membership();
        Members {
            leader: self.engine.leader().0.unwrap_or_default(),
            members: membership.members.iter().map(member).collect(),
            incarnation: membership.incarnation,
        }
    }

    /// Where others are told to reach this node.
    fn own_address(&self) -> String {
        let advertise = &self.members.borrow().advertise;
        match advertise.is_empty() {
            true => self.network.local_address().to_string(),
            false => advertise.clone(),
        }
    }
}

fn is_ours(token: Token) -> bool {
    token & DRIVER_TOKEN != 0
}

fn peer(status: PeerStatus) -> Peer {
    let PeerStatus { id, address, connected, trouble, matched, state, .. } = status;
    Peer { id, address, connected, trouble, matched, state: state.map(str::to_owned) }
}

/// What a tool hears of a call that failed.
fn problem(failure: Failure) -> Problem {
    let (kind, reason) = match failure {
        Failure::TimedOutUnsent { reason } => (ProblemKind::TimedOut, format!("it was not done in time: {reason}")),
        Failure::TimedOut => {
            let reason =
                "its time passed while it was under way, so it may be done, now or later: look before you try again";
            (ProblemKind::Unknown, reason.into())
        }
        Failure::ChangeTimedOut { reason } => {
            let reason =
                format!("its time passed ({reason}), and it may be done all the same, now or later: ask again");
            (ProblemKind::Unknown, reason)
        }
        Failure::Refused { reason } | Failure::Snapshot { reason } | Failure::Transfer { reason } => {
            (ProblemKind::Refused, reason)
        }
        Failure::AppliedWithoutResult { index } => {
            let reason =
                format!("it was done at or before index {index}, and what came of it is gone: look at the state");
            (ProblemKind::Unknown, reason)
        }
        Failure::ClosedUnsent => (ProblemKind::Closed, "the node closed before it was done: ask another one".into()),
        Failure::Closed => {
            (ProblemKind::Unknown, "the node closed while it was under way: look before you try again".into())
        }
    };
    Problem::new(kind, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_a_tool_that_left_are_forgotten_and_tokens_are_never_an_applications() {
        let mut calls = AdminCalls::default();
        let caller = |connection| Caller { connection, number: 1 };
        let (one, two) = (calls.begin(caller(1)), calls.begin(caller(2)));
        assert!(is_ours(one) && is_ours(two) && one != two);
        calls.forget(1);
        assert_eq!(calls.end(one), None);
        assert_eq!(calls.end(two), Some(caller(2)));
        assert_eq!(calls.end(two), None, "a call is answered once");
    }
}
