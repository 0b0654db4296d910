//! A simulated node: a whole server on a runtime of its own, whose time the world moves. Ending it drops the runtime:
//! nothing of it runs to an end, as nothing of a killed process does.

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
    action::sync_ms_max,
    knobs::Knobs,
    network::{Port, SharedHub, address},
};

/// Seconds from the Unix epoch to the beginning of all simulations.
const EPOCH_S: u64 = 1_700_000_000;

/// A server that is asked to stop waits for its clients at most so long ...
const DRAIN: Duration = Duration::from_secs(1);
/// ... and all that it does takes no longer than this, in milliseconds.
const STOP_MS_MAX: u64 = 30_000;

type Started = Arc<Mutex<Option<Result<Server, StartError>>>>;

/// A node that runs.
struct Running {
    runtime: Runtime,
    /// The runtime's time when it began.
    since: Instant,
    /// How long it has run by its own monotonic clock, in milliseconds.
    age_ms: f64,
    started: Started,
    /// Why it has ended itself.
    fatal: Arc<Mutex<Option<String>>>,
    /// It was asked to stop.
    stopping: Option<Stopping>,
}

struct Stopping {
    has_stopped: Arc<AtomicBool>,
    since: u64,
    back_ms: u64,
}

/// What came of a node that was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// It has, and is started again after so many milliseconds.
    Back(u64),
    /// It should have long ago.
    Never,
}

/// A copy of all that a node keeps.
pub(super) struct Kept {
    disk: DiskCopy,
    /// The files of its identity.
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Kept {
    /// The number of the life that the disk was in.
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
    /// It does not run, and time goes on.
    pub(super) is_paused: bool,
    /// How fast its monotonic clock goes.
    pub(super) rate: f64,
    /// How far its wall clock is off, in microseconds.
    wall_offset_us: Arc<AtomicI64>,
    election_timeout_ms: u64,
    bootstrap: Option<String>,
    knobs: Knobs,
    /// Its log is damaged: it does not start any more.
    pub(super) is_damaged: bool,
    /// It has an older copy of its disk: it may refuse to go on.
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
    /// A node with an empty disk. `first` are the first members; a node that comes later has none.
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
            // Near by they are drawn between two bounds: those are next to each other here.
            election_timeout_ms: chance.u64(350..600),
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
            election_timeout_max_ms: Some(self.election_timeout_ms + 1),
            log_segment_bytes: Some("64kb".into()),
            ..Options::default()
        };
        let mut config = options.validate().context("the nodes' configuration")?;
        config.node.election_timeout_auto = true;
        self.knobs.turn(&mut config.node);
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
                // A process that ends itself writes nothing more; nobody knows what of the last write is there.
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

    /// The server, when it has started.
    fn server(&self) -> Option<Server> {
        let running = self.running.as_ref()?;
        locked(&running.started).as_ref().and_then(|started| started.as_ref().ok().cloned())
    }

    /// Looks at the server, when it has started, at its own time.
    pub(super) fn look<R>(&self, look: impl FnOnce(&Server) -> R) -> Option<R> {
        let server = self.server()?;
        // Without it, what the server tells of times would be measured by the system's clock.
        let _context = self.running.as_ref()?.runtime.enter();
        Some(look(&server))
    }

    pub(super) fn status(&self) -> Option<Status> {
        self.look(|server| server.node().status())
    }

    /// Why it did not start, or has ended itself.
    pub(super) fn ended(&self) -> Option<String> {
        let running = self.running.as_ref()?;
        let refused = |started: &Result<Server, StartError>| started.as_ref().err().map(ToString::to_string);
        let refused = locked(&running.started).as_ref().and_then(refused);
        refused.or_else(|| locked(&running.fatal).clone())
    }

    /// Ends its process at once. With its power goes what its disk had not synced.
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
            // One that has not started yet has nothing to finish.
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

    /// What came of it, once something has.
    pub(super) fn stopped(&self, now: u64) -> Option<Stopped> {
        let stopping = self.running.as_ref()?.stopping.as_ref()?;
        if stopping.has_stopped.load(Ordering::Relaxed) {
            return Some(Stopped::Back(stopping.back_ms));
        }
        (now > stopping.since + STOP_MS_MAX && !self.is_paused).then_some(Stopped::Never)
    }

    /// Syncs take up to so many milliseconds, or as long as on a disk that is well.
    pub(super) fn slow_disk(&mut self, ms: Option<u64>) {
        self.storage.slow(sync_ms_max(ms));
        self.is_disk_slow = ms.is_some();
    }

    /// Whether it serves, and nothing is done to it.
    pub(super) fn is_well(&self) -> bool {
        let is_disturbed = self.is_paused || self.is_disk_slow || self.is_stopping() || self.was_rolled_back;
        self.is_running() && !is_disturbed && self.ended().is_none()
    }

    /// A copy of all that it keeps.
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

    /// Has it start with that copy.
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

    /// Lets it run for as long as its clock says that a millisecond is.
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

    /// Ends a pause: all that is due by now is due at once.
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

    /// Has it do something beside its own.
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
