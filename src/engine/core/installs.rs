//! The engine's part in snapshots: what comes in about them, installs, and compaction (rules C1, C2, D1, S5).

use raft::eraftpb::Message;
use raft::{SnapshotStatus, StateRole, Storage};

use super::Engine;
use crate::engine::admission::{self, Refused};
use crate::engine::persist::Persist;
use crate::engine::snapshot::Meta;
use crate::engine::{Effect, Failure, Fault, NodeId, Token};
use crate::mutants::{self, Mutant};
use crate::storage::snapshot::SnapshotName;

impl Engine {
    /// A snapshot of the authenticated peer `from` has arrived: the file is whole, and durable; `meta` stands in it.
    pub fn handle_snapshot(
        &mut self,
        from: NodeId,
        message: Message,
        name: SnapshotName,
        meta: Meta,
    ) -> Result<(), Refused> {
        if self.applier.membership().retired.contains(from) {
            return Err(Refused::Stranger);
        }
        admission::admit_snapshot(&self.raw, from, &message, &name, &meta)?;
        let before = self.snapshots.arrived.replace((name, meta));
        // Errors of `step` say that a message came too late to matter.
        let _ = self.raw.step(message);
        // raft-rs makes nothing of one that is late, or whose entries are in the log: what it goes on with, if anything,
        // may be one that came just before.
        let unstable = self.raw.raft.raft_log.unstable_snapshot().as_ref().map(raft::eraftpb::Snapshot::get_metadata);
        let place = unstable.map(|metadata| (metadata.index, metadata.term));
        let arrived = [self.snapshots.arrived.take(), before].into_iter().flatten();
        self.snapshots.arrived = arrived.into_iter().find(|(name, _)| Some((name.index, name.term)) == place);
        Ok(())
    }

