//! What depends on claims besides their own key: which leases they are under, and where the tickets of waits and
//! unconfirmed grants are. A change of claims leaves a trail, so that the indexes of the state follow it without
//! a look at claims that it left alone.

use std::collections::{BTreeMap, HashSet};

use super::{Claims, row::Claim};
use crate::store::owner::LeaseId;
use crate::store::waits::Ticket;

/// The first claim under a lease: holders come before the queue.
type First = (bool, u64);

/// What the present change has touched.
#[derive(Clone, Debug, Default)]
pub(super) struct Trail {
    /// Leases, each with the first claim under it before the change.
    leases: BTreeMap<LeaseId, Option<First>>,
    tickets: Vec<Ticket>,
}

/// What the indexes of the state have to follow.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Traces {
    /// The leases under which no claim is any more, in the order of the first that was.
    pub lost: Vec<LeaseId>,
    /// The leases under which no claim was, in the order of the first that is.
    pub gained: Vec<LeaseId>,
    /// Tickets, and whether somebody waits under them, whose client is there; None if they are no longer known here.
    pub tickets: Vec<(Ticket, Option<bool>)>,
}

impl Traces {
    /// For claims that leave their key: `self` is all that depends on them.
    pub fn undone(self) -> Traces {
        let tickets = self.tickets.into_iter().map(|(ticket, _)| (ticket, None));
        Traces { lost: self.gained, gained: self.lost, tickets: tickets.collect() }
    }
}

impl Claims {
    fn first_under(&self, id: &LeaseId) -> Option<First> {
        let held = self.holders.first_under(id).map(|place| (false, place));
        held.or_else(|| self.queue.first_under(id).map(|place| (true, place)))
    }

    /// The tickets of waits and of unconfirmed grants.
    pub(in crate::store) fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.holders.iter().filter_map(Claim::ticket).chain(self.queue.iter().filter_map(Claim::ticket))
    }

    /// Whether somebody waits under a ticket; None if it is not known here.
    fn standing(&self, ticket: Ticket) -> Option<bool> {
        let waiting = self.queue.with_ticket(ticket);
        if waiting.is_empty() && self.holders.with_ticket(ticket).is_empty() {
            return None;
        }
        let is_present = |place: &u64| self.queue.get(*place).is_some_and(Claim::is_waiting);
        Some(waiting.iter().any(is_present))
    }

    /// Call before a claim comes, goes or changes that is under this lease and has this ticket.
    pub(super) fn touch(&mut self, lease: Option<LeaseId>, ticket: Option<Ticket>) {
        if let Some(id) = lease
            && !self.trail.leases.contains_key(&id)
        {
            let first = self.first_under(&id);
            self.trail.leases.insert(id, first);
        }
        self.trail.tickets.extend(ticket);
    }

    /// A change begins.
    pub(in crate::store) fn begin(&mut self) {
        self.trail = Trail::default();
    }

    /// What the indexes have to follow of the change since `begin`.
    pub(in crate::store) fn take_traces(&mut self) -> Traces {
        let Trail { leases, tickets } = std::mem::take(&mut self.trail);
        let (mut lost, mut gained) = (Vec::new(), Vec::new());
        for (id, before) in leases {
            match (before, self.first_under(&id)) {
                (Some(first), None) => lost.push((first, id)),
                (None, Some(first)) => gained.push((first, id)),
                _ => {}
            }
        }
        let in_order = |mut firsts: Vec<(First, LeaseId)>| {
            firsts.sort_unstable();
            firsts.into_iter().map(|(_, id)| id).collect()
        };
        let tickets = tickets.into_iter().map(|ticket| (ticket, self.standing(ticket))).collect();
        Traces { lost: in_order(lost), gained: in_order(gained), tickets }
    }

    /// Everything that depends on them, as if they had just come.
    pub(in crate::store) fn all_traces(&self) -> Traces {
        let leases =
            self.holders.iter().filter_map(Claim::lease).chain(self.queue.iter().filter_map(Claim::lease));
        let mut seen = HashSet::new();
        let gained = leases.filter(|id| seen.insert(*id)).cloned().collect();
        let tickets = self.tickets().map(|ticket| (ticket, self.standing(ticket))).collect();
        Traces { lost: Vec::new(), gained, tickets }
    }
}
