//! Looks for fewer faults that fail as well.

use super::plan::Plan;
use super::{run, Run};

/// Runs that may be spent.
const RUNS_MAX: usize = 300;

/// The shortest schedule found, and its run with a transcript. `plan` must fail.
pub fn shrink(plan: &Plan) -> (Plan, Run) {
    let mut best = plan.clone();
    let mut runs = 0;
    let mut part = best.faults.len().max(1);
    // Half of the faults first, then quarters, and so on, down to single ones, until none can be left out.
    while part > 0 && runs < RUNS_MAX {
        let mut at = 0;
        let mut shorter = false;
        while at < best.faults.len() && runs < RUNS_MAX {
            let mut candidate = best.clone();
            candidate.faults.drain(at..(at + part).min(candidate.faults.len()));
            runs += 1;
            if run(&candidate, false).violation.is_some() {
                best = candidate;
                shorter = true;
            } else {
                at += part;
            }
        }
        if !(shorter && part == 1) {
            part /= 2;
        }
    }
    let run = run(&best, true);
    (best, run)
}
