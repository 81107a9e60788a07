//! `aioraft recover`: a cluster whose quorum is lost for good goes on from one data directory (rule M3).
//!
//! What the log holds is taken for committed, all of it, and two entries are written behind it: one enters a joint
//! configuration in which this node is the only voter that stays, the other leaves it. They are ordinary entries, so
//! whoever reads the log later, or gets it from this node, comes to the same members; the incarnation that they begin is
//! how the former members know that they are out, should they come back.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use prost::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType};

use super::clock;
use super::identity::{self, NodeRecord};
use super::inspect::go_on;
use super::start::{open_snapshot, StartError};
use crate::engine::command::{self, Command};
use crate::engine::formation::Stage;
use crate::engine::membership::{encode_changes, Change};
use crate::engine::{NodeId, Replicated, APPLICATION_GROUP};
use crate::mutants::{self, Mutant};
use crate::storage::{self, Batch, GroupState, GroupWrite, LogReader, Opened, StorageError};

/// Bytes of entries that are read at once.
const READ_BYTES: u64 = 1 << 20;

/// Why a directory is not recovered; nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// It cannot be opened, or its log cannot be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Its node would not go on from it.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The log cannot be applied.
    #[error("the log cannot be gone through to its end: {0}")]
    Log(String),
    /// There is nothing to recover.
    #[error("the data directory {0} belongs to no cluster yet: there is nothing in it to recover")]
    Unformed(PathBuf),
    /// There is nothing to recover from.
    #[error("node {0} is the only member of its cluster: it goes on by itself, start it")]
    Alone(NodeId),
    /// It has no part in the cluster.
    #[error("node {0} was removed from its cluster: recover the directory of another node")]
    Removed(NodeId),
    /// There is no room for a copy, or it cannot be made.
    #[error("no copy of the data directory can be kept at {to}: {source}; nothing was changed")]
    Copy {
        /// Where it should be.
        to: PathBuf,
        /// Why it is not there.
        source: io::Error,
    },
}

/// What a recovery does, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The node that goes on.
    pub id: NodeId,
    /// Its cluster.
    pub cluster: String,
    /// Who is left behind: these ids are never used again.
    pub lost: Vec<NodeId>,
    /// What is known here to be committed, and what the log holds: it is kept through there.
    pub commit: u64,
    /// The last entry that is kept.
    pub last_index: u64,
    /// Its term.
    pub last_term: u64,
    /// The wall clock of the leader that appended the last command, nanoseconds since 1970; 0 if there is none in the log.
    pub last_wall_ns: u64,
    /// Where the directory was copied to.
    pub copy: Option<PathBuf>,
}

/// What [`recover`] would do to the directory. It is opened as by a start, and locked meanwhile.
///
/// # Errors
/// It cannot be recovered.
pub fn foresee(dir: &Path) -> Result<Recovery, RecoverError> {
    Ok(prepare(dir)?.recovery)
}

/// Makes the directory's node the only member of a new incarnation of its cluster. A copy of the directory, as it was, is
/// kept beside it.
///
/// # Errors
/// It cannot be recovered; nothing has changed.
pub fn recover(dir: &Path) -> Result<Recovery, RecoverError> {
    let Prepared { mut opened, batch, mut recovery } = prepare(dir)?;
    recovery.copy = Some(keep_copy(dir)?);
    opened.writer.write(batch)?;
    Ok(recovery)
}

struct Prepared {
    opened: Opened,
    /// What is to be written.
    batch: Batch,
    recovery: Recovery,
}

fn prepare(dir: &Path) -> Result<Prepared, RecoverError> {
    // Opening would make one.
    if !dir.join("log").is_dir() {
        return Err(StorageError::NotADataDirectory { path: dir.to_path_buf() }.into());
    }
    let opened = storage::disk::open(dir)?;
    let (batch, recovery) = draft(dir, &opened, clock::wall_ns())?;
    Ok(Prepared { opened, batch, recovery })
}

/// A node's own record, its log, and what the log comes to when all that it holds is taken for committed.
pub(crate) struct Whole {
    pub record: NodeRecord,
    pub state: GroupState,
    pub replicated: Replicated,
}

