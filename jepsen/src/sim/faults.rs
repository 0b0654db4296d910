//! Faults of a simulation: they begin and end at times determined by the seed, and overlap. Each consists of
//! actions, some immediate and some later; all are recorded as a script, which can be replayed without the
//! faults' randomness.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use super::{
    network::{Delay, Place, Side, Way},
    node::Node,
    script::action::{Action, Ways},
    world::World,
};

/// The longest pause between the beginnings of two faults, and how long they last, in milliseconds.
const PAUSE_MS_MAX: u64 = 900;
const LASTS_MS: std::ops::Range<u64> = 50..2_500;
/// How soon a node is back whose supervisor restarts it at once.
const ANEW_MS: std::ops::Range<u64> = 1..50;
/// The limits of the cluster's size.
const MEMBERS: std::ops::RangeInclusive<usize> = 3..=5;
/// How far apart the directions of a swizzle are blocked and released at most, in milliseconds.
const SWIZZLE_MS: &[u64] = &[20, 300, 1_500];
/// How many kinds of faults a seed with few has.
const FEW: std::ops::Range<usize> = 1..5;
/// Longer than a lease and an election.
const NEW_LEADER_MS: std::ops::Range<u64> = 900..2_500;
/// How long the node that was asked for a membership change lives after that.
const FORSAKEN_MS: std::ops::Range<u64> = 1..50;
/// When nodes end while a cluster forms, in milliseconds, and how often each does at most (exclusive).
const FORMATION_MS: std::ops::Range<u64> = 0..600;
const FORMATION_ENDS_MAX: usize = 3;
/// How long a copy of a disk is kept until it is put back.
const ROLLED_BACK_MS: std::ops::Range<u64> = 500..5_000;
/// How long a node with an older disk may take to be refused, plus this many times the latency between nodes.
const REFUSED_MS_MAX: u64 = 10_000;
const REFUSED_WAYS: u64 = 20;

/// The names of all kinds of faults.
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

/// A node that came back with an older disk.
struct Returned {
    id: u64,
    /// The nodes that must refuse it.
    refusing: Vec<u64>,
    since: u64,
}

/// The faults of one simulation.
pub(super) struct Faults {
    /// The kinds that happen.
    kinds: Vec<String>,
    next_at: u64,
    /// Later actions, and when they are due.
    later: Vec<(u64, Action)>,
    /// A node that came back with an older disk: nothing else happens until it is refused.
    returned: Option<Returned>,
    /// The number of the next numbered fault.
    number: u64,
    chance: fastrand::Rng,
    /// Clocks are accurate: the workload compares them with its own.
    pub(super) steady_clocks: bool,
    /// How many faults of each kind took effect.
    pub(super) counts: BTreeMap<String, usize>,
}

impl Faults {
    /// Faults of these kinds. If none is named, half of the seeds use all kinds, and the other half a few,
    /// which then interact more often.
    pub(super) fn new(mut kinds: Vec<String>, mut chance: fastrand::Rng, steady_clocks: bool) -> Faults {
        if kinds.is_empty() {
            kinds.extend(KINDS.iter().map(|kind| (*kind).to_owned()));
            if chance.bool() {
                chance.shuffle(&mut kinds);
                kinds.truncate(chance.usize(FEW));
            }
        }
        let (later, counts) = (Vec::new(), BTreeMap::new());
        Faults { kinds, next_at: 0, later, returned: None, number: 0, chance, steady_clocks, counts }
    }

    /// Ends some nodes while the cluster forms, before anybody knows whether it has, and restarts them.
    pub(super) fn disturb_the_formation(&mut self, world: &World) {
        for id in world.nodes.keys().copied().collect::<Vec<_>>() {
            for _ in 0..self.chance.usize(..FORMATION_ENDS_MAX) {
                let at = self.chance.u64(FORMATION_MS);
                let end = if self.chance.bool() { Action::Kill(id) } else { Action::PowerCut(id) };
                self.after(world, at, end);
                let back_ms =
                    self.chance.u64(ANEW_MS) + if self.chance.bool() { self.chance.u64(LASTS_MS) } else { 0 };
                self.after(world, at + back_ms, Action::Start(id));
            }
        }
        *self.counts.entry("disturbed-formation".to_owned()).or_default() += 1;
    }

