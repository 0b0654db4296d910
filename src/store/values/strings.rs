//! A sequence of byte strings in one allocation: small lists and hashes and the chunks of large lists consist
//! of it. It can be walked both ways; an element is found by walking from the nearer end.
//!
//! There is spare room before the first element too, so both ends grow and shrink without moving the rest.

use crate::store::codec::{Input, put_bytes, put_varint};

/// A sequence of byte strings.
///
/// Invariants:
/// - `bytes[start..]` is `count` entries; the bytes before `start` are spare room.
/// - An entry is the content's length as a varint, the content, and the size of both as a varint with its
///   bytes reversed, so that it can be read backwards.
#[derive(Clone, Debug, Default)]
pub(crate) struct Strings {
    bytes: Vec<u8>,
    start: usize,
    count: u32,
}

fn varint_size(value: usize) -> usize {
    (value | 1).ilog2() as usize / 7 + 1
}

/// The size of an entry with `len` bytes of content.
pub(crate) fn entry_size(len: usize) -> usize {
    let body = varint_size(len) + len;
    body + varint_size(body)
}

/// Writes an entry into a slice of its size.
fn write_entry(place: &mut [u8], content: &[u8]) {
    let put = |place: &mut [u8], mut value: usize, reversed: bool| {
        let size = varint_size(value);
        for index in 0..size {
            let more = if index + 1 < size { 0x80 } else { 0 };
            place[if reversed { size - 1 - index } else { index }] = (value & 0x7f) as u8 | more;
            value >>= 7;
        }
    };
    let header = varint_size(content.len());
    put(place, content.len(), false);
    place[header..header + content.len()].copy_from_slice(content);
    put(&mut place[header + content.len()..], header + content.len(), true);
}

impl Strings {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The size of all entries; depends on content alone.
    pub fn size(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// The elements in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter { rest: &self.bytes[self.start..] }
    }

