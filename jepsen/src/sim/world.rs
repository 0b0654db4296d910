//! The simulated world: time, nodes, network, clients, and the checks of all of them after every step.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    clients::Load,
    knobs::Knobs,
    log,
    network::{Network, address},
    node::{Kept, Node, Stopped},
    panics,
    script::action::Action,
    turns::Actor,
    watch::{health::Health, invariants::Invariants},
};
use crate::history::{Kind, NEMESIS};

/// How long a node that ended itself stays down, in milliseconds.
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
    /// When nodes that ended themselves are restarted.
    restarts: Vec<(u64, u64)>,
    /// All nodes are being asked to stop; they are restarted this long after the end of the last.
    stopping_all: Option<u64>,
    /// When each of them is asked.
    stops: Vec<(u64, u64)>,
    /// Nodes that must not be started.
    pub(super) stays_off: BTreeSet<u64>,
    /// Copies of disks.
    copies: BTreeMap<u64, Kept>,
    /// All actions so far, and when: a script.
    pub(super) done: Vec<(u64, Action)>,
    /// When the cluster was whole for the first time.
    pub(super) formed_at: Option<u64>,
    pub(super) health: Health,
    knobs: Knobs,
    dir: PathBuf,
    /// A hash of everything that happened, to compare two runs.
    trace: DefaultHasher,
}

/// The voters according to a node.
pub(super) fn voters_of(status: &Status) -> Vec<u64> {
    status.members.iter().filter(|member| member.voter).map(|member| member.id).collect()
}

impl World {
    /// A world with the first members, which are down. `dir` is for the nodes' identities.
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
        let first_id = knobs.first_id();
        let first: Vec<u64> = (first_id..first_id + members).collect();
        let node = |id: u64| (id, Node::new(id, dir.join(id.to_string()), &first, &knobs, &mut chance));
        let nodes = first.iter().copied().map(node).collect();
        World {
            now: 0,
            now_us,
            nodes,
            next_id: first_id + members,
            network,
            actors: Vec::new(),
            load,
            invariants: Invariants::default(),
            chance,
            may_end: Vec::new(),
            restarts: Vec::new(),
            stopping_all: None,
            stops: Vec::new(),
            stays_off: BTreeSet::new(),
            copies: BTreeMap::new(),
            done: Vec::new(),
            formed_at: None,
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
        self.invariants.found(anomaly, detail);
    }

    pub(super) fn actor(&mut self, run: impl FnOnce(super::turns::Turns) + Send + 'static) {
        self.actors.push(Actor::new(self.now_us.clone(), run));
    }

    /// Performs an action and records it. False if it was impossible.
    pub(super) fn perform(&mut self, action: &Action) -> Result<bool> {
        self.done.push((self.now, action.clone()));
        action.perform(self)
    }

    pub(super) fn start(&mut self, id: u64) -> Result<()> {
        if self.stopping_all.is_some() || self.stays_off.contains(&id) {
            return Ok(());
        }
        if self.network.dark.remove(&id) {
            // Only now do its peers learn that their streams are broken.
            self.network.break_off(id);
        }
        match self.nodes.get_mut(&id).filter(|node| !node.is_running() && !node.is_damaged) {
            Some(node) => node.start(&self.network.hub, self.now_us.clone()),
            None => Ok(()),
        }
    }

