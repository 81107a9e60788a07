//! A node without Python: the same engine, log, network and queues, and tokio tasks where asyncio's would be.
//!
//! `make bench-peers` measures three of them beside three with Python: what lies between is what Python costs.
//!
//!     without_python NUMBER ID=HOST:PORT,ID=HOST:PORT,... DATA_DIR
//!
//! Orders and answers as of `bench_node.py`.

#![allow(clippy::expect_used, clippy::panic)] // a measurement that cannot go on ends

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aioraft::driver::port::{Completion, Port, Proposal, Wake};
use aioraft::driver::{self, AdminFrom, Listen, Options, Tuning};
use aioraft::engine::command::Command;
use tokio::sync::{mpsc, oneshot, Notify};
use tokio::task::{spawn_local, LocalSet};

/// Values differ, so that a log that compresses its batches gains nothing.
const VALUES: usize = 1024;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().expect("NUMBER ID=HOST:PORT,... DATA_DIR");
    let id = argument().parse().expect("a number");
    let member = |text: &str| {
        let (id, address) = text.split_once('=').expect("ID=HOST:PORT");
        (id.parse().expect("a number"), address.to_string())
    };
    let members = argument().split(',').map(member).collect::<BTreeMap<u64, String>>();
    let data_dir = PathBuf::from(argument());
    LocalSet::new().block_on(&runtime, run(id, members, data_dir));
}

async fn run(id: u64, members: BTreeMap<u64, String>, data_dir: PathBuf) {
    let bell = Arc::new(Notify::new());
    let listen = Listen::Address(members.get(&id).expect("NUMBER is one of the ids").clone());
    let options = Options {
        id,
        members,
        cluster: "bench".into(),
        data_dir: Some(data_dir),
        listen,
        advertise: None,
        tuning: tuning(),
        takes_snapshots: false,
        durable_applied: None,
        logger: slog::Logger::root(slog::Discard, slog::o!()),
        dispatch: tracing::Dispatch::none(),
        joins: None,
        faults: None,
    };
    let spawned = driver::spawn(options, Box::new(Bell(bell.clone()))).expect("a thread");
    let application = Rc::new(Application { port: spawned.port, waiting: RefCell::default() });
    let draining = spawn_local(drain(application.clone(), bell));
    let (orders, mut ordered) = mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| orders.send(line)));
    while let Some(order) = ordered.recv().await {
        load(&application, &order).await;
    }
    draining.abort();
}

/// What `Config` has by default.
fn tuning() -> Tuning {
    Tuning {
        election_timeout: Duration::from_secs(1),
        heartbeat_interval: Duration::from_millis(100),
        max_entry_bytes: 8 << 20,
        max_message_bytes: 1 << 20,
        max_inflight_messages: 32,
        max_uncommitted_bytes: 256 << 20,
        max_unapplied_bytes: 64 << 20,
        entry_cache_bytes: 64 << 20,
        snapshot_entries: u64::MAX,
        snapshot_bytes: u64::MAX,
        snapshot_trail: 10_000,
        snapshot_rate: 64 << 20,
        insecure: false,
        admin_from: AdminFrom::Localhost,
    }
}

struct Bell(Arc<Notify>);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// What the bridge is in Python: who waits for which proposal.
struct Application {
    port: Port,
    /// By token, which is the client's number.
    waiting: RefCell<Vec<Option<oneshot::Sender<()>>>>,
}

impl Application {
    async fn propose(&self, client: usize, value: &[u8]) {
        let (done, wait) = oneshot::channel();
        self.waiting.borrow_mut()[client] = Some(done);
        self.port.inbox.propose(Proposal { token: client as u64, command: Command::new(value), deadline_ns: None });
        wait.await.expect("the node stopped");
    }
}

async fn drain(application: Rc<Application>, bell: Arc<Notify>) {
    let port = &application.port;
    let mut completions = VecDeque::new();
    let mut leader = None;
    loop {
        bell.notified().await;
        port.completions.acknowledge_wake();
        port.completions.take(&mut completions);
        for completion in completions.drain(..) {
            match completion {
                Completion::Apply { entries, through, bytes } => {
                    let mut waiting = application.waiting.borrow_mut();
                    for token in entries.iter().filter_map(|entry| entry.token) {
                        if let Some(done) = waiting[token as usize].take() {
                            let _ = done.send(());
                        }
                    }
                    port.cursor.set_applied(through);
                    port.completions.consumed(bytes);
                    port.inbox.nudge();
                }
                Completion::Leadership(now) => {
                    if leader.is_none() && now.leader.is_some() {
                        println!(r#"{{"ready": true}}"#);
                    }
                    leader = now.leader;
                    println!(r#"{{"leader": {}}}"#, leader.map_or("null".into(), |id| id.to_string()));
                }
                Completion::Failed { failure, .. } => panic!("a proposal failed: {failure:?}"),
                Completion::Stopped { fatal } => panic!("the node stopped: {fatal:?}"),
                _ => {}
            }
        }
    }
}

/// As `load.py`: each client keeps one proposal in flight, and what ends behind the warm-up is measured.
async fn load(application: &Rc<Application>, order: &str) {
    let number = |name| field(order, name).unwrap_or_else(|| panic!("the order lacks {name}: {order}"));
    let (clients, seconds) = (number("in_flight") as usize, number("seconds"));
    let begin = Instant::now() + Duration::from_secs_f64(number("warm_up_s"));
    let end = begin + Duration::from_secs_f64(seconds);
    let bytes = number("value_bytes") as usize;
    let different = VALUES.min((32 << 20) / bytes);
    let values = Rc::new((0..different).map(|_| random(bytes)).collect::<Vec<_>>());
    let (calls, latencies) = (Rc::new(Cell::new(0_usize)), Rc::new(RefCell::new(Vec::new())));
    application.waiting.borrow_mut().resize_with(clients, || None);
    let tasks = (0..clients).map(|client| {
        let (application, values) = (application.clone(), values.clone());
        let (calls, latencies) = (calls.clone(), latencies.clone());
        spawn_local(async move {
            loop {
                let start = Instant::now();
                if start >= end {
                    return;
                }
                application.propose(client, &values[calls.get() % values.len()]).await;
                calls.set(calls.get() + 1);
                let now = Instant::now();
                if (begin..end).contains(&now) {
                    latencies.borrow_mut().push((now - start).as_secs_f64() * 1000.0);
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a client");
    }
    let mut latencies = latencies.take();
    latencies.sort_by(f64::total_cmp);
    let part = |part: f64| latencies.get((latencies.len() as f64 * part) as usize).copied().unwrap_or_default();
    println!(
        r#"{{"found": {{"rate": {}, "p50_ms": {}, "p99_ms": {}, "calls": {}}}}}"#,
        latencies.len() as f64 / seconds,
        part(0.5),
        part(0.99),
        calls.get()
    );
}

fn random(bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect()
}

/// A number in a line of JSON without nesting of its names.
fn field(json: &str, name: &str) -> Option<f64> {
    let (_, rest) = json.split_once(&format!("\"{name}\":"))?;
    rest.split([',', '}']).next()?.trim().parse().ok()
}
