//! The change feed of this node: what happened to which key, by log index, for as long back as the history has
//! room. Fed by the machine after each entry; every node makes the same events under the same indexes, also when
//! it replays its log, so a reader may go on at another node from the last index that it was given.
//!
//! Readers have no queues. Each is an index into the one history and a filter, so that ten thousand of them cost
//! little, and one that does not read costs no more: it falls out of the history and is told so.

use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::Notify;

pub mod event;
mod filter;
mod ring;
#[cfg(test)]
mod tests;

pub use event::{Draft, Entry, Event};
pub use filter::Filter;
use ring::Ring;

/// How much a reader looks through at once before others get their turn.
const SCANNED_BYTES_MAX: usize = 1 << 20;

/// What the history may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Its size; 0 turns the feed off.
    pub history_bytes_max: usize,
    /// Longer values are not kept with their events.
    pub value_bytes_max: usize,
}

/// The history and its readers.
#[derive(Debug)]
pub struct Feed {
    limits: Limits,
    ring: Mutex<Ring>,
    /// Reused from entry to entry.
    draft: Mutex<Draft>,
}

/// What happened between two indexes is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the history begins after index {oldest}, and what comes after index {last} was asked for")]
pub struct Compacted {
    /// The history is whole after this index: the lowest to go on from.
    pub oldest: u64,
    /// The index after which the reader wanted to go on.
    pub last: u64,
}

/// What the feed is at.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Status {
    pub readers: usize,
    pub history_bytes: usize,
    pub oldest_index: u64,
    pub last_index: u64,
}

impl Feed {
    /// An empty history, that of an empty state.
    pub fn new(limits: Limits) -> Feed {
        Feed { limits, ring: Mutex::new(Ring::new(limits.history_bytes_max)), draft: Mutex::default() }
    }

    /// A feed that records nothing.
    pub fn off() -> Feed {
        Feed::new(Limits { history_bytes_max: 0, value_bytes_max: 0 })
    }

    /// Whether there is a history.
    pub fn is_on(&self) -> bool {
        self.limits.history_bytes_max > 0
    }

    /// The longest value that is kept with its event.
    pub fn value_bytes_max(&self) -> usize {
        self.limits.value_bytes_max
    }

    /// What it is at.
    pub fn status(&self) -> Status {
        let ring = self.ring.lock();
        Status {
            readers: ring.readers(),
            history_bytes: ring.bytes(),
            oldest_index: ring.oldest(),
            last_index: ring.last(),
        }
    }

    /// Begins the events of the entry at `index`. None when nobody records them.
    pub fn draft(&self, index: u64) -> Option<Draft> {
        self.is_on().then(|| {
            let mut draft = std::mem::take(&mut *self.draft.lock());
            draft.begin(index, self.limits.value_bytes_max);
            draft
        })
    }

    /// The entry was applied: its events go to the end of the history.
    pub fn publish(&self, draft: Draft) {
        self.ring.lock().push(draft.index, draft.bytes());
        *self.draft.lock() = draft;
    }

    /// Another state was loaded: that after the entry `applied`.
    pub fn restart(&self, applied: u64) {
        self.ring.lock().restart(applied);
    }

    /// Begins to read what comes after the index `from`, which need not have been applied yet; or after now.
    /// `wake` is notified when there is something to read, and now and then.
    pub fn subscribe(
        self: &Arc<Feed>,
        filter: Filter,
        from: Option<u64>,
        wake: Arc<Notify>,
    ) -> Result<Subscription, Compacted> {
        let filter = Arc::new(filter);
        let (id, told) = self.ring.lock().enter(filter.clone(), from, wake.clone())?;
        Ok(Subscription { feed: self.clone(), id, filter, wake, told, seen: told })
    }
}

/// A reader's place in the feed.
#[derive(Debug)]
pub struct Subscription {
    feed: Arc<Feed>,
    id: u64,
    filter: Arc<Filter>,
    wake: Arc<Notify>,
    /// The last index that the reader was given.
    told: u64,
    /// It has been given all that it wants to see up to here.
    seen: u64,
}

/// What a reader finds next.
#[derive(Debug)]
pub enum Found {
    /// The next entry that has events for it.
    Entry(Entry),
    /// None yet: there is more to look through.
    NotYet,
    /// Nothing up to the end of the log.
    Nothing,
}

impl Subscription {
    /// The index from which the reader can go on elsewhere: it was given all up to there, and nothing after.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// What it wants to see.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The next entry that has events for this reader; None when there is none for now. An error ends the
    /// subscription. Never waits; a long stretch without such an entry is left in pieces, the next of which is
    /// woken for.
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

    /// Looks through the next piece of the history, for an entry that has events for this reader. An error ends the
    /// subscription. Never waits, and wakes nobody.
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

    /// How far the reader has been given all that it wants to see, if that is further than it was told: telling
    /// it keeps it from falling out of the history while there is nothing for it.
    pub fn progress(&mut self) -> Option<u64> {
        (self.seen > self.told).then(|| {
            self.told = self.seen;
            self.told
        })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.feed.ring.lock().leave(self.id);
    }
}
