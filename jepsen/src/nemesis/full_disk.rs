//! A full disk (docs/disk-space.md): it ends no node, and reads go on. The only end that is promised is that of
//! a start, with exit code 8, if there is not even space to open what is there; so half of the time a node is
//! also killed and started on the full disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitStatus,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{
    Claim, Env,
    faulty_disk::{controls, disks, finding, somebody, total},
    process::{READY_PATIENCE, victims},
};
use crate::{
    client::Connection,
    cluster::disks::format::{FULL, FULL_GROWTH},
};

/// How long a node whose start has failed stays down while its disk is full.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// The documented exit code of a start for which the system has no space.
const WANTING: i32 = 8;
const POLL: Duration = Duration::from_millis(20);
/// How long a read may take, how often nodes are asked for one, and how many in a row may fail: the machine is
/// busy.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
const READ_EVERY: Duration = Duration::from_millis(500);
const READS_FAILED_MAX: usize = 2;
/// What needs no other node.
const READ: [&str; 4] = ["CONSISTENCY", "STALE", "GET", "full-disk"];

/// Nodes whose disks are full.
struct Victims<'a> {
    env: &'a Env,
    claim: Claim<'a>,
    /// They were started on a full disk, and have not been ready since.
    starting: BTreeSet<u64>,
    /// How many starts on a full disk failed as they may, by node.
    ended: BTreeMap<u64, usize>,
    /// Nodes that were started on a full disk.
    started: BTreeSet<u64>,
    reads: usize,
    /// By node, in a row.
    reads_failed: BTreeMap<u64, usize>,
}

/// Why a node may not end like this; None if it may. `is_starting`: on a full disk, and it was never ready.
fn broken_promise(status: ExitStatus, is_starting: bool) -> Option<&'static str> {
    match (is_starting, status.code()) {
        (true, Some(WANTING)) => None,
        (true, _) => Some("its start on a full disk may end with exit code 8 alone"),
        (false, _) => Some("a full disk ends no node"),
    }
}

impl Victims<'_> {
    /// Looks for nodes that have ended, and starts them again.
    fn look_for_ends(&mut self, is_full: bool) {
        for node in self.claim.nodes.clone() {
            if self.starting.contains(&node) && self.env.cluster.is_ready(node) {
                self.starting.remove(&node);
            }
            match self.env.cluster.ended(node) {
                Ok(Some(status)) => {
                    match broken_promise(status, self.starting.contains(&node)) {
                        Some(why) => {
                            let detail = format!("node {node} ended with {status}, and {why}");
                            finding(self.env, "ended on a full disk", detail);
                        }
                        None => *self.ended.entry(node).or_default() += 1,
                    }
                    std::thread::sleep(RESTART_PAUSE);
                }
                Ok(None) => continue,
                // The last start failed.
                Err(_) => {}
            }
            self.start(node, is_full);
        }
    }

    fn start(&mut self, node: u64, is_full: bool) {
        if is_full {
            self.starting.insert(node);
            self.started.insert(node);
        } else {
            self.starting.remove(&node);
        }
        // A failed start is retried.
        let _ = self.env.cluster.start_node(node);
    }

    /// Kills a node, which then has to start on its full disk.
    fn kill_one(&mut self, random: &mut fastrand::Rng) {
        let Some(node) = random.choice(self.claim.nodes.clone()) else { return };
        if self.env.cluster.kill(node).is_ok() {
            self.start(node, true);
        }
    }

    /// Reads what each node has, except where a start may still fail.
    fn read(&mut self) {
        for (node, address) in self.env.cluster.own_addresses() {
            if !self.claim.nodes.contains(&node) || self.started.contains(&node) {
                continue;
            }
            let opened = Connection::open(node, address, READ_TIMEOUT);
            let answer = opened.map_err(|why| format!("no connection: {why}"));
            let answer = answer.and_then(|mut it| it.call(&READ).map_err(|failure| format!("{failure:?}")));
            let failed = self.reads_failed.entry(node).or_default();
            match answer {
                Ok(_) => (self.reads, *failed) = (self.reads + 1, 0),
                Err(_) if *failed < READS_FAILED_MAX => *failed += 1,
                Err(why) => {
                    *failed = 0;
                    let detail = format!("node {node} answers no stale read on a full disk: {why}");
                    finding(self.env, "no reads on a full disk", detail);
                }
            }
        }
    }

    /// Whether all are ready, except those that are kept off.
    fn are_ready(&self) -> bool {
        let cluster = &self.env.cluster;
        self.claim.nodes.iter().all(|node| cluster.is_kept_off(*node) || cluster.is_ready(*node))
    }
}

/// The disk is full for all writes, or for all growth.
pub(super) fn full(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    disks(env)?;
    let who = somebody(random);
    let claim = victims(env, random, who)?;
    let controls = controls(env, &claim.nodes)?;
    let before = total(&controls, |control| &control.refused);
    let kind = if random.bool() { FULL } else { FULL_GROWTH };
    let order = |kind: u64| {
        controls.values().for_each(|control| control.full.store(kind, Ordering::Relaxed));
    };
    let mut victims = Victims {
        env,
        claim,
        starting: BTreeSet::new(),
        ended: BTreeMap::new(),
        started: BTreeSet::new(),
        reads: 0,
        reads_failed: BTreeMap::new(),
    };
    order(kind);
    let until = Instant::now() + 2 * hold;
    let mut killing_at = random.bool().then(|| Instant::now() + hold);
    let mut read_at = Instant::now() + READ_EVERY;
    while Instant::now() < until && !env.is_stopped() {
        if let Some(node) = random.choice(&victims.claim.nodes) {
            // An operation that needs space.
            let _ = env.cluster.administer(*node, "POST", "/v1/checkpoint", None);
        }
        if killing_at.is_some_and(|at| Instant::now() > at) {
            killing_at = None;
            victims.kill_one(random);
        }
        if Instant::now() > read_at {
            read_at = Instant::now() + READ_EVERY;
            victims.read();
        }
        victims.look_for_ends(true);
        std::thread::sleep(POLL);
    }
    order(0);
    // Also restart nodes that end a moment later.
    let deadline = Instant::now() + READY_PATIENCE;
    while Instant::now() < deadline && !victims.are_ready() {
        victims.look_for_ends(false);
        std::thread::sleep(POLL);
    }
    let refused = total(&controls, |control| &control.refused) - before;
    let nodes = &victims.claim.nodes;
    if refused == 0 {
        bail!("no node of {nodes:?} wanted space meanwhile");
    }
    let what = if kind == FULL { "all writes" } else { "growth" };
    Ok(json!({"nodes": nodes, "refused": refused, "of": what, "reads": victims.reads,
        "started": victims.started, "ended": victims.ended}))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn only_a_start_may_end_and_only_with_its_own_exit_code() {
        let code = |code: i32| ExitStatus::from_raw(code << 8);
        let abort = ExitStatus::from_raw(libc::SIGABRT);
        assert_eq!(broken_promise(code(8), true), None);
        for (status, is_starting) in
            [(abort, true), (code(0), true), (code(1), true), (code(8), false), (abort, false)]
        {
            assert!(broken_promise(status, is_starting).is_some(), "{status} {is_starting}");
        }
    }
}
