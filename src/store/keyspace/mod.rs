//! One database: its keys in the order of (slot, hash, key). It knows no time: expired keys are included.

pub mod by_db;
pub mod deadlines;
pub mod hashing;
pub mod homes;
pub mod reap;
pub mod record;

use crate::store::{
    dirty::{Dirty, PageId},
    hashing::{Hashing, SLOTS, slot_of},
    record::Record,
    segments::{Position, Segments},
};

/// The number of slots whose keys are counted together, so that finding a key by rank takes few steps.
const GROUP_SLOTS: usize = 128;

/// Where a key is or would be. Valid until the next change of the database.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub slot: u16,
    pub hash: u64,
    /// Ok if the key is there, expired or not.
    pub found: Result<Position, Position>,
}

/// One database.
///
/// Invariants:
/// - `slots` is empty until the first key is inserted; then it has all slots.
/// - `len` is the number of records and `groups` its parts; `bytes` is what they cost in memory; `expires` is the number of records with a
///   deadline.
#[derive(Debug)]
pub(crate) struct Keyspace {
    db: u32,
    hashing: Hashing,
    slots: Vec<Segments<Record>>,
    groups: Vec<usize>,
    len: usize,
    bytes: usize,
    expires: usize,
}

impl Keyspace {
    /// An empty database, in the order of the state's hashes.
    pub fn new(db: u32, hashing: Hashing) -> Keyspace {
        Keyspace { db, hashing, slots: Vec::new(), groups: Vec::new(), len: 0, bytes: 0, expires: 0 }
    }

    /// The number of keys, including expired ones that are not removed yet.
    pub fn len(&self) -> usize {
        self.len
    }

    /// What all keys and their values cost in memory, counted by their content. For tests.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of keys with a deadline.
    pub fn expires(&self) -> usize {
        self.expires
    }

    #[inline]
    pub fn place(&self, key: &[u8]) -> Place {
        let (slot, hash) = (slot_of(key), self.hashing.of(key));
        let found = match self.slots.get(usize::from(slot)) {
            Some(segments) => segments.find(hash, key),
            None => Segments::<Record>::default().find(hash, key),
        };
        Place { slot, hash, found }
    }

