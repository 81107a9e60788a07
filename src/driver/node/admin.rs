//! What operators' tools ask a node. They use the engine's calls as the application does, under tokens of their own.

use std::collections::BTreeMap;

use super::Node;
use crate::driver::clock;
use crate::driver::port::{PeerStatus, DRIVER_TOKEN};
use crate::engine::{Effect, Failure, NodeId, Token};
use crate::transport::admin_messages::{
    Answer, Ask, Member, Members, Peer, Problem, ProblemKind, Request, Response, Status,
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
}

impl AdminCalls {
    fn begin(&mut self, caller: Caller) -> Token {
        self.begun += 1;
        let token = DRIVER_TOKEN | self.begun;
        self.callers.insert(token, caller);
        token
    }

    fn end(&mut self, token: Token) -> Option<Caller> {
        self.callers.remove(&token)
    }

    /// Nobody on this connection waits any more. What the engine has begun it goes on with.
    pub fn forget(&mut self, connection: u64) {
        self.callers.retain(|_, caller| caller.connection != connection);
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
            Some(Ask::Change(_) | Ask::Join(_)) | None => {
                let reason = format!(
                    "node {} runs aioraft {}, which does not know this request: upgrade it",
                    self.id,
                    env!("CARGO_PKG_VERSION")
                );
                self.answer(caller, Err(Problem::new(ProblemKind::Unsupported, reason)));
            }
        }
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
            Effect::Failed { token, failure } if is_ours(token) => (token, Err(problem(failure))),
            other => return Some(other),
        };
        // Otherwise nobody waits for it any more.
        if let Some(caller) = self.admin_calls.end(token) {
            self.answer(caller, answer);
        }
        None
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
        let members = self.members.borrow();
        let identities = members.formation.stage().identities();
        let identity = |id: NodeId| match identities.and_then(|identities| identities.get(&id)) {
            _ if id == self.id => members.record.identity.to_be_bytes().to_vec(),
            Some(identity) => identity.to_be_bytes().to_vec(),
            None => Vec::new(),
        };
        let address = |id| match self.network.address_of(id) {
            _ if id == self.id => self.own_address(),
            address => address.unwrap_or_default(),
        };
        let member =
            |id| Member { id, address: address(id), votes: true, identity: identity(id), metadata: BTreeMap::new() };
        Members {
            leader: self.engine.leader().0.unwrap_or_default(),
            members: self.options.members.keys().copied().map(member).collect(),
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
    let PeerStatus { id, address, connected, trouble, matched, state } = status;
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
