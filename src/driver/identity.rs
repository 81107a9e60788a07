//! Who this node is: its data directory's identity, its boot number, and how far the cluster is formed (rules M1, S2).

use std::collections::BTreeMap;

use prost::Message;

use super::witness::Witness;
use crate::engine::formation::{Identities, Identity, Stage};
use crate::engine::NodeId;
use crate::mutants::{self, Mutant};

/// The node record's key among the node's own records.
pub const KEY: &[u8] = b"node";

/// How many earlier starts a directory keeps the nonces of.
const EARLIER_MAX: usize = 128;

/// The format written by this build.
const VERSION: u32 = 1;

/// What a data directory knows about its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// The node's id.
    pub id: NodeId,
    /// The cluster's name.
    pub cluster: String,
    /// Drawn when the directory was created.
    pub identity: Identity,
    /// Counted up at every start, durable before the listener opens.
    pub boot: u64,
    /// Drawn at every start: two copies of a directory that are started at the same time differ in it.
    pub nonce: u64,
    /// The nonces of the starts before, the latest first and [`EARLIER_MAX`] at most: whoever has met one of them knows a
    /// directory that goes on without it, however often that one was started since.
    pub earlier: Vec<u64>,
    /// How far the cluster is formed.
    pub stage: Stage,
    /// What is remembered of the others.
    pub peers: BTreeMap<NodeId, Witness>,
}

#[derive(Clone, PartialEq, Message)]
struct WireRecord {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(string, tag = "3")]
    cluster: String,
    #[prost(bytes = "vec", tag = "4")]
    identity: Vec<u8>,
    #[prost(uint64, tag = "5")]
    boot: u64,
    #[prost(uint64, tag = "6")]
    nonce: u64,
    #[prost(uint32, tag = "7")]
    stage: u32,
    #[prost(btree_map = "uint64, bytes", tag = "8")]
    identities: BTreeMap<u64, Vec<u8>>,
    #[prost(btree_map = "uint64, message", tag = "9")]
    peers: BTreeMap<u64, WireWitness>,
    #[prost(fixed64, repeated, tag = "10")]
    earlier: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct WireWitness {
    #[prost(bytes = "vec", tag = "1")]
    identity: Vec<u8>,
    #[prost(uint64, tag = "2")]
    boot: u64,
    #[prost(uint64, tag = "3")]
    nonce: u64,
    #[prost(uint64, tag = "4")]
    term: u64,
    #[prost(uint64, tag = "5")]
    voted_term: u64,
    #[prost(uint64, tag = "6")]
    index: u64,
}

impl WireWitness {
    fn new(witness: &Witness) -> Self {
        let Witness { identity, boot, nonce, term, voted_term, index } = *witness;
        Self { identity: identity.to_le_bytes().to_vec(), boot, nonce, term, voted_term, index }
    }

    fn read(self) -> Option<Witness> {
        let Self { identity, boot, nonce, term, voted_term, index } = self;
        let identity = Identity::from_le_bytes(identity.try_into().ok()?);
        Some(Witness { identity, boot, nonce, term, voted_term, index })
    }
}

/// Why a data directory is not this node's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// Damaged, or written by a newer build.
    #[error("the node record in the data directory is damaged or was written by a newer aioraft: upgrade this node")]
    Unreadable,
    /// The directory is another node's.
    #[error(
        "the data directory belongs to node {found_id} of cluster {found_cluster:?}, not to node {id} of cluster \
         {cluster:?}: check id=, cluster= and data_dir="
    )]
    Foreign {
        /// Whose it is.
        found_id: NodeId,
        /// Of which cluster.
        found_cluster: String,
        /// Who opened it.
        id: NodeId,
        /// Of which cluster.
        cluster: String,
    },
}

/// The random numbers of one start.
#[derive(Clone, Copy, Debug)]
pub struct Drawn {
    /// The data directory's identity, if it is new.
    pub identity: Identity,
    /// See [`NodeRecord::nonce`].
    pub nonce: u64,
    /// What the engine draws its election timeouts from.
    pub seed: u64,
}

impl Drawn {
    /// From the system's generator.
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut identity = [0; 16];
        getrandom::fill(&mut identity)?;
        let (nonce, seed) = (getrandom::u64()?, getrandom::u64()?);
        Ok(Self { identity: Identity::from_le_bytes(identity), nonce, seed })
    }
}

/// Whether the record says that its node has not agreed to any cluster yet.
pub fn is_unformed(record: &[u8]) -> bool {
    NodeRecord::decode(record).is_some_and(|record| record.stage == Stage::Unformed)
}

impl NodeRecord {
    /// The record for this start: a new directory's, or the stored one with the next boot number.
    /// It must be durable before anybody hears of it.
    pub fn boot(stored: Option<&[u8]>, id: NodeId, cluster: &str, drawn: &Drawn) -> Result<Self, RecordError> {
        let Drawn { identity, nonce, .. } = *drawn;
        let Some(stored) = stored else {
            let (cluster, stage, peers) = (cluster.into(), Stage::Unformed, BTreeMap::new());
            return Ok(Self { id, cluster, identity, boot: 1, nonce, earlier: Vec::new(), stage, peers });
        };
        let record = Self::read(stored)?;
        if (record.id, record.cluster.as_str()) != (id, cluster) {
            let (found_id, found_cluster) = (record.id, record.cluster);
            return Err(RecordError::Foreign { found_id, found_cluster, id, cluster: cluster.into() });
        }
        let boot = record.boot;
        let next = record.next(nonce);
        Ok(if mutants::on(Mutant::SameBootAgain) { Self { boot, ..next } } else { next })
    }

