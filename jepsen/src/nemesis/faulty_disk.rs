//! Disk faults through a library loaded by nodes (`disk-faults/`): slow or failing syncs, and power cuts, which
//! lose what was not synced; for full disks see `full_disk.rs`. The proof is the library's counters, and what a power cut has
//! removed.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    Env,
    process::{READY_PATIENCE, Who, victims},
};
use crate::cluster::{
    disks::{
        Disks,
        format::{Control, LOG, PAGES},
    },
    rollback::{Extent, Lost},
};

/// The duration of a slow sync, minimum and maximum.
const SLOW_MS: (u64, u64) = (100, 3_000);
/// The same before a power cut, so that syncs are in flight when it comes.
const BUSY_MS: (u64, u64) = (20, 200);
/// How long to wait for a sync that can fail, and for a node to end because of it.
const SYNC_PATIENCE: Duration = Duration::from_secs(15);
const END_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

pub(super) fn disks(env: &Env) -> Result<&Disks> {
    match &env.cluster.disks {
        Ok(disks) => Ok(disks),
        Err(why) => bail!("not done: {why}"),
    }
}

/// The nodes' controls. Err if a node has not loaded the library.
pub(super) fn controls(env: &Env, nodes: &[u64]) -> Result<BTreeMap<u64, &'static Control>> {
    let disks = disks(env)?;
    let control = |node: &u64| {
        let control = disks.control(*node)?;
        if control.loaded.load(Ordering::Relaxed) == 0 {
            bail!("not done: the server does not load libraries by LD_PRELOAD");
        }
        Ok((*node, control))
    };
    nodes.iter().map(control).collect()
}

pub(super) fn total(controls: &BTreeMap<u64, &'static Control>, counter: fn(&Control) -> &AtomicU64) -> u64 {
    controls.values().map(|control| counter(control).load(Ordering::Relaxed)).sum()
}

fn slow(controls: &BTreeMap<u64, &'static Control>, (least, most): (u64, u64)) {
    for control in controls.values() {
        control.slow_ms_min.store(least, Ordering::Relaxed);
        control.slow_ms_max.store(most, Ordering::Relaxed);
    }
}

pub(super) fn somebody(random: &mut fastrand::Rng) -> Who {
    [Who::One, Who::Leader, Who::Minority, Who::All][random.usize(..4)]
}

/// Every sync is slow.
pub(super) fn slow_syncs(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    disks(env)?;
    // No process is stopped, so the nodes stay available to other faults.
    let who = somebody(random);
    let nodes = victims(env, random, who)?.nodes.clone();
    let controls = controls(env, &nodes)?;
    let before = total(&controls, |control| &control.delayed);
    slow(&controls, SLOW_MS);
    env.sleep(2 * hold);
    slow(&controls, (0, 0));
    let delayed = total(&controls, |control| &control.delayed) - before;
    if delayed == 0 {
        bail!("no node of {nodes:?} synced anything meanwhile");
    }
    Ok(json!({"nodes": nodes, "delayed": delayed}))
}

/// Whether a node ended as it should when its disk has failed.
fn is_abort(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGABRT)
}

pub(super) fn finding(env: &Env, anomaly: &str, detail: String) {
    env.record("finding", json!({"anomaly": anomaly, "detail": detail}));
}

