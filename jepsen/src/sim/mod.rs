//! A deterministic simulation: whole nodes in one process, with network, disks, clocks and faults determined
//! by a seed. The same seed gives the same history. After every step, invariants that no client can see are
//! checked (`invariants.rs`); after every run, the clients' history, by the checkers of real runs.
//!
//! Here the harness is not a black box: it links the server, whose interfaces for this are in
//! `kvorum_raft::simulation`.

mod clients;
mod entropy;
mod faults;
mod knobs;
mod log;
mod network;
mod node;
mod one;
mod panics;
mod script;
mod seeds;
mod turns;
mod watch;
mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use self::{
    clients::Load,
    faults::Faults,
    knobs::Knobs,
    network::Network,
    script::{Script, action::Action},
    turns::Actor,
    world::World,
};
pub(crate) use self::{
    one::{One, run_one},
    script::shrink::{Shrink, shrink},
    seeds::{Seeds, run_seeds},
};
use crate::{
    check::{Finding, contents},
    history::{Event, Operation, Recorder, operations},
    workload,
};

/// How long the cluster may take to form, and to recover completely after the last fault, in milliseconds.
const PATIENCE_MS: u64 = 60_000;
/// How long clients continue after that.
const AFTERMATH_MS: u64 = 1_000;
/// How long checkers may take.
const CHECK_TIME: Duration = Duration::from_secs(60);
/// How long membership changes may take to complete.
const SETTLING_MS: u64 = 10_000;
/// One cluster in this many is disturbed while it forms.
const DISTURBED_FORMATIONS: u8 = 8;
/// The interval of checks for nodes that are no longer members, or not yet.
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
    "queue",
    "expiry",
    "lock",
    "once",
    "read-levels",
    "mutex",
    "election",
    "feed",
    "snapshot",
];

/// The workloads that compare the server's clock with their own.
const COMPARING_CLOCKS: &[&str] = &["expiry", "once", "mutex", "election"];

/// The outcome of a simulation.
#[derive(Debug)]
struct Outcome {
    workload: String,
    events: Vec<Event>,
    findings: Vec<Finding>,
    /// What did not happen, so that this seed alone proves less than it should.
    missing: Vec<String>,
    faults: BTreeMap<String, usize>,
    steps: u64,
    /// Equal for equal seeds.
    trace: u64,
    /// All actions on the world, and when.
    done: Vec<(u64, Action)>,
    /// Some of them were performed before the cluster had formed.
    is_unformed: bool,
    knobs: Knobs,
}

/// The load on a world.
struct Shape {
    members: u64,
    clients: usize,
    readers: usize,
    pinned: usize,
    keys: Option<u64>,
    think_ms_max: u64,
}

impl Shape {
    /// Half of the seeds maximize contention: few keys, two readers at each of three nodes, and two or three
    /// writers, half of the time pinned to their nodes. With many writers, no entry stays the last one for
    /// long.
    fn drawn(chance: &mut fastrand::Rng, options: &seeds::World) -> Shape {
        let usual = Shape {
            members: if chance.bool() { 3 } else { 5 },
            clients: chance.usize(3..=6),
            readers: 0,
            pinned: 0,
            keys: None,
            think_ms_max: 40,
        };
        let (writers, keys) = (chance.usize(2..=3), chance.u64(1..=2));
        let clients = 6 + writers;
        let pinned = if chance.bool() { clients } else { 6 };
        let contended = Shape { members: 3, clients, readers: 6, pinned, keys: Some(keys), think_ms_max: 20 };
        let mut shape = if chance.bool() || options.contended { contended } else { usual };
        shape.members = options.members.unwrap_or(shape.members);
        shape.clients = options.clients.unwrap_or(shape.clients);
        shape.readers = shape.readers.min(shape.clients);
        shape
    }
}

