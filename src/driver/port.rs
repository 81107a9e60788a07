//! What crosses between the driver's thread and the application beside it.
//!
//! Two queues, one each way. The application pushes into the [`Inbox`] under a short lock and wakes the driver only if
//! it sleeps; the driver takes everything as one batch. The driver pushes into the [`Completions`] and wakes the
//! application only if it has not been woken already; the application drains in slices. Neither side ever waits for
//! the other, and the driver never takes the GIL.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::capture::Capture;
use super::gate::Ended;
use crate::engine::command::Command;
use crate::engine::formation::Identity;
use crate::engine::membership::{Change, Metadata};
use crate::engine::NodeId;
pub use crate::engine::{Applied, Failure, Leadership, Token};
use crate::storage::snapshot::SnapshotFile;

/// Tokens with this bit are the driver's own; an application's have none.
pub const DRIVER_TOKEN: Token = 1 << 63;

/// A command on its way into the log.
#[derive(Debug)]
pub struct Proposal {
    /// Who waits for it.
    pub token: Token,
    /// The payload behind a blank header.
    pub command: Command,
    /// When its waiter gives up, in nanoseconds of [`now_ns`]; `None` waits for ever.
    pub deadline_ns: Option<u64>,
}

/// Everything else that the application asks for.
#[derive(Debug)]
pub enum Request {
    /// Resolve `token` ([`Completion::Barrier`]) once this node's state contains everything committed before now.
    ReadBarrier {
        /// Who waits.
        token: Token,
        /// When it gives up, in nanoseconds of [`now_ns`]; `None` waits for ever.
        deadline_ns: Option<u64>,
    },
    /// Read applied commands after index `after` ([`Completion::Range`]), up to the application's cursor.
    ReadApplied {
        /// Who waits.
        token: Token,
        /// The index behind which to start.
        after: u64,
        /// Stop behind the entry that reaches this many bytes.
        max_bytes: u64,
    },
    /// Take a snapshot now, or join one that is being taken ([`Completion::Snapshot`]).
    Snapshot {
        /// Who waits.
        token: Token,
        /// When it gives up, in nanoseconds of [`now_ns`]; `None` waits for ever.
        deadline_ns: Option<u64>,
    },
    /// Have another node lead in the place of this one ([`Completion::Transferred`]).
    TransferLeader {
        /// Who waits.
        token: Token,
        /// Who is to lead; `None` for whoever is furthest.
        to: Option<NodeId>,
        /// When it gives up, in nanoseconds of [`now_ns`]; `None` waits for ever.
        deadline_ns: Option<u64>,
    },
    /// Change the members, all of this at once ([`Completion::Changed`]).
    Change {
        /// Who waits.
        token: Token,
        /// What is to change.
        changes: Vec<Change>,
        /// When it gives up, in nanoseconds of [`now_ns`]; `None` waits for ever.
        deadline_ns: Option<u64>,
    },
    /// Stop. A leader hands over first, for which it takes half of `drain` at most. Calls in flight get `drain` to end,
    /// then fail; [`Completion::Stopped`] is the last completion.
    Close {
        /// How long calls in flight may still take.
        drain: Duration,
    },
    /// Hand this message to raft-rs past the guard, to see what becomes of a node whose engine panics.
    #[cfg(test)]
    Unguarded(Box<raft::eraftpb::Message>),
}

/// Why the node stopped by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal {
    /// One sentence: what happened and what to do.
    pub message: String,
    /// It never ran, because of what it was started with and not because of its disk.
    pub is_misconfigured: bool,
    /// It has no part in its cluster any more.
    pub ended: Option<Ended>,
}

impl Fatal {
    /// What befell the node itself.
    pub fn here(message: String) -> Self {
        Self { message, is_misconfigured: false, ended: None }
    }
}

