//! Real `kvorum serve` processes on loopback, on ports that were free a moment ago.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::way::Way;

/// How long a cluster may take to form, or a node to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where one node listens.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub resp: String,
    pub http: String,
    pub peer: String,
}

/// A cluster whose nodes are killed when it goes out of scope.
pub struct Cluster {
    pub addresses: Vec<Addresses>,
    children: Vec<Option<Child>>,
    options: Vec<String>,
    /// Each node has a wall clock of its own, which `shift_clock` moves.
    has_own_clocks: bool,
    /// They listen for peers on all addresses of the machine.
    listens_everywhere: bool,
    /// Where those listen for peers who are known by their names.
    listens: BTreeMap<usize, String>,
    /// Where they listen for peers, where a long way leads there from the address that these know.
    far: Vec<(String, Way)>,
    /// Where data are, where they are elsewhere than with all else of the test.
    data: BTreeMap<usize, PathBuf>,
    /// What more stands in their environments.
    environments: BTreeMap<usize, Vec<(&'static str, PathBuf)>>,
    /// How many files each may have open: the soft limit, and the hard one.
    file_limits: BTreeMap<usize, (u64, u64)>,
    /// The group of the first node; each has another one, by which a firewall knows it.
    first_group: Option<u32>,
    dir: TempDir,
}

/// The names of the nodes of [`Cluster::start_named`].
const NAMES: [&str; 3] = ["kvorum-one.test", "kvorum-two.test", "kvorum-three.test"];

/// Debian's faketime: what a process loads to see another wall clock.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Ports that this test has been given already: they are free until their nodes listen.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A loopback address that is free at this moment, and was not given before.
pub fn free_address() -> String {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        if GIVEN.lock().expect("nobody panics with it").insert(address.port()) {
            return address.to_string();
        }
    }
}

impl Cluster {
    /// Starts `size` nodes and waits until all are ready. `options` go to every node.
    pub fn start(size: usize, options: &[&str]) -> Cluster {
        Cluster::start_with_clocks(size, options, false)
    }

    /// As `start`, for nodes that listen for peers on all addresses of their machine.
    pub fn start_listening_everywhere(size: usize) -> Cluster {
        let mut cluster = Cluster::off(size, &[]);
        cluster.listens_everywhere = true;
        cluster.start_all();
        cluster
    }

    /// As `start`, for nodes that know each other by the names of [`NAMES`], each of which stands for all of `addresses`; `listens`
    /// says at which of them node `n` is.
    pub fn start_named(size: usize, addresses: &[&str], listens: impl Fn(usize) -> &'static str) -> Cluster {
        let mut cluster = Cluster::off(size, &[]);
        cluster.name(|_| addresses.to_vec());
        for node in 0..size {
            cluster.listen_at(node, listens(node));
        }
        cluster.start_all();
        cluster
    }

    /// As `start`, with so long a way to each node from its peers.
    pub fn start_far(size: usize, one_way: Duration, options: &[&str]) -> Cluster {
        let mut cluster = Cluster::off(size, options);
        let ways = cluster.addresses.iter().map(|addresses| {
            let there = free_address();
            let way = Way::open(&addresses.peer, &there, one_way);
            (there, way)
        });
        cluster.far = ways.collect();
        cluster.start_all();
        cluster
    }

