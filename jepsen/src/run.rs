//! One run: a cluster, clients that record their operations, faults, the end of all faults, and final reads
//! on every node. Judging is a separate step ([`crate::verdict`]).

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    breaker::{Break, Breaker},
    client::{Connection, Failure, Outcome, Reply},
    cluster::{Cluster, State},
    history::{Kind, Recorder},
    nemesis::{self, Env, Nemesis},
    pace::{Contention, Pace},
    watch::{contents, digests, majority::Majority, readiness},
    workload::{self, Workload},
};

/// How long clients wait for a reply: longer than the server, which gives up after 1 s.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// One operation in this many begins with a new connection, to any node.
const MOVE_ODDS: u32 = 40;
/// How long a healthy cluster may take to form, and a healed one to recover completely.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long clients continue after the faults have ended.
const AFTERMATH: Duration = Duration::from_secs(2);
/// How often the nodes are asked for their digests, until all are at the same index.
const DIGESTS_MAX: usize = 20;
/// A key of no workload; it expires before the contents are compared.
const TIME_KEY: &str = "does-time-go-on";
/// Processes from this number on are those of the final reads.
pub(crate) const LAST_PROCESS: i64 = 1_000_000;

/// The parameters of a run; stored with its history.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) workload: String,
    pub(crate) nemeses: Vec<String>,
    pub(crate) time_s: u64,
    /// Operations a second, of all clients together.
    pub(crate) rate: f64,
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) clients: usize,
    /// How many clients only read; if any, all clients are spread over the nodes and stay there.
    #[serde(default)]
    pub(crate) readers: usize,
    /// Few keys, and clients without a pause; None for clients with a rate.
    #[serde(default)]
    pub(crate) contention: Option<Contention>,
    /// When the faults end, only a bare majority comes back at first.
    #[serde(default)]
    pub(crate) bare_majority: bool,
    /// The round trip between any two nodes, in milliseconds.
    #[serde(default)]
    pub(crate) distance_ms: u64,
    /// The promise that is broken on purpose.
    pub(crate) broken: Option<String>,
}

impl Plan {
    /// The load, in words.
    pub(crate) fn load(&self) -> String {
        match &self.contention {
            None => format!("{} ops/s", self.rate),
            Some(Contention { keys, share }) => {
                format!(
                    "contention ({keys} keys where they can be chosen, {} clients of which {} only read, \
                     at most {share} ops/s)",
                    self.clients, self.readers
                )
            }
        }
    }
}

/// The files of a run.
pub(crate) fn plan_file(dir: &Path) -> PathBuf {
    dir.join("plan.json")
}

pub(crate) fn history_file(dir: &Path) -> PathBuf {
    dir.join("history.jsonl")
}

/// What clients share.
struct Load {
    workload: Arc<dyn Workload>,
    cluster: Arc<Cluster>,
    recorder: Arc<Recorder>,
    breaker: Option<Breaker>,
    stop: AtomicBool,
    clients: usize,
    readers: usize,
    pace: Pace,
}

/// Creates the directory with the plan.
fn begin(plan: &Plan, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    if std::fs::read_dir(dir).context("cannot list the directory")?.next().is_some() {
        bail!("{} is not empty", dir.display());
    }
    std::fs::write(plan_file(dir), serde_json::to_string_pretty(plan)?).context("cannot write the plan")
}

/// Runs a plan; its directory must be empty or missing. `is_asked_to_stop` ends it early but in order.
pub(crate) fn run(
    plan: &Plan,
    broken: Option<Break>,
    binary: &Path,
    dir: &Path,
    is_asked_to_stop: fn() -> bool,
) -> Result<()> {
    let workload = match plan.contention {
        Some(contention) => workload::with_keys(&plan.workload, contention.keys),
        None => workload::named(&plan.workload),
    };
    let workload = workload.with_context(|| format!("no workload {}", plan.workload))?;
    let nemeses =
        plan.nemeses.iter().map(|name| nemesis::named(name).with_context(|| format!("no nemesis {name}")));
    let nemeses: Vec<Nemesis> = nemeses.collect::<Result<_>>()?;
    begin(plan, dir)?;
    let recorder = Arc::new(Recorder::create(&history_file(dir))?);
    let is_lying = broken == Some(Break::LyingDisks);
    let mut needs = nemesis::needs(&nemeses);
    needs.disks |= is_lying;
    needs.distance = Duration::from_millis(plan.distance_ms);
    let cluster = Arc::new(Cluster::start(binary, dir, plan.nodes, needs)?);
    let is_ready = |cluster: &Cluster| cluster.ids().iter().all(|node| cluster.is_ready(*node));
    if !cluster.wait_until(PATIENCE, |cluster| is_asked_to_stop() || is_ready(cluster)) {
        bail!("the cluster did not form within {PATIENCE:?}; see the nodes' logs in {}", dir.display());
    }
    let load = Arc::new(Load {
        workload,
        cluster: cluster.clone(),
        recorder: recorder.clone(),
        breaker: broken.filter(|_| !is_lying).map(Breaker::new),
        stop: AtomicBool::new(false),
        clients: plan.clients,
        readers: plan.readers.min(plan.clients),
        pace: Pace::new(plan.clients, plan.rate, plan.contention),
    });
    load.prepare()?;
    if is_lying {
        cluster.disks.as_ref().map_err(|why| anyhow!("disks cannot lie: {why}"))?.lie();
    }
    let env = Arc::new(Env::new(cluster.clone(), recorder.clone()));
    let panicked = go_on(plan, &load, &env, nemeses, is_asked_to_stop);
    cluster.end();
    recorder.finish()?;
    anyhow::ensure!(panicked == 0, "{panicked} threads of the harness panicked");
    anyhow::ensure!(!is_asked_to_stop(), "stopped early; the history up to there is in {}", dir.display());
    Ok(())
}

