//! The newest leadership, as the application may see it.

use crate::driver::port::Leadership;
use crate::engine::NodeId;

/// What Python reads: (version, term, leader, leading term).
pub type View = (u64, u64, Option<NodeId>, Option<u64>);

/// Holds the newest leadership. This node counts as leading only once the application has applied everything that was
/// committed before its term, so that what it reads then is current.
#[derive(Debug, Default)]
pub struct Latch {
    newest: Leadership,
    shown: (u64, Option<NodeId>, Option<u64>),
    version: u64,
    resigned: bool,
}

impl Latch {
    /// Takes over what the driver says; true if what Python reads has changed.
    pub fn set(&mut self, newest: Leadership, applied: u64) -> bool {
        self.newest = newest;
        self.refresh(applied)
    }

    /// To be called when the application's cursor has moved; true if what Python reads has changed.
    pub fn refresh(&mut self, applied: u64) -> bool {
        let caught_up = self.newest.leading_from.is_some_and(|from| from <= applied);
        let leading = (caught_up && !self.resigned).then_some(self.newest.term);
        let shown = (self.newest.term, self.newest.leader, leading);
        let changed = shown != self.shown;
        if changed {
            self.shown = shown;
            self.version += 1;
        }
        changed
    }

    /// The node is closing: from now on the application does not act as leader; true if what Python reads has changed.
    pub fn resign(&mut self, applied: u64) -> bool {
        self.resigned = true;
        self.refresh(applied)
    }

    /// The node has stopped: it leads no more, and knows no leader.
    pub fn clear(&mut self) {
        self.set(Leadership { term: self.newest.term, leader: None, leading_from: None }, 0);
    }

    /// What Python reads.
    pub fn view(&self) -> View {
        (self.version, self.shown.0, self.shown.1, self.shown.2)
    }

    /// Counts the changes.
    pub fn version(&self) -> u64 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_leads_only_once_the_application_has_caught_up() {
        let mut latch = Latch::default();
        assert!(latch.set(Leadership { term: 3, leader: Some(1), leading_from: Some(10) }, 9));
        assert_eq!(latch.view(), (1, 3, Some(1), None));
        assert!(!latch.refresh(9));
        assert!(latch.refresh(10));
        assert_eq!(latch.view(), (2, 3, Some(1), Some(3)));
        assert!(!latch.refresh(11));
        assert!(latch.resign(11));
        assert_eq!(latch.view(), (3, 3, Some(1), None));
        assert!(latch.set(Leadership { term: 4, leader: Some(1), leading_from: Some(11) }, 12));
        assert_eq!(latch.view(), (4, 4, Some(1), None), "for good");
        latch.clear();
        assert_eq!(latch.view(), (5, 4, None, None));
    }
}
