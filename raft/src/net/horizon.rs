//! How far terms and indexes may be ahead of this node's. Both are durable once they are taken over, and they
//! only grow: a single message with a term near the greatest number would leave a cluster without a term for
//! its next election. So what is beyond reason is refused, whoever says it, and the connection is closed.
//!
//! A cluster with an election each second takes 35,000 years for the distance that a member may be ahead, and
//! half a year for that of a node which the membership does not name.

use super::messages::AppendRequest;
use crate::{
    NodeId,
    log::LogStore,
    types::{LogId, TypeConfig, Vote},
};

/// How far a member's terms and indexes may be ahead.
const MEMBER_MAX: u64 = 1 << 40;

/// How far the terms of another node may be ahead.
const UNKNOWN_TERM_MAX: u64 = 1 << 24;

/// Where this node is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Horizon {
    term: u64,
    index: u64,
    terms_ahead_max: u64,
}

impl Horizon {
    /// What a member may say.
    pub(crate) fn of(log: &LogStore) -> Horizon {
        let (vote, last) = log.vote_and_last();
        let term = vote.map_or(0, |vote| vote.leader_id.term);
        Horizon { term, index: last.map_or(0, |last| last.index), terms_ahead_max: MEMBER_MAX }
    }

    /// What a node may say that the membership does not name.
    pub(crate) fn of_unknown(log: &LogStore) -> Horizon {
        Horizon { terms_ahead_max: UNKNOWN_TERM_MAX, ..Horizon::of(log) }
    }

    #[cfg(test)]
    pub(crate) fn at(term: u64, index: u64) -> Horizon {
        Horizon { term, index, terms_ahead_max: MEMBER_MAX }
    }

    pub(crate) fn check_term(&self, term: u64) -> Result<(), String> {
        if term <= self.term.saturating_add(self.terms_ahead_max) {
            return Ok(());
        }
        Err(format!("term {term} is beyond reason: this node's is {}", self.term))
    }

    pub(crate) fn check_index(&self, index: u64) -> Result<(), String> {
        if index <= self.index.saturating_add(MEMBER_MAX) {
            return Ok(());
        }
        Err(format!("index {index} is beyond reason: the last of this node's log is {}", self.index))
    }

    pub(crate) fn check_vote(&self, vote: &Vote) -> Result<(), String> {
        self.check_term(vote.leader_id.term)
    }

    /// The term of an entry is not above the one of whoever has it.
    pub(crate) fn check_entry(&self, id: Option<&LogId>, vote: &Vote) -> Result<(), String> {
        let Some(id) = id else { return Ok(()) };
        self.check_index(id.index)?;
        let (of_entry, of_vote) = (id.leader_id.term, vote.leader_id.term);
        if of_entry <= of_vote {
            Ok(())
        } else {
            Err(format!("an entry of term {of_entry} in term {of_vote}"))
        }
    }

    /// What a node says that leads, or wants to: it speaks for itself.
    pub(crate) fn check_claim(&self, from: NodeId, vote: &Vote, last: Option<&LogId>) -> Result<(), String> {
        let claims = vote.leader_id.voted_for;
        if claims != from {
            return Err(format!("node {from} speaks for node {claims}"));
        }
        self.check_vote(vote)?;
        self.check_entry(last, vote)
    }

    pub(crate) fn check_append(&self, from: NodeId, request: &AppendRequest) -> Result<(), String> {
        let vote = &request.vote;
        self.check_claim(from, vote, request.prev_log_id.as_ref())?;
        self.check_entry(request.leader_commit.as_ref(), vote)?;
        request.entries.iter().try_for_each(|entry| self.check_entry(Some(&entry.log_id), vote))
    }

    pub(crate) fn check_vote_request(
        &self,
        from: NodeId,
        request: &openraft::raft::VoteRequest<TypeConfig>,
    ) -> Result<(), String> {
        self.check_claim(from, &request.vote, request.last_log_id.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use openraft::{entry::RaftEntry as _, raft::VoteRequest};

    use super::{AppendRequest, Horizon, MEMBER_MAX, UNKNOWN_TERM_MAX};
    use crate::types::{Entry, LogId, Vote};

    const OURS: Horizon = Horizon { term: 7, index: 100, terms_ahead_max: MEMBER_MAX };

    fn id(term: u64, index: u64) -> LogId {
        LogId::new_term_index(term, index)
    }

    fn append(vote: Vote, previous: LogId, entry: LogId, commit: LogId) -> AppendRequest {
        AppendRequest {
            vote,
            prev_log_id: Some(previous),
            entries: vec![Entry::new_blank(entry)],
            leader_commit: Some(commit),
        }
    }

    #[test]
    fn what_a_leader_says_is_within_reason() {
        let leads = Vote::new_committed(9, 2);
        let sane = append(leads, id(8, 200), id(9, 201), id(8, 200));
        assert_eq!(OURS.check_append(2, &sane), Ok(()));
        let far = Vote::new_committed(7 + MEMBER_MAX, 2);
        assert_eq!(OURS.check_append(2, &append(far, id(8, 200), id(9, 201), id(8, 200))), Ok(()));
        for (from, wrong) in [
            (3, sane.clone()),
            (2, append(Vote::new_committed(8 + MEMBER_MAX, 2), id(8, 200), id(9, 201), id(8, 200))),
            (2, append(Vote::new_committed(u64::MAX, 2), id(8, 200), id(9, 201), id(8, 200))),
            (2, append(leads, id(10, 200), id(9, 201), id(8, 200))),
            (2, append(leads, id(8, u64::MAX), id(9, 201), id(8, 200))),
            (2, append(leads, id(8, 200), id(1 << 60, 201), id(8, 200))),
            (2, append(leads, id(8, 200), id(9, u64::MAX), id(8, 200))),
            (2, append(leads, id(8, 200), id(9, 201), id(8, 101 + MEMBER_MAX))),
        ] {
            assert!(OURS.check_append(from, &wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_candidate_stands_for_itself_and_a_stranger_not_far_ahead() {
        let request = |term, by, last| VoteRequest::new(Vote::new(term, by), last);
        assert_eq!(OURS.check_vote_request(3, &request(8, 3, Some(id(7, 100)))), Ok(()));
        assert_eq!(OURS.check_vote_request(3, &request(8, 3, None)), Ok(()));
        assert!(OURS.check_vote_request(2, &request(8, 3, None)).is_err());
        assert!(OURS.check_vote_request(3, &request(1 << 60, 3, None)).is_err());
        assert!(OURS.check_vote_request(3, &request(8, 3, Some(id(9, 100)))).is_err());
        let unknown = Horizon { terms_ahead_max: UNKNOWN_TERM_MAX, ..OURS };
        assert_eq!(unknown.check_vote_request(3, &request(7 + UNKNOWN_TERM_MAX, 3, None)), Ok(()));
        assert!(unknown.check_vote_request(3, &request(8 + UNKNOWN_TERM_MAX, 3, None)).is_err());
    }
}
