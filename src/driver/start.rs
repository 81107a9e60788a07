//! From options to a node that listens: open the log, count the boot up, bind.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;

use super::gate::Members;
use super::identity::{self, Drawn, NodeRecord, RecordError};
use super::options::{Listen, Options};
use crate::engine::formation::Stage;
use crate::engine::snapshot::{Meta, MetaError};
use crate::engine::{Engine, Fault, NodeId, Opening, Settings, SnapshotPolicy, APPLICATION_GROUP, BOOTSTRAP};
use crate::storage::snapshot::{self, SnapshotName, SnapshotStore};
use crate::storage::{self, Batch, GroupState, GroupWrite, LogWriter, Opened, StorageError};
use crate::transport::Held;

/// Connections that the system holds until they are accepted.
const BACKLOG: i32 = 1024;

/// Why a node does not start; one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It is another node's.
    #[error("data_dir = {dir:?}: {source}")]
    Record {
        /// The directory; empty for a log in memory.
        dir: String,
        /// What its node record says.
        source: RecordError,
    },
    /// The engine's part of the snapshot.
    #[error(transparent)]
    Snapshot(MetaError),
    /// The system has no random numbers.
    #[error("the system's random number generator failed: {0}")]
    Random(getrandom::Error),
    /// The cluster is being formed with other members.
    #[error(
        "this data directory is forming a cluster of the nodes {formed:?}, but members= lists {listed:?}: list the same ids \
         until it is formed (their addresses may change)"
    )]
    Members {
        /// Who formed it.
        formed: Vec<NodeId>,
        /// Who is listed.
        listed: Vec<NodeId>,
    },
    /// There is a node record, and no log.
    #[error(
        "the data directory {0} knows its node but holds no log: it is damaged; remove it and start this node as a new \
         member"
    )]
    NoLog(String),
    /// The engine refuses the log.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The address cannot be bound.
    #[error(
        "cannot listen on {address}: {source}; is another process using it, and is it an address of this machine?"
    )]
    Listen {
        /// Which address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// An address that others reach, without encryption.
    #[error(
        "{0} is not a loopback address and nothing is encrypted: whoever reaches it can take part in the cluster; listen \
         on loopback, or set insecure=True if the network keeps strangers out"
    )]
    Exposed(SocketAddr),
}

impl StartError {
    /// Whether the arguments are wrong; the disk, or what is on it, otherwise.
    pub fn is_misconfiguration(&self) -> bool {
        use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};
        match self {
            Self::Members { .. } | Self::Exposed(_) => true,
            Self::Record { source, .. } => matches!(source, RecordError::Foreign { .. }),
            Self::Storage(error) => matches!(error, StorageError::NotADirectory { .. } | StorageError::Locked { .. }),
            Self::Listen { source, .. } => {
                matches!(source.kind(), AddrInUse | AddrNotAvailable | PermissionDenied)
            }
            Self::Random(_) | Self::NoLog(_) | Self::Fault(_) | Self::Snapshot(_) => false,
        }
    }
}

/// What a node starts with.
pub struct Started {
    /// What it goes on with.
    pub resumed: Resumed,
    /// Bound.
    pub listener: TcpListener,
}

/// Opens the data directory, makes the next boot number durable, then binds (rule S2).
pub fn start(options: &mut Options) -> Result<Started, StartError> {
    let opened = match &options.data_dir {
        Some(dir) => storage::disk::open(dir)?,
        None => storage::memory::open(),
    };
    let mut drawn = Drawn::new().map_err(StartError::Random)?;
    if let Some(identity) = options.joins.as_ref().and_then(|joins| joins.identity) {
        drawn.identity = identity;
    }
    let resumed = resume(options, opened, &drawn)?;
    let listener = listen(options)?;
    Ok(Started { resumed, listener })
}

/// What a node goes on with; nobody can reach it yet.
pub struct Resumed {
    /// The engine, at the end of its log.
    pub engine: Engine,
    /// For the persist thread.
    pub writer: Box<dyn LogWriter>,
    /// Files beside the log.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// For gate and driver.
    pub members: Rc<RefCell<Members>>,
}

/// Goes on from an opened log: the next boot number is durable when this returns (rule S2).
pub fn resume(options: &Options, opened: Opened, drawn: &Drawn) -> Result<Resumed, StartError> {
    let Opened { mut writer, reader, mut groups, node_records, snapshots } = opened;
    let stored = node_records.get(identity::KEY).map(Vec::as_slice);
    // One that was to found a cluster, has promised nothing yet, and joins another: it begins anew.
    let begins_anew = options.joins.as_ref().is_some_and(|joins| joins.identity.is_some());
    let former = stored.filter(|record| begins_anew && identity::is_unformed(record));
    let stored = stored.filter(|_| former.is_none());
    let dir = || options.data_dir.as_ref().map(|dir| dir.display().to_string()).unwrap_or_default();
    let damaged = |source| StartError::Record { dir: dir(), source };
    let mut record = NodeRecord::boot(stored, options.id, &options.cluster, drawn).map_err(damaged)?;
    if let Some(former) = former {
        // The directory's identity may stay, and then its starts go on being counted (rule S2).
        record.boot += NodeRecord::read(former).map_err(damaged)?.boot;
    }
    check_members(options, &record.stage)?;
    let mut batch = Batch { sync: true, node_records: vec![record.as_stored()], ..Default::default() };
    let state = match groups.remove(&APPLICATION_GROUP) {
        Some(state) => state,
        None if stored.is_some() => return Err(StartError::NoLog(dir())),
        None => {
            let (state, write) = bootstrap();
            batch.groups.push(write);
            state
        }
    };
    let snapshot = open_snapshot(&state, snapshots.as_ref())?;
    writer.write(batch)?;
    // Files that the log does not name are leftovers (rule D1). Not before this write: it fsyncs what the last process has
    // left, and until then a loss of power may bring back the name of an earlier one.
    snapshots.retain(snapshot.as_ref().map(|(name, _)| *name).as_slice())?;
    let hard_state = &state.hard_state;
    let held = Held { term: hard_state.term, vote: hard_state.vote, last_index: state.last_index };
    // A cluster that forms during this start elects its first leader at once.
    let is_fresh = !matches!(record.stage, Stage::Formed(_));
    let settings = settings(options, &record, drawn);
    let opening = Opening { state, snapshot, durable: options.durable_applied, is_fresh };
    let engine = Engine::new(&settings, opening, reader, &options.logger)?;
    let advertise = options.advertise.clone().or_else(|| options.members.get(&options.id).cloned());
    let mut members = Members::new(record, held, advertise.unwrap_or_default(), options.members.clone());
    if members.formation.is_formed() {
        members.formation.set_membership(engine.membership().clone(), engine.votes());
    }
    Ok(Resumed { engine, writer, snapshots, members: Rc::new(RefCell::new(members)) })
}

