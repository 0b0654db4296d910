//! Items in the order of their hashes, divided into segments that are pages: an extendible hash table by
//! prefix. Each hash slot of the keyspace is one, and so is the table of a large object.
//!
//! To grow, one segment is split; to shrink, two neighbours are merged; nothing else moves. Their pages are
//! marked here and nowhere else.

use smallvec::SmallVec;

use crate::store::{
    codec::{self, Input},
    dirty::{Dirty, Mark, PageId},
    hashing::Hashing,
    knobs::page_items_max,
};

/// A segment is split when its content is larger than this.
pub const SEGMENT_BYTES_MAX: usize = 16 << 10;
/// A segment is split when it has more items than this.
pub const SEGMENT_ITEMS_MAX: usize = 256;
/// Two neighbours are merged when their content together is no larger than this.
const MERGED_BYTES_MAX: usize = SEGMENT_BYTES_MAX / 4;

/// An item of segments.
pub(crate) trait Item: Sized {
    /// The [`Hashing`] of the key.
    fn hash(&self) -> u64;
    /// The key.
    fn key(&self) -> &[u8];
    /// The approximate size of the serialized form; depends on content alone.
    fn bytes(&self) -> usize;
    /// Appends the serialized form.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads what `encode` wrote; `hashing` is that of the state.
    fn decode(input: &mut Input<'_>, hashing: Hashing) -> Result<Self, String>;
}

/// Where an item is, or where it would be inserted. Valid until the next change of the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    segment: usize,
    item: usize,
}

/// Items in order.
///
/// Invariants:
/// - Segments are in the order of `start`; the first one's is 0. None is empty, except possibly the first of
///   several.
/// - A segment's items have hashes from its `start` up to, but excluding, the next one's.
/// - Items are in the order of (hash, key), without duplicates.
#[derive(Debug)]
pub(crate) struct Segments<T> {
    /// Most have one segment, which is stored inline: one memory access less on the way to a key.
    list: SmallVec<[Segment<T>; 1]>,
}

#[derive(Debug)]
struct Segment<T> {
    /// The lowest hash of the segment.
    start: u64,
    /// The mark of its page.
    mark: Mark,
    /// The sum of its items' sizes.
    bytes: u64,
    items: Vec<T>,
}

impl<T> Default for Segments<T> {
    fn default() -> Self {
        Segments { list: SmallVec::new() }
    }
}

impl<T: Item> Segments<T> {
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The number of items, summed over the segments.
    pub fn count(&self) -> usize {
        self.list.iter().map(|segment| segment.items.len()).sum()
    }

    /// The position of the item with this key (Ok) or where it would be inserted (Err).
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Result<Position, Position> {
        let segment = self.covering(hash);
        let Some(found) = self.list.get(segment) else { return Err(Position { segment: 0, item: 0 }) };
        let items = &found.items;
        let mut item = self.lower_bound(segment, hash);
        if let Some(present) = items.get(item)
            && present.hash() == hash
            && present.key() != key
        {
            // Somebody has chosen names with colliding hashes: there may be any number of them.
            item += items[item..].partition_point(|item| item.hash() == hash && item.key() < key);
        }
        let position = Position { segment, item };
        match items.get(item) {
            Some(present) if present.hash() == hash && present.key() == key => Ok(position),
            _ => Err(position),
        }
    }

    /// The index of the segment that covers a hash; 0 if there are no segments.
    #[inline]
    fn covering(&self, hash: u64) -> usize {
        if self.list.len() <= 1 {
            return 0;
        }
        self.list.partition_point(|segment| segment.start <= hash) - 1
    }

