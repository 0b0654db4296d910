//! The JSON of the HTTP API, as the server writes it and the command-line tools read it. Some fields of
//! responses may be missing (`serde(default)`); unknown fields of requests are refused.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kvorum_raft::{NodeId, RoundTrip, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::connection::role_name;

/// Text as it is; other bytes as an object with their base64.
pub fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// `GET /v1/cluster`: this node, and the cluster as it sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Cluster {
    pub cluster_id: Option<String>,
    pub node_id: NodeId,
    /// `leader`, `follower`, `candidate`, `learner` or `none`.
    pub role: String,
    pub term: u64,
    /// The leader, if this node has heard from it recently.
    pub leader_id: Option<NodeId>,
    /// Milliseconds since this node last heard from a leader; null if it has not since its start.
    #[serde(default)]
    pub leader_heard_ms: Option<u64>,
    /// Why this node does not serve; null if it does.
    #[serde(default)]
    pub not_ready: Option<String>,
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub checkpoint_index: u64,
    pub purged_index: u64,
    /// The offset of the log clock from this node's wall clock in milliseconds, negative if it is behind;
    /// null until the node has learned the time.
    #[serde(default)]
    pub clock_ahead_ms: Option<i64>,
    /// Whether the log clock runs at half speed until the wall clock catches up.
    #[serde(default)]
    pub clock_closing: bool,
    /// The election timeouts in force, minimum and maximum, in milliseconds.
    #[serde(default)]
    pub election_timeout_ms: Option<(u64, u64)>,
    /// Why the timeouts do not fit the round trips; null if they do.
    #[serde(default)]
    pub timeouts_misfit: Option<String>,
    /// The members whose log or state is known to differ from this node's.
    #[serde(default)]
    pub differing: Vec<NodeId>,
    /// Disk space of this node.
    #[serde(default)]
    pub disk: Disk,
    /// Why writes that need space are refused; null if they are not.
    #[serde(default)]
    pub no_room: Option<String>,
    /// Directories of this node with pages that were set aside, because they could not be read or differed
    /// from the others'.
    #[serde(default)]
    pub set_aside: Vec<String>,
    pub members: Vec<Member>,
}

/// A node's disk, in bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Disk {
    /// The size of the file system of the data directory.
    pub total_bytes: u64,
    /// The free space there.
    pub free_bytes: u64,
    /// The space that the node has reserved there.
    pub reserve_bytes: u64,
    /// `ample`, `low`, `short` or `full`.
    pub state: String,
}

/// A member of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// `voter` or `learner`.
    pub role: String,
    /// By kind: `peer`, `resp`, `http`.
    pub addresses: BTreeMap<String, String>,
    /// The last log index known to be on it; null except on the leader.
    pub matched_index: Option<u64>,
    /// Milliseconds since it last answered; null except on the leader.
    pub last_contact_ms: Option<u64>,
    /// The round trip from the node asked; null if there was none within the last minute, and for that node
    /// itself.
    #[serde(default)]
    pub round_trip: Option<RoundTripMs>,
}

/// Round-trip times, in milliseconds with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundTripMs {
    /// The minimum of the last ten, measured twice a second.
    pub least_ms: f64,
    /// Smoothed.
    pub smoothed_ms: f64,
    /// The maximum of the last minute.
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
            differing: status.differing,
            disk: Disk {
                total_bytes: status.disk.total_bytes,
                free_bytes: status.disk.free_bytes,
                reserve_bytes: status.disk.reserve_bytes,
                state: status.disk.state.name().to_owned(),
            },
            no_room: status.no_room,
            set_aside: status.set_aside.iter().map(|path| path.display().to_string()).collect(),
            members: status.members.into_iter().map(Member::from).collect(),
        }
    }
}

impl From<kvorum_raft::Member> for Member {
    fn from(member: kvorum_raft::Member) -> Member {
        let mut addresses = member.endpoints;
        // Other endpoints that a node publishes are not for operators.
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
    /// The id of the node's data directory, if the node itself asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

/// The problem type when another membership change is in progress: the only 409 that resolves by waiting.
pub const BUSY: &str = "urn:kvorum:problem:busy";

/// The problem type when the disks have no room for the request: nothing was done.
pub const DISK_FULL: &str = "urn:kvorum:problem:disk-full";

/// The problem type when the request would pass maxmemory: nothing was done.
pub const MEMORY_FULL: &str = "urn:kvorum:problem:memory-full";

/// `POST /v1/cluster/leader`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewLeader {
    /// The voter that is to lead.
    pub id: NodeId,
}

/// `POST /v1/cluster/clock`, and its response.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockPace {
    /// Whether the log clock is to run at half speed until the wall clock catches up.
    pub closing: bool,
}

/// The response of `POST /v1/checkpoint`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last log index in the checkpoint.
    pub checkpoint_index: u64,
}

/// A problem as in RFC 9457, `application/problem+json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// The problem type, a stable URI.
    #[serde(rename = "type")]
    pub kind: String,
    /// The problem type in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This occurrence in words.
    pub detail: String,
    /// If the problem is a compacted change feed: the lowest index from which it can be resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_index: Option<u64>,
}
