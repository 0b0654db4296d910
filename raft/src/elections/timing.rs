//! The timeouts, given the round trips to the peers. They are the configuration's where an operator has set
//! them, or where a majority is near; otherwise they grow with the round trip to it.
//!
//! Only how long a follower waits before it stands for election grows. What nodes must agree about stays the
//! same: heartbeats come as often over any distance, so that a follower notices a leader's end as soon; and
//! after a heartbeat a follower refuses others its vote for as long, the lease, which is the configuration's
//! greatest election timeout. A node that measures something else than the others is only more or less
//! patient than they are.
//!
//! An election takes two round trips to a majority, and half a round trip more until its outcome is known. A
//! node that stands within half a round trip of another may split the vote: the bounds are far enough apart
//! to make that rare.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::NodeConfig;

/// Up to this round trip nothing grows.
const NEAR: Duration = Duration::from_millis(25);

/// The steps in which it grows, so that what is shown does not flicker.
const STEP_MS: u64 = 10;

/// From here on nothing grows any further.
const FAR_MS_MAX: u64 = 1000;

/// Beyond this round trip a vote may take longer than the lease of the default timeouts, which is the time
/// that it has. 300 ms are promised, and what is measured is a little more than the link takes.
const ROUND_TRIP_MAX: Duration = Duration::from_millis(350);

/// What follows from configuration and round trips.
pub(crate) struct Timing {
    heartbeat: Duration,
    /// The configured election timeouts, in milliseconds.
    bounds: (u64, u64),
    /// Whether they grow.
    is_auto: bool,
    /// The round trips to the nearest majority and to the farthest voter, in microseconds; 0 while none is
    /// known.
    majority_us: AtomicU64,
    farthest_us: AtomicU64,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Timing {
    pub(crate) fn new(config: &NodeConfig) -> Timing {
        Timing {
            heartbeat: Duration::from_millis(config.heartbeat_ms),
            bounds: config.election_timeout_ms,
            is_auto: config.election_timeout_auto,
            majority_us: AtomicU64::new(0),
            farthest_us: AtomicU64::new(0),
        }
    }

    /// Takes the round trips to the nearest majority and to the farthest voter.
    pub(crate) fn follow(&self, majority: Option<Duration>, farthest: Duration) {
        self.majority_us.store(majority.map_or(0, micros), Relaxed);
        self.farthest_us.store(micros(farthest), Relaxed);
    }

    /// The round trip to the nearest majority; None while it is not known.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        Some(Duration::from_micros(self.majority_us.load(Relaxed))).filter(|time| !time.is_zero())
    }

    pub(crate) fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// How long after a heartbeat a follower refuses others its vote: openraft's lease, the same at any
    /// distance.
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.bounds.1)
    }

    /// The election timeouts in force, in milliseconds: once the lease is over, a follower waits for a time
    /// between them.
    pub(crate) fn election_ms(&self) -> (u64, u64) {
        let (low, high) = self.bounds;
        let beyond = self.round_trip().unwrap_or_default().saturating_sub(NEAR);
        if !self.is_auto || beyond.is_zero() {
            return (low, high);
        }
        let beyond_ms = micros(beyond).div_ceil(1000 * STEP_MS).saturating_mul(STEP_MS).min(FAR_MS_MAX);
        (low + 2 * beyond_ms, high + 6 * beyond_ms)
    }

    pub(crate) fn election_min(&self) -> Duration {
        Duration::from_millis(self.election_ms().0)
    }

    pub(crate) fn election_max(&self) -> Duration {
        Duration::from_millis(self.election_ms().1)
    }

    /// How long a node may be silent and still count as present: heartbeats, and their answers, come as often
    /// at any distance.
    pub(crate) fn contact_max(&self) -> Duration {
        let farthest = Duration::from_micros(self.farthest_us.load(Relaxed));
        2 * self.lease() + 2 * farthest.saturating_sub(NEAR)
    }

    /// A failover is over within this time, usually long before.
    pub(crate) fn failover_max(&self) -> Duration {
        3 * self.election_max()
    }

    /// Why the timeouts do not fit what was measured, and what would.
    pub(crate) fn misfit(&self) -> Option<String> {
        let round_trip = self.round_trip()?;
        let (low, high) = self.election_ms();
        let spread = Duration::from_millis(high - low);
        let fits = if self.is_auto {
            round_trip <= ROUND_TRIP_MAX.max(self.lease() / 2)
        } else {
            // The same as for those that grow: a vote comes in time, and two candidates at once are rare.
            2 * round_trip <= self.lease() && spread >= round_trip
        };
        if fits {
            return None;
        }
        let ms = round_trip.as_millis();
        let advice = if round_trip <= ROUND_TRIP_MAX {
            "leave them out, and they follow the distance".to_owned()
        } else {
            format!("set election-timeout-min-ms to {} and election-timeout-max-ms to {}", 3 * ms, 8 * ms)
        };
        Some(format!(
            "election time-outs of {low} to {high} ms are not made for a round trip of {ms} ms to a majority of the voters: \
             {advice}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Timing;
    use crate::NodeConfig;

    fn at(config: &NodeConfig, round_trip_ms: u64) -> Timing {
        let (timing, round_trip) = (Timing::new(config), Duration::from_millis(round_trip_ms));
        timing.follow(Some(round_trip), round_trip);
        timing
    }

    /// `docs/distance.md` has this table.
    #[test]
    fn the_documented_time_outs_by_distance() {
        let config = NodeConfig::new(1, "data");
        let table = [
            (0, (350, 600)),
            (1, (350, 600)),
            (25, (350, 600)),
            (50, (410, 780)),
            (100, (510, 1080)),
            (150, (610, 1380)),
            (200, (710, 1680)),
            (300, (910, 2280)),
        ];
        for (round_trip_ms, expected) in table {
            assert_eq!(at(&config, round_trip_ms).election_ms(), expected, "{round_trip_ms} ms");
            assert_eq!(at(&config, round_trip_ms).lease(), Duration::from_millis(600));
            assert_eq!(at(&config, round_trip_ms).misfit(), None);
        }
        assert_eq!(Timing::new(&config).election_ms(), (350, 600), "nothing was measured");
    }

    #[test]
    fn what_an_operator_said_is_kept_and_warned_of_where_it_does_not_fit() {
        let fixed = NodeConfig { election_timeout_auto: false, ..NodeConfig::new(1, "data") };
        for (round_trip_ms, fits) in [(1, true), (100, true), (250, true), (260, false), (300, false)] {
            let timing = at(&fixed, round_trip_ms);
            assert_eq!(timing.election_ms(), (350, 600));
            assert_eq!(timing.misfit().is_none(), fits, "{round_trip_ms} ms: {:?}", timing.misfit());
        }
        let wide = NodeConfig { election_timeout_ms: (1200, 3200), ..fixed.clone() };
        assert_eq!(at(&wide, 400).misfit(), None, "as the advice for 400 ms is");
        assert!(at(&fixed, 300).misfit().is_some_and(|why| why.contains("leave them out")));
        let auto = NodeConfig::new(1, "data");
        let why = at(&auto, 400).misfit().unwrap_or_default();
        assert!(why.contains("election-timeout-min-ms to 1200 and election-timeout-max-ms to 3200"), "{why}");
    }

    #[test]
    fn what_is_lost_does_not_widen_for_ever() {
        let timing = at(&NodeConfig::new(1, "data"), 100_000);
        assert_eq!(timing.election_ms(), (2350, 6600));
        timing.follow(None, Duration::ZERO);
        assert_eq!(timing.election_ms(), (350, 600));
    }
}
