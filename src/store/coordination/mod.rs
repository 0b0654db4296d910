//! What depends on claims and leases besides their own values: the deadline of their key, the index of claims
//! with tickets, and which keys depend on which lease. Kept consistent here, whatever happens to the keys:
//! they expire, and are deleted, replaced and renamed like any others.

mod changes;
pub mod claims;
pub mod client_session;
pub mod lease;
mod overdue;
pub(in crate::store) mod tickets;

use std::collections::BTreeSet;

use crate::error::Result;
use crate::store::{
    claims::{Claims, Traces},
    client_session::ClientSession,
    ctx::Caller,
    keyspace::Place,
    keyspace::reap::RunOut,
    lease::Lease,
    level,
    object::{Kind, Object, Typed, Value},
    owner::{LeaseId, Outcome, Turn, Wake},
    record::{Body, Record},
    segments::Position,
    state::{KeyOfDb, State},
    touched::Touch,
    waits::Ticket,
};

impl Record {
    /// The value, if it is of this type.
    fn value<T: Typed>(&self) -> Option<&T> {
        match self.body() {
            Body::Object(object) => T::of(&object.value),
            Body::Packed(_) => None,
        }
    }

    /// Its claims, if it holds any.
    pub(crate) fn claims(&self) -> Option<&Claims> {
        self.value()
    }

    /// The lease, if it is one.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.value()
    }
}

impl State {
    /// Takes the waits that ended since the last call.
    pub fn take_wakes(&mut self) -> Vec<Wake> {
        std::mem::take(&mut self.wakes)
    }

    /// The record of a key, expired or not.
    pub(crate) fn record(&self, db: u32, key: &[u8]) -> Option<&Record> {
        self.keyspace(db)?.get(key)
    }

    pub(in crate::store) fn place(&self, db: u32, key: &[u8]) -> Option<(Place, Position)> {
        let place = self.keyspace(db)?.place(key);
        place.found.ok().map(|at| (place, at))
    }

    /// Does what is due at a key whose deadline has passed. The effects of an ended lease on claims may be
    /// deferred to `later`.
    pub(crate) fn expire(&mut self, db: u32, place: &Place, at: Position, later: Option<&mut RunOut>) {
        let record = self.databases[db as usize].at(place.slot, at);
        if record.claims().is_some() {
            let key: Box<[u8]> = record.key().into();
            self.change_claims(db, &key, |_, turn| turn.changed = false);
        } else if let Some(deadline) = self.extended_deadline(record) {
            let before = record.deadline();
            self.reindex(db, place, before, Some(deadline));
            let State { databases, dirty, .. } = self;
            databases[db as usize].change(place.slot, at, dirty, |record, _| {
                record.stamp(Some(deadline), record.version());
            });
        } else if record.lease().is_some() {
            let id: Box<[u8]> = record.key().into();
            self.detach_key(db, &id);
            // Detaching changes other records, so positions may have moved.
            let Some((place, at)) = self.place(db, &id) else { return };
            if let Value::Lease(lease) = self.take_object(db, &place, at).value {
                self.note(db, &id, Touch::Expired);
                self.end_lease(db, &id, &lease, true, later);
            }
        } else {
            let State { databases, touched, waits, .. } = self;
            let key = databases[db as usize].at(place.slot, at).key();
            waits.feed(db, key);
            if let Some(touched) = touched {
                touched.push(db, key, Touch::Expired);
            }
            self.erase(db, place, at);
        }
    }

    fn take_object(&mut self, db: u32, place: &Place, at: Position) -> Object {
        match self.take(db, place, at).into_body() {
            Body::Object(object) => *object,
            Body::Packed(_) => unreachable!("the caller looked"),
        }
    }

    /// Removes a record and its key: the key no longer depends on any lease.
    pub(crate) fn erase(&mut self, db: u32, place: &Place, at: Position) {
        if self.attached.is_empty() {
            return self.remove(db, place, at);
        }
        let key: Box<[u8]> = self.databases[db as usize].at(place.slot, at).key().into();
        self.detach_key(db, &key);
        if let Some((place, at)) = self.place(db, &key) {
            self.remove(db, &place, at);
        }
    }

