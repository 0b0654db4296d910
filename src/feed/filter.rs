//! Which keys a reader is interested in, and which readers are interested in a key: found by key rather than
//! by asking every reader, because there may be ten thousand of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::effects::Event;

/// The keys that a reader is interested in: named keys and keys with given prefixes; all keys if neither is
/// given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    db: u32,
    /// Sorted.
    keys: Vec<Box<[u8]>>,
    /// Sorted, and none begins with another.
    prefixes: Vec<Box<[u8]>>,
}

impl Filter {
    /// The database.
    pub fn db(&self) -> u32 {
        self.db
    }

    /// A filter on one database.
    pub fn new(db: u32, mut keys: Vec<Box<[u8]>>, mut prefixes: Vec<Box<[u8]>>) -> Filter {
        keys.sort_unstable();
        keys.dedup();
        prefixes.sort_unstable();
        // What begins with a prefix comes right behind it.
        prefixes.dedup_by(|next, kept| next.starts_with(kept));
        Filter { db, keys, prefixes }
    }

    fn takes_all(&self) -> bool {
        self.keys.is_empty() && self.prefixes.is_empty()
    }

    /// Whether an event is to be shown. An event about all keys always is.
    pub fn matches(&self, event: &Event<'_>) -> bool {
        event.db == self.db
            && event.key.is_none_or(|key| {
                self.takes_all()
                    || self.keys.binary_search_by(|wanted| (**wanted).cmp(key)).is_ok()
                    || self.has_prefix_of(key)
            })
    }

    /// Only the last prefix that is not behind the key can be one of it: between a prefix and what begins with it
    /// there is only what begins with it, too.
    fn has_prefix_of(&self, key: &[u8]) -> bool {
        let behind = self.prefixes.partition_point(|prefix| **prefix <= *key);
        self.prefixes[..behind].last().is_some_and(|prefix| key.starts_with(prefix))
    }
}

/// Readers with the same interest.
#[derive(Debug, Default)]
struct Group {
    ids: BTreeSet<u64>,
    /// The last entry that they were notified of: once is enough.
    told: u64,
}

impl Group {
    fn tell(&mut self, index: u64, each: impl FnMut(u64)) {
        if std::mem::replace(&mut self.told, index) != index {
            self.ids.iter().copied().for_each(each);
        }
    }
}

/// Readers by key or prefix.
type Readers = HashMap<Box<[u8]>, Group>;

/// The interests of all readers.
#[derive(Debug, Default)]
pub(super) struct Interests {
    by_db: HashMap<u32, OfDatabase>,
}

#[derive(Debug, Default)]
struct OfDatabase {
    /// All readers of the database, with their filters.
    readers: BTreeMap<u64, Arc<Filter>>,
    /// Those interested in all keys.
    of_all: Group,
    by_key: Readers,
    /// By length of the prefix: there are few lengths.
    by_prefix: BTreeMap<usize, Readers>,
}

fn add(readers: &mut Readers, key: &[u8], id: u64) {
    readers.entry(key.into()).or_default().ids.insert(id);
}

fn remove(readers: &mut Readers, key: &[u8], id: u64) {
    if let Some(group) = readers.get_mut(key) {
        group.ids.remove(&id);
        if group.ids.is_empty() {
            readers.remove(key);
        }
    }
}

impl Interests {
    pub fn add(&mut self, id: u64, filter: Arc<Filter>) {
        let of_db = self.by_db.entry(filter.db).or_default();
        if filter.takes_all() {
            of_db.of_all.ids.insert(id);
        }
        filter.keys.iter().for_each(|key| add(&mut of_db.by_key, key, id));
        for prefix in &filter.prefixes {
            add(of_db.by_prefix.entry(prefix.len()).or_default(), prefix, id);
        }
        of_db.readers.insert(id, filter);
    }

    pub fn remove(&mut self, id: u64, filter: &Filter) {
        let Some(of_db) = self.by_db.get_mut(&filter.db) else { return };
        of_db.of_all.ids.remove(&id);
        filter.keys.iter().for_each(|key| remove(&mut of_db.by_key, key, id));
        for prefix in &filter.prefixes {
            if let Some(readers) = of_db.by_prefix.get_mut(&prefix.len()) {
                remove(readers, prefix, id);
                if readers.is_empty() {
                    of_db.by_prefix.remove(&prefix.len());
                }
            }
        }
        of_db.readers.remove(&id);
        if of_db.readers.is_empty() {
            self.by_db.remove(&filter.db);
        }
    }

    /// Calls `each` for every reader interested in an event of the entry at `index`; for some perhaps twice.
    /// Events of one entry must be passed consecutively.
    pub fn tell(&mut self, index: u64, event: &Event<'_>, mut each: impl FnMut(u64)) {
        let Some(of_db) = self.by_db.get_mut(&event.db) else { return };
        let Some(key) = event.key else { return of_db.readers.keys().copied().for_each(each) };
        of_db.of_all.tell(index, &mut each);
        if let Some(group) = of_db.by_key.get_mut(key) {
            group.tell(index, &mut each);
        }
        for (&len, readers) in of_db.by_prefix.range_mut(..=key.len()) {
            if let Some(group) = readers.get_mut(&key[..len]) {
                group.tell(index, &mut each);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Filter;

    #[test]
    fn prefixes_are_found_whichever_there_are() {
        let mut chance = fastrand::Rng::with_seed(7);
        let mut word =
            |len_max| (0..chance.usize(1..len_max)).map(|_| chance.u8(b'a'..b'd')).collect::<Box<[u8]>>();
        for count in 0..60 {
            let prefixes: Vec<Box<[u8]>> = (0..count).map(|_| word(5)).collect();
            let filter = Filter::new(0, Vec::new(), prefixes.clone());
            for _ in 0..200 {
                let key = word(7);
                let expected = prefixes.iter().any(|prefix| key.starts_with(prefix));
                assert_eq!(filter.has_prefix_of(&key), expected, "{key:?} {prefixes:?}");
            }
        }
    }
}