    /// The index in a segment of the first item whose hash is not below `hash`.
    ///
    /// Hashes are uniform, so the position is guessed and then searched from there in growing steps: two or
    /// three cache lines where a binary search of the segment reads six. Hashes that are not uniform only
    /// cost more steps, never more than twice those of a binary search.
    #[inline]
    fn lower_bound(&self, segment: usize, hash: u64) -> usize {
        let Segment { start, items, .. } = &self.list[segment];
        let end = self.list.get(segment + 1).map_or(0, |next| next.start);
        // As an end, 0 means 2^64, and so does a width of 0.
        let width = u128::from(end.wrapping_sub(*start).wrapping_sub(1)) + 1;
        let offset = u128::from(hash.wrapping_sub(*start));
        let guess = if width > u128::from(u64::MAX) {
            ((offset * items.len() as u128) >> 64) as usize
        } else {
            // One of several segments: its width is below 2^64.
            ((offset as u64 >> 8) / ((width as u64 >> 8) / items.len().max(1) as u64).max(1)) as usize
        };
        search_from(items, guess.min(items.len()), hash)
    }

    /// The item of this key.
    #[inline]
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<&T> {
        self.find(hash, key).ok().map(|position| self.at(position))
    }

    /// The item at a position that `find` gave.
    #[inline]
    pub fn at(&self, position: Position) -> &T {
        &self.list[position.segment].items[position.item]
    }

    /// The first item with this hash for which `is_it` holds, and how many items were examined.
    pub fn find_by(&self, hash: u64, is_it: impl Fn(&T) -> bool) -> Option<(Position, usize)> {
        let segment = self.covering(hash);
        let items = &self.list.get(segment)?.items;
        let first = self.lower_bound(segment, hash);
        let equals = items[first..].iter().take_while(|item| item.hash() == hash);
        let offset = equals.into_iter().position(is_it)?;
        Some((Position { segment, item: first + offset }, offset + 1))
    }

    /// An item, to load its content outside of this page. Nothing that `encode` writes may change.
    pub fn at_mut_unmarked(&mut self, position: Position) -> &mut T {
        &mut self.list[position.segment].items[position.item]
    }

    /// Changes an item. `change` may use `dirty` for the item's own pages. The position is invalid
    /// afterwards.
    #[inline]
    pub fn change<R>(
        &mut self,
        position: Position,
        id: impl Fn(u64) -> PageId,
        dirty: &mut Dirty,
        change: impl FnOnce(&mut T, &mut Dirty) -> R,
    ) -> R {
        let segment = &mut self.list[position.segment];
        segment.touch(&id, dirty);
        let item = &mut segment.items[position.item];
        let before = item.bytes();
        let result = change(item, dirty);
        segment.bytes = segment.bytes + item.bytes() as u64 - before as u64;
        if segment.is_large() {
            self.split(position.segment, &id, dirty);
        }
        result
    }

    /// Inserts an item at the position that `find` returned.
    pub fn insert(&mut self, at: Position, item: T, id: impl Fn(u64) -> PageId, dirty: &mut Dirty) {
        if self.list.is_empty() {
            self.list.push(Segment { start: 0, mark: dirty.created(id(0)), bytes: 0, items: Vec::new() });
        }
        let segment = &mut self.list[at.segment];
        segment.touch(&id, dirty);
        segment.bytes += item.bytes() as u64;
        make_room(&mut segment.items);
        segment.items.insert(at.item, item);
        if segment.is_large() {
            self.split(at.segment, &id, dirty);
        }
    }

    /// Removes an item that `find` found.
    pub fn remove(&mut self, at: Position, id: impl Fn(u64) -> PageId, dirty: &mut Dirty) -> T {
        let alone = self.list.len() == 1;
        let segment = &mut self.list[at.segment];
        if alone && segment.items.len() == 1 {
            dirty.removed(segment.mark, id(segment.start), || segment.encode());
            let item = segment.items.remove(at.item);
            self.list = SmallVec::new();
            return item;
        }
        segment.touch(&id, dirty);
        let item = segment.items.remove(at.item);
        segment.bytes -= item.bytes() as u64;
        if segment.items.len() * 2 < segment.items.capacity() {
            fit(&mut segment.items);
        }
        self.merge(at.segment.saturating_sub(1), &id, dirty);
        if let [only] = &self.list[..]
            && only.items.is_empty()
        {
            dirty.removed(only.mark, id(only.start), || only.encode());
            self.list = SmallVec::new();
        }
        item
    }

