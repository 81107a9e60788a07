//! What one seed stands for: the cluster, its limits, its workload, and the schedule of its faults.
//!
//! Each seed draws only some kinds of faults, and of those many or few: a world in which everything goes wrong all the
//! time never gets far enough for what is rare.

use std::time::Duration;

use fastrand::Rng;

use super::clock::{Time, MS, SECOND};
use super::objects;
use crate::driver::{AdminFrom, Tuning};

/// When the last fault has happened: everything that can run runs from then on.
pub const HEALED: Time = 45 * SECOND;

/// When the clients make their last calls.
pub const QUIET: Time = 54 * SECOND;

/// When the world ends.
pub const END: Time = 60 * SECOND;

/// Bytes of a guest's command, at most: as `Config.max_entry_bytes` is by default.
pub const GUEST_BYTES_MAX: usize = 1 << 20;

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This machine.
    Machine(usize),
    /// Whichever machine leads at that moment; this one, if none does.
    LeaderOr(usize),
}

/// How a process ends without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// What it wrote is in the page cache.
    Kill,
    /// What was not synced may be lost.
    PowerLoss,
}

/// What an operator wants of the members. Whom it concerns is chosen when it is asked for, among those that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A machine with an empty disk becomes a member: one that has never been any, or that was removed, or lost its disk.
    Join { machine: usize, id: JoinId },
    /// Such a machine joins by its name, which it had before or not: it gets its vote by itself.
    JoinByName { machine: usize },
    /// A learner gets a vote.
    Promote,
    /// A voter becomes a learner.
    Demote,
    /// A member leaves for good.
    Remove,
    /// One gets a vote, and another one leaves or loses its own, at once.
    Replace,
    /// Several of these at once.
    Several,
    /// Nobody's vote is concerned.
    Note,
}

/// Under which id a machine joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinId {
    /// The operator's choice, a new one.
    New,
    /// The cluster's choice.
    Open,
    /// One that was a member's before: never again.
    Used,
}

/// A message that makes raft-rs panic, or believe what is not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Entries behind a gap.
    Gap,
    /// A heartbeat that presumes entries which the receiver has not.
    LostLog,
    /// Acknowledges entries which the leader has not.
    UnknownEntries,
    /// Rejects what was acknowledged.
    StaleReject,
    /// Proposes nothing at all, or asks to read without saying who asks.
    Empty,
    /// Forwards once more what was applied long ago.
    OldCommand,
}

/// Something that goes wrong. Durations are virtual nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends at its `after`-th effect or step from now on, and is started again when it has been `down`.
    Crash { target: Target, kind: Crash, after: u32, down: Time },
    /// The application calls for another leader: this machine's node, or whoever is furthest.
    Transfer { target: Target, to: Option<usize>, patience: Option<Time> },
    /// The application calls so many times at once.
    Burst { target: Target, calls: u32 },
    /// The application closes its node, and starts it again.
    Close { target: Target, drain: Time, down: Time },
    /// The process is stopped (SIGSTOP).
    Pause { target: Target, lasts: Time },
    /// The application's loop is blocked; the node beside it is not.
    BlockApplication { target: Target, lasts: Time },
    /// Nothing passes between the machines of the mask and the others; only towards the others if `one_way`.
    Partition { mask: u32, one_way: bool, lasts: Time },
    /// Nothing passes between one machine and the others.
    Isolate { target: Target, lasts: Time },
    /// Nothing passes from one machine to another, nor back if not `one_way`.
    Cut { from: usize, to: usize, one_way: bool, lasts: Time },
    /// Every packet between two machines takes longer by up to this.
    SlowLink { one: usize, other: usize, delay: Time, lasts: Time },
    /// So many of a thousand packets are lost on their way, everywhere.
    Loss { per_mille: u32, lasts: Time },
    /// All connections between two machines break; their last packets may be lost, or come once more on the next.
    Break { one: usize, other: usize },
    /// Fsyncs take so long.
    SlowDisk { target: Target, fsync: Time, lasts: Time },
    /// The next write to the disk fails; the machine is repaired and started again later.
    FailDisk { target: Target, down: Time },
    /// The machine sleeps: its boottime jumps ahead.
    Sleep { target: Target, by: Time },
    /// Somebody sets the wall clock.
    SetWallClock { target: Target, by: i64 },
    /// The disk is replaced by an empty one.
    Wipe { target: Target, down: Time },
    /// An earlier copy of the disk is put back.
    RollBack { target: Target, copied: Time, down: Time },
    /// An earlier copy of the disk runs as a second process of the same node.
    Clone { target: Target, copied: Time, lasts: Time },
    /// One member sends another a message that no honest peer sends.
    Forge { from: usize, to: usize, lie: Lie },
    /// The node is started again with a list of members that is not the others'.
    WrongMembers { target: Target, fewer: bool, down: Time },
    /// An application calls for a change of the members, and perhaps another one for the same a little later.
    Change { at: Target, ask: Ask, patience: Option<Time>, twice: bool },
    /// A majority of the voters is lost for good, and the cluster goes on from this machine, or another that is left.
    LoseQuorum { survivor: usize },
    /// The node is started again, and reached under another address from then on.
    Move { machine: usize, down: Time },
}