/// Load and faults, the end of the faults, and the last reads. Returns how many threads panicked.
fn go_on(
    plan: &Plan,
    load: &Arc<Load>,
    env: &Arc<Env>,
    nemeses: Vec<Nemesis>,
    is_asked_to_stop: fn() -> bool,
) -> usize {
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let clients: Vec<_> = (0..plan.clients)
        .map(|number| {
            let (load, random) = (load.clone(), random.fork());
            std::thread::spawn(move || load.client(number, random))
        })
        .collect();
    let nemeses: Vec<_> = nemeses
        .into_iter()
        .map(|nemesis| {
            let (env, random) = (env.clone(), random.fork());
            std::thread::spawn(move || nemesis.run(&env, random))
        })
        .collect();
    let looking = look_at_digests(env.clone());
    let round_trip = Duration::from_millis(plan.distance_ms);
    let asking = look_at_readiness(env.clone(), load.clone(), round_trip);
    watch(env, plan, is_asked_to_stop);
    let is_wanted = plan.bare_majority && !is_asked_to_stop();
    let majority = is_wanted.then(|| Majority::begin(env, &mut random, round_trip));
    env.stop.store(true, Ordering::Relaxed);
    let mut panicked = nemeses.into_iter().filter_map(|nemesis| nemesis.join().err()).count();
    panicked += usize::from(looking.join().is_err());
    if let Some(majority) = majority {
        heal_all_but_links(env);
        majority.stand_alone(env, |node| mend(env, node), &|node| load.own_address(node));
    }
    let is_whole = heal(env);
    std::thread::sleep(if is_whole { AFTERMATH } else { Duration::ZERO });
    load.stop.store(true, Ordering::Relaxed);
    panicked += usize::from(asking.join().is_err());
    panicked += clients.into_iter().filter_map(|client| client.join().err()).count();
    if is_whole {
        load.look_at_the_end(env);
    }
    panicked
}

/// Compares what nodes say of their readiness with what they do, until the load ends.
fn look_at_readiness(env: Arc<Env>, load: Arc<Load>, round_trip: Duration) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let is_over = || load.stop.load(Ordering::Relaxed);
        readiness::watch(&env, round_trip, &|node| load.own_address(node), &is_over);
    })
}

/// Collects the nodes' digests until the run ends.
fn look_at_digests(env: Arc<Env>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while !env.is_stopped() {
            digests::ask(&env.cluster.own_addresses(), None, &env.recorder);
            env.sleep(digests::EVERY);
        }
    })
}

/// Waits for the end of the run, prints its progress, and detects nodes that end by themselves. Records for
/// how long this thread was not scheduled: on a machine that is too busy, silence proves nothing.
fn watch(env: &Env, plan: &Plan, is_asked_to_stop: fn() -> bool) {
    let started = Instant::now();
    let (mut told, mut late) = (0, Duration::ZERO);
    let step = Duration::from_millis(100);
    while started.elapsed() < Duration::from_secs(plan.time_s) && !is_asked_to_stop() {
        let slept = Instant::now();
        std::thread::sleep(step);
        late = late.max(slept.elapsed().saturating_sub(step));
        env.look_for_exits();
        if started.elapsed().as_secs() >= told + 10 {
            told = started.elapsed().as_secs();
            let count = |kind| env.recorder.count(kind);
            eprintln!(
                "{told:>5} s: {} ok, {} failed, {} unknown",
                count(Kind::Ok),
                count(Kind::Fail),
                count(Kind::Info)
            );
        }
    }
    env.record("kept waiting", json!({"ms": late.as_millis() as u64}));
}

