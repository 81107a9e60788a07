//! The engine's part of a snapshot: the replicated state beside the application's, exactly as of one index (rule C2).

use prost::Message;
use raft::eraftpb::ConfState;

use super::membership::{Membership, StoredMembership};
use super::session::{Sessions, StoredSession};

/// The format written by this build.
const VERSION: u32 = 2;
/// Before members could change: they are those that founded the cluster.
const VERSION_OF_FOUNDERS: u32 = 1;

/// Sessions, members and time as of an index.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    /// Who votes and learns.
    pub conf_state: ConfState,
    /// Which commands were applied.
    pub sessions: Sessions,
    /// Replicated time.
    pub timestamp_ns: u64,
    /// Indexes that were skipped, ascending, from where the log of the node that took the snapshot began: that node
    /// itself may read so far back again (rule C5).
    pub skipped: Vec<u64>,
    /// What there is to the members beside their votes; `None` in the first format: nothing has changed then.
    pub membership: Option<Membership>,
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, optional, tag = "2")]
    conf_state: Option<ConfState>,
    #[prost(message, repeated, tag = "3")]
    sessions: Vec<StoredSession>,
    #[prost(fixed64, tag = "4")]
    timestamp_ns: u64,
    #[prost(fixed64, repeated, tag = "5")]
    skipped: Vec<u64>,
    #[prost(message, optional, tag = "6")]
    membership: Option<StoredMembership>,
}

/// Why bytes are not the engine's part of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// Damaged, though its checksums are right.
    #[error("the engine's part of the snapshot is damaged")]
    Damaged,
    /// Written by a newer build.
    #[error(
        "the snapshot has format {0}, which a newer aioraft wrote (this one reads format {VERSION}): upgrade this node"
    )]
    Version(u32),
}

impl Meta {
    /// For the head of a snapshot file.
    pub fn encode(&self) -> Vec<u8> {
        let stored = Stored {
            version: if self.membership.is_some() { VERSION } else { VERSION_OF_FOUNDERS },
            conf_state: Some(self.conf_state.clone()),
            sessions: self.sessions.stored(),
            timestamp_ns: self.timestamp_ns,
            skipped: self.skipped.clone(),
            membership: self.membership.as_ref().map(Membership::stored),
        };
        stored.encode_to_vec()
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        let stored = Stored::decode(bytes).map_err(|_| MetaError::Damaged)?;
        if !(VERSION_OF_FOUNDERS..=VERSION).contains(&stored.version) {
            return Err(MetaError::Version(stored.version));
        }
        let conf_state = stored.conf_state.ok_or(MetaError::Damaged)?;
        let sessions = Sessions::from_stored(stored.sessions).ok_or(MetaError::Damaged)?;
        if !stored.skipped.is_sorted() || !is_sound(&conf_state) {
            return Err(MetaError::Damaged);
        }
        let membership = match stored.membership {
            None if stored.version == VERSION_OF_FOUNDERS => None,
            None => return Err(MetaError::Damaged),
            Some(membership) => Some(Membership::from_stored(membership).ok_or(MetaError::Damaged)?),
        };
        Ok(Self { conf_state, sessions, timestamp_ns: stored.timestamp_ns, skipped: stored.skipped, membership })
    }
}

/// Whether raft-rs can take these members: it panics on a configuration without voters, or with a node in two parts.
pub(super) fn is_sound(conf: &ConfState) -> bool {
    let unique = |ids: &[u64]| {
        let mut seen = ids.to_vec();
        seen.sort_unstable();
        seen.windows(2).all(|pair| pair[0] != pair[1]) && !ids.contains(&raft::INVALID_ID)
    };
    let parts = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
    let apart = conf.learners.iter().all(|id| !conf.voters.contains(id) && !conf.voters_outgoing.contains(id));
    let next = conf.learners_next.iter().all(|id| conf.voters_outgoing.contains(id) && !conf.voters.contains(id));
    let joint = !conf.voters_outgoing.is_empty() || (conf.learners_next.is_empty() && !conf.auto_leave);
    !conf.voters.is_empty() && parts.into_iter().all(|ids| unique(ids)) && apart && next && joint
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(voters: &[u64], learners: &[u64], outgoing: &[u64], next: &[u64]) -> ConfState {
        ConfState {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            voters_outgoing: outgoing.to_vec(),
            learners_next: next.to_vec(),
            auto_leave: !outgoing.is_empty(),
        }
    }

    #[test]
    fn c2_all_of_it_survives_the_round_trip_joint_fields_included() {
        let mut sessions = Sessions::default();
        for number in [1, 2, 70, 200] {
            let mut command = crate::engine::command::Command::new(b"");
            command.set_origin(3, 4, number);
            command.set_floor(2);
            command.set_nonce(5);
            sessions.admit(&command.header());
        }
        let conf_state = conf(&[1, 2, 4], &[5], &[1, 2, 3], &[3]);
        let membership = Some(Membership::founded(&[1, 2, 4], &[(2, 7)].into()));
        let meta = Meta { conf_state, sessions, timestamp_ns: 77, skipped: vec![3, 9], membership };
        assert_eq!(Meta::decode(&meta.encode()), Ok(meta));
    }

    #[test]
    fn what_raft_rs_could_not_take_and_what_a_newer_build_wrote_is_refused() {
        let membership = Some(Membership::default());
        let good = Meta { conf_state: conf(&[1, 2], &[3], &[], &[]), membership, ..Default::default() };
        assert!(Meta::decode(&good.encode()).is_ok());
        for bad in [
            conf(&[], &[3], &[], &[]),
            conf(&[1, 1], &[], &[], &[]),
            conf(&[1, 0], &[], &[], &[]),
            conf(&[1, 2], &[2], &[], &[]),
            conf(&[1, 2], &[3], &[3, 1], &[]),
            conf(&[1, 2], &[], &[], &[3]),
            conf(&[1, 2], &[], &[2, 3], &[2]),
        ] {
            let meta = Meta { conf_state: bad.clone(), ..good.clone() };
            assert_eq!(Meta::decode(&meta.encode()), Err(MetaError::Damaged), "{bad:?}");
        }
        let unsorted = Meta { skipped: vec![9, 3], ..good.clone() };
        assert_eq!(Meta::decode(&unsorted.encode()), Err(MetaError::Damaged));
        let newer = Stored { version: 3, ..Default::default() };
        assert_eq!(Meta::decode(&newer.encode_to_vec()), Err(MetaError::Version(3)));
        assert_eq!(Meta::decode(b"\xff\xff"), Err(MetaError::Damaged));
    }
}
