//! Faults: what is broken, for how long, and the proof that it was. A fault that cannot be shown to have
//! taken effect says why; a run in which no fault of a kind did is not clean.
//!
//! Each nemesis has its own thread and random stream, so that several overlap as the seed determines. Process
//! faults claim their nodes: none kills a node that another has paused.

mod clock;
mod disk;
mod faulty_disk;
mod full_disk;
mod kinds;
mod late_answers;
mod load;
mod membership;
mod network;
mod packet;
mod process;
mod rolled_back;
mod swizzle;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitStatus,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
pub(crate) use kinds::{is_steady, may_change_members, may_take_majority, needs_five};
use packet::Fate;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Needs},
    history::{Event, Kind, NEMESIS, Recorder},
};

/// How long a fault lasts: longer than a lease and an election, which take 1.2 s.
const HOLD_MS: std::ops::Range<u64> = 1_500..4_000;
/// The pause between two faults of one nemesis.
const REST_MS: std::ops::Range<u64> = 500..2_000;
const POLL: Duration = Duration::from_millis(20);

/// The environment of a fault.
pub(crate) struct Env {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) recorder: Arc<Recorder>,
    /// No new faults begin, and active ones end early.
    pub(crate) stop: AtomicBool,
    claimed: Mutex<BTreeSet<u64>>,
    /// Damaged nodes that have not shown yet whether they can continue.
    damaged: Mutex<BTreeSet<u64>>,
    /// Nodes that refused to start with damage done by a fault, and are still members.
    refused: Mutex<BTreeSet<u64>>,
}

/// Breaks something for about `hold`, and repairs it. Returns what was done, with the evidence.
type Fault = fn(&Env, &mut fastrand::Rng, Duration) -> Result<Value>;

/// Every fault by name.
const FAULTS: &[(&str, Fault)] = &[
    ("kill-one", |env, random, hold| process::kill(env, random, hold, process::Who::One)),
    ("kill-leader", |env, random, hold| process::kill(env, random, hold, process::Who::Leader)),
    ("kill-minority", |env, random, hold| process::kill(env, random, hold, process::Who::Minority)),
    ("kill-majority", |env, random, hold| process::kill(env, random, hold, process::Who::Majority)),
    ("kill-all", |env, random, hold| process::kill(env, random, hold, process::Who::All)),
    ("pause-one", |env, random, hold| process::pause(env, random, hold, process::Who::One)),
    ("pause-leader", |env, random, hold| process::pause(env, random, hold, process::Who::Leader)),
    ("pause-majority", |env, random, hold| process::pause(env, random, hold, process::Who::Majority)),
    ("pause-all", |env, random, hold| process::pause(env, random, hold, process::Who::All)),
    ("rolling-restart", process::rolling_restart),
    ("stop-one", |env, random, hold| process::stop(env, random, hold, process::Who::One)),
    ("stop-all", |env, random, hold| process::stop(env, random, hold, process::Who::All)),
    ("partition-one", |env, random, hold| network::partition(env, random, hold, network::one)),
    ("partition-leader", |env, random, hold| network::partition(env, random, hold, network::leader)),
    ("partition-halves", |env, random, hold| network::partition(env, random, hold, network::halves)),
    ("partition-ring", |env, random, hold| network::partition(env, random, hold, network::ring)),
    ("partition-bridge", |env, random, hold| network::partition(env, random, hold, network::bridge)),
    ("partition-oneway", |env, random, hold| network::partition(env, random, hold, network::one_way)),
    ("partition-clients", |env, random, hold| network::partition(env, random, hold, network::clients)),
    ("partition-swizzle", swizzle::swizzle),
    ("partition-late-answers", late_answers::late_answers),
    ("delay", network::delay),
    ("loss", network::loss),
    ("grow", membership::grow),
    ("shrink", membership::shrink),
    ("replace", membership::replace),
    ("transfer", membership::transfer),
    ("checkpoint", process::checkpoint),
    ("flip-log", |env, random, _| disk::damage(env, random, disk::Damage::Flip)),
    ("truncate-log", |env, random, _| disk::damage(env, random, disk::Damage::Truncate)),
    ("lost-tail", disk::lost_tail),
    ("disk-slow-fsync", faulty_disk::slow_syncs),
    ("disk-fail-fsync", faulty_disk::failed_sync),
    ("disk-full", full_disk::full),
    ("disk-lost-unsynced", faulty_disk::lost_unsynced),
    ("disk-lost-unsynced-all", faulty_disk::lost_unsynced_all),
    ("disk-rolled-back", rolled_back::rolled_back),
    ("clock-jump", clock::jump),
    ("clock-strobe", clock::strobe),
    ("clock-drift", clock::drift),
    ("packet-loss", |env, random, hold| packet::meet(env, random, hold, Fate::Lost)),
    ("packet-duplicate", |env, random, hold| packet::meet(env, random, hold, Fate::Doubled)),
    ("packet-reorder", |env, random, hold| packet::meet(env, random, hold, Fate::Late)),
    ("load-hot-key", load::hot_key),
    ("load-huge-value", load::huge_value),
];

