//! Tests claims against a plain form of them: two lists, each searched in full. Both are changed alike, at random, and
//! have the same content in the same order, give the same answers, wake the same waiters and depend on the same leases.

use std::collections::{BTreeSet, HashSet};

use super::{CLAIMS_BYTES_MAX, Claims, row::Claim};
use crate::store::owner::{
    Acquire, Answer, ClaimKind, Holder, LeaseId, Outcome, Share, Span, Turn, Until, Waiter, Wake,
};
use crate::store::{Kind, codec::Input, waits::Ticket};

#[derive(Default)]
struct Plain {
    total: u64,
    holders: Vec<Holder>,
    queue: Vec<Waiter>,
    closed_until: u64,
    bytes: usize,
}

impl Plain {
    fn leases(&self) -> Vec<LeaseId> {
        let held = self.holders.iter().filter_map(Claim::lease);
        held.chain(self.queue.iter().filter_map(Claim::lease)).cloned().collect()
    }

    fn fits(&self, share: Share, now_ms: u64) -> bool {
        let mut held = 0u64;
        for holder in &self.holders {
            match holder.share {
                Share::All => return false,
                Share::Permits(count) => held += count,
            }
        }
        let fits = match share {
            Share::All => self.holders.is_empty(),
            Share::Permits(more) => self.total == 0 || held + more <= self.total,
        };
        fits && (self.closed_until == 0 || self.closed_until < now_ms)
    }

    fn settle(&mut self, turn: &mut Turn<'_>) -> bool {
        let (now_ms, before) = (turn.now_ms, (self.holders.len(), self.queue.len(), self.closed_until));
        for holder in self.holders.iter().filter(|holder| !holder.is_on(now_ms) && holder.delay_ms > 0) {
            self.closed_until = self.closed_until.max(holder.deadline().unwrap() + holder.delay_ms);
        }
        self.holders.retain(|holder| holder.is_on(now_ms));
        if self.closed_until < now_ms {
            self.closed_until = 0;
        }
        self.queue.retain(|waiter| {
            if waiter.deadline < now_ms {
                turn.wake(waiter.ticket, Outcome::TimedOut);
            }
            waiter.deadline >= now_ms
        });
        while let Some(at) = self.queue.iter().position(|waiter| !waiter.is_absent)
            && self.fits(self.queue[at].share, now_ms)
        {
            let waiter = self.queue.remove(at);
            let (token, ticket) = (turn.issue(), waiter.ticket);
            let (until, remaining_ms) = match waiter.span {
                Span::Ms(ms) => (Until::At(now_ms + ms), Some(ms)),
                Span::Lease(id) => (Until::Lease(id), None),
            };
            turn.wake(ticket, Outcome::Granted { kind: ClaimKind::Lock, token, remaining_ms });
            let Waiter { owner, share, delay_ms, data, .. } = waiter;
            self.holders.push(Holder {
                owner,
                token,
                count: 1,
                share,
                until,
                delay_ms,
                ticket: Some(ticket),
                data,
            });
        }
        self.bytes = self.holders.iter().map(Claim::bytes).chain(self.queue.iter().map(Claim::bytes)).sum();
        before != (self.holders.len(), self.queue.len(), self.closed_until)
    }

    fn acquire(&mut self, asked: &Acquire<'_>, turn: &mut Turn<'_>) -> Option<Answer> {
        let is_own = |owner: &[u8]| *owner == *asked.owner;
        let holder = self.holders.iter().find(|holder| is_own(&holder.owner));
        let waiter = self.queue.iter().find(|waiter| is_own(&waiter.owner));
        let new = asked.data.map_or(0, <[u8]>::len);
        let more = match holder.map(|holder| holder.data.len()).or(waiter.map(|waiter| waiter.data.len())) {
            Some(old) => new.saturating_sub(old),
            None => Waiter::new(asked, Ticket { node: 0, boot: 0, number: 0 }, 0).bytes(),
        };
        if more > 0 && self.bytes + more > CLAIMS_BYTES_MAX {
            return None;
        }
        if self.holders.iter().any(|holder| is_own(&holder.owner)) {
            return self.acquire_again(asked, turn);
        }
        if asked.wait.is_none() {
            self.queue.retain(|waiter| !waiter.is_absent || !is_own(&waiter.owner));
        }
        if let Some(waiter) = self.queue.iter_mut().find(|waiter| is_own(&waiter.owner)) {
            let Some((ticket, deadline)) = asked.wait else { return Some(Answer::Taken) };
            turn.wake(waiter.ticket, Outcome::Superseded);
            let data = asked.data.map_or_else(|| std::mem::take(&mut waiter.data), Into::into);
            *waiter = Waiter { data, ..Waiter::new(asked, ticket, deadline) };
            return Some(Answer::Queued);
        }
        if self.queue.iter().all(|waiter| waiter.is_absent) && self.fits(asked.share, turn.now_ms) {
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
            return Some(Answer::Held { token, until });
        }
        let Some((ticket, deadline)) = asked.wait else { return Some(Answer::Taken) };
        self.queue.push(Waiter::new(asked, ticket, deadline));
        Some(Answer::Queued)
    }

