//! The members are what the committed log says, on every node at every index; of those that were removed nothing is applied
//! any more, and every call for a change ends in what became of it (rules M1, M3, S3).

mod model;

use std::collections::{BTreeMap, BTreeSet};

use self::model::{Became, Model, Said, State};
use super::{Checker, Kept, Scene, Verdict};
use crate::driver::initiative::NAME;
use crate::engine::formation::Identity;
use crate::engine::membership::{Change, Membership};
use crate::engine::{NodeId, BOOTSTRAP};
use crate::sim::clock::{Time, SECOND};
use crate::sim::event::{ChangeEnded, Ending, Event, Standpoint, Stopped};
use crate::sim::plan::END;

/// A joint configuration that was entered so long before the end is left by then.
const LEFT_WITHIN: Time = 5 * SECOND;

#[derive(Default)]
pub struct Members {
    /// What stands in somebody's log, by index and term, as long as it is not known to be committed.
    said: BTreeMap<(u64, u64), Said>,
    model: Model,
    /// Everything through this index is in the model.
    through: u64,
    /// The members behind each entry that changed them.
    states: BTreeMap<u64, State>,
    /// When the last joint configuration was entered.
    joint_since: Time,
    /// Commands that count.
    counts: BTreeSet<u64>,
    /// What became of the calls in the log, by index.
    became: BTreeMap<u64, (Vec<Change>, Became)>,
    /// Where each marked call stands that can take effect.
    stands: BTreeMap<u64, u64>,
    /// Calls under way.
    calls: BTreeMap<u64, Vec<Change>>,
    refused: BTreeSet<u64>,
    without_result: BTreeMap<u64, u64>,
    /// Which data directory is whose.
    bound: BTreeMap<NodeId, Identity>,
    /// Nodes that stopped because they were removed.
    left: BTreeSet<NodeId>,
}

impl Members {
    fn follow(&mut self, scene: &Scene, standpoint: &Standpoint) -> Verdict {
        let Standpoint { cursors, conf, membership, .. } = *standpoint;
        if self.states.is_empty() {
            if membership.version > BOOTSTRAP.0 {
                return Err(format!("the members have changed by entry {} already", membership.version));
            }
            self.model = Model::founded(membership);
            self.states.insert(BOOTSTRAP.0, self.model.state.clone());
            self.through = BOOTSTRAP.0;
        }
        while self.through < cursors.applied {
            let index = self.through + 1;
            let Some(link) = scene.logs.at(scene.machine, index) else {
                return Err(format!("nobody has said what stands at {index}, and its log begins later"));
            };
            self.through = index;
            let Some(said) = self.said.remove(&(index, link.term)) else {
                return Err(format!("entry {index} of term {} is applied, and nobody has appended it", link.term));
            };
            self.commit(scene, index, said)?;
            self.said = self.said.split_off(&(index, u64::MAX));
        }
        let state = self.states.range(..=cursors.applied).next_back().map(|(_, state)| state);
        let applied = cursors.applied;
        state
            .map_or(Ok(()), |state| state.compare(conf, membership))
            .map_err(|why| format!("through {applied}, {why}"))?;
        self.look_at_identities(membership)
    }

    fn commit(&mut self, scene: &Scene, index: u64, said: Said) -> Verdict {
        let was_joint = self.model.state.is_joint();
        let became = self.model.apply(index, &said);
        if self.model.state.version == index {
            self.states.insert(index, self.model.state.clone());
        }
        if self.model.state.is_joint() && !was_joint {
            self.joint_since = scene.now;
        }
        match said {
            Said::Command(_) if became == Became::Took => drop(self.counts.insert(index)),
            Said::Changes(_, Some(changes), _) if became != Became::Nothing => {
                if let Some(call) = mark_of(&changes).filter(|_| became != Became::Refused) {
                    if self.refused.contains(&call) {
                        return Err(format!("call {call} was refused, and takes effect at {index}"));
                    }
                    if let Some(before) = self.stands.insert(call, index) {
                        return Err(format!("call {call} takes effect at {before} and at {index}"));
                    }
                }
                self.became.insert(index, (changes, became));
            }
            _ => {}
        }
        Ok(())
    }

    fn look_at_identities(&mut self, membership: &Membership) -> Verdict {
        for (id, member) in membership.members.iter().filter(|(_, member)| member.identity != 0) {
            let owner = *self.bound.entry(*id).or_insert(member.identity);
            if owner != member.identity {
                return Err(format!("node {id} has another data directory than before"));
            }
            let others = membership.members.iter().filter(|(_, other)| other.identity == member.identity);
            if others.count() > 1 {
                return Err(format!("node {id}'s data directory is another member's as well"));
            }
        }
        Ok(())
    }

