//! Where the tickets of claims are: those of clients that wait in queues, and of grants whose receipt is not
//! confirmed. Not on disk; rebuilt while loading.

use std::collections::BTreeMap;

use crate::store::{state::KeyOfDb, waits::Ticket};

/// How many wait at each run of each node.
///
/// Invariant: no count is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct OfNodes(BTreeMap<(u64, u64), usize>);

impl OfNodes {
    pub fn add(&mut self, ticket: Ticket) {
        *self.0.entry((ticket.node, ticket.boot)).or_default() += 1;
    }

    pub fn remove(&mut self, ticket: Ticket) {
        let run = (ticket.node, ticket.boot);
        if let Some(count) = self.0.get_mut(&run) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&run);
            }
        }
    }

    /// The nodes, each with its run.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.keys().copied()
    }
}

/// The index of tickets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tickets {
    /// With the key of their claims: whether somebody waits under it, whose client is there. No node issues a ticket
    /// twice, but nothing relies on it.
    places: BTreeMap<(Ticket, KeyOfDb), bool>,
    waiting: OfNodes,
}

impl Tickets {
    /// Notes how a ticket stands with the claims at a key; None if they do not know it.
    pub fn set(&mut self, ticket: Ticket, place: KeyOfDb, is_waiting: Option<bool>) {
        let before = match is_waiting {
            Some(is_waiting) => self.places.insert((ticket, place), is_waiting),
            None => self.places.remove(&(ticket, place)),
        };
        if before == Some(true) {
            self.waiting.remove(ticket);
        }
        if is_waiting == Some(true) {
            self.waiting.add(ticket);
        }
    }

    /// The keys whose claims know a ticket, in order.
    pub fn places_of(&self, ticket: Ticket) -> impl Iterator<Item = &KeyOfDb> {
        let places = self.places.range((ticket, KeyOfDb::default())..);
        places
            .map(|((of, place), _)| (of, place))
            .take_while(move |(of, _)| **of == ticket)
            .map(|(_, place)| place)
    }

    /// The keys whose claims know tickets of a node, except for those of one run of it; may repeat.
    pub fn places_at(&self, node: u64, but_boot: u64) -> impl Iterator<Item = &KeyOfDb> {
        let first = Ticket { node, boot: 0, number: 0 };
        let places =
            self.places.range((first, KeyOfDb::default())..).map(|((ticket, place), _)| (ticket, place));
        let of_node = places.take_while(move |(ticket, _)| ticket.node == node);
        of_node.filter(move |(ticket, _)| ticket.boot != but_boot).map(|(_, place)| place)
    }

    /// The nodes whose clients wait, each with its run.
    pub fn nodes(&self) -> impl Iterator<Item = (u64, u64)> {
        self.waiting.iter()
    }
}