    fn acquire_again(&mut self, asked: &Acquire<'_>, turn: &mut Turn<'_>) -> Option<Answer> {
        let is_alone = self.holders.len() == 1;
        let holder = self.holders.iter_mut().find(|holder| *holder.owner == *asked.owner)?;
        match (holder.share, asked.share) {
            (Share::Permits(_), Share::All) if !is_alone => {
                return asked.wait.is_none().then_some(Answer::Taken);
            }
            (Share::Permits(held), Share::Permits(wanted)) if held != wanted => return None,
            _ => {}
        }
        let until = match (&holder.until, asked.until(turn.now_ms)) {
            (Until::At(old), Until::At(new)) => Until::At(new.max(*old)),
            (old, new) if *old == new => new,
            _ => return None,
        };
        if asked.share == Share::All {
            holder.share = Share::All;
        }
        if asked.is_counted {
            holder.count += 1;
        } else {
            holder.ticket = None;
        }
        holder.until = until.clone();
        if let Some(data) = asked.data {
            holder.data = data.into();
        }
        Some(Answer::Held { token: holder.token, until })
    }

    fn cancel(&mut self, ticket: Ticket, now_ms: u64) {
        self.queue
            .iter_mut()
            .filter(|waiter| waiter.ticket == ticket)
            .for_each(|waiter| waiter.leave(now_ms));
        for holder in self.holders.iter_mut().filter(|holder| holder.ticket == Some(ticket)) {
            (holder.ticket, holder.count) = (None, holder.count - 1);
        }
        self.holders.retain(|holder| holder.count > 0);
    }

    fn end_leases(&mut self, ids: &BTreeSet<LeaseId>, ran_out: bool, turn: &mut Turn<'_>) {
        let ends = |lease: Option<&LeaseId>| lease.is_some_and(|id| ids.contains(id));
        for holder in
            self.holders.iter().filter(|holder| ends(holder.lease()) && ran_out && holder.delay_ms > 0)
        {
            self.closed_until = self.closed_until.max(turn.now_ms + holder.delay_ms);
        }
        self.holders.retain(|holder| !ends(holder.lease()));
        self.queue.retain(|waiter| {
            if ends(waiter.lease()) {
                turn.wake(waiter.ticket, Outcome::Gone);
            }
            !ends(waiter.lease())
        });
    }

    fn forget(&mut self, node: u64, but_boot: u64, turn: &mut Turn<'_>) {
        for waiter in self.queue.iter_mut().filter(|waiter| !waiter.is_absent) {
            if waiter.ticket.node == node && waiter.ticket.boot != but_boot {
                turn.wake(waiter.ticket, Outcome::Gone);
                waiter.leave(turn.now_ms);
            }
        }
    }
}

/// A change, and what is answered.
enum Change {
    Acquire {
        owner: u8,
        share: Share,
        span: Span,
        data: Option<Vec<u8>>,
        delay_ms: u64,
        wait: Option<(Ticket, u64)>,
        is_counted: bool,
    },
    Release(u8),
    Renew(u8, u64),
    SetData(u8, Vec<u8>),
    Cancel(Ticket),
    Confirm(Ticket),
    Forget(u64, u64),
    EndLeases(BTreeSet<LeaseId>, bool),
    Break,
    Nothing,
}

fn ticket(chance: &mut fastrand::Rng, numbers: u64) -> Ticket {
    Ticket { node: chance.u64(1..4), boot: chance.u64(1..3), number: chance.u64(..numbers) }
}

fn lease(chance: &mut fastrand::Rng, leases: u8) -> LeaseId {
    LeaseId::from(format!("lease:{}", chance.u8(..leases)).as_bytes())
}

