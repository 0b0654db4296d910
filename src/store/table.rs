//! A table of byte strings with pages of its own: what a large hash or set is made of.
//!
//! Items are in the order of their keys' hashes, so iteration, cursors and choices depend on content alone.
//! Growth is the split of one segment, a page of up to 16 KiB, `PageId::Object { object, part: start }`.

use super::{
    codec::{Input, put_bytes},
    dirty::{Dirty, PageId},
    hash::{Chance, hash_of},
    segments::{Item, Segments},
};

/// Choices look for their item in a prefix of hashes that holds about this many.
const BUCKET_ITEMS: usize = 8;
/// The most items in such a prefix that are told apart; more are as good as impossible.
const BUCKET_ITEMS_MAX: usize = 32;
/// Tries to choose before the order decides; each succeeds in one case of four.
const TRIES_MAX: usize = 256;

/// A key and its value in one allocation.
#[derive(Debug)]
struct Pair {
    hash: u64,
    key_len: u32,
    bytes: Box<[u8]>,
}

impl Pair {
    fn new(hash: u64, key: &[u8], value: &[u8]) -> Pair {
        let mut bytes = Vec::with_capacity(key.len() + value.len());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        Pair { hash, key_len: key.len() as u32, bytes: bytes.into_boxed_slice() }
    }

    fn value(&self) -> &[u8] {
        &self.bytes[self.key_len as usize..]
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at(self.key_len as usize)
    }
}

impl Item for Pair {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn key(&self) -> &[u8] {
        &self.bytes[..self.key_len as usize]
    }

    fn bytes(&self) -> usize {
        self.bytes.len() + 4
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.key());
        put_bytes(out, self.value());
    }

    fn decode(input: &mut Input<'_>) -> Result<Pair, String> {
        let key = input.bytes()?;
        Ok(Pair::new(hash_of(key), key, input.bytes()?))
    }
}

/// The table.
///
/// Invariant: `len` is the number of items.
#[derive(Debug)]
pub struct Table {
    object: u64,
    segments: Segments<Pair>,
    len: usize,
}

impl Table {
    /// An empty table whose pages have the id `object`, from [`super::Pages::allocate`].
    pub fn new(object: u64) -> Table {
        Table { object, segments: Segments::default(), len: 0 }
    }

    /// The id of its pages.
    pub fn object(&self) -> u64 {
        self.object
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn page(&self) -> impl Fn(u64) -> PageId + use<> {
        let object = self.object;
        move |part| PageId::Object { object, part }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.segments.get(hash_of(key), key).map(Pair::value)
    }

    /// Whether there is such a key.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.segments.find(hash_of(key), key).is_ok()
    }

    /// Sets the value of a key. True if the key is new.
    pub fn insert(&mut self, key: &[u8], value: &[u8], dirty: &mut Dirty) -> bool {
        let (hash, id) = (hash_of(key), self.page());
        match self.segments.find(hash, key) {
            Ok(at) => {
                self.segments.change(at, id, dirty, |pair, _| *pair = Pair::new(hash, key, value));
                false
            }
            Err(at) => {
                self.segments.insert(at, Pair::new(hash, key, value), id, dirty);
                self.len += 1;
                true
            }
        }
    }

    /// Removes a key. False if there was none.
    pub fn remove(&mut self, key: &[u8], dirty: &mut Dirty) -> bool {
        let Ok(at) = self.segments.find(hash_of(key), key) else { return false };
        self.segments.remove(at, self.page(), dirty);
        self.len -= 1;
        true
    }

