//! Process faults: killed, paused, restarted in order, made to write checkpoints.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{Claim, Env};
use crate::cluster::{Cluster, State};

/// How long a node may take to stop in order, and to be ready again.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
pub(super) const READY_PATIENCE: Duration = Duration::from_secs(40);

/// The victims of a fault.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    One,
    Leader,
    Minority,
    Majority,
    All,
}

pub(super) fn victims<'a>(env: &'a Env, random: &mut fastrand::Rng, who: Who) -> Result<Claim<'a>> {
    let leader = env.cluster.leader();
    let size = env.cluster.ids().len();
    env.claim(|mut free| {
        random.shuffle(&mut free);
        match who {
            Who::One => free.truncate(1),
            Who::Leader => free.retain(|node| Some(*node) == leader),
            Who::Minority => free.truncate((size - 1) / 2),
            Who::Majority => {
                // Including the leader, so that it is not always the rest that continues.
                free.sort_by_key(|node| Some(*node) != leader);
                free.truncate(size / 2 + 1);
            }
            Who::All => {}
        }
        free
    })
}

/// kill -9, and a restart.
pub(super) fn kill(env: &Env, random: &mut fastrand::Rng, hold: Duration, who: Who) -> Result<Value> {
    let claim = victims(env, random, who)?;
    let until = Instant::now() + hold;
    for node in &claim.nodes {
        env.cluster.kill(*node)?;
    }
    let new_leader = match who {
        Who::Leader => env.leader_other_than(claim.nodes[0], until),
        _ => None,
    };
    env.sleep(until.saturating_duration_since(Instant::now()));
    for node in &claim.nodes {
        env.cluster.start_node(*node)?;
    }
    if who == Who::All {
        // Otherwise the next fault would hit a cluster that does nothing yet.
        env.cluster.wait_until(READY_PATIENCE, |cluster| {
            env.is_stopped() || claim.nodes.iter().any(|node| cluster.is_ready(*node))
        });
    }
    Ok(json!({"killed": claim.nodes, "new_leader": new_leader}))
}

/// SIGSTOP, and SIGCONT.
pub(super) fn pause(env: &Env, random: &mut fastrand::Rng, hold: Duration, who: Who) -> Result<Value> {
    let claim = victims(env, random, who)?;
    let until = Instant::now() + hold;
    let paused = claim.nodes.iter().try_for_each(|node| env.cluster.pause(*node));
    let new_leader = match who {
        Who::Leader if paused.is_ok() => env.leader_other_than(claim.nodes[0], until),
        _ => None,
    };
    env.sleep(until.saturating_duration_since(Instant::now()));
    for node in claim.nodes.iter().filter(|node| env.cluster.state(**node) == State::Paused) {
        env.cluster.resume(*node)?;
    }
    paused?;
    Ok(json!({"paused": claim.nodes, "new_leader": new_leader}))
}

/// SIGTERM, a clean exit, and after a while a restart. If all nodes were stopped, they restart only from what
/// they wrote as they stopped.
pub(super) fn stop(env: &Env, random: &mut fastrand::Rng, hold: Duration, who: Who) -> Result<Value> {
    let claim = victims(env, random, who)?;
    if who == Who::All && claim.nodes.len() < env.cluster.ids().len() {
        bail!("other faults have some of the nodes");
    }
    let stopped = env.cluster.stop_together(&claim.nodes, STOP_PATIENCE);
    env.sleep(hold / 2);
    for node in claim.nodes.iter().filter(|node| env.cluster.state(**node) == State::Down) {
        env.cluster.start_node(*node)?;
    }
    if let Err(error) = stopped {
        let detail = format!("{error:#}");
        env.record("finding", json!({"anomaly": "no stop in good order", "detail": detail}));
        bail!("they did not all stop in good order");
    }
    let is_ready = |cluster: &Cluster| claim.nodes.iter().all(|node| cluster.is_ready(*node));
    env.cluster.wait_until(READY_PATIENCE, |cluster| env.is_stopped() || is_ready(cluster));
    Ok(json!({"stopped": claim.nodes}))
}

/// For each node in turn: SIGTERM, a clean exit, a restart, and a wait until it is ready.
pub(super) fn rolling_restart(env: &Env, random: &mut fastrand::Rng, _: Duration) -> Result<Value> {
    let mut order = env.cluster.running();
    random.shuffle(&mut order);
    let mut restarted = Vec::new();
    for node in order {
        let Ok(_claim) = env.claim(|free| free.into_iter().filter(|other| *other == node).collect()) else {
            continue;
        };
        if env.is_stopped() {
            break;
        }
        let stopped = env.cluster.stop(node, STOP_PATIENCE);
        if env.cluster.state(node) == State::Down {
            env.cluster.start_node(node)?;
        }
        stopped?;
        let is_ready = |cluster: &Cluster| env.is_stopped() || cluster.is_ready(node);
        if !env.cluster.wait_until(READY_PATIENCE, is_ready) {
            bail!("node {node} was not ready {READY_PATIENCE:?} after its restart");
        }
        restarted.push(node);
    }
    if restarted.is_empty() {
        bail!("no node was restarted");
    }
    Ok(json!({"restarted": restarted}))
}

/// Checkpoints one after the other, on random nodes.
pub(super) fn checkpoint(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let until = Instant::now() + hold;
    let mut first: BTreeMap<u64, u64> = BTreeMap::new();
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    let mut count = 0;
    while Instant::now() < until && !env.is_stopped() {
        let running = env.cluster.running();
        if let Some(node) = random.choice(running)
            && let Ok(answer) = env.cluster.administer(node, "POST", "/v1/checkpoint", None)
            && let Some(index) = answer["checkpoint_index"].as_u64()
        {
            count += 1;
            first.entry(node).or_insert(index);
            last.insert(node, index);
        }
        env.sleep(Duration::from_millis(random.u64(20..100)));
    }
    let risen = last.iter().filter(|(node, index)| first[node] < **index).count();
    if risen == 0 {
        bail!("{count} checkpoints, and none was newer than the one before");
    }
    Ok(json!({"checkpoints": count, "nodes_with_newer_ones": risen}))
}
