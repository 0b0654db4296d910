//! The last defence of what is applied: no leader may say otherwise. A log that is to be cut below it, or an entry of an
//! applied index with another term, means that acknowledged writes are lost elsewhere, or that this disk is not what it
//! should be. The node ends before it forgets its own.
//!
//! openraft only asserts it, in debug builds, and applies what it gets at an index that is applied already no second time: the
//! nodes would serve different data from there on.

use crate::{
    Machine,
    core::Core,
    log::LogStore,
    net::messages::AppendRequest,
    safeguard::{self, Safeguard},
    types::LogId,
};

/// The first entry that a leader has otherwise than this node has applied it: its own id, and the leader's.
fn first_other(request: &AppendRequest, applied: u64, log: &LogStore) -> Option<(LogId, LogId)> {
    let of_request =
        request.prev_log_id.iter().copied().chain(request.entries.iter().map(|entry| entry.log_id));
    of_request.take_while(|id| id.index <= applied).find_map(|theirs| {
        let term = log.term_at(theirs.index)?;
        (term != theirs.leader_id.term).then(|| (LogId::new_term_index(term, theirs.index), theirs))
    })
}

impl<M: Machine> Core<M> {
    /// Ends this node if a request contradicts what it has applied. One of an earlier leader may, and is refused by openraft.
    pub(crate) fn check_history(&self, request: &AppendRequest) {
        let own_term = self.votes.vote().map_or(0, |vote| vote.leader_id.term);
        if request.vote.leader_id.term < own_term || safeguard::is_off(Safeguard::AppliedStays) {
            return;
        }
        if let Some((ours, theirs)) = first_other(request, self.applier.index(), &self.votes) {
            (self.table.platform.contradiction)(format!(
                "the leader of term {} has log entry {theirs}, and this node has applied {ours}",
                request.vote.leader_id.term
            ));
        }
    }
}
