//! A table of byte strings with its own pages: large hashes and sets consist of it.
//!
//! Items are in the order of their keys' hashes, so iteration, cursors and random choices depend on content
//! alone. To grow, one segment is split; a segment is a page of up to 16 KiB,
//! `PageId::Object { object, part: start }`, or `PageId::Catalog` for the tables of the catalog.

use crate::store::{
    codec::{Input, put_bytes},
    dirty::{Dirty, PageId},
    hashing::{Chance, Hashing},
    segments::{Item, Segments},
};

/// Choices at the first level look for an item in a prefix of hashes that has about this many items.
const BUCKET_ITEMS: usize = 8;
/// The maximum number of items in such a prefix that can be chosen.
const BUCKET_ITEMS_MAX: usize = 32;
/// Random tries before the order decides; each succeeds with probability 1/4.
const TRIES_MAX: usize = 256;
/// What an item costs in memory besides its content: its place in a segment, and its allocation.
const ITEM_BYTES: usize = 40;
/// A table of this size counts its items by the first byte of their hashes, until few of them are left.
const CENSUS_LEN_MIN: usize = 4_096;
const CENSUS_LEN_KEPT: usize = 1_024;

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

    fn cost(&self) -> usize {
        self.bytes.len() + ITEM_BYTES
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

    fn decode(input: &mut Input<'_>, hashing: Hashing) -> Result<Pair, String> {
        let key = input.bytes()?;
        Ok(Pair::new(hashing.of(key), key, input.bytes()?))
    }
}

/// Where a table's pages belong.
#[derive(Clone, Copy, Debug)]
enum Home {
    /// To a large object.
    Object(u64),
    /// To a section of the catalog.
    Catalog(u8),
}

/// The table.
///
/// Invariants:
/// - `len` is the number of items, and `bytes` what they cost in memory.
/// - `census`, if present, has the number of items by the first byte of their hashes.
#[derive(Debug)]
pub struct Table {
    home: Home,
    hashing: Hashing,
    segments: Segments<Pair>,
    len: usize,
    bytes: usize,
    /// It only speeds up finding an item by its rank.
    census: Option<Box<[u32; 256]>>,
}

impl Table {
    /// An empty table whose pages have the id `object`, from [`crate::store::Pages::allocate`], in the order of the
    /// state's hashes.
    pub fn new(object: u64, hashing: Hashing) -> Table {
        Table::at(Home::Object(object), hashing)
    }

    /// An empty table of the catalog.
    pub fn of_catalog(section: u8, hashing: Hashing) -> Table {
        Table::at(Home::Catalog(section), hashing)
    }

    fn at(home: Home, hashing: Hashing) -> Table {
        Table { home, hashing, segments: Segments::default(), len: 0, bytes: 0, census: None }
    }

    /// The id of its pages, if it belongs to an object.
    pub fn object(&self) -> u64 {
        match self.home {
            Home::Object(object) => object,
            Home::Catalog(_) => unreachable!("a table of the catalog is not asked for its object"),
        }
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// What the items cost in memory, counted by their content.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn page(&self) -> impl Fn(u64) -> PageId + use<> {
        let home = self.home;
        move |part| match home {
            Home::Object(object) => PageId::Object { object, part },
            Home::Catalog(section) => PageId::Catalog { section, part },
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.segments.get(self.hashing.of(key), key).map(Pair::value)
    }

    /// Whether there is such a key.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.contains_hashed(self.hashing.of(key), key)
    }

    /// The same for a key with its hash.
    pub fn contains_hashed(&self, hash: u64, key: &[u8]) -> bool {
        self.segments.find(hash, key).is_ok()
    }

    /// Sets the value of a key. True if the key is new.
    pub fn insert(&mut self, key: &[u8], value: &[u8], dirty: &mut Dirty) -> bool {
        self.insert_hashed(self.hashing.of(key), key, value, dirty)
    }

