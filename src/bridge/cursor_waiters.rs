//! Who waits for the application's cursor.

use std::collections::BTreeMap;

/// Waiters by the index that they wait for, first come first served at each index.
pub struct CursorWaiters<T> {
    waiting: BTreeMap<(u64, u64), Waiting<T>>,
    arrivals: u64,
    with_deadline: usize,
}

struct Waiting<T> {
    waiter: T,
    deadline_ns: Option<u64>,
}

impl<T> Default for CursorWaiters<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), arrivals: 0, with_deadline: 0 }
    }
}

impl<T> CursorWaiters<T> {
    /// `waiter` waits until the cursor stands at `index` or later.
    pub fn insert(&mut self, index: u64, deadline_ns: Option<u64>, waiter: T) {
        self.arrivals += 1;
        self.with_deadline += usize::from(deadline_ns.is_some());
        self.waiting.insert((index, self.arrivals), Waiting { waiter, deadline_ns });
    }

    /// Takes out one waiter that the cursor `applied` has reached.
    pub fn pop_reached(&mut self, applied: u64) -> Option<T> {
        let first = self.waiting.first_entry()?;
        if first.key().0 > applied {
            return None;
        }
        let waiting = first.remove();
        self.with_deadline -= usize::from(waiting.deadline_ns.is_some());
        Some(waiting.waiter)
    }

    /// Takes out those whose deadline has passed. `now_ns` is asked only if anybody has one.
    pub fn take_expired(&mut self, now_ns: impl FnOnce() -> u64) -> Vec<T> {
        if self.with_deadline == 0 {
            return Vec::new();
        }
        let now_ns = now_ns();
        let is_late = |waiting: &Waiting<T>| waiting.deadline_ns.is_some_and(|deadline| deadline <= now_ns);
        let late: Vec<_> = self.waiting.iter().filter(|(_, waiting)| is_late(waiting)).map(|(key, _)| *key).collect();
        self.with_deadline -= late.len();
        late.iter().filter_map(|key| self.waiting.remove(key)).map(|waiting| waiting.waiter).collect()
    }

    /// All waiters.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.values().map(|waiting| &waiting.waiter)
    }

    /// Takes all waiters out.
    pub fn take_all(&mut self) -> Vec<T> {
        self.with_deadline = 0;
        std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.waiter).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_served_in_order_of_index_then_arrival() {
        let mut waiters = CursorWaiters::default();
        waiters.insert(5, None, "b");
        waiters.insert(7, None, "c");
        waiters.insert(4, None, "a");
        waiters.insert(7, None, "d");
        assert_eq!(waiters.pop_reached(3), None);
        assert_eq!(waiters.pop_reached(5), Some("a"));
        assert_eq!(waiters.pop_reached(5), Some("b"));
        assert_eq!(waiters.pop_reached(5), None);
        assert_eq!(waiters.take_all(), ["c", "d"]);
    }

    #[test]
    fn the_late_are_taken_out() {
        let mut waiters = CursorWaiters::default();
        waiters.insert(5, None, "patient");
        assert!(waiters.take_expired(|| panic!("nobody has a deadline")).is_empty());
        waiters.insert(4, Some(100), "first");
        waiters.insert(3, Some(200), "second");
        assert!(waiters.take_expired(|| 99).is_empty());
        assert_eq!(waiters.take_expired(|| 100), ["first"]);
        assert_eq!(waiters.pop_reached(3), Some("second"));
        assert!(waiters.take_expired(|| panic!("nobody has a deadline")).is_empty());
    }
}