    /// The elements from `index` on; none if that is past the end.
    pub fn iter_from(&self, index: usize) -> Iter<'_> {
        Iter { rest: &self.bytes[self.place_of(index)..] }
    }

    /// The element at `index`.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        self.iter_from(index).next()
    }

    /// The offset in `bytes` of the entry at `index`, or of the end.
    fn place_of(&self, index: usize) -> usize {
        let mut iter = self.iter();
        if index >= self.len() {
            self.bytes.len()
        } else if index <= self.len() / 2 {
            iter.by_ref().take(index).for_each(drop);
            self.bytes.len() - iter.rest.len()
        } else {
            iter.by_ref().rev().take(self.len() - index).for_each(drop);
            self.start + iter.rest.len()
        }
    }

    pub fn push_back(&mut self, element: &[u8]) {
        self.insert(self.len(), element);
    }

    pub fn push_front(&mut self, element: &[u8]) {
        self.insert(0, element);
    }

    /// Inserts before the element at `index`, or at the end.
    pub fn insert(&mut self, index: usize, element: &[u8]) {
        let place = self.place_of(index);
        let size = entry_size(element.len());
        let hole = self.open(place, size);
        write_entry(&mut self.bytes[hole..hole + size], element);
        self.count += 1;
    }

    /// Makes room for `size` bytes before `place`; returns where it begins.
    fn open(&mut self, place: usize, size: usize) -> usize {
        let len = self.size();
        if place == self.start && len > 0 {
            if self.start < size {
                let room = size.max(len / 8);
                let mut bytes = Vec::with_capacity(room + len);
                bytes.resize(room, 0);
                bytes.extend_from_slice(&self.bytes[self.start..]);
                (self.bytes, self.start) = (bytes, room);
            }
            self.start -= size;
            return self.start;
        }
        let place = if self.bytes.capacity() - self.bytes.len() < size {
            // A queue that moves through its allocation reuses the room before it instead of growing.
            let before = if self.start >= len { self.start } else { 0 };
            self.bytes.drain(..before);
            self.start -= before;
            self.bytes.reserve_exact(size.max(len / 8));
            place - before
        } else {
            place
        };
        let end = self.bytes.len();
        self.bytes.resize(end + size, 0);
        self.bytes.copy_within(place..end, place + size);
        place
    }

    /// Replaces the element at `index`.
    pub fn set(&mut self, index: usize, element: &[u8]) {
        let place = self.place_of(index);
        let mut iter = Iter { rest: &self.bytes[place..] };
        if iter.next().is_some() {
            let end = self.bytes.len() - iter.rest.len();
            let size = entry_size(element.len());
            if end - place == size {
                write_entry(&mut self.bytes[place..end], element);
            } else {
                self.drop_range(index, 1);
                self.insert(index, element);
            }
        }
    }

    /// Removes `count` elements from `index` on, or as many as there are.
    pub fn drop_range(&mut self, index: usize, count: usize) {
        let count = count.min(self.len().saturating_sub(index));
        let (place, end) = (self.place_of(index), self.place_of(index + count));
        self.count -= count as u32;
        if self.count == 0 {
            *self = Strings::default();
        } else if place == self.start {
            self.start = end;
        } else {
            self.bytes.drain(place..end);
        }
        // Release the room left by a long element.
        if self.bytes.capacity() > 4 * self.size() + 1_024 {
            self.bytes.drain(..std::mem::take(&mut self.start));
            self.bytes.shrink_to_fit();
        }
    }

    /// Removes up to `max` elements equal to `element`, the first or the last ones. Returns how many.
    pub fn remove_equal(&mut self, element: &[u8], max: usize, from_end: bool) -> usize {
        let equal = |(index, present): (usize, &[u8])| (present == element).then_some(index);
        let mut found: Vec<usize> = self.iter().enumerate().filter_map(equal).collect();
        if from_end {
            found.drain(..found.len().saturating_sub(max));
        } else {
            found.truncate(max);
        }
        if found.is_empty() {
            return 0;
        }
        let mut kept = Strings::default();
        let mut next = found.iter().peekable();
        for (index, present) in self.iter().enumerate() {
            if next.next_if_eq(&&index).is_none() {
                kept.push_back(present);
            }
        }
        *self = kept;
        found.len()
    }

    /// Takes out the elements from `index` on.
    pub fn split_off(&mut self, index: usize) -> Strings {
        let place = self.place_of(index);
        let count = self.len().saturating_sub(index) as u32;
        let tail = Strings { bytes: self.bytes.split_off(place), start: 0, count };
        self.count -= count;
        self.bytes.shrink_to_fit();
        tail
    }

    /// Where to split so that both halves have about the same size, with at least one element each. Requires
    /// at least two elements.
    pub fn middle(&self) -> usize {
        let (mut size, half) = (0, self.size() / 2);
        let is_past = |element: &[u8]| {
            size += entry_size(element.len());
            size > half
        };
        let index = self.iter().position(is_past).unwrap_or(0);
        index.clamp(1, self.len() - 1)
    }

    /// Appends the elements of another.
    pub fn append(&mut self, other: &Strings) {
        self.bytes.extend_from_slice(&other.bytes[other.start..]);
        self.count += other.count;
    }

    /// The size of what `encode` writes, or slightly more.
    pub fn encoded_size(&self) -> usize {
        self.size() + 5
    }

    /// Appends the serialized form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.len() as u64);
        self.iter().for_each(|element| put_bytes(out, element));
    }

    /// Reads what `encode` wrote.
    pub fn decode(input: &mut Input<'_>) -> Result<Strings, String> {
        let count = input.size()?;
        let mut strings = Strings::default();
        for _ in 0..count {
            strings.push_back(input.bytes()?);
        }
        Ok(strings)
    }
}

