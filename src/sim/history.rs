//! Histories that real clients wrote down (`make chaos`), and what to think of them.
//!
//! A file holds the calls of one process, from its start to its end. A line is an event, its words stand one blank apart,
//! and times are nanoseconds of a clock that all processes share:
//!
//! | line | what it says |
//! |---|---|
//! | `CALL call TIME KEY ACTION` | a client is about to call; `CALL` is a number that no other call of this file has |
//! | `CALL ok TIME ANSWER` | it was answered |
//! | `CALL applied TIME` | it took effect, but its answer was lost |
//! | `CALL refused TIME` | it did not take effect, and never will ("not committed"; a read without an answer) |
//! | `CALL unknown TIME` | it took effect, or will some time, or never |
//!
//! `KEY` is an object; its kind follows from it (`objects::kind`). `ACTION` is `write NEW`, `cas EXPECTED NEW`, `add BY`,
//! `push VALUE`, `pop` or `read`. `EXPECTED` and `ANSWER` are `-` where there is no value. A call without an end is
//! unknown: its process was killed. For the same reason a last line without its newline does not count.

use std::collections::BTreeMap;

use super::checkers::linearizable::{check, Call};
use super::clock::Time;
use super::objects::{kind, Action, Key, Kind};

/// The calls of each object, of one file or of several.
#[derive(Debug, Default)]
pub struct Histories {
    objects: BTreeMap<Key, Vec<Call>>,
    calls: usize,
}

/// What is thought of all histories together.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Histories that were looked at.
    pub histories: u64,
    /// Those that no such object could have, each cut off where it goes wrong.
    pub wrong: Vec<(Key, Vec<Call>)>,
    /// Those that took too long.
    pub undecided: Vec<Key>,
}

/// An event of the file.
enum Event {
    Call { at: Time, key: Key, action: Action },
    Ok { at: Time, answer: Option<u64> },
    Applied { at: Time },
    Refused,
    Unknown,
}

impl Histories {
    /// Calls that were read.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A line is none of the above, or speaks of a call that was not made or has ended.
    pub fn read(&mut self, text: &str) -> Result<(), String> {
        let mut open = BTreeMap::new();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (number, line) in whole.lines().enumerate() {
            let problem = |what: &str| format!("line {}, \"{line}\": {what}", number + 1);
            let (call, event) = parse(line).ok_or_else(|| problem("this is no event of a history"))?;
            match event {
                Event::Call { at, key, action } => {
                    if !suits(kind(key), action) {
                        return Err(problem("an object of this key does no such thing"));
                    }
                    let call = open.insert(call, (key, Call { called: at, ended: None, action, answer: None }));
                    if call.is_some() {
                        return Err(problem("another call has this number"));
                    }
                    self.calls += 1;
                }
                end => {
                    let (key, call) = open.remove(&call).ok_or_else(|| problem("no such call is under way"))?;
                    match end {
                        Event::Ok { at, answer } => {
                            self.add(key, Call { ended: Some(at), answer: Some(answer), ..call });
                        }
                        Event::Applied { at } => self.add(key, Call { ended: Some(at), ..call }),
                        Event::Unknown => self.add(key, call),
                        // What has no effect need not be explained.
                        Event::Refused | Event::Call { .. } => {}
                    }
                }
            }
        }
        for (key, call) in open.into_values() {
            self.add(key, call);
        }
        Ok(())
    }

    fn add(&mut self, key: Key, call: Call) {
        // A read that answered nothing says nothing.
        if call.ended.is_some() || call.action != Action::Read {
            self.objects.entry(key).or_default().push(call);
        }
    }

    /// Judges each object by itself.
    pub fn judge(mut self) -> Judgement {
        let mut judgement = Judgement { histories: self.objects.len() as u64, ..Judgement::default() };
        for (key, history) in &mut self.objects {
            history.sort_by_key(|call| (call.called, call.ended));
            match check(*key, history) {
                Some(true) => {}
                Some(false) => judgement.wrong.push((*key, shortest_wrong(*key, history))),
                None => judgement.undecided.push(*key),
            }
        }
        judgement
    }
}

/// The history as it was at the first moment at which it was wrong already.
fn shortest_wrong(key: Key, history: &[Call]) -> Vec<Call> {
    let until = |moment: Time| {
        let begun = history.iter().filter(|call| call.called <= moment);
        let known = begun.map(|call| match call.ended {
            Some(ended) if ended > moment => Call { ended: None, answer: None, ..*call },
            _ => *call,
        });
        known.collect::<Vec<_>>()
    };
    let mut ends = history.iter().filter_map(|call| call.ended).collect::<Vec<_>>();
    ends.sort_unstable();
    // More calls never make a wrong history right.
    let first = ends.partition_point(|end| check(key, &until(*end)) != Some(false));
    ends.get(first).map_or_else(|| history.to_vec(), |end| until(*end))
}

fn suits(kind: Kind, action: Action) -> bool {
    match action {
        Action::Read => true,
        Action::Write(_) | Action::CompareAndSet(..) => kind == Kind::Register,
        Action::Add(_) => kind == Kind::Counter,
        Action::Push(_) | Action::Pop => kind == Kind::Queue,
    }
}

