//! Two nodes that ask for pre-votes at the same time. Each would be granted them, as nobody has voted yet, and
//! then both would vote for themselves: a split vote, and an election time-out more without a leader. Over a
//! distance that is not rare. So a node which, while it waits for its pre-votes, is itself asked for one by a
//! node with a better claim, takes no notice of the grants that it gets. It loses nothing: the other one is
//! elected, or it asks again when it has waited.
//!
//! The better claim is the longer log, as for votes, and among equal ones the greater node id.

use std::collections::VecDeque;

use openraft::raft::VoteRequest;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    NodeId,
    types::{LogId, TypeConfig},
};

/// How many requests are remembered: more than nodes ask at once, however many ids somebody makes up.
const RECENT: usize = 16;

/// The last requests for a pre-vote, and when they came.
#[derive(Default)]
pub(crate) struct Rivals(Mutex<VecDeque<(Claim, Instant)>>);

/// In the order of precedence within a term.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    term: u64,
    last_log_id: Option<LogId>,
    id: NodeId,
}

impl Claim {
    fn of(request: &VoteRequest<TypeConfig>) -> Claim {
        let leader_id = request.vote.leader_id;
        Claim { term: leader_id.term, last_log_id: request.last_log_id, id: leader_id.voted_for }
    }
}

impl Rivals {
    /// Another node asks this one for a pre-vote.
    pub(crate) fn asks(&self, request: &VoteRequest<TypeConfig>) {
        let mut recent = self.0.lock();
        recent.push_back((Claim::of(request), Instant::now()));
        if recent.len() > RECENT {
            recent.pop_front();
        }
    }

    /// Whether a node with a better claim to the same term has asked since this node did.
    pub(crate) fn is_outdone(&self, ours: &VoteRequest<TypeConfig>, since: Instant) -> bool {
        let ours = Claim::of(ours);
        let outdoes =
            |(claim, asked): &(Claim, Instant)| *asked >= since && claim.term == ours.term && *claim > ours;
        self.0.lock().iter().any(outdoes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use openraft::raft::VoteRequest;
    use tokio::time::Instant;

    use super::Rivals;
    use crate::types::{LogId, TypeConfig, Vote};

    fn request(term: u64, id: u64, index: u64) -> VoteRequest<TypeConfig> {
        let last = LogId::new_term_index(1, index);
        VoteRequest::new(Vote::new(term, id), Some(last))
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_at_once_one_gives_way() {
        let (rivals, since) = (Rivals::default(), Instant::now());
        rivals.asks(&request(3, 2, 7));
        for (term, id, index, is_outdone) in [
            (3, 1, 7, true),
            (3, 3, 7, false),
            (3, 3, 6, true),
            (3, 1, 8, false),
            (2, 1, 7, false),
            (4, 1, 7, false),
        ] {
            let ours = request(term, id, index);
            assert_eq!(rivals.is_outdone(&ours, since), is_outdone, "{term} {id} {index}");
        }
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(
            !rivals.is_outdone(&request(3, 1, 7), Instant::now()),
            "what was asked before does not count"
        );
    }
}
