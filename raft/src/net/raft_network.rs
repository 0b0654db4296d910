//! openraft's network traits over [`Peer`]: encode, call, decode.
//!
//! Replication is a stream with many requests in flight, bounded in number and bytes; heartbeats have a
//! client of their own, are single calls, and use another connection, so that they never queue behind
//! entries.

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use openraft::{
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{
        Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
        RaftNetworkFactory,
    },
    raft::{
        SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotOf,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    frame::{self, Kind},
    heartbeat::LateAnswer,
    horizon::Horizon,
    interest::Interest,
    messages::{self, AppendRequest, AppendResult},
    peer::{CallError, Link, Peer},
};
use crate::{
    GroupId,
    clock::Clock,
    codec::CodecError,
    elections::{rivals::Rivals, timing::Timing},
    log::LogStore,
    snapshot::{content::SnapshotData, transfer::SnapshotSender},
    types::{MemberNode, TypeConfig, Vote},
};

/// The most append requests on one stream that are sent and not answered.
const IN_FLIGHT_MAX: usize = 64;
/// Their bytes; one request is always allowed.
const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;

type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type BoxStream<'a, T> = std::pin::Pin<Box<dyn Stream<Item = T> + Send + 'a>>;
type RpcError = RPCError<TypeConfig>;

/// How long a commit index may wait for entries to travel with.
const HOLD: Duration = Duration::from_millis(1);

/// How much longer while answers are outstanding: over a long link some always are.
const HOLD_BUSY: Duration = Duration::from_millis(4);

/// Finds the peer of a node id, and keeps it.
pub(crate) trait Peers: Send + Sync + 'static {
    fn peer(&self, id: u64, node: &MemberNode) -> Arc<Peer>;
}

/// Makes a client for each peer of one group.
pub(crate) struct Factory {
    pub group: GroupId,
    pub peers: Arc<dyn Peers>,
    pub snapshots: Arc<dyn SnapshotSender>,
    pub interest: Arc<Interest>,
    pub clock: Arc<Clock>,
    pub timing: Arc<Timing>,
    pub rivals: Arc<Rivals>,
    pub votes: LogStore,
}

/// One group's client of one peer.
#[derive(Clone)]
pub(crate) struct Client {
    group: GroupId,
    peer: Arc<Peer>,
    snapshots: Arc<dyn SnapshotSender>,
    interest: Arc<Interest>,
    clock: Arc<Clock>,
    timing: Arc<Timing>,
    rivals: Arc<Rivals>,
    votes: LogStore,
    /// Only in a client for heartbeats.
    late: Option<LateAnswer>,
}

impl Factory {
    fn client(&self, target: u64, node: &MemberNode, heartbeat: bool) -> Client {
        Client {
            group: self.group,
            peer: self.peers.peer(target, node),
            snapshots: self.snapshots.clone(),
            interest: self.interest.clone(),
            clock: self.clock.clone(),
            timing: self.timing.clone(),
            rivals: self.rivals.clone(),
            votes: self.votes.clone(),
            late: heartbeat.then(LateAnswer::default),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &MemberNode) -> Client {
        self.client(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &MemberNode) -> Client {
        self.client(target, node, true)
    }
}

fn unreachable(error: impl std::fmt::Display) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(error.to_string()))
}

fn malformed(error: CodecError) -> RpcError {
    unreachable(format_args!("the peer's answer is malformed: {error}"))
}

/// A peer that has seen another vote than this node's says so. openraft gives way to a higher one and keeps it,
/// so one beyond reason is no answer.
fn sane(log: &LogStore, vote: &Vote) -> Result<(), RpcError> {
    Horizon::of(log).check_vote(vote).map_err(|why| {
        tracing::warn!(why, "a peer's answer is not believed");
        unreachable(why)
    })
}

fn sane_result(log: &LogStore, result: AppendResult) -> Result<AppendResult, RpcError> {
    if let Err(StreamAppendError::HigherVote(vote)) = &result {
        sane(log, vote)?;
    }
    Ok(result)
}

impl From<CallError> for RpcError {
    fn from(error: CallError) -> Self {
        unreachable(error)
    }
}

impl Client {
    /// Sends a heartbeat. Returns its answer, or else the last one that came late.
    async fn heartbeat(
        self,
        request: AppendRequest,
        ttl: Duration,
        late: LateAnswer,
    ) -> Result<AppendResult, RpcError> {
        let (sender, answer) = oneshot::channel();
        let came_late = late.clone();
        // It continues when its time is up.
        tokio::spawn(async move {
            let answer = self.ask_follower(request).await;
            if let Err(Ok(result)) = sender.send(answer) {
                came_late.came(result);
            }
        });
        match tokio::time::timeout(ttl, answer).await {
            Ok(Ok(answer)) => {
                // An earlier late answer no longer matters.
                late.take();
                answer
            }
            Ok(Err(_)) => Err(unreachable("the node is stopping")),
            Err(_) => late.take().map_or_else(|| Err(unreachable("no answer in time")), Ok),
        }
    }