fn parse(line: &str) -> Option<(u64, Event)> {
    let number = |word: &str| word.parse::<u64>().ok();
    let value = |word: &str| if word == "-" { Some(None) } else { number(word).map(Some) };
    let words = line.split(' ').collect::<Vec<_>>();
    let (call, what, at, rest) = match words.as_slice() {
        [call, what, at, rest @ ..] => (number(call)?, *what, number(at)?, rest),
        _ => return None,
    };
    let event = match (what, rest) {
        ("call", [key, action @ ..]) => {
            let action = match action {
                ["write", new] => Action::Write(number(new)?),
                ["cas", expected, new] => Action::CompareAndSet(value(expected)?, number(new)?),
                ["add", by] => Action::Add(number(by)?),
                ["push", value] => Action::Push(number(value)?),
                ["pop"] => Action::Pop,
                ["read"] => Action::Read,
                _ => return None,
            };
            Event::Call { at, key: number(key)?, action }
        }
        ("ok", [answer]) => Event::Ok { at, answer: value(answer)? },
        ("applied", []) => Event::Applied { at },
        ("refused", []) => Event::Refused,
        ("unknown", []) => Event::Unknown,
        _ => return None,
    };
    Some((call, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(files: &[&str]) -> Judgement {
        let mut histories = Histories::default();
        for file in files {
            histories.read(file).expect("a history");
        }
        histories.judge()
    }

    fn is_right(files: &[&str]) -> bool {
        let judgement = judge(files);
        assert_eq!((judgement.histories, judgement.undecided.len()), (1, 0));
        judgement.wrong.is_empty()
    }

    /// A register (0), written and set by one process.
    const WRITER: &str = "0 call 10 0 write 7\n0 ok 20 -\n1 call 30 0 cas 7 8\n1 ok 40 7\n";

    #[test]
    fn a_read_of_another_process_sees_what_was_written_before() {
        assert!(is_right(&[WRITER, "0 call 50 0 read\n0 ok 60 8\n"]));
        assert!(is_right(&[WRITER, "0 call 35 0 read\n0 ok 60 7\n"]), "it began before the second call had ended");
        assert!(!is_right(&[WRITER, "0 call 50 0 read\n0 ok 60 7\n"]), "a stale read");
        assert!(!is_right(&[WRITER, "0 call 50 0 read\n0 ok 60 -\n"]), "a lost write");
    }

    #[test]
    fn a_wrong_history_is_cut_off_where_it_goes_wrong() {
        let later = "0 call 50 0 read\n0 ok 60 7\n1 call 70 0 write 9\n1 ok 80 8\n2 call 55 0 write 5\n2 ok 90 9\n";
        let (key, calls) = judge(&[WRITER, later]).wrong.remove(0);
        let known = calls.iter().map(|call| (call.called, call.ended)).collect::<Vec<_>>();
        assert_eq!((key, known), (0, vec![(10, Some(20)), (30, Some(40)), (50, Some(60)), (55, None)]));
    }

    #[test]
    fn what_was_refused_has_no_effect_and_what_is_unknown_may_have() {
        let adding = |end: &str| format!("5 call 10 1 add 3\n{end}");
        let reading = |value: u64| format!("0 call 30 1 read\n0 ok 40 {value}\n");
        for (end, allowed) in [
            ("5 ok 20 3\n", vec![3]),
            ("5 applied 20\n", vec![3]),
            ("5 refused 20\n", vec![0]),
            ("5 unknown 20\n", vec![0, 3]),
            ("", vec![0, 3]),
            ("5 ok 20 3", vec![0, 3]), // killed while it wrote that
        ] {
            let right = (0..=6).filter(|value| is_right(&[&adding(end), &reading(*value)])).collect::<Vec<_>>();
            assert_eq!(right, allowed, "{end}");
        }
    }

    #[test]
    fn a_read_without_an_answer_says_nothing() {
        let (calls, histories) = {
            let mut histories = Histories::default();
            histories.read("0 call 1 2 read\n0 unknown 2\n1 call 3 2 read\n1 refused 4\n2 call 5 2 read\n").unwrap();
            (histories.calls(), histories.judge().histories)
        };
        assert_eq!((calls, histories), (3, 0));
    }

    #[test]
    fn a_queue_hands_out_each_value_once() {
        let file = |second: &str| {
            format!("0 call 1 2 push 4\n0 ok 2 1\n1 call 3 2 pop\n1 ok 4 4\n2 call 5 2 pop\n2 ok 6 {second}\n")
        };
        assert!(is_right(&[&file("-")]));
        assert!(!is_right(&[&file("4")]));
    }

    #[test]
    fn what_is_no_history_is_refused_with_its_line() {
        for (text, reason) in [
            ("0 call 1 0 read\n0 ok 2\n", "line 2, \"0 ok 2\": this is no event"),
            ("0 call 1 0 sing\n", "this is no event"),
            ("0 call 1 0 add 2\n", "does no such thing"),
            ("0 ok 2 -\n", "no such call"),
            ("0 call 1 0 read\n0 call 2 0 read\n", "another call has this number"),
            ("0 call 1 0 read\n0 ok 2 -\n0 ok 2 -\n", "no such call"),
        ] {
            let refused = Histories::default().read(text).expect_err(text);
            assert!(refused.contains(reason), "{refused}");
        }
    }
}
