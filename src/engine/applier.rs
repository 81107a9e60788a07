//! The engine's cursor and the application's (rules C1, C5).
//!
//! The engine applies what is committed at once: sessions and time. The application's state machine may lag behind; what
//! it has yet to see is kept up to a number of bytes, and beyond that read again from the log.

use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::{ConfState, Entry, EntryType};

use super::command::{self, Command, Header};
use super::log_view::LogView;
use super::membership::{Membership, Plan};
use super::session::{Sessions, Verdict};
use super::snapshot::Meta;
use super::{Applied, Fault, NodeId, Token, BOOTSTRAP};
use crate::mutants::{self, Mutant};
use crate::storage::snapshot::SnapshotName;

/// One start of a node, as its commands name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The node.
    pub id: NodeId,
    /// Counts its starts.
    pub boot: u64,
    /// Drawn at the start.
    pub nonce: u64,
}

/// What the application is to do next (rules C1, C2).
#[derive(Debug)]
pub enum HandOut {
    /// Apply these.
    Apply(Batch),
    /// Take a snapshot of its state, before it applies anything further.
    Capture(Marker),
    /// Replace its state by this snapshot.
    Restore(SnapshotName),
}

/// A place in the apply queue where a snapshot is to be taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Marker {
    /// Behind this entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The engine's state there: what stands before the application's in the snapshot.
    pub meta: Meta,
}

/// What one entry occupies in a queue beyond its payload, roughly.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Some applied commands on their way to the application.
#[derive(Debug)]
pub struct Batch {
    /// The commands, in log order.
    pub entries: Vec<Applied>,
    /// The application's cursor once it has applied them.
    pub through: u64,
    /// What they occupy.
    pub bytes: usize,
}

/// The replicated state of the engine, and what of it the application has yet to see.
pub struct Applier {
    own: Origin,
    sessions: Sessions,
    membership: Membership,
    timestamp_ns: u64,
    applied: u64,
    /// Indexes of commands that were skipped, ascending: they are skipped again whenever the log is read again.
    skipped: Vec<u64>,
    /// The application has been handed everything through this index.
    handed: u64,
    fresh: VecDeque<Applied>,
    /// Everything in `handed..fresh_through` is in `fresh`, is the engine's own, or was skipped.
    fresh_through: u64,
    fresh_bytes: usize,
    fresh_bytes_max: usize,
    /// Waiters of entries beyond `fresh_through`.
    tokens: BTreeMap<u64, Token>,
    /// Bytes of commands, over all that was applied.
    applied_bytes: u64,
    duplicates: u64,
    /// Where the next snapshot is to be taken: nothing behind it is handed out before.
    marker: Option<Marker>,
    /// The application's state is to be replaced before anything else is handed out.
    restore: Restore,
}

/// Whether the application's state is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Restore {
    No,
    /// Not before the snapshot is installed durably.
    Later(SnapshotName),
    Now(SnapshotName),
}

fn weight(payload: &Command) -> usize {
    payload.as_bytes().len() + ENTRY_OVERHEAD_BYTES
}

impl Applier {
    /// Nothing is applied beyond `index`, where the log begins. `own` is this start of this node.
    pub fn new(own: Origin, index: u64, fresh_bytes_max: usize, founded: Membership) -> Self {
        Self {
            own,
            sessions: Sessions::default(),
            membership: founded,
            timestamp_ns: 0,
            applied: index,
            skipped: Vec::new(),
            handed: index,
            fresh: VecDeque::new(),
            fresh_through: index,
            fresh_bytes: 0,
            fresh_bytes_max,
            tokens: BTreeMap::new(),
            applied_bytes: 0,
            duplicates: 0,
            marker: None,
            restore: Restore::No,
        }
    }

    /// Goes on from a snapshot that stands on this node's disk. An application that holds more than that by itself, through
    /// `durable`, keeps its state, and is handed nothing that it has (rule D2).
    pub fn resume(&mut self, snapshot: Option<(SnapshotName, Meta)>, durable: Option<u64>) -> Result<(), Fault> {
        let mut restored = BOOTSTRAP.0;
        if let Some((name, meta)) = snapshot {
            self.take_over(name.index, meta)?;
            (self.handed, self.fresh_through, restored) = (name.index, name.index, name.index);
            self.restore = Restore::Now(name);
        }
        let durable = durable.filter(|durable| *durable >= restored && !mutants::on(Mutant::IgnoreDurable));
        if let Some(durable) = durable {
            (self.handed, self.fresh_through) = (durable.max(self.applied), durable.max(self.applied));
            self.restore = Restore::No;
        }
        Ok(())
    }

