//! Routes requests: a read to this node's machine behind a barrier, a write into the log. It knows the Raft
//! group and the machine, but no connections and no commands.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use kvorum_raft::{Need, Node, ReadLevel, Status};
use tokio::sync::oneshot;

use crate::{
    effects::Outcome,
    error::Error,
    feed::Feed,
    machine::Machine,
    proposal::{self, Answer, Pipeline, Step},
    resp::{Protocol, Replies},
    store::{Fate, Ticket, View},
};

/// How often a read is repeated because keys expired in the meantime, before its result is accepted as it is.
const LATE_READS_MAX: usize = 3;

/// This node, as connections see it. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    node: Node<Machine>,
    machine: Arc<Machine>,
    feed: Arc<Feed>,
}

impl Router {
    /// `node` replicates `machine`, to which `feed` listens.
    pub fn new(node: Node<Machine>, machine: Arc<Machine>, feed: Arc<Feed>) -> Router {
        Router { node, machine, feed }
    }

    /// Returns once [`Router::read`] satisfies `level`.
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

    /// Advances the log clock, so that late keys expire.
    pub async fn tick(&self) -> Result<(), Error> {
        self.node.tick().await.map_err(|why| proposal::unavailable(&why))
    }

    /// Reads the current state of database `db`, under the shared lock.
    pub async fn read<R>(&self, db: u32, read: impl FnOnce(&View<'_>) -> R) -> R {
        self.machine.read_soon(db, || self.node.clock_ms(), fastrand::u64(..), read).await
    }

    /// Reads the current state of database `db` so that it satisfies `level`.
    pub async fn read_at<R>(
        &self,
        level: ReadLevel,
        db: u32,
        read: impl FnMut(&View<'_>) -> R,
    ) -> Result<R, Error> {
        self.barrier(level).await?;
        self.read_behind_barrier(level, db, read).await
    }

    /// The same when the barrier is passed. At the levels that see all writes acknowledged before, a late key
    /// must expire first: then `read` is run again after a tick. At the others the state is shown as it is.
    pub async fn read_behind_barrier<R>(
        &self,
        level: ReadLevel,
        db: u32,
        mut read: impl FnMut(&View<'_>) -> R,
    ) -> Result<R, Error> {
        let repeats = if is_linearizable(level) { LATE_READS_MAX } else { 0 };
        for _ in 0..repeats {
            let (result, is_late) = self.read(db, |view| (read(view), view.late.get())).await;
            if !is_late {
                return Ok(result);
            }
            self.tick().await?;
        }
        Ok(self.read(db, read).await)
    }

    /// The last applied entry, and the digest of all content at that point. Blocks while it walks over all
    /// content.
    pub fn digest_at(&self) -> (u64, u128) {
        self.machine.digest_at()
    }

    /// Each nonempty database, with its number of keys and of keys with a deadline.
    pub fn database_sizes(&self) -> Vec<(u32, usize, usize)> {
        self.machine.database_sizes()
    }

    /// The machine, for inspection.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The change feed.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Refuses a write that the disks have no room for. Cheap.
    pub fn check_room(&self, need: Need, bytes: usize) -> Result<(), Error> {
        self.node.check_room(need, bytes).map_err(|why| proposal::unavailable(&why))
    }

    /// Sends a pipeline's writes into the log; its replies come through `pipeline.done`.
    /// Large bytes that are owned are not copied.
    pub fn propose<'a>(&self, bytes: impl Into<Cow<'a, [u8]>>, pipeline: Pipeline) {
        self.node.propose(bytes, pipeline);
    }

    /// See [`Machine::outcome_at`].
    pub fn outcome_at(&self, db: u32, key: &[u8], ticket: Ticket) -> Option<(u64, Outcome)> {
        self.machine.outcome_at(db, key, ticket)
    }

    /// See [`Machine::waiting_nodes`].
    pub fn waiting_nodes(&self) -> BTreeSet<(u64, u64)> {
        self.machine.waiting_nodes()
    }

    /// Executes `count` requests that belong to no connection and returns their replies. An error that means
    /// "not applied" or "unknown" is the reply of all of them.
    pub async fn call(&self, bytes: &[u8], count: usize, protocol: Protocol) -> Vec<u8> {
        self.ask(bytes, count, protocol).await.replies.into_bytes()
    }

    /// The same, with what has become of the last of them.
    pub async fn ask(&self, bytes: &[u8], count: usize, protocol: Protocol) -> Answer {
        let (done, replies) = oneshot::channel();
        let steps = (0..count).map(|_| Step::Write).collect();
        self.propose(
            bytes,
            Pipeline { steps, protocol, chance: fastrand::u64(..), replies: Replies::default(), done },
        );
        // Without an answer the node is stopping, and the outcome is unknown.
        replies.await.unwrap_or_else(|_| Answer {
            replies: format!("-{}\r\n", Error::Uncertain).into_bytes().into(),
            fate: Fate::Unknown,
        })
    }

    /// The cluster as this node sees it.
    pub fn status(&self) -> Status {
        self.node.status()
    }

    /// The log clock, estimated at this moment, in milliseconds since the Unix epoch.
    pub fn clock_ms(&self) -> u64 {
        self.node.clock_ms()
    }

    /// The node, for administration.
    pub fn node(&self) -> &Node<Machine> {
        &self.node
    }
}

/// Whether reads at this level see all writes acknowledged before.
pub fn is_linearizable(level: ReadLevel) -> bool {
    matches!(level, ReadLevel::Linearizable | ReadLevel::Lease)
}
