//! The replicated state, for who looks at a log without being a node.

use raft::eraftpb::ConfState;

use super::Engine;
use crate::engine::membership::Membership;
use crate::engine::session::SessionFigures;

/// What every replica holds at the same index, beside the application's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Replicated {
    /// As of this index.
    pub index: u64,
    /// Who votes and learns.
    pub conf_state: ConfState,
    /// Which commands were applied.
    pub sessions: Vec<SessionFigures>,
    /// What there is to the members beside their votes, and who was one.
    pub membership: Membership,
    /// Replicated time, nanoseconds.
    pub timestamp_ns: u64,
}

impl Engine {
    /// The replicated state at the engine's cursor.
    pub fn replicated(&self) -> Replicated {
        let mut conf_state = self.conf_state();
        let ConfState { voters, learners, voters_outgoing, learners_next, .. } = &mut conf_state;
        [voters, learners, voters_outgoing, learners_next].into_iter().for_each(|ids| ids.sort_unstable());
        Replicated {
            index: self.applier.applied(),
            conf_state,
            sessions: self.applier.sessions().figures(),
            membership: self.membership().clone(),
            timestamp_ns: self.applier.timestamp_ns(),
        }
    }
}
