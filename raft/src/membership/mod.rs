//! Changes of the membership. Any member may be asked; what only the leader can do is forwarded to it as an
//! administrative request (JSON: rare, and easy to read in a trace). `formation.rs` makes the first
//! membership, `report.rs` is what the members tell each other, and `elections/handover.rs` has the transfers
//! of leadership.
//!
//! An id belongs to one disk: the disk's id is stored in the membership before the node votes, and an id that
//! was removed is never reused. One change at a time; what could leave the group without a majority is
//! refused.
//!
//! A change of the voters is two entries: both sets of voters, then the new one. A change that was begun
//! continues when its requester gives up, and is finished by the next leader if this one is lost in between.

pub(crate) mod formation;
pub(crate) mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use openraft::{
    ChangeMembers, Instant,
    async_runtime::watch::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use serde::{Deserialize, Serialize};

use crate::{
    AdminError, Machine, NodeId, Unavailable,
    elections::contact::HasMajority,
    identity::{
        DISK_ENDPOINT,
        address::{NODE_ID_MAX, check_address, check_endpoints, check_id},
    },
    net::{
        frame::Kind,
        peer::{CallError, Peer},
    },
    node::core::{Core, Leader},
    state::level,
    types::{GROUP, LogId, MemberNode, Metrics, TypeConfig},
};

/// How many entries behind a member may be and still count towards a majority.
const LAG_MAX: u64 = 256;

/// How long an operator's request waits before it checks again whether it may proceed.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// What only the leader can do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(crate) enum AdminRequest {
    /// Adds a learner, to be promoted.
    Add {
        id: NodeId,
        peer: String,
        /// The node's disk, if the node itself asks.
        #[serde(default)]
        disk: Option<String>,
    },
    Remove {
        id: NodeId,
    },
    Transfer {
        to: NodeId,
    },
    /// A member's own addresses.
    Publish {
        id: NodeId,
        peer: String,
        endpoints: BTreeMap<String, String>,
    },
    /// Makes the log clock wait for the wall clock, or ends that.
    CloseClock {
        close: bool,
    },
    /// Whether the leader has a majority.
    Majority,
}

/// Asks the leader. None if it does not answer.
pub(crate) async fn ask_for_majority(leader: &Peer, time: Duration) -> Option<HasMajority> {
    let body = serde_json::to_vec(&AdminRequest::Majority)
        .expect("a request has no maps with other keys than strings");
    let answer = leader.call(Kind::Admin, GROUP, &body, time).await.ok()?;
    Some(match serde_json::from_slice(&answer) {
        Ok(Answer::Done) => HasMajority::Yes,
        Ok(Answer::NoMajority) => HasMajority::No,
        _ => HasMajority::Unknown,
    })
}

/// The leader's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
enum Answer {
    Done,
    NotLeader,
    NoMajority,
    Busy,
    Conflict { detail: String },
    NotFound { detail: String },
    Invalid { detail: String },
    Unknown { detail: String },
}

impl Answer {
    fn of(result: Result<(), AdminError>) -> Answer {
        match result {
            Ok(()) => Answer::Done,
            Err(AdminError::NotLeader) => Answer::NotLeader,
            Err(AdminError::Busy) => Answer::Busy,
            Err(AdminError::Conflict(detail)) => Answer::Conflict { detail },
            Err(AdminError::NotFound(detail)) => Answer::NotFound { detail },
            Err(AdminError::Invalid(detail)) => Answer::Invalid { detail },
            Err(error) => Answer::Unknown { detail: error.to_string() },
        }
    }

    fn result(self) -> Result<(), AdminError> {
        Err(match self {
            Answer::Done => return Ok(()),
            Answer::NotLeader => return Err(AdminError::NotLeader),
            Answer::NoMajority => AdminError::Unavailable(Unavailable::NoQuorum),
            Answer::Busy => return Err(AdminError::Busy),
            Answer::Conflict { detail } => AdminError::Conflict(detail),
            Answer::NotFound { detail } => AdminError::NotFound(detail),
            Answer::Invalid { detail } => AdminError::Invalid(detail),
            Answer::Unknown { detail } => AdminError::Unknown(detail),
        })
    }
}

