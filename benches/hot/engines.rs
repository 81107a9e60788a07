//! Engines in one thread: what they send arrives at once, and what they write is durable at once.
//!
//! There is no log behind them, so that the engine is measured alone; entries are read from its cache only.

use std::collections::VecDeque;
use std::sync::Arc;

use aioraft::engine::command::Command;
use aioraft::engine::{Effect, Engine, GroupId, HandOut, NodeId, Now, Opening, Settings, SnapshotPolicy, BOOTSTRAP};
use aioraft::storage::{GroupState, LogReader, StorageError};
use raft::eraftpb::{Entry, Message};

use super::VALUE;

const LEADER: usize = 0;
const HAND_OUT_BYTES: usize = 1 << 20;
const TICKS_MAX: usize = 100;

/// A cluster of them; the first leads.
pub struct Engines {
    engines: Vec<Engine>,
    network: VecDeque<(NodeId, Box<Message>)>,
    now: Now,
    proposed: u64,
    /// Commands that the leader's application has applied.
    applied: u64,
    leads: bool,
}

impl Engines {
    /// So many, one of which has been elected.
    pub fn new(count: u64) -> Self {
        let voters = (1..=count).collect::<Vec<_>>();
        let mut engines = voters.iter().map(|id| engine(*id, &voters)).collect::<Vec<_>>();
        for (engine, id) in engines.iter_mut().zip(&voters) {
            voters.iter().filter(|peer| *peer != id).for_each(|peer| engine.handle_route(*peer));
        }
        let now = Now { boottime_ns: 1, wall_ns: 1 };
        let mut this = Self { engines, network: VecDeque::new(), now, proposed: 0, applied: 0, leads: false };
        for _ in 0..TICKS_MAX {
            this.engines[LEADER].handle_tick();
            this.settle();
            if this.leads {
                return this;
            }
        }
        panic!("no leader after {TICKS_MAX} ticks");
    }

    /// Proposes so many values at once, and goes on until the leader has applied them.
    pub fn propose(&mut self, count: u64) {
        for _ in 0..count {
            self.proposed += 1;
            self.engines[LEADER].handle_proposal(self.proposed, Command::new(&VALUE), u64::MAX);
        }
        self.settle();
        assert_eq!(self.applied, self.proposed, "not everything was applied");
    }

    fn settle(&mut self) {
        loop {
            for at in 0..self.engines.len() {
                self.poll(at);
            }
            if self.network.is_empty() {
                return;
            }
            while let Some((from, message)) = self.network.pop_front() {
                let to = message.to as usize - 1;
                self.engines[to].handle_message(from, *message).expect("the engine refuses a message of its peer");
            }
        }
    }

    fn poll(&mut self, at: usize) {
        self.now.boottime_ns += 1;
        loop {
            let engine = &mut self.engines[at];
            let mut has_written = false;
            for effect in engine.poll(self.now).expect("the engine goes on") {
                match effect {
                    Effect::Send(message) => self.network.push_back((at as NodeId + 1, message)),
                    Effect::Persist(persist) => {
                        engine.handle_persisted(persist.number);
                        has_written = true;
                    }
                    Effect::Leadership(now) if at == LEADER => self.leads = now.leading_from.is_some(),
                    _ => {}
                }
            }
            while let Some(handed) = engine.hand_out(HAND_OUT_BYTES).expect("the cache holds it") {
                let HandOut::Apply(batch) = handed else { continue };
                if at == LEADER {
                    self.applied += batch.entries.iter().filter(|entry| entry.token.is_some()).count() as u64;
                }
                engine.handle_application_applied(batch.through);
            }
            if !has_written {
                return;
            }
        }
    }
}

fn engine(id: NodeId, voters: &[NodeId]) -> Engine {
    let settings = Settings {
        id,
        boot: 1,
        nonce: id,
        voters: voters.to_vec(),
        identities: voters.iter().map(|id| (*id, u128::from(*id))).collect(),
        election_ticks: 40,
        heartbeat_ticks: 4,
        seed: id,
        max_entry_bytes: 8 << 20,
        max_message_bytes: 1 << 20,
        max_inflight_messages: 32,
        max_uncommitted_bytes: 256 << 20,
        max_fresh_bytes: 64 << 20,
        entry_cache_bytes: 64 << 20,
        snapshots: SnapshotPolicy { possible: false, entries: u64::MAX, bytes: u64::MAX, trail: 0 },
    };
    let mut state = GroupState { truncated: BOOTSTRAP, last_index: BOOTSTRAP.0, ..Default::default() };
    (state.hard_state.term, state.hard_state.commit) = (BOOTSTRAP.1, BOOTSTRAP.0);
    let opening = Opening { state, snapshot: None, durable: None, is_fresh: true };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    Engine::new(&settings, opening, Arc::new(NoLog), &logger).expect("an engine starts on an empty log")
}

struct NoLog;

impl LogReader for NoLog {
    fn entries(&self, _: GroupId, _: u64, _: u64, _: u64) -> Result<Vec<Entry>, StorageError> {
        Err(StorageError::Poisoned { reason: "there is no log behind this engine".into() })
    }
}
