//! The log clock. The leader stamps each entry with it; applying an entry updates every node's estimate of
//! it.
//!
//! A stamp is the last one seen plus the time that has passed since by this node's *monotonic* clock, slewed
//! toward the wall clock by at most one part in a thousand. So a jump of a wall clock, on the leader or on
//! the node that takes over, does not make the log clock jump. Only where no running node has seen the clock
//! move, that is at the start of a whole cluster, is the wall clock taken as it is.
//!
//! A follower learns the time late, by as long as a message travels. Twice a second it asks the leader
//! (`report.rs`): the answer was true when it was given, so the time is at least that, and later by at most
//! how long the answer was waited for. A follower keeps between these bounds, and otherwise runs on its own
//! monotonic clock. Stamps move it forward, and, where no leader can be asked, slowly back
//! (`FOLLOW_DIVISOR`).
//!
//! A node that has just started hears the time in its peers' greetings, which may have been delayed for long.
//! So the nodes that vote for it tell the time too: a leader is behind by no more than their answers
//! travelled, and the next leader's clock does not jump from its own. A time that is told counts only up to a
//! bound (`jump.rs`), since the clock never goes back, and neither does what ended by it.
//!
//! Clients mean the wall clock when they name an instant. So the leader records in each entry how far the log
//! clock is ahead of its wall clock (`ahead.rs`). An operator may make a log clock that is ahead wait for the
//! wall clock (`closing.rs`): it then runs at half speed, which shortens nothing that is measured by it.

pub(crate) mod ahead;
pub(crate) mod closing;
mod jump;

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    NodeId,
    clock::{
        ahead::{Distance, ahead_us},
        jump::{JUMP_US_MAX, Walls},
    },
    platform::WallClock,
    sparse::Sparse,
};

/// A live clock that sees a stamp older than its own estimate by more than this takes it for a replayed one.
const REPLAY_US: u64 = 10_000_000;

/// The wall clock may pull by at most one microsecond in this many.
const SLEW_DIVISOR: u64 = 1000;

/// The leader's stamps may pull a follower back by at most one microsecond in this many: faster than a slewed
/// leader falls behind.
const FOLLOW_DIVISOR: u64 = 500;

/// A clock that waits for the wall clock moves by one microsecond in this many.
const CLOSING_DIVISOR: u64 = 2;

/// For this long after a follower has asked the leader for the time, stamps do not draw it back.
const ASKED: Duration = Duration::from_secs(3);

/// What an entry says of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The log clock, in milliseconds since the Unix epoch.
    pub clock_ms: u64,
    /// How far it is ahead of the wall clock, in milliseconds.
    pub ahead_ms: i64,
}

/// One group's clock on one node.
pub(crate) struct Clock {
    wall: WallClock,
    inner: Mutex<Inner>,
    /// What was told and not believed, as far as it was logged.
    unbelieved: Mutex<Sparse<()>>,
}

/// Invariants:
/// - Stamps handed out never decrease, nor are they below any stamp observed.
/// - Without an anchor, no running node is known to have seen the clock move.
#[derive(Default)]
struct Inner {
    /// The clock's value at a moment, in microseconds since the Unix epoch.
    anchor: Option<(u64, Instant)>,
    /// The highest stamp observed or handed out, in microseconds.
    highest_us: u64,
    /// The highest stamp handed out, in microseconds: what is applied up to it says nothing new.
    handed_us: u64,
    /// Elapsed time that was too short to move the clock by a microsecond: toward the wall clock, back with
    /// the leader, and at half speed.
    unslewed_us: u64,
    unfollowed_us: u64,
    unhalved_us: u64,
    /// When the leader last answered a question for the time.
    asked: Option<Instant>,
    /// Whether the clock waits for the wall clock.
    is_closing: bool,
    distance: Distance,
    /// The wall clocks of the peers.
    walls: Walls,
}

impl Clock {
    pub(crate) fn new(wall: WallClock) -> Clock {
        Clock { wall, inner: Mutex::default(), unbelieved: Mutex::default() }
    }

