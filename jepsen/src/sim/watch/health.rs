//! Liveness checks. Silence is a finding: while a majority of the voters is healthy and connected, an
//! operation must succeed every few seconds, and the log clock must advance. So is a node that is cut off
//! from every majority but reports that it is ready.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use crate::sim::world::{World, voters_of};
use crate::{
    client::{Connection, Failure},
    history::Kind,
};

/// The interval of the checks, in milliseconds.
const LOOK_MS: u64 = 100;
/// After how long a silence a probe is sent to a node that must answer ...
const PROBE_MS: u64 = 1_500;
/// ... and after how long a silence is a finding, plus this many times the latency between nodes.
const SILENCE_MS_MAX: u64 = 5_000;
const SILENCE_WAYS: u64 = 40;
/// For how long entries may be applied while the clock does not advance.
const STANDSTILL_MS_MAX: u64 = 5_000;
/// How long a node may take to notice that it is cut off, by its own clock: it does within two seconds,
/// except for messages that were in flight. Plus this many times the latency.
const CUT_OFF_MS_MAX: u64 = 3_000;
const CUT_OFF_WAYS: u64 = 10;
/// And never sooner than this long after a failover would be over by the time-outs in force.
const CUT_OFF_MS_MORE: u64 = 1_200;
/// The probe's key belongs to no workload.
const PROBE: [&str; 3] = ["SET", "probe", "1"];

#[derive(Default)]
pub(in crate::sim) struct Health {
    /// The number of successful operations at the last check, and when it last increased.
    done: usize,
    done_at: u64,
    /// A healthy majority, and since when it has lost nobody: whoever is lost may have led.
    well: Vec<u64>,
    well_since: Option<u64>,
    /// The log clock, and since when it has this value while entries are applied.
    clock_ms: u64,
    clock_since: u64,
    applied: u64,
    /// Nodes that are cut off, and since when.
    cut_off: BTreeMap<u64, u64>,
    /// `Network::opened` at the last check.
    opened: u64,
}

impl World {
    pub(in crate::sim) fn look_at_health(&mut self) {
        if !self.now.is_multiple_of(LOOK_MS) {
            return;
        }
        self.look_for_standstill();
        self.look_for_false_readiness();
        let well = self.healthy_majority();
        let done = self.done();
        if done != self.health.done || !self.load.is_loaded.load(Ordering::Relaxed) {
            (self.health.done, self.health.done_at) = (done, self.now);
        }
        let has_lost = self.health.well.iter().any(|id| !well.contains(id));
        self.health.well_since = match self.health.well_since {
            _ if well.is_empty() => None,
            Some(since) if !has_lost => Some(since),
            _ => Some(self.now),
        };
        self.health.well.clone_from(&well);
        let Some(well_since) = self.health.well_since else { return };
        let silence_ms = self.now - self.health.done_at.max(well_since);
        if silence_ms > SILENCE_MS_MAX + SILENCE_WAYS * self.network.distance_ms {
            let detail =
                format!("nodes {well:?} are well and connected, and nothing was done for {silence_ms} ms");
            self.found("silence", detail);
        } else if silence_ms > PROBE_MS && silence_ms.is_multiple_of(5 * LOOK_MS) {
            self.probe(well[self.now as usize / LOOK_MS as usize % well.len()]);
        }
    }

    /// The number of successful operations of clients, one-time ones included.
    pub(in crate::sim) fn done(&self) -> usize {
        self.load.recorder.count(Kind::Ok) + self.load.probes.load(Ordering::Relaxed)
    }

    /// A one-time client writes through a node.
    pub(in crate::sim) fn probe(&mut self, node: u64) {
        let load = self.load.clone();
        self.actor(move |turns| {
            // Full memory is an answer of the log, too.
            let is_answer =
                |failure: &Failure| matches!(failure, Failure::Fail(why) if why.starts_with("OOM"));
            let write =
                |mut open: Connection| open.call(&PROBE).map_or_else(|error| is_answer(&error), |_| true);
            if load.connect(&turns, usize::MAX, node).is_some_and(write) {
                load.probes.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// A majority of the voters that is healthy, pairwise connected, and reachable by clients; empty if there
    /// is none.
    fn healthy_majority(&self) -> Vec<u64> {
        let Some(voters) = self.voters_in_force() else { return Vec::new() };
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

    /// The voters according to the longest log; None during a membership change: a majority of one
    /// configuration may not be one of the other.
    pub(in crate::sim) fn voters_in_force(&self) -> Option<Vec<u64>> {
        if !self.is_settled() {
            return None;
        }
        self.newest().as_ref().map(voters_of)
    }

    fn look_for_false_readiness(&mut self) {
        if std::mem::replace(&mut self.health.opened, self.network.opened) != self.network.opened {
            // A peer may have been heard since, if only by an answer that was held.
            self.health.cut_off.clear();
        }
        let Some(voters) = self.voters_in_force() else { return self.health.cut_off.clear() };
        let runs: Vec<u64> = self
            .nodes
            .values()
            .filter(|node| node.is_running() && !node.is_paused)
            .map(|node| node.id)
            .collect();
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            let reached = self.reached_from(id, &runs);
            if !runs.contains(&id)
                || voters.iter().filter(|voter| reached.contains(voter)).count() > voters.len() / 2
            {
                self.health.cut_off.remove(&id);
                continue;
            }
            let since = *self.health.cut_off.entry(id).or_insert(self.now);
            let node = &self.nodes[&id];
            let Some(status) = node.status().filter(|status| status.not_ready.is_none()) else { continue };
            // A greeting that a fault held up may be all that a node knows of the distance, for ten seconds.
            let failover_ms = 3 * status.election_timeout_ms.1 + CUT_OFF_MS_MORE;
            let limit_ms = (CUT_OFF_MS_MAX + CUT_OFF_WAYS * self.network.distance_ms).max(failover_ms);
            let is_late = (self.now - since) as f64 * node.rate > limit_ms as f64;
            if is_late {
                self.health.cut_off.remove(&id);
                self.found(
                    "ready without a majority",
                    format!("node {id} is cut off for {} ms", self.now - since),
                );
            }
        }
    }

    /// The nodes that a node can reach, possibly via others.
    fn reached_from(&self, id: u64, runs: &[u64]) -> BTreeSet<u64> {
        let (mut reached, mut next) = (BTreeSet::from([id]), vec![id]);
        while let Some(from) = next.pop() {
            for to in runs {
                if !reached.contains(to) && !self.network.are_apart(from, *to) {
                    reached.insert(*to);
                    next.push(*to);
                }
            }
        }
        reached
    }

    /// If the log clock does not advance, nothing expires any more.
    fn look_for_standstill(&mut self) {
        let seen = self.nodes.values().filter(|node| !node.is_paused);
        let seen = seen
            .filter_map(|node| node.look(|server| (server.node().status().applied_index, server.clock_ms())));
        let seen = seen.max();
        let health = &mut self.health;
        let Some((applied, clock_ms)) = seen else {
            // While no node runs, it cannot advance.
            health.clock_since += LOOK_MS;
            return;
        };
        // While nothing is applied, the clock need not advance.
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