/// What the time of a fault counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// The world's beginning.
    Beginning,
    /// The moment at which so many stages of the formation have become durable, over all nodes.
    Stage(u32),
}

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// Counted from.
    pub since: Since,
    /// When it begins.
    pub at: Time,
    /// What.
    pub fault: Fault,
}

impl std::fmt::Display for Scheduled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = self.at as f64 / SECOND as f64;
        match self.since {
            Since::Beginning => write!(f, "{at:>9.3} s  {:?}", self.fault),
            Since::Stage(stage) => write!(f, "{at:>9.3} s after stage {stage} of the formation  {:?}", self.fault),
        }
    }
}

/// Everything that a seed decides before the world begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed; the world draws everything else from it while it goes on.
    pub seed: u64,
    /// How it was drawn.
    #[cfg_attr(not(feature = "mutants"), expect(dead_code, reason = "only `make sim` tells it"))]
    pub edition: u32,
    /// Machines whose nodes found the cluster.
    pub nodes: usize,
    /// Machines besides that may join it later.
    pub spares: usize,
    /// The nodes' settings.
    pub tuning: Tuning,
    /// Clients on each machine.
    pub clients: usize,
    /// A client's pause between two calls, on average.
    pub think: Time,
    /// Up to so many bytes are added to a command.
    pub padding: usize,
    /// What the application is handed at once, in bytes.
    pub batch_bytes: usize,
    /// A packet's way, at least and at most.
    pub latency: (Time, Time),
    /// An fsync, at least and at most.
    pub fsync: (Time, Time),
    /// The disks hold files, and the real log keeps them.
    pub files: bool,
    /// Applications show their state, and logs are compacted.
    pub takes_snapshots: bool,
    /// Applications keep their state durably by themselves.
    pub keeps_state: bool,
    /// Crashes and slow disks come when a snapshot is installed.
    pub troubled_installs: bool,
    /// They come when a change of the members is appended or takes effect.
    pub troubled_changes: bool,
    /// Nodes have names: those who found the cluster, and those who join by them.
    pub names: bool,
    /// Many reads are given up before they can be answered.
    pub hasty_reads: bool,
    /// In order of their times.
    pub faults: Vec<Scheduled>,
}

/// How plans are drawn today. Whoever draws something new counts it up, and draws it from a generator of its own: a seed
/// of the corpus goes on standing for the plan with which it failed.
pub const EDITION: u32 = 10;

impl Plan {
    /// What `seed` stands for.
    #[cfg(feature = "mutants")]
    pub fn new(seed: u64) -> Self {
        Self::of_edition(seed, EDITION)
    }

    /// What `seed` stood for when plans were drawn in this way.
    #[cfg(feature = "mutants")]
    pub fn of_edition(seed: u64, edition: u32) -> Self {
        Self::of(seed, edition, None)
    }

