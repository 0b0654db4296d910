//! How the file descriptors of the process are divided. What the node needs for itself comes first, so that no
//! client can take it; `maxclients` is fitted to what is left, as in Redis.
//!
//! The reserve is larger than that of Redis (32): sled has 78 files open for each page store, and a node may
//! have three of those at a time.

use kvorum_raft::{NodeConfig, descriptors};

/// The most connections of peers.
pub const PEERS_MAX: u64 = 256;

/// The most HTTP connections.
pub const HTTP_MAX: u64 = 1000;

/// Where there are few descriptors, segments of the log, peers and HTTP get at most one part in this many of
/// what the node itself does not need, each.
const PART: u64 = 4;

/// How many connections of each kind fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// The limit of the process.
    pub limit: u64,
    /// The most connections of peers.
    pub peers: u64,
    /// The most HTTP connections.
    pub http: u64,
    /// The most clients.
    pub clients: u64,
}

impl Shares {
    /// Divides a limit; None if it is too low for a node.
    pub fn of(limit: u64, config: &NodeConfig) -> Option<Shares> {
        let rest = (limit >= descriptors::NEEDED).then(|| limit - descriptors::RESERVED)?;
        let at_most = |wanted: u64| wanted.min(rest / PART);
        let segments = at_most(descriptors::of_segments(config));
        let (peers, http) = (at_most(PEERS_MAX), at_most(HTTP_MAX));
        Some(Shares { limit, peers, http, clients: rest - segments - peers - http })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(limit: u64) -> Option<Shares> {
        Shares::of(limit, &NodeConfig::new(1, "data"))
    }

    #[test]
    fn what_the_node_needs_comes_first() {
        assert_eq!(of(descriptors::NEEDED - 1), None);
        for limit in (descriptors::NEEDED..100_000).step_by(37) {
            let shares = of(limit).unwrap();
            let all = descriptors::RESERVED + shares.peers + shares.http + shares.clients;
            assert!(all <= limit, "{shares:?}");
            assert!(shares.peers >= 16 && shares.http >= 16, "{shares:?}");
            assert!(shares.clients >= (limit - descriptors::RESERVED) / PART, "{shares:?}");
        }
    }

    #[test]
    fn where_there_are_many_all_get_what_they_may_have() {
        let shares = of(20_000).unwrap();
        assert_eq!((shares.peers, shares.http), (PEERS_MAX, HTTP_MAX));
        assert!(shares.clients > 10_000, "{shares:?}");
        assert_eq!(of(u64::MAX).map(|shares| shares.http), Some(HTTP_MAX));
        // Small segments are many, but do not keep clients out.
        let config = NodeConfig { log_segment_bytes: 1 << 16, ..NodeConfig::new(1, "data") };
        assert!(Shares::of(4096, &config).unwrap().clients > 900);
    }
}
