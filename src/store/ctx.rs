//! Writing: what a command may do to one database, and its source of randomness. The effects depend only on
//! the state, the entry's time and index, and the command's arguments.
//!
//! An expired key is removed when a write meets it, so commands see it as missing.

use std::{cell::Cell, collections::BTreeSet};

use super::{
    catalog::Section,
    elements::Elements,
    hashing::Chance,
    keyspace::{Keyspace, Place},
    long_string::LongString,
    object::{Object, Pages, Typed, Value},
    record::{Body, PACKED_VALUE_BYTES_MAX, Record, long_string},
    state::State,
    view::View,
    waits::{Fate, Ticket},
};
use crate::error::{Error, Result};

/// What happens to a key's deadline when its value is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// It stays as it is.
    Keep,
    /// It is removed.
    None,
    /// The key expires when the log clock is past this, in milliseconds since the Unix epoch.
    At(u64),
}

/// The exactly-once session of the calling client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The session's database.
    pub db: u32,
    /// Its key.
    pub id: Box<[u8]>,
    /// Whether the client speaks RESP3.
    pub is_resp3: bool,
}

/// The context of a write command: one database to change, and the entry's time and randomness.
pub struct Ctx<'a> {
    /// The log clock.
    pub now_ms: u64,
    /// Set for a call that may wait: where to report how the wait ended.
    pub ticket: Option<Ticket>,
    /// What has become of the call.
    pub fate: Fate,
    /// The exactly-once session of the caller.
    pub caller: Option<Caller>,
    /// The elements that reads touch which the call runs; see [`View::elements`].
    pub read: Cell<Elements>,
    pub(crate) db: u32,
    pub(crate) chance: Chance,
    pub(crate) state: &'a mut State,
}

impl<'a> Ctx<'a> {
    /// A context for one call. `seed` is determined by the call's position in the log.
    pub fn new(state: &'a mut State, db: u32, seed: u64) -> Ctx<'a> {
        state.open(db);
        let chance = Chance::at_level(seed, state.level);
        let read = Cell::new(state.no_elements(state.level));
        Ctx { now_ms: state.now_ms, ticket: None, fate: Fate::Replied, caller: None, read, db, chance, state }
    }

    /// A view of the database as it is.
    pub fn view(&self) -> View<'_> {
        self.view_by(0)
    }

