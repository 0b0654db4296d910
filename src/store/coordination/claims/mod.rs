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

pub mod owner;
mod page;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

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
/// - Once settled, the first waiter whose client is present cannot be granted its share.
/// - `bytes` is the sum over holders, waiters and guarded keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    pub(in crate::store) kind: ClaimKind,
    /// How many permits there are; 0 for any number.
    pub(in crate::store) total: u64,
    pub(in crate::store) holders: Vec<Holder>,
    pub(in crate::store) queue: VecDeque<Waiter>,
    /// Lock delay: nothing is granted until the log clock is past this; 0 for none.
    pub(in crate::store) closed_until: u64,
    /// Keys that only holders of these claims may write. While there are any, the claims are never idle.
    pub(in crate::store) guards: BTreeSet<Box<[u8]>>,
    bytes: usize,
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

    /// The holders at this time.
    pub fn holders(&self, now_ms: u64) -> impl Iterator<Item = &Holder> {
        self.holders.iter().filter(move |holder| holder.is_on(now_ms))
    }

    /// The hold of an owner.
    pub fn of_owner(&self, owner: &[u8], now_ms: u64) -> Option<&Holder> {
        self.holders(now_ms).find(|holder| *holder.owner == *owner)
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
        self.waiting().count()
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

    /// Whether anything is left of them at this time of the log clock.
    pub fn is_alive(&self, now_ms: u64) -> bool {
        self.closed_until >= now_ms.max(1)
            || self.guards_any()
            || self.holders(now_ms).next().is_some()
            || self.queue.iter().any(|waiter| waiter.deadline >= now_ms)
    }

    /// The earliest deadline of a hold, a wait or the lock delay.
    pub fn next_deadline(&self) -> Option<u64> {
        let holds = self.holders.iter().filter_map(Holder::deadline);
        let waits = self.queue.iter().map(|waiter| waiter.deadline);
        holds.chain(waits).chain((self.closed_until > 0).then_some(self.closed_until)).min()
    }

    /// When everything has ended, if no command intervenes; None if that is unknown or never.
    pub fn last_deadline(&self) -> Option<u64> {
        if self.guards_any() || self.lease_ids().next().is_some() {
            return None;
        }
        let holds = self.holders.iter().filter_map(Holder::deadline);
        let closed = (self.closed_until > 0).then_some(self.closed_until);
        holds.chain(self.queue.iter().map(|waiter| waiter.deadline)).chain(closed).max()
    }

    /// The leases on which holds and waits depend; may repeat.
    pub(in crate::store) fn lease_ids(&self) -> impl Iterator<Item = &LeaseId> {
        let held = self.holders.iter().filter_map(|holder| match &holder.until {
            Until::Lease(id) => Some(id),
            Until::At(_) => None,
        });
        held.chain(self.queue.iter().filter_map(|waiter| match &waiter.span {
            Span::Lease(id) => Some(id),
            Span::Ms(_) => None,
        }))
    }

    /// Whether anybody waits, or holds a grant whose receipt is not confirmed yet.
    pub(in crate::store) fn has_tickets(&self) -> bool {
        !self.queue.is_empty() || self.holders.iter().any(|holder| holder.ticket.is_some())
    }

    /// Whether the ticket belongs to one of these.
    pub(in crate::store) fn knows(&self, ticket: Ticket) -> bool {
        let granted = self.holders.iter().filter_map(|holder| holder.ticket);
        granted.chain(self.queue.iter().map(|waiter| waiter.ticket)).any(|other| other == ticket)
    }

    /// The grant under a ticket, if there was one.
    pub(in crate::store) fn granted_under(&self, ticket: Ticket, now_ms: u64) -> Option<Outcome> {
        let holder = self.holders.iter().find(|holder| holder.ticket == Some(ticket))?;
        let remaining_ms = holder.deadline().map(|deadline| deadline.saturating_sub(now_ms));
        Some(Outcome::Granted { kind: self.kind, token: holder.token, remaining_ms })
    }

    /// The number of permits held; None if nothing can be granted, because all of it is held or the lock
    /// delay runs.
    fn held(&self, now_ms: u64) -> Option<u64> {
        let count = |holder: &Holder| match holder.share {
            Share::All => None,
            Share::Permits(count) => Some(count),
        };
        let mut held = self.holders.iter().map(count);
        let is_closed = self.closed_until >= now_ms.max(1);
        held.try_fold(0u64, |sum, count| Some(sum.saturating_add(count?))).filter(|_| !is_closed)
    }

    /// Whether a share fits when this many permits are held.
    fn fits(&self, share: Share, held: u64) -> bool {
        match share {
            Share::All => self.holders.is_empty(),
            Share::Permits(more) => self.total == 0 || held.saturating_add(more) <= self.total,
        }
    }

    /// Ends what has expired by the log clock, and grants what is free. False if there was nothing to do.
    pub fn settle(&mut self, turn: &mut Turn<'_>) -> bool {
        let (now_ms, before) = (turn.now_ms, (self.holders.len(), self.queue.len(), self.closed_until));
        let mut closed_until = self.closed_until;
        self.holders.retain(|holder| {
            if let (false, Until::At(deadline)) = (holder.is_on(now_ms), &holder.until) {
                if holder.delay_ms > 0 {
                    closed_until = closed_until.max(deadline + holder.delay_ms);
                }
                return false;
            }
            true
        });
        self.closed_until = if closed_until >= now_ms { closed_until } else { 0 };
        self.queue.retain(|waiter| {
            if waiter.deadline < now_ms {
                turn.wake(waiter.ticket, Outcome::TimedOut);
            }
            waiter.deadline >= now_ms
        });
        self.grant_to_waiting(turn);
        self.measure();
        before != (self.holders.len(), self.queue.len(), self.closed_until)
    }

    /// Grants to waiters in queue order, up to the first present one whose share does not fit.
    fn grant_to_waiting(&mut self, turn: &mut Turn<'_>) {
        let Some(mut held) = self.held(turn.now_ms) else { return };
        let first = self.queue.iter().find(|waiter| !waiter.is_absent);
        if !first.is_some_and(|waiter| self.fits(waiter.share, held)) {
            return;
        }
        let mut is_over = false;
        for waiter in std::mem::take(&mut self.queue) {
            is_over |= !waiter.is_absent && !self.fits(waiter.share, held);
            if is_over || waiter.is_absent {
                self.queue.push_back(waiter);
                continue;
            }
            let token = turn.issue();
            let (until, remaining_ms) = match waiter.span {
                Span::Ms(ms) => (Until::At(turn.now_ms + ms), Some(ms)),
                Span::Lease(id) => (Until::Lease(id), None),
            };
            turn.wake(waiter.ticket, Outcome::Granted { kind: self.kind, token, remaining_ms });
            match waiter.share {
                Share::All => is_over = true,
                Share::Permits(count) => held = held.saturating_add(count),
            }
            self.holders.push(Holder {
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

    /// Recomputes `bytes`.
    pub(in crate::store) fn measure(&mut self) {
        let holders = self.holders.iter().map(|holder| {
            let lease = if let Until::Lease(id) = &holder.until { id.len() } else { 0 };
            holder.owner.len() + holder.data.len() + lease
        });
        let waiters = self.queue.iter().map(|waiter| {
            let lease = if let Span::Lease(id) = &waiter.span { id.len() } else { 0 };
            waiter.owner.len() + waiter.data.len() + lease
        });
        let guards = self.guards.iter().map(|key| key.len());
        self.bytes = holders.chain(waiters).chain(guards).map(|bytes| bytes + FIXED_BYTES).sum();
    }

    /// Grants a request under a new token if it fits; otherwise queues it if it asks to wait. A holder keeps its
    /// hold, under the same token and for no shorter time; a waiter keeps its place.
    pub fn acquire(&mut self, asked: &Acquire<'_>, turn: &mut Turn<'_>) -> Result<Answer> {
        let lease = if let Span::Lease(id) = &asked.span { id.len() } else { 0 };
        let present = self.holders.iter().map(|holder| (&holder.owner, &holder.data));
        let mut present = present.chain(self.queue.iter().map(|waiter| (&waiter.owner, &waiter.data)));
        match present.find(|(owner, _)| ***owner == *asked.owner) {
            Some((_, data)) => self.check_room(asked.data.map_or(0, <[u8]>::len), data.len())?,
            None => self
                .check_room(asked.owner.len() + asked.data.map_or(0, <[u8]>::len) + lease + FIXED_BYTES, 0)?,
        }
        if self.holders.iter().any(|holder| *holder.owner == *asked.owner) {
            return self.acquire_again(asked, turn);
        }
        if asked.wait.is_none() {
            // An absent owner that comes back without WAIT loses its place.
            self.queue.retain(|waiter| !waiter.is_absent || *waiter.owner != *asked.owner);
        }
        if let Some(waiter) = self.queue.iter_mut().find(|waiter| *waiter.owner == *asked.owner) {
            let Some((ticket, deadline)) = asked.wait else { return Ok(Answer::Taken) };
            turn.wake(waiter.ticket, Outcome::Superseded);
            let data = asked.data.map_or_else(|| std::mem::take(&mut waiter.data), Into::into);
            *waiter = Waiter { data, ..Waiter::new(asked, ticket, deadline) };
            return Ok(Answer::Queued);
        }
        let is_free = || self.held(turn.now_ms).is_some_and(|held| self.fits(asked.share, held));
        if self.waiting_count() == 0 && is_free() {
            let (token, until) = (turn.issue(), asked.until(turn.now_ms));
            self.holders.push(Holder {
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
        self.queue.push_back(Waiter::new(asked, ticket, deadline));
        Ok(Answer::Queued)
    }

    /// As `acquire`, for an owner that holds it.
    fn acquire_again(&mut self, asked: &Acquire<'_>, turn: &mut Turn<'_>) -> Result<Answer> {
        let is_alone = self.holders.len() == 1;
        let holder = self.holders.iter_mut().find(|holder| *holder.owner == *asked.owner);
        let holder = holder.expect("the caller found it");
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
        if asked.share == Share::All {
            holder.share = Share::All;
        }
        // A grant whose delivery is not confirmed counts all the same: releasing too early is worse than too
        // late.
        if asked.is_counted {
            holder.count += 1;
        } else {
            holder.ticket = None;
        }
        holder.until = until.clone();
        if let Some(data) = asked.data {
            holder.data = data.into();
        }
        Ok(Answer::Held { token: holder.token, until })
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
        let present = self.holders.iter().find(|holder| *holder.owner == *owner);
        self.check_room(data.len(), present.map_or(0, |holder| holder.data.len()))?;
        if let Some(holder) = self.holder_mut(owner) {
            holder.data = data.into();
        }
        Ok(())
    }

    /// Guards a key. False if it was guarded by these claims already.
    pub(in crate::store) fn guard(&mut self, key: &[u8]) -> Result<bool> {
        self.check_room(key.len() + FIXED_BYTES, 0)?;
        let is_new = self.guards.insert(key.into());
        self.measure();
        Ok(is_new)
    }

    /// A holder, for changes that do not affect who may hold.
    pub fn holder_mut(&mut self, owner: &[u8]) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|holder| *holder.owner == *owner)
    }

    /// Undoes one acquisition of an owner. Returns how many are left.
    pub fn release(&mut self, owner: &[u8]) -> u64 {
        let Some(at) = self.holders.iter().position(|holder| *holder.owner == *owner) else { return 0 };
        self.holders[at].count -= 1;
        let left = self.holders[at].count;
        if left == 0 {
            self.holders.remove(at);
        }
        left
    }

    /// Ends all holds.
    pub fn break_all(&mut self) {
        self.holders.clear();
        self.closed_until = 0;
    }

    /// The client is gone: the owner no longer waits, unless it comes back soon; a grant that was not
    /// confirmed yet is undone.
    pub fn cancel(&mut self, ticket: Ticket, now_ms: u64) {
        self.queue
            .iter_mut()
            .filter(|waiter| waiter.ticket == ticket)
            .for_each(|waiter| waiter.leave(now_ms));
        for holder in self.holders.iter_mut().filter(|holder| holder.ticket == Some(ticket)) {
            holder.ticket = None;
            holder.count -= 1;
        }
        self.holders.retain(|holder| holder.count > 0);
    }

    /// The client has received the grant.
    pub fn confirm(&mut self, ticket: Ticket) {
        let holder = self.holders.iter_mut().find(|holder| holder.ticket == Some(ticket));
        holder.into_iter().for_each(|holder| holder.ticket = None);
    }

    /// Ends the waits at a node, except those of one run of it. False if there were none.
    pub fn forget(&mut self, node: u64, but_boot: u64, turn: &mut Turn<'_>) -> bool {
        let is_meant = |ticket: Ticket| ticket.node == node && ticket.boot != but_boot;
        let mut is_changed = false;
        for waiter in self.queue.iter_mut().filter(|waiter| is_meant(waiter.ticket) && !waiter.is_absent) {
            is_changed = true;
            turn.wake(waiter.ticket, Outcome::Gone);
            waiter.leave(turn.now_ms);
        }
        is_changed
    }

    /// A lease was renamed.
    pub(in crate::store) fn rename_lease(&mut self, from: &[u8], to: &[u8]) {
        for holder in &mut self.holders {
            match &mut holder.until {
                Until::Lease(id) if **id == *from => *id = to.into(),
                _ => {}
            }
        }
        for waiter in &mut self.queue {
            match &mut waiter.span {
                Span::Lease(id) if **id == *from => *id = to.into(),
                _ => {}
            }
        }
    }

    /// Ends holds and waits that depend on these leases. If the leases ran out, the lock delay of the ended
    /// holds applies.
    pub fn end_leases(&mut self, ids: &BTreeSet<LeaseId>, ran_out: bool, turn: &mut Turn<'_>) {
        let (now_ms, mut closed_until) = (turn.now_ms, self.closed_until);
        self.holders.retain(|holder| {
            let ends = matches!(&holder.until, Until::Lease(lease) if ids.contains(lease));
            if ends && ran_out && holder.delay_ms > 0 {
                closed_until = closed_until.max(now_ms + holder.delay_ms);
            }
            !ends
        });
        self.closed_until = closed_until;
        self.queue.retain(|waiter| {
            let ends = matches!(&waiter.span, Span::Lease(lease) if ids.contains(lease));
            if ends {
                turn.wake(waiter.ticket, Outcome::Gone);
            }
            !ends
        });
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
}
