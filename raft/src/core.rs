//! What the parts of a running node share, and what it does with frames from peers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    async_runtime::watch::WatchReceiver, raft::AppendEntriesResponse, type_config::alias::SnapshotOf,
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::{
    GroupId, Machine, NodeConfig, NodeId, Unavailable,
    address::is_unspecified,
    agreement::Agreements,
    chance,
    checkpoint::Checkpointer,
    clock::Clock,
    codec::put_vote,
    contact::Contact,
    elections::Elections,
    group::{Group, Responder},
    identity::Identity,
    level,
    log::{Log, LogStore},
    net::{
        frame::Kind,
        handshake::Hello,
        interest::Interest,
        messages::{self, AppendRequest, AppendResult},
        peer::{CallError, Greeter, Peer},
        raft_network::Peers,
        serve::Handler,
    },
    packet::{self, Forwarded, Pace, Raise},
    platform::Platform,
    propose::Proposer,
    reads::Confirmed,
    recover,
    room::Rooms,
    rounds::Rounds,
    snapshot::{self, Receiver, Sender, SnapshotData},
    space::Space,
    state::{Applier, StateMachine},
    timing::Timing,
    types::{MemberNode, Payload, TypeConfig},
};

pub(crate) type Raft<M> = openraft::Raft<TypeConfig, StateMachine<M>>;
pub(crate) type Metrics = openraft::metrics::RaftMetrics<TypeConfig>;

/// The only group at first.
pub(crate) const GROUP: GroupId = 0;

/// Connections to the peers, by node id. Kept apart from the rest so that nothing refers to itself.
pub(crate) struct PeerTable {
    pub platform: Platform,
    pub identity: Arc<Identity>,
    pub peers: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
    /// Where the operator says that they are.
    listed: BTreeMap<NodeId, String>,
}

impl PeerTable {
    pub(crate) fn new(platform: Platform, identity: Arc<Identity>, config: &NodeConfig) -> PeerTable {
        let listed = config.bootstrap.clone().unwrap_or_default();
        PeerTable { platform, identity, peers: Mutex::default(), listed }
    }

    /// Says where a peer may be, in the order in which it is looked for: where it says that it is, where it was when it last said
    /// so to all, and where the operator says that it is.
    fn place(&self, peer: &Peer, known: &str) {
        let listed = self.listed.get(&peer.id()).map(String::as_str);
        self.identity.with_told_address(peer.id(), |told| {
            let sound = |place: &str| !is_unspecified(place);
            peer.set_places([
                told,
                Some(known).filter(|place| sound(place)),
                listed.filter(|place| sound(place)),
            ]);
        });
    }

    /// The peer with this id, which was last known to be at this address.
    pub(crate) fn at(&self, id: NodeId, address: &str) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        let peer = peers.entry(id).or_insert_with(|| {
            Arc::new(Peer::new(
                id,
                address.to_owned(),
                self.platform.transport.clone(),
                self.identity.clone(),
            ))
        });
        self.place(peer, address);
        peer.clone()
    }

    /// Greets all other nodes, over connections of their own, and waits for their answers for so long. Who does not answer
    /// says nothing; what the others say is learnt. `acquaintances` are kept from one time to the next.
    pub(crate) async fn greet_all(
        &self,
        acquaintances: &mut BTreeMap<NodeId, Peer>,
        addresses: &BTreeMap<NodeId, String>,
        time: Duration,
    ) -> BTreeMap<NodeId, std::io::Result<()>> {
        let own_id = self.identity.node_id();
        for (id, address) in addresses.iter().filter(|(id, _)| **id != own_id) {
            let (transport, identity) = (&self.platform.transport, &self.identity);
            let peer = acquaintances
                .entry(*id)
                .or_insert_with(|| Peer::new(*id, address.clone(), transport.clone(), identity.clone()));
            self.place(peer, address);
        }
        let greetings =
            acquaintances.iter().filter(|(id, _)| addresses.contains_key(id)).map(|(id, peer)| async move {
                let greeted = tokio::time::timeout(time, peer.greet_anew()).await;
                (*id, greeted.unwrap_or_else(|_| Err(std::io::Error::other("it does not answer"))))
            });
        futures::future::join_all(greetings).await.into_iter().collect()
    }

    fn known(&self, id: NodeId) -> Option<Arc<Peer>> {
        self.peers.lock().get(&id).cloned()
    }
}

impl Peers for PeerTable {
    fn peer(&self, id: u64, node: &MemberNode) -> Arc<Peer> {
        self.at(id, &node.peer)
    }
}