/// What the driver tells the application, in order.
#[derive(Debug)]
pub enum Completion {
    /// The node listens at this address; identity and boot are on disk.
    Listening {
        /// The bound address.
        address: SocketAddr,
    },
    /// Apply these, in order, then set the application's cursor ([`Cursor::set_applied`]) to `through`
    /// (entries between that are not in `entries` are the engine's own, or duplicates).
    Apply {
        /// The commands, in log order.
        entries: Vec<Applied>,
        /// The cursor after them.
        through: u64,
        /// To be given back with [`Completions::consumed`] once they are applied.
        bytes: usize,
    },
    /// The call of `token` failed.
    Failed {
        /// Whose call.
        token: Token,
        /// How.
        failure: Failure,
    },
    /// The barrier of `token` stands at `index`: resolve it as soon as the application's cursor is there.
    Barrier {
        /// Whose barrier.
        token: Token,
        /// The read index.
        index: u64,
    },
    /// The answer to [`Request::ReadApplied`].
    Range {
        /// Whose call.
        token: Token,
        /// The commands, in log order, and the index through which they are complete;
        /// or the lowest index behind which can still be read, if `after` lies before it.
        result: Result<(Vec<Applied>, u64), u64>,
    },
    /// Ask the application for its snapshot, which is to be what it has applied by now and nothing later (rules C2, C3).
    /// Comes directly behind the [`Completion::Apply`] whose `through` is the capture's index.
    Capture(Arc<Capture>),
    /// Replace the application's state by this snapshot, then set its cursor to the snapshot's index. What `Apply` handed
    /// over before it is applied before it.
    Restore {
        /// The snapshot.
        file: Arc<dyn SnapshotFile>,
    },
    /// The answer to [`Request::Snapshot`]: the snapshot of `index` is durable, and the log is compacted behind it.
    Snapshot {
        /// Whose call.
        token: Token,
        /// The index.
        index: u64,
    },
    /// The answer to [`Request::TransferLeader`].
    Transferred {
        /// Whose call.
        token: Token,
        /// Who leads.
        leader: NodeId,
    },
    /// The answer to [`Request::Change`]: it has taken effect, or was so before.
    Changed {
        /// Whose call.
        token: Token,
        /// Where the change stands in the log.
        index: u64,
        /// The ids concerned, in the order of the changes.
        ids: Vec<NodeId>,
    },
    /// The newest known leader, and whether this node leads and has applied all that was committed before.
    Leadership(Leadership),
    /// The node has stopped, and nothing follows. After [`Request::Close`] every pending call has failed before this;
    /// when the node stopped by itself, what is still pending fails with the reason.
    Stopped {
        /// `None` after [`Request::Close`].
        fatal: Option<Fatal>,
    },
}

/// Wakes the other side; called from any thread, at most once per batch.
pub trait Wake: Send + Sync {
    /// Makes the other side look at its queue soon.
    fn wake(&self);
}

/// The way in.
pub struct Inbox {
    queue: Mutex<InboxQueue>,
    driver: Box<dyn Wake>,
}

#[derive(Default)]
struct InboxQueue {
    batch: InboxBatch,
    woken: bool,
}

/// Everything pushed since the last [`Inbox::take`].
#[derive(Default, Debug)]
pub struct InboxBatch {
    /// Commands, in the order they were pushed.
    pub proposals: Vec<Proposal>,
    /// Everything else, in order.
    pub requests: Vec<Request>,
}

impl Inbox {
    /// An empty inbox whose owner is woken by `driver`.
    pub fn new(driver: Box<dyn Wake>) -> Self {
        Self { queue: Mutex::default(), driver }
    }

    /// Hands a command to the driver.
    pub fn propose(&self, proposal: Proposal) {
        self.push(|batch| batch.proposals.push(proposal));
    }

    /// Hands several commands to the driver under one lock.
    pub fn propose_many(&self, proposals: impl IntoIterator<Item = Proposal>) {
        self.push(|batch| batch.proposals.extend(proposals));
    }

    /// Hands a request to the driver.
    pub fn request(&self, request: Request) {
        self.push(|batch| batch.requests.push(request));
    }

    /// Makes the driver look round: room was made, or the application's cursor moved while it waits for that.
    pub fn nudge(&self) {
        self.push(|_| ());
    }

    /// Takes the whole batch, reusing `into`'s buffers.
    pub fn take(&self, into: &mut InboxBatch) {
        into.proposals.clear();
        into.requests.clear();
        let mut queue = self.queue.lock();
        std::mem::swap(&mut queue.batch, into);
        queue.woken = false;
    }

    fn push(&self, put: impl FnOnce(&mut InboxBatch)) {
        let mut queue = self.queue.lock();
        put(&mut queue.batch);
        let wake = !std::mem::replace(&mut queue.woken, true);
        drop(queue);
        if wake {
            self.driver.wake();
        }
    }
}

/// The way out.
pub struct Completions {
    queue: Mutex<VecDeque<Completion>>,
    woken: AtomicBool,
    unapplied_bytes: AtomicUsize,
    application: Box<dyn Wake>,
}

impl Completions {
    /// An empty queue whose reader is woken by `application`.
    pub fn new(application: Box<dyn Wake>) -> Self {
        Self {
            queue: Mutex::default(),
            woken: AtomicBool::new(false),
            unapplied_bytes: AtomicUsize::new(0),
            application,
        }
    }

