//! One run: a cluster, clients that record what they do, faults, the end of all faults, and a look at what is left
//! on every node. Judging is another step ([`crate::verdict`]).

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
    contents, digests,
    history::{Kind, Recorder},
    nemesis::{self, Env, Nemesis},
    workload::{self, Workload},
};

/// How long clients wait for a reply: longer than the server, which gives up after 1 s.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// One operation in so many begins with a new connection, to any node.
const MOVE_ODDS: u32 = 40;
/// How long a healthy cluster may take to form, and a healed one to be whole again.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long clients go on after the faults have ended.
const AFTERMATH: Duration = Duration::from_secs(2);
/// How often the nodes are asked for their digests, until all stand at one index.
const DIGESTS_MAX: usize = 20;
/// A key of no workload, which is gone before the contents are compared.
const TIME_KEY: &str = "does-time-go-on";
/// Processes from here on are those of the last look.
pub(crate) const LAST_PROCESS: i64 = 1_000_000;

/// What a run is; kept beside its history.
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
    /// So many of them only read; then all clients are spread over the nodes, and never leave them.
    #[serde(default)]
    pub(crate) readers: usize,
    /// The round trip between any two nodes, in milliseconds.
    #[serde(default)]
    pub(crate) distance_ms: u64,
    /// What is wrong with the server on purpose.
    pub(crate) broken: Option<String>,
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
    interval: Duration,
}

/// Creates the directory, with the plan in it.
fn begin(plan: &Plan, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    if std::fs::read_dir(dir).context("cannot list the directory")?.next().is_some() {
        bail!("{} is not empty", dir.display());
    }
    std::fs::write(plan_file(dir), serde_json::to_string_pretty(plan)?).context("cannot write the plan")
}

/// Runs a plan; its directory must be empty or missing. `is_asked_to_stop` ends it early, and in order.
pub(crate) fn run(
    plan: &Plan,
    broken: Option<Break>,
    binary: &Path,
    dir: &Path,
    is_asked_to_stop: fn() -> bool,
) -> Result<()> {
    let workload =
        workload::named(&plan.workload).with_context(|| format!("no workload {}", plan.workload))?;
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
        interval: Duration::from_secs_f64(plan.clients as f64 / plan.rate),
    });
    load.prepare()?;
    if is_lying {
        cluster.disks.as_ref().map_err(|why| anyhow!("disks cannot lie: {why}"))?.lie();
    }
    let env = Arc::new(Env::new(cluster.clone(), recorder.clone()));
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
    watch(&env, plan, is_asked_to_stop);
    env.stop.store(true, Ordering::Relaxed);
    let mut panicked = nemeses.into_iter().filter_map(|nemesis| nemesis.join().err()).count();
    panicked += usize::from(looking.join().is_err());
    let is_whole = heal(&env);
    std::thread::sleep(if is_whole { AFTERMATH } else { Duration::ZERO });
    load.stop.store(true, Ordering::Relaxed);
    panicked += clients.into_iter().filter_map(|client| client.join().err()).count();
    if is_whole {
        load.look_at_the_end(&env);
    }
    cluster.end();
    recorder.finish()?;
    anyhow::ensure!(panicked == 0, "{panicked} threads of the harness panicked");
    anyhow::ensure!(!is_asked_to_stop(), "stopped early; the history up to there is in {}", dir.display());
    Ok(())
}

/// Has nodes tell their digests until the run ends.
fn look_at_digests(env: Arc<Env>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while !env.is_stopped() {
            digests::ask(&env.cluster.own_addresses(), &env.recorder);
            env.sleep(digests::EVERY);
        }
    })
}

/// Waits for the end of the run, shows how it goes, and notices nodes that end by themselves. Says how long this thread
/// was kept from running: where the machine is too busy for that, silence proves nothing.
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

/// Ends all faults; gives whether every member serves again.
fn heal(env: &Env) -> bool {
    let cluster = &env.cluster;
    let started = Instant::now();
    cluster.network.heal();
    if let Ok(disks) = &cluster.disks {
        disks.heal();
    }
    if let Ok(clocks) = &cluster.clocks
        && let Err(error) = clocks.heal()
    {
        env.record("finding", json!({"anomaly": "fault not mended", "detail": format!("{error:#}")}));
    }
    env.look_for_exits();
    let refused = env.refused();
    for node in cluster.ids().into_iter().filter(|node| !refused.contains(node)) {
        let mended = match cluster.state(node) {
            State::Running => Ok(()),
            State::Paused => cluster.resume(node),
            State::Down => cluster.start_node(node),
        };
        if let Err(error) = mended {
            env.record("finding", json!({"anomaly": "unexpected exit", "detail": format!("{error:#}")}));
        }
    }
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

/// Removes a member whose data is damaged, as documented; tried again by the caller.
fn remove(cluster: &Cluster, node: u64) {
    let Some(leader) = cluster.leader().filter(|_| cluster.ids().contains(&node)) else { return };
    if cluster.administer(leader, "DELETE", &format!("/v1/cluster/members/{node}"), None).is_ok() {
        cluster.forget(node);
    }
}

/// A removal whose outcome was not known may have been done: such a node is no member, and never ready.
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

    /// A connection on which a node has answered.
    fn connect(node: u64, address: SocketAddr) -> Option<Connection> {
        // PING shows that the proxy has reached the node; it is no operation, so its failure is none.
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
        let mut next = Instant::now() + self.interval.mul_f64(random.f64());
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(
                next.saturating_duration_since(Instant::now()).min(Duration::from_millis(100)),
            );
            if Instant::now() < next {
                continue;
            }
            next = next.max(Instant::now() - self.interval) + self.interval.mul_f64(0.5 + random.f64());
            let is_reader = number < self.readers;
            // Where some only read, everybody stays: somebody writes at every node.
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
            let Some(open) = &mut connection else { continue };
            let read = if is_reader { self.workload.read(&mut random) } else { None };
            let (f, value) = read.unwrap_or_else(|| self.workload.next(&mut random));
            if self.workload.carry_out(&self.recorder, process, open, f, &value) == Kind::Info {
                process += self.clients as i64;
            }
        }
    }

    /// Reads through every node what the workload wants to see in the end, and all that there is.
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
            // All are asked.
            let equal = indexes.filter(|index| first.is_some() && *index == first).count();
            if equal + 1 == self.cluster.client_addresses().len() {
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Where the log's clock stands still, no key expires, and no lock of a dead holder ends.
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

    /// Looks at one node, recorded; gives what was seen.
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
        // It changes nothing, so it is one operation however often it is tried.
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

    /// Tries again for a while.
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
