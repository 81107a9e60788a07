//! Who may connect (design decision 11, rules M1 and S2).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::identity::NodeRecord;
use super::options::AdminFrom;
use super::witness::Spoken;
use crate::engine::formation::{Formation, Identities, Mismatch, Report};
use crate::engine::membership::Membership;
use crate::engine::{NodeId, APPLICATION_GROUP};
use crate::storage::snapshot::SnapshotName;
use crate::transport::{self, Held, Hello, Refusal, RefusalCode, Role};

/// Why a node has no part in its cluster any more (rule M3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The others have removed it.
    #[error(
        "this node was removed from its cluster, and its id is never used again: to have it back, start it with an empty \
         data directory as a new member"
    )]
    Removed,
    /// The quorum was lost, and the cluster went on without this node.
    #[error(
        "this node's cluster was recovered without it, after its quorum was lost: what only this node holds is not part of \
         the cluster any more; to have the node back, start it with an empty data directory as a new member"
    )]
    Superseded,
}

/// What driver and network both look at, on one thread.
pub struct Members {
    /// This node, and what it remembers of the others.
    pub record: NodeRecord,
    /// Where peers are told to reach this node.
    pub advertise: String,
    /// How far the cluster is formed.
    pub formation: Formation,
    /// What this node's disk held when it started.
    held: Held,
    /// Numbers of records: the last one handed to the log, and the last one that is durable.
    handed: u64,
    durable: u64,
    /// The number of the record that holds a peer's newest start. Without one, it is durable since before this start.
    let_in_at: BTreeMap<NodeId, u64>,
    /// Where members are reached of whom others have told more than this node's log.
    heard_of: BTreeMap<NodeId, String>,
    /// This node has no part in the cluster any more.
    ended: Option<Ended>,
    /// The record has changed: it must be written before anybody new is let in, or it can wait for some time.
    is_due: bool,
    is_changed: bool,
}

impl Members {
    /// Goes on from a stored record.
    pub fn new(record: NodeRecord, held: Held, advertise: String, members: BTreeMap<NodeId, String>) -> Self {
        let formation = Formation::new(record.id, record.identity, members, record.stage.clone());
        let (let_in_at, heard_of) = (BTreeMap::new(), BTreeMap::new());
        let (handed, durable, ended, is_due, is_changed) = (0, 0, None, false, false);
        Self { record, advertise, formation, held, handed, durable, let_in_at, heard_of, ended, is_due, is_changed }
    }

    /// Whom this node dials when it starts with this list, and where: where the log says, or else the list. A newcomer whose
    /// log does not know it yet dials the whole list: the members that it knows may all be gone.
    pub fn dialled(&self, listed: &BTreeMap<NodeId, String>) -> BTreeMap<NodeId, String> {
        let membership = self.formation.membership();
        let is_known = membership.members.contains_key(&self.record.id);
        let beside = listed.keys().copied().filter(|peer| !is_known && *peer != self.record.id);
        let addresses = self.formation.others().into_iter().chain(beside).filter_map(|peer| {
            let known =
                membership.members.get(&peer).map(|member| &member.address).filter(|address| !address.is_empty());
            // Whoever was reached where this node is now is gone.
            let address = known.or_else(|| listed.get(&peer)).filter(|address| **address != self.advertise)?;
            Some((peer, address.clone()))
        });
        addresses.collect()
    }

