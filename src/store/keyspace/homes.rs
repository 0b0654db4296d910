//! Where the values are that have pages of their own. Not on disk; rebuilt while loading.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::store::state::KeyOfDb;

/// The keys of values with their own pages, by object id.
///
/// Invariant: `of_dbs` has exactly the ids of `keys`, by database; there is no database without ids.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    keys: HashMap<u64, KeyOfDb>,
    of_dbs: BTreeMap<u32, HashSet<u64>>,
}

impl Homes {
    /// How many there are. For tests.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn get(&self, object: u64) -> Option<&KeyOfDb> {
        self.keys.get(&object)
    }

    /// False if the id has a key already.
    pub fn insert(&mut self, object: u64, db: u32, key: &[u8]) -> bool {
        let is_new = self.keys.insert(object, (db, key.into())).is_none();
        is_new && self.of_dbs.entry(db).or_default().insert(object)
    }

    pub fn remove(&mut self, object: u64) -> Option<KeyOfDb> {
        let (db, key) = self.keys.remove(&object)?;
        if let Some(ids) = self.of_dbs.get_mut(&db) {
            ids.remove(&object);
            if ids.is_empty() {
                self.of_dbs.remove(&db);
            }
        }
        Some((db, key))
    }

    /// Takes out the keys of a database.
    pub fn take(&mut self, db: u32) -> Vec<KeyOfDb> {
        let ids = self.of_dbs.remove(&db).unwrap_or_default();
        ids.iter().filter_map(|object| self.keys.remove(object)).collect()
    }

    /// All ids, in no order.
    pub fn objects(&self) -> impl Iterator<Item = u64> {
        self.keys.keys().copied()
    }

    /// All keys, in no order.
    pub fn places(&self) -> impl Iterator<Item = &KeyOfDb> {
        self.keys.values()
    }
}
