//! Only voters count: whoever leads has votes of a majority of them in both halves of a configuration, what is committed rests
//! on as many of their disks, and a learner gets a vote when it has caught up (Raft paper 6, thesis 4.2.1).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::eraftpb::{ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType};

use super::{Checker, Kept, Scene, Verdict};
use crate::driver::Tuning;
use crate::engine::{Cursors, NodeId};
use crate::sim::event::{Event, Standpoint};
use crate::sim::network::MachineId;

/// Ticks beyond an election timeout that a promotion may take.
const TICKS_SPARE: u64 = 2;

/// What a machine said last.
struct Known {
    id: NodeId,
    cursors: Cursors,
    ticks: u64,
    conf: ConfState,
    /// What it knew to be committed, by its ticks, as long as it has led in its term.
    committed: VecDeque<(u64, u64)>,
    /// It has become leader, and its configuration is to be looked at.
    won: Option<u64>,
    /// The last term in which it has: it says so again when it has caught up, perhaps with other members.
    leads_in: u64,
}

pub struct Voters {
    election_ticks: u64,
    known: BTreeMap<MachineId, Known>,
    /// Votes by term and candidate.
    votes: BTreeMap<(u64, NodeId), BTreeSet<NodeId>>,
    /// What followers told a leader to be on their disks, by term, leader and follower.
    acknowledged: BTreeMap<(u64, NodeId, NodeId), u64>,
}

impl Voters {
    pub fn new(tuning: &Tuning) -> Self {
        let election_ticks = tuning.election_ticks() as u64;
        Self { election_ticks, known: BTreeMap::new(), votes: BTreeMap::new(), acknowledged: BTreeMap::new() }
    }

    fn stand(&mut self, machine: MachineId, standpoint: &Standpoint) -> Verdict {
        let Standpoint { id, cursors, ticks, conf, .. } = *standpoint;
        let before = self.known.remove(&machine);
        let Some(mut known) = before else {
            let (conf, committed) = (conf.clone(), VecDeque::new());
            self.known.insert(machine, Known { id, cursors, ticks, conf, committed, won: None, leads_in: 0 });
            return Ok(());
        };
        let term = cursors.term;
        // What it decided in this round it decided before or after it applied what it has applied in it.
        let confs = [&known.conf, conf];
        if let Some(won) = known.won.take().filter(|won| *won == term) {
            let votes = self.votes.get(&(won, id)).cloned().unwrap_or_default();
            if !confs.iter().any(|conf| decide(conf, |voter| voter == id || votes.contains(&voter))) {
                return Err(format!("leader in term {won} by the votes of {votes:?}, with {conf:?}"));
            }
        }
        let led = known.cursors.leads && known.cursors.term == term;
        if led && cursors.leads && cursors.commit > known.cursors.commit {
            let commit = cursors.commit;
            let holds = |voter: NodeId| {
                voter == id || self.acknowledged.get(&(term, id, voter)).is_some_and(|index| *index >= commit)
            };
            if !confs.iter().any(|conf| decide(conf, holds)) {
                return Err(format!("leader in term {term}, it takes {commit} for committed, with {conf:?}"));
            }
        }
        if !led {
            known.committed.clear();
        }
        known.committed.push_back((ticks, cursors.commit));
        while known.committed.get(1).is_some_and(|(at, _)| at + self.election_ticks + TICKS_SPARE < ticks) {
            known.committed.pop_front();
        }
        (known.cursors, known.ticks, known.conf) = (cursors, ticks, conf.clone());
        self.known.insert(machine, known);
        Ok(())
    }

    /// A leader appends: those who get votes with that are not behind.
    fn append(&self, machine: MachineId, term: u64, entries: &[Entry]) -> Verdict {
        let Some(known) = self.known.get(&machine).filter(|it| it.cursors.leads && it.cursors.term == term) else {
            return Ok(());
        };
        let long_ago = known.ticks.saturating_sub(self.election_ticks + TICKS_SPARE);
        let behind = known.committed.iter().take_while(|(at, _)| *at <= long_ago).last();
        for learner in entries.iter().filter(|entry| entry.term == term).flat_map(promoted) {
            // A leader without a vote may give itself one; it has what it leads with.
            let is_learner = known.conf.learners.contains(&learner) && learner != known.id;
            let has = self.acknowledged.get(&(term, known.id, learner)).copied().unwrap_or(0);
            if let Some((_, ought)) = behind.filter(|(_, ought)| is_learner && has < *ought) {
                return Err(format!("node {learner} gets a vote; it has {has}, and {ought} was committed long before"));
            }
        }
        Ok(())
    }
}

/// Whether those of whom `counts` holds are a majority of both halves.
fn decide(conf: &ConfState, counts: impl Fn(NodeId) -> bool) -> bool {
    let halves = [&conf.voters, &conf.voters_outgoing];
    halves.into_iter().all(|half| half.is_empty() || 2 * half.iter().filter(|id| counts(**id)).count() > half.len())
}

fn promoted(entry: &Entry) -> Vec<NodeId> {
    use prost::Message as _;
    if entry.entry_type != EntryType::EntryConfChangeV2 as i32 {
        return Vec::new();
    }
    let change = ConfChangeV2::decode(entry.data.as_slice()).unwrap_or_default();
    let votes = change.changes.iter().filter(|single| single.change_type == ConfChangeType::AddNode as i32);
    votes.map(|single| single.node_id).collect()
}

impl Checker for Voters {
    fn name(&self) -> &'static str {
        "only voters count"
    }

    fn recovered(&mut self, _: &Kept) -> Verdict {
        (self.known, self.votes, self.acknowledged) = Default::default();
        Ok(())
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Started { .. } | Event::Stopped { .. } => drop(self.known.remove(&scene.machine)),
            Event::Voted { term, from, to } => drop(self.votes.entry((*term, *to)).or_default().insert(*from)),
            Event::Acknowledged { term, from, to, index } => {
                let highest = self.acknowledged.entry((*term, *to, *from)).or_default();
                *highest = (*highest).max(*index);
            }
            Event::Leads { term } => {
                if let Some(known) = self.known.get_mut(&scene.machine).filter(|known| known.leads_in != *term) {
                    (known.won, known.leads_in) = (Some(*term), *term);
                }
            }
            Event::Appended { term: Some(term), entries } => return self.append(scene.machine, *term, entries),
            Event::Members(standpoint) => return self.stand(scene.machine, standpoint),
            _ => {}
        }
        Ok(())
    }
}