    /// Changes the claims at a key: settles them, calls `change`, settles them again, and updates the
    /// indexes. None if there are no claims at the key.
    pub(crate) fn change_claims<R>(
        &mut self,
        db: u32,
        key: &[u8],
        change: impl FnOnce(&mut Claims, &mut Turn<'_>) -> R,
    ) -> Option<R> {
        self.end_overdue(db, key);
        self.change_settled(db, key, true, change)
    }

    /// Ends holds and waits that depend on leases that are gone, before anything is granted: a waiter under
    /// such a lease must get nothing. None if there are no claims at the key.
    pub(crate) fn end_leases(
        &mut self,
        db: u32,
        key: &[u8],
        leases: &BTreeSet<LeaseId>,
        ran_out: bool,
    ) -> Option<()> {
        let settles_first = self.level < level::BOUNDED;
        let end =
            |claims: &mut Claims, turn: &mut Turn<'_>, ids, ran_out| claims.end_leases(ids, ran_out, turn);
        // Others may have run out and not be ended yet: nothing is granted under them either.
        let overdue: BTreeSet<LeaseId> = self.overdue(db, key).cloned().collect();
        if !overdue.is_empty() && !overdue.is_subset(leases) {
            let all = &overdue | leases;
            return self
                .change_settled(db, key, settles_first, |claims, turn| end(claims, turn, &all, ran_out));
        }
        self.change_settled(db, key, settles_first, |claims, turn| end(claims, turn, leases, ran_out))
    }

    fn change_settled<R>(
        &mut self,
        db: u32,
        key: &[u8],
        settles_first: bool,
        change: impl FnOnce(&mut Claims, &mut Turn<'_>) -> R,
    ) -> Option<R> {
        let (place, at) = self.place(db, key)?;
        self.databases[db as usize].at(place.slot, at).claims()?;
        let (now_ms, mut token, mut wakes) = (self.now_ms, self.token, std::mem::take(&mut self.wakes));
        let told_before = wakes.len();
        let (seen, changed) = self.change_object(db, &place, at, |object, pages| {
            let Value::Claims(claims) = &mut object.value else { unreachable!("looked at above") };
            let before = (object.deadline, claims.has_tickets());
            claims.begin();
            let mut turn = Turn { now_ms, token: &mut token, wakes: &mut wakes, changed: true };
            let mut changed = settles_first && claims.settle(&mut turn);
            let result = change(claims, &mut turn);
            changed |= turn.changed;
            changed |= claims.settle(&mut turn);
            if !changed {
                pages.unchanged();
            }
            object.deadline = claims.next_deadline();
            let after = (object.deadline, claims.has_tickets());
            (result, before, after, claims.take_traces(), claims.is_idle())
        });
        let (result, (deadline_before, had_tickets), (deadline, has_tickets), traces, is_idle) = seen;
        wakes[told_before..].iter_mut().for_each(|wake| (wake.db, wake.key) = (db, key.into()));
        (self.token, self.wakes) = (token, wakes);
        self.reindex(db, &place, deadline_before, deadline);
        self.follow(db, key, had_tickets, has_tickets, traces);
        if is_idle && let Some((place, at)) = self.place(db, key) {
            self.remove(db, &place, at);
        }
        if changed {
            self.notify(db, key);
        }
        Some(result)
    }

    /// Updates the indexes for a change of claims.
    fn follow(&mut self, db: u32, key: &[u8], had_tickets: bool, has_tickets: bool, traces: Traces) {
        match (had_tickets, has_tickets) {
            (false, true) => drop(self.ticketed.insert((db, key.into()))),
            (true, false) => drop(self.ticketed.remove(&(db, key.into()))),
            _ => {}
        }
        let Traces { lost, gained, tickets } = traces;
        for (ticket, is_waiting) in tickets {
            self.tickets.set(ticket, (db, key.into()), is_waiting);
        }
        lost.iter().for_each(|id| self.detach(db, id, key));
        gained.iter().for_each(|id| self.attach(db, id, key));
    }

    /// A record was stored under its key. Call this last: it changes other records.
    pub(crate) fn claims_came(&mut self, db: u32, key: &[u8]) {
        let Some(claims) = self.record(db, key).and_then(Record::claims) else { return };
        let (has_tickets, traces) = (claims.has_tickets(), claims.all_traces());
        let guards: Vec<Box<[u8]>> = claims.guards().map(Box::from).collect();
        guards.iter().for_each(|guarded| self.guarded.insert(db, guarded, key.into()));
        self.follow(db, key, false, has_tickets, traces);
    }

    /// Claims were removed from their key: they are being renamed or replaced.
    pub(crate) fn claims_left(&mut self, db: u32, record: &Record) {
        let Some(claims) = record.claims() else { return };
        self.elements.charge(claims.dependents());
        for guarded in claims.guards() {
            self.guarded.remove(db, guarded);
        }
        self.follow(db, record.key(), claims.has_tickets(), false, claims.all_traces().undone());
    }

    /// A value is deleted with its key: waits for it end, and so does what depends on a lease.
    pub(crate) fn value_gone(&mut self, db: u32, key: &[u8], value: &Value) {
        self.elements.charge(value.kind().dependents());
        match value {
            Value::Claims(claims) => claims.dismiss(&mut self.wakes),
            Value::Lease(lease) => self.end_lease(db, key, lease, false, None),
            _ => {}
        }
    }

    /// Guards an unguarded key with the claims at `lock`, which exist.
    pub(crate) fn guard(&mut self, db: u32, key: &[u8], lock: &[u8]) -> Result<()> {
        let guarded = self.change_claims(db, lock, |claims, turn| {
            let result = claims.guard(key);
            turn.changed = result.is_ok();
            result
        });
        if let Some(result) = guarded {
            result?;
            self.guarded.insert(db, key, lock.into());
        }
        Ok(())
    }

    /// Removes the guard of a key. False if there was none.
    pub(crate) fn unguard(&mut self, db: u32, key: &[u8]) -> bool {
        let Some(lock) = self.guarded.remove(db, key) else { return false };
        self.change_claims(db, &lock, |claims, _| claims.unguard(key));
        true
    }

    /// Makes a key depend on a lease. A plain key depends on at most one, claims on any number.
    pub(crate) fn attach(&mut self, db: u32, id: &[u8], key: &[u8]) {
        if self.change_lease(db, id, |lease| lease.attach(key)) {
            self.attached.or_default(db, key).insert(id.into());
        }
    }

    pub(crate) fn detach(&mut self, db: u32, id: &[u8], key: &[u8]) {
        if let Some(ids) = self.attached.get_mut(db, key) {
            ids.remove(id);
            if ids.is_empty() {
                self.attached.remove(db, key);
            }
        }
        self.change_lease(db, id, |lease| lease.detach(key));
    }

    /// Removes all dependencies of a key. Returns the leases.
    pub(crate) fn detach_key(&mut self, db: u32, key: &[u8]) -> BTreeSet<LeaseId> {
        if self.attached.is_empty() {
            return BTreeSet::new();
        }
        let ids = self.attached.get(db, key).cloned().unwrap_or_default();
        ids.iter().for_each(|id| self.detach(db, id, key));
        ids
    }

    /// Changes a lease. False if there is no such lease.
    fn change_lease(&mut self, db: u32, id: &[u8], change: impl FnOnce(&mut Lease)) -> bool {
        let Some((place, at)) = self.place(db, id) else { return false };
        if self.databases[db as usize].at(place.slot, at).lease().is_none() {
            return false;
        }
        self.change_object(db, &place, at, |object, _| {
            let Value::Lease(lease) = &mut object.value else { unreachable!("looked at above") };
            change(lease);
        });
        true
    }

    /// Ends what depends on a lease that was removed from its key; the effects on claims are deferred to
    /// `later`, if given.
    fn end_lease(
        &mut self,
        db: u32,
        id: &[u8],
        lease: &Lease,
        ran_out: bool,
        mut later: Option<&mut RunOut>,
    ) {
        let ids = BTreeSet::from([LeaseId::from(id)]);
        for key in lease.keys() {
            let attached = self.attached.get(db, key);
            if !attached.is_some_and(|ids| ids.contains(id)) {
                continue;
            }
            self.detach(db, id, key);
            if let Some(later) = &mut later
                && self.record(db, key).is_some_and(|record| record.claims().is_some())
            {
                later.add(db, key, id);
                continue;
            }
            if self.end_leases(db, key, &ids, ran_out).is_some() {
                continue;
            }
            if let Some((place, at)) = self.place(db, key) {
                self.next_version();
                self.erase(db, &place, at);
                self.note(db, key, if ran_out { Touch::Expired } else { Touch::Changed });
            }
        }
    }

    /// A lease was renamed: updates what depends on it.
    pub(crate) fn lease_renamed(&mut self, db: u32, from: &[u8], to: &[u8]) {
        let Some(lease) = self.record(db, to).and_then(Record::lease) else { return };
        let keys: Vec<Box<[u8]>> = lease.keys().map(Into::into).collect();
        self.elements.charge(keys.len());
        // Below that level the size was measured only when pages were loaded, so nodes could split pages at
        // different places.
        let is_measured = self.level >= level::WALL_TIMES;
        for key in keys {
            if let Some(ids) = self.attached.get_mut(db, &key)
                && ids.remove(from)
            {
                ids.insert(to.into());
            }
            if let Some((place, at)) = self.place(db, &key) {
                let record = self.databases[db as usize].at(place.slot, at);
                if record.claims().is_some() {
                    self.change_object(db, &place, at, |object, _| {
                        if let Value::Claims(claims) = &mut object.value {
                            claims.rename_lease(from, to);
                            if is_measured {
                                claims.measure();
                            }
                        }
                    });
                }
            }
        }
    }

    /// The extended deadline of a lease that was last renewed before the present leader took over, because
    /// its holder could not keep it alive without a leader: a full TTL from that time. None if the lease ends
    /// at its key's deadline.
    pub(crate) fn extended_deadline(&self, record: &Record) -> Option<u64> {
        let (lease, deadline) = (record.lease()?, record.deadline()?);
        let renewed = deadline.saturating_sub(lease.ttl_ms);
        let extended = self.led_since_ms + lease.ttl_ms;
        (renewed < self.led_since_ms && extended > deadline && extended >= self.now_ms).then_some(extended)
    }

    /// Records in its session that a command was applied, and gives the session its full TTL again. Nothing
    /// changes that other clients can see.
    pub(crate) fn remember(&mut self, caller: &Caller, number: u64, reply: Option<&[u8]>) {
        let now_ms = self.now_ms;
        let Some((place, at)) = self.place(caller.db, &caller.id) else { return };
        let record = self.databases[caller.db as usize].at(place.slot, at);
        // The command may have replaced the session.
        if record.value::<ClientSession>().is_none() {
            return;
        }
        let before = record.deadline();
        // Without room it is only remembered that the command was applied.
        let reply = reply.filter(|reply| self.has_memory_for(reply.len() as u64));
        let (after, _) = self.change_object(caller.db, &place, at, |object, pages| {
            if let Value::Session(session) = &mut object.value {
                session.remember(number, caller.is_resp3, reply);
                object.deadline = Some(now_ms + session.ttl_ms);
            }
            pages.unchanged();
            object.deadline
        });
        self.reindex(caller.db, &place, before, after);
    }

    /// Changes the claims that contain a ticket: those at `key`, or wherever they were renamed to.
    pub(crate) fn change_ticketed(
        &mut self,
        db: u32,
        key: &[u8],
        ticket: Ticket,
        change: impl FnOnce(&mut Claims, &mut Turn<'_>),
    ) {
        if let Some((db, key)) = self.ticketed_at(db, key, ticket).cloned() {
            self.change_claims(db, &key, change);
        }
    }

    /// The key of the claims that contain a ticket: `key`, or one that begins with it, since notices truncate
    /// long keys; or any key, after a rename.
    fn ticketed_at(&self, db: u32, key: &[u8], ticket: Ticket) -> Option<&KeyOfDb> {
        let begins_so = |place: &&KeyOfDb| place.0 == db && place.1.starts_with(key);
        let near = if key.is_empty() { None } else { self.tickets.places_of(ticket).find(begins_so) };
        near.or_else(|| self.tickets.places_of(ticket).next())
    }

    /// Ends all waits at a node, except those of one run of it.
    pub(crate) fn forget_node(&mut self, node: u64, but_boot: u64) {
        self.forget_waits(node, but_boot);
        // Below that level, all claims with tickets were settled.
        let places: BTreeSet<KeyOfDb> = if self.level < level::LIMITS {
            self.ticketed.clone()
        } else {
            self.tickets.places_at(node, but_boot).cloned().collect()
        };
        for (db, key) in places {
            self.change_claims(db, &key, |claims, turn| turn.changed = claims.forget(node, but_boot, turn));
        }
    }

    /// The nodes whose clients wait, each with its run; may repeat.
    pub fn waiting_nodes(&self) -> impl Iterator<Item = (u64, u64)> {
        self.tickets.nodes().chain(self.nodes_of_waits())
    }

    /// As `outcome_of`, for a wait that began at this key.
    pub fn outcome_at(&self, db: u32, key: &[u8], ticket: Ticket) -> Option<Outcome> {
        if self.waits_for_keys(ticket) {
            return None;
        }
        match self.ticketed_at(db, key, ticket).and_then(|(db, key)| self.record(*db, key)?.claims()) {
            Some(claims) => claims.granted_under(ticket, self.now_ms),
            None => Some(Outcome::Unknown),
        }
    }

    /// How a wait ended that was not reported; None if it is still pending.
    pub fn outcome_of(&self, ticket: Ticket) -> Option<Outcome> {
        self.outcome_at(0, b"", ticket)
    }
}
