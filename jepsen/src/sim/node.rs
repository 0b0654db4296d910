//! A simulated node: a whole server on its own runtime, whose time the world advances. Ending it drops the
//! runtime: nothing in it completes, as in a killed process.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use kvorum::{
    config::{Config, Options},
    simulation::Server,
};
use kvorum_raft::{
    Platform, StartError, Status, safeguard,
    simulation::{DiskCopy, Endpoint, Storage},
};
use tokio::{runtime::Runtime, time::Instant};

use super::{
    knobs::Knobs,
    network::{Port, SharedHub, address},
    script::action::sync_ms_max,
};

/// Seconds from the Unix epoch to the beginning of all simulations.
const EPOCH_S: u64 = 1_700_000_000;

/// The range, in milliseconds, from which nodes draw their election timeouts. Without it, two nodes that need
/// each other's vote could become candidates at the same moments forever.
const ELECTION_MS: u64 = 100;

/// A stopping server waits for its clients for at most this long ...
const DRAIN: Duration = Duration::from_secs(1);
/// ... and stops completely within this time, in milliseconds.
const STOP_MS_MAX: u64 = 30_000;

type Started = Arc<Mutex<Option<Result<Server, StartError>>>>;

/// The process of a running node.
struct Running {
    runtime: Runtime,
    /// The runtime's time when it began.
    since: Instant,
    /// How long it has run by its own monotonic clock, in milliseconds.
    age_ms: f64,
    started: Started,
    /// Why it ended itself.
    fatal: Arc<Mutex<Option<String>>>,
    /// Set when it was asked to stop.
    stopping: Option<Stopping>,
}

struct Stopping {
    has_stopped: Arc<AtomicBool>,
    since: u64,
    back_ms: u64,
}

/// The outcome of a request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// It has stopped, and is restarted after this many milliseconds.
    Back(u64),
    /// It should have stopped long ago.
    Never,
}

