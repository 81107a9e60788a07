//! Replicated time: a clock that never runs back along the log (design decision 8).

/// Both clocks of the machine, read by the world outside and handed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// A clock that never runs back and goes on while the machine sleeps, nanoseconds.
    pub boottime_ns: u64,
    /// Nanoseconds since the Unix epoch, for people; may jump.
    pub wall_ns: u64,
}

/// The leader's side: stamps entries with the stamp of the last entry in its log when it was elected, plus what has
/// passed since.
#[derive(Debug, Default)]
pub struct Stamper {
    /// The highest stamp in this node's log, committed or not.
    log_ns: u64,
    /// (term, stamp and boottime at the election) of the leadership that is stamping.
    reign: Option<(u64, u64, u64)>,
}

impl Stamper {
    /// A stamper whose log ends with this stamp.
    pub fn new(log_ns: u64) -> Self {
        Self { log_ns, reign: None }
    }

    /// An entry with this stamp was appended to the log, by whomever.
    pub fn observe(&mut self, stamp_ns: u64) {
        self.log_ns = self.log_ns.max(stamp_ns);
    }

    /// This node leads in `term`: its clock counts from the moment at which it is first told so.
    pub fn lead(&mut self, term: u64, now: Now) -> (u64, u64) {
        match self.reign {
            Some((reign, base_ns, since_ns)) if reign == term => (base_ns, since_ns),
            _ => {
                self.reign = Some((term, self.log_ns, now.boottime_ns));
                (self.log_ns, now.boottime_ns)
            }
        }
    }

    /// The stamp for an entry that this node, leader in `term`, appends now.
    pub fn stamp(&mut self, term: u64, now: Now) -> u64 {
        let (base_ns, since_ns) = self.lead(term, now);
        let stamp = base_ns.saturating_add(now.boottime_ns.saturating_sub(since_ns)).max(self.log_ns);
        self.log_ns = stamp;
        stamp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boottime_ns: u64) -> Now {
        Now { boottime_ns, wall_ns: 0 }
    }

    #[test]
    fn a_new_leader_goes_on_from_the_last_stamp_in_its_log_whatever_its_own_clock_says() {
        let mut stamper = Stamper::new(5_000);
        assert_eq!(stamper.stamp(2, at(100)), 5_000);
        assert_eq!(stamper.stamp(2, at(150)), 5_050);
        stamper.observe(9_000);
        assert_eq!(stamper.stamp(4, at(1_000_000)), 9_000, "time spent as a follower does not count twice");
        assert_eq!(stamper.stamp(4, at(1_000_001)), 9_001);
    }

    #[test]
    fn a_clock_that_jumps_back_does_not_take_the_log_along() {
        let mut stamper = Stamper::new(0);
        assert_eq!(stamper.stamp(1, at(1_000)), 0);
        assert_eq!(stamper.stamp(1, at(3_000)), 2_000);
        assert_eq!(stamper.stamp(1, at(500)), 2_000);
    }
}
