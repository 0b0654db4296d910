//! How fast clients work. Usually each waits between its operations, for a rate of all together. With
//! contention none waits: they do their share of a second as fast as they can, and what they could not do
//! during a fault on top of it, so that most is under way just when the fault ends.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// Histories have to fit, and checkers to end.
const OPERATIONS_MAX: u64 = 40_000;
const SHARE_MIN: u64 = 200;
const SHARE_MAX: u64 = 1_000;
/// The longest sleep of a client: it must notice the end of the run.
const NAP: Duration = Duration::from_millis(100);
/// The pause of a client without a pause while there is nothing to do, and after a failure: refusals are quick,
/// and must not use up the share of the others.
const BREATH: Duration = Duration::from_millis(2);
const SETBACK: Duration = Duration::from_millis(10);

/// Few keys, and clients without a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contention {
    /// How many keys are in use at a time, where the workload lets one choose.
    pub(crate) keys: u64,
    /// The operations of all clients together for each second of the run.
    pub(crate) share: u64,
}

impl Contention {
    /// For a run of this many seconds.
    pub(crate) fn new(keys: u64, time_s: u64) -> Contention {
        Contention { keys, share: (OPERATIONS_MAX / time_s.max(1)).clamp(SHARE_MIN, SHARE_MAX) }
    }
}

/// What clients share.
pub(crate) enum Pace {
    /// The mean time between two operations of one client.
    Steady(Duration),
    Shares {
        of_second: u64,
        began: Instant,
        taken: AtomicU64,
    },
}

impl Pace {
    pub(crate) fn new(clients: usize, rate: f64, contention: Option<Contention>) -> Pace {
        match contention {
            Some(Contention { share, .. }) => {
                Pace::Shares { of_second: share, began: Instant::now(), taken: AtomicU64::new(0) }
            }
            None => Pace::Steady(Duration::from_secs_f64(clients as f64 / rate)),
        }
    }

    /// When a client begins.
    pub(crate) fn first(&self, random: &mut fastrand::Rng) -> Instant {
        match self {
            Pace::Steady(interval) => Instant::now() + interval.mul_f64(random.f64()),
            Pace::Shares { .. } => Instant::now(),
        }
    }

    /// Waits for the client's next operation, which is due at `next`, but not for long; returns whether it
    /// may begin.
    pub(crate) fn wait(&self, next: &mut Instant, random: &mut fastrand::Rng) -> bool {
        match self {
            Pace::Steady(interval) => {
                std::thread::sleep(next.saturating_duration_since(Instant::now()).min(NAP));
                if Instant::now() < *next {
                    return false;
                }
                *next = (*next).max(Instant::now() - *interval) + interval.mul_f64(0.5 + random.f64());
                true
            }
            Pace::Shares { of_second, began, taken } => {
                let allowed = (began.elapsed().as_secs() + 1) * of_second;
                let is_due = taken.fetch_add(1, Ordering::Relaxed) < allowed;
                if !is_due {
                    taken.fetch_sub(1, Ordering::Relaxed);
                    std::thread::sleep(BREATH);
                }
                is_due
            }
        }
    }

    /// After an operation that was not done, or a connection that was not made: nobody asks in a tight loop.
    pub(crate) fn has_failed(&self) {
        if let Pace::Shares { .. } = self {
            std::thread::sleep(SETBACK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_until_the_share_is_used_up() {
        let pace = Pace::new(2, 200.0, Some(Contention { keys: 1, share: 3 }));
        let mut random = fastrand::Rng::with_seed(7);
        let mut next = pace.first(&mut random);
        let due: Vec<bool> = (0..5).map(|_| pace.wait(&mut next, &mut random)).collect();
        assert_eq!(due, [true, true, true, false, false]);
    }

    #[test]
    fn a_longer_run_does_not_do_much_more() {
        let share = |time_s| Contention::new(1, time_s).share;
        assert_eq!((share(20), share(100), share(3_600)), (1_000, 400, 200));
    }
}
