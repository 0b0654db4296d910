//! All databases with what spans them: the clock, versions, deadlines, large objects, page marks.
//!
//! These functions keep the parts consistent with each other; what a command may do is in `ctx.rs` and
//! `view.rs`.

use std::collections::{BTreeSet, HashMap};

use super::{
    claim::{LeaseId, Wake},
    codec::FORMAT,
    deadlines::{Deadlines, Death},
    digest::Digest,
    dirty::{Dirty, PageId},
    hash::Hashing,
    keyspace::{Keyspace, Place},
    level,
    object::{Object, Pages, Value},
    record::{Body, Record},
    segments::Position,
    touched::{Touch, Touched},
};

/// More databases than anybody has: a call that names a higher one fails.
pub const DATABASES_MAX: u32 = 1 << 14;

/// A database and a key in it.
pub(crate) type KeyOfDb = (u32, Box<[u8]>);

/// The replicated state.
///
/// Invariants:
/// - Each record with a deadline stands in `deadlines`, and nothing else does; no deadline is 0.
/// - Each value with pages of its own stands in `homes` with its key by its object id, and nothing else does.
/// - `keys` is the number of records in all databases. All of them are in the order of `hashing`.
/// - All versions are from 1 to `revision`; all object ids are below `next_object`.
/// - Claims with tickets stand in `ticketed`, and nothing else does. `attached` is the leases' lists of keys by key;
///   a plain key depends on one lease at most. `guarded` is the claims' lists of guarded keys by key.
#[derive(Debug)]
pub struct State {
    /// The log clock: the highest stamp seen.
    pub(crate) now_ms: u64,
    /// How far the log clock is ahead of the wall clock, by the last entry.
    pub(crate) ahead_ms: i64,
    /// Rises with each change of a key.
    pub(crate) revision: u64,
    pub(crate) next_object: u64,
    /// The last fencing token issued.
    pub(crate) token: u64,
    /// The term of the last entry.
    pub(crate) term: u64,
    /// The log clock when that term's first entry came.
    pub(crate) led_since_ms: u64,
    pub(crate) databases: Vec<Keyspace>,
    pub(crate) deadlines: Deadlines,
    pub(crate) homes: HashMap<u64, KeyOfDb>,
    pub(crate) keys: usize,
    pub(crate) hashing: Hashing,
    /// The rule of the entry that is applied.
    pub(crate) level: u32,
    pub(crate) ticketed: BTreeSet<KeyOfDb>,
    pub(crate) attached: HashMap<KeyOfDb, BTreeSet<LeaseId>>,
    /// Keys that are guarded, and by what.
    pub(crate) guarded: HashMap<KeyOfDb, Box<[u8]>>,
    /// Waits that ended since they were last taken.
    pub(crate) wakes: Vec<Wake>,
    pub(crate) dirty: Dirty,
    /// The index of the last log entry.
    pub(crate) applied: u64,
    /// What was touched since it was last forgotten; None while nobody wants to know.
    pub(crate) touched: Option<Touched>,
    /// Content that was deleted and is costly to drop.
    pub(crate) garbage: Vec<Garbage>,
}

