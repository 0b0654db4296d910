//! Removing many keys at once: expiry, FLUSHDB and FLUSHALL.

use std::{
    any::Any,
    collections::{BTreeSet, HashMap, VecDeque},
    ops::RangeInclusive,
};

use crate::store::{
    deadlines::Death,
    keyspace::{Keyspace, Place},
    lease::Lease,
    level,
    owner::LeaseId,
    record::{Body, Record},
    state::{DATABASES_MAX, Deleted, Garbage, KeyOfDb, State},
    touched::Touch,
    waits::Ticket,
};

/// How many records and claims one reaping may examine, to find those that are due and to end what depends on leases.
/// Only the last key may exceed it.
const LOOKS_MAX: usize = 10_000;
/// The same below [`level::LIMITS`], for records alone.
const RECORDS_MAX: usize = 100_000;
/// A database with at most this many keys is emptied key by key: its slots stay allocated, and nothing is
/// left to be dropped.
const FLUSHED_SINGLY_MAX: usize = 256;

/// Leases that have run out, by the claims that depend on them. The claims are changed once for all of their
/// leases, when all are known: each lease alone would cost as much.
#[derive(Default)]
pub(crate) struct RunOut {
    claims: HashMap<KeyOfDb, BTreeSet<LeaseId>>,
    /// In the order in which they were found.
    order: VecDeque<KeyOfDb>,
}

impl RunOut {
    pub fn add(&mut self, db: u32, key: &[u8], lease: &[u8]) {
        let leases = self.claims.entry((db, key.into())).or_default();
        if leases.is_empty() {
            self.order.push_back((db, key.into()));
        }
        leases.insert(lease.into());
    }

    /// Takes out the leases of the claims in a record, if there are any.
    fn of(&mut self, db: u32, record: &Record) -> Option<(KeyOfDb, BTreeSet<LeaseId>)> {
        if self.claims.is_empty() || record.claims().is_none() {
            return None;
        }
        self.claims.remove_entry(&(db, record.key().into()))
    }

    /// Takes out the first.
    fn first(&mut self) -> Option<(KeyOfDb, BTreeSet<LeaseId>)> {
        std::iter::from_fn(|| self.order.pop_front()).find_map(|place| self.claims.remove_entry(&place))
    }
}

impl State {
    /// Does what is due at up to `max` keys whose deadline has passed, in the order of their deadlines.
    pub fn reap(&mut self, max: usize) {
        let (mut looks, mut run_out) = (0, RunOut::default());
        let is_bounded = self.level >= level::BOUNDED;
        let (counts_claims, looks_max) = match self.level {
            ..level::LIMITS => (false, RECORDS_MAX),
            _ => (true, LOOKS_MAX),
        };
        for _ in 0..max {
            let Some(&Death { deadline, db, slot, hash, .. }) = self.deadlines.first() else { break };
            if deadline >= self.now_ms || is_bounded && looks > looks_max {
                break;
            }
            let keyspace = &self.databases[db as usize];
            let (at, looked_at) = keyspace
                .find_by(slot, hash, |record| record.deadline() == Some(deadline))
                .expect("what stands in the index is in the keyspace");
            let record = self.databases[db as usize].at(slot, at);
            // The keys that depend on a lease are part of the work.
            looks += looked_at + record.lease().map_or(0, Lease::len);
            looks +=
                record.claims().filter(|_| counts_claims).map_or(0, |claims| claims.due_len(self.now_ms));
            let place = Place { slot, hash, found: Ok(at) };
            if is_bounded && let Some(claims) = run_out.of(db, record) {
                // End them before anything is granted under a lease that is gone. Once settled, the claims
                // are no longer due.
                self.end_run_out(claims);
                continue;
            }
            self.expire(db, &place, at, is_bounded.then_some(&mut run_out));
        }
        while let Some(claims) = run_out.first() {
            self.end_run_out(claims);
        }
    }

