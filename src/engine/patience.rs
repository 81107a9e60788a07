//! How long this node waits for a leader before it calls an election, drawn from a seed.
//!
//! raft-rs draws its election timeouts from the thread's random source, which nobody can replay. It is told to draw from
//! a range that begins at the election timeout and has no end to speak of, so a timeout beyond twice the election timeout
//! says that it has drawn, and another one is put in its place. It looks at the timeout only when the clock ticks, so it
//! is enough to do that right before every tick. A draw of its own that falls into the range by chance (once in 2^50)
//! is as good as any other.

use fastrand::Rng;
use raft::{Raft, Storage};

/// The end of the range from which raft-rs draws.
pub const RAFT_DRAWS_BELOW: usize = usize::MAX >> 1;

/// Draws election timeouts.
#[derive(Debug)]
pub struct Patience {
    rng: Rng,
    election_ticks: usize,
}

impl Patience {
    /// Draws between `election_ticks` and twice that.
    pub fn new(seed: u64, election_ticks: usize) -> Self {
        Self { rng: Rng::with_seed(seed), election_ticks }
    }

    /// Replaces the timeout if raft-rs has drawn one since the last call. To be called before every tick.
    pub fn renew<S: Storage>(&mut self, raft: &mut Raft<S>) {
        if raft.randomized_election_timeout() >= 2 * self.election_ticks {
            raft.set_randomized_election_timeout(self.rng.usize(self.election_ticks..2 * self.election_ticks));
        }
    }
}
