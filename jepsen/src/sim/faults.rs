//! What goes wrong in a simulation: faults begin and end at moments of the seed, and overlap. Each consists of actions,
//! some at once and some later; they are kept as a script, which can be played again without the faults' chance.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use super::{
    action::{Action, Ways},
    network::{Delay, Place, Side, Way},
    node::Node,
    world::World,
};

/// The longest pause between the beginnings of two faults, and how long they last, in milliseconds.
const PAUSE_MS_MAX: u64 = 900;
const LASTS_MS: std::ops::Range<u64> = 50..2_500;
/// How soon a node is back that a supervisor starts again at once.
const ANEW_MS: std::ops::Range<u64> = 1..50;
/// The sizes between which the cluster grows and shrinks.
const MEMBERS: std::ops::RangeInclusive<usize> = 3..=5;
/// How far apart the ways of a swizzle are blocked and released at most, in milliseconds.
const SWIZZLE_MS: &[u64] = &[20, 300, 1_500];
/// How many kinds there are where there are few.
const FEW: std::ops::Range<usize> = 1..5;
/// Longer than a lease and an election.
const NEW_LEADER_MS: std::ops::Range<u64> = 900..2_500;
/// How long whoever was asked for a change of the members lives after that.
const FORSAKEN_MS: std::ops::Range<u64> = 1..50;
/// How long a copy of a disk lies until it is put back.
const ROLLED_BACK_MS: std::ops::Range<u64> = 500..5_000;

/// Their names.
pub(super) const KINDS: &[&str] = &[
    "kill",
    "kill-leader",
    "lone-leader",
    "power-cut",
    "power-cut-all",
    "stop",
    "stop-all",
    "pause",
    "isolate",
    "halves",
    "one-way",
    "swizzle",
    "late-answers",
    "clients-only",
    "delay",
    "delay-one-way",
    "duplicates",
    "broken-streams",
    "slow-disk",
    "failed-sync",
    "full-disk",
    "flipped-bit",
    "wall-clock",
    "close-clock",
    "drift",
    "transfer",
    "checkpoint",
    "grow",
    "shrink",
    "transfer-amid-change",
    "forsaken-change",
    "disk-rolled-back",
];

/// The faults of one simulation.
pub(super) struct Faults {
    /// Those that happen.
    kinds: Vec<String>,
    next_at: u64,
    /// What is still to be done, and when.
    later: Vec<(u64, Action)>,
    /// The number of the next fault that has one.
    number: u64,
    chance: fastrand::Rng,
    /// Clocks are right: the workload compares them with its own.
    pub(super) steady_clocks: bool,
    /// How many of each kind took effect.
    pub(super) counts: BTreeMap<String, usize>,
}

impl Faults {
    /// Of these kinds. If none is named, of all in half of the seeds, and of a few in the other half, which then meet each other
    /// more often.
    pub(super) fn new(mut kinds: Vec<String>, mut chance: fastrand::Rng, steady_clocks: bool) -> Faults {
        if kinds.is_empty() {
            kinds.extend(KINDS.iter().map(|kind| (*kind).to_owned()));
            if chance.bool() {
                chance.shuffle(&mut kinds);
                kinds.truncate(chance.usize(FEW));
            }
        }
        let (later, counts) = (Vec::new(), BTreeMap::new());
        Faults { kinds, next_at: 0, later, number: 0, chance, steady_clocks, counts }
    }

