//! The writer: the only thread that writes to segments. Takes a batch, writes it as one frame, syncs, then
//! tells all who wait, in order.
//!
//! The first failure is final: the queue refuses everything from then on, nothing more is reported as
//! durable, and the fatal handler is called, which in a node ends the process. A second fsync after a failed
//! one may succeed without having written anything.
//!
//! A full disk is not a failure as long as nothing was synced, nor is a lack of descriptors: what found no
//! space is written again when there is some, the same bytes at the same place.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use super::{
    Fatal, Shared,
    disk::DiskFile,
    frame::{self, FRAME_HEADER_BYTES, Format, GroupState, Kind},
    queue::{Batch, Change},
    segment::{self, Retired, segment_name},
};
use crate::{
    codec,
    machine::GroupId,
    safeguard::{self, Safeguard},
    space::{is_full, passes},
};

/// Where there is no room for a whole segment, one of this size is used, unless a batch is larger.
const SMALL_SEGMENT_BYTES: u64 = 1 << 20;

/// What the writer and its watchers count.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) fsyncs: AtomicU64,
    pub(super) fsync_us_total: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) segments: AtomicU64,
    /// Nanoseconds from `Shared::started` to the beginning of the write under way, plus one; 0 for none.
    pub(super) write_since_ns: AtomicU64,
}

/// A segment as the writer knows it.
pub(super) struct Segment {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
    /// The highest index that each group has in it.
    pub(super) last_indexes: HashMap<GroupId, u64>,
}

/// The writer's state.
///
/// Invariants:
/// - Segment numbers and batch numbers have no gaps; a segment's frames follow one another without gaps from
///   its beginning.
/// - Every segment begins with a frame of all groups' states.
/// - A segment is retired only when durable purges cover all its entries, oldest first.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) fatal: Fatal,
    /// All segments, by number. The last is the one that is written to.
    pub(super) segments: BTreeMap<u64, Segment>,
    /// Where the next frame goes in the last segment.
    pub(super) offset: u64,
    /// The next frame's batch number.
    pub(super) batch: u64,
    /// The highest durable batch.
    pub(super) synced: u64,
    /// Each group's state after the last batch written.
    pub(super) states: BTreeMap<GroupId, GroupState>,
    /// The newest segment according to its marker.
    pub(super) marked: Option<u64>,
    /// The format of new frames.
    pub(super) format: Format,
    /// Whether the last segment is of another format, so that nothing more is written to it.
    pub(super) must_roll: bool,
}

impl Writer {
    /// Writes batches until the queue is closed and empty, or something fails.
    pub(super) fn run(mut self) {
        let result = self.retire_purged();
        let result = result.and_then(|()| {
            while let Some(mut batch) = self.shared.queue.next() {
                let frame_offset = self.write(&mut batch)?;
                self.settle(batch, frame_offset)?;
            }
            Ok(())
        });
        self.end(result);
    }

    /// As `run`, as a task on a simulated disk: time passes between a write and its sync.
    pub(super) async fn run_simulated(mut self) {
        let mut result = self.retire_purged();
        while result.is_ok()
            && let Some(mut batch) = self.shared.queue.next_simulated().await
        {
            let written = self.write(&mut batch);
            let sync_takes = tokio::time::sleep(self.shared.disk.simulated_sync().unwrap_or_default());
            if safeguard::is_off(Safeguard::SyncBeforeAcknowledgement) {
                result = written.map(|frame_offset| {
                    self.announce(batch, frame_offset);
                });
                sync_takes.await;
                result = result.and_then(|()| self.sync());
            } else {
                sync_takes.await;
                result = written.and_then(|frame_offset| self.settle(batch, frame_offset));
            }
            result = result.and_then(|()| self.shared.spares.remove_retired());
        }
        self.end(result);
    }

    fn end(self, result: io::Result<()>) {
        let Err(error) = result else { return };
        self.shared.queue.fail(error.to_string());
        if (is_full(&error) || passes(&error))
            && (self.shared.queue.is_closed() || self.shared.config.space.is_over())
        {
            // Nobody who waits is told anything, and nothing is damaged: a torn frame was never acknowledged.
            tracing::warn!(%error, "the log is closed while it waits; what was to be written at last is not");
            return;
        }
        (self.fatal)(format!("cannot write the log: {error}"));
    }