/// Deleted content.
#[derive(Debug)]
pub struct Garbage(#[allow(dead_code)] pub(super) Deleted);

#[derive(Debug)]
#[allow(dead_code)]
pub(super) enum Deleted {
    Keyspace(Keyspace),
    Value(Value),
}

impl State {
    /// An empty state.
    pub fn new() -> State {
        State {
            now_ms: 0,
            ahead_ms: 0,
            revision: 0,
            next_object: 1,
            token: 0,
            term: 0,
            led_since_ms: 0,
            databases: Vec::new(),
            deadlines: Deadlines::default(),
            homes: HashMap::new(),
            keys: 0,
            hashing: Hashing::PLAIN,
            level: level::LEVEL_MAX,
            ticketed: BTreeSet::new(),
            attached: HashMap::new(),
            guarded: HashMap::new(),
            wakes: Vec::new(),
            dirty: Dirty::default(),
            applied: 0,
            touched: None,
            garbage: Vec::new(),
        }
    }

    /// The log clock: the highest stamp seen, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Moves the log clock, never back, to an entry's stamp, and notes a new leader by the entry's term.
    pub fn advance(&mut self, stamp_ms: u64, term: u64) {
        self.now_ms = self.now_ms.max(stamp_ms);
        if term != self.term {
            (self.term, self.led_since_ms) = (term, self.now_ms);
        }
    }

    /// How far the log clock is ahead of the wall clock, in milliseconds, by the last entry.
    pub fn ahead_ms(&self) -> i64 {
        self.ahead_ms
    }

    /// From here on the log clock is so far ahead of the wall clock.
    pub fn set_ahead(&mut self, ahead_ms: i64) {
        self.ahead_ms = ahead_ms;
    }

    /// An instant by the log clock, by the wall clock as clients mean it; within what an integer reply can say.
    pub fn wall_ms(&self, log_ms: u64) -> u64 {
        let wall_ms = i128::from(log_ms) - i128::from(self.ahead_ms);
        wall_ms.clamp(0, i128::from(i64::MAX)) as u64
    }

    /// The term of the last log entry.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The index of the last log entry that was applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The log entry at `index` is about to be applied, by the rule of its level.
    pub fn enter(&mut self, index: u64, level: u32) {
        (self.applied, self.level) = (index, level);
    }

    /// Takes a key for the hashes of all names, which are in another order then: only while there are none.
    pub fn take_hash_key(&mut self, key: [u8; 16]) {
        let hashing = Hashing::keyed(key);
        if self.keys > 0 || self.hashing != Hashing::PLAIN || hashing == Hashing::PLAIN {
            return;
        }
        self.hashing = hashing;
        for (db, keyspace) in (0u32..).zip(&mut self.databases) {
            *keyspace = Keyspace::new(db, hashing);
        }
        self.dirty.created(PageId::Hashing);
    }

    /// The rule of the entry that is applied.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// Whether names are hashed with a key.
    pub fn has_hash_key(&self) -> bool {
        self.hashing != Hashing::PLAIN
    }

    /// From now on it is noted what is touched; strings of up to `string_bytes_max` with it.
    pub fn note_touched(&mut self, string_bytes_max: usize) {
        self.touched = Some(Touched::new(string_bytes_max));
    }

    /// What was touched since it was last forgotten.
    pub fn touched(&self) -> Option<&Touched> {
        self.touched.as_ref().filter(|touched| !touched.is_empty())
    }

    /// Forgets what was touched.
    pub fn forget_touched(&mut self) {
        if let Some(touched) = &mut self.touched {
            touched.clear();
        }
    }

    /// The number of databases; those above were never written to.
    pub fn databases(&self) -> u32 {
        self.databases.len() as u32
    }

    /// When the first key dies.
    pub fn first_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|death| death.deadline)
    }

    /// Deleted content that is costly to drop.
    pub fn take_garbage(&mut self) -> Vec<Garbage> {
        std::mem::take(&mut self.garbage)
    }

    /// Becomes `new`; gives the old state back. What is touched goes on to be noted.
    pub fn replace(&mut self, mut new: State) -> State {
        new.touched = self.touched.as_ref().map(Touched::emptied);
        std::mem::replace(self, new)
    }

    /// A database, if it was ever written to.
    pub(crate) fn keyspace(&self, db: u32) -> Option<&Keyspace> {
        self.databases.get(db as usize)
    }

    /// Makes a database exist. `db` is below [`DATABASES_MAX`].
    pub(crate) fn open(&mut self, db: u32) {
        assert!(db < DATABASES_MAX, "checked where calls enter");
        while self.databases.len() <= db as usize {
            self.databases.push(Keyspace::new(self.databases.len() as u32, self.hashing));
        }
    }

    /// A new version, for a key that changes.
    pub(crate) fn next_version(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// A key was created, changed or deleted.
    #[inline]
    pub(crate) fn notify(&mut self, db: u32, key: &[u8]) {
        self.note(db, key, Touch::Changed);
    }

    /// A key was set to a string.
    #[inline]
    pub(crate) fn notify_string(&mut self, db: u32, key: &[u8], string: &[u8], deadline: Option<u64>) {
        match &mut self.touched {
            Some(touched) if deadline.is_none_or(|deadline| deadline >= self.now_ms) => {
                touched.push_string(db, key, string);
            }
            _ => self.notify(db, key),
        }
    }

    pub(crate) fn note(&mut self, db: u32, key: &[u8], touch: Touch) {
        if let Some(touched) = &mut self.touched {
            touched.push(db, key, touch);
        }
    }

    /// Inserts a record where its key was not found.
    pub(crate) fn insert(&mut self, db: u32, place: &Place, at: Position, record: Record) {
        let Place { slot, hash, .. } = *place;
        if let Some(deadline) = record.deadline() {
            self.deadlines.insert(Death::new(deadline, db, slot, hash));
        }
        if let Some(object) = record.object_id() {
            self.homes.insert(object, (db, record.key().into()));
        }
        self.keys += 1;
        let claims_key = record.claims().map(|_| Box::<[u8]>::from(record.key()));
        self.databases[db as usize].insert(slot, at, record, &mut self.dirty);
        if let Some(key) = claims_key {
            self.claims_came(db, &key);
        }
    }

    /// Takes a record out. Its value keeps its own pages: it moves elsewhere, or `discard` removes them.
    pub(crate) fn take(&mut self, db: u32, place: &Place, at: Position) -> Record {
        let record = self.databases[db as usize].remove(place.slot, at, &mut self.dirty);
        self.keys -= 1;
        if let Some(deadline) = record.deadline() {
            self.deadlines.remove(Death::new(deadline, db, place.slot, place.hash));
        }
        if let Some(object) = record.object_id() {
            self.homes.remove(&object);
        }
        self.claims_left(db, &record);
        record
    }

    /// Removes a record, perhaps for another to take its place: what the key depends on stays.
    pub(crate) fn remove(&mut self, db: u32, place: &Place, at: Position) {
        if let Body::Object(object) = self.take(db, place, at).into_body() {
            self.value_gone(db, &object.key, &object.value);
            self.discard(object.value);
        }
    }

    /// Removes the pages of a value that is in no record.
    pub(crate) fn discard(&mut self, value: Value) {
        if value.kind().object().is_some() {
            value.kind().remove_pages(&mut self.dirty);
            self.garbage.push(Garbage(Deleted::Value(value)));
        }
    }

    /// Moves a key in the index of deadlines.
    #[inline]
    pub(crate) fn reindex(&mut self, db: u32, place: &Place, before: Option<u64>, after: Option<u64>) {
        if before != after {
            if let Some(deadline) = before {
                self.deadlines.remove(Death::new(deadline, db, place.slot, place.hash));
            }
            if let Some(deadline) = after {
                self.deadlines.insert(Death::new(deadline, db, place.slot, place.hash));
            }
        }
    }

    /// Changes an object's value in its record. `change` says with [`Pages::unchanged`] if it did not after
    /// all. Gives what `change` gave, and whether the value changed.
    pub(crate) fn change_object<R>(
        &mut self,
        db: u32,
        place: &Place,
        at: Position,
        change: impl FnOnce(&mut Object, &mut Pages<'_>) -> R,
    ) -> (R, bool) {
        let State { databases, dirty, next_object, revision, homes, hashing, .. } = self;
        let version = *revision + 1;
        let result = databases[db as usize].change(place.slot, at, dirty, |record, dirty| {
            let before = record.object_id();
            let Body::Object(object) = record.body_mut() else { unreachable!("checked by the caller") };
            let mut pages = Pages::new(dirty, next_object, *hashing);
            let result = change(object, &mut pages);
            let changed = pages.changed;
            if changed {
                object.version = version;
            }
            let after = object.value.kind().object();
            if before != after {
                before.map(|object| homes.remove(&object));
                after.map(|id| homes.insert(id, (db, object.key.clone())));
            }
            (result, changed)
        });
        *revision += u64::from(result.1);
        result
    }

    /// The value that has this object id.
    pub(crate) fn object(&self, object: u64) -> Option<&Value> {
        let (db, key) = self.homes.get(&object)?;
        match self.record(*db, key)?.body() {
            Body::Object(object) => Some(&object.value),
            Body::Packed(_) => None,
        }
    }

    /// As `object`, to load it.
    pub(crate) fn object_mut_unmarked(&mut self, object: u64) -> Option<&mut Value> {
        let (db, key) = self.homes.get(&object)?;
        let keyspace = self.databases.get_mut(*db as usize)?;
        let place = keyspace.place(key);
        match keyspace.at_mut_unmarked(place.slot, place.found.ok()?).body_mut() {
            Body::Object(object) => Some(&mut object.value),
            Body::Packed(_) => None,
        }
    }

    /// Whether a page is in memory.
    pub(crate) fn has_page(&self, id: PageId) -> bool {
        match id {
            PageId::Hashing => self.has_hash_key(),
            PageId::Segment { db, slot, start } => {
                self.keyspace(db).is_some_and(|keyspace| keyspace.has_segment(slot, start))
            }
            PageId::Object { object, part } => {
                self.object(object).is_some_and(|value| value.kind().has_part(part))
            }
        }
    }

    /// The content of a page in memory.
    pub(crate) fn encode_page(&self, id: PageId) -> Option<Vec<u8>> {
        match id {
            PageId::Hashing => self.hashing.key().map(|key| [&[FORMAT], &key[..]].concat()),
            PageId::Segment { db, slot, start } => self.keyspace(db)?.encode_segment(slot, start),
            PageId::Object { object, part } => self.object(object)?.kind().encode_part(part),
        }
    }

    /// Remembers where a large object is whose record was loaded. False if its id was seen already.
    pub(crate) fn home_of_loaded(&mut self, object: u64, db: u32, key: Box<[u8]>) -> bool {
        self.homes.insert(object, (db, key)).is_none()
    }

    /// The digest of the content of all databases, and of all else on which depends what the next entry does.
    pub fn digest(&self) -> u128 {
        let mut digest = Digest::default();
        // Every database has as many slots as a full one, and they take time to look through.
        let used = self.databases.iter().enumerate().filter(|(_, keyspace)| keyspace.len() > 0);
        for (db, keyspace) in used {
            for (_, record) in keyspace.iter() {
                digest.number(db as u64);
                digest.bytes(record.key());
                digest.number(record.version());
                digest.number(record.deadline().unwrap_or(0));
                digest.bytes(record.type_name().as_bytes());
                match record.body() {
                    Body::Packed(packed) => digest.bytes(packed.value()),
                    Body::Object(object) => {
                        digest.number(u64::from(object.value.kind().form()));
                        object.value.kind().digest(&mut digest);
                    }
                }
            }
        }
        let numbers =
            [self.now_ms, self.revision, self.next_object, self.token, self.term, self.led_since_ms];
        numbers.into_iter().for_each(|number| digest.number(number));
        if self.ahead_ms != 0 {
            digest.number(self.ahead_ms.cast_unsigned());
        }
        digest.bytes(&self.hashing.key().unwrap_or_default());
        digest.finish()
    }

    /// Panics if an invariant does not hold. For tests.
    #[cfg(test)]
    pub(crate) fn invariants(&self) {
        self.databases.iter().for_each(Keyspace::invariants);
        assert_eq!(self.keys, self.databases.iter().map(Keyspace::len).sum::<usize>());
        assert_eq!(self.deadlines.len(), self.databases.iter().map(Keyspace::expires).sum::<usize>());
        let mut objects = 0;
        for (_, record) in self.databases.iter().flat_map(Keyspace::iter) {
            assert!((1..=self.revision).contains(&record.version()));
            if let Some(object) = record.object_id() {
                assert!(object < self.next_object && self.object(object).is_some());
                objects += 1;
            }
        }
        assert_eq!(objects, self.homes.len());
        self.coordination_invariants();
    }

    #[cfg(test)]
    fn coordination_invariants(&self) {
        let (mut ticketed, mut attached, mut guarded) = (BTreeSet::new(), BTreeSet::new(), HashMap::new());
        for (db, keyspace) in (0..).zip(&self.databases) {
            for (_, record) in keyspace.iter() {
                if let Some(claims) = record.claims() {
                    assert_eq!(record.deadline(), claims.next_deadline());
                    assert!(!claims.is_idle());
                    let guards = claims.guards.iter();
                    guarded.extend(guards.map(|key| ((db, key.clone()), Box::from(record.key()))));
                    if claims.has_tickets() {
                        ticketed.insert((db, Box::<[u8]>::from(record.key())));
                    }
                }
                let keys = record.lease().into_iter().flat_map(|lease| lease.keys());
                attached.extend(keys.map(|key| (db, key.to_vec(), record.key().to_vec())));
            }
        }
        assert_eq!(ticketed, self.ticketed);
        let by_key = self.attached.iter().flat_map(|((db, key), ids)| {
            assert!(
                !ids.is_empty() && self.keyspace(*db).is_some_and(|keyspace| keyspace.get(key).is_some())
            );
            ids.iter().map(|id| (*db, key.to_vec(), id.to_vec()))
        });
        assert_eq!(attached, by_key.collect());
        assert_eq!(guarded, self.guarded);
    }
}

impl Default for State {
    fn default() -> Self {
        State::new()
    }
}