    /// Ends a node's process, or cuts its machine's power.
    pub(super) fn end(&mut self, id: u64, loses_power: bool) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_running()) else { return };
        node.end(loses_power);
        self.network.stop_listening(id);
        if loses_power {
            self.network.dark.insert(id);
        }
        self.invariants.ended(id);
    }

    /// Asks a node to stop; it is restarted this long after its end.
    pub(super) fn stop(&mut self, id: u64, back_ms: u64) -> bool {
        let now = self.now;
        self.nodes.get_mut(&id).is_some_and(|node| node.stop(now, back_ms))
    }

    /// Asks all nodes to stop, one after the other, the leader last.
    pub(super) fn stop_all(&mut self, back_ms: u64, apart_ms: u64) -> bool {
        let leader = self.leader().map(|leader| leader.node_id);
        let mut ids: Vec<u64> = self.nodes.keys().copied().collect();
        ids.sort_by_key(|id| Some(*id) == leader);
        self.stops = (0_u64..).zip(ids).map(|(place, id)| (self.now + place * apart_ms, id)).collect();
        self.stopping_all = Some(back_ms);
        true
    }

    /// Asks nodes to stop when their time has come.
    fn stop_in_turn(&mut self) {
        let now = self.now;
        let (due, rest) = std::mem::take(&mut self.stops).into_iter().partition(|(at, _)| *at <= now);
        self.stops = rest;
        for (_, id) in due {
            self.stop(id, 0);
        }
    }

    /// Restarts nodes that have stopped as asked.
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

    /// Stores a copy of a node's disk.
    pub(super) fn copy_disk(&mut self, id: u64) -> Result<bool> {
        let Some(node) = self.nodes.get(&id) else { return Ok(false) };
        self.copies.insert(id, node.copy_disk()?);
        Ok(true)
    }

    /// Replaces the disk of a node that does not run by its copy. From then on the node may end itself.
    pub(super) fn put_back_disk(&mut self, id: u64) -> Result<bool> {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.is_running()) else { return Ok(false) };
        match self.copies.get(&id) {
            Some(copy) => node.put_back_disk(copy).map(|()| true),
            None => Ok(false),
        }
    }

    /// The nodes that must refuse this node with the copy of its disk: they have met a later life of it, are
    /// healthy, and are connected. Empty if detection is not promised: the nodes that have not met a later
    /// life could form a majority with it, or no node has met one.
    pub(super) fn who_refuses(&self, id: u64) -> Vec<u64> {
        let peek = |node: &Node| node.look(|server| server.node().peek());
        let copied = self.copies.get(&id).and_then(Kept::life).filter(|_| self.stopping_all.is_none());
        let Some(copied) = copied else { return Vec::new() };
        let knows =
            |node: &&Node| peek(node).is_some_and(|peek| peek.met.get(&id).is_some_and(|met| *met > copied));
        let is_pending = |node: &&Node| self.restarts.iter().any(|(_, back)| *back == node.id);
        let others = || self.nodes.values().filter(|node| node.id != id);
        let unknowing =
            others().filter(|node| node.is_running() || is_pending(node)).filter(|node| !knows(node));
        let unknowing = unknowing.count();
        let is_outvoted = match self.voters_in_force() {
            Some(voters) => unknowing < voters.len() / 2,
            None => unknowing == 0,
        };
        let is_near = |node: &&Node| !self.network.are_apart(id, node.id) && self.is_steady(node);
        let refusing = others().filter(|_| is_outvoted).filter(knows).filter(is_near);
        refusing.map(|node| node.id).collect()
    }

    /// Whether a node runs, and will continue to run.
    fn is_steady(&self, node: &Node) -> bool {
        let ends = self.may_end.contains(&node.id) || node.is_stopping();
        node.is_running() && !node.is_paused && !ends && node.ended().is_none()
    }

    pub(super) fn is_steady_still(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| self.is_steady(node))
    }

    /// Whether what this node has acknowledged is safe without it: no other disk is or may be damaged.
    pub(super) fn can_spare(&self, id: u64) -> bool {
        let is_doubtful =
            |node: &Node| node.is_damaged || node.was_rolled_back || self.may_end.contains(&node.id);
        let is_good =
            |node: &Node| !is_doubtful(node) || why_not_ready(node).is_none() && !node.was_rolled_back;
        self.nodes.values().filter(|node| node.id != id).all(is_good)
    }

    /// Whether the copy of a disk is from the node's present life.
    pub(super) fn is_of_this_life(&self, id: u64) -> bool {
        let life = self.nodes.get(&id).and_then(|node| node.look(|server| server.node().peek().life));
        life.is_some() && self.copies.get(&id).and_then(Kept::life) == life
    }

    pub(super) fn forget_copies(&mut self) {
        self.copies.clear();
    }

    /// Whether there is a copy of any disk.
    pub(super) fn has_copies(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Ends all faults, and starts nodes that are down.
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

    /// Creates a node without data, which waits to be added as a member.
    pub(super) fn create(&mut self) -> Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let node = Node::new(id, self.dir.join(id.to_string()), &[], &self.knobs, &mut self.chance);
        self.nodes.insert(id, node);
        self.start(id)?;
        Ok(id)
    }

    /// Removes a node for good.
    pub(super) fn forget(&mut self, id: u64) {
        self.end(id, false);
        self.network.break_off(id);
        self.nodes.remove(&id);
    }

    /// The running leader with the highest term.
    pub(super) fn leader(&self) -> Option<Status> {
        let all = self.nodes.values().filter_map(Node::status);
        all.filter(|status| status.role == Role::Leader).max_by_key(|status| status.term)
    }

    /// The number of voters according to the longest log. During a change, which adds or removes one, of the smaller
    /// configuration: it needs a majority of its own.
    pub(super) fn voters_at_least(&self) -> usize {
        let known = self.newest().map_or(0, |newest| voters_of(&newest).len());
        known.saturating_sub(usize::from(!self.is_settled()))
    }

    /// The status of the node with the longest log.
    pub(super) fn newest(&self) -> Option<Status> {
        self.nodes.values().filter_map(Node::status).max_by_key(|status| status.last_log_index)
    }

    /// The number of voters according to the leader.
    pub(super) fn voters(&self) -> usize {
        self.leader().map_or(0, |leader| voters_of(&leader).len())
    }

    /// Runs a task on a node. False if it does not exist.
    pub(super) fn ask<F: Future<Output = ()> + Send + 'static>(
        &self,
        asked: u64,
        task: impl FnOnce(Server) -> F,
    ) -> bool {
        self.nodes.get(&asked).is_some_and(|node| node.ask(task))
    }

    /// Asks a node to add another one.
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

    /// Removes nodes that are no longer members, and asks again to add those that are not members yet.
    pub(super) fn settle_membership(&mut self) {
        let Some(leader) = self.leader().filter(|leader| leader.not_ready.is_none()) else { return };
        // A former leader that does not know it yet may know less than all others of who is a member.
        if self.nodes.values().filter_map(Node::status).any(|status| status.term > leader.term) {
            return;
        }
        let members: Vec<u64> = leader.members.iter().map(|member| member.id).collect();
        // A node may have been removed before it knew that it had been added.
        let leads = &self.nodes[&leader.node_id];
        let is_retired = |id: u64| leads.look(|server| server.node().has_retired(id)) == Some(true);
        let others = self.nodes.keys().copied().filter(|id| !members.contains(id));
        for (id, is_retired) in others.map(|id| (id, is_retired(id))).collect::<Vec<_>>() {
            match self.nodes[&id].status() {
                Some(status) if status.cluster_id.is_none() && !is_retired => {
                    self.ask_to_add(leader.node_id, id)
                }
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

    /// Whether no node is in a joint configuration.
    pub(super) fn is_settled(&self) -> bool {
        let is_joint = |node: &Node| node.look(|server| server.node().peek().configurations > 1);
        !self.nodes.values().any(|node| is_joint(node) == Some(true))
    }

    /// The nodes that do not serve, with the reasons.
    pub(super) fn not_ready(&self) -> String {
        let why = |node: &Node| Some(format!("node {}: {}", node.id, why_not_ready(node)?));
        self.nodes.values().filter_map(why).collect::<Vec<_>>().join("; ")
    }

    /// Advances the world by one millisecond.
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
        // A damaged log needs a person: the node is replaced.
        let is_damaged = why.contains("corrupted") || was_rolled_back;
        self.end(id, false);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.is_damaged = is_damaged;
            // Whatever comes next is another disk, or the same one repaired.
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

    /// The hash of everything that happened so far.
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