    fn end_run_out(&mut self, ((db, key), leases): (KeyOfDb, BTreeSet<LeaseId>)) {
        self.end_leases(db, &key, &leases, true);
    }

    /// Deletes all keys of a database. The time depends on what has pages of its own there, and on who waits.
    pub(crate) fn flush(&mut self, db: u32) {
        let len = self.keyspace(db).map_or(0, Keyspace::len);
        if len == 0 {
            return;
        }
        self.dismiss_waiting(db..=db);
        self.note(db, b"", Touch::Flushed);
        self.keys -= len;
        let homes = self.homes.take(db);
        self.remove_pages_of(homes.iter());
        let index = (self.deadlines.take(db), self.attached.take(db), self.guarded.take(db), homes);
        self.bury_index(index, len);
        self.clear(db);
    }

    /// Deletes all keys of all databases.
    pub(crate) fn flush_all(&mut self) {
        if self.keys == 0 {
            return;
        }
        self.dismiss_waiting(0..=DATABASES_MAX);
        let homes = std::mem::take(&mut self.homes);
        self.remove_pages_of(homes.places());
        let State { deadlines, attached, guarded, .. } = self;
        let index = (std::mem::take(deadlines), std::mem::take(attached), std::mem::take(guarded), homes);
        self.bury_index(index, self.keys);
        for db in 0..self.databases.len() as u32 {
            if self.databases[db as usize].len() > 0 {
                self.clear(db);
                self.note(db, b"", Touch::Flushed);
            }
        }
        self.keys = 0;
    }

    /// Deletes the pages of values that have their own.
    fn remove_pages_of<'a>(&mut self, places: impl Iterator<Item = &'a KeyOfDb>) {
        let State { databases, dirty, .. } = self;
        for (db, key) in places {
            let record = databases[*db as usize].get(key).expect("a value is where it is at home");
            if let Body::Object(object) = record.body() {
                object.value.kind().remove_pages(dirty);
            }
        }
    }

    /// Leaves what was the index of that many keys to be dropped aside, unless they are few.
    fn bury_index(&mut self, index: impl Any + Send + Sync, keys: usize) {
        if keys > FLUSHED_SINGLY_MAX {
            self.garbage.push(Garbage(Deleted::Index(Box::new(index))));
        }
    }

    /// Empties a database of which no index knows any more.
    fn clear(&mut self, db: u32) {
        let State { databases, dirty, .. } = self;
        let keyspace = &mut databases[db as usize];
        if keyspace.len() > FLUSHED_SINGLY_MAX {
            self.buried_bytes += keyspace.bytes;
            let old = keyspace.clear(dirty);
            self.garbage.push(Garbage(Deleted::Keyspace(old)));
            return;
        }
        while let Some((slot, record)) = self.databases[db as usize].first() {
            let at = self.databases[db as usize].place(record.key()).found.expect("it was found");
            let record = self.databases[db as usize].remove(slot, at, &mut self.dirty);
            if let Body::Object(object) = record.into_body() {
                self.bury(object.value);
            }
        }
    }

    /// Ends all waits in these databases.
    fn dismiss_waiting(&mut self, dbs: RangeInclusive<u32>) {
        let range = (*dbs.start(), Box::default())..(*dbs.end() + 1, Box::default());
        let gone: Vec<KeyOfDb> = self.ticketed.range(range).cloned().collect();
        let mut wakes = std::mem::take(&mut self.wakes);
        for (db, key) in &gone {
            let Some(claims) = self.record(*db, key).and_then(Record::claims) else { continue };
            claims.dismiss(&mut wakes);
            let tickets: Vec<Ticket> = claims.tickets().collect();
            tickets.into_iter().for_each(|ticket| self.tickets.set(ticket, (*db, key.clone()), None));
        }
        gone.iter().for_each(|place| _ = self.ticketed.remove(place));
        self.wakes = wakes;
    }
}

#[cfg(test)]
#[path = "reap_tests.rs"]
mod tests;
