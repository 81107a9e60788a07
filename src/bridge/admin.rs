//! `AdminClient`: what an operator's tool asks a node.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, RecvTimeoutError};
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::import_exception;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::changes::{self, ChangeOf};
use super::errors::RaftError;
use super::hints::Figures;
use super::settings::duration;
use crate::engine::formation::Identity;
use crate::engine::membership::{encode_changes, Metadata};
use crate::engine::NodeId;
use crate::transport::admin_client::{Call, CallError};
use crate::transport::admin_messages::{
    self, Answer, Ask, Changed, Join, Joined, Member, Members, Peer, Problem, ProblemKind, Status,
};

import_exception!(aioraft._admin, AdminError);

/// How often signals are looked at while a call is under way.
const LOOK: Duration = Duration::from_millis(50);

/// Asks one node, at `address` ("host:port"), of the cluster of that name, each time over a connection of its own. Private:
/// the command `aioraft` is made of it.
///
/// Its methods block, with the GIL released, for `timeout` seconds and a moment at most. They raise `aioraft._admin.AdminError`,
/// and what a signal handler raises: Ctrl-C ends them within a moment. What the node has begun it then goes on with. May
/// be used from any thread.
#[pyclass(frozen, module = "aioraft._core")]
pub struct AdminClient {
    address: String,
    cluster: String,
    /// Nobody waits for its calls any more.
    is_given_up: Arc<AtomicBool>,
}

#[pymethods]
impl AdminClient {
    #[new]
    #[pyo3(signature = (address: "str", *, cluster: "str"))]
    fn new(address: String, cluster: String) -> Self {
        Self { address, cluster, is_given_up: Arc::default() }
    }

    /// End the calls under way, on whichever threads, within a moment; each raises `AdminError`.
    fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    /// How the node is: figures under the names of `aioraft.Status`, and its "cluster", "address", "version" and "trouble".
    #[pyo3(signature = (timeout: "float"))]
    fn status<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Figures<'py>> {
        match self.call(py, Ask::Status(()), timeout)? {
            Answer::Status(status) => Ok(Figures(status_to_dict(py, &status)?)),
            _ => Err(mixed_up()),
        }
    }

    /// Who the members are, as far as the node knows: its "leader", "incarnation" and "members".
    #[pyo3(signature = (timeout: "float"))]
    fn members<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Figures<'py>> {
        match self.call(py, Ask::Members(()), timeout)? {
            Answer::Members(members) => Ok(Figures(members_to_dict(py, &members)?)),
            _ => Err(mixed_up()),
        }
    }

    /// Have the node take a snapshot; returns its index once it is durable.
    #[pyo3(signature = (timeout: "float"))]
    fn snapshot(&self, py: Python<'_>, timeout: f64) -> PyResult<u64> {
        match self.call(py, Ask::Snapshot(()), timeout)? {
            Answer::Snapshot(index) => Ok(index),
            _ => Err(mixed_up()),
        }
    }

    /// Have node `to` lead in the place of the node that is asked, or whoever is furthest; returns who leads.
    #[pyo3(signature = (to: "int | None", timeout: "float"))]
    fn transfer_leader(&self, py: Python<'_>, to: Option<NodeId>, timeout: f64) -> PyResult<NodeId> {
        match self.call(py, Ask::TransferLeader(to.unwrap_or(0)), timeout)? {
            Answer::Leads(leader) => Ok(leader),
            _ => Err(mixed_up()),
        }
    }

    /// Ask for a place in the cluster for a node of that name, whose new data directory has that identity; returns its id,
    /// and where the members are dialled, by their ids. Asked again, it gives the same place.
    #[pyo3(signature = (name: "str", identity: "int", address: "str", metadata: "dict[str, str]", timeout: "float"))]
    fn join(
        &self,
        py: Python<'_>,
        name: String,
        identity: Identity,
        address: String,
        metadata: Metadata,
        timeout: f64,
    ) -> PyResult<(NodeId, BTreeMap<NodeId, String>)> {
        let join = Join { name, identity: identity.to_be_bytes().to_vec(), address, metadata };
        match self.call(py, Ask::Join(join), timeout)? {
            Answer::Joined(Joined { id, members }) => Ok((id, members)),
            _ => Err(mixed_up()),
        }
    }

    /// Change the membership, all of it at once; returns the index of the entry that did, and the ids concerned, in that
    /// order. The changes are as in `Core.change_members`.
    #[pyo3(signature = (changes: "list[tuple[str, int, str, dict[str, str] | None]]", timeout: "float"))]
    fn change(&self, py: Python<'_>, changes: Vec<ChangeOf>, timeout: f64) -> PyResult<(u64, Vec<NodeId>)> {
        let encoded = encode_changes(&changes::read(changes)?);
        match self.call(py, Ask::Change(admin_messages::Change { encoded }), timeout)? {
            Answer::Changed(Changed { index, ids }) => Ok((index, ids)),
            _ => Err(mixed_up()),
        }
    }
}

