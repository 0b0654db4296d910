//! Claims on a limited resource: who holds how much of it, under which grant and until when, and who waits
//! for it, in which order. Locks, semaphores and elections are claims of different kinds. They are stored in
//! their key's page, and are never large.
//!
//! Nothing happens here by itself. `settle` brings claims up to the log clock: it ends expired holds and
//! waits, and grants what is free to the head of the queue. Code that changes claims settles them before and
//! after, and maintains what depends on them elsewhere: the key's deadline, leases, the index of queues
//! (`coordination.rs`).
//!
//! The queue is first come, first served: a request made while others wait queues behind them, even if it
//! would fit. So neither readers nor writers of a shared lock starve, nor do large requests to a semaphore.

#[cfg(test)]
mod against_plain;
pub mod owner;
mod page;
mod row;
#[cfg(test)]
mod tests;
mod trail;

use std::collections::BTreeSet;

use row::{Claim, Row};
pub(in crate::store) use trail::Traces;
use trail::Trail;

use crate::error::{Error, Result};
use crate::store::owner::{
    Acquire, Answer, ClaimKind, FIXED_BYTES, Holder, LeaseId, Outcome, Share, Span, Turn, Until, Waiter, Wake,
};
use crate::store::waits::Ticket;

/// The maximum size of all holders and waiters of one key together.
pub const CLAIMS_BYTES_MAX: usize = 1 << 20;

/// The only holder of an election.
#[derive(Clone, Copy, Debug)]
pub struct Leader<'a> {
    /// The candidate that leads.
    pub candidate: &'a [u8],
    /// The fencing token of its grant.
    pub epoch: u64,
    /// What the leader proclaims; None if it was too large to be kept.
    pub value: Option<&'a [u8]>,
}

/// The claims on one key.
///
/// Invariants:
/// - The holds fit: either one holder of all, or permits that add up to at most `total`, unless that is 0.
/// - No two holders have the same owner or token; no two waiters have the same owner; no holder waits.
/// - A holder's place is its token, so holders are in the order of their grants. Waiters are in the order of the queue.
/// - Once settled, the first waiter whose client is present cannot be granted its share.
/// - Once measured, `bytes` is the sum over holders, waiters and guarded keys.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    pub(in crate::store) kind: ClaimKind,
    /// How many permits there are; 0 for any number.
    total: u64,
    holders: Row<Holder>,
    queue: Row<Waiter>,
    /// Lock delay: nothing is granted until the log clock is past this; 0 for none.
    closed_until: u64,
    /// Keys that only holders of these claims may write. While there are any, the claims are never idle.
    guards: BTreeSet<Box<[u8]>>,
    /// The size of `guards`.
    guards_bytes: usize,
    bytes: usize,
    /// What the present change has touched.
    trail: Trail,
}

impl Claims {
    /// Claims without holders or waiters.
    pub fn new(kind: ClaimKind) -> Claims {
        Claims { kind, ..Claims::default() }
    }

    /// The kind.
    pub fn kind(&self) -> ClaimKind {
        self.kind
    }

    /// The holders at this time, in the order of their tokens.
    pub fn holders(&self, now_ms: u64) -> impl DoubleEndedIterator<Item = &Holder> {
        self.holders.iter().filter(move |holder| holder.is_on(now_ms))
    }

    /// The hold of an owner.
    pub fn of_owner(&self, owner: &[u8], now_ms: u64) -> Option<&Holder> {
        self.holders.get(self.holders.find(owner)?).filter(|holder| holder.is_on(now_ms))
    }

    /// Whether there is a hold under a token.
    pub fn has_token(&self, token: u64, now_ms: u64) -> bool {
        self.holders.get(token).is_some_and(|holder| holder.is_on(now_ms))
    }

