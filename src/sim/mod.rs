//! A simulated world round the real engine: a whole cluster, its disks, network, clocks, applications and clients in one
//! thread, where a seed decides everything.
//!
//! | file | what it is |
//! |---|---|
//! | `plan` | what a seed stands for: the cluster, its limits, the schedule of its faults |
//! | `world` | virtual time, and what happens in it |
//! | `machine` | a machine, the process on it, the application in that |
//! | `round` | a node's round: the driver's steps, in the driver's order |
//! | `lifecycle` | how processes begin, crash, stop and close |
//! | `wiring`, `network` | dialling, the handshake's gate, connections that keep their order until they break |
//! | `disk` | keeps what was synced |
//! | `clock` | drifts and jumps |
//! | `application`, `state`, `objects`, `workload` | the state machine, the clients, and what they do |
//! | `snapshots` | snapshots on their way from disk to disk |
//! | `transfers` | calls for another leader |
//! | `members` | the driver's part in changes of the members |
//! | `operator` | whoever asks for them, and machines that join |
//! | `recover` | a quorum that is lost for good, and `aioraft recover` |
//! | `guest` | somebody else's state machine in the world: `aioraft.testing.Simulation` |
//! | `inject` | the faults begin and end |
//! | `event`, `checkers` | what the checkers are told, and the checkers: one file each |
//! | `shrink` | fewer faults that fail as well |
//! | `history` | what real clients wrote down, for the same judge |
//! | `cli` | `make sim`, `make sim-mutants`, the judge of `make chaos` |
//!
//! The engine, the formation, the gate, the node's record, what is gathered into one write, and what a log is after it are
//! the same code as in the real world. The simulator keeps to the order of the driver's effects.

// This world is a test: where it is wrong itself, it may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod application;
mod checkers;
#[cfg(feature = "mutants")]
pub mod cli;
mod clock;
mod disk;
mod event;
pub mod guest;
#[cfg(feature = "mutants")]
mod history;
mod inject;
mod lifecycle;
mod machine;
mod members;
mod network;
mod objects;
mod operator;
mod plan;
mod recover;
mod round;
#[cfg(feature = "mutants")]
mod shrink;
mod snapshots;
mod state;
#[cfg(all(test, feature = "mutants"))]
mod tests;
mod trace;
mod transfers;
mod wiring;
mod workload;
mod world;

use std::panic::{catch_unwind, AssertUnwindSafe};

use self::checkers::Violation;
use self::guest::Guest;
use self::plan::Plan;
use self::world::{Figures, World};

/// What became of a run.
#[derive(Debug)]
struct Run {
    /// What a checker objected to.
    violation: Option<Violation>,
    /// Two runs of one plan agree on it.
    #[cfg_attr(not(all(test, feature = "mutants")), expect(dead_code, reason = "only a test compares two runs"))]
    trace: u64,
    /// What happened, if it was to be recorded.
    transcript: Vec<String>,
    /// How much happened.
    figures: Figures,
}

/// Lets a world run from its beginning to its end.
#[cfg(feature = "mutants")]
fn run(plan: &Plan, record: bool) -> Run {
    run_with(plan, record, None)
}

/// The same with a guest.
fn run_with(plan: &Plan, record: bool, guest: Option<Box<dyn Guest>>) -> Run {
    let mut world = World::new(plan, record);
    world.guest = guest;
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match outcome {
        Ok(outcome) => outcome.err(),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Some(Violation { checker: "no panic", at: world.now, reason: text })
        }
    };
    Run { violation, trace: world.trace.hash(), figures: world.figures, transcript: world.trace.into_lines() }
}
