//! A chain of chunks: the representation of a large list. A chunk is a page, and holds up to 8 KiB of
//! elements or one longer element.
//!
//! The order of the chunks is the order of their part numbers, so the pages alone determine it. Numbers are
//! assigned with gaps: outward from the middle at the ends, halfway between two neighbours inside. When a gap
//! is used up, only the chunks around it are renumbered.

use std::collections::VecDeque;

use crate::store::{
    codec::{FORMAT, Input},
    dirty::{Dirty, Mark, PageId},
    knobs::list_page_bytes_max,
    object::Pages,
    strings::{Strings, entry_size},
};

/// A chunk is split when its elements take more than this.
const CHUNK_BYTES_MAX: usize = 8 << 10;
/// The number of the first chunk: equally far from both ends.
const FIRST_PART: u64 = 1 << 63;
/// The gap between the numbers of chunks added at an end. At 50,000 such chunks a second, the numbers last
/// for five years.
const GAP: u64 = 1 << 20;
/// The minimum gap between renumbered chunks.
const RENUMBERED_GAP_MIN: u64 = 1 << 10;
/// How many chunks on either side are renumbered at first; doubled while the gap is too narrow.
const RENUMBERED_CHUNKS: usize = 8;

/// The limit in use. Two neighbours are merged when their elements together take no more than half of it.
#[inline]
fn chunk_bytes_max() -> usize {
    list_page_bytes_max(CHUNK_BYTES_MAX)
}

/// An end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The head.
    Left,
    /// The tail.
    Right,
}

#[derive(Debug)]
struct Chunk {
    part: u64,
    mark: Mark,
    strings: Strings,
}

impl Chunk {
    fn touch(&mut self, object: u64, pages: &mut Pages<'_>) {
        let mut mark = self.mark;
        pages.touch(&mut mark, object, self.part, || self.encode());
        self.mark = mark;
    }

    fn removed(&self, object: u64, pages: &mut Pages<'_>) {
        pages.removed(self.mark, object, self.part, || self.encode());
    }

    fn fits(&self, element: &[u8]) -> bool {
        self.strings.size() + entry_size(element.len()) <= chunk_bytes_max()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.strings.encoded_size() + 1);
        out.push(FORMAT);
        self.strings.encode(&mut out);
        out
    }
}

/// The chain.
///
/// Invariants:
/// - Chunks are in ascending order of their parts. None is empty; none takes more than [`CHUNK_BYTES_MAX`],
///   except those of one element.
/// - `len` is the number of elements, and `bytes` the sum of their sizes.
#[derive(Debug)]
pub(crate) struct Chain {
    object: u64,
    chunks: VecDeque<Chunk>,
    len: usize,
    bytes: usize,
}

impl Chain {
    /// An empty chain whose pages have the id `object`.
    pub fn new(object: u64) -> Chain {
        Chain { object, chunks: VecDeque::new(), len: 0, bytes: 0 }
    }

    /// A chain of these elements.
    pub fn of(strings: Strings, pages: &mut Pages<'_>) -> Chain {
        let (len, bytes) = (strings.len(), strings.size());
        let mut chain = Chain { len, bytes, ..Chain::new(pages.allocate()) };
        chain.insert_chunk(0, strings, pages);
        chain.split_while_large(0, pages);
        chain
    }

