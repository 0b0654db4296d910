//! What a reader wants to see, and who wants to see a key: found by the key, not by asking every reader, because
//! there may be ten thousand of them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::event::Event;

/// The keys that a reader wants to see: those that are named, those that begin with a prefix; all when neither is
/// given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    db: u32,
    /// In order.
    keys: Vec<Box<[u8]>>,
    prefixes: Vec<Box<[u8]>>,
}

impl Filter {
    /// A filter on one database.
    pub fn new(db: u32, mut keys: Vec<Box<[u8]>>, mut prefixes: Vec<Box<[u8]>>) -> Filter {
        keys.sort_unstable();
        keys.dedup();
        prefixes.sort_unstable();
        prefixes.dedup();
        Filter { db, keys, prefixes }
    }

    fn takes_all(&self) -> bool {
        self.keys.is_empty() && self.prefixes.is_empty()
    }

    /// Whether an event is to be shown. One about all keys always is.
    pub fn matches(&self, event: &Event<'_>) -> bool {
        event.db == self.db
            && event.key.is_none_or(|key| {
                self.takes_all()
                    || self.keys.binary_search_by(|wanted| (**wanted).cmp(key)).is_ok()
                    || self.prefixes.iter().any(|prefix| key.starts_with(prefix))
            })
    }
}

/// Readers by key.
type Readers = HashMap<Box<[u8]>, Vec<u64>>;

/// Who wants to see what.
#[derive(Debug, Default)]
pub(super) struct Interests {
    by_db: HashMap<u32, OfDatabase>,
}

#[derive(Debug, Default)]
struct OfDatabase {
    /// All readers of the database, with their filters.
    readers: BTreeMap<u64, Arc<Filter>>,
    /// Those that take all keys.
    of_all: Vec<u64>,
    by_key: Readers,
    /// By the length of the prefix: there are few lengths.
    by_prefix: BTreeMap<usize, Readers>,
}

fn add(readers: &mut Readers, key: &[u8], id: u64) {
    readers.entry(key.into()).or_default().push(id);
}

fn remove(readers: &mut Readers, key: &[u8], id: u64) {
    if let Some(ids) = readers.get_mut(key) {
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            readers.remove(key);
        }
    }
}

impl Interests {
    pub fn add(&mut self, id: u64, filter: Arc<Filter>) {
        let of_db = self.by_db.entry(filter.db).or_default();
        if filter.takes_all() {
            of_db.of_all.push(id);
        }
        filter.keys.iter().for_each(|key| add(&mut of_db.by_key, key, id));
        for prefix in &filter.prefixes {
            add(of_db.by_prefix.entry(prefix.len()).or_default(), prefix, id);
        }
        of_db.readers.insert(id, filter);
    }

    pub fn remove(&mut self, id: u64, filter: &Filter) {
        let Some(of_db) = self.by_db.get_mut(&filter.db) else { return };
        of_db.of_all.retain(|other| *other != id);
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

    /// Calls `each` with everybody who wants to see the event; with some perhaps twice.
    pub fn each(&self, event: &Event<'_>, mut each: impl FnMut(u64)) {
        let Some(of_db) = self.by_db.get(&event.db) else { return };
        let Some(key) = event.key else { return of_db.readers.keys().copied().for_each(each) };
        of_db.of_all.iter().copied().for_each(&mut each);
        of_db.by_key.get(key).into_iter().flatten().copied().for_each(&mut each);
        for (&len, readers) in of_db.by_prefix.range(..=key.len()) {
            readers.get(&key[..len]).into_iter().flatten().copied().for_each(&mut each);
        }
    }
}