    /// The stamp of an entry that this node, as the leader, is about to propose.
    pub(crate) fn stamp(&self) -> Stamp {
        let mut inner = self.inner.lock();
        let wall_us = (self.wall)();
        let stamp_us = inner.stamp(Instant::now(), wall_us);
        Stamp { clock_ms: stamp_us / 1000, ahead_ms: inner.distance.said(stamp_us, wall_us) }
    }

    /// The time that this node, as the leader, tells others, in microseconds; None while it does not know
    /// that the clock moves.
    pub(crate) fn say_us(&self) -> Option<u64> {
        let mut inner = self.inner.lock();
        inner.anchor?;
        Some(inner.stamp(Instant::now(), (self.wall)()))
    }

    /// An entry with this stamp was applied.
    pub(crate) fn observe(&self, stamp: Stamp) {
        let mut inner = self.inner.lock();
        let stamp_us = stamp.clock_ms.saturating_mul(1000);
        if stamp_us > inner.handed_us {
            inner.distance.heard(stamp.ahead_ms);
        }
        inner.observe(stamp_us, Instant::now());
    }

    /// A running peer said that this is the time. The message may have been delayed for long: the time is at
    /// least this.
    pub(crate) fn learn_ms(&self, clock_ms: u64) {
        self.learn_us(clock_ms.saturating_mul(1000));
    }

    /// As `learn_ms`, in microseconds. Not taken over if it is too far ahead both of the last entry's and of
    /// this node's wall clock: the next leader may continue from it.
    pub(crate) fn learn_us(&self, clock_us: u64) {
        let wall_us = (self.wall)();
        let mut inner = self.inner.lock();
        if clock_us <= inner.highest_us.max(wall_us).saturating_add(JUMP_US_MAX) {
            inner.learn(clock_us, Instant::now());
            return;
        }
        drop(inner);
        if let Some(times) = self.unbelieved.lock().say(()) {
            tracing::error!(
                told_ms = clock_us / 1000,
                wall_ms = wall_us / 1000,
                times,
                "a peer's clock is more than ten days ahead of this node's and of the log's, and is not believed: see \
                 docs/clocks.md"
            );
        }
    }

    /// This node's wall clock, in milliseconds.
    pub(crate) fn wall_ms(&self) -> u64 {
        (self.wall)() / 1000
    }

    /// A peer said that this is its wall clock, in milliseconds; 0 if it did not say.
    pub(crate) fn hear_wall(&self, id: NodeId, wall_ms: u64) {
        if wall_ms > 0 {
            self.inner.lock().walls.hear(id, wall_ms.saturating_mul(1000), Instant::now());
        }
    }

    /// The leader said that this is the time, in microseconds, in answer to a question sent at `asked`: the
    /// time is at least this, and later by at most what has passed since.
    pub(crate) fn hear_us(&self, clock_us: u64, asked: Instant) {
        self.inner.lock().hear(clock_us, asked, Instant::now());
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

    /// How far the log clock is ahead of this node's wall clock, in microseconds, as near as this node can
    /// tell; None while it does not know that the clock moves.
    pub(crate) fn ahead_us(&self) -> Option<i64> {
        let inner = self.inner.lock();
        let wall_us = (self.wall)();
        inner.anchor.map(|_| ahead_us(inner.estimate(Instant::now(), wall_us), wall_us))
    }

    /// From here on the clock waits for the wall clock, or does not any more.
    pub(crate) fn close(&self, is_closing: bool) {
        self.inner.lock().close(is_closing, Instant::now());
    }
}

impl Inner {
    fn estimate(&self, now: Instant, wall_us: u64) -> u64 {
        match self.anchor {
            Some((value, since)) => {
                let elapsed_us = micros(now.duration_since(since));
                value.saturating_add(self.moved(elapsed_us)).max(self.highest_us)
            }
            None => wall_us.max(self.highest_us),
        }
    }

