//! The history itself: the last entries that had events, up to a number of bytes, and each reader's position.
//! A reader is woken only for events that interest it, and occasionally for none, to learn the log index.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::sync::Notify;

use super::{
    Compacted,
    filter::{Filter, Interests},
};
use crate::effects::{Event, changes::events};

/// The cost of an entry besides its bytes.
const ENTRY_BYTES: usize = 64;

/// The events of one log entry, as kept in the history. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its log index.
    pub index: u64,
    pub(super) bytes: Arc<[u8]>,
}

impl Entry {
    /// Its events, in order.
    pub fn events(&self) -> impl Iterator<Item = Event<'_>> {
        events(&self.bytes)
    }
}

/// The history.
///
/// Invariants:
/// - `entries` have ascending indexes above `oldest` and not above `last`; each has events.
/// - Every event after `oldest` is in `entries`.
/// - A reader without `pending` has received everything of interest up to `last`.
#[derive(Debug)]
pub(super) struct Ring {
    bytes_max: usize,
    entries: VecDeque<Entry>,
    bytes: usize,
    oldest: u64,
    last: u64,
    /// Bytes added since readers without events were last woken to learn the log index.
    quiet_bytes: usize,
    readers: HashMap<u64, Reader>,
    interests: Interests,
    next_id: u64,
}

#[derive(Debug)]
struct Reader {
    filter: Arc<Filter>,
    /// Entries up to this one are not for it.
    after: u64,
    /// The index from which there is something to read.
    pending: Option<u64>,
    wake: Arc<Notify>,
}

impl Reader {
    fn has_news(&mut self, index: u64) {
        if index > self.after && self.pending.is_none() {
            self.pending = Some(index);
            self.wake.notify_one();
        }
    }
}

impl Ring {
    pub fn new(bytes_max: usize) -> Ring {
        Ring {
            bytes_max,
            entries: VecDeque::new(),
            bytes: 0,
            oldest: 0,
            last: 0,
            quiet_bytes: 0,
            readers: HashMap::new(),
            interests: Interests::default(),
            next_id: 0,
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    pub fn last(&self) -> u64 {
        self.last
    }

    pub fn readers(&self) -> usize {
        self.readers.len()
    }

    /// Appends the events of the next log entry.
    pub fn push(&mut self, index: u64, bytes: &[u8]) {
        debug_assert!(index > self.last, "entries are applied in their order");
        self.last = index;
        if bytes.is_empty() {
            return;
        }
        self.entries.push_back(Entry { index, bytes: bytes.into() });
        self.bytes += bytes.len() + ENTRY_BYTES;
        if !self.readers.is_empty() {
            self.tell(index, bytes);
        }
        while self.bytes > self.bytes_max
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= entry.bytes.len() + ENTRY_BYTES;
            self.oldest = entry.index;
        }
    }

    /// The events of the next log entry are not known: the history begins after it.
    pub fn pass(&mut self, index: u64) {
        self.entries.clear();
        self.bytes = 0;
        (self.oldest, self.last) = (index, index);
    }

    /// Wakes the readers interested in these events; and occasionally all, so that their last index does not
    /// fall out of the history.
    fn tell(&mut self, index: u64, bytes: &[u8]) {
        for event in events(bytes) {
            self.interests.tell(index, &event, |id| {
                self.readers.get_mut(&id).expect("who is interested is a reader").has_news(index);
            });
        }
        self.quiet_bytes += bytes.len() + ENTRY_BYTES;
        if self.quiet_bytes > self.bytes_max / 4 {
            self.quiet_bytes = 0;
            self.readers.values().for_each(|reader| reader.wake.notify_one());
        }
    }

    /// The state was replaced by that after entry `applied`. The events in between were never seen.
    pub fn restart(&mut self, applied: u64) {
        let index = applied.max(self.last);
        self.entries.clear();
        self.bytes = 0;
        let missed = self.last + 1;
        (self.oldest, self.last) = (index, index);
        // Readers find out that they missed events when they read.
        if index >= missed {
            self.readers
                .values_mut()
                .for_each(|reader| reader.has_news(missed.max(reader.after.saturating_add(1))));
        }
    }

    /// Adds a reader of what comes after `from`, or after the present. Returns its id and its start index.
    pub fn enter(
        &mut self,
        filter: Arc<Filter>,
        from: Option<u64>,
        wake: Arc<Notify>,
    ) -> Result<(u64, u64), Compacted> {
        let after = from.unwrap_or(self.last);
        if after < self.oldest {
            return Err(Compacted { oldest: self.oldest, last: after });
        }
        let mut reader = Reader { filter: filter.clone(), after, pending: None, wake };
        if after < self.last {
            reader.has_news(after + 1);
        }
        self.next_id += 1;
        self.readers.insert(self.next_id, reader);
        self.interests.add(self.next_id, filter);
        Ok((self.next_id, after))
    }

    pub fn leave(&mut self, id: u64) {
        let reader = self.readers.remove(&id).expect("a reader leaves once");
        self.interests.remove(id, &reader.filter);
    }

    /// The next entry that may have something for a reader. None if it has received everything up to `last`.
    /// An error if it has fallen out of the history.
    pub fn next(&mut self, id: u64) -> Result<Option<Entry>, u64> {
        let reader = self.readers.get_mut(&id).expect("it has not left");
        let Some(pending) = reader.pending else { return Ok(None) };
        if pending <= self.oldest {
            return Err(self.oldest);
        }
        let at = self.entries.partition_point(|entry| entry.index < pending);
        let entry = self.entries.get(at).cloned();
        reader.pending = entry.as_ref().map(|entry| entry.index + 1);
        Ok(entry)
    }
}
