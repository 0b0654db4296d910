//! Reading: one database at one moment of the log. Deletes nothing; expired keys are invisible.

use std::{cell::Cell, ops::Range};

use bytes::Bytes;

use super::{
    catalog::Catalog,
    claims::Claims,
    elements::{BYTES_OF_AN_ELEMENT, Elements},
    hashing::{Chance, Hashing, SLOTS},
    level,
    long_string::LongString,
    object::Typed,
    owner::ClaimKind,
    record::{Body, Record},
    segments::Item,
    state::State,
};
use crate::error::{Error, Result};

/// How many expired keys a random choice may meet before it takes the next live one.
const CHOICES_MAX: usize = 100;

/// The number of bits of a hash in a cursor, below those of the slot.
const CURSOR_HASH_BITS: u32 = 48;

/// The context of a read command: one database as it is, and the time.
pub struct View<'a> {
    /// The log clock: a key with a lower deadline has expired.
    pub now_ms: u64,
    /// The estimate of the log clock at this moment, at least `now_ms`; TTL is computed from it.
    pub estimate_ms: u64,
    /// Seed for RANDOMKEY and similar commands; different for each call, not part of the state.
    pub chance: u64,
    /// The level by whose rules the command runs.
    pub level: u32,
    /// Set when a read met a key that is alive by the log clock but expired by the estimate (late): the
    /// caller advances the clock by a tick and reads again.
    pub late: Cell<bool>,
    /// The elements that were touched.
    pub elements: Cell<Elements>,
    pub(crate) db: u32,
    pub(crate) state: &'a State,
}

/// A string in the state.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    long: Option<&'a LongString>,
}

impl Text<'_> {
    /// A part of it, to keep when the state is let go. That of a long string is not copied.
    pub fn share(&self, range: Range<usize>) -> Bytes {
        match self.long {
            Some(long) => long.share(range),
            None => Bytes::copy_from_slice(&self.bytes[range]),
        }
    }
}

impl<'a> View<'a> {
    /// A view of database `db`. An estimate below the log clock counts as the log clock.
    pub fn new(state: &'a State, db: u32, estimate_ms: u64, chance: u64) -> View<'a> {
        let now_ms = state.now_ms;
        let (estimate_ms, late) = (estimate_ms.max(now_ms), Cell::new(false));
        let elements = Cell::new(state.no_elements(state.level));
        View { now_ms, estimate_ms, chance, level: level::LEVEL_MAX, late, elements, db, state }
    }

    /// The same view at the level of an entry; the default is the highest level.
    pub fn at_level(self, level: u32) -> View<'a> {
        View { level, elements: Cell::new(self.state.no_elements(level)), ..self }
    }

    /// The selected database.
    pub fn db(&self) -> u32 {
        self.db
    }

    /// The hashing of all that is ordered by hashes.
    pub fn hashing(&self) -> Hashing {
        self.state.hashing
    }

    /// Converts an instant by the log clock to the wall clock, which clients are shown.
    pub fn wall_ms(&self, log_ms: u64) -> u64 {
        self.state.wall_ms(log_ms)
    }