    /// From now on a node's name stands for these addresses.
    pub fn name<'a>(&self, addresses: impl Fn(usize) -> Vec<&'a str>) {
        let of = |node: usize| {
            let lines =
                addresses(node).into_iter().map(move |address| format!("{address} {}\n", NAMES[node]));
            lines.collect::<String>()
        };
        let hosts: String = (0..NAMES.len()).map(of).collect();
        // In its place: processes that run see the same file.
        std::fs::write(self.hosts(), hosts).expect("a file for names");
    }

    /// From its next start on the node listens there for peers, who know it by its name.
    pub fn listen_at(&mut self, node: usize, address: &str) {
        let (_, port) = self.addresses[node].peer.rsplit_once(':').expect("an address has a port");
        self.listens.insert(node, format!("{address}:{port}"));
        self.addresses[node].peer = format!("{}:{port}", NAMES[node]);
    }

    fn hosts(&self) -> PathBuf {
        self.dir.path().join("hosts")
    }

    /// As `start`; with `has_own_clocks` the nodes' wall clocks can be moved, which needs Debian's package faketime.
    pub fn start_with_clocks(size: usize, options: &[&str], has_own_clocks: bool) -> Cluster {
        let mut cluster = Cluster::off(size, options);
        cluster.has_own_clocks = has_own_clocks;
        cluster.start_all();
        cluster
    }

    /// Gives each node, none of which was started, a wall clock of its own.
    pub fn give_own_clocks(&mut self) {
        self.has_own_clocks = true;
    }

    /// Has nodes that were not started run in groups of their own, from this one on. Needs root.
    pub fn give_groups(&mut self, first: u32) {
        self.first_group = Some(first);
    }

    /// Starts all nodes, and waits until they are ready.
    pub fn start_all(&mut self) {
        (0..self.addresses.len()).for_each(|node| self.start_node(node));
        (0..self.addresses.len()).for_each(|node| self.wait_ready(node));
    }

    /// Nodes that have not been started.
    pub fn off(size: usize, options: &[&str]) -> Cluster {
        let address = |_| Addresses { resp: free_address(), http: free_address(), peer: free_address() };
        Cluster {
            addresses: (0..size).map(address).collect(),
            children: (0..size).map(|_| None).collect(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            has_own_clocks: false,
            listens_everywhere: false,
            listens: BTreeMap::new(),
            far: Vec::new(),
            data: BTreeMap::new(),
            environments: BTreeMap::new(),
            file_limits: BTreeMap::new(),
            first_group: None,
            dir: tempfile::tempdir().expect("a directory for the test"),
        }
    }

    /// Starts node `node` (ids count from 1, nodes from 0), or starts it again.
    pub fn start_node(&mut self, node: usize) {
        let peers = self.addresses.iter().enumerate();
        let peers: Vec<String> =
            peers.map(|(index, address)| format!("{}={}", index + 1, address.peer)).collect();
        self.spawn(node, &["--peers", &peers.join(",")]);
    }

    /// Starts it again as a node that has to know its cluster from its data.
    pub fn start_bare(&mut self, node: usize) {
        self.spawn(node, &[]);
    }

    /// Has it listen at other addresses from its next start on.
    pub fn move_node(&mut self, node: usize) {
        self.addresses[node] = Addresses { resp: free_address(), http: free_address(), peer: free_address() };
    }

    /// Starts it again, to ask node `through` to be added.
    pub fn start_joining(&mut self, node: usize, through: usize) {
        let url = format!("http://{}", self.addresses[through].http);
        self.spawn(node, &["--join", &url]);
    }

    /// Waits until the process has ended by itself; gives its exit code and what it wrote to stderr since its first start.
    pub fn wait_end(&mut self, node: usize) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let mut child = self.children[node].take().expect("the node runs");
        loop {
            let log = std::fs::read_to_string(self.log_of(node)).unwrap_or_default();
            if let Some(status) = child.try_wait().expect("a child") {
                return (status.code(), log);
            }
            if Instant::now() > deadline {
                child.kill().expect("the child can be killed");
                child.wait().expect("the child can be waited for");
                panic!("node {} does not end:\n{log}", node + 1);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts one node more, which asks node `through` to be added. Gives its number.
    pub fn join(&mut self, through: usize) -> usize {
        let node = self.addresses.len();
        self.addresses.push(Addresses { resp: free_address(), http: free_address(), peer: free_address() });
        self.children.push(None);
        self.start_joining(node, through);
        node
    }

    fn spawn(&mut self, node: usize, membership: &[&str]) {
        let addresses = &self.addresses[node];
        let log = File::options().create(true).append(true).open(self.log_of(node)).expect("a log file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum"));
        let port = addresses.peer.rsplit_once(':').map_or("", |(_, port)| port);
        let mut peer = match self.far.get(node) {
            Some((there, _)) => there.clone(),
            None if self.listens_everywhere => format!("0.0.0.0:{port}"),
            None => addresses.peer.clone(),
        };
        let mut advertised = self.far.get(node).map(|_| ["--advertise-peer", addresses.peer.as_str()]);
        if let Some(listens) = self.listens.get(&node) {
            // Its names are its own: a mount namespace hides the machine's.
            command = Command::new("unshare");
            let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
            command.args(["--mount", "sh", "-c", script]).arg(self.hosts());
            command.arg(env!("CARGO_BIN_EXE_kvorum"));
            advertised = Some(["--advertise-peer", addresses.peer.as_str()]);
            peer.clone_from(listens);
        }
        if self.has_own_clocks {
            if !self.clock_of(node).exists() {
                self.shift_clock(node, 0);
            }
            command
                .env("LD_PRELOAD", FAKETIME)
                .env("FAKETIME_TIMESTAMP_FILE", self.clock_of(node))
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        if let Some(first) = self.first_group {
            command.gid(first + u32::try_from(node).expect("few nodes"));
        }
        if let Some((soft, hard)) = self.file_limits.get(&node).copied() {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            let set = move || {
                // SAFETY: it reads one value that lives as long as the call.
                let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
                if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            };
            // SAFETY: between fork and exec it makes one system call.
            unsafe { command.pre_exec(set) };
        }
        let child = command
            .args(["serve", "--id", &(node + 1).to_string(), "--data"])
            .arg(self.data_of(node))
            .args(["--resp", &addresses.resp, "--http", &addresses.http, "--peer", &peer])
            .args(advertised.into_iter().flatten())
            // Not the usual amount for each of so many nodes. What stands in `options` counts.
            .env("KVORUM_DISK_RESERVE", "8mb")
            .envs(self.environments.get(&node).into_iter().flatten().cloned())
            .args(membership)
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the server starts");
        self.children[node] = Some(child);
    }

    pub fn data_of(&self, node: usize) -> PathBuf {
        let usual = || self.dir.path().join(format!("node{}", node + 1));
        self.data.get(&node).cloned().unwrap_or_else(usual)
    }

    /// Has a node that was not started keep its data elsewhere.
    pub fn put_data(&mut self, node: usize, data: PathBuf) {
        self.data.insert(node, data);
    }

    /// Adds to a node's environment, from its next start on.
    pub fn add_environment(&mut self, node: usize, variables: Vec<(&'static str, PathBuf)>) {
        self.environments.entry(node).or_default().extend(variables);
    }

    /// Sets how many files a node may have open from its next start on; None for as many as the test.
    pub fn limit_files(&mut self, node: usize, soft_and_hard: Option<(u64, u64)>) {
        match soft_and_hard {
            Some(limits) => drop(self.file_limits.insert(node, limits)),
            None => drop(self.file_limits.remove(&node)),
        }
    }

    /// Whether the process goes on.
    pub fn is_running(&mut self, node: usize) -> bool {
        self.children[node].as_mut().is_some_and(|child| child.try_wait().expect("a child").is_none())
    }

    fn clock_of(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("node{}.clock", node + 1))
    }

    /// Sets how far a node's wall clock is from the machine's, now and after its next start.
    pub fn shift_clock(&self, node: usize, seconds: i64) {
        // Replaced as a whole: the node reads it at every look at the clock.
        let (clock, next) = (self.clock_of(node), self.clock_of(node).with_extension("next"));
        std::fs::write(&next, format!("{seconds:+}\n")).expect("a file for the clock");
        std::fs::rename(next, clock).expect("a file for the clock");
    }

    /// What the node has written to stderr.
    pub fn log_of(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("node{}.log", node + 1))
    }

    /// The process id, while it runs.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.children[node].as_ref().map(Child::id)
    }

    /// Waits until the node says that it serves.
    pub fn wait_ready(&mut self, node: usize) {
        let url = format!("http://{}/readyz", self.addresses[node].http);
        let deadline = Instant::now() + PATIENCE;
        while get(&url).is_none_or(|(status, _)| status != 200) {
            let ended = self.children[node].as_mut().and_then(|child| child.try_wait().expect("a child"));
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.log_of(node)).unwrap_or_default();
                panic!("node {} is not ready (ended: {ended:?}):\n{log}", node + 1);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the node is a voter, as it says itself.
    pub fn wait_voter(&self, node: usize) {
        let deadline = Instant::now() + PATIENCE;
        let is_voter = |status: serde_json::Value| {
            let mut members = status["members"].as_array().into_iter().flatten();
            members.any(|member| member["id"] == node + 1 && member["role"] == "voter")
        };
        while !self.status(node).is_some_and(is_voter) {
            assert!(Instant::now() < deadline, "node {} is no voter: {:?}", node + 1, self.status(node));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The node that leads, as any node knows it.
    pub fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for node in (0..self.children.len()).filter(|node| self.children[*node].is_some()) {
                if let Some(status) = self.status(node)
                    && status["role"] == "leader"
                {
                    return node;
                }
            }
            assert!(Instant::now() < deadline, "there is no leader");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `GET /v1/cluster` of a node.
    pub fn status(&self, node: usize) -> Option<serde_json::Value> {
        let (_, body) = get(&format!("http://{}/v1/cluster", self.addresses[node].http))?;
        serde_json::from_str(&body).ok()
    }

    /// Has the node write a checkpoint, and waits until its log has been purged behind one.
    pub fn purge(&self, node: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let url = format!("http://{}/v1/checkpoint", self.addresses[node].http);
            ureq::post(&url).send_empty().expect("the node writes a checkpoint");
            if self.status(node).is_some_and(|status| status["purged_index"].as_u64() > Some(0)) {
                return;
            }
            assert!(Instant::now() < deadline, "the log of node {} is not purged", node + 1);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGSTOP: it stands still and looks alive. It can be killed as it is.
    pub fn freeze(&self, node: usize) {
        self.signal(node, libc::SIGSTOP);
        // A thread that runs goes on until it meets the signal: long enough to confirm a write.
        let pid = self.pid(node).expect("the node runs");
        let deadline = Instant::now() + PATIENCE;
        while !is_stopped(pid) {
            assert!(Instant::now() < deadline, "node {} does not stop", node + 1);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGCONT.
    pub fn thaw(&self, node: usize) {
        self.signal(node, libc::SIGCONT);
    }

    fn signal(&self, node: usize, signal: i32) {
        let pid = self.pid(node).and_then(|pid| i32::try_from(pid).ok()).expect("the node runs");
        // SAFETY: it takes no pointers, and a child that was not waited for keeps its pid.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// SIGTERM, and waits until the process has ended; gives how long that took.
    pub fn stop(&mut self, node: usize) -> Duration {
        let asked = Instant::now();
        self.signal(node, libc::SIGTERM);
        self.wait_end(node);
        asked.elapsed()
    }

    /// kill -9.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.children[node].take() {
            child.kill().expect("the child can be killed");
            child.wait().expect("the child can be waited for");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..self.children.len() {
            self.kill(node);
        }
        if std::thread::panicking() {
            for node in 0..self.children.len() {
                let log = std::fs::read_to_string(self.log_of(node)).unwrap_or_default();
                eprintln!("--- node {}:\n{log}", node + 1);
            }
        }
    }
}

/// Whether all threads of a process are stopped.
fn is_stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    tasks.flatten().all(|task| {
        // The state stands behind the name, which is in parentheses.
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}

/// A GET request: status and body, None when nobody answers.
pub fn get(url: &str) -> Option<(u16, String)> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(5)))
        .build()
        .into();
    let mut response = agent.get(url).call().ok()?;
    Some((response.status().as_u16(), response.body_mut().read_to_string().ok()?))
}
