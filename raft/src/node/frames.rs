//! What a node answers to the frames of its peers.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{raft::AppendEntriesResponse, type_config::alias::SnapshotOf};

use crate::{
    GroupId, Machine,
    codec::put_vote,
    net::{
        frame::Kind,
        handshake::Hello,
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
        let refusal = if hello.to == ours.node_id {
            self.identity.judge_caller(hello)
        } else {
            Some(format!("this is node {}, not node {}", ours.node_id, hello.to))
        };
        let went_back = self.identity.old_disk_of(hello).filter(|_| refusal.is_some());
        Hello { refusal: refusal.unwrap_or_default(), went_back: went_back.unwrap_or_default(), ..ours }
    }

    async fn accepted(&self, hello: &Hello) -> Result<(), String> {
        self.identity.learn(hello).await
    }

    fn parted(&self, hello: &Hello) {
        self.identity.hear_of_older_disk(hello);
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
                    _ => {
                        self.elections.rivals.asks(&request);
                        self.raft.pre_vote(request).await.map_err(text)?
                    }
                };
                messages::put_vote_response(&mut answer, &response, self.clock.live_ms().unwrap_or(0));
            }
            Kind::TransferLeader => {
                let request = messages::transfer_request(&body).map_err(text)?;
                self.elections.handed_over(request.from_leader());
                let accepted = self.raft.handle_transfer_leader(request).await.map_err(text)?.is_ok();
                answer.push(u8::from(accepted));
            }
            Kind::SnapshotBegin => {
                let announced = Announced::decode(&body).map_err(text)?;
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

impl<M: Machine> Core<M> {
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
