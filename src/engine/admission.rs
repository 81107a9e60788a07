//! Which messages from peers may reach raft-rs.
//!
//! raft-rs 0.7 trusts its peers: a message that a wiped, rolled-back, broken or hostile peer can send makes it panic, or
//! makes it believe in entries that do not exist. Every message is checked here first.

use raft::eraftpb::{EntryType, Message, MessageType};
use raft::{RawNode, StateRole, Storage};

use super::reads::{context_origin, CONTEXT_LEN};
use super::snapshot::{is_sound, Meta};
use super::NodeId;
use crate::mutants::{self, Mutant};
use crate::storage::snapshot::SnapshotName;

/// Terms and indexes beyond this are refused: raft-rs adds to them without a check.
const COUNTER_MAX: u64 = u64::MAX >> 8;

/// Reads that a leader keeps at once. Each node has a handful of rounds under way, so only a flood comes near.
const PENDING_READS_MAX: usize = 1024;

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// Sent by, or to, somebody else than the connection says.
    #[error("it is not addressed from that peer to this node")]
    Address,
    /// Its sender is no member.
    #[error("its sender is not a member of the cluster")]
    Stranger,
    /// Only this node may say that to itself; proposals travel in frames of their own.
    #[error("a message of this type never comes from the network")]
    Type,
    /// A field that this type of message cannot have.
    #[error("a field has a value that its type of message cannot have")]
    Field,
    /// It speaks of entries that this node should have and has not.
    #[error("it presumes entries that are not in this node's log: a data directory was wiped or rolled back")]
    LostLog,
    /// A follower claims entries that the leader has not.
    #[error("it acknowledges entries that are not in this node's log: a data directory was wiped or rolled back")]
    UnknownEntries,
    /// A vote that this node cannot have asked for: its request leaves when its whole log is durable (Raft thesis 3.8).
    #[error("it grants a vote that this node has not asked for yet")]
    UnaskedVote,
    /// More reads than the members ever have under way.
    #[error("more reads are under way than members ask for")]
    ReadFlood,
    /// A reject that an acknowledgement has overtaken (raft-rs #555).
    #[error("it is older than an acknowledgement of the same peer")]
    Stale,
    /// A request to campaign at a moment at which raft-rs could not; its sender gives up after an election timeout.
    #[error("this node is installing a snapshot, or its log is not durable yet")]
    Installing,
    /// A read request that came after this node's leadership had ended; its sender asks again.
    #[error("this node does not lead")]
    NotLeader,
}

impl Refused {
    /// Honest peers send this, too, when messages cross: no reason to doubt the sender.
    pub fn is_honest(self) -> bool {
        matches!(self, Self::Stale | Self::NotLeader | Self::Installing)
    }
}

/// Checks a snapshot of the authenticated peer `from`, whose file says this.
///
/// raft-rs takes the members out of the message, and everything else comes out of the file: both must say the same.
pub fn admit_snapshot<S: Storage>(
    raw: &RawNode<S>,
    from: NodeId,
    message: &Message,
    name: &SnapshotName,
    meta: &Meta,
) -> Result<(), Refused> {
    let raft = &raw.raft;
    if message.from != from || message.to != raft.id || from == raft.id {
        return Err(Refused::Address);
    }
    let snapshot = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
    let Some(metadata) = snapshot.filter(|_| message.msg_type == MessageType::MsgSnapshot as i32) else {
        return Err(Refused::Type);
    };
    let same = (metadata.index, metadata.term) == (name.index, name.term)
        && metadata.conf_state.as_ref() == Some(&meta.conf_state);
    let counters = [message.term, metadata.index, metadata.term, message.index, message.log_term, message.commit];
    let bounded = counters.iter().all(|counter| *counter <= COUNTER_MAX);
    // One before the bootstrap, or of a term that its sender has not reached, cannot be.
    let sane = metadata.index > 0 && metadata.term > 0 && metadata.term <= message.term && message.entries.is_empty();
    // What is committed stands for ever (Raft paper 5.4): raft-rs would take another term for it where its log begins.
    let contradicts = metadata.index <= raft.raft_log.committed
        && raft.raft_log.term(metadata.index).is_ok_and(|term| term != 0 && term != metadata.term);
    if !same || !bounded || !sane || contradicts || !is_sound(&meta.conf_state) {
        return Err(Refused::Field);
    }
    Ok(())
}

/// What a member may say to a node that does not know of it yet: one that has not applied that it was added may need it
/// as its leader, or its vote (Raft thesis 4.1). Who may connect at all is decided elsewhere.
fn speaks_first(kind: MessageType) -> bool {
    use MessageType::{MsgAppend, MsgHeartbeat, MsgRequestPreVote, MsgRequestVote, MsgTimeoutNow};
    matches!(kind, MsgAppend | MsgHeartbeat | MsgRequestVote | MsgRequestPreVote | MsgTimeoutNow)
}

