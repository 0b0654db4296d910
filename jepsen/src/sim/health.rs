//! What must be seen from time to time. Silence is a finding: while a majority of the voters is well and connected, some
//! operation is done every few seconds, and the log's clock goes on. So is a node that is cut off from every majority and says
//! that it is ready.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use super::{node::Node, world::World};
use crate::{client::Connection, history::Kind};

/// How often it is looked, in milliseconds.
const LOOK_MS: u64 = 100;
/// After how long a silence somebody asks where an answer must come from ...
const PROBE_MS: u64 = 1_500;
/// ... and after which one that is a finding, and how many ways from one node to another longer.
const SILENCE_MS_MAX: u64 = 5_000;
const SILENCE_WAYS: u64 = 40;
/// For how long entries may be applied while the clock stands still.
const STANDSTILL_MS_MAX: u64 = 5_000;
/// How long a node may take to know that it is cut off, by its own clock: it knows within two seconds, but for what was on its
/// way when it was. The same.
const CUT_OFF_MS_MAX: u64 = 3_000;
const CUT_OFF_WAYS: u64 = 10;
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
    /// Nodes that are cut off, and since when.
    cut_off: BTreeMap<u64, u64>,
    /// How often a way had been opened at the last look.
    opened: u64,
}

impl World {
    pub(super) fn look_at_health(&mut self) {
        if !self.now.is_multiple_of(LOOK_MS) {
            return;
        }
        self.look_for_standstill();
        self.look_for_false_readiness();
        let well = self.healthy_majority();
        let done = self.load.recorder.count(Kind::Ok) + self.load.probes.load(Ordering::Relaxed);
        if done != self.health.done || !self.load.is_loaded.load(Ordering::Relaxed) {
            (self.health.done, self.health.done_at) = (done, self.now);
        }
        self.health.well_since =
            if well.is_empty() { None } else { self.health.well_since.or(Some(self.now)) };
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

    /// The voters, as the longest log has them; None while the membership changes: a majority of the one may not be one of the
    /// other.
    fn voters_in_force(&self) -> Option<Vec<u64>> {
        if !self.is_settled() {
            return None;
        }
        let newest =
            self.nodes.values().filter_map(Node::status).max_by_key(|status| status.last_log_index)?;
        Some(newest.members.iter().filter(|member| member.voter).map(|member| member.id).collect())
    }

    fn look_for_false_readiness(&mut self) {
        if std::mem::replace(&mut self.health.opened, self.network.opened) != self.network.opened {
            // Somebody was heard since, if only by an answer that was held up.
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
            let limit_ms = CUT_OFF_MS_MAX + CUT_OFF_WAYS * self.network.distance_ms;
            let is_late = (self.now - since) as f64 * node.rate > limit_ms as f64;
            if is_late && node.status().is_some_and(|status| status.not_ready.is_none()) {
                self.health.cut_off.remove(&id);
                self.found(
                    "ready without a majority",
                    format!("node {id} is cut off for {} ms", self.now - since),
                );
            }
        }
    }

    /// The nodes that a node has a way to, over others.
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