    /// Whether no later actions are pending.
    pub(super) fn are_over(&self) -> bool {
        self.later.is_empty()
    }

    /// Performs later actions that are due, and begins the next fault if it is due.
    pub(super) fn step(&mut self, world: &mut World) -> Result<()> {
        if self.waits_for_refusal(world) {
            return Ok(());
        }
        self.end_what_is_over(world)?;
        if world.now >= self.next_at && self.returned.is_none() {
            self.next_at = world.now + self.chance.u64(1..=PAUSE_MS_MAX);
            let kind = self.kinds[self.chance.usize(..self.kinds.len())].clone();
            if self.begin(world, &kind)? {
                *self.counts.entry(kind.clone()).or_default() += 1;
                world.record(&kind, json!({"at_ms": world.now}));
            }
        }
        Ok(())
    }

    pub(super) fn end_what_is_over(&mut self, world: &mut World) -> Result<()> {
        let (due, rest) = std::mem::take(&mut self.later).into_iter().partition(|(at, _)| *at <= world.now);
        self.later = rest;
        for (at, action) in due {
            match action {
                _ if self.returned.is_some() => self.later.push((at, action)),
                Action::PutBackDisk(id) => self.put_back(world, id)?,
                action => drop(world.perform(&action)?),
            }
        }
        Ok(())
    }

    /// Puts a copy back if the server promises to detect that; otherwise forgets it. A copy made in the
    /// disk's present life may be missing nothing; if it is missing entries, the leader knows that, and the
    /// others have them.
    fn put_back(&mut self, world: &mut World, id: u64) -> Result<()> {
        let refusing = world.who_refuses(id);
        let leads = world.leader().is_none_or(|leader| leader.node_id == id);
        let is_seen = world.is_of_this_life(id)
            && world.is_whole()
            && world.is_settled()
            && world.network.is_fair()
            && !leads;
        let has_others = world.can_spare(id) && world.voters_at_least() >= *MEMBERS.start();
        if has_others && (!refusing.is_empty() || is_seen) {
            for action in [Action::Kill(id), Action::PutBackDisk(id), Action::Start(id)] {
                world.perform(&action)?;
            }
            self.returned = Some(Returned { id, refusing, since: world.now });
            *self.counts.entry("disk-rolled-back, put back".to_owned()).or_default() += 1;
        }
        world.forget_copies();
        Ok(())
    }