    /// A snapshot that was to be sent to `to` is whole and durable there, or never will be: raft-rs waits to hear so.
    pub fn handle_snapshot_sent(&mut self, to: NodeId, is_there: bool) {
        let status = if is_there { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(to, status);
    }

    /// A call of the application for a snapshot of its state as it is now, or later.
    pub fn handle_snapshot_call(&mut self, token: Token, deadline_ns: u64) {
        match self.snapshots.ask(token, self.application_applied, deadline_ns) {
            Ok(()) => {}
            Err(Ok(index)) => self.effects.push(Effect::Snapshot { token, index }),
            Err(Err(failure)) => self.effects.push(Effect::Failed { token, failure }),
        }
    }

    /// The snapshot at the marker of `index` ([`HandOut::Capture`]) has come to its end: its file is whole and durable, or
    /// it could not be taken.
    pub fn handle_captured(&mut self, index: u64, outcome: Result<SnapshotName, String>) {
        match outcome {
            Ok(name) => {
                if self.snapshots.taken(name) {
                    self.compact_behind(name);
                }
            }
            Err(reason) => {
                for token in self.snapshots.failed(index) {
                    let failure = Failure::Snapshot { reason: reason.clone() };
                    self.effects.push(Effect::Failed { token, failure });
                }
            }
        }
    }

    /// The log names this snapshot durably: files of others that are not [`Self::snapshots_in_use`] can go.
    pub fn handle_recorded(&mut self, name: SnapshotName) {
        let index = name.index;
        let answered = self.snapshots.recorded(name);
        self.effects.extend(answered.into_iter().map(|token| Effect::Snapshot { token, index }));
    }

    /// Snapshots whose files are needed.
    pub fn snapshots_in_use(&self) -> Vec<SnapshotName> {
        self.snapshots.in_use()
    }

    /// A snapshot of another node takes the place of log and replicated state (rules D1, S5).
    pub(super) fn install(&mut self, number: u64, place: (u64, u64)) -> Result<SnapshotName, Fault> {
        let arrived = self.snapshots.arrived.take_if(|(name, _)| (name.index, name.term) == place);
        let (name, meta) = arrived.ok_or(Fault::StraySnapshot { index: place.0 })?;
        let conf_state = meta.conf_state.clone();
        self.stamper.observe(meta.timestamp_ns);
        let lost = self.applier.install(name, meta)?;
        self.snapshots.installed(name, conf_state.clone(), self.applier.applied_bytes());
        let log = self.raw.mut_store();
        log.install(name.index, name.term);
        log.set_snapshot(name, conf_state);
        self.installing = Some(number);
        self.members_installed();
        let (effects, index) = (&mut self.effects, name.index);
        let mut failed = |token, failure| effects.push(Effect::Failed { token, failure });
        self.awaiting_application.retain(|(_, reader)| !lost.contains(&reader.token));
        for token in lost {
            failed(token, Failure::AppliedWithoutResult { index });
        }
        self.proposals.installed(self.applier.sessions(), index, &mut failed);
        // The first entry of its last entry's term is in it, and is never applied here.
        if !mutants::on(Mutant::InstallBeginsNoTerm) {
            self.proposals.term_began(name.term);
        }
        Ok(name)
    }

    /// Between a snapshot that raft-rs has handed out and its fsync, raft-rs takes everything behind its last applied entry
    /// for unapplied, looks for it in the log when it campaigns, and panics: the log begins later.
    ///
    /// It also panics if a sole voter campaigns while anything of its log is not durable, or not even in a Ready yet: that
    /// one becomes leader in the same step.
    pub(super) fn cannot_campaign(&self) -> bool {
        let (raft, log) = (&self.raw.raft, &self.raw.raft.raft_log);
        let is_on_its_way = !self.persist.is_empty() || log.persisted != log.last_index();
        // Also in a joint configuration, as while it adds two learners at once.
        let is_sole = raft.promotable() && raft.prs().conf().voters().ids().iter().all(|voter| voter == self.id);
        (is_sole && is_on_its_way && raft.state != StateRole::Leader)
            || (self.installing.is_some() && !mutants::on(Mutant::CampaignDuringInstall))
    }

    pub(super) fn finish_install(&mut self, number: u64) {
        if self.installing.take_if(|ready| *ready <= number).is_some() {
            self.applier.installed();
            self.advance_applied();
        }
    }

    /// Puts a marker into the apply queue if a snapshot is due.
    pub(super) fn mark_snapshot(&mut self) {
        self.snapshots.is_wanted |= self.raw.store().take_snapshot_wanted();
        let (applied, bytes) = (self.applier.applied(), self.applier.applied_bytes());
        let is_possible = self.installing.is_none() && !self.applier.is_behind_application();
        if !is_possible || !self.snapshots.is_due(applied, bytes) {
            return;
        }
        // It is in the log, since nothing behind the last snapshot was compacted.
        let Ok(term) = self.raw.store().term(applied) else { return };
        let conf_state = self.conf_state();
        self.snapshots.begin(applied, bytes, conf_state.clone());
        self.applier.mark(term, conf_state);
    }

    /// The log begins a trail behind a snapshot that is on this node's disk. The application took that snapshot, so its
    /// cursor is there or beyond (rule C1).
    pub(super) fn compact_behind(&mut self, name: SnapshotName) {
        let begin = self.raw.store().truncated_index();
        if self.raw.raft.state != StateRole::Leader {
            self.stragglers.clear();
        }
        let index = self.snapshots.begin_of_trail(name.index);
        let index = self.stragglers.allow(index).max(begin);
        let conf_state = self.snapshots.newest().map(|(_, conf_state)| conf_state.clone()).unwrap_or_default();
        let log = self.raw.mut_store();
        log.set_snapshot(name, conf_state);
        let truncated = log.term(index).ok().map(|term| (index, term));
        let truncated = truncated.filter(|_| index > begin && !mutants::on(Mutant::NeverCompact));
        if let Some((index, term)) = truncated {
            log.compact(index, term);
            self.applier.compacted(index);
        }
        let snapshot = Some(name).filter(|_| !mutants::on(Mutant::NamelessSnapshot));
        let persist = Persist { truncated, snapshot, sync: true, ..Default::default() };
        self.effects.push(Effect::Persist(persist));
    }
}
