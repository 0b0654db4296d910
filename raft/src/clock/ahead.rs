//! How far the log clock is ahead of the wall clock, as entries record it. Clients name instants by the wall
//! clock, and this distance turns them into deadlines by the log clock, so it is the same on all nodes and
//! does not fluctuate: on a healthy cluster it is 0. It follows what the leader measures only when that is
//! off by more than a band.

/// While entries say 0, the clocks may be this far apart: the wall clocks of two nodes differ, and the log
/// clock is slewed to that of a new leader within as many seconds as this is milliseconds.
const NEAR_US: u64 = 10_000;

/// Otherwise what entries say may be off by this much.
const STEP_US: u64 = 2_000;

/// The clocks have met when they are no further apart than this.
const MET_US: u64 = 500;

/// What the entries say, and how well a follower knows the time.
#[derive(Debug, Default)]
pub(crate) struct Distance {
    /// In milliseconds.
    ahead_ms: i64,
    /// On a new leader: how far its clock may be behind that of the leader before, because it heard the time
    /// late.
    doubt_us: u64,
}

impl Distance {
    /// What an entry with this stamp says, given this wall clock.
    pub(crate) fn said(&mut self, stamp_us: u64, wall_us: u64) -> i64 {
        let measured_us = ahead_us(stamp_us, wall_us);
        let off_us = measured_us.saturating_sub(self.ahead_ms.saturating_mul(1000));
        let band_us = if self.ahead_ms == 0 { NEAR_US } else { STEP_US };
        let has_met = self.ahead_ms != 0 && measured_us.unsigned_abs() <= MET_US;
        let is_within = off_us.unsigned_abs() <= band_us;
        if is_within || has_met {
            self.doubt_us = 0;
        }
        // Behind by no more than it may be: the slew corrects that.
        let is_doubtful = off_us < 0 && off_us.unsigned_abs() <= band_us.saturating_add(self.doubt_us);
        if has_met || !is_within && !is_doubtful {
            let is_nothing = measured_us.unsigned_abs() <= STEP_US;
            self.ahead_ms = if is_nothing { 0 } else { milliseconds(measured_us) };
            self.doubt_us = 0;
        }
        self.ahead_ms
    }

    /// What an entry of another node says.
    pub(crate) fn heard(&mut self, ahead_ms: i64) {
        self.ahead_ms = ahead_ms;
    }

    /// The time was heard from the leader, which may have been ahead by this much.
    pub(crate) fn doubt(&mut self, doubt_us: u64) {
        self.doubt_us = doubt_us;
    }
}

/// How far a clock is ahead of the wall clock, in microseconds.
pub(crate) fn ahead_us(clock_us: u64, wall_us: u64) -> i64 {
    let ahead = i128::from(clock_us) - i128::from(wall_us);
    ahead.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

/// Microseconds as the nearest milliseconds.
pub(crate) fn milliseconds(us: i64) -> i64 {
    us.saturating_add(500).div_euclid(1000)
}

#[cfg(test)]
mod tests {
    use super::{Distance, ahead_us, milliseconds};

    const NOW: u64 = 1_700_000_000_000_000;
    const DAY_US: i64 = 86_400_000_000;

    /// What it says when the log clock is so far ahead, one after the other.
    fn said(distance: &mut Distance, ahead: &[i64]) -> Vec<i64> {
        ahead.iter().map(|ahead_us| distance.said(NOW.saturating_add_signed(*ahead_us), NOW)).collect()
    }

    #[test]
    fn it_is_nothing_while_the_clocks_are_near_each_other() {
        let mut distance = Distance::default();
        assert_eq!(said(&mut distance, &[0, 10_000, -10_000, 4_700, -1]), [0; 5]);
    }

    #[test]
    fn it_follows_in_steps_and_does_not_go_to_and_fro() {
        let mut distance = Distance::default();
        let far = DAY_US + 400;
        assert_eq!(said(&mut distance, &[far]), [DAY_US / 1000]);
        let near = [DAY_US - 2_000, DAY_US + 2_000, DAY_US + 1_999];
        assert_eq!(said(&mut distance, &near), [DAY_US / 1000; 3]);
        assert_eq!(said(&mut distance, &[DAY_US - 2_001]), [DAY_US / 1000 - 2]);
        // The wall clock jumps the other way.
        assert_eq!(said(&mut distance, &[-DAY_US]), [-DAY_US / 1000]);
    }

    #[test]
    fn clocks_that_come_nearer_meet() {
        let mut distance = Distance::default();
        let mut last = 20;
        assert_eq!(said(&mut distance, &[20_000]), [20]);
        for ahead_us in (0..20_000).rev() {
            let said = said(&mut distance, &[ahead_us])[0];
            assert!(said <= last && (ahead_us - said * 1000).abs() <= 2_500, "{said} at {ahead_us}");
            last = said;
        }
        assert_eq!(last, 0);
        assert_eq!(said(&mut distance, &[9_999]), [0]);
    }

    #[test]
    fn a_new_leader_that_was_far_from_the_old_one_does_not_take_its_lag_for_a_distance() {
        let mut distance = Distance::default();
        distance.doubt(150_000);
        // The slew takes it back, and then the doubt is over.
        assert_eq!(said(&mut distance, &[-150_000, -80_000, -20_000, -9_000, -11_000]), [0, 0, 0, 0, -11]);
        // Hearing late puts nobody ahead.
        let mut distance = Distance::default();
        distance.doubt(150_000);
        assert_eq!(said(&mut distance, &[11_000]), [11]);
    }

    #[test]
    fn no_distance_is_too_large() {
        assert_eq!(ahead_us(u64::MAX, 0), i64::MAX);
        assert_eq!(ahead_us(0, u64::MAX), i64::MIN);
        assert_eq!(
            [milliseconds(i64::MAX), milliseconds(-1_500), milliseconds(-1_501)],
            [i64::MAX / 1000, -1, -2]
        );
        let mut distance = Distance::default();
        distance.heard(i64::MIN);
        assert_eq!(said(&mut distance, &[0]), [0]);
        assert_eq!(distance.said(u64::MAX, 0), i64::MAX / 1000);
    }
}
