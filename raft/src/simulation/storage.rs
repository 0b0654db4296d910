//! A node's disk. All that it does by chance comes from one seed.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    log::{Disk, faulty::FaultyDisk},
    pages::{
        PageStore,
        memory::{MemoryPages, PagesCopy},
    },
};

/// The longest sync of a healthy disk, in milliseconds.
pub const SYNC_MS_MAX: u64 = 8;

/// A disk for the log and the pages of one node. Clones are the same disk.
#[derive(Clone)]
pub struct Storage {
    log: Arc<Mutex<FaultyDisk>>,
    pages: Arc<MemoryPages>,
    chance: Arc<Mutex<fastrand::Rng>>,
    /// The longest sync, in milliseconds.
    sync_ms_max: Arc<AtomicU64>,
}

/// What was on a disk at a moment.
pub struct DiskCopy {
    log: BTreeMap<String, Vec<u8>>,
    pages: PagesCopy,
}

impl Storage {
    /// An empty disk.
    pub fn new(seed: u64) -> Storage {
        let chance = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
        let sync_ms_max = Arc::new(AtomicU64::new(SYNC_MS_MAX));
        let (of_sync, longest) = (chance.clone(), sync_ms_max.clone());
        let takes = move || Duration::from_millis(of_sync.lock().u64(..=longest.load(Ordering::Relaxed)));
        let of_commit = takes.clone();
        Storage {
            log: Arc::new(Mutex::new(FaultyDisk::new().paced(Arc::new(takes)))),
            pages: Arc::new(MemoryPages::new(move || 4 * of_commit())),
            chance,
            sync_ms_max,
        }
    }

    /// Syncs take up to this many milliseconds.
    pub fn slow(&self, sync_ms_max: u64) {
        self.sync_ms_max.store(sync_ms_max, Ordering::Relaxed);
    }

    /// The next sync of the log fails, and so do all that follow.
    pub fn fail_syncs(&self) {
        self.log.lock().fail_after_syncs(0);
    }

    /// Writes of the log fail, as on a full disk.
    pub fn fail_writes(&self) {
        self.log.lock().fail_after_writes(0);
    }

    /// Syncs of the log succeed and do nothing: a broken promise that a simulation must find.
    pub fn lie(&self) {
        self.log.lock().lie();
    }

    /// The power fails: of what was not synced any part is lost, and the running node writes nothing more.
    pub fn cut_power(&self) {
        let mut log = self.log.lock();
        let left = log.crash(&mut self.chance.lock());
        *log = left;
    }

    /// Flips one bit of the log of a node that does not run. False if there is no log yet.
    pub fn flip_bit(&self) -> bool {
        self.log.lock().flip(".log", &mut self.chance.lock())
    }

    /// A copy of the disk of a node that does not run.
    pub fn copy(&self) -> DiskCopy {
        DiskCopy { log: self.log.lock().files(), pages: self.pages.copy() }
    }

    /// Puts a copy in the place of all that there is, while the node does not run.
    pub fn put_back(&self, copy: &DiskCopy) {
        let mut log = self.log.lock();
        let older = log.with_files(copy.log.clone());
        *log = older;
        self.pages.put_back(&copy.pages);
    }

    pub(crate) fn log(&self) -> Arc<dyn Disk> {
        Arc::new(self.log.lock().clone())
    }

    pub(crate) fn open_pages(&self, dir: PathBuf) -> PageStore {
        self.pages.open(dir)
    }

    pub(crate) fn replace_pages(&self, live: &Path, staged: &Path) {
        self.pages.replace(live, staged);
    }

    pub(crate) fn remove_pages(&self, dir: &Path) {
        self.pages.remove(dir);
    }
}