    /// How far the clock moves in a period.
    fn moved(&self, elapsed_us: u64) -> u64 {
        if self.is_closing {
            self.unhalved_us.saturating_add(elapsed_us) / CLOSING_DIVISOR
        } else {
            elapsed_us
        }
    }

    fn stamp(&mut self, now: Instant, wall_us: u64) -> u64 {
        let stamp = match self.anchor {
            None => self.walls.begin(wall_us, self.highest_us, now).max(self.highest_us),
            Some((value, since)) => {
                let elapsed_us = micros(now.duration_since(since));
                let pull_max = share(&mut self.unslewed_us, elapsed_us, SLEW_DIVISOR);
                let at_full_speed = value.saturating_add(elapsed_us).max(self.highest_us);
                let earliest = if self.is_closing {
                    value.saturating_add(share(&mut self.unhalved_us, elapsed_us, CLOSING_DIVISOR))
                } else {
                    at_full_speed.saturating_sub(pull_max)
                };
                wall_us.clamp(earliest, at_full_speed.saturating_add(pull_max)).max(self.highest_us)
            }
        };
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

    fn hear(&mut self, heard_us: u64, asked: Instant, now: Instant) {
        let doubt_us = micros(now.duration_since(asked));
        let latest = heard_us.saturating_add(doubt_us);
        let estimate = self.estimate(now, 0).clamp(heard_us, latest);
        self.anchor = Some((estimate.max(self.highest_us), now));
        self.asked = Some(now);
        self.distance.doubt(doubt_us);
    }

    fn observe(&mut self, stamp_us: u64, now: Instant) {
        if let Some((_, since)) = self.anchor
            && stamp_us > self.handed_us
        {
            let estimate = self.estimate(now, 0);
            // A stamp far behind is that of an old entry that this node is catching up on.
            if stamp_us.saturating_add(REPLAY_US) > estimate {
                let elapsed_us = micros(now.duration_since(since));
                let has_bounds = self.asked.is_some_and(|asked| now.duration_since(asked) < ASKED);
                let back_max =
                    if has_bounds { 0 } else { share(&mut self.unfollowed_us, elapsed_us, FOLLOW_DIVISOR) };
                self.anchor = Some((stamp_us.max(estimate - back_max).max(self.highest_us), now));
            }
        }
        self.highest_us = self.highest_us.max(stamp_us);
    }

    fn close(&mut self, is_closing: bool, now: Instant) {
        if self.is_closing != is_closing {
            if self.anchor.is_some() {
                self.anchor = Some((self.estimate(now, 0), now));
            }
            (self.is_closing, self.unhalved_us) = (is_closing, 0);
        }
    }
}

/// One part in `divisor` of the elapsed time. The remainder counts with the next period: entries may follow
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

    use super::{Clock, Inner, SLEW_DIVISOR, Stamp, micros};

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
    fn a_cluster_that_was_down_believes_the_wall_clock_on_which_its_nodes_agree() {
        const DAY: u64 = 24 * HOUR;
        let (now, log) = (Instant::now(), 20_000 * DAY);
        let begun = |own: u64, peers: &[u64]| {
            let mut clock = fresh();
            clock.observe(log, now);
            for (id, wall) in peers.iter().enumerate() {
                clock.walls.hear(id as u64 + 2, *wall, now);
            }
            clock.stamp(now, own)
        };
        let right = log + 30 * DAY;
        assert_eq!(begun(right, &[right, right + SECOND]), right, "they were down for a month");
        assert_eq!(begun(right, &[]), right, "a node alone has nothing else");
        assert_eq!(begun(right + 9 * DAY, &[right, right]), right + 9 * DAY);
        assert_eq!(begun(right + 365 * DAY, &[right, right + SECOND]), right + SECOND);
        assert_eq!(begun(right + 365 * DAY, &[right]), right);
        assert_eq!(begun(right, &[0, right]), right, "one that is behind does not count");
        assert_eq!(begun(right, &[0, 0]), log, "but most do, and the log's clock never goes back");
    }

