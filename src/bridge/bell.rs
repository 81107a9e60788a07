//! Wakes the event loop from any thread, without the GIL.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;

use super::core::Core;
use crate::driver::port::Wake;

/// A file descriptor that is readable while the bell rings, for `loop.add_reader`.
///
/// Loops without `add_reader` get a thread that calls `call_soon_threadsafe`: it takes the GIL, so that the ringing
/// thread need not.
pub struct Bell {
    descriptor: Descriptor,
    caller: OnceLock<Arc<Caller>>,
}

impl Bell {
    /// A bell that does not ring.
    pub fn new() -> io::Result<Self> {
        Ok(Self { descriptor: Descriptor::new()?, caller: OnceLock::new() })
    }

    /// What the loop is to watch.
    pub fn fd(&self) -> RawFd {
        self.descriptor.fd()
    }

    /// Makes the loop call its drain soon; cheap to call again.
    pub fn ring(&self) {
        match self.caller.get() {
            Some(caller) => caller.ring(),
            None => self.descriptor.ring(),
        }
    }

    /// Stops ringing. To be called on the loop's thread, before the last look at the queues.
    pub fn silence(&self) {
        if self.caller.get().is_none() {
            self.descriptor.silence();
        }
    }

    /// Whether it goes on ringing until it is silenced; if not, an unfinished drain has to ask for the next one.
    pub fn is_level_triggered(&self) -> bool {
        self.caller.get().is_none()
    }

    /// Uses a thread in place of the descriptor: it calls `event_loop.call_soon_threadsafe(target()._drain)` once for
    /// the rings that came since its last call. `target` is a weak reference, so that the thread keeps nothing
    /// alive but the loop.
    pub fn use_caller(&self, event_loop: Py<PyAny>, target: Py<PyAny>) -> io::Result<()> {
        let caller = Arc::new(Caller::default());
        if self.caller.set(Arc::clone(&caller)).is_ok() {
            std::thread::Builder::new()
                .name("aioraft-waker".to_owned())
                .spawn(move || run_caller(&caller, event_loop, target))?;
        }
        Ok(())
    }

    /// Ends the thread of [`Self::use_caller`], without waiting for it.
    pub fn close(&self) {
        if let Some(caller) = self.caller.get() {
            caller.state.lock().closed = true;
            caller.changed.notify_one();
        }
    }
}

/// The bell's rope, as it is given to the driver.
pub struct Rope(pub Arc<Bell>);

impl Wake for Rope {
    fn wake(&self) {
        self.0.ring();
    }
}

#[derive(Default)]
struct Caller {
    state: Mutex<CallerState>,
    changed: Condvar,
}

#[derive(Default)]
struct CallerState {
    rung: bool,
    closed: bool,
}

impl Caller {
    fn ring(&self) {
        self.state.lock().rung = true;
        self.changed.notify_one();
    }

    /// Waits for a ring; false when the bell is closed.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while !state.rung && !state.closed {
            self.changed.wait(&mut state);
        }
        state.rung = false;
        !state.closed
    }
}

/// How long the interpreter's end waits for a thread that is inside it.
const LEAVING: Duration = Duration::from_secs(2);

/// Callers' threads inside the interpreter, and whether it is about to end.
///
/// A thread that the interpreter finds inside at its end is torn down where it stands, which Rust's frames do not
/// survive. So from the interpreter's `atexit` on nobody enters, and those inside get the time to leave.
static VISITS: (Mutex<Visits>, Condvar) = (Mutex::new(Visits { inside: 0, over: false }), Condvar::new());

struct Visits {
    inside: usize,
    over: bool,
}

/// Runs `visit` inside the interpreter, unless that is about to end.
fn enter<R>(visit: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    let (visits, left) = (&VISITS.0, &VISITS.1);
    {
        let mut visits = visits.lock();
        if visits.over {
            return None;
        }
        visits.inside += 1;
    }
    let visited = Python::try_attach(visit);
    visits.lock().inside -= 1;
    left.notify_all();
    visited
}

/// To be registered with `atexit`.
#[pyfunction]
pub fn end_visits(py: Python<'_>) {
    py.detach(|| {
        let mut visits = VISITS.0.lock();
        visits.over = true;
        // A forked child waits in vain for a thread of its parent, and not for long.
        let until = Instant::now() + LEAVING;
        while visits.inside > 0 && !VISITS.1.wait_until(&mut visits, until).timed_out() {}
    });
}

fn run_caller(caller: &Caller, event_loop: Py<PyAny>, target: Py<PyAny>) {
    while caller.wait() {
        // None when the interpreter is shutting down; an error when the loop is closed or the target gone. Both end it.
        let called = enter(|py| -> PyResult<()> {
            let target = target.bind(py).call0()?.cast_into::<Core>()?;
            target.get().call_drain(&target, event_loop.bind(py), "call_soon_threadsafe")
        });
        if !matches!(called, Some(Ok(()))) {
            break;
        }
    }
    let mut held = Some((event_loop, target));
    enter(|_| drop(held.take()));
    // Without an interpreter there is nothing left to give them back to.
    std::mem::forget(held);
}

#[cfg(any(target_os = "linux", target_os = "android"))]
struct Descriptor(std::os::fd::OwnedFd);

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Descriptor {
    fn new() -> io::Result<Self> {
        use rustix::event::{eventfd, EventfdFlags};
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn ring(&self) {
        // It can only fail when the counter is about to overflow, and then it is readable.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn silence(&self) {
        // It can only fail when it does not ring.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
struct Descriptor {
    read: std::os::unix::net::UnixStream,
    write: std::os::unix::net::UnixStream,
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl Descriptor {
    fn new() -> io::Result<Self> {
        let (read, write) = std::os::unix::net::UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        Ok(Self { read, write })
    }

    fn fd(&self) -> RawFd {
        self.read.as_raw_fd()
    }

    fn ring(&self) {
        // It can only fail when its buffer is full, and then it is readable.
        let _ = io::Write::write(&mut &self.write, &[1]);
    }

    fn silence(&self) {
        let mut buffer = [0_u8; 256];
        while matches!(io::Read::read(&mut &self.read, &mut buffer), Ok(n) if n == buffer.len()) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(bell: &Bell) -> bool {
        // SAFETY: the bell outlives the borrow.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(bell.fd()) };
        let mut polled = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&now)).unwrap() == 1
    }

    #[test]
    fn it_rings_until_it_is_silenced() {
        let bell = Bell::new().unwrap();
        assert!(!is_readable(&bell));
        bell.ring();
        bell.ring();
        assert!(is_readable(&bell));
        bell.silence();
        assert!(!is_readable(&bell));
        bell.silence();
    }
}