    /// A snapshot of another node takes the place of everything. The application gets it once it is durable here
    /// ([`Self::installed`]): one that keeps its own state durably must never be ahead of its node's log.
    /// Returns the waiters of entries that the application will not see: the snapshot contains them (rule S5).
    pub fn install(&mut self, name: SnapshotName, meta: Meta) -> Result<Vec<Token>, Fault> {
        self.take_over(name.index, meta)?;
        let fresh = std::mem::take(&mut self.fresh).into_iter().filter_map(|applied| applied.token);
        let lost = fresh.chain(std::mem::take(&mut self.tokens).into_values()).collect();
        self.fresh_bytes = 0;
        self.fresh_through = name.index;
        self.marker = None;
        self.restore = match mutants::on(Mutant::RestoreTooEarly) {
            true => Restore::Now(name),
            false => Restore::Later(name),
        };
        Ok(lost)
    }

    /// The snapshot that was installed last is durable.
    pub fn installed(&mut self) {
        if let Restore::Later(name) = self.restore {
            self.restore = Restore::Now(name);
        }
    }

    fn take_over(&mut self, index: u64, meta: Meta) -> Result<(), Fault> {
        let Origin { id, boot, nonce } = self.own;
        match meta.sessions.start_of(id) {
            Some((found, _)) if found > boot => return Err(Fault::RolledBack { index, found, boot }),
            Some((found, other)) if found == boot && other != nonce => return Err(Fault::Copied { index }),
            _ => {}
        }
        self.sessions = match mutants::on(Mutant::SnapshotWithoutSessions) {
            true => Sessions::default(),
            false => meta.sessions,
        };
        if let Some(membership) = meta.membership {
            self.membership = membership;
        }
        self.timestamp_ns = meta.timestamp_ns;
        self.skipped = meta.skipped;
        self.applied = index;
        Ok(())
    }

    /// The application is ahead of what this start has applied: it holds its state durably (rule D2). It cannot show its
    /// state as of now.
    pub fn is_behind_application(&self) -> bool {
        self.handed > self.applied
    }

    /// A snapshot is wanted of the state as of now; it is taken when the application gets here.
    pub fn mark(&mut self, term: u64, mut conf_state: ConfState) {
        if mutants::on(Mutant::DropJointField) {
            conf_state.voters_outgoing.clear();
            conf_state.learners_next.clear();
        }
        let meta = Meta {
            conf_state,
            sessions: self.sessions.clone(),
            timestamp_ns: self.timestamp_ns,
            skipped: match mutants::on(Mutant::SnapshotWithoutSkipped) {
                true => Vec::new(),
                false => self.skipped.clone(),
            },
            membership: Some(self.membership.clone()),
        };
        self.marker = Some(Marker { index: self.applied, term, meta });
    }

    /// The log begins behind `index` from now on: nobody reads what is before that again.
    pub fn compacted(&mut self, index: u64) {
        let live = self.skipped.partition_point(|skipped| *skipped <= index);
        self.skipped.drain(..live);
    }

    /// Which commands were applied.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Who belongs to the cluster.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Who belongs to the cluster, to be changed.
    pub fn membership_mut(&mut self) -> &mut Membership {
        &mut self.membership
    }

    /// `plan`, if there is one, has taken effect with the entry at `index`, and `conf` is who votes and learns from there on:
    /// whoever has left proposes nothing any more (rule S3).
    pub fn settle_members(&mut self, plan: Option<Plan>, conf: &ConfState, index: u64) {
        let gone = match plan {
            Some(plan) => self.membership.take(plan, conf, index),
            None => self.membership.settle(conf, index),
        };
        gone.into_iter().for_each(|gone| self.sessions.remove(gone));
    }

    /// Bytes of all commands that this start has applied.
    pub fn applied_bytes(&self) -> u64 {
        self.applied_bytes
    }

    /// The engine's cursor.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Replicated time at the engine's cursor.
    pub fn timestamp_ns(&self) -> u64 {
        self.timestamp_ns
    }

    /// The cursor, and a digest of the replicated state there.
    #[cfg(feature = "sim")]
    pub fn digest(&self) -> (u64, u64) {
        use super::inspect::fold;
        (self.applied, fold(fold(self.sessions.digest(), self.timestamp_ns), self.membership.digest()))
    }

