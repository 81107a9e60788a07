//! `inspect`: what a data directory holds, without a node.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use raft::eraftpb::ConfState;

use super::errors::{ConfigError, FatalError, RaftError};
use super::hints::Figures;
use crate::driver::identity::NodeRecord;
use crate::driver::inspect::{GuardReport, LogReport, Report};
use crate::engine::formation::{Identity, Stage};
use crate::engine::membership::Membership;
use crate::storage::snapshot::{FileState, FileView};

/// What a data directory holds, under the keys of `aioraft._cli._report.Report`. Private: use `aioraft inspect`.
///
/// Changes nothing, and holds no lock. Reads the whole directory, without the GIL. Raises RaftError if it is no data
/// directory, or cannot be read; damage is no error, but part of the report.
#[pyfunction]
#[pyo3(signature = (data_dir: "str"))]
pub fn inspect<'py>(py: Python<'py>, data_dir: PathBuf) -> PyResult<Figures<'py>> {
    let report = py.detach(|| crate::driver::inspect::inspect(&data_dir));
    let report = report.map_err(|error| RaftError::new_err(error.to_string()))?;
    Ok(Figures(to_dict(py, &report)?))
}

/// Whose data directory it is: "id", "cluster", "identity" and "stage" of its node; None if no node has been started there.
/// Private.
///
/// Without the GIL. Raises what the start of a node there raises: ConfigError if it can be no data directory, FatalError if
/// it cannot be read.
#[pyfunction]
#[pyo3(signature = (data_dir: "str"))]
pub fn recorded<'py>(py: Python<'py>, data_dir: PathBuf) -> PyResult<Option<Figures<'py>>> {
    let record = py.detach(|| crate::driver::inspect::recorded(&data_dir));
    let record = record.map_err(|error| match error.is_misconfiguration() {
        true => ConfigError::new_err(error.to_string()),
        false => FatalError::new_err(error.to_string()),
    })?;
    record.map(|record| node_to_dict(py, &record).map(Figures)).transpose()
}

fn to_dict<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("data_dir", report.data_dir.display().to_string())?;
    dict.set_item("format", report.format)?;
    dict.set_item("locked", report.is_locked)?;
    dict.set_item("damage", &report.damage)?;
    dict.set_item("node", report.node.as_ref().map(|node| node_to_dict(py, node)).transpose()?)?;
    let hard_state = report.hard_state.as_ref().map(|hard_state| {
        let dict = PyDict::new(py);
        dict.set_item("term", hard_state.term)?;
        dict.set_item("vote", (hard_state.vote != raft::INVALID_ID).then_some(hard_state.vote))?;
        dict.set_item("commit", hard_state.commit)?;
        PyResult::Ok(dict)
    });
    dict.set_item("hard_state", hard_state.transpose()?)?;
    dict.set_item("log", report.log.as_ref().map(|log| log_to_dict(py, log)).transpose()?)?;
    let membership = PyDict::new(py);
    let snapshot = report.snapshot_members.as_ref();
    let committed = report.replicated.as_ref().map(|replicated| (replicated.index, &replicated.conf_state));
    let snapshot = snapshot.map(|(index, conf)| members_to_dict(py, *index, conf));
    membership.set_item("snapshot", snapshot.transpose()?)?;
    let committed = committed.map(|(index, conf)| members_to_dict(py, index, conf));
    membership.set_item("committed", committed.transpose()?)?;
    let members = report.replicated.as_ref().map(|replicated| &replicated.membership);
    membership.set_item("members", members.map(|it| details_to_list(py, it)).transpose()?)?;
    membership.set_item("retired", members.map(|it| it.retired.intervals().to_vec()))?;
    membership.set_item("incarnation", members.map(|it| it.incarnation))?;
    dict.set_item("membership", membership)?;
    let sessions = report.replicated.as_ref().map(|replicated| {
        let list = PyList::empty(py);
        for session in &replicated.sessions {
            let dict = PyDict::new(py);
            dict.set_item("origin", session.origin)?;
            dict.set_item("boot", session.boot)?;
            dict.set_item("floor", session.floor)?;
            dict.set_item("applied_ahead", session.applied_ahead)?;
            list.append(dict)?;
        }
        PyResult::Ok(list)
    });
    dict.set_item("sessions", sessions.transpose()?)?;
    dict.set_item("timestamp_ns", report.replicated.as_ref().map(|replicated| replicated.timestamp_ns))?;
    let snapshots = PyList::empty(py);
    for file in &report.snapshots {
        snapshots.append(file_to_dict(py, file)?)?;
    }
    dict.set_item("snapshots", snapshots)?;
    dict.set_item("guard", report.guard.as_ref().map(|guard| guard_to_dict(py, guard)).transpose()?)?;
    Ok(dict)
}

