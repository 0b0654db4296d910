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
use kvorum_raft::{Role, Status};
use serde_json::json;

use super::{
    clients::Load,
    invariants::Invariants,
    log,
    network::{Network, address},
    node::Node,
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
        network: Network,
        members: u64,
        mut chance: fastrand::Rng,
    ) -> World {
        let first: Vec<u64> = (1..=members).collect();
        let node = |id: u64| (id, Node::new(id, dir.join(id.to_string()), &first, &mut chance));
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

    pub(super) fn start(&mut self, id: u64) -> Result<()> {
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

    /// A new node, without data. It waits to be made a member.
    pub(super) fn create(&mut self) -> Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let node = Node::new(id, self.dir.join(id.to_string()), &[], &mut self.chance);
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

    /// Has the leader add a node.
    pub(super) fn add_member(&self, id: u64) {
        if let Some(leader) = self.leader() {
            self.nodes[&leader.node_id].ask(move |server| async move {
                // A refusal shows in the membership.
                let _ = server.node().add_member(id, address(id)).await;
            });
        }
    }

    pub(super) fn remove_member(&self, id: u64) {
        if let Some(leader) = self.leader() {
            self.nodes[&leader.node_id].ask(move |server| async move {
                let _ = server.node().remove_member(id).await;
            });
        }
    }

    /// Ends nodes that are no members any more, and asks again for those that are not yet.
    pub(super) fn settle_membership(&mut self) {
        let Some(leader) = self.leader().filter(|leader| leader.not_ready.is_none()) else { return };
        let members: Vec<u64> = leader.members.iter().map(|member| member.id).collect();
        for id in self.nodes.keys().copied().filter(|id| !members.contains(id)).collect::<Vec<_>>() {
            match self.nodes[&id].status() {
                Some(status) if status.cluster_id.is_none() => self.add_member(id),
                None if !self.nodes[&id].is_damaged => {}
                _ => self.forget(id),
            }
        }
        let damaged: Vec<u64> =
            self.nodes.values().filter(|node| node.is_damaged).map(|node| node.id).collect();
        damaged.into_iter().for_each(|id| self.remove_member(id));
        *self.load.nodes.lock().unwrap_or_else(PoisonError::into_inner) =
            self.nodes.keys().copied().collect();
    }

    /// Whether every node serves.
    pub(super) fn is_whole(&self) -> bool {
        self.nodes.values().all(|node| why_not_ready(node).is_none())
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
        self.restart()
    }

    fn look(&mut self) {
        for text in panics::take() {
            self.found("panic", text);
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
        let expected = self.may_end.iter().position(|ending| *ending == id);
        match expected {
            Some(at) => drop(self.may_end.swap_remove(at)),
            None => self.found("unexpected exit", format!("node {id}: {why}")),
        }
        // A damaged log is for a person to look at: the node is replaced.
        let is_damaged = why.contains("corrupted");
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
        Some(status) => status.not_ready,
        None => Some("it has not started".to_owned()),
    }
}
