//! What goes wrong in a simulation: faults begin and end at moments of the seed, and overlap.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use kvorum_raft::simulation::SYNC_MS_MAX;
use serde_json::json;

use super::{network::Place, world::World};

/// The longest pause between the beginnings of two faults, and how long they last, in milliseconds.
const PAUSE_MS_MAX: u64 = 900;
const LASTS_MS: std::ops::Range<u64> = 50..2_500;
/// How soon a node is back that a supervisor starts again at once.
const ANEW_MS: std::ops::Range<u64> = 1..50;
/// The sizes between which the cluster grows and shrinks.
const MEMBERS: std::ops::RangeInclusive<usize> = 3..=5;

/// What ends a fault.
enum End {
    Start(u64),
    Resume(u64),
    Network,
    Disk(u64),
    Rate(u64),
}

/// Their names.
pub(super) const KINDS: &[&str] = &[
    "kill",
    "kill-leader",
    "lone-leader",
    "power-cut",
    "power-cut-all",
    "pause",
    "isolate",
    "halves",
    "one-way",
    "clients-only",
    "delay",
    "duplicates",
    "broken-streams",
    "slow-disk",
    "failed-sync",
    "full-disk",
    "flipped-bit",
    "wall-clock",
    "drift",
    "transfer",
    "checkpoint",
    "grow",
    "shrink",
    "transfer-amid-change",
];

/// The faults of one simulation.
pub(super) struct Faults {
    /// Those that happen.
    kinds: Vec<String>,
    next_at: u64,
    under_way: Vec<(u64, End)>,
    chance: fastrand::Rng,
    /// Clocks are right: the workload compares them with its own.
    pub(super) steady_clocks: bool,
    /// How many of each kind took effect.
    pub(super) counts: BTreeMap<String, usize>,
}

impl Faults {
    /// Of these kinds, or of all if none is named.
    pub(super) fn new(mut kinds: Vec<String>, chance: fastrand::Rng, steady_clocks: bool) -> Faults {
        if kinds.is_empty() {
            kinds.extend(KINDS.iter().map(|kind| (*kind).to_owned()));
        }
        Faults { kinds, next_at: 0, under_way: Vec::new(), chance, steady_clocks, counts: BTreeMap::new() }
    }

    /// Ends what is over, and begins what is due.
    pub(super) fn step(&mut self, world: &mut World) -> Result<()> {
        let (over, rest) =
            std::mem::take(&mut self.under_way).into_iter().partition(|(at, _)| *at <= world.now);
        self.under_way = rest;
        for (_, end) in over {
            self.end(world, end)?;
        }
        if world.now >= self.next_at {
            self.next_at = world.now + self.chance.u64(1..=PAUSE_MS_MAX);
            let kind = self.kinds[self.chance.usize(..self.kinds.len())].clone();
            if self.begin(world, &kind)? {
                *self.counts.entry(kind.clone()).or_default() += 1;
                world.record(&kind, json!({"at_ms": world.now}));
            }
        }
        Ok(())
    }

    /// Ends all faults.
    pub(super) fn heal(&mut self, world: &mut World) -> Result<()> {
        for (_, end) in std::mem::take(&mut self.under_way) {
            self.end(world, end)?;
        }
        for id in world.nodes.keys().copied().collect::<Vec<_>>() {
            world.start(id)?;
        }
        Ok(())
    }

    fn lasts(&mut self, world: &World, end: End) {
        self.under_way.push((world.now + self.chance.u64(LASTS_MS), end));
    }

    fn end(&mut self, world: &mut World, end: End) -> Result<()> {
        match end {
            End::Start(id) => return world.start(id),
            End::Resume(id) => {
                if let Some(node) = world.nodes.get_mut(&id).filter(|node| node.is_paused) {
                    node.resume();
                }
            }
            End::Network => world.network.heal(),
            End::Disk(id) => {
                if let Some(node) = world.nodes.get(&id) {
                    node.storage.slow(SYNC_MS_MAX);
                }
            }
            End::Rate(id) => {
                if let Some(node) = world.nodes.get_mut(&id) {
                    node.rate = 1.0;
                }
            }
        }
        Ok(())
    }

    /// A node that runs.
    fn victim(&mut self, world: &World) -> Option<u64> {
        let running: Vec<u64> = world
            .nodes
            .values()
            .filter(|node| node.is_running() && !node.is_paused)
            .map(|node| node.id)
            .collect();
        self.chance.choice(running)
    }

