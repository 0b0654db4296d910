//! A simulated node: a whole server on a runtime of its own, whose time the world moves. Ending it drops the runtime:
//! nothing of it runs to an end, as nothing of a killed process does.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
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
    simulation::{Endpoint, Storage},
};
use tokio::{runtime::Runtime, time::Instant};

use super::network::{Port, SharedHub, address};

/// Seconds from the Unix epoch to the beginning of all simulations.
const EPOCH_S: u64 = 1_700_000_000;

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
    /// Its log is damaged: it does not start any more.
    pub(super) is_damaged: bool,
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
    pub(super) fn new(id: u64, dir: PathBuf, first: &[u64], chance: &mut fastrand::Rng) -> Node {
        let peers: Vec<String> = first.iter().map(|id| format!("{id}={}", address(*id))).collect();
        Node {
            id,
            storage: Storage::new(chance.u64(..)),
            dir,
            running: None,
            is_paused: false,
            rate: 1.0,
            wall_offset_us: Arc::default(),
            // openraft draws from the system's chance between two bounds: they are next to each other here.
            election_timeout_ms: chance.u64(350..600),
            bootstrap: (!first.is_empty()).then(|| peers.join(",")),
            is_damaged: false,
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
        // Below what an operator may say: checkpoints, purges, segments and snapshots come every few entries.
        config.node.checkpoint_log_bytes = 4 << 10;
        config.node.log_entries_kept = 20;
        config.node.log_segment_bytes = 16 << 10;
        config.node.log_cache_bytes = 2 << 10;
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
        let result = started.clone();
        runtime.spawn(async move {
            let server = Server::start(platform, &config).await;
            *locked(&result) = Some(server);
        });
        let since = runtime.block_on(async { Instant::now() });
        self.running = Some(Running { runtime, since, age_ms: 0.0, started, fatal });
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
    pub(super) fn ask<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(Server) -> F) {
        if let (Some(running), Some(server)) = (&self.running, self.server()) {
            running.runtime.spawn(task(server));
        }
    }

    pub(super) fn move_wall_clock(&self, by_us: i64) {
        self.wall_offset_us.fetch_add(by_us, Ordering::Relaxed);
    }
}