/// Ends the faults of disks and clocks. Those of links and processes have ended with their nemeses, unless
/// one of these panicked.
fn heal_all_but_links(env: &Env) {
    let cluster = &env.cluster;
    if let Ok(disks) = &cluster.disks {
        disks.heal();
    }
    if let Ok(clocks) = &cluster.clocks
        && let Err(error) = clocks.heal()
    {
        env.record("finding", json!({"anomaly": "fault not mended", "detail": format!("{error:#}")}));
    }
    env.look_for_exits();
}

/// Has a node run.
fn mend(env: &Env, node: u64) {
    let mended = match env.cluster.state(node) {
        State::Running => Ok(()),
        State::Paused => env.cluster.resume(node),
        State::Down => env.cluster.start_node(node),
    };
    if let Err(error) = mended {
        env.record("finding", json!({"anomaly": "unexpected exit", "detail": format!("{error:#}")}));
    }
}

/// Ends all faults; returns whether every member serves again.
fn heal(env: &Env) -> bool {
    let cluster = &env.cluster;
    let started = Instant::now();
    cluster.network.heal();
    heal_all_but_links(env);
    let refused = env.refused();
    cluster.ids().into_iter().filter(|node| !refused.contains(node)).for_each(|node| mend(env, node));
    let is_whole = cluster.wait_until(PATIENCE, |cluster| {
        env.look_for_refusals();
        env.refused().iter().for_each(|node| remove(cluster, *node));
        forget_strangers(cluster);
        cluster.ids().iter().all(|node| cluster.is_ready(*node))
    });
    env.look_for_exits();
    if !is_whole {
        let late: Vec<u64> = cluster.ids().into_iter().filter(|node| !cluster.is_ready(*node)).collect();
        let detail = format!("nodes {late:?} are not ready {PATIENCE:?} after the last fault");
        env.record("finding", json!({"anomaly": "permanent unavailability", "detail": detail}));
    }
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    env.record("healed", json!({"whole": is_whole, "ms": ms}));
    is_whole
}

/// Removes a member whose data is damaged, as documented; the caller retries.
fn remove(cluster: &Cluster, node: u64) {
    let Some(leader) = cluster.leader().filter(|_| cluster.ids().contains(&node)) else { return };
    if cluster.administer(leader, "DELETE", &format!("/v1/cluster/members/{node}"), None).is_ok() {
        cluster.forget(node);
    }
}

/// A removal with an unknown outcome may have been done: such a node is not a member, and never becomes
/// ready.
fn forget_strangers(cluster: &Cluster) {
    let Some(status) = cluster.leader().and_then(|leader| cluster.status(leader)) else { return };
    let members: Vec<u64> = status["members"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|member| member["id"].as_u64())
        .collect();
    for node in cluster.ids().into_iter().filter(|node| !members.contains(node)) {
        let is_new = cluster.status(node).is_some_and(|status| status["cluster_id"].is_null());
        if !is_new && !members.is_empty() {
            cluster.forget(node);
        }
    }
}

impl Load {
    fn addresses(&self) -> Vec<(u64, SocketAddr)> {
        let addresses = self.cluster.client_addresses().into_iter();
        let broken = |address| match &self.breaker {
            Some(breaker) => breaker.before(address).ok(),
            None => Some(address),
        };
        addresses.filter_map(|(node, address)| Some((node, broken(address)?))).collect()
    }

    /// A running node's own address, without the proxy that faults use, but with what is broken on purpose.
    fn own_address(&self, node: u64) -> Option<SocketAddr> {
        let (_, address) = self.cluster.own_addresses().into_iter().find(|(id, _)| *id == node)?;
        match &self.breaker {
            Some(breaker) => breaker.before(address).ok(),
            None => Some(address),
        }
    }

    /// A connection on which a node has answered.
    fn connect(node: u64, address: SocketAddr) -> Option<Connection> {
        // PING shows that the proxy has reached the node; it is not an operation, so its failure is not
        // recorded.
        let mut probe = Connection::open(node, address, CONNECT_TIMEOUT).ok()?;
        probe.call(&["PING"]).ok()?;
        probe.timeout = REPLY_TIMEOUT;
        Some(probe)
    }

    fn prepare(&self) -> Result<()> {
        let (node, address) = self.cluster.client_addresses()[0];
        let mut connection = Load::connect(node, address).context("the first node does not answer")?;
        match self.workload.prepare(&mut connection) {
            Ok(()) => Ok(()),
            Err(failure) => bail!("the workload could not be prepared: {failure:?}"),
        }
    }

