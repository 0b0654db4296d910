//! Consensus, durable log, checkpointed pages and peer network. Knows no Redis: it carries opaque bytes to a
//! [`Machine`] on every node, in one order, with one clock.
//!
//! openraft, sled and the log files are named nowhere outside this crate. The public face is the [`Machine`]
//! trait and the [`Node`] handle.

mod address;
mod agreement;
mod ahead;
pub mod chance;
mod checkpoint;
mod clock;
mod closing;
mod codec;
mod common_checkpoint;
mod company;
mod config;
mod confirm;
mod contact;
mod contradiction;
mod core;
mod directory;
mod distance;
mod elections;
mod fatal;
mod formation;
mod group;
mod handover;
mod identity;
#[cfg(test)]
mod kill;
mod level;
mod lives;
mod log;
mod machine;
mod membership;
mod net;
mod node;
pub mod offline;
mod opening;
mod packet;
mod pages;
mod platform;
mod propose;
mod readiness;
mod reads;
mod recover;
mod renewal;
mod report;
mod room;
mod rounds;
pub mod safeguard;
#[cfg(feature = "simulation")]
pub mod simulation;
mod snapshot;
mod space;
mod sparse;
mod state;
mod status;
mod supervised;
mod tasks;
mod timing;
mod trail;
mod types;
mod witness;

pub use address::{NODE_ID_MAX, check_address, check_id};
pub use config::{NodeConfig, StartError};
pub use fatal::EXIT_CONTRADICTED;
pub use level::DISTANCE_LEVEL;
pub use machine::{
    Batch, Entropy, GroupId, Loader, Local, Machine, NodeId, PageWrite, Proposal, ProposeError, Unavailable,
};
pub use net::transport;
pub use node::Node;
pub use platform::Platform;
pub use room::Need;
pub use status::{
    AdminError, Cause, Counters, Disk, DiskState, Member, NotReady, ReadLevel, Role, RoundTrip, Status,
};
