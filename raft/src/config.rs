//! What a node needs to know at its start, and why it may refuse to start.

use std::{collections::BTreeMap, path::PathBuf};

use thiserror::Error;

use crate::{
    NodeId,
    identity::address::{check_address, check_id},
    want::Want,
};

/// The largest entry that the configuration may allow: it has to fit into one frame of the peer protocol.
pub(crate) const ENTRY_BYTES_LIMIT: usize = 1000 << 20;

/// Everything a node needs to know at its start. Validated by `Node::start`, immutable afterwards.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node's id, as `check_id` allows it.
    pub id: NodeId,
    /// Holds `log/`, `pages/` and the identity file. Created when missing; locked while the node runs.
    pub dir: PathBuf,
    /// The address to listen on for peers, `host:port`; port 0 takes a free one.
    pub peer_listen: String,
    /// The address that peers connect to, as `check_address` allows it; the bound address when None.
    pub peer_advertise: Option<String>,
    /// Other addresses of this node that every node should know, by name (`resp`, `http`): published through
    /// the log, and not used here.
    pub endpoints: BTreeMap<String, String>,
    /// The first members' peer addresses, this node among them. Used once, by a node without any state.
    pub bootstrap: Option<BTreeMap<NodeId, String>>,
    /// The time between two heartbeats of a leader.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing for the greater of these, and then for a time between them, starts an
    /// election.
    pub election_timeout_ms: (u64, u64),
    /// Whether the second of these waits grows with the round trip to a majority.
    pub election_timeout_auto: bool,
    /// Log bytes since the last checkpoint that start the next.
    pub checkpoint_log_bytes: u64,
    /// Applied entries that stay in the log below a checkpoint, for followers that lag a little.
    pub log_entries_kept: u64,
    /// The size of a log segment.
    pub log_segment_bytes: u64,
    /// Memory for the newest log entries; older ones are read from their segments.
    pub log_cache_bytes: usize,
    /// sled's cache.
    pub page_cache_bytes: usize,
    /// The largest entry, in bytes of proposals. A single larger proposal is refused with `TooLarge` only
    /// above `proposal_bytes_max`.
    pub entry_bytes_max: usize,
    /// The largest single proposal.
    pub proposal_bytes_max: usize,
    /// The most proposals in an entry.
    pub entry_proposals_max: usize,
    /// The most entries of this node in flight.
    pub entries_in_flight_max: usize,
    /// How long a proposal or a read waits for a leader, or for its confirmation.
    pub request_timeout_ms: u64,
    /// A leader whose fdatasync takes longer hands its leadership over, or gives it up.
    pub disk_stall_ms: u64,
    /// Space that is set aside on the disk for what must still be written when it is full. None for two
    /// segments of the log plus what the log grows by between two checkpoints, or an eighth of a small file
    /// system.
    pub disk_reserve_bytes: Option<u64>,
}

/// Why a node could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The peer address cannot be bound.
    #[error("cannot listen for peers on {address}: {source}")]
    Listen {
        /// The address as configured.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process holds the directory.
    #[error("the data directory {} is used by another process", .0.display())]
    Locked(PathBuf),
    /// The directory belongs to another node.
    #[error("the data directory {} belongs to node {found}, but this is node {expected}", dir.display())]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// The id in its identity file.
        found: NodeId,
        /// The id configured.
        expected: NodeId,
    },
    /// The directory belongs to a node of another cluster than the peers.
    #[error("the data directory {} belongs to cluster {ours}, but node {peer} belongs to another one", dir.display())]
    OtherCluster {
        /// The directory.
        dir: PathBuf,
        /// The cluster in its identity file.
        ours: String,
        /// A peer.
        peer: NodeId,
    },
    /// The directory belongs to a cluster that was given up: a peer says that its own was recovered from it.
    #[error("the data directory {} belongs to cluster {ours}, which was recovered as cluster {theirs}: node {peer} is part of that one", dir.display())]
    Recovered {
        /// The directory.
        dir: PathBuf,
        /// The cluster in its identity file.
        ours: String,
        /// A peer.
        peer: NodeId,
        /// That peer's cluster.
        theirs: String,
    },
    /// A majority has another state than this node after the same log. Started again, the node takes theirs.
    #[error("{0}; its log is the same, and so it takes its state anew from the others when it starts again")]
    StateDiffers(String),
    /// The directory holds less than this node has promised: it is an older copy.
    #[error("the data directory {} is an older copy of this node's disk, as node {peer} knows: {why}; what it acknowledged and voted since is lost", dir.display())]
    WentBack {
        /// The directory.
        dir: PathBuf,
        /// The peer that knows.
        peer: NodeId,
        /// How that is known.
        why: String,
    },
    /// A recovery of this directory was begun and not finished.
    #[error("a recovery of the data directory {} was begun and not finished", dir.display())]
    Unfinished {
        /// The directory.
        dir: PathBuf,
        /// Where the state before the recovery is.
        backup: PathBuf,
    },
    /// The log is damaged before its durable end.
    #[error("the log is corrupted: {detail} (in {})", file.display())]
    LogCorrupted {
        /// The damaged segment.
        file: PathBuf,
        /// Position and kind of the damage.
        detail: String,
    },
    /// The pages are unreadable and nobody has them.
    #[error("the checkpoint is unreadable and no peer could be asked for it: {why}")]
    PagesUnreadable {
        /// What is wrong with them, and with the peers.
        why: String,
        /// Where unreadable pages were put, the newest first: they are tried again at each start.
        set_aside: Vec<PathBuf>,
    },
    /// The system refused something without which the node cannot start. Nothing is wrong with its data, and
    /// nothing was moved.
    #[error("{context}: {why}")]
    Wanting {
        /// What is missing.
        want: Want,
        /// What was attempted.
        context: String,
        /// What the system said.
        why: String,
    },
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was attempted.
        context: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl StartError {
    /// What the system refused, if it is for that that the node does not start.
    pub fn want(&self) -> Option<Want> {
        match self {
            StartError::Wanting { want, .. } => Some(*want),
            StartError::Io { source, .. } | StartError::Listen { source, .. } => {
                Want::of(source).filter(|want| *want != Want::Other)
            }
            _ => None,
        }
    }
}

