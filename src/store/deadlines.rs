//! Which keys die when: an index over all databases, in the order of death. Not on disk; built while loading.

use std::collections::BTreeSet;

/// A key's place in the index.
///
/// Invariant: entries that are equal but for `ordinal` have the ordinals from 0 on: a multiset, because two
/// keys may have the same hash and deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Death {
    /// Milliseconds since the Unix epoch.
    pub deadline: u64,
    /// The database.
    pub db: u32,
    /// The key's slot.
    pub slot: u16,
    ordinal: u16,
    /// The key's hash.
    pub hash: u64,
}

const _: () = assert!(size_of::<Death>() == 24);

impl Death {
    pub fn new(deadline: u64, db: u32, slot: u16, hash: u64) -> Death {
        Death { deadline, db, slot, ordinal: 0, hash }
    }
}

/// All keys with a deadline.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    deaths: BTreeSet<Death>,
}

impl Deadlines {
    pub fn insert(&mut self, mut death: Death) {
        while !self.deaths.insert(death) {
            death.ordinal += 1;
        }
    }

    pub fn remove(&mut self, mut death: Death) {
        while self.deaths.contains(&Death { ordinal: death.ordinal + 1, ..death }) {
            death.ordinal += 1;
        }
        let was_there = self.deaths.remove(&death);
        debug_assert!(was_there, "a key with a deadline stands in the index");
    }

    /// The first that dies.
    pub fn first(&self) -> Option<&Death> {
        self.deaths.first()
    }

    /// Forgets a whole database.
    pub fn clear(&mut self, db: u32) {
        self.deaths.retain(|death| death.db != db);
    }

    /// Takes all of a loaded state's at once, in any order.
    pub fn extend(&mut self, mut deaths: Vec<Death>) {
        deaths.sort_unstable();
        for index in 1..deaths.len() {
            let previous = deaths[index - 1];
            let same = Death { ordinal: previous.ordinal, ..deaths[index] };
            if same == previous {
                deaths[index].ordinal = previous.ordinal + 1;
            }
        }
        self.deaths.extend(deaths);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.deaths.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{Deadlines, Death};

    #[test]
    fn equal_deaths_are_counted() {
        let death = Death::new(5, 0, 1, 2);
        let mut deadlines = Deadlines::default();
        deadlines.extend(vec![death, death]);
        deadlines.insert(death);
        for left in (0..3).rev() {
            deadlines.remove(death);
            assert_eq!(deadlines.len(), left);
        }
    }
}
