//! Consensus, durable log, checkpointed pages and peer network. Knows no Redis: it carries opaque bytes to a
//! [`Machine`] on every node, in one order, with one clock.
//!
//! openraft, sled and the log files are not mentioned outside this crate. Its public interface is the
//! [`Machine`] trait and the [`Node`] handle.
//!
//! The folders: `node/` is the running node and puts everything together. `proposals/` leads to an entry,
//! `log/` writes it, `net/` sends it, `state/` applies it, `reads/` waits for it. `snapshot/` condenses the
//! log into `pages/`. `elections/` decides who leads, `membership/` who takes part, `identity/` whose disk it
//! is, `agreement/` whether all have the same state. `clock/` is the time that the log gives, `space/` the
//! room on the disks. `offline/` works on a stopped node's files, `simulation/` replaces the outside world.

mod agreement;
pub mod aside;
pub mod chance;
mod clock;
mod codec;
mod config;
pub mod descriptors;
mod elections;
mod fatal;
#[cfg(test)]
mod fuzz_tests;
mod identity;
#[cfg(test)]
mod kill;
mod log;
mod machine;
mod membership;
mod net;
mod node;
pub mod offline;
mod pages;
mod platform;
mod proposals;
mod reads;
pub mod safeguard;
#[cfg(feature = "simulation")]
pub mod simulation;
mod snapshot;
mod space;
mod sparse;
mod state;
#[cfg(test)]
mod storage_tests;
mod types;
mod want;

pub use config::{NodeConfig, StartError};
pub use fatal::EXIT_CONTRADICTED;
pub use identity::address::{NODE_ID_MAX, check_address, check_id};
pub use machine::{
    Batch, Entropy, GroupId, Loader, Local, Machine, NodeId, PageWrite, Proposal, ProposeError, Unavailable,
};
pub use net::transport;
pub use node::Node;
pub use node::status::{
    AdminError, Cause, Counters, Disk, DiskState, Member, NotReady, ReadLevel, Role, RoundTrip, Status,
};
pub use platform::Platform;
pub use space::room::Need;
pub use state::level::DISTANCE_LEVEL;
pub use want::Want;