/// Goes through a log that is open; `dir` is for people.
pub(crate) fn go_through(dir: &Path, opened: &Opened) -> Result<Whole, RecoverError> {
    let unformed = || RecoverError::Unformed(dir.to_path_buf());
    let stored = opened.node_records.get(identity::KEY).ok_or_else(unformed)?;
    let dir_text = || dir.display().to_string();
    let record = NodeRecord::read(stored).map_err(|source| StartError::Record { dir: dir_text(), source })?;
    if !matches!(record.stage, Stage::Formed(_)) {
        return Err(unformed());
    }
    let mut state = opened.groups.get(&APPLICATION_GROUP).cloned().ok_or_else(|| StartError::NoLog(dir_text()))?;
    let snapshot = open_snapshot(&state, opened.snapshots.as_ref())?;
    // What is in a snapshot was committed, whatever the log knows of it (rule D2).
    state.hard_state.commit = state.hard_state.commit.max(snapshot.as_ref().map_or(0, |(name, _)| name.index));
    let mut whole = state.clone();
    whole.hard_state.commit = state.last_index;
    let replicated = go_on(&record, whole, snapshot, opened.reader.clone()).map_err(RecoverError::Log)?;
    Ok(Whole { record, state, replicated: replicated.ok_or_else(unformed)? })
}

/// What is to be written to a log that is open, and what that does.
pub(crate) fn draft(dir: &Path, opened: &Opened, wall_ns: u64) -> Result<(Batch, Recovery), RecoverError> {
    let Whole { record, mut state, replicated } = go_through(dir, opened)?;
    let (id, commit) = (record.id, state.hard_state.commit);
    if replicated.membership.retired.contains(id) {
        return Err(RecoverError::Removed(id));
    }
    let lost = replicated.membership.members.keys().copied().filter(|member| *member != id).collect::<Vec<_>>();
    if lost.is_empty() {
        return Err(RecoverError::Alone(id));
    }
    if mutants::on(Mutant::RecoverDropsTail) {
        state.last_index = commit;
    }
    let recovery = Recovery {
        id,
        cluster: record.cluster.clone(),
        lost,
        commit,
        last_index: state.last_index,
        last_term: state.term(state.last_index).unwrap_or(0),
        last_wall_ns: last_wall_ns(opened.reader.as_ref(), &state)?,
        copy: None,
    };
    Ok((entries(&record, &state, &replicated, wall_ns)?, recovery))
}