    /// The driver's side: appends `batch` (left empty) and wakes the application once.
    pub fn push(&self, batch: &mut Vec<Completion>) {
        if batch.is_empty() {
            return;
        }
        for completion in batch.iter() {
            if let Completion::Apply { bytes, .. } = completion {
                self.unapplied_bytes.fetch_add(*bytes, Ordering::Relaxed);
            }
        }
        self.queue.lock().extend(batch.drain(..));
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.application.wake();
        }
    }

    /// The application's side: says that it is awake; to be called before it looks at the queue.
    pub fn acknowledge_wake(&self) {
        self.woken.store(false, Ordering::Release);
    }

    /// The application's side: the oldest completion.
    pub fn pop(&self) -> Option<Completion> {
        self.queue.lock().pop_front()
    }

    /// The application's side: swaps the whole queue with `into`, which must be empty.
    pub fn take(&self, into: &mut VecDeque<Completion>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *self.queue.lock(), into);
    }

    /// The application's side: `bytes` of an [`Completion::Apply`] are applied.
    /// Returns what is still waiting; the driver wants a [`Inbox::nudge`] when that crosses its low-water mark.
    pub fn consumed(&self, bytes: usize) -> usize {
        self.unapplied_bytes.fetch_sub(bytes, Ordering::AcqRel) - bytes
    }

    /// Bytes handed out in [`Completion::Apply`] and not yet given back.
    pub fn unapplied_bytes(&self) -> usize {
        self.unapplied_bytes.load(Ordering::Acquire)
    }
}

/// The application's cursor: the index through which its state machine has applied.
#[derive(Debug, Default)]
pub struct Cursor(AtomicU64);

impl Cursor {
    /// Of an application that holds everything through `index`.
    pub fn at(index: u64) -> Self {
        Self(AtomicU64::new(index))
    }

    /// Moves the cursor; only the application's thread calls this.
    pub fn set_applied(&self, index: u64) {
        self.0.store(index, Ordering::Release);
    }

    /// The index through which the application has applied.
    pub fn applied(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Both queues and the shared state of one node: what [`super::spawn`] returns.
#[derive(Clone)]
pub struct Port {
    /// The way in.
    pub inbox: Arc<Inbox>,
    /// The way out.
    pub completions: Arc<Completions>,
    /// How far the application is.
    pub cursor: Arc<Cursor>,
    /// Figures, refreshed by the driver.
    pub status: Arc<Mutex<Status>>,
}

/// Figures about a node, as of the driver's last round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// This node.
    pub id: NodeId,
    /// `"leader"`, `"follower"`, `"candidate"`, `"pre-candidate"`, `"learner"` or `"forming"`.
    pub role: &'static str,
    /// Current term.
    pub term: u64,
    /// Known leader.
    pub leader: Option<NodeId>,
    /// Commit index known here.
    pub commit: u64,
    /// Engine's cursor: applied to sessions, membership and time.
    pub applied: u64,
    /// First index in the log.
    pub first_index: u64,
    /// Last index in the log.
    pub last_index: u64,
    /// Index of the newest snapshot that the log names durably; 0 without one.
    pub snapshot_index: u64,
    /// Bytes of its file.
    pub snapshot_bytes: u64,
    /// Replicated time of the last applied entry, nanoseconds.
    pub timestamp_ns: u64,
    /// Of its data directory.
    pub identity: Identity,
    /// This start's boot number.
    pub boot: u64,
    /// Proposals of this node not yet applied here.
    pub pending_proposals: u64,
    /// Attempts beyond the first, sent by this node.
    pub reproposals: u64,
    /// Log entries skipped here because their command was applied before.
    pub duplicates_skipped: u64,
    /// Fsyncs of the log since the start.
    pub fsyncs: u64,
    /// The last fsync's duration in nanoseconds.
    pub fsync_last_ns: u64,
    /// The longest fsync since the start in nanoseconds.
    pub fsync_max_ns: u64,
    /// Bytes of the log's files on disk.
    pub log_bytes: u64,
    /// Counts removals and recoveries of the cluster (rule M3).
    pub incarnation: u64,
    /// Whether this node votes.
    pub votes: bool,
    /// Where the others reach it.
    pub address: String,
    /// What its application says of it.
    pub metadata: Metadata,
    /// The others.
    pub peers: Vec<PeerStatus>,
}

/// Figures about one peer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerStatus {
    /// The peer.
    pub id: NodeId,
    /// Where it is reached.
    pub address: String,
    /// Whether it votes; a learner does not.
    pub votes: bool,
    /// What its application says of it.
    pub metadata: Metadata,
    /// A connection is up.
    pub connected: bool,
    /// Why none is, as far as this node knows: one sentence.
    pub trouble: Option<String>,
    /// Highest index known to be on its disk (leader only).
    pub matched: Option<u64>,
    /// `"probe"`, `"replicate"` or `"snapshot"` (leader only).
    pub state: Option<&'static str>,
}

/// How much of the time to drain a leader takes at most to hand over, in nanoseconds; `None` for no time at all. The rest
/// is for the calls that wait for the next leader.
pub fn hand_over_ns(drain: Duration) -> Option<u64> {
    let share_ns = u64::try_from((drain / 2).as_nanos()).unwrap_or(u64::MAX);
    (share_ns > 0).then_some(share_ns)
}

/// The clock of all deadlines: CLOCK_BOOTTIME, which goes on while the machine sleeps, in nanoseconds.
pub fn now_ns() -> u64 {
    super::clock::boottime_ns()
}
