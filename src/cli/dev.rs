//! `kvorum dev`: a whole cluster on loopback, one child process per node, so that a person can kill one and
//! watch. Reports changes of the leader and ends of processes; restarts nothing; stops all nodes when it is
//! stopped.
//!
//! The nodes' peer addresses are in their log, so they must be the same at the next start: they are stored in
//! the data directory.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use super::{CONFIG, FAILED, Failure, status};
use crate::admin::api::Cluster;

/// How often processes and leader are checked.
const LOOK: Duration = Duration::from_millis(200);
/// How long the cluster may take to form, or to recover, before that is reported.
const SLOW_START: Duration = Duration::from_secs(20);
/// How long a node may take to stop before it is killed.
const STOP_MAX: Duration = Duration::from_secs(15);
/// Peer ports begin this far above the first RESP port, or further where those are taken.
const PEER_PORT_OFFSET: u16 = 1000;

/// Starts a cluster, or restarts it with its existing data.
#[derive(Args, Debug)]
pub struct Dev {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Directory of the nodes' data and logs; created when missing
    #[arg(long, default_value = "./kvorum-dev", value_name = "DIR")]
    data: PathBuf,
    /// Port of the first node for Redis clients; the others have the next ones
    #[arg(long, default_value_t = 6379, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Port of the first node for the admin API; the others have the next ones
    #[arg(long, default_value_t = 8379, value_parser = clap::value_parser!(u16).range(1..))]
    http_port: u16,
}

/// What must stay the same across starts.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    /// Peer port by id.
    peer_ports: BTreeMap<u64, u16>,
}

/// A child process.
struct Node {
    id: u64,
    resp: String,
    http: String,
    log: PathBuf,
    pid: u32,
    child: Child,
    ended: Option<ExitStatus>,
}

pub(super) fn run(dev: Dev) -> Result<(), Failure> {
    if u32::from(dev.port.max(dev.http_port)) + u32::from(dev.nodes) > 1 << 16 {
        let error = anyhow::anyhow!("there are no {} ports from there on", dev.nodes);
        return Err(Failure { code: CONFIG, error, advice: None });
    }
    if dev.port.abs_diff(dev.http_port) < dev.nodes {
        let error = anyhow::anyhow!("the ports from --port and from --http-port on overlap");
        return Err(Failure { code: CONFIG, error, advice: None });
    }
    // One thread: a child is killed when the thread that started it ends.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(start_and_watch(dev))
}

async fn start_and_watch(dev: Dev) -> Result<(), Failure> {
    fs::create_dir_all(&dev.data).with_context(|| format!("cannot create {}", dev.data.display()))?;
    let remembered = remembered(&dev)?;
    let mut nodes = Vec::new();
    for &id in remembered.peer_ports.keys() {
        nodes.push(Node::start(&dev, &remembered, id)?);
    }
    println!("starting {} nodes with data in {}", nodes.len(), dev.data.display());
    let ended = tokio::select! {
        ended = watch(&mut nodes) => ended,
        asked = super::asked_to_stop() => asked.context("cannot wait for signals").map_err(Failure::from),
    };
    println!("stopping");
    for node in &mut nodes {
        node.stop().await;
    }
    ended
}

/// The peer ports of the last start, or free ones.
fn remembered(dev: &Dev) -> Result<Remembered> {
    let file = dev.data.join("dev.json");
    if file.exists() {
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let remembered: Remembered =
            serde_json::from_slice(&text).with_context(|| format!("cannot read {}", file.display()))?;
        if remembered.peer_ports.len() != usize::from(dev.nodes) {
            bail!(
                "{} holds a cluster of {} nodes: start it with --nodes {1}, or choose another --data",
                dev.data.display(),
                remembered.peer_ports.len(),
            );
        }
        return Ok(remembered);
    }
    let base = free_ports(dev)?;
    let peer_ports = (1..=dev.nodes).map(|id| (u64::from(id), base + id - 1)).collect();
    let remembered = Remembered { peer_ports };
    let text = serde_json::to_vec_pretty(&remembered).context("cannot write JSON")?;
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(remembered)
}