/// One running node with its one group.
pub(crate) struct Core<M: Machine> {
    pub config: NodeConfig,
    pub identity: Arc<Identity>,
    pub table: Arc<PeerTable>,
    pub raft: Raft<M>,
    pub log: Log,
    /// The group's log, for its vote.
    pub votes: LogStore,
    pub clock: Arc<Clock>,
    pub applier: Arc<Applier<M>>,
    pub proposer: Arc<Proposer<M::Local>>,
    pub checkpointer: Arc<Checkpointer<M>>,
    pub snapshots: Arc<Sender<M>>,
    pub receiver: Receiver,
    pub reads: Rounds,
    pub ticks: Rounds,
    /// What the last read round has shown.
    pub confirmed: Mutex<Option<Confirmed>>,
    /// Held by the operator's change of the membership that is under way.
    pub changing: Semaphore,
    /// As the leader: of the followers in what is committed.
    pub interest: Arc<Interest>,
    /// Whether the members hold the same, and what follows for this node.
    pub agreements: Agreements,
    /// What the members have room for.
    pub rooms: Rooms,
    /// The leader as openraft last said, if it was heard lately.
    pub leader: watch::Sender<Option<NodeId>>,
    /// When the leader was last heard: openraft takes the one that this node last followed for the present one, whether it
    /// is there or not.
    pub contact: Arc<Contact>,
    /// The time-outs.
    pub timing: Arc<Timing>,
    pub elections: Elections,
    /// What the forming of the cluster waits for.
    pub forming: Mutex<Option<String>>,
    /// Counts changes of role, leader and membership.
    pub changes: watch::Sender<u64>,
    /// Whether a linearizable read has succeeded since the leader was last unknown.
    pub caught_up: AtomicBool,
    pub stop: watch::Sender<bool>,
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

    /// Starts looking for whoever leads, for as long as a request may take.
    pub(crate) fn search_leader(&self) -> LeaderSearch<'_, M> {
        LeaderSearch {
            core: self,
            leader: self.leader.subscribe(),
            deadline: tokio::time::Instant::now() + self.timeout(),
            answered: false,
        }
    }

    /// One tick: an entry without proposals, which moves the clock. Its index.
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
                // An empty packet asks for a tick. A tick more does no harm, so this may be retried.
                Leader::At(peer) => self.ask_for_index(&peer, Kind::Forward).await,
            };
            if let Some(index) = index {
                return Ok(index);
            }
        }
    }

    /// Asks the leader for a log index with a call without a body. None when it does not lead, does not answer, or
    /// another one leads meanwhile: one that is gone without a word must not keep readers waiting.
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

    /// The end of a snapshot's transfer: what came is installed. The answer is this node's vote, or a refusal.
    async fn install(&self, body: &[u8]) -> Result<Vec<u8>, String> {
        let Some((vote, meta, received)) = self.receiver.end(body).await? else {
            return Ok(vec![snapshot::REFUSED]);
        };
        let snapshot = SnapshotData::Received(received);
        let snapshot = SnapshotOf::<TypeConfig, SnapshotData> { meta, snapshot };
        let response = self.raft.install_full_snapshot(vote, snapshot).await.map_err(text)?;
        let mut answer = Vec::new();
        put_vote(&mut answer, &response.vote);
        Ok(answer)
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

    /// What the next entry says beside its proposals.
    pub(crate) fn head(&self, pace: Option<Pace>) -> packet::Head {
        let raise = self.raise();
        let level = raise.map_or(self.applier.level(), |raise| raise.level);
        let mut stamp = self.clock.stamp();
        if level < level::DISTANCE_LEVEL {
            stamp.ahead_ms = 0;
        }
        packet::Head { stamp, raise, pace, is_checkpoint: false }
    }

    /// The level by which the next entry will be applied.
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

/// A search for the leader that goes on while the leadership changes, until its time is up.
pub(crate) struct LeaderSearch<'a, M: Machine> {
    core: &'a Core<M>,
    leader: watch::Receiver<Option<NodeId>>,
    deadline: tokio::time::Instant,
    /// Whether a leader was returned already: it refused, or did not answer.
    answered: bool,
}

impl<M: Machine> LeaderSearch<'_, M> {
    /// The leader as it is known; when asked again, after a moment or after news.
    pub(crate) async fn next(&mut self) -> Result<Leader, Unavailable> {
        let mut wait = self.answered;
        loop {
            if let Some(why) = self.core.contact.refusal() {
                return Err(why);
            }
            if wait {
                // News, or a moment: the refusal may have come from a node that lags.
                let _ = tokio::time::timeout(Duration::from_millis(20), self.leader.changed()).await;
            }
            if tokio::time::Instant::now() >= self.deadline {
                return Err(if self.answered { Unavailable::NoQuorum } else { Unavailable::NoLeader });
            }
            // Not held while openraft's metrics are borrowed: `tasks::follow` has these when it changes the leader.
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
        // The sender lives in `self`.
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
        packet: Bytes,
        timeout: Duration,
        begin: impl FnOnce() -> bool + Send,
    ) -> Result<Forwarded, CallError> {
        let peer = self
            .peer(to)
            .ok_or_else(|| CallError::NotSent(std::io::Error::other("the leader's address is not known")))?;
        let answer = peer.call_once_connected(Kind::Forward, GROUP, &packet, timeout, begin).await?;
        Ok(Forwarded::of(&answer))
    }
}

