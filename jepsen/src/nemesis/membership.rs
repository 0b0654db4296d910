//! Membership changes under load, and leadership transfers.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::Env;
use crate::watch::digests;

/// The limits of the number of members.
const NODES_MIN: usize = 3;
const NODES_MAX: usize = 7;
/// How long a new node may take to become a voter, and a removed one to disappear.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running node other than `other`.
fn member(env: &Env, random: &mut fastrand::Rng, other: Option<u64>) -> Result<u64> {
    let running = env.cluster.running().into_iter().filter(|node| Some(*node) != other);
    random.choice(running.collect::<Vec<_>>()).context("no node runs")
}

/// The role of node `id` according to the leader.
pub(super) fn role(env: &Env, id: u64) -> Option<String> {
    let status = env.cluster.status(env.cluster.leader()?)?;
    let members = status["members"].as_array()?;
    let member = members.iter().find(|member| member["id"] == id)?;
    member["role"].as_str().map(str::to_owned)
}

/// A new node joins, and becomes a voter.
pub(super) fn grow(env: &Env, random: &mut fastrand::Rng, _: Duration) -> Result<Value> {
    if env.cluster.ids().len() >= NODES_MAX {
        bail!("there are {NODES_MAX} nodes already");
    }
    let id = env.cluster.join(member(env, random, None)?)?;
    let votes = |_: &_| env.is_stopped() || role(env, id).as_deref() == Some("voter");
    env.cluster.wait_until(PATIENCE, votes);
    match role(env, id).as_deref() {
        Some("voter") => Ok(json!({"joined": id})),
        role => bail!("node {id} has joined, and did not become a voter in time: {role:?}"),
    }
}

/// A member is removed; its process ends and does not come back.
pub(super) fn shrink(env: &Env, random: &mut fastrand::Rng, _: Duration) -> Result<Value> {
    if env.cluster.ids().len() <= NODES_MIN {
        bail!("there are only {NODES_MIN} nodes");
    }
    let claim = env.claim(|mut free| {
        random.shuffle(&mut free);
        free.truncate(1);
        free
    })?;
    let id = claim.nodes[0];
    remove(env, random, id)?;
    Ok(json!({"removed": id}))
}

/// Removes a member as documented, and drops its process.
pub(super) fn remove(env: &Env, random: &mut fastrand::Rng, id: u64) -> Result<()> {
    let compare = || digests::ask(&env.cluster.own_addresses(), Some(id), &env.recorder);
    // As a member it keeps up with the others, so it can be compared at the same index.
    compare();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let through = member(env, random, Some(id))?;
        let removed = env.cluster.administer(through, "DELETE", &format!("/v1/cluster/members/{id}"), None);
        let is_gone = || env.cluster.leader().is_some() && role(env, id).is_none();
        if removed.is_ok() || is_gone() {
            if !env.cluster.wait_until(PATIENCE, |_| is_gone()) {
                bail!("node {id} was removed, and the leader still has it");
            }
            // Compare its final state before it disappears.
            compare();
            env.cluster.forget(id);
            return Ok(());
        }
        if Instant::now() > deadline || env.is_stopped() {
            removed?;
        }
        env.sleep(Duration::from_millis(200));
    }
}

/// A member is removed and a new one joins.
pub(super) fn replace(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let removed = shrink(env, random, hold)?;
    let joined = grow(env, random, hold)?;
    Ok(json!({"removed": removed["removed"], "joined": joined["joined"]}))
}

/// The leadership is transferred to another voter, repeatedly.
pub(super) fn transfer(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let until = Instant::now() + hold;
    let mut path = Vec::new();
    let mut refusal = None;
    while Instant::now() < until && !env.is_stopped() {
        let leader = env.cluster.leader();
        let to = member(env, random, leader)?;
        let through = member(env, random, None)?;
        match env.cluster.administer(through, "POST", "/v1/cluster/leader", Some(json!({"id": to}))) {
            Ok(_) if leader.is_some() => path.push(to),
            Ok(_) => {}
            Err(error) => refusal = Some(format!("{error:#}")),
        }
        env.sleep(Duration::from_millis(random.u64(50..400)));
    }
    if path.is_empty() {
        bail!("no leader handed over: {}", refusal.unwrap_or_default());
    }
    Ok(json!({"leaders": path, "refused": refusal}))
}