    /// A view of another database. Late keys met there do not set `late` here.
    pub fn in_db(&self, db: u32) -> View<'a> {
        View::new(self.state, db, self.estimate_ms, self.chance).at_level(self.level)
    }

    /// The tables that are no keys.
    pub fn catalog(&self) -> &'a Catalog {
        &self.state.catalog
    }

    /// A random sequence for this call.
    pub fn chance(&self) -> Chance {
        Chance::at_level(self.chance, self.level)
    }

    /// The record of a key, if it is alive.
    #[inline]
    pub fn find(&self, key: &[u8]) -> Option<&'a Record> {
        self.state.keyspace(self.db)?.get(key).filter(|record| self.is_alive(record))
    }

    #[inline]
    fn is_alive(&self, record: &Record) -> bool {
        let Some(deadline) = record.deadline() else { return !self.state.is_orphan(self.db, record) };
        if deadline < self.now_ms {
            return self.outlives(record);
        }
        if deadline < self.estimate_ms {
            self.late.set(true);
        }
        !self.state.is_orphan(self.db, record)
    }

    /// Whether a record is alive although its deadline has passed: for claims it is only the time of the next
    /// event.
    fn outlives(&self, record: &Record) -> bool {
        record.claims().is_some_and(|claims| claims.is_alive(self.now_ms))
            || self.state.extended_deadline(record).is_some()
    }

    /// The bytes of a string. An error for other types.
    #[inline]
    pub fn string(&self, key: &[u8]) -> Result<Option<&'a [u8]>> {
        self.find(key).map(|record| record.string().ok_or(Error::WrongType)).transpose()
    }

    /// The same, with what it takes to share a long one.
    #[inline]
    pub fn text(&self, key: &[u8]) -> Result<Option<Text<'a>>> {
        let text = |record: &'a Record| {
            let bytes = record.string().ok_or(Error::WrongType)?;
            Ok(Text { bytes, long: record.long_string() })
        };
        self.find(key).map(text).transpose()
    }

    /// A non-string value. An error if it is of another type.
    pub fn value<T: Typed>(&self, key: &[u8]) -> Result<Option<&'a T>> {
        let Some(record) = self.find(key) else { return Ok(None) };
        match record.body() {
            Body::Object(object) => T::of(&object.value).map(Some).ok_or(Error::WrongType),
            Body::Packed(_) => Err(Error::WrongType),
        }
    }

    /// How many elements the value of a key has; 0 if there is none.
    pub fn elements_of(&self, key: &[u8]) -> usize {
        self.find(key).map_or(0, |record| match record.body() {
            Body::Object(object) => object.value.kind().elements(),
            Body::Packed(packed) => 1 + packed.value().len() / BYTES_OF_AN_ELEMENT,
        })
    }

    /// How many keys, holds and waits end with a key.
    pub fn dependents_of(&self, key: &[u8]) -> usize {
        self.find(key).map_or(0, |record| match record.body() {
            Body::Object(object) => object.value.kind().dependents(),
            Body::Packed(_) => 0,
        })
    }

    /// Whether the key exists.
    pub fn exists(&self, key: &[u8]) -> bool {
        self.find(key).is_some()
    }

    /// The type of a key, as TYPE names it.
    pub fn type_of(&self, key: &[u8]) -> Option<&'static str> {
        self.find(key).map(Record::type_name)
    }

    /// The deadline of a key; None if the key does not exist, Some(None) if it has no deadline.
    pub fn deadline(&self, key: &[u8]) -> Option<Option<u64>> {
        let record = self.find(key)?;
        match record.claims() {
            Some(claims) => Some(claims.last_deadline()),
            None => Some(self.state.extended_deadline(record).or(record.deadline())),
        }
    }

    /// The claims of a kind at a key. An error if it is of another type.
    pub fn claims(&self, key: &[u8], kind: ClaimKind) -> Result<Option<&'a Claims>> {
        match self.value::<Claims>(key)? {
            Some(claims) if claims.kind() != kind => Err(Error::WrongType),
            claims => Ok(claims),
        }
    }

    /// The index of the last entry applied to the state.
    pub fn applied(&self) -> u64 {
        self.state.applied()
    }

    /// Whether any key of any database is guarded.
    pub fn has_guards(&self) -> bool {
        !self.state.guarded.is_empty()
    }

    /// The lock, semaphore or election that guards a key.
    pub fn guard_of(&self, key: &[u8]) -> Option<&'a [u8]> {
        self.state.guarded.get(self.db, key).map(|lock| &**lock)
    }

    /// Whether the value at a key manages its deadline itself: commands of other families may not set its
    /// deadline, copy it or move it to another database.
    pub fn keeps_its_time(&self, key: &[u8]) -> bool {
        self.find(key).is_some_and(|record| match record.body() {
            Body::Object(object) => object.value.kind().keeps_its_time(),
            Body::Packed(_) => false,
        })
    }

    /// The version that WATCH compares; 0 if the key does not exist.
    pub fn version(&self, key: &[u8]) -> u64 {
        self.find(key).map_or(0, Record::version)
    }

    /// The number of keys, as in DBSIZE: including expired ones that are not removed yet.
    pub fn len(&self) -> usize {
        self.state.keyspace(self.db).map_or(0, |keyspace| keyspace.len())
    }

    /// Whether `len` is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of keys with a deadline.
    pub fn expires(&self) -> usize {
        self.state.keyspace(self.db).map_or(0, |keyspace| keyspace.expires())
    }

    /// All keys in the order of (slot, hash).
    pub fn keys(&self) -> impl Iterator<Item = &'a Record> {
        let records = self.state.keyspace(self.db).into_iter().flat_map(|keyspace| keyspace.iter());
        records.map(|(_, record)| record).filter(|record| self.is_alive(record))
    }

    /// The keys of a hash slot, in the order of their hashes.
    pub fn keys_in_slot(&self, slot: u16) -> impl Iterator<Item = &'a Record> {
        let records = self.state.keyspace(self.db).into_iter();
        let records = records.flat_map(move |keyspace| keyspace.iter_from(slot, 0));
        let records = records.take_while(move |&(at, _)| at == slot).map(|(_, record)| record);
        records.filter(|record| self.is_alive(record))
    }

    /// A step of SCAN: passes about `count` keys from `cursor` on, initially 0, to `each`, and returns the
    /// next cursor, 0 at the end. Keys present throughout the scan are returned, whatever changes between the
    /// steps.
    pub fn scan(&self, cursor: u64, count: usize, mut each: impl FnMut(&'a Record)) -> u64 {
        let slot = cursor >> CURSOR_HASH_BITS;
        let (Some(keyspace), true) = (self.state.keyspace(self.db), slot < SLOTS as u64) else { return 0 };
        let hash = cursor << (u64::BITS - CURSOR_HASH_BITS);
        let mut last = None;
        for (seen, (slot, record)) in keyspace.iter_from(slot as u16, hash).enumerate() {
            let place = u64::from(slot) << CURSOR_HASH_BITS | record.hash() >> (u64::BITS - CURSOR_HASH_BITS);
            // A cursor cannot distinguish keys that share a place: they are returned together.
            if seen >= count && last != Some(place) {
                return place;
            }
            last = Some(place);
            if self.is_alive(record) {
                each(record);
            }
        }
        0
    }

    /// A random key, uniformly chosen.
    pub fn random_key(&self) -> Option<&'a [u8]> {
        let keyspace = self.state.keyspace(self.db).filter(|keyspace| keyspace.len() > 0)?;
        let mut chance = self.chance();
        for _ in 0..CHOICES_MAX {
            let record = keyspace.nth(chance.below(keyspace.len()))?;
            if self.is_alive(record) {
                return Some(record.key());
            }
        }
        self.keys().next().map(Record::key)
    }
}