    /// The same with this seed, for random choices.
    pub fn view_by(&self, chance: u64) -> View<'_> {
        View::new(self.state, self.db, self.now_ms, chance).at_level(self.state.level)
    }

    /// The level of the entry being applied.
    pub fn level(&self) -> u32 {
        self.state.level
    }

    /// Converts an instant by the wall clock, as clients give it, to the log clock, where it becomes a
    /// deadline. In entries below [`WALL_TIMES`](super::level::WALL_TIMES) both are the same.
    pub fn log_ms(&self, wall_ms: i64) -> i64 {
        wall_ms.saturating_add(self.state.ahead_ms)
    }

    /// Counts the changes to keys.
    pub fn revision(&self) -> u64 {
        self.state.revision
    }

    /// The selected database.
    pub fn db(&self) -> u32 {
        self.db
    }

    /// Another database, for commands that name one.
    pub fn in_db(&mut self, db: u32) -> Ctx<'_> {
        let seed = self.chance.next_u64();
        Ctx::new(self.state, db, seed)
    }

    /// Sets the value of a name in a table that is no key. True if the name is new.
    pub fn catalog_put(&mut self, section: Section, name: &[u8], value: &[u8]) -> bool {
        let State { catalog, dirty, hashing, revision, .. } = &mut *self.state;
        *revision += 1;
        catalog.put((section, name), value, *hashing, dirty)
    }

    /// Removes a name from a table that is no key. False if there was none.
    pub fn catalog_remove(&mut self, section: Section, name: &[u8]) -> bool {
        let State { catalog, dirty, revision, .. } = &mut *self.state;
        let is_removed = catalog.remove(section, name, dirty);
        *revision += u64::from(is_removed);
        is_removed
    }

    /// The randomness of this call, the same on every node.
    pub fn chance(&mut self) -> &mut Chance {
        &mut self.chance
    }

    /// The bytes of a string. An error for other types.
    #[inline]
    pub fn string(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        self.view().string(key)
    }

    /// Whether the key exists.
    pub fn exists(&self, key: &[u8]) -> bool {
        self.view().exists(key)
    }

    fn keyspace(&self) -> &Keyspace {
        &self.state.databases[self.db as usize]
    }

    /// The place of a key, after removing it if it has expired.
    #[inline]
    pub(in crate::store) fn locate(&mut self, key: &[u8]) -> Place {
        self.state.end_overdue(self.db, key);
        let place = self.keyspace().place(key);
        if let Ok(at) = place.found
            && self.keyspace().at(place.slot, at).deadline().is_some_and(|deadline| deadline < self.now_ms)
        {
            self.state.expire(self.db, &place, at, None);
            return self.keyspace().place(key);
        }
        place
    }

    /// Sets a string, replacing any value.
    pub fn set(&mut self, key: &[u8], value: &[u8], deadline: Deadline) {
        let place = self.locate(key);
        let before = match place.found {
            Ok(at) => self.keyspace().at(place.slot, at).deadline(),
            Err(_) => None,
        };
        let deadline = match deadline {
            // The deadline of a lock and similar values belongs to the value.
            Deadline::Keep if self.view().keeps_its_time(key) => None,
            Deadline::Keep => before,
            Deadline::None => None,
            // 0 encodes no deadline, and a deadline of 1 has passed just as well.
            Deadline::At(deadline) => Some(deadline.max(1)),
        };
        let version = self.state.next_version();
        if let Ok(at) = place.found
            && value.len() <= PACKED_VALUE_BYTES_MAX
            && matches!(self.keyspace().at(place.slot, at).body(), Body::Packed(_))
        {
            self.state.reindex(self.db, &place, before, deadline);
            let State { databases, dirty, .. } = &mut *self.state;
            databases[self.db as usize].change(place.slot, at, dirty, |record, _| {
                let Body::Packed(packed) = record.body_mut() else { unreachable!("matched above") };
                packed.set(value, deadline, version);
            });
        } else {
            let record = if value.len() <= PACKED_VALUE_BYTES_MAX {
                Record::packed(place.hash, key, value, deadline, version)
            } else {
                let string = LongString::new(value.to_vec(), &mut self.pages());
                Record::object(place.hash, long_string(key, string, deadline, version))
            };
            self.replace(key, &place, record);
        }
        self.state.notify_string(self.db, key, value, deadline);
    }

    /// Replaces a record, if there is one.
    fn replace(&mut self, key: &[u8], place: &Place, record: Record) {
        let at = match place.found {
            Err(at) => at,
            Ok(at) => {
                self.state.remove(self.db, place, at);
                self.keyspace().place(key).found.expect_err("it was removed")
            }
        };
        self.state.insert(self.db, place, at, record);
    }

    fn pages(&mut self) -> Pages<'_> {
        let State { dirty, next_object, hashing, elements, .. } = &mut *self.state;
        Pages::new(dirty, next_object, *hashing).counting(elements)
    }

    /// Writes `bytes` into a string at `offset`, padding with zeros if needed; creates it if it does not
    /// exist. Returns its new length. The caller has checked the type and the limit.
    pub fn write_string(&mut self, key: &[u8], offset: usize, bytes: &[u8]) -> Result<usize> {
        let place = self.locate(key);
        if let Ok(at) = place.found {
            match self.keyspace().at(place.slot, at).body() {
                Body::Object(object) => match &object.value {
                    Value::String(_) => return Ok(self.write_long_string(key, &place, offset, bytes)),
                    #[allow(unreachable_patterns)]
                    _ => return Err(Error::WrongType),
                },
                Body::Packed(_) => {}
            }
        }
        let mut value = self.string(key)?.unwrap_or_default().to_vec();
        let end = offset + bytes.len();
        value.resize(value.len().max(end), 0);
        value[offset..end].copy_from_slice(bytes);
        self.set(key, &value, Deadline::Keep);
        Ok(value.len())
    }

    fn write_long_string(&mut self, key: &[u8], place: &Place, offset: usize, bytes: &[u8]) -> usize {
        let at = place.found.expect("the caller found it");
        let (len, _) =
            self.state.change_object(self.db, place, at, |object, pages| match &mut object.value {
                Value::String(string) => {
                    string.write(offset, bytes, pages);
                    string.bytes().len()
                }
                #[allow(unreachable_patterns)]
                _ => unreachable!("the caller matched it"),
            });
        self.state.notify(self.db, key);
        len
    }

    /// Changes a non-string value; None if the key does not exist. A collection that becomes empty is
    /// deleted. If `change` returns an error, it has changed nothing.
    pub fn modify<T: Typed, R>(
        &mut self,
        key: &[u8],
        change: impl FnOnce(&mut T, &mut Pages<'_>) -> Result<R>,
    ) -> Result<Option<R>> {
        let place = self.locate(key);
        let Ok(at) = place.found else { return Ok(None) };
        match self.keyspace().at(place.slot, at).body() {
            Body::Object(object) if T::of(&object.value).is_some() => {}
            _ => return Err(Error::WrongType),
        }
        let ((result, is_empty), changed) = self.state.change_object(self.db, &place, at, |object, pages| {
            let value = T::of_mut(&mut object.value).expect("checked above");
            let result = change(value, pages);
            if result.is_err() {
                pages.unchanged();
            }
            (result, value.is_empty())
        });
        if is_empty {
            // The change may have split the segment.
            let place = self.keyspace().place(key);
            self.state.erase(self.db, &place, place.found.expect("it was just changed"));
        }
        if changed {
            self.state.notify(self.db, key);
        }
        result.map(Some)
    }

    /// As [`Ctx::modify`], but begins with an empty value if the key does not exist.
    pub fn modify_or_create<T: Typed, R>(
        &mut self,
        key: &[u8],
        change: impl FnOnce(&mut T, &mut Pages<'_>) -> Result<R>,
    ) -> Result<R> {
        if self.locate(key).found.is_ok() {
            return self.modify(key, change).map(|result| result.expect("it is there"));
        }
        let mut value = T::default();
        let result = change(&mut value, &mut self.pages());
        if value.is_empty() {
            self.state.discard(value.into_value());
        } else {
            self.put(key, value, Deadline::None);
        }
        result
    }

    /// Stores a value at a key, replacing any other; an empty one deletes the key. A value with pages must
    /// come from [`Ctx::build`].
    pub fn put<T: Typed>(&mut self, key: &[u8], value: T, deadline: Deadline) {
        if value.is_empty() {
            self.state.discard(value.into_value());
            self.delete(key);
            return;
        }
        self.put_value(key, value.into_value(), deadline);
    }

    pub(in crate::store) fn put_value(&mut self, key: &[u8], value: Value, deadline: Deadline) {
        let place = self.locate(key);
        let deadline = match (deadline, place.found) {
            (Deadline::Keep, Ok(at)) => self.keyspace().at(place.slot, at).deadline(),
            (Deadline::Keep, Err(_)) | (Deadline::None, _) => None,
            (Deadline::At(deadline), _) => Some(deadline.max(1)),
        };
        let version = self.state.next_version();
        let record = Record::object(place.hash, Object { key: key.into(), version, deadline, value });
        self.replace(key, &place, record);
        self.state.notify(self.db, key);
    }

    /// Builds a value outside of any key; it must then be passed to [`Ctx::put`].
    pub fn build<T: Typed>(&mut self, build: impl FnOnce(&mut T, &mut Pages<'_>)) -> T {
        let mut value = T::default();
        build(&mut value, &mut self.pages());
        value
    }

    /// Deletes a key. False if there was none.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        let place = self.locate(key);
        let Ok(at) = place.found else { return false };
        self.state.next_version();
        self.state.erase(self.db, &place, at);
        self.state.notify(self.db, key);
        true
    }

    /// Sets or removes the deadline of a key. False if the key does not exist.
    pub fn set_deadline(&mut self, key: &[u8], deadline: Option<u64>) -> bool {
        let place = self.locate(key);
        let Ok(at) = place.found else { return false };
        let before = self.keyspace().at(place.slot, at).deadline();
        let deadline = deadline.map(|deadline| deadline.max(1));
        self.state.reindex(self.db, &place, before, deadline);
        let version = self.state.next_version();
        let State { databases, dirty, .. } = &mut *self.state;
        databases[self.db as usize]
            .change(place.slot, at, dirty, |record, _| record.stamp(deadline, version));
        self.state.notify(self.db, key);
        true
    }

    /// Moves a value and its deadline to another key, replacing any value there; its pages stay. False if
    /// `from` does not exist.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) -> bool {
        self.transfer(from, self.db, to)
    }

    /// As [`Ctx::rename`], to another database.
    pub fn transfer(&mut self, from: &[u8], to_db: u32, to: &[u8]) -> bool {
        if self.locate(from).found.is_err() {
            return false;
        }
        if from == to && self.db == to_db {
            return true;
        }
        self.state.open(to_db);
        let has_claims = self.state.record(self.db, from).is_some_and(|record| record.claims().is_some());
        // Claims keep their dependencies for now: they must end if they replace a lease on which they depend.
        let leases = if has_claims { BTreeSet::new() } else { self.state.detach_key(self.db, from) };
        // The target is deleted first, with all consequences, while everything else is still in place.
        self.in_db(to_db).delete(to);
        let place = self.keyspace().place(from);
        let Ok(at) = place.found else { return true };
        let record = self.state.take(self.db, &place, at);
        self.state.notify(self.db, from);
        self.in_db(to_db).put_record(to, record);
        if self.db == to_db {
            self.state.lease_renamed(to_db, from, to);
            leases.iter().for_each(|id| self.state.attach(to_db, id, to));
        }
        true
    }

    /// Stores a record that was taken from another key.
    fn put_record(&mut self, key: &[u8], record: Record) {
        let place = self.locate(key);
        let (deadline, version) = (record.deadline(), self.state.next_version());
        let record = match record.into_body() {
            Body::Packed(packed) => Record::packed(place.hash, key, packed.value(), deadline, version),
            Body::Object(object) => {
                Record::object(place.hash, Object { key: key.into(), version, ..*object })
            }
        };
        self.replace(key, &place, record);
        self.state.notify(self.db, key);
    }

    /// Copies a value and its deadline to another key, possibly in another database, replacing any value
    /// there. False if `from` does not exist.
    pub fn copy(&mut self, from: &[u8], to_db: u32, to: &[u8]) -> bool {
        let place = self.locate(from);
        let Ok(at) = place.found else { return false };
        let State { databases, dirty, next_object, hashing, .. } = &mut *self.state;
        let record = databases[self.db as usize].at(place.slot, at);
        let deadline = record.deadline().map_or(Deadline::None, Deadline::At);
        match record.body() {
            Body::Packed(packed) => {
                let value = packed.value().to_vec();
                self.in_db(to_db).set(to, &value, deadline);
            }
            Body::Object(object) => {
                let value = object.value.kind().copy(&mut Pages::new(dirty, next_object, *hashing));
                self.in_db(to_db).put_value(to, value, deadline);
            }
        }
        true
    }

    /// Deletes all keys of this database.
    pub fn flush_db(&mut self) {
        self.state.next_version();
        self.state.flush(self.db);
    }

    /// Deletes all keys of all databases.
    pub fn flush_all(&mut self) {
        self.state.next_version();
        self.state.flush_all();
    }
}
