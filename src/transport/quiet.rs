//! Saying the same thing only so often.

use std::collections::hash_map::RandomState;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use tokio::time::Instant;

/// How often the same thing is said.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Different things remembered at once, if not otherwise said. When it is full of fresh ones, new ones stay unsaid.
const REMEMBERED_MAX: usize = 1024;

/// Remembers what was said when.
pub struct Quiet {
    remembered_max: usize,
    said: HashMap<u64, Instant>,
    hasher: RandomState,
}

impl Default for Quiet {
    fn default() -> Self {
        Self::new(REMEMBERED_MAX)
    }
}

impl Quiet {
    /// Says at most so many different things in an interval.
    pub fn new(remembered_max: usize) -> Self {
        Self { remembered_max, said: HashMap::new(), hasher: RandomState::new() }
    }

    /// Whether `what` may be said now.
    pub fn may_say(&mut self, what: impl Hash, now: Instant) -> bool {
        let key = self.hasher.hash_one(what);
        let fresh = |said: &Instant| now.duration_since(*said) < INTERVAL;
        if self.said.get(&key).is_some_and(fresh) {
            return false;
        }
        if self.said.len() >= self.remembered_max {
            self.said.retain(|_, said| fresh(said));
            if self.said.len() >= self.remembered_max {
                return false;
            }
        }
        self.said.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_thing_is_said_once_per_interval_and_memory_is_bounded() {
        let mut quiet = Quiet::default();
        let start = Instant::now();
        assert!(quiet.may_say((1, "a"), start));
        assert!(!quiet.may_say((1, "a"), start + INTERVAL / 2));
        assert!(quiet.may_say((2, "a"), start));
        assert!(quiet.may_say((1, "a"), start + INTERVAL));
        for other in 0..2 * REMEMBERED_MAX {
            quiet.may_say(("other", other), start);
        }
        assert_eq!(quiet.said.len(), REMEMBERED_MAX);
        assert!(quiet.may_say("later", start + 2 * INTERVAL));
    }
}