    async fn ask_follower(&self, request: AppendRequest) -> Result<AppendResult, RpcError> {
        let mut body = Vec::with_capacity(128);
        messages::put_append_request(&mut body, &request);
        let limit = self.timing.election_max();
        let answer = self.peer.call(Kind::Append, self.group, &body, limit).await?;
        let response = messages::append_response(&answer).map_err(malformed)?;
        let last = request.entries.last().map(|entry| entry.log_id);
        // A follower cannot report a conflict where there is no previous log id.
        if response.is_conflict() && request.prev_log_id.is_none() {
            return Err(unreachable("the peer's answer contradicts the request"));
        }
        sane_result(
            &self.votes,
            response.into_stream_result(request.prev_log_id, last.or(request.prev_log_id)),
        )
    }

    /// Decodes the answer to a request for a vote, and learns the clock of the node that gives it.
    fn voted(&self, answer: &[u8]) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let (response, clock_ms) = messages::vote_response(answer).map_err(malformed)?;
        sane(&self.votes, &response.vote)?;
        if clock_ms > 0 {
            self.clock.learn_ms(clock_ms);
        }
        Ok(response)
    }

    /// Calls for as long as openraft listens.
    async fn call(&self, kind: Kind, body: &[u8], option: &RPCOption) -> Result<Bytes, RpcError> {
        Ok(self.peer.call(kind, self.group, body, option.hard_ttl()).await?)
    }
}

/// A replication stream: requests out, results back in the same order.
struct Replication<S> {
    requests: S,
    results: mpsc::UnboundedReceiver<Bytes>,
    link: Link,
    id: u64,
    group: GroupId,
    /// The sizes of the requests that are not answered.
    in_flight: VecDeque<usize>,
    in_flight_bytes: usize,
    /// A request without entries, which only carries a commit index: see `take`.
    held: Option<AppendRequest>,
    /// When `held` is sent at the latest, while nothing is in flight; otherwise a little later.
    held_until: tokio::time::Instant,
    interest: Arc<Interest>,
    votes: LogStore,
    requests_ended: bool,
    failed: bool,
}

impl<S> Drop for Replication<S> {
    fn drop(&mut self) {
        self.link.forget(self.id);
        // If the connection is closed, the stream ends on the other side too.
        let _ = self.link.send(frame::encode(Kind::StreamEnd, self.id, self.group, &[]));
    }
}

impl<S: Stream<Item = AppendRequest> + Unpin> Replication<S> {
    /// Connects, and sends the first of the requests.
    async fn open(client: Client, first: Option<AppendRequest>, rest: S) -> Result<Replication<S>, RpcError> {
        let Client { group, peer, interest, timing, votes, .. } = client;
        let link = tokio::time::timeout(timing.election_max(), peer.bulk_link())
            .await
            .map_err(|_| unreachable("connecting took too long"))?
            .map_err(unreachable)?;
        let id = peer.next_id();
        let mut replication = Replication {
            requests: rest,
            results: link.expect_stream(id).map_err(unreachable)?,
            link,
            id,
            group,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            held: None,
            held_until: tokio::time::Instant::now(),
            interest,
            votes,
            requests_ended: first.is_none(),
            failed: false,
        };
        if let Some(first) = first {
            replication.send(&first)?;
        }
        Ok(replication)
    }

    fn results(self) -> impl Stream<Item = Result<AppendResult, RpcError>> {
        stream::unfold(self, async |mut replication| {
            let result = replication.next().await?;
            Some((result, replication))
        })
    }

    fn may_send(&self) -> bool {
        !self.requests_ended
            && self.in_flight.len() < IN_FLIGHT_MAX
            && (self.in_flight.is_empty() || self.in_flight_bytes < IN_FLIGHT_BYTES_MAX)
    }

    /// Takes the next request. One without entries only tells the peer what is committed. It is held: the
    /// next one with entries, which carries the same commit index or a later one, replaces it. Its own answer
    /// is not missed, since openraft counts a request as answered when a later one is. The peer waits for it
    /// only while it serves clients of its own, and even then not for long.
    fn take(&mut self, request: AppendRequest) -> Result<(), RpcError> {
        if request.entries.is_empty() && (!self.in_flight.is_empty() || !self.interest.is_there()) {
            self.held = Some(request);
            self.held_until = tokio::time::Instant::now() + HOLD;
            return Ok(());
        }
        self.held = None;
        self.send(&request)
    }

    /// A result has come.
    fn answered(&mut self) -> Result<(), RpcError> {
        self.in_flight_bytes -= self.in_flight.pop_front().unwrap_or(0);
        if self.in_flight.is_empty() && self.interest.is_there() { self.release() } else { Ok(()) }
    }

    /// Sends the request that is held.
    fn release(&mut self) -> Result<(), RpcError> {
        match self.held.take() {
            Some(held) => self.send(&held),
            None => Ok(()),
        }
    }