    /// Words of the session of `origin`; bytes kept for the application, and the largest command among them.
    #[cfg(feature = "sim")]
    pub fn sizes(&self, origin: super::NodeId) -> (usize, usize, usize) {
        let largest = self.fresh.iter().map(|applied| weight(&applied.command)).max();
        (self.sessions.words(origin), self.fresh_bytes, largest.unwrap_or(0))
    }

    /// Commands that this start skipped because they were applied before.
    pub fn skipped(&self) -> u64 {
        self.duplicates
    }

    /// Passes over an entry that is none of the application's.
    pub fn pass(&mut self, index: u64) {
        if self.fresh_through + 1 == index {
            self.fresh_through = index;
        }
        self.applied = index;
    }

    /// Applies a command; `waiter` tells who waits for it, if it is applied and is this node's own.
    pub fn apply(&mut self, entry: Entry, waiter: impl FnOnce(&Header) -> Option<Token>) -> Result<(), Fault> {
        let (index, term) = (entry.index, entry.term);
        let command = Command::from_bytes(entry.data).map_err(|source| Fault::Entry { index, source })?;
        let header = command.header();
        if self.admit(index, &command)? == Verdict::Skip {
            self.skipped.push(index);
            self.pass(index);
            return Ok(());
        }
        let token = waiter(&header);
        if index <= self.handed {
            // The application has it durably, from an earlier start (rule D2).
            self.applied = index;
            return Ok(());
        }
        if self.fresh_through + 1 == index
            && (self.fresh_bytes < self.fresh_bytes_max || mutants::on(Mutant::UnboundedFresh))
        {
            self.fresh_bytes += weight(&command);
            self.fresh.push_back(Applied { index, term, command, token });
            self.fresh_through = index;
        } else if let Some(token) = token {
            self.tokens.insert(index, token);
        }
        self.applied = index;
        Ok(())
    }

    /// Whether the command at `index` takes effect (rules S1 to S3). Time goes on with it in any case.
    pub fn admit(&mut self, index: u64, command: &Command) -> Result<Verdict, Fault> {
        let header = command.header();
        self.applied_bytes += command.as_bytes().len() as u64;
        self.timestamp_ns = self.timestamp_ns.max(header.timestamp_ns);
        let is_member = self.membership.members.contains_key(&header.origin);
        if !is_member && !mutants::on(Mutant::ApplyStrangersCommands) {
            self.duplicates += 1;
            return Ok(Verdict::Skip);
        }
        let verdict = self.sessions.admit(&header);
        self.check_own(index, &header, verdict)?;
        self.duplicates += u64::from(verdict == Verdict::Skip);
        Ok(verdict)
    }

    /// A command in this node's name that this start did not propose, and whose session it takes: from now on whatever
    /// this start proposes is skipped, and the other's numbers would be taken for its own (rule S2).
    fn check_own(&self, index: u64, header: &Header, verdict: Verdict) -> Result<(), Fault> {
        let Origin { id, boot, nonce } = self.own;
        if header.origin != id || (header.boot, header.nonce) == (boot, nonce) {
            return Ok(());
        }
        if header.boot > boot {
            return Err(Fault::RolledBack { index, found: header.boot, boot });
        }
        if header.boot == boot && verdict == Verdict::Fresh {
            return Err(Fault::Copied { index });
        }
        Ok(())
    }

    /// What the application is to do next, about `max_bytes` of commands; `None` if it has been handed everything.
    pub fn hand_out(&mut self, log: &LogView, max_bytes: usize) -> Result<Option<HandOut>, Fault> {
        match self.restore {
            Restore::No => {}
            Restore::Later(_) => return Ok(None),
            Restore::Now(name) => {
                (self.restore, self.handed) = (Restore::No, name.index);
                return Ok(Some(HandOut::Restore(name)));
            }
        }
        let end = self.marker.as_ref().map_or(self.applied, |marker| marker.index);
        if self.handed >= end {
            let mut marker = self.marker.take();
            if let Some(marker) = marker.as_mut().filter(|_| mutants::on(Mutant::SessionsLaterThanCapture)) {
                marker.meta.sessions = self.sessions.clone();
            }
            return Ok(marker.map(HandOut::Capture));
        }
        if self.fresh.is_empty() && self.fresh_through == self.handed {
            return self.hand_out_from_log(log, end, max_bytes).map(HandOut::Apply).map(Some);
        }
        let mut batch = Batch { entries: Vec::new(), through: 0, bytes: 0 };
        while batch.bytes < max_bytes && self.fresh.front().is_some_and(|next| next.index <= end) {
            let Some(applied) = self.fresh.pop_front() else { break };
            batch.bytes += weight(&applied.command);
            batch.entries.push(applied);
        }
        self.fresh_bytes -= batch.bytes;
        batch.through = match (self.fresh.front(), batch.entries.last()) {
            (Some(next), Some(last)) if next.index <= end => last.index,
            _ => self.fresh_through.min(end),
        };
        self.handed = batch.through;
        Ok(Some(HandOut::Apply(batch)))
    }

