//! Transfers of leadership: because an operator asks for one, because the node stops, or because the leader
//! itself is to be removed.
//!
//! From the moment that openraft's leader hands over, it sends no heartbeats and takes no proposals, and
//! there is no way back. So it never hands over to a node that does not answer at that very moment; and if
//! nobody takes over soon, it hands over to another voter, which takes over at once: by themselves the others
//! would elect one only after the lease of this leader.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use crate::{
    AdminError, Machine, NodeId,
    membership::{conflict, last_contact_ms},
    node::core::Core,
    proposals::group::Group as _,
    types::Metrics,
};

fn unknown(why: impl std::fmt::Display) -> AdminError {
    AdminError::Unknown(why.to_string())
}

impl<M: Machine> Core<M> {
    /// Hands the leadership over, and returns when the new leader is known.
    pub(crate) async fn transfer(&self, to: NodeId) -> Result<(), AdminError> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        if membership.get_node(&to).is_none() {
            return Err(AdminError::NotFound(format!("node {to} is not a member")));
        }
        if !membership.voter_ids().any(|voter| voter == to) {
            return Err(conflict(format!("node {to} is a learner and cannot lead")));
        }
        if to == self.config.id {
            return Ok(());
        }
        if !self.would_take_over(to).await {
            return Err(conflict(format!("node {to} cannot be reached")));
        }
        let (term, _) = self.terms();
        self.raft.trigger().transfer_leader(to).await.map_err(unknown)?;
        // Before the others begin to ask each other, and learn of a vote that makes them ignore this leader.
        let soon = self.timing.election_min() - self.timing.heartbeat();
        if self.leader_after(term, soon).await.is_none() && self.is_leader() {
            self.hand_over_but_to(to).await?;
        }
        match self.leader_after(term, self.timeout()).await {
            Some(leader) if leader == to => Ok(()),
            Some(leader) => Err(conflict(format!("node {to} has not taken over; node {leader} leads"))),
            None => Err(unknown(format!("node {to} has not taken over, and nobody else has"))),
        }
    }

    /// Waits for the next leader after this node in its term, which may be this node again.
    async fn leader_after(&self, term: u64, time: Duration) -> Option<NodeId> {
        let mut leader = self.leader.subscribe();
        let next = async {
            loop {
                let present = *leader.borrow_and_update();
                if let Some(present) = present
                    && (present != self.config.id || self.terms().0 > term)
                {
                    return present;
                }
                // Cannot fail: the sender lives in `self`.
                let _ = leader.changed().await;
            }
        };
        tokio::time::timeout(time, next).await.ok()
    }

    /// Whether a voter answers now, and has answered as a follower of this leader since this call: for one
    /// that died a moment ago this leader would be deposed for nothing, and one that has just come back does
    /// not take over before it has heard from this leader, which by then is silent.
    async fn would_take_over(&self, to: NodeId) -> bool {
        let asked = Instant::now();
        let answers_now = |metrics: &Metrics| {
            let age_ms = last_contact_ms(metrics, to).unwrap_or(u64::MAX);
            Duration::from_millis(age_ms) < asked.elapsed()
        };
        self.follows(to).await && self.in_contact(answers_now).await && self.follows(to).await
    }

    /// Nobody has taken over from this leader: hands over to another voter, if one is there.
    async fn hand_over_but_to(&self, to: NodeId) -> Result<(), AdminError> {
        let mut voters = self.target();
        voters.remove(&to);
        let Some(successor) = self.successor_among(&voters) else { return Ok(()) };
        tracing::warn!(
            node = to,
            successor,
            "the node has not taken over; the leadership goes to another one"
        );
        self.raft.trigger().transfer_leader(successor).await.map_err(unknown)
    }

    pub(crate) async fn wait_for_leader(&self, to: NodeId, time: Duration) -> Result<(), AdminError> {
        let mut leader = self.leader.subscribe();
        let known = tokio::time::timeout(time, leader.wait_for(|leader| *leader == Some(to))).await;
        match known {
            Ok(_) => Ok(()),
            Err(_) => Err(AdminError::Unknown(format!("node {to} has not become the leader in time"))),
        }
    }

    /// A leader does not remove itself: openraft's would continue to lead for a while, and fail at the next
    /// change of the membership. It hands leadership over, and the next leader removes it.
    pub(crate) async fn step_aside(&self) -> AdminError {
        let target = self.target();
        if let Some(successor) = self.successor_among(&target)
            && (self.transfer(successor).await.is_ok() || !self.is_leader())
        {
            return AdminError::NotLeader;
        }
        conflict("this leader could not hand over before its removal; it is still a member")
    }

    /// The voter that should take over: the one with the most of the log.
    pub(crate) fn successor(&self) -> Option<NodeId> {
        let voters = self.metrics().membership_config.membership().voter_ids().collect();
        self.successor_among(&voters)
    }

    /// The voters that the membership will have when a change under way is complete.
    fn target(&self) -> BTreeSet<NodeId> {
        let metrics = self.metrics();
        metrics.membership_config.membership().get_joint_config().last().cloned().unwrap_or_default()
    }

    /// Whether this node will be one of them.
    pub(crate) fn stays(&self) -> bool {
        self.target().contains(&self.config.id)
    }

    pub(crate) fn successor_among(&self, voters: &BTreeSet<NodeId>) -> Option<NodeId> {
        let metrics = self.metrics();
        let replication = metrics.replication.as_ref()?;
        let others = voters.iter().filter(|id| **id != self.config.id && self.is_in_contact(**id, &metrics));
        others.copied().max_by_key(|id| replication.get(id).copied().flatten())
    }
}
