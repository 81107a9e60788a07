//! The clocks of one machine: they drift, the machine sleeps, and people set the wall clock.

use fastrand::Rng;

use crate::engine::Now;

/// Virtual nanoseconds since the world began.
pub type Time = u64;

/// One virtual millisecond.
pub const MS: Time = 1_000_000;

/// One virtual second.
pub const SECOND: Time = 1000 * MS;

/// One machine's clocks.
#[derive(Debug)]
pub struct Clock {
    boottime_base_ns: u64,
    wall_base_ns: u64,
    /// Parts per million by which it runs fast, or slow.
    drift_ppm: i64,
}

impl Clock {
    /// Clocks that begin anywhere.
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            boottime_base_ns: rng.u64(SECOND..1_000_000 * SECOND),
            wall_base_ns: 1_700_000_000 * SECOND + rng.u64(0..100 * SECOND),
            drift_ppm: rng.i64(-2000..2000),
        }
    }

    /// What a program reads at `time`.
    pub fn now(&self, time: Time) -> Now {
        let passed = self.passed(time);
        Now { boottime_ns: self.boottime_base_ns + passed, wall_ns: self.wall_base_ns + passed }
    }

    /// When, in the world's time, this machine's boottime reaches `boottime_ns`.
    pub fn time_of(&self, boottime_ns: u64) -> Time {
        let passed = i128::from(boottime_ns.saturating_sub(self.boottime_base_ns));
        // One more, so that the clock has certainly got there.
        Time::try_from(passed * 1_000_000 / i128::from(1_000_000 + self.drift_ppm) + 1).unwrap_or(Time::MAX)
    }

    /// The machine slept, or was moved: boottime jumps ahead.
    pub fn jump(&mut self, boottime_ns: u64) {
        self.boottime_base_ns += boottime_ns;
    }

    /// Somebody set the wall clock.
    pub fn set_wall(&mut self, by_ns: i64) {
        self.wall_base_ns = self.wall_base_ns.saturating_add_signed(by_ns);
    }

    /// The machine was started again: its boottime begins anew.
    pub fn reboot(&mut self, rng: &mut Rng) {
        self.boottime_base_ns = rng.u64(SECOND..1_000_000 * SECOND);
    }

    fn passed(&self, time: Time) -> u64 {
        (i128::from(time) * i128::from(1_000_000 + self.drift_ppm) / 1_000_000) as u64
    }
}