    /// The same for a key with its hash.
    pub fn insert_hashed(&mut self, hash: u64, key: &[u8], value: &[u8], dirty: &mut Dirty) -> bool {
        let id = self.page();
        match self.segments.find(hash, key) {
            Ok(at) => {
                self.bytes -= self.segments.at(at).cost();
                let pair = Pair::new(hash, key, value);
                self.bytes += pair.cost();
                self.segments.change(at, id, dirty, |present, _| *present = pair);
                false
            }
            Err(at) => {
                let pair = Pair::new(hash, key, value);
                self.bytes += pair.cost();
                self.segments.insert(at, pair, id, dirty);
                self.came(&[hash]);
                true
            }
        }
    }

    /// Removes a key. False if there was none.
    pub fn remove(&mut self, key: &[u8], dirty: &mut Dirty) -> bool {
        let hash = self.hashing.of(key);
        let Ok(at) = self.segments.find(hash, key) else { return false };
        self.bytes -= self.segments.remove(at, self.page(), dirty).cost();
        self.len -= 1;
        if self.len < CENSUS_LEN_KEPT {
            self.census = None;
        }
        if let Some(census) = &mut self.census {
            census[first_byte(hash)] -= 1;
        }
        true
    }

    /// Accounts for items with these hashes that were inserted into the segments.
    fn came(&mut self, hashes: &[u64]) {
        self.len += hashes.len();
        match &mut self.census {
            Some(census) => hashes.iter().for_each(|&hash| census[first_byte(hash)] += 1),
            None if self.len >= CENSUS_LEN_MIN => {
                let mut census = Box::new([0; 256]);
                self.segments.iter().for_each(|pair| census[first_byte(pair.hash)] += 1);
                self.census = Some(census);
            }
            None => {}
        }
    }

    /// All items, in the order of hashes.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.segments.iter().map(Pair::parts)
    }

    /// All keys with their hashes, in the order of hashes.
    pub fn iter_hashed(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.segments.iter().map(|pair| (pair.hash, pair.key()))
    }

    /// A step of a scan: passes about `count` items from `cursor` on, initially 0, to `each`, and returns the
    /// next cursor, 0 at the end. Items present throughout the scan are returned, whatever changes between
    /// the steps.
    pub fn scan<'a>(&'a self, cursor: u64, count: usize, mut each: impl FnMut(&'a [u8], &'a [u8])) -> u64 {
        // Two bits are omitted so that every client's integer type can hold a cursor.
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

    /// The item at a rank in the order; the rank is below `len`. With many items whose hashes are uniform, it
    /// reads some hundred counts.
    fn nth(&self, mut rank: usize) -> Option<(&[u8], &[u8])> {
        let Some(census) = &self.census else { return self.segments.nth_from(0, rank).map(Pair::parts) };
        for (byte, &count) in (0u64..).zip(census.iter()) {
            match rank.checked_sub(count as usize) {
                Some(rest) => rank = rest,
                None => return self.segments.nth_from(byte << 56, rank).map(Pair::parts),
            }
        }
        None
    }

    /// A random item, uniformly chosen. The choice depends on content and `chance` alone.
    pub fn choose(&self, chance: &mut Chance) -> Option<(&[u8], &[u8])> {
        if self.is_empty() {
            return None;
        }
        if chance.is_even() {
            return self.nth(chance.below(self.len));
        }
        self.choose_by_prefix(chance)
    }

    /// Choices at the first level: as uniform as the hashes. Of many items with one prefix, those after the
    /// first `BUCKET_ITEMS_MAX` are hardly ever chosen.
    fn choose_by_prefix(&self, chance: &mut Chance) -> Option<(&[u8], &[u8])> {
        // A random prefix, and a rank in it; retry if there is no item at that rank.
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
        self.nth(chance.below(self.len))
    }

    /// For [`crate::store::Kind::has_part`].
    pub fn has_part(&self, part: u64) -> bool {
        self.segments.has(part)
    }

    /// Panics if an invariant does not hold. For tests.
    #[cfg(test)]
    pub fn invariants(&self) {
        self.segments.invariants();
        assert_eq!(self.len, self.segments.count());
        assert_eq!(self.bytes, self.segments.iter().map(Pair::cost).sum::<usize>());
    }

    /// The parts of all pages, in order. For tests.
    #[cfg(test)]
    pub fn parts(&self) -> Vec<u64> {
        self.segments.starts()
    }

    /// For [`crate::store::Kind::encode_part`].
    pub fn encode_part(&self, part: u64) -> Option<Vec<u8>> {
        self.segments.encode(part)
    }

    /// For [`crate::store::Kind::load_part`]. The owner checks `len` against its head.
    pub fn load_part(&mut self, part: u64, content: &[u8]) -> Result<(), String> {
        self.segments.load(part, content, self.hashing)?;
        let hashes: Vec<u64> = self.segments.iter_from(part).map(|pair| pair.hash).collect();
        self.bytes += self.segments.iter_from(part).map(Pair::cost).sum::<usize>();
        self.came(&hashes);
        Ok(())
    }

    /// For [`crate::store::Kind::remove_pages`].
    pub fn remove_pages(&self, dirty: &mut Dirty) {
        self.segments.mark_removed(self.page(), dirty);
    }
}