/// Sets the knobs: at random, except for those that a script or a workload cannot cope with, and those given
/// as settings.
fn knobs(
    seed: u64,
    chance: &mut fastrand::Rng,
    is_scripted: bool,
    workload: &str,
    settings: &[String],
) -> Result<Knobs> {
    let mut knobs = Knobs::drawn(chance);
    if is_scripted {
        knobs.count_from_one();
    } else if workload != "snapshot" {
        // That one would wait for room for what it writes at its beginning.
        knobs.limit_memory(seed);
    }
    if workload == "feed" {
        knobs.keep_lists_whole();
    }
    knobs.set(settings)?;
    knobs.turn_here();
    Ok(knobs)
}

/// Runs one simulation, on this thread.
fn simulate(seed: u64, options: &seeds::World, script: Option<Script>) -> Result<Outcome> {
    panics::watch();
    let mut chance = fastrand::Rng::with_seed(seed);
    // Used by nodes for ids and for random choices of commands.
    fastrand::seed(chance.u64(..));
    let drawn = WORKLOADS[chance.usize(..WORKLOADS.len())];
    let name = options.workload.clone().unwrap_or_else(|| drawn.to_owned());
    let dir = tempfile::tempdir().context("cannot create a directory for the nodes' identities")?;
    let now_us = Arc::new(AtomicU64::new(0));
    let network = Network::new(chance.fork());
    let shape = Shape::drawn(&mut chance, options);
    let workload = workload::simulated(&name, shape.keys).with_context(|| format!("no workload {name}"))?;
    let knobs = knobs(seed, &mut chance, script.is_some(), &name, &options.knobs)?;
    let clock = now_us.clone();
    let load = Arc::new(Load {
        workload,
        recorder: Recorder::in_memory(move || clock.load(Ordering::Relaxed) * 1000),
        hub: network.hub.clone(),
        nodes: Mutex::new((knobs.first_id()..knobs.first_id() + shape.members).collect()),
        stop: AtomicBool::new(false),
        clients: shape.clients,
        readers: shape.readers,
        pinned: shape.pinned,
        think_ms_max: shape.think_ms_max,
        is_loaded: AtomicBool::new(false),
        probes: AtomicUsize::new(0),
        findings: Mutex::default(),
    });
    let mut world = World::new(
        dir.path().to_owned(),
        load.clone(),
        now_us,
        network,
        shape.members,
        knobs.clone(),
        chance.fork(),
    );
    world.invariants.expected.clone_from(&options.despite);
    let steady_clocks = COMPARING_CLOCKS.contains(&name.as_str());
    let mut trouble =
        Trouble { faults: Faults::new(options.faults.clone(), chance.fork(), steady_clocks), script };
    let whole = play(&mut world, &mut trouble, options, &mut chance)?;
    if !whole && world.invariants.findings.is_empty() {
        let detail = format!("{PATIENCE_MS} ms after the last fault: {}", world.not_ready());
        world.found("permanent unavailability", detail);
    }
    let mut findings = std::mem::take(&mut world.invariants.findings);
    findings.append(&mut load.findings.lock().unwrap_or_else(PoisonError::into_inner));
    let (steps, trace, done) = (world.now, world.trace(), std::mem::take(&mut world.done));
    let formed_at = world.formed_at.unwrap_or(steps);
    let is_unformed = done.iter().any(|(at, _)| *at < formed_at);
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
    let (missing, faults) = (judgement.missing, trouble.faults.counts);
    Ok(Outcome { workload: name, events, findings, missing, faults, steps, trace, done, is_unformed, knobs })
}

/// The source of faults: random, or a script.
struct Trouble {
    faults: Faults,
    script: Option<Script>,
}

impl Trouble {
    fn step(&mut self, world: &mut World) -> Result<()> {
        match &mut self.script {
            Some(script) => script.step(world),
            None => self.faults.step(world),
        }
    }

    fn is_done(&self) -> bool {
        self.script.as_ref().is_none_or(Script::is_done)
    }
}

