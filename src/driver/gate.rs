//! Who may connect (design decision 11, rules M1 and S2).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::identity::NodeRecord;
use crate::engine::formation::{Formation, Identities, Mismatch, Report};
use crate::engine::NodeId;
use crate::transport::{self, Hello, Refusal, RefusalCode, Role};

/// What driver and network both look at, on one thread.
pub struct Members {
    /// This node.
    pub record: NodeRecord,
    /// Where peers are told to reach this node.
    pub advertise: String,
    /// How far the cluster is formed.
    pub formation: Formation,
    /// The highest boot, and its nonce, seen of each peer.
    boots: BTreeMap<NodeId, (u64, u64)>,
}

impl Members {
    /// No peer has been met yet.
    pub fn new(record: NodeRecord, advertise: String, members: BTreeMap<NodeId, String>) -> Self {
        let formation = Formation::new(record.id, record.identity, members, record.stage.clone());
        Self { record, advertise, formation, boots: BTreeMap::new() }
    }

    fn check_boot(&mut self, hello: &Hello) -> Result<(), Refusal> {
        let (boot, nonce) = *self.boots.entry(hello.from).or_insert((hello.boot, hello.nonce));
        if hello.boot < boot {
            let reason = format!(
                "node {} comes with boot {}, but boot {boot} was seen of it: its data directory was rolled back or copied",
                hello.from, hello.boot
            );
            return Err(Refusal::new(RefusalCode::Boot, reason));
        }
        if hello.boot == boot && hello.nonce != nonce {
            let reason = format!("two processes run as node {}, from copies of one data directory", hello.from);
            return Err(Refusal::new(RefusalCode::Boot, reason));
        }
        self.boots.insert(hello.from, (hello.boot, hello.nonce));
        Ok(())
    }
}

/// A cluster is told apart from another of the same name by a random number that only it can have drawn.
fn lineage(identities: Option<&Identities>) -> u128 {
    identities.and_then(|identities| identities.values().next().copied()).unwrap_or_default()
}

/// The network's view of [`Members`].
pub struct Gate(pub Rc<RefCell<Members>>);

impl transport::Gate for Gate {
    fn hello(&self, to: NodeId) -> Hello {
        let members = self.0.borrow();
        let record = &members.record;
        Hello {
            cluster: record.cluster.clone(),
            lineage: if members.formation.is_formed() { lineage(members.formation.stage().identities()) } else { 0 },
            incarnation: 1,
            from: record.id,
            to,
            identity: record.identity,
            boot: record.boot,
            nonce: record.nonce,
            role: Role::Peer,
            advertise: members.advertise.clone(),
            formation: members.formation.report().encode(),
        }
    }

    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        let mut members = self.0.borrow_mut();
        if hello.cluster != members.record.cluster {
            let reason = format!(
                "node {} belongs to cluster {:?}, this is cluster {:?}: check cluster= and the addresses",
                hello.from, hello.cluster, members.record.cluster
            );
            return Err(Refusal::new(RefusalCode::Cluster, reason));
        }
        let Some(report) = Report::decode(&hello.formation) else {
            let reason =
                "the handshake's report on forming the cluster is damaged or of a later version: upgrade this node";
            return Err(Refusal::new(RefusalCode::Malformed, reason));
        };
        if report.identity != hello.identity {
            return Err(Refusal::new(RefusalCode::Malformed, "the handshake names two identities"));
        }
        let ours = lineage(members.formation.stage().identities());
        if members.formation.is_formed() && hello.lineage != 0 && hello.lineage != ours {
            return Err(Refusal::new(RefusalCode::Lineage, Mismatch::Apart.to_string()));
        }
        members.formation.check(hello.from, &report).map_err(|mismatch| {
            let code = match mismatch {
                Mismatch::Stranger(_) => RefusalCode::NotAMember,
                Mismatch::Members { .. } => RefusalCode::Formation,
                Mismatch::Identity(_) => RefusalCode::Identity,
                Mismatch::Apart => RefusalCode::Lineage,
            };
            Refusal::new(code, mismatch.to_string())
        })?;
        members.check_boot(hello)
    }
}
