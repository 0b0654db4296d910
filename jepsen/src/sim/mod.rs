//! A deterministic simulation: whole nodes in one process, with network, disks, clocks and faults that a seed decides.
//! The same seed gives the same history. After every step invariants are checked that no client can see
//! (`invariants.rs`), after every run the clients' history, by the checkers of real runs.
//!
//! Here the harness is no black box: it links the server, whose seams are in `kvorum_raft::simulation`.

mod clients;
mod entropy;
mod faults;
mod invariants;
mod log;
mod network;
mod node;
mod one;
mod panics;
mod seeds;
mod turns;
mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use self::{clients::Load, faults::Faults, network::Network, world::World};
pub(crate) use self::{
    one::{One, run_one},
    seeds::{Seeds, run_seeds},
};
use crate::{
    check::{Finding, contents},
    history::{Event, Operation, Recorder, operations},
    workload,
};

/// How long the cluster may take to form, and to be whole again after the last fault, in milliseconds.
const PATIENCE_MS: u64 = 60_000;
/// How long clients go on after that.
const AFTERMATH_MS: u64 = 1_000;
/// How long checkers may take.
const CHECK_TIME: Duration = Duration::from_secs(60);
/// How often nodes that are no members, or not yet, are looked for.
const MEMBERSHIP_MS: u64 = 250;

/// The workloads of simulations.
const WORKLOADS: &[&str] = &[
    "register",
    "append",
    "set",
    "counter",
    "ids",
    "bank",
    "pop",
    "expiry",
    "lock",
    "once",
    "read-levels",
    "mutex",
    "election",
    "feed",
];

/// Those that compare the server's clock with their own.
const COMPARING_CLOCKS: &[&str] = &["expiry", "once", "mutex", "election"];

/// What came of it.
#[derive(Debug)]
struct Outcome {
    workload: String,
    events: Vec<Event>,
    findings: Vec<Finding>,
    faults: BTreeMap<String, usize>,
    steps: u64,
    /// The same for the same seed.
    trace: u64,
}

/// Runs one simulation, on this thread.
fn simulate(seed: u64, options: &seeds::World) -> Result<Outcome> {
    panics::watch();
    let mut chance = fastrand::Rng::with_seed(seed);
    // What nodes draw: their ids, and chances of commands.
    fastrand::seed(chance.u64(..));
    let name = match &options.workload {
        Some(name) => name.clone(),
        None => WORKLOADS[chance.usize(..WORKLOADS.len())].to_owned(),
    };
    let workload = workload::named(&name).with_context(|| format!("no workload {name}"))?;
    let dir = tempfile::tempdir().context("cannot create a directory for the nodes' identities")?;
    let now_us = Arc::new(AtomicU64::new(0));
    let network = Network::new(chance.fork());
    let members = if chance.bool() { 3 } else { 5 };
    let clock = now_us.clone();
    let load = Arc::new(Load {
        workload,
        recorder: Recorder::in_memory(move || clock.load(Ordering::Relaxed) * 1000),
        hub: network.hub.clone(),
        nodes: Mutex::new((1..=members).collect()),
        stop: AtomicBool::new(false),
        clients: chance.usize(3..=6),
        unseen: Mutex::default(),
    });
    let mut world = World::new(dir.path().to_owned(), load.clone(), now_us, network, members, chance.fork());
    let steady_clocks = COMPARING_CLOCKS.contains(&name.as_str());
    let mut faults = Faults::new(options.faults.clone(), chance.fork(), steady_clocks);
    let whole = play(&mut world, &mut faults, options, &mut chance)?;
    if !whole && world.invariants.findings.is_empty() {
        let detail = format!("{PATIENCE_MS} ms after the last fault: {}", world.not_ready());
        world.found("permanent unavailability", detail);
    }
    let unseen = std::mem::take(&mut *load.unseen.lock().unwrap_or_else(PoisonError::into_inner));
    unseen.into_iter().for_each(|text| world.found("permanent unavailability", text));
    let mut findings = std::mem::take(&mut world.invariants.findings);
    let (steps, trace) = (world.now, world.trace());
    drop(world);
    let events = load.recorder.finish()?;
    let (looks, work): (Vec<Operation>, Vec<Operation>) =
        operations(&events).into_iter().partition(|operation| contents::is_look(&operation.f));
    let mut judgement = load.workload.check(&work, Instant::now() + CHECK_TIME);
    judgement.findings.extend(contents::check(&looks).findings);
    judgement
        .undecided
        .iter()
        .for_each(|why| judgement.findings.push(Finding::new("undecided", why.clone(), &[])));
    judgement.shorten();
    findings.extend(judgement.findings);
    Ok(Outcome { workload: name, events, findings, faults: faults.counts, steps, trace })
}

/// Lets a world happen: it forms, is loaded and broken, is healed, and looked at. False if it did not heal.
fn play(
    world: &mut World,
    faults: &mut Faults,
    options: &seeds::World,
    chance: &mut fastrand::Rng,
) -> Result<bool> {
    for id in world.nodes.keys().copied().collect::<Vec<_>>() {
        if !faults.steady_clocks {
            world.nodes[&id].move_wall_clock(chance.i64(-5_000_000..5_000_000));
        }
        if options.disks_lie {
            world.nodes[&id].storage.lie();
        }
        world.start(id)?;
    }
    if !step_until(world, PATIENCE_MS, World::is_whole)? {
        return Ok(false);
    }
    let load = world.load.clone();
    world.actor(move |turns| load.prepare(&turns));
    if !step_until(world, PATIENCE_MS, |world| world.actors.iter().all(turns::Actor::has_ended))? {
        return Ok(false);
    }
    for number in 0..world.load.clients {
        let (load, random) = (world.load.clone(), chance.fork());
        world.actor(move |turns| load.client(&turns, number, random));
    }
    let end = world.now + options.time * 1000;
    while world.now < end && world.invariants.findings.is_empty() {
        faults.step(world)?;
        if world.now.is_multiple_of(MEMBERSHIP_MS) {
            world.settle_membership();
        }
        world.step()?;
    }
    faults.heal(world)?;
    let is_whole = step_until(world, PATIENCE_MS, World::is_whole)?;
    step_until(world, AFTERMATH_MS, |_| false)?;
    world.load.stop.store(true, Ordering::Relaxed);
    step_until(world, PATIENCE_MS, |world| world.actors.iter().all(turns::Actor::has_ended))?;
    if is_whole && world.invariants.findings.is_empty() {
        let load = world.load.clone();
        world.actor(move |turns| load.look_at_the_end(&turns));
        step_until(world, PATIENCE_MS, |world| world.actors.iter().all(turns::Actor::has_ended))?;
    }
    Ok(is_whole)
}

fn step_until(world: &mut World, limit_ms: u64, is_so: impl Fn(&World) -> bool) -> Result<bool> {
    let limit = world.now + limit_ms;
    while !is_so(world) {
        if world.now >= limit || !world.invariants.findings.is_empty() {
            return Ok(false);
        }
        if world.now.is_multiple_of(MEMBERSHIP_MS) {
            world.settle_membership();
        }
        world.step()?;
    }
    Ok(true)
}