fn first_byte(hash: u64) -> usize {
    (hash >> 56) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::{Chance, Dirty, Hashing, Table};
    use crate::store::{hash_of, level};

    fn key_of(number: usize) -> Vec<u8> {
        format!("key:{number}").into_bytes()
    }

    #[test]
    fn it_does_what_a_map_does() {
        let (mut table, mut model, mut dirty) =
            (Table::new(1, Hashing::keyed([1; 16])), BTreeMap::new(), Dirty::default());
        let mut chance = Chance::new(1);
        for step in 0..60_000 {
            // The table first grows, then shrinks to nothing.
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
        let (mut table, mut dirty) = (Table::new(1, Hashing::keyed([1; 16])), Dirty::default());
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

    /// A table of members whose unkeyed hashes begin with three zero bits.
    fn lopsided(len: usize) -> Table {
        let (mut table, mut dirty) = (Table::new(1, Hashing::PLAIN), Dirty::default());
        let names = (0..).map(key_of).filter(|name| hash_of(name) >> 61 == 0);
        names.take(len).for_each(|name| _ = table.insert(&name, b"", &mut dirty));
        table
    }

    #[test]
    fn choices_do_not_depend_on_hashes() {
        for len in [120, 6_000] {
            let table = lopsided(len);
            let (mut chance, mut counts) = (Chance::new(7), BTreeMap::new());
            for _ in 0..len * 100 {
                *counts.entry(table.choose(&mut chance).unwrap().0).or_insert(0usize) += 1;
            }
            assert_eq!(counts.len(), len);
            assert!(counts.values().all(|count| (40..=170).contains(count)));
        }
        let (table, mut chance) = (lopsided(120), Chance::at_level(7, level::FIRST));
        let chosen: HashSet<_> = (0..20_000).map(|_| table.choose(&mut chance).unwrap().0).collect();
        assert_eq!(chosen.len(), 32, "the first rule never reaches the others");
    }

    #[test]
    fn the_census_counts() {
        let (mut table, mut dirty) = (Table::new(1, Hashing::keyed([1; 16])), Dirty::default());
        let mut chance = Chance::new(1);
        for step in 0..60_000 {
            let key = key_of(chance.below(9_000));
            if chance.below(100) < if step < 30_000 { 80 } else { 5 } {
                table.insert(&key, b"", &mut dirty);
            } else {
                table.remove(&key, &mut dirty);
            }
            if step % 5_000 == 0 {
                assert!(table.census.is_some() || table.len() < super::CENSUS_LEN_MIN);
                let ranked: Vec<_> = (0..table.len()).map(|rank| table.nth(rank).unwrap()).collect();
                assert!(ranked.into_iter().eq(table.iter()));
                assert_eq!(table.nth(table.len()), None);
            }
        }
    }

    #[test]
    fn choices_are_even() {
        for len in [1, 7, 100, 5_000] {
            let (mut table, mut dirty) = (Table::new(1, Hashing::keyed([1; 16])), Dirty::default());
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
