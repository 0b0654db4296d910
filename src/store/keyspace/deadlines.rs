//! An index of all keys with deadlines, over all databases, in order of expiry. Not on disk; rebuilt while
//! loading.

use std::collections::{BTreeSet, HashMap};

/// A key's entry in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Death {
    /// Milliseconds since the Unix epoch.
    pub deadline: u64,
    /// The database.
    pub db: u32,
    /// The key's slot.
    pub slot: u16,
    /// The key's hash.
    pub hash: u64,
}

const _: () = assert!(size_of::<Death>() == 24);

impl Death {
    pub fn new(deadline: u64, db: u32, slot: u16, hash: u64) -> Death {
        Death { deadline, db, slot, hash }
    }
}

/// All keys with a deadline.
///
/// Invariant: every death is in `deaths` once; if several keys have the same one, `more` has the number of
/// the others.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    deaths: BTreeSet<Death>,
    /// Empty, unless keys were chosen so that their hashes collide.
    more: HashMap<Death, usize>,
}

impl Deadlines {
    pub fn insert(&mut self, death: Death) {
        if !self.deaths.insert(death) {
            *self.more.entry(death).or_default() += 1;
        }
    }

    pub fn remove(&mut self, death: Death) {
        if let Some(others) = self.more.get_mut(&death) {
            *others -= 1;
            if *others == 0 {
                self.more.remove(&death);
            }
            return;
        }
        let was_there = self.deaths.remove(&death);
        debug_assert!(was_there, "a key with a deadline stands in the index");
    }

    /// The number of keys with a deadline.
    pub fn len(&self) -> usize {
        self.deaths.len() + self.more.values().sum::<usize>()
    }

    /// The first to expire.
    pub fn first(&self) -> Option<&Death> {
        self.deaths.first()
    }

    /// Removes a whole database. Scans all entries.
    pub fn clear(&mut self, db: u32) {
        self.deaths.retain(|death| death.db != db);
        self.more.retain(|death, _| death.db != db);
    }

    /// Adds all entries of a loaded state at once, in any order.
    pub fn extend(&mut self, mut deaths: Vec<Death>) {
        deaths.sort_unstable();
        for same in deaths.windows(2).filter(|pair| pair[0] == pair[1]) {
            *self.more.entry(same[0]).or_default() += 1;
        }
        self.deaths.extend(deaths);
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
        assert_eq!(deadlines.first(), None);
    }

    /// More than a small counter holds, in less than quadratic time.
    #[test]
    fn any_number_of_equal_deaths_is_counted() {
        let (death, count) = (Death::new(5, 0, 1, 2), 200_000);
        let mut deadlines = Deadlines::default();
        (0..count).for_each(|_| deadlines.insert(death));
        assert_eq!(deadlines.len(), count);
        (0..count - 1).for_each(|_| deadlines.remove(death));
        assert_eq!(deadlines.first(), Some(&death));
        deadlines.remove(death);
        assert_eq!(deadlines.first(), None);
    }
}
