//! A row of claims, in order: the holders of one key, or its queue. One of them is found by its place, owner, ticket,
//! lease or deadline without a look at the others, since there may be ten thousand.
//!
//! The order is part of the replicated state. What finds a claim is not: it is built when a row gets long. Most keys
//! have one holder and nobody waits, and a short row is searched as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::store::owner::{FIXED_BYTES, Holder, LeaseId, Share, Waiter};
use crate::store::waits::Ticket;

/// A longer row has an index.
const SEARCHED_MAX: usize = 16;

/// What stands in a row. Its owner never changes, nor does its lease, unless it is replaced.
pub(in crate::store) trait Claim {
    fn owner(&self) -> &Arc<[u8]>;
    fn data(&self) -> &[u8];
    fn share(&self) -> Share;
    /// Where the end of its wait is told, or was, if it is not known whether that was heard.
    fn ticket(&self) -> Option<Ticket>;
    /// The lease with which it ends.
    fn lease(&self) -> Option<&LeaseId>;
    /// It ends when the log clock is past this; None if it ends with its lease.
    fn deadline(&self) -> Option<u64>;
    /// Whether it waits, and its client is there.
    fn is_waiting(&self) -> bool;

    /// The approximate size in bytes.
    fn bytes(&self) -> usize {
        self.owner().len() + self.data().len() + self.lease().map_or(0, |id| id.len()) + FIXED_BYTES
    }
}

/// What is known of all claims of a row together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    bytes: usize,
    /// How many have a ticket.
    tickets: usize,
    waiting: usize,
    /// How many have a share of everything.
    alone: usize,
    /// The permits of the others.
    permits: u128,
}

impl Sums {
    fn of(claim: &impl Claim) -> Sums {
        let (alone, permits) = match claim.share() {
            Share::All => (1, 0),
            Share::Permits(count) => (0, u128::from(count)),
        };
        let (tickets, waiting) = (claim.ticket().is_some().into(), claim.is_waiting().into());
        Sums { bytes: claim.bytes(), tickets, waiting, alone, permits }
    }

    fn add(&mut self, claim: &impl Claim) {
        let Sums { bytes, tickets, waiting, alone, permits } = Sums::of(claim);
        self.bytes += bytes;
        self.tickets += tickets;
        self.waiting += waiting;
        self.alone += alone;
        self.permits += permits;
    }

    fn subtract(&mut self, claim: &impl Claim) {
        let Sums { bytes, tickets, waiting, alone, permits } = Sums::of(claim);
        self.bytes -= bytes;
        self.tickets -= tickets;
        self.waiting -= waiting;
        self.alone -= alone;
        self.permits -= permits;
    }
}

/// The places of claims, by what they are searched for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Index {
    by_owner: BTreeMap<Arc<[u8]>, u64>,
    by_ticket: BTreeSet<(Ticket, u64)>,
    by_lease: BTreeSet<(LeaseId, u64)>,
    by_deadline: BTreeSet<(u64, u64)>,
    waiting: BTreeSet<u64>,
}

impl Index {
    fn add(&mut self, place: u64, claim: &impl Claim) {
        self.by_owner.insert(claim.owner().clone(), place);
        self.by_ticket.extend(claim.ticket().map(|ticket| (ticket, place)));
        self.by_lease.extend(claim.lease().map(|id| (id.clone(), place)));
        self.by_deadline.extend(claim.deadline().map(|deadline| (deadline, place)));
        self.waiting.extend(claim.is_waiting().then_some(place));
    }

    fn remove(&mut self, place: u64, claim: &impl Claim) {
        self.by_owner.remove(claim.owner());
        claim.ticket().map(|ticket| self.by_ticket.remove(&(ticket, place)));
        claim.lease().map(|id| self.by_lease.remove(&(id.clone(), place)));
        claim.deadline().map(|deadline| self.by_deadline.remove(&(deadline, place)));
        self.waiting.remove(&place);
    }

    fn under<'a>(&'a self, id: &LeaseId) -> impl Iterator<Item = u64> + use<'a> {
        let range = (id.clone(), 0)..=(id.clone(), u64::MAX);
        self.by_lease.range(range).map(|(_, place)| *place)
    }
}

/// Claims in the order of their places.
///
/// Invariants:
/// - No two claims have the same owner.
/// - `sums` is the sum over `claims`. `index` has exactly the claims; a long row has one.
#[derive(Clone, Debug)]
pub(in crate::store) struct Row<T> {
    claims: BTreeMap<u64, Box<T>>,
    sums: Sums,
    index: Option<Box<Index>>,
}

