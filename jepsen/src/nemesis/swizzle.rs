//! Every direction of every connection of one node is blocked and released separately, in random order, as in
//! FoundationDB's tests: old messages arrive from one peer after the other, on connections that this node
//! made and on those made to it, and not in the order in which they were sent.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{Env, network::between};
use crate::cluster::network::Side;

/// How far apart the first and the last direction may be blocked, and released, in milliseconds.
const APART_MS: &[u64] = &[20, 300, 1_500, 3_000];

struct Step {
    at: Duration,
    link: (u64, u64),
    side: Side,
    is_block: bool,
}

/// When each direction is blocked, and when it is released, in order.
fn steps(victim: u64, others: &[u64], hold: Duration, random: &mut fastrand::Rng) -> Vec<Step> {
    let mut apart = || Duration::from_millis(random.choice(APART_MS).copied().unwrap_or(1));
    let (blocked, released) = (apart(), apart());
    let mut within = |most: Duration| most.mul_f64(random.f64());
    let mut steps = Vec::new();
    for link in between(&[victim], others) {
        for side in [Side::Calls, Side::Answers] {
            let (at, until) = (within(blocked), blocked + hold + within(released));
            steps.push(Step { at, link, side, is_block: true });
            steps.push(Step { at: until, link, side, is_block: false });
        }
    }
    steps.sort_by_key(|step| step.at);
    steps
}

pub(super) fn swizzle(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let network = &env.cluster.network;
    let mut nodes = env.cluster.ids();
    random.shuffle(&mut nodes);
    let leader = env.cluster.leader().filter(|_| random.bool());
    nodes.sort_by_key(|node| Some(*node) != leader);
    let Some((victim, others)) = nodes.split_first() else { bail!("there are no nodes") };
    let steps = steps(*victim, others, hold, random);
    let links = between(&[*victim], others);
    let (before, begin) = (network.toll(&links), Instant::now());
    for step in &steps {
        env.sleep((begin + step.at).saturating_duration_since(Instant::now()));
        network.change(&[step.link], |weather| {
            let blocks = weather.blocks(step.side);
            *blocks = if step.is_block { *blocks + 1 } else { blocks.saturating_sub(1) };
        });
    }
    let held = network.toll(&links).held - before.held;
    if held == 0 {
        bail!("nothing was sent from or to node {victim} meanwhile");
    }
    let apart = |is_block: bool| {
        let at = || steps.iter().filter(|step| step.is_block == is_block).map(|step| step.at);
        let apart = at().max().zip(at().min()).map(|(last, first)| last - first);
        apart.unwrap_or_default().as_millis() as u64
    };
    Ok(json!({
        "node": victim,
        "leader": leader == Some(*victim),
        "held": held,
        "blocked_ms": apart(true),
        "released_ms": apart(false),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::network::Weather;

    #[test]
    fn each_way_is_blocked_once_and_then_released_once() {
        let mut random = fastrand::Rng::with_seed(7);
        let hold = Duration::from_millis(500);
        let steps = steps(1, &[2, 3], hold, &mut random);
        assert_eq!(steps.len(), 2 * 4 * 2);
        let mut weather = std::collections::BTreeMap::<(u64, u64), Weather>::new();
        let mut seen = 0;
        for step in &steps {
            let weather = weather.entry(step.link).or_default();
            let blocks = weather.blocks(step.side);
            assert_eq!(*blocks, u32::from(!step.is_block));
            *blocks = u32::from(step.is_block);
            seen += *blocks;
        }
        assert_eq!(seen, 8);
        assert!(weather.values().all(|weather| weather.calls_blocked + weather.answers_blocked == 0));
        let last_block = steps.iter().rfind(|step| step.is_block).map(|step| step.at);
        assert!(last_block < steps.iter().find(|step| !step.is_block).map(|step| step.at));
    }
}