    /// Ends what is over, and begins what is due.
    pub(super) fn step(&mut self, world: &mut World) -> Result<()> {
        let (due, rest) = std::mem::take(&mut self.later).into_iter().partition(|(at, _)| *at <= world.now);
        self.later = rest;
        for (_, action) in due {
            match action {
                // One node at a time: the others have what it has lost.
                Action::PutBackDisk(id)
                    if !world.is_known(id)
                        || !world.is_whole()
                        || !world.is_settled()
                        || world.voters() < *MEMBERS.start() =>
                {
                    world.forget_copies();
                }
                Action::PutBackDisk(id) => {
                    for action in [Action::Kill(id), action, Action::Start(id)] {
                        world.perform(&action)?;
                    }
                    world.forget_copies();
                }
                action => drop(world.perform(&action)?),
            }
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

    fn after(&mut self, world: &World, ms: u64, action: Action) {
        self.later.push((world.now + ms, action));
    }

    fn lasts(&mut self, world: &World, end: Action) {
        let ms = self.chance.u64(LASTS_MS);
        self.after(world, ms, end);
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// A node that runs.
    fn victim(&mut self, world: &World) -> Option<u64> {
        let running: Vec<u64> = world
            .nodes
            .values()
            .filter(|node| node.is_running() && !node.is_paused && !node.is_stopping())
            .map(|node| node.id)
            .collect();
        self.chance.choice(running)
    }

    /// False if it could not be.
    fn begin(&mut self, world: &mut World, kind: &str) -> Result<bool> {
        match kind {
            "power-cut-all" if !self.steady_clocks => {
                for id in world.nodes.keys().copied().collect::<Vec<_>>() {
                    self.kill(world, id, true)?;
                }
                return Ok(true);
            }
            "stop-all" if !self.steady_clocks => {
                // One after the other the last ones end with all that there is in their checkpoints.
                let apart_ms = if self.chance.bool() { self.chance.u64(..1_500) } else { 0 };
                return world.perform(&Action::StopAll(self.chance.u64(ANEW_MS), apart_ms));
            }
            "lone-leader" if !self.steady_clocks => return self.leave_alone(world),
            "power-cut-all" | "stop-all" | "lone-leader" => return Ok(false),
            "isolate" | "halves" | "one-way" | "clients-only" => return self.partition(world, kind),
            "swizzle" => return Ok(self.swizzle(world)),
            // Nothing else happens meanwhile: it takes a sequence of its own.
            "late-answers" => return Ok(world.network.is_fair() && self.late_answers(world)),
            "delay" | "delay-one-way" | "duplicates" | "broken-streams" => {
                return self.trouble_network(world, kind);
            }
            "flipped-bit" => return self.flip_bit(world),
            "kill-leader" => {
                let Some(leader) = world.leader().filter(|_| self.may_kill(world)) else { return Ok(false) };
                return self.kill(world, leader.node_id, false);
            }
            "grow" | "shrink" | "transfer-amid-change" | "forsaken-change" => {
                return self.change_members(world, kind);
            }
            _ => {}
        }
        let Some(id) = self.victim(world) else { return Ok(false) };
        match kind {
            "kill" | "power-cut" if self.may_kill(world) => self.kill(world, id, kind == "power-cut"),
            "stop" if self.may_kill(world) => world.perform(&Action::Stop(id, self.chance.u64(LASTS_MS))),
            "pause" => {
                self.lasts(world, Action::Resume(id));
                world.perform(&Action::Pause(id))
            }
            "slow-disk" => {
                self.lasts(world, Action::WellDisk(id));
                world.perform(&Action::SlowDisk(id, self.chance.u64(50..3_000)))
            }
            "failed-sync" if self.may_kill(world) => world.perform(&Action::FailSync(id)),
            "full-disk" if self.may_kill(world) => world.perform(&Action::FullDisk(id)),
            "wall-clock" if !self.steady_clocks => {
                world.perform(&Action::WallClock(id, self.chance.i64(-10_000..10_000)))
            }
            // Where it is not ahead this is refused.
            "close-clock" if !self.steady_clocks => {
                world.perform(&Action::CloseClock(id, self.chance.u8(..4) > 0))
            }
            "drift" if !self.steady_clocks => {
                self.lasts(world, Action::Rate(id, 1.0));
                world.perform(&Action::Rate(id, 0.8 + self.chance.f64() * 0.45))
            }
            "transfer" => {
                let Some(leader) = world.leader() else { return Ok(false) };
                world.perform(&Action::Transfer(leader.node_id, id))
            }
            "checkpoint" => world.perform(&Action::Checkpoint(id)),
            "disk-rolled-back" if self.may_kill(world) && !world.has_copies() => self.roll_back(world, id),
            _ => Ok(false),
        }
    }

    /// A whole cluster that starts takes a wall clock, and what it had lagged behind it is a jump.
    fn may_kill(&self, world: &World) -> bool {
        let stays = |node: &&Node| node.status().is_some() && !node.is_stopping();
        let running = world.nodes.values().filter(stays).count();
        !self.steady_clocks || running > 2
    }

    fn kill(&mut self, world: &mut World, id: u64, loses_power: bool) -> Result<bool> {
        self.lasts(world, Action::Start(id));
        world.perform(&if loses_power { Action::PowerCut(id) } else { Action::Kill(id) })
    }

    /// The leader is cut off from the others, who start anew before its lease ends, and may have forgotten that it had
    /// one.
    fn leave_alone(&mut self, world: &mut World) -> Result<bool> {
        let Some(leader) = world.leader().map(|leader| leader.node_id) else { return Ok(false) };
        let lasts_ms = self.chance.u64(LASTS_MS);
        let is_other = |id: &u64| *id != leader && world.nodes[id].is_running() && !world.nodes[id].is_paused;
        for id in world.nodes.keys().copied().filter(is_other).collect::<Vec<_>>() {
            for (from, to) in [(leader, id), (id, leader)] {
                let ways = Ways::of(Place::Node(from), Place::Node(to));
                world.perform(&Action::Block(ways))?;
                self.after(world, lasts_ms, Action::Release(ways));
            }
            world.perform(&Action::Kill(id))?;
            let anew_ms = self.chance.u64(ANEW_MS);
            self.after(world, anew_ms, Action::Start(id));
        }
        Ok(true)
    }

    fn partition(&mut self, world: &mut World, kind: &str) -> Result<bool> {
        let mut ids: Vec<u64> = world.nodes.keys().copied().collect();
        self.chance.shuffle(&mut ids);
        let cut = match kind {
            "halves" => ids.len() / 2,
            _ => 1,
        };
        let (some, others) = ids.split_at(cut.min(ids.len()));
        let pairs = some.iter().flat_map(|one| others.iter().map(move |other| (*one, *other)));
        let pairs = pairs.map(|(one, other)| (Place::Node(one), Place::Node(other)));
        let ways: Vec<Ways> = match kind {
            "clients-only" => (0..world.load.clients)
                .flat_map(|client| {
                    some.iter().map(move |id| Ways::of(Place::Client(client), Place::Node(*id)))
                })
                .collect(),
            "one-way" => pairs.map(|(one, other)| Ways::of(one, other)).collect(),
            _ => pairs.flat_map(|(one, other)| [Ways::of(one, other), Ways::of(other, one)]).collect(),
        };
        let lasts_ms = self.chance.u64(LASTS_MS);
        for ways in ways {
            world.perform(&Action::Block(ways))?;
            self.after(world, lasts_ms, Action::Release(ways));
        }
        Ok(true)
    }

    /// Every way from and to the leader or another node is blocked and released by itself, in an order of chance.
    fn swizzle(&mut self, world: &mut World) -> bool {
        let leader = world.leader().map(|leader| leader.node_id).filter(|_| self.chance.bool());
        let Some(victim) = leader.or_else(|| self.victim(world)) else { return false };
        let spread_ms = |chance: &mut fastrand::Rng| chance.choice(SWIZZLE_MS).copied().unwrap_or(1);
        let (blocked_ms, released_ms) = (spread_ms(&mut self.chance), spread_ms(&mut self.chance));
        let lasts_ms = blocked_ms + self.chance.u64(LASTS_MS);
        let others: Vec<u64> = world.nodes.keys().copied().filter(|id| *id != victim).collect();
        for (from, to) in others.iter().flat_map(|other| [(victim, *other), (*other, victim)]) {
            for side in Side::BOTH {
                let way = Way { from: Place::Node(from), to: Place::Node(to), side };
                let (at, until) = (self.chance.u64(..blocked_ms), lasts_ms + self.chance.u64(..released_ms));
                self.after(world, at, Action::Block(way.into()));
                self.after(world, until, Action::Release(way.into()));
            }
        }
        if self.chance.bool() {
            // Nothing else happens meanwhile.
            self.next_at = world.now + lasts_ms + released_ms;
        }
        true
    }

    /// The leader hears nobody, then nobody hears it, until there may be another one. Then what answered it long ago comes,
    /// from one after the other, before it learns anything else.
    fn late_answers(&mut self, world: &mut World) -> bool {
        let Some(leader) = world.leader().map(|leader| leader.node_id) else { return false };
        let mut others: Vec<u64> = world.nodes.keys().copied().filter(|id| *id != leader).collect();
        self.chance.shuffle(&mut others);
        let node = |id: u64| Place::Node(id);
        let deaf_ms = self.chance.u64(1..80);
        let mut at = deaf_ms + self.chance.u64(NEW_LEADER_MS);
        for other in &others {
            self.after(world, 0, Action::Block(Ways::of(node(*other), node(leader))));
            self.after(world, deaf_ms, Action::Block(Ways::of(node(leader), node(*other))));
        }
        let mut rest = Vec::new();
        for other in &others {
            let to = |side| Way { from: node(*other), to: node(leader), side };
            self.after(world, at, Action::Release(to(Side::Answers).into()));
            at += self.chance.u64(..60);
            rest.extend([to(Side::Calls).into(), Ways::of(node(leader), node(*other))]);
        }
        self.chance.shuffle(&mut rest);
        for ways in rest {
            at += self.chance.u64(..200);
            self.after(world, at, Action::Release(ways));
        }
        self.next_at = world.now + at;
        true
    }

    fn trouble_network(&mut self, world: &mut World, kind: &str) -> Result<bool> {
        if kind == "broken-streams" {
            let mut broken = false;
            for _ in 0..self.chance.usize(1..8) {
                broken |= world.perform(&Action::BreakStream)?;
            }
            return Ok(broken);
        }
        let number = self.next_number();
        self.lasts(world, Action::Calm(number));
        if kind == "duplicates" {
            return world.perform(&Action::Double(number, self.chance.u64(50..500)));
        }
        let mut ids: Vec<u64> = world.nodes.keys().copied().collect();
        self.chance.shuffle(&mut ids);
        let on = match ids[..] {
            [from, to, ..] if kind == "delay-one-way" => Some((Place::Node(from), Place::Node(to))),
            _ => None,
        };
        let delay = Delay { on, max_ms: self.chance.u64(5..60), late_permille: self.chance.u64(..100) };
        world.perform(&Action::Delay(number, delay))
    }

    /// One node at a time: the others have what it has lost.
    fn flip_bit(&mut self, world: &mut World) -> Result<bool> {
        let is_whole = world.nodes.values().all(|node| node.is_running() && !node.is_paused);
        let is_whole = is_whole && world.is_whole() && world.voters() >= *MEMBERS.start();
        let Some(id) = self.victim(world).filter(|_| is_whole) else { return Ok(false) };
        world.perform(&Action::Kill(id))?;
        let is_flipped = world.perform(&Action::FlipBit(id))?;
        world.perform(&Action::Start(id))?;
        Ok(is_flipped)
    }

    fn change_members(&mut self, world: &mut World, kind: &str) -> Result<bool> {
        // Any member may be asked.
        let (Some(asked), Some(id)) = (self.victim(world), self.victim(world)) else { return Ok(false) };
        let (may_grow, may_shrink) = (world.nodes.len() < *MEMBERS.end(), world.voters() > *MEMBERS.start());
        let change = match kind {
            "grow" | "transfer-amid-change" | "forsaken-change" if may_grow => Action::Grow(asked),
            "shrink" | "transfer-amid-change" | "forsaken-change" if may_shrink => Action::Remove(asked, id),
            _ => return Ok(false),
        };
        if kind == "forsaken-change" && self.may_kill(world) {
            let (lives_ms, back_ms) = (self.chance.u64(FORSAKEN_MS), self.chance.u64(LASTS_MS));
            self.after(world, lives_ms, Action::Kill(asked));
            self.after(world, lives_ms + back_ms, Action::Start(asked));
        }
        world.perform(&change)?;
        match (kind, world.leader()) {
            // Both are under way at once on the leader.
            ("transfer-amid-change", Some(leader)) => world.perform(&Action::Transfer(leader.node_id, id)),
            _ => Ok(true),
        }
    }

    /// A node comes back with an older copy of its disk, as restored virtual machines do, once all others have met a life that
    /// came after the copy: it must be refused.
    fn roll_back(&mut self, world: &mut World, id: u64) -> Result<bool> {
        world.perform(&Action::Kill(id))?;
        world.perform(&Action::CopyDisk(id))?;
        world.perform(&Action::Start(id))?;
        let at = self.chance.u64(ROLLED_BACK_MS);
        self.after(world, at, Action::PutBackDisk(id));
        Ok(true)
    }
}
