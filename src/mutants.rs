//! Deliberate bugs, to prove that the simulated world would find real ones: see docs/testing.md.
//!
//! Each stands in the code where the real mistake would be made, as `mutants::on(Mutant::...)`. Without the feature
//! `mutants` that is the constant `false`, and nothing of it is compiled in.

/// One bug.
#[cfg_attr(not(feature = "driver"), allow(dead_code, reason = "some are in the driver"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// Messages that speak for the disk leave before the fsync.
    AcknowledgeBeforeFsync,
    /// A Ready that writes nothing is answered at once, before the fsyncs of earlier ones (rule P1).
    AnswerEmptyReadyAtOnce,
    /// What is written in one batch is written youngest first (rule P1).
    PersistOutOfOrder,
    /// A Ready counts as durable as soon as the one before it is (rule P1).
    ConfirmOneTooMany,
    /// A leader sends in a term that is not durable yet (rule P2).
    SpeakBeforeTermIsDurable,
    /// The hard state is not in the batch of its Ready (rule P2).
    ForgetHardState,
    /// The cache of entries is cut up to the log's end, not up to the Ready that is durable (rule P3).
    CutCacheByIndex,
    /// Every copy of a command is applied (rule S1).
    SkipSessionTable,
    /// A number below the floor is applied (rule S1).
    IgnoreFloor,
    /// An earlier boot's commands are applied (rule S2).
    IgnoreBoot,
    /// The boot number is not counted up (rule S2).
    SameBootAgain,
    /// Another attempt gets another number.
    NewNumberForEachAttempt,
    /// A deadline that passes is called "not committed" (rule S4).
    TimedOutMeansNotCommitted,
    /// A lost connection counts as a refusal (rule S4).
    LostMeansRefused,
    /// A lost attempt is not made again.
    NeverTryAgain,
    /// Deadlines do not pass.
    IgnoreDeadlines,
    /// An unformed node takes part (rule M1).
    UnformedTakesPart,
    /// A node forms as soon as it has met everybody (rule M1).
    FormInOneStep,
    /// A known node is let in with another data directory (rule M1).
    AdmitWipedDisk,
    /// A node is let in whatever is remembered of its data directory (rule S2).
    AdmitOldCopy,
    /// Entries are applied when they are appended.
    ApplyBeforeCommit,
    /// A barrier stands at this node's own commit index (rule C6).
    BarrierWithoutReadIndex,
    /// A barrier joins a round that is under way (rule C6).
    JoinRoundUnderWay,
    /// All rounds of reads have one context, which raft-rs merges (rule C6).
    RepeatContext,
    /// A barrier does not wait for the application's cursor (rule C6).
    BarrierIgnoresCursor,
    /// A leader's clock begins at what it has applied, not at the end of its log (design decision 8).
    StampFromApplied,
    /// A second reading of the log knows nothing of duplicates (rule C5).
    ForgetSkipped,
    /// A hand-out from the log loses the waiters of what did not fit (rule C1).
    LoseWaiters,
    /// What waits for the application is not bounded (rule C1).
    UnboundedFresh,
    /// Sessions keep all numbers for ever (rule S1).
    UnboundedSessions,
    /// Entries behind a gap reach raft-rs.
    AdmitGap,
    /// A heartbeat that presumes entries that are not there reaches raft-rs.
    AdmitLostLog,
    /// An acknowledgement of entries that the leader has not reaches raft-rs.
    AdmitUnknownEntries,
    /// A reject that an acknowledgement has overtaken reaches raft-rs.
    AdmitStaleReject,
    /// A peer's own proposals reach raft-rs.
    AdmitProposals,
    /// A node campaigns while it installs a snapshot.
    CampaignDuringInstall,
    /// What an installed snapshot says of terms makes no other attempt due.
    InstallBeginsNoTerm,
    /// A snapshot is restored without the session table in it.
    SnapshotWithoutSessions,
    /// A snapshot forgets which entries of the log behind it were skipped (rule C5).
    SnapshotWithoutSkipped,
    /// A log is compacted, and nothing names the snapshot that stands for it (rule D1).
    NamelessSnapshot,
    /// A log is never compacted.
    NeverCompact,
    /// An install forgets whom the node voted for (rule D1).
    LoseVoteAtInstall,
    /// The application is given a snapshot before it is installed durably (rule D1).
    RestoreTooEarly,
    /// A state machine that is durable itself is handed what it has once more (rule D2).
    IgnoreDurable,
    /// A snapshot holds the sessions as of when it is taken, not as of its index (rule C2).
    SessionsLaterThanCapture,
    /// A read request without a context reaches raft-rs.
    AdmitEmptyRead,
    /// It is not noticed that raft-rs has given up a transfer of leadership.
    IgnoreAbortedTransfer,
    /// The id of a removed member is used again (design decision 9).
    ReuseId,
    /// A learner gets a vote though it has not caught up (Raft thesis 4.2.1).
    PromoteStaleLearner,
    /// A learner has a vote.
    CountLearnersVote,
    /// A snapshot taken in a joint configuration forgets the outgoing voters.
    DropJointField,
    /// What a removed member proposed is applied (rule S3).
    ApplyStrangersCommands,
    /// A joint configuration is never left.
    NeverLeaveJoint,
    /// A copy of a change of the members takes effect once more.
    RepeatChange,
    /// A member's data directory is replaced by another one (rule M1).
    BindAnyIdentity,
    /// Entries behind an installed snapshot stay in the log, though it does not hold the snapshot's last one (rule D1).
    KeepStaleSuffix,
    /// A newcomer by its name takes the place of whoever is not there, whatever that one is called.
    DisplaceAnybody,
    /// A recovery begins no incarnation of its own (rule M3).
    RecoverKeepsIncarnation,
    /// A recovery drops what is in the log and not known to be committed.
    RecoverDropsTail,
}

