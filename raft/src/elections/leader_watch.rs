//! Watches whether this node is in contact with its group (`contact.rs`), and decides whether requests wait
//! or are refused.
//!
//! The limits follow from the election timeouts (`timing.rs`):
//! - After twice the greatest one of the configuration, and two heartbeats, the leader is no longer known,
//!   until it is heard again. Nearby, that is when the last of the others has begun to elect (openraft adds
//!   the leader's lease to the timeout). A distance adds little: heartbeats come as often.
//! - After three times the greatest one in force a failover would be over. From then on requests are refused
//!   at once; until then they wait for the next leader. Checks are counted as well as time, because a node
//!   that was itself stopped has heard nobody meanwhile.

use std::{sync::Arc, time::Duration};

use openraft::Instant as _;
use tokio::time::Instant;

use crate::{
    Machine, Unavailable, elections::contact::Complaint, membership, node::core::Core, types::Metrics,
};

/// How many checks in a row, one per heartbeat, must find nobody before requests are refused.
const LOOKS_MIN: u32 = 3;

/// How soon it is noticed that contact is restored.
const RETURN: Duration = Duration::from_millis(10);

impl<M: Machine> Core<M> {
    /// How long a member may be silent and still count as reachable.
    pub(crate) fn contact_max(&self) -> Duration {
        self.timing.contact_max()
    }

    /// Leader only: how long no majority has answered; None if none has yet.
    fn majority_age(&self, metrics: &Metrics) -> Option<Duration> {
        let mut voters = metrics.membership_config.membership().voter_ids();
        if voters.next() == Some(self.config.id) && voters.next().is_none() {
            return Some(Duration::ZERO);
        }
        Some(metrics.last_quorum_acked.as_ref()?.elapsed())
    }

    /// Whether a majority of the voters was in contact with this leader recently.
    pub(crate) fn has_majority(&self, metrics: &Metrics) -> bool {
        self.majority_age(metrics).is_some_and(|age| age <= self.contact_max())
    }

    /// Why nothing can be served at present, and for how long that has been so.
    fn out_of_contact(&self) -> Option<(Unavailable, Duration)> {
        let silence = || self.contact.silence().unwrap_or_else(|| self.contact.started.elapsed());
        let leader = *self.leader.borrow();
        match leader {
            None => Some((Unavailable::NoLeader, silence())),
            Some(id) if id == self.config.id => {
                let metrics = self.metrics();
                let age = self.majority_age(&metrics).unwrap_or_else(silence);
                (!self.has_majority(&metrics)).then_some((Unavailable::NoQuorum, age))
            }
            Some(id) => match self.contact.complaint(id)? {
                // It says so only after this long without one.
                Complaint::IsAlone(since) => {
                    Some((Unavailable::NoQuorum, since.elapsed() + self.contact_max()))
                }
                // What travels on another connection may still be answered.
                Complaint::DoesNotAnswer(_) => None,
            },
        }
    }
}

/// Checks periodically whether this node is in contact, and decides whether requests are to wait.
pub(crate) async fn watch<M: Machine>(core: Arc<Core<M>>) {
    let step = core.timing.heartbeat();
    let mut looks = 0;
    loop {
        tokio::time::sleep(if looks < LOOKS_MIN { step } else { RETURN }).await;
        let lost = core.out_of_contact();
        looks = if lost.is_some() { (looks + 1).min(LOOKS_MIN) } else { 0 };
        let refusal = lost.filter(|(_, time)| looks >= LOOKS_MIN && *time >= core.timing.failover_max());
        let refusal = refusal.map(|(why, _)| why);
        core.contact.refusal.send_if_modified(|present| {
            let is_new = *present != refusal;
            if is_new {
                present.clone_from(&refusal);
            }
            is_new
        });
    }
}

/// Follower only: asks the leader whether it has a majority. One that has lost it goes on sending heartbeats.
pub(crate) async fn ask_leader<M: Machine>(core: Arc<Core<M>>) {
    let pause = Duration::from_millis(core.config.election_timeout_ms.0);
    loop {
        // The same interval at any distance.
        tokio::time::sleep(pause).await;
        let leader = *core.leader.borrow();
        let Some(leader) = leader.filter(|leader| *leader != core.config.id) else { continue };
        let Some(peer) = core.peer(leader) else { continue };
        let asked = Instant::now();
        let answer = membership::ask_for_majority(&peer, core.timing.election_max()).await;
        core.contact.take_answer(leader, asked, answer);
    }
}
