//! Real `kvorum serve` processes behind proxies, controlled by signals and sockets alone. They are killed by
//! process id when the value that holds them is dropped, and when this process is killed (the parent-death
//! signal).

pub(crate) mod clocks;
pub(crate) mod disks;
pub(crate) mod namespace;
pub(crate) mod network;
pub(crate) mod rollback;
pub(crate) mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs::File,
    net::{SocketAddr, TcpListener},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};

use self::{
    clocks::Clocks,
    disks::Disks,
    network::{Network, Proxy},
};
use crate::client::{Connection, Reply};

/// How long an administrative request may take.
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
/// How long a process may take to die of SIGKILL: it cannot before a sync on a busy disk has returned.
const DEATH_PATIENCE: Duration = Duration::from_secs(60);
/// How long a node may take to answer TIME.
const TIME_TIMEOUT: Duration = Duration::from_millis(500);

/// Below the kernel's ephemeral ports, so that a node that is down does not lose its own.
const PORTS: std::ops::Range<u16> = 11_000..32_000;
/// How many ports a harness claims at a time.
const BLOCK: u16 = 200;

/// Small limits, so that checkpoints, purges and snapshots happen in every run.
const OPTIONS: &[&str] = &[
    "--checkpoint-log-bytes",
    "128kb",
    "--log-entries-kept",
    "50",
    "--log-segment-bytes",
    "4mb",
    "--request-timeout-ms",
    "1000",
    "--threads",
    "2",
];

/// What nodes must load for the faults of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs {
    pub(crate) clocks: bool,
    pub(crate) disks: bool,
    /// The round trip between any two nodes.
    pub(crate) distance: Duration,
}

/// The state of a node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    /// Stopped by SIGSTOP.
    Paused,
    Down,
}

struct Node {
    resp: SocketAddr,
    http: SocketAddr,
    peer: SocketAddr,
    /// The address used by its peers.
    peer_proxy: SocketAddr,
    /// The address used by clients.
    client_proxy: SocketAddr,
    /// Open while the node has a process.
    proxies: Vec<Proxy>,
    /// The options by which it joins or forms the cluster.
    membership: [String; 2],
    child: Option<Child>,
    state: State,
}

/// All nodes of a run. Ids count from 1 and are never reused.
pub(crate) struct Cluster {
    pub(crate) network: Network,
    /// What the nodes load, or why they do not.
    pub(crate) clocks: Result<Clocks, String>,
    pub(crate) disks: Result<Disks, String>,
    nodes: Mutex<BTreeMap<u64, Node>>,
    spawner: Spawner,
    binary: PathBuf,
    dir: PathBuf,
    next_id: Mutex<u64>,
    /// Nodes that nobody starts.
    kept_off: Mutex<BTreeSet<u64>>,
}

/// The thread that starts processes: they get the parent-death signal when it ends, so it must live to the
/// end.
struct Spawner(mpsc::Sender<(Command, mpsc::Sender<std::io::Result<Child>>)>);

impl Spawner {
    fn new() -> Spawner {
        let (sender, orders) = mpsc::channel::<(Command, mpsc::Sender<std::io::Result<Child>>)>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                // If the run is being torn down, nobody waits for the answer.
                let _ = answer.send(command.spawn());
            }
        });
        Spawner(sender)
    }

    fn spawn(&self, mut command: Command) -> Result<Child> {
        die_with_this_thread(&mut command);
        let (sender, answer) = mpsc::channel();
        self.0.send((command, sender)).map_err(|_| anyhow!("the spawning thread has ended"))?;
        answer.recv().context("the spawning thread has ended")?.context("cannot start a node")
    }
}

/// Has the process killed when the thread that starts it ends, for whatever reason.
pub(crate) fn die_with_this_thread(command: &mut Command) -> &mut Command {
    // SAFETY: prctl is async-signal-safe and touches nothing of this process's memory.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    }
}

/// The ports of this process: the listeners that claim blocks of them, and the next free port.
static CLAIMED: Mutex<(Vec<TcpListener>, std::ops::Range<u16>)> = Mutex::new((Vec::new(), 0..0));

/// A loopback address that is unused, and that no other harness on this machine gives to its nodes: a block
/// of ports belongs to the process that listens on its first port.
fn free_address() -> Result<SocketAddr> {
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    let (claims, free) = &mut *claimed;
    for _ in 0..1_000 {
        let Some(port) = free.next() else {
            let first = fastrand::u16(0..PORTS.len() as u16 / BLOCK) * BLOCK + PORTS.start;
            if let Ok(claim) = TcpListener::bind(("127.0.0.1", first)) {
                claims.push(claim);
                *free = first + 1..first + BLOCK;
            }
            continue;
        };
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().context("a bound listener has an address");
        }
    }
    bail!("there is no free port")
}

