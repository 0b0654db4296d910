//! The peer network: length-prefixed binary frames. Each node has two connections to each peer for its own
//! requests, and the answers come back on them.

pub(crate) mod admission;
pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod heartbeat;
pub(crate) mod horizon;
pub(crate) mod interest;
pub(crate) mod messages;
pub(crate) mod peer;
pub(crate) mod raft_network;
pub(crate) mod serve;
pub mod transport;
