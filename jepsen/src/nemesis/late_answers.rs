//! Old answers of followers reach a leader that has been deposed in the meantime, one follower after the
//! other, before it learns anything else: the worst case for code that dates an answer later than the call
//! that it answers.
//!
//! The clients matter: what they ask of the old leader amid the fault hides the effect. Its reads share rounds,
//! and while one is under way that was begun before, no other begins; and a write that its followers have not
//! seen is in the way too. So clients should move (no `--readers`), and ask often: of runs of 20 to
//! 40 s without `own-confirmation`, all four found a stale read whose clients contended and moved, and none of 15
//! whose readers stayed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::Env;
use crate::cluster::network::{Network, Weather};

/// How long the leader is heard but hears nobody: less than its lease, in milliseconds.
const DEAF_MS: std::ops::Range<u64> = 5..80;
/// How long to wait for another leader.
const ELECTION_PATIENCE: Duration = Duration::from_secs(5);
/// How long clients may write to the new leader.
const WRITES_MS: std::ops::Range<u64> = 300..1_500;
/// The delay between the late answers of two followers, and then until everything else, in milliseconds.
const APART_MS: std::ops::Range<u64> = 2..40;
const REST_MS: std::ops::Range<u64> = 20..200;

fn change(network: &Network, from: u64, to: u64, change: impl Fn(&mut Weather)) {
    network.change(&[(from, to)], change);
}

pub(super) fn late_answers(env: &Env, random: &mut fastrand::Rng, _: Duration) -> Result<Value> {
    let network = &env.cluster.network;
    let leader = env.cluster.leader().context("there was no leader")?;
    let mut others: Vec<u64> = env.cluster.ids().into_iter().filter(|node| *node != leader).collect();
    random.shuffle(&mut others);
    let to_leader: Vec<(u64, u64)> = others.iter().map(|other| (*other, leader)).collect();
    let before = network.toll(&to_leader);
    for other in &others {
        change(network, *other, leader, |weather| {
            weather.calls_blocked += 1;
            weather.answers_blocked += 1;
        });
    }
    env.sleep(Duration::from_millis(random.u64(DEAF_MS)));
    others.iter().for_each(|other| change(network, leader, *other, |weather| weather.blocked += 1));
    let new_leader = env.leader_other_than(leader, Instant::now() + ELECTION_PATIENCE);
    env.sleep(Duration::from_millis(random.u64(WRITES_MS)));
    for other in &others {
        change(network, *other, leader, |weather| {
            weather.answers_blocked = weather.answers_blocked.saturating_sub(1);
        });
        env.sleep(Duration::from_millis(random.u64(APART_MS)));
    }
    env.sleep(Duration::from_millis(random.u64(REST_MS)));
    random.shuffle(&mut others);
    for other in &others {
        change(network, *other, leader, |weather| {
            weather.calls_blocked = weather.calls_blocked.saturating_sub(1);
        });
        change(network, leader, *other, |weather| weather.blocked = weather.blocked.saturating_sub(1));
        env.sleep(Duration::from_millis(random.u64(APART_MS)));
    }
    let held = network.toll(&to_leader).held - before.held;
    let Some(new_leader) = new_leader else { bail!("there was no other leader in time; {held} pieces held") };
    if held == 0 {
        bail!("nothing was sent to node {leader} meanwhile");
    }
    Ok(json!({"leader": leader, "new_leader": new_leader, "held": held}))
}
