//! Writing: what a command may do to one database, and the chance it may use. Whatever it does depends on the
//! state, the entry's time and index, and its arguments alone.
//!
//! A dead key is removed when a write meets it, so commands see it as missing.

use std::collections::BTreeSet;

use super::{
    claim::{ClaimKind, Ticket, Turn},
    claims::Claims,
    client_session::ClientSession,
    hash::Chance,
    keyspace::{Keyspace, Place},
    lease::Lease,
    level,
    long_string::LongString,
    object::{Object, Pages, Typed, Value},
    record::{Body, PACKED_VALUE_BYTES_MAX, Record, long_string},
    state::State,
    view::View,
};
use crate::error::{Error, Result};

/// What becomes of a key's deadline when its value is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// It stays, if there was one.
    Keep,
    /// The key will not die.
    None,
    /// The key dies after this, in milliseconds since the Unix epoch.
    At(u64),
}

/// The session of whoever calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Where the session is.
    pub db: u32,
    /// Its key.
    pub id: Box<[u8]>,
    /// The version of the protocol that the caller speaks.
    pub is_resp3: bool,
}

/// What a write command gets: one database to change, and the entry's time and chance.
pub struct Ctx<'a> {
    /// The log clock.
    pub now_ms: u64,
    /// Set for a call that may wait: whom to tell how it ended.
    pub ticket: Option<Ticket>,
    /// The session that the caller is in.
    pub caller: Option<Caller>,
    pub(crate) db: u32,
    pub(crate) chance: Chance,
    pub(crate) state: &'a mut State,
}

impl<'a> Ctx<'a> {
    /// A context for one call. `seed` is determined by the call's position in the log.
    pub fn new(state: &'a mut State, db: u32, seed: u64) -> Ctx<'a> {
        state.open(db);
        let chance = Chance::at_level(seed, state.level);
        Ctx { now_ms: state.now_ms, ticket: None, caller: None, db, chance, state }
    }

    /// The database as it is.
    pub fn view(&self) -> View<'_> {
        self.view_by(0)
    }