impl AdminClient {
    /// On a thread of its own, since neither a look-up nor a connect can be interrupted: one that is given up ends by itself,
    /// and holds nothing that anybody waits for.
    fn call(&self, py: Python<'_>, ask: Ask, timeout: f64) -> PyResult<Answer> {
        let timeout = duration(timeout).filter(|timeout| !timeout.is_zero()).ok_or_else(|| {
            PyValueError::new_err(format!("timeout = {timeout}: it must be a number of seconds above 0"))
        })?;
        let call = Call { address: self.address.clone(), cluster: self.cluster.clone(), ask, timeout };
        let given_up = Arc::clone(&self.is_given_up);
        let (sender, mut receiver) = sync_channel(1);
        let thread = std::thread::Builder::new().name("aioraft-admin".into()).spawn(move || {
            // Whoever asked may have given up.
            let _ = sender.send(call.run(&given_up));
        });
        thread.map_err(|error| PyOSError::new_err(format!("no thread can be started to ask the node: {error}")))?;
        loop {
            let waiting = &mut receiver;
            match py.detach(move || waiting.recv_timeout(LOOK)) {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => return Err(raised(error)),
                Err(RecvTimeoutError::Timeout) if self.is_given_up.load(Ordering::Relaxed) => {
                    return Err(AdminError::new_err(("it was given up", "lost")));
                }
                Err(RecvTimeoutError::Timeout) => py.check_signals().inspect_err(|_| self.give_up())?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(RaftError::new_err("the thread that asked the node panicked: please report this"));
                }
            }
        }
    }
}

fn mixed_up() -> PyErr {
    AdminError::new_err((
        "the node answered another question: it does not follow the protocol, so look what it did",
        "unknown",
    ))
}

fn raised(error: CallError) -> PyErr {
    let message = error.to_string();
    match error {
        CallError::Unreachable(_) => AdminError::new_err((message, "unreachable")),
        CallError::TurnedAway(_) => AdminError::new_err((message, "turned-away")),
        CallError::Lost(_) => AdminError::new_err((message, "lost")),
        CallError::Problem(problem) => {
            let kind = match problem.kind() {
                ProblemKind::Unknown => "unknown",
                ProblemKind::Refused => "refused",
                ProblemKind::NotLeader => "not-leader",
                ProblemKind::TimedOut => "timed-out",
                ProblemKind::Closed => "closed",
                ProblemKind::Unsupported => "unsupported",
                ProblemKind::Forming => "forming",
            };
            let Problem { leader, leader_address, .. } = problem;
            AdminError::new_err((message, kind, known(leader), known(leader).map(|_| leader_address)))
        }
    }
}

/// An id; 0 stands for none.
fn known(id: NodeId) -> Option<NodeId> {
    Some(id).filter(|id| *id != 0)
}

fn status_to_dict<'py>(py: Python<'py>, status: &Status) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("cluster", &status.cluster)?;
    dict.set_item("id", status.id)?;
    dict.set_item("address", &status.address)?;
    dict.set_item("version", &status.version)?;
    dict.set_item("role", &status.role)?;
    dict.set_item("term", status.term)?;
    dict.set_item("leader", known(status.leader))?;
    dict.set_item("trouble", status.trouble.as_deref())?;
    dict.set_item("commit", status.commit)?;
    dict.set_item("applied", status.applied)?;
    dict.set_item("python_applied", status.application_applied)?;
    dict.set_item("first_index", status.first_index)?;
    dict.set_item("last_index", status.last_index)?;
    dict.set_item("snapshot_index", status.snapshot_index)?;
    dict.set_item("snapshot_bytes", status.snapshot_bytes)?;
    dict.set_item("timestamp_ns", status.timestamp_ns)?;
    dict.set_item("boot", status.boot)?;
    dict.set_item("pending_proposals", status.pending_proposals)?;
    dict.set_item("reproposals", status.reproposals)?;
    dict.set_item("duplicates_skipped", status.duplicates_skipped)?;
    dict.set_item("fsyncs", status.fsyncs)?;
    dict.set_item("fsync_last_ns", status.fsync_last_ns)?;
    dict.set_item("fsync_max_ns", status.fsync_max_ns)?;
    dict.set_item("log_bytes", status.log_bytes)?;
    let peers = PyList::empty(py);
    for peer in &status.peers {
        peers.append(peer_to_dict(py, peer)?)?;
    }
    dict.set_item("peers", peers)?;
    Ok(dict)
}

fn peer_to_dict<'py>(py: Python<'py>, peer: &Peer) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("id", peer.id)?;
    dict.set_item("address", &peer.address)?;
    dict.set_item("connected", peer.connected)?;
    dict.set_item("trouble", peer.trouble.as_deref())?;
    dict.set_item("matched", peer.matched)?;
    dict.set_item("state", peer.state.as_deref())?;
    Ok(dict)
}

fn members_to_dict<'py>(py: Python<'py>, members: &Members) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("leader", known(members.leader))?;
    dict.set_item("incarnation", members.incarnation)?;
    let list = PyList::empty(py);
    for member in &members.members {
        list.append(member_to_dict(py, member)?)?;
    }
    dict.set_item("members", list)?;
    Ok(dict)
}

fn member_to_dict<'py>(py: Python<'py>, member: &Member) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let identity: String = member.identity.iter().map(|byte| format!("{byte:02x}")).collect();
    dict.set_item("id", member.id)?;
    dict.set_item("address", &member.address)?;
    dict.set_item("votes", member.votes)?;
    dict.set_item("connected", member.connected)?;
    dict.set_item("identity", Some(identity).filter(|identity| !identity.is_empty()))?;
    let metadata = PyDict::new(py);
    for (key, value) in &member.metadata {
        metadata.set_item(key, value)?;
    }
    dict.set_item("metadata", metadata)?;
    Ok(dict)
}