fn agent() -> ureq::Agent {
    agent_with(HTTP_TIMEOUT)
}

/// Makes requests that may take this long.
pub(crate) fn agent_with(timeout: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(timeout));
    config.build().into()
}

impl Cluster {
    /// Starts `size` nodes, which form a cluster by themselves and load what `needs` requires.
    pub(crate) fn start(binary: &Path, dir: &Path, size: u64, needs: Needs) -> Result<Cluster> {
        let dir = &dir.canonicalize().context("cannot find the run's directory")?;
        let given = |is_needed: bool| if is_needed { Ok(()) } else { Err("no fault needs it".to_owned()) };
        let text = |error: anyhow::Error| format!("{error:#}");
        let cluster = Cluster {
            network: Network::new(needs.distance / 2)?,
            clocks: given(needs.clocks).and_then(|()| Clocks::find(dir).map_err(text)),
            disks: given(needs.disks).and_then(|()| Disks::find(&dir.join("data")).map_err(text)),
            nodes: Mutex::default(),
            spawner: Spawner::new(),
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            next_id: Mutex::new(size + 1),
            kept_off: Mutex::default(),
        };
        for id in 1..=size {
            cluster.place(id, ["--peers".into(), String::new()])?;
        }
        let peers: Vec<String> =
            cluster.nodes().iter().map(|(id, node)| format!("{id}={}", node.peer_proxy)).collect();
        for node in cluster.nodes().values_mut() {
            node.membership[1] = peers.join(",");
        }
        for id in 1..=size {
            cluster.start_node(id)?;
        }
        Ok(cluster)
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<u64, Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Assigns addresses to a new node.
    fn place(&self, id: u64, membership: [String; 2]) -> Result<()> {
        let node = Node {
            resp: free_address()?,
            http: free_address()?,
            peer: free_address()?,
            peer_proxy: free_address()?,
            client_proxy: free_address()?,
            proxies: Vec::new(),
            membership,
            child: None,
            state: State::Down,
        };
        self.nodes().insert(id, node);
        Ok(())
    }

    /// From now on these nodes, and no others, are not started again, whoever wants to.
    pub(crate) fn keep_off(&self, ids: &[u64]) {
        *self.kept_off.lock().unwrap_or_else(PoisonError::into_inner) = ids.iter().copied().collect();
    }

    pub(crate) fn is_kept_off(&self, id: u64) -> bool {
        self.kept_off.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Starts a node's process, for the first time or again. Does nothing for a node that is kept off.
    pub(crate) fn start_node(&self, id: u64) -> Result<()> {
        if self.is_kept_off(id) {
            return Ok(());
        }
        let mut nodes = self.nodes();
        let node = nodes.get_mut(&id).with_context(|| format!("there is no node {id}"))?;
        if node.child.is_some() {
            bail!("node {id} runs already");
        }
        let log = File::options().create(true).append(true).open(self.log_of(id));
        let mut command = Command::new(&self.binary);
        command
            .args(["serve", "--id", &id.to_string(), "--data"])
            .arg(self.data_of(id))
            .args(["--resp", &node.resp.to_string(), "--http", &node.http.to_string()])
            .args(["--peer", &node.peer.to_string(), "--advertise-peer", &node.peer_proxy.to_string()])
            .args(&node.membership)
            .args(OPTIONS)
            .envs(self.environment(id)?)
            // Ctrl-C must reach only this process, which then ends its nodes.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.context("cannot open the node's log")?);
        let child = self.spawner.spawn(command)?;
        self.network.is_process_of(child.id(), id);
        node.child = Some(child);
        node.state = State::Running;
        node.proxies = vec![
            self.network.open(id, node.peer_proxy, node.peer, true)?,
            self.network.open(id, node.client_proxy, node.resp, false)?,
        ];
        Ok(())
    }

    /// The environment of a node's process: libraries to load, and their settings.
    fn environment(&self, id: u64) -> Result<Vec<(&'static str, OsString)>> {
        let mut environment = Vec::new();
        let mut libraries = Vec::new();
        if let Ok(clocks) = &self.clocks {
            libraries.push(clocks.library.as_os_str());
            environment.extend(clocks.environment(id)?);
        }
        if let Ok(disks) = &self.disks {
            libraries.push(disks.library.as_os_str());
            environment.extend(disks.environment(id, &self.data_of(id))?);
        }
        if !libraries.is_empty() {
            environment.push(("LD_PRELOAD", libraries.join(OsStr::new(":"))));
        }
        Ok(environment)
    }

    /// Starts a node with a new id, which asks a member to add it. Returns the id.
    pub(crate) fn join(&self, through: u64) -> Result<u64> {
        let url = format!("http://{}", self.http(through)?);
        let id = {
            let mut next = self.next_id.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next - 1
        };
        self.place(id, ["--join".into(), url])?;
        self.start_node(id)?;
        Ok(id)
    }

    pub(crate) fn data_of(&self, id: u64) -> PathBuf {
        self.dir.join("data").join(format!("node{id}"))
    }

    /// The file with the node's stderr.
    pub(crate) fn log_of(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node{id}.log"))
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.nodes().keys().copied().collect()
    }

    pub(crate) fn running(&self) -> Vec<u64> {
        let nodes = self.nodes();
        nodes.iter().filter(|(_, node)| node.state == State::Running).map(|(id, _)| *id).collect()
    }

    pub(crate) fn state(&self, id: u64) -> State {
        self.nodes().get(&id).map_or(State::Down, |node| node.state)
    }

    /// The client addresses of all nodes, running or not.
    pub(crate) fn client_addresses(&self) -> Vec<(u64, SocketAddr)> {
        self.nodes().iter().map(|(id, node)| (*id, node.client_proxy)).collect()
    }

    /// The running nodes' own client addresses, without proxies.
    pub(crate) fn own_addresses(&self) -> Vec<(u64, SocketAddr)> {
        let nodes = self.nodes();
        let running = nodes.iter().filter(|(_, node)| node.state == State::Running);
        running.map(|(id, node)| (*id, node.resp)).collect()
    }

    /// The ports of all nodes and of their proxies, except those for HTTP.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let of = |node: &Node| [node.resp, node.peer, node.peer_proxy, node.client_proxy];
        self.nodes().values().flat_map(of).map(|address| address.port()).collect()
    }

    fn http(&self, id: u64) -> Result<SocketAddr> {
        self.nodes().get(&id).map(|node| node.http).with_context(|| format!("there is no node {id}"))
    }

    /// Sends a signal; fails if there is no process.
    fn signal(&self, id: u64, signal: i32) -> Result<u32> {
        let nodes = self.nodes();
        let child = nodes.get(&id).and_then(|node| node.child.as_ref());
        let pid = child.with_context(|| format!("node {id} does not run"))?.id();
        // SAFETY: the process is a child that was not waited for, so the id is still its own.
        if unsafe { libc::kill(pid as libc::pid_t, signal) } != 0 {
            bail!("node {id} cannot be signalled: {}", std::io::Error::last_os_error());
        }
        Ok(pid)
    }

    /// kill -9. Ok if the process certainly died of it.
    pub(crate) fn kill(&self, id: u64) -> Result<()> {
        self.kill_together(&[id])
    }

    /// The same for several nodes at once.
    pub(crate) fn kill_together(&self, ids: &[u64]) -> Result<()> {
        let signalled: Vec<Result<u32>> = ids.iter().map(|id| self.signal(*id, libc::SIGKILL)).collect();
        let mut outcome = Ok(());
        for (id, signalled) in ids.iter().zip(signalled) {
            let status = signalled.and_then(|_| self.wait(*id, DEATH_PATIENCE));
            outcome = outcome.and(status.and_then(|status| match status.signal() {
                Some(libc::SIGKILL) => Ok(()),
                _ => Err(anyhow!("node {id} ended by itself: {status}")),
            }));
        }
        outcome
    }

    /// Waits for a node's process to end.
    pub(crate) fn wait(&self, id: u64, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.ended(id)? {
                return Ok(status);
            }
            std::thread::sleep(POLL);
        }
        bail!("node {id} has not ended within {patience:?}")
    }

