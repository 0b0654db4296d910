//! The simulated world: time, nodes, network, clients, and the look at all of them after every step.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use kvorum::simulation::Server;
use kvorum_raft::{Role, Status};
use serde_json::json;

use super::{
    action::Action,
    clients::Load,
    health::Health,
    invariants::Invariants,
    knobs::Knobs,
    log,
    network::{Network, address},
    node::{Kept, Node, Stopped},
    panics,
    turns::Actor,
};
use crate::{
    check::Finding,
    history::{Kind, NEMESIS},
};

/// How long a node is off that has ended itself, in milliseconds.
const RESTART_MS: u64 = 400;

pub(super) struct World {
    /// Milliseconds since the beginning.
    pub(super) now: u64,
    now_us: Arc<AtomicU64>,
    pub(super) nodes: BTreeMap<u64, Node>,
    /// The id of the next new node.
    next_id: u64,
    pub(super) network: Network,
    pub(super) actors: Vec<Actor>,
    pub(super) load: Arc<Load>,
    pub(super) invariants: Invariants,
    pub(super) chance: fastrand::Rng,
    /// Nodes that may end themselves: their disks were made to fail.
    pub(super) may_end: Vec<u64>,
    /// When nodes that have ended themselves are started again.
    restarts: Vec<(u64, u64)>,
    /// All nodes are asked to stop; so long after the end of the last they are started again.
    stopping_all: Option<u64>,
    /// And when each is.
    stops: Vec<(u64, u64)>,
    /// Copies of disks.
    copies: BTreeMap<u64, Kept>,
    /// What was done, and when: a script.
    pub(super) done: Vec<(u64, Action)>,
    pub(super) health: Health,
    knobs: Knobs,
    dir: PathBuf,
    /// A sum of all that happened, to compare two runs.
    trace: DefaultHasher,
}

impl World {
    /// A world with the first members, which are off. `dir` holds the nodes' identities.
    pub(super) fn new(
        dir: PathBuf,
        load: Arc<Load>,
        now_us: Arc<AtomicU64>,
        mut network: Network,
        members: u64,
        knobs: Knobs,
        mut chance: fastrand::Rng,
    ) -> World {
        network.distance_ms = knobs.distance_ms();
        let first: Vec<u64> = (1..=members).collect();
        let node = |id: u64| (id, Node::new(id, dir.join(id.to_string()), &first, &knobs, &mut chance));
        let nodes = first.iter().copied().map(node).collect();
        World {
            now: 0,
            now_us,
            nodes,
            next_id: members + 1,
            network,
            actors: Vec::new(),
            load,
            invariants: Invariants::default(),
            chance,
            may_end: Vec::new(),
            restarts: Vec::new(),
            stopping_all: None,
            stops: Vec::new(),
            copies: BTreeMap::new(),
            done: Vec::new(),
            health: Health::default(),
            knobs,
            dir,
            trace: DefaultHasher::new(),
        }
    }

    pub(super) fn record(&self, f: &str, value: serde_json::Value) {
        tracing::info!(fault = f, %value);
        self.load.recorder.record(NEMESIS, Kind::Info, f, value, None, None);
    }

    pub(super) fn found(&mut self, anomaly: &str, detail: String) {
        self.invariants.findings.push(Finding::new(anomaly, detail, &[]));
    }

    pub(super) fn actor(&mut self, run: impl FnOnce(super::turns::Turns) + Send + 'static) {
        self.actors.push(Actor::new(self.now_us.clone(), run));
    }

    /// Does something, and writes it down. False if it could not be.
    pub(super) fn perform(&mut self, action: &Action) -> Result<bool> {
        self.done.push((self.now, action.clone()));
        action.perform(self)
    }

    pub(super) fn start(&mut self, id: u64) -> Result<()> {
        if self.stopping_all.is_some() {
            return Ok(());
        }
        if self.network.dark.remove(&id) {
            // Its peers hear now that their streams are broken.
            self.network.break_off(id);
        }
        match self.nodes.get_mut(&id).filter(|node| !node.is_running() && !node.is_damaged) {
            Some(node) => node.start(&self.network.hub, self.now_us.clone()),
            None => Ok(()),
        }
    }

