//! What must be seen from time to time. Silence is a finding: while a majority of the voters is well and connected, some
//! operation is done every few seconds, and the log's clock goes on.

use std::sync::atomic::Ordering;

use super::{node::Node, world::World};
use crate::{client::Connection, history::Kind};

/// How often it is looked, in milliseconds.
const LOOK_MS: u64 = 100;
/// After how long a silence somebody asks where an answer must come from ...
const PROBE_MS: u64 = 1_500;
/// ... and after which one that is a finding.
const SILENCE_MS_MAX: u64 = 5_000;
/// For how long entries may be applied while the clock stands still.
const STANDSTILL_MS_MAX: u64 = 5_000;
/// The probe's key is not among those of any workload.
const PROBE: [&str; 3] = ["SET", "probe", "1"];

#[derive(Default)]
pub(super) struct Health {
    /// What was done up to the last look, and when that last rose.
    done: usize,
    done_at: u64,
    /// Since when a majority is well.
    well_since: Option<u64>,
    /// What the log's clock was, and since when it has that value while entries are applied.
    clock_ms: u64,
    clock_since: u64,
    applied: u64,
}

impl World {
    pub(super) fn look_at_health(&mut self) {
        if !self.now.is_multiple_of(LOOK_MS) {
            return;
        }
        self.look_for_standstill();
        let well = self.healthy_majority();
        let done = self.load.recorder.count(Kind::Ok) + self.load.probes.load(Ordering::Relaxed);
        if done != self.health.done || !self.load.is_loaded.load(Ordering::Relaxed) {
            (self.health.done, self.health.done_at) = (done, self.now);
        }
        self.health.well_since =
            if well.is_empty() { None } else { self.health.well_since.or(Some(self.now)) };
        let Some(well_since) = self.health.well_since else { return };
        let silence_ms = self.now - self.health.done_at.max(well_since);
        if silence_ms > SILENCE_MS_MAX {
            let detail =
                format!("nodes {well:?} are well and connected, and nothing was done for {silence_ms} ms");
            self.found("silence", detail);
        } else if silence_ms > PROBE_MS && silence_ms.is_multiple_of(5 * LOOK_MS) {
            self.probe(well[self.now as usize / LOOK_MS as usize % well.len()]);
        }
    }

    /// A client that does nothing else writes through a node.
    fn probe(&mut self, node: u64) {
        let load = self.load.clone();
        self.actor(move |turns| {
            let write = |mut open: Connection| open.call(&PROBE).is_ok();
            if load.connect(&turns, usize::MAX, node).is_some_and(write) {
                load.probes.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// A majority of the voters that is well, pairwise connected, and open to clients; empty if there is none.
    fn healthy_majority(&self) -> Vec<u64> {
        let Some(newest) =
            self.nodes.values().filter_map(Node::status).max_by_key(|status| status.last_log_index)
        else {
            return Vec::new();
        };
        // While the membership changes, a majority of the one may not be one of the other.
        let is_joint = self.nodes.values().filter_map(|node| node.look(|server| server.node().peek()));
        if is_joint.into_iter().any(|peek| peek.configurations > 1) {
            return Vec::new();
        }
        let voters: Vec<u64> =
            newest.members.iter().filter(|member| member.voter).map(|member| member.id).collect();
        let is_well = |id: &u64| {
            self.nodes.get(id).is_some_and(|node| node.is_well() && node.status().is_some())
                && self.network.is_open(*id)
                && !self.may_end.contains(id)
        };
        let mut best = Vec::new();
        for set in 0_u32..1 << voters.len().min(16) {
            let chosen: Vec<u64> =
                voters.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1).map(|(_, id)| *id).collect();
            let are_connected = || {
                chosen.iter().enumerate().all(|(at, one)| {
                    chosen[at + 1..].iter().all(|other| self.network.are_connected(*one, *other))
                })
            };
            if chosen.len() > voters.len() / 2
                && chosen.len() > best.len()
                && chosen.iter().all(is_well)
                && are_connected()
            {
                best = chosen;
            }
        }
        best
    }

    /// Nothing ends and nothing begins any more where the log's clock stands still.
    fn look_for_standstill(&mut self) {
        let seen = self.nodes.values().filter(|node| !node.is_paused);
        let seen = seen
            .filter_map(|node| node.look(|server| (server.node().status().applied_index, server.clock_ms())));
        let Some((applied, clock_ms)) = seen.max() else { return };
        let health = &mut self.health;
        // While nothing is applied the clock has no reason to move.
        if clock_ms != health.clock_ms || applied <= health.applied {
            let idle_ms = if clock_ms != health.clock_ms { 0 } else { LOOK_MS };
            (health.clock_ms, health.applied) = (clock_ms, health.applied.max(applied));
            health.clock_since = if idle_ms == 0 { self.now } else { health.clock_since + idle_ms };
            return;
        }
        health.applied = applied;
        let still_ms = self.now.saturating_sub(health.clock_since);
        if still_ms > STANDSTILL_MS_MAX {
            let detail = format!("{clock_ms} for {still_ms} ms, up to entry {applied}");
            self.found("the log's clock stands still", detail);
        }
    }
}
