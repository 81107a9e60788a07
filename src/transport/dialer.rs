//! One task per peer that keeps a connection to it.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout, Instant};

use super::greet::{self, GreetError, Greeted};
use super::handshake::Role;
use super::peers::Peers;
use crate::engine::NodeId;

/// A connection that lasted so long was a good one: the next attempts start again with the shortest pause.
const LASTED: Duration = Duration::from_secs(1);

/// Dials `peer` at `address` for as long as the task lives. `dial_now` ends a pause.
pub(super) async fn run(peers: Rc<Peers>, peer: NodeId, address: String, dial_now: Rc<Notify>) {
    let mut pause = Pause::new(peers.options.redial_min, peers.options.redial_max);
    loop {
        if let Some(connection) = peers.dialled(peer) {
            let since = Instant::now();
            connection.closed().await;
            drop(connection);
            if since.elapsed() >= LASTED {
                pause.reset();
            }
            // Whoever asked to dial while there was a connection has had it.
            tokio::select! { biased; () = dial_now.notified() => {} () = std::future::ready(()) => {} }
        } else {
            match dial(&peers, peer, &address).await {
                Ok(()) => continue,
                Err(error) => failed(&peers, peer, &address, error),
            }
        }
        tokio::select! { () = sleep(pause.next()) => {} () = dial_now.notified() => {} }
    }
}

fn failed(peers: &Peers, peer: NodeId, address: &str, error: DialError) {
    match &error {
        DialError::Greet(GreetError::ByUs { refusal, .. }) => peers.refused(peer, true, refusal),
        DialError::Greet(GreetError::ByThem { refusal, .. }) => peers.refused(peer, false, refusal),
        _ => {
            if peers.may_say((peer, "dial", error.to_string())) {
                tracing::info!(node = peers.me, peer, address, "cannot reach node {peer}, still trying: {error}");
            }
        }
    }
    peers.set_trouble(peer, error.to_string());
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("{address} cannot be looked up: {error}")]
    Lookup { address: String, error: io::Error },
    #[error("{address} stands for no address: correct it in the list of members")]
    NoAddress { address: String },
    #[error("connecting to {address} failed: {error}")]
    Connect { address: String, error: io::Error },
    #[error("the handshake with {address} took longer than {limit:?}")]
    Slow { address: String, limit: Duration },
    #[error("the connection to {address} was gone, or outdated, when its handshake was done")]
    Late { address: String },
    #[error("{0}")]
    Greet(#[from] GreetError),
}

async fn dial(peers: &Rc<Peers>, peer: NodeId, address: &str) -> Result<(), DialError> {
    let (greeted, stream) = reach(peers, peer, Role::Peer, address).await?;
    if peers.admit(greeted, stream, true) {
        return Ok(());
    }
    Err(DialError::Late { address: address.to_owned() })
}

/// Connects to `peer` at `address` and shakes hands.
pub(super) async fn reach(
    peers: &Peers,
    peer: NodeId,
    role: Role,
    address: &str,
) -> Result<(Greeted, TcpStream), DialError> {
    let named = || address.to_owned();
    let connect_timeout = peers.options.connect_timeout;
    let found = within(connect_timeout, peers.options.resolver.resolve(address))
        .await
        .map_err(|error| DialError::Lookup { address: named(), error })?;
    let mut last = DialError::NoAddress { address: named() };
    for place in found {
        let mut stream = match within(connect_timeout, TcpStream::connect(place)).await {
            Ok(stream) => stream,
            Err(error) => {
                last = DialError::Connect { address: named(), error };
                continue;
            }
        };
        let limit = peers.options.handshake_timeout;
        match timeout(limit, greet::dial(&mut stream, peer, role, &*peers.gate)).await {
            Ok(Ok(greeted)) => return Ok((greeted, stream)),
            Ok(Err(error)) => last = error.into(),
            Err(_) => last = DialError::Slow { address: named(), limit },
        }
    }
    Err(last)
}

async fn within<T>(limit: Duration, work: impl std::future::Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long")))
}

/// Pauses that double up to a limit, each shortened by chance so that nodes do not dial in step.
pub(super) struct Pause {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Pause {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), next: min }
    }

    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// Between half and all of the current pause, but never below the shortest.
    pub fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        // Without randomness there is no jitter, which is no reason not to dial.
        let chance = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
        pause.mul_f64(0.5 + chance / 2.0).max(self.min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_start_again() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(2));
        let mut pause = Pause::new(min, max);
        for expected in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
            let expected = Duration::from_millis(expected);
            let found = pause.next();
            assert!(found >= min && found >= expected / 2 && found <= expected, "{found:?} for {expected:?}");
        }
        pause.reset();
        assert_eq!(pause.next(), min);
    }
}
