//! An index of all keys with deadlines, over all databases, in order of expiry. A database is taken out as a whole.
//! Not on disk; rebuilt while loading.

use std::collections::{BTreeMap, BTreeSet, HashMap};

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

/// The keys of a database with a deadline.
///
/// Invariant: every death is in `deaths` once; if several keys have the same one, `more` has the number of
/// the others.
#[derive(Debug, Default)]
pub(crate) struct OfDb {
    deaths: BTreeSet<Death>,
    /// Empty, unless keys were chosen so that their hashes collide.
    more: HashMap<Death, usize>,
}

impl OfDb {
    fn insert(&mut self, death: Death) {
        if !self.deaths.insert(death) {
            *self.more.entry(death).or_default() += 1;
        }
    }

    fn remove(&mut self, death: Death) {
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

    fn of(mut deaths: Vec<Death>) -> OfDb {
        let mut of_db = OfDb::default();
        deaths.sort_unstable();
        for same in deaths.windows(2).filter(|pair| pair[0] == pair[1]) {
            *of_db.more.entry(same[0]).or_default() += 1;
        }
        of_db.deaths = deaths.into_iter().collect();
        of_db
    }
}

/// All keys with a deadline.
///
/// Invariant: `firsts` has the first of each database, and there is no database without any.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    by_db: BTreeMap<u32, OfDb>,
    firsts: BTreeSet<Death>,
}

impl Deadlines {
    pub fn insert(&mut self, death: Death) {
        let of_db = self.by_db.entry(death.db).or_default();
        let first = of_db.deaths.first().copied();
        of_db.insert(death);
        if first.is_none_or(|first| death < first) {
            first.map(|first| self.firsts.remove(&first));
            self.firsts.insert(death);
        }
    }

    pub fn remove(&mut self, death: Death) {
        let Some(of_db) = self.by_db.get_mut(&death.db) else { return };
        let first = of_db.deaths.first().copied();
        of_db.remove(death);
        let next = of_db.deaths.first().copied();
        if next != first {
            first.map(|first| self.firsts.remove(&first));
            self.firsts.extend(next);
        }
        if next.is_none() {
            self.by_db.remove(&death.db);
        }
    }

    /// The number of keys with a deadline. For tests.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_db.values().map(|of_db| of_db.deaths.len() + of_db.more.values().sum::<usize>()).sum()
    }

    /// The first to expire.
    pub fn first(&self) -> Option<&Death> {
        self.firsts.first()
    }

    /// Takes out a database.
    pub fn take(&mut self, db: u32) -> Option<OfDb> {
        let of_db = self.by_db.remove(&db)?;
        of_db.deaths.first().map(|first| self.firsts.remove(first));
        Some(of_db)
    }

    /// All entries of a loaded state, in any order.
    pub fn of(deaths: Vec<Death>) -> Deadlines {
        let mut by_db: BTreeMap<u32, Vec<Death>> = BTreeMap::new();
        deaths.into_iter().for_each(|death| by_db.entry(death.db).or_default().push(death));
        let by_db: BTreeMap<u32, OfDb> =
            by_db.into_iter().map(|(db, deaths)| (db, OfDb::of(deaths))).collect();
        let firsts = by_db.values().filter_map(|of_db| of_db.deaths.first().copied()).collect();
        Deadlines { by_db, firsts }
    }
}

#[cfg(test)]
mod tests {
    use super::{Deadlines, Death};

    #[test]
    fn equal_deaths_are_counted() {
        let death = Death::new(5, 0, 1, 2);
        let mut deadlines = Deadlines::of(vec![death, death]);
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

    #[test]
    fn the_first_of_all_databases_is_the_first() {
        let (mut chance, mut deadlines) = (fastrand::Rng::with_seed(3), Deadlines::default());
        let mut plain: Vec<Death> = Vec::new();
        for _ in 0..5_000 {
            match chance.u8(..20) {
                0 => {
                    let db = chance.u32(..4);
                    deadlines.take(db);
                    plain.retain(|death| death.db != db);
                }
                1..8 if !plain.is_empty() => deadlines.remove(plain.swap_remove(chance.usize(..plain.len()))),
                _ => {
                    let death = Death::new(chance.u64(..50), chance.u32(..4), 0, chance.u64(..3));
                    deadlines.insert(death);
                    plain.push(death);
                }
            }
            assert_eq!((deadlines.first(), deadlines.len()), (plain.iter().min(), plain.len()));
            if chance.u8(..50) == 0 {
                deadlines = Deadlines::of(plain.clone());
            }
        }
    }
}