    fn ended(&mut self, call: u64, how: &ChangeEnded) -> Verdict {
        let Some(asked) = self.calls.remove(&call) else { return Ok(()) };
        match how {
            ChangeEnded::Done { index, ids } => {
                let Some((changes, became)) = self.became.get(index) else {
                    return Err(format!("call {call} is done at {index}, where no change stands"));
                };
                if *changes != asked || *became == Became::Refused || ids.len() != asked.len() {
                    return Err(format!("call {call} is done at {index}, where {changes:?} was {became:?}"));
                }
                if self.model.state.is_joint() && self.model.state.version == *index {
                    return Err(format!("call {call} is done while the configuration of {index} is still joint"));
                }
            }
            ChangeEnded::Refused => {
                self.refused.insert(call);
                if let Some(index) = self.stands.get(&call) {
                    return Err(format!("call {call} ends as refused, and took effect at {index}"));
                }
            }
            ChangeEnded::WithoutResult { index } => drop(self.without_result.insert(call, *index)),
            ChangeEnded::Unknown | ChangeEnded::Lost => {}
        }
        Ok(())
    }
}

impl Checker for Members {
    fn name(&self) -> &'static str {
        "the members are what the log says"
    }

    fn recovered(&mut self, kept: &Kept) -> Verdict {
        let (id, conf, membership) = (kept.recovered.id, kept.recovered.conf, kept.recovered.membership);
        let before = self.states.range(..=kept.through).next_back().map(|(_, state)| state.clone()).unwrap_or_default();
        let state = State::recovered(membership);
        state.compare(conf, membership)?;
        if state.voters != BTreeSet::from([id]) {
            return Err(format!("node {id} goes on alone, with the members {:?}", state.voters));
        }
        if let Some(stays) = before.members.keys().find(|member| **member != id && !state.retired.contains(member)) {
            return Err(format!("the cluster is recovered without node {stays}, whose id could be used again"));
        }
        if membership.recoveries() != (before.incarnation >> 32) + 1 {
            return Err(format!("recovered, it is of incarnation {}, after {}", state.incarnation, before.incarnation));
        }
        let bound = membership.members.iter().map(|(id, member)| (*id, member.identity));
        let bound = bound.filter(|(_, identity)| *identity != 0).collect();
        let states = BTreeMap::from([(membership.version, state.clone())]);
        let (model, through) = (Model::recovered(state), membership.version);
        // What only this machine had counts or not: that is known to nobody else.
        let mut counts = std::mem::take(&mut self.counts);
        counts.split_off(&(kept.through + 1));
        counts.extend(kept.through + 1..=through);
        *self = Self { through, counts, model, states, bound, ..Default::default() };
        Ok(())
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Started { log: entries, .. } | Event::Appended { entries, .. } => {
                for entry in entries.iter().filter(|entry| entry.index > self.through) {
                    // Said once more, otherwise, by a sole voter that lost the first before anybody had heard of it.
                    self.said.insert((entry.index, entry.term), Said::of(entry));
                }
            }
            Event::Members(standpoint) => return self.follow(scene, standpoint),
            Event::Applied { applied } if applied.index <= self.through && !self.counts.contains(&applied.index) => {
                let origin = applied.command.header().origin;
                return Err(format!("it applied entry {} of node {origin}, which does not count", applied.index));
            }
            Event::CalledForChange { call, changes, .. } => drop(self.calls.insert(*call, changes.to_vec())),
            Event::ChangeCallEnded { call, how } => return self.ended(*call, how),
            Event::Displaces { id, is_healthy: true } => {
                return Err(format!("it takes the place of node {id}, which has lost nothing"));
            }
            // One that had not caught up cannot tell a removal from a recovery before it came.
            Event::Stopped { why: Stopped::Removed(id) | Stopped::Superseded(id) } => drop(self.left.insert(*id)),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, ending: &Ending) -> Verdict {
        if let Some(id) = self.left.iter().find(|id| !self.model.state.retired.contains(id)) {
            return Err(format!("node {id} stopped as removed, and was not"));
        }
        for (call, index) in &self.without_result {
            let stands = self.became.range(..=index).any(|(_, (changes, _))| mark_of(changes) == Some(*call));
            let is_marked = self.stands.contains_key(call);
            if is_marked && !stands {
                return Err(format!("call {call} ended as decided by {index}, and was not"));
            }
        }
        if ending.recovers && self.model.state.is_joint() && self.joint_since + LEFT_WITHIN < END {
            return Err(format!("a joint configuration was never left: {:?}", self.model.state));
        }
        if let Some(id) = ending.without_a_vote.first().filter(|_| ending.recovers) {
            return Err(format!("node {id} joined by its name, and has no vote"));
        }
        match ending.removed_and_runs.first() {
            Some(id) => Err(format!("node {id} was removed, and runs on")),
            None => Ok(()),
        }
    }
}

/// The call that left its mark in these changes.
fn mark_of(changes: &[Change]) -> Option<u64> {
    changes.iter().find_map(|change| match change {
        Change::AddLearner { member, .. } => member.metadata.get("call")?.parse().ok(),
        // One that says its name repeats what stood there.
        Change::Update { metadata, .. } => {
            let noted = metadata.as_ref().filter(|metadata| !metadata.contains_key(NAME));
            noted?.get("call")?.parse().ok()
        }
        _ => None,
    })
}
