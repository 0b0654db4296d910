//! Safeguards that the simulation switches off, one or several together, to show that it finds what then goes
//! wrong. In a server all are on, and checking costs nothing: only with the feature `simulation` can one be
//! off.

/// Something without which an acknowledged write is lost, a read is stale, replicas differ, or a node reports
/// of itself what is not true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safeguard {
    /// A linearizable read waits until a majority has confirmed the leader.
    ReadRound,
    /// A node that starts waits until the lease that it may have granted a leader has run out. Only reads by
    /// that lease need this, so switching it off switches to such reads as well.
    StartupGuard,
    /// An entry counts as written when it is synced.
    SyncBeforeAcknowledgement,
    /// A vote is in the log before it is given.
    DurableVote,
    /// What may be in a log is not proposed again.
    NoRetryAfterAppend,
    /// Replies of client sessions are in checkpoints.
    SessionsInCheckpoints,
    /// The log's clock is in checkpoints.
    ClockInCheckpoints,
    /// Deadlines are compared with the log's clock, not with the node's own.
    LogClock,
    /// Random choices follow from the log, not from the node.
    ReplicatedChance,
    /// A read is confirmed by answers to messages that were sent for it, not by openraft's clock.
    OwnConfirmation,
    /// A disk that went back to an older copy is refused by a node that remembers more than it holds.
    DiskWitness,
    /// A log is never truncated below what is applied.
    AppliedStays,
    /// Members that have applied different logs, or have different states after the same log, do not continue.
    Agreement,
    /// A leader that is silent, has no majority or does not answer counts as none.
    Contact,
}

#[cfg(feature = "simulation")]
impl Safeguard {
    /// All of them, by name.
    pub const ALL: &[(&str, Safeguard)] = &[
        ("read-round", Safeguard::ReadRound),
        ("startup-guard", Safeguard::StartupGuard),
        ("sync-before-acknowledgement", Safeguard::SyncBeforeAcknowledgement),
        ("durable-vote", Safeguard::DurableVote),
        ("no-retry-after-append", Safeguard::NoRetryAfterAppend),
        ("sessions-in-checkpoints", Safeguard::SessionsInCheckpoints),
        ("clock-in-checkpoints", Safeguard::ClockInCheckpoints),
        ("log-clock", Safeguard::LogClock),
        ("replicated-chance", Safeguard::ReplicatedChance),
        ("own-confirmation", Safeguard::OwnConfirmation),
        ("disk-witness", Safeguard::DiskWitness),
        ("applied-stays", Safeguard::AppliedStays),
        ("agreement", Safeguard::Agreement),
        ("contact", Safeguard::Contact),
    ];
}

/// Those that are off, one bit each.
#[cfg(feature = "simulation")]
static OFF: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

#[cfg(feature = "simulation")]
std::thread_local! {
    static OWN_CLOCK_MS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Switches one off, in this process and for good.
#[cfg(feature = "simulation")]
pub fn switch_off(safeguard: Safeguard) {
    OFF.fetch_or(1 << safeguard as u32, std::sync::atomic::Ordering::Relaxed);
}

/// Whether one is off.
#[cfg(feature = "simulation")]
pub fn is_off(safeguard: Safeguard) -> bool {
    OFF.load(std::sync::atomic::Ordering::Relaxed) & 1 << safeguard as u32 != 0
}

/// Whether one is off: none is.
#[cfg(not(feature = "simulation"))]
#[inline(always)]
pub const fn is_off(_: Safeguard) -> bool {
    false
}

/// The wall clock of the node that is running on this thread, for [`Safeguard::LogClock`].
#[cfg(feature = "simulation")]
pub fn set_own_clock_ms(clock_ms: u64) {
    OWN_CLOCK_MS.set(clock_ms);
}

/// The time after an entry with this stamp: the stamp.
pub fn clock_ms(stamp_ms: u64) -> u64 {
    #[cfg(feature = "simulation")]
    if is_off(Safeguard::LogClock) {
        return OWN_CLOCK_MS.get();
    }
    stamp_ms
}