/// A sync fails. The node must end itself: what it believes to be on disk may not be there, whatever a second
/// sync reports. And it is not: the file loses what was not synced before the node is started again.
pub(super) fn failed_sync(env: &Env, random: &mut fastrand::Rng, _: Duration) -> Result<Value> {
    let disks = disks(env)?;
    let who = if random.bool() { Who::One } else { Who::Leader };
    let claim = victims(env, random, who)?;
    let (id, place) = (claim.nodes[0], if random.bool() { LOG } else { PAGES });
    let controls = controls(env, &[id])?;
    let control = controls[&id];
    let before = control.failed.load(Ordering::Relaxed);
    control.failing_where.store(place, Ordering::Relaxed);
    control.failing_syncs.store(1, Ordering::Relaxed);
    let has_failed = || control.failed.load(Ordering::Relaxed) > before;
    let deadline = Instant::now() + SYNC_PATIENCE;
    while !has_failed() && Instant::now() < deadline && !env.is_stopped() {
        if place == PAGES {
            // The node may no longer answer, which is what this waits for.
            let _ = env.cluster.administer(id, "POST", "/v1/checkpoint", None);
        }
        std::thread::sleep(POLL);
    }
    control.failing_syncs.store(0, Ordering::Relaxed);
    if !has_failed() {
        bail!("node {id} synced nothing that was to fail");
    }
    let place = if place == LOG { "log" } else { "pages" };
    match env.cluster.wait(id, END_PATIENCE) {
        Ok(status) if is_abort(status) => {}
        Ok(status) => {
            let detail = format!("node {id} ended after a failed sync of its {place} with {status}");
            finding(env, "unexpected exit", detail);
        }
        Err(_) => {
            let detail = format!("node {id} goes on after a failed sync of its {place}");
            finding(env, "failed sync ignored", detail);
            env.cluster.kill(id)?;
        }
    }
    let lost = disks.cut_power(id, &env.cluster.data_of(id), random, Extent::Whole);
    env.cluster.start_node(id)?;
    Ok(json!({"node": id, "of": place, "lost": lost?}))
}

/// A power cut: the nodes are killed at the same moment, and lose what they had not synced, or some of it.
pub(super) fn lost_unsynced(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    // Half of the time, all nodes.
    let who = if random.bool() { Who::All } else { somebody(random) };
    power_cut(env, random, hold, who)
}

/// The same for all nodes.
pub(super) fn lost_unsynced_all(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    power_cut(env, random, hold, Who::All)
}

fn power_cut(env: &Env, random: &mut fastrand::Rng, hold: Duration, who: Who) -> Result<Value> {
    let disks = disks(env)?;
    let claim = victims(env, random, who)?;
    let controls = controls(env, &claim.nodes)?;
    slow(&controls, BUSY_MS);
    env.sleep(hold / 2);
    let killed = env.cluster.kill_together(&claim.nodes);
    slow(&controls, (0, 0));
    // Of a disk that lies nothing is left. In what a torn cut leaves of seconds of writes, each node sees by itself that
    // its log has a hole, and refuses to serve it: no write that is lost would ever be missed.
    let is_lying = controls.values().any(|control| control.lying.load(Ordering::Relaxed) != 0);
    let extent = if is_lying || random.bool() { Extent::Whole } else { Extent::Torn };
    let mut lost: BTreeMap<u64, Lost> = BTreeMap::new();
    let mut taken = Ok(());
    for node in &claim.nodes {
        match disks.cut_power(*node, &env.cluster.data_of(*node), random, extent) {
            Ok(what) => drop(lost.insert(*node, what)),
            Err(error) => taken = Err(error).with_context(|| format!("node {node}")),
        }
    }
    for node in &claim.nodes {
        env.cluster.start_node(*node)?;
    }
    killed.and(taken)?;
    let is_back = env.cluster.wait_until(READY_PATIENCE, |cluster| {
        let ready = |node: &u64| cluster.is_ready(*node);
        env.is_stopped()
            || if who == Who::All { claim.nodes.iter().any(ready) } else { claim.nodes.iter().all(ready) }
    });
    if lost.values().all(Lost::is_nothing) {
        bail!("nodes {:?} had synced everything", claim.nodes);
    }
    let unnoted = total(&controls, |control| &control.unnoted);
    let extent = format!("{extent:?}").to_lowercase();
    Ok(json!({"killed": claim.nodes, "extent": extent, "lost": lost, "ready": is_back, "unnoted": unnoted}))
}