    /// The leader, if this is an election and has one.
    pub fn leader(&self, now_ms: u64) -> Option<Leader<'_>> {
        let holder = self.holders(now_ms).next().filter(|_| self.kind == ClaimKind::Election)?;
        Some(Leader { candidate: &holder.owner, epoch: holder.token, value: Some(&holder.data) })
    }

    /// How many permits there are; 0 for any number.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The waiting owners in queue order, without those whose client is gone.
    pub fn waiting(&self) -> impl Iterator<Item = &[u8]> {
        self.queue.iter().filter(|waiter| !waiter.is_absent).map(|waiter| &*waiter.owner)
    }

    /// How many owners wait.
    pub fn waiting_count(&self) -> usize {
        self.queue.waiting_count()
    }

    /// The end of the lock delay after an expired hold; 0 for none.
    pub fn closed_until(&self) -> u64 {
        self.closed_until
    }

    /// The approximate size in bytes.
    pub(in crate::store) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether somebody holds it or waits for it.
    fn is_claimed(&self) -> bool {
        !self.holders.is_empty() || !self.queue.is_empty()
    }

    /// Whether there are no holders or waiters and nothing else to remember.
    pub fn is_idle(&self) -> bool {
        !self.is_claimed() && self.closed_until == 0 && self.guards.is_empty()
    }

    /// Whether it guards any keys.
    pub fn guards_any(&self) -> bool {
        !self.guards.is_empty()
    }

    /// The keys that it guards.
    pub(in crate::store) fn guards(&self) -> impl Iterator<Item = &[u8]> {
        self.guards.iter().map(|key| &**key)
    }

    /// Whether anything is left of them at this time of the log clock.
    pub fn is_alive(&self, now_ms: u64) -> bool {
        let ends_after = |range: Option<(u64, u64)>| range.is_some_and(|(_, last)| last >= now_ms);
        self.closed_until >= now_ms.max(1)
            || self.guards_any()
            // A hold ends with its lease or at its deadline.
            || self.holders.has_leases()
            || ends_after(self.holders.deadlines())
            || ends_after(self.queue.deadlines())
    }

    /// The first and the last deadline of the holds, of the waits, and that of the lock delay.
    fn deadlines(&self) -> impl Iterator<Item = (u64, u64)> {
        let closed = (self.closed_until > 0).then_some((self.closed_until, self.closed_until));
        [self.holders.deadlines(), self.queue.deadlines(), closed].into_iter().flatten()
    }

    /// The earliest deadline of a hold, a wait or the lock delay.
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines().map(|(first, _)| first).min()
    }

    /// How many holds and waits are over, but not ended yet.
    pub(in crate::store) fn due_len(&self, now_ms: u64) -> usize {
        self.holders.due(now_ms).len() + self.queue.due(now_ms).len()
    }

    /// When everything has ended, if no command intervenes; None if that is unknown or never.
    pub fn last_deadline(&self) -> Option<u64> {
        if self.guards_any() || self.holders.has_leases() || self.queue.has_leases() {
            return None;
        }
        self.deadlines().map(|(_, last)| last).max()
    }

    /// Whether anybody waits, or holds a grant whose receipt is not confirmed yet.
    pub(in crate::store) fn has_tickets(&self) -> bool {
        self.holders.has_tickets() || self.queue.has_tickets()
    }

    /// The grant under a ticket, if there was one.
    pub(in crate::store) fn granted_under(&self, ticket: Ticket, now_ms: u64) -> Option<Outcome> {
        let holder = self.holders.get(*self.holders.with_ticket(ticket).first()?)?;
        let remaining_ms = holder.deadline().map(|deadline| deadline.saturating_sub(now_ms));
        Some(Outcome::Granted { kind: self.kind, token: holder.token, remaining_ms })
    }

    /// The number of permits held; None if nothing can be granted, because all of it is held or the lock
    /// delay runs.
    fn held(&self, now_ms: u64) -> Option<u64> {
        let is_closed = self.closed_until >= now_ms.max(1);
        self.holders.permits().filter(|_| !is_closed)
    }

    /// Whether a share fits when this many permits are held.
    fn fits(&self, share: Share, held: u64) -> bool {
        match share {
            Share::All => self.holders.is_empty(),
            Share::Permits(more) => self.total == 0 || held.saturating_add(more) <= self.total,
        }
    }

    fn add_holder(&mut self, holder: Holder) {
        self.touch(holder.lease().cloned(), holder.ticket);
        self.holders.push(holder.token, holder);
    }

    fn add_waiter(&mut self, waiter: Waiter) {
        self.touch(waiter.lease().cloned(), Some(waiter.ticket));
        self.queue.push(self.queue.last_place().map_or(0, |last| last + 1), waiter);
    }

    fn remove_holder(&mut self, place: u64) -> Option<Holder> {
        let holder = self.holders.get(place)?;
        self.touch(holder.lease().cloned(), holder.ticket);
        self.holders.remove(place)
    }

    fn remove_waiter(&mut self, place: u64) -> Option<Waiter> {
        let waiter = self.queue.get(place)?;
        self.touch(waiter.lease().cloned(), Some(waiter.ticket));
        self.queue.remove(place)
    }

    /// Changes a holder; not its lease.
    fn change_holder<R>(&mut self, place: u64, change: impl FnOnce(&mut Holder) -> R) -> Option<R> {
        self.touch(None, self.holders.get(place)?.ticket);
        self.holders.change(place, change)
    }

    /// The client of a waiter is gone.
    fn leave(&mut self, place: u64, now_ms: u64) {
        self.touch(None, self.queue.get(place).map(|waiter| waiter.ticket));
        self.queue.change(place, |waiter| waiter.leave(now_ms));
    }

    /// Ends what has expired by the log clock, and grants what is free. False if there was nothing to do.
    pub fn settle(&mut self, turn: &mut Turn<'_>) -> bool {
        let (now_ms, before) = (turn.now_ms, (self.holders.len(), self.queue.len(), self.closed_until));
        let mut closed_until = self.closed_until;
        for place in self.holders.due(now_ms) {
            if let Some(holder) = self.remove_holder(place)
                && let (true, Until::At(deadline)) = (holder.delay_ms > 0, holder.until)
            {
                closed_until = closed_until.max(deadline + holder.delay_ms);
            }
        }
        self.closed_until = if closed_until >= now_ms { closed_until } else { 0 };
        for place in self.queue.due(now_ms) {
            if let Some(waiter) = self.remove_waiter(place) {
                turn.wake(waiter.ticket, Outcome::TimedOut);
            }
        }
        self.grant_to_waiting(turn);
        self.measure();
        before != (self.holders.len(), self.queue.len(), self.closed_until)
    }

    /// Grants to waiters in queue order, up to the first present one whose share does not fit.
    fn grant_to_waiting(&mut self, turn: &mut Turn<'_>) {
        while let Some(held) = self.held(turn.now_ms)
            && let Some((place, waiter)) = self.queue.first_waiting()
            && self.fits(waiter.share, held)
            && let Some(waiter) = self.remove_waiter(place)
        {
            let token = turn.issue();
            let (until, remaining_ms) = match waiter.span {
                Span::Ms(ms) => (Until::At(turn.now_ms + ms), Some(ms)),
                Span::Lease(id) => (Until::Lease(id), None),
            };
            turn.wake(waiter.ticket, Outcome::Granted { kind: self.kind, token, remaining_ms });
            self.add_holder(Holder {
                owner: waiter.owner,
                token,
                count: 1,
                share: waiter.share,
                until,
                delay_ms: waiter.delay_ms,
                ticket: Some(waiter.ticket),
                data: waiter.data,
            });
        }
    }

    /// Brings `bytes` up to date.
    pub(in crate::store) fn measure(&mut self) {
        self.bytes = self.holders.bytes() + self.queue.bytes() + self.guards_bytes;
    }

    /// Grants a request under a new token if it fits; otherwise queues it if it asks to wait. A holder keeps its
    /// hold, under the same token and for no shorter time; a waiter keeps its place.
    pub fn acquire(&mut self, asked: &Acquire<'_>, turn: &mut Turn<'_>) -> Result<Answer> {
        let (held_at, waits_at) = (self.holders.find(asked.owner), self.queue.find(asked.owner));
        let data_len = asked.data.map_or(0, <[u8]>::len);
        let holder = held_at.and_then(|place| self.holders.get(place));
        let waiter = waits_at.and_then(|place| self.queue.get(place));
        match holder.map(|holder| &holder.data).or(waiter.map(|waiter| &waiter.data)) {
            Some(data) => self.check_room(data_len, data.len())?,
            None => {
                let lease_len = asked.span.lease().map_or(0, |id| id.len());
                self.check_room(asked.owner.len() + data_len + lease_len + FIXED_BYTES, 0)?;
            }
        }
        if let Some(place) = held_at {
            return self.acquire_again(place, asked, turn);
        }
        if let Some(place) = waits_at {
            match asked.wait {
                Some((ticket, deadline)) => {
                    self.wait_again(place, Waiter::new(asked, ticket, deadline), asked.data.is_some(), turn);
                    return Ok(Answer::Queued);
                }
                // An absent owner that comes back without WAIT loses its place.
                None if waiter.is_some_and(|waiter| waiter.is_absent) => _ = self.remove_waiter(place),
                None => return Ok(Answer::Taken),
            }
        }
        let is_free = || self.held(turn.now_ms).is_some_and(|held| self.fits(asked.share, held));
        if self.waiting_count() == 0 && is_free() {
            let (token, until) = (turn.issue(), asked.until(turn.now_ms));
            self.add_holder(Holder {
                owner: asked.owner.into(),
                token,
                count: 1,
                share: asked.share,
                until: until.clone(),
                delay_ms: asked.delay_ms,
                ticket: asked.wait.map(|(ticket, _)| ticket),
                data: asked.data.unwrap_or_default().into(),
            });
            return Ok(Answer::Held { token, until });
        }
        let Some((ticket, deadline)) = asked.wait else { return Ok(Answer::Taken) };
        self.add_waiter(Waiter::new(asked, ticket, deadline));
        Ok(Answer::Queued)
    }

    /// A waiter asks again, and keeps its place; its data too, unless it brings other.
    fn wait_again(&mut self, place: u64, new: Waiter, has_data: bool, turn: &mut Turn<'_>) {
        let old = self.queue.get(place);
        let (lease, ticket) = (old.and_then(Claim::lease).cloned(), old.map(|old| old.ticket));
        self.touch(lease, ticket);
        self.touch(new.lease().cloned(), Some(new.ticket));
        self.queue.change(place, |waiter| {
            turn.wake(waiter.ticket, Outcome::Superseded);
            let data = if has_data { new.data } else { std::mem::take(&mut waiter.data) };
            *waiter = Waiter { data, owner: waiter.owner.clone(), ..new };
        });
    }

    /// As `acquire`, for an owner that holds it.
    fn acquire_again(&mut self, place: u64, asked: &Acquire<'_>, turn: &mut Turn<'_>) -> Result<Answer> {
        let is_alone = self.holders.len() == 1;
        let holder = self.holders.get(place).expect("the caller found it");
        match (holder.share, asked.share) {
            (Share::Permits(_), Share::All) if !is_alone && asked.wait.is_some() => {
                return Err(Error::err("an owner that shares a lock can not wait to have it alone"));
            }
            (Share::Permits(_), Share::All) if !is_alone => return Ok(Answer::Taken),
            (Share::Permits(held), Share::Permits(wanted)) if held != wanted => {
                return Err(Error::err(format!("the owner holds {held} permits already")));
            }
            _ => {}
        }
        let until = match (&holder.until, asked.until(turn.now_ms)) {
            (Until::At(old), Until::At(new)) => Until::At(new.max(*old)),
            (old, new) if *old == new => new,
            _ => return Err(Error::err("the owner holds it for another time: by PX, or by another LEASE")),
        };
        let token = holder.token;
        self.change_holder(place, |holder| {
            if asked.share == Share::All {
                holder.share = Share::All;
            }
            // A grant whose delivery is not confirmed counts all the same: releasing too early is worse than
            // too late.
            if asked.is_counted {
                holder.count += 1;
            } else {
                holder.ticket = None;
            }
            holder.until = until.clone();
            if let Some(data) = asked.data {
                holder.data = data.into();
            }
        });
        Ok(Answer::Held { token, until })
    }

    /// Whether there is room to replace `less` bytes with `more`.
    fn check_room(&self, more: usize, less: usize) -> Result<()> {
        if more <= less || self.bytes + more - less <= CLAIMS_BYTES_MAX {
            return Ok(());
        }
        Err(Error::err(format!("what is said at one key may take {CLAIMS_BYTES_MAX} bytes together")))
    }

    /// The kind and the number of permits.
    pub(in crate::store) fn nature(&self) -> (ClaimKind, u64) {
        (self.kind, self.total)
    }

    /// Restores the kind and the number of permits.
    pub(in crate::store) fn set_nature(&mut self, (kind, total): (ClaimKind, u64)) {
        (self.kind, self.total) = (kind, total);
    }

    /// Changes the kind. Fails if it is another one and there are holders or waiters.
    pub fn become_kind(&mut self, kind: ClaimKind) -> Result<()> {
        if self.kind != kind && self.is_claimed() {
            return Err(Error::WrongType);
        }
        if self.kind != kind {
            (self.kind, self.total) = (kind, 0);
        }
        Ok(())
    }

    /// Sets the number of permits; while there are holders or waiters, it cannot be changed.
    pub fn agree_on_total(&mut self, total: u64) -> Result<()> {
        if self.is_claimed() && self.total != total {
            return Err(Error::err(format!("the semaphore has {} permits", self.total)));
        }
        self.total = total;
        Ok(())
    }

    /// Sets the data of a holder, whose existence the caller has checked.
    pub fn set_data(&mut self, owner: &[u8], data: &[u8]) -> Result<()> {
        let place = self.holders.find(owner);
        let present = place.and_then(|place| self.holders.get(place));
        self.check_room(data.len(), present.map_or(0, |holder| holder.data.len()))?;
        place.map(|place| self.change_holder(place, |holder| holder.data = data.into()));
        Ok(())
    }

    /// Guards a key. False if it was guarded by these claims already.
    pub(in crate::store) fn guard(&mut self, key: &[u8]) -> Result<bool> {
        self.check_room(key.len() + FIXED_BYTES, 0)?;
        let is_new = self.guards.insert(key.into());
        self.guards_bytes += if is_new { key.len() + FIXED_BYTES } else { 0 };
        self.measure();
        Ok(is_new)
    }

    /// Guards a key no longer.
    pub(in crate::store) fn unguard(&mut self, key: &[u8]) {
        if self.guards.remove(key) {
            self.guards_bytes -= key.len() + FIXED_BYTES;
        }
    }

    /// Lets a hold last until a new deadline; its owner is there, and the caller has checked that it holds.
    pub fn renew(&mut self, owner: &[u8], deadline: u64) -> Result<()> {
        let place = self.holders.find(owner).expect("the caller checked that it holds");
        if self.holders.get(place).is_some_and(|holder| holder.lease().is_some()) {
            return Err(Error::err("it is held by a lease: LEASE.KEEPALIVE renews that"));
        }
        self.change_holder(place, |holder| (holder.until, holder.ticket) = (Until::At(deadline), None));
        Ok(())
    }

    /// Undoes one acquisition of an owner. Returns how many are left.
    pub fn release(&mut self, owner: &[u8]) -> u64 {
        self.holders.find(owner).map_or(0, |place| self.release_at(place))
    }

    fn release_at(&mut self, place: u64) -> u64 {
        let left = self.change_holder(place, |holder| {
            holder.count -= 1;
            holder.count
        });
        if left == Some(0) {
            self.remove_holder(place);
        }
        left.unwrap_or(0)
    }

    /// Ends all holds.
    pub fn break_all(&mut self) {
        while let Some(place) = self.holders.last_place() {
            self.remove_holder(place);
        }
        self.closed_until = 0;
    }

    /// The client is gone: the owner no longer waits, unless it comes back soon; a grant that was not
    /// confirmed yet is undone.
    pub fn cancel(&mut self, ticket: Ticket, now_ms: u64) {
        for place in self.queue.with_ticket(ticket) {
            self.leave(place, now_ms);
        }
        for place in self.holders.with_ticket(ticket) {
            self.change_holder(place, |holder| holder.ticket = None);
            self.release_at(place);
        }
    }

    /// The client has received the grant.
    pub fn confirm(&mut self, ticket: Ticket) {
        if let Some(place) = self.holders.with_ticket(ticket).first() {
            self.change_holder(*place, |holder| holder.ticket = None);
        }
    }

    /// Ends the waits at a node, except those of one run of it. False if there were none.
    pub fn forget(&mut self, node: u64, but_boot: u64, turn: &mut Turn<'_>) -> bool {
        let mut is_changed = false;
        for place in self.queue.of_node(node, but_boot) {
            if let Some(waiter) = self.queue.get(place).filter(|waiter| !waiter.is_absent) {
                is_changed = true;
                turn.wake(waiter.ticket, Outcome::Gone);
                self.leave(place, turn.now_ms);
            }
        }
        is_changed
    }

    /// A lease was renamed.
    pub(in crate::store) fn rename_lease(&mut self, from: &[u8], to: &[u8]) {
        let (old, new) = (BTreeSet::from([LeaseId::from(from)]), LeaseId::from(to));
        for place in self.holders.under(&old) {
            self.holders.change(place, |holder| holder.until = Until::Lease(new.clone()));
        }
        for place in self.queue.under(&old) {
            self.queue.change(place, |waiter| waiter.span = Span::Lease(new.clone()));
        }
    }

    /// Ends holds and waits that depend on these leases. If the leases ran out, the lock delay of the ended
    /// holds applies.
    pub fn end_leases(&mut self, ids: &BTreeSet<LeaseId>, ran_out: bool, turn: &mut Turn<'_>) {
        for place in self.holders.under(ids) {
            if let Some(holder) = self.remove_holder(place)
                && ran_out
                && holder.delay_ms > 0
            {
                self.closed_until = self.closed_until.max(turn.now_ms + holder.delay_ms);
            }
        }
        for place in self.queue.under(ids) {
            if let Some(waiter) = self.remove_waiter(place) {
                turn.wake(waiter.ticket, Outcome::Gone);
            }
        }
    }

    /// Reports to all waiters that the key is gone.
    pub(in crate::store) fn dismiss(&self, wakes: &mut Vec<Wake>) {
        let wake = |waiter: &Waiter| Wake {
            ticket: waiter.ticket,
            outcome: Outcome::Gone,
            db: 0,
            key: Box::default(),
        };
        wakes.extend(self.queue.iter().map(wake));
    }

    /// Panics if an invariant does not hold. For tests.
    #[cfg(test)]
    pub(in crate::store) fn invariants(&self) {
        self.holders.invariants();
        self.queue.invariants();
        assert!(
            self.holders.iter().all(|holder| self.queue.find(&holder.owner).is_none()),
            "no holder waits"
        );
        assert_eq!(self.guards_bytes, self.guards.iter().map(|key| key.len() + FIXED_BYTES).sum::<usize>());
    }
}