    /// The same for a guest: with as many nodes as it wants, in memory, and with what happens to an application only.
    /// Disks that are lost and peers that lie are the engine's affair.
    pub fn for_guest(seed: u64, nodes: usize) -> Self {
        let mut plan = Self::of(seed, EDITION, Some(nodes));
        (plan.files, plan.padding, plan.takes_snapshots, plan.keeps_state) = (false, 0, false, false);
        plan.tuning.max_entry_bytes = (GUEST_BYTES_MAX + objects::LEN) as u64;
        let is_for_the_engine = |fault| {
            matches!(fault, Fault::Wipe { .. } | Fault::RollBack { .. } | Fault::Clone { .. })
                || matches!(fault, Fault::Forge { .. } | Fault::WrongMembers { .. })
                || matches!(fault, Fault::Change { .. } | Fault::Move { .. } | Fault::LoseQuorum { .. })
        };
        plan.faults.retain(|scheduled| !is_for_the_engine(scheduled.fault));
        plan
    }

    fn of(seed: u64, edition: u32, nodes: Option<usize>) -> Self {
        let mut plan = Self { edition, ..Self::first_edition(seed, nodes) };
        let mut rng = Rng::with_seed(seed ^ 0x5eed_0000_0000_0002);
        if edition >= 2 && nodes.is_none() && rng.u32(0..8) == 0 {
            plan.nodes = *pick(&mut rng, &[3, 3, 5]);
            plan.faults =
                if rng.u32(0..3) == 0 { torn_birth(&mut rng, plan.nodes) } else { split_birth(&mut rng, plan.nodes) };
        }
        if edition >= 3 {
            plan.draw_snapshots(&mut Rng::with_seed(seed ^ 0x5eed_0000_0000_0003));
        }
        let mut rng = Rng::with_seed(seed ^ 0x5eed_0000_0000_0005);
        if edition >= 5 && nodes.is_none() && rng.u32(0..4) == 0 {
            plan.draw_troubled_installs(&mut rng);
        }
        if edition >= 4 {
            add_transfers(&mut Rng::with_seed(seed ^ 0x5eed_0000_0000_0004), plan.nodes, &mut plan.faults);
        }
        let mut rng = Rng::with_seed(seed ^ 0x5eed_0000_0000_0006);
        if edition >= 6 && nodes.is_none() && rng.bool() {
            plan.draw_changes(&mut rng);
            let mut rng = Rng::with_seed(seed ^ 0x5eed_0000_0000_0008);
            if edition >= 8 && rng.bool() {
                plan.draw_names(&mut rng);
            }
            if edition >= 8 && rng.u32(0..4) == 0 {
                let (at, survivor) = (rng.u64(12 * SECOND..HEALED - 12 * SECOND), rng.usize(0..plan.machines()));
                plan.faults.push(scheduled(at, Fault::LoseQuorum { survivor }));
                plan.faults.sort_by_key(|scheduled| scheduled.at);
            }
        }
        if edition >= 7 && plan.troubled_installs {
            plan.draw_bursts(&mut Rng::with_seed(seed ^ 0x5eed_0000_0000_0007));
        }
        if edition >= 7 && plan.spares > 0 {
            // A newcomer that gets the log in small pieces, two on their way at once, is not there before the world ends.
            plan.tuning.max_inflight_messages = plan.tuning.max_inflight_messages.max(16);
        }
        let mut rng = Rng::with_seed(seed ^ 0x5eed_0000_0000_0009);
        if edition >= 9 && nodes.is_none() && rng.u32(0..3) == 0 {
            match plan.spares {
                0 => plan.draw_old_disk(&mut rng),
                _ => plan.draw_fatal_removals(&mut rng),
            }
        }
        let mut rng = Rng::with_seed(seed ^ 0x5eed_0000_0000_000a);
        if edition >= 10 && nodes.is_none() {
            match rng.u32(0..12) {
                0 => plan.draw_late_answers(&mut rng),
                1 => plan.draw_slow_heirs(&mut rng),
                _ => {}
            }
        }
        plan
    }