    /// Performs a write of which nothing was synced, as soon as there is space for it.
    fn patiently<T>(&self, bytes: u64, write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let shared = &*self.shared;
        shared.config.space.patiently(bytes, || shared.queue.is_closed(), write)
    }

    /// Writes a batch's frame; returns its offset.
    fn write(&mut self, batch: &mut Batch) -> io::Result<u64> {
        let since_ns = self.shared.started.elapsed().as_nanos() as u64;
        self.shared.counters.write_since_ns.store(since_ns + 1, Ordering::Relaxed);
        self.make_room(batch.bytes.len() as u64)?;
        let frame_offset = self.offset;
        self.write_frame(&mut batch.bytes)?;
        Ok(frame_offset)
    }

    /// Makes a written batch durable, and tells those who wait.
    fn settle(&mut self, mut batch: Batch, frame_offset: u64) -> io::Result<()> {
        self.sync()?;
        self.shared.counters.write_since_ns.store(0, Ordering::Relaxed);
        self.shared.queue.recycle(std::mem::take(&mut batch.bytes));
        if self.announce(batch, frame_offset) { self.retire_purged() } else { Ok(()) }
    }

    /// Begins a new segment when a frame of `bytes` does not fit the last one.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        if let Some(last) = self.segments.values().next_back()
            && self.offset + bytes <= last.bytes
            && !self.must_roll
        {
            return Ok(());
        }
        let mut states = Vec::new();
        for (group, state) in &self.states {
            state.put(&mut states, *group);
        }
        let head_bytes = FRAME_HEADER_BYTES + frame::SIZE_RECORD_BYTES + states.len();
        let number = self.segments.keys().next_back().map_or(1, |last| last + 1);
        let created = self.create_segment(number, head_bytes as u64 + bytes)?;
        let mut head = Vec::with_capacity(head_bytes);
        head.resize(FRAME_HEADER_BYTES, 0);
        frame::put_record(&mut head, 0, Kind::Size, 0, 0, |out| codec::put_u64(out, created.bytes));
        head.append(&mut states);
        if number > 1 {
            let disk = &*self.shared.disk;
            self.patiently(0, || segment::mark_newest(disk, self.marked, number))?;
            self.marked = Some(number);
        }
        self.shared.files.write().insert(number, created.file.clone());
        self.segments.insert(number, created);
        self.shared.counters.segments.store(self.segments.len() as u64, Ordering::Relaxed);
        self.offset = 0;
        self.write_frame(&mut head)?;
        if std::mem::take(&mut self.must_roll) {
            // A recovery that finds the first segment of a new format without a whole head must be sure that
            // no content follows it: content could be taken for frames of the old format.
            self.sync()?;
        }
        Ok(())
    }

    /// A segment that reads as zeros, its name durable: a spare, or a fresh file when there is none or it
    /// would be too small.
    fn create_segment(&self, number: u64, bytes_min: u64) -> io::Result<Segment> {
        let shared = &*self.shared;
        let name = segment_name(number);
        let fits = bytes_min <= shared.config.segment_bytes;
        let spare = if fits { shared.spares.take() } else { None };
        let (file, bytes) = match spare {
            Some(spare) => {
                self.patiently(0, || shared.disk.rename(&spare.name, &name))?;
                (spare.file, shared.config.segment_bytes)
            }
            None => self.create_file(&name, bytes_min)?,
        };
        shared.disk.sync_dir()?;
        Ok(Segment { file, bytes, last_indexes: HashMap::new() })
    }

    /// A fresh file of at least `bytes_min`, and its size.
    fn create_file(&self, name: &str, bytes_min: u64) -> io::Result<(Arc<dyn DiskFile>, u64)> {
        let (disk, whole) = (&*self.shared.disk, bytes_min.max(self.shared.config.segment_bytes));
        match disk.create(name, whole) {
            Err(error) if is_full(&error) => {
                let small = bytes_min.max(SMALL_SEGMENT_BYTES.min(whole));
                Ok((self.patiently(small, || disk.create(name, small))?, small))
            }
            Err(error) if passes(&error) => Ok((self.patiently(0, || disk.create(name, whole))?, whole)),
            created => Ok((created?, whole)),
        }
    }

    fn write_frame(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let (number, segment) = self.segments.iter().next_back().expect("make_room leaves a segment");
        frame::seal(bytes, self.format, *number, self.batch, self.synced);
        self.patiently(bytes.len() as u64, || segment.file.write_at(bytes, self.offset))?;
        self.offset += bytes.len() as u64;
        self.batch += 1;
        self.shared.counters.bytes_written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let start = Instant::now();
        let segment = self.segments.values().next_back().expect("make_room leaves a segment");
        segment.file.sync()?;
        self.synced = self.batch - 1;
        let counters = &self.shared.counters;
        counters.fsyncs.fetch_add(1, Ordering::Relaxed);
        counters.fsync_us_total.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Applies a durable batch's changes to the states, and tells those who wait. True if one was a purge.
    fn announce(&mut self, batch: Batch, frame_offset: u64) -> bool {
        let shared = self.shared.clone();
        let (number, segment) = self.segments.iter_mut().next_back().expect("make_room leaves a segment");
        let mut entries = batch.entries.into_iter();
        let mut purged = false;
        for change in batch.changes {
            match change {
                Change::Append { group, first, count } => {
                    let mut log = group.log.lock();
                    for (index, entry) in (first..first + count).zip(&mut entries) {
                        let offset = frame_offset + u64::from(entry.offset);
                        let offset = u32::try_from(offset).expect("a segment is below 4 GiB");
                        let number = u32::try_from(*number).expect("segment numbers stay below 4 Gi");
                        log.place(index, entry.term, number, offset);
                    }
                    log.evict(&shared.cache_used, shared.config.cache_bytes);
                    drop(log);
                    let last = first + count - 1;
                    self.states.entry(group.id).or_default().last_index = Some(last);
                    let highest = segment.last_indexes.entry(group.id).or_default();
                    *highest = last.max(*highest);
                }
                Change::Flushed(done) => done.io_completed(Ok(())),
                Change::Vote { group, vote, done } => {
                    self.states.entry(group.id).or_default().vote = Some(vote);
                    group.log.lock().durable_vote = Some(vote);
                    // The waiter may be gone; the vote is durable all the same.
                    let _ = done.send(());
                }
                Change::TruncateAfter { group, last } => {
                    self.states.entry(group.id).or_default().truncate_after(last);
                }
                Change::Purge { group, upto } => {
                    self.states.entry(group.id).or_default().purge(upto);
                    purged = true;
                }
                Change::Commit { group, committed } => {
                    self.states.entry(group.id).or_default().committed = committed;
                }
            }
        }
        shared.evict_all();
        purged
    }

    /// Retires the oldest segments while durable purges cover them.
    fn retire_purged(&mut self) -> io::Result<()> {
        while self.segments.len() > 1 {
            let Some(oldest) = self.segments.first_entry() else { break };
            let is_purged = oldest.get().last_indexes.iter().all(|(group, last)| {
                let purged = self.states.get(group).and_then(|state| state.purged);
                purged.is_some_and(|purged| purged.index >= *last)
            });
            if !is_purged {
                break;
            }
            let (number, segment) = oldest.remove_entry();
            self.shared.files.write().remove(&number);
            self.shared.counters.segments.store(self.segments.len() as u64, Ordering::Relaxed);
            let name = format!("retired-{number}.tmp");
            self.patiently(0, || self.shared.disk.rename(&segment_name(number), &name))?;
            // One at a time, durably: a crash must never leave a gap between segments.
            self.shared.disk.sync_dir()?;
            self.shared.spares.retire(Retired { name, file: segment.file, bytes: segment.bytes });
        }
        Ok(())
    }
}
