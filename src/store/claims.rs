//! Claims on a thing of which there is only so much: who holds how much of it, since which grant and until when, and
//! who waits for it, in which order. Locks, semaphores and elections are claims of different kinds. They lie in their
//! key's page, and are never large.
//!
//! Nothing happens here by itself. `settle` brings claims up to the log clock: it ends the holds and the waits that
//! are over, and grants what is free to whoever waits in front. Whoever changes claims settles them before and after,
//! and keeps what belongs to them outside: the key's deadline, leases, the index of queues (`coordination.rs`).
//!
//! Waiting is first come, first served: who asks while others wait waits behind them, even if it would fit. So neither
//! readers nor writers of a shared lock starve, and neither do large wishes for a semaphore.

use std::collections::{BTreeSet, VecDeque};

use super::claim::{
    Answer, ClaimKind, FIXED_BYTES, Holder, LeaseId, Outcome, Share, Span, Ticket, Turn, Until, Waiter, Wake,
    Wish,
};
use crate::error::{Error, Result};

/// What all holders and waiters of one key may take together.
pub const CLAIMS_BYTES_MAX: usize = 1 << 20;

/// The only holder of an election.
#[derive(Clone, Copy, Debug)]
pub struct Leader<'a> {
    /// Who leads.
    pub candidate: &'a [u8],
    /// The number of the grant.
    pub epoch: u64,
    /// What the leader proclaims; None if it was too large to be kept.
    pub value: Option<&'a [u8]>,
}

/// Claims on one thing.
///
/// Invariants:
/// - What is held fits: one holder of all, or permits that are together at most `total`, if that is not 0.
/// - No two holders have the same owner or token; no two waiters the same owner; who holds does not wait.
/// - Settled, the first in the queue does not fit.
/// - `bytes` is the sum over holders, waiters and guarded keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    pub(super) kind: ClaimKind,
    /// How many permits there are; 0 for any number.
    pub(super) total: u64,
    pub(super) holders: Vec<Holder>,
    pub(super) queue: VecDeque<Waiter>,
    /// Nothing is granted until the log clock is past this; 0 for none.
    pub(super) closed_until: u64,
    /// Keys that only those may write who hold this. As long as there are some, the claims are never idle.
    pub(super) guards: BTreeSet<Box<[u8]>>,
    bytes: usize,
}

impl Claims {
    /// Claims that nobody has yet.
    pub fn new(kind: ClaimKind) -> Claims {
        Claims { kind, ..Claims::default() }
    }

    /// What is claimed.
    pub fn kind(&self) -> ClaimKind {
        self.kind
    }

    /// Who holds it.
    pub fn holders(&self, now_ms: u64) -> impl Iterator<Item = &Holder> {
        self.holders.iter().filter(move |holder| holder.is_on(now_ms))
    }

    /// The hold of an owner.
    pub fn of_owner(&self, owner: &[u8], now_ms: u64) -> Option<&Holder> {
        self.holders(now_ms).find(|holder| *holder.owner == *owner)
    }

