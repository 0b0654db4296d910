//! What is known of keys, by database and key: a database is taken out as a whole, at no more cost than one key.

use std::collections::{BTreeMap, HashMap};

/// Values by database and key.
///
/// Invariant: there is no database without keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ByDb<V>(BTreeMap<u32, HashMap<Box<[u8]>, V>>);

impl<V> Default for ByDb<V> {
    fn default() -> ByDb<V> {
        ByDb(BTreeMap::new())
    }
}

impl<V> ByDb<V> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, db: u32, key: &[u8]) -> Option<&V> {
        self.0.get(&db)?.get(key)
    }

    pub fn get_mut(&mut self, db: u32, key: &[u8]) -> Option<&mut V> {
        self.0.get_mut(&db)?.get_mut(key)
    }

    pub fn insert(&mut self, db: u32, key: &[u8], value: V) {
        self.0.entry(db).or_default().insert(key.into(), value);
    }

    pub fn remove(&mut self, db: u32, key: &[u8]) -> Option<V> {
        let of_db = self.0.get_mut(&db)?;
        let value = of_db.remove(key);
        if of_db.is_empty() {
            self.0.remove(&db);
        }
        value
    }

    /// The value of a key, which begins with the default.
    pub fn or_default(&mut self, db: u32, key: &[u8]) -> &mut V
    where
        V: Default,
    {
        self.0.entry(db).or_default().entry(key.into()).or_default()
    }

    /// Takes out a database.
    pub fn take(&mut self, db: u32) -> HashMap<Box<[u8]>, V> {
        self.0.remove(&db).unwrap_or_default()
    }

    /// All, in no order. For tests.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u8], &V)> {
        self.0.iter().flat_map(|(db, of_db)| of_db.iter().map(|(key, value)| (*db, &**key, value)))
    }
}
