//! The JSON of the HTTP API, as it is written and as the operator's verbs read it.

use std::collections::BTreeMap;

use kvorum_raft::{NodeId, RoundTrip, Status};
use serde::{Deserialize, Serialize};

use crate::session::role_name;

/// `GET /v1/cluster`: this node, and the group as it sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Cluster {
    pub cluster_id: Option<String>,
    pub node_id: NodeId,
    /// `leader`, `follower`, `candidate`, `learner` or `none`.
    pub role: String,
    pub term: u64,
    /// The leader, if this node has heard it lately.
    pub leader_id: Option<NodeId>,
    /// Milliseconds since this node last heard a leader; null if it has heard none since its start.
    #[serde(default)]
    pub leader_heard_ms: Option<u64>,
    /// Why this node does not serve; null when it does.
    #[serde(default)]
    pub not_ready: Option<String>,
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub checkpoint_index: u64,
    pub purged_index: u64,
    /// How far the log's clock is ahead of this node's wall clock, in milliseconds, negative where it is behind; null while
    /// the node has not heard the time.
    #[serde(default)]
    pub clock_ahead_ms: Option<i64>,
    /// Whether the log's clock goes at half speed until it meets the wall clock.
    #[serde(default)]
    pub clock_closing: bool,
    /// The election time-outs in force, the least and the greatest, in milliseconds.
    #[serde(default)]
    pub election_timeout_ms: Option<(u64, u64)>,
    /// Why the time-outs do not fit the round trips; null when they do.
    #[serde(default)]
    pub timeouts_misfit: Option<String>,
    /// Room on this node's disk.
    #[serde(default)]
    pub disk: Disk,
    /// Why writes that need space are refused; null while they are not.
    #[serde(default)]
    pub no_room: Option<String>,
    pub members: Vec<Member>,
}

/// A node's disk in it, in bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Disk {
    /// The size of the file system of the data directory.
    pub total_bytes: u64,
    /// What is free there.
    pub free_bytes: u64,
    /// What the node has set aside there.
    pub reserve_bytes: u64,
    /// `ample`, `low`, `short` or `full`.
    pub state: String,
}

/// A member in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// `voter` or `learner`.
    pub role: String,
    /// By name: `peer`, `resp`, `http`.
    pub addresses: BTreeMap<String, String>,
    /// The last log index known to be on it; null but at the leader.
    pub matched_index: Option<u64>,
    /// Milliseconds since it last answered; null but at the leader.
    pub last_contact_ms: Option<u64>,
    /// How long its answers to the node that is asked take; null if none came within the last minute, and for that node itself.
    #[serde(default)]
    pub round_trip: Option<RoundTripMs>,
}

/// How long answers take, in milliseconds with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundTripMs {
    /// The least of the last ten, which are taken twice a second.
    pub least_ms: f64,
    /// Smoothed.
    pub smoothed_ms: f64,
    /// The greatest of the last minute.
    pub greatest_ms: f64,
}

impl From<RoundTrip> for RoundTripMs {
    fn from(round_trip: RoundTrip) -> RoundTripMs {
        let ms = |time: std::time::Duration| time.as_micros() as f64 / 1000.0;
        RoundTripMs {
            least_ms: ms(round_trip.least),
            smoothed_ms: ms(round_trip.smoothed),
            greatest_ms: ms(round_trip.greatest),
        }
    }
}

impl From<Status> for Cluster {
    fn from(status: Status) -> Cluster {
        let clock_ahead_ms = status.clock_ahead_ms();
        Cluster {
            cluster_id: status.cluster_id,
            node_id: status.node_id,
            role: role_name(status.role).to_owned(),
            term: status.term,
            leader_id: status.leader_id,
            leader_heard_ms: status.leader_heard_ms,
            not_ready: status.not_ready.map(|not_ready| not_ready.why),
            last_log_index: status.last_log_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            checkpoint_index: status.checkpoint_index,
            purged_index: status.purged_index,
            clock_ahead_ms,
            clock_closing: status.clock_is_closing,
            election_timeout_ms: Some(status.election_timeout_ms),
            timeouts_misfit: status.timeouts_misfit,
            disk: Disk {
                total_bytes: status.disk.total_bytes,
                free_bytes: status.disk.free_bytes,
                reserve_bytes: status.disk.reserve_bytes,
                state: status.disk.state.name().to_owned(),
            },
            no_room: status.no_room,
            members: status.members.into_iter().map(Member::from).collect(),
        }
    }
}

impl From<kvorum_raft::Member> for Member {
    fn from(member: kvorum_raft::Member) -> Member {
        let mut addresses = member.endpoints;
        // What else a node publishes is not for operators.
        addresses.retain(|name, _| matches!(name.as_str(), "resp" | "http"));
        addresses.insert("peer".to_owned(), member.peer);
        Member {
            id: member.id,
            role: if member.voter { "voter" } else { "learner" }.to_owned(),
            addresses,
            matched_index: member.matched_index,
            last_contact_ms: member.last_contact_ms,
            round_trip: member.round_trip.map(RoundTripMs::from),
        }
    }
}

/// `POST /v1/cluster/members`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewMember {
    /// Its id, never used before.
    pub id: NodeId,
    /// Where its peers reach it.
    pub peer: String,
    /// The id of the node's data directory, when it is the node itself that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

/// The type of the problem that another change of the membership is under way: the only 409 that ends by waiting.
pub const BUSY: &str = "urn:kvorum:problem:busy";

/// The type of the problem that the disks have no room for what was asked: nothing was done.
pub const DISK_FULL: &str = "urn:kvorum:problem:disk-full";

/// `POST /v1/cluster/leader`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewLeader {
    /// The voter that is to lead.
    pub id: NodeId,
}

/// `POST /v1/cluster/clock`, and its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockPace {
    /// Whether the log's clock is to wait for the wall clock, at half speed.
    pub closing: bool,
}

/// `POST /v1/checkpoint`'s answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last log index in it.
    pub checkpoint_index: u64,
}

/// What went wrong: RFC 9457, `application/problem+json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// A stable name of the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This very case in words.
    pub detail: String,
    /// The lowest index to resume the change feed from, when that is the problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_index: Option<u64>,
}
