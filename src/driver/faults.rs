//! Faults put in on purpose, for tests of clusters whose nodes share a process.
//!
//! One [`Faults`] belongs to all nodes of such a cluster. Each node looks at it where the network hands over what has
//! arrived ([`Arrivals`]), so that a partition is a network which swallows packets: connections stay up, and nobody is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::engine::NodeId;
use crate::transport::Event;

/// From one node to another.
type Way = (NodeId, NodeId);

/// What goes wrong now; shared by the nodes of a cluster and whoever tests them.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    cut: BTreeSet<Way>,
    lossy: BTreeMap<Way, f64>,
    slow: BTreeMap<Way, Duration>,
    /// How many times over the application of each hangs.
    hung: BTreeMap<NodeId, usize>,
    crashing: BTreeSet<NodeId>,
    random: fastrand::Rng,
}

/// What becomes of something that has arrived.
enum Fate {
    Delivered,
    Delayed(Duration),
    Lost,
}

impl Faults {
    /// Nothing goes wrong yet; `seed` decides which messages a lossy way loses.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Table { random: fastrand::Rng::with_seed(seed), ..Table::default() })))
    }

    /// Nothing arrives at `to` from `from` any more, or it does again.
    pub fn cut(&self, from: NodeId, to: NodeId, is_cut: bool) {
        let mut table = self.0.lock();
        if is_cut {
            table.cut.insert((from, to));
        } else {
            table.cut.remove(&(from, to));
        }
    }

    /// What arrives on this way arrives so much later, in its order.
    pub fn delay(&self, from: NodeId, to: NodeId, by: Duration) {
        self.0.lock().slow.insert((from, to), by);
    }

    /// This share of the messages, between 0 and 1, does not arrive.
    pub fn drop(&self, from: NodeId, to: NodeId, share: f64) {
        self.0.lock().lossy.insert((from, to), share);
    }

    /// Every way is whole again.
    pub fn heal(&self) {
        let mut table = self.0.lock();
        table.cut.clear();
        table.lossy.clear();
        table.slow.clear();
    }

    /// The application of this node hangs until this was taken back as often: it hears of nothing.
    pub fn hang(&self, node: NodeId, hangs: bool) {
        let mut table = self.0.lock();
        let times = table.hung.entry(node).or_default();
        *times = if hangs { *times + 1 } else { times.saturating_sub(1) };
    }

    /// Whether the application of this node hangs.
    pub fn hangs(&self, node: NodeId) -> bool {
        self.0.lock().hung.get(&node).is_some_and(|times| *times > 0)
    }

    /// This node ends as if its process were killed: it says nothing to anybody, and writes nothing that is not being
    /// written already.
    pub fn crash(&self, node: NodeId) {
        self.0.lock().crashing.insert(node);
    }

    /// Whether this node is to end now; asked by itself, once.
    pub fn crashes(&self, node: NodeId) -> bool {
        self.0.lock().crashing.remove(&node)
    }

    fn is_cut(&self, way: Way) -> bool {
        self.0.lock().cut.contains(&way)
    }

    fn fate(&self, way: Way) -> Fate {
        let mut table = self.0.lock();
        if table.cut.contains(&way) {
            return Fate::Lost;
        }
        if let Some(share) = table.lossy.get(&way).copied() {
            if table.random.f64() < share {
                return Fate::Lost;
            }
        }
        table.slow.get(&way).map_or(Fate::Delivered, |by| Fate::Delayed(*by))
    }
}

/// What has arrived at one node, on its way through the faults.
pub struct Arrivals {
    faults: Faults,
    me: NodeId,
    /// Per peer, in order, with the time at which each is delivered.
    held: BTreeMap<NodeId, VecDeque<(Instant, Event)>>,
}

impl Arrivals {
    /// Nothing has arrived at `me` yet.
    pub fn new(faults: Faults, me: NodeId) -> Self {
        Self { faults, me, held: BTreeMap::new() }
    }

