//! The durable log: one per node, shared by all its groups.
//!
//! Everything that Raft must not forget (entries, votes, truncations, purges, commit marks) goes through one
//! queue to one writer thread, which never reorders: one write and one fdatasync for everything that waits.
//! Files: `frame.rs` is the format, `disk.rs` the file layer, `segment.rs` prepares and recycles files,
//! `group.rs` a group's log in memory, `queue.rs` and `writer.rs` the way to the disk, `recovery.rs` the way
//! back, `offline.rs` a read-only inspection, `salvage.rs` the same of a damaged log, `store.rs` openraft's traits.
//!
//! It does not lock its directory: `Node::start` does.

mod disk;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod faulty;
#[cfg(test)]
mod format_tests;
mod frame;
#[cfg(test)]
mod full_disk_tests;
#[cfg(test)]
mod fuzz_tests;
mod group;
#[cfg(test)]
mod kill_tests;
mod offline;
mod queue;
mod recovery;
mod salvage;
mod segment;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::time::Instant;

use self::{
    disk::RealDisk,
    frame::Format,
    group::{Group, GroupLog},
    queue::Queue,
    segment::Spares,
    writer::{Counters, Writer},
};
pub(crate) use self::{
    disk::{Disk, DiskFile},
    offline::{Listed, Listing, listing, look},
    store::LogStore,
};
use crate::{chance, machine::GroupId, space::Space};

/// Called once, when the log or the pages cannot go on. The node's own logs the text and aborts the process.
pub(crate) type Fatal = Arc<dyn Fn(String) + Send + Sync>;

/// Positions in a segment have 32 bits, and a batch may need a larger segment than configured.
const SEGMENT_BYTES_MAX: u64 = 2 << 30;

/// A log's configuration.
#[derive(Clone, Debug)]
pub(crate) struct LogConfig {
    /// The log's own directory. Created when missing.
    pub(crate) dir: PathBuf,
    /// The size of a segment, at most 2 GiB. A larger batch gets a larger segment.
    pub(crate) segment_bytes: u64,
    /// Memory for the newest entries of all groups. Entries on their way to the disk do not count against it.
    pub(crate) cache_bytes: usize,
    /// The most zeroed segments kept ready. With 0 none are prepared, and segments are created when needed.
    pub(crate) spare_segments: usize,
    /// Room on the disk.
    pub(crate) space: Arc<Space>,
}

