//! What a simulation keeps of its nodes: their disks, which outlive them, and a view inside, for invariants
//! that no client can see. `kvorum-jepsen sim` is the simulation.

mod duplicates;
mod endpoint;
pub mod knobs;
mod peek;
mod storage;

use std::sync::Arc;

pub use self::{
    duplicates::duplicable,
    endpoint::{Endpoint, NodeEnd},
    peek::{Peek, Position},
    storage::{DiskCopy, SYNC_MS_MAX, Storage},
};
use crate::{Machine, Node, Platform, fatal, transport::Transport};

impl Platform {
    /// A simulated machine. `wall_us` is its wall clock; `fatal` is called when the node must end and the
    /// node goes on, so that from then on nothing of it may reach the network or the disk.
    pub fn simulated(
        transport: Arc<dyn Transport>,
        storage: Storage,
        wall_us: impl Fn() -> u64 + Send + Sync + 'static,
        fatal: impl Fn(String) + Send + Sync + 'static,
    ) -> Platform {
        let fatal: fatal::Handler = Arc::new(fatal);
        let contradiction = fatal.clone();
        let wall = Arc::new(wall_us);
        Platform { transport, wall, fatal, contradiction, space: Arc::default(), storage: Some(storage) }
    }

    /// Reports why the cluster contradicts the node, instead of ending the process.
    pub fn told_of_contradictions(self, told: impl Fn(String) + Send + Sync + 'static) -> Platform {
        Platform { contradiction: Arc::new(told), ..self }
    }
}

impl<M: Machine> Node<M> {
    /// Makes this node appear to have applied something else than it has.
    pub fn mislead(&self) {
        self.core.applier.mislead();
    }

    /// The digests of all pages at its last checkpoints, with their indexes.
    pub fn states(&self) -> Vec<(u64, u64)> {
        self.core.checkpointer.states().iter().map(|mark| (mark.index, mark.hash)).collect()
    }
}