    /// Marks all pages as removed: everything is about to be deleted.
    pub fn mark_removed(&self, id: impl Fn(u64) -> PageId, dirty: &mut Dirty) {
        for segment in &self.list {
            dirty.removed(segment.mark, id(segment.start), || segment.encode());
        }
    }

    /// Splits a segment at the first bit in which its items' hashes differ, if they differ at all.
    fn split(&mut self, index: usize, id: &impl Fn(u64) -> PageId, dirty: &mut Dirty) {
        let lower = &mut self.list[index];
        let (Some(first), Some(last)) = (lower.items.first(), lower.items.last()) else { return };
        let differing = first.hash() ^ last.hash();
        if differing == 0 {
            return;
        }
        let bit = differing.ilog2();
        let start = last.hash() >> bit << bit;
        let items = lower.items.split_off(lower.items.partition_point(|item| item.hash() < start));
        fit(&mut lower.items);
        let bytes = items.iter().map(Item::bytes).sum::<usize>() as u64;
        lower.bytes -= bytes;
        let upper = Segment { start, mark: dirty.created(id(start)), bytes, items };
        self.list.insert(index + 1, upper);
    }

    /// Merges a segment with the next, if there is one and both are small.
    fn merge(&mut self, index: usize, id: &impl Fn(u64) -> PageId, dirty: &mut Dirty) {
        let [lower, upper] = match self.list.get_mut(index..index + 2) {
            Some([lower, upper]) => [lower, upper],
            _ => return,
        };
        let small = (lower.bytes + upper.bytes) as usize <= MERGED_BYTES_MAX
            && lower.items.len() + upper.items.len() <= page_items_max(SEGMENT_ITEMS_MAX) / 4;
        if small || upper.items.is_empty() {
            lower.touch(id, dirty);
            dirty.removed(upper.mark, id(upper.start), || upper.encode());
            lower.bytes += upper.bytes;
            lower.items.append(&mut upper.items);
            self.list.remove(index + 1);
        }
    }

    /// The items in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.list.iter().flat_map(|segment| segment.items.iter())
    }

    /// The items with hashes from `hash` on, in order.
    pub fn iter_from(&self, hash: u64) -> impl Iterator<Item = &T> {
        let segment = self.covering(hash);
        let first = self
            .list
            .get(segment)
            .map_or(0, |segment| segment.items.partition_point(|item| item.hash() < hash));
        self.list.iter().skip(segment).flat_map(|segment| segment.items.iter()).skip(first)
    }

    /// The item at a rank among those with hashes from `hash` on.
    pub fn nth_from(&self, hash: u64, mut rank: usize) -> Option<&T> {
        let segments = self.list.get(self.covering(hash)..)?;
        rank += segments.first()?.items.partition_point(|item| item.hash() < hash);
        for segment in segments {
            match segment.items.get(rank) {
                Some(item) => return Some(item),
                None => rank -= segment.items.len(),
            }
        }
        None
    }

    /// Whether there is a segment that starts at `start`.
    pub fn has(&self, start: u64) -> bool {
        self.list.binary_search_by_key(&start, |segment| segment.start).is_ok()
    }

    /// The content of the page of the segment that starts at `start`.
    pub fn encode(&self, start: u64) -> Option<Vec<u8>> {
        let index = self.list.binary_search_by_key(&start, |segment| segment.start).ok()?;
        Some(self.list[index].encode())
    }

    /// Loads a page; pages come in ascending order.
    pub fn load(&mut self, start: u64, content: &[u8], hashing: Hashing) -> Result<(), String> {
        if self.list.last().map_or(start != 0, |last| last.start >= start) {
            return Err("a segment is missing or out of order".into());
        }
        let mut input = Input::page(content)?;
        let count = input.size()?;
        let mut items = Vec::with_capacity(count.min(content.len()));
        for _ in 0..count {
            items.push(T::decode(&mut input, hashing)?);
        }
        input.end()?;
        let previous = self.list.last().and_then(|segment| segment.items.last());
        let in_order = |a: &T, b: &T| (a.hash(), a.key()) < (b.hash(), b.key());
        if items.first().is_some_and(|first| first.hash() < start)
            || previous.is_some_and(|previous| previous.hash() >= start)
            || !items.windows(2).all(|pair| in_order(&pair[0], &pair[1]))
        {
            return Err("items are not in their segment, or not in their order".into());
        }
        let bytes = items.iter().map(Item::bytes).sum::<usize>() as u64;
        self.list.push(Segment { start, mark: Mark::default(), bytes, items });
        Ok(())
    }

    /// Where the segments start. For tests.
    #[cfg(test)]
    pub fn starts(&self) -> Vec<u64> {
        self.list.iter().map(|segment| segment.start).collect()
    }

    /// Panics if an invariant does not hold. For tests.
    #[cfg(test)]
    pub fn invariants(&self) {
        assert!(self.list.first().is_none_or(|first| first.start == 0));
        assert!(self.list.iter().skip(1).all(|segment| !segment.items.is_empty()));
        assert!(self.list.len() != 1 || !self.list[0].items.is_empty());
        let all: Vec<_> = self.iter().map(|item| (item.hash(), item.key())).collect();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        for (index, segment) in self.list.iter().enumerate() {
            let end = self.list.get(index + 1).map_or(u64::MAX, |next| next.start - 1);
            assert!(segment.items.iter().all(|item| (segment.start..=end).contains(&item.hash())));
            assert_eq!(segment.bytes as usize, segment.items.iter().map(Item::bytes).sum::<usize>());
        }
    }
}