impl<T> Default for Row<T> {
    fn default() -> Row<T> {
        Row { claims: BTreeMap::new(), sums: Sums::default(), index: None }
    }
}

impl<T: PartialEq> PartialEq for Row<T> {
    fn eq(&self, other: &Row<T>) -> bool {
        self.claims == other.claims
    }
}

impl<T: Claim> Row<T> {
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// The approximate size in bytes.
    pub fn bytes(&self) -> usize {
        self.sums.bytes
    }

    /// Whether any has a ticket.
    pub fn has_tickets(&self) -> bool {
        self.sums.tickets > 0
    }

    /// How many wait, and their clients are there.
    pub fn waiting_count(&self) -> usize {
        self.sums.waiting
    }

    /// The permits of all together; None if one has everything.
    pub fn permits(&self) -> Option<u64> {
        (self.sums.alone == 0).then(|| u64::try_from(self.sums.permits).unwrap_or(u64::MAX))
    }

    /// Whether any ends with its lease.
    pub fn has_leases(&self) -> bool {
        match &self.index {
            Some(index) => !index.by_lease.is_empty(),
            None => self.iter().any(|claim| claim.lease().is_some()),
        }
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.claims.values().map(|claim| &**claim).inspect(|_| looked())
    }

    pub fn get(&self, place: u64) -> Option<&T> {
        self.claims.get(&place).map(|claim| &**claim)
    }

    /// The last place.
    pub fn last_place(&self) -> Option<u64> {
        self.claims.last_key_value().map(|(place, _)| *place)
    }

    /// Adds a claim behind all others: `place` is a later one. Its owner has no claim in this row.
    pub fn push(&mut self, place: u64, claim: T) {
        debug_assert!(
            self.last_place().is_none_or(|last| last < place) && self.find(claim.owner()).is_none()
        );
        self.sums.add(&claim);
        if let Some(index) = &mut self.index {
            index.add(place, &claim);
        }
        self.claims.insert(place, Box::new(claim));
        if self.index.is_none() && self.len() > SEARCHED_MAX {
            let mut index = Box::<Index>::default();
            self.claims.iter().for_each(|(place, claim)| index.add(*place, &**claim));
            self.index = Some(index);
        }
    }

    pub fn remove(&mut self, place: u64) -> Option<T> {
        let claim = *self.claims.remove(&place)?;
        self.sums.subtract(&claim);
        if let Some(index) = &mut self.index {
            index.remove(place, &claim);
            // Not at once where it was built: a row may well go on at that length.
            self.index.take_if(|_| self.claims.len() <= SEARCHED_MAX / 2);
        }
        Some(claim)
    }

    /// Changes a claim where it stands.
    pub fn change<R>(&mut self, place: u64, change: impl FnOnce(&mut T) -> R) -> Option<R> {
        let claim = self.claims.get_mut(&place)?;
        self.sums.subtract(&**claim);
        self.index.iter_mut().for_each(|index| index.remove(place, &**claim));
        let result = change(claim);
        self.sums.add(&**claim);
        self.index.iter_mut().for_each(|index| index.add(place, &**claim));
        Some(result)
    }

    /// The places of the claims for which `is_it` holds. Looks at all.
    fn search(&self, is_it: impl Fn(&T) -> bool) -> Vec<u64> {
        let found = self.claims.iter().inspect(|_| looked()).filter(|(_, claim)| is_it(claim));
        found.map(|(place, _)| *place).collect()
    }

    /// The claim of an owner.
    pub fn find(&self, owner: &[u8]) -> Option<u64> {
        match &self.index {
            Some(index) => index.by_owner.get(owner).copied(),
            None => self.search(|claim| **claim.owner() == *owner).first().copied(),
        }
    }

    /// The claims with a ticket, in order.
    pub fn with_ticket(&self, ticket: Ticket) -> Vec<u64> {
        match &self.index {
            Some(index) => {
                index.by_ticket.range((ticket, 0)..=(ticket, u64::MAX)).map(|(_, place)| *place).collect()
            }
            None => self.search(|claim| claim.ticket() == Some(ticket)),
        }
    }