    #[test]
    fn a_clock_that_is_told_counts_up_to_ten_days() {
        const DAY_MS: u64 = 24 * HOUR / 1000;
        let now_ms = 20_000 * DAY_MS;
        let clock = Clock::new(std::sync::Arc::new(move || now_ms * 1000));
        clock.learn_ms(u64::MAX);
        clock.learn_ms(now_ms + 10 * DAY_MS + 1);
        assert_eq!(clock.live_ms(), None);
        clock.learn_ms(now_ms + 10 * DAY_MS);
        assert!(clock.live_ms().unwrap() >= now_ms + 10 * DAY_MS);
        // What was told is nothing to go on from.
        clock.learn_ms(now_ms + 19 * DAY_MS);
        assert!(clock.live_ms().unwrap() < now_ms + 11 * DAY_MS);
        // What is in the log is, and so is what the leader answers.
        clock.observe(Stamp { clock_ms: now_ms + 30 * DAY_MS, ahead_ms: 0 });
        clock.learn_ms(now_ms + 39 * DAY_MS);
        assert!(clock.live_ms().unwrap() >= now_ms + 39 * DAY_MS);
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
        let clock = Clock::new(std::sync::Arc::new(|| 5 * HOUR));
        clock.learn_ms(u64::MAX);
        clock.hear_us(u64::MAX, Instant::now());
        clock.observe(Stamp { clock_ms: u64::MAX, ahead_ms: i64::MIN });
        let ahead_ms = i64::try_from((u64::MAX / 2 - 5 * HOUR) / 1000).unwrap();
        for is_closing in [false, true] {
            clock.close(is_closing);
            let stamp = clock.stamp();
            assert_eq!((stamp.clock_ms, clock.estimate_ms()), (u64::MAX / 1000, u64::MAX / 1000));
            assert!(stamp.ahead_ms > ahead_ms, "{stamp:?}");
        }
    }

    #[test]
    fn without_an_anchor_replayed_stamps_are_a_lower_bound() {
        let (mut clock, start) = (fresh(), Instant::now());
        clock.observe(1000 * HOUR, start);
        assert_eq!(clock.stamp(start, 5 * HOUR), 1000 * HOUR, "the wall clock is behind the log");
    }

    /// A follower that asks a slewed leader every half second, over a link with this round trip. Returns the
    /// last error.
    fn asks(clock: &mut Inner, start: Instant, round_trip: Duration, rate: f64, seconds: u32) -> i64 {
        let leader = |now: Instant| 1000 * HOUR + (micros(now - start) as f64 * rate) as u64;
        let mut ahead = 0;
        for turn in 1..=2 * seconds {
            let asked = start + turn * Duration::from_millis(500);
            let (answered, now) = (asked + round_trip / 2, asked + round_trip);
            // Entries come late, and come between.
            clock.observe(leader(asked - Duration::from_millis(5)), asked);
            clock.hear(leader(answered), asked, now);
            ahead = clock.estimate(now, 0) as i64 - leader(now) as i64;
            assert!(ahead <= micros(round_trip / 2) as i64 + 600, "turn {turn}: {ahead} us ahead");
        }
        ahead
    }

    #[test]
    fn a_follower_that_asks_is_no_further_off_than_an_answer_takes() {
        for rate in [1.0, 1.001, 0.999] {
            let (mut clock, start) = (fresh(), Instant::now());
            let ahead = asks(&mut clock, start, Duration::from_micros(400), rate, 60);
            assert!((-300..=800).contains(&ahead), "rate {rate}: {ahead} us ahead");
            let (mut clock, start) = (fresh(), Instant::now());
            let ahead = asks(&mut clock, start, Duration::from_millis(300), rate, 60);
            assert!((-150_600..=150_600).contains(&ahead), "rate {rate}: {ahead} us ahead");
        }
    }

