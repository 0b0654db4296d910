//! What ends many keys at once: their time, and FLUSHDB and FLUSHALL.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ops::RangeInclusive,
};

use super::{
    claim::LeaseId,
    deadlines::{Deadlines, Death},
    keyspace::Place,
    lease::Lease,
    level,
    object::Value,
    record::{Body, Record},
    segments::Item,
    state::{DATABASES_MAX, Deleted, Garbage, KeyOfDb, State},
    touched::Touch,
};

/// How many records one reaping looks at, to find those that are due and to end what depends on leases. It is the last that
/// goes beyond.
const LOOKS_MAX: usize = 100_000;
/// A database of so few keys is emptied one by one: its places are kept, and nothing is left to be dropped.
const FLUSHED_SINGLY_MAX: usize = 256;

/// Leases that have run out, by the claims that depend on them, which are told when all are known: one change of claims
/// for all of their leases, where each alone would cost as much.
#[derive(Default)]
pub(crate) struct RunOut {
    claims: HashMap<KeyOfDb, BTreeSet<LeaseId>>,
    /// In the order in which they were met.
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

    /// Takes those of the claims that a record holds, if there are any.
    fn of(&mut self, db: u32, record: &Record) -> Option<(KeyOfDb, BTreeSet<LeaseId>)> {
        if self.claims.is_empty() || record.claims().is_none() {
            return None;
        }
        self.claims.remove_entry(&(db, record.key().into()))
    }

    /// Takes the first.
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
            // What depends on a lease goes with it.
            looks += looked_at + record.lease().map_or(0, Lease::len);
            let place = Place { slot, hash, found: Ok(at) };
            if is_bounded && let Some(claims) = run_out.of(db, record) {
                // Before anything is granted to somebody whose lease is gone. Settled, they are due no more.
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

    /// Deletes all keys of a database. Takes time for its own keys alone.
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

    /// Tells all who wait in these databases that it is over.
    fn dismiss_waiting(&mut self, dbs: RangeInclusive<u32>) {
        let range = (*dbs.start(), Box::default())..(*dbs.end() + 1, Box::default());
        let gone: Vec<KeyOfDb> = self.ticketed.range(range).cloned().collect();
        let mut wakes = std::mem::take(&mut self.wakes);
        for (db, key) in &gone {
            if let Some(claims) = self.record(*db, key).and_then(Record::claims) {
                claims.dismiss(&mut wakes);
            }
        }
        gone.iter().for_each(|place| _ = self.ticketed.remove(place));
        self.wakes = wakes;
    }

    /// Takes a record that is deleted with its whole database out of all indexes but that of deadlines, and removes its pages.
    fn forget(&mut self, db: u32, record: &Record) {
        let Body::Object(object) = record.body() else { return };
        if let Some(id) = object.value.kind().object() {
            object.value.kind().remove_pages(&mut self.dirty);
            self.homes.remove(&id);
        }
        match &object.value {
            Value::Claims(claims) => {
                for guarded in &claims.guards {
                    self.guarded.remove(&(db, guarded.clone()));
                }
            }
            // What depends on leases of a database is in it as well.
            Value::Lease(lease) => lease.keys().for_each(|key| drop(self.attached.remove(&(db, key.into())))),
            _ => {}
        }
    }
}
