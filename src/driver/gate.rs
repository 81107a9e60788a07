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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::formation::{Identity, Stage};
    use crate::transport::Gate as _;

    fn members() -> BTreeMap<NodeId, String> {
        (1..=3).map(|id| (id, format!("host:{id}"))).collect()
    }

    /// A node's gate; its identity is its id times 10.
    fn gate(id: NodeId, boot: u64, nonce: u64, stage: Stage) -> Gate {
        let (cluster, identity) = ("shop".to_string(), Identity::from(id) * 10);
        let record = NodeRecord { id, cluster, identity, boot, nonce, stage };
        Gate(Rc::new(RefCell::new(Members::new(record, format!("host:{id}"), members()))))
    }

    fn all() -> Identities {
        (1..=3).map(|id| (id, Identity::from(id) * 10)).collect()
    }

    /// What node 2 says to node 1.
    fn hello(boot: u64, nonce: u64) -> Hello {
        gate(2, boot, nonce, Stage::Formed(all())).hello(1)
    }

    fn formed() -> Gate {
        gate(1, 1, 1, Stage::Formed(all()))
    }

    fn refused(gate: &Gate, hello: &Hello) -> (RefusalCode, String) {
        let refusal = gate.admit(hello).unwrap_err();
        (refusal.code, refusal.reason)
    }

    #[test]
    fn s2_an_earlier_boot_is_refused() {
        let gate = formed();
        assert_eq!(gate.admit(&hello(5, 1)), Ok(()));
        let (code, reason) = refused(&gate, &hello(4, 1));
        assert_eq!(code, RefusalCode::Boot);
        assert!(reason.contains("boot 4") && reason.contains("boot 5") && reason.contains("rolled back"), "{reason}");
        assert_eq!(gate.admit(&hello(5, 1)), Ok(()), "the same start connects as often as it likes");
        assert_eq!(gate.admit(&hello(6, 2)), Ok(()), "a restart");
        assert_eq!(refused(&gate, &hello(5, 1)).0, RefusalCode::Boot, "the boot before the restart");
    }

    #[test]
    fn s2_a_second_start_with_the_same_boot_is_refused() {
        let gate = formed();
        assert_eq!(gate.admit(&hello(5, 1)), Ok(()));
        let (code, reason) = refused(&gate, &hello(5, 2));
        assert_eq!(code, RefusalCode::Boot);
        assert!(reason.contains("two processes run as node 2"), "{reason}");
        assert_eq!(gate.admit(&hello(5, 1)), Ok(()), "the copy did not take the place of the first");
    }

    #[test]
    fn s2_a_refused_node_leaves_no_boot_behind() {
        let gate = formed();
        let foreign = Hello { cluster: "other".into(), ..hello(9, 9) };
        assert_eq!(refused(&gate, &foreign).0, RefusalCode::Cluster);
        let wiped = Report { identity: 21, ..Report::decode(&hello(9, 9).formation).unwrap() };
        let wiped = Hello { identity: 21, formation: wiped.encode(), ..hello(9, 9) };
        assert_eq!(refused(&gate, &wiped).0, RefusalCode::Identity);
        assert_eq!(gate.admit(&hello(1, 1)), Ok(()));
    }

    #[test]
    fn another_cluster_is_refused_by_name() {
        let (code, reason) = refused(&formed(), &Hello { cluster: "other".into(), ..hello(1, 1) });
        assert_eq!(code, RefusalCode::Cluster);
        assert!(reason.contains("\"other\"") && reason.contains("\"shop\""), "{reason}");
    }

    #[test]
    fn m1_a_cluster_of_another_lineage_is_refused() {
        assert_ne!(hello(1, 1).lineage, 0);
        let other = Hello { lineage: hello(1, 1).lineage + 1, ..hello(1, 1) };
        assert_eq!(refused(&formed(), &other).0, RefusalCode::Lineage);
        let unformed = gate(2, 1, 1, Stage::Unformed).hello(1);
        assert_eq!(unformed.lineage, 0);
        assert_eq!(formed().admit(&unformed), Ok(()), "not formed yet, here it is told");
        assert_eq!(gate(1, 1, 1, Stage::Unformed).admit(&hello(1, 1)), Ok(()), "and the other way round");
    }

    #[test]
    fn m1_a_handshake_that_names_two_identities_is_refused() {
        let gate = formed();
        let (code, reason) = refused(&gate, &Hello { identity: 21, ..hello(1, 1) });
        assert_eq!(code, RefusalCode::Malformed);
        assert!(reason.contains("two identities"), "{reason}");
    }

    #[test]
    fn m1_a_report_that_cannot_be_read_is_refused() {
        for formation in [vec![], b"\xff\xff\xff".to_vec(), hello(1, 1).formation[1..].to_vec()] {
            let (code, reason) = refused(&formed(), &Hello { formation, ..hello(1, 1) });
            assert_eq!(code, RefusalCode::Malformed);
            assert!(reason.contains("upgrade"), "{reason}");
        }
    }

    #[test]
    fn m1_whoever_does_not_fit_the_formation_is_refused_for_what_it_is() {
        let report = |identity, members: &str, stage| Report { identity, members: members.into(), stage }.encode();
        let from = |from, identity, formation| Hello { from, identity, formation, lineage: 0, ..hello(1, 1) };
        let unformed = gate(1, 1, 1, Stage::Unformed);
        let list = Formation::members_text(&members());
        let stranger = from(9, 90, report(90, &list, Stage::Unformed));
        assert_eq!(refused(&unformed, &stranger).0, RefusalCode::NotAMember);
        let other_list = from(2, 20, report(20, "1=elsewhere:1", Stage::Unformed));
        assert_eq!(refused(&unformed, &other_list).0, RefusalCode::Formation);
        let wiped = from(2, 21, report(21, &list, Stage::Unformed));
        assert_eq!(refused(&formed(), &wiped).0, RefusalCode::Identity);
        let apart = report(20, &list, Stage::Prepared([(1, 10), (2, 20), (3, 31)].into()));
        assert_eq!(refused(&formed(), &from(2, 20, apart)).0, RefusalCode::Lineage);
    }
}