    /// Whom a peer that knows more counts among the members, and where it is to be dialled instead of where it is `dialled`:
    /// this node lags behind. Whoever leads may be new to it or have moved, and may not know where this node is now.
    pub fn hear_of(&mut self, report: &Report, dialled: impl Fn(NodeId) -> Option<String>) -> Vec<(NodeId, String)> {
        let ours = self.formation.membership();
        let knows_more = |theirs: &&Membership| self.formation.is_formed() && theirs.version > ours.version;
        let theirs = report.membership.as_ref().filter(knows_more);
        let news = theirs.into_iter().flat_map(|theirs| &theirs.members).filter(|(id, member)| {
            let is_somewhere = !member.address.is_empty() && member.address != self.advertise;
            let is_another = !ours.retired.contains(**id) && **id != self.record.id;
            // Where it says itself that it is reached, it knows better than any log.
            let known = [ours.members.get(id).map(|member| &member.address), self.heard_of.get(id)];
            let at = dialled(**id);
            let is_of_log = at.as_ref().is_none_or(|at| known.contains(&Some(at)));
            is_somewhere && is_another && is_of_log && at.as_ref() != Some(&member.address)
        });
        let news = news.map(|(id, member)| (*id, member.address.clone())).collect::<Vec<_>>();
        self.heard_of.extend(news.iter().cloned());
        news
    }

    /// Who is no member any more, as opposed to `before`. A node that finds itself among the members for the first time counts
    /// those of its list, too. One that is `connected` may have been added and removed between the two.
    pub fn gone(
        &mut self,
        before: &Membership,
        listed: &BTreeMap<NodeId, String>,
        connected: &[NodeId],
    ) -> BTreeSet<NodeId> {
        let (me, after) = (self.record.id, self.formation.membership());
        let has_come = after.members.contains_key(&me) && !before.members.contains_key(&me);
        let known = before.members.keys().chain(listed.keys().filter(|_| has_come));
        let known = known.chain(connected.iter().chain(self.heard_of.keys()).filter(|id| after.retired.contains(**id)));
        let gone = known.copied().filter(|id| *id != me && !after.members.contains_key(id)).collect();
        self.heard_of.retain(|id, _| !after.retired.contains(*id));
        gone
    }

    /// Why this node has no part in the cluster any more, if that is so.
    pub fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Somebody whom this node trusts in that says so.
    pub fn end(&mut self, why: Ended) {
        self.ended.get_or_insert(why);
    }

    /// A peer's report does not fit: perhaps because this node is the one that does not.
    pub fn note(&mut self, mismatch: &Mismatch) {
        match mismatch {
            Mismatch::Removed(id) if *id == self.record.id => self.end(Ended::Removed),
            Mismatch::Superseded(id) if *id == self.record.id => self.end(Ended::Superseded),
            _ => {}
        }
    }

    /// The highest boot that was let in of a peer.
    #[cfg(feature = "sim")]
    pub fn boot_seen(&self, peer: NodeId) -> Option<u64> {
        self.record.peers.get(&peer).map(|witness| witness.boot)
    }

    /// The record has to be written now.
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    /// The record differs from what was last handed to the log.
    pub fn is_changed(&self) -> bool {
        self.is_due || self.is_changed
    }

    /// The record as it is now, for the log, and the number to give back to [`Self::stored`].
    pub fn next_record(&mut self) -> (u64, (Vec<u8>, Vec<u8>)) {
        self.handed += 1;
        (self.is_due, self.is_changed) = (false, false);
        (self.handed, self.record.as_stored())
    }

    /// All records up to this number are durable.
    pub fn stored(&mut self, number: u64) {
        self.durable = number;
    }

    /// The newest start of `peer` that was let in is durable.
    pub fn remembers(&self, peer: NodeId) -> bool {
        self.let_in_at.get(&peer).is_none_or(|number| *number <= self.durable)
    }

    /// `peer` spoke.
    pub fn heard(&mut self, peer: NodeId, spoken: Spoken) {
        if let Some(witness) = self.record.peers.get_mut(&peer) {
            self.is_changed |= witness.heard(spoken);
        }
    }

    /// `peer` holds everything committed up to `index`.
    pub fn acknowledged(&mut self, peer: NodeId, index: u64) {
        if let Some(witness) = self.record.peers.get_mut(&peer) {
            self.is_changed |= witness.acknowledged(index);
        }
    }

