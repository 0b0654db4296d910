//! The peer network: length-prefixed binary frames, two connections from each node to each peer for its own
//! requests, with the answers coming back on them.

pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod heartbeat;
pub(crate) mod interest;
pub(crate) mod messages;
pub(crate) mod peer;
pub(crate) mod raft_network;
pub(crate) mod serve;
pub mod transport;