impl<T: Item> Segment<T> {
    #[inline]
    fn touch(&mut self, id: &impl Fn(u64) -> PageId, dirty: &mut Dirty) {
        let mut mark = self.mark;
        dirty.touch(&mut mark, id(self.start), || self.encode());
        self.mark = mark;
    }

    fn is_large(&self) -> bool {
        self.items.len() > page_items_max(SEGMENT_ITEMS_MAX)
            || (self.bytes as usize > SEGMENT_BYTES_MAX && self.items.len() > 1)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes as usize + 16);
        out.push(codec::FORMAT);
        codec::put_varint(&mut out, self.items.len() as u64);
        for item in &self.items {
            item.encode(&mut out);
        }
        out
    }
}

/// The index of the first item whose hash is not below `hash`, searched for around `guess`.
#[inline]
fn search_from<T: Item>(items: &[T], guess: usize, hash: u64) -> usize {
    let mut step = 2;
    let (mut low, mut high) = (guess, guess);
    if guess < items.len() && items[guess].hash() < hash {
        loop {
            low = high + 1;
            high += step;
            step *= 2;
            if high >= items.len() || items[high].hash() >= hash {
                high = high.min(items.len());
                break;
            }
        }
    } else {
        loop {
            high = low;
            low = low.saturating_sub(step);
            step *= 2;
            if low == 0 || items[low].hash() < hash {
                break;
            }
        }
    }
    low + items[low..high].partition_point(|item| item.hash() < hash)
}

/// The capacity for `len` items that fills a size class of jemalloc: it has four per doubling.
fn capacity_for<T>(len: usize) -> usize {
    let bytes = (len * size_of::<T>()).max(64);
    let step = (bytes.next_power_of_two() / 8).max(16);
    bytes.next_multiple_of(step) / size_of::<T>()
}

/// Makes room for one more item, growing by 14 to 25 %: most vectors are never doubled.
fn make_room<T>(items: &mut Vec<T>) {
    if items.len() == items.capacity() {
        items.reserve_exact(capacity_for::<T>(items.len() + 1) - items.len());
    }
}

/// Releases unused capacity.
fn fit<T>(items: &mut Vec<T>) {
    items.shrink_to(capacity_for::<T>(items.len() + 1));
}