    /// All items, in the order of hashes.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.segments.iter().map(Pair::parts)
    }

    /// A step of a scan: shows about `count` items from `cursor` on, 0 at first, and gives the cursor to go on
    /// from, 0 at the end. Items that are there all the time are shown, whatever changes between the steps.
    pub fn scan<'a>(&'a self, cursor: u64, count: usize, mut each: impl FnMut(&'a [u8], &'a [u8])) -> u64 {
        // Two bits are left out so that every client's integers hold a cursor.
        let mut last = None;
        for (seen, pair) in self.segments.iter_from(cursor << 2).enumerate() {
            if seen >= count && last != Some(pair.hash >> 2) {
                return pair.hash >> 2;
            }
            last = Some(pair.hash >> 2);
            let (key, value) = pair.parts();
            each(key, value);
        }
        0
    }

    /// An item by chance, each as likely as another, in constant time. The choice depends on content and
    /// `chance` alone.
    pub fn choose(&self, chance: &mut Chance) -> Option<(&[u8], &[u8])> {
        if self.is_empty() {
            return None;
        }
        // A prefix by chance, and a place in it; if there is no such place, again.
        let bits = (self.len / BUCKET_ITEMS).checked_ilog2().unwrap_or(0);
        for _ in 0..TRIES_MAX {
            let start = chance.next_u64().checked_shr(u64::BITS - bits).unwrap_or(0);
            let rank = chance.below(BUCKET_ITEMS_MAX);
            let first = start.checked_shl(u64::BITS - bits).unwrap_or(0);
            let found = self.segments.iter_from(first).nth(rank);
            if let Some(pair) =
                found.filter(|pair| pair.hash.checked_shr(u64::BITS - bits).unwrap_or(0) == start)
            {
                return Some(pair.parts());
            }
        }
        self.segments.nth(chance.below(self.len)).map(Pair::parts)
    }

    /// For [`super::Kind::has_part`].
    pub fn has_part(&self, part: u64) -> bool {
        self.segments.has(part)
    }

    /// The parts of all pages, in order. For tests.
    #[cfg(test)]
    pub fn parts(&self) -> Vec<u64> {
        self.segments.starts()
    }

    /// For [`super::Kind::encode_part`].
    pub fn encode_part(&self, part: u64) -> Option<Vec<u8>> {
        self.segments.encode(part)
    }

    /// For [`super::Kind::load_part`]. The owner compares `len` with what its head announced.
    pub fn load_part(&mut self, part: u64, content: &[u8]) -> Result<(), String> {
        self.segments.load(part, content)?;
        self.len += self.segments.iter_from(part).count();
        Ok(())
    }

    /// For [`super::Kind::remove_pages`].
    pub fn remove_pages(&self, dirty: &mut Dirty) {
        self.segments.mark_removed(self.page(), dirty);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::{Chance, Dirty, Table};

    fn key_of(number: usize) -> Vec<u8> {
        format!("key:{number}").into_bytes()
    }

    #[test]
    fn it_does_what_a_map_does() {
        let (mut table, mut model, mut dirty) = (Table::new(1), BTreeMap::new(), Dirty::default());
        let mut chance = Chance::new(1);
        for step in 0..60_000 {
            // First it grows, then it shrinks to nothing.
            let key = key_of(chance.below(5_000));
            if chance.below(100) < if step < 30_000 { 70 } else { 10 } {
                let value = vec![b'v'; chance.below(200)];
                let is_new = model.insert(key.clone(), value.clone()).is_none();
                assert_eq!(table.insert(&key, &value, &mut dirty), is_new);
            } else {
                assert_eq!(table.remove(&key, &mut dirty), model.remove(&key).is_some());
            }
            assert_eq!(table.len(), model.len());
        }
        table.segments.invariants();
        assert!(model.iter().all(|(key, value)| table.get(key) == Some(value)));
        let all: BTreeMap<_, _> = table.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        assert_eq!(all, model);
        for key in model.keys() {
            assert!(table.remove(key, &mut dirty));
            table.segments.invariants();
        }
        assert!(table.is_empty() && table.segments.is_empty());
    }

    #[test]
    fn a_scan_shows_what_stays_while_the_table_changes() {
        let (mut table, mut dirty) = (Table::new(1), Dirty::default());
        (0..2_000).for_each(|number| _ = table.insert(&key_of(number), b"", &mut dirty));
        let (mut seen, mut cursor, mut step) = (HashSet::new(), 0, 0);
        loop {
            cursor = table.scan(cursor, 10, |key, _| _ = seen.insert(key.to_vec()));
            if cursor == 0 {
                break;
            }
            step += 1;
            for number in 0..20 {
                table.insert(&key_of(10_000 + step * 20 + number), &[0; 50], &mut dirty);
                table.remove(&key_of(1_000 + (step * 20 + number) % 1_000), &mut dirty);
            }
        }
        assert!((0..1_000).all(|number| seen.contains(&key_of(number))));
    }

    #[test]
    fn choices_are_even() {
        for len in [1, 7, 100, 3_000] {
            let (mut table, mut dirty) = (Table::new(1), Dirty::default());
            (0..len).for_each(|number| _ = table.insert(&key_of(number), b"", &mut dirty));
            let (mut chance, mut counts) = (Chance::new(7), BTreeMap::new());
            for _ in 0..len * 100 {
                let (key, _) = table.choose(&mut chance).unwrap();
                *counts.entry(key.to_vec()).or_insert(0usize) += 1;
            }
            assert_eq!(counts.len(), len);
            assert!(counts.values().all(|count| (50..=160).contains(count)));
        }
    }
}