    /// The exit status of a node's process, if it has ended.
    pub(crate) fn ended(&self, id: u64) -> Result<Option<ExitStatus>> {
        let mut nodes = self.nodes();
        let node = nodes.get_mut(&id).with_context(|| format!("there is no node {id}"))?;
        let child = node.child.as_mut().with_context(|| format!("node {id} does not run"))?;
        let Some(status) = child.try_wait().context("a child can be waited for")? else { return Ok(None) };
        self.network.has_ended(child.id());
        if let Ok(clocks) = &self.clocks {
            clocks.has_ended(child.id());
        }
        node.child = None;
        node.proxies.clear();
        node.state = State::Down;
        Ok(Some(status))
    }

    /// SIGTERM; Ok if it stopped in order.
    pub(crate) fn stop(&self, id: u64, patience: Duration) -> Result<()> {
        self.signal(id, libc::SIGTERM)?;
        let status = self.wait(id, patience)?;
        if !status.success() {
            bail!("node {id} did not stop in good order: {status}");
        }
        Ok(())
    }

    /// The same for several nodes at once.
    pub(crate) fn stop_together(&self, ids: &[u64], patience: Duration) -> Result<()> {
        let signalled: Vec<Result<u32>> = ids.iter().map(|id| self.signal(*id, libc::SIGTERM)).collect();
        let mut outcome = Ok(());
        for (id, signalled) in ids.iter().zip(signalled) {
            let status = signalled.and_then(|_| self.wait(*id, patience));
            outcome = outcome.and(status.and_then(|status| match status.success() {
                true => Ok(()),
                false => Err(anyhow!("node {id} did not stop in good order: {status}")),
            }));
        }
        outcome
    }