    fn send(&mut self, request: &AppendRequest) -> Result<(), RpcError> {
        let mut out = Vec::with_capacity(128 + messages::copied_bytes(request));
        frame::begin(&mut out, Kind::Stream, self.id, self.group);
        let rest = messages::put_append_request_head(&mut out, request);
        let bytes = out.len() + rest.len();
        self.in_flight.push_back(bytes);
        self.in_flight_bytes += bytes;
        self.link.send(frame::finish_with(out, rest)).map_err(unreachable)
    }

    async fn next(&mut self) -> Option<Result<AppendResult, RpcError>> {
        if self.failed {
            return None;
        }
        let result = self.next_result().await?;
        // openraft starts a new stream after an error of any kind.
        self.failed = !matches!(result, Ok(Ok(_)));
        Some(result)
    }

    async fn next_result(&mut self) -> Option<Result<AppendResult, RpcError>> {
        loop {
            let is_idle = self.in_flight.is_empty();
            let sent = if self.requests_ended && is_idle {
                match self.held.take() {
                    Some(held) => self.send(&held),
                    None => return None,
                }
            } else {
                let (may_send, is_held) = (self.may_send(), self.held.is_some());
                tokio::select! {
                    biased;
                    result = self.results.recv(), if !is_idle => {
                        let Some(body) = result else { return Some(Err(unreachable("the connection was lost"))) };
                        if let Err(error) = self.answered() { return Some(Err(error)) }
                        let result = messages::append_result(&body).map_err(malformed);
                        return Some(result.and_then(|result| sane_result(&self.votes, result)));
                    }
                    request = self.requests.next(), if may_send => match request {
                        Some(request) => self.take(request),
                        None => {
                            self.requests_ended = true;
                            Ok(())
                        }
                    },
                    () = held_enough(self.held_until, &self.interest), if is_idle && is_held => self.release(),
                    () = tokio::time::sleep_until(self.held_until + HOLD_BUSY), if !is_idle && is_held && may_send => {
                        self.release()
                    }
                }
            };
            if let Err(error) = sent {
                return Some(Err(error));
            }
        }
    }
}

/// Returns when a request must not be held any more.
async fn held_enough(until: tokio::time::Instant, interest: &Interest) {
    tokio::select! {
        biased;
        () = tokio::time::sleep_until(until) => {}
        () = interest.next() => {}
    }
}

impl NetStreamAppend<TypeConfig> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendRequest> + Send + Unpin + 'static,
    {
        let client = self.clone();
        if let Some(late) = self.late.clone() {
            let ttl = option.soft_ttl();
            return Box::pin(async move {
                let results = stream::once(async move {
                    let request = input.next().await.ok_or_else(|| unreachable("no heartbeat to send"))?;
                    client.heartbeat(request, ttl, late).await
                });
                Ok(Box::pin(results) as BoxStream<'s, _>)
            });
        }
        // Connecting waits for the first request, as that is what openraft delays after an error: otherwise a
        // peer that refuses connections would be asked without a pause.
        let results = stream::once(async move {
            let first = input.next().await;
            match Replication::open(client, first, input).await {
                Ok(replication) => replication.results().left_stream(),
                Err(error) => stream::once(std::future::ready(Err(error))).right_stream(),
            }
        });
        Box::pin(std::future::ready(Ok(Box::pin(results.flatten()) as BoxStream<'s, _>)))
    }
}

impl NetVote<TypeConfig> for Client {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let mut body = Vec::new();
        messages::put_vote_request(&mut body, &request);
        self.voted(&self.call(Kind::Vote, &body, &option).await?)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let asked = Instant::now();
        let mut body = Vec::new();
        messages::put_vote_request(&mut body, &request);
        let response = self.voted(&self.call(Kind::PreVote, &body, &option).await?)?;
        if response.vote_granted && self.rivals.is_outdone(&request, asked) {
            return Err(unreachable("this node gives way to another one that asked at the same time"));
        }
        Ok(response)
    }
}

impl NetTransferLeader<TypeConfig> for Client {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let mut body = Vec::new();
        messages::put_transfer_request(&mut body, &request);
        let answer = self.call(Kind::TransferLeader, &body, &option).await?;
        Ok(match answer.first() {
            Some(1) => Ok(()),
            // The leader only needs to know that it was refused.
            _ => Err(TransferLeaderError::LogNotFlushed {
                expected: request.last_log_id().copied(),
                actual: None,
            }),
        })
    }
}

impl NetSnapshot<TypeConfig> for Client {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        _snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            result = self.snapshots.send(&self.peer, vote) => match result {
                Ok(vote) => match Horizon::of(&self.votes).check_vote(&vote) {
                    Ok(()) => Ok(SnapshotResponse::new(vote)),
                    Err(why) => Err(StreamingError::Unreachable(Unreachable::from_string(why))),
                },
                Err(why) => Err(StreamingError::Unreachable(Unreachable::from_string(why))),
            },
        }
    }
}

impl NetBackoff<TypeConfig> for Client {
    fn backoff(&self) -> Option<Backoff> {
        let delays = [20, 50, 100, 200].map(Duration::from_millis);
        Some(Backoff::new(delays.into_iter().chain(std::iter::repeat(Duration::from_millis(300)))))
    }
}