    fn client(&self, number: usize, mut random: fastrand::Rng) {
        let mut process = number as i64;
        let mut connection: Option<Connection> = None;
        let is_reader = number < self.readers;
        let mut next = self.pace.first(&mut random);
        while !self.stop.load(Ordering::Relaxed) {
            if !self.pace.wait(&mut next, &mut random) {
                continue;
            }
            // With readers, all clients stay at their nodes, so that every node has a writer.
            let is_pinned = self.readers > 0;
            let moves = random.u32(..MOVE_ODDS) == 0 && !is_pinned;
            if connection.as_ref().is_none_or(|open| open.is_broken) || moves {
                let addresses = self.addresses();
                let address = match is_pinned {
                    true => addresses.get(number % addresses.len().max(1)).copied(),
                    false => random.choice(addresses),
                };
                connection = address.and_then(|(node, address)| Load::connect(node, address));
            }
            let Some(open) = &mut connection else {
                self.pace.has_failed();
                continue;
            };
            let read = if is_reader { self.workload.read(&mut random) } else { None };
            let (f, value) = read.unwrap_or_else(|| self.workload.next(&mut random));
            let kind = self.workload.carry_out(&self.recorder, process, open, f, &value);
            if kind == Kind::Info {
                process += self.clients as i64;
            }
            if kind != Kind::Ok {
                self.pace.has_failed();
            }
        }
    }

    /// Makes the workload's final reads through every node, and reads all content.
    fn look_at_the_end(&self, env: &Env) {
        std::thread::sleep(self.workload.settles_within());
        let mut process = LAST_PROCESS;
        for (node, address) in self.cluster.client_addresses() {
            for (f, value) in self.workload.last() {
                let is_done = self.insist(|| {
                    let Some(mut connection) = Load::connect(node, address) else { return false };
                    process += 1;
                    self.workload.carry_out(&self.recorder, process, &mut connection, f, &value) == Kind::Ok
                });
                if !is_done {
                    let detail = format!("{f} {value} has no answer on node {node} after the last fault");
                    env.record("finding", json!({"anomaly": "permanent unavailability", "detail": detail}));
                    return;
                }
            }
        }
        self.look_whether_time_goes_on(env);
        for node in self.cluster.client_addresses() {
            for is_local in [false, true] {
                process += 1;
                self.look(process, node, "contents", json!({"local": is_local}), |connection| {
                    let content = contents::read(connection, is_local)?;
                    Ok(json!({"local": is_local, "content": content}))
                });
            }
        }
        for _ in 0..DIGESTS_MAX {
            let mut indexes = self.cluster.client_addresses().into_iter().map(|node| {
                process += 1;
                let digest = self.look(process, node, "digest", Value::Null, contents::digest);
                digest.map(|digest| digest["index"].clone())
            });
            let first = indexes.next().flatten();
            // The iterator must be consumed, so that all are asked.
            let equal = indexes.filter(|index| first.is_some() && *index == first).count();
            if equal + 1 == self.cluster.client_addresses().len() {
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// If the log clock does not advance, no key expires, and no lock of a dead holder ends.
    fn look_whether_time_goes_on(&self, env: &Env) {
        let Some((node, address)) = self.cluster.client_addresses().first().copied() else { return };
        let is_set = self.insist(|| {
            let set = ["SET", TIME_KEY, "1", "PX", "200"];
            Load::connect(node, address).is_some_and(|mut open| open.call(&set).is_ok())
        });
        let is_gone = is_set
            && self.insist(|| {
                let get = |mut open: Connection| open.call(&["GET", TIME_KEY]) == Ok(Reply::Nil);
                Load::connect(node, address).is_some_and(get)
            });
        if is_set && !is_gone {
            let detail = format!("a key with 200 ms to live is there after {:?}", PATIENCE / 3);
            env.record("finding", json!({"anomaly": "the log's clock stands still", "detail": detail}));
        }
    }

    /// Makes a recorded read on one node; returns its result.
    fn look(
        &self,
        process: i64,
        (node, address): (u64, SocketAddr),
        f: &str,
        input: Value,
        look: impl Fn(&mut Connection) -> Outcome<Value>,
    ) -> Option<Value> {
        self.recorder.record(process, Kind::Invoke, f, input.clone(), Some(node), None);
        let attempt = || {
            let connection = Load::connect(node, address);
            connection.ok_or_else(|| Failure::Info("no connection".into())).and_then(|mut it| look(&mut it))
        };
        let mut seen = attempt();
        // It changes nothing, so it is recorded as one operation however often it is tried.
        self.insist(|| {
            if seen.is_err() {
                seen = attempt();
            }
            seen.is_ok()
        });
        let (kind, value, error) = match &seen {
            Ok(value) => (Kind::Ok, value.clone(), None),
            Err(failure) => (Kind::Info, input, Some(format!("{failure:?}"))),
        };
        self.recorder.record(process, kind, f, value, Some(node), error);
        seen.ok()
    }

    /// Retries for a while.
    fn insist(&self, mut attempt: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE / 3;
        while !attempt() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        true
    }
}