    fn let_in(&mut self, hello: &Hello) -> Result<(), Refusal> {
        let witness = self.record.peers.entry(hello.from).or_default();
        witness.check(self.record.id, hello)?;
        if witness.let_in(hello) {
            // The next record is the first that holds it.
            self.let_in_at.insert(hello.from, self.handed + 1);
            self.is_due = true;
        }
        Ok(())
    }
}

/// A cluster is told apart from another of the same name by a random number that only it can have drawn.
fn lineage(identities: Option<&Identities>) -> u128 {
    identities.and_then(|identities| identities.values().next().copied()).unwrap_or_default()
}

/// The network's view of [`Members`].
pub struct Gate {
    members: Rc<RefCell<Members>>,
    /// The driver has another record to write.
    driver: Arc<Notify>,
    /// Another record is durable.
    stored: Notify,
    /// Where operators' tools may come from.
    admin_from: AdminFrom,
}

impl Gate {
    /// `driver` is notified when there is a record to write.
    pub fn new(members: Rc<RefCell<Members>>, driver: Arc<Notify>, admin_from: AdminFrom) -> Self {
        Self { members, driver, stored: Notify::new(), admin_from }
    }

    /// Another record is durable.
    pub fn stored(&self) {
        self.stored.notify_waiters();
    }
}

