//! All databases and what spans them: the clock, versions, deadlines, large objects, page marks.
//!
//! These functions keep the parts consistent with each other; the operations of commands are in `ctx.rs` and
//! `view.rs`.

use std::{any::Any, collections::BTreeSet};

use super::{
    catalog::Catalog,
    codec::FORMAT,
    deadlines::{Deadlines, Death},
    digest::Digest,
    dirty::{Dirty, PageId},
    elements::Elements,
    hashing::Hashing,
    keyspace::{Keyspace, Place, by_db::ByDb, homes::Homes},
    level,
    object::{Object, Pages, Value},
    owner::{LeaseId, Wake},
    record::{Body, Record},
    segments::Position,
    settings,
    tickets::Tickets,
    touched::{Touch, Touched},
    waits::Waits,
};

/// More databases than anybody uses: a call with a higher number fails.
pub const DATABASES_MAX: u32 = 1 << 14;

/// A database and a key in it.
pub(crate) type KeyOfDb = (u32, Box<[u8]>);

/// The replicated state.
///
/// Invariants:
/// - `deadlines` has exactly the records with a deadline; no deadline is 0.
/// - `homes` has exactly the values with their own pages: their keys by object id.
/// - `keys` is the number of records in all databases. All of them are in the order of `hashing`.
/// - All versions are from 1 to `revision`; all object ids are below `next_object`.
/// - `ticketed` has exactly the claims with tickets, and `tickets` has these. `attached` is the leases' lists of keys, by key; a plain
///   key depends on at most one lease. `guarded` is the claims' lists of guarded keys, by key.
#[derive(Debug)]
pub struct State {
    /// The log clock: the highest timestamp seen.
    pub(crate) now_ms: u64,
    /// The offset of the log clock from the wall clock, according to the last entry.
    pub(crate) ahead_ms: i64,
    /// Incremented by each change of a key.
    pub(crate) revision: u64,
    pub(crate) next_object: u64,
    /// The last fencing token issued.
    pub(crate) token: u64,
    /// The term of the last entry.
    pub(crate) term: u64,
    /// The log clock at the first entry of that term.
    pub(crate) led_since_ms: u64,
    pub(crate) databases: Vec<Keyspace>,
    pub(crate) deadlines: Deadlines,
    pub(crate) homes: Homes,
    pub(crate) keys: usize,
    pub(crate) hashing: Hashing,
    /// The level of the entry being applied.
    pub(crate) level: u32,
    pub(crate) ticketed: BTreeSet<KeyOfDb>,
    pub(crate) tickets: Tickets,
    pub(crate) attached: ByDb<BTreeSet<LeaseId>>,
    /// Guarded keys, each with the key that guards it.
    pub(crate) guarded: ByDb<Box<[u8]>>,
    /// What is replicated and is no key.
    pub(crate) catalog: Catalog,
    /// Calls that wait for keys.
    pub(crate) waits: Waits,
    /// The settings of the whole cluster, as the catalog has them.
    pub(crate) settings: settings::Values,
    /// The elements that the present request has touched.
    pub(crate) elements: Elements,
    /// Waits that ended since they were last taken.
    pub(crate) wakes: Vec<Wake>,
    pub(crate) dirty: Dirty,
    /// The index of the last applied entry.
    pub(crate) applied: u64,
    /// The keys touched since the list was last cleared; None if nobody needs it.
    pub(crate) touched: Option<Touched>,
    /// Deleted content that is expensive to drop.
    pub(crate) garbage: Vec<Garbage>,
    /// What it cost in memory, and still does until the end of the entry.
    pub(crate) buried_bytes: usize,
}

/// A value that takes less memory than this, besides its key's page, is dropped where it is deleted.
const DROPPED_HERE_BYTES_MAX: usize = 64 << 10;