fn node_to_dict<'py>(py: Python<'py>, node: &NodeRecord) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("id", node.id)?;
    dict.set_item("cluster", &node.cluster)?;
    dict.set_item("identity", hex(node.identity))?;
    dict.set_item("boot", node.boot)?;
    let stage = match node.stage {
        Stage::Unformed => "unformed",
        Stage::Prepared(_) => "prepared",
        Stage::Formed(_) => "formed",
    };
    dict.set_item("stage", stage)?;
    let founders = PyList::empty(py);
    for (id, identity) in node.stage.identities().into_iter().flatten() {
        let founder = PyDict::new(py);
        founder.set_item("id", id)?;
        founder.set_item("identity", hex(*identity))?;
        founders.append(founder)?;
    }
    dict.set_item("founders", founders)?;
    let peers = PyList::empty(py);
    for (id, witness) in &node.peers {
        let peer = PyDict::new(py);
        peer.set_item("id", id)?;
        peer.set_item("identity", hex(witness.identity))?;
        peer.set_item("boot", witness.boot)?;
        peer.set_item("term", witness.term)?;
        peer.set_item("voted_term", witness.voted_term)?;
        peer.set_item("index", witness.index)?;
        peers.append(peer)?;
    }
    dict.set_item("peers", peers)?;
    Ok(dict)
}

fn log_to_dict<'py>(py: Python<'py>, log: &LogReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("first_index", log.first_index)?;
    dict.set_item("last_index", log.last_index)?;
    dict.set_item("truncated_term", log.truncated_term)?;
    dict.set_item("last_term", log.last_term)?;
    dict.set_item("files", log.files)?;
    dict.set_item("bytes", log.bytes)?;
    let entries = PyDict::new(py);
    entries.set_item("application", log.entries.application)?;
    entries.set_item("no_op", log.entries.no_op)?;
    entries.set_item("membership", log.entries.membership)?;
    entries.set_item("unknown", log.entries.unknown)?;
    dict.set_item("entries", entries)?;
    Ok(dict)
}

fn members_to_dict<'py>(py: Python<'py>, index: u64, conf: &ConfState) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("index", index)?;
    dict.set_item("voters", &conf.voters)?;
    dict.set_item("learners", &conf.learners)?;
    dict.set_item("voters_outgoing", &conf.voters_outgoing)?;
    dict.set_item("learners_next", &conf.learners_next)?;
    dict.set_item("auto_leave", conf.auto_leave)?;
    Ok(dict)
}

fn details_to_list<'py>(py: Python<'py>, membership: &Membership) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for (id, member) in &membership.members {
        let dict = PyDict::new(py);
        dict.set_item("id", id)?;
        dict.set_item("identity", (member.identity != 0).then(|| hex(member.identity)))?;
        dict.set_item("address", Some(&member.address).filter(|address| !address.is_empty()))?;
        dict.set_item("metadata", member.metadata.clone())?;
        list.append(dict)?;
    }
    Ok(list)
}

fn file_to_dict<'py>(py: Python<'py>, file: &FileView) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("file", &file.file)?;
    let state = match file.state {
        FileState::Whole => "whole",
        FileState::Receiving => "receiving",
        FileState::Writing => "writing",
    };
    dict.set_item("state", state)?;
    dict.set_item("index", file.index)?;
    dict.set_item("term", file.term)?;
    dict.set_item("bytes", file.bytes)?;
    dict.set_item("named", file.is_named)?;
    dict.set_item("problem", file.problem.as_deref())?;
    Ok(dict)
}

fn guard_to_dict<'py>(py: Python<'py>, report: &GuardReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("period_ms", report.guard.period.as_millis())?;
    dict.set_item("durable_batch", report.guard.sequence)?;
    dict.set_item("found_batch", report.found)?;
    Ok(dict)
}

fn hex(identity: Identity) -> String {
    format!("{identity:032x}")
}
