//! Tracks which pages have changed since the last checkpoint, and the images that a running checkpoint still
//! needs.
//!
//! A checkpoint writes the state as it was when it began, in short steps, while the state keeps changing. So
//! code that changes a page calls [`Dirty::touch`] *before* the change: if the running checkpoint has not
//! written this page yet, its old content is serialized at that point (copy on write).

use std::collections::{BTreeMap, btree_map::Entry};

/// A page's identity. The order of the variants and fields is the order of pages on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageId {
    /// The cluster's hash key. Sorts first: no key can be placed without it.
    Hashing,
    /// A segment of a database's keyspace: the keys of `slot` whose hashes start at `start`.
    Segment {
        /// The database.
        db: u32,
        /// The hash slot, 0 to 16383.
        slot: u16,
        /// The lowest hash of the segment.
        start: u64,
    },
    /// A part of a large object.
    Object {
        /// The object's id, never reused.
        object: u64,
        /// The part: a hash prefix or a chunk's number, depending on the type.
        part: u64,
    },
    /// A part of a table that is no key.
    Catalog {
        /// Which table.
        section: u8,
        /// The lowest hash of the part.
        part: u64,
    },
}

impl PageId {
    /// The id as bytes that sort in the order of ids.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(18);
        match *self {
            PageId::Hashing => out.push(0),
            PageId::Segment { db, slot, start } => {
                out.push(1);
                out.extend_from_slice(&db.to_be_bytes());
                out.extend_from_slice(&slot.to_be_bytes());
                out.extend_from_slice(&start.to_be_bytes());
            }
            PageId::Object { object, part } => {
                out.push(2);
                out.extend_from_slice(&object.to_be_bytes());
                out.extend_from_slice(&part.to_be_bytes());
            }
            PageId::Catalog { section, part } => {
                out.extend_from_slice(&[3, section]);
                out.extend_from_slice(&part.to_be_bytes());
            }
        }
        out
    }

    /// Reverses `encode`.
    pub fn decode(bytes: &[u8]) -> Option<PageId> {
        let (&tag, rest) = bytes.split_first()?;
        match (tag, rest.len()) {
            (0, 0) => Some(PageId::Hashing),
            (1, 14) => Some(PageId::Segment {
                db: u32::from_be_bytes(rest[..4].try_into().ok()?),
                slot: u16::from_be_bytes(rest[4..6].try_into().ok()?),
                start: u64::from_be_bytes(rest[6..].try_into().ok()?),
            }),
            (2, 16) => Some(PageId::Object {
                object: u64::from_be_bytes(rest[..8].try_into().ok()?),
                part: u64::from_be_bytes(rest[8..].try_into().ok()?),
            }),
            (3, 9) => Some(PageId::Catalog {
                section: rest[0],
                part: u64::from_be_bytes(rest[1..].try_into().ok()?),
            }),
            _ => None,
        }
    }
}

/// A page's mark: the epoch in which it was last touched; 0 if it never was. Stored with the page in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(u32);

/// A page of the running checkpoint that is not written yet.
#[derive(Debug)]
enum Pending {
    /// Unchanged in memory; if it is missing there, it was deleted.
    InMemory,
    /// It has changed since; this was its content (None: it did not exist).
    Image(Option<Vec<u8>>),
}

/// The tracker of one machine.
///
/// Invariants:
/// - A page whose mark equals `epoch` is in `dirty`.
/// - While a checkpoint runs, each page that it has not written yet is in `pending`; `InMemory` means that it
///   has not been touched in the present epoch.
#[derive(Debug)]
pub struct Dirty {
    epoch: u32,
    dirty: Vec<PageId>,
    pending: BTreeMap<PageId, Pending>,
    /// What the keys of all databases cost in memory: kept where their pages change.
    pub(in crate::store) keys_bytes: usize,
}

impl Default for Dirty {
    fn default() -> Self {
        Dirty { epoch: 1, dirty: Vec::new(), pending: BTreeMap::new(), keys_bytes: 0 }
    }
}

impl Dirty {
    /// Call before a page changes. `image` serializes its old content, and is called only if the running
    /// checkpoint needs it.
    #[inline]
    pub fn touch(&mut self, mark: &mut Mark, id: PageId, image: impl FnOnce() -> Vec<u8>) {
        if mark.0 != self.epoch {
            mark.0 = self.epoch;
            self.dirty.push(id);
            self.keep_image(id, || Some(image()));
        }
    }

