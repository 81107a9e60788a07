//! Judges whether a history of one object is linearizable (Wing and Gong: Testing and Verifying Concurrent Objects, 1993;
//! with Lowe's memory of what was tried: Testing for Linearizability, 2017).
//!
//! The search takes one call after the other as the next to take effect: any that began before all of the rest ended. It
//! goes back when an answer does not fit, and never tries the same set of calls with the same object twice. A call without
//! an end may take effect at any time after its beginning, or never.
//!
//! Three things need not be tried, and are what makes most histories short work: an answered call that changes nothing is
//! as good now as later; of unanswered calls that ask for the same, the one that began first is as good as any; and values
//! that nobody was told of are all the same.

use std::collections::HashSet;

use crate::sim::clock::{Time, SECOND};
use crate::sim::objects::{Action, Answer, Key, Object};

/// Steps after which a history is given up as undecided.
const STEPS_MAX: usize = 300_000;

/// Of a thousand histories so many may be undecided; with more of them a run has shown too little to pass.
#[cfg(feature = "mutants")]
pub const UNDECIDED_PER_MILLE_MAX: u64 = 20;

/// Whether too little is known of so many histories.
#[cfg(feature = "mutants")]
pub fn shows_too_little(undecided: u64, histories: u64) -> bool {
    undecided * 1000 > histories * UNDECIDED_PER_MILLE_MAX
}

/// One call of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it began.
    pub called: Time,
    /// When it was answered, if it was.
    pub ended: Option<Time>,
    /// What it asked for.
    pub action: Action,
    /// What it was answered.
    pub answer: Option<Answer>,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |time: Time| time as f64 / SECOND as f64;
        let ended = self.ended.map_or("never".into(), |ended| format!("{:.4}", seconds(ended)));
        write!(f, "{:.4} to {ended}: {:?} -> {:?}", seconds(self.called), self.action, self.answer)
    }
}

/// Whether this history of the object `key` is linearizable; `None` if that cannot be said in reasonable time.
pub fn check(key: Key, history: &[Call]) -> Option<bool> {
    let mut calls = history.to_vec();
    calls.sort_by_key(|call| (call.called, call.ended));
    make_anonymous(&mut calls);
    let mut search = Search { calls: &calls, tried: HashSet::new(), steps: 0 };
    search.run(Object::new(key))
}

/// Gives all values that were pushed, and that no answer names, the same name.
fn make_anonymous(calls: &mut [Call]) {
    let told = calls.iter().filter_map(|call| call.answer.flatten()).collect::<HashSet<_>>();
    let nobodys = (0..).find(|value| !told.contains(value)).unwrap_or_default();
    for call in calls {
        if matches!(call.action, Action::Push(value) if !told.contains(&value)) {
            call.action = Action::Push(nobodys);
        }
    }
}

/// Calls that have taken effect, as bits.
type Taken = Vec<u64>;

struct Search<'a> {
    calls: &'a [Call],
    tried: HashSet<(Taken, Object)>,
    steps: usize,
}

/// In which order calls are tried: each has its turn in one of these rounds.
const IDLE: usize = 0;
const ANSWERED: usize = 1;
const ROUNDS: usize = 3;

/// One call that was taken at its turn, and what was before it.
struct Step {
    turn: usize,
    before: Object,
}

