//! Changes of the members on their way into the log.
//!
//! A leader appends one at a time, and not before it can be: a learner that is to vote must have caught up, and a leader
//! that is to leave hands over first, so that its successor appends the change. What has to wait is held here. Nobody
//! is told of that: whoever proposed it tries again when the leader changes, and a second copy does nothing.

use std::collections::BTreeMap;

use raft::ProgressTracker;

use super::command::Command;
use super::NodeId;

/// Changes of other nodes that a leader holds at once; they try again.
const HELD_MAX: usize = 64;

/// A change that waits for its turn.
#[derive(Debug)]
pub struct Held {
    /// Who proposed it.
    pub from: NodeId,
    /// The change.
    pub command: Command,
    /// Ticks since it came.
    ticks: u64,
}

/// How fast a learner replicates: it has caught up when it needed less than an election timeout for all that there was when
/// a round of it began (Raft thesis 4.2.1).
#[derive(Clone, Copy, Debug)]
struct Round {
    target: u64,
    ticks: u64,
}

/// A change that has taken effect in the joint half: its caller waits for the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Who waits.
    pub token: super::Token,
    /// Until when.
    pub deadline_ns: u64,
    /// Where the change stands.
    pub index: u64,
    /// The ids concerned.
    pub ids: Vec<NodeId>,
}

/// All of them.
#[derive(Debug)]
pub struct Changes {
    held: Vec<Held>,
    rounds: BTreeMap<NodeId, Round>,
    /// Callers of changes that go through a joint configuration which is not left yet.
    pub joint: Vec<Waiter>,
    /// Why the change that waits longest has to.
    obstacle: Option<String>,
    election_ticks: u64,
    /// Ticks for which this node has led members among whom it has no vote in the end.
    outgoing_ticks: u64,
    /// Ticks for which it has led a joint configuration.
    joint_ticks: u64,
}

impl Changes {
    /// None yet.
    pub fn new(election_ticks: usize) -> Self {
        let election_ticks = election_ticks as u64;
        let (held, rounds, joint) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { held, rounds, joint, obstacle: None, election_ticks, outgoing_ticks: 0, joint_ticks: 0 }
    }

    /// Takes in a change of `from`. `false` if there are too many.
    pub fn hold(&mut self, from: NodeId, command: Command) -> bool {
        let name = |command: &Command| {
            let header = command.header();
            (header.origin, header.boot, header.number)
        };
        if let Some(held) = self.held.iter_mut().find(|held| name(&held.command) == name(&command)) {
            held.command = command;
            return true;
        }
        let room = self.held.len() < HELD_MAX;
        if room {
            self.held.push(Held { from, command, ticks: 0 });
        }
        room
    }

    /// Those that wait, the oldest first.
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// One of them is in the log now.
    pub fn appended(&mut self, at: usize) {
        self.held.remove(at);
    }

    /// Takes out those of `from`.
    pub fn take_of(&mut self, from: NodeId) -> Vec<Held> {
        self.take(|held| held.from == from)
    }

    /// Another tick in which this node leads without a vote in the end, or not.
    pub fn tick_outgoing(&mut self, is_outgoing: bool) {
        self.outgoing_ticks = if is_outgoing { self.outgoing_ticks + 1 } else { 0 };
    }

    /// Nobody has taken over from such a leader in two election timeouts.
    pub fn outgoes_in_vain(&self) -> bool {
        self.outgoing_ticks > 2 * self.election_ticks
    }

    /// Another tick in which this node leads a joint configuration, or not.
    pub fn tick_joint(&mut self, is_joint: bool) {
        self.joint_ticks = if is_joint { self.joint_ticks + 1 } else { 0 };
    }

    /// Whoever leaves with the joint configuration has had its time to hear of it.
    pub fn is_joint_for_long(&self) -> bool {
        self.joint_ticks > self.election_ticks
    }

    /// Takes out those of others that have waited for two election timeouts: they are to hear why.
    pub fn take_long_held(&mut self, me: NodeId) -> Vec<Held> {
        let long = 2 * self.election_ticks;
        self.take(|held| held.from != me && held.ticks > long)
    }

    fn take(&mut self, which: impl FnMut(&Held) -> bool) -> Vec<Held> {
        let (taken, stays) = std::mem::take(&mut self.held).into_iter().partition(which);
        self.held = stays;
        taken
    }

    /// This node does not lead: whoever does gets them from their origins.
    pub fn clear(&mut self) {
        self.held.clear();
        self.rounds.clear();
    }

    /// A tick has passed.
    pub fn tick(&mut self) {
        self.held.iter_mut().for_each(|held| held.ticks += 1);
        self.rounds.values_mut().for_each(|round| round.ticks += 1);
    }

    /// Whether `learner` has caught up with a log that ends at `last_index`; begins to find out if nobody has asked before.
    pub fn has_caught_up(
        &mut self,
        progress: &ProgressTracker,
        learner: NodeId,
        last_index: u64,
    ) -> Result<(), String> {
        let Some(progress) = progress.get(learner) else { return Err(format!("node {learner} is no member")) };
        if !progress.recent_active {
            self.rounds.remove(&learner);
            return Err(format!("node {learner} does not answer: is it running, and can the leader reach it?"));
        }
        let behind = || {
            let matched = progress.matched;
            format!("node {learner} has not caught up: it has entries through {matched} of {last_index}")
        };
        let round = self.rounds.entry(learner).or_insert(Round { target: last_index, ticks: 0 });
        if progress.matched < round.target {
            return Err(behind());
        }
        if round.ticks <= self.election_ticks {
            return Ok(());
        }
        *round = Round { target: last_index, ticks: 0 };
        match progress.matched == last_index {
            true => Ok(()),
            false => Err(behind()),
        }
    }

    /// Nobody waits for `learner` any more.
    pub fn forget_round(&mut self, learner: NodeId) {
        self.rounds.remove(&learner);
    }

    /// Why a change waits, or was refused.
    pub fn set_obstacle(&mut self, reason: Option<String>) {
        self.obstacle = reason;
    }

    /// Why a change waits, or was refused, as far as this node knows.
    pub fn obstacle(&self) -> Option<&str> {
        self.obstacle.as_deref()
    }

    /// The earliest moment at which somebody has waited for too long, or `u64::MAX`.
    pub fn next_deadline_ns(&self) -> u64 {
        self.joint.iter().map(|waiter| waiter.deadline_ns).min().unwrap_or(u64::MAX)
    }
}
