//! The task that accepts connections, and one short task for each handshake.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::greet::{self, GreetError};
use super::peers::Peers;

/// How long accepting rests after an error: with no file descriptor left, the next attempt fails at once as well.
const REST: Duration = Duration::from_millis(50);

/// Handshakes under way, oldest first.
#[derive(Default)]
struct Greetings {
    started: u64,
    under_way: VecDeque<(u64, AbortHandle)>,
}

/// Accepts connections for as long as the task lives.
pub(super) async fn run(peers: Rc<Peers>, listener: TcpListener) {
    let greetings = Rc::new(RefCell::new(Greetings::default()));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => start(&peers, &greetings, stream),
            Err(error) => {
                if peers.may_say(("accept", error.kind())) {
                    tracing::warn!(node = peers.me, %error, "cannot accept a connection, still trying");
                }
                sleep(REST).await;
            }
        }
    }
}

fn start(peers: &Rc<Peers>, greetings: &Rc<RefCell<Greetings>>, stream: TcpStream) {
    let number = {
        let mut greetings = greetings.borrow_mut();
        greetings.started += 1;
        greetings.started
    };
    // A task does not run before this one rests, so it cannot end before it is remembered.
    let task = peers.spawn(answer(Rc::clone(peers), Rc::clone(greetings), number, stream));
    let mut greetings = greetings.borrow_mut();
    greetings.under_way.extend(task.map(|task| (number, task)));
    if greetings.under_way.len() > peers.options.handshakes_max {
        if let Some((_, oldest)) = greetings.under_way.pop_front() {
            oldest.abort();
        }
    }
}

async fn answer(peers: Rc<Peers>, greetings: Rc<RefCell<Greetings>>, number: u64, mut stream: TcpStream) {
    let place = stream.peer_addr().map_or_else(|_| "an unknown address".to_owned(), |place| place.to_string());
    let answered = timeout(peers.options.handshake_timeout, greet::answer(&mut stream, &*peers.gate)).await;
    greetings.borrow_mut().under_way.retain(|(other, _)| *other != number);
    match answered {
        Ok(Ok(greeted)) => {
            peers.admit(greeted, stream, false);
        }
        Ok(Err(GreetError::ByUs { peer, refusal })) => peers.refused(peer, true, &refusal),
        Ok(Err(error)) => {
            if peers.may_say(("handshake", error.to_string())) {
                tracing::info!(node = peers.me, from = place, %error, "dropped a connection during its handshake");
            }
        }
        Err(_) => {
            if peers.may_say("slow handshake") {
                tracing::info!(node = peers.me, from = place, "dropped a connection that did not finish its handshake");
            }
        }
    }
}