impl Change {
    fn any(chance: &mut fastrand::Rng, now_ms: u64, (owners, spread): (u8, u64)) -> Change {
        let owner = chance.u8(..owners);
        match chance.u8(..40) {
            0..20 => Change::Acquire {
                owner,
                share: if chance.u8(..9) == 0 {
                    Share::All
                } else {
                    Share::Permits(1 + u64::from(owner % 3))
                },
                span: if chance.u8(..3) == 0 {
                    Span::Lease(lease(chance, owners))
                } else {
                    Span::Ms(chance.u64(1..spread))
                },
                data: chance.bool().then(|| vec![b'x'; chance.usize(..9)]),
                delay_ms: if chance.u8(..20) == 0 { 3 } else { 0 },
                wait: (chance.u8(..4) > 0).then(|| (ticket(chance, spread), now_ms + chance.u64(..spread))),
                is_counted: chance.bool(),
            },
            20..24 => Change::Release(owner),
            24..27 => Change::Renew(owner, now_ms + chance.u64(..spread)),
            27 => Change::SetData(owner, vec![b'y'; chance.usize(..9)]),
            28..30 => Change::Cancel(ticket(chance, spread)),
            30..33 => Change::Confirm(ticket(chance, spread)),
            33 => Change::Forget(chance.u64(1..4), chance.u64(..3)),
            34 | 35 => {
                let ids = (0..chance.usize(1..3)).map(|_| lease(chance, owners)).collect();
                Change::EndLeases(ids, chance.bool())
            }
            36 if chance.u8(..40) == 0 => Change::Break,
            _ => Change::Nothing,
        }
    }

