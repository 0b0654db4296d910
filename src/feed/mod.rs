//! The change feed of this node: what happened to which key, by log index, as far back as the history has
//! room. Fed by the machine after each entry; every node produces the same events under the same indexes,
//! even when it replays its log, so a reader may resume on another node from the last index that it received.
//!
//! Readers have no queues. Each is an index into the one history and a filter, so ten thousand of them cost
//! little, and one that does not read costs no more: it falls behind the history and is told so.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::Notify;

mod filter;
mod ring;
#[cfg(test)]
mod tests;

pub use filter::Filter;
pub use ring::Entry;
use ring::Ring;

use crate::effects::{Effects, Listener, Replaced};

/// The size of the history while the feed is off and there are readers all the same.
const HISTORY_BYTES_WHEN_OFF: usize = 1 << 20;
/// How much a reader scans at once before other tasks run.
const SCANNED_BYTES_MAX: usize = 1 << 20;

/// The limits of the history.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Its size; 0 turns the feed off, but for who observes elections.
    pub history_bytes_max: usize,
    /// Longer values are not kept with their events.
    pub value_bytes_max: usize,
}

/// The history and its readers.
#[derive(Debug)]
pub struct Feed {
    limits: Limits,
    ring: Mutex<Ring>,
    /// Changes with `ring`.
    has_readers: AtomicBool,
}

/// The events after some index are no longer complete in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the history begins after index {oldest}, and what comes after index {last} was asked for")]
pub struct Compacted {
    /// The history is complete after this index: the lowest from which to resume.
    pub oldest: u64,
    /// The index from which the reader wanted to resume.
    pub last: u64,
}

/// The status of the feed.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Status {
    pub readers: usize,
    pub history_bytes: usize,
    pub oldest_index: u64,
    pub last_index: u64,
}

impl Feed {
    /// A feed with an empty history, for an empty state.
    pub fn new(limits: Limits) -> Feed {
        let bytes_max = match limits.history_bytes_max {
            0 => HISTORY_BYTES_WHEN_OFF,
            bytes_max => bytes_max,
        };
        Feed { limits, ring: Mutex::new(Ring::new(bytes_max)), has_readers: AtomicBool::new(false) }
    }

    /// A feed that records nothing.
    pub fn off() -> Feed {
        Feed::new(Limits { history_bytes_max: 0, value_bytes_max: 0 })
    }

    /// Whether there is a history for whoever wants to read the feed.
    pub fn is_on(&self) -> bool {
        self.limits.history_bytes_max > 0
    }

    /// The present status.
    pub fn status(&self) -> Status {
        let ring = self.ring.lock();
        Status {
            readers: ring.readers(),
            history_bytes: ring.bytes(),
            oldest_index: ring.oldest(),
            last_index: ring.last(),
        }
    }

    /// Subscribes to what comes after the index `from`, which need not be applied yet, or after the present.
    /// `wake` is notified when there is something to read, and occasionally otherwise.
    pub fn subscribe(
        self: &Arc<Feed>,
        filter: Filter,
        from: Option<u64>,
        wake: Arc<Notify>,
    ) -> Result<Subscription, Compacted> {
        let filter = Arc::new(filter);
        let (id, told) = {
            let mut ring = self.ring.lock();
            let entered = ring.enter(filter.clone(), from, wake.clone())?;
            self.has_readers.store(true, Relaxed);
            entered
        };
        Ok(Subscription { feed: self.clone(), id, filter, wake, told, seen: told })
    }
}

impl Listener for Feed {
    fn wants_changes(&self) -> Option<usize> {
        (self.is_on() || self.has_readers.load(Relaxed)).then_some(self.limits.value_bytes_max)
    }

    fn applied(&self, effects: &Effects) {
        let mut ring = self.ring.lock();
        match &effects.changes {
            Some(changes) if self.is_on() || ring.readers() > 0 => ring.push(effects.index, changes.bytes()),
            _ => ring.pass(effects.index),
        }
    }

    fn replaced(&self, replaced: &Replaced<'_>) {
        self.ring.lock().restart(replaced.applied);
    }
}

/// A reader's position in the feed.
#[derive(Debug)]
pub struct Subscription {
    feed: Arc<Feed>,
    id: u64,
    filter: Arc<Filter>,
    wake: Arc<Notify>,
    /// The last index that the reader has received.
    told: u64,
    /// It has received everything of interest up to this index.
    seen: u64,
}

/// The result of a search for a reader's next entry.
#[derive(Debug)]
pub enum Found {
    /// The next entry with events for it.
    Entry(Entry),
    /// Nothing so far: there is more to scan.
    NotYet,
    /// Nothing up to the end of the log.
    Nothing,
}

impl Subscription {
    /// The index from which the reader can resume elsewhere: it has received everything up to there, and
    /// nothing after.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// Its filter.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The next entry with events for this reader; None if there is none for now. An error ends the
    /// subscription. Never blocks; a long stretch without such an entry is scanned in pieces, with a wake for
    /// each.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Compacted> {
        match self.find()? {
            Found::Entry(entry) => Ok(Some(entry)),
            Found::Nothing => Ok(None),
            Found::NotYet => {
                self.wake.notify_one();
                Ok(None)
            }
        }
    }

    /// Scans the next piece of the history for an entry with events for this reader. An error ends the
    /// subscription. Never blocks, and wakes nobody.
    pub fn find(&mut self) -> Result<Found, Compacted> {
        let mut scanned = 0;
        while scanned < SCANNED_BYTES_MAX {
            let entry = {
                let mut ring = self.feed.ring.lock();
                let entry = ring.next(self.id);
                let entry = entry.map_err(|oldest| Compacted { oldest, last: self.told })?;
                self.seen = self.seen.max(entry.as_ref().map_or(ring.last(), |entry| entry.index));
                entry
            };
            let Some(entry) = entry else { return Ok(Found::Nothing) };
            if entry.events().any(|event| self.filter.matches(&event)) {
                self.told = entry.index;
                return Ok(Found::Entry(entry));
            }
            scanned += entry.bytes.len();
        }
        Ok(Found::NotYet)
    }

    /// The index up to which the reader has received everything of interest, if that has advanced: reporting
    /// it keeps the reader from falling behind the history while there are no events for it.
    pub fn progress(&mut self) -> Option<u64> {
        (self.seen > self.told).then(|| {
            self.told = self.seen;
            self.told
        })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut ring = self.feed.ring.lock();
        ring.leave(self.id);
        self.feed.has_readers.store(ring.readers() > 0, Relaxed);
    }
}
