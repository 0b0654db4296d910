//! The log clock. The leader stamps each entry with it; applying an entry moves every node's idea of it.
//!
//! A stamp is the last one seen plus the time that has passed since by this node's *monotonic* clock, slewed
//! toward the wall clock by at most one part in a thousand. So a jump of a wall clock, on the leader or on the
//! node that takes over, moves the log clock by nothing at once. Only where no running node has seen the clock
//! move, that is at the start of a whole cluster, is the wall clock taken as it is.
//!
//! A follower hears of the time late, by as long as an entry travels. It goes on by its own monotonic clock, is
//! moved forward by a stamp that is ahead, and back by one that is behind only as slowly as the leader may be slewed.
//!
//! A node that has just started hears the time from its peers' greetings, which may have been held up for long. So those
//! who vote for it say the time too: whoever leads is no further behind than their answers were on their way, and the
//! next leader's clock is no jump from its own.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::platform::WallClock;

/// A live clock that sees a stamp older than its own estimate by more than this takes it for a replayed one.
const REPLAY_US: u64 = 10_000_000;

/// The wall clock may pull at most one microsecond in this many.
const SLEW_DIVISOR: u64 = 1000;

/// The leader's stamps may pull a follower back by at most one microsecond in this many: faster than a slewed leader
/// falls behind.
const FOLLOW_DIVISOR: u64 = 500;

/// One group's clock on one node.
pub(crate) struct Clock {
    wall: WallClock,
    inner: Mutex<Inner>,
}

/// Invariants:
/// - Stamps handed out never fall, nor below any stamp observed.
/// - Without an anchor, no running node is known to have seen the clock move.
#[derive(Default)]
struct Inner {
    /// The clock's value at a moment, in microseconds since the Unix epoch.
    anchor: Option<(u64, Instant)>,
    /// The highest stamp observed or handed out, in microseconds.
    highest_us: u64,
    /// The highest stamp handed out, in microseconds: what is applied up to it says nothing new.
    handed_us: u64,
    /// Time that has passed and was too short to move the clock by a microsecond: toward the wall clock, and back with the
    /// leader.
    unslewed_us: u64,
    unfollowed_us: u64,
}

impl Clock {
    pub(crate) fn new(wall: WallClock) -> Clock {
        Clock { wall, inner: Mutex::default() }
    }

    /// The stamp of an entry that this node, as the leader, is about to propose, in milliseconds.
    pub(crate) fn stamp_ms(&self) -> u64 {
        self.inner.lock().stamp(Instant::now(), (self.wall)()) / 1000
    }

    /// An entry with this stamp was applied.
    pub(crate) fn observe_ms(&self, stamp_ms: u64) {
        self.inner.lock().observe(stamp_ms.saturating_mul(1000), Instant::now());
    }

    /// A running peer said that this is the time. It may have been long on its way: it is at least as late.
    pub(crate) fn learn_ms(&self, clock_ms: u64) {
        self.inner.lock().learn(clock_ms.saturating_mul(1000), Instant::now());
    }

    /// The time now, as near as this node can tell, in milliseconds.
    pub(crate) fn estimate_ms(&self) -> u64 {
        self.inner.lock().estimate(Instant::now(), (self.wall)()) / 1000
    }

    /// The time now, if this node knows that the clock moves.
    pub(crate) fn live_ms(&self) -> Option<u64> {
        let inner = self.inner.lock();
        inner.anchor.map(|_| inner.estimate(Instant::now(), 0) / 1000)
    }
}

impl Inner {
    fn estimate(&self, now: Instant, wall_us: u64) -> u64 {
        match self.anchor {
            Some((value, since)) => {
                value.saturating_add(micros(now.duration_since(since))).max(self.highest_us)
            }
            None => wall_us.max(self.highest_us),
        }
    }

    fn stamp(&mut self, now: Instant, wall_us: u64) -> u64 {
        let elapsed_us = self.anchor.map_or(0, |(_, since)| micros(now.duration_since(since)));
        let estimate = self.estimate(now, wall_us);
        let pull_max = share(&mut self.unslewed_us, elapsed_us, SLEW_DIVISOR);
        let slewed = wall_us.clamp(estimate.saturating_sub(pull_max), estimate.saturating_add(pull_max));
        let stamp = if self.anchor.is_some() { slewed } else { estimate }.max(self.highest_us);
        self.anchor = Some((stamp, now));
        self.highest_us = stamp;
        self.handed_us = stamp;
        stamp
    }

    fn learn(&mut self, heard_us: u64, now: Instant) {
        if self.anchor.is_none() || heard_us > self.estimate(now, 0) {
            self.anchor = Some((heard_us.max(self.highest_us), now));
        }
    }

    fn observe(&mut self, stamp_us: u64, now: Instant) {
        if let Some((_, since)) = self.anchor
            && stamp_us > self.handed_us
        {
            let estimate = self.estimate(now, 0);
            // Far behind is an old entry that this node is catching up on.
            if stamp_us.saturating_add(REPLAY_US) > estimate {
                let elapsed_us = micros(now.duration_since(since));
                let back_max = share(&mut self.unfollowed_us, elapsed_us, FOLLOW_DIVISOR);
                self.anchor = Some((stamp_us.max(estimate - back_max).max(self.highest_us), now));
            }
        }
        self.highest_us = self.highest_us.max(stamp_us);
    }
}

