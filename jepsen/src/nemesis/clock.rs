//! Wall-clock faults: clocks jump, go to and fro, or run at another rate, on some nodes or on all. Monotonic
//! clocks are not affected. The proof is what the nodes themselves answer to TIME.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::Env;
use crate::cluster::clocks::Clocks;

/// The ranges of jumps (100 ms to four hours) and strobes (30 ms to 10 s), as powers of ten of a millisecond.
const JUMP: (f64, f64) = (2.0, 7.16);
const STROBE: (f64, f64) = (1.5, 4.0);
/// How often a strobed clock is shifted.
const STROBE_PERIOD: Duration = Duration::from_millis(100);
/// The rates of a drifting clock, and how often it is adjusted meanwhile.
const RATE: (f64, f64) = (0.8, 1.25);
const DRIFT_STEP: Duration = Duration::from_millis(20);
/// A drift takes this many times as long as other faults.
const DRIFT_HOLDS: u32 = 3;
/// How far a node's answer may be off, in microseconds, besides the time that the answer takes.
const SLACK_US: i64 = 5_000;
/// How long a node may take to show the expected time.
const PATIENCE: Duration = Duration::from_secs(3);

fn clocks(env: &Env) -> Result<&Clocks> {
    match &env.cluster.clocks {
        Ok(clocks) => Ok(clocks),
        Err(why) => bail!("not done: {why}"),
    }
}

/// One or more running nodes.
fn some(env: &Env, random: &mut fastrand::Rng) -> Vec<u64> {
    let mut nodes = env.cluster.running();
    random.shuffle(&mut nodes);
    nodes.truncate(random.usize(1..=nodes.len().max(1)));
    nodes
}

/// An offset in microseconds, positive or negative, from powers of ten of a millisecond.
fn length_us(random: &mut fastrand::Rng, (least, most): (f64, f64)) -> i64 {
    let us = (10_f64.powf(least + random.f64() * (most - least)) * 1_000.0) as i64;
    if random.bool() { us } else { -us }
}

/// Whether a node's clock is where it should be, by its own answer; None if it does not answer, or was moved
/// meanwhile.
fn is_as_told(env: &Env, clocks: &Clocks, node: u64) -> Option<bool> {
    let told = clocks.offset_us(node);
    let (least, most) = env.cluster.offset_us(node)?;
    (clocks.offset_us(node) == told).then_some(least - SLACK_US <= told && told <= most + SLACK_US)
}

/// Waits until a node shows the expected time.
fn is_seen(env: &Env, clocks: &Clocks, node: u64) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && !env.is_stopped() {
        if is_as_told(env, clocks, node) == Some(true) {
            return true;
        }
        std::thread::sleep(STROBE_PERIOD / 4);
    }
    false
}

/// The clocks jump, each by its own amount, and later back.
pub(super) fn jump(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let clocks = clocks(env)?;
    let jumps: BTreeMap<u64, i64> =
        some(env, random).into_iter().map(|node| (node, length_us(random, JUMP))).collect();
    let until = Instant::now() + hold;
    let jumped = jumps.iter().try_for_each(|(node, us)| clocks.shift(*node, *us));
    let seen: Vec<u64> = jumps.keys().copied().filter(|node| is_seen(env, clocks, *node)).collect();
    env.sleep(until.saturating_duration_since(Instant::now()));
    jumps.iter().try_for_each(|(node, us)| clocks.shift(*node, -us))?;
    jumped?;
    if seen.is_empty() {
        bail!("no node said that its clock had jumped: {jumps:?} us");
    }
    Ok(json!({"jumps_us": jumps, "seen_on": seen}))
}

/// The clocks go to and fro, each by its own amount.
pub(super) fn strobe(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let clocks = clocks(env)?;
    let throws: Vec<(u64, i64)> =
        some(env, random).into_iter().map(|node| (node, length_us(random, STROBE))).collect();
    let until = Instant::now() + hold;
    let (mut count, mut seen, mut seen_back) = (0_u64, 0, 0);
    while (Instant::now() < until && !env.is_stopped()) || count % 2 == 1 {
        let is_back = count % 2 == 1;
        let next = Instant::now() + STROBE_PERIOD;
        throws.iter().try_for_each(|(node, us)| clocks.shift(*node, if is_back { -us } else { *us }))?;
        count += 1;
        if let Some((node, _)) = random.choice(&throws)
            && is_as_told(env, clocks, *node) == Some(true)
        {
            *(if is_back { &mut seen_back } else { &mut seen }) += 1;
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    if seen == 0 || seen_back == 0 {
        bail!("nodes were seen {seen} times with their clocks thrown, and {seen_back} times back");
    }
    Ok(json!({"throws_us": throws, "changes": count, "seen": seen, "seen_back": seen_back}))
}

/// The clocks run at their own rates, and are reset at the end.
pub(super) fn drift(env: &Env, random: &mut fastrand::Rng, hold: Duration) -> Result<Value> {
    let clocks = clocks(env)?;
    let rates: BTreeMap<u64, f64> =
        some(env, random).into_iter().map(|node| (node, RATE.0 + random.f64() * (RATE.1 - RATE.0))).collect();
    let mut gone: BTreeMap<u64, i64> = BTreeMap::new();
    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    let started = Instant::now();
    while started.elapsed() < hold * DRIFT_HOLDS && !env.is_stopped() {
        for (node, rate) in &rates {
            let wanted = (started.elapsed().as_micros() as f64 * (rate - 1.0)) as i64;
            let by_us = wanted - gone.get(node).copied().unwrap_or_default();
            clocks.shift(*node, by_us)?;
            gone.insert(*node, wanted);
        }
        // Only if it is so far off that nothing else explains it.
        let far = gone.iter().filter(|(_, us)| us.abs() > 4 * SLACK_US).map(|(node, _)| *node);
        if let Some(node) = random.choice(far.collect::<Vec<_>>())
            && is_as_told(env, clocks, node) == Some(true)
        {
            *seen.entry(node).or_default() += 1;
        }
        std::thread::sleep(DRIFT_STEP);
    }
    gone.iter().try_for_each(|(node, us)| clocks.shift(*node, -us))?;
    if seen.is_empty() {
        bail!("no node said that its clock was away: rates {rates:?}");
    }
    Ok(json!({"rates": rates, "away_us": gone, "times_seen": seen}))
}
