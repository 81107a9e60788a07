//! What the checkers are told. They see the world from outside: what nodes wrote, applied and answered, never why.

use raft::eraftpb::{ConfState, Entry};

use super::clock::Time;
use super::network::MachineId;
use super::objects::{Answer, Operation};
use crate::engine::membership::{Change, Membership};
use crate::engine::{Applied, Cursors, NodeId, Token};

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A proposal was applied at this index, a barrier stood: with this answer.
    Answered {
        /// Of a proposal.
        index: Option<u64>,
        /// From this node's state machine.
        answer: Answer,
    },
    /// Not committed, and never will be.
    NotCommitted,
    /// Applied, at or before this index; its answer is gone.
    AppliedWithoutResult {
        /// At or before.
        index: u64,
    },
    /// It may or may not be applied, now or later.
    Unknown,
    /// Its process is gone, and with it whoever waited.
    Lost,
}

/// Why a node stopped, or did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// A crash that the schedule asked for.
    Crashed,
    /// The application closed it.
    Closed,
    /// Its disk failed, as the schedule asked for.
    DiskFailed,
    /// It was started with a wrong list of members, as the schedule asked for.
    WrongMembers,
    /// Its disk was wiped, rolled back or copied, and it found that out.
    FoundOut,
    /// It heard that this node, its own, was removed.
    Removed(NodeId),
    /// It heard that its cluster was recovered without it.
    Superseded(NodeId),
    /// Nobody asked for it.
    ByItself(String),
}

/// Something that happened on a machine.
#[derive(Debug)]
pub enum Event<'a> {
    /// A node starts with this log, behind this (index, term); its application goes on from what it holds by itself.
    Started { begin: (u64, u64), log: &'a [Entry], application: u64 },
    /// A snapshot takes the place of its log, which begins behind this (index, term) then.
    Installed { begin: (u64, u64) },
    /// A snapshot takes the place of the application's state.
    Restored { index: u64 },
    /// It ends.
    Stopped { why: &'a Stopped },
    /// The engine appends entries to its log, in this term.
    Appended { term: Option<u64>, entries: &'a [Entry] },
    /// It believes that it leads in this term.
    Leads { term: u64 },
    /// The application applies an entry.
    Applied { applied: &'a Applied },
    /// The application's cursor is here.
    Reached { through: u64 },
    /// A client calls.
    Called { call: Token, operation: Operation, deadline: Option<Time> },
    /// Its call ends.
    CallEnded { call: Token, how: Ended },
    /// Somebody calls for another leader.
    CalledForLeader { call: Token, deadline: Option<Time> },
    /// That call ends: in a leader, in an error, or with its process.
    LeaderCallEnded { call: Token, is_lost: bool },
    /// An application calls for these changes of the members.
    CalledForChange { call: Token, deadline: Option<Time>, changes: &'a [Change] },
    /// That call ends.
    ChangeCallEnded { call: Token, how: &'a ChangeEnded },
    /// A node that joined by its name asks for this member's removal, which has lost its disk or has not.
    Displaces { id: NodeId, is_healthy: bool },
    /// A formed node has got further, with these members.
    Members(Standpoint<'a>),
    /// A node tells another that it has its vote in this term.
    Voted { term: u64, from: NodeId, to: NodeId },
    /// A node tells another that its disk holds the leader's log through `index`.
    Acknowledged { term: u64, from: NodeId, to: NodeId, index: u64 },
    /// What the engine has made of the log through `applied`.
    Digest { applied: u64, digest: u64 },
    /// What the application has made of the log through `applied`.
    ApplicationDigest { applied: u64, digest: u64 },
    /// `commits()` was read: everything behind `after`, through `through`.
    Commits { after: u64, through: u64, entries: &'a [Applied] },
    /// How much the engine holds.
    Held { sizes: &'a crate::engine::Sizes, open_calls: usize },
    /// A leader in this term, whose log ends at `last`, knows this of the others.
    Follow { term: u64, last: u64, peers: &'a [crate::engine::Follower] },
    /// The process did not run, or its application did not, until now.
    WasHeldUp,
}

/// How a call for a change of the members ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeEnded {
    /// It has taken effect at this index, or was so before.
    Done {
        /// Where it stands.
        index: u64,
        /// Whom it concerns.
        ids: Vec<NodeId>,
    },
    /// It never takes effect.
    Refused,
    /// It stands at this index or before.
    WithoutResult {
        /// At or before.
        index: u64,
    },
    /// It may or may not take effect.
    Unknown,
    /// Its process is gone, and with it whoever waited.
    Lost,
}

/// What a node knows at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Standpoint<'a> {
    /// Which node.
    pub id: NodeId,
    /// How far its engine is.
    pub cursors: Cursors,
    /// Ticks of its process so far.
    pub ticks: u64,
    /// Who votes and learns.
    pub conf: &'a ConfState,
    /// All else about them.
    pub membership: &'a Membership,
}

/// How far a machine is when the world ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// The engine's cursor.
    pub engine: u64,
    /// The application's cursor.
    pub application: u64,
}

/// How things stand when the world ends.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// Machines that should have recovered, and where they stand, if they run.
    pub healthy: Vec<(MachineId, Option<Standing>)>,
    /// Enough of them are healthy for the cluster to go on.
    pub recovers: bool,
    /// Nodes that were removed, could have heard so, and run on.
    pub removed_and_runs: Vec<NodeId>,
    /// Members that joined by their names and have no vote.
    pub without_a_vote: Vec<NodeId>,
}
