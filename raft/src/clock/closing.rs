//! The distance of the log clock from the wall clock, for operators: a line in the log when it is large, and
//! the way to close it. A log clock that is ahead can wait for the wall clock at half speed, if an operator
//! asks for it: what is measured by it then lasts up to twice as long, and nothing ends early. The log
//! records that it waits, so the next leader continues that; whoever leads when the clocks have met ends it
//! with an entry.
//!
//! Nothing closes a distance by jumping: a log clock that is behind is drawn to the wall clock by the slew
//! alone.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    AdminError, Machine, clock::ahead::milliseconds, membership::conflict, node::core::Core,
    proposals::entry::Pace, sparse, state::level::DISTANCE_LEVEL,
};

/// How often the distance is checked.
const LOOK: Duration = Duration::from_millis(500);

/// From this distance on the clocks are far apart, ...
const FAR_MS: u64 = 1000;

/// ... and below this they no longer are.
const NEAR_MS: u64 = 500;

/// Less than this is not worth waiting for, and may only be the delay with which the leader heard the time.
const CLOSED_MS_MIN: i64 = 10;

impl<M: Machine> Core<M> {
    fn ahead_ms(&self) -> Option<i64> {
        self.clock.ahead_us().map(milliseconds)
    }

    /// Leader only: makes the clock wait for the wall clock, or run at full speed again.
    pub(crate) async fn close_clock(&self, close: bool) -> Result<(), AdminError> {
        if close == self.applier.is_closing() {
            return Ok(());
        }
        if self.next_level() < DISTANCE_LEVEL {
            return Err(conflict("not all members know how to do it: upgrade them first"));
        }
        let ahead_ms = self.ahead_ms().unwrap_or(0);
        if close && ahead_ms < CLOSED_MS_MIN {
            return Err(conflict(format!(
                "the log's clock is not ahead of the wall clock of node {}, which leads: the distance is {ahead_ms} ms",
                self.config.id
            )));
        }
        let entry = self.empty_entry(Some(if close { Pace::Close } else { Pace::GoOn }));
        let raft = self.raft.clone();
        self.committed(async move { raft.client_write(entry).await }).await
    }

    /// Leader only: ends the waiting when the clocks have met.
    async fn go_on_when_met(&self) {
        if !self.is_leader() || self.clock.say_us().is_none() || !self.applier.is_closing() {
            return;
        }
        if self.ahead_ms().is_some_and(|ahead_ms| ahead_ms <= 0) && self.close_clock(false).await.is_ok() {
            tracing::info!("the log's clock has met the wall clock, and goes on at the speed of time");
        }
    }
}

/// Watches the distance, for ever. This also draws a leader's clock to its wall clock while nothing is
/// written.
pub(crate) async fn watch<M: Machine>(core: Arc<Core<M>>) {
    let mut voice = Voice::default();
    loop {
        tokio::time::sleep(LOOK).await;
        core.go_on_when_met().await;
        let Some(ahead_ms) = core.ahead_ms() else { continue };
        match voice.say(ahead_ms, Instant::now()) {
            Some(Line::Far) => tracing::warn!(
                ahead_ms,
                is_closing = core.applier.is_closing(),
                "the log's clock is more than a second from this node's wall clock: if it is so on this node alone, mend its \
                 wall clock; else see docs/clocks.md"
            ),
            Some(Line::Near) => {
                tracing::info!(ahead_ms, "the log's clock is near this node's wall clock again")
            }
            None => {}
        }
    }
}

/// What to report of the distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Far,
    Near,
}

/// Reports when the distance is far and when it no longer is, and nothing twice within a minute.
#[derive(Default)]
struct Voice {
    is_far: bool,
    /// When it was last reported to be far.
    said: Option<Instant>,
    /// Whether the present occasion was reported.
    is_said: bool,
}

impl Voice {
    fn say(&mut self, ahead_ms: i64, now: Instant) -> Option<Line> {
        let limit_ms = if self.is_far { NEAR_MS } else { FAR_MS };
        self.is_far = ahead_ms.unsigned_abs() >= limit_ms;
        if !self.is_far {
            return std::mem::take(&mut self.is_said).then_some(Line::Near);
        }
        let is_new = self.said.is_none_or(|said| now.duration_since(said) >= sparse::EVERY);
        if self.is_said || !is_new {
            return None;
        }
        (self.said, self.is_said) = (Some(now), true);
        Some(Line::Far)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Line, Voice};

    #[test]
    fn each_change_is_said_once_and_a_clock_that_goes_to_and_fro_does_not_fill_the_log() {
        let (mut voice, start) = (Voice::default(), Instant::now());
        let mut say = |seconds: u64, ahead_ms| voice.say(ahead_ms, start + Duration::from_secs(seconds));
        assert_eq!(
            [say(0, 999), say(1, -1000), say(2, 5_000), say(3, 500)],
            [None, Some(Line::Far), None, None]
        );
        assert_eq!([say(4, -499), say(5, 0), say(6, 999)], [Some(Line::Near), None, None]);
        let said = (7..127).filter(|second| say(*second, i64::from(*second % 2 == 0) * 9_000).is_some());
        // Far and near, once a minute each.
        assert_eq!(said.count(), 4);
        assert_eq!(say(200, i64::MIN), Some(Line::Far));
    }
}