    /// The same, for what is to be chosen by this chance.
    pub fn view_by(&self, chance: u64) -> View<'_> {
        View::new(self.state, self.db, self.now_ms, chance).at_level(self.state.level)
    }

    /// The rule by which the entry is applied.
    pub fn level(&self) -> u32 {
        self.state.level
    }

    /// An instant by the wall clock, as clients name it, by the log clock: where it becomes a deadline. In entries below
    /// [`level::WALL_TIMES`] it is the same.
    pub fn log_ms(&self, wall_ms: i64) -> i64 {
        wall_ms.saturating_add(self.state.ahead_ms)
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

    /// A number by chance, the same on every node.
    pub fn chance(&mut self) -> &mut Chance {
        &mut self.chance
    }

    /// Changes the claims of a kind at a key; None if there is no such key.
    pub fn claims<R>(
        &mut self,
        key: &[u8],
        kind: ClaimKind,
        change: impl FnOnce(&mut Claims, &mut Turn<'_>) -> Result<R>,
    ) -> Result<Option<R>> {
        self.locate(key);
        if self.view().claims(key, kind)?.is_none() {
            return Ok(None);
        }
        let changed = self.state.change_claims(self.db, key, |claims, turn| {
            let result = change(claims, turn);
            turn.changed &= result.is_ok();
            result
        });
        changed.transpose()
    }

    /// As [`Ctx::claims`], but begins with claims that nobody has if there is no such key.
    pub fn claims_or_new<R>(
        &mut self,
        key: &[u8],
        kind: ClaimKind,
        change: impl FnOnce(&mut Claims, &mut Turn<'_>) -> Result<R>,
    ) -> Result<R> {
        if self.locate(key).found.is_ok() {
            let Some(present) = self.view().value::<Claims>(key)?.map(Claims::kind) else {
                unreachable!("it was found");
            };
            let is_restored = self.level() >= level::BOUNDED;
            let result = self.claims(key, present, |claims, turn| {
                let before = claims.nature();
                let result = claims.become_kind(kind).and_then(|()| change(claims, turn));
                if result.is_err() && is_restored {
                    claims.set_nature(before);
                }
                result
            });
            return result.map(|result| result.expect("it is there"));
        }
        let mut claims = Claims::new(kind);
        let State { token, wakes, .. } = &mut *self.state;
        let mut turn = Turn { now_ms: self.now_ms, token, wakes, changed: true };
        let result = change(&mut claims, &mut turn)?;
        claims.settle(&mut turn);
        if !claims.is_idle() {
            let deadline = claims.next_deadline().map_or(Deadline::None, Deadline::At);
            self.put_value(key, Value::Claims(claims), deadline);
        }
        Ok(result)
    }

    /// Lets only those write a key who hold what is at `lock`. False if that was so already.
    pub fn guard(&mut self, key: &[u8], lock: &[u8]) -> Result<bool> {
        // Nobody could ever take a lock that guards itself, or one of two that guard each other.
        let is_claimed = || self.view().value::<Claims>(key).is_ok_and(|claims| claims.is_some());
        if self.level() >= level::BOUNDED && (key == lock || is_claimed()) {
            return Err(Error::err("a lock, semaphore or election can not be guarded"));
        }
        match self.view().guard_of(key) {
            Some(present) if present == lock => return Ok(false),
            Some(present) => {
                let present = present.escape_ascii();
                return Err(Error::err(format!("the key is guarded by '{present}' already")));
            }
            None => {}
        }
        if self.locate(lock).found.is_err() {
            let mut claims = Claims::new(ClaimKind::Lock);
            claims.guard(key)?;
            self.put_value(lock, Value::Claims(claims), Deadline::None);
            return Ok(true);
        }
        if self.view().value::<Claims>(lock)?.is_some() {
            self.state.guard(self.db, key, lock)?;
        }
        Ok(true)
    }

    /// Lets a key be written as any other again. False if it could be.
    pub fn unguard(&mut self, key: &[u8]) -> bool {
        self.state.unguard(self.db, key)
    }

    /// A number that no grant has, above all that were ever given.
    pub fn issue_token(&mut self) -> u64 {
        self.state.token += 1;
        self.state.token
    }

    /// The session at a key.
    pub fn session(&mut self, id: &[u8]) -> Result<Option<&ClientSession>> {
        self.locate(id);
        self.view().value::<ClientSession>(id)
    }

    /// Puts a session at a key where there is nothing.
    pub fn put_session(&mut self, id: &[u8], session: ClientSession) {
        let deadline = self.now_ms + session.ttl_ms;
        self.put_value(id, Value::Session(session), Deadline::At(deadline));
    }

    /// A session's command was applied.
    pub fn remember(&mut self, caller: &Caller, number: u64, reply: &[u8]) {
        self.state.remember(caller, number, reply);
    }

    /// The lease at a key, with the deadline that it has.
    pub fn lease(&mut self, id: &[u8]) -> Result<Option<&Lease>> {
        self.locate(id);
        self.view().value::<Lease>(id)
    }

    /// Makes a lease, or gives the one that is there its whole time again. Gives its deadline.
    pub fn renew_lease(&mut self, id: &[u8], lease: Option<Lease>) -> Result<Option<u64>> {
        if let Some(lease) = lease {
            let deadline = self.now_ms + lease.ttl_ms;
            self.put_value(id, Value::Lease(lease), Deadline::At(deadline));
            return Ok(Some(deadline));
        }
        let Some(ttl_ms) = self.lease(id)?.map(|lease| lease.ttl_ms) else { return Ok(None) };
        let deadline = self.now_ms + ttl_ms;
        self.set_deadline(id, Some(deadline));
        Ok(Some(deadline))
    }

    /// Binds a lease, which exists, to another connection, and gives the number of that.
    pub fn bind_lease(&mut self, id: &[u8]) -> Result<u64> {
        let binding = self.issue_token();
        self.modify::<Lease, _>(id, |lease, _| {
            lease.binding = binding;
            Ok(())
        })?;
        Ok(binding)
    }

    /// Lets a plain key that exists depend on a lease that exists, and on no other.
    pub fn attach(&mut self, id: &[u8], key: &[u8]) {
        self.state.detach_key(self.db, key);
        self.state.attach(self.db, id, key);
    }

    /// Somebody who waited under a ticket is not there any more.
    pub fn cancel(&mut self, key: &[u8], ticket: Ticket) {
        self.state.change_ticketed(self.db, key, ticket, |claims, turn| {
            claims.cancel(ticket, turn.now_ms);
        });
    }

    /// Somebody who waited under a ticket knows that it was granted.
    pub fn confirm(&mut self, key: &[u8], ticket: Ticket) {
        self.state.change_ticketed(self.db, key, ticket, |claims, turn| {
            claims.confirm(ticket);
            // Nobody can see it.
            turn.changed = false;
        });
    }

    /// A node does not wait any more, but for one run of it.
    pub fn forget_node(&mut self, node: u64, but_boot: u64) {
        self.state.forget_node(node, but_boot);
    }

    /// The bytes of a string. An error for other types.
    #[inline]
    pub fn string(&self, key: &[u8]) -> Result<Option<&[u8]>> {
        self.view().string(key)
    }

    /// Whether there is such a key.
    pub fn exists(&self, key: &[u8]) -> bool {
        self.view().exists(key)
    }

    fn keyspace(&self) -> &Keyspace {
        &self.state.databases[self.db as usize]
    }

    /// Where a key is, alive.
    #[inline]
    fn locate(&mut self, key: &[u8]) -> Place {
        let place = self.keyspace().place(key);
        if let Ok(at) = place.found
            && self.keyspace().at(place.slot, at).deadline().is_some_and(|deadline| deadline < self.now_ms)
        {
            self.state.expire(self.db, &place, at, None);
            return self.keyspace().place(key);
        }
        place
    }

    /// Sets a string, whatever was there.
    pub fn set(&mut self, key: &[u8], value: &[u8], deadline: Deadline) {
        let place = self.locate(key);
        let before = match place.found {
            Ok(at) => self.keyspace().at(place.slot, at).deadline(),
            Err(_) => None,
        };
        let deadline = match deadline {
            // That of a lock and its like is its own.
            Deadline::Keep if self.view().keeps_its_time(key) => None,
            Deadline::Keep => before,
            Deadline::None => None,
            // No deadline is 0, and nothing is dead at 1 that was not at 0.
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

    /// Puts a record in the place of what was there, if anything.
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
        Pages::new(&mut self.state.dirty, &mut self.state.next_object, self.state.hashing)
    }

    /// Writes `bytes` into a string at `offset`, growing it with zeros if needed; creates it if there is none.
    /// Gives its length. The caller has checked the type and the limit.
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

    /// Changes the value of a key, of a type other than strings; None if there is no such key. A collection
    /// that is empty afterwards is deleted. On an error `change` has changed nothing.
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

    /// As [`Ctx::modify`], but begins with an empty value if there is no such key.
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

    /// Puts a value at a key, whatever was there; an empty one deletes the key. A value that has pages got
    /// them from [`Ctx::build`].
    pub fn put<T: Typed>(&mut self, key: &[u8], value: T, deadline: Deadline) {
        if value.is_empty() {
            self.state.discard(value.into_value());
            self.delete(key);
            return;
        }
        self.put_value(key, value.into_value(), deadline);
    }

    fn put_value(&mut self, key: &[u8], value: Value, deadline: Deadline) {
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

    /// Builds a value that is at no key yet; it must be given to [`Ctx::put`] then.
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

    /// Gives a key that exists a deadline, or none. False if there is no such key.
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

    /// Moves a value with its deadline to another key, whatever was there; its pages stay. False if there is
    /// no key `from`.
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
        // Claims keep what they depend on for now: they end with a lease that they are put in the place of.
        let leases = if has_claims { BTreeSet::new() } else { self.state.detach_key(self.db, from) };
        // What was there goes first, with all consequences, while everything else is still in its place.
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

    /// Puts a record that was taken out elsewhere at another key.
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

    /// Copies a value with its deadline to another key, perhaps of another database, whatever was there. False
    /// if there is no key `from`.
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
