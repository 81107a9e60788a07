//! The simulated world itself. Its checkers are proved by mutants: `make sim-mutants`.

use super::cli::{hunt, SEEDS_PER_MUTANT};
use super::*;
use crate::mutants::Mutant;

#[test]
fn a_seed_decides_everything() {
    for seed in 0..50 {
        let plan = Plan::new(seed);
        let (one, other) = (run(&plan, false), run(&plan, false));
        assert_eq!((one.trace, one.figures), (other.trace, other.figures), "seed {seed}");
        assert_eq!(one.violation, other.violation, "seed {seed}");
        assert!(one.figures.happenings > 10_000, "seed {seed} is an idle world: {}", one.figures);
    }
}

#[test]
fn what_once_failed_does_not_fail_again() {
    let seeds = include_str!("corpus.txt").lines().filter(|line| !line.starts_with('#'));
    for line in seeds {
        let seed = line.split_whitespace().next().and_then(|seed| seed.parse().ok()).expect("a seed");
        let violation = run(&Plan::new(seed), false).violation;
        assert!(violation.is_none(), "seed {seed}: {}", violation.unwrap());
    }
}

/// One mutant for each kind of checker; `make sim-mutants` runs them all.
#[test]
fn deliberate_bugs_are_found() {
    let expected = [
        (Mutant::SkipSessionTable, "exactly once"),
        (Mutant::TimedOutMeansNotCommitted, "outcome truth"),
        (Mutant::BarrierWithoutReadIndex, "linearizability"),
        (Mutant::StampFromApplied, "time never runs back"),
        (Mutant::LoseWaiters, "every await ends"),
        (Mutant::UnboundedSessions, "bounded memory"),
        (Mutant::ForgetSkipped, "commits() is what was applied"),
    ];
    for (mutant, checker) in expected {
        let found = hunt(mutant, SEEDS_PER_MUTANT).map(|(_, checker)| checker);
        assert_eq!(found, Some(checker), "{mutant:?}");
    }
}

#[test]
fn a_shorter_schedule_fails_as_well() {
    crate::mutants::set(Some(Mutant::SkipSessionTable));
    let plan = (1..).map(Plan::new).find(|plan| run(plan, false).violation.is_some()).unwrap();
    let (shortest, outcome) = shrink::shrink(&plan);
    crate::mutants::set(None);
    assert!(outcome.violation.is_some());
    assert!(shortest.faults.len() < plan.faults.len(), "{} of {}", shortest.faults.len(), plan.faults.len());
    assert!(!outcome.transcript.is_empty());
}