/// An iterator from either end.
#[derive(Clone, Debug)]
pub(crate) struct Iter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let (mut len, mut header) = (0, 0);
        loop {
            let byte = *self.rest.get(header)?;
            len |= usize::from(byte & 0x7f) << (7 * header);
            header += 1;
            if byte < 0x80 {
                break;
            }
        }
        let body = header + len;
        let content = &self.rest[header..body];
        self.rest = &self.rest[body + varint_size(body)..];
        Some(content)
    }
}

impl<'a> DoubleEndedIterator for Iter<'a> {
    fn next_back(&mut self) -> Option<&'a [u8]> {
        let (mut body, mut trailer) = (0, 0);
        loop {
            let byte = *self.rest.get(self.rest.len().checked_sub(trailer + 1)?)?;
            body |= usize::from(byte & 0x7f) << (7 * trailer);
            trailer += 1;
            if byte < 0x80 {
                break;
            }
        }
        let start = self.rest.len() - trailer - body;
        let content = Iter { rest: &self.rest[start..] }.next();
        self.rest = &self.rest[..start];
        content
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::{Strings, entry_size};
    use crate::store::{Chance, codec::Input};

    fn element(chance: &mut Chance) -> Vec<u8> {
        let len = match chance.below(20) {
            0 => 120 + chance.below(16),
            1 => 16_380 + chance.below(8),
            _ => chance.below(12),
        };
        vec![b'a' + chance.below(3) as u8; len]
    }

    #[test]
    fn they_do_what_a_deque_does() {
        for seed in 0..4 {
            println!("seed {seed}");
            let mut chance = Chance::new(seed);
            let (mut strings, mut model) = (Strings::default(), VecDeque::new());
            for step in 0..4_000 {
                let value = element(&mut chance);
                let index = chance.below(model.len() + 1);
                match chance.below(if step % 1_000 < 500 { 7 } else { 11 }) {
                    0 | 1 => (strings.push_back(&value), model.push_back(value)).1,
                    2 | 3 => (strings.push_front(&value), model.push_front(value)).1,
                    4 => (strings.insert(index, &value), model.insert(index, value)).1,
                    5 if index < model.len() => {
                        strings.set(index, &value);
                        model[index] = value;
                    }
                    6 => {
                        let tail = strings.split_off(index);
                        assert_eq!((strings.len(), tail.len()), (index, model.len() - index));
                        strings.append(&tail);
                    }
                    7 => {
                        let count = chance.below(8).min(model.len() - index);
                        strings.drop_range(index, count);
                        model.drain(index..index + count);
                    }
                    8 if !model.is_empty() => _ = (strings.drop_range(0, 1), model.pop_front()),
                    9 if !model.is_empty() => {
                        _ = (strings.drop_range(model.len() - 1, 1), model.pop_back());
                    }
                    _ => {
                        let max = chance.below(4);
                        let from_end = chance.below(2) == 0;
                        let removed = strings.remove_equal(&value, max, from_end);
                        let mut left = max;
                        let mut keep = |present: &Vec<u8>| {
                            let goes = *present == value && left > 0;
                            left -= usize::from(goes);
                            !goes
                        };
                        if from_end {
                            model = model.into_iter().rev().filter(keep).collect::<VecDeque<_>>();
                            model = model.into_iter().rev().collect();
                        } else {
                            model.retain(&mut keep);
                        }
                        assert_eq!(removed, max - left);
                    }
                }
                assert_eq!(strings.len(), model.len());
                assert!(strings.iter().eq(model.iter().map(Vec::as_slice)), "step {step}");
                assert!(strings.iter().rev().eq(model.iter().rev().map(Vec::as_slice)));
                assert_eq!(strings.get(index), model.get(index).map(Vec::as_slice));
                assert_eq!(strings.size(), model.iter().map(|value| entry_size(value.len())).sum::<usize>());
            }
            let mut out = Vec::new();
            strings.encode(&mut out);
            assert!(out.len() <= strings.encoded_size());
            let decoded = Strings::decode(&mut Input::new(&out)).unwrap();
            assert!(decoded.iter().eq(strings.iter()));
        }
    }
}
