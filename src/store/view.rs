//! Reading: one database as it is at one moment of the log. Deletes nothing; dead keys do not show.

use std::cell::Cell;

use super::{
    claim::ClaimKind,
    claims::Claims,
    hash::{Chance, SLOTS},
    level,
    object::Typed,
    record::{Body, Record},
    segments::Item,
    state::State,
};
use crate::error::{Error, Result};

/// How many dead keys a random choice may meet before it takes the next one alive.
const CHOICES_MAX: usize = 100;

/// How many bits of a hash stand in a cursor, below the slot's.
const CURSOR_HASH_BITS: u32 = 48;

/// What a read command gets: one database as it is, and the time.
pub struct View<'a> {
    /// The log clock: a key is dead when its deadline is below.
    pub now_ms: u64,
    /// The log clock estimated at this moment, not below `now_ms`: what TTL counts from.
    pub estimate_ms: u64,
    /// Chance for RANDOMKEY and its like; differs from call to call, no part of the state.
    pub chance: u64,
    /// The rule by which things are done.
    pub level: u32,
    /// Set when a read met a key that is alive by the log clock and late by the estimate: the caller moves
    /// the clock by a tick and reads again.
    pub late: Cell<bool>,
    pub(crate) db: u32,
    pub(crate) state: &'a State,
}

impl<'a> View<'a> {
    /// A view of database `db`. An estimate below the log clock counts as the log clock.
    pub fn new(state: &'a State, db: u32, estimate_ms: u64, chance: u64) -> View<'a> {
        let now_ms = state.now_ms;
        let (estimate_ms, late) = (estimate_ms.max(now_ms), Cell::new(false));
        View { now_ms, estimate_ms, chance, level: level::LEVEL_MAX, late, db, state }
    }

    /// The same in an entry of this level; otherwise the best rule there is holds.
    pub fn at_level(self, level: u32) -> View<'a> {
        View { level, ..self }
    }

    /// The selected database.
    pub fn db(&self) -> u32 {
        self.db
    }

    /// An instant by the log clock, by the wall clock: what clients are shown.
    pub fn wall_ms(&self, log_ms: u64) -> u64 {
        self.state.wall_ms(log_ms)
    }

    /// The same of another database. What it meets late is not noted here.
    pub fn in_db(&self, db: u32) -> View<'a> {
        View::new(self.state, db, self.estimate_ms, self.chance).at_level(self.level)
    }

    /// A sequence of chance for this call.
    pub fn chance(&self) -> Chance {
        Chance::at_level(self.chance, self.level)
    }

    /// The record of a key that is alive.
    #[inline]
    pub fn find(&self, key: &[u8]) -> Option<&'a Record> {
        self.state.keyspace(self.db)?.get(key).filter(|record| self.is_alive(record))
    }

    #[inline]
    fn is_alive(&self, record: &Record) -> bool {
        let Some(deadline) = record.deadline() else { return true };
        if deadline < self.now_ms {
            return self.outlives(record);
        }
        if deadline < self.estimate_ms {
            self.late.set(true);
        }
        true
    }

    /// Whether a record is alive though its deadline has passed: that of claims is but the next thing to be done.
    fn outlives(&self, record: &Record) -> bool {
        record.claims().is_some_and(|claims| claims.is_alive(self.now_ms))
            || self.state.extended_deadline(record).is_some()
    }

    /// The bytes of a string. An error for other types.
    #[inline]
    pub fn string(&self, key: &[u8]) -> Result<Option<&'a [u8]>> {
        self.find(key).map(|record| record.string().ok_or(Error::WrongType)).transpose()
    }

    /// The value of a key, as a type other than strings. An error if it is of another type.
    pub fn value<T: Typed>(&self, key: &[u8]) -> Result<Option<&'a T>> {
        let Some(record) = self.find(key) else { return Ok(None) };
        match record.body() {
            Body::Object(object) => T::of(&object.value).map(Some).ok_or(Error::WrongType),
            Body::Packed(_) => Err(Error::WrongType),
        }
    }

    /// Whether there is such a key.
    pub fn exists(&self, key: &[u8]) -> bool {
        self.find(key).is_some()
    }

    /// The type of a key, as TYPE names it.
    pub fn type_of(&self, key: &[u8]) -> Option<&'static str> {
        self.find(key).map(Record::type_name)
    }

    /// When a key dies; None if there is no such key, Some(None) if it has no deadline.
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

    /// The index of the last log entry that the state has.
    pub fn applied(&self) -> u64 {
        self.state.applied()
    }

    /// Whether any key of any database is guarded.
    pub fn has_guards(&self) -> bool {
        !self.state.guarded.is_empty()
    }

    /// What guards a key.
    pub fn guard_of(&self, key: &[u8]) -> Option<&'a [u8]> {
        self.state.guarded.get(&(self.db, key.into())).map(|lock| &**lock)
    }

    /// Whether the value at a key keeps its own time: no other family's command may move its deadline, copy it or
    /// take it to another database.
    pub fn keeps_its_time(&self, key: &[u8]) -> bool {
        self.find(key).is_some_and(|record| match record.body() {
            Body::Object(object) => object.value.kind().keeps_its_time(),
            Body::Packed(_) => false,
        })
    }

    /// What WATCH remembers of a key: 0 if there is no such key.
    pub fn version(&self, key: &[u8]) -> u64 {
        self.find(key).map_or(0, Record::version)
    }

    /// The number of keys, as DBSIZE counts: with the dead that were not reaped.
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

    /// A step of SCAN: shows about `count` keys from `cursor` on, 0 at first, and gives the cursor to go on
    /// from, 0 at the end. Keys that are there all the time are shown, whatever changes between the steps.
    pub fn scan(&self, cursor: u64, count: usize, mut each: impl FnMut(&'a Record)) -> u64 {
        let slot = cursor >> CURSOR_HASH_BITS;
        let (Some(keyspace), true) = (self.state.keyspace(self.db), slot < SLOTS as u64) else { return 0 };
        let hash = cursor << (u64::BITS - CURSOR_HASH_BITS);
        let mut last = None;
        for (seen, (slot, record)) in keyspace.iter_from(slot as u16, hash).enumerate() {
            let place = u64::from(slot) << CURSOR_HASH_BITS | record.hash() >> (u64::BITS - CURSOR_HASH_BITS);
            // Keys that share a place cannot be told apart by a cursor: they are shown together.
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

    /// A key by chance, each as likely as another.
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
