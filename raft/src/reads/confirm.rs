//! Confirms that this node still leads, for reads.
//!
//! The argument: let a read begin at some moment, and let a majority of the voters answer, to messages sent
//! after that moment, that they know of no later vote than this leader's. If another leader had been elected
//! in a later term before that moment, one of them would have given it its vote before, and would say so. So
//! whatever was acknowledged before that moment is in this leader's log, and at or below what it knows to be
//! committed once an entry of its own term is.
//!
//! An answer belongs to one message: it comes on the connection on which the message went out, with its
//! number. A peer's vote is read where it is set, before anybody is told of it (`LogStore::vote`).

use std::collections::BTreeSet;

use futures::{StreamExt, stream::FuturesUnordered};

use crate::{
    Machine, NodeId,
    codec::{self, Reader},
    net::frame::Kind,
    node::core::Core,
    proposals::group::Group,
    types::{GROUP, LogId, Vote},
};

/// What a leader knows at one moment.
struct Lead {
    vote: Vote,
    /// At least this is committed once an entry of this leader's is.
    index: u64,
    /// The voters of every configuration in force.
    configurations: Vec<BTreeSet<NodeId>>,
}

impl Lead {
    fn is_confirmed_by(&self, voters: &BTreeSet<NodeId>) -> bool {
        self.configurations.iter().all(|all| all.intersection(voters).count() > all.len() / 2)
    }
}

impl<M: Machine> Core<M> {
    /// The index up to which a read that began before this call must see. None if it could not be confirmed
    /// that this node leads.
    pub(crate) async fn confirmed_index(&self) -> Option<u64> {
        let lead = self.lead().await?;
        let limit = self.timing.election_max();
        let confirmed = tokio::select! {
            biased;
            confirmed = tokio::time::timeout(limit, self.confirm(&lead)) => confirmed.unwrap_or(false),
            () = self.leader_is_not(Some(self.config.id)) => false,
        };
        confirmed.then_some(lead.index)
    }

    /// What this node, as the leader, knows at a moment after the call. None if it does not lead.
    async fn lead(&self) -> Option<Lead> {
        let id = self.config.id;
        let state = self.raft.with_raft_state(move |state| {
            let vote = *state.vote_ref();
            if !vote.committed || vote.leader_id.voted_for != id {
                return None;
            }
            let committed = state.cluster_committed().max(state.local_committed()).copied();
            let last = state.log_ids.last().copied();
            let first = first_of_term(vote.leader_id.term, committed, last, |index| state.log_ids.get(index));
            let configurations = state.membership_state.effective().membership().get_joint_config().clone();
            Some(Lead { vote, index: first?, configurations })
        });
        state.await.ok().flatten()
    }

    /// Whether a majority of every configuration knows of no later vote, after the call.
    async fn confirm(&self, lead: &Lead) -> bool {
        let mut body = Vec::with_capacity(17);
        codec::put_vote(&mut body, &lead.vote);
        let others: BTreeSet<NodeId> =
            lead.configurations.iter().flatten().copied().filter(|id| *id != self.config.id).collect();
        let mut answers: FuturesUnordered<_> =
            others.into_iter().map(|id| self.ask_for_vote(id, &body, lead.vote)).collect();
        let mut confirmed = BTreeSet::from([self.config.id]);
        while !lead.is_confirmed_by(&confirmed) {
            match answers.next().await {
                Some(Some(id)) => {
                    confirmed.insert(id);
                }
                Some(None) => {}
                None => return false,
            }
        }
        self.votes.vote().is_some_and(|vote| vote.leader_id == lead.vote.leader_id)
    }

    /// Whether a voter answers, after the call, that it follows this leader.
    pub(crate) async fn follows(&self, id: NodeId) -> bool {
        let Some(vote) = self.votes.vote() else { return false };
        let mut body = Vec::with_capacity(17);
        codec::put_vote(&mut body, &vote);
        let limit = self.timing.election_max();
        let answer = tokio::time::timeout(limit, self.ask_for_vote(id, &body, vote)).await;
        answer.is_ok_and(|follower| follower.is_some())
    }

    /// The peer, if it answers that its vote is this one.
    async fn ask_for_vote(&self, id: NodeId, body: &[u8], vote: Vote) -> Option<NodeId> {
        let peer = self.peer(id)?;
        let answer = peer.call(Kind::Confirm, GROUP, body, self.timeout()).await.ok()?;
        let theirs = codec::vote(&mut Reader::new(&answer)).ok()?;
        (theirs.leader_id == vote.leader_id).then_some(id)
    }
}

/// The committed index if an entry of the term is committed, else the index of the first entry of the term.
fn first_of_term(
    term: u64,
    committed: Option<LogId>,
    last: Option<LogId>,
    at: impl Fn(u64) -> Option<LogId>,
) -> Option<u64> {
    if let Some(committed) = committed
        && committed.leader_id.term == term
    {
        return Some(committed.index);
    }
    // The entries after the committed one have rising terms; the last one has this term.
    let (mut low, mut high) = (committed.map_or(0, |id| id.index + 1), last?.index);
    while low < high {
        let middle = low + (high - low) / 2;
        match at(middle) {
            Some(id) if id.leader_id.term >= term => high = middle,
            _ => low = middle + 1,
        }
    }
    at(high).filter(|id| id.leader_id.term == term).map(|id| id.index)
}

#[cfg(test)]
mod tests {
    use super::{Lead, first_of_term};
    use crate::types::{LogId, Vote};

    #[test]
    fn a_majority_of_every_configuration_must_answer() {
        let configurations = vec![[1, 2, 3].into(), [3, 4, 5].into()];
        let lead = Lead { vote: Vote::new_committed(1, 1), index: 7, configurations };
        assert!(!lead.is_confirmed_by(&[1, 2].into()));
        assert!(!lead.is_confirmed_by(&[1, 2, 3].into()));
        assert!(!lead.is_confirmed_by(&[3, 4, 5].into()));
        assert!(lead.is_confirmed_by(&[1, 3, 4].into()));
        let even = Lead { configurations: vec![[1, 2, 3, 4].into()], ..lead };
        assert!(!even.is_confirmed_by(&[1, 2].into()));
    }

    #[test]
    fn a_read_waits_for_the_first_entry_of_the_leader_s_own_term() {
        let log = |index: u64| (index <= 20).then(|| LogId::new_term_index(1 + index / 7, index));
        let first = |term, committed| first_of_term(term, committed, log(20), log);
        assert_eq!(first(3, log(3)), Some(14), "nothing of term 3 is committed");
        assert_eq!(first(3, log(13)), Some(14));
        assert_eq!(first(3, log(16)), Some(16));
        assert_eq!(first(3, None), Some(14));
        assert_eq!(first(4, log(20)), None, "the leader has not appended its first entry");
    }
}
