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
        let mut words = line.split_whitespace();
        let edition = words.next().and_then(|word| word.parse().ok()).expect("an edition");
        let seed = words.next().and_then(|word| word.parse().ok()).expect("a seed");
        let violation = run(&Plan::of_edition(seed, edition), false).violation;
        assert!(violation.is_none(), "seed {seed} of edition {edition}: {}", violation.unwrap());
    }
}

/// Else packets are lost or repeated in name only.
#[test]
fn the_network_loses_packets_brings_them_late_and_repeats_them() {
    let mut total = Figures::default();
    for seed in 1..=20 {
        total.add(&run(&Plan::new(seed), false).figures);
    }
    for (what, packets) in [("lost", total.lost), ("late", total.late), ("repeated", total.repeated)] {
        assert!(packets > 0, "none {what}");
    }
}

/// A seed of the corpus means what it meant, whatever is drawn since.
#[test]
fn an_edition_keeps_its_plans() {
    let drawn = |edition| {
        let plans = (0..200).map(|seed| Plan::of_edition(seed, edition));
        plans.fold(0, |sum, plan| {
            let sum = trace::mixed(sum, (plan.nodes * 10 + plan.clients) as u64);
            plan.faults.iter().fold(sum, |sum, fault| trace::mixed(sum, fault.at))
        })
    };
    assert_eq!((drawn(1), drawn(2)), (0xb459eed0f8dba80b, 0x9b62ac3fbbe5ea9b));
    assert_eq!(
        (drawn(3), drawn(4), drawn(5), drawn(6), drawn(7), drawn(8), drawn(9)),
        (
            drawn(2),
            0x00c66fb9b10e60f9,
            0x896d93506a4cbdf3,
            0xe863b044bae60b35,
            0xf13f60d2801fc9af,
            0xe5618d559e6e330a,
            0x78e36e22218d0530,
        ),
    );
    assert_eq!(drawn(plan::EDITION), 0x0f538f1e9af3d94f, "a new edition wants a line of its own here");
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
        (Mutant::CountLearnersVote, "the members are what the log says"),
        (Mutant::PromoteStaleLearner, "only voters count"),
        (Mutant::RecoverDropsTail, "one incarnation follows another"),
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