    /// Takes out of `occurred` what is lost or late, and puts in what is due.
    pub fn pass(&mut self, occurred: &mut Vec<Event>, now: Instant) {
        let mut delivered = Vec::with_capacity(occurred.len());
        for event in occurred.drain(..) {
            let Some(peer) = sender(&event) else {
                if let Event::Down { peer, .. } = &event {
                    self.held.remove(peer);
                }
                delivered.push(event);
                continue;
            };
            let fate = self.faults.fate((peer, self.me));
            let held = self.held.entry(peer).or_default();
            let before = held.back().map_or(now, |(due, _)| *due);
            match (fate, &event) {
                // TCP would send it again, and nobody else does.
                (Fate::Lost, Event::Formation { .. }) => held.push_back((before.max(now + RESEND), event)),
                (Fate::Lost, _) => {}
                (Fate::Delayed(by), _) => held.push_back((before.max(now + by), event)),
                (Fate::Delivered, _) if held.is_empty() => delivered.push(event),
                (Fate::Delivered, _) => held.push_back((before, event)),
            }
        }
        self.release(now, &mut delivered);
        *occurred = delivered;
    }

    /// When the next delayed message is due.
    pub fn next(&self) -> Option<Instant> {
        self.held.values().filter_map(|held| held.front()).map(|(due, _)| *due).min()
    }

    fn release(&mut self, now: Instant, delivered: &mut Vec<Event>) {
        for (peer, held) in &mut self.held {
            while let Some((due, event)) = held.pop_front() {
                if due > now {
                    held.push_front((due, event));
                    break;
                }
                // Chance has had its say when it came.
                let is_cut = self.faults.is_cut((*peer, self.me));
                match event {
                    Event::Formation { .. } if is_cut => {
                        held.push_front((now + RESEND, event));
                        break;
                    }
                    event if !is_cut => delivered.push(event),
                    _ => {}
                }
            }
        }
    }
}

/// How often a message is tried again that must arrive.
const RESEND: Duration = Duration::from_millis(50);

