//! What a read waits for, level by level, before it may look at this node's machine.
//!
//! Ages are measured on this node alone: by its monotonic clock, from the moment before it asked what the
//! group had committed. A message from a leader proves nothing about its own age (it may have lain in a
//! buffer while this node was stopped), so only rounds that this node itself began count.
//!
//! Who leads is confirmed by messages of our own (`confirm.rs`). Nothing of openraft's clock decides what a
//! client may see, neither its lease nor its read index: it dates a follower's answer by the latest request
//! that the answer covers. A request that carries only a commit index ends at the same entry as the one
//! before it, so a late answer to the earlier one passes for an answer to both, and is dated from a moment of
//! which the follower knows nothing.

pub(crate) mod confirm;
pub(crate) mod rounds;

use std::{sync::atomic::Ordering, time::Duration};

use openraft::ReadPolicy;
use tokio::time::Instant;

use crate::{
    Machine, ReadLevel, Unavailable,
    net::frame::Kind,
    node::core::{Core, Leader},
    reads::rounds::{Confirmed, Rounds},
    safeguard::{self, Safeguard},
};

impl<M: Machine> Core<M> {
    /// Returns when a read of the local machine gives what `level` promises.
    pub(crate) async fn barrier(&self, level: ReadLevel) -> Result<(), Unavailable> {
        if level != ReadLevel::Stale
            && let Some(why) = self.is_apart()
        {
            return Err(Unavailable::Apart(why));
        }
        let index = match level {
            ReadLevel::Stale => return Ok(()),
            _ if safeguard::is_off(Safeguard::ReadRound) => return Ok(()),
            ReadLevel::Bounded(age_max) if self.is_at_most(age_max) => return Ok(()),
            ReadLevel::Linearizable | ReadLevel::Lease | ReadLevel::Bounded(_) => {
                self.joined(&self.reads).await?
            }
        };
        self.applied(index).await
    }

    /// Joins the next round. The limit includes the one that may be under way: together the two could take
    /// twice as long as a request may.
    pub(crate) async fn joined(&self, rounds: &Rounds) -> Result<u64, Unavailable> {
        let joined = tokio::time::timeout(self.timeout(), rounds.join()).await;
        let is_led = self.leader.borrow().is_some();
        joined.unwrap_or(Err(if is_led { Unavailable::NoQuorum } else { Unavailable::NoLeader }))
    }

    /// Waits until `index` is applied here, for as long as a request may take.
    pub(crate) async fn applied(&self, index: u64) -> Result<(), Unavailable> {
        tokio::time::timeout(self.timeout(), self.applier.wait(index))
            .await
            .map_err(|_| Unavailable::NotServing("it is catching up with the log"))
    }

    /// Whether the local machine certainly has every write that was acknowledged more than `age_max` ago.
    fn is_at_most(&self, age_max: Duration) -> bool {
        let confirmed = *self.confirmed.lock();
        confirmed.is_some_and(|confirmed| {
            confirmed.before.elapsed() <= age_max && self.applier.index() >= confirmed.index
        })
    }

    /// One read-index round: the index up to which a linearizable read must see.
    pub(crate) async fn read_round(&self) -> Result<u64, Unavailable> {
        self.read_rounds.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            biased;
            why = self.contact.refused() => Err(why),
            index = self.confirm_somewhere() => index,
        }
    }

    async fn confirm_somewhere(&self) -> Result<u64, Unavailable> {
        let mut search = self.search_leader();
        loop {
            let leader = search.next().await?;
            let before = Instant::now();
            let index = match leader {
                Leader::Here => self.confirm_read_index().await,
                Leader::At(peer) => self.ask_for_index(&peer, Kind::ReadIndex).await,
            };
            if let Some(index) = index {
                let mut confirmed = self.confirmed.lock();
                // A round that began earlier may end later.
                if confirmed.is_none_or(|confirmed| confirmed.before < before) {
                    *confirmed = Some(Confirmed { before, index });
                }
                return Ok(index);
            }
        }
    }

    /// Leader only: an index confirmed by a majority. None if it could not be.
    async fn confirm_read_index(&self) -> Option<u64> {
        let policy = if safeguard::is_off(Safeguard::OwnConfirmation) {
            ReadPolicy::ReadIndex
        } else if safeguard::is_off(Safeguard::StartupGuard) {
            ReadPolicy::LeaseRead
        } else {
            return self.confirmed_index().await;
        };
        Some(self.raft.get_read_linearizer(policy).await.ok()?.read_log_id().index())
    }
}
