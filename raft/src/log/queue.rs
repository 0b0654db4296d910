//! The one queue between the groups and the writer. Records are encoded straight into the batch that will be
//! written, so that nothing is copied twice and no buffer is allocated in the steady state.
//!
//! Order is essential: a caller holds its group's lock from its change in memory to its push here, so that
//! the log on disk matches the log in memory.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use openraft::storage::IOFlushed;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

use super::{frame::FRAME_HEADER_BYTES, group::Group};
use crate::types::{LogId, TypeConfig, Vote};

/// A batch that has reached this size takes no further record.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// How long records that nobody waits for may wait for a batch to join.
const LAZY_WAIT: Duration = Duration::from_millis(100);

/// How many written batches' buffers are kept.
const FREE_BUFFERS_MAX: usize = 3;

/// What one write makes durable.
pub(super) struct Batch {
    /// Space for the frame's header, then records.
    pub(super) bytes: Vec<u8>,
    /// The entries among the records, in order.
    pub(super) entries: Vec<BatchEntry>,
    /// The effects of the records, in order.
    pub(super) changes: Vec<Change>,
    /// Whether somebody waits.
    pub(super) urgent: bool,
}

/// An entry's record in a batch.
pub(super) struct BatchEntry {
    pub(super) term: u64,
    /// Counted from the frame's beginning.
    pub(super) offset: u32,
}

/// An effect of a batch's records.
pub(super) enum Change {
    /// The next `count` of the batch's entries, beginning with index `first`.
    Append { group: Arc<Group>, first: u64, count: u64 },
    /// Entries are now durable.
    Flushed(IOFlushed<TypeConfig>),
    /// A vote, and who waits for it.
    Vote { group: Arc<Group>, vote: Vote, done: oneshot::Sender<()> },
    /// A truncation.
    TruncateAfter { group: Arc<Group>, last: Option<LogId> },
    /// A purge.
    Purge { group: Arc<Group>, upto: LogId },
    /// A commit mark.
    Commit { group: Arc<Group>, committed: Option<LogId> },
}

/// The queue.
pub(super) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
    /// The same, for a writer that is a task.
    news: Notify,
}

#[derive(Default)]
struct State {
    batches: VecDeque<Batch>,
    free: Vec<Vec<u8>>,
    closed: bool,
    failure: Option<String>,
}

/// The queue, locked for pushing.
pub(super) struct Pusher<'a> {
    state: MutexGuard<'a, State>,
    queue: &'a Queue,
}

impl Queue {
    pub(super) fn new() -> Queue {
        Queue { state: Mutex::default(), ready: Condvar::new(), news: Notify::new() }
    }

    /// Locks the queue for pushing, or says why nothing can be written any more.
    pub(super) fn pusher(&self) -> io::Result<Pusher<'_>> {
        let state = self.state.lock();
        if let Some(failure) = &state.failure {
            return Err(io::Error::other(format!("the log has failed: {failure}")));
        }
        if state.closed {
            return Err(io::Error::other("the log is closed"));
        }
        Ok(Pusher { state, queue: self })
    }

    /// The next batch to write. Waits for one; records that nobody waits for are held back a moment for
    /// others to join. None when the queue is closed and empty.
    pub(super) fn next(&self) -> Option<Batch> {
        let mut state = self.state.lock();
        let mut lazy_deadline = None;
        loop {
            match state.due() {
                Due::Now => return state.batches.pop_front(),
                Due::Never => return None,
                Due::Empty => self.ready.wait(&mut state),
                Due::Soon => {
                    let deadline = *lazy_deadline.get_or_insert_with(|| Instant::now() + LAZY_WAIT);
                    if self.ready.wait_until(&mut state, deadline).timed_out() {
                        return state.batches.pop_front();
                    }
                }
            }
        }
    }

    /// As `next`, for a writer that is a task and runs on tokio's time.
    pub(super) async fn next_simulated(&self) -> Option<Batch> {
        let mut lazy_deadline = None;
        loop {
            let due = self.state.lock().due();
            match due {
                Due::Now => return self.state.lock().batches.pop_front(),
                Due::Never => return None,
                Due::Empty => self.news.notified().await,
                Due::Soon => {
                    let now = tokio::time::Instant::now();
                    let deadline = *lazy_deadline.get_or_insert(now + LAZY_WAIT);
                    if tokio::time::timeout_at(deadline, self.news.notified()).await.is_err() {
                        return self.state.lock().batches.pop_front();
                    }
                }
            }
        }
    }

    /// Returns a written batch's buffer for reuse.
    pub(super) fn recycle(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut state = self.state.lock();
        if state.free.len() < FREE_BUFFERS_MAX && buffer.capacity() <= 2 * BATCH_BYTES_MAX {
            state.free.push(buffer);
        }
    }

    /// Takes nothing more; what is queued is still written.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.ready.notify_all();
        self.news.notify_one();
    }

    /// Whether nothing more is taken.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Takes nothing more, and drops what is queued: nobody is told that it is durable.
    pub(super) fn fail(&self, failure: String) {
        let mut state = self.state.lock();
        state.failure.get_or_insert(failure);
        let forgotten = std::mem::take(&mut state.batches);
        drop(state);
        drop(forgotten);
    }
}

/// Whether there is something to write.
enum Due {
    /// Somebody waits for it.
    Now,
    /// Nobody waits, so it may wait for more.
    Soon,
    Empty,
    /// Nothing will come any more.
    Never,
}

impl State {
    fn due(&self) -> Due {
        match self.batches.front() {
            None if self.closed => Due::Never,
            None => Due::Empty,
            Some(batch) if batch.urgent || self.batches.len() > 1 || self.closed => Due::Now,
            Some(_) => Due::Soon,
        }
    }
}

impl Pusher<'_> {
    /// The batch that takes the next record. Records that are pushed together may go to several batches.
    pub(super) fn batch(&mut self) -> &mut Batch {
        if self.state.batches.back().is_none_or(|batch| batch.bytes.len() >= BATCH_BYTES_MAX) {
            let mut bytes = self.state.free.pop().unwrap_or_default();
            bytes.resize(FRAME_HEADER_BYTES, 0);
            self.state.batches.push_back(Batch {
                bytes,
                entries: Vec::new(),
                changes: Vec::new(),
                urgent: false,
            });
        }
        self.state.batches.back_mut().expect("one was pushed if there was none")
    }
}

impl Drop for Pusher<'_> {
    fn drop(&mut self) {
        if !self.state.batches.is_empty() {
            self.queue.ready.notify_one();
            self.queue.news.notify_one();
        }
    }
}