    /// SIGSTOP. Ok once the kernel reports the process as stopped.
    pub(crate) fn pause(&self, id: u64) -> Result<()> {
        let pid = self.signal(id, libc::SIGSTOP)?;
        let deadline = Instant::now() + HTTP_TIMEOUT;
        while Instant::now() < deadline {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) {
                if let Some(node) = self.nodes().get_mut(&id) {
                    node.state = State::Paused;
                }
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("node {id} was not stopped by SIGSTOP")
    }

    /// SIGCONT.
    pub(crate) fn resume(&self, id: u64) -> Result<()> {
        self.signal(id, libc::SIGCONT)?;
        if let Some(node) = self.nodes().get_mut(&id) {
            node.state = State::Running;
        }
        Ok(())
    }

    /// Removes a node that is no longer a member, and kills its process.
    pub(crate) fn forget(&self, id: u64) {
        // It may be down already.
        let _ = self.kill(id);
        self.nodes().remove(&id);
    }

    /// Bounds of how far a node's wall clock is ahead of the machine's, by its own TIME, in microseconds.
    pub(crate) fn offset_us(&self, id: u64) -> Option<(i64, i64)> {
        let address = self.nodes().get(&id)?.resp;
        let now_us = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
            i64::try_from(now.as_micros()).ok()
        };
        let mut connection = Connection::open(id, address, TIME_TIMEOUT).ok()?;
        let before_us = now_us()?;
        let Reply::Array(parts) = connection.call(&["TIME"]).ok()? else { return None };
        let after_us = now_us()?;
        let part = |at: usize| parts.get(at)?.number().ok()?;
        let said_us = part(0)? * 1_000_000 + part(1)?;
        Some((said_us - after_us, said_us - before_us))
    }

    /// `GET /v1/cluster` of a node.
    pub(crate) fn status(&self, id: u64) -> Option<Value> {
        let url = format!("http://{}/v1/cluster", self.http(id).ok()?);
        agent().get(url).call().ok()?.body_mut().read_json().ok()
    }

    /// Whether a node reports that it is ready.
    pub(crate) fn is_ready(&self, id: u64) -> bool {
        let Ok(address) = self.http(id) else { return false };
        agent().get(format!("http://{address}/readyz")).call().is_ok_and(|answer| answer.status() == 200)
    }

    /// What a node's `/readyz` says: its status, and in words.
    pub(crate) fn readiness(&self, id: u64, agent: &ureq::Agent) -> Option<(u16, String)> {
        let url = format!("http://{}/readyz", self.http(id).ok()?);
        let mut answer = agent.get(url).call().ok()?;
        let text = answer.body_mut().read_to_string().ok()?;
        let detail = |problem: Value| problem["detail"].as_str().map(str::to_owned);
        let said = serde_json::from_str(&text).ok().and_then(detail).unwrap_or(text);
        Some((answer.status().as_u16(), said.trim().to_owned()))
    }

    /// An administrative request to one node. Err says why it was not done, or that the outcome is unknown.
    pub(crate) fn administer(&self, id: u64, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let url = format!("http://{}{path}", self.http(id)?);
        let answer = match (method, body) {
            ("DELETE", _) => agent().delete(url).call(),
            (_, Some(body)) => agent().post(url).send_json(body),
            (_, None) => agent().post(url).send_empty(),
        };
        let mut answer = answer.context("no answer")?;
        let body: Value = answer.body_mut().read_json().unwrap_or(json!(null));
        if !answer.status().is_success() {
            bail!("{method} {path}: {}: {}", answer.status(), body["detail"].as_str().unwrap_or_default());
        }
        Ok(body)
    }

    /// The leader in the highest term that any running node reports.
    pub(crate) fn leader(&self) -> Option<u64> {
        let statuses = self.running().into_iter().filter_map(|id| Some((id, self.status(id)?)));
        let leaders = statuses.filter(|(_, status)| status["role"] == "leader");
        leaders.max_by_key(|(_, status)| status["term"].as_u64()).map(|(id, _)| id)
    }

    /// Waits until `is_so` holds; returns whether it did in time.
    pub(crate) fn wait_until(&self, patience: Duration, mut is_so: impl FnMut(&Cluster) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if is_so(self) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends every process.
    pub(crate) fn end(&self) {
        for id in self.ids() {
            // Nodes that are down have no process.
            let _ = self.kill(id);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end();
    }
}