impl Search<'_> {
    fn run(&mut self, mut object: Object) -> Option<bool> {
        let mut taken: Taken = vec![0; self.calls.len().div_ceil(64)];
        let mut path: Vec<Step> = Vec::new();
        let mut unanswered = self.calls.iter().filter(|call| call.ended.is_some()).count();
        let mut from = 0;
        loop {
            if unanswered == 0 {
                return Some(true);
            }
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return None;
            }
            match self.next(&taken, &object, from) {
                Some((turn, after)) => {
                    let call = turn % self.calls.len();
                    taken[call / 64] |= 1 << (call % 64);
                    unanswered -= usize::from(self.calls[call].ended.is_some());
                    path.push(Step { turn, before: std::mem::replace(&mut object, after) });
                    from = 0;
                }
                None => {
                    let Some(Step { turn, before }) = path.pop() else { return Some(false) };
                    let call = turn % self.calls.len();
                    taken[call / 64] &= !(1 << (call % 64));
                    unanswered += usize::from(self.calls[call].ended.is_some());
                    object = before;
                    // An idle call was as good there as anywhere: no other choice helps.
                    from = if turn / self.calls.len() == IDLE { ROUNDS * self.calls.len() } else { turn + 1 };
                }
            }
        }
    }

    /// The next call that can take effect, at the turn `from` or later, and the object after it.
    fn next(&mut self, taken: &Taken, object: &Object, from: usize) -> Option<(usize, Object)> {
        let is_taken = |call: usize| taken[call / 64] >> (call % 64) & 1 == 1;
        let mut earliest_end = Time::MAX;
        for (at, call) in self.calls.iter().enumerate() {
            if is_taken(at) {
                continue;
            }
            // Sorted by beginnings: nothing from here on began before that end.
            if call.called > earliest_end {
                break;
            }
            earliest_end = earliest_end.min(call.ended.unwrap_or(Time::MAX));
        }
        // Answered calls before others: they say most, and need no others to be explained in the usual case.
        let count = self.calls.len();
        for turn in from..ROUNDS * count {
            let (round, at) = (turn / count, turn % count);
            let call = self.calls[at];
            let is_its_turn = call.ended.is_some() == (round <= ANSWERED);
            if !is_its_turn || call.called > earliest_end || is_taken(at) {
                continue;
            }
            let is_the_same = |other: &Call| other.ended.is_none() && other.action == call.action;
            if round > ANSWERED && (0..at).any(|earlier| is_the_same(&self.calls[earlier]) && !is_taken(earlier)) {
                continue;
            }
            let mut after = object.clone();
            let answer = after.act(call.action);
            if call.answer.is_some_and(|expected| expected != answer) {
                continue;
            }
            // What a call changes follows from what it asks for and its answer, if that is known.
            if round == IDLE && (call.answer.is_none() || after != *object) {
                continue;
            }
            let mut then = taken.clone();
            then[at / 64] |= 1 << (at % 64);
            if self.tried.insert((then, after.clone())) {
                return Some((turn, after));
            }
            if round == IDLE {
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::objects::{kind, Kind};

    const REGISTER: Key = 0;
    const COUNTER: Key = 1;
    const QUEUE: Key = 2;

    fn call(called: Time, ended: Time, action: Action, answer: Answer) -> Call {
        Call { called, ended: Some(ended), action, answer: Some(answer) }
    }

    fn unknown(called: Time, action: Action) -> Call {
        Call { called, ended: None, action, answer: None }
    }

    #[test]
    fn a_read_sees_the_last_write_that_ended_before_it() {
        let write = |at, value, before| call(at, at + 5, Action::Write(value), before);
        let history = [write(0, 1, None), write(10, 2, Some(1)), call(20, 25, Action::Read, Some(2))];
        assert_eq!(check(REGISTER, &history), Some(true));
        let stale = [history[0], history[1], call(20, 25, Action::Read, Some(1))];
        assert_eq!(check(REGISTER, &stale), Some(false));
        let during = [history[0], history[1], call(12, 25, Action::Read, Some(1))];
        assert_eq!(check(REGISTER, &during), Some(true), "the second write may come after the read");
    }

    #[test]
    fn two_reads_one_after_the_other_do_not_go_back() {
        let write = call(0, 100, Action::Write(7), None);
        let forth = [write, call(10, 20, Action::Read, None), call(30, 40, Action::Read, Some(7))];
        assert_eq!(check(REGISTER, &forth), Some(true));
        let back = [write, call(10, 20, Action::Read, Some(7)), call(30, 40, Action::Read, None)];
        assert_eq!(check(REGISTER, &back), Some(false));
    }

    #[test]
    fn a_call_of_unknown_end_may_take_effect_late_or_never() {
        let lost = unknown(0, Action::Add(5));
        let read = |at, value| call(at, at + 5, Action::Read, Some(value));
        assert_eq!(check(COUNTER, &[lost, read(10, 0), read(20, 0)]), Some(true));
        assert_eq!(check(COUNTER, &[lost, read(10, 0), read(20, 5)]), Some(true));
        assert_eq!(check(COUNTER, &[lost, read(10, 5), read(20, 0)]), Some(false));
        assert_eq!(check(COUNTER, &[lost, read(10, 5), read(20, 10)]), Some(false), "once, not twice");
    }

    #[test]
    fn a_queue_gives_everything_once_and_in_order() {
        let push = |at, value, length| call(at, at + 5, Action::Push(value), Some(length));
        let pop = |at, value| call(at, at + 5, Action::Pop, value);
        assert_eq!(check(QUEUE, &[push(0, 1, 1), push(10, 2, 2), pop(20, Some(1)), pop(30, Some(2))]), Some(true));
        assert_eq!(check(QUEUE, &[push(0, 1, 1), push(10, 2, 2), pop(20, Some(2))]), Some(false));
        assert_eq!(check(QUEUE, &[push(0, 1, 1), pop(10, Some(1)), pop(20, Some(1))]), Some(false));
        assert_eq!(check(QUEUE, &[push(0, 1, 1), pop(10, None)]), Some(false));
    }

    #[test]
    fn many_calls_at_once_are_judged_in_reasonable_time() {
        let adds = (0..60).map(|at| call(at, 1000 + at, Action::Add(1), Some(at + 1)));
        let lost = (0..10).map(|at| unknown(at, Action::Add(1)));
        let history = adds.chain(lost).collect::<Vec<_>>();
        assert_eq!(check(COUNTER, &history), Some(true));
    }

    /// The search without anything that makes it short.
    fn is_linearizable(calls: &[Call], object: &Object) -> bool {
        let earliest_end = calls.iter().filter_map(|call| call.ended).min();
        let Some(earliest_end) = earliest_end else { return true };
        (0..calls.len()).filter(|at| calls[*at].called <= earliest_end).any(|at| {
            let (mut rest, mut after) = (calls.to_vec(), object.clone());
            let call = rest.remove(at);
            let answer = after.act(call.action);
            call.answer.is_none_or(|expected| expected == answer) && is_linearizable(&rest, &after)
        })
    }

    /// A history as it may be, or nearly.
    fn draw(key: Key, rng: &mut fastrand::Rng) -> Vec<Call> {
        let mut object = Object::new(key);
        let calls = (0..rng.u64(2..8)).map(|number| {
            let action = match (kind(key), rng.u32(0..4)) {
                (_, 0) => Action::Read,
                (Kind::Register, 1) => Action::CompareAndSet(Some(rng.u64(0..3)), number),
                (Kind::Register, _) => Action::Write(rng.u64(0..3)),
                (Kind::Counter, _) => Action::Add(rng.u64(1..3)),
                (Kind::Queue, 1) => Action::Pop,
                (Kind::Queue, _) => Action::Push(rng.u64(0..9)),
            };
            let is_lost = rng.u32(0..3) == 0;
            let takes_effect = !is_lost || rng.bool();
            let answer = if takes_effect { object.act(action) } else { None };
            let answer = if rng.u32(0..8) == 0 { Some(rng.u64(0..4)) } else { answer };
            let (called, ended) = (10 * number - rng.u64(0..=10 * number), 10 * number + rng.u64(0..30));
            let ended = Some(ended).filter(|_| !is_lost);
            Call { called, ended, action, answer: Some(answer).filter(|_| !is_lost && rng.u32(0..9) > 0) }
        });
        calls.collect()
    }

    #[test]
    fn what_makes_the_search_short_changes_no_verdict() {
        let mut verdicts = [0, 0];
        for seed in 0..6000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let key = seed % 3;
            let history = draw(key, &mut rng);
            let expected = is_linearizable(&history, &Object::new(key));
            assert_eq!(check(key, &history), Some(expected), "seed {seed}: {history:#?}");
            verdicts[usize::from(expected)] += 1;
        }
        assert!(verdicts.iter().all(|count| *count > 1000), "{verdicts:?}");
    }

    #[test]
    fn pushes_and_pops_of_unknown_end_are_judged_in_reasonable_time() {
        let lost = (0..24).map(|at| unknown(at, if at % 3 == 0 { Action::Pop } else { Action::Push(1000 + at) }));
        let known = (0..40).map(|at| {
            let called = 100 + 10 * at;
            match at % 2 {
                0 => call(called, called + 15, Action::Push(at), Some(at / 2 % 5 + 1)),
                _ => call(called, called + 15, Action::Pop, Some(at - 1)),
            }
        });
        assert!(check(QUEUE, &lost.chain(known).collect::<Vec<_>>()).is_some());
    }
}