impl transport::Gate for Gate {
    fn hello(&self, to: NodeId) -> Hello {
        let members = self.members.borrow();
        let record = &members.record;
        Hello {
            cluster: record.cluster.clone(),
            lineage: if members.formation.is_formed() { lineage(members.formation.stage().identities()) } else { 0 },
            incarnation: members.formation.membership().incarnation,
            from: record.id,
            to,
            identity: record.identity,
            boot: record.boot,
            nonce: record.nonce,
            earlier: record.earlier.clone(),
            role: Role::Peer,
            advertise: members.advertise.clone(),
            formation: members.formation.report().encode(),
            held: members.held,
        }
    }

    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        let mut members = self.members.borrow_mut();
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
            members.note(&mismatch);
            if members.ended.is_some() {
                self.driver.notify_one();
            }
            let code = match mismatch {
                Mismatch::Removed(id) if id == hello.from => RefusalCode::Removed,
                Mismatch::Superseded(id) if id == hello.from => RefusalCode::Incarnation,
                Mismatch::Stranger(_) | Mismatch::Removed(_) | Mismatch::Superseded(_) => RefusalCode::NotAMember,
                Mismatch::Members { .. } => RefusalCode::Formation,
                Mismatch::Identity(_) => RefusalCode::Identity,
                Mismatch::Apart => RefusalCode::Lineage,
            };
            Refusal::new(code, mismatch.to_string())
        })?;
        members.let_in(hello)?;
        if members.is_due() {
            self.driver.notify_one();
        }
        Ok(())
    }

    fn admit_admin(&self, hello: &Hello, is_local: bool) -> Result<(), Refusal> {
        let members = self.members.borrow();
        let (me, cluster) = (members.record.id, &members.record.cluster);
        // Whoever wants to join comes from another machine, and may ask for nothing else.
        if hello.role == Role::Admin && !is_local && self.admin_from == AdminFrom::Localhost {
            let reason = format!(
                "node {me} takes commands of operators only from its own machine: call from there, or through an SSH \
                 tunnel to it; Config(admin_from=\"anywhere\") would take them from whoever reaches its port"
            );
            return Err(Refusal::new(RefusalCode::Role, reason));
        }
        if hello.cluster != *cluster {
            let reason = format!(
                "this is node {me} of cluster {cluster:?}, and cluster {:?} was meant: correct the cluster's name, or the \
                 address",
                hello.cluster
            );
            return Err(Refusal::new(RefusalCode::Cluster, reason));
        }
        Ok(())
    }

    fn is_replaced(&self, peer: NodeId) -> bool {
        let members = self.members.borrow();
        let all = &members.formation.membership().members;
        let Some(address) = all.get(&peer).map(|member| &member.address) else { return false };
        !address.is_empty() && all.iter().any(|(id, member)| *id != peer && member.address == *address)
    }

    /// An unformed node takes no part, as it takes none in votes (rule M1).
    fn admit_snapshot(&self, from: NodeId, name: &SnapshotName) -> Result<(), Refusal> {
        let members = self.members.borrow();
        let me = members.record.id;
        if !members.formation.is_formed() {
            let reason = format!("node {me} has not formed its cluster yet, so it takes no snapshot of node {from}");
            return Err(Refusal::new(RefusalCode::Formation, reason));
        }
        if name.group != APPLICATION_GROUP {
            let reason = format!("node {me} has no group {}", name.group);
            return Err(Refusal::new(RefusalCode::Snapshot, reason));
        }
        Ok(())
    }

    fn remembered<'a>(&'a self, hello: &'a Hello) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(async move {
            // Nothing runs between the look and the wait: this thread is the only one.
            while !self.members.borrow().remembers(hello.from) {
                self.stored.notified().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::ConfState;

    use super::*;
    use crate::driver::identity::Drawn;
    use crate::engine::formation::{Identity, Stage};
    use crate::engine::membership::Member;
    use crate::transport::Gate as _;

    fn members() -> BTreeMap<NodeId, String> {
        (1..=3).map(|id| (id, format!("host:{id}"))).collect()
    }

    /// A node's gate; its identity is its id times 10.
    fn gate(id: NodeId, boot: u64, nonce: u64, stage: Stage) -> Gate {
        let (cluster, identity) = ("shop".to_string(), Identity::from(id) * 10);
        let record =
            NodeRecord { id, cluster, identity, boot, nonce, earlier: Vec::new(), stage, peers: BTreeMap::new() };
        let held = Held { term: 1, vote: 0, last_index: 1 };
        let members = Members::new(record, held, format!("host:{id}"), members());
        Gate::new(Rc::new(RefCell::new(members)), Arc::default(), AdminFrom::Localhost)
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
    fn a_newcomer_dials_its_whole_list_until_it_knows_the_members() {
        let newcomer = gate(9, 2, 1, Stage::Formed(all()));
        let listed =
            BTreeMap::from([(1, "host:1".into()), (7, "host:7".into()), (8, "host:8".into()), (9, "x".into())]);
        let mut members = newcomer.members.borrow_mut();
        assert_eq!(members.dialled(&listed).into_keys().collect::<Vec<_>>(), [1, 7, 8]);
        let before = members.formation.membership().clone();
        let mut after = before.clone();
        for (id, address) in [(7, "there:7"), (9, "host:9")] {
            after.members.insert(id, Member { address: address.into(), ..Default::default() });
        }
        after.members.remove(&1);
        members.formation.set_membership(after.clone(), true);
        assert_eq!(members.gone(&before, &listed, &[]), [1, 8].into());
        assert_eq!(members.gone(&after, &listed, &[4, 7]), [].into(), "it has found itself before");
        after.settle(&ConfState { voters: vec![2, 3, 7, 9], ..Default::default() }, 8);
        after.members.insert(5, Member::default());
        after.settle(&ConfState { voters: vec![2, 3, 7, 9], ..Default::default() }, 9);
        members.formation.set_membership(after.clone(), true);
        assert_eq!(members.gone(&before, &BTreeMap::new(), &[4, 5]), [1, 5].into(), "5 has come and gone meanwhile");
        let dialled = members.dialled(&listed);
        assert_eq!(dialled, [(7, "there:7".into())].into(), "nobody knows where the founders 2 and 3 are");
    }

    #[test]
    fn a_node_that_lags_dials_whom_the_others_know() {
        let member = gate(2, 2, 1, Stage::Formed(all()));
        let mut members = member.members.borrow_mut();
        let before = members.formation.membership().clone();
        let mut report = members.formation.report();
        let mut theirs = before.clone();
        for (id, address) in [(4, "host:4"), (5, ""), (6, "host:2")] {
            theirs.members.insert(id, Member { address: address.into(), ..Default::default() });
        }
        report.membership = Some(theirs.clone());
        let listed = |id| (id <= 3).then(|| format!("host:{id}"));
        assert_eq!(members.hear_of(&report, listed), [], "in a version that it knows itself");
        theirs.version = 9;
        report.membership = Some(theirs.clone());
        assert_eq!(members.hear_of(&report, listed), [(4, "host:4".into())], "neither nowhere nor where it is itself");
        let at = |address: &'static str| move |id| if id == 4 { Some(address.to_string()) } else { listed(id) };
        assert_eq!(members.hear_of(&report, at("host:4")), [], "once");
        theirs.members.insert(4, Member { address: "there:4".into(), ..Default::default() });
        report.membership = Some(theirs.clone());
        assert_eq!(members.hear_of(&report, at("own:4")), [], "it has said itself where it is");
        assert_eq!(members.hear_of(&report, at("host:4")), [(4, "there:4".into())], "it has moved");
        let mut after = theirs.clone();
        after.settle(&ConfState { voters: vec![1, 2, 3], ..Default::default() }, 12);
        members.formation.set_membership(after, true);
        assert_eq!(members.gone(&before, &BTreeMap::new(), &[]), [4].into(), "it has come and gone, and is dialled");
        assert_eq!(members.gone(&before, &BTreeMap::new(), &[]), [].into(), "once");
        assert_eq!(members.hear_of(&report, listed), [], "old news");
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

    /// The same node, started again from what is on its disk.
    fn restarted(gate: &Gate) -> Gate {
        let Members { record, held, advertise, .. } = &*gate.members.borrow();
        let members = Members::new(record.clone(), *held, advertise.clone(), members());
        Gate::new(Rc::new(RefCell::new(members)), Arc::default(), AdminFrom::Localhost)
    }

    #[test]
    fn s2_what_was_seen_of_a_peer_outlives_a_restart() {
        let gate = formed();
        assert_eq!(gate.admit(&hello(5, 1)), Ok(()));
        gate.members.borrow_mut().heard(2, Spoken { term: 9, is_vote: false });
        let gate = restarted(&gate);
        assert_eq!(refused(&gate, &hello(4, 1)).0, RefusalCode::Boot);
        assert_eq!(refused(&gate, &hello(5, 2)).0, RefusalCode::Boot);
        assert_eq!(refused(&gate, &hello(6, 6)).0, RefusalCode::Forgotten);
        assert_eq!(gate.admit(&hello(5, 1)), Ok(()));
        assert!(gate.members.borrow().remembers(2), "it was durable before");
        let held = Held { term: 9, vote: 3, last_index: 1 };
        assert_eq!(gate.admit(&Hello { held, ..hello(6, 6) }), Ok(()));
        assert!(!gate.members.borrow().remembers(2), "this start was not");
    }

    #[test]
    fn s2_a_start_is_remembered_only_when_the_record_that_names_it_is_durable() {
        let gate = formed();
        let said = hello(5, 1);
        assert!(!gate.members.borrow().is_due());
        gate.admit(&said).unwrap();
        assert!(gate.members.borrow().is_due());
        let mut remembered = gate.remembered(&said);
        let mut is_ready = || is_ready_now(&mut remembered);
        assert!(!is_ready());
        let (number, (_, bytes)) = gate.members.borrow_mut().next_record();
        assert!(!gate.members.borrow().is_due() && !is_ready(), "handed over, and not durable yet");
        let stored = NodeRecord::boot(Some(&bytes), 1, "shop", &Drawn::new().unwrap()).unwrap();
        assert_eq!((stored.peers[&2].boot, stored.peers[&2].nonce), (5, 1));
        gate.members.borrow_mut().stored(number);
        gate.stored();
        assert!(is_ready());
        gate.admit(&said).unwrap();
        assert!(!gate.members.borrow().is_due(), "nothing new");
    }

    fn is_ready_now(future: &mut Pin<Box<dyn Future<Output = ()> + '_>>) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.as_mut().poll(&mut context).is_ready()
    }

    #[test]
    fn m1_a_peer_whose_directory_was_replaced_before_the_cluster_was_formed_is_let_in() {
        let list = Formation::members_text(&members());
        let said = |identity, nonce| {
            let formation = Report::new(identity, list.clone(), Stage::Unformed).encode();
            Hello { from: 2, identity, formation, lineage: 0, ..hello(1, nonce) }
        };
        let gate = gate(1, 1, 1, Stage::Unformed);
        assert_eq!(gate.admit(&said(20, 1)), Ok(()));
        assert_eq!(refused(&gate, &said(20, 2)).0, RefusalCode::Boot);
        assert_eq!(gate.admit(&said(21, 3)), Ok(()));
    }

    #[test]
    fn m1_an_unformed_node_takes_no_snapshot() {
        let name = |group| SnapshotName { group, index: 70, term: 3, bytes: 500, checksum: 0 };
        let code = |gate: Gate, group| gate.admit_snapshot(2, &name(group)).map_err(|refusal| refusal.code);
        assert_eq!(code(gate(1, 1, 1, Stage::Unformed), APPLICATION_GROUP), Err(RefusalCode::Formation));
        assert_eq!(code(gate(1, 1, 1, Stage::Prepared(all())), APPLICATION_GROUP), Err(RefusalCode::Formation));
        assert_eq!(code(formed(), APPLICATION_GROUP), Ok(()));
        assert_eq!(code(formed(), APPLICATION_GROUP + 1), Err(RefusalCode::Snapshot));
    }

    #[test]
    fn operators_command_from_this_machine_unless_it_is_said_otherwise() {
        let tool = Hello { role: Role::Admin, from: 0, to: 0, ..hello(1, 1) };
        let code =
            |gate: &Gate, tool: &Hello, is_local| gate.admit_admin(tool, is_local).map_err(|refusal| refusal.code);
        let mut gate = formed();
        assert_eq!(code(&gate, &tool, true), Ok(()));
        assert_eq!(code(&gate, &tool, false), Err(RefusalCode::Role));
        let refusal = gate.admit_admin(&tool, false).err().unwrap();
        assert!(refusal.reason.contains("SSH tunnel") && refusal.reason.contains("admin_from"), "{refusal}");
        // A stranger from elsewhere is not told the cluster's name.
        let other = Hello { cluster: "other".into(), ..tool.clone() };
        assert_eq!(code(&gate, &other, true), Err(RefusalCode::Cluster));
        assert_eq!(code(&gate, &other, false), Err(RefusalCode::Role));
        gate.admin_from = AdminFrom::Anywhere;
        assert_eq!(code(&gate, &tool, false), Ok(()));
        assert_eq!(code(&gate, &other, false), Err(RefusalCode::Cluster));
    }

    #[test]
    fn whoever_left_its_address_to_another_member_is_replaced() {
        let gate = formed();
        let mut membership = gate.members.borrow().formation.membership().clone();
        for (id, address) in [(2, "host:2"), (3, ""), (4, "host:2"), (5, "")] {
            membership.members.entry(id).or_default().address = address.into();
        }
        gate.members.borrow_mut().formation.set_membership(membership, true);
        let replaced = (1..=6).filter(|id| transport::Gate::is_replaced(&gate, *id)).collect::<Vec<_>>();
        assert_eq!(replaced, [2, 4], "the log need not say where a member is, and then it says nothing of others");
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
        let report = |identity, members: &str, stage| Report::new(identity, members.into(), stage).encode();
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
