//! What a node reports of itself and of its group.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use thiserror::Error;

use crate::{NodeId, Unavailable, clock::ahead::milliseconds};

/// What a read must guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadLevel {
    /// Sees every write acknowledged before the read began, by any node.
    Linearizable,
    /// The same while the nodes' monotonic clocks run at nearly the same rate. It is served as
    /// `Linearizable`, which is stronger.
    Lease,
    /// Sees every write that was acknowledged, by any node, more than this long before the read began. Served
    /// from the local state if that is known to be no older, otherwise as `Linearizable`.
    Bounded(Duration),
    /// The local state as it is.
    Stale,
}

/// A node's part in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
    /// Not part of a cluster yet, or stopped.
    None,
}

/// One member as this node knows it.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Whether it votes; if not, it is a learner.
    pub voter: bool,
    /// Where its peers reach it.
    pub peer: String,
    /// The other addresses it published.
    pub endpoints: BTreeMap<String, String>,
    /// The last log index known to be on it; only the leader knows.
    pub matched_index: Option<u64>,
    /// Milliseconds since it last answered; only the leader knows.
    pub last_contact_ms: Option<u64>,
    /// Whether it has answered recently; only the leader knows.
    pub is_in_contact: bool,
    /// How long its answers to this node take, if one came within the last minute; None for this node itself.
    pub round_trip: Option<RoundTrip>,
}

/// How long a peer's answers take, as a node measures it twice a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// The least of the last ten: the distance.
    pub least: Duration,
    /// Smoothed, as TCP does.
    pub smoothed: Duration,
    /// The greatest of the last minute.
    pub greatest: Duration,
}

/// Why a node is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// The kind of reason.
    pub cause: Cause,
    /// The reason in words.
    pub why: String,
}

/// The kinds of reasons for which a node is not ready, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The disk does not answer.
    Disk,
    /// The cluster is not formed yet: some of its first nodes are missing.
    NotFormed,
    /// It waits to be made a member.
    NotMember,
    /// Its peers refuse it: it was removed, has another disk or an older copy of it, belongs to another cluster,
    /// or is of a version that does not fit.
    Refused,
    /// The members have applied different logs, or have different states after the same log.
    Diverged,
    /// It knows no leader.
    NoLeader,
    /// The leader has no majority.
    NoMajority,
    /// It has not caught up with the leader.
    Behind,
    /// Its disk is full, or nearly so.
    DiskFull,
    /// The system refuses what its log needs, such as file descriptors.
    System,
}

impl Cause {
    /// All of them.
    pub const ALL: [Cause; 10] = [
        Cause::Disk,
        Cause::NotFormed,
        Cause::NotMember,
        Cause::Refused,
        Cause::Diverged,
        Cause::NoLeader,
        Cause::NoMajority,
        Cause::Behind,
        Cause::DiskFull,
        Cause::System,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Disk => "disk",
            Cause::NotFormed => "not-formed",
            Cause::NotMember => "not-member",
            Cause::Refused => "refused",
            Cause::Diverged => "diverged",
            Cause::NoLeader => "no-leader",
            Cause::NoMajority => "no-majority",
            Cause::Behind => "behind",
            Cause::DiskFull => "disk-full",
            Cause::System => "system",
        }
    }
}

/// How much room a node has on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskState {
    /// Enough.
    #[default]
    Ample,
    /// Enough for now: nothing is kept that only saves time.
    Low,
    /// None for more data.
    Short,
    /// Little is left of the reserve, or the log waits for space.
    Full,
}

impl DiskState {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            DiskState::Ample => "ample",
            DiskState::Low => "low",
            DiskState::Short => "short",
            DiskState::Full => "full",
        }
    }
}

/// A node's disk, in bytes; all zero if the file system does not tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk {
    /// The size of the file system of the data directory.
    pub total_bytes: u64,
    /// What is free there.
    pub free_bytes: u64,
    /// What this node has set aside there.
    pub reserve_bytes: u64,
    /// What it wants to set aside.
    pub reserve_wanted_bytes: u64,
    /// The resulting state.
    pub state: DiskState,
}

/// A node's view of itself and the group, at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// 32 hex digits, made when the cluster was formed; None before.
    pub cluster_id: Option<String>,
    /// This node.
    pub node_id: NodeId,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The leader it knows of: one that it has heard recently.
    pub leader_id: Option<NodeId>,
    /// Milliseconds since it last heard a leader: 0 on the leader itself, None if it has heard none since its
    /// start.
    pub leader_heard_ms: Option<u64>,
    /// The last entry in its log.
    pub last_log_index: u64,
    /// The last entry it knows to be on a majority.
    pub committed_index: u64,
    /// The last entry it applied.
    pub applied_index: u64,
    /// The last entry in its last durable checkpoint.
    pub checkpoint_index: u64,
    /// The last entry removed from its log.
    pub purged_index: u64,
    /// All members.
    pub members: Vec<Member>,
    /// None when the node can serve linearizable requests; otherwise why not.
    pub not_ready: Option<NotReady>,
    /// The log clock, estimated at this moment, in milliseconds since the Unix epoch.
    pub clock_ms: u64,
    /// How far the log clock is ahead of this node's wall clock, in microseconds, negative where it is
    /// behind; None while the node has not heard the time.
    pub clock_ahead_us: Option<i64>,
    /// Whether the log clock goes at half speed until it meets the wall clock.
    pub clock_is_closing: bool,
    /// The election timeouts in force, the least and the greatest.
    pub election_timeout_ms: (u64, u64),
    /// Why the timeouts do not fit the round trips that were measured; None if they do.
    pub timeouts_misfit: Option<String>,
    /// The members that are known to have another log or state than this node.
    pub differing: Vec<NodeId>,
    /// Room on this node's disk.
    pub disk: Disk,
    /// Why writes that need space are refused; None while they are not.
    pub no_room: Option<String>,
    /// Pages that were set aside because they were unreadable or differed from the others', and are still
    /// there.
    pub set_aside: Vec<PathBuf>,
    /// The level at which entries are applied here; 0 before the first.
    pub apply_level: u32,
}

impl Status {
    /// `clock_ahead_us` in milliseconds.
    pub fn clock_ahead_ms(&self) -> Option<i64> {
        self.clock_ahead_us.map(milliseconds)
    }
}

/// Counters since the start, for metrics. All monotonic but the last two.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub log_fsyncs: u64,
    pub log_fsync_us_total: u64,
    pub log_bytes_written: u64,
    pub entries_proposed: u64,
    pub proposals: u64,
    pub read_rounds: u64,
    pub entries_applied: u64,
    pub checkpoints: u64,
    pub checkpoint_pages_written: u64,
    pub snapshots_sent: u64,
    pub snapshots_installed: u64,
    pub leader_changes: u64,
    pub log_bytes_since_checkpoint: u64,
    pub log_segments: u64,
    pub peer_connections: u64,
    pub peer_connections_put_out: u64,
}

/// Why an administrative request was not carried out.
#[derive(Clone, Debug, Error)]
pub enum AdminError {
    /// It would be unsafe, or contradicts the membership: asked again it is refused again. Nothing was
    /// changed.
    #[error("{0}")]
    Conflict(String),
    /// Another change is under way. Nothing was changed.
    #[error("another change of the membership is under way")]
    Busy,
    /// Only the leader can do it, and whoever was asked does not lead. Nothing was changed.
    #[error("this node does not lead")]
    NotLeader,
    /// No such member.
    #[error("{0}")]
    NotFound(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The group cannot do it at present.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It was begun and its outcome is not known.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}