/// Plays a world: it forms, is loaded and broken, is healed, and checked. False if it did not heal.
fn play(
    world: &mut World,
    trouble: &mut Trouble,
    options: &seeds::World,
    chance: &mut fastrand::Rng,
) -> Result<bool> {
    for id in world.nodes.keys().copied().collect::<Vec<_>>() {
        let offset_us = chance.i64(-5_000_000..5_000_000);
        if !trouble.faults.steady_clocks {
            world.nodes[&id].move_wall_clock(offset_us);
        }
        if options.disks_lie {
            world.nodes[&id].storage.lie();
        }
        world.start(id)?;
    }
    if trouble.script.is_none() && chance.u8(..DISTURBED_FORMATIONS) == 0 {
        trouble.faults.disturb_the_formation(world);
    }
    if !form(world, trouble, options)? {
        return Ok(false);
    }
    let load = world.load.clone();
    world.actor(move |turns| load.prepare(&turns));
    if !step_until(world, PATIENCE_MS, are_idle)? {
        return Ok(false);
    }
    for number in 0..world.load.clients {
        let (load, random) = (world.load.clone(), chance.fork());
        world.actor(move |turns| load.client(&turns, number, random));
    }
    world.load.is_loaded.store(world.load.clients > 0, Ordering::Relaxed);
    let end = world.now + options.time * 1000;
    while (world.now < end || !trouble.is_done()) && world.invariants.findings.is_empty() {
        trouble.step(world)?;
        go_on(world)?;
    }
    let is_loaded = world.load.is_loaded.load(Ordering::Relaxed);
    if trouble.script.is_none() && is_loaded && chance.bool() {
        world.heal_a_majority(chance, trouble.faults.steady_clocks)?;
    }
    world.heal()?;
    let is_whole = step_until(world, PATIENCE_MS, World::is_whole)?;
    step_until(world, AFTERMATH_MS, |_| false)?;
    world.load.stop.store(true, Ordering::Relaxed);
    world.load.is_loaded.store(false, Ordering::Relaxed);
    step_until(world, PATIENCE_MS, are_idle)?;
    let is_settled = step_until(world, SETTLING_MS, World::is_settled)?;
    if is_whole && !is_settled && world.invariants.findings.is_empty() {
        let detail = format!("{SETTLING_MS} ms after all serve again two memberships are in force still");
        world.found("joint membership left", detail);
    }
    if is_whole && world.invariants.findings.is_empty() {
        let load = world.load.clone();
        world.actor(move |turns| load.look_at_the_end(&turns));
        step_until(world, PATIENCE_MS, are_idle)?;
    }
    Ok(is_whole)
}

/// Lets the cluster form, amid what may go wrong meanwhile. False if it does not.
fn form(world: &mut World, trouble: &mut Trouble, options: &seeds::World) -> Result<bool> {
    let limit = world.now + PATIENCE_MS;
    while !world.is_whole() || !trouble.faults.are_over() {
        if world.now >= limit || !world.invariants.findings.is_empty() {
            return Ok(false);
        }
        match &mut trouble.script {
            Some(script) if options.unformed => script.step(world)?,
            Some(_) => {}
            None => trouble.faults.end_what_is_over(world)?,
        }
        go_on(world)?;
    }
    world.formed_at = Some(world.now);
    Ok(true)
}

fn are_idle(world: &World) -> bool {
    world.actors.iter().all(Actor::has_ended)
}

/// One step, and a look for members that are to come or to go.
fn go_on(world: &mut World) -> Result<()> {
    if world.now.is_multiple_of(MEMBERSHIP_MS) {
        world.settle_membership();
    }
    world.step()
}

fn step_until(world: &mut World, limit_ms: u64, is_so: impl Fn(&World) -> bool) -> Result<bool> {
    let limit = world.now + limit_ms;
    while !is_so(world) {
        if world.now >= limit || !world.invariants.findings.is_empty() {
            return Ok(false);
        }
        go_on(world)?;
    }
    Ok(true)
}