    /// The claims with tickets of a node, except for those of one run of it, in order.
    pub fn of_node(&self, node: u64, but_boot: u64) -> Vec<u64> {
        let is_meant = |ticket: Ticket| ticket.node == node && ticket.boot != but_boot;
        let Some(index) = &self.index else {
            return self.search(|claim| claim.ticket().is_some_and(is_meant));
        };
        let lowest = (Ticket { node, boot: 0, number: 0 }, 0);
        let highest = (Ticket { node, boot: u64::MAX, number: u64::MAX }, u64::MAX);
        let of_node = index.by_ticket.range(lowest..=highest).filter(|(ticket, _)| is_meant(*ticket));
        in_order(of_node.map(|(_, place)| *place))
    }

    /// The claims that end with any of these leases, in order.
    pub fn under(&self, ids: &BTreeSet<LeaseId>) -> Vec<u64> {
        match &self.index {
            Some(index) => in_order(ids.iter().flat_map(|id| index.under(id))),
            None => self.search(|claim| claim.lease().is_some_and(|id| ids.contains(id))),
        }
    }

    /// The first claim that ends with a lease.
    pub fn first_under(&self, id: &LeaseId) -> Option<u64> {
        match &self.index {
            Some(index) => index.under(id).next(),
            None => self.search(|claim| claim.lease() == Some(id)).first().copied(),
        }
    }

    /// The claims whose deadline has passed, in order.
    pub fn due(&self, now_ms: u64) -> Vec<u64> {
        match &self.index {
            Some(index) => in_order(index.by_deadline.range(..(now_ms, 0)).map(|(_, place)| *place)),
            None => self.search(|claim| claim.deadline().is_some_and(|deadline| deadline < now_ms)),
        }
    }

    /// The first deadline, and the last one.
    pub fn deadlines(&self) -> Option<(u64, u64)> {
        if let Some(index) = &self.index {
            return Some((index.by_deadline.first()?.0, index.by_deadline.last()?.0));
        }
        let deadlines = self.iter().filter_map(Claim::deadline);
        let both = |(first, last): (u64, u64), next: u64| (first.min(next), last.max(next));
        deadlines.fold(None, |range, next| Some(both(range.unwrap_or((next, next)), next)))
    }

    /// The first that waits, and whose client is there.
    pub fn first_waiting(&self) -> Option<(u64, &T)> {
        let place = match &self.index {
            Some(index) => *index.waiting.first()?,
            None => {
                return self
                    .claims
                    .iter()
                    .map(|(place, claim)| (*place, &**claim))
                    .find(|(_, it)| it.is_waiting());
            }
        };
        Some((place, self.get(place)?))
    }

    /// Panics if an invariant does not hold. For tests.
    #[cfg(test)]
    pub fn invariants(&self) {
        let (mut sums, mut index) = (Sums::default(), Index::default());
        for (place, claim) in &self.claims {
            sums.add(&**claim);
            index.add(*place, &**claim);
        }
        assert_eq!((sums, index.by_owner.len()), (self.sums, self.len()));
        assert!(self.index.is_some() || self.len() <= SEARCHED_MAX);
        assert!(self.index.as_ref().is_none_or(|present| **present == index));
    }
}

#[cfg(test)]
thread_local! {
    /// How many claims were looked at one after another.
    pub(super) static LOOKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Counts a look at one of many. For tests.
#[inline(always)]
fn looked() {
    #[cfg(test)]
    LOOKS.set(LOOKS.get() + 1);
}

fn in_order(places: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut places: Vec<u64> = places.collect();
    places.sort_unstable();
    places
}

impl Claim for Holder {
    fn owner(&self) -> &Arc<[u8]> {
        &self.owner
    }

    fn data(&self) -> &[u8] {
        &self.data
    }

    fn share(&self) -> Share {
        self.share
    }

    fn ticket(&self) -> Option<Ticket> {
        self.ticket
    }

    fn lease(&self) -> Option<&LeaseId> {
        self.until.lease()
    }

    fn deadline(&self) -> Option<u64> {
        Holder::deadline(self)
    }

    fn is_waiting(&self) -> bool {
        false
    }
}

impl Claim for Waiter {
    fn owner(&self) -> &Arc<[u8]> {
        &self.owner
    }

    fn data(&self) -> &[u8] {
        &self.data
    }

    fn share(&self) -> Share {
        self.share
    }

    fn ticket(&self) -> Option<Ticket> {
        Some(self.ticket)
    }

    fn lease(&self) -> Option<&LeaseId> {
        self.span.lease()
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.deadline)
    }

    fn is_waiting(&self) -> bool {
        !self.is_absent
    }
}