    #[inline]
    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        self.slots.get(usize::from(slot_of(key)))?.get(self.hashing.of(key), key)
    }

    /// The record at a place where the key was found.
    #[inline]
    pub fn at(&self, slot: u16, position: Position) -> &Record {
        self.slots[usize::from(slot)].at(position)
    }

    /// The first record with this hash for which `is_it` holds, and how many records were examined.
    pub fn find_by(
        &self,
        slot: u16,
        hash: u64,
        is_it: impl Fn(&Record) -> bool,
    ) -> Option<(Position, usize)> {
        self.slots.get(usize::from(slot))?.find_by(hash, is_it)
    }

    pub fn at_mut_unmarked(&mut self, slot: u16, position: Position) -> &mut Record {
        self.slots[usize::from(slot)].at_mut_unmarked(position)
    }

    /// Changes a record. Its deadline may change; its key must not.
    #[inline]
    pub fn change<R>(
        &mut self,
        slot: u16,
        position: Position,
        dirty: &mut Dirty,
        change: impl FnOnce(&mut Record, &mut Dirty) -> R,
    ) -> R {
        let db = self.db;
        let Keyspace { slots, expires, bytes, .. } = self;
        slots[usize::from(slot)].change(position, page_of(db, slot), dirty, |record, dirty| {
            let (expired, cost) = (record.deadline().is_some(), record.cost());
            let result = change(record, dirty);
            *expires = *expires + usize::from(record.deadline().is_some()) - usize::from(expired);
            *bytes = *bytes + record.cost() - cost;
            dirty.keys_bytes = dirty.keys_bytes + record.cost() - cost;
            result
        })
    }

    pub fn insert(&mut self, slot: u16, at: Position, record: Record, dirty: &mut Dirty) {
        self.allocate_slots();
        self.len += 1;
        self.bytes += record.cost();
        dirty.keys_bytes += record.cost();
        self.groups[usize::from(slot) / GROUP_SLOTS] += 1;
        self.expires += usize::from(record.deadline().is_some());
        self.slots[usize::from(slot)].insert(at, record, page_of(self.db, slot), dirty);
    }

    pub fn remove(&mut self, slot: u16, at: Position, dirty: &mut Dirty) -> Record {
        let record = self.slots[usize::from(slot)].remove(at, page_of(self.db, slot), dirty);
        self.len -= 1;
        self.bytes -= record.cost();
        dirty.keys_bytes -= record.cost();
        self.groups[usize::from(slot) / GROUP_SLOTS] -= 1;
        self.expires -= usize::from(record.deadline().is_some());
        record
    }

    /// Removes everything, and returns it to be dropped later. The caller removes the pages of large objects.
    pub fn clear(&mut self, dirty: &mut Dirty) -> Keyspace {
        for (slot, segments) in (0u16..).zip(&self.slots) {
            segments.mark_removed(page_of(self.db, slot), dirty);
        }
        dirty.keys_bytes -= self.bytes;
        std::mem::replace(self, Keyspace::new(self.db, self.hashing))
    }

    /// The first record and its slot. Scans the groups and the slots of one group.
    pub fn first(&self) -> Option<(u16, &Record)> {
        let group = self.groups.iter().position(|&count| count > 0)?;
        let slots = (0u16..).zip(&self.slots).skip(group * GROUP_SLOTS).take(GROUP_SLOTS);
        slots.filter_map(|(slot, segments)| Some((slot, segments.iter().next()?))).next()
    }

    /// All records in order.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &Record)> {
        (0u16..)
            .zip(&self.slots)
            .flat_map(|(slot, segments)| segments.iter().map(move |record| (slot, record)))
    }

    /// The records from a slot and hash on, in order.
    pub fn iter_from(&self, slot: u16, hash: u64) -> impl Iterator<Item = (u16, &Record)> {
        let first = self.slots.get(usize::from(slot)).into_iter();
        let first =
            first.flat_map(move |segments| segments.iter_from(hash).map(move |record| (slot, record)));
        let rest = (0u16..).zip(&self.slots).skip(usize::from(slot) + 1);
        first.chain(rest.flat_map(|(slot, segments)| segments.iter().map(move |record| (slot, record))))
    }

    /// The record at a rank in the order; the rank is below `len`.
    pub fn nth(&self, mut rank: usize) -> Option<&Record> {
        let group = self.groups.iter().position(|&count| {
            let is_here = rank < count;
            rank -= if is_here { 0 } else { count };
            is_here
        })?;
        for segments in self.slots.iter().skip(group * GROUP_SLOTS).take(GROUP_SLOTS) {
            let count = segments.count();
            if rank < count {
                return segments.nth_from(0, rank);
            }
            rank -= count;
        }
        None
    }

    /// Counts the cost of all records: when a state is loaded, their pages come after them.
    pub fn count_bytes(&mut self, dirty: &mut Dirty) {
        self.bytes = self.iter().map(|(_, record)| record.cost()).sum();
        dirty.keys_bytes += self.bytes;
    }

    pub fn has_segment(&self, slot: u16, start: u64) -> bool {
        self.slots.get(usize::from(slot)).is_some_and(|segments| segments.has(start))
    }

    pub fn encode_segment(&self, slot: u16, start: u64) -> Option<Vec<u8>> {
        self.slots.get(usize::from(slot))?.encode(start)
    }

    /// Loads a page; `each` is called with its records.
    pub fn load_segment(
        &mut self,
        slot: u16,
        start: u64,
        content: &[u8],
        mut each: impl FnMut(&Record),
    ) -> Result<(), String> {
        self.allocate_slots();
        let Some(segments) = self.slots.get_mut(usize::from(slot)) else {
            return Err(format!("slot {slot} does not exist"));
        };
        segments.load(start, content, self.hashing)?;
        let group = &mut self.groups[usize::from(slot) / GROUP_SLOTS];
        for record in segments.iter_from(start) {
            if slot_of(record.key()) != slot {
                return Err("a key is not in its slot".into());
            }
            self.len += 1;
            *group += 1;
            self.expires += usize::from(record.deadline().is_some());
            each(record);
        }
        Ok(())
    }

    fn allocate_slots(&mut self) {
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, Segments::default);
            self.groups.resize(SLOTS / GROUP_SLOTS, 0);
        }
    }

    #[cfg(test)]
    pub fn invariants(&self) {
        self.slots.iter().for_each(Segments::invariants);
        assert_eq!(self.len, self.iter().count());
        assert_eq!(self.bytes, self.iter().map(|(_, record)| record.cost()).sum::<usize>());
        assert_eq!(self.expires, self.iter().filter(|(_, record)| record.deadline().is_some()).count());
        assert_eq!(self.len, self.groups.iter().sum::<usize>());
    }
}

fn page_of(db: u32, slot: u16) -> impl Fn(u64) -> PageId + Copy {
    move |start| PageId::Segment { db, slot, start }
}
