//! What `make sim`, `make sim-mutants` and the judge of `make chaos` run.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::checkers::linearizable::{shows_too_little, UNDECIDED_PER_MILLE_MAX};
use super::checkers::Violation;
use super::clock::SECOND;
use super::history::{Histories, Judgement};
use super::objects::kind;
use super::plan::{Plan, EDITION, END};
use super::shrink::shrink;
use super::{run, Figures};
use crate::mutants::{self, Mutant};

/// Each mutant must be found within so many seeds.
pub const SEEDS_PER_MUTANT: u64 = 200;

/// How often a long run says that it goes on.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Lines of a transcript that are printed; the whole is in a file.
const LINES_PRINTED: usize = 60;

/// Histories that are printed, of those that are wrong.
const WRONG_PRINTED: usize = 3;

const USAGE: &str =
    "usage: sim seeds COUNT [FIRST] [SECONDS] | sim seed SEED [EDITION] | sim tell SEED [EDITION] | sim mutants [NAME] | sim judge FILE...";

/// Runs what the arguments ask for.
pub fn main() -> ExitCode {
    // A panic is an outcome here, and is told as one.
    std::panic::set_hook(Box::new(|_| {}));
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse::<u64>().ok());
    match (arguments.first().map(String::as_str), number(1)) {
        (Some("seeds"), Some(count)) => {
            // New seeds each time, unless the first one is given.
            let first = number(2).unwrap_or_else(|| getrandom::u64().unwrap_or(1) >> 16);
            many(first, count, number(3).map_or(Duration::MAX, Duration::from_secs))
        }
        (Some("seed"), Some(seed)) => one(seed, number(2).map_or(EDITION, |edition| edition as u32)),
        (Some("tell"), Some(seed)) => tell(seed, number(2).map_or(EDITION, |edition| edition as u32)),
        (Some("mutants"), _) => mutants(arguments.get(1).map(String::as_str)),
        (Some("judge"), _) if arguments.len() > 1 => judge(&arguments[1..]),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn many(first: u64, count: u64, time: Duration) -> ExitCode {
    println!("sim: seeds {first} to {}", first + count - 1);
    let begin = Instant::now();
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new((0, Figures::default()));
    let failing = Mutex::new(None);
    let last_told = Mutex::new(begin);
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count || failed.load(Ordering::Relaxed) || begin.elapsed() > time {
                    return;
                }
                let plan = Plan::new(first + number);
                let outcome = run(&plan, false);
                let mut total = total.lock();
                total.0 += 1;
                total.1.add(&outcome.figures);
                if last_told.lock().elapsed() > TELL_EVERY {
                    *last_told.lock() = Instant::now();
                    println!("sim: {} seeds so far", total.0);
                }
                if let Some(violation) = outcome.violation {
                    failed.store(true, Ordering::Relaxed);
                    failing.lock().get_or_insert((plan, violation));
                }
            });
        }
    });
    let (seeds, figures) = total.into_inner();
    let took = begin.elapsed().as_secs_f64();
    println!("sim: {seeds} seeds in {took:.1} s ({:.0} a minute), {figures}", seeds as f64 * 60.0 / took);
    match failing.into_inner() {
        None if shows_too_little(figures.undecided, figures.histories) => {
            println!(
                "\nFAILED: {} of {} histories are undecided; at most {UNDECIDED_PER_MILLE_MAX} of 1000 may be",
                figures.undecided, figures.histories
            );
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
        Some((plan, violation)) => {
            report(&plan, &violation);
            ExitCode::FAILURE
        }
    }
}

fn one(seed: u64, edition: u32) -> ExitCode {
    let plan = Plan::of_edition(seed, edition);
    let outcome = run(&plan, false);
    println!("sim: seed {seed}, {}", outcome.figures);
    match outcome.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            report(&plan, &violation);
            ExitCode::FAILURE
        }
    }
}

/// Everything that happens, without a search for a shorter schedule.
fn tell(seed: u64, edition: u32) -> ExitCode {
    let outcome = run(&Plan::of_edition(seed, edition), true);
    outcome.transcript.iter().for_each(|line| println!("{line}"));
    if let Some(violation) = &outcome.violation {
        println!("\n{violation}");
    }
    ExitCode::from(u8::from(outcome.violation.is_some()))
}

/// Tells a failure: what to run again, and the shortest schedule of faults that leads to it.
fn report(plan: &Plan, violation: &Violation) {
    let edition = if plan.edition == EDITION { String::new() } else { format!(" EDITION={}", plan.edition) };
    println!("\nFAILED: seed {}, commit {}; again with: make sim SEED={}{edition}", plan.seed, commit(), plan.seed);
    println!("{violation}");
    // What follows takes a while.
    let (shortest, outcome) = shrink(plan);
    println!("{} nodes, {} clients each, {:?}", shortest.nodes, shortest.clients, shortest.tuning);
    println!("faults ({} of {}):", shortest.faults.len(), plan.faults.len());
    for fault in &shortest.faults {
        println!("  {fault}");
    }
    let file = Path::new("target/sim").join(format!("seed-{}.txt", plan.seed));
    let written =
        std::fs::create_dir_all("target/sim").and_then(|()| std::fs::write(&file, outcome.transcript.join("\n")));
    let skipped = outcome.transcript.len().saturating_sub(LINES_PRINTED);
    match written {
        Ok(()) => println!("transcript (the first {skipped} lines are in {} only):", file.display()),
        Err(error) => println!("transcript (without its first {skipped} lines: {error}):"),
    }
    for line in &outcome.transcript[skipped..] {
        println!("{line}");
    }
    if let Some(violation) = outcome.violation {
        println!("\n{violation}");
    }
}

fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".into())
}

/// Judges what real clients wrote down.
fn judge(files: &[String]) -> ExitCode {
    let begin = Instant::now();
    let mut histories = Histories::default();
    for file in files {
        let read = std::fs::read_to_string(file).map_err(|error| error.to_string());
        if let Err(problem) = read.and_then(|text| histories.read(&text)) {
            println!("FAILED: {file}: {problem}");
            return ExitCode::FAILURE;
        }
    }
    let calls = histories.calls();
    let Judgement { histories, wrong, undecided } = histories.judge();
    println!(
        "judge: {histories} histories of {calls} calls in {:.1} s, {} wrong, {} undecided",
        begin.elapsed().as_secs_f64(),
        wrong.len(),
        undecided.len()
    );
    for (key, history) in wrong.iter().take(WRONG_PRINTED) {
        println!("\nWRONG: the {:?} {key} behaves as no such object can:", kind(*key));
        let skipped = history.len().saturating_sub(LINES_PRINTED);
        println!("  ({skipped} calls before)");
        for call in &history[skipped..] {
            println!("  {call}");
        }
    }
    if !undecided.is_empty() {
        println!("undecided: {undecided:?}; at most {UNDECIDED_PER_MILLE_MAX} of 1000 may be");
    }
    let shows_nothing = histories == 0 || shows_too_little(undecided.len() as u64, histories);
    ExitCode::from(u8::from(!wrong.is_empty() || shows_nothing))
}

/// Who finds this bug, and after how many seeds.
pub fn hunt(mutant: Mutant, seeds: u64) -> Option<(u64, &'static str)> {
    mutants::set(Some(mutant));
    let found = (1..=seeds).find_map(|seed| {
        let violation = run(&Plan::new(seed), false).violation?;
        Some((seed, violation.checker))
    });
    mutants::set(None);
    found
}

fn mutants(name: Option<&str>) -> ExitCode {
    let all = Mutant::ALL.into_iter().filter(|mutant| name.is_none_or(|name| name == format!("{mutant:?}")));
    let all = all.collect::<Vec<_>>();
    let next = AtomicU64::new(0);
    let results = Mutex::new(std::collections::BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| loop {
                let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                let Some(mutant) = all.get(number) else { return };
                let found = hunt(*mutant, SEEDS_PER_MUTANT);
                results.lock().insert(number, found);
            });
        }
    });
    println!("| mutant | found by | after seeds |\n|---|---|---|");
    let results = results.into_inner();
    for (number, mutant) in all.iter().enumerate() {
        match results.get(&number).copied().flatten() {
            Some((seeds, checker)) => println!("| `{mutant:?}` | {checker} | {seeds} |"),
            None => println!("| `{mutant:?}` | NOBODY | {SEEDS_PER_MUTANT} |"),
        }
    }
    ExitCode::from(u8::from(results.values().any(Option::is_none)))
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Figures {
    pub(super) fn add(&mut self, other: &Self) {
        self.happenings += other.happenings;
        self.calls += other.calls;
        self.answered += other.answered;
        self.applied += other.applied;
        self.starts += other.starts;
        self.leaders += other.leaders;
        self.transferred += other.transferred;
        self.changes += other.changes;
        self.joined += other.joined;
        self.named += other.named;
        self.recovered += other.recovered;
        self.forgotten += other.forgotten;
        self.refused += other.refused;
        self.snapshots += other.snapshots;
        self.installed += other.installed;
        self.restored += other.restored;
        self.compacted += other.compacted;
        self.lost += other.lost;
        self.late += other.late;
        self.repeated += other.repeated;
        self.histories += other.histories;
        self.undecided += other.undecided;
        self.worlds += 1;
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { happenings, calls, answered, applied, starts, leaders, refused, worlds, .. } = self;
        let Self { lost, late, repeated, transferred, snapshots, installed, restored, compacted, .. } = self;
        let Self { histories, undecided, changes, joined, named, recovered, forgotten, .. } = self;
        let hours = (worlds * END) as f64 / SECOND as f64 / 3600.0;
        write!(
            f,
            "{hours:.1} h of virtual time, {happenings} happenings, {calls} calls ({answered} answered), {applied} \
             applied, {starts} starts, {leaders} leaders ({transferred} handed over), {changes} changes of the members ({joined} joined, {named} by name), \
             {recovered} recovered ({forgotten} entries lost), {refused} connections refused, \
             {lost} packets lost, {late} late, {repeated} repeated, {snapshots} snapshots ({installed} installed, \
             {restored} restored, {compacted} readers overtaken), {histories} histories judged ({undecided} undecided)"
        )
    }
}
