//! `Core.status()`.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::driver::port::{PeerStatus, Status};

/// What the application's side knows.
pub struct Own {
    /// The application's cursor.
    pub python_applied: u64,
    /// Proposals not resolved.
    pub pending_proposals: usize,
    /// The longest drain, nanoseconds.
    pub longest_drain_ns: u64,
}

/// What the driver said last was true while it ran: a node that has ended is in `role`, follows nobody and is connected
/// to nobody.
pub fn forget_others(status: &mut Status, role: &'static str) {
    status.role = role;
    status.leader = None;
    for peer in &mut status.peers {
        let PeerStatus { id, address, votes, metadata, .. } = std::mem::take(peer);
        *peer = PeerStatus { id, address, votes, metadata, ..PeerStatus::default() };
    }
}

/// The figures under the names of `aioraft.Status`' fields.
pub fn to_dict<'py>(py: Python<'py>, status: &Status, own: &Own) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("id", status.id)?;
    dict.set_item("role", status.role)?;
    dict.set_item("term", status.term)?;
    dict.set_item("leader", status.leader)?;
    dict.set_item("commit", status.commit)?;
    dict.set_item("applied", status.applied)?;
    dict.set_item("python_applied", own.python_applied)?;
    dict.set_item("first_index", status.first_index)?;
    dict.set_item("last_index", status.last_index)?;
    dict.set_item("snapshot_index", status.snapshot_index)?;
    dict.set_item("snapshot_bytes", status.snapshot_bytes)?;
    dict.set_item("timestamp_ns", status.timestamp_ns)?;
    dict.set_item("identity", format!("{:032x}", status.identity))?;
    dict.set_item("boot", status.boot)?;
    dict.set_item("address", &status.address)?;
    dict.set_item("votes", status.votes)?;
    dict.set_item("metadata", status.metadata.clone())?;
    dict.set_item("incarnation", status.incarnation)?;
    dict.set_item("pending_proposals", own.pending_proposals)?;
    dict.set_item("reproposals", status.reproposals)?;
    dict.set_item("duplicates_skipped", status.duplicates_skipped)?;
    dict.set_item("fsyncs", status.fsyncs)?;
    dict.set_item("fsync_last_ns", status.fsync_last_ns)?;
    dict.set_item("fsync_max_ns", status.fsync_max_ns)?;
    dict.set_item("log_bytes", status.log_bytes)?;
    dict.set_item("longest_drain_ns", own.longest_drain_ns)?;
    let peers = PyList::empty(py);
    for peer in &status.peers {
        peers.append(peer_to_dict(py, peer)?)?;
    }
    dict.set_item("peers", peers)?;
    Ok(dict)
}

fn peer_to_dict<'py>(py: Python<'py>, peer: &PeerStatus) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("id", peer.id)?;
    dict.set_item("address", &peer.address)?;
    dict.set_item("votes", peer.votes)?;
    dict.set_item("metadata", peer.metadata.clone())?;
    dict.set_item("connected", peer.connected)?;
    dict.set_item("trouble", peer.trouble.as_deref())?;
    dict.set_item("matched", peer.matched)?;
    dict.set_item("state", peer.state)?;
    Ok(dict)
}
