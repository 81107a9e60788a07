//! Which messages from peers may reach raft-rs.
//!
//! raft-rs 0.7 trusts its peers: a message that a wiped, rolled-back, broken or hostile peer can send makes it panic, or
//! makes it believe in entries that do not exist. Every message is checked here first.

use raft::eraftpb::{EntryType, Message, MessageType};
use raft::{RawNode, StateRole, Storage};

use super::reads::{context_origin, CONTEXT_LEN};
use super::NodeId;

/// Terms beyond this are refused: raft-rs adds to them without a check.
const TERM_MAX: u64 = u64::MAX >> 8;

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// A reject that an acknowledgement has overtaken (raft-rs #555).
    #[error("it is older than an acknowledgement of the same peer")]
    Stale,
}

/// Checks a message of the authenticated peer `from`.
pub fn admit<S: Storage>(raw: &RawNode<S>, from: NodeId, message: &Message) -> Result<(), Refused> {
    let raft = &raw.raft;
    if message.from != from || message.to != raft.id || from == raft.id {
        return Err(Refused::Address);
    }
    if raft.prs().get(from).is_none() {
        return Err(Refused::Stranger);
    }
    // `get_msg_type` and `get_entry_type` panic on a number that they do not know.
    let kind = MessageType::from_i32(message.msg_type).ok_or(Refused::Type)?;
    if message.entries.iter().any(|entry| EntryType::from_i32(entry.entry_type).is_none()) {
        return Err(Refused::Field);
    }
    let is_read_request = kind == MessageType::MsgReadIndex;
    // Without a term, raft-rs takes a message for one of this node itself; read requests never carry one.
    if (message.term == 0) != is_read_request || message.term > TERM_MAX {
        return Err(Refused::Field);
    }
    let last_index = raft.raft_log.last_index();
    match kind {
        MessageType::MsgAppend => {
            let indexes = message.index.checked_add(1).ok_or(Refused::Field)?..;
            let contiguous = indexes.zip(&message.entries).all(|(index, entry)| entry.index == index);
            let terms = message.entries.iter().map(|entry| entry.term);
            let ascending = terms.clone().zip(terms.clone().skip(1)).all(|(one, next)| one <= next);
            let bounded = terms.clone().all(|term| term > 0 && term <= message.term);
            let begins_later = terms.clone().next().is_none_or(|term| message.log_term <= term);
            if !(contiguous && ascending && bounded && begins_later) {
                return Err(Refused::Field);
            }
        }
        MessageType::MsgHeartbeat if message.commit > last_index && message.term >= raft.term => {
            return Err(Refused::LostLog);
        }
        MessageType::MsgAppendResponse => {
            let matched = raft.prs().get(from).map_or(0, |progress| progress.matched);
            // No snapshot is ever sent, so none can be asked for.
            if message.request_snapshot != 0 {
                return Err(Refused::Field);
            }
            if message.reject && message.index <= matched {
                return Err(Refused::Stale);
            }
            if !message.reject && message.index > last_index && raft.state == StateRole::Leader {
                return Err(Refused::UnknownEntries);
            }
        }
        MessageType::MsgReadIndex => {
            let [entry] = message.entries.as_slice() else { return Err(Refused::Field) };
            if entry.data.len() != CONTEXT_LEN || context_origin(&entry.data) != Some(from) {
                return Err(Refused::Field);
            }
        }
        MessageType::MsgReadIndexResp => {
            let [entry] = message.entries.as_slice() else { return Err(Refused::Field) };
            if entry.data.len() != CONTEXT_LEN || context_origin(&entry.data) != Some(raft.id) {
                return Err(Refused::Field);
            }
        }
        MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => {}
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgSnapshot
        | MessageType::MsgUnreachable
        // Nobody transfers leadership yet, and a follower that is asked to panics.
        | MessageType::MsgTransferLeader
        | MessageType::MsgTimeoutNow
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum => return Err(Refused::Type),
    }
    Ok(())
}