/// `members` only bootstraps: once the cluster is formed, the log says who they are. What a node has stored before that is
/// final.
fn check_members(options: &Options, stage: &Stage) -> Result<(), StartError> {
    let Stage::Prepared(identities) = stage else { return Ok(()) };
    if identities.keys().eq(options.members.keys()) {
        return Ok(());
    }
    let (formed, listed) = (identities.keys().copied().collect(), options.members.keys().copied().collect());
    Err(StartError::Members { formed, listed })
}

/// The snapshot that the log names, and the engine's part of it.
pub(super) fn open_snapshot(
    state: &GroupState,
    snapshots: &dyn SnapshotStore,
) -> Result<Option<(SnapshotName, Meta)>, StartError> {
    let name = snapshot::snapshot_name(state)?;
    let Some(name) = name else { return Ok(None) };
    let file = snapshots.open(&name)?;
    let meta = Meta::decode(&file.head().meta).map_err(StartError::Snapshot)?;
    Ok(Some((name, meta)))
}

fn bootstrap() -> (GroupState, GroupWrite) {
    let mut state = GroupState { truncated: BOOTSTRAP, last_index: BOOTSTRAP.0, ..Default::default() };
    state.hard_state.term = BOOTSTRAP.1;
    state.hard_state.commit = BOOTSTRAP.0;
    let write = GroupWrite {
        group: APPLICATION_GROUP,
        truncated: Some(BOOTSTRAP),
        hard_state: Some(state.hard_state.clone()),
        ..Default::default()
    };
    (state, write)
}

fn settings(options: &Options, record: &NodeRecord, drawn: &Drawn) -> Settings {
    let tuning = &options.tuning;
    Settings {
        id: options.id,
        boot: record.boot,
        nonce: record.nonce,
        voters: match &record.stage {
            Stage::Formed(founders) => founders.keys().copied().collect(),
            Stage::Unformed | Stage::Prepared(_) => options.members.keys().copied().collect::<Vec<NodeId>>(),
        },
        identities: record.stage.identities().cloned().unwrap_or_default(),
        election_ticks: tuning.election_ticks(),
        seed: drawn.seed,
        heartbeat_ticks: super::options::Tuning::HEARTBEAT_TICKS as usize,
        max_entry_bytes: tuning.max_entry_bytes,
        max_message_bytes: tuning.max_message_bytes,
        max_inflight_messages: tuning.max_inflight_messages,
        max_uncommitted_bytes: tuning.max_uncommitted_bytes,
        max_fresh_bytes: tuning.max_unapplied_bytes,
        entry_cache_bytes: tuning.entry_cache_bytes,
        snapshots: SnapshotPolicy {
            possible: options.takes_snapshots,
            entries: tuning.snapshot_entries,
            bytes: tuning.snapshot_bytes,
            trail: tuning.snapshot_trail,
        },
    }
}

fn listen(options: &mut Options) -> Result<TcpListener, StartError> {
    // The socket moves out of the options; what stays behind is never listened on.
    let listener = match std::mem::replace(&mut options.listen, Listen::Address(String::new())) {
        Listen::Socket(listener) => {
            // Bound is enough: whoever passes a socket need not know that it must listen.
            let listening = socket2::SockRef::from(&listener).listen(BACKLOG);
            listening.map_err(|source| StartError::Listen { address: "the socket given as listen=".into(), source })?;
            listener
        }
        Listen::Address(address) => {
            bind(&address).map_err(|source| StartError::Listen { address: address.clone(), source })?
        }
    };
    let bound = listener
        .local_addr()
        .map_err(|source| StartError::Listen { address: "the socket given as listen=".into(), source })?;
    if !bound.ip().is_loopback() && !options.tuning.insecure {
        return Err(StartError::Exposed(bound));
    }
    Ok(listener)
}

fn bind(address: &str) -> std::io::Result<TcpListener> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        // Without it, an address stays taken for a minute after a restart.
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        match socket.bind(&address.into()).and_then(|()| socket.listen(BACKLOG)) {
            Ok(()) => return Ok(socket.into()),
            Err(error) => last = error,
        }
    }
    Err(last)
}