/// The first port of a free range with one for each node.
fn free_ports(dev: &Dev) -> Result<u16> {
    let from = dev.port.checked_add(PEER_PORT_OFFSET).unwrap_or(dev.port - PEER_PORT_OFFSET);
    let mine = |port: u16| {
        (dev.port..dev.port + dev.nodes).contains(&port)
            || (dev.http_port..dev.http_port + dev.nodes).contains(&port)
    };
    let is_free = |port: u16| !mine(port) && TcpListener::bind(("127.0.0.1", port)).is_ok();
    (from..u16::MAX - dev.nodes)
        .step_by(usize::from(dev.nodes))
        .find(|&base| (base..base + dev.nodes).all(is_free))
        .context("there are no free ports for the peers")
}

/// The nodes share this machine's cores: more threads than cores only wait for each other.
fn threads_of_each(nodes: u16) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / usize::from(nodes)).max(1)
}

impl Node {
    fn start(dev: &Dev, remembered: &Remembered, id: u64) -> Result<Node> {
        let index = (id - 1) as u16;
        let resp = format!("127.0.0.1:{}", dev.port + index);
        let http = format!("127.0.0.1:{}", dev.http_port + index);
        let peers: Vec<String> =
            remembered.peer_ports.iter().map(|(id, port)| format!("{id}=127.0.0.1:{port}")).collect();
        let log = dev.data.join(format!("node-{id}.log"));
        let output = open_log(&log)?;
        let mut command = Command::new(std::env::current_exe().context("cannot find the own executable")?);
        command
            .args(["serve", "--id", &id.to_string(), "--resp", &resp, "--http", &http])
            .args([
                "--peer",
                &format!("127.0.0.1:{}", remembered.peer_ports[&id]),
                "--peers",
                &peers.join(","),
            ])
            .arg("--data")
            .arg(dev.data.join(format!("node-{id}")))
            // Settings for a node of another cluster must not reach these.
            .env_remove("KVORUM_JOIN")
            .env_remove("KVORUM_CONFIG")
            .env_remove("KVORUM_ADVERTISE_RESP")
            .env_remove("KVORUM_ADVERTISE_HTTP")
            .env_remove("KVORUM_ADVERTISE_PEER")
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share the log file")?)
            .stderr(output);
        if std::env::var_os("KVORUM_DISK_RESERVE").is_none() {
            // All nodes share one disk, and it is only for trying things out.
            command.args(["--disk-reserve", "16mb"]);
        }
        if std::env::var_os("KVORUM_MAXMEMORY").is_none()
            && let Some(memory) = crate::maxmemory::of_machine()
        {
            // They share its memory, too.
            let share = memory / 2 / u64::from(dev.nodes);
            command.args(["--maxmemory", &share.to_string()]);
        }
        if std::env::var_os("KVORUM_THREADS").is_none() {
            command.args(["--threads", &threads_of_each(dev.nodes).to_string()]);
        }
        die_with_parent(&mut command);
        let child = command.spawn().context("cannot start a node")?;
        let pid = child.id().context("the node has ended at once")?;
        Ok(Node { id, resp, http, log, pid, child, ended: None })
    }

    /// The exit status if the process has ended; only once.
    fn look(&mut self) -> Option<ExitStatus> {
        if self.ended.is_some() {
            return None;
        }
        // On an error its state is unknown: it counts as alive, and the loss of a leader is reported anyway.
        self.ended = self.child.try_wait().ok().flatten();
        self.ended
    }

    async fn stop(&mut self) {
        if self.look().is_some() || self.ended.is_some() {
            return;
        }
        // SAFETY: kill has no preconditions; the child was not waited for, so its id is its own.
        unsafe { libc::kill(self.pid as libc::pid_t, libc::SIGTERM) };
        if tokio::time::timeout(STOP_MAX, self.child.wait()).await.is_err() {
            println!("node {} does not stop; killing it", self.id);
            // An error means that it has ended.
            let _ = self.child.kill().await;
        }
    }
}

