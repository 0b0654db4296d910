//! What goes wrong again and again is logged once a minute at most, with how often it happened.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How often the same thing is logged.
pub(crate) const EVERY: Duration = Duration::from_secs(60);

/// How many different things are told apart. There are only so many reasons; whoever makes up others does not
/// fill the log.
const KINDS_MAX: usize = 64;

struct Said {
    at: Instant,
    left_out: u64,
}

/// What was logged, when, and how often it was left out since.
pub(crate) struct Sparse<K> {
    said: BTreeMap<K, Said>,
}

impl<K> Default for Sparse<K> {
    fn default() -> Self {
        Sparse { said: BTreeMap::new() }
    }
}

impl<K: Ord> Sparse<K> {
    /// How often it has happened since it was last logged, if it is to be logged now.
    pub(crate) fn say(&mut self, what: K) -> Option<u64> {
        let now = Instant::now();
        if let Some(said) = self.said.get_mut(&what) {
            if now - said.at < EVERY {
                said.left_out += 1;
                return None;
            }
            let times = said.left_out + 1;
            *said = Said { at: now, left_out: 0 };
            return Some(times);
        }
        if self.said.len() >= KINDS_MAX {
            self.said.retain(|_, said| now - said.at < EVERY);
        }
        if self.said.len() >= KINDS_MAX {
            return None;
        }
        self.said.insert(what, Said { at: now, left_out: 0 });
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{EVERY, KINDS_MAX, Sparse};

    #[tokio::test(start_paused = true)]
    async fn each_is_said_once_a_minute_with_how_often_it_was() {
        let mut sparse = Sparse::default();
        assert_eq!(
            [sparse.say("a"), sparse.say("b"), sparse.say("a"), sparse.say("a")],
            [Some(1), Some(1), None, None]
        );
        tokio::time::advance(EVERY).await;
        assert_eq!([sparse.say("a"), sparse.say("a"), sparse.say("b")], [Some(3), None, Some(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_makes_up_reasons_does_not_fill_the_log() {
        let mut sparse = Sparse::default();
        for minute in 0..3 {
            let said = (0..10_000).filter(|number| sparse.say((minute, *number)).is_some()).count();
            assert_eq!(said, KINDS_MAX);
            tokio::time::advance(EVERY + Duration::from_millis(1)).await;
        }
    }
}