    /// Whether to wait for a node with an older disk to end. The nodes that know better must refuse it.
    fn waits_for_refusal(&mut self, world: &mut World) -> bool {
        let Some(Returned { id, refusing, since }) = &self.returned else { return false };
        let (id, spent_ms) = (*id, world.now - since);
        let has_ended = world.nodes.get(&id).is_none_or(|node| node.is_damaged);
        let limit_ms = REFUSED_MS_MAX + REFUSED_WAYS * world.network.distance_ms;
        // If no node must refuse it, it may serve.
        let serves = refusing.is_empty() && world.is_whole();
        if !has_ended && !serves && spent_ms < limit_ms {
            return true;
        }
        let refusing: Vec<u64> = refusing.iter().copied().filter(|id| world.is_steady_still(*id)).collect();
        if !has_ended && !refusing.is_empty() {
            let detail = format!("node {id} goes on with it, and nodes {refusing:?} have met a later life");
            world.found("older disk accepted", detail);
        }
        self.returned = None;
        false
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

    /// A random running node.
    fn victim(&mut self, world: &World) -> Option<u64> {
        let running: Vec<u64> = world
            .nodes
            .values()
            .filter(|node| node.is_running() && !node.is_paused && !node.is_stopping())
            .map(|node| node.id)
            .collect();
        self.chance.choice(running)
    }

    /// Begins a fault. False if that was impossible.
    fn begin(&mut self, world: &mut World, kind: &str) -> Result<bool> {
        match kind {
            "power-cut-all" if !self.steady_clocks => {
                for id in world.nodes.keys().copied().collect::<Vec<_>>() {
                    self.kill(world, id, true)?;
                }
                return Ok(true);
            }
            "stop-all" if !self.steady_clocks => {
                // If they stop one after the other, the last ones end with everything in their checkpoints.
                let apart_ms = if self.chance.bool() { self.chance.u64(..1_500) } else { 0 };
                return world.perform(&Action::StopAll(self.chance.u64(ANEW_MS), apart_ms));
            }
            "lone-leader" if !self.steady_clocks => return self.leave_alone(world),
            "power-cut-all" | "stop-all" | "lone-leader" => return Ok(false),
            "isolate" | "halves" | "one-way" | "clients-only" => return self.partition(world, kind),
            "swizzle" => return Ok(self.swizzle(world)),
            // Requires that nothing else happens: it is a sequence of its own.
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
            // If the log clock is not ahead, this is refused.
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
            "disk-rolled-back" if self.may_kill(world) && !world.has_copies() && self.returned.is_none() => {
                self.roll_back(world, id)
            }
            _ => Ok(false),
        }
    }

    /// A whole cluster that restarts takes the wall clock, and jumps by what its clock had lagged behind it.
    fn may_kill(&self, world: &World) -> bool {
        let stays = |node: &&Node| node.status().is_some() && !node.is_stopping();
        let running = world.nodes.values().filter(stays).count();
        !self.steady_clocks || running > 2
    }

    fn kill(&mut self, world: &mut World, id: u64, loses_power: bool) -> Result<bool> {
        self.lasts(world, Action::Start(id));
        world.perform(&if loses_power { Action::PowerCut(id) } else { Action::Kill(id) })
    }

    /// The leader is cut off from the others, which restart before its lease ends, and may have forgotten
    /// that it had one.
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

    /// Every direction of every connection of the leader or another node is blocked and released separately,
    /// in random order.
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

    /// The leader hears nobody, then nobody hears it, until there may be another leader. Then old answers
    /// reach it, from one node after the other, before it learns anything else.
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
            // Both are in progress at once on the leader.
            ("transfer-amid-change", Some(leader)) => world.perform(&Action::Transfer(leader.node_id, id)),
            _ => Ok(true),
        }
    }

    /// A node comes back with an older copy of its disk, like a restored virtual machine. The copy is made of
    /// the running node or of one that was killed; half of the time some others are down from before the copy
    /// until the node is back, so that as few as possible have met its later lives.
    fn roll_back(&mut self, world: &mut World, id: u64) -> Result<bool> {
        // A node without a log has promised nothing, and is like a new one.
        let has_log = |node: &Node| node.status().is_some_and(|status| status.last_log_index > 0);
        if !world.nodes.get(&id).is_some_and(has_log) {
            return Ok(false);
        }
        let at = self.chance.u64(ROLLED_BACK_MS);
        let are_few = self.chance.bool() && !self.steady_clocks;
        if let Some(mut voters) = world.voters_in_force().filter(|voters| are_few && voters.contains(&id)) {
            let minority = (voters.len() - 1) / 2;
            voters.retain(|voter| *voter != id && world.nodes.get(voter).is_some_and(Node::is_running));
            self.chance.shuffle(&mut voters);
            for absent in voters.into_iter().take(minority) {
                world.perform(&Action::Kill(absent))?;
                let back_ms = at + 1 + self.chance.u64(LASTS_MS);
                self.after(world, back_ms, Action::Start(absent));
            }
        }
        let (is_hot, goes_on) = (self.chance.bool(), self.chance.bool());
        if is_hot {
            world.perform(&Action::CopyDisk(id))?;
        }
        if !is_hot || !goes_on {
            world.perform(&Action::Kill(id))?;
            if !is_hot {
                world.perform(&Action::CopyDisk(id))?;
            }
            world.perform(&Action::Start(id))?;
        }
        self.after(world, at, Action::PutBackDisk(id));
        Ok(true)
    }
}