    /// Call when a page is created. Returns its mark.
    pub fn created(&mut self, id: PageId) -> Mark {
        self.dirty.push(id);
        // If there was a page with this id, `removed` has kept what the checkpoint needs of it.
        Mark(self.epoch)
    }

    /// Call before a page is deleted. `image` as for `touch`.
    pub fn removed(&mut self, mark: Mark, id: PageId, image: impl FnOnce() -> Vec<u8>) {
        if mark.0 != self.epoch {
            self.dirty.push(id);
            self.keep_image(id, || Some(image()));
        }
    }

    fn keep_image(&mut self, id: PageId, image: impl FnOnce() -> Option<Vec<u8>>) {
        if self.pending.is_empty() {
            return;
        }
        if let Entry::Occupied(mut entry) = self.pending.entry(id)
            && matches!(entry.get(), Pending::InMemory)
        {
            entry.insert(Pending::Image(image()));
        }
    }

    /// Begins a checkpoint: everything touched so far is to be written.
    ///
    /// `exists` tells whether a page is in memory: a deleted page is recorded as such now, because a new one
    /// with the same id may be created before it is written.
    pub fn begin(&mut self, exists: impl Fn(PageId) -> bool) {
        assert!(self.pending.is_empty(), "one checkpoint at a time");
        for id in self.dirty.drain(..) {
            self.pending.insert(id, if exists(id) { Pending::InMemory } else { Pending::Image(None) });
        }
        self.epoch += 1;
    }

    /// The next page to write, in ascending order, with its content (None: deleted). `image` serializes a
    /// page from memory.
    pub fn next(
        &mut self,
        image: impl FnOnce(PageId) -> Option<Vec<u8>>,
    ) -> Option<(PageId, Option<Vec<u8>>)> {
        let (id, pending) = self.pending.pop_first()?;
        match pending {
            Pending::InMemory => Some((id, image(id))),
            Pending::Image(content) => Some((id, content)),
        }
    }

    /// The number of pages touched since the last checkpoint began; some may be counted twice.
    pub fn len(&self) -> usize {
        self.dirty.len()
    }

    /// Whether nothing was touched since the last checkpoint began.
    pub fn is_empty(&self) -> bool {
        self.dirty.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{Dirty, Mark, PageId};

    const ID: PageId = PageId::Object { object: 7, part: 0 };

    #[test]
    fn a_checkpoint_sees_the_content_at_its_begin() {
        let (mut dirty, mut mark) = (Dirty::default(), Mark::default());
        dirty.touch(&mut mark, ID, || unreachable!("no checkpoint runs"));
        dirty.begin(|_| true);
        dirty.touch(&mut mark, ID, || b"old".to_vec());
        dirty.touch(&mut mark, ID, || unreachable!("kept already"));
        assert_eq!(dirty.next(|_| unreachable!("kept already")), Some((ID, Some(b"old".to_vec()))));
        assert_eq!(dirty.next(|_| None), None);
        dirty.begin(|_| true);
        assert_eq!(dirty.next(|_| Some(b"new".to_vec())), Some((ID, Some(b"new".to_vec()))));
    }

    #[test]
    fn removal_and_rebirth_during_a_checkpoint_do_not_show_in_it() {
        let mut dirty = Dirty::default();
        let mark = dirty.created(ID);
        dirty.begin(|_| true);
        dirty.removed(mark, ID, || b"old".to_vec());
        dirty.created(ID);
        assert_eq!(dirty.next(|_| unreachable!("kept already")), Some((ID, Some(b"old".to_vec()))));
        dirty.begin(|_| false);
        assert_eq!(dirty.next(|_| None), Some((ID, None)));
    }

    #[test]
    fn page_ids_keep_their_order_as_bytes() {
        let ids = [
            PageId::Segment { db: 0, slot: 3, start: 9 },
            PageId::Segment { db: 0, slot: 300, start: 1 },
            PageId::Segment { db: 1, slot: 0, start: 0 },
            ID,
            PageId::Catalog { section: 1, part: 300 },
            PageId::Catalog { section: 2, part: 0 },
        ];
        assert!(ids.is_sorted());
        assert!(ids.map(|id| id.encode()).is_sorted());
        for id in ids {
            assert_eq!(PageId::decode(&id.encode()), Some(id));
        }
        assert_eq!(PageId::decode(&[1, 2]), None);
    }
}
