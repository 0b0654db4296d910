//! The keys touched by a call, in order, for the change feed. The machine takes them after every call.

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// It was created, changed or deleted.
    Changed,
    /// It had expired and was removed.
    Expired,
    /// All keys of the database were deleted; the key is empty.
    Flushed,
}

/// The touched keys. Allocates nothing once it has grown.
///
/// Invariant: `bytes` is, for each of `marks` in order, its key and then its string, if recorded.
#[derive(Debug)]
pub struct Touched {
    /// Longer strings are not recorded with their keys.
    string_bytes_max: usize,
    marks: Vec<Mark>,
    /// The keys and strings, one after the other.
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Mark {
    db: u32,
    touch: Touch,
    /// The end of its key in `bytes`.
    key_end: usize,
    /// The end of its string, if one was recorded.
    string_end: Option<usize>,
}

/// A key that was touched.
#[derive(Clone, Copy, Debug)]
pub struct Mention<'a> {
    /// Its database.
    pub db: u32,
    /// The key; empty if all were touched.
    pub key: &'a [u8],
    /// What happened.
    pub touch: Touch,
    /// Its string value right afterwards, if recorded: it saves a lookup in the state.
    pub string: Option<&'a [u8]>,
}

/// A buffer larger than this is freed.
const KEPT_BYTES_MAX: usize = 1 << 20;

impl Touched {
    /// Records strings of up to `string_bytes_max` with their keys.
    pub fn new(string_bytes_max: usize) -> Touched {
        Touched { string_bytes_max, marks: Vec::new(), bytes: Vec::new() }
    }

    /// Longer strings are not recorded with their keys.
    pub fn string_bytes_max(&self) -> usize {
        self.string_bytes_max
    }

    /// The number of touches; a key touched twice counts twice.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Whether nothing was touched.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    pub(crate) fn push(&mut self, db: u32, key: &[u8], touch: Touch) {
        self.bytes.extend_from_slice(key);
        self.marks.push(Mark { db, touch, key_end: self.bytes.len(), string_end: None });
    }

    /// A key was set to a string and has not expired.
    #[inline]
    pub(crate) fn push_string(&mut self, db: u32, key: &[u8], string: &[u8]) {
        if string.len() > self.string_bytes_max {
            return self.push(db, key, Touch::Changed);
        }
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(string);
        let string_end = Some(self.bytes.len());
        self.marks.push(Mark { db, touch: Touch::Changed, key_end, string_end });
    }

    /// All touches, in their order.
    pub fn iter(&self) -> impl Iterator<Item = Mention<'_>> {
        let mut start = 0;
        self.marks.iter().map(move |mark| {
            let key = &self.bytes[start..mark.key_end];
            let string = mark.string_end.map(|end| &self.bytes[mark.key_end..end]);
            start = mark.string_end.unwrap_or(mark.key_end);
            Mention { db: mark.db, key, touch: mark.touch, string }
        })
    }

    pub(crate) fn clear(&mut self) {
        self.marks.clear();
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            *self = self.emptied();
        }
    }

    /// An empty one with the same limit.
    pub(crate) fn emptied(&self) -> Touched {
        Touched::new(self.string_bytes_max)
    }
}