/// Names for groups of faults, which run in an order determined by the seed.
const GROUPS: &[(&str, &[&str])] = &[
    ("kill", &["kill-one", "kill-leader", "kill-minority", "kill-majority", "kill-all"]),
    ("stop", &["rolling-restart", "stop-one", "stop-all"]),
    ("pause", &["pause-one", "pause-leader", "pause-majority", "pause-all"]),
    (
        "partition",
        &[
            "partition-one",
            "partition-leader",
            "partition-halves",
            "partition-ring",
            "partition-bridge",
            "partition-oneway",
            "partition-clients",
            "partition-swizzle",
            "partition-late-answers",
        ],
    ),
    ("membership", &["grow", "shrink", "replace"]),
    (
        "disk",
        &[
            "flip-log",
            "truncate-log",
            "disk-slow-fsync",
            "disk-fail-fsync",
            "disk-full",
            "disk-lost-unsynced",
            "disk-lost-unsynced-all",
            "disk-rolled-back",
        ],
    ),
    ("clock", &["clock-jump", "clock-strobe", "clock-drift"]),
    ("packet", &["packet-loss", "packet-duplicate", "packet-reorder"]),
    ("load", &["load-hot-key", "load-huge-value"]),
];

/// A fault or a group of faults.
pub(crate) struct Nemesis {
    pub(crate) name: String,
    faults: Vec<(&'static str, Fault)>,
}

/// All names, groups first.
pub(crate) fn names() -> Vec<&'static str> {
    GROUPS.iter().map(|(name, _)| *name).chain(FAULTS.iter().map(|(name, _)| *name)).collect()
}

/// The names of single faults.
#[cfg(test)]
pub(crate) fn faults() -> impl Iterator<Item = &'static str> {
    FAULTS.iter().map(|(name, _)| *name)
}

/// The nemesis of that name.
pub(crate) fn named(name: &str) -> Option<Nemesis> {
    let group = GROUPS.iter().find(|(group, _)| *group == name).map(|(_, faults)| *faults);
    let wanted = group.unwrap_or(std::slice::from_ref(&name));
    let faults = FAULTS.iter().filter(|(fault, _)| wanted.contains(fault)).copied();
    Some(Nemesis { name: name.to_owned(), faults: faults.collect() })
        .filter(|nemesis| !nemesis.faults.is_empty())
}

/// What the nodes must load for these.
pub(crate) fn needs(nemeses: &[Nemesis]) -> Needs {
    let is_chosen = |prefix: &str| {
        nemeses.iter().flat_map(|nemesis| &nemesis.faults).any(|(fault, _)| fault.starts_with(prefix))
    };
    Needs { clocks: is_chosen("clock-"), disks: is_chosen("disk-"), distance: Duration::ZERO }
}

/// The victims of a fault, reserved until it ends.
pub(crate) struct Claim<'a> {
    env: &'a Env,
    pub(crate) nodes: Vec<u64>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claimed = self.env.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        self.nodes.iter().for_each(|node| {
            claimed.remove(node);
        });
    }
}

