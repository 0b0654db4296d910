//! The order of a large sorted set: a set of (score, member) with rank in O(log n), by `indexset`. In memory
//! only. No other file uses the library.

use std::{borrow::Borrow, cmp::Ordering, ops::Range};

use indexset::BTreeSet;

/// The most members in a node: small enough that a set just above the packed form wastes little.
const NODE_MEMBERS_MAX: usize = 256;

/// A place in the order: at a member, just after one, or before or after all members with a score.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    score: f64,
    /// After every member with this score.
    is_last: bool,
    member: &'a [u8],
    /// Just after this member.
    is_after: bool,
}

impl<'a> Place<'a> {
    /// The place of a member with this score, present or not.
    pub fn of(score: f64, member: &'a [u8]) -> Place<'a> {
        Place { score, is_last: false, member, is_after: false }
    }

    /// Just after a member with this score.
    pub fn after_member(score: f64, member: &'a [u8]) -> Place<'a> {
        Place { is_after: true, ..Place::of(score, member) }
    }

    /// Before all members with this score.
    pub fn before(score: f64) -> Place<'a> {
        Place::of(score, b"")
    }

    /// After all members with this score.
    pub fn after(score: f64) -> Place<'a> {
        Place { is_last: true, ..Place::of(score, b"") }
    }

    /// The comparison key among equal scores.
    fn tie(&self) -> (bool, &'a [u8], bool) {
        (self.is_last, self.member, self.is_after)
    }
}

impl Ord for Place<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Scores are never NaN; -0 equals 0.
        let scores = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        scores.then_with(|| self.tie().cmp(&other.tie()))
    }
}

impl PartialOrd for Place<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Place<'_> {}

/// Anything with a place: entries, and places themselves. The library compares a lookup with a borrowed form
/// of its entries, which is this trait.
trait Placed {
    fn place(&self) -> Place<'_>;
}

impl Placed for Place<'_> {
    fn place(&self) -> Place<'_> {
        *self
    }
}

impl Ord for dyn Placed + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for dyn Placed + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Placed + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for dyn Placed + '_ {}

#[derive(Clone, Debug)]
struct Entry {
    score: f64,
    member: Box<[u8]>,
}

impl Placed for Entry {
    fn place(&self) -> Place<'_> {
        Place::of(self.score, &self.member)
    }
}

impl<'a> Borrow<dyn Placed + 'a> for Entry {
    fn borrow(&self) -> &(dyn Placed + 'a) {
        self
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

/// Members in the order of (score, member).
#[derive(Debug)]
pub(crate) struct ScoreOrder(BTreeSet<Entry>);

impl Default for ScoreOrder {
    fn default() -> Self {
        ScoreOrder(BTreeSet::with_maximum_node_size(NODE_MEMBERS_MAX))
    }
}

impl ScoreOrder {
    /// Inserts a member that is not there.
    pub fn insert(&mut self, score: f64, member: &[u8]) {
        self.0.insert(Entry { score, member: member.into() });
    }

    /// Removes a member, which has this score.
    pub fn remove(&mut self, score: f64, member: &[u8]) {
        let place = Place::of(score, member);
        let removed = self.0.remove(&place as &(dyn Placed + '_));
        debug_assert!(removed, "the member is there with this score");
    }

    /// How many members come before a place.
    pub fn rank(&self, place: &Place<'_>) -> usize {
        self.0.rank(place as &(dyn Placed + '_))
    }

    /// The members with these ranks, which must exist, in order.
    pub fn range(&self, ranks: Range<usize>) -> impl DoubleEndedIterator<Item = (&[u8], f64)> {
        self.0.range_idx(ranks).map(|entry| (&*entry.member, entry.score))
    }
}
