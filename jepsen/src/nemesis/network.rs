//! Network faults, through the proxies: partitions, which either hold what is sent (it arrives late) or cut
//! and refuse connections; delays; lost connections. The proof is what the links have done.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::Env;
use crate::cluster::network::CLIENTS;

type Links = Vec<(u64, u64)>;

/// The minimum and maximum delay of a piece on a slow link.
const DELAY_MS: (u64, u64) = (10, 120);
/// The pause between two lost connections.
const LOSS_PAUSE_MS: std::ops::Range<u64> = 50..300;

/// Both directions between every node of `ours` and every node of `theirs`.
pub(super) fn between(ours: &[u64], theirs: &[u64]) -> Links {
    ours.iter().flat_map(|a| theirs.iter().flat_map(move |b| [(*a, *b), (*b, *a)])).collect()
}

fn shuffled(env: &Env, random: &mut fastrand::Rng) -> Vec<u64> {
    let mut nodes = env.cluster.ids();
    random.shuffle(&mut nodes);
    nodes
}

/// The links that a partition blocks, and the node that cannot lead during it, if there is one.
type Shape = fn(&Env, &mut fastrand::Rng) -> Result<(Links, Option<u64>)>;

pub(super) fn one(env: &Env, random: &mut fastrand::Rng) -> Result<(Links, Option<u64>)> {
    let nodes = shuffled(env, random);
    Ok((between(&nodes[..1], &nodes[1..]), None))
}

pub(super) fn leader(env: &Env, _: &mut fastrand::Rng) -> Result<(Links, Option<u64>)> {
    let leader = env.cluster.leader().context("there was no leader")?;
    let others: Vec<u64> = env.cluster.ids().into_iter().filter(|node| *node != leader).collect();
    Ok((between(&[leader], &others), Some(leader)))
}

pub(super) fn halves(env: &Env, random: &mut fastrand::Rng) -> Result<(Links, Option<u64>)> {
    let nodes = shuffled(env, random);
    let (ours, theirs) = nodes.split_at(nodes.len() / 2);
    Ok((between(ours, theirs), None))
}

/// Each node sees a majority, and no two nodes see the same one.
pub(super) fn ring(env: &Env, random: &mut fastrand::Rng) -> Result<(Links, Option<u64>)> {
    let nodes = shuffled(env, random);
    // A node sees itself and those closer than this, on both sides: a majority.
    let reach = (nodes.len() / 2).div_ceil(2) + 1;
    let mut links = Links::new();
    for (a, one) in nodes.iter().enumerate() {
        for (b, other) in nodes.iter().enumerate() {
            let distance = a.abs_diff(b).min(nodes.len() - a.abs_diff(b));
            if distance >= reach {
                links.push((*one, *other));
            }
        }
    }
    Ok((links, None))
}

/// Two halves, and one node that sees both.
pub(super) fn bridge(env: &Env, random: &mut fastrand::Rng) -> Result<(Links, Option<u64>)> {
    let nodes = shuffled(env, random);
    let (ours, theirs) = nodes[1..].split_at((nodes.len() - 1) / 2);
    Ok((between(ours, theirs), None))
}

/// One node, half of the time the leader, is heard but hears nobody, or the other way round.
pub(super) fn one_way(env: &Env, random: &mut fastrand::Rng) -> Result<(Links, Option<u64>)> {
    let leader = env.cluster.leader().filter(|_| random.bool());
    let mut nodes = shuffled(env, random);
    nodes.sort_by_key(|node| Some(*node) != leader);
    let is_deaf = random.bool();
    let links = nodes[1..].iter().map(|other| if is_deaf { (*other, nodes[0]) } else { (nodes[0], *other) });
    Ok((links.collect(), None))
}

/// Some nodes lose their clients but not their peers.
pub(super) fn clients(env: &Env, random: &mut fastrand::Rng) -> Result<(Links, Option<u64>)> {
    let nodes = shuffled(env, random);
    Ok((between(&[CLIENTS], &nodes[..nodes.len() / 2]), None))
}

pub(super) fn partition(
    env: &Env,
    random: &mut fastrand::Rng,
    hold: Duration,
    shape: Shape,
) -> Result<Value> {
    let (links, isolated) = shape(env, random)?;
    if links.is_empty() {
        bail!("there are too few nodes");
    }
    let network = &env.cluster.network;
    // A one-way partition must hold bytes: cutting a connection cuts both directions.
    let is_both_ways = links.iter().all(|(from, to)| links.contains(&(*to, *from)));
    let cuts = is_both_ways && random.bool();
    let before = network.toll(&links);
    let until = Instant::now() + hold;
    network.change(&links, |weather| {
        weather.blocked += 1;
        weather.refused += u32::from(cuts);
        weather.cuts += u64::from(cuts);
    });
    let new_leader = isolated.and_then(|leader| env.leader_other_than(leader, until));
    env.sleep(until.saturating_duration_since(Instant::now()));
    network.change(&links, |weather| {
        weather.blocked = weather.blocked.saturating_sub(1);
        weather.refused = weather.refused.saturating_sub(u32::from(cuts));
    });
    let after = network.toll(&links);
    let (held, closed) = (after.held - before.held, after.closed - before.closed);
    if held + closed == 0 {
        bail!("nothing was sent over {links:?} meanwhile");
    }
    Ok(json!({"links": links, "held": held, "closed": closed, "new_leader": new_leader}))
}

fn all_peers(env: &Env) -> Links {
    let nodes = env.cluster.ids();
    let links = nodes.iter().flat_map(|a| nodes.iter().map(move |b| (*a, *b)));
    links.filter(|(a, b)| a != b).collect()
}

pub(super) fn delay(env: &Env, _: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let links = all_peers(env);
    let network = &env.cluster.network;
    let before = network.toll(&links);
    network.change(&links, |weather| weather.delay_ms = DELAY_MS);
    env.sleep(hold);
    network.change(&links, |weather| weather.delay_ms = (0, 0));
    let delayed = network.toll(&links).delayed - before.delayed;
    if delayed == 0 {
        bail!("nothing was sent meanwhile");
    }
    Ok(json!({"delayed": delayed}))
}

/// Connections between nodes are closed, one after the other.
pub(super) fn loss(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let links = all_peers(env);
    let network = &env.cluster.network;
    let before = network.toll(&links);
    let until = Instant::now() + hold;
    while Instant::now() < until && !env.is_stopped() {
        if let Some(link) = random.choice(&links) {
            network.change(&[*link], |weather| weather.cuts += 1);
        }
        env.sleep(Duration::from_millis(random.u64(LOSS_PAUSE_MS)));
    }
    let closed = network.toll(&links).closed - before.closed;
    if closed == 0 {
        bail!("no connection was closed");
    }
    Ok(json!({"closed": closed}))
}