    /// Who leads, if this is an election and somebody does.
    pub fn leader(&self, now_ms: u64) -> Option<Leader<'_>> {
        let holder = self.holders(now_ms).next().filter(|_| self.kind == ClaimKind::Election)?;
        Some(Leader { candidate: &holder.owner, epoch: holder.token, value: Some(&holder.data) })
    }

    /// How many permits there are; 0 for any number.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Who waits, the first in front, but for those whose client is gone.
    pub fn waiting(&self) -> impl Iterator<Item = &[u8]> {
        self.queue.iter().filter(|waiter| !waiter.is_absent).map(|waiter| &*waiter.owner)
    }

    /// How many wait.
    pub fn waiting_count(&self) -> usize {
        self.waiting().count()
    }

    /// Until when nothing is granted because a hold ran out; 0 for none.
    pub fn closed_until(&self) -> u64 {
        self.closed_until
    }

    /// About what they take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether somebody holds it or waits for it.
    fn is_claimed(&self) -> bool {
        !self.holders.is_empty() || !self.queue.is_empty()
    }

    /// Whether nobody holds it or waits for it, and nothing else is to be remembered.
    pub fn is_idle(&self) -> bool {
        !self.is_claimed() && self.closed_until == 0 && self.guards.is_empty()
    }

    /// Whether keys are guarded by it.
    pub fn guards_any(&self) -> bool {
        !self.guards.is_empty()
    }

    /// Whether the log clock leaves anything of them.
    pub fn is_alive(&self, now_ms: u64) -> bool {
        self.closed_until >= now_ms.max(1)
            || self.guards_any()
            || self.holders(now_ms).next().is_some()
            || self.queue.iter().any(|waiter| waiter.deadline >= now_ms)
    }

    /// The deadline after which something ends.
    pub fn next_deadline(&self) -> Option<u64> {
        let holds = self.holders.iter().filter_map(Holder::deadline);
        let waits = self.queue.iter().map(|waiter| waiter.deadline);
        holds.chain(waits).chain((self.closed_until > 0).then_some(self.closed_until)).min()
    }

    /// When they are over if nobody does anything; None if that is never, for all anybody knows.
    pub fn last_deadline(&self) -> Option<u64> {
        if self.guards_any() || self.lease_ids().next().is_some() {
            return None;
        }
        let holds = self.holders.iter().filter_map(Holder::deadline);
        let closed = (self.closed_until > 0).then_some(self.closed_until);
        holds.chain(self.queue.iter().map(|waiter| waiter.deadline)).chain(closed).max()
    }

    /// The leases that holds and wishes depend on; one may come several times.
    pub(super) fn lease_ids(&self) -> impl Iterator<Item = &LeaseId> {
        let held = self.holders.iter().filter_map(|holder| match &holder.until {
            Until::Lease(id) => Some(id),
            Until::At(_) => None,
        });
        held.chain(self.queue.iter().filter_map(|waiter| match &waiter.span {
            Span::Lease(id) => Some(id),
            Span::Ms(_) => None,
        }))
    }

    /// Whether somebody waits, or was granted what it waited for and perhaps not told yet.
    pub(super) fn has_tickets(&self) -> bool {
        !self.queue.is_empty() || self.holders.iter().any(|holder| holder.ticket.is_some())
    }

    /// Whether this is the ticket of one of them.
    pub(super) fn knows(&self, ticket: Ticket) -> bool {
        let granted = self.holders.iter().filter_map(|holder| holder.ticket);
        granted.chain(self.queue.iter().map(|waiter| waiter.ticket)).any(|other| other == ticket)
    }

    /// The grant under a ticket, if there was one.
    pub(super) fn granted_under(&self, ticket: Ticket, now_ms: u64) -> Option<Outcome> {
        let holder = self.holders.iter().find(|holder| holder.ticket == Some(ticket))?;
        let remaining_ms = holder.deadline().map(|deadline| deadline.saturating_sub(now_ms));
        Some(Outcome::Granted { kind: self.kind, token: holder.token, remaining_ms })
    }

    /// The permits that are held; None if nothing more can be granted, because all is held, or it is closed.
    fn held(&self, now_ms: u64) -> Option<u64> {
        let count = |holder: &Holder| match holder.share {
            Share::All => None,
            Share::Permits(count) => Some(count),
        };
        let mut held = self.holders.iter().map(count);
        let is_closed = self.closed_until >= now_ms.max(1);
        held.try_fold(0u64, |sum, count| Some(sum.saturating_add(count?))).filter(|_| !is_closed)
    }

    /// Whether a share fits beside so many permits that are held.
    fn fits(&self, share: Share, held: u64) -> bool {
        match share {
            Share::All => self.holders.is_empty(),
            Share::Permits(more) => self.total == 0 || held.saturating_add(more) <= self.total,
        }
    }

    /// Ends what the log clock has ended, and grants what is free. False if there was nothing to do.
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

    /// Grants what fits to those who wait, up to the first present one for whom it does not.
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

    /// Counts `bytes` anew.
    pub(super) fn measure(&mut self) {
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

    /// Grants a wish if it fits, under a new token; or queues it; or neither. Who holds already holds on, under the
    /// same token and not for a shorter time; who waits already keeps its place.
    pub fn acquire(&mut self, wish: &Wish<'_>, turn: &mut Turn<'_>) -> Result<Answer> {
        let lease = if let Span::Lease(id) = &wish.span { id.len() } else { 0 };
        let present = self.holders.iter().map(|holder| (&holder.owner, &holder.data));
        let mut present = present.chain(self.queue.iter().map(|waiter| (&waiter.owner, &waiter.data)));
        match present.find(|(owner, _)| ***owner == *wish.owner) {
            Some((_, data)) => self.check_room(wish.data.map_or(0, <[u8]>::len), data.len())?,
            None => {
                self.check_room(wish.owner.len() + wish.data.map_or(0, <[u8]>::len) + lease + FIXED_BYTES, 0)?
            }
        }
        if self.holders.iter().any(|holder| *holder.owner == *wish.owner) {
            return self.acquire_again(wish, turn);
        }
        if wish.wait.is_none() {
            // Who comes back and does not wait gives up its place.
            self.queue.retain(|waiter| !waiter.is_absent || *waiter.owner != *wish.owner);
        }
        if let Some(waiter) = self.queue.iter_mut().find(|waiter| *waiter.owner == *wish.owner) {
            let Some((ticket, deadline)) = wish.wait else { return Ok(Answer::Taken) };
            turn.wake(waiter.ticket, Outcome::Superseded);
            let data = wish.data.map_or_else(|| std::mem::take(&mut waiter.data), Into::into);
            *waiter = Waiter { data, ..Waiter::new(wish, ticket, deadline) };
            return Ok(Answer::Queued);
        }
        let is_free = || self.held(turn.now_ms).is_some_and(|held| self.fits(wish.share, held));
        if self.waiting_count() == 0 && is_free() {
            let (token, until) = (turn.issue(), wish.until(turn.now_ms));
            self.holders.push(Holder {
                owner: wish.owner.into(),
                token,
                count: 1,
                share: wish.share,
                until: until.clone(),
                delay_ms: wish.delay_ms,
                ticket: wish.wait.map(|(ticket, _)| ticket),
                data: wish.data.unwrap_or_default().into(),
            });
            return Ok(Answer::Held { token, until });
        }
        let Some((ticket, deadline)) = wish.wait else { return Ok(Answer::Taken) };
        self.queue.push_back(Waiter::new(wish, ticket, deadline));
        Ok(Answer::Queued)
    }

    /// As `acquire`, by an owner that holds it.
    fn acquire_again(&mut self, wish: &Wish<'_>, turn: &mut Turn<'_>) -> Result<Answer> {
        let is_alone = self.holders.len() == 1;
        let holder = self.holders.iter_mut().find(|holder| *holder.owner == *wish.owner);
        let holder = holder.expect("the caller found it");
        match (holder.share, wish.share) {
            (Share::Permits(_), Share::All) if !is_alone && wish.wait.is_some() => {
                return Err(Error::err("an owner that shares a lock can not wait to have it alone"));
            }
            (Share::Permits(_), Share::All) if !is_alone => return Ok(Answer::Taken),
            (Share::Permits(held), Share::Permits(wanted)) if held != wanted => {
                return Err(Error::err(format!("the owner holds {held} permits already")));
            }
            _ => {}
        }
        let until = match (&holder.until, wish.until(turn.now_ms)) {
            (Until::At(old), Until::At(new)) => Until::At(new.max(*old)),
            (old, new) if *old == new => new,
            _ => return Err(Error::err("the owner holds it for another time: by PX, or by another LEASE")),
        };
        if wish.share == Share::All {
            holder.share = Share::All;
        }
        // An acquisition that was not told yet is one more all the same: released too often is worse than too late.
        if wish.is_counted {
            holder.count += 1;
        } else {
            holder.ticket = None;
        }
        holder.until = until.clone();
        if let Some(data) = wish.data {
            holder.data = data.into();
        }
        Ok(Answer::Held { token: holder.token, until })
    }

    /// Whether there is room for `more` bytes in the place of `less`.
    fn check_room(&self, more: usize, less: usize) -> Result<()> {
        if more <= less || self.bytes + more - less <= CLAIMS_BYTES_MAX {
            return Ok(());
        }
        Err(Error::err(format!("what is said at one key may take {CLAIMS_BYTES_MAX} bytes together")))
    }

    /// What they are claims on: the kind, and how many permits there are.
    pub(super) fn nature(&self) -> (ClaimKind, u64) {
        (self.kind, self.total)
    }

    /// Makes them again what they were.
    pub(super) fn set_nature(&mut self, (kind, total): (ClaimKind, u64)) {
        (self.kind, self.total) = (kind, total);
    }

    /// Makes them claims of a kind. Only those that nobody has can become others than they are.
    pub fn become_kind(&mut self, kind: ClaimKind) -> Result<()> {
        if self.kind != kind && self.is_claimed() {
            return Err(Error::WrongType);
        }
        if self.kind != kind {
            (self.kind, self.total) = (kind, 0);
        }
        Ok(())
    }

    /// Sets how many permits there are; while somebody has some, it can only be said again.
    pub fn agree_on_total(&mut self, total: u64) -> Result<()> {
        if self.is_claimed() && self.total != total {
            return Err(Error::err(format!("the semaphore has {} permits", self.total)));
        }
        self.total = total;
        Ok(())
    }

    /// Sets what a holder, whom the caller has found, wants others to see.
    pub fn set_data(&mut self, owner: &[u8], data: &[u8]) -> Result<()> {
        let present = self.holders.iter().find(|holder| *holder.owner == *owner);
        self.check_room(data.len(), present.map_or(0, |holder| holder.data.len()))?;
        if let Some(holder) = self.holder_mut(owner) {
            holder.data = data.into();
        }
        Ok(())
    }

    /// Guards a key. False if it did already.
    pub(super) fn guard(&mut self, key: &[u8]) -> Result<bool> {
        self.check_room(key.len() + FIXED_BYTES, 0)?;
        let is_new = self.guards.insert(key.into());
        self.measure();
        Ok(is_new)
    }

    /// A holder, to change what does not change who may hold.
    pub fn holder_mut(&mut self, owner: &[u8]) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|holder| *holder.owner == *owner)
    }

    /// Takes back one acquisition of an owner. Gives how many are left.
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

    /// Nobody is there any more who could be told: the owner does not wait, unless it comes back soon; or what was
    /// granted meanwhile ends.
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

    /// The owner knows that it holds.
    pub fn confirm(&mut self, ticket: Ticket) {
        let holder = self.holders.iter_mut().find(|holder| holder.ticket == Some(ticket));
        holder.into_iter().for_each(|holder| holder.ticket = None);
    }

    /// Ends the waits at a node, but for those of one run of it. False if there were none.
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

    /// A lease has another name.
    pub(super) fn rename_lease(&mut self, from: &[u8], to: &[u8]) {
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

    /// Ends holds and waits that depend on some leases. What ran out closes what was held for the holders' delay.
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

    /// Tells all who wait that the key is gone.
    pub(super) fn dismiss(&self, wakes: &mut Vec<Wake>) {
        let wake = |waiter: &Waiter| Wake {
            ticket: waiter.ticket,
            outcome: Outcome::Gone,
            db: 0,
            key: Box::default(),
        };
        wakes.extend(self.queue.iter().map(wake));
    }
}