    /// All machines, those of clones aside.
    pub fn machines(&self) -> usize {
        self.nodes + self.spares
    }

    /// Members come and go.
    fn draw_changes(&mut self, rng: &mut Rng) {
        self.spares = rng.usize(1..=3);
        self.troubled_changes = rng.bool();
        // A newcomer remembers no earlier start of anybody, so an old copy of a disk could find a friend in it: what remains
        // of copies (docs/reliability.md) would be more.
        self.faults.retain(|it| !matches!(it.fault, Fault::RollBack { .. } | Fault::Clone { .. }));
        let machines = self.machines();
        for _ in 0..*pick(rng, &[5, 12, 30]) {
            let at = rng.u64(3 * SECOND..HEALED - 2 * SECOND);
            let machine = rng.usize(0..machines);
            let target = if rng.u32(0..3) == 0 { Target::LeaderOr(machine) } else { Target::Machine(machine) };
            let ask = match rng.u32(0..20) {
                0..=5 => {
                    let id = *pick(rng, &[JoinId::New, JoinId::New, JoinId::Open, JoinId::Used]);
                    Ask::Join { machine: rng.usize(0..machines), id }
                }
                6..=9 => Ask::Promote,
                10..=11 => Ask::Demote,
                12..=13 => Ask::Remove,
                14..=16 => Ask::Replace,
                17..=18 => Ask::Several,
                _ => Ask::Note,
            };
            let patience = (rng.u32(0..5) > 0).then(|| rng.u64(20..9000) * MS);
            let twice = rng.u32(0..3) == 0;
            self.faults.push(scheduled(at, Fault::Change { at: target, ask, patience, twice }));
        }
        // The newcomers' machines are not spared either.
        for _ in 0..*pick(rng, &[0, 5, 15]) {
            let at = rng.u64(5 * SECOND..HEALED - 2 * SECOND);
            let kind = *pick(rng, &[0, 2, 3, 4, 6, 8, 9, 11, 12, 13, 15]);
            let fault = match rng.u32(0..8) {
                0 => Fault::Move { machine: rng.usize(0..machines), down: rng.u64(1..2000) * MS },
                _ => fault(rng, kind, machines, at),
            };
            self.faults.push(scheduled(at, fault));
        }
        self.faults.sort_by_key(|scheduled| scheduled.at);
    }

    /// Nodes have names; disks are lost, and their machines join again by theirs.
    fn draw_names(&mut self, rng: &mut Rng) {
        self.names = true;
        let machines = self.machines();
        for _ in 0..*pick(rng, &[1, 3, 6]) {
            let at = rng.u64(4 * SECOND..HEALED - 8 * SECOND);
            let machine = rng.usize(0..machines);
            let target = if rng.u32(0..3) == 0 { Target::LeaderOr(machine) } else { Target::Machine(machine) };
            let down = rng.u64(1..70).pow(2) * MS;
            self.faults.push(scheduled(at, Fault::Wipe { target, down }));
        }
        for _ in 0..*pick(rng, &[4, 10, 20]) {
            let at = rng.u64(3 * SECOND..HEALED - 3 * SECOND);
            let target = Target::Machine(rng.usize(0..machines));
            let ask = Ask::JoinByName { machine: rng.usize(0..machines) };
            let patience = Some(rng.u64(200..5000) * MS);
            self.faults.push(scheduled(at, Fault::Change { at: target, ask, patience, twice: rng.u32(0..4) == 0 }));
        }
        self.faults.sort_by_key(|scheduled| scheduled.at);
    }

    /// How snapshots are taken, and whether applications keep their state by themselves.
    fn draw_snapshots(&mut self, rng: &mut Rng) {
        self.takes_snapshots = rng.u32(0..8) > 0;
        self.keeps_state = rng.u32(0..4) == 0;
        let tuning = &mut self.tuning;
        tuning.snapshot_entries = *pick(rng, &[5, 30, 200, 1000, u64::MAX]);
        tuning.snapshot_bytes = *pick(rng, &[2000, 30_000, u64::MAX]);
        tuning.snapshot_trail = *pick(rng, &[0, 0, 10, 200]);
    }

