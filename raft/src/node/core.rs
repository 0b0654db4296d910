//! The state that the parts of a running node share, and the search for the leader. openraft keeps naming the
//! leader that it last followed, so whether that leader is still there is tracked apart from it
//! (`contact.rs`).

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::{
    Machine, NodeConfig, NodeId, Unavailable,
    agreement::Agreements,
    chance,
    clock::Clock,
    elections::{Elections, contact::Contact, timing::Timing},
    identity::Identity,
    log::{Log, LogStore},
    net::{
        admission::Admission,
        frame::Kind,
        interest::Interest,
        peer::{CallError, Peer},
    },
    node::peer_table::PeerTable,
    proposals::{
        batch::Forwarded,
        entry::{self, Pace, Raise},
        group::{Group, Responder},
        propose::Proposer,
    },
    reads::rounds::{Confirmed, Rounds},
    snapshot::{
        checkpoint::Checkpointer,
        transfer::{Receiver, Sender},
    },
    space::{Space, room::Rooms},
    state::{adapter::StateMachine, applier::Applier, level},
    types::{GROUP, Metrics, Payload, TypeConfig},
};

pub(crate) type Raft<M> = openraft::Raft<TypeConfig, StateMachine<M>>;

/// One running node with its one group.
pub(crate) struct Core<M: Machine> {
    pub config: NodeConfig,
    pub identity: Arc<Identity>,
    pub table: Arc<PeerTable>,
    pub raft: Raft<M>,
    pub log: Log,
    /// The group's log, which holds its vote.
    pub votes: LogStore,
    pub clock: Arc<Clock>,
    pub applier: Arc<Applier<M>>,
    pub proposer: Arc<Proposer<M::Local>>,
    pub checkpointer: Arc<Checkpointer<M>>,
    pub snapshots: Arc<Sender<M>>,
    pub receiver: Receiver,
    pub reads: Rounds,
    pub ticks: Rounds,
    /// What the last read round confirmed.
    pub confirmed: Mutex<Option<Confirmed>>,
    /// Held while a change of the membership is under way.
    pub changing: Semaphore,
    /// Leader only: whether followers are waiting to hear of commits.
    pub interest: Arc<Interest>,
    /// Whether the members' logs and states agree, and what follows for this node.
    pub agreements: Agreements,
    /// What the members' disks have room for.
    pub rooms: Rooms,
    /// The leader as openraft last reported it, if it was heard from recently.
    pub leader: watch::Sender<Option<NodeId>>,
    /// When the leader was last heard from: openraft takes the leader that this node last followed for the
    /// present one, whether or not it is still there.
    pub contact: Arc<Contact>,
    /// The timeouts.
    pub timing: Arc<Timing>,
    pub elections: Elections,
    /// The connections that peers have made.
    pub admission: Admission,
    /// What the formation of the cluster is waiting for.
    pub forming: Mutex<Option<String>>,
    /// Counts changes of role, leader and membership.
    pub changes: watch::Sender<u64>,
    /// Whether a linearizable read has succeeded since the leader was last unknown.
    pub caught_up: AtomicBool,
    pub stop: watch::Sender<bool>,
    /// Pages that were set aside before this start, or at it.
    pub set_aside: Vec<PathBuf>,
    pub read_rounds: AtomicU64,
    pub leader_changes: AtomicU64,
}

