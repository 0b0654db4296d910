//! Segment files: their names, and the thread that prepares spare ones and recycles retired ones.
//!
//! A spare is full of written, synced zeros: writing into it changes no metadata, so that fdatasync costs a
//! fraction of what it costs on a growing file. A file has a spare's name only once its zeros are durable;
//! files whose names end in `.tmp` mean nothing and are removed when the log is opened.
//!
//! Nothing here is needed for correctness. If preparing fails, it stops with a warning, and the writer
//! creates its segments itself. Where the disk has little room, nothing is prepared, and at most one segment
//! is recycled.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{
    LogConfig,
    disk::{Disk, DiskFile},
};
use crate::space::{Space, is_full, passes};

/// How much is zeroed between two syncs, so that the log's own fdatasync never waits for a whole segment.
const ZERO_CHUNK_BYTES: u64 = 1 << 20;

/// Zeroing pauses this many times as long as each chunk took: the disk belongs to the log.
const ZERO_REST: u32 = 3;

/// How often to check whether there is room again.
const ROOM_LOOK: Duration = Duration::from_secs(1);

/// The file name of a segment.
pub(super) fn segment_name(segment: u64) -> String {
    format!("{segment:016}.log")
}

/// The segment of a file name.
pub(super) fn segment_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".log")?.parse().ok()?;
    (segment_name(number) == name).then_some(number)
}

/// The name of the empty file that tells which segment is the newest, as the loss of that one leaves no gap.
pub(super) fn marker_name(newest: u64) -> String {
    format!("newest-{newest}")
}

/// The newest segment according to the name of a marker.
pub(super) fn newest_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix("newest-")?.parse().ok()?;
    (marker_name(number) == name).then_some(number)
}

/// The name of the empty file that tells which salt the frames of this directory have.
pub(super) fn salt_name(salt: u64) -> String {
    format!("salt-{salt:016x}")
}

/// The salt according to the name of that file.
pub(super) fn salt_of(name: &str) -> Option<u64> {
    let salt = u64::from_str_radix(name.strip_prefix("salt-")?, 16).ok()?;
    (salt_name(salt) == name).then_some(salt)
}

/// Moves the marker. When that becomes durable does not matter, as long as it is not ahead of the segments'
/// names.
pub(super) fn mark_newest(disk: &dyn Disk, before: Option<u64>, newest: u64) -> io::Result<()> {
    match before {
        Some(before) if before == newest => Ok(()),
        Some(before) => disk.rename(&marker_name(before), &marker_name(newest)),
        None => disk.create(&marker_name(newest), 1).map(drop),
    }
}

/// Whether a file is a prepared spare.
pub(super) fn is_spare(name: &str) -> bool {
    name.starts_with("spare-") && !is_temporary(name)
}

/// Whether a file is meaningless after a restart.
pub(super) fn is_temporary(name: &str) -> bool {
    name.ends_with(".tmp")
}

/// A file of durable zeros.
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) file: Arc<dyn DiskFile>,
}

/// A segment that is no longer needed, under a temporary name.
pub(super) struct Retired {
    pub(super) name: String,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
}

/// The spare segments.
pub(super) struct Spares {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    spares_max: usize,
    space: Arc<Space>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ready: Vec<Spare>,
    retired: VecDeque<Retired>,
    names_used: u64,
    stopped: bool,
}

enum Job {
    Create { name: String },
    Recycle { from: Retired, name: String },
    Remove(Retired),
}

impl Spares {
    /// Starts with the spares found, all of the size of a segment.
    pub(super) fn new(disk: Arc<dyn Disk>, config: &LogConfig, ready: Vec<Spare>) -> Spares {
        let (segment_bytes, spares_max) = (config.segment_bytes, config.spare_segments);
        let space = config.space.clone();
        let numbers = ready.iter().filter_map(|spare| spare.name.strip_prefix("spare-")?.parse::<u64>().ok());
        let names_used = numbers.max().unwrap_or(0);
        let state = Mutex::new(State { ready, names_used, ..State::default() });
        Spares { disk, segment_bytes, spares_max, space, state, changed: Condvar::new() }
    }