/// The share of what has passed that is one in `divisor`. What is left over counts with what passes next: entries may follow
/// each other within fractions of a millisecond.
fn share(left_us: &mut u64, elapsed_us: u64, divisor: u64) -> u64 {
    let passed = left_us.saturating_add(elapsed_us);
    *left_us = passed % divisor;
    passed / divisor
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Inner, SLEW_DIVISOR, micros};

    const SECOND: u64 = 1_000_000;
    const HOUR: u64 = 3600 * SECOND;

    fn fresh() -> Inner {
        Inner::default()
    }

    #[test]
    fn a_fresh_cluster_takes_the_wall_clock_and_then_its_own_pace() {
        let (mut clock, start) = (fresh(), Instant::now());
        assert_eq!(clock.stamp(start, 1000 * HOUR), 1000 * HOUR);
        // The wall clock jumps an hour ahead: a second later the clock has moved a second and a millisecond.
        let later = start + Duration::from_secs(1);
        assert_eq!(clock.stamp(later, 1001 * HOUR), 1000 * HOUR + SECOND + SECOND / 1000);
        // And an hour back: it never falls.
        let later = later + Duration::from_secs(1);
        assert_eq!(clock.stamp(later, 999 * HOUR), 1000 * HOUR + 2 * SECOND);
    }

    #[test]
    fn the_clock_is_drawn_to_the_wall_clock_however_often_it_is_asked() {
        let (mut clock, start) = (fresh(), Instant::now());
        let first = clock.stamp(start, 1000 * HOUR);
        let mut now = start;
        for _ in 0..100_000 {
            now += Duration::from_micros(100);
            clock.stamp(now, 1001 * HOUR + micros(now - start));
        }
        let drawn = clock.estimate(now, 0) - first - micros(now - start);
        assert_eq!(drawn, micros(now - start) / SLEW_DIVISOR);
    }

    #[test]
    fn a_follower_that_is_ahead_is_drawn_back_however_often_it_hears_of_the_time() {
        let (mut clock, start) = (fresh(), Instant::now());
        clock.anchor = Some((1000 * HOUR + 10_000, start));
        let mut now = start;
        for _ in 0..100_000 {
            now += Duration::from_micros(100);
            clock.observe(1000 * HOUR + micros(now - start), now);
        }
        assert_eq!(clock.estimate(now, 0), 1000 * HOUR + micros(now - start));
    }

    #[test]
    fn a_follower_continues_where_the_leader_was() {
        let (mut clock, start) = (fresh(), Instant::now());
        clock.anchor = Some((1000 * HOUR, start));
        clock.observe(1000 * HOUR + 5 * SECOND, start + Duration::from_secs(5));
        let stamp = clock.stamp(start + Duration::from_secs(65), 2000 * HOUR);
        let expected = 1000 * HOUR + 65 * SECOND;
        assert!((expected..=expected + SECOND / 10).contains(&stamp), "{stamp}");
    }

    #[test]
    fn the_leader_s_own_entries_do_not_slow_its_clock() {
        let (mut clock, start) = (fresh(), Instant::now());
        let first = clock.stamp(start, 1000 * HOUR);
        let mut now = start;
        for _ in 0..100_000 {
            let stamp = clock.stamp(now, 1000 * HOUR + micros(now - start));
            now += Duration::from_micros(700);
            clock.observe(stamp, now);
        }
        assert_eq!(clock.estimate(now, 0) - first, micros(now - start));
    }

    #[test]
    fn a_follower_keeps_step_with_a_leader_that_is_slewed() {
        for slew in [0, 1, -1] {
            let (mut clock, start) = (fresh(), Instant::now());
            clock.anchor = Some((1000 * HOUR, start));
            let mut now = start;
            for entry in 0..1_000_000_i64 {
                now += Duration::from_millis(10);
                let passed = i64::try_from(micros(now - start)).unwrap();
                let leader = 1000 * HOUR as i64 + passed + passed * slew / SLEW_DIVISOR as i64;
                // Entries travel for 300 to 1,300 us.
                clock.observe((leader - 300 - entry * 7919 % 1000) as u64, now);
                let ahead = clock.estimate(now, 0) as i64 - leader;
                assert!((-2_000..=100).contains(&ahead), "slew {slew}, entry {entry}: {ahead} us ahead");
            }
        }
    }

    #[test]
    fn replayed_entries_do_not_pull_a_live_clock_back() {
        let (mut clock, start) = (fresh(), Instant::now());
        clock.anchor = Some((1000 * HOUR, start));
        clock.observe(900 * HOUR, start);
        assert_eq!(clock.estimate(start, 0), 1000 * HOUR);
    }

    #[test]
    fn what_was_long_on_its_way_is_a_lower_bound_and_later_words_mend_it() {
        let (mut clock, start) = (fresh(), Instant::now());
        clock.learn(1000 * HOUR, start);
        // Another peer has heard more of the time.
        clock.learn(1000 * HOUR + 5 * SECOND, start + Duration::from_secs(1));
        clock.learn(1000 * HOUR + SECOND, start + Duration::from_secs(1));
        assert_eq!(clock.estimate(start + Duration::from_secs(2), 0), 1000 * HOUR + 6 * SECOND);
    }

    #[test]
    fn no_word_of_the_time_is_too_large() {
        let clock = super::Clock::new(std::sync::Arc::new(|| 5 * HOUR));
        clock.learn_ms(u64::MAX);
        clock.observe_ms(u64::MAX);
        assert_eq!((clock.stamp_ms(), clock.estimate_ms()), (u64::MAX / 1000, u64::MAX / 1000));
    }

    #[test]
    fn without_an_anchor_replayed_stamps_are_a_lower_bound() {
        let (mut clock, start) = (fresh(), Instant::now());
        clock.observe(1000 * HOUR, start);
        assert_eq!(clock.stamp(start, 5 * HOUR), 1000 * HOUR, "the wall clock is behind the log");
    }
}
