//! How many entries may be in flight at once. Nearby, a few are enough, and make large ones. Over a long link
//! a proposal would have to wait until one of them is back, so there may be one for each `PATIENCE` that they
//! take.

use std::time::Duration;

use super::{PATIENCE, Proposer};
use crate::Local;

/// The most entries, however far the peers are. A stream of entries to a peer carries at most as many.
const ENTRIES_MAX: usize = 64;

/// The most bytes in flight once there are more entries than configured. One entry may always be in flight.
const BYTES_MAX: usize = 16 << 20;

impl<L: Local> Proposer<L> {
    /// Adjusts the window to the round trip to the farthest voter.
    pub(crate) fn reach(&self, farthest: Duration) {
        let least = self.limits.in_flight_max;
        // A follower's proposals go to the leader, and from there to a majority: two round trips.
        let steps = 2 * farthest.as_millis() / PATIENCE.as_millis();
        let wanted = usize::try_from(steps).unwrap_or(usize::MAX).clamp(least, ENTRIES_MAX.max(least));
        let mut window = self.window.lock();
        if wanted > *window {
            self.in_flight.add_permits(wanted - *window);
            *window = wanted;
        } else {
            // Permits in use are withdrawn by a later call.
            *window -= self.in_flight.forget_permits(*window - wanted);
        }
    }

    /// Waits until another entry may be in flight.
    pub(super) async fn room(&self) {
        loop {
            let wake = self.wake.notified();
            let is_there = {
                let queue = self.queue.lock();
                queue.entries_in_flight < self.limits.in_flight_max || queue.bytes_in_flight < BYTES_MAX
            };
            if is_there {
                return;
            }
            wake.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;

    use super::{super::Limits, BYTES_MAX, ENTRIES_MAX, Proposer};
    use crate::{Local, ProposeError};

    struct Nobody;

    impl Local for Nobody {
        fn failed(self, _: ProposeError) {}
    }

    fn proposer() -> Proposer<Nobody> {
        let limits = Limits {
            batch_bytes_max: 1 << 20,
            batch_proposals_max: 1000,
            proposal_bytes_max: 1 << 20,
            waiting_bytes_max: 1 << 20,
            in_flight_max: 4,
            timeout: Duration::from_secs(5),
        };
        Proposer::new(1, limits, watch::channel(None).1)
    }

    #[test]
    fn more_entries_are_under_way_over_a_long_link_and_no_more_than_that() {
        let proposer = proposer();
        let after = |ms: u64| {
            proposer.reach(Duration::from_millis(ms));
            proposer.in_flight.available_permits()
        };
        assert_eq!([after(0), after(20), after(100), after(300), after(60_000)], [4, 4, 20, 60, ENTRIES_MAX]);
        let taken = proposer.in_flight.try_acquire_many(60).unwrap();
        assert_eq!(after(0), 0, "those that are taken stay");
        drop(taken);
        assert_eq!(after(0), 4);
        assert_eq!(after(0), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn large_ones_are_as_few_as_ever() {
        let proposer = proposer();
        let is_there = async || tokio::time::timeout(Duration::from_millis(1), proposer.room()).await.is_ok();
        (0..20).for_each(|_| proposer.sent(1, 100));
        assert!(is_there().await);
        proposer.sent(1, BYTES_MAX);
        assert!(!is_there().await);
        (0..20).for_each(|_| proposer.landed(1, 100));
        assert!(is_there().await, "it is the only one");
        (0..3).for_each(|_| proposer.sent(1, BYTES_MAX));
        assert!(!is_there().await);
    }
}