    fn acquire<R>(&self, with: impl FnOnce(&Acquire<'_>) -> R) -> Option<R> {
        let Change::Acquire { owner, share, span, data, delay_ms, wait, is_counted } = self else {
            return None;
        };
        Some(with(&Acquire {
            owner: &[*owner],
            share: *share,
            span: span.clone(),
            data: data.as_deref(),
            delay_ms: *delay_ms,
            wait: *wait,
            is_counted: *is_counted,
        }))
    }

    fn apply(&self, claims: &mut Claims, turn: &mut Turn<'_>) -> Option<Answer> {
        match self {
            Change::Acquire { .. } => return self.acquire(|asked| claims.acquire(asked, turn).ok())?,
            Change::Release(owner) => _ = claims.release(&[*owner]),
            Change::Renew(owner, deadline) => {
                if claims.of_owner(&[*owner], turn.now_ms).is_some() {
                    _ = claims.renew(&[*owner], *deadline);
                }
            }
            Change::SetData(owner, data) => claims.set_data(&[*owner], data).unwrap(),
            Change::Cancel(ticket) => claims.cancel(*ticket, turn.now_ms),
            Change::Confirm(ticket) => claims.confirm(*ticket),
            Change::Forget(node, but_boot) => _ = claims.forget(*node, *but_boot, turn),
            Change::EndLeases(ids, ran_out) => claims.end_leases(ids, *ran_out, turn),
            Change::Break => claims.break_all(),
            Change::Nothing => {}
        }
        None
    }

    fn apply_plainly(&self, plain: &mut Plain, turn: &mut Turn<'_>) -> Option<Answer> {
        let mut holders = plain.holders.iter_mut();
        match self {
            Change::Acquire { .. } => return self.acquire(|asked| plain.acquire(asked, turn))?,
            Change::Release(owner) => {
                holders.filter(|holder| *holder.owner == [*owner]).for_each(|holder| holder.count -= 1);
                plain.holders.retain(|holder| holder.count > 0);
            }
            Change::Renew(owner, deadline) => {
                let own = holders.find(|holder| *holder.owner == [*owner] && holder.lease().is_none());
                own.into_iter().for_each(|own| (own.until, own.ticket) = (Until::At(*deadline), None));
            }
            Change::SetData(owner, data) => {
                let own = holders.filter(|holder| *holder.owner == [*owner]);
                own.for_each(|holder| holder.data = data.as_slice().into());
            }
            Change::Cancel(ticket) => plain.cancel(*ticket, turn.now_ms),
            Change::Confirm(ticket) => {
                let own = holders.find(|holder| holder.ticket == Some(*ticket));
                own.into_iter().for_each(|own| own.ticket = None);
            }
            Change::Forget(node, but_boot) => plain.forget(*node, *but_boot, turn),
            Change::EndLeases(ids, ran_out) => plain.end_leases(ids, *ran_out, turn),
            Change::Break => (plain.holders, plain.closed_until) = (Vec::new(), 0),
            Change::Nothing => {}
        }
        None
    }
}

/// The leases in `these` that are not in `others`, once each, in order.
fn missing(these: &[LeaseId], others: &[LeaseId]) -> Vec<LeaseId> {
    let mut seen: HashSet<&LeaseId> = others.iter().collect();
    these.iter().filter(|id| seen.insert(id)).cloned().collect()
}

fn compare(claims: &Claims, plain: &Plain, now_ms: u64) {
    claims.invariants();
    assert!(claims.holders.iter().eq(plain.holders.iter()), "the same holders in the same order");
    assert!(claims.queue.iter().eq(plain.queue.iter()), "the same queue");
    assert_eq!((claims.closed_until, claims.bytes), (plain.closed_until, plain.bytes));
    let waiting = plain.queue.iter().filter(|waiter| !waiter.is_absent).map(|waiter| &*waiter.owner);
    assert!(claims.waiting().eq(waiting));
    assert_eq!(claims.waiting_count(), claims.waiting().count());
    let closed = (plain.closed_until > 0).then_some(plain.closed_until);
    let deadlines = plain.holders.iter().filter_map(Holder::deadline).chain(closed);
    let deadlines: Vec<u64> = deadlines.chain(plain.queue.iter().map(|waiter| waiter.deadline)).collect();
    assert_eq!(claims.next_deadline(), deadlines.iter().copied().min());
    let last = deadlines.iter().copied().max().filter(|_| plain.leases().is_empty());
    assert_eq!(claims.last_deadline(), last);
    let has_tickets = !plain.queue.is_empty() || plain.holders.iter().any(|holder| holder.ticket.is_some());
    assert_eq!(claims.has_tickets(), has_tickets);
    for later in [now_ms, now_ms + 5, now_ms + 1_000_000] {
        let is_alive = plain.closed_until >= later
            || plain.holders.iter().any(|holder| holder.is_on(later))
            || plain.queue.iter().any(|waiter| waiter.deadline >= later);
        assert_eq!(claims.is_alive(later), is_alive);
    }
    for holder in &plain.holders {
        assert!(
            claims.has_token(holder.token, now_ms) && claims.of_owner(&holder.owner, now_ms) == Some(holder)
        );
    }
}

/// One run: few owners and short times, or so many that there is an index.
fn run(chance: &mut fastrand::Rng, steps: usize, (owners, spread): (u8, u64)) -> usize {
    let (mut claims, mut plain) = (Claims::new(ClaimKind::Lock), Plain::default());
    let total = if chance.bool() { 0 } else { chance.u64(1..40) };
    (claims.total, plain.total) = (total, total);
    let (mut now_ms, mut tokens, mut most) = (1_000, (0, 0), 0);
    for _ in 0..steps {
        now_ms += if chance.u8(..5) == 0 { chance.u64(..6) } else { 0 };
        let change = Change::any(chance, now_ms, (owners, spread));
        let settles_first = !matches!(change, Change::EndLeases(..));
        let (mut wakes, mut plain_wakes): (Vec<Wake>, Vec<Wake>) = Default::default();
        let (before, tickets_before) = (plain.leases(), BTreeSet::from_iter(claims.tickets()));
        claims.begin();
        let mut turn = Turn { now_ms, token: &mut tokens.0, wakes: &mut wakes, changed: true };
        let first = settles_first && claims.settle(&mut turn);
        let answers = (first, change.apply(&mut claims, &mut turn), claims.settle(&mut turn));
        let mut turn = Turn { now_ms, token: &mut tokens.1, wakes: &mut plain_wakes, changed: true };
        let first = settles_first && plain.settle(&mut turn);
        assert_eq!(answers, (first, change.apply_plainly(&mut plain, &mut turn), plain.settle(&mut turn)));
        assert_eq!((wakes, tokens.0), (plain_wakes, tokens.1));
        compare(&claims, &plain, now_ms);
        let (traces, after) = (claims.take_traces(), plain.leases());
        assert_eq!(traces.lost, missing(&before, &after), "in the order in which they were");
        assert_eq!(traces.gained, missing(&after, &before), "in the order in which they are");
        let (told, tickets) = (BTreeSet::from_iter(traces.tickets), BTreeSet::from_iter(claims.tickets()));
        for ticket in tickets_before.symmetric_difference(&tickets) {
            assert!(
                told.iter().any(
                    |(other, standing)| other == ticket && standing.is_some() == tickets.contains(ticket)
                )
            );
        }
        most = most.max(plain.holders.len() + plain.queue.len());
        if chance.u8(..50) == 0 && !claims.is_idle() {
            let mut page = Vec::new();
            claims.encode_head(&mut page);
            claims = Claims::decode_head(ClaimKind::Lock, &mut Input::new(&page)).unwrap();
            compare(&claims, &plain, now_ms);
        }
    }
    most
}

#[test]
fn whatever_finds_claims_they_are_what_they_were() {
    let seed = std::env::var("KVORUM_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("KVORUM_SEED={seed}");
    let mut chance = fastrand::Rng::with_seed(seed);
    for _ in 0..10 {
        let few = run(&mut chance, 1_000, (6, 30));
        let many = run(&mut chance, 1_000, (200, 300));
        assert!(few <= 6 && many > 32, "{few} and {many}");
    }
}
