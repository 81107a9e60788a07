//! The only place where the real world's clocks are read.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds of a clock that never runs back and goes on while the machine sleeps.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn boottime_ns() -> u64 {
    nanoseconds(rustix::time::clock_gettime(rustix::time::ClockId::Boottime))
}

/// Nanoseconds of a clock that never runs back; macOS' monotonic clock goes on while the machine sleeps.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn boottime_ns() -> u64 {
    nanoseconds(rustix::time::clock_gettime(rustix::time::ClockId::Monotonic))
}

fn nanoseconds(time: rustix::time::Timespec) -> u64 {
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds since the Unix epoch, for people: it may jump.
pub fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