/// Why a log cannot be opened.
#[derive(Debug, Error)]
pub(crate) enum LogError {
    /// Something that was durable is gone or changed. Nothing was modified.
    #[error("{} is corrupted at offset {offset}: {detail}", file.display())]
    Corrupted {
        /// The segment.
        file: PathBuf,
        /// Where the damage begins, as far as it can be told.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// The operating system refused.
    #[error("cannot {context}: {source}")]
    Io {
        /// What was attempted.
        context: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The log's counters. All but the last two only grow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogStats {
    /// Syncs of segments.
    pub(crate) fsyncs: u64,
    /// The time they took, in microseconds.
    pub(crate) fsync_us_total: u64,
    /// Bytes of frames written.
    pub(crate) bytes_written: u64,
    /// Segments with content.
    pub(crate) segments: u64,
    /// When the write or sync under way began. A watchdog compares it with the clock.
    pub(crate) fsync_in_progress_since: Option<Instant>,
}

/// What the log's threads and stores share.
struct Shared {
    config: LogConfig,
    disk: Arc<dyn Disk>,
    queue: Queue,
    spares: Spares,
    /// Open segments, for readers. A reader looks here under its group's lock.
    files: RwLock<BTreeMap<u64, Arc<dyn DiskFile>>>,
    groups: Mutex<BTreeMap<GroupId, Arc<Group>>>,
    /// Bytes of entries in the caches of all groups.
    cache_used: AtomicUsize,
    counters: Counters,
    started: Instant,
    /// Tasks instead of threads.
    is_simulated: bool,
}

impl Shared {
    /// Shrinks the caches of groups that do not write themselves.
    fn evict_all(&self) {
        if self.cache_used.load(Ordering::Relaxed) <= self.config.cache_bytes {
            return;
        }
        let groups: Vec<Arc<Group>> = self.groups.lock().values().cloned().collect();
        for group in groups {
            group.log.lock().evict(&self.cache_used, self.config.cache_bytes);
        }
    }
}

/// An open log. Closed when dropped.
pub(crate) struct Log {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Log {
    /// Opens a log, or creates it. Blocks while all segments are read. `fatal` is told when a write fails.
    pub(crate) fn open(config: LogConfig, fatal: Fatal) -> Result<Log, LogError> {
        let disk = RealDisk::new(config.dir.clone())
            .map_err(|source| LogError::Io { context: "create the log directory".to_owned(), source })?;
        Log::open_on(Arc::new(disk), config, fatal)
    }

    /// As `open`, on any disk.
    pub(crate) fn open_on(disk: Arc<dyn Disk>, config: LogConfig, fatal: Fatal) -> Result<Log, LogError> {
        if config.segment_bytes == 0 || config.segment_bytes > SEGMENT_BYTES_MAX {
            return Err(LogError::Config(format!("a log segment must have 1 to {SEGMENT_BYTES_MAX} bytes")));
        }
        let recovered = recovery::recover(&*disk, &config)?;
        let salt = recovered.salt.unwrap_or_else(chance::id);
        if !recovered.is_salt_marked {
            // Durable before the first frame with it.
            let marked = disk.create(&segment::salt_name(salt), 1).and_then(|_| disk.sync_dir());
            marked.map_err(|source| LogError::Io { context: "mark the log directory".to_owned(), source })?;
        }
        let format = Format::Two { salt };
        let files: BTreeMap<u64, Arc<dyn DiskFile>> =
            recovered.segments.iter().map(|(number, segment)| (*number, segment.file.clone())).collect();
        let groups = recovered.logs.into_iter();
        let groups = groups.map(|(id, log)| (id, Arc::new(Group::new(id, log)))).collect();
        let spares = Spares::new(disk.clone(), &config, recovered.spares);
        let counters = Counters::default();
        counters.segments.store(files.len() as u64, Ordering::Relaxed);
        let is_simulated = disk.simulated_sync().is_some();
        let shared = Arc::new(Shared {
            config,
            disk,
            queue: Queue::new(),
            spares,
            files: RwLock::new(files),
            groups: Mutex::new(groups),
            cache_used: AtomicUsize::new(0),
            counters,
            started: Instant::now(),
            is_simulated,
        });
        let writer = Writer {
            shared: shared.clone(),
            fatal: fatal.clone(),
            segments: recovered.segments,
            offset: recovered.offset,
            batch: recovered.batch + 1,
            synced: recovered.batch,
            states: recovered.states,
            marked: recovered.marked,
            format,
            must_roll: recovered.last_format.is_some_and(|last| last != format),
        };
        let log = Log { shared: shared.clone(), threads: Mutex::default() };
        if is_simulated {
            tokio::spawn(writer.run_simulated());
            return Ok(log);
        }
        log.spawn("log-writer", move || {
            let queue_owner = writer.shared.clone();
            if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
                queue_owner.queue.fail("the log's writer panicked".to_owned());
                fatal("the log's writer panicked".to_owned());
            }
        })?;
        log.spawn("log-spares", move || shared.spares.run())?;
        Ok(log)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), LogError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = thread.map_err(|source| LogError::Io { context: format!("start {name}"), source })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// One group's log. Any number of handles may exist; one of them appends.
    pub(crate) fn store(&self, group: GroupId) -> LogStore {
        let mut groups = self.shared.groups.lock();
        let group = groups.entry(group).or_insert_with(|| Arc::new(Group::new(group, GroupLog::default())));
        LogStore { shared: self.shared.clone(), group: group.clone() }
    }

    /// The counters at this moment.
    pub(crate) fn stats(&self) -> LogStats {
        let counters = &self.shared.counters;
        let since_ns = counters.write_since_ns.load(Ordering::Relaxed);
        LogStats {
            fsyncs: counters.fsyncs.load(Ordering::Relaxed),
            fsync_us_total: counters.fsync_us_total.load(Ordering::Relaxed),
            bytes_written: counters.bytes_written.load(Ordering::Relaxed),
            segments: counters.segments.load(Ordering::Relaxed),
            fsync_in_progress_since: (since_ns > 0)
                .then(|| self.shared.started + Duration::from_nanos(since_ns - 1)),
        }
    }

    /// Writes what is queued, and stops. Blocks; later appends fail. Reads still work.
    pub(crate) fn close(&self) {
        self.shared.queue.close();
        self.shared.spares.stop();
        for thread in self.threads.lock().drain(..) {
            // A panic of the writer has already been reported to the fatal handler.
            let _ = thread.join();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}