/// A copy of everything that a node stores.
pub(super) struct Kept {
    disk: DiskCopy,
    /// The files of its identity.
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Kept {
    /// The number of the disk's life when it was copied.
    pub(super) fn life(&self) -> Option<u64> {
        let (_, identity) = self.files.iter().find(|(path, _)| path.ends_with("identity.json"))?;
        serde_json::from_slice::<serde_json::Value>(identity).ok()?["lives"]["number"].as_u64()
    }
}

pub(super) struct Node {
    pub(super) id: u64,
    pub(super) storage: Storage,
    dir: PathBuf,
    running: Option<Running>,
    /// The process is suspended, while time passes.
    pub(super) is_paused: bool,
    /// The rate of its monotonic clock.
    pub(super) rate: f64,
    /// The offset of its wall clock, in microseconds.
    wall_offset_us: Arc<AtomicI64>,
    /// The minimum of the range.
    election_timeout_ms: u64,
    bootstrap: Option<String>,
    knobs: Knobs,
    /// Its log is damaged: it is not started again.
    pub(super) is_damaged: bool,
    /// Its disk was replaced by an older copy: it may end itself.
    pub(super) was_rolled_back: bool,
    is_disk_slow: bool,
}

/// A node's wall clock, in microseconds since the Unix epoch.
fn wall_us(now_us: u64, offset_us: &AtomicI64) -> u64 {
    (EPOCH_S * 1_000_000 + now_us).saturating_add_signed(offset_us.load(Ordering::Relaxed))
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// A node with an empty disk. `first` are the first members; empty for a node that joins later.
    pub(super) fn new(
        id: u64,
        dir: PathBuf,
        first: &[u64],
        knobs: &Knobs,
        chance: &mut fastrand::Rng,
    ) -> Node {
        let peers: Vec<String> = first.iter().map(|id| format!("{id}={}", address(*id))).collect();
        Node {
            id,
            storage: Storage::new(chance.u64(..)),
            dir,
            running: None,
            is_paused: false,
            rate: 1.0,
            wall_offset_us: Arc::default(),
            election_timeout_ms: chance.u64(350..500),
            bootstrap: (!first.is_empty()).then(|| peers.join(",")),
            knobs: knobs.clone(),
            is_damaged: false,
            was_rolled_back: false,
            is_disk_slow: false,
        }
    }

    fn config(&self) -> Result<Config> {
        let options = Options {
            id: Some(self.id),
            data: Some(self.dir.clone()),
            peer: Some(address(self.id)),
            peers: self.bootstrap.clone(),
            request_timeout_ms: Some(1_000),
            election_timeout_min_ms: Some(self.election_timeout_ms),
            election_timeout_max_ms: Some(self.election_timeout_ms + ELECTION_MS),
            log_segment_bytes: Some("64kb".into()),
            ..Options::default()
        };
        let mut config = options.validate().context("the nodes' configuration")?;
        config.node.election_timeout_auto = true;
        self.knobs.turn(&mut config.node);
        config.maxmemory = Some(self.knobs.maxmemory());
        Ok(config)
    }

    /// Starts its process.
    pub(super) fn start(&mut self, hub: &SharedHub, now_us: Arc<AtomicU64>) -> Result<()> {
        let config = self.config()?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let (started, fatal): (Started, Arc<Mutex<Option<String>>>) = Default::default();
        let (offset, told, storage) = (self.wall_offset_us.clone(), fatal.clone(), self.storage.clone());
        let platform = Platform::simulated(
            Arc::new(Port { node: self.id, hub: hub.clone() }),
            self.storage.clone(),
            move || wall_us(now_us.load(Ordering::Relaxed), &offset),
            move |why| {
                // A process that ends itself writes nothing more; whether its last write is on disk is
                // unknown.
                storage.cut_power();
                locked(&told).get_or_insert(why);
            },
        );
        let (result, ended) = (started.clone(), fatal.clone());
        runtime.spawn(async move {
            let server = Server::start(platform, &config).await;
            let node = server.as_ref().ok().map(|server| server.node().clone());
            *locked(&result) = Some(server);
            if let Some(node) = node {
                let why = node.among_strangers().await;
                locked(&ended).get_or_insert(why.to_string());
            }
        });
        let since = runtime.block_on(async { Instant::now() });
        self.running = Some(Running { runtime, since, age_ms: 0.0, started, fatal, stopping: None });
        self.is_paused = false;
        Ok(())
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The server, once it has started.
    fn server(&self) -> Option<Server> {
        let running = self.running.as_ref()?;
        locked(&running.started).as_ref().and_then(|started| started.as_ref().ok().cloned())
    }

    /// Inspects the server, once it has started, at its own time.
    pub(super) fn look<R>(&self, look: impl FnOnce(&Server) -> R) -> Option<R> {
        let server = self.server()?;
        // Otherwise the server's durations would be measured by the system's clock.
        let _context = self.running.as_ref()?.runtime.enter();
        Some(look(&server))
    }

    pub(super) fn status(&self) -> Option<Status> {
        self.look(|server| server.node().status())
    }

    /// Why it did not start, or ended itself.
    pub(super) fn ended(&self) -> Option<String> {
        let running = self.running.as_ref()?;
        let refused = |started: &Result<Server, StartError>| started.as_ref().err().map(ToString::to_string);
        let refused = locked(&running.started).as_ref().and_then(refused);
        refused.or_else(|| locked(&running.fatal).clone())
    }

    /// Ends its process at once. If it loses power, its disk loses what was not synced.
    pub(super) fn end(&mut self, loses_power: bool) {
        if loses_power {
            self.storage.cut_power();
        }
        if let Some(running) = self.running.take() {
            locked(&running.started).take();
        }
        self.is_paused = false;
    }

    /// Asks it to stop. False if it does not run, or was asked already.
    pub(super) fn stop(&mut self, now: u64, back_ms: u64) -> bool {
        let (server, has_stopped) = (self.server(), Arc::new(AtomicBool::new(false)));
        let Some(running) = self.running.as_mut().filter(|running| running.stopping.is_none()) else {
            return false;
        };
        let told = has_stopped.clone();
        running.runtime.spawn(async move {
            // A server that has not started has nothing to finish.
            if let Some(server) = server {
                server.stop(DRAIN).await;
            }
            told.store(true, Ordering::Relaxed);
        });
        running.stopping = Some(Stopping { has_stopped, since: now, back_ms });
        true
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.stopping.is_some())
    }

    /// The outcome of the request to stop, once there is one.
    pub(super) fn stopped(&self, now: u64) -> Option<Stopped> {
        let stopping = self.running.as_ref()?.stopping.as_ref()?;
        if stopping.has_stopped.load(Ordering::Relaxed) {
            return Some(Stopped::Back(stopping.back_ms));
        }
        (now > stopping.since + STOP_MS_MAX && !self.is_paused).then_some(Stopped::Never)
    }

    /// Lets syncs take up to this many milliseconds; None for the usual time.
    pub(super) fn slow_disk(&mut self, ms: Option<u64>) {
        self.storage.slow(sync_ms_max(ms));
        self.is_disk_slow = ms.is_some();
    }

    /// Whether it serves without any disturbance.
    pub(super) fn is_well(&self) -> bool {
        let is_disturbed = self.is_paused || self.is_disk_slow || self.is_stopping() || self.was_rolled_back;
        self.is_running() && !is_disturbed && self.ended().is_none()
    }

    /// A copy of everything that it stores at this moment; it may be running.
    pub(super) fn copy_disk(&self) -> Result<Kept> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.dir).context("cannot list a node's directory")? {
            let path = entry.context("cannot list a node's directory")?.path();
            if path.is_file() {
                let bytes = std::fs::read(&path).context("cannot read a node's file")?;
                files.push((path, bytes));
            }
        }
        Ok(Kept { disk: self.storage.copy(), files })
    }

    /// Replaces its disk by that copy.
    pub(super) fn put_back_disk(&mut self, copy: &Kept) -> Result<()> {
        self.storage.put_back(&copy.disk);
        for entry in std::fs::read_dir(&self.dir).context("cannot list a node's directory")? {
            let path = entry.context("cannot list a node's directory")?.path();
            if path.is_file() {
                std::fs::remove_file(path).context("cannot remove a node's file")?;
            }
        }
        for (path, bytes) in &copy.files {
            std::fs::write(path, bytes).context("cannot write a node's file")?;
        }
        self.was_rolled_back = true;
        Ok(())
    }

    /// Lets it run for one millisecond of the world, at its own rate.
    pub(super) fn step(&mut self, now_us: u64) {
        let Some(running) = &mut self.running else { return };
        let before = running.age_ms as u64;
        running.age_ms += self.rate;
        let age_ms = running.age_ms as u64;
        if self.is_paused || age_ms == before {
            return;
        }
        let until = running.since + Duration::from_millis(age_ms);
        safeguard::set_own_clock_ms(wall_us(now_us, &self.wall_offset_us) / 1000);
        let _span = tracing::error_span!("node", id = self.id).entered();
        running.runtime.block_on(async { tokio::time::sleep_until(until).await });
    }

    /// Ends a pause: everything that has become due is due at once.
    pub(super) fn resume(&mut self) {
        self.is_paused = false;
        let Some(running) = &mut self.running else { return };
        let until = running.since + Duration::from_millis(running.age_ms as u64);
        running.runtime.block_on(async {
            let missed = until.saturating_duration_since(Instant::now());
            tokio::time::advance(missed).await;
        });
    }

    /// Accepts a client.
    pub(super) fn accept(&self) -> Option<Endpoint> {
        let running = self.running.as_ref().filter(|_| !self.is_paused)?;
        let server = self.server()?;
        let _context = running.runtime.enter();
        server.connect()
    }

    /// Runs a task on its runtime.
    pub(super) fn ask<F: Future<Output = ()> + Send + 'static>(
        &self,
        task: impl FnOnce(Server) -> F,
    ) -> bool {
        let (Some(running), Some(server)) = (&self.running, self.server()) else { return false };
        running.runtime.spawn(task(server));
        true
    }

    pub(super) fn move_wall_clock(&self, by_us: i64) {
        self.wall_offset_us.fetch_add(by_us, Ordering::Relaxed);
    }
}