pub(crate) fn conflict(text: impl Into<String>) -> AdminError {
    AdminError::Conflict(text.into())
}

fn invalid(text: String) -> AdminError {
    AdminError::Invalid(text)
}

/// Why a member cannot be stored in the log like this.
fn check_node(node: &MemberNode) -> Result<(), String> {
    check_address(&node.peer).and_then(|()| check_endpoints(&node.endpoints))
}

/// An id that is none of these, and higher than all of them if possible.
fn free_id(used: impl Iterator<Item = NodeId>) -> NodeId {
    let used: BTreeSet<NodeId> = used.collect();
    let next = used.last().map_or(1, |highest| highest.saturating_add(1));
    let lowest = || (1..).find(|id| !used.contains(id)).expect("not all ids are used");
    if next <= NODE_ID_MAX { next } else { lowest() }
}

fn refusal(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> AdminError {
    let error = match error {
        RaftError::APIError(error) => error,
        RaftError::Fatal(error) => return AdminError::Unknown(error.to_string()),
    };
    match error {
        ClientWriteError::ForwardToLeader(_) => AdminError::NotLeader,
        ClientWriteError::LogEntryDiscarded(_) => AdminError::Unknown("the leader changed meanwhile".into()),
        ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => AdminError::Busy,
        ClientWriteError::ChangeMembershipError(ChangeMembershipError::LearnerNotFound(error)) => {
            AdminError::NotFound(error.to_string())
        }
        other => conflict(other.to_string()),
    }
}

impl<M: Machine> Core<M> {
    /// Has the leader carry out a request, wherever it is.
    pub(crate) async fn administer(self: &Arc<Self>, request: AdminRequest) -> Result<(), AdminError> {
        let body = serde_json::to_vec(&request).expect("a request has no maps with other keys than strings");
        let mut search = self.search_leader();
        let outcome = loop {
            let result = match search.next().await? {
                Leader::Here => self.to_the_end(request.clone()).await,
                Leader::At(peer) => match peer.call(Kind::Admin, GROUP, &body, 2 * self.timeout()).await {
                    Ok(answer) => serde_json::from_slice::<Answer>(&answer)
                        .unwrap_or(Answer::Unknown { detail: "the leader's answer is malformed".into() })
                        .result(),
                    Err(CallError::NotSent(_)) => Err(AdminError::NotLeader),
                    // Asking again could do it twice.
                    Err(error @ CallError::Lost(_)) => Err(AdminError::Unknown(error.to_string())),
                },
            };
            match result {
                Ok(()) => break Ok(()),
                Err(AdminError::NotLeader) => {}
                Err(error) => break Err(error),
            }
        };
        if outcome.is_ok()
            && let AdminRequest::Transfer { to } = request
        {
            self.wait_for_leader(to, self.timeout()).await?;
        }
        outcome
    }

    /// Answers another member's request.
    pub(crate) async fn answer_admin(self: &Arc<Self>, body: &[u8]) -> Vec<u8> {
        let answer = match serde_json::from_slice(body) {
            Ok(_) if !self.is_leader() => Answer::NotLeader,
            Ok(AdminRequest::Majority) if self.has_majority(&self.metrics()) => Answer::Done,
            Ok(AdminRequest::Majority) => Answer::NoMajority,
            Ok(request) => Answer::of(self.to_the_end(request).await),
            Err(error) => Answer::Invalid { detail: error.to_string() },
        };
        serde_json::to_vec(&answer).expect("an answer has no maps")
    }

    /// Carries out a request as the leader. It must not end half way, even if the requester goes away.
    async fn to_the_end(self: &Arc<Self>, request: AdminRequest) -> Result<(), AdminError> {
        let this = self.clone();
        let asked = tokio::spawn(async move { this.as_leader(request).await });
        asked.await.unwrap_or_else(|error| Err(AdminError::Unknown(error.to_string())))
    }

    /// One operator's change of the membership at a time. What the cluster changes by itself (promoting a
    /// learner, publishing a member's addresses) is soon over: an operator's change waits for it.
    async fn as_leader(self: &Arc<Self>, request: AdminRequest) -> Result<(), AdminError> {
        tracing::info!(?request, "administrative request");
        let by_operator = matches!(request, AdminRequest::Add { .. } | AdminRequest::Remove { .. });
        let deadline = tokio::time::Instant::now() + self.timeout() / 2;
        // What is checked before a change must still hold when it is made.
        let turn = match request {
            AdminRequest::Transfer { .. } | AdminRequest::CloseClock { .. } | AdminRequest::Majority => None,
            AdminRequest::Publish { .. } => Some(self.changing.try_acquire().map_err(|_| AdminError::Busy)?),
            AdminRequest::Add { .. } | AdminRequest::Remove { .. } => {
                let turn = tokio::time::timeout_at(deadline, self.changing.acquire()).await;
                Some(turn.map_err(|_| AdminError::Busy)?.map_err(|_| AdminError::Busy)?)
            }
        };
        let _turn = turn;
        loop {
            match self.attempt(request.clone()).await {
                Err(AdminError::Busy) if by_operator && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn attempt(&self, request: AdminRequest) -> Result<(), AdminError> {
        // The leader before left a change half way that removes this node: any other change would finish it
        // first.
        if !self.stays()
            && !matches!(request, AdminRequest::Transfer { .. } | AdminRequest::CloseClock { .. })
        {
            return Err(self.step_aside().await);
        }
        match request {
            AdminRequest::Add { id, peer, disk } => self.add(id, peer, disk).await,
            AdminRequest::Remove { id } => self.remove(id).await,
            AdminRequest::Transfer { to } => self.transfer(to).await,
            AdminRequest::Publish { id, peer, endpoints } => {
                self.publish(id, MemberNode { peer, endpoints }).await
            }
            AdminRequest::CloseClock { close } => self.close_clock(close).await,
            AdminRequest::Majority => Ok(()),
        }
    }

    async fn change(
        &self,
        change: ChangeMembers<NodeId, MemberNode>,
        retain: bool,
    ) -> Result<(), AdminError> {
        let raft = self.raft.clone();
        self.committed(async move { raft.change_membership(change, retain).await }).await
    }

    /// Waits for a change, which may wait for ever when it cannot be committed, and be committed later still.
    /// It runs in a task of its own, past the end of the wait: otherwise openraft would not make its second
    /// step.
    pub(crate) async fn committed<R: Send + 'static>(
        &self,
        change: impl Future<Output = Result<R, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>>
        + Send
        + 'static,
    ) -> Result<(), AdminError> {
        let unknown = |why: &str| Err(AdminError::Unknown(why.to_owned()));
        match tokio::time::timeout(self.timeout(), tokio::spawn(change)).await {
            Ok(Ok(changed)) => changed.map(|_| ()).map_err(refusal),
            Ok(Err(_)) => unknown("this node is stopping"),
            Err(_) => unknown("the change was not committed in time"),
        }
    }

    async fn add(&self, id: NodeId, peer: String, disk: Option<String>) -> Result<(), AdminError> {
        let endpoints = disk.iter().map(|disk| (DISK_ENDPOINT.to_owned(), disk.clone())).collect();
        let node = MemberNode { peer, endpoints };
        check_id(id).and_then(|()| check_node(&node)).map_err(invalid)?;
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let (applied, retired) =
            self.applier.paused(|_, progress| (*progress.membership.log_id(), progress.retired.clone()));
        let free = free_id(membership.nodes().map(|(id, _)| *id).chain(retired.iter().copied()).chain([id]));
        if let Some(present) = membership.get_node(&id) {
            let known = present.endpoints.get(DISK_ENDPOINT);
            if known.is_some() && disk.is_some() && known != disk.as_ref() {
                return Err(conflict(format!(
                    "node {id} is a member with another disk, whose log and vote are lost with it: remove node {id}, \
                     and join with an id that was never used, such as {free}"
                )));
            }
            if present.peer == node.peer {
                return Ok(());
            }
            return Err(conflict(format!("node {id} is a member already, at {}", present.peer)));
        }
        // The last removal may not be applied here yet.
        if applied != *metrics.membership_config.log_id() {
            return Err(AdminError::Busy);
        }
        if retired.contains(&id) {
            return Err(conflict(format!(
                "id {id} was a member's that was removed, and is never given again, to no disk; {free} is free"
            )));
        }
        if let Some((other, _)) = membership.nodes().find(|(_, other)| other.peer == node.peer) {
            return Err(conflict(format!("{} is the address of node {other}", node.peer)));
        }
        let raft = self.raft.clone();
        self.committed(async move { raft.add_learner(id, node, false).await }).await
    }

    /// Publishes a member's own addresses. A node that is no member, or has another disk, does not become one
    /// this way.
    async fn publish(&self, id: NodeId, node: MemberNode) -> Result<(), AdminError> {
        check_node(&node).map_err(invalid)?;
        let metrics = self.metrics();
        let Some(present) = metrics.membership_config.membership().get_node(&id) else {
            return Err(AdminError::NotFound(format!("node {id} is not a member")));
        };
        let known = present.endpoints.get(DISK_ENDPOINT);
        if known.is_some() && known != node.endpoints.get(DISK_ENDPOINT) {
            return Err(conflict(format!("node {id} is a member with another disk")));
        }
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, node)])), true).await
    }

    async fn remove(&self, id: NodeId) -> Result<(), AdminError> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        if membership.get_node(&id).is_none() {
            return Err(AdminError::NotFound(format!("node {id} is not a member")));
        }
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        if !voters.contains(&id) {
            return self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await;
        }
        let rest: Vec<NodeId> = voters.into_iter().filter(|voter| *voter != id).collect();
        if rest.is_empty() {
            return Err(conflict(format!("node {id} is the last voter")));
        }
        let able_of = |metrics: &Metrics| rest.iter().filter(|voter| self.is_able(**voter, metrics)).count();
        if !self.in_contact(|metrics| able_of(metrics) > rest.len() / 2).await {
            let able = able_of(&self.metrics());
            return Err(conflict(format!(
                "without node {id} only {able} of {} voters could be reached and have all of the log: no majority",
                rest.len()
            )));
        }
        if id == self.config.id {
            return Err(self.step_aside().await);
        }
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id])), false).await
    }

    /// While this node leads: the last committed entry that a member is known to have.
    pub(crate) fn matched(&self) -> impl Fn(NodeId) -> Option<LogId> + Send + Sync + 'static {
        let (metrics, applier) = (self.raft.metrics(), self.applier.clone());
        move |id| {
            let matched = metrics.borrow_watched().replication.as_ref()?.get(&id).copied().flatten()?;
            let applied = applier.paused(|_, progress| progress.last)?;
            Some(if matched.index < applied.index { matched } else { applied })
        }
    }

    /// Whether a member answers, and has the log except for what is in flight.
    fn is_able(&self, id: NodeId, metrics: &Metrics) -> bool {
        let matched =
            metrics.replication.as_ref().and_then(|replication| replication.get(&id).copied().flatten());
        let last = metrics.last_log_index.unwrap_or(0);
        let has_log = matched.is_some_and(|matched| matched.index + LAG_MAX >= last);
        id == self.config.id || has_log && self.is_in_contact(id, metrics)
    }

    pub(crate) fn is_in_contact(&self, id: NodeId, metrics: &Metrics) -> bool {
        let is_recent = |age_ms| Duration::from_millis(age_ms) <= self.contact_max();
        id == self.config.id || last_contact_ms(metrics, id).is_some_and(is_recent)
    }

    /// Whether there is `enough` contact, now or soon: a leader that was just elected has not heard from
    /// anyone yet.
    pub(crate) async fn in_contact(&self, enough: impl Fn(&Metrics) -> bool) -> bool {
        let deadline = tokio::time::Instant::now() + self.timing.election_max();
        while !enough(&self.metrics()) {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
        true
    }

    /// Leader only: finishes a change of the voters whose first entry is committed and that nobody continues.
    /// While two sets of voters are in force, the group needs a majority of each, and no address is
    /// published.
    pub(crate) async fn finish_change(&self) {
        let Ok(_turn) = self.changing.try_acquire() else { return };
        let metrics = self.metrics();
        let present = &metrics.membership_config;
        let [_, .., target] = &present.membership().get_joint_config()[..] else { return };
        if *present != metrics.committed_membership_config {
            return;
        }
        if !self.stays() {
            // The next leader continues.
            let _ = self.step_aside().await;
            return;
        }
        match self.change(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await {
            Ok(()) => {
                tracing::info!(voters = ?target, "finished a change of the voters that was left half way")
            }
            // The requester's task continues it, or this node no longer leads: tried again.
            Err(_) => tracing::debug!("a change of the voters could not be finished yet"),
        }
    }

    /// Leader only: promotes one learner that has caught up, answers, and has published its disk id, if a
    /// majority of the voters, the learner included, is available. Called periodically.
    pub(crate) async fn promote_learner(&self) {
        let Ok(_turn) = self.changing.try_acquire() else { return };
        if !self.stays() {
            return;
        }
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let able = voters.iter().filter(|voter| self.is_able(**voter, &metrics)).count();
        let ready = membership.learner_ids().find(|id| {
            let node = membership.get_node(id);
            let has_disk = node.is_some_and(|node| node.endpoints.contains_key(DISK_ENDPOINT));
            has_disk && self.is_able(*id, &metrics) && able + 1 > voters.len().div_ceil(2)
        });
        let Some(id) = ready else { return };
        match self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true).await {
            Ok(()) => tracing::info!(id, "the learner has caught up and votes from here on"),
            // Another change is under way, or this node no longer leads: tried again.
            Err(_) => tracing::debug!(id, "the learner could not be promoted yet"),
        }
    }

    /// Has the leader write this node's addresses into the membership if they differ.
    pub(crate) async fn publish_self(self: &Arc<Self>, peer: &str) {
        let metrics = self.metrics();
        let id = self.config.id;
        let Some(present) = metrics.membership_config.membership().get_node(&id) else { return };
        let mut endpoints = self.config.endpoints.clone();
        endpoints.insert(DISK_ENDPOINT.into(), self.identity.disk_id());
        level::publish(&mut endpoints, self.applier.machine.apply_level_max());
        let is_settled = metrics.membership_config == metrics.committed_membership_config
            && metrics.membership_config.membership().get_joint_config().len() == 1;
        if !is_settled || (present.peer == peer && present.endpoints == endpoints) {
            return;
        }
        let request = AdminRequest::Publish { id, peer: peer.to_owned(), endpoints };
        if let Err(error) = self.administer(request).await {
            // Several nodes publish at once when a cluster forms; tried again.
            tracing::debug!(%error, "the addresses could not be published yet");
            tokio::time::sleep(Duration::from_millis(20 * id % 100)).await;
        }
    }
}

/// Milliseconds since `id` last answered this leader.
pub(crate) fn last_contact_ms(metrics: &Metrics, id: NodeId) -> Option<u64> {
    let contact = metrics.heartbeat.as_ref()?.get(&id)?.as_ref()?;
    Some(contact.elapsed().as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::free_id;
    use crate::identity::address::NODE_ID_MAX;

    #[test]
    fn an_id_that_is_free_was_never_used() {
        assert_eq!(free_id([].into_iter()), 1);
        assert_eq!(free_id([1, 2, 7].into_iter()), 8);
        assert_eq!(free_id([1, 2, NODE_ID_MAX].into_iter()), 3);
        // Members of earlier versions may have such ids.
        assert_eq!(free_id([1, u64::MAX].into_iter()), 2);
    }
}