    /// The record of the start after this one.
    pub fn next(self, nonce: u64) -> Self {
        let earlier = [self.nonce].into_iter().chain(self.earlier).take(EARLIER_MAX).collect();
        Self { boot: self.boot.saturating_add(1), nonce, earlier, ..self }
    }

    /// The record as it was stored.
    pub fn read(stored: &[u8]) -> Result<Self, RecordError> {
        Self::decode(stored).ok_or(RecordError::Unreadable)
    }

    /// The record as the log keeps it: its key and its bytes.
    pub fn as_stored(&self) -> (Vec<u8>, Vec<u8>) {
        (KEY.to_vec(), self.encode())
    }

    /// The bytes on disk.
    pub fn encode(&self) -> Vec<u8> {
        let stage = match self.stage {
            Stage::Unformed => 0,
            Stage::Prepared(_) => 1,
            Stage::Formed(_) => 2,
        };
        let identities = self.stage.identities().into_iter().flatten();
        let record = WireRecord {
            version: VERSION,
            id: self.id,
            cluster: self.cluster.clone(),
            identity: self.identity.to_le_bytes().to_vec(),
            boot: self.boot,
            nonce: self.nonce,
            stage,
            identities: identities.map(|(id, identity)| (*id, identity.to_le_bytes().to_vec())).collect(),
            peers: self.peers.iter().map(|(id, witness)| (*id, WireWitness::new(witness))).collect(),
            earlier: self.earlier.clone(),
        };
        record.encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let record = WireRecord::decode(bytes).ok()?;
        let identity = |bytes: Vec<u8>| Some(Identity::from_le_bytes(bytes.try_into().ok()?));
        let identities = record.identities.into_iter().map(|(id, bytes)| Some((id, identity(bytes)?)));
        let identities = identities.collect::<Option<Identities>>()?;
        let stage = match (record.version, record.stage) {
            (VERSION, 0) => Stage::Unformed,
            (VERSION, 1) => Stage::Prepared(identities),
            (VERSION, 2) => Stage::Formed(identities),
            _ => return None,
        };
        let peers = record.peers.into_iter().map(|(id, witness)| Some((id, witness.read()?))).collect::<Option<_>>()?;
        let (id, cluster, boot, nonce, earlier) =
            (record.id, record.cluster, record.boot, record.nonce, record.earlier);
        Some(Self { id, cluster, identity: identity(record.identity)?, boot, nonce, earlier, stage, peers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s2_every_start_counts_the_boot_up_and_keeps_the_identity() {
        let first = NodeRecord::boot(None, 3, "shop", &Drawn::new().unwrap()).unwrap();
        assert_eq!(first.boot, 1);
        let stage = Stage::Formed([(3, first.identity)].into());
        let peer = Witness { identity: u128::MAX, boot: 2, nonce: 3, term: 4, voted_term: 5, index: 6 };
        let formed = NodeRecord { stage, peers: [(9, peer)].into(), ..first.clone() };
        let second = NodeRecord::boot(Some(&formed.encode()), 3, "shop", &Drawn::new().unwrap()).unwrap();
        assert_eq!((second.boot, second.identity, &second.stage), (2, first.identity, &formed.stage));
        assert_ne!(second.nonce, first.nonce);
        assert_eq!(second.earlier, [first.nonce]);
        assert_eq!(second.peers, formed.peers);
    }

    #[test]
    fn s2_the_nonces_of_a_hundred_starts_are_kept_and_no_more() {
        let boot = |stored: Option<&[u8]>, nonce| {
            NodeRecord::boot(stored, 3, "shop", &Drawn { identity: 1, nonce, seed: 0 }).unwrap()
        };
        let mut record = boot(None, 1);
        for nonce in 2..=EARLIER_MAX as u64 + 9 {
            record = boot(Some(&record.encode()), nonce);
        }
        assert_eq!(record.earlier.len(), EARLIER_MAX);
        assert_eq!((record.earlier[0], record.earlier[EARLIER_MAX - 1]), (record.boot - 1, 9));
    }

    #[test]
    fn another_nodes_directory_is_refused() {
        let record = NodeRecord::boot(None, 3, "shop", &Drawn::new().unwrap()).unwrap().encode();
        for (id, cluster) in [(2, "shop"), (3, "other")] {
            let error = NodeRecord::boot(Some(&record), id, cluster, &Drawn::new().unwrap()).unwrap_err().to_string();
            assert!(error.contains("node 3 of cluster \"shop\""), "{error}");
        }
        let newer = WireRecord { version: 2, ..WireRecord::decode(&record[..]).unwrap() }.encode_to_vec();
        assert_eq!(NodeRecord::boot(Some(&newer), 3, "shop", &Drawn::new().unwrap()), Err(RecordError::Unreadable));
    }
}