impl NodeConfig {
    /// A configuration with the defaults that `kvorum serve` has, for a node that listens on a free port of
    /// the loopback interface.
    pub fn new(id: NodeId, dir: impl Into<PathBuf>) -> NodeConfig {
        NodeConfig {
            id,
            dir: dir.into(),
            peer_listen: "127.0.0.1:0".into(),
            peer_advertise: None,
            endpoints: BTreeMap::new(),
            bootstrap: None,
            heartbeat_ms: 100,
            election_timeout_ms: (350, 600),
            election_timeout_auto: true,
            checkpoint_log_bytes: 64 << 20,
            log_entries_kept: 2000,
            log_segment_bytes: 64 << 20,
            log_cache_bytes: 2 << 20,
            page_cache_bytes: 8 << 20,
            entry_bytes_max: 1 << 20,
            proposal_bytes_max: 40 << 20,
            entry_proposals_max: 1000,
            entries_in_flight_max: 4,
            request_timeout_ms: 5000,
            disk_stall_ms: 2000,
            disk_reserve_bytes: None,
        }
    }

    /// Refuses what contradicts itself.
    pub fn validate(&self) -> Result<(), StartError> {
        let (low, high) = self.election_timeout_ms;
        let contradiction = if let Err(why) = self.check_names() {
            Some(why)
        } else if self.heartbeat_ms == 0 || low >= high {
            Some("election-timeout must be two rising numbers, and heartbeat not 0".to_owned())
        } else if self.heartbeat_ms * 2 > low {
            Some(format!(
                "a heartbeat of {} ms is too slow for an election timeout of {low} ms",
                self.heartbeat_ms
            ))
        } else if self.entries_in_flight_max == 0 || self.entry_proposals_max == 0 {
            Some("an entry must hold at least one proposal, and one entry must be in flight".to_owned())
        } else if self.proposal_bytes_max.saturating_add(2 * self.entry_bytes_max) > ENTRY_BYTES_LIMIT {
            Some(format!(
                "proposal-bytes-max and twice entry-bytes-max must be at most {ENTRY_BYTES_LIMIT} together"
            ))
        } else {
            match &self.bootstrap {
                Some(peers) if !peers.contains_key(&self.id) => {
                    Some(format!("node {} is not among the peers it was given", self.id))
                }
                _ => None,
            }
        };
        contradiction.map_or(Ok(()), |text| Err(StartError::Config(text)))
    }

    /// Checks what goes into the log, or is told to others.
    fn check_names(&self) -> Result<(), String> {
        let peers = self.bootstrap.iter().flatten();
        peers.clone().map(|(id, _)| *id).chain([self.id]).try_for_each(check_id)?;
        let addresses = self.peer_advertise.iter().chain(self.endpoints.values());
        addresses.chain(peers.map(|(_, address)| address)).try_for_each(|address| check_address(address))
    }
}

#[cfg(test)]
mod tests {
    use super::NodeConfig;

    #[test]
    fn what_makes_no_sense_is_refused() {
        let config = || NodeConfig::new(1, "data");
        assert!(config().validate().is_ok());
        let peers =
            |peers: &[(u64, &str)]| Some(peers.iter().map(|(id, peer)| (*id, (*peer).to_owned())).collect());
        for wrong in [
            NodeConfig { id: 0, ..config() },
            NodeConfig { id: u64::MAX, ..config() },
            NodeConfig { peer_advertise: Some("nowhere".into()), ..config() },
            NodeConfig { endpoints: [("resp".to_owned(), "a:1\n".to_owned())].into(), ..config() },
            NodeConfig { bootstrap: peers(&[(1, "a:1"), (1 << 53, "b:1")]), ..config() },
            NodeConfig { bootstrap: peers(&[(1, "a:1"), (2, "b:0")]), ..config() },
            NodeConfig { proposal_bytes_max: 1 << 30, ..config() },
        ] {
            assert!(wrong.validate().is_err(), "{wrong:?}");
        }
    }
}