    /// Takes a spare if one is ready; never waits. Another is prepared.
    pub(super) fn take(&self) -> Option<Spare> {
        let spare = self.state.lock().ready.pop();
        self.changed.notify_one();
        spare
    }

    /// Hands over a retired segment, to be recycled or removed.
    pub(super) fn retire(&self, retired: Retired) {
        self.state.lock().retired.push_back(retired);
        self.changed.notify_one();
    }

    /// Ends `run` after its present job.
    pub(super) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Prepares and recycles until `stop`, or until the disk refuses.
    pub(super) fn run(&self) {
        while let Some(job) = self.next_job() {
            match self.perform(job) {
                // What was retired must still be removed.
                Err(error) if is_full(&error) || passes(&error) => self.rest(),
                Err(error) => {
                    tracing::warn!(%error, "cannot prepare log segments; they will be created when they are needed");
                    return;
                }
                Ok(()) => {}
            }
        }
    }

    /// Removes retired segments where nothing is recycled.
    pub(super) fn remove_retired(&self) -> io::Result<()> {
        let retired = std::mem::take(&mut self.state.lock().retired);
        retired.into_iter().try_for_each(|retired| self.perform(Job::Remove(retired)))
    }

    fn rest(&self) {
        let mut state = self.state.lock();
        if !state.stopped {
            self.changed.wait_for(&mut state, ROOM_LOOK);
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            let spares = state.ready.len();
            let is_tight = self.space.is_tight() || self.space.growth() < 2 * self.segment_bytes;
            let spares_max = if is_tight { self.spares_max.min(1) } else { self.spares_max };
            if let Some(retired) = state.retired.pop_front() {
                // A reader that still holds the file would see it change.
                let is_shared = Arc::strong_count(&retired.file) > 1;
                if is_shared || retired.bytes != self.segment_bytes || spares >= spares_max {
                    return Some(Job::Remove(retired));
                }
                return Some(Job::Recycle { from: retired, name: state.next_name() });
            }
            if spares > 0 || spares_max == 0 {
                self.changed.wait(&mut state);
            } else if is_tight {
                self.changed.wait_for(&mut state, ROOM_LOOK);
            } else {
                return Some(Job::Create { name: state.next_name() });
            }
        }
    }

    fn perform(&self, job: Job) -> io::Result<()> {
        let (temporary, file, name) = match job {
            Job::Remove(retired) => return self.disk.remove(&retired.name),
            Job::Recycle { from, name } => (from.name, from.file, name),
            Job::Create { name } => {
                let temporary = format!("{name}.tmp");
                let file = self.disk.create(&temporary, self.segment_bytes)?;
                (temporary, file, name)
            }
        };
        match self.zero(&*file) {
            Ok(true) => {}
            Ok(false) => return self.disk.remove(&temporary),
            Err(error) => {
                // Useless, and it takes up space.
                let _ = self.disk.remove(&temporary);
                return Err(error);
            }
        }
        self.disk.rename(&temporary, &name)?;
        self.state.lock().ready.push(Spare { name, file });
        Ok(())
    }

    /// Writes and syncs zeros. False if it was stopped before the end.
    fn zero(&self, file: &dyn DiskFile) -> io::Result<bool> {
        let zeros = vec![0; ZERO_CHUNK_BYTES.min(self.segment_bytes) as usize];
        let mut offset = 0;
        while offset < self.segment_bytes {
            if self.state.lock().stopped {
                return Ok(false);
            }
            let bytes = ZERO_CHUNK_BYTES.min(self.segment_bytes - offset);
            let started = Instant::now();
            file.write_at(&zeros[..bytes as usize], offset)?;
            file.sync()?;
            offset += bytes;
            let mut state = self.state.lock();
            if !state.stopped {
                self.changed.wait_for(&mut state, ZERO_REST * started.elapsed());
            }
        }
        Ok(true)
    }
}

impl State {
    fn next_name(&mut self) -> String {
        self.names_used += 1;
        format!("spare-{}", self.names_used)
    }
}