    #[test]
    fn what_the_leader_says_bounds_a_follower_on_both_sides() {
        let (mut clock, start) = (fresh(), Instant::now());
        let after = |ms: u64| start + Duration::from_millis(ms);
        clock.anchor = Some((1000 * HOUR + 5 * SECOND, start));
        // Five seconds ahead: not later than the answer took.
        clock.hear(1000 * HOUR, start, after(20));
        assert_eq!(clock.estimate(after(20), 0), 1000 * HOUR + 20_000);
        // Within the bounds it stays as it is, whatever late entries say.
        clock.hear(1000 * HOUR + 30_000, after(30), after(60));
        clock.observe(1000 * HOUR + 10_000, after(1_000));
        assert_eq!(clock.estimate(after(1_000), 0), 1000 * HOUR + SECOND);
        // And never below what was applied.
        clock.observe(1000 * HOUR + 2 * SECOND, after(1_000));
        clock.hear(1000 * HOUR + SECOND, after(1_000), after(1_001));
        assert_eq!(clock.estimate(after(1_001), 0), 1000 * HOUR + 2 * SECOND);
    }

    #[test]
    fn a_clock_that_closes_goes_at_half_speed_until_it_meets_the_wall_clock() {
        let (mut clock, start) = (fresh(), Instant::now());
        let first = clock.stamp(start, 1000 * HOUR);
        clock.close(true, start);
        // The wall clock is ten seconds behind from here on. It is met after twenty, however often it is
        // asked.
        let wall = |now: Instant| 1000 * HOUR - 10 * SECOND + micros(now - start);
        let mut now = start;
        while now < start + Duration::from_millis(19_990) {
            now += Duration::from_micros(777);
            let stamp = clock.stamp(now, wall(now));
            assert!((stamp - first).abs_diff(micros(now - start) / 2) <= 1);
            assert_eq!(stamp, clock.estimate(now, 0));
        }
        for seconds in [20, 21, 30] {
            now = start + Duration::from_secs(seconds);
            assert_eq!(clock.stamp(now, wall(now)), wall(now));
        }
        // At full speed again from where it is, whenever it is told so.
        clock.close(false, now + Duration::from_secs(2));
        assert_eq!(clock.estimate(now + Duration::from_secs(3), 0), wall(now) + 2 * SECOND);
    }

    #[test]
    fn a_follower_of_a_clock_that_closes_goes_at_half_speed_too() {
        let (mut clock, start) = (fresh(), Instant::now());
        clock.anchor = Some((1000 * HOUR, start));
        clock.close(true, start);
        assert_eq!(clock.estimate(start + Duration::from_secs(9), 0), 1000 * HOUR + 4_500_000);
        // It takes over, and a wall clock that is far behind does not make it slower still.
        let stamp = clock.stamp(start + Duration::from_secs(10), 0);
        assert_eq!(stamp, 1000 * HOUR + 5 * SECOND);
    }

    #[test]
    fn the_leader_says_how_far_it_is_from_the_wall_clock() {
        let wall_us = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(1000 * HOUR));
        let read = wall_us.clone();
        let clock = Clock::new(std::sync::Arc::new(move || read.load(std::sync::atomic::Ordering::Relaxed)));
        assert_eq!((clock.ahead_us(), clock.say_us()), (None, None), "it does not know the time");
        assert_eq!(clock.stamp(), Stamp { clock_ms: 1000 * HOUR / 1000, ahead_ms: 0 });
        // The wall clock jumps a day back.
        wall_us.store(976 * HOUR, std::sync::atomic::Ordering::Relaxed);
        let Stamp { clock_ms, ahead_ms } = clock.stamp();
        assert!((86_400_000..86_400_100).contains(&ahead_ms), "{ahead_ms}");
        assert!(clock_ms - 1000 * HOUR / 1000 < 100, "{clock_ms}");
        assert!(clock.ahead_us().unwrap() >= 86_400_000_000);
        // What others have said counts, once it is newer than what this node has.
        clock.observe(Stamp { clock_ms: clock_ms - 10, ahead_ms: 5 });
        assert!(clock.stamp().ahead_ms >= 86_400_000);
    }
}