    /// False if it could not be.
    fn begin(&mut self, world: &mut World, kind: &str) -> Result<bool> {
        match kind {
            "kill" | "power-cut" => {
                let Some(id) = self.victim(world).filter(|_| self.may_kill(world)) else { return Ok(false) };
                self.kill(world, id, kind == "power-cut");
            }
            "kill-leader" => {
                let Some(leader) = world.leader().filter(|_| self.may_kill(world)) else { return Ok(false) };
                self.kill(world, leader.node_id, false);
            }
            "lone-leader" if !self.steady_clocks => return Ok(self.leave_alone(world)),
            "power-cut-all" if !self.steady_clocks => {
                let ids: Vec<u64> = world.nodes.keys().copied().collect();
                ids.into_iter().for_each(|id| self.kill(world, id, true));
            }
            "pause" => {
                let Some(id) = self.victim(world) else { return Ok(false) };
                world.nodes.get_mut(&id).expect("it was chosen among them").is_paused = true;
                self.lasts(world, End::Resume(id));
            }
            "isolate" | "halves" | "one-way" | "clients-only" => return Ok(self.partition(world, kind)),
            "delay" => {
                (world.network.delay_max, world.network.late_permille) =
                    (self.chance.u64(5..60), self.chance.u64(..100));
                self.lasts(world, End::Network);
            }
            "duplicates" => {
                world.network.twice_permille = self.chance.u64(50..500);
                self.lasts(world, End::Network);
            }
            "broken-streams" => {
                let count = self.chance.usize(1..8);
                return Ok((0..count).filter(|_| world.network.break_one()).count() > 0);
            }
            "slow-disk" => return Ok(self.disk(world, kind)),
            "failed-sync" | "full-disk" if self.may_kill(world) => return Ok(self.disk(world, kind)),
            "flipped-bit" => return self.flip_bit(world),
            "wall-clock" => {
                let Some(id) = self.victim(world).filter(|_| !self.steady_clocks) else { return Ok(false) };
                let seconds = self.chance.i64(-10_000..10_000);
                world.nodes[&id].move_wall_clock(seconds * 1_000_000);
            }
            "drift" => {
                let Some(id) = self.victim(world).filter(|_| !self.steady_clocks) else { return Ok(false) };
                let rate = 0.8 + self.chance.f64() * 0.45;
                world.nodes.get_mut(&id).expect("it was chosen among them").rate = rate;
                self.lasts(world, End::Rate(id));
            }
            "grow" if world.nodes.len() < *MEMBERS.end() => {
                let id = world.create()?;
                world.add_member(id);
            }
            "shrink" if world.voters() > *MEMBERS.start() => {
                let Some(id) = self.victim(world) else { return Ok(false) };
                world.remove_member(id);
            }
            "transfer-amid-change" => {
                // Both are under way at once on the leader.
                let grown = world.nodes.len() < *MEMBERS.end() && self.begin(world, "grow")?;
                let began = grown || self.begin(world, "shrink")?;
                return Ok(began && self.administer(world, "transfer"));
            }
            "transfer" | "checkpoint" => return Ok(self.administer(world, kind)),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// A whole cluster that starts takes a wall clock, and what it had lagged behind it is a jump.
    fn may_kill(&self, world: &World) -> bool {
        let running = world.nodes.values().filter(|node| node.status().is_some()).count();
        !self.steady_clocks || running > 2
    }

    fn kill(&mut self, world: &mut World, id: u64, loses_power: bool) {
        world.end(id, loses_power);
        self.lasts(world, End::Start(id));
    }

    /// The leader is cut off from the others, who start anew before its lease ends, and may have forgotten that it had
    /// one.
    fn leave_alone(&mut self, world: &mut World) -> bool {
        let Some(leader) = world.leader().map(|leader| leader.node_id) else { return false };
        let is_other = |id: &u64| *id != leader && world.nodes[id].is_running() && !world.nodes[id].is_paused;
        for id in world.nodes.keys().copied().filter(is_other).collect::<Vec<_>>() {
            world.network.block(Place::Node(leader), Place::Node(id));
            world.network.block(Place::Node(id), Place::Node(leader));
            world.end(id, false);
            self.under_way.push((world.now + self.chance.u64(ANEW_MS), End::Start(id)));
        }
        self.lasts(world, End::Network);
        true
    }

    fn partition(&mut self, world: &mut World, kind: &str) -> bool {
        let mut ids: Vec<u64> = world.nodes.keys().copied().collect();
        self.chance.shuffle(&mut ids);
        let cut = match kind {
            "halves" => ids.len() / 2,
            _ => 1,
        };
        let (some, others) = ids.split_at(cut.min(ids.len()));
        for (one, other) in some.iter().flat_map(|one| others.iter().map(move |other| (*one, *other))) {
            let (one, other) = (Place::Node(one), Place::Node(other));
            match kind {
                "clients-only" => {}
                "one-way" => world.network.block(one, other),
                _ => {
                    world.network.block(one, other);
                    world.network.block(other, one);
                }
            }
        }
        if kind == "clients-only" {
            for client in (0..world.load.clients).map(Place::Client) {
                some.iter().for_each(|node| world.network.block(client, Place::Node(*node)));
            }
        }
        self.lasts(world, End::Network);
        true
    }

    fn disk(&mut self, world: &mut World, kind: &str) -> bool {
        let Some(id) = self.victim(world) else { return false };
        let storage = &world.nodes[&id].storage;
        match kind {
            "slow-disk" => {
                storage.slow(self.chance.u64(50..3_000));
                self.lasts(world, End::Disk(id));
                return true;
            }
            "failed-sync" => storage.fail_syncs(),
            _ => storage.fail_writes(),
        }
        // It ends itself when it writes next.
        world.may_end.push(id);
        true
    }

    /// One node at a time: the others have what it has lost.
    fn flip_bit(&mut self, world: &mut World) -> Result<bool> {
        let is_whole = world.nodes.values().all(|node| node.is_running() && !node.is_paused);
        let is_whole = is_whole && world.is_whole() && world.voters() >= *MEMBERS.start();
        let Some(id) = self.victim(world).filter(|_| is_whole) else { return Ok(false) };
        world.end(id, false);
        let is_flipped = world.nodes[&id].storage.flip_bit();
        if is_flipped {
            world.may_end.push(id);
        }
        world.start(id)?;
        Ok(is_flipped)
    }

    fn administer(&mut self, world: &World, kind: &str) -> bool {
        let Some(id) = self.victim(world) else { return false };
        if kind == "checkpoint" {
            world.nodes[&id].ask(|server| async move {
                let _ = server.node().checkpoint_now().await;
            });
            return true;
        }
        let Some(leader) = world.leader() else { return false };
        world.nodes[&leader.node_id].ask(move |server| async move {
            let _ = tokio::time::timeout(Duration::from_secs(2), server.node().transfer_leader(id)).await;
        });
        true
    }
}