    pub fn object(&self) -> u64 {
        self.object
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The size of all elements.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of chunks.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The elements of each chunk.
    pub fn strings(&self) -> impl DoubleEndedIterator<Item = &Strings> {
        self.chunks.iter().map(|chunk| &chunk.strings)
    }

    /// Takes out all elements, and the chunk, if they are in one chunk and take no more than `bytes_max`.
    pub fn take_small(&mut self, bytes_max: usize, pages: &mut Pages<'_>) -> Option<Strings> {
        if self.chunks.len() > 1 || self.chunks.iter().any(|chunk| chunk.strings.size() > bytes_max) {
            return None;
        }
        let Some(chunk) = self.chunks.pop_front() else { return Some(Strings::default()) };
        chunk.removed(self.object, pages);
        (self.len, self.bytes) = (0, 0);
        Some(chunk.strings)
    }

    /// The chunk of the element at `index`, which is below `len`, and its position there. Walks from the
    /// nearer end.
    fn find(&self, index: usize) -> (usize, usize) {
        if index <= self.len / 2 {
            let mut before = 0;
            for (at, chunk) in self.chunks.iter().enumerate() {
                if index < before + chunk.strings.len() {
                    return (at, index - before);
                }
                before += chunk.strings.len();
            }
        } else {
            let mut end = self.len;
            for (at, chunk) in self.chunks.iter().enumerate().rev() {
                end -= chunk.strings.len();
                if index >= end {
                    return (at, index - end);
                }
            }
        }
        unreachable!("the caller checked the index against len, which counts the elements")
    }

    /// The element at `index`.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        if index >= self.len {
            return None;
        }
        let (at, offset) = self.find(index);
        self.chunks[at].strings.get(offset)
    }

    /// Adds an element at an end.
    pub fn push(&mut self, end: End, element: &[u8], pages: &mut Pages<'_>) {
        let at = match end {
            End::Left => 0,
            End::Right => self.chunks.len().saturating_sub(1),
        };
        self.len += 1;
        self.bytes += entry_size(element.len());
        match self.chunks.get_mut(at).filter(|chunk| chunk.fits(element)) {
            Some(chunk) => {
                chunk.touch(self.object, pages);
                match end {
                    End::Left => chunk.strings.push_front(element),
                    End::Right => chunk.strings.push_back(element),
                }
            }
            None if end == End::Left => self.insert_chunk(0, one(element), pages),
            None => self.insert_chunk(self.chunks.len(), one(element), pages),
        }
    }

    /// Removes up to `count` elements from an end.
    pub fn drop_end(&mut self, end: End, mut count: usize, pages: &mut Pages<'_>) {
        while count > 0 {
            let chunk = match end {
                End::Left => self.chunks.front_mut(),
                End::Right => self.chunks.back_mut(),
            };
            let Some(chunk) = chunk else { return };
            let present = chunk.strings.len();
            self.bytes -= chunk.strings.size();
            if present <= count {
                chunk.removed(self.object, pages);
                match end {
                    End::Left => self.chunks.pop_front(),
                    End::Right => self.chunks.pop_back(),
                };
                self.len -= present;
                count -= present;
            } else {
                chunk.touch(self.object, pages);
                let first = if end == End::Left { 0 } else { present - count };
                chunk.strings.drop_range(first, count);
                self.bytes += chunk.strings.size();
                self.len -= count;
                return;
            }
        }
    }

    /// Replaces the element at `index`, which is below `len`.
    pub fn set(&mut self, index: usize, element: &[u8], pages: &mut Pages<'_>) {
        let (at, offset) = self.find(index);
        self.chunks[at].touch(self.object, pages);
        let strings = &mut self.chunks[at].strings;
        self.bytes -= strings.size();
        strings.set(offset, element);
        self.bytes += strings.size();
        self.split_while_large(at, pages);
    }

    /// Inserts an element before the one at `index`, which is below `len`.
    pub fn insert(&mut self, index: usize, element: &[u8], pages: &mut Pages<'_>) {
        let (at, offset) = self.find(index);
        self.len += 1;
        self.bytes += entry_size(element.len());
        if self.insert_if_fits(at, offset, element, pages) {
            return;
        }
        if offset == 0 {
            let before = at.checked_sub(1);
            if !before.is_some_and(|before| self.insert_if_fits(before, usize::MAX, element, pages)) {
                self.insert_chunk(at, one(element), pages);
            }
            return;
        }
        self.split(at, offset, pages);
        if !self.insert_if_fits(at, usize::MAX, element, pages)
            && !self.insert_if_fits(at + 1, 0, element, pages)
        {
            self.insert_chunk(at + 1, one(element), pages);
        }
    }

    fn insert_if_fits(&mut self, at: usize, offset: usize, element: &[u8], pages: &mut Pages<'_>) -> bool {
        let chunk = &mut self.chunks[at];
        let fits = chunk.fits(element);
        if fits {
            chunk.touch(self.object, pages);
            chunk.strings.insert(offset.min(chunk.strings.len()), element);
        }
        fits
    }

    /// Removes up to `max` elements equal to `element`, counted from one end. Returns how many.
    pub fn remove_equal(&mut self, element: &[u8], max: usize, from: End, pages: &mut Pages<'_>) -> usize {
        let mut removed = 0;
        for step in 0..self.chunks.len() {
            let at = if from == End::Left { step } else { self.chunks.len() - 1 - step };
            let chunk = &mut self.chunks[at];
            if removed < max && chunk.strings.iter().any(|present| present == element) {
                chunk.touch(self.object, pages);
                self.bytes -= chunk.strings.size();
                removed += chunk.strings.remove_equal(element, max - removed, from == End::Right);
                self.bytes += chunk.strings.size();
            }
        }
        self.len -= removed;
        if removed > 0 {
            self.merge_small(pages);
        }
        removed
    }

    /// Drops empty chunks, which must be marked already, and merges small neighbours.
    fn merge_small(&mut self, pages: &mut Pages<'_>) {
        let mut merged: VecDeque<Chunk> = VecDeque::with_capacity(self.chunks.len());
        for chunk in std::mem::take(&mut self.chunks) {
            let size = chunk.strings.size();
            match merged.back_mut() {
                _ if chunk.strings.is_empty() => chunk.removed(self.object, pages),
                Some(last) if last.strings.size() + size <= chunk_bytes_max() / 2 => {
                    chunk.removed(self.object, pages);
                    last.touch(self.object, pages);
                    last.strings.append(&chunk.strings);
                }
                _ => merged.push_back(chunk),
            }
        }
        self.chunks = merged;
    }

    /// Splits a chunk before its element at `offset`.
    fn split(&mut self, at: usize, offset: usize, pages: &mut Pages<'_>) {
        self.chunks[at].touch(self.object, pages);
        let tail = self.chunks[at].strings.split_off(offset);
        self.insert_chunk(at + 1, tail, pages);
    }

    /// Splits a chunk until no part of it is too large.
    fn split_while_large(&mut self, first: usize, pages: &mut Pages<'_>) {
        // How many parts are still to be examined, from `at` on.
        let (mut at, mut left) = (first, 1);
        while left > 0 {
            let strings = &self.chunks[at].strings;
            if strings.len() > 1 && strings.size() > chunk_bytes_max() {
                self.split(at, strings.middle(), pages);
                left += 1;
            } else {
                at += 1;
                left -= 1;
            }
        }
    }

    /// Inserts a chunk at `at`.
    fn insert_chunk(&mut self, at: usize, strings: Strings, pages: &mut Pages<'_>) {
        let part = self.part_at(at).unwrap_or_else(|| {
            self.renumber(at, pages);
            self.part_at(at).expect("there is room after chunks got other numbers")
        });
        let mark = pages.created(self.object, part);
        self.chunks.insert(at, Chunk { part, mark, strings });
    }

    /// A number for a chunk to be inserted; None if there is none free between its neighbours'.
    fn part_at(&self, at: usize) -> Option<u64> {
        let before = at.checked_sub(1).map(|before| self.chunks[before].part);
        let after = self.chunks.get(at).map(|chunk| chunk.part);
        match (before, after) {
            (None, None) => Some(FIRST_PART),
            (Some(before), None) => before.checked_add(GAP),
            (None, Some(after)) => after.checked_sub(GAP),
            (Some(before), Some(after)) => {
                let between = before + (after - before) / 2;
                (between != before).then_some(between)
            }
        }
    }

    /// Renumbers the chunks around a position, spread evenly between those that keep their numbers.
    fn renumber(&mut self, at: usize, pages: &mut Pages<'_>) {
        let (count, mut width) = (self.chunks.len(), RENUMBERED_CHUNKS);
        let (first, end, low, step) = loop {
            let (first, end) = (at.saturating_sub(width), (at + width).min(count));
            let low = if first == 0 { 0 } else { self.chunks[first - 1].part };
            let high = if end == count { u64::MAX } else { self.chunks[end].part };
            let step = (high - low) / (end - first + 1) as u64;
            // Renumbering all of them always suffices: memory holds far fewer chunks than there are numbers.
            if step >= RENUMBERED_GAP_MIN || end - first == count {
                break (first, end, low, step);
            }
            width *= 2;
        };
        // All are removed before any is created: a number may pass from one chunk to another.
        self.chunks.range(first..end).for_each(|chunk| chunk.removed(self.object, pages));
        for (place, chunk) in (1u64..).zip(self.chunks.range_mut(first..end)) {
            chunk.part = low + place * step;
            chunk.mark = pages.created(self.object, chunk.part);
        }
    }

    fn by_part(&self, part: u64) -> Option<&Chunk> {
        self.chunks.binary_search_by_key(&part, |chunk| chunk.part).ok().map(|at| &self.chunks[at])
    }

    /// For [`crate::store::Kind::has_part`].
    pub fn has_part(&self, part: u64) -> bool {
        self.by_part(part).is_some()
    }

    /// For [`crate::store::Kind::encode_part`].
    pub fn encode_part(&self, part: u64) -> Option<Vec<u8>> {
        self.by_part(part).map(Chunk::encode)
    }

    /// For [`crate::store::Kind::load_part`]. The owner checks `len` and `chunks` against its head.
    pub fn load_part(&mut self, part: u64, content: &[u8]) -> Result<(), String> {
        if self.chunks.back().is_some_and(|last| last.part >= part) {
            return Err("chunks of a list are out of order".into());
        }
        let mut input = Input::page(content)?;
        let strings = Strings::decode(&mut input)?;
        input.end()?;
        if strings.is_empty() {
            return Err("a chunk of a list is empty".into());
        }
        self.len += strings.len();
        self.bytes += strings.size();
        self.chunks.push_back(Chunk { part, mark: Mark::default(), strings });
        Ok(())
    }

    /// For [`crate::store::Kind::remove_pages`].
    pub fn remove_pages(&self, dirty: &mut Dirty) {
        for chunk in &self.chunks {
            let id = PageId::Object { object: self.object, part: chunk.part };
            dirty.removed(chunk.mark, id, || chunk.encode());
        }
    }

    /// A copy with its own pages.
    pub fn copy(&self, pages: &mut Pages<'_>) -> Chain {
        let object = pages.allocate();
        let chunks = self.chunks.iter().map(|chunk| Chunk {
            part: chunk.part,
            mark: pages.created(object, chunk.part),
            strings: chunk.strings.clone(),
        });
        Chain { object, chunks: chunks.collect(), len: self.len, bytes: self.bytes }
    }

    /// The numbers of all chunks. For tests.
    #[cfg(test)]
    pub fn parts(&self) -> Vec<u64> {
        self.chunks.iter().map(|chunk| chunk.part).collect()
    }

    /// Panics if an invariant does not hold. For tests.
    #[cfg(test)]
    pub fn invariants(&self) {
        assert!(self.chunks.iter().is_sorted_by(|a, b| a.part < b.part));
        assert_eq!(self.len, self.strings().map(Strings::len).sum::<usize>());
        assert_eq!(self.bytes, self.strings().map(Strings::size).sum::<usize>());
        let fits = |strings: &Strings| strings.len() == 1 || strings.size() <= chunk_bytes_max();
        assert!(self.strings().all(|strings| !strings.is_empty() && fits(strings)));
    }
}

/// The content of a chunk with one element.
fn one(element: &[u8]) -> Strings {
    let mut strings = Strings::default();
    strings.push_back(element);
    strings
}