fn open_log(path: &Path) -> Result<File> {
    let open = File::options().create(true).append(true).open(path);
    open.with_context(|| format!("cannot write {}", path.display()))
}

/// Has the kernel stop the node when this process is gone, for whatever reason.
fn die_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        let parent = std::process::id();
        // SAFETY: prctl and getppid may be called between fork and exec; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // The parent may have ended before the line above.
                if libc::getppid() as u32 != parent {
                    return Err(std::io::ErrorKind::BrokenPipe.into());
                }
                Ok(())
            });
        }
    }
}

/// Reports events until no node is left.
async fn watch(nodes: &mut [Node]) -> Result<(), Failure> {
    let started = Instant::now();
    let mut ready = false;
    let mut slow = false;
    let mut told: Option<u64> = None;
    loop {
        for node in nodes.iter_mut() {
            let Some(status) = node.look() else { continue };
            println!(
                "node {} (pid {}) has ended: {status}; its log is {}",
                node.id,
                node.pid,
                node.log.display()
            );
            if !ready && let Some(code) = status.code() {
                let error = anyhow::anyhow!("node {} did not start: {}", node.id, last_line(&node.log));
                return Err(Failure { code: u8::try_from(code).unwrap_or(FAILED), error, advice: None });
            }
        }
        if nodes.iter().all(|node| node.ended.is_some()) {
            return Err(anyhow::anyhow!("no node is left").into());
        }
        let seen = ask_all(nodes).await;
        let leader = leader_of(&seen);
        let alive = nodes.iter().filter(|node| node.ended.is_none()).count();
        if !ready && seen.len() == alive && leader.is_some() {
            ready = true;
            told = leader;
            print!("{}", table(nodes, &seen));
            println!("ready: redis-cli -p {}", nodes[0].resp.rsplit_once(':').map_or("", |(_, port)| port));
        } else if ready && leader != told {
            match leader {
                Some(id) => println!("leader: node {id}"),
                None => println!("leader: none"),
            }
            told = leader;
        } else if !ready && !slow && started.elapsed() > SLOW_START {
            slow = true;
            println!("the cluster is still not ready; the logs are in {}", nodes[0].log.display());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The status of each node that answers.
async fn ask_all(nodes: &[Node]) -> Vec<Cluster> {
    let asked: Vec<_> = nodes
        .iter()
        .filter(|node| node.ended.is_none())
        .map(|node| {
            let url = format!("http://{}", node.http);
            tokio::task::spawn_blocking(move || status::cluster(&url).ok())
        })
        .collect();
    let mut seen = Vec::new();
    for answer in asked {
        seen.extend(answer.await.ok().flatten());
    }
    seen
}

/// The node that says it leads, in the highest term.
fn leader_of(seen: &[Cluster]) -> Option<u64> {
    seen.iter()
        .filter(|cluster| cluster.role == "leader")
        .max_by_key(|cluster| cluster.term)
        .map(|cluster| cluster.node_id)
}

fn table(nodes: &[Node], seen: &[Cluster]) -> String {
    let rows: Vec<[String; 6]> = nodes
        .iter()
        .map(|node| {
            let role =
                seen.iter().find(|cluster| cluster.node_id == node.id).map_or("-", |cluster| &cluster.role);
            [
                node.id.to_string(),
                role.to_owned(),
                node.resp.clone(),
                format!("http://{}", node.http),
                node.pid.to_string(),
                node.log.display().to_string(),
            ]
        })
        .collect();
    status::table(&["NODE", "ROLE", "RESP", "HTTP", "PID", "LOG"], &rows)
}

fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| line.starts_with("kvorum: ")).or(text.lines().last());
    line.unwrap_or("(its log is empty)").trim_start_matches("kvorum: ").to_owned()
}