impl<M: Machine> Handler for Core<M> {
    fn greet(&self, hello: &Hello) -> Hello {
        let ours = self.identity.hello(hello.node_id);
        let refusal = if hello.to == ours.node_id {
            self.identity.judge_caller(hello)
        } else {
            Some(format!("this is node {}, not node {}", ours.node_id, hello.to))
        };
        let went_back = self.identity.old_disk(hello.node_id).filter(|_| refusal.is_some());
        Hello { refusal: refusal.unwrap_or_default(), went_back: went_back.unwrap_or_default(), ..ours }
    }

    async fn accepted(&self, hello: &Hello) -> Result<(), String> {
        self.identity.learn(hello).await
    }

    fn judgement(&self) -> u64 {
        Greeter::judgement(&*self.identity)
    }

    fn objection(&self, hello: &Hello) -> Option<String> {
        self.identity.judge(hello)
    }

    fn confirm(&self, group: GroupId) -> Vec<u8> {
        let mut answer = Vec::new();
        if group == GROUP
            && let Some(vote) = self.votes.vote()
        {
            put_vote(&mut answer, &vote);
        }
        answer
    }

    async fn call(self: &Arc<Self>, kind: Kind, group: GroupId, body: Bytes) -> Result<Vec<u8>, String> {
        if group != GROUP {
            return Err(format!("there is no group {group}"));
        }
        if matches!(kind, Kind::Forward | Kind::ReadIndex) {
            self.interest.shown();
        }
        let mut answer = Vec::new();
        match kind {
            Kind::Append => {
                let request = messages::append_request(&body).map_err(text)?;
                self.check_history(&request);
                self.contact.heard(&request.vote);
                let response: AppendEntriesResponse<TypeConfig> =
                    self.raft.append_entries(request).await.map_err(text)?;
                messages::put_append_response(&mut answer, &response);
            }
            Kind::Vote | Kind::PreVote => {
                let request = messages::vote_request(&body).map_err(text)?;
                let response = match kind {
                    Kind::Vote => self.raft.vote(request).await.map_err(text)?,
                    _ => self.raft.pre_vote(request).await.map_err(text)?,
                };
                messages::put_vote_response(&mut answer, &response, self.clock.live_ms().unwrap_or(0));
            }
            Kind::TransferLeader => {
                let request = messages::transfer_request(&body).map_err(text)?;
                self.elections.handed_over(request.from_leader());
                let accepted = self.raft.handle_transfer_leader(request).await.map_err(text)?.is_ok();
                answer.push(u8::from(accepted));
            }
            Kind::SnapshotBegin => answer = self.receiver.begin(&body).await?,
            Kind::SnapshotPages => answer = self.receiver.pages(&body).await?,
            Kind::SnapshotEnd => answer = self.install(&body).await?,
            Kind::Forward if body.is_empty() => {
                // No index means that this node does not lead.
                if self.is_leader()
                    && let Ok(index) = self.ticks.join().await
                {
                    answer.extend_from_slice(&index.to_le_bytes());
                }
            }
            Kind::Forward => answer.push(self.proposer.accept(body).await as u8),
            Kind::ReadIndex => {
                if self.is_leader()
                    && let Ok(index) = self.reads.join().await
                {
                    answer.extend_from_slice(&index.to_le_bytes());
                    // A follower that was there before the clock began to move has heard it from nobody else.
                    answer.extend_from_slice(&self.clock.stamp().clock_ms.to_le_bytes());
                }
            }
            Kind::Admin => answer = self.answer_admin(&body).await,
            Kind::Report => answer = self.answer_report(&body)?,
            Kind::FetchPages => answer = recover::answer(&self.checkpointer, &body).await?,
            Kind::Hello | Kind::Stream | Kind::StreamEnd | Kind::Confirm | Kind::Ping => {
                return Err("not a call".into());
            }
        }
        Ok(answer)
    }

    fn append_stream(
        self: &Arc<Self>,
        _group: GroupId,
        requests: impl Stream<Item = AppendRequest> + Send + 'static,
    ) -> impl Stream<Item = AppendResult> + Send + 'static {
        let this = self.clone();
        let requests = requests.inspect(move |request| {
            this.check_history(request);
            this.contact.heard(&request.vote);
        });
        // A fatal error ends the stream; the node is stopping then.
        self.raft.stream_append(requests).filter_map(|result| std::future::ready(result.ok()))
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