/// Checks a message of the authenticated peer `from`.
pub fn admit<S: Storage>(raw: &RawNode<S>, from: NodeId, message: &Message) -> Result<(), Refused> {
    let raft = &raw.raft;
    if message.from != from || message.to != raft.id || from == raft.id {
        return Err(Refused::Address);
    }
    // `get_msg_type` and `get_entry_type` panic on a number that they do not know.
    let kind = MessageType::from_i32(message.msg_type).ok_or(Refused::Type)?;
    if raft.prs().get(from).is_none() && !speaks_first(kind) {
        return Err(Refused::Stranger);
    }
    if message.entries.iter().any(|entry| EntryType::from_i32(entry.entry_type).is_none()) {
        return Err(Refused::Field);
    }
    let is_read_request = kind == MessageType::MsgReadIndex;
    // Without a term, raft-rs takes a message for one of this node itself; read requests never carry one.
    if (message.term == 0) != is_read_request {
        return Err(Refused::Field);
    }
    let Message { term, log_term, index, commit, commit_term, reject_hint, .. } = *message;
    if [term, log_term, index, commit, commit_term, reject_hint].iter().any(|counter| *counter > COUNTER_MAX) {
        return Err(Refused::Field);
    }
    let last_index = raft.raft_log.last_index();
    match kind {
        MessageType::MsgAppend => {
            let contiguous = (index + 1..).zip(&message.entries).all(|(index, entry)| entry.index == index);
            let terms = message.entries.iter().map(|entry| entry.term);
            let ascending = terms.clone().zip(terms.clone().skip(1)).all(|(one, next)| one <= next);
            let bounded = terms.clone().all(|term| term > 0 && term <= message.term);
            let begins_later = terms.clone().next().is_none_or(|term| message.log_term <= term);
            // raft-rs takes term zero for the term of any index beyond its log, and would append behind a gap.
            let as_sent = log_term > 0 && contiguous && ascending && bounded && begins_later;
            if !as_sent && !mutants::on(Mutant::AdmitGap) {
                return Err(Refused::Field);
            }
        }
        MessageType::MsgHeartbeat
            if message.commit > last_index && message.term >= raft.term && !mutants::on(Mutant::AdmitLostLog) =>
        {
            return Err(Refused::LostLog);
        }
        MessageType::MsgAppendResponse => {
            let matched = raft.prs().get(from).map_or(0, |progress| progress.matched);
            // No snapshot is ever sent, so none can be asked for.
            if message.request_snapshot != 0 {
                return Err(Refused::Field);
            }
            if message.reject && index <= matched && !mutants::on(Mutant::AdmitStaleReject) {
                return Err(Refused::Stale);
            }
            // Of an earlier term it is late, and raft-rs ignores it.
            let of_this_leader = raft.state == StateRole::Leader && term == raft.term;
            if !message.reject && index > last_index && of_this_leader && !mutants::on(Mutant::AdmitUnknownEntries) {
                return Err(Refused::UnknownEntries);
            }
        }
        MessageType::MsgRequestVoteResponse => {
            let durable = raft.raft_log.persisted == last_index;
            if !message.reject && raft.state == StateRole::Candidate && !durable {
                return Err(Refused::UnaskedVote);
            }
        }
        MessageType::MsgReadIndex if message.entries.is_empty() && mutants::on(Mutant::AdmitEmptyRead) => {}
        MessageType::MsgReadIndex => {
            let [entry] = message.entries.as_slice() else { return Err(Refused::Field) };
            if entry.data.len() != CONTEXT_LEN || context_origin(&entry.data) != Some(from) {
                return Err(Refused::Field);
            }
            // raft-rs would send it on to the leader in the name of `from`, which the leader's network drops.
            if raft.state != StateRole::Leader {
                return Err(Refused::NotLeader);
            }
            if raft.pending_read_count() >= PENDING_READS_MAX {
                return Err(Refused::ReadFlood);
            }
        }
        MessageType::MsgReadIndexResp => {
            let [entry] = message.entries.as_slice() else { return Err(Refused::Field) };
            if entry.data.len() != CONTEXT_LEN || context_origin(&entry.data) != Some(raft.id) {
                return Err(Refused::Field);
            }
        }
        // Only the leader hands over.
        MessageType::MsgTimeoutNow if from != raft.leader_id => return Err(Refused::Field),
        MessageType::MsgTimeoutNow
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => {}
        MessageType::MsgPropose if mutants::on(Mutant::AdmitProposals) => {}
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgSnapshot
        | MessageType::MsgUnreachable
        // A transfer begins on the leader itself; a follower that is asked for one panics as it passes that on.
        | MessageType::MsgTransferLeader
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum => return Err(Refused::Type),
    }
    Ok(())
}
