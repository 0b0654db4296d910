//! What a node takes from the machine that it runs on: its network, its files, its wall clock, threads that
//! may block, and its own termination. Either the system's, or a simulated one (`simulation/`), which a seed
//! determines.
//!
//! Monotonic time is not here: everything takes it from tokio, whose clock a simulation controls.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

#[cfg(feature = "simulation")]
use crate::simulation::Storage;
use crate::{
    NodeConfig, fatal,
    log::{Log, LogConfig, LogError},
    net::transport::{Tcp, Transport},
    pages::{self, Aside, PageStore, PagesError},
    space::{self, Space},
};

/// Microseconds since the Unix epoch, by a clock that may be wrong and may jump.
pub(crate) type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Where a node runs. Cheap to clone.
#[derive(Clone)]
pub struct Platform {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) wall: WallClock,
    pub(crate) fatal: fatal::Handler,
    pub(crate) contradiction: fatal::Handler,
    /// Room on the disk of the node that runs here.
    pub(crate) space: Arc<Space>,
    /// None for the system's.
    #[cfg(feature = "simulation")]
    pub(crate) storage: Option<Storage>,
}

impl Platform {
    /// The operating system, with TCP.
    pub fn system() -> Platform {
        Platform::over(Arc::new(Tcp))
    }

    /// The operating system, with another network.
    pub fn over(transport: Arc<dyn Transport>) -> Platform {
        Platform {
            transport,
            wall: Arc::new(system_wall_us),
            fatal: fatal::handler(),
            contradiction: fatal::contradiction(),
            space: space::unknown(),
            #[cfg(feature = "simulation")]
            storage: None,
        }
    }

    /// The same platform, with the room of a node's disk.
    pub(crate) fn with_space_of(self, config: &NodeConfig) -> Platform {
        #[cfg(feature = "simulation")]
        if self.storage.is_some() {
            return self;
        }
        Platform { space: Arc::new(Space::of(config)), ..self }
    }

    /// Runs what may block.
    pub(crate) async fn block<R: Send + 'static>(
        &self,
        run: impl FnOnce() -> R + Send + 'static,
    ) -> io::Result<R> {
        #[cfg(feature = "simulation")]
        if self.storage.is_some() {
            return Ok(run());
        }
        tokio::task::spawn_blocking(run).await.map_err(io::Error::other)
    }

    /// Opens the log in its directory.
    pub(crate) async fn open_log(&self, config: LogConfig) -> io::Result<Result<Log, LogError>> {
        let fatal = self.fatal.clone();
        #[cfg(feature = "simulation")]
        if let Some(storage) = &self.storage {
            return Ok(Log::open_on(storage.log(), config, fatal));
        }
        self.block(move || Log::open(config, fatal)).await
    }

    /// Opens a page store in its directory.
    pub(crate) async fn open_pages(&self, dir: PathBuf, cache_bytes: usize) -> Result<PageStore, PagesError> {
        #[cfg(feature = "simulation")]
        if let Some(storage) = &self.storage {
            return Ok(storage.open_pages(dir));
        }
        let (fatal, space) = (self.fatal.clone(), self.space.clone());
        let opened = self.block(move || PageStore::open_in(&dir, cache_bytes, fatal, space)).await;
        opened.unwrap_or_else(|error| Err(PagesError::Failed(error.to_string())))
    }

    /// Puts the closed page store `staged` in the place of the closed one at `live`.
    pub(crate) async fn replace_pages(&self, live: PathBuf, staged: PathBuf) -> io::Result<()> {
        #[cfg(feature = "simulation")]
        if let Some(storage) = &self.storage {
            storage.replace_pages(&live, &staged);
            return Ok(());
        }
        self.block(move || pages::replace(&live, &staged)).await?
    }

    /// Whether there is a page store to open.
    pub(crate) fn has_pages(&self, dir: &Path) -> io::Result<bool> {
        #[cfg(feature = "simulation")]
        if self.storage.is_some() {
            return Ok(true);
        }
        PageStore::is_there(dir)
    }

    /// Moves a page store that is not to be used out of the way; returns its new place.
    pub(crate) fn set_pages_aside(&self, dir: &Path, aside: Aside) -> io::Result<PathBuf> {
        #[cfg(feature = "simulation")]
        if let Some(storage) = &self.storage {
            storage.remove_pages(dir);
            return Ok(dir.to_owned());
        }
        pages::set_aside(dir, aside)
    }

    /// The page stores that were set aside as unreadable, the newest first.
    pub(crate) fn unreadable_pages(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        #[cfg(feature = "simulation")]
        if self.storage.is_some() {
            return Ok(Vec::new());
        }
        pages::unreadable(dir)
    }

    /// Puts a page store that was set aside back in its place, which must be free.
    pub(crate) fn put_pages_back(&self, aside: &Path, dir: &Path) -> io::Result<()> {
        pages::put_back(aside, dir)
    }

    /// Removes a closed page store, if there is one.
    pub(crate) async fn remove_pages(&self, dir: &Path) -> io::Result<()> {
        #[cfg(feature = "simulation")]
        if let Some(storage) = &self.storage {
            storage.remove_pages(dir);
            return Ok(());
        }
        match tokio::fs::remove_dir_all(dir).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

fn system_wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