impl Env {
    pub(crate) fn new(cluster: Arc<Cluster>, recorder: Arc<Recorder>) -> Env {
        Env {
            cluster,
            recorder,
            stop: AtomicBool::new(false),
            claimed: Mutex::default(),
            damaged: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sleeps, but not beyond the end of the run.
    pub(crate) fn sleep(&self, duration: Duration) {
        let deadline = Instant::now() + duration;
        while Instant::now() < deadline && !self.is_stopped() {
            std::thread::sleep(POLL);
        }
    }

    /// Reserves nodes for a fault, out of the running ones that no other fault has reserved.
    pub(crate) fn claim(&self, choose: impl FnOnce(Vec<u64>) -> Vec<u64>) -> Result<Claim<'_>> {
        let running = self.cluster.running();
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = choose(running.into_iter().filter(|node| !claimed.contains(node)).collect());
        if nodes.is_empty() {
            bail!("no node was free for it");
        }
        claimed.extend(&nodes);
        Ok(Claim { env: self, nodes })
    }

    /// Waits, during a fault, for a leader other than `old`.
    pub(crate) fn leader_other_than(&self, old: u64, until: Instant) -> Option<u64> {
        while Instant::now() < until && !self.is_stopped() {
            if let Some(leader) = self.cluster.leader().filter(|leader| *leader != old) {
                return Some(leader);
            }
            std::thread::sleep(POLL);
        }
        None
    }

    /// Nodes whose replacement could not be completed: the cluster could not remove them, or the run ended.
    pub(crate) fn refused(&self) -> BTreeSet<u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_refused(&self, node: u64, has: bool) {
        change(&self.refused, node, has);
    }

    fn is_damaged(&self, node: u64, is: bool) {
        change(&self.damaged, node, is);
    }

    /// Detects damaged nodes that refuse their data after the fault has stopped waiting for their reaction.
    pub(crate) fn look_for_refusals(&self) {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        for node in damaged.into_iter().filter(|node| !claimed.contains(node)) {
            match self.cluster.ended(node) {
                Ok(Some(status)) if status.code() == Some(disk::DATA_DAMAGED) => {
                    self.has_refused(node, true);
                    self.record("refused", json!({"node": node, "late": true}));
                }
                Ok(Some(status)) => self.has_ended_by_itself(node, status),
                Ok(None) => continue,
                // It has no process: the fault that reserved it has judged its exit.
                Err(_) => {}
            }
            self.is_damaged(node, false);
        }
    }

    /// Detects nodes that ended although no fault has reserved them, and restarts them.
    pub(crate) fn look_for_exits(&self) {
        self.look_for_refusals();
        let claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        for node in self.cluster.running().into_iter().filter(|node| !claimed.contains(node)) {
            if let Ok(Some(status)) = self.cluster.ended(node) {
                self.has_ended_by_itself(node, status);
            }
        }
    }

    fn has_ended_by_itself(&self, node: u64, status: ExitStatus) {
        let detail = format!("node {node} ended by itself: {status}");
        self.record("finding", json!({"anomaly": "unexpected exit", "detail": detail}));
        // If it cannot be started, that shows at the end.
        let _ = self.cluster.start_node(node);
    }

    pub(crate) fn record(&self, f: &str, value: Value) {
        self.recorder.record(NEMESIS, Kind::Info, f, value, None, None);
    }
}

/// Adds a node to a set, or removes it.
fn change(set: &Mutex<BTreeSet<u64>>, node: u64, is_in: bool) {
    let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
    if is_in {
        set.insert(node)
    } else {
        set.remove(&node)
    };
}

impl Nemesis {
    /// Breaks and repairs until the run ends.
    pub(crate) fn run(mut self, env: &Env, mut random: fastrand::Rng) {
        random.shuffle(&mut self.faults);
        for (name, fault) in self.faults.iter().cycle() {
            env.sleep(Duration::from_millis(random.u64(REST_MS)));
            if env.is_stopped() {
                return;
            }
            let hold = Duration::from_millis(random.u64(HOLD_MS));
            env.record("start", json!({"nemesis": self.name, "fault": name}));
            let (effect, detail) = match fault(env, &mut random, hold) {
                Ok(detail) => (true, detail),
                Err(error) => (false, json!(format!("{error:#}"))),
            };
            env.record(
                "stop",
                json!({"nemesis": self.name, "fault": name, "effect": effect, "detail": detail}),
            );
        }
    }
}

/// A fault in a history: its name, its beginning and end, and whether it took effect.
#[derive(Clone, Debug)]
pub(crate) struct Shadow {
    pub(crate) nemesis: String,
    pub(crate) fault: String,
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
    pub(crate) effect: bool,
    pub(crate) detail: Value,
}

/// All faults of a history.
pub(crate) fn shadows(events: &[Event]) -> Vec<Shadow> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut begun: BTreeMap<String, u64> = BTreeMap::new();
    let mut shadows = Vec::new();
    for event in events.iter().filter(|event| event.process == NEMESIS) {
        let nemesis = text(&event.value["nemesis"]);
        match event.f.as_str() {
            "start" => {
                begun.insert(nemesis, event.time_ns);
            }
            "stop" => {
                let from_ns = begun.remove(&nemesis).unwrap_or(event.time_ns);
                let (fault, effect) = (text(&event.value["fault"]), event.value["effect"] == json!(true));
                let detail = event.value["detail"].clone();
                shadows.push(Shadow { nemesis, fault, from_ns, to_ns: event.time_ns, effect, detail });
            }
            _ => {}
        }
    }
    shadows
}
