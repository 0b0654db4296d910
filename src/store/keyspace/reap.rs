//! Removing many keys at once: expiry, FLUSHDB and FLUSHALL.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ops::RangeInclusive,
};

use crate::store::{
    deadlines::{Deadlines, Death},
    keyspace::Place,
    lease::Lease,
    level,
    object::Value,
    owner::LeaseId,
    record::{Body, Record},
    segments::Item,
    state::{DATABASES_MAX, Deleted, Garbage, KeyOfDb, State},
    touched::Touch,
    waits::Ticket,
};

/// How many records one reaping may examine, to find those that are due and to end what depends on leases.
/// Only the last key may exceed it.
const LOOKS_MAX: usize = 100_000;
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
        for _ in 0..max {
            let Some(&Death { deadline, db, slot, hash, .. }) = self.deadlines.first() else { break };
            if deadline >= self.now_ms || is_bounded && looks > LOOKS_MAX {
                break;
            }
            let keyspace = &self.databases[db as usize];
            let (at, looked_at) = keyspace
                .find_by(slot, hash, |record| record.deadline() == Some(deadline))
                .expect("what stands in the index is in the keyspace");
            let record = self.databases[db as usize].at(slot, at);
            // The keys that depend on a lease are part of the work.
            looks += looked_at + record.lease().map_or(0, Lease::len);
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

    /// Deletes all keys of a database. The time depends on its own keys only.
    pub(crate) fn flush(&mut self, db: u32) {
        let len = self.keyspace(db).map_or(0, |keyspace| keyspace.len());
        if len == 0 {
            return;
        }
        self.dismiss_waiting(db..=db);
        self.note(db, b"", Touch::Flushed);
        self.keys -= len;
        if len <= FLUSHED_SINGLY_MAX {
            return self.flush_singly(db);
        }
        let keyspace = &mut self.databases[db as usize];
        let (expires, objects) = (keyspace.expires(), keyspace.objects());
        let old = keyspace.clear(&mut self.dirty);
        let is_indexed_singly = expires > 0 && len < self.deadlines.len() && expires < self.deadlines.len();
        if expires == self.deadlines.len() {
            self.deadlines = Deadlines::default();
        } else if expires > 0 && !is_indexed_singly {
            self.deadlines.clear(db);
        }
        if objects > 0 || is_indexed_singly {
            for (slot, record) in old.iter() {
                if is_indexed_singly && let Some(deadline) = record.deadline() {
                    self.deadlines.remove(Death::new(deadline, db, slot, record.hash()));
                }
                self.forget(db, record);
            }
        }
        self.garbage.push(Garbage(Deleted::Keyspace(old)));
    }

    fn flush_singly(&mut self, db: u32) {
        while let Some((slot, record)) = self.databases[db as usize].first() {
            let hash = record.hash();
            if let Some(deadline) = record.deadline() {
                self.deadlines.remove(Death::new(deadline, db, slot, hash));
            }
            let place = self.databases[db as usize].place(record.key());
            let at = place.found.expect("it was found");
            let record = self.databases[db as usize].remove(slot, at, &mut self.dirty);
            self.forget(db, &record);
            if let Body::Object(object) = record.into_body()
                && object.value.kind().object().is_some()
            {
                self.garbage.push(Garbage(Deleted::Value(object.value)));
            }
        }
    }

    /// Deletes all keys of all databases.
    pub(crate) fn flush_all(&mut self) {
        if self.keys == 0 {
            return;
        }
        self.dismiss_waiting(0..=DATABASES_MAX);
        for db in 0..self.databases.len() as u32 {
            let keyspace = &mut self.databases[db as usize];
            let (len, objects) = (keyspace.len(), keyspace.objects());
            if len == 0 {
                continue;
            }
            if len <= FLUSHED_SINGLY_MAX {
                self.flush_singly(db);
            } else {
                let old = keyspace.clear(&mut self.dirty);
                if objects > 0 {
                    old.iter().for_each(|(_, record)| self.forget(db, record));
                }
                self.garbage.push(Garbage(Deleted::Keyspace(old)));
            }
            self.note(db, b"", Touch::Flushed);
        }
        (self.deadlines, self.keys) = Default::default();
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

    /// Removes the pages and all index entries, except for deadlines, of a record that is deleted with its
    /// whole database.
    fn forget(&mut self, db: u32, record: &Record) {
        let Body::Object(object) = record.body() else { return };
        if let Some(id) = object.value.kind().object() {
            object.value.kind().remove_pages(&mut self.dirty);
            self.homes.remove(&id);
        }
        match &object.value {
            Value::Claims(claims) => {
                for guarded in claims.guards() {
                    self.guarded.remove(&(db, guarded.into()));
                }
            }
            // What depends on a lease is in the same database, and so is deleted as well.
            Value::Lease(lease) => lease.keys().for_each(|key| drop(self.attached.remove(&(db, key.into())))),
            _ => {}
        }
    }
}