    /// Nodes fall behind what is compacted at once, leaders with what they could not commit among them, and what they install
    /// meets with crashes and slow disks.
    fn draw_troubled_installs(&mut self, rng: &mut Rng) {
        (self.takes_snapshots, self.troubled_installs) = (true, true);
        self.think = 50 * MS;
        self.tuning.snapshot_entries = *pick(rng, &[5, 20]);
        self.tuning.snapshot_trail = 0;
        self.faults.clear();
        let mut at = 3 * SECOND;
        while at < HEALED - 8 * SECOND {
            let lasts = rng.u64(500..4000) * MS;
            let one = rng.usize(0..self.nodes);
            let target = if rng.bool() { Target::LeaderOr(one) } else { Target::Machine(one) };
            let fault = match rng.u32(0..4) {
                0 => Fault::Crash { target, kind: Crash::PowerLoss, after: rng.u32(0..60), down: lasts },
                _ => Fault::Isolate { target, lasts },
            };
            self.faults.push(scheduled(at, fault));
            at += lasts + rng.u64(500..2500) * MS;
        }
    }

    /// A disk is put back as it was before its node was started again, twice, so that the others know better.
    fn draw_old_disk(&mut self, rng: &mut Rng) {
        let (target, copied) = (Target::Machine(rng.usize(0..self.nodes)), rng.u64(6 * SECOND..30 * SECOND));
        let crash = Fault::Crash { target, kind: Crash::Kill, after: 0, down: 300 * MS };
        let old = scheduled(copied + 8 * SECOND, Fault::RollBack { target, copied, down: 300 * MS });
        self.faults.extend([scheduled(copied + SECOND, crash), scheduled(copied + 4 * SECOND, crash), old]);
        self.faults.sort_by_key(|scheduled| scheduled.at);
    }

    /// One voter after the other is removed or demoted, and whoever leads loses power just then; those who are left do so again
    /// as they elect a leader, on slow disks.
    fn draw_fatal_removals(&mut self, rng: &mut Rng) {
        self.troubled_changes = true;
        for step in 1..self.nodes as u64 {
            let (at, down) = (5 * SECOND * step + rng.u64(0..SECOND), rng.u64(100..1000) * MS);
            let target = Target::LeaderOr(rng.usize(0..self.nodes));
            let ask = if rng.bool() { Ask::Remove } else { Ask::Demote };
            let removal = Fault::Change { at: target, ask, patience: Some(4 * SECOND), twice: false };
            let crash = |after| Fault::Crash { target, kind: Crash::PowerLoss, after, down };
            let slow = Fault::SlowDisk { target, fsync: rng.u64(200..1500) * MS, lasts: 3 * SECOND };
            self.faults.push(scheduled(at, removal));
            self.faults.push(scheduled(at + rng.u64(0..40) * MS, crash(rng.u32(0..30))));
            if rng.bool() {
                self.faults.push(scheduled(at + SECOND, slow));
                self.faults.push(scheduled(at + SECOND + MS, crash(0)));
                self.faults.push(scheduled(at + rng.u64(2000..4000) * MS, crash(rng.u32(0..60))));
            }
        }
        self.faults.sort_by_key(|scheduled| scheduled.at);
    }

    /// Whoever asked to read has given up, and asks for something newer, when the answer comes: the way is as long as an
    /// election timeout, and what is asked for is written elsewhere meanwhile.
    fn draw_late_answers(&mut self, rng: &mut Rng) {
        (self.hasty_reads, self.think, self.clients) = (true, 50 * MS, 3);
        let timeout = self.tuning.election_timeout.as_nanos() as Time;
        for at in (5 * SECOND..HEALED - 9 * SECOND).step_by(8 * SECOND as usize) {
            let far = rng.usize(0..self.nodes);
            let delay = rng.u64(timeout / 2..2 * timeout);
            for other in (0..self.nodes).filter(|other| *other != far) {
                self.faults.push(scheduled(at, Fault::SlowLink { one: far, other, delay, lasts: 7 * SECOND }));
            }
        }
        self.faults.sort_by_key(|scheduled| scheduled.at);
    }

