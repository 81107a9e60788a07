//! The task that accepts connections, and one short task for each handshake.

use std::cell::RefCell;
use std::mem::discriminant;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::admin_service;
use super::greet::{self, GreetError};
use super::handshake::Role;
use super::options::Options;
use super::peers::Peers;
use super::snapshot_receiver;

/// How long accepting rests after an error: with no file descriptor left, the next attempt fails at once as well.
const REST: Duration = Duration::from_millis(50);

/// A handshake under way.
struct Greeting {
    number: u64,
    source: IpAddr,
    task: AbortHandle,
}

/// Handshakes under way, oldest first.
#[derive(Default)]
struct Greetings {
    started: u64,
    under_way: Vec<Greeting>,
}

impl Greetings {
    /// Drops the oldest of an address that has too many, or, if there are too many in all, of the one that has the most:
    /// strangers at one address do not keep out peers at another. Returns whose it was.
    fn make_room(&mut self, source: IpAddr, options: &Options) -> Option<IpAddr> {
        let of = |source| self.under_way.iter().filter(|other| other.source == source).count();
        let crowded = if of(source) > options.handshakes_per_address_max {
            Some(source)
        } else if self.under_way.len() > options.handshakes_max {
            self.under_way.iter().map(|other| other.source).max_by_key(|source| of(*source))
        } else {
            None
        };
        let oldest = self.under_way.iter().position(|other| Some(other.source) == crowded)?;
        self.under_way.remove(oldest).task.abort();
        crowded
    }
}

/// What counts as one address: a host has a whole IPv6 network to itself.
fn source_of(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// Accepts connections for as long as the task lives.
pub(super) async fn run(peers: Rc<Peers>, listener: TcpListener) {
    let greetings = Rc::new(RefCell::new(Greetings::default()));
    loop {
        match listener.accept().await {
            Ok((stream, from)) => start(&peers, &greetings, stream, from),
            Err(error) => {
                if peers.may_say(("accept", error.kind())) {
                    tracing::warn!(node = peers.me, %error, "cannot accept a connection, still trying");
                }
                sleep(REST).await;
            }
        }
    }
}

fn start(peers: &Rc<Peers>, greetings: &Rc<RefCell<Greetings>>, stream: TcpStream, from: SocketAddr) {
    let number = {
        let mut greetings = greetings.borrow_mut();
        greetings.started += 1;
        greetings.started
    };
    // A task does not run before this one rests, so it cannot end before it is remembered.
    let task = peers.spawn(answer(Rc::clone(peers), Rc::clone(greetings), number, stream, from));
    let (mut greetings, source) = (greetings.borrow_mut(), source_of(from));
    greetings.under_way.extend(task.map(|task| Greeting { number, source, task }));
    if let Some(crowded) = greetings.make_room(source, &peers.options) {
        if peers.may_say_of_strangers((crowded, "crowded")) {
            tracing::warn!(node = peers.me, from = %crowded, "dropped the oldest of many connections that did not finish their handshake");
        }
    }
}

async fn answer(
    peers: Rc<Peers>,
    greetings: Rc<RefCell<Greetings>>,
    number: u64,
    mut stream: TcpStream,
    from: SocketAddr,
) {
    let answered = timeout(peers.options.handshake_timeout, greet::answer(&mut stream, &*peers.gate)).await;
    greetings.borrow_mut().under_way.retain(|other| other.number != number);
    let source = source_of(from);
    match answered {
        Ok(Ok(greeted)) if greeted.hello.role == Role::Snapshot => snapshot_receiver::admit(&peers, greeted, stream),
        Ok(Ok(greeted)) if greeted.hello.role.is_tool() => admin_service::admit(&peers, greeted, stream, from),
        Ok(Ok(greeted)) => {
            peers.admit(greeted, stream, false);
        }
        Ok(Err(GreetError::ByUs { peer, refusal })) => peers.refused_inbound(peer, true, from, &refusal),
        Ok(Err(GreetError::ByThem { peer, refusal })) => peers.refused_inbound(peer, false, from, &refusal),
        Ok(Err(GreetError::Tool(refusal))) => peers.refused_tool(from, &refusal),
        // Its text may hold what the stranger likes; its kind may not.
        Ok(Err(error)) => {
            if peers.may_say_of_strangers((source, discriminant(&error))) {
                tracing::info!(node = peers.me, %from, %error, "dropped a connection during its handshake");
            }
        }
        Err(_) => {
            if peers.may_say_of_strangers((source, "slow")) {
                tracing::info!(node = peers.me, %from, "dropped a connection that did not finish its handshake");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_counts_once_whatever_address_of_its_network_it_takes() {
        let source = |address: &str| source_of(address.parse().unwrap());
        assert_eq!(source("[2001:db8:1:2::7]:1"), source("[2001:db8:1:2:ffff::9]:2"));
        assert_ne!(source("[2001:db8:1:2::7]:1"), source("[2001:db8:1:3::7]:1"));
        assert_eq!(source("[::ffff:10.0.0.1]:1"), source("10.0.0.1:9"));
        assert_ne!(source("10.0.0.1:1"), source("10.0.0.2:1"));
    }
}
