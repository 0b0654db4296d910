//! One group's log in memory: where each entry is, and the newest entries themselves.
//!
//! Pure bookkeeping, under one lock per group: no I/O, never blocks.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use openraft::EntryPayload;
use parking_lot::Mutex;

use crate::{
    fatal,
    machine::GroupId,
    types::{Entry, LogId, Vote},
};

/// What a cached entry costs beyond its payload, roughly.
const CACHED_ENTRY_BYTES: usize = 96;

/// Where an entry is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The entry's term.
    pub(super) term: u64,
    /// Its segment; 0 while the writer has not placed it.
    pub(super) segment: u32,
    /// Where its record begins in the segment.
    pub(super) offset: u32,
    /// Its record's length.
    pub(super) bytes: u32,
}

/// A group: its number and its log.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) log: Mutex<GroupLog>,
    /// Protects what is applied, once there is something that applies.
    pub(super) guard: OnceLock<Guard>,
}

impl Group {
    pub(super) fn new(id: GroupId, log: GroupLog) -> Group {
        Group { id, log: Mutex::new(log), guard: OnceLock::new() }
    }
}

/// Knows how far the log is applied, and is called when the log is to be truncated below that.
pub(super) struct Guard {
    pub(super) applied: Box<dyn Fn() -> u64 + Send + Sync>,
    pub(super) contradiction: fatal::Handler,
}

/// The log of one group.
///
/// Invariants:
/// - `positions` has no holes; its first element belongs to the index `first`.
/// - `cached` holds the newest entries, without holes, to the last one; never more than `positions`.
/// - An entry without a place on disk is in `cached`.
#[derive(Debug, Default)]
pub(crate) struct GroupLog {
    first: u64,
    positions: VecDeque<Position>,
    cached: VecDeque<Entry>,
    /// The vote as last set: it may not be durable yet.
    pub(super) vote: Option<Vote>,
    /// The last durable vote, and the last durable entry.
    pub(super) durable_vote: Option<Vote>,
    pub(super) durable: Option<LogId>,
    /// The commit mark as last set.
    pub(super) committed: Option<LogId>,
    /// The last entry purged.
    pub(super) purged: Option<LogId>,
}

/// A part of a read: what the cache had, and what must be read from disk to precede it.
pub(super) struct Found {
    /// The first index found.
    pub(super) first: u64,
    /// On disk, in order.
    pub(super) on_disk: Vec<Position>,
    /// After those, from the cache.
    pub(super) cached: Vec<Entry>,
}

impl GroupLog {
    fn end(&self) -> u64 {
        self.first + self.positions.len() as u64
    }

    /// The last entry's id; the purged one's when there are no entries.
    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        match self.positions.back() {
            Some(last) => Some(LogId::new_term_index(last.term, self.end() - 1)),
            None => self.purged,
        }
    }

    /// The term of an entry that is there.
    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        let at = index.checked_sub(self.first)?;
        self.positions.get(usize::try_from(at).ok()?).map(|position| position.term)
    }

    /// Whether an entry with this index may follow. Any may when there are no entries.
    pub(super) fn continues_with(&self, index: u64) -> bool {
        self.positions.is_empty() || index == self.end()
    }

    /// Adds an entry whose record has `bytes`. The caller asked `continues_with`.
    pub(super) fn append(&mut self, entry: Entry, bytes: u32, cache_used: &AtomicUsize) {
        if self.positions.is_empty() {
            self.first = entry.log_id.index;
        }
        self.positions.push_back(Position {
            term: entry.log_id.leader_id.term,
            segment: 0,
            offset: 0,
            bytes,
        });
        cache_used.fetch_add(cost(&entry), Ordering::Relaxed);
        self.cached.push_back(entry);
    }

    /// Adds an entry that is on disk. The caller asked `continues_with`.
    pub(super) fn append_placed(&mut self, index: u64, position: Position) {
        if self.positions.is_empty() {
            self.first = index;
        }
        self.positions.push_back(position);
    }

    /// Sets where an entry is, which is durable. Ignored if the entry is gone, or another has taken its
    /// index: by Raft's log matching, one with the same index and term is the same entry.
    pub(super) fn place(&mut self, index: u64, term: u64, segment: u32, offset: u32) {
        let position = index.checked_sub(self.first).and_then(|at| self.positions.get_mut(at as usize));
        if let Some(position) = position.filter(|position| position.term == term) {
            position.segment = segment;
            position.offset = offset;
            self.durable = Some(LogId::new_term_index(term, index));
        }
    }

    /// Drops the oldest cached entries that are on disk, while the caches of all groups together exceed their
    /// limit.
    pub(super) fn evict(&mut self, cache_used: &AtomicUsize, cache_bytes: usize) {
        while cache_used.load(Ordering::Relaxed) > cache_bytes {
            let at = self.positions.len() - self.cached.len();
            if self.positions.get(at).is_none_or(|position| position.segment == 0) {
                return;
            }
            self.drop_cached(cache_used);
        }
    }

    fn drop_cached(&mut self, cache_used: &AtomicUsize) {
        if let Some(entry) = self.cached.pop_front() {
            cache_used.fetch_sub(cost(&entry), Ordering::Relaxed);
        }
    }

    /// Drops all entries after `last`.
    pub(super) fn truncate_after(&mut self, last: Option<LogId>, cache_used: &AtomicUsize) {
        let end = last.map_or(0, |id| id.index.saturating_add(1));
        while self.end() > end && self.positions.pop_back().is_some() {
            if let Some(entry) = self.cached.pop_back() {
                cache_used.fetch_sub(cost(&entry), Ordering::Relaxed);
            }
        }
        if self.durable > last {
            self.durable = last;
        }
    }

    /// Drops all entries up to `upto`, inclusive.
    pub(super) fn purge(&mut self, upto: LogId, cache_used: &AtomicUsize) {
        while self.first <= upto.index && !self.positions.is_empty() {
            if self.cached.len() == self.positions.len() {
                self.drop_cached(cache_used);
            }
            self.positions.pop_front();
            self.first += 1;
        }
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
        self.durable = self.durable.max(self.purged);
    }

    /// Finds the entries of `range` that exist, from its beginning to about `bytes_max`, at least one.
    pub(super) fn find(&self, range: Range<u64>, bytes_max: u64) -> Found {
        let first = range.start.max(self.first);
        let end = range.end.min(self.end());
        let mut found = Found { first, on_disk: Vec::new(), cached: Vec::new() };
        let cached_from = self.end() - self.cached.len() as u64;
        let mut bytes = 0;
        for index in first..end {
            let position = &self.positions[(index - self.first) as usize];
            bytes += u64::from(position.bytes);
            if bytes > bytes_max && index > first {
                break;
            }
            if index < cached_from {
                found.on_disk.push(*position);
            } else {
                found.cached.push(self.cached[(index - cached_from) as usize].clone());
            }
        }
        found
    }
}