    /// Whoever is to lead has not written what the leader has when its disk becomes slow, and the leader leads on. The calls
    /// have no deadline, and nothing else happens that would end them.
    fn draw_slow_heirs(&mut self, rng: &mut Rng) {
        self.think = 50 * MS;
        self.faults.retain(|scheduled| scheduled.at < 25 * SECOND);
        for at in (30 * SECOND..HEALED - 4 * SECOND).step_by(4 * SECOND as usize) {
            let to = rng.usize(0..self.nodes);
            let leader = Target::LeaderOr((to + 1) % self.nodes);
            let slow = Fault::SlowDisk { target: Target::Machine(to), fsync: 3 * SECOND, lasts: 2 * SECOND };
            let transfer = Fault::Transfer { target: leader, to: Some(to), patience: None };
            self.faults.push(scheduled(at, slow));
            self.faults.push(scheduled(at, Fault::Burst { target: leader, calls: rng.u32(1..20) }));
            self.faults.push(scheduled(at + rng.u64(1..30) * MS, transfer));
        }
        self.faults.sort_by_key(|scheduled| scheduled.at);
    }

    /// Leaders that are cut off have more in their logs than the others have when they find each other again.
    fn draw_bursts(&mut self, rng: &mut Rng) {
        let cut_off = self.faults.iter().filter_map(|it| match it.fault {
            Fault::Isolate { target: target @ Target::LeaderOr(_), .. } => Some((it.at, target)),
            _ => None,
        });
        let bursts = cut_off.map(|(at, target)| scheduled(at + MS, Fault::Burst { target, calls: rng.u32(20..120) }));
        let bursts = bursts.collect::<Vec<_>>();
        self.faults.extend(bursts);
        self.faults.sort_by_key(|scheduled| scheduled.at);
    }

    fn first_edition(seed: u64, nodes: Option<usize>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let drawn = *pick(&mut rng, &[3, 3, 5, 5, 5, 4, 7]);
        let nodes = nodes.unwrap_or(drawn);
        let tuning = tuning(&mut rng);
        let latency_max = *pick(&mut rng, &[MS, 5 * MS, 20 * MS]);
        let fsync_max = *pick(&mut rng, &[MS, 5 * MS, 30 * MS]);
        Self {
            seed,
            edition: 1,
            nodes,
            spares: 0,
            tuning,
            clients: rng.usize(1..=3),
            think: *pick(&mut rng, &[50 * MS, 150 * MS, 400 * MS]),
            padding: *pick(&mut rng, &[0, 0, 100, 2000]),
            batch_bytes: *pick(&mut rng, &[1, 500, 1 << 18]),
            latency: (MS / 10, latency_max),
            fsync: (MS / 10, fsync_max),
            files: rng.u32(0..3) == 0,
            takes_snapshots: false,
            keeps_state: false,
            troubled_installs: false,
            troubled_changes: false,
            names: false,
            hasty_reads: false,
            faults: faults(&mut rng, nodes),
        }
    }
}

const LIES: [Lie; 6] = [Lie::Gap, Lie::LostLog, Lie::UnknownEntries, Lie::StaleReject, Lie::Empty, Lie::OldCommand];

fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(0..from.len())]
}

fn tuning(rng: &mut Rng) -> Tuning {
    let heartbeat = rng.u64(40..120);
    let max_message_bytes = *pick(rng, &[500, 4000, 1 << 20]);
    Tuning {
        election_timeout: Duration::from_millis(heartbeat * rng.u64(5..11)),
        heartbeat_interval: Duration::from_millis(heartbeat),
        max_entry_bytes: 1 << 16,
        max_message_bytes,
        max_inflight_messages: *pick(rng, &[2, 16, 256]),
        max_uncommitted_bytes: *pick(rng, &[1 << 14, 1 << 26]).max(&max_message_bytes),
        max_unapplied_bytes: *pick(rng, &[1, 2000, 1 << 20]),
        entry_cache_bytes: *pick(rng, &[0, 1000, 1 << 20]),
        snapshot_entries: u64::MAX,
        snapshot_bytes: u64::MAX,
        snapshot_trail: 0,
        snapshot_rate: 1 << 26,
        insecure: false,
        admin_from: AdminFrom::Localhost,
    }
}

