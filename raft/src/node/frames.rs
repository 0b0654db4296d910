//! What a node answers to the frames of its peers.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{raft::AppendEntriesResponse, type_config::alias::SnapshotOf};

use crate::{
    GroupId, Machine, NodeId,
    codec::put_vote,
    net::{
        frame::Kind,
        handshake::Hello,
        horizon::Horizon,
        messages::{self, AppendRequest, AppendResult},
        peer::Greeter,
        serve::Handler,
    },
    node::core::Core,
    snapshot::{
        content::SnapshotData,
        recover,
        transfer::{self, Announced},
    },
    types::{GROUP, TypeConfig},
};

impl<M: Machine> Handler for Core<M> {
    fn greet(&self, hello: &Hello) -> Hello {
        let ours = self.identity.hello(hello.node_id);
        let refusal = match hello.check() {
            Err(why) => Some(why),
            Ok(()) if hello.to != ours.node_id => {
                Some(format!("this is node {}, not node {}", ours.node_id, hello.to))
            }
            Ok(()) => self.identity.judge_caller(hello).or_else(|| self.unknown(hello)),
        };
        let Some(refusal) = refusal else { return ours };
        ours.refuse(hello, refusal, self.identity.old_disk_of(hello))
    }

    async fn accepted(&self, hello: &Hello) -> Result<(), String> {
        self.identity.learn(hello).await
    }

    fn parted(&self, first: &Hello, second: &Hello) {
        self.identity.parted(first, second);
    }

    fn judgement(&self) -> u64 {
        Greeter::judgement(&*self.identity)
    }

    fn objection(&self, hello: &Hello) -> Option<String> {
        self.identity.judge(hello)
    }

    fn names(&self, hello: &Hello) -> bool {
        self.identity.names(hello)
    }

    /// It may have become a member while this node was away, and may lead: so it is heard where there is no
    /// other leader with a majority.
    fn unknown(&self, hello: &Hello) -> Option<String> {
        if !self.identity.has_members() || self.identity.names(hello) {
            return None;
        }
        let (id, leader) = (hello.node_id, self.sound_leader());
        leader.filter(|leader| *leader != id).map(|leader| {
            format!(
                "node {id} is not a member as far as node {} knows, which follows node {leader}",
                self.config.id
            )
        })
    }

    fn check_append(&self, from: &Hello, request: &AppendRequest) -> Result<(), String> {
        self.horizon(from).check_append(from.node_id, request)
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

    async fn call(
        self: &Arc<Self>,
        from: &Hello,
        kind: Kind,
        group: GroupId,
        body: Bytes,
    ) -> Result<Vec<u8>, String> {
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
                self.check_append(from, &request)?;
                self.check_history(&request);
                self.contact.heard(&request.vote);
                let response: AppendEntriesResponse<TypeConfig> =
                    self.raft.append_entries(request).await.map_err(text)?;
                messages::put_append_response(&mut answer, &response);
            }
            Kind::Vote | Kind::PreVote => answer = self.answer_candidate(from, kind, &body).await?,
            Kind::TransferLeader => {
                let request = messages::transfer_request(&body).map_err(text)?;
                self.horizon(from).check_claim(from.node_id, request.from_leader(), request.last_log_id())?;
                self.elections.handed_over(request.from_leader());
                let accepted = self.raft.handle_transfer_leader(request).await.map_err(text)?.is_ok();
                answer.push(u8::from(accepted));
            }
            Kind::SnapshotBegin => {
                let announced = Announced::decode(&body).map_err(text)?;
                self.horizon(from).check_claim(from.node_id, &announced.vote, announced.last.as_ref())?;
                self.check_snapshot(&announced);
                answer = self.receiver.begin(announced).await?;
            }
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
                    // A follower that was there before the clock began to move has not learnt it from anyone
                    // else.
                    answer.extend_from_slice(&self.clock.stamp().clock_ms.to_le_bytes());
                }
            }
            Kind::Admin => answer = self.answer_admin(&body).await,
            Kind::Report => answer = self.answer_report(from, &body)?,
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

impl<M: Machine> Core<M> {
    /// What the sender of this greeting may say of terms and indexes.
    fn horizon(&self, from: &Hello) -> Horizon {
        if self.identity.names(from) { Horizon::of(&self.votes) } else { Horizon::of_unknown(&self.votes) }
    }

    /// Answers a request for a vote or a pre-vote.
    async fn answer_candidate(&self, from: &Hello, kind: Kind, body: &[u8]) -> Result<Vec<u8>, String> {
        let request = messages::vote_request(body).map_err(text)?;
        self.horizon(from).check_vote_request(from.node_id, &request)?;
        let response = match kind {
            Kind::Vote => self.raft.vote(request).await.map_err(text)?,
            _ => {
                self.elections.rivals.asks(&request);
                self.raft.pre_vote(request).await.map_err(text)?
            }
        };
        let mut answer = Vec::new();
        messages::put_vote_response(&mut answer, &response, self.clock.live_ms().unwrap_or(0));
        Ok(answer)
    }

    /// The leader that this node follows, or is, if that one has a majority as far as this node knows.
    fn sound_leader(&self) -> Option<NodeId> {
        let leader = *self.leader.borrow();
        leader.filter(|leader| match *leader == self.config.id {
            true => self.has_majority(&self.metrics()),
            false => self.contact.complaint(*leader).is_none(),
        })
    }

    /// The end of a snapshot transfer: installs what was received. The answer is this node's vote, or a
    /// refusal.
    async fn install(&self, body: &[u8]) -> Result<Vec<u8>, String> {
        let Some((vote, meta, received)) = self.receiver.end(body).await? else {
            return Ok(vec![transfer::REFUSED]);
        };
        let snapshot = SnapshotData::Received(received);
        let snapshot = SnapshotOf::<TypeConfig, SnapshotData> { meta, snapshot };
        let response = self.raft.install_full_snapshot(vote, snapshot).await.map_err(text)?;
        let mut answer = Vec::new();
        put_vote(&mut answer, &response.vote);
        Ok(answer)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