    /// Ends a node's process, or its machine.
    pub(super) fn end(&mut self, id: u64, loses_power: bool) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_running()) else { return };
        node.end(loses_power);
        self.network.stop_listening(id);
        if loses_power {
            self.network.dark.insert(id);
        }
        self.invariants.ended(id);
    }

    /// Asks a node to stop; so long after its end it is started again.
    pub(super) fn stop(&mut self, id: u64, back_ms: u64) -> bool {
        let now = self.now;
        self.nodes.get_mut(&id).is_some_and(|node| node.stop(now, back_ms))
    }

    /// Asks all nodes to stop, one after the other, and the leader last.
    pub(super) fn stop_all(&mut self, back_ms: u64, apart_ms: u64) -> bool {
        let leader = self.leader().map(|leader| leader.node_id);
        let mut ids: Vec<u64> = self.nodes.keys().copied().collect();
        ids.sort_by_key(|id| Some(*id) == leader);
        self.stops = (0_u64..).zip(ids).map(|(place, id)| (self.now + place * apart_ms, id)).collect();
        self.stopping_all = Some(back_ms);
        true
    }

    /// Asks nodes to stop whose turn it is.
    fn stop_in_turn(&mut self) {
        let now = self.now;
        let (due, rest) = std::mem::take(&mut self.stops).into_iter().partition(|(at, _)| *at <= now);
        self.stops = rest;
        for (_, id) in due {
            self.stop(id, 0);
        }
    }

    /// Starts nodes again that were asked to stop, and have.
    fn look_for_stopped(&mut self) {
        let stopped: Vec<(u64, Stopped)> =
            self.nodes.iter().filter_map(|(id, node)| Some((*id, node.stopped(self.now)?))).collect();
        for (id, stopped) in stopped {
            if stopped == Stopped::Never {
                self.found("stop without end", format!("node {id} was asked to stop, and goes on"));
            }
            self.end(id, false);
            self.record("stopped", json!({"node": id}));
            if let (Stopped::Back(back_ms), None) = (stopped, self.stopping_all) {
                self.restarts.push((self.now + back_ms, id));
            }
        }
        if let Some(back_ms) = self.stopping_all
            && !self.nodes.values().any(Node::is_running)
        {
            self.stopping_all = None;
            self.record("all stopped", json!({}));
            let at = self.now + back_ms;
            self.restarts.extend(self.nodes.keys().map(|id| (at, *id)));
        }
    }

    /// Keeps a copy of the disk of a node that does not run.
    pub(super) fn copy_disk(&mut self, id: u64) -> Result<bool> {
        let Some(node) = self.nodes.get(&id).filter(|node| !node.is_running()) else { return Ok(false) };
        self.copies.insert(id, node.copy_disk()?);
        Ok(true)
    }

    /// Puts the copy in the place of the disk of a node that does not run. From then on it may refuse to go on.
    pub(super) fn put_back_disk(&mut self, id: u64) -> Result<bool> {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.is_running()) else { return Ok(false) };
        match self.copies.get(&id) {
            Some(copy) => node.put_back_disk(copy).map(|()| true),
            None => Ok(false),
        }
    }

    /// Whether all others have met a life of this node's disk that came after its copy.
    pub(super) fn is_known(&self, id: u64) -> bool {
        let peek = |node: &Node| node.look(|server| server.node().peek());
        let Some(life) = self.nodes.get(&id).and_then(peek).map(|peek| peek.life) else { return false };
        let is_later = self.copies.get(&id).and_then(Kept::life).is_some_and(|copied| copied < life);
        let mut others = self.nodes.values().filter(|node| node.id != id);
        is_later && others.all(|node| peek(node).is_some_and(|peek| peek.met.get(&id) == Some(&life)))
    }

    pub(super) fn forget_copies(&mut self) {
        self.copies.clear();
    }

    /// Whether there is a copy of any disk.
    pub(super) fn has_copies(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Ends all that was done, and starts what is off.
    pub(super) fn heal(&mut self) -> Result<()> {
        self.network.heal();
        self.stopping_all = None;
        self.stops.clear();
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.slow_disk(None);
                node.rate = 1.0;
                if node.is_paused {
                    node.resume();
                }
            }
            self.start(id)?;
        }
        Ok(())
    }

    /// A new node, without data. It waits to be made a member.
    pub(super) fn create(&mut self) -> Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let node = Node::new(id, self.dir.join(id.to_string()), &[], &self.knobs, &mut self.chance);
        self.nodes.insert(id, node);
        self.start(id)?;
        Ok(id)
    }

    /// Takes a node away for good.
    pub(super) fn forget(&mut self, id: u64) {
        self.end(id, false);
        self.network.break_off(id);
        self.nodes.remove(&id);
    }

    /// The leader of the highest term among the running.
    pub(super) fn leader(&self) -> Option<Status> {
        let all = self.nodes.values().filter_map(Node::status);
        all.filter(|status| status.role == Role::Leader).max_by_key(|status| status.term)
    }

    /// How many members vote.
    pub(super) fn voters(&self) -> usize {
        let of = |leader: Status| leader.members.iter().filter(|member| member.voter).count();
        self.leader().map_or(0, of)
    }

    /// Has a node do something beside its own. False if it is not there.
    pub(super) fn ask<F: Future<Output = ()> + Send + 'static>(
        &self,
        asked: u64,
        task: impl FnOnce(Server) -> F,
    ) -> bool {
        self.nodes.get(&asked).is_some_and(|node| node.ask(task))
    }

    /// Has a node add another one.
    pub(super) fn ask_to_add(&self, asked: u64, id: u64) {
        self.ask(asked, move |server| async move {
            // A refusal shows in the membership.
            let _ = server.node().add_member(id, address(id)).await;
        });
    }

    pub(super) fn ask_to_remove(&self, asked: u64, id: u64) {
        self.ask(asked, move |server| async move {
            let _ = server.node().remove_member(id).await;
        });
    }

    /// Ends nodes that are no members any more, and asks again for those that are not yet.
    pub(super) fn settle_membership(&mut self) {
        let Some(leader) = self.leader().filter(|leader| leader.not_ready.is_none()) else { return };
        let members: Vec<u64> = leader.members.iter().map(|member| member.id).collect();
        for id in self.nodes.keys().copied().filter(|id| !members.contains(id)).collect::<Vec<_>>() {
            match self.nodes[&id].status() {
                Some(status) if status.cluster_id.is_none() => self.ask_to_add(leader.node_id, id),
                None if !self.nodes[&id].is_damaged => {}
                _ => self.forget(id),
            }
        }
        let damaged: Vec<u64> =
            self.nodes.values().filter(|node| node.is_damaged).map(|node| node.id).collect();
        damaged.into_iter().for_each(|id| self.ask_to_remove(leader.node_id, id));
        *self.load.nodes.lock().unwrap_or_else(PoisonError::into_inner) =
            self.nodes.keys().copied().collect();
    }

    /// Whether every node serves.
    pub(super) fn is_whole(&self) -> bool {
        self.nodes.values().all(|node| why_not_ready(node).is_none())
    }

    /// Whether no node has two memberships in force.
    pub(super) fn is_settled(&self) -> bool {
        let is_joint = |node: &Node| node.look(|server| server.node().peek().configurations > 1);
        !self.nodes.values().any(|node| is_joint(node) == Some(true))
    }

    /// Which nodes do not serve, and why.
    pub(super) fn not_ready(&self) -> String {
        let why = |node: &Node| Some(format!("node {}: {}", node.id, why_not_ready(node)?));
        self.nodes.values().filter_map(why).collect::<Vec<_>>().join("; ")
    }

    /// A millisecond.
    pub(super) fn step(&mut self) -> Result<()> {
        self.now += 1;
        self.now_us.store(self.now * 1000, Ordering::Relaxed);
        log::moment(self.now);
        for at in 0..self.actors.len() {
            if self.actors[at].is_due(self.now * 1000) && !self.actors[at].run() {
                self.found("harness", "a client's thread panicked".into());
            }
        }
        let nodes = &self.nodes;
        self.network.step(self.now, |id| nodes.get(&id)?.accept());
        for node in self.nodes.values_mut() {
            node.step(self.now * 1000);
        }
        self.look();
        self.stop_in_turn();
        self.look_for_stopped();
        self.look_at_health();
        self.restart()
    }

    fn look(&mut self) {
        for text in panics::take() {
            self.found("panic", text);
        }
        for text in log::errors() {
            self.found("error in a node's log", text);
        }
        let ended: Vec<(u64, String)> =
            self.nodes.iter().filter_map(|(id, node)| Some((*id, node.ended()?))).collect();
        for (id, why) in ended {
            self.node_ended(id, &why);
        }
        for (id, node) in self.nodes.iter().filter(|(_, node)| !node.is_paused) {
            let (invariants, trace) = (&mut self.invariants, &mut self.trace);
            node.look(|server| {
                invariants.look(*id, server);
                server.node().peek().applied.hash(trace);
            });
        }
        self.network.delivered.hash(&mut self.trace);
    }

    /// A node has ended itself, or refused to start.
    fn node_ended(&mut self, id: u64, why: &str) {
        self.record("ended", json!({"node": id, "why": why}));
        let was_rolled_back = self.nodes.get(&id).is_some_and(|node| node.was_rolled_back);
        if was_rolled_back {
            self.may_end.push(id);
        }
        let expected = self.may_end.iter().position(|ending| *ending == id);
        match expected {
            Some(at) => drop(self.may_end.swap_remove(at)),
            None => self.found("unexpected exit", format!("node {id}: {why}")),
        }
        // A damaged log is for a person to look at: the node is replaced.
        let is_damaged = why.contains("corrupted") || was_rolled_back;
        self.end(id, false);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.is_damaged = is_damaged;
            // What comes after it is another disk, or the same one mended.
            node.storage.cut_power();
        }
        self.restarts.push((self.now + RESTART_MS, id));
    }

    fn restart(&mut self) -> Result<()> {
        let now = self.now;
        let (due, rest) = std::mem::take(&mut self.restarts).into_iter().partition(|(at, _)| *at <= now);
        self.restarts = rest;
        due.into_iter().try_for_each(|(_, id)| self.start(id))
    }

    /// The sum of all that happened up to now.
    pub(super) fn trace(&self) -> u64 {
        self.trace.finish()
    }
}

fn why_not_ready(node: &Node) -> Option<String> {
    match node.status() {
        _ if node.is_damaged => Some("its log is damaged".to_owned()),
        Some(status) => status.not_ready.map(|not_ready| not_ready.why),
        None => Some("it has not started".to_owned()),
    }
}