fn faults(rng: &mut Rng, nodes: usize) -> Vec<Scheduled> {
    let kinds = (0..KINDS).filter(|_| rng.u32(0..3) == 0).collect::<Vec<_>>();
    let mut faults = Vec::new();
    if kinds.is_empty() {
        return faults;
    }
    if rng.u32(0..8) == 0 {
        return troubled_birth(rng, nodes);
    }
    let count = *pick(rng, &[3, 8, 15, 30, 60]);
    // Some worlds are in trouble from their first moment on, and most are left alone until they are formed.
    let begin = *pick(rng, &[0, SECOND, 3 * SECOND]);
    for _ in 0..count {
        let at = rng.u64(begin..HEALED - SECOND);
        let kind = kinds[rng.usize(0..kinds.len())];
        faults.push(scheduled(at, fault(rng, kind, nodes, at)));
    }
    faults.sort_by_key(|scheduled| scheduled.at);
    faults
}

fn scheduled(at: Time, fault: Fault) -> Scheduled {
    Scheduled { since: Since::Beginning, at, fault }
}

/// Leadership changes hands in some worlds, few or many times.
fn add_transfers(rng: &mut Rng, nodes: usize, faults: &mut Vec<Scheduled>) {
    let count = *pick(rng, &[0, 0, 2, 10, 40]);
    for _ in 0..count {
        let at = rng.u64(SECOND..HEALED - SECOND);
        let machine = rng.usize(0..nodes);
        let target = if rng.u32(0..8) > 0 { Target::LeaderOr(machine) } else { Target::Machine(machine) };
        let to = rng.bool().then(|| rng.usize(0..nodes));
        let patience = (rng.u32(0..4) > 0).then(|| rng.u64(1..60).pow(2) * MS);
        faults.push(scheduled(at, Fault::Transfer { target, to, patience }));
    }
    // Some go to a node that stops just then, and the call has no deadline.
    for _ in 0..*pick(rng, &[0, 0, 0, 2]) {
        let (at, to) = (rng.u64(5 * SECOND..HEALED - 5 * SECOND), rng.usize(0..nodes));
        let target = Target::LeaderOr((to + 1) % nodes);
        faults.push(scheduled(at, Fault::Pause { target: Target::Machine(to), lasts: 4 * SECOND }));
        faults.push(scheduled(at + MS, Fault::Transfer { target, to: Some(to), patience: None }));
    }
    faults.sort_by_key(|scheduled| scheduled.at);
}

/// Disks are lost and connections cut while the cluster forms (rule M1).
fn troubled_birth(rng: &mut Rng, nodes: usize) -> Vec<Scheduled> {
    let mut faults = Vec::new();
    for _ in 0..rng.usize(1..2 * nodes) {
        let (from, lasts) = (rng.usize(0..nodes), rng.u64(0..8 * SECOND));
        let to = (from + rng.usize(1..nodes)) % nodes;
        let fault = Fault::Cut { from, to, one_way: rng.u32(0..3) == 0, lasts };
        faults.push(scheduled(rng.u64(0..SECOND), fault));
    }
    for _ in 0..rng.usize(1..4) {
        let (at, kind) = (rng.u64(0..6 * SECOND), *pick(rng, &[0, 2, 11, 15, 15, 15]));
        faults.push(scheduled(at, fault(rng, kind, nodes, at)));
    }
    faults.sort_by_key(|scheduled| scheduled.at);
    faults
}