/// Whoever sent what has arrived; `None` for what this node has found out itself.
fn sender(event: &Event) -> Option<NodeId> {
    match event {
        Event::Raft { from, .. }
        | Event::Propose { from, .. }
        | Event::Rejected { from, .. }
        | Event::Dropped { from, .. }
        | Event::Durable { from, .. }
        | Event::Formation { from, .. }
        | Event::SnapshotReceived { from, .. } => Some(*from),
        Event::Up { .. }
        | Event::Routed { .. }
        | Event::Down { .. }
        | Event::SnapshotSent { .. }
        | Event::Asked { .. }
        | Event::ToolLeft { .. }
        | Event::Refused { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage;
    use crate::storage::snapshot::{Form, Head};

    const NOTHING: [NodeId; 0] = [];

    fn message(from: NodeId) -> Event {
        Event::Propose { from, group: 1, commands: Vec::new() }
    }

    fn report(from: NodeId) -> Event {
        Event::Formation { from, body: Vec::new() }
    }

    /// A snapshot of one chunk.
    fn snapshot(from: NodeId) -> Event {
        let head = Head { group: 1, index: 70, term: 3, form: Form::Bytes, meta: Vec::new() };
        let mut writer = storage::memory::open().snapshots.create(&head).unwrap();
        writer.write_chunk(b"state").unwrap();
        Event::SnapshotReceived { from, group: 1, message: Box::default(), file: writer.finish().unwrap() }
    }

    fn senders(events: &[Event]) -> Vec<NodeId> {
        events.iter().filter_map(sender).collect()
    }

    fn passed(arrivals: &mut Arrivals, events: Vec<Event>, now: Instant) -> Vec<NodeId> {
        let mut events = events;
        arrivals.pass(&mut events, now);
        senders(&events)
    }

    #[test]
    fn a_cut_way_loses_what_is_sent_on_it_in_one_direction() {
        let (faults, now) = (Faults::default(), Instant::now());
        let (mut one, mut two) = (Arrivals::new(faults.clone(), 1), Arrivals::new(faults.clone(), 2));
        faults.cut(2, 1, true);
        assert_eq!(passed(&mut one, vec![message(2), message(3)], now), [3]);
        assert_eq!(passed(&mut two, vec![message(1)], now), [1]);
        faults.heal();
        assert_eq!(passed(&mut one, vec![message(2)], now), [2]);
    }

    #[test]
    fn a_cut_way_lets_no_snapshot_pass() {
        let (faults, now) = (Faults::default(), Instant::now());
        let mut arrivals = Arrivals::new(faults.clone(), 1);
        faults.cut(2, 1, true);
        assert_eq!(passed(&mut arrivals, vec![snapshot(2), snapshot(3)], now), [3]);
        faults.heal();
        assert_eq!(passed(&mut arrivals, vec![snapshot(2)], now), [2]);
        // What this node has found out itself comes in any case.
        faults.cut(2, 1, true);
        let mut events = vec![Event::SnapshotSent { to: 2, group: 1, index: 70, outcome: Ok(()) }];
        arrivals.pass(&mut events, now);
        assert_eq!(events.len(), 1);
    }

    #[test]
    fn what_is_delayed_keeps_its_order_and_is_gone_with_its_connection() {
        let (faults, now, by) = (Faults::default(), Instant::now(), Duration::from_millis(100));
        let mut arrivals = Arrivals::new(faults.clone(), 1);
        faults.delay(2, 1, by);
        assert_eq!(passed(&mut arrivals, vec![message(2)], now), NOTHING);
        // The way is quick again, and nothing overtakes.
        faults.heal();
        assert_eq!(passed(&mut arrivals, vec![message(2), message(3)], now), [3]);
        assert_eq!(arrivals.next(), Some(now + by));
        assert_eq!(passed(&mut arrivals, vec![], now + by), [2, 2]);
        faults.delay(2, 1, by);
        let down = Event::Down { peer: 2, reason: String::new(), in_order: false };
        assert_eq!(passed(&mut arrivals, vec![message(2), down], now), NOTHING);
        assert_eq!(arrivals.next(), None);
    }

    #[test]
    fn a_report_on_the_formation_arrives_when_the_way_is_whole_again() {
        let (faults, now) = (Faults::default(), Instant::now());
        let mut arrivals = Arrivals::new(faults.clone(), 1);
        faults.cut(2, 1, true);
        assert_eq!(passed(&mut arrivals, vec![report(2)], now), NOTHING);
        assert_eq!(passed(&mut arrivals, vec![], now + RESEND), NOTHING);
        faults.heal();
        assert_eq!(passed(&mut arrivals, vec![], now + RESEND), NOTHING);
        assert_eq!(passed(&mut arrivals, vec![], now + 2 * RESEND), [2]);
    }

    #[test]
    fn a_seed_decides_what_a_lossy_way_loses() {
        let arrived = |seed| {
            let faults = Faults::new(seed);
            faults.drop(2, 1, 0.5);
            let mut arrivals = Arrivals::new(faults, 1);
            (0..100).map(|_| passed(&mut arrivals, vec![message(2)], Instant::now()).len()).collect::<Vec<_>>()
        };
        assert_eq!(arrived(7), arrived(7));
        assert_ne!(arrived(7), arrived(8));
        let count = arrived(7).iter().sum::<usize>();
        assert!((30..70).contains(&count), "{count} of 100");
    }

    #[test]
    fn a_delay_costs_no_more_messages() {
        let (faults, now, by) = (Faults::new(7), Instant::now(), Duration::from_millis(100));
        faults.drop(2, 1, 0.5);
        faults.delay(2, 1, by);
        let mut arrivals = Arrivals::new(faults, 1);
        passed(&mut arrivals, (0..1000).map(|_| message(2)).collect(), now);
        let count = passed(&mut arrivals, vec![], now + by).len();
        assert!((400..600).contains(&count), "{count} of 1000");
    }
}