    fn hand_out_from_log(&mut self, log: &LogView, end: u64, max_bytes: usize) -> Result<Batch, Fault> {
        let (entries, through) = self.read_again(log, self.handed, end, max_bytes as u64)?;
        let mut batch = Batch { entries, through, bytes: 0 };
        for applied in &mut batch.entries {
            let token = self.tokens.remove(&applied.index);
            applied.token = token.filter(|_| !mutants::on(Mutant::LoseWaiters));
            batch.bytes += weight(&applied.command);
        }
        self.handed = through;
        self.fresh_through = through;
        Ok(batch)
    }

    /// Applied commands after index `after`, through `end` at most, and the index through which they are complete.
    pub fn read_again(
        &self,
        log: &LogView,
        after: u64,
        end: u64,
        max_bytes: u64,
    ) -> Result<(Vec<Applied>, u64), Fault> {
        let entries = log.read(after + 1, end + 1, max_bytes)?;
        let through = entries.last().map_or(after, |last| last.index);
        let is_application = |entry: &Entry| {
            let is_normal = entry.entry_type == EntryType::EntryNormal as i32;
            is_normal && !entry.data.is_empty() && !command::is_membership(&entry.data)
        };
        let commands = entries.into_iter().filter(is_application);
        let applied = commands
            .filter(|entry| self.skipped.binary_search(&entry.index).is_err() || mutants::on(Mutant::ForgetSkipped));
        let applied = applied.map(|entry| {
            let (index, term) = (entry.index, entry.term);
            let command = Command::from_bytes(entry.data).map_err(|source| Fault::Entry { index, source })?;
            Ok(Applied { index, term, command, token: None })
        });
        Ok((applied.collect::<Result<_, Fault>>()?, through))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raft::eraftpb::ConfState;

    use super::*;
    use crate::storage::{memory, GroupState};

    const OWN: Origin = Origin { id: 1, boot: 1, nonce: 0 };

    fn founded() -> Membership {
        Membership::founded(&[1, 2, 3], &BTreeMap::new())
    }

    fn entry(index: u64, number: u64) -> Entry {
        let mut command = Command::new(&[index as u8; 100]);
        command.set_origin(1, 1, number);
        command.set_floor(1);
        Entry { index, term: 2, data: command.into_bytes(), ..Default::default() }
    }

    fn noop(index: u64) -> Entry {
        Entry { index, term: 2, ..Default::default() }
    }

    /// An applier and a log that hold `entries`, from index 2 on.
    fn applied(entries: &[Entry], fresh_bytes_max: usize) -> (Applier, LogView) {
        let state = GroupState { truncated: (1, 1), last_index: 1, ..Default::default() };
        let mut log = LogView::new(1, state, ConfState::default(), Arc::clone(&memory::open().reader), usize::MAX);
        log.append(1, entries);
        let mut applier = Applier::new(OWN, 1, fresh_bytes_max, founded());
        for entry in entries {
            match entry.data.is_empty() {
                true => applier.pass(entry.index),
                false => applier.apply(entry.clone(), |header| Some(header.number * 10)).unwrap(),
            }
        }
        (applier, log)
    }

    fn drain(applier: &mut Applier, log: &LogView, max_bytes: usize) -> (Vec<(u64, Option<Token>)>, Vec<u64>) {
        let (mut seen, mut cursors) = (Vec::new(), Vec::new());
        while let Some(HandOut::Apply(batch)) = applier.hand_out(log, max_bytes).unwrap() {
            seen.extend(batch.entries.iter().map(|applied| (applied.index, applied.token)));
            cursors.push(batch.through);
        }
        (seen, cursors)
    }

    #[test]
    fn c1_what_does_not_fit_is_read_again_with_the_same_verdicts_and_waiters() {
        let entries = [noop(2), entry(3, 1), entry(4, 2), entry(5, 1), noop(6), entry(7, 3), entry(8, 2), noop(9)];
        let expected = vec![(3, Some(10)), (4, Some(20)), (7, Some(30))];
        for fresh_bytes_max in [0, 1, 300, usize::MAX] {
            for max_bytes in [1, 250, usize::MAX] {
                let (mut applier, log) = applied(&entries, fresh_bytes_max);
                let (seen, cursors) = drain(&mut applier, &log, max_bytes);
                assert_eq!(seen, expected, "fresh {fresh_bytes_max}, batch {max_bytes}");
                assert_eq!(cursors.last(), Some(&9));
                assert!(cursors.is_sorted());
                assert_eq!(applier.skipped(), 2);
            }
        }
    }

    #[test]
    fn c1_what_waits_in_memory_for_the_application_is_bounded() {
        let entries = (2..=500).map(|index| entry(index, index)).collect::<Vec<_>>();
        let one = weight(&Command::from_bytes(entries[0].data.clone()).unwrap());
        let (mut applier, log) = applied(&entries, 10 * one);
        assert_eq!((applier.fresh.len(), applier.fresh_bytes), (10, 10 * one));
        assert_eq!(drain(&mut applier, &log, 10 * one).0.len(), 499);
    }

    #[test]
    fn c5_a_second_reading_skips_the_duplicates_too() {
        let (applier, log) = applied(&[entry(2, 1), entry(3, 1), entry(4, 2)], usize::MAX);
        let (again, through) = applier.read_again(&log, 1, 4, u64::MAX).unwrap();
        assert_eq!(again.iter().map(|applied| applied.index).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(through, 4);
        assert_eq!(applier.read_again(&log, 4, 4, u64::MAX).unwrap().1, 4);
    }

    /// A command of node `id`, with the number 1.
    fn of(id: NodeId, boot: u64, nonce: u64, index: u64) -> Entry {
        let mut command = Command::new(b"");
        command.set_origin(id, boot, 1);
        command.set_nonce(nonce);
        Entry { index, term: 2, data: command.into_bytes(), ..Default::default() }
    }

    #[test]
    fn s2_a_start_that_finds_a_later_one_of_its_node_in_the_log_stops() {
        let own = Origin { id: 1, boot: 5, nonce: 50 };
        let mut applier = Applier::new(own, 1, 0, founded());
        for (index, entry) in [of(1, 4, 40, 2), of(2, 9, 90, 3), of(1, 5, 50, 4)].into_iter().enumerate() {
            assert!(applier.apply(entry, |_| None).is_ok(), "{index}");
        }
        let error = applier.apply(of(1, 6, 60, 5), |_| None).unwrap_err().to_string();
        assert!(error.contains("start 6") && error.contains("start 5") && error.contains("rolled back"), "{error}");
    }

    #[test]
    fn s2_of_two_processes_from_one_directory_the_one_whose_session_is_taken_stops() {
        let own = Origin { id: 1, boot: 5, nonce: 50 };
        let mut late = Applier::new(own, 1, 0, founded());
        let error = late.apply(of(1, 5, 51, 2), |_| None).unwrap_err().to_string();
        assert!(error.contains("entry 2") && error.contains("another process"), "{error}");
        let mut first = Applier::new(own, 1, 0, founded());
        first.apply(of(1, 5, 50, 2), |_| None).unwrap();
        let nobody = |_: &Header| -> Option<Token> { panic!("the copy's command is applied") };
        first.apply(of(1, 5, 51, 3), nobody).unwrap();
        assert_eq!(first.skipped(), 1);
    }

    #[test]
    fn time_never_runs_back_along_the_log() {
        let stamped = |index, number, stamp| {
            let mut command = Command::new(b"");
            command.set_origin(1, 1, number);
            command.set_time(stamp, 0);
            Entry { index, term: 2, data: command.into_bytes(), ..Default::default() }
        };
        let (applier, _) = applied(&[stamped(2, 1, 500), stamped(3, 2, 400)], usize::MAX);
        assert_eq!(applier.timestamp_ns(), 500);
    }

    #[test]
    fn an_entry_of_a_later_format_stops_the_node() {
        let mut damaged = entry(2, 1);
        damaged.data[0] = 9;
        let error = Applier::new(OWN, 1, 0, founded()).apply(damaged, |_| None).unwrap_err().to_string();
        assert!(error.contains("entry 2") && error.contains("upgrade"), "{error}");
    }
}