#[cfg(feature = "mutants")]
impl Mutant {
    /// All of them.
    pub const ALL: [Self; 59] = [
        Self::AcknowledgeBeforeFsync,
        Self::AnswerEmptyReadyAtOnce,
        Self::PersistOutOfOrder,
        Self::ConfirmOneTooMany,
        Self::SpeakBeforeTermIsDurable,
        Self::ForgetHardState,
        Self::CutCacheByIndex,
        Self::SkipSessionTable,
        Self::IgnoreFloor,
        Self::IgnoreBoot,
        Self::SameBootAgain,
        Self::NewNumberForEachAttempt,
        Self::TimedOutMeansNotCommitted,
        Self::LostMeansRefused,
        Self::NeverTryAgain,
        Self::IgnoreDeadlines,
        Self::UnformedTakesPart,
        Self::FormInOneStep,
        Self::AdmitWipedDisk,
        Self::AdmitOldCopy,
        Self::ApplyBeforeCommit,
        Self::BarrierWithoutReadIndex,
        Self::JoinRoundUnderWay,
        Self::RepeatContext,
        Self::BarrierIgnoresCursor,
        Self::StampFromApplied,
        Self::ForgetSkipped,
        Self::LoseWaiters,
        Self::UnboundedFresh,
        Self::UnboundedSessions,
        Self::AdmitGap,
        Self::AdmitLostLog,
        Self::AdmitUnknownEntries,
        Self::AdmitStaleReject,
        Self::AdmitProposals,
        Self::CampaignDuringInstall,
        Self::InstallBeginsNoTerm,
        Self::SnapshotWithoutSessions,
        Self::SnapshotWithoutSkipped,
        Self::NamelessSnapshot,
        Self::NeverCompact,
        Self::LoseVoteAtInstall,
        Self::RestoreTooEarly,
        Self::IgnoreDurable,
        Self::SessionsLaterThanCapture,
        Self::AdmitEmptyRead,
        Self::IgnoreAbortedTransfer,
        Self::ReuseId,
        Self::PromoteStaleLearner,
        Self::CountLearnersVote,
        Self::DropJointField,
        Self::ApplyStrangersCommands,
        Self::NeverLeaveJoint,
        Self::RepeatChange,
        Self::BindAnyIdentity,
        Self::KeepStaleSuffix,
        Self::DisplaceAnybody,
        Self::RecoverKeepsIncarnation,
        Self::RecoverDropsTail,
    ];
}

#[cfg(feature = "mutants")]
thread_local! {
    static ON: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Whether this bug is in the code at the moment, on this thread.
#[cfg(feature = "mutants")]
pub fn on(mutant: Mutant) -> bool {
    ON.get() == Some(mutant)
}

/// Whether this bug is in the code: never.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn on(_: Mutant) -> bool {
    false
}

/// Puts a bug into the code, on this thread, or takes it out.
#[cfg(feature = "mutants")]
pub fn set(mutant: Option<Mutant>) {
    ON.set(mutant);
}