/// What is written: the entries, and the node's record with the boot that they count for.
fn entries(
    record: &NodeRecord,
    state: &GroupState,
    replicated: &Replicated,
    wall_ns: u64,
) -> Result<Batch, RecoverError> {
    let term = state.hard_state.term.max(state.term(state.last_index).unwrap_or(0)) + 1;
    // No node runs as this boot, so no nonce has to tell it from another.
    let record = record.clone().next(0);
    let boot = record.boot;
    let mut command = Command::membership(&encode_changes(&[Change::Recover(record.id)]));
    command.set_origin(record.id, boot, 1);
    command.set_floor(1);
    command.set_time(replicated.timestamp_ns, wall_ns);
    let leave = ConfChangeV2::default();
    let mut changes = Vec::new();
    if !replicated.conf_state.voters_outgoing.is_empty() {
        changes.push(leave.clone());
    }
    let mut members = replicated.membership.clone();
    let mut conf = replicated.conf_state.clone();
    if !conf.voters_outgoing.is_empty() {
        // What the first entry leaves behind.
        conf.learners.append(&mut conf.learners_next);
        conf.voters_outgoing.clear();
        members.settle(&conf, state.last_index + 1);
    }
    // Not of a node that was to leave with a change that is half done.
    let plan = members.plan(&conf, &[Change::Recover(record.id)]).map_err(|_| RecoverError::Removed(record.id))?;
    changes.extend([plan.conf_change(command.into_bytes()), leave]);
    let entries = changes.into_iter().zip(state.last_index + 1..).map(|(change, index)| {
        let mut entry = Entry { term, index, data: change.encode_to_vec(), ..Default::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry
    });
    let entries = entries.collect::<Vec<_>>();
    let mut hard_state = state.hard_state.clone();
    (hard_state.term, hard_state.vote) = (term, record.id);
    hard_state.commit = entries.last().map_or(state.last_index, |last| last.index);
    let group = GroupWrite { group: APPLICATION_GROUP, entries, hard_state: Some(hard_state), ..Default::default() };
    Ok(Batch { groups: vec![group], node_records: vec![record.as_stored()], sync: true })
}

fn last_wall_ns(reader: &dyn LogReader, state: &GroupState) -> Result<u64, StorageError> {
    let mut end = state.last_index + 1;
    while end > state.truncated.0 + 1 {
        let begin = end.saturating_sub(64).max(state.truncated.0 + 1);
        let (mut at, mut newest) = (begin, None);
        while at < end {
            let entries = reader.entries(APPLICATION_GROUP, at, end, READ_BYTES)?;
            at += entries.len().max(1) as u64;
            let walls = entries.iter().filter_map(|entry| command::decode(&entry.data).ok());
            newest = walls.map(|header| header.wall_ns).next_back().or(newest);
        }
        if let Some(newest) = newest {
            return Ok(newest);
        }
        end = begin;
    }
    Ok(0)
}

/// Copies the directory to a new one beside it; durable when this returns.
fn keep_copy(dir: &Path) -> Result<PathBuf, RecoverError> {
    let mut name = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf()).into_os_string();
    name.push(format!(".before-recovery-{}", clock::wall_ns() / 1_000_000_000));
    let to = PathBuf::from(name);
    copy(dir, &to).map_err(|source| {
        // Half a copy is none.
        let _ = fs::remove_dir_all(&to);
        RecoverError::Copy { to: to.clone(), source }
    })?;
    Ok(to)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    File::open(to)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use raft::eraftpb::ConfState;

    use super::*;
    use crate::engine::membership::Membership;
    use crate::engine::snapshot::Meta;
    use crate::engine::BOOTSTRAP;
    use crate::storage::memory;
    use crate::storage::snapshot::{self, Form, Head};

    #[test]
    fn what_is_in_a_snapshot_counts_as_committed_whatever_the_log_knows() {
        let founders = [(1, 10), (2, 20), (3, 30)];
        let membership = Membership::founded(&[1, 2, 3], &founders.into());
        let conf_state = ConfState { voters: vec![1, 2, 3], ..Default::default() };
        let meta = Meta { conf_state, membership: Some(membership), ..Default::default() };
        let head = Head { group: APPLICATION_GROUP, index: 8, term: 1, form: Form::Bytes, meta: meta.encode() };
        let mut opened = memory::open();
        let written = |head: &Head| {
            let mut writer = opened.snapshots.create(head).unwrap();
            writer.write_chunk(b"state").unwrap();
            *writer.finish().unwrap().name()
        };
        let (former, name) = (written(&Head { index: 7, ..head.clone() }), written(&head));
        let mut state = GroupState { truncated: (8, 1), last_index: 8, ..Default::default() };
        (state.hard_state.term, state.hard_state.commit) = (1, BOOTSTRAP.0);
        state.records.insert(snapshot::RECORD.to_vec(), name.encode_to_vec());
        opened.groups.insert(APPLICATION_GROUP, state);
        let record = NodeRecord {
            id: 1,
            cluster: "shop".into(),
            identity: 10,
            boot: 1,
            nonce: 1,
            earlier: Vec::new(),
            stage: Stage::Formed(founders.into()),
            peers: BTreeMap::new(),
        };
        opened.node_records.extend([record.as_stored()]);
        let (_, recovery) = draft(Path::new("here"), &opened, 0).unwrap();
        assert_eq!((recovery.commit, recovery.last_index), (8, 8));
        // A loss of power may bring back the log that names it.
        assert!(opened.snapshots.open(&former).is_ok(), "it is looked at only");
    }

    #[test]
    fn a_node_that_leaves_with_a_change_that_is_half_done_is_refused_and_not_passed_over() {
        let (cluster, identity, stage) = ("shop".to_owned(), 30, Stage::Formed([(3, 30)].into()));
        let record = |id| NodeRecord {
            id,
            cluster: cluster.clone(),
            identity,
            boot: 1,
            nonce: 1,
            earlier: Vec::new(),
            stage: stage.clone(),
            peers: BTreeMap::new(),
        };
        let conf_state = ConfState { voters: vec![1, 2], voters_outgoing: vec![1, 2, 3], ..Default::default() };
        let membership = Membership::founded(&[1, 2, 3], &BTreeMap::new());
        let replicated = Replicated { index: 5, conf_state, sessions: Vec::new(), membership, timestamp_ns: 0 };
        let state = GroupState { truncated: (1, 1), last_index: 5, ..Default::default() };
        assert!(matches!(entries(&record(3), &state, &replicated, 0), Err(RecoverError::Removed(3))));
        let batch = entries(&record(1), &state, &replicated, 0).unwrap();
        assert_eq!(batch.groups[0].entries.len(), 3, "it is left first");
    }
}