#[cfg(feature = "simulation")]
impl GroupLog {
    /// The positions of the entries from `from` on, with the checksums of those in memory.
    pub(crate) fn peek(&self, from: u64) -> Vec<(crate::simulation::Position, Option<u32>)> {
        let cached_from = self.end() - self.cached.len() as u64;
        let sum = |index: u64| {
            let entry = &self.cached[index.checked_sub(cached_from)? as usize];
            let mut bytes = Vec::new();
            crate::codec::put_payload(&mut bytes, &entry.payload);
            Some(crc32fast::hash(&bytes))
        };
        let indexes = from.max(self.first)..self.end();
        let term = |index: u64| self.positions[(index - self.first) as usize].term;
        indexes.map(|index| (crate::simulation::Position { term: term(index), index }, sum(index))).collect()
    }
}

fn cost(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Normal(content) => content.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    payload + CACHED_ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::Payload;

    fn entry(term: u64, index: u64) -> Entry {
        let payload = EntryPayload::Normal(Payload(Bytes::from(vec![0; 100])));
        Entry { log_id: LogId::new_term_index(term, index), payload }
    }

    #[test]
    fn only_placed_entries_leave_the_cache_and_purge_and_truncate_account_for_it() {
        let used = AtomicUsize::new(0);
        let mut log = GroupLog::default();
        for index in 1..=10 {
            assert!(log.continues_with(index));
            log.append(entry(1, index), 130, &used);
        }
        log.evict(&used, 0);
        assert_eq!(used.load(Ordering::Relaxed), 1960);
        for index in 1..=6 {
            log.place(index, 1, 1, index as u32);
        }
        log.place(7, 2, 1, 7);
        log.evict(&used, 0);
        assert_eq!(used.load(Ordering::Relaxed), 4 * 196);
        let found = log.find(5..9, u64::MAX);
        assert_eq!((found.first, found.on_disk.len(), found.cached.len()), (5, 2, 2));
        log.purge(LogId::new_term_index(1, 7), &used);
        log.truncate_after(Some(LogId::new_term_index(1, 9)), &used);
        assert_eq!(used.load(Ordering::Relaxed), 2 * 196);
        assert_eq!(log.last_log_id(), Some(LogId::new_term_index(1, 9)));
        log.purge(LogId::new_term_index(1, 20), &used);
        assert_eq!(used.load(Ordering::Relaxed), 0);
        assert_eq!(log.last_log_id(), Some(LogId::new_term_index(1, 20)));
        assert_eq!(log.find(0..100, u64::MAX).cached.len(), 0);
    }

    #[test]
    fn a_limited_find_gives_at_least_one() {
        let used = AtomicUsize::new(0);
        let mut log = GroupLog::default();
        (5..9).for_each(|index| log.append(entry(1, index), 130, &used));
        assert_eq!(log.find(0..100, 1).cached.len(), 1);
        assert_eq!(log.find(0..100, 300).cached.len(), 2);
        assert_eq!(log.find(7..7, 300).cached.len(), 0);
    }
}
