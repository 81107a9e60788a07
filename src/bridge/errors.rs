//! Python's exceptions, and what each failure means for the call that it ends.

#![allow(missing_docs)] // import_exception! leaves no room for them; they are documented in python/aioraft/_errors.py

use pyo3::import_exception;
use pyo3::prelude::*;

use super::state::{Stake, Why};
use crate::driver::gate::Ended;
use crate::driver::port::{Failure, Fatal};

import_exception!(aioraft._errors, RaftError);
import_exception!(aioraft._errors, ConfigError);
import_exception!(aioraft._errors, FatalError);
import_exception!(aioraft._errors, NodeClosedError);
import_exception!(aioraft._errors, NotCommittedError);
import_exception!(aioraft._errors, ProposalTimeoutError);
import_exception!(aioraft._errors, ProposalTooLargeError);
import_exception!(aioraft._errors, OutcomeUnknownError);
import_exception!(aioraft._errors, AppliedWithoutResultError);
import_exception!(aioraft._errors, ApplyError);
import_exception!(aioraft._errors, ReadTimeoutError);
import_exception!(aioraft._errors, SnapshotError);
import_exception!(aioraft._errors, SnapshotTimeoutError);
import_exception!(aioraft._errors, TransferError);
import_exception!(aioraft._errors, TransferTimeoutError);
import_exception!(aioraft._errors, MembershipError);
import_exception!(aioraft._errors, MembershipTimeoutError);
import_exception!(aioraft._errors, RemovedError);
import_exception!(aioraft._errors, SupersededError);
import_exception!(aioraft._errors, Compacted);
import_exception!(aioraft._errors, ReentrantCallError);
import_exception!(aioraft._errors, WrongLoopError);

/// What a proposal's waiter gets for `failure`.
pub fn of_proposal(failure: Failure) -> PyErr {
    match failure {
        Failure::TimedOutUnsent { reason } => ProposalTimeoutError::new_err(format!(
            "the deadline passed before the proposal left this node ({reason}): it is not committed, propose it again"
        )),
        Failure::TimedOut | Failure::ChangeTimedOut { .. } => OutcomeUnknownError::new_err(
            "the deadline passed while the proposal was under way: it may be applied, now or later; read the state \
             after `read_barrier()` before proposing it again",
        ),
        Failure::Refused { reason } => NotCommittedError::new_err(reason),
        Failure::AppliedWithoutResult { index } => AppliedWithoutResultError::new_err((
            format!(
                "the proposal was applied once, at or before index {index}, but this node learned of it from a \
                 snapshot, which holds no results: read the state instead of proposing it again"
            ),
            index,
        )),
        Failure::ClosedUnsent => closed(Some(false)),
        Failure::Closed => closed(None),
        Failure::Snapshot { reason } => SnapshotError::new_err(reason),
        Failure::Transfer { reason } => TransferError::new_err(reason),
    }
}

/// What a proposal gets whose timeout has passed before it begins.
pub fn no_time_to_propose() -> PyErr {
    ProposalTimeoutError::new_err(
        "timeout = 0: no time was left for the proposal, so it was not sent and is not committed; give it some seconds",
    )
}

/// What a read gets whose timeout has passed before it begins.
pub fn no_time_to_read() -> PyErr {
    ReadTimeoutError::new_err("timeout = 0: no time was left to ask a majority; give it some seconds")
}

/// What the waiter of a read gets for `failure`; nothing was proposed.
pub fn of_read(failure: Failure) -> PyErr {
    match failure {
        Failure::TimedOutUnsent { reason } => ReadTimeoutError::new_err(format!(
            "the deadline of the read passed ({reason}): read again once that is mended"
        )),
        Failure::TimedOut | Failure::ChangeTimedOut { .. } => ReadTimeoutError::new_err(
            "the deadline of the read passed before the state machine here had applied what it is to show: read again",
        ),
        Failure::Refused { reason } => RaftError::new_err(reason),
        Failure::AppliedWithoutResult { index } => {
            RaftError::new_err(format!("the read was overtaken by a snapshot at index {index}: read again"))
        }
        Failure::ClosedUnsent | Failure::Closed => closed(Some(false)),
        Failure::Snapshot { reason } => SnapshotError::new_err(reason),
        Failure::Transfer { reason } => TransferError::new_err(reason),
    }
}