/// Nodes crash, and lose their disks or each other, between two steps of the formation (rule M1).
fn torn_birth(rng: &mut Rng, nodes: usize) -> Vec<Scheduled> {
    let upset = |rng: &mut Rng| {
        let (since, kind) = (Since::Stage(rng.u32(1..=2 * nodes as u32)), *pick(rng, &[0, 2, 6, 8, 11, 15]));
        Scheduled { since, at: rng.u64(0..50) * MS, fault: fault(rng, kind, nodes, 0) }
    };
    (0..rng.usize(1..6)).map(|_| upset(rng)).collect()
}

/// The members meet, all but one and some latecomers of a minority. When the first node has stored who the members are,
/// the latecomers are cut off from the others; the one loses its disk, and what comes in its place meets the latecomers.
/// If a node acted as soon as it had met everybody, both sides could be a cluster (`engine::formation`).
fn split_birth(rng: &mut Rng, nodes: usize) -> Vec<Scheduled> {
    let mut others = (0..nodes).collect::<Vec<_>>();
    rng.shuffle(&mut others);
    let lost = others.swap_remove(0);
    let (latecomers, early) = others.split_at((nodes - 1) / 2);
    let mut faults = Vec::new();
    let until_met = rng.u64(1000..2500) * MS;
    for &late in latecomers {
        faults.push(scheduled(0, Fault::Cut { from: lost, to: late, one_way: false, lasts: until_met }));
        for &from in early {
            let fault = Fault::Cut { from, to: late, one_way: false, lasts: rng.u64(2000..8000) * MS };
            faults.push(Scheduled { since: Since::Stage(1), at: 0, fault });
        }
    }
    let fault = Fault::Wipe { target: Target::Machine(lost), down: rng.u64(1..300) * MS };
    faults.push(Scheduled { since: Since::Stage(1), at: rng.u64(200..1500) * MS, fault });
    faults
}

const KINDS: u32 = 19;

fn fault(rng: &mut Rng, kind: u32, nodes: usize, at: Time) -> Fault {
    let machine = rng.usize(0..nodes);
    let other = (machine + rng.usize(1..nodes)) % nodes;
    let target = if rng.bool() { Target::LeaderOr(machine) } else { Target::Machine(machine) };
    let lasts = rng.u64(0..100).pow(2) * MS;
    let down = rng.u64(1..70).pow(2) * MS;
    match kind {
        0 | 1 => Fault::Crash { target, kind: Crash::PowerLoss, after: rng.u32(0..60), down },
        2 => Fault::Crash { target, kind: Crash::Kill, after: rng.u32(0..60), down },
        3 => Fault::Close { target, drain: rng.u64(0..2) * rng.u64(0..SECOND), down },
        4 => Fault::Pause { target, lasts },
        5 => Fault::BlockApplication { target, lasts },
        6 => Fault::Partition { mask: rng.u32(1..(1 << nodes) - 1), one_way: false, lasts },
        7 => Fault::Partition { mask: rng.u32(1..(1 << nodes) - 1), one_way: true, lasts },
        8 => Fault::Cut { from: machine, to: other, one_way: rng.bool(), lasts },
        9 => Fault::SlowLink { one: machine, other, delay: rng.u64(1..1000) * MS, lasts },
        10 => Fault::Loss { per_mille: *pick(rng, &[5, 50, 300]), lasts },
        11 => Fault::Break { one: machine, other },
        12 => Fault::SlowDisk { target, fsync: rng.u64(1..2000) * MS, lasts },
        13 => Fault::FailDisk { target, down },
        14 if rng.bool() => Fault::SetWallClock { target, by: rng.i64(-100..100) * SECOND as i64 },
        14 => Fault::Sleep { target, by: rng.u64(1..20) * SECOND },
        15 if rng.bool() => Fault::Wipe { target, down },
        15 => Fault::WrongMembers { target, fewer: rng.bool(), down },
        16 => Fault::RollBack { target, copied: rng.u64(0..=at), down },
        17 => Fault::Forge { from: machine, to: other, lie: *pick(rng, &LIES) },
        _ => Fault::Clone { target, copied: rng.u64(0..=at), lasts: lasts + SECOND },
    }
}
