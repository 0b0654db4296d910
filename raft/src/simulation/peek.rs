//! A node as an observer outside of the simulated world sees it.

use std::collections::BTreeMap;

use openraft::{ServerState, async_runtime::watch::WatchReceiver};

use crate::{Machine, Node, NodeId, types::GROUP};

/// The place of an entry in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct Position {
    pub term: u64,
    pub index: u64,
}

/// A node at one moment.
#[derive(Clone, Debug)]
pub struct Peek {
    /// Its current term.
    pub term: u64,
    /// Whether it is the leader of that term.
    pub leads: bool,
    /// The last entry of its log.
    pub last: Option<Position>,
    /// The last entry that it has applied.
    pub applied: Option<Position>,
    /// The log clock as it would stamp now, in milliseconds since the Unix epoch.
    pub clock_ms: u64,
    /// How many sets of voters must agree: more than one while the membership changes.
    pub configurations: usize,
    /// The number of the life that its disk is in.
    pub life: u64,
    /// The newest lives of other nodes' disks that it has met.
    pub met: BTreeMap<NodeId, u64>,
}

impl<M: Machine> Node<M> {
    /// Looks inside.
    pub fn peek(&self) -> Peek {
        let metrics = self.core.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let vote = metrics.vote;
        let last = self.core.log.store(GROUP).group.log.lock().last_log_id();
        let applied = self.core.applier.paused(|_, progress| progress.last);
        let position = |id: crate::types::LogId| Position { term: id.leader_id.term, index: id.index };
        Peek {
            term: vote.leader_id.term,
            leads: metrics.state == ServerState::Leader,
            last: last.map(position),
            applied: applied.map(position),
            clock_ms: self.clock_ms(),
            configurations: metrics.membership_config.membership().get_joint_config().len(),
            life: self.core.identity.life(),
            met: self.core.identity.met(),
        }
    }

    /// Whether this id was removed from the cluster: it is never given again.
    pub fn has_retired(&self, id: NodeId) -> bool {
        self.core.applier.paused(|_, progress| progress.retired.contains(&id))
    }

    /// The terms of the entries of its log from an index on, in order, with their indexes and checksums of
    /// their content where it is in memory.
    pub fn peek_log(&self, from: u64) -> Vec<(Position, Option<u32>)> {
        self.core.log.store(GROUP).group.log.lock().peek(from)
    }
}
