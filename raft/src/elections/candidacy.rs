//! When this node stands for election. openraft's own timer draws between two bounds that are fixed for as
//! long as a node runs; here they follow the round trips to the peers (`timing.rs`). Everything else is
//! openraft's: the rounds of pre-votes and votes, and who may have one.
//!
//! A follower stands when it has heard nothing for the lease and a time that it drew, and again after another
//! such time if nothing has come of it. There is no lease if no leader was heard since the start, after
//! another node's candidacy, and after a leader that hands over. Standing too early does no harm: openraft
//! asks nobody while the lease lasts.

use std::{sync::Arc, time::Duration};

use openraft::{Instant as _, ServerState, async_runtime::watch::WatchReceiver};
use tokio::time::Instant;

use crate::{Machine, chance, elections::timing::Timing, node::core::Core, types::Vote};

/// The longest time between two checks for changes.
const LOOK: Duration = Duration::from_millis(100);

/// What openraft knows at one moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    vote: Vote,
    /// When a vote was given, or a leader was heard.
    moved: Option<Instant>,
    is_voter: bool,
    /// There is nobody else to ask.
    is_alone: bool,
}

/// When this node stands next.
struct Turn {
    /// Selects a point between the bounds, whatever they are by then.
    lot: u64,
    stood: Option<Instant>,
}

impl Turn {
    fn patience(&self, timing: &Timing) -> Duration {
        let (low, high) = timing.election_ms();
        Duration::from_millis(low + self.lot % (high - low).max(1))
    }

    /// When to stand, given what is known; None for not at all.
    fn due(&self, look: &Look, lease: Duration, timing: &Timing) -> Option<Instant> {
        if !look.is_voter {
            return None;
        }
        let patience = self.patience(timing);
        let again = self.stood.map(|stood| stood + patience);
        let quiet = if look.is_alone { None } else { look.moved.map(|moved| moved + lease + patience) };
        Some(again.into_iter().chain(quiet).max().unwrap_or_else(Instant::now))
    }

    fn stands(&mut self, lot: u64) {
        *self = Turn { lot, stood: Some(Instant::now()) };
    }
}

impl<M: Machine> Core<M> {
    async fn look_at_votes(&self) -> Option<Look> {
        let id = self.config.id;
        let look = self.raft.with_raft_state(move |state| {
            let (effective, committed) =
                (state.membership_state.effective(), state.membership_state.committed());
            let mut voters = effective.voter_ids();
            let is_alone = voters.next() == Some(id) && voters.next().is_none();
            let is_voter = effective.voter_ids().chain(committed.voter_ids()).any(|voter| voter == id);
            let moved = state.vote_last_modified().and_then(|at| Instant::now().checked_sub(at.elapsed()));
            Look { vote: *state.vote_ref(), moved, is_voter, is_alone }
        });
        look.await.ok()
    }

    /// The lease that openraft's vote has.
    fn lease_of(&self, vote: &Vote) -> Duration {
        let is_leased =
            vote.committed && self.contact.silence().is_some() && !self.elections.is_handed_over(vote);
        if is_leased { self.timing.lease() } else { Duration::ZERO }
    }

    /// Whether openraft leads, or has something under way that must not be restarted.
    fn is_busy(&self, look: &Look) -> bool {
        let state = self.raft.server_metrics().borrow_watched().state;
        state == ServerState::Leader || look.is_alone && state == ServerState::Candidate
    }
}

/// Stands for election whenever it is time, for ever.
pub(crate) async fn stand<M: Machine>(core: Arc<Core<M>>) {
    let mut changes = core.changes.subscribe();
    let mut turn = Turn { lot: chance::id(), stood: None };
    loop {
        core.follow_distances();
        // If openraft has ended there is nothing to do: that is noticed elsewhere.
        let Some(look) = core.look_at_votes().await else { return std::future::pending().await };
        let due = turn.due(&look, core.lease_of(&look.vote), &core.timing).filter(|_| !core.is_busy(&look));
        let now = Instant::now();
        if due.is_some_and(|due| due <= now) {
            // With a round of pre-votes first, unless this node is alone. An error means that openraft has
            // ended.
            let _ = core.raft.trigger().elect(true).await;
            turn.stands(chance::id());
            continue;
        }
        let until = due.unwrap_or(now + LOOK).min(now + LOOK);
        let _ = tokio::time::timeout_at(until, changes.changed()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Look, Turn};
    use crate::{
        NodeConfig,
        elections::{Elections, timing::Timing},
        types::Vote,
    };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn look(moved: Instant) -> Look {
        Look { vote: Vote::new_committed(3, 2), moved: Some(moved), is_voter: true, is_alone: false }
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_waits_for_the_lease_and_a_time_that_it_drew() {
        let timing = Timing::new(&NodeConfig::new(1, "data"));
        let now = Instant::now();
        let due = |lot, timing: &Timing| Turn { lot, stood: None }.due(&look(now), timing.lease(), timing);
        assert_eq!(due(0, &timing), Some(now + ms(950)));
        assert_eq!(due(249, &timing), Some(now + ms(1199)));
        assert_eq!(due(250, &timing), Some(now + ms(950)));
        timing.follow(Some(ms(300)), ms(300));
        assert_eq!(due(0, &timing), Some(now + ms(1510)));
        assert_eq!(due(1369, &timing), Some(now + ms(2879)));
        let candidate = Turn { lot: 0, stood: None }.due(&look(now), Duration::ZERO, &timing);
        assert_eq!(candidate, Some(now + ms(910)), "no lease");
        let learner = Look { is_voter: false, ..look(now) };
        assert_eq!(Turn { lot: 0, stood: None }.due(&learner, ms(600), &timing), None);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_stood_waits_before_it_stands_again() {
        let timing = Timing::new(&NodeConfig::new(1, "data"));
        let long_ago = Instant::now();
        tokio::time::advance(ms(10_000)).await;
        let mut turn = Turn { lot: 0, stood: None };
        let due = |turn: &Turn, look: &Look| turn.due(look, timing.lease(), &timing);
        assert!(due(&turn, &look(long_ago)) <= Some(Instant::now()));
        turn.stands(7);
        assert_eq!(due(&turn, &look(long_ago)), Some(Instant::now() + ms(357)));
        let alone = Look { is_alone: true, ..look(Instant::now()) };
        assert_eq!(due(&turn, &alone), Some(Instant::now() + ms(357)));
        assert_eq!(due(&Turn { lot: 0, stood: None }, &alone), Some(Instant::now()), "nobody is to be asked");
    }

    #[test]
    fn the_lease_of_a_leader_that_hands_over_ends() {
        let (elections, leader) = (Elections::default(), Vote::new_committed(3, 2));
        assert!(!elections.is_handed_over(&leader));
        elections.handed_over(&leader);
        assert!(elections.is_handed_over(&leader));
        assert!(!elections.is_handed_over(&Vote::new_committed(4, 2)));
    }
}
