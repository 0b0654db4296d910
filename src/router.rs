//! Where a request goes: a read to this node's machine behind a barrier, a write into the log. Knows the
//! group and the machine, no connection and no command.

use std::{collections::BTreeSet, sync::Arc};

use kvorum_raft::{Need, Node, ReadLevel, Status};
use tokio::sync::oneshot;

use crate::{
    error::Error,
    feed::Feed,
    machine::Machine,
    proposal::{self, Pipeline, Step},
    resp::Protocol,
    store::{Outcome, Ticket, View},
};

/// How often reads are repeated because keys died meanwhile, before the answer is taken as it is.
pub const LATE_READS_MAX: usize = 3;

/// This node, as sessions see it. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    node: Node<Machine>,
    machine: Arc<Machine>,
}

impl Router {
    /// `node` replicates `machine`.
    pub fn new(node: Node<Machine>, machine: Arc<Machine>) -> Router {
        Router { node, machine }
    }

    /// Returns when [`Router::read`] gives what `level` promises.
    pub async fn barrier(&self, level: ReadLevel) -> Result<(), Error> {
        match level {
            ReadLevel::Stale => Ok(()),
            _ => self.node.barrier(level).await.map_err(|why| proposal::unavailable(&why)),
        }
    }

    /// Returns when the log entry at `index` is applied here.
    pub async fn applied(&self, index: u64) -> Result<(), Error> {
        let behind =
            |_| Error::Other("TRYAGAIN this node has not applied the position of the token yet".into());
        self.node.applied(index).await.map_err(behind)
    }

    /// Moves the log clock, so that keys that are late die.
    pub async fn tick(&self) -> Result<(), Error> {
        self.node.tick().await.map_err(|why| proposal::unavailable(&why))
    }

    /// Reads database `db` as it is, under the shared lock. Never blocks for long.
    pub fn read<R>(&self, db: u32, read: impl FnOnce(&View<'_>) -> R) -> R {
        self.machine.read(db, self.node.clock_ms(), fastrand::u64(..), read)
    }

    /// As [`Router::read`], of a state in which nothing is late that `read` meets: it is run again after a tick.
    pub async fn read_in_time<R>(&self, db: u32, mut read: impl FnMut(&View<'_>) -> R) -> Result<R, Error> {
        for _ in 0..LATE_READS_MAX {
            let (result, is_late) = self.read(db, |view| (read(view), view.late.get()));
            if !is_late {
                return Ok(result);
            }
            self.tick().await?;
        }
        Ok(self.read(db, read))
    }

    /// The last entry that was applied, and the digest of all content then. Blocks for as long as it takes to walk over
    /// everything.
    pub fn digest_at(&self) -> (u64, u128) {
        self.machine.digest_at()
    }

    /// Each database that has keys, the number of its keys, and of those with a deadline.
    pub fn database_sizes(&self) -> Vec<(u32, usize, usize)> {
        self.machine.database_sizes()
    }

    /// The machine itself, to look at.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What happened to keys.
    pub fn feed(&self) -> &Arc<Feed> {
        self.machine.feed()
    }

    /// Refuses a write that the disks have no room for. Cheap.
    pub fn check_room(&self, need: Need, bytes: usize) -> Result<(), Error> {
        self.node.check_room(need, bytes).map_err(|why| proposal::unavailable(&why))
    }

    /// Sends a pipeline's writes into the log; its replies come through `pipeline.done`.
    pub fn propose(&self, bytes: &[u8], pipeline: Pipeline) {
        self.node.propose(bytes, pipeline);
    }

    /// How a wait ended that began at this key; None if it goes on.
    pub fn outcome_at(&self, db: u32, key: &[u8], ticket: Ticket) -> Option<Outcome> {
        self.machine.outcome_at(db, key, ticket)
    }

    /// The nodes that have waits under way, with their runs.
    pub fn waiting_nodes(&self) -> BTreeSet<(u64, u64)> {
        self.machine.waiting_nodes()
    }

    /// Has `count` requests executed on behalf of no connection. Gives their replies; errors that mean "not applied" or
    /// "unknown" are those of all of them.
    pub async fn call(&self, bytes: &[u8], count: usize, protocol: Protocol) -> Vec<u8> {
        let (done, replies) = oneshot::channel();
        let steps = (0..count).map(|_| Step::Write).collect();
        self.propose(
            bytes,
            Pipeline { steps, protocol, chance: fastrand::u64(..), replies: Vec::new(), done },
        );
        // Without an answer the node is stopping, and the outcome is unknown.
        replies.await.unwrap_or_else(|_| format!("-{}\r\n", Error::Uncertain).into_bytes())
    }

    /// The group as this node sees it.
    pub fn status(&self) -> Status {
        self.node.status()
    }

    /// The log clock, estimated at this moment, in milliseconds since the Unix epoch.
    pub fn clock_ms(&self) -> u64 {
        self.node.clock_ms()
    }

    /// The node, for those who administer it.
    pub fn node(&self) -> &Node<Machine> {
        &self.node
    }
}
