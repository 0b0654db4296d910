//! The last defence of what is applied: no leader may contradict it. A truncation of the log below it, an
//! entry of an applied index with another term, or a snapshot of another log, means that acknowledged writes
//! are lost elsewhere, or that this disk is not what it should be. The node ends before it forgets its own.
//!
//! openraft only asserts this, in debug builds, and does not apply anything a second time at an index that is
//! already applied: the nodes would serve different data from there on.

use crate::{
    Machine,
    agreement::trail::Mark,
    log::LogStore,
    net::messages::AppendRequest,
    node::core::Core,
    safeguard::{self, Safeguard},
    snapshot::transfer::Announced,
    types::{LogId, Vote},
};

/// The first entry at which a leader contradicts what this node has applied: its own id, and the leader's.
fn first_other(request: &AppendRequest, applied: u64, log: &LogStore) -> Option<(LogId, LogId)> {
    let of_request =
        request.prev_log_id.iter().copied().chain(request.entries.iter().map(|entry| entry.log_id));
    of_request.take_while(|id| id.index <= applied).find_map(|theirs| {
        let term = log.term_at(theirs.index)?;
        (term != theirs.leader_id.term).then(|| (LogId::new_term_index(term, theirs.index), theirs))
    })
}

impl<M: Machine> Core<M> {
    /// Whether a leader of this vote is listened to. One of an earlier term may contradict what is applied,
    /// and is refused.
    fn is_heard(&self, vote: &Vote) -> bool {
        let own_term = self.votes.vote().map_or(0, |vote| vote.leader_id.term);
        vote.leader_id.term >= own_term && !safeguard::is_off(Safeguard::AppliedStays)
    }

    /// Ends this node if a request contradicts what it has applied.
    pub(crate) fn check_history(&self, request: &AppendRequest) {
        if !self.is_heard(&request.vote) {
            return;
        }
        if let Some((ours, theirs)) = first_other(request, self.applier.index(), &self.votes) {
            (self.table.platform.contradiction)(format!(
                "the leader of term {} has log entry {theirs}, and this node has applied {ours}",
                request.vote.leader_id.term
            ));
        }
    }

    /// Ends this node if a snapshot comes from another log than the one that it has applied, and would
    /// overrule it. What both still know is compared; if that is nothing, the snapshot is accepted.
    pub(crate) fn check_snapshot(&self, announced: &Announced) {
        if !self.is_heard(&announced.vote) {
            return;
        }
        let differs = |mark: &&Mark| self.applier.hash_at(mark.index).is_some_and(|own| own != mark.hash);
        if let Some(Mark { index, .. }) = announced.trail.iter().find(differs) {
            (self.table.platform.contradiction)(format!(
                "the leader of term {} sends a snapshot of another log than this node has applied up to entry {index}",
                announced.vote.leader_id.term
            ));
        }
    }
}
