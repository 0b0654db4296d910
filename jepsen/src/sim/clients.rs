//! The clients of a simulation: the workloads of real runs, on simulated connections.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    network::{Place, SharedHub, dial},
    turns::{SimulatedWire, Turns},
};
use crate::{
    check::Finding,
    client::Connection,
    history::{Kind, Recorder},
    run::LAST_PROCESS,
    watch::contents,
    workload::Workload,
};

/// How long clients wait for a reply: longer than the server, which gives up after 1 s.
const REPLY_TIMEOUT: Duration = Duration::from_millis(2_500);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// One operation in this many begins with a new connection, to any node.
const MOVE_ODDS: u32 = 15;
/// How often a final read is tried.
const LAST_ATTEMPTS: usize = 100;

/// What the clients of a simulation share.
pub(super) struct Load {
    pub(super) workload: Arc<dyn Workload>,
    pub(super) recorder: Recorder,
    pub(super) hub: SharedHub,
    /// The nodes that clients use.
    pub(super) nodes: Mutex<Vec<u64>>,
    pub(super) stop: AtomicBool,
    pub(super) clients: usize,
    /// How many of the clients only read, each at a node that it never leaves; 0 if one in three reads, at
    /// any node.
    pub(super) readers: usize,
    /// How many clients, the readers first, never leave their nodes.
    pub(super) pinned: usize,
    /// The longest pause between two operations of a client, in milliseconds.
    pub(super) think_ms_max: u64,
    /// Clients have begun, and were not told to stop.
    pub(super) is_loaded: AtomicBool,
    /// The number of successful operations of probes, which only test whether anything can be done.
    pub(super) probes: AtomicUsize,
    /// The findings of clients that do not belong to the workload.
    pub(super) findings: Mutex<Vec<Finding>>,
}

impl Load {
    fn nodes(&self) -> Vec<u64> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn connect(&self, turns: &Turns, client: usize, node: u64) -> Option<Connection> {
        let end = dial(&self.hub, Place::Client(client), node);
        let wire = SimulatedWire { turns: turns.clone(), end };
        let mut connection = Connection::over(node, wire, CONNECT_TIMEOUT);
        connection.call(&["PING"]).ok()?;
        connection.timeout = REPLY_TIMEOUT;
        Some(connection)
    }

    /// Prepares the workload.
    pub(super) fn prepare(&self, turns: &Turns) {
        for attempt in 0.. {
            let node = self.nodes()[attempt % self.nodes().len()];
            let connection = self.connect(turns, 0, node);
            if connection.is_some_and(|mut open| self.workload.prepare(&mut open).is_ok()) {
                return;
            }
            turns.sleep(Duration::from_millis(50));
        }
    }

    /// A client, until it is told to stop.
    pub(super) fn client(&self, turns: &Turns, number: usize, mut random: fastrand::Rng) {
        let mut process = number as i64;
        let mut connection: Option<Connection> = None;
        while !self.stop.load(Ordering::Relaxed) {
            turns.sleep(Duration::from_millis(random.u64(1..=self.think_ms_max)));
            let moves = random.u32(..MOVE_ODDS) == 0 && number >= self.pinned;
            if connection.as_ref().is_none_or(|open| open.is_broken) || moves {
                // The old connection is closed first.
                drop(connection.take());
                let node = self.place(number, &mut random);
                connection = node.and_then(|node| self.connect(turns, number, node));
            }
            let Some(open) = &mut connection else { continue };
            let (f, value) = self.next(number, &mut random);
            if self.workload.carry_out(&self.recorder, process, open, f, &value) == Kind::Info {
                process += self.clients as i64;
            }
        }
    }

    /// The node that a client uses.
    fn place(&self, number: usize, random: &mut fastrand::Rng) -> Option<u64> {
        let nodes = self.nodes();
        match number < self.pinned {
            true => nodes.get(number % nodes.len().max(1)).copied(),
            false => random.choice(nodes),
        }
    }

    /// The next operation of a client. Readers, or one client in three, only read, if the workload has reads:
    /// on a node that cannot write, other clients would block just when its reads are of interest.
    fn next(&self, number: usize, random: &mut fastrand::Rng) -> (&'static str, Value) {
        let only_reads = if self.readers > 0 { number < self.readers } else { number % 3 == 2 };
        let read = if only_reads { self.workload.read(random) } else { None };
        read.unwrap_or_else(|| self.workload.next(random))
    }

    /// Makes the workload's final reads through every node, and reads all content.
    pub(super) fn look_at_the_end(&self, turns: &Turns) {
        turns.sleep(self.workload.settles_within());
        let mut process = LAST_PROCESS;
        for node in self.nodes() {
            for (f, value) in self.workload.last() {
                let is_done = self.insist(turns, node, |connection| {
                    process += 1;
                    self.workload.carry_out(&self.recorder, process, connection, f, &value) == Kind::Ok
                });
                self.must(is_done, || format!("{f} {value} has no answer on node {node}"));
            }
        }
        for node in self.nodes() {
            let mut contents: BTreeMap<bool, _> = BTreeMap::new();
            for is_local in [false, true] {
                let is_done = self.insist(turns, node, |connection| {
                    let content = contents::read(connection, is_local);
                    content.is_ok_and(|content| contents.insert(is_local, content).is_none())
                });
                self.must(is_done, || format!("the contents of node {node} could not be read"));
            }
            for (is_local, content) in contents {
                process += 1;
                let level = json!({"local": is_local});
                self.recorder.record(process, Kind::Invoke, "contents", level, Some(node), None);
                let value = json!({"local": is_local, "content": content});
                self.recorder.record(process, Kind::Ok, "contents", value, Some(node), None);
            }
        }
    }

    fn must(&self, is_done: bool, otherwise: impl FnOnce() -> String) {
        if !is_done {
            self.found("permanent unavailability", otherwise());
        }
    }

    pub(super) fn found(&self, anomaly: &str, detail: String) {
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.push(Finding::new(anomaly, detail, &[]));
    }

    fn insist(&self, turns: &Turns, node: u64, mut attempt: impl FnMut(&mut Connection) -> bool) -> bool {
        for _ in 0..LAST_ATTEMPTS {
            let connection = self.connect(turns, usize::MAX, node);
            if connection.is_some_and(|mut open| attempt(&mut open)) {
                return true;
            }
            turns.sleep(Duration::from_millis(100));
        }
        false
    }
}