impl<M: Machine> Core<M> {
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.config.request_timeout_ms)
    }

    /// Room on this node's disk.
    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.table.platform.space
    }

    pub(crate) fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow_watched().clone()
    }

    pub(crate) fn is_leader(&self) -> bool {
        *self.leader.borrow() == Some(self.config.id)
    }

    /// The connection to a member.
    pub(crate) fn peer(&self, id: NodeId) -> Option<Arc<Peer>> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        match metrics.membership_config.membership().get_node(&id) {
            Some(node) => Some(self.table.at(id, &node.peer)),
            None => self.table.known(id),
        }
    }

    /// Starts a search for the leader that lasts for as long as a request may take.
    pub(crate) fn search_leader(&self) -> LeaderSearch<'_, M> {
        LeaderSearch {
            core: self,
            leader: self.leader.subscribe(),
            deadline: tokio::time::Instant::now() + self.timeout(),
            answered: false,
        }
    }

    /// Appends one tick, an entry without proposals, which moves the clock. Returns its index.
    pub(crate) async fn tick_round(&self) -> Result<u64, Unavailable> {
        tokio::select! {
            biased;
            why = self.contact.refused() => Err(why),
            index = self.tick_somewhere() => index,
        }
    }

    async fn tick_somewhere(&self) -> Result<u64, Unavailable> {
        let mut search = self.search_leader();
        loop {
            let index = match search.next().await? {
                Leader::Here => self.append_tick().await,
                // An empty batch asks for a tick. An extra tick does no harm, so this may be retried.
                Leader::At(peer) => self.ask_for_index(&peer, Kind::Forward).await,
            };
            if let Some(index) = index {
                return Ok(index);
            }
        }
    }

    /// Asks the leader for a log index, with a call without a body. None if it does not lead, does not
    /// answer, or is replaced meanwhile: a leader that vanished silently must not keep readers waiting.
    pub(crate) async fn ask_for_index(&self, leader: &Peer, kind: Kind) -> Option<u64> {
        let answer = tokio::select! {
            biased;
            answer = leader.call(kind, GROUP, &[], self.timeout()) => answer.ok()?,
            () = self.leader_is_not(Some(leader.id())) => return None,
        };
        let (index, clock_ms) = answer.split_first_chunk::<8>()?;
        if let Ok(clock_ms) = clock_ms.try_into() {
            self.clock.learn_ms(u64::from_le_bytes(clock_ms));
        }
        Some(u64::from_le_bytes(*index))
    }

    async fn append_tick(&self) -> Option<u64> {
        let written = self.raft.client_write(self.empty_entry(None)).await.ok()?;
        Some(written.log_id.index)
    }

    /// An entry without proposals.
    pub(crate) fn empty_entry(&self, pace: Option<Pace>) -> Payload {
        let mut payload = Vec::new();
        self.head(pace).put(&mut payload);
        Payload(payload.into())
    }

    /// The head of the next entry: everything but its proposals.
    pub(crate) fn head(&self, pace: Option<Pace>) -> entry::Head {
        let raise = self.raise();
        let level = raise.map_or(self.applier.level(), |raise| raise.level);
        let mut stamp = self.clock.stamp();
        if level < level::DISTANCE_LEVEL {
            stamp.ahead_ms = 0;
        }
        entry::Head { stamp, raise, pace, is_checkpoint: false }
    }

    /// The level at which the next entry will be applied.
    pub(crate) fn next_level(&self) -> u32 {
        self.raise().map_or(self.applier.level(), |raise| raise.level)
    }

    /// The level to which the next entry raises the group, if it can be raised.
    fn raise(&self) -> Option<Raise> {
        let (level, known) = (self.applier.level(), self.applier.machine.apply_level_max());
        if level >= known {
            return None;
        }
        let metrics = self.raft.server_metrics();
        let common = level::common(metrics.borrow_watched().membership_config.membership().nodes())?;
        let raised = common.min(known);
        (raised > level).then(|| Raise { level: raised, entropy: chance::entropy() })
    }
}

/// Where the leader is.
pub(crate) enum Leader {
    Here,
    At(Arc<Peer>),
}

/// A search for the leader that continues across leadership changes until its deadline.
pub(crate) struct LeaderSearch<'a, M: Machine> {
    core: &'a Core<M>,
    leader: watch::Receiver<Option<NodeId>>,
    deadline: tokio::time::Instant,
    /// Whether a leader was returned already: it refused, or did not answer.
    answered: bool,
}

impl<M: Machine> LeaderSearch<'_, M> {
    /// The leader as currently known. Later calls first wait for a change, or for a moment.
    pub(crate) async fn next(&mut self) -> Result<Leader, Unavailable> {
        let mut wait = self.answered;
        loop {
            if let Some(why) = self.core.contact.refusal() {
                return Err(why);
            }
            if wait {
                // A change, or a moment: the refusal may have come from a node that lags.
                let _ = tokio::time::timeout(Duration::from_millis(20), self.leader.changed()).await;
            }
            if tokio::time::Instant::now() >= self.deadline {
                return Err(if self.answered { Unavailable::NoQuorum } else { Unavailable::NoLeader });
            }
            // Not held while openraft's metrics are borrowed: `tasks::follow` holds those when it changes the
            // leader.
            let known = *self.leader.borrow_and_update();
            let leader = match known {
                Some(id) if id == self.core.config.id => Some(Leader::Here),
                Some(id) => self.core.peer(id).map(Leader::At),
                None => None,
            };
            if let Some(leader) = leader {
                self.answered = true;
                return Ok(leader);
            }
            wait = true;
        }
    }
}

impl<M: Machine> Group for Core<M> {
    fn leader(&self) -> Option<NodeId> {
        *self.leader.borrow()
    }

    async fn leader_is_not(&self, leader: Option<NodeId>) {
        // Cannot fail: the sender lives in `self`.
        let _ = self.leader.subscribe().wait_for(|present| *present != leader).await;
    }

    fn terms(&self) -> (u64, u64) {
        let vote = self.raft.server_metrics().borrow_watched().vote;
        (vote.leader_id.term, self.applier.term())
    }

    fn begin_entry(&self, out: &mut Vec<u8>) {
        self.head(None).put(out);
    }

    async fn append(&self, payload: Payload, responder: Responder) -> Result<(), ()> {
        self.raft.client_write_ff(payload, Some(responder)).await.map_err(|_| ())
    }

    async fn forward(
        &self,
        to: NodeId,
        batch: Bytes,
        timeout: Duration,
        begin: impl FnOnce() -> bool + Send,
    ) -> Result<Forwarded, CallError> {
        let peer = self
            .peer(to)
            .ok_or_else(|| CallError::NotSent(std::io::Error::other("the leader's address is not known")))?;
        let answer = peer.call_once_connected(Kind::Forward, GROUP, &batch, timeout, begin).await?;
        Ok(Forwarded::of(&answer))
    }
}