/// Deleted content.
#[derive(Debug)]
pub struct Garbage(#[allow(dead_code)] pub(super) Deleted);

#[derive(Debug)]
#[allow(dead_code)]
pub(super) enum Deleted {
    Keyspace(Keyspace),
    Value(Value),
    /// What found the keys of emptied databases.
    Index(Box<dyn Any + Send + Sync>),
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
            homes: Homes::default(),
            keys: 0,
            hashing: Hashing::PLAIN,
            level: level::LEVEL_MAX,
            ticketed: BTreeSet::new(),
            tickets: Tickets::default(),
            attached: ByDb::default(),
            guarded: ByDb::default(),
            catalog: Catalog::default(),
            waits: Waits::default(),
            settings: Default::default(),
            elements: Elements::default(),
            wakes: Vec::new(),
            dirty: Dirty::default(),
            applied: 0,
            touched: None,
            garbage: Vec::new(),
            buried_bytes: 0,
        }
    }

    /// The log clock: the highest timestamp seen, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Advances the log clock to an entry's timestamp, never back, and notices a new leader by the entry's
    /// term.
    pub fn advance(&mut self, stamp_ms: u64, term: u64) {
        if term != self.term {
            // The new leader extends leases that had not run out: what had, is over first.
            while self.is_behind() {
                self.reap(usize::MAX);
            }
        }
        self.now_ms = self.now_ms.max(stamp_ms);
        if term != self.term {
            (self.term, self.led_since_ms) = (term, self.now_ms);
        }
    }

    /// How far the log clock is ahead of the wall clock, in milliseconds, according to the last entry.
    pub fn ahead_ms(&self) -> i64 {
        self.ahead_ms
    }

    /// Sets how far the log clock is ahead of the wall clock from here on.
    pub fn set_ahead(&mut self, ahead_ms: i64) {
        self.ahead_ms = ahead_ms;
    }

    /// Converts an instant by the log clock to the wall clock that clients use; within the range of an
    /// integer reply.
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

    /// Called before the log entry at `index` is applied by the rules of `level`.
    pub fn enter(&mut self, index: u64, level: u32) {
        (self.applied, self.level) = (index, level);
    }

    /// Sets the key with which all names are hashed. That changes their order, so it has no effect once there
    /// are keys, or calls that wait.
    pub fn take_hash_key(&mut self, key: [u8; 16]) {
        let hashing = Hashing::keyed(key);
        // The tables that are no keys are in that order, too.
        let is_empty = self.keys == 0 && self.catalog.is_empty();
        if !is_empty || self.hashing != Hashing::PLAIN || hashing == Hashing::PLAIN {
            return;
        }
        self.hashing = hashing;
        for (db, keyspace) in (0u32..).zip(&mut self.databases) {
            *keyspace = Keyspace::new(db, hashing);
        }
        self.dirty.created(PageId::Hashing);
    }

    /// The level of the entry being applied.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// Whether names are hashed with a key.
    pub fn has_hash_key(&self) -> bool {
        self.hashing != Hashing::PLAIN
    }

    /// Records touched keys from now on, with strings of up to this many bytes; or does not.
    pub fn note_touched(&mut self, string_bytes_max: Option<usize>) {
        if self.touched.as_ref().map(Touched::string_bytes_max) != string_bytes_max {
            self.touched = string_bytes_max.map(Touched::new);
        }
    }

    /// The keys touched since the list was last cleared.
    pub fn touched(&self) -> Option<&Touched> {
        self.touched.as_ref().filter(|touched| !touched.is_empty())
    }

    /// Clears the list of touched keys.
    pub fn forget_touched(&mut self) {
        if let Some(touched) = &mut self.touched {
            touched.clear();
        }
    }

    /// The number of databases; those above were never written to.
    pub fn databases(&self) -> u32 {
        self.databases.len() as u32
    }

    /// When the first key expires, or the first wait.
    pub fn first_deadline_ms(&self) -> Option<u64> {
        let key = self.deadlines.first().map(|death| death.deadline);
        key.into_iter().chain(self.waits.first_deadline()).min()
    }

    /// Takes the deleted content that is expensive to drop.
    pub fn take_garbage(&mut self) -> Vec<Garbage> {
        self.buried_bytes = 0;
        std::mem::take(&mut self.garbage)
    }

    /// Becomes `new`; returns the old state. Touched keys are still recorded, if they were.
    pub fn replace(&mut self, mut new: State) -> State {
        new.touched = self.touched.as_ref().map(Touched::emptied);
        std::mem::replace(self, new)
    }

    /// A database, if it was ever written to.
    pub(crate) fn keyspace(&self, db: u32) -> Option<&Keyspace> {
        self.databases.get(db as usize)
    }

    /// Creates a database if needed. `db` is below [`DATABASES_MAX`].
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
        // Whoever listens on this node: what is fed, and in which order, is the same on all.
        self.waits.feed(db, key);
        match &mut self.touched {
            Some(touched) if deadline.is_none_or(|deadline| deadline >= self.now_ms) => {
                touched.push_string(db, key, string);
            }
            _ => self.notify(db, key),
        }
    }

    pub(crate) fn note(&mut self, db: u32, key: &[u8], touch: Touch) {
        self.waits.feed(db, key);
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
            self.homes.insert(object, db, record.key());
        }
        self.keys += 1;
        let claims_key = record.claims().map(|_| Box::<[u8]>::from(record.key()));
        self.databases[db as usize].insert(slot, at, record, &mut self.dirty);
        if let Some(key) = claims_key {
            self.claims_came(db, &key);
        }
    }

    /// Takes a record out. Its value keeps its own pages: it is stored elsewhere, or `discard` removes them.
    pub(crate) fn take(&mut self, db: u32, place: &Place, at: Position) -> Record {
        let record = self.databases[db as usize].remove(place.slot, at, &mut self.dirty);
        self.keys -= 1;
        if let Some(deadline) = record.deadline() {
            self.deadlines.remove(Death::new(deadline, db, place.slot, place.hash));
        }
        if let Some(object) = record.object_id() {
            self.homes.remove(object);
        }
        self.claims_left(db, &record);
        record
    }

    /// Removes a record, possibly to be replaced: the key's dependencies stay.
    pub(crate) fn remove(&mut self, db: u32, place: &Place, at: Position) {
        if let Body::Object(object) = self.take(db, place, at).into_body() {
            self.value_gone(db, &object.key, &object.value);
            self.discard(object.value);
        }
    }

    /// Deletes the pages of a value that is not in any record.
    pub(crate) fn discard(&mut self, value: Value) {
        value.kind().remove_pages(&mut self.dirty);
        self.bury(value);
    }

    /// Leaves a value that is expensive to drop to be dropped aside.
    pub(crate) fn bury(&mut self, value: Value) {
        if value.kind().object().is_some() || value.kind().more_bytes() > DROPPED_HERE_BYTES_MAX {
            self.buried_bytes += value.kind().more_bytes();
            self.garbage.push(Garbage(Deleted::Value(value)));
        }
    }

    /// Updates a key's entry in the index of deadlines.
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

    /// Changes an object's value in its record. `change` calls [`Pages::unchanged`] if it changes nothing.
    /// Returns the result of `change`, and whether the value changed.
    pub(crate) fn change_object<R>(
        &mut self,
        db: u32,
        place: &Place,
        at: Position,
        change: impl FnOnce(&mut Object, &mut Pages<'_>) -> R,
    ) -> (R, bool) {
        let State { databases, dirty, next_object, revision, homes, hashing, elements, .. } = self;
        let version = *revision + 1;
        let result = databases[db as usize].change(place.slot, at, dirty, |record, dirty| {
            let before = record.object_id();
            let Body::Object(object) = record.body_mut() else { unreachable!("checked by the caller") };
            let mut pages = Pages::new(dirty, next_object, *hashing).counting(elements);
            let result = change(object, &mut pages);
            let changed = pages.changed;
            if changed {
                object.version = version;
            }
            let after = object.value.kind().object();
            if before != after {
                before.map(|object| homes.remove(object));
                after.map(|id| homes.insert(id, db, &object.key));
            }
            (result, changed)
        });
        *revision += u64::from(result.1);
        result
    }

    /// The value with this object id.
    pub(crate) fn object(&self, object: u64) -> Option<&Value> {
        let (db, key) = self.homes.get(object)?;
        match self.record(*db, key)?.body() {
            Body::Object(object) => Some(&object.value),
            Body::Packed(_) => None,
        }
    }

    /// As `object`, for loading.
    pub(crate) fn object_mut_unmarked(&mut self, object: u64) -> Option<&mut Value> {
        let (db, key) = self.homes.get(object)?;
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
            PageId::Catalog { section, part } => self.catalog.has_part(section, part),
        }
    }

    /// The content of a page in memory.
    pub(crate) fn encode_page(&self, id: PageId) -> Option<Vec<u8>> {
        match id {
            PageId::Hashing => self.hashing.key().map(|key| [&[FORMAT], &key[..]].concat()),
            PageId::Segment { db, slot, start } => self.keyspace(db)?.encode_segment(slot, start),
            PageId::Object { object, part } => self.object(object)?.kind().encode_part(part),
            PageId::Catalog { section, part } => self.catalog.encode_part(section, part),
        }
    }

    /// A digest of the content of all databases, and of everything else that the effects of the next entry
    /// depend on.
    pub fn digest(&self) -> u128 {
        let mut digest = Digest::default();
        // An empty database has as many slots as a full one, which take time to scan.
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
        self.catalog.digest(&mut digest);
        digest.finish()
    }

    /// Panics if an invariant does not hold. For tests.
    #[cfg(test)]
    pub(crate) fn invariants(&self) {
        self.databases.iter().for_each(Keyspace::invariants);
        assert_eq!(self.keys, self.databases.iter().map(Keyspace::len).sum::<usize>());
        assert_eq!(self.dirty.keys_bytes, self.databases.iter().map(Keyspace::bytes).sum::<usize>());
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
        self.waits.invariants(&self.catalog);
    }

    #[cfg(test)]
    fn coordination_invariants(&self) {
        let (mut ticketed, mut attached, mut guarded) = (BTreeSet::new(), BTreeSet::new(), ByDb::default());
        let mut tickets = Tickets::default();
        for (db, keyspace) in (0..).zip(&self.databases) {
            for (_, record) in keyspace.iter() {
                if let Some(claims) = record.claims() {
                    assert_eq!(record.deadline(), claims.next_deadline());
                    assert!(!claims.is_idle());
                    claims.invariants();
                    let guards = claims.guards();
                    guards.for_each(|key| guarded.insert(db, key, Box::from(record.key())));
                    for (ticket, is_waiting) in claims.all_traces().tickets {
                        tickets.set(ticket, (db, record.key().into()), is_waiting);
                    }
                    if claims.has_tickets() {
                        ticketed.insert((db, Box::<[u8]>::from(record.key())));
                    }
                }
                let keys = record.lease().into_iter().flat_map(|lease| lease.keys());
                attached.extend(keys.map(|key| (db, key.to_vec(), record.key().to_vec())));
            }
        }
        assert_eq!((ticketed, tickets), (self.ticketed.clone(), self.tickets.clone()));
        let by_key = self.attached.iter().flat_map(|(db, key, ids)| {
            assert!(!ids.is_empty() && self.keyspace(db).is_some_and(|keyspace| keyspace.get(key).is_some()));
            ids.iter().map(move |id| (db, key.to_vec(), id.to_vec()))
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