/// What the waiter of a transfer of leadership gets for `failure`.
pub fn of_transfer(failure: Failure) -> PyErr {
    match failure {
        Failure::TimedOutUnsent { reason } => TransferTimeoutError::new_err(format!(
            "the deadline passed before another node led ({reason}): see who leads, and give it longer"
        )),
        other => of_read(other),
    }
}

/// What a transfer gets whose timeout has passed before it begins.
pub fn no_time_to_transfer() -> PyErr {
    TransferTimeoutError::new_err("timeout = 0: no time was left to hand over; give it some seconds")
}

/// What the waiter of a change of the members gets for `failure`.
pub fn of_change(failure: Failure) -> PyErr {
    match failure {
        Failure::TimedOutUnsent { reason } => MembershipTimeoutError::new_err((
            format!("the deadline passed, and nothing has changed ({reason}): try again once that is mended"),
            false,
        )),
        Failure::TimedOut => MembershipTimeoutError::new_err((
            "the deadline passed while the change was under way, so it may take effect, now or later: ask again for the \
             same change, which is made once",
            None::<bool>,
        )),
        Failure::ChangeTimedOut { reason } => MembershipTimeoutError::new_err((
            format!(
                "the deadline passed ({reason}), and the change may take effect all the same, now or later: ask again for the \
                 same change, which is made once"
            ),
            None::<bool>,
        )),
        Failure::Refused { reason } => MembershipError::new_err((reason, false)),
        Failure::AppliedWithoutResult { index } => MembershipError::new_err((
            format!(
                "the change was decided at or before index {index}, but this node learned of it from a snapshot: ask again \
                 for the same change, which is made once"
            ),
            None::<bool>,
        )),
        other => of_proposal(other),
    }
}

/// What a change of the members gets whose timeout has passed before it begins.
pub fn no_time_to_change() -> PyErr {
    MembershipTimeoutError::new_err(("timeout = 0: no time was left for the change; give it some seconds", false))
}

/// What the waiter of a snapshot gets for `failure`.
pub fn of_snapshot(failure: Failure) -> PyErr {
    match failure {
        Failure::TimedOutUnsent { .. } | Failure::TimedOut => SnapshotTimeoutError::new_err(
            "the deadline passed while the snapshot was being taken, which goes on: wait for it with another \
             `snapshot()`, and longer",
        ),
        other => of_read(other),
    }
}

/// What a snapshot gets whose timeout has passed before it begins.
pub fn no_time_for_snapshot() -> PyErr {
    SnapshotTimeoutError::new_err("timeout = 0: no time was left to take a snapshot; give it some seconds")
}

/// What `start` raises for a node that never ran.
pub fn of_start(py: Python<'_>, fatal: &Fatal) -> PyErr {
    if fatal.is_misconfigured {
        return ConfigError::new_err(fatal.message.clone());
    }
    stopped(py, &Why::of(fatal), Stake::Nothing)
}

/// The exception of a node that has stopped by itself; `committed` is false for a call that cannot have been committed.
pub fn fatal(why: &Why, committed: Option<bool>) -> PyErr {
    let arguments = (why.message.clone(), committed);
    match why.ended {
        None => FatalError::new_err(arguments),
        Some(Ended::Removed) => RemovedError::new_err(arguments),
        Some(Ended::Superseded) => SupersededError::new_err(arguments),
    }
}

/// The node has stopped by itself.
pub fn stopped(py: Python<'_>, why: &Why, stake: Stake) -> PyErr {
    let committed = (stake == Stake::Unsent).then_some(false);
    let error = fatal(why, committed);
    if stake == Stake::Nothing {
        if let Err(failed) = error.value(py).setattr("outcome", py.None()) {
            return failed;
        }
    }
    error
}

/// The node was closed while a call was under way; `committed` as for `NodeClosedError`.
pub fn closed(committed: Option<bool>) -> PyErr {
    let message = match committed {
        Some(_) => "the node was closed before the call left it: nothing is committed",
        None => "the node was closed while the call was under way: a proposal may or may not be applied",
    };
    NodeClosedError::new_err((message, committed))
}
