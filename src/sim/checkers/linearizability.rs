//! Proposals and barriers are linearizable: every object behaves as if each call took effect at one moment between its
//! beginning and its end.

use std::collections::BTreeMap;

use super::linearizable::{check, Call};
use super::{Checker, Judged, Kept, Scene, Verdict};
use crate::sim::clock::Time;
use crate::sim::event::{Ended, Ending, Event};
use crate::sim::objects::{kind, Action, Key, Operation};

#[derive(Default)]
pub struct Linearizability {
    open: BTreeMap<u64, (Operation, Time)>,
    histories: BTreeMap<Key, Vec<Call>>,
    /// Objects with lower keys were used before a recovery: what was done to them may be lost.
    fresh_keys: Key,
    /// Histories so far, and those of them that took too long to judge.
    judged: Judged,
}

impl Linearizability {
    fn judge(&mut self) -> Verdict {
        for (operation, called) in std::mem::take(&mut self.open).into_values() {
            if operation.action != Action::Read {
                let call = Call { called, ended: None, action: operation.action, answer: None };
                self.histories.entry(operation.key).or_default().push(call);
            }
        }
        for (key, mut history) in std::mem::take(&mut self.histories) {
            self.judged.histories += 1;
            match check(key, &history) {
                Some(true) => {}
                Some(false) => {
                    history.sort_by_key(|call| call.called);
                    let calls = history.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n    ");
                    return Err(format!("the {:?} {key} behaves as no such object can:\n    {calls}", kind(key)));
                }
                None => self.judged.undecided += 1,
            }
        }
        Ok(())
    }
}

impl Checker for Linearizability {
    fn name(&self) -> &'static str {
        "linearizability"
    }

    fn see(&mut self, scene: &Scene, event: &Event) -> Verdict {
        match event {
            Event::Called { call, operation, .. } if operation.key >= self.fresh_keys => {
                self.open.insert(*call, (*operation, scene.now));
            }
            Event::CallEnded { call, how } => {
                let Some((operation, called)) = self.open.remove(call) else { return Ok(()) };
                let history = self.histories.entry(operation.key).or_default();
                let action = operation.action;
                match how {
                    Ended::Answered { answer, .. } => {
                        history.push(Call { called, ended: Some(scene.now), action, answer: Some(*answer) });
                    }
                    // What has no effect need not be explained.
                    Ended::NotCommitted => {}
                    _ if action == Action::Read => {}
                    _ => history.push(Call { called, ended: None, action, answer: None }),
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What one was asked that has had no part in the cluster may take effect once it has become a member.
    fn looks_at_outsiders(&self) -> bool {
        true
    }

    fn recovered(&mut self, kept: &Kept) -> Verdict {
        self.fresh_keys = kept.recovered.fresh_keys;
        self.judge()
    }

    fn judged(&self) -> Judged {
        self.judged
    }

    fn end(&mut self, _: &Ending) -> Verdict {
        self.judge()
    }
}
