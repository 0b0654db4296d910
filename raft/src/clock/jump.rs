//! How far the log clock may be made to jump. Where no running node has seen the log clock move, it starts from
//! a wall clock, and what ends by it ends for good. So a wall clock that most of the nodes contradict is not
//! believed: peers tell theirs in their greetings. A cluster that was down for a month is no contradiction.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::micros;
use crate::NodeId;

/// Ten days: nothing that is further ahead than this of everything else that is known is the time.
pub(super) const JUMP_US_MAX: u64 = 10 * 24 * 3600 * 1_000_000;

/// How many peers' clocks are remembered.
const PEERS_MAX: usize = 256;

/// The wall clocks that peers have told, in microseconds, and when.
#[derive(Debug, Default)]
pub(super) struct Walls(BTreeMap<NodeId, (u64, Instant)>);

impl Walls {
    pub(super) fn hear(&mut self, id: NodeId, wall_us: u64, now: Instant) {
        if self.0.len() < PEERS_MAX || self.0.contains_key(&id) {
            self.0.insert(id, (wall_us, now));
        }
    }

    /// The middle one of the wall clocks, this node's among them; the earlier of two.
    fn middle(&self, own_us: u64, now: Instant) -> u64 {
        let told =
            self.0.values().map(|(wall_us, at)| wall_us.saturating_add(micros(now.duration_since(*at))));
        let mut all: Vec<u64> = told.chain([own_us]).collect();
        all.sort_unstable();
        all[(all.len() - 1) / 2]
    }

    /// The wall clock from which the log clock starts, which stood at `log_us` last: this node's, unless most
    /// of the others contradict it.
    pub(super) fn begin(&self, own_us: u64, log_us: u64, now: Instant) -> u64 {
        let middle = self.middle(own_us, now);
        let begin = if own_us > middle.saturating_add(JUMP_US_MAX) { middle } else { own_us };
        if begin != own_us {
            tracing::error!(
                wall_ms = own_us / 1000,
                others_ms = middle / 1000,
                "this node's wall clock is more than ten days ahead of the other nodes', and is not believed: mend it, see \
                 docs/clocks.md"
            );
        }
        if log_us > 0 && begin > log_us.saturating_add(JUMP_US_MAX) {
            tracing::warn!(
                log_ms = log_us / 1000,
                begin_ms = begin / 1000,
                "the log's clock goes on more than ten days later than it stood, as all nodes were down: see docs/clocks.md"
            );
        }
        begin
    }
}
