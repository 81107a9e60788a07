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

/// How often something was said of late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Not before, or long ago.
    First,
    /// An interval ago: it goes on.
    Again,
}

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
        self.turn(what, now).is_some()
    }

    /// Whether `what` may be said now, and whether it goes on from before.
    pub fn turn(&mut self, what: impl Hash, now: Instant) -> Option<Turn> {
        let key = self.hasher.hash_one(what);
        let fresh = |said: &Instant| now.duration_since(*said) < INTERVAL;
        let before = self.said.get(&key).copied();
        if before.as_ref().is_some_and(fresh) {
            return None;
        }
        if self.said.len() >= self.remembered_max {
            self.said.retain(|_, said| fresh(said));
            if self.said.len() >= self.remembered_max {
                return None;
            }
        }
        self.said.insert(key, now);
        let goes_on = before.is_some_and(|before| now.duration_since(before) < INTERVAL * 2);
        Some(if goes_on { Turn::Again } else { Turn::First })
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
        assert_eq!(quiet.turn((1, "a"), start + INTERVAL), Some(Turn::Again));
        assert_eq!(quiet.turn((1, "a"), start + INTERVAL * 4), Some(Turn::First));
        for other in 0..2 * REMEMBERED_MAX {
            quiet.may_say(("other", other), start);
        }
        assert_eq!(quiet.said.len(), REMEMBERED_MAX);
        assert!(quiet.may_say("later", start + 2 * INTERVAL));
    }
}
