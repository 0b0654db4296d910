//! The distances of the peers: the time between a question and its answer, taken at every greeting and twice
//! a second by a ping (`pings.rs`). Each node measures for itself.
//!
//! The distance is the least of the last ten times: what the link takes at least. A busy machine or a full
//! queue lengthens some of them, and none is ever too short. A peer that has not answered for a while has no
//! distance.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{NodeId, RoundTrip};

/// The time between two pings.
pub(super) const EVERY: Duration = Duration::from_millis(500);

/// How many of the latest times make the distance, ...
const RECENT: usize = 10;

/// ... while the last of them is no older than this.
const FRESH: Duration = Duration::from_secs(10);

/// How long times are remembered.
const KEPT: Duration = Duration::from_secs(60);

/// The most times remembered of a peer: twice as many as there are pings.
const KEPT_MAX: usize = 240;

/// What was measured of one peer, and when, oldest first. Never empty.
struct Measured {
    smoothed: Duration,
    times: VecDeque<(Instant, Duration)>,
}

impl Measured {
    fn new(took: Duration) -> Measured {
        Measured { smoothed: took, times: VecDeque::from([(Instant::now(), took)]) }
    }

    fn take(&mut self, took: Duration) {
        // As TCP does: RFC 6298.
        self.smoothed = (7 * self.smoothed + took) / 8;
        self.times.push_back((Instant::now(), took));
        while self.times.len() > KEPT_MAX || self.times.front().is_some_and(|(at, _)| at.elapsed() > KEPT) {
            self.times.pop_front();
        }
    }

    fn age(&self) -> Duration {
        self.times.back().map_or(Duration::MAX, |(at, _)| at.elapsed())
    }

    fn least(&self) -> Duration {
        let recent = self.times.iter().rev().take(RECENT);
        recent.map(|(_, took)| *took).min().unwrap_or(self.smoothed)
    }

    fn greatest(&self) -> Duration {
        let kept = self.times.iter().filter(|(at, _)| at.elapsed() <= KEPT);
        kept.map(|(_, took)| *took).max().unwrap_or(self.smoothed)
    }
}

/// The distances of all peers.
#[derive(Default)]
pub(crate) struct Distances(Mutex<BTreeMap<NodeId, Measured>>);

impl Distances {
    /// A peer has answered after this time.
    pub(crate) fn take(&self, id: NodeId, took: Duration) {
        let mut all = self.0.lock();
        match all.get_mut(&id).filter(|measured| measured.age() <= KEPT) {
            Some(measured) => measured.take(took),
            None => {
                all.insert(id, Measured::new(took));
            }
        }
    }

    /// What was measured within the last minute, to be shown.
    pub(crate) fn shown(&self, id: NodeId) -> Option<RoundTrip> {
        let all = self.0.lock();
        let measured = all.get(&id).filter(|measured| measured.age() <= KEPT)?;
        Some(RoundTrip {
            least: measured.least(),
            smoothed: measured.smoothed,
            greatest: measured.greatest(),
        })
    }

    /// The distance of a peer, if it has answered recently.
    pub(crate) fn to(&self, id: NodeId) -> Option<Duration> {
        let all = self.0.lock();
        Some(all.get(&id).filter(|measured| measured.age() <= FRESH)?.least())
    }
}

/// The round trip within which node `own` reaches a majority of the voters of each configuration, itself
/// counted where it votes. If too few distances are known, the greatest of these. None if none is known.
pub(crate) fn to_majority(
    own: NodeId,
    configurations: &[BTreeSet<NodeId>],
    to: impl Fn(NodeId) -> Option<Duration>,
) -> Option<Duration> {
    let of = |voters: &BTreeSet<NodeId>| {
        let to = |id: &NodeId| if *id == own { Some(Duration::ZERO) } else { to(*id) };
        let mut known: Vec<Duration> = voters.iter().filter_map(to).collect();
        known.sort_unstable();
        let is_enough = known.len() > voters.len() / 2 || known.iter().any(|time| !time.is_zero());
        known.get(voters.len() / 2).or(known.last()).copied().filter(|_| is_enough)
    };
    configurations.iter().filter_map(of).max()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Distances, EVERY, FRESH, KEPT, KEPT_MAX, RECENT, to_majority};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_link_takes_at_least_is_its_distance() {
        let distances = Distances::default();
        assert_eq!((distances.to(2), distances.shown(2)), (None, None));
        for took in [300, 310, 900, 305] {
            distances.take(2, ms(took));
            tokio::time::advance(EVERY).await;
        }
        assert_eq!(distances.to(2), Some(ms(300)));
        let shown = distances.shown(2).unwrap();
        assert_eq!((shown.least, shown.greatest), (ms(300), ms(900)));
        assert!(shown.smoothed > ms(300) && shown.smoothed < ms(400), "{shown:?}");
        for _ in 0..RECENT {
            distances.take(2, ms(1));
            tokio::time::advance(EVERY).await;
        }
        assert_eq!(distances.to(2), Some(ms(1)), "the link is another one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_answer_has_no_distance_and_is_forgotten() {
        let distances = Distances::default();
        distances.take(2, ms(300));
        tokio::time::advance(FRESH + ms(1)).await;
        assert_eq!(distances.to(2), None);
        assert!(distances.shown(2).is_some());
        tokio::time::advance(KEPT).await;
        assert_eq!(distances.shown(2), None);
        distances.take(2, ms(1));
        assert_eq!(distances.shown(2).unwrap().smoothed, ms(1), "nothing of what was is left");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let distances = Distances::default();
        (0..10_000).for_each(|_| distances.take(2, ms(1)));
        assert_eq!(distances.0.lock()[&2].times.len(), KEPT_MAX);
    }

    #[test]
    fn a_majority_is_as_far_as_its_farthest() {
        let to = |id: u64| Some(ms(10 * id)).filter(|_| id < 9);
        let far = |own, configurations: &[&[u64]]| {
            let sets: Vec<_> = configurations.iter().map(|ids| ids.iter().copied().collect()).collect();
            to_majority(own, &sets, to)
        };
        assert_eq!(far(1, &[&[1]]), Some(ms(0)));
        assert_eq!(far(1, &[&[1, 2, 7]]), Some(ms(20)));
        assert_eq!(far(1, &[&[1, 2, 3, 4, 5]]), Some(ms(30)));
        assert_eq!(far(8, &[&[1, 2, 3]]), Some(ms(20)), "a learner does not count");
        assert_eq!(far(1, &[&[1, 2, 3], &[1, 6, 7]]), Some(ms(60)), "a majority of both");
        assert_eq!(far(1, &[&[1, 2, 9]]), Some(ms(20)));
        assert_eq!(far(1, &[&[1, 2, 9, 10, 11]]), Some(ms(20)), "what is known of them");
        assert_eq!(far(1, &[&[1, 9, 10]]), None);
        assert_eq!(far(1, &[]), None);
    }
}
